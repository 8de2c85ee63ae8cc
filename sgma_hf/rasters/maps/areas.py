"""Areas of the classes of a map: of all of it, and inside polygons."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...data.windows import Window, blocks
from ..files import read_info
from ..grids import Grid, pixel_areas
from ..opening import open_dataset
from ..polygons import read_shapes
from ..raster import require_rasterio


HECTARE = 10_000  # square metres
_BLOCK = (64, 1024)  # rows and columns: the middle pixel of a row stands for the area of all in it
_OUTSIDE = 256


@dataclass
class ClassCounts:
    """What is of each class in a map, or in a part of it."""

    pixels: np.ndarray  # per class id, int64 (256,); 255 is what has no class
    areas: np.ndarray | None  # square metres on the ground, float64 (256,); None where nobody knows

    def rows(self, names: list[str]) -> list[dict[str, Any]]:
        """A row per class: `class`, `name`, `pixels`, `area_ha`, `share` of what has a class; 255 is the last one."""
        weights = self.pixels if self.areas is None else self.areas
        whole = weights[: len(names)].sum()
        return [
            {
                "class": index,
                "name": name,
                "pixels": int(self.pixels[index]),
                "area_ha": None if self.areas is None else float(self.areas[index] / HECTARE),
                "share": float(weights[index] / whole) if index < len(names) and whole else None,
            }
            for index, name in [*enumerate(names), (255, None)]
        ]


def count_classes(parts: Iterable[tuple[tuple[int, int], np.ndarray]], grid: Grid) -> ClassCounts:
    """Count the pixels of each class and add up their areas on the ellipsoid, as `pixel_areas` has it.

    `parts` are row and column on the grid of a first pixel, and class ids from there on, integers (height, width), of
    which 256 is not counted.
    """
    pixels, areas = np.zeros(256, dtype=np.int64), None if grid.georeference is None else np.zeros(256)
    for (top, left), labels in parts:
        for block in blocks(labels.shape, *_BLOCK):
            codes = labels[block.slices] + (_OUTSIDE + 1) * np.arange(block.height)[:, None]
            found = np.bincount(codes.ravel(), minlength=(_OUTSIDE + 1) * block.height)
            found = found.reshape(block.height, -1)[:, :_OUTSIDE]
            middles = top + block.top + np.arange(block.height) + 0.5, left + block.left + block.width / 2
            of_rows = pixel_areas(grid, *np.broadcast_arrays(*middles))
            pixels += found.sum(axis=0)
            areas = None if areas is None or of_rows is None else areas + of_rows @ found
    return ClassCounts(pixels, areas)


def count_zones(path: Path, zones: str | os.PathLike, attribute: str | None = None) -> list[tuple[Any, ClassCounts]]:
    """Count the classes of a map inside each polygon of a layer that is near it: the pixels whose centre it holds.

    Polygons may overlap. A zone is called what its `attribute` says, features of one value being one zone; without it
    they are numbered from 1. ValueError if the layer cannot be used, or holds no polygon.
    """
    info, rasterio = read_info(path, palette_as_indices=True), require_rasterio(path)
    grid = Grid(info.size, info.georeference)
    shapes, values = read_shapes(zones, grid, attribute)
    if attribute is None:
        values = list(range(1, len(shapes) + 1))
    groups: dict[Any, list[Any]] = {}
    for shape, value in zip(shapes, values, strict=True):
        if shape.area > 0:
            groups.setdefault(value, []).append(shape)
    if not groups:
        raise ValueError(f"{zones} has no polygon that meets the map {path}. Give the layer that belongs there.")

    def parts(file: Any, members: list[Any]) -> Iterable[tuple[tuple[int, int], np.ndarray]]:
        bounds = np.array([shape.bounds for shape in members])
        west, south, east, north = *bounds[:, :2].min(axis=0), *bounds[:, 2:].max(axis=0)
        found = grid.georeference.pixels(np.array([west, east, west, east]), np.array([south, south, north, north]))
        (top, left), (bottom, right) = ([int(f(side)) for side in found] for f in (np.min, np.max))
        reach = Window(top - 1, left - 1, bottom - top + 3, right - left + 3).inside(grid.size)
        for block in blocks(reach[2:], 1024, 1024) if reach.height and reach.width else ():
            window = block.moved(reach.top, reach.left)
            affine = grid.part(window).georeference.affine
            inside = rasterio.features.geometry_mask(members, window[2:], affine, invert=True)
            if inside.any():
                read = rasterio.windows.Window(window.left, window.top, window.width, window.height)
                yield window[:2], np.where(inside, file.read(1, window=read).astype(np.int64), _OUTSIDE)

    with open_dataset(path) as file:
        return [(value, count_classes(parts(file, members), grid)) for value, members in groups.items()]
