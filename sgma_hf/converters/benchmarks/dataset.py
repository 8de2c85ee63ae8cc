"""What a public data set is (documented constants) and what its reader does, for the one driver that serves them all.

A data set is a `DatasetDescription` and a subclass of `BenchmarkDataset` with `find` and `read_file`; CONTRIBUTING.md
has a whole one. `command.run_command` makes of it a command that checks and converts, and a `builder.BenchmarkBuilder`
that names it as its `reader` is a builder of the `datasets` library.
"""

import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from ...data.metadata import DatasetMetadata
from ...data.windows import Window
from ...rasters.raw_windows import WindowReaders


LABEL, SCORING_LABEL = "label", "scoring_label"
SPLIT_FOLDERS = {"train": "train", "val": "validation", "test": "test"}  # as most sets call them
SPLITS = tuple(SPLIT_FOLDERS.values())
OBSERVED = "observed in public copies"  # the source of a fact that no page, paper or repository states


@dataclass(frozen=True)
class Modality:
    """A modality column."""

    name: str
    channels: int
    dtype: str  # as stored, one of `SUPPORTED_DTYPES`; an integer is never squeezed
    unit: str | None = None  # of the values; None where nobody says
    nodata: tuple[float, ...] = ()  # values that stand for nothing (NaN always does)
    description: str = ""  # what the bands are, in a few words
    series: bool = False  # whether a row has many dates of it


@dataclass(frozen=True)
class SplitProtocol:
    """A named division into splits."""

    description: str  # one sentence; says so where it is ours
    source: str  # repository, paper or page that defines it
    num_scenes: Mapping[str, int]  # as published, per split; splits that are empty are left out
    relation: str  # one sentence: how rows of the other splits lie to those that are trained on
    total: int | None = None  # scenes of all splits together, where nobody published them by split


@dataclass(frozen=True)
class Choice:
    """An option of the data set's own: `--name value`, found in `BenchmarkDataset.choices[name]`."""

    default: str | int
    help: str  # one line for `--help`
    values: tuple[str | int, ...] | None = None  # None allows everything of the default's type


@dataclass(frozen=True)
class DatasetDescription:
    """The documented constants of a data set. Every fact has a public source, in `facts` or beside it."""

    name: str  # of the command, the builder's config and the cache: lower case with underscores
    title: str  # for the card
    summary: str  # what it is, two or three sentences
    homepage: str  # where it is handed out
    modalities: tuple[Modality, ...]  # all that it can have; a reader's `modalities` are those that the options choose
    class_names: tuple[str, ...]  # of the ids 0, 1, ...
    palette: tuple[tuple[int, int, int], ...]  # (red, green, blue) per class, the official colours
    splits: Mapping[str, SplitProtocol]  # by what `--split` calls them; the first is the default
    choices: Mapping[str, Choice] = field(default_factory=dict)  # options of its own
    class_shares: tuple[float, ...] = ()  # published, of the labelled pixels of all splits; empty where nobody says
    class_shares_source: str = ""  # who measured them
    resolution: float | None = None  # metres per pixel; None where scenes differ, or nobody says
    default_tile: int | None = None  # side of a tile in pixels; None keeps scenes whole
    facts: tuple[tuple[str, str], ...] = ()  # (statement, source) about the files: what the reader relies on
    terms: str = ""  # of use, plain text; printed before a push and part of the card
    license: str = "other"  # identifier for the card's head
    citation: str = ""  # BibTeX
    acknowledgement: str = ""  # a sentence that publications have to carry; empty if none


@dataclass
class ConversionOptions:
    """What is to be made of a data set; the command line has a flag for each."""

    split: str | None = None  # name of a protocol of the description; None takes the first
    tile: int | None = None  # side of a tile in pixels of the scene; None keeps scenes whole
    stride: int | None = None  # pixels from tile to tile of training scenes, `tile` by default; see `Tiling`
    exclude: Sequence[str] = ()  # names of scenes to leave out
    missing: Mapping[str, float] = field(default_factory=dict)  # share of training rows that lose a modality, by name
    coverage: Mapping[str, float] = field(default_factory=dict)  # share in which a modality ends inside the tile
    missing_seed: int = 0  # decides which rows
    choices: Mapping[str, Any] = field(default_factory=dict)  # the data set's own; those left out take their defaults


@dataclass
class Scene:
    """What becomes one row, or several tiles. Has to survive pickling: worker processes get it."""

    name: str  # unique in its split; row ids begin with it
    split: str  # `train`, `validation` or `test`
    # By column, `label` included; None where there is none (the column becomes null). A series has a file of all its
    # dates, whose array has four axes, or one for each.
    files: dict[str, Path | tuple[Path, ...] | None]
    extra: Any = None  # whatever else the reader wants to know, such as the scene's annotations
    dates: dict[str, tuple[Any, ...]] = field(default_factory=dict)  # by series, one as `to_days` takes it per raster
    sequence: str | None = None  # video or place that the scene is a part of, see `BenchmarkDataset.sequences`

    @property
    def key(self) -> str:
        """`split/name`, unique in the data set."""
        return f"{self.split}/{self.name}"

    def paths(self) -> list[Path]:
        """All of its files."""
        groups = (files if isinstance(files, tuple) else (files,) for files in self.files.values())
        return [path for group in groups for path in group if path is not None]


@dataclass(frozen=True)
class Problem:
    """Something that is not as it should be."""

    # `missing` and `damaged` stop a conversion (unless the user lets them pass); a `note` is just said.
    kind: Literal["missing", "damaged", "note"]
    what: str  # the file, or the files in words
    reason: str  # what is wrong with it
    remedy: str = ""  # what to download or do; empty if nothing helps
    scene: str | None = None  # key of the one that it concerns; `--skip_damaged` leaves out scenes with damage

    def __str__(self) -> str:
        """One line."""
        return f"{self.what}: {self.reason}{'. ' + self.remedy if self.remedy else ''}"


@dataclass
class Survey:
    """What `find` makes of a folder, from names, directory entries and annotation files; no raster is opened."""

    scenes: list[Scene]  # in a fixed order
    # Files that are absent, archives still packed, annotation files that do not parse.
    problems: list[Problem] = field(default_factory=list)


class BenchmarkDataset(ABC):
    """Reader of one data set with given options. Instances are pickled to worker processes, without open files.

    Args:
        options: What is to be made of it.

    Raises:
        ValueError: If an option is not one that the data set has.
    """

    description: ClassVar[DatasetDescription]
    file_pattern: ClassVar[re.Pattern]  # full match of the names of its files, to tell a --source that is too low
    sequences: ClassVar[bool] = False  # whether its scenes have a `sequence`

    def __init__(self, options: ConversionOptions | None = None) -> None:
        self.options = options or ConversionOptions()
        self.readers = WindowReaders()
        description = self.description
        # The columns and classes under these options, colours of the classes: a reader may choose others.
        self.modalities, self.class_names = description.modalities, description.class_names
        self.palette = description.palette
        self.label_columns: tuple[str, ...] = (LABEL,)  # with SCORING_LABEL where other labels are to score by
        self.split = self.options.split or next(iter(description.splits))
        if self.split not in description.splits:
            raise ValueError(f"{description.name} has no split {self.split!r}; there are {list(description.splits)}.")
        unknown = sorted(set(self.options.choices) - set(description.choices))
        if unknown:
            raise ValueError(f"{description.name} has no option {unknown}; it has {list(description.choices)}.")
        self.choices = {name: choice.default for name, choice in description.choices.items()}
        self.choices.update(self.options.choices)
        for name, choice in description.choices.items():
            if choice.values is not None and self.choices[name] not in choice.values:
                raise ValueError(f"{name} is {self.choices[name]!r}; expected one of {list(choice.values)}.")

    @property
    def filled(self) -> list[str]:
        """Integer modalities without a nodata value that may end inside a tile: 0 in all bands gets that meaning."""
        ends = [modality for modality in self.modalities if modality.name in self.options.coverage]
        return [modality.name for modality in ends if modality.dtype != "float32" and not modality.nodata]

    @abstractmethod
    def find(self, source: Path) -> Survey:
        """Find the scenes under a folder and what is absent or unreadable, by names; opens no raster.

        Args:
            source: What the user gave; the data may lie deeper, and doubled folders are normal.

        Returns:
            The scenes of the chosen protocol (`self.split`), also those with problems, and the problems. If nothing
            at all is found, no scenes and one problem of kind `missing`. `options.exclude` is applied by the driver.
        """

    def fewer_than_published(self, scenes: Sequence[Scene], remedy: Callable[[str], str]) -> list[Problem]:
        """Splits of the protocol with fewer scenes than were published, or all of them where only that is known.

        `remedy` says by split what to do.
        """
        found, protocol = Counter(scene.split for scene in scenes), self.description.splits[self.split]
        wanted = [(f"split {split}", split, found[split], count) for split, count in protocol.num_scenes.items()]
        if protocol.total is not None:
            wanted.append(("all splits", "train", len(scenes), protocol.total))
        return [
            Problem("missing", what, f"{number} of {count} published scenes are there", remedy(split))
            for what, split, number, count in wanted
            if number < count
        ]

    def scene_size(self, scene: Scene) -> tuple[int, int]:
        """(height, width) of the scene's reference grid, from headers; by default of its label or first modality.

        Raises:
            ValueError: If the file that tells cannot be read; it is named.
        """
        columns = [LABEL, *(modality.name for modality in self.modalities)]
        path = next((path for name in columns if (path := scene.files.get(name)) is not None), None)
        if path is None:
            raise ValueError(f"Scene {scene.name!r} has no files.")
        return self.readers.open(path).size

    @abstractmethod
    def read_file(self, scene: Scene, column: str, window: Window) -> np.ndarray | None:
        """Read a window of a modality, or of the label, that the scene has a file for; `read` says what is returned.

        Scenes are read in strips as wide as they are, so that no raster has to fit in memory; keep files open by
        reading through `self.readers`. Of a series with a file for each date, `scene.files` has the one to be read.

        Raises:
            ValueError: If the file cannot be read, has another size, or holds something unknown.
        """

    def read(self, scene: Scene, column: str, window: Window) -> Any:
        """Read a window, which lies inside the scene, of a modality or of the label.

        Returns:
            A modality: (height, width) if it has one channel, else (height, width, channels), in the declared dtype;
            a list of them if it is a series. A label: uint8 class ids (height, width), 255 ignored. None where the
            scene has none.

        Raises:
            ValueError: If the file cannot be read, has another size, or holds something unknown; it is named.
        """
        path = scene.files.get(column)
        if not path:
            return None
        if isinstance(path, tuple):
            parts = (replace(scene, files={**scene.files, column: part}) for part in path)
            return [self.read(part, column, window) for part in parts]
        try:
            values = self.read_file(scene, column, window)
            return list(values) if getattr(values, "ndim", 0) == 4 else values
        except ValueError as error:
            raise ValueError(f"{path}: {str(error).removeprefix(f'{path}: ')}") from error

    def stored(self, scene: Scene, column: str, window: Window, expected: str = "") -> np.ndarray:
        """All bands of a window of a file that the scene has, as they are, (height, width, channels).

        Raises:
            ValueError: If the file is not of the scene's size, or holds other bands than `expected`, `3 x uint8` say.
        """
        reader, size = self.readers.open(scene.files[column]), self.scene_size(scene)
        if reader.size != size:
            raise ValueError(different_size(reader.size, size))
        values = reader.read(window)
        found = f"{values.shape[2]} x {values.dtype}"
        if expected and found != expected:
            raise ValueError(f"holds bands of {found}, expected {expected}")
        return values

    def remedy(self, scene: Scene, column: str | None) -> str:
        """What to download or do when a file of a scene is damaged; `column` is None if it is not known which."""
        return f"Get it again from {self.description.homepage}"

    def card_notes(self) -> Sequence[str]:
        """Sentences for the card about these options, beyond the description."""
        return ()

    def metadata(self) -> DatasetMetadata:
        """What the columns mean under these options."""
        filled = self.filled
        return DatasetMetadata(
            modalities=[modality.name for modality in self.modalities],
            modality_channels=[modality.channels for modality in self.modalities],
            modality_dtypes=[modality.dtype for modality in self.modalities],
            series=[modality.series for modality in self.modalities],
            nodata=[[0.0] if modality.name in filled else list(modality.nodata) for modality in self.modalities],
            units=[modality.unit for modality in self.modalities],
            class_names=list(self.class_names),
            palette=[list(colour) for colour in self.palette],
            resolution=self.description.resolution,
            split_notes=self._split_notes(),
            scoring_label=SCORING_LABEL in self.label_columns,
            sequences=self.sequences,
        )

    def _split_notes(self) -> dict[str, str]:
        """How each split was made, and how it lies to the training rows."""
        protocol = self.description.splits[self.split]
        made = f"Split `{self.split}` of {self.description.title}: {protocol.description}"
        return {split: made if split == "train" else f"{made} {protocol.relation}" for split in SPLITS}

    def __getstate__(self) -> dict[str, Any]:
        """Without open files."""
        return {**self.__dict__, "readers": WindowReaders()}


def different_size(found: tuple[int, int], expected: tuple[int, int]) -> str:
    """Say that a file of (height, width) pixels is not of its scene's size."""
    return f"has {found[1]} x {found[0]} pixels, its scene {expected[1]} x {expected[0]}"
