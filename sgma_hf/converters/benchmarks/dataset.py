"""What a public data set is (documented constants) and what its reader does, for the one driver that serves them all.

A data set is a `DatasetDescription` and a subclass of `BenchmarkDataset`. `command` makes of the two a command that
checks and converts, `builder` a builder of the `datasets` library:

    class Potsdam(BenchmarkDataset):
        description = DatasetDescription(name="isprs_potsdam", ...)
        file_pattern = re.compile("top_potsdam_.*")

        def find(self, source): ...                          # the scenes and what is wrong with them
        def read_file(self, scene, column, window): ...      # a window of one modality, or of the label as class ids

    class IsprsPotsdam(BenchmarkBuilder):                    # from .benchmarks.builder
        reader = Potsdam

    def main(argv=None):
        return run_command(Potsdam, argv)                    # from .benchmarks.command
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from ...data.metadata import DatasetMetadata
from ...data.windows import Window
from ...rasters.raw_windows import WindowReaders


LABEL = "label"
SPLIT_FOLDERS = {"train": "train", "val": "validation", "test": "test"}  # as most sets call them
SPLITS = tuple(SPLIT_FOLDERS.values())
OBSERVED = "observed in public copies"  # the source of a fact that no page, paper or repository states


@dataclass(frozen=True)
class Modality:
    """A modality column.

    Args:
        name: Of the column.
        channels: Bands.
        dtype: As stored, one of `SUPPORTED_DTYPES`; an integer is never squeezed.
        unit: Of the values; None where nobody says.
        nodata: Values that stand for nothing (NaN always does).
        description: What the bands are, in a few words.
    """

    name: str
    channels: int
    dtype: str
    unit: str | None = None
    nodata: tuple[float, ...] = ()
    description: str = ""


@dataclass(frozen=True)
class SplitProtocol:
    """A named division into splits.

    Args:
        description: What it is, one sentence; says so where it is ours.
        source: Repository, paper or page that defines it.
        num_scenes: Published number of scenes per split; splits that are empty are left out.
    """

    description: str
    source: str
    num_scenes: Mapping[str, int]


@dataclass(frozen=True)
class Choice:
    """An option of the data set's own: `--name value`, found in `ConversionOptions.choices[name]`.

    Args:
        default: Where the option is not given.
        help: One line for `--help`.
        values: What is allowed; None allows everything of the default's type.
    """

    default: str | int
    help: str
    values: tuple[str | int, ...] | None = None


@dataclass(frozen=True)
class DatasetDescription:
    """The documented constants of a data set. Every fact has a public source, in `facts` or beside it.

    Args:
        name: Of the command, the builder's config and the cache: lower case with underscores.
        title: For the card.
        summary: What it is, two or three sentences.
        homepage: Where it is handed out.
        modalities: All that it can have; `BenchmarkDataset.modalities` gives those that the options choose.
        class_names: Of the ids 0, 1, ...
        palette: (red, green, blue) per class, the official colours.
        splits: Named protocols by what `--split` calls them; the first is the default.
        choices: Options of its own.
        class_shares: Published share of the labelled pixels per class, all labels together; empty where nobody says.
        class_shares_source: Who measured them.
        default_tile: Side of a tile in pixels; None keeps scenes whole.
        facts: (statement, source) about the files: what the reader relies on.
        terms: Terms of use, plain text; printed before a push and part of the card.
        license: Identifier for the card's head.
        citation: BibTeX.
        acknowledgement: A sentence that publications have to carry; empty if none.
    """

    name: str
    title: str
    summary: str
    homepage: str
    modalities: tuple[Modality, ...]
    class_names: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    splits: Mapping[str, SplitProtocol]
    choices: Mapping[str, Choice] = field(default_factory=dict)
    class_shares: tuple[float, ...] = ()
    class_shares_source: str = ""
    default_tile: int | None = None
    facts: tuple[tuple[str, str], ...] = ()
    terms: str = ""
    license: str = "other"
    citation: str = ""
    acknowledgement: str = ""


@dataclass
class ConversionOptions:
    """What is to be made of a data set; the command line has a flag for each.

    Args:
        split: Name of a protocol of the description; None takes the first.
        tile: Side of a tile in pixels of the scene; None keeps scenes whole.
        stride: Pixels from tile to tile of training scenes, `tile` by default; see `Tiling`.
        exclude: Names of scenes to leave out.
        missing: Share of the training rows that lose a modality, by modality.
        coverage: Share of the training rows in which a modality ends inside the tile, by modality.
        missing_seed: Decides which rows.
        choices: The data set's own options; those left out take their defaults.
    """

    split: str | None = None
    tile: int | None = None
    stride: int | None = None
    exclude: Sequence[str] = ()
    missing: Mapping[str, float] = field(default_factory=dict)
    coverage: Mapping[str, float] = field(default_factory=dict)
    missing_seed: int = 0
    choices: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Scene:
    """What becomes one row, or several tiles. Has to survive pickling: worker processes get it.

    Args:
        name: Unique in its split; row ids begin with it.
        split: `train`, `validation` or `test`.
        files: Path by column, `label` included; None where the data set has none here (the column becomes null).
        extra: Whatever else the reader wants to know, such as the scene's annotations.
    """

    name: str
    split: str
    files: dict[str, Path | None]
    extra: Any = None

    @property
    def key(self) -> str:
        """`split/name`, unique in the data set."""
        return f"{self.split}/{self.name}"


@dataclass(frozen=True)
class Problem:
    """Something that is not as it should be.

    Args:
        kind: `missing` and `damaged` stop a conversion (unless the user lets them pass); a `note` is just said.
        what: The file, or the files in words.
        reason: What is wrong with it.
        remedy: What to download or do; empty if nothing helps.
        scene: Key of the scene it concerns, None if it concerns no single one. A scene with damage is what
            `--skip_damaged` leaves out.
    """

    kind: Literal["missing", "damaged", "note"]
    what: str
    reason: str
    remedy: str = ""
    scene: str | None = None

    def __str__(self) -> str:
        """One line."""
        return f"{self.what}: {self.reason}{'. ' + self.remedy if self.remedy else ''}"


@dataclass
class Survey:
    """What `find` makes of a folder, from names, directory entries and annotation files; no raster is opened.

    Args:
        scenes: In a fixed order.
        problems: Files that are absent, archives still packed, annotation files that do not parse.
    """

    scenes: list[Scene]
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

    def __init__(self, options: ConversionOptions | None = None) -> None:
        self.options = options or ConversionOptions()
        self.readers = WindowReaders()
        description = self.description
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
    def modalities(self) -> tuple[Modality, ...]:
        """The modality columns under these options, in their order."""
        return self.description.modalities

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes under these options."""
        return self.description.class_names

    @property
    def palette(self) -> tuple[tuple[int, int, int], ...]:
        """Colours of `class_names`."""
        return self.description.palette

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

    def scene_size(self, scene: Scene) -> tuple[int, int]:
        """(height, width) of the scene's reference grid, from headers; by default of its label or first modality.

        Raises:
            ValueError: If the file that tells cannot be read; it is named.
        """
        columns = [LABEL, *(modality.name for modality in self.modalities)]
        path = next((scene.files[name] for name in columns if scene.files.get(name) is not None), None)
        if path is None:
            raise ValueError(f"Scene {scene.name!r} has no files.")
        return self.readers.open(path).size

    @abstractmethod
    def read_file(self, scene: Scene, column: str, window: Window) -> np.ndarray | None:
        """Read a window of a modality, or of the label, that the scene has a file for; `read` says what is returned.

        Scenes are read in strips as wide as they are, so that no raster has to fit in memory; keep files open by
        reading through `self.readers`.

        Raises:
            ValueError: If the file cannot be read, has another size, or holds something unknown.
        """

    def read(self, scene: Scene, column: str, window: Window) -> np.ndarray | None:
        """Read a window, which lies inside the scene, of a modality or of the label.

        Returns:
            A modality: (height, width) if it has one channel, else (height, width, channels), in the declared dtype.
            A label: uint8 class ids (height, width), 255 ignored. None where the scene has none.

        Raises:
            ValueError: If the file cannot be read, has another size, or holds something unknown; it is named.
        """
        path = scene.files.get(column)
        if path is None:
            return None
        try:
            return self.read_file(scene, column, window)
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
        modalities, filled = self.modalities, self.filled
        return DatasetMetadata(
            modalities=[modality.name for modality in modalities],
            modality_channels=[modality.channels for modality in modalities],
            modality_dtypes=[modality.dtype for modality in modalities],
            nodata=[[0.0] if modality.name in filled else list(modality.nodata) for modality in modalities],
            units=[modality.unit for modality in modalities],
            class_names=list(self.class_names),
            palette=[list(colour) for colour in self.palette],
        )

    def __getstate__(self) -> dict[str, Any]:
        """Without open files."""
        return {**self.__dict__, "readers": WindowReaders()}


def different_size(found: tuple[int, int], expected: tuple[int, int]) -> str:
    """Say that a file of (height, width) pixels is not of its scene's size."""
    return f"has {found[1]} x {found[0]} pixels, its scene {expected[1]} x {expected[0]}"
