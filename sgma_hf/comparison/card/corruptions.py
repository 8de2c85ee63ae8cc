"""Tables of the results card on damaged inputs, where runs hold such figures."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ...evaluation.corruption_scores import ALL_MODALITIES
from ...publishing.tables import Table
from .cells import number, percent
from .experiments import Experiment, Figure, at


# Where a case of a corruption has the area under the curve of a map: of single cells, and of a window's mean.
_AREAS: dict[str, tuple[str, ...]] = {
    "robustness, cells": ("robustness", "detection_auc", "mean"),
    "robustness, windows": ("robustness", "window_auc", "mean"),
    "agreement, cells": ("agreement", "detection_auc"),
    "agreement, windows": ("agreement", "window_auc"),
}
# The mask says where a region is missing, so it is no merit of a map to notice.
_GIVEN_AWAY = "missing_region"


def corruption_tables(experiment: Experiment) -> Iterator[Table]:
    """Yield what damage costs every arm, and whether its maps notice; nothing without such figures."""
    arms = experiment.holding("corruptions")
    if arms is None:
        return
    evaluated = (run["corruptions"]["corruptions"] for run in arms.all_runs)
    cases = {name: list(targets) for one in evaluated for name, targets in one.items()}
    seeds = ", ".join(dict.fromkeys(str(run["corruptions"]["seed"]) for run in arms.all_runs))
    lines = [
        [f"`{name}`, {what}", *(percent(arms.spread(arm, _mean_loss(name, chosen))) for arm in arms.runs)]
        for name, targets in cases.items()
        for what, chosen in (
            ("all modalities", [target for target in targets if target == ALL_MODALITIES]),
            ("one modality", _single(targets)),
        )
        if chosen
    ]
    yield Table(
        "corruptions",
        "Damaged modalities: what they cost",
        ["corruption", *(f"`{arm}`" for arm in arms.runs)],
        lines,
        "Points of mIoU lost to a corruption, on the same pixels: clean − corrupted; less is better. One modality at "
        "a time is damaged, the others are there and clean (the mean over the modalities), or all are at once. What "
        f"each corruption is, seeded with {seeds}, is said in `sgma_hf/evaluation/corruptions.py`.",
    )
    lines = []
    for arm in arms.runs:
        for name, targets in cases.items():
            areas = [arms.spread(arm, _mean_area(name, _single(targets), *path)) for path in _AREAS.values()]
            if any(areas) and not name.startswith(_GIVEN_AWAY):
                lines.append([f"`{arm}`", f"`{name}`", *map(number, areas)])
    if lines:
        yield Table(
            "detection",
            "Damaged modalities: whether the maps notice",
            ["arm", "corruption", *_AREAS],
            lines,
            "Area under the ROC curve of single cells, and of means over the damaged cells of a window, mean over the "
            "modalities. 1 tells all damage, 0.5 says nothing.",
            text_columns=2,
        )
    yield Table(
        "of_use",
        "Damaged modalities: whether they are of use",
        ["arm", "cases", "better with the damaged modality than without it", "better without it"],
        [[f"`{arm}`", *_of_use(arms, arm, cases)] for arm in arms.runs],
        "A case is a modality with a corruption; it counts where this holds with every seed.",
    )


def _single(targets: Sequence[str]) -> list[str]:
    return [target for target in targets if target != ALL_MODALITIES]


def _of_use(arms: Experiment, arm: str, cases: Mapping[str, list[str]]) -> tuple[int, int, int]:
    """How many cases there are, and in how many prediction is better with the damaged modality, and without it."""
    paths = [("corruptions", "corruptions", name, target) for name, those in cases.items() for target in those]
    figures = [[at(*path, kind, "miou") for kind in ("corrupted", "without")] for path in paths]
    found = [[[figure(run) for figure in pair] for run in arms.runs[arm].values()] for pair in figures]
    known = [runs for runs in found if all(None not in pair for pair in runs)]
    better = sum(all(damaged > without for damaged, without in runs) for runs in known)
    return len(known), better, sum(all(damaged < without for damaged, without in runs) for runs in known)


def _mean_loss(name: str, targets: Sequence[str]) -> Figure:
    """Clean - corrupted, mean over the targets; None unless all have it."""

    def figure(run: Mapping[str, Any]) -> float | None:
        paths = [("corruptions", "corruptions", name, target) for target in targets]
        pairs = [[at(*path, kind, "miou")(run) for kind in ("clean", "corrupted")] for path in paths]
        if any(None in pair for pair in pairs):
            return None
        return sum(clean - corrupted for clean, corrupted in pairs) / len(pairs)

    return figure


def _mean_area(name: str, targets: Sequence[str], *path: str) -> Figure:
    """The area of a corruption, mean over the modalities that have one."""
    areas = [at("corruptions", "corruptions", name, target, *path) for target in targets]

    def figure(run: Mapping[str, Any]) -> float | None:
        known = [value for area in areas if (value := area(run)) is not None]
        return sum(known) / len(known) if known else None

    return figure
