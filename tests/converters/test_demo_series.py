"""The made-up fields: reproducible, read back as written, and alike on single dates."""

import numpy as np
import pytest

from sgma_hf.converters.demo_series import CLASS_NAMES, demo_series_metadata, demo_series_rows, growth, main
from sgma_hf.data.metadata import DatasetMetadata
from sgma_hf.data.rows import decode_row, load_rows
from sgma_hf.model.dates_sgma import from_days, to_days


def same(one, other):
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_the_same_arguments_give_the_same_rows_and_more_rows_go_on():
    few, again, many = (list(demo_series_rows(num_rows=count, seed=3)) for count in (6, 6, 12))
    other = list(demo_series_rows(num_rows=6, seed=4))
    rows = {row[1]: row for row in many}
    for one, two, three in zip(few, again, other, strict=True):
        assert one[:2] == two[:2] == three[:2]
        for name in ("s2", "s1"):
            assert same(one[2][name], two[2][name]) and same(one[2][name], rows[one[1]][2][name])
            assert one[2][f"{name}_dates"] == two[2][f"{name}_dates"]
        assert np.array_equal(one[3], two[3]) and not np.array_equal(one[3], three[3])
    assert [row[0] for row in few] == ["train"] * 4 + ["validation", "test"]


def test_rows_are_what_the_metadata_says():
    metadata = demo_series_metadata()
    seen = np.zeros(len(CLASS_NAMES), dtype=int)
    covered = []
    for _, _, images, label in demo_series_rows(num_rows=40):
        columns = zip(metadata.modalities, metadata.modality_channels, metadata.modality_dtypes, strict=True)
        for name, channels, dtype in columns:
            assert 5 <= len(images[name]) <= 10
            assert {(image.shape, image.dtype.name) for image in images[name]} == {((32, 32, channels), dtype)}
            days = [to_days(day) for day in images[f"{name}_dates"]]
            assert days == sorted(set(days)) and len(days) == len(images[name])
            assert len({from_days(day).year for day in days}) == 1
        covered += [(image != 0).any(2).mean() for image in images["s2"]]
        seen += np.bincount(label.ravel(), minlength=len(CLASS_NAMES))
    shares = np.array(covered)
    assert 0.25 < (shares == 1).mean() < 0.45 and 0.15 < (shares < 0.3).mean() < 0.35
    assert (seen / seen.sum() > 0.05).all()


def test_crops_differ_in_when_they_are_green():
    """Each of those that are sown is as bare and as green as the others at some time; the greatest growth is apart."""
    days = np.arange(20, 346.0)
    curves = {crop: growth(crop, days) for crop in ("early_crop", "rapeseed", "cereal", "maize", "double_season")}
    for curve in curves.values():
        assert curve.min() < 0.1 and curve.max() > 0.9
    peaks = [days[curves[crop].argmax()] for crop in ("early_crop", "rapeseed", "cereal", "maize")]
    assert min(np.diff(peaks)) >= 45
    seasons = curves["double_season"]
    assert seasons[days == 105] > 0.9 and seasons[days == 245] > 0.9 and seasons[days == 175] < 0.2


def test_the_command_writes_a_folder_that_reads_back(tmp_path, capsys):
    assert main(["--output", str(tmp_path / "series"), "--rows", "8", "--tile_size", "16", "--seed", "2"]) == 0
    assert "train 6, validation 1, test 1 rows" in capsys.readouterr().out
    metadata = DatasetMetadata.load(tmp_path / "series")
    assert metadata.series == [True, True]
    expected = {row[1]: row for row in demo_series_rows(num_rows=8, tile_size=16, seed=2)}
    for split in ("train", "test"):
        for row in load_rows(tmp_path / "series", split):
            images, label = decode_row(row, metadata.modalities)
            _, _, given, given_label = expected[row["id"]]
            assert np.array_equal(label, given_label)
            for name in metadata.modalities:
                assert same(images[name], given[name])
                assert images[f"{name}_dates"] == [to_days(day) for day in given[f"{name}_dates"]]
    card = (tmp_path / "series" / "README.md").read_text()
    assert "sgma-hf demo-series --output series --rows 8 --tile_size 16 --seed 2" in card


@pytest.mark.parametrize("arguments", [["--rows", "2"], ["--tile_size", "8"], ["--seed", "-1"]])
def test_impossible_fields_are_refused_in_one_line(tmp_path, arguments, capsys):
    assert main(["--output", str(tmp_path / "series"), *arguments]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []
