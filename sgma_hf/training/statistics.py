"""What training shows about each modality, added up over an epoch and all processes."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn
from torch.distributed.tensor import DTensor

from ..evaluation.metrics import count_cells
from ..model.cells_sgma import LOGITS_STRIDE, STAGE_STRIDES, logits_stride, touched_cells
from ..model.configuration_sgma import SgmaConfig


class TrainingStatistics:
    """Sums and counts over one epoch: additive, so that processes and interrupted parts are added, never overwritten.

    Everything stays on the device and costs no synchronisation until `reduce`. A row's loss is what it is trained on
    (see `EpochStatistics`); losses by class are plain cross-entropy. `stage_channels` are those of each stage's class
    prototypes, none if the model has no prototypes.
    """

    def __init__(self, num_rows: int, config: SgmaConfig, device: torch.device, *, stage_channels: Sequence[int] = ()):
        num_modalities, num_labels = config.num_modalities, config.num_labels
        self.ignore_index = config.semantic_loss_ignore_index
        # float64 keeps sums over long epochs exact enough to be compared; Apple's GPUs have none
        dtype = torch.float32 if device.type == "mps" else torch.float64
        shapes = {
            "robustness": (2, num_modalities),  # a sum and a count in the first place, as in most
            "class_robustness": (2, num_modalities, num_labels),
            "single_loss": (2, num_modalities),
            "class_single_loss": (2, num_modalities, num_labels),
            "row_losses": (2, num_rows),
            "squared_gradients": (2, num_modalities),
            "single_confusion": (num_modalities, num_labels, num_labels),
            "prototype_rows": (1,),
        }
        prototypes = {f"prototypes_{stage}": (num_labels, size) for stage, size in enumerate(stage_channels)}
        self.prototype_names, shapes = list(prototypes), shapes | prototypes
        self.sums = {name: torch.zeros(shape, dtype=dtype, device=device) for name, shape in shapes.items()}
        # Sums and counts since the last log; all names, whatever a process sees: they have to agree on what they add.
        self._log_names = [f"loss_{name}" for name in config.loss_terms]
        by_modality = ["robustness", "sampling_probability"]
        kinds = dict.fromkeys(self._log_names, 1) | dict.fromkeys(by_modality, num_modalities)
        self._logged = torch.zeros(2, sum(kinds.values()), dtype=dtype, device=device)
        self._parts = dict(zip(kinds, self._logged.split(list(kinds.values()), dim=1), strict=True))
        self._log_names += [f"{kind}/{name}" for kind in by_modality for name in config.modalities]

    @torch.no_grad()
    def add(self, outputs: Any, modality_mask: torch.Tensor, labels: torch.Tensor, row_index: torch.Tensor) -> None:
        """Add a training batch, its rows by their index in the training set."""
        present = modality_mask if modality_mask.ndim == 2 else modality_mask.flatten(2).any(2)
        valid = ~outputs.row_losses.isnan()
        # One modality alone has robustness 1 by definition; rows without a valid pixel only fill up a batch.
        competing = present & (present.sum(1, keepdim=True) > 1) & valid.unsqueeze(1)
        self._add("row_losses", row_index % self.sums["row_losses"].shape[1], outputs.row_losses, valid)
        pixels = ((labels != self.ignore_index) & outputs.coverage).sum()  # that the losses are means over
        for name, loss in outputs.loss_dict.items():
            self._parts[name] += torch.stack([loss * pixels, pixels]).unsqueeze(1)
        if outputs.sampling_probabilities is not None:
            self._parts["sampling_probability"] += self._sum_rows(outputs.sampling_probabilities, competing)
        cells = labels[:, ::4, ::4]  # the pixel in the corner of every cell of the finest stage
        if outputs.robustness is not None:
            contested = contested_cells(modality_mask, outputs.robustness)
            means, competed = mean_robustness(outputs.robustness, contested)
            competed = competed & valid.unsqueeze(1)
            for sums in (self.sums, self._parts):
                sums["robustness"] += self._sum_rows(means, competed)
            counted = (contested[0] & competed[..., None, None]).to(self.sums["robustness"].dtype)
            sums, one_hot = self.sums["class_robustness"], self._one_hot(cells)  # (B, h, w, K)
            sums[0] += torch.einsum("bmhw,bhwk->mk", outputs.robustness[0].to(counted.dtype) * counted, one_hot)
            sums[1] += torch.einsum("bmhw,bhwk->mk", counted, one_hot)
        if outputs.prototypes is not None:
            counted = competing.any(1).to(self.sums["prototype_rows"].dtype)
            self.sums["prototype_rows"] += counted.sum()
            for name, prototypes in zip(self.prototype_names, outputs.prototypes, strict=True):
                self.sums[name] += torch.einsum("b,bkc->kc", counted, prototypes.to(counted.dtype))
        if outputs.sampled_modality is not None:
            drawn = ~outputs.sampled_row_losses.isnan()
            self._add("single_loss", outputs.sampled_modality, outputs.sampled_row_losses, drawn)
            seen = cells != self.ignore_index
            if modality_mask.ndim == 4:
                rows = torch.arange(len(labels), device=labels.device)
                seen = seen & modality_mask[rows, outputs.sampled_modality, ::4, ::4]
            self._add_single_classes(outputs, cells, seen)

    @torch.no_grad()
    def add_gradients(self, parameters: Sequence[Sequence[nn.Parameter]], *, counted: bool = True) -> None:
        """Add the squared norm of each modality's gradient in an optimiser step, of those that have one.

        Squares are additive over the shards of a parameter, norms are not. `counted` is False on all but one of the
        processes that hold shards of the same parameters.
        """
        sums = self.sums["squared_gradients"]
        norms = []
        for group in parameters:
            gradients = [parameter.grad for parameter in group if parameter.grad is not None]
            local = [part.to_local() if isinstance(part, DTensor) else part for part in gradients]
            norm = nn.utils.get_total_norm(local) if local else sums.new_full((), torch.nan)
            norms.append(norm.to(sums.dtype))
        squares = torch.stack(norms).square()
        # Not those without a gradient, nor a step whose float16 gradients overflowed: the scaler skips it.
        finite = squares.isfinite()
        sums[0] += torch.where(finite, squares, 0)
        sums[1] += finite * counted

    def _add(self, name: str, index: torch.Tensor, values: torch.Tensor, valid: torch.Tensor) -> None:
        """Add values and their count at the given places."""
        sums = self.sums[name]
        sums[0].index_add_(0, index, torch.where(valid, values, 0).to(sums.dtype))
        sums[1].index_add_(0, index, valid.to(sums.dtype))

    def _sum_rows(self, values: torch.Tensor, counted: torch.Tensor) -> torch.Tensor:
        """Sum over the rows of (B, n) where they count, and their number, (2, n)."""
        values = values.to(self.sums["row_losses"].dtype)
        return torch.stack([torch.where(counted, values, 0).sum(0), counted.sum(0)])

    def _one_hot(self, classes: torch.Tensor) -> torch.Tensor:
        """One-hot classes, (..., K); pixels to ignore fall into a class of their own, which is cut off again."""
        sums = self.sums["class_robustness"]
        num_labels = sums.shape[2]
        classes = torch.where(classes == self.ignore_index, num_labels, classes)
        return nn.functional.one_hot(classes, num_labels + 1)[..., :num_labels].to(sums.dtype)

    def _add_single_classes(self, outputs: Any, cells: torch.Tensor, seen: torch.Tensor) -> None:
        """Add confusion and loss by class of the predictions from the drawn modality, at one pixel per cell."""
        logits, sums = outputs.sampled_logits, self.sums["class_single_loss"]
        finer = LOGITS_STRIDE // logits_stride(logits, outputs.coverage.shape[-2:])  # those of these pixels alone
        logits = logits[..., ::finer, ::finer]
        confusion, num_labels = self.sums["single_confusion"], sums.shape[2]
        places = (outputs.sampled_modality[:, None, None] * num_labels + cells) * num_labels + logits.argmax(1)
        confusion += count_cells(places, confusion.numel(), seen).view_as(confusion)
        one_hot = self._one_hot(torch.where(seen, cells, self.ignore_index))  # (B, h, w, K)
        modality = nn.functional.one_hot(outputs.sampled_modality, sums.shape[1]).to(sums.dtype)  # (B, M)
        losses = nn.functional.cross_entropy(logits.float(), cells, ignore_index=self.ignore_index, reduction="none")
        sums[0] += torch.einsum("bm,bhw,bhwk->mk", modality, losses.to(sums.dtype), one_hot)
        sums[1] += torch.einsum("bm,bhwk->mk", modality, one_hot)

    def means_to_log(self, accelerator: Accelerator) -> dict[str, float]:
        """Means over all processes since the last call, by the names of the log; none of what was not seen."""
        totals, counts = accelerator.reduce(self._logged, "sum").tolist()
        self._logged.zero_()
        return {name: total / n for name, total, n in zip(self._log_names, totals, counts, strict=True) if n}

    def clear(self) -> None:
        """Start from 0 again, for another epoch."""
        self.sums = {name: torch.zeros_like(values) for name, values in self.sums.items()}

    def reduce(self, accelerator: Accelerator) -> None:
        """Add up the sums of all processes; the first holds them then, the others start from 0 again.

        Called where a checkpoint is saved as well, so that a resumed run adds in the order of the uninterrupted one.
        """
        for name, values in self.sums.items():
            total = accelerator.reduce(values, "sum")
            self.sums[name] = total if accelerator.is_main_process else torch.zeros_like(total)

    def summary(self, accelerator: Accelerator) -> dict[str, Any]:
        """Means over all processes so far, the same on all; NaN where nothing was seen.

        `single_confusion` holds counts, and `prototypes` a list of arrays for the stages, or None.
        """
        total = {name: accelerator.reduce(values, "sum").double().cpu().numpy() for name, values in self.sums.items()}
        confusion, rows = total.pop("single_confusion"), float(total.pop("prototype_rows")[0])
        prototypes = [total.pop(name) for name in self.prototype_names]
        with np.errstate(invalid="ignore"):
            means = {name: sums / counts for name, (sums, counts) in total.items()}
        prototypes = [stage / rows for stage in prototypes] if prototypes and rows else None
        return means | {"single_confusion": confusion, "prototypes": prototypes}

    def load(self, values: Mapping[str, Any]) -> None:
        """Take over `sums` as nested lists; raises a ValueError if they are of another data set or model."""
        for name, sums in self.sums.items():
            loaded = torch.tensor(values[name], dtype=sums.dtype, device=sums.device)
            if loaded.shape != sums.shape:
                raise ValueError(
                    f"The checkpoint's statistics {name!r} have the shape {tuple(loaded.shape)}, this run's "
                    f"{tuple(sums.shape)}: it was trained on other rows, modalities or classes. Resume with those, or "
                    "start anew from its weights."
                )
            self.sums[name] = loaded


def contested_cells(modality_mask: torch.Tensor, robustness: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
    """Cells of each stage, bool (B, M, h, w), that a modality covers, at least in part, and another one too.

    Alone in a cell a modality has robustness 1, and 0 where it covers nothing: that tells where sensors look, not how
    fragile they are. The mask is of either kind.
    """
    if modality_mask.ndim == 2:
        masks = [modality_mask[..., None, None].expand_as(maps) for maps in robustness]
    else:
        masks = [touched_cells(modality_mask, stride) for stride in STAGE_STRIDES]
    return [covered & (covered.sum(1, keepdim=True) > 1) for covered in masks]


def mean_robustness(
    robustness: tuple[torch.Tensor, ...], contested: Sequence[torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Each row's mean over the contested cells, then over the stages that have some; which pairs (B, M) have any."""
    counts = torch.stack([cells.flatten(2).sum(2) for cells in contested])  # (4, B, M)
    sums = torch.stack(
        [torch.where(cells, maps, 0).flatten(2).sum(2) for cells, maps in zip(contested, robustness, strict=True)]
    )
    stages = (counts > 0).sum(0)
    return (sums / counts.clamp_min(1)).sum(0) / stages.clamp_min(1), stages > 0
