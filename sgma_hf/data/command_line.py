"""The command line of a command: flags that forgive a dash, and errors in one line."""

import argparse
import difflib
import functools
import importlib
import os
import re
import select
import sys
import types
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any


OWN_MODULES: list[str] = []  # of the command that runs, by `--import`: a process that starts anew imports them, too
# What a person can cause: arguments that contradict each other, files that are not there, an extra that is missing.
USER_ERRORS = (ValueError, OSError, ImportError)


class Parser(argparse.ArgumentParser):
    """Parser whose flags are spelled with underscores and accepted with dashes, and whose errors are one line.

    Values stay as they are. `class CommandParser(Parser, HfArgumentParser)` makes one for dataclasses; `former` is an
    entry of a field's metadata then.

    Example:
        >>> parser = Parser(prog="sgma-hf convert")
        >>> _ = parser.add_argument("--tile_size", type=int, former=("--tile",))
        >>> [parser.parse_args(["--tile-size", "8"]).tile_size, parser.parse_args(["--tile=8"]).tile_size]
        [8, 8]
    """

    known_flags = ""  # what to say beside a flag that there is not

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._former: dict[str, str] = {}  # old spelling, with underscores -> flag
        super().__init__(*args, **kwargs)

    def add_argument(self, *names: str, former: Sequence[str] = (), **options: Any) -> argparse.Action:
        """Add an argument as argparse does; of two spellings, the one with dashes is not shown.

        Flags that it had once, `former`, go on working, and `--help` does not show them.
        """
        action = super().add_argument(*(n for n in names if _plain(n) == n or _plain(n) not in names), **options)
        self._former.update({_plain(flag): action.option_strings[0] for flag in former})
        return action

    def add_switch(self, name: str, *, help: str) -> argparse.Action:
        """Add a flag that is true where it is given, and takes true or false as those of dataclasses do."""
        return self.add_argument(name, **SWITCH, help=help)

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:
        """Parse all arguments; those that are wrong end the process with one line and status 2."""
        self.refuse_unknown_flags(args)
        return super().parse_args(args, namespace)

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:
        """Parse the arguments that are known; returns (namespace, the others)."""
        return super().parse_known_args(self._spell(args), namespace)

    def refuse_unknown_flags(self, args: Sequence[str] | None = None) -> None:
        """End the process with one line, which names the nearest flag, if a flag is none of this command."""
        flags = [flag for flag in self._option_string_actions if flag.startswith("--")]
        for word in self._spell(args):
            given = word.partition("=")[0]
            if given == "--":
                return
            is_known = given in flags or (self.allow_abbrev and any(flag.startswith(given) for flag in flags))
            if given.startswith("--") and " " not in given and not is_known:
                self.error(f"there is no flag {given}{did_you_mean(given, flags)}{self.known_flags}")

    def error(self, message: str) -> Any:
        """End the process with one line and status 2."""
        self.exit(2, f"{self.prog}: {message}\n")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            names = [str(choice) for choice in action.choices]
            hint = did_you_mean(str(value), names)
            raise argparse.ArgumentError(action, f"{str(value)!r} is none of {', '.join(names)}{hint}")

    def _spell(self, args: Sequence[str] | None) -> list[str]:
        """The command line with every flag in its own spelling; what is no flag of this command stays as it is."""
        words = list(sys.argv[1:] if args is None else args)
        known = self._former | {_plain(flag): flag for flag in self._option_string_actions}
        end = words.index("--") if "--" in words else len(words)
        for index, word in enumerate(words[:end]):
            flag, equals, value = word.partition("=")
            if word.startswith("--"):
                words[index] = known.get(_plain(flag), flag) + equals + value
        return words


def _plain(flag: str) -> str:
    return "--" + flag[2:].replace("-", "_") if flag.startswith("--") else flag


def _truth(text: str) -> bool:
    words = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    try:
        return words[text.lower()]
    except KeyError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false") from None


# A flag that is true where it is given, and takes true or false; for groups of arguments.
SWITCH: dict[str, Any] = {"nargs": "?", "type": _truth, "const": True, "default": False, "metavar": "BOOL"}


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """`; did you mean X?` with the nearest of the known words, empty if none is near."""
    names = {word.lstrip("-"): word for word in known}  # dashes would make all flags alike
    nearest = difflib.get_close_matches(given.lstrip("-"), names, n=1)
    return f"; did you mean {names[nearest[0]]}?" if nearest else ""


def check_folder_or_id(given: str, what: str) -> None:
    """Refuse what is no folder here and cannot be meant to be on the Hub; say so before the Hub is asked for the rest.

    Only OWNER/NAME can be an id, and is none where a folder of the owner's name is here. The FileNotFoundError says
    `what` was given (`--model`), and the nearest folder, if one is near.
    """
    path = Path(given)
    if path.exists():
        return
    absent = next(part for part in (*reversed(path.parents), path) if not part.exists())
    here = [entry.name for entry in absent.parent.iterdir() if entry.is_dir()] if absent.parent.is_dir() else []
    near = [absent.with_name(name) / path.relative_to(absent) for name in difflib.get_close_matches(absent.name, here)]
    near = [folder for folder in near if folder.is_dir()]
    if near or path.parent.is_dir() or not re.fullmatch(r"[\w.-]+/[\w.-]+", given):
        hint = f"; did you mean {near[0]}?" if near else ", and an id on the Hub is OWNER/NAME."
        raise FileNotFoundError(f"{what} {given}: there is no such folder{hint}")
    _say_once(f"{what} {given}: there is no such folder here; looking for it on the Hub\n")


@functools.cache
def _say_once(line: str) -> None:
    """Say something on stderr, the first time: a name may be looked up by several parts of a command."""
    sys.stderr.write(line)


def report_errors(
    program: str, *, on_stop: str = "", also: tuple[type[Exception], ...] = ()
) -> Callable[[Callable[..., int | None]], Callable[..., int]]:
    """Decorate a command's `main(argv)` so that it says in one line what went wrong, without a traceback.

    The line begins with the program, `sgma-hf predict`; `on_stop` says how to go on after Ctrl-C. Errors are
    `USER_ERRORS` and `also`. It returns what `main` returns (0 for None), 2 after an error, 130 after Ctrl-C, and 141,
    as of a process that SIGPIPE ends, where nobody reads what is printed any more, as behind `| head`.
    """

    def decorate(main: Callable[..., int | None]) -> Callable[..., int]:
        @functools.wraps(main)
        def run(*args: Any, **kwargs: Any) -> int:
            try:
                try:
                    return main(*args, **kwargs) or 0
                finally:
                    sys.stdout.flush()  # or it would fail when the process ends
            except (*USER_ERRORS, *also) as error:
                if isinstance(error, BrokenPipeError) and _nobody_reads():
                    return 141
                _say_below_bars(f"{program}: {str(error) or type(error).__name__}")
                return 2
            except KeyboardInterrupt:
                _say_below_bars(f"{program}: stopped{f'; {on_stop}' if on_stop else ''}")
                return 130

        return run

    return decorate


def _nobody_reads() -> bool:
    """Whether stdout is a pipe without a reader; what is still to be written goes nowhere then."""
    pipe = select.poll()
    pipe.register(sys.stdout.fileno(), 0)
    is_left = any(event & (select.POLLERR | select.POLLHUP) for _, event in pipe.poll(0))
    if is_left:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return is_left


def import_own_module(name: str) -> types.ModuleType:
    """Import a module of somebody's own, from the working folder too; ValueError in one line, whatever it raises."""
    if os.getcwd() not in sys.path:  # an installed command has its own folder there
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(name)
    except Exception as error:  # whatever somebody's module may raise
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(
            f"the module {name!r} cannot be imported: {reason}. It has to be in the working folder, or installed."
        ) from error
    return module


def _say_below_bars(line: str) -> None:
    """Write a line to stderr, and not behind a progress bar that stands there unfinished."""
    bars = sys.modules.get("tqdm")  # where nobody imported it, there is no bar
    if bars is None:
        sys.stderr.write(f"{line}\n")
    else:
        bars.tqdm.write(line, file=sys.stderr)
