"""ISPRS Potsdam from the archives as they are handed out: rgb, nir, ndsm or dsm, and labels.

    python dataset_scripts/isprs_potsdam.py --source /data/Potsdam --check
    python dataset_scripts/isprs_potsdam.py --source /data/Potsdam --output data/potsdam --height ndsm --split official

`DESCRIPTION` says what is peculiar about the files.
"""

import functools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np

from ..data.windows import Window
from .benchmarks.builder import BenchmarkBuilder
from .benchmarks.command import run_command
from .benchmarks.dataset import (
    LABEL,
    OBSERVED,
    Choice,
    ConversionOptions,
    DatasetDescription,
    Modality,
    Problem,
    Scene,
    SplitProtocol,
)
from .isprs import (
    BENCHMARK_CITATION,
    CLASS_NAMES,
    HOMEPAGE,
    LABEL_CHOICES,
    PALETTE,
    SAME_FLIGHT,
    FilesByTile,
    IsprsDataset,
    shorten,
    without,
)


# torchgeo/torchgeo, torchgeo/datasets/potsdam.py, and mmsegmentation, tools/dataset_converters/potsdam.py.
CONTEST_TRAIN = (
    *"2_10 2_11 2_12 3_10 3_11 3_12 4_10 4_11 4_12 5_10 5_11 5_12".split(),
    *"6_7 6_8 6_9 6_10 6_11 6_12 7_7 7_8 7_9 7_10 7_11 7_12".split(),
)
CONTEST_TEST = tuple("2_13 2_14 3_13 3_14 4_13 4_14 4_15 5_13 5_14 5_15 6_13 6_14 6_15 7_13".split())
# sstary/SSRS, MFNet/utils.py and CMFNet/trainAndtest.py.
SSRS_TEST = ("4_10", "5_11", "2_11", "3_10", "6_11", "7_12")
# Sherrah, "Fully Convolutional Networks for Dense Semantic Labelling", arXiv:1606.02585.
SHERRAH_VALIDATION = ("2_11", "2_12", "4_10", "5_11", "6_7", "7_10", "7_8")
# WangLibo1995/GeoSeg (UNetFormer): 7_10, whose labels are wrong, is left out and 2_10 validates.
SPLIT_TILES = {
    "official": {"train": CONTEST_TRAIN, "test": CONTEST_TEST},
    "mmseg": {"train": CONTEST_TRAIN, "validation": CONTEST_TEST},
    "geoseg": {
        "train": without(CONTEST_TRAIN, ("7_10", "2_10")),
        "validation": ("2_10",),
        "test": CONTEST_TEST,
    },
    "ssrs": {"train": without(CONTEST_TRAIN, SSRS_TEST), "test": SSRS_TEST},
    "sherrah": {
        "train": without(CONTEST_TRAIN, SHERRAH_VALIDATION),
        "validation": SHERRAH_VALIDATION,
        "test": CONTEST_TEST,
    },
}

_RGB = Modality("rgb", 3, "uint8", description="orthophoto, red, green, blue, 0.05 m per pixel")
_NIR = Modality("nir", 1, "uint8", description="orthophoto, near infrared, 0.05 m per pixel")
_NDSM = Modality(
    "ndsm",
    1,
    "uint8",
    unit="dm",
    description="height above ground in decimetres, 255 is 25.5 m or more; made by lastools, not checked for quality",
)
_DSM = Modality("dsm", 1, "float32", unit="m", nodata=(-9999.0,), description="surface model, absolute height")

_SAT = "KushwahaSujal/SATQuery-AI, tests/unit/test_isprs_dataset.py, which decodes all labels"
DESCRIPTION = DatasetDescription(
    name="isprs_potsdam",
    title="ISPRS 2D Semantic Labeling: Potsdam",
    summary="38 tiles of 6000 x 6000 pixels at 0.05 m of the city of Potsdam, Germany: true orthophotos in red, "
    "green, blue and near infrared, a surface model from dense matching, and a class for every pixel.",
    homepage="https://www.isprs.org/education/benchmarks/UrbanSemLab/2d-sem-label-potsdam.aspx",
    modalities=(_RGB, _NIR, _NDSM, _DSM),
    class_names=CLASS_NAMES,
    palette=PALETTE,
    splits={
        "official": SplitProtocol(
            "the benchmark's 24 tiles for participants and its 14 test tiles.",
            "torchgeo/torchgeo, torchgeo/datasets/potsdam.py",
            {"train": 24, "test": 14},
            SAME_FLIGHT,
        ),
        "mmseg": SplitProtocol(
            "as official, with the test tiles called validation.",
            "open-mmlab/mmsegmentation, tools/dataset_converters/potsdam.py",
            {"train": 24, "validation": 14},
            SAME_FLIGHT,
        ),
        "geoseg": SplitProtocol(
            "as official without 7_10, and 2_10 validates.",
            "WangLibo1995/GeoSeg, README.md (UNetFormer, doi 10.1016/j.isprsjprs.2022.06.008)",
            {"train": 22, "validation": 1, "test": 14},
            SAME_FLIGHT,
        ),
        "ssrs": SplitProtocol(
            "18 and 6 of the tiles for participants.",
            "sstary/SSRS, MFNet/utils.py (also CMFNet and FTransUNet)",
            {"train": 18, "test": 6},
            SAME_FLIGHT,
        ),
        "sherrah": SplitProtocol(
            "7 of the tiles for participants validate.",
            "Sherrah, arXiv:1606.02585; azavea/raster-vision, research code for Potsdam",
            {"train": 17, "validation": 7, "test": 14},
            SAME_FLIGHT,
        ),
    },
    choices={
        "height": Choice("ndsm", "height above ground (8 bit, dm) or absolute height (float32, m)", ("ndsm", "dsm")),
        **LABEL_CHOICES,
    },
    class_shares=(0.296, 0.257, 0.226, 0.155, 0.018, 0.048),
    class_shares_source=_SAT,
    resolution=0.05,
    default_tile=512,
    facts=(
        ("Names of images and labels are not padded (top_potsdam_2_10_RGB.tif), those of heights are "
         "(dsm_potsdam_02_10.tif); copies with either are read", "azavea/raster-vision, research code for Potsdam"),
        ("The four bands of RGBIR are red, green, blue, near infrared; the file calls the last one alpha, and it is "
         "read as near infrared all the same", "torchgeo/torchgeo, tests/data/potsdam"),
        ("Both heights of tile 3_13 lack the last column: NaN in dsm, the column before repeated in ndsm",
         "azavea/raster-vision, research code for Potsdam"),
        ("The label of 4_12 in 5_Labels_all was compressed with loss (24,850 colours), the one in "
         "5_Labels_for_participants was not: that one is preferred, and every label is decoded by thresholds",
         "torchgeo/torchgeo issue 1727"),
        ("Most cars of label 6_7 are (252, 255, 0) instead of (255, 255, 0); they are read as cars", _SAT),
        ("The annotation of 7_10 is wrong in places; leave it out with --exclude 7_10, or take --split geoseg",
         "WangLibo1995/GeoSeg, README.md"),
        ("With tiles of 512 pixels the official split gives 3456 and 2016 rows, 144 per tile",
         "open-mmlab/mmsegmentation, docs/en/user_guides/2_dataset_prepare.md"),
        ("1_DSM comes as a .rar, which has to be unpacked (unrar, 7z or bsdtar)", OBSERVED),
    ),
    terms="Handed out by ISPRS (WG II/4) for research; no licence text is published, so do not redistribute the data "
    "or anything that contains them, and keep a repository with them private. Publications cite Rottensteiner et al. "
    "(2012) and name the ISPRS benchmark.",
    citation=BENCHMARK_CITATION,
    acknowledgement=f"The Potsdam data set was provided by ISPRS: {HOMEPAGE}",
)  # fmt: skip

_TILE = r"potsdam_0?(?P<row>\d+)_0?(?P<column>\d+)"
_LOSSY_LABEL, _WRONG_LABEL = "4_12", "7_10"


class Potsdam(IsprsDataset):
    """Reader of Potsdam, see `DESCRIPTION`."""

    description = DESCRIPTION
    file_pattern = re.compile(
        r"(top_potsdam_\d+_\d+_(RGB|IRRG|RGBIR|label|label_no_?Boundary)|dsm_potsdam_\d+_\d+(_normalized_\w+)?)"
        r"\.(tiff?|jpe?g|png)",
        re.IGNORECASE,
    )
    place = "Potsdam"
    split_tiles = SPLIT_TILES
    test_tiles = CONTEST_TEST
    patterns: ClassVar = {
        "RGB": re.compile(rf"top_{_TILE}_RGB\.tiff?", re.IGNORECASE),
        "IRRG": re.compile(rf"top_{_TILE}_IRRG\.tiff?", re.IGNORECASE),
        "RGBIR": re.compile(rf"top_{_TILE}_RGBIR\.tiff?", re.IGNORECASE),
        "dsm": re.compile(rf"dsm_{_TILE}\.tiff?", re.IGNORECASE),
        "lastools": re.compile(rf"dsm_{_TILE}_normalized_lastools\.(jpe?g|png|tiff?)", re.IGNORECASE),
        "ownapproach": re.compile(rf"dsm_{_TILE}_normalized_ownapproach\.(jpe?g|png|tiff?)", re.IGNORECASE),
        "full": re.compile(rf"top_{_TILE}_label\.tiff?", re.IGNORECASE),
        "eroded": re.compile(rf"top_{_TILE}_label_no_?Boundary\.tiff?", re.IGNORECASE),
    }
    archives: ClassVar = {
        "rgb": ("4_Ortho_RGBIR.zip", "2_Ortho_RGB.zip"),
        "nir": ("4_Ortho_RGBIR.zip", "3_Ortho_IRRG.zip"),
        "ndsm": ("1_DSM_normalisation.zip",),
        "dsm": ("1_DSM.rar",),
        "full": ("5_Labels_for_participants.zip", "5_Labels_all.zip"),
        "eroded": ("5_Labels_for_participants_no_Boundary.zip", "5_Labels_all_noBoundary.zip"),
    }
    file_names: ClassVar = {
        "rgb": "top_potsdam_R_C_RGBIR.tif or top_potsdam_R_C_RGB.tif",
        "nir": "top_potsdam_R_C_RGBIR.tif or top_potsdam_R_C_IRRG.tif",
        "ndsm": "dsm_potsdam_RR_CC_normalized_lastools.jpg",
        "dsm": "dsm_potsdam_RR_CC.tif",
        "full": "top_potsdam_R_C_label.tif",
        "eroded": "top_potsdam_R_C_label_noBoundary.tif",
    }

    def __init__(self, options: ConversionOptions | None = None) -> None:
        super().__init__(options)
        self.modalities = (_RGB, _NIR, _NDSM if self.choices["height"] == "ndsm" else _DSM)

    def files_of(self, tile: str, found: Mapping[str, FilesByTile]) -> dict[str, Path | None]:
        """Images and heights by preference; the one lossy label from where it is not."""

        def first(*kinds: str) -> Path | None:
            return next((found[kind][tile][0] for kind in kinds if tile in found[kind]), None)

        def label(kind: str) -> Path | None:
            # 5_Labels_all is whole; but its 4_12 is the lossy one.
            paths = found[kind].get(tile, [])
            order = [("participants" in path.parent.name.lower()) != (tile == _LOSSY_LABEL) for path in paths]
            return next((path for _, path in sorted(zip(order, paths, strict=True), key=lambda item: item[0])), None)

        height = self.choices["height"]
        return {
            "rgb": first("RGBIR", "RGB"),
            "nir": first("RGBIR", "IRRG"),
            height: first("lastools", "ownapproach") if height == "ndsm" else first("dsm"),
            **{column: label(kind) for column, kind in self.label_kinds.items()},
        }

    def notes(self, scenes: Sequence[Scene], found: Mapping[str, FilesByTile]) -> list[Problem]:
        """Heights of the other kind, the wrong annotation, the lossy label."""
        notes = []
        named = {scene.name: scene for scene in scenes}
        own = [tile for tile in named if tile not in found["lastools"] and tile in found["ownapproach"]]
        if own and self.choices["height"] == "ndsm":
            notes.append(Problem("note", f"ndsm of {shorten(own)}", "no lastools version, so ownapproach is taken"))
        wrong, lossy = named.get(_WRONG_LABEL), named.get(_LOSSY_LABEL)
        if wrong is not None and wrong.files[LABEL] is not None:
            reason = "the annotation is wrong in places; UNetFormer and others leave the tile out"
            notes.append(Problem("note", "label of 7_10", reason, "--exclude 7_10", wrong.key))
        path = lossy.files[LABEL] if lossy is not None else None
        if path is not None and "participants" not in path.parent.name.lower():
            reason = "this copy was compressed with loss; it is decoded by thresholds"
            remedy = f"{self.archives[self.label_kinds[LABEL]][0]} has a clean one"
            notes.append(Problem("note", str(path), reason, remedy, lossy.key))
        return notes

    def _kind_of(self, path: Path) -> str:
        return next(kind for kind in ("RGBIR", "RGB", "IRRG") if self.patterns[kind].fullmatch(path.name))

    def read_file(self, scene: Scene, column: str, window: Window) -> np.ndarray:
        """Read a window; the RGBIR file gives both rgb and nir."""
        if column not in ("rgb", "nir"):
            return super().read_file(scene, column, window)
        kind = self._kind_of(scene.files[column])
        values = self.stored(scene, column, window, "4 x uint8" if kind == "RGBIR" else "3 x uint8")
        if column == "rgb":
            return values[..., :3]
        return values[..., 3 if kind == "RGBIR" else 0]

    def remedy(self, scene: Scene, column: str | None) -> str:
        """Which archive to get again."""
        if column not in ("rgb", "nir") or scene.files[column] is None:
            return super().remedy(scene, column)
        ending = f"_{self._kind_of(scene.files[column])}.zip"
        archive = next(name for name in self.archives["rgb"] + self.archives["nir"] if name.endswith(ending))
        return f"Unpack {archive} again, or download it again"


class IsprsPotsdam(BenchmarkBuilder):
    """Builder of Potsdam: `IsprsPotsdam(data_dir=..., height="dsm", split="official", tile=512)`."""

    reader = Potsdam


main = functools.partial(run_command, Potsdam)  # the command line, see `benchmarks.command`
