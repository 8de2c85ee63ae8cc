"""The order of rows in training, as a function of seed and epoch."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from .data_collator import EPOCH_KEY, INDEX_KEY


class EpochSampler(torch.utils.data.Sampler):
    """Shuffles the rows, once per epoch, and hands on the epoch with every index.

    The order depends on seed and epoch alone, never on the global random state, so all processes have the same and a
    resumed run has that of the uninterrupted one. Loader workers hold copies of the data set that no `set_epoch`
    reaches; therefore the epoch travels with the index.

    Args:
        num_rows: Rows of the data set.
        seed: Seed of the run, at least 0.
    """

    def __init__(self, num_rows: int, seed: int):
        self.num_rows = num_rows
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, from 0, whose order the next iteration has."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.num_rows

    def __iter__(self) -> Iterator[tuple[int, int]]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.num_rows)
        return iter([(self.epoch, int(index)) for index in order])


class EpochRows(torch.utils.data.Dataset):
    """A data set that is asked for (epoch, index) and writes both into the row, for `SgmaDataCollator`.

    Args:
        dataset: Rows of the one schema, with a length.
    """

    def __init__(self, dataset: Sequence[Mapping[str, Any]]):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        epoch, index = key
        return {**self.dataset[index], EPOCH_KEY: epoch, INDEX_KEY: index}
