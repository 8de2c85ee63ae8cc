"""What is added up of maps of a modality, clean and corrupted: means, and how well they tell the two apart."""

from typing import Any

import numpy as np
import torch

from .metrics import mean_of_defined
from .stage_cells import NUM_BINS, histogram, histogram_auc, ratio


class MapTally:
    """Values in [0, 1] of one or several maps, over cells outside and inside of what is corrupted.

    Args:
        num_maps: Number of maps, for instance one for each stage.
    """

    def __init__(self, num_maps: int):
        # Of cells outside and inside what is corrupted: their number, and summed values clean and corrupted.
        self.sums = np.zeros((num_maps, 2, 3))
        # Of cells inside: values clean and corrupted. Of cells outside and inside: by how much they drop.
        self.levels = np.zeros((num_maps, 2, NUM_BINS), dtype=np.int64)
        self.drops = np.zeros((num_maps, 2, NUM_BINS), dtype=np.int64)
        # Of windows: the mean over the cells inside, clean and corrupted.
        self.windows = np.zeros((num_maps, 2, NUM_BINS), dtype=np.int64)

    def add(
        self, index: int, clean: torch.Tensor, corrupted: torch.Tensor, cells: torch.Tensor, inside: torch.Tensor
    ) -> None:
        """Add a map (B, h, w) of the modality over `cells`, those `inside` being corrupted; both bool, (B, h, w)."""
        for place, chosen in enumerate((cells & ~inside, cells & inside)):
            before, after = clean[chosen].double(), corrupted[chosen].double()
            self.sums[index, place] += before.numel(), float(before.sum()), float(after.sum())
            self.drops[index, place] += histogram(before - after, -1, 1)
            if place:
                self.levels[index] += np.stack([histogram(before, 0, 1), histogram(after, 0, 1)])
        chosen = cells & inside
        for row in chosen.flatten(1).any(1).nonzero().flatten().tolist():
            means = [maps[row][chosen[row]].double().mean(0, keepdim=True) for maps in (clean, corrupted)]
            self.windows[index] += np.stack([histogram(mean, 0, 1) for mean in means])

    def figures(self, *, region: bool) -> dict[str, list[float | None]]:
        """One of each map: means, `detection_auc`, `window_auc` and, for regions, what is inside and outside."""
        everywhere = self.sums.sum(1)
        found = {
            "clean": [ratio(total[1], total[0]) for total in everywhere],
            "corrupted": [ratio(total[2], total[0]) for total in everywhere],
            "detection_auc": [histogram_auc(after, before) for before, after in self.levels],
            "window_auc": [histogram_auc(after, before) for before, after in self.windows],
        }
        if region:
            for place, name in enumerate(("outside", "inside")):
                for column, state in ((1, "clean"), (2, "corrupted")):
                    totals = self.sums[:, place]
                    found[f"{name}_{state}"] = [ratio(total[column], total[0]) for total in totals]
            found["drop_auc"] = [histogram_auc(outside, inside) for outside, inside in self.drops]
        return found

    @property
    def cells(self) -> list[int]:
        """Number of cells of each map."""
        return self.sums.sum(1)[:, 0].astype(int).tolist()


def per_stage(tally: MapTally, *, region: bool) -> dict[str, Any]:
    """The figures of maps of the four stages: each as `stages` and their `mean`, and `cells`."""
    figures = tally.figures(region=region)
    return {name: {"stages": values, "mean": mean_of_defined(values)} for name, values in figures.items()} | {
        "cells": tally.cells
    }


def of_single_map(tally: MapTally, *, region: bool) -> dict[str, Any]:
    """The figures of one map, and `cells`."""
    figures = tally.figures(region=region)
    return {name: value for name, (value,) in figures.items()} | {"cells": tally.cells[0]}
