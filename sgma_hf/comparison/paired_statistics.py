"""Means over seeds, and differences of two arms that share their seeds."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple


# Student's t, 97.5 % quantile for 1, 2, ... degrees of freedom (two-sided 95 %); beyond the last one, that one, which
# is a little too wide.
T_QUANTILES = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
    2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
    2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip


class Spread(NamedTuple):
    """Mean over seeds, and how far they are apart.

    Attributes:
        mean: The mean.
        deviation: Sample standard deviation (divisor n - 1); None for one value.
        count: Number of values.
    """

    mean: float
    deviation: float | None
    count: int


class PairedDifference(NamedTuple):
    """Mean difference of two arms over their common seeds.

    Attributes:
        mean: Mean of (first - second).
        half_width: Half of the 95 % t-interval of that mean; None for one common seed.
        count: Number of common seeds.
    """

    mean: float
    half_width: float | None
    count: int

    @property
    def verdict(self) -> str:
        """`ahead` or `behind` if the interval leaves out 0, `open` if not or if there is none."""
        if self.half_width is None or abs(self.mean) <= self.half_width:
            return "open"
        return "ahead" if self.mean > 0 else "behind"


def spread(values: Sequence[float | None]) -> Spread | None:
    """Mean and sample standard deviation; None if there is no value, or one is None.

    Args:
        values: One figure per seed.

    Example:
        >>> spread([1.0, 2.0, 3.0])
        Spread(mean=2.0, deviation=1.0, count=3)
    """
    if not values or any(value is None for value in values):
        return None
    mean = math.fsum(values) / len(values)
    if len(values) == 1:
        return Spread(mean, None, 1)
    squares = math.fsum((value - mean) ** 2 for value in values)
    return Spread(mean, math.sqrt(squares / (len(values) - 1)), len(values))


def paired_difference(
    first: Mapping[int, float | None], second: Mapping[int, float | None]
) -> PairedDifference | None:
    """Compare two arms on the seeds that both have.

    Args:
        first: Figure by seed.
        second: The same of the other arm.

    Returns:
        Mean of first - second with its 95 % interval, or None without a common seed.

    Example:
        >>> difference = paired_difference({0: 2.0, 1: 4.0, 2: 6.0}, {0: 1.0, 1: 2.0, 2: 3.0})
        >>> round(difference.mean, 3), round(difference.half_width, 3)
        (2.0, 2.484)
    """
    seeds = [seed for seed in first if first[seed] is not None and second.get(seed) is not None]
    found = spread([first[seed] - second[seed] for seed in sorted(seeds)])
    if found is None:
        return None
    if found.deviation is None:
        return PairedDifference(found.mean, None, 1)
    quantile = T_QUANTILES[min(found.count - 1, len(T_QUANTILES)) - 1]
    return PairedDifference(found.mean, quantile * found.deviation / math.sqrt(found.count), found.count)
