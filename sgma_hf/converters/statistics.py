"""Statistics of a dataset, gathered in one pass while its rows are written."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..dataset_schema import IGNORE_INDEX, valid_pixels


class _ModalityStatistics:
    """Mean, spread and gaps of one modality, merged row by row (Chan et al. 1979) in float64."""

    def __init__(self, channels: int, nodata: Sequence[float]) -> None:
        self.nodata = list(nodata)
        self.count = 0
        self.mean = np.zeros(channels)
        self.squares = np.zeros(channels)  # sum of squared deviations from the mean
        self.minimum = np.full(channels, np.inf)
        self.maximum = np.full(channels, -np.inf)
        self.pixels = 0
        self.missing_rows = 0

    def update(self, array: np.ndarray | None) -> None:
        """Add one row's raster, (height, width) or (height, width, channels), or None."""
        if array is None:
            self.missing_rows += 1
            return
        valid = valid_pixels(array, self.nodata)
        self.pixels += valid.size
        values = np.atleast_3d(array)[valid].astype(np.float64)  # (N, C)
        if not len(values):
            return
        mean = values.mean(axis=0)
        total = self.count + len(values)
        shift = mean - self.mean
        self.squares += ((values - mean) ** 2).sum(axis=0) + shift**2 * (self.count * len(values) / total)
        self.mean += shift * (len(values) / total)
        self.count = total
        self.minimum = np.minimum(self.minimum, values.min(axis=0))
        self.maximum = np.maximum(self.maximum, values.max(axis=0))

    def as_dict(self, num_rows: int) -> dict[str, Any]:
        """JSON-able figures; None per channel where no pixel was valid."""
        seen = self.count > 0
        return {
            "mean": self.mean.tolist() if seen else None,
            "std": np.sqrt(self.squares / self.count).tolist() if seen else None,
            "minimum": self.minimum.tolist() if seen else None,
            "maximum": self.maximum.tolist() if seen else None,
            "nodata_share": 1 - self.count / self.pixels if self.pixels else None,
            "missing_share": self.missing_rows / num_rows if num_rows else None,
        }


class SplitStatistics:
    """What one split holds: rows, gaps and values per modality, pixels per class."""

    def __init__(
        self, modalities: Sequence[str], channels: Sequence[int], nodata: Sequence[Sequence[float]], num_classes: int
    ) -> None:
        self.modalities = {
            name: _ModalityStatistics(*pair) for name, *pair in zip(modalities, channels, nodata, strict=True)
        }
        self.class_pixels = np.zeros(num_classes, dtype=np.int64)
        self.ignored_pixels = 0
        self.num_rows = 0
        self.unlabelled_rows = 0

    def update(self, images: Mapping[str, np.ndarray | None], label: np.ndarray | None) -> None:
        """Add one row."""
        self.num_rows += 1
        for name, statistics in self.modalities.items():
            statistics.update(images[name])
        if label is None:
            self.unlabelled_rows += 1
            return
        counts = np.bincount(label.ravel(), minlength=IGNORE_INDEX + 1)
        self.class_pixels += counts[: len(self.class_pixels)]
        self.ignored_pixels += int(counts[IGNORE_INDEX])

    def as_dict(self, split: str) -> dict[str, Any]:
        """The `statistics` of `DatasetMetadata`."""
        return {
            "split": split,
            "num_rows": self.num_rows,
            "modalities": [item.as_dict(self.num_rows) for item in self.modalities.values()],
            "class_pixels": self.class_pixels.tolist(),
            "ignored_pixels": self.ignored_pixels,
        }

    def class_shares(self) -> list[float]:
        """Share of the labelled pixels per class, 0 where nothing is labelled."""
        return (self.class_pixels / max(1, self.class_pixels.sum())).tolist()
