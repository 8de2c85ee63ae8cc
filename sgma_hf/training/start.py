"""What a training starts from: rows with labels, and a model with its processor."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForSemanticSegmentation,
    BaseImageProcessor,
    PreTrainedModel,
)
from transformers.utils import logging

from ..data.codec import decode_raster
from ..data.command_line import check_folder_or_id
from ..data.metadata import DatasetMetadata, check_meaning
from ..data.processor_fitting import colour_modalities, fit_processor, normalize_as_encoder, refit_processor
from ..data.rows import SPLIT_ALIASES, count_dates, labelled_rows, load_rows, present_modalities, with_modality_columns
from ..data.value_scale import rows_on_another_scale
from ..model.configuration_sgma import SgmaConfig
from ..model.image_processing_sgma import SgmaImageProcessor
from ..model.limits_sgma import YEARLY_PERIODS
from ..model.modeling_sgma import SgmaForSemanticSegmentation
from ..publishing.record import DataDescription
from .arguments import DATE_SHARES, RunArguments, SgmaTrainingArguments
from .augmentation import for_units
from .collator import collator_of
from .fine_tuning.encoder_arguments import (
    all_are_pretrained,
    encoder_fields,
    encoders_from_new_weights,
    pretrained_encoders,
)


logger = logging.get_logger(__name__)

# The arguments of a run that do not describe a new model.
_OF_ANY_MODEL = ("dataset", "train_split", "validation_split", "model", "fit_statistics", "overwrite")


@dataclass
class TrainingStart:
    """What `SgmaTrainer` takes; `validation_rows` are None if there are none to evaluate on."""

    model: PreTrainedModel
    processor: BaseImageProcessor
    train_rows: Dataset
    validation_rows: Dataset | None
    description: DataDescription
    encoder: str | None = None  # a line about a pretrained one


def start_training(arguments: RunArguments, training_args: SgmaTrainingArguments) -> TrainingStart:
    """Load the rows, and load or make the model and its processor, which is fitted to training crops."""
    pretrained = pretrained_encoders(arguments)
    named = [("data set", arguments.dataset), ("--model", arguments.model)]
    named += [("--backbone", path) for path in (pretrained.values() if isinstance(pretrained, dict) else [pretrained])]
    for what, given in named:
        if given is not None:
            check_folder_or_id(given, what)
    metadata = DatasetMetadata.load(arguments.dataset)
    units = {} if metadata is None else dict(zip(metadata.modalities, metadata.units, strict=True))
    training_args.augment = for_units(training_args.augment, units)
    modalities = _modalities(arguments, metadata)
    if metadata is not None:
        _check_dates(training_args, metadata, modalities)
    all_rows = load_rows(arguments.dataset, arguments.train_split)
    train_rows = _usable_rows(all_rows, modalities, "training")
    if len(train_rows) == 0:
        problem = _none_is_usable(all_rows, arguments.train_split, arguments.dataset, modalities)
        raise ValueError(f"{problem}; choose a labelled split by `--train_split`.")
    validation_rows = _validation_rows(arguments, training_args, modalities)
    encoder = None
    if arguments.model is None:
        model, processor, encoder = _new_model(arguments, training_args, metadata, modalities, train_rows)
    else:
        model = AutoModelForSemanticSegmentation.from_pretrained(arguments.model)
        processor = AutoImageProcessor.from_pretrained(arguments.model)
        check_meaning(metadata, model.config, processor)
        if arguments.fit_statistics:
            refit_processor(processor, _watched(train_rows), arguments.fit_statistics, training_args.crop_size)
        way_on = "fit the statistics anew by `--fit_statistics`"
        other = rows_on_another_scale(processor, train_rows, training_args.crop_size, way_on=way_on)
        if other is not None:
            logger.warning(other)
    if metadata is not None and metadata.resolution is not None:
        processor.resolution = metadata.resolution
    evaluation_split = None if validation_rows is None else arguments.validation_split or "validation"
    description = DataDescription(
        dataset=arguments.dataset,
        train_split=arguments.train_split,
        evaluation_split=evaluation_split,
        evaluation_note=metadata and evaluation_split and metadata.note_on(evaluation_split),
        units=units,
        classes=None if metadata is None else metadata.classes,
    )
    return TrainingStart(model, processor, train_rows, validation_rows, description, encoder)


def check_arguments(arguments: RunArguments, training_args: SgmaTrainingArguments) -> None:
    """Raise a ValueError if arguments of a new model and of one to go on from are mixed, or random weights kept."""
    keeps = "--freeze_encoder" if training_args.freeze_encoder else "--lora_rank" if training_args.lora_rank else None
    if keeps and arguments.model is None and not all_are_pretrained(arguments):
        raise ValueError(
            f"`{keeps}` would keep an encoder of random weights. Name a pretrained one by `--backbone`, or a "
            "model by `--model`."
        )
    if arguments.backbone is None and arguments.encoder_statistics not in (None, ["none"]):
        raise ValueError("`--encoder_statistics` are those of a `--backbone`; name one, or leave the flag out.")
    if arguments.model is None and arguments.fit_statistics:
        raise ValueError("`--fit_statistics` goes with `--model`; those of a new model are all fitted. Leave it out.")
    if arguments.filter_loss_weight and arguments.fusion != "sgf":
        raise ValueError(
            f"`--filter_loss_weight` is of the class filter of semantic-guided fusion, and `--fusion` is "
            f"{arguments.fusion!r}; leave one of the two out."
        )
    of_new_model = [item for item in fields(RunArguments) if item.name not in _OF_ANY_MODEL]
    changed = [f"--{item.name}" for item in of_new_model if getattr(arguments, item.name) != item.default]
    if arguments.model is not None and changed:
        raise ValueError(f"{changed} describe a new model, but `--model` goes on from one; leave one of the two out.")


def _check_dates(args: SgmaTrainingArguments, metadata: DatasetMetadata, modalities: list[str]) -> None:
    """Raise a ValueError if something is asked of dates, and no modality is a series."""
    asked = [f"--{name}" for name in ("date_dropout", "max_dates", "date_jitter") if getattr(args, name)]
    if args.date_keep != list(DATE_SHARES):
        asked.append("--date_keep")
    if asked and not any(metadata.is_series(name) for name in modalities if name in metadata.modalities):
        raise ValueError(f"{', '.join(asked)}: of the modalities {modalities} none is a series; leave it out.")


def _modalities(arguments: RunArguments, metadata: DatasetMetadata | None) -> list[str]:
    """Names of the modalities that the model has or shall have."""
    if arguments.model is not None:
        return list(AutoConfig.from_pretrained(arguments.model).modalities)
    if metadata is None or not metadata.class_names:
        raise ValueError(
            f"{arguments.dataset!r} has no sgma_dataset.json with class names, so its modalities and classes are not "
            "known; write it by `sgma-hf convert-rasters`, or go on from a checkpoint by `--model`."
        )
    modalities = arguments.modalities or metadata.modalities
    unknown = [name for name in modalities if name not in metadata.modalities]
    if unknown:
        raise ValueError(f"The data set has no modalities {unknown}; it has {metadata.modalities}.")
    if len(set(modalities)) < len(modalities):
        raise ValueError(f"`--modalities` is {modalities}; name each of them once.")
    return modalities


def _usable_rows(rows: Dataset, modalities: list[str], kind: str) -> Dataset:
    """Leave out the rows that have no label or none of the modalities, and say how many if any are left."""
    usable = labelled_rows(with_modality_columns(rows, modalities))
    if len(usable):
        present = present_modalities(usable, modalities).any(1)
        usable = usable if present.all() else usable.select(np.flatnonzero(present))
    if 0 < len(usable) < len(rows):
        logger.warning(
            f"{len(rows) - len(usable)} of {len(rows)} {kind} rows have no label or none of the modalities "
            f"{modalities}; they are left out."
        )
    return usable


def _none_is_usable(rows: Dataset, split: str, dataset: str, modalities: list[str]) -> str:
    where = f"the {len(rows)} rows of split {split!r} of {dataset!r}"
    return f"None of {where} has a label and any of the modalities {modalities}"


def _validation_rows(
    arguments: RunArguments, training_args: SgmaTrainingArguments, modalities: list[str]
) -> Dataset | None:
    """The rows to evaluate on while training, None if there are none; the test split is for the end."""
    split = arguments.validation_split or "validation"
    chooses = training_args.chooses_by_score
    is_asked_for = arguments.validation_split is not None or chooses or training_args.eval_strategy != "no"
    evaluated_on, trained_on = (SPLIT_ALIASES.get(name, name) for name in (split, arguments.train_split))
    if evaluated_on in ("test", trained_on):
        training_args.chooses_by_default = False
    if chooses and evaluated_on in ("test", trained_on):
        raise ValueError(
            f"`--load_best_model_at_end`, `--save_strategy best` or the learning rate's schedule would choose on "
            f"split {split!r}; name one that is neither trained on nor reported on, for instance one that the "
            "converter's `--val_fraction` makes."
        )
    try:
        rows = load_rows(arguments.dataset, split)
    except ValueError as error:
        if not is_asked_for:
            return None
        raise ValueError(f"{error} Name the rows to evaluate on by `--validation_split`.") from error
    usable = _usable_rows(rows, modalities, "validation")
    if len(usable):
        return usable
    # Some data sets publish no labels but those of their training rows.
    problem = _none_is_usable(rows, split, arguments.dataset, modalities)
    if is_asked_for:
        raise ValueError(
            f"{problem}: nothing can be evaluated on them. Name labelled rows by `--validation_split`, or leave "
            "`--validation_split`, `--eval_strategy` and what chooses by scores out."
        )
    logger.warning(f"{problem}; the model is not evaluated.")
    return None


def _watched(rows: Dataset) -> Iterator[Mapping[str, Any]]:
    """The rows under a progress bar, which begins with the first of them: what is refused before shows none."""
    yield from logging.tqdm(rows, desc="statistics", unit="row")


def _new_model(
    arguments: RunArguments,
    training_args: SgmaTrainingArguments,
    metadata: DatasetMetadata,
    modalities: list[str],
    rows: Dataset,
) -> tuple[SgmaForSemanticSegmentation, BaseImageProcessor, str | None]:
    """Make the model, fit its processor to the rows, and say in a line what a pretrained encoder is normalised by."""
    chosen = [metadata.modalities.index(name) for name in modalities]
    channels = [metadata.modality_channels[index] for index in chosen]
    config = _new_config(arguments, metadata, modalities, channels)
    # What the trainer's collator refuses is refused before weights and all rows are read.
    collator_of(training_args, SgmaImageProcessor(modalities, channels), None, config)
    pretrained = pretrained_encoders(arguments)
    colours: list[str] = []
    new = encoders_from_new_weights(arguments, list(config.encoder_configs))
    if new:
        which = "The encoder" if len(config.encoder_configs) == 1 else f"The encoder of {', that of '.join(new)}"
        logger.warning(
            f"{which} starts from random weights, which a `--learning_rate` of about 1e-3 suits. From pretrained "
            "ones it starts by `--backbone`, for instance `--backbone OpenGVLab/pvt_v2_b2` from the Hub."
        )
    if pretrained is None:
        model = SgmaForSemanticSegmentation(config)
    else:
        dtypes = [metadata.modality_dtypes[index] for index in chosen]
        colours = colour_modalities(modalities, channels, dtypes, arguments.encoder_statistics)
        model = SgmaForSemanticSegmentation.from_backbone_pretrained(pretrained, config)
    nodata = [metadata.nodata[index] for index in chosen]
    how = {"nodata": nodata, "num_labels": config.num_labels, "crop_size": training_args.crop_size}
    processor = fit_processor(_watched(rows), modalities, channels, **how)
    if pretrained is None:
        return model, processor, None
    if isinstance(pretrained, str):
        return model, processor, normalize_as_encoder(processor, pretrained, colours)
    lines = []
    for group, path in pretrained.items():
        seen = config.encoder_name(group).split("+")
        lines.append(normalize_as_encoder(processor, path, [name for name in colours if name in seen], seen))
    return model, processor, "\n".join(lines)


def _new_config(
    arguments: RunArguments, metadata: DatasetMetadata, modalities: list[str], channels: list[int]
) -> SgmaConfig:
    return SgmaConfig(
        modalities=modalities,
        modality_channels=channels,
        id2label=dict(enumerate(metadata.class_names)),
        label2id={name: index for index, name in enumerate(metadata.class_names)},
        **encoder_fields(arguments),
        decoder_hidden_size=arguments.decoder_hidden_size,
        logits_stride=arguments.logits_stride,
        modality_adapter_size=arguments.modality_adapter_size,
        fusion=arguments.fusion,
        date_periods=_date_periods(arguments, metadata, modalities),
        mas_loss_weight=arguments.mas_loss_weight,
        subset_loss_weight=arguments.subset_loss_weight,
        filter_loss_weight=arguments.filter_loss_weight,
        dice_loss_weight=arguments.dice_loss_weight,
        palette=metadata.palette or None,
        class_weights=_class_weights(arguments.class_weighting, metadata),
    )


def _date_periods(arguments: RunArguments, metadata: DatasetMetadata, modalities: Sequence[str]) -> list[float] | None:
    """Those that are asked for, none for 0; by default a year's where there are series."""
    if arguments.date_periods is not None:
        return None if arguments.date_periods == [0] else arguments.date_periods
    return list(YEARLY_PERIODS) if any(map(metadata.is_series, modalities)) else None


def _class_weights(weighting: str, metadata: DatasetMetadata) -> list[float] | None:
    """Weights whose mean over the training pixels is 1, so that the learning rate keeps its meaning."""
    if weighting == "none":
        return None
    if metadata.statistics is None:
        raise ValueError(
            f"`--class_weighting {weighting}` needs the data set's pixels per class, and its sgma_dataset.json has no "
            "statistics; convert it again, or leave the flag out."
        )
    pixels = np.asarray(metadata.statistics["class_pixels"], dtype=np.float64)
    share = np.maximum(pixels, 1) / np.maximum(pixels, 1).sum()  # a class without a pixel gets a finite weight
    weights = share ** (-1.0 if weighting == "inverse" else -0.5)
    return (weights / (share * weights).sum()).tolist()


def check_dataset(name: str, dataset: Any, *, may_stream: bool = False) -> None:
    """Raise a TypeError or ValueError unless it is None, rows that can be counted, or several sets of them by name."""
    if dataset is None or (may_stream and isinstance(dataset, torch.utils.data.IterableDataset)):
        return
    if isinstance(dataset, Mapping) and dataset:
        for part, rows in dataset.items():
            check_dataset(f"{name}[{part!r}]", rows)
        return
    if not hasattr(dataset, "__len__"):
        expected = "or an IterableDataset" if may_stream else "without streaming"
        raise TypeError(
            f"`{name}` is a {type(dataset).__name__} without a length; expected rows that can be counted, {expected}."
        )
    if len(dataset) == 0:
        raise ValueError(f"`{name}` has no rows; expected at least one.")


def check_batches(args: SgmaTrainingArguments, num_rows: int) -> None:
    """Refuse to leave out the only batch, which is not a whole one; several processes fill theirs up."""
    batch_size = args.per_device_train_batch_size
    if args.dataloader_drop_last and args.world_size == 1 and num_rows < batch_size:
        raise ValueError(
            f"`train_dataset` has {num_rows} rows, and `dataloader_drop_last` leaves out batches of less than "
            f"`per_device_train_batch_size` {batch_size}: none is left. Choose smaller batches, or leave "
            "`dataloader_drop_last` out."
        )


def prepare_to_stream(args: SgmaTrainingArguments) -> None:
    """Give up what needs the number of rows, and say so; modality-aware sampling in the model does not."""
    if args.max_steps <= 0:
        raise ValueError("`train_dataset` is streamed, so nobody knows how long an epoch is: set `max_steps`.")
    if args.robustness_sampling:
        logger.warning(
            "`train_dataset` is streamed: `robustness_sampling` of rows needs their number and is off, and the whole "
            "run counts as one epoch. Modality-aware sampling works as ever."
        )
    args.robustness_sampling = False
    args.accelerator_config.dispatch_batches = False  # every process reads, and takes its own rows


def dates_of_rows(rows: Sequence[Mapping[str, Any]], modalities: Sequence[str]) -> np.ndarray:
    """How many dates of each modality each training row has, (num_rows, num_modalities); every row needs one."""
    counts = count_dates(rows, modalities)
    empty = np.flatnonzero(~counts.any(1))
    if len(empty):
        names = [str(rows[int(index)].get("id", index)) for index in empty[:5]]
        raise ValueError(
            f"{len(empty)} of {len(counts)} training rows have none of the modalities {list(modalities)}, among them "
            f"{names}; leave such rows out of `train_dataset`."
        )
    return counts


def largest_side(rows: Sequence[Mapping[str, Any]]) -> int | None:
    """Largest side in pixels of some rows, spread over the set or its first: what is trained on without crops."""
    if isinstance(rows, torch.utils.data.IterableDataset):
        rows = list(itertools.islice(rows, 16))
    chosen = np.linspace(0, len(rows) - 1, min(len(rows), 16)).astype(int).tolist()
    labels = (decode_raster(rows[index].get("label"), is_label=True) for index in chosen)
    return max((max(label.shape[:2]) for label in labels if label is not None), default=None)
