"""Charts of shares against shares, and of curves: a grid of small panels with the same lines (extra `viz`)."""

import textwrap
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from .charts import LINE_COLORS, MARKERS
from .palette import require_matplotlib


if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MOST_COLUMNS = 6
_FEWEST = 0.001  # share of all below which a point says nothing


class Points(NamedTuple):
    """Points of a line, and which share of all each stands for, (n,); NaN where there is none."""

    x: np.ndarray
    y: np.ndarray
    weight: np.ndarray | None = None


def shares_of_bins(x: np.ndarray, right: np.ndarray, total: np.ndarray) -> Points:
    """Points of bins at `x`: the share that is right, and the share of all that is in it, unless that is tiny."""
    drawn = total > _FEWEST * total.sum()
    return Points(x[drawn], right[drawn] / total[drawn], total[drawn] / max(total.sum(), 1))


def plot_panels(
    rows: Mapping[str, Mapping[str, Mapping[str, Points]]],
    *,
    xlabel: str,
    ylabel: str,
    title: str | None = None,
    limits: tuple[float, float] | None = (0, 1),
    diagonal: bool = False,
) -> "Figure":
    """Draw lines in panels: title of a row -> title of a panel -> name of a line -> its points.

    A line has one colour everywhere; points are as large as their weights. `limits` of both axes are those of shares,
    None leaves them to each panel. A `diagonal` is where both axes are equal. A row of many panels is broken.
    """
    names = list(dict.fromkeys(name for row in rows.values() for panel in row.values() for name in panel))
    looks = {name: (LINE_COLORS[i % len(LINE_COLORS)], MARKERS[i % len(MARKERS)]) for i, name in enumerate(names)}
    num_columns = min(_MOST_COLUMNS, max(map(len, rows.values())))
    starts = np.cumsum([0, *(-(-len(row) // num_columns) for row in rows.values())]).tolist()
    side = 1.8 if limits else 3.0  # inches of a panel
    size = (side * num_columns + 0.6 + 0.08 * max(map(len, names), default=0), (side + 0.15) * starts[-1] + 0.6)
    figure = require_matplotlib().figure.Figure(figsize=size, facecolor="white", layout="constrained")
    grid = figure.add_gridspec(starts[-1], num_columns)
    for start, (heading, row) in zip(starts, rows.items(), strict=False):
        for place, (panel, drawn) in enumerate(row.items()):
            axes = figure.add_subplot(grid[start + place // num_columns, place % num_columns])
            axes.set_title(panel, fontsize=8)
            if place == 0:
                label = textwrap.fill(heading.replace("_", "_ "), 24).replace("_ ", "_")  # names of arms are long
                axes.set_ylabel(label, fontsize=8, fontweight="bold")
            axes.tick_params(labelsize=7, width=0.5, length=2)
            axes.grid(linewidth=0.4, color="#dddddd")
            axes.spines[["top", "right"]].set_visible(False)
            if limits:
                axes.set(xlim=limits, ylim=limits, xticks=(0, 0.5, 1), yticks=(0, 0.5, 1), aspect="equal")
            if diagonal:
                axes.plot((0, 1), (0, 1), color="#999999", linewidth=0.8, linestyle="--", zorder=1)
            for name, (x, y, weight) in drawn.items():
                color, marker = looks[name]
                sizes = 10 if weight is None else 5 + 60 * weight
                axes.plot(x, y, color=color, linewidth=1, zorder=2)
                axes.scatter(x, y, s=sizes, color=[color], marker=marker, linewidths=0, zorder=3, clip_on=False)
    figure.supxlabel(xlabel, fontsize=8)
    figure.supylabel(ylabel, fontsize=8)
    if title:
        figure.suptitle(title, fontsize=9, fontweight="bold")
    handles = [
        figure.axes[0].plot([], [], color=color, marker=marker, markersize=4, linewidth=1, label=name)[0]
        for name, (color, marker) in looks.items()
    ]
    figure.legend(handles=handles, loc="outside right upper", fontsize=8, frameon=False)
    return figure
