"""Files that are there as a whole or not at all."""

import contextlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar


T = TypeVar("T")


@contextlib.contextmanager
def replace_file(path: str | os.PathLike) -> Iterator[Path]:
    """Give a file to write beside `path`, which takes its place when the block ends without an error.

    A full disk or a killed process leaves what was at `path` as it was. Its folder is made if it is not there.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=path.suffix, dir=path.parent)
    except OSError as error:
        error.filename = str(path)  # nobody knows the other one
        raise
    os.close(descriptor)
    partial = Path(name)
    try:
        yield partial
        with open(partial, "rb") as file:
            os.fsync(file.fileno())
        partial.chmod(0o644)  # mkstemp gives the owner alone the right to read
        partial.replace(path)
    except OSError as error:
        if error.errno is not None and error.filename is None:  # a full disk does not say of which file
            error.filename = str(path)
        raise
    finally:
        partial.unlink(missing_ok=True)


def check_replaceable(path: str | os.PathLike, inputs: Iterable[Path] = ()) -> None:
    """Raise ValueError if what is to be written would replace a folder, or one of the files that are read for it."""
    path = Path(path)
    if path.resolve() in {file.resolve() for file in inputs}:
        raise ValueError(f"The output {path} is also an input, which would be lost. Choose another name.")
    if path.is_dir():
        raise ValueError(f"The output {path} is a folder. Choose another name.")


def check_writable(path: str | os.PathLike) -> None:
    """Raise an OSError that names `path` if neither it nor folders above it that are not there can be made."""
    folder = next(parent for parent in Path(path).absolute().parents if parent.exists())
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(f"Cannot write the output {path}: {error.strerror}, {folder}.") from error


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write a text in UTF-8, whole or not at all."""
    with replace_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Write a value as JSON, whole or not at all; ValueError for NaN or an infinity, which JSON does not know."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_dataclass(kind: type[T], path: str | os.PathLike, what: str) -> T:
    """Read what `write_json` wrote of `asdict(...)`, without fields that only a later version knows.

    A ValueError about anything else says `what` the file should be.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        known = {item.name for item in fields(kind)}
        return kind(**{key: value for key, value in content.items() if key in known})
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no {what}: {error}. Correct or remove it.") from error
