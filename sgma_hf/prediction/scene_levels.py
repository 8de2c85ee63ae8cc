"""What a scene is looked at for beside its tiles: reference levels that no tile decides, and the scale of values."""

import functools
import itertools

import numpy as np
from transformers import BaseImageProcessor
from transformers.utils import logging

from ..data.metadata import other_resolution
from ..data.value_scale import ValueScale, describe
from ..data.windows import Window
from ..model.dates_sgma import observations
from ..model.image_transforms_sgma import measure_level
from ..rasters.grids import shared_sampling
from ..rasters.scene import RasterScene


logger = logging.get_logger(__name__)

KEPT_PLACES = 2**16
LOOKS_PER_SIDE = 8
LOOK_SIDE = 64  # pixels: at most 262,144 of a raster are looked at


class SceneLevels:
    """Reference levels of a scene: those of a window of the size trained on around each place, whatever the tile.

    The scene is cut evenly into cells of about half a window. The level of a corner of cells is that of the four
    around it; at the edge, that of the next corner inside, as training crops lie inside. In between, levels are
    interpolated. A cell is read when it is first needed. `side` is the window's in pixels of the grid.
    """

    def __init__(self, scene: RasterScene, processor: BaseImageProcessor, side: int):
        kinds = zip(processor.modalities, processor.reference_level, strict=True)
        self._kinds = {name: kind for name, kind in kinds if kind != "none" and name in scene.modalities}
        self._scene = scene
        counts = [min(max(2, round(2 * whole / side)), whole) for whole in scene.grid.size]
        self._edges = [
            np.linspace(0, whole, n + 1).astype(int) for whole, n in zip(scene.grid.size, counts, strict=True)
        ]
        # What a cell is for all others but a minimum, its values, would fill the memory.
        is_small = set(self._kinds.values()) <= {"minimum"}
        self._cell = functools.lru_cache(KEPT_PLACES if is_small else 8)(self._read_cell)
        self._corner = functools.lru_cache(KEPT_PLACES)(self._measure)

    def _read_cell(self, row: int, column: int) -> dict[str, np.ndarray]:
        """What of a cell decides the levels, (bands, values) by modality; nothing where it holds no data."""
        spans = zip(self._edges, (row, column), strict=True)
        (top, bottom), (left, right) = (edges[index : index + 2].tolist() for edges, index in spans)
        values: dict[str, np.ndarray] = {}
        images = self._scene.read(top, left, bottom - top, right - left, modalities=self._kinds)
        for name in self._kinds:
            for image in observations(images, name):
                missing, pixels = image.mask[..., 0], np.moveaxis(image.data, -1, 0)
                # Picking pixels takes as long as reading them.
                pixels = pixels[:, ~missing] if missing.any() else pixels.reshape(len(pixels), -1)
                if not pixels.size:
                    continue
                pixels = pixels.min(keepdims=True) if self._kinds[name] == "minimum" else pixels
                # Of all dates together, so that what changes between them stays.
                values[name] = np.concatenate([values[name], pixels], axis=1) if name in values else pixels
        return values

    def _measure(self, row: int, column: int) -> dict[str, float]:
        """Level of each modality around a corner of cells; NaN where it holds no data."""
        sides = zip((row, column), self._edges, strict=True)
        around = [range(max(0, index - 1), min(index + 1, len(edges) - 1)) for index, edges in sides]
        cells = [self._cell(*place) for place in itertools.product(*around)]
        levels = dict.fromkeys(self._kinds, float("nan"))
        for name, kind in self._kinds.items():
            values = [cell[name] for cell in cells if name in cell]
            if values:
                levels[name] = measure_level(np.concatenate(values, axis=1), None, kind)
        return levels

    def read(self, window: Window) -> dict[str, np.ndarray]:
        """Level of every pixel of a window by modality, float64 (height, width); 0 where nothing is near."""
        if not self._kinds:
            return {}
        corners, weights = [], []
        for start, length, edges in zip(window[:2], window[2:], self._edges, strict=True):
            first, last = np.searchsorted(edges, [start, start + length - 1], side="right").tolist()
            around = np.arange(first - 1, last + 1)
            middles = start + np.arange(length) + 0.5
            weights.append(np.stack([np.interp(middles, edges[around], row) for row in np.eye(len(around))], axis=1))
            corners.append(around.clip(1, max(1, len(edges) - 2)).tolist())
        measured = [[self._corner(row, column) for column in corners[1]] for row in corners[0]]
        fields = {}
        for name in self._kinds:
            lattice = np.array([[levels[name] for levels in row] for row in measured])
            support = weights[0] @ ~np.isnan(lattice) @ weights[1].T
            field = weights[0] @ np.nan_to_num(lattice) @ weights[1].T
            fields[name] = field / np.where(support > 0, support, 1)
        return fields


def look_at(
    scene: RasterScene, processor: BaseImageProcessor, trained_size: int, *, allow_other_scale: bool
) -> SceneLevels | None:
    """The levels of a scene, None if they are those of its tiles; ValueError if a raster is on another scale.

    Windows are as large on the ground as in training, where the resolution is known. Another one is said.
    """
    resolution, side = shared_sampling([scene.grid]), processor.reference_window or trained_size
    other = other_resolution(resolution, processor.resolution)
    if other is not None:
        logger.warning_once(f"The map's grid {other}. `--resolution {processor.resolution:.3g}` reads it at that.")
    if resolution is not None and processor.resolution is not None:
        side = max(1, round(side * processor.resolution / resolution))
    levels = SceneLevels(scene, processor, side)
    if not allow_other_scale:
        _check_scale(scene, processor, levels)
    return levels if processor.reference_window else None


def _check_scale(scene: RasterScene, processor: BaseImageProcessor, levels: SceneLevels) -> None:
    """Raise a ValueError if a modality is on another scale than was trained on, by windows spread over the scene."""
    scale, size = ValueScale(processor), scene.grid.size
    height, width = (min(LOOK_SIDE, length) for length in size)
    tops, lefts = (
        np.linspace(0, whole - side, min(LOOKS_PER_SIDE, -(-whole // side))).astype(int).tolist()
        for whole, side in zip(size, (height, width), strict=True)
    )
    windows = [Window(top, left, height, width) for top in tops for left in lefts]
    if max(size) <= LOOKS_PER_SIDE * LOOK_SIDE:  # they cover it, and it is read once
        whole = Window(0, 0, *size)
        scale.update(scene.read(*whole), levels.read(whole), windows)
    else:
        for window in windows:
            scale.update(scene.read(*window), levels.read(window))
    others = {f"{scene.inputs[name][0].path} ({name})": text for name, text in scale.others().items()}
    message = describe(others)
    if message is not None:
        raise ValueError(message)
