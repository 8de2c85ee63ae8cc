"""Cuts scenes into tiles, whatever the resolution of each modality."""

from dataclasses import dataclass

import numpy as np

from ...data.windows import Window, cover, window_starts
from ...model.limits_sgma import IGNORE_INDEX
from ...rasters.raster import Raster
from ...rasters.sources import interpolate


_ROUNDING = 1e-6  # so that halves go up, as GDAL's do, whatever float64 makes of thirds and tenths


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
    part = interpolate(raster, size, Window(*window), np.float64)  # which holds all bits of int32
    values = np.where(part.valid[..., None], part.values, 0)
    if raster.values.dtype.kind in "iu":
        values = np.floor(values + 0.5 + _ROUNDING)
    return Raster(values.astype(raster.values.dtype), part.valid)
