"""What goes into the encoder, checked and packed, and what is kept of it."""

import itertools
from dataclasses import dataclass

import torch

from .cells_sgma import STAGE_STRIDES, crop_padding, grid_size
from .configuration_sgma import SgmaConfig
from .fusion_sgma import SgmaPairs, SgmaStageTokens
from .layers_sgma import ABSENT_SCORE


@dataclass
class SgmaEncoding:
    """One pass of a batch through the encoder and the projectors; [`SgmaModel.fuse`] fuses any subset of it."""

    stages: list[SgmaStageTokens]
    present: torch.Tensor  # which pairs are there, bool, (batch_size, num_modalities)
    host_present: list[list[bool]] | None  # the same as plain values, so that no device is asked; None while tracing
    # Bool, (batch_size, num_modalities, height, width), without padding; None: what is present covers its whole image.
    pixel_coverage: torch.Tensor | None
    # Covered fraction of the stages' cells in [0, 1], (batch_size, num_modalities, height / stride, width / stride) of
    # the padded image; None: all present pairs are complete and nothing is padded.
    fractions: list[torch.Tensor] | None
    image_size: tuple[int, int]  # in pixels, without padding

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
            return SgmaPairs(batch_size)
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

    def coverage(self, mask: torch.Tensor) -> torch.Tensor:
        """Pixels that any modality of a mask (batch_size, num_modalities) covers, (batch_size, height, width)."""
        if self.pixel_coverage is None:
            return mask.any(1)[:, None, None].expand(-1, *self.image_size)
        return (self.pixel_coverage & mask[..., None, None]).any(1)

    def cropped_fractions(self) -> list[torch.Tensor] | None:
        """`fractions` without the cells of padding, as robustness maps are."""
        if self.fractions is None:
            return None
        stages = zip(self.fractions, STAGE_STRIDES, strict=True)
        return [crop_padding(fraction, stride, self.image_size) for fraction, stride in stages]

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
        sizes = [grid_size(self.image_size, stride) for stride in STAGE_STRIDES]
        return tuple(mask.expand(-1, -1, *size).float() for size in sizes)


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
    if modality_mask is None:
        present = pixel_values.new_ones((pixel_values.shape[0], config.num_modalities), dtype=torch.bool)
    else:
        present = modality_mask if modality_mask.ndim == 2 else modality_mask.flatten(2).any(2)
    by_pixel = modality_mask is not None and modality_mask.ndim == 4
    if torch.compiler.is_compiling():
        return present, modality_mask if by_pixel else None, None
    host_mask = _look(config, tuple(present.shape), modality_mask, host_mask, labels)
    host_present = [[share > 0 for share in row] for row in host_mask]
    empty = [row for row, there in enumerate(host_present) if not any(there)]
    if empty and not by_pixel:
        raise ValueError(
            f"`modality_mask` has no modality at all in row(s) {empty}; leave such rows out, or give a mask per "
            "pixel, (batch_size, num_modalities, height, width), to have them returned as uncovered."
        )
    present = present.to(pixel_values.device, non_blocking=True)
    if not by_pixel or not (empty or any(0 < share < 1 for row in host_mask for share in row)):
        return present, None, host_present
    return present, modality_mask.to(pixel_values.device, non_blocking=True), host_present


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
    if modality_mask is None:
        return
    expected = (pixel_values.shape[0], config.num_modalities)
    if tuple(modality_mask.shape) not in (expected, expected + tuple(pixel_values.shape[-2:])):
        raise ValueError(
            f"`modality_mask` has shape {tuple(modality_mask.shape)}; expected {expected} or "
            f"{expected + tuple(pixel_values.shape[-2:])}: batch size, modalities and, per pixel, the image."
        )
    if modality_mask.dtype != torch.bool:
        raise TypeError(f"`modality_mask` is {modality_mask.dtype}; expected bool, True where there is data.")


def check_labels(config: SgmaConfig, labels: torch.Tensor, pixel_values: torch.Tensor) -> torch.Tensor:
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
