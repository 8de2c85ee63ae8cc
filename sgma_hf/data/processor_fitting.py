"""Statistics of the processor, from the windows that a model is trained on."""

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from transformers import BaseImageProcessor

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


def rasters_as_trained_on(
    rows: Iterable[Mapping[str, Any]], processor: BaseImageProcessor, *, crop_size: int | None
) -> Iterator[Mapping[str, Any]]:
    """Rasters by name: each row's whole ones, then the crops of those with a reference level one by one."""
    levels = zip(processor.modalities, processor.reference_level, strict=True)
    levelled = [name for name, level in levels if level != "none"]
    for row in rows:
        images, label = decode_row(row, processor.modalities)
        sizes = [image.shape[:2] for image in images.values() if image is not None]
        size = max(sizes, default=(0, 0)) if label is None else label.shape
        cropped = {} if crop_size is None else {name: images[name] for name in levelled if images[name] is not None}
        yield {"id": row.get("id"), **images, **dict.fromkeys(cropped)}
        for name, image in cropped.items():
            vertical, horizontal = (
                _even_cuts(side, crop_size, cells) for side, cells in zip(size, image.shape[:2], strict=True)
            )
            for cut in itertools.product(vertical, horizontal):
                yield {"id": row.get("id"), name: image[cut]}


def _even_cuts(side: int, crop_size: int, cells: int) -> list[slice]:
    """Cut a side of so many pixels into as few crops as cover it, evenly spread, as slices of a raster's cells."""
    extent = min(side, crop_size)
    starts = np.linspace(0, side - extent, math.ceil(side / extent)).round().astype(int).tolist()
    return [slice(start * cells // side, -(-(start + extent) * cells // side)) for start in starts]
