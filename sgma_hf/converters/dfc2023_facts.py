"""What is published about the 2023 IEEE GRSS Data Fusion Contest, and the hold-outs that are ours."""

import dataclasses

from ..visualization.palette import default_palette
from .benchmarks.dataset import OBSERVED, Choice, DatasetDescription, Modality, SplitProtocol


HOMEPAGE = "https://dx.doi.org/10.21227/mrnt-8w27"
_CONTEST = "github.com/AICyberTeam/DFC2023-CodaLab"
_BASELINE = "github.com/AICyberTeam/DFC2023-baseline"
_ANNOTATION_ISSUES = "github.com/ahmad-naghavi-ozu/DFC2023-annotation-issue"
_MM_SAM = "pyscripts/dfc23_setup.py of github.com/weihao1115/mm-sam"
_INCOMPLETE_FUSION = "pretraining/utils/multimodal_dfc2023.py of github.com/Yusin2Chen/incomplete_multimodal_fusion"

# First part of the name of a track's annotation files; `_train.json` and so on follow. Source: OBSERVED.
ANNOTATION_FILES = {1: "roof_fine", 2: "buildings_only"}
# Instances, and tiles without any, of Track 2's training tiles. Source: _ANNOTATION_ISSUES.
ANNOTATION_COUNTS = (125_153, 3)
# Training tiles of Track 2 by city. Source: OBSERVED.
CITY_COUNTS = {
    "Berlin": 566,
    "Brasilia": 246,
    "Copenhagen": 216,
    "Portsmouth": 151,
    "NewDelhi": 131,
    "NewYork": 108,
    "SanDiego": 108,
    "Rio": 93,
    "Barcelona": 90,
    "Sydney": 34,
    "SaoLuis": 30,
}
# Ours: a European and an American city for the test (18 % of Track 2), two others for validation (10 %), and for each
# one of the cities that only Track 1 has.
HELD_OUT_CITIES = {
    "test": ("Copenhagen", "SanDiego", "Suzhou"),
    "validation": ("Portsmouth", "Sydney", "Darwin"),
}
MM_SAM_CITIES = {"test": ("Copenhagen", "Suzhou")}  # Source: _MM_SAM
RANDOM_SHARES = {"train": 0.7, "validation": 0.1, "test": 0.2}  # ours

# Category ids 1 to 12 of Track 1; older code calls 9 pinnacle_roof and 11 dome. Source: track1 of _BASELINE.
ROOF_TYPES = (
    "flat_roof",
    "gable_roof",
    "gambrel_roof",
    "row_roof",
    "multiple_eave_roof",
    "hipped_roof_v1",
    "hipped_roof_v2",
    "mansard_roof",
    "pyramid_roof",
    "arched_roof",
    "revolved",
    "other",
)


# Track 2's tiles per split of `cities`.
_HELD_OUT = {split: sum(CITY_COUNTS.get(city, 0) for city in cities) for split, cities in HELD_OUT_CITIES.items()}
_CITIES = {"train": sum(CITY_COUNTS.values()) - sum(_HELD_OUT.values()), **_HELD_OUT}
_PALETTE = tuple(map(tuple, default_palette(1 + len(ROOF_TYPES))))  # ours: the contest has none
_RGB = Modality("rgb", 3, "uint8", nodata=(0.0,), description="red, green, blue; black where the mosaic ends")
_NDSM = Modality("ndsm", 1, "float32", unit="m", description="height above ground; the contest's dsm")
_SAR = Modality("sar", 1, "float32", unit="dB", description="Gaofen-3 backscatter")
_OURS = "sgma_hf; the contest published labels of its training tiles only"

TRACK_2 = DatasetDescription(
    name="dfc2023",
    title="DFC2023, Track 2: RGB, height and SAR; buildings",
    summary=(
        "2023 IEEE GRSS Data Fusion Contest: 512 x 512 tiles at 0.5 m from cities around the world: optical images of "
        "SuperView-1 and Gaofen-2, SAR of Gaofen-3, heights from stereo, and building footprints drawn as instances. "
        "The label is their union. Row ids begin with the tile's name, which has sensor, city, latitude and longitude."
    ),
    homepage=HOMEPAGE,
    modalities=(_RGB, _NDSM, _SAR),
    class_names=("background", "building"),
    palette=_PALETTE[:2],
    splits={
        "official": SplitProtocol(
            "The contest's; validation and test have neither labels nor heights.",
            f"dfc_track2/data.html of {_CONTEST}",
            {"train": 1773, "validation": 579, "test": 605},
            "Tiles that were not trained on; nobody published whether they are of the cities of the training.",
        ),
        "cities": SplitProtocol(
            "Ours: training tiles only; whole cities are held out (test Copenhagen, SanDiego, on Track 1 also Suzhou; "
            "validation Portsmouth, Sydney, on Track 1 also Darwin).",
            _OURS,
            _CITIES,
            "No tile is of a city that was trained on.",
        ),
        "random": SplitProtocol(
            "Ours: training tiles only, 70 : 10 : 20 by a hash of --split-seed and the tile's name; tiles of one city "
            "are on all sides, so figures are higher than for a new city.",
            _OURS,
            {},
            "Tiles of the cities that were trained on.",
            total=sum(CITY_COUNTS.values()),
        ),
        "mm_sam": SplitProtocol(
            "Training tiles only; Copenhagen (and Suzhou, which only Track 1 has) are the test, there is no "
            "validation: MM-SAM's division of Track 1.",
            _MM_SAM,
            {"train": 1557, "test": 216},
            "No tile is of a city that was trained on.",
        ),
    },
    choices={
        "track": Choice(2, "2: buildings, with heights; 1: roof types, without heights", (2, 1)),
        "sar": Choice("linear", "what the SAR files hold", ("linear", "db")),
        "split_seed": Choice(0, "seed of --split random"),
    },
    facts=(
        (
            "Annotations lie beside train/, heights in dsm/ (in the baseline's README: annotations/, height/).",
            OBSERVED,
        ),
        ("Training tiles are called <SV|GF2>_<city>_<latitude>_<longitude>, the others P_<number>.", OBSERVED),
        ("Labels were published for training tiles only, heights for those of Track 2.", f"dfc_track2 of {_CONTEST}"),
        ("Heights are metres above ground, 0 on two thirds of the pixels, without a nodata value.", OBSERVED),
        ("GF2_NewDelhi_28.5557_77.1194 has a ribbon of 183 m along its border.", OBSERVED),
        ("Twelve scenes contain areas of pure black RGB over height 0; no nodata value says so.", OBSERVED),
        ("SAR values are linear (decibels are derived there as 10 log10(x + 1e-7)).", _INCOMPLETE_FUSION),
        ("Most instances are polygons, some are run lengths, which COCO counts by column.", _ANNOTATION_ISSUES),
        ("Three training tiles have no instance: all background.", _ANNOTATION_ISSUES),
    ),
    terms=(
        "Publications that use the data have to cite '2023 IEEE GRSS Data Fusion Contest. Online: "
        "www.grss-ieee.org/technical-committees/image-analysis-and-data-fusion/' and Huang et al. 2022, and to carry "
        f"the acknowledgement (dfc_track2/terms.html of {_CONTEST})."
    ),
    citation="""@misc{dfc2023,
  title = {2023 {IEEE} {GRSS} Data Fusion Contest},
  author = {Persello, Claudio and H{\\"a}nsch, Ronny and Vivone, Gemine and Chen, Kaiqiang and Yan, Zhiyuan and
            Tang, Deke and Huang, Hai and Schmitt, Michael and Sun, Xian},
  howpublished = {www.grss-ieee.org/technical-committees/image-analysis-and-data-fusion/},
  doi = {10.21227/mrnt-8w27},
  year = {2023}
}
@inproceedings{huang2022ubc,
  title = {Urban Building Classification ({UBC}) -- A Dataset for Individual Building Detection and Classification
           from Satellite Imagery},
  author = {Huang, X. and Ren, L. and Liu, C. and Wang, Y. and Yu, H. and Schmitt, M. and H{\\"a}nsch, R. and Sun, X.
            and Huang, H. and Mayer, H.},
  booktitle = {Proceedings of the IEEE/CVF Conference on Computer Vision and Pattern Recognition Workshops},
  pages = {1413--1421},
  year = {2022}
}""",
    acknowledgement=(
        "The authors would like to thank the IEEE GRSS Image Analysis and Data Fusion Technical Committee, Aerospace "
        "Information Research Institute, Chinese Academy of Sciences, Universität der Bundeswehr München, and GEOVIS "
        "Earth Technology Co., Ltd. for organizing the Data Fusion Contest"
    ),
)

TRACK_1 = dataclasses.replace(
    TRACK_2,
    title="DFC2023, Track 1: RGB and SAR; roof types",
    summary=TRACK_2.summary.replace("SAR of Gaofen-3, heights from stereo, and", "SAR of Gaofen-3, and").replace(
        "The label is their union.", "The label is the type of roof; where instances overlap, the later one wins."
    ),
    modalities=(_RGB, _SAR),
    class_names=("background", *ROOF_TYPES),
    palette=_PALETTE,
    splits={
        "official": dataclasses.replace(
            TRACK_2.splits["official"],
            description="The contest's; validation and test have no labels.",
            source=f"dfc_track1/data.html of {_CONTEST}",
            num_scenes={"train": 3720, "validation": 1549, "test": 1541},
        ),
        "cities": dataclasses.replace(TRACK_2.splits["cities"], num_scenes={}, total=3720),
        "random": dataclasses.replace(TRACK_2.splits["random"], total=3720),
        "mm_sam": dataclasses.replace(TRACK_2.splits["mm_sam"], num_scenes={"train": 2969, "test": 751}),
    },
)
