"""SGMA written down plainly, in float64, to hold the fast implementation against.

Nothing is packed, cached or shortened here: every row and modality is handled by itself, keys, queries and values are
built for everything, the attention output of every class is computed and then averaged, a modality alone goes through
all of SGF like any set of modalities, and a gap is a weight of zero instead of a logarithm in a softmax. Only the
backbone is the model's own. Symbols as in arXiv:2603.02505: N positions, K classes, C channels, M modalities.
"""

import math
from dataclasses import dataclass, field

import torch


STRIDES = (4, 8, 16, 32)


@dataclass
class ReferenceOutput:
    """Results for a batch; `robustness` and `prototypes` are lists over the stages."""

    logits: torch.Tensor
    coverage: torch.Tensor
    robustness: list[torch.Tensor] = field(default_factory=list)
    prototypes: list[torch.Tensor] = field(default_factory=list)
    loss: torch.Tensor | None = None
    loss_sgf: torch.Tensor | None = None
    loss_mas: torch.Tensor | None = None
    probabilities: torch.Tensor | None = None
    sampled: list[int] | None = None


def reference_forward(model, pixel_values, modality_mask=None, labels=None, sampling_noise=None) -> ReferenceOutput:
    """What the model should return, for float64 inputs and a float64 model.

    Args:
        model: SgmaForSemanticSegmentation; its mode decides whether the sampling branch takes part in the loss.
        pixel_values: Shape (B, sum of channels, H, W).
        modality_mask: None, (B, M) or (B, M, H, W), bool.
        labels: Shape (B, H, W), or None.
        sampling_noise: One number in [0, 1) per row.
    """
    config = model.config
    weights = model.state_dict(keep_vars=True)
    batch_size, _, height, width = pixel_values.shape
    covered = torch.ones(batch_size, config.num_modalities, height, width, dtype=torch.bool)
    if modality_mask is not None:
        covered &= modality_mask if modality_mask.ndim == 4 else modality_mask[:, :, None, None]
    rows = []
    for row in range(batch_size):
        images = torch.split(pixel_values[row], config.modality_channels)
        rows.append(encode_row(model, weights, images, covered[row]))
    fused = [fuse_row(config, weights, *encoded) for encoded in rows]
    logits = torch.stack([decode_row(config, weights, maps, (height, width)) for maps, _, _ in fused])
    output = ReferenceOutput(logits, covered.any(1))
    if config.fusion == "sgf":
        for level, stride in enumerate(STRIDES):
            cells = (math.ceil(height / stride), math.ceil(width / stride))
            output.robustness.append(torch.stack([maps[level][:, : cells[0], : cells[1]] for _, maps, _ in fused]))
            output.prototypes.append(torch.stack([vectors[level] for _, _, vectors in fused]))
    if labels is not None:
        # Nothing is learnt where nothing is seen.
        labels = torch.where(output.coverage, labels, config.semantic_loss_ignore_index)
        output.loss_sgf = pixel_loss(config, logits, labels)
        output.loss = config.sgf_loss_weight * output.loss_sgf
        if model.training and config.mas_loss_weight:
            add_sampling_branch(output, config, weights, rows, covered, labels, sampling_noise)
    return output


def encode_row(model, weights, images, covered):
    """Features and covered fractions of one row, {modality: four maps} without the absent, and their sizes."""
    height, width = covered.shape[1:]
    padded_height, padded_width = math.ceil(height / 32) * 32, math.ceil(width / 32) * 32
    sizes = [(padded_height // stride, padded_width // stride) for stride in STRIDES]
    encoder_channels = model.config.backbone_config.num_channels
    features, fractions = {}, {}
    for m, image in enumerate(images):
        if not covered[m].any():
            continue
        canvas = torch.zeros(image.shape[0], padded_height, padded_width, dtype=torch.float64)
        canvas[:, :height, :width] = torch.where(covered[m], image, 0)
        there = torch.zeros(padded_height, padded_width, dtype=torch.float64)
        there[:height, :width] = covered[m].double()
        canvas = enter_encoder(weights, m, canvas, encoder_channels)
        features[m] = [maps[0] for maps in model.sgma.backbone(canvas[None]).feature_maps]
        fractions[m] = [cell_means(there, stride) for stride in STRIDES]
    return features, fractions, sizes


def enter_encoder(weights, m, bands, encoder_channels):
    """Repeat or project the bands of a modality, and add what its adapter says of every pixel."""
    name = f"sgma.stems.{m}."
    if len(bands) == 1:
        entered = bands.repeat(encoder_channels, 1, 1)
    elif len(bands) == encoder_channels:
        entered = bands
    else:
        entered = torch.einsum("oc,chw->ohw", weights[name + "projection.weight"][:, :, 0, 0], bands)
    if name + "adapter.hidden.weight" not in weights:
        return entered
    hidden = torch.einsum("oc,chw->ohw", weights[name + "adapter.hidden.weight"][:, :, 0, 0], bands)
    hidden = hidden + weights[name + "adapter.hidden.bias"][:, None, None]
    hidden = hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5))
    added = torch.einsum("oc,chw->ohw", weights[name + "adapter.output.weight"][:, :, 0, 0], hidden)
    return entered + added + weights[name + "adapter.output.bias"][:, None, None]


def cell_means(pixels, stride):
    cells = torch.empty(pixels.shape[0] // stride, pixels.shape[1] // stride, dtype=torch.float64)
    for i in range(cells.shape[0]):
        for j in range(cells.shape[1]):
            cells[i, j] = pixels[i * stride : (i + 1) * stride, j * stride : (j + 1) * stride].mean()
    return cells


def fuse_row(config, weights, features, fractions, sizes, only=None):
    """Fuse one row's modalities, or `only` one of them: fused maps, robustness (M, h, w) and prototypes per stage."""
    used = [m for m in features if only is None or m == only]
    fused, robustness, prototypes = [], [], []
    for level in range(len(STRIDES)):
        size, channels = sizes[level], weights[f"decode_head.linears.{level}.weight"].shape[1]
        maps, shares = torch.zeros(size[0] * size[1], channels, dtype=torch.float64), {}
        vectors = torch.zeros(config.num_labels, channels, dtype=torch.float64)
        if used:
            covered = {m: fractions[m][level].flatten() for m in used}  # (N,)
            tokens = {m: project(config, weights, level, m, features[m][level]) for m in used}  # (N, C)
            maps, shares, vectors = fuse_stage(config, weights, level, tokens, covered)
            if config.fusion == "sgf" and config.fusion_residual:
                maps = maps + sum(shares[m][:, None] * features[m][level].flatten(1).t() for m in used)
        nowhere = torch.zeros(size[0] * size[1], dtype=torch.float64)
        fused.append(maps.t().unflatten(1, size))
        robustness.append(
            torch.stack([shares.get(m, nowhere).unflatten(0, size) for m in range(config.num_modalities)])
        )
        prototypes.append(vectors)
    return fused, robustness, prototypes


def project(config, weights, level, m, maps):
    """MP: three depthwise convolutions in parallel, summed, then a 1x1 convolution; (C, h, w) -> (N, C)."""
    if config.fusion == "mean":
        return maps.flatten(1).t()
    prefix = f"sgma.fusion_stages.{level}.projectors.{m}"
    channels = maps.shape[0]
    if config.fusion == "pointwise_mean":
        return maps.flatten(1).t() @ weights[f"{prefix}.pointwise.weight"].t()
    summed = torch.zeros_like(maps)
    for branch, size in enumerate((11, 7, 3)):
        kernel = weights[f"{prefix}.depthwise.{branch}.weight"]
        summed = summed + torch.nn.functional.conv2d(maps[None], kernel, padding=size // 2, groups=channels)[0]
    return summed.flatten(1).t() @ weights[f"{prefix}.pointwise.weight"].t()


def fuse_stage(config, weights, level, tokens, covered):
    """CSF, prototypes, SP and RP of one row: fused (N, C), robustness {modality: (N,)}, prototypes (K, C)."""
    if config.fusion != "sgf":
        shares = attention_shares({m: torch.zeros_like(covered[m]) for m in tokens}, covered)
        return sum(shares[m][:, None] * tokens[m] for m in tokens), shares, None
    prefix = f"sgma.fusion_stages.{level}"
    class_scores = {m: tokens[m] @ weights[f"{prefix}.semantic_filter.classifier.weight"].t() for m in tokens}
    prototypes = class_prototypes(class_scores, tokens, covered)
    # SP: every class asks at every position; the mean over the classes of the full outputs is the reference feature.
    positions = next(iter(covered.values())).shape[0]
    outputs = [
        attend(config, weights, f"{prefix}.spatial_perceptron", vector.expand(positions, -1), tokens, covered)[0]
        for vector in prototypes
    ]
    reference = torch.stack(outputs, dim=1).mean(1)  # (N, K, C) -> (N, C)
    fused, shares = attend(config, weights, f"{prefix}.robustness_perceptron", reference, tokens, covered)
    return fused, shares, prototypes


def class_prototypes(class_scores, tokens, covered):
    """(K, C): for each class the mean of all features, weighted by covered fraction x exp(score)."""
    vectors = []
    for k in range(next(iter(class_scores.values())).shape[1]):
        largest = max(scores[:, k].max() for scores in class_scores.values())
        shares = {m: covered[m] * (class_scores[m][:, k] - largest).exp() for m in tokens}
        total = sum(share.sum() for share in shares.values())
        vectors.append(sum(shares[m] @ tokens[m] for m in tokens) / total)
    return torch.stack(vectors)


def attend(config, weights, prefix, queries, tokens, covered):
    """Multi-head attention at every position over the modalities there.

    Args:
        config: The model's.
        weights: The model's.
        prefix: Name of the perceptron.
        queries: What asks, (N, C).
        tokens: {modality: (N, C)}.
        covered: {modality: (N,)}, fractions.

    Returns:
        Output (N, C) and the weights averaged over heads, {modality: (N,)}.
    """
    query = queries @ weights[f"{prefix}.query.weight"].t()
    keys = {m: x @ weights[f"{prefix}.key.weight"].t() for m, x in tokens.items()}
    values = {m: x @ weights[f"{prefix}.value.weight"].t() for m, x in tokens.items()}
    heads = config.num_attention_heads
    width = query.shape[1] // heads
    mixed, mean_shares = [], dict.fromkeys(tokens, 0)
    for head in range(heads):
        part = slice(head * width, (head + 1) * width)
        scores = {m: (query[:, part] * keys[m][:, part]).sum(1) / math.sqrt(width) for m in tokens}
        shares = attention_shares(scores, covered)
        mixed.append(sum(shares[m][:, None] * values[m][:, part] for m in tokens))
        mean_shares = {m: mean_shares[m] + shares[m] / heads for m in tokens}
    return torch.cat(mixed, dim=1) @ weights[f"{prefix}.output.weight"].t(), mean_shares


def attention_shares(scores, covered):
    """Covered fraction x exp(score), normalised over the modalities at each position; 0 where nothing covers."""
    # of those that cover: beside a far larger score of one that does not, all exponentials would be 0
    largest = torch.stack([torch.where(covered[m] > 0, scores[m], -torch.inf) for m in scores]).amax(0)
    largest = torch.where(largest.isfinite(), largest, 0)
    raw = {m: torch.where(covered[m] > 0, covered[m] * (scores[m] - largest).clamp_max(0).exp(), 0) for m in scores}
    total = sum(raw.values())
    safe = torch.where(total > 0, total, 1)
    return {m: raw[m] / safe for m in raw}


def decode_row(config, weights, fused, image_size):
    """Head: (K, ceil(H / 4), ceil(W / 4))."""
    hidden = 0
    for level, maps in enumerate(fused):
        upsampled = enlarge(maps, 2**level)
        weight, bias = (weights[f"decode_head.linears.{level}.{name}"] for name in ("weight", "bias"))
        hidden = hidden + torch.einsum("oc,chw->hwo", weight, upsampled) + bias
    centred = hidden - hidden.mean(-1, keepdim=True)
    normal = centred / (centred.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()
    normal = normal * weights["decode_head.norm.weight"] + weights["decode_head.norm.bias"]
    logits = normal.clamp_min(0) @ weights["decode_head.classifier.weight"].t()
    logits = logits + weights["decode_head.classifier.bias"]
    return logits.permute(2, 0, 1)[:, : math.ceil(image_size[0] / 4), : math.ceil(image_size[1] / 4)]


def enlarge(maps, factor):
    """Bilinear upsampling by a whole factor, cell centres kept in place; (C, h, w) -> (C, h * factor, w * factor)."""
    tall, wide = (interpolation_matrix(side, factor) for side in maps.shape[1:])
    return torch.einsum("yi,cij,xj->cyx", tall, maps, wide)


def interpolation_matrix(side, factor):
    matrix = torch.zeros(side * factor, side, dtype=torch.float64)
    for target in range(side * factor):
        source = max((target + 0.5) / factor - 0.5, 0)
        lower = min(int(source), side - 1)
        upper = min(lower + 1, side - 1)
        matrix[target, lower] += 1 - (source - lower)
        matrix[target, upper] += source - lower
    return matrix


def pixel_loss(config, logits, labels, divisor=None):
    """Mean over the valid pixels of -log softmax at the label, plus their row's Dice loss; 0 if there is none.

    `divisor` replaces their number.
    """
    height, width = labels.shape[1:]
    terms = []
    for row, label in zip(logits, labels, strict=True):
        scores = enlarge(row, 4)[:, :height, :width]
        log_probabilities = scores - scores.logsumexp(0)
        valid = label != config.semantic_loss_ignore_index
        picked = log_probabilities.gather(0, torch.where(valid, label, 0)[None])[0]
        dice = dice_loss(log_probabilities[:, valid].exp(), label[valid])
        terms.append(config.dice_loss_weight * dice - picked[valid])
    terms = torch.cat(terms)
    return terms.sum() / max(1, len(terms) if divisor is None else divisor)


def dice_loss(probabilities, label):
    """1 - (2 I + 1) / (S + n + 1), averaged over the classes that the valid pixels have; (K, pixels) and (pixels,)."""
    losses = []
    for k in label.unique().tolist():
        own = label == k
        hit, predicted, pixels = probabilities[k, own].sum(), probabilities[k].sum(), int(own.sum())
        losses.append(1 - (2 * hit + 1) / (predicted + pixels + 1))
    return sum(losses) / max(1, len(losses))


def add_sampling_branch(output, config, weights, rows, covered, labels, sampling_noise):
    """MAS: draw one modality per row, pass it alone through everything, supervise it where it covers."""
    probabilities, sampled, logits, visible = [], [], [], []
    for row, (features, fractions, sizes) in enumerate(rows):
        robustness = [maps[row].detach() for maps in output.robustness]
        chances = sampling_probabilities(config, robustness, features, fractions)
        drawn = draw(chances, float(sampling_noise[row]))
        maps, _, _ = fuse_row(config, weights, features, fractions, sizes, only=drawn)
        probabilities.append(chances)
        sampled.append(drawn)
        logits.append(decode_row(config, weights, maps, labels.shape[1:]))
        visible.append(torch.where(covered[row, drawn], labels[row], config.semantic_loss_ignore_index))
    valid = int((labels != config.semantic_loss_ignore_index).sum())
    output.loss_mas = pixel_loss(config, torch.stack(logits), torch.stack(visible), divisor=valid)
    output.loss = output.loss + config.mas_loss_weight * output.loss_mas
    output.probabilities, output.sampled = torch.tensor(probabilities, dtype=torch.float64), sampled


def sampling_probabilities(config, robustness, features, fractions):
    """Inverse robustness, normalised per position, averaged over the contested ones, then over the stages."""
    present = sorted(features)
    total = [0.0] * config.num_modalities
    for level in range(len(STRIDES)):
        sums, counts = dict.fromkeys(present, 0.0), dict.fromkeys(present, 0)
        cells = robustness[level].shape[1:] if robustness else (0, 0)
        for i in range(cells[0]):
            for j in range(cells[1]):
                there = [m for m in present if fractions[m][level][i, j] > 0]
                if len(there) < 2:
                    continue
                inverse = {m: 1 / max(float(robustness[level][m, i, j]), 1e-6) for m in there}
                for m in there:
                    sums[m] += inverse[m] / sum(inverse.values())
                    counts[m] += 1
        scores = {m: sums[m] / counts[m] if counts[m] else 1 / len(present) for m in present}
        for m in present:
            total[m] += scores[m] / sum(scores.values()) / len(STRIDES)
    return total


def draw(probabilities, noise):
    """Index at which the running sum of the probabilities passes `noise`; 0 for a row without anything."""
    running = 0.0
    for m, probability in enumerate(probabilities):
        running += probability
        if running > noise * sum(probabilities):
            return m
    return max((m for m, probability in enumerate(probabilities) if probability > 0), default=0)
