"""Do robustness maps say where a modality alone is wrong? Reliance on it, against the errors of its own prediction.

Every batch is encoded once; the robustness maps come from fusing all modalities, the errors from fusing each alone.
A pixel counts for modality m if it is labelled, m covers it, and so does another modality: where m is alone, its
robustness is 1 whatever it sees.

- **Correlation** (Pearson): over the cells of a stage, between robustness r of m and the share e of the cell's
  counted pixels that the prediction from m alone gets wrong, each cell weighted by its number of such pixels. For a
  class, only that class's pixels of a cell count, and make its e and its weight. From sums in float64. Maps that say
  where m errs have a negative correlation.
- **AUC**, which asks for order alone: probability that a random pixel that m alone gets wrong lies in a cell of lower
  r than a random pixel that it gets right, ties counting half. 0.5 says nothing.
- **Contested pixels** are those where, among the modalities that cover them, one at least is right alone and one at
  least is wrong. Robustness is a share: where all modalities err, or none, it has nothing to tell, so correlation and
  AUC are also given over these pixels alone.
- **Choice**: of the contested pixels, the share where the most relied-on is right (modalities tied for it count
  equally). Beside it what chance gives, choosing uniformly among those that cover; what always choosing one modality
  gives, over the contested pixels that it covers; and the share that the fused prediction gets right.

- **Deletion**: what it costs to take from every pixel the modality that it relies on most, or least; see `deletion`.

`overall` figures are over all pairs of cell or pixel and modality, so they also hold what differs between modalities:
a map that is constant, high for the better modality, has an overall correlation but none within a modality. Stage
"mean" is the mean of the four maps, each cell of stride 4 taking the values of the coarser cells that hold it.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from transformers import BaseImageProcessor, PreTrainedModel

from ...data.evaluation_mode import evaluating
from ...model.cells_sgma import LOGITS_STRIDE, STAGE_STRIDES, predicted_classes, repeat_to_pixels
from ..prepared_rows import PreparedBatches, PreparedRow, PreparedRows
from ..stage_cells import NUM_BINS, bin_indices, histogram_auc, ratio
from .deletion import Deletion


STAGE_NAMES = (*(str(stride) for stride in STAGE_STRIDES), "mean")
RELIANCE_BINS = 20  # of equal width over [0, 1], that results hold
_SUMS = 6  # weight w, w r, w e, w r^2, w e^2, w r e


class _Agreement:
    """Sums for the correlations and histograms for the AUCs, of every map, modality and class."""

    def __init__(self, num_modalities: int, num_labels: int):
        # The last class is all of them together: e of a cell is not the sum of its classes' e.
        self.sums = np.zeros((len(STAGE_NAMES), num_modalities, num_labels + 1, _SUMS))
        # Pixels right and wrong by the bin of their cell's robustness.
        self.bins = np.zeros((len(STAGE_NAMES), num_modalities, num_labels, 2, NUM_BINS), dtype=np.int64)

    def add(self, level: int, modality: int, robustness: torch.Tensor, counts: torch.Tensor) -> None:
        """Add a map of `STAGE_NAMES`, (B, h, w), with the pixels right and wrong of its cells, (B, h, w, K, 2)."""
        robustness = robustness.double()
        both = torch.cat([counts, counts.sum(3, keepdim=True)], dim=3).double()  # (B, h, w, K + 1, 2)
        weight, wrong = both.sum(-1), both[..., 1]
        r = robustness.unsqueeze(-1)
        share = wrong / weight.clamp_min(1)
        terms = (weight, weight * r, wrong, weight * r * r, wrong * share, wrong * r)
        self.sums[level, modality] += torch.stack([term.sum((0, 1, 2)) for term in terms], dim=-1).cpu().numpy()
        num_labels = counts.shape[3]
        cells = bin_indices(robustness, 0, 1).flatten()
        binned = counts.new_zeros(NUM_BINS, num_labels * 2).index_add_(0, cells, counts.flatten(3).flatten(0, 2))
        self.bins[level, modality] += binned.view(NUM_BINS, num_labels, 2).permute(1, 2, 0).cpu().numpy()

    def figures(self, level: int, modalities: slice, label: int | None) -> dict[str, float | int | None]:
        """Correlation, AUC and number of pixels of some modalities and one class (None: all)."""
        sums = self.sums[level, modalities, -1 if label is None else label].sum(0)
        bins = self.bins[level, modalities]
        right, wrong = bins.sum((0, 1)) if label is None else bins[:, label].sum(0)
        return {
            "correlation": weighted_correlation(*sums),
            "auc": histogram_auc(wrong, right),
            "pixels": int(sums[0]),
            "error_rate": ratio(sums[2], sums[0]),
            "reliance": ratio(sums[1], sums[0]),
        }

    def coarse_bins(self, level: int) -> list[list[list[list[int]]]]:
        """Pixels by modality, class, whether they are wrong, and bin of `RELIANCE_BINS`."""
        starts = np.arange(RELIANCE_BINS) * (NUM_BINS - 1) // RELIANCE_BINS
        return np.add.reduceat(self.bins[level], starts, axis=-1).tolist()


def weighted_correlation(
    weight: float, sum_x: float, sum_y: float, sum_xx: float, sum_yy: float, sum_xy: float
) -> float | None:
    """Pearson correlation of x and y from their weighted sums; None where one of them does not vary."""
    if weight == 0:
        return None
    variance_x = sum_xx / weight - (sum_x / weight) ** 2
    variance_y = sum_yy / weight - (sum_y / weight) ** 2
    # Rounding leaves about 1e-16 of a constant; robustness is float32, so what varies at all varies by far more.
    if variance_x < 1e-14 or variance_y < 1e-14:
        return None
    covariance = sum_xy / weight - sum_x / weight * sum_y / weight
    return float(np.clip(covariance / np.sqrt(variance_x * variance_y), -1, 1))


class _Choice:
    """Contested pixels by class, and on how many of them which way of choosing is right."""

    def __init__(self, num_labels: int):
        self.num_labels = num_labels
        self.sums: dict[Any, np.ndarray] = {}  # what is counted -> (num_labels,)

    def add(
        self,
        right: torch.Tensor,
        counted: torch.Tensor,
        contested: torch.Tensor,
        labels: torch.Tensor,
        fused: torch.Tensor,
        maps: Iterable[torch.Tensor],
    ) -> None:
        """Add a batch: where each modality alone is right, (B, M, H, W), and the fused prediction, (B, H, W).

        `maps` are the robustness of pixels, (B, M, H, W), for each of `STAGE_NAMES`; none without robustness.
        """
        classes = labels[contested]
        # (pixels, M)
        right, counted = (planes.movedim(1, -1)[contested] for planes in (right & counted, counted))

        def count(name: Any, values: torch.Tensor) -> None:
            found = torch.bincount(classes, values.double(), minlength=self.num_labels).cpu().numpy()
            self.sums[name] = self.sums.get(name, 0) + found

        count("pixels", torch.ones_like(classes))
        count("chance", right.sum(1) / counted.sum(1).double())
        count("fused", fused[contested])
        for modality in range(right.shape[1]):
            count(("covered", modality), counted[:, modality])
            count(("right", modality), right[:, modality])
        for stage, robustness in zip(STAGE_NAMES, maps, strict=False):
            shares = robustness.movedim(1, -1)[contested].masked_fill(~counted, -1)
            most = shares == shares.amax(1, keepdim=True)
            count(("relied on", stage), (right & most).sum(1) / most.sum(1).double())

    def figures(self, names: Sequence[str], label: int | None) -> dict[str, Any]:
        """Shares of the contested pixels of one class (None: all)."""
        sums = {name: found.sum() if label is None else found[label] for name, found in self.sums.items()}
        pixels = sums["pixels"]
        return {
            "contested_pixels": int(pixels),
            "relied_on": {stage: ratio(sums.get(("relied on", stage)), pixels) for stage in STAGE_NAMES},
            "chance": ratio(sums["chance"], pixels),
            "fused": ratio(sums["fused"], pixels),
            "always": {name: ratio(sums["right", index], sums["covered", index]) for index, name in enumerate(names)},
        }


def reliance_error_agreement(
    model: PreTrainedModel,
    processor: BaseImageProcessor,
    rows: Sequence[Mapping[str, Any]],
    *,
    window_size: int | None,
    batch_size: int = 8,
) -> dict[str, Any]:
    """Measure how well robustness maps agree with the errors of the predictions from single modalities.

    What is counted and what the figures mean is said at the top of this module. Rows without a label or a modality are
    left out; nothing is kept of a batch but sums and histograms. The model may be a baseline with the same `encode`
    and `fuse_and_decode`; its mode is restored. A `window_size` of None takes whole rows.

    Returns:
        A dictionary that JSON can hold, None where undefined:

        - `stages` and `contested_stages`, over all pixels and the contested ones, None without robustness: "4", "8",
          "16", "32" and "mean" -> `overall`, `modalities` (name ->), `classes` (list, over all modalities) and
          `classes_per_modality` (name -> list), each with `correlation` in [-1, 1], `auc` in [0, 1], `pixels` (pairs
          of pixel and modality), `error_rate` of the predictions from single modalities and mean `reliance`.
        - `contested_bins`: contested pixels by modality, class, right (0) or wrong (1) from the modality alone, and
          bin of the mean map of robustness, `RELIANCE_BINS` of equal width over [0, 1]; None without robustness.
        - `deletion`: the counts of `Deletion.figures`; None without robustness.
        - `choice`: `overall` and `classes` (list), each with `contested_pixels` and the shares of them, in [0, 1],
          that are right: `relied_on` (stage -> share, None without robustness), `chance`, `fused`, and `always`
          (modality -> share).
        - `modalities`, `class_names`, `window_size`, `rows`, `windows`, `rows_without_label`,
          `rows_without_modality`.
    """
    config = model.config
    names = list(config.modalities)
    agreements = [_Agreement(len(names), config.num_labels) for _ in range(2)]  # all pixels, the contested
    choice = _Choice(config.num_labels)
    batches = PreparedBatches(PreparedRows(rows, processor, config, window_size), batch_size)
    deletion = Deletion(len(rows), config.num_labels, model.device)
    has_maps = False
    with evaluating(model):
        for batch in batches:
            has_maps |= _count_batch(model, batch.on_device_of(model), agreements, choice, deletion)
    batches.finish()
    stages, contested = (_summarize(found, names, config.num_labels) if has_maps else None for found in agreements)
    return {
        "stages": stages,
        "contested_stages": contested,
        "contested_bins": agreements[1].coarse_bins(STAGE_NAMES.index("mean")) if has_maps else None,
        "deletion": deletion.figures(rows) if has_maps else None,
        "choice": {
            "overall": choice.figures(names, None),
            "classes": [choice.figures(names, label) for label in range(config.num_labels)],
        },
        "modalities": names,
        "class_names": config.class_names,
        "window_size": window_size,
        **batches.counts,
    }


def _summarize(agreement: _Agreement, names: Sequence[str], num_labels: int) -> dict[str, dict[str, Any]]:
    everything, each = slice(None), {name: slice(index, index + 1) for index, name in enumerate(names)}

    def by_class(level: int, modalities: slice) -> list[dict[str, Any]]:
        return [agreement.figures(level, modalities, label) for label in range(num_labels)]

    return {
        stage: {
            "overall": agreement.figures(level, everything, None),
            "modalities": {name: agreement.figures(level, one, None) for name, one in each.items()},
            "classes": by_class(level, everything),
            "classes_per_modality": {name: by_class(level, one) for name, one in each.items()},
        }
        for level, stage in enumerate(STAGE_NAMES)
    }


def _count_batch(
    model: PreTrainedModel,
    batch: PreparedRow,
    agreements: Sequence[_Agreement],
    choice: _Choice,
    deletion: Deletion,
) -> bool:
    """Add one batch; return whether the model has robustness maps."""
    labels, covered = batch.labels, batch.covered
    size, num_labels = labels.shape[-2:], model.config.num_labels
    encoding = model.encode(**batch.inputs(model.config))
    subsets = torch.eye(covered.shape[1], dtype=torch.bool, device=labels.device)
    fused = model.fuse_and_decode(encoding, subsets.any(0))
    singles = [predicted_classes(model.fuse_and_decode(encoding, one).logits, size) for one in subsets]
    right = torch.stack(singles, dim=1) == labels.unsqueeze(1)  # (B, M, H, W)
    labelled = labels != model.config.semantic_loss_ignore_index
    counted = covered & (labelled & (covered.sum(1) > 1)).unsqueeze(1)
    contested = (right & counted).any(1) & (~right & counted).any(1)
    maps = [] if fused.robustness is None else [*fused.robustness, mean_over_stages(fused.robustness)]
    strides = (*STAGE_STRIDES, STAGE_STRIDES[0])
    for agreement, pixels in zip(agreements, (counted, counted & contested.unsqueeze(1)), strict=True):
        for modality in range(covered.shape[1] if maps else 0):
            finest = pixels_per_cell(right[:, modality], pixels[:, modality], labels, num_labels)
            for level, (robustness, stride) in enumerate(zip(maps, strides, strict=True)):
                height, width = robustness.shape[-2:]
                cells = (-1, stride // STAGE_STRIDES[0])
                counts = finest.unflatten(2, cells).unflatten(1, cells).sum((2, 4))[:, :height, :width]
                agreement.add(level, modality, robustness[:, modality], counts)
    shares = list(map(repeat_to_pixels, maps, strides, [size] * len(maps)))
    predicted = predicted_classes(fused.logits, size)
    choice.add(right, counted, contested, labels, predicted == labels, shares)
    if maps:
        deletion.add(model, encoding, batch, predicted, shares[-1])
    return bool(maps)


def mean_over_stages(robustness: Sequence[torch.Tensor]) -> torch.Tensor:
    """Average the stages' maps (B, M, h, w) on the finest one's cells, without interpolation."""
    size = tuple(robustness[0].shape[-2:])
    maps = [
        repeat_to_pixels(stage, stride // LOGITS_STRIDE, size)
        for stage, stride in zip(robustness, STAGE_STRIDES, strict=True)
    ]
    return torch.stack(maps).mean(0)


def pixels_per_cell(right: torch.Tensor, counted: torch.Tensor, labels: torch.Tensor, num_labels: int) -> torch.Tensor:
    """Count the pixels (B, H, W) of each class in the cells of stride 4, those right and those wrong apart.

    int64, (B, rows, columns, K, 2), of the image padded to multiples of 32 pixels; right ones first.
    """
    finest, coarsest = STAGE_STRIDES[0], STAGE_STRIDES[-1]
    batch_size, height, width = labels.shape
    rows, columns = (-(-side // coarsest) * coarsest // finest for side in (height, width))
    device = labels.device
    batch = torch.arange(batch_size, device=device)[:, None, None]
    row = torch.arange(height, device=device)[:, None] // finest
    column = torch.arange(width, device=device) // finest
    cell = (batch * rows + row) * columns + column  # (B, H, W)
    index = ((cell * num_labels + labels) * 2 + (~right).long())[counted]
    counts = torch.bincount(index, minlength=batch_size * rows * columns * num_labels * 2)
    return counts.view(batch_size, rows, columns, num_labels, 2)
