"""How much the tiles of a large map disagree where they overlap, over the places of a real scene."""

import itertools
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

from ..model.cells_sgma import pixel_logits
from ..rasters.scene import RasterScene


def measure_scene_overlaps(model: Any, processor: Any, rasters: Mapping[str, str | Path]) -> list[dict[str, float]]:
    """The figures of `measure_overlaps` for each overlap, means over the `places` of a scene, and how many these are.

    A place is two tiles wide and has no gaps, which have edges of their own. Raises ValueError if the scene has none.
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
                pair = [inputs[name].to(model.device) for name in ("pixel_values", "modality_mask")]
                measured.append(measure_overlaps(model, *pair, tile_size=tile))
    if not measured:
        raise ValueError("The scene has gaps wherever two tiles would lie; choose another one.")
    return [
        {"places": len(measured)} | {name: statistics.fmean(figure[name] for figure in figures) for name in figures[0]}
        for figures in zip(*measured, strict=True)
    ]


@torch.no_grad()
def measure_overlaps(
    model: Any,
    pixel_values: torch.Tensor,
    modality_mask: torch.Tensor | None = None,
    *,
    tile_size: int,
    overlaps: Sequence[float] = (0.125, 0.25, 0.5),
) -> list[dict[str, float]]:
    """How much neighbouring tiles disagree where they overlap.

    A model whose attention spans the tile gives a pixel another score in another tile; the blend hides the step, not
    the cause. Two tiles beside each other are predicted for every overlap and compared in what they share.

    `sliding_window.DEFAULT_OVERLAP` comes from this figure: it is the smallest overlap beyond which the disagreement
    midway between the edges of two tiles (where both weigh the same, and the blend can do least) stopped falling much.

    The image is at least one tile high and two wide; overlaps are shares of the tile's side. Returns for each
    `overlap`: `label_disagreement`, the share of covered pixels in it to which the two tiles give different classes;
    `probability_gap`, the mean over them of the largest difference of a class probability; and both again for the 8
    columns in the middle of the overlap, as `middle_...`.
    """
    height, width = pixel_values.shape[-2:]
    if height < tile_size or width < 2 * tile_size:
        raise ValueError(
            f"The image has {height} x {width} pixels; expected at least {tile_size} x {2 * tile_size}: two tiles "
            "beside each other. Give a larger image or a smaller `tile_size`."
        )

    def predict(left: int) -> torch.Tensor:
        columns = slice(left, left + tile_size)
        mask = modality_mask
        if mask is not None and mask.ndim == 4:
            mask = mask[..., :tile_size, columns]
        outputs = model(pixel_values=pixel_values[..., :tile_size, columns], modality_mask=mask)
        scores = pixel_logits(outputs.logits, (tile_size, tile_size)).softmax(1)
        return scores.masked_fill(~outputs.coverage.unsqueeze(1), float("nan"))

    first, figures = predict(0), []
    for overlap in overlaps:
        shared = max(8, round(overlap * tile_size))
        here, there = first[..., tile_size - shared :], predict(tile_size - shared)[..., :shared]
        covered = ~here[:, 0].isnan()
        wrong = (here.argmax(1) != there.argmax(1)).float()
        gap = (here - there).abs().amax(1)
        middle = slice(shared // 2 - 4, shared // 2 + 4)
        figures.append(
            {
                "overlap": float(overlap),
                "label_disagreement": wrong[covered].mean().item(),
                "probability_gap": gap[covered].mean().item(),
                "middle_label_disagreement": wrong[..., middle][covered[..., middle]].mean().item(),
                "middle_probability_gap": gap[..., middle][covered[..., middle]].mean().item(),
            }
        )
    return figures
