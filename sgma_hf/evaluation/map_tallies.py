"""What is added up of a map of a modality, clean and corrupted: means, and how well they tell the two apart."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from .metrics import mean_of_defined
from .stage_cells import NUM_BINS, histogram, histogram_auc, ratio


class MapTally:
    """Values in [0, 1] of a map, over cells outside and inside of what is corrupted."""

    def __init__(self) -> None:
        # Of cells outside and inside: their number, and summed values clean and corrupted.
        self.sums = np.zeros((2, 3))
        # Of cells inside: values clean and corrupted. Of cells outside and inside: by how much they drop.
        self.levels, self.drops = np.zeros((2, 2, NUM_BINS), dtype=np.int64)
        # Of windows: the mean over the cells inside, clean and corrupted.
        self.windows = np.zeros((2, NUM_BINS), dtype=np.int64)

    def add(self, clean: torch.Tensor, corrupted: torch.Tensor, cells: torch.Tensor, inside: torch.Tensor) -> None:
        """Add maps (B, h, w) of the modality over `cells`, those `inside` being corrupted; both bool, (B, h, w)."""
        for place, chosen in enumerate((cells & ~inside, cells & inside)):
            before, after = clean[chosen].double(), corrupted[chosen].double()
            self.sums[place] += before.numel(), float(before.sum()), float(after.sum())
            self.drops[place] += histogram(before - after, -1, 1)
        self.levels += histogram(before, 0, 1), histogram(after, 0, 1)
        for row in chosen.flatten(1).any(1).nonzero().flatten().tolist():
            means = (maps[row][chosen[row]].double().mean(0, keepdim=True) for maps in (clean, corrupted))
            self.windows += [histogram(mean, 0, 1) for mean in means]

    def figures(self, *, region: bool) -> dict[str, Any]:
        """Means, `detection_auc`, `window_auc`, `cells` and, for regions, what is inside and outside."""

        def means(prefix: str, totals: np.ndarray) -> dict[str, float | None]:
            return {f"{prefix}{state}": ratio(totals[i], totals[0]) for i, state in ((1, "clean"), (2, "corrupted"))}

        found = means("", self.sums.sum(0))
        found["detection_auc"] = histogram_auc(self.levels[1], self.levels[0])
        found["window_auc"] = histogram_auc(self.windows[1], self.windows[0])
        if region:
            found |= means("outside_", self.sums[0]) | means("inside_", self.sums[1])
            found["drop_auc"] = histogram_auc(*self.drops)
        return found | {"cells": int(self.sums[:, 0].sum())}


def per_stage(tallies: Sequence[MapTally], *, region: bool) -> dict[str, Any]:
    """The figures of maps of the four stages: each as `stages` and their `mean`, and `cells`."""
    figures = [tally.figures(region=region) for tally in tallies]
    stages = {name: [found[name] for found in figures] for name in figures[0]}
    cells = stages.pop("cells")
    return {name: {"stages": found, "mean": mean_of_defined(found)} for name, found in stages.items()} | {
        "cells": cells
    }
