"""Labelled rows as a model takes them: read, cut into windows, processed, and put together by size."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from transformers import BaseImageProcessor, PreTrainedModel
from transformers.utils import logging

from ..data.rows import count_dates, decode_row, warn_of_dates
from ..data.windows import Window, cover, window_starts
from ..model.dates_sgma import dates_for, observations
from ..model.limits_sgma import IGNORE_INDEX
from ..model.modalities_sgma import check_same_modalities
from .metrics import check_class_ids


# Rows wait for others of their size to share a batch with; this many batches of them at most are kept in memory.
MAX_WAITING_BATCHES = 4


def check_processor(config: Any, processor: BaseImageProcessor) -> None:
    """Raise a ValueError unless the model understands what the processor makes of a row and its label."""
    check_same_modalities(processor, config)
    if config.semantic_loss_ignore_index != IGNORE_INDEX:
        raise ValueError(
            f"The model's `semantic_loss_ignore_index` is {config.semantic_loss_ignore_index}; the processor marks "
            f"pixels without a label by {IGNORE_INDEX}. Set it to {IGNORE_INDEX} in the model's configuration; the "
            "weights do not depend on it."
        )


def refuse_series(rows: Sequence[Mapping[str, Any]], modalities: Sequence[str], what: str) -> None:
    """Raise a ValueError if any row has several dates of a modality, which `what` is not defined for."""
    most = count_dates(rows, modalities).max(0, initial=0)
    named = [f"up to {count} of {name!r}" for name, count in zip(modalities, most.tolist(), strict=True) if count > 1]
    if named:
        raise ValueError(f"{what} is for rows of one date; a row here has {', '.join(named)}. Leave it out.")


@dataclass
class PreparedRow:
    """One row, or one window of it, as the model takes it; a batch of equal sizes has the same fields."""

    pixel_values: torch.Tensor  # normalised, float32, (C, H, W), or with series (T, C, H, W)
    modality_mask: torch.Tensor  # bool, (M,), or (M, H, W) where coverage ends inside; with series (T, M[, H, W])
    labels: torch.Tensor  # int64, (H, W), 255 where nothing is counted
    place: torch.Tensor  # int64, (3,), index of the row in the data set, top and left of the window in pixels
    dates: torch.Tensor | None = None  # days, float32, (T, M), NaN where unknown; None without series and dates

    @classmethod
    def batch(cls, rows: Sequence["PreparedRow"]) -> "PreparedRow":
        """Rows of one size, one kind of mask and as many dates, with a first axis (batch_size)."""
        columns = {item.name: [getattr(row, item.name) for row in rows] for item in fields(cls)}
        return cls(**{name: None if parts[0] is None else torch.stack(parts) for name, parts in columns.items()})

    def on_device_of(self, model: PreTrainedModel, *, with_mask: bool = True) -> "PreparedRow":
        """The same on the model's device, the rasters in its dtype; a mask on the CPU asks no device what it holds."""
        move = {"device": model.device, "non_blocking": True}
        return PreparedRow(
            self.pixel_values.to(dtype=model.dtype, **move),
            self.modality_mask.to(**move) if with_mask else self.modality_mask,
            self.labels.to(**move),
            self.place.to(**move),
            None if self.dates is None else self.dates.to(**move),
        )

    def inputs(self, config: Any) -> dict[str, torch.Tensor]:
        """What `encode` and `forward` of a model of this configuration take: dates only if it knows any."""
        values = {"pixel_values": self.pixel_values, "modality_mask": self.modality_mask}
        return values | dates_for(config, self.dates)

    @property
    def observed(self) -> torch.Tensor:
        """The mask of a batch with an axis of dates, (batch_size, T, num_modalities) or that of every pixel."""
        has_dates = self.pixel_values.ndim > self.labels.ndim + 1
        return self.modality_mask if has_dates else self.modality_mask.unsqueeze(1)

    @property
    def present(self) -> torch.Tensor:
        """The mask of either kind, of the modalities that are there on any date."""
        has_dates = self.pixel_values.ndim > self.labels.ndim + 1
        return self.modality_mask.any(self.labels.ndim - 2) if has_dates else self.modality_mask

    @property
    def pixel_mask(self) -> torch.Tensor:
        """The mask with height and width."""
        mask, size = self.modality_mask, self.labels.shape[-2:]
        return mask if mask.ndim > self.labels.ndim else mask[..., None, None].expand(*mask.shape, *size)

    @property
    def covered(self) -> torch.Tensor:
        """Where each modality is there, bool, (num_modalities, height, width), in a batch with its axis first."""
        return replace(self, modality_mask=self.pixel_mask).present


class PreparedRows(torch.utils.data.Dataset):
    """Reads, checks and processes single rows: an item is the list of the row's windows, each pixel counted once.

    What cannot be evaluated is in the list by its reason: "label" or "modality", which it has none of. Windows are
    those of `window_size` pixels a side that larger rows are cut into; None gives whole rows. With a `stride` they may
    overlap, so that every window has all of its labels, and a mask (M, H, W).
    """

    def __init__(
        self,
        dataset: Sequence[Mapping[str, Any]],
        processor: BaseImageProcessor,
        config: Any,
        window_size: int | None,
        *,
        stride: int | None = None,
    ):
        if not hasattr(dataset, "__len__"):
            raise TypeError(
                f"`dataset` is a {type(dataset).__name__}, which has no length; expected rows that can be counted. "
                "Load it without streaming, or pass a list of rows."
            )
        if len(dataset) == 0:
            raise ValueError("`dataset` has no rows; expected at least one with a label. Choose another split.")
        check_processor(config, processor)
        check_windows(window_size, stride)
        self.dataset = dataset
        self.window_size, self.stride = window_size, stride
        self.processor = processor
        self.modalities = list(config.modalities)
        self.num_labels = config.num_labels
        warn_of_dates(dataset, self.modalities, knows_dates=config.date_periods is not None)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> list[PreparedRow | str]:
        row = self.dataset[index]
        if row.get("label") is None:
            return ["label"]
        if all(name in row and not len(observations(row, name)) for name in self.modalities):
            return ["modality"]
        images, label = decode_row(row, self.modalities)
        try:
            if label.dtype.kind in "iu":
                check_class_ids(label, self.num_labels, "label")
            windows = cover(label.shape, self.window_size, self.stride)
            parts = [self._prepare(images, label, window, index) for window in windows]
        except (ValueError, TypeError) as error:
            raise type(error)(f"Row {row.get('id', index)!r}: {error}") from error
        return ["modality"] if self.stride and not any(part.modality_mask.any() for part in parts) else parts

    def _prepare(self, images: Mapping[str, Any], label: np.ndarray, window: Window, index: int) -> PreparedRow | str:
        options = {"windows": [window], "do_resize": False, "return_tensors": "pt"}  # as maps are predicted
        inputs = self.processor(images=[images], segmentation_maps=[label], **options)
        mask, labels = inputs["modality_mask"][0], inputs["labels"][0]
        place = torch.tensor([index, window.top, window.left])
        dates = inputs["dates"][0] if "dates" in inputs else None
        part = PreparedRow(inputs["pixel_values"][0], mask, labels, place, dates)
        if self.stride:
            return replace(part, modality_mask=part.pixel_mask)
        if not mask.any():  # all its rasters hold nodata only
            return "modality"
        # The last window is shifted back inside: what it shares with the one before is counted there.
        labels[: -window.top % window.height] = IGNORE_INDEX
        labels[:, : -window.left % window.width] = IGNORE_INDEX
        return part


def check_windows(window_size: int | None, stride: int | None) -> None:
    """Raise a ValueError unless rows can be cut into such windows."""
    if window_size is not None and window_size < 1:
        raise ValueError(f"`window_size` is {window_size}; expected pixels, at least 1, or None for whole rows.")
    if stride is not None:
        if window_size is None:
            raise ValueError(f"`stride` is {stride}, from window to window, but rows are taken whole; give a size.")
        window_starts(1, window_size, stride)


class PreparedBatches:
    """The batches of an evaluation, each of one size, at most `batch_size` windows, on the CPU; to be iterated once.

    `progress` names a progress bar over the rows, None shows none; `accelerator` shares the rows out among its
    processes, each exactly once; without one, `order` may list their indices as they are to be read. `counts` are the
    `rows` that were read and the `windows` they gave, and of these `rows_without_label` and `rows_without_modality`,
    which are left out.
    """

    def __init__(
        self,
        rows: PreparedRows,
        batch_size: int,
        *,
        num_workers: int = 0,
        progress: str | None = None,
        accelerator: Accelerator | None = None,
        order: Sequence[int] | None = None,
    ):
        check_batch_size(batch_size)
        self._batch_size, self._modalities, self._accelerator = batch_size, rows.modalities, accelerator
        if accelerator is not None:
            order = range(accelerator.process_index, len(rows), accelerator.num_processes)
        if order is not None:
            rows = torch.utils.data.Subset(rows, order)
        # Rows arrive one by one, batch_size=None, and are put together by size. Its own generator, because a loader
        # would draw from the global one, and training goes on after an evaluation as if there had been none.
        loader = torch.utils.data.DataLoader(
            rows, batch_size=None, num_workers=num_workers, generator=torch.Generator()
        )
        self._rows = logging.tqdm(loader, total=len(rows), unit="row", desc=progress, disable=progress is None)
        self.counts = dict.fromkeys(("rows", "windows", "rows_without_label", "rows_without_modality"), 0)

    def __iter__(self) -> Iterator[PreparedRow]:
        keyed = (((row.pixel_values.shape, row.modality_mask.ndim), row) for row in self._evaluated())
        return map(PreparedRow.batch, groups_of_equals(keyed, self._batch_size))

    def whole_rows(self) -> Iterator[tuple[PreparedRow, list[PreparedRow]]]:
        """Labels and covered pixels of each row, a batch of one without values, and its windows; one counts as one."""
        for parts in self._rows:
            self.counts["rows"] += 1
            self.counts["windows"] += 1
            if isinstance(parts[0], str):
                self.counts[f"rows_without_{parts[0]}"] += 1
                continue
            _, top, left = parts[-1].place.tolist()  # in the lower right corner
            size = (top + parts[-1].labels.shape[0], left + parts[-1].labels.shape[1])
            labels = torch.empty(1, *size, dtype=torch.int64)
            mask = torch.empty(1, len(self._modalities), *size, dtype=torch.bool)
            for part in parts:
                window = Window(*part.place.tolist()[1:], *part.labels.shape)
                labels[0, *window.slices], mask[0, :, *window.slices] = part.labels, part.covered
            yield PreparedRow(torch.empty(1, 0, *size), mask, labels, parts[0].place[None]), parts

    def _evaluated(self) -> Iterator[PreparedRow]:
        for parts in self._rows:
            self.counts["rows"] += 1
            self.counts["windows"] += len(parts)
            for part in parts:
                if isinstance(part, str):
                    self.counts[f"rows_without_{part}"] += 1
                else:
                    yield part

    @property
    def num_evaluated(self) -> int:
        """Windows that were not left out, so far."""
        return self.counts["windows"] - self.counts["rows_without_label"] - self.counts["rows_without_modality"]

    def finish(self) -> None:
        """Add up the counts of all processes, and raise a ValueError if everything was left out."""
        if self._accelerator is not None:
            counts = torch.tensor([*self.counts.values()], device=self._accelerator.device)
            total = self._accelerator.reduce(counts, "sum").tolist()
            self.counts = dict(zip(self.counts, total, strict=True))
        if self.num_evaluated == 0:
            raise ValueError(
                f"None of the {self.counts['rows']} rows can be evaluated: {self.counts['rows_without_label']} have "
                f"no label, {self.counts['rows_without_modality']} have none of the modalities {self._modalities}. "
                "Choose a split with labels."
            )


def check_batch_size(batch_size: int) -> None:
    """Raise a ValueError if it is below 1."""
    if batch_size < 1:
        raise ValueError(f"`batch_size` is {batch_size}; expected at least 1.")


def groups_of_equals(keyed: Iterable[tuple[Any, Any]], batch_size: int) -> Iterator[list[Any]]:
    """Put together what has one key: padding rows to one size would change what their predictions depend on."""
    waiting: dict[Any, list[Any]] = {}
    for key, item in keyed:
        waiting.setdefault(key, []).append(item)
        if len(waiting[key]) == batch_size:
            yield waiting.pop(key)
        elif sum(map(len, waiting.values())) >= MAX_WAITING_BATCHES * batch_size:
            yield waiting.pop(max(waiting, key=lambda other: len(waiting[other])))
    yield from waiting.values()
