"""Rows of a data set -> joint augmentation -> modality dropout -> processor -> a batch for the model.

Every random choice is a function of (seed, epoch, row, repeat): a resumed run, another number of processes or of
loader workers and another way to accumulate gradients see the same images.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import BaseImageProcessor

from ..data.rows import decode_row, row_days
from ..evaluation.metrics import check_class_ids
from ..model.dates_sgma import is_series, observations
from ..model.inputs_sgma import host_mask_of
from ..model.limits_sgma import DATES_SUFFIX, IGNORE_INDEX
from ..model.modalities_sgma import PROCESSOR_LISTS
from .arguments import DATE_SHARES, SgmaTrainingArguments
from .augmentation import Augmentation, balanced_window
from .row_sampling import ROW_KEY, RowKey


SIZE_GROUPS = "size_groups"  # what stands for a batch of unequal sizes: batches of one size each
# What a collator and the arguments of training both have.
_AUGMENTATION = (
    "crop_size random_flip random_quarter_turns random_scale modality_dropout noise_std gain_range augment "
    "class_balanced_crops date_dropout date_keep max_dates date_jitter"
).split()


@dataclass(frozen=True)
class RowDraws:
    """The random choices for one row in one epoch.

    All are drawn, in this order, whether an option uses them or not: switching one on leaves the others as they were.
    """

    crop: np.ndarray  # (2,), in [0, 1): vertical and horizontal place of the window
    flips: np.ndarray  # (2,), bool: vertical, horizontal
    quarter_turns: int  # 0 to 3, counterclockwise
    dropout: np.ndarray  # (M,), in [0, 1)
    keeper: float  # in [0, 1): which present modality stays where dropout would take all
    sampling_noise: float  # in [0, 1): modality-aware sampling's draw
    gain: np.ndarray  # (M,), in [-1, 1)
    noise_seed: int
    class_choice: np.ndarray  # (2,), in [0, 1): the class that a crop is to show, and which of its pixels
    augmentation_seed: int
    scale: float  # in [-1, 1): the power of 1 + `random_scale`
    date_share: float  # in [0, 1): which of the shares `date_keep`
    date_shift: float  # in [-1, 1): of the calendar, in `date_jitter` days
    date_seed: int


def draw_row(seed: int, key: RowKey, num_modalities: int) -> RowDraws:
    """Draw the random choices for a row."""
    generator = np.random.default_rng([seed, key.epoch, key.index, key.repeat])
    return RowDraws(
        crop=generator.random(2),
        flips=generator.random(2) < 0.5,
        quarter_turns=int(generator.integers(4)),
        dropout=generator.random(num_modalities),
        keeper=float(generator.random()),
        sampling_noise=float(generator.random(dtype=np.float32)),
        gain=generator.uniform(-1, 1, num_modalities),
        noise_seed=int(generator.integers(2**63)),
        class_choice=generator.random(2),
        augmentation_seed=int(generator.integers(2**63)),
        scale=float(generator.uniform(-1, 1)),
        date_share=float(generator.random()),
        date_shift=float(generator.uniform(-1, 1)),
        date_seed=int(generator.integers(2**63)),
    )


def drop_modalities(present: np.ndarray, probabilities: np.ndarray, draws: RowDraws) -> np.ndarray:
    """Which modalities of a row stay, bool (M,): each is dropped with its probability, but never the last."""
    kept = present & (draws.dropout >= probabilities)
    candidates = np.flatnonzero(present)
    if not kept.any() and len(candidates):
        kept[candidates[int(draws.keeper * len(candidates))]] = True
    return kept


class _DrawnRow(NamedTuple):
    """A decoded row with its random choices: top, left, height and width of its crop, and the size it gets."""

    id: Any
    key: RowKey
    draws: RowDraws
    images: dict[str, Any]
    label: np.ndarray
    window: tuple[int, int, int, int]
    size: tuple[int, int]


@dataclass
class SgmaDataCollator:
    """Turns rows of the one schema into a training batch.

    Args:
        processor: The model's image processor.
        crop_size: Side in pixels of the square window that is cut, at one place for all modalities and the label; a
            row smaller than that is taken whole. None takes whole images.
        random_flip: Flip vertically and horizontally, each with probability 1/2.
        random_quarter_turns: Turn by a multiple of 90 degrees; rows that are not square by 180 only.
        random_scale: Zoom into the crop by a factor between 1 / (1 + random_scale) and 1 + random_scale, into all
            modalities and the label alike; 0 for none.
        modality_dropout: Probability to drop each modality, in [0, 1): one number for all, or one per modality.
        noise_std: Standard deviation of Gaussian noise, in normalised units: one for all, or one per modality.
        gain_range: Each modality's normalised values are multiplied by a number in [1 - gain_range, 1 + gain_range]:
            one range for all, or one per modality.
        augment: What is changed by sensor, as `["rgb=gain,gamma", "sar=speckle_db"]`; see
            `sgma_hf.training.augmentation`.
        class_balanced_crops: Cut the window around a pixel of a class that is drawn evenly among those of the row.
        date_dropout: Probability to drop each date of a series, in [0, 1); one always stays.
        date_keep: Shares in (0, 1] of the dates of a row's series, of which one is drawn: as many are kept, rounded,
            and at least one.
        max_dates: Most dates of a series that are kept, of those at random; None keeps all.
        date_jitter: All dates of a row are shifted by one number of days, at most so many both ways.
        seed: Seed of all random choices.
        with_row_index: Whether to return `row_index`, int64, (batch_size,), which the model does not take, and of rows
            of unequal sizes one batch for each size, as a list under `size_groups`; the trainer switches it on.
        with_dates: Whether to return `dates`; the trainer switches it off for a model that knows none.
        num_labels: Number of the model's classes, which the labels are checked against; None is the processor's. The
            trainer sets it.

    Raises:
        ValueError: If a number is out of range or a list has not one entry per modality.
    """

    processor: BaseImageProcessor
    crop_size: int | None = None
    random_flip: bool = True
    random_quarter_turns: bool = True
    random_scale: float = 0.0
    modality_dropout: Sequence[float] | float = 0.0
    noise_std: Sequence[float] | float = 0.0
    gain_range: Sequence[float] | float = 0.0
    augment: Sequence[str] = ()
    class_balanced_crops: bool = False
    date_dropout: float = 0.0
    date_keep: Sequence[float] = DATE_SHARES
    max_dates: int | None = None
    date_jitter: float = 0.0
    seed: int = 0
    with_row_index: bool = False
    with_dates: bool = True
    num_labels: int | None = None

    def __post_init__(self) -> None:
        if self.crop_size is not None and self.crop_size < 1:
            raise ValueError(
                f"`crop_size` is {self.crop_size}; expected pixels, at least 1, or None for whole images."
            )
        if not 0 <= self.random_scale < np.inf or (self.random_scale and self.crop_size is None):
            raise ValueError(
                f"`random_scale` is {self.random_scale}, and `crop_size` {self.crop_size}; expected a number of at "
                "least 0, and with it the size that all crops are brought to."
            )
        if self.class_balanced_crops and self.crop_size is None:
            raise ValueError("`class_balanced_crops` says where crops are cut, and there is no `crop_size`; give one.")
        if self.num_labels is None:
            self.num_labels = self.processor.num_labels
        self.modality_dropout = self._per_modality("modality_dropout", 1.0)
        self.noise_std = self._per_modality("noise_std", np.inf)
        self.gain_range = self._per_modality("gain_range", 1.0)
        self._augmentation = Augmentation(self.augment, self.processor)
        self._check_dates()

    def _check_dates(self) -> None:
        """Refuse options of dates that are out of range."""
        if not 0 <= self.date_dropout < 1:
            raise ValueError(f"`date_dropout` is {self.date_dropout}; expected a probability of at least 0, below 1.")
        self.date_keep = tuple(np.atleast_1d(self.date_keep).tolist())
        if not self.date_keep or not all(0 < share <= 1 for share in self.date_keep):
            raise ValueError(f"`date_keep` is {list(self.date_keep)}; expected shares above 0, at most 1.")
        if self.max_dates is not None and self.max_dates < 1:
            raise ValueError(f"`max_dates` is {self.max_dates}; expected at least 1, or None for all dates.")
        if not 0 <= self.date_jitter < np.inf:
            raise ValueError(f"`date_jitter` is {self.date_jitter}; expected days, at least 0.")

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Collate rows, each with its `RowKey` under `_key` (see `EpochRows`).

        Returns:
            `pixel_values`, `modality_mask`, `labels` and `dates` as the processor makes them, and `sampling_noise`,
            float32, (batch_size,). Of a series only the dates that are kept are decoded. Rows smaller than others are
            padded below and to the right, after they are turned. Where the number of classes is known, also
            `host_mask`, which tells the model what the mask says and that the labels are checked, so that no GPU is
            asked: see [`SgmaModel.encode`].

        Raises:
            ValueError: If a row has no label or no modality, cannot be read or has a label that is no class; the rows
                are named.
        """
        groups: dict[tuple[int, int], list[_DrawnRow]] = {}
        drawn = [self._draw(row) for row in rows]
        for row in drawn:
            groups.setdefault(row.size, []).append(row)
        if self.with_row_index and len(groups) > 1:
            return {SIZE_GROUPS: [self._collate(group) for group in groups.values()]}
        return self._collate(drawn)

    def _draw(self, row: Mapping[str, Any]) -> _DrawnRow:
        """Decode a row and draw its random choices."""
        names = self.processor.modalities
        draw = draw_row(self.seed, row[ROW_KEY], len(names))
        images, label = decode_row(self._thinned(row, draw), names)
        if label is None:
            raise ValueError(f"Row {row.get('id')!r} has no label; leave rows without a label out of training.")
        if not any(observations(images, name) for name in names):
            raise ValueError(f"Row {row.get('id')!r} has none of the modalities {names}; leave it out.")
        images = self._augmentation.move(images, draw.augmentation_seed)
        return _DrawnRow(row.get("id"), row[ROW_KEY], draw, images, label, *self._window(label, draw))

    def _thinned(self, row: Mapping[str, Any], draw: RowDraws) -> dict[str, Any]:
        """A row with the dates of its series that are kept, and its calendar shifted; nothing is decoded yet."""
        thinned = dict(row)
        for m, name in enumerate(self.processor.modalities):
            if not is_series(row.get(name)) and row.get(name + DATES_SUFFIX) is None:
                continue
            days, rasters = row_days(row, name), observations(row, name)
            kept = self._kept(len(rasters), m, draw)
            thinned[name] = [rasters[date] for date in kept]
            thinned[name + DATES_SUFFIX] = [days[date] + self.date_jitter * draw.date_shift for date in kept]
        return thinned

    def _kept(self, count: int, modality: int, draw: RowDraws) -> list[int]:
        """Which of a series' dates stay, in order: of a share drawn for the row, what dropout and limit leave."""
        share = self.date_keep[int(draw.date_share * len(self.date_keep))]
        generator = np.random.default_rng([draw.date_seed, modality])
        kept = generator.permutation(count)[: max(1, round(share * count))]
        stays = generator.random(count)[kept] >= self.date_dropout
        return sorted((kept[stays] if stays.any() else kept[:1])[: self.max_dates].tolist())

    def longest_series(self, key: RowKey, counts: Sequence[int]) -> int:
        """How many dates the row's longest series keeps, of so many in each modality: what batches are grouped by."""
        draw = draw_row(self.seed, key, len(counts))
        return max(len(self._kept(count, m, draw)) for m, count in enumerate(counts))

    def _collate(self, rows: Sequence[_DrawnRow]) -> dict[str, Any]:
        _, keys, draws, images, labels, windows, sizes = map(list, zip(*rows, strict=True))
        try:
            zoom = {"do_resize": self.random_scale > 0, "size": sizes}
            batch = self.processor(images, segmentation_maps=labels, windows=windows, **zoom)
            if self.num_labels != self.processor.num_labels:
                check_class_ids(batch["labels"], self.num_labels, "label")
        except ValueError as error:
            raise ValueError(f"Rows {[row.id for row in rows]}: {error}") from error
        values, mask, targets = batch["pixel_values"], batch["modality_mask"], batch["labels"]
        # Views with an axis for dates, one where there is none.
        dated = (values, mask) if "dates" in batch else (values.unsqueeze(1), mask.unsqueeze(1))
        per_pixel = dated[1].ndim > 3
        for position, (key, draw, (height, width)) in enumerate(zip(keys, draws, sizes, strict=True)):
            # Views of the row without its padding: it is changed and turned as it is alone.
            row_values, row_labels = (maps[position, ..., :height, :width] for maps in (dated[0], targets))
            row_mask = dated[1][position, ..., :height, :width] if per_pixel else dated[1][position]
            self._augmentation.change(row_values.numpy(), row_mask.numpy(), draw.augmentation_seed)
            for maps in (row_values, row_labels, row_mask) if per_pixel else (row_values, row_labels):
                maps.copy_(self._turn(maps, draw))
            self._perturb(row_values, draw)
            by_modality = row_mask.transpose(0, 1)
            present = by_modality.flatten(1).any(1)
            dropout = self.modality_dropout if key.dropout is None else np.asarray(key.dropout)
            kept = drop_modalities(present.numpy(), dropout, draw)
            by_modality[torch.from_numpy(~kept)] = False
        dates = batch.get("dates")
        noise = torch.tensor([draw.sampling_noise for draw in draws], dtype=torch.float32)
        batch = {"pixel_values": values, "modality_mask": mask, "labels": targets, "sampling_noise": noise}
        if self.num_labels is not None:
            batch["host_mask"] = host_mask_of(mask)
        if dates is not None and self.with_dates:
            batch["dates"] = dates
        if self.with_row_index:
            batch["row_index"] = torch.tensor([key.index for key in keys])
        padding = torch.tensor([key.padding for key in keys])
        return empty_rows(batch, padding) if padding.any() else batch

    def _per_modality(self, name: str, limit: float) -> np.ndarray:
        """One number per modality, in [0, limit)."""
        count = len(self.processor.modalities)
        values = np.atleast_1d(np.asarray(getattr(self, name), dtype=np.float64))
        if values.shape not in ((1,), (count,)) or not ((values >= 0) & (values < limit)).all():
            raise ValueError(
                f"`{name}` is {values.tolist()}; expected one number, or one for each of {self.processor.modalities}, "
                f"at least 0 and less than {limit}."
            )
        return np.broadcast_to(values, (count,))

    def _window(self, label: np.ndarray, draw: RowDraws) -> tuple[tuple[int, int, int, int], tuple[int, int]]:
        """The crop: top, left, height and width in pixels of the label's grid; and the size that it is brought to."""
        limit = self.crop_size or max(label.shape)
        zoom = (1 + self.random_scale) ** draw.scale
        wanted = max(1, round(limit / zoom))
        cuts = [min(side, wanted) for side in label.shape]
        target = tuple(limit if cut == wanted else max(1, min(limit, round(cut * zoom))) for cut in cuts)
        if self.class_balanced_crops:
            classes = self.num_labels or IGNORE_INDEX
            return balanced_window(label, cuts, draw.crop, draw.class_choice, classes), target
        spare = (side - cut for side, cut in zip(label.shape, cuts, strict=True))
        top, left = (int(place * (room + 1)) for place, room in zip(draw.crop, spare, strict=True))
        return (top, left, *cuts), target

    def _turn(self, maps: torch.Tensor, draw: RowDraws) -> torch.Tensor:
        """Flip and turn (..., height, width), keeping its shape: a transposition and a flip, and so one copy."""
        vertical, horizontal = draw.flips if self.random_flip else (False, False)
        if self.random_quarter_turns:
            square = maps.shape[-2] == maps.shape[-1]
            turns = draw.quarter_turns if square else 2 * (draw.quarter_turns // 2)
            if turns % 2:
                maps, vertical, horizontal = maps.transpose(-2, -1), horizontal, vertical
            vertical, horizontal = vertical ^ (turns in (1, 2)), horizontal ^ (turns in (2, 3))
        return maps.flip([axis for axis, flip in ((-2, vertical), (-1, horizontal)) if flip])

    def _perturb(self, values: torch.Tensor, draw: RowDraws) -> None:
        """Multiply and add noise to (T, channels, height, width), by modality, in place; what is missing is masked."""
        modalities = values.split(list(self.processor.modality_channels), dim=1)
        numbers = zip(modalities, self.gain_range, self.noise_std, draw.gain, strict=True)
        for modality, (bands, gain, std, drawn) in enumerate(numbers):
            if gain:
                bands *= 1 + gain * drawn
            if std:  # one generator for all would go on behind the dates that only a longer series of the batch has
                generator = np.random.default_rng([draw.noise_seed, modality])
                bands += std * torch.from_numpy(generator.standard_normal(bands.shape, dtype=np.float32))


def empty_rows(batch: dict[str, torch.Tensor], rows: torch.Tensor) -> dict[str, torch.Tensor]:
    """A batch whose `rows`, bool (batch_size,), have no label and no modality at any pixel.

    Nothing of them is computed: a gradient of 0 is another step than none to the optimiser.
    """
    labels, mask = batch["labels"], batch["modality_mask"]
    if mask.ndim < 4:
        mask = mask[..., None, None].expand(*mask.shape, *labels.shape[1:])
    labels = labels.masked_fill(rows[:, None, None], IGNORE_INDEX)
    mask = mask.masked_fill(rows.view(-1, *[1] * (mask.ndim - 1)), False)
    host_mask = {"host_mask": host_mask_of(mask)} if "host_mask" in batch else {}
    return batch | host_mask | {"modality_mask": mask, "labels": labels}


def batches_by_size(batch: dict[str, Any]) -> list[dict[str, torch.Tensor]]:
    """The batches of one size each that a trainer's batch consists of."""
    return batch.get(SIZE_GROUPS, [batch])


def data_seed(args: SgmaTrainingArguments) -> int:
    """The seed of everything that is drawn of the rows."""
    return args.seed if args.data_seed is None else args.data_seed


def collator_of(
    args: SgmaTrainingArguments, processor: BaseImageProcessor, given: SgmaDataCollator | None, config: Any
) -> SgmaDataCollator:
    """The collator that arguments describe, or the given one, after which the arguments are changed then."""
    of_model = {"num_labels": config.num_labels, "with_dates": config.date_periods is not None}
    if given is None:
        _check_jitter(args.date_jitter, config)
        options = {name: getattr(args, name) for name in _AUGMENTATION}
        return SgmaDataCollator(processor, **options, **of_model, seed=data_seed(args), with_row_index=True)
    if not isinstance(given, SgmaDataCollator):
        raise TypeError(
            f"`data_collator` is a {type(given).__name__}; expected an SgmaDataCollator, whose random choices can "
            "be repeated and whose dropout is steered. Derive yours from it."
        )
    _check_jitter(given.date_jitter, config)
    own = ("modalities", "modality_channels", *PROCESSOR_LISTS)
    other = [name for name in own if getattr(given.processor, name) != getattr(processor, name)]
    if other:
        raise ValueError(
            f"The processor of `data_collator` has other {other} than `processing_class`, which is saved with the "
            "model: build the collator with that one."
        )
    for name in _AUGMENTATION:
        value = getattr(given, name)
        setattr(args, name, value.tolist() if isinstance(value, np.ndarray) else value)
    for name, value in {**of_model, "with_row_index": True}.items():
        setattr(given, name, value)
    return given


def _check_jitter(date_jitter: float, config: Any) -> None:
    """Refuse to shift the dates that a model does not know."""
    if date_jitter and config.date_periods is None:
        raise ValueError(
            f"`date_jitter` is {date_jitter}, and the model has no `date_periods`: it knows no dates that could be "
            "shifted. Leave it out, or train a model with `date_periods`."
        )
