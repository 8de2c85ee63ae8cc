"""Arguments of a command from a YAML or JSON file, read as the command line reads them."""

import json
import re
from argparse import ArgumentTypeError
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import yaml
from transformers.hf_argparser import string_to_bool


# How a value of each type is read from its text, and what is expected of it.
_READERS = {int: (int, "a whole number"), float: (float, "a number"), bool: (string_to_bool, "true or false")}
_BOOL, _FLOAT = "tag:yaml.org,2002:bool", "tag:yaml.org,2002:float"


class _Loader(yaml.SafeLoader):
    """Follows YAML 1.2 where 1.1 surprises: `1e-3` is a number, and the `no` of `save_strategy: no` is text."""

    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [(tag, pattern) for tag, pattern in resolvers if tag != _BOOL]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


_Loader.add_implicit_resolver(_BOOL, re.compile("^(true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
_Loader.add_implicit_resolver(
    _FLOAT, re.compile(r"^[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+$"), list("-+.0123456789")
)


def read_argument_file(path: str, *argument_classes: type) -> dict[str, Any]:
    """Read the arguments that a file holds in place of a command line.

    Args:
        path: A `.json` file, or one of YAML: names of arguments with their values. Text where a number, or true or
            false, is expected is read as the command line would read it.
        argument_classes: Dataclasses that say by their annotations of what type each argument is.

    Returns:
        The arguments by name; those that the dataclasses do not have as they are.

    Raises:
        ValueError: If the file holds no names with values, or a value is of another type than its argument.
    """
    text = Path(path).read_text(encoding="utf-8")
    values = json.loads(text) if path.endswith(".json") else yaml.load(text, Loader=_Loader)
    if not isinstance(values, dict):
        raise ValueError(f"{path!r} holds a {type(values).__name__}; expected names of arguments with their values.")
    hints = {name: hint for item in argument_classes for name, hint in get_type_hints(item).items()}
    return {name: _read_value(name, value, hints.get(name)) for name, value in values.items()}


def _read_value(name: str, value: Any, hint: Any) -> Any:
    kinds = get_args(hint) or (hint,)  # of `float`, `float | None` and `list[float]` alike
    kind = next((kind for kind in kinds if kind in _READERS), None)
    if kind is None or str in kinds or (value is None and type(None) in kinds):
        return value
    reader, expected = _READERS[kind]
    try:
        if get_origin(hint) is list:
            return [reader(str(item)) for item in (value if isinstance(value, list) else [value])]
        return reader(str(value))
    except (ValueError, ArgumentTypeError) as error:
        raise ValueError(f"`{name}` is {value!r}; expected {expected}.") from error
