"""A network of another kind with the interface of SGMA, so that the same code trains and evaluates it.

Every combination of the modalities takes a full pass, with zeros for what is missing; see `Arm.build` for what the
network gets and returns.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.dataclasses import strict
from safetensors.torch import load_model, save_model
from torch import nn
from transformers import AutoConfig, AutoModelForSemanticSegmentation
from transformers.utils import can_return_tuple

from ...model.cells_sgma import LOGITS_STRIDE, PAD_MULTIPLE, crop_padding
from ...model.configuration_sgma import SgmaConfig
from ...model.encoding_sgma import SgmaEncoding
from ...model.inputs_sgma import HostMask, check_dates, check_inputs, check_labels, num_dates
from ...model.losses_sgma import row_losses, weigh_losses
from ...model.modeling_sgma import SgmaPreTrainedModel
from ...model.outputs_sgma import SgmaSemanticSegmenterOutput
from ...model.saving_sgma import replace_when_complete
from .selection import find_arm


WEIGHTS_FILE = "model.safetensors"


@strict
class FullPassConfig(SgmaConfig):
    """Configuration of an arm's network; `arm` is the arm's name."""

    model_type = "sgma_arm"
    _auto_class = None  # no code travels with it: the arm's module has to be there

    arm: str = ""


@dataclass
class FullPassEncoding(SgmaEncoding):
    """The checked input; the network runs when a combination is asked for."""

    pixel_values: torch.Tensor | None = None  # as given, (B, sum C, H, W), or of series (B, T, sum C, H, W)
    dates: torch.Tensor | None = None  # of series, (B, T, M)

    @property
    def position(self) -> torch.Tensor:
        """-1 throughout: no modality has features of its own."""
        return torch.full_like(self.observed, -1, dtype=torch.int64)


class FullPassForSemanticSegmentation(SgmaPreTrainedModel):
    """The network of the arm that `config.arm` names, with new weights of its own making.

    Raises:
        ValueError: If there is no such arm.
        TypeError: If it builds no `nn.Module`.
    """

    config_class = FullPassConfig

    def __init__(self, config: FullPassConfig):
        super().__init__(config)
        network = find_arm(config.arm).build(config)
        if not isinstance(network, nn.Module):
            raise TypeError(f"`build` returned a {type(network).__name__}; expected an nn.Module.")
        self.network = network
        for module in network.modules():
            module._is_hf_initialized = True  # its weights are as it made them
        self.post_init()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *, config=None, dtype=None, **kwargs):
        """Load from a folder that `save_pretrained` wrote; the arm's module has to be there. No `kwargs` are used.

        The network is made as it was for training, and not on torch's meta device, where what is no part of the
        weights would be lost.

        Raises:
            ValueError: If the arm now builds a network with other weights.
        """
        model = cls(config or FullPassConfig.from_pretrained(pretrained_model_name_or_path))
        try:
            load_model(model, Path(pretrained_model_name_or_path, WEIGHTS_FILE))
        except RuntimeError as error:  # torch's, of many lines
            raise ValueError(
                f"The weights in {str(pretrained_model_name_or_path)!r} are not those of the arm "
                f"{model.config.arm} as it is now; put its module back to what was trained."
            ) from error
        if dtype not in (None, "auto"):
            model = model.to(getattr(torch, str(dtype).removeprefix("torch.")))
        return model.eval()

    def save_pretrained(self, save_directory, **kwargs):
        """Save configuration and weights, whole or not at all; no `kwargs` are used."""
        self.config.architectures = [type(self).__name__]
        with replace_when_complete(save_directory) as staging:
            self.config.save_pretrained(staging)
            save_model(self, str(staging / WEIGHTS_FILE))

    def load_backbone(self, name_or_path: str) -> None:
        """Have the network start from a pretrained encoder; a ValueError if it does not know how."""
        if not hasattr(self.network, "load_pretrained"):
            raise ValueError(
                f"{type(self.network).__name__} has no method `load_pretrained(name_or_path)`, which `--backbone` "
                "needs; leave the arm out, or compare it without `--backbone`."
            )
        self.network.load_pretrained(name_or_path)

    def encode(
        self,
        pixel_values: torch.Tensor,
        modality_mask: torch.Tensor | None = None,
        host_mask: HostMask | None = None,
        labels: torch.Tensor | None = None,
        dates: torch.Tensor | None = None,
    ) -> FullPassEncoding:
        """Check the inputs, as [`SgmaModel.encode`] does, and keep them.

        Raises:
            ValueError: If they are refused there, or are series and the network takes none.
        """
        if pixel_values.ndim == 5 and not getattr(self.network, "takes_series", False):
            raise ValueError(
                f"`pixel_values` are series, {tuple(pixel_values.shape)}; the network {self.config.arm!r} takes "
                "one image of each modality. Leave the arm out, or give it rows without series."
            )
        if dates is not None:
            shape = (*pixel_values.shape[:-3], self.config.num_modalities)
            check_dates(dates, self.config.date_periods, shape, pixel_values.device)
        observed, coverage, host_observed = check_inputs(self.config, pixel_values, modality_mask, host_mask, labels)
        return FullPassEncoding(
            stages=[],
            observed=observed,
            host_observed=host_observed,
            observed_pixels=coverage,
            observed_fractions=None,
            image_size=(pixel_values.shape[-2], pixel_values.shape[-1]),
            pixel_values=pixel_values,
            num_dates=num_dates(pixel_values),
            dates=dates,
        )

    def fuse_and_decode(
        self, encoding: FullPassEncoding, subset_mask: torch.Tensor | None = None, **kwargs
    ) -> SgmaSemanticSegmenterOutput:
        """Predict from all or some of the modalities, one full pass; there is no robustness, no prototype."""
        covered = _covered(encoding, subset_mask)
        logits, _ = self._pass(encoding, covered, None)
        coverage = covered.flatten(1, -3).any(1)
        return SgmaSemanticSegmenterOutput(logits=logits, coverage=coverage)

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        modality_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        host_mask: HostMask | None = None,
        dates: torch.Tensor | None = None,
        **kwargs,
    ) -> SgmaSemanticSegmenterOutput:
        """Segment a batch, see [`SgmaForSemanticSegmentation.forward`]; what only SGMA has a use for is ignored."""
        if labels is not None:
            labels = check_labels(labels, pixel_values)
        encoding = self.encode(pixel_values, modality_mask, host_mask=host_mask, labels=labels, dates=dates)
        if labels is None:
            return self.fuse_and_decode(encoding)
        covered = _covered(encoding)
        coverage = covered.flatten(1, -3).any(1)
        labels = torch.where(coverage, labels, self.config.semantic_loss_ignore_index)
        logits, own_loss = self._pass(encoding, covered, labels if self.training else None)
        losses = row_losses(self.config, logits, labels)
        fields = weigh_losses(self.config, {"sgf": losses}, num_items_in_batch)
        if own_loss is not None:  # a mean over these pixels: its share of a step's is theirs
            valid = losses[1].sum()
            divisor = valid.clamp_min(1) if num_items_in_batch is None else num_items_in_batch
            fields["loss"] = own_loss * valid / divisor
        return SgmaSemanticSegmenterOutput(logits=logits, coverage=coverage, **fields)

    def _pass(
        self, encoding: FullPassEncoding, covered: torch.Tensor, labels: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Logits and, if the network gives one, loss; coverage is bool, (B, M, H, W), or of series (B, T, M, H, W)."""
        pixel_values, size = encoding.pixel_values, encoding.pixel_values.shape[-2:]
        of_band = [index for index, bands in enumerate(self.config.modality_channels) for _ in range(bands)]
        # `torch.where`, not a product: what stands in a gap may be NaN
        shown = torch.where(covered[..., of_band, :, :], pixel_values, 0)
        # zeros in all bands would be a vector of zeros in the encoder: see `SgmaConfig.gap_value`
        shown = torch.where(covered.any(-3, keepdim=True), shown, self.config.gap_value)
        bottom, right = ((-side) % PAD_MULTIPLE for side in size)
        beside = (0, right, 0, bottom)
        if labels is not None:
            labels = nn.functional.pad(labels, beside, value=self.config.semantic_loss_ignore_index)
        shown = nn.functional.pad(shown, beside, value=self.config.gap_value)
        dates = {"dates": encoding.dates} if pixel_values.ndim == 5 else {}
        mask = nn.functional.pad(covered, beside)
        output = self.network(pixel_values=shown, modality_mask=mask, labels=labels, **dates)
        logits = self._checked_logits(output, shown.shape)
        stride = shown.shape[-1] // logits.shape[-1]
        logits = crop_padding(logits if self.training else logits / self.config.temperature, stride, size)
        return logits, None if labels is None else output.get("loss")

    def _checked_logits(self, output: Any, shape: torch.Size) -> torch.Tensor:
        """The logits, at each pixel or at stride 4; what else a network returns is a TypeError or ValueError."""
        if not isinstance(output, Mapping) or not isinstance(output.get("logits"), torch.Tensor):
            raise TypeError(
                f"the network returned a {type(output).__name__}; expected a dict or a ModelOutput with `logits`"
            )
        logits, (batch_size, *_, height, width) = output["logits"], shape
        whole = (batch_size, self.config.num_labels, height, width)
        cells = (*whole[:2], height // LOGITS_STRIDE, width // LOGITS_STRIDE)
        if tuple(logits.shape) not in (whole, cells):
            raise ValueError(
                f"`logits` has shape {tuple(logits.shape)}; expected {whole} or {cells}: batch size, "
                f"{self.config.num_labels} classes, and each pixel or every fourth"
            )
        return logits


def _covered(encoding: FullPassEncoding, subset_mask: torch.Tensor | None = None) -> torch.Tensor:
    """Where each modality is there, and in the subset, bool, (B, M, H, W), or of series (B, T, M, H, W)."""
    there = encoding.observations  # (B, T, M)
    if subset_mask is not None:
        subset = subset_mask.to(there.device)
        there = there & (subset if subset.ndim != 2 else subset.unsqueeze(1))
    covered = there[..., None, None].expand(*there.shape, *encoding.image_size)
    if encoding.observed_pixels is not None:
        covered = covered & encoding.by_date(encoding.observed_pixels)
    return covered if encoding.pixel_values.ndim == 5 else covered[:, 0]


AutoConfig.register(FullPassConfig.model_type, FullPassConfig)
AutoModelForSemanticSegmentation.register(FullPassConfig, FullPassForSemanticSegmentation)
