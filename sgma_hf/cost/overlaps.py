"""How much the tiles of a large map disagree where they overlap, over the places of a real scene."""

import itertools
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers.utils import logging

from ..prediction.sliding_window import measure_overlaps
from ..rasters.scene import RasterScene


def measure_scene_overlaps(model: Any, processor: Any, rasters: Mapping[str, str | Path]) -> list[dict[str, float]]:
    """Measure by overlap how much neighbouring tiles disagree.

    Args:
        model: An SGMA model with a segmentation head, in eval mode.
        processor: Its image processor.
        rasters: The file of each modality, of a scene that is two tiles wide and one high, or larger.

    Returns:
        The figures of `measure_overlaps` for each overlap, means over all places that are two tiles wide and without
        gaps, which have edges of their own; and `places`, how many these are.

    Raises:
        ValueError: If the scene is too small, or has gaps wherever two tiles would lie.
    """
    channels = dict(zip(processor.modalities, processor.modality_channels, strict=True))
    nodata = dict(zip(processor.modalities, processor.nodata, strict=True))
    tile = model.config.tile_size or min(processor.size.values())
    measured = []
    with RasterScene(rasters, channels=channels, nodata=nodata) as scene:
        height, width = scene.grid.size
        if height < tile or width < 2 * tile:
            raise ValueError(f"The scene has {height} x {width} pixels; tiles of {tile} need {tile} x {2 * tile}.")
        places = itertools.product(range(0, height - tile + 1, tile), range(0, width - 2 * tile + 1, tile))
        for top, left in logging.tqdm(list(places), desc="overlaps"):
            images = scene.read(top, left, tile, 2 * tile)
            if len(images) == len(rasters) and not any(image.mask.any() for image in images.values()):
                inputs = processor(images=[images], do_resize=False, input_data_format="channels_last")
                pair = inputs["pixel_values"], inputs["modality_mask"]
                measured.append(measure_overlaps(model, *pair, tile_size=tile))
    if not measured:
        raise ValueError("The scene has gaps wherever two tiles would lie; choose another one.")
    return [
        {"places": len(measured)} | {name: statistics.fmean(figure[name] for figure in figures) for name in figures[0]}
        for figures in zip(*measured, strict=True)
    ]
