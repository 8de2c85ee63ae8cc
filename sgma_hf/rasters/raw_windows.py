"""Windows of raster files as their bytes are: no alpha, mask or nodata value is given a meaning.

`files` reads what a GeoTIFF says about itself. The benchmarks say the wrong things: a fourth band of near infrared is
tagged as alpha, labels are colours, and nothing has a nodata tag.
"""

import contextlib
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..data.codec import decode_raster
from ..data.windows import blocks
from .files import PILLOW_SUFFIXES, open_picture, picture_size
from .opening import open_quietly
from .raster import require_rasterio


_NUM_OPEN = 8
_STRIP_ROWS = 512
# GDAL's default is a share of the machine's memory; a strip of tiles is all that is read twice.
_CACHE_MEGABYTES = 64


class WindowReader:
    """An open raster file.

    PNG and JPEG are decoded whole at the first read (by Pillow); everything else is read by GDAL window by window.

    Args:
        path: The file.

    Raises:
        ValueError: If it is not a readable raster; it is named.
        ImportError: If it takes rasterio and that is missing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._array: np.ndarray | None = None
        self._source: Any = None
        if path.suffix.lower() in PILLOW_SUFFIXES:
            self._errors = (ValueError,)
            with self._named("cannot be opened"), open_picture(path) as image:
                self.size = picture_size(image)
            return
        self._rasterio = require_rasterio(path)
        self._errors = (self._rasterio.errors.RasterioError,)
        with self._named("cannot be opened"), self._rasterio.Env(GDAL_CACHEMAX=_CACHE_MEGABYTES):
            self._source = open_quietly(path)
        self.size = (self._source.height, self._source.width)

    @contextlib.contextmanager
    def _named(self, problem: str) -> Iterator[None]:
        try:
            yield
        except self._errors as error:
            raise ValueError(f"{self.path}: {problem} ({error.__cause__ or error})") from error

    def read(self, window: tuple[int, int, int, int]) -> np.ndarray:
        """Values (height, width, channels) of a window (top, left, height, width) in the file's own dtype.

        Raises:
            ValueError: If the window is not inside, or the bytes are damaged; the file is named.
        """
        top, left, height, width = window
        if top < 0 or left < 0 or top + height > self.size[0] or left + width > self.size[1]:
            raise ValueError(f"{self.path}: has {self.size[1]} x {self.size[0]} pixels, less than window {window}")
        with self._named("is damaged"):
            if self._source is not None:
                part = self._rasterio.windows.Window(left, top, width, height)
                with self._rasterio.Env(GDAL_CACHEMAX=_CACHE_MEGABYTES):
                    return np.moveaxis(self._source.read(window=part), 0, -1)  # (H, W, C)
            if self._array is None:
                self._array = np.atleast_3d(decode_raster(self.path))
        return self._array[top : top + height, left : left + width]

    def read_through(self) -> None:
        """Read everything, to see whether it can be.

        Raises:
            ValueError: If not.
        """
        for strip in blocks(self.size, _STRIP_ROWS):
            self.read(strip)

    def close(self) -> None:
        """Let go of the file."""
        self._array = None
        if self._source is not None:
            self._source.close()


class WindowReaders:
    """The few files that were read last, kept open: strips of a compressed TIFF or JPEG come in sequence."""

    def __init__(self) -> None:
        self._open: OrderedDict[Path, WindowReader] = OrderedDict()

    def open(self, path: Path) -> WindowReader:
        """The reader of a file, open already or not."""
        if path not in self._open:
            self._open[path] = WindowReader(path)
        self._open.move_to_end(path)
        if len(self._open) > _NUM_OPEN:
            self._open.popitem(last=False)[1].close()
        return self._open[path]

    def close(self) -> None:
        """Close all."""
        while self._open:
            self._open.popitem()[1].close()
