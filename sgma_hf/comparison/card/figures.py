"""Figures of the results card that are drawn from the lines alone (extra `viz`)."""

from typing import Any

import numpy as np

from ...visualization.charts import plot_learning_dynamics
from ...visualization.comparison_charts import plot_confusion, plot_mean_ranks, plot_scores
from ...visualization.trust_charts import Points, plot_panels
from .calibration import calibration_figures
from .experiments import SCORES, Experiment
from .statistics import critical_difference, mean_ranks, weighted_scores
from .trust import trust_figures


def figures_of(experiment: Experiment) -> dict[str, Any]:
    """Draw every figure that the lines suffice for, by name; means over the seeds of each arm.

    `combinations`: scores of all combinations. If all lines have the counts of tiles: `confusion`, the confusion
    matrices of all modalities together and of each alone, and `critical_difference`, mean ranks of Average over tiles.
    `learning`: loss and scores of all arms over the steps, and `dynamics_ARM` how each modality learned. What runs
    with `--reliance` and `--calibration` have is said in `trust_figures` and `calibration_figures`.
    """
    scored = experiment.results(experiment.all_runs[0])["combinations"]
    figures = {name: experiment.score("combinations", name, "miou") for name in scored}
    figures |= {name: experiment.score(key) for name, key in SCORES.items()}
    spreads = {arm: {name: experiment.spread(arm, one) for name, one in figures.items()} for arm in experiment.runs}
    means = {arm: {name: found and found.mean for name, found in row.items()} for arm, row in spreads.items()}
    drawn = {"combinations": plot_scores(means, title=f"mIoU in %, {_where(experiment)}")}
    drawn |= trust_figures(experiment, _where(experiment)) | calibration_figures(experiment, _where(experiment))
    drawn |= _learning_figures(experiment)
    if not all(experiment.tiles.values()):
        return drawn
    chosen = {"+".join(experiment.dataset["modalities"]): "all modalities"}
    chosen |= {name: f"{name} alone" for name in experiment.dataset["modalities"]}
    sums = {arm: sum(counts.sum(0) for counts in seeds.values()) for arm, seeds in experiment.tiles.items()}
    places = {label: list(scored).index(name) for name, label in chosen.items()}
    matrices = {arm: {label: counts[place] for label, place in places.items()} for arm, counts in sums.items()}
    drawn["confusion"] = plot_confusion(
        matrices, experiment.dataset["class_names"], title=f"Confusion matrices, {_where(experiment)}"
    )
    averages = _averages_of_tiles(experiment)
    if len(experiment.runs) > 1 and len(averages):
        ranks = dict(zip(experiment.tiles, mean_ranks(averages).tolist(), strict=True))
        title = f"Mean ranks of Average over {len(averages)} tiles, {_where(experiment)}"
        critical = critical_difference(len(ranks), len(averages))
        drawn["critical_difference"] = plot_mean_ranks(ranks, critical, title=title)
    return drawn


def _learning_figures(experiment: Experiment) -> dict[str, Any]:
    """Draw how arms learned, of the first seed of each whose line holds it."""
    arms = experiment.holding("dynamics")
    if arms is None:
        return {}
    records = {arm: next(iter(runs.values()))["dynamics"] for arm, runs in arms.runs.items()}
    panels: dict[str, dict[str, Points]] = {"Training loss": {}}
    for arm, record in records.items():
        steps = [entry["step"] for entry in record["steps"]]
        panels["Training loss"][arm] = Points(steps, [entry["loss"] for entry in record["steps"]])
        for name, key in SCORES.items() if record["evaluations"] else ():
            values = [entry["scores"][key] for entry in record["evaluations"]]
            steps = [entry["step"] for entry in record["evaluations"]]
            panels.setdefault(f"{name}, choosing split", {})[arm] = Points(steps, np.array(values, dtype=np.float64))
    title = f"Learning, {experiment.dataset['name']}"
    drawn = {"learning": plot_panels({"": panels}, xlabel="step", ylabel="", title=title, limits=None)}
    for arm, record in records.items():
        if record["epochs"]:
            drawn[f"dynamics_{arm.replace(':', '.')}"] = plot_learning_dynamics(record, title=arm)
    return drawn


def _where(experiment: Experiment) -> str:
    return f"{experiment.settings['report_split']} of {experiment.dataset['name']}"


def _averages_of_tiles(experiment: Experiment) -> np.ndarray:
    """Average of every tile by itself, mean over an arm's seeds, (tiles, arms), of tiles that all arms have one of."""
    columns = []
    for seeds in experiment.tiles.values():
        scores = [weighted_scores(counts, np.eye(len(counts)), experiment.classes)[:, 0] for counts in seeds.values()]
        columns.append(np.mean(scores, axis=0))
    averages = np.stack(columns, axis=1)
    return averages[np.isfinite(averages).all(1)]
