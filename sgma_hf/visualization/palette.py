"""Colours of classes, and of what has no class."""

import colorsys
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..model.limits_sgma import IGNORE_INDEX


# Okabe and Ito (2008), told apart under the common colour blindnesses, with a grey first, for ground.
SAFE_COLORS = (
    (187, 187, 187), (213, 94, 0), (240, 228, 66), (0, 158, 115), (0, 114, 178),
    (204, 121, 167), (86, 180, 233), (230, 159, 0), (70, 70, 70),
)  # fmt: skip
ROBUSTNESS_COLORMAP = "viridis"
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
