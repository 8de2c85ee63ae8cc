"""Which bands of a raster file are values, and which one, if any, is alpha.

An 8-bit GeoTIFF of four bands whose writer did not say what they are calls the fourth one alpha, near infrared or not.
So bands can be chosen, what is chosen is never alpha, and `alpha.check_alpha` asks where the tag is in doubt.
"""

import re
from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass, replace

import numpy as np


_SUFFIX = re.compile(r"(?P<name>.+):(?P<bands>\d+(,\d+)*)(?P<alpha>,alpha)?")


@dataclass(frozen=True)
class BandSelection:
    """The bands that somebody wants of a file, counted from 1."""

    values: tuple[int, ...] | None = None  # in this order; None takes all that are not tagged as alpha
    alpha: bool = False  # whether what is tagged as alpha is so for sure, also where it is neither 0 nor opaque
    elsewhere: frozenset[int] = frozenset()  # values of another modality in the same file, and so no alpha

    @classmethod
    def parse(cls, text: str) -> "tuple[str, BandSelection]":
        """Split `x.tif:4,1,2` or `x.tif:1,2,3,alpha` into what is before the colon and the bands; `x.tif` has all."""
        match = _SUFFIX.fullmatch(text)
        if match is None:
            return text, ALL_BANDS
        return match["name"], cls(tuple(int(band) for band in match["bands"].split(",")), match["alpha"] is not None)

    def __str__(self) -> str:
        bands = [str(band) for band in self.values or ()] + ["alpha"] * self.alpha
        return ",".join(bands)

    @property
    def measured(self) -> frozenset[int]:
        """Bands that are values, here or elsewhere, whatever their tags say."""
        return self.elsewhere | frozenset(self.values or ())

    def alpha_band(self, tagged: Collection[int]) -> int | None:
        """The one of the bands tagged as alpha that says where there is data; None if none does."""
        return min(set(tagged) - self.measured, default=None)


ALL_BANDS = BandSelection()


class BandGaps:
    """How much each band of a modality lacks of what its other bands cover, over all that is read."""

    def __init__(self) -> None:
        self._others = np.zeros(1)  # pixels that other bands cover, for each band
        self._lacking = np.zeros(1)  # those of them where it is missing

    def add(self, missing: np.ndarray | None, valid: np.ndarray, num_bands: int) -> None:
        """Count a part: bool (bands, height, width), or of one band that stands for all, or None; False where any is.

        `valid` is True where no band is missing.
        """
        there = np.count_nonzero(valid)
        are_one = missing is None or len(missing) < num_bands
        if are_one or np.count_nonzero(missing) == num_bands * (valid.size - there):  # all bands together
            self._others = self._others + np.full(num_bands, there)
            return
        lost = np.array([np.count_nonzero(absent) for absent in missing])
        present = num_bands - missing.sum(0, dtype=np.int32)
        covered, alone = np.count_nonzero(present), present == 1
        only = np.array([np.count_nonzero(alone > absent) for absent in missing]) if alone.any() else 0
        self._others = self._others + covered - only
        self._lacking = self._lacking + lost - (valid.size - covered)

    def note(self, name: str, chosen: BandSelection, advice: str) -> str:
        """One line about bands that lack more than half; empty if none does.

        `advice` has {bands} in the place of the others, as they are chosen.
        """
        shares = self._lacking / np.maximum(self._others, 1)
        lacking = shares > 0.5
        if lacking.all():  # disjoint ones, of which one stays
            lacking[np.argmin(shares)] = False
        if not lacking.any():
            return ""
        numbers = list(chosen.values or range(1, len(shares) + 1))
        dead = [f"{numbers[band]} ({shares[band]:.0%})" for band in np.flatnonzero(lacking)]
        kept = ",".join([str(numbers[band]) for band in np.flatnonzero(~lacking)] + ["alpha"] * chosen.alpha)
        return (
            f"Modality {name!r} is missing where one of its bands is, and these are in more than half of the pixels "
            f"that its other bands cover: {', '.join(dead)}; {advice.format(bands=kept)}."
        )


def share_files(selections: Sequence[tuple[Hashable, BandSelection]]) -> list[BandSelection]:
    """Let the bands chosen of each file know, in the same order, what else is chosen from that file.

    Where all bands are wanted, the file's own tags stand.
    """
    shared = []
    for file, bands in selections:
        others = [other.values for name, other in selections if name == file and other.values is not None]
        elsewhere = frozenset(band for values in others for band in values)
        shared.append(bands if bands.values is None else replace(bands, elsewhere=elsewhere))
    return shared
