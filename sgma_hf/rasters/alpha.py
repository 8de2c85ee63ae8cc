"""Asks what a band is that is tagged as alpha, where its values leave a doubt: transparency, or a measurement."""

import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from .bands import ALL_BANDS, BandSelection
from .files import RasterFile, open_picture, uses_pillow
from .opening import as_source


# Transparent, and opaque as files of 8 bits, of 16 bits and of floating point say it.
_ALPHA_VALUES = (0, 1, 255, 65535)


class DoubtfulAlpha(ValueError):
    """A band that is tagged as alpha may be a measurement."""


def check_alpha(path: str | os.PathLike, bands: BandSelection = ALL_BANDS) -> None:
    """Raise DoubtfulAlpha if a band counts as alpha by its tag alone, and is neither transparent nor opaque somewhere.

    The band is read until such a value is found. `path` is a file that `read_info` accepts with these bands.
    """
    path = as_source(path)
    if bands.alpha:
        return
    if uses_pillow(path):
        _check_picture(path, bands)
        return
    with RasterFile(path, bands) as file:
        band = file.alpha_band
        if band is not None:
            _refuse_doubtful(file.stored_rows(band), path, band)


def _check_picture(path: Path, bands: BandSelection) -> None:
    """The same for PNG. Transparent colours of a palette or of tRNS are no band, so there is no doubt about them."""
    with open_picture(path) as image:
        tagged = [len(image.getbands())] if image.mode in ("LA", "RGBA") else []
        band = bands.alpha_band(tagged)
        if band is None:
            return
        values = np.asarray(image.getchannel("A"))
    _refuse_doubtful([values], path, band)


def _refuse_doubtful(parts: Iterable[np.ndarray], path: Path | str, band: int) -> None:
    for part in parts:
        doubtful = part[~np.isin(part, _ALPHA_VALUES)]
        if doubtful.size:
            others = ",".join(str(other) for other in range(1, band))
            raise DoubtfulAlpha(
                f"Band {band} of {path} is tagged as alpha but holds {doubtful[0]:g}: is it transparency, or a "
                "measurement such as near infrared? Say so by the bands, behind a colon: "
                f"`:{others},{band}` takes it as values, `:{band}` too, for a modality of its own; `:{others},alpha` "
                "as transparency. Where nothing takes it, remove the tag: `rio edit-info --colorinterp`."
            )
