"""One run of a comparison: an arm, trained with a seed on a data set and evaluated on other rows.

All arms of a comparison have the encoder, the rows, the crops and their turns, the batches, the number of steps, the
optimiser and its schedule in common; they differ in what `sgma_hf.comparison.arms` says and in nothing else. No
checkpoint is chosen: the weights that are evaluated are those of the last step.
"""

import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel, set_seed

from ..data.command_line import did_you_mean
from ..data.evaluation_mode import evaluating
from ..data.metadata import DatasetMetadata
from ..data.processor_fitting import colour_modalities, fit_processor, normalize_as_encoder
from ..evaluation.combinations import evaluate_modality_combinations
from ..evaluation.corruption_scores import evaluate_corruptions
from ..evaluation.over_time.dates import date_grid
from ..evaluation.protocols import expected_scores
from ..evaluation.trust.calibration import evaluate_calibration, fit_temperature, save_temperature
from ..evaluation.trust.reliance import reliance_error_agreement
from ..model.backbones_sgma import read_backbone_config
from ..model.configuration_sgma import SgmaConfig
from ..model.image_processing_sgma import SgmaImageProcessor
from ..model.limits_sgma import YEARLY_PERIODS
from ..model.modeling_sgma import SgmaForSemanticSegmentation
from ..publishing.record import dataset_name, hardware_name, package_commit, package_versions
from ..training.arguments import SgmaTrainingArguments
from ..training.collator import collator_of
from ..training.progress import PlainLog
from ..training.trainer import SgmaTrainer
from .arms import COMMON_TRAINING, Arm
from .arms.full_pass import FullPassConfig, FullPassForSemanticSegmentation
from .compared_rows import content_fingerprint, decoded_rows, load_metadata, num_bytes
from .identity import EVALUATED, encoder_identity, model_fields, training_fields
from .kept_models import keep_model, load_kept, model_folder
from .run_records import FORMAT_VERSION
from .settings import RunSettings


@dataclass(frozen=True)
class Run:
    """One line of the results: an arm and a seed on a data set."""

    arm: Arm
    seed: int  # of weights, crops, order and draws
    dataset: str  # folder of rows
    settings: RunSettings

    def identity(self, fingerprint: str) -> dict[str, Any]:
        """What decides the result of a run on rows of that `content_fingerprint`; see `is_recorded`."""
        metadata = load_metadata(self.dataset)
        settings = asdict(self.settings)
        if self.settings.backbone is not None:
            settings["backbone"] = encoder_identity(self.settings.backbone)
        return {
            "arm": self.arm.name,
            "seed": self.seed,
            "dataset": {"name": dataset_name(self.dataset)[0], "fingerprint": fingerprint},
            "settings": settings,
            "arm_definition": self.arm.definition(),
            "model_config": model_fields(_config(self.arm, self.settings, metadata)),
            "training_arguments": training_fields(_training_arguments(self.settings, "unused")),
        }


def _config(arm: Arm, settings: RunSettings, metadata: DatasetMetadata) -> SgmaConfig:
    config_class, own = SgmaConfig, {}
    if arm.build is not None:  # nothing of SGMA is built
        config_class, own = FullPassConfig, {"arm": arm.name, "fusion": "mean", "mas_loss_weight": 0.0}
    return config_class(
        modalities=metadata.modalities,
        modality_channels=metadata.modality_channels,
        id2label=dict(enumerate(metadata.class_names)),
        label2id={name: index for index, name in enumerate(metadata.class_names)},
        backbone_config=_backbone_config(settings),
        **{
            "decoder_hidden_size": settings.decoder_hidden_size,
            "dice_loss_weight": settings.dice_loss_weight,
            "modality_adapter_size": settings.modality_adapter_size,
            "date_periods": list(YEARLY_PERIODS) if metadata.series else None,
            **own,
            **arm.config,
        },
        palette=metadata.palette or None,
    )


def _backbone_config(settings: RunSettings) -> dict[str, Any] | PreTrainedConfig:
    """The encoder of all arms; a pretrained one keeps its bands where a modality has it to itself."""
    fields = dict(settings.backbone_config)
    return fields if settings.backbone is None else AutoConfig.for_model(**fields)


def _training_arguments(settings: RunSettings, folder: str, **changes: Any) -> SgmaTrainingArguments:
    """What all arms are trained with, and what differs for one."""
    values = {
        "max_steps": settings.max_steps,
        "per_device_train_batch_size": settings.batch_size,
        "crop_size": settings.crop_size,
        "learning_rate": settings.learning_rate,
        "use_cpu": settings.device == "cpu",
        "dataloader_pin_memory": settings.device != "cpu",
        "bf16": settings.bf16,
        "logging_steps": max(1, settings.max_steps // 10),
        "eval_strategy": "no",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }
    return SgmaTrainingArguments(output_dir=folder, **{**values, **COMMON_TRAINING, **changes})


def check_arm(run: Run) -> None:
    """Raise a ValueError, of one line, if an arm changes fields that there are not, or to what they do not take."""
    name, metadata = run.arm.name, load_metadata(run.dataset)
    unknown = [] if run.arm.build is not None else SgmaConfig.unknown_fields(run.arm.config)
    if unknown:
        raise ValueError(
            f"The arm {name}: `config` has {unknown[0]!r}, which is no field of SgmaConfig"
            f"{did_you_mean(unknown[0], SgmaConfig.__annotations__) or '; correct its name.'}"
        )
    try:
        processor = SgmaImageProcessor(metadata.modalities, metadata.modality_channels)
        config = _config(run.arm, run.settings, metadata)
        arguments = _training_arguments(run.settings, "unused", seed=run.seed, **run.arm.training)
        collator_of(arguments, processor, None, config)
    except Exception as error:  # of many kinds, in transformers' own words
        raise ValueError(f"The arm {name}: {' '.join(str(error).split())}") from error


def check_device(name: str) -> None:
    """Raise a ValueError if a run would not be on the device, that is on `cuda` without a GPU or with several."""
    if name != "cuda":
        return
    if not torch.cuda.is_available():
        raise ValueError("`device` is 'cuda', and torch finds no GPU here; run on 'cpu', or install torch for CUDA.")
    if torch.cuda.device_count() > 1:  # the trainer would spread every batch over all of them
        raise ValueError(
            f"`device` is 'cuda', and {torch.cuda.device_count()} GPUs are visible; a run is on one: choose it by the "
            "environment variable CUDA_VISIBLE_DEVICES, for instance CUDA_VISIBLE_DEVICES=0."
        )


def build_model(arm: Arm, settings: RunSettings, metadata: DatasetMetadata) -> PreTrainedModel:
    """Build an arm's model with weights from the global random state, or those of a pretrained encoder."""
    config = _config(arm, settings, metadata)
    if arm.build is not None:
        model = FullPassForSemanticSegmentation(config)
        if settings.backbone is not None:
            model.load_backbone(settings.backbone)
        return model
    if settings.backbone is not None:
        return SgmaForSemanticSegmentation.from_backbone_pretrained(settings.backbone, config)
    return SgmaForSemanticSegmentation(config)


def execute_run(run: Run, *, max_gigabytes: float = 4.0, keep_models: str | None = None) -> dict[str, Any]:
    """Train, evaluate and describe one run; the decoded rows of a split may take `max_gigabytes` of memory.

    With `keep_models`, a folder, the model is kept in a folder in it, and one that is there is not trained again.
    The row can be written as JSON: the run's identity, what it ran on, what it cost, and every figure of it; scores
    are fractions in [0, 1].
    """
    settings, seconds = run.settings, {}
    torch.set_num_threads(settings.threads)
    check_device(settings.device)
    with _timed(seconds, "load"):
        metadata = load_metadata(run.dataset)
        row = run.identity(content_fingerprint(run.dataset))
        splits = dict.fromkeys(filter(None, (settings.report_split, settings.choosing_split)))
        read = partial(decoded_rows, run.dataset, metadata=metadata, max_gigabytes=max_gigabytes)
        rows = {split: read(split, label_column=settings.label_column) for split in splits}
        training_rows = read(settings.train_split, missing=settings.missing)
    folder = None if keep_models is None else model_folder(keep_models, row)
    kept = None if folder is None else load_kept(folder, settings.device)
    if kept is None:
        model, processor, facts = _train(run, metadata, training_rows, rows.get(settings.choosing_split))
        if folder is not None:
            keep_model(folder, model, processor, facts)
    else:
        model, processor, facts = kept
        model.config.temperature = 1.0  # until it is fitted below
    seconds["train"] = facts["seconds"]
    row["dataset"] |= _describe_rows(metadata, {settings.train_split: training_rows, **rows})
    options = {"window_size": settings.crop_size, "batch_size": settings.batch_size}
    with _timed(seconds, "evaluate"):
        scored = options | {"scored_classes": settings.score_classes or "union"}
        row["results"] = {split: _evaluate(model, processor, part, scored) for split, part in rows.items()}
    evaluations = {
        "corruptions": evaluate_corruptions,
        "reliance": reliance_error_agreement,
        "dates": partial(_score_dates, shares=settings.dates, scored_classes=scored["scored_classes"]),
        "calibration": partial(_calibrate, folder=folder, fitted_on=rows.get(settings.choosing_split)),
    }
    for name in (name for name in EVALUATED if getattr(settings, name)):
        with _timed(seconds, name):
            row[name] = evaluations[name](model, processor, rows[settings.report_split], **options)
    row |= {
        "description": run.arm.description,
        "checkpoint": "last step",
        **_environment(model.device),
        "seconds": seconds,
        "parameters": model.num_parameters(),
        "gmacs": giga_macs(model, settings.crop_size),
        "losses": facts["losses"],
        **{name: facts[name] for name in ("dynamics",) if name in facts},  # models that were kept earlier have none
        "format_version": FORMAT_VERSION,
    }
    return finite(row)


@contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    seconds[name] = round(time.perf_counter() - started, 2)


def _train(
    run: Run, metadata: DatasetMetadata, rows: list[dict[str, Any]], choosing_rows: list[dict[str, Any]] | None
) -> tuple[PreTrainedModel, SgmaImageProcessor, dict[str, Any]]:
    """Return model and processor after the last step, and the last losses, how it learned and the seconds it took."""
    settings = run.settings
    set_seed(run.seed)
    model = build_model(run.arm, settings, metadata)
    processor = fit_processor(
        rows,
        metadata.modalities,
        metadata.modality_channels,
        nodata=metadata.nodata,
        num_labels=model.config.num_labels,
        crop_size=settings.crop_size,
    )
    processor.resolution = metadata.resolution
    if settings.backbone is not None:
        fields = (metadata.modalities, metadata.modality_channels, metadata.modality_dtypes)
        normalize_as_encoder(processor, settings.backbone, colour_modalities(*fields, None))
    facts: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="sgma-compare-") as folder:
        curve: dict[str, Any] = {}
        if settings.curve_points:
            curve = {"eval_strategy": "steps", "eval_steps": -(-settings.max_steps // settings.curve_points)}
        arguments = _training_arguments(settings, folder, seed=run.seed, **curve, **run.arm.training)
        shown = choosing_rows if curve else None
        trainer = SgmaTrainer(model, arguments, processing_class=processor, train_dataset=rows, eval_dataset=shown)
        trainer.remove_callback(PlainLog)
        with _timed(facts, "seconds"):
            trainer.train()
    names = (*(f"loss_{term}" for term in model.config.loss_terms), "loss")
    facts["losses"] = {name: entry[name] for entry in trainer.state.log_history for name in names if name in entry}
    facts["dynamics"] = trainer.dynamics.record()
    return trainer.plain_model().eval(), processor, facts


def _evaluate(
    model: PreTrainedModel, processor: SgmaImageProcessor, rows: list[dict[str, Any]], options: dict[str, Any]
) -> dict[str, Any]:
    results = evaluate_modality_combinations(model, processor, rows, return_tiles=True, **options)
    combinations = results["combinations"]
    kept = ("average_miou", "top1_miou", "top1_combination", "last1_miou", "last1_combination", "windows", "tiles")
    miou = {name: scores["miou"] for name, scores in combinations.items()}
    return {
        "combinations": combinations,
        **{name: results[name] for name in kept},
        "bernoulli_miou": expected_scores(miou, results["modalities"]),
    }


def check_dates(settings: RunSettings, metadata: DatasetMetadata) -> None:
    """Raise a ValueError if shares of dates are asked for that are none, or of a data set without series."""
    if settings.dates and not metadata.series:
        raise ValueError(f"`dates` are {settings.dates}, but no modality of the data set is a series; leave them out.")
    date_grid(settings.dates or ())


def _score_dates(
    model: PreTrainedModel,
    processor: SgmaImageProcessor,
    rows: list[dict[str, Any]],
    *,
    shares: list[str],
    **options: Any,
) -> dict[str, Any]:
    """What every combination scores with shares of the dates, which are the same for all arms and seeds."""
    return evaluate_modality_combinations(model, processor, rows, dates=date_grid(shares), **options)["dates"]


def _calibrate(
    model: PreTrainedModel,
    processor: SgmaImageProcessor,
    rows: list[dict[str, Any]],
    *,
    folder: Path | None,
    fitted_on: list[dict[str, Any]] | None,
    **options: Any,
) -> dict[str, Any]:
    """What `evaluate_calibration` counts; with rows to fit a temperature on, which is kept with the model."""
    if fitted_on is not None:
        model.config.temperature = fit_temperature(model, processor, fitted_on, **options)
        if folder is not None:
            save_temperature(folder, model.config.temperature)
    return evaluate_calibration(model, processor, rows, **options)


def giga_macs(model: PreTrainedModel, crop_size: int) -> float:
    """Multiply-accumulates, in 10^9, of one image of `crop_size` pixels a side with all modalities.

    Half of what torch's counter gives, which counts matrix products and convolutions.
    """
    pixel_values = torch.zeros(1, sum(model.config.modality_channels), crop_size, crop_size, device=model.device)
    # the counter does not know the CPU's fused attention, so the plain products are counted
    with evaluating(model), FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(pixel_values)
    return counter.get_total_flops() / 2 / 1e9


def _describe_rows(metadata: DatasetMetadata, rows: Mapping[str, list[dict[str, Any]]]) -> dict[str, Any]:
    return {
        "modalities": list(metadata.modalities),
        "class_names": list(metadata.class_names),
        "split_notes": {split: metadata.note_on(split) for split in rows},
        "rows": {
            split: {
                "count": len(part),
                "per_modality": [sum(row[name] is not None for row in part) for name in metadata.modalities],
            }
            for split, part in rows.items()
        },
        "megabytes": round(sum(map(num_bytes, rows.values())) / 1e6, 1),
    }


def _environment(device: torch.device) -> dict[str, Any]:
    commit = package_commit()
    package = sys.modules[__name__.partition(".")[0]]
    versions = {name: text for name, text in package_versions().items() if name != "sgma-hf"}
    return {
        "versions": {"sgma_hf": package.__version__, **versions},
        "commit": None if commit is None else commit.removesuffix("-dirty"),
        "commit_has_changes": None if commit is None else commit.endswith("-dirty"),
        "hardware": {
            "processor": hardware_name(device),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
        },
    }


def finite(value: Any) -> Any:
    """Copy of nested values in which NaN and infinity, which JSON has not, are None."""
    return json.loads(json.dumps(value), parse_constant=lambda _: None)


def pretrained_config(name_or_path: str) -> dict[str, Any]:
    """Read the configuration of a pretrained encoder, without what is not the encoder's: classes, versions, names."""
    config = read_backbone_config(name_or_path)
    others = ("id2label", "label2id", "num_labels", "architectures", "transformers_version", "dtype", "_name_or_path")
    return {name: value for name, value in config.to_diff_dict().items() if name not in others}
