"""What happens to single rasters on their way into SGMA: decoding, coverage, reference level, resampling, moments."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from .limits_sgma import IGNORE_INDEX
from .pictures_sgma import DECODE_ERRORS, open_image, picture_values, shown_mode, stored_file


REFERENCE_LEVELS = ("none", "minimum", "robust_minimum", "median")
# float32 and float64 rasters often carry the lowest number of their type as nodata, rounded or not: no measurement.
LARGEST_VALUE = float(np.float32(3.4e38))  # a little less, as float32 holds it
# What fits into a processor's cache is looked at several times as fast.
_VALUES_AT_ONCE = 2**20
# Half of the footprint of a resampled pixel has to be there; the slack is for the rounding of float32 weights.
MINIMUM_SUPPORT = 0.5 - 1e-5
SAMPLE_SIZE = 2**22  # values


@dataclass
class Raster:
    """A decoded raster: values (channels, height, width) of any real dtype; True where valid, or None: everywhere."""

    values: np.ndarray
    valid: np.ndarray | None = None

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.values.shape[1], self.values.shape[2]


def _decode(value: Any, *, channels: int | None, where: str) -> tuple[np.ndarray, np.ndarray | None, str | None]:
    """Turn what a user may pass into an array, its valid pixels or bands (or None) and its layout, where known.

    `channels` is what a modality has; None leaves pictures as they are stored, as labels need: indices of a palette.
    """
    value = stored_file(value)
    try:
        if isinstance(value, str | os.PathLike | bytes | bytearray | memoryview):
            value = open_image(value)
        if isinstance(value, Image.Image):
            array, valid = picture_values(value, as_stored=channels is None), None
            # Where it counts as one of the modality's bands, a stored alpha band is values.
            stored = value.mode == shown_mode(value) and array.shape[-1] == channels
            if channels is not None and shown_mode(value) in ("LA", "RGBA") and not stored:
                array, valid = array[..., :-1], array[..., -1] > 0
            return array, valid, "pil"
    except DECODE_ERRORS as error:
        name = f" {os.fspath(value)!r}" if isinstance(value, str | os.PathLike) else ""
        raise ValueError(
            f"{where}: the image{name} cannot be read ({error}). Replace the file, or pass an array, or None if the "
            "modality is missing."
        ) from error
    if isinstance(value, np.ma.MaskedArray):
        return value.data, ~np.ma.getmaskarray(value), None
    if isinstance(value, np.ndarray | list | tuple):
        try:
            return np.asarray(value), None, None
        except ValueError as error:
            raise ValueError(f"{where}: the nested lists are no raster ({error}). Pass an array.") from error
    import torch  # only who passes a tensor waits for it

    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        return (value.float() if value.dtype == torch.bfloat16 else value).numpy(), None, "channels_first"
    raise TypeError(f"{where}: got a {type(value).__name__}; expected an array, a PIL image, a path or None.")


def _channels_first(array: np.ndarray, channels: int, *, layout: str | None, where: str) -> np.ndarray:
    """View an array as (channels, height, width). Where both ends fit and no layout is known, channels are last."""
    if array.ndim == 2 and channels == 1:
        return array[None]
    if array.ndim == 3 and array.shape[2] == channels and (layout != "channels_first" or array.shape[0] != channels):
        return array.transpose(2, 0, 1)
    if array.ndim == 3 and array.shape[0] == channels and layout != "pil":  # PIL's channels are always last
        return array
    expected = f"({channels}, height, width) or (height, width, {channels})"
    raise ValueError(
        f"{where}: got shape {array.shape}; expected {'(height, width), ' if channels == 1 else ''}{expected}. "
        "Select the bands, or set `modality_channels` to what the modality has."
    )


def read_raster(value: Any, channels: int, *, layout: str | None, where: str) -> Raster:
    """Decode one raster to (channels, height, width); alpha and masked arrays give its valid pixels."""
    array, valid, known_layout = _decode(value, channels=channels, where=where)
    layout = known_layout or layout
    if array.dtype.kind not in "buif":
        raise TypeError(f"{where}: got dtype {array.dtype}; expected bool, integers or floating point numbers.")
    if array.size == 0:
        raise ValueError(f"{where}: got shape {array.shape}, no pixel at all. Pass None if the modality is missing.")
    values = _channels_first(array, channels, layout=layout, where=where)
    if valid is not None and valid.shape == array.shape:
        valid = _channels_first(valid, channels, layout=layout, where=where).all(0)
    return Raster(values.view(np.uint8) if values.dtype == bool else values, valid)


def valid_pixels(
    values: np.ndarray,
    nodata: Sequence[float],
    *,
    declared: Sequence[float | None] = (),
    channel_axis: int = -1,
    gaps: Any = None,
) -> np.ndarray:
    """Which pixels of a raster hold a measurement, bool (height, width): the one rule of what is missing.

    A pixel is missing where any of its bands is: masked, NaN, infinite, of a magnitude from 3.4e38 on, or equal to a
    nodata value: one of `nodata`, which count in every band, or the band's own one of `declared`, None without one.
    In integers 0 counts only where all bands are 0: a dark band is no hole, but the edge of a swath is. Measured
    floating point numbers are hardly ever 0 in one band alone, so there 0 counts as any other value does.

    `gaps` is told by `add(missing, valid, num_bands)` which bands are missing, as `_missing_bands` has it.
    """
    bands = values[None] if values.ndim == 2 else np.moveaxis(values, channel_axis, 0)
    valid = np.empty(bands.shape[1:], dtype=bool)
    rows = max(1, _VALUES_AT_ONCE // max(1, len(bands) * bands.shape[2]))
    for top in range(0, len(valid), rows):
        missing = _missing_bands(bands[:, top : top + rows], nodata, declared)
        part = valid[top : top + rows]
        part[...] = True if missing is None else ~missing.any(0)
        if gaps is not None:
            gaps.add(missing, part, len(bands))
    return valid


def _missing_bands(bands: np.ndarray, nodata: Sequence[float], declared: Sequence[float | None]) -> np.ndarray | None:
    """Where each band is missing, bool (bands, height, width), or (1, height, width) if all are together; or None."""
    mask, bands = np.ma.getmask(bands), np.ma.getdata(bands)
    missing = None if mask is np.ma.nomask else np.array(mask)
    is_float = bands.dtype.kind == "f"
    if len(set(declared)) == 1:
        nodata, declared = [*nodata, declared[0]], ()
    numbers = [(slice(None), number) for number in dict.fromkeys(nodata) if number is not None]
    numbers += [(slice(band, band + 1), number) for band, number in enumerate(declared) if number is not None]
    if bands.size == 0 or (not numbers and not is_float):
        return missing
    # Minimum and maximum carry NaN on, and are much quicker than a look at every value. Integers need one of them.
    low = bands.min().item() if is_float or any(number <= 0 for _, number in numbers) else -np.inf
    high = bands.max().item() if is_float or any(number > 0 for _, number in numbers) else np.inf
    # A large number becomes inf in float32 and float16, where it means the same.
    with np.errstate(over="ignore"):
        if is_float and not (-LARGEST_VALUE < low and high < LARGEST_VALUE):
            absent = ~(np.abs(bands) < LARGEST_VALUE)
            missing = absent if missing is None else missing | absent
        zero = False
        for band, number in numbers:
            if not is_float and not float(number).is_integer():
                continue
            number = bands.dtype.type(number) if is_float else _exact(number, bands.dtype)
            if number < low or number > high:
                continue
            if number == 0 and not is_float:
                zero = True
                continue
            if missing is None and band == slice(None):
                missing = bands == number
                continue
            if missing is None:
                missing = np.zeros(bands.shape, dtype=bool)
            missing[band] |= bands[band] == number
    if zero:
        hit = bands[:1] == 0
        for band in bands[1:]:
            if not hit.any():
                return missing
            hit &= band == 0
        missing = hit if missing is None else missing | hit
    return missing


def _exact(number: float, dtype: np.dtype) -> int:
    """A whole number as integers of a type hold it; the largest of 64 bits is no float."""
    largest = 1 if dtype.kind == "b" else int(np.iinfo(dtype).max)
    return largest if number == float(largest) else int(number)


def find_covered(raster: Raster, nodata: Sequence[float]) -> np.ndarray | None:
    """The `valid_pixels` of a raster, bool (height, width), or None if all are."""
    valid = valid_pixels(raster.values, nodata, channel_axis=0)
    if raster.valid is not None:
        valid &= raster.valid
    return None if valid.all() else valid


def measure_level(values: np.ndarray, covered: np.ndarray | None, kind: str) -> float:
    """Reference level of the covered pixels, over all bands, in the raster's own unit."""
    if kind == "none":
        return 0.0
    pool = values if covered is None else values[:, covered]
    if kind == "minimum":
        return float(pool.min())
    if kind == "robust_minimum":
        return float(np.percentile(pool, 2, method="lower"))
    middle = [(pool.size - 1) // 2, pool.size // 2]
    return float(np.partition(pool, middle, axis=None)[middle].mean(dtype=np.float64))


def shared_level(parts: Sequence[tuple[np.ndarray, np.ndarray | None]], kind: str) -> float:
    """Reference level of one or more rasters together, as `measure_level` takes them: of the dates of a series."""
    if len(parts) == 1 or kind == "none":
        return measure_level(*parts[0], kind)
    pools = [
        values[:, slice(None) if covered is None else covered].reshape(len(values), -1) for values, covered in parts
    ]
    return measure_level(np.concatenate(pools, axis=1), None, kind)


def subtract(values: np.ndarray, level: float | np.ndarray, mean: np.ndarray, *, out: np.ndarray) -> None:
    """Write (values - level) - mean to a float32 array; `mean` holds one number per band, `level` one, or per pixel.

    The level goes first and in float64 (by NumPy's buffered casting, without a copy of the array), so that a raster
    and the same raster 460 m higher up give the same bits.
    """
    mean = mean.astype(np.float32)[:, None, None]
    with np.errstate(over="ignore", invalid="ignore"):  # Missing values may be anything; they are set to 0 later.
        if np.ndim(level) == 0 and level == 0.0:
            np.subtract(values, mean, out=out, dtype=np.float32, casting="same_kind")
        else:
            np.subtract(values, level, out=out, dtype=np.float64, casting="same_kind")
            out -= mean


@dataclass
class AxisWeights:
    """How one axis is resampled; both arrays are (num_target, cells), of the dtype to compute in."""

    values: np.ndarray  # what each target pixel takes from each source cell; rows sum to 1
    footprint: np.ndarray  # the cells that decide whether the pixel counts as covered
    cells: slice  # the source cells that the columns are for


def interpolation_weights(
    num_source: int, start: float, length: float, num_target: int, dtype: type = np.float32
) -> AxisWeights:
    """Weights that resample one axis, with pixel centres at half positions (`align_corners=False`).

    Linear interpolation where the target is the finer grid or the same, and the footprint of a pixel is the cell that
    its centre lies in. Where the target is the coarser grid, both are the area of the target pixel. `start` and
    `length` say where the target lies, in source cells from the source's edge.
    """
    step = length / num_target
    position = np.arange(num_target)[:, None]
    if step > 1:
        left = start + step * position
        first, stop = int(left[0, 0]), min(num_source, int(np.ceil(left[-1, 0] + step)))
        cells = np.arange(first, stop)
        weights = np.minimum(left + step, cells + 1) - np.maximum(left, cells)
    else:
        centre = np.clip(start + step * (position + 0.5) - 0.5, 0, num_source - 1)
        first, stop = int(centre[0, 0]), min(num_source, int(centre[-1, 0]) + 2)
        cells = np.arange(first, stop)
        weights = 1 - np.abs(centre - cells)
    weights[weights < 1e-9] = 0
    used = np.flatnonzero(weights.any(0))  # A cell of no weight must not take part in the reference level either.
    first, stop = first + int(used[0]), first + int(used[-1]) + 1
    weights = weights[:, used[0] : used[-1] + 1]
    weights /= weights.sum(1, keepdims=True)
    weights = footprint = weights.astype(dtype)
    if step <= 1:  # The slack makes the choice between two cells at equal distance the same in every window.
        footprint = (np.floor(centre + 0.5 + 1e-9) == np.arange(first, stop)).astype(dtype)
    return AxisWeights(weights, footprint, slice(first, stop))


def resample(
    values: np.ndarray, covered: np.ndarray | None, rows: AxisWeights, columns: AxisWeights, *, out: np.ndarray
) -> np.ndarray | None:
    """Resample (channels, height, width) axis by axis, each pixel from the covered ones among its sources alone.

    `values` are of the weights' dtype and 0 where not covered, `out` is undefined there. Returned is the new
    coverage, True where at least half of a pixel's footprint is covered. None stands for covered everywhere.
    """
    np.matmul(rows.values @ values, columns.values.T, out=out)
    if covered is None:
        return None
    covered = covered.astype(rows.values.dtype)
    new_covered = rows.footprint @ covered @ columns.footprint.T >= MINIMUM_SUPPORT
    support = rows.values @ covered @ columns.values.T
    out /= np.where(new_covered, support, 1)
    return None if new_covered.all() else new_covered


def pick_nearest(label: np.ndarray, window: tuple[int, int, int, int], size: tuple[int, int]) -> np.ndarray:
    """Bring a window (top, left, height, width) of a label to a size, each pixel from the one at its centre."""
    picked = [
        start + np.minimum(((np.arange(new) + 0.5) * (old / new)).astype(int), old - 1)
        for start, old, new in zip(window[:2], window[2:], size, strict=True)
    ]
    return label[np.ix_(*picked)]


def same_extent(a: tuple[int, int], b: tuple[int, int]) -> bool:
    """Whether two grids may span the same ground: with square cells, no side is a whole coarse cell off."""
    for coarse, fine in ((a, b), (b, a)):
        lowest = max(fine[axis] / (coarse[axis] + 1) for axis in (0, 1))
        highest = min(fine[axis] / (coarse[axis] - 1) if coarse[axis] > 1 else np.inf for axis in (0, 1))
        if lowest < highest:
            return True
    return False


def read_label(value: Any, *, num_labels: int | None, index: int) -> np.ndarray | None:
    """Decode a label map to integers of shape (height, width), checked against the number of classes."""
    if value is None:
        return None
    where = f"`segmentation_maps[{index}]`"
    array, valid, _ = _decode(value, channels=None, where=where)
    if array.dtype.kind not in "bui":
        raise ValueError(
            f"{where}: got dtype {array.dtype}; expected class ids as integers, {IGNORE_INDEX} for ignored pixels. "
            "Round and convert it, for instance with `.astype('uint8')`, if its values are ids."
        )
    if array.ndim == 3 and 1 in (array.shape[0], array.shape[2]):
        array = array[0] if array.shape[0] == 1 else array[..., 0]
    if array.ndim != 2 or array.size == 0:
        raise ValueError(
            f"{where}: got shape {array.shape}; expected (height, width) with one class id per pixel. Colour-coded "
            "labels have to be converted to ids first."
        )
    array = array.view(np.uint8) if array.dtype == bool else array
    if valid is not None and valid.size == array.size:  # a masked array
        array = np.where(valid.reshape(array.shape), array.astype(np.int64), IGNORE_INDEX)
    limit = IGNORE_INDEX if num_labels is None else num_labels
    wrong = (array >= limit) & (array != IGNORE_INDEX)
    if array.dtype.kind == "i":
        wrong |= array < 0
    if wrong.any():
        raise ValueError(
            f"{where}: has the ids {np.unique(array[wrong])[:10].tolist()}; expected 0 to {limit - 1}, or "
            f"{IGNORE_INDEX} for ignored pixels. Remap the ids, or raise `num_labels`."
        )
    return array


class Moments:
    """Running mean and sum of squared deviations per band, in float64 (Chan et al., 1979)."""

    def __init__(self, channels: int):
        self.count, self.mean, self.squares = 0, np.zeros(channels), np.zeros(channels)

    def update(self, values: np.ndarray, covered: np.ndarray | None, level: float = 0.0) -> None:
        """Merge in the covered pixels of one raster (channels, height, width), above its reference level."""
        count = values[0].size if covered is None else int(covered.sum())
        means, squares = np.zeros_like(self.mean), np.zeros_like(self.squares)
        for band, plane in enumerate(values):  # One band at a time keeps the float64 copy small.
            sample = plane.ravel() if covered is None else plane[covered]
            if sample.dtype == np.uint8:  # From a histogram: exact, and several times as fast.
                counts, sample = np.bincount(sample, minlength=256), np.arange(256) - level
                means[band] = counts @ sample / count
                squares[band] = counts @ (sample - means[band]) ** 2
            else:
                sample = sample.astype(np.float64) - level
                means[band] = sample.mean()
                sample -= means[band]
                # Not by BLAS: its threads, waiting for work, double the time of a conversion.
                squares[band] = np.square(sample, out=sample).sum()
        self.merge(count, means, squares)

    def merge(self, count: int, mean: np.ndarray, squares: np.ndarray) -> None:
        """Add the moments of `count` more pixels, at least one."""
        total = self.count + count
        difference = mean - self.mean
        self.mean += difference * count / total
        self.squares += squares + difference**2 * self.count * count / total
        self.count = total


class ValueSample:
    """Values of some rasters' bands, evenly picked, a few million at most, of which quantiles are taken."""

    def __init__(self):
        self._parts: list[np.ndarray] = []  # (channels, pixels), float32
        self._per_raster = 4096

    def update(self, values: np.ndarray, covered: np.ndarray | None, level: float | np.ndarray = 0.0) -> None:
        """Add some of the covered pixels, at least one, of a raster (channels, height, width), above its level."""
        places = np.arange(values[0].size) if covered is None else np.flatnonzero(covered)
        picked = np.unravel_index(places[:: -(-len(places) // self._per_raster)], values.shape[1:])
        above = values[:, *picked] - np.asarray(level, dtype=np.float64)[picked if np.ndim(level) else ...]
        self._parts.append(above.astype(np.float32))
        if sum(part.size for part in self._parts) > SAMPLE_SIZE and self._per_raster > 1:
            self._parts, self._per_raster = [part[:, ::2] for part in self._parts], self._per_raster // 2

    def quantiles(self, *shares: float) -> np.ndarray:
        """Quantiles per band, float64 (number of shares, channels)."""
        return np.quantile(np.concatenate(self._parts, axis=1).astype(np.float64), shares, axis=1)
