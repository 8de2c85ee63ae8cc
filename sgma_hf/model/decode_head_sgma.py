"""The decode head of SGMA, and the way from its logits to pixels."""

import torch
from torch import nn

from .configuration_sgma import SgmaConfig
from .fusion_sgma import SgmaLinear


class SgmaDecodeHead(nn.Module):
    """All-MLP head: the four stages, brought to one width, are upsampled, summed and classified.

    The paper does not name its head; this is SegFormer's (arXiv:2105.15203), whose two consecutive linear maps are
    one here, applied before the upsampling (both commute with it), and whose batch normalisation is a layer
    normalisation at every position: no pixel's class depends on the other rows of a batch or on the size of the tile.
    """

    def __init__(self, config: SgmaConfig, channels: list[int]):
        super().__init__()
        width = config.decoder_hidden_size
        self.linears = nn.ModuleList(SgmaLinear(stage_channels, width) for stage_channels in channels)
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(config.classifier_dropout_prob)
        # Not transformers' usual weights of 0.02: with them, training stalls at the classes' shares for long.
        self.classifier = SgmaLinear(width, config.num_labels)

    def forward(self, feature_maps: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """Fused maps of the four stages -> logits (batch_size, num_labels, height / 4, width / 4)."""
        size = feature_maps[0].shape[-2:]
        hidden = None
        for linear, maps in zip(self.linears, feature_maps, strict=True):
            maps = linear(maps.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)  # (B, width, h, w)
            if hidden is None:
                hidden = maps
            else:
                hidden = hidden + nn.functional.interpolate(maps, size=size, mode="bilinear", align_corners=False)
        hidden = nn.functional.relu(self.norm(hidden.permute(0, 2, 3, 1)))  # (B, h, w, width)
        return self.classifier(self.dropout(hidden)).permute(0, 3, 1, 2)


def crop_padding(maps: torch.Tensor, stride: int, size: tuple[int, int]) -> torch.Tensor:
    """Keep the cells of a stage that begin inside the image of `size` pixels; the last two axes are cropped."""
    height, width = (-(-side // stride) for side in size)
    if torch.compiler.is_compiling():
        # A slice would have torch.export guard on whether it cuts anything, and so on the sides it was traced with.
        rows, columns = (torch.arange(side, device=maps.device) for side in (height, width))
        return maps.index_select(-2, rows).index_select(-1, columns)
    return maps[..., :height, :width]


def upsample_to_pixels(maps: torch.Tensor, stride: int, size: tuple[int, int]) -> torch.Tensor:
    """Bring a stage's maps to the pixels of the image.

    A cell covers `stride` x `stride` pixels, so the scale is exactly `stride`, and what sticks out is cropped.
    Stretching the map to `size` would displace it wherever `stride` does not divide the image's sides.

    Args:
        maps: Float maps of shape (batch_size, channels, ceil(height / stride), ceil(width / stride)).
        stride: Pixels per cell.
        size: Height and width of the image in pixels.

    Returns:
        Maps of shape (batch_size, channels, height, width).
    """
    full_size = (maps.shape[-2] * stride, maps.shape[-1] * stride)
    maps = nn.functional.interpolate(maps, size=full_size, mode="bilinear", align_corners=False)
    return maps[..., : size[0], : size[1]]
