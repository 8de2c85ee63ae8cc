"""Whether rasters hold values of the scale that a model was trained on: metres and not feet, 8 and not 16 bit."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from transformers import BaseImageProcessor

from ..model.dates_sgma import observations
from ..model.image_transforms_sgma import find_covered, shared_level
from ..model.image_transforms_sgma import read_raster as decode
from .processor_fitting import rasters_as_trained_on
from .windows import Window


# What tells held-out rasters of real data sets from the same in another unit; docs/maps.md has the figures.
LARGEST_SHIFT = 4.0  # of the mean, in standard deviations
LARGEST_REACH = 1.6  # of the highest values, in ranges trained on
SMALLEST_SIZE = 1 / 25  # of the values about 0, in those trained on
FEW = 0.05  # of the windows, which may be whatever they are
ROWS_LOOKED_AT = 64
WAY_ON = "go on with `--allow_other_scale`"


class ValueScale:
    """Gathers what windows hold, as the processor takes them, and compares it with what that was fitted to."""

    def __init__(self, processor: BaseImageProcessor):
        self._processor = processor
        # Of every window, per band: mean, root mean square, and where 1 % and 99 % of the values lie below.
        self._windows: dict[str, list[np.ndarray]] = {name: [] for name in processor.modalities}

    def update(
        self,
        images: Mapping[str, Any],
        levels: Mapping[str, np.ndarray] | None = None,
        windows: Sequence[Window] | None = None,
    ) -> None:
        """Add windows of rasters or series by modality, channels last, masked or not; `levels` as for the processor.

        `windows` None takes the rasters as one.
        """
        processor = self._processor
        for m, (name, channels) in enumerate(zip(processor.modalities, processor.modality_channels, strict=True)):
            rasters = []
            for value in observations(images, name):
                raster = decode(value, channels, layout="channels_last", where=f"modality {name!r}")
                covered = find_covered(raster, processor.nodata[m])
                rasters.append((raster.values, np.ones(raster.size, dtype=bool) if covered is None else covered))
            level = None if levels is None else levels.get(name)
            whole = []  # windows without a gap, which are measured at once
            for place in [window.slices for window in windows] if windows else [(slice(None), slice(None))]:
                cuts = [(values[:, *place].astype(np.float64), covered[place]) for values, covered in rasters]
                cuts = [(pixels, inside) for pixels, inside in cuts if inside.any()]
                if not cuts:
                    continue
                above = shared_level(cuts, processor.reference_level[m]) if level is None else level[place]
                for pixels, inside in cuts:
                    pixels = (pixels - above) * processor.rescale_factor[m]
                    if inside.all():
                        whole.append(pixels.reshape(channels, -1))
                    else:
                        self._windows[name].append(_measure(pixels[:, inside]))
            for _, alike in itertools.groupby(whole, key=np.shape):
                self._windows[name].extend(_measure(np.stack(list(alike))))

    def others(self) -> dict[str, str]:
        """The modalities that are on another scale, and for each what was seen and what was expected."""
        found = {name: self._compare(m, self._windows[name]) for m, name in enumerate(self._processor.modalities)}
        return {name: text for name, text in found.items() if text is not None}

    def _compare(self, m: int, windows: Sequence[np.ndarray]) -> str | None:
        if not windows:
            return None
        processor, held = self._processor, np.stack(windows)  # (windows, 4, C)
        mean, std = np.array(processor.image_mean[m]), np.array(processor.image_std[m])
        middle, size = np.median(held[:, :2], axis=0)
        lowest, highest = np.quantile(held[:, 2], FEW, axis=0), np.quantile(held[:, 3], 1 - FEW, axis=0)
        shift = np.sqrt(np.mean(((middle - mean) / std) ** 2))
        size = np.sqrt(np.mean(size**2) / np.mean(mean**2 + std**2))
        reach, is_apart, known = 0.0, shift > 1.5, processor.value_range[m]
        if known is not None:
            bottom, top = np.transpose(known)
            reach = np.median((highest - bottom) / np.maximum(top - bottom, std))
            is_apart |= np.median(highest - bottom) < 0
        # Flat ground is near its own lowest point wherever it is.
        is_small = size < SMALLEST_SIZE and is_apart and processor.reference_level[m] == "none"
        if not (shift > LARGEST_SHIFT or reach > LARGEST_REACH or is_small):
            return None
        band, factor = int(np.argmax(np.abs(middle - mean) / std)), processor.rescale_factor[m]
        expected = f"mean {mean[band] / factor:.4g}, standard deviation {std[band] / abs(factor):.4g}"
        if known is not None:
            expected += f", {_span(bottom[band] / factor, top[band] / factor)}"
        where = "" if len(mean) == 1 else f" in band {band + 1}"
        above = "" if processor.reference_level[m] == "none" else " (above the reference level)"
        held = f"mean {middle[band] / factor:.4g}, {_span(lowest[band] / factor, highest[band] / factor)}"
        return f"it holds{where} {held}; the model was trained on {expected}{above}"


def _measure(pixels: np.ndarray) -> np.ndarray:
    """Mean, root mean square, 1 % and 99 % of (..., bands, pixels), as (..., 4, bands)."""
    places, ordered = np.array([0.01, 0.99]) * (pixels.shape[-1] - 1), np.sort(pixels, axis=-1)
    below = places.astype(int)
    low, high = ordered[..., below], ordered[..., np.minimum(below + 1, pixels.shape[-1] - 1)]
    ends = low + (places - below) * (high - low)  # as `np.quantile`, which takes longer than all the rest
    return np.stack([pixels.mean(-1), np.sqrt(np.square(pixels).mean(-1)), ends[..., 0], ends[..., 1]], axis=-2)


def _span(*ends: float) -> str:
    return f"most from {min(ends):.4g} to {max(ends):.4g}"


def rows_on_another_scale(
    processor: BaseImageProcessor,
    rows: Sequence[Mapping[str, Any]],
    crop_size: int | None,
    *,
    way_on: str = WAY_ON,
) -> str | None:
    """What to say of rows whose modalities are on another scale, by 64 rows spread over them; None if none is.

    `crop_size` as for `fit_processor`; `way_on` is what can be done beside converting them.
    """
    scale = ValueScale(processor)
    chosen = np.unique(np.linspace(0, len(rows) - 1, min(len(rows), ROWS_LOOKED_AT)).astype(int)).tolist()
    for images in rasters_as_trained_on((rows[index] for index in chosen), processor, crop_size=crop_size):
        scale.update(images)
    return describe({f"The data set's {name!r}": text for name, text in scale.others().items()}, way_on)


def describe(others: Mapping[str, str], way_on: str = WAY_ON) -> str | None:
    """One line on rasters of another scale, by what they are; None if there is none."""
    if not others:
        return None
    found = "; ".join(f"{what}: {text}" for what, text in others.items())
    return (
        f"{found}. Is it another unit or bit depth (feet for metres, 16 for 8 bit, linear for dB, an offset)? Convert "
        f"it to what the model knows, or {way_on}."
    )
