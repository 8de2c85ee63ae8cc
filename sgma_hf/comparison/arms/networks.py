"""Early fusion: networks over all bands of all modalities together, in which zeros stand for what is missing.

They are not told what is missing, and nothing can be reused between two combinations of the modalities.
"""

import copy

import torch
from torch import nn
from transformers import (
    AutoBackbone,
    PreTrainedConfig,
    PreTrainedModel,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    UperNetConfig,
    UperNetForSemanticSegmentation,
)
from transformers.utils import ModelOutput

from ...model.backbones_sgma import load_encoder, load_pretrained
from ...model.configuration_sgma import SgmaConfig
from ...model.modeling_sgma import SgmaForSemanticSegmentation


# Depths of the encoders MiT-B1 to B5 by their parameters in millions, table 1 of arXiv:2105.15203; all of these have
# the widths 64, 128, 320 and 512, B0 (3.4 million) has half of them.
_MIT_DEPTHS = {13.1: [2, 2, 2, 2], 24.2: [3, 4, 6, 3], 44.0: [3, 4, 18, 3], 60.8: [3, 8, 27, 3], 81.4: [3, 6, 40, 3]}
_MIT_FIELDS = ("hidden_sizes", "depths", "num_attention_heads", "sr_ratios", "mlp_ratios")


class EarlyFusion(nn.Module):
    """The package's own model with one modality, that of all bands."""

    def __init__(self, config: SgmaConfig):
        super().__init__()
        self.config = config
        values = {name: getattr(config, name) for name in ("decoder_hidden_size", "modality_adapter_size", "id2label")}
        self.model = SgmaForSemanticSegmentation(
            SgmaConfig(
                modalities=["all_bands"],
                modality_channels=[sum(config.modality_channels)],
                backbone_config=_of_all_bands(config),
                fusion="mean",
                mas_loss_weight=0.0,
                **values,
            )
        )

    def forward(self, pixel_values: torch.Tensor, modality_mask: torch.Tensor, labels=None) -> ModelOutput:
        """Segment a batch, whatever is missing."""
        return ModelOutput(logits=self.model(pixel_values).logits)

    def load_pretrained(self, name_or_path: str) -> None:
        """Give the encoder pretrained weights, see `load_widened`."""
        load_widened(self.model.sgma.backbone, name_or_path, self.config)


class Segformer(nn.Module):
    """SegFormer of transformers with an encoder of the size of a PVT-v2, which has the same fields."""

    def __init__(self, config: SgmaConfig):
        super().__init__()
        self.model = SegformerForSemanticSegmentation(
            SegformerConfig(
                **_mit(config.backbone_config),
                num_channels=sum(config.modality_channels),
                num_labels=config.num_labels,
                decoder_hidden_size=config.decoder_hidden_size,
            )
        )

    def forward(self, pixel_values: torch.Tensor, modality_mask: torch.Tensor, labels=None) -> ModelOutput:
        """Segment a batch, whatever is missing."""
        return self.model(pixel_values)


class UperNet(nn.Module):
    """UperNet of transformers with the encoder of all arms, without its auxiliary head."""

    def __init__(self, config: SgmaConfig):
        super().__init__()
        self.config = config
        backbone_config = _of_all_bands(config)
        load_encoder(backbone_config)  # chooses the outputs
        self.model = UperNetForSemanticSegmentation(
            UperNetConfig(
                backbone_config=backbone_config,
                hidden_size=config.decoder_hidden_size,
                num_labels=config.num_labels,
                use_auxiliary_head=False,
            )
        )

    def forward(self, pixel_values: torch.Tensor, modality_mask: torch.Tensor, labels=None) -> ModelOutput:
        """Segment a batch, whatever is missing."""
        if self.training and len(pixel_values) == 1:  # batch normalisation of maps of one cell needs two rows
            return ModelOutput(logits=self.model(pixel_values.repeat(2, 1, 1, 1)).logits[:1])
        return self.model(pixel_values)

    def load_pretrained(self, name_or_path: str) -> None:
        """Give the encoder pretrained weights, see `load_widened`."""
        load_widened(self.model.backbone, name_or_path, self.config)


def load_widened(backbone: PreTrainedModel, name_or_path: str, config: SgmaConfig) -> None:
    """Give an encoder over all bands the weights of one that was pretrained on fewer, see `widened`.

    Raises:
        ValueError: If the weights are those of another encoder.
    """
    narrow_config = copy.deepcopy(config.backbone_config)
    narrow_config.out_indices = list(backbone.config.out_indices)
    narrow = AutoBackbone.from_config(narrow_config)
    load_pretrained(narrow, narrow_config, name_or_path)
    weights = narrow.state_dict()
    for name, weight in backbone.state_dict().items():
        if weight.shape != weights[name].shape:
            weights[name] = widened(weights[name], config.modality_channels)
    backbone.load_state_dict(weights)


def widened(kernel: torch.Tensor, modality_channels: list[int]) -> torch.Tensor:
    """Repeat the kernel (out, bands, height, width) of a pretrained stem for every modality, and average over these.

    A modality of as many bands has the kernel as it is; one of another number has its sum over the bands, shared out
    evenly: a single band has what it would have if it were repeated to as many.

    Returns:
        (out, sum(modality_channels), height, width)
    """
    total = kernel.sum(1, keepdim=True)
    parts = [
        kernel if channels == kernel.shape[1] else total.expand(-1, channels, -1, -1) / channels
        for channels in modality_channels
    ]
    return torch.cat(parts, dim=1) / len(modality_channels)


def _of_all_bands(config: SgmaConfig) -> PreTrainedConfig:
    """The encoder's configuration with as many input channels as there are bands."""
    backbone_config = copy.deepcopy(config.backbone_config)
    backbone_config.num_channels = sum(config.modality_channels)
    return backbone_config


def _mit(backbone_config: PreTrainedConfig) -> dict[str, list[int]]:
    """Fields of `SegformerConfig`: those of a PVT-v2, else of the MiT whose number of parameters is nearest."""
    if backbone_config.model_type == "pvt_v2":
        return {name: list(getattr(backbone_config, name)) for name in _MIT_FIELDS}
    with torch.device("meta"):
        millions = AutoBackbone.from_config(backbone_config).num_parameters() / 1e6
    if millions < (3.4 * 13.1) ** 0.5:
        return {}  # B0, transformers' default
    nearest = min(_MIT_DEPTHS, key=lambda size: abs(size / millions - 1))
    return {"hidden_sizes": [64, 128, 320, 512], "depths": _MIT_DEPTHS[nearest]}
