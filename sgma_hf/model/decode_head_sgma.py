"""The decode head of SGMA."""

import torch
from torch import nn

from .cells_sgma import resize
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
            hidden = maps if hidden is None else hidden + resize(maps, size)
        hidden = nn.functional.relu(self.norm(hidden.permute(0, 2, 3, 1)))  # (B, h, w, width)
        return self.classifier(self.dropout(hidden)).permute(0, 3, 1, 2)
