"""Cells and pixels: the model's maps have one cell for a square of pixels, counted from the top left corner.

Stage i has cells of `STAGE_STRIDES[i]` pixels a side, the logits of `LOGITS_STRIDE`, or of fewer if the configuration
says so. The last cells of a row or column may stick out of the image.
"""

from collections.abc import Sequence

import torch
from torch import nn


STAGE_STRIDES = (4, 8, 16, 32)
LOGITS_STRIDE = STAGE_STRIDES[0]
PAD_MULTIPLE = STAGE_STRIDES[-1]  # sides of this multiple have whole cells only


def grid_size(size: Sequence[int], stride: int) -> tuple[int, int]:
    """Rows and columns of cells that an image of `size` pixels takes."""
    height, width = (-(-side // stride) for side in size)
    return height, width


def crop_padding(maps: torch.Tensor, stride: int, size: Sequence[int]) -> torch.Tensor:
    """Keep the cells that begin inside the image of `size` pixels; the last two axes are cropped."""
    height, width = grid_size(size, stride)
    if torch.compiler.is_compiling():
        # A slice would have guards on whether it cuts anything, and so on the sides that were traced.
        rows, columns = (torch.arange(side, device=maps.device) for side in (height, width))
        return maps.index_select(-2, rows).index_select(-1, columns)
    return maps[..., :height, :width]


def covered_fractions(covered: torch.Tensor) -> list[torch.Tensor]:
    """Share of covered pixels in the cells of the four stages, of a float map of 0 and 1 with sides of 32 * n."""
    fractions = []
    for stride, previous in zip(STAGE_STRIDES, (1, *STAGE_STRIDES), strict=False):
        covered = nn.functional.avg_pool2d(covered, stride // previous)  # exact: the counts are below 2^24
        fractions.append(covered)
    return fractions


def touched_cells(mask: torch.Tensor, stride: int) -> torch.Tensor:
    """Cells with any pixel of a bool mask (batch_size, channels, height, width)."""
    return nn.functional.max_pool2d(mask.float(), stride, ceil_mode=True) > 0


def upsample_to_pixels(maps: torch.Tensor, stride: int, size: Sequence[int]) -> torch.Tensor:
    """Bring a stage's maps to the pixels of the image, by bilinear interpolation.

    (batch_size, channels, ceil(height / stride), ceil(width / stride)) -> (batch_size, channels, height, width). The
    scale is exactly `stride`, and what sticks out is cropped. Stretching the map to `size` would displace it wherever
    `stride` does not divide the image's sides.
    """
    maps = resize(maps, (maps.shape[-2] * stride, maps.shape[-1] * stride))
    return crop_padding(maps, 1, size)


def repeat_to_pixels(maps: torch.Tensor, stride: int, size: Sequence[int]) -> torch.Tensor:
    """Give every pixel, or every cell of a finer stage, its cell's value: (..., h, w) -> (..., height, width)."""
    maps = maps.repeat_interleave(stride, dim=-2)[..., : size[0], :]
    return maps.repeat_interleave(stride, dim=-1)[..., : size[1]]


def pixel_logits(logits: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Bring logits of stride 4 or 2, or of full resolution already, to the input's `size`; float32 at least."""
    # In half precision neighbouring classes would tie after rounding.
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    stride = logits_stride(logits, size)
    return logits if stride == 1 else upsample_to_pixels(logits, stride, size)


def logits_stride(logits: torch.Tensor, size: Sequence[int]) -> int:
    """Pixels a side of the cells of logits (..., h, w) of an image of `size` pixels: 1, 2, or else 4."""
    return next((stride for stride in (1, 2) if tuple(logits.shape[-2:]) == grid_size(size, stride)), LOGITS_STRIDE)


def predicted_classes(logits: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Class of every pixel, int64 (batch_size, height, width), from logits as `pixel_logits` takes them."""
    return pixel_logits(logits, size).argmax(1)


def resize(maps: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Stretch float maps (batch_size, channels, h, w) to a size, by bilinear interpolation."""
    return nn.functional.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=False)


def resize_mask(mask: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Stretch a bool mask (batch_size, channels, h, w) to a size, by the nearest pixel."""
    return nn.functional.interpolate(mask.float(), size=tuple(size), mode="nearest-exact") > 0.5
