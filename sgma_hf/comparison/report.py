"""The results card of a comparison: tables whose every figure is computed from the lines of `sgma-hf compare`."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from ..publishing.tables import markdown_table
from .arms import ARMS
from .experiments import Experiment, Figure, at, group_runs
from .paired_statistics import NOTHING, change, number, percent, spread
from .report_extras import corruption_sections, reliance_section
from .runs import ABSENCE_PROBABILITIES


MAIN_ARM, RECIPE_ARM = "sgma", "sgma_recipe"
SCORES = {"Average": "average_miou", "Last-1": "last1_miou", "Top-1": "top1_miou"}
# What a part of the method earns: (what, the arm with it, the arm without it).
PARTS = (
    ("modality dropout, with mean fusion", "mean", "mean_no_dropout"),
    ("modality dropout, with SGMA", "sgma", "sgma_no_dropout"),
    ("late instead of early fusion", "pointwise_mean", "early"),
    ("weights of each modality's own", "pointwise_mean", "mean"),
    ("the projectors' context at several scales", "projector_mean", "pointwise_mean"),
    ("a branch of single modalities, with the projectors' mean", "projector_mean_single", "projector_mean"),
    ("the branch, with mean fusion", "mean_mas", "mean"),
    ("the branch drawn by robustness, with SGF", "sgma", "sgf"),
    ("the branch drawn by robustness, with SGF and less dropout", "sgma_less_dropout", "sgf_less_dropout"),
    ("a draw by robustness instead of a uniform one", "sgma", "sgma_uniform_draw"),
    ("SGF's filter, prototypes and perceptrons, without a branch", "sgf", "projector_mean"),
    ("SGF's, with a branch", "sgma", "projector_mean_single"),
    ("SGF's, with a branch and less dropout", "sgma_less_dropout", "projector_mean_single_less_dropout"),
    ("less dropout, with early fusion", "early_less_dropout", "early"),
    ("less dropout, with a branch", "projector_mean_single_less_dropout", "projector_mean_single"),
    ("less dropout, with SGMA", "sgma_less_dropout", "sgma"),
    ("row sampling", "sgma_row_sampling", "sgma"),
    ("row sampling, with less dropout", "sgma_recipe", "sgma_less_dropout"),
)
_INTRODUCTION = (
    "Written by `sgma-hf results-card` from the lines of `sgma-hf compare`. mIoU and IoU in %; Average, Top-1 and "
    "Last-1 are the mean over all combinations of the modalities, the best and the worst; ± is the standard deviation "
    "over seeds. No checkpoint is chosen: the weights are those of the last step."
)
_MATRIX_NOTE = (
    "Each arm against every other, over the seeds that both have. Wins and losses: the 95 % t-interval of the mean "
    "difference leaves out 0; ties: it does not. Above: arms with a lower mean; in brackets those below by more than "
    "either arm's standard deviation."
)
_LIMITS = (
    "Intervals are over seeds, on the same rows: they say nothing of another place or sensor. They are not corrected "
    "for the number of comparisons. One seed has no interval. Encoders start from random weights: figures compare "
    "with each other, not with those of papers."
)


def results_card(rows: Sequence[Mapping[str, Any]]) -> str:
    """Write the card of one data set from runs as `read_rows` returns them, trainings that differ one by one."""
    experiments = group_runs(rows)
    names = list(dict.fromkeys(experiment.dataset["name"] for experiment in experiments))
    if len(names) > 1:
        raise ValueError(f"The results are of several data sets, {names}; a card has one: choose by `dataset`.")
    parts = [f"# Results on `{names[0]}`", _INTRODUCTION]
    level = "##" if len(experiments) == 1 else "###"
    for experiment, title in zip(experiments, _titles(experiments), strict=True):
        if len(experiments) > 1:
            parts.append(f"## {title}")
        for heading, *texts in _sections(experiment):
            parts += [f"{level} {heading}", *texts]
    return "\n\n".join(parts) + "\n"


def _sections(experiment: Experiment) -> Iterator[tuple[str, ...]]:
    """Headings, each with its texts."""
    yield "What was run", markdown_table(["what", "value"], list(_facts(experiment).items()), text_columns=2)
    yield "Arms", "All have modality dropout 0.5 and no row sampling unless they say otherwise.", _arms(experiment)
    columns = {
        name: experiment.score("combinations", name, "miou")
        for name in experiment.results(experiment.all_runs[0])["combinations"]
    } | {name: experiment.score(key) for name, key in SCORES.items()}
    yield "All combinations of the modalities", _arm_table(experiment, columns), *_scored_on(experiment)
    yield "Wins, ties, losses", _MATRIX_NOTE, _matrix(experiment), _highest(experiment), _LIMITS
    for main in (MAIN_ARM, RECIPE_ARM):
        others = [arm for arm in experiment.runs if arm != main]
        if main in experiment.runs and others:
            yield (
                f"`{main}` against every other arm",
                f"Mean difference in points of mIoU with its 95 % interval, bold where that leaves out 0; positive "
                f"where `{main}` is better.",
                _difference_table(experiment, {f"`{arm}`": (main, arm) for arm in others}),
            )
    pairs = {f"{what}: `{a}` − `{b}`": (a, b) for what, a, b in PARTS if {a, b} <= experiment.runs.keys()}
    if pairs:
        yield "What each part adds", _difference_table(experiment, pairs)
    everything = "+".join(experiment.dataset["modalities"])
    iou = {
        name: experiment.score("combinations", everything, "iou", index)
        for index, name in enumerate(experiment.dataset["class_names"])
    }
    yield "IoU per class, all modalities there", _arm_table(experiment, iou)
    yield (
        "Expectation where modalities fail by chance",
        "Every modality is absent with probability p, independently of the others; the case that all are is left out "
        "and the rest renormalised: E = sum over combinations of (1 - p)^k p^(M - k) mIoU / (1 - p^M), for "
        "combinations of k of the M modalities.",
        _arm_table(
            experiment, {f"p = {p:g}": experiment.score("bernoulli_miou", f"{p:g}") for p in ABSENCE_PROBABILITIES}
        ),
    )
    yield (
        "Cost",
        "Multiply-accumulates of one image of crop size with all modalities (matrix products and convolutions, by "
        "torch's counter), and seconds as they passed, whatever else the machine did.",
        _cost_table(experiment),
    )
    choosing = _choosing_table(experiment)
    if choosing:
        yield "On the choosing split", "Choices between recipes may use these figures; no claim does.", choosing
    yield from corruption_sections(experiment, MAIN_ARM)
    yield from reliance_section(experiment, MAIN_ARM)


def _facts(experiment: Experiment) -> dict[str, str]:
    """What was run, in the words of settings and arguments."""
    dataset, runs = experiment.dataset, experiment.all_runs
    fewer = [f"`{arm}` {_listing(one)}" for arm, one in experiment.runs.items() if len(one) < len(experiment.seeds)]
    rows = {split: part for run in runs for split, part in run["dataset"]["rows"].items()}
    per_modality = [
        (split, ", ".join(f"{name} {n}" for name, n in zip(dataset["modalities"], part["per_modality"], strict=True)))
        for split, part in rows.items()
    ]
    hours = sum(sum(run["seconds"].values()) for run in runs) / 3600
    return {
        "content": dataset["fingerprint"],
        "classes": ", ".join(dataset["class_names"]),
        **{f"rows of {split}": f"{rows[split]['count']}: {there}" for split, there in per_modality},
        **{name: _text(value) for name, value in {**experiment.settings, **experiment.training}.items()},
        "seeds": _listing(experiment.seeds) + (f" ({'; '.join(fewer)})" if fewer else ""),
        "hardware": _each(
            runs, lambda run: "{processor}, {threads} thread(s), {cores} cores".format(**run["hardware"])
        ),
        "commit": _each(runs, _commit),
        "versions": _each(runs, lambda run: _text(run["versions"])),
        "runs": f"{len(runs)}, {hours:.1f} hours",
        "runs left out, of arms whose definition changed since": str(experiment.left_out),
        "runs replaced by later ones with other scores": str(experiment.replaced),
    }


def _text(value: Any) -> str:
    """A setting in words: `model_type pvt_v2, depths 1/1/1/1`."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_text(item)}" for key, item in value.items()) or "none"
    if isinstance(value, list):
        return "/".join(map(_text, value))
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _commit(run: Mapping[str, Any]) -> str:
    if run["commit"] is None:
        return "not recorded"
    return run["commit"][:10] + (" with uncommitted changes" if run["commit_has_changes"] else "")


def _listing(seeds: Iterable[int]) -> str:
    return ", ".join(map(str, seeds))


def _each(runs: Sequence[Mapping[str, Any]], key: Callable[[Mapping[str, Any]], str]) -> str:
    return "; ".join(dict.fromkeys(key(run) for run in runs))


def _titles(experiments: Sequence[Experiment]) -> list[str]:
    """The steps of each experiment, and whatever tells it from the others."""
    facts = []
    for one in experiments:
        decided = ("content", *one.settings, *one.training)
        facts.append({name: text for name, text in _facts(one).items() if name in decided})
    titles = []
    for own in facts:
        differing = [f"{fact} {text}" for fact, text in own.items() if any(other[fact] != text for other in facts)]
        titles.append(", ".join([f"{own['max_steps']} steps", *differing]))
    return titles


def _arms(experiment: Experiment) -> str:
    lines = [
        [f"`{arm}`", ARMS[arm].description if arm in ARMS else "not an arm of this version", len(runs)]
        for arm, runs in experiment.runs.items()
    ]
    return markdown_table(["arm", "what it is", "runs"], lines, text_columns=2)


def _scored_on(experiment: Experiment) -> Iterator[str]:
    """Which combinations are scored on less than others, because their modalities are not there."""
    combinations = experiment.results(experiment.all_runs[0])["combinations"]
    windows = max(scores["rows"] for scores in combinations.values())
    lines = [
        [f"`{name}`", scores["rows"], scores["rows"] - scores["rows_complete"], f"{100 * uncovered:.2f}"]
        for name, scores in combinations.items()
        for uncovered in [scores["uncovered_share"] or 0]
        if scores["rows"] < windows or scores["rows_complete"] < scores["rows"] or uncovered >= 5e-5
    ]
    if lines:
        header = [
            "combination",
            f"windows, of {windows}",
            "of these with a part of it only",
            "labelled pixels left out, %",
        ]
        yield "Not all columns are scored on the same pixels, as some modalities are not everywhere:"
        yield markdown_table(header, lines)


def _matrix(experiment: Experiment) -> str:
    """Wins, ties and losses of every arm against all others, by score."""
    lines = []
    for arm in experiment.runs:
        cells = [_against_others(experiment, arm, experiment.score(key)) for key in SCORES.values()]
        lines.append([f"`{arm}`", *(verdicts for verdicts, _ in cells), *(above for _, above in cells)])
    header = ["arm", *(f"{name}: wins / ties / losses" for name in SCORES), *(f"{name}: above" for name in SCORES)]
    return markdown_table(header, lines)


def _against_others(experiment: Experiment, arm: str, figure: Figure) -> tuple[str, str]:
    own = experiment.spread(arm, figure)
    verdicts: Counter[str] = Counter()
    compared = higher = clearly = 0
    for other in experiment.runs:
        found = None if other == arm else experiment.difference(arm, other, figure)
        if found is None:
            continue
        compared += 1
        verdicts[found.verdict] += found.half_width is not None
        higher += found.mean > 0
        deviations = [one and one.deviation for one in (own, experiment.spread(other, figure))]
        clearly += None not in deviations and found.mean > max(deviations)
    counts = " / ".join(str(verdicts[name]) for name in ("ahead", "open", "behind"))
    return counts if verdicts.total() else NOTHING, f"{higher} ({clearly}) of {compared}"


def _highest(experiment: Experiment) -> str:
    """Which arm has the highest mean of each score, over the seeds that all arms have."""
    seeds, lines = sorted(set.intersection(*map(set, experiment.runs.values()))), []
    for name, key in SCORES.items():
        figures = {arm: experiment.figures(arm, experiment.score(key)) for arm in experiment.runs}
        means = {arm: spread([found[seed] for seed in seeds]) for arm, found in figures.items()}
        known = {arm: found for arm, found in means.items() if found is not None}
        best = max(known, key=lambda arm: known[arm].mean) if known else None
        lines.append([name, f"`{best}`" if best else NOTHING, percent(known.get(best))])
    where = f"its mean over the seeds that all arms have ({_listing(seeds) or 'none'})"
    return markdown_table(["score", "arm of the highest mean", where], lines, text_columns=2)


def _difference_table(experiment: Experiment, pairs: Mapping[str, tuple[str, str]]) -> str:
    """Label -> (first arm, second arm): first - second."""
    lines = []
    for label, (first, second) in pairs.items():
        found = [experiment.difference(first, second, experiment.score(key)) for key in SCORES.values()]
        count = max((difference.count for difference in found if difference), default=0)
        lines.append([label, *map(change, found), count])
    return markdown_table(["", *SCORES, "seeds"], lines)


def _arm_table(experiment: Experiment, columns: Mapping[str, Figure]) -> str:
    """A line for each arm, with the mean and the standard deviation over its seeds of the figures by column."""
    lines = [
        [f"`{arm}`", *(percent(experiment.spread(arm, figure)) for figure in columns.values())]
        for arm in experiment.runs
    ]
    return markdown_table(["arm", *columns], lines)


def _cost_table(experiment: Experiment) -> str:
    lines = []
    for arm, runs in experiment.runs.items():
        run = next(iter(runs.values()))
        seconds = [number(experiment.spread(arm, at("seconds", part)), 0) for part in ("train", "evaluate")]
        lines.append([f"`{arm}`", f"{run['parameters']:,}", f"{run['gmacs']:.3f}", *seconds])
    return markdown_table(["arm", "parameters", "GMACs", "s to train", "s to evaluate"], lines)


def _choosing_table(experiment: Experiment) -> str | None:
    lines = []
    for arm, runs in experiment.runs.items():
        splits = {split for run in runs.values() for split in run["results"]} - {experiment.settings["report_split"]}
        for split in sorted(splits):
            found = [run["results"][split] for run in runs.values() if split in run["results"]]
            figures = [percent(spread([results[key] for results in found])) for key in SCORES.values()]
            lines.append([f"`{arm}`", f"`{split}`", *figures])
    return markdown_table(["arm", "split", *SCORES], lines, text_columns=2) if lines else None
