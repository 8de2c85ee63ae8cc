"""What it costs to take one modality from every pixel: the one most relied on, the one least relied on, or any.

A map of robustness that tells what a model depends on costs most by the first and least by the second; where the least
relied-on is better gone, the model would do better without what it does not trust anyway. Every pixel has the
prediction of all modalities but the one that it loses, so the pixels around it lose that one too. Pixels count where
they are labelled and two modalities at least cover them.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from ...data.rows import row_ids
from ...model.cells_sgma import predicted_classes
from ..metrics import count_by_row
from ..prepared_rows import PreparedRow


REMOVED = ("nothing", "least", "random", "most")


class Deletion:
    """Confusion matrices of every row for each of `REMOVED`, on the model's device."""

    def __init__(self, num_rows: int, num_labels: int, device: torch.device):
        shape = (len(REMOVED), num_rows, num_labels, num_labels)
        self.confusion = torch.zeros(shape, dtype=torch.int64, device=device)

    def add(
        self, model: PreTrainedModel, encoding: Any, batch: PreparedRow, fused: torch.Tensor, shares: torch.Tensor
    ) -> None:
        """Add a batch, with its prediction (B, H, W) and how much its pixels rely on each modality, (B, M, H, W)."""
        covered, labels = batch.covered, batch.labels
        others = ~torch.eye(covered.shape[1], dtype=torch.bool, device=labels.device)
        logits = (model.fuse_and_decode(encoding, one).logits for one in others)
        without = torch.stack([predicted_classes(part, labels.shape[-2:]) for part in logits], dim=1)  # (B, M, H, W)
        scores = {"least": -shares, "random": _draws(batch), "most": shares}
        predictions = {"nothing": fused}
        for name, score in scores.items():
            removed = score.masked_fill(~covered, -torch.inf).argmax(1, keepdim=True)
            predictions[name] = without.gather(1, removed).squeeze(1)
        counted = (labels != model.config.semantic_loss_ignore_index) & (covered.sum(1) > 1)
        for index, name in enumerate(REMOVED):
            by_row = count_by_row(predictions[name], labels, model.config.num_labels, counted)
            self.confusion[index].index_add_(0, batch.place[:, 0], by_row)

    def figures(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """`ids` of all rows, and `confusion`: each row's flat matrix, by what was removed."""
        return {"ids": row_ids(rows), "confusion": dict(zip(REMOVED, self.confusion.flatten(2).tolist(), strict=True))}


def _draws(batch: PreparedRow) -> torch.Tensor:
    """Numbers that make one modality of a pixel as likely as another, (B, M, H, W), the same for a window anywhere."""
    draws = []
    for row, top, left in batch.place.tolist():
        generator = torch.Generator().manual_seed((row << 40) + (top << 20) + left)
        draws.append(torch.rand(batch.covered.shape[1:], generator=generator))
    return torch.stack(draws).to(batch.labels.device)
