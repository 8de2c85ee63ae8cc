"""Runs that may stand in one table, out of the lines of one or several result files."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from ..arms import ARMS
from ..identity import definition, training_arguments, training_settings
from .statistics import (
    Spread,
    paired_difference,
    resampled_weights,
    spread,
    summed_up,
    weighted_miou,
    weighted_scores,
)


Figure = Callable[[Mapping[str, Any]], float | None]
SCORES = {"Average": "average_miou", "Last-1": "last1_miou", "Top-1": "top1_miou"}  # as `weighted_scores` has them


def at(*keys: str | int) -> Figure:
    """The figure at a path of keys and indices in a run; None where something on the way is None or not there."""

    def figure(run: Mapping[str, Any]) -> float | None:
        value: Any = run
        for key in keys:
            if value is None:
                return None
            value = value.get(key) if isinstance(value, Mapping) else value[key]
        return value

    return figure


@dataclass
class Experiment:
    """Arms that were trained on the same data with the same settings."""

    dataset: dict[str, Any]  # name, fingerprint, modalities and classes, as the first run has them
    settings: dict[str, Any]  # those that the training depends on
    training: dict[str, Any]  # the training arguments of all arms
    # By arm and seed, arms in the order of `ARMS`, others after them.
    runs: dict[str, dict[int, dict[str, Any]]] = field(default_factory=dict)
    left_out: int = 0  # runs of an arm by an earlier definition of it, which are in no table
    replaced: int = 0  # runs that were done again with other scores; the later ones are in the tables

    @property
    def all_runs(self) -> list[dict[str, Any]]:
        """Every run, arm by arm."""
        return [run for seeds in self.runs.values() for run in seeds.values()]

    def results(self, run: Mapping[str, Any]) -> dict[str, Any]:
        """What a run reports."""
        return run["results"][self.settings["report_split"]]

    def figures(self, arm: str, figure: Figure) -> dict[int, float | None]:
        """A figure of each of an arm's runs, by seed."""
        return {seed: figure(run) for seed, run in sorted(self.runs[arm].items())}

    def spread(self, arm: str, figure: Figure) -> Spread | None:
        """A figure's mean and standard deviation over the seeds of an arm."""
        return spread(list(self.figures(arm, figure).values()))

    def difference(self, first: str, second: str, figure: Figure) -> Spread | None:
        """A figure's mean difference between two arms, over their common seeds."""
        return paired_difference(self.figures(first, figure), self.figures(second, figure))

    def score(self, *keys: str | int) -> Figure:
        """The figure at a path in the reported results, for instance `average_miou`."""
        return at("results", self.settings["report_split"], *keys)

    @property
    def classes(self) -> list[int] | None:
        """Ids of the classes that the means run over, if they were chosen."""
        names = self.settings.get("score_classes")
        return None if names is None else [self.dataset["class_names"].index(name) for name in names]

    @cached_property
    def tiles(self) -> dict[str, dict[int, np.ndarray]]:
        """Counts of every tile of the reported split, int64 (tiles, combinations, K, K), by arm and seed.

        Runs by a version that did not keep them have none. A ValueError says that a run's scores are not those of its
        counts: somebody changed the line.
        """
        size = len(self.dataset["class_names"])
        found: dict[str, dict[int, np.ndarray]] = {arm: {} for arm in self.runs}
        for run in self.all_runs:
            results = self.results(run)
            if "tiles" in results:
                confusion = list(results["tiles"]["confusion"].values())
                counts = np.array(confusion, dtype=np.int64).reshape(len(confusion), -1, size, size).swapaxes(0, 1)
                counted = weighted_scores(counts, np.ones((1, len(counts))), self.classes)[0]
                said = np.array([results[key] for key in SCORES.values()], dtype=np.float64)  # None is NaN
                if not np.allclose(counted, said, rtol=0, atol=1e-9, equal_nan=True):
                    raise ValueError(
                        f"The scores of {run['arm']}, seed {run['seed']}, are {said.tolist()}, those of the counts in "
                        f"its tiles {counted.tolist()}; the line was changed, so remove it or run it again."
                    )
                found[run["arm"]][run["seed"]] = counts
        return found

    @cached_property
    def resampled_miou(self) -> dict[str, dict[int, np.ndarray]]:
        """Scores of resampled tiles, mIoU (resamples, combinations), the same tiles for all runs, by arm and seed."""
        num_tiles = max((len(counts) for seeds in self.tiles.values() for counts in seeds.values()), default=0)
        weights = resampled_weights(num_tiles) if num_tiles else None
        return {
            arm: {seed: weighted_miou(counts, weights, self.classes) for seed, counts in seeds.items()}
            for arm, seeds in self.tiles.items()
        }

    @cached_property
    def resamples(self) -> dict[str, dict[int, np.ndarray]]:
        """`SCORES` of `resampled_miou`, (resamples, 3), by arm and seed."""
        return {
            arm: {seed: summed_up(miou) for seed, miou in seeds.items()} for arm, seeds in self.resampled_miou.items()
        }

    def resampled(self, arm: str, other: str | None = None) -> np.ndarray | None:
        """Resamples of an arm's mean over its seeds, (resamples, 3), or of the difference of two over common seeds.

        None without tiles.
        """
        if other is None:
            return np.mean(list(self.resamples[arm].values()), axis=0) if self.resamples[arm] else None
        first, second = self.resamples[arm], self.resamples[other]
        common = first.keys() & second.keys()
        return np.mean([first[seed] - second[seed] for seed in sorted(common)], axis=0) if common else None

    def holding(self, *keys: str) -> "Experiment | None":
        """The runs that hold something at a path of keys, `corruptions` for instance; None if there is none."""
        return self._part(self.settings, lambda run: at(*keys)(run) is not None)

    def choosing(self) -> "list[Experiment]":
        """The runs that were scored on each split to choose recipes by, as if that were reported."""
        splits = sorted({split for run in self.all_runs for split in run["results"]} - {self.settings["report_split"]})
        return [
            self._part(self.settings | {"report_split": split}, lambda run, split=split: split in run["results"])
            for split in splits
        ]

    def _part(self, settings: dict[str, Any], keeps: Callable[[Mapping[str, Any]], bool]) -> "Experiment | None":
        runs = {arm: {seed: run for seed, run in seeds.items() if keeps(run)} for arm, seeds in self.runs.items()}
        runs = {arm: seeds for arm, seeds in runs.items() if seeds}
        return Experiment(self.dataset, settings, self.training, runs) if runs else None


def group_runs(rows: Sequence[Mapping[str, Any]]) -> list[Experiment]:
    """Sort runs, the newest last, into experiments, in the order in which they first appear.

    Where an arm's definition, or the package's default model, changed between two runs, its last line decides which
    definition counts.
    """
    if not rows:
        raise ValueError("There is no run in the results; run `sgma-hf compare` first, or correct the file's name.")
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        data = (row["dataset"]["name"], row["dataset"]["fingerprint"])
        key = json.dumps([*data, training_settings(row), training_arguments(row)], sort_keys=True)
        groups.setdefault(key, []).append(row)
    return [_experiment(group) for group in groups.values()]


def _experiment(rows: Sequence[Mapping[str, Any]]) -> Experiment:
    experiment = Experiment(dict(rows[0]["dataset"]), training_settings(rows[0]), training_arguments(rows[0]))
    definitions = {row["arm"]: definition(row) for row in rows}  # the last one stays
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for row in rows:
        if definition(row) != definitions[row["arm"]]:
            experiment.left_out += 1
            continue
        runs = found.setdefault(row["arm"], {})
        earlier = runs.get(row["seed"])
        if earlier is None or _scores(experiment, earlier) == _scores(experiment, row):
            runs[row["seed"]] = _joined(earlier or row, row)
        else:
            runs[row["seed"]] = dict(row)
            experiment.replaced += 1
    order = [*(arm for arm in ARMS if arm in found), *(arm for arm in found if arm not in ARMS)]
    experiment.runs = {arm: dict(sorted(found[arm].items())) for arm in order}
    return experiment


def _scores(experiment: Experiment, run: Mapping[str, Any]) -> dict[str, Any]:
    """Every score of the reported split: runs that are equal in them, to the last bit, evaluated the same weights."""
    combinations = experiment.results(run)["combinations"]
    return {name: (scores["miou"], scores["iou"]) for name, scores in combinations.items()}


def _joined(earlier: Mapping[str, Any], row: Mapping[str, Any]) -> dict[str, Any]:
    """The same weights, evaluated on more or less: what only the earlier run has is kept."""
    counts = {**earlier["dataset"]["rows"], **row["dataset"]["rows"]}
    results = {**earlier["results"], **row["results"]}
    return {**earlier, **row, "results": results, "dataset": {**row["dataset"], "rows": counts}}
