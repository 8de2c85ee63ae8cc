"""What a public benchmark is (documented constants) and what its reader does, for the one driver that serves them all.

A benchmark is a `DatasetDescription` and a subclass of `BenchmarkDataset`. The driver (`benchmark_command`) turns the
two into a command, a check, a converter to Parquet and, by `benchmark_builder`, a builder of the `datasets` library:

    class Potsdam(BenchmarkDataset):
        description = DatasetDescription(name="isprs_potsdam", ...)
        file_pattern = re.compile("top_potsdam_.*")

        def find(self, source): ...                     # the scenes and what is wrong with them
        def read(self, scene, column, window): ...      # a window of one modality, or of the label as class ids

    class IsprsPotsdam(BenchmarkBuilder):               # from .benchmark_builder
        reader = Potsdam

    def main(argv=None):
        return run_command(Potsdam, argv)               # from .benchmark_command
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from ...data.metadata import DatasetMetadata
from ...model.configuration_sgma import IGNORE_INDEX
from ...rasters.raw_windows import WindowReaders


LABEL = "label"
SPLITS = ("train", "validation", "test")
OBSERVED = "observed in public copies"  # the source of a fact that no page, paper or repository states
_STRIP_PIXELS = 2**21  # read at once by a check: 25 MB of float32 in three bands


@dataclass(frozen=True)
class Modality:
    """A modality column.

    Args:
        name: Of the column.
        channels: Bands.
        dtype: As stored, one of `dataset_schema.SUPPORTED_DTYPES`; an integer is never squeezed.
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


@dataclass(frozen=True)
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
    exclude: tuple[str, ...] = ()
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


@dataclass(frozen=True)
class Problem:
    """Something that is not as it should be.

    Args:
        kind: `missing` and `damaged` stop a conversion (unless the user lets them pass); a `note` is just said.
        what: The file, or the files in words.
        reason: What is wrong with it.
        remedy: What to download or do; empty if nothing helps.
        scene: (split, name) of the scene it concerns, None if it concerns no single one. A scene with damage is what
            `--skip-damaged` leaves out.
    """

    kind: Literal["missing", "damaged", "note"]
    what: str
    reason: str
    remedy: str = ""
    scene: tuple[str, str] | None = None

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

    def damaged_scenes(self) -> set[tuple[str, str]]:
        """(split, name) of the scenes that are damaged before any raster is read."""
        return {problem.scene for problem in self.problems if problem.kind == "damaged" and problem.scene is not None}


@dataclass
class SceneCheck:
    """What reading a scene through has shown.

    Args:
        size: (height, width); None if not even that is known.
        problems: Of this scene.
        class_pixels: int64 (num_classes,), all 0 without a label.
        ignored_pixels: Label pixels of 255.
        has_label: Whether there is a label.
    """

    size: tuple[int, int] | None
    problems: list[Problem]
    class_pixels: np.ndarray
    ignored_pixels: int = 0
    has_label: bool = False

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "class_pixels": self.class_pixels.tolist()}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "SceneCheck":
        """What `as_dict` made."""
        problems = [
            Problem(**{**entry, "scene": tuple(entry["scene"]) if entry["scene"] else None})
            for entry in content["problems"]
        ]
        return cls(
            size=tuple(content["size"]) if content["size"] else None,
            problems=problems,
            class_pixels=np.array(content["class_pixels"], dtype=np.int64),
            ignored_pixels=content["ignored_pixels"],
            has_label=content["has_label"],
        )


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
    def read(self, scene: Scene, column: str, window: tuple[int, int, int, int]) -> np.ndarray | None:
        """Read a window of a modality, or of the label.

        The driver reads strips as wide as the scene and cuts them, so that no raster has to fit in memory; keep files
        open by reading through `self.readers`.

        Args:
            scene: The scene.
            column: A modality's name or `label`.
            window: (top, left, height, width) in pixels of the scene; it lies inside.

        Returns:
            A modality: (height, width) if it has one channel, else (height, width, channels), in the declared dtype.
            A label: uint8 class ids (height, width), 255 ignored. None where the scene has none.

        Raises:
            ValueError: If the file cannot be read, has another size, or holds something unknown; it is named.
        """

    def check_scene(self, scene: Scene) -> SceneCheck:
        """Read a scene through, strip by strip; what cannot be read is a problem, and the rest is still checked."""
        num_classes = len(self.class_names)
        result = SceneCheck(None, [], np.zeros(num_classes, dtype=np.int64))
        key = (scene.split, scene.name)
        unsized = None
        try:
            result.size = self.scene_size(scene)
        except (ValueError, OSError) as error:
            unsized = Problem("damaged", scene.name, str(error), self.remedy(scene, None), key)
        for column in (*(modality.name for modality in self.modalities), LABEL):
            try:
                self._check_column(scene, column, result)
            except (ValueError, OSError) as error:
                what = str(scene.files.get(column) or f"{scene.name}, {column}")
                reason = str(error).removeprefix(f"{what}: ")
                result.problems.append(Problem("damaged", what, reason, self.remedy(scene, column), key))
        if unsized is not None and not result.problems:
            result.problems.append(unsized)
        self.readers.close()
        return result

    def _check_column(self, scene: Scene, column: str, result: SceneCheck) -> None:
        if result.size is None:  # the reference file is broken; the others can still be opened
            if scene.files.get(column) is not None:
                self.readers.open(scene.files[column]).read_through()
            return
        height, width = result.size
        rows = max(1, _STRIP_PIXELS // width)
        counts = np.zeros(IGNORE_INDEX + 1, dtype=np.int64)
        for top in range(0, height, rows):
            values = self.read(scene, column, (top, 0, min(rows, height - top), width))
            if values is None:
                return
            if column == LABEL:
                counts += np.bincount(values.ravel(), minlength=IGNORE_INDEX + 1)
        if column == LABEL:
            result.has_label = True
            result.class_pixels = counts[: len(self.class_names)]
            result.ignored_pixels = int(counts[IGNORE_INDEX])

    def remedy(self, scene: Scene, column: str | None) -> str:
        """What to download or do when a file of a scene is damaged; `column` is None if it is not known which."""
        return f"Get it again from {self.description.homepage}"

    def card_notes(self) -> Sequence[str]:
        """Sentences for the card about these options, beyond the description."""
        return ()

    def metadata(self) -> DatasetMetadata:
        """What the columns mean under these options."""
        nodata = [list(modality.nodata) for modality in self.modalities]
        for modality, values in zip(self.modalities, nodata, strict=True):
            if modality.name in self.options.coverage and modality.dtype != "float32" and not values:
                values.append(0.0)
        return DatasetMetadata(
            modalities=[modality.name for modality in self.modalities],
            modality_channels=[modality.channels for modality in self.modalities],
            modality_dtypes=[modality.dtype for modality in self.modalities],
            nodata=nodata,
            units=[modality.unit for modality in self.modalities],
            class_names=list(self.class_names),
            palette=[list(colour) for colour in self.palette],
        )

    def __getstate__(self) -> dict[str, Any]:
        """Without open files."""
        return {**self.__dict__, "readers": WindowReaders()}
