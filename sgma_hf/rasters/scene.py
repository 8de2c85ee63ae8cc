"""The rasters of a scene on one reference grid, read window by window: `RasterScene`.

Georeferenced files on another grid are warped as they are read (rasterio's `WarpedVRT`). Files without a place on
Earth are taken to show the same extent.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from transformers.utils import logging

from ..data.codec import decode_raster
from ..model.image_transforms_sgma import interpolation_weights, resample, valid_pixels
from .alpha import check_alpha
from .bands import ALL_BANDS, BandSelection, share_files
from .files import (
    Georeference,
    Raster,
    RasterInfo,
    alpha_bands,
    check_bands,
    check_proportions,
    color_table,
    no_overlap,
    open_bands,
    open_quietly,
    read_info,
    read_raster,
    read_with_rasterio,
    require_rasterio,
    same_crs,
    uses_pillow,
)


logger = logging.get_logger(__name__)

RESAMPLINGS = ("nearest", "bilinear", "cubic", "cubic_spline", "lanczos", "average", "mode")


@dataclass(frozen=True)
class RasterInput:
    """A file that somebody named, and the bands of it that are meant.

    Args:
        path: The file.
        bands: Which of them are values, and which is alpha.
    """

    path: Path
    bands: BandSelection = ALL_BANDS

    @classmethod
    def parse(cls, text: str | os.PathLike) -> "RasterInput":
        """Read `a.tif`, `a.tif:4,1,2`, or `a.tif:1,2,3,alpha`.

        Raises:
            ValueError: If there is no such file.
        """
        name, bands = (text, ALL_BANDS) if Path(text).exists() else BandSelection.parse(str(text))
        if not Path(name).is_file():
            raise ValueError(f"The raster {str(name)!r} does not exist or is no file.")
        return cls(Path(name), bands)


@dataclass(frozen=True)
class Grid:
    """The pixels that a map is made of.

    Args:
        size: (height, width).
        georeference: Where they lie; None if nobody knows.
    """

    size: tuple[int, int]
    georeference: Georeference | None

    @property
    def is_geographic(self) -> bool:
        """Whether its coordinates are longitudes and latitudes."""
        return _is_geographic(self.georeference)


class RasterScene:
    """The rasters of one place by modality, on one grid.

    Datasets are opened once and are not for several threads at a time; close the scene when done.

    Args:
        rasters: File or files per modality, each with a band selection behind a colon if need be; None for a modality
            that is missing. Where several cover a pixel, the first of them counts.
        channels: Bands that each modality has to have.
        nodata: Values that stand for nothing by modality, besides those that the files declare; scale and offset of
            a header are applied before they are looked for.
        like: Raster whose grid is taken. None: that of the first modality's first file, extended to all its files.
        resampling: How other grids are interpolated, one of `RESAMPLINGS`, or one per modality (others: bilinear).
            Masks are always picked by nearest neighbour. Files without a place on Earth know "nearest" alone; all
            else means what the image processor does in training.

    Raises:
        ValueError: If there is no raster, a modality or resampling is unknown, a file cannot be read or used, or a
            modality lies elsewhere; the file is named.
        ImportError: If a file takes rasterio and that is missing.
    """

    def __init__(
        self,
        rasters: Mapping[str, Any],
        *,
        channels: Mapping[str, int],
        nodata: Mapping[str, Sequence[float]] | None = None,
        like: str | os.PathLike | None = None,
        resampling: str | Mapping[str, str] = "bilinear",
    ):
        self.inputs = _parse_rasters(rasters, channels)
        methods = _check_resampling(resampling, channels)
        infos = {
            name: [_read_header(source, channels[name]) for source in sources]
            for name, sources in _share_files(self.inputs).items()
        }
        for name, group in infos.items():
            for info in group:
                _check_channels(info, name, channels[name])
        reference = [read_info(RasterInput.parse(like).path)] if like is not None else next(iter(infos.values()))
        _check_georeferences([*reference, *(info for group in infos.values() for info in group)])
        self.grid = _reference_grid(reference)
        self._sources: dict[str, list[Any]] = {}
        try:
            for name, group in infos.items():
                values = tuple((nodata or {}).get(name, ()))
                self._sources[name] = self._open(group, values, methods[name])
        except BaseException:
            self.close()
            raise

    def _open(self, infos: list[RasterInfo], nodata: tuple[float, ...], method: str) -> list[Any]:
        opened: list[Any] = []
        for info in infos:
            if info.path.suffix.lower() == ".npy" or (info.georeference is None and info.size != self.grid.size):
                opened.append(_LoadedSource(info, self.grid, nodata, method))
            elif uses_pillow(info.path):
                opened.append(_LoadedSource(info, self.grid, nodata, method))
            else:
                opened.extend(_open_files(info, self.grid, nodata, method))
        if not opened:
            raise ValueError(no_overlap(infos[0], self.grid.georeference, self.grid.size))
        return opened

    @property
    def paths(self) -> list[Path]:
        """The files of all modalities."""
        return [source.path for sources in self.inputs.values() for source in sources]

    @property
    def modalities(self) -> list[str]:
        """Modalities that have a raster, in the order in which they were given."""
        return list(self._sources)

    def read(self, top: int, left: int, height: int, width: int) -> dict[str, np.ma.MaskedArray]:
        """Read a window of the grid.

        Args:
            top: First row.
            left: First column.
            height: Rows; those below the grid hold no data.
            width: Columns, likewise.

        Returns:
            Masked array (height, width, channels) for every modality that holds data there, the mask True where it
            holds none.

        Raises:
            ValueError: If a file is damaged; it is named.
        """
        inside = (top, left, min(height, self.grid.size[0] - top), min(width, self.grid.size[1] - left))
        images = {}
        for name, sources in self._sources.items():
            raster = _mosaic(sources, inside)
            if raster is not None:
                raster = raster.crop(0, 0, height, width)
                mask = np.broadcast_to(~raster.valid[..., None], raster.values.shape)
                images[name] = np.ma.MaskedArray(raster.values, mask=mask)
        return images

    def close(self) -> None:
        """Close the files."""
        for sources in self._sources.values():
            for source in sources:
                source.close()

    def __enter__(self) -> "RasterScene":
        return self

    def __exit__(self, *exception: Any) -> None:
        self.close()


def _mosaic(sources: list[Any], window: tuple[int, int, int, int]) -> Raster | None:
    """The window from the first source that covers each pixel; None if none covers any."""
    merged = None
    for source in sources:
        raster = source.read(*window)
        if raster is None or not raster.valid.any():
            continue
        if merged is None:
            merged = raster
        else:
            new = raster.valid & ~merged.valid
            dtype = np.result_type(merged.values, raster.values)
            merged = Raster(np.where(new[..., None], raster.values, merged.values).astype(dtype), merged.valid | new)
        if merged.valid.all():
            break
    return merged


class _LoadedSource:
    """A file without a place on Earth, read as a whole; interpolated as in training, unless nearest is asked for."""

    def __init__(self, info: RasterInfo, grid: Grid, nodata: tuple[float, ...], method: str):
        check_proportions(info, grid.size)
        if info.path.suffix.lower() == ".npy":
            values = _read_npy(info.path, info.channels)
            if info.bands.values is not None:
                values = values[..., [band - 1 for band in info.bands.values]]
            self._raster = Raster(values, valid_pixels(values, nodata))
        else:
            self._raster = read_raster(info.path, nodata=nodata, bands=info.bands)
        self._grid, self._method = grid, method

    def read(self, top: int, left: int, height: int, width: int) -> Raster:
        if self._raster.size == self._grid.size:
            return self._raster.crop(top, left, height, width)
        if self._method == "nearest":
            return self._pick(top, left, height, width)
        rows, columns = (
            interpolation_weights(cells, start * cells / whole, length * cells / whole, length)
            for cells, start, length, whole in zip(
                self._raster.size, (top, left), (height, width), self._grid.size, strict=True
            )
        )
        part = self._raster.values[rows.cells, columns.cells]
        valid = self._raster.valid[rows.cells, columns.cells]
        values = np.moveaxis(np.where(valid[..., None], part, 0).astype(np.float32), -1, 0)
        resampled = np.empty((values.shape[0], height, width), dtype=np.float32)
        covered = resample(values, None if valid.all() else valid, rows, columns, out=resampled)
        return Raster(np.moveaxis(resampled, 0, -1), np.ones((height, width), bool) if covered is None else covered)

    def _pick(self, top: int, left: int, height: int, width: int) -> Raster:
        """The cells that the centres of the grid's pixels lie in."""
        picked = np.ix_(
            *(
                (2 * np.arange(start, start + length) + 1) * cells // (2 * whole)
                for cells, start, length, whole in zip(
                    self._raster.size, (top, left), (height, width), self._grid.size, strict=True
                )
            )
        )
        return Raster(self._raster.values[picked], self._raster.valid[picked])

    def close(self) -> None:
        self._raster = None


class _FileSource:
    """A file whose pixels are the grid's, shifted by whole pixels: read as they are."""

    def __init__(self, info: RasterInfo, nodata: tuple[float, ...], offset: tuple[int, int]):
        self._rasterio = require_rasterio(info.path)
        self._info, self._nodata, self._offset = info, _all_nodata(info, nodata), offset
        self._dataset = open_bands(self._rasterio, info.path, info.bands)

    def read(self, top: int, left: int, height: int, width: int) -> Raster | None:
        top, left = top + self._offset[0], left + self._offset[1]
        first = (max(0, top), max(0, left))
        last = (min(self._info.size[0], top + height), min(self._info.size[1], left + width))
        if first[0] >= last[0] or first[1] >= last[1]:
            return None
        window = (*first, last[0] - first[0], last[1] - first[1])
        raster = _read_dataset(self._rasterio, self._dataset, self._info, window)
        raster.valid = raster.valid & valid_pixels(raster.values, self._nodata)
        return raster.crop(top - first[0], left - first[1], height, width)

    def close(self) -> None:
        self._dataset.close()


class _WarpedSource:
    """A file on another grid: values interpolated, the mask picked by nearest neighbour.

    GDAL keeps one nodata value out of its sums. Others, and NaN, do get into the values around them; those pixels are
    given up.
    """

    def __init__(self, info: RasterInfo, grid: Grid, nodata: tuple[float, ...], method: str, shift: float):
        self._rasterio = rasterio = require_rasterio(info.path)
        self._info, self._size = info, grid.size
        self._nodata = _all_nodata(info, nodata)
        self._box = _box_on_grid(info, grid) if shift == 0 else (0, 0, *grid.size)
        self._dataset = dataset = open_bands(rasterio, info.path, info.bands)
        self._palette = color_table(dataset, info.bands)
        kept_out = info.nodata
        # Of a scaled file GDAL sees the stored numbers: its own nodata value, but none of ours.
        if kept_out is None and not info.has_mask and not info.is_scaled:
            kept_out = next((value for value in self._nodata if _fits(value, info.dtype)), None)
            if kept_out is None and info.dtype == "float32":
                kept_out = float("nan")
        self._blended = [value for value in self._nodata if value != kept_out]
        self._reach = int(np.ceil(max(_pixels_per_cell(info, grid)))) + 1
        own = info.georeference
        crs, target_crs = own.crs or "EPSG:3857", grid.georeference.crs or "EPSG:3857"  # without one, all share one
        a, b, c, d, e, f = own.transform
        options = {
            "src_crs": crs,
            "src_transform": rasterio.Affine(a, b, c + shift, d, e, f),
            "crs": target_crs,
            "transform": rasterio.Affine(*grid.georeference.transform),
            "height": grid.size[0],
            "width": grid.size[1],
            "add_alpha": not alpha_bands(dataset),
            "tolerance": 0.01,  # pixels; GDAL's own default would leave edges an eighth of a pixel off
        }
        if kept_out is not None:
            options["src_nodata"] = kept_out
        vrt, resamplings = rasterio.vrt.WarpedVRT, rasterio.enums.Resampling
        self._nearest = vrt(dataset, resampling=resamplings.nearest, **options)
        self._smooth = self._nearest
        if method != "nearest" and self._palette is None:  # indices have no values in between
            self._smooth = vrt(dataset, resampling=resamplings[method], **options)

    def read(self, top: int, left: int, height: int, width: int) -> Raster | None:
        box = self._box
        if top >= box[2] or left >= box[3] or top + height <= box[0] or left + width <= box[1]:
            return None
        # Beyond the window as far as a value that has to be given up may reach into it.
        reach = self._reach if self._blended else 0
        first = (max(0, top - reach), max(0, left - reach))
        last = (min(self._size[0], top + height + reach), min(self._size[1], left + width + reach))
        window = (*first, last[0] - first[0], last[1] - first[1])
        picked = _read_dataset(self._rasterio, self._nearest, self._info, window)
        valid = picked.valid & valid_pixels(picked.values, self._nodata)
        values = picked.values
        if self._smooth is not self._nearest and valid.any():
            smooth = _read_dataset(self._rasterio, self._smooth, self._info, window)
            values = smooth.values
            valid &= smooth.valid & valid_pixels(values, ())
            spoilt = ~valid_pixels(picked.values, self._blended) & picked.valid
            if spoilt.any():
                valid &= ~_widen(spoilt, self._reach)
        if self._palette is not None:  # which GDAL does not hand on
            values = self._palette[values[..., 0]]
        return Raster(values, valid).crop(top - first[0], left - first[1], height, width)

    def close(self) -> None:
        self._smooth.close()
        self._nearest.close()
        self._dataset.close()


def _open_files(
    info: RasterInfo, grid: Grid, nodata: tuple[float, ...], method: str
) -> list[_FileSource | _WarpedSource]:
    """What reads a georeferenced file: nothing if it lies elsewhere, more than one at the antimeridian."""
    if info.georeference is None:
        return [_FileSource(info, nodata, (0, 0))]
    if _outline_misses(info.georeference, info.size, grid.georeference, grid.size):
        return []
    offset = _whole_pixel_offset(info, grid)
    if offset is not None:
        return [_FileSource(info, nodata, offset)]
    shifts = _longitude_shifts(info, grid) if _is_geographic(info.georeference) else [0.0]
    return [_WarpedSource(info, grid, nodata, method, shift) for shift in shifts]


def _longitude_shifts(info: RasterInfo, grid: Grid) -> list[float]:
    """Multiples of 360 degrees by which a geographic raster has to be shifted to be found at the antimeridian.

    GDAL looks for longitudes in -180..180 where the grid is in another CRS, for the grid's own where it is not.
    """
    west, _, east, _ = info.georeference.bounds(info.size)
    low, high = (-180.0, 180.0)
    if grid.is_geographic:
        low, _, high, _ = grid.georeference.bounds(grid.size)
    slack = 1e-6 * (high - low)
    found = [shift for shift in (0.0, -360.0, 360.0) if west + shift < high - slack and east + shift > low + slack]
    return found or [0.0]


def _read_dataset(rasterio: Any, dataset: Any, info: RasterInfo, window: tuple[int, int, int, int]) -> Raster:
    try:
        return read_with_rasterio(rasterio, dataset, info.path, window=window, bands=info.bands)
    except rasterio.errors.RasterioError as error:
        detail = error.__cause__ or error  # rasterio says "See previous exception for details"
        raise ValueError(
            f"Cannot read {info.path}: {detail}. The file is damaged; fetch or write it again."
        ) from error


def _widen(mask: np.ndarray, reach: int) -> np.ndarray:
    """Grow a mask by `reach` pixels along both axes."""
    for axis in (0, 1):
        grown = mask.copy()
        for step in range(1, reach + 1):
            after, before = [slice(None)] * 2, [slice(None)] * 2
            after[axis], before[axis] = slice(step, None), slice(None, -step)
            grown[tuple(after)] |= mask[tuple(before)]
            grown[tuple(before)] |= mask[tuple(after)]
        mask = grown
    return mask


def _fits(value: float, dtype: str) -> bool:
    if dtype == "float32":
        return True
    limits = np.iinfo(dtype)
    return float(value).is_integer() and limits.min <= value <= limits.max


def _all_nodata(info: RasterInfo, nodata: Sequence[float]) -> list[float]:
    return [*nodata, *([] if info.nodata is None or info.nodata in nodata else [info.nodata])]


def _parse_rasters(rasters: Mapping[str, Any], channels: Mapping[str, int]) -> dict[str, list[RasterInput]]:
    unknown = [name for name in rasters if name not in channels]
    if unknown:
        raise ValueError(f"Unknown modalities {unknown}; the checkpoint knows {list(channels)}.")
    inputs = {}
    for name, value in rasters.items():
        if value is None:
            continue
        files = [value] if isinstance(value, str | os.PathLike | RasterInput) else list(value)
        if not files:
            raise ValueError(f"Modality {name!r} has an empty list of files; give some, or None if it is missing.")
        inputs[name] = [file if isinstance(file, RasterInput) else RasterInput.parse(file) for file in files]
    if not inputs:
        raise ValueError(f"There is no raster; give files for one or more of {list(channels)}.")
    return inputs


def _check_resampling(resampling: str | Mapping[str, str], channels: Mapping[str, int]) -> dict[str, str]:
    chosen = dict.fromkeys(channels, resampling) if isinstance(resampling, str) else dict(resampling)
    for name, method in chosen.items():
        if name not in channels or method not in RESAMPLINGS:
            raise ValueError(
                f"`resampling` has {method!r} for {name!r}; expected one of {list(RESAMPLINGS)} for a modality of "
                f"{list(channels)}."
            )
    return {name: chosen.get(name, "bilinear") for name in channels}


def _share_files(inputs: Mapping[str, list[RasterInput]]) -> dict[str, list[RasterInput]]:
    """Let the modalities know which bands of a file are the values of another."""
    named = [(name, _name_the_bit(source)) for name, sources in inputs.items() for source in sources]
    shared = share_files([(source.path.resolve(), source.bands) for _, source in named])
    result: dict[str, list[RasterInput]] = {name: [] for name in inputs}
    for (name, source), bands in zip(named, shared, strict=True):
        result[name].append(replace(source, bands=bands))
    return result


def _read_header(source: RasterInput, channels: int) -> RasterInfo:
    path = source.path
    if path.suffix.lower() == ".npy":
        values, wanted = _read_npy(path, channels, mapped=True), source.bands
        check_bands(wanted, channels, [], path)
        count = channels if wanted.values is None else len(wanted.values)
        return RasterInfo(path, values.shape[:2], count, values.dtype.name, None, False, None, wanted)
    info = read_info(path, bands=source.bands)
    if 0 in info.size:
        raise ValueError(f"{path} has no pixels.")
    check_alpha(path, source.bands)
    return info


def _name_the_bit(source: RasterInput) -> RasterInput:
    """Choose the band of a 1-bit file, which GDAL shows as black and white colours."""
    path = source.path
    if source.bands.values is not None or path.suffix.lower() == ".npy" or uses_pillow(path):
        return source
    rasterio = require_rasterio(path)
    try:
        with open_quietly(rasterio, path) as dataset:
            if dataset.tags(1, ns="IMAGE_STRUCTURE").get("NBITS") != "1":
                return source
    except rasterio.errors.RasterioError as error:
        raise ValueError(f"Cannot read {path}: {error}") from error
    logger.warning(f"{path} has 1 bit per value: the model sees 0 and 1. Is it a mask?")
    return replace(source, bands=BandSelection((1,)))


def _check_channels(info: RasterInfo, name: str, channels: int) -> None:
    if info.channels != channels:
        raise ValueError(
            f"{info.path} has {info.channels} bands; modality {name!r} of this checkpoint takes {channels}. Give "
            "another file, or choose the bands, for instance "
            f"{info.path}:{','.join(str(band + 1) for band in range(channels))}."
        )


def _read_npy(path: Path, channels: int, *, mapped: bool = False) -> np.ndarray:
    """A `.npy` file of shape (height, width), (height, width, channels) or (channels, height, width)."""
    values = np.load(path, mmap_mode="r", allow_pickle=False) if mapped else decode_raster(path)
    if values.ndim == 2:
        values = values[..., None]
    if values.ndim == 3 and values.shape[2] != channels and values.shape[0] == channels:
        values = np.moveaxis(values, 0, -1)
    if values.ndim != 3 or values.shape[2] != channels:
        raise ValueError(
            f"{path} has shape {values.shape}, which is no raster of {channels} bands; expected (height, width, "
            f"{channels}) or ({channels}, height, width)."
        )
    return values


def _check_georeferences(infos: Sequence[RasterInfo]) -> None:
    """Either all rasters have a place on Earth, and a CRS if any has one, or none has."""
    placed = [info for info in infos if info.georeference is not None]
    lost = [info for info in infos if info.georeference is None]
    if placed and lost:
        raise ValueError(
            f"{lost[0].path} has no georeferencing but {placed[0].path} has: there is no telling how the two lie. "
            "Write the first with its transform and CRS, for instance by `gdal_translate -a_ullr ... -a_srs ...`, or, "
            "if it has ground control points, by `gdalwarp`."
        )
    known = [info for info in placed if info.georeference.crs is not None]
    unknown = [info for info in placed if info.georeference.crs is None]
    if known and unknown:
        raise ValueError(
            f"{unknown[0].path} has no CRS but {known[0].path} has one. Say which it is in, for instance by "
            "`gdal_edit.py -a_srs EPSG:... FILE`."
        )
    for info in placed:
        a, b, _, d, e, _ = info.georeference.transform
        if a * e - b * d == 0:
            raise ValueError(
                f"{info.path} has the geotransform {info.georeference.transform}: its pixels have no area."
            )


def _reference_grid(infos: Sequence[RasterInfo]) -> Grid:
    """The first raster's pixels, extended to all the others."""
    first = infos[0]
    if first.georeference is None:
        return Grid(first.size, None)
    top, left, bottom, right = 0, 0, *first.size
    for info in infos[1:]:
        rows, columns = _outline(info.georeference, info.size, first.georeference)
        if not (np.isfinite(rows).all() and np.isfinite(columns).all()):
            raise ValueError(
                f"{info.path} cannot be brought into the CRS of {first.path}; name the map's grid with `like`."
            )
        # A file that ends a hundredth of a pixel further on does not make the map larger.
        top, left = min(top, int(np.floor(rows.min() + 0.01))), min(left, int(np.floor(columns.min() + 0.01)))
        bottom, right = max(bottom, int(np.ceil(rows.max() - 0.01))), max(right, int(np.ceil(columns.max() - 0.01)))
    return Grid((bottom - top, right - left), first.georeference.window(top, left))


def _is_geographic(georeference: Georeference | None) -> bool:
    if georeference is None or georeference.crs is None:
        return False
    rasterio = require_rasterio("coordinate reference systems")
    return rasterio.crs.CRS.from_wkt(georeference.crs).is_geographic


def _outline(georeference: Georeference, size: tuple[int, int], target: Georeference) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns, in pixels of `target`, of places along the outline of a raster; infinite where there are none.

    Longitudes are taken from within half a turn of the target's origin.
    """
    rasterio = require_rasterio("coordinate reference systems")

    steps = np.linspace(0, 1, 21)
    columns = np.concatenate([steps, steps, 0 * steps, 0 * steps + 1]) * size[1]
    rows = np.concatenate([0 * steps, 0 * steps + 1, steps, steps]) * size[0]
    a, b, c, d, e, f = georeference.transform
    x, y = c + a * columns + b * rows, f + d * columns + e * rows
    if not same_crs(georeference.crs, target.crs, Path("the rasters")):
        crs, target_crs = (rasterio.crs.CRS.from_wkt(item.crs) for item in (georeference, target))
        x, y = (np.array(part) for part in rasterio.warp.transform(crs, target_crs, x.tolist(), y.tolist()))
    if _is_geographic(target):
        middle = target.transform[2]
        with np.errstate(invalid="ignore"):
            x = np.where(np.abs(x - middle) > 180, middle + (x - middle + 180) % 360 - 180, x)
    with np.errstate(invalid="ignore"):
        return target.pixels(x, y)


def _outline_misses(
    first: Georeference, first_size: tuple[int, int], second: Georeference, second_size: tuple[int, int]
) -> bool:
    """Whether two rasters lie apart, seen from both of them; a projection may show one of them distorted."""
    seen = ((first, first_size, second, second_size), (second, second_size, first, first_size))
    for one, one_size, other, other_size in seen:
        rows, columns = _outline(one, one_size, other)
        if not (np.isfinite(rows).all() and np.isfinite(columns).all()):
            return False
        apart = rows.max() <= 0 or columns.max() <= 0 or rows.min() >= other_size[0] or columns.min() >= other_size[1]
        if not apart:
            return False
    return True


def _box_on_grid(info: RasterInfo, grid: Grid) -> tuple[int, int, int, int]:
    """Rows and columns (top, left, bottom, right) of the grid that a raster may cover, with a margin."""
    rows, columns = _outline(info.georeference, info.size, grid.georeference)
    if not (np.isfinite(rows).all() and np.isfinite(columns).all()) or grid.is_geographic:
        return 0, 0, *grid.size
    # An outline that is bent by a projection bulges beyond the 84 points on it, by less than 5 % of the extent.
    margins = [2 + 0.05 * np.ptp(rows), 2 + 0.05 * np.ptp(columns)]
    return (
        int(np.floor(rows.min() - margins[0])),
        int(np.floor(columns.min() - margins[1])),
        int(np.ceil(rows.max() + margins[0])),
        int(np.ceil(columns.max() + margins[1])),
    )


def _whole_pixel_offset(info: RasterInfo, grid: Grid) -> tuple[int, int] | None:
    """Rows and columns by which the grid is shifted against the raster's own pixels; None if it is another grid."""
    own, target = info.georeference, grid.georeference
    if not same_crs(own.crs, target.crs, info.path):
        return None
    corners = [(0, 0), (grid.size[0], 0), (0, grid.size[1])]
    a, b, c, d, e, f = target.transform
    x, y = (np.array(part) for part in zip(*((c + a * q + b * p, f + d * q + e * p) for p, q in corners), strict=True))
    rows, columns = own.pixels(x, y)
    offset = np.rint([rows[0], columns[0]])
    expected = offset + np.array(corners)
    if np.abs(np.stack([rows, columns], axis=1) - expected).max() > 0.01:
        return None
    return int(offset[0]), int(offset[1])


def _pixels_per_cell(info: RasterInfo, grid: Grid) -> tuple[float, float]:
    """Size of one of the raster's pixels in pixels of the grid, about."""
    middle = replace(info.georeference.window(info.size[0] / 2, info.size[1] / 2))
    rows, columns = _outline(middle, (1, 1), grid.georeference)
    if not (np.isfinite(rows).all() and np.isfinite(columns).all()):
        return 1.0, 1.0
    return min(64.0, float(np.ptp(rows))), min(64.0, float(np.ptp(columns)))
