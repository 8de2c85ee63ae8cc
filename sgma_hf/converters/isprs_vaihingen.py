"""ISPRS Vaihingen from the archives as they are handed out: irrg, dsm and labels.

    python dataset_scripts/isprs_vaihingen.py --source /data/Vaihingen --check
    python dataset_scripts/isprs_vaihingen.py --source /data/Vaihingen --output data/vaihingen --labels eroded

`DESCRIPTION` says what is peculiar about the files.
"""

import functools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from .benchmarks.builder import BenchmarkBuilder
from .benchmarks.command import run_command
from .benchmarks.dataset import OBSERVED, Choice, DatasetDescription, Modality, SplitProtocol
from .isprs import (
    BENCHMARK_CITATION,
    CLASS_NAMES,
    LABEL_CHOICES,
    PALETTE,
    SAME_FLIGHT,
    FilesByTile,
    IsprsDataset,
    without,
)


# torchgeo/torchgeo, torchgeo/datasets/vaihingen.py, and mmsegmentation, tools/dataset_converters/vaihingen.py.
CONTEST_TRAIN = tuple("1 3 5 7 11 13 15 17 21 23 26 28 30 32 34 37".split())
CONTEST_TEST = tuple("2 4 6 8 10 12 14 16 20 22 24 27 29 31 33 35 38".split())
# sstary/SSRS, MFNet/utils.py and CMFNet/trainAndtest.py.
SSRS_TEST = ("5", "21", "15", "30")
SPLIT_TILES = {
    "official": {"train": CONTEST_TRAIN, "test": CONTEST_TEST},
    "mmseg": {"train": CONTEST_TRAIN, "validation": CONTEST_TEST},
    "ssrs": {"train": without(CONTEST_TRAIN, SSRS_TEST), "test": SSRS_TEST},
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
            SAME_FLIGHT,
        ),
        "mmseg": SplitProtocol(
            "as official, with the test tiles called validation.",
            "open-mmlab/mmsegmentation, tools/dataset_converters/vaihingen.py",
            {"train": 16, "validation": 17},
            SAME_FLIGHT,
        ),
        "ssrs": SplitProtocol(
            "12 and 4 of the tiles for participants.",
            "sstary/SSRS, MFNet/utils.py (also CMFNet and FTransUNet)",
            {"train": 12, "test": 4},
            SAME_FLIGHT,
        ),
    },
    choices={"height": Choice("dsm", "absolute height; the archives hold no other", ("dsm",)), **LABEL_CHOICES},
    class_shares=(0.278, 0.260, 0.213, 0.229, 0.012, 0.008),
    class_shares_source="KushwahaSujal/SATQuery-AI, tests/unit/test_isprs_dataset.py, which decodes all labels",
    resolution=0.09,
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

_BENCHMARK_ARCHIVE = "ISPRS_semantic_labeling_Vaihingen.zip"


class Vaihingen(IsprsDataset):
    """Reader of Vaihingen, see `DESCRIPTION`."""

    description = DESCRIPTION
    file_pattern = re.compile(
        r"(top_mosaic_09cm_area\d+(_no_?Boundary)?|dsm_09cm_matching_area\d+)\.tiff?", re.IGNORECASE
    )
    place = "Vaihingen"
    tile_name = "area{}"
    split_tiles = SPLIT_TILES
    test_tiles = CONTEST_TEST
    patterns: ClassVar = {
        "top": re.compile(r"top_mosaic_09cm_area(?P<area>\d+)\.tiff?", re.IGNORECASE),
        "eroded": re.compile(r"top_mosaic_09cm_area(?P<area>\d+)_no_?Boundary\.tiff?", re.IGNORECASE),
        "dsm": re.compile(r"dsm_09cm_matching_area(?P<area>\d+)\.tiff?", re.IGNORECASE),
    }
    archives: ClassVar = {
        "irrg": (_BENCHMARK_ARCHIVE,),
        "dsm": (_BENCHMARK_ARCHIVE,),
        "full": (_BENCHMARK_ARCHIVE, "ISPRS_semantic_labeling_Vaihingen_ground_truth_COMPLETE.zip"),
        "eroded": (
            "ISPRS_semantic_labeling_Vaihingen_ground_truth_eroded_for_participants.zip",
            "ISPRS_semantic_labeling_Vaihingen_ground_truth_eroded_COMPLETE.zip",
        ),
    }
    file_names: ClassVar = {
        "irrg": "top/top_mosaic_09cm_areaN.tif",
        "dsm": "dsm_09cm_matching_areaN.tif",
        "full": "top_mosaic_09cm_areaN.tif outside a folder top",
        "eroded": "top_mosaic_09cm_areaN_noBoundary.tif",
    }

    def files_of(self, tile: str, found: Mapping[str, FilesByTile]) -> dict[str, Path | None]:
        """Images and labels of the same name are told apart by their folder."""
        named = found["top"].get(tile, [])
        images = [path for path in named if path.parent.name.lower() == "top"]
        labels = {"full": [path for path in named if path not in images], "eroded": found["eroded"].get(tile, [])}
        heights = found["dsm"].get(tile, [])
        if tile == "11":  # the one in the folder dsm was found damaged
            heights = sorted(heights, key=lambda path: path.parent.name.lower() == "dsm")
        columns = {"irrg": images, "dsm": heights}
        columns |= {column: labels[kind] for column, kind in self.label_kinds.items()}
        return {column: paths[0] if paths else None for column, paths in columns.items()}


class IsprsVaihingen(BenchmarkBuilder):
    """Builder of Vaihingen: `IsprsVaihingen(data_dir=..., split="official", tile=512)`."""

    reader = Vaihingen


main = functools.partial(run_command, Vaihingen)  # the command line, see `benchmarks.command`
