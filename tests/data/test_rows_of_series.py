"""Rows with many dates: what is written comes back bit for bit, and is counted without being decoded."""

import json
from datetime import datetime

import numpy as np
import pytest
from datasets import Dataset, Features, Image, List, Value, load_dataset
from series_rows import series_metadata, series_rows, write_series

from sgma_hf.converters.writing.statistics import SplitStatistics
from sgma_hf.data.metadata import METADATA_FILE, DatasetMetadata
from sgma_hf.data.rows import (
    count_dates,
    decode_row,
    load_rows,
    present_modalities,
    warn_of_dates,
    with_modality_columns,
)
from sgma_hf.model.dates_sgma import to_days


NAMES = ["s2", "vv", "dsm"]


def test_series_read_back_bit_for_bit(tmp_path):
    write_series(tmp_path / "data")
    rows = load_rows(tmp_path / "data", "train")
    for row, (row_id, images, label) in zip(rows, series_rows(), strict=True):
        read, read_label = decode_row(row, NAMES)
        assert row["id"] == row_id
        np.testing.assert_array_equal(read_label, label)
        for name in NAMES:
            if images[name] is None:
                assert row[name] is None and read[name] is None and f"{name}_dates" not in read
                continue
            given = images[name] if isinstance(images[name], list) else [images[name]]
            found = read[name] if isinstance(images[name], list) else [read[name]]
            assert [array.dtype for array in found] == [array.dtype for array in given]
            for one, other in zip(found, given, strict=True):
                np.testing.assert_array_equal(one, other)
        for name in ("s2", "vv"):
            if images[name] is not None:
                dates = images[f"{name}_dates"] or [None] * len(images[name])
                np.testing.assert_array_equal(read[f"{name}_dates"], [to_days(date) for date in dates])


def test_columns_of_series_are_lists_with_dates_beside_them(tmp_path):
    write_series(tmp_path / "data")
    rows = load_dataset(str(tmp_path / "data"), split="train")
    assert rows.features == series_metadata().features()
    assert rows.column_names == ["id", "s2", "s2_dates", "vv", "vv_dates", "dsm", "label"]
    assert rows.features["s2"] == List(Value("binary")) and rows.features["vv"] == List(Image())
    assert rows[0]["s2_dates"][1] == datetime(2019, 2, 11, 10, 30, 31, 500000)
    assert rows[2]["s2"] is None and rows[2]["s2_dates"] is None
    assert (
        rows[1]["vv_dates"] is None and len(rows[1]["vv"]) == 1 and rows[2]["vv_dates"] == [None, datetime(2019, 3, 3)]
    )


def test_dates_are_counted_without_decoding(tmp_path):
    write_series(tmp_path / "data")
    rows = load_rows(tmp_path / "data", "train")
    expected = [[2, 0, 1], [3, 1, 1], [0, 2, 1]]
    np.testing.assert_array_equal(count_dates(rows, NAMES), expected)
    np.testing.assert_array_equal(count_dates(list(rows), NAMES), expected)
    np.testing.assert_array_equal(count_dates(rows.select([2, 0]), NAMES), [expected[2], expected[0]])
    np.testing.assert_array_equal(present_modalities(rows, NAMES), np.array(expected) > 0)
    broken = [{"s2": [b"no raster", b"neither"], "vv": [], "dsm": b"nor this"}]
    np.testing.assert_array_equal(count_dates(broken, NAMES), [[2, 0, 1]])
    with pytest.raises(ValueError, match="Row '<no id>', column 's2': Cannot decode the raster"):
        decode_row(broken[0], NAMES)


def test_pictures_of_series_are_not_decoded_by_the_library(tmp_path):
    write_series(tmp_path / "data")
    cell = load_rows(tmp_path / "data", "train")[2]["vv"][0]
    assert isinstance(cell, dict) and cell["bytes"][:2] == b"II"


def test_series_are_said_in_the_metadata_only_where_there_are_any(tmp_path):
    write_series(tmp_path / "data")
    assert DatasetMetadata.load(tmp_path / "data").series == [True, True, False]
    static = DatasetMetadata(["nir"], [1], ["uint8"], series=[False])
    static.save(tmp_path)
    assert static.series is None and "series" not in json.loads((tmp_path / METADATA_FILE).read_text())
    with pytest.raises(ValueError, match=r"`series` is \[True\]: expected one entry for each of \['nir', 'red'\]"):
        DatasetMetadata(["nir", "red"], [1, 1], ["uint8"] * 2, series=[True])
    with pytest.raises(ValueError, match="'nir_dates' is reserved"):
        DatasetMetadata(["nir", "nir_dates"], [1, 1], ["uint8"] * 2)


def test_statistics_and_the_fingerprint_are_over_all_dates(tmp_path):
    writer = write_series(tmp_path / "data")
    values = np.concatenate(
        [
            image[1 if index == 0 else 0 :].reshape(-1, 4)
            for _, images, _ in series_rows()[:2]
            for index, image in enumerate(images["s2"])
        ]
    ).astype(np.float64)
    found = writer.metadata.statistics["modalities"][0]
    np.testing.assert_allclose(found["mean"], values.mean(0), rtol=1e-12)
    np.testing.assert_allclose(found["std"], values.std(0), rtol=1e-12)
    assert found["nodata_share"] == pytest.approx(1 - len(values) / (5 * 16)) and found["missing_share"] == 1 / 3
    rows = series_rows()
    rows[0][1]["s2_dates"][0] = "2019-01-12"
    other = write_series(tmp_path / "other", rows)
    assert writer._digest.hexdigest() != other._digest.hexdigest()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"s2_dates": ["2019-01-01"]}, r"Row 'row0', column 's2': 's2_dates' has 1 dates for 2 rasters"),
        ({"vv_dates": ["2019-01-01"]}, r"Row 'row0', column 'vv': 'vv_dates' has 1 dates for 0 rasters"),
        ({"s2_dates": ["2019-01-01", "2019-02-30"]}, "'2019-02-30' is no date"),
        ({"s2_dates": [20190101, 20190201]}, "20190101 days from 2000-01-01 are not in the years"),
        ({"dsm_dates": ["2019-01-01"]}, "expected these"),
        ({"dsm": [np.zeros((4, 4), np.float32)]}, "'dsm': a list of rasters in a column that is no series"),
        ({"s2": [np.zeros((4, 4, 4), np.int16), np.zeros((4, 4, 4), np.uint16)]}, "dtype uint16, expected int16"),
    ],
)
def test_rows_that_break_the_format_are_refused(tmp_path, change, message):
    row_id, images, label = series_rows()[0]
    with pytest.raises(ValueError, match=message):
        write_series(tmp_path / "data", [(row_id, images | change, label)])
    assert list(tmp_path.iterdir()) == []


def test_two_acquisitions_of_a_day_an_array_of_dates_and_400_of_them_are_kept(tmp_path):
    _, images, label = series_rows()[0]
    twice = images | {"s2_dates": ["2019-01-01", "2019-01-01"]}
    stack = np.arange(400 * 4, dtype=np.int16).reshape(400, 1, 1, 4)
    many = {"s2": stack, "s2_dates": np.arange("2019-01-01", 400, dtype="datetime64[D]"), "vv": None, "dsm": None}
    write_series(tmp_path / "data", [("twice", twice, label), ("many", many, label[:1, :1])])
    rows = load_rows(tmp_path / "data", "train")
    read, _ = decode_row(rows[0], NAMES)
    assert read["s2_dates"] == [6940.0, 6940.0] and len(read["s2"]) == 2
    read, _ = decode_row(rows[1], NAMES)
    np.testing.assert_array_equal(np.stack(read["s2"]), stack)
    np.testing.assert_array_equal(read["s2_dates"], 6940.0 + np.arange(400))


def test_a_data_set_without_a_column_of_series_counts_it_as_missing(tmp_path):
    write_series(tmp_path / "data")
    rows = with_modality_columns(load_rows(tmp_path / "data", "train"), ["s2", "vv", "dsm", "hsi"])
    assert count_dates(rows, ["hsi"]).sum() == 0 and decode_row(rows[0], ["hsi"])[0] == {"hsi": None}


def test_cells_of_series_that_name_foreign_files_are_refused(tmp_path):
    (tmp_path / "data").mkdir()
    features = Features({"id": Value("string"), "vv": List(Image(decode=False)), "label": Image(decode=False)})
    cells = {"id": ["a"], "vv": [[{"bytes": None, "path": "/etc/passwd"}]], "label": [None]}
    Dataset.from_dict(cells, features=features).to_parquet(str(tmp_path / "data" / "train.parquet"))
    with pytest.raises(ValueError, match=r"Column 'vv' of dataset .* names the file '/etc/passwd'"):
        load_rows(tmp_path / "data", "train")


def test_card_and_summary_say_how_many_dates_there_are_and_of_when(tmp_path):
    writer = write_series(tmp_path / "data")
    dates = "2 to 3 dates, 2019-01-11 to 2019-03-11"
    assert f"  a row has s2 {dates}; vv 1 to 2 dates, 2019-03-03 to 2019-03-03" in writer.summary().splitlines()
    card = (tmp_path / "data" / "README.md").read_text()
    assert "| nodata | a row of train | missing in train |" in card and f"| 0 | {dates} | 33% |" in card
    assert "| `dsm` | 1 | float32 | - | -9999, NaN | - | 0% |" in card and "in `<column>_dates`" in card
    whole, parts = SplitStatistics(series_metadata()), SplitStatistics(series_metadata())
    for _, images, label in series_rows():
        part = SplitStatistics(series_metadata())
        for statistics in (whole, part):
            statistics.update(images, label)
        parts.merge_state(json.loads(json.dumps(part.state())))
    assert {name: str(item.dates) for name, item in parts.modalities.items()} == {
        name: str(item.dates) for name, item in whole.modalities.items()
    }


@pytest.mark.parametrize("knows_dates", [True, False])
@pytest.mark.parametrize("in_memory", [True, False])
def test_dates_that_a_model_lacks_or_rows_lack_are_said(tmp_path, monkeypatch, knows_dates, in_memory):
    said = []
    monkeypatch.setattr("sgma_hf.data.rows.logger.warning_once", said.append)
    rows = series_rows()
    for _, images, _ in rows:
        images["vv_dates"] = None
    write_series(tmp_path / "data", rows)
    loaded = load_rows(tmp_path / "data", "train")
    warn_of_dates(list(loaded) if in_memory else loaded, NAMES, knows_dates=knows_dates)
    (line,) = said
    assert ("no dates of the series ['vv'] ('vv_dates')" if knows_dates else "dates of ['s2'], and the model") in line
    warn_of_dates([{"dsm": np.ones((2, 2))}], NAMES, knows_dates=knows_dates)
    warn_of_dates(loaded, ["dsm"], knows_dates=knows_dates)
    assert len(said) == 1


def test_streamed_rows_are_those_that_are_loaded(tmp_path):
    write_series(tmp_path / "data")
    stream = load_dataset(str(tmp_path / "data"), split="train", streaming=True)
    for row, streamed in zip(load_rows(tmp_path / "data", "train"), stream, strict=True):
        (images, label), (other, other_label) = (decode_row(found, NAMES) for found in (row, streamed))
        assert images.keys() == other.keys() and np.array_equal(label, other_label)
        for name, values in images.items():
            assert (values is None) == (other[name] is None)
            if values is not None:
                np.testing.assert_array_equal(np.asarray(values), np.asarray(other[name]))
