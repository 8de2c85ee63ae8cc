"""Opens datasets in GDAL: the pages of a TIFF as bands, and no band tagged as alpha that was chosen as values."""

import warnings
from collections.abc import Collection
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import numpy as np

from ..data.windows import Window


# EXIF's numbers of an orientation in which the last row comes first, and the last column.
_BOTTOM_UP, _RIGHT_TO_LEFT = (3, 4, 7, 8), (2, 3, 6, 7)


def open_quietly(rasterio: ModuleType, path: str | Path) -> Any:
    """Open without the warning that a file has no georeferencing: that is a normal case here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        return rasterio.open(path)


def open_dataset(rasterio: ModuleType, path: str | Path, measured: Collection[int]) -> Any:
    """Open a dataset, or a virtual one in its place: of all pages, and with `measured` bands not tagged as alpha.

    Raises ValueError that names the file if it is several rasters that are no bands of one.
    """
    dataset = open_quietly(rasterio, path)
    if len(dataset.subdatasets) > 1 and (dataset.driver == "GTiff" or not dataset.count):
        with dataset:
            dataset = _stack_pages(rasterio, dataset, path)
    mistagged = set(measured) & set(alpha_bands(dataset))
    if mistagged:
        kinds = list(dataset.colorinterp)
        for band in mistagged:
            kinds[band - 1] = rasterio.enums.ColorInterp.undefined
        with dataset:
            dataset = open_quietly(rasterio, _virtual(rasterio, dataset, kinds))
    return dataset


def alpha_bands(source: Any) -> list[int]:
    """Bands (from 1) of a dataset that are tagged as alpha."""
    return [band for band, kind in enumerate(source.colorinterp, start=1) if kind.name == "alpha"]


def _stack_pages(rasterio: ModuleType, dataset: Any, path: str | Path) -> Any:
    """The pages of a TIFF as one dataset; overviews and masks are no pages for GDAL either."""
    names = dataset.subdatasets
    if dataset.driver != "GTiff":
        raise ValueError(f"{path} holds several rasters. Give the name of one of them: {' or '.join(names[:12])}")
    with ExitStack() as opened:
        pages = [opened.enter_context(open_quietly(rasterio, name)) for name in names]
        kinds = dict.fromkeys(f"{page.width} x {page.height} pixels of {', '.join(page.dtypes)}" for page in pages)
        if len(kinds) > 1:
            raise ValueError(
                f"{path} has {len(names)} pages, of {' and of '.join(kinds)}, which are no bands of one raster. Give "
                f"the name of the page that is meant; that of the first is {names[0]}"
            )
        first, *others = (ElementTree.fromstring(_virtual(rasterio, page)) for page in pages)
    first.extend(band for other in others for band in other.findall("VRTRasterBand"))
    for number, band in enumerate(first.findall("VRTRasterBand"), start=1):
        band.set("band", str(number))
    return open_quietly(rasterio, ElementTree.tostring(first, encoding="unicode"))


def _virtual(rasterio: ModuleType, dataset: Any, kinds: list | None = None) -> str:
    """GDAL's XML for a virtual copy of a dataset, with other meanings of its colours."""
    with rasterio.MemoryFile(ext=".vrt") as memory:
        rasterio.shutil.copy(dataset, memory.name, driver="VRT")
        if kinds is not None:
            with rasterio.open(memory.name, "r+") as virtual:
                virtual.colorinterp = kinds
        return memory.read().decode()


def unturned_window(window: Window, size: tuple[int, int], turn: int) -> Window:
    """Where a window of a picture of (height, width), turned by EXIF's number, is stored."""
    top, left, height, width = window
    top = size[0] - top - height if turn in _BOTTOM_UP else top
    left = size[1] - left - width if turn in _RIGHT_TO_LEFT else left
    return Window(left, top, width, height) if turn > 4 else Window(top, left, height, width)


def turned(values: np.ndarray, turn: int) -> np.ndarray:
    """What is stored, (height, width, ...), turned by EXIF's number: 5 to 8 change rows and columns."""
    values = values.swapaxes(0, 1) if turn > 4 else values
    return values[:: -1 if turn in _BOTTOM_UP else 1, :: -1 if turn in _RIGHT_TO_LEFT else 1]
