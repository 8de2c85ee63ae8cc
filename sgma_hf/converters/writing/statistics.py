"""Statistics of a dataset, gathered in one pass while its rows are written."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ...data.metadata import DatasetMetadata
from ...model.dates_sgma import from_days, observations, read_dates
from ...model.image_transforms_sgma import Moments, valid_pixels
from ...model.limits_sgma import IGNORE_INDEX


class _Dates:
    """How many dates of a modality rows have, and from when to when they are."""

    def __init__(self) -> None:
        self.total, self.fewest, self.most = 0, np.inf, 0
        self.first, self.last = np.inf, -np.inf  # days

    def merge(self, total: int, fewest: float, most: int, first: float, last: float) -> None:
        self.total += total
        self.fewest, self.most = min(self.fewest, fewest), max(self.most, most)
        self.first, self.last = min(self.first, first), max(self.last, last)

    def __str__(self) -> str:
        """`5 to 10 dates, 2016-01-21 to 2021-12-10`."""
        if not self.total:
            return "no dates"
        count = f"{self.fewest} to {self.most}" if self.fewest < self.most else f"{self.most}"
        days = [from_days(day).date().isoformat() for day in (self.first, self.last) if np.isfinite(day)]
        return ", ".join([f"{count} date{'s' if self.most > 1 else ''}", " to ".join(days)]).removesuffix(", ")


class _ModalityStatistics:
    """Mean, spread, range and gaps of one modality, merged row by row."""

    def __init__(self, channels: int, nodata: Sequence[float], series: bool) -> None:
        self.nodata = list(nodata)
        self.dates = _Dates() if series else None
        self.moments = Moments(channels)
        self.minimum = np.full(channels, np.inf)
        self.maximum = np.full(channels, -np.inf)
        self.pixels = 0
        self.missing_rows = 0

    def update(self, rasters: Sequence[np.ndarray], days: Sequence[float]) -> None:
        """Add one row's rasters, (height, width) or (height, width, channels): one, those of a series, or none."""
        self.missing_rows += not len(rasters)
        if self.dates is not None and len(rasters):
            known = [day for day in days if not np.isnan(day)]
            count = len(rasters)
            self.dates.merge(count, count, count, min(known, default=np.inf), max(known, default=-np.inf))
        for array in rasters:
            self._add(array)

    def _add(self, array: np.ndarray) -> None:
        valid = valid_pixels(array, self.nodata)
        self.pixels += valid.size
        if valid.any():
            values = np.atleast_3d(array)[valid].T  # (C, N)
            self.moments.update(values, None)
            self._widen(values.min(axis=1), values.max(axis=1))

    def _widen(self, minimum: np.ndarray, maximum: np.ndarray) -> None:
        self.minimum = np.minimum(self.minimum, minimum)
        self.maximum = np.maximum(self.maximum, maximum)

    def merge_state(self, state: Mapping[str, Any]) -> None:
        """Add what another instance gathered; `state` is what its `state` gave."""
        self.pixels += state["pixels"]
        self.missing_rows += state["missing_rows"]
        if self.dates is not None:
            self.dates.merge(**state["dates"])
        if state["count"]:
            self.moments.merge(state["count"], np.array(state["mean"]), np.array(state["squares"]))
            self._widen(np.array(state["minimum"]), np.array(state["maximum"]))

    def state(self) -> dict[str, Any]:
        """Everything gathered, as numbers that JSON keeps exactly (infinities as Python writes them)."""
        return {
            "count": self.moments.count,
            "mean": self.moments.mean.tolist(),
            "squares": self.moments.squares.tolist(),
            "minimum": self.minimum.tolist(),
            "maximum": self.maximum.tolist(),
            "pixels": self.pixels,
            "missing_rows": self.missing_rows,
            **({} if self.dates is None else {"dates": vars(self.dates)}),
        }

    def as_dict(self, num_rows: int) -> dict[str, Any]:
        """JSON-able figures; None per channel where no pixel was valid."""
        count = self.moments.count
        return {
            "mean": self.moments.mean.tolist() if count else None,
            "std": np.sqrt(self.moments.squares / count).tolist() if count else None,
            "minimum": self.minimum.tolist() if count else None,
            "maximum": self.maximum.tolist() if count else None,
            "nodata_share": 1 - count / self.pixels if self.pixels else None,
            "missing_share": self.missing_rows / num_rows if num_rows else None,
        }


class SplitStatistics:
    """What one split holds: rows, gaps and values per modality, pixels per class."""

    def __init__(self, metadata: DatasetMetadata) -> None:
        columns = zip(metadata.modalities, metadata.modality_channels, metadata.nodata, strict=True)
        self.modalities = {
            name: _ModalityStatistics(channels, nodata, metadata.is_series(name)) for name, channels, nodata in columns
        }
        self.class_pixels = np.zeros(len(metadata.class_names), dtype=np.int64)
        self.ignored_pixels = 0
        self.num_rows = 0
        self.unlabelled_rows = 0

    def state(self) -> dict[str, Any]:
        """Everything gathered, as JSON keeps it exactly."""
        return {
            "modalities": {name: item.state() for name, item in self.modalities.items()},
            "class_pixels": self.class_pixels.tolist(),
            "ignored_pixels": self.ignored_pixels,
            "num_rows": self.num_rows,
            "unlabelled_rows": self.unlabelled_rows,
        }

    def merge_state(self, state: Mapping[str, Any]) -> None:
        """Add what another instance gathered; `state` is what its `state` gave."""
        for name, item in self.modalities.items():
            item.merge_state(state["modalities"][name])
        self.class_pixels += np.array(state["class_pixels"], dtype=np.int64)
        self.ignored_pixels += state["ignored_pixels"]
        self.num_rows += state["num_rows"]
        self.unlabelled_rows += state["unlabelled_rows"]

    def update(self, images: Mapping[str, Any], label: np.ndarray | None) -> None:
        """Add one row."""
        self.num_rows += 1
        for name, statistics in self.modalities.items():
            statistics.update(observations(images, name), read_dates(images, name))
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

    def ignored_share(self) -> float:
        """Share of the pixels of all labels that have no class, 0 where there are none."""
        return self.ignored_pixels / max(1, self.class_pixels.sum() + self.ignored_pixels)
