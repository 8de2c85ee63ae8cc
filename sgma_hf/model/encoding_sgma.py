"""What goes into the encoder, checked and packed, and what is kept of it."""

import itertools
from dataclasses import dataclass

import torch

from .cells_sgma import STAGE_STRIDES, crop_padding
from .configuration_sgma import SgmaConfig
from .fusion_sgma import SgmaPairs, SgmaStageTokens
from .layers_sgma import ABSENT_SCORE


@dataclass
class SgmaEncoding:
    """What encoders and projectors made of a batch; [`SemanticGuidedFusion.fuse`] fuses any subset of it."""

    stages: list[SgmaStageTokens]
    present: torch.Tensor  # which pairs are there, bool, (batch_size, num_modalities)
    host_present: list[list[bool]] | None  # the same as plain values, so that no device is asked; None while tracing
    # Bool, (batch_size, num_modalities, height, width), without padding; None: what is present covers its whole image.
    pixel_coverage: torch.Tensor | None
    # Covered fraction of the stages' cells in [0, 1], (batch_size, num_modalities, height, width) as the stages' maps;
    # None: all present pairs are complete and nothing is padded.
    fractions: list[torch.Tensor] | None
    image_size: tuple[int, int] | None  # in pixels, without padding; None: the maps have none

    @property
    def is_empty(self) -> bool:
        """Whether no row has anything, so that nothing was encoded."""
        return self.host_present is not None and not any(map(any, self.host_present))

    @property
    def position(self) -> torch.Tensor:
        """Index of every pair in the packed order, int64, (batch_size, num_modalities), -1 if absent."""
        if self.host_present is not None:
            return to_device(packed_positions(self.host_present), self.present.device)
        batch_size, modalities = self.present.shape  # all pairs are computed: nothing depends on the mask
        return torch.arange(modalities * batch_size, device=self.present.device).view(modalities, batch_size).t()

    def pairs(self, host_mask: list[list[bool]] | None) -> SgmaPairs:
        """Where the pairs of a mask stand in the packed order; `host_mask` is that of `present`, or of a subset."""
        batch_size, modalities = self.present.shape
        if host_mask is None:  # while tracing all pairs are packed
            return SgmaPairs(batch_size, complete=False)
        device = self.present.device
        active, packed = (
            [index for index, column in enumerate(zip(*mask, strict=True)) if any(column)]
            for mask in (host_mask, self.host_present)
        )
        complete = all(row[index] for row in host_mask for index in active)
        pairs = SgmaPairs(batch_size, complete=complete)
        if len(active) < modalities:
            pairs.active = to_device(active, device)
        if not complete or not all(row[index] for row in self.host_present for index in packed):
            position = packed_positions(self.host_present)
            for row, mask in zip(position, host_mask, strict=True):
                own = max((index for index, there in zip(row, mask, strict=True) if there), default=0)
                row[:] = [index if there else own for index, there in zip(row, mask, strict=True)]
            pairs.position = to_device([[row[index] for row in position] for index in active], device)
        elif active != packed:
            pairs.slices = to_device([packed.index(index) for index in active], device)
        return pairs

    def coverage(self, mask: torch.Tensor) -> torch.Tensor | None:
        """Pixels that any modality of a mask (batch_size, num_modalities) covers, (batch_size, height, width).

        None where no size in pixels is known.
        """
        if self.pixel_coverage is None:
            return None if self.image_size is None else mask.any(1)[:, None, None].expand(-1, *self.image_size)
        return (self.pixel_coverage & mask[..., None, None]).any(1)

    def crop(self, maps: torch.Tensor, level: int) -> torch.Tensor:
        """A stage's maps without the cells of padding, as robustness maps are."""
        return maps if self.image_size is None else crop_padding(maps, STAGE_STRIDES[level], self.image_size)

    def cropped_fractions(self) -> list[torch.Tensor] | None:
        """`fractions` without the cells of padding."""
        return self.fractions and [self.crop(fraction, level) for level, fraction in enumerate(self.fractions)]

    def attention_biases(self, mask: torch.Tensor, active: torch.Tensor | None) -> list[torch.Tensor]:
        """Logarithm of the covered fraction of the stages' cells, `ABSENT_SCORE` where nothing is, float32 at least.

        (M', batch_size, positions) for the M' modalities `active`, or (M', batch_size, 1) if every pair is complete.
        """
        there = _modalities_first(mask, active).unsqueeze(-1)
        if self.fractions is None:
            return [torch.where(there, 0.0, ABSENT_SCORE)] * len(self.stages)
        dtype = torch.promote_types(self.stages[0].tokens.dtype, torch.float32)
        fractions = [_modalities_first(fraction, active).flatten(2).to(dtype) for fraction in self.fractions]
        return [torch.where(there & (part > 0), part.log(), ABSENT_SCORE) for part in fractions]

    def single_robustness(self, mask: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Robustness where each row of the mask has one modality at most: 1 where that covers the cell."""
        mask, fractions = mask[..., None, None], self.cropped_fractions()
        if fractions is not None:
            return tuple((mask & (fraction > 0)).float() for fraction in fractions)
        return tuple(mask.expand(-1, -1, *stage.size).float() for stage in self.stages)  # nothing is padded


HostMask = list[list[float]]  # of every row and modality: 1 if it covers all, 0 if nothing, else 0.5


def host_mask_of(modality_mask: torch.Tensor) -> HostMask:
    """What a mask says, as plain numbers: of every row and modality 1 if it covers all, 0 if nothing, else 0.5.

    Taken while the mask is on the CPU, and given to the model beside it, it spares asking another device.
    """
    return _shares(modality_mask).tolist()


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
    """Return which pairs are present, and the coverage of pixels unless every present pair is complete.

    The third is `present` on the host, None while tracing. See [`SgmaModel.encode`] for the arguments.
    """
    _check_shapes(config, pixel_values, modality_mask)
    shape, mask = (pixel_values.shape[0], config.num_modalities), modality_mask
    if mask is None:
        mask = pixel_values.new_ones(shape, dtype=torch.bool)
    if torch.compiler.is_compiling():
        return present_pairs(mask), mask if mask.ndim == 4 else None, None
    host_mask = _look(config, shape, modality_mask, host_mask, labels)
    return split_mask("modality_mask", mask, host_mask, pixel_values.device)


def split_mask(
    name: str, mask: torch.Tensor, host_mask: HostMask, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor | None, list[list[bool]]]:
    """Return on a device what `check_inputs` does, of a mask of which the host knows what `host_mask_of` says.

    Raises:
        ValueError: If a row has nothing, and the mask, whose `name` is said, is not per pixel.
    """
    by_pixel = mask.ndim == 4
    host_present = [[share > 0 for share in row] for row in host_mask]
    empty = [row for row, there in enumerate(host_present) if not any(there)]
    if empty and not by_pixel:
        raise ValueError(
            f"`{name}` has no modality at all in row(s) {empty}; leave such rows out, or give a mask per "
            "pixel, (batch_size, num_modalities, height, width), to have them returned as uncovered."
        )
    present = present_pairs(mask).to(device, non_blocking=True)
    if not by_pixel or not (empty or any(0 < share < 1 for row in host_mask for share in row)):
        return present, None, host_present
    return present, mask.to(device, non_blocking=True), host_present


def present_pairs(mask: torch.Tensor) -> torch.Tensor:
    """Which pairs a mask has anything of, bool, (batch_size, num_modalities)."""
    return mask if mask.ndim == 2 else mask.flatten(2).any(2)


def present_rows(
    host_present: list[list[bool]] | None, present: torch.Tensor
) -> tuple[list[int], dict[int, torch.Tensor]]:
    """Number of present pairs of each modality, and the rows, int64 on the device, of those that lack in some."""
    batch_size, modalities = present.shape
    counts = [batch_size] * modalities
    if host_present is None:  # while tracing all are computed
        return counts, {}
    rows = [[row for row, there in enumerate(column) if there] for column in zip(*host_present, strict=True)]
    counts = [len(part) for part in rows]
    if counts == [batch_size] * modalities:
        return counts, {}
    indices = to_device([row for part in rows for row in part], present.device).split(counts)
    return counts, {index: part for index, part in enumerate(indices) if len(part) < batch_size}


def _check_shapes(config: SgmaConfig, pixel_values: torch.Tensor, modality_mask: torch.Tensor | None) -> None:
    channels = sum(config.modality_channels)
    if pixel_values.ndim != 4 or pixel_values.shape[1] != channels:
        named = dict(zip(config.modalities, config.modality_channels, strict=True))
        raise ValueError(
            f"`pixel_values` has shape {tuple(pixel_values.shape)}; expected (batch_size, {channels}, height, "
            f"width), the channels being {named} in this order. SgmaImageProcessor builds it."
        )
    if not pixel_values.is_floating_point():
        raise TypeError(
            f"`pixel_values` is {pixel_values.dtype}; expected normalised floats, as SgmaImageProcessor returns."
        )
    if modality_mask is not None:
        shape = (pixel_values.shape[0], config.num_modalities)
        check_mask("modality_mask", modality_mask, shape, tuple(pixel_values.shape[-2:]))


def check_mask(name: str, mask: torch.Tensor, shape: tuple[int, int], image_size: tuple[int, int] | None) -> None:
    """Raise ValueError or TypeError unless a mask is bool, (batch_size, num_modalities) or that for every pixel.

    An `image_size` of None is any.
    """
    size = tuple(mask.shape[2:]) if image_size is None else image_size
    if tuple(mask.shape) not in (shape, shape + size) or mask.ndim not in (2, 4):
        by_pixel = (*shape, *(image_size or ("height", "width")))
        raise ValueError(
            f"`{name}` has shape {tuple(mask.shape)}; expected {shape} or {by_pixel}: batch size, modalities and, per "
            "pixel, the image."
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


def packed_positions(host_present: list[list[bool]]) -> list[list[int]]:
    """Index of every present pair in the packed order, one modality after the other, -1 for the absent."""
    order = itertools.count()
    by_modality = [[next(order) if there else -1 for there in column] for column in zip(*host_present, strict=True)]
    return [list(row) for row in zip(*by_modality, strict=True)]


def _modalities_first(values: torch.Tensor, active: torch.Tensor | None) -> torch.Tensor:
    """(batch_size, num_modalities, ...) -> (M', batch_size, ...) for the M' modalities `active`; None: all."""
    return (values if active is None else values.index_select(1, active)).transpose(0, 1)
