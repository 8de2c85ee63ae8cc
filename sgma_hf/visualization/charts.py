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
LINE_COLORS = [np.array(SAFE_COLORS[index]) / 255 for index in (4, 1, 3, 5, 7, 6, 8)]
MARKERS = "osD^vPX*"


def plot_learning_dynamics(record: Mapping[str, Any], *, title: str | None = None) -> "Figure":
    """Draw the loss, the scores, and how each modality learned: lines over the epochs, and the last epoch by class.

    `record` is what `read_learning_dynamics` of `sgma_hf.training.dynamics` returns. What the run did not have, for
    instance robustness without `fusion="sgf"`, has no panel; without an epoch a ValueError is raised. Lines of many
    points are running medians, which leave out what a single epoch or logging step did; the figure says of how many.
    """
    if not record["epochs"]:
        raise ValueError("The record has no epoch; expected at least one. Train until an epoch has ended.")
    matplotlib = require_matplotlib()
    stage_colors = [matplotlib.colormaps[ROBUSTNESS_COLORMAP](share) for share in (0.0, 0.3, 0.6, 0.8)]
    lines = {name: panel for name, panel in _line_panels(record).items() if _has_numbers(panel)}
    last = record["epochs"][-1]["modalities"]
    matrices = {
        f"{heading} by class, last epoch": {name: figures[key] for name, figures in last.items()}
        for key, heading in (("class_robustness", "Robustness"), ("single_iou", "IoU alone"))
        if any(figures[key] is not None for figures in last.values())
    }
    count = len(lines) + len(matrices)
    num_columns = -(-count // 2) if count > 3 else count
    num_rows = -(-count // num_columns)
    size = (3.1 * num_columns, 2.9 * num_rows + 0.3)
    figure = matplotlib.figure.Figure(figsize=size, facecolor="white", layout="constrained")
    if title:
        figure.suptitle(title, fontsize=11, fontweight="bold")
    said = "epoch; lines of more than 10 points, but for validation, are running medians of 5 points"
    figure.supxlabel(said, fontsize=8)
    panels = iter(range(1, count + 1))
    explained: set[tuple[str, ...]] = set()
    for heading, panel in lines.items():
        axes = figure.add_subplot(num_rows, num_columns, next(panels))
        limits = (0, 1) if heading in _SHARES else None
        colors = stage_colors if heading.startswith("Prototype") else LINE_COLORS
        if heading != "Validation mIoU":
            panel = {name: (places, _running_median(values)) for name, (places, values) in panel.items()}
        _show_lines(axes, panel, title=heading, limits=limits, colors=colors)
        if len(panel) > 1 and tuple(panel) not in explained:
            axes.legend(fontsize=7, frameon=False, ncols=2, handlelength=1.6, columnspacing=1.0)
        explained.add(tuple(panel))
    for heading, values in matrices.items():
        axes = figure.add_subplot(num_rows, num_columns, next(panels))
        unknown = [None] * len(record["class_names"])
        matrix = np.array([values[name] or unknown for name in values], dtype=np.float64).T  # (K, M)
        axes.set_title(heading, fontsize=9)
        few = matrix.shape[0] <= 12 and matrix.shape[1] <= 6
        image = show_matrix(axes, matrix, record["class_names"], list(values), written=few)
    if matrices:
        add_colorbar(figure, image, ax=axes, fraction=0.05, pad=0.02)
    return figure


def plot_season(results: Mapping[str, Any]) -> "Figure":
    """Draw the mIoU of each combination over the day that dates had to be before: how early a map can be made.

    `results` is what `evaluate_modality_combinations` returns with `dates`; a ValueError says that it has no days.
    """
    found = results.get("dates", {"days": {}})
    days = list(found["days"])
    if not days:
        raise ValueError("The results have no scores of dates before a day; score with `--before` first.")
    scores = {name: found["conditions"][name]["combinations"] for name in days}
    places = list(found["days"].values())
    lines = {
        name: (places, [None if (miou := one[name]["miou"]) is None else 100 * miou for one in scores.values()])
        for name in results["combinations"]
    }
    size = (4.6 + 0.2 * min(len(days), 12), 3.4)
    figure = require_matplotlib().figure.Figure(figsize=size, facecolor="white", layout="constrained")
    axes = figure.add_subplot()
    _show_lines(axes, lines, title="mIoU in % from the dates before a day")
    axes.set_xticks(places, [name.removeprefix("before ") for name in days], rotation=40, ha="right")
    axes.legend(fontsize=7, frameon=False, handlelength=1.6)
    return figure


_SHARES = ("Validation mIoU", "Robustness", "mIoU of one modality alone")  # panels that run from 0 to 1


def _line_panels(record: Mapping[str, Any]) -> dict[str, dict[str, tuple[list, list]]]:
    """Title of each panel -> name of each line -> epochs and values, None where there is none."""
    steps, epochs, evaluations, names = (record[key] for key in ("steps", "epochs", "evaluations", "modalities"))
    shown = [entry for entry in evaluations if entry["name"] == evaluations[0]["name"]]
    ended, evaluated = ([entry["epoch"] for entry in entries] for entries in (epochs, shown))

    def by_modality(key: str) -> dict[str, tuple[list, list]]:
        return {name: (ended, [entry["modalities"][name][key] for entry in epochs]) for name in names}

    def mean(values: Sequence[float | None]) -> float | None:
        defined = [value for value in values if value is not None]
        return sum(defined) / len(defined) if defined else None

    drifts = [entry["prototype_drift"] or [None] * 4 for entry in epochs]
    scores = {"Average": "average_miou", "Last-1": "last1_miou", "Top-1": "top1_miou"}
    return {
        "Training loss": {"loss": ([entry["epoch"] for entry in steps], [entry["loss"] for entry in steps])},
        "Validation mIoU": {
            name: (evaluated, [entry["scores"].get(key) for entry in shown]) for name, key in scores.items()
        },
        "Robustness": by_modality("robustness"),
        "Loss of one modality alone": by_modality("single_loss"),
        "mIoU of one modality alone": by_modality("single_miou"),
        "Gradient norm (RMS, clipped)": by_modality("gradient_norm"),
        "Prototype drift (1 - cosine)": {
            f"stage {stage}": (ended, list(values)) for stage, values in enumerate(zip(*drifts, strict=True), 1)
        },
        "Silhouette (mean of the stages)": {
            name: (evaluated, [mean(entry["separation"][name]) for entry in shown]) for name in names
        },
    }


def _has_numbers(panel: Mapping[str, tuple[Sequence, Sequence]]) -> bool:
    return any(value is not None for _, values in panel.values() for value in values)


def _running_median(values: Sequence[float | None]) -> np.ndarray:
    """Of more than 10 values the medians of 5 around each, fewer at the ends, and those that are known of them."""
    known = np.array(values, dtype=np.float64)
    if len(known) <= 10:
        return known
    windows = (known[max(0, place - 2) : place + 3] for place in range(len(known)))
    return np.array([np.nan if np.isnan(window).all() else np.nanmedian(window) for window in windows])


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
    image = show_matrix(axes, shares, list(rows), modalities)
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
    colors: Sequence[Any] = LINE_COLORS,
) -> None:
    """Draw values over epochs, a line per name; nothing where a value is None."""
    axes.set_title(title, fontsize=9)
    axes.tick_params(labelsize=7, width=0.5, length=2.5)
    axes.grid(linewidth=0.4, color="#dddddd")
    axes.spines[["top", "right"]].set_visible(False)
    looks = zip(itertools.cycle(colors), itertools.cycle(MARKERS), strict=True)
    for (name, (epochs, values)), (color, marker) in zip(lines.items(), looks, strict=False):
        style = {"color": color, "marker": marker, "markersize": 3, "linewidth": 1.2}
        every = max(1, len(values) // 12)
        axes.plot(epochs, np.array(values, dtype=np.float64), label=name, markevery=every, **style)
    if limits is not None:
        axes.set_ylim(*limits)


def show_matrix(
    axes: "Axes",
    values: np.ndarray,
    row_names: Sequence[str],
    column_names: Sequence[str],
    *,
    limits: tuple[float, float] = (0, 1),
    scale: float = 1,
    digits: int = 2,
    written: bool = True,
) -> Any:
    """Draw a matrix in colours, NaN for what is not known, and its figures times `scale` if they are to be written."""
    low, high = limits
    axes.set_facecolor(GAP_COLOR)
    colors = {"cmap": ROBUSTNESS_COLORMAP, "vmin": low, "vmax": high}
    image = axes.imshow(np.ma.masked_invalid(values), aspect="auto", interpolation="nearest", **colors)
    axes.set_xticks(range(len(column_names)), list(column_names))
    step = 1 if written else -(-len(row_names) // 25)  # more lines of text than that would run into each other
    axes.set_yticks(range(0, len(row_names), step), [str(name) for name in row_names[::step]])
    axes.tick_params(labelsize=7 if len(row_names) <= 15 else 6, width=0.5, length=2)
    for (row, column), value in np.ndenumerate(values) if written else ():
        text = "–" if np.isnan(value) else f"{scale * value:.{digits}f}"
        dark = value <= low + 0.6 * (high - low)  # viridis is dark below, bright above; NaN is not dark
        axes.text(column, row, text, ha="center", va="center", fontsize=7, color="white" if dark else "black")
    return image
