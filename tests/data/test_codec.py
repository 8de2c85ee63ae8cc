"""Rasters survive exactly, in every form that a cell may have."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from sgma_hf.data.codec import decode_raster, encode_raster


EDGE_VALUES = {
    "uint8": [0, 1, 254, 255],
    "uint16": [0, 255, 256, 65535],
    "int16": [-32768, -1, 300, 32767],
    "int32": [-(2**31), -1, 70000, 2**31 - 1],
    "float32": [-3.4028235e38, -9999.0, 1e-40, 123.456],
}


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
