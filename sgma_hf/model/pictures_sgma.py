"""Opens pictures: PNG, JPEG, TIFF and NPY files, whole, in the dtype of the file and as they are seen."""

import contextlib
import io
import itertools
import os
import struct
import threading
import zlib
from collections.abc import Mapping
from typing import Any, BinaryIO

import numpy as np
from PIL import ExifTags, Image, ImageFile, ImageOps
from PIL.TiffImagePlugin import BITSPERSAMPLE, TiffImageFile


# What PIL and NumPy raise for damaged bytes; MemoryError and programming errors are let through.
DECODE_ERRORS = (ValueError, OSError, EOFError, SyntaxError, struct.error, zlib.error, Image.DecompressionBombError)
_NPY_MAGIC = b"\x93NUMPY"
# Bits of a TIFF directory's NewSubfileType: a smaller copy of another page, and a mask of one.
_SUBFILE_TYPE, _NO_PAGE = 254, 1 | 4


class _AnySize:
    """Lifts PIL's guard against large pictures while some are read, by whichever threads: somebody named the files."""

    def __init__(self):
        self._lock, self._readers, self._limit = threading.Lock(), 0, None

    def __enter__(self):
        with self._lock:
            if not self._readers:
                self._limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
            self._readers += 1

    def __exit__(self, *exception: Any):
        with self._lock:
            self._readers -= 1
            if not self._readers:
                Image.MAX_IMAGE_PIXELS = self._limit


any_size = _AnySize()


def stored_file(cell: Any) -> Any:
    """The bytes or the path in a data set's cell that is not decoded, `{"bytes": ..., "path": ...}`; else the cell."""
    if not isinstance(cell, Mapping):
        return cell
    return cell.get("path") if cell.get("bytes") is None else cell["bytes"]


def open_image(file: str | os.PathLike | bytes | bytearray | memoryview | BinaryIO) -> np.ndarray | Image.Image:
    """Read a picture with PIL, turned as its EXIF data say, or raise one of `DECODE_ERRORS`; never unpickles.

    The array of a `.npy` file, and of a TIFF the pages as bands, if it has several.
    """
    file = io.BytesIO(file) if isinstance(file, bytes | bytearray | memoryview) else file
    with open(file, "rb") if isinstance(file, str | os.PathLike) else file as opened:
        magic = opened.read(len(_NPY_MAGIC))
        opened.seek(0)
        if magic == _NPY_MAGIC:
            return np.load(opened, allow_pickle=False)
        with any_size, Image.open(opened) as image:
            if len(_pages(image)) > 1:
                return picture_values(image, as_stored=True)
            _refuse_squeezed(image)
            return _turned(image)


def orientation(image: Image.Image) -> int:
    """How EXIF says that a picture is to be turned: 1 not at all, from 5 on the sides change places. Header alone."""
    found = Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1)  # PNG's own would decode the picture
    return found if found in range(1, 9) else 1


def _turned(image: Image.Image) -> Image.Image:
    """As it is seen; so does `datasets`."""
    image.load()
    return image if orientation(image) == 1 else ImageOps.exif_transpose(image)


def _pages(image: Image.Image) -> list[int]:
    """The pages of a TIFF that are not looked at one by one; overviews and masks are none, other files have one."""
    if not isinstance(image, TiffImageFile) or image.tell() or not image.is_animated:
        return [image.tell()]
    found = []
    for page in itertools.count():
        try:
            with contextlib.suppress(SyntaxError):  # a kind that PIL does not know, as that of masks
                image.seek(page)
        except (EOFError, ValueError):  # the end, or a picture that was loaded and closed
            break
        if not image.tag_v2.get(_SUBFILE_TYPE, 0) & _NO_PAGE:
            found.append(page)
    image.seek(0)
    return found


def _bits(image: Image.Image) -> tuple[int, ...]:
    """A TIFF's bits per band."""
    return image.tag_v2.get(BITSPERSAMPLE, ()) if isinstance(image, TiffImageFile) else ()


def is_squeezed(image: Image.Image) -> bool:
    """Whether a picture has colours of more than 8 bits, of which PIL hands out 8 without a word."""
    deep = isinstance(image, ImageFile.ImageFile) and ";16" in str(image.tile)
    return len(image.getbands()) > 1 and (deep or max(_bits(image), default=8) > 8)


def _refuse_squeezed(image: Image.Image) -> None:
    if is_squeezed(image):
        raise ValueError(
            "it has several bands of more than 8 bits, which PIL would squeeze to 8. Pass an array, store it as .npy, "
            "or convert it with `sgma-hf convert-rasters`"
        )


def picture_values(image: Image.Image, *, as_stored: bool) -> np.ndarray:
    """Values of a picture in the dtype of its file, (height, width) or (height, width, bands).

    As stored, they are the indices of a palette, without alpha for transparent colours, as labels need; otherwise the
    colours that are seen, with alpha as the last band if anything may be transparent. Pages of a TIFF are bands.
    """
    pages = _pages(image)
    if len(pages) == 1:
        return _page_values(image, as_stored=as_stored)
    planes = []
    for page in pages:
        image.seek(page)
        planes.append(_page_values(image, as_stored=as_stored))
    image.seek(0)
    if len({(plane.shape, plane.dtype) for plane in planes}) > 1:
        shapes = list(dict.fromkeys(f"{plane.shape} {plane.dtype}" for plane in planes))
        raise ValueError(f"it has {len(pages)} pages of {', '.join(shapes)}, which are no bands; store one of them")
    return np.dstack(planes)


def _page_values(image: Image.Image, *, as_stored: bool) -> np.ndarray:
    _refuse_squeezed(image)
    bits, image = _bits(image), _turned(image)
    if image.mode == "1":
        return np.asarray(image).astype(np.uint8)
    if image.mode != shown_mode(image) and not (as_stored and image.mode in ("P", "PA", "L", "RGB")):
        image = image.convert(shown_mode(image))
    values = np.array(image)
    dtype = np.int16 if image.mode == "I" and bits == (16,) else values.dtype.newbyteorder("=")
    return values.astype(dtype, copy=False)


def shown_mode(image: Image.Image) -> str:
    """PIL's mode for all that a picture shows: the colours of a palette, and transparent colours as alpha."""
    see_through = "transparency" in image.info
    if image.mode == "PA" or (image.mode in ("P", "RGB") and see_through):
        return "RGBA"
    if image.mode == "L" and see_through:
        return "LA"
    return "RGB" if image.mode in ("P", "CMYK", "YCbCr", "LAB", "HSV") else image.mode
