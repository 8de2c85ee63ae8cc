"""Adding a modality to a trained model and its processor, and dropping one.

What belongs to one modality alone is its stem (an adapter, and one convolution where it has neither one band nor as
many as the encoder), one projector per stage and, where it shares none, its encoder. Everything else is shared, so
both changes leave all other weights, and what the model answers for the other modalities, exactly as they were.
"""

from typing import Any

import torch
from torch import nn
from transformers.utils import logging

from .layers_sgma import SgmaDateModulation
from .limits_sgma import check_modalities


logger = logging.get_logger(__name__)

PROCESSOR_LISTS = ("rescale_factor", "image_mean", "image_std", "nodata", "reference_level", "value_range")


def _index_of(name: str, modalities: list[str]) -> int:
    if name not in modalities:
        raise ValueError(f"There is no modality {name!r}; expected one of {modalities}.")
    return modalities.index(name)


def _index_to_drop(name: str, modalities: list[str]) -> int:
    if len(modalities) == 1:
        raise ValueError(f"{modalities[0]!r} is the only modality; a model needs one.")
    return _index_of(name, modalities)


class SgmaModelModalitiesMixin:
    """`add_modality` and `drop_modality` of a model."""

    def add_modality(
        self, name: str, channels: int = 1, *, like: str | None = None, processor: Any = None, **normalization
    ) -> None:
        """Give the model one more modality, the last in order, to fine-tune it for another sensor.

        Its stem and projectors are new; no other weight changes, and whatever the model predicts without the new
        modality stays the same, bit for bit. With it, predictions mean something after fine-tuning only. Build the
        trainer afterwards: an optimiser made before does not know the new weights.

        Args:
            name: Name of the new modality.
            channels: Number of its bands.
            like: Modality whose projectors the new one starts from (and its stem, if it has as many bands), and whose
                encoder it shares. None, if there is one encoder, starts from random weights, drawn from torch's
                global generator as for a new model.
            processor: The model's image processor, to be changed with it: both change or neither.
            normalization: `rescale_factor`, `image_mean`, `image_std`, `nodata`, `reference_level` and `value_range`
                of the new modality, for the processor.

        Raises:
            ValueError: If the name is malformed or taken, `like` is unknown, or left out with several encoders, or
                the processor is another model's.

        Example:
        ```python
        >>> model.add_modality("thermal", channels=1, like="nir", processor=processor, image_mean=0.4)
        ```
        """
        config = self.config
        modalities, counts = [*config.modalities, name], [*config.modality_channels, channels]
        check_modalities(modalities, counts)
        source = None if like is None else _index_of(like, list(config.modalities))
        encoders = config.encoder_configs
        if source is None and len(encoders) > 1:
            raise ValueError(
                f"The model has the encoders {list(encoders)}; name by `like` a modality that shares its own."
            )
        if processor is None and normalization:
            raise ValueError(f"{sorted(normalization)} are fields of the processor; pass it as `processor` too.")
        if processor is not None:
            check_same_modalities(processor, config)
            processor.add_modality(name, channels, **normalization)
        model = self.base_model
        stem = self._new_module(model.make_stem(channels, model.encoder_channels()[source or 0]))
        if source is not None and counts[source] == channels:
            stem.load_state_dict(model.stems[source].state_dict())
        model.stems.append(stem)
        for fusion, stage_channels in zip(model.fusion_stages, model.channels, strict=True):
            projector = self._new_module(fusion.projector_class(stage_channels))
            if source is not None:
                projector.load_state_dict(fusion.projectors[source].state_dict())
            fusion.add_modality(projector)
            if fusion.date_modulations is not None:
                modulation = self._new_module(SgmaDateModulation(stage_channels, len(config.date_periods)))
                if source is not None:
                    modulation.load_state_dict(fusion.date_modulations[source].state_dict())
                fusion.date_modulations.append(modulation)
        joined = config.modalities[source or 0]
        groups = [[*group, name] if joined in group else group for group in config.encoder_groups]
        config.modalities, config.modality_channels = modalities, counts
        self._regroup(groups, list(encoders.values()))
        model.fusion_stages.modalities = list(modalities)
        if processor is None:
            logger.warning(f"The image processor does not know {name!r} yet: call `processor.add_modality({name!r})`.")

    def drop_modality(self, name: str, *, processor: Any = None) -> None:
        """Remove a modality with its stem and projectors; the rest, and its predictions, stay the same bit for bit.

        Args:
            name: Name of the modality.
            processor: The model's image processor, to be changed with it.

        Raises:
            ValueError: If the name is unknown, it is the only modality, the processor is another model's, or the
                modality has the widest encoder to itself.
        """
        config = self.config
        index = _index_to_drop(name, list(config.modalities))
        groups = [[other for other in group if other != name] for group in config.encoder_groups]
        self._check_widths([group for group, left in enumerate(groups) if left], name)
        if processor is not None:
            check_same_modalities(processor, config)
            processor.drop_modality(name)
        model = self.base_model
        del model.stems[index]
        for fusion in model.fusion_stages:
            fusion.drop_modality(index)
            if fusion.date_modulations is not None:
                del fusion.date_modulations[index]
        encoders = list(config.encoder_configs.values())
        config.modalities = [other for other in config.modalities if other != name]
        config.modality_channels = [*config.modality_channels[:index], *config.modality_channels[index + 1 :]]
        self._regroup(groups, encoders)
        model.fusion_stages.modalities = list(config.modalities)
        if processor is None:
            logger.warning(f"The image processor still has {name!r}: call `processor.drop_modality({name!r})`.")

    def _check_widths(self, left: list[int], name: str) -> None:
        """Refuse to drop the encoder that the fusion has its widths from: loaded again, the model would be another."""
        model = self.base_model
        widths = [model.encoder_widths(group) for group in left]
        if [max(stage) for stage in zip(*widths, strict=True)] != model.channels:
            raise ValueError(
                f"{name!r} is the only modality of the widest encoder, whose {model.channels} channels the fusion "
                "has. Train a model without it."
            )

    def _regroup(self, groups: list[list[str]], encoder_configs: list[Any]) -> None:
        """Take groups of modalities over into configuration and encoders; one that is empty loses its encoder."""
        model, names = self.base_model, list(self.config.modalities)
        left = [index for index, group in enumerate(groups) if group]
        left.sort(key=lambda index: names.index(groups[index][0]))
        self.config.set_encoders({"+".join(groups[index]): encoder_configs[index] for index in left})
        model.place_encoders([model.encoder(index) for index in left])

    @torch.no_grad()
    def _new_module(self, module: nn.Module) -> nn.Module:
        """Initialise a module as a new model's, where and as the encoder is."""
        module.apply(self._init_weights)
        neighbour = next(self.base_model.backbone.parameters())
        return module.to(device=neighbour.device, dtype=neighbour.dtype).train(self.training)


class SgmaProcessorModalitiesMixin:
    """`add_modality` and `drop_modality` of an image processor."""

    def add_modality(self, name: str, channels: int = 1, **normalization) -> None:
        """Give the processor one more modality, the last in order.

        Args:
            name: Name of the new modality.
            channels: Number of its bands.
            normalization: Its `rescale_factor`, `image_mean`, `image_std`, `nodata`, `reference_level` and
                `value_range`, each a value for this modality alone; what is left out is the default for its name.

        Raises:
            ValueError: If the name is malformed or taken, or a number cannot be used.
        """
        check_modalities([*self.modalities, name], [*self.modality_channels, channels])
        unknown = sorted(set(normalization) - set(PROCESSOR_LISTS))
        if unknown:
            raise ValueError(f"A modality has no {unknown}; expected some of {list(PROCESSOR_LISTS)}.")
        given = {field: [value] for field, value in normalization.items()}
        new = type(self)([name], [channels], **given)
        for field in ("modalities", "modality_channels", *PROCESSOR_LISTS):
            setattr(self, field, [*getattr(self, field), *getattr(new, field)])

    def drop_modality(self, name: str) -> None:
        """Remove a modality.

        Args:
            name: Name of the modality.

        Raises:
            ValueError: If the name is unknown, or it is the only modality.
        """
        index = _index_to_drop(name, self.modalities)
        for field in ("modalities", "modality_channels", *PROCESSOR_LISTS):
            values = getattr(self, field)
            setattr(self, field, [*values[:index], *values[index + 1 :]])


def check_same_modalities(processor: Any, config: Any) -> None:
    """Raise a ValueError unless the processor is for the model's modalities, in one order."""
    given = (list(processor.modalities), list(processor.modality_channels))
    expected = (list(config.modalities), list(config.modality_channels))
    if given != expected:
        raise ValueError(
            f"`processor` is for modalities {given[0]} with {given[1]} channels, the model for {expected[0]} with "
            f"{expected[1]}; they have to be the same, in one order. Load the processor from the model's own folder, "
            "or build it from the model's configuration."
        )
