"""Semantic-guided fusion (SGF, arXiv:2603.02505) of one stage: MP, CSF, prototypes, SP and RP.

In the comments: B rows, M modalities, P present (row, modality) pairs, K classes, C channels and N = h * w positions
of a stage, A heads of D channels. Tokens are channels last, (..., N, C).
"""

from dataclasses import dataclass

import torch
from torch import nn

from .configuration_sgma import SgmaConfig


PROJECTOR_KERNEL_SIZES = (11, 7, 3)
# Added to the scores of what is absent: its softmax weight is exactly 0 beside anything present, and a position
# without any modality stays finite, which -inf would not.
ABSENT_SCORE = -1e9


class SgmaLinear(nn.Linear):
    """A linear map whose initial weights keep the variance of its input, since SGF has no norms."""


class SgmaIdentityLinear(nn.Linear):
    """A linear map that starts as the identity."""


class SgmaConv2d(nn.Conv2d):
    """A convolution whose initial weights keep the variance of its input up to a constant."""


def to_tokens(maps: torch.Tensor) -> torch.Tensor:
    """(P, C, h, w) -> (P, N, C), channels last in memory."""
    return maps.flatten(2).transpose(1, 2)


def to_maps(tokens: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """(B, N, C) -> (B, C, h, w), a view."""
    return tokens.transpose(1, 2).unflatten(2, size)


def _softmax(scores: torch.Tensor, dim: int) -> torch.Tensor:
    """Softmax in float32 at least, also under autocast."""
    return torch.softmax(scores, dim, dtype=torch.promote_types(scores.dtype, torch.float32))


class SgmaDepthwiseConvolution(torch.autograd.Function):
    """A depthwise convolution that keeps the size, and whose gradients are depthwise convolutions as well.

    The gradient of the kernels correlates the features with the gradient of the output: a convolution with the latter
    as kernels, one group for each row and channel. On a CPU that is faster than torch's own, by far where the map is
    small.
    """

    @staticmethod
    def forward(features: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
        """Features (P, C, h, w) and kernels (C, 1, size, size), size odd, -> (P, C, h, w)."""
        return nn.functional.conv2d(features, kernel, padding=kernel.shape[-1] // 2, groups=kernel.shape[0])

    @staticmethod
    def setup_context(ctx, inputs: tuple[torch.Tensor, torch.Tensor], output: torch.Tensor) -> None:
        """Keep the inputs."""
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Gradients of the features and the kernels."""
        features, kernel = (saved.to(gradient.dtype) for saved in ctx.saved_tensors)  # another one under autocast
        pairs, channels, *size = features.shape
        of_features = of_kernel = None
        if ctx.needs_input_grad[0]:
            of_features = SgmaDepthwiseConvolution.forward(gradient, kernel.flip(-2, -1))
        if ctx.needs_input_grad[1]:
            groups = pairs * channels
            by_group = features.reshape(1, groups, *size), gradient.reshape(groups, 1, *size)
            of_kernel = nn.functional.conv2d(*by_group, padding=kernel.shape[-1] // 2, groups=groups)
            of_kernel = of_kernel.view(pairs, *kernel.shape).sum(0)
        return of_features, of_kernel


class SgmaPointwiseProjector(nn.Module):
    """A 1x1 convolution: what is left of MP without its context, for the baseline `fusion="pointwise_mean"`."""

    def __init__(self, channels: int):
        super().__init__()
        self.pointwise = SgmaLinear(channels, channels, bias=False)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """One modality's features (pairs, channels, height, width) -> tokens (pairs, positions, channels)."""
        return self.pointwise(to_tokens(features))


class SgmaModalityProjector(nn.Module):
    """MP: three depthwise convolutions (11x11, 7x7, 3x3) in parallel, summed, then a 1x1 convolution.

    One for each modality and stage; it carries a modality's features into the common semantic space. No biases and no
    norms: with them left out the parameters add up to the paper's count. The paper does not say how the three
    branches are joined; the count leaves only a sum (a concatenation would need 3 C^2 weights).
    """

    def __init__(self, channels: int):
        super().__init__()
        self.depthwise = nn.ModuleList(
            SgmaConv2d(channels, channels, size, padding=size // 2, groups=channels, bias=False)
            for size in PROJECTOR_KERNEL_SIZES
        )
        self.pointwise = SgmaLinear(channels, channels, bias=False)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """One modality's features (pairs, channels, height, width) -> tokens (pairs, positions, channels)."""
        # Nothing stands between the branches and their sum, so one convolution with the summed kernels is the same.
        largest = PROJECTOR_KERNEL_SIZES[0]
        kernel = sum(
            nn.functional.pad(conv.weight, [(largest - conv.kernel_size[0]) // 2] * 4) for conv in self.depthwise
        )
        if self.training and features.device.type == "cpu":  # where it is measured to be faster
            features = SgmaDepthwiseConvolution.apply(features, kernel)
        else:
            features = nn.functional.conv2d(features, kernel, padding=largest // 2, groups=kernel.shape[0])
        return self.pointwise(to_tokens(features))


class SgmaSemanticFilter(nn.Module):
    """CSF: a 1x1 convolution, shared by the modalities, that scores how well a position stands for each class."""

    def __init__(self, channels: int, num_labels: int):
        super().__init__()
        self.classifier = SgmaLinear(channels, num_labels, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """(..., channels) -> (..., num_labels)."""
        return self.classifier(tokens)


def class_prototypes(logits: torch.Tensor, tokens: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Average a row's features into one global prototype per class.

    The paper sums over modalities and positions; the softmax over both, which makes it an average whatever the size
    of the image and the number of modalities, is ours.

    Args:
        logits: Scores of the semantic filter, (batch_size, num_modalities, positions, num_labels).
        tokens: Projected features, (batch_size, num_modalities, positions, channels).
        bias: Logarithm of the covered fraction of every cell, (batch_size, num_modalities, positions), or None.

    Returns:
        Prototypes of shape (batch_size, num_labels, channels).
    """
    logits = logits.flatten(1, 2)  # (B, M * N, K)
    if bias is not None:
        logits = logits + bias.expand(tokens.shape[:3]).flatten(1, 2).unsqueeze(-1)
    weights = _softmax(logits, dim=1).to(tokens.dtype)
    prototypes = weights.transpose(1, 2) @ tokens.flatten(1, 2)  # (B, K, C)
    if bias is not None:  # a row without anything has the zero vector, not a mean over what is absent
        covered = (bias > ABSENT_SCORE).flatten(1).any(1)
        prototypes = torch.where(covered[:, None, None], prototypes, 0)
    return prototypes


class SgmaPerceptron(nn.Module):
    """The four projections of multi-head attention, without biases.

    Values and output start as the identity (ours), so that a new model averages what its projectors make, each
    modality weighted by its robustness; from random maps SGF learns more slowly than from that mean.
    """

    def __init__(self, channels: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.query = SgmaLinear(channels, channels, bias=False)
        self.key = SgmaLinear(channels, channels, bias=False)
        self.value = SgmaIdentityLinear(channels, channels, bias=False)
        self.output = SgmaIdentityLinear(channels, channels, bias=False)


class SgmaSpatialPerceptron(SgmaPerceptron):
    """SP: multi-head attention at every position, from the class prototypes to the modalities there.

    Its mean over the classes, the semantic reference feature, is all that is used of its output. Values and output
    projection are linear, so the attention weights can be averaged over the classes first, and no tensor of
    positions x classes x channels is needed. Likewise the keys are never built: their projection is applied to the
    few queries instead of the many positions. Both are exact.
    """

    def forward(
        self, prototypes: torch.Tensor, tokens: torch.Tensor, values: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        """Compute the semantic reference feature.

        Args:
            prototypes: Queries, (batch_size, num_labels, channels).
            tokens: Projected features, (batch_size, num_modalities, positions, channels).
            values: `self.value(tokens)`.
            bias: Added to the scores, (batch_size, num_modalities, positions), or None.

        Returns:
            Reference feature of shape (batch_size, positions, channels).
        """
        _, num_modalities, positions, channels = tokens.shape
        head_dim = channels // self.num_heads
        query = self.query(prototypes).unflatten(2, (self.num_heads, head_dim)) * head_dim**-0.5  # (B, K, A, D)
        key_weight = self.key.weight.unflatten(0, (self.num_heads, head_dim))  # (A, D, C)
        query = torch.einsum("bkad,adc->bcak", query, key_weight).flatten(2)  # (B, C, A * K)
        scores = tokens.flatten(1, 2) @ query  # (B, M * N, A * K)
        scores = scores.unflatten(1, (num_modalities, positions))
        if bias is not None:
            scores = scores + bias.unsqueeze(-1)
        weights = _softmax(scores, dim=1).unflatten(3, (self.num_heads, -1)).mean(-1)  # (B, M, N, A)
        return self.output(_weighted_sum(weights, values))


class SgmaRobustnessPerceptron(SgmaPerceptron):
    """RP: multi-head attention at every position, from the semantic reference feature to the modalities there.

    Its weights are the robustness maps, its output the fused map.
    """

    def forward(
        self, reference: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, bias: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Weigh and fuse the modalities.

        Args:
            reference: Semantic reference feature, (batch_size, positions, channels).
            keys: `self.key(tokens)`, (batch_size, num_modalities, positions, channels).
            values: `self.value(tokens)`, of the same shape.
            bias: Added to the scores, (batch_size, num_modalities, positions), or None.

        Returns:
            The fused tokens, (batch_size, positions, channels), and the robustness, float32 in [0, 1], of shape
            (batch_size, num_modalities, positions).
        """
        head_dim = keys.shape[-1] // self.num_heads
        query = (self.query(reference) * head_dim**-0.5).unflatten(2, (self.num_heads, head_dim))  # (B, N, A, D)
        keys = keys.unflatten(3, (self.num_heads, head_dim)).unbind(1)
        # Products of matrices would be tiny here, D x 1 at every position and head, and slow in the backward pass.
        scores = torch.stack([(query * key).sum(-1) for key in keys], dim=1)  # (B, M, N, A)
        if bias is not None:
            scores = scores + bias.unsqueeze(-1)
        weights = _softmax(scores, dim=1)
        if bias is not None:  # where nothing covers, the softmax is uniform over absent modalities
            weights = weights * (bias > ABSENT_SCORE).unsqueeze(-1)
        return self.output(_weighted_sum(weights, values)), weights.mean(-1)


def _weighted_sum(weights: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Sum values (B, M, N, A * D) over the modalities with weights per head, (B, M, N, A) -> (B, N, A * D)."""
    values = values.unflatten(3, (weights.shape[3], -1)).unbind(1)
    weights = weights.to(values[0].dtype).unsqueeze(-1).unbind(1)
    total = weights[0] * values[0]
    for weight, value in zip(weights[1:], values[1:], strict=True):  # never holds all the products at once
        total = torch.addcmul(total, weight, value)
    return total.flatten(2)


@dataclass
class SgmaStageTokens:
    """What one stage keeps of every present pair, packed: (pairs, positions, channels).

    `tokens` alone with mean fusion. `keys`, `reference_values` and `class_logits` are None if no row has two
    modalities to compare.
    """

    size: tuple[int, int]
    tokens: torch.Tensor
    values: torch.Tensor | None = None
    keys: torch.Tensor | None = None
    reference_values: torch.Tensor | None = None
    class_logits: torch.Tensor | None = None


class SgmaPairs:
    """Where the pairs of a batch stand in the packed order: one modality after the other, rows ascending in each.

    Args:
        position: Index of every (row, modality) among the packed pairs, int64, (batch_size, M'). An absent pair
            points to another pair of its row: its weight is 0, and a row never reads another row.
        dense_slices: The modalities, if every row has all of them: then a view does instead of a gather.
    """

    def __init__(self, position: torch.Tensor, dense_slices: list[int] | None):
        self.position = position
        self.dense_slices = dense_slices

    def unpack(self, packed: torch.Tensor) -> torch.Tensor:
        """(pairs, positions, channels) -> (batch_size, M', positions, channels)."""
        if self.dense_slices is None:
            return packed[self.position]
        by_modality = packed.unflatten(0, (-1, self.position.shape[0]))  # (M, B, N, C)
        if len(self.dense_slices) < by_modality.shape[0]:
            by_modality = by_modality[self.dense_slices]
        return by_modality.transpose(0, 1)


class SgmaSemanticGuidedFusion(nn.Module):
    """SGF of one stage: MP per modality, then CSF, prototypes, SP and RP.

    With `fusion="projector_mean"` only MP is there, with `"pointwise_mean"` its 1x1 convolutions, with `"mean"`
    nothing.
    """

    def __init__(self, config: SgmaConfig, channels: int):
        super().__init__()
        self.fusion = config.fusion
        if self.fusion != "mean":
            projector = SgmaPointwiseProjector if self.fusion == "pointwise_mean" else SgmaModalityProjector
            self.projectors = nn.ModuleList(projector(channels) for _ in config.modalities)
        if self.fusion == "sgf":
            self.semantic_filter = SgmaSemanticFilter(channels, config.num_labels)
            self.spatial_perceptron = SgmaSpatialPerceptron(channels, config.num_attention_heads)
            self.robustness_perceptron = SgmaRobustnessPerceptron(channels, config.num_attention_heads)

    def project(self, features: torch.Tensor, pairs_per_modality: list[int], with_context: bool) -> SgmaStageTokens:
        """Do all that concerns single pairs, so that any subset of the modalities can be fused from it.

        Args:
            features: The encoder's maps of the present pairs, one modality after the other,
                (pairs, channels, height, width).
            pairs_per_modality: How many of the pairs belong to each modality.
            with_context: False if no two modalities will ever be compared. One modality alone has weight 1, so keys,
                reference values and class scores are not needed.
        """
        size = (features.shape[-2], features.shape[-1])
        if self.fusion == "mean":
            return SgmaStageTokens(size, to_tokens(features))
        parts = zip(self.projectors, features.split(pairs_per_modality), strict=True)
        tokens = torch.cat([projector(part) for projector, part in parts if part.shape[0]])  # (P, N, C)
        if self.fusion != "sgf":
            return SgmaStageTokens(size, tokens)
        stage = SgmaStageTokens(size, tokens, values=self.robustness_perceptron.value(tokens))
        if with_context:
            stage.keys = self.robustness_perceptron.key(tokens)
            stage.reference_values = self.spatial_perceptron.value(tokens)
            stage.class_logits = self.semantic_filter(tokens)
        return stage

    def fuse(
        self, stage: SgmaStageTokens, pairs: SgmaPairs, bias: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """Fuse two or more modalities.

        Args:
            stage: The stage's tokens.
            pairs: Which pairs to fuse, M' modalities.
            bias: Logarithm of the covered fraction, (batch_size, M', positions); None if all cover everything.

        Returns:
            Fused tokens (batch_size, positions, channels), robustness (batch_size, M', positions) and prototypes
            (batch_size, num_labels, channels); the latter two are None with mean fusion.
        """
        tokens = pairs.unpack(stage.tokens)  # (B, M', N, C)
        if self.fusion != "sgf":
            if bias is None:
                return tokens.mean(1), None, None
            weights = _softmax(bias, dim=1) * (bias > ABSENT_SCORE)  # the covered fractions, normalised
            return _weighted_sum(weights.unsqueeze(-1), tokens), None, None
        prototypes = class_prototypes(pairs.unpack(stage.class_logits), tokens, bias)
        reference = self.spatial_perceptron(prototypes, tokens, pairs.unpack(stage.reference_values), bias)
        fused, robustness = self.robustness_perceptron(
            reference, pairs.unpack(stage.keys), pairs.unpack(stage.values), bias
        )
        return fused, robustness, prototypes

    def fuse_single(self, stage: SgmaStageTokens, index: torch.Tensor, covered: torch.Tensor | None) -> torch.Tensor:
        """Pass one modality per row alone: what `fuse` gives for it, since its softmax weight is 1.

        Args:
            stage: The stage's tokens.
            index: The pair of each row, (batch_size,).
            covered: False where that modality does not cover the cell, (batch_size, positions), or None.

        Returns:
            Tokens of shape (batch_size, positions, channels).
        """

        def pick(packed: torch.Tensor) -> torch.Tensor:
            picked = packed[index]
            return picked if covered is None else torch.where(covered.unsqueeze(-1), picked, 0)

        if stage.values is None:
            return pick(stage.tokens)
        return self.robustness_perceptron.output(pick(stage.values))
