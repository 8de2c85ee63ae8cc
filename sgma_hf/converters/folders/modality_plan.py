"""Decides how each modality is stored: one channel count, one dtype and one meaning of "no data" for all its files."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from transformers.utils import logging

from ...data.codec import SUPPORTED_DTYPES
from ...data.incomplete_rows import free_fill_value
from ...rasters.extents import covers_whole_pixels
from ...rasters.raster import Georeference, Raster, RasterInfo


logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class NodataOption:
    """`--nodata NAME=...` of one modality."""

    values: tuple[float, ...] = ()  # that stand for nothing
    use_declared: bool = True  # whether nodata values declared in the files count too


@dataclass(frozen=True)
class ModalityPlan:
    """How a modality is stored."""

    name: str
    channels: int
    dtype: str  # float32 where integers have holes but no value to fill them with
    nodata: tuple[float, ...]  # values that stand for nothing in the stored rasters (NaN always does)
    fill: float | None  # what is written where there is no data; None if that never happens
    option: NodataOption

    def store(self, raster: Raster, path: Path) -> np.ndarray | None:
        """The array to store, (height, width, channels) in `dtype`; None if it holds no data at all."""
        if not raster.valid.any():
            return None
        values = raster.values.astype(self.dtype)
        # Interpolation can hit a value that stands for nothing by chance.
        values = free_fill_value(values, self.nodata, valid=raster.valid)
        if not raster.valid.all():
            if self.fill is None:
                raise ValueError(f"{path} has pixels without data; name a value for them: --nodata {self.name}=VALUE.")
            values[~raster.valid] = self.fill
        return values


def plan_modality(
    name: str,
    files: Sequence[tuple[RasterInfo, Georeference | None, tuple[int, int]]],
    option: NodataOption,
) -> ModalityPlan:
    """Decide how a modality is stored.

    A value that is given, or declared for every band of all files, is kept as it is. Where bands or files disagree, or
    holes have no value (alpha, masks, the part of a scene that a raster does not reach), any value may be a
    measurement in some band: a floating-point modality gets NaN, one of 8 or 16 bit becomes float32 with NaN, which
    holds it exactly, and int32 takes its lowest number. `files` are the headers, each with the place and (height,
    width) of the reference grid it belongs to.
    """
    infos = [info for info, _, _ in files]
    channels = infos[0].channels
    for info in infos:
        if info.channels != channels:
            raise ValueError(
                f"Modality {name!r}: {infos[0].path} has {channels} band(s), {info.path} has {info.channels}. All "
                "files of a modality have the same bands."
            )
    dtypes = sorted({info.dtype for info in infos})
    dtype = np.result_type(*dtypes).name
    if dtype not in SUPPORTED_DTYPES:
        raise ValueError(f"Modality {name!r} has files of {dtypes}, which no one dtype holds exactly. Convert them.")
    if len(dtypes) > 1:
        logger.warning(f"Modality {name!r} has files of {dtypes}; all are stored as {dtype}.")
    declared = {number for info in infos for number in info.nodata or (None,)} if option.use_declared else {None}
    common = declared - {None} if len(declared) == 1 else set()
    nodata = tuple(dict.fromkeys(map(float, [*_checked(name, option.values, dtype), *common])))
    is_float = dtype == "float32"
    if nodata and (len(declared) == 1 or not is_float):
        return ModalityPlan(name, channels, dtype, nodata, fill=nodata[0], option=option)
    if is_float:
        return ModalityPlan(name, channels, dtype, nodata, fill=float("nan"), option=option)
    is_whole = all(not info.has_mask and covers_whole_pixels(info, *place) for info, *place in files)
    if len(declared) == 1 and not option.values and is_whole:
        return ModalityPlan(name, channels, dtype, nodata=(), fill=None, option=option)
    if dtype == "int32":
        lowest = float(np.iinfo(dtype).min)
        return ModalityPlan(name, channels, dtype, (lowest,), fill=lowest, option=option)
    logger.warning(f"Modality {name!r} ({dtype}) has holes without a value of their own: stored as float32 with NaN.")
    return ModalityPlan(name, channels, "float32", nodata=(), fill=float("nan"), option=option)


def _checked(name: str, values: Sequence[float], dtype: str) -> list[float]:
    """Given nodata values as the dtype holds them; of int32, files may be of more bits, and those beyond are left."""
    if dtype == "float32":
        return [float(np.float32(value)) for value in values]
    limits = np.iinfo(dtype)
    if dtype == "int32":
        values = [value for value in values if limits.min <= value <= limits.max]
    for value in values:
        if not (float(value).is_integer() and limits.min <= value <= limits.max):
            raise ValueError(f"--nodata {name}={value:g}: the files are {dtype}, which cannot hold that value.")
    return list(values)
