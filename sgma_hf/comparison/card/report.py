"""The results card of a comparison: tables whose every figure is computed from the lines of `sgma-hf compare`."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations as pairs_of
from typing import Any

from ...publishing.tables import Cell, Table, csv_text, latex_table
from ..arms import ARMS
from .added import added_tables
from .calibration import calibration_tables
from .cells import difference_cells, interval, number, percent, tile_bounds
from .corruptions import corruption_tables
from .dates import date_tables
from .experiments import SCORES, Experiment, Figure, at, group_runs
from .statistics import NUM_RESAMPLES
from .trust import trust_tables


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
    ("less dropout, with mean fusion and the branch", "mean_mas_less_dropout", "mean_mas"),
    ("less dropout, with a branch", "projector_mean_single_less_dropout", "projector_mean_single"),
    ("less dropout, with SGMA", "sgma_less_dropout", "sgma"),
    ("row sampling", "sgma_row_sampling", "sgma"),
    ("an encoder for each modality", "sgma_own_encoders", "sgma"),
    ("row sampling, with less dropout", "sgma_recipe", "sgma_less_dropout"),
)
_INTRODUCTION = (
    "Written by `sgma-hf results-card` from the lines of `sgma-hf compare`. mIoU, IoU and F1 in %; Average, Top-1 and "
    "Last-1 are the mean over all combinations of the modalities, the best and the worst; ± is the standard deviation "
    "over seeds. No checkpoint is chosen: the weights are those of the last step."
)
_RESULTS_NOTE = (
    f"95 % intervals of Average: Student's t over seeds, as if trained anew; {NUM_RESAMPLES:,} resamples of the "
    "tiles, as if other tiles of these places were scored. E(p) is the expected mIoU where each modality is absent "
    "with probability p, independently of the others, and not all are."
)
_CLAIMS_NOTE = (
    "Points of mIoU over the seeds that both have. s: a t-test over seeds tells it from 0; t: a paired bootstrap over "
    "tiles does; each at 5 % for all differences of the table together (Holm). Bold: both do."
)
_ARMS_NOTE = (
    "All have modality dropout 0.5 and no row sampling unless they say otherwise. GMACs: multiply-accumulates of one "
    "image of crop size with all modalities, in 10^9. Seconds as they passed, whatever else the machine did."
)


@dataclass(frozen=True)
class Card:
    """The tables of one data set, by the heading of the training that they are of; `""` where there is one only."""

    dataset: str
    tables: dict[str, list[Table]]

    def markdown(self) -> str:
        """For reading."""
        parts = [f"# Results on `{self.dataset}`", _INTRODUCTION]
        said = {""}
        for heading, tables in self.tables.items():
            parts += [f"## {heading}"] if heading else []
            for table in tables:
                parts.append(f"{'###' if heading else '##'} {table.title}")
                parts += [table.note] if table.note not in said else []
                said.add(table.note)
                parts.append(table.markdown())
        return "\n\n".join(parts) + "\n"

    def latex(self) -> str:
        """For a paper: needs the package `booktabs`."""
        tables = (latex_table(table, heading=heading) for heading, those in self.tables.items() for table in those)
        return "\n\n".join(tables) + "\n"

    def csv(self) -> str:
        """For calculating: a line for each cell; scores are fractions in [0, 1] with all their digits."""
        return csv_text(self.tables)


def make_card(rows: Sequence[Mapping[str, Any]], *, names: Sequence[str] = ()) -> Card:
    """Make the card of one data set from runs as `read_rows` returns them, trainings that differ one by one.

    `names` chooses tables by their `name`; all by default.
    """
    experiments = one_data_set(rows)
    headings = _headings(experiments) if len(experiments) > 1 else [""]
    tables = {heading: list(tables_of(experiment)) for heading, experiment in zip(headings, experiments, strict=True)}
    if names:
        known = list(dict.fromkeys(table.name for those in tables.values() for table in those))
        unknown = [name for name in names if name not in known]
        if unknown:
            raise ValueError(f"There is no table {unknown[0]!r} in this card; its tables are {', '.join(known)}.")
        tables = {heading: [table for table in those if table.name in names] for heading, those in tables.items()}
    return Card(experiments[0].dataset["name"], tables)


def one_data_set(rows: Sequence[Mapping[str, Any]]) -> list[Experiment]:
    """Group runs, which all have to be of one data set."""
    experiments = group_runs(rows)
    names = list(dict.fromkeys(experiment.dataset["name"] for experiment in experiments))
    if len(names) > 1:
        raise ValueError(f"The results are of several data sets, {names}; a card has one: choose by `dataset`.")
    return experiments


def tables_of(experiment: Experiment) -> Iterator[Table]:
    """All tables of runs that may stand in one."""
    yield _results(experiment)
    scored = experiment.results(experiment.all_runs[0])["combinations"]
    figures = {name: experiment.score("combinations", name, "miou") for name in scored}
    yield _arm_table("combinations", "mIoU of all combinations of the modalities", experiment, figures)
    yield from added_tables(experiment)
    yield from _scored_on(experiment)
    yield from _wins(experiment)
    yield from _parts(experiment)
    everything = ("combinations", "+".join(experiment.dataset["modalities"]))
    for name, title, key in (("iou", "IoU", "iou"), ("f1", "F1", "f1_per_class")):
        if key in experiment.results(experiment.all_runs[0])["combinations"][everything[1]]:
            classes = enumerate(experiment.dataset["class_names"])
            by_class = {label: experiment.score(*everything, key, index) for index, label in classes}
            yield _arm_table(name, f"{title} per class, all modalities there", experiment, by_class)
    yield _arms(experiment)
    yield from _choosing(experiment)
    yield from corruption_tables(experiment)
    yield from trust_tables(experiment)
    yield from calibration_tables(experiment)
    yield from date_tables(experiment)
    lines = list(_facts(experiment).items())
    yield Table("setting", "What was run", ["what", "value"], lines, text_columns=2)


def _results(experiment: Experiment) -> Table:
    """The scores, and whatever a reader must know before comparing two lines of them."""
    dataset, split = experiment.dataset, experiment.settings["report_split"]
    absences = experiment.results(experiment.all_runs[0]).get("bernoulli_miou", {})
    commits = {arm: _each(runs.values(), _commit_of) for arm, runs in experiment.runs.items()}
    differ = len(set(commits.values())) > 1
    lines = []
    for arm, runs in experiment.runs.items():
        average, *others = (experiment.spread(arm, experiment.score(key)) for key in SCORES.values())
        intervals = average and average.interval, tile_bounds(experiment.resampled(arm))
        others += [experiment.spread(arm, experiment.score("bernoulli_miou", absence)) for absence in absences]
        told = [_listing(runs), *([commits[arm]] if differ else [])]
        lines.append([f"`{arm}`", *told, percent(average), *map(interval, intervals), *map(percent, others)])
    note = f"Reported on `{split}`, {dataset['rows'][split]['count']} rows. {_split_note(dataset, split)}"
    if differ:
        note += " **The lines are of several commits.**"
    if len({tuple(runs) for runs in experiment.runs.values()}) > 1:
        note += " **The lines have unequal seeds.**"
    told = ["arm", "seeds", *(["commit"] if differ else [])]
    header = [*told, "Average", "over seeds", "over tiles", "Last-1", "Top-1", *(f"E({p})" for p in absences)]
    return Table("results", "Scores", header, lines, f"{note} {_RESULTS_NOTE}", text_columns=len(told))


def _split_note(dataset: Mapping[str, Any], split: str) -> str:
    note = dataset.get("split_notes", {}).get(split)
    return note or "How this split was made is not recorded."


def _scored_on(experiment: Experiment) -> Iterator[Table]:
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
        yield Table("scored_on", "Combinations that are scored on other pixels", header, lines)


def _wins(experiment: Experiment) -> Iterator[Table]:
    """For each score a matrix of differences: the arm of the line - the arm of the column."""
    arms = list(experiment.runs)
    pairs = list(pairs_of(arms, 2))
    if not pairs:
        return
    for name, key in SCORES.items():
        cells = dict(zip(pairs, difference_cells(experiment, pairs, key), strict=True))
        lines = [
            [f"{place}. `{arm}`", *(_mirrored(cells, arm, other) for other in arms)]
            for place, arm in enumerate(arms, 1)
        ]
        header = ["line − column", *map(str, range(1, len(arms) + 1))]
        slug = name.lower().replace("-", "")
        yield Table(f"wins_{slug}", f"Wins in {name}", header, lines, _CLAIMS_NOTE)


def _mirrored(cells: Mapping[tuple[str, str], Cell], arm: str, other: str) -> Cell | str:
    """The cell of a pair, with the sign changed where it was compared the other way round."""
    if arm == other:
        return ""
    if (arm, other) in cells:
        return cells[arm, other]
    cell = cells[other, arm]
    if cell.value is None:
        return cell
    low, high = (None if bound is None else -bound for bound in (cell.high, cell.low))
    signs = str.maketrans("+-", "-+")
    return cell._replace(text=cell.text.translate(signs), value=-cell.value, low=low, high=high)


def _parts(experiment: Experiment) -> Iterator[Table]:
    """What each part of the method adds, of the pairs of arms that were run."""
    named = {(a, b): f"{what}: `{a}` − `{b}`" for what, a, b in PARTS if {a, b} <= experiment.runs.keys()}
    if named:
        average, *others = (difference_cells(experiment, list(named), key) for key in SCORES.values())
        found = [experiment.difference(*pair, experiment.score("average_miou")) for pair in named]
        seeds = [interval(one and one.interval) for one in found]
        tiles = [interval(tile_bounds(experiment.resampled(*pair))) for pair in named]
        lines = list(zip(named.values(), average, seeds, tiles, *others, strict=True))
        header = ["", "Average", "over seeds", "over tiles", "Last-1", "Top-1"]
        yield Table("parts", "What each part adds", header, lines, _CLAIMS_NOTE)


def _arm_table(name: str, title: str, experiment: Experiment, columns: Mapping[str, Figure]) -> Table:
    """A line for each arm, with the mean and the standard deviation over its seeds of the figures by column."""
    lines = [
        [f"`{arm}`", *(percent(experiment.spread(arm, figure)) for figure in columns.values())]
        for arm in experiment.runs
    ]
    return Table(name, title, ["arm", *columns], lines)


def _arms(experiment: Experiment) -> Table:
    lines = []
    for arm, runs in experiment.runs.items():
        run = next(iter(runs.values()))
        seconds = [number(experiment.spread(arm, at("seconds", part)), 0) for part in ("train", "evaluate")]
        what = run.get("description") or (ARMS[arm].description if arm in ARMS else "not an arm of this version")
        lines.append([f"`{arm}`", what, f"{run['parameters']:,}", f"{run['gmacs']:.3f}", *seconds])
    header = ["arm", "what it is", "parameters", "GMACs", "s to train", "s to evaluate"]
    return Table("arms", "Arms and what they cost", header, lines, _ARMS_NOTE, text_columns=2)


def _choosing(experiment: Experiment) -> Iterator[Table]:
    """The scores of splits that choices between recipes may use."""
    lines = [
        [f"`{arm}`", f"`{part.settings['report_split']}`"]
        + [percent(part.spread(arm, part.score(key))) for key in SCORES.values()]
        for arm in experiment.runs
        for part in experiment.choosing()
        if arm in part.runs
    ]
    if lines:
        note = "Choices between recipes may use these figures; no claim does."
        yield Table("choosing", "On the choosing split", ["arm", "split", *SCORES], lines, note, text_columns=2)


def _facts(experiment: Experiment) -> dict[str, str]:
    """What was run, in the words of settings and arguments."""
    dataset, runs = experiment.dataset, experiment.all_runs
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
        **{f"how {split} was made": _split_note(dataset, split) for split in rows},
        **{name: _text(value) for name, value in {**experiment.settings, **experiment.training}.items()},
        "hardware": _each(
            runs, lambda run: "{processor}, {threads} thread(s), {cores} cores".format(**run["hardware"])
        ),
        "commit": _each(runs, _commit_of),
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


def _commit_of(run: Mapping[str, Any]) -> str:
    """The first digits of a run's commit."""
    if run["commit"] is None:
        return "not recorded"
    return run["commit"][:10] + (" with uncommitted changes" if run["commit_has_changes"] else "")


def _listing(seeds: Iterable[int]) -> str:
    """Seeds, one after the other."""
    return ", ".join(map(str, seeds))


def _each(runs: Iterable[Mapping[str, Any]], key: Callable[[Mapping[str, Any]], str]) -> str:
    """The different texts of runs."""
    return "; ".join(dict.fromkeys(key(run) for run in runs))


def _headings(experiments: Sequence[Experiment]) -> list[str]:
    """The steps of each experiment, and whatever tells it from the others."""
    facts = []
    for one in experiments:
        decided = ("content", *one.settings, *one.training)
        facts.append({name: text for name, text in _facts(one).items() if name in decided})
    headings = []
    for own in facts:
        differing = [f"{fact} {text}" for fact, text in own.items() if any(other.get(fact) != text for other in facts)]
        headings.append(", ".join([f"{own['max_steps']} steps", *differing]))
    return headings
