"""The rasters of a scene on one reference grid, read window by window: `RasterScene`.

Georeferenced files on another grid are warped as they are read (`sources.WarpedSource`). Files without a place on
Earth are taken to show the same extent.
"""

import argparse
import contextlib
import glob
import math
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from transformers.utils import logging

from ..data.command_line import Parser, did_you_mean
from ..data.windows import Window
from ..model.dates_sgma import is_series, read_dates
from ..model.limits_sgma import DATES_SUFFIX
from .alpha import check_alpha
from .bands import ALL_BANDS, BandGaps, BandSelection, share_files
from .dates import DateTable, date_of, known_date, match_dates
from .files import RasterFile, check_bands, read_info, uses_pillow
from .grids import Grid, check_crs, footprint
from .opening import as_source, is_npy, is_raster_file, local_files, open_dataset
from .raster import RasterInfo, allow_open_files
from .sources import RESAMPLINGS, Mosaic, PixelMask, read_npy


logger = logging.get_logger(__name__)

_LEAST_COVERED = 0.1  # of what the files of a mosaic span
_MOSAIC_CELLS = 500  # along each side, in which that is counted


@dataclass(frozen=True)
class RasterInput:
    """A file that somebody named, and the bands of it that are meant."""

    path: Path | str  # text where GDAL alone knows it: `/vsizip/a.zip/b.tif`, `https://...`, `NETCDF:a.nc:b`
    bands: BandSelection = ALL_BANDS
    mask: PixelMask | None = None  # what hides pixels of it

    @classmethod
    def parse(cls, text: str | os.PathLike) -> "RasterInput":
        """Read `a.tif`, `a.tif:4,1,2`, or `a.tif:1,2,3,alpha`; ValueError if there is no such raster."""
        name, bands = (text, ALL_BANDS) if Path(text).exists() else BandSelection.parse(str(text))
        source = as_source(name)
        file, _, chosen = str(name).rpartition(":")
        if not Path(name).exists() and Path(file).is_file():
            raise ValueError(f"{str(name)!r}: {chosen!r} are no bands; expected such as {file}:1,2,3.")
        if isinstance(source, str):
            open_dataset(source).close()
        elif not source.exists():
            raise ValueError(f"The raster {str(name)!r} does not exist.")
        return cls(source, bands)

    @property
    def files(self) -> list[Path]:
        """The files of this machine that hold it, and its mask."""
        masks = [] if self.mask is None else self.mask.paths
        return [file for path in (self.path, *masks) for file in local_files(path)]


def masked(rasters: Any, masks: Any, values: Sequence[float]) -> list[RasterInput]:
    """Files of a modality, one or several, hidden where `masks`, as many, hold `values`; None hides nothing.

    Each is a name as `RasterInput.parse` reads it, a mask of one band.

    Example:
        >>> rasters = {"s2": masked("s2.tif", "scl.tif", [3, 8, 9, 10])}  # doctest: +SKIP
    """
    files, hiding = ([names] if isinstance(names, str | os.PathLike) else names or [] for names in (rasters, masks))
    found = [RasterInput.parse(mask) for mask in hiding]
    mask = PixelMask([(source.path, source.bands) for source in found], values) if found else None
    return [replace(RasterInput.parse(file), mask=mask) for file in files]


def expand(texts: Sequence[str]) -> list[str]:
    """Names of rasters, with files in the place of patterns: `s2/*.tif`, also with bands, `s2/*.tif:1,2,3`."""
    names = []
    for text in texts:
        pattern, bands = BandSelection.parse(text)
        if Path(text).exists() or not glob.has_magic(pattern) or isinstance(as_source(pattern), str):
            names.append(text)
            continue
        found = sorted(path for path in glob.glob(pattern, recursive=True) if is_raster_file(Path(path)))
        if not found:
            raise ValueError(f"No raster is named as {text!r} says.")
        names += found if bands == ALL_BANDS else [f"{path}:{bands}" for path in found]
    return names


def dated(
    name: str, rasters: Sequence[str], masks: Sequence[str], values: Sequence[float], table: DateTable | None = None
) -> dict[str, Any]:
    """The files of a modality as `RasterScene` takes them where a model knows dates, each hidden by its own mask.

    One file of which nobody says when it was taken is none of a series; ValueError if that is one of several.
    """
    files = [RasterInput.parse(file) for file in rasters]
    if len(files) == 1 and known_date(files[0].path, table) is None:
        return {name: masked(rasters, masks, values)}
    times = [date_of(file.path, table).time for file in files]
    hiding = {source.path: source.bands for source in map(RasterInput.parse, masks)}
    matched = match_dates(times, list(hiding), table)
    unmasked = [str(file.path) for file, paths in zip(files, matched, strict=True) if not paths] if hiding else []
    if unmasked:
        logger.warning(
            f"{len(unmasked)} of {len(files)} dates of {name} have no mask, such as {unmasked[0]}: nothing of them is "
            "hidden."
        )
    for index, paths in enumerate(matched):
        if paths:
            files[index] = replace(files[index], mask=PixelMask([(path, hiding[path]) for path in paths], values))
    order = sorted(range(len(files)), key=lambda index: times[index])
    return {name: [files[index] for index in order], name + DATES_SUFFIX: [times[index] for index in order]}


def add_mask_arguments(parser: Parser, what: str) -> None:
    """Add the flags of masks; `what` is said to hold one."""
    add = parser.add_argument_group("masks of clouds and the like").add_argument
    mask = f"{what} of classes, some of which hide the modality; without a name, all modalities"
    add("--mask", nargs="+", action="extend", default=[], metavar="[NAME=]FILE", help=mask)
    values = "classes that hide, as in 3,8,9,10; what they hide is missing"
    add("--mask_values", nargs="+", action="extend", default=[], metavar="[NAME=]VALUES", help=values)


def mask_options(args: argparse.Namespace, modalities: Sequence[str]) -> dict[str, tuple[str, tuple[float, ...]]]:
    """What those flags say: file and values by modality."""
    masks = _by_modality("--mask", args.mask, modalities)
    texts = _by_modality("--mask_values", args.mask_values, modalities)
    if masks.keys() - texts or (texts and not masks):
        raise ValueError("--mask and --mask_values go together: `--mask s2=scl.tif --mask_values s2=3,8,9,10`.")
    try:
        return {name: (file, tuple(map(float, texts[name].split(",")))) for name, file in masks.items()}
    except ValueError as error:
        raise ValueError(f"--mask_values {' '.join(args.mask_values)}: expected numbers, as in 3,8,9,10.") from error


def _by_modality(flag: str, entries: Sequence[str], modalities: Sequence[str]) -> dict[str, str]:
    """`NAME=TEXT` or, for all of them, `TEXT`."""
    found = dict.fromkeys(modalities, "")
    for entry in sorted(entries, key=lambda entry: "=" in entry):
        name, equals, text = entry.rpartition("=")
        if equals and name not in modalities:
            near, known = did_you_mean(name, modalities) or ".", ", ".join(modalities)
            raise ValueError(f"{flag} {entry}: no modality that is read is called {name!r}{near} They are {known}.")
        found |= dict.fromkeys([name] if equals else modalities, text)
    return {name: text for name, text in found.items() if text}


class RasterScene(contextlib.AbstractContextManager):
    """The rasters of one place by modality, on one grid.

    Datasets are opened once and are not for several threads at a time. Raises ValueError if
    something given cannot be used; a file is named.

    `rasters` are file or files per modality, each with a band selection behind a colon if need be, None if missing;
    where several cover a pixel, the first of them counts. With dates under `<name>_dates`, as `to_days` takes them,
    the files are a series, each of its own date. `channels` are the bands that each modality has to have.
    `nodata` stands for nothing besides what the files declare, in every band and in the unit of the values read; of
    the modalities in `undeclared`, what their files declare counts as a value.
    The grid is that of the raster `like`, or of the first modality's first file, extended to all its files, in pixels
    of `resolution` metres if that is given, and of these the part that `bbox`, (west, south, east, north) in its CRS,
    touches. Other grids are interpolated by `resampling`, one of `RESAMPLINGS`, or one
    per modality (others: bilinear, a mean of the area where the file is the finer one); masks are picked by nearest
    neighbour. Files without a place on Earth know "nearest" alone; all else means what the image processor does in
    training.
    """

    def __init__(
        self,
        rasters: Mapping[str, Any],
        *,
        channels: Mapping[str, int],
        nodata: Mapping[str, Sequence[float]] | None = None,
        like: str | os.PathLike | None = None,
        resolution: float | None = None,
        bbox: Sequence[float] | None = None,
        resampling: str | Mapping[str, str] = "bilinear",
        undeclared: Collection[str] = (),
    ):
        self.dates = _parse_dates(rasters, channels)  # of series, in days
        days = {name + DATES_SUFFIX for name in channels}
        given = {name: value for name, value in rasters.items() if name not in days}
        self.inputs = _parse_rasters(given, channels)
        methods = _check_resampling(resampling, channels)
        self._gaps = {name: BandGaps() for name in self.inputs}
        missing: dict[str, dict[str, Any]] = {
            name: {"nodata": (nodata or {}).get(name, ()), "use_declared_nodata": name not in undeclared, "gaps": gaps}
            for name, gaps in self._gaps.items()
        }
        self._files: dict[str, list[Mosaic]] = {name: [] for name in self.inputs}
        allow_open_files(2 * sum(map(len, self.inputs.values())))  # each with a mask
        with contextlib.ExitStack() as opened:
            parts: list[tuple[str, list[RasterInfo], dict[str, Any]]] = []  # of every mosaic; a date is one
            for name, sources in _share_files(self.inputs).items():
                for own in [[source] for source in sources] if name in self.dates else [sources]:
                    how = missing[name] | {"mask": next((file.mask for file in own if file.mask is not None), None)}
                    if len(own) == 1 and not is_npy(own[0].path) and not uses_pillow(own[0].path):  # it stays open
                        how["kept"] = opened.enter_context(RasterFile(own[0].path, own[0].bands, **how))
                        infos = [how["kept"].info]
                    else:
                        infos = [_read_header(source, channels[name]) for source in own]
                    for info in infos:
                        _check_header(info, name, channels[name])
                    parts.append((name, infos, how))
            every = [info for _, infos, _ in parts for info in infos]
            first = [info for name, infos, _ in parts for info in infos if name == parts[0][0]]
            reference = first if like is None else [read_info(RasterInput.parse(like).path)]
            _check_georeferences([*reference, *every])
            self.grid = _reference_grid(reference)
            if resolution is not None:
                self.grid = self.grid.resampled(resolution)
            if bbox is not None:
                self.grid = self.grid.within(bbox)
            for name, infos, how in parts:
                files = Mosaic(infos, self.grid, methods[name], share=len(self.dates.get(name, [None])), **how)
                self._files[name].append(opened.enter_context(files))
            self._opened = opened.pop_all()

    @property
    def paths(self) -> list[Path]:
        """The files of this machine that hold all modalities."""
        return [path for sources in self.inputs.values() for source in sources for path in source.files]

    @property
    def modalities(self) -> list[str]:
        """Modalities that have a raster, in the order in which they were given."""
        return list(self._files)

    def read(
        self, top: int, left: int, height: int, width: int, modalities: Collection[str] | None = None
    ) -> dict[str, Any]:
        """Read a window of the grid, of all modalities or some; what lies beyond it holds no data.

        Every modality that holds data there is a masked array (height, width, channels), True where it holds none; a
        series is a list of those of the dates that do, with their days in `<name>_dates`.
        """
        inside = Window(top, left, height, width).inside(self.grid.size)
        images: dict[str, Any] = {}
        for name, files in self._files.items():
            if modalities is not None and name not in modalities:
                continue
            for index, mosaic in enumerate(files):
                raster = mosaic.read(inside)
                if raster is None:
                    continue
                raster = raster.crop(top - inside.top, left - inside.left, height, width)
                mask = np.broadcast_to(~raster.valid[..., None], raster.values.shape)
                image = np.ma.MaskedArray(raster.values, mask=mask)
                if name in self.dates:
                    images.setdefault(name, []).append(image)
                    images.setdefault(name + DATES_SUFFIX, []).append(self.dates[name][index])
                else:
                    images[name] = image
        return images

    def __exit__(self, *exception: Any) -> None:
        self._opened.close()
        for name, gaps in self._gaps.items():
            source = self.inputs[name][0]
            flag = f"`--{name} {source.path}:{{bands}}` leaves it out, for a checkpoint that takes as few"
            note = gaps.note(name, source.bands, flag)
            if note:
                logger.warning(note)


def _parse_dates(rasters: Mapping[str, Any], channels: Mapping[str, int]) -> dict[str, list[float]]:
    """Days of the files of each series."""
    row = {name: list(value) if is_series(value) else value for name, value in rasters.items()}
    return {name: read_dates(row, name) for name in channels if row.get(name + DATES_SUFFIX) is not None}


def _parse_rasters(rasters: Mapping[str, Any], channels: Mapping[str, int]) -> dict[str, list[RasterInput]]:
    unknown = [name for name in rasters if name not in channels]
    if unknown:
        raise ValueError(f"Unknown modalities {unknown}; the checkpoint knows {list(channels)}.")
    inputs = {}
    for name, value in rasters.items():
        if value is None:
            continue
        files = [value] if isinstance(value, str | os.PathLike | RasterInput) else list(value)
        if not files:
            raise ValueError(f"Modality {name!r} has an empty list of files; give some, or None if it is missing.")
        inputs[name] = [file if isinstance(file, RasterInput) else RasterInput.parse(file) for file in files]
    if not inputs:
        raise ValueError(f"There is no raster; give files for one or more of {list(channels)}.")
    return inputs


def _check_resampling(resampling: str | Mapping[str, str], channels: Mapping[str, int]) -> dict[str, str]:
    chosen = dict.fromkeys(channels, resampling) if isinstance(resampling, str) else dict(resampling)
    for name, method in chosen.items():
        if name not in channels or method not in RESAMPLINGS:
            raise ValueError(
                f"`resampling` has {method!r} for {name!r}; expected one of {list(RESAMPLINGS)} for a modality of "
                f"{list(channels)}."
            )
    return {name: chosen.get(name, "bilinear") for name in channels}


def _share_files(inputs: Mapping[str, list[RasterInput]]) -> dict[str, list[RasterInput]]:
    """Let the modalities know which bands of a file are the values of another."""
    every = [(Path(source.path).resolve(), source.bands) for sources in inputs.values() for source in sources]
    shared = iter(share_files(every))
    return {name: [replace(source, bands=next(shared)) for source in sources] for name, sources in inputs.items()}


def _read_header(source: RasterInput, channels: int) -> RasterInfo:
    path, bands = source.path, source.bands
    if not is_npy(path):
        return read_info(path, bands=bands)
    values = read_npy(path, channels, bands, mapped=True)
    check_bands(bands, values.shape[2], [], path)
    count = channels if bands.values is None else len(bands.values)
    return RasterInfo(path, values.shape[:2], count, values.dtype.name, (), False, None, bands)


def _check_header(info: RasterInfo, name: str, channels: int) -> None:
    """Refuse a file without pixels, one whose alpha is in doubt, and one of other bands than a modality has."""
    path = info.path
    if 0 in info.size and not is_npy(path):
        raise ValueError(f"{path} has no pixels.")
    if info.has_mask:  # or it has no alpha
        check_alpha(path, info.bands)
    if info.channels != channels:
        some = ",".join(str(band + 1) for band in range(channels))
        choice = f", or choose the bands, for instance {path}:{some}" if info.channels > channels else ""
        raise ValueError(
            f"{path} has {info.channels} bands; modality {name!r} of this checkpoint takes {channels}. Give another "
            f"file{choice}."
        )


def _check_georeferences(infos: Sequence[RasterInfo]) -> None:
    """Either all rasters have a place on Earth, a CRS if any has one, and a way to the first one's; or none has."""
    placed = [info for info in infos if info.georeference is not None]
    lost = [info for info in infos if info.georeference is None]
    if placed and lost:
        raise ValueError(
            f"{lost[0].path} has no georeferencing but {placed[0].path} has: there is no telling how the two lie. "
            "Write the first with its transform and CRS, for instance by `gdal_translate -a_ullr ... -a_srs ...`, or, "
            "if it has ground control points, by `gdalwarp`."
        )
    known = [info for info in placed if info.georeference.crs is not None]
    unknown = [info for info in placed if info.georeference.crs is None]
    if known and unknown:
        raise ValueError(
            f"{unknown[0].path} has no CRS but {known[0].path} has one. Say which it is in, for instance by "
            "`gdal_edit.py -a_srs EPSG:... FILE`."
        )
    for info in placed:
        if info.georeference.affine.is_degenerate:
            raise ValueError(
                f"{info.path} has the geotransform {tuple(info.georeference.affine)[:6]}: its pixels have no area."
            )
        check_crs(info, infos[0].georeference)


def _reference_grid(infos: Sequence[RasterInfo]) -> Grid:
    """The first raster's pixels, extended to all the others."""
    first = infos[0]
    if first.georeference is None:
        return Grid(first.size, None)
    top, left, bottom, right = 0, 0, *first.size
    boxes = [(0, first.size[0], 0, first.size[1])]
    for info in infos[1:]:
        rows, columns = footprint(info, first)
        if not (np.isfinite(rows).all() and np.isfinite(columns).all()):
            raise ValueError(
                f"{info.path} cannot be brought into the CRS of {first.path}; name the map's grid with `like`."
            )
        # A file that ends a hundredth of a pixel further on does not make the map larger.
        top, left = min(top, int(np.floor(rows.min() + 0.01))), min(left, int(np.floor(columns.min() + 0.01)))
        bottom, right = max(bottom, int(np.ceil(rows.max() - 0.01))), max(right, int(np.ceil(columns.max() - 0.01)))
        boxes.append((rows.min(), rows.max(), columns.min(), columns.max()))
    _check_mosaic(infos, np.array(boxes) - [top, top, left, left], (bottom - top, right - left))
    return Grid((bottom - top, right - left), first.georeference.window(top, left))


def _check_mosaic(infos: Sequence[RasterInfo], boxes: np.ndarray, size: tuple[int, int]) -> None:
    """Refuse files that cover hardly anything of what they span; `boxes` are rows from, to, columns from, to."""
    cells = np.zeros((_MOSAIC_CELLS, _MOSAIC_CELLS), dtype=bool)
    for top, bottom, left, right in boxes * _MOSAIC_CELLS / np.repeat(size, 2):
        cells[int(top) : math.ceil(bottom), int(left) : math.ceil(right)] = True
    if cells.mean() < _LEAST_COVERED:
        names = ", ".join([str(info.path) for info in infos[:2]] + ["..."] * (len(infos) > 2))
        raise ValueError(
            f"The {len(infos)} files {names} cover {cells.mean():.1%} of the {size[0]} x {size[1]} pixels they span, "
            "so they are no mosaic. Predict each place for itself (`sgma-hf predict --scenes FOLDER` does that for a "
            "folder of them), or name the map's grid by `like` (`--like FILE`)."
        )
