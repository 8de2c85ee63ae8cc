"""Results of an evaluation as tables, and as Markdown."""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .tables import Table, markdown_table


_SCORES = ("miou", "f1", "accuracy", "kappa")  # records of version 0.3 have no kappa
_OVER_TIME = {"mvc8": "mVC8", "mvc16": "mVC16", "flicker": "flicker"}  # where rows are of sequences


def read_results(path: str | os.PathLike) -> dict[str, Any]:
    """Read what `sgma-hf evaluate` wrote of a checkpoint; ValueError in one line if the file is something else."""
    try:
        results = json.loads(Path(path).read_text(encoding="utf-8"))
        results_to_markdown(results)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(
            f"{path} holds no scores of combinations. Give what `sgma-hf evaluate --model` wrote to its `--output`."
        ) from error
    return results


def results_to_markdown(results: Mapping[str, Any]) -> str:
    """Write the results as Markdown tables in percent: by combination, and by class for the largest combination.

    What was left out is said below them.
    `results` is what `evaluate_modality_combinations` returned, or the same read back from JSON; under `agreement` it
    may hold what `evaluate_agreement` returned, under `calibration` what `evaluate_calibration` did.
    """
    scores, *others = (markdown_table(table.header, table.lines) for table in result_tables(results))
    parts = [scores, "", *result_remarks(results)]
    return "\n".join([*parts, *(f"\n{table}" for table in others)]) + "\n"


def result_tables(results: Mapping[str, Any]) -> list[Table]:
    """The scores in percent: by combination, under each protocol, and by class for the largest combination."""
    ious = (f"IoU {name}" for name in results["class_names"])
    over_time = _OVER_TIME if _is_over_time(results) else {}
    header = ["modalities", "mIoU", "F1", "accuracy", "kappa", *over_time.values(), *ious, _unit(results)]
    keys = (*_SCORES, *over_time)
    lines = [
        [name, *(_percent(scores.get(key)) for key in keys), *map(_percent, scores["iou"]), scores["rows"]]
        for name, scores in results["combinations"].items()
    ]
    tables = [Table("scores", "Scores in %", header, lines), *_date_tables(results), *_protocol_table(results)]
    name, scores = list(results["combinations"].items())[-1]  # from as many modalities as there are
    if scores.get("users_accuracy") is not None and scores["miou"] is not None:
        tables.append(_class_table(f"class, from {name}", scores, results["class_names"]))
    if "calibration" in results:
        tables.append(_calibration_table(results["calibration"]))
    return tables


def _is_over_time(results: Mapping[str, Any]) -> bool:
    """Whether some rows of a sequence follow each other, so that there is something to say of them."""
    return any(scores.get("flicker") is not None for scores in results["combinations"].values())


def _calibration_table(found: Mapping[str, Any]) -> Table:
    """How far confidences are from the shares that are right, at each temperature."""
    header = ["expected calibration error in %", *(f"temperature {one:g}" for one in found["temperatures"])]
    lines = [[name, *(_percent(one["ece"]) for one in parts)] for name, parts in found["combinations"].items()]
    return Table("calibration", "Whether confidences are right as often as they say", header, lines)


def map_scores_to_markdown(scores: Mapping[str, Any]) -> str:
    """Write the scores of a map as Markdown, see `score_map`; `class_names` are there as well."""
    tables = [] if scores["miou"] is None else [_class_table("class", scores, scores["class_names"])]
    means = zip(("mIoU", "F1", "accuracy", "kappa"), _SCORES, strict=True)
    lines = [*(f"{markdown_table(table.header, table.lines)}\n" for table in tables)]
    lines.append(f"{', '.join(f'{name} {_percent(scores[key])}' for name, key in means)}: in %.")
    if scores["uncovered_share"]:
        lines.append(f"Labelled pixels that the map does not know, left out: {scores['uncovered_share']:.2%}.")
    return "\n".join(lines) + "\n"


def _unit(results: Mapping[str, Any]) -> str:
    """What is counted: rows, or the windows that they were cut into."""
    rows = results.get("rows")
    return "rows" if results.get("windows", rows) == rows else "windows"


_DATE_TITLES = {
    "share": "mIoU in % from a share of the dates",
    "before": "mIoU in % from dates before a day",
    "gap": "mIoU in % without the dates of a time",
}


def _date_tables(results: Mapping[str, Any]) -> list[Table]:
    """The mIoU of each combination from some of the dates: a table for shares, days and gaps each."""
    found, tables = results.get("dates", {"kinds": {}}), []
    for kind, title in _DATE_TITLES.items():
        chosen = {name: found["conditions"][name] for name, of_kind in found["kinds"].items() if of_kind == kind}
        if chosen:
            names = list(next(iter(chosen.values()))["combinations"])
            lines = [
                [name, *(_percent(one["combinations"][name]["miou"]) for one in chosen.values())] for name in names
            ]
            lines.append(["Average", *(_percent(one["average_miou"]) for one in chosen.values())])
            lines.append(["Last-1", *(_percent(one["last1_miou"]) for one in chosen.values())])
            tables.append(Table(f"dates_{kind}", title, [title, *chosen], lines))
    return tables


def _protocol_table(results: Mapping[str, Any]) -> list[Table]:
    """The figures of the robustness protocols, where they were asked for."""
    found = results.get("protocols", {})
    means = {"EMM": found["emm"]} if "emm" in found else {}
    means |= {f"RMM, r = {share}": figures for share, figures in found.get("rmm", {}).items()}
    lines = [[name, one["average_miou"], *one["expected_miou"].values()] for name, one in means.items()]
    lines += [[f"NM, {level}", scores["miou"], None, None, None] for level, scores in found.get("nm", {}).items()]
    lines = [[name, *map(_percent, scores)] for name, *scores in lines]
    header = ["mIoU under", "mean", *(f"expected, p = {p}" for p in ("0.2", "0.1", "0.05"))]
    return [Table("protocols", "Damaged inputs, mIoU in %", header, lines)] if lines else []


def _class_table(first: str, scores: Mapping[str, Any], class_names: Sequence[str]) -> Table:
    """The scores of each class; `first` heads their names."""
    header = [first, "IoU", "F1", "user's accuracy", "producer's accuracy"]
    columns = [map(_percent, scores[key]) for key in ("iou", "f1_per_class", "users_accuracy", "producers_accuracy")]
    return Table("classes", "Scores of each class in %", header, list(zip(class_names, *columns, strict=True)))


def _percent(score: float | None) -> str:
    return "–" if score is None else f"{100 * score:.2f}"


def _date_remarks(results: Mapping[str, Any]) -> list[str]:
    """What sums up the scores from some of the dates."""
    found = results.get("dates")
    if found is None:
        return []
    remarks = []
    if found["average_miou"] is not None:
        shares = ", ".join(name for name, kind in found["kinds"].items() if kind == "share")
        remarks.append(
            f"Over the combinations and {shares} of the dates: Average {_percent(found['average_miou'])}, Last-1 "
            f"{_percent(found['last1_miou'])} ({found['last1_combination']}), mIoU in %. Of a share below all, "
            f"{found['draws']} draws for each row count together, seed {found['seed']}."
        )
    largest, scores = [item for item in results["combinations"].items() if item[1]["rows"]][-1]
    rows = {name: one["combinations"][largest]["rows"] for name, one in found["conditions"].items()}
    days = [name for name, kind in found["kinds"].items() if kind != "share" and rows[name] < scores["rows"]]
    left_out = [f"{name} {scores['rows'] - rows[name]}" for name in days]
    if left_out:
        remarks.append(f"Rows of which nothing is left, so not scored: {', '.join(left_out)}.")
    return remarks


class Pair(NamedTuple):
    """A combination of modalities, names joined by "+", one that is added to it, and both together."""

    without: str
    added: str
    together: str

    def __str__(self) -> str:
        return f"{self.added} to `{self.without}`"


def pairs_of(names: Iterable[str]) -> list[Pair]:
    """All pairs of which both combinations are among these names, in their order."""
    by_parts = {frozenset(name.split("+")): name for name in names}
    return [
        Pair(name, added, by_parts[parts | {added}])
        for parts, name in by_parts.items()
        for added in dict.fromkeys(part for other in by_parts.values() for part in other.split("+"))
        if added not in parts and parts | {added} in by_parts
    ]


def worst_pair(combinations: Mapping[str, Mapping[str, Any]]) -> tuple[float, Pair] | None:
    """The least that an added modality brings, a fraction of mIoU, and to what; None if no pair is scored."""
    miou = {name: scores["miou"] for name, scores in combinations.items() if scores["miou"] is not None}
    return min(((miou[pair.together] - miou[pair.without], pair) for pair in pairs_of(miou)), default=None)


def result_remarks(results: Mapping[str, Any]) -> list[str]:
    """What sums the scores up, and what has to be known to read them."""
    top, last = (f" ({results[key]})" if results[key] else "" for key in ("top1_combination", "last1_combination"))
    remarks = [
        f"Average {_percent(results['average_miou'])}, Top-1 {_percent(results['top1_miou'])}{top}, "
        f"Last-1 {_percent(results['last1_miou'])}{last}: mIoU in %."
    ]
    worst = worst_pair(results["combinations"])
    if worst is not None:
        remarks.append(f"The least that an added sensor brings is {100 * worst[0]:+.2f}, {worst[1]}.")
    return [*remarks, *_settings(results), *_left_out(results), *_date_remarks(results), *_further_remarks(results)]


def _settings(results: Mapping[str, Any]) -> list[str]:
    """How the scores were made."""
    remarks = []
    if results["missing"] == "zero":
        remarks.append("Modalities that are not in a combination were shown to the model as zeros.")
    if not isinstance(results["scored_classes"], str):
        remarks.append(f"Means over {', '.join(results['scored_classes'])}; the pixels of all classes count.")
    elif results["scored_classes"] == "truth":
        remarks.append("Classes without a labelled pixel are left out of the means.")
    else:
        remarks.append("Classes that are neither labelled nor predicted anywhere are left out of the means.")
    if results.get("label_column", "label") != "label":
        remarks.append(f"The labels are those of the column `{results['label_column']}`.")
    if results.get("stride"):
        remarks.append(f"From windows every {results['stride']} pixels, blended.")
    if results.get("tta"):
        remarks.append(f"Logits are means over the positions `{results['tta']}` of each window.")
    if results.get("chosen_by"):
        remarks.append(
            f"These rows chose the checkpoint, by `{results['chosen_by']}`: expect less on others, and report those."
        )
    if results.get("split_note"):
        remarks.append(f"How the rows were split off: {results['split_note']}")
    return remarks


def _left_out(results: Mapping[str, Any]) -> list[str]:
    """What is not scored, or only in part."""
    remarks = []
    if results["unscored_combinations"]:
        names = ", ".join(results["unscored_combinations"])
        remarks.append(f"Without data, so not scored and no part of the average: {names}.")
    skipped, unit = (results["rows_without_label"], results["rows_without_modality"]), _unit(results)
    if any(skipped):
        remarks.append(f"Left out: {skipped[0]} {unit} without a label, {skipped[1]} without a modality.")
    incomplete = [
        f"{name} {scores['rows'] - scores['rows_complete']}"
        for name, scores in results["combinations"].items()
        if scores["rows"] > scores["rows_complete"]
    ]
    if incomplete:
        parts = f"{unit.capitalize()} with a part of a combination only"
        remarks.append(f"{parts}, predicted from that: {', '.join(incomplete)}.")
    uncovered = [
        f"{name} {_percent(scores['uncovered_share'])} %"
        for name, scores in results["combinations"].items()
        if round(scores["uncovered_share"] or 0, 4)
    ]
    if uncovered:
        remarks.append(f"Labelled pixels that nothing of the combination covers, left out: {', '.join(uncovered)}.")
    return remarks


def _further_remarks(results: Mapping[str, Any]) -> list[str]:
    """What sequences and agreement say, where they were asked for."""
    remarks = []
    largest, scores = list(results["combinations"].items())[-1]
    if _is_over_time(results):
        remarks.append(
            "Of the pixels whose label stays the same over 8, or 16, rows of a sequence, mVC8 and mVC16 are the share "
            "whose prediction stays the same, too; flicker is the share whose prediction changes from one row to the "
            "next. None of them says whether predictions are right. "
            f"Clips of {largest}: {scores['clips8']} and {scores['clips16']}."
        )
    known = {name: found for name, found in results.get("agreement", {}).items() if found["windows"]}
    if known:
        means = (f"{name} {found['mean']:.2f} ({found['percentile_5']:.2f})" for name, found in known.items())
        remarks.append(
            "Mean agreement of each modality alone with the others, and in brackets what 95 % of the windows reach: "
            f"{', '.join(means)}."
        )
    return remarks
