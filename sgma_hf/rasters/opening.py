"""What may name a raster, and opening it in GDAL: pages of a TIFF as bands, chosen values without a tag of alpha."""

import functools
import importlib.util
import os
import re
import warnings
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from ..data.windows import Window
from .raster import require_rasterio


# EXIF's numbers of an orientation in which the last row comes first, and the last column.
_BOTTOM_UP, _RIGHT_TO_LEFT = (3, 4, 7, 8), (2, 3, 6, 7)
# `/vsizip/...`, `https://...`, `NETCDF:file:variable`; one letter and a colon is a disk of Windows.
_GDAL_NAME = re.compile(r"/vsi\w+/|[A-Za-z][\w+.-]+:")
_NAME_ONE = "Give the name of one of them, or, in a folder, what `gdal_translate -of VRT NAME x.vrt` makes of it"
# Formats that GDAL knows but the wheels of rasterio leave out.
_RARE_DRIVERS = {".hdf": "HDF4", ".hdf4": "HDF4", ".kea": "KEA", ".ecw": "ECW", ".sid": "MrSID", ".jxl": "JPEGXL"}

_COMMON_SUFFIXES = ("tif", "tiff", "png", "jpg", "jpeg")
# Formats that GDAL reads and does not write, of which rasterio does not name the suffixes; ENVI has none of its own.
_MORE_SUFFIXES = ("h5", "hdf5", "he5", *(suffix[1:] for suffix in _RARE_DRIVERS))
_ENVI_SUFFIXES = ("", "bsq", "bip", "bin", "raw")
# Sidecars, documents and vectors with the suffix of some rare raster.
_NO_RASTERS = {"hdr", "xml", "err", "pdf", "kml", "kmz", "sqlite", "gpkg", "gpkg.zip", "mbtiles"}


def as_source(name: str | os.PathLike) -> Path | str:
    """A file of this machine as a path; what GDAL alone knows by that name, such as `/vsizip/a.zip/b.tif`, as text."""
    text = os.fspath(name)
    return text if _GDAL_NAME.match(text) and not Path(text).exists() else Path(name)


@functools.cache
def _raster_suffixes() -> frozenset[str]:
    """Suffixes, without the dot, of files that GDAL reads, as far as it names them."""
    if importlib.util.find_spec("rasterio") is None:
        return frozenset(_COMMON_SUFFIXES)
    import rasterio.drivers

    return frozenset(rasterio.drivers.raster_driver_extensions()) - _NO_RASTERS | {*_COMMON_SUFFIXES, *_MORE_SUFFIXES}


def is_raster_file(path: Path) -> bool:
    """Whether a file is a raster by its name, and no hidden file, sidecar, document or vector.

    ENVI's may have no suffix of their own, but a header `.hdr` beside them. Raises ValueError at a link that leads
    nowhere: the raster is not missing, it was not fetched.
    """
    is_broken_link = path.is_symlink() and not path.exists()
    if path.name.startswith(".") or not (path.is_file() or is_broken_link):
        return False
    suffix = path.suffix.lower()[1:]
    has_header = suffix in _ENVI_SUFFIXES and any(p.is_file() for p in (path.with_suffix(".hdr"), Path(f"{path}.hdr")))
    is_raster = suffix in _raster_suffixes() or has_header
    if is_raster and is_broken_link:
        raise ValueError(
            f"{path} is a link to {path.readlink()}, which is not there. Fetch it, for instance by `dvc pull` or `git "
            "annex get`, or remove the link where the scene does not have it."
        )
    return is_raster


def is_npy(source: Path | str) -> bool:
    """Whether a file is an array of NumPy's."""
    return isinstance(source, Path) and source.suffix.lower() == ".npy"


def local_files(source: Path | str) -> list[Path]:
    """The files of this machine that hold a raster, as far as its name or GDAL tells."""
    if isinstance(source, Path):
        return [source]
    with open_dataset(source) as dataset:
        inner = [Path(re.sub(r"^(/vsi\w+/)+|[{}]", "", name)) for name in dataset.files]  # maybe of an archive
    return [path for name in inner for path in (name, *name.parents) if path.is_file()]


@contextmanager
def named_errors(path: Path | str, advice: str = "") -> Iterator[None]:
    """Raise what rasterio raises as ValueError that names the file and says what to do, where that is known."""
    rasterio = require_rasterio(path)
    try:
        yield
    except (rasterio.errors.RasterioError, rasterio._err.CPLE_BaseError) as error:
        detail = str(error.__cause__ or error).rstrip(".")  # rasterio says "See previous exception for details"
        if Path(path).is_dir():  # some formats are folders
            advice = f". It is a folder: give the files in it, as in '{path}/*.tif'."
        if "Range downloading" in detail:
            advice = f". Fetch the file, or name it /vsicurl_streaming/{path}, which reads it from the start."
        driver = _RARE_DRIVERS.get(Path(path).suffix.lower(), "")
        if isinstance(path, str) and re.match(r"\w+:(?!//)", path):
            driver = re.split("[_:]", path)[0]  # `HDF4_SDS:...` takes HDF4
        with rasterio.Env() as env:
            known = {name.upper() for name in env.drivers()}
        if driver and driver.upper() not in known:
            detail = f"the installed GDAL has no driver {driver}"
            advice = ". Turn it into a GeoTIFF by a GDAL that has one: `gdal_translate`"
        raise ValueError(f"Cannot read {path}: {detail}{advice}") from error


def open_quietly(path: str | Path) -> Any:
    """Open without the warning that a file has no georeferencing: that is a normal case here."""
    rasterio = require_rasterio(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        return rasterio.open(path)


def open_dataset(path: str | Path, measured: Collection[int] = ()) -> Any:
    """Open a dataset, or a virtual one in its place: of all pages, and with `measured` bands not tagged as alpha.

    Raises ValueError that names the file if it cannot be read, or is several rasters that are no bands of one.
    """
    with named_errors(path):
        dataset = open_quietly(path)
        if len(dataset.subdatasets) > 1 and (dataset.driver == "GTiff" or not dataset.count):
            with dataset:
                dataset = _stack_pages(dataset, path)
        mistagged = set(measured) & set(alpha_bands(dataset))
        if mistagged:
            kinds = list(dataset.colorinterp)
            for band in mistagged:
                kinds[band - 1] = type(kinds[0]).undefined
            with dataset:
                dataset = open_quietly(_virtual(dataset, kinds))
    return dataset


def alpha_bands(source: Any) -> list[int]:
    """Bands (from 1) of a dataset that are tagged as alpha."""
    return [band for band, kind in enumerate(source.colorinterp, start=1) if kind.name == "alpha"]


def _stack_pages(dataset: Any, path: str | Path) -> Any:
    """The pages of a TIFF as one dataset; overviews and masks are no pages for GDAL either."""
    names = dataset.subdatasets
    if dataset.driver != "GTiff":
        raise ValueError(f"{path} holds several rasters. {_NAME_ONE}: {' or '.join(names[:12])}")
    with ExitStack() as opened:
        pages = [opened.enter_context(open_quietly(name)) for name in names]
        kinds = dict.fromkeys(f"{page.width} x {page.height} pixels of {', '.join(page.dtypes)}" for page in pages)
        if len(kinds) > 1:
            raise ValueError(
                f"{path} has {len(names)} pages, of {' and of '.join(kinds)}, which are no bands of one raster. "
                f"{_NAME_ONE}: {' or '.join(names[:12])}"
            )
        first, *others = (ElementTree.fromstring(_virtual(page)) for page in pages)
    first.extend(band for other in others for band in other.findall("VRTRasterBand"))
    for number, band in enumerate(first.findall("VRTRasterBand"), start=1):
        band.set("band", str(number))
    return open_quietly(ElementTree.tostring(first, encoding="unicode"))


def _virtual(dataset: Any, kinds: list | None = None) -> str:
    """GDAL's XML for a virtual copy of a dataset, with other meanings of its colours."""
    rasterio = require_rasterio(dataset.name)
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
