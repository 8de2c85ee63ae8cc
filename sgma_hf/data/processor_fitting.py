"""Statistics of the processor: of the windows that a model is trained on, or of what its encoder learned from."""

import itertools
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from transformers import BaseImageProcessor
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from transformers.utils import cached_file

from ..model.dates_sgma import observations
from ..model.image_processing_sgma import SgmaImageProcessor
from .rows import decode_row


def fit_processor(
    rows: Iterable[Mapping[str, Any]],
    modalities: Sequence[str],
    modality_channels: Sequence[int],
    *,
    crop_size: int | None,
    **options: Any,
) -> SgmaImageProcessor:
    """Fit a processor to labelled rows, in one pass: whole rasters, where every pixel counts once, or crops.

    Crops are taken of modalities with a reference level, where the window decides the values: a height above the
    lowest point of a crop is smaller than one above the lowest point of a hilly scene. `crop_size` is their side in
    pixels of the label; None trains on whole rows. Options are other fields of the processor: `nodata`, `num_labels`,
    ... Errors are those of `SgmaImageProcessor.fit`.
    """
    unfitted = SgmaImageProcessor(modalities, modality_channels, **options)
    rasters = rasters_as_trained_on(rows, unfitted, crop_size=crop_size)
    return SgmaImageProcessor.fit(rasters, modalities, modality_channels, **options)


def refit_processor(
    processor: SgmaImageProcessor, rows: Iterable[Mapping[str, Any]], modalities: Sequence[str], crop_size: int | None
) -> None:
    """Replace mean, standard deviation and range of some modalities of a processor, whose sensors its model is new to.

    Rows and `crop_size` are those of `fit_processor`.
    """
    unknown = [name for name in modalities if name not in processor.modalities]
    if unknown:
        raise ValueError(f"The processor has no modalities {unknown}; it has {processor.modalities}.")
    places = [processor.modalities.index(name) for name in modalities]
    kept = {
        field: [getattr(processor, field)[place] for place in places]
        for field in ("rescale_factor", "nodata", "reference_level")
    }
    channels = [processor.modality_channels[place] for place in places]
    fitted = fit_processor(rows, modalities, channels, crop_size=crop_size, **kept)
    for field in ("image_mean", "image_std", "value_range"):
        for place, value in zip(places, getattr(fitted, field), strict=True):
            getattr(processor, field)[place] = value


def colour_modalities(
    modalities: Sequence[str], modality_channels: Sequence[int], dtypes: Sequence[str], named: Sequence[str] | None
) -> list[str]:
    """Modalities that a pretrained encoder can take for the colour images it learned from: three bands of 8 bits.

    Args:
        modalities: Names, as for `fit_processor`.
        modality_channels: Bands of each.
        dtypes: Stored dtype of each, as `DatasetMetadata.modality_dtypes`.
        named: Those that are wanted; None is all that fit, and `["none"]` none.

    Raises:
        ValueError: If one that is named does not fit, or is not there.
    """
    levels = SgmaImageProcessor(modalities, modality_channels).reference_level
    fields = zip(modalities, modality_channels, dtypes, levels, strict=True)
    fitting = [name for name, *kind in fields if kind == [3, "uint8", "none"]]
    if named is None or list(named) == ["none"]:
        return fitting if named is None else []
    unfit = [name for name in named if name not in fitting]
    if unfit:
        raise ValueError(
            f"Statistics of a pretrained encoder are for three bands of 8 bits, and {unfit} of the modalities "
            f"{list(modalities)} have or are none; {fitting or 'none of them'} can take them."
        )
    return list(named)


def normalize_as_encoder(
    processor: SgmaImageProcessor, backbone: str, chosen: Sequence[str], seen: Sequence[str] | None = None
) -> str:
    """Give modalities of a fitted processor the mean and standard deviation of a pretrained encoder's images.

    They are those of `preprocessor_config.json` beside the weights, a folder or an id on the Hub, or of timm's
    `config.json`, or else ImageNet's. `chosen` is what `colour_modalities` gives, of the modalities
    that the encoder has `seen`, None for all. Returns a line about what each of these is normalised by.
    """
    mean, std, source = _encoder_statistics(backbone)
    for index in map(processor.modalities.index, chosen):
        factor = processor.rescale_factor[index]
        processor.image_mean[index] = [value * factor for value in mean]
        processor.image_std[index] = [value * abs(factor) for value in std]
    others = ", ".join(name for name in seen or processor.modalities if name not in chosen)
    parts = [f"{', '.join(chosen)} normalised by {source}"] * bool(chosen)
    parts += [f"{others} {'' if chosen else 'normalised '}by the training rows"] * bool(others)
    return f"encoder: pretrained, {backbone}; {', '.join(parts)}"


def _encoder_statistics(backbone: str) -> tuple[list[float], list[float], str]:
    """Mean and standard deviation per band in steps of 8 bits, and where they are from."""
    for file in ("preprocessor_config.json", "config.json"):
        path = cached_file(backbone, file, _raise_exceptions_for_missing_entries=False)
        content = {} if path is None else json.loads(Path(path).read_text(encoding="utf-8"))
        content = {name: value for name, value in content.items() if value is not None}
        timm = content.get("pretrained_cfg", {})
        mean, std = content.get("image_mean", timm.get("mean")), content.get("image_std", timm.get("std"))
        if mean is not None and std is not None:
            if not content.get("do_normalize", True):
                mean, std = [0.0] * 3, [1.0] * 3
            steps = 1 / content.get("rescale_factor", 1 / 255) if content.get("do_rescale", True) else 1.0
            mean, std = (np.broadcast_to(np.asarray(values, dtype=np.float64), 3) * steps for values in (mean, std))
            return mean.tolist(), std.tolist(), f"its {file}"
    mean, std = ([255 * value for value in values] for values in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))
    return mean, std, "ImageNet's mean and deviation"


def rasters_as_trained_on(
    rows: Iterable[Mapping[str, Any]], processor: BaseImageProcessor, *, crop_size: int | None
) -> Iterator[Mapping[str, Any]]:
    """Rasters, or series of them, by name: each row's whole ones, then crops of those with a reference level."""
    levels = zip(processor.modalities, processor.reference_level, strict=True)
    levelled = [name for name, level in levels if level != "none"]
    for row in rows:
        images, label = decode_row(row, processor.modalities)
        sizes = [image.shape[:2] for name in processor.modalities for image in observations(images, name)]
        size = max(sizes, default=(0, 0)) if label is None else label.shape
        cropped = {} if crop_size is None else {name: images[name] for name in levelled if images[name] is not None}
        yield {"id": row.get("id"), **images, **dict.fromkeys(cropped)}
        for name in cropped:
            cuts = [_cuts(size, crop_size, image) for image in observations(images, name)]
            for crops in zip(*cuts, strict=True):  # of one place, on all dates
                yield {"id": row.get("id"), name: list(crops)}


def _cuts(size: tuple[int, int], crop_size: int, image: np.ndarray) -> Iterator[np.ndarray]:
    """Crops of a raster that spans a grid of so many pixels."""
    axes = zip(size, image.shape[:2], strict=True)
    return (image[cut] for cut in itertools.product(*(_even_cuts(side, crop_size, cells) for side, cells in axes)))


def _even_cuts(side: int, crop_size: int, cells: int) -> list[slice]:
    """Cut a side of so many pixels into as few crops as cover it, evenly spread, as slices of a raster's cells."""
    extent = min(side, crop_size)
    starts = np.linspace(0, side - extent, math.ceil(side / extent)).round().astype(int).tolist()
    return [slice(start * cells // side, -(-(start + extent) * cells // side)) for start in starts]
