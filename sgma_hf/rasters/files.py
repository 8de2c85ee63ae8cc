"""Reads raster files: values, which pixels hold data, where on Earth; and brings them onto another raster's extent.

GeoTIFF and everything else GDAL knows is read with rasterio (extra `geo`); PNG and JPEG without georeferencing are
read with Pillow, so that plain images need no extra. This is the only module that imports rasterio.
"""

import contextlib
import importlib.util
import os
import zlib
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from PIL import Image

from ..data.codec import decode_raster
from ..model.image_transforms_sgma import shown_mode, valid_pixels
from .bands import ALL_BANDS, BandSelection


RASTER_SUFFIXES = (".tif", ".tiff", ".png", ".jpg", ".jpeg")

PILLOW_SUFFIXES = (".png", ".jpg", ".jpeg")
# Files beside a PNG or JPEG that give it a place on Earth.
_SIDECAR_SUFFIXES = (".pgw", ".pngw", ".jgw", ".jpgw", ".jpegw", ".wld", ".aux.xml")
# Dtypes that hold the values of those that the row format does not have.
_WIDER = {"bool": "uint8", "int8": "int16", "float16": "float32", "float64": "float32"}
PILLOW_ERRORS = (OSError, SyntaxError, ValueError, zlib.error, Image.DecompressionBombError)
_MARGIN = 3  # source pixels beyond a window that the interpolation may look at


@dataclass(frozen=True)
class Georeference:
    """Where a raster lies: pixel (column, row) is at `(c + a * column + b * row, f + d * column + e * row)`.

    Args:
        transform: (a, b, c, d, e, f), in units of `crs`; (c, f) is the outer corner of the first pixel.
        crs: Coordinate reference system as WKT; None where the file does not say.
    """

    transform: tuple[float, float, float, float, float, float]
    crs: str | None

    def window(self, top: float, left: float) -> "Georeference":
        """The same grid with its origin at (row `top`, column `left`)."""
        a, b, c, d, e, f = self.transform
        return replace(self, transform=(a, b, c + a * left + b * top, d, e, f + d * left + e * top))

    def scaled(self, rows: float, columns: float) -> "Georeference":
        """The same origin with pixels `rows` times as high and `columns` times as wide."""
        a, b, c, d, e, f = self.transform
        return replace(self, transform=(a * columns, b * rows, c, d * columns, e * rows, f))

    def pixels(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rows and columns (pixel 0 spans 0..1) of places in the CRS."""
        a, b, c, d, e, f = self.transform
        dx, dy, determinant = x - c, y - f, a * e - b * d
        return (a * dy - d * dx) / determinant, (e * dx - b * dy) / determinant

    def bounds(self, size: tuple[int, int]) -> tuple[float, float, float, float]:
        """West, south, east, north of a raster of `size` (height, width)."""
        a, b, c, d, e, f = self.transform
        corners = [(0, 0), (size[0], 0), (0, size[1]), size]
        x = [c + a * column + b * row for row, column in corners]
        y = [f + d * column + e * row for row, column in corners]
        return min(x), min(y), max(x), max(y)


@dataclass(frozen=True)
class RasterInfo:
    """What the header of a raster file says.

    Args:
        path: The file.
        size: (height, width) in pixels.
        channels: Bands that are values.
        dtype: Dtype of the values as read, one the row format has.
        nodata: Declared nodata value, None if there is none (or NaN, which always is), or if the file is scaled.
        has_mask: Whether an alpha band or an internal mask says which pixels hold data.
        georeference: None where the file has none.
        bands: Which bands were asked for.
        is_scaled: Whether the values are the stored numbers times a scale plus an offset, those of the header.
    """

    path: Path
    size: tuple[int, int]
    channels: int
    dtype: str
    nodata: float | None
    has_mask: bool
    georeference: Georeference | None
    bands: BandSelection = ALL_BANDS
    is_scaled: bool = False


@dataclass
class Raster:
    """A raster in memory.

    Args:
        values: (height, width, channels).
        valid: bool (height, width), True where there is data.
        georeference: None where it has none.
    """

    values: np.ndarray
    valid: np.ndarray
    georeference: Georeference | None = None

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.valid.shape

    def crop(self, top: int, left: int, height: int, width: int) -> "Raster":
        """A window of it; no data beyond its edges."""
        rows = slice(max(0, top), max(0, min(self.size[0], top + height)))
        columns = slice(max(0, left), max(0, min(self.size[1], left + width)))
        georeference = self.georeference and self.georeference.window(top, left)
        before = (rows.start - top, columns.start - left)
        after = (height - (rows.stop - top), width - (columns.stop - left))
        values, valid = self.values[rows, columns], self.valid[rows, columns]
        if any(before) or any(after):
            margins = tuple(zip(before, after, strict=True))
            values, valid = np.pad(values, (*margins, (0, 0))), np.pad(valid, margins)
        return Raster(values, valid, georeference)


def require_rasterio(path: Any) -> ModuleType:
    """Import rasterio, or say how to get it.

    Raises:
        ImportError: If it is not installed; names the file that needs it and the extra.
    """
    try:
        import rasterio
        import rasterio.shutil
        import rasterio.vrt
        import rasterio.warp
    except ImportError as error:
        raise ImportError(
            f"Reading {path} needs rasterio, which is not installed. Install the extra: pip install 'sgma-hf[geo]'."
        ) from error
    return rasterio


def bounded_cache() -> AbstractContextManager:
    """Keep GDAL's cache of blocks at 256 MB, where it would take 5 % of the machine's memory.

    It does nothing without rasterio, or where `GDAL_CACHEMAX` is set.
    """
    if importlib.util.find_spec("rasterio") is None or "GDAL_CACHEMAX" in os.environ:
        return contextlib.nullcontext()
    return require_rasterio("the rasters").Env(GDAL_CACHEMAX=256 * 2**20)


def uses_pillow(path: Path) -> bool:
    """Plain PNG and JPEG; 16-bit colour, which Pillow squeezes, and files with a sidecar go to GDAL."""
    if path.suffix.lower() not in PILLOW_SUFFIXES:
        return False
    sidecars = [path.with_suffix(suffix) for suffix in _SIDECAR_SUFFIXES] + [Path(f"{path}.aux.xml")]
    if any(sidecar.exists() for sidecar in sidecars):
        return False
    with open(path, "rb") as file:
        head = file.read(26)
    return not (head[:4] == b"\x89PNG" and len(head) == 26 and head[24] == 16 and head[25] in (2, 4, 6))


def _stored_dtype(dtype: str, path: Path) -> str:
    dtype = _WIDER.get(dtype, dtype)
    if dtype in ("uint8", "uint16", "int16", "int32", "float32"):
        return dtype
    if dtype in ("uint32", "int64", "uint64"):
        return "int32"  # checked when the values are read
    raise ValueError(f"{path} has values of type {dtype}, which the row format does not hold. Convert it to float32.")


def read_info(
    path: str | os.PathLike, *, bands: BandSelection = ALL_BANDS, palette_as_indices: bool = False
) -> RasterInfo:
    """Read the header of a raster file.

    Args:
        path: The file.
        bands: Bands to look at; to choose that of a palette file gives its indices.
        palette_as_indices: Whether a palette file is one band of indices, as labels are, or three of colour.

    Raises:
        ValueError: If the file is not a readable raster or has no such band; it is named.
        ImportError: If it takes rasterio and that is missing.
    """
    path = Path(path)
    if uses_pillow(path):
        try:
            with Image.open(path) as image:
                size = (image.height, image.width)
                channels, dtype, tagged = _pillow_layout(image, palette_as_indices or bands.values is not None)
        except PILLOW_ERRORS as error:
            raise ValueError(f"Cannot read {path}: {error}") from error
        check_bands(bands, channels + len(tagged), tagged, path)
        channels = channels if bands.values is None else len(bands.values)
        return RasterInfo(path, size, channels, dtype, None, bands.alpha_band(tagged) is not None, None, bands)
    rasterio = require_rasterio(path)
    try:
        with open_bands(rasterio, path, bands) as source:
            return _rasterio_info(rasterio, source, path, bands, palette_as_indices=palette_as_indices)
    except rasterio.errors.RasterioError as error:
        raise ValueError(f"Cannot read {path}: {error}") from error


def check_bands(bands: BandSelection, count: int, tagged: Sequence[int], path: Path) -> None:
    """Refuse bands that are not there."""
    if not set(bands.values or ()) <= set(range(1, count + 1)):
        raise ValueError(f"{path} has the bands 1 to {count}; bands {list(bands.values)} were asked for.")
    if bands.alpha and bands.alpha_band(tagged) is None:
        raise ValueError(f"{path} has no band tagged as alpha beside those chosen; {bands} was asked for.")


def _pillow_layout(image: Image.Image, palette_as_indices: bool) -> tuple[int, str, list[int]]:
    """Channels without alpha, dtype, and the number of the alpha band, if any, as `decode_raster` gives them."""
    if image.mode == "P" and palette_as_indices:
        return 1, "uint8", []
    channels = 3 if shown_mode(image) in ("RGB", "RGBA") else 1
    dtype = {"I": "int32", "F": "float32"}.get(image.mode, "uint16" if image.mode.startswith("I;16") else "uint8")
    return channels, dtype, [channels + 1] if _has_alpha(image) else []


def _has_alpha(image: Image.Image) -> bool:
    return shown_mode(image) in ("LA", "RGBA")


def open_quietly(rasterio: ModuleType, path: str | Path) -> Any:
    """Open without the warning that a file has no georeferencing: that is a normal case here."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        return rasterio.open(path)


def open_bands(rasterio: ModuleType, path: Path, bands: BandSelection = ALL_BANDS) -> Any:
    """Open a raster with rasterio so that no band that was chosen as values counts as alpha.

    GDAL masks, and weighs in warping, by whatever is tagged as alpha: such a file is opened through a virtual one
    without the tag.

    Args:
        rasterio: The module.
        path: The file.
        bands: Which bands are values.

    Returns:
        The dataset, to be closed.

    Raises:
        rasterio.errors.RasterioError: If it cannot be opened.
    """
    dataset = open_quietly(rasterio, path)
    mistagged = bands.measured & set(alpha_bands(dataset))
    if not mistagged:
        return dataset
    kinds = list(dataset.colorinterp)
    for band in mistagged:
        kinds[band - 1] = rasterio.enums.ColorInterp.undefined
    with dataset, rasterio.MemoryFile(ext=".vrt") as memory:
        rasterio.shutil.copy(dataset, memory.name, driver="VRT")
        with rasterio.open(memory.name, "r+") as virtual:
            virtual.colorinterp = kinds
        return open_quietly(rasterio, memory.read().decode())


def alpha_bands(source: Any) -> list[int]:
    """Bands (from 1) that are tagged as alpha."""
    return [band for band, kind in enumerate(source.colorinterp, start=1) if kind.name == "alpha"]


def _value_bands(source: Any, bands: BandSelection) -> list[int]:
    """Bands (from 1) that are values."""
    tagged = alpha_bands(source)
    return list(bands.values or [band for band in range(1, source.count + 1) if band not in tagged])


def _rasterio_info(
    rasterio: ModuleType, source: Any, path: Path, bands: BandSelection, *, palette_as_indices: bool = False
) -> RasterInfo:
    tagged = alpha_bands(source)
    check_bands(bands, source.count, tagged, path)
    values = _value_bands(source, bands)
    if not values:
        raise ValueError(f"{path} has no band but alpha.")
    has_colours = color_table(source, bands) is not None
    is_scaled = not has_colours and _scaling(source, values) is not None
    flags = {flag for band in source.mask_flag_enums for flag in band}
    dtype = _stored_dtype(np.result_type(*(source.dtypes[band - 1] for band in values)).name, path)
    dtype = "float32" if is_scaled else dtype
    georeference = None
    if not source.transform.is_identity:
        georeference = Georeference(tuple(source.transform)[:6], source.crs.to_wkt() if source.crs else None)
    return RasterInfo(
        path=path,
        size=(source.height, source.width),
        channels=3 if has_colours and not palette_as_indices else len(values),
        dtype=dtype,
        nodata=None if is_scaled else _declared_nodata(source, dtype),
        has_mask=bool(tagged) or rasterio.enums.MaskFlags.per_dataset in flags,
        georeference=georeference,
        bands=bands,
        is_scaled=is_scaled,
    )


def _scaling(source: Any, values: Sequence[int]) -> tuple[np.ndarray, np.ndarray] | None:
    """Scale and offset of each of some bands (from 1); None where the stored numbers are the values."""
    scales, offsets = (
        np.array([numbers[band - 1] for band in values], dtype=np.float64)
        for numbers in (source.scales, source.offsets)
    )
    return None if (scales == 1).all() and (offsets == 0).all() else (scales, offsets)


def _declared_nodata(source: Any, dtype: str) -> float | None:
    """The header's nodata value as the values hold it; None if there is none, or one that no value can equal."""
    if source.nodata is None:
        return None
    with np.errstate(over="ignore"):
        number = float(np.float32(source.nodata)) if dtype == "float32" else float(source.nodata)
    if not np.isfinite(number):
        return None  # NaN and what float32 turns into infinity hold no data in any case
    limits = None if dtype == "float32" else np.iinfo(dtype)
    return number if limits is None or (limits.min <= number <= limits.max and number.is_integer()) else None


def color_table(source: Any, bands: BandSelection) -> np.ndarray | None:
    """Colour table (256, 3) of a palette file of which no band was chosen, which would be its indices."""
    if source.count != 1 or source.colorinterp[0].name != "palette" or bands.values is not None:
        return None
    table = np.zeros((256, 3), dtype=np.uint8)
    for index, colour in source.colormap(1).items():
        table[index] = colour[:3]
    return table


def read_raster(
    path: str | os.PathLike,
    *,
    nodata: Sequence[float] = (),
    use_declared_nodata: bool = True,
    window: tuple[int, int, int, int] | None = None,
    bands: BandSelection = ALL_BANDS,
    palette_as_indices: bool = False,
) -> Raster:
    """Read a raster file.

    A pixel holds no data where a channel is NaN or infinite, where all channels equal a nodata value, where the
    internal mask says so, or where alpha is 0. Scale and offset of a header are applied: the file's own nodata value
    is one of the stored numbers, and always counts there.

    Args:
        path: The file.
        nodata: Values that stand for nothing.
        use_declared_nodata: Whether the file's own nodata value counts too.
        window: (top, left, height, width) inside the raster; None reads all of it.
        bands: Which bands are values; to choose that of a palette file gives its indices.
        palette_as_indices: Whether a palette file gives its indices, as labels need, or its colours.

    Returns:
        The raster, values in the file's dtype (float64 and what is scaled becomes float32, int8 int16).

    Raises:
        ValueError: If the file cannot be read; it is named.
        ImportError: If it takes rasterio and that is missing.
    """
    path = Path(path)
    if uses_pillow(path):
        raster = _read_with_pillow(path, bands, palette_as_indices=palette_as_indices)
        if window is not None:
            raster = raster.crop(*window)
    else:
        rasterio = require_rasterio(path)
        try:
            with open_bands(rasterio, path, bands) as source:
                raster = read_with_rasterio(
                    rasterio, source, path, window=window, bands=bands, palette_as_indices=palette_as_indices
                )
                declared = _rasterio_info(rasterio, source, path, bands).nodata
                if use_declared_nodata and declared is not None:
                    nodata = [*nodata, declared]
        except rasterio.errors.RasterioError as error:
            raise ValueError(f"Cannot read {path}: {error}") from error
    raster.valid = raster.valid & valid_pixels(raster.values, nodata)
    return raster


def _read_with_pillow(path: Path, bands: BandSelection, *, palette_as_indices: bool) -> Raster:
    info = read_info(path, bands=bands)
    try:
        with Image.open(path) as image:
            indexed = image.mode == "P" and (palette_as_indices or bands.values is not None)
            has_alpha = not indexed and _has_alpha(image)
            planes = np.atleast_3d(decode_raster(image, is_label=indexed))  # with alpha, if there is any
    except PILLOW_ERRORS as error:
        raise ValueError(f"Cannot read {path}: {error}") from error
    valid = planes[..., -1] > 0 if has_alpha and info.has_mask else np.ones(planes.shape[:2], dtype=bool)
    if bands.values is not None:
        return Raster(planes[..., [band - 1 for band in bands.values]], valid)
    return Raster(planes[..., :-1] if has_alpha else planes, valid)


def read_with_rasterio(
    rasterio: ModuleType,
    source: Any,
    path: Path,
    *,
    window: tuple[int, int, int, int] | None,
    bands: BandSelection,
    palette_as_indices: bool = False,
) -> Raster:
    """Read an open dataset as `read_raster` reads its file.

    Args:
        rasterio: The module.
        source: What `open_bands` returned.
        path: The file, for messages.
        window: (top, left, height, width) in its own pixels; None for all of it.
        bands: Which bands are values.
        palette_as_indices: Whether a palette file gives its indices instead of its colours.
    """
    info = _rasterio_info(rasterio, source, path, bands)
    values_of, alpha = _value_bands(source, bands), bands.alpha_band(alpha_bands(source))
    top, left, height, width = window or (0, 0, *info.size)
    part = rasterio.windows.Window(left, top, width, height)
    values = np.moveaxis(source.read(values_of, window=part), 0, -1)  # (H, W, C)
    valid = np.ones(values.shape[:2], dtype=bool)
    if alpha is not None:
        valid &= source.read(alpha, window=part) > 0
    elif info.has_mask:
        valid &= source.read_masks(values_of[0], window=part) > 0
    palette = None if palette_as_indices else color_table(source, bands)
    if palette is not None:
        values = palette[values[..., 0]]
    if info.is_scaled:
        if source.nodata is not None:
            valid &= (values != source.nodata).any(axis=-1)
        scales, offsets = _scaling(source, values_of)
        values = values * scales + offsets
    if values.dtype.name != info.dtype and values.dtype.kind in "iu" and info.dtype == "int32":
        beyond = values.max(initial=0) > np.iinfo(np.int32).max or values.min(initial=0) < np.iinfo(np.int32).min
        if beyond:
            raise ValueError(f"{path} holds {values.dtype} values beyond int32. Convert it to float32.")
    dtype = values.dtype if palette is not None else info.dtype
    georeference = info.georeference and info.georeference.window(top, left)
    with np.errstate(over="ignore"):  # float64's lowest number, a common nodata value, becomes -inf: no data either
        values = np.ascontiguousarray(values.astype(dtype, copy=False))
    return Raster(values, valid, georeference)


def read_on_extent(
    info: RasterInfo,
    grid: Georeference | None,
    size: tuple[int, int],
    *,
    nodata: Sequence[float] = (),
    use_declared_nodata: bool = True,
) -> Raster:
    """Read a raster so that it covers exactly the extent of a reference grid, in its own resolution where that fits.

    Where both have a place on Earth: a raster of the same extent is read as it is, one whose pixels line up with the
    extent is cropped, both without touching a value; else it is interpolated (bilinear) onto the extent, in cells of
    about its own size but not finer than the reference's. Where it does not reach, it holds no data, and what holds no
    data never blends into its neighbours. Where one of them has no place, both are taken to show the same extent.

    Args:
        info: Header of the raster.
        grid: Place of the reference grid, None if it has none.
        size: (height, width) of the reference grid in pixels.
        nodata: Values that stand for nothing, besides the declared one.
        use_declared_nodata: Whether the file's own nodata value counts.

    Returns:
        The raster; its size may differ from `size`, its extent does not.

    Raises:
        ValueError: If the two do not overlap, or, without georeferencing, have different proportions.
    """
    options = {"nodata": nodata, "use_declared_nodata": use_declared_nodata, "bands": info.bands}
    if grid is None or info.georeference is None:
        check_proportions(info, size)
        return read_raster(info.path, **options)
    window = _aligned_window(info, grid, size)
    if window is None:
        return _warp(info, grid, size, nodata=nodata, use_declared_nodata=use_declared_nodata)
    top, left, height, width = window
    bottom, right = min(info.size[0], top + height), min(info.size[1], left + width)
    inside = (max(0, top), max(0, left), bottom - max(0, top), right - max(0, left))
    if inside[2] <= 0 or inside[3] <= 0:
        raise ValueError(no_overlap(info, grid, size))
    raster = read_raster(info.path, **options, window=inside)
    return raster.crop(top - inside[0], left - inside[1], height, width)


def covers_whole_pixels(info: RasterInfo, grid: Georeference | None, size: tuple[int, int]) -> bool:
    """Whether `read_on_extent` will take whole pixels of the file for all of the extent, so that it makes no holes."""
    if grid is None or info.georeference is None:
        return True
    window = _aligned_window(info, grid, size)
    if window is None:
        return False
    top, left, height, width = window
    return top >= 0 and left >= 0 and top + height <= info.size[0] and left + width <= info.size[1]


def no_overlap(info: RasterInfo, grid: Georeference, size: tuple[int, int]) -> str:
    """What to say of a raster that lies beside the grid (height, width) that it is read for."""
    own = ", ".join(f"{value:.6g}" for value in info.georeference.bounds(info.size))
    reference = ", ".join(f"{value:.6g}" for value in grid.bounds(size))
    return (
        f"{info.path} does not overlap its reference raster: it covers (west, south, east, north) ({own}), the "
        f"reference ({reference}), each in its own CRS. Give the file that belongs there, or remove it."
    )


def check_proportions(info: RasterInfo, size: tuple[int, int]) -> None:
    """Without georeferencing two rasters can only show one extent if a whole number of cells fits, up to one."""
    (rows, columns), (height, width) = info.size, size
    if abs(rows * width - columns * height) > max(min(width, columns), min(height, rows)):
        raise ValueError(
            f"{info.path} has {columns} x {rows} pixels, its reference {width} x {height}: the proportions differ, "
            "and without georeferencing in both there is no telling how they lie. Crop it, or use GeoTIFFs."
        )


def same_crs(first: str | None, second: str | None, path: Path) -> bool:
    """Whether two WKT texts name one CRS; an unknown one is taken to be the other. `path` is for messages."""
    if first is None or second is None or first == second:
        return True
    rasterio = require_rasterio(path)
    return rasterio.crs.CRS.from_wkt(first) == rasterio.crs.CRS.from_wkt(second)


def _aligned_window(info: RasterInfo, grid: Georeference, size: tuple[int, int]) -> tuple[int, int, int, int] | None:
    """Window (top, left, height, width) of the raster's own pixels that is the grid's extent; None if none is.

    Edges may be off by a hundredth of a pixel, or, where the extents are meant to be the same, by a quarter of one.
    """
    own = info.georeference
    if not same_crs(own.crs, grid.crs, info.path):
        return None
    a, b, c, d, e, f = own.transform
    ra, rb, rc, rd, re, rf = grid.transform
    if any((b, d, rb, rd)) or a * ra <= 0 or e * re <= 0:
        return None
    # The grid's edges in pixels of the raster.
    left, top = (rc - c) / a, (rf - f) / e
    width, height = size[1] * ra / a, size[0] * re / e
    edges = np.array([top, left, top + height, left + width])
    whole = np.array([0.0, 0.0, *info.size])
    quarter = 0.25 * np.array([re / e, ra / a, re / e, ra / a])
    if (np.abs(edges - whole) <= np.minimum(quarter, 0.25)).all():
        return 0, 0, *info.size
    if np.abs(edges - np.rint(edges)).max() > 0.01:
        return None
    top, left, bottom, right = np.rint(edges).astype(int).tolist()
    return top, left, bottom - top, right - left


def _warp(
    info: RasterInfo,
    grid: Georeference,
    size: tuple[int, int],
    *,
    nodata: Sequence[float],
    use_declared_nodata: bool,
) -> Raster:
    """Interpolate onto the grid's extent, reading no more of the file than that takes."""
    rasterio = require_rasterio(info.path)
    from rasterio.warp import Resampling, reproject

    own = info.georeference
    crs = own.crs or grid.crs
    target_crs = grid.crs or own.crs
    rows, columns = _cells_per_pixel(info, grid, size, crs=crs, target_crs=target_crs)
    shape = (max(1, round(size[0] / rows)), max(1, round(size[1] / columns)))
    target = grid.scaled(size[0] / shape[0], size[1] / shape[1])
    window = _source_window(info, grid, size, crs=crs, target_crs=target_crs)
    if window is None:
        raise ValueError(no_overlap(info, grid, size))
    raster = read_raster(
        info.path, nodata=nodata, use_declared_nodata=use_declared_nodata, window=window, bands=info.bands
    )
    # float64 for int32, float32 holds the others exactly; NaN keeps what is not there out of every sum.
    work = np.float64 if raster.values.dtype == np.int32 else np.float32
    source = np.where(raster.valid[..., None], raster.values, np.nan).astype(work)
    warped = np.full((source.shape[2], *shape), np.nan, dtype=work)  # (C, H, W)
    reproject(
        np.ascontiguousarray(np.moveaxis(source, -1, 0)),
        warped,
        src_transform=rasterio.Affine(*raster.georeference.transform),
        dst_transform=rasterio.Affine(*target.transform),
        src_crs=crs or "EPSG:3857",  # two files without a CRS share one, whichever it is
        dst_crs=target_crs or "EPSG:3857",
        src_nodata=np.nan,
        dst_nodata=np.nan,
        init_dest_nodata=True,
        resampling=Resampling.bilinear,
    )
    values = np.moveaxis(warped, 0, -1)
    valid = np.isfinite(values).all(axis=-1)
    if not valid.any() and raster.valid.any():
        raise ValueError(no_overlap(info, grid, size))
    values = np.where(valid[..., None], values, 0)
    if raster.values.dtype.kind in "iu":
        limits = np.iinfo(raster.values.dtype)
        values = np.clip(np.rint(values), limits.min, limits.max)
    return Raster(values.astype(raster.values.dtype), valid, target)


def _cells_per_pixel(
    info: RasterInfo, grid: Georeference, size: tuple[int, int], *, crs: Any, target_crs: Any
) -> tuple[float, float]:
    """How many reference pixels one pixel of the raster is high and wide, at least 1."""
    from rasterio.warp import transform

    # One step along each axis at the middle of the reference, taken into the raster's own pixels.
    row, column = size[0] / 2, size[1] / 2
    a, b, c, d, e, f = grid.transform
    points = [(column, row), (column + 1, row), (column, row + 1)]
    x = [c + a * px + b * py for px, py in points]
    y = [f + d * px + e * py for px, py in points]
    if crs and target_crs and crs != target_crs:
        x, y = transform(target_crs, crs, x, y)
    own_rows, own_columns = info.georeference.pixels(np.array(x), np.array(y))
    columns, rows = (np.hypot(own_rows[step] - own_rows[0], own_columns[step] - own_columns[0]) for step in (1, 2))
    return max(1.0, 1 / rows), max(1.0, 1 / columns)


def _source_window(
    info: RasterInfo, grid: Georeference, size: tuple[int, int], *, crs: Any, target_crs: Any
) -> tuple[int, int, int, int] | None:
    """The part (top, left, height, width) of the raster that the grid's extent looks at; None if there is none."""
    from rasterio.warp import transform

    # The outline is enough: its image is the outline of the image.
    steps = np.linspace(0, 1, 21)
    edge = np.concatenate([np.stack([steps, 0 * steps]), np.stack([steps, 0 * steps + 1])], axis=1)
    columns, rows = np.concatenate([edge, edge[::-1]], axis=1) * np.array([[size[1]], [size[0]]])
    a, b, c, d, e, f = grid.transform
    x, y = c + a * columns + b * rows, f + d * columns + e * rows
    if crs and target_crs and crs != target_crs:
        x, y = (np.array(part) for part in transform(target_crs, crs, x.tolist(), y.tolist()))
    own_rows, own_columns = info.georeference.pixels(x, y)
    if not (np.isfinite(own_columns).all() and np.isfinite(own_rows).all()):
        return None
    # Interpolating to a coarser grid looks further, in proportion.
    reach = _MARGIN + int(2 * max(np.ptp(own_rows) / size[0], np.ptp(own_columns) / size[1]))
    top, left = int(np.floor(own_rows.min())), int(np.floor(own_columns.min()))
    bottom, right = int(np.ceil(own_rows.max())), int(np.ceil(own_columns.max()))
    if bottom <= 0 or right <= 0 or top >= info.size[0] or left >= info.size[1]:
        return None
    top, left = max(0, top - reach), max(0, left - reach)
    bottom, right = min(info.size[0], bottom + reach), min(info.size[1], right + reach)
    return top, left, bottom - top, right - left


def lonlat_bounds(georeference: Georeference, size: tuple[int, int]) -> tuple[float, float, float, float]:
    """West, south, east, north of a raster in degrees.

    Raises:
        ValueError: If the CRS is not known.
    """
    if georeference.crs is None:
        raise ValueError("A raster without a CRS has no longitude and latitude.")
    rasterio = require_rasterio("coordinate reference systems")
    from rasterio.warp import transform_bounds

    crs = rasterio.crs.CRS.from_wkt(georeference.crs)
    return transform_bounds(crs, "EPSG:4326", *georeference.bounds(size))


def metres_per_unit(crs: str) -> float | None:
    """Length of the unit of a projected CRS in metres; None if it is not projected (degrees)."""
    rasterio = require_rasterio("coordinate reference systems")
    parsed = rasterio.crs.CRS.from_wkt(crs)
    return float(parsed.linear_units_factor[1]) if parsed.is_projected else None
