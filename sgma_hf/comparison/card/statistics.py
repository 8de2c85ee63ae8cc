"""What a few seeds and a few tiles can say: intervals, tests of differences, and what several tests at once leave.

Over seeds: Student's t, of means and of paired differences. It asks what training anew would give, on the same rows.
Over tiles: the paired bootstrap of Koehn (2004), https://aclanthology.org/W04-3250, on the confusion matrices of
tiles. It asks what other tiles like these would give the same trained models; where tiles touch, intervals are too
narrow. Several claims: Holm (1979), https://www.jstor.org/stable/4615733. Ranks: Friedman's mean ranks with Nemenyi's
critical difference, as Demšar (2006) has them, https://jmlr.org/papers/v7/demsar06a.html.
"""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np


LEVEL = 0.05
NUM_RESAMPLES = 10_000
_MOST_NUMBERS = 2**22  # of sums at once, 32 MB


class Spread(NamedTuple):
    """Mean over seeds, and how far they are apart."""

    mean: float
    deviation: float | None  # of the sample, divisor n - 1; None for one value
    count: int

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % t-interval of the mean; None for one value."""
        if self.deviation is None:
            return None
        half = t_quantile(1 - LEVEL, self.count - 1) * self.deviation / math.sqrt(self.count)
        return self.mean - half, self.mean + half

    @property
    def p_value(self) -> float:
        """Of the two-sided t-test that the mean is 0; 1 for one value, which cannot be tested."""
        if self.deviation is None or self.mean == 0:
            return 1.0
        if self.deviation == 0:
            return 0.0
        return 1 - t_within(abs(self.mean) / self.deviation * math.sqrt(self.count), self.count - 1)


def spread(values: Sequence[float | None]) -> Spread | None:
    """Mean and sample standard deviation of one figure per seed; None if there is no value, or one is None."""
    if not values or any(value is None for value in values):
        return None
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return Spread(statistics.fmean(values), deviation, len(values))


def paired_difference(first: Mapping[int, float | None], second: Mapping[int, float | None]) -> Spread | None:
    """Mean of first - second, of a figure by seed, over the seeds that both have; None without a common one."""
    seeds = [seed for seed in first if first[seed] is not None and second.get(seed) is not None]
    return spread([first[seed] - second[seed] for seed in sorted(seeds)])


def t_within(t: float, freedom: int) -> float:
    """Probability that Student's t lies within -t and t (26.7.3 and 4 of Abramowitz and Stegun)."""
    angle, odd = math.atan2(t, math.sqrt(freedom)), freedom % 2
    term, total = math.cos(angle) if odd else 1.0, 0.0
    for step in range(2 + odd, freedom + 1, 2):
        total += term
        term *= math.cos(angle) ** 2 * (step - 1) / step
    total *= math.sin(angle)
    return 2 / math.pi * (angle + total) if odd else total


def t_quantile(share: float, freedom: int) -> float:
    """The t within which Student's t lies with a probability."""
    return _bisect(lambda t: t_within(t, freedom), share, 1e4)


def studentized_range_quantile(share: float, count: int) -> float:
    """What the range of `count` independent standard normal values does not exceed with a probability."""
    places = np.linspace(-9, 9, 3601)
    below = np.array([math.erf(place / math.sqrt(2)) for place in places]) / 2 + 0.5
    density = np.exp(-(places**2) / 2) / math.sqrt(2 * math.pi)

    def probability(width: float) -> float:
        inside = below - np.interp(places - width, places, below, left=0)
        return count * float(np.trapezoid(density * inside ** (count - 1), places))

    return _bisect(probability, share, 20.0)


def _bisect(rising: Callable[[float], float], target: float, high: float) -> float:
    low = 0.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if rising(middle) < target else (low, middle)
    return high


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values for how many there are (Holm 1979): what stays below a level holds at that level for all."""
    adjusted, highest = [1.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted


def resampled_weights(num_tiles: int, num_resamples: int = NUM_RESAMPLES, seed: int = 0) -> np.ndarray:
    """How often each tile is drawn, with replacement, in every resample: float64 (num_resamples, num_tiles)."""
    share = np.full(num_tiles, 1 / num_tiles)
    return np.random.default_rng(seed).multinomial(num_tiles, share, size=num_resamples).astype(np.float64)


def weighted_miou(confusion: np.ndarray, weights: np.ndarray, classes: Sequence[int] | None = None) -> np.ndarray:
    """Score weighted sums of tiles, as `segmentation_scores` scores their plain sum.

    Args:
        confusion: Counts of every tile and combination, integer, shape (tiles, combinations, K, K).
        weights: How often each tile counts, shape (sums, tiles); the unit matrix scores the tiles one by one.
        classes: Ids of those that the means run over; None takes all.

    Returns:
        mIoU of each combination, shape (sums, combinations), NaN where nothing was counted.
    """
    flat = confusion.reshape(len(confusion), -1).astype(np.float64)
    step = max(1, _MOST_NUMBERS // flat.shape[1])
    parts = (weights[start : start + step] @ flat for start in range(0, len(weights), step))
    return np.concatenate([_miou(part.reshape(-1, *confusion.shape[1:]), classes) for part in parts])


def _miou(sums: np.ndarray, classes: Sequence[int] | None) -> np.ndarray:
    """Mean IoU of confusion matrices (sums, combinations, K, K)."""
    hits = np.diagonal(sums, axis1=2, axis2=3)
    union = sums.sum(2) + sums.sum(3) - hits
    if classes is not None:
        hits, union = hits[..., list(classes)], union[..., list(classes)]
    scored = union > 0
    iou = np.divide(hits, union, out=np.zeros_like(hits), where=scored)
    return np.where(scored.any(2), iou.sum(2) / np.maximum(scored.sum(2), 1), np.nan)


def weighted_scores(confusion: np.ndarray, weights: np.ndarray, classes: Sequence[int] | None = None) -> np.ndarray:
    """Average, Last-1 and Top-1 of weighted sums of tiles, (sums, 3); see `weighted_miou` and `summed_up`."""
    return summed_up(weighted_miou(confusion, weights, classes))


def summed_up(miou: np.ndarray) -> np.ndarray:
    """Average, Last-1 and Top-1 over the combinations, (sums, combinations) -> (sums, 3), as `weighted_miou` has them.

    Those of which nothing was counted are left out; NaN without any.
    """
    nothing = np.isnan(miou).all(1)
    known = np.where(nothing[:, None], 0, miou)
    scores = np.stack([np.nanmean(known, 1), np.nanmin(known, 1), np.nanmax(known, 1)], axis=1)
    scores[nothing] = np.nan
    return scores


class TileInterval(NamedTuple):
    """The middle 95 % of a figure's resamples, and the two-sided p-value that it is 0."""

    low: float
    high: float
    p_value: float


def tile_interval(resampled: np.ndarray) -> TileInterval:
    """Percentile interval of one figure's resamples, shape (num_resamples,), those that are NaN left out."""
    resampled = resampled[~np.isnan(resampled)]
    if not len(resampled):
        return TileInterval(math.nan, math.nan, 1.0)
    low, high = np.quantile(resampled, (LEVEL / 2, 1 - LEVEL / 2)).tolist()
    least = min(np.count_nonzero(resampled <= 0), np.count_nonzero(resampled >= 0))
    return TileInterval(low, high, min(1.0, 2 * (least + 1) / (len(resampled) + 1)))


def mean_ranks(scores: np.ndarray) -> np.ndarray:
    """Mean rank of each method over blocks, (blocks, methods) -> (methods,); 1 is the highest, ties share ranks."""
    higher = (scores[:, None, :] > scores[:, :, None]).sum(2)
    equal = (scores[:, None, :] == scores[:, :, None]).sum(2)
    return (higher + (equal + 1) / 2).mean(0)


def critical_difference(num_methods: int, num_blocks: int) -> float:
    """How far mean ranks of two methods must lie apart (Nemenyi, 5 %)."""
    quantile = studentized_range_quantile(1 - LEVEL, num_methods) / math.sqrt(2)
    return quantile * math.sqrt(num_methods * (num_methods + 1) / (6 * num_blocks))
