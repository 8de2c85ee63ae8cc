"""Removes specks from a map of classes."""

import warnings

import numpy as np

from ..raster import require_rasterio


def remove_specks(labels: np.ndarray, size: int, ignored: int) -> np.ndarray:
    """Give patches of one class below `size` pixels to the largest patch beside them, as GDAL's sieve does.

    `labels` is uint8 (height, width). Pixels that touch at a corner alone are two patches. What is `ignored` stays,
    and takes nothing.
    """
    rasterio = require_rasterio("the map")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        sieved = rasterio.features.sieve(labels, size, mask=labels != ignored, connectivity=4)
    return np.where(labels == ignored, labels, sieved)
