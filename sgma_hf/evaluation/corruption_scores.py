"""What corrupted modalities do to the prediction, and whether any map says so.

One modality at a time is corrupted while all others are there and clean; missing regions and noise are also done to
all at once. The module `corruptions` says what each of them is.

Rows that lack a modality, and windows where one covers nothing, are left out and counted. Each entry holds three
predictions on the same pixels: clean, corrupted, and without that modality. The last is the yardstick: a model copes
with a corrupted modality if it predicts better with it than without it. The pixels are the labelled ones that another
modality covers as well, so that all three exist (where all modalities are corrupted: that any covers).

Robustness is that of the corrupted modality, over the cells of a stage that it and another modality cover. Cells
whose covered share the corruption itself changed are left out, as the mask gives them away, except with
`missing_region`, which is a check of the mask. So is its agreement with the others (`modality_agreement`), over the
cells of the first stage; where it is missing it has none. Three probabilities, 0.5 for maps that say nothing:

- `detection_auc`: that a random corrupted cell has a lower value than a random one of the same cells when clean
  (ties count half). Everything is corrupted, or the cells of which more than half lies in the region.
- `window_auc`: the same of means over those cells of a window. Where a field goes on beyond the shift, a cell of it
  cannot tell; a window can.
- `drop_auc`, for regions: that clean - corrupted of a random cell inside exceeds that of one outside.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import BaseImageProcessor, PreTrainedModel

from ..data.evaluation_mode import evaluating
from ..data.rows import decode_row
from ..model.cells_sgma import STAGE_STRIDES, predicted_classes
from ..prediction.agreement import modality_agreement
from .corruptions import CORRUPTIONS, REGIONAL_KINDS, Corruption, corrupt, draw
from .metrics import count_pixels, mean_of_defined, segmentation_scores
from .prepared_rows import PreparedRow, PreparedRows, check_batch_size, groups_of_equals, refuse_series
from .stage_cells import NUM_BINS, cell_shares, histogram, histogram_auc, ratio


ALL_MODALITIES = "all modalities"  # with a space, which no name of a modality has


def evaluate_corruptions(
    model: PreTrainedModel,
    processor: BaseImageProcessor,
    rows: Sequence[Mapping[str, Any]],
    *,
    window_size: int | None,
    batch_size: int = 8,
    seed: int = 0,
    corruptions: Sequence[Corruption] = CORRUPTIONS,
) -> dict[str, Any]:
    """Corrupt single modalities of a data set, and see what becomes of prediction, robustness maps and agreement.

    Which rows, pixels and cells count is said at the top of this module. The cost is a forward pass for each
    corruption and modality, and two more fusions of it. The model may be a baseline with the same `encode` and
    `fuse_and_decode`; its mode is restored. A `window_size` of None takes whole rows.

    Returns:
        A dictionary that JSON can hold, scores as fractions in [0, 1] and None where undefined:

        - `clean`: scores of the undisturbed prediction from all modalities, and `without`: modality -> scores of the
          prediction from the others; the figures of `evaluate_modality_combinations` on these windows.
        - `corruptions`: name ("noise_0.5") -> modality, or `ALL_MODALITIES` -> an entry with `kind` and `level`;
          `windows`; `clean`, `without` (None for all) and `corrupted`, each the scores of `segmentation_scores` on the
          same pixels; `better_than_without`; `inside`, the same three for the region's pixels, None for other kinds;
          and `robustness`, None for all (shares cannot fall all at once) and for models without robustness maps.
          It holds `clean` and `corrupted`, means over the cells; `detection_auc`, `window_auc`; for regions
          `inside_clean`, `inside_corrupted`, `outside_clean`, `outside_corrupted`, `drop_auc`: each `stages` (four),
          `mean`; and `cells` of each stage. `agreement`, None for all and for single modalities, has plain numbers.
        - `modalities`, `class_names`, `strides`, `seed`, `window_size`, `scored_classes`, `windows`, and what was
          left out: `rows_without_label`, `rows_incomplete`, `windows_incomplete`.

    A ValueError says that no row is complete and labelled, a row cannot be read, or an option is unknown.
    """
    config = model.config
    refuse_series(rows, config.modalities, "Damaging inputs")
    prepared = PreparedRows(rows, processor, config, window_size)
    check_batch_size(batch_size)
    found = _Counts(model, corruptions, seed)
    counts = {"windows": 0, "rows_without_label": 0, "rows_incomplete": 0, "windows_incomplete": 0}
    samples = _samples(prepared, counts, seed)
    with evaluating(model):
        for group in groups_of_equals(((sample.window.labels.shape, sample) for sample in samples), batch_size):
            found.add(group)
    if counts["windows"] == 0:
        raise ValueError(
            f"None of the {len(rows)} rows can be corrupted: {counts['rows_without_label']} have no label, "
            f"{counts['rows_incomplete']} lack a modality, as do {counts['windows_incomplete']} windows of the rest. "
            f"Choose rows with a label and all of {found.names}."
        )
    clean, *without = map(segmentation_scores, found.reference)
    return {
        "clean": clean,
        "without": dict(zip(found.names, without, strict=True)) if len(found.names) > 1 else None,
        "corruptions": found.scores(),
        "modalities": found.names,
        "class_names": config.class_names,
        "strides": list(STAGE_STRIDES),
        "seed": seed,
        "window_size": window_size,
        "scored_classes": "union",
        **counts,
    }


class _Sample(NamedTuple):
    """A window, the same window of the row to swap with (None if there is none), and what its draws depend on."""

    window: PreparedRow
    other: PreparedRow | None
    key: str


def _samples(prepared: PreparedRows, counts: dict[str, int], seed: int) -> Iterator[_Sample]:
    """Windows of the complete rows, size by size along a cycle; every row is read once, two or three in memory."""
    for cycle in _cycles(prepared, counts, seed):
        first = current = prepared[cycle[0][1]]
        for place, (key, _) in enumerate(cycle):
            following = prepared[cycle[place + 1][1]] if place + 1 < len(cycle) else first
            for number, (window, other) in enumerate(zip(current, following, strict=True)):
                if not _is_complete(window):
                    counts["windows_incomplete"] += 1
                    continue
                counts["windows"] += 1
                can_swap = len(cycle) > 1 and _is_complete(other)
                window = replace(window, modality_mask=window.covered)
                yield _Sample(window, other if can_swap else None, f"{key}\x1f{number}")
            current = following


def _cycles(prepared: PreparedRows, counts: dict[str, int], seed: int) -> Iterator[list[tuple[str, int]]]:
    """Ids and indices of the complete rows of each size, in an order that depends on seed and ids alone."""
    by_size: dict[tuple[int, ...], list[tuple[str, int]]] = {}
    for index in range(len(prepared)):
        row = prepared.dataset[index]
        if row.get("label") is None:
            counts["rows_without_label"] += 1
        elif any(name in row and row[name] is None for name in prepared.modalities):
            counts["rows_incomplete"] += 1
        else:
            _, label = decode_row(row, [])
            by_size.setdefault(label.shape, []).append((str(row.get("id", index)), index))
    for cycle in by_size.values():
        # Rows as they come are often neighbours; a cycle in an order of its own swaps with other places.
        yield sorted(cycle, key=lambda row: (hashlib.sha256(f"{seed}\x1f{row[0]}".encode()).digest(), row[1]))


def _is_complete(window: PreparedRow | str) -> bool:
    return not isinstance(window, str) and bool(window.covered.flatten(1).any(1).all())


@dataclass
class _Clean:
    """Windows of one size on the model's device, and what is known of them before anything is corrupted."""

    batch: PreparedRow  # mask (B, M, H, W)
    predictions: list[torch.Tensor | None]  # class ids (B, H, W): from all modalities, then without each
    robustness: tuple[torch.Tensor, ...] | None  # per stage (B, M, h, w)
    agreement: torch.Tensor  # (B, M, h, w)
    shares: list[torch.Tensor]  # per stage, covered share of the cells (B, M, h, w)


class _MapTally:
    """Values in [0, 1] of a map, over cells outside and inside of what is corrupted."""

    def __init__(self) -> None:
        # Of cells outside and inside: their number, and summed values clean and corrupted.
        self.sums = np.zeros((2, 3))
        # Of cells inside: values clean and corrupted. Of cells outside and inside: by how much they drop.
        self.levels, self.drops = np.zeros((2, 2, NUM_BINS), dtype=np.int64)
        # Of windows: the mean over the cells inside, clean and corrupted.
        self.windows = np.zeros((2, NUM_BINS), dtype=np.int64)

    def add(self, clean: torch.Tensor, corrupted: torch.Tensor, cells: torch.Tensor, inside: torch.Tensor) -> None:
        """Add maps (B, h, w) of the modality over `cells`, those `inside` being corrupted; both bool, (B, h, w)."""
        for place, chosen in enumerate((cells & ~inside, cells & inside)):
            before, after = clean[chosen].double(), corrupted[chosen].double()
            self.sums[place] += before.numel(), float(before.sum()), float(after.sum())
            self.drops[place] += histogram(before - after, -1, 1)
        self.levels += histogram(before, 0, 1), histogram(after, 0, 1)
        for row in chosen.flatten(1).any(1).nonzero().flatten().tolist():
            means = (maps[row][chosen[row]].double().mean(0, keepdim=True) for maps in (clean, corrupted))
            self.windows += [histogram(mean, 0, 1) for mean in means]

    def figures(self, *, region: bool) -> dict[str, Any]:
        """Means, `detection_auc`, `window_auc`, `cells` and, for regions, what is inside and outside."""

        def means(prefix: str, totals: np.ndarray) -> dict[str, float | None]:
            return {f"{prefix}{state}": ratio(totals[i], totals[0]) for i, state in ((1, "clean"), (2, "corrupted"))}

        found = means("", self.sums.sum(0))
        found["detection_auc"] = histogram_auc(self.levels[1], self.levels[0])
        found["window_auc"] = histogram_auc(self.windows[1], self.windows[0])
        if region:
            found |= means("outside_", self.sums[0]) | means("inside_", self.sums[1])
            found["drop_auc"] = histogram_auc(*self.drops)
        return found | {"cells": int(self.sums[:, 0].sum())}


def _per_stage(tallies: Sequence[_MapTally], *, region: bool) -> dict[str, Any]:
    """The figures of maps of the four stages: each as `stages` and their `mean`, and `cells`."""
    figures = [tally.figures(region=region) for tally in tallies]
    stages = {name: [found[name] for found in figures] for name in figures[0]}
    cells = stages.pop("cells")
    return {name: {"stages": found, "mean": mean_of_defined(found)} for name, found in stages.items()} | {
        "cells": cells
    }


class _Tally:
    """What is added up for one corruption of one modality, or of all."""

    def __init__(self, corruption: Corruption, num_labels: int):
        self.given_away = corruption.kind == "missing_region"  # the mask says where it is
        self.windows = 0
        # Of all pixels and of those in the region: prediction clean, without the modality, corrupted.
        self.confusion = np.zeros((2, 3, num_labels, num_labels), dtype=np.int64)
        self.robustness = [_MapTally() for _ in STAGE_STRIDES]
        self.agreement = _MapTally()

    def scores(self, *, has_without: bool, region: bool) -> dict[str, Any]:
        """Of the three predictions on all pixels and, for regions, on those inside."""
        whole, inside = (
            {
                name: segmentation_scores(matrix)
                for name, matrix in zip(("clean", "without", "corrupted"), matrices, strict=True)
            }
            | ({} if has_without else {"without": None})
            for matrices in self.confusion
        )
        better = None
        if has_without and whole["without"]["miou"] is not None:
            better = whole["corrupted"]["miou"] > whole["without"]["miou"]
        return whole | {"better_than_without": better, "inside": inside if region else None}


class _Counts:
    """Everything that is added up over the batches of an evaluation."""

    def __init__(self, model: PreTrainedModel, corruptions: Sequence[Corruption], seed: int):
        config = model.config
        self.model, self.seed = model, seed
        self.names = list(config.modalities)
        self.num_labels, self.ignored = config.num_labels, config.semantic_loss_ignore_index
        self.channels = torch.tensor(config.modality_channels, device=model.device)
        self.everything = torch.ones(len(self.names), dtype=torch.bool, device=model.device)
        self.has_robustness = False
        # Of the undisturbed prediction from all modalities, and of those without each.
        self.reference = np.zeros((1 + len(self.names), self.num_labels, self.num_labels), dtype=np.int64)
        self.tallies = {
            corruption: {
                target: _Tally(corruption, self.num_labels)
                for target in [*self.names, *([ALL_MODALITIES] if corruption.jointly else [])]
            }
            for corruption in corruptions
        }

    def add(self, samples: Sequence[_Sample]) -> None:
        """Predict windows of one size clean and under every corruption, and count what comes out."""
        clean = self._predict_clean(samples)
        self.has_robustness |= clean.robustness is not None
        for modality, predicted in zip((None, *range(len(self.names))), clean.predictions, strict=True):
            if predicted is not None:
                place = 0 if modality is None else 1 + modality
                self.reference[place] += self._count(clean, predicted, self._counted(clean, modality))
        for corruption, tallies in self.tallies.items():
            can_swap = [corruption.kind != "swapped" or sample.other is not None for sample in samples]
            if not any(can_swap):
                continue
            usable = torch.tensor(can_swap, device=self.model.device)[:, None, None]
            windows, regions = zip(*(self._corrupt(sample, corruption) for sample in samples), strict=True)
            corrupted = PreparedRow.batch(windows).on_device_of(self.model)
            region = None if regions[0] is None else torch.stack(regions).to(self.model.device)  # (B, M, H, W)
            for target, tally in tallies.items():
                modality = None if target == ALL_MODALITIES else self.names.index(target)
                tally.windows += sum(can_swap)
                self._add_corrupted(clean, corrupted, region, modality, usable, tally)

    def scores(self) -> dict[str, dict[str, Any]]:
        """Entries of the corruptions by name and target."""
        several = len(self.names) > 1
        found: dict[str, dict[str, Any]] = {}
        for corruption, tallies in self.tallies.items():
            found[corruption.name] = {}
            for target, tally in tallies.items():
                alone = target != ALL_MODALITIES
                # Regions of all modalities differ, so there is no inside and outside.
                region = corruption.kind in REGIONAL_KINDS and alone
                robustness, agreement = alone and self.has_robustness, alone and several
                found[corruption.name][target] = {
                    "kind": corruption.kind,
                    "level": corruption.level,
                    "windows": tally.windows,
                    **tally.scores(has_without=agreement and tally.windows > 0, region=region),
                    "robustness": _per_stage(tally.robustness, region=region) if robustness else None,
                    "agreement": tally.agreement.figures(region=region) if agreement else None,
                }
        return found

    def _predict_clean(self, samples: Sequence[_Sample]) -> _Clean:
        batch = PreparedRow.batch([sample.window for sample in samples]).on_device_of(self.model)
        encoding = self.model.encode(batch.pixel_values, batch.modality_mask)
        outputs = self.model.fuse_and_decode(encoding, self.everything)
        predictions = [predicted_classes(outputs.logits, batch.labels.shape[-2:])]
        for rest in ~torch.diag(self.everything):
            logits = self.model.fuse_and_decode(encoding, rest).logits if rest.any() else None
            predictions.append(None if logits is None else predicted_classes(logits, batch.labels.shape[-2:]))
        agreement = modality_agreement(self.model, encoding)
        return _Clean(batch, predictions, outputs.robustness, agreement, cell_shares(batch.modality_mask))

    def _corrupt(self, sample: _Sample, corruption: Corruption) -> tuple[PreparedRow, torch.Tensor | None]:
        """A window with every modality corrupted, and the region of each, (M, H, W)."""
        window, other, key = sample
        channels = self.channels.tolist()
        found = []
        for modality, (name, values) in enumerate(zip(self.names, window.pixel_values.split(channels), strict=True)):
            swap = None
            if corruption.kind == "swapped":
                source = window if other is None else other
                swap = source.pixel_values.split(channels)[modality], source.covered[modality]
            generator = draw(self.seed, key, corruption.kind, name)
            found.append(corrupt(values, window.covered[modality], corruption, generator, other=swap))
        values, masks, regions = zip(*found, strict=True)
        corrupted = replace(window, pixel_values=torch.cat(values), modality_mask=torch.stack(masks))
        return corrupted, None if regions[0] is None else torch.stack(regions)

    def _count(self, clean: _Clean, predicted: torch.Tensor, pixels: torch.Tensor) -> np.ndarray:
        return count_pixels(predicted, clean.batch.labels, self.num_labels, pixels).cpu().numpy()

    def _counted(self, clean: _Clean, modality: int | None) -> torch.Tensor:
        """Labelled pixels that another modality covers than the given one; any, for None or if it is the only one."""
        mask = clean.batch.modality_mask
        if modality is not None and len(self.names) > 1:
            mask = _others(mask, modality)
        return (clean.batch.labels != self.ignored) & mask.any(1)

    def _add_corrupted(
        self,
        clean: _Clean,
        corrupted: PreparedRow,
        region: torch.Tensor | None,
        modality: int | None,
        usable: torch.Tensor,
        tally: _Tally,
    ) -> None:
        """Predict with one modality corrupted, or with all for None, and add it to the tally."""
        chosen = self.everything if modality is None else torch.diag(self.everything)[modality]
        values = torch.where(
            chosen.repeat_interleave(self.channels)[:, None, None], corrupted.pixel_values, clean.batch.pixel_values
        )
        mask = torch.where(chosen[:, None, None], corrupted.modality_mask, clean.batch.modality_mask)
        encoding = self.model.encode(values, mask)
        outputs = self.model.fuse_and_decode(encoding, self.everything)
        without = None if modality is None else clean.predictions[1 + modality]
        predictions = (clean.predictions[0], without, predicted_classes(outputs.logits, mask.shape[-2:]))
        counted = self._counted(clean, modality) & usable
        inside = None if region is None or modality is None else region[:, modality]
        for index, pixels in enumerate((counted,) if inside is None else (counted, counted & inside)):
            for kind, predicted in enumerate(predictions):
                if predicted is not None:
                    tally.confusion[index, kind] += self._count(clean, predicted, pixels)
        if modality is None:
            return
        # Maps of the corrupted modality, over the cells that the top of this module says.
        undamaged = clean.agreement[:, modality]
        damaged = modality_agreement(self.model, encoding, [modality])[:, modality]
        shares = cell_shares(mask[:, modality])
        inside_shares = None if inside is None else cell_shares(inside)
        for stage, before in enumerate(clean.shares):
            cells = (before[:, modality] > 0) & (_others(before, modality) > 0).any(1) & usable
            if not tally.given_away:
                cells &= shares[stage] == before[:, modality]
            region_cells = torch.ones_like(cells) if inside_shares is None else inside_shares[stage] > 0.5
            if outputs.robustness is not None:
                maps = (stages[stage][:, modality] for stages in (clean.robustness, outputs.robustness))
                tally.robustness[stage].add(*maps, cells, region_cells)
            if stage == 0:
                known = cells & ~(undamaged.isnan() | damaged.isnan())
                tally.agreement.add(undamaged, damaged, known, region_cells)


def _others(maps: torch.Tensor, modality: int) -> torch.Tensor:
    """All modalities (B, M, ...) but one."""
    return torch.cat([maps[:, :modality], maps[:, modality + 1 :]], dim=1)
