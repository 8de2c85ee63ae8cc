"""Means over seeds, differences of two arms that share their seeds, and how both stand in the cells of a table."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple


NOTHING = "–"
# Student's t, 97.5 % quantile for 1, 2, ... degrees of freedom (two-sided 95 %); beyond the last one, that one, which
# is a little too wide.
T_QUANTILES = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
    2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
    2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip


class Spread(NamedTuple):
    """Mean over seeds, and how far they are apart."""

    mean: float
    deviation: float | None  # of the sample, divisor n - 1; None for one value
    count: int


class PairedDifference(NamedTuple):
    """Mean difference of two arms, first - second, over their common seeds."""

    mean: float
    half_width: float | None  # half of the 95 % t-interval of the mean; None for one common seed
    count: int

    @property
    def verdict(self) -> str:
        """`ahead` or `behind` if the interval leaves out 0, `open` if not or if there is none."""
        if self.half_width is None or abs(self.mean) <= self.half_width:
            return "open"
        return "ahead" if self.mean > 0 else "behind"


def spread(values: Sequence[float | None]) -> Spread | None:
    """Mean and sample standard deviation of one figure per seed; None if there is no value, or one is None."""
    if not values or any(value is None for value in values):
        return None
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return Spread(statistics.fmean(values), deviation, len(values))


def paired_difference(
    first: Mapping[int, float | None], second: Mapping[int, float | None]
) -> PairedDifference | None:
    """Compare a figure by seed of two arms on the seeds that both have; None without a common one."""
    seeds = [seed for seed in first if first[seed] is not None and second.get(seed) is not None]
    found = spread([first[seed] - second[seed] for seed in sorted(seeds)])
    if found is None:
        return None
    if found.deviation is None:
        return PairedDifference(found.mean, None, 1)
    quantile = T_QUANTILES[min(found.count - 1, len(T_QUANTILES)) - 1]
    return PairedDifference(found.mean, quantile * found.deviation / math.sqrt(found.count), found.count)


def percent(found: Spread | None) -> str:
    """A fraction's mean and standard deviation in %: `63.4 ± 0.3`."""
    return number(found, 1, scale=100)


def number(found: Spread | None, digits: int = 2, *, scale: float = 1) -> str:
    """A figure's mean and standard deviation, times `scale`; the mean alone for one seed, a dash for None."""
    if found is None:
        return NOTHING
    text = f"{scale * found.mean:.{digits}f}"
    return text if found.deviation is None else f"{text} ± {scale * found.deviation:.{digits}f}"


def change(difference: PairedDifference | None) -> str:
    """A difference of fractions in points, with its interval if there is one; bold where that leaves out 0."""
    if difference is None:
        return NOTHING
    mean = 100 * difference.mean
    if difference.half_width is None:
        return f"{mean:+.1f}"
    half = 100 * difference.half_width
    text = f"{mean:+.1f} [{mean - half:+.1f}, {mean + half:+.1f}]"
    return text if difference.verdict == "open" else f"**{text}**"
