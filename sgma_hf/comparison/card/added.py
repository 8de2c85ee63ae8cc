"""What an added sensor brings: each combination of the modalities beside the same with one more."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from ...publishing.results import Pair, pairs_of
from ...publishing.tables import Cell, Table
from .cells import interval, tested_cells
from .experiments import Experiment
from .statistics import paired_difference, tile_interval


TOLERATED = 0.005  # mIoU that a sensor may cost
_NOTE = (
    "mIoU with a sensor − mIoU without it, of the same runs on the same tiles, in points, mean over the seeds; a pair "
    "is a combination of the others and the sensor. The worst pair is picked by these very figures. 95 % intervals "
    "over seeds and over tiles; s: a t-test over seeds tells it from 0, t: a bootstrap over tiles does, each at 5 % "
    "for all pairs of an arm together (Holm)."
)


def added_tables(experiment: Experiment) -> Iterator[Table]:
    """Yield what a sensor brings to each arm, summed up for all splits and pair by pair for the reported one."""
    intervals, parts = ["over seeds", "over tiles"], (experiment, *experiment.choosing())
    found = [(part, arm, _added(part, arm)) for part in parts for arm in part.runs]
    lines = [
        [f"`{arm}`", f"`{part.settings['report_split']}`", *_summed_up(cells)]
        for part, arm, cells in found
        if any(brings.value is not None for brings, *_ in cells.values())
    ]
    if not lines:
        return
    header = ["arm", "split", "worst pair", "it brings", *intervals, "mean of all pairs", "pairs that cost"]
    header.append(f"more than {100 * TOLERATED:g}")
    yield Table("added", "What an added sensor brings", header, lines, _NOTE, text_columns=3)
    reported = {arm: cells for part, arm, cells in found if part is experiment}
    pairs = dict.fromkeys(pair for cells in reported.values() for pair in cells)
    lines = [[f"{pair}, `{arm}`", *cells[pair]] for pair in pairs for arm, cells in reported.items() if pair in cells]
    header = ["pair, arm", "it brings", *intervals]
    yield Table("added_pairs", "What an added sensor brings, pair by pair", header, lines, _NOTE)


def _added(experiment: Experiment, arm: str) -> dict[Pair, tuple[Cell, Cell, Cell]]:
    """What each pair brings an arm, and the intervals over seeds and over tiles."""
    names = list(experiment.results(next(iter(experiment.runs[arm].values())))["combinations"])
    miou = {name: experiment.figures(arm, experiment.score("combinations", name, "miou")) for name in names}
    pairs = pairs_of(names)
    found = [paired_difference(miou[pair.together], miou[pair.without]) for pair in pairs]
    resampled: list[np.ndarray | None] = [None] * len(pairs)
    if experiment.resampled_miou[arm]:
        columns = dict(zip(names, np.mean(list(experiment.resampled_miou[arm].values()), axis=0).T, strict=True))
        resampled = [columns[pair.together] - columns[pair.without] for pair in pairs]
    over_seeds = [interval(one and one.interval) for one in found]
    over_tiles = [interval(None if one is None else tile_interval(one)[:2]) for one in resampled]
    return dict(zip(pairs, zip(tested_cells(found, resampled), over_seeds, over_tiles, strict=True), strict=True))


def _summed_up(cells: Mapping[Pair, tuple[Cell, Cell, Cell]]) -> list[Any]:
    """The worst pair with what it brings, the mean of all that are scored, and how many cost, and cost much."""
    brought = {pair: brings.value for pair, (brings, *_) in cells.items() if brings.value is not None}
    worst = min(brought, key=brought.get)
    mean = sum(brought.values()) / len(brought)
    counts = [sum(value < limit for value in brought.values()) for limit in (0, -TOLERATED)]
    shares = [Cell(f"{n} of {len(brought)} ({100 * n / len(brought):.0f} %)", n / len(brought)) for n in counts]
    return [str(worst), *cells[worst], Cell(f"{100 * mean:+.1f}", mean), *shares]
