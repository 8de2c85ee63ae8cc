"""Recipes: an experiment as flags of the commands that convert, train and evaluate, and which the paper says.

A recipe is one of the YAML files beside this one, or anybody's own. Its sections are `convert`, `train`, `evaluate`
and `card`; a value stands alone, or as `{value: ..., status: ..., note: ...}`, with a status of `STATUSES`.
`base` names a recipe whose `train` and `evaluate` it goes on from.
"""

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from sgma_hf.data.command_line import did_you_mean
from sgma_hf.data.whole_files import write_text
from sgma_hf.publishing.tables import markdown_table


FOLDER = Path(__file__).parent
FILE_ENDINGS = (".yaml", ".yml", ".json")
SECTIONS = ("convert", "train", "evaluate", "card")
STATUSES = {
    "known": "the paper says so",
    "unknown": "the paper does not say; the value is our choice",
    "ours": "we depart from the paper, or it has no such thing",
}
_TEXTS = ("title", "base", "converter")
_KEYS = (*_TEXTS, *SECTIONS, "cost", "reported")
_CARD_KEYS = ("license", "tags")
_SUMMARIES = ("average", "last1")
_COSTS = ("train_rows", "gmacs_per_row")
# The training step that costs are computed from, measured: that of `potsdam_paper` on an NVIDIA H200 in bf16, torch
# 2.11, without reading rows. The host was the limit, so that a smaller step takes no less.
MEASURED = {"seconds": 0.134, "gigabytes": 17.8, "pixels": 8 * 3 * 512**2, "gmacs": 8 * 78.8}


@dataclass(frozen=True)
class Recipe:
    """An experiment; `content` is what its file holds, all values as text, with those of its base."""

    name: str
    content: Mapping[str, Any]

    @classmethod
    def read(cls, name: str) -> "Recipe":
        """Read a recipe by its name, with or without `_paper`, or from a YAML file of one's own.

        Raises:
            ValueError: If there is no such recipe, or the file is none; the nearest names are said.
        """
        own = Path(name)
        shipped = [FOLDER / f"{name}{ending}.yaml" for ending in ("", "_paper")]
        path = next((path for path in [own, *shipped] if path.suffix in FILE_ENDINGS and path.is_file()), None)
        if path is None:
            hint = did_you_mean(name, recipe_names()) or "."
            raise ValueError(f"There is no recipe {name}{hint} There are {', '.join(recipe_names())}, or a YAML file.")
        content = read_values(str(path))
        _check(content, f"The recipe {path}")
        if "base" in content:
            base = cls.read(content["base"]).content
            inherited = {name: base.get(name, {}) | content.get(name, {}) for name in ("train", "evaluate")}
            content = {**content, **inherited}
        return cls(path.stem, content)

    def values(self, section: str) -> dict[str, Any]:
        """Values by name of a section, as text; lists and mappings hold text, too."""
        return {name: _value(entry) for name, entry in self.content.get(section, {}).items()}

    def flags(self, section: str) -> list[str]:
        """A section as flags of its command."""
        return [word for name, value in self.values(section).items() for word in _flag(name, value)]

    def changed(self, changes: Sequence[str]) -> "Recipe":
        """The recipe with other values: `train.max_steps=2`; several by spaces between; nothing takes a value out.

        Raises:
            ValueError: If a change is not of that form, or of no section.
        """
        content = {**self.content, **{section: dict(self.content.get(section, {})) for section in SECTIONS}}
        if any(change.startswith("train.") for change in changes):
            content.pop("cost", None)  # it is that of another training
        for change in changes:
            place, equals, text = change.partition("=")
            section, dot, name = place.partition(".")
            if not (equals and dot and name):
                raise ValueError(
                    f"{change!r} changes nothing; expected SECTION.NAME=VALUE, as in train.max_steps=100."
                )
            if section not in SECTIONS:
                raise ValueError(f"{change!r}: {section} is none of {_listed(SECTIONS, section)}")
            words = text.split() if not text.startswith("{") else [text]
            content[section].pop(name, None)
            if words:
                content[section] = _without_rivals(content[section], name)
                content[section][name] = words if len(words) > 1 else words[0]
        _check(content, "The changed recipe")
        return Recipe(self.name, content)

    def without_base(self) -> "Recipe":
        """The recipe by itself, without what is empty: what `read` gives of a file that `save` wrote."""
        return Recipe(self.name, {key: value for key, value in self.content.items() if key != "base" and value})

    def save(self, path: Path) -> None:
        """Write it as a file that `read` takes, without its base."""
        write_text(path, yaml.safe_dump(self.without_base().content, sort_keys=False, allow_unicode=True, width=100))

    def steps(self) -> int:
        """Steps of the optimiser in one process, from the recorded number of rows."""
        steps_per_epoch = math.ceil(float(self.content["cost"]["train_rows"]) / self._rows_per_step())
        return steps_per_epoch * self._number("num_train_epochs")

    def _number(self, name: str) -> int:
        return int(self.values("train").get(name, 1))

    def _rows_per_step(self) -> int:
        return self._number("per_device_train_batch_size") * self._number("gradient_accumulation_steps")

    def computed_cost(self) -> tuple[float, float] | None:
        """(hours, GB of GPU memory) of the training, computed from `MEASURED`; None for a recipe without a `cost`.

        A step takes as many times the measured one's time as it has multiply-accumulates, and no less; memory goes
        with the pixels, of all modalities, of a forward pass.
        """
        if "cost" not in self.content:
            return None
        gmacs = float(self.content["cost"]["gmacs_per_row"]) * self._rows_per_step()
        hours = self.steps() * MEASURED["seconds"] * max(1.0, gmacs / MEASURED["gmacs"]) / 3600
        side, modalities = self._number("crop_size"), len(self.values("train").get("modalities", ()))
        pixels = self._number("per_device_train_batch_size") * modalities * side**2
        return hours, MEASURED["gigabytes"] * pixels / MEASURED["pixels"]

    def statuses(self) -> dict[str, int]:
        """How many choices have each status, and how many none, which were changed."""
        entries = [entry for section in SECTIONS for entry in self.content.get(section, {}).values()]
        found = Counter(entry.get("status", "changed") if _is_described(entry) else "changed" for entry in entries)
        return {name: found[name] for name in (*STATUSES, "changed") if found[name]}

    def choices_table(self, beside: "Recipe | None" = None) -> str:
        """Every choice with its value and whether the paper says so, Markdown; without those of another recipe."""
        lines = []
        for section in SECTIONS:
            others = {} if beside is None else beside.content.get(section, {})
            for name, entry in self.content.get(section, {}).items():
                if others.get(name) != entry:
                    said = entry if _is_described(entry) else {}
                    value = f"`{_text(_value(entry))}`".replace('"', "")
                    lines.append([section, f"`{name}`", value, said.get("status", ""), said.get("note", "")])
        return markdown_table(["", "choice", "value", "status", ""], lines, text_columns=5)


def _check(content: Mapping[str, Any], what: str) -> None:
    """Refuse what is no recipe, so that nothing of it is found out after hours of training."""
    for key, value in content.items():
        if key not in _KEYS:
            raise ValueError(f"{what} has {key}, which is none of {_listed(_KEYS, key)}")
        if not isinstance(value, str if key in _TEXTS else dict):
            raise ValueError(f"{what}: {key} holds {'text alone' if key in _TEXTS else 'names with their values'}.")
    for key in content.get("card", {}):
        if key not in _CARD_KEYS:
            raise ValueError(f"{what}: card has {key}, which is none of {_listed(_CARD_KEYS, key)}")
    if Path(content.get("base", "")).suffix:
        raise ValueError(f"{what}: base is {content['base']}; expected one of {', '.join(recipe_names())}.")
    reported = content.get("reported", {})
    if not isinstance(reported.get("combinations", {}), dict):
        raise ValueError(f"{what}: combinations holds no names with their scores.")
    scores = reported.get("combinations", {}) | {name: score for name, score in reported.items() if name in _SUMMARIES}
    if "cost" in content:
        scores |= {name: content["cost"].get(name) for name in _COSTS}
    for name, score in scores.items():
        try:
            float(score)
        except (TypeError, ValueError):
            raise ValueError(f"{what}: {name} is {score!r}; expected a number.") from None


def read_values(path: str) -> dict[str, Any]:
    """Values by name in a YAML or JSON file, all as text; a ValueError if it holds something else."""
    try:
        text = Path(path).read_text(encoding="utf-8")
        if path.endswith(".json"):
            text = json.dumps(json.loads(text))  # of which YAML takes no indentation by tabs
        values = yaml.load(text, Loader=yaml.BaseLoader)
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{path!r} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path!r} holds no names of arguments with their values, as in `crop_size: 512`.")
    return values


def recipe_names() -> list[str]:
    """Names of the recipes that the package has."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def flags_over(recipe: Mapping[str, Any], argv: Sequence[str]) -> dict[str, Any]:
    """Values of a recipe's section without what flags of a command line put another thing in the place of."""
    values = dict(recipe)
    for word in argv:
        values = _without_rivals(values, word.partition("=")[0].lstrip("-").replace("-", "_"))
    return values


def _without_rivals(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    """An encoder of random weights takes the place of a pretrained one, whose statistics go with it."""
    rivals = ("backbone", "encoder_statistics") if name == "backbone_config" else ()
    return {key: value for key, value in values.items() if key not in rivals}


def _is_described(entry: Any) -> bool:
    return isinstance(entry, dict) and "value" in entry


def _value(entry: Any) -> Any:
    return entry["value"] if _is_described(entry) else entry


def _text(value: Any) -> str:
    return " ".join(value) if isinstance(value, list) else json.dumps(value) if isinstance(value, dict) else value


def _flag(name: str, value: Any) -> Iterator[str]:
    if isinstance(value, list):
        yield from (f"--{name}", *value)
    elif value in ("true", "false"):  # of converters and `evaluate`, whose switches are off by default
        yield from [f"--{name}"] * (value == "true")
    else:
        yield f"--{name}={_text(value)}"


def _listed(names: Sequence[str], given: str) -> str:
    return f"{', '.join(names)}{did_you_mean(given, names) or '.'}"
