"""Which scenes are one place at several dates, or frames of one video."""

from collections.abc import Sequence
from datetime import datetime

import numpy as np

from ...rasters.dates import date_in_name
from .scenes import Scene
from .spatial_groups import match_names


def sequence_of(scenes: Sequence[Scene], regex: str) -> list[tuple[str, datetime | None]]:
    """The sequence of each scene, the first group (or whole match) of `regex` in its name, and the date in the name.

    Raises:
        ValueError: If a name does not match, or scenes of one sequence and split are not pixel on pixel.
    """
    names = match_names([scene.files.name for scene in scenes], regex, "--sequence_regex")
    first: dict[tuple[str, str], Scene] = {}
    for scene, name in zip(scenes, names, strict=True):
        one = first.setdefault((scene.files.split, name), scene)
        if not _on_one_grid(one, scene):
            raise ValueError(
                f"{one.files.name!r} and {scene.files.name!r} are of sequence {name!r}, but not pixel on pixel: "
                f"{one.size[1]} x {one.size[0]} and {scene.size[1]} x {scene.size[0]} pixels, half a pixel or more "
                "apart where they are georeferenced. Bring them onto one grid (gdalwarp -te -tr) first."
            )
    return [(name, date_in_name(scene.files.name)) for scene, name in zip(scenes, names, strict=True)]


def _on_one_grid(one: Scene, other: Scene) -> bool:
    if one.size != other.size:
        return False
    if one.grid is None or other.grid is None:
        return True
    height, width = one.size
    x, y = other.grid.affine @ (np.array([0, width, 0, width]), np.array([0, 0, height, height]))
    rows, columns = one.grid.pixels(x, y)
    apart = np.abs([rows - [0, 0, height, height], columns - [0, width, 0, width]])
    return one.grid.crs == other.grid.crs and bool((apart < 0.5).all())
