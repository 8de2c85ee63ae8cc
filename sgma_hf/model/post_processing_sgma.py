"""From the model's output to maps: class ids, and how much each modality was relied on."""

from collections.abc import Sequence
from typing import Any

import torch

from .cells_sgma import (
    LOGITS_STRIDE,
    STAGE_STRIDES,
    pixel_logits,
    repeat_to_pixels,
    resize,
    resize_mask,
    upsample_to_pixels,
)
from .dates_sgma import over_dates
from .limits_sgma import IGNORE_INDEX


class SgmaPostProcessingMixin:
    """`post_process_semantic_segmentation` and `post_process_robustness` of an image processor."""

    def post_process_semantic_segmentation(
        self,
        outputs: Any,
        target_sizes: Sequence[tuple[int, int]] | torch.Tensor | None = None,
        *,
        input_sizes: Sequence[tuple[int, int]] | torch.Tensor | None = None,
    ) -> list[torch.Tensor]:
        """Turn the model's output into one class map per row.

        The logits, one cell per 4 x 4 pixels or fewer, are brought to the size of the model's input, and from there to
        the target size if that is another one, both by bilinear interpolation before the argmax.

        Args:
            outputs: Output of the model, with `logits` (batch_size, num_labels, height / 4, width / 4), or finer, and
                `coverage` (batch_size, height, width).
            target_sizes: (height, width) of each map in pixels. None: that of the input.
            input_sizes: (height, width) of each row before it was padded to the batch's largest; the padding is cut
                off. None: no row was padded.

        Returns:
            Class ids, int64 (height, width), one map per row. Pixels that no modality covers are 255 (ignore).

        Raises:
            ValueError: If the number of sizes is not that of the rows.
        """
        maps = []
        for index, (row_size, size) in enumerate(self._sizes(outputs, input_sizes, target_sizes)):
            logits = pixel_logits(outputs.logits[index : index + 1], outputs.coverage.shape[-2:])
            coverage = outputs.coverage[index : index + 1].unsqueeze(1)
            logits, coverage = (values[..., : row_size[0], : row_size[1]] for values in (logits, coverage))
            if row_size != size:
                logits, coverage = resize(logits, size), resize_mask(coverage, size)
            maps.append(logits[0].argmax(0).masked_fill(~coverage[0, 0], IGNORE_INDEX))
        return maps

    def post_process_robustness(
        self,
        outputs: Any,
        target_sizes: Sequence[tuple[int, int]] | torch.Tensor | None = None,
        stage: int | None = None,
        *,
        modality_mask: torch.Tensor | None = None,
        input_sizes: Sequence[tuple[int, int]] | torch.Tensor | None = None,
    ) -> list[torch.Tensor]:
        """Turn the robustness maps into shares per pixel: how much each modality is relied on.

        Args:
            outputs: Output of the model, with `robustness` and `coverage`.
            target_sizes: (height, width) of each map in pixels. None: that of the input.
            stage: 0 (fine, 4 pixels a cell) to 3 (coarse, 32). None: the mean over the stages.
            modality_mask: That of the model's input. None: where a modality ends inside an image, only the cells of
                the finest stage tell, so its share may reach up to 3 pixels beyond.
            input_sizes: As for `post_process_semantic_segmentation`.

        Returns:
            float32 (num_modalities, height, width) per row, in [0, 1], summing to 1 over the modalities wherever any
            of them covers, else 0. The share of a modality is 0 where it does not cover itself.

        Raises:
            ValueError: If the model has no robustness (mean fusion), or no such stage.
        """
        if outputs.robustness is None:
            raise ValueError("`outputs.robustness` is None: mean fusion has none. Use a model with `fusion='sgf'`.")
        num_stages = len(outputs.robustness)
        if stage is not None and not 0 <= stage < num_stages:
            raise ValueError(f"`stage` is {stage}; expected 0 to {num_stages - 1}, or None for the mean over all.")
        stages = range(num_stages) if stage is None else [stage]
        maps = []
        for index, (row_size, size) in enumerate(self._sizes(outputs, input_sizes, target_sizes)):
            row = slice(index, index + 1)
            robustness = [values[row] for values in outputs.robustness]
            mask = None if modality_mask is None else modality_mask[row]
            shares, covered = robustness_at_pixels(robustness, outputs.coverage[row], mask, stages=stages)
            shares, covered = (values[..., : row_size[0], : row_size[1]] for values in (shares, covered))
            if row_size != size:
                shares, covered = resize(shares, size), resize_mask(covered, size)
            maps.append(modality_shares(shares, covered)[0])
        return maps

    @staticmethod
    def _sizes(outputs: Any, input_sizes: Any, target_sizes: Any) -> list[tuple[tuple[int, int], tuple[int, int]]]:
        """Pairs (size of the row within the batch, size of its map), checked."""
        num_rows, height, width = outputs.coverage.shape
        pairs = []
        for name, sizes in (("input_sizes", input_sizes), ("target_sizes", target_sizes)):
            if sizes is None:
                sizes = pairs[0] if pairs else [(height, width)] * num_rows
            sizes = [(int(size[0]), int(size[1])) for size in sizes]
            if len(sizes) != num_rows or any(min(size) < 1 for size in sizes):
                raise ValueError(f"`{name}` is {sizes}; expected a (height, width) of at least 1 for {num_rows} rows.")
            pairs.append(sizes)
        return list(zip(*pairs, strict=True))


def robustness_at_pixels(
    robustness: Sequence[torch.Tensor],
    coverage: torch.Tensor,
    modality_mask: torch.Tensor | None,
    *,
    stages: Sequence[int] = range(len(STAGE_STRIDES)),
) -> tuple[torch.Tensor, torch.Tensor]:
    """The stages' sum, and which pixels each modality covers; both (batch_size, num_modalities, height, width)."""
    size = coverage.shape[-2:]
    mask = None if modality_mask is None else over_dates(modality_mask)
    if mask is not None and mask.ndim == 4:
        covered = mask.to(coverage.device)
    else:  # exactly 0 where a modality has no pixel in the cell
        covered = repeat_to_pixels(robustness[0] > 0, LOGITS_STRIDE, size)
    shares = sum(upsample_to_pixels(robustness[i].float(), STAGE_STRIDES[i], size) for i in stages)
    return shares, covered & coverage.unsqueeze(1)


def modality_shares(robustness: torch.Tensor, covered: torch.Tensor) -> torch.Tensor:
    """Shares that sum to 1 over the modalities that cover the pixel, 0 for others.

    Coarse cells reach beyond what a modality covers, and those that it does not cover thin out its share by
    interpolation: cut, and bring the sum back to 1.
    """
    robustness = robustness * covered
    return robustness / robustness.sum(1, keepdim=True).clamp_min(1e-12)
