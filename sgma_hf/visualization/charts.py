"""Charts of how modalities learned and what they are relied on for (extra `viz`); figures as in `boards`."""

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .palette import GAP_COLOR, ROBUSTNESS_COLORMAP, SAFE_COLORS, add_colorbar, require_matplotlib


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# For lines on white: of `SAFE_COLORS`, those that are dark enough, each with a marker of its own.
_LINE_COLORS = [np.array(SAFE_COLORS[index]) / 255 for index in (4, 1, 3, 5, 7, 6, 8)]
_MARKERS = "osD^vPX*"


def plot_learning_dynamics(record: Mapping[str, Any], *, title: str | None = None) -> "Figure":
    """Draw how each modality learned: lines over the epochs, and the last epoch's figures per class.

    `record` is what `read_learning_dynamics` of `sgma_hf.training.dynamics` returns. What the run did not have, for
    instance robustness without `fusion="sgf"`, leaves its panel empty; without an epoch a ValueError is raised.
    """
    epochs, evaluations, names = record["epochs"], record["evaluations"], record["modalities"]
    if not epochs:
        raise ValueError("The record has no epoch; expected at least one. Train until an epoch has ended.")
    matplotlib = require_matplotlib()
    figure = matplotlib.figure.Figure(figsize=(12.5, 5.8), facecolor="white", layout="constrained")
    axes = figure.subplots(2, 4)
    if title:
        figure.suptitle(title, fontsize=11, fontweight="bold")
    ended = [entry["epoch"] for entry in epochs]

    def by_modality(key: str) -> dict[str, tuple[list, list]]:
        return {name: (ended, [entry["modalities"][name][key] for entry in epochs]) for name in names}

    _show_lines(axes[0, 0], by_modality("robustness"), title="Robustness", limits=(0, 1))
    _show_lines(axes[0, 1], by_modality("single_loss"), title="Loss of one modality alone")
    _show_lines(axes[0, 2], by_modality("single_miou"), title="mIoU of one modality alone", limits=(0, 1))
    _show_lines(axes[0, 3], by_modality("gradient_norm"), title="Gradient norm (RMS, clipped)")
    drifts = [entry["prototype_drift"] or [None] * 4 for entry in epochs]
    stages = {f"stage {stage}": (ended, list(values)) for stage, values in enumerate(zip(*drifts, strict=True), 1)}
    colors = [matplotlib.colormaps[ROBUSTNESS_COLORMAP](share) for share in (0.0, 0.3, 0.6, 0.8)]
    _show_lines(axes[1, 0], stages, title="Prototype drift (1 - cosine)", colors=colors)
    shown = [entry for entry in evaluations if entry["name"] == evaluations[0]["name"]]
    separation = {name: ([entry["epoch"] for entry in shown], []) for name in names}
    for name, entry in itertools.product(names, shown):
        defined = [value for value in entry["separation"][name] if value is not None]
        separation[name][1].append(sum(defined) / len(defined) if defined else None)
    _show_lines(axes[1, 1], separation, title="Silhouette (mean of the stages)")
    for column, key, heading in ((2, "class_robustness", "Robustness"), (3, "single_iou", "IoU alone")):
        last = {name: epochs[-1]["modalities"][name][key] for name in names}
        image = _show_classes(axes[1, column], last, record["class_names"], title=f"{heading} by class, last epoch")
    axes[1, 3].set_yticklabels([])  # they are those of the matrix beside it
    add_colorbar(figure, image, ax=axes[1, 3], fraction=0.05, pad=0.02)
    for panel in (*axes[0], *axes[1, :2]):
        panel.set_xlabel("epoch", fontsize=8, labelpad=2)
    for panel in (axes[0, 0], axes[1, 0]):
        panel.legend(fontsize=7, frameon=False, ncols=2, handlelength=1.6, columnspacing=1.0)
    return figure


def plot_robustness_matrix(
    robustness_per_class: Mapping[str, Mapping[str, float] | None], *, title: str | None = None
) -> "Figure":
    """Draw which modality is relied on for which class, a cell for each pair.

    `robustness_per_class` is class -> modality -> mean share of reliance in [0, 1], as `evaluate_scene` returns it;
    None for a class that does not occur. A ValueError says that none does.
    """
    matplotlib = require_matplotlib()
    rows = {name: row for name, row in robustness_per_class.items() if row}
    if not rows:
        raise ValueError("`robustness_per_class` holds no class that occurs; there is nothing to draw.")
    modalities = list(next(iter(rows.values())))
    shares = np.array([[row[name] for name in modalities] for row in rows.values()])
    size = (1.6 + 0.75 * len(modalities), 0.8 + 0.36 * len(rows))
    figure = matplotlib.figure.Figure(figsize=size, facecolor="white", layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(shares, cmap=ROBUSTNESS_COLORMAP, vmin=0, vmax=1, aspect="auto")
    axes.set_xticks(range(len(modalities)), modalities, fontsize=8)
    axes.set_yticks(range(len(rows)), rows, fontsize=8)
    axes.tick_params(length=0)
    _write_shares(axes, shares, fontsize=8)
    add_colorbar(figure, image, ax=axes, ticks=(0, 0.5, 1))
    if title:
        axes.set_title(title, fontsize=9, fontweight="bold")
    return figure


def _show_lines(
    axes: "Axes",
    lines: Mapping[str, tuple[Sequence[float], Sequence[float | None]]],
    *,
    title: str,
    limits: tuple[float, float] | None = None,
    colors: Sequence[Any] = _LINE_COLORS,
) -> None:
    """Draw values over epochs, a line per name; nothing where a value is None."""
    axes.set_title(title, fontsize=9)
    axes.tick_params(labelsize=7, width=0.5, length=2.5)
    axes.grid(linewidth=0.4, color="#dddddd")
    axes.spines[["top", "right"]].set_visible(False)
    looks = zip(itertools.cycle(colors), itertools.cycle(_MARKERS), strict=True)
    for (name, (epochs, values)), (color, marker) in zip(lines.items(), looks, strict=False):
        values, every = np.array(values, dtype=np.float64), max(1, len(values) // 12)
        style = {"color": color, "marker": marker, "markersize": 3, "linewidth": 1.2}
        axes.plot(epochs, values, label=name, markevery=every, **style)
    if all(value is None for _, values in lines.values() for value in values):
        axes.text(0.5, 0.5, "not recorded", transform=axes.transAxes, ha="center", va="center", fontsize=8)
        axes.set(xticks=[], yticks=[])
    elif limits is not None:
        axes.set_ylim(*limits)


def _show_classes(
    axes: "Axes", values: Mapping[str, Sequence[float | None] | None], class_names: Sequence[str], *, title: str
) -> Any:
    """Draw shares in [0, 1] as a matrix, a row per class and a column per modality, with its figures if few."""
    axes.set_title(title, fontsize=9)
    unknown = [None] * len(class_names)
    matrix = np.array([values[name] or unknown for name in values], dtype=np.float64).T  # (K, M)
    axes.set_facecolor(GAP_COLOR)
    image = axes.imshow(
        np.ma.masked_invalid(matrix), cmap=ROBUSTNESS_COLORMAP, vmin=0, vmax=1, aspect="auto", interpolation="nearest"
    )
    axes.set_xticks(range(len(values)), list(values))
    step = -(-len(class_names) // 25)  # more lines of text than that would run into each other
    axes.set_yticks(range(0, len(class_names), step), [str(name) for name in class_names[::step]])
    axes.tick_params(labelsize=7 if len(class_names) <= 15 else 6, width=0.5, length=2)
    if matrix.shape[0] <= 12 and matrix.shape[1] <= 6:
        _write_shares(axes, matrix, fontsize=7)
    return image


def _write_shares(axes: "Axes", matrix: np.ndarray, *, fontsize: int) -> None:
    for (row, column), share in np.ndenumerate(matrix):
        text = "–" if np.isnan(share) else f"{share:.2f}"
        color = "black" if np.isnan(share) or share > 0.6 else "white"  # viridis is dark below, bright above
        axes.text(column, row, text, ha="center", va="center", fontsize=fontsize, color=color)
