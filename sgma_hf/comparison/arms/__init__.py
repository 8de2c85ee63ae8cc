"""What is compared: ways to build and train a model, ours and those of others.

An arm without `build` is SGMA with other settings, ours are in `table`. One with `build` is a network of another kind,
which `full_pass` gives what training and evaluation ask of a model; `dry_run` tries it before any training. Enter at
`select_arms`; to add an arm, write an `Arm` into `table`, or name your own by `package.module:ARM`.
"""

from .arm import COMMON_TRAINING, Arm
from .selection import find_arm, select_arms
from .table import ARMS


__all__ = ["ARMS", "COMMON_TRAINING", "Arm", "find_arm", "select_arms"]
