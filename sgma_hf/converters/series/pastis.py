"""Turns PASTIS, PASTIS-R or PASTIS-HD (a year of Sentinel-2, Sentinel-1 and SPOT over French parcels) into a dataset.

python dataset_scripts/pastis.py --source PASTIS-R --check
python dataset_scripts/pastis.py --source PASTIS-R --output data/pastis --fold 1
python dataset_scripts/pastis.py --source PASTIS --output data/pastis_s2 --sensors s2 --fold 1
"""

import ast
import functools
import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from ...data.windows import Window
from ...model.limits_sgma import IGNORE_INDEX
from ..benchmarks.builder import BenchmarkBuilder
from ..benchmarks.command import run_command
from ..benchmarks.dataset import (
    LABEL,
    BenchmarkDataset,
    Choice,
    ConversionOptions,
    DatasetDescription,
    Modality,
    Problem,
    Scene,
    SplitProtocol,
    Survey,
)
from ..benchmarks.source_walk import unpacking_hint, walk_files


_LOADER = "code/dataloader.py of github.com/VSainteuf/pastis-benchmark"
_NAMES = "documentation/label_names.json of github.com/VSainteuf/pastis-benchmark"
_COLORS = "colormap.txt of github.com/VSainteuf/pastis-benchmark"
_FOLDS = "train_semantic.py of github.com/VSainteuf/utae-paps"
_MAESTRO = "PASTIS-HD loader of github.com/IGNF/MAESTRO"
_TORCHGEO = "tests/data/pastis/data.py of github.com/torchgeo/torchgeo"
_HOMEPAGE = "https://github.com/VSainteuf/pastis-benchmark"
_REMEDY = f"Get it again from {_HOMEPAGE}"

# Names of the ids, _NAMES; colours, _COLORS.
CLASSES = {
    "Background": (0, 0, 0),
    "Meadow": (174, 199, 232),
    "Soft winter wheat": (255, 127, 14),
    "Corn": (255, 187, 120),
    "Winter barley": (44, 160, 44),
    "Winter rapeseed": (152, 223, 138),
    "Spring barley": (214, 39, 40),
    "Sunflower": (255, 152, 150),
    "Grapevine": (148, 103, 189),
    "Beet": (197, 176, 213),
    "Winter triticale": (140, 86, 75),
    "Winter durum wheat": (196, 156, 148),
    "Fruits, vegetables, flowers": (227, 119, 194),
    "Potatoes": (247, 182, 210),
    "Leguminous fodder": (127, 127, 127),
    "Soybeans": (199, 199, 199),
    "Orchard": (188, 189, 34),
    "Mixed cereal": (219, 219, 141),
    "Sorghum": (23, 190, 207),
}
VOID = len(CLASSES)  # parcels that are mostly outside the patch, or of another crop
SPOT_PIXELS = 10  # of 1 m along a side of a pixel of 10 m
# Training, validation and test folds of each run; source: _FOLDS.
FOLDS = {run: ([(run - 1 + k) % 5 + 1 for k in range(3)], (run + 2) % 5 + 1, (run + 3) % 5 + 1) for run in range(1, 6)}

_S1 = "VV and VH in dB, and their ratio, from {} orbits"
_MODALITIES = {
    "s2": Modality(
        "s2",
        10,
        "int16",
        "reflectance x 10000",
        (0.0,),
        "Sentinel-2 L2A: B2, B3, B4, B5, B6, B7, B8, B8A, B11, B12; 0 in all bands is outside the swath",
        series=True,
    ),
    "s1a": Modality("s1a", 3, "float32", "dB", (0.0,), _S1.format("ascending"), series=True),
    "s1d": Modality("s1d", 3, "float32", "dB", (0.0,), _S1.format("descending"), series=True),
    "spot": Modality("spot", 3, "uint8", description="SPOT 6, red, green, blue: means of 10 x 10 pixels of 1 m"),
}
_SENSORS = {"s2": ["s2"], "s2+s1": ["s2", "s1a", "s1d"], "s2+s1+spot": ["s2", "s1a", "s1d", "spot"]}
_FILE = re.compile(r"(?:(S2|S1A|S1D|TARGET)_(\d+)\.npy|(SPOT6_RVB_1M00_2019)_(\d+)\.tif)", re.IGNORECASE)
_COLUMNS = {"S2": "s2", "S1A": "s1a", "S1D": "s1d", "TARGET": LABEL, "SPOT6_RVB_1M00_2019": "spot"}
_METADATA = "metadata.geojson"

PASTIS = DatasetDescription(
    name="pastis",
    title="PASTIS: a year of satellite images over agricultural parcels",
    summary=(
        "2,433 patches of 1.28 km in four regions of France, from September 2018 to November 2019: 38 to 61 dates of "
        "Sentinel-2 and, in PASTIS-R, about 70 of Sentinel-1 in each of two orbits, at 10 m; 18 crops and background."
    ),
    homepage=_HOMEPAGE,
    modalities=tuple(_MODALITIES.values()),
    class_names=tuple(CLASSES),
    palette=tuple(CLASSES.values()),
    splits={
        "official": SplitProtocol(
            "Three of five folds train, one validates, one tests, as --fold says; report the mean of all five runs.",
            _FOLDS,
            {},
            "Other patches of the same regions and the same season.",
            total=2433,
        )
    },
    choices={
        "fold": Choice(1, "run of the official five: which folds train, validate and test", tuple(FOLDS)),
        "sensors": Choice("s2+s1", "columns: PASTIS has s2, PASTIS-R s2+s1, PASTIS-HD s2+s1+spot", tuple(_SENSORS)),
    },
    resolution=10.0,
    facts=(
        ("Arrays are (dates, bands, height, width), Sentinel-2 of int16, Sentinel-1 of float16.", _TORCHGEO),
        ("Dates are those of metadata.geojson, in the order of their keys; YYYYMMDD.", _LOADER),
        ("Two acquisitions of one day are two dates. The published loader's table of days has them as one.", _LOADER),
        ("float16 becomes float32, which holds the same numbers.", "IEEE 754"),
        ("The class is the first layer of TARGET; 19, void, is ignored, and background is scored.", _NAMES),
        ("Run k trains on folds k, k + 1, k + 2, validates on the next and tests on the last, cyclically.", _FOLDS),
        ("There is no cloud mask: clouds are in the images.", _LOADER),
        ("SPOT lies in DATA_SPOT/PASTIS_SPOT6_RVB_1M00_2019/, 1 m, of 2019, on no stated day.", _MAESTRO),
    ),
    terms=(
        "The terms are stated where the sets are handed out: zenodo.org/record/5012942 (PASTIS), "
        "zenodo.org/record/5735646 (PASTIS-R), huggingface.co/datasets/IGNF/PASTIS-HD. Read them before you hand on "
        "what you make."
    ),
    citation="""@article{garnot2021panoptic,
  title = {Panoptic Segmentation of Satellite Image Time Series with Convolutional Temporal Attention Networks},
  author = {Sainte Fare Garnot, Vivien and Landrieu, Loic},
  journal = {ICCV},
  year = {2021}
}
@article{garnot2021mmfusion,
  title = {Multi-Modal Temporal Attention Models for Crop Mapping from Satellite Time Series},
  author = {Sainte Fare Garnot, Vivien and Landrieu, Loic and Chehata, Nesrine},
  journal = {ISPRS Journal of Photogrammetry and Remote Sensing},
  year = {2022}
}""",
)


def read_dates(stored: Any) -> tuple[str, ...]:
    """ISO dates of a property such as `{"0": 20180917, "1": 20180922}`, in the order of the keys as numbers.

    Newer versions of the library that wrote the file made text of it.
    """
    if isinstance(stored, str):
        try:
            stored = ast.literal_eval(stored)
        except (ValueError, SyntaxError) as error:
            raise ValueError(f"dates {stored[:40]!r} are no dictionary") from error
    if not isinstance(stored, Mapping):
        raise ValueError(f"dates {str(stored)[:40]!r} are no dictionary")
    try:
        ordered = [str(stored[key]) for key in sorted(stored, key=int)]
        return tuple(datetime.strptime(day, "%Y%m%d").date().isoformat() for day in ordered)
    except ValueError as error:
        raise ValueError(f"dates {str(stored)[:40]!r}: {error}") from error


def class_ids(target: np.ndarray) -> np.ndarray:
    """Class ids, uint8 (height, width), of a target (layers, height, width): its first layer, 255 where it is void."""
    ids = target[0]
    unknown = np.unique(ids[(ids < 0) | (ids > VOID)])
    if unknown.size:
        raise ValueError(f"holds the ids {unknown.tolist()}; expected 0 to {VOID}")
    return np.where(ids == VOID, IGNORE_INDEX, ids).astype(np.uint8)


def block_means(values: np.ndarray, side: int) -> np.ndarray:
    """Means of blocks of `side` x `side` pixels of uint8 (height, width, channels), rounded, halves up."""
    height, width, channels = values.shape
    blocks = values.reshape(height // side, side, width // side, side, channels)
    return ((2 * blocks.sum((1, 3), dtype=np.int64) + side**2) // (2 * side**2)).astype(np.uint8)


class PastisReader(BenchmarkDataset):
    """Reader of PASTIS and what was added to it."""

    description = PASTIS
    file_pattern = _FILE

    def __init__(self, options: ConversionOptions | None = None) -> None:
        super().__init__(options)
        self.modalities = tuple(_MODALITIES[name] for name in _SENSORS[self.choices["sensors"]])

    def find(self, source: Path) -> Survey:
        """Find the patches that metadata.geojson lists."""
        contents = walk_files(source.absolute())
        listing = next((path for path in contents.files if path.name == _METADATA), None)
        if listing is None:
            remedy = unpacking_hint(contents.archives, ("PASTIS", "PASTIS-R", "PASTIS-HD")) or f"Get it at {_HOMEPAGE}"
            return Survey([], [Problem("missing", str(source), f"holds no {_METADATA}", remedy)])
        try:
            patches = [
                feature["properties"] for feature in json.loads(listing.read_text(encoding="utf-8"))["features"]
            ]
            patches = sorted(patches, key=lambda patch: int(patch["ID_PATCH"]))
            splits = [self._split_of(patch) for patch in patches]
            if not patches:
                raise ValueError("it has none")
        except (ValueError, KeyError, TypeError) as error:
            reason = f"is no list of patches with ID_PATCH and Fold ({error})"
            return Survey([], [Problem("damaged", str(listing), reason, _REMEDY)])
        found: dict[int, dict[str, Path]] = {}
        for match, path in ((_FILE.fullmatch(path.name), path) for path in contents.files):
            if match is not None:
                column, number = _COLUMNS[(match[1] or match[3]).upper()], int(match[2] or match[4])
                found.setdefault(number, {}).setdefault(column, path)
        scenes, problems = [], []
        for patch, split in zip(patches, splits, strict=True):
            scene, wrong = self._scene(patch, split, found.get(int(patch["ID_PATCH"]), {}))
            scenes.append(scene)
            problems += wrong
        problems = [*self._absent(source, scenes), *problems]
        return Survey(scenes, problems + self.fewer_than_published(scenes, lambda split: _REMEDY))

    def _split_of(self, patch: Mapping[str, Any]) -> str:
        train, validation, test = FOLDS[int(self.choices["fold"])]
        return {**dict.fromkeys(train, "train"), validation: "validation", test: "test"}[int(patch["Fold"])]

    def _scene(self, patch: Mapping[str, Any], split: str, found: Mapping[str, Path]) -> tuple[Scene, list[Problem]]:
        """A patch with its dates, and what is wrong with these."""
        names = [modality.name for modality in self.modalities]
        scene = Scene(str(int(patch["ID_PATCH"])), split, {name: found.get(name) for name in (*names, LABEL)})
        problems = []
        for name in (modality.name for modality in self.modalities if modality.series):
            key = f"dates-{name.upper()}"
            try:
                scene.dates[name] = read_dates(patch[key])
            except (ValueError, KeyError) as error:
                what, reason = f"{_METADATA}, patch {scene.name}", f"{key}: {error}"
                problems.append(Problem("damaged", what, reason, _REMEDY, scene.key))
        return scene, problems

    def _absent(self, source: Path, scenes: Sequence[Scene]) -> list[Problem]:
        """Columns that are nowhere, and files that some patches lack."""
        problems = []
        for column in (*(modality.name for modality in self.modalities), LABEL):
            lacking = [scene for scene in scenes if scene.files[column] is None]
            if len(lacking) < len(scenes):
                for scene in lacking:
                    reason = f"has no file for `{column}`, though others have"
                    problems.append(Problem("missing", f"patch {scene.name}", reason, _REMEDY, scene.key))
            else:
                there = [name for name, path in scenes[0].files.items() if path is not None]
                others = [key for key, names in _SENSORS.items() if set(names) <= set(there)]
                remedy = f"Choose --sensors {others[-1]} to do without" if others and column != LABEL else _REMEDY
                problems.append(Problem("missing", str(source), f"has no files for `{column}`", remedy))
        return problems

    def scene_size(self, scene: Scene) -> tuple[int, int]:
        """(height, width) of the first array that tells."""
        problem = f"patch {scene.name} has no arrays"
        for path in (path for path in scene.paths() if path.suffix.lower() == ".npy"):
            try:
                return _load(path).shape[-2:]
            except ValueError as error:
                problem = str(error)
        raise ValueError(problem)

    def read_file(self, scene: Scene, column: str, window: Window) -> np.ndarray:
        """Read a window of a target, of all dates of a series, or of SPOT's means."""
        height, width = self.scene_size(scene)
        if column == "spot":
            side = SPOT_PIXELS
            wide = Window(*(side * value for value in window))
            reader = self.readers.open(scene.files[column])
            if reader.size != (side * height, side * width):
                raise ValueError(f"has {reader.size[1]} x {reader.size[0]} pixels, expected {side} for each of 10 m")
            return block_means(reader.read(wide), side)
        values = _load(scene.files[column])
        if values.ndim == 2 or values.shape[-2:] != (height, width):
            raise ValueError(f"is an array of {values.shape}; its patch has {width} x {height} pixels")
        part = values[..., *window.slices]
        if column == LABEL:
            return class_ids(part)
        modality = _MODALITIES[column]
        kinds = ("int16",) if column == "s2" else ("float16", "float32")
        shape = (len(scene.dates[column]), modality.channels)
        if values.ndim != 4 or values.dtype.name not in kinds or values.shape[:2] != shape:
            raise ValueError(
                f"is {values.dtype} of {values.shape}; expected {kinds[0]} of {shape[1]} bands at {shape[0]} dates, "
                f"those that {_METADATA} lists"
            )
        return np.moveaxis(part, 1, -1).astype(modality.dtype)  # (T, H, W, C)

    def card_notes(self) -> Sequence[str]:
        """Which folds these are, and what became of SPOT."""
        train, validation, test = FOLDS[int(self.choices["fold"])]
        notes = [f"Run {self.choices['fold']}: trained on folds {train}, validated on {validation}, tested on {test}."]
        if self.choices["sensors"] == "s2+s1+spot":
            notes.append("SPOT's pixels of 1 m are averaged to the 10 m of the others: its detail is not in the rows.")
        return notes


def _load(path: Path) -> np.ndarray:
    """An array of a file, which is read where it is asked for; ValueError if it is none."""
    try:
        # `datasets` puts a `np.load` of its own into the modules of its builders, which maps no files.
        return np.lib.format.open_memmap(path, mode="r")
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"{path}: is no array ({error})") from error


class Pastis(BenchmarkBuilder):
    """Builder of PASTIS for the `datasets` library: `Pastis(data_dir=..., fold=1)`."""

    reader = PastisReader


main = functools.partial(run_command, PastisReader)  # the command line, see `benchmarks.command`
