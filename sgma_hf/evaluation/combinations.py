"""Scores for every combination of the modalities, from one encoding per image.

What is counted:

- Rows without a label, and rows without any modality, are skipped and their numbers reported.
- A row that has none of a combination's modalities is left out of that combination; a row that has some of them is
  predicted from those. `rows`, `rows_left_out` and `rows_complete` (all of the combination is there) say how many.
- Where rasters end inside the image, pixels that nothing of the combination covers are nodata in the prediction, so
  they are left out as well; `uncovered_share` says how many of the labelled ones.
- A combination with a modality that no row has is not scored: its figures would be those of a smaller combination.
  It is None, and no part of Average, Top-1 and Last-1.
- Where rows have a `sequence`, `over_time.consistency` says whether predictions stay as labels do.
- Which classes count in a mean is said in `sgma_hf.evaluation.metrics`.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import torch
from accelerate import Accelerator
from transformers import BaseImageProcessor, PreTrainedConfig, PreTrainedModel

from ..data.evaluation_mode import evaluating
from ..data.rows import row_ids
from ..model.cells_sgma import pixel_logits
from ..model.limits_sgma import IGNORE_INDEX
from ..prediction.sliding_window import TileBlender
from ..prediction.turns import average_over_turns, check_turns
from .metrics import (
    ScoredClasses,
    check_scored_classes,
    count_by_row,
    segmentation_scores,
    summarize_combinations,
)
from .over_time.consistency import TemporalConsistency, rows_of_sequences
from .over_time.dates import DateCases, DateGrid
from .prepared_rows import PreparedBatches, PreparedRow, PreparedRows


Missing = Literal["absent", "zero"]

MAX_COMBINATIONS = 2**10 - 1


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


def evaluate_modality_combinations(
    model: PreTrainedModel,
    processor: BaseImageProcessor,
    dataset: Sequence[Mapping[str, Any]],
    *,
    combinations: Sequence[Sequence[str]] | None = None,
    missing: Missing = "absent",
    scored_classes: ScoredClasses = "union",
    window_size: int | None = None,
    stride: int | None = None,
    tta: str | None = None,
    batch_size: int = 8,
    num_workers: int = 0,
    progress_bar: bool = False,
    accelerator: Accelerator | None = None,
    return_tiles: bool = False,
    dates: DateGrid | None = None,
) -> dict[str, Any]:
    """Score a model on every combination of its modalities (protocol of arXiv:2603.02505).

    Each image is encoded once and every combination is fused from that encoding. The model's mode is restored.

    Args:
        model: An SGMA model with a segmentation head.
        processor: Its image processor.
        dataset: Rows of the one schema (`load_rows`), with a length. Sizes may differ: a batch holds rows of one size.
        combinations: Names to evaluate together; None takes every non-empty combination.
        missing: What the model sees of what is not in a combination. `absent`: nothing, what it is made for. `zero`:
            zeros after normalisation, also in gaps, as methods without masks have it. Both count the same pixels.
        scored_classes: Which classes count in the means, see `segmentation_scores`: names, or a policy.
        window_size: Side in pixels of the windows that larger rows are cut into; best the size trained on.
        stride: Pixels from window to window, blended as in `sliding_window_logits`; a row counts as one window then.
        tta: Test-time turns whose logits are averaged, `flips` or `d4`, see `average_over_turns`.
        batch_size: Windows per forward pass, at most.
        num_workers: Processes that read and prepare rows; 0 does it in this one.
        progress_bar: Show a progress bar over the rows.
        accelerator: Shares the rows out among its processes; all return the same.
        return_tiles: Whether to return the confusion matrix of every row and combination, too.
        dates: Which dates of series are left out, see `date_grid`; of windows without `stride`.

    Returns:
        A dictionary that JSON can hold, scores as fractions in [0, 1] and None where undefined:
        - `combinations`: names joined by "+" -> scores of `segmentation_scores`, and those of `TemporalConsistency` if
          rows have a `sequence` and there is no accelerator, with `rows`, `rows_left_out`, `rows_complete`,
          `uncovered_share` and `confusion`, counts in pixels, rows are the truth.
        - `average_miou`, `top1_miou`, `last1_miou`: mean, best and worst over the combinations that have a score;
          `top1_combination` and `last1_combination` name the latter two, `unscored_combinations` those without.
        - `rows` that were read and the `windows` they gave; of windows, `rows_without_label`, `rows_without_modality`
          and `rows_per_modality` of those evaluated.
        - `modalities`, `class_names`, `missing`, `scored_classes`, `window_size`, `stride`, `tta`.
        - `dates`, if asked for: see `DateCases.combined`.
        - `tiles`, if asked for: `ids` of all rows, and `confusion`: names joined by "+" -> each row's flat matrix, all
          zeros where it is left out; the scores are those of the sum over the rows.

    Raises:
        ValueError: If no row has a label and a modality, a row (it is named) or the processor does not fit the model,
            or an option is unknown.
        TypeError: If the dataset has no length.
    """
    config, reading = model.config, {"num_workers": num_workers, "progress": "evaluate" if progress_bar else None}
    _check_options(missing, scored_classes, tta, config)
    _check_dates(dates, missing, stride, accelerator)
    rows = PreparedRows(dataset, processor, config, window_size, stride=stride)
    chosen = chosen_combinations(combinations, config.modalities)
    subsets = torch.tensor([[name in names for name in config.modalities] for names in chosen])
    cases = DateCases(dates or DateGrid([]), dataset, config.modalities)
    counts = _Counts(subsets, cases, len(dataset) if return_tiles else 1, config.num_labels, model.device)
    order = counts.follow_sequences(dataset) if accelerator is None else None
    batches = PreparedBatches(rows, batch_size, accelerator=accelerator, order=order, **reading)
    with evaluating(model):
        for batch, predict in _Predictor(model, subsets, cases, missing, tta).over(batches, stride, batch_size):
            counts.add(model, batch, predict)
    counts.finish(accelerator)
    batches.finish()
    return {
        **_settings(config, missing, scored_classes),
        **{"window_size": window_size, "stride": stride, "tta": tta, **batches.counts},
        **counts.summary(config, batches.num_evaluated, scored_classes),
        **({"tiles": counts.of_tiles(dataset, config.modalities)} if return_tiles else {}),
    }


def _settings(config: PreTrainedConfig, missing: str, scored_classes: ScoredClasses) -> dict[str, Any]:
    scored_classes = scored_classes if isinstance(scored_classes, str) else list(scored_classes)
    names = {"modalities": list(config.modalities), "class_names": config.class_names}
    return {**names, "missing": missing, "scored_classes": scored_classes}


def _check_options(missing: str, scored_classes: ScoredClasses, tta: str | None, config: PreTrainedConfig) -> None:
    check_turns(tta)
    if missing not in ("absent", "zero"):
        raise ValueError(f"`missing` is {missing!r}; expected 'absent' or 'zero'.")
    check_scored_classes(scored_classes, config.class_names)


def _check_dates(dates: DateGrid | None, missing: str, stride: int | None, accelerator: Accelerator | None) -> None:
    if dates is not None and (stride is not None or missing != "absent" or accelerator is not None):
        raise ValueError(
            "Dates can be left out of windows that do not overlap, in one process, and where what is missing is "
            "absent: leave out the stride, the accelerator and `missing='zero'`."
        )


def chosen_combinations(
    combinations: Sequence[Sequence[str]] | None, modalities: Sequence[str]
) -> Sequence[Sequence[str]]:
    """Those that are named, None for all; a ValueError if there is none, or one is not of these modalities."""
    if combinations is None:
        return modality_combinations(modalities)
    if len(combinations) == 0:
        raise ValueError("`combinations` is empty; expected at least one combination of modalities.")
    for names in combinations:
        if isinstance(names, str) or not names or not set(names) <= set(modalities):
            raise ValueError(
                f"`combinations` holds {names!r}; expected non-empty sequences of names among {list(modalities)}."
            )
    return combinations


class _Counts:
    """Everything that is added up over the batches, in integers; pixels on the model's device.

    `num_tiles` is the number of rows if they are counted apart, else 1. The subsets of the modalities come as often as
    there are cases of their dates, S of the first before those of the second.
    """

    def __init__(self, subsets: torch.Tensor, cases: DateCases, num_tiles: int, num_labels: int, device: torch.device):
        self.cases, self.num_combinations = cases, len(subsets)
        self.subsets = subsets.repeat(len(cases), 1)  # bool (S', M)
        num_subsets, num_modalities = self.subsets.shape
        shape = (num_subsets, num_tiles, num_labels, num_labels)
        self.confusion = torch.zeros(shape, dtype=torch.int64, device=device)
        self.labelled = torch.zeros(num_subsets, dtype=torch.int64, device=device)
        self.rows = torch.zeros(num_subsets, dtype=torch.int64)
        self.rows_complete = torch.zeros(num_subsets, dtype=torch.int64)
        self.rows_per_modality = torch.zeros(num_modalities, dtype=torch.int64)
        self.consistency: TemporalConsistency | None = None

    def follow_sequences(self, dataset: Sequence[Mapping[str, Any]]) -> list[int] | None:
        """Score consistency too, where rows have a `sequence`; gives the order that they are to be read in, if any."""
        sequences = rows_of_sequences(dataset)
        if not sequences:
            return None
        self.consistency = TemporalConsistency(sequences, len(dataset), self.num_combinations, self.labelled.device)
        return self.consistency.order()

    def finish(self, accelerator: Accelerator | None) -> None:
        """Add up the counts of all processes, and empty those of subsets with a modality that no row has."""
        names = ("confusion", "labelled", "rows", "rows_complete", "rows_per_modality")
        for name in names if accelerator is not None else ():
            total = accelerator.reduce(getattr(self, name).to(accelerator.device), "sum")
            setattr(self, name, total.to(getattr(self, name).device))
        never_seen = (self.subsets & (self.rows_per_modality == 0)).any(1)
        self.rows[never_seen] = 0
        self.confusion[never_seen.to(self.confusion.device)] = 0

    def add(
        self, model: PreTrainedModel, batch: PreparedRow, predict: Callable[[PreparedRow, Sequence[int]], Any]
    ) -> None:
        """Predict a batch from every subset of which some row has a part, and count its pixels.

        `predict` gives class ids (B, H, W), one after the other, for the subsets of those numbers.
        """
        kept, device = self.cases.kept(batch), model.device
        mask = batch.present.unsqueeze(1) if kept is None else batch.observed  # (B, T, M[, H, W]), on the CPU
        there = mask if mask.ndim == 3 else mask.flatten(3).any(3)
        kept = torch.ones_like(there)[None] if kept is None else kept  # (cases, B, T, M)
        present = (there & kept).any(2).transpose(0, 1).repeat_interleave(self.num_combinations, 1)  # (B, S', M)
        seen = (present & self.subsets).any(2)  # (B, S')
        self.rows_per_modality += there.any(1).sum(0)
        self.rows += seen.sum(0)
        self.rows_complete += (present | ~self.subsets).all(2).sum(0)
        # From here on the device is given work, and asked for nothing.
        chosen = kept.repeat_interleave(self.num_combinations, 0) & self.subsets[:, None, None]  # (S', B, T, M)
        covered, of_batch, chosen = (part.to(device, non_blocking=True) for part in (mask, seen, chosen))
        place, batch = batch.place, batch.on_device_of(model, with_mask=False)
        labelled = batch.labels != model.config.semantic_loss_ignore_index
        wanted = seen.any(0).nonzero().flatten().tolist()
        if self.consistency is not None:
            maps = batch.labels.new_full((self.num_combinations, *labelled.shape), IGNORE_INDEX, dtype=torch.uint8)
        for index, predicted in zip(wanted, predict(batch, wanted), strict=True):
            counted = of_rows = labelled & of_batch[:, index, None, None]
            if mask.ndim == 5:
                counted = of_rows & (covered & chosen[index, ..., None, None]).flatten(1, 2).any(1)
            self.labelled[index] += of_rows.sum()
            tiles = batch.place[:, 0] % self.confusion.shape[1]  # all of them 0 where rows are not counted apart
            by_row = count_by_row(predicted, batch.labels, model.config.num_labels, counted)
            self.confusion[index].index_add_(0, tiles, by_row)
            if self.consistency is not None and index < len(maps):
                maps[index] = torch.where(counted, predicted, IGNORE_INDEX)
        if self.consistency is not None:
            self.consistency.add(maps, batch.labels, seen[:, : len(maps)], place)

    def of_tiles(self, dataset: Sequence[Mapping[str, Any]], modalities: Sequence[str]) -> dict[str, Any]:
        """Ids of all rows, and their flat confusion matrices by the names of the subsets."""
        names = (joined_names(modalities, subset) for subset in self.subsets[: self.num_combinations])
        confusion = dict(zip(names, self.confusion[: self.num_combinations].flatten(2).tolist(), strict=True))
        return {"ids": row_ids(dataset), "confusion": confusion}

    def summary(self, config: PreTrainedConfig, num_rows: int, scored_classes: ScoredClasses) -> dict[str, Any]:
        """The scores of each subset, and what sums them up; of all dates, and under each condition."""
        found = [self._scores(c, config, num_rows, scored_classes) for c in range(len(self.cases.conditions))]
        if self.consistency is not None:
            over_time = self.consistency.scores(self.rows[: self.num_combinations] > 0)
            for scores, further in zip(found[0].values(), over_time, strict=True):
                scores.update(further)
        rows_per_modality = dict(zip(config.modalities, self.rows_per_modality.tolist(), strict=True))
        results = {"rows_per_modality": rows_per_modality, **summarize_combinations(found[0])}
        return results | ({"dates": self.cases.combined(found)} if self.cases.asked else {})

    def _scores(
        self, condition: int, config: PreTrainedConfig, num_rows: int, scored_classes: ScoredClasses
    ) -> dict[str, Any]:
        """The scores of each subset under one condition, all its draws together."""
        draws = [case for case, (c, _) in enumerate(self.cases.cases) if c == condition]

        def total(counts: torch.Tensor) -> torch.Tensor:
            return counts.unflatten(0, (-1, self.num_combinations))[draws].sum(0).cpu()

        confusion, labelled = total(self.confusion.sum(1)).numpy(), total(self.labelled).tolist()
        rows, complete = total(self.rows).tolist(), total(self.rows_complete).tolist()
        results = {}
        for index, subset in enumerate(self.subsets[: self.num_combinations]):
            matrix, names = confusion[index], config.class_names
            scores = segmentation_scores(matrix, scored_classes=scored_classes, class_names=names)
            known = rows[index] and labelled[index]
            results[joined_names(config.modalities, subset)] = scores | {
                "rows": rows[index],
                "rows_left_out": num_rows * len(draws) - rows[index],
                "rows_complete": complete[index],
                "confusion": matrix.tolist(),
                "uncovered_share": 1 - scores["pixels"] / labelled[index] if known else None,
            }
        return results


def joined_names(modalities: Sequence[str], subset: torch.Tensor) -> str:
    """Names of the modalities of a bool mask (num_modalities,), joined by "+"."""
    return "+".join(name for name, chosen in zip(modalities, subset.tolist(), strict=True) if chosen)


class _Predictor:
    """Predicts every subset of the modalities: whole windows, or rows from windows that overlap."""

    def __init__(
        self, model: PreTrainedModel, subsets: torch.Tensor, cases: DateCases, missing: Missing, tta: str | None
    ):
        self.model, self.subsets, self.cases, self.missing, self.tta = model, subsets, cases, missing, tta
        self.channels = torch.tensor(model.config.modality_channels)

    def over(
        self, batches: PreparedBatches, stride: int | None, batch_size: int
    ) -> Iterator[tuple[PreparedRow, Callable[[PreparedRow, Sequence[int]], Any]]]:
        """Yield what is counted, and what predicts it for the subsets that are wanted."""
        if stride is None:
            yield from ((batch, self.of_windows) for batch in batches)
        else:
            for row, windows in batches.whole_rows():
                yield row, partial(self.of_row, windows, batch_size)

    def of_windows(self, batch: PreparedRow, wanted: Sequence[int]) -> Iterator[torch.Tensor]:
        """Yield class ids (B, H, W) for the wanted subsets."""
        if self.tta is None:  # one subset's maps at a time
            return (logits.argmax(1) for logits in self._logits(batch, wanted))
        return (logits.argmax(1) for logits in self._turned_logits(batch, wanted).chunk(len(wanted), dim=1))

    def of_row(
        self, windows: Sequence[PreparedRow], batch_size: int, row: PreparedRow, wanted: Sequence[int]
    ) -> torch.Tensor:
        """Class ids (S, 1, H, W) of a row for the wanted subsets, from its windows, whose logits are blended."""
        size, strips = row.labels.shape[-2:], {}
        for window in windows:  # row by row
            strips.setdefault(int(window.place[1]), []).append(window)
        tops, tile = list(strips), windows[0].labels.shape
        channels = len(wanted) * self.model.config.num_labels
        blender = TileBlender(channels, tile, size[1], device=self.model.device)
        rows = []
        for top, bottom in zip(tops, [*tops[1:], size[0]], strict=True):
            covered = [window for window in strips[top] if window.modality_mask.any()]
            for start in range(0, len(covered), batch_size):
                batch = PreparedRow.batch(covered[start : start + batch_size])
                maps = self._turned_logits(batch.on_device_of(self.model, with_mask=False), wanted)
                for predicted, place in zip(maps, batch.place.tolist(), strict=True):
                    blender.add(predicted, top, place[2])
            blended = blender.finish(bottom)  # (S * K, rows, W)
            rows.append(blended.unflatten(0, (len(wanted), -1)).argmax(1))
            if bottom < size[0]:
                blender.advance(bottom)
        return torch.cat(rows, dim=1)[:, None]

    def _turned_logits(self, batch: PreparedRow, wanted: Sequence[int]) -> torch.Tensor:
        """Mean logits over the test-time turns, (B, S * K, H, W)."""

        def predict(turn: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
            mask = turn(batch.modality_mask) if batch.modality_mask.ndim > 3 else batch.modality_mask
            values, labels = turn(batch.pixel_values), turn(batch.labels)
            turned = replace(batch, pixel_values=values, modality_mask=mask, labels=labels)
            return torch.cat(list(self._logits(turned, wanted)), dim=1)

        return average_over_turns(predict, self.tta)

    def _logits(self, batch: PreparedRow, wanted: Sequence[int]) -> Iterator[torch.Tensor]:
        """Yield logits (B, K, H, W) for the wanted subsets.

        From one encoding where what is missing is absent; by a full pass per subset where it is shown as zeros.
        """
        model = self.model
        inputs, dates = batch.inputs(model.config), self.cases.kept(batch)
        encoding = model.encode(**inputs) if self.missing == "absent" else None
        for case, index in (divmod(number, len(self.subsets)) for number in wanted):
            subset = self.subsets[index] if dates is None else dates[case] & self.subsets[index]
            if self.missing == "absent":
                outputs = model.fuse_and_decode(encoding, subset)
            else:
                kept = (batch.pixel_mask & subset[:, None, None]).repeat_interleave(self.channels, dim=-3)
                kept = kept.to(model.device, non_blocking=True)
                shown = inputs | {
                    "pixel_values": torch.where(kept, batch.pixel_values, 0),
                    "modality_mask": None,
                }
                outputs = model(**shown)
            yield pixel_logits(outputs.logits, batch.labels.shape[-2:])
