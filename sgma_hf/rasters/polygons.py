"""Labels that are polygons, lines or points of a vector file, burnt into the raster that they stand for.

Only this file reads vectors: by pyogrio and shapely (extra `geo`), which are imported when something needs them.
"""

import argparse
import json
import math
import os
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from transformers.utils import logging

from ..data.class_maps import ClassMap, classes_flag
from ..data.command_line import SWITCH, Parser, did_you_mean
from ..data.windows import Window, blocks
from ..model.limits_sgma import IGNORE_INDEX
from .grids import Grid, ground_sampling
from .raster import lonlat_bounds, metres_per_unit, parse_crs, refuse_unknown_way, require_rasterio, same_crs


logger = logging.get_logger(__name__)

_SUFFIXES = (".gpkg", ".geojson", ".shp", ".fgb")
_NO_LABEL = int(np.iinfo(np.int32).min)  # in a raster that is being burnt, where nobody labelled
_PIXELS_AT_ONCE = 2**24
_EDGES = 64  # parts of a grid's diagonal; longer edges are split before they are brought into another CRS
_MOST_NAMED = 12


def is_vector_file(path: str | os.PathLike) -> bool:
    """Whether a file holds vectors, by its name; `a.gpkg:roads` is the layer `roads` of one."""
    return split_layer(path)[0].suffix.lower() in _SUFFIXES


def split_layer(source: str | os.PathLike) -> tuple[Path, str | None]:
    """File and layer of `a.gpkg:roads`."""
    text = os.fspath(source)
    file, colon, layer = text.rpartition(":")
    is_layer = colon and not Path(text).exists() and Path(file).suffix.lower() in _SUFFIXES
    return (Path(file), layer) if is_layer else (Path(text), None)


def require_vectors(path: Any) -> tuple[ModuleType, ModuleType]:
    """Import pyogrio and shapely, or raise ImportError that names the file that needs them and the extra."""
    try:
        import pyogrio.raw
        import shapely
    except ImportError as error:
        raise ImportError(
            f"Reading {path} needs pyogrio and shapely, which are not installed. Install the extra: "
            "pip install 'sgma-hf[geo]'."
        ) from error
    return pyogrio, shapely


class NothingLabelled(ValueError):
    """A layer has no label for any pixel of a grid."""


@dataclass(frozen=True)
class PolygonLabels:
    """A layer of labelled polygons, lines or points, and how pixels get their label from it.

    A pixel is labelled by the features that hold its centre: by that which comes first in `priority`, of equal ones by
    the last of the layer. What is in no feature has no label, or that of `background`.
    """

    source: str | os.PathLike = ""  # `a.gpkg`, or `a.gpkg:roads` for one of several layers
    attribute: str | None = None  # that says the class; without it every feature is 1, and what is in none is 0
    background: str | None = None  # value or class of what is in no feature, but in the extent
    extent: str | None = None  # what was digitised: `hull`, `bounds`, or a file as `source`; None: everything
    priority: Sequence[str] = ()  # values or classes
    buffer: float = 0.0  # metres around lines and points
    all_touched: bool = False  # whether a feature labels all pixels that it touches

    def burn(self, grid: Grid, path: Path, classes: ClassMap | None, *, ignore_unmapped: bool = False) -> None:
        """Write the label raster of a grid, an int32 GeoTIFF with a mask.

        Pixels hold the attribute's numbers, or the keys of `classes.sources` where classes are given; values without a
        class are refused, or have no label. Raises ValueError that names the layer if it cannot be used,
        `NothingLabelled` if it lies elsewhere.
        """
        layer = _Layer.open(self.source)
        self._check(layer, classes)
        _check_place(layer, grid)
        reach = self._reach(grid)
        shapes, values = layer.read(reach, self.attribute)
        codes = self._codes(layer, values, classes, ignore_unmapped)
        shapes = self._buffered(layer.brought_to(reach, shapes), grid)
        order = self._drawn(codes, classes)
        background = "0" if self.attribute is None and self.background is None else self.background
        fill = _NO_LABEL if background is None else self._code_of_name(background, "background", classes)
        labels = _Burner(grid, shapes[order], codes[order], all_touched=self.all_touched)
        if not (layer.reaches(reach) and _write(path, grid, labels, fill, self._extent(layer, reach))):
            own, asked = (
                ", ".join(f"{n:.10g}" for n in box) for box in (layer.bounds, reach.georeference.bounds(reach.size))
            )
            raise NothingLabelled(
                f"{layer} labels no pixel of the rasters: it covers (west, south, east, north) ({own}), they cover "
                f"({asked}), each in its own CRS. Give the file that belongs there, or another extent of the labels; "
                "features without a value, and those that hold the centre of no pixel, label none."
            )

    def _check(self, layer: "_Layer", classes: ClassMap | None) -> None:
        """Refuse what the layer cannot give, whatever the grid."""
        has = f"It has {', '.join(layer.fields) or 'none'}."
        layer.check_attribute(self.attribute)
        if not 0 <= self.buffer < math.inf:
            raise ValueError(f"The buffer of labels is {self.buffer:g} metres; expected 0 or more.")
        if classes is not None and classes.by_colour:
            raise ValueError(f"{layer} holds no colours, but the classes are given by colour. Give `value`.")
        is_mask = classes is None or (len(classes.names) < 3 and None not in map(classes.code_of, (0, 1)))
        if self.attribute is None and not is_mask:
            raise ValueError(
                f"{layer}: which attribute says the class, one of {classes.names}? Name it: --label_attribute. {has}"
            )
        if self.attribute is None and layer.fields:
            logger.warning_once(
                f"{layer}: every feature counts as 1, and all else as 0. If an attribute says the class, name it: "
                f"--label_attribute. {has}"
            )

    def _reach(self, grid: Grid) -> Grid:
        """The grid with a border, from which buffers reach into it."""
        metres = ground_sampling(grid) if self.buffer else None
        border = 1 if metres is None else 1 + math.ceil(self.buffer / min(metres))
        height, width = grid.size
        return Grid((height + 2 * border, width + 2 * border), grid.georeference.window(-border, -border))

    def _codes(
        self, layer: "_Layer", values: Sequence[Any], classes: ClassMap | None, ignore_unmapped: bool
    ) -> np.ndarray:
        """What to burn for each feature, int64; of one without a value, which nobody labelled, `_NO_LABEL`."""
        codes = {value: _code(value, classes) for value in set(values)} | {None: _NO_LABEL}
        if None in codes.values() and not (ignore_unmapped and classes is not None):
            values = layer.values(self.attribute)  # of the whole layer, so that all is said at once
            unknown = Counter(value for value in values if value is not None and _code(value, classes) is None)
            shown = [f"{value!r} ({count} features)" for value, count in unknown.most_common(_MOST_NAMED)]
            shown += [f"and {len(unknown) - _MOST_NAMED} more"] * (len(unknown) > _MOST_NAMED)
            said = f"{layer}: {self.attribute} without a class: {', '.join(shown)}."
            if classes is None:
                names = sorted({str(value) for value in values if value is not None})
                suggested = json.dumps([{"name": name, "value": name} for name in names], ensure_ascii=False)
                raise ValueError(f"{said} Name it: {classes_flag(suggested if len(names) <= 64 else 'FILE')}")
            raise ValueError(
                f'{said} The classes are {classes.names}. Add the values to --classes (with "ignore": true if they '
                "mean nothing)."
            )
        return np.array([_NO_LABEL if codes[value] is None else codes[value] for value in values], dtype=np.int64)

    def _code_of_name(self, name: str, what: str, classes: ClassMap | None) -> int:
        """The code of a value or class that an option names."""
        code = _code(name, classes)
        if code is None:
            known = "a whole number" if classes is None else f"one of {classes.names}, or a value of theirs"
            raise ValueError(f"`--label_{what}` has {name!r}; expected {known}.")
        return code

    def _drawn(self, codes: np.ndarray, classes: ClassMap | None) -> np.ndarray:
        """The features in the order in which they are drawn, each over those before it."""
        wanted = [self._code_of_name(name, "priority", classes) for name in self.priority]
        ids = {code: code if classes is None else classes.sources.get(code) for code in (*codes.tolist(), *wanted)}
        ranks = {ids[code]: rank for rank, code in reversed(list(enumerate(wanted)))}
        return np.argsort([-ranks.get(ids[code], len(wanted)) for code in codes.tolist()], kind="stable")

    def _buffered(self, shapes: np.ndarray, grid: Grid) -> np.ndarray:
        """Lines and points, in the grid's CRS, with a border of so many metres on the ground."""
        _, shapely = require_vectors(self.source)
        thin = shapely.get_dimensions(shapes) < 2
        if not self.buffer or not thin.any():
            return shapes
        place = grid.georeference
        if place.crs is None:
            raise ValueError(
                f"{self.source} has no CRS that says what a metre is: leave out the buffer of its labels."
            )
        shapes = shapes.copy()
        try:
            west, south, east, north = lonlat_bounds(place, grid.size)
        except ValueError:  # no place on Earth, but maybe a unit
            shapes[thin] = shapely.buffer(shapes[thin], self.buffer / (metres_per_unit(place.crs) or 1), quad_segs=32)
            return shapes
        middle = f"+lat_0={(south + north) / 2} +lon_0={(west + (east - west) % 360 / 2 + 180) % 360 - 180}"
        crs = require_rasterio(self.source).crs.CRS.from_string(f"+proj=aeqd {middle} +datum=WGS84").to_wkt()
        around = shapely.buffer(_transformed(shapes[thin], place.crs, crs, self.source), self.buffer, quad_segs=32)
        shapes[thin] = _transformed(around, crs, place.crs, self.source)
        return shapes

    def _extent(self, layer: "_Layer", grid: Grid) -> np.ndarray | None:
        """Polygons, in the grid's CRS, of what was digitised; None for everything."""
        _, shapely = require_vectors(self.source)
        if self.extent is None:
            return None
        if self.extent == "bounds":
            return layer.brought_to(grid, np.array([shapely.box(*layer.bounds)]))
        if self.extent == "hull":
            every, _ = layer.read(None, None)
            return layer.brought_to(grid, np.array([shapely.convex_hull(shapely.geometrycollections(every))]))
        if not is_vector_file(self.extent):
            raise ValueError(f"`--label_extent {self.extent}`: expected `hull`, `bounds`, or a file of polygons.")
        return read_shapes(self.extent, grid)[0]


def ground_areas(shapes: np.ndarray, grid: Grid) -> np.ndarray | None:
    """Square metres on the ellipsoid of shapes in the CRS of a grid, float64; None where nobody knows.

    The CRS counts where it has no place on Earth.
    """
    _, shapely = require_vectors("polygons")
    place = grid.georeference
    if place.crs is None:
        return None
    try:
        west, south, east, north = lonlat_bounds(place, grid.size)
    except ValueError:
        unit = metres_per_unit(place.crs)
        return None if unit is None else shapely.area(shapes) * unit**2
    middle = f"+lat_0={(south + north) / 2} +lon_0={(west + (east - west) % 360 / 2 + 180) % 360 - 180}"
    crs = require_rasterio("polygons").crs.CRS.from_string(f"+proj=laea {middle} +datum=WGS84").to_wkt()
    box = place.bounds(grid.size)
    edges = shapely.segmentize(shapes, math.dist(box[:2], box[2:]) / _EDGES)
    return shapely.area(_transformed(edges, place.crs, crs, "polygons"))


@dataclass(frozen=True)
class LayerContent:
    """What a layer holds, before anything is burnt."""

    layer: "_Layer"
    values: dict[str, Counter]  # by attribute, features by value, those without one under None

    @classmethod
    def read(cls, source: str | os.PathLike) -> "LayerContent":
        """Read the attributes of a layer; ValueError if it cannot be read, or is empty."""
        layer = _Layer.open(source)
        return cls(layer, {name: Counter(layer.values(name)) for name in layer.fields})

    def reaches(self, grid: Grid) -> bool:
        """Whether its bounds meet those of a grid; ValueError if nobody knows how the two lie."""
        _check_place(self.layer, grid)
        return self.layer.reaches(grid)


def check_layer(source: str | os.PathLike, attribute: str | None = None) -> None:
    """Raise ValueError if a layer cannot be read, is empty, or has no such attribute."""
    _Layer.open(source).check_attribute(attribute)


def read_shapes(source: str | os.PathLike, grid: Grid, attribute: str | None = None) -> tuple[np.ndarray, list[Any]]:
    """Shapes of a layer near a grid, in its CRS, and the attribute of each; ValueError if it cannot be used there."""
    layer = _Layer.open(source)
    layer.check_attribute(attribute)
    _check_place(layer, grid)
    shapes, values = layer.read(grid, attribute)
    return layer.brought_to(grid, shapes), values


@dataclass(frozen=True)
class _Layer:
    """A layer of a vector file, by its header."""

    path: Path
    name: str
    crs: str | None  # as WKT
    fields: list[str]
    bounds: tuple[float, float, float, float]
    features: int

    def __str__(self) -> str:
        return f"{self.path}:{self.name}"

    @classmethod
    def open(cls, source: str | os.PathLike) -> "_Layer":
        """Read the header; ValueError if it cannot be read, is empty, or is one of several layers."""
        path, name = split_layer(source)
        pyogrio, _ = require_vectors(path)
        if not path.exists():
            raise ValueError(f"There is no file {path}.")
        try:
            layers = [layer for layer, kind in pyogrio.list_layers(path) if kind is not None]
            if name is None and len(layers) == 1:
                name = layers[0]
            if name not in layers:
                near = did_you_mean(name or "", layers) or "."
                said = "holds several layers" if name is None and layers else f"holds no layer {name or 'of shapes'}"
                raise ValueError(
                    f"{path} {said}{near} Choose one of {', '.join(layers) or 'none'}, as in {path}:NAME."
                )
            header = pyogrio.read_info(path, name, force_feature_count=True, force_total_bounds=True)
        except (pyogrio.errors.DataSourceError, pyogrio.errors.DataLayerError) as error:
            reason = str(error).split("; It might help")[0]  # to name a driver, which nobody can here
            raise ValueError(f"Cannot read {path}: {reason}") from error
        bounds = header["total_bounds"]
        if not header["features"] or bounds is None or not np.isfinite(bounds).all():
            raise ValueError(f"{path}:{name} is empty: it holds no shape. Leave it out, or give the file that does.")
        crs = header["crs"] and require_rasterio(path).crs.CRS.from_user_input(header["crs"]).to_wkt()
        return cls(path, name, crs, list(header["fields"]), tuple(bounds), header["features"])

    def check_attribute(self, name: str | None) -> None:
        """Raise ValueError that names the attributes if there is none of this name."""
        if name is not None and name not in self.fields:
            near = did_you_mean(name, self.fields) or "."
            raise ValueError(f"{self} has no attribute {name!r}{near} It has {', '.join(self.fields) or 'none'}.")

    def reaches(self, grid: Grid) -> bool:
        """Whether the layer's bounds meet those of a grid."""
        box = self._box(grid)
        west, south, east, north = self.bounds
        return box is None or (box[0] <= east and box[2] >= west and box[1] <= north and box[3] >= south)

    def read(self, grid: Grid | None, attribute: str | None) -> tuple[np.ndarray, list[Any]]:
        """The shapes near a grid, or all, in the layer's CRS, and the attribute of each: int, str, or None."""
        pyogrio, shapely = require_vectors(self.path)
        columns = [] if attribute is None else [attribute]
        box = None if grid is None else self._box(grid)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)  # GeoJSON may have one id twice
                _, fids, wkb, columns = pyogrio.raw.read(
                    self.path, self.name, columns=columns, force_2d=True, bbox=box, return_fids=True
                )
        except (pyogrio.errors.DataSourceError, pyogrio.errors.FeatureError) as error:
            raise ValueError(f"Cannot read {self}: {error}") from error
        shapes = shapely.from_wkb(wkb, on_invalid="fix")
        # An index of places may give another order than the layer's; numbers in GeoJSON are somebody's own.
        order = np.arange(len(fids)) if self.path.suffix.lower() == ".geojson" else np.argsort(fids)
        there = ~(shapely.is_missing(shapes) | shapely.is_empty(shapes))
        broken = np.flatnonzero(there & ~shapely.is_valid(shapes))
        if len(broken):
            reason = shapely.is_valid_reason(shapes[broken[0]])
            logger.warning_once(
                f"{self}: {len(broken)} shapes are invalid and were repaired; first that of feature "
                f"{fids[broken[0]]}: {reason}."
            )
            # What is left of polygons are polygons, without the lines that repairing may add.
            repaired = shapely.make_valid(shapes[broken])
            is_flat = shapely.get_dimensions(shapes[broken]) == 2
            shapes[broken] = np.where(is_flat, shapely.buffer(repaired, 0), repaired)
        values = [1] * len(shapes) if attribute is None else [_plain(value) for value in columns[0]]
        order = order[there[order]]
        return shapes[order], [values[index] for index in order]

    def values(self, attribute: str) -> list[Any]:
        """The attribute of all features, as `read` has it."""
        pyogrio, _ = require_vectors(self.path)
        *_, columns = pyogrio.raw.read(self.path, self.name, columns=[attribute], read_geometry=False)
        return list(map(_plain, columns[0]))

    def brought_to(self, grid: Grid, shapes: np.ndarray) -> np.ndarray:
        """Shapes in the CRS of a grid, with edges straight in their own; if that is another, cut to what is near."""
        crs = grid.georeference.crs
        if same_crs(self.crs, crs):
            return shapes
        _, shapely = require_vectors(self.path)
        box = self._box(grid)
        if box is not None:
            west, south, east, north = box
            margin = 0.1 * max(east - west, north - south)
            around = (west - margin, south - margin, east + margin, north + margin)
            shapes = shapely.clip_by_rect(shapes, *around)
            shapes = shapely.segmentize(shapes, math.dist(around[:2], around[2:]) / _EDGES)
        return _transformed(shapes, self.crs, crs, self)

    def _box(self, grid: Grid) -> tuple[float, float, float, float] | None:
        """Bounds of a grid in the layer's CRS; None where they have none, or cross the antimeridian."""
        place = grid.georeference
        box = place.bounds(grid.size)
        if not same_crs(self.crs, place.crs):
            warp = require_rasterio(self.path).warp
            with refuse_unknown_way(self, self.crs, place.crs):
                box = warp.transform_bounds(parse_crs(place.crs), parse_crs(self.crs), *box)
        return box if np.isfinite(box).all() and box[0] < box[2] else None


def _check_place(layer: _Layer, grid: Grid) -> None:
    """Refuse what leaves open where the shapes lie on the grid."""
    if grid.georeference is None:
        raise ValueError(f"{layer} lies on Earth, but the rasters have no place there. Give GeoTIFFs.")
    if (layer.crs is None) != (grid.georeference.crs is None):
        lacks, way = (layer, "ogr2ogr -a_srs") if layer.crs is None else ("The raster", "gdal_edit.py -a_srs")
        raise ValueError(
            f"{lacks} has no CRS, so there is no telling where {layer} lies. Say which it is, for instance by "
            f"`{way} EPSG:...`."
        )


def _transformed(shapes: np.ndarray, own: str, target: str, what: Any) -> np.ndarray:
    """Shapes in another CRS, without those that it has no place for."""
    _, shapely = require_vectors(what)
    warp = require_rasterio(what).warp

    def moved(places: np.ndarray) -> np.ndarray:
        return np.stack(warp.transform(parse_crs(own), parse_crs(target), *places.T), axis=1)

    with refuse_unknown_way(what, own, target):
        found = shapely.transform(shapes, moved)
    return np.where(np.isfinite(shapely.bounds(found)).all(axis=1), found, shapely.Polygon())


def _plain(value: Any) -> Any:
    """An attribute's value as a whole number or a text, None if there is none."""
    if value is None or value != value:  # NaN, or no time
        return None
    if isinstance(value, str):
        return value.strip() or None
    is_whole = isinstance(value, np.integer | np.bool_) or (isinstance(value, np.floating) and value.is_integer())
    return int(value) if is_whole else str(value)


def _code(value: Any, classes: ClassMap | None) -> int | None:
    """What stands for a value in the raster; None if nothing does."""
    if classes is not None:
        return classes.code_of(value)
    text = str(value)
    return int(text) if text.isdecimal() and int(text) <= IGNORE_INDEX else None


def _write(path: Path, grid: Grid, labels: "_Burner", fill: int, extent: np.ndarray | None) -> bool:
    """Write the raster strip by strip; whether any pixel has a label."""
    rasterio = require_rasterio(path)
    (height, width), place = grid.size, grid.georeference
    inside = None if extent is None else _Burner(grid, extent, np.ones(len(extent), int), all_touched=False)
    profile = {"driver": "GTiff", "count": 1, "dtype": "int32", "height": height, "width": width}
    profile |= {"transform": place.affine, "crs": None if place.crs is None else parse_crs(place.crs)}
    is_any = False
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "w", compress="deflate", **profile) as file:
        for window in blocks(grid.size, max(1, _PIXELS_AT_ONCE // width)):
            burnt = labels.burn(window, fill)
            is_there = burnt != _NO_LABEL
            if inside is not None:
                is_there &= inside.burn(window, 0) > 0
            part = rasterio.windows.Window(window.left, window.top, window.width, window.height)
            file.write(np.where(is_there, burnt, 0), 1, window=part)
            file.write_mask(is_there, window=part)
            is_any |= bool(is_there.any())
    return is_any


class _Burner:
    """Shapes in the CRS of a grid, burnt window by window."""

    def __init__(self, grid: Grid, shapes: np.ndarray, codes: np.ndarray, *, all_touched: bool):
        _, self._shapely = require_vectors("shapes")
        self._place, self._all_touched = grid.georeference, all_touched
        self._shapes, self._codes, self._tree = shapes, codes, self._shapely.STRtree(shapes)

    def burn(self, window: Window, fill: int) -> np.ndarray:
        """Codes of a window, int32 (height, width), `fill` where there is no shape."""
        from rasterio.features import rasterize

        place = self._place.window(window.top, window.left)
        found = np.sort(self._tree.query(self._shapely.box(*place.bounds(window[2:]))))
        if not len(found):
            return np.full(window[2:], fill, np.int32)
        pairs = zip(self._shapes[found], self._codes[found].tolist(), strict=True)
        options = {"transform": place.affine, "all_touched": self._all_touched, "dtype": "int32"}
        return rasterize(pairs, out_shape=window[2:], fill=fill, **options)


def add_polygon_arguments(parser: Parser) -> None:
    """Add the flags that say how polygons become labels."""
    add = parser.add_argument_group("labels that are polygons, lines or points").add_argument
    attribute = "attribute that says the class; without it features are 1 and all else is 0"
    add("--label_attribute", metavar="NAME", help=attribute)
    add("--label_background", metavar="CLASS", help="class of what is in no feature; default: it has no label")
    extent = "what was digitised, outside of which nothing has a label: hull or bounds of the features, or a file"
    add("--label_extent", metavar="EXTENT", help=extent)
    priority = "classes that count where features overlap, first things first; default: the last feature of the file"
    add("--label_priority", nargs="+", action="extend", default=[], metavar="CLASS", help=priority)
    add("--label_buffer", type=float, default=0.0, metavar="METRES", help="around lines and points")
    touched = "a feature labels all pixels that it touches, not those alone whose centre it holds"
    add("--label_all_touched", **SWITCH, help=touched)


def polygon_options(args: argparse.Namespace) -> PolygonLabels:
    """What those flags say, for a layer that is not known yet."""
    names = [option.name for option in fields(PolygonLabels) if option.name != "source"]
    given = {name: getattr(args, f"label_{name}") for name in names}
    return PolygonLabels(**given | {"priority": tuple(args.label_priority)})
