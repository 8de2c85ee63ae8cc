"""`sgma-hf compare`: train and evaluate several arms with several seeds on one data set, one JSON line per run.

Runs that the output already holds are skipped, so an interrupted comparison goes on with the same command, and the
quick preset's runs are part of the full one.
"""

import multiprocessing
import os
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, NamedTuple

from transformers.utils import logging

from sgma_hf.commands.arguments import DataclassParser
from sgma_hf.comparison.arms import ARMS, select_arms
from sgma_hf.comparison.compared_rows import content_fingerprint, load_metadata
from sgma_hf.comparison.run_records import append_row, prepare_file, read_rows
from sgma_hf.comparison.settings import RunSettings, setting
from sgma_hf.data.command_line import report_errors
from sgma_hf.data.incomplete_rows import parse_shares
from sgma_hf.data.rows import load_rows


if TYPE_CHECKING:
    from sgma_hf.comparison.runs import Run

# What a preset decides unless a flag says otherwise. The sizes are those of `RunSettings`. On a data set of 210
# training and 97 evaluated rows of 360 x 480 pixels, the three runs of `quick` took 3 to 5 minutes of one core each.
PRESETS = {
    "quick": {"arms": ["mean", "projector_mean_single", "sgma"], "seeds": [0]},
    "full": {"arms": ["all"], "seeds": [0, 1, 2]},
}


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
        default=None, metadata={"help": f"Arms, or all: {', '.join(ARMS)}; default: the preset's."}
    )
    seeds: list[int] | None = field(default=None, metadata={"help": "Seeds; default: the preset's."})
    missing: str = setting(
        "", "Make training rows incomplete: NAME=SHARE[,NAME=SHARE...] of rows that lose a modality."
    )
    backbone_config: str | None = setting(None, "JSON, or a file of it, of another encoder than the small PVT-v2.")
    num_proc: int = setting(1, "Runs at the same time, each in a process of its own.", former=("--jobs",))
    max_gigabytes: float = setting(4.0, "Memory that the decoded rows of a split may take, for each process.")


@report_errors("sgma-hf compare", on_stop="the same command goes on with the runs that are not in the output yet")
def main(argv: list[str] | None = None) -> int:
    """Do the runs that the output does not hold yet, seed by seed.

    Args:
        argv: Arguments without the program's name; None takes those of the process.

    Returns:
        0, or 1 if a run failed; the others are done all the same. 2 after wrong arguments, 130 after Ctrl-C.
    """
    (args,) = DataclassParser(CompareArguments, prog="sgma-hf compare", description=__doc__).parse(argv)
    if args.num_proc < 1:
        raise ValueError(f"`--num_proc` is {args.num_proc}; expected at least 1.")

    from sgma_hf.comparison.identity import is_recorded

    runs = _planned_runs(args)
    prepare_file(args.output)
    recorded, fingerprint = read_rows(args.output), content_fingerprint(args.dataset)
    waiting = [run for run in runs if not is_recorded(run.identity(fingerprint), recorded)]
    print(f"{len(runs)} runs, {len(runs) - len(waiting)} of them already in {args.output}", flush=True)
    failures, started = 0, time.monotonic()
    for done, (run, outcome) in enumerate(_execute(waiting, args), 1):
        if isinstance(outcome, Failure):
            failures += 1
            print(outcome.trace, file=sys.stderr)
            print(f"{run.arm.name}, seed {run.seed}: {outcome.kind}: {outcome.message}", file=sys.stderr, flush=True)
            continue
        append_row(args.output, outcome)
        minutes = (time.monotonic() - started) / 60
        print(f"[{done}/{len(waiting)}, {minutes:.0f} min] {_one_line(outcome)}", flush=True)
    return 1 if failures else 0


def _planned_runs(args: CompareArguments) -> "list[Run]":
    """All runs, seed by seed, after a check of everything that can be checked without training."""
    preset = PRESETS[args.preset]
    arms = select_arms(args.arms or preset["arms"])
    from sgma_hf.comparison.runs import Run, backbone_from_file, check_device

    check_device(args.device)
    metadata = load_metadata(args.dataset)
    missing = parse_shares(args.missing, "--missing")
    unknown = sorted(set(missing) - set(metadata.modalities))
    if unknown:
        raise ValueError(f"`--missing` names {unknown}; the modalities are {metadata.modalities}.")
    values = {part.name: getattr(args, part.name) for part in fields(RunSettings)} | {"missing": missing}
    if args.backbone_config is None:
        del values["backbone_config"]
    else:
        values["backbone_config"] = backbone_from_file(args.backbone_config)
    settings = RunSettings(**values)
    for split in filter(None, (settings.train_split, settings.report_split, settings.choosing_split)):
        load_rows(args.dataset, split)
    seeds = preset["seeds"] if args.seeds is None else args.seeds
    return [Run(arm, seed, args.dataset, settings) for seed in dict.fromkeys(seeds) for arm in arms]


def _execute(runs: "list[Run]", args: CompareArguments) -> "Iterator[tuple[Run, dict[str, Any] | Failure]]":
    """Yield every run with its row, or with what went wrong, as they end."""
    if args.num_proc == 1:
        for run in runs:
            yield run, _attempt(run, args.max_gigabytes)
        return
    # read when the child imports torch, before any argument reaches it
    os.environ["OMP_NUM_THREADS"] = str(args.threads)
    stopped = threading.Event()
    with ThreadPoolExecutor(args.num_proc) as pool:
        waiting = {pool.submit(_in_own_process, run, args.max_gigabytes, stopped): run for run in runs}
        try:
            for future in as_completed(waiting):
                yield waiting[future], future.result()
        finally:
            stopped.set()
            pool.shutdown(cancel_futures=True)


def _in_own_process(run: "Run", max_gigabytes: float, stopped: threading.Event) -> dict[str, Any] | Failure:
    """One run in a process that, if it is killed, takes no other run along; it is tried twice."""
    # spawned, not forked: a child would inherit torch's threads in whatever state they are
    context = multiprocessing.get_context("spawn")
    for _ in range(2):
        with ProcessPoolExecutor(1, mp_context=context) as process:
            try:
                return process.submit(_attempt, run, max_gigabytes).result()
            except BrokenProcessPool as error:
                failure = Failure(
                    type(error).__name__, f"its process was killed, perhaps for want of memory: {error}", ""
                )
        if stopped.is_set():
            break
    return failure


def _attempt(run: "Run", max_gigabytes: float) -> dict[str, Any] | Failure:
    """One run; a failure is returned, so that those after it are done all the same."""
    verbosity, shows_progress = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        from sgma_hf.comparison.runs import execute_run

        return execute_run(run, max_gigabytes=max_gigabytes)
    except Exception as error:
        return Failure(type(error).__name__, str(error), traceback.format_exc())
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
    spent = sum(row["seconds"].values())
    return f"{row['arm']}, seed {row['seed']}: Average / Last-1 / Top-1 {figures} in {spent:.0f} s"
