"""What training adds: the losses of a prediction, and modality-aware sampling (MAS, arXiv:2603.02505).

A prediction is trained by the cross-entropy of its pixels (paper) and a Dice term (ours; 0 leaves it out).
"""

from typing import Any

import torch
from torch import nn

from .cells_sgma import STAGE_STRIDES, pixel_logits
from .configuration_sgma import SgmaConfig
from .encoding_sgma import SgmaEncoding
from .layers_sgma import ABSENT_SCORE, at_least_float32


MIN_ROBUSTNESS = 1e-6
RowLosses = tuple[torch.Tensor, torch.Tensor]  # sums of the rows, and their numbers of valid pixels


def row_losses(config: SgmaConfig, logits: torch.Tensor, labels: torch.Tensor) -> RowLosses:
    """Sum each row's losses over its valid pixels; nothing depends on the other rows of a batch.

    Sums can be added over batches and processes and divided by all their pixels, so accumulated gradients are those
    of the large batch. For that a row's Dice loss, which is one number, counts once for each of its valid pixels.
    Logits are as `pixel_logits` takes them, labels int64 (batch_size, height, width); class weights count in the
    cross-entropy alone.
    Sums are float32 at least, both results (batch_size,).
    """
    logits = pixel_logits(logits, labels.shape[-2:])
    ignore_index = config.semantic_loss_ignore_index
    weights = config.class_weights
    if weights is not None:  # copied without waiting for the device
        weights = torch.tensor(weights, dtype=logits.dtype).to(logits.device, non_blocking=True)
    sums = nn.functional.cross_entropy(logits, labels, weights, ignore_index=ignore_index, reduction="none")
    sums, counts = sums.flatten(1).sum(1), (labels != ignore_index).flatten(1).sum(1)
    if config.dice_loss_weight:
        sums = sums + config.dice_loss_weight * counts * _dice_losses(logits, labels, ignore_index)
    return sums, counts


def weigh_losses(
    config: SgmaConfig, losses: dict[str, RowLosses], num_items_in_batch: torch.Tensor | int | None
) -> dict[str, Any]:
    """Weigh and add the terms of the loss, by their names in the configuration, as fields of the model's output.

    `"sgf"` is the fused prediction's, and always there. All are divided by its pixels: where a drawn modality covers
    less, its term weighs less (ours; the paper has no partial coverage), and the divisor is known before anything is
    drawn.
    """
    sums, counts = losses["sgf"]
    valid = counts.sum().clamp_min(1)
    divisor = valid if num_items_in_batch is None else num_items_in_batch
    weighted = [getattr(config, f"{name}_loss_weight") * sums.sum() / divisor for name, (sums, _) in losses.items()]
    fields = {
        "loss": sum(weighted[1:], weighted[0]),
        "loss_dict": {f"loss_{name}": sums.detach().sum() / valid for name, (sums, _) in losses.items()},
        "row_losses": sums.detach() / counts,  # 0 / 0 is NaN, as documented
    }
    if "mas" in losses:
        sums, counts = losses["mas"]
        fields["sampled_row_losses"] = sums.detach() / counts
    return fields


def filter_losses(encoding: SgmaEncoding, labels: torch.Tensor, counts: torch.Tensor, ignore_index: int) -> RowLosses:
    """Supervise CSF's scores by the labels, as every modality alone has them (ours; the paper does not).

    The cross-entropy of a cell is that of the label at its centre; a row's loss is the mean over the cells of all
    stages that a present modality covers and the label says something of, and counts once for each of its valid
    pixels, `counts`, as `row_losses` does with the Dice loss. Labels are int64 (batch_size, height, width).
    """
    pairs = encoding.pairs(encoding.host_observed)
    biases = encoding.attention_biases(encoding.observed, pairs.active)
    sums, cells = torch.zeros_like(counts, dtype=torch.float32), torch.zeros_like(counts)
    for stage, bias, stride in zip(encoding.stages, biases, STAGE_STRIDES, strict=True):
        if stage.class_logits is None:  # no row has two modalities
            continue
        padding = [size * stride - side for size, side in zip(stage.size, labels.shape[-2:], strict=True)]
        centres = nn.functional.pad(labels, (0, padding[1], 0, padding[0]), value=ignore_index)
        centres = centres[:, stride // 2 :: stride, stride // 2 :: stride].flatten(1)  # (B, N)
        targets = torch.where(bias > ABSENT_SCORE, centres, ignore_index)  # (M', B, N)
        logits = at_least_float32(pairs.unpack(stage.class_logits, stage.tokens.shape[1])).flatten(0, 2)
        losses = nn.functional.cross_entropy(logits, targets.flatten(), ignore_index=ignore_index, reduction="none")
        sums = sums + losses.view_as(targets).sum((0, 2))
        cells = cells + (targets != ignore_index).sum((0, 2))
    return sums / cells.clamp_min(1) * counts, counts


def _dice_losses(logits: torch.Tensor, labels: torch.Tensor, ignore_index: int) -> torch.Tensor:
    """One soft Dice loss per row, the mean over the classes that the row has; 0 for a row without any, (batch_size,).

    1 - (2 I + 1) / (S + n + 1) for a class with n pixels, S the sum of its probability over all valid pixels and I
    over its own: the 1 is one pixel, and keeps a class of few pixels from jumping.
    """
    valid = (labels != ignore_index).flatten(1)
    classes = torch.where(valid, labels.flatten(1), 0)
    probabilities = torch.where(valid.unsqueeze(1), logits.flatten(2).softmax(1), 0)  # (B, K, pixels)
    predicted = probabilities.sum(2)
    own = probabilities.gather(1, classes.unsqueeze(1)).squeeze(1)  # 0 where the pixel is not valid
    hit = torch.zeros_like(predicted).scatter_add(1, classes, own)
    pixels = torch.zeros_like(predicted).scatter_add(1, classes, valid.to(predicted.dtype))
    losses = 1 - (2 * hit + 1) / (predicted + pixels + 1)
    there = pixels > 0
    return torch.where(there, losses, 0).sum(1) / there.sum(1).clamp_min(1)


def modality_aware_sampling(
    encoding: SgmaEncoding,
    robustness: tuple[torch.Tensor, ...] | None,
    *,
    exponent: float = 1.0,
    noise: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """MAS: draw for every row one of its modalities to be trained alone, the fragile more often.

    Its prediction, from [`SemanticGuidedFusion.fuse_single`], is supervised beside that of all modalities. No gradient
    flows through the draw.

    Args:
        encoding: What [`SemanticGuidedFusion.project`] returned.
        robustness: What its `fuse` returned for all modalities; None, of a fusion without it, draws uniformly.
        exponent: Power of the probabilities: 1 as in the paper, 0 uniformly over the modalities present.
        noise: Numbers in [0, 1) that decide the draw, float, (batch_size,). None: from the global generator.

    Returns:
        Index of the modality of each row, int64, (batch_size,), 0 for a row without any; and the probabilities,
        float32, (batch_size, num_modalities), see Sec. III of arXiv:2603.02505.
    """
    probabilities = modality_sampling_probabilities(
        robustness, encoding.cropped_fractions(), encoding.present, exponent
    )
    if noise is None:
        noise = torch.rand(probabilities.shape[0], device=probabilities.device)
    return sample_modality(probabilities, noise.to(probabilities.device)), probabilities


@torch.no_grad()
def modality_sampling_probabilities(
    robustness: tuple[torch.Tensor, ...] | None,
    fractions: list[torch.Tensor] | None,
    present: torch.Tensor,
    exponent: float = 1.0,
) -> torch.Tensor:
    """MAS: the probability of every modality to be trained alone, larger for the fragile.

    At every position the inverse robustness is normalised over the modalities there, and averaged over positions
    (paper). The mean over the four stages is ours. So is partial coverage: only positions where at least two
    modalities are count, for each modality those that it covers; one without such a position counts 1 / present.
    Without robustness (mean fusion) every present modality has the same probability. Robustness maps and covered
    fractions (None: all is covered) are those of the stages, cropped. Ours, too, is `exponent`, a power before the
    probabilities are normalised: 1 is the paper's draw, 0 uniform over the modalities present.

    Returns float32 (batch_size, num_modalities), 0 for absent ones; rows sum to 1, or to 0 where nothing is present.
    """
    uniform = present.float() / present.sum(1, keepdim=True).clamp_min(1)
    if robustness is None:
        return uniform
    total = torch.zeros_like(uniform)
    for level, maps in enumerate(robustness):
        covered = present[..., None, None].expand_as(maps)
        if fractions is not None:
            covered = covered & (fractions[level] > 0)
        inverse = torch.where(covered, 1 / maps.float().clamp_min(MIN_ROBUSTNESS), 0)
        share = inverse / inverse.sum(1, keepdim=True).clamp_min(1)  # an inverse is never below 1
        contested = covered & (covered.sum(1, keepdim=True) > 1)
        count = contested.flatten(2).sum(2)
        mean = torch.where(contested, share, 0).flatten(2).sum(2) / count.clamp_min(1)
        score = torch.where(count > 0, mean, uniform)
        total += score / score.sum(1, keepdim=True).clamp_min(MIN_ROBUSTNESS)
    powers = torch.where(present, (total / len(robustness)) ** exponent, 0)
    return powers / powers.sum(1, keepdim=True).clamp_min(MIN_ROBUSTNESS)


def sample_modality(probabilities: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Draw a modality per row by inverting the cumulative distribution; noise is uniform in [0, 1), (batch_size,).

    Probabilities are (batch_size, num_modalities), those of 0 are never drawn. Index 0 for a row without any modality.
    """
    cumulative = probabilities.cumsum(1)
    drawn = (cumulative <= noise.to(cumulative).unsqueeze(1) * cumulative[:, -1:]).sum(1)
    # Rounding may carry a number just below 1 past the end.
    last = (probabilities > 0).int().cumsum(1).argmax(1)
    return torch.minimum(drawn, last)


@torch.no_grad()
def sample_subset(probabilities: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Draw for every row some of its modalities to be trained together, the fragile more often (ours).

    Of three or more that are there two at least, and not all: their number is drawn uniformly, and they one after the
    other by their probabilities, without replacement (Efraimidis and Spirakis, 2006). Of two or one it is one alone.

    Args:
        probabilities: As of [`modality_sampling_probabilities`], float, (batch_size, num_modalities).
        noise: The numbers that decided the single modality, in [0, 1), float, (batch_size,); others are derived.

    Returns:
        Bool, (batch_size, num_modalities); nothing of a row that has nothing.
    """
    modalities, device = probabilities.shape[1], probabilities.device
    # Multiplied by an odd number, the 2**24 values of the noise change places: as uniform, and unlike it.
    whole = (noise.to(device).double() * 2**24).long().unsqueeze(1)
    factors = (torch.arange(1, modalities + 2, device=device) * 10368890) ** 2 + 1
    uniform = (whole * (factors % 2**24) % 2**24 + 0.5) / 2**24
    number, uniform = uniform[:, 0], uniform[:, 1:]
    count = (probabilities > 0).sum(1)
    chosen = torch.where(count > 2, 2 + (number * (count - 2)).long(), count.clamp_max(1)).unsqueeze(1)
    keys = uniform.log() / probabilities  # the largest ones win; -inf for what is absent
    return (keys.argsort(1, descending=True).argsort(1) < chosen) & (probabilities > 0)
