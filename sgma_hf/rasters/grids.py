"""How the pixels of one raster lie on those of another: `Grid`, and what follows from it for reading."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..data.windows import Window
from .raster import (
    Georeference,
    RasterInfo,
    metres_per_unit,
    parse_crs,
    refuse_unknown_way,
    require_rasterio,
    same_crs,
)


MOST_TIMES_FINER = 1000  # of the pixels of two grids; what a pixel is made of has to fit into memory


@dataclass(frozen=True)
class Grid:
    """The pixels that a map is made of."""

    size: tuple[int, int]  # (height, width)
    georeference: Georeference | None  # None if nobody knows where they lie

    def part(self, window: Window) -> "Grid":
        """The pixels of a window."""
        return Grid(window[2:], self.georeference and self.georeference.window(window.top, window.left))

    def within(self, bbox: Sequence[float]) -> "Grid":
        """The pixels that a box touches: west, south, east, north, in units of the CRS."""
        west, south, east, north = bbox
        if self.georeference is None:
            raise ValueError(
                "`bbox` names a part of the map by its coordinates, but no raster has a place. Leave it out."
            )
        if not (west < east and south < north):
            raise ValueError(f"`bbox` is {_listed(bbox)}; expected west, south, east, north.")
        rows, columns = self.georeference.pixels(np.array([west, west, east, east]), np.array([south, north] * 2))
        top, left = (math.floor(side.min() + 0.01) for side in (rows, columns))
        bottom, right = (math.ceil(side.max() - 0.01) for side in (rows, columns))
        window = Window(top, left, bottom - top, right - left).inside(self.size)
        if 0 in window[2:]:
            raise ValueError(
                f"`bbox` is {_listed(bbox)}, which lies beside the map: it covers (west, south, east, north) "
                f"({_listed(self.georeference.bounds(self.size))}), in the CRS of its grid."
            )
        return self.part(window)

    def resampled(self, resolution: float) -> "Grid":
        """The same extent in pixels of so many metres; the last ones may reach beyond it."""
        metres = ground_sampling(self)
        if metres is None:
            raise ValueError(
                f"`resolution` is {resolution:g} metres, but the map's grid has no CRS that knows metres. Leave it "
                "out, or name a grid that has one by `like`."
            )
        if not 0 < resolution < np.inf:
            raise ValueError(f"`resolution` is {resolution:g}; expected metres per pixel, more than 0.")
        if resolution * MOST_TIMES_FINER < min(metres):
            raise ValueError(
                f"`resolution` is {resolution:g} metres per pixel, and the map's grid has {min(metres):g}; expected "
                f"no more than {MOST_TIMES_FINER} times less. Is it in degrees or kilometres?"
            )
        steps = [resolution / side for side in metres]
        height, width = (max(1, math.ceil(side / step - 0.01)) for side, step in zip(self.size, steps, strict=True))
        return Grid((height, width), self.georeference.scaled(*steps))


def ground_sampling(raster: Grid | RasterInfo) -> tuple[float, float] | None:
    """Metres on the ground from row to row and from column to column, in the middle; None where nobody knows.

    The unit of the CRS counts where that is a length, and true on the ground to 2 %: Mercator's is not.
    """
    place = raster.georeference
    if place is None or place.crs is None:
        return None
    unit, ground = metres_per_unit(place.crs), _ground_steps(raster, *np.array(raster.size).reshape(2, 1) / 2)
    ground = None if ground is None else ground[..., 0]
    nominal = None if unit is None else unit * _steps(place)
    if nominal is None or (ground is not None and np.abs(_lengths(ground) / _lengths(nominal) - 1).max() > 0.02):
        nominal = ground
    return None if nominal is None else tuple(_lengths(nominal).tolist())


def pixel_area(raster: Grid | RasterInfo) -> float | None:
    """Square metres on the ground of the pixel in the middle; None where nobody knows.

    It is that on the ellipsoid, whatever the CRS calls a metre; the CRS counts where it has no place on Earth.
    """
    areas = pixel_areas(raster, *np.array(raster.size).reshape(2, 1) / 2)
    return None if areas is None else float(areas[0])


def pixel_areas(raster: Grid | RasterInfo, rows: np.ndarray, columns: np.ndarray) -> np.ndarray | None:
    """The same of pixels whose middle is at these rows and columns, float64 (places,); pixel 0 spans 0..1."""
    place = raster.georeference
    if place is None or place.crs is None:
        return None
    steps, unit = _ground_steps(raster, rows, columns), metres_per_unit(place.crs)
    if steps is None:
        steps = None if unit is None else np.repeat(unit * _steps(place)[..., None], len(rows), axis=2)
    return None if steps is None else np.abs(steps[0, 0] * steps[1, 1] - steps[0, 1] * steps[1, 0])


def _steps(place: Georeference) -> np.ndarray:
    """East and north of the steps to the next row and to the next column, (2, 2), in units of the CRS."""
    affine = place.affine
    return np.array([[affine.b, affine.a], [affine.e, affine.d]])


def _lengths(steps: np.ndarray) -> np.ndarray:
    return np.hypot(*steps)


def _ground_steps(raster: Grid | RasterInfo, rows: np.ndarray, columns: np.ndarray) -> np.ndarray | None:
    """Metres to the east and to the north, (2, 2, places), as `_steps` at places; None if one is not on Earth."""
    crs = raster.georeference.crs
    x, y = raster.georeference.affine @ (np.stack([columns, columns, columns + 1]), np.stack([rows, rows + 1, rows]))
    warp = require_rasterio("coordinate reference systems").warp
    try:
        with refuse_unknown_way("A raster", crs, 'GEOGCRS["WGS 84"]'):
            found = warp.transform(parse_crs(crs), "EPSG:4326", x.ravel().tolist(), y.ravel().tolist())
    except ValueError:
        return None
    if not np.isfinite(found).all():
        return None
    longitudes, latitudes = np.array(found).reshape(2, *x.shape)
    angle = np.deg2rad(latitudes[0])
    # Metres per degree on the ellipsoid of WGS 84, to a metre.
    north, east = 111_132.95 - 559.85 * np.cos(2 * angle), 111_412.88 * np.cos(angle) - 93.5 * np.cos(3 * angle)
    turns = (longitudes[1:] - longitudes[0] + 180) % 360 - 180
    return np.stack([turns * east, (latitudes[1:] - latitudes[0]) * north])


def shared_sampling(rasters: Sequence[Grid | RasterInfo]) -> float | None:
    """Median metres per pixel of rasters; None if they are more than 1.5 times apart, or one is unknown."""
    found = [ground_sampling(raster) for raster in rasters]
    if not found or None in found:
        return None
    sides = np.sqrt(np.prod(found, axis=1))
    return float(np.median(sides)) if sides.max() <= 1.5 * sides.min() else None


def locate(
    rows: np.ndarray, columns: np.ndarray, own: Georeference, target: Grid | RasterInfo
) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of `target` where pixels of another raster lie; infinite where it knows no such place.

    Longitudes are taken from within half a turn of the target's middle.
    """
    place = target.georeference
    x, y = own.affine @ (np.asarray(columns, dtype=float), np.asarray(rows, dtype=float))
    if not same_crs(own.crs, place.crs):
        found = _transformed(own.crs, place.crs, x.ravel().tolist(), y.ravel().tolist())
        x, y = np.array(found).reshape(2, *x.shape)
    with np.errstate(invalid="ignore"):
        if place.is_geographic:
            west, _, east, _ = place.bounds(target.size)
            middle = (west + east) / 2
            x = np.where(np.abs(x - middle) > 180 + 1e-6, middle + (x - middle + 180) % 360 - 180, x)
        return place.pixels(x, y)


def _transformed(own: str, target: str, x: list[float], y: list[float]) -> tuple[list[float], list[float]]:
    """Places in another CRS, infinite where it has none of them."""
    rasterio = require_rasterio("coordinate reference systems")
    try:
        return rasterio.warp.transform(parse_crs(own), parse_crs(target), x, y)
    except rasterio._err.CPLE_AppDefinedError as error:
        if "No inverse operation" in str(error):  # a projection that PROJ does not know
            raise
        if len(x) == 1:  # a place that is far from the target ends it for all the others
            return [np.inf], [np.inf]
    found = [_transformed(own, target, [one], [other]) for one, other in zip(x, y, strict=True)]
    return [one for (one,), _ in found], [other for _, (other,) in found]


def check_degrees(path: Path | str, place: Georeference, size: tuple[int, int]) -> None:
    """Raise ValueError that names the file if it is in degrees by its CRS, and lies beyond a pole by its numbers."""
    bounds = place.bounds(size)
    beyond = 90 + np.abs(_steps(place)[1]).max()  # grids of the whole Earth reach over a pole by half a pixel
    if place.is_geographic and not -beyond <= bounds[1] <= bounds[3] <= beyond:
        raise ValueError(
            f"{path} is in degrees by its CRS, but covers (west, south, east, north) ({_listed(bounds)}), which lies "
            "beyond a pole. Write the CRS that it is in: `gdal_edit.py -a_srs EPSG:... FILE`."
        )


def check_crs(info: RasterInfo, place: Georeference) -> None:
    """Raise ValueError that names the file if nothing leads from its CRS to another."""
    if not same_crs(info.georeference.crs, place.crs):
        with refuse_unknown_way(info.path, info.georeference.crs, place.crs):
            locate(np.zeros(1), np.zeros(1), info.georeference, Grid((1, 1), place))


def footprint(raster: Grid | RasterInfo, target: Grid | RasterInfo) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of `target`, each (21, 21), of places spread evenly over another raster."""
    steps = np.linspace(0, 1, 21)
    places = np.meshgrid(steps * raster.size[0], steps * raster.size[1], indexing="ij")
    return locate(*places, raster.georeference, target)


def lie_apart(one: Grid | RasterInfo, other: Grid | RasterInfo) -> bool:
    """Whether two rasters lie apart, seen from both of them; a projection may show one of them distorted."""
    for seen, target in ((one, other), (other, one)):
        rows, columns = footprint(seen, target)
        if not (np.isfinite(rows).all() and np.isfinite(columns).all()):
            return False
        if rows.max() > 0 and columns.max() > 0 and rows.min() < target.size[0] and columns.min() < target.size[1]:
            return False
    return True


def edges_of(grid: Grid, info: RasterInfo) -> np.ndarray | None:
    """Top, left, bottom and right of a grid in pixels of a raster; None if its rows are not along the raster's."""
    if not same_crs(info.georeference.crs, grid.georeference.crs):
        return None
    corners = np.array([(0, 0), (0, grid.size[1]), (grid.size[0], 0)], dtype=float).T
    rows, columns = locate(*corners, grid.georeference, info)
    is_along = max(abs(rows[1] - rows[0]), abs(columns[2] - columns[0])) < 0.01
    if not is_along or rows[2] <= rows[0] or columns[1] <= columns[0]:
        return None
    return np.array([rows[0], columns[0], rows[2], columns[1]])


def whole_pixels(info: RasterInfo, grid: Grid) -> Window | None:
    """Window of the raster's own pixels that is the grid's extent, up to a hundredth of a pixel; None if none is."""
    edges = edges_of(grid, info)
    if edges is None or np.abs(edges - np.rint(edges)).max() > 0.01:
        return None
    top, left, bottom, right = np.rint(edges).astype(int).tolist()
    return Window(top, left, bottom - top, right - left)


def pixel_steps(info: RasterInfo, grid: Grid) -> np.ndarray:
    """Rows and columns (2) of the raster that one row and one column (2) of the grid are.

    It is taken at the place on the grid that is nearest to the raster's middle. Where there is none, they count as
    equal.
    """
    middle = np.array(locate(*(side / 2 for side in info.size), info.georeference, grid))
    row, column = np.clip(middle, 0, grid.size) if np.isfinite(middle).all() else np.array(grid.size) / 2
    rows, columns = locate(
        np.array([row, row + 1, row]), np.array([column, column, column + 1]), grid.georeference, info
    )
    with np.errstate(invalid="ignore"):
        steps = np.array([rows[1:] - rows[0], columns[1:] - columns[0]])
    return steps if np.isfinite(steps).all() else np.eye(2)


def longitude_shifts(info: RasterInfo, grid: Grid) -> list[float]:
    """Multiples of 360 degrees by which a geographic raster has to be shifted to be found at the antimeridian.

    GDAL looks for longitudes in -180..180 where the grid is in another CRS, for the grid's own where it is not.
    """
    if not info.georeference.is_geographic:
        return [0.0]
    west, _, east, _ = info.georeference.bounds(info.size)
    low, high = (-180.0, 180.0)
    if grid.georeference.is_geographic:
        low, _, high, _ = grid.georeference.bounds(grid.size)
    slack = 1e-6 * (high - low)
    found = [shift for shift in (0.0, -360.0, 360.0) if west + shift < high - slack and east + shift > low + slack]
    return found or [0.0]


def check_proportions(info: RasterInfo, size: tuple[int, int]) -> None:
    """Raise ValueError if the raster has other proportions than a reference of `size`, up to one cell.

    Without georeferencing two rasters can only show one extent if they have the same.
    """
    (rows, columns), (height, width) = info.size, size
    if abs(rows * width - columns * height) > max(min(width, columns), min(height, rows)):
        raise ValueError(
            f"{info.path} has {columns} x {rows} pixels, its reference {width} x {height}: the proportions differ, "
            "and without georeferencing in both there is no telling how they lie. Crop it, or use GeoTIFFs."
        )


def no_overlap(info: RasterInfo, grid: Grid) -> str:
    """What to say of a raster that lies beside the grid that it is read for."""
    own, reference = (_listed(raster.georeference.bounds(raster.size)) for raster in (info, grid))
    return (
        f"{info.path} does not overlap its reference raster: it covers (west, south, east, north) ({own}), the "
        f"reference ({reference}), each in its own CRS. Give the file that belongs there, or remove it."
    )


def _listed(coordinates: Sequence[float]) -> str:
    return ", ".join(f"{value:.10g}" for value in coordinates)
