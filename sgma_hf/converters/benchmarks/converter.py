"""Converts a data set to Parquet in several processes; a run that was interrupted goes on where it stopped.

Work is done in a hidden folder beside the target. A shard gets its record when it is whole, and is not made again; the
files get names that `load_dataset` finds, and the folder its own, when all are there.

The `datasets` library's own `download_and_prepare` writes Parquet too, but removes all of it after an error or Ctrl-C,
leaves a folder that loads after a kill, divides the rows by the number of processes, and forks.
"""

import contextlib
import dataclasses
import hashlib
import json
import math
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from tqdm.auto import tqdm
from transformers.utils import logging

from ...data.metadata import METADATA_FILE
from ...data.whole_files import replace_file, write_json, write_text
from ..writing.parquet import ShardWriter, check_output, digest_row, publish_folder, summarize
from ..writing.statistics import SplitStatistics
from .card import card_content
from .check import CheckReport, SceneCheck
from .dataset import LABEL, SPLITS, BenchmarkDataset, Scene
from .job_pool import run_jobs
from .rows import RowMaker


logger = logging.get_logger(__name__)

RECORD_FILE = "conversion.json"
_FORMAT = 2  # of the rows and of the records; another number converts again
_SHARD_BYTES = 300 * 2**20  # of rows before compression
# `load_dataset` takes .json and .parquet anywhere in a folder for data, unless they lie in a hidden one.
_PLAN = "plan.record"
_HIDDEN_DATA = Path("dataset", ".data")


def _recorded_options(dataset: BenchmarkDataset) -> dict[str, Any]:
    return dataclasses.asdict(dataset.options) | {"split": dataset.split, "choices": dataset.choices}


def conversion_fingerprint(dataset: BenchmarkDataset, scenes: Sequence[Scene]) -> str:
    """What decides the rows, as a hash: the options, and the scenes with size and time of their files."""
    paths = {path for scene in scenes for path in scene.paths()}
    states = [(str(path.absolute()), path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(paths)]
    decided = [_FORMAT, dataset.description.name, _recorded_options(dataset), dataclasses.asdict(dataset.metadata())]
    content = json.dumps([*decided, states, [repr(scene) for scene in scenes]], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def _read(path: Path) -> dict[str, Any]:
    """A record, empty if it is not there or no JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def find_conversion(out: Path, fingerprint: str) -> bool:
    """Whether `out` is a finished conversion with this fingerprint."""
    return (out / METADATA_FILE).is_file() and _read(out / RECORD_FILE).get("fingerprint") == fingerprint


def _work_path(out: Path) -> Path:
    return out.absolute().with_name(f".{out.absolute().name}.partial")


def load_checks(out: Path, fingerprint: str) -> list[SceneCheck] | None:
    """What an interrupted conversion knew of all scenes before it began to write; None if there is none."""
    plan = _read(_work_path(out) / _PLAN)
    return [SceneCheck.from_dict(item) for item in plan["checks"]] if plan.get("fingerprint") == fingerprint else None


@contextlib.contextmanager
def work_folder(out: Path, fingerprint: str, checks: Sequence[SceneCheck]) -> Iterator[Path]:
    """The hidden folder of a conversion, for one process at a time; removes what one of another fingerprint left."""
    work = _work_path(out)
    work.mkdir(parents=True, exist_ok=True)
    try:
        lock = FileLock(work / "lock").acquire(blocking=False)
    except Timeout as error:
        raise BlockingIOError(f"Another process is converting to {out}; wait for it or stop it.") from error
    with lock:
        known = _read(work / _PLAN).get("fingerprint")
        if known != fingerprint:
            if known is not None:
                logger.warning(f"{work} is of other options or files: the conversion begins anew.")
            for path in work.iterdir():
                if path.name != "lock":
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
        plan = {"fingerprint": fingerprint, "checks": [dataclasses.asdict(check) for check in checks]}
        write_text(work / _PLAN, json.dumps(plan))
        hidden = work / _HIDDEN_DATA
        if hidden.with_name("data").is_dir():  # killed when all was there but the folder's name
            hidden.with_name("data").rename(hidden)
        hidden.mkdir(parents=True, exist_ok=True)
        yield work


def plan_shards(
    dataset: BenchmarkDataset,
    scenes: Sequence[Scene],
    sizes: Mapping[str, Sequence[int]],
    max_bytes: int = _SHARD_BYTES,
) -> dict[str, list[Scene]]:
    """Divide scenes among Parquet files, whatever the number of processes; gives the scenes by the file's name.

    A file holds whole scenes of one split, in order, of about `max_bytes` before compression; a larger scene has one
    of its own. `sizes` are (height, width) by the scene's key.
    """
    maker = RowMaker(dataset)
    shards: dict[str, list[Scene]] = {}
    for split in SPLITS:
        groups: list[list[Scene]] = []
        filled = 0
        for scene in (scene for scene in scenes if scene.split == split):
            num_bytes = maker.num_bytes(scene, sizes[scene.key])
            if not groups or filled + num_bytes > max_bytes:
                groups.append([])
                filled = 0
            groups[-1].append(scene)
            filled += num_bytes
        for index, group in enumerate(groups):
            shards[f"{split}-{index:05d}-of-{len(groups):05d}.parquet"] = group
    return shards


def _convert_shard(dataset: BenchmarkDataset, name: str, scenes: Sequence[Scene], work: Path) -> dict[str, Any]:
    """Write a shard and, when it is whole, its record: statistics, digest, and what was taken from which row."""
    maker = RowMaker(dataset)
    statistics = SplitStatistics(maker.metadata)
    digest = hashlib.sha256()
    withheld: dict[str, list[str]] = {}
    with replace_file(work / _HIDDEN_DATA / name) as partial:
        with contextlib.closing(ShardWriter(partial, maker.metadata.features().arrow_schema)) as writer:
            for item in (row for scene in scenes for row in maker.rows(scene)):
                row = item.encoded(maker.metadata)
                writer.write(row)
                digest_row(digest, row)
                statistics.update(item.images, item.label)
                if item.taken:
                    withheld[item.row_id] = item.taken
    record = {"statistics": statistics.state(), "digest": digest.hexdigest(), "withheld": withheld}
    write_text((work / name).with_suffix(".record"), json.dumps(record))  # an empty modality's minimum is an infinity
    return record


def convert_benchmark(
    report: CheckReport,
    out: Path,
    *,
    fingerprint: str,
    num_proc: int = 1,
    overwrite: bool = False,
    command: str = "",
    max_shard_bytes: int = _SHARD_BYTES,
) -> str:
    """Convert checked scenes, but the damaged ones, to a folder that `load_dataset(out)` reads.

    Shards that an interrupted run with the same `fingerprint` (of `conversion_fingerprint`) left are kept. `command`
    is for the card. Returns a summary for the terminal, with the throughput.
    """
    scenes = report.sound_scenes()
    if not scenes:
        raise ValueError("There are no sound scenes to convert.")
    check_output(out, overwrite=overwrite)
    sizes = {scene.key: check.size for scene, check in zip(report.survey.scenes, report.checks, strict=True)}
    shards = plan_shards(report.dataset, scenes, sizes, max_shard_bytes)
    with work_folder(out, fingerprint, report.checks) as work:
        is_there = {name: (work / _HIDDEN_DATA / name).is_file() for name in shards}
        records = {name: _read((work / name).with_suffix(".record")) if is_there[name] else {} for name in shards}
        waiting = [name for name in shards if not records[name]]
        if len(waiting) < len(shards):
            done = len(shards) - len(waiting)
            logger.warning(f"Going on with an interrupted conversion: {done} of {len(shards)} shards are done.")
        jobs = [(report.dataset, name, shards[name], work) for name in waiting]
        pixels = {name: sum(math.prod(sizes[scene.key]) for scene in group) for name, group in shards.items()}
        to_do, total = sum(pixels[name] for name in waiting), sum(pixels.values())
        start = time.monotonic()
        with tqdm(total=total, initial=total - to_do, desc="converting", unit="pixel", unit_scale=True) as progress:
            for index, record in run_jobs(_convert_shard, jobs, num_proc):
                records[waiting[index]] = record
                progress.update(pixels[waiting[index]])
        rate = describe_rate("converted", to_do, time.monotonic() - start, num_proc)
        summary = _finish(report, work, out, records, fingerprint=fingerprint, command=command)
    return f"{summary}\n{rate}"


def describe_rate(work: str, num_pixels: int, seconds: float, num_proc: int) -> str:
    """Throughput, by pixels of the scenes: `checked: 72.0 MPixel in 1.5 s, 48.0 MPixel/s, 2 processes`."""
    pixels, processes = num_pixels / 1e6, f"{num_proc} process{'es' if num_proc > 1 else ''}"
    return f"{work}: {pixels:.1f} MPixel in {seconds:.1f} s, {pixels / max(seconds, 1e-9):.1f} MPixel/s, {processes}"


def _finish(
    report: CheckReport,
    work: Path,
    out: Path,
    records: Mapping[str, Mapping[str, Any]],
    *,
    fingerprint: str,
    command: str,
) -> str:
    """Write record, metadata and card, and give the files and the folder their names."""
    dataset, metadata, scenes = report.dataset, report.dataset.metadata(), report.sound_scenes()
    statistics: dict[str, SplitStatistics] = {}
    digest = hashlib.sha256()
    withheld: dict[str, list[str]] = {}
    for name, record in records.items():
        split = name.partition("-")[0]
        statistics.setdefault(split, SplitStatistics(metadata)).merge_state(record["statistics"])
        digest.update(f"{split} {record['digest']}".encode())
        withheld.update(record["withheld"])
    hidden = work / _HIDDEN_DATA
    content = {
        "dataset": dataset.description.name,
        "fingerprint": fingerprint,
        "options": _recorded_options(dataset),
        "skipped": report.damaged_scenes(),
        "unlabelled": sorted(scene.key for scene in scenes if scene.files.get(LABEL) is None),
        "withheld": withheld,
    }
    write_json(hidden.parent / RECORD_FILE, content)
    for path in hidden.iterdir():
        if path.name not in records:
            path.unlink()  # half a shard of a run that was killed
    hidden.rename(hidden.with_name("data"))
    card = card_content(report, statistics, withheld) | {"command": command, "fingerprint": digest.hexdigest()[:32]}
    publish_folder(hidden.parent, out.absolute(), metadata, statistics, card)
    shutil.rmtree(work, ignore_errors=True)
    return summarize(out.absolute(), metadata, statistics)
