"""Turns DELIVER (driving scenes in five weathers; RGB, depth, events, lidar) into a dataset.

    python dataset_scripts/deliver.py --source DELIVER --check
    python dataset_scripts/deliver.py --source DELIVER --output data/deliver

Files are found by the components of their paths, whatever lies above them.
"""

import functools
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from ..data.windows import Window
from ..model.limits_sgma import IGNORE_INDEX
from .benchmarks.builder import BenchmarkBuilder
from .benchmarks.command import run_command
from .benchmarks.dataset import (
    LABEL,
    OBSERVED,
    SPLIT_FOLDERS,
    SPLITS,
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
from .benchmarks.source_walk import FolderContents, unpacking_hint, walk_files


_README = "README.md of github.com/jamycheung/DELIVER"
_LOADER = "semseg/datasets/deliver.py of github.com/jamycheung/DELIVER"
_FIGURE = "figs/DELIVER.png of github.com/jamycheung/DELIVER"
_CAFUSER = "cafuser/data/dataset_mappers/deliver_semantic_dataset_mapper.py of github.com/timbroed/CAFuser"
_DGFUSION = "dgfusion/data/dataset_mappers/deliver_semantic_dataset_mapper.py of github.com/timbroed/DGFusion"
_HOMEPAGE = "https://github.com/jamycheung/DELIVER"
_REMEDY = f"Unpack DELIVER.zip again ({_HOMEPAGE})"

CONDITIONS = ("cloud", "fog", "night", "rain", "sun")
CORNER_CASES = ("motionblur", "overexposure", "underexposure", "lidarjitter", "eventlowres")
# Published images per condition (in the order of CONDITIONS), and normal / corner case, per split; source: _FIGURE.
CONDITION_COUNTS = {
    "train": (794, 795, 797, 799, 798),
    "validation": (398, 400, 410, 398, 399),
    "test": (379, 379, 379, 380, 380),
}
NORMAL_AND_CORNER = {"train": (2585, 1398), "validation": (1298, 707), "test": (1198, 699)}

# Names and colours of the train ids; source: _LOADER.
CLASSES = {
    "Building": (70, 70, 70),
    "Fence": (100, 40, 40),
    "Other": (55, 90, 80),
    "Pedestrian": (220, 20, 60),
    "Pole": (153, 153, 153),
    "RoadLine": (157, 234, 50),
    "Road": (128, 64, 128),
    "SideWalk": (244, 35, 232),
    "Vegetation": (107, 142, 35),
    "Cars": (0, 0, 142),
    "Wall": (102, 102, 156),
    "TrafficSign": (220, 220, 0),
    "Sky": (70, 130, 180),
    "Ground": (81, 0, 81),
    "Bridge": (150, 100, 100),
    "RailTrack": (230, 150, 140),
    "GroundRail": (180, 165, 180),
    "TrafficLight": (250, 170, 30),
    "Static": (110, 190, 160),
    "Dynamic": (170, 120, 50),
    "Water": (45, 60, 150),
    "Terrain": (145, 170, 100),
    "TwoWheeler": (0, 0, 230),
    "Bus": (0, 60, 100),
    "Truck": (0, 0, 70),
}

_FRAME_FILE = re.compile(r"(\d+)_(rgb|depth|event|lidar|semantic)_front\.png", re.IGNORECASE)
# Column -> (folder, the word in the file's name).
_FOLDERS = {
    "rgb": ("img", "rgb"),
    "depth": ("hha", "depth"),  # or depth/, whose files are named alike
    "event": ("event", "event"),
    "lidar": ("lidar", "lidar"),
    LABEL: ("semantic", "semantic"),
}
_HHA = Modality("depth", 3, "uint8", description="HHA encoding of the depth, as the published loaders use it")
_RAW_DEPTH = Modality("depth", 1, "uint16", nodata=(0.0,), description="depth as stored; bit depth and unit unstated")

DELIVER = DatasetDescription(
    name="deliver",
    title="DELIVER: RGB, depth, events and lidar in five weathers",
    summary=(
        "Driving scenes from the CARLA simulator: the front view in RGB, depth, event camera and lidar, in five "
        "conditions, with corner cases in which a sensor fails, and 25 classes. Row ids are "
        "`condition/split/scene/frame`; a corner case is part of the scene's name (`MAP_3_point9_motionblur`)."
    ),
    homepage=_HOMEPAGE,
    modalities=(
        Modality("rgb", 3, "uint8", description="red, green, blue"),
        _HHA,
        Modality("event", 3, "uint8", description="polarities in red and blue, green is 0; black where nothing moved"),
        Modality("lidar", 3, "uint8", description="projected points, black between them"),
    ),
    class_names=tuple(CLASSES),
    palette=tuple(CLASSES.values()),
    splits={
        "official": SplitProtocol(
            "The published splits.",
            _FIGURE,
            {"train": 3983, "validation": 2005, "test": 1897},
            "Frames that were not trained on; nobody published whether they are of places of the training.",
        )
    },
    choices={
        "depth": Choice(
            "hha", "what the column `depth` holds: the images of hha/ or those of depth/", ("hha", "depth")
        )
    },
    facts=(
        (
            "Folders are <kind>/<condition>/<split>/<scene>/<frame>_<word>_front.png; hha/ has files called depth.",
            _README,
        ),
        ("Only the front view was released, without instances.", _README),
        ("Frame numbers repeat in other scenes and conditions, so that ids keep the whole path.", OBSERVED),
        ("A corner case is part of the scene's name, as its suffix.", f"{_LOADER}; suffix: {OBSERVED}"),
        ("Frames of a scene are in the order of their numbers; nobody states the time between them.", OBSERVED),
        ("Semantic images are RGBA with the class in the first channel: train id + 1, void is 0 and 255.", _CAFUSER),
        ("Of four channels the first three count; one channel is repeated.", _LOADER),
        ("Events of `eventlowres` scenes are 512 x 512 and resized to the image's 1042 x 1042, nearest.", _CAFUSER),
        ("In depth/ the first channel is the depth and 0 is invalid.", _DGFUSION),
        ("The class Other is evaluated.", f"issue 26 of {_HOMEPAGE}"),
        ("CMNeXt evaluates at 1024 x 1024; rows here keep 1042 x 1042.", "configs/deliver_rgbdel.yaml of the same"),
    ),
    terms=(
        "The repository is under Apache-2.0 and adds: 'For commercial use, please contact the authors'. There is no "
        "separate licence for the data."
    ),
    citation="""@inproceedings{zhang2023delivering,
  title = {Delivering Arbitrary-Modal Semantic Segmentation},
  author = {Zhang, Jiaming and Liu, Ruiping and Shi, Hao and Yang, Kailun and Rei{\\ss}, Simon and Peng, Kunyu and
            Fu, Haodong and Wang, Kaiwei and Stiefelhagen, Rainer},
  booktitle = {Proceedings of the IEEE/CVF Conference on Computer Vision and Pattern Recognition (CVPR)},
  year = {2023},
  note = {arXiv:2303.01480}
}""",
)


def corner_case(scene: str) -> str | None:
    """The corner case in a scene's name, such as `MAP_3_point9_motionblur`; None for a normal one."""
    return next((case for case in CORNER_CASES if case in scene), None)


def train_ids(stored: np.ndarray) -> np.ndarray:
    """Class ids, uint8 (height, width), of a semantic image (height, width, channels): 0..24, and 255 where void."""
    ids = stored[..., 0]
    unknown = np.unique(ids[(ids > len(CLASSES)) & (ids != IGNORE_INDEX)])
    if unknown.size:
        raise ValueError(f"holds the ids {unknown.tolist()}; expected 1 to {len(CLASSES)}, and 0 or 255 for void")
    return np.where(ids == IGNORE_INDEX, np.uint8(0), ids) - np.uint8(1)  # 0 wraps around to 255


def three_channels(values: np.ndarray) -> np.ndarray:
    """Drop a fourth channel, repeat a single one; refuse other numbers, and what is not uint8, as ValueError."""
    if values.dtype != np.uint8 or values.shape[2] not in (1, 3, 4):
        raise ValueError(f"is {values.dtype} with {values.shape[2]} channels; expected uint8 with 1, 3 or 4")
    return np.repeat(values, 3, axis=2) if values.shape[2] == 1 else values[..., :3]


def raw_depth(values: np.ndarray) -> np.ndarray:
    """Depth as stored, uint16 (height, width), of one channel or several that (but alpha) are equal."""
    depth, others = values[..., 0], values[..., 1:3] if values.shape[2] > 2 else values[..., :0]
    if (others != depth[..., None]).any():
        raise ValueError("has channels that differ, so the first is not the depth; use --depth hha")
    if values.dtype.kind not in "iu" or depth.min(initial=0) < 0 or depth.max(initial=0) > np.iinfo(np.uint16).max:
        raise ValueError(f"is {values.dtype} and does not fit into 16 bits")
    return depth.astype(np.uint16)


def nearest_indices(start: int, count: int, *, size: int, own_size: int) -> np.ndarray:
    """Pixels along an axis of `own_size` at the centres of `count` pixels from `start` on of an axis of `size`."""
    return (2 * np.arange(start, start + count) + 1) * own_size // (2 * size)


class DeliverReader(BenchmarkDataset):
    """Reader of DELIVER."""

    description = DELIVER
    file_pattern = _FRAME_FILE
    sequences = True

    def __init__(self, options: ConversionOptions | None = None) -> None:
        super().__init__(options)
        self.folders = {**_FOLDERS, "depth": (self.choices["depth"], "depth")}
        if self.choices["depth"] == "depth":
            self.modalities = tuple(_RAW_DEPTH if item == _HHA else item for item in self.modalities)

    def find(self, source: Path) -> Survey:
        """Find the frames by the last five components of the paths."""
        contents = walk_files(source.absolute())
        found = self._columns_by_frame(contents.files)
        if not found:
            remedy = unpacking_hint(contents.archives, ("DELIVER",)) or f"Get DELIVER from {_HOMEPAGE}"
            reason = "holds no img/<condition>/<split>/<scene>/<frame>_rgb_front.png (nor the other folders)"
            return Survey([], [Problem("missing", str(source), reason, remedy)])
        absent = [column for column in _FOLDERS if not any(column in columns for columns in found.values())]
        problems = [self._absent_folder(source, column, contents) for column in absent]
        scenes = []
        for name in sorted(found, key=lambda name: (list(SPLIT_FOLDERS).index(name.split("/")[1]), name)):
            split = SPLIT_FOLDERS[name.split("/")[1]]
            files = {column: found[name].get(column) for column in _FOLDERS}
            scene = Scene(name, split, files, sequence=name.rpartition("/")[0])
            scenes.append(scene)
            for column in _FOLDERS:
                if column not in found[name] and column not in absent:
                    folder, word = self.folders[column]
                    what = f"{folder}/{name}_{word}_front.png"
                    reason = "is not there, though other files of this frame are"
                    problems.append(Problem("missing", what, reason, _REMEDY, scene.key))
        problems += self.fewer_than_published(scenes, lambda split: _REMEDY)
        return Survey(scenes, problems + _count_notes(scenes))

    def _columns_by_frame(self, files: Iterable[Path]) -> dict[str, dict[str, Path]]:
        """Path by column, by `condition/split/scene/frame`; of copies the shallowest counts."""
        columns = {folder_and_word: column for column, folder_and_word in self.folders.items()}
        found: dict[str, dict[str, Path]] = {}
        for path in files:
            match = _FRAME_FILE.fullmatch(path.name)
            if match is None or len(path.parts) < 5:
                continue
            folder, condition, split, scene = path.parts[-5:-1]
            column = columns.get((folder.lower(), match[2].lower()))
            if column is not None and condition in CONDITIONS and split in SPLIT_FOLDERS:
                found.setdefault(f"{condition}/{split}/{scene}/{match[1]}", {}).setdefault(column, path)
        return found

    def _absent_folder(self, source: Path, column: str, contents: FolderContents) -> Problem:
        folder = self.folders[column][0]
        other = {"hha": "depth", "depth": "hha"}.get(folder)
        remedy = unpacking_hint(contents.archives, ("DELIVER", folder)) or _REMEDY
        if other and any(other in path.parts[-5:-4] for path in contents.files):
            remedy = f"Pass --depth {other} to use {other}/, or unpack DELIVER.zip again ({_HOMEPAGE})"
        return Problem("missing", f"{source}, folder {folder}/", "has no images of this kind at all", remedy)

    def scene_size(self, scene: Scene) -> tuple[int, int]:
        """(height, width) of the RGB image, to which the published loader resizes the events; else of another file."""
        paths = [scene.files[column] for column in ("rgb", LABEL, "depth", "lidar", "event")]
        return self.readers.open(next(path for path in paths if path is not None)).size

    def read_file(self, scene: Scene, column: str, window: Window) -> np.ndarray:
        """Read a window of one image; see the functions of this module for what becomes of its channels."""
        reader, size = self.readers.open(scene.files[column]), self.scene_size(scene)
        is_smaller = reader.size != size and reader.size[0] * size[1] == reader.size[1] * size[0]
        if column == "event" and is_smaller:
            top, left, height, width = window
            rows = nearest_indices(top, height, size=size[0], own_size=reader.size[0])
            columns = nearest_indices(left, width, size=size[1], own_size=reader.size[1])
            values = reader.read((0, 0, *reader.size))[np.ix_(rows, columns)]
        else:
            values = self.stored(scene, column, window)
        if column == LABEL:
            return train_ids(values)
        return raw_depth(values) if column == "depth" and self.choices["depth"] == "depth" else three_channels(values)

    def card_notes(self) -> Sequence[str]:
        """How to evaluate by condition and corner case."""
        return (
            'One condition: `rows.filter(lambda row: row["id"].startswith("night/"))`. '
            'One corner case: `rows.filter(lambda row: "_motionblur/" in row["id"])`.',
            f"The column `depth` holds the images of {self.choices['depth']}/.",
        )


def _count_notes(scenes: Sequence[Scene]) -> list[Problem]:
    """One note per split: frames by condition and by kind, found and published."""
    notes = []
    for split in SPLITS:
        parts = [scene.name.split("/") for scene in scenes if scene.split == split]
        conditions = Counter(part[0] for part in parts)
        corners = sum(corner_case(part[2]) is not None for part in parts)
        published = dict(zip(CONDITIONS, CONDITION_COUNTS[split], strict=True))
        by_condition = ", ".join(f"{name} {conditions[name]} of {count}" for name, count in published.items())
        normal, corner = NORMAL_AND_CORNER[split]
        by_kind = f"normal {len(parts) - corners} of {normal}, corner cases {corners} of {corner}"
        notes.append(Problem("note", f"{split}, found of published", f"{by_condition}; {by_kind}"))
    return notes


class Deliver(BenchmarkBuilder):
    """Builder of DELIVER for the `datasets` library: `Deliver(data_dir=..., depth="hha")`."""

    reader = DeliverReader


main = functools.partial(run_command, DeliverReader)  # the command line, see `benchmarks.command`
