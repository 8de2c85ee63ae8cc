"""How the values of a modality are normalised: defaults by its name, and the fields as a user may give them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers.utils import logging

from .image_transforms_sgma import Moments


logger = logging.get_logger(__name__)

HEIGHT_NODATA = (-9999.0, -32768.0)
# The shares of the values that lie below a `value_range` begins and ends at: towers and glints reach far beyond.
RANGE_SHARES = (0.01, 0.999)


@dataclass(frozen=True)
class Normalization:
    """Normalisation of one kind of modality, until statistics are fitted."""

    rescale_factor: float = 1 / 255
    image_mean: tuple[float, ...] = (0.45,)
    image_std: tuple[float, ...] = (0.225,)
    nodata: tuple[float, ...] = ()
    reference_level: str = "none"
    value_range: None = None


_SURFACE = Normalization(1.0, (5.0,), (10.0,), HEIGHT_NODATA, "minimum")
_HEIGHT_ABOVE_GROUND = Normalization(1.0, (5.0,), (10.0,), HEIGHT_NODATA)
_BACKSCATTER = Normalization(1.0, (-15.0,), (5.0,), (-9999.0,))
_REFLECTANCE = Normalization(1e-4, (0.2,), (0.1,))
_BY_NAME = {
    "rgb": Normalization(image_mean=(0.485, 0.456, 0.406), image_std=(0.229, 0.224, 0.225)),
    **dict.fromkeys(("dsm", "dem", "dtm", "elevation"), _SURFACE),
    **dict.fromkeys(("ndsm", "chm", "height"), _HEIGHT_ABOVE_GROUND),
    **dict.fromkeys(("sar", "s1", "vv", "vh"), _BACKSCATTER),
    **dict.fromkeys(("s2", "msi", "hsi", "hyperspectral", "multispectral"), _REFLECTANCE),
}


def default_normalization(name: str) -> Normalization:
    """Default of a modality: that of the first part of its name, split at "_", that is known."""
    return next((_BY_NAME[part] for part in name.split("_") if part in _BY_NAME), Normalization())


def per_modality(field: str, value: Any, modalities: Sequence[str]) -> list:
    """One entry per modality; a single number or string counts for all, None is each one's default."""
    if value is None:
        return [getattr(default_normalization(name), field) for name in modalities]
    if isinstance(value, str | int | float):
        return [value] * len(modalities)
    if len(value) != len(modalities):
        raise ValueError(
            f"`{field}` has {len(value)} entries for the {len(modalities)} modalities {list(modalities)}; "
            "give one per modality, in their order."
        )
    return list(value)


def band_numbers(field: str, value: Any, modalities: Sequence[str], counts: Sequence[int]) -> list[list[float]]:
    """As many finite numbers per modality as `counts` says; a single one counts for all bands."""
    result = []
    for name, count, entry in zip(modalities, counts, per_modality(field, value, modalities), strict=True):
        numbers = np.asarray(entry, dtype=np.float64).reshape(-1)
        if value is None and numbers.size != count:  # an "rgb" of four bands, for instance
            numbers = numbers.mean(keepdims=True)
        if numbers.size not in (1, count) or not np.isfinite(numbers).all():
            raise ValueError(f"`{field}` of modality {name!r} is {entry}; expected {count} finite number(s).")
        result.append(np.broadcast_to(numbers, count).tolist())
    return result


def nodata_values(value: Any, modalities: Sequence[str]) -> list[list[float]]:
    """Finite nodata values per modality; what is not finite is missing in any case, and is no JSON."""
    entries = per_modality("nodata", value, modalities)
    lists = [np.asarray([] if entry is None else entry, dtype=np.float64).reshape(-1) for entry in entries]
    return [numbers[np.isfinite(numbers)].tolist() for numbers in lists]


def value_ranges(value: Any, modalities: Sequence[str], counts: Sequence[int]) -> list[list[list[float]] | None]:
    """Per modality [lowest, highest] of each band, or None where nobody knows."""
    entries = per_modality("value_range", value, modalities)
    for name, count, entry in zip(modalities, counts, entries, strict=True):
        if entry is None:
            continue
        numbers = np.asarray(entry, dtype=np.float64)
        if numbers.shape != (count, 2) or not np.isfinite(numbers).all() or (numbers[:, 0] > numbers[:, 1]).any():
            raise ValueError(f"`value_range` of modality {name!r} is {entry}; expected {count} of [lowest, highest].")
    return entries


def fitted_statistics(name: str, moments: Moments, factor: float) -> tuple[list[float], list[float]] | None:
    """Mean and standard deviation of a modality's bands, in rescaled units; None, with a warning, without a pixel."""
    if moments.count == 0:
        logger.warning(f"No row has a value of modality {name!r}; its default statistics are kept.")
        return None
    std = np.sqrt(moments.squares / moments.count) * abs(factor)
    constant = std <= 1e-12 * np.maximum(1.0, np.abs(moments.mean * factor))
    if constant.any():
        logger.warning(
            f"Bands {np.flatnonzero(constant).tolist()} of modality {name!r} never vary; their standard deviation is "
            "set to 1."
        )
    return (moments.mean * factor).tolist(), np.where(constant, 1.0, std).tolist()
