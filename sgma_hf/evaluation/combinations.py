"""Scores for every combination of the modalities, from one encoding per image.

What is counted:

- Rows without a label, and rows without any modality, are skipped and their numbers reported.
- A row that has none of a combination's modalities is left out of that combination; a row that has some of them is
  predicted from those. `rows`, `rows_left_out` and `rows_complete` (all of the combination is there) say how many.
- Where rasters end inside the image, pixels that nothing of the combination covers are nodata in the prediction, so
  they are left out as well; `uncovered_share` says how many of the labelled ones.
- A combination with a modality that no row has is not scored: its figures would be those of a smaller combination.
  It is None, and no part of Average, Top-1 and Last-1.
- Which classes count in a mean is said in `sgma_hf.evaluation.metrics`.
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from transformers import BaseImageProcessor, PreTrainedModel
from transformers.utils import logging

from ..data.rows import decode_row
from ..model.cells_sgma import predicted_classes
from ..model.configuration_sgma import IGNORE_INDEX
from .metrics import (
    ScoredClasses,
    check_class_ids,
    check_scored_classes,
    count_pixels,
    mean_of_defined,
    segmentation_scores,
)


Missing = Literal["absent", "zero"]

MAX_COMBINATIONS = 2**10 - 1
# Rows wait for others of their size to share a batch with; this many batches of them at most are kept in memory.
MAX_WAITING_BATCHES = 4


def modality_combinations(modalities: Sequence[str]) -> list[tuple[str, ...]]:
    """List every non-empty combination: single modalities first, then pairs, and so on, each in the given order.

    Args:
        modalities: Names of the modalities, 10 at most (1023 combinations).

    Returns:
        2**M - 1 tuples of names for M modalities.

    Raises:
        ValueError: If there are more than 10 modalities.

    Example:
        >>> modality_combinations(["rgb", "dsm"])
        [('rgb',), ('dsm',), ('rgb', 'dsm')]
    """
    if 2 ** len(modalities) - 1 > MAX_COMBINATIONS:
        raise ValueError(
            f"{len(modalities)} modalities have {2 ** len(modalities) - 1} combinations; expected at most "
            f"{MAX_COMBINATIONS}. Pass the `combinations` that you want evaluated."
        )
    sizes = range(1, len(modalities) + 1)
    return [names for size in sizes for names in itertools.combinations(modalities, size)]


@torch.no_grad()
def evaluate_modality_combinations(
    model: PreTrainedModel,
    processor: BaseImageProcessor,
    dataset: Sequence[Mapping[str, Any]],
    *,
    combinations: Sequence[Sequence[str]] | None = None,
    missing: Missing = "absent",
    scored_classes: ScoredClasses = "union",
    window_size: int | None = None,
    batch_size: int = 8,
    num_workers: int = 0,
    progress_bar: bool = False,
    accelerator: Accelerator | None = None,
) -> dict[str, Any]:
    """Score a model on every combination of its modalities (protocol of arXiv:2603.02505).

    Each image is encoded once and every combination is fused from that encoding. Only confusion matrices are kept,
    in integers. The model's mode is restored; its device and dtype are used as they are.

    Args:
        model: An SGMA model with a segmentation head.
        processor: Its image processor.
        dataset: Rows of the one schema (`load_rows`), with a length. Sizes may differ: a batch holds rows of one size.
        combinations: Names to evaluate together; None takes every non-empty combination.
        missing: How a modality that is not in a combination is represented. `absent`: not there, what the model is
            made for. `zero`: zeros after normalisation, encoded as if seen, to compare with methods without masks;
            gaps and nulls become zeros too. It takes a full pass per combination. Both count the same pixels.
        scored_classes: Which classes count in the means, see `segmentation_scores`.
        window_size: Side in pixels of the windows that larger rows are cut into, each pixel counted once; each is then
            evaluated as a row. Give the size trained on: attention over much larger images costs points.
        batch_size: Rows per forward pass, at most.
        num_workers: Processes that read and prepare rows; 0 does it in this one.
        progress_bar: Show a progress bar over the rows.
        accelerator: Shares the rows out among its processes, each exactly once; all of them return the same.

    Returns:
        A dictionary that JSON can hold, scores as fractions in [0, 1] and None where undefined:

        - `combinations`: names joined by "+" -> the scores of `segmentation_scores`, with `rows`, `rows_left_out`,
          `rows_complete` and `uncovered_share`.
        - `average_miou`, `top1_miou`, `last1_miou`: mean, best and worst over the combinations that have a score;
          `top1_combination` and `last1_combination` name the latter two, `unscored_combinations` those without.
        - `rows` that were read and the `windows` they gave (as many without `window_size`); `rows_without_label`,
          `rows_without_modality`, and `rows_per_modality` of those that were evaluated, which count windows.
        - `modalities`, `class_names`, `missing`, `scored_classes`, `window_size`.

    Raises:
        ValueError: If no row has both a label and a modality, a row cannot be read or has a label outside the model's
            classes (the row is named), the processor is another model's, or an option is unknown.
        TypeError: If the dataset has no length.
    """
    config = model.config
    check_evaluated(config, processor, dataset)
    _check_options(missing=missing, scored_classes=scored_classes, batch_size=batch_size, window_size=window_size)
    if combinations is None:
        combinations = modality_combinations(config.modalities)
    counts = _Counts(_subset_masks(combinations, config.modalities), config.num_labels, model.device)
    rows = PreparedRows(dataset, processor, config, window_size)
    if accelerator is not None:
        rows = torch.utils.data.Subset(rows, range(accelerator.process_index, len(rows), accelerator.num_processes))
    # Rows arrive one by one, batch_size=None: they are put together by size below. Its own generator, because a loader
    # would draw from the global one, and training goes on after an evaluation as if there had been none.
    loader = torch.utils.data.DataLoader(rows, batch_size=None, num_workers=num_workers, generator=torch.Generator())
    prepared = logging.tqdm(loader, total=len(rows), unit="row", desc="evaluate", disable=not progress_bar)
    skipped = _count_rows(model, prepared, counts, batch_size=batch_size, missing=missing)
    if accelerator is not None:
        skipped = counts.reduce(accelerator, skipped)
    if counts.num_rows == 0:
        raise ValueError(
            f"None of the {skipped['rows']} rows can be evaluated: {skipped['label']} have no label, "
            f"{skipped['modality']} have none of the modalities {config.modalities}. Choose a split with labels."
        )
    return _summarize(counts, config, scored_classes=scored_classes) | {
        "missing": missing,
        "window_size": window_size,
        "rows": skipped["rows"],
        "windows": skipped["windows"],
        "rows_without_label": skipped["label"],
        "rows_without_modality": skipped["modality"],
    }


def _check_options(*, missing: str, scored_classes: str, batch_size: int, window_size: int | None) -> None:
    if window_size is not None and window_size < 1:
        raise ValueError(f"`window_size` is {window_size}; expected pixels, at least 1, or None for whole rows.")
    if missing not in ("absent", "zero"):
        raise ValueError(f"`missing` is {missing!r}; expected 'absent' or 'zero'.")
    check_scored_classes(scored_classes)
    if batch_size < 1:
        raise ValueError(f"`batch_size` is {batch_size}; expected at least 1.")


def check_evaluated(config: Any, processor: BaseImageProcessor, dataset: Sequence) -> None:
    """Raise a TypeError or ValueError unless the rows can be counted and the processor is the model's own."""
    if not hasattr(dataset, "__len__"):
        raise TypeError(
            f"`dataset` is a {type(dataset).__name__}, which has no length; expected rows that can be counted. "
            "Load it without streaming, or pass a list of rows."
        )
    if len(dataset) == 0:
        raise ValueError("`dataset` has no rows; expected at least one with a label. Choose another split.")
    check_processor(config, processor)


def check_processor(config: Any, processor: BaseImageProcessor) -> None:
    """Raise a ValueError unless the model understands what the processor makes of a row and its label."""
    given = (list(processor.modalities), list(processor.modality_channels))
    expected = (list(config.modalities), list(config.modality_channels))
    if given != expected:
        raise ValueError(
            f"`processor` is for modalities {given[0]} with {given[1]} channels, the model for {expected[0]} with "
            f"{expected[1]}; they have to be the same, in one order. Load the processor from the model's own folder, "
            "or build it from the model's configuration."
        )
    if config.semantic_loss_ignore_index != IGNORE_INDEX:
        raise ValueError(
            f"The model's `semantic_loss_ignore_index` is {config.semantic_loss_ignore_index}; the processor marks "
            f"pixels without a label by {IGNORE_INDEX}. Set it to {IGNORE_INDEX} in the model's configuration; the "
            "weights do not depend on it."
        )


def _subset_masks(combinations: Sequence[Sequence[str]], modalities: Sequence[str]) -> torch.Tensor:
    """Bool (combinations, num_modalities), True for the modalities that belong to each."""
    if len(combinations) == 0:
        raise ValueError("`combinations` is empty; expected at least one combination of modalities.")
    for names in combinations:
        unknown = [name for name in names if name not in modalities]
        if isinstance(names, str) or unknown or not names:
            raise ValueError(
                f"`combinations` holds {names!r}; expected non-empty sequences of names among {list(modalities)}."
            )
    return torch.tensor([[name in names for name in modalities] for names in combinations])


@dataclass
class PreparedRow:
    """One row as the model takes it, without a batch axis; a batch of equal sizes has the same fields with one.

    Attributes:
        pixel_values: Normalised rasters, float32, (channels, height, width).
        modality_mask: Bool, (num_modalities,), or (num_modalities, height, width) where coverage ends inside.
        labels: Class ids, int64, (height, width), 255 where nothing is counted.
    """

    pixel_values: torch.Tensor  # (sum C, H, W)
    modality_mask: torch.Tensor  # (M,) or (M, H, W)
    labels: torch.Tensor  # (H, W)


class _Window(NamedTuple):
    """Part of a row, and how many of its first rows and columns of pixels other windows count already."""

    place: tuple[int, int, int, int] | None  # top, left, height, width
    counted_before: tuple[int, int] = (0, 0)


class PreparedRows(torch.utils.data.Dataset):
    """Reads, checks and processes single rows; a row that can't be evaluated gives the reason: "label", "modality".

    Args:
        dataset: Rows of the one schema.
        processor: The model's image processor.
        config: The model's configuration.
        window_size: As `evaluate_modality_combinations` takes it: an item is the list of the row's windows.
    """

    def __init__(
        self,
        dataset: Sequence[Mapping[str, Any]],
        processor: BaseImageProcessor,
        config: Any,
        window_size: int | None,
    ):
        self.dataset = dataset
        self.window_size = window_size
        self.processor = processor
        self.modalities = list(config.modalities)
        self.num_labels = config.num_labels

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> list[PreparedRow | str]:
        row = self.dataset[index]
        if row.get("label") is None:
            return ["label"]
        if all(name in row and row[name] is None for name in self.modalities):
            return ["modality"]
        images, label = decode_row(row, self.modalities)
        try:
            if label.dtype.kind in "iu":
                check_class_ids(label, self.num_labels, "label")
            return [self._prepare(images, label, window) for window in _windows(label.shape, self.window_size)]
        except (ValueError, TypeError) as error:
            raise type(error)(f"Row {row.get('id', index)!r}: {error}") from error

    def _prepare(self, images: Mapping[str, Any], label: np.ndarray, window: _Window) -> PreparedRow | str:
        inputs = self.processor(
            images=[images], segmentation_maps=[label], windows=[window.place], return_tensors="pt"
        )
        mask = inputs["modality_mask"][0]
        if not mask.any():  # all its rasters hold nodata only
            return "modality"
        labels = inputs["labels"][0]
        labels[: window.counted_before[0]] = IGNORE_INDEX
        labels[:, : window.counted_before[1]] = IGNORE_INDEX
        return PreparedRow(inputs["pixel_values"][0], mask, labels)


def _windows(size: tuple[int, int], window_size: int | None) -> list[_Window]:
    """Cover (height, width) with windows; the last of each direction is shifted back inside."""
    if window_size is None:
        return [_Window(None)]

    def steps(side: int) -> list[tuple[int, int, int]]:
        extent = min(side, window_size)
        starts = [min(start, side - extent) for start in range(0, side, extent)]
        return [(start, extent, place * extent - start) for place, start in enumerate(starts)]

    return [
        _Window((top, left, height, width), (rows, columns))
        for top, height, rows in steps(size[0])
        for left, width, columns in steps(size[1])
    ]


def without_skipped(prepared: Iterable[list[PreparedRow | str]], skipped: dict[str, int]) -> Iterator[PreparedRow]:
    """Yield what can be evaluated, and add to `skipped` how many rows and windows were read and which were left out.

    Args:
        prepared: Items of `PreparedRows`.
        skipped: Counts under "rows", "windows", "label" and "modality".
    """
    for parts in prepared:
        skipped["rows"] += 1
        skipped["windows"] += len(parts)
        for part in parts:
            if isinstance(part, str):
                skipped[part] += 1
            else:
                yield part


def batches_by_size(rows: Iterable[PreparedRow], batch_size: int) -> Iterator[PreparedRow]:
    """Stack rows of one size and one kind of mask: padding would change what a row's prediction depends on.

    Args:
        rows: Single rows, of any sizes.
        batch_size: Rows per batch, at most.
    """
    waiting: dict[tuple, list[PreparedRow]] = {}
    for row in rows:
        key = (row.labels.shape, row.modality_mask.ndim)
        waiting.setdefault(key, []).append(row)
        if len(waiting[key]) == batch_size:
            yield _stack(waiting.pop(key))
        elif sum(map(len, waiting.values())) >= MAX_WAITING_BATCHES * batch_size:
            yield _stack(waiting.pop(max(waiting, key=lambda size: len(waiting[size]))))
    for group in waiting.values():
        yield _stack(group)


def _stack(rows: list[PreparedRow]) -> PreparedRow:
    return PreparedRow(
        torch.stack([row.pixel_values for row in rows]),
        torch.stack([row.modality_mask for row in rows]),
        torch.stack([row.labels for row in rows]),
    )


class _Counts:
    """Everything that is added up over the batches, in integers; pixels on the model's device."""

    def __init__(self, subsets: torch.Tensor, num_labels: int, device: torch.device):
        self.subsets = subsets  # bool (S, M)
        num_subsets, num_modalities = subsets.shape
        self.confusion = torch.zeros(num_subsets, num_labels, num_labels, dtype=torch.int64, device=device)
        self.labelled = torch.zeros(num_subsets, dtype=torch.int64, device=device)
        self.rows = torch.zeros(num_subsets, dtype=torch.int64)
        self.rows_complete = torch.zeros(num_subsets, dtype=torch.int64)
        self.rows_per_modality = torch.zeros(num_modalities, dtype=torch.int64)
        self.num_rows = 0

    def reduce(self, accelerator: Accelerator, skipped: dict[str, int]) -> dict[str, int]:
        """Add up the counts of all processes; the returned dict holds the summed numbers of skipped rows."""
        numbers = torch.tensor([self.num_rows, *skipped.values()], device=accelerator.device)
        self.num_rows, *totals = accelerator.reduce(numbers, "sum").tolist()
        for name in ("confusion", "labelled", "rows", "rows_complete", "rows_per_modality"):
            total = accelerator.reduce(getattr(self, name).to(accelerator.device), "sum")
            setattr(self, name, total.to(getattr(self, name).device))
        return dict(zip(skipped, totals, strict=True))


def _count_rows(
    model: PreTrainedModel,
    prepared: Iterable[list[PreparedRow | str]],
    counts: _Counts,
    *,
    batch_size: int,
    missing: Missing,
) -> dict[str, int]:
    """Count all rows in the model's evaluation mode; return how many were read, and how many skipped and why."""
    skipped = {"rows": 0, "windows": 0, "label": 0, "modality": 0}
    was_training = model.training
    model.eval()
    try:
        for batch in batches_by_size(without_skipped(prepared, skipped), batch_size):
            _count_batch(model, batch, counts, missing=missing)
    finally:
        model.train(was_training)
    return skipped


def _count_batch(model: PreTrainedModel, batch: PreparedRow, counts: _Counts, *, missing: Missing) -> None:
    mask = batch.modality_mask
    present = mask if mask.ndim == 2 else mask.flatten(2).any(2)  # (B, M)
    counts.rows_per_modality += present.sum(0)
    counts.num_rows += len(present)
    predict = _predict_absent if missing == "absent" else _predict_zero
    device = model.device
    labels = batch.labels.to(device)
    labelled = labels != model.config.semantic_loss_ignore_index
    mask = mask.to(device)
    predictions = predict(model, batch.pixel_values.to(device, model.dtype), mask, present, counts.subsets)
    for index, predicted in predictions:
        subset = counts.subsets[index]
        seen = (present & subset).any(1)  # (B,)
        counts.rows[index] += seen.sum()
        counts.rows_complete[index] += (present | ~subset).all(1).sum()
        of_rows = labelled & seen.to(device)[:, None, None]
        counted = of_rows
        if mask.ndim == 4:
            counted = of_rows & mask[:, subset.to(device)].any(1)
        counts.labelled[index] += of_rows.sum()
        counts.confusion[index] += count_pixels(predicted, labels, model.config.num_labels, counted)


def _predict_absent(
    model: PreTrainedModel,
    pixel_values: torch.Tensor,
    mask: torch.Tensor,
    present: torch.Tensor,
    subsets: torch.Tensor,
) -> Iterator[tuple[int, torch.Tensor]]:
    """Yield (index of a subset, class ids (B, H, W)), all from one encoding; subsets that no row has are left out."""
    encoding = model.encode(pixel_values, mask)
    for index, subset in enumerate(subsets):
        if (present & subset).any():
            outputs = model.fuse_and_decode(encoding, subset.to(pixel_values.device))
            yield index, predicted_classes(outputs.logits, pixel_values.shape[-2:])


def _predict_zero(
    model: PreTrainedModel,
    pixel_values: torch.Tensor,
    mask: torch.Tensor,
    present: torch.Tensor,
    subsets: torch.Tensor,
) -> Iterator[tuple[int, torch.Tensor]]:
    """As `_predict_absent`, by a full pass per subset in which what is missing is zeros that the model is shown."""
    repeats = torch.tensor(model.config.modality_channels, device=pixel_values.device)
    mask = mask if mask.ndim == 4 else mask[..., None, None]
    for index, subset in enumerate(subsets):
        if (present & subset).any():
            kept = mask & subset.to(mask.device)[:, None, None]  # (B, M, H or 1, W or 1)
            values = torch.where(kept.repeat_interleave(repeats, dim=1), pixel_values, 0)
            yield index, predicted_classes(model(pixel_values=values).logits, pixel_values.shape[-2:])


def _summarize(counts: _Counts, config: Any, *, scored_classes: ScoredClasses) -> dict[str, Any]:
    modalities = list(config.modalities)
    confusion, labelled = counts.confusion.cpu().numpy(), counts.labelled.tolist()
    results: dict[str, dict[str, Any]] = {}
    for index, subset in enumerate(counts.subsets):
        names = [name for name, chosen in zip(modalities, subset.tolist(), strict=True) if chosen]
        never_seen = bool((subset & (counts.rows_per_modality == 0)).any())
        matrix = np.zeros_like(confusion[index]) if never_seen else confusion[index]
        scores = segmentation_scores(matrix, scored_classes=scored_classes)
        rows = 0 if never_seen else int(counts.rows[index])
        results["+".join(names)] = scores | {
            "rows": rows,
            "rows_left_out": counts.num_rows - rows,
            "rows_complete": int(counts.rows_complete[index]),
            "uncovered_share": 1 - scores["pixels"] / labelled[index] if rows and labelled[index] else None,
        }
    return {
        "modalities": modalities,
        "class_names": [str(config.id2label[index]) for index in range(config.num_labels)],
        "rows_per_modality": dict(zip(modalities, counts.rows_per_modality.tolist(), strict=True)),
        "scored_classes": scored_classes,
        **summarize_combinations(results),
    }


def summarize_combinations(combinations: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Average, Top-1 and Last-1 over the combinations that have a score, beside the `combinations` themselves.

    Args:
        combinations: Scores by the names joined by "+", each with `miou`, None where it is undefined.
    """
    scored = {name: scores["miou"] for name, scores in combinations.items() if scores["miou"] is not None}
    best, worst = (max(scored, key=scored.get), min(scored, key=scored.get)) if scored else (None, None)
    return {
        "combinations": dict(combinations),
        "average_miou": mean_of_defined(list(scored.values())),
        "top1_miou": scored.get(best),
        "top1_combination": best,
        "last1_miou": scored.get(worst),
        "last1_combination": worst,
        "unscored_combinations": [name for name in combinations if name not in scored],
    }
