"""Markdown tables, and figures in their cells."""

from collections.abc import Sequence
from typing import Any

from .paired_statistics import PairedDifference, Spread


NOTHING = "–"


def table(header: Sequence[str], lines: Sequence[Sequence[Any]], *, text_columns: int = 1) -> str:
    """Write a table; the columns of text come first, those after them are aligned to the right.

    Args:
        header: Names of the columns.
        lines: Cells of each line.
        text_columns: How many columns hold text.
    """

    def line(cells: Sequence[Any]) -> str:
        return "| " + " | ".join(str(cell).replace("|", r"\|") for cell in cells) + " |"

    return "\n".join(
        [line(header), "|---" * text_columns + "|---:" * (len(header) - text_columns) + "|", *map(line, lines)]
    )


def percent(found: Spread | None, digits: int = 1) -> str:
    """A fraction's mean and standard deviation in %: `63.4 ± 0.3`."""
    return number(found, digits, scale=100)


def number(found: Spread | None, digits: int = 1, *, scale: float = 1) -> str:
    """A figure's mean and standard deviation; the mean alone for one seed.

    Args:
        found: The figure; None is a dash.
        digits: Decimals.
        scale: Both are multiplied by it.
    """
    if found is None:
        return NOTHING
    text = f"{scale * found.mean:.{digits}f}"
    return text if found.deviation is None else f"{text} ± {scale * found.deviation:.{digits}f}"


def change(difference: PairedDifference | None, digits: int = 1) -> str:
    """A difference of fractions in points, with its interval if there is one: `+1.2 [+0.4, +2.0]`."""
    if difference is None:
        return NOTHING
    mean = 100 * difference.mean
    if difference.half_width is None:
        return f"{mean:+.{digits}f}"
    half = 100 * difference.half_width
    return f"{mean:+.{digits}f} [{mean - half:+.{digits}f}, {mean + half:+.{digits}f}]"
