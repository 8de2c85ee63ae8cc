"""A tiny DELIVER set in its published layout, with everything that trips readers up.

The frame number 045050 occurs in several scenes; one scene's events are half as large; one scene's lidar has one
channel, another's three; one depth image has 16 bits; semantic ids hide in the first channel of RGBA.
"""

from pathlib import Path

import numpy as np
from PIL import Image


SIZE = 32
FRAME = "045050"
SUFFIXES = {"img": "rgb", "hha": "depth", "depth": "depth", "event": "event", "lidar": "lidar", "semantic": "semantic"}
# (condition, split, scene)
SCENES = (
    ("cloud", "train", "MAP_10_point102"),
    ("night", "train", "MAP_3_point9_motionblur"),
    ("sun", "train", "MAP_1_point4_lidarjitter"),
    ("cloud", "val", "MAP_4_point12_eventlowres"),
    ("night", "val", "MAP_4_point12"),
    ("fog", "test", "MAP_10_point102"),
    ("rain", "test", "MAP_2_point7_overexposure"),
)
SIXTEEN_BIT = ("night", "train", "MAP_3_point9_motionblur")
GREY_LIDAR = ("night", "train", "MAP_3_point9_motionblur")


def stored_ids(scene: tuple[str, str, str]) -> np.ndarray:
    """Channel 0 of the semantic image: 0 and 255 are void, 1..25 classes; uint8 (SIZE, SIZE)."""
    generator = np.random.default_rng([7, *"/".join(scene).encode()])
    ids = generator.integers(1, 26, (SIZE, SIZE), dtype=np.uint8)
    ids[0, :6] = (0, 1, 25, 255, 2, 7)
    return ids


def pixels(scene: tuple[str, str, str]) -> dict[str, np.ndarray]:
    """What each folder holds for a scene, as stored, decided by its name."""
    generator = np.random.default_rng(list("/".join(scene).encode()))

    def draw(*shape):
        return generator.integers(0, 256, shape, dtype=np.uint8)

    side = SIZE // 2 if "eventlowres" in scene[2] else SIZE
    event = draw(side, side, 3)
    event[..., 1] = 0
    event[: side // 2] = 0  # nothing moved
    lidar = draw(SIZE, SIZE) * (draw(SIZE, SIZE) > 200)
    depth = draw(SIZE, SIZE)
    semantic = draw(SIZE, SIZE, 4)
    semantic[..., 0] = stored_ids(scene)
    return {
        "img": draw(SIZE, SIZE, 4),  # with alpha, which means nothing
        "hha": draw(SIZE, SIZE, 3),
        "depth": depth.astype(np.uint16) * 200 if scene == SIXTEEN_BIT else depth,
        "event": event,
        "lidar": lidar if scene == GREY_LIDAR else np.stack([lidar] * 3, -1),
        "semantic": semantic,
    }


def file_of(base: Path, folder: str, scene: tuple[str, str, str], frame: str = FRAME) -> Path:
    """Path of a scene's file in one of the six folders."""
    return base / folder / scene[0] / scene[1] / scene[2] / f"{frame}_{SUFFIXES[folder]}_front.png"


def write_deliver(root: Path) -> Path:
    """Write the set below a path that contains `img` and `_rgb`, which path replacement would destroy.

    Returns:
        The folder that a user would name, the parent of `DELIVER/`.
    """
    source = root / "img_data_rgb"
    for scene in SCENES:
        for folder, array in pixels(scene).items():
            path = file_of(source / "DELIVER", folder, scene)
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(path)
    (source / "DELIVER" / "img" / "cloud" / "train" / "MAP_10_point102" / ".DS_Store").write_bytes(b"\0")
    (source / "DELIVER" / "readme.txt").write_text("DELIVER")
    return source
