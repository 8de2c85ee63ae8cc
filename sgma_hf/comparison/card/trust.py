"""Whether robustness maps tell which sensor is right: tables and figures, where runs hold such figures."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from ...publishing.tables import Table
from ...visualization.comparison_charts import plot_scores
from ...visualization.trust_charts import Points, plot_panels, shares_of_bins
from .cells import NOTHING, number, percent, tested_cells
from .experiments import Experiment, at
from .statistics import Spread, paired_difference, resampled_weights, spread, weighted_miou


_REMOVED = {"nothing": "nothing", "least": "least relied on", "random": "a random one", "most": "most relied on"}
_AGREEMENT_NOTE = (
    "Mean robustness of the four stages against the errors of the prediction from a modality alone. Correlation: over "
    "cells, with the share of pixels that are wrong; negative where the map says where the modality errs. AUC: that a "
    "wrong pixel has less robustness than a right one; 0.5 says nothing. Contested pixels are those where modalities "
    "disagree about the truth: one is right, another wrong."
)
_CHOICE_NOTE = (
    "Share in %: of the modality most relied on, of one drawn by chance, of the fused prediction, and of always the "
    "same modality."
)
_CLASS_NOTE = (
    "Of each class the share in % of contested pixels where the modality most relied on is right, and points more "
    "than one drawn by chance, and than always the one that is right most often. Below 0 the map misleads, and so it "
    "does where AUC is below 0.5. s: a t-test over seeds tells a difference from 0, at 5 % for a whole column (Holm)."
)
_DELETION_NOTE = (
    "mIoU in % after each pixel lost one modality, of the pixels that two or more cover. A map that tells what the "
    "model needs loses more by the most relied on than by a random one, and less by the least: where one of these "
    "differences is below 0, the map misleads. Least − nothing is above 0 where the model does better without what it "
    "relies on least. s and t as for wins, for a whole column."
)


def trust_tables(experiment: Experiment) -> Iterator[Table]:
    """Yield what the robustness maps of each arm are worth; nothing without such figures."""
    arms = experiment.holding("reliance", "stages")
    if arms is None:
        return
    yield _agreement(arms)
    names = arms.dataset["modalities"]
    chosen = [("relied_on", "mean"), ("chance",), ("fused",), *(("always", name) for name in names)]
    lines = [
        [f"`{arm}`", *(percent(_spread(arms, arm, "choice", "overall", *path)) for path in chosen)]
        for arm in arms.runs
    ]
    header = ["arm", "relied on", "chance", "fused", *(f"always {name}" for name in names)]
    yield Table("choice", "Contested pixels that are right", header, lines, _CHOICE_NOTE)
    yield _choice_by_class(arms)
    deleted = arms.holding("reliance", "deletion")
    if deleted is not None:
        yield _deletion_table(deleted)


def _spread(arms: Experiment, arm: str, *path: str | int) -> Spread | None:
    return arms.spread(arm, at("reliance", *path))


def _agreement(arms: Experiment) -> Table:
    paths = {
        f"{kind}{where}": (group, "mean", "modalities", key)
        for group, where in (("stages", ""), ("contested_stages", ", contested"))
        for kind, key in (("correlation", "correlation"), ("AUC", "auc"))
    }
    lines = [
        [f"`{arm}`", name, *(number(_spread(arms, arm, *path[:3], name, path[3])) for path in paths.values())]
        for arm in arms.runs
        for name in arms.dataset["modalities"]
    ]
    title = "Do robustness maps agree with the errors of single modalities?"
    return Table("reliance", title, ["arm", "modality", *paths], lines, _AGREEMENT_NOTE, text_columns=2)


def _choice_by_class(arms: Experiment) -> Table:
    """Of each class whether the modality most relied on is the one to rely on."""
    lines, differences = [], []
    for arm in arms.runs:
        for label, class_name in enumerate(arms.dataset["class_names"]):

            def figures(*path: str | int, arm: str = arm) -> dict[int, float | None]:
                return arms.figures(arm, at("reliance", *path))

            choice, contested = ("choice", "classes", label), ("contested_stages", "mean")
            names = arms.dataset["modalities"]
            relied_on = figures(*choice, "relied_on", "mean")
            always = {name: figures(*choice, "always", name) for name in names}
            best = _highest(always)
            reliance = {name: figures(*contested, "classes_per_modality", name, label, "reliance") for name in names}
            differences.append(
                [paired_difference(relied_on, other) for other in (figures(*choice, "chance"), always.get(best, {}))]
            )
            told = [f"`{arm}`", class_name, _highest(reliance) or NOTHING, best or NOTHING]
            auc = number(_spread(arms, arm, *contested, "classes", label, "auc"))
            lines.append([*told, percent(_spread_of(relied_on)), auc])
    columns = [tested_cells(found, [None] * len(found)) for found in zip(*differences, strict=True)]
    lines = [[*line[:5], *more, line[5]] for line, *more in zip(lines, *columns, strict=True)]
    header = ["arm", "class", "most relied on", "most often right", "relied on", "− chance", "− always one", "AUC"]
    title = "Contested pixels that are right, by class"
    return Table("choice_by_class", title, header, lines, _CLASS_NOTE, text_columns=4)


def _highest(figures: Mapping[str, Mapping[int, float | None]]) -> str | None:
    """The name of the highest mean over seeds; None if none is known."""
    means = {name: found.mean for name, of_seeds in figures.items() if (found := _spread_of(of_seeds))}
    return max(means, key=means.get, default=None)


def _deletion_table(arms: Experiment) -> Table:
    counts = {arm: _deletion_counts(arms, arm) for arm in arms.runs}
    scores = {arm: _deletion_scores(arms, found) for arm, found in counts.items()}
    resampled = {
        arm: np.mean([weighted_miou(one, resampled_weights(len(one)), arms.classes) for one in found.values()], axis=0)
        for arm, found in counts.items()
    }
    pairs, columns, places = (("least", "random"), ("random", "most"), ("least", "nothing")), [], list(_REMOVED)
    for first, second in pairs:
        of_seeds = [paired_difference(one[first], one[second]) for one in scores.values()]
        one, other = places.index(first), places.index(second)
        columns.append(tested_cells(of_seeds, [found[:, one] - found[:, other] for found in resampled.values()]))
    lines = [
        [f"`{arm}`", *(percent(_spread_of(miou)) for miou in of_arm.values()), *differences]
        for (arm, of_arm), *differences in zip(scores.items(), *columns, strict=True)
    ]
    header = ["arm, removed", *_REMOVED.values(), *(" − ".join(pair) for pair in pairs)]
    return Table("deletion", "What it costs to remove a sensor from every pixel", header, lines, _DELETION_NOTE)


def _deletion_counts(arms: Experiment, arm: str) -> dict[int, np.ndarray]:
    """Counts of every tile by what was removed, (tiles, removed, K, K), by seed."""
    size, found = len(arms.dataset["class_names"]), arms.figures(arm, at("reliance", "deletion", "confusion"))
    return {
        seed: np.array(list(tiles.values()), dtype=np.int64).reshape(len(_REMOVED), -1, size, size).swapaxes(0, 1)
        for seed, tiles in found.items()
    }


def _deletion_scores(arms: Experiment, counts: Mapping[int, np.ndarray]) -> dict[str, dict[int, float | None]]:
    """By what was removed mIoU of each seed, None where it is not defined."""
    found = {seed: weighted_miou(one, np.ones((1, len(one))), arms.classes)[0] for seed, one in counts.items()}
    return {
        name: {seed: None if np.isnan(miou[place]) else float(miou[place]) for seed, miou in found.items()}
        for place, name in enumerate(_REMOVED)
    }


def _spread_of(of_seeds: Mapping[int, float | None]) -> Spread | None:
    return spread(list(of_seeds.values()))


def trust_figures(experiment: Experiment, where: str) -> dict[str, Any]:
    """Draw `reliance` and `deletion`, of arms whose runs hold such figures; `where` ends their titles."""
    arms = experiment.holding("reliance", "deletion")
    if arms is None:
        return {}
    panels = {arm: _reliance_panels(arms, arm) for arm in arms.runs}
    labels = {"xlabel": "reliance on the modality", "ylabel": "share right from it alone"}
    scores = {arm: _deletion_scores(arms, _deletion_counts(arms, arm)) for arm in arms.runs}
    removed = {
        arm: {_REMOVED[name]: found.mean for name, miou in of_arm.items() if (found := _spread_of(miou))}
        for arm, of_arm in scores.items()
    }
    return {
        "reliance": plot_panels(panels, title=f"Contested pixels, {where}", **labels),
        "deletion": plot_scores(removed, title=f"A sensor less, {where}"),
    }


def _reliance_panels(arms: Experiment, arm: str) -> dict[str, dict[str, Points]]:
    """Of each class, for each modality: share of pixels that are right by the bin of reliance, all seeds together."""
    counts = np.sum([run["reliance"]["contested_bins"] for run in arms.runs[arm].values()], axis=0)  # (M, K, 2, bins)
    centers = (np.arange(counts.shape[-1]) + 0.5) / counts.shape[-1]
    return {
        class_name: {
            name: shares_of_bins(centers, right, right + wrong)
            for name, (right, wrong) in zip(arms.dataset["modalities"], counts[:, label], strict=True)
        }
        for label, class_name in enumerate(arms.dataset["class_names"])
    }
