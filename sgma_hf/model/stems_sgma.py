"""The way of a modality's bands into the shared encoder."""

import torch
from torch import nn

from .fusion_sgma import SgmaConv2d


ADAPTER_INIT_RANGE = 1.5  # normalised values are mostly in [-1.5, 1.5]


class SgmaAdapterInput(nn.Conv2d):
    """First layer of an adapter; its initial weights and biases put the bends where normalised values lie."""


class SgmaAdapterOutput(nn.Conv2d):
    """Last layer of an adapter; it is 0 in a new model."""


class SgmaModalityAdapter(nn.Module):
    """A small perceptron of the bands of every pixel (ours; the paper has none).

    An encoder that all modalities share is not told which of them it sees, and their values are distributed
    differently. The adapter, one for each modality, adds what tells it. Its output is 0 in a new model, so that a
    pretrained encoder starts from what it knows.
    """

    def __init__(self, channels: int, encoder_channels: int, size: int):
        super().__init__()
        self.hidden = SgmaAdapterInput(channels, size, 1)
        self.output = SgmaAdapterOutput(size, encoder_channels, 1)

    def forward(self, rasters: torch.Tensor) -> torch.Tensor:
        """(pairs, channels, height, width) -> (pairs, encoder_channels, height, width)."""
        return self.output(nn.functional.gelu(self.hidden(rasters)))


class SgmaModalityStem(nn.Module):
    """Brings one modality's bands to the number that the encoder takes, and adds what its adapter says.

    As many bands as the encoder takes go in as they are and one band is repeated, so that a pretrained first layer
    sees what it knows; any other number is brought there by a 1x1 convolution.

    Args:
        channels: Bands of the modality.
        encoder_channels: Bands that the encoder takes.
        adapter_size: Hidden channels of the adapter; 0 for none.
    """

    def __init__(self, channels: int, encoder_channels: int, adapter_size: int):
        super().__init__()
        self.encoder_channels = encoder_channels
        self.projection = self.adapter = None
        if channels not in (1, encoder_channels):
            self.projection = SgmaConv2d(channels, encoder_channels, 1, bias=False)
        if adapter_size:
            self.adapter = SgmaModalityAdapter(channels, encoder_channels, adapter_size)

    def forward(self, rasters: torch.Tensor) -> torch.Tensor:
        """(pairs, channels, height, width) -> (pairs, encoder_channels, height, width)."""
        bands = rasters if self.projection is None else self.projection(rasters)
        bands = bands.expand(-1, self.encoder_channels, -1, -1)
        return bands if self.adapter is None else bands + self.adapter(rasters)
