"""Windows of raster files as their bytes are: no alpha, mask or nodata value is given a meaning.

`raster_io` reads what a GeoTIFF says about itself. The benchmarks say the wrong things: a fourth band of near infrared
is tagged as alpha, labels are colours, and nothing has a nodata tag.
"""

from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..data.codec import decode_raster
from .files import require_rasterio


_PILLOW_SUFFIXES = (".png", ".jpg", ".jpeg")
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
        self._errors: tuple[type[Exception], ...] = ()
        if path.suffix.lower() in _PILLOW_SUFFIXES:
            try:
                with Image.open(path) as image:
                    self.size = (image.height, image.width)
            except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
                raise ValueError(f"{path}: cannot be opened ({error})") from error
            return
        rasterio = require_rasterio(path)
        self._errors = (rasterio.errors.RasterioError,)
        self._window = rasterio.windows.Window
        if not path.is_file():
            raise ValueError(f"{path}: there is no such file")
        self._environment = rasterio.Env
        try:
            self._source = _open_quietly(rasterio, path)
        except self._errors as error:
            raise ValueError(f"{path}: cannot be opened ({error})") from error
        self.size = (self._source.height, self._source.width)

    def read(self, window: tuple[int, int, int, int]) -> np.ndarray:
        """Values (height, width, channels) of a window (top, left, height, width) in the file's own dtype.

        Raises:
            ValueError: If the window is not inside, or the bytes are damaged; the file is named.
        """
        top, left, height, width = window
        if top < 0 or left < 0 or top + height > self.size[0] or left + width > self.size[1]:
            raise ValueError(f"{self.path}: has {self.size[1]} x {self.size[0]} pixels, less than window {window}")
        if self._source is None:
            if self._array is None:
                try:
                    self._array = np.atleast_3d(decode_raster(self.path))
                except ValueError as error:
                    raise ValueError(f"{self.path}: is damaged ({error})") from error
            return self._array[top : top + height, left : left + width]
        try:
            with self._environment(GDAL_CACHEMAX=_CACHE_MEGABYTES):
                values = self._source.read(window=self._window(left, top, width, height))
        except self._errors as error:
            raise ValueError(f"{self.path}: is damaged ({error.__cause__ or error})") from error
        return np.moveaxis(values, 0, -1)  # (H, W, C)

    def read_through(self) -> None:
        """Read everything, to see whether it can be.

        Raises:
            ValueError: If not.
        """
        for top in range(0, self.size[0], _STRIP_ROWS):
            self.read((top, 0, min(_STRIP_ROWS, self.size[0] - top), self.size[1]))

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
        if path in self._open:
            self._open.move_to_end(path)
            return self._open[path]
        reader = WindowReader(path)
        self._open[path] = reader
        if len(self._open) > _NUM_OPEN:
            self._open.popitem(last=False)[1].close()
        return reader

    def close(self) -> None:
        """Close all."""
        while self._open:
            self._open.popitem()[1].close()


def _open_quietly(rasterio: Any, path: Path) -> Any:
    """Open without the warning that a file has no georeferencing: here that is normal."""
    import warnings

    with rasterio.Env(GDAL_CACHEMAX=_CACHE_MEGABYTES), warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        return rasterio.open(path)
