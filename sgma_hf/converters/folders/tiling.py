"""Cuts scenes into tiles, whatever the resolution of each modality."""

from dataclasses import dataclass

import numpy as np

from ...model.configuration_sgma import IGNORE_INDEX
from ...rasters.files import Raster


@dataclass(frozen=True)
class Tiling:
    """How scenes are cut. Tiles of training rows may overlap; in every other split a pixel is labelled once.

    Args:
        tile: Side of a tile in pixels; None keeps scenes whole.
        stride: Pixels from one tile of a training scene to the next, at most `tile` (the default).

    Raises:
        ValueError: If `tile` or `stride` is not positive, the stride leaves gaps, or there is one without a tile.
    """

    tile: int | None
    stride: int | None = None

    def __post_init__(self):
        tile_windows((1, 1), self.tile, self.stride)

    def windows(self, size: tuple[int, int], split: str) -> list[tuple[int, int, int, int]]:
        """(top, left, height, width) of each tile of a scene of `size` (height, width), row by row."""
        return tile_windows(size, self.tile, self.stride if split == "train" else None)

    def label(self, label: np.ndarray, window: tuple[int, int, int, int], split: str) -> np.ndarray:
        """A window's label, outside the training split without what tiles before it label already.

        The last tile of a row or column is shifted back inside: scored twice, its pixels would weigh double.

        Args:
            label: Class ids of the window, (height, width).
            window: One of `windows`.
            split: Of the scene.

        Returns:
            The label, 255 where the pixel is another tile's.
        """
        if self.tile is None or split == "train":
            return label
        above, before = -window[0] % self.tile, -window[1] % self.tile
        label = label.copy()
        label[:above] = IGNORE_INDEX
        label[:, :before] = IGNORE_INDEX
        return label


def tile_windows(
    size: tuple[int, int], tile: int | None, stride: int | None = None
) -> list[tuple[int, int, int, int]]:
    """Windows that together cover a raster.

    Args:
        size: (height, width) in pixels.
        tile: Side of a window in pixels; None gives the whole raster as one.
        stride: Pixels from one window to the next, at most `tile` (the default). The last window of a row or column is
            shifted back inside, so it may overlap more; a side shorter than `tile` gives shorter windows.

    Returns:
        (top, left, height, width) row by row.

    Raises:
        ValueError: If `tile` or `stride` is not positive, or the stride leaves gaps.
    """
    if tile is None:
        if stride is not None:
            raise ValueError("A stride needs a tile size (--tile).")
        return [(0, 0, *size)]
    stride = tile if stride is None else stride
    if tile < 1 or not 1 <= stride <= tile:
        raise ValueError(f"Tile {tile} with stride {stride}: expected a tile >= 1 and a stride of 1 to {tile} pixels.")
    height, width = min(tile, size[0]), min(tile, size[1])
    tops = [*range(0, size[0] - height, stride), size[0] - height]
    lefts = [*range(0, size[1] - width, stride), size[1] - width]
    return [(top, left, height, width) for top in tops for left in lefts]


def cut(raster: Raster, size: tuple[int, int], window: tuple[int, int, int, int]) -> Raster:
    """Cut the part of a raster that a window of the reference grid shows.

    Where the window's edges fall on the raster's own pixels (or the raster is the finer one, to half a pixel of its
    own) this is a crop. Else the part is interpolated at the window's pixels, as the image processor does with a whole
    coarse raster.

    Args:
        raster: Covers the extent of the reference grid, in any resolution.
        size: (height, width) of the reference grid.
        window: (top, left, height, width) in pixels of the reference grid.
    """
    top, left, height, width = window
    if (top, left, height, width) == (0, 0, *size):
        return raster
    rows, columns = raster.size[0] / size[0], raster.size[1] / size[1]  # own pixels per reference pixel
    edges = np.array([top * rows, left * columns, (top + height) * rows, (left + width) * columns])
    whole = np.rint(edges).astype(int)
    is_finer = rows >= 1 and columns >= 1
    if is_finer or np.abs(edges - whole).max() < 0.01:
        return raster.crop(whole[0], whole[1], whole[2] - whole[0], whole[3] - whole[1])
    return _interpolate(raster, (top + np.arange(height) + 0.5) * rows, (left + np.arange(width) + 0.5) * columns)


def _interpolate(raster: Raster, y: np.ndarray, x: np.ndarray) -> Raster:
    """Bilinear values at own pixel coordinates (pixel 0 spans 0..1), from the neighbours that hold data.

    A place holds data where the pixel it lies in does.
    """
    top, bottom, down = _neighbours(y, raster.size[0])
    left, right, across = _neighbours(x, raster.size[1])
    total = np.zeros((len(y), len(x), raster.values.shape[2]))
    weights = np.zeros((len(y), len(x)))
    for rows, row_weight in ((top, 1 - down), (bottom, down)):
        for columns, column_weight in ((left, 1 - across), (right, across)):
            here = np.ix_(rows, columns)
            weight = np.outer(row_weight, column_weight) * raster.valid[here]
            # where(): 0 x NaN is NaN.
            total += np.where(raster.valid[here][..., None], raster.values[here], 0) * weight[..., None]
            weights += weight
    own = np.ix_(np.minimum(y.astype(int), raster.size[0] - 1), np.minimum(x.astype(int), raster.size[1] - 1))
    valid = raster.valid[own] & (weights > 0)
    values = total / np.where(valid, weights, 1)[..., None]
    if raster.values.dtype.kind in "iu":
        values = np.rint(values)
    return Raster(np.where(valid[..., None], values, 0).astype(raster.values.dtype), valid)


def _neighbours(positions: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pixels before and after each position, and the share of the one after; edges repeat."""
    centred = np.clip(positions - 0.5, 0, count - 1)
    before = np.floor(centred).astype(int)
    return before, np.minimum(before + 1, count - 1), centred - before
