"""Converts a benchmark to Parquet in several processes; a run that was interrupted goes on where it stopped.

Work is done in a hidden folder beside the target. A shard gets its record when it is whole, and is not made again; the
files get names that `load_dataset` finds, and the folder its own, when all are there.
"""

import dataclasses
import fcntl
import hashlib
import json
import os
import pickle
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from tqdm.auto import tqdm
from transformers.utils import logging

from ...data.metadata import METADATA_FILE
from ..writing.parquet import ShardWriter, check_output, digest_row, encode_row, publish_folder, summarize
from ..writing.statistics import SplitStatistics
from .card import build_benchmark_card
from .dataset import LABEL, SPLITS, BenchmarkDataset, Scene, SceneCheck, Survey
from .job_pool import run_jobs
from .rows import RowMaker


logger = logging.get_logger(__name__)

RECORD_FILE = "conversion.json"
_FORMAT = 1  # of the rows and of the records; another number converts again
_SHARD_BYTES = 300 * 2**20  # of rows before compression


@dataclass(frozen=True)
class Shard:
    """A Parquet file to be.

    Args:
        name: Its final name.
        split: The split it is of.
        scenes: Whose rows it holds.
    """

    name: str
    split: str
    scenes: tuple[Scene, ...]


def conversion_fingerprint(dataset: BenchmarkDataset, scenes: Sequence[Scene]) -> str:
    """What decides the rows, as a hash: the options, and the scenes with size and time of their files."""
    options = dataclasses.asdict(dataset.options) | {"split": dataset.split, "choices": dataset.choices}
    described = [
        [
            scene.split,
            scene.name,
            hashlib.sha256(pickle.dumps(scene.extra, protocol=4)).hexdigest(),
            *([column, *_file_state(path)] for column, path in sorted(scene.files.items())),
        ]
        for scene in scenes
    ]
    metadata = dataclasses.asdict(dataset.metadata())
    content = json.dumps([_FORMAT, dataset.description.name, options, metadata, described], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def _file_state(path: Path | None) -> list[Any]:
    if path is None:
        return [None]
    state = path.stat()
    return [str(path.absolute()), state.st_size, state.st_mtime_ns]


def find_conversion(out: Path, fingerprint: str) -> bool:
    """Whether `out` is a finished conversion with this fingerprint."""
    try:
        record = json.loads((out / RECORD_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return (out / METADATA_FILE).is_file() and record.get("fingerprint") == fingerprint


class WorkFolder:
    """The hidden folder of a conversion, for one process at a time.

    Args:
        out: The target.
        fingerprint: Of the conversion; what another one left is removed.

    Raises:
        BlockingIOError: If another process is at it.
    """

    def __init__(self, out: Path, fingerprint: str) -> None:
        self.out = out.absolute()
        self.fingerprint = fingerprint
        self.path = self.out.with_name(f".{self.out.name}.partial")
        self.dataset = self.path / "dataset"
        self.data = self.dataset / ".data"  # `load_dataset` does not look into hidden folders
        self._final = self.dataset / "data"
        self._lock: TextIO | None = None

    def __enter__(self) -> "WorkFolder":
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = open(self.path / "lock", "w", encoding="utf-8")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._lock.close()
            raise BlockingIOError(f"Another process is converting to {self.out}; wait for it or stop it.") from error
        known = self.read("plan.record")
        if known is None or known.get("fingerprint") != self.fingerprint:
            if known is not None:
                logger.warning(f"{self.path} is of other options or files: the conversion begins anew.")
            for child in self.path.iterdir():
                if child.is_dir():
                    shutil.rmtree(child)
                elif child.name != "lock":
                    child.unlink()
            self.write("plan.record", {"fingerprint": self.fingerprint})
        if not self._final.is_dir():
            self.data.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, *_: object) -> None:
        if self._lock is not None:
            self._lock.close()

    def read(self, name: str) -> dict[str, Any] | None:
        """A record, None if it is not there or no JSON."""
        try:
            return json.loads((self.path / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None

    def write(self, name: str, content: dict[str, Any]) -> None:
        """Write a record whole or not at all."""
        write_json(self.path / name, content)

    def record(self, shard: Shard) -> dict[str, Any] | None:
        """What a finished shard holds; None if it is not finished."""
        record = self.read(_record_name(shard))
        is_there = (self._final / shard.name).exists() or (self.data / shard.name).exists()
        return record if record is not None and is_there else None

    def publish(self, shards: Sequence[Shard]) -> None:
        """Give everything its final name. A run that was killed here goes on here."""
        if self.data.is_dir():
            names = {shard.name for shard in shards}
            for path in self.data.iterdir():
                if path.name not in names:
                    path.unlink()  # half a shard of a run that was killed
            self.data.rename(self._final)
        publish_folder(self.dataset, self.out)
        shutil.rmtree(self.path, ignore_errors=True)


def load_checks(out: Path, fingerprint: str, num_scenes: int) -> list[SceneCheck] | None:
    """What an interrupted conversion knew of all scenes before it began to write; None if there is none."""
    work = WorkFolder(out, fingerprint)
    plan, checks = work.read("plan.record"), work.read("checks.record")
    if plan is None or plan.get("fingerprint") != fingerprint or checks is None:
        return None
    found = [SceneCheck.from_dict(entry) for entry in checks["scenes"]]
    return found if len(found) == num_scenes else None


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a file by a rename, so that no half of it can be read."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)


def plan_shards(
    dataset: BenchmarkDataset, scenes: Sequence[Scene], sizes: Sequence[tuple[int, int]], max_bytes: int = _SHARD_BYTES
) -> list[Shard]:
    """Divide scenes into shards of about `max_bytes`, whatever the number of processes; whole scenes, in order.

    Args:
        dataset: The reader.
        scenes: The scenes.
        sizes: (height, width) of each.
        max_bytes: Of a shard's rows before compression; a larger scene is one shard.
    """
    maker = RowMaker(dataset)
    shards: list[Shard] = []
    for split in SPLITS:
        groups: list[list[Scene]] = []
        filled = 0
        for scene, size in zip(scenes, sizes, strict=True):
            if scene.split != split:
                continue
            num_bytes = maker.num_bytes(size, split)
            if not groups or filled + num_bytes > max_bytes:
                groups.append([])
                filled = 0
            groups[-1].append(scene)
            filled += num_bytes
        names = [f"{split}-{index:05d}-of-{len(groups):05d}.parquet" for index in range(len(groups))]
        shards += [Shard(name, split, tuple(group)) for name, group in zip(names, groups, strict=True)]
    return shards


def _record_name(shard: Shard) -> str:
    return f"{Path(shard.name).stem}.record"  # `load_dataset` would take .json or .parquet anywhere in it for data


def convert_shard(dataset: BenchmarkDataset, shard: Shard, path: Path, record: Path) -> dict[str, Any]:
    """Write one shard and its record.

    Args:
        dataset: The reader.
        shard: What to write.
        path: The file.
        record: Written when the file is whole.

    Returns:
        The record: statistics, ids of rows that were made incomplete or have no label, digest of the rows.
    """
    maker = RowMaker(dataset)
    statistics = SplitStatistics.of(maker.metadata)
    digest = hashlib.sha256()
    taken: dict[str, list[str]] = {}
    num_pixels = 0
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    writer = ShardWriter(temporary, maker.metadata.features().arrow_schema)
    try:
        for scene in shard.scenes:
            for item in maker.rows(scene):
                row = encode_row(maker.metadata, item.row_id, item.images, item.label)
                writer.write(row)
                digest_row(digest, row)
                statistics.update(item.images, item.label)
                if item.taken:
                    taken[item.row_id] = item.taken
                num_pixels += item.num_pixels
    except BaseException:
        writer.abandon()
        temporary.unlink(missing_ok=True)
        raise
    writer.close()
    with open(temporary, "rb") as file:
        os.fsync(file.fileno())
    temporary.replace(path)
    content = {
        "statistics": statistics.state(),
        "digest": digest.hexdigest(),
        "withheld": taken,
        "num_pixels": num_pixels,
    }
    write_json(record, content)
    return content


def convert_benchmark(
    dataset: BenchmarkDataset,
    survey: Survey,
    checks: Sequence[SceneCheck],
    out: Path,
    *,
    fingerprint: str,
    num_proc: int = 1,
    overwrite: bool = False,
    command: str = "",
    max_shard_bytes: int = _SHARD_BYTES,
) -> str:
    """Convert checked scenes to a folder that `load_dataset(out)` reads.

    Args:
        dataset: The reader.
        survey: All scenes; those that are damaged, by the survey or by the checks, are left out.
        checks: What reading each scene has shown.
        out: The folder to make.
        fingerprint: Of `conversion_fingerprint`; shards that an interrupted run with the same one left are kept.
        num_proc: Processes.
        overwrite: Whether to replace an earlier dataset.
        command: The command line, for the card.
        max_shard_bytes: Of a shard's rows before compression.

    Returns:
        A summary for the terminal, with the throughput.

    Raises:
        ValueError: If there are no scenes.
        FileExistsError: If `out` is in the way.
        BlockingIOError: If another process is converting to `out`.
    """
    damaged = survey.damaged_scenes()
    sound = [
        (scene, check.size)
        for scene, check in zip(survey.scenes, checks, strict=True)
        if check.size is not None
        and (scene.split, scene.name) not in damaged
        and all(problem.kind != "damaged" for problem in check.problems)
    ]
    if not sound:
        raise ValueError("There are no sound scenes to convert.")
    scenes = [scene for scene, _ in sound]
    skipped = [f"{scene.split}/{scene.name}" for scene in survey.scenes if scene not in scenes]
    check_output(out, overwrite=overwrite)
    with WorkFolder(out, fingerprint) as work:
        work.write("checks.record", {"scenes": [check.as_dict() for check in checks]})
        shards = plan_shards(dataset, scenes, [size for _, size in sound], max_shard_bytes)
        records = {shard.name: work.record(shard) for shard in shards}
        waiting = [shard for shard in shards if records[shard.name] is None]
        if len(waiting) < len(shards):
            logger.warning(f"Going on with an interrupted conversion: {len(shards) - len(waiting)} shards are done.")
        jobs = [(dataset, shard, work.data / shard.name, work.path / _record_name(shard)) for shard in waiting]
        start, pixels = time.monotonic(), 0
        with tqdm(total=len(shards), initial=len(shards) - len(jobs), desc="converting", unit="shard") as progress:
            for index, record in run_jobs(convert_shard, jobs, num_proc):
                records[waiting[index].name] = record
                pixels += record["num_pixels"]
                rate = pixels / 1e6 / (time.monotonic() - start)
                progress.set_postfix_str(f"{rate:.1f} MPixel/s", refresh=False)
                progress.update()
        seconds = time.monotonic() - start
        summary = _finish(dataset, work, shards, records, scenes=scenes, command=command, skipped=skipped)
    return f"{summary}\n{describe_rate('converted', pixels, seconds, num_proc)}"


def describe_rate(work: str, num_pixels: int, seconds: float, num_proc: int) -> str:
    """Throughput of a step, one line: `checked: 72.0 MPixel in 1.5 s, 48.0 MPixel/s, 2 processes`.

    Args:
        work: What was done.
        num_pixels: Of the reference grids, however many bands lie on them.
        seconds: That it took.
        num_proc: Processes that did it.
    """
    rate = f"{num_pixels / 1e6:.1f} MPixel in {seconds:.1f} s, {num_pixels / 1e6 / max(seconds, 1e-9):.1f} MPixel/s"
    return f"{work}: {rate}, {num_proc} process{'es' if num_proc > 1 else ''}"


def _finish(
    dataset: BenchmarkDataset,
    work: WorkFolder,
    shards: Sequence[Shard],
    records: dict[str, dict[str, Any]],
    *,
    scenes: Sequence[Scene],
    command: str,
    skipped: Sequence[str],
) -> str:
    """Write metadata, record and card, then give the folder its name."""
    metadata = dataset.metadata()
    statistics: dict[str, SplitStatistics] = {}
    digest = hashlib.sha256()
    withheld: dict[str, list[str]] = {}
    for shard in shards:
        record = records[shard.name]
        statistics.setdefault(shard.split, SplitStatistics.of(metadata)).merge_state(record["statistics"])
        digest.update(f"{shard.split} {record['digest']}".encode())
        withheld.update(record["withheld"])
    training = statistics.get("train")
    metadata = dataclasses.replace(metadata, statistics=training.as_dict("train") if training else None)
    metadata.save(work.dataset)
    options = dataclasses.asdict(dataset.options) | {"split": dataset.split, "choices": dataset.choices}
    content = {
        "dataset": dataset.description.name,
        "fingerprint": work.fingerprint,
        "options": options,
        "skipped": list(skipped),
        "unlabelled": sorted(f"{scene.split}/{scene.name}" for scene in scenes if scene.files.get(LABEL) is None),
        "withheld": withheld,
    }
    write_json(work.dataset / RECORD_FILE, content)
    card = build_benchmark_card(
        dataset,
        metadata,
        statistics,
        scenes=scenes,
        withheld=withheld,
        skipped=skipped,
        command=command,
        fingerprint=digest.hexdigest()[:32],
    )
    (work.dataset / "README.md").write_text(card, encoding="utf-8")
    work.publish(shards)
    return summarize(work.out, metadata, statistics)
