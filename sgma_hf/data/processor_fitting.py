"""Statistics of the processor, from the windows that a model is trained on."""

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

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
    levels = SgmaImageProcessor(modalities, modality_channels, **options).reference_level
    levelled = [name for name, level in zip(modalities, levels, strict=True) if level != "none"]
    rasters = _rasters_as_trained_on(rows, modalities, levelled=levelled, crop_size=crop_size)
    return SgmaImageProcessor.fit(rasters, modalities, modality_channels, **options)


def refit_processor(
    processor: SgmaImageProcessor, rows: Iterable[Mapping[str, Any]], modalities: Sequence[str], crop_size: int | None
) -> None:
    """Replace mean and standard deviation of some modalities of a processor, whose sensors its model is new to.

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
    for place, mean, std in zip(places, fitted.image_mean, fitted.image_std, strict=True):
        processor.image_mean[place], processor.image_std[place] = mean, std


def _rasters_as_trained_on(
    rows: Iterable[Mapping[str, Any]], modalities: Sequence[str], *, levelled: Sequence[str], crop_size: int | None
) -> Iterator[Mapping[str, Any]]:
    """Rasters by name: each row's whole ones, then the crops of those with a reference level one by one."""
    for row in rows:
        images, label = decode_row(row, modalities)
        cropped = {} if crop_size is None else {name: images[name] for name in levelled if images[name] is not None}
        yield {"id": row["id"], **images, **dict.fromkeys(cropped)}
        for name, image in cropped.items():
            vertical, horizontal = (
                _even_cuts(side, crop_size, cells) for side, cells in zip(label.shape, image.shape[:2], strict=True)
            )
            for cut in itertools.product(vertical, horizontal):
                yield {"id": row["id"], name: image[cut]}


def _even_cuts(side: int, crop_size: int, cells: int) -> list[slice]:
    """Cut a side of so many pixels into as few crops as cover it, evenly spread, as slices of a raster's cells."""
    extent = min(side, crop_size)
    starts = np.linspace(0, side - extent, math.ceil(side / extent)).round().astype(int).tolist()
    return [slice(start * cells // side, -(-(start + extent) * cells // side)) for start in starts]
