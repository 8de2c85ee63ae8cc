"""What a scene is looked at for beside its tiles: reference levels that no tile decides, and the scale of values."""

import functools

import numpy as np
from transformers import BaseImageProcessor
from transformers.utils import logging

from ..data.metadata import other_resolution
from ..data.value_scale import ValueScale, describe
from ..data.windows import Window
from ..model.image_transforms_sgma import measure_level
from ..rasters.grids import shared_sampling
from ..rasters.scene import RasterScene


logger = logging.get_logger(__name__)

KEPT_PLACES = 2**16
LOOKS_PER_SIDE = 8
LOOK_SIDE = 64  # pixels: at most 262,144 of a raster are looked at


class SceneLevels:
    """Reference levels of a scene: those of a window of the size trained on around each place, whatever the tile.

    They are measured half a window apart, in windows that lie in the scene as training crops do, and interpolated in
    between. A place is measured when it is first needed; `side` is the window's in pixels of the scene's grid.
    """

    def __init__(self, scene: RasterScene, processor: BaseImageProcessor, side: int):
        kinds = zip(processor.modalities, processor.reference_level, strict=True)
        self._kinds = {name: kind for name, kind in kinds if kind != "none" and name in scene.modalities}
        self._scene, self._step = scene, max(1, side // 2)
        self._window = [min(side, length) for length in scene.grid.size]
        self._at = functools.lru_cache(KEPT_PLACES)(self._measure)

    def _measure(self, row: int, column: int) -> dict[str, float]:
        """Level of each modality around a place of the lattice; NaN where it holds no data."""
        sides = zip((row, column), self._window, self._scene.grid.size, strict=True)
        top, left = (min(max(0, place * self._step - side // 2), whole - side) for place, side, whole in sides)
        levels = dict.fromkeys(self._kinds, float("nan"))
        for name, image in self._scene.read(top, left, *self._window, modalities=self._kinds).items():
            covered = ~image.mask[..., 0]
            if covered.any():
                levels[name] = measure_level(np.moveaxis(image.data, -1, 0), covered, self._kinds[name])
        return levels

    def read(self, window: Window) -> dict[str, np.ndarray]:
        """Level of every pixel of a window by modality, float64 (height, width); 0 where nothing is near."""
        if not self._kinds:
            return {}
        places, weights = [], []
        for start, length in zip(window[:2], window[2:], strict=True):
            places.append(range(start // self._step, (start + length - 1) // self._step + 2))
            position = (start + np.arange(length) + 0.5) / self._step
            weights.append(np.maximum(0, 1 - np.abs(position[:, None] - places[-1])))
        measured = [[self._at(row, column) for column in places[1]] for row in places[0]]
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
    scale = ValueScale(processor)
    height, width = (min(LOOK_SIDE, length) for length in scene.grid.size)
    tops, lefts = (
        np.unique(np.linspace(0, whole - side, LOOKS_PER_SIDE).astype(int)).tolist()
        for whole, side in zip(scene.grid.size, (height, width), strict=True)
    )
    for top in tops:
        for left in lefts:
            window = Window(top, left, height, width)
            images = scene.read(*window)
            if images:
                scale.update(images, levels.read(window))
    others = {f"{scene.inputs[name][0].path} ({name})": text for name, text in scale.others().items()}
    message = describe(others)
    if message is not None:
        raise ValueError(message)
