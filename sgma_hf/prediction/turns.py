"""Test-time turns: a tile is predicted in several positions, and the maps are turned back and averaged."""

from collections.abc import Callable
from functools import partial

import torch

from ..data.command_line import did_you_mean


# By name: whether the tile is mirrored from left to right first, and by how many quarters it is turned then.
TURNS = {
    "flips": ((False, 0), (True, 0), (True, 2), (False, 2)),
    "d4": tuple((mirrored, quarters) for mirrored in (False, True) for quarters in range(4)),
}


def check_turns(tta: str | None) -> None:
    """Raise a ValueError unless it is None or one of `TURNS`."""
    if tta is not None and tta not in TURNS:
        raise ValueError(f"`tta` is {tta!r}, which is none of {', '.join(TURNS)}{did_you_mean(tta, TURNS)}")


def average_over_turns(
    predict: Callable[[Callable[[torch.Tensor], torch.Tensor]], torch.Tensor], tta: str | None
) -> torch.Tensor:
    """Average the maps that `predict` makes in several positions.

    Args:
        predict: Takes a function that turns maps (..., height, width), and returns the maps, float
            (..., height, width), that were predicted of turned inputs.
        tta: `flips` are four positions: as it is, mirrored from left to right, upside down, and both. `d4` are eight:
            these, and each turned by a quarter. None is the one position as it is.

    Returns:
        The mean of the maps, turned back.
    """
    total = None
    for mirrored, quarters in ((False, 0),) if tta is None else TURNS[tta]:
        maps = predict(partial(_turned, mirrored=mirrored, quarters=quarters)).rot90(-quarters, (-2, -1))
        maps = maps.flip(-1) if mirrored else maps
        total = maps if total is None else total + maps
    return total if tta is None else total / len(TURNS[tta])


def _turned(maps: torch.Tensor, *, mirrored: bool, quarters: int) -> torch.Tensor:
    return (maps.flip(-1) if mirrored else maps).rot90(quarters, (-2, -1))
