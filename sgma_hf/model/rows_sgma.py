"""Rows of rasters, some with many dates: decoded, brought to one grid, normalised and packed into tensors."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from .dates_sgma import is_series, observations, read_dates
from .image_transforms_sgma import (
    AxisWeights,
    Raster,
    find_covered,
    interpolation_weights,
    pick_nearest,
    read_label,
    read_raster,
    resample,
    same_extent,
    shared_level,
    subtract,
)
from .limits_sgma import DATES_SUFFIX, IGNORE_INDEX, ROW_COLUMNS


@dataclass
class Row:
    """One decoded sample: rasters and their days by modality, label, grid, the window of it, and the output size."""

    rasters: list[list[Raster]]  # none where missing, one for each date of a series
    days: list[list[float]]
    has_dates: bool  # whether any modality is a series
    label: np.ndarray | None
    grid: tuple[int, int]
    window: tuple[int, int, int, int]
    size: tuple[int, int]
    levels: Mapping[str, float | np.ndarray]
    coverage: list[list[np.ndarray | bool]] = field(default_factory=list)


class _Cut(NamedTuple):
    """What a window needs of a raster: source pixels, which of them are covered (None: all), and how to resample."""

    source: Raster
    covered: np.ndarray | None
    slices: tuple[slice, slice]
    axes: tuple[AxisWeights, AxisWeights] | None

    @property
    def is_empty(self) -> bool:
        return self.covered is not None and not self.covered.any()


def _check_window(window: Sequence[int] | None, grid: tuple[int, int], *, index: int) -> tuple[int, int, int, int]:
    """Check a window (top, left, height, width) in pixels of the grid; None is all of it."""
    if window is None:
        return 0, 0, *grid
    if len(window) != 4:
        raise ValueError(f"`windows[{index}]` is {window!r}; expected (top, left, height, width) in pixels.")
    top, left, height, width = (int(number) for number in window)
    if min(top, left) < 0 or min(height, width) < 1 or top + height > grid[0] or left + width > grid[1]:
        raise ValueError(
            f"`windows[{index}]` is (top, left, height, width) = {(top, left, height, width)}, which does not lie in "
            f"the {grid[0]} x {grid[1]} pixels of the row. Shrink or move it; smaller rows are padded in the batch."
        )
    return top, left, height, width


class SgmaRowsMixin:
    """What an image processor makes of rows: reads, normalises and packs them."""

    def _read_row(
        self,
        sample: Mapping[str, Any],
        label: Any,
        window: Sequence[int] | None,
        levels: Mapping[str, float | np.ndarray] | None,
        target: dict[str, int] | None,
        *,
        index: int,
        layout: str | None,
    ) -> Row:
        """Decode one sample and settle its grid, window and output size."""
        known = {*self.modalities, *(name + DATES_SUFFIX for name in self.modalities), *ROW_COLUMNS}
        for name in sample:
            if name not in known:
                raise ValueError(
                    f"`images[{index}]` has modality {name!r}; this processor knows {self.modalities}. Rename it, "
                    "leave it out, or add it to the processor and the model."
                )
        days = [self._read_days(sample, name, index) for name in self.modalities]
        rasters = [
            [
                read_raster(value, channels, layout=layout, where=f"`images[{index}][{name!r}]`")
                for value in observations(sample, name)
            ]
            for name, channels in zip(self.modalities, self.modality_channels, strict=True)
        ]
        sizes = [(name, item.size) for name, items in zip(self.modalities, rasters, strict=True) for item in items]
        if not sizes:
            raise ValueError(
                f"`images[{index}]` has no modality: none of {self.modalities} is there. Leave the row out, or give "
                "at least one raster."
            )
        label = read_label(label, num_labels=self.num_labels, index=index)
        grid = max((size for _, size in sizes), key=lambda size: size[0] * size[1]) if label is None else label.shape
        for name, size in sizes:
            if not same_extent(grid, size):
                raise ValueError(
                    f"`images[{index}][{name!r}]` has {size[0]} x {size[1]} pixels, which does not fit the "
                    f"{grid[0]} x {grid[1]} of {'the label' if label is not None else 'the largest modality'}: they "
                    "are to span the same ground with square pixels. Crop them to one extent first."
                )
        top, left, height, width = _check_window(window, grid, index=index)
        size = (height, width) if target is None else (target["height"], target["width"])
        dated = any(
            is_series(sample.get(name)) or sample.get(name + DATES_SUFFIX) is not None for name in self.modalities
        )
        return Row(rasters, days, dated, label, grid, (top, left, height, width), size, levels or {})

    def _read_days(self, sample: Mapping[str, Any], name: str, index: int) -> list[float]:
        try:
            return read_dates(sample, name)
        except (ValueError, TypeError) as error:
            raise type(error)(f"`images[{index}]`: {error}") from error

    def _pack(self, rows: list[Row], *, with_labels: bool) -> dict[str, np.ndarray]:
        """Normalise and stack the rows, padded to the largest and to the longest series; T is left out without one."""
        height, width = (max(row.size[axis] for row in rows) for axis in (0, 1))
        num_dates = max(len(rasters) for row in rows for rasters in row.rasters)
        bounds = np.cumsum([0, *self.modality_channels])
        pixel_values = np.zeros((len(rows), num_dates, int(bounds[-1]), height, width), dtype=np.float32)
        dates = np.full((len(rows), num_dates, len(self.modalities)), np.nan, dtype=np.float32)
        for index, row in enumerate(rows):
            for m, rasters in enumerate(row.rasters):
                view = pixel_values[index, :, bounds[m] : bounds[m + 1], : row.size[0], : row.size[1]]
                row.coverage.append(self._normalize(rasters, row, m, view))
                dates[index, : len(rasters), m] = row.days[m]
        data = {"pixel_values": pixel_values, "modality_mask": self._mask(rows, num_dates, (height, width))}
        if any(row.has_dates for row in rows):
            data["dates"] = dates
        else:
            data = {name: values[:, 0] for name, values in data.items()}
        if with_labels:
            labels = np.full((len(rows), height, width), IGNORE_INDEX, dtype=np.int64)
            for index, row in enumerate(rows):
                if row.label is not None:
                    labels[index, : row.size[0], : row.size[1]] = pick_nearest(row.label, row.window, row.size)
            data["labels"] = labels
        return data

    def _mask(self, rows: list[Row], num_dates: int, size: tuple[int, int]) -> np.ndarray:
        """The modality mask, (batch_size, T, num_modalities): per image if that says it all, else per pixel."""
        found = [[part for parts in row.coverage for part in parts] for row in rows]
        whole = all(isinstance(covered, bool) for parts in found for covered in parts)
        whole = whole and all(row.size == size and any(parts) for row, parts in zip(rows, found, strict=True))
        mask = np.zeros((len(rows), num_dates, len(self.modalities), *(() if whole else size)), dtype=bool)
        for index, row in enumerate(rows):
            inside = () if whole else (slice(row.size[0]), slice(row.size[1]))
            for m, parts in enumerate(row.coverage):
                for date, covered in enumerate(parts):
                    mask[index, date, m, *inside] = covered
        return mask

    def _normalize(self, rasters: list[Raster], row: Row, m: int, out: np.ndarray) -> list[np.ndarray | bool]:
        """Write the window of modality m's rasters, normalised and on the output grid, over zeros (T, channels, ...).

        Returns what each covers: True if all of the window is covered, False if nothing is (`out` stays 0), else bool
        (height, width). The reference level is that of all dates, so that what changes between them stays.
        """
        cuts = [self._cut(raster, row, m) for raster in rasters]
        level = row.levels.get(self.modalities[m])
        if level is None and not all(cut.is_empty for cut in cuts):
            parts = [(cut.source.values, cut.covered) for cut in cuts if not cut.is_empty]
            level = shared_level(parts, self.reference_level[m])
        return [not cut.is_empty and self._write(cut, level, m, out[date]) for date, cut in enumerate(cuts)]

    def _cut(self, raster: Raster, row: Row, m: int) -> _Cut:
        top, left, height, width = row.window
        slices, axes = (slice(top, top + height), slice(left, left + width)), None
        if raster.size != row.grid or row.size != (height, width):
            axes = tuple(
                interpolation_weights(cells, start * cells / whole, length * cells / whole, new)
                for cells, start, length, whole, new in zip(
                    raster.size, row.window[:2], row.window[2:], row.grid, row.size, strict=True
                )
            )
            slices = axes[0].cells, axes[1].cells
        source = Raster(raster.values[:, *slices], None if raster.valid is None else raster.valid[slices])
        return _Cut(source, find_covered(source, self.nodata[m]), slices, axes)

    def _write(self, cut: _Cut, level: float | np.ndarray, m: int, out: np.ndarray) -> np.ndarray | bool:
        """Normalise and resample what is cut; `_normalize` says what is returned."""
        source, covered, slices, axes = cut
        values = out if axes is None else np.empty(source.values.shape, dtype=np.float32)
        mean = np.asarray(self.image_mean[m]) / self.rescale_factor[m]
        subtract(source.values, level[slices] if np.ndim(level) else level, mean, out=values)
        if covered is not None:
            np.copyto(values, 0, where=~covered)
        scale = self.rescale_factor[m] / np.asarray(self.image_std[m])
        values *= scale.astype(np.float32)[:, None, None]
        # Last: the target is often far larger, a hundredfold for a hyperspectral sensor beside RGB.
        if axes is not None:
            covered = resample(values, covered, *axes, out=out)
            if covered is not None:
                np.copyto(out, 0, where=~covered)
                if not covered.any():
                    return False
        return True if covered is None else covered
