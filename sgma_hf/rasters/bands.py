"""Which bands of a raster file are values, and which one, if any, is alpha.

An 8-bit GeoTIFF of four bands whose writer did not say what they are calls the fourth one alpha, near infrared or not.
So bands can be chosen, what is chosen is never alpha, and `alpha.check_alpha` asks where the tag is in doubt.
"""

import re
from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass, replace


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
