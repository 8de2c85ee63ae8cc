"""Pixels and the cells of the four stages: shares of cells, and histograms that order statistics are taken from."""

import numpy as np
import torch
from torch import nn

from ..model.cells_sgma import STAGE_STRIDES


# Robustness lies in [0, 1], a change of it in [-1, 1]. Values of one bin count as ties, so an AUC is off by half the
# share of such pairs at most.
NUM_BINS = 2001  # odd, so that 0 is the centre of a bin of [-1, 1]


def cell_shares(masks: torch.Tensor) -> list[torch.Tensor]:
    """Share of every cell's pixels where bool masks (..., height, width) are True, of those inside the image.

    Float32 in [0, 1], (..., ceil(height / stride), ceil(width / stride)), for the strides 4, 8, 16 and 32.
    """
    height, width = masks.shape[-2:]
    planes = masks.reshape(-1, 1, height, width).float()
    inside = torch.ones(1, 1, height, width, device=masks.device)
    coarsest = STAGE_STRIDES[-1]
    padding = (0, -width % coarsest, 0, -height % coarsest)
    planes, inside = nn.functional.pad(planes, padding), nn.functional.pad(inside, padding)
    shares = []
    for stride in STAGE_STRIDES:
        rows, columns = -(-height // stride), -(-width // stride)
        counts, sizes = (nn.functional.avg_pool2d(maps, stride)[..., :rows, :columns] for maps in (planes, inside))
        shares.append((counts / sizes).reshape(*masks.shape[:-2], rows, columns))
    return shares


def histogram(values: torch.Tensor, low: float, high: float) -> np.ndarray:
    """Count finite values in `NUM_BINS` bins from `low` to `high`, int64; those outside go to the outermost bins."""
    return np.bincount(bin_indices(values, low, high).flatten().cpu().numpy(), minlength=NUM_BINS)


def bin_indices(values: torch.Tensor, low: float, high: float) -> torch.Tensor:
    """Bin of every value, int64 in [0, NUM_BINS), as `histogram` counts them."""
    # Bins are centred on multiples of the width: a change of exactly 0 must not be split by rounding noise.
    positions = (values.double() - low) / (high - low) * (NUM_BINS - 1)
    return positions.round().long().clamp(0, NUM_BINS - 1)


def histogram_auc(lower: np.ndarray, higher: np.ndarray) -> float | None:
    """Probability that a random value of `lower` is below a random one of `higher`, ties counting one half.

    Both are counts in the same bins. 0.5 if the two say nothing about each other; None if either is empty.
    """
    lower, higher = lower.astype(np.float64), higher.astype(np.float64)
    pairs = lower.sum() * higher.sum()
    if pairs == 0:
        return None
    return float(higher @ (np.cumsum(lower) - lower / 2) / pairs)


def ratio(part: float | None, whole: float) -> float | None:
    """Part of a whole; None if the whole is nothing, or the part is not known."""
    return float(part / whole) if whole and part is not None else None
