"""Augmentation by sensor: how radiometry and registration differ from scene to scene, drawn anew for each row.

A kind is asked for by name and, behind a colon, its strength: `gain:0.2`.

| kind | what happens to the values of a modality | strength |
|---|---|---|
| `gain` | times 1 + u, u even in [-strength, strength], one u per band | 0.1 |
| `gain_db` | the same of power in dB: plus 10 log10(1 + u) | 0.1 |
| `gamma` | to the power of (1 + strength)^u, u even in [-1, 1]: for values from 0, dark, to 1, full | 0.2 |
| `speckle_power` | times s, of the gamma distribution of mean 1 and variance 1 / strength, drawn per value | 4 |
| `speckle_amplitude` | times the square root of s | 4 |
| `speckle_db` | plus 10 log10(s) | 4 |
| `shift` | moved against the label, by whole pixels of its own, at most strength both ways; the rim is missing | 2 |

Values are those of the processor in units of its `rescale_factor`. Speckle is that of intensities of so many looks
(Goodman 1976), on the label's grid. What is missing stays missing, and takes no part.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers import BaseImageProcessor

from ..data.command_line import did_you_mean
from ..model.dates_sgma import is_series, observations


# One modality's values (channels, height, width), the strength, the generator and the unit of 1 dB -> new values.
_Change = Callable[[np.ndarray, float, np.random.Generator, float], np.ndarray]


def _even(strength: float, values: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    return generator.uniform(-strength, strength, (len(values), 1, 1)).astype(np.float32)


def _speckle(looks: float, values: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    drawn = generator.standard_gamma(looks, values.shape, dtype=np.float32) / np.float32(looks)
    return np.maximum(drawn, np.float32(1e-6))  # of less than one look it may round to 0, which has no dB


def _gamma(values: np.ndarray, strength: float, generator: np.random.Generator, decibel: float) -> np.ndarray:
    return np.sign(values) * np.abs(values) ** np.float32((1 + strength) ** generator.uniform(-1, 1))


# Kind -> default strength, and the change of radiometry; `shift` moves a raster before it is cut.
_KINDS: dict[str, tuple[float, _Change | None]] = {
    "gain": (0.1, lambda x, s, g, unit: x * (1 + _even(s, x, g))),
    "gain_db": (0.1, lambda x, s, g, unit: x + 10 * unit * np.log10(1 + _even(s, x, g))),
    "gamma": (0.2, _gamma),
    "speckle_power": (4.0, lambda x, s, g, unit: x * _speckle(s, x, g)),
    "speckle_amplitude": (4.0, lambda x, s, g, unit: x * np.sqrt(_speckle(s, x, g))),
    "speckle_db": (4.0, lambda x, s, g, unit: x + 10 * unit * np.log10(_speckle(s, x, g))),
    "shift": (2.0, None),
}
# What a data set calls the unit of its values -> the ending of the kinds that fit it.
_UNITS = {"db": "db", "decibel": "db", "amplitude": "amplitude", "power": "power", "intensity": "power"}


@dataclass(frozen=True)
class _Step:
    modality: int
    kind: str
    strength: float

    def generator(self, seed: int) -> np.random.Generator:
        """Draws of its own: another kind or modality changes none of them."""
        return np.random.default_rng([seed, self.modality, list(_KINDS).index(self.kind)])


class Augmentation:
    """What is asked for by texts such as `rgb=gain,gamma:0.3`, for the modalities of a processor.

    Raises:
        ValueError: If a text names no modality or kind, a strength is out of range, or a kind does not fit the values.
    """

    def __init__(self, asked_for: Sequence[str], processor: BaseImageProcessor):
        self.processor = processor
        self.bounds = np.cumsum([0, *processor.modality_channels]).tolist()
        asked_for = [asked_for] if isinstance(asked_for, str) else asked_for
        self.steps = [step for text in asked_for for step in self._parse(text)]

    def _parse(self, text: str) -> list[_Step]:
        name, _, kinds = text.partition("=")
        if name not in self.processor.modalities or not kinds:
            hint = did_you_mean(name, self.processor.modalities)
            raise ValueError(
                f"`augment` has {text!r}{hint}; expected MODALITY=KIND,KIND:STRENGTH with one of "
                f"{self.processor.modalities}."
            )
        steps = []
        for part in kinds.split(","):
            kind, _, number = part.partition(":")
            if kind not in _KINDS:
                raise ValueError(
                    f"`augment` has {part!r} for {name!r}{did_you_mean(kind, _KINDS)}; expected one of {list(_KINDS)}."
                )
            strength = _KINDS[kind][0] if not number else _number(number)
            if (
                not 0 < strength < math.inf
                or (kind.startswith("gain") and strength >= 1)
                or (kind == "shift" and strength % 1)
            ):
                also = {"shift": ", in whole pixels", "gain": " and less than 1"}.get(kind.removesuffix("_db"), "")
                raise ValueError(f"`augment` has {part!r} for {name!r}; expected a strength of more than 0{also}.")
            index = self.processor.modalities.index(name)
            if kind == "gamma" and self.processor.rescale_factor[index] == 1:
                raise ValueError(
                    f"`augment` has 'gamma' for {name!r}, whose `rescale_factor` is 1: it is for values that run from "
                    "0, dark, to a full scale, such as 8-bit colours. Leave it out."
                )
            steps.append(_Step(index, kind, strength))
        return steps

    def move(self, images: Mapping[str, Any], seed: int) -> dict[str, Any]:
        """Shift the rasters, (height, width) or (height, width, channels), for which that is asked; series as one."""
        images = dict(images)
        for step in self.steps:
            name = self.processor.modalities[step.modality]
            if step.kind == "shift" and images[name] is not None:
                reach = int(step.strength)
                way = step.generator(seed).integers(-reach, reach + 1, 2).tolist()
                moved = [shifted(raster, *way) for raster in observations(images, name)]
                images[name] = moved if is_series(images[name]) else moved[0]
        return images

    def change(self, pixel_values: np.ndarray, modality_mask: np.ndarray, seed: int) -> None:
        """Change the radiometry of one row's normalised values (T, sum of channels, height, width) in place.

        Every date has draws of its own. `modality_mask`, (T, num_modalities) or (T, num_modalities, height, width),
        says what is there; the rest stays.
        """
        for step in self.steps:
            change = _KINDS[step.kind][1]
            if change is None:
                continue
            bands, generator = slice(*self.bounds[step.modality : step.modality + 2]), step.generator(seed)
            mean, std = (
                np.asarray(field[step.modality], dtype=np.float32)[:, None, None]
                for field in (self.processor.image_mean, self.processor.image_std)
            )
            unit = self.processor.rescale_factor[step.modality]
            for values, there in zip(pixel_values[:, bands], modality_mask[:, step.modality], strict=True):
                changed = change(values * std + mean, step.strength, generator, unit)
                np.copyto(values, (changed - mean) / std, where=there)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def shifted(raster: np.ndarray, down: int, right: int) -> np.ma.MaskedArray:
    """Move a raster by whole pixels; what it leaves free is masked, and what it loses is lost."""
    moved = np.ma.masked_array(np.roll(np.ma.getdata(raster), (down, right), (0, 1)))
    moved.mask = np.roll(np.ma.getmaskarray(raster), (down, right), (0, 1))
    for axis, distance in enumerate((down, right)):
        free = slice(0, distance) if distance >= 0 else slice(distance, None)
        moved.mask[(slice(None),) * axis + (free,)] = True
    return moved


def for_units(asked_for: Sequence[str], units: Mapping[str, str | None]) -> list[str]:
    """Replace `speckle`, and `gain` of dB, by the kinds that fit the unit of each modality's values.

    A ValueError says that the unit is not known.
    """
    texts = []
    for text in asked_for:
        name, equals, kinds = text.partition("=")
        unit = _UNITS.get((units.get(name) or "").lower())
        if unit is None and "speckle" in re.split("[,:]", kinds):
            raise ValueError(
                f"`--augment {text}`: the data set says of {name!r} the unit {units.get(name)!r}, so it is open how "
                "speckle enters. Name it: speckle_db, speckle_amplitude or speckle_power."
            )
        for kind, ending in (("speckle", unit), ("gain", "db" if unit == "db" else None)):
            if ending is not None:
                kinds = re.sub(rf"(?:^|(?<=,)){kind}(?=[:,]|$)", f"{kind}_{ending}", kinds)
        texts.append(name + equals + kinds)
    return texts


def balanced_window(
    label: np.ndarray, sides: Sequence[int], draws: np.ndarray, choice: np.ndarray, classes: int
) -> tuple[int, int, int, int]:
    """A window around a pixel of a class: first the class is drawn, evenly among those of the label, then its pixel.

    Args:
        label: Class ids (height, width); those outside [0, classes) do not count.
        sides: Height and width of the window, at most those of the label.
        draws: Two numbers in [0, 1): where in the window the pixel lies, vertically and horizontally.
        choice: Two numbers in [0, 1): of the class, and of its pixel.
        classes: Number of classes.

    Returns:
        Top, left, height and width in pixels; without any class, as evenly drawn by `draws`.
    """
    found = np.unique(label)
    found = found[(found >= 0) & (found < classes)]
    lows, highs = [0, 0], [side - cut for side, cut in zip(label.shape, sides, strict=True)]
    if len(found):
        places = np.flatnonzero(label == found[int(choice[0] * len(found))])
        pixel = divmod(int(places[int(choice[1] * len(places))]), label.shape[1])
        lows = [max(0, place - cut + 1) for place, cut in zip(pixel, sides, strict=True)]
        highs = [min(place, high) for place, high in zip(pixel, highs, strict=True)]
    top, left = (low + int(draw * (high - low + 1)) for draw, low, high in zip(draws, lows, highs, strict=True))
    return top, left, *sides
