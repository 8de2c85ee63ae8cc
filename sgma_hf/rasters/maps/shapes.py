"""Polygons of the classes of a map."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...data.whole_files import replace_file
from ...model.limits_sgma import IGNORE_INDEX
from ..files import read_info
from ..grids import Grid
from ..opening import open_dataset
from ..polygons import ground_areas, require_vectors
from ..raster import require_rasterio


DRIVERS = {".gpkg": "GPKG", ".geojson": "GeoJSON", ".fgb": "FlatGeobuf"}


def check_polygons(output: str | os.PathLike, min_area: float) -> None:
    """Raise ValueError if polygons cannot be written to a file of this name, or `min_area` is no area."""
    require_vectors(output)
    if Path(output).suffix.lower() not in DRIVERS:
        raise ValueError(f"The polygons are {str(output)!r}; expected a name that ends in {', '.join(DRIVERS)}.")
    if not 0 <= min_area < np.inf:
        raise ValueError(f"`min_area` is {min_area:g}; expected square metres, 0 for all.")


def write_polygons(label_map: Path, output: str | os.PathLike, names: Sequence[str], *, min_area: float = 0.0) -> int:
    """Write the patches of each class of a map, as one polygon each, with holes; returns how many.

    Pixels that touch at a corner alone are two patches. A polygon has `class_id`, `class`, and `area_m2` on the
    ellipsoid, None where nobody knows; those below `min_area` are left out. GeoPackage and FlatGeobuf are in the CRS
    of the map, GeoJSON is in longitude and latitude of WGS 84, as its standard has it.

    Raises:
        ValueError: If the map has no place, or its name another suffix than the `DRIVERS` have.
        OSError: If the file cannot be written.
    """
    check_polygons(output, min_area)
    (pyogrio, shapely), rasterio = require_vectors(output), require_rasterio(label_map)
    info = read_info(label_map, palette_as_indices=True)
    if info.georeference is None:
        raise ValueError(f"{label_map} has no place, so it has no polygons. Give rasters that have one.")
    with open_dataset(label_map) as file:
        # GDAL goes through the map line by line, and keeps the polygons that are still open.
        found = rasterio.features.shapes(rasterio.band(file, 1), connectivity=4, transform=file.transform)
        pairs = [(shapely.geometry.shape(shape), int(value)) for shape, value in found if value != IGNORE_INDEX]
    shapes = np.array([shape for shape, _ in pairs], dtype=object)
    ids = np.array([index for _, index in pairs], dtype=np.int32)
    areas = ground_areas(shapes, Grid(info.size, info.georeference))
    if areas is None and min_area:
        raise ValueError(f"{label_map} has no CRS that knows metres. Leave out the least area of its polygons.")
    kept = np.full(len(shapes), True) if areas is None else areas >= min_area
    columns: dict[str, Any] = {"class_id": ids[kept], "class": np.array(names, dtype=object)[ids[kept]]}
    columns |= {} if areas is None else {"area_m2": areas[kept]}
    driver = DRIVERS[Path(output).suffix.lower()]
    with replace_file(output) as path:
        path.unlink()  # a file that is there would be added to
        try:
            pyogrio.raw.write(
                path,
                shapely.to_wkb(shapes[kept]),
                list(columns.values()),
                list(columns),
                layer=Path(output).stem,
                driver=driver,
                geometry_type="Polygon",
                crs=info.georeference.crs,
                # Seven decimals, the default, are a centimetre, which pixels of a drone may be.
                layer_options={"RFC7946": "YES", "COORDINATE_PRECISION": "9"} if driver == "GeoJSON" else {},
            )
        except pyogrio.errors.DataSourceError as error:
            raise OSError(f"Cannot write {output}: {error}") from error
    return int(kept.sum())
