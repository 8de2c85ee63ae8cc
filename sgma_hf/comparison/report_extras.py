"""Sections of the results card on damaged inputs and on what robustness maps say, where runs hold such figures."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from ..evaluation.corruption_scores import ALL_MODALITIES
from ..publishing.tables import markdown_table
from .experiments import Experiment, Figure
from .figures import number, percent
from .paired_statistics import spread


# Areas under the curve of a map: what it is of -> its key.
_AREAS = {"cells": "detection_auc", "windows": "window_auc", "drop": "drop_auc"}
# Where a case of a corruption has them for each kind of map.
_MAPS: dict[str, Callable[[str], tuple[str, ...]]] = {
    "robustness": lambda area: ("robustness", area, "mean"),
    "agreement": lambda area: ("agreement", area),
}
# The mask says where a region is missing, so it is no merit of a map to notice.
_GIVEN_AWAY = "missing_region"


def at(*keys: str | int) -> Figure:
    """The figure at a path in a run; None where something on the way is None or not there.

    Args:
        *keys: Keys of dictionaries and indices of lists.
    """

    def figure(run: Mapping[str, Any]) -> float | None:
        value: Any = run
        for key in keys:
            if isinstance(value, Mapping):
                value = value.get(key)
            else:
                value = value[key] if isinstance(value, list) and isinstance(key, int) else None
        return None if value is None else float(value)

    return figure


def corruption_sections(experiment: Experiment, main_arm: str) -> Iterator[list[str]]:
    """Yield the sections, each a title and its texts; none without such figures.

    Args:
        experiment: The runs.
        main_arm: The arm that is shown in full.
    """
    arms = _arms_with(experiment, "corruptions")
    if not arms:
        return
    evaluated = [run["corruptions"] for run in arms.all_runs]
    names = _corruption_names(arms)
    seeds = ", ".join(dict.fromkeys(str(one["seed"]) for one in evaluated))
    losses = [
        [f"`{name}`, {_target(target)}", *(_loss(arms, arm, name, target) for arm in arms.runs)]
        for name, targets in names.items()
        for target in ([ALL_MODALITIES] if ALL_MODALITIES in targets else []) + [None]
    ]
    yield [
        "Damaged modalities: what they cost",
        "Points of mIoU lost to a corruption, on the same pixels: clean − corrupted; less is better. One modality at "
        "a time is damaged, the others are there and clean (the mean over the modalities), or all are at once. What "
        f"each corruption is, seeded with {seeds}, is said in `sgma_hf/evaluation/corruptions.py`; regions "
        "that are missing and borders of shifted modalities are in the mask, noise and swaps are not.",
        markdown_table(["corruption", *(f"`{arm}`" for arm in arms.runs)], losses),
    ]
    if main_arm in arms.runs:
        yield _main_corruptions(arms, main_arm, names)


def _main_corruptions(arms: Experiment, arm: str, names: Mapping[str, list[str]]) -> list[str]:
    lines = []
    for name, target in _cases(names):
        path = ("corruptions", "corruptions", name, target)
        scores = [arms.spread(arm, at(*path, kind, "miou")) for kind in ("clean", "without", "corrupted")]
        areas = [arms.spread(arm, at(*path, *of(area))) for of in _MAPS.values() for area in _AREAS.values()]
        lines.append([f"`{name}`", target, *map(percent, scores), *(number(area, 2) for area in areas)])
    areas = [f"AUC of {maps}, {kind}" for maps in _MAPS for kind in _AREAS]
    header = ["corruption", "modality", "clean", "without it", "damaged", *areas]
    return [
        f"Damaged modalities: `{arm}` in full",
        markdown_table(header, lines, text_columns=2),
        "\n".join(f"- {line}" for line in corruption_findings(arms, arm)),
        *detection_table(arms, arm),
    ]


def corruption_findings(experiment: Experiment, arm: str) -> list[str]:
    """Say in sentences what damaged modalities do to an arm's predictions and maps.

    Args:
        experiment: The runs.
        arm: The arm.

    Returns:
        Sentences; none if no run of the arm holds such figures.
    """
    arms = _arms_with(experiment, "corruptions")
    if arms is None or arm not in arms.runs:
        return []
    names = _corruption_names(arms)
    worse: dict[str, list[str]] = {}
    compared = kept = 0
    for name, target in _cases(names):
        path = ("corruptions", "corruptions", name, target)
        without, damaged = at(*path, "without", "miou"), at(*path, "corrupted", "miou")
        if arms.spread(arm, without) is not None and arms.spread(arm, damaged) is not None:
            compared += 1
            kept += _holds(arms, arm, damaged, without)
            if _holds(arms, arm, without, damaged):
                worse.setdefault(target, []).append(f"`{name}`")
    count = len(arms.runs[arm])
    seeds = f"{count} seed{'s' if count > 1 else ''}"
    found = [
        f"With a damaged modality, `{arm}` predicts better than without that modality in {kept} of {compared} cases, "
        f"counting those where it does so with every seed ({seeds})."
    ]
    if worse:
        listed = "; ".join(f"{target}: {', '.join(cases)}" for target, cases in worse.items())
        found.append(f"With every seed a modality is better left out than used with these damages: {listed}.")
    return found + [text for maps in _MAPS if (text := _detected(arms, arm, maps)) is not None]


def detection_table(experiment: Experiment, arm: str) -> list[str]:
    """How well an arm's maps tell damaged modalities from clean ones.

    Args:
        experiment: The runs.
        arm: The arm.

    Returns:
        What the table shows, and the table; none if no run of the arm holds such figures.
    """
    arms = _arms_with(experiment, "corruptions")
    if arms is None or arm not in arms.runs:
        return []
    names = {
        name: [target for target in targets if target != ALL_MODALITIES]
        for name, targets in _corruption_names(arms).items()
        if not name.startswith(_GIVEN_AWAY)
    }
    kinds = [(maps, kind) for maps in _MAPS for kind in ("cells", "windows")]
    lines = []
    for name, targets in names.items():
        areas = [arms.spread(arm, _mean_area(name, targets, maps, kind)) for maps, kind in kinds]
        if any(areas):
            lines.append([f"`{name}`", *(number(area, 2) for area in areas)])
    if not lines:
        return []
    return [
        f"Whether the maps of `{arm}` notice a damaged modality: area under the ROC curve of single cells, and of "
        "means over the damaged cells of a window, mean over the modalities. 1 tells all of them, 0.5 says nothing.",
        markdown_table(["corruption", *(f"{maps}, {kind}" for maps, kind in kinds)], lines),
    ]


def _mean_area(name: str, targets: Sequence[str], maps: str, kind: str) -> Figure:
    """The area of a corruption, mean over the modalities that have one."""
    areas = [at("corruptions", "corruptions", name, target, *_MAPS[maps](_AREAS[kind])) for target in targets]

    def figure(run: Mapping[str, Any]) -> float | None:
        known = [value for area in areas if (value := area(run)) is not None]
        return sum(known) / len(known) if known else None

    return figure


def _detected(arms: Experiment, arm: str, maps: str) -> str | None:
    """In how many cases a map is lower where a modality is damaged; None if that was not measured."""
    figures = [
        at("corruptions", "corruptions", name, target, *_MAPS[maps](_AREAS["cells"]))
        for name, target in _cases(_corruption_names(arms))
        if not name.startswith(_GIVEN_AWAY)
    ]
    measured = [figure for figure in figures if arms.spread(arm, figure) is not None]
    if not measured:
        return None
    lower = sum(_holds(arms, arm, figure, lambda _: 0.5) for figure in measured)
    return (
        f"Maps of {maps} are lower in damaged cells than in the same ones undamaged, with every seed, in {lower} of "
        f"{len(measured)} cases."
    )


def _corruption_names(arms: Experiment) -> dict[str, list[str]]:
    """Corruptions and their targets, in the order of the runs."""
    evaluated = (run["corruptions"]["corruptions"] for run in arms.all_runs)
    return {name: list(targets) for one in evaluated for name, targets in one.items()}


def _cases(names: Mapping[str, list[str]]) -> Iterator[tuple[str, str]]:
    """Every corruption with each of its targets."""
    return ((name, target) for name, targets in names.items() for target in targets)


def _loss(arms: Experiment, arm: str, name: str, target: str | None) -> str:
    """Mean over the single modalities, or of all damaged at once, of clean - corrupted."""
    values = []
    for run in arms.runs[arm].values():
        entries = run["corruptions"]["corruptions"].get(name, {})
        chosen = [target] if target else [other for other in entries if other != ALL_MODALITIES]
        pairs = [(at(one, "clean", "miou")(entries), at(one, "corrupted", "miou")(entries)) for one in chosen]
        known = pairs and all(clean is not None and damaged is not None for clean, damaged in pairs)
        values.append(sum(clean - damaged for clean, damaged in pairs) / len(pairs) if known else None)
    return percent(spread(values))


def _holds(arms: Experiment, arm: str, figure: Figure, other: Figure) -> bool:
    """Whether a figure is above another one in every run of an arm."""
    pairs = [(figure(run), other(run)) for run in arms.runs[arm].values()]
    return all(high is not None and low is not None and high > low for high, low in pairs)


def _target(target: str | None) -> str:
    return "all modalities" if target else "one modality"


def reliance_section(experiment: Experiment, main_arm: str) -> Iterator[list[str]]:
    """Yield the section on whether reliance on a modality agrees with its errors; none without such figures.

    Args:
        experiment: The runs.
        main_arm: The arm that is shown.
    """
    arms = _arms_with(experiment, "reliance")
    if not arms or main_arm not in arms.runs:
        return
    first = next(iter(arms.runs[main_arm].values()))["reliance"]
    if first["stages"] is None:
        return

    def cell(*path: str | int) -> str:
        return number(arms.spread(main_arm, at("reliance", *path)), 2)

    stages, modalities, classes = list(first["stages"]), first["modalities"], first["class_names"]
    per_modality = [
        [stage, name, *(cell(group, stage, "modalities", name, kind) for group in groups for kind in kinds)]
        for groups, kinds in [(("stages", "contested_stages"), ("correlation", "auc"))]
        for stage in stages
        for name in modalities
    ]
    per_class = [
        [label, *(cell("stages", "mean", "classes_per_modality", name, index, "correlation") for name in modalities)]
        for index, label in enumerate(classes)
    ]
    choice = [
        [label, *(cell("choice", *path, *key) for key in (("relied_on", "mean"), ("chance",), ("fused",)))]
        + [cell("choice", *path, "always", name) for name in modalities]
        for label, path in [("all", ("overall",)), *((name, ("classes", i)) for i, name in enumerate(classes))]
    ]
    contested = ["correlation, contested", "AUC, contested"]
    yield [
        f"Do the robustness maps of `{main_arm}` agree with the errors of single modalities?",
        "Robustness of a modality against the errors of the prediction from that modality alone. Correlation: over "
        "cells, of robustness and the share of pixels that are wrong; negative where the map says where the modality "
        "errs. AUC: that a wrong pixel has less robustness than a right one; 0.5 says nothing. Contested pixels are "
        "those where modalities disagree about the truth: one is right, another wrong.",
        markdown_table(["stage", "modality", "correlation", "AUC", *contested], per_modality, text_columns=2),
        "Correlation per class, mean of the four stages' maps:",
        markdown_table(["class", *modalities], per_class),
        "Share of the contested pixels that is right: of the modality most relied on (mean map), of one drawn by "
        "chance, of the fused prediction, and of always the same modality:",
        markdown_table(["class", "relied on", "chance", "fused", *(f"always {name}" for name in modalities)], choice),
        "\n".join(f"- {line}" for line in reliance_findings(arms, main_arm)),
    ]


def reliance_findings(experiment: Experiment, arm: str) -> list[str]:
    """Say in sentences whether an arm's robustness maps agree with the errors of single modalities.

    Args:
        experiment: The runs.
        arm: The arm.

    Returns:
        Sentences; none if no run of the arm holds such figures.
    """
    arms = _arms_with(experiment, "reliance")
    if arms is None or arm not in arms.runs:
        return []
    first = next(iter(arms.runs[arm].values()))["reliance"]
    if first["stages"] is None:
        return []
    modalities = first["modalities"]
    figures = {name: at("reliance", "stages", "mean", "modalities", name, "correlation") for name in modalities}
    spreads = {name: arms.spread(arm, figure) for name, figure in figures.items()}
    known = sorted((found for found in spreads.values() if found is not None), key=lambda found: found.mean)
    negative = sum(_holds(arms, arm, lambda _: 0.0, figure) for figure in figures.values())
    ends = f"; it goes from {number(known[0], 2)} to {number(known[-1], 2)}" if known else ""
    lines = [
        f"The mean map's correlation with errors is negative with every seed for {negative} of {len(known)} "
        f"modalities{ends}."
    ]
    choice = ("reliance", "choice", "overall")
    relied_on, chance = at(*choice, "relied_on", "mean"), at(*choice, "chance")
    always = {name: at(*choice, "always", name) for name in modalities}
    means = {name: arms.spread(arm, figure) for name, figure in always.items()}
    defined = {name: found for name, found in means.items() if found is not None}
    if defined and arms.spread(arm, relied_on) is not None:
        best = max(defined, key=lambda name: defined[name].mean)
        right = [percent(arms.spread(arm, figure)) for figure in (relied_on, chance, always[best])]
        verdict = "choose" if _holds(arms, arm, relied_on, always[best]) else "do not choose"
        lines.append(
            f"On contested pixels the modality most relied on is right in {right[0]} %, one drawn by chance in "
            f"{right[1]} %, and always `{best}`, the best single choice, in {right[2]} %: the maps {verdict} better "
            "than that with every seed."
        )
    return lines


def _arms_with(experiment: Experiment, key: str) -> Experiment | None:
    """The experiment's runs that hold figures of a kind; None if there is none."""
    runs = {arm: {seed: run for seed, run in seeds.items() if key in run} for arm, seeds in experiment.runs.items()}
    runs = {arm: seeds for arm, seeds in runs.items() if seeds}
    return Experiment(experiment.dataset, experiment.settings, runs) if runs else None
