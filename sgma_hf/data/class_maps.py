"""From the values or colours of somebody's label files to class ids 0..K-1, 255 ignored."""

import json
import os
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..model.limits_sgma import IGNORE_INDEX
from .command_line import did_you_mean
from .metadata import DatasetMetadata


_KEYS = ("name", "value", "values", "color", "colors", "ignore")
# Ends of wider types, which writers put where there is no label; so is every negative number.
_NO_LABEL = frozenset({IGNORE_INDEX, 2**15 - 1, 2**16 - 1, 2**31 - 1, 2**32 - 1})
_MAX_SUGGESTED = 64


@dataclass
class ClassMap:
    """Names and colours of the classes, and which label values mean them."""

    names: list[str]  # of the ids 0, 1, ...
    # Class id (or 255) of each label value; a colour is 65536 red + 256 green + blue, a text its index in `texts`.
    sources: dict[int, int]
    palette: list[list[int] | None]  # [red, green, blue] per class, None where nobody chose one
    by_colour: bool = False  # whether the labels are colour-coded
    is_given: bool = True  # whether somebody chose it: its values count then also where a file calls them nodata
    ignored_names: dict[int, str] = field(default_factory=dict)  # what values that become 255 are called
    texts: list[str] = field(default_factory=list)  # values that are texts, as those of polygons are; else empty

    @classmethod
    def load(cls, given: str | os.PathLike) -> "ClassMap":
        """Read what `--classes` names: a JSON file, JSON itself, or a dataset's folder, for the classes that it has.

        Either a list of names, for the ids 0, 1, ... as they are; or a list of objects with `name` and one of `value`,
        `values`, `color`, `colors` (with a value, `color` is merely the colour to draw the class in). Objects of one
        name are one class; an object with `"ignore": true` needs no name: its values become 255. Values are whole
        numbers; of labels that are polygons, all may be texts.

        Raises:
            ValueError: If it cannot be read, or does not say which class a value is.
        """
        text, where = str(given).strip(), "--classes"
        try:
            if text and not text.startswith(("[", "{")):
                where = f"{given}"
                if Path(given).is_dir():
                    return cls._of_dataset(Path(given))
                text = Path(given).read_text(encoding="utf-8")
            return cls.of_entries(json.loads(text))
        except (OSError, ValueError) as error:
            raise ValueError(f"Cannot read the classes from {where}: {error}") from error

    @classmethod
    def _of_dataset(cls, folder: Path) -> "ClassMap":
        metadata = DatasetMetadata.load(folder)
        if metadata is None or not metadata.class_names:
            raise ValueError("it is a folder without a data set that has classes. Give a JSON file.")
        class_map = cls.of_record(metadata.classes, metadata.class_names)
        class_map.palette = metadata.palette or class_map.palette
        return class_map

    @classmethod
    def of_record(cls, classes: list[dict[str, Any]] | None, names: Sequence[str]) -> "ClassMap":
        """What `DatasetMetadata.classes` says; if nothing, label values are the ids of the classes called `names`."""
        if classes:
            return cls.of_entries(classes)
        ids = {index: index for index in range(len(names))}
        return cls(list(names), ids, [None] * len(names), is_given=False)

    @classmethod
    def of_entries(cls, entries: Any) -> "ClassMap":
        """What `load` reads, decoded; ValueError if it is something else."""
        if isinstance(entries, list) and all(isinstance(entry, str) for entry in entries):
            entries = [{"name": name, "value": index} for index, name in enumerate(entries)]
        if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
            raise ValueError(
                'expected a list of class names, or of objects such as {"name": "soil", "value": 0} or '
                '{"name": "road", "color": [255, 255, 255]}.'
            )
        class_map = cls([], {}, [], by_colour=not any("value" in entry or "values" in entry for entry in entries))
        for entry in entries:
            class_map._add(entry)
        if not 1 <= len(class_map.names) <= IGNORE_INDEX:
            raise ValueError(f"it names {len(class_map.names)} classes; expected 1 to {IGNORE_INDEX}.")
        return class_map

    def _add(self, entry: Mapping[str, Any]) -> None:
        """Take one object of the file."""
        for key in entry:
            if key not in _KEYS:
                near = did_you_mean(key, _KEYS) or "."
                raise ValueError(f"{dict(entry)} has the key {key!r}{near} Known are {', '.join(_KEYS)}.")
        shown = [_colour(value) for value in _as_list(entry, "color")]
        sources = list(map(_code, shown)) if self.by_colour else list(map(self._take_value, _as_list(entry, "value")))
        name, ignore = entry.get("name"), entry.get("ignore", False)
        if not sources:
            raise ValueError(f"{dict(entry)} has no {'`color`' if self.by_colour else '`value`'} (nor the plural).")
        if not isinstance(ignore, bool):
            raise ValueError(f"{dict(entry)}: `ignore` is true or false.")
        if not (isinstance(name, str) and name) and not (ignore and name is None):
            raise ValueError(f"{dict(entry)} needs a `name` (or `ignore`: true).")
        if not ignore and name not in self.names:
            self.names.append(name)
            self.palette.append(shown[0] if shown else None)
        for source in sources:
            if source in self.sources:
                raise ValueError(f"{self.show(source)!r} is given twice.")
            self.sources[source] = IGNORE_INDEX if ignore else self.names.index(name)
            if ignore and name:
                self.ignored_names[source] = name

    def entries(self) -> list[dict[str, Any]]:
        """The map as JSON that `of_entries` reads."""
        key = "colors" if self.by_colour else "values"
        found = []
        for index, name in [*enumerate(self.names), (IGNORE_INDEX, None)]:
            values = [value for value, target in self.sources.items() if target == index]
            if values:
                entry = {"ignore": True} if name is None else {"name": name}
                is_drawn = name is not None and not self.by_colour and self.palette[index] is not None
                shown = [list(self.show(value)) if self.by_colour else self.show(value) for value in values]
                found.append(entry | {key: shown} | ({"color": self.palette[index]} if is_drawn else {}))
        return found

    def show(self, source: int) -> Any:
        """A label value as a person writes it: a number, a text, or (red, green, blue)."""
        if self.texts:
            return self.texts[source]
        return tuple(source.to_bytes(3, "big")) if self.by_colour else source

    def code_of(self, value: str | int) -> int | None:
        """The key in `sources` of a polygon's attribute, which is a value or the name of a class; None for others."""
        text = str(value)
        if text in self.texts:
            return self.texts.index(text)
        if not self.texts and re.fullmatch("-?[0-9]+", text) and int(text) in self.sources:
            return int(text)
        index = self.names.index(text) if text in self.names else None
        return next((code for code, target in self.sources.items() if target == index), None)

    def _take_value(self, value: Any) -> int:
        """What stands for a label value in `sources`."""
        if type(value) is str and (self.texts or not self.sources):
            if value not in self.texts:
                self.texts.append(value)
            return self.texts.index(value)
        if type(value) is not int or self.texts:
            expected = "a text, as those before it are" if self.texts else "a whole number"
            raise ValueError(f"a label value is {expected}, got {value!r}.")
        return value

    def id_of(self, value: int, nodata: int | None) -> int:
        """Class id of a label value, 255 for none, in a file that declares `nodata`."""
        return IGNORE_INDEX if value == nodata and not self.is_given else self.sources.get(value, IGNORE_INDEX)

    def is_known(self, value: int, nodata: int | None) -> bool:
        """Whether it is said what a value is, as of all colours; of numbers 255 and declared nodata need not be."""
        return value in self.sources or (not self.by_colour and value in (nodata, IGNORE_INDEX))

    def apply(self, codes: np.ndarray, valid: np.ndarray, nodata: int | None) -> np.ndarray:
        """Class ids of one label raster, uint8 (height, width); what has no class is 255.

        `codes` are integers (height, width), see `sources`; `valid` is False where there is no label at all.
        """
        present = np.unique(codes)
        ids = np.array([self.id_of(code, nodata) for code in present.tolist()], dtype=np.uint8)
        return np.where(valid, ids[np.searchsorted(present, codes)], np.uint8(IGNORE_INDEX))


def label_codes(values: np.ndarray) -> np.ndarray:
    """One integer per pixel, int64 (height, width), of a label (height, width, channels) of one channel or colours."""
    bands = np.moveaxis(values, -1, 0).astype(np.int64)
    return _code(bands) if len(bands) == 3 else bands[0]


def suggest_classes(values: Iterable[int], *, by_colour: bool = False, keep: Sequence[int] = ()) -> str:
    """JSON for `--classes` that names each value, and ignores those of no label but `keep`; of too many, `FILE`."""
    entries = []
    for value in sorted(values):
        if by_colour:
            entries.append({"name": f"class_{len(entries)}", "color": list(value.to_bytes(3, "big"))})
        elif (value < 0 or value in _NO_LABEL) and value not in keep:
            entries.append({"value": value, "ignore": True})
        else:
            entries.append({"name": f"class_{value}", "value": value})
    return json.dumps(entries) if len(entries) <= _MAX_SUGGESTED else "FILE"


def classes_flag(classes: str) -> str:
    """`--classes` with JSON or a file's name, as a shell takes it."""
    return f"--classes {shlex.quote(classes)}"


def _code(colour: Any) -> Any:
    red, green, blue = colour
    return red << 16 | green << 8 | blue


def _as_list(entry: Mapping[str, Any], key: str) -> list[Any]:
    """What `key` (one thing) and its plural (a list) hold."""
    plural = entry.get(f"{key}s", [])
    if not isinstance(plural, list):
        raise ValueError(f"{dict(entry)}: `{key}s` is a list.")
    return [*([entry[key]] if key in entry else []), *plural]


def _colour(value: Any) -> list[int]:
    parts = value
    if isinstance(value, str) and re.fullmatch("#[0-9a-fA-F]{6}", value):
        parts = list(bytes.fromhex(value[1:]))
    if not isinstance(parts, list) or [type(part) for part in parts] != [int] * 3 or not set(parts) <= set(range(256)):
        raise ValueError(f'a colour is [red, green, blue] in 0..255 or "#rrggbb", got {value!r}.')
    return parts
