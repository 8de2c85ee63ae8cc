"""Figures of the results card that need models, which `sgma-hf compare --keep_models` leaves behind (extra `viz`)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from ...data.evaluation_mode import evaluating
from ...data.rows import decode_row, labelled_rows, load_rows
from ...data.windows import cover
from ...evaluation.combinations import modality_combinations
from ...evaluation.prepared_rows import PreparedRow, PreparedRows
from ...evaluation.stage_cells import cell_shares
from ...model.cells_sgma import predicted_classes
from ...model.limits_sgma import IGNORE_INDEX
from ...visualization.boards import plot_predictions
from ...visualization.comparison_charts import plot_planes
from ...visualization.palette import class_palette
from ..compared_rows import content_fingerprint, load_metadata
from ..kept_models import load_kept, model_folder
from ..runs import check_device
from .experiments import Experiment


NUM_ROWS = 3  # of the reported split, drawn unless they are named
POINTS_PER_CLASS = 150


@dataclass
class Seen:
    """What one model made of the rows."""

    maps: list[dict[str, np.ndarray]] = field(default_factory=list)  # of each row, class ids by combination
    # Of each stage: vectors (n, channels) and their classes, of cells and of prototypes; empty without fused maps.
    cells: list[list[tuple[torch.Tensor, torch.Tensor]]] = field(default_factory=lambda: [[] for _ in range(4)])
    prototypes: list[list[tuple[torch.Tensor, torch.Tensor]]] = field(default_factory=lambda: [[] for _ in range(4)])


def model_figures_of(
    experiment: Experiment, models: str, dataset: str, *, row_ids: Sequence[str] = (), device: str = "cpu"
) -> dict[str, Any]:
    """Draw what kept models predict and how their features lie, by name; of each arm the first seed that was kept.

    `rows_1`, ...: the rows as they are, and predictions of arms x combinations. `features`: cells of the fused maps of
    the four stages, in the plane of most variance, with class prototypes where a model has them.

    Args:
        experiment: The runs.
        models: Folder of `sgma-hf compare --keep_models`.
        dataset: Folder of the rows that the runs were on.
        row_ids: Rows of the reported split to draw; some that are spread over it by default.
        device: Where the models run.

    Raises:
        ValueError: If the rows are others than those of the runs, a row is not there, no model was kept, or there is
            no such device.
    """
    check_device(device)
    metadata = load_metadata(dataset)
    if content_fingerprint(dataset) != experiment.dataset["fingerprint"]:
        raise ValueError(f"The rows in {dataset!r} are not those that the runs were on; give the folder of these.")
    rows = _chosen_rows(labelled_rows(load_rows(dataset, experiment.settings["report_split"])), row_ids)
    seen = {}
    for arm, runs in experiment.runs.items():
        kept = next(filter(None, (load_kept(model_folder(models, run), device) for run in runs.values())), None)
        if kept is not None:
            seen[arm] = look(kept[0], kept[1], rows, experiment.settings["crop_size"])
    if not seen:
        raise ValueError(f"{models!r} holds no model of these runs; train them by `compare --keep_models {models}`.")
    figures = {}
    palette = metadata.palette or class_palette(metadata.class_names)
    for number, row in enumerate(rows):
        images, label = decode_row(row, metadata.modalities)
        figures[f"rows_{number + 1}"] = plot_predictions(
            images,
            label,
            {arm: found.maps[number] for arm, found in seen.items()},
            nodata=dict(zip(metadata.modalities, metadata.nodata, strict=True)),
            class_names=metadata.class_names,
            palette=palette,
            title=f"Row {row['id']}, {experiment.settings['report_split']} of {experiment.dataset['name']}",
        )
    planes = {
        f"{arm}, stage {stage + 1}": _plane(found.cells[stage], found.prototypes[stage])
        for arm, found in seen.items()
        for stage in range(4)
        if sum(len(classes) for _, classes in found.cells[stage]) > 1  # deep cells of small rows may be of no class
    }
    if planes:
        title = "Cells of the fused maps, and class prototypes, in the plane of most variance"
        figures["features"] = plot_planes(planes, metadata.class_names, palette, title=title)
    return figures


def _chosen_rows(rows: Any, row_ids: Sequence[str]) -> list[dict[str, Any]]:
    known = rows["id"][:]
    unknown = [name for name in row_ids if name not in known]
    if unknown:
        raise ValueError(f"There is no labelled row {unknown[0]!r}; there are {len(known)}, from {known[0]!r} on.")
    spread = np.linspace(0, len(known) - 1, min(NUM_ROWS, len(known)) + 2)[1:-1].round().astype(int).tolist()
    return [rows[place] for place in ([known.index(name) for name in row_ids] or dict.fromkeys(spread))]


def look(model: Any, processor: Any, rows: list[dict[str, Any]], window_size: int) -> Seen:
    """Predict rows from every combination, window by window as in the evaluation."""
    combinations = modality_combinations(model.config.modalities)
    prepared, seen = PreparedRows(rows, processor, model.config, window_size), Seen()
    for index, row in enumerate(rows):
        _, label = decode_row(row, [])
        maps = {"+".join(names): np.full(label.shape, IGNORE_INDEX, np.uint8) for names in combinations}
        windows = list(zip(cover(label.shape, window_size), prepared[index], strict=True))
        for window, part in reversed(windows):  # what two share is the first one's, as in the evaluation
            if isinstance(part, PreparedRow):
                batch = PreparedRow.batch([part]).on_device_of(model)
                for names, ids in _predicted(model, batch, combinations, seen):
                    maps[names][window.slices] = ids
        seen.maps.append(maps)
    return seen


def _predicted(
    model: Any, batch: PreparedRow, combinations: Sequence[Sequence[str]], seen: Seen
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the class ids of a window by combination; those of nothing are 255. The last one gives the features."""
    with evaluating(model):
        encoding = model.encode(**batch.inputs(model.config))
        for names in combinations:
            subset = torch.tensor([name in names for name in model.config.modalities], device=model.device)
            outputs = model.fuse_and_decode(encoding, subset, output_prototypes=True, output_hidden_states=True)
            ids = predicted_classes(outputs.logits, batch.labels.shape[-2:])
            yield "+".join(names), torch.where(outputs.coverage, ids, IGNORE_INDEX)[0].byte().cpu().numpy()
        _collect(outputs, batch.labels[0], model.config.num_labels, seen)


def _collect(outputs: Any, labels: torch.Tensor, num_labels: int, seen: Seen) -> None:
    """Keep the vectors of cells of which most pixels are of one class, and prototypes of classes that occur."""
    masks = labels == torch.arange(num_labels, device=labels.device)[:, None, None]  # (K, H, W)
    for stage, shares in enumerate(cell_shares(masks)):
        largest, classes = shares.max(0)
        chosen = largest > 0.5
        if outputs.hidden_states is not None:
            maps = outputs.hidden_states[stage][0, :, : chosen.shape[0], : chosen.shape[1]]
            seen.cells[stage].append((maps[:, chosen].T.float().cpu(), classes[chosen].cpu()))
        if outputs.prototypes is not None:
            there = masks.any(2).any(1)
            found = outputs.prototypes[stage][0][there].float().cpu(), there.nonzero()[:, 0].cpu()
            seen.prototypes[stage].append(found)


def _plane(
    cells: list[tuple[torch.Tensor, torch.Tensor]], prototypes: list[tuple[torch.Tensor, torch.Tensor]]
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, np.ndarray | None]:
    """Up to `POINTS_PER_CLASS` cells of each class, and prototypes, in the plane of the cells' most variance."""
    vectors, classes = (torch.cat(parts) for parts in zip(*cells, strict=True))
    order = torch.randperm(len(classes), generator=torch.Generator().manual_seed(0))
    chosen = torch.cat([order[classes[order] == number][:POINTS_PER_CLASS] for number in classes.unique()])
    vectors, classes = vectors[chosen], classes[chosen].numpy()
    axes, center = principal_axes(vectors)
    points = ((vectors - center) @ axes).numpy()
    if not prototypes:
        return points, classes, None, None
    marks, kinds = (torch.cat(parts) for parts in zip(*prototypes, strict=True))
    return points, classes, ((marks - center) @ axes).numpy(), kinds.numpy()


def principal_axes(vectors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The two orthonormal directions (channels, 2) of most variance of vectors (n, channels), and their mean.

    The largest entry of each is positive, so that equal vectors give equal pictures.
    """
    center = vectors.mean(0)
    axes = torch.linalg.svd((vectors - center).double(), full_matrices=False).Vh[:2].T  # (channels, 2)
    signs = axes.gather(0, axes.abs().argmax(0, keepdim=True)).sign()
    return (axes * signs).to(vectors.dtype), center
