"""SGMA: semantic-guided, modality-aware segmentation with incomplete multimodal data (arXiv:2603.02505).

The paper has no public code; this is an independent implementation of its description. Where the paper is silent the
line says "ours". The paper's abbreviations stand in the first line of the docstring of the block they name: MP, CSF,
SP, RP (together SGF) and MAS.

Axes are always batch, modality, class, channel, height, width. In the comments: B rows, M modalities, N positions of a
stage.
"""

from collections.abc import Sequence

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import can_return_tuple

from .backbones_sgma import load_pretrained
from .cells_sgma import PAD_MULTIPLE, STAGE_STRIDES, covered_fractions, crop_padding
from .configuration_sgma import SgmaConfig
from .encoders_sgma import SgmaEncodersMixin
from .encoding_sgma import SgmaEncoding
from .fusion_sgma import find_fusion
from .fusion_stages_sgma import SemanticGuidedFusion, initialise_fusion
from .inputs_sgma import HostMask, check_dates, check_inputs, check_labels, num_dates, present_images
from .layers_sgma import SgmaDecodeHead, SgmaModalityStem
from .losses_sgma import filter_losses, modality_aware_sampling, row_losses, sample_subset, weigh_losses
from .modalities_sgma import SgmaModelModalitiesMixin
from .outputs_sgma import SgmaModelOutput, SgmaSemanticSegmenterOutput
from .saving_sgma import SgmaCheckpointMixin


class SgmaPreTrainedModel(SgmaModelModalitiesMixin, SgmaCheckpointMixin, PreTrainedModel):
    """Weight initialisation, loading and saving, and changes of the modalities."""

    config: SgmaConfig
    config_class = SgmaConfig
    base_model_prefix = "sgma"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    # `forward` computes a mean over pixels; Trainer must not take it for already scaled by gradient accumulation.
    accepts_loss_kwargs = False

    def get_input_embeddings(self):
        """None: a vision model has no token embeddings."""

    @torch.no_grad()
    def _init_weights(self, module):
        # The paper does not state its initialisation. By leaf class: transformers initialises children first, once.
        if not initialise_fusion(module):
            super()._init_weights(module)


class SgmaModel(SgmaEncodersMixin, SgmaPreTrainedModel):
    """The encoder that all modalities share, or those of groups of them, and semantic-guided fusion, without a head.

    `encode` and `fuse` are the two halves of `forward`: every combination of modalities can be fused from one
    encoding.
    """

    def __init__(self, config: SgmaConfig):
        super().__init__(config)
        self.make_encoders(config)
        self.supports_gradient_checkpointing = any(part.supports_gradient_checkpointing for part in self.backbones)
        bands = zip(config.modality_channels, self.encoder_channels(), strict=True)
        self.stems = nn.ModuleList(self.make_stem(*counts) for counts in bands)
        self.fusion_stages = SemanticGuidedFusion(
            self.channels,
            config.modalities,
            config.num_labels,
            num_attention_heads=config.num_attention_heads,
            fusion=find_fusion(config),
            date_periods=config.date_periods,
            initialise_weights=False,  # `post_init` does
        )
        self.post_init()
        self.train()  # a new module is in training mode already, but with batch normalisation that is not frozen

    def make_stem(self, channels: int, encoder_channels: int) -> nn.Module:
        """Make what brings a modality of so many bands into an encoder."""
        return SgmaModalityStem(channels, encoder_channels, self.config.modality_adapter_size)

    def encode(
        self,
        pixel_values: torch.Tensor,
        modality_mask: torch.Tensor | None = None,
        host_mask: HostMask | None = None,
        labels: torch.Tensor | None = None,
        dates: torch.Tensor | None = None,
    ) -> SgmaEncoding:
        """Encode and project every present (row, modality) pair, in series each of its dates; absent ones are not.

        Under `torch.compile` and `torch.export` all pairs are computed, and what is absent is masked out afterwards:
        one graph for all masks.

        Args:
            pixel_values: Normalised rasters, the modalities one after the other as in `config.modalities`, float,
                shape (batch_size, sum(config.modality_channels), height, width). What stands under the mask does not
                matter, NaN included. Series are (batch_size, T, sum(config.modality_channels), height, width): slot t
                of a modality is one of its images, those of other modalities in it are no nearer to it than others.
            modality_mask: True where a modality is there, bool: (batch_size, num_modalities), or
                (batch_size, num_modalities, height, width) where coverage ends inside the image. None: all there. Of
                series with T after batch_size: False is a slot that a shorter series leaves empty, too.
            host_mask: What `host_mask_of` said of the mask. A GPU, which computes while the host prepares what
                follows, is not asked then. None: it is asked, once, unless the mask is on the CPU.
            labels: int64, (batch_size, height, width), whose range is checked in the same question. With a
                `host_mask` those on a GPU are taken to be checked, as those of [`SgmaDataCollator`] are.
            dates: When each image is of, in the unit of `config.date_periods`, such as days since 2000, float,
                (batch_size, T, num_modalities), or (batch_size, num_modalities) if `pixel_values` have no T; NaN where
                it is not known. None: no date is known.

        Raises:
            ValueError: If a shape does not fit the configuration, a row of a (batch_size, num_modalities) mask has no
                modality at all, a label is no class, `host_mask` is not that of the mask, or a model without
                `date_periods` is given dates.
            TypeError: If `pixel_values` are not floats or the mask is not bool.
        """
        observed, coverage, host_observed = check_inputs(self.config, pixel_values, modality_mask, host_mask, labels)
        if dates is not None:
            shape = (*pixel_values.shape[:-3], self.config.num_modalities)
            dates = check_dates(dates, self.config.date_periods, shape, pixel_values.device)
        slots, image_size = num_dates(pixel_values), (pixel_values.shape[-2], pixel_values.shape[-1])
        tracing = host_observed is None
        if pixel_values.ndim == 5:
            pixel_values = pixel_values.flatten(0, 1)  # (B * T, C, H, W)
        # Written so that torch.export sees sides of 32 * n, whose divisions by the strides it can simplify.
        bottom, right = (-(-side // PAD_MULTIPLE) * PAD_MULTIPLE - side for side in image_size)
        fractions = pixel_coverage = None
        if tracing or coverage is not None or bottom or right:  # cells that are covered in part
            covered = observed[..., None, None].expand(-1, -1, *image_size) if coverage is None else coverage
            pixel_values = nn.functional.pad(pixel_values, (0, right, 0, bottom), value=self.config.gap_value)
            padded = nn.functional.pad(covered.float(), (0, right, 0, bottom))
            fractions = covered_fractions(padded)
            if tracing or coverage is not None:
                pixel_coverage, coverage = covered, padded.bool()
        if slots != 1 and coverage is not None:
            coverage = coverage.unflatten(1, (slots, -1)).flatten(0, 1)
        counts, chosen = present_images(host_observed, observed, self.config.num_modalities)
        packed = self._pack(pixel_values, coverage, counts, chosen)
        if packed:
            maps = self.encode_pairs(packed, counts, series=slots != 1)
        else:  # no row has anything
            sizes = [[side // stride for side in pixel_values.shape[-2:]] for stride in STAGE_STRIDES]
            stages = zip(self.channels, sizes, strict=True)
            maps = [pixel_values.new_zeros((0, channels, *size), dtype=self.dtype) for channels, size in stages]
        with_context = tracing or any(sum(row) > 1 for row in host_observed)
        waves = self.fusion_stages.waves(dates, counts, chosen)
        stages = self.fusion_stages.project_pairs(maps, counts, with_context, waves)
        return SgmaEncoding(stages, observed, host_observed, pixel_coverage, fractions, image_size, slots)

    def extend(
        self,
        encoding: SgmaEncoding,
        pixel_values: torch.Tensor,
        modality_mask: torch.Tensor | None = None,
        dates: torch.Tensor | None = None,
    ) -> SgmaEncoding:
        """Encode new images of the rows of an encoding, and append them: what `encode` makes of all together.

        Nothing else is computed anew. The arguments are as for `encode`, of the new images alone; a row without any
        needs a mask per pixel.

        Raises:
            ValueError: If an argument is refused by `encode`, or the numbers of rows or the sizes differ.
        """
        more = self.encode(pixel_values, modality_mask, dates=dates)
        return self.fusion_stages.join(encoding, more)

    def fuse(
        self,
        encoding: SgmaEncoding,
        subset_mask: torch.Tensor | Sequence[str] | None = None,
        *,
        output_prototypes: bool = False,
        output_hidden_states: bool = False,
        output_date_robustness: bool = False,
    ) -> SgmaModelOutput:
        """Fuse an encoding, or a subset of its modalities: see [`SemanticGuidedFusion.fuse`].

        `output_hidden_states` returns the fused maps as `hidden_states`, too.
        """
        output = self.fusion_stages.fuse(
            encoding,
            subset_mask,
            output_prototypes=output_prototypes,
            output_date_robustness=output_date_robustness,
        )
        if output_hidden_states:
            output["hidden_states"] = output.feature_maps
        return output

    def fuse_single(
        self, encoding: SgmaEncoding, modality: torch.Tensor, row_mask: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, ...]:
        """Pass one modality per row alone: see [`SemanticGuidedFusion.fuse_single`]."""
        return self.fusion_stages.fuse_single(encoding, modality, row_mask)

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        modality_mask: torch.Tensor | None = None,
        host_mask: HostMask | None = None,
        output_prototypes: bool | None = None,
        output_hidden_states: bool | None = None,
        dates: torch.Tensor | None = None,
        output_date_robustness: bool = False,
    ) -> SgmaModelOutput:
        """Encode and fuse; see `encode` for the inputs."""
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        return self.fuse(
            self.encode(pixel_values, modality_mask, host_mask, dates=dates),
            output_prototypes=bool(output_prototypes),
            output_hidden_states=output_hidden_states,
            output_date_robustness=output_date_robustness,
        )

    def _pack(self, pixel_values, coverage, counts, chosen):
        """The observations of every modality that has any, in its encoder's channels; gaps are constant."""
        packed = []
        for index, rasters in enumerate(pixel_values.split(self.config.modality_channels, dim=1)):
            if not counts[index]:
                continue
            covered = None if coverage is None else coverage[:, index : index + 1]
            if index in chosen:
                rasters = rasters.index_select(0, chosen[index])
                covered = None if covered is None else covered.index_select(0, chosen[index])
            if covered is not None:  # never a product: 0 * NaN is NaN
                rasters = torch.where(covered, rasters, self.config.gap_value)
            packed.append(self.stems[index](rasters))
        return packed


class SgmaForSemanticSegmentation(SgmaPreTrainedModel):
    """SGMA with its decode head; in training also with the modality-aware sampling branch (MAS)."""

    def __init__(self, config: SgmaConfig):
        super().__init__(config)
        self.sgma = SgmaModel(config)
        self.supports_gradient_checkpointing = self.sgma.supports_gradient_checkpointing
        self.decode_head = SgmaDecodeHead(config, self.sgma.channels)
        # What the encoder, or those of groups by their names, started from, for the model card.
        self.pretrained_backbone: str | dict[str, str] | None = None
        self.post_init()

    @classmethod
    def from_backbone_pretrained(
        cls, backbone_name_or_path: str | dict[str, str], config: SgmaConfig, **kwargs
    ) -> "SgmaForSemanticSegmentation":
        """Build a new model whose encoder starts from pretrained weights, or those of groups of modalities.

        Args:
            backbone_name_or_path: Hub id or folder of a checkpoint of `config.backbone_config`'s architecture, an
                image classifier's for instance. Of several encoders all start from it, or, by their modalities as in
                `{"rgb+nir": "folder", "sar": "another"}`, those that are named, and the others from new weights.
            config: Configuration of the new model; its `backbone_config` has to fit the checkpoint.
            kwargs: Passed on to the backbone's `from_pretrained` (`revision`, `token`, `cache_dir`, ...).

        Raises:
            ValueError: If weights of the encoder are missing in the checkpoint or have other shapes, or no encoder is
                for the modalities that are named.
        """
        given, encoders = backbone_name_or_path, config.encoder_configs
        if isinstance(given, dict):
            given = {config.encoder_name(group): str(path) for group, path in given.items()}
            paths = given
        else:
            given = str(given)
            paths = dict.fromkeys(encoders, given)
        model = cls(config)
        for backbone, (group, encoder_config) in zip(model.sgma.backbones, encoders.items(), strict=True):
            if group in paths:
                load_pretrained(backbone, encoder_config, paths[group], **kwargs)
        model.pretrained_backbone = given
        return model

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, **kwargs):
        """Load a model as `PreTrainedModel.from_pretrained` does, but never with a decode head of random weights.

        Raises:
            ValueError: If the checkpoint was saved from [`SgmaModel`], which has no decode head.
        """
        loaded = super().from_pretrained(pretrained_model_name_or_path, *model_args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        if model.config.architectures == ["SgmaModel"]:
            raise ValueError(
                f"{str(pretrained_model_name_or_path)!r} holds an SgmaModel, without a decode head, so it cannot "
                "segment. Load it with SgmaModel.from_pretrained; to train a head on it, build "
                "SgmaForSemanticSegmentation(config) and load the SgmaModel's state_dict into its `.sgma`."
            )
        return loaded

    def encode(self, pixel_values: torch.Tensor, modality_mask: torch.Tensor | None = None, **kwargs) -> SgmaEncoding:
        """Encode a batch once, for `fuse_and_decode`; see [`SgmaModel.encode`]."""
        return self.sgma.encode(pixel_values, modality_mask, **kwargs)

    def extend(self, encoding: SgmaEncoding, pixel_values: torch.Tensor, *args, **kwargs) -> SgmaEncoding:
        """Append new images to an encoding; see [`SgmaModel.extend`]."""
        return self.sgma.extend(encoding, pixel_values, *args, **kwargs)

    def fuse_and_decode(
        self, encoding: SgmaEncoding, subset_mask: torch.Tensor | None = None, **kwargs
    ) -> SgmaSemanticSegmenterOutput:
        """Predict from an encoding with all or some of its modalities; see [`SgmaModel.fuse`]."""
        fused = self.sgma.fuse(encoding, subset_mask, **kwargs)
        return self._output(fused, logits=self._decode(fused.feature_maps, encoding.image_size))

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        modality_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        sampling_noise: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        host_mask: HostMask | None = None,
        output_prototypes: bool | None = None,
        output_hidden_states: bool | None = None,
        dates: torch.Tensor | None = None,
        output_date_robustness: bool = False,
    ) -> SgmaSemanticSegmenterOutput:
        """Segment a batch of incomplete multimodal images; `return_dict=False` gives a plain tuple.

        Args:
            pixel_values: Float, (batch_size, sum(config.modality_channels), height, width), or series with T slots
                for images after batch_size; see [`SgmaModel.encode`].
            modality_mask: Bool, True where a modality is there, (batch_size, num_modalities) or
                (batch_size, num_modalities, height, width), with T after batch_size in series; None if all are.
            labels: Class of each pixel, integer in [0, num_labels) or `config.semantic_loss_ignore_index`,
                (batch_size, height, width). Pixels that no modality covers are ignored too.
            sampling_noise: Numbers in [0, 1) that decide modality-aware sampling's draw, float, (batch_size,). Given
                by the data path, the draw is a function of seed, epoch and row. None: from the global generator.
            num_items_in_batch: What to divide the summed losses by, in place of the number of valid pixels of this
                batch: that of a whole accumulation window and of all processes, so that accumulating gradients
                equals one large batch.
            host_mask: What `host_mask_of` said of the mask, and that the labels are checked; see [`SgmaModel.encode`].
            output_prototypes: Whether to return the class prototypes.
            output_hidden_states: Whether to return the fused feature maps.
            dates: When each image is of, float, (batch_size, T, num_modalities), NaN where it is not known; see
                [`SgmaModel.encode`].
            output_date_robustness: Whether to return the robustness of every date.

        Raises:
            ValueError: If a shape does not fit, a row has no modality, or a label is no class.
            TypeError: If a dtype does not fit.

        Example:
        ```python
        >>> import torch
        >>> from sgma_hf import SgmaConfig, SgmaForSemanticSegmentation

        >>> model = SgmaForSemanticSegmentation(SgmaConfig(num_labels=5)).eval()  # RGB, height, near infrared
        >>> modality_mask = torch.tensor([[True, False, True]])  # no height
        >>> model(torch.randn(1, 5, 64, 96), modality_mask).logits.shape
        torch.Size([1, 5, 16, 24])
        ```
        """
        if labels is not None:
            labels = check_labels(labels, pixel_values)
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        encoding = self.encode(pixel_values, modality_mask, host_mask=host_mask, labels=labels, dates=dates)
        fused = self.sgma.fuse(
            encoding,
            output_prototypes=bool(output_prototypes),
            output_hidden_states=output_hidden_states,
            output_date_robustness=output_date_robustness,
        )
        if labels is not None and encoding.observed_pixels is not None:
            # Nothing can be learnt where nothing covers, and the prediction is nodata there.
            labels = torch.where(fused.coverage, labels, self.config.semantic_loss_ignore_index)
        if labels is not None and self.training and len(self.config.loss_terms) > 1 and not encoding.is_empty:
            fields = self._with_branches(encoding, fused, labels, sampling_noise, num_items_in_batch)
        else:
            fields = {"logits": self._decode(fused.feature_maps, encoding.image_size)}
            if labels is not None:
                losses = {"sgf": row_losses(self.config, fields["logits"], labels)}
                fields |= weigh_losses(self.config, losses, num_items_in_batch)
        return self._output(fused, **fields)

    def _output(self, fused, **fields):
        shared = {name: value for name, value in fused.items() if name != "feature_maps"}
        return SgmaSemanticSegmenterOutput(**fields, **shared)

    def _with_branches(self, encoding, fused, labels, sampling_noise, num_items_in_batch):
        """Pass what modality-aware sampling drew through SGF and the head, and supervise these predictions too.

        From the encoding of all: one modality alone (paper), and some of the modalities together (ours); of series
        with all their dates. A row with one modality is drawn with certainty, its L_MAS equals its L_SGF; it is
        counted like any other row.
        """
        config, ignored = self.config, self.config.semantic_loss_ignore_index
        if sampling_noise is None:
            sampling_noise = torch.rand(labels.shape[0], device=labels.device)
        sampled, probabilities = modality_aware_sampling(
            encoding, fused.robustness, exponent=config.mas_exponent, noise=sampling_noise
        )
        # What is decoded, by the term of the loss: the maps, and which pixels they cover; None: those of the labels.
        branches = {"sgf": (fused.feature_maps, None)}
        if "mas" in config.loss_terms:
            covered = encoding.pixel_coverage
            if covered is not None:
                covered = covered[torch.arange(labels.shape[0], device=labels.device), sampled]
            branches["mas"] = (self.sgma.fuse_single(encoding, sampled), covered)
        if "subset" in config.loss_terms:
            subset = self.sgma.fuse(encoding, sample_subset(probabilities, sampling_noise))
            branches["subset"] = (subset.feature_maps, None if encoding.observed_pixels is None else subset.coverage)
        maps = tuple(map(torch.cat, zip(*(maps for maps, _ in branches.values()), strict=True)))
        logits = dict(zip(branches, self._decode(maps, encoding.image_size).chunk(len(branches)), strict=True))
        losses = {}
        for name, (_, covered) in branches.items():
            own = labels if covered is None else torch.where(covered, labels, ignored)
            losses[name] = row_losses(config, logits[name], own)
        if "filter" in config.loss_terms:
            losses["filter"] = filter_losses(encoding, labels, losses["sgf"][1], ignored)
        fields = {"logits": logits["sgf"], "sampling_probabilities": probabilities}
        if "mas" in logits:
            fields |= {"sampled_modality": sampled, "sampled_logits": logits["mas"].detach()}
        return {**fields, **weigh_losses(config, losses, num_items_in_batch)}

    def _decode(self, feature_maps, image_size):
        logits = crop_padding(self.decode_head(feature_maps), self.config.logits_stride, image_size)
        return logits if self.training or self.config.temperature == 1 else logits / self.config.temperature


__all__ = ["SgmaForSemanticSegmentation", "SgmaModel", "SgmaPreTrainedModel"]
