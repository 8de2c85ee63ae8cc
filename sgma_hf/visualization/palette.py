"""Colours of classes, and of what has no class."""

import colorsys
import os
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..data.class_maps import ClassMap
from ..data.command_line import did_you_mean
from ..model.limits_sgma import IGNORE_INDEX


# Okabe and Ito (2008), told apart under the common colour blindnesses, with a grey first, for ground.
SAFE_COLORS = (
    (187, 187, 187), (213, 94, 0), (240, 228, 66), (0, 158, 115), (0, 114, 178),
    (204, 121, 167), (86, 180, 233), (230, 159, 0), (70, 70, 70),
)  # fmt: skip
# What people expect classes of these names to look like: of each name all words are in that of the class. The first
# line that fits counts. Under the common colour blindnesses neighbours differ in lightness.
KNOWN_COLORS = (
    ("flooded vegetation, wetland, marsh, swamp, mangrove, peat, bog", (90, 175, 165)),
    ("swimming pool, pool", (0, 200, 225)),
    ("water, river, lake, sea, ocean, stream, flood, flooded", (50, 115, 205)),
    ("high vegetation, tree, forest, wood, woodland", (0, 95, 55)),
    ("shrub, shrubland, scrub, bush, medium vegetation", (110, 130, 50)),
    ("weed", (200, 50, 150)),
    ("crop, cropland, agriculture, agricultural, farmland, field", (235, 205, 110)),
    ("grass, grassland, meadow, pasture, rangeland, low vegetation, vegetation, lawn", (160, 210, 100)),
    ("car, vehicle, truck, bus", (255, 225, 0)),
    ("railway, rail", (95, 75, 105)),
    ("road, street, path, asphalt, pavement, paved, parking, impervious", (115, 115, 115)),
    ("building, roof, house, built, urban, settlement", (220, 85, 60)),
    ("snow, ice, glacier", (225, 240, 250)),
    ("cloud", (215, 215, 225)),
    ("shadow", (60, 60, 70)),
    ("sand, beach, dune", (235, 215, 170)),
    ("soil, bare, bareland, barren, earth, rock", (165, 125, 85)),
    ("ground, background, clutter, other, unknown", SAFE_COLORS[0]),
)
_SHADES = ((0, 0.0), (255, 0.4), (0, 0.35), (255, 0.65), (0, 0.55))  # mixed in so far for more classes of one colour
_APART = 60  # from the colours that are taken, of those for classes without a known name
ROBUSTNESS_COLORMAP = "viridis"
SHARE_RAMP = ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37))  # the same, from 0 to 1
GAP_COLOR, HATCH_COLOR, HATCH = "#f2f2f2", "#a8a8a8", "////"


def default_palette(num_labels: int) -> list[list[int]]:
    """[red, green, blue] in 0..255 for classes that have no colours of their own.

    The first nine can be told apart with the common colour blindnesses. No set of more can: from there on, hues and
    lightness go round.
    """
    palette = [list(color) for color in SAFE_COLORS[:num_labels]]
    for index in range(len(palette), num_labels):
        lightness = (0.35, 0.55, 0.75)[index % 3]
        hue = index * 0.618034 % 1.0  # golden ratio: neighbours in the list are far apart on the circle
        palette.append([round(255 * part) for part in colorsys.hls_to_rgb(hue, lightness, 0.65)])
    return palette


def class_palette(names: Sequence[str], given: Sequence[Sequence[int] | None] | None = None) -> list[list[int]]:
    """[red, green, blue] per class, 0..255: as `given`, else as people expect of its name, or of `default_palette`.

    A tree is green and water is blue; several classes of one kind have shades of its colour. Names that say what a
    class is not have none.

    Args:
        names: Of the classes, in English.
        given: The colours that somebody chose, None for classes without.

    Example:
        >>> class_palette(["water", "class 1"], [None, [9, 9, 9]])
        [[50, 115, 205], [9, 9, 9]]
    """
    palette = [None if color is None else list(color) for color in given or [None] * len(names)]
    for index, name in enumerate(names):
        if palette[index] is None and (known := _known_color(name)):
            shades = [[round(part + (to - part) * share) for part in known] for to, share in _SHADES]
            palette[index] = next((shade for shade in shades if shade not in palette), None)
    taken = np.array([color for color in palette if color is not None]).reshape(-1, 3)
    spare = default_palette(4 * len(names) + 1)
    free = [color for color in spare if (np.abs(taken - color).sum(axis=1) >= _APART).all()] + spare
    return [free.pop(0) if color is None else color for color in palette]


def recolor(
    names: Sequence[str], palette: Sequence[Sequence[int]] | None, classes: str | os.PathLike
) -> list[list[int]]:
    """The palette of the classes called `names`, with the colours that some have in `classes`, see `ClassMap.load`.

    Raises ValueError if there are none, or of a class that is not among the names.
    """
    class_map = ClassMap.load(classes)
    for name in class_map.names:
        if name not in names:
            near = did_you_mean(name, names) or "."
            raise ValueError(f"`--classes` has {name!r}{near} The classes here are {list(names)}.")
    chosen = {name: color for name, color in zip(class_map.names, class_map.palette, strict=True) if color}
    if not chosen:
        raise ValueError('`--classes` has no colours; expected some as in [{"name": "road", "color": "#808080"}].')
    own = palette or class_palette(names)
    return [list(chosen.get(name, color)) for name, color in zip(names, own, strict=True)]


def _known_color(name: str) -> tuple[int, int, int] | None:
    words = re.findall("[^\\W\\d_]+", re.sub("([a-z])([A-Z])", r"\1 \2", name).lower())
    words = {*words, *(word.removesuffix("s") for word in words)}
    if words & {"no", "non", "not", "without"}:
        return None
    fitting = (color for kinds, color in KNOWN_COLORS if any(words >= {*kind.split()} for kind in kinds.split(", ")))
    return next(fitting, None)


def colorize(
    label_map: np.ndarray,
    palette: Sequence[Sequence[int]] | None = None,
    *,
    ignore_color: Sequence[int] = (255, 255, 255),
) -> np.ndarray:
    """Paint class ids in their colours.

    Args:
        label_map: Integers (height, width); 255 is "ignore" or "no data".
        palette: [red, green, blue] in 0..255 per class; None takes `default_palette`.
        ignore_color: Colour of 255.

    Returns:
        uint8 (height, width, 3).

    Raises:
        ValueError: If the map is no map of class ids, or holds one that has no colour.

    Example:
        >>> colorize(np.array([[0, 255]]), [[10, 20, 30]]).tolist()
        [[[10, 20, 30], [255, 255, 255]]]
    """
    label_map = np.asarray(label_map)
    if label_map.ndim != 2 or label_map.dtype.kind not in "iub":
        raise ValueError(
            f"`label_map` is {label_map.dtype} of shape {label_map.shape}; expected integers of shape (height, width)."
        )
    labelled = label_map[label_map != IGNORE_INDEX]
    highest = int(labelled.max(initial=0))
    palette = default_palette(highest + 1) if palette is None else palette
    if labelled.min(initial=0) < 0 or highest >= len(palette):
        raise ValueError(
            f"`label_map` holds class ids from {labelled.min()} to {highest}, but `palette` has {len(palette)} "
            "colours; give one for each class, and 255 to pixels without one."
        )
    table = np.tile(np.asarray(ignore_color, dtype=np.uint8), (256, 1))
    table[: len(palette)] = np.asarray(palette, dtype=np.uint8).reshape(-1, 3)[:256]
    table[IGNORE_INDEX] = ignore_color
    return table[label_map.astype(np.uint8)]


def require_matplotlib() -> Any:
    """Import matplotlib, or say which extra has it."""
    try:
        import matplotlib
        import matplotlib.figure
        import matplotlib.lines
        import matplotlib.patches
    except ImportError as error:
        raise ImportError(
            "Figures need matplotlib, which is not installed. Install the extra: pip install 'sgma-hf[viz]'."
        ) from error
    return matplotlib


def add_colorbar(figure: Any, image: Any, *, ticks: Sequence[float] = (0, 0.25, 0.5, 0.75, 1), **options: Any) -> None:
    """Draw the small colour bar of an image of shares in [0, 1]; `options` are those of `Figure.colorbar`."""
    bar = figure.colorbar(image, ticks=ticks, **options)
    bar.outline.set_linewidth(0.5)
    bar.ax.tick_params(labelsize=7, width=0.5, length=2)
