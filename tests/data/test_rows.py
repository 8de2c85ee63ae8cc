"""Rows: missing stays missing, broken rows are named."""

import numpy as np
import pytest
from datasets import load_dataset
from tiny_dataset import make_metadata, make_rows, write_dataset
from transformers.utils import logging

from sgma_hf.converters.writing.parquet import ParquetDatasetWriter
from sgma_hf.data.codec import encode_raster
from sgma_hf.data.rows import decode_row, load_rows, present_modalities, with_modality_columns


def test_rows_read_back_with_nulls_as_none(tmp_path):
    write_dataset(tmp_path / "data")
    rows = load_rows(tmp_path / "data", "train")
    first, second = make_rows()
    images, label = decode_row(rows[0], ["rgb", "dsm", "sar"])
    for name, expected in first[1].items():
        assert images[name].dtype == expected.dtype
        np.testing.assert_array_equal(images[name], expected)
    np.testing.assert_array_equal(label, first[2])
    images, label = decode_row(rows[1], ["sar", "dsm", "rgb"])
    assert list(images) == ["sar", "dsm", "rgb"]
    assert images["rgb"] is None and images["sar"] is None and label is None
    np.testing.assert_array_equal(images["dsm"], second[1]["dsm"])


def test_plain_load_dataset_gives_nulls_and_pictures(tmp_path):
    write_dataset(tmp_path / "data")
    rows = load_dataset(str(tmp_path / "data"), split="train")
    assert rows.features == make_metadata().features()
    assert rows[1]["rgb"] is None and rows[1]["label"] is None
    np.testing.assert_array_equal(np.asarray(rows[0]["rgb"]), make_rows()[0][1]["rgb"])


def test_an_all_null_column_keeps_its_type(tmp_path):
    rows = [(row_id, {**images, "rgb": None, "sar": None}, None) for row_id, images, _ in make_rows()]
    write_dataset(tmp_path / "data", rows)
    loaded = load_dataset(str(tmp_path / "data"), split="train")
    assert loaded.features == make_metadata().features()
    assert [loaded[0][name] for name in ("rgb", "sar", "label")] == [None, None, None]


def test_a_damaged_cell_names_row_and_column(tmp_path):
    row = {"id": "tile_7", "rgb": None, "dsm": {"bytes": b"II*\0 not a tiff", "path": None}, "label": None}
    with pytest.raises(ValueError, match="Row 'tile_7', column 'dsm': Cannot decode"):
        decode_row(row, ["rgb", "dsm"])
    truncated = encode_raster(np.arange(4096, dtype=np.uint8).reshape(64, 64))["bytes"][:-200]
    with pytest.raises(ValueError, match="Row 'x', column 'label'"):
        decode_row({"id": "x", "label": truncated}, [])
    with pytest.raises(ValueError, match=r"no column for \['nir'\]"):
        decode_row(row, ["nir"])
    with pytest.raises(ValueError, match=r"expected class ids of shape \(height, width\)"):
        decode_row({"id": "x", "label": np.zeros((2, 2, 3), dtype=np.uint8)}, [])


def test_load_rows_names_the_splits_there_are(tmp_path):
    write_dataset(tmp_path / "data")
    with pytest.raises(ValueError, match=r"no split 'test'. Splits: \['train'\]"):
        load_rows(tmp_path / "data", "test")


@pytest.mark.parametrize("kept", [0, 500])
def test_load_rows_says_that_a_file_is_damaged(tmp_path, monkeypatch, kept):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")  # or it takes the same rows of before
    write_dataset(tmp_path / "data")
    (shard,) = (tmp_path / "data" / "data").iterdir()
    shard.write_bytes(shard.read_bytes()[:kept])
    message = r"Dataset '.*data' cannot be read: .*arquet.*\. Where a file is damaged, fetch or convert it again\.$"
    with pytest.raises(ValueError, match=message):
        load_rows(tmp_path / "data", "train")


def test_load_rows_knows_other_words_for_validation(tmp_path):
    with ParquetDatasetWriter(tmp_path / "data", make_metadata(), title="Tiny") as writer:
        writer.write("validation", *make_rows()[0])
    assert len(load_rows(tmp_path / "data", "valid")) == 1


def test_a_modality_without_a_column_is_missing_in_every_row(tmp_path, caplog):
    logging.warning_once.cache_clear()
    write_dataset(tmp_path / "data")
    rows = load_rows(tmp_path / "data", "train").add_column("city", ["A", "B"])  # which holds no rasters
    with caplog.at_level("WARNING", logger="sgma_hf.data.rows"):
        assert with_modality_columns(rows, ["sar", "rgb", "dsm"]) is rows
        assert not caplog.records
        completed = with_modality_columns(rows, ["rgb", "dsm", "nir", "sar"])
    (record,) = caplog.records
    assert "no columns ['nir']" in record.getMessage() and "'city'" in record.getMessage()
    assert present_modalities(completed, ["nir", "rgb"]).tolist() == [[False, True], [False, False]]
    images, _ = decode_row(completed[0], ["rgb", "nir"])
    assert images["nir"] is None and images["rgb"].shape == (2, 3, 3)


def test_a_misspelt_column_is_no_missing_modality(tmp_path):
    write_dataset(tmp_path / "data")
    rows = load_rows(tmp_path / "data", "train")
    with pytest.raises(ValueError, match=r"no columns \['surface'\] of the modalities .*, and has \['dsm'\]"):
        with_modality_columns(rows, ["rgb", "surface", "sar"])
    with pytest.raises(ValueError, match=r"no columns \['backscatter'\] .*, and has \['sar'\]"):  # bytes, no image
        with_modality_columns(rows, ["rgb", "dsm", "backscatter"])
    with pytest.raises(ValueError, match=r"no columns \['nir', 'thermal'\]"):
        with_modality_columns(rows.select_columns(["id", "label"]), ["nir", "thermal"])
