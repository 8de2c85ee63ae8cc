"""From the values or colours of somebody's label files to class ids 0..K-1, 255 ignored."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...model.limits_sgma import IGNORE_INDEX
from ...visualization.palette import default_palette


_MAX_LISTED = 12


@dataclass
class ClassMap:
    """Names and colours of the classes, and which label values mean them."""

    names: list[str]  # of the ids 0, 1, ...
    palette: list[list[int]]  # [red, green, blue] per class
    sources: dict[int, int]  # class id (or 255) of each label value; a colour is 65536 red + 256 green + blue
    by_colour: bool = False  # whether the labels are colour-coded

    @classmethod
    def load(cls, path: Path) -> "ClassMap":
        """Read `--classes file.json`.

        Either a list of names, for the ids 0, 1, ... as they are; or a list of objects with `name` and one of `value`,
        `values`, `color`, `colors` (with a value, `color` is merely the colour to draw the class in). Objects of one
        name are one class; an object with `"ignore": true` needs no name: its values become 255.
        """
        try:
            entries = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ValueError(f"Cannot read the classes from {path}: {error}") from error
        if isinstance(entries, list) and all(isinstance(entry, str) for entry in entries):
            entries = [{"name": name, "value": index} for index, name in enumerate(entries)]
        if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
            raise ValueError(
                f'{path}: expected a list of class names, or of objects such as {{"name": "soil", "value": 0}} or '
                '{"name": "road", "color": [255, 255, 255]}.'
            )
        class_map = cls([], [], {}, by_colour=not any("value" in entry or "values" in entry for entry in entries))
        colours: dict[str, list[int] | None] = {}  # in the order of the ids
        try:
            for entry in entries:
                class_map._add(entry, colours)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        if not 1 <= len(colours) <= IGNORE_INDEX:
            raise ValueError(f"{path} names {len(colours)} classes; expected 1 to {IGNORE_INDEX}.")
        class_map.names = list(colours)
        defaults = default_palette(len(colours))
        class_map.palette = [colour or default for colour, default in zip(colours.values(), defaults, strict=True)]
        return class_map

    def _add(self, entry: Mapping[str, Any], colours: dict[str, list[int] | None]) -> None:
        """Take one object of the file."""
        shown = [_colour(value) for value in _as_list(entry, "color")]
        sources = list(map(_code, shown)) if self.by_colour else list(map(_integer, _as_list(entry, "value")))
        if not sources:
            raise ValueError(f"{dict(entry)} has no {'`color`' if self.by_colour else '`value`'} (nor the plural).")
        index = IGNORE_INDEX
        if not entry.get("ignore"):
            name = entry.get("name")
            if not isinstance(name, str) or not name:
                raise ValueError(f"{dict(entry)} needs a `name` (or `ignore`: true).")
            colours.setdefault(name, shown[0] if shown else None)
            index = list(colours).index(name)
        for source in sources:
            if source in self.sources:
                raise ValueError(f"{self._show(source)} is given twice.")
            self.sources[source] = index

    @classmethod
    def identity(cls, found: Iterable[int], *, nodata: set[int]) -> "ClassMap":
        """Ids as they are: classes `class_0` to the largest id found; 255 and declared nodata are ignored."""
        ids = sorted(set(found) - nodata - {IGNORE_INDEX})
        if not ids:
            raise ValueError(f"The label files hold nothing but nodata ({sorted(found)}).")
        if ids[0] < 0 or ids[-1] > IGNORE_INDEX:
            raise ValueError(
                f"The label files hold {ids[:_MAX_LISTED]}{' ...' * (len(ids) > _MAX_LISTED)}; class ids are "
                f"0..{IGNORE_INDEX - 1}. Map them with --classes."
            )
        names = [f"class_{index}" for index in range(ids[-1] + 1)]
        return cls(names, default_palette(len(names)), {index: index for index in ids})

    def refuse_unmapped(self, found: Mapping[Path, Counter], *, nodata: set[int]) -> None:
        """Refuse values (counted by file) without a class; 255 and declared nodata need none unless colour-coded."""
        known = self.sources.keys() | (set() if self.by_colour else nodata | {IGNORE_INDEX})
        counts = sum(found.values(), Counter()).most_common()
        unmapped = [f"{self._show(value)} ({count} pixels)" for value, count in counts if value not in known]
        if unmapped:
            more = f" and {len(unmapped) - _MAX_LISTED} more" if len(unmapped) > _MAX_LISTED else ""
            first = next(path for path, values in found.items() if values.keys() - known)
            raise ValueError(
                f"Label values without a class: {', '.join(unmapped[:_MAX_LISTED])}{more}; first in {first}. Add them "
                'to --classes (with "ignore": true if they mean nothing), or pass --ignore_unmapped.'
            )

    def _show(self, source: int) -> Any:
        return tuple(source.to_bytes(3, "big")) if self.by_colour else source

    def apply(self, values: np.ndarray, valid: np.ndarray) -> np.ndarray:
        """Class ids of one label raster, uint8 (height, width); what has no class is 255.

        `values` are integers (height, width, channels), three channels if colour-coded, else one; `valid` is False
        where the file's mask or alpha hides the label.
        """
        codes = _codes(values, self.by_colour)
        present = np.unique(codes)
        ids = np.array([self.sources.get(code, IGNORE_INDEX) for code in present.tolist()], dtype=np.uint8)
        return np.where(valid, ids[np.searchsorted(present, codes)], np.uint8(IGNORE_INDEX))


def count_values(values: np.ndarray, valid: np.ndarray, *, by_colour: bool, path: Path) -> Counter:
    """How often each value (or colour, as in `ClassMap.sources`) occurs where a label, (H, W, C), is valid, (H, W)."""
    channels = values.shape[2]
    if by_colour and channels != 3:
        raise ValueError(f"{path} has {channels} band(s), but the classes are given by colour. Give `value` instead.")
    if not by_colour and channels != 1:
        raise ValueError(f"{path} has {channels} bands, so it is colour-coded. Give the colours with --classes.")
    present, counts = np.unique(_codes(values, by_colour)[valid], return_counts=True)
    return Counter(dict(zip(present.tolist(), counts.tolist(), strict=True)))


def _codes(values: np.ndarray, by_colour: bool) -> np.ndarray:
    """One integer per pixel, (height, width)."""
    bands = np.moveaxis(values, -1, 0).astype(np.int64)
    return _code(bands) if by_colour else bands[0]


def _code(colour: Any) -> Any:
    red, green, blue = colour
    return red << 16 | green << 8 | blue


def _as_list(entry: Mapping[str, Any], key: str) -> list[Any]:
    """What `key` (one thing) and its plural (a list) hold."""
    plural = entry.get(f"{key}s", [])
    if not isinstance(plural, list):
        raise ValueError(f"{dict(entry)}: `{key}s` is a list.")
    return [*([entry[key]] if key in entry else []), *plural]


def _integer(value: Any) -> int:
    if type(value) is not int:
        raise ValueError(f"a label value is a whole number, got {value!r}.")
    return value


def _colour(value: Any) -> list[int]:
    parts = value
    if isinstance(value, str) and re.fullmatch("#[0-9a-fA-F]{6}", value):
        parts = list(bytes.fromhex(value[1:]))
    if not isinstance(parts, list) or [type(part) for part in parts] != [int] * 3 or not set(parts) <= set(range(256)):
        raise ValueError(f'a colour is [red, green, blue] in 0..255 or "#rrggbb", got {value!r}.')
    return parts
