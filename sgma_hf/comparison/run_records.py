"""The results of a comparison: a file of JSON lines, one run each, that a killed process leaves whole."""

import fcntl
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import Any

from transformers.utils import logging


logger = logging.get_logger(__name__)

IDENTITY = ("arm", "seed", "settings", "arm_definition", "model_config")


def read_rows(path: str | os.PathLike) -> list[dict[str, Any]]:
    """Read all runs of a file; one that does not exist has none.

    A last line that is not whole, left by a machine that went down, is left out with a warning.

    Args:
        path: File of JSON lines.

    Raises:
        ValueError: If another line is no run.
    """
    if not Path(path).exists():
        return []
    lines = Path(path).read_bytes().split(b"\n")
    rows = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            if not isinstance(row, dict) or not {"results", "dataset", *IDENTITY} <= set(row):
                raise ValueError("it is no run of `sgma-hf compare`")
        except ValueError as error:
            if number == len(lines):  # nothing follows, not even the end of the line
                logger.warning(f"{path}: the last line is not whole and is left out; its run was interrupted.")
                break
            raise ValueError(f"{path}, line {number}: {error}. Remove the line, or restore the file.") from error
        rows.append(row)
    return rows


def append_row(path: str | os.PathLike, row: Mapping[str, Any]) -> None:
    """Add one run by a single write of its whole line; what was cut off at the end of the file is removed first.

    Several processes may add to one file.

    Args:
        path: File of JSON lines; it and its folder are made if need be.
        row: The run.

    Raises:
        ValueError: If a figure is not finite.
        OSError: If the line cannot be written; nothing of it stays.
    """
    line = (json.dumps(row, allow_nan=False) + "\n").encode()
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with _locked(path) as file:
        _mend(file, path)
        size = file.seek(0, os.SEEK_END)
        written = file.write(line)
        if written < len(line):  # a full disk
            file.truncate(size)
            raise OSError(f"{path}: only {written} of {len(line)} bytes could be written; the line was removed again.")
        os.fsync(file.fileno())


def drop_truncated_line(path: str | os.PathLike) -> bool:
    """Remove a last line without an end from a file, with a warning; whole JSON is given its end instead.

    Args:
        path: File of JSON lines; it need not exist.

    Returns:
        Whether something was removed.
    """
    if not Path(path).exists():
        return False
    with _locked(path) as file:
        return _mend(file, path)


@contextmanager
def _locked(path: str | os.PathLike) -> Iterator[FileIO]:
    """The file, for reading and appending, while no other process of ours writes to it."""
    with open(path, "a+b", buffering=0) as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # freed as the file is closed
        yield file


def _mend(file: FileIO, path: str | os.PathLike) -> bool:
    file.seek(0)
    content = file.readall()
    if not content or content.endswith(b"\n"):
        return False
    start = content.rfind(b"\n") + 1
    try:
        json.loads(content[start:])
    except ValueError:
        logger.warning(f"{path}: removed a last line that was not whole ({len(content) - start} bytes).")
        file.truncate(start)
        return True
    file.write(b"\n")
    return False


def is_recorded(identity: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a run of the same arm, seed, settings, model and data is among the rows.

    Args:
        identity: `Run.identity`.
        rows: What `read_rows` returned.
    """
    wanted = json.loads(json.dumps(identity))  # as it reads back: tuples are lists, keys are text
    return any(
        row["dataset"].get("fingerprint") == wanted["dataset"]["fingerprint"]
        and all(row[key] == wanted[key] for key in IDENTITY)
        for row in rows
    )
