"""Cuts scenes into tiles, whatever the resolution of each modality."""

from dataclasses import dataclass

import numpy as np

from ...data.windows import Window, cover, window_starts
from ...model.limits_sgma import IGNORE_INDEX
from ...rasters.raster import Raster


@dataclass(frozen=True)
class Tiling:
    """How scenes are cut. Tiles of training rows may overlap; in every other split a pixel is labelled once."""

    tile: int | None  # side of a tile in pixels; None keeps scenes whole
    stride: int | None = None  # pixels from one tile of a training scene to the next, at most `tile` (the default)

    def __post_init__(self):
        if self.tile is not None:
            window_starts(1, self.tile, self.stride)
        elif self.stride is not None:
            raise ValueError("A stride needs a tile size (--tile_size).")

    def windows(self, size: tuple[int, int], split: str) -> list[Window]:
        """The tiles of a scene of `size` (height, width), row by row."""
        return list(cover(size, self.tile, self.stride if split == "train" else None))

    def label(self, label: np.ndarray, window: Window, split: str) -> np.ndarray:
        """A window's label, outside the training split 255 where tiles before it (`windows`) label the pixel already.

        The last tile of a row or column is shifted back inside: scored twice, its pixels would weigh double.
        """
        if self.tile is None or split == "train":
            return label
        label = label.copy()
        label[: -window[0] % self.tile] = IGNORE_INDEX
        label[:, : -window[1] % self.tile] = IGNORE_INDEX
        return label


def cut(raster: Raster, size: tuple[int, int], window: tuple[int, int, int, int]) -> Raster:
    """Cut the part of a raster, which covers the reference grid of `size` in any resolution, that a window shows.

    Where the window's edges fall on the raster's own pixels (or the raster is the finer one, to half a pixel of its
    own) this is a crop. Else the part is interpolated at the window's pixels, as the image processor does with a whole
    coarse raster.
    """
    top, left, height, width = window
    if (top, left, height, width) == (0, 0, *size):
        return raster
    scale = np.array(raster.size) / size  # own pixels per reference pixel
    edges = np.array([(top, left), (top + height, left + width)]) * scale
    start, stop = np.rint(edges).astype(int)
    if (scale >= 1).all() or np.abs(edges - (start, stop)).max() < 0.01:
        return raster.crop(*start, *(stop - start))
    return _interpolate(raster, (top + np.arange(height) + 0.5) * scale[0], (left + np.arange(width) + 0.5) * scale[1])


def _interpolate(raster: Raster, y: np.ndarray, x: np.ndarray) -> Raster:
    """Bilinear values at own pixel coordinates (pixel 0 spans 0..1), from the neighbours that hold data.

    A place holds data where the pixel it lies in does. float64 keeps all bits of int32.
    """
    top, bottom, down = _neighbours(y, raster.size[0])
    left, right, across = _neighbours(x, raster.size[1])
    total, weights = np.zeros((len(y), len(x), raster.values.shape[2])), np.zeros((len(y), len(x)))
    for rows, row_weight in ((top, 1 - down), (bottom, down)):
        for columns, column_weight in ((left, 1 - across), (right, across)):
            here = np.ix_(rows, columns)
            weight = np.outer(row_weight, column_weight) * raster.valid[here]
            # where(): 0 x NaN is NaN.
            total += np.where(raster.valid[here][..., None], raster.values[here], 0) * weight[..., None]
            weights += weight
    valid = raster.valid[np.ix_(y.astype(int), x.astype(int))]
    values = total / np.where(valid, weights, 1)[..., None]
    values = np.rint(values) if raster.values.dtype.kind in "iu" else values
    return Raster(np.where(valid[..., None], values, 0).astype(raster.values.dtype), valid)


def _neighbours(positions: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pixels before and after each position, and the share of the one after; edges repeat."""
    centred = np.clip(positions - 0.5, 0, count - 1)
    before = np.floor(centred).astype(int)
    return before, np.minimum(before + 1, count - 1), centred - before
