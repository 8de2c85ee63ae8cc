"""When two runs are one training: arm, seed, data set, recipe and model, also where older lines lack newer fields."""

import json
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from transformers import TrainingArguments

from ..model.configuration_sgma import SgmaConfig
from ..publishing.record import RECORDED_ARGUMENTS
from .arms import Arm


# Settings that add figures to a run and are no part of the training, and settings that say where it ran.
EVALUATION_SETTINGS = ("choosing_split", "corruptions", "reliance")
PLACE_SETTINGS = ("device", "threads")
# Fields of the model that are settings of all arms, and what they are in lines from before they existed.
_BEFORE_THE_SETTING = {"dice_loss_weight": 0.0, "modality_adapter_size": 0}
# What decides a training beside the settings and the arm.
TRAINING_ARGUMENTS = sorted(
    {*RECORDED_ARGUMENTS, "sampling_hardness", "sampling_max_ratio", "warmup_start_factor"}
    - {"learning_rate", "max_steps", "num_train_epochs", "per_device_train_batch_size", "crop_size"}
    - {"seed", "data_seed", "load_best_model_at_end", "metric_for_best_model"}
)
_MODEL_FIELDS = sorted(set(SgmaConfig.__annotations__) - {"backbone_config", "palette", "tile_size"})


def model_fields(config: SgmaConfig) -> dict[str, Any]:
    """The model's own fields, so that a later change of the package's defaults is a change of the run.

    Args:
        config: Of the model; its encoder is among the settings.
    """
    values = {name: getattr(config, name, None) for name in _MODEL_FIELDS}
    return {
        name: value
        for name, value in values.items()
        if value is None or isinstance(value, bool | int | float | str | list | tuple | dict)
    }


def training_fields(arguments: TrainingArguments) -> dict[str, Any]:
    """The arguments of `TRAINING_ARGUMENTS`, so that a change of a default is a change of the run.

    Args:
        arguments: Of the training, without what an arm changes: its definition says that.
    """
    values = arguments.to_dict()
    return {name: values[name] for name in TRAINING_ARGUMENTS if name in values}


def training_settings(row: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a run that its training depends on, wherever it ran."""
    left_out = EVALUATION_SETTINGS + PLACE_SETTINGS
    settings = {name: value for name, value in row["settings"].items() if name not in left_out}
    model = definition(row)["model"]
    return {**{name: model[name] for name in _BEFORE_THE_SETTING}, **settings}


def definition(row: Mapping[str, Any]) -> dict[str, Any]:
    """What an arm was and which model it built.

    A field that the line lacks, because it is older, has its default, or what `_BEFORE_THE_SETTING` says.
    """
    arm, model = _defaults()
    return {"arm": {**arm, **row["arm_definition"]}, "model": {**model, **_BEFORE_THE_SETTING, **row["model_config"]}}


@cache
def _defaults() -> tuple[dict[str, Any], dict[str, Any]]:
    return _as_read(Arm("", "").definition()), _as_read(model_fields(SgmaConfig()))


def _as_read(value: Any) -> Any:
    """As it reads back from JSON: tuples are lists, keys are text."""
    return json.loads(json.dumps(value))


def is_recorded(identity: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a run of the same training, at the same place, is among the rows with all figures that are asked for.

    Training arguments that a row lacks, because it is older, count as equal.

    Args:
        identity: `Run.identity`.
        rows: What `run_records.read_rows` returned.
    """
    wanted = _as_read(identity)
    return any(_is_same_training(row, wanted) and _has_figures(row, wanted["settings"]) for row in rows)


def _is_same_training(row: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    places = ([one["settings"].get(name) for name in PLACE_SETTINGS] for one in (row, wanted))
    recorded = row.get("training_arguments", {})
    return (
        (row["arm"], row["seed"], row["dataset"]["fingerprint"])
        == (wanted["arm"], wanted["seed"], wanted["dataset"]["fingerprint"])
        and next(places) == next(places)
        and training_settings(row) == training_settings(wanted)
        and definition(row) == definition(wanted)
        and all(recorded.get(name, value) == value for name, value in wanted["training_arguments"].items())
    )


def _has_figures(row: Mapping[str, Any], settings: Mapping[str, Any]) -> bool:
    return settings["choosing_split"] in (None, *row["results"]) and all(
        name in row for name in ("corruptions", "reliance") if settings[name]
    )
