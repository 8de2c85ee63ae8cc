"""`sgma-hf compare`: train and evaluate several arms with several seeds on one data set, one JSON line per run.

Runs that the output already holds are skipped, so an interrupted comparison goes on with the same command, and the
quick preset's runs are part of the full one. With `--keep_models` figures are added later, `--corruptions` for
instance, without training again.
"""

import functools
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, fields
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from transformers.utils import logging

from sgma_hf.commands.arguments import DataclassParser
from sgma_hf.comparison.arms import ARMS, select_arms
from sgma_hf.comparison.compared_rows import content_fingerprint, load_metadata
from sgma_hf.comparison.run_records import append_row, prepare_file, read_rows
from sgma_hf.comparison.settings import RunSettings, setting
from sgma_hf.data.command_line import OWN_MODULES, check_folder_or_id, import_own_module, report_errors
from sgma_hf.data.incomplete_rows import parse_shares
from sgma_hf.data.rows import labelled_rows, load_rows, present_modalities, with_label_column
from sgma_hf.publishing.results import worst_pair
from sgma_hf.training import PVT_V2_SIZES


if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from sgma_hf.comparison.runs import Run

    Outcome = tuple[Run, dict[str, Any] | "Failure"]

# What a preset decides unless a flag says otherwise. The sizes are those of `RunSettings`. On a data set of 210
# training and 97 evaluated rows of 360 x 480 pixels, the three runs of `quick` took 3 to 5 minutes of one core each.
PRESETS = {
    "quick": {"arms": ["mean", "projector_mean_single", "sgma"], "seeds": [0]},
    "full": {"arms": ["all"], "seeds": [0, 1, 2]},
}
PRETRAINED_LEARNING_RATE = 6e-5  # the default of `sgma-hf train`


class Failure(NamedTuple):
    """What went wrong in a run, in words, which every process can hand on."""

    kind: str
    message: str
    trace: str


@dataclass(frozen=True, kw_only=True)
class CompareArguments(RunSettings):
    """Arguments of `sgma-hf compare`: the settings of all runs, some of them as text, and which runs."""

    dataset: str = field(metadata={"help": "Rows: a folder of a converter."})
    output: str = field(metadata={"help": "File of JSON lines; runs are added to it."})
    preset: str = setting(
        "quick",
        "quick: three arms, one seed: three runs, measured at 3 to 5 minutes of one core each (210 training and 97 "
        "evaluated rows of 360 x 480 pixels); full: all arms, three seeds.",
        choices=list(PRESETS),
    )
    arms: list[str] | None = field(
        default=None,
        metadata={
            "help": f"Arms, or all: {', '.join(ARMS)}; one of your own is package.module:ARM, see docs/research.md; "
            "default: the preset's."
        },
    )
    seeds: list[int] | None = field(default=None, metadata={"help": "Seeds; default: the preset's."})
    max_steps: int | None = setting(
        None, f"Training steps; the last one's weights are evaluated; default: {RunSettings.max_steps}."
    )
    epochs: int | None = setting(None, "Training steps as passes over the training rows, in place of `--max_steps`.")
    learning_rate: float | None = setting(
        None,
        f"Highest learning rate of AdamW; default: {RunSettings.learning_rate:g} for encoders of random weights, "
        f"{PRETRAINED_LEARNING_RATE:g} with `--backbone`.",
    )
    missing: str = setting(
        "", "Make training rows incomplete: NAME=SHARE[,NAME=SHARE...] of rows that lose a modality."
    )
    backbone_config: str | None = setting(
        None, f"Another encoder than the small PVT-v2: {', '.join(PVT_V2_SIZES)}, or JSON, or a file of it."
    )
    keep_models: str | None = setting(
        None,
        "Folder to keep each run's model in, as `evaluate` and `predict` read it; what is there is not trained again.",
    )
    num_proc: int = setting(
        1, "Runs at the same time, each in a process of its own; on `cuda` they share the GPU.", former=("--jobs",)
    )
    max_gigabytes: float = setting(4.0, "Memory that the decoded rows of a split may take, for each process.")

    def __post_init__(self):  # `RunSettings` checks its own part as it is made of these
        if self.num_proc < 1:
            raise ValueError(f"`--num_proc` is {self.num_proc}; expected at least 1.")
        if self.epochs is not None and self.epochs < 1:
            raise ValueError(f"`--epochs` is {self.epochs}; expected at least 1.")
        for first, second in (("epochs", "max_steps"), ("backbone", "backbone_config")):
            if None not in (getattr(self, first), getattr(self, second)):
                raise ValueError(f"`--{first}` and `--{second}` exclude each other; give one of them.")


@report_errors("sgma-hf compare", on_stop="the same command goes on with the runs that are not in the output yet")
def main(argv: list[str] | None = None) -> int:
    """Do the runs that the output does not hold yet, seed by seed; 1 if one failed, the others are done anyway."""
    (args,) = DataclassParser(CompareArguments, prog="sgma-hf compare", description=__doc__).parse(argv)

    from sgma_hf.comparison.identity import is_recorded

    runs = _planned_runs(args)
    recorded, fingerprint = read_rows(args.output), content_fingerprint(args.dataset)
    waiting = [run for run in runs if not is_recorded(run.identity(fingerprint), recorded)]
    _try_models(waiting, keeps=args.keep_models is not None)
    prepare_file(args.output)
    if args.keep_models is not None:
        Path(args.keep_models).mkdir(parents=True, exist_ok=True)
    print(f"{len(runs)} runs, {len(runs) - len(waiting)} of them already in {args.output}", flush=True)
    failures, started = 0, time.monotonic()
    with closing(_execute(waiting, args)) as outcomes:
        for done, (run, outcome) in enumerate(outcomes, 1):
            if isinstance(outcome, Failure):
                failures += 1
                where = f"{run.arm.name}, seed {run.seed}"
                print(f"{outcome.trace}\n{where}: {outcome.kind}: {outcome.message}", file=sys.stderr, flush=True)
                if outcome.kind == "OutOfMemoryError" and args.num_proc > 1:
                    hint = f"{where}: the GPU is shared by {args.num_proc} runs; give a smaller `--num_proc`"
                    print(hint, file=sys.stderr, flush=True)
                continue
            append_row(args.output, outcome)
            minutes = (time.monotonic() - started) / 60
            print(f"[{done}/{len(waiting)}, {minutes:.0f} min] {_one_line(outcome)}", flush=True)
    return 1 if failures else 0


def _planned_runs(args: CompareArguments) -> "list[Run]":
    """All runs, seed by seed, after a check of everything that can be checked without training."""
    preset = PRESETS[args.preset]
    arms = select_arms(args.arms or preset["arms"])
    from sgma_hf.comparison.runs import Run, check_arm, check_dates, check_device, pretrained_config
    from sgma_hf.evaluation.metrics import check_scored_classes
    from sgma_hf.evaluation.prepared_rows import refuse_series
    from sgma_hf.training.fine_tuning.encoder_arguments import encoder_from_text

    check_device(args.device)
    metadata = load_metadata(args.dataset)
    missing = parse_shares(args.missing, "--missing")
    unknown = sorted(set(missing) - set(metadata.modalities))
    if unknown:
        raise ValueError(f"`--missing` names {unknown}; the modalities are {metadata.modalities}.")
    given = {part.name: getattr(args, part.name) for part in fields(RunSettings)} | {"missing": missing}
    values = {name: value for name, value in given.items() if value is not None}
    if args.backbone is not None:
        check_folder_or_id(args.backbone, "--backbone")
        values["backbone_config"] = pretrained_config(args.backbone)
        values.setdefault("learning_rate", PRETRAINED_LEARNING_RATE)
    elif args.backbone_config is not None:
        values["backbone_config"] = encoder_from_text(args.backbone_config)
    if args.epochs is not None:
        rows = labelled_rows(load_rows(args.dataset, args.train_split))
        usable = int(present_modalities(rows, metadata.modalities).any(1).sum())
        values["max_steps"] = args.epochs * -(-usable // args.batch_size)
    settings = RunSettings(**values)
    load_rows(args.dataset, settings.train_split)
    for split in filter(None, (settings.report_split, settings.choosing_split)):
        rows = load_rows(args.dataset, split)
        with_label_column(rows, settings.label_column or "label", metadata.modalities)
        if settings.corruptions and split == settings.report_split:
            refuse_series(rows, metadata.modalities, "`--corruptions`")
    check_scored_classes(settings.score_classes or "union", metadata.class_names)
    check_dates(settings, metadata)
    seeds = preset["seeds"] if args.seeds is None else args.seeds
    runs = [Run(arm, seed, args.dataset, settings) for seed in dict.fromkeys(seeds) for arm in arms]
    for run in {run.arm.name: run for run in runs}.values():
        check_arm(run)
    return runs


def _try_models(runs: "list[Run]", *, keeps: bool) -> None:
    """Try those arms before any training that may not work here: the first, all that are not ours or not SGMA."""
    from sgma_hf.comparison.arms.dry_run import dry_run
    from sgma_hf.comparison.runs import build_model
    from sgma_hf.model.fusion_code_sgma import check_fusion

    def build(run: "Run") -> "PreTrainedModel":
        model = build_model(run.arm, run.settings, load_metadata(run.dataset))
        if keeps and run.arm.build is None:
            check_fusion(model)
        return model

    of_arms = {run.arm.name: run for run in runs}
    for index, (name, run) in enumerate(of_arms.items()):
        if index == 0 or run.arm.build is not None or not run.arm.is_ours:
            with _quiet():
                series = bool(load_metadata(run.dataset).series)
                dry_run(name, functools.partial(build, run), run.settings.crop_size, series=series)


def _execute(runs: "list[Run]", args: CompareArguments) -> "Iterator[Outcome]":
    """Yield every run with its row, or with what went wrong, as they end."""
    options = {"max_gigabytes": args.max_gigabytes, "keep_models": args.keep_models}
    if args.num_proc == 1:
        for run in runs:
            yield run, _attempt(run, options)
        return
    # read when the child imports torch, before any argument reaches it
    os.environ["OMP_NUM_THREADS"] = str(args.threads)
    yield from _in_own_processes(runs, args.num_proc, options)


def _in_own_processes(runs: "list[Run]", num_proc: int, options: dict[str, Any]) -> "Iterator[Outcome]":
    """Runs in processes that take no other run along if they are killed; they are tried twice, and end with this."""
    waiting = deque((run, 2) for run in runs)
    children: dict[Connection, tuple[Run, int, SpawnProcess]] = {}
    try:
        while waiting or children:
            while waiting and len(children) < num_proc:
                run, tries = waiting.popleft()
                receiver, process = _start(run, options)
                children[receiver] = run, tries, process
            for receiver in wait(list(children)):
                run, tries, process = children[receiver]
                with receiver:
                    try:
                        outcome = receiver.recv()
                    except EOFError:
                        outcome = None
                process.join()
                del children[receiver]
                if outcome is None and tries > 1:
                    waiting.appendleft((run, tries - 1))
                    continue
                killed = f"its process was killed, perhaps for want of memory: exit status {process.exitcode}"
                yield run, outcome or Failure("ChildProcessError", killed, "")
    finally:
        for _, _, process in children.values():
            process.terminate()
        for _, _, process in children.values():
            process.join(10)
            process.kill()  # one that does not come back to Python


def _start(run: "Run", options: dict[str, Any]) -> tuple[Connection, SpawnProcess]:
    # spawned, not forked: a child would inherit torch's threads in whatever state they are
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send_attempt, args=(sender, _attempt, run, options, OWN_MODULES))
    # Ctrl-C reaches all processes. A child is born deaf to it, so that it cannot be cut short in its imports, which
    # would print a traceback: this process ends it.
    heard = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        process.start()
    finally:
        signal.signal(signal.SIGINT, heard)
    sender.close()  # the child's end is the last one then: where it is killed, there is nothing to wait for
    return receiver, process


def _send_attempt(
    sender: Connection, attempt: Callable[..., Any], run: "Run", options: dict[str, Any], modules: list[str]
) -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # leaves no temporary folder behind
    for name in modules:
        import_own_module(name)
    sender.send(attempt(run, options))


def _attempt(run: "Run", options: dict[str, Any]) -> dict[str, Any] | Failure:
    """One run; a failure is returned, so that those after it are done all the same."""
    with _quiet():
        try:
            from sgma_hf.comparison.runs import execute_run

            if not run.arm.is_ours:  # its module may register what the arm names
                import_own_module(run.arm.name.partition(":")[0])
            return execute_run(run, **options)
        except Exception as error:
            return Failure(type(error).__name__, str(error), traceback.format_exc())


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the warnings and progress bars of transformers."""
    verbosity, shows_progress = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if shows_progress:
            logging.enable_progress_bar()


def _one_line(row: dict[str, Any]) -> str:
    results = row["results"][row["settings"]["report_split"]]
    figures = " / ".join(
        "–" if results[name] is None else f"{100 * results[name]:.1f}"
        for name in ("average_miou", "last1_miou", "top1_miou")
    )
    worst = worst_pair(results["combinations"])
    added = "" if worst is None else f"; the least that a sensor brings is {100 * worst[0]:+.1f}, {worst[1]}"
    spent = sum(row["seconds"].values())
    return f"{row['arm']}, seed {row['seed']}: Average / Last-1 / Top-1 {figures}{added}; {spent:.0f} s"
