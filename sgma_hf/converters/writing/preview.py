"""One small picture of a row, for viewers that show no numbers of 32 bits."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from ...data.metadata import DatasetMetadata
from ...model.dates_sgma import observations
from ...model.image_transforms_sgma import valid_pixels


PREVIEW_PIXELS = 128  # longer side of a modality at most: aerial scenes grow by 2.6 %


def encode_preview(metadata: DatasetMetadata, images: Mapping[str, Any]) -> dict[str, Any]:
    """The modalities side by side, as JPEG: from the 2nd to the 98th percentile of each; black where none is there.

    Of a series, the date with the most valid pixels is shown.
    """
    from ...visualization.boards import bands_to_show, stretch  # takes torch along

    rasters = {name: [_thinned(array) for array in observations(images, name)] for name in metadata.modalities}
    size = next(array.shape[:2] for arrays in rasters.values() for array in arrays)
    panels = []
    for name, nodata in zip(metadata.modalities, metadata.nodata, strict=True):
        panel = np.zeros((*size, 3), np.uint8)
        if rasters[name]:
            values = clearest(rasters[name], nodata)
            shown = valid_pixels(values, nodata)
            panel = stretch(values[..., bands_to_show(values.shape[2])], shown)[0] * shown[..., None]
        panels.append(panel)
    picture = np.zeros((max(len(panel) for panel in panels), sum(panel.shape[1] for panel in panels), 3), np.uint8)
    left = 0
    for panel in panels:
        picture[: len(panel), left : left + panel.shape[1]] = panel
        left += panel.shape[1]
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=75)
    return {"bytes": buffer.getvalue(), "path": None}


def clearest(rasters: Sequence[np.ndarray], nodata: Sequence[float]) -> np.ndarray:
    """The raster with the most valid pixels, the first of equals."""
    return max(rasters, key=lambda array: valid_pixels(array, nodata).sum())


def _thinned(array: np.ndarray) -> np.ndarray:
    """Every n-th pixel, (height, width, channels)."""
    step = -(-max(array.shape[:2]) // PREVIEW_PIXELS)
    return np.atleast_3d(array)[::step, ::step]
