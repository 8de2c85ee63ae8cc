"""Boards: what SGMA saw, predicted and relied on (extra `viz`).

The figures are `matplotlib.figure.Figure` objects, made without pyplot: nothing pops up,
no state is left behind, and `figure.savefig("board.pdf")` is all that it takes to print one.
"""

import textwrap
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..data.evaluation_mode import evaluating
from ..model.dates_sgma import dates_for, observations
from ..model.image_transforms_sgma import read_raster, valid_pixels
from ..model.limits_sgma import DATES_SUFFIX, IGNORE_INDEX
from .palette import (
    GAP_COLOR,
    HATCH,
    HATCH_COLOR,
    ROBUSTNESS_COLORMAP,
    add_colorbar,
    class_palette,
    colorize,
    require_matplotlib,
)


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WRONG_COLOR, _RIGHT_COLOR = (213, 94, 0), (232, 232, 232)
_PANEL_INCHES = 1.75


def plot_sample(
    images: Mapping[str, np.ndarray | None],
    *,
    label: np.ndarray | None = None,
    predictions: Mapping[str, np.ndarray] | None = None,
    robustness: Mapping[str, Mapping[str, np.ndarray]] | None = None,
    nodata: Mapping[str, Sequence[float]] | None = None,
    units: Mapping[str, str | None] | None = None,
    class_names: Sequence[str] | None = None,
    palette: Sequence[Sequence[int]] | None = None,
    title: str | None = None,
) -> "Figure":
    """Draw one sample as a board: its modalities and labels, then predictions, then robustness maps, and a legend.

    Gaps inside a modality are hatched, and so is the whole panel of a missing one, None. Single bands and bands of
    more than 8 bits are shown between their 2nd and 98th percentile.

    `images` are (height, width) or (height, width, channels), masked or not, or series of such, of which the date with
    the most valid pixels is shown; labels and `predictions`, by the title of
    their panel, class ids (height, width), 255 where there is none. With labels, the share of labelled pixels that are
    right is written below, and a panel shows the errors of the first prediction. `robustness` has shares in [0, 1],
    float (height, width), by heading of a row and title of a panel. `nodata` values and `units`, for the range below
    the panel, are by modality. A palette of None takes `class_palette`, class names of None number the classes.
    """
    if not images:
        raise ValueError("`images` is empty; give at least one modality, None for those that are missing.")
    nodata, units = nodata or {}, units or {}
    images = _shown(images, nodata)
    maps = [*([] if label is None else [label]), *(predictions or {}).values()]
    names, palette = _names_and_colors(maps, class_names, palette)
    inputs = [
        (name, partial(_show_raster, raster=raster, nodata=nodata.get(name, ()), unit=units.get(name)))
        for name, raster in images.items()
    ]
    if label is not None:
        inputs.append(("labels", partial(_show_labels, ids=label, palette=palette)))
    rows = [("Input", inputs)]
    if predictions:
        panels = [
            (name, partial(_show_labels, ids=ids, palette=palette, truth=label)) for name, ids in predictions.items()
        ]
        name, ids = next(iter(predictions.items()))
        if label is not None and np.shape(ids) == np.shape(label):
            panels.append((f"errors: {name}", partial(_show_errors, ids=ids, truth=label)))
        rows.append(("Prediction", panels))
    for heading, shares in (robustness or {}).items():
        rows.append((heading, [(name, partial(_show_robustness, shares=it)) for name, it in shares.items()]))
    present = np.unique([number for ids in maps for number in np.unique(ids)]).tolist()
    aspect = next((image.shape[0] / image.shape[1] for image in [*maps, *images.values()] if image is not None), 1.0)
    legend = [(names[index], palette[index]) for index in present if index != IGNORE_INDEX]
    return _draw_board(rows, legend, title=title, aspect=aspect)


def plot_predictions(
    images: Mapping[str, np.ndarray | None],
    label: np.ndarray,
    predictions: Mapping[str, Mapping[str, np.ndarray]],
    *,
    nodata: Mapping[str, Sequence[float]] | None = None,
    class_names: Sequence[str] | None = None,
    palette: Sequence[Sequence[int]] | None = None,
    title: str | None = None,
) -> "Figure":
    """Draw one sample as a board: its modalities and labels, then a row of predictions for each method.

    `predictions` is method -> title of a panel -> class ids (height, width); the rest is as for `plot_sample`.
    """
    maps = [label, *(ids for row in predictions.values() for ids in row.values())]
    names, palette = _names_and_colors(maps, class_names, palette)
    inputs = [
        (name, partial(_show_raster, raster=raster, nodata=(nodata or {}).get(name, ()), unit=None))
        for name, raster in _shown(images, nodata or {}).items()
    ]
    rows = [("Input", [*inputs, ("labels", partial(_show_labels, ids=label, palette=palette))])]
    for method, row in predictions.items():
        panels = [
            (_in_lines(name), partial(_show_labels, ids=ids, palette=palette, truth=label))
            for name, ids in row.items()
        ]
        rows.append((method, panels))
    legend = list(zip(names, palette, strict=True))
    return _draw_board(rows, legend, title=title, aspect=label.shape[0] / label.shape[1])


def plot_modality_board(
    model: Any,
    processor: Any,
    images: Mapping[str, Any],
    *,
    label: np.ndarray | None = None,
    subsets: Sequence[Sequence[str]] | None = None,
    per_stage: bool = False,
    units: Mapping[str, str | None] | None = None,
    title: str | None = None,
) -> "Figure":
    """Predict one sample from several subsets of its modalities and draw everything, see `plot_sample`.

    The sample is encoded once. The robustness maps are those of the first subset.

    Args:
        model: An SGMA model with a segmentation head, on any device.
        processor: Its image processor.
        images: Raster per modality, as for `plot_sample`; None where missing. Of a series, with its dates, the one
            with the most valid pixels is shown.
        label: Class ids (height, width), 255 where there is none.
        subsets: Names of the modalities to predict from together, a panel each. None: all there are, then each time
            one less.
        per_stage: Draw the robustness of each of the four stages, a row each, instead of the mean over them.
        units: Unit of the values by modality.
        title: Heading of the figure.

    Returns:
        The figure.

    Raises:
        ImportError: If matplotlib is missing (extra `viz`).
        ValueError: If a subset names no modality of the sample.
    """
    require_matplotlib()
    known = {*processor.modalities, *(name + DATES_SUFFIX for name in processor.modalities)}
    images = {name: value for name, value in images.items() if name in known}
    present = [name for name in processor.modalities if len(observations(images, name))]
    if subsets is None:
        without_one = [[other for other in present if other != name] for name in present]
        subsets = [present, *filter(None, without_one)]
    for names in subsets:
        if not names or not set(names) <= set(present):
            raise ValueError(f"`subsets` holds {names}; expected names among those that the sample has, {present}.")
    stages = [0, 1, 2, 3] if per_stage else [None]
    predictions, shares = _predict_subsets(model, processor, images, label, subsets, stages)
    whole = _subset_title(subsets[0], present)
    headings = [
        f"Reliance on each modality ({whole}; "
        + ("mean of the four stages)" if stage is None else f"stage {stage + 1}, cells of {4 * 2**stage} pixels)")
        for stage in stages
    ]
    config = model.config
    return plot_sample(
        {name: _as_read(images, processor, name) for name in processor.modalities},
        label=label,
        predictions={_subset_title(names, present): ids for names, ids in zip(subsets, predictions, strict=True)},
        robustness=None if shares is None else dict(zip(headings, shares, strict=True)),
        nodata=dict(zip(processor.modalities, processor.nodata, strict=True)),
        units=units,
        class_names=config.class_names,
        palette=getattr(config, "palette", None),  # an extra key, may be absent
        title=title,
    )


def _predict_subsets(
    model: Any,
    processor: Any,
    images: Mapping[str, Any],
    label: np.ndarray | None,
    subsets: Sequence[Sequence[str]],
    stages: Sequence[int | None],
) -> tuple[list[np.ndarray], list[dict[str, np.ndarray]] | None]:
    """Class ids per subset, and the first one's robustness maps by modality, per stage (None if there are none)."""
    size = None if label is None else [label.shape]
    inputs = processor([images], segmentation_maps=None if label is None else [label])
    with evaluating(model):
        encoding = model.encode(
            inputs["pixel_values"].to(model.device, model.dtype),
            inputs["modality_mask"].to(model.device),
            **dates_for(model.config, inputs.get("dates")),
        )
        masks = [torch.tensor([name in names for name in processor.modalities]) for names in subsets]
        outputs = [model.fuse_and_decode(encoding, mask.to(model.device)) for mask in masks]
    predictions = [
        processor.post_process_semantic_segmentation(output, target_sizes=size)[0].cpu().numpy() for output in outputs
    ]
    if outputs[0].robustness is None:
        return predictions, None
    robustness = []
    for stage in stages:
        (shares,) = processor.post_process_robustness(outputs[0], size, stage, modality_mask=inputs["modality_mask"])
        shares = torch.where(shares.sum(0) > 0, shares, torch.nan).cpu().numpy()
        maps = zip(processor.modalities, shares, strict=True)
        robustness.append({name: share for name, share in maps if name in subsets[0]})
    return predictions, robustness


def _as_read(images: Mapping[str, Any], processor: Any, name: str) -> list[np.ndarray]:
    """The dates of a modality as the processor reads them, (height, width, channels), transparent pixels masked."""
    channels, where = processor.modality_channels[processor.modalities.index(name)], f"`images[{name!r}]`"
    dates = []
    for value in observations(images, name):
        raster = read_raster(value, channels, layout=None, where=where)
        values = np.moveaxis(raster.values, 0, -1)
        if raster.valid is not None:
            values = np.ma.MaskedArray(values, np.broadcast_to(~raster.valid[..., None], values.shape))
        dates.append(values)
    return dates


def _shown(images: Mapping[str, Any], nodata: Mapping[str, Sequence[float]]) -> dict[str, np.ndarray | None]:
    """The raster of each modality to show, None where there is none: of a series, the date that covers most."""
    shown = {}
    for name in images:
        if not name.endswith(DATES_SUFFIX):
            dates = observations(images, name)
            covered = (
                [valid_pixels(raster, nodata.get(name, ())).mean() for raster in dates] if len(dates) > 1 else [1]
            )
            shown[name] = dates[int(np.argmax(covered))] if len(dates) else None
    return shown


def _subset_title(names: Sequence[str], present: Sequence[str]) -> str:
    missing = [name for name in present if name not in names]
    if not missing:
        return "all modalities" if len(present) > 1 else f"{present[0]} alone"
    if len(names) == 1:
        return f"{names[0]} alone"
    return f"without {missing[0]}" if len(missing) == 1 else " + ".join(names)


def _in_lines(combination: str) -> str:
    """Names that are joined by "+", in lines that are not wider than a panel."""
    lines = textwrap.wrap(combination.replace("+", "+ "), 25)
    return "\n".join(line.replace("+ ", "+") for line in lines)


def _names_and_colors(
    maps: list[np.ndarray], class_names: Sequence[str] | None, palette: Sequence[Sequence[int]] | None
) -> tuple[list[str], list[list[int]]]:
    """Name and colour of every class, those that are not given made up."""
    highest = max((int(ids[ids != IGNORE_INDEX].max(initial=0)) for ids in maps), default=0)
    count = min((len(entries) for entries in (class_names, palette) if entries), default=highest + 1)
    if count <= highest:
        raise ValueError(
            f"A map holds class {highest}, but there are {count} names or colours; give one for each class."
        )
    names = [str(name) for name in class_names or (f"class {index}" for index in range(count))]
    return names, class_palette(names) if not palette else [list(color) for color in palette]


def _draw_board(
    rows: list[tuple[str, list[tuple[str, Callable[["Axes"], Any]]]]],
    legend: list[tuple[str, list[int]]],
    *,
    title: str | None,
    aspect: float,
) -> "Figure":
    """Lay out rows of panels: a title, and what draws into axes and returns an image that needs a colour bar."""
    matplotlib = require_matplotlib()
    columns = max(len(panels) for _, panels in rows)
    entries = [0.45 + 0.06 * len(name) for name, _ in [*legend, ("no data", None)]]  # inches: patch, letters
    space = columns * _PANEL_INCHES + 0.5
    legend_columns = len(entries) if sum(entries) <= space else max(1, int(space / max(entries)))
    legend_lines = -(-len(entries) // legend_columns)
    head, foot, side = 0.34 if title else 0.1, 0.22 + 0.2 * legend_lines, 0.08
    cell_width, cell_height = _PANEL_INCHES, _PANEL_INCHES * min(max(aspect, 0.3), 3.0)
    row_height = cell_height + 0.68  # two lines of text above a panel, one below
    width = columns * (cell_width + side) + side + 0.5  # room for the colour bar
    height = head + len(rows) * row_height + foot
    figure = matplotlib.figure.Figure(figsize=(width, height), facecolor="white")

    def add_axes(column: int, bottom: float, panel_width: float) -> "Axes":
        left = side + column * (cell_width + side)
        return figure.add_axes((left / width, bottom / height, panel_width / width, cell_height / height))

    if title:
        figure.text(side / width, 1 - 0.08 / height, title, va="top", fontsize=10, fontweight="bold")
    for line, (heading, panels) in enumerate(rows):
        top = height - head - line * row_height
        figure.text(side / width, (top - 0.06) / height, heading, va="top", fontsize=8.5, fontweight="bold")
        bottom, drawn = top - 0.46 - cell_height, None
        for column, (name, draw) in enumerate(panels):
            axes = add_axes(column, bottom, cell_width)
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set(linewidth=0.5, color="#808080")
            drawn = draw(axes) or drawn
            axes.set_title(name, fontsize=8, pad=3)
        if drawn is not None:
            add_colorbar(figure, drawn, cax=add_axes(len(panels), bottom, 0.09))
    patch = matplotlib.patches.Patch
    handles = [
        patch(facecolor=np.array(color) / 255, edgecolor="#808080", linewidth=0.4, label=name)
        for name, color in legend
    ]
    handles.append(patch(facecolor=GAP_COLOR, edgecolor=HATCH_COLOR, hatch=HATCH, linewidth=0.4, label="no data"))
    options = {"frameon": False, "fontsize": 8, "handlelength": 1.2, "handleheight": 1.0, "columnspacing": 1.4}
    figure.legend(handles=handles, loc="lower left", bbox_to_anchor=(0, 0), ncols=legend_columns, **options)
    return figure


def _show_gaps(axes: "Axes") -> None:
    """Hatch the whole panel; what is drawn over it later leaves the gaps visible."""
    axes.patch.set(facecolor=GAP_COLOR, edgecolor=HATCH_COLOR, hatch=HATCH, linewidth=0)


def _show(axes: "Axes", colors: np.ndarray, shown: np.ndarray) -> None:
    """Draw (H, W, 3) of uint8 colours where `shown`, hatching elsewhere."""
    _show_gaps(axes)
    alpha = np.where(shown, 255, 0).astype(np.uint8)
    axes.imshow(np.concatenate([colors, alpha[..., None]], axis=-1), interpolation="nearest", aspect="auto")


def _show_raster(axes: "Axes", raster: np.ndarray | None, nodata: Sequence[float], unit: str | None) -> None:
    if raster is None:
        _show_gaps(axes)
        box = {"facecolor": "white", "edgecolor": "none", "pad": 2}
        axes.text(0.5, 0.5, "missing", transform=axes.transAxes, ha="center", va="center", fontsize=9, bbox=box)
        return
    values, shown = np.atleast_3d(np.ma.getdata(raster)), valid_pixels(raster, nodata)
    bands = bands_to_show(values.shape[2])
    picture, (low, high) = stretch(values[..., bands], shown)
    _show(axes, picture, shown)
    caption = [] if values.shape[2] in (1, 3) else [f"bands {', '.join(str(band + 1) for band in bands)}"]
    if unit and shown.any():
        caption.append(f"{low:.4g} to {high:.4g} {unit}")
    if not shown.all():
        caption.append(f"{np.mean(~shown):.0%} no data")
    axes.set_xlabel("; ".join(caption), fontsize=7, labelpad=2)


def bands_to_show(count: int) -> list[int]:
    """Up to three bands, spread over what there is."""
    return [0] if count < 3 else np.linspace(0, count - 1, 3).round().astype(int).tolist()


def stretch(values: np.ndarray, shown: np.ndarray) -> tuple[np.ndarray, tuple[float, float]]:
    """Bring (H, W, 1 or 3) to 8-bit colours; returns them and the range of values that was shown."""
    if values.dtype == np.uint8 and values.shape[2] == 3:
        return values, (0.0, 255.0)
    picture = np.zeros((*shown.shape, 3), dtype=np.uint8)
    low, high = 0.0, 1.0
    for band in range(3):
        source = values[..., min(band, values.shape[2] - 1)].astype(np.float64)
        low, high = np.percentile(source[shown], (2, 98)).tolist() if shown.any() else (0.0, 1.0)
        scaled = (source - low) / (high - low or 1.0)
        picture[..., band] = np.round(255 * np.clip(np.where(shown, scaled, 0), 0, 1))
    return picture, (low, high)


def _show_labels(axes: "Axes", ids: np.ndarray, palette: list[list[int]], truth: np.ndarray | None = None) -> None:
    ids = np.asarray(ids)
    _show(axes, colorize(ids, palette), ids != IGNORE_INDEX)
    if truth is not None and truth.shape == ids.shape:
        counted = truth != IGNORE_INDEX
        if counted.any():
            right = np.mean(ids[counted] == truth[counted])
            axes.set_xlabel(f"{right:.1%} of pixels right", fontsize=7, labelpad=2)


def _show_errors(axes: "Axes", ids: np.ndarray, truth: np.ndarray) -> None:
    """Wrong pixels orange, right ones pale; what is not labelled is hatched."""
    ids, truth = np.asarray(ids), np.asarray(truth)
    counted = truth != IGNORE_INDEX
    wrong = counted & (ids != truth)
    colors = np.where(wrong[..., None], np.array(_WRONG_COLOR), np.array(_RIGHT_COLOR)).astype(np.uint8)
    _show(axes, colors, counted)
    axes.set_xlabel(f"{wrong.sum() / max(1, counted.sum()):.1%} wrong (orange)", fontsize=7, labelpad=2)


def _show_robustness(axes: "Axes", shares: np.ndarray) -> Any:
    shares = np.ma.masked_invalid(np.asarray(shares, dtype=np.float32))
    _show_gaps(axes)
    image = axes.imshow(shares, cmap=ROBUSTNESS_COLORMAP, vmin=0, vmax=1, interpolation="nearest", aspect="auto")
    if shares.count():
        axes.set_xlabel(f"mean {shares.mean():.2f}", fontsize=7, labelpad=2)
    return image
