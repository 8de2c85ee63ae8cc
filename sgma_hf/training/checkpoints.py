"""Training checkpoints in each of the layouts that `Trainer` writes: whether they are whole, and what continues them.

| layout | weights | optimizer |
|---|---|---|
| plain | `model.safetensors`, or its index and all shards | `optimizer.pt` |
| fsdp_full | `pytorch_model_fsdp.bin` | `optimizer.bin` |
| fsdp_sharded | `pytorch_model_fsdp_0/.metadata` and `*.distcp` | `optimizer_0/.metadata` and `*.distcp` |

Beside them lie `config.json`, `scheduler.pt`, the random state of every process, `modality_sampler.json` and, written
last, when all processes have written theirs, `trainer_state.json`. Under FSDP `model.safetensors` is there as well,
but nothing is resumed from it.
"""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from transformers.utils import logging

from ..model.configuration_sgma import SgmaConfig
from ..publishing.record import TrainingRecord
from .arguments import TUNING_ARGUMENTS


logger = logging.get_logger(__name__)

SAMPLER_STATE_NAME = "modality_sampler.json"
TRAINER_STATE_NAME = "trainer_state.json"

# Fields that make a model another one, and what saving and loading write into the configuration of its encoder.
_MODEL_FIELDS = {"id2label", *SgmaConfig.__annotations__} - {"palette", "temperature"}
_SERVICE_FIELDS = {"_name_or_path", "architectures", "dtype", "transformers_version", "use_cache"}

Layout = Literal["plain", "fsdp_full", "fsdp_sharded"]


def checkpoint_layout(checkpoint: str | os.PathLike) -> Layout:
    """Tell by what is in a checkpoint folder how it was trained, see the module's docstring."""
    checkpoint = Path(checkpoint)
    if (checkpoint / "pytorch_model_fsdp.bin").is_file() or (checkpoint / "optimizer.bin").is_file():
        return "fsdp_full"
    if (checkpoint / "pytorch_model_fsdp_0").is_dir() or (checkpoint / "optimizer_0").is_dir():
        return "fsdp_sharded"
    return "plain"


def is_complete_checkpoint(checkpoint: str | os.PathLike) -> bool:
    """Tell whether a checkpoint folder was written to its end, so that training can resume from it."""
    checkpoint = Path(checkpoint)
    sampler_state = read_sampler_state(checkpoint)
    if sampler_state is None or _read_json(checkpoint / TRAINER_STATE_NAME) is None:
        return False
    layout = checkpoint_layout(checkpoint)
    if layout == "fsdp_full":
        parts = _has(checkpoint, "pytorch_model_fsdp.bin", "optimizer.bin")
    elif layout == "fsdp_sharded":
        parts = _has_shards(checkpoint / "pytorch_model_fsdp_0") and _has_shards(checkpoint / "optimizer_0")
    else:
        index = _read_json(checkpoint / "model.safetensors.index.json")
        weights = {"model.safetensors"} if index is None else set(index["weight_map"].values())
        parts = _has(checkpoint, *weights, "optimizer.pt")
    count = sampler_state["num_processes"]
    random_states = ["rng_state.pth"] if count == 1 else [f"rng_state_{index}.pth" for index in range(count)]
    return parts and _has(checkpoint, "config.json", "scheduler.pt", *random_states)


def last_complete_checkpoint(output_dir: str | os.PathLike) -> str | None:
    """Find the newest checkpoint of a run that was written to its end, or None."""
    steps = [folder.name.removeprefix("checkpoint-") for folder in Path(output_dir).glob("checkpoint-*")]
    newest_first = sorted((step for step in steps if step.isdecimal()), key=int, reverse=True)
    folders = (str(Path(output_dir) / f"checkpoint-{step}") for step in newest_first)
    return next(filter(is_complete_checkpoint, folders), None)


def checkpoint_to_resume(given: str | os.PathLike | Literal[True], output_dir: str | os.PathLike) -> str:
    """Choose the checkpoint to resume from: a folder, which has to be complete, or with True the last that is."""
    last = last_complete_checkpoint(output_dir if given is True else Path(given).parent)
    if given is True and last is None:
        raise ValueError(
            f"{str(output_dir)!r} has no complete checkpoint to resume from. Leave `resume_from_checkpoint` out to "
            "start, or correct `output_dir`."
        )
    if given is not True and not is_complete_checkpoint(given):
        raise ValueError(
            f"{str(given)!r} is not a complete checkpoint: saving it was interrupted, or it is another folder. The "
            f"last complete one beside it: {last}."
        )
    return last if given is True else str(given)


def remove_checkpoint(checkpoint: str | os.PathLike) -> None:
    """Remove a checkpoint folder, if it is there; one that is removed in part is not complete."""
    (Path(checkpoint) / TRAINER_STATE_NAME).unlink(missing_ok=True)
    if Path(checkpoint).is_dir():
        shutil.rmtree(checkpoint)


def read_sampler_state(checkpoint: str | os.PathLike) -> dict[str, Any] | None:
    """Read what the trainer saved beside `trainer_state.json`; None if there is no such file, or half of it."""
    return _read_json(Path(checkpoint) / SAMPLER_STATE_NAME)


def check_continues(checkpoint: str | os.PathLike, config: SgmaConfig, *, layout: Layout, last_step: int) -> None:
    """Raise a ValueError for a checkpoint of another layout or model than a run's, or beyond its last step."""
    saved_layout = checkpoint_layout(checkpoint)
    if saved_layout != layout:
        raise ValueError(
            f"{str(checkpoint)!r} was saved in the layout {saved_layout!r}, this run resumes from {layout!r} only. "
            "Start it with the same Accelerate configuration, or start anew from the model's weights."
        )
    saved, given = _model_fields(type(config).from_pretrained(checkpoint)), _model_fields(config)
    names = sorted(name for name in saved.keys() | given.keys() if saved.get(name) != given.get(name))
    if names:
        changed = [f"`{name}` is {saved.get(name)} there, {given.get(name)} here" for name in names]
        raise ValueError(
            f"{str(checkpoint)!r} is of another model than this run: {'; '.join(changed)}. Resume with all arguments "
            "that it was started with, its training_record.json has the command, or start anew from the model's "
            "weights."
        )
    step = _read_json(Path(checkpoint) / TRAINER_STATE_NAME)["global_step"]
    if last_step < step:
        raise ValueError(
            f"{str(checkpoint)!r} is of step {step}, and this run ends at step {last_step}: it would train nothing. "
            "Raise `max_steps`, or without it `num_train_epochs`, or start anew in another folder."
        )


def compare_arguments(checkpoint: str | os.PathLike, arguments: Mapping[str, Any]) -> None:
    """Name the arguments that differ from those of the checkpoint's run; its steps are not done again.

    Raises:
        ValueError: If one of `TUNING_ARGUMENTS` differs.
    """
    record = TrainingRecord.load(checkpoint)
    if record is None:
        return
    here = json.loads(json.dumps(arguments))
    changed = {name: there for name, there in record.arguments.items() if name in here and here[name] != there}
    if not changed:
        return
    fields = "; ".join(f"`{name}` was {there}, is {here[name]}" for name, there in changed.items())
    if any(name in TUNING_ARGUMENTS for name in changed):
        raise ValueError(
            f"{str(checkpoint)!r} was trained with other arguments: {fields}. Its optimiser does not fit this run's; "
            "resume with those that it was started with."
        )
    logger.warning(
        f"{str(checkpoint)!r} was trained with other arguments: {fields}. Those of this run hold from here on, and "
        "its record will name them only."
    )


def check_rows_per_step(
    checkpoint: str | os.PathLike, rows: int, *, num_processes: int, accumulation_steps: int
) -> None:
    """Raise a ValueError unless the checkpoint's steps had as many rows: places in an epoch are steps."""
    saved = read_sampler_state(checkpoint)
    if saved["rows_per_step"] != rows:
        raise ValueError(
            f"{str(checkpoint)!r} was trained with {saved['rows_per_step']} rows per step by {saved['num_processes']} "
            f"processes; this run has {rows}: {num_processes} processes, times `per_device_train_batch_size`, times "
            f"`gradient_accumulation_steps` {accumulation_steps}. Choose them so that the product is "
            f"{saved['rows_per_step']}: else rows would be left out or come twice."
        )


def _model_fields(config: SgmaConfig) -> dict[str, Any]:
    """Fields by name, those of the encoder too, with values as JSON reads them back."""
    values = config.to_dict()
    encoder = values.pop("backbone_config")
    parts = {"": encoder} if "model_type" in encoder else {f"{group}.": part for group, part in encoder.items()}
    fields = {name: value for name, value in values.items() if name in _MODEL_FIELDS}
    for group, part in parts.items():
        kept = {name: value for name, value in part.items() if name not in _SERVICE_FIELDS}
        fields |= {f"backbone_config.{group}{name}": value for name, value in kept.items()}
    return json.loads(json.dumps(fields))


def _read_json(path: Path) -> Any | None:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):  # the disk was full, or the process killed, while it was written
        return None


def _has(folder: Path, *names: str) -> bool:
    return all((folder / name).is_file() for name in names)


def _has_shards(folder: Path) -> bool:
    """Whether torch's distributed checkpoint is whole: `.metadata` is written when all processes are done."""
    return _has(folder, ".metadata") and any(folder.glob("*.distcp"))
