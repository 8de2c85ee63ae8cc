"""How much memory a training step and an inference take at their peak, each in a process of its own."""

import ctypes
import gc
import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import torch

from .timing import BACKBONE, MEAN_FUSION, BenchmarkCase, compared


# Linux: 5 sets the recorded peak of the process back to what is resident now.
CLEAR_REFS, STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


def measure_memory(case: BenchmarkCase, variants: Sequence[str]) -> dict[str, dict] | None:
    """Measure the peak of one step above what is resident before it: model, inputs and libraries are there by then.

    Every measurement is the first step of a fresh process, so that no variant finds memory that another one left.
    The peak of a training step includes the gradients of all parameters, not the optimiser's state. On a GPU, it is
    the memory of the GPU that counts.

    Returns, for "training" and "inference", the `bytes` of every variant, and its ratios `to_mean_fusion` and
    `to_backbone`; None on a CPU where the system does not tell: peaks can be set back on Linux only.
    """
    if case.device == "cpu" and not CLEAR_REFS.exists():
        return None
    figures = {}
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=1, mp_context=context, max_tasks_per_child=1) as pool:
        for kind, names in compared(variants).items():
            steps = [(case, name, kind == "training", torch.get_num_threads()) for name in names]
            peaks = dict(zip(names, pool.map(_step_peak, *zip(*steps, strict=True)), strict=True))
            figures[kind] = {
                "bytes": peaks,
                "to_mean_fusion": {name: peak / peaks[MEAN_FUSION] for name, peak in peaks.items()},
                "to_backbone": {name: peak / peaks[BACKBONE] for name, peak in peaks.items()},
            }
    return figures


def _step_peak(case: BenchmarkCase, variant: str, training: bool, threads: int) -> int:
    """Bytes that one step takes at its peak beyond what is there before."""
    torch.set_num_threads(threads)
    replace(case, size=32).passes(variant, training=training)()  # a first pass loads libraries
    step = case.passes(variant, training=training)
    gc.collect()
    if case.device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return torch.cuda.max_memory_allocated() - before
    ctypes.CDLL(None).malloc_trim(0)  # or the step would be served from what the first pass has freed
    CLEAR_REFS.write_text("5")
    before = _resident("VmRSS")
    step()
    return _resident("VmHWM") - before


def _resident(name: str) -> int:
    """Bytes of the process that are in memory now (VmRSS), or were at most (VmHWM)."""
    lines = dict(line.split(":", 1) for line in STATUS.read_text().splitlines())
    return 1024 * int(lines[name].split()[0])
