"""What is kept of a batch that was encoded, from which any subset is fused.

An observation is one modality at one date. Those of a row are side by side as (date slot, modality), date slots first:
observation t * M + m is slot t of modality m. Without dates, T is 1, and the observations are the modalities.
"""

from dataclasses import dataclass

import torch

from .cells_sgma import STAGE_STRIDES, crop_padding
from .fusion_sgma import SgmaPairs, SgmaStageTokens, join_stages
from .inputs_sgma import packed_positions, present_images, to_device
from .layers_sgma import ABSENT_SCORE


@dataclass
class SgmaEncoding:
    """What encoders and projectors made of a batch; [`SemanticGuidedFusion.fuse`] fuses any subset of it."""

    stages: list[SgmaStageTokens]
    observed: torch.Tensor  # which observations are there, bool, (batch_size, T * num_modalities)
    host_observed: list[list[bool]] | None  # the same as plain values, so that no device is asked; None while tracing
    # Pixels they cover, bool, (batch_size, T * num_modalities, height, width), without padding; None: what is there
    # covers its whole image.
    observed_pixels: torch.Tensor | None
    # Covered fraction of the stages' cells in [0, 1], (batch_size, T * num_modalities, height, width) as the stages'
    # maps; None: all observations are complete and nothing is padded.
    observed_fractions: list[torch.Tensor] | None
    image_size: tuple[int, int] | None  # in pixels, without padding; None: the maps have none
    num_dates: int = 1  # T, slots for dates

    @property
    def is_empty(self) -> bool:
        """Whether no row has anything, so that nothing was encoded."""
        return self.host_observed is not None and not any(map(any, self.host_observed))

    @property
    def num_modalities(self) -> int:
        """Number of modalities, M."""
        return self.observed.shape[1] // self.num_dates

    @property
    def observations(self) -> torch.Tensor:
        """Which observations are there, bool, (batch_size, T, num_modalities)."""
        return self.by_date(self.observed)

    @property
    def present(self) -> torch.Tensor:
        """Which modalities are there, at any date, bool, (batch_size, num_modalities)."""
        return self._any_date(self.observed)

    @property
    def pixel_coverage(self) -> torch.Tensor | None:
        """Pixels that each modality covers at any date, bool, (batch_size, num_modalities, height, width).

        Without padding; None: what is present covers its whole image.
        """
        return None if self.observed_pixels is None else self._any_date(self.observed_pixels)

    @property
    def fractions(self) -> list[torch.Tensor] | None:
        """Largest covered fraction of the stages' cells at any date, (batch_size, num_modalities, height, width).

        None: all that is present is complete and nothing is padded.
        """
        return self.observed_fractions and [self._any_date(fraction) for fraction in self.observed_fractions]

    def by_date(self, values: torch.Tensor) -> torch.Tensor:
        """(batch_size, T * num_modalities, ...) -> (batch_size, T, num_modalities, ...)."""
        return values.unflatten(1, (self.num_dates, -1))

    def _any_date(self, values: torch.Tensor) -> torch.Tensor:
        return values if self.num_dates == 1 else self.by_date(values).amax(1)

    @property
    def position(self) -> torch.Tensor:
        """Index of every observation in the packed order, int64, (batch_size, T * num_modalities), -1 if absent."""
        device = self.observed.device
        if self.host_observed is not None:
            return to_device(packed_positions(self.host_observed, self.num_modalities), device)
        batch_size, count = self.observed.shape  # all are computed: nothing depends on the mask
        position = torch.arange(count * batch_size, device=device).view(count, batch_size)
        return (position if self.num_dates == 1 else self._slots_first(position)).t()

    def _slots_first(self, values: torch.Tensor) -> torch.Tensor:
        """Modalities before their slots, as they are packed -> slots before modalities; the first axis."""
        return values.unflatten(0, (self.num_modalities, self.num_dates)).transpose(0, 1).flatten(0, 1)

    def pairs(self, host_mask: list[list[bool]] | None) -> SgmaPairs:
        """Where what a mask has stands in the packed order; `host_mask` is `host_observed`, or of a subset."""
        batch_size, modalities = self.observed.shape
        device = self.observed.device
        if host_mask is None:  # while tracing all pairs are packed
            pairs = SgmaPairs(batch_size, complete=False)
            if self.num_dates != 1:
                order = torch.arange(modalities, device=device)
                pairs.active = order.view(self.num_dates, -1).t().flatten()
                pairs.modalities = pairs.active % self.num_modalities
            return pairs
        if self.num_dates != 1:
            return self._pairs_of_dates(host_mask)
        active, packed = (
            [index for index, column in enumerate(zip(*mask, strict=True)) if any(column)]
            for mask in (host_mask, self.host_observed)
        )
        complete = all(row[index] for row in host_mask for index in active)
        pairs = SgmaPairs(batch_size, complete=complete)
        if len(active) < modalities:
            pairs.active = pairs.modalities = to_device(active, device)
        if not complete or not all(row[index] for row in self.host_observed for index in packed):
            position = packed_positions(self.host_observed, modalities)
            for row, mask in zip(position, host_mask, strict=True):
                own = max((index for index, there in zip(row, mask, strict=True) if there), default=0)
                row[:] = [index if there else own for index, there in zip(row, mask, strict=True)]
            pairs.position = to_device([[row[index] for row in position] for index in active], device)
        elif active != packed:
            pairs.slices = to_device([packed.index(index) for index in active], device)
        return pairs

    def _pairs_of_dates(self, host_mask: list[list[bool]]) -> SgmaPairs:
        """The observations of each row one after the other, as many as the row with most of them has.

        A row does not see how many dates there are in others, but for what follows its own and weighs 0.
        """
        device, modalities = self.observed.device, self.num_modalities
        order = sorted(range(len(host_mask[0])), key=lambda index: (index % modalities, index))
        position = packed_positions(self.host_observed, modalities)
        own = [[index for index in order if row[index]] for row in host_mask]
        most = max(map(len, own))
        columns, indices = [], []
        for row, places in zip(own, position, strict=True):
            left = most - len(row)
            absent = next((index for index in order if index not in row), 0) if left else 0
            columns.append(row + [absent] * left)
            indices.append([places[index] for index in row] + [places[row[0]] if row else 0] * left)
        alone = all(len({index % modalities for index in row}) == len(row) == most for row in own)
        pairs = SgmaPairs(len(host_mask), complete=alone)  # no two dates of a modality, which share its weight
        pairs.active = to_device(columns, device).t()
        pairs.modalities = pairs.active % modalities
        by_column = [list(column) for column in zip(*indices, strict=True)]
        packed = sum(map(sum, self.host_observed))
        if [index for column in by_column for index in column] != list(range(packed)):
            pairs.position = to_device(by_column, device)
        return pairs

    def coverage(self, mask: torch.Tensor) -> torch.Tensor | None:
        """Pixels that anything of a mask (batch_size, T * num_modalities) covers, (batch_size, height, width).

        None where no size in pixels is known.
        """
        if self.observed_pixels is None:
            return None if self.image_size is None else mask.any(1)[:, None, None].expand(-1, *self.image_size)
        return (self.observed_pixels & mask[..., None, None]).any(1)

    def joined(self, more: "SgmaEncoding") -> "SgmaEncoding":
        """This encoding with the observations of another one as further slots; of its stages the tokens and values."""
        both, counts = (self, more), []
        for part in both:
            counts.append(present_images(part.host_observed, part.observed, part.num_modalities)[0])
        pixels = fractions = None
        if self.observed_pixels is not None or more.observed_pixels is not None:
            pixels = torch.cat([part._pixels() for part in both], dim=1)
        if self.observed_fractions is not None or more.observed_fractions is not None:
            levels = zip(*(part._fractions() for part in both), strict=True)
            fractions = [torch.cat(level, dim=1) for level in levels]
        host = None
        if self.host_observed is not None:
            host = [row + later for row, later in zip(self.host_observed, more.host_observed, strict=True)]
        return SgmaEncoding(
            [join_stages(pair, counts) for pair in zip(self.stages, more.stages, strict=True)],
            torch.cat([self.observed, more.observed], dim=1),
            host,
            pixels,
            fractions,
            self.image_size,
            self.num_dates + more.num_dates,
        )

    def only(self, subset: torch.Tensor) -> "SgmaEncoding":
        """This encoding without what a mask of its observations, (batch_size, T, num_modalities), lacks."""
        mask = self.observed & subset.flatten(1).to(self.observed.device)
        pairs, there = self.position[mask].sort().values, mask[..., None, None]
        stages = [stage.only(pairs) for stage in self.stages]
        pixels = None if self.observed_pixels is None else self.observed_pixels & there
        fractions = self.observed_fractions and [part * there for part in self.observed_fractions]
        return SgmaEncoding(stages, mask, mask.tolist(), pixels, fractions, self.image_size, self.num_dates)

    def _pixels(self) -> torch.Tensor:
        """`observed_pixels`, also where all of them are complete."""
        if self.observed_pixels is not None:
            return self.observed_pixels
        return self.observed[..., None, None].expand(-1, -1, *self.image_size)

    def _fractions(self) -> list[torch.Tensor]:
        """`observed_fractions`, also where all of them are 1."""
        if self.observed_fractions is not None:
            return self.observed_fractions
        whole = self.observed[..., None, None].float()
        return [whole.expand(-1, -1, *stage.size) for stage in self.stages]

    def crop(self, maps: torch.Tensor, level: int) -> torch.Tensor:
        """A stage's maps without the cells of padding, as robustness maps are."""
        return maps if self.image_size is None else crop_padding(maps, STAGE_STRIDES[level], self.image_size)

    def cropped_fractions(self) -> list[torch.Tensor] | None:
        """`fractions` without the cells of padding."""
        fractions = self.fractions
        return fractions and [self.crop(fraction, level) for level, fraction in enumerate(fractions)]

    def attention_biases(self, mask: torch.Tensor, active: torch.Tensor | None) -> list[torch.Tensor]:
        """Logarithm of the covered fraction of the stages' cells, `ABSENT_SCORE` where nothing is, float32 at least.

        (M', batch_size, positions) for the M' observations `active`, or (M', batch_size, 1) if all are complete. The
        dates of a modality share its place: the logarithm of their number is taken off, which counts a date by the
        fraction that it covers beside the one that covers most (ours). Without it one image would be nothing beside
        a sensor of 70 dates; with it, a date that comes twice changes nothing.
        """
        if self.num_dates != 1:
            parts = [mask.unsqueeze(2).to(self._score_dtype)]
            if self.observed_fractions is not None:
                parts = [parts[0] * fraction.flatten(2) for fraction in self.observed_fractions]
            biases = [_observations_first(self._balanced(part), active) for part in parts]
            return biases * (len(self.stages) // len(biases))
        there = _observations_first(mask, active).unsqueeze(-1)
        if self.observed_fractions is None:
            return [torch.where(there, 0.0, ABSENT_SCORE)] * len(self.stages)
        dtype = self._score_dtype
        fractions = [
            _observations_first(fraction, active).flatten(2).to(dtype) for fraction in self.observed_fractions
        ]
        return [torch.where(there & (part > 0), part.log(), ABSENT_SCORE) for part in fractions]

    @property
    def _score_dtype(self) -> torch.dtype:
        return torch.promote_types(self.stages[0].tokens.dtype, torch.float32)

    def _balanced(self, fractions: torch.Tensor) -> torch.Tensor:
        """Covered fractions (batch_size, T * num_modalities, positions) -> their biases of attention."""
        by_date = self.by_date(fractions)
        most = by_date.amax(1, keepdim=True)
        dates = by_date.sum(1, keepdim=True) / torch.where(most > 0, most, 1)
        return torch.where(by_date > 0, by_date.log() - dates.log(), ABSENT_SCORE).flatten(1, 2)

    def single_robustness(self, mask: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Robustness where each row of the mask has one observation at most: 1 where that covers the cell.

        Of every observation, (batch_size, T * num_modalities, height, width).
        """
        mask, fractions = mask[..., None, None], self.observed_fractions
        if fractions is not None:
            cropped = [self.crop(fraction, level) for level, fraction in enumerate(fractions)]
            return tuple((mask & (fraction > 0)).float() for fraction in cropped)
        return tuple(mask.expand(-1, -1, *stage.size).float() for stage in self.stages)  # nothing is padded


def _observations_first(values: torch.Tensor, active: torch.Tensor | None) -> torch.Tensor:
    """(batch_size, observations, ...) -> (M', batch_size, ...) for the M' of them that are `active`; None: all.

    `active` may be another choice in each row, (M', batch_size).
    """
    if active is not None and active.ndim == 2:
        return values[torch.arange(values.shape[0], device=values.device), active]
    return (values if active is None else values.index_select(1, active)).transpose(0, 1)
