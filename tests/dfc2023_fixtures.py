"""Tiny DFC2023 sets in the layouts that are handed out and documented, with everything that trips readers up.

The first tile's annotations use all three encodings, on a mask that is not symmetric.
"""

import json
from pathlib import Path

import numpy as np
from PIL import Image


SIZE = 64
BERLIN = "SV_Berlin_52.4902_13.5090"
DELHI = "GF2_NewDelhi_28.5557_77.1194"
BRASILIA = "GF2_Brasilia_-15.8652_-47.9337"  # negative coordinates
COPENHAGEN = "SV_Copenhagen_55.6761_12.5683"
EMPTY = "SV_Portsmouth_50.8198_-1.0880"  # listed, without an annotation
SYDNEY = "SV_Sydney_-33.8688_151.2093"
TRAIN_STEMS = (BERLIN, DELHI, BRASILIA, COPENHAGEN, EMPTY, SYDNEY)
VAL_STEMS = ("P_0000", "P_0003")  # numbers have gaps
TEST_STEMS = ("P_0420",)

BLOCK_A = (slice(10, 14), slice(20, 30))  # rows, columns of one building
BLOCK_B = (slice(40, 60), slice(3, 8))
ROOF_CATEGORIES = (
    "flat_roof",
    "gable_roof",
    "gambrel_roof",
    "row_roof",
    "multiple_eave_roof",
    "hipped_roof_v1",
    "hipped_roof_v2",
    "mansard_roof",
    "pinnacle_roof",  # as older code calls pyramid_roof: only the id counts
    "arched_roof",
    "dome",
    "other",
)


def rectangle(rows: slice, columns: slice) -> list[int]:
    """Polygon of a block of pixels."""
    return [columns.start, rows.start, columns.stop, rows.start, columns.stop, rows.stop, columns.start, rows.stop]


def block_mask(*blocks) -> np.ndarray:
    """bool (SIZE, SIZE), True in the blocks."""
    mask = np.zeros((SIZE, SIZE), dtype=bool)
    for block in blocks:
        mask[block] = True
    return mask


def runs_of(mask: np.ndarray) -> list[int]:
    """COCO's run lengths: down the columns, zeros first."""
    pixels = mask.T.ravel()
    edges = np.flatnonzero(np.diff(pixels)) + 1
    runs = np.diff([0, *edges, pixels.size]).tolist()
    return [0, *runs] if pixels[0] else runs


def compress(runs: list[int]) -> str:
    """COCO's compressed text of run lengths: five bits per character, differences to the run two before."""
    text = ""
    for index, run in enumerate(runs):
        value = run - runs[index - 2] if index > 2 else run
        while True:
            bits, value = value & 31, value >> 5
            done = value == (-1 if bits & 16 else 0)
            text += chr(48 + bits + (0 if done else 32))
            if done:
                break
    return text


def expected_buildings(stem: str) -> np.ndarray:
    """Label of a training tile: 1 on buildings."""
    blocks = {
        BERLIN: (BLOCK_A, BLOCK_B, (slice(0, 2), slice(50, 64)), (slice(30, 31), slice(30, 40))),
        DELHI: (BLOCK_A,),
        BRASILIA: (BLOCK_B,),
        COPENHAGEN: (BLOCK_A, BLOCK_B),
        EMPTY: (),
        SYDNEY: (BLOCK_B,),
    }[stem]
    return block_mask(*blocks).astype(np.uint8)


def annotations_of(stem: str) -> list[tuple[int, object]]:
    """(category for Track 1, segmentation) of the instances of a training tile."""
    if stem == BERLIN:
        compressed = compress(runs_of(block_mask((slice(30, 31), slice(30, 40)))))
        return [
            (1, [rectangle(*BLOCK_A), rectangle(slice(0, 2), slice(50, 64))]),
            (9, {"size": [SIZE, SIZE], "counts": runs_of(block_mask(BLOCK_B))}),
            (12, {"size": [SIZE, SIZE], "counts": compressed}),
        ]
    blocks = {
        DELHI: [BLOCK_A],
        BRASILIA: [BLOCK_B],
        COPENHAGEN: [BLOCK_A, BLOCK_B],
        SYDNEY: [BLOCK_B],
        "P0011": [BLOCK_A],
    }
    return [(2, [rectangle(*block)]) for block in blocks.get(stem, [])]


def coco_file(stems, *, roofs: bool = False) -> dict:
    """The annotation file of Track 2, or of Track 1."""
    images, annotations = [], []
    for image_id, stem in enumerate(stems):
        images.append({"file_name": f"{stem}.tif", "height": SIZE, "width": SIZE, "id": image_id})
        for category, segmentation in annotations_of(stem):
            annotation = {"id": len(annotations) + 1, "image_id": image_id, "bbox": [0, 0, 1, 1], "area": 1}
            annotation |= {"category_id": category if roofs else 1, "iscrowd": 0, "segmentation": segmentation}
            annotations.append(annotation)
    names = ROOF_CATEGORIES if roofs else ("building",)
    categories = [{"supercategory": "building", "id": index, "name": name} for index, name in enumerate(names, 1)]
    return {"images": images, "annotations": annotations, "categories": categories}


def pixels(stem: str) -> dict[str, np.ndarray]:
    """`rgb`, `sar` (linear) and `ndsm` of a tile, decided by its name."""
    generator = np.random.default_rng(list(stem.encode()))
    rgb = generator.integers(1, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    sar = generator.gamma(1.0, 0.2, (SIZE, SIZE)).astype(np.float32) + np.float32(1e-4)
    ndsm = np.where(generator.random((SIZE, SIZE)) < 0.7, 0, generator.uniform(2, 30, (SIZE, SIZE))).astype(np.float32)
    if stem == BERLIN:
        sar[5, 6] = 0.0  # has no logarithm
        rgb[:3] = 0  # the mosaic ends here
    return {"rgb": rgb, "sar": sar, "ndsm": ndsm}


def write_tile(folder: Path, stem: str, columns: dict[str, str]) -> None:
    """Write a tile's files; `columns` has the folder of each of `rgb`, `sar`, `ndsm` that there is."""
    for name, array in pixels(stem).items():
        if name in columns:
            path = folder / columns[name] / f"{stem}.tif"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(path)


def write_json(path: Path, content: dict) -> None:
    """Write a JSON file and its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def write_shipped(root: Path) -> Path:
    """The layout of the archives: `DFC23_IEEE-DataPort/`, Track 1 and 2, test data in folders of their own.

    Returns:
        The folder that a user would name.
    """
    base = root / "DFC23_IEEE-DataPort"
    both, optical = {"rgb": "rgb", "sar": "sar"}, {"rgb": "rgb", "sar": "sar", "ndsm": "dsm"}
    for stem in TRAIN_STEMS:
        write_tile(base / "track2" / "train", stem, optical)
    for stem in (BERLIN, EMPTY, "SV_Suzhou_31.2990_120.5853"):
        write_tile(base / "track1" / "train", stem, both)
    for track in ("track1", "track2"):
        for stem in VAL_STEMS:
            write_tile(base / track / "val", stem, both)
        for stem in TEST_STEMS:
            write_tile(base / f"{track}_test_data", stem, both)
    write_json(base / "track2" / "buildings_only_train.json", coco_file(TRAIN_STEMS))
    stems = (BERLIN, EMPTY, "SV_Suzhou_31.2990_120.5853")
    write_json(base / "track1" / "roof_fine_train.json", coco_file(stems, roofs=True))
    (base / "track2" / "train" / "rgb" / "Thumbs.db").write_bytes(b"\0")
    (base / "track2" / "train" / "rgb" / f"{BERLIN}.tif.aux.xml").write_text("<PAMDataset/>")
    return base


def write_documented(root: Path) -> Path:
    """The layout of the baseline's README: `annotations/`, `height/`, test beside val, names like P0001.tif.

    Its val has heights and labels, as the README draws it; its test lists images without annotations.
    """
    base = root / "DFC_Track_2"
    columns = {"rgb": "rgb", "sar": "sar", "ndsm": "height"}
    for split, stems in (("train", TRAIN_STEMS), ("val", ("P0011",)), ("test", ("P0021",))):
        for stem in stems:
            write_tile(base / split, stem, columns if split != "test" else {"rgb": "rgb", "sar": "sar"})
    write_json(base / "annotations" / "buildings_only_train.json", coco_file(TRAIN_STEMS))
    write_json(base / "annotations" / "buildings_only_val.json", coco_file(("P0011",)))
    listed = coco_file(("P0021",))
    write_json(base / "annotations" / "buildings_only_test.json", {"images": listed["images"]})
    return base
