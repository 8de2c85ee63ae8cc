"""How means, intervals and differences stand in the cells of a table."""

from collections.abc import Sequence

import numpy as np

from ...publishing.tables import Cell
from .experiments import SCORES, Experiment
from .statistics import LEVEL, Spread, holm, tile_interval


NOTHING = Cell("–")


def percent(found: Spread | None) -> Cell:
    """A fraction's mean and standard deviation in %: `63.4 ± 0.3`."""
    return number(found, 1, scale=100)


def number(found: Spread | None, digits: int = 2, *, scale: float = 1) -> Cell:
    """A figure's mean and standard deviation, times `scale`; the mean alone for one seed, a dash for None."""
    if found is None:
        return NOTHING
    text = f"{scale * found.mean:.{digits}f}"
    if found.deviation is not None:
        text += f" ± {scale * found.deviation:.{digits}f}"
    return Cell(text, found.mean, found.deviation, count=found.count)


def interval(bounds: tuple[float, float] | None) -> Cell:
    """An interval of a fraction in %; a dash for None."""
    if bounds is None:
        return NOTHING
    return Cell(f"{100 * bounds[0]:.1f} to {100 * bounds[1]:.1f}", low=bounds[0], high=bounds[1])


def tile_bounds(resampled: np.ndarray | None) -> tuple[float, float] | None:
    """Interval over tiles of the first of `SCORES`; None without tiles."""
    return None if resampled is None else tile_interval(resampled[:, 0])[:2]


def difference_cells(experiment: Experiment, pairs: Sequence[tuple[str, str]], score: str) -> list[Cell]:
    """A cell for the difference of each pair of arms, first - second; see `tested_cells`."""
    column = list(SCORES.values()).index(score)
    resampled = (experiment.resampled(*pair) for pair in pairs)
    return tested_cells(
        [experiment.difference(*pair, experiment.score(score)) for pair in pairs],
        [None if values is None else values[:, column] for values in resampled],
    )


def tested_cells(found: Sequence[Spread | None], resampled: Sequence[np.ndarray | None]) -> list[Cell]:
    """A cell for each difference, in points, with what tells it from 0: over seeds, and over resamples of the tiles.

    `s` is the t-test over seeds and `t` the paired bootstrap over tiles, each corrected for all that have it; bold are
    differences with both. The interval of the cell is that over seeds.
    """
    tested = [index for index, one in enumerate(found) if one is not None and one.deviation is not None]
    seeds = dict(zip(tested, holm([found[index].p_value for index in tested]), strict=True))
    known = [index for index, values in enumerate(resampled) if values is not None]
    tiles = dict(zip(known, holm([tile_interval(resampled[index]).p_value for index in known]), strict=True))
    cells = []
    for index, one in enumerate(found):
        if one is None:
            cells.append(NOTHING)
            continue
        marks = "".join(mark for mark, p in (("s", seeds), ("t", tiles)) if p.get(index, 1.0) < LEVEL)
        points = f"{100 * one.mean:+.1f}"
        text = " ".join(filter(None, [points if float(points) else "0.0", marks]))
        low, high = one.interval or (None, None)
        cells.append(Cell(f"**{text}**" if len(marks) == 2 else text, one.mean, one.deviation, low, high, one.count))
    return cells
