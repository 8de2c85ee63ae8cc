"""Whether predictions stay where the labels of a sequence stay: of frames of a video, or of dates of one place.

VC_n of Miao et al., "VSPW: A Large-scale Dataset for Video Scene Parsing in the Wild" (CVPR 2021): of the pixels whose
label stays the same over a clip of n rows, the share whose prediction stays the same, too; mVC_n is the mean over
the clips. It does not say whether the prediction is right. Two things differ from the authors' `VC_perclip.py`, whose
range leaves out the last clip of each video and which takes void for a class: all clips count, and pixels do that have
a label and are covered in every row of the clip.

Rows that cannot be evaluated, or are left out of a combination, are passed over: their neighbours follow each other.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ...data.rows import plain_column, present_modalities
from ...model.dates_sgma import to_days
from ...model.limits_sgma import IGNORE_INDEX


CLIPS = (8, 16)
_LENGTHS = (2, *CLIPS)  # flicker is what two rows that follow each other differ in


def rows_of_sequences(dataset: Sequence[Mapping[str, Any]]) -> list[list[int]]:
    """Indices of the labelled rows of each sequence, by `label_date`; those of one date, or without any, as they come.

    Raises:
        ValueError: If some rows of a sequence have a `label_date` and others none, or one is no date.
    """
    found: dict[str, list[tuple[Any, int]]] = {}
    sequences, dates = plain_column(dataset, "sequence"), plain_column(dataset, "label_date")
    if all(sequence is None for sequence in sequences):
        return []
    labelled = present_modalities(dataset, ["label"])[:, 0]
    for index, (sequence, date) in enumerate(zip(sequences, dates, strict=True)):
        if sequence is not None and labelled[index]:
            found.setdefault(sequence, []).append((date, index))
    for sequence, rows in found.items():
        dated = sum(date is not None for date, _ in rows)
        if 0 < dated < len(rows):
            raise ValueError(
                f"Of the {len(rows)} labelled rows of sequence {sequence!r}, {dated} have a `label_date`, which puts "
                "them in order; expected all or none. Give the others one, or make their `sequence` null."
            )
        if dated:
            rows.sort(key=lambda row: to_days(row[0]))
    return [[index for _, index in rows] for rows in found.values()]


class TemporalConsistency:
    """Follows each place of a sequence from row to row, for all combinations at once.

    Args:
        sequences: Indices of the rows of each sequence, in order, of `rows_of_sequences`.
        num_rows: Rows of the data set.
        num_subsets: Combinations that are scored.
        device: Where the predictions are.
    """

    def __init__(self, sequences: Sequence[Sequence[int]], num_rows: int, num_subsets: int, device: torch.device):
        self._sequences = sequences
        self._positions = {row: (s, i) for s, rows in enumerate(sequences) for i, row in enumerate(rows)}
        self._chains: dict[tuple, _Chain] = {}
        # Pixels by the row that a clip ends with: those whose label stays, and those whose prediction does, too.
        self._counts = torch.zeros(num_rows, num_subsets, len(_LENGTHS), 2, dtype=torch.int64, device=device)

    def order(self) -> list[int]:
        """Indices of all rows, sequence by sequence: in another order it takes more memory."""
        others = [row for row in range(len(self._counts)) if row not in self._positions]
        return [*self._positions, *others]

    def add(self, predicted: torch.Tensor, labels: torch.Tensor, seen: torch.Tensor, place: torch.Tensor) -> None:
        """Add a batch, whose rows may come in any order.

        Args:
            predicted: Class ids by combination, uint8 (num_subsets, batch_size, height, width), 255 where not counted.
            labels: Class ids, (batch_size, height, width).
            seen: Which combinations the rows have a part of, bool (batch_size, num_subsets).
            place: Row of the data set, top and left in it, int64 (batch_size, 3), on the CPU.
        """
        for b, (row, *corner) in enumerate(place.tolist()):
            if row not in self._positions:
                continue
            sequence, position = self._positions[row]
            key = (sequence, *corner, *labels.shape[1:])
            chain = self._chains.setdefault(key, _Chain(predicted[:, b]))
            chain.waiting[position] = (row, predicted[:, b].clone(), labels[b], seen[b])
            while chain.position in chain.waiting:
                self._follow(chain, *chain.waiting.pop(chain.position))
                chain.position += 1
            if chain.position == len(self._sequences[sequence]):
                del self._chains[key]

    def _follow(
        self, chain: "_Chain", row: int, predicted: torch.Tensor, labels: torch.Tensor, seen: torch.Tensor
    ) -> None:
        """Go on from the row before, and count the clips that end here."""
        counted, seen = predicted != IGNORE_INDEX, seen.to(predicted.device)
        truth = torch.where(counted, labels.to(predicted.dtype), IGNORE_INDEX)  # (S, H, W)
        stays = torch.stack([truth == chain.truth, (truth == chain.truth) & (predicted == chain.predicted)])
        # For how many rows the label, and both, have been the same; more than the longest clip is not asked for.
        runs = (torch.where(stays, chain.runs, 0) + 1).clamp(max=max(_LENGTHS)) * counted  # (2, S, H, W)
        for index, length in enumerate(_LENGTHS):
            self._counts[row, :, index] += ((runs >= length).sum((-2, -1)) * seen).T
        new, seen = (truth, predicted, runs), seen[:, None, None]
        old = (chain.truth, chain.predicted, chain.runs)
        chain.truth, chain.predicted, chain.runs = (torch.where(seen, *pair) for pair in zip(new, old, strict=True))

    def scores(self, scored: torch.Tensor) -> list[dict[str, Any]]:
        """What was found for each combination; nothing for those that are not `scored`, bool (num_subsets,).

        Returns:
            By combination `mvc8`, `mvc16` and `flicker`, in [0, 1] and None without a clip, and the numbers of clips,
            `clips8` and `clips16`. Flicker is the share of the pixels whose label stays from one row to the next but
            whose prediction does not.
        """
        for chain in self._chains.values():  # those with rows that were passed over
            for position in sorted(chain.waiting):
                self._follow(chain, *chain.waiting[position])
        self._chains.clear()
        counts = (self._counts.cpu() * scored[:, None, None]).double().permute(1, 3, 2, 0)
        results = []
        for stays, both in counts:  # (num_lengths, num_rows)
            result = {"flicker": 1 - float(both[0].sum() / stays[0].sum()) if stays[0].any() else None}
            for length, wholes, parts in zip(CLIPS, stays[1:], both[1:], strict=True):
                clips = wholes > 0
                result[f"mvc{length}"] = float((parts[clips] / wholes[clips]).mean()) if clips.any() else None
                result[f"clips{length}"] = int(clips.sum())
            results.append(result)
        return results


class _Chain:
    """One place of a sequence: what was there last, by combination, and what waits for the rows before it."""

    def __init__(self, like: torch.Tensor):
        self.position = 0
        self.waiting: dict[int, tuple] = {}
        self.truth = self.predicted = torch.full_like(like, IGNORE_INDEX)
        self.runs = torch.zeros_like(like).expand(2, *like.shape)
