"""Sections of the results card on damaged inputs and on what robustness maps say, where runs hold such figures."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from ..evaluation.corruption_scores import ALL_MODALITIES
from ..publishing.tables import markdown_table
from .experiments import Experiment, Figure, at
from .paired_statistics import NOTHING, number, percent


# Areas under the curve of a map: what it is of -> its key.
_AREAS = {"cells": "detection_auc", "windows": "window_auc", "drop": "drop_auc"}
# Where a case of a corruption has them for each kind of map.
_MAPS: dict[str, Callable[[str], tuple[str, ...]]] = {
    "robustness": lambda area: ("robustness", area, "mean"),
    "agreement": lambda area: ("agreement", area),
}
# The mask says where a region is missing, so it is no merit of a map to notice.
_GIVEN_AWAY = "missing_region"


def corruption_sections(experiment: Experiment, main_arm: str) -> Iterator[tuple[str, ...]]:
    """Yield sections, each a title and its texts, with one arm in full; none without such figures."""
    arms = experiment.holding("corruptions")
    if arms is None:
        return
    evaluated = (run["corruptions"]["corruptions"] for run in arms.all_runs)
    cases = {name: list(targets) for one in evaluated for name, targets in one.items()}
    seeds = ", ".join(dict.fromkeys(str(run["corruptions"]["seed"]) for run in arms.all_runs))
    losses = [
        [f"`{name}`, {what}", *(percent(arms.spread(arm, _mean_loss(name, chosen))) for arm in arms.runs)]
        for name, targets in cases.items()
        for what, chosen in (
            ("all modalities", [target for target in targets if target == ALL_MODALITIES]),
            ("one modality", [target for target in targets if target != ALL_MODALITIES]),
        )
        if chosen
    ]
    yield (
        "Damaged modalities: what they cost",
        "Points of mIoU lost to a corruption, on the same pixels: clean − corrupted; less is better. One modality at "
        "a time is damaged, the others are there and clean (the mean over the modalities), or all are at once. What "
        f"each corruption is, seeded with {seeds}, is said in `sgma_hf/evaluation/corruptions.py`.",
        markdown_table(["corruption", *(f"`{arm}`" for arm in arms.runs)], losses),
    )
    if main_arm in arms.runs:
        yield (
            f"Damaged modalities: `{main_arm}` in full",
            "Of use: yes if prediction is better with the damaged modality than without it with every seed, no if it "
            "is worse with every seed.",
            *_cases_in_full(arms, main_arm, cases),
            *_detection(arms, main_arm, cases),
        )


def _cases_in_full(arms: Experiment, arm: str, cases: Mapping[str, list[str]]) -> Iterator[str]:
    """Every case of an arm, and in how many of them something holds with every seed."""
    lines, better = [], []
    lower: dict[str, list[bool]] = {maps: [] for maps in _MAPS}
    for name, targets in cases.items():
        for target in targets:
            path = ("corruptions", "corruptions", name, target)
            clean, without, damaged = (at(*path, kind, "miou") for kind in ("clean", "without", "corrupted"))
            areas = {(maps, area): at(*path, *of(_AREAS[area])) for maps, of in _MAPS.items() for area in _AREAS}
            used = _compared(arms, arm, damaged, without)
            better.append(used)
            for maps, found in lower.items():
                verdict = _compared(arms, arm, areas[maps, "cells"], lambda _: 0.5)
                if verdict is not None and not name.startswith(_GIVEN_AWAY):
                    found.append(verdict == "yes")
            scores = [percent(arms.spread(arm, figure)) for figure in (clean, without, damaged)]
            shown = (number(arms.spread(arm, figure)) for figure in areas.values())
            lines.append([f"`{name}`", target, used or NOTHING, *scores, *shown])
    header = ["corruption", "modality", "of use", "clean", "without it", "damaged"]
    header += [f"AUC of {maps}, {area}" for maps in _MAPS for area in _AREAS]
    yield markdown_table(header, lines, text_columns=3)
    compared = [used for used in better if used is not None]
    yield _every_seed_table(
        {
            "prediction is better with the damaged modality than without it": [used == "yes" for used in compared],
            "prediction is better without it": [used == "no" for used in compared],
            **{
                f"{maps} is lower in damaged cells than in the same ones undamaged": found
                for maps, found in lower.items()
            },
        }
    )


def _detection(arms: Experiment, arm: str, cases: Mapping[str, list[str]]) -> Iterator[str]:
    """How well an arm's maps tell damaged modalities from clean ones: a text and its table; none without figures."""
    kinds = [(maps, area) for maps in _MAPS for area in ("cells", "windows")]
    lines = []
    for name, targets in cases.items():
        single = [target for target in targets if target != ALL_MODALITIES]
        areas = [arms.spread(arm, _mean_area(name, single, *kind)) for kind in kinds]
        if any(areas) and not name.startswith(_GIVEN_AWAY):
            lines.append([f"`{name}`", *map(number, areas)])
    if lines:
        yield (
            f"Whether the maps of `{arm}` notice a damaged modality: area under the ROC curve of single cells, and of "
            "means over the damaged cells of a window, mean over the modalities. 1 tells all of them, 0.5 says "
            "nothing."
        )
        yield markdown_table(["corruption", *(f"{maps}, {area}" for maps, area in kinds)], lines)


def _mean_loss(name: str, targets: Sequence[str]) -> Figure:
    """Clean - corrupted, mean over the targets; None unless all have it."""

    def figure(run: Mapping[str, Any]) -> float | None:
        paths = [("corruptions", "corruptions", name, target) for target in targets]
        pairs = [[at(*path, kind, "miou")(run) for kind in ("clean", "corrupted")] for path in paths]
        if any(None in pair for pair in pairs):
            return None
        return sum(clean - corrupted for clean, corrupted in pairs) / len(pairs)

    return figure


def _mean_area(name: str, targets: Sequence[str], maps: str, area: str) -> Figure:
    """The area of a corruption, mean over the modalities that have one."""
    areas = [at("corruptions", "corruptions", name, target, *_MAPS[maps](_AREAS[area])) for target in targets]

    def figure(run: Mapping[str, Any]) -> float | None:
        known = [value for area in areas if (value := area(run)) is not None]
        return sum(known) / len(known) if known else None

    return figure


def _compared(arms: Experiment, arm: str, figure: Figure, other: Figure) -> str | None:
    """`yes` where a figure is above another in every run, `no` where it is below; None if one is not known."""
    pairs = [(figure(run), other(run)) for run in arms.runs[arm].values()]
    if any(None in pair for pair in pairs):
        return None
    return "yes" if all(a > b for a, b in pairs) else "no" if all(a < b for a, b in pairs) else "varies"


def _every_seed_table(claims: Mapping[str, Sequence[bool]]) -> str:
    lines = [[claim, sum(found), len(found)] for claim, found in claims.items() if found]
    return markdown_table(["with every seed", "cases", "of"], lines)


def reliance_section(experiment: Experiment, main_arm: str) -> Iterator[tuple[str, ...]]:
    """Yield the section on whether an arm's reliance on a modality agrees with its errors; none without figures."""
    arms = experiment.holding("reliance")
    if arms is None or main_arm not in arms.runs:
        return
    first = next(iter(arms.runs[main_arm].values()))["reliance"]
    if first["stages"] is None:
        return

    def found(*path: str | int) -> Any:
        return arms.spread(main_arm, at("reliance", *path))

    modalities, classes = first["modalities"], first["class_names"]
    kinds = [(group, kind) for group in ("stages", "contested_stages") for kind in ("correlation", "auc")]
    per_modality = [
        [stage, name, *(number(found(group, stage, "modalities", name, kind)) for group, kind in kinds)]
        for stage in first["stages"]
        for name in modalities
    ]
    by_class = ("stages", "mean", "classes_per_modality")
    per_class = [
        [label, *(number(found(*by_class, name, index, "correlation")) for name in modalities)]
        for index, label in enumerate(classes)
    ]
    chosen = [("relied_on", "mean"), ("chance",), ("fused",), *(("always", name) for name in modalities)]
    groups = {"all": ("overall",)} | {name: ("classes", index) for index, name in enumerate(classes)}
    choice = [[label, *(percent(found("choice", *path, *key)) for key in chosen)] for label, path in groups.items()]
    yield (
        f"Do the robustness maps of `{main_arm}` agree with the errors of single modalities?",
        "Robustness of a modality against the errors of the prediction from that modality alone. Correlation: over "
        "cells, of robustness and the share of pixels that are wrong; negative where the map says where the modality "
        "errs. AUC: that a wrong pixel has less robustness than a right one; 0.5 says nothing. Contested pixels are "
        "those where modalities disagree about the truth: one is right, another wrong.",
        markdown_table(
            ["stage", "modality", "correlation", "AUC", "correlation, contested", "AUC, contested"],
            per_modality,
            text_columns=2,
        ),
        "Correlation per class, mean of the four stages' maps:",
        markdown_table(["class", *modalities], per_class),
        "Share in % of the contested pixels that is right: of the modality most relied on (mean map), of one drawn by "
        "chance, of the fused prediction, and of always the same modality:",
        markdown_table(["class", "relied on", "chance", "fused", *(f"always {name}" for name in modalities)], choice),
        _every_seed_table(_reliance_claims(arms, main_arm, modalities)),
    )


def _reliance_claims(arms: Experiment, arm: str, modalities: Sequence[str]) -> dict[str, list[bool]]:
    """What holds with every seed, by modality."""
    correlation = {name: at("reliance", "stages", "mean", "modalities", name, "correlation") for name in modalities}
    negative = [_compared(arms, arm, figure, lambda _: 0.0) for figure in correlation.values()]
    overall = ("reliance", "choice", "overall")
    always = [at(*overall, "always", name) for name in modalities]
    better = [_compared(arms, arm, at(*overall, "relied_on", "mean"), figure) for figure in always]
    return {
        "the mean map's correlation with a modality's errors is negative": [v == "no" for v in negative if v],
        "the modality most relied on is right more often than always the same one": [v == "yes" for v in better if v],
    }
