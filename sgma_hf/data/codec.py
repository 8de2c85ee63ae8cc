"""How rasters are stored: PNG, TIFF and NPY, in their own dtype, without losing a bit.

- one band of any supported dtype, and three bands of uint8, are `datasets.Image()` columns holding PNG (uint8, uint16)
  or TIFF (int16, int32, float32; NaN and inf included). The Hub's viewer shows the former, and a column `preview`;
- everything else (two-band SAR, 12-band Sentinel-2, hyperspectral, float RGB) is a `Value("binary")` column with the
  bytes of a `.npy` file, (height, width, channels). `Array3D` columns are not used: a null one reads back as NaN
  instead of None under a torch format, and `Image()` would squeeze three bands of uint16 to 8 bit.
"""

import io
import os
from typing import Any

import numpy as np
from PIL import Image as PILImage
from PIL.TiffImagePlugin import SAMPLEFORMAT

from ..model.limits_sgma import IGNORE_INDEX
from ..model.pictures_sgma import DECODE_ERRORS, open_image, picture_values, stored_file


SUPPORTED_DTYPES = ("uint8", "uint16", "int16", "int32", "float32")

_PNG_LEVEL = 4  # as small as the default 6 on aerial images, in half the time


def uses_image_column(channels: int, dtype: str) -> bool:
    """Whether a modality of so many channels and this dtype is an `Image()` column (else: `.npy` bytes)."""
    return channels == 1 or (channels == 3 and dtype == "uint8")


def encode_raster(array: np.ndarray | None, *, channels: int | None = None, dtype: str | None = None) -> Any:
    """Turn an array into what its column stores; `decode_raster` gives the same numbers and dtype back.

    Args:
        array: (height, width) or (height, width, channels), one of `SUPPORTED_DTYPES`; None stays None.
        channels: If given, the number of channels the column was declared with.
        dtype: If given, the dtype the column was declared with.

    Returns:
        None, `{"bytes": ..., "path": None}` for an `Image()` column, or bytes for a binary column.

    Raises:
        ValueError: If the array's shape or dtype is not supported or is not what was declared.
    """
    if array is None:
        return None
    array = np.asarray(array)
    if array.ndim not in (2, 3) or 0 in array.shape:
        raise ValueError(f"A raster is (height, width) or (height, width, channels) and not empty; got {array.shape}.")
    found = 1 if array.ndim == 2 else array.shape[2]
    if channels is not None and found != channels:
        raise ValueError(f"The raster has {found} channels, its column {channels}. Shape given: {array.shape}.")
    name = array.dtype.name
    if name not in SUPPORTED_DTYPES or (dtype is not None and name != dtype):
        expected = dtype if dtype is not None else f"one of {list(SUPPORTED_DTYPES)}"
        raise ValueError(f"The raster has dtype {name}, expected {expected}. Convert it with `.astype(...)`.")
    if not uses_image_column(found, name):
        buffer = io.BytesIO()
        np.save(buffer, np.ascontiguousarray(array), allow_pickle=False)
        return buffer.getvalue()
    return {"bytes": _encode_image(array[..., 0] if array.ndim == 3 and found == 1 else array), "path": None}


def _encode_image(array: np.ndarray) -> bytes:
    """Lossless PNG or TIFF of (H, W) of any supported dtype or (H, W, 3) uint8."""
    buffer = io.BytesIO()
    # Pillow has no signed 16-bit mode to write, but the same bits with SampleFormat 2 are a proper int16 TIFF.
    array = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("="))
    is_int16 = array.dtype == np.int16
    image = PILImage.fromarray(array.view(np.uint16) if is_int16 else array)
    if array.dtype in (np.uint8, np.uint16):
        image.save(buffer, "PNG", compress_level=_PNG_LEVEL)
    else:
        tags = {SAMPLEFORMAT: 2} if is_int16 else {}
        image.save(buffer, "TIFF", compression="tiff_adobe_deflate", tiffinfo=tags)
    return buffer.getvalue()


def decode_raster(value: Any, *, is_label: bool = False) -> np.ndarray | None:
    """Read what a cell of a dataset may hold into (height, width) or (height, width, channels) of the stored dtype.

    That is None, an array, a PIL image, `{"bytes": ..., "path": ...}` as an undecoded `Image()` cell, the bytes of an
    image or `.npy` file, or a path to one; TypeError if not. A palette image is a label's indices, but a modality's
    colours. Transparent colours mean nothing in a label and become an alpha band, the last one, in a modality. Raises
    ValueError if it cannot be decoded, or only by squeezing more than 8 bits per band into 8.
    """
    value = stored_file(value)
    if value is None or isinstance(value, np.ndarray):
        return value
    if not isinstance(value, (PILImage.Image, bytes, bytearray, memoryview, str, os.PathLike)):
        raise TypeError(
            f"Cannot read a raster from {type(value).__name__}. Give None, an array, a PIL image, bytes, a path, or "
            "a dict with `bytes` or `path`."
        )
    try:
        image = value
        if not isinstance(value, PILImage.Image):
            image = open_image(value)
        array = image if isinstance(image, np.ndarray) else picture_values(image, as_stored=is_label)
    except DECODE_ERRORS as error:
        source = f" {str(value)!r}" if isinstance(value, (str, os.PathLike)) else ""
        raise ValueError(f"Cannot decode the raster{source}: {error}") from error
    if array.ndim not in (2, 3):
        raise ValueError(f"A raster is (height, width) or (height, width, channels); the stored one is {array.shape}.")
    return array


def whole_numbers(values: np.ndarray, path: str | os.PathLike) -> np.ndarray:
    """Label values of any real dtype as integers, NaN and infinity as 255; ValueError that names `path` at a fraction.

    Tools that burn polygons write whole numbers as floating point.
    """
    if values.dtype.kind in "iu":
        return values
    filled = np.where(np.isfinite(values), values, IGNORE_INDEX)
    fractions = filled[filled != np.rint(filled)]
    if fractions.size:
        raise ValueError(
            f"{path} is no label: it holds fractions such as {fractions[0]:g}. Expected class ids or colours."
        )
    return filled.astype(np.int64)
