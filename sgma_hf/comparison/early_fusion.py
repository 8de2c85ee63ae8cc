"""Early fusion, the baseline: all bands of all modalities go into one encoder together.

What is missing beside other modalities is zeros, that is the mean of the normalised values, and the encoder is not
told. Nothing can be reused between two combinations of the modalities: each takes a full pass. It has the interface of
[`SgmaForSemanticSegmentation`], so it is trained and evaluated by the same code; it is for comparisons, and is not
made to be saved or pushed.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..model.cells_sgma import PAD_MULTIPLE
from ..model.configuration_sgma import SgmaConfig
from ..model.encoding_sgma import HostMask, SgmaEncoding, check_inputs
from ..model.layers_sgma import SgmaModalityStem
from ..model.modeling_sgma import SgmaForSemanticSegmentation, SgmaModel
from ..model.outputs_sgma import SgmaModelOutput


@dataclass
class EarlyFusionEncoding(SgmaEncoding):
    """The checked input; the encoder runs when a combination is asked for."""

    pixel_values: torch.Tensor | None = None  # as given, (B, sum C, H, W)

    @property
    def position(self) -> torch.Tensor:
        """-1 throughout: no modality has features of its own."""
        return torch.full_like(self.present, -1, dtype=torch.int64)


def early_fusion_config(**values: Any) -> SgmaConfig:
    """Build the configuration from fields of `SgmaConfig`, `backbone_config` as a dict without input channels."""
    channels = sum(values["modality_channels"])
    return SgmaConfig(**{**values, "backbone_config": {**values["backbone_config"], "num_channels": channels}})


class EarlyFusionModel(SgmaModel):
    """The encoder over all bands; `fuse` runs it with the modalities outside the subset set to 0.

    Its configuration is made by `early_fusion_config`, with `fusion="mean"`: nothing is fused after the encoder.
    """

    def __init__(self, config: SgmaConfig):
        channels = sum(config.modality_channels)
        found = config.backbone_config.num_channels
        if config.fusion != "mean" or config.mas_loss_weight or found != channels:
            raise ValueError(
                f"The configuration has `fusion` {config.fusion!r}, `mas_loss_weight` {config.mas_loss_weight} and "
                f"{found} input channels; early fusion of {channels} bands needs 'mean', 0 and {channels}. Build it "
                "by `early_fusion_config`."
            )
        super().__init__(config)

    def make_stem(self, channels: int) -> nn.Module:
        """A modality's bands stay as many as they are, and have their adapter."""
        return SgmaModalityStem(channels, channels, self.config.modality_adapter_size)

    def encode(
        self,
        pixel_values: torch.Tensor,
        modality_mask: torch.Tensor | None = None,
        host_mask: HostMask | None = None,
        labels: torch.Tensor | None = None,
    ) -> EarlyFusionEncoding:
        """Check the inputs, as [`SgmaModel.encode`] does, and keep them."""
        present, coverage, host_present = check_inputs(self.config, pixel_values, modality_mask, host_mask, labels)
        return EarlyFusionEncoding(
            stages=[],
            present=present,
            host_present=host_present,
            pixel_coverage=coverage,
            fractions=None,
            image_size=(pixel_values.shape[-2], pixel_values.shape[-1]),
            pixel_values=pixel_values,
        )

    def fuse(
        self,
        encoding: EarlyFusionEncoding,
        subset_mask: torch.Tensor | None = None,
        *,
        output_prototypes: bool = False,
        output_hidden_states: bool = False,
    ) -> SgmaModelOutput:
        """Encode the subset, one full pass; see [`SgmaModel.fuse`]. There are no prototypes and no robustness."""
        present = encoding.present
        if subset_mask is not None:
            present = present & subset_mask.to(present.device)
        covered = present[..., None, None].expand(-1, -1, *encoding.image_size)
        if encoding.pixel_coverage is not None:
            covered = covered & encoding.pixel_coverage
        shown = []
        for index, bands in enumerate(encoding.pixel_values.split(self.config.modality_channels, dim=1)):
            there = covered[:, index : index + 1]
            # `torch.where`, not a product: what stands in a gap may be NaN
            shown.append(torch.where(there, self.stems[index](torch.where(there, bands, 0)), 0))
        # zeros in all bands would be a vector of zeros in the encoder: see `SgmaConfig.gap_value`
        gap = self.config.gap_value
        shown = torch.where(covered.any(1, keepdim=True), torch.cat(shown, dim=1), gap)
        bottom, right = ((-side) % PAD_MULTIPLE for side in encoding.image_size)
        maps = self.encoder_maps(nn.functional.pad(shown, (0, right, 0, bottom), value=gap))
        return SgmaModelOutput(
            feature_maps=tuple(maps),
            coverage=covered.any(1),
            hidden_states=tuple(maps) if output_hidden_states else None,
        )


class EarlyFusionForSemanticSegmentation(SgmaForSemanticSegmentation):
    """Early fusion with SGMA's decode head; its configuration is made by `early_fusion_config`."""

    def __init__(self, config: SgmaConfig):
        super().__init__(config)
        self.sgma = EarlyFusionModel(config)
