"""Replacing a checkpoint only by one that is written to its end."""

import contextlib
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path


WEIGHT_FILE = re.compile(r"model(-\d+-of-\d+)?\.safetensors(\.index\.json)?")


@contextlib.contextmanager
def replace_when_complete(directory: str | os.PathLike) -> Iterator[Path]:
    """Give a folder to write a checkpoint into, and move its files to `directory` if nothing failed.

    A full disk or a killed process leaves an earlier checkpoint in `directory` as it was.

    Args:
        directory: Folder of the checkpoint; made if it is not there.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    # Inside the folder, so that moving is renaming; hidden, so that nothing takes a remnant for a checkpoint.
    with tempfile.TemporaryDirectory(prefix=".saving-", dir=directory) as staging:
        yield Path(staging)
        names = sorted(os.listdir(staging), key=lambda name: not name.endswith(".safetensors"))  # weights first
        for name in names:
            os.replace(Path(staging, name), directory / name)
    if any(WEIGHT_FILE.fullmatch(name) for name in names):  # an earlier checkpoint may have had more shards
        for path in directory.iterdir():
            if WEIGHT_FILE.fullmatch(path.name) and path.name not in names:
                path.unlink()
