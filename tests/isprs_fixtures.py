"""Tiny copies of ISPRS Potsdam and Vaihingen, in the layouts and with the faults of what is handed out."""

from pathlib import Path

import numpy as np
from PIL import Image, TiffImagePlugin


COLORS = np.array(
    [(255, 255, 255), (0, 0, 255), (0, 255, 255), (0, 255, 0), (255, 255, 0), (255, 0, 0)], dtype=np.uint8
)
SIZE = 40  # of Potsdam's tiles, which have 6000 pixels
POTSDAM_TRAIN = [f"{row}_{column}" for row in (2, 3, 4, 5) for column in (10, 11, 12)] + [
    f"{row}_{column}" for row in (6, 7) for column in range(7, 13)
]
POTSDAM_TEST = "2_13 2_14 3_13 3_14 4_13 4_14 4_15 5_13 5_14 5_15 6_13 6_14 6_15 7_13".split()
VAIHINGEN_TRAIN = [1, 3, 5, 7, 11, 13, 15, 17, 21, 23, 26, 28, 30, 32, 34, 37]
VAIHINGEN_TEST = [2, 4, 6, 8, 10, 12, 14, 16, 20, 22, 24, 27, 29, 31, 33, 35, 38]
TFW = "0.050\n0\n0\n-0.050\n366976.525\n5809761.000\n"


def tile_ids(tile: str, size: tuple[int, int] = (SIZE, SIZE)) -> np.ndarray:
    """Class ids 0..5 of a tile, uint8 (height, width); every tile has its own, in blocks of 4 pixels."""
    rng = np.random.default_rng(sum(ord(letter) * 7**index for index, letter in enumerate(tile)))
    blocks = rng.integers(0, 6, (-(-size[0] // 4), -(-size[1] // 4)), dtype=np.uint8)
    return np.kron(blocks, np.ones((4, 4), dtype=np.uint8))[: size[0], : size[1]]


def tile_bands(tile: str, channels: int, size: tuple[int, int] = (SIZE, SIZE)) -> np.ndarray:
    """uint8 (height, width, channels), every value occurs, 0 included."""
    rng = np.random.default_rng(sum(map(ord, tile)) + channels)
    return rng.integers(0, 256, (*size, channels), dtype=np.uint8)


def tile_heights(tile: str, size: tuple[int, int] = (SIZE, SIZE)) -> np.ndarray:
    """float32 metres that no 8 or 16 bit value holds."""
    rng = np.random.default_rng(sum(map(ord, tile)))
    return rng.uniform(30, 60, size).astype(np.float32)


def tile_decimetres(tile: str, size: tuple[int, int] = (SIZE, SIZE)) -> np.ndarray:
    """uint8 in flat blocks of 8 pixels, which JPEG keeps to a grey level or two."""
    rng = np.random.default_rng(sum(map(ord, tile)))
    blocks = rng.integers(0, 256, (-(-size[0] // 8), -(-size[1] // 8)), dtype=np.uint8)
    return np.kron(blocks, np.ones((8, 8), dtype=np.uint8))[: size[0], : size[1]]


def seams(ids: np.ndarray) -> np.ndarray:
    """bool (height, width): pixels beside another class, which eroded labels paint black."""
    edge = np.zeros(ids.shape, dtype=bool)
    edge[:, 1:] |= ids[:, 1:] != ids[:, :-1]
    edge[1:] |= ids[1:] != ids[:-1]
    return edge


def save(path: Path, array: np.ndarray, **options) -> None:
    """Write uint8 (H, W[, C]) or float32 (H, W); four bands of TIFF get Pillow's alpha tag, as the real ones have."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)
    if path.suffix == ".tif" and "Labels" not in path.parent.name:
        path.with_suffix(".tfw").write_text(TFW)


def _label(path: Path, tile: str, *, eroded: bool, lossy: bool) -> None:
    ids = tile_ids(tile)
    colors = COLORS[ids].copy()
    if tile == "4_12" and lossy:  # one copy was compressed with loss: (9, 222, 221) instead of (0, 255, 255)
        noise = np.random.default_rng(0).integers(0, 36, colors.shape, dtype=np.uint8)
        colors = np.where(colors == 0, noise, 255 - noise).astype(np.uint8)
    if tile == "6_7":  # cars with red 252; one car keeps the right colour
        cars = np.argwhere(ids == 4)
        colors[ids == 4] = (252, 255, 0)
        colors[tuple(cars[0])] = (255, 255, 0)
    if eroded:
        colors[seams(ids)] = 0
    save(path, colors)


def write_potsdam(
    root: Path,
    *,
    doubled: bool = True,
    tiles: list[str] | None = None,
    labels: str = "all",
    padded: bool = False,
    compression: str | None = "tiff_lzw",
) -> Path:
    """Write Potsdam below `root`.

    Args:
        root: What stands for the folder `Potsdam` of the outer archive.
        doubled: Whether archives with a folder inside were unpacked into a folder of that name.
        tiles: Those to write; all 38 by default.
        labels: `all` (also participants' ones), `participants` (24 tiles) or `flat` (beside the folders).
        padded: Whether names of images are padded and those of heights are not, the wrong way round.
        compression: Of the images.
    """
    root.mkdir(parents=True, exist_ok=True)
    images = {"2_Ortho_RGB": "RGB", "3_Ortho_IRRG": "IRRG", "4_Ortho_RGBIR": "RGBIR"}

    def inside(name: str) -> Path:
        return root / name / name if doubled else root / name

    for tile in tiles or [*POTSDAM_TRAIN, *POTSDAM_TEST]:
        row, column = map(int, tile.split("_"))
        plain, filled = f"{row}_{column}", f"{row:02d}_{column:02d}"
        image_name, height_name = (filled, plain) if padded else (plain, filled)
        bands = tile_bands(tile, 4)  # red, green, blue, near infrared
        chosen = {"RGB": bands[..., :3], "IRRG": bands[..., [3, 0, 1]], "RGBIR": bands}
        for folder, kind in images.items():
            save(inside(folder) / f"top_potsdam_{image_name}_{kind}.tif", chosen[kind], compression=compression)
        heights, decimetres = tile_heights(tile), tile_decimetres(tile)
        if tile == "3_13":
            heights, decimetres = heights[:, :-1], decimetres[:, :-1]
        save(inside("1_DSM") / f"dsm_potsdam_{height_name}.tif", heights)
        normalized = inside("1_DSM_normalisation") / f"dsm_potsdam_{height_name}_normalized_lastools.jpg"
        save(normalized, decimetres, quality=95)
        normalized.with_name(normalized.name.replace("lastools", "ownapproach")).write_bytes(b"")
        _write_labels(root, tile, image_name, labels=labels, inside=inside)
    for name in ("readme.txt", "dsm_potsdam_02_10.laz"):
        (inside("1_DSM_normalisation") / name).write_text("not a raster")
    (root / "assess_classification_reference_implementation.tgz").write_bytes(b"not looked into")
    return root


def _write_labels(root: Path, tile: str, name: str, *, labels: str, inside) -> None:
    full, eroded = f"top_potsdam_{name}_label.tif", f"top_potsdam_{name}_label_noBoundary.tif"
    if labels == "flat":
        _label(root / full, tile, eroded=False, lossy=True)
        return
    if labels == "all":
        _label(root / "5_Labels_all" / full, tile, eroded=False, lossy=True)
        _label(root / "5_Labels_all_noBoundary" / eroded, tile, eroded=True, lossy=True)
    if tile in POTSDAM_TRAIN:
        _label(inside("5_Labels_for_participants") / full, tile, eroded=False, lossy=False)
        _label(inside("5_Labels_for_participants_no_Boundary") / eroded, tile, eroded=True, lossy=False)


def area_size(area: int) -> tuple[int, int]:
    """(height, width) of an area of Vaihingen; no two directions and few areas are alike."""
    return 36 + area % 5 * 4, 44 + area % 7 * 4


def write_vaihingen(root: Path, *, complete: bool = True, areas: list[int] | None = None) -> Path:
    """Write Vaihingen below `root`, every archive unpacked into a folder of its name.

    Args:
        root: What stands for the folder `Vaihingen` of the outer archive.
        complete: Whether the labels of the test areas are there.
        areas: Those to write; all 33 by default.
    """
    base = root / "ISPRS_semantic_labeling_Vaihingen"
    full = root / "ISPRS_semantic_labeling_Vaihingen_ground_truth_COMPLETE"
    eroded_all = root / "ISPRS_semantic_labeling_Vaihingen_ground_truth_eroded_COMPLETE"
    for area in areas or [*VAIHINGEN_TRAIN, *VAIHINGEN_TEST]:
        name, size = f"top_mosaic_09cm_area{area}", area_size(area)
        save(base / "top" / f"{name}.tif", tile_bands(f"area{area}", 3, size))
        save(base / "dsm" / f"dsm_09cm_matching_area{area}.tif", tile_heights(f"area{area}", size))
        ids = tile_ids(f"area{area}", size)
        eroded = COLORS[ids].copy()
        eroded[seams(ids)] = 0
        if complete:
            save(full / f"{name}.tif", COLORS[ids])
            save(eroded_all / f"{name}_noBoundary.tif", eroded)
        if area in VAIHINGEN_TRAIN:
            save(base / "gts_for_participants" / f"{name}.tif", COLORS[ids])
            save(root / "gts_eroded_for_participants" / f"{name}_noBoundary.tif", eroded)
    if complete:  # an area that is no tile of the benchmark
        save(eroded_all / "top_mosaic_09cm_area9_noBoundary.tif", COLORS[tile_ids("area9")])
    return root


def truncate(path: Path, share: float = 0.6) -> None:
    """Cut the end off a file, as a broken download does."""
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])


def alpha_tag(path: Path) -> int | None:
    """What a TIFF says its fourth band is: 2 is unassociated alpha."""
    with Image.open(path) as image:
        found = image.tag_v2.get(TiffImagePlugin.EXTRASAMPLES)
    return found[0] if isinstance(found, tuple) else found
