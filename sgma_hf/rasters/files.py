"""Reads raster files: values, which pixels hold data, and where on Earth they lie.

GeoTIFF and everything else GDAL knows is read with rasterio (extra `geo`); PNG and JPEG without georeferencing are
read with Pillow, so that plain images need no extra.
"""

import contextlib
import importlib.util
import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..data.codec import SUPPORTED_DTYPES
from ..data.windows import Window
from ..model.image_transforms_sgma import valid_pixels
from ..model.pictures_sgma import DECODE_ERRORS, any_size, is_squeezed, orientation, picture_values, shown_mode
from .bands import ALL_BANDS, BandGaps, BandSelection
from .grids import check_degrees
from .opening import alpha_bands, as_source, named_errors, open_dataset, turned, unturned_window
from .raster import Georeference, Raster, RasterInfo, require_rasterio


PILLOW_SUFFIXES = (".png", ".jpg", ".jpeg")
_PILLOW_FORMATS = ("PNG", "JPEG", "MPO")

# Files beside a PNG or JPEG that give it a place on Earth, and what `.aux.xml` may say of its place and values.
_WORLD_SUFFIXES = (".pgw", ".pngw", ".jgw", ".jpgw", ".jpegw", ".wld")
_TELLING_TAGS = ("<GeoTransform", "<NoDataValue", "<Scale>", "<Offset>", "<ColorInterp>")
_MOST_PIXELS = 2**27  # that PIL reads, whole, where GDAL could read windows
# What the row format does not have -> what holds its values; of the last three that is checked when they are read.
_WIDER = {"bool": "uint8", "int8": "int16", "float16": "float32", "float64": "float32"}
_WIDER |= dict.fromkeys(("uint32", "int64", "uint64"), "int32")
_ROWS_AT_ONCE = 256


@contextlib.contextmanager
def open_picture(path: Path) -> Iterator[Image.Image]:
    """Open a file with PIL; ValueError that names it if anything is wrong."""
    try:
        with any_size, Image.open(path) as image:
            yield image
    except DECODE_ERRORS as error:
        raise ValueError(f"Cannot read {path}: {error}") from error


def picture_size(image: Image.Image) -> tuple[int, int]:
    """(height, width) of a picture as it is seen, by its header."""
    return image.size if orientation(image) > 4 else image.size[::-1]


def uses_pillow(path: Path | str) -> bool:
    """Plain PNG and JPEG; what Pillow would squeeze or lose, and files whose sidecar says something, go to GDAL."""
    if isinstance(path, str) or path.suffix.lower() not in PILLOW_SUFFIXES:
        return False
    if any(sidecar.exists() for sidecar in (*map(path.with_suffix, _WORLD_SUFFIXES), Path(f"{path}.msk"))):
        return False
    for sidecar in (Path(f"{path}.aux.xml"), path.with_suffix(".aux.xml")):  # mostly statistics, which QGIS leaves
        if sidecar.is_file() and any(tag in sidecar.read_text(errors="replace") for tag in _TELLING_TAGS):
            return False
    with open_picture(path) as image:
        # A GeoTIFF by another name has a place on Earth, and PIL gives no transparent colour of 16 bits.
        is_other = image.format not in _PILLOW_FORMATS or (image.mode == "I;16" and "transparency" in image.info)
        is_large = image.width * image.height > _MOST_PIXELS
        for_gdal = (is_other or is_large) and importlib.util.find_spec("rasterio") is not None
        return not is_squeezed(image) and not for_gdal


def read_info(
    path: str | os.PathLike, *, bands: BandSelection = ALL_BANDS, palette_as_indices: bool = False
) -> RasterInfo:
    """Read the header of a raster file, or raise ValueError that names it.

    A palette file is three bands of colour; of indices, as labels are, with `palette_as_indices` or if its band is
    chosen.
    """
    path = as_source(path)
    if not uses_pillow(path):
        with RasterFile(path, bands, palette_as_indices=palette_as_indices) as file:
            return file.info
    with open_picture(path) as image:
        pass  # the header is read
    return _picture_info(image, path, bands, palette_as_indices=palette_as_indices)


def _picture_info(image: Image.Image, path: Path, bands: BandSelection, *, palette_as_indices: bool) -> RasterInfo:
    mode, shown = image.mode, shown_mode(image)
    if mode == "P" and (palette_as_indices or bands.values is not None):
        shown = "L"
    channels = 3 if shown in ("RGB", "RGBA") else 1
    dtype = {"I": "int32", "F": "float32"}.get(mode, "uint16" if mode.startswith("I;16") else "uint8")
    tagged = [channels + 1] if shown in ("LA", "RGBA") else []
    check_bands(bands, channels + len(tagged), tagged, path)
    channels = channels if bands.values is None else len(bands.values)
    has_mask = bands.alpha_band(tagged) is not None
    return RasterInfo(path, picture_size(image), channels, dtype, (), has_mask, None, bands)


def check_bands(bands: BandSelection, count: int, tagged: Collection[int], path: Path) -> None:
    """Refuse bands that a file of `count` bands does not have, and alpha where none of `tagged` is left for it."""
    if not set(bands.values or ()) <= set(range(1, count + 1)):
        raise ValueError(f"{path} has the bands 1 to {count}; bands {list(bands.values)} were asked for.")
    if bands.alpha and bands.alpha_band(tagged) is None:
        raise ValueError(f"{path} has no band tagged as alpha beside those chosen; {bands} was asked for.")


def read_raster(
    path: str | os.PathLike,
    *,
    nodata: Sequence[float] = (),
    use_declared_nodata: bool = True,
    gaps: BandGaps | None = None,
    mask: Any = None,
    window: tuple[int, int, int, int] | None = None,
    bands: BandSelection = ALL_BANDS,
    palette_as_indices: bool = False,
) -> Raster:
    """Read a raster file.

    A pixel holds no data where `valid_pixels` finds none, each band with the nodata value that the file declares for
    it, where a mask says so, or where alpha is 0. What a file declares is a stored number: an index of a palette, and
    a value before scale and offset of the header are applied.

    `nodata` counts in all bands besides, as a value that is read; `use_declared_nodata` says whether the file counts.
    `gaps` is told what each band lacks. Where a `mask` (`sources.PixelMask`) hides the file, it holds no data.
    What lies outside the raster in a `window` holds no data. `bands` and `palette_as_indices` are those of
    `read_info`. Values keep the file's dtype (float64 and what is scaled becomes float32, int8 int16). Raises
    ValueError that names the file if it cannot be read.
    """
    path = as_source(path)
    if uses_pillow(path):
        raster = _read_with_pillow(path, bands, palette_as_indices=palette_as_indices)
        raster.valid = raster.valid & valid_pixels(raster.values, nodata, gaps=gaps)
        if mask is not None:
            mask.apply(raster, read_info(path, bands=bands))
        return raster if window is None else raster.crop(*window)
    missing = {"nodata": nodata, "use_declared_nodata": use_declared_nodata, "gaps": gaps, "mask": mask}
    with RasterFile(path, bands, palette_as_indices=palette_as_indices, **missing) as file:
        return file.read(None if window is None else Window(*window))


def _read_with_pillow(path: Path, bands: BandSelection, *, palette_as_indices: bool) -> Raster:
    with open_picture(path) as image:
        indexed = image.mode == "P" and (palette_as_indices or bands.values is not None)
        has_alpha = not indexed and shown_mode(image) in ("LA", "RGBA")
        planes = np.atleast_3d(picture_values(image, as_stored=indexed))  # with alpha, if there is any
    info = _picture_info(image, path, bands, palette_as_indices=palette_as_indices)
    valid = planes[..., -1] > 0 if info.has_mask else np.ones(planes.shape[:2], dtype=bool)
    if bands.values is not None:
        return Raster(planes[..., [band - 1 for band in bands.values]], valid)
    return Raster(planes[..., :-1] if has_alpha else planes, valid)


class RasterFile(contextlib.AbstractContextManager):
    """A file that is open in GDAL, read as bands, alpha, mask, nodata, palette, scale and offset say.

    GDAL masks by whatever is tagged as alpha; of bands that are values a virtual file takes the tag away. Without a
    place on Earth it is turned as EXIF says, as `datasets` and viewers do; GDAL itself does not. Arguments mean what
    they do in `read_raster`. Raises ValueError that names the file if it is no readable raster or has no such band.
    """

    def __init__(
        self,
        path: Path | str,
        bands: BandSelection = ALL_BANDS,
        *,
        palette_as_indices: bool = False,
        nodata: Sequence[float] = (),
        use_declared_nodata: bool = True,
        gaps: BandGaps | None = None,
        mask: Any = None,
    ):
        self._rasterio = require_rasterio(path)
        self._path = path
        with contextlib.ExitStack() as opened, named_errors(path):
            self._dataset = opened.enter_context(open_dataset(path, bands.measured))
            count, tagged = self._dataset.count, alpha_bands(self._dataset)
            check_bands(bands, count, tagged, path)
            self._values = list(bands.values or (band for band in range(1, count + 1) if band not in tagged))
            self.alpha_band = bands.alpha_band(tagged)  # from 1, says which pixels hold data; None if none does
            colors = _color_table(self._dataset)
            # A bit is no palette: 0 is black, 1 is white, whatever way round a file stores them.
            is_bit = self._dataset.tags(1, ns="IMAGE_STRUCTURE").get("NBITS") == "1"
            is_bit = is_bit and (colors is None or set(colors[:2, :3].flat) == {0, 255})
            self._is_inverted = is_bit and colors is not None and colors[0, 0] > 0
            # uint8 (256, 4), with alpha, of a palette file of which no band was chosen; else None
            self._colors = None if is_bit or bands.values is not None else colors
            self.shows_colors = self._colors is not None and not palette_as_indices
            self._scaling = None if self._colors is not None else _scaling(self._dataset, self._values)
            # Whether what is read are other numbers than those that are stored.
            self._is_converted = self.shows_colors or self._is_inverted or self._scaling is not None
            self.nodata, self._gaps = nodata, gaps  # what is given, not what the file declares
            self._declared, self._masks = self._find_declared(use_declared_nodata)
            self._turn = 1 if self._has_place() else _turn(self._dataset, path)
            self.info = self._read_header(bands)
            self._hidden = None if mask is None else opened.enter_context(mask.over(self.info))
            self._opened = opened.pop_all()

    def _has_place(self) -> bool:
        return not self._dataset.transform.is_identity

    def _read_header(self, bands: BandSelection) -> RasterInfo:
        source = self._dataset
        if not self._values:
            raise ValueError(f"{self._path} has no band but alpha.")
        dtype = _stored_dtype(np.result_type(*(source.dtypes[band - 1] for band in self._values)).name, self._path)
        dtype = dtype if self._scaling is None else "float32"
        nodata = tuple(None if self._is_converted else _value_of(number, dtype) for number in self._declared)
        has_mask = self.alpha_band is not None or bool(self._masks) or nodata != self._declared
        size = (source.height, source.width)
        georeference = None
        if self._has_place():
            georeference = Georeference(source.transform, source.crs.to_wkt() if source.crs else None)
            check_degrees(self._path, georeference, size)
        return RasterInfo(
            path=self._path,
            size=size if self._turn < 5 else size[::-1],
            channels=3 if self.shows_colors else len(self._values),
            dtype=dtype,
            nodata=nodata if any(number is not None for number in nodata) else (),
            has_mask=has_mask or (self.shows_colors and bool((self._colors[:, 3] == 0).any())),
            georeference=georeference,
            bands=bands,
        )

    def _find_declared(self, use_declared: bool) -> tuple[tuple[float | None, ...], list[int]]:
        """Declared nodata of each band that is read, as it is stored, and the bands (from 1) whose mask says more."""
        flag, declared, masks = self._rasterio.enums.MaskFlags, [], []
        # Each is asked of all bands at once: hyperspectral files have hundreds.
        every, dtypes, numbers = self._dataset.mask_flag_enums, self._dataset.dtypes, self._dataset.nodatavals
        for band in self._values:
            flags, dtype = every[band - 1], dtypes[band - 1]
            number = numbers[band - 1] if use_declared else None
            # rasterio has nodata as float64, which holds 64-bit numbers to 2^53 alone; GDAL's mask knows them all.
            if dtype in ("int64", "uint64") and flag.nodata in flags and (number is None or abs(number) >= 2**53):
                number = None
                masks += [band] * use_declared
            elif flag.nodata not in flags and flag.alpha not in flags and flag.all_valid not in flags:
                masks.append(band)  # of the file, or of the band in a file beside it
            elif flag.nodata in flags and flag.per_dataset in flags and use_declared:
                number = None
                masks.append(band)  # a nodata value for each band, which count together
            declared.append(_value_of(number, dtype))
        if all(flag.per_dataset in every[band - 1] for band in masks):
            masks = masks[:1]  # one for all bands
        return tuple(declared), masks

    def read(self, window: Window | None = None) -> Raster:
        """Read a window; what lies outside the raster holds no data."""
        window = Window(0, 0, *self.info.size) if window is None else window
        inside = window.inside(self.info.size)
        if inside.height and inside.width:
            with named_errors(self._path, ". The file is damaged; fetch or write it again."):
                stored = unturned_window(inside, self.info.size, self._turn)
                raster = Raster(*(turned(array, self._turn) for array in self._read_inside(stored)))
                if self._hidden is not None:
                    raster.valid &= ~self._hidden.hides(inside)
                raster = raster.crop(*window.moved(-inside.top, -inside.left))
        else:
            raster = Raster.empty(window[2:], self.info.channels, self.info.dtype)
        return replace(raster, georeference=self.info.georeference and self.info.georeference.window(*window[:2]))

    def _read_inside(self, window: Window) -> tuple[np.ndarray, np.ndarray]:
        """Values (height, width, channels) and where they hold data."""
        part = self._rasterio.windows.Window(window.left, window.top, window.width, window.height)
        if len({self._dataset.dtypes[band - 1] for band in self._values}) == 1:
            bands = self._dataset.read(self._values, window=part)
        else:
            bands = np.stack([self._dataset.read(band, window=part) for band in self._values])
        # What is given is compared with the values that are read, what is declared with what is stored.
        given = () if self._is_converted else self.nodata
        valid = valid_pixels(bands, given, declared=self._declared, channel_axis=0, gaps=self._gaps)
        if self.alpha_band is not None:
            valid &= self._dataset.read(self.alpha_band, window=part) > 0
        for band in self._masks:
            valid &= self._dataset.read_masks(band, window=part) > 0
        values = np.moveaxis(bands, 0, -1)  # (H, W, C)
        values = 1 - values if self._is_inverted else values
        if self.shows_colors:
            values = self._colors[values[..., 0]]
            valid &= values[..., 3] > 0
            values = values[..., :3]
        elif self._scaling is not None:
            scales, offsets = self._scaling
            values = values * scales + offsets
        elif self.info.dtype == "int32" and values.size and values.dtype.kind in "iu":
            values = self._within_int32(values, valid)
        # float64's lowest number, a common nodata value, becomes -inf: no data either
        with np.errstate(over="ignore"):
            values = values.astype(self.info.dtype, copy=False)
        if self._is_converted:
            valid &= valid_pixels(values, self.nodata)
        return values, valid

    def _within_int32(self, values: np.ndarray, valid: np.ndarray) -> np.ndarray:
        """The values with 0 where what holds no data is beyond int32; ValueError where data is."""
        limits = np.iinfo(np.int32)
        if limits.min <= values.min() and values.max() <= limits.max:
            return values
        beyond = (values < limits.min) | (values > limits.max)
        if beyond[valid].any():
            wrong = values[beyond & valid[..., None]][0]
            raise ValueError(
                f"{self._path} holds {values.dtype} values beyond int32, such as {wrong}. If it means no data, say "
                f"so: `gdal_edit.py -a_nodata {wrong} FILE`; else convert the file to float32."
            )
        return np.where(beyond, values.dtype.type(0), values)

    def stored_rows(self, band: int) -> Iterator[np.ndarray]:
        """One band (from 1) as it is stored, some rows at a time."""
        width, height = self._dataset.width, self._dataset.height
        for top in range(0, height, _ROWS_AT_ONCE):
            part = self._rasterio.windows.Window(0, top, width, min(_ROWS_AT_ONCE, height - top))
            with named_errors(self._path):
                yield self._dataset.read(band, window=part)

    def __exit__(self, *exception: Any) -> None:
        self._opened.close()


def _stored_dtype(dtype: str, path: Path) -> str:
    dtype = _WIDER.get(dtype, dtype)
    if dtype not in SUPPORTED_DTYPES:
        raise ValueError(
            f"{path} has values of type {dtype}, which the row format does not hold. Convert it to float32."
        )
    return dtype


def _scaling(source: Any, values: Sequence[int]) -> tuple[np.ndarray, np.ndarray] | None:
    """Scale and offset of each of some bands (from 1); None where the stored numbers are the values."""
    scales, offsets = (
        np.array([numbers[band - 1] for band in values], dtype=np.float64)
        for numbers in (source.scales, source.offsets)
    )
    return None if (scales == 1).all() and (offsets == 0).all() else (scales, offsets)


def _value_of(number: float | None, dtype: str) -> float | None:
    """A nodata value as numbers of a type hold it; None if there is none, or one that none of them can equal."""
    if number is None or not np.isfinite(number):
        return None  # what is not finite holds no data in any case
    if np.dtype(dtype).kind == "f":
        with np.errstate(over="ignore"):
            number = float(np.dtype(dtype).type(number))
        return number if np.isfinite(number) else None
    limits = np.iinfo(dtype)
    return int(number) if float(number).is_integer() and limits.min <= number <= limits.max else None


def _color_table(source: Any) -> np.ndarray | None:
    if source.count != 1 or source.colorinterp[0].name != "palette":
        return None
    table = np.zeros((256, 4), dtype=np.uint8)
    table[:, 3] = 255
    for index, colour in source.colormap(1).items():
        table[index] = colour
    return table


def _turn(source: Any, path: Path | str) -> int:
    """How EXIF says that a file is to be turned, as `orientation`; GDAL tells it of JPEG alone."""
    if isinstance(path, str) or path.suffix.lower() not in (*PILLOW_SUFFIXES, ".tif", ".tiff"):
        tagged = source.tags().get("EXIF_Orientation") if source.driver == "JPEG" else None
        return int(tagged) if tagged in list("12345678") else 1
    try:
        with open_picture(path) as image:
            return orientation(image)
    except ValueError:  # a kind that PIL does not know
        return 1
