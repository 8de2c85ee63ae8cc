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
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from transformers import HfArgumentParser
from transformers.utils import logging

from sgma_hf.comparison.arms import ARMS, select_arms
from sgma_hf.comparison.compared_rows import content_fingerprint, load_metadata
from sgma_hf.comparison.identity import is_recorded
from sgma_hf.comparison.run_records import append_row, prepare_file, read_rows
from sgma_hf.comparison.runs import Run, RunSettings, backbone_from_file, check_device, execute_run
from sgma_hf.data.incomplete_rows import parse_shares
from sgma_hf.data.rows import load_rows


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


@dataclass
class CompareArguments:
    """Arguments of `sgma-hf compare`."""

    dataset: str = field(metadata={"help": "Rows: a folder of a converter."})
    output: str = field(metadata={"help": "File of JSON lines; runs are added to it."})
    preset: str = field(
        default="quick",
        metadata={
            "choices": list(PRESETS),
            "help": "quick: three arms, one seed: three runs, measured at 3 to 5 minutes of one core each (210 "
            "training and 97 evaluated rows of 360 x 480 pixels); full: all arms, three seeds.",
        },
    )
    arms: list[str] | None = field(
        default=None, metadata={"help": f"Arms, or all: {', '.join(ARMS)}; default: the preset's."}
    )
    seeds: list[int] | None = field(default=None, metadata={"help": "Seeds; default: the preset's."})
    train_split: str = field(default="train", metadata={"help": "Split to train on."})
    report_split: str = field(default="test", metadata={"help": "Split to report on; nothing may be chosen by it."})
    choosing_split: str | None = field(
        default=None, metadata={"help": "Split to evaluate on too, for choices between recipes."}
    )
    missing: str = field(
        default="",
        metadata={"help": "Make training rows incomplete: NAME=SHARE[,NAME=SHARE...] of rows that lose a modality."},
    )
    max_steps: int = field(default=500, metadata={"help": "Training steps; the last one's weights are evaluated."})
    batch_size: int = field(default=8, metadata={"help": "Crops per step."})
    crop_size: int = field(default=128, metadata={"help": "Side of crops and evaluated windows in pixels."})
    learning_rate: float = field(default=1e-3, metadata={"help": "Highest learning rate; encoders start at random."})
    decoder_hidden_size: int = field(default=128, metadata={"help": "Width of the decode head."})
    dice_loss_weight: float = field(
        default=RunSettings.dice_loss_weight, metadata={"help": "Weight of the Dice loss, of all arms."}
    )
    modality_adapter_size: int = field(
        default=RunSettings.modality_adapter_size,
        metadata={"help": "Hidden channels of each modality's adapter before the encoder, of all arms."},
    )
    backbone_config: str | None = field(
        default=None, metadata={"help": "JSON, or a file of it, of another encoder than the small PVT-v2."}
    )
    corruptions: bool = field(default=False, metadata={"help": "Evaluate damaged inputs too."})
    reliance: bool = field(
        default=False, metadata={"help": "Compare robustness maps with the errors of single modalities too."}
    )
    jobs: int = field(default=1, metadata={"help": "Runs at the same time, each in a process of its own."})
    threads: int = field(default=1, metadata={"help": "Threads of torch in each run."})
    device: str = field(default="cpu", metadata={"choices": ["cpu", "cuda"], "help": "Where the models run."})
    max_gigabytes: float = field(
        default=4.0, metadata={"help": "Memory that the decoded rows of a split may take, for each job."}
    )


def main(argv: list[str] | None = None) -> int:
    """Do the runs that the output does not hold yet, seed by seed.

    Args:
        argv: Arguments without the program's name; None takes those of the process.

    Returns:
        0, or 1 if a run failed; the others are done all the same. Wrong arguments are raised.
    """
    parser = HfArgumentParser(CompareArguments, prog="sgma-hf compare", description=__doc__)
    (args,) = parser.parse_args_into_dataclasses(argv)
    if args.jobs < 1:
        raise ValueError(f"`--jobs` is {args.jobs}; expected at least 1.")
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


def _planned_runs(args: CompareArguments) -> list[Run]:
    """All runs, seed by seed, after a check of everything that can be checked without training."""
    preset = PRESETS[args.preset]
    arms = select_arms(args.arms or preset["arms"])
    seeds = preset["seeds"] if args.seeds is None else args.seeds
    check_device(args.device)
    metadata = load_metadata(args.dataset)
    missing = parse_shares(args.missing, "--missing")
    unknown = sorted(set(missing) - set(metadata.modalities))
    if unknown:
        raise ValueError(f"`--missing` names {unknown}; the modalities are {metadata.modalities}.")
    sizes = {} if args.backbone_config is None else {"backbone_config": backbone_from_file(args.backbone_config)}
    shared = "train_split report_split choosing_split max_steps batch_size crop_size learning_rate decoder_hidden_size"
    shared += " dice_loss_weight modality_adapter_size corruptions reliance device threads"
    settings = RunSettings(missing=missing, **{name: getattr(args, name) for name in shared.split()}, **sizes)
    for split in filter(None, (settings.train_split, settings.report_split, settings.choosing_split)):
        load_rows(args.dataset, split)
    return [Run(arm, seed, args.dataset, settings) for seed in dict.fromkeys(seeds) for arm in arms]


def _execute(runs: list[Run], args: CompareArguments) -> Iterator[tuple[Run, dict[str, Any] | Failure]]:
    """Yield every run with its row, or with what went wrong, as they end."""
    if args.jobs == 1:
        for run in runs:
            yield run, _attempt(run, args.max_gigabytes)
        return
    # read when the child imports torch, before any argument reaches it
    os.environ["OMP_NUM_THREADS"] = str(args.threads)
    stopped = threading.Event()
    with ThreadPoolExecutor(args.jobs) as pool:
        waiting = {pool.submit(_in_own_process, run, args.max_gigabytes, stopped): run for run in runs}
        try:
            for future in as_completed(waiting):
                yield waiting[future], future.result()
        finally:
            stopped.set()
            pool.shutdown(cancel_futures=True)


def _in_own_process(run: Run, max_gigabytes: float, stopped: threading.Event) -> dict[str, Any] | Failure:
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


def _attempt(run: Run, max_gigabytes: float) -> dict[str, Any] | Failure:
    """One run; a failure is returned, so that those after it are done all the same."""
    verbosity, shows_progress = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
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
