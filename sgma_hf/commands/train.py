"""`sgma-hf train`: train SGMA on a data set with nullable modality columns."""

import json
import sys
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from huggingface_hub.errors import HTTPError
from transformers import AutoConfig, AutoImageProcessor, AutoModelForSemanticSegmentation, HfArgumentParser, set_seed
from transformers.trainer_utils import SaveStrategy
from transformers.utils import logging

from sgma_hf import SgmaConfig, SgmaForSemanticSegmentation, SgmaImageProcessor
from sgma_hf.commands.arguments import read_argument_file
from sgma_hf.data.metadata import DatasetMetadata, check_meaning
from sgma_hf.data.processor_fitting import fit_processor, refit_processor
from sgma_hf.data.rows import SPLIT_ALIASES, labelled_rows, load_rows, present_modalities, with_modality_columns
from sgma_hf.evaluation.combinations import evaluate_modality_combinations
from sgma_hf.model.configuration_sgma import FUSIONS
from sgma_hf.publishing.push import PUSH_ERRORS, explain_push_error
from sgma_hf.publishing.record import DataDescription, command_line
from sgma_hf.publishing.results import results_to_markdown, save_results
from sgma_hf.training.arguments import SCHEDULES_BY_SCORE, SgmaTrainingArguments
from sgma_hf.training.checkpoints import remove_checkpoint
from sgma_hf.training.hub_trainer import PublicRepositoryError
from sgma_hf.training.trainer import SgmaTrainer


PVT_V2_SIZES = {
    "pvt_v2_b0": {"hidden_sizes": [32, 64, 160, 256], "depths": [2, 2, 2, 2]},
    "pvt_v2_b1": {"hidden_sizes": [64, 128, 320, 512], "depths": [2, 2, 2, 2]},
    "pvt_v2_b2": {"hidden_sizes": [64, 128, 320, 512], "depths": [3, 4, 6, 3]},
}
logger = logging.get_logger(__name__)


@dataclass
class TrainCommandArguments:
    """Arguments of `sgma-hf train` beside those of training."""

    dataset: str = field(metadata={"help": "Rows: a folder of a converter, or an id on the Hub."})
    train_split: str = field(default="train", metadata={"help": "Split to train on."})
    validation_split: str | None = field(
        default=None,
        metadata={
            "help": "Split to evaluate on while training, and to choose by; default: `validation` if it has labels."
        },
    )
    modalities: list[str] | None = field(
        default=None, metadata={"help": "Columns to use, in this order; default: all that the data set names."}
    )
    model: str | None = field(
        default=None, metadata={"help": "SGMA checkpoint to go on from, with its processor; default: a new model."}
    )
    fit_statistics: list[str] | None = field(
        default=None,
        metadata={
            "help": "Modalities of `--model` whose mean and standard deviation are fitted to the rows: those that "
            "were added to it and have no statistics of their own yet. A new model's are fitted in any case."
        },
    )
    overwrite: bool = field(
        default=False,
        metadata={"help": "Replace an earlier run in `--output_dir`; its checkpoints are removed before training."},
    )
    backbone: str | None = field(
        default=None,
        metadata={
            "help": "Pretrained encoder: Hub id or folder of a backbone or classifier; default: random weights."
        },
    )
    backbone_config: str = field(
        default="pvt_v2_b2",
        metadata={"help": f"Encoder of a new model: {', '.join(PVT_V2_SIZES)}, or a JSON file of its configuration."},
    )
    decoder_hidden_size: int = field(default=256, metadata={"help": "Width of a new model's decode head."})
    modality_adapter_size: int = field(
        default=SgmaConfig.modality_adapter_size,
        metadata={
            "help": "Hidden channels of a new model's adapter of each modality; 0, the paper's model, has none."
        },
    )
    fusion: str = field(default="sgf", metadata={"help": "How a new model fuses.", "choices": list(FUSIONS)})
    mas_loss_weight: float = field(
        default=1.0, metadata={"help": "Weight of modality-aware sampling's loss in a new model; 0 leaves it out."}
    )
    dice_loss_weight: float = field(
        default=SgmaConfig.dice_loss_weight,
        metadata={
            "help": "Weight of a Dice loss beside the cross-entropy in a new model, against class imbalance; 0 is the "
            "paper's loss."
        },
    )
    class_weighting: str = field(
        default="none",
        metadata={
            "help": "Weigh a new model's classes in the loss by the inverse of their share of the training pixels, or "
            "by its square root.",
            "choices": ["none", "inverse_sqrt", "inverse"],
        },
    )


def main(argv: list[str] | None = None) -> int:
    """Train, save the model with its processor, and evaluate it on the validation split.

    Args:
        argv: Arguments without the program's name; None takes those of the process. A single `.yaml` or `.json` file
            may stand for them.

    Returns:
        0, or 1 after one line if all went well but the push to the Hub; other errors are raised.
    """
    arguments, training_args = _parse(argv)
    if arguments.model is not None:
        _refuse_new_model_options(arguments)
    elif arguments.fit_statistics:
        raise ValueError("`--fit_statistics` goes with `--model`; those of a new model are all fitted. Leave it out.")
    resume = _resume(training_args)
    if not resume:
        _check_output(training_args, overwrite=arguments.overwrite)
    set_seed(training_args.seed)
    train_rows = _rows_to_train_on(arguments)
    validation_rows = _validation_rows(arguments, training_args)
    model, processor = _model_and_processor(arguments, train_rows, training_args.crop_size)
    if validation_rows is None:
        training_args.eval_strategy = "no"
    try:
        trainer = SgmaTrainer(
            model, training_args, processing_class=processor, train_dataset=train_rows, eval_dataset=validation_rows
        )
    except HTTPError as error:  # with `--push_to_hub` the repository is made before the training begins
        name = training_args.hub_model_id or Path(training_args.output_dir).name
        print(f"sgma-hf train: {explain_push_error(error, name)}", file=sys.stderr)
        return 1
    except PublicRepositoryError as error:
        print(f"sgma-hf train: {error}", file=sys.stderr)
        return 1
    trainer.data_description = _data_description(arguments, validation_rows)
    trainer.command = command_line(["sgma-hf", "train", *(sys.argv[1:] if argv is None else argv)])
    if arguments.overwrite and not resume:
        _remove_checkpoints(trainer)
    result = trainer.train(resume_from_checkpoint=resume)
    trainer.save_model(_internal_call=True)  # else it pushes, before there are scores for the card
    trainer.save_state()
    trainer.save_metrics("train", result.metrics)
    if validation_rows is not None:
        _report(trainer, validation_rows)
    trainer.create_model_card()
    if training_args.push_to_hub:
        return _push(trainer)
    return 0


def _push(trainer: SgmaTrainer) -> int:
    try:
        trainer.push_to_hub()
    except PUSH_ERRORS as error:
        name = trainer.hub_model_id
        print(f"sgma-hf train: {explain_push_error(error, name)}", file=sys.stderr)
        print(f"sgma-hf push-to-hub --model {trainer.args.output_dir} --repo_id {name}", file=sys.stderr)
        return 1
    return 0


def _data_description(arguments: TrainCommandArguments, validation_rows: Dataset | None) -> DataDescription:
    metadata = DatasetMetadata.load(arguments.dataset)
    return DataDescription(
        dataset=arguments.dataset,
        train_split=arguments.train_split,
        evaluation_split=None if validation_rows is None else arguments.validation_split or "validation",
        units={} if metadata is None else dict(zip(metadata.modalities, metadata.units, strict=True)),
    )


def _parse(argv: list[str] | None) -> tuple[TrainCommandArguments, SgmaTrainingArguments]:
    argument_classes = (TrainCommandArguments, SgmaTrainingArguments)
    parser = HfArgumentParser(argument_classes, prog="sgma-hf train", description=__doc__)
    argv = sys.argv[1:] if argv is None else argv
    if len(argv) == 1 and argv[0].endswith((".yaml", ".yml", ".json")):
        return parser.parse_dict(read_argument_file(argv[0], *argument_classes))
    return parser.parse_args_into_dataclasses(argv)


def _resume(training_args: SgmaTrainingArguments) -> str | bool | None:
    """`--resume_from_checkpoint true` is text on a command line."""
    resume = training_args.resume_from_checkpoint
    if isinstance(resume, str) and resume.lower() in ("true", "false"):
        return resume.lower() == "true"
    return resume


def _check_output(training_args: SgmaTrainingArguments, *, overwrite: bool) -> None:
    """Refuse a folder with the weights or the checkpoints of an earlier run, which would be lost or mixed up."""
    folder = Path(training_args.output_dir)
    found = sorted(path.name for pattern in ("checkpoint-*", "model*.safetensors") for path in folder.glob(pattern))
    if found and not overwrite:
        raise ValueError(
            f"`--output_dir` {str(folder)!r} holds an earlier run ({', '.join(found)}). Name another folder, go on "
            "with that run by `--resume_from_checkpoint true`, or replace it by `--overwrite true`."
        )


def _remove_checkpoints(trainer: SgmaTrainer) -> None:
    """Remove an earlier run's: the newest of them would be taken for one of this run."""
    if trainer.is_world_process_zero():
        for folder in Path(trainer.args.output_dir).glob("checkpoint-*"):
            remove_checkpoint(folder)


def _rows_to_train_on(arguments: TrainCommandArguments) -> Dataset:
    rows = load_rows(arguments.dataset, arguments.train_split)
    rows, modalities = _with_columns(arguments, rows)
    usable = _usable_rows(rows, modalities, "training")
    if len(usable) == 0:
        raise ValueError(
            f"None of the {len(rows)} rows of split {arguments.train_split!r} of {arguments.dataset!r} has a label "
            f"and any of the modalities {modalities}; choose a labelled split by `--train_split`."
        )
    return usable


def _with_columns(arguments: TrainCommandArguments, rows: Dataset) -> tuple[Dataset, list[str]]:
    """The rows with a column of each modality of the model, and the names of these."""
    if arguments.model is not None:
        modalities = list(AutoConfig.from_pretrained(arguments.model).modalities)
        return with_modality_columns(rows, modalities), modalities
    modalities = arguments.modalities or [name for name in rows.column_names if name not in ("id", "label")]
    unknown = [name for name in modalities if name not in rows.column_names]
    if unknown:
        raise ValueError(f"The data set has no modalities {unknown}; its columns are {rows.column_names}.")
    return rows, modalities


def _usable_rows(rows: Dataset, modalities: list[str], kind: str) -> Dataset:
    """Leave out the rows that have no label or none of the modalities, and say how many if any are left."""
    usable = labelled_rows(rows)
    if len(usable):
        present = present_modalities(usable, modalities).any(1)
        usable = usable if present.all() else usable.select(np.flatnonzero(present))
    if 0 < len(usable) < len(rows):
        logger.warning(
            f"{len(rows) - len(usable)} of {len(rows)} {kind} rows have no label or none of the modalities "
            f"{modalities}; they are left out."
        )
    return usable


def _follows_scores(training_args: SgmaTrainingArguments) -> bool:
    """Whether the scores of the evaluation decide what is kept, or how training goes on."""
    return (
        training_args.load_best_model_at_end
        or training_args.save_strategy == SaveStrategy.BEST
        or training_args.lr_scheduler_type in SCHEDULES_BY_SCORE
    )


def _validation_rows(arguments: TrainCommandArguments, training_args: SgmaTrainingArguments) -> Dataset | None:
    """The rows to evaluate on while training, None if there are none; the test split is for the end."""
    split = arguments.validation_split or "validation"
    chooses = _follows_scores(training_args)
    is_asked_for = arguments.validation_split is not None or chooses or training_args.eval_strategy != "no"
    evaluated_on, trained_on = (SPLIT_ALIASES.get(name, name) for name in (split, arguments.train_split))
    if chooses and evaluated_on in ("test", trained_on):
        raise ValueError(
            f"`--load_best_model_at_end`, `--save_strategy best` or the learning rate's schedule would choose on "
            f"split {split!r}; name one that is neither trained on nor reported on, for instance one that the "
            "converter's `--val-fraction` makes."
        )
    try:
        rows = load_rows(arguments.dataset, split)
    except ValueError as error:
        if not is_asked_for:
            return None
        raise ValueError(f"{error} Name the rows to evaluate on by `--validation_split`.") from error
    rows, modalities = _with_columns(arguments, rows)
    usable = _usable_rows(rows, modalities, "validation")
    if len(usable):
        return usable
    # Some data sets publish no labels but those of their training rows.
    problem = (
        f"None of the {len(rows)} rows of split {split!r} of {arguments.dataset!r} has a label and "
        f"any of the modalities {modalities}"
    )
    if is_asked_for:
        raise ValueError(
            f"{problem}: nothing can be evaluated on them. Name labelled rows by `--validation_split`, or leave "
            "`--validation_split`, `--eval_strategy` and what chooses by scores out."
        )
    logger.warning(f"{problem}; the model is not evaluated.")
    return None


def _model_and_processor(
    arguments: TrainCommandArguments, train_rows: Dataset, crop_size: int | None
) -> tuple[SgmaForSemanticSegmentation, SgmaImageProcessor]:
    metadata = DatasetMetadata.load(arguments.dataset)
    if arguments.model is not None:
        model = AutoModelForSemanticSegmentation.from_pretrained(arguments.model)
        processor = AutoImageProcessor.from_pretrained(arguments.model)
        check_meaning(metadata, model.config, processor)
        if arguments.fit_statistics:
            rows = logging.tqdm(train_rows, desc="statistics", unit="row")
            refit_processor(processor, rows, arguments.fit_statistics, crop_size)
        return model, processor
    if metadata is None or not metadata.class_names:
        raise ValueError(
            f"{arguments.dataset!r} has no sgma_dataset.json with class names, so its modalities and classes are not "
            "known; write it by `sgma-hf convert-rasters`, or go on from a checkpoint by `--model`."
        )
    modalities = arguments.modalities or metadata.modalities
    unknown = [name for name in modalities if name not in metadata.modalities]
    if unknown:
        raise ValueError(f"The data set has no modalities {unknown}; it has {metadata.modalities}.")
    chosen = [metadata.modalities.index(name) for name in modalities]
    channels = [metadata.modality_channels[index] for index in chosen]
    config = SgmaConfig(
        modalities=modalities,
        modality_channels=channels,
        id2label=dict(enumerate(metadata.class_names)),
        label2id={name: index for index, name in enumerate(metadata.class_names)},
        backbone_config=_backbone_config(arguments),
        decoder_hidden_size=arguments.decoder_hidden_size,
        modality_adapter_size=arguments.modality_adapter_size,
        fusion=arguments.fusion,
        mas_loss_weight=arguments.mas_loss_weight,
        dice_loss_weight=arguments.dice_loss_weight,
        palette=metadata.palette or None,
        class_weights=_class_weights(arguments.class_weighting, metadata),
    )
    if arguments.backbone is not None:
        model = SgmaForSemanticSegmentation.from_backbone_pretrained(arguments.backbone, config)
    else:
        model = SgmaForSemanticSegmentation(config)
    nodata = [metadata.nodata[index] for index in chosen]
    processor = fit_processor(
        logging.tqdm(train_rows, desc="statistics", unit="row"),
        modalities,
        channels,
        nodata=nodata,
        num_labels=config.num_labels,
        crop_size=crop_size,
    )
    return model, processor


def _refuse_new_model_options(arguments: TrainCommandArguments) -> None:
    defaults = {item.name: item.default for item in fields(TrainCommandArguments)}
    names = (
        "modalities",
        "backbone",
        "backbone_config",
        "decoder_hidden_size",
        "modality_adapter_size",
        "fusion",
        "mas_loss_weight",
        "dice_loss_weight",
        "class_weighting",
    )
    changed = [f"--{name}" for name in names if getattr(arguments, name) != defaults[name]]
    if changed:
        raise ValueError(f"{changed} describe a new model, but `--model` goes on from one; leave one of the two out.")


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


def _backbone_config(arguments: TrainCommandArguments) -> Any:
    """Configuration of the encoder: that of the pretrained one, a preset, or a file."""
    if arguments.backbone is not None:
        return AutoConfig.from_pretrained(arguments.backbone)
    if arguments.backbone_config in PVT_V2_SIZES:
        return {"model_type": "pvt_v2", **PVT_V2_SIZES[arguments.backbone_config]}
    path = Path(arguments.backbone_config)
    if not path.is_file():
        raise ValueError(
            f"`--backbone_config` is {arguments.backbone_config!r}; expected one of {list(PVT_V2_SIZES)} or a JSON "
            'file with a "model_type" and its fields.'
        )
    return json.loads(path.read_text(encoding="utf-8"))


def _report(trainer: SgmaTrainer, validation_rows: Dataset) -> None:
    """Score the model that was saved, print the table and write it beside the model."""
    model = trainer.whole_model()
    results = evaluate_modality_combinations(
        model,
        trainer.processing_class,
        validation_rows,
        window_size=trainer.model.config.tile_size,
        batch_size=trainer.args.per_device_eval_batch_size,
        accelerator=trainer.accelerator,
    )
    results = trainer.record_evaluation(results, model)
    if trainer.is_world_process_zero():
        save_results(results, Path(trainer.args.output_dir) / "validation_results.json")
        print(results_to_markdown(results))
