"""Lists what lies under a folder, and tells where the data lie when the folder is the wrong one."""

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path


ARCHIVE_SUFFIXES = (".zip", ".rar", ".7z", ".tar", ".tgz", ".tar.gz")
_MAX_DEPTH = 8
_PARENTS_ASKED = 2
_PARENT_DEPTH = 5
_PARENT_FILES = 50_000  # a search above --source must not turn into a walk over the whole disk


@dataclass
class FolderContents:
    """Files under a folder."""

    files: list[Path] = field(default_factory=list)  # sorted, shallow ones first; no hidden ones
    archives: list[Path] = field(default_factory=list)  # those that are still packed


def walk_files(source: Path, *, max_depth: int = _MAX_DEPTH, max_files: int | None = None) -> FolderContents:
    """List the files under a folder, `max_depth` deep, through links too, but each folder once.

    The walk is cut short when there are more than `max_files`.
    """
    contents = FolderContents()
    seen: set[str] = set()
    for folder, children, names in os.walk(source, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            children.clear()
            continue
        seen.add(real)
        depth = len(Path(folder).relative_to(source).parts)
        children[:] = sorted(name for name in children if not name.startswith(".") and depth < max_depth)
        for name in (name for name in names if not name.startswith(".")):
            target = contents.archives if name.lower().endswith(ARCHIVE_SUFFIXES) else contents.files
            target.append(Path(folder) / name)
        if max_files is not None and len(contents.files) > max_files:
            break
    contents.files.sort(key=lambda path: (len(path.parts), path))
    contents.archives.sort()
    return contents


def unpacking_hint(archives: Iterable[Path], names: Iterable[str]) -> str:
    """How to unpack those archives that are called one of `names`, with suffix or without; empty if none is there."""
    wanted = {name.lower() for name in names}
    hints = []
    for path in archives:
        name, stem = path.name.lower(), path.name.partition(".")[0]
        if name in wanted or stem.lower() in wanted:
            target = path.with_name(stem)
            if name.endswith((".rar", ".7z")):
                hints.append(f"unrar x '{path}' '{target}/' (or: 7z x -o'{target}' '{path}', bsdtar -xf)")
            elif name.endswith(".zip"):
                hints.append(f"unzip '{path}' -d '{target}'")
            else:
                hints.append(f"mkdir '{target}' && tar -xf '{path}' -C '{target}'")
    return f"It is still packed; unpack it: {'; '.join(hints)}" if hints else ""


def better_source(source: Path, pattern: re.Pattern) -> Path | None:
    """A folder above `source` in which more file names match the pattern, None if there is none."""

    def count(contents: FolderContents) -> int:
        return sum(pattern.fullmatch(path.name) is not None for path in contents.files)

    best, most = None, count(walk_files(source, max_files=_PARENT_FILES))
    for parent in list(source.absolute().parents)[:_PARENTS_ASKED]:
        if parent == Path(parent.anchor):
            break
        contents = walk_files(parent, max_depth=_PARENT_DEPTH, max_files=_PARENT_FILES)
        if len(contents.files) > _PARENT_FILES:
            break
        if count(contents) > most:
            best, most = parent, count(contents)
    return best
