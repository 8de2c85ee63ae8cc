"""What goes into the encoder: the inputs checked, and where each observation stands in the packed order.

Observations are those of `encoding_sgma`. They are packed one modality after the other, of each one slot after the
other, of each the rows.
"""

import itertools
from collections.abc import Sequence

import torch

from .configuration_sgma import SgmaConfig


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
