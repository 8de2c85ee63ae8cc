"""How the modalities are fused at one stage: semantic-guided (SGF, arXiv:2603.02505), and the means it is measured by.

A fusion is a subclass of [`SgmaFusion`] with a name, which [`register_fusion`] gives it.
In the comments: B rows, M modalities, N positions, C channels. Tokens are channels last; modalities come before rows.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

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


FUSIONS: dict[str, type["SgmaFusion"]] = {}
AUTO_MAP_KEY = "SgmaFusion"  # under which a configuration says where the code of its fusion is


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

    def only(self, pairs: torch.Tensor) -> "SgmaStageTokens":
        """Some of the pairs alone, by their ascending index, int64."""
        names = ("values", "keys", "reference_values", "class_logits")
        flat = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        sizes = self.tokens.shape[:2]
        kept = {name: field.unflatten(0, sizes)[pairs].flatten(0, 1) for name, field in flat.items()}
        return replace(self, tokens=self.tokens[pairs], **kept)


def join_stages(stages: Sequence[SgmaStageTokens], counts: Sequence[list[int]]) -> SgmaStageTokens:
    """One stage of several encodings of the same rows as one, without what its pairs are compared by.

    `counts` are the pairs of each modality in each encoding.
    """
    there = [(stage, own) for stage, own in zip(stages, counts, strict=True) if sum(own)]
    if len(there) < 2:
        return replace(there[0][0] if there else stages[0])
    fields = {}
    for name in ("tokens", "values"):
        parts = []
        for stage, own in there:
            values = getattr(stage, name)
            if values is not None:
                per_pair = len(values) // sum(own)
                parts.append(values.split([count * per_pair for count in own]))
        if parts:
            fields[name] = torch.cat([part for modality in zip(*parts, strict=True) for part in modality])
    return SgmaStageTokens(stages[0].size, **fields)


@dataclass
class SgmaPairs:
    """Where the pairs of a batch stand in the packed order: one modality after the other, rows ascending in each."""

    batch_size: int
    # Of every (modality, row) among the packed pairs, int64, (M', batch_size). An absent pair points to another pair
    # of its row: its weight is 0, and a row never reads another row. None: what is packed is there in every row, and
    # so is all of `active`.
    position: torch.Tensor | None = None
    slices: torch.Tensor | None = None  # without `position`, the M' among the packed modalities; None: all of them
    # The M' among the observations, int64, (M',), or (M', batch_size) if others in each row; None: all of them.
    active: torch.Tensor | None = None
    modalities: torch.Tensor | None = None  # which modality each of `active` is, of its shape
    complete: bool = True  # whether each of the M' is there in every row, and they count alike

    def unpack(self, packed: torch.Tensor, num_positions: int) -> torch.Tensor:
        """(pairs, positions, channels), or that flat -> (M', batch_size, positions, channels)."""
        if self.position is not None:
            return packed.view(-1, num_positions, packed.shape[-1])[self.position]
        by_modality = packed.view(-1, self.batch_size, num_positions, packed.shape[-1])
        return by_modality if self.slices is None else by_modality.index_select(0, self.slices)


class SgmaFusion(nn.Module):
    """What every fusion has; one of your own is a subclass with `combine`, and a name from [`register_fusion`].

    Args:
        channels: Channels of the stage, C.
        num_modalities: Number of modalities, M.
        num_classes: Number of classes.
        num_attention_heads: Heads of attention, for fusions that attend.

    Attributes:
        projectors: What each modality's features go through, `projector_class(channels)` for each: (pairs, channels,
            height, width) -> tokens (pairs * height * width, channels). Where a fusion holds more for each modality,
            `add_modality` and `drop_modality` have to change that, too.
        has_robustness: Whether `combine` gives robustness maps.
    """

    projector_class: type[nn.Module] = SgmaTokens
    has_robustness = False

    def __init__(self, channels: int, num_modalities: int, *, num_classes: int, num_attention_heads: int):
        super().__init__()
        self.projectors = nn.ModuleList(self.projector_class(channels) for _ in range(num_modalities))
        self.date_modulations: nn.ModuleList | None = None  # of a model that knows dates, one for each modality

    def combine(
        self, tokens: torch.Tensor, bias: torch.Tensor | None, modalities: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Fuse what modalities say of the same positions; the one method that a fusion of your own has to have.

        Args:
            tokens: What the projectors made, float, (M', batch_size, positions, channels) for M' of the modalities,
                one or more; of a series, one for each modality and date. Of what is absent they are finite and mean
                nothing.
            bias: Logarithm of the fraction of each cell that is covered, less that of the number of dates of the
                modality there, float32 at least, (M', batch_size, positions), or (M', batch_size, 1) where pairs are
                there or absent as a whole; `ABSENT_SCORE` where nothing is. To be added to scores before a softmax
                over M'. None: all is there, and once.
            modalities: Which modality each is, int64, (M', batch_size).

        Returns:
            Fused tokens (batch_size, positions, channels), and robustness in [0, 1], (M', batch_size, positions), or
            None. Both become 0 where nothing is covered, whatever they are.
        """
        raise NotImplementedError(f"{type(self).__name__} has no `combine`.")

    def init_weights(self) -> None:
        """Set parameters that the fusion holds itself, by `transformers.initialization`; those of layers are set."""

    def add_modality(self, projector: nn.Module) -> None:
        """Take one more modality, the last; what else the fusion holds for each of them becomes one more, too."""
        self.projectors.append(projector)

    def drop_modality(self, index: int) -> None:
        """Forget a modality."""
        del self.projectors[index]

    def forward(self, step: str, *args):
        """Do one of the steps below, by name: who wraps a stage, to shard or to move it, wraps its calls."""
        return getattr(self, step)(*args)

    def project(
        self,
        features: torch.Tensor,
        pairs_per_modality: list[int],
        with_context: bool,
        date_waves: torch.Tensor | None = None,
    ) -> SgmaStageTokens:
        """Do all that concerns single pairs, so that any subset of the modalities can be fused from it.

        `features` are the encoder's maps of the present pairs, (pairs, channels, height, width), one modality after
        the other, `date_waves` what `date_waves` makes of their dates, None if none is known. Without context no two
        pairs will ever be compared: one alone has weight 1, so `add_context` is not needed.
        """
        parts = zip(self.projectors, features.split(pairs_per_modality), strict=True)
        tokens = [projector(part) if part.shape[0] else None for projector, part in parts]  # (P_m * N, C)
        if date_waves is not None:
            parts = zip(self.date_modulations, tokens, date_waves.split(pairs_per_modality), strict=True)
            tokens = [None if part is None else modulation(part, waves) for modulation, part, waves in parts]
        packed = torch.cat([part for part in tokens if part is not None])  # (P * N, C)
        size = (features.shape[-2], features.shape[-1])
        stage = SgmaStageTokens(size, packed.unflatten(0, (features.shape[0], -1)), self.values_of(packed))
        if with_context:
            self.add_context(stage, packed)
        return stage

    def values_of(self, tokens: torch.Tensor) -> torch.Tensor | None:
        """What of single pairs is fused in the place of their tokens, flat as these; None: the tokens."""

    def add_context(self, stage: SgmaStageTokens, tokens: torch.Tensor) -> None:
        """Add to a stage what its pairs are compared by; its tokens flat, (pairs * positions, channels)."""

    def fuse(
        self, stage: SgmaStageTokens, pairs: SgmaPairs, bias: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """Fuse two or more modalities, the M' of `pairs`.

        `bias` is the logarithm of the covered fraction, (M', batch_size, positions); None if all cover everything.
        Gives fused tokens (batch_size * positions, channels), robustness (M', batch_size, positions) and prototypes
        (batch_size, num_labels, channels); None for what the fusion does not have.
        """
        tokens = pairs.unpack(stage.tokens, stage.tokens.shape[1])  # (M', B, N, C)
        modalities = pairs.modalities
        if modalities is None:
            modalities = torch.arange(tokens.shape[0], device=tokens.device)
        if modalities.ndim == 1:
            modalities = modalities.unsqueeze(1).expand(-1, pairs.batch_size)
        return *self._combine(tokens, bias, modalities), None

    def fuse_single(
        self, stage: SgmaStageTokens, modality: torch.Tensor, index: torch.Tensor, covered: torch.Tensor | None
    ) -> torch.Tensor:
        """Pass one modality per row alone: what `fuse` gives for it.

        `modality` and `index` are the modality and the pair of each row, (batch_size,); tokens (batch_size *
        positions, channels) are 0 where it is not `covered`, bool (batch_size, positions) or (batch_size, 1).
        """
        bias = None if covered is None else torch.where(covered, 0.0, ABSENT_SCORE).unsqueeze(0)
        tokens = stage.tokens.index_select(0, index).unsqueeze(0)  # (1, B, N, C)
        return self._combine(tokens, bias, modality.unsqueeze(0))[0]

    def _combine(self, tokens, bias, modalities):
        fused, robustness = self.combine(tokens, bias, modalities)
        if bias is not None:
            covered = bias > ABSENT_SCORE
            fused = torch.where(covered.any(0).unsqueeze(-1), fused, 0)
            robustness = None if robustness is None else torch.where(covered, robustness, 0)
        return fused.flatten(0, 1), robustness


def register_fusion(name: str) -> Callable[[type[SgmaFusion]], type[SgmaFusion]]:
    """Decorate a subclass of [`SgmaFusion`] to be what `SgmaConfig(fusion=name)` fuses by, at every stage.

    Its module travels with checkpoints, as the code of the model does. For that it is a file of its own, and imports
    of this package nothing but what stands in `sgma_hf.model`.

    Raises:
        ValueError: If the name is malformed, or another class has it.
        TypeError: If what is decorated is no subclass of [`SgmaFusion`].

    Example:
    ```python
    >>> from sgma_hf import SgmaFusion, register_fusion

    >>> @register_fusion("sum")
    ... class SumFusion(SgmaFusion):
    ...     def combine(self, tokens, bias, modalities):
    ...         return (tokens if bias is None else tokens * bias.exp().unsqueeze(-1)).sum(0), None
    ```
    """
    if not isinstance(name, str) or not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise ValueError(f"Fusion name {name!r} is malformed; use lower-case letters, digits and underscores.")

    def register(fusion: type[SgmaFusion]) -> type[SgmaFusion]:
        if not isinstance(fusion, type) or not issubclass(fusion, SgmaFusion):
            raise TypeError(f"{fusion!r} is registered as fusion {name!r}; expected a subclass of SgmaFusion.")
        known = FUSIONS.get(name, fusion)
        # By their names: a module may be reloaded.
        if (known.__module__, known.__qualname__) != (fusion.__module__, fusion.__qualname__):
            raise ValueError(
                f"Fusion {name!r} is {known.__module__}.{known.__qualname__} already; register "
                f"{fusion.__qualname__} under another name."
            )
        FUSIONS[name] = fusion
        return fusion

    return register


def find_fusion(config: SgmaConfig) -> type[SgmaFusion]:
    """The class that a configuration's `fusion` names; see [`look_up_fusion`]."""
    return look_up_fusion(config.fusion, travels=AUTO_MAP_KEY in (getattr(config, "auto_map", None) or {}))


def look_up_fusion(name: str, *, travels: bool = False) -> type[SgmaFusion]:
    """The class that is registered under a name; `travels` says whether a checkpoint has its code.

    Raises:
        ValueError: If there is none.
    """
    if name not in FUSIONS:
        raise ValueError(
            f"`fusion` is {name!r}; expected one of {list(FUSIONS)}. For one of your own import the module "
            "that registers it, on the command line by `sgma-hf --import MODULE`"
            + (", or give `trust_remote_code=True`, to run the checkpoint's." if travels else ".")
        )
    return FUSIONS[name]


@register_fusion("mean")
class SgmaMeanFusion(SgmaFusion):
    """The mean of the encoder's features over the modalities present, a baseline; the other fusions build on it."""

    def fuse(
        self, stage: SgmaStageTokens, pairs: SgmaPairs, bias: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """See [`SgmaFusion.fuse`]."""
        tokens = pairs.unpack(stage.tokens, stage.tokens.shape[1])  # (M', B, N, C)
        if bias is None:
            return tokens.mean(0).flatten(0, 1), None, None
        weights = bias.softmax(0) * (bias > ABSENT_SCORE)  # the covered fractions, normalised
        return weighted_sum(weights.unsqueeze(-1), tokens), None, None

    def fuse_single(
        self, stage: SgmaStageTokens, modality: torch.Tensor, index: torch.Tensor, covered: torch.Tensor | None
    ) -> torch.Tensor:
        """See [`SgmaFusion.fuse_single`]: its softmax weight is 1."""
        return _pick(stage.tokens, index, covered)


@register_fusion("pointwise_mean")
class SgmaPointwiseMeanFusion(SgmaMeanFusion):
    """The mean of a 1x1 convolution of each modality's features, a baseline."""

    projector_class = SgmaPointwiseProjector


@register_fusion("projector_mean")
class SgmaProjectorMeanFusion(SgmaMeanFusion):
    """The mean of MP's output, a baseline."""

    projector_class = SgmaModalityProjector


@register_fusion("sgf")
class SgmaSemanticGuidedFusion(SgmaProjectorMeanFusion):
    """SGF: MP per modality, then CSF, prototypes, SP and RP."""

    has_robustness = True

    def __init__(self, channels: int, num_modalities: int, *, num_classes: int, num_attention_heads: int):
        super().__init__(channels, num_modalities, num_classes=num_classes, num_attention_heads=num_attention_heads)
        if channels % num_attention_heads:
            raise ValueError(
                f"`num_attention_heads` is {num_attention_heads}, which does not divide the {channels} channels of "
                "one of the encoder's stages; choose a number that divides those of all."
            )
        self.semantic_filter = SgmaSemanticFilter(channels, num_classes)
        self.spatial_perceptron = SgmaSpatialPerceptron(channels, num_attention_heads)
        self.robustness_perceptron = SgmaRobustnessPerceptron(channels, num_attention_heads)

    def values_of(self, tokens: torch.Tensor) -> torch.Tensor:
        """See [`SgmaFusion.values_of`]."""
        return self.robustness_perceptron.value(tokens)

    def add_context(self, stage: SgmaStageTokens, tokens: torch.Tensor) -> None:
        """See [`SgmaFusion.add_context`]: keys, reference values and class scores."""
        stage.keys = self.robustness_perceptron.key(tokens)
        stage.reference_values = self.spatial_perceptron.value(tokens)
        stage.class_logits = self.semantic_filter(tokens)
        stage.reference_keys = self.spatial_perceptron.unit_keys(tokens)

    def fuse(
        self, stage: SgmaStageTokens, pairs: SgmaPairs, bias: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """See [`SgmaFusion.fuse`]."""
        fields = stage.tokens, stage.class_logits, stage.reference_values, stage.keys, stage.values
        positions = stage.tokens.shape[1]
        tokens, logits, reference_values, keys, values = (pairs.unpack(field, positions) for field in fields)
        prototypes = class_prototypes(logits, tokens, bias)
        reference = self.spatial_perceptron(prototypes, tokens, stage.reference_keys, reference_values, bias)
        fused, robustness = self.robustness_perceptron(reference, keys, values, bias)
        return fused, robustness, prototypes

    def fuse_single(
        self, stage: SgmaStageTokens, modality: torch.Tensor, index: torch.Tensor, covered: torch.Tensor | None
    ) -> torch.Tensor:
        """See [`SgmaFusion.fuse_single`]: its softmax weight is 1."""
        return self.robustness_perceptron.output(_pick(stage.values.view(stage.tokens.shape), index, covered))


def _pick(packed: torch.Tensor, index: torch.Tensor, covered: torch.Tensor | None) -> torch.Tensor:
    """One pair's tokens for each row, 0 where it does not cover, (batch_size * positions, channels)."""
    picked = packed.index_select(0, index)
    return (picked if covered is None else torch.where(covered.unsqueeze(-1), picked, 0)).flatten(0, 1)
