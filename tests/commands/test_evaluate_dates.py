"""`sgma-hf evaluate` over dates: from a folder and a checkpoint to the table, the JSON file and the chart."""

import json

import numpy as np
import pytest
from PIL import Image
from series_rows import series_metadata, series_rows, write_series
from tiny_models import tiny_model

from sgma_hf.commands import main
from sgma_hf.model.image_processing_sgma import SgmaImageProcessor


@pytest.fixture
def folders(tmp_path):
    """Options of a checkpoint and a data set whose first rows have 2 and 3 dates of s2."""
    metadata = series_metadata()
    names, channels = metadata.modalities, metadata.modality_channels
    model = tiny_model(modalities=names, modality_channels=channels, num_labels=2, date_periods=[365.25])
    model.save_pretrained(tmp_path / "model")
    processor = SgmaImageProcessor(
        modalities=names, modality_channels=channels, nodata=metadata.nodata, image_mean=5000.0, image_std=3000.0
    )
    processor.save_pretrained(tmp_path / "model")
    write_series(tmp_path / "data", series_rows(4, size=32))
    given = {"model": tmp_path / "model", "dataset": tmp_path / "data", "split": "train"}
    given |= {"output": tmp_path / "results.json", "tile_size": 0}
    return [str(word) for name, value in given.items() for word in (f"--{name}", value)] + ["--allow_other_scale"]


def test_dates_are_scored_by_share_day_and_gap(folders, tmp_path, capsys):
    asked = "--dates all half --before 2019-02-01 2019-03-01 --gap 2019-01-15 2019-02-15 --seed 5".split()
    assert main(["evaluate", *folders, *asked, "--plot", str(tmp_path / "season.png")]) == 0
    text, results = capsys.readouterr().out, json.loads((tmp_path / "results.json").read_text())
    dates = results["dates"]
    kinds = ["share", "share", "before", "before", "gap"]
    assert list(dates["kinds"].values()) == kinds and (dates["seed"], dates["draws"]) == (5, 5)
    assert dates["conditions"]["all"]["combinations"] == results["combinations"]
    assert "| mIoU in % from dates before a day | before 2019-02-01 | before 2019-03-01 |" in text
    assert "| mIoU in % without the dates of a time | without 2019-01-15 to 2019-02-15 |" in text
    assert "Over the combinations and all, half of the dates: Average" in text and "seed 5" in text
    with Image.open(tmp_path / "season.png") as picture:
        assert np.asarray(picture.convert("L")).min() < 128


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (["--dates", "third"], "Share of dates 'third' is none of ['all', 'half', 'quarter'], nor a number"),
        (["--before", "20190230"], "'20190230' is no date"),
        (["--gap", "2019-03-01", "2019-02-01"], "The gap from 2019-03-01 to 2019-02-01 has no day"),
        (["--plot", "season.png"], "`--plot` draws the scores over the days of `--before`; give some"),
        (["--before", "2019-03-01", "--plot", "season.xyz"], "`--plot season.xyz`: expected a file that ends in .png"),
        (["--dates", "half", "--missing", "zero"], "`--dates`, `--before` and `--gap` take neither `--protocol`"),
    ],
)
def test_what_means_nothing_is_refused_in_a_line(folders, tmp_path, capsys, asked, message):
    try:
        status = main(["evaluate", *folders, *asked])
    except SystemExit as stop:
        status = stop.code
    error = capsys.readouterr().err
    assert status == 2 and message in error and not (tmp_path / "results.json").exists()
