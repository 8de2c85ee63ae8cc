"""Masks from COCO annotations: polygons, uncompressed run lengths and compressed run lengths.

Formats: https://cocodataset.org/#format-data and `common/maskApi.c` of github.com/cocodataset/cocoapi. Run lengths
count pixels column by column (down the first column, then the second), beginning with zeros.
"""

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np


def decompress_counts(text: str | bytes) -> list[int]:
    """Decode COCO's compressed run lengths to pixels: zeros, ones, zeros, ...

    Every character holds five bits of a number, lowest first, plus 32 where another character follows, plus 48; the
    highest of a number's bits is its sign. From the fourth number on, each is the difference to the one two before.
    """
    codes = text.encode("ascii", "replace") if isinstance(text, str) else bytes(text)
    counts: list[int] = []
    value = shift = 0
    for code in codes:
        bits = code - 48
        if not 0 <= bits < 64:
            raise ValueError(
                f"Compressed run lengths hold the character {chr(code)!r}; expected '0' (48) to 'o' (111)."
            )
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        counts.append(value + counts[-2] if len(counts) > 2 else value)
        value = shift = 0
    if shift:
        raise ValueError(f"Compressed run lengths end inside a number, after {len(codes)} characters; text was lost.")
    return counts


def decode_runs(counts: Sequence[int] | str | bytes, size: tuple[int, int]) -> np.ndarray:
    """Decode run lengths in pixels (zeros first), or their compressed text, to bool of `size` (height, width)."""
    runs = decompress_counts(counts) if isinstance(counts, (str, bytes)) else list(counts)
    if not all(isinstance(run, int) and run >= 0 for run in runs):
        raise ValueError("Run lengths must be whole numbers, not negative.")
    height, width = size
    if sum(runs) != height * width:
        raise ValueError(f"Run lengths add up to {sum(runs)} pixels; the mask has {height} x {width}.")
    values = np.arange(len(runs)) % 2 == 1
    return np.repeat(values, runs).reshape(width, height).T  # column-major


def fill_polygon(coordinates: Sequence[float], size: tuple[int, int]) -> np.ndarray:
    """Fill a polygon: a pixel belongs to it if its centre lies inside (even-odd rule).

    COCO's own mask of a polygon agrees with this up to its rounding to a fifth of a pixel. Drawing routines
    (`PIL.ImageDraw`, OpenCV) paint the outline's pixels too: a 3 x 3 square comes out as 4 x 4, a bias that counts on
    houses of 20 pixels.

    Args:
        coordinates: x0, y0, x1, y1, ... in pixels; pixel (row i, column j) spans j..j+1 in x and i..i+1 in y.
        size: (height, width) of the bool mask. What lies outside is cut off; under three points set nothing.
    """
    try:
        points = np.asarray(coordinates, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"A polygon is a flat list of numbers x0, y0, x1, y1, ...: {error}") from error
    if points.ndim != 1 or points.size % 2 or not np.isfinite(points).all():
        raise ValueError(f"A polygon is a flat list x0, y0, x1, y1, ... of finite numbers; got shape {points.shape}.")
    height, width = size
    mask = np.zeros((height, width), dtype=bool)
    if points.size < 6:
        return mask
    x, y = points[::2], points[1::2]
    next_x, next_y = np.roll(x, -1), np.roll(y, -1)
    top, bottom = (int(edge) for edge in np.clip([np.floor(y.min()), np.ceil(y.max())], 0, height))
    centres = np.arange(top, bottom) + 0.5
    rows, edges = np.nonzero((y <= centres[:, None]) != (next_y <= centres[:, None]))
    slope = (next_x[edges] - x[edges]) / (next_y[edges] - y[edges])
    crossings = x[edges] + (centres[rows] - y[edges]) * slope
    columns = np.clip(np.ceil(crossings - 0.5), 0, width).astype(int)  # first pixel whose centre is not left of it
    toggles = np.zeros((bottom - top, width + 1), dtype=np.int64)
    np.add.at(toggles, (rows, columns), 1)
    mask[top:bottom] = toggles[:, :width].cumsum(axis=1) % 2 == 1
    return mask


def segmentation_mask(segmentation: Any, size: tuple[int, int]) -> np.ndarray:
    """Mask of one annotation, bool of `size` (height, width).

    `segmentation` is a list of polygons (their union), or a dict with `counts` and perhaps `size`.
    """
    if isinstance(segmentation, Mapping):
        given = segmentation.get("size", list(size))
        if list(given) != list(size):
            raise ValueError(f"The mask is {given} (height, width), its image {list(size)}.")
        if "counts" not in segmentation:
            raise ValueError(f"A run-length mask has `counts`; found the keys {sorted(segmentation)}.")
        return decode_runs(segmentation["counts"], size)
    if not isinstance(segmentation, list):
        kind = type(segmentation).__name__
        raise ValueError(f"`segmentation` is {kind}; expected a list of polygons or a dict with run lengths.")
    masks = (fill_polygon(polygon, size) for polygon in segmentation)
    return functools.reduce(np.logical_or, masks, np.zeros(size, dtype=bool))


@dataclass(frozen=True)
class CocoImage:
    """One image of an annotation file."""

    size: tuple[int, int]  # (height, width) in pixels as the file says it
    annotations: list[tuple[int, Any]]  # (category id, segmentation) of each instance, in the file's order

    def label(self, class_of_category: Mapping[int, int]) -> np.ndarray:
        """Draw the instances into one map of classes, uint8 (height, width); of those that overlap, the later wins."""
        label = np.zeros(self.size, dtype=np.uint8)
        for index, (category, segmentation) in enumerate(self.annotations):
            if category not in class_of_category:
                raise ValueError(f"Annotation {index} has category {category!r}; known are {list(class_of_category)}.")
            try:
                label[segmentation_mask(segmentation, self.size)] = class_of_category[category]
            except ValueError as error:
                raise ValueError(f"Annotation {index}: {error}") from error
        return label


def read_annotations(path: Path) -> dict[str, CocoImage] | None:
    """Images of a COCO file by the stem of their file name; None if it lists images without any `annotations`."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(
            f"{path} does not parse as JSON ({error}). It may be a broken download; fetch it again."
        ) from error
    try:
        if "annotations" not in content and "images" in content:
            return None
        images = {item["id"]: item for item in content["images"]}
        annotations: dict[Any, list[tuple[int, Any]]] = {image_id: [] for image_id in images}
        for item in content["annotations"]:
            annotations[item["image_id"]].append((item["category_id"], item["segmentation"]))
        return {
            PurePosixPath(item["file_name"]).stem: CocoImage((item["height"], item["width"]), annotations[image_id])
            for image_id, item in images.items()
        }
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} is no COCO annotation file ({type(error).__name__}: {error}); expected `images` and "
            "`annotations` with `id`, `file_name`, `height`, `width`, `image_id`, `category_id` and `segmentation`"
        ) from error
