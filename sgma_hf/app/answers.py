"""What a model says of a sight with some of its modalities: the map, how sure it is, and what it relies on."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from ..evaluation.metrics import confusion_matrix, segmentation_scores
from ..model.dates_sgma import to_days
from ..model.fusion_sgma import find_fusion
from ..model.limits_sgma import IGNORE_INDEX
from ..prediction.explanation import explain_encoding, explanation_in_words
from ..prediction.map_run import BlendedMaps
from ..prediction.periods import Periods
from ..prediction.sliding_window import TileBlender, tile_weights
from .sights import Date, Sight, Tile


@dataclass(frozen=True)
class Answer:
    """Maps of a sight, (height, width); all but the classes are float32 in [0, 1], NaN where there is nothing."""

    labels: np.ndarray  # uint8, 255 where no modality covers
    confidence: np.ndarray  # probability of the class
    reliance: Mapping[str, np.ndarray] = field(default_factory=dict)  # by modality; empty if the model does not tell
    agreement: Mapping[str, np.ndarray] = field(default_factory=dict)  # the same; empty if it was not asked for
    by_date: Mapping[Date, float] = field(default_factory=dict)  # mean reliance on the dates of series; as `reliance`


class _Dates(Periods):
    """The shares of single dates of a sight, in the place of those of months; the last is of what is no series."""

    def __init__(self, sight: Sight):
        self._index = {date: index for index, date in enumerate(sight.moments)}
        self.count = len(self._index) + 1

    def of_tile(self, tile: Tile) -> torch.Tensor:
        """Which of the dates each observation is, int64, (1, T, M)."""
        index = torch.full(tile.encoding.observations.shape, self.count - 1)
        for modality, dates in enumerate(tile.dates.values()):
            own = [self._index.get(date, self.count - 1) for date in dates]
            index[0, : len(own), modality] = torch.tensor(own, dtype=torch.int64)
        return index

    def values(self, shares: torch.Tensor, covered: torch.Tensor) -> dict[str, torch.Tensor]:
        """Blended shares -> their means."""
        shares = shares / shares.sum(0, keepdim=True).clamp_min(1e-12)
        return {"dates": (shares * covered).sum((1, 2)) / covered.sum().clamp_min(1)}


@torch.no_grad()
def answer(model: Any, processor: Any, sight: Sight, modalities: Collection[str], *, with_agreement: bool) -> Answer:
    """Predict from some modalities of a sight, as `predict_raster` does of files; ValueError if none is there."""
    names = [name for name in processor.modalities if name in modalities and name in sight.images]
    given = [processor.modalities.index(name) for name in names]
    encoded = [tile.only(names, sight.off) for tile in sight.encoded]
    encoded = [tile for tile in encoded if not tile.encoding.is_empty]
    if not encoded:
        raise ValueError("Nothing that is switched on shows anything here. Switch a modality on.")
    dates = _Dates(sight) if sight.dates and find_fusion(model.config).has_robustness else None
    blended = BlendedMaps(model, processor, given, with_agreement=with_agreement, periods=dates)
    tiles, strips = sight.tiles, []
    blender = TileBlender(blended.count, tiles.size, tiles.grid_size[1])
    for strip, top in enumerate(tiles.tops):
        for tile in (tile for tile in encoded if tile.window.top == top):
            maps = blended.of_encoding(tile.encoding, tile.modality_mask, dates and dates.of_tile(tile))
            blender.add(maps[0].cpu(), top, tile.window.left)
        strips.append(blender.finish(tiles.bottom(strip)).clone())
        blender.advance(tiles.bottom(strip))
    values = blended.values(torch.cat(strips, dim=1))
    covered = values["covered"]

    def by_modality(maps: torch.Tensor | None) -> dict[str, np.ndarray]:
        return {} if maps is None else dict(zip(names, maps.where(covered, float("nan")).numpy(), strict=True))

    return Answer(
        values["labels"][0].to(torch.uint8).masked_fill(~covered, IGNORE_INDEX).numpy(),
        values["probability"][0].where(covered, float("nan")).numpy(),
        by_modality(values.get("robustness")),
        by_modality(values.get("agreement")),
        dict(zip(sight.moments, values["dates"].tolist(), strict=False)) if dates else {},
    )


def scores(sight: Sight, found: Answer, num_labels: int) -> dict[str, Any] | None:
    """The scores of `segmentation_scores` where the truth is known, None if that is nowhere."""
    if sight.truth is None:
        return None
    counted = (sight.truth != IGNORE_INDEX) & (found.labels != IGNORE_INDEX)
    if not counted.any():
        return None
    return segmentation_scores(confusion_matrix(found.labels[counted], sight.truth[counted], num_labels))


def explain(model: Any, sight: Sight, modalities: Collection[str], found: Answer, point: tuple[int, int]) -> list[str]:
    """Say in words why a pixel (x, y) of a sight got its class; ValueError if nothing covers it.

    Where tiles overlap, it is the tile that counts most there, and it is said if the map has another class.
    """
    x, y = point
    x_in_scene, y_in_scene = x + sight.window.left, y + sight.window.top
    if found.labels[y, x] == IGNORE_INDEX:
        raise ValueError(f"Nothing that is switched on covers pixel x {x_in_scene}, y {y_in_scene}.")
    weights = tile_weights(*sight.tiles.size)
    near = [tile for tile in sight.encoded if _is_in(tile.window, x, y)]
    tile = max(near, key=lambda tile: float(weights[y - tile.window.top, x - tile.window.left]))
    tile = tile.only(modalities, sight.off)
    days = {name: [to_days(time) for _, time in dates] for name, dates in tile.dates.items()} if sight.dates else None
    why = explain_encoding(model, tile.encoding, x - tile.window.left, y - tile.window.top, days=days)
    lines = explanation_in_words(why | {"x": x_in_scene, "y": y_in_scene})
    names = model.config.class_names
    in_map = names[found.labels[y, x]]
    if in_map != why["class"]:
        lines.append(f"The map, which blends {len(near)} tiles here, says {in_map}.")
    if sight.truth is not None and sight.truth[y, x] != IGNORE_INDEX:
        lines.append(f"The truth is {names[sight.truth[y, x]]}.")
    return lines


def _is_in(window: Sequence[int], x: int, y: int) -> bool:
    top, left, height, width = window
    return top <= y < top + height and left <= x < left + width
