"""What goes into the encoder, checked and packed, and what is kept of it.

An observation is one modality at one date. Those of a row are side by side as (date slot, modality), date slots first:
observation t * M + m is slot t of modality m. Without dates, T is 1, and the observations are the modalities.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from .cells_sgma import STAGE_STRIDES, crop_padding
from .configuration_sgma import SgmaConfig
from .fusion_sgma import SgmaPairs, SgmaStageTokens, join_stages
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


HostMask = list[list[float]]  # of every row and observation: 1 if it covers all, 0 if nothing, else 0.5


def host_mask_of(modality_mask: torch.Tensor) -> HostMask:
    """What a mask says, as plain numbers: of every row and modality 1 if it covers all, 0 if nothing, else 0.5.

    Of a mask with dates, of every row and observation, (batch_size, T * num_modalities). Taken while the mask is on
    the CPU, and given to the model beside it, it spares asking another device.
    """
    return _shares(flat_mask(modality_mask)).tolist()


def flat_mask(mask: torch.Tensor) -> torch.Tensor:
    """(batch_size, T, num_modalities), per pixel or not -> (batch_size, T * num_modalities, ...); else as it is."""
    return mask.flatten(1, 2) if mask.ndim % 2 else mask


def _shares(modality_mask: torch.Tensor) -> torch.Tensor:
    if modality_mask.ndim == 2:
        return modality_mask.float()
    pixels = modality_mask.flatten(2)
    return (pixels.any(2).float() + pixels.all(2).float()) / 2


def check_inputs(
    config: SgmaConfig,
    pixel_values: torch.Tensor,
    modality_mask: torch.Tensor | None = None,
    host_mask: HostMask | None = None,
    labels: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None, list[list[bool]] | None]:
    """Return which observations are there, and the coverage of pixels unless all of them are complete.

    The third is the first on the host, None while tracing. See [`SgmaModel.encode`] for the arguments.
    """
    _check_shapes(config, pixel_values, modality_mask)
    modality_mask = None if modality_mask is None else flat_mask(modality_mask)
    shape, mask = (pixel_values.shape[0], num_dates(pixel_values) * config.num_modalities), modality_mask
    if mask is None:
        mask = pixel_values.new_ones(shape, dtype=torch.bool)
    if torch.compiler.is_compiling():
        return present_pairs(mask), mask if mask.ndim == 4 else None, None
    host_mask = _look(config, shape, modality_mask, host_mask, labels)
    return split_mask("modality_mask", mask, host_mask, pixel_values.device)


def num_dates(pixel_values: torch.Tensor) -> int:
    """T of (batch_size, T, channels, height, width), 1 of (batch_size, channels, height, width)."""
    return pixel_values.shape[1] if pixel_values.ndim == 5 else 1


def check_dates(
    dates: torch.Tensor, periods: Sequence[float] | None, shape: tuple[int, ...], device: torch.device
) -> torch.Tensor | None:
    """Dates (batch_size * T, num_modalities), float32 at least, or None for a model that knows no dates.

    Raises:
        ValueError: If the shape does not fit, or there are dates for such a model.
    """
    if tuple(dates.shape) != shape or not dates.is_floating_point():
        raise ValueError(
            f"`dates` is {dates.dtype} of shape {tuple(dates.shape)}; expected floats of {shape}: rows, dates as the "
            "images have them, modalities; NaN where a date is not known."
        )
    if periods is None:
        if torch.compiler.is_compiling() or not dates.isnan().all():
            raise ValueError(
                "`dates` are given to a model without `date_periods`, which knows none; leave them out, or train a "
                "model with `date_periods`, such as [365.25, 182.6, 121.75, 91.3, 60.9] for days."
            )
        return None
    return dates.to(device, torch.promote_types(dates.dtype, torch.float32)).flatten(0, -2)


def split_mask(
    name: str, mask: torch.Tensor, host_mask: HostMask, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor | None, list[list[bool]]]:
    """Return on a device what `check_inputs` does, of a mask of which the host knows what `host_mask_of` says.

    Raises:
        ValueError: If a row has nothing, and the mask, whose `name` is said, is not per pixel.
    """
    by_pixel = mask.ndim == 4
    host_observed = [[share > 0 for share in row] for row in host_mask]
    empty = [row for row, there in enumerate(host_observed) if not any(there)]
    if empty and not by_pixel:
        raise ValueError(
            f"`{name}` has no modality at all in row(s) {empty}; leave such rows out, or give a mask per "
            "pixel, (batch_size, num_modalities, height, width), to have them returned as uncovered."
        )
    present = present_pairs(mask).to(device, non_blocking=True)
    if not by_pixel or not (empty or any(0 < share < 1 for row in host_mask for share in row)):
        return present, None, host_observed
    return present, mask.to(device, non_blocking=True), host_observed


def present_pairs(mask: torch.Tensor) -> torch.Tensor:
    """Which pairs a mask has anything of, bool, (batch_size, num_modalities)."""
    return mask if mask.ndim == 2 else mask.flatten(2).any(2)


def present_images(
    host_observed: list[list[bool]] | None, observed: torch.Tensor, modalities: int
) -> tuple[list[int], dict[int, torch.Tensor]]:
    """Number of observations of each modality, and which of its images they are, int64, unless it is all in order.

    The images of a modality are those of row 0, one date after the other, then those of row 1; the observations are
    those of the first slot in all rows, then those of the second: as they are packed.
    """
    batch_size, slots = observed.shape[0], observed.shape[1] // modalities
    counts = [batch_size * slots] * modalities
    if host_observed is None:  # while tracing all are computed
        if slots == 1:
            return counts, {}
        order = torch.arange(batch_size * slots, device=observed.device).view(batch_size, slots).t().flatten()
        return counts, dict.fromkeys(range(modalities), order)
    columns = list(zip(*host_observed, strict=True))
    images = []
    for modality in range(modalities):
        by_slot = enumerate(columns[modality::modalities])
        images.append([row * slots + slot for slot, column in by_slot for row, there in enumerate(column) if there])
    counts = [len(part) for part in images]
    partial = [index for index, part in enumerate(images) if part != list(range(batch_size * slots))]
    if not partial:
        return counts, {}
    indices = to_device([image for part in images for image in part], observed.device).split(counts)
    return counts, {index: indices[index] for index in partial}


def _check_shapes(config: SgmaConfig, pixel_values: torch.Tensor, modality_mask: torch.Tensor | None) -> None:
    channels = sum(config.modality_channels)
    if pixel_values.ndim not in (4, 5) or pixel_values.shape[-3] != channels:
        named = dict(zip(config.modalities, config.modality_channels, strict=True))
        raise ValueError(
            f"`pixel_values` has shape {tuple(pixel_values.shape)}; expected (batch_size, {channels}, height, width), "
            f"or (batch_size, dates, {channels}, height, width), the channels being {named} in this order. "
            "SgmaImageProcessor builds it."
        )
    if not pixel_values.is_floating_point():
        raise TypeError(
            f"`pixel_values` is {pixel_values.dtype}; expected normalised floats, as SgmaImageProcessor returns."
        )
    if modality_mask is not None:
        shape = (*pixel_values.shape[:-3], config.num_modalities)
        check_mask("modality_mask", modality_mask, shape, tuple(pixel_values.shape[-2:]))


def check_mask(name: str, mask: torch.Tensor, shape: tuple[int, ...], image_size: tuple[int, int] | None) -> None:
    """Raise ValueError or TypeError unless a mask is bool and of a shape, or of that for every pixel.

    The shape is (batch_size, num_modalities), or with dates (batch_size, T, num_modalities); an `image_size` of None
    is any.
    """
    size = tuple(mask.shape[len(shape) :]) if image_size is None else image_size
    if tuple(mask.shape) not in (shape, shape + size) or mask.ndim - len(shape) not in (0, 2):
        by_pixel = (*shape, *(image_size or ("height", "width")))
        axes = "batch size, modalities" if len(shape) == 2 else "batch size, dates, modalities"
        raise ValueError(
            f"`{name}` has shape {tuple(mask.shape)}; expected {shape} or {by_pixel}: {axes} and, per pixel, the "
            "image."
        )
    if mask.dtype != torch.bool:
        raise TypeError(f"`{name}` is {mask.dtype}; expected bool, True where there is data.")


def check_labels(labels: torch.Tensor, pixel_values: torch.Tensor) -> torch.Tensor:
    """Return labels as int64, their shape and type checked."""
    expected = (pixel_values.shape[0], *pixel_values.shape[-2:])
    if tuple(labels.shape) != expected:
        raise ValueError(f"`labels` has shape {tuple(labels.shape)}; expected {expected}, as the images have.")
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise TypeError(f"`labels` is {labels.dtype}; expected integers, one class index per pixel.")
    return labels.long()


def _look(
    config: SgmaConfig,
    shape: tuple[int, int],
    modality_mask: torch.Tensor | None,
    host_mask: HostMask | None,
    labels: torch.Tensor | None,
) -> HostMask:
    """Look at the mask and the labels: a device is asked once, and only where no `host_mask` speaks for both."""
    see_mask, see_labels = (
        part is not None and (host_mask is None or part.device.type == "cpu") for part in (modality_mask, labels)
    )
    columns = [_shares(modality_mask)] if see_mask else []
    if see_labels:
        columns.append(_wrong(config, labels).flatten(1).any(1, keepdim=True))
    rows = []
    if columns:
        rows = torch.cat([column.to(columns[-1].device, torch.float32) for column in columns], dim=1).tolist()
    if see_labels and sum(row.pop() for row in rows):
        wrong = labels[_wrong(config, labels)].unique()[:10].tolist()
        raise ValueError(
            f"`labels` holds {wrong}; expected classes 0 to {config.num_labels - 1}, or "
            f"{config.semantic_loss_ignore_index} for pixels to ignore. Remap the labels."
        )
    if not see_mask:
        rows = [[1.0] * shape[1]] * shape[0] if modality_mask is None else host_mask
    if [len(row) for row in rows] != [shape[1]] * shape[0] or host_mask not in (None, rows):
        raise ValueError(
            f"`host_mask` is {host_mask}; expected {rows if see_mask else shape} as `modality_mask` has it. Make it "
            "anew by `host_mask_of` where the mask changes, or leave it out."
        )
    return rows


def _wrong(config: SgmaConfig, labels: torch.Tensor) -> torch.Tensor:
    return (labels != config.semantic_loss_ignore_index) & ((labels < 0) | (labels >= config.num_labels))


def to_device(values: list, device: torch.device) -> torch.Tensor:
    """Copy plain values to a device, without waiting for what it still computes."""
    return torch.tensor(values).to(device, non_blocking=True)


def packed_positions(host_observed: list[list[bool]], modalities: int) -> list[list[int]]:
    """Index of every observation in the packed order, -1 for the absent.

    One modality after the other, of each one slot after the other, of each the rows.
    """
    order = itertools.count()
    columns = list(zip(*host_observed, strict=True))
    by_column = [[-1] * len(host_observed) for _ in columns]
    for modality in range(modalities):
        for index in range(modality, len(columns), modalities):
            by_column[index] = [next(order) if there else -1 for there in columns[index]]
    return [list(row) for row in zip(*by_column, strict=True)]


def _observations_first(values: torch.Tensor, active: torch.Tensor | None) -> torch.Tensor:
    """(batch_size, observations, ...) -> (M', batch_size, ...) for the M' of them that are `active`; None: all.

    `active` may be another choice in each row, (M', batch_size).
    """
    if active is not None and active.ndim == 2:
        return values[torch.arange(values.shape[0], device=values.device), active]
    return (values if active is None else values.index_select(1, active)).transpose(0, 1)
