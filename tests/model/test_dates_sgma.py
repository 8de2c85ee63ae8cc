"""Dates of any form are days since 2000, and a row's dates are those of its rasters."""

import math
from datetime import UTC, date, datetime, timedelta, timezone

import numpy as np
import pandas as pd
import pytest
import torch

from sgma_hf.model.dates_sgma import from_days, is_series, observations, read_dates, to_days


IN_BERLIN = datetime(2019, 3, 2, 1, 30, tzinfo=timezone(timedelta(hours=2)))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("2000-01-01", 0.0),
        ("2000-01-02T12:00", 1.5),
        ("2019-03-02", 7000.0),  # 19 years of 365 days, 5 leap days, 31 + 28 days and one more
        ("20190302", 7000.0),
        ("2019-03-02T00:00:00Z", 7000.0),
        ("2019-03-02T02:00:00+02:00", 7000.0),
        ("1999-12-31", -1.0),
        ("2087-06-01", 31928.0),  # of the future
        (IN_BERLIN, 7000 - 0.5 / 24),
        (IN_BERLIN.astimezone(UTC), 7000 - 0.5 / 24),
        (datetime(2019, 3, 2, 6), 7000.25),
        (date(2019, 3, 2), 7000.0),
        (pd.Timestamp("2019-03-02T06:00"), 7000.25),
        (np.datetime64("2019-03-02"), 7000.0),
        (np.datetime64("2019-03-02T06:00:00.000000000"), 7000.25),
        (np.datetime64("2019-03"), 6999.0),
        (7000, 7000.0),
        (np.float32(0.25), 0.25),
        (-3.5, -3.5),
    ],
)
def test_dates_of_any_form_are_days_since_2000(value, expected):
    assert to_days(value) == pytest.approx(expected, abs=1e-9)


def test_leap_years_are_counted_as_the_calendar_has_them():
    for year in range(1970, 2101):
        assert to_days(f"{year}-03-01") == date(year, 3, 1).toordinal() - date(2000, 1, 1).toordinal()


@pytest.mark.parametrize("value", [None, math.nan, pd.NaT, np.datetime64("NaT"), np.float32("nan")])
def test_an_unknown_date_is_nan_and_none_again(value):
    assert math.isnan(to_days(value)) and from_days(to_days(value)) is None


@pytest.mark.parametrize("value", ["spring", "2019-13-02", "2019-02-29", "02.03.2019", "2019-03", ""])
def test_text_that_is_no_date_is_refused_in_one_line(value):
    with pytest.raises(ValueError, match=rf"^'{value}' is no date; expected ISO text such as '2019-03-02'.*$") as info:
        to_days(value)
    assert "\n" not in str(info.value)


@pytest.mark.parametrize("value", [math.inf, -math.inf])
def test_an_infinite_number_is_no_date(value):
    with pytest.raises(ValueError, match="expected a finite number of days"):
        to_days(value)


@pytest.mark.parametrize("value", [True, b"2019-03-02", {}, timedelta(1)])
def test_what_is_no_date_at_all_is_refused(value):
    with pytest.raises(TypeError, match=f"A {type(value).__name__} is no date"):
        to_days(value)


def test_a_moment_comes_back_to_the_millisecond():
    for moment in (datetime(2018, 9, 17, 10, 36, 52, 789000), datetime(1, 1, 1), datetime(9999, 12, 31, 23, 59, 59)):
        assert from_days(to_days(moment)) == moment


def test_a_number_that_is_no_day_is_refused_with_how_dates_are_written():
    with pytest.raises(
        ValueError, match="20190302 days from 2000-01-01 are not in the years 1 to 9999; write dates as"
    ):
        from_days(20190302)


def test_a_list_of_rasters_is_a_series_and_lists_of_numbers_are_one_raster():
    image = np.zeros((2, 3))
    for series in (
        [image],
        (image, image),
        [],
        ["a.png"],
        [{"bytes": b""}],
        np.zeros((4, 2, 3, 1)),
        torch.zeros(4, 1, 2, 3),
    ):
        assert is_series(series) and len(observations({"a": series}, "a")) == len(series)
    for raster in ([[1, 2], [3, 4]], [[[1], [2]]], image, torch.zeros(1, 2, 3), "a.png", b"", {"bytes": b""}):
        assert not is_series(raster) and len(observations({"a": raster}, "a")) == 1
    assert observations({"a": None}, "a") == observations({}, "a") == []


def test_dates_are_read_one_for_each_raster():
    rasters = [np.zeros((2, 3)), np.ones((2, 3))]
    row = {"a": rasters, "b": rasters, "c": rasters[0], "d": None, "e": []}
    row |= {"a_dates": ["2000-01-03", None], "c_dates": "2000-01-03", "d_dates": None, "e_dates": []}
    assert np.array_equal(read_dates(row, "a"), [2, math.nan], equal_nan=True)
    assert np.array_equal(read_dates(row, "b"), [math.nan, math.nan], equal_nan=True)
    assert read_dates(row, "c") == [2.0] and read_dates(row, "d") == read_dates(row, "e") == []
    for dates in (
        np.array(["2000-01-03", "2000-01-05"], "datetime64[s]"),
        torch.tensor([2.0, 4.0]),
        pd.Series([2, 4]),
    ):
        assert read_dates({"a": rasters, "a_dates": dates}, "a") == [2.0, 4.0]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"a": None, "a_dates": ["2000-01-03"]}, "'a_dates' has 1 dates for 0 rasters in 'a'; give one for each"),
        ({"a": [], "a_dates": ["2000-01-03"]}, "1 dates for 0 rasters"),
        ({"a": ["1.png", "2.png"], "a_dates": []}, "0 dates for 2 rasters"),
        ({"a": ["1.png", "2.png"], "a_dates": "2000-01-03"}, "1 dates for 2 rasters"),
        ({"a": ["1.png"], "a_dates": ["soon"]}, "'a_dates': 'soon' is no date"),
        ({"a": ["1.png", None]}, r"'a' has no raster at positions \[1\]; leave them out, and their dates"),
    ],
)
def test_dates_without_rasters_and_the_reverse_are_refused(row, message):
    with pytest.raises(ValueError, match=message):
        read_dates(row, "a")
