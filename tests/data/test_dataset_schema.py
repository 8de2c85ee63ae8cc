"""The row format: rasters survive exactly, missing stays missing, broken rows are named."""

import io
import json
import struct
import zlib

import numpy as np
import pyarrow.parquet as pq
import pytest
from datasets import load_dataset
from PIL import Image
from transformers.utils import logging

from sgma_hf.converters.writing.parquet import ParquetDatasetWriter
from sgma_hf.data.codec import decode_raster, encode_raster
from sgma_hf.data.metadata import DatasetMetadata
from sgma_hf.data.rows import decode_row, load_rows, present_modalities, with_modality_columns
from sgma_hf.model.image_transforms_sgma import valid_pixels


EDGE_VALUES = {
    "uint8": [0, 1, 254, 255],
    "uint16": [0, 255, 256, 65535],
    "int16": [-32768, -1, 300, 32767],
    "int32": [-(2**31), -1, 70000, 2**31 - 1],
    "float32": [-3.4028235e38, -9999.0, 1e-40, 123.456],
}


def make_metadata() -> DatasetMetadata:
    return DatasetMetadata(
        modalities=["rgb", "dsm", "sar"],
        modality_channels=[3, 1, 2],
        modality_dtypes=["uint8", "float32", "float32"],
        nodata=[[], [-9999.0], []],
        class_names=["soil", "crop"],
        palette=[[1, 2, 3], [4, 5, 6]],
    )


def make_rows() -> list[tuple[str, dict, np.ndarray | None]]:
    rgb = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    dsm = np.array([[1.5, -9999.0, 3.5], [2.5, 4.5, 0.0]], dtype=np.float32)
    sar = np.linspace(-30, 0, 12, dtype=np.float32).reshape(2, 3, 2)
    label = np.array([[0, 1, 255], [1, 1, 0]], dtype=np.uint8)
    return [
        ("a", {"rgb": rgb, "dsm": dsm, "sar": sar}, label),
        ("b", {"rgb": None, "dsm": dsm + 1, "sar": None}, None),
    ]


def write_dataset(folder, rows=None, **options):
    with ParquetDatasetWriter(folder, make_metadata(), title="Tiny", **options) as writer:
        for row_id, images, label in rows or make_rows():
            writer.write("train", row_id, images, label)
    return writer


@pytest.mark.parametrize("dtype", EDGE_VALUES)
@pytest.mark.parametrize("shape", [(2, 2), (2, 2, 1), (1, 2, 2), (1, 1, 4), (1, 4, 1)])
def test_every_dtype_and_shape_survives_bit_for_bit(dtype, shape):
    array = np.array(EDGE_VALUES[dtype], dtype=dtype).reshape(shape)
    decoded = decode_raster(encode_raster(array))
    assert decoded.dtype == array.dtype
    expected = array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array
    np.testing.assert_array_equal(decoded, expected)


@pytest.mark.parametrize("dtype", EDGE_VALUES)
def test_the_order_of_bytes_changes_nothing(dtype):
    array = np.array(EDGE_VALUES[dtype], dtype=dtype).reshape(2, 2)
    swapped = encode_raster(array.astype(array.dtype.newbyteorder(">")))
    assert swapped == encode_raster(array)


def test_float_specials_survive():
    array = np.array([[np.nan, np.inf], [-np.inf, -0.0]], dtype=np.float32)
    np.testing.assert_array_equal(decode_raster(encode_raster(array)).view(np.uint32), array.view(np.uint32))


def test_three_bands_of_uint8_are_an_image_and_of_uint16_are_not():
    colour = np.array([[[1, 2, 3], [250, 251, 252]]], dtype=np.uint8)
    encoded = encode_raster(colour)
    assert Image.open(io.BytesIO(encoded["bytes"])).mode == "RGB"
    np.testing.assert_array_equal(decode_raster(encoded), colour)
    deep = colour.astype(np.uint16) * 257
    assert isinstance(encode_raster(deep), bytes)
    np.testing.assert_array_equal(decode_raster(encode_raster(deep)), deep)


def test_features_follow_channels_and_dtypes():
    features = DatasetMetadata(["rgb", "nir", "s2"], [3, 1, 12], ["uint8", "uint16", "int16"]).features()
    assert list(features) == ["id", "rgb", "nir", "s2", "label"]
    kinds = {name: type(feature).__name__ for name, feature in features.items()}
    assert kinds == {"id": "Value", "rgb": "Image", "nir": "Image", "s2": "Value", "label": "Image"}
    assert features["s2"].dtype == "binary"


def test_features_refuse_what_cannot_be_stored():
    with pytest.raises(ValueError, match="'dsm' has dtype 'float64'"):
        DatasetMetadata(["dsm"], [1], ["float64"]).features()
    with pytest.raises(ValueError, match="expected one entry for each"):
        DatasetMetadata(["dsm", "nir"], [1, 1], ["float32"]).features()
    with pytest.raises(ValueError, match="reserved"):
        DatasetMetadata(["label"], [1], ["uint8"]).features()


def test_encode_refuses_what_was_not_declared():
    array = np.zeros((2, 2), dtype=np.float32)
    with pytest.raises(ValueError, match="dtype float32, expected uint8"):
        encode_raster(array, dtype="uint8")
    with pytest.raises(ValueError, match="has 1 channels, its column 3"):
        encode_raster(array, channels=3)
    with pytest.raises(ValueError, match="float64"):
        encode_raster(array.astype(np.float64))
    with pytest.raises(ValueError, match="not empty"):
        encode_raster(np.zeros((0, 2), dtype=np.uint8))


def test_decode_accepts_every_form_of_a_cell(tmp_path):
    array = np.array([[1, 2], [3, 4]], dtype=np.uint16)
    encoded = encode_raster(array)
    png, npy = tmp_path / "x.png", tmp_path / "x.npy"
    png.write_bytes(encoded["bytes"])
    np.save(npy, array)
    forms = [array, encoded, encoded["bytes"], png, str(png), npy, Image.open(png), {"bytes": None, "path": str(png)}]
    for form in forms:
        decoded = decode_raster(form)
        assert decoded.dtype == np.uint16
        np.testing.assert_array_equal(decoded, array)
    assert decode_raster(None) is None
    assert decode_raster({"bytes": None, "path": None}) is None
    with pytest.raises(TypeError, match="float"):
        decode_raster(3.0)


def test_decode_never_unpickles():
    buffer = io.BytesIO()
    np.save(buffer, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="Cannot decode"):
        decode_raster(buffer.getvalue())


def test_sixteen_bit_colour_is_refused_not_squeezed():
    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    for color_type, bands in ((2, 3), (4, 2), (6, 4)):  # of 1 x 1 pixel
        header, row = struct.pack(">IIBBBBB", 1, 1, 16, color_type, 0, 0, 0), b"\0" + b"\1\2" * bands
        chunks = (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(row)), chunk(b"IEND", b""))
        with pytest.raises(ValueError, match="more than 8 bits"):
            decode_raster(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))


def test_palette_images_are_indices_as_labels_and_colours_as_modalities():
    image = Image.fromarray(np.array([[0, 1]], dtype=np.uint8))
    image.putpalette([10, 20, 30, 40, 50, 60])
    np.testing.assert_array_equal(decode_raster(image, is_label=True), [[0, 1]])
    np.testing.assert_array_equal(decode_raster(image), [[[10, 20, 30], [40, 50, 60]]])


def test_nodata_needs_all_channels_and_nan_only_one():
    colour = np.array([[[0, 0, 0], [0, 5, 0], [255, 255, 255]]], dtype=np.uint8)
    np.testing.assert_array_equal(valid_pixels(colour, [0]), [[False, True, True]])
    np.testing.assert_array_equal(valid_pixels(colour, [0, 255]), [[False, True, False]])
    height = np.array([[1.0, np.nan, -9999.0, np.inf]], dtype=np.float32)
    np.testing.assert_array_equal(valid_pixels(height, []), [[True, False, True, False]])
    np.testing.assert_array_equal(valid_pixels(height, [-9999.0]), [[True, False, False, False]])


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


def test_load_rows_knows_other_words_for_validation(tmp_path):
    with ParquetDatasetWriter(tmp_path / "data", make_metadata(), title="Tiny") as writer:
        writer.write("validation", *make_rows()[0])
    assert len(load_rows(tmp_path / "data", "valid")) == 1


def test_metadata_round_trip_and_absence(tmp_path):
    metadata = make_metadata()
    assert metadata.units == [None, None, None]
    metadata.save(tmp_path)
    assert DatasetMetadata.load(tmp_path) == metadata
    content = json.loads((tmp_path / "sgma_dataset.json").read_text())
    (tmp_path / "sgma_dataset.json").write_text(json.dumps({**content, "of_a_later_version": 1}))
    assert DatasetMetadata.load(tmp_path) == metadata
    (tmp_path / "sgma_dataset.json").write_text('{"modalities": ["rgb"]')
    with pytest.raises(ValueError, match="is no metadata"):
        DatasetMetadata.load(tmp_path)
    (tmp_path / "sgma_dataset.json").unlink()
    assert DatasetMetadata.load(tmp_path) is None


def test_metadata_lists_must_be_parallel():
    with pytest.raises(ValueError, match="nodata"):
        DatasetMetadata(["rgb", "dsm"], [3, 1], ["uint8", "float32"], nodata=[[0.0]])
    with pytest.raises(ValueError, match="1 colours for 2 classes"):
        DatasetMetadata(["rgb"], [3], ["uint8"], class_names=["a", "b"], palette=[[0, 0, 0]])


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
