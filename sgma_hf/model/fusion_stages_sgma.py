"""SGF of all stages as one module (arXiv:2603.02505): [`SgmaModel`] is built from it, and so can other networks be."""

from collections.abc import Mapping, Sequence
from numbers import Integral

import torch
from torch import nn

from .encoding_sgma import SgmaEncoding
from .fusion_sgma import SgmaFusion, SgmaStageTokens, look_up_fusion
from .inputs_sgma import (
    check_dates,
    check_mask,
    flat_mask,
    host_mask_of,
    present_images,
    present_pairs,
    split_mask,
)
from .layers_sgma import SgmaDateModulation, date_waves, initialise, to_maps
from .outputs_sgma import SgmaModelOutput


Features = Mapping[str, Sequence[torch.Tensor] | None] | Sequence[Sequence[torch.Tensor] | None]


def initialise_fusion(module: nn.Module) -> bool:
    """Set the weights of a new part of a fusion, its own parts before it; False for what is none."""
    if not isinstance(module, SgmaFusion):
        return initialise(module)
    module.init_weights()
    return True


class SemanticGuidedFusion(nn.ModuleList):
    """SGF for any encoders and any decoder: maps of several modalities at several stages become one map per stage.

    A list of blocks, one for each stage. Modalities may lack in single rows, in whole batches and in single pixels.
    What concerns one modality alone is done once by `project`; `fuse` fuses all of them or any subset from that.

    Args:
        channels: Channels of the maps of each stage, one stage or more.
        modalities: Names of the modalities, in the order of masks.
        num_classes: Number of classes, of which each stage has prototypes.
        num_attention_heads: Heads of attention, a divisor of all `channels`; the paper does not state a number.
        fusion: Name of the fusion, as in `SgmaConfig`, or a class of blocks, your own for instance.
        date_periods: Periods of the dates of observations, as in `SgmaConfig`. None: the blocks know no dates.
        initialise_weights: Whether to set the weights. False leaves them to a model of transformers that holds this.

    Raises:
        ValueError: If a number is none that can be, the number of heads does not divide the channels, modalities
            repeat, or no fusion has that name.

    Example:
    ```python
    >>> import torch
    >>> from sgma_hf import SemanticGuidedFusion

    >>> sgf = SemanticGuidedFusion(channels=[32, 64], modalities=["rgb", "dsm"], num_classes=5)
    >>> rgb, dsm = [[torch.randn(2, 32, 16, 16), torch.randn(2, 64, 8, 8)] for _ in range(2)]
    >>> projected = sgf.project({"rgb": rgb, "dsm": dsm}, torch.tensor([[True, True], [True, False]]))
    >>> fused = sgf.fuse(projected)
    >>> fused.feature_maps[1].shape, fused.robustness[1].shape
    (torch.Size([2, 64, 8, 8]), torch.Size([2, 2, 8, 8]))
    >>> without_height = sgf.fuse(projected, ["rgb"])
    ```
    """

    def __init__(
        self,
        channels: Sequence[int],
        modalities: Sequence[str],
        num_classes: int,
        *,
        num_attention_heads: int = 4,
        fusion: str | type[SgmaFusion] = "sgf",
        date_periods: Sequence[float] | None = None,
        initialise_weights: bool = True,
    ):
        lists = isinstance(channels, Sequence) and isinstance(modalities, Sequence) and not isinstance(modalities, str)
        if not lists or not channels or not modalities or len(set(modalities)) < len(modalities):
            raise ValueError(
                f"`channels` is {channels!r} and `modalities` {modalities!r}; expected two lists, the channels of "
                "each stage and the names of the modalities, every one once."
            )
        sizes = {"num_classes": num_classes, "num_attention_heads": num_attention_heads}
        wrong = [number for number in (*channels, *sizes.values()) if not isinstance(number, Integral) or number < 1]
        if wrong:
            raise ValueError(
                f"`channels` is {list(channels)} and {sizes}; expected whole numbers of at least 1, not {wrong}."
            )
        fusion = look_up_fusion(fusion) if isinstance(fusion, str) else fusion
        super().__init__(fusion(stage_channels, len(modalities), **sizes) for stage_channels in channels)
        self.channels, self.modalities, self.date_periods = list(channels), list(modalities), date_periods
        if date_periods is not None:
            for block, stage_channels in zip(self, channels, strict=True):
                modulations = (SgmaDateModulation(stage_channels, len(date_periods)) for _ in modalities)
                block.date_modulations = nn.ModuleList(modulations)
        if initialise_weights:
            with torch.no_grad():
                self.apply(initialise_fusion)

    @property
    def has_robustness(self) -> bool:
        """Whether the fusion gives robustness maps."""
        return self[0].has_robustness

    def forward(
        self,
        features: Features,
        mask: torch.Tensor | None = None,
        subset: torch.Tensor | Sequence[str] | None = None,
        *,
        dates: torch.Tensor | None = None,
        output_prototypes: bool = False,
    ) -> SgmaModelOutput:
        """Project and fuse; see `project` and `fuse`."""
        return self.fuse(self.project(features, mask, dates), subset, output_prototypes=output_prototypes)

    def project(
        self, features: Features, mask: torch.Tensor | None = None, dates: torch.Tensor | None = None
    ) -> SgmaEncoding:
        """Do once what concerns single modalities; of what is absent nothing is computed.

        Args:
            features: For each modality the maps of the stages, float, (batch_size, channels, height, width); the
                modalities by name, or all in their order. None, or no entry, for one that the whole batch lacks.
                Encoders should be given a constant where nothing is: here the maps of a row that has the modality are
                taken as they are, in its gaps too. Of series they are (batch_size, T, channels, height, width), with
                T slots for dates.
            mask: True where a modality is there, bool: (batch_size, num_modalities), or per pixel (batch_size,
                num_modalities, image height, image width). The cells of a map divide the image evenly. None: all that
                is given. A mask on the CPU spares asking a GPU. Of series with T after batch_size.
            dates: When each map is of, in the unit of `date_periods`, float, (batch_size, T, num_modalities), NaN
                where it is not known. None: no date is known.

        Raises:
            ValueError: If a name is unknown, a shape does not fit, a row has no modality at all in a mask that is not
                per pixel, or there are dates without `date_periods`.
            TypeError: If the mask is not bool.
        """
        maps, first = self._check_features(features)
        given = torch.tensor([each is not None for each in maps])
        leading, device = first[0].shape[:-3], first[0].device
        shape = (*leading, len(maps))
        if mask is None:
            mask = given.expand(shape)
        else:
            check_mask("mask", mask, shape, None)
            mask = mask & given.to(mask.device).view(-1, *[1] * (mask.ndim - len(shape)))
        if dates is not None:
            dates = check_dates(dates, self.date_periods, shape, device)
        slots = 1
        if len(leading) == 2:  # the maps of a row one after the other, (B * T, C, h, w)
            slots, mask = leading[1], flat_mask(mask)
            maps = [None if each is None else [one.flatten(0, 1) for one in each] for each in maps]
            first = [one.flatten(0, 1) for one in first]
        coverage = mask if mask.ndim == 4 else None
        if torch.compiler.is_compiling():  # all pairs are computed, so that one graph holds for all masks
            observed, host_observed = present_pairs(mask).to(device), None
            maps = [[torch.zeros_like(one) for one in first] if each is None else each for each in maps]
        else:
            observed, coverage, host_observed = split_mask("mask", mask, host_mask_of(mask), device)
        counts, partial = present_images(host_observed, observed, len(maps))
        packed = []
        for level, stage in enumerate(first):
            parts = [each[level] for each, count in zip(maps, counts, strict=True) if count]
            chosen = [partial.get(index) for index, count in enumerate(counts) if count]
            parts = [
                part if rows is None else part.index_select(0, rows) for part, rows in zip(parts, chosen, strict=True)
            ]
            packed.append(torch.cat(parts) if parts else stage[:0])
        with_context = host_observed is None or any(sum(row) > 1 for row in host_observed)
        fractions = None
        if coverage is not None:
            covered = coverage.float()
            fractions = [nn.functional.adaptive_avg_pool2d(covered, stage.shape[-2:]) for stage in first]
        stages = self.project_pairs(packed, counts, with_context, self.waves(dates, counts, partial))
        return SgmaEncoding(stages, observed, host_observed, coverage, fractions, image_size=None, num_dates=slots)

    def waves(
        self, dates: torch.Tensor | None, counts: list[int], chosen: Mapping[int, torch.Tensor]
    ) -> torch.Tensor | None:
        """Waves of dates (batch_size * T, num_modalities), of those packed as `present_images` says: (pairs, 2 J)."""
        if dates is None or not any(counts):
            return None
        columns = [(index, column) for index, column in enumerate(dates.unbind(1)) if counts[index]]
        packed = [column.index_select(0, chosen[index]) if index in chosen else column for index, column in columns]
        return date_waves(torch.cat(packed), self.date_periods)

    def project_pairs(
        self, maps: Sequence[torch.Tensor], counts: list[int], with_context: bool, waves: torch.Tensor | None = None
    ) -> list[SgmaStageTokens]:
        """Project the maps of present pairs, as `SgmaFusion.project` takes them, at all stages."""
        if not maps[0].shape[0]:  # no row has anything
            return [SgmaStageTokens((*each.shape[-2:],), each.flatten(2).transpose(1, 2)) for each in maps]
        dates = () if waves is None else (waves,)
        return [
            fusion("project", stage_maps, counts, with_context, *dates)
            for fusion, stage_maps in zip(self, maps, strict=True)
        ]

    def join(self, encoding: SgmaEncoding, more: SgmaEncoding) -> SgmaEncoding:
        """Append the observations of another encoding of the same rows: its date slots become the last ones.

        Raises:
            ValueError: If the numbers of rows or the sizes differ.
        """
        for name in ("image_size", "num_modalities"):
            if getattr(more, name) != getattr(encoding, name) or len(more.observed) != len(encoding.observed):
                raise ValueError(
                    f"The encoding has {len(encoding.observed)} rows and an {name} of {getattr(encoding, name)}, what "
                    f"is to extend it {len(more.observed)} and {getattr(more, name)}; expected the same."
                )
        joined = encoding.joined(more)
        for fusion, stage in zip(self, joined.stages, strict=True):
            if len(stage.tokens):
                fusion("add_context", stage, stage.tokens.flatten(0, 1))
        return joined

    def fuse(
        self,
        encoding: SgmaEncoding,
        subset: torch.Tensor | Sequence[str] | None = None,
        *,
        output_prototypes: bool = False,
        output_date_robustness: bool = False,
    ) -> SgmaModelOutput:
        """Fuse all modalities of a projection, or a subset.

        Args:
            encoding: What `project` returned.
            subset: Names of the modalities to use, with all their dates, or True for them, bool, (num_modalities,) or
                (batch_size, num_modalities), or for single dates (batch_size, T, num_modalities). What the projection
                lacks stays absent; a row of which nothing is left is 0. None: all.
            output_prototypes: Whether to return the class prototypes.
            output_date_robustness: Whether to return the robustness of every date, too.

        Returns:
            `feature_maps`, `robustness` and `prototypes` of the stages; maps are of the size of those that were given.

        Raises:
            ValueError: If the subset has an unknown name or another shape.
            TypeError: If it is a tensor of another type than bool.
        """
        mask, host_mask, known = encoding.observed, encoding.host_observed, True
        if subset is not None:
            subset = self._subset_mask(subset, encoding)
            mask = mask & subset.to(mask.device, non_blocking=True)
            # No other device is asked: what is left out is then packed, and masked.
            known = subset.device.type == "cpu"
            if host_mask is not None and known:
                host_mask = (torch.tensor(host_mask) & subset).tolist()
        prototypes = None
        if host_mask is not None and max(map(sum, host_mask)) < 2:  # nothing to compare
            fused = self._fuse_alone(encoding, mask.int().argmax(1), mask.any(1))
            robustness = encoding.single_robustness(mask) if self.has_robustness else None
        else:
            fused, robustness, prototypes = self._fuse_stages(encoding, mask, host_mask, known)
        by_date = None
        if robustness is not None and (encoding.num_dates != 1 or output_date_robustness):
            by_date = tuple(encoding.by_date(maps) for maps in robustness)
            robustness = tuple(maps.sum(1) for maps in by_date)
        return SgmaModelOutput(
            feature_maps=fused,
            robustness=robustness,
            coverage=encoding.coverage(mask),
            prototypes=prototypes if output_prototypes else None,
            date_robustness=by_date if output_date_robustness else None,
        )

    def fuse_single(
        self, encoding: SgmaEncoding, modality: torch.Tensor, row_mask: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, ...]:
        """Pass one modality per row alone, with all its dates: the pass that modality-aware sampling trains.

        Args:
            encoding: What `project` returned.
            modality: Index of a present modality for each row, int64, (batch_size,).
            row_mask: False for rows that shall be empty, bool, (batch_size,). None: no such rows.

        Returns:
            Maps of the stages, as `feature_maps`.
        """
        if encoding.num_dates == 1:
            return self._fuse_alone(encoding, modality, row_mask)
        drawn = nn.functional.one_hot(modality, len(self.modalities)).bool()
        return self.fuse(encoding, drawn if row_mask is None else drawn & row_mask.unsqueeze(1)).feature_maps

    def _fuse_alone(self, encoding, observation, row_mask):
        """Pass one observation per row alone, (batch_size,)."""
        if encoding.is_empty:
            shapes = [(observation.shape[0], stage.tokens.shape[-1], *stage.size) for stage in encoding.stages]
            pairs = zip(encoding.stages, shapes, strict=True)
            return tuple(stage.tokens.new_zeros(shape) for stage, shape in pairs)
        rows = torch.arange(observation.shape[0], device=observation.device)
        index = encoding.position.gather(1, observation.unsqueeze(1)).squeeze(1).clamp_min(0)
        if row_mask is None and encoding.observed_fractions is not None:
            row_mask = encoding.observed[rows, observation]
        modality = observation if encoding.num_dates == 1 else observation % len(self.modalities)
        maps = []
        for level, (fusion, stage) in enumerate(zip(self, encoding.stages, strict=True)):
            covered = None if row_mask is None else row_mask.unsqueeze(1)
            if encoding.observed_fractions is not None:
                covered = covered & (encoding.observed_fractions[level][rows, observation].flatten(1) > 0)
            maps.append(to_maps(fusion("fuse_single", stage, modality, index, covered), stage.size))
        return tuple(maps)

    def _fuse_stages(self, encoding, mask, host_mask, known):
        pairs = encoding.pairs(host_mask)
        pairs.complete = pairs.complete and known
        biases = [None] * len(encoding.stages)
        if not pairs.complete or encoding.observed_fractions is not None:
            biases = encoding.attention_biases(mask, pairs.active)
        fused, robustness, prototypes = [], [], []
        for level, (fusion, stage) in enumerate(zip(self, encoding.stages, strict=True)):
            tokens, weights, class_vectors = fusion("fuse", stage, pairs, biases[level])
            fused.append(to_maps(tokens, stage.size))
            prototypes.append(class_vectors)
            if weights is not None:
                weights = weights.transpose(0, 1)
                if pairs.active is not None:
                    weights = _in_their_places(weights, pairs.active, mask.shape[1])
                robustness.append(encoding.crop(weights.unflatten(2, stage.size), level))
        return tuple(fused), tuple(robustness) or None, None if prototypes[0] is None else tuple(prototypes)

    def _check_features(self, features):
        """The maps of each modality in order, None for absent ones, and those of the first that is there."""
        if isinstance(features, Mapping):
            unknown = sorted(set(features) - set(self.modalities))
            if unknown:
                raise ValueError(f"`features` has {unknown}; expected some of {self.modalities}.")
            features = [features.get(name) for name in self.modalities]
        first = next((maps for maps in features if maps is not None), None)
        if len(features) != len(self.modalities) or first is None:
            raise ValueError(
                f"`features` has {len(features)} entries, {sum(maps is not None for maps in features)} of them with "
                f"maps; expected one for each of {self.modalities}, None for those absent, not all of them."
            )
        for name, maps in zip(self.modalities, features, strict=True):
            if maps is None:
                continue
            shapes, pairs = [tuple(one.shape) for one in maps], zip(first, self.channels, strict=False)
            sizes = [(*first[0].shape[:-3], channels, *one.shape[-2:]) for one, channels in pairs]
            if len(shapes) != len(self) or shapes != sizes or any(len(shape) not in (4, 5) for shape in shapes):
                raise ValueError(
                    f"The maps of {name!r} have shapes {shapes}; expected {len(self)} of (batch_size, channels, "
                    f"height, width) with {self.channels} channels, of the same sizes for all modalities."
                )
        return list(features), first

    def _subset_mask(self, subset, encoding):
        """Which observations a subset has, bool, (batch_size, T * M), or (M,) of one slot."""
        if not isinstance(subset, torch.Tensor):
            unknown = [name for name in subset if name not in self.modalities]
            if isinstance(subset, str) or unknown:
                raise ValueError(f"The subset is {subset!r}; expected a list of names among {self.modalities}.")
            subset = torch.tensor([name in subset for name in self.modalities])
        by_date = (len(encoding.observed), encoding.num_dates, len(self.modalities))
        rows = (by_date[0], by_date[2])
        if tuple(subset.shape) not in (rows[1:], rows, by_date):
            raise ValueError(f"The subset has shape {tuple(subset.shape)}; expected {rows[1:]}, {rows} or {by_date}.")
        if subset.dtype != torch.bool:
            raise TypeError(f"The subset is {subset.dtype}; expected bool, True for what is used.")
        if subset.ndim == 3:
            return subset.flatten(1)
        return subset if encoding.num_dates == 1 else subset.expand(rows).repeat(1, encoding.num_dates)


def _in_their_places(weights: torch.Tensor, active: torch.Tensor, count: int) -> torch.Tensor:
    """Weights (batch_size, M', positions) of the `active` of so many observations, 0 for the others."""
    everywhere = weights.new_zeros((weights.shape[0], count, weights.shape[2]))
    if active.ndim == 1:
        return everywhere.index_copy(1, active, weights)
    return everywhere.scatter_add(1, active.t().unsqueeze(2).expand_as(weights), weights)  # what is absent adds 0
