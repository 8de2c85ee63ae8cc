"""Charts of several methods beside each other (extra `viz`); figures as in `boards`."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from .charts import show_matrix
from .palette import add_colorbar, require_matplotlib


if TYPE_CHECKING:
    from matplotlib.figure import Figure

_INK = "#333333"


def plot_scores(scores: Mapping[str, Mapping[str, float | None]], *, title: str | None = None) -> "Figure":
    """Draw a heat map of scores in [0, 1]: a row per method, a column per combination, figures in %.

    `scores` is method -> combination -> score; colours span what there is. A ValueError says that there is nothing.
    """
    columns = list(dict.fromkeys(name for row in scores.values() for name in row))
    values = np.array([[row.get(name) for name in columns] for row in scores.values()], dtype=np.float64)
    if not np.isfinite(values).any():
        raise ValueError("`scores` holds no figure; there is nothing to draw.")
    longest = max(map(len, scores)) * 0.075
    turned = max(map(len, columns)) > 7
    size = (longest + 0.62 * len(columns) + 1.2, 0.3 * len(scores) + (1.6 if turned else 0.9))
    figure = require_matplotlib().figure.Figure(figsize=size, facecolor="white", layout="constrained")
    axes = figure.add_subplot()
    limits = (float(np.nanmin(values)), float(np.nanmax(values)))
    image = show_matrix(axes, values, list(scores), columns, limits=limits, scale=100, digits=1)
    if turned:
        axes.set_xticks(range(len(columns)), columns, rotation=40, ha="right", rotation_mode="anchor")
    bar = figure.colorbar(image, ax=axes, fraction=0.03, pad=0.015, format=lambda value, _: f"{100 * value:.0f}")
    bar.outline.set_linewidth(0.5)
    bar.ax.tick_params(labelsize=7, width=0.5, length=2)
    if title:
        axes.set_title(title, fontsize=9, fontweight="bold")
    return figure


def plot_confusion(
    matrices: Mapping[str, Mapping[str, np.ndarray]], class_names: Sequence[str], *, title: str | None = None
) -> "Figure":
    """Draw confusion matrices: a row of panels per method, one for each combination.

    `matrices` is method -> combination -> counts (K, K), rows the truth; drawn are shares of each true class, of which
    one that does not occur has none.
    """
    num_columns, count = max(map(len, matrices.values())), len(class_names)
    panel = 1.0 + 0.28 * min(count, 12)
    size = (panel * num_columns + 1.3, (panel + 0.5) * len(matrices) + 0.5)
    figure = require_matplotlib().figure.Figure(figsize=size, facecolor="white", layout="constrained")
    parts = figure.subfigures(len(matrices), 1, squeeze=False)[:, 0]
    for part, (method, row) in zip(parts, matrices.items(), strict=True):
        part.suptitle(method, x=0.01, ha="left", fontsize=8, fontweight="bold")
        line = part.subplots(1, num_columns, squeeze=False)[0]
        for place, (axes, (combination, counts)) in enumerate(zip(line, row.items(), strict=False)):
            true = counts.sum(1, keepdims=True)
            shares = np.divide(counts, true, out=np.full(counts.shape, np.nan), where=true > 0)
            names = class_names if place == 0 else [""] * count
            image = show_matrix(axes, shares, names, class_names, written=count <= 12)
            axes.set_xticks(axes.get_xticks(), axes.get_xticklabels(), rotation=40, ha="right", rotation_mode="anchor")
            axes.set_title(combination, fontsize=8)
        for axes in line[len(row) :]:
            axes.axis("off")
        add_colorbar(part, image, ax=line, ticks=(0, 0.5, 1), fraction=0.02, pad=0.01)
    figure.supxlabel("rows are true classes, columns predicted ones; shares of the true class", fontsize=8)
    if title:
        figure.suptitle(title, fontsize=9, fontweight="bold")
    return figure


def plot_mean_ranks(ranks: Mapping[str, float], critical: float, *, title: str | None = None) -> "Figure":
    """Draw mean ranks on a line, 1 the best, with bars over methods that are closer than the critical difference."""
    ordered = sorted(ranks.items(), key=lambda item: item[1])
    count = len(ordered)
    bars = _alike([rank for _, rank in ordered], critical)
    half = -(-count // 2)
    height = 1.25 + 0.14 * len(bars) + 0.2 * half  # inches
    names = 0.6 + 0.08 * max(map(len, ranks))  # inches beside the line, which has 4
    figure = require_matplotlib().figure.Figure(figsize=(4 + 2 * names, height), facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1))
    low, high = 1, max(count, 2)
    inch = (high - low) / 4
    side = inch * names
    axes.set(xlim=(low - side, high + side), ylim=(height, 0))  # downwards
    axes.axis("off")
    top = 0.85
    axes.plot([low, high], [top, top], color=_INK, linewidth=1)
    for tick in range(low, high + 1):
        axes.plot([tick, tick], [top - 0.05, top], color=_INK, linewidth=1)
        axes.text(tick, top - 0.08, str(tick), ha="center", va="bottom", fontsize=8, color=_INK)
    axes.plot([low, low + critical], [0.5, 0.5], color=_INK, linewidth=1.5, marker="|", markersize=6)
    axes.text(low + critical / 2, 0.46, f"critical difference {critical:.2f}", ha="center", va="bottom", fontsize=8)
    for level, (first, last) in enumerate(bars):
        place = top + 0.1 + 0.14 * level
        ends = [ordered[first][1] - 0.05 * inch, ordered[last][1] + 0.05 * inch]
        axes.plot(ends, [place, place], color="#0072b2", linewidth=3, solid_capstyle="round")
    for index, (name, rank) in enumerate(ordered):
        left = index < half
        line = top + 0.3 + 0.14 * len(bars) + 0.2 * (index if left else count - 1 - index)
        edge = low - 0.15 * inch if left else high + 0.15 * inch
        axes.plot([rank, rank, edge], [top, line, line], color=_INK, linewidth=0.8)
        words = f"{name}  {rank:.2f}" if left else f"{rank:.2f}  {name}"
        shift = -0.08 * inch if left else 0.08 * inch
        axes.text(edge + shift, line, words, ha="right" if left else "left", va="center", fontsize=8)
    if title:
        axes.text(low - side + 0.1 * inch, 0.08, title, ha="left", va="top", fontsize=9, fontweight="bold")
    return figure


def _alike(ranks: Sequence[float], critical: float) -> list[tuple[int, int]]:
    """First and last of the longest runs of sorted ranks that lie within the critical difference, of two or more."""
    runs: list[tuple[int, int]] = []
    for first, rank in enumerate(ranks):
        last = max(index for index, other in enumerate(ranks) if other - rank <= critical)
        if last > first and (not runs or last > runs[-1][1]):
            runs.append((first, last))
    return runs


def plot_planes(
    planes: Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray | None, np.ndarray | None]],
    class_names: Sequence[str],
    palette: Sequence[Sequence[int]],
    *,
    title: str | None = None,
) -> "Figure":
    """Draw points of two coordinates in the colours of their classes, a panel per method.

    `planes` is method -> points (n, 2) and their class ids (n,), and, drawn as larger marks, prototypes (p, 2) and
    their class ids (p,), or None.
    """
    matplotlib = require_matplotlib()
    num_columns = min(4, len(planes))
    num_rows = math.ceil(len(planes) / num_columns)
    size = (2.7 * num_columns, 2.7 * num_rows + 0.7)
    figure = matplotlib.figure.Figure(figsize=size, facecolor="white", layout="constrained")
    grid = figure.subplots(num_rows, num_columns, squeeze=False).flatten()
    colors = np.array(palette) / 255
    for axes, (method, (points, classes, prototypes, kinds)) in zip(grid, planes.items(), strict=False):
        axes.scatter(*points.T, c=colors[classes], s=9, edgecolors="#555555", linewidths=0.2)
        if prototypes is not None:
            axes.scatter(*prototypes.T, c=colors[kinds], s=30, marker="D", edgecolors="black", linewidths=0.9)
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set(linewidth=0.5, color="#808080")
        axes.set_title(method, fontsize=8)
    for axes in grid[len(planes) :]:
        axes.axis("off")
    marks = [
        matplotlib.lines.Line2D([], [], color=color, marker="o", linestyle="", markersize=5, label=name)
        for name, color in zip(class_names, colors, strict=True)
    ]
    if any(prototypes is not None for *_, prototypes, _ in planes.values()):
        look = {"markerfacecolor": "white", "markeredgecolor": "black", "markersize": 5, "linestyle": ""}
        marks.append(matplotlib.lines.Line2D([], [], marker="D", label="prototype", **look))
    figure.legend(handles=marks, loc="outside lower center", ncols=min(6, len(marks)), fontsize=8, frameon=False)
    if title:
        figure.suptitle(title, fontsize=9, fontweight="bold")
    return figure
