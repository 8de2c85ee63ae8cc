"""What the readers of Potsdam and Vaihingen share: named files, label windows, rasters that are a column short."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from .benchmarks.dataset import LABEL, BenchmarkDataset, Problem, Scene
from .benchmarks.source_walk import FolderContents, unpacking_hint
from .isprs_labels import CLASS_NAMES, PALETTE, decode_isprs_label


_MAX_LISTED = 8


def match_files(contents: FolderContents, pattern: re.Pattern) -> dict[str, list[Path]]:
    """Files whose whole name matches, by tile; shallow ones first.

    Args:
        contents: What was found.
        pattern: With the groups `row` and `column` (padded or not), or `area`.
    """
    found: dict[str, list[Path]] = {}
    for path in contents.files:
        match = pattern.fullmatch(path.name)
        if match is not None:
            groups = match.groupdict()
            tile = groups["area"] if "area" in groups else f"{int(groups['row'])}_{int(groups['column'])}"
            found.setdefault(tile, []).append(path)
    return found


def absent_files(
    tiles: Sequence[str],
    *,
    of: int,
    what: str,
    names: str,
    archives: Sequence[str],
    contents: FolderContents,
) -> list[Problem]:
    """One problem for all tiles that lack a file; none if no tile does.

    Args:
        tiles: Those that lack it.
        of: Number of tiles in all.
        what: What it is, for people.
        names: What the files are called.
        archives: Which archives hold it.
        contents: What was found, to tell an archive that is still packed.
    """
    if not tiles:
        return []
    listed = "all tiles" if len(tiles) == of else f"{len(tiles)} tiles ({shorten(tiles)})"
    hint = unpacking_hint(contents.archives, archives) or f"Download {' or '.join(archives)} and unpack it"
    return [Problem("missing", f"{what} of {listed}", f"no file {names}", hint)]


def shorten(names: Iterable[str]) -> str:
    """The first few of a list."""
    names = list(names)
    return ", ".join(names[:_MAX_LISTED]) + (", ..." if len(names) > _MAX_LISTED else "")


def nothing_found(name: str, source: Path, contents: FolderContents, *, example: str, homepage: str) -> Problem:
    """What to say of a folder without a single file of the set."""
    folders = sorted({path.parent.name for path in contents.files})
    there = f"{len(contents.files)} files in {shorten(folders) or 'no folder'}"
    packed = f", and packed: {shorten(path.name for path in contents.archives)}" if contents.archives else ""
    return Problem(
        "missing",
        f"ISPRS {name} in {source}",
        f"no file named as {example}; there are {there}{packed}",
        f"Get {name}.zip from {homepage}, unpack it and what is in it, each archive into a folder of its name, "
        "and give the folder that holds them",
    )


class IsprsDataset(BenchmarkDataset):
    """Reader of either set: the six colours, and heights that may be a column short."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Five classes, or six with clutter."""
        return CLASS_NAMES[: self.choices["classes"]]

    @property
    def palette(self) -> tuple[tuple[int, int, int], ...]:
        """The official colours."""
        return PALETTE[: self.choices["classes"]]

    @property
    def is_eroded(self) -> bool:
        """Whether the eroded labels are asked for."""
        return self.choices["labels"] == "eroded"

    def card_notes(self) -> Sequence[str]:
        """Which labels were taken."""
        kind = "eroded labels, boundaries between classes are 255" if self.is_eroded else "full labels"
        clutter = "clutter is 255 (five-class protocol)" if self.choices["classes"] == 5 else "clutter is a class"
        return [f"`label`: {kind}; {clutter}"]

    def bands(self, scene: Scene, column: str, window: tuple[int, int, int, int]) -> np.ndarray | None:
        """All bands of a file in a window, (height, width, channels); the file must have the scene's size."""
        path = scene.files[column]
        if path is None:
            return None
        reader = self.readers.open(path)
        size = self.scene_size(scene)
        if reader.size != size:
            raise ValueError(f"{path}: {_sizes(reader.size, size)}")
        return reader.read(window)

    def label(self, scene: Scene, window: tuple[int, int, int, int]) -> np.ndarray | None:
        """Class ids of a window."""
        colors = self.bands(scene, LABEL, window)
        if colors is None:
            return None
        try:
            return decode_isprs_label(colors, num_classes=self.choices["classes"], is_eroded=self.is_eroded)
        except ValueError as error:
            raise ValueError(f"{scene.files[LABEL]}: {error}") from error

    def height(self, scene: Scene, column: str, window: tuple[int, int, int, int], *, dtype: str) -> np.ndarray | None:
        """Heights of a window, (height, width).

        A raster may lack its last column or row, as those of Potsdam's tile 3_13 do. What is not there is NaN in
        float32; 8 bits have no value to spare for "no data", so there the last column is repeated.

        Raises:
            ValueError: If more is absent, or the file has other bands or another dtype.
        """
        path = scene.files[column]
        if path is None:
            return None
        reader = self.readers.open(path)
        size = self.scene_size(scene)
        if not all(0 <= full - own <= 1 for full, own in zip(size, reader.size, strict=True)):
            raise ValueError(f"{path}: {_sizes(reader.size, size)}")
        top, left, height, width = window
        # At least one row and column, which is repeated, where the window lies wholly in what is absent.
        first_row, first_column = min(top, reader.size[0] - 1), min(left, reader.size[1] - 1)
        last_row, last_column = min(top + height, reader.size[0]), min(left + width, reader.size[1])
        inside = (first_row, first_column, last_row - first_row, last_column - first_column)
        values = reader.read(inside)
        if values.shape[2] != 1 or values.dtype != dtype:
            raise ValueError(f"{path}: holds {values.shape[2]} band(s) of {values.dtype}, expected one of {dtype}")
        values = values[..., 0]
        rows = np.minimum(np.arange(top, top + height), reader.size[0] - 1) - first_row
        columns = np.minimum(np.arange(left, left + width), reader.size[1] - 1) - first_column
        if values.shape == (height, width) and inside[:2] == (top, left):
            return values
        values = values[np.ix_(rows, columns)]
        if dtype == "float32":
            values[np.arange(top, top + height) >= reader.size[0]] = np.nan
            values[:, np.arange(left, left + width) >= reader.size[1]] = np.nan
        return values


def _sizes(found: tuple[int, int], expected: tuple[int, int]) -> str:
    return f"has {found[1]} x {found[0]} pixels, the tile {expected[1]} x {expected[0]}"
