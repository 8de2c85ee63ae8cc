"""Maps at strides 4, 8, 16 and 32 from a plain vision transformer, all of whose maps have one stride."""

from collections.abc import Sequence

import torch
from torch import nn

from .cells_sgma import STAGE_STRIDES, resize
from .layers_sgma import SgmaUpsampling


class SgmaMapNorm(nn.LayerNorm):
    """Layer normalisation at every position: (rows, channels, height, width) -> same shape."""

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """Normalise over the channels."""
        return super().forward(maps.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class SgmaPyramid(nn.Module):
    """Feature pyramid of a plain vision transformer (ours; after ViTDet's, arXiv:2203.16527).

    It takes the maps of four depths of the encoder. A factor of 2 up is a transposed convolution that halves the
    channels, downwards it is max pooling; each level ends in a layer normalisation. An encoder whose patches are not
    4, 8, 16 or 32 pixels a side sees the image resized: of patches of 14 pixels there are then as many as of 16.

    Args:
        channels: Number of channels of the encoder's four maps.
        patch_size: Side of a patch in pixels, at most 32.
    """

    def __init__(self, channels: list[int], patch_size: int):
        super().__init__()
        self.patch_size = patch_size
        self.stride = min(stride for stride in STAGE_STRIDES if stride >= patch_size)
        self.channels = [
            width * min(stride, self.stride) // self.stride
            for width, stride in zip(channels, STAGE_STRIDES, strict=True)
        ]
        self.levels = nn.ModuleList(
            self._level(width, stride) for width, stride in zip(channels, STAGE_STRIDES, strict=True)
        )

    def _level(self, channels: int, stride: int) -> nn.Sequential:
        if stride > self.stride:
            return nn.Sequential(nn.MaxPool2d(stride // self.stride), SgmaMapNorm(channels))
        layers: list[nn.Module] = []
        for _ in range((self.stride // stride).bit_length() - 1):
            layers += [SgmaUpsampling(channels, channels // 2), SgmaMapNorm(channels // 2), nn.GELU()]
            channels //= 2
        return nn.Sequential(*layers[:-1]) if layers else nn.Sequential(SgmaMapNorm(channels))

    def resized(self, size: Sequence[int]) -> list[int]:
        """Sides that make whole patches of an image whose own are 32 * n."""
        return [side // self.stride * self.patch_size for side in size]

    def resize(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Bring images (rows, bands, height, width) to the sides of `resized`."""
        if self.patch_size == self.stride:
            return pixel_values
        return resize(pixel_values, self.resized(pixel_values.shape[-2:]))

    def forward(self, feature_maps: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        """Four maps (rows, channels, height / stride, width / stride) -> maps of strides 4, 8, 16 and 32."""
        return tuple(level(maps) for level, maps in zip(self.levels, feature_maps, strict=True))
