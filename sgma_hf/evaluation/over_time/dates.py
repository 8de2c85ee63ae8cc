"""Which dates of a row are there: shares of them that are drawn, those before a day, or all but those of a gap.

A condition is combined with every combination of the modalities, and all of them are fused from one encoding. What is
drawn depends on the seed, the row's id, the modality and the number of the draw alone: not on the model, so that all
arms are scored on the same dates, and not on the other rows. Of one draw the dates of a smaller share are among those
of a larger one.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ...data.rows import count_dates, plain_column, row_ids
from ...model.dates_sgma import to_days
from ...model.limits_sgma import DATES_SUFFIX
from ..metrics import summarize_combinations
from ..prepared_rows import PreparedRow


SHARES = {"all": 1.0, "half": 0.5, "quarter": 0.25}
NUM_DRAWS = 5  # of a share below 1, for each row and modality


@dataclass(frozen=True)
class DateCondition:
    """What is kept of the dates of a row; an image of an unknown date has no day, and only a share leaves it out."""

    name: str
    share: float = 1.0  # of the dates of each modality, rounded, at least one
    before: float = np.inf  # day since 2000 that is the first to go
    gap: tuple[float, float] | None = None  # days from the first that goes to the first that is there again

    @property
    def num_draws(self) -> int:
        """How often it is drawn."""
        return NUM_DRAWS if self.share < 1 else 1

    @property
    def is_share(self) -> bool:
        """Whether it is a share of the dates, whenever they are."""
        return self.gap is None and self.before == np.inf

    def keeps(self, days: np.ndarray, ranks: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """What is kept, bool; `days` and `ranks` of the dates are (..., T, num_modalities), `counts` without T."""
        number = np.maximum(1, np.round(self.share * counts))[..., None, :]
        kept = (ranks < number) & ~(days >= self.before)
        return kept if self.gap is None else kept & ~((days >= self.gap[0]) & (days < self.gap[1]))


ALL = DateCondition("all")


@dataclass(frozen=True)
class DateGrid:
    """The conditions that are scored beside each other; the seed decides what is drawn."""

    conditions: Sequence[DateCondition]
    seed: int = 0


def date_grid(
    shares: Sequence[str] = (), before: Sequence[Any] = (), gaps: Sequence[tuple[Any, Any]] = (), *, seed: int = 0
) -> DateGrid:
    """Conditions of names or numbers of shares, and of dates as `to_days` takes them.

    Args:
        shares: Of the dates of each modality: `all`, `half`, `quarter`, or numbers above 0, at most 1.
        before: Days of which each is the first to go.
        gaps: From the first day that goes to the first that is there again.
        seed: Decides the draws of shares.

    Raises:
        ValueError: If a share is none, a date is none, or a gap ends before it begins.
    """
    conditions = []
    for name in dict.fromkeys(map(str, shares)):
        try:
            share = SHARES[name] if name in SHARES else float(name)
        except ValueError:
            share = 0.0
        if not 0 < share <= 1:
            raise ValueError(f"Share of dates {name!r} is none of {list(SHARES)}, nor a number above 0, at most 1.")
        conditions.append(DateCondition(name, share))
    days = {_day(date): str(date) for date in before}
    conditions += [DateCondition(f"before {days[day]}", before=day) for day in sorted(days)]
    for start, end in gaps:
        if not _day(start) < _day(end):
            raise ValueError(f"The gap from {start} to {end} has no day; the second is that which is there again.")
        conditions.append(DateCondition(f"without {start} to {end}", gap=(_day(start), _day(end))))
    return DateGrid(conditions, seed)


def _day(date: Any) -> float:
    day = to_days(date)
    if np.isnan(day):
        raise ValueError(f"{date!r} is no date; expected one such as 2019-05-01.")
    return day


class DateCases:
    """The conditions and their draws, as masks of the observations of a batch.

    Args:
        grid: What is to be kept; all of it is the first case, asked for or not.
        dataset: The rows that batches are of.
        modalities: Names of the modalities, in order.

    Raises:
        ValueError: If there are conditions but no row has a series, or conditions of days but no row has a date.
    """

    def __init__(self, grid: DateGrid, dataset: Sequence[Mapping[str, Any]], modalities: Sequence[str]):
        self.asked, self.seed, self.modalities = grid.conditions, grid.seed, modalities
        self.conditions = [ALL, *(condition for condition in self.asked if condition != ALL)]
        # Condition and draw of each case; the first is all that there is.
        self.cases = [(c, draw) for c, condition in enumerate(self.conditions) for draw in range(condition.num_draws)]
        if not self.asked:
            return
        self._counts, self._ids = count_dates(dataset, modalities), row_ids(dataset)
        if self._counts.max(initial=0) < 2:
            raise ValueError(
                f"Dates are to be left out, but no row has more than one of any of {list(modalities)}. Leave out "
                "--dates, --before and --gap, or take rows with series."
            )
        columns = (plain_column(dataset, f"{name}{DATES_SUFFIX}") for name in modalities)
        if not all(condition.is_share for condition in self.asked) and not any(map(any, columns)):
            raise ValueError(
                "No row has a date, so that none is before a day or in a gap. Leave out --before and --gap, or give "
                f"the rows dates ({modalities[0] + DATES_SUFFIX!r})."
            )

    def __len__(self) -> int:
        return len(self.cases)

    def kept(self, batch: PreparedRow) -> torch.Tensor | None:
        """What is kept in each case, bool, (cases, batch_size, T, num_modalities), on the CPU; None: all, in one."""
        if len(self.conditions) == 1:
            return None
        rows, mask = batch.place[:, 0].tolist(), batch.observed
        days = np.full(mask.shape[:3], np.nan) if batch.dates is None else batch.dates.cpu().numpy()  # (B, T, M)
        ranks = np.stack([self._ranks(row, days.shape[1]) for row in rows], axis=1)  # (draws, B, T, M)
        counts = self._counts[rows]
        kept = [self.conditions[c].keeps(days, ranks[draw], counts) for c, draw in self.cases]
        return torch.from_numpy(np.stack(kept))

    def _ranks(self, row: int, num_slots: int) -> np.ndarray:
        """The place of each date of a row in each draw, (draws, T, num_modalities)."""
        ranks = np.full((NUM_DRAWS, num_slots, len(self.modalities)), num_slots)  # of empty slots, which no share has
        for (draw, m), name in ((at, self.modalities[at[1]]) for at in np.ndindex(NUM_DRAWS, len(self.modalities))):
            digest = hashlib.sha256(f"{self.seed}:{self._ids[row]}:{name}:{draw}".encode()).digest()
            count = int(self._counts[row, m])
            order = np.random.default_rng(np.frombuffer(digest, dtype=np.uint32)).permutation(count)
            ranks[draw, order, m] = np.arange(count)
        return ranks

    def combined(self, scores: Sequence[Mapping[str, Mapping[str, Any]]]) -> dict[str, Any]:
        """What `evaluate_modality_combinations` returns as `dates`.

        Args:
            scores: Of each condition by combination, those of all draws together: a row counts once for each draw.

        Returns:
            `conditions`, by name what `summarize_combinations` makes of those that were asked for; `kinds`, each one's
            kind, `share`, `before` or `gap`, and `days`, by name the day of those that are `before` one;
            `average_miou`, `last1_miou` and `last1_combination` over the combinations under all shares, None without
            any; `seed`, and the `draws` of a share below 1.
        """
        found = dict(zip((condition.name for condition in self.conditions), scores, strict=True))
        conditions = {condition.name: summarize_combinations(found[condition.name]) for condition in self.asked}
        cells = {
            f"{combination}, {condition.name}": one
            for condition in self.asked
            if condition.is_share
            for combination, one in found[condition.name].items()
        }
        grid = summarize_combinations(cells) if cells else {}
        means = {name: grid.get(name) for name in ("average_miou", "last1_miou", "last1_combination")}
        kinds = {
            condition.name: "share" if condition.is_share else "before" if condition.gap is None else "gap"
            for condition in self.asked
        }
        days = {condition.name: condition.before for condition in self.asked if kinds[condition.name] == "before"}
        return {"seed": self.seed, "draws": NUM_DRAWS, "kinds": kinds, "days": days, **means, "conditions": conditions}
