"""Arms by name: those of the package, and those of a module of one's own."""

import copyreg
from collections.abc import Sequence
from dataclasses import replace

from ...data.command_line import did_you_mean, import_own_module
from .arm import Arm
from .table import ARMS


def select_arms(names: Sequence[str]) -> list[Arm]:
    """Look arms up by name, in the order of the names, each once; `["all"]` takes every arm of the package."""
    if list(names) == ["all"]:
        return list(ARMS.values())
    if not names or len(set(names)) < len(names):
        raise ValueError(f"The arms are {list(names)}; expected some of {', '.join(ARMS)}, each once, or all.")
    return [find_arm(name) for name in names]


def find_arm(name: str) -> Arm:
    """The arm of that name, or that a module holds: `package.module:ARM`, from the working folder too.

    Raises:
        ValueError: If there is none; the message is one line, whatever the module raises.
    """
    if ":" not in name:
        if name not in ARMS:
            raise ValueError(
                f"There is no arm {name!r}{did_you_mean(name, ARMS) or '.'} The arms are {', '.join(ARMS)}; one of "
                "your own is package.module:ARM."
            )
        return ARMS[name]
    module_name, _, attribute = name.partition(":")
    try:
        module = import_own_module(module_name)
    except ValueError as error:
        raise ValueError(f"The arm {name}: {error} Expected package.module:ARM.") from error
    arms = [key for key, value in vars(module).items() if isinstance(value, Arm)]
    if attribute not in arms:
        raise ValueError(
            f"The arm {name}: the module has no `Arm` of that name{did_you_mean(attribute, arms) or ';'} it has "
            f"{', '.join(arms) or 'none'}. Make one by sgma_hf.comparison.arms.Arm."
        )
    return replace(vars(module)[attribute], name=name)


# Another process finds an arm anew by its name: the functions of somebody's module need not be such as can be sent.
copyreg.pickle(Arm, lambda arm: (find_arm, (arm.name,)))
