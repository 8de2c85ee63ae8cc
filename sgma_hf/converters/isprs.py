"""What the readers of ISPRS Potsdam and Vaihingen share: colours of labels, named files, heights a column short."""

import re
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np

from ..data.windows import Window
from ..model.limits_sgma import IGNORE_INDEX
from .benchmarks.dataset import (
    LABEL,
    SCORING_LABEL,
    BenchmarkDataset,
    Choice,
    ConversionOptions,
    Problem,
    Scene,
    Survey,
    different_size,
)
from .benchmarks.source_walk import FolderContents, unpacking_hint, walk_files


CLASS_NAMES = ("impervious surfaces", "building", "low vegetation", "tree", "car", "clutter")
# The benchmark's page; open-mmlab/mmsegmentation, mmseg/datasets/potsdam.py, has the same names and colours.
PALETTE = ((255, 255, 255), (0, 0, 255), (0, 255, 255), (0, 255, 0), (255, 255, 0), (255, 0, 0))
CLUTTER = 5
HOMEPAGE = "https://www.isprs.org/education/benchmarks/UrbanSemLab/default.aspx"
BENCHMARK_CITATION = """@article{rottensteiner2012isprs,
  author  = {Rottensteiner, F. and Sohn, G. and Jung, J. and Gerke, M. and Baillard, C. and Benitez, S. and
             Breitkopf, U.},
  title   = {The {ISPRS} Benchmark on Urban Object Classification and {3D} Building Reconstruction},
  journal = {ISPRS Annals of the Photogrammetry, Remote Sensing and Spatial Information Sciences},
  volume  = {I-3},
  pages   = {293--298},
  year    = {2012},
  doi     = {10.5194/isprsannals-I-3-293-2012}
}"""
SAME_FLIGHT = (
    "Whole tiles that were not trained on, of the same town and flight, some of them side by side with those."
)
LABEL_CHOICES = {
    "labels": Choice(
        "full",
        "full labels; eroded ones, whose class boundaries are ignored; or both, full to train on, eroded to score by",
        ("full", "eroded", "both"),
    ),
    "classes": Choice(5, "5 ignores clutter, as the benchmark's headline figures do; 6 keeps it", (5, 6)),
}

_THRESHOLD = 127
# No channel of any of the 71 labels is nearer to the threshold (KushwahaSujal/SATQuery-AI, tests/unit/
# test_isprs_dataset.py): what is nearer is no lossy copy of a class colour.
_MARGIN = 40
_MAGENTA, _BLACK = 5, 0
# Class by corner of the colour cube, 4 * red + 2 * green + blue.
_CORNERS = np.array([IGNORE_INDEX, 1, 3, 2, 5, IGNORE_INDEX, 4, 0], dtype=np.uint8)
_MAX_COLOURS = 5
_MAX_NAMES = 8
_MAX_SEAM_SHARE = 0.01


def decode_isprs_label(colors: np.ndarray, *, num_classes: int, is_eroded: bool) -> np.ndarray:
    """Turn the colours of a label into ids of `CLASS_NAMES`, uint8 (height, width), 255 ignored.

    Each channel is compared with 127, so that labels that were compressed with loss, and the cars of a Potsdam label
    whose red is 252, are read as meant; exact comparison loses them (torchgeo/torchgeo issue 1727). A ValueError lists
    colours that are near none of the classes.

    Args:
        colors: uint8 (height, width, 3), or 4 channels of which the last does not count.
        num_classes: 6, or 5 to ignore clutter.
        is_eroded: Whether black, the boundary between classes, may occur; it becomes 255.
    """
    if colors.dtype != np.uint8 or colors.ndim != 3 or colors.shape[2] not in (3, 4):
        raise ValueError(
            f"holds {colors.shape[2] if colors.ndim == 3 else 1} band(s) of {colors.dtype}; expected three of uint8"
        )
    red, green, blue = (colors[..., index] > _THRESHOLD for index in range(3))
    corners = 4 * red.astype(np.uint8) + 2 * green.astype(np.uint8) + blue.astype(np.uint8)
    # uint8 wraps round, so this is one comparison for "between threshold - margin and threshold + margin".
    low = np.uint8(_THRESHOLD - _MARGIN + 1)
    unclear = ((colors[..., :3] - low) < np.uint8(2 * _MARGIN)).any(axis=-1)
    unknown = corners == _MAGENTA
    label = _CORNERS[corners]
    if is_eroded and unclear.mean() <= _MAX_SEAM_SHARE:
        label[unclear] = IGNORE_INDEX  # a lossy copy blends a class with the black of the seam beside it
    else:
        unknown |= unclear
    if not is_eroded:
        unknown |= corners == _BLACK
    if unknown.any():
        raise ValueError(_describe_unknown(colors[..., :3][unknown], is_eroded=is_eroded))
    if num_classes == CLUTTER:
        label[label == CLUTTER] = IGNORE_INDEX
    return label


def _describe_unknown(colors: np.ndarray, *, is_eroded: bool) -> str:
    found, counts = np.unique(colors, axis=0, return_counts=True)
    order = np.argsort(-counts)[:_MAX_COLOURS]
    listed = ", ".join(f"({', '.join(map(str, found[index].tolist()))}) in {counts[index]} pixels" for index in order)
    more = f" and {len(found) - len(order)} more" if len(found) > len(order) else ""
    black = "" if is_eroded else "; black occurs in the eroded labels only (--labels eroded)"
    return (
        f"holds colours that are no class: {listed}{more}. The classes are {[list(color) for color in PALETTE]}{black}"
    )


FilesByTile = Mapping[str, list[Path]]


def match_files(contents: FolderContents, pattern: re.Pattern) -> FilesByTile:
    """Files whose whole name matches, by tile; shallow ones first. Tiles are the groups `row`, `column`, or `area`."""
    found: dict[str, list[Path]] = {}
    for path in contents.files:
        match = pattern.fullmatch(path.name)
        if match is not None:
            groups = match.groupdict()
            tile = groups["area"] if "area" in groups else f"{int(groups['row'])}_{int(groups['column'])}"
            found.setdefault(tile, []).append(path)
    return found


def without(tiles: Iterable[str], others: Iterable[str]) -> tuple[str, ...]:
    """Tiles that are none of the others, in their order."""
    return tuple(tile for tile in tiles if tile not in set(others))


def shorten(names: Iterable[str]) -> str:
    """The first few of a list."""
    names = list(names)
    return ", ".join(names[:_MAX_NAMES]) + (", ..." if len(names) > _MAX_NAMES else "")


class IsprsDataset(BenchmarkDataset):
    """Reader of either set: files found by their names, the six colours, and heights that may be a column short."""

    place: ClassVar[str]  # as the outer archive is called
    tile_name: ClassVar[str] = "{}"  # of a scene
    split_tiles: ClassVar[Mapping[str, Mapping[str, Sequence[str]]]]  # by protocol and split
    test_tiles: ClassVar[Sequence[str]]  # those whose labels were withheld at first
    # By column, of the label by kind (`full`, `eroded`): archives that hold it, and what its files are called. Files
    # of each pattern are handed to `files_of`.
    archives: ClassVar[Mapping[str, Sequence[str]]]
    file_names: ClassVar[Mapping[str, str]]
    patterns: ClassVar[Mapping[str, re.Pattern]]

    def __init__(self, options: ConversionOptions | None = None) -> None:
        super().__init__(options)
        self.class_names, self.palette = CLASS_NAMES[: self.choices["classes"]], PALETTE[: self.choices["classes"]]
        both = {LABEL: "full", SCORING_LABEL: "eroded"}
        self.label_kinds = both if self.choices["labels"] == "both" else {LABEL: self.choices["labels"]}
        self.label_columns = tuple(self.label_kinds)

    @abstractmethod
    def files_of(self, tile: str, found: Mapping[str, FilesByTile]) -> dict[str, Path | None]:
        """Path of each column of a tile, from the files of each pattern by tile."""

    def notes(self, scenes: Sequence[Scene], found: Mapping[str, FilesByTile]) -> list[Problem]:
        """What else to say of the scenes that were found."""
        return []

    def find(self, source: Path) -> Survey:
        """Find the files by their names, wherever under `source` they lie."""
        contents = walk_files(source)
        found = {kind: match_files(contents, pattern) for kind, pattern in self.patterns.items()}
        scenes = [
            Scene(self.tile_name.format(tile), split, self.files_of(tile, found))
            for split, tiles in self.split_tiles[self.split].items()
            for tile in tiles
        ]
        if not any(path for scene in scenes for path in scene.files.values()):
            folders = sorted({path.parent.name for path in contents.files})
            there = f"{len(contents.files)} files in {shorten(folders) or 'no folder'}"
            if contents.archives:
                there += f", and packed: {shorten(path.name for path in contents.archives)}"
            reason = f"no file named as {self.file_names[self.modalities[0].name]}; there are {there}"
            remedy = (
                f"Get {self.place}.zip from {self.description.homepage}, unpack it and what is in it, each archive "
                "into a folder of its name, and give the folder that holds them"
            )
            return Survey([], [Problem("missing", f"ISPRS {self.place} in {source}", reason, remedy)])
        present = [scene for scene in scenes if any(scene.files[item.name] for item in self.modalities)]
        return Survey(present, [*self._absent(scenes, contents), *self.notes(present, found)])

    def _absent(self, scenes: Sequence[Scene], contents: FolderContents) -> list[Problem]:
        """What tiles lack, one problem for all that lack the same; labels of test tiles may be withheld."""
        of_test = {self.tile_name.format(tile) for tile in self.test_tiles}
        columns = {item.name: item.name for item in self.modalities} | self.label_kinds
        absent = {key: [scene for scene in scenes if scene.files[name] is None] for name, key in columns.items()}
        problems = []
        for key, unseen in absent.items():
            is_label = key in self.label_kinds.values()
            tiles = [scene.name for scene in unseen if not (is_label and scene.name in of_test)]
            if tiles:
                what = f"{key} labels" if is_label else key
                listed = "all tiles" if len(tiles) == len(scenes) else f"{len(tiles)} tiles ({shorten(tiles)})"
                hint = unpacking_hint(contents.archives, self.archives[key])
                hint = hint or f"Download {' or '.join(self.archives[key])} and unpack it"
                problems.append(Problem("missing", f"{what} of {listed}", f"no file {self.file_names[key]}", hint))
        for column, kind in self.label_kinds.items():
            unlabelled = (scene for scene in absent[kind] if any(scene.files.values()))
            withheld = [scene.name for scene in unlabelled if scene.name in of_test]
            if withheld:
                what = f"{kind} labels of {len(withheld)} test tiles ({shorten(withheld)})"
                reason = f"not there, so these rows have no {column}"
                problems.append(Problem("note", what, reason, f"They are in {self.archives[kind][1]}"))
        return problems

    def card_notes(self) -> Sequence[str]:
        """Which labels were taken."""
        kinds = {"full": "full labels", "eroded": "eroded labels, boundaries between classes are 255"}
        clutter = "clutter is 255 (five-class protocol)" if self.choices["classes"] == 5 else "clutter is a class"
        return [f"`{column}`: {kinds[kind]}; {clutter}" for column, kind in self.label_kinds.items()]

    def read_file(self, scene: Scene, column: str, window: Window) -> np.ndarray:
        """Read a window: label, heights, or an image as it is."""
        if column in self.label_kinds:
            is_eroded = self.label_kinds[column] == "eroded"
            colors = self.stored(scene, column, window)
            return decode_isprs_label(colors, num_classes=self.choices["classes"], is_eroded=is_eroded)
        modality = next(modality for modality in self.modalities if modality.name == column)
        if modality.channels > 1:
            return self.stored(scene, column, window, f"{modality.channels} x {modality.dtype}")
        return self._heights(scene, column, window, modality.dtype)

    def remedy(self, scene: Scene, column: str | None) -> str:
        """Which archive to get again."""
        key = self.label_kinds.get(column, column)
        return f"Unpack {self.archives.get(key, (f'{self.place}.zip',))[0]} again, or download it again"

    def _heights(self, scene: Scene, column: str, window: Window, dtype: str) -> np.ndarray:
        """Heights of a window, (height, width).

        A raster may lack its last column or row, as those of Potsdam's tile 3_13 do. What is not there is NaN in
        float32; 8 bits have no value to spare for "no data", so there the last column is repeated.
        """
        reader, size = self.readers.open(scene.files[column]), self.scene_size(scene)
        if not all(0 <= full - own <= 1 for full, own in zip(size, reader.size, strict=True)):
            raise ValueError(different_size(reader.size, size))
        rows = np.minimum(np.arange(window.top, window.top + window.height), reader.size[0] - 1)
        columns = np.minimum(np.arange(window.left, window.left + window.width), reader.size[1] - 1)
        top, left = int(rows[0]), int(columns[0])
        values = reader.read((top, left, int(rows[-1]) - top + 1, int(columns[-1]) - left + 1))
        if values.shape[2] != 1 or values.dtype != dtype:
            raise ValueError(f"holds {values.shape[2]} band(s) of {values.dtype}, expected one of {dtype}")
        values = values[..., 0][np.ix_(rows - top, columns - left)]
        if dtype == "float32":
            values[reader.size[0] - window.top :] = np.nan
            values[:, reader.size[1] - window.left :] = np.nan
        return values
