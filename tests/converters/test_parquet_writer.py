"""A data set is written as a whole, by the format, with its statistics."""

import errno
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
from datasets import load_dataset
from PIL import Image
from tiny_dataset import make_metadata, make_rows, write_dataset

from sgma_hf import SgmaImageProcessor
from sgma_hf.converters.raster_folders import main
from sgma_hf.converters.writing.parquet import ParquetDatasetWriter, check_output
from sgma_hf.data.metadata import DatasetMetadata
from sgma_hf.data.rows import decode_row, load_rows


def test_writer_statistics_are_those_of_the_valid_pixels(tmp_path):
    writer = write_dataset(tmp_path / "data")
    statistics = DatasetMetadata.load(tmp_path / "data").statistics
    assert statistics == writer.metadata.statistics
    values = np.array([1.5, 3.5, 2.5, 4.5, 0.0, 2.5, 4.5, 3.5, 5.5, 1.0, -9998.0])  # -9999 is left out, -9998 is data
    dsm = statistics["modalities"][1]
    np.testing.assert_allclose(dsm["mean"], [values.mean()], rtol=1e-12)
    np.testing.assert_allclose(dsm["std"], [values.std()], rtol=1e-12)
    assert (dsm["minimum"], dsm["maximum"]) == ([-9998.0], [5.5])
    assert dsm["nodata_share"] == pytest.approx(1 / 12) and dsm["missing_share"] == 0.0
    assert statistics["modalities"][0]["missing_share"] == 0.5
    assert statistics["modalities"][0]["mean"] == [7.5, 8.5, 9.5]
    assert (statistics["class_pixels"], statistics["ignored_pixels"]) == ([2, 3], 1)


def test_writer_shards_by_size_and_keeps_the_order(tmp_path):
    rows = [(f"row{index}", {**make_rows()[0][1]}, None) for index in range(5)]
    write_dataset(tmp_path / "data", rows, max_shard_bytes=600)
    names = sorted(path.name for path in (tmp_path / "data" / "data").iterdir())
    assert len(names) > 1 and names[0] == f"train-00000-of-{len(names):05d}.parquet"
    assert sum(pq.read_metadata(tmp_path / "data" / "data" / name).num_rows for name in names) == 5
    assert load_rows(tmp_path / "data", "train")["id"][:] == [f"row{index}" for index in range(5)]


def test_writer_leaves_nothing_behind_after_an_error(tmp_path):
    with (
        pytest.raises(RuntimeError, match="stop"),
        ParquetDatasetWriter(tmp_path / "data", make_metadata(), title="Tiny") as writer,
    ):
        writer.write("train", *make_rows()[0])
        raise RuntimeError("stop")
    assert list(tmp_path.iterdir()) == []
    with (
        pytest.raises(ValueError, match="no rows"),
        ParquetDatasetWriter(tmp_path / "data", make_metadata(), title="T"),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("moment", ["opened", "closed"])
def test_writer_leaves_nothing_behind_on_a_full_disk(tmp_path, monkeypatch, moment):
    def fail(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pq.ParquetWriter, "__init__" if moment == "opened" else "close", fail)
    with pytest.raises(OSError, match="No space left on device"):
        write_dataset(tmp_path / "data")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("limit", [{"_MOST_PIXELS": 3}, {"_MOST_BYTES": 11}])
def test_writer_refuses_cells_that_datasets_does_not_open(tmp_path, monkeypatch, limit):
    for name, value in limit.items():
        monkeypatch.setattr(f"sgma_hf.converters.writing.parquet.{name}", value)
    row = ("row0", {**make_rows()[0][1], "rgb": np.zeros((2, 2, 3), np.uint8)}, None)
    message = r"Row 'row0', column 'rgb': 2 x 2 pixels of 12 bytes are too many.* Cut the scenes by --tile_size"
    with pytest.raises(ValueError, match=message):
        write_dataset(tmp_path / "data", [row])
    assert list(tmp_path.iterdir()) == []


def test_writer_respects_what_is_there(tmp_path):
    write_dataset(tmp_path / "data")
    with pytest.raises(FileExistsError, match="--overwrite"):
        write_dataset(tmp_path / "data")
    write_dataset(tmp_path / "data", make_rows()[:1], overwrite=True)
    assert len(load_rows(tmp_path / "data", "train")) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "me.jpg").write_bytes(b"x")
    with pytest.raises(FileExistsError, match="left alone"):
        write_dataset(tmp_path / "photos", overwrite=True)


def test_writer_refuses_rows_that_break_the_format(tmp_path):
    (row_id, images, label), _ = make_rows()
    cases = [
        (("a", {"rgb": None}, None), "expected these"),
        ((row_id, images, label.astype(np.int64)), "a label is uint8"),
        ((row_id, images, np.full((2, 3), 2, dtype=np.uint8)), r"label ids \[2\]"),
        ((row_id, {**images, "dsm": images["rgb"]}, label), "column 'dsm'"),
    ]
    for row, message in cases:
        with pytest.raises(ValueError, match=message):
            write_dataset(tmp_path / "data", [row])
    with pytest.raises(ValueError, match="occurs twice"):
        write_dataset(tmp_path / "data", [make_rows()[0], make_rows()[0]])


def test_an_output_that_cannot_be_made_is_refused_and_one_that_can_is_not_made_yet(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OSError, match=r"Cannot write the output .*file/data: Not a directory"):
        check_output(tmp_path / "file" / "data", overwrite=False)
    check_output(tmp_path / "new" / "deep" / "data", overwrite=False)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_the_card_speaks_of_training_rows_first(tmp_path):
    with ParquetDatasetWriter(tmp_path / "data", make_metadata(), title="Tiny") as writer:
        for split in ("held_out", "train"):
            writer.write(split, *make_rows()[0])
    card = (tmp_path / "data" / "README.md").read_text()
    assert "| missing in train | missing in held_out |" in card and 'load_rows(".", "train")' in card
    assert "| -9999, NaN |" in card and "| -, NaN |" not in card


def test_a_preview_shows_what_viewers_cannot(tmp_path):
    """Every modality side by side, stretched, black where it is missing; what is read of the rows is as without it."""
    metadata = replace(make_metadata(), preview=True)
    dsm = np.tile(np.linspace(100, 200, 300, dtype=np.float32), (200, 1))
    dsm[:100, :150] = -9999
    images = {"rgb": None, "dsm": dsm, "sar": np.zeros((100, 150, 2), np.float32)}
    with ParquetDatasetWriter(tmp_path / "data", metadata, title="Tiny") as writer:
        writer.write("train", "a", images, np.zeros((200, 300), np.uint8))
    rows = load_dataset(str(tmp_path / "data"), split="train")
    assert rows.column_names == ["id", "rgb", "dsm", "sar", "label", "preview"]
    preview = np.asarray(rows[0]["preview"]).astype(int)
    assert rows[0]["preview"].format == "JPEG" and preview.shape == (67, 275, 3)
    missing, shown = preview[:, :100], preview[:, 100:200, 0]
    assert missing[:, :92].max() < 8 and shown[:25, :42].max() < 8  # apart from the blocks of JPEG beside an edge
    expected = 255 * np.clip(
        (dsm[150, ::3] - np.percentile(dsm[dsm > 0], 2)) / np.ptp(np.percentile(dsm[dsm > 0], [2, 98])), 0, 1
    )
    assert np.abs(shown[50, 8:92] - expected[8:92]).max() < 16
    read, _ = decode_row(load_rows(tmp_path / "data", "train")[0], metadata.modalities)
    assert read["rgb"] is None and np.array_equal(read["dsm"], dsm)
    assert SgmaImageProcessor(metadata.modalities, metadata.modality_channels)(rows[0]).keys() == {
        "pixel_values",
        "modality_mask",
    }
    assert DatasetMetadata.load(tmp_path / "data").preview


def test_previews_are_there_on_request_and_change_no_row(tmp_path):
    for folder, name in (("nir", "a"), ("nir", "b"), ("red", "a"), ("label", "a"), ("label", "b")):
        (tmp_path / "scenes" / folder).mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((4, 6), len(name), np.uint8)).save(tmp_path / "scenes" / folder / f"{name}.png")
    for out, flags in (("plain", []), ("shown", ["--preview"])):
        given = ["--source", str(tmp_path / "scenes"), "--output", str(tmp_path / out), "--modalities", "nir", "red"]
        assert main([*given, *flags]) == 0
    plain, shown = (load_rows(tmp_path / out, "train") for out in ("plain", "shown"))
    assert shown.column_names == [*plain.column_names, "preview"]
    assert all(row["preview"]["bytes"] for row in shown)  # where a modality is missing, too
    assert list(shown.remove_columns("preview")) == list(plain)
