"""Runs that may stand in one table, out of the lines of one or several result files."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .arms import ARMS
from .paired_statistics import PairedDifference, Spread, paired_difference, spread
from .run_records import IDENTITY


# Settings that add figures to a run, or say where it ran, but are no part of the training.
EVALUATION_SETTINGS = ("choosing_split", "corruptions", "reliance", "device", "threads")
Figure = Callable[[Mapping[str, Any]], float | None]


@dataclass
class Experiment:
    """Arms that were trained on the same data with the same settings.

    Attributes:
        dataset: Its name, fingerprint, modalities and classes, as the first run has them.
        settings: Those that the training depends on.
        runs: The runs by arm and seed, arms in the order of `ARMS`, others after them.
        left_out: Runs of an arm by an earlier definition of it, which are in no table.
    """

    dataset: dict[str, Any]
    settings: dict[str, Any]
    runs: dict[str, dict[int, dict[str, Any]]] = field(default_factory=dict)
    left_out: int = 0

    @property
    def all_runs(self) -> list[dict[str, Any]]:
        """Every run, arm by arm."""
        return [run for seeds in self.runs.values() for run in seeds.values()]

    @property
    def seeds(self) -> list[int]:
        """Seeds of all arms."""
        return sorted({run["seed"] for run in self.all_runs})

    def results(self, run: Mapping[str, Any]) -> dict[str, Any]:
        """What a run reports."""
        return run["results"][self.settings["report_split"]]

    def figures(self, arm: str, figure: Figure) -> dict[int, float | None]:
        """A figure of each of an arm's runs, by seed."""
        return {seed: figure(run) for seed, run in sorted(self.runs[arm].items())}

    def spread(self, arm: str, figure: Figure) -> Spread | None:
        """A figure's mean and standard deviation over the seeds of an arm."""
        return spread(list(self.figures(arm, figure).values()))

    def difference(self, first: str, second: str, figure: Figure) -> PairedDifference | None:
        """A figure's mean difference between two arms, over their common seeds."""
        return paired_difference(self.figures(first, figure), self.figures(second, figure))

    def score(self, name: str) -> Figure:
        """The figure of that name in the reported results, for instance `average_miou`."""
        return lambda run: self.results(run)[name]


def group_runs(rows: Sequence[Mapping[str, Any]]) -> list[Experiment]:
    """Sort runs into experiments.

    Where an arm's definition, or the package's default model, changed between two runs, its last line decides which
    definition counts.

    Args:
        rows: Runs as `read_rows` returns them, the newest last.

    Returns:
        Experiments in the order in which they first appear.

    Raises:
        ValueError: If there is no run.
    """
    if not rows:
        raise ValueError("There is no run in the results; run `sgma-hf compare` first, or correct the file's name.")
    grouped: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        settings = {name: value for name, value in row["settings"].items() if name not in EVALUATION_SETTINGS}
        key = json.dumps([row["dataset"]["name"], row["dataset"]["fingerprint"], settings], sort_keys=True)
        grouped.setdefault(key, []).append(row)
    return [_experiment(json.loads(key)[2], group) for key, group in grouped.items()]


def _experiment(settings: dict[str, Any], rows: Sequence[Mapping[str, Any]]) -> Experiment:
    experiment = Experiment(dict(rows[0]["dataset"]), settings)
    definitions = {row["arm"]: _definition(row) for row in rows}  # the last one stays
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for row in rows:
        if _definition(row) != definitions[row["arm"]]:
            experiment.left_out += 1
            continue
        runs = found.setdefault(row["arm"], {})
        # the same training again, evaluated on more or less: what only one of them has is kept
        earlier = runs.get(row["seed"], {})
        runs[row["seed"]] = {**earlier, **row, "results": {**earlier.get("results", {}), **row["results"]}}
    order = [*(arm for arm in ARMS if arm in found), *(arm for arm in found if arm not in ARMS)]
    experiment.runs = {arm: dict(sorted(found[arm].items())) for arm in order}
    return experiment


def _definition(row: Mapping[str, Any]) -> str:
    parts = {key: row[key] for key in IDENTITY if key not in ("arm", "seed", "settings")}
    return json.dumps(parts, sort_keys=True)
