"""The encoders of a model: one that all modalities share, as in the paper, or one for each of several groups."""

from typing import Any

import torch
from torch import nn

from .backbones_sgma import input_channels, load_encoder
from .configuration_sgma import SgmaConfig
from .layers_sgma import SgmaConv2d, restride_single


# What an encoder is made of. Those of the first group have these names, those of the next `backbone_1` and so on, all
# of them the model's own children: of these alone transformers gathers what may not be split, for instance.
_PARTS = ("backbone", "pyramid", "widening")
# Pixels of the images that a CPU encodes at once: its caches hold what comes of them. With more, an image takes up to
# half as long again.
_PIXELS_AT_ONCE = 2**18


class SgmaWidening(nn.ModuleList):
    """1x1 convolutions that bring an encoder's maps to the widths of the widest encoder's, which the fusion has."""

    def __init__(self, channels: list[int], widths: list[int]):
        super().__init__(SgmaConv2d(*pair, 1, bias=False) for pair in zip(channels, widths, strict=True))

    def forward(self, feature_maps: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        """Four maps (rows, channels, height, width) -> (rows, widths, height, width)."""
        return tuple(layer(maps) for layer, maps in zip(self, feature_maps, strict=True))


class SgmaEncodersMixin:
    """What [`SgmaModel`] does with its encoders."""

    groups: list[list[int]]  # indices of the modalities of each encoder
    channels: list[int]  # of the four maps that all encoders give
    # Whether encoders of absent modalities run, too, for nothing: where parameters are sharded, all processes have to
    # call the same modules.
    calls_all_encoders = False
    idle_groups: tuple[int, ...] = ()  # those whose encoder ran for nothing the last time

    def make_encoders(self, config: SgmaConfig) -> None:
        """Build the encoders with new weights."""
        encoders = [load_encoder(encoder_config) for encoder_config in config.encoder_configs.values()]
        self.channels = [max(widths) for widths in zip(*(channels for _, _, channels in encoders), strict=True)]
        self.place_encoders(
            [
                (backbone, pyramid, None if channels == self.channels else SgmaWidening(channels, self.channels))
                for backbone, pyramid, channels in encoders
            ]
        )
        for backbone in self.backbones:
            for module in backbone.modules():
                if isinstance(module, nn.Conv2d):
                    module.register_forward_pre_hook(restride_single)

    def place_encoders(self, encoders: list[tuple[nn.Module | None, ...]]) -> None:
        """Make these the encoders of the groups that the configuration has now, in their order."""
        placed = {
            f"{name}_{index}" if index else name: part
            for index, parts in enumerate(encoders)
            for name, part in zip(_PARTS, parts, strict=True)
        }
        for name in [name for name in self._modules if name.startswith(_PARTS) and name not in placed]:
            delattr(self, name)
        for name, part in placed.items():
            self.add_module(name, part)  # what is there already keeps its place in the order of parameters
        names = list(self.config.modalities)
        self.groups = [[names.index(name) for name in group] for group in self.config.encoder_groups]

    def encoder(self, group: int) -> list[nn.Module | None]:
        """A group's backbone, its pyramid or None, and its widening or None."""
        return [getattr(self, f"{name}_{group}" if group else name) for name in _PARTS]

    def idle_modules(self) -> set[nn.Module]:
        """Modules of the encoders that ran for nothing in the last pass."""
        parts = (part for group in self.idle_groups for part in self.encoder(group) if part is not None)
        return {module for part in parts for module in part.modules()}

    def encoder_widths(self, group: int) -> list[int]:
        """Channels of a group's four maps, as its own encoder gives them."""
        widening = self.encoder(group)[2]
        return self.channels if widening is None else [layer.in_channels for layer in widening]

    @property
    def backbones(self) -> list[nn.Module]:
        """The backbone of every group."""
        return [self.encoder(group)[0] for group in range(len(self.groups))]

    def encoder_channels(self) -> list[int]:
        """Number of bands, for every modality, that its encoder takes."""
        counts = [input_channels(encoder_config) for encoder_config in self.config.encoder_configs.values()]
        by_modality = {index: count for group, count in zip(self.groups, counts, strict=True) for index in group}
        return [by_modality[index] for index in range(self.config.num_modalities)]

    def train(self, mode: bool = True):
        """Set the mode, but keep frozen encoders as in evaluation, or their batch normalisation if so configured."""
        super().train(mode)
        for backbone in self.backbones:
            if not any(parameter.requires_grad for parameter in backbone.parameters()):
                backbone.eval()
            if self.config.freeze_batch_norm:
                for module in backbone.modules():
                    if isinstance(module, nn.modules.batchnorm._BatchNorm):
                        module.eval()
        return self

    def encoder_maps(self, pixel_values: torch.Tensor, group: int = 0) -> tuple[torch.Tensor, ...]:
        """Images as a group's encoder takes them, with sides of 32 * n -> its maps at strides 4, 8, 16 and 32."""
        backbone, pyramid, widening = self.encoder(group)
        if pyramid is None:
            maps = backbone(pixel_values).feature_maps
        else:
            maps = pyramid(backbone(pyramid.resize(pixel_values)).feature_maps)
        return maps if widening is None else widening(maps)

    def _maps_of_many(self, pixel_values: torch.Tensor, group: int = 0) -> tuple[torch.Tensor, ...]:
        """What `encoder_maps` gives, of the many images of series; on a CPU, in inference, of some at a time."""
        count = max(1, _PIXELS_AT_ONCE // pixel_values[0, 0].numel())
        at_once = pixel_values.device.type != "cpu" or torch.is_grad_enabled() or torch.compiler.is_compiling()
        if at_once or self.calls_all_encoders or len(pixel_values) <= count:
            return self.encoder_maps(pixel_values, group)
        parts = [self.encoder_maps(part, group) for part in pixel_values.split(count)]
        return tuple(map(torch.cat, zip(*parts, strict=True)))

    def encode_pairs(
        self, images: list[torch.Tensor], counts: list[int], *, series: bool = False
    ) -> tuple[torch.Tensor, ...]:
        """Maps of the present pairs, one modality after the other; an encoder without a pair does not run.

        `images` are those of the modalities that have a pair, in their encoder's channels; `counts` are the pairs of
        every modality, in `series` several of a row.
        """
        encoder_maps = self._maps_of_many if series else self.encoder_maps
        if len(self.groups) == 1:
            return encoder_maps(torch.cat(images))
        own = dict(zip((index for index, count in enumerate(counts) if count), images, strict=True))
        maps: dict[int, tuple[torch.Tensor, ...]] = {}
        nothing: Any = 0
        idle = []
        for group, members in enumerate(self.groups):
            there = [index for index in members if counts[index]]
            if there:
                stages = encoder_maps(torch.cat([own[index] for index in there]), group)
                parts = [stage.split([counts[index] for index in there]) for stage in stages]
                maps |= zip(there, zip(*parts, strict=True), strict=True)
            elif self.calls_all_encoders:
                flat = images[0].new_full((1, self.encoder_channels()[members[0]], *images[0].shape[-2:]), 1.0)
                idle.append(group)
                nothing = nothing + 0 * sum(stage.mean() for stage in self.encoder_maps(flat, group))
        if self.calls_all_encoders:
            self.idle_groups = tuple(idle)
        first, *others = (torch.cat(parts) for parts in zip(*(maps[index] for index in sorted(maps)), strict=True))
        return (first + nothing if self.calls_all_encoders else first, *others)
