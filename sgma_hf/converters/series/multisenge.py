"""Turns MultiSenGE (a year of Sentinel-1 and Sentinel-2 over the Grand Est region; land use) into a dataset.

python dataset_scripts/multisenge.py --source MultiSenGE --check
python dataset_scripts/multisenge.py --source MultiSenGE --output data/multisenge --sensors s2
"""

import functools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import numpy as np

from ...data.windows import Window
from ...model.limits_sgma import IGNORE_INDEX
from ..benchmarks.builder import BenchmarkBuilder
from ..benchmarks.command import run_command
from ..benchmarks.dataset import (
    LABEL,
    OBSERVED,
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


_TOOLS = "Patch.py and labels/ of github.com/r-wenger/MultiSenGE-Tools"
_PAPER = "Wenger et al., ISPRS Annals V-3-2022, 635-642"
_STUDY = "Wenger et al., Remote Sensing 15(1), 151, 2023, as others who reach its number of patches divide the tiles"
_HOMEPAGE = "https://zenodo.org/record/6375466"
_REMEDY = f"Get it again from {_HOMEPAGE}"

VALIDATION_TILES, TEST_TILES = ("31UFP", "31UGP"), ("31UEQ",)
CLASSES = {
    "Dense built-up": (165, 0, 38),
    "Sparse built-up": (215, 48, 39),
    "Specialized built-up areas": (158, 1, 130),
    "Specialized but vegetative areas": (221, 120, 190),
    "Large scale networks": (110, 110, 110),
    "Arable lands": (255, 230, 130),
    "Vineyards": (150, 100, 60),
    "Orchards": (230, 150, 60),
    "Grasslands": (180, 225, 110),
    "Groves and hedges": (120, 180, 80),
    "Forests": (20, 110, 45),
    "Open spaces, mineral": (205, 200, 190),
    "Wetlands": (90, 180, 170),
    "Water surfaces": (50, 110, 200),
}
_S2 = Modality(
    "s2",
    10,
    "int16",
    "reflectance x 10000",
    (0.0,),
    "Sentinel-2 L2A: B2, B3, B4, B8, B5, B6, B7, B8A, B11, B12; 0 in all bands is no data",
    series=True,
)
_S1 = Modality("s1", 2, "float32", None, (0.0,), "Sentinel-1 GRD: VV and VH as stored, both orbits", series=True)
_SENSORS = {"s2+s1": ("s2", "s1"), "s2": ("s2",)}
_FILE = re.compile(r"(\d{2}[A-Z]{3})_(?:(\d{8})_(S[12])|(GR))_(\d+)_(\d+)\.tif", re.IGNORECASE)

MULTISENGE = DatasetDescription(
    name="multisenge",
    title="MultiSenGE: a year of Sentinel-1 and Sentinel-2 over the east of France",
    summary=(
        "8,157 patches of 256 x 256 pixels at 10 m, the year 2020, with all clear dates of Sentinel-2 and those of "
        "Sentinel-1, and 14 classes of land use and land cover."
    ),
    homepage=_HOMEPAGE,
    modalities=(_S2, _S1),
    class_names=tuple(CLASSES),
    palette=tuple(CLASSES.values()),
    splits={
        "tiles": SplitProtocol(
            f"Sentinel tiles {', '.join(VALIDATION_TILES)} validate, {TEST_TILES[0]} tests, the others train.",
            _STUDY,
            {},
            "Other tiles of the same region and year; neighbouring tiles overlap at their borders.",
            total=8157,
        )
    },
    choices={
        "sensors": Choice("s2+s1", "columns; rows of Sentinel-1 are large, about 100 dates", tuple(_SENSORS)),
        "s2_dtype": Choice("int16", "type to store Sentinel-2 in, without loss", ("int16", "uint16", "float32")),
    },
    resolution=10.0,
    facts=(
        ("Files are <tile>_<YYYYMMDD>_S2_<x>_<y>.tif, ..._S1_... and <tile>_GR_<x>_<y>.tif.", _TOOLS),
        ("labels/<tile>_<x>_<y>.json lists the images of a patch; some of those are not in the archives.", _TOOLS),
        ("Classes are 1 to 14 in the ground reference; here they are 0 to 13, and other values ignored.", _PAPER),
        ("There is no cloud mask; dates were chosen to be clear.", _PAPER),
        ("The order of Sentinel-2's bands is that of 10 m bands, then of 20 m bands.", OBSERVED),
        ("The colours are ours.", "none are published with the files"),
    ),
    terms="The terms are stated at Zenodo, 10.5281/zenodo.6375466; read them before you hand on what you make.",
    citation="""@article{wenger2022multisenge,
  title = {MultiSenGE: A Multimodal and Multitemporal Benchmark Dataset for Land Use/Land Cover Remote Sensing
           Applications},
  author = {Wenger, Romain and Puissant, Anne and Weber, Jonathan and Idoumghar, Lhassane and Forestier, Germain},
  journal = {ISPRS Annals of the Photogrammetry, Remote Sensing and Spatial Information Sciences},
  volume = {V-3-2022},
  pages = {635--642},
  year = {2022}
}""",
)


def class_ids(stored: np.ndarray) -> np.ndarray:
    """Class ids, uint8 (height, width), of a reference (height, width, 1): 1 to 14 become 0 to 13, others 255."""
    ids = stored[..., 0]
    return np.where((ids >= 1) & (ids <= len(CLASSES)), ids - 1, IGNORE_INDEX).astype(np.uint8)


def stored_as(values: np.ndarray, dtype: str) -> np.ndarray:
    """The same numbers in another type; ValueError if it does not hold them."""
    with np.errstate(invalid="ignore"):
        result = values.astype(dtype)
    if not np.array_equal(result, values, equal_nan=values.dtype.kind == "f"):
        raise ValueError(f"holds {values.dtype} values that {dtype} does not; pass --s2_dtype float32 or uint16")
    return result


class MultisengeReader(BenchmarkDataset):
    """Reader of MultiSenGE."""

    description = MULTISENGE
    file_pattern = _FILE

    def __init__(self, options: ConversionOptions | None = None) -> None:
        super().__init__(options)
        known = {"s2": replace(_S2, dtype=self.choices["s2_dtype"]), "s1": _S1}
        self.modalities = tuple(known[name] for name in _SENSORS[self.choices["sensors"]])

    def find(self, source: Path) -> Survey:
        """Find the patches by the names of all files."""
        contents = walk_files(source.absolute())
        dated: dict[str, dict[str, dict[str, Path]]] = {}  # path by date, by sensor, by patch
        labels: dict[str, Path] = {}
        for match, path in ((_FILE.fullmatch(path.name), path) for path in contents.files):
            if match is not None:
                patch = f"{match[1].upper()}_{match[5]}_{match[6]}"
                if match[4]:
                    labels.setdefault(patch, path)
                else:
                    dated.setdefault(patch, {}).setdefault(match[3].lower(), {}).setdefault(match[2], path)
        if not dated and not labels:
            names = ("s1", "s2", "ground_reference", "labels")
            remedy = unpacking_hint(contents.archives, names) or f"Get it at {_HOMEPAGE}"
            reason = "holds no <tile>_<YYYYMMDD>_S2_<x>_<y>.tif (nor _S1_ and _GR_)"
            return Survey([], [Problem("missing", str(source), reason, remedy)])
        scenes, problems = [], []
        for patch in sorted({*dated, *labels}, key=lambda name: (_split_of(name), name)):
            scene, wrong = self._scene(patch, dated.get(patch, {}), labels.get(patch))
            scenes.append(scene)
            problems += wrong
        absent = self._not_there(contents.files, scenes)
        if absent:
            reason = f"of the images that it lists, {len(absent)} are not there, such as {absent[0]}"
            problems.append(Problem("note", "labels/", reason))
        return Survey(scenes, problems + self.fewer_than_published(scenes, lambda split: _REMEDY))

    def _scene(
        self, patch: str, dated: Mapping[str, Mapping[str, Path]], label: Path | None
    ) -> tuple[Scene, list[Problem]]:
        """A patch with the dates in the names of its files, and what is missing or wrong of it."""
        scene = Scene(patch, _split_of(patch), {LABEL: label})
        problems = []
        for name in (modality.name for modality in self.modalities):
            days = sorted(dated.get(name, {}))
            try:
                scene.dates[name] = tuple(datetime.strptime(day, "%Y%m%d").date().isoformat() for day in days)
            except ValueError as error:
                problems.append(Problem("damaged", f"patch {patch}, {name}", str(error), _REMEDY, scene.key))
            scene.files[name] = tuple(dated[name][day] for day in days) or None
        lacking = [column for column, path in scene.files.items() if path is None]
        if lacking:
            reason = f"has no files for {', '.join(lacking)}"
            problems.append(Problem("missing", f"patch {patch}", reason, _REMEDY, scene.key))
        return scene, problems

    def _not_there(self, files: Sequence[Path], scenes: Sequence[Scene]) -> list[str]:
        """Images of the chosen sensors that the lists of patches name and that are not there."""
        there = {path.name for scene in scenes for path in scene.paths()}
        listed = []
        for path in (path for path in files if path.suffix.lower() == ".json" and path.parent.name == "labels"):
            try:
                content = json.loads(path.read_text(encoding="utf-8"))
                listed += [content[f"corresponding_{modality.name}"] for modality in self.modalities]
            except (ValueError, KeyError, TypeError):
                continue  # it says nothing that the names of the files do not
        return [name for names in listed for name in str(names).split(";") if name and name not in there]

    def scene_size(self, scene: Scene) -> tuple[int, int]:
        """(height, width) of the first of its files."""
        if not scene.paths():
            raise ValueError(f"patch {scene.name} has no files")
        return self.readers.open(scene.paths()[0]).size

    def read_file(self, scene: Scene, column: str, window: Window) -> np.ndarray:
        """Read a window of the ground reference, or of one date."""
        values = self.stored(scene, column, window)
        if column == LABEL:
            return class_ids(values)
        modality = next(item for item in self.modalities if item.name == column)
        if values.shape[2] != modality.channels:
            raise ValueError(f"has {values.shape[2]} bands, expected {modality.channels}")
        return values.astype(np.float32) if column == "s1" else stored_as(values, modality.dtype)


def _split_of(patch: str) -> str:
    """Split of a patch by the Sentinel tile that its name begins with."""
    tile = patch.partition("_")[0]
    return "validation" if tile in VALIDATION_TILES else "test" if tile in TEST_TILES else "train"


class Multisenge(BenchmarkBuilder):
    """Builder of MultiSenGE for the `datasets` library: `Multisenge(data_dir=..., sensors="s2")`."""

    reader = MultisengeReader


main = functools.partial(run_command, MultisengeReader)  # the command line, see `benchmarks.command`
