"""Dates as numbers, and the rows that hold them: `{"s2": [a, b], "s2_dates": ["2019-03-02", None]}`."""

import math
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Any

import numpy as np

from .limits_sgma import DATES_SUFFIX


EPOCH = datetime(2000, 1, 1)  # UTC, as all dates without a zone are here


def to_days(value: Any) -> float:
    """Days since 2000-01-01T00:00 UTC; NaN for a date that nobody knows.

    Args:
        value: ISO 8601 text (`2019-03-02`, also with a time, and with `Z` or an offset), a `datetime`, a `date`, a
            `numpy.datetime64`, a number, which is taken as it is, or None or NaT. A time without a zone is UTC.

    Raises:
        ValueError: If a text is no date, or a number is infinite.
        TypeError: If it is something else.
    """
    if value is None or value != value:  # NaN and NaT are not what they are
        return math.nan
    if isinstance(value, np.datetime64):
        return (value - np.datetime64(EPOCH)) / np.timedelta64(1, "D")
    if hasattr(value, "__float__") and not isinstance(value, bool | np.bool_):
        if math.isinf(value):
            raise ValueError(f"{value} is no date; expected a finite number of days since 2000-01-01, or None.")
        return float(value)
    try:
        moment = datetime.fromisoformat(value) if isinstance(value, str) else value
        if isinstance(moment, datetime):
            moment = moment if moment.tzinfo is None else moment.astimezone(UTC).replace(tzinfo=None)
        elif isinstance(moment, date):
            moment = datetime(moment.year, moment.month, moment.day)
        else:
            raise TypeError(f"A {type(value).__name__} is no date; expected ISO text, a datetime or a number of days.")
    except (ValueError, OverflowError) as error:
        raise ValueError(
            f"{value!r} is no date; expected ISO text such as '2019-03-02' or '2019-03-02T10:30:00Z'."
        ) from error
    return (moment - EPOCH) / timedelta(days=1)


def from_days(days: float) -> datetime | None:
    """The moment, UTC without a zone and to the millisecond, that `to_days` made days of; None for NaN.

    Raises:
        ValueError: If it is not in the years 1 to 9999: numbers such as 20190302 are no dates.
    """
    if math.isnan(days):
        return None
    try:
        return EPOCH + timedelta(milliseconds=round(days * 86_400_000))
    except OverflowError as error:
        raise ValueError(
            f"{days:.10g} days from 2000-01-01 are not in the years 1 to 9999; write dates as '2019-03-02'."
        ) from error


def is_series(value: Any) -> bool:
    """Whether an entry of a row is a series of rasters: a list, or an array of four axes, the first of them time.

    Lists of numbers, and of lists, are one raster.
    """
    if isinstance(value, list | tuple):
        return not value or not isinstance(value[0], list | tuple | int | float | np.number)
    return getattr(value, "ndim", 0) == 4


def observations(row: Mapping[str, Any], name: str) -> Sequence[Any]:
    """The rasters of a modality in a row: those of a series, one, or none where it is missing."""
    value = row.get(name)
    if value is None:
        return []
    return value if is_series(value) else [value]


def over_dates(mask: Any) -> Any:
    """Where each modality is there on any date: a batch's mask (batch_size, T, num_modalities, ...) without its T."""
    return mask.any(1) if mask.ndim in (3, 5) else mask


def dates_for(config: Any, dates: Any) -> dict[str, Any]:
    """Dates as an argument of a model; none for one without `date_periods`, which takes a series as a set."""
    return {} if dates is None or config.date_periods is None else {"dates": dates}


def read_dates(row: Mapping[str, Any], name: str) -> list[float]:
    """The days of each of a modality's `observations`, NaN where nobody knows.

    Raises:
        ValueError: If there are dates without rasters or the reverse, a raster is None, or a text is no date.
    """
    rasters, dates = observations(row, name), row.get(f"{name}{DATES_SUFFIX}")
    gaps = [index for index, raster in enumerate(rasters) if raster is None]
    if gaps:
        raise ValueError(f"{name!r} has no raster at positions {gaps[:5]}; leave them out, and their dates.")
    if dates is None:
        return [math.nan] * len(rasters)
    dates = [dates] if isinstance(dates, str) or not hasattr(dates, "__len__") else list(dates)
    if len(dates) != len(rasters):
        raise ValueError(
            f"{name + DATES_SUFFIX!r} has {len(dates)} dates for {len(rasters)} rasters in {name!r}; give one for "
            "each, None where it is unknown."
        )
    try:
        return [to_days(value) for value in dates]
    except (ValueError, TypeError) as error:
        raise type(error)(f"{name + DATES_SUFFIX!r}: {error}") from error
