"""What reads one file on a grid, window by window: as it is, warped, or, without a place on Earth, stretched."""

import contextlib
import functools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..data.incomplete_rows import free_fill_value
from ..data.windows import Window, cover
from ..model.image_transforms_sgma import MINIMUM_SUPPORT, interpolation_weights, resample, valid_pixels
from ..model.pictures_sgma import DECODE_ERRORS
from .bands import BandSelection
from .files import RasterFile, read_info, read_raster, uses_pillow
from .grids import (
    MOST_TIMES_FINER,
    Grid,
    check_proportions,
    footprint,
    lie_apart,
    longitude_shifts,
    no_overlap,
    pixel_steps,
    whole_pixels,
)
from .opening import is_npy
from .raster import Raster, RasterInfo, require_rasterio, same_crs


RESAMPLINGS = ("nearest", "bilinear", "cubic", "cubic_spline", "lanczos", "average", "mode")

_KERNEL_RADIUS = 3  # pixels of the file, or of the grid where those are larger; that of lanczos is the largest
_TOLERANCE = 0.001  # pixels that GDAL's straight line between exact places may be off; its own default is an eighth
_PIXELS_AT_ONCE = 2**22  # of a file, when it is warped
_BLOCK = 512  # pixels along the sides of what is warped at once
_KEPT_BYTES = 2**27  # of such blocks


class Mosaic(contextlib.AbstractContextManager):
    """Files of one kind on a grid; where several cover a pixel, the first of them counts.

    What is warped is warped in blocks that do not depend on the windows that are asked for, and kept for a while, for
    windows that overlap. So is a grid of one block, which is read once. `method` is one of `RESAMPLINGS`, `missing`
    are those arguments of `read_raster` that are about what is missing. Files that lie elsewhere are left out;
    ValueError if all do, or one without a place has other proportions. `kept` is the file where there is one, if it is
    open already, and stays so. `share` of them share the memory for blocks.
    """

    def __init__(
        self,
        infos: Sequence[RasterInfo],
        grid: Grid,
        method: str,
        *,
        kept: RasterFile | None = None,
        share: int = 1,
        **missing: Any,
    ):
        self._side = _BLOCK if share == 1 else _BLOCK // 2
        self._grid, self._sources, self._in_blocks = grid, [], max(grid.size) <= self._side
        with contextlib.ExitStack() as opened:
            for info in infos:
                self._open(info, kept, method, missing, opened)
            if not self._sources:
                raise ValueError(no_overlap(infos[0], grid))
            self._opened = opened.pop_all()
        # Two rows of blocks, which windows that overlap read again, as far as memory allows.
        num_bytes = self._side**2 * infos[0].channels * 4 * share
        in_two_rows = 2 * (grid.size[1] // self._side + 2)
        self._block = functools.lru_cache(max(4, min(in_two_rows, _KEPT_BYTES // num_bytes)))(self._merge)

    def _open(
        self,
        info: RasterInfo,
        kept: RasterFile | None,
        method: str,
        missing: Mapping[str, Any],
        opened: contextlib.ExitStack,
    ) -> None:
        offset: tuple[int, int] | None = (0, 0)
        if info.georeference is None:
            if info.size != self._grid.size or is_npy(info.path) or uses_pillow(info.path):
                self._sources.append(LoadedSource(info, self._grid, method, missing))
                return
        elif lie_apart(info, self._grid):
            return
        else:
            window = whole_pixels(info, self._grid)
            offset = window[:2] if window is not None and window[2:] == self._grid.size else None
        file = kept or opened.enter_context(RasterFile(info.path, info.bands, **missing))
        if offset is not None:
            self._sources.append(FileSource(file, offset))
            return
        self._in_blocks = True
        for shift in longitude_shifts(info, self._grid):  # more than one at the antimeridian
            self._sources.append(WarpedSource(file, self._grid, method, shift))

    def read(self, window: Window) -> Raster | None:
        """A window of the grid; None if there is no data."""
        if not self._in_blocks:
            return self._merge(window)
        found = []
        side = self._side
        for top in range(window.top // side * side, window.top + window.height, side):
            for left in range(window.left // side * side, window.left + window.width, side):
                place = Window(top, left, side, side).inside(self._grid.size)
                block = self._block(place)
                if block is not None:
                    found.append((place.moved(-window.top, -window.left), block))
        if not found:
            return None
        dtype = np.result_type(*(block.values.dtype for _, block in found))
        values = np.zeros((found[0][1].values.shape[2], window.height, window.width), dtype)
        raster = Raster(np.moveaxis(values, 0, -1), np.zeros(window[2:], dtype=bool))
        for place, block in found:
            target = place.inside(window[2:])
            part = target.moved(-place.top, -place.left).slices
            raster.values[target.slices], raster.valid[target.slices] = block.values[part], block.valid[part]
        return raster if raster.valid.any() else None

    def _merge(self, window: Window) -> Raster | None:
        """The window from the first source that covers each pixel; None if none covers any."""
        merged = None
        for source in self._sources:
            raster = source.read(window)
            if not raster.valid.any():
                continue
            if merged is None:
                merged = raster
            else:
                new = raster.valid & ~merged.valid
                values = np.where(new[..., None], raster.values, merged.values)
                merged = Raster(values, merged.valid | new)
            if merged.valid.all():
                break
        return merged

    def __exit__(self, *exception: Any) -> None:
        self._opened.close()


class LoadedSource:
    """A file without a place on Earth, read as a whole; interpolated as in training, unless nearest is asked for."""

    def __init__(self, info: RasterInfo, grid: Grid, method: str, missing: Mapping[str, Any]):
        check_proportions(info, grid.size)
        if is_npy(info.path):
            values = read_npy(info.path, info.channels, info.bands)
            if info.bands.values is not None:
                values = values[..., [band - 1 for band in info.bands.values]]
            valid = valid_pixels(values, missing.get("nodata", ()), gaps=missing.get("gaps"))
            self._raster = Raster(values, valid)
            if missing.get("mask") is not None:
                missing["mask"].apply(self._raster, info)
        else:
            self._raster = read_raster(info.path, bands=info.bands, **missing)
        self._grid, self._method, self._nodata = grid, method, missing.get("nodata", ())

    def read(self, window: Window) -> Raster:
        """A window of the grid."""
        if self._raster.size == self._grid.size:
            return self._raster.crop(*window)
        if self._method == "nearest":
            sides = zip(self._raster.size, window[:2], window[2:], self._grid.size, strict=True)
            # The cells that the centres of the grid's pixels lie in.
            picked = np.ix_(
                *(
                    (2 * np.arange(start, start + length) + 1) * cells // (2 * whole)
                    for cells, start, length, whole in sides
                )
            )
            return Raster(self._raster.values[picked], self._raster.valid[picked])
        return _without_chance(interpolate(self._raster, self._grid.size, window), self._nodata)


class PixelMask:
    """Pixels of other files that are not to be used, by files of one band of classes: clouds, their shadows, snow.

    Each pixel of a file is hidden where the class that its centre lies in is one of `values`, whatever the mask
    declares as nodata; where there is no mask, none is. `paths` are files and, where they have several, their band.
    """

    def __init__(self, paths: Sequence[tuple[Path | str, BandSelection]], values: Sequence[float]):
        self.paths, self.values = [path for path, _ in paths], tuple(values)
        self._infos = [read_info(path, bands=bands, palette_as_indices=True) for path, bands in paths]
        for info in self._infos:
            if info.channels != 1:
                raise ValueError(
                    f"The mask {info.path} has {info.channels} bands; expected one. Choose it, as in {info.path}:1."
                )

    def over(self, info: RasterInfo) -> "_MaskOnFile":
        """What it hides of a file, to be closed; ValueError if there is no telling, or it lies elsewhere."""
        for own in self._infos:
            if (own.georeference is None) != (info.georeference is None):
                lost, placed = (own, info) if own.georeference is None else (info, own)
                raise ValueError(
                    f"{lost.path} has no georeferencing but {placed.path} has: there is no telling what is masked."
                )
        return _MaskOnFile(self._infos, info, self.values)

    def apply(self, raster: Raster, info: RasterInfo) -> None:
        """Let a whole file that is in memory hold no data where it is hidden."""
        with self.over(info) as hidden:
            raster.valid &= ~hidden.hides(Window(0, 0, *raster.size))


class _MaskOnFile(Mosaic):
    """A mask on the pixels of a file."""

    def __init__(self, infos: Sequence[RasterInfo], info: RasterInfo, values: tuple[float, ...]):
        grid = Grid(info.size, info.georeference)
        super().__init__(infos, grid, "nearest", use_declared_nodata=False, palette_as_indices=True)
        self._values = values

    def hides(self, window: Window) -> np.ndarray:
        """Bool (height, width), True for pixels of a window that are not to be used."""
        raster = self.read(window)
        if raster is None:
            return np.zeros(window[2:], dtype=bool)
        return raster.valid & np.isin(raster.values[..., 0], self._values)


def interpolate(raster: Raster, size: tuple[int, int], window: Window, dtype: type = np.float32) -> Raster:
    """A window of a grid of `size` that spans what a raster spans, each pixel from those that hold data.

    It is computed in `dtype` as the image processor does it: linear where the grid is the finer one, where a pixel
    holds data if the one that its centre lies in does, and else the mean of what it covers, if that is half of it.
    """
    rows, columns = (
        interpolation_weights(cells, start * cells / whole, length * cells / whole, length, dtype)
        for cells, start, length, whole in zip(raster.size, window[:2], window[2:], size, strict=True)
    )
    valid = raster.valid[rows.cells, columns.cells]
    part = np.where(valid[..., None], raster.values[rows.cells, columns.cells], 0)
    values = np.moveaxis(part, -1, 0).astype(dtype)
    resampled = np.empty((values.shape[0], window.height, window.width), dtype)
    covered = resample(values, None if valid.all() else valid, rows, columns, out=resampled)
    return Raster(np.moveaxis(resampled, 0, -1), np.ones(window[2:], dtype=bool) if covered is None else covered)


def _without_chance(raster: Raster, nodata: Sequence[float]) -> Raster:
    """Move what interpolation made equal to a value that stands for nothing, in place of a hole."""
    return replace(raster, values=free_fill_value(raster.values, nodata, valid=raster.valid))


def read_npy(path: Path, channels: int, bands: BandSelection, *, mapped: bool = False) -> np.ndarray:
    """All bands of a `.npy` file of shape (height, width), (height, width, channels) or (channels, height, width).

    Where some are chosen, there may be more than `channels`: they are the shorter of the two sides that they can be.
    """
    try:
        values = np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False)
    except DECODE_ERRORS as error:
        raise ValueError(f"Cannot read {path}: {error}") from error
    if values.dtype.kind not in "buif":
        raise ValueError(
            f"{path} has values of type {values.dtype}, which are no measurements. Convert it to float32."
        )
    if values.ndim == 2:
        values = values[..., None]
    if values.ndim == 3 and bands.values is not None:
        channels = min(values.shape[0], values.shape[2])
    if values.ndim == 3 and values.shape[2] != channels and values.shape[0] == channels:
        values = np.moveaxis(values, 0, -1)
    if values.ndim != 3 or values.shape[2] != channels:
        raise ValueError(
            f"{path} has shape {values.shape}, which is no raster of {channels} bands; expected (height, width, "
            f"{channels}) or ({channels}, height, width)."
        )
    return values


class FileSource:
    """A file whose pixels are the grid's, shifted by whole pixels: read as they are."""

    def __init__(self, file: RasterFile, offset: tuple[int, int]):
        self._file, self._offset = file, offset

    def read(self, window: Window) -> Raster:
        """A window of the grid."""
        return self._file.read(window.moved(*self._offset))


class WarpedSource:
    """A file on another grid: values interpolated from those that hold data, the mask picked by nearest neighbour.

    Where the file is the finer one and its pixels lie along the grid's, bilinear is the mean of each pixel's area, of
    which half has to hold data. GDAL's kernel is as wide as a pixel of the file or of the grid, whichever is larger.
    Left to itself, GDAL guesses that from the extent of what it is given, and so blurs turned grids, and every window
    by another amount. `shift` takes the file to lie so many degrees further east.
    """

    def __init__(self, file: RasterFile, grid: Grid, method: str, shift: float):
        self._warp = require_rasterio(file.info.path).warp
        own, place = file.info.georeference.moved(shift), grid.georeference
        self._file, self._info = file, file.info
        self._own, self._place = own, place
        # Colours between those of a palette would be others.
        self._method = "nearest" if file.shows_colors else method
        steps = pixel_steps(file.info, grid)
        scales = np.linalg.norm(np.linalg.inv(steps), axis=0)
        if min(scales) * MOST_TIMES_FINER < 1:
            raise ValueError(
                f"{self._info.path} has pixels {1 / min(scales):.0f} times finer than the grid that it is read for; "
                f"expected {MOST_TIMES_FINER} times at most. Choose a finer grid, or make the file coarser by "
                "`gdalwarp -r average -tr ...`."
            )
        scales[scales > 0.95] = 1  # GDAL is three times as fast where its kernel is not widened
        is_same = same_crs(own.crs, place.crs)
        # As the image processor, a mean of the area where the file is finer. GDAL takes that from two corners of a
        # pixel, so they have to lie along those of the file, and on one side of the antimeridian.
        across, along = np.sort(np.abs(steps), axis=1).T
        if self._method == "bilinear" and is_same and (scales < 1).all() and (across < 0.01 * along).all():
            self._method = "average"
        shared = place.crs or own.crs or "EPSG:3857"  # two files without a CRS share one, whichever it is
        self._options = {
            "src_crs": shared if is_same else own.crs,
            "dst_crs": shared,
            "tolerance": _TOLERANCE,
            "XSCALE": float(scales[1]),
            "YSCALE": float(scales[0]),
        }
        self._reach = int(np.ceil(_KERNEL_RADIUS / min(scales))) + 2

    def read(self, window: Window) -> Raster:
        """A window of the grid."""
        values = np.zeros((self._info.channels, window.height, window.width), self._info.dtype)
        valid = np.zeros((window.height, window.width), dtype=bool)
        self._fill(window, values, valid)
        return _without_chance(Raster(np.moveaxis(values, 0, -1), valid), self._file.nodata)

    def _fill(self, window: Window, values: np.ndarray, valid: np.ndarray) -> None:
        """Warp into (channels, height, width) and (height, width), in parts where the file is much finer."""
        part, is_inside = self._part_below(window)
        if part.height < 1 or part.width < 1:
            return
        side = max(window.height, window.width) // 2
        if part.height * part.width > _PIXELS_AT_ONCE and side:  # in quarters
            for piece in cover(window[2:], side):
                place = piece.moved(window.top, window.left)
                self._fill(place, values[:, *piece.slices], valid[piece.slices])
            return
        raster = self._file.read(part)
        if not raster.valid.any():
            return
        # The values.
        options = self._options | {
            "src_transform": self._own.window(part.top, part.left).affine,
            "dst_transform": self._place.window(window.top, window.left).affine,
        }
        resamplings, reproject = self._warp.Resampling, self._warp.reproject
        source = np.ascontiguousarray(np.moveaxis(raster.values, -1, 0))
        gaps = {}
        if self._method != "nearest" and not raster.valid.all():
            # NaN keeps what is not there out of every sum. float64 for int32, float32 holds the others exactly.
            source = source.astype(np.float64 if source.dtype == np.int32 else np.float32)
            source[:, ~raster.valid] = np.nan
            gaps = {"src_nodata": np.nan, "dst_nodata": np.nan}
        target = np.zeros(values.shape, source.dtype)
        reproject(source, target, resampling=resamplings[self._method], **options, **gaps)
        if is_inside and raster.valid.all():
            values[:], valid[:] = target, True
            return
        # Which of them are there.
        covered = resamplings.average if self._method == "average" else resamplings.nearest
        mask = np.zeros(valid.shape, dtype=np.float32)
        reproject(raster.valid.astype(np.float32), mask, resampling=covered, **options)
        valid[:] = (mask >= MINIMUM_SUPPORT) & np.isfinite(target).all(axis=0)
        target = np.where(valid, target, 0)
        if target.dtype != values.dtype:  # as GDAL rounds
            limits = np.iinfo(values.dtype)
            target = np.floor(target + 0.5).clip(limits.min, limits.max)
        values[:] = target

    def _part_below(self, window: Window) -> tuple[Window, bool]:
        """The part of the file that a window looks at, and whether that lies within the file on all sides."""
        place = self._place.window(window.top, window.left)
        rows, columns = footprint(Grid(window[2:], place), Grid(self._info.size, self._own))
        known = np.isfinite(rows) & np.isfinite(columns)
        if not known.any():
            return Window(0, 0, 0, 0), False
        spans = []
        for positions, length in zip((rows[known], columns[known]), self._info.size, strict=True):
            # What lies between the places that were looked at may reach a little beyond them.
            reach = self._reach + np.ptp(positions) / (64 if known.all() else 20)
            spans.append((int(np.floor(positions.min() - reach)), int(np.ceil(positions.max() + reach)), length))
        is_inside = bool(known.all()) and all(start >= 0 and end <= length for start, end, length in spans)
        beyond = self._reach if self._method == "average" else 0  # what a pixel covers of nothing counts as well
        (top, bottom), (left, right) = (
            (max(-beyond, start), min(end, length + beyond)) for start, end, length in spans
        )
        return Window(top, left, bottom - top, right - left), is_inside
