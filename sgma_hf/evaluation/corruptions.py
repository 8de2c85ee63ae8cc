"""Robustness beyond absence: corrupted modalities, what they do to the prediction, and whether any map says so.

One modality at a time is corrupted while all others are there and clean; what the robustness benchmark does to all of
them at once (missing regions, noise) is also done to all at once. The corruptions, in normalised units (a standard
deviation of the training data is 1):

| kind | level | what happens to the modality | does the mask say so? |
|---|---|---|---|
| `missing_region` (RMM) | share of the image | a rectangle of random place and proportions is missing | yes |
| `noise` (NM) | standard deviation | Gaussian noise is added everywhere | no |
| `salt_and_pepper` (NM) | share of the pixels | pixels become -3 or 3 in all bands | no |
| `noise_region` | standard deviation | Gaussian noise is added to one half: top, bottom, left or right | no |
| `misregistration` | pixels | shifted up, down, left or right; the border that is uncovered is missing | the border |
| `swapped` | 1 | taken from another row of the same size | no |

The benchmark itself removes single values of single channels and is not seeded; here a region of pixels is missing,
and every draw is a function of (seed, row id, window, kind, modality) alone: levels of one kind share their draw, and
neither batch size nor order matters. Rows swap along one fixed cycle through all rows of their size, window by window.

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
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import BaseImageProcessor, PreTrainedModel

from ..data.rows import decode_row
from ..model.cells_sgma import STAGE_STRIDES, predicted_classes
from ..prediction.agreement import modality_agreement
from .combinations import PreparedRow, PreparedRows, check_evaluated
from .map_tallies import MapTally, of_single_map, per_stage
from .metrics import ScoredClasses, check_scored_classes, count_pixels, segmentation_scores
from .stage_cells import cell_shares


ALL_MODALITIES = "all modalities"  # with a space, which no name of a modality has
SALT_AND_PEPPER_VALUE = 3.0
REGIONAL_KINDS = ("missing_region", "noise_region")
KINDS = ("missing_region", "noise", "salt_and_pepper", "noise_region", "misregistration", "swapped")


@dataclass(frozen=True)
class Corruption:
    """What is done to a modality.

    Attributes:
        kind: One of `KINDS`, see the table above.
        level: How much of it, in the unit of the table.
        jointly: Whether it is also done to all modalities at once, each with its own draw.
    """

    kind: str
    level: float
    jointly: bool = False

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"Corruption {self.kind!r} is unknown; expected one of {list(KINDS)}.")
        if self.level <= 0 or (self.kind in ("missing_region", "salt_and_pepper") and self.level > 1):
            raise ValueError(f"Corruption {self.kind!r} has level {self.level}; expected above 0, shares at most 1.")
        if self.jointly and self.kind in ("misregistration", "swapped"):
            # Shifted all at once by draws of their own, or all from one other row: neither is a corruption of fusion.
            raise ValueError(f"Corruption {self.kind!r} is not defined for all modalities at once.")

    @property
    def name(self) -> str:
        """Kind and level, the key of its figures."""
        return f"{self.kind}_{self.level:g}"


CORRUPTIONS = (
    *(Corruption("missing_region", share, jointly=True) for share in (0.25, 0.5, 0.75)),
    *(Corruption("noise", deviation, jointly=True) for deviation in (0.5, 1.0, 2.0)),
    Corruption("salt_and_pepper", 0.1, jointly=True),
    Corruption("noise_region", 2.0),
    *(Corruption("misregistration", pixels) for pixels in (2, 4, 8, 16)),
    Corruption("swapped", 1),
)


class _Sample(NamedTuple):
    """A window, the same window of the row to swap with (None if there is none), and what its draws depend on."""

    window: PreparedRow
    other: PreparedRow | None
    key: str


@dataclass
class _Batch:
    """Windows of one size, on the model's device, and what is known of them before anything is corrupted."""

    samples: Sequence[_Sample]
    pixel_values: torch.Tensor  # (B, sum C, H, W)
    mask: torch.Tensor  # (B, M, H, W)
    labels: torch.Tensor  # (B, H, W)
    clean: torch.Tensor  # class ids (B, H, W)
    robustness: tuple[torch.Tensor, ...] | None  # per stage (B, M, h, w)
    agreement: torch.Tensor  # (B, M, h, w)
    without: list[torch.Tensor | None]  # per modality left out: class ids (B, H, W)
    shares: list[torch.Tensor]  # per stage, covered share of the cells (B, M, h, w)


def draw(seed: int, *parts: str) -> torch.Generator:
    """Make a generator that depends on the seed and the names alone.

    Args:
        seed: Seed of the evaluation.
        *parts: Row, window, kind of corruption, modality.
    """
    digest = hashlib.sha256("\x1f".join([str(seed), *parts]).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def random_rectangle(size: tuple[int, int], share: float, generator: torch.Generator) -> torch.Tensor:
    """Draw a rectangle that holds a share of the pixels, up to half a row or column of them.

    Args:
        size: Height and width of the image in pixels.
        share: Share of its pixels, in (0, 1].
        generator: Decides proportions (log-uniform, as far as they fit the image) and place (uniform).

    Returns:
        Bool (height, width), True inside.
    """
    height, width = size
    proportion, vertical, horizontal = torch.rand(3, generator=generator, dtype=torch.float64).tolist()
    rows = min(height, max(1, round(height * share**proportion)))
    columns = min(width, max(1, round(share * height * width / rows)))
    top, left = int(vertical * (height - rows + 1)), int(horizontal * (width - columns + 1))
    region = torch.zeros(size, dtype=torch.bool)
    region[top : top + rows, left : left + columns] = True
    return region


def corrupt(
    values: torch.Tensor,
    mask: torch.Tensor,
    corruption: Corruption,
    generator: torch.Generator,
    *,
    other: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Corrupt one modality of one window; the inputs are not written to.

    Args:
        values: Its normalised values, float on the CPU, (channels, height, width).
        mask: Where it is there, bool, (height, width).
        corruption: What to do.
        generator: Decides all draws.
        other: Values and mask to swap with, for `swapped`.

    Returns:
        The corrupted values and mask, and for regional kinds the region, bool (height, width), else None.
    """
    size = (mask.shape[0], mask.shape[1])
    kind, level = corruption.kind, corruption.level
    if kind == "missing_region":
        region = random_rectangle(size, level, generator)
        return torch.where(region, 0.0, values), mask & ~region, region
    if kind == "noise":
        return values + level * torch.randn(values.shape, generator=generator), mask, None
    if kind == "salt_and_pepper":
        position = torch.rand(size, generator=generator)
        values = torch.where(position < level, SALT_AND_PEPPER_VALUE, values)
        return torch.where(position < level / 2, -SALT_AND_PEPPER_VALUE, values), mask, None
    if kind == "noise_region":
        region = _random_half(size, generator)
        noise = level * torch.randn(values.shape, generator=generator)
        return torch.where(region, values + noise, values), mask, region
    if kind == "misregistration":
        return *_shift(values, mask, int(level), generator), None
    return *other, None


def _random_half(size: tuple[int, int], generator: torch.Generator) -> torch.Tensor:
    region = torch.zeros(size, dtype=torch.bool)
    side = int(torch.randint(4, (), generator=generator))
    axis = side // 2
    middle = size[axis] // 2
    region.narrow(axis, *((0, middle) if side % 2 == 0 else (middle, size[axis] - middle))).fill_(True)
    return region


def _shift(
    values: torch.Tensor, mask: torch.Tensor, pixels: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    side = int(torch.randint(4, (), generator=generator))
    axis, forwards = side // 2 - 2, side % 2 == 0
    pixels = min(pixels, mask.shape[axis])
    kept = mask.shape[axis] - pixels
    source, target = (0, pixels) if forwards else (pixels, 0)
    shifted, shifted_mask = torch.zeros_like(values), torch.zeros_like(mask)
    for whole, moved in ((values, shifted), (mask, shifted_mask)):
        moved.narrow(axis, target, kept).copy_(whole.narrow(axis, source, kept))
    return shifted, shifted_mask


class _Tally:
    """What is added up for one corruption of one modality, or of all."""

    def __init__(self, num_labels: int, num_stages: int):
        self.windows = 0
        # Of all pixels and of those in the region: prediction clean, without the modality, corrupted.
        self.confusion = np.zeros((2, 3, num_labels, num_labels), dtype=np.int64)
        self.robustness = MapTally(num_stages)
        self.agreement = MapTally(1)

    def add_predictions(
        self,
        predictions: Sequence[torch.Tensor | None],
        labels: torch.Tensor,
        counted: torch.Tensor,
        region: torch.Tensor | None,
    ) -> None:
        num_labels = self.confusion.shape[-1]
        for index, pixels in enumerate((counted,) if region is None else (counted, counted & region)):
            for kind, predicted in enumerate(predictions):
                if predicted is not None:
                    counts = count_pixels(predicted, labels, num_labels, pixels)
                    self.confusion[index, kind] += counts.cpu().numpy()

    def scores(self, *, scored_classes: ScoredClasses, has_without: bool, region: bool) -> dict[str, Any]:
        names = ("clean", "without", "corrupted")
        found = []
        for matrices in self.confusion[: 2 if region else 1]:
            scores = {
                name: segmentation_scores(matrix, scored_classes=scored_classes)
                for name, matrix in zip(names, matrices, strict=True)
            }
            if not has_without:
                scores["without"] = None
            found.append(scores)
        whole = found[0]
        better = None
        if has_without and whole["without"]["miou"] is not None:
            better = whole["corrupted"]["miou"] > whole["without"]["miou"]
        return whole | {"better_than_without": better, "inside": found[1] if region else None}


@torch.no_grad()
def evaluate_corruptions(
    model: PreTrainedModel,
    processor: BaseImageProcessor,
    rows: Sequence[Mapping[str, Any]],
    *,
    window_size: int | None,
    batch_size: int = 8,
    seed: int = 0,
    corruptions: Sequence[Corruption] = CORRUPTIONS,
    scored_classes: ScoredClasses = "union",
) -> dict[str, Any]:
    """Corrupt single modalities of a data set, and see what becomes of prediction, robustness maps and agreement.

    What each corruption is, and which rows, pixels and cells count, is said at the top of this module. The cost is a
    forward pass for each corruption and modality, and two more fusions of it. The model's mode is restored.

    Args:
        model: An SGMA model with a segmentation head, or a baseline with the same `encode` and `fuse_and_decode`.
        processor: Its image processor.
        rows: Rows of the one schema, with a length.
        window_size: Side in pixels of the windows that larger rows are cut into, as in
            `evaluate_modality_combinations`; None for whole rows.
        batch_size: Windows per forward pass, at most.
        seed: Seed of all draws.
        corruptions: What to do to each modality.
        scored_classes: Which classes count in the means, see `segmentation_scores`.

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

    Raises:
        ValueError: If no row is complete and labelled, a row cannot be read, or an option is unknown.
        TypeError: If `rows` has no length.
    """
    config = model.config
    check_evaluated(config, processor, rows)
    check_scored_classes(scored_classes)
    if batch_size < 1:
        raise ValueError(f"`batch_size` is {batch_size}; expected at least 1.")
    modalities = list(config.modalities)
    tallies = {
        (corruption.name, target): _Tally(config.num_labels, len(STAGE_STRIDES))
        for corruption in corruptions
        for target in ([*modalities, ALL_MODALITIES] if corruption.jointly else modalities)
    }
    reference = np.zeros((1 + len(modalities), config.num_labels, config.num_labels), dtype=np.int64)
    counts = {"windows": 0, "rows_without_label": 0, "rows_incomplete": 0, "windows_incomplete": 0}
    batches = _batches(PreparedRows(rows, processor, config, window_size), counts, batch_size, seed)
    has_robustness = _count(model, batches, corruptions, reference, tallies, seed=seed)
    if counts["windows"] == 0:
        raise ValueError(
            f"None of the {len(rows)} rows can be corrupted: {counts['rows_without_label']} have no label, "
            f"{counts['rows_incomplete']} lack a modality, as do {counts['windows_incomplete']} windows of the rest. "
            f"Choose rows with a label and all of {modalities}."
        )
    clean, *without = (segmentation_scores(matrix, scored_classes=scored_classes) for matrix in reference)
    return {
        "clean": clean,
        "without": dict(zip(modalities, without, strict=True)) if len(modalities) > 1 else None,
        "corruptions": _summarize(corruptions, tallies, scored_classes, has_robustness),
        "modalities": modalities,
        "class_names": [str(config.id2label[index]) for index in range(config.num_labels)],
        "strides": list(STAGE_STRIDES),
        "seed": seed,
        "window_size": window_size,
        "scored_classes": scored_classes,
        **counts,
    }


def _count(
    model: PreTrainedModel,
    batches: Iterator[list[_Sample]],
    corruptions: Sequence[Corruption],
    reference: np.ndarray,
    tallies: Mapping[tuple[str, str], _Tally],
    *,
    seed: int,
) -> bool:
    """Count all batches in the model's evaluation mode; return whether it has robustness maps."""
    has_robustness = False
    was_training = model.training
    model.eval()
    try:
        for samples in batches:
            batch = _clean_batch(model, samples)
            has_robustness = has_robustness or batch.robustness is not None
            _count_reference(batch, model.config, reference)
            for corruption in corruptions:
                _count_corruption(model, batch, corruption, tallies, seed=seed)
    finally:
        model.train(was_training)
    return has_robustness


def _summarize(
    corruptions: Sequence[Corruption],
    tallies: Mapping[tuple[str, str], _Tally],
    scored_classes: ScoredClasses,
    has_robustness: bool,
) -> dict[str, dict[str, Any]]:
    single = len({target for _, target in tallies} - {ALL_MODALITIES}) == 1
    found: dict[str, dict[str, Any]] = {}
    for corruption in corruptions:
        found[corruption.name] = {}
        for (name, target), tally in tallies.items():
            if name != corruption.name:
                continue
            alone = target != ALL_MODALITIES
            # Regions of all modalities differ, so there is no inside and outside.
            region = corruption.kind in REGIONAL_KINDS and alone
            scores = tally.scores(
                scored_classes=scored_classes, has_without=alone and not single and tally.windows > 0, region=region
            )
            found[name][target] = {
                "kind": corruption.kind,
                "level": corruption.level,
                "windows": tally.windows,
                **scores,
                "robustness": per_stage(tally.robustness, region=region) if has_robustness and alone else None,
                "agreement": of_single_map(tally.agreement, region=region) if alone and not single else None,
            }
    return found


def _batches(prepared: PreparedRows, counts: dict[str, int], batch_size: int, seed: int) -> Iterator[list[_Sample]]:
    """Windows of complete rows, those of one size together, each with its window to swap."""
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
        cycle.sort(key=lambda row: (hashlib.sha256(f"{seed}\x1f{row[0]}".encode()).digest(), row[1]))
        waiting: list[_Sample] = []
        for sample in _samples(prepared, cycle, counts):
            waiting.append(sample)
            if len(waiting) == batch_size:
                yield waiting
                waiting = []
        if waiting:
            yield waiting


def _samples(prepared: PreparedRows, cycle: Sequence[tuple[str, int]], counts: dict[str, int]) -> Iterator[_Sample]:
    """Windows of the rows along a cycle; every row is read once, and two or three are in memory."""
    first = current = prepared[cycle[0][1]]
    for place, (key, _) in enumerate(cycle):
        following = prepared[cycle[place + 1][1]] if place + 1 < len(cycle) else first
        for number, (window, other) in enumerate(zip(current, following, strict=True)):
            if not _is_complete(window):
                counts["windows_incomplete"] += 1
                continue
            counts["windows"] += 1
            can_swap = len(cycle) > 1 and _is_complete(other)
            yield _Sample(window, other if can_swap else None, f"{key}\x1f{number}")
        current = following


def _is_complete(window: PreparedRow | str) -> bool:
    return not isinstance(window, str) and bool(_pixel_mask(window).flatten(1).any(1).all())


def _pixel_mask(window: PreparedRow) -> torch.Tensor:
    """Bool (M, H, W)."""
    mask = window.modality_mask
    return mask if mask.ndim == 3 else mask[:, None, None].expand(-1, *window.labels.shape)


def _clean_batch(model: PreTrainedModel, samples: Sequence[_Sample]) -> _Batch:
    values = torch.stack([sample.window.pixel_values for sample in samples]).to(model.device, model.dtype)
    mask = torch.stack([_pixel_mask(sample.window) for sample in samples]).to(model.device)
    labels = torch.stack([sample.window.labels for sample in samples]).to(model.device)
    encoding = model.encode(values, mask)
    everything = torch.ones(mask.shape[1], dtype=torch.bool, device=mask.device)
    outputs = model.fuse_and_decode(encoding, everything)
    size = labels.shape[-2:]
    without: list[torch.Tensor | None] = [None]
    if len(everything) > 1:
        others = ~torch.eye(len(everything), dtype=torch.bool, device=mask.device)
        without = [predicted_classes(model.fuse_and_decode(encoding, rest).logits, size) for rest in others]
    return _Batch(
        samples,
        values,
        mask,
        labels,
        predicted_classes(outputs.logits, size),
        outputs.robustness,
        modality_agreement(model, encoding),
        without,
        cell_shares(mask),
    )


def _counted(batch: _Batch, config: Any, modality: int | None) -> torch.Tensor:
    """Labelled pixels that another modality covers than the given one (any, if None or the only one)."""
    mask = batch.mask
    if modality is not None and mask.shape[1] > 1:
        mask = torch.cat([mask[:, :modality], mask[:, modality + 1 :]], dim=1)
    return (batch.labels != config.semantic_loss_ignore_index) & mask.any(1)


def _count_reference(batch: _Batch, config: Any, reference: np.ndarray) -> None:
    predictions = [(None, batch.clean), *enumerate(batch.without)]
    for place, (modality, predicted) in enumerate(predictions):
        if predicted is not None:
            pixels = _counted(batch, config, modality)
            reference[place] += count_pixels(predicted, batch.labels, config.num_labels, pixels).cpu().numpy()


def _count_corruption(
    model: PreTrainedModel,
    batch: _Batch,
    corruption: Corruption,
    tallies: Mapping[tuple[str, str], _Tally],
    *,
    seed: int,
) -> None:
    """Corrupt one modality after the other, and all together, and count what comes out."""
    config = model.config
    names = list(config.modalities)
    bounds = np.cumsum([0, *config.modality_channels]).tolist()
    usable = torch.tensor(
        [corruption.kind != "swapped" or sample.other is not None for sample in batch.samples],
        device=batch.mask.device,
    )
    if not usable.any():
        return
    corrupted = []
    for modality, name in enumerate(names):
        bands = slice(bounds[modality], bounds[modality + 1])
        corrupted.append(_corrupt_batch(batch, corruption, modality, bands, name=name, seed=seed))
    for modality, name in enumerate(names):
        _count_inputs(model, batch, corrupted, [modality], usable, tallies[corruption.name, name])
    if corruption.jointly:
        tally = tallies[corruption.name, ALL_MODALITIES]
        _count_inputs(model, batch, corrupted, list(range(len(names))), usable, tally)


class _Corrupted(NamedTuple):
    """One modality of a batch after the corruption."""

    bands: slice
    pixel_values: torch.Tensor  # (B, C, H, W)
    mask: torch.Tensor  # (B, H, W)
    region: torch.Tensor | None  # (B, H, W)
    is_missing: bool  # whether the corruption is that the mask says no


def _corrupt_batch(
    batch: _Batch, corruption: Corruption, modality: int, bands: slice, *, name: str, seed: int
) -> _Corrupted:
    values, masks, regions = [], [], []
    for window, other, key in batch.samples:
        swap = None
        if corruption.kind == "swapped":
            source = window if other is None else other
            swap = source.pixel_values[bands], _pixel_mask(source)[modality]
        generator = draw(seed, key, corruption.kind, name)
        one, mask, region = corrupt(
            window.pixel_values[bands], _pixel_mask(window)[modality], corruption, generator, other=swap
        )
        values.append(one)
        masks.append(mask)
        regions.append(region)
    device = batch.mask.device
    return _Corrupted(
        bands,
        torch.stack(values).to(device, batch.pixel_values.dtype),
        torch.stack(masks).to(device),
        None if regions[0] is None else torch.stack(regions).to(device),
        corruption.kind == "missing_region",
    )


def _count_inputs(
    model: PreTrainedModel,
    batch: _Batch,
    corrupted: Sequence[_Corrupted],
    targets: Sequence[int],
    usable: torch.Tensor,
    tally: _Tally,
) -> None:
    """Predict with the target modalities corrupted, and add it to the tally."""
    values, mask = batch.pixel_values.clone(), batch.mask.clone()
    for modality in targets:
        values[:, corrupted[modality].bands] = corrupted[modality].pixel_values
        mask[:, modality] = corrupted[modality].mask
    everything = torch.ones(mask.shape[1], dtype=torch.bool, device=mask.device)
    encoding = model.encode(values, mask)
    outputs = model.fuse_and_decode(encoding, everything)
    predicted = predicted_classes(outputs.logits, batch.labels.shape[-2:])
    tally.windows += int(usable.sum())
    alone = targets[0] if len(targets) == 1 else None
    region = None if alone is None else corrupted[alone].region
    counted = _counted(batch, model.config, alone) & usable[:, None, None]
    without = None if alone is None else batch.without[alone]
    tally.add_predictions([batch.clean, without, predicted], batch.labels, counted, region)
    if alone is not None:
        agreement = modality_agreement(model, encoding, [alone])
        _count_maps(batch, corrupted[alone], alone, usable, outputs.robustness, agreement, tally)


def _count_maps(
    batch: _Batch,
    corrupted: _Corrupted,
    modality: int,
    usable: torch.Tensor,
    robustness: Sequence[torch.Tensor] | None,
    agreement: torch.Tensor,
    tally: _Tally,
) -> None:
    """Add robustness and agreement of the corrupted modality, over the cells that the top of this module says."""
    shares = cell_shares(corrupted.mask)
    inside_shares = None if corrupted.region is None else cell_shares(corrupted.region)
    for stage, before in enumerate(batch.shares):
        others = torch.cat([before[:, :modality], before[:, modality + 1 :]], dim=1)
        cells = (before[:, modality] > 0) & (others > 0).any(1) & usable[:, None, None]
        if not corrupted.is_missing:
            cells &= shares[stage] == before[:, modality]
        inside = torch.ones_like(cells) if inside_shares is None else inside_shares[stage] > 0.5
        if robustness is not None:
            tally.robustness.add(
                stage, batch.robustness[stage][:, modality], robustness[stage][:, modality], cells, inside
            )
        if stage == 0:
            clean, damaged = batch.agreement[:, modality], agreement[:, modality]
            tally.agreement.add(0, clean, damaged, cells & ~(clean.isnan() | damaged.isnan()), inside)
