"""What goes into the encoder, checked and packed, and what is kept of it."""

from dataclasses import dataclass

import torch

from .cells_sgma import STAGE_STRIDES, crop_padding, grid_size
from .configuration_sgma import SgmaConfig
from .fusion_sgma import SgmaStageTokens
from .layers_sgma import ABSENT_SCORE


@dataclass
class SgmaEncoding:
    """One pass of a batch through the encoder and the projectors; [`SgmaModel.fuse`] fuses any subset of it."""

    stages: list[SgmaStageTokens]
    present: torch.Tensor  # which pairs are there, bool, (batch_size, num_modalities)
    host_present: list[list[bool]] | None  # the same on the host; None while tracing
    position: torch.Tensor  # of every pair in the packed order, (batch_size, num_modalities), -1 if absent
    # Bool, (batch_size, num_modalities, height, width), without padding; None: what is present covers its whole image.
    pixel_coverage: torch.Tensor | None
    # Covered fraction of the stages' cells in [0, 1], (batch_size, num_modalities, height / stride, width / stride) of
    # the padded image; None: all present pairs are complete and nothing is padded.
    fractions: list[torch.Tensor] | None
    image_size: tuple[int, int]  # in pixels, without padding

    def coverage(self, mask: torch.Tensor) -> torch.Tensor:
        """Pixels that any modality of a mask (batch_size, num_modalities) covers, (batch_size, height, width)."""
        if self.pixel_coverage is None:
            return mask.any(1)[:, None, None].expand(-1, *self.image_size)
        return (self.pixel_coverage & mask[..., None, None]).any(1)

    def cropped_fractions(self) -> list[torch.Tensor] | None:
        """`fractions` without the cells of padding, as robustness maps are."""
        if self.fractions is None:
            return None
        stages = zip(self.fractions, STAGE_STRIDES, strict=True)
        return [crop_padding(fraction, stride, self.image_size) for fraction, stride in stages]

    def attention_bias(self, level: int, mask: torch.Tensor, active: list[int]) -> torch.Tensor:
        """Logarithm of the covered fraction of a stage's cells, `ABSENT_SCORE` where nothing is, float32 at least.

        (batch_size, M', positions) for the M' modalities `active`, or (batch_size, M', 1) if every pair is complete.
        """
        there = mask[:, active].unsqueeze(-1)
        if self.fractions is None:
            return torch.where(there, 0.0, ABSENT_SCORE)
        fraction = self.fractions[level][:, active].flatten(2)
        fraction = fraction.to(torch.promote_types(self.stages[level].tokens.dtype, torch.float32))
        there = there & (fraction > 0)
        return torch.where(there, fraction, 1).log().masked_fill(~there, ABSENT_SCORE)

    def single_robustness(self, mask: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Robustness where each row of the mask has one modality at most: 1 where that covers the cell."""
        mask, fractions = mask[..., None, None], self.cropped_fractions()
        if fractions is not None:
            return tuple((mask & (fraction > 0)).float() for fraction in fractions)
        sizes = [grid_size(self.image_size, stride) for stride in STAGE_STRIDES]
        return tuple(mask.expand(-1, -1, *size).float() for size in sizes)


def check_inputs(
    config: SgmaConfig, pixel_values: torch.Tensor, modality_mask: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return which pairs are present, and the coverage of pixels unless every present pair is complete."""
    channels = sum(config.modality_channels)
    if pixel_values.ndim != 4 or pixel_values.shape[1] != channels:
        named = dict(zip(config.modalities, config.modality_channels, strict=True))
        raise ValueError(
            f"`pixel_values` has shape {tuple(pixel_values.shape)}; expected (batch_size, {channels}, height, "
            f"width), the channels being {named} in this order. SgmaImageProcessor builds it."
        )
    if not pixel_values.is_floating_point():
        raise TypeError(
            f"`pixel_values` is {pixel_values.dtype}; expected normalised floats, as SgmaImageProcessor returns."
        )
    batch_size, modalities = pixel_values.shape[0], config.num_modalities
    if modality_mask is None:
        return pixel_values.new_ones((batch_size, modalities), dtype=torch.bool), None
    expected = (batch_size, modalities)
    if tuple(modality_mask.shape) not in (expected, expected + tuple(pixel_values.shape[-2:])):
        raise ValueError(
            f"`modality_mask` has shape {tuple(modality_mask.shape)}; expected {expected} or "
            f"{expected + tuple(pixel_values.shape[-2:])}: batch size, modalities and, per pixel, the image."
        )
    if modality_mask.dtype != torch.bool:
        raise TypeError(f"`modality_mask` is {modality_mask.dtype}; expected bool, True where there is data.")
    modality_mask = modality_mask.to(pixel_values.device)
    if modality_mask.ndim == 4:
        present = modality_mask.flatten(2).any(2)
        simple = (modality_mask.flatten(2).all(2) | ~present).all() & present.any(1).all()
        if not torch.compiler.is_compiling() and bool(simple):
            return present, None
        return present, modality_mask
    if not torch.compiler.is_compiling() and not bool(modality_mask.any(1).all()):
        empty = (~modality_mask.any(1)).nonzero().flatten().tolist()
        raise ValueError(
            f"`modality_mask` has no modality at all in row(s) {empty}; leave such rows out, or give a mask per "
            "pixel, (batch_size, num_modalities, height, width), to have them returned as uncovered."
        )
    return modality_mask, None


def check_labels(config: SgmaConfig, labels: torch.Tensor, pixel_values: torch.Tensor) -> torch.Tensor:
    """Return labels as int64, checked against the images and the classes."""
    expected = (pixel_values.shape[0], *pixel_values.shape[-2:])
    if tuple(labels.shape) != expected:
        raise ValueError(f"`labels` has shape {tuple(labels.shape)}; expected {expected}, as the images have.")
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise TypeError(f"`labels` is {labels.dtype}; expected integers, one class index per pixel.")
    labels = labels.long()
    if not torch.compiler.is_compiling():
        ignore_index = config.semantic_loss_ignore_index
        wrong = (labels != ignore_index) & ((labels < 0) | (labels >= config.num_labels))
        if bool(wrong.any()):
            raise ValueError(
                f"`labels` holds {labels[wrong].unique()[:10].tolist()}; expected classes 0 to "
                f"{config.num_labels - 1}, or {ignore_index} for pixels to ignore. Remap the labels."
            )
    return labels


def packed_positions(present: torch.Tensor) -> torch.Tensor:
    """Index of every present pair in modality-major order, -1 for the absent."""
    if torch.compiler.is_compiling():  # all pairs are computed: the shapes do not depend on the mask
        batch_size, modalities = present.shape
        rows = torch.arange(batch_size, device=present.device).unsqueeze(1)
        return rows + batch_size * torch.arange(modalities, device=present.device)
    by_modality = present.t()
    order = by_modality.flatten().cumsum(0).view_as(by_modality) - 1
    return torch.where(by_modality, order, -1).t()
