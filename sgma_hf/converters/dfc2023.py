"""Turns the 2023 IEEE GRSS Data Fusion Contest (RGB, height, SAR; buildings) into a dataset.

    python dataset_scripts/dfc2023.py --source DFC23_IEEE-DataPort --split cities --check
    python dataset_scripts/dfc2023.py --source DFC23_IEEE-DataPort --split cities --output data/dfc2023

What the contest published is in `dfc2023_facts`; which rows are labelled and held out is decided here.
"""

import functools
import hashlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ..data.windows import Window
from ..model.image_transforms_sgma import valid_pixels
from ..rasters.files import read_info
from . import dfc2023_facts as facts
from .benchmarks.builder import BenchmarkBuilder
from .benchmarks.command import run_command
from .benchmarks.dataset import (
    LABEL,
    SPLIT_FOLDERS,
    SPLITS,
    BenchmarkDataset,
    ConversionOptions,
    Problem,
    Scene,
    Survey,
)
from .benchmarks.source_walk import FolderContents, unpacking_hint, walk_files
from .coco_masks import CocoImage, read_annotations


# The contest's `dsm` holds heights above ground. Its column is called what it is: a processor measures what is called
# `dsm` from the lowest point of a window, and a roof that fills the window would become ground.
_COLUMN_OF_FOLDER = {"rgb": "rgb", "sar": "sar", "dsm": "ndsm", "height": "ndsm", "ndsm": "ndsm"}
_PUBLISHED_FOLDER = {"rgb": "rgb", "sar": "sar", "ndsm": "dsm"}
_TEST_FOLDER = re.compile(r"track_?[12]_test_data", re.IGNORECASE)
_TRACK = re.compile(r"track_?([12])", re.IGNORECASE)

_Tiles = dict[str, dict[str, dict[str, Path]]]  # path by column, by stem, by the contest's split


def sensor_and_city(stem: str) -> tuple[str, str] | None:
    """Optical sensor and city in a name such as `SV_NewYork_40.7387_-73.9989`; None for others, as `P_0420`."""
    match = re.fullmatch(r"(SV|GF2)_([A-Za-z]+)_-?[\d.]+_-?[\d.]+", stem)
    return (match[1], match[2]) if match else None


def random_split(stem: str, seed: int) -> str:
    """Split of a tile under `--split random`: a function of the seed and the name, whatever other tiles there are."""
    digest = hashlib.sha256(f"{seed}:{stem}".encode()).digest()
    draw = int.from_bytes(digest[:8], "big") / 2**64
    for split, share in facts.RANDOM_SHARES.items():
        draw -= share
        if draw < 0:
            return split
    return "test"


def to_decibels(power: np.ndarray, nodata: float | None = None) -> np.ndarray:
    """Linear backscatter in decibels, 10 log10(power), float32.

    What is not positive has no logarithm, and like nodata becomes NaN: no data. If most values are negative, the file
    holds decibels already: a ValueError.
    """
    values = power.astype(np.float64)
    valid = valid_pixels(values, [] if nodata is None else [nodata])
    if (values[valid] < 0).sum() * 2 > valid.sum():
        raise ValueError("holds mostly negative values, so no linear power. Pass --sar db if these are decibels")
    valid &= values > 0
    decibels = np.full(values.shape, np.nan, dtype=np.float32)
    decibels[valid] = 10 * np.log10(values[valid])
    return decibels


class Dfc2023Reader(BenchmarkDataset):
    """Reader of either track of DFC2023."""

    description = facts.TRACK_2
    file_pattern = re.compile(r"(SV_.+|GF2_.+|P_?\d{4})\.tiff?", re.IGNORECASE)

    def __init__(self, options: ConversionOptions | None = None) -> None:
        self.track = int((options or ConversionOptions()).choices.get("track", 2))
        if self.track == 1:
            self.description = facts.TRACK_1
        self._drawn: tuple[str, np.ndarray] | None = None  # the last scene and its label
        super().__init__(options)

    def find(self, source: Path) -> Survey:
        """Find the tiles in the layout of the archives or of the baseline's README, and their annotations."""
        contents = walk_files(source.absolute())
        tiles = self._find_tiles(contents)
        if not any(tiles.values()):
            archives = ("DFC23_IEEE-DataPort", f"track{self.track}")
            remedy = unpacking_hint(contents.archives, archives) or f"Get the archives from {facts.HOMEPAGE}"
            reason = f"holds no track{self.track}/train/rgb/*.tif, nor any other tiles of Track {self.track}"
            return Survey([], [Problem("missing", str(source), reason, remedy)])
        scenes: list[Scene] = []
        problems: list[Problem] = []
        for part in SPLIT_FOLDERS if self.split == "official" else ("train",):
            labels, label_file, damaged = self._find_labels(contents, part)
            found, unknown = self._scenes_of(part, tiles[part], labels, label_file)
            scenes += found
            problems += [*damaged, *unknown, *self._absent_files(part, found)]
            if labels:
                instances = sum(len(image.annotations) for image in labels.values())
                empty = sum(not image.annotations for image in labels.values())
                reason = f"{instances} instances; {empty} tiles without one, which are all background"
                if self.track == 2 and part == "train":
                    reason += " (published: {} and {})".format(*facts.ANNOTATION_COUNTS)
                problems.append(Problem("note", f"{part} annotations", reason))
        problems += self.fewer_than_published(scenes, lambda split: self._archive_hint(split, contents))
        problems += self._notes(scenes, tiles["train"])
        return Survey(sorted(scenes, key=lambda scene: SPLITS.index(scene.split)), problems)

    def _find_tiles(self, contents: FolderContents) -> _Tiles:
        """Tiles of this track; where a folder's name does not tell the track, the annotation files beside it do."""
        annotated = {}
        for path in contents.files:
            track = next((track for track, stem in facts.ANNOTATION_FILES.items() if path.name.startswith(stem)), None)
            if track is not None and path.suffix == ".json":
                root = path.parents[1] if path.parent.name == "annotations" else path.parent
                annotated.setdefault(root, set()).add(track)
        tiles: _Tiles = {part: {} for part in SPLIT_FOLDERS}
        for path in contents.files:
            if path.suffix.lower() not in (".tif", ".tiff") or len(path.parts) < 4:
                continue
            column = _COLUMN_OF_FOLDER.get(path.parts[-2].lower())
            part = "test" if _TEST_FOLDER.fullmatch(path.parts[-3]) else path.parts[-3].lower()
            if column is None or part not in tiles:
                continue
            track = _track_of(path.parents[1])
            tracks = {track} if track is not None else annotated.get(path.parents[2], {self.track})
            if self.track in tracks:
                tiles[part].setdefault(path.stem, {}).setdefault(column, path)
        return tiles

    def _find_labels(
        self, contents: FolderContents, part: str
    ) -> tuple[Mapping[str, CocoImage], Path | None, list[Problem]]:
        """Annotations of a part by stem, their file, and what is wrong; a corrected file goes before others."""
        stem = f"{facts.ANNOTATION_FILES[self.track]}_{part}"
        files = [path for path in contents.files if path.name.startswith(stem) and path.suffix == ".json"]
        problems = []
        for path in sorted(files, key=lambda path: "corrected" not in path.name):
            if _track_of(path.parent) not in (None, self.track):
                continue
            try:
                labels = read_annotations(path)
            except (ValueError, OSError) as error:
                reason = str(error).removeprefix(f"{path} ")
                problems.append(Problem("damaged", str(path), reason, self._remedy))
                continue
            if labels is not None:
                return labels, path, problems
        if part == "train":
            reason = "cannot be read" if problems else "is nowhere below --source (nor in annotations/)"
            reason += ", so the training tiles have no labels"
            problems.append(Problem("missing", f"{stem}.json", reason, self._remedy))
        return {}, None, problems

    @property
    def _remedy(self) -> str:
        return f"Unpack track{self.track}.zip again ({facts.HOMEPAGE})"

    def _archive_hint(self, split: str, contents: FolderContents) -> str:
        """Which archive holds the tiles of a split, or what to do without it."""
        is_test_data = self.split == "official" and split == "test"
        archive = f"track{self.track}_test_data" if is_test_data else f"track{self.track}"
        hint = unpacking_hint(contents.archives, (archive,)) or f"Get {archive}.zip from {facts.HOMEPAGE}"
        if self.split == "official" and split != "train":
            hint += "; or choose --split cities or random, which need the training tiles alone"
        return hint

    def _split_of(self, stem: str, part: str) -> str | None:
        """Split of a tile; None if its name lacks what the protocol needs."""
        if self.split == "official":
            return SPLIT_FOLDERS[part]
        if self.split == "random":
            return random_split(stem, int(self.choices["split_seed"]))
        place = sensor_and_city(stem)
        if place is None:
            return None
        held_out = facts.MM_SAM_CITIES if self.split == "mm_sam" else facts.HELD_OUT_CITIES
        return next((split for split, cities in held_out.items() if place[1] in cities), "train")

    def _scenes_of(
        self,
        part: str,
        tiles: Mapping[str, Mapping[str, Path]],
        labels: Mapping[str, CocoImage],
        label_file: Path | None,
    ) -> tuple[list[Scene], list[Problem]]:
        """Scenes of one of the contest's parts, and tiles that are unknown to the annotations or to the protocol."""
        scenes, problems = [], []
        for stem, files in sorted(tiles.items()):
            split, image = self._split_of(stem, part), labels.get(stem)
            if split is None:
                reason = f"has no city in its name, which --split {self.split} needs"
                problems.append(Problem("damaged", stem, reason, "Use --split random", f"train/{stem}"))
                split = "train"
            elif labels and image is None:
                reason = f"is not among the images of {label_file}, so nobody knows its buildings"
                problems.append(Problem("missing", stem, reason, self._remedy, f"{split}/{stem}"))
            columns = {modality.name: files.get(modality.name) for modality in self.modalities}
            scenes.append(Scene(stem, split, {**columns, LABEL: label_file if image else None}, image))
        unseen = sorted(set(labels) - set(tiles))
        if tiles and unseen:
            reason = f"{len(unseen)} of its images have no file, such as {unseen[0]}.tif"
            problems.append(Problem("missing", str(label_file), reason, self._remedy))
        return scenes, problems

    def _absent_files(self, part: str, scenes: Sequence[Scene]) -> list[Problem]:
        """Modalities that a part lacks altogether, and tiles that lack one the others have."""
        problems = []
        for name in (modality.name for modality in self.modalities):
            folder = f"{part}/{_PUBLISHED_FOLDER[name]}/"
            lacking = [scene for scene in scenes if scene.files[name] is None]
            if len(lacking) < len(scenes):
                for scene in lacking:
                    what, reason = f"{folder}{scene.name}.tif", "is not there, though others of this tile are"
                    problems.append(Problem("missing", what, reason, self._remedy, scene.key))
            elif scenes and (part == "train" or name != "ndsm"):  # heights of val and test are not public
                problems.append(Problem("missing", folder, "has no tiles at all", self._remedy))
        return problems

    def _notes(self, scenes: Sequence[Scene], tiles: Mapping[str, Mapping[str, Path]]) -> list[Problem]:
        """Training tiles by city, found and published, and what is null because the contest keeps it."""
        problems = []
        cities = Counter(place[1] for place in map(sensor_and_city, tiles) if place is not None)
        if self.track == 2 and cities:
            published = facts.CITY_COUNTS | dict.fromkeys(sorted(set(cities) - set(facts.CITY_COUNTS)), 0)
            by_city = ", ".join(f"{city} {cities[city]} of {count}" for city, count in published.items())
            problems.append(Problem("note", "training tiles by city, found of published", by_city))
        for split in ("validation", "test") if self.split == "official" else ():
            rows = [scene for scene in scenes if scene.split == split]
            for column in ("ndsm", LABEL):
                number = sum(column in scene.files and scene.files[column] is None for scene in rows)
                if number:
                    reason = f"null in {number} of {len(rows)} rows: the contest did not publish it"
                    problems.append(Problem("note", f"{split}, column {column}", reason))
        return problems

    def scene_size(self, scene: Scene) -> tuple[int, int]:
        """(height, width) as the annotations say it, else of the first file."""
        return scene.extra.size if scene.extra is not None else super().scene_size(scene)

    def read_file(self, scene: Scene, column: str, window: Window) -> np.ndarray | None:
        """Read a window: RGB and height as stored, SAR in decibels, the label drawn from its annotations.

        Heights and backscatter are NaN where there is nothing; None if there is nothing anywhere.
        """
        if column == LABEL:
            return self._label(scene)[window.slices]
        if column == "rgb":
            return self.stored(scene, column, window, "3 x uint8")
        values = self.stored(scene, column, window, "1 x float32")[..., 0]
        nodata = next(iter(read_info(scene.files[column]).nodata), None)
        if column == "sar" and self.choices["sar"] == "linear":
            values = to_decibels(values, nodata)
        else:
            values = np.where(valid_pixels(values, [] if nodata is None else [nodata]), values, np.float32(np.nan))
        return values if np.isfinite(values).any() else None

    def _label(self, scene: Scene) -> np.ndarray:
        """The whole label; the last one is kept, as strips of a scene come in sequence."""
        if self._drawn is None or self._drawn[0] != scene.name:
            classes = {category: 1 if self.track == 2 else category for category in range(1, 13)}
            try:
                label = scene.extra.label(classes)
            except ValueError as error:
                raise ValueError(f"{scene.name}: {error}") from error
            self._drawn = (scene.name, label)
        return self._drawn[1]

    def card_notes(self) -> Sequence[str]:
        """What is null, what is a hole, and whose the splits are."""
        notes = ["SAR is in dB, 10 log10 of the files' linear values; NaN where they are not positive."]
        if self.choices["sar"] == "db":
            notes = ["SAR is as in the files, taken to be dB."]
        if self.split == "official":
            columns = "`label` and `ndsm`" if self.track == 2 else "`label`"
            notes.append(
                f"The contest never published labels or heights of its validation and test tiles: {columns} are null "
                "in those rows. To train and evaluate, convert with `--split cities` or `--split random`."
            )
        elif self.split != "mm_sam":
            seed = f", seed {self.choices['split_seed']}" if self.split == "random" else ""
            notes.append(
                f"The split `{self.split}`{seed} divides the contest's training tiles. It is sgma_hf's own, neither "
                "the contest's nor any paper's."
            )
        return tuple(notes)


def _track_of(folder: Path) -> int | None:
    """Track that the nearest folder with `track` in its name belongs to."""
    matches = (_TRACK.search(part) for part in reversed(folder.parts))
    return next((int(match[1]) for match in matches if match), None)


class Dfc2023(BenchmarkBuilder):
    """Builder of DFC2023 for the `datasets` library: `Dfc2023(data_dir=..., split="cities")`."""

    reader = Dfc2023Reader


main = functools.partial(run_command, Dfc2023Reader)  # the command line, see `benchmarks.command`
