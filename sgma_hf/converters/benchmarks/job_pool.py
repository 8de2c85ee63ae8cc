"""Runs jobs in several processes, or in this one, and leaves no process behind when this one is killed."""

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing.connection import wait
from typing import Any


_PRELOADED = "sgma_hf.converters.benchmarks.command"


def default_processes() -> int:
    """As many as there are cores for this process, at most four: then the disk is what is waited for."""
    return min(4, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def run_jobs(function: Callable[..., Any], jobs: Sequence[tuple], num_proc: int) -> Iterator[tuple[int, Any]]:
    """Call a function once per job, here or in processes; yields (index of the job, result) as they are done.

    The function is defined at the top of a module, so that it can be sent to another process. The first error stops
    everything that has not begun.
    """
    if num_proc < 1:
        raise ValueError(f"{num_proc} processes: expected 1 or more (--num_proc).")
    if num_proc == 1 or len(jobs) < 2:
        yield from ((index, function(*job)) for index, job in enumerate(jobs))
        return
    # Workers are not forked from this process: a fork copies the locks of threads that torch and pyarrow may hold.
    has_server = "forkserver" in multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if has_server else "spawn")
    if has_server:
        context.set_forkserver_preload([_PRELOADED])  # seconds of imports, once for all workers of all calls
    pool = ProcessPoolExecutor(min(num_proc, len(jobs)), mp_context=context, initializer=_end_with_parent)
    try:
        futures = {pool.submit(function, *job): index for index, job in enumerate(jobs)}
        for future in as_completed(futures):
            yield futures.pop(future), future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _end_with_parent() -> None:
    """End this worker when its parent is gone: it holds both ends of its queue and would wait for ever."""
    parent = multiprocessing.parent_process()

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
