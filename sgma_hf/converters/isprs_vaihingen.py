"""ISPRS Vaihingen from the archives as they are handed out: irrg, dsm and labels.

    python dataset_scripts/isprs_vaihingen.py --source /data/Vaihingen --check
    python dataset_scripts/isprs_vaihingen.py --source /data/Vaihingen --out data/vaihingen --labels eroded

`DESCRIPTION` says what is peculiar about the files.
"""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .benchmarks.builder import BenchmarkBuilder
from .benchmarks.command import run_command
from .benchmarks.dataset import (
    LABEL,
    OBSERVED,
    Choice,
    DatasetDescription,
    Modality,
    Problem,
    Scene,
    SplitProtocol,
    Survey,
)
from .benchmarks.source_walk import FolderContents, walk_files
from .isprs import IsprsDataset, absent_files, match_files, nothing_found, shorten
from .isprs_labels import BENCHMARK_CITATION, CLASS_NAMES, LABEL_CHOICES, PALETTE


# torchgeo/torchgeo, torchgeo/datasets/vaihingen.py, and mmsegmentation, tools/dataset_converters/vaihingen.py.
CONTEST_TRAIN = tuple("1 3 5 7 11 13 15 17 21 23 26 28 30 32 34 37".split())
CONTEST_TEST = tuple("2 4 6 8 10 12 14 16 20 22 24 27 29 31 33 35 38".split())
# sstary/SSRS, MFNet/utils.py and CMFNet/trainAndtest.py.
SSRS_TEST = ("5", "21", "15", "30")
SPLIT_TILES = {
    "official": {"train": CONTEST_TRAIN, "test": CONTEST_TEST},
    "mmseg": {"train": CONTEST_TRAIN, "validation": CONTEST_TEST},
    "ssrs": {"train": tuple(tile for tile in CONTEST_TRAIN if tile not in SSRS_TEST), "test": SSRS_TEST},
}

_IRRG = Modality("irrg", 3, "uint8", description="true orthophoto, near infrared, red, green, 0.09 m per pixel")
_DSM = Modality("dsm", 1, "float32", unit="m", nodata=(-9999.0,), description="surface model, absolute height")

DESCRIPTION = DatasetDescription(
    name="isprs_vaihingen",
    title="ISPRS 2D Semantic Labeling: Vaihingen",
    summary="33 tiles of 1281 to 3816 pixels at 0.09 m of the town of Vaihingen an der Enz, Germany: true orthophotos "
    "in near infrared, red and green, a surface model from dense matching, and a class for every pixel.",
    homepage="https://www.isprs.org/education/benchmarks/UrbanSemLab/2d-sem-label-vaihingen.aspx",
    modalities=(_IRRG, _DSM),
    class_names=CLASS_NAMES,
    palette=PALETTE,
    splits={
        "official": SplitProtocol(
            "the benchmark's 16 tiles for participants and its 17 test tiles.",
            "torchgeo/torchgeo, torchgeo/datasets/vaihingen.py",
            {"train": 16, "test": 17},
        ),
        "mmseg": SplitProtocol(
            "as official, with the test tiles called validation.",
            "open-mmlab/mmsegmentation, tools/dataset_converters/vaihingen.py",
            {"train": 16, "validation": 17},
        ),
        "ssrs": SplitProtocol(
            "12 and 4 of the tiles for participants.",
            "sstary/SSRS, MFNet/utils.py (also CMFNet and FTransUNet)",
            {"train": 12, "test": 4},
        ),
    },
    choices={"height": Choice("dsm", "absolute height; the archives hold no other", ("dsm",)), **LABEL_CHOICES},
    class_shares=(0.278, 0.260, 0.213, 0.229, 0.012, 0.008),
    class_shares_source="KushwahaSujal/SATQuery-AI, tests/unit/test_isprs_dataset.py, which decodes all labels",
    default_tile=512,
    facts=(
        ("The bands of the images are near infrared, red, green", "the benchmark's page"),
        ("Images and labels have the same names: an image lies in a folder top, a label does not",
         "torchgeo/torchgeo, tests/data/vaihingen"),
        ("The archive of the eroded labels also holds area 9, which is no tile of the benchmark; it is not used",
         "open-mmlab/mmsegmentation, tools/dataset_converters/vaihingen.py"),
        ("The surface model of area 11 in the archive was found damaged, and a good one lies beside the archive in "
         "some copies: one outside the folder dsm is preferred", OBSERVED),
        ("The surface models have no georeference in the file", OBSERVED),
    ),
    terms="For research only, not to be redistributed, so keep a repository with it private. Publications cite Cramer "
    "(2010) and Rottensteiner et al. (2012) and carry the acknowledgement.",
    citation=BENCHMARK_CITATION
    + """

@article{cramer2010dgpf,
  author  = {Cramer, M.},
  title   = {The {DGPF}-Test on Digital Airborne Camera Evaluation -- Overview and Test Design},
  journal = {Photogrammetrie -- Fernerkundung -- Geoinformation},
  volume  = {2/2010},
  pages   = {73--82},
  year    = {2010}
}""",
    acknowledgement="The Vaihingen data set was provided by the German Society for Photogrammetry, Remote Sensing and "
    "Geoinformation (DGPF) [Cramer, 2010]: http://www.ifp.uni-stuttgart.de/dgpf/DKEP-Allg.html.",
)  # fmt: skip

_PATTERNS = {
    "top": re.compile(r"top_mosaic_09cm_area(?P<area>\d+)\.tiff?", re.IGNORECASE),
    "eroded": re.compile(r"top_mosaic_09cm_area(?P<area>\d+)_no_?Boundary\.tiff?", re.IGNORECASE),
    "dsm": re.compile(r"dsm_09cm_matching_area(?P<area>\d+)\.tiff?", re.IGNORECASE),
}
_BENCHMARK_ARCHIVE = "ISPRS_semantic_labeling_Vaihingen.zip"
_ARCHIVES = {
    "irrg": (_BENCHMARK_ARCHIVE,),
    "dsm": (_BENCHMARK_ARCHIVE,),
    "full": (_BENCHMARK_ARCHIVE, "ISPRS_semantic_labeling_Vaihingen_ground_truth_COMPLETE.zip"),
    "eroded": (
        "ISPRS_semantic_labeling_Vaihingen_ground_truth_eroded_for_participants.zip",
        "ISPRS_semantic_labeling_Vaihingen_ground_truth_eroded_COMPLETE.zip",
    ),
}
_NAMES = {
    "irrg": "top/top_mosaic_09cm_areaN.tif",
    "dsm": "dsm_09cm_matching_areaN.tif",
    "full": "top_mosaic_09cm_areaN.tif outside a folder top",
    "eroded": "top_mosaic_09cm_areaN_noBoundary.tif",
}
_IMAGE_FOLDER = "top"
_DAMAGED_DSM = "11"


class Vaihingen(IsprsDataset):
    """Reader of Vaihingen, see `DESCRIPTION`."""

    description = DESCRIPTION
    file_pattern = re.compile(
        r"(top_mosaic_09cm_area\d+(_no_?Boundary)?|dsm_09cm_matching_area\d+)\.tiff?", re.IGNORECASE
    )

    def find(self, source: Path) -> Survey:
        """Find the files by their names; images by their folder too."""
        contents = walk_files(source)
        found = {kind: match_files(contents, pattern) for kind, pattern in _PATTERNS.items()}
        scenes = [
            Scene(f"area{tile}", split, self._files(tile, found))
            for split, tiles in SPLIT_TILES[self.split].items()
            for tile in tiles
        ]
        if not any(path for scene in scenes for path in scene.files.values()):
            nothing = nothing_found(
                "Vaihingen", source, contents, example="top_mosaic_09cm_area1.tif", homepage=DESCRIPTION.homepage
            )
            return Survey([], [nothing])
        present = [scene for scene in scenes if any(scene.files[item.name] for item in self.modalities)]
        return Survey(present, self._absent(scenes, contents))

    def _files(self, tile: str, found: dict[str, dict[str, list[Path]]]) -> dict[str, Path | None]:
        named_alike = found["top"].get(tile, [])
        images = [path for path in named_alike if path.parent.name.lower() == _IMAGE_FOLDER]
        full = [path for path in named_alike if path not in images]
        heights = found["dsm"].get(tile, [])
        if tile == _DAMAGED_DSM:
            heights = sorted(heights, key=lambda path: path.parent.name.lower() == "dsm")  # others first
        labels = found["eroded"].get(tile, []) if self.is_eroded else full
        return {
            "irrg": images[0] if images else None,
            "dsm": heights[0] if heights else None,
            LABEL: labels[0] if labels else None,
        }

    def _absent(self, scenes: Sequence[Scene], contents: FolderContents) -> list[Problem]:
        problems: list[Problem] = []
        for column in (item.name for item in self.modalities):
            problems += absent_files(
                [scene.name for scene in scenes if scene.files[column] is None],
                of=len(scenes),
                what=column,
                names=_NAMES[column],
                archives=_ARCHIVES[column],
                contents=contents,
            )
        kind = self.choices["labels"]
        unlabelled = [scene.name for scene in scenes if scene.files[LABEL] is None]
        in_test = [scene.name for scene in scenes if scene.name.removeprefix("area") in CONTEST_TEST]
        withheld = [scene.name for scene in scenes if scene.name in unlabelled and any(scene.files.values())]
        withheld = [name for name in withheld if name in in_test]
        problems += absent_files(
            [name for name in unlabelled if name not in in_test],
            of=len(scenes),
            what=f"{kind} labels",
            names=_NAMES[kind],
            archives=_ARCHIVES[kind],
            contents=contents,
        )
        if withheld:
            what = f"{kind} labels of {len(withheld)} test tiles ({shorten(withheld)})"
            reason = "not there, so these rows have no label"
            problems.append(Problem("note", what, reason, f"They are in {_ARCHIVES[kind][1]}"))
        return problems

    def read(self, scene: Scene, column: str, window: tuple[int, int, int, int]) -> np.ndarray | None:
        """Read a window."""
        if column == LABEL:
            return self.label(scene, window)
        if column == "dsm":
            return self.height(scene, column, window, dtype="float32")
        values = self.bands(scene, column, window)
        if values is not None and (values.shape[2] != 3 or values.dtype != np.uint8):
            path = scene.files[column]
            raise ValueError(f"{path}: holds {values.shape[2]} bands of {values.dtype}, expected 3 of uint8")
        return values

    def remedy(self, scene: Scene, column: str | None) -> str:
        """Which archive to get again."""
        archives = _ARCHIVES.get(self.choices["labels"] if column == LABEL else column, (_BENCHMARK_ARCHIVE,))
        return f"Unpack {archives[0]} again, or download it again"


class IsprsVaihingen(BenchmarkBuilder):
    """Builder of Vaihingen: `IsprsVaihingen(data_dir=..., split="official", tile=512)`."""

    reader = Vaihingen


def main(argv: list[str] | None = None) -> int:
    """Command line of Vaihingen; see `benchmark_command`.

    Args:
        argv: Arguments without the program's name; None takes those of the process.
    """
    return run_command(Vaihingen, argv)
