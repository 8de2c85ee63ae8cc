"""A raster in memory, what its file's header says, and where on Earth it lies.

rasterio (extra `geo`) is imported when something needs it, by `require_rasterio`: plain images need no extra.
"""

import contextlib
import functools
import importlib.util
import os
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from ..data.windows import Window
from .bands import ALL_BANDS, BandSelection


if TYPE_CHECKING:
    from affine import Affine


def require_rasterio(path: Any) -> ModuleType:
    """Import rasterio, or raise ImportError that names the file that needs it and the extra."""
    try:
        import rasterio
        import rasterio.features
        import rasterio.shutil
        import rasterio.warp
    except ImportError as error:
        raise ImportError(
            f"Reading {path} needs rasterio, which is not installed. Install the extra: pip install 'sgma-hf[geo]'."
        ) from error
    return rasterio


def bounded_cache() -> AbstractContextManager:
    """GDAL's environment, its cache at 256 MB, not 5 % of all memory, unless `GDAL_CACHEMAX` is set.

    Nothing without rasterio. Within it, files may be closed by another thread than opened them, if that is within one
    as well: a file that is opened outside makes an environment of its own, which its thread alone can end.
    """
    if importlib.util.find_spec("rasterio") is None:
        return contextlib.nullcontext()
    options = {} if "GDAL_CACHEMAX" in os.environ else {"GDAL_CACHEMAX": 256 * 2**20}
    return require_rasterio("the rasters").Env(**options)


def allow_open_files(count: int) -> None:
    """Let this process have so many more files open, as far as the system does: the dates of a scene stay open."""
    with contextlib.suppress(ImportError, ValueError, OSError):  # there is no such limit on Windows
        import resource

        most, limit = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = count + 512
        wanted = wanted if limit == resource.RLIM_INFINITY else min(wanted, limit)
        if most != resource.RLIM_INFINITY and most < wanted:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, limit))


@functools.lru_cache(maxsize=64)
def parse_crs(wkt: str) -> Any:
    """Rasterio's CRS of a WKT text."""
    return require_rasterio("coordinate reference systems").crs.CRS.from_wkt(wkt)


def _is_local(crs: str) -> bool:
    """Whether a WKT text is of an engineering CRS: coordinates without a place on Earth."""
    return crs.lstrip().startswith(("LOCAL_CS", "ENGCRS", "ENGINEERINGCRS"))


def same_crs(first: str | None, second: str | None) -> bool:
    """Whether two WKT texts name one CRS; an unknown one is taken to be the other.

    So is a local one that has the name of the other, and nothing else: programs that cannot write a CRS leave that.
    """
    if first is None or second is None or first == second:
        return True
    if _is_local(first) != _is_local(second):
        return first.split('"')[1] == second.split('"')[1]
    return parse_crs(first) == parse_crs(second)


@contextlib.contextmanager
def refuse_unknown_way(what: Any, own: str, target: str) -> Iterator[None]:
    """Raise ValueError that names `what` where nothing leads from one CRS to another, a local one for instance."""
    rasterio = require_rasterio(what)
    try:
        with rasterio.Env():  # or GDAL would write pages to stderr
            yield
    except (rasterio._err.CPLE_NotSupportedError, rasterio._err.CPLE_AppDefinedError) as error:
        kinds = ['{}"{}"]'.format(*crs.split('"')[:2]) for crs in (own, target)]
        raise ValueError(
            f"{what} is in the CRS {kinds[0]}, from which no way leads to {kinds[1]}: one of them is a local system "
            "without a place on Earth, of another planet, or of a projection that nobody knows. Where a file says so "
            "by mistake, write the right one: `gdal_edit.py -a_srs EPSG:... FILE`."
        ) from error


def metres_per_unit(crs: str) -> float | None:
    """Length of the unit of a projected or local CRS in metres; None if it is degrees."""
    if _is_local(crs):
        unit = re.search(r'UNIT\["[^"]*",([^],]+)', crs)
        return float(unit[1]) if unit else None
    parsed = parse_crs(crs)
    return float(parsed.linear_units_factor[1]) if parsed.is_projected else None


@dataclass(frozen=True)
class Georeference:
    """Where a raster lies: pixel (column, row) is at `(c + a * column + b * row, f + d * column + e * row)`."""

    affine: "Affine"  # from (column, row) to (x, y) in units of the CRS; (c, f) is the outer corner of the first pixel
    crs: str | None  # as WKT; None where the file does not say

    @property
    def is_geographic(self) -> bool:
        """Whether its coordinates are longitudes and latitudes."""
        return self.crs is not None and parse_crs(self.crs).is_geographic

    def window(self, top: float, left: float) -> "Georeference":
        """The same grid with its origin at (row `top`, column `left`)."""
        return replace(self, affine=self.affine @ self.affine.translation(left, top))

    def scaled(self, rows: float, columns: float) -> "Georeference":
        """The same origin with pixels `rows` times as high and `columns` times as wide."""
        return replace(self, affine=self.affine @ self.affine.scale(columns, rows))

    def moved(self, east: float) -> "Georeference":
        """The same grid so many units of the CRS further east."""
        return replace(self, affine=self.affine.translation(east, 0) @ self.affine)

    def pixels(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rows and columns (pixel 0 spans 0..1) of places in the CRS."""
        columns, rows = ~self.affine @ (x, y)
        return rows, columns

    def bounds(self, size: tuple[int, int]) -> tuple[float, float, float, float]:
        """West, south, east, north of a raster of `size` (height, width)."""
        x, y = self.affine @ (np.array([0, size[1], 0, size[1]]), np.array([0, 0, size[0], size[0]]))
        return float(x.min()), float(y.min()), float(x.max()), float(y.max())


def lonlat_bounds(georeference: Georeference, size: tuple[int, int]) -> tuple[float, float, float, float]:
    """West, south, east, north of a raster in degrees; ValueError without a CRS."""
    if georeference.crs is None:
        raise ValueError("A raster without a CRS has no longitude and latitude.")
    warp = require_rasterio("coordinate reference systems").warp
    with refuse_unknown_way("A raster", georeference.crs, 'GEOGCRS["WGS 84"]'):
        return warp.transform_bounds(parse_crs(georeference.crs), "EPSG:4326", *georeference.bounds(size))


@dataclass(frozen=True)
class RasterInfo:
    """What the header of a raster file says."""

    path: Path | str  # text where GDAL alone knows it by that name
    size: tuple[int, int]  # (height, width) in pixels
    channels: int  # bands that are values
    dtype: str  # of the values as read, one the row format has
    nodata: tuple[float | None, ...]  # declared for each band, where values can equal it; empty if no band has one
    has_mask: bool  # whether something else says which pixels hold data: alpha, a mask, nodata that is no value
    georeference: Georeference | None
    bands: BandSelection = ALL_BANDS  # those that were asked for

    @property
    def nodata_label(self) -> int | None:
        """The declared value of a label of one band; None if there is none that a label value can equal."""
        number = next(iter(self.nodata), None)
        return None if self.channels != 1 or number is None or number % 1 else int(number)


@dataclass
class Raster:
    """A raster in memory."""

    values: np.ndarray  # (height, width, channels)
    valid: np.ndarray  # bool (height, width), True where there is data
    georeference: Georeference | None = None

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.valid.shape

    @classmethod
    def empty(cls, size: tuple[int, int], channels: int, dtype: str | np.dtype) -> "Raster":
        """Nothing, of (height, width)."""
        return cls(np.zeros((*size, channels), dtype), np.zeros(size, dtype=bool))

    def crop(self, top: int, left: int, height: int, width: int) -> "Raster":
        """A window of it; no data beyond its edges."""
        window = Window(top, left, height, width)
        inside = window.inside(self.size)
        part = Raster(self.values[inside.slices], self.valid[inside.slices])
        if inside != window:
            there, covered = inside.moved(-top, -left).slices, part
            part = Raster.empty((height, width), covered.values.shape[2], covered.values.dtype)
            part.values[there], part.valid[there] = covered.values, covered.valid
        return replace(part, georeference=self.georeference and self.georeference.window(top, left))
