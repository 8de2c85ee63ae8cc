"""How the modalities are fused at one stage: semantic-guided (SGF, arXiv:2603.02505), and the means it is measured by.

A fusion is a class with the methods of [`SgmaMeanFusion`], under its name in `FUSIONS`.
In the comments: B rows, M modalities, N positions, C channels. Tokens are channels last; modalities come before rows.
"""

from dataclasses import dataclass

import torch
from torch import nn

from .configuration_sgma import SgmaConfig
from .layers_sgma import (
    ABSENT_SCORE,
    SgmaModalityProjector,
    SgmaPointwiseProjector,
    SgmaRobustnessPerceptron,
    SgmaSemanticFilter,
    SgmaSpatialPerceptron,
    SgmaTokens,
    class_prototypes,
    weighted_sum,
)


@dataclass
class SgmaStageTokens:
    """What one stage keeps of every present pair, packed.

    `tokens` alone with mean fusion. What stands behind `values` is None if no row has two modalities to compare.
    """

    size: tuple[int, int]
    tokens: torch.Tensor  # (pairs, positions, channels)
    # Flat, (pairs * positions, ...), as a linear layer takes and gives them at least cost:
    values: torch.Tensor | None = None
    keys: torch.Tensor | None = None
    reference_values: torch.Tensor | None = None
    class_logits: torch.Tensor | None = None
    reference_keys: torch.Tensor | None = None  # of no pair, see `SgmaSpatialPerceptron.unit_keys`


@dataclass
class SgmaPairs:
    """Where the pairs of a batch stand in the packed order: one modality after the other, rows ascending in each."""

    batch_size: int
    # Of every (modality, row) among the packed pairs, int64, (M', batch_size). An absent pair points to another pair
    # of its row: its weight is 0, and a row never reads another row. None: what is packed is there in every row, and
    # so is all of `active`.
    position: torch.Tensor | None = None
    slices: torch.Tensor | None = None  # without `position`, the M' among the packed modalities; None: all of them
    active: torch.Tensor | None = None  # the M' among the model's modalities; None: all of them
    complete: bool = True  # whether each of the M' is there in every row

    def unpack(self, packed: torch.Tensor, num_positions: int) -> torch.Tensor:
        """(pairs, positions, channels), or that flat -> (M', batch_size, positions, channels)."""
        if self.position is not None:
            return packed.view(-1, num_positions, packed.shape[-1])[self.position]
        by_modality = packed.view(-1, self.batch_size, num_positions, packed.shape[-1])
        return by_modality if self.slices is None else by_modality.index_select(0, self.slices)


class SgmaMeanFusion(nn.Module):
    """The mean of the encoder's features over the modalities present, a baseline; the other fusions build on it."""

    projector_class: type[nn.Module] = SgmaTokens
    has_robustness = False  # whether `fuse` gives robustness maps

    def __init__(self, config: SgmaConfig, channels: int):
        super().__init__()
        self.projectors = nn.ModuleList(self.projector_class(channels) for _ in config.modalities)

    def forward(self, step: str, *args):
        """Do one of the steps below, by name: who wraps a stage, to shard or to move it, wraps its calls."""
        return getattr(self, step)(*args)

    def project(self, features: torch.Tensor, pairs_per_modality: list[int], with_context: bool) -> SgmaStageTokens:
        """Do all that concerns single pairs, so that any subset of the modalities can be fused from it.

        `features` are the encoder's maps of the present pairs, (pairs, channels, height, width), one modality after
        the other. Without context no two modalities will ever be compared: one alone has weight 1, so keys, reference
        values and class scores are not needed.
        """
        parts = zip(self.projectors, features.split(pairs_per_modality), strict=True)
        tokens = torch.cat([projector(part) for projector, part in parts if part.shape[0]])  # (P * N, C)
        return SgmaStageTokens((features.shape[-2], features.shape[-1]), tokens.unflatten(0, (features.shape[0], -1)))

    def fuse(
        self, stage: SgmaStageTokens, pairs: SgmaPairs, bias: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """Fuse two or more modalities, the M' of `pairs`.

        `bias` is the logarithm of the covered fraction, (M', batch_size, positions); None if all cover everything.
        Gives fused tokens (batch_size * positions, channels), robustness (M', batch_size, positions) and prototypes
        (batch_size, num_labels, channels); the latter two are None with mean fusion.
        """
        tokens = pairs.unpack(stage.tokens, stage.tokens.shape[1])  # (M', B, N, C)
        if bias is None:
            return tokens.mean(0).flatten(0, 1), None, None
        weights = bias.softmax(0) * (bias > ABSENT_SCORE)  # the covered fractions, normalised
        return weighted_sum(weights.unsqueeze(-1), tokens), None, None

    def fuse_single(self, stage: SgmaStageTokens, index: torch.Tensor, covered: torch.Tensor | None) -> torch.Tensor:
        """Pass one modality per row alone: what `fuse` gives for it, since its softmax weight is 1.

        `index` is the pair of each row; tokens (batch_size * positions, channels) are 0 where it is not `covered`.
        """
        return _pick(stage.tokens, index, covered)


class SgmaPointwiseMeanFusion(SgmaMeanFusion):
    """The mean of a 1x1 convolution of each modality's features, a baseline."""

    projector_class = SgmaPointwiseProjector


class SgmaProjectorMeanFusion(SgmaMeanFusion):
    """The mean of MP's output, a baseline."""

    projector_class = SgmaModalityProjector


class SgmaSemanticGuidedFusion(SgmaProjectorMeanFusion):
    """SGF: MP per modality, then CSF, prototypes, SP and RP."""

    has_robustness = True

    def __init__(self, config: SgmaConfig, channels: int):
        super().__init__(config, channels)
        heads = config.num_attention_heads
        if channels % heads:
            raise ValueError(
                f"`num_attention_heads` is {heads}, which does not divide the {channels} channels of one of the "
                "backbone's stages; choose a number that divides those of all four."
            )
        self.semantic_filter = SgmaSemanticFilter(channels, config.num_labels)
        self.spatial_perceptron = SgmaSpatialPerceptron(channels, heads)
        self.robustness_perceptron = SgmaRobustnessPerceptron(channels, heads)

    def project(self, features: torch.Tensor, pairs_per_modality: list[int], with_context: bool) -> SgmaStageTokens:
        """See [`SgmaMeanFusion.project`]."""
        stage = super().project(features, pairs_per_modality, with_context)
        tokens = stage.tokens.flatten(0, 1)
        stage.values = self.robustness_perceptron.value(tokens)
        if with_context:
            stage.keys = self.robustness_perceptron.key(tokens)
            stage.reference_values = self.spatial_perceptron.value(tokens)
            stage.class_logits = self.semantic_filter(tokens)
            stage.reference_keys = self.spatial_perceptron.unit_keys(tokens)
        return stage

    def fuse(
        self, stage: SgmaStageTokens, pairs: SgmaPairs, bias: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """See [`SgmaMeanFusion.fuse`]."""
        fields = stage.tokens, stage.class_logits, stage.reference_values, stage.keys, stage.values
        positions = stage.tokens.shape[1]
        tokens, logits, reference_values, keys, values = (pairs.unpack(field, positions) for field in fields)
        prototypes = class_prototypes(logits, tokens, bias)
        reference = self.spatial_perceptron(prototypes, tokens, stage.reference_keys, reference_values, bias)
        fused, robustness = self.robustness_perceptron(reference, keys, values, bias)
        return fused, robustness, prototypes

    def fuse_single(self, stage: SgmaStageTokens, index: torch.Tensor, covered: torch.Tensor | None) -> torch.Tensor:
        """See [`SgmaMeanFusion.fuse_single`]."""
        return self.robustness_perceptron.output(_pick(stage.values.view(stage.tokens.shape), index, covered))


def _pick(packed: torch.Tensor, index: torch.Tensor, covered: torch.Tensor | None) -> torch.Tensor:
    """One pair's tokens for each row, 0 where it does not cover, (batch_size * positions, channels)."""
    picked = packed.index_select(0, index)
    return (picked if covered is None else torch.where(covered.unsqueeze(-1), picked, 0)).flatten(0, 1)


# `limits_sgma.FUSION_NAMES` has the same names, to check configurations without any layer.
FUSIONS: dict[str, type[SgmaMeanFusion]] = {
    "sgf": SgmaSemanticGuidedFusion,
    "mean": SgmaMeanFusion,
    "pointwise_mean": SgmaPointwiseMeanFusion,
    "projector_mean": SgmaProjectorMeanFusion,
}
