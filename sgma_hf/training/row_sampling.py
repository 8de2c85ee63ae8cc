"""Which rows an epoch has, and in which order: robustness-weighted sampling.

Modality-aware sampling (MAS) inside the model chooses among the modalities of one row. The paper's abstract also says
that training samples are reweighted, "prioritizing challenging samples from fragile modalities", without an equation.
Ours, for data sets whose rows lack modalities, from what the last epoch showed:

- fragility of modality m: phi_m = M / 2 * (f_m + d_m), with f_m = (1 / r_m) / sum(1 / r), r_m its mean robustness
  where it competed with others, and d_m = l_m / sum(l), l_m the loss of the predictions from m alone. Its mean over
  the modalities is 1.
- weight of row i: the mean of phi over the modalities that it has, times (its loss / mean loss of all rows) to the
  power of hardness, limited to [1 / sqrt(max_ratio), sqrt(max_ratio)] around the mean: no row comes more than
  max_ratio times as often as another.
- dropout: p_m ** phi_m in place of p_m. Fragile modalities are dropped less, strong ones more.

Before anything is known, and where everything is equal, all of it is uniform. Weights are frozen within an epoch, and
every draw is a function of (seed, epoch), so that a run can be replayed from any point. The weights of every row are
in `row_weights.jsonl` in the run's folder, see `RowWeightsFile`.
"""

import itertools
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from ..data.whole_files import write_text


ROW_KEY = "_key"
ROW_WEIGHTS_FILE = "row_weights.jsonl"
STRETCH = 16  # steps whose rows are sorted by length: longer ones would make epochs alike


class RowKey(NamedTuple):
    """What a row is asked for by; it travels with the row, because loader workers hold copies of everything else."""

    epoch: int  # from 0
    index: int  # of the row in the data set
    repeat: int = 0  # how often the row came before in this epoch
    dropout: tuple[float, ...] | None = None  # probability of each modality in this epoch; None is the collator's
    padding: bool = False  # it only fills up a batch: it has no labels and no modality there


@dataclass
class EpochStatistics:
    """What one epoch showed, as far as it showed anything: None or NaN stands for unknown.

    A loss is the row's mean cross-entropy over its valid pixels. With `class_weights` it is the sum of weight times
    cross-entropy over the number of pixels, so a row of rare classes counts as harder. A Dice loss is part of it.
    """

    robustness: list[float | None] | None = None  # mean of each modality in [0, 1], over the rows where it competed
    single_loss: list[float | None] | None = None  # mean of each modality, over the rows that MAS drew it for
    row_losses: list[float | None] | None = None  # mean of each row's fused prediction, over the times it came

    def updated_by(self, summary: Mapping[str, Any]) -> "EpochStatistics":
        """Take the values of a newer epoch's summary; what it did not see keeps its earlier one."""
        merged = {}
        for name, earlier in asdict(self).items():
            newer = _numbers(summary[name])
            merged[name] = np.where(np.isnan(newer), _numbers(earlier), newer).tolist()
        return EpochStatistics(**merged)


def _numbers(values: list[float | None] | None) -> np.ndarray:
    return np.array(values, dtype=np.float64)  # None becomes NaN, in a list or in place of one


def modality_fragility(statistics: EpochStatistics, num_modalities: int) -> np.ndarray:
    """Fragility phi of the module's docstring, (num_modalities,), mean 1; what is not known of a modality counts 1."""

    def share(values: np.ndarray) -> np.ndarray:
        values = np.broadcast_to(values, num_modalities)
        known = np.isfinite(values) & (values > 0)
        shares = np.full(num_modalities, 1 / num_modalities)
        shares[known] = values[known] / values[known].sum() * known.mean() if known.any() else shares[known]
        return shares

    robustness, single_loss = _numbers(statistics.robustness), _numbers(statistics.single_loss)
    return num_modalities / 2 * (share(1 / np.maximum(robustness, 1e-6)) + share(single_loss))


def row_weights(
    statistics: EpochStatistics, present: np.ndarray, *, hardness: float = 0.5, max_ratio: float = 4.0
) -> np.ndarray:
    """How often each row shall come relative to the others, float64 (num_rows,), mean 1: see the module's docstring.

    `present` says which modalities each row has, bool (num_rows, num_modalities), at least one in each. `hardness` 0
    leaves the row's loss out; `max_ratio` is the largest ratio of two weights.
    """
    fragility = modality_fragility(statistics, present.shape[1])
    weights = (present * fragility).sum(1) / present.sum(1)
    losses = _numbers(statistics.row_losses)
    mean = np.nanmean(losses) if np.isfinite(losses).any() else 0.0
    if mean > 0:
        weights = weights * np.where(np.isfinite(losses), losses / mean, 1.0) ** hardness
    limit = max_ratio**0.5
    weights = np.clip(weights / weights.mean(), 1 / limit, limit)
    return weights / weights.mean()


def draw_counts(weights: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Draw how often each row comes, int64, as many rows as there are, each within one of its expectation.

    Systematic sampling over a random order: it is unbiased like independent draws, with far less noise.
    """
    order = generator.permutation(len(weights))
    ends = np.cumsum(weights[order]) * (len(weights) / weights.sum())
    ends[-1] = len(weights)  # not a rounding error less
    marks = np.ceil(ends - generator.random()).astype(np.int64)  # one mark per unit, at a common random place
    counts = np.empty(len(weights), dtype=np.int64)
    counts[order] = np.diff(marks, prepend=0)
    return counts


class RowWeightsFile:
    """The sampling weights of all rows, epoch by epoch, as JSON lines `{"epoch": 0, "weights": [1.0, ...]}`.

    They are in the order of the training set, with six significant digits. Of a file that is there only epochs before
    `first_epoch` are kept: a resumed run writes the others again.
    """

    def __init__(self, directory: str | os.PathLike, first_epoch: int):
        self.path = Path(directory) / ROW_WEIGHTS_FILE
        lines = self.path.read_text(encoding="utf-8").splitlines(True) if self.path.is_file() else []
        write_text(self.path, "".join(line for line in lines if line.endswith("\n") and _epoch_of(line) < first_epoch))

    def write(self, epoch: int, weights: np.ndarray) -> None:
        """Append the weights (num_rows,) that steer an epoch."""
        rounded = [float(f"{weight:.6g}") for weight in weights.tolist()]
        line = json.dumps({"epoch": epoch, "weights": rounded}, separators=(",", ":"))
        with self.path.open("a", encoding="utf-8") as file:
            file.write(f"{line}\n")


def _epoch_of(line: str) -> float:
    """Epoch of a line; infinite, so that it is not kept, where the line is damaged."""
    try:
        return json.loads(line)["epoch"]
    except (ValueError, KeyError, TypeError):
        return math.inf


def alike_together(
    keys: Sequence[RowKey], lengths: Sequence[int], step_rows: int, generator: np.random.Generator
) -> list[RowKey]:
    """Put rows of about one length into one step: sort stretches of 16 steps, and draw the order of their steps.

    A last step of fewer rows stays the last.
    """
    ordered: list[RowKey] = []
    for start in range(0, len(keys), STRETCH * step_rows):
        places = range(start, min(start + STRETCH * step_rows, len(keys)))
        places = sorted(places, key=lengths.__getitem__)
        whole, rest = divmod(len(places), step_rows)
        steps = [places[step * step_rows : (step + 1) * step_rows] for step in generator.permutation(whole)]
        steps.append(places[len(places) - rest :])
        ordered += [keys[place] for step in steps for place in step]
    return ordered


class ModalityAwareSampler(torch.utils.data.Sampler):
    """Shuffles the rows, once per epoch, and hands on all that their random choices depend on.

    The order depends on seed, epoch and weights alone, so all processes have the same, and a resumed run has that of
    the uninterrupted one. Padding fills the epoch up to a multiple of `multiple`. With `lengths`, which tell how many
    dates a row has, rows of about as many are in one step of `step_rows`: shorter series are padded to the longest.
    """

    def __init__(
        self,
        num_rows: int,
        seed: int,
        multiple: int = 1,
        *,
        lengths: Callable[[RowKey], int] | None = None,
        step_rows: int = 1,
    ):
        self.num_rows = num_rows
        self.seed = seed
        self.multiple = multiple
        self.lengths, self.step_rows = lengths, step_rows
        self.epoch = 0
        self.weights: np.ndarray | None = None  # of the rows in the epoch; None for uniform
        self.dropout: tuple[float, ...] | None = None  # of the modalities in the epoch; None for no change

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, from 0, whose order the next iteration has."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.num_rows + (-self.num_rows) % self.multiple

    def __iter__(self) -> Iterator[RowKey]:
        generator = np.random.default_rng([self.seed, self.epoch])
        counts = [1] * self.num_rows if self.weights is None else draw_counts(self.weights, generator).tolist()
        drawn = [(index, repeat) for index, count in enumerate(counts) for repeat in range(count)]
        keys = [RowKey(self.epoch, *drawn[position], self.dropout) for position in generator.permutation(len(drawn))]
        if self.lengths is not None:
            keys = alike_together(keys, list(map(self.lengths, keys)), self.step_rows, generator)
        padding = [keys[place % len(keys)]._replace(padding=True) for place in range(len(self) - len(keys))]
        return iter(keys + padding)


class EpochRows(torch.utils.data.Dataset):
    """A data set that is asked for `RowKey`s and writes them into the rows, for `SgmaDataCollator`."""

    def __init__(self, dataset: Sequence[Mapping[str, Any]]):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: RowKey) -> dict[str, Any]:
        key = RowKey(*key)
        return {**self.dataset[key.index], ROW_KEY: key}


class StreamedRows(torch.utils.data.IterableDataset):
    """A data set without a length, passed through again and again, that writes `RowKey`s into the rows.

    The rows of a loader worker have numbers of their own. A data set with `set_epoch` is told of every pass.
    """

    def __init__(self, dataset: torch.utils.data.IterableDataset):
        self.dataset = dataset

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = torch.utils.data.get_worker_info()
        start, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        for epoch in itertools.count():
            if hasattr(self.dataset, "set_epoch"):
                self.dataset.set_epoch(epoch)
            index = start
            for row in self.dataset:
                yield {**row, ROW_KEY: RowKey(epoch, index)}
                index += step
            if index == start:  # no rows, or none for this worker
                return


@dataclass
class SamplingState:
    """What robustness-weighted sampling knows; it is saved with every checkpoint."""

    epoch: int = -1  # that `frozen` steers; -1 before the first
    frozen: EpochStatistics = field(default_factory=EpochStatistics)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able values; NaN becomes None."""
        frozen = {name: _numbers(values) for name, values in asdict(self.frozen).items()}
        frozen = {name: np.where(np.isnan(values), None, values).tolist() for name, values in frozen.items()}
        return {"epoch": self.epoch, "frozen": frozen}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "SamplingState":
        """Read what `to_dict` wrote."""
        return cls(values["epoch"], EpochStatistics(**values["frozen"]))
