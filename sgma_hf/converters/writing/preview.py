"""One small picture of a row, for viewers that show no numbers of 32 bits."""

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from ...data.metadata import DatasetMetadata
from ...model.image_transforms_sgma import valid_pixels


PREVIEW_PIXELS = 128  # longer side of a modality at most: aerial scenes grow by 2.6 %


def encode_preview(metadata: DatasetMetadata, images: Mapping[str, np.ndarray | None]) -> dict[str, Any]:
    """The modalities side by side, as JPEG: from the 2nd to the 98th percentile of each; black where none is there."""
    from ...visualization.boards import bands_to_show, stretch  # takes torch along

    size = next(_thinned(array).shape[:2] for array in images.values() if array is not None)
    panels = []
    for name, nodata in zip(metadata.modalities, metadata.nodata, strict=True):
        panel = np.zeros((*size, 3), np.uint8)
        if images[name] is not None:
            values = _thinned(images[name])
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


def _thinned(array: np.ndarray) -> np.ndarray:
    """Every n-th pixel, (height, width, channels)."""
    step = -(-max(array.shape[:2]) // PREVIEW_PIXELS)
    return np.atleast_3d(array)[::step, ::step]
