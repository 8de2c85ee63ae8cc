"""Parser of a command whose arguments are dataclasses: flags, and a YAML or JSON file in front of them."""

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

from transformers import HfArgumentParser

from sgma_hf.commands.recipes import FILE_ENDINGS, Recipe, flags_over, read_values, recipe_names
from sgma_hf.data.command_line import Parser


class DataclassParser(Parser, HfArgumentParser):
    """`HfArgumentParser` whose errors are those of `Parser`, with a short `--help` and files of arguments."""

    def parse(
        self, argv: Sequence[str] | None = None, *, shown: Sequence[str] | None = None, section: str | None = None
    ) -> tuple[Any, ...]:
        """Read a command line into one dataclass for each of the classes; wrong flags and values end the process.

        In front of the flags the name of a `.yaml`, `.yml` or `.json` file may stand; the flags override what it
        holds. `shown` are the arguments that `--help` shows; then `--help_all` shows all. With the `section` of
        recipes that is this command's, `--recipe` takes the name or file of one, which the flags override, too.
        Raises a ValueError if the file is not one of arguments, or a dataclass refuses its values.
        """
        argv = list(sys.argv[1:] if argv is None else argv)
        recipe = None if section is None else self._take_recipe(argv)
        if shown is not None:
            self.add_argument("--help_all", action="help", help="show all flags and exit")
            self.epilog = f"`{self.prog} --help_all` shows all flags."
            if not {"--help_all", "--help-all"} & set(argv):
                for action in self._actions:
                    if action.dest not in (*shown, "help", "help_all"):
                        action.help = argparse.SUPPRESS
        if argv and argv[0].endswith(FILE_ENDINGS):
            argv = [*self._flags(read_values(argv[0]), argv[0]), *argv[1:]]
        if recipe is not None:
            argv = [*self._flags(flags_over(recipe.values(section), argv), recipe.name), *argv]
        self.refuse_unknown_flags(argv)
        *parsed, unused = self.parse_args_into_dataclasses(argv, True, look_for_args_file=False)
        if unused:
            self.error(f"no flag takes {' '.join(unused)}")
        return tuple(parsed)

    def _take_recipe(self, argv: list[str]) -> Recipe | None:
        """The recipe that `--recipe` names, which is taken out of the command line."""
        names = ", ".join(recipe_names())
        text = f"recipe whose values the flags change: {names}, or a YAML file"
        self.add_argument("--recipe", metavar="NAME_OR_FILE", default=argparse.SUPPRESS, help=text)
        index = next((index for index, word in enumerate(argv) if word.partition("=")[0] == "--recipe"), None)
        if index is None:
            return None
        word, equals, name = argv.pop(index).partition("=")
        if not equals and index == len(argv):
            self.error(f"{word} names no recipe; there are {names}")
        return Recipe.read(name if equals else argv.pop(index))

    def _flags(self, values: dict[str, Any], where: str) -> list[str]:
        """The flags that stand for values of a file; they stay text, so that they are read as the command line's."""
        flags = []
        for name, value in values.items():
            action = self._option_string_actions.get(f"--{name}")
            if value in ("", "~", "null"):
                if action is not None and action.default is not None:
                    raise ValueError(f"{where!r}: `{name}` is null; leave it out for its default, {action.default!r}.")
            elif isinstance(value, list) and action is not None and action.nargs is None and action.type is str:
                self.set_defaults(**{name: value})  # `report_to`: one name on the command line, some in a file
            elif isinstance(value, list):
                flags += [f"--{name}", *value]
            else:
                flags.append(f"--{name}={value if isinstance(value, str) else json.dumps(_typed(value))}")
        return flags


def _typed(value: Any) -> Any:
    """What is inside a mapping, whose numbers and true, false and null are text so far."""
    if isinstance(value, dict):
        return {name: _typed(entry) for name, entry in value.items()}
    if isinstance(value, list):
        return [_typed(entry) for entry in value]
    try:
        return json.loads(value.lower() if value in ("True", "False") else value)
    except ValueError:
        return value
