"""What a prediction is trained by: cross-entropy of its pixels (paper) and a Dice term (ours; 0 leaves it out)."""

from collections.abc import Sequence

import torch
from torch import nn

from .cells_sgma import pixel_logits


def row_losses(
    logits: torch.Tensor,
    labels: torch.Tensor,
    *,
    ignore_index: int,
    class_weights: Sequence[float] | None = None,
    dice_weight: float = 0.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sum each row's losses over its valid pixels; nothing depends on the other rows of a batch.

    Sums can be added over batches and processes and divided by all their pixels, so accumulated gradients are those
    of the large batch. For that a row's Dice loss, which is one number, counts once for each of its valid pixels.

    Args:
        logits: Class scores, (batch_size, num_labels, ceil(height / 4), ceil(width / 4)).
        labels: Classes or `ignore_index`, int64, (batch_size, height, width).
        ignore_index: Label of pixels to leave out.
        class_weights: Weight of each class in the cross-entropy, or None.
        dice_weight: Weight of the Dice loss beside it.

    Returns:
        Sums, float32 at least, and numbers of valid pixels, int64, both (batch_size,).
    """
    logits = pixel_logits(logits, labels.shape[-2:])
    weights = None if class_weights is None else logits.new_tensor(class_weights)
    sums = nn.functional.cross_entropy(logits, labels, weights, ignore_index=ignore_index, reduction="none")
    sums, counts = sums.flatten(1).sum(1), (labels != ignore_index).flatten(1).sum(1)
    if dice_weight:
        sums = sums + dice_weight * counts * _dice_losses(logits, labels, ignore_index)
    return sums, counts


def _dice_losses(logits: torch.Tensor, labels: torch.Tensor, ignore_index: int) -> torch.Tensor:
    """One soft Dice loss per row, the mean over the classes that the row has; 0 for a row without any, (batch_size,).

    1 - (2 I + 1) / (S + n + 1) for a class with n pixels, S the sum of its probability over all valid pixels and I
    over its own: the 1 is one pixel, and keeps a class of few pixels from jumping.
    """
    valid = (labels != ignore_index).flatten(1)
    classes = torch.where(valid, labels.flatten(1), 0)
    probabilities = torch.where(valid.unsqueeze(1), logits.flatten(2).softmax(1), 0)  # (B, K, pixels)
    predicted = probabilities.sum(2)
    own = probabilities.gather(1, classes.unsqueeze(1)).squeeze(1)  # 0 where the pixel is not valid
    hit = torch.zeros_like(predicted).scatter_add(1, classes, own)
    pixels = torch.zeros_like(predicted).scatter_add(1, classes, valid.to(predicted.dtype))
    losses = 1 - (2 * hit + 1) / (predicted + pixels + 1)
    there = pixels > 0
    return torch.where(there, losses, 0).sum(1) / there.sum(1).clamp_min(1)
