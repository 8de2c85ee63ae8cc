"""When what a map relies on was seen: reliance by months, and the day of greatest reliance."""

from collections.abc import Mapping, Sequence
from math import floor, isnan
from typing import Any

import torch

from ..model.dates_sgma import from_days, read_dates
from ..model.post_processing_sgma import modality_shares, robustness_at_pixels


MONTH, DAY = "reliance_month", "reliance_day"  # of `EXTRAS`
UNDATED = "undated"  # what was seen on a day that nobody knows, and all that is no series


class Periods:
    """The months or days by which a scene's reliance is summed up, and one more for what has no date.

    `dates` are the days of each series, as `RasterScene` has them; `by_day` keeps days apart, else months are enough.
    """

    def __init__(self, dates: Mapping[str, Sequence[float]], *, by_day: bool):
        days = sorted({floor(day) for several in dates.values() for day in several if not isnan(day)})
        self.by_day, self.months = by_day, months_of(dates)
        self.days = [int(from_days(day).strftime("%Y%m%d")) for day in days]  # as the map has them, 20190302
        self._bins = {day: index if by_day else self._month(day) for index, day in enumerate(days)}
        self._months = torch.tensor([self._month(day) for day in days] + [len(self.months) - 1])
        self.count = 1 + (len(days) if by_day else len(self.months) - 1)

    def _month(self, day: int) -> int:
        return self.months.index(from_days(day).strftime("%Y-%m"))

    def of_rows(self, images: Sequence[Mapping[str, Any]], modalities: Sequence[str]) -> torch.Tensor:
        """Which of the periods each observation of some rows is of, int64, (rows, T, num_modalities)."""
        rows = [[read_dates(row, name) for name in modalities] for row in images]
        slots = max(len(dates) for row in rows for dates in row)
        undated = self.count - 1
        periods = torch.full((len(rows), slots, len(modalities)), undated)
        for index, row in enumerate(rows):
            for m, dates in enumerate(row):
                own = [undated if isnan(day) else self._bins[floor(day)] for day in dates]
                periods[index, : len(own), m] = torch.tensor(own, dtype=torch.int64)
        return periods

    def shares(self, outputs: Any, modality_mask: torch.Tensor, periods: torch.Tensor) -> torch.Tensor:
        """Share of reliance on each period at every pixel, float32, (rows, `count`, height, width).

        They are made of `outputs.date_robustness` as those of the modalities are of `robustness`, and sum to 1.
        """
        robustness = [maps.flatten(1, 2) for maps in outputs.date_robustness]
        mask = modality_mask.flatten(1, 2) if modality_mask.ndim == 5 else modality_mask
        shares = modality_shares(*robustness_at_pixels(robustness, outputs.coverage, mask))
        total = shares.new_zeros(shares.shape[0], self.count, *shares.shape[2:])
        for row, own in enumerate(periods.to(shares.device).flatten(1)):
            total[row].index_add_(0, own, shares[row])
        return total

    def values(self, shares: torch.Tensor, covered: torch.Tensor) -> dict[str, torch.Tensor]:
        """Blended shares (`count`, rows, width) -> what the layers hold, (bands, rows, width).

        `reliance_month` has a band for each of `months`. `reliance_day` is int32, year, month and day as one number,
        0 where nothing that has a date covers.
        """
        shares = shares / shares.sum(0, keepdim=True).clamp_min(1e-12)
        if not self.by_day:
            return {MONTH: shares}
        values = {MONTH: shares.new_zeros(len(self.months), *shares.shape[1:]).index_add_(0, self._months, shares)}
        if self.days:
            greatest, index = shares[:-1].max(0, keepdim=True)
            day = torch.tensor(self.days, dtype=torch.int32)[index]
            values[DAY] = day.masked_fill(~covered | (greatest <= 0), 0)
        else:
            values[DAY] = torch.zeros(1, *shares.shape[1:], dtype=torch.int32)
        return values


def months_of(dates: Mapping[str, Sequence[float]]) -> list[str]:
    """The months of some dates, in their order, and `UNDATED`."""
    known = {from_days(day).strftime("%Y-%m") for days in dates.values() for day in days if not isnan(day)}
    return [*sorted(known), UNDATED]
