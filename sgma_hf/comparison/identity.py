"""When two runs are one training: arm, seed, data set, recipe and model."""

import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from typing import Any

from transformers import AutoConfig, TrainingArguments

from ..model.configuration_sgma import SgmaConfig
from ..publishing.record import RECORDED_ARGUMENTS
from ..training.arguments import SgmaTrainingArguments
from .settings import RunSettings


# Settings that add figures to a run and are no part of the training, and settings that say where it ran.
EVALUATED = ("corruptions", "reliance", "calibration", "dates")  # settings and the figures in a line that they ask for
EVALUATION_SETTINGS = ("choosing_split", "curve_points", *EVALUATED)
PLACE_SETTINGS = ("device", "threads")
SCORING_SETTINGS = ("score_classes", "label_column")  # they change the figures of a training, and not its weights
# What decides a training beside the settings and the arm.
TRAINING_ARGUMENTS = sorted(
    set(RECORDED_ARGUMENTS)
    - {"learning_rate", "max_steps", "num_train_epochs", "per_device_train_batch_size", "crop_size"}
    - {"seed", "data_seed", "load_best_model_at_end", "metric_for_best_model"}
)
_MODEL_FIELDS = sorted(set(SgmaConfig.__annotations__) - {"backbone_config", "palette", "temperature", "tile_size"})


def model_fields(config: SgmaConfig) -> dict[str, Any]:
    """The model's own fields, so that a later change of the package's defaults is a change of the run."""
    return {name: getattr(config, name) for name in _MODEL_FIELDS}


def training_fields(arguments: TrainingArguments) -> dict[str, Any]:
    """Those of `TRAINING_ARGUMENTS`, without what an arm changes, so that a change of a default is one of the run."""
    values = arguments.to_dict()
    return {name: values[name] for name in TRAINING_ARGUMENTS}


def training_settings(row: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a run that its training depends on, wherever it ran."""
    left_out = EVALUATION_SETTINGS + PLACE_SETTINGS
    return {name: value for name, value in _settings(row).items() if name not in left_out}


def definition(row: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What an arm was and which model it built; fields that the package did not have then are as their defaults."""
    defaults = {name: getattr(SgmaConfig, name) for name in _MODEL_FIELDS if name not in row["model_config"]}
    return row["arm_definition"], {**row["model_config"], **defaults}


def training_arguments(row: Mapping[str, Any]) -> dict[str, Any]:
    """What a run was trained with; arguments that the package did not have then are as their defaults."""
    return dict(sorted({**_default_arguments(), **row["training_arguments"]}.items()))


@functools.cache
def _default_arguments() -> dict[str, Any]:
    """Defaults of those of `TRAINING_ARGUMENTS` that are the package's own."""
    own = set(SgmaTrainingArguments.__annotations__).intersection(TRAINING_ARGUMENTS)
    known = [one for one in fields(SgmaTrainingArguments) if one.name in own]
    return {one.name: one.default_factory() if one.default is MISSING else one.default for one in known}


def is_recorded(identity: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a run of the same training, at the same place, is among the rows with all figures that are asked for."""
    wanted = json.loads(json.dumps(identity))  # as it reads back: tuples are lists
    settings, key = wanted["settings"], run_key(wanted)
    figures = [name for name in EVALUATED if settings[name]]
    return any(
        run_key(row) == key
        and settings["choosing_split"] in (None, *row["results"])
        and row.keys() >= {*figures}
        and settings["dates"] in (None, _settings(row)["dates"])  # its means are over these shares
        for row in rows
    )


def run_key(row: Mapping[str, Any]) -> list[Any]:
    """What decides the weights of a run."""
    settings = {name: value for name, value in _settings(row).items() if name not in EVALUATION_SETTINGS}
    named = (row["arm"], row["seed"], row["dataset"]["fingerprint"])
    return [*named, settings, *definition(row), training_arguments(row)]


def _settings(row: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a run; what could not be set then is as its default."""
    return {
        **{name: value for name, value in asdict(RunSettings()).items() if value in (None, False)},
        **row["settings"],
    }


@functools.cache
def encoder_identity(name_or_path: str) -> dict[str, str]:
    """Name of a pretrained encoder, and what tells its weights: 16 digits of their SHA-256, or the Hub's commit."""
    folder = Path(name_or_path)
    if not folder.is_dir():
        return {"name": name_or_path, "fingerprint": str(AutoConfig.from_pretrained(name_or_path)._commit_hash)}
    digest = hashlib.sha256()
    for path in sorted(file for suffix in ("safetensors", "bin") for file in folder.glob(f"*.{suffix}")):
        digest.update(path.read_bytes())
    return {"name": folder.resolve().name, "fingerprint": digest.hexdigest()[:16]}
