"""PASTIS: from a folder laid out as published to rows of series, bit for bit, with its traps."""

import dataclasses
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from converted_rows import assert_streams_the_same, decoded
from pastis_fixtures import AS_TEXT, PATCHES, SENSORS, SIZE, arrays, days, spot, write_pastis

from sgma_hf.converters.series import pastis
from sgma_hf.converters.series.pastis import CLASSES, FOLDS, PASTIS, Pastis, PastisReader, block_means, read_dates
from sgma_hf.data.metadata import DatasetMetadata
from sgma_hf.data.rows import load_rows
from sgma_hf.model.dates_sgma import to_days
from sgma_hf.model.image_transforms_sgma import valid_pixels


@pytest.fixture(autouse=True)
def as_published(monkeypatch):
    """The tiny set is the whole one."""
    protocol = dataclasses.replace(PASTIS.splits["official"], total=len(PATCHES))
    monkeypatch.setattr(PastisReader, "description", dataclasses.replace(PASTIS, splits={"official": protocol}))


@pytest.fixture
def source(tmp_path):
    return write_pastis(tmp_path)


def run(source, *arguments):
    return pastis.main(["--source", str(source), "--num_proc", "1", *map(str, arguments)])


def _days(patch, sensor):
    """Days since 2000, worked out from the digits alone."""
    dates = [f"{day // 10000:04d}-{day // 100 % 100:02d}-{day % 100:02d}" for day in days(patch, sensor)]
    return [int((np.datetime64(day) - np.datetime64("2000-01-01")) / np.timedelta64(1, "D")) for day in dates]


def test_arrays_come_back_bit_for_bit_with_every_date(source, tmp_path):
    assert run(source, "--output", tmp_path / "out") == 0
    rows = decoded(tmp_path / "out", "train") | decoded(tmp_path / "out", "validation")
    rows |= decoded(tmp_path / "out", "test")
    assert sorted(rows) == sorted(map(str, PATCHES))
    for patch in PATCHES:
        images, label = rows[str(patch)]
        stored = arrays(patch)
        for sensor, (_, bands) in SENSORS.items():
            read = np.stack(images[sensor.lower()])
            assert read.dtype == (np.int16 if sensor == "S2" else np.float32)
            np.testing.assert_array_equal(read, stored[sensor].transpose(0, 2, 3, 1))  # float16 loses nothing
            assert read.shape[1:] == (SIZE, SIZE, bands)
            dates = images[f"{sensor.lower()}_dates"]
            assert dates == _days(patch, sensor) and len(dates) == len(read)
            assert dates[3] == dates[4]  # two acquisitions of one day are two dates
        ids = stored["TARGET"][0].astype(int)
        np.testing.assert_array_equal(label, np.where(ids == 19, 255, ids))
        assert label[0, :3].tolist() == [0, 18, 255]


def test_pixels_outside_the_swath_are_no_data_and_one_dark_band_is_none(source, tmp_path):
    run(source, "--output", tmp_path / "out", "--sensors", "s2")
    metadata = DatasetMetadata.load(tmp_path / "out")
    assert (metadata.modalities, metadata.series, metadata.nodata) == (["s2"], [True], [[0.0]])
    images, _ = decoded(tmp_path / "out", "train")["10000"]
    valid = valid_pixels(images["s2"][0], metadata.nodata[0])
    np.testing.assert_array_equal(valid, np.arange(SIZE)[:, None].repeat(SIZE, 1) >= 3)
    assert valid_pixels(images["s2"][1], metadata.nodata[0]).all()
    assert metadata.resolution == 10 and metadata.class_names == list(CLASSES)


@pytest.mark.parametrize("run_number", range(1, 6))
def test_folds_are_the_official_ones(source, run_number):
    survey = PastisReader(dataclasses.replace(Pastis(data_dir="x").config, choices={"fold": run_number})).find(source)
    official = [([1, 2, 3], 4, 5), ([2, 3, 4], 5, 1), ([3, 4, 5], 1, 2), ([4, 5, 1], 2, 3), ([5, 1, 2], 3, 4)]
    train, validation, test = official[run_number - 1]
    assert FOLDS[run_number] == (train, validation, test)
    found = {scene.name: scene.split for scene in survey.scenes}
    expected = {**dict.fromkeys(train, "train"), validation: "validation", test: "test"}
    assert found == {str(patch): expected[fold] for patch, fold in PATCHES.items()}
    assert [scene.name for scene in survey.scenes] == sorted(found)


def test_dates_are_read_as_a_dictionary_or_as_text():
    stored = {"0": 20180917, "10": 20181111, "2": 20180927, "1": "20180917"}
    expected = ("2018-09-17", "2018-09-17", "2018-09-27", "2018-11-11")
    assert read_dates(stored) == read_dates(json.dumps(stored)) == read_dates(str(stored)) == expected
    for wrong in (None, "nan", 3, {"0": 20181340}, {"a": 20180917}):
        with pytest.raises(ValueError, match=r"^dates "):
            read_dates(wrong)


def test_spot_is_averaged_to_ten_metres(tmp_path):
    source = write_pastis(tmp_path, with_spot=True)
    run(source, "--output", tmp_path / "out", "--sensors", "s2+s1+spot", "--fold", 2)
    images, _ = decoded(tmp_path / "out", "test")["10000"]
    blocks = spot(10000).astype(np.float64)
    expected = np.array(
        [[blocks[10 * y : 10 * y + 10, 10 * x : 10 * x + 10].mean((0, 1)) for x in range(SIZE)] for y in range(SIZE)]
    )
    assert images["spot"].dtype == np.uint8
    np.testing.assert_array_equal(images["spot"], np.floor(expected + 0.5))
    card = (tmp_path / "out" / "README.md").read_text()
    assert "SPOT's pixels of 1 m are averaged to the 10 m" in card
    assert "Run 2: trained on folds [2, 3, 4], validated on 5, tested on 1." in card
    np.testing.assert_array_equal(block_means(np.array([[[0], [1]], [[0], [1]]], np.uint8), 2), [[[1]]])  # halves up


def test_rows_are_few_in_a_row_group_and_stream_the_same(source, tmp_path):
    run(source, "--output", tmp_path / "out", "--tile_size", 4)
    shards = list((tmp_path / "out" / "data").glob("*.parquet"))
    groups = [pq.ParquetFile(path).metadata for path in shards]
    sizes = [group.row_group(i).num_rows for group in groups for i in range(group.num_row_groups)]
    assert sum(sizes) == 16 * len(PATCHES) and max(sizes) == 8
    assert_streams_the_same(tmp_path / "out", "train")
    images, label = decoded(tmp_path / "out", "test")["20003_y00004_x00008"]
    stored = arrays(20003)
    np.testing.assert_array_equal(np.stack(images["s1d"]), stored["S1D"][..., 4:8, 8:12].transpose(0, 2, 3, 1))
    ids = stored["TARGET"][0, 4:8, 8:12].astype(int)
    np.testing.assert_array_equal(label, np.where(ids == 19, 255, ids))


def test_whole_series_and_parts_of_them_are_withheld_on_purpose(source, tmp_path):
    run(source, "--output", tmp_path / "out", "--missing", "s1a=1", "--coverage", "s2=1")
    rows = load_rows(tmp_path / "out", "train")
    assert all(row["s1a"] is None and row["s1a_dates"] is None and len(row["s2"]) > 10 for row in rows)
    assert all(row["s1a"] is not None for row in load_rows(tmp_path / "out", "test"))
    images, _ = decoded(tmp_path / "out", "train")["10000"]
    gone = [~valid_pixels(date, [0.0]) for date in images["s2"]]
    assert gone[5].all()  # a date of which there was nothing does not keep the others whole
    assert gone[1].any() and not gone[1].all() and (gone[1] == gone[2]).all()


def test_what_is_missing_or_damaged_is_said_before_anything_is_written(source, tmp_path, capsys):
    base = source / "PASTIS-R"
    assert run(source, "--check") == 0
    assert "complete and sound" in capsys.readouterr().out
    np.save(base / "DATA_S2" / "S2_10001.npy", arrays(10001)["S2"][:-1])
    target = base / "ANNOTATIONS" / f"TARGET_{AS_TEXT}.npy"
    target.write_bytes(target.read_bytes()[:200])
    np.save(base / "ANNOTATIONS" / "TARGET_10007.npy", np.full((3, SIZE, SIZE), 20, np.uint8))
    (base / "DATA_S1D" / "S1D_10000.npy").unlink()
    assert run(source, "--check") == 1
    said = capsys.readouterr().out
    assert "is int16 of (12, 10, 16, 16); expected int16 of 10 bands at 13 dates, those that metadata.geojson" in said
    assert f"TARGET_{AS_TEXT}.npy: is no array" in said
    assert "TARGET_10007.npy: holds the ids [20]; expected 0 to 19" in said
    assert "patch 10000: has no file for `s1d`, though others have" in said
    assert "Damaged (3):" in said
    assert run(source, "--output", tmp_path / "out") == 2 and not (tmp_path / "out").exists()
    assert run(source, "--output", tmp_path / "out", "--skip_damaged", "--allow_missing") == 0
    images, _ = decoded(tmp_path / "out", "train")["10000"]
    assert images["s1d"] is None and len(images["s1a"]) == 13


def test_pastis_without_radar_is_told_how_to_go_on(tmp_path, capsys):
    source = write_pastis(tmp_path, sensors=("S2",))
    assert run(source, "--output", tmp_path / "out") == 2
    assert "has no files for `s1a`. Choose --sensors s2 to do without" in capsys.readouterr().err
    assert run(source, "--output", tmp_path / "out", "--sensors", "s2") == 0
    assert run(tmp_path / "unpacked" / "PASTIS-R" / "DATA_S2", "--check") == 1
    assert "holds no metadata.geojson" in capsys.readouterr().out
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "metadata.geojson").write_text('{"features": []}')
    assert run(tmp_path / "empty", "--check") == 1
    assert "is no list of patches with ID_PATCH and Fold (it has none)" in capsys.readouterr().out


def test_the_builder_gives_the_same_rows(source, tmp_path):
    run(source, "--output", tmp_path / "out", "--fold", 5)
    builder = Pastis(data_dir=str(source), fold=5, cache_dir=str(tmp_path / "cache"))
    written = {row["id"]: row for row in load_rows(tmp_path / "out", "test")}
    for row in builder.as_streaming_dataset(split="test"):
        assert row["s2"] == written[row["id"]]["s2"] and row["s2_dates"] == written[row["id"]]["s2_dates"]
        assert [to_days(day) for day in row["s2_dates"]] == _days(int(row["id"]), "S2")
