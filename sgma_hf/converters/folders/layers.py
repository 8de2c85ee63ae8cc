"""Looks at a layer of polygons that may be labels: which attribute may say the class, and the flags that take it."""

import json
import os
from collections import Counter
from dataclasses import dataclass

from ...data.class_maps import classes_flag, suggest_classes
from ...publishing.tables import markdown_table
from ...rasters.polygons import LayerContent
from .labels import first_few


# Attributes that usually say the class, the likeliest first.
_USUAL = ("class", "label", "landuse", "land_use", "landcover", "land_cover", "category", "use", "type", "code")
_MOST_CLASSES = 64
_SHOWN = 8  # values of an attribute


@dataclass(frozen=True)
class LayerSurvey:
    """A layer, and the attribute that may say the class of its features; None if none does."""

    source: str
    content: LayerContent
    attribute: str | None

    def table(self) -> str:
        """The attributes, and how many features have each of their values."""
        lines = []
        for name, counts in self.content.values.items():
            shown = [f"{'none' if value is None else value} ({count})" for value, count in counts.most_common()]
            lines.append([name, len(counts), ", ".join(first_few(shown, _SHOWN))])
        table = markdown_table(["attribute", "values", "features of each"], lines, text_columns=3)
        return f"{self.content.layer}: {self.content.layer.features} features\n\n{table}"

    def remark(self) -> str:
        """What the command takes for the class."""
        if self.attribute is not None:
            return f"The command below takes `{self.attribute}` for the class; `--label_attribute` names another one."
        return (
            "No attribute looks like a class: the command below takes every feature as 1, and all else as 0. "
            "`--label_attribute` names one."
        )

    def flags(self) -> tuple[list[str], list[str]]:
        """The flags of `convert-rasters` that name the layer, and that of the classes for a shell."""
        if self.attribute is None:
            return ["--label", self.source], []
        values = self.content.values[self.attribute].keys() - {None}
        if all(isinstance(value, int) for value in values):
            classes = suggest_classes(values)
        else:
            classes = json.dumps(sorted(map(str, values)), ensure_ascii=False)
        named = classes if len(values) <= _MOST_CLASSES else "FILE"
        return ["--label", self.source, "--label_attribute", self.attribute], [classes_flag(named)]


def survey_layer(source: str | os.PathLike, attribute: str | None = None) -> LayerSurvey:
    """Look at a layer; ValueError if it cannot be read, or has no such attribute."""
    content = LayerContent.read(source)
    content.layer.check_attribute(attribute)
    return LayerSurvey(str(source), content, attribute or _likeliest(content))


def _likeliest(content: LayerContent) -> str | None:
    """The attribute that says the class, if one may: a usual name, else texts that many features share."""

    def is_class(name: str, counts: Counter) -> bool:
        found = counts.keys() - {None}
        is_shared = 2 * len(found) <= content.layer.features and any(isinstance(value, str) for value in found)
        return 1 < len(found) <= _MOST_CLASSES and (name.lower() in _USUAL or is_shared)

    def rank(name: str) -> tuple[int, int]:
        is_usual = name.lower() in _USUAL
        return _USUAL.index(name.lower()) if is_usual else len(_USUAL), len(content.values[name])

    return min((name for name, counts in content.values.items() if is_class(name, counts)), key=rank, default=None)
