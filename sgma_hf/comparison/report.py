"""The results card of a comparison: Markdown whose every figure is computed from the lines of `sgma-hf compare`."""

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..data.whole_files import write_text
from ..publishing.tables import markdown_table
from .arms import ARMS
from .experiments import Experiment, Figure, group_runs
from .figures import change, number, percent
from .paired_statistics import spread
from .report_extras import at, corruption_sections, detection_table, reliance_section
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
    ("a single-modality branch, with the projectors' mean", "projector_mean_single", "projector_mean"),
    ("a single-modality branch, with mean fusion", "mean_mas", "mean"),
    ("a single-modality branch drawn by robustness, with SGF", "sgma", "sgf"),
    (
        "a single-modality branch drawn by robustness, with SGF and less dropout",
        "sgma_less_dropout",
        "sgf_less_dropout",
    ),
    ("a draw by robustness instead of a uniform one", "sgma", "sgma_uniform_draw"),
    ("filter, prototypes and perceptrons, without a branch", "sgf", "projector_mean"),
    ("filter, prototypes and perceptrons, with a branch", "sgma", "projector_mean_single"),
    ("less dropout, with early fusion", "early_less_dropout", "early"),
    (
        "less dropout, with the projectors' mean and a branch",
        "projector_mean_single_less_dropout",
        "projector_mean_single",
    ),
    ("less dropout, with SGMA", "sgma_less_dropout", "sgma"),
    (
        "filter, prototypes and perceptrons, with a branch and less dropout",
        "sgma_less_dropout",
        "projector_mean_single_less_dropout",
    ),
    ("row sampling", "sgma_row_sampling", "sgma"),
    ("row sampling, with less dropout", "sgma_recipe", "sgma_less_dropout"),
)
# What a difference's verdict says of the first arm; None where the two share no seed.
_VERDICTS = {
    "ahead": "leads {} by more than the 95 % interval",
    "behind": "trails {} by more than the 95 % interval",
    "open": "cannot be told from {} by an interval",
    None: "has no seed in common with {}",
}
README_BEGIN, README_END = "<!-- measured: compare -->", "<!-- end of measured -->"


def results_card(rows: Sequence[Mapping[str, Any]]) -> str:
    """Write the card of one data set.

    Args:
        rows: Runs as `read_rows` returns them; those of other trainings get a section of their own.

    Returns:
        Markdown.

    Raises:
        ValueError: If there is no run, or runs of several data sets.
    """
    experiments = group_runs(rows)
    names = list(dict.fromkeys(experiment.dataset["name"] for experiment in experiments))
    if len(names) > 1:
        raise ValueError(f"The results are of several data sets, {names}; a card has one: choose by `dataset`.")
    parts = [
        f"# Results on `{names[0]}`",
        "Written by `sgma-hf results-card` from the lines that `sgma-hf compare` wrote: no figure was typed by hand. "
        "mIoU and IoU in %. Average, Top-1 and Last-1 are the mean over all combinations of the modalities, the best "
        "and the worst; ± is the standard deviation over seeds.",
    ]
    for experiment, title in zip(experiments, _titles(experiments), strict=True):
        parts += _sections(experiment, heading=title if len(experiments) > 1 else None)
    return "\n\n".join(parts) + "\n"


def readme_block(rows: Sequence[Mapping[str, Any]]) -> str:
    """Write the compact table of the newest model and loss, one line per arm, and in sentences what it shows.

    Trainings on other rows, some of them incomplete, get a table below; other models and losses, what single parts
    add and what damaged modalities cost are for the card.

    Args:
        rows: Runs as `read_rows` returns them; the model and the loss of the first are shown.
    """
    experiments = group_runs(rows)
    main = experiments[0]
    parts = []
    for experiment, title in zip(experiments, _titles(experiments), strict=True):
        if {**experiment.settings, "missing": None} != {**main.settings, "missing": None}:
            continue
        lines = [
            [f"`{arm}`", *(percent(experiment.spread(arm, experiment.score(key))) for key in SCORES.values())]
            for arm in experiment.runs
        ]
        parts.append(
            f"`{experiment.dataset['name']}`, {title}; reported on its `{experiment.settings['report_split']}` split; "
            f"no checkpoint was chosen: the weights are those of the last step; {_seeds(experiment)}; "
            f"{_hardware(experiment)}; {_commits(experiment)}:"
        )
        parts.append(markdown_table(["arm", *SCORES], lines))
        if experiment is main:
            parts.append(_bullets(_findings(experiment)))
            parts += detection_table(experiment, MAIN_ARM)
    return "\n\n".join(parts)


def _findings(experiment: Experiment) -> Iterator[str]:
    """What a reader of the short table should know."""
    arm = RECIPE_ARM if RECIPE_ARM in experiment.runs else MAIN_ARM
    others = [other for other in experiment.runs if other != arm]
    if arm in experiment.runs and others:
        yield from (_verdict(experiment, name, arm, others) for name in SCORES)
    yield _limits(experiment)


def write_into_readme(path: str | os.PathLike, text: str) -> None:
    """Replace what stands between the comparison's two marks in a README.

    Args:
        path: The file.
        text: Markdown.

    Raises:
        ValueError: If the file does not hold the marks, in this order.
    """
    path = Path(path)
    content = path.read_text(encoding="utf-8")
    pattern = re.escape(README_BEGIN) + r"\n.*?" + re.escape(README_END)
    if content.count(README_BEGIN) != 1 or not re.search(pattern, content, flags=re.DOTALL):
        raise ValueError(f"{path} does not hold {README_BEGIN!r} once and {README_END!r} after it; add both lines.")
    block = f"{README_BEGIN}\n{text.strip()}\n{README_END}"
    write_text(path, re.sub(pattern, lambda _: block, content, count=1, flags=re.DOTALL))


def _sections(experiment: Experiment, heading: str | None) -> list[str]:
    level = "##" if heading is None else "###"
    parts = [] if heading is None else [f"## {heading[0].upper()}{heading[1:]}"]

    def add(title: str, *texts: str | None) -> None:
        kept = [text for text in texts if text]
        if kept:
            parts.extend([f"{level} {title}", *kept])

    add("What was run", _what_was_run(experiment), _arms(experiment))
    add("All combinations of the modalities", _main_table(experiment), _scored_on(experiment))
    for main, others in _opponents(experiment):
        add(
            f"`{main}` against every other arm",
            "Mean difference over the seeds that both arms have, in points of mIoU, and its 95 % t-interval in "
            f"brackets; positive where `{main}` is better.",
            _difference_table(experiment, [(arm, main, arm) for arm in others]),
        )
    add("What each part adds", _parts(experiment))
    add("What this shows, and what it does not", shown(experiment))
    add("IoU per class, all modalities there", _class_table(experiment))
    add(
        "Expectation where modalities fail by chance",
        "Every modality is absent with probability p, independently of the others; the case that all are is left out "
        "and the rest renormalised: E = sum over combinations of (1 - p)^k p^(M - k) mIoU / (1 - p^M), for "
        "combinations of k of the M modalities.",
        _bernoulli_table(experiment),
    )
    add(
        "Cost",
        "Multiply-accumulates of one image of crop size with all modalities (matrix products and convolutions, by "
        "torch's counter), and seconds as they passed, whatever else the machine did.",
        _cost_table(experiment),
    )
    choosing = _choosing_table(experiment)
    note = "Choices between recipes may use these figures; no claim does."
    add("On the choosing split", choosing and note, choosing)
    for title, *texts in (*corruption_sections(experiment, MAIN_ARM), *reliance_section(experiment, MAIN_ARM)):
        add(title, *texts)
    return parts


def _opponents(experiment: Experiment) -> Iterator[tuple[str, list[str]]]:
    """Each arm that stands for SGMA, like for like and as the package trains it, and all the other arms."""
    for main in (MAIN_ARM, RECIPE_ARM):
        others = [arm for arm in experiment.runs if arm != main]
        if main in experiment.runs and others:
            yield main, others


def _title(experiment: Experiment) -> str:
    settings = experiment.settings
    missing = settings["missing"]
    rows = "as converted"
    if missing:
        rows = "lacking " + ", ".join(f"`{name}` in {100 * share:g} %" for name, share in missing.items())
    return f"{settings['max_steps']} steps, training rows {rows}"


def _titles(experiments: Sequence[Experiment]) -> list[str]:
    """What each experiment is, with whatever tells it from the others of its data set."""
    facts = [_facts(experiment) for experiment in experiments]
    titles = []
    for experiment, own in zip(experiments, facts, strict=True):
        name = experiment.dataset["name"]
        rivals = [other for other, one in zip(facts, experiments, strict=True) if one.dataset["name"] == name]
        differing = [
            f"{fact} {text}" for fact, text in own.items() if any(other.get(fact, text) != text for other in rivals)
        ]
        titles.append(", ".join([_title(experiment), *differing]))
    return titles


def _facts(experiment: Experiment) -> dict[str, str]:
    """What decides an experiment beside steps and missing rows, as words."""
    values = {**experiment.settings, **experiment.training}
    facts = {name: str(value) for name, value in values.items() if name not in ("max_steps", "missing")}
    facts["backbone_config"] = _encoder(experiment.settings["backbone_config"])
    return {"content": experiment.dataset["fingerprint"], **facts}


def _encoder(config: Mapping[str, Any]) -> str:
    """An encoder's configuration in words: `pvt_v2, depths 1/1/1/1`."""

    def text(value: Any) -> str:
        return "/".join(map(str, value)) if isinstance(value, list) else str(value)

    return ", ".join(
        [str(config["model_type"]), *(f"{key} {text(value)}" for key, value in config.items() if key != "model_type")]
    )


def _adapters(settings: Mapping[str, Any]) -> str:
    size = settings["modality_adapter_size"]
    return f"an adapter of {size} hidden channels before it for each modality" if size else "no adapters before it"


def _loss(settings: Mapping[str, Any]) -> str:
    weight = settings["dice_loss_weight"]
    return "cross-entropy" + (f" and, with weight {weight:g}, a Dice loss" if weight else " alone")


def _optimiser(experiment: Experiment) -> str:
    training, rate = experiment.training, f"AdamW at {experiment.settings['learning_rate']:g}"
    if not training:
        return f"{rate}, with weight decay, warm-up and schedule as `SgmaTrainingArguments` of the commit has them"
    warmup = training["warmup_steps"]
    length = f"{100 * warmup:g} % of the steps" if warmup < 1 else f"{warmup:g} steps"
    power = (training["lr_scheduler_kwargs"] or {}).get("power")
    return (
        f"{rate} (`{training['optim']}`), weight decay {training['weight_decay']:g}, warm-up over {length}, "
        f"{training['lr_scheduler_type']} schedule" + ("" if power is None else f" of power {power:g}")
    )


def _seeds(experiment: Experiment) -> str:
    """All seeds, and those of the arms that have not all."""
    seeds = experiment.seeds
    fewer = [f"`{arm}` {_listing(runs)}" for arm, runs in experiment.runs.items() if len(runs) < len(seeds)]
    return f"{'seed' if len(seeds) == 1 else 'seeds'} {_listing(seeds)}" + (f" ({'; '.join(fewer)})" if fewer else "")


def _listing(seeds: Iterable[int]) -> str:
    return ", ".join(map(str, seeds))


def _each(runs: Sequence[Mapping[str, Any]], key: Callable[[Mapping[str, Any]], str]) -> str:
    return "; ".join(dict.fromkeys(key(run) for run in runs))


def _hardware(experiment: Experiment) -> str:
    def describe(run: Mapping[str, Any]) -> str:
        hardware = run["hardware"]
        return f"{hardware['processor']}, {hardware['threads']} thread(s) per run on {hardware['cores']} cores"

    return _each(experiment.all_runs, describe)


def _commits(experiment: Experiment) -> str:
    def describe(run: Mapping[str, Any]) -> str:
        if run["commit"] is None:
            return "not recorded"
        return run["commit"][:10] + (" with uncommitted changes" if run["commit_has_changes"] else "")

    return "commit " + _each(experiment.all_runs, describe)


def _what_was_run(experiment: Experiment) -> str:
    dataset, settings, runs = experiment.dataset, experiment.settings, experiment.all_runs
    choosing = sorted({split for run in runs for split in run["results"]} - {settings["report_split"]})
    versions = _each(runs, lambda run: ", ".join(f"{name} {text}" for name, text in run["versions"].items()))
    counts = {split: part["count"] for run in runs for split, part in run["dataset"]["rows"].items()}
    training = runs[0]["dataset"]["rows"][settings["train_split"]]
    present = ", ".join(
        f"`{name}` in {have}" for name, have in zip(dataset["modalities"], training["per_modality"], strict=True)
    )
    total = sum(sum(run["seconds"].values()) for run in runs) / 3600
    lines = [
        f"Data: `{dataset['name']}`, content {dataset['fingerprint']}; modalities {_names(dataset['modalities'])}; "
        f"classes {', '.join(dataset['class_names'])}.",
        f"Rows: {', '.join(f'{count} of `{split}`' for split, count in counts.items())}. Of those trained on: "
        f"{present}.",
        f"Trained on `{settings['train_split']}`, reported on `{settings['report_split']}`, which is evaluated once, "
        "at the end; no checkpoint was chosen: the weights are those of the last step, whatever they score. "
        + (
            f"For choices between recipes there is {_names(choosing)}."
            if choosing
            else "No other split was evaluated."
        ),
        f"The same for all arms: encoder {_encoder(settings['backbone_config'])}, from random weights, "
        f"{_adapters(settings)}; decode head "
        f"{settings['decoder_hidden_size']} wide; {settings['max_steps']} steps of {settings['batch_size']} crops of "
        f"{settings['crop_size']} pixels, turned and flipped; {_loss(settings)}; {_optimiser(experiment)}; "
        f"{_seeds(experiment)}. "
        "Evaluated in windows of the crops' size.",
        f"{_hardware(experiment)}; {_commits(experiment)}; {versions}; {total:.1f} hours for {len(runs)} runs.",
    ]
    if experiment.left_out:
        lines.append(
            f"{experiment.left_out} runs of arms whose definition changed since are in the results and in no table."
        )
    if experiment.replaced:
        lines.append(f"Runs done again with other scores: {experiment.replaced}; the tables hold the later ones.")
    return "\n".join(f"- {line}" for line in lines)


def _names(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _arms(experiment: Experiment) -> str:
    lines = [
        [f"`{arm}`", ARMS[arm].description if arm in ARMS else "not an arm of this version", len(runs)]
        for arm, runs in experiment.runs.items()
    ]
    note = "All arms have modality dropout 0.5 and no row sampling unless they say otherwise."
    return f"{markdown_table(['arm', 'what it is', 'runs'], lines, text_columns=2)}\n\n{note}"


def _main_table(experiment: Experiment) -> str:
    combinations = list(experiment.results(experiment.all_runs[0])["combinations"])

    def miou(name: str) -> Figure:
        return lambda run: experiment.results(run)["combinations"][name]["miou"]

    figures = [miou(name) for name in combinations] + [experiment.score(key) for key in SCORES.values()]
    lines = [[f"`{arm}`", *(percent(experiment.spread(arm, item)) for item in figures)] for arm in experiment.runs]
    return markdown_table(["arm", *combinations, *SCORES], lines)


def _scored_on(experiment: Experiment) -> str | None:
    """Which combinations are scored on less than others, because their modalities are not there."""
    counts: dict[str, Mapping[str, Any]] = {}
    for run in experiment.all_runs:  # lines of older versions lack some of the counts
        for name, scores in experiment.results(run)["combinations"].items():
            counts[name] = {
                **counts.get(name, {}),
                **{key: value for key, value in scores.items() if value is not None},
            }
    windows = max(scores.get("rows", 0) for scores in counts.values())
    parts = []
    for name, scores in counts.items():
        facts = []
        rows = scores.get("rows", windows)
        complete, uncovered = scores.get("rows_complete", rows), scores.get("uncovered_share", 0)
        if rows < windows:
            facts.append(f"{rows} of {windows} windows")
        if complete < rows:
            facts.append(f"{rows - complete} with a part of it only")
        if uncovered >= 5e-5:
            facts.append(f"without {100 * uncovered:.2f} % of the labelled pixels, which nothing of it covers")
        if facts:
            parts.append(f"`{name}` on {', '.join(facts)}")
    if not parts:
        return None
    return (
        "The columns are scored on what there is of their modalities, so not all on the same pixels: "
        f"{'; '.join(parts)}."
    )


def _difference_table(experiment: Experiment, pairs: Sequence[tuple[str, str, str]]) -> str:
    """Lines (label, first arm, second arm): first - second."""
    lines = []
    for label, first, second in pairs:
        found = [experiment.difference(first, second, experiment.score(key)) for key in SCORES.values()]
        count = max((difference.count for difference in found if difference), default=0)
        lines.append([f"`{label}`" if label in experiment.runs else label, *map(change, found), count])
    return markdown_table(["", *SCORES, "seeds"], lines)


def _parts(experiment: Experiment) -> str | None:
    pairs = [(label, first, second) for label, first, second in PARTS if {first, second} <= set(experiment.runs)]
    if not pairs:
        return None
    labelled = [(f"{label}: `{first}` − `{second}`", first, second) for label, first, second in pairs]
    return _difference_table(experiment, labelled)


def shown(experiment: Experiment) -> str:
    """Say what the figures show, in sentences that follow from them.

    Args:
        experiment: The runs.

    Returns:
        A Markdown list.
    """
    lines = []
    for main, others in _opponents(experiment):
        lines += [_verdict(experiment, name, main, others) for name in SCORES]
    lines += _highest(experiment)
    return _bullets([*lines, _limits(experiment)])


def _limits(experiment: Experiment) -> str:
    """What no figure of a comparison shows."""
    if len(experiment.seeds) == 1:
        seeds = "One seed shows neither spread nor interval: no order of two arms is established by it."
    else:
        seeds = (
            f"The intervals are over the seeds that two arms share, of {len(experiment.seeds)} seeds, on the same "
            "rows: they say how well so few seeds fix the mean difference over seeds, not what another place or "
            "sensor would give. They are not corrected for the number of comparisons: of twenty without any "
            "difference, one leaves out 0 by chance on average."
        )
    return (
        f"{seeds} An encoder from random weights, {experiment.settings['max_steps']} steps: figures compare with each "
        "other, not with those of papers, and which arm leads may change with longer training or a pretrained encoder."
    )


def _bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _highest(experiment: Experiment) -> Iterator[str]:
    """Say which arm has the highest mean of each score, over the seeds that all arms have."""
    seeds = experiment.shared_seeds
    if not seeds:
        yield "There is no seed that all arms have, so no arm is named as the highest."
        return
    where = "" if seeds == experiment.seeds else f" over the seeds that all arms have ({_listing(seeds)})"
    for name, key in SCORES.items():
        means = {
            arm: spread([experiment.results(runs[seed])[key] for seed in seeds])
            for arm, runs in experiment.runs.items()
        }
        known = {arm: found for arm, found in means.items() if found is not None}
        if known:
            best = max(known, key=lambda arm: known[arm].mean)
            yield f"The highest mean {name}{where} is that of `{best}`, {percent(known[best])}."


def _verdict(experiment: Experiment, name: str, main: str, others: Sequence[str]) -> str:
    """In one sentence: against which arms one leads, trails, or neither."""
    figure = experiment.score(SCORES[name])
    found: dict[str, list[str]] = {phrase: [] for phrase in _VERDICTS.values()}
    compared = higher = beyond_spread = 0
    for arm in others:
        difference = experiment.difference(main, arm, figure)
        found[_VERDICTS[None if difference is None else difference.verdict]].append(arm)
        if difference is None:
            continue
        compared += 1
        higher += difference.mean > 0
        spreads = [experiment.spread(one, figure) for one in (main, arm)]
        deviations = [one.deviation for one in spreads if one is not None and one.deviation is not None]
        beyond_spread += len(deviations) == 2 and difference.mean > max(deviations)
    text = f"{name}: `{main}` is above {higher} of {compared} arms in the mean over the seeds that they share"
    if len(experiment.seeds) == 1:
        return f"{text}."
    parts = [phrase.format(f"{len(arms)} ({_names(arms)})") for phrase, arms in found.items() if arms]
    return f"{text}, above {beyond_spread} by more than either arm's standard deviation. It {', '.join(parts)}."


def _class_table(experiment: Experiment) -> str:
    everything = "+".join(experiment.dataset["modalities"])

    def iou(index: int) -> Figure:
        return lambda run: experiment.results(run)["combinations"][everything]["iou"][index]

    classes = experiment.dataset["class_names"]
    lines = [
        [f"`{arm}`", *(percent(experiment.spread(arm, iou(index))) for index in range(len(classes)))]
        for arm in experiment.runs
    ]
    return markdown_table(["arm", *classes], lines)


def _bernoulli_table(experiment: Experiment) -> str:
    def expectation(absent: str) -> Figure:
        return lambda run: experiment.results(run)["bernoulli_miou"][absent]

    keys = [f"{absent:g}" for absent in ABSENCE_PROBABILITIES]
    lines = [
        [f"`{arm}`", *(percent(experiment.spread(arm, expectation(key))) for key in keys)] for arm in experiment.runs
    ]
    return markdown_table(["arm", *(f"p = {key}" for key in keys)], lines)


def _cost_table(experiment: Experiment) -> str:
    lines = []
    for arm, runs in experiment.runs.items():
        run = next(iter(runs.values()))
        seconds = [number(experiment.spread(arm, at("seconds", part)), 0) for part in ("train", "evaluate")]
        lines.append([f"`{arm}`", f"{run['parameters']:,}", f"{run['gmacs']:.3f}", *seconds])
    return markdown_table(["arm", "parameters", "GMACs", "s to train", "s to evaluate"], lines)


def _choosing_table(experiment: Experiment) -> str | None:
    lines, report_split = [], experiment.settings["report_split"]
    for arm, runs in experiment.runs.items():
        for split in sorted({split for run in runs.values() for split in run["results"]} - {report_split}):
            found = [run["results"][split] for run in runs.values() if split in run["results"]]
            figures = [percent(spread([results[key] for results in found])) for key in SCORES.values()]
            lines.append([f"`{arm}`", f"`{split}`", *figures])
    return markdown_table(["arm", "split", *SCORES], lines, text_columns=2) if lines else None
