"""The results of a comparison: a file of JSON lines, one run each, that a killed process leaves whole."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import Any

from transformers.utils import logging


logger = logging.get_logger(__name__)

FORMAT_VERSION = 2  # 1: without `tiles`, F1, and the settings that came later
_TYPES = {"arm": str, "seed": int} | dict.fromkeys(
    ("dataset", "settings", "arm_definition", "model_config", "training_arguments", "results"), dict
)


def read_rows(path: str | os.PathLike) -> list[dict[str, Any]]:
    """Read all runs of a file of JSON lines; one that does not exist has none, and another line than a run is refused.

    A last line that is not whole, left by a machine that went down, is left out with a warning.
    """
    if Path(path).is_dir():
        raise ValueError(f"{path} is a folder; name the file of JSON lines, such as {Path(path, 'runs.jsonl')}.")
    return _parse(Path(path).read_bytes(), path)[0] if Path(path).exists() else []


def append_row(path: str | os.PathLike, row: Mapping[str, Any]) -> None:
    """Add one run by a single write of its whole line, after what `prepare_file` does; several processes may.

    Nothing of it stays if it cannot be written whole, and nothing is written of figures that are not finite.
    """
    line = (json.dumps(row, allow_nan=False) + "\n").encode()
    with _locked(path) as file:
        size = file.seek(0, os.SEEK_END)
        written = file.write(line)
        if written < len(line):  # a full disk
            file.truncate(size)
            raise OSError(f"{path}: only {written} of {len(line)} bytes could be written; the line was removed again.")
        os.fsync(file.fileno())


def prepare_file(path: str | os.PathLike) -> None:
    """Make sure that runs can be added to a file: made if need be, without a last line that was cut off.

    If something else than runs is in it, nothing is changed, and a ValueError says so.
    """
    with _locked(path):
        pass


@contextmanager
def _locked(path: str | os.PathLike) -> Iterator[FileIO]:
    """The file, its end mended, for appending while no other process of ours writes to it."""
    import fcntl  # not on every system, and reading does without

    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+b", buffering=0) as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # freed as the file is closed
        file.seek(0)
        content = file.readall()
        _, whole = _parse(content, path)
        if whole < len(content):
            file.truncate(whole)
        elif content and not content.endswith(b"\n"):
            file.write(b"\n")
        yield file


def _parse(content: bytes, path: str | os.PathLike) -> tuple[list[dict[str, Any]], int]:
    """All runs, and how many bytes they take: less than there are where the last one was cut off."""
    lines = content.split(b"\n")
    rows = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            problem = _problem(row)
        except ValueError as error:
            problem = str(error)
            if number == len(lines) and line.startswith(b"{"):  # nothing follows, not even the end of the line
                logger.warning(f"{path}: the last line is not whole and is left out; its run was interrupted.")
                return rows, len(content) - len(line)
        if problem:
            raise ValueError(
                f"{path}, line {number}: {problem}; expected a run as `sgma-hf compare` writes it. Give another file, "
                "or remove the line."
            )
        rows.append(row)
    return rows, len(content)


def _problem(row: Any) -> str | None:
    """Why a line's content is no run; None if it is one."""
    if not isinstance(row, dict) or not _TYPES.keys() <= row.keys():
        return "it is no run of `sgma-hf compare`"
    wrong = [name for name, kind in _TYPES.items() if not isinstance(row[name], kind)]
    if wrong:
        return f"{wrong} are of another type"
    if row.get("format_version") not in (1, FORMAT_VERSION):
        return f"its `format_version` is {row.get('format_version')!r}, this version reads up to {FORMAT_VERSION}"
    if not all(isinstance(row["dataset"].get(name), str) for name in ("name", "fingerprint")):
        return "its `dataset` has no name or no fingerprint"
    split = row["settings"].get("report_split")
    if not isinstance(row["results"].get(split), dict):
        return f"its `results` are of {list(row['results'])} and not of its `report_split` {split!r}"
    return None
