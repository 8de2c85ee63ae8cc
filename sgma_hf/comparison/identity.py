"""When two runs are one training: arm, seed, data set, recipe and model."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import TrainingArguments

from ..model.configuration_sgma import SgmaConfig
from ..publishing.record import RECORDED_ARGUMENTS


# Settings that add figures to a run and are no part of the training, and settings that say where it ran.
EVALUATION_SETTINGS = ("choosing_split", "corruptions", "reliance")
PLACE_SETTINGS = ("device", "threads")
# What decides a training beside the settings and the arm.
TRAINING_ARGUMENTS = sorted(
    {*RECORDED_ARGUMENTS, "sampling_hardness", "sampling_max_ratio", "warmup_start_factor"}
    - {"learning_rate", "max_steps", "num_train_epochs", "per_device_train_batch_size", "crop_size"}
    - {"seed", "data_seed", "load_best_model_at_end", "metric_for_best_model"}
)
_MODEL_FIELDS = sorted(set(SgmaConfig.__annotations__) - {"backbone_config", "palette", "tile_size"})


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
    return {name: value for name, value in row["settings"].items() if name not in left_out}


def definition(row: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What an arm was and which model it built."""
    return row["arm_definition"], row["model_config"]


def is_recorded(identity: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a run of the same training, at the same place, is among the rows with all figures that are asked for."""
    wanted = json.loads(json.dumps(identity))  # as it reads back: tuples are lists
    settings, key = wanted["settings"], _key(wanted)
    figures = [name for name in ("corruptions", "reliance") if settings[name]]
    return any(
        _key(row) == key and settings["choosing_split"] in (None, *row["results"]) and row.keys() >= {*figures}
        for row in rows
    )


def _key(row: Mapping[str, Any]) -> list[Any]:
    settings = {name: value for name, value in row["settings"].items() if name not in EVALUATION_SETTINGS}
    named = (row["arm"], row["seed"], row["dataset"]["fingerprint"])
    return [*named, settings, *definition(row), row["training_arguments"]]
