"""Figures as they stand in the cells of a table, and tables of the arms."""

from collections.abc import Mapping

from ..publishing.tables import markdown_table
from .experiments import Experiment, Figure
from .paired_statistics import PairedDifference, Spread


NOTHING = "–"


def percent(found: Spread | None, digits: int = 1) -> str:
    """A fraction's mean and standard deviation in %: `63.4 ± 0.3`."""
    return number(found, digits, scale=100)


def number(found: Spread | None, digits: int = 2, *, scale: float = 1) -> str:
    """A figure's mean and standard deviation, times `scale`; the mean alone for one seed, a dash for None."""
    if found is None:
        return NOTHING
    text = f"{scale * found.mean:.{digits}f}"
    return text if found.deviation is None else f"{text} ± {scale * found.deviation:.{digits}f}"


def change(difference: PairedDifference | None, digits: int = 1) -> str:
    """A difference of fractions in points, with its interval if there is one; bold where that leaves out 0."""
    if difference is None:
        return NOTHING
    mean = 100 * difference.mean
    if difference.half_width is None:
        return f"{mean:+.{digits}f}"
    half = 100 * difference.half_width
    text = f"{mean:+.{digits}f} [{mean - half:+.{digits}f}, {mean + half:+.{digits}f}]"
    return text if difference.verdict == "open" else f"**{text}**"


def arm_table(experiment: Experiment, columns: Mapping[str, Figure]) -> str:
    """A line for each arm, with the mean and the standard deviation over its seeds of the figures by column."""
    lines = [
        [f"`{arm}`", *(percent(experiment.spread(arm, figure)) for figure in columns.values())]
        for arm in experiment.runs
    ]
    return markdown_table(["arm", *columns], lines)
