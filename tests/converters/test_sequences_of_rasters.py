"""Scenes of one place at several dates, and frames of a video: rows that know their sequence."""

from datetime import datetime

import numpy as np
import pytest
from PIL import Image
from raster_scenes import write_tiff

from sgma_hf.converters.raster_folders import main
from sgma_hf.data.metadata import DatasetMetadata
from sgma_hf.data.rows import load_rows
from sgma_hf.evaluation.over_time.consistency import rows_of_sequences


def run(source, out, *arguments) -> int:
    return main(["--source", str(source), "--output", str(out), "--modalities", "nir", *map(str, arguments)])


def _write_flights(source, names, **options):
    values = np.arange(16 * 16, dtype=np.uint8).reshape(1, 16, 16)
    for folder in ("nir", "label"):
        (source / folder).mkdir(parents=True, exist_ok=True)
    for name in names:
        write_tiff(source / "nir" / f"{name}.tif", values, **options)
        write_tiff(source / "label" / f"{name}.tif", values % 2, **options)


def test_flights_over_one_field_are_a_sequence_tile_by_tile(tmp_path):
    names = ["fieldA_2024-06-11", "fieldA_2024-05-02", "fieldB_20240502T0915", "fieldB_2024-05-01"]
    _write_flights(tmp_path / "raw", names)
    arguments = ["--tile_size", 8, "--sequence_regex", r"(field\w)_"]
    assert run(tmp_path / "raw", tmp_path / "out", *arguments) == 0
    rows = load_rows(tmp_path / "out", "train")
    assert DatasetMetadata.load(tmp_path / "out").sequences and len(rows) == 4 * 4
    by_id = {row["id"]: (row["sequence"], row["label_date"]) for row in rows}
    assert by_id["fieldA_2024-05-02_y00008_x00000"] == ("fieldA_y00008_x00000", datetime(2024, 5, 2))
    assert by_id["fieldB_20240502T0915_y00000_x00008"] == ("fieldB_y00000_x00008", datetime(2024, 5, 2, 9, 15))
    found = rows_of_sequences(rows)
    assert len(found) == 8 and all(len(sequence) == 2 for sequence in found)
    assert all(rows[first]["label_date"] < rows[second]["label_date"] for first, second in found)


def test_frames_of_a_video_follow_each_other_by_their_names(tmp_path):
    for index in range(3):
        for folder in ("nir", "label"):
            path = tmp_path / "raw" / folder / f"clip7_{index:04d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((8, 8), index % 2, np.uint8)).save(path)
    assert run(tmp_path / "raw", tmp_path / "out", "--sequence_regex", r"(.+)_\d+$") == 0
    rows = load_rows(tmp_path / "out", "train")
    assert rows["sequence"] == ["clip7"] * 3 and rows["label_date"] == [None] * 3
    assert rows_of_sequences(rows) == [[0, 1, 2]] and rows["id"] == [f"clip7_000{index}" for index in range(3)]


@pytest.mark.parametrize(
    ("options", "regex", "message"),
    [
        ({"origin": (500000.6, 4800000.0)}, r"(.+)_", "are of sequence 'field', but not pixel on pixel: 16 x 16"),
        ({}, r"(\d{7})", "--sequence_regex '(\\\\d{7})' does not match ['field_2024-05-02'"),
        ({}, "(", "--sequence_regex '(' is not a regular expression"),
    ],
)
def test_places_that_are_not_registered_and_names_without_one_are_refused(tmp_path, capsys, options, regex, message):
    _write_flights(tmp_path / "raw", ["field_2024-05-02"])
    _write_flights(tmp_path / "raw", ["field_2024-06-11"], **options)
    assert run(tmp_path / "raw", tmp_path / "out", "--sequence_regex", regex) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()
    _write_flights(tmp_path / "raw", ["field_2024-06-11"], origin=(500000.3, 4800000.0))  # less than half a pixel
    assert run(tmp_path / "raw", tmp_path / "out", "--sequence_regex", r"(.+)_") == 0
