"""Makes training rows incomplete on purpose, and reproducibly: the benchmark with sensors that are really absent.

Every choice depends on (seed, row id) alone, so neither the number of processes nor an interruption changes a row, and
taking from one modality more leaves the others as they are.
"""

import hashlib
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..model.dates_sgma import is_series, observations
from ..model.image_transforms_sgma import valid_pixels
from ..model.limits_sgma import DATES_SUFFIX
from .metadata import DatasetMetadata


_MIN_COVERED, _MAX_COVERED = 0.2, 0.8  # of the tile's diagonal across the line


def parse_shares(text: str, flag: str) -> dict[str, float]:
    """Read `dsm=0.3,nir=0.1`; a ValueError about anything else names the `flag`."""
    shares: dict[str, float] = {}
    for part in filter(None, text.split(",")):
        name, _, number = part.strip().partition("=")
        try:
            share = float(number)
        except ValueError:
            share = -1.0
        if not name or not 0 <= share <= 1 or name in shares:
            raise ValueError(f"{flag} {text}: expected NAME=SHARE[,NAME=SHARE...], each once, shares from 0 to 1.")
        shares[name] = share
    return shares


class RowWithholder:
    """Takes modalities, or parts of them, away from rows.

    A row keeps at least one modality that covers the whole tile: where the draws would leave none, the one with the
    highest draw is left as it is. `missing` is the share of rows that lose a modality, `coverage` of those in which it
    ends inside the tile; it has NaN or a nodata value to say so.
    """

    def __init__(
        self, metadata: DatasetMetadata, missing: Mapping[str, float], coverage: Mapping[str, float], *, seed: int
    ) -> None:
        self.metadata = metadata
        self.missing = dict(missing)
        self.coverage = dict(coverage)
        self.seed = seed
        for flag, shares in (("--missing", missing), ("--coverage", coverage)):
            unknown = sorted(set(shares) - set(metadata.modalities))
            if unknown:
                raise ValueError(f"{flag} names {unknown}; the modalities are {metadata.modalities}.")

    def apply(self, row_id: str, images: Mapping[str, Any]) -> tuple[dict, list[str]]:
        """Make one row's rasters by modality, None where missing, incomplete; a series as one, all its dates alike.

        Returns them, and what was taken: `dsm` for a whole modality, `dsm (part)` for one that now ends inside.
        """
        digest = hashlib.sha256(f"{self.seed}:{row_id}".encode()).digest()
        rng = np.random.default_rng(np.frombuffer(digest, dtype=np.uint32))
        names = self.metadata.modalities
        lost, ends, keeper = (rng.random(len(names)) for _ in range(3))
        angles, shares = rng.uniform(0, 2 * np.pi, len(names)), rng.uniform(_MIN_COVERED, _MAX_COVERED, len(names))
        present = np.array([len(observations(images, name)) > 0 for name in names])
        gone = present & (lost < [self.missing.get(name, 0.0) for name in names])
        cut = present & ~gone & (ends < [self.coverage.get(name, 0.0) for name in names])
        if present.any() and not (present & ~gone & ~cut).any():
            kept = int(np.argmax(np.where(present, keeper, -1)))
            gone[kept] = cut[kept] = False
        result, taken = dict(images), []
        for index, name in enumerate(names):
            if gone[index]:
                result |= {name: None, name + DATES_SUFFIX: None} if is_series(images[name]) else {name: None}
                taken.append(name)
            elif cut[index]:
                line = float(angles[index]), float(shares[index])
                parts = [self._cut(index, array, *line) for array in observations(images, name)]
                nodata = self.metadata.nodata[index]
                if any(valid_pixels(part, nodata).any() for part in parts):  # some date still holds something
                    result[name] = parts if is_series(images[name]) else parts[0]
                    taken.append(f"{name} (part)")
        return result, taken

    def _cut(self, index: int, array: np.ndarray, angle: float, share: float) -> np.ndarray:
        """The raster with "no data" beyond a line."""
        height, width = array.shape[:2]
        y, x = np.mgrid[0:height, 0:width]
        across = np.cos(angle) * (x + 0.5) / width + np.sin(angle) * (y + 0.5) / height
        low, high = across.min(), across.max()
        beyond = across > low + share * (high - low)
        result = array.copy()
        result[beyond] = np.nan if array.dtype.kind == "f" else self.metadata.nodata[index][0]
        return result


def free_fill_value(
    array: np.ndarray | None, fill: float | Sequence[float], *, valid: np.ndarray | None = None
) -> np.ndarray | None:
    """Move numbers that would make their pixel "no data" (`valid_pixels`) to the nearest ones that mean nothing else.

    The raster is (height, width) or (height, width, channels), uint8 to int32 or float32, `fill` the value or values
    that stand for nothing. Pixels that are not `valid`, bool (height, width), are left.
    """
    if array is None:
        return None
    result, numbers = array, [fill] if np.isscalar(fill) else list(fill)
    for number in numbers:
        hit = ~valid_pixels(array, [number])
        hit = hit if valid is None else hit & valid
        if hit.any():
            result = array.copy() if result is array else result
            result[(hit if array.ndim == 2 else hit[..., None]) & (array == number)] = _beside(
                number, numbers, array.dtype
            )
    return result


def _beside(number: float, numbers: Sequence[float], dtype: np.dtype) -> float:
    """The nearest number of a type that is none of some; of two, and of floats, the larger one."""
    if dtype.kind == "f":
        while number in numbers:
            number = float(np.nextafter(dtype.type(number), dtype.type(np.inf)))
        return number
    limits = np.iinfo(dtype)
    others = (other for step in itertools.count(1) for other in (number + step, number - step))
    return next(other for other in others if limits.min <= other <= limits.max and other not in numbers)
