"""Training checkpoints in each of the layouts that `Trainer` writes: whether they are whole, and of which model.

| layout | weights | optimizer |
|---|---|---|
| plain | `model.safetensors`, or its index and all shards | `optimizer.pt` |
| fsdp_full | `pytorch_model_fsdp.bin` | `optimizer.bin` |
| fsdp_sharded | `pytorch_model_fsdp_0/.metadata` and `*.distcp` | `optimizer_0/.metadata` and `*.distcp` |

Beside them lie `config.json`, `scheduler.pt`, the random state of every process, `modality_sampler.json` (a checkpoint
of transformers' own Trainer has none) and, written last, when all processes have written theirs, `trainer_state.json`.
Under FSDP `model.safetensors` is there as well, but nothing is resumed from it.
"""

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any, Literal

from ..model.configuration_sgma import SgmaConfig


SAMPLER_STATE_NAME = "modality_sampler.json"
TRAINER_STATE_NAME = "trainer_state.json"

# Fields that make a model another one, and what saving and loading write into the configuration of its encoder.
_MODEL_FIELDS = {"id2label", *SgmaConfig.__annotations__} - {"palette"}
_SERVICE_FIELDS = {"_name_or_path", "architectures", "dtype", "transformers_version", "use_cache"}

Layout = Literal["plain", "fsdp_full", "fsdp_sharded"]


def checkpoint_layout(checkpoint: str | os.PathLike) -> Layout:
    """Tell by what is in a checkpoint folder how it was trained, see the module's docstring.

    Args:
        checkpoint: A folder `checkpoint-<step>` of `Trainer`.
    """
    checkpoint = Path(checkpoint)
    if (checkpoint / "pytorch_model_fsdp.bin").is_file() or (checkpoint / "optimizer.bin").is_file():
        return "fsdp_full"
    if (checkpoint / "pytorch_model_fsdp_0").is_dir() or (checkpoint / "optimizer_0").is_dir():
        return "fsdp_sharded"
    return "plain"


def is_complete_checkpoint(checkpoint: str | os.PathLike) -> bool:
    """Tell whether a checkpoint folder was written to its end, so that training can resume from it.

    Args:
        checkpoint: A folder `checkpoint-<step>` of `Trainer`.
    """
    checkpoint = Path(checkpoint)
    if _read_json(checkpoint / TRAINER_STATE_NAME) is None or not (checkpoint / "config.json").is_file():
        return False
    if (checkpoint / SAMPLER_STATE_NAME).exists() and read_sampler_state(checkpoint) is None:
        return False
    layout = checkpoint_layout(checkpoint)
    if layout == "fsdp_full":
        parts = _has(checkpoint, "pytorch_model_fsdp.bin", "optimizer.bin")
    elif layout == "fsdp_sharded":
        parts = _has_shards(checkpoint / "pytorch_model_fsdp_0") and _has_shards(checkpoint / "optimizer_0")
    else:
        parts = _has_safetensors(checkpoint) and _has(checkpoint, "optimizer.pt")
    return parts and _has(checkpoint, "scheduler.pt") and _has_random_states(checkpoint)


def last_complete_checkpoint(output_dir: str | os.PathLike) -> str | None:
    """Find the newest checkpoint of a run that was written to its end, or None.

    Args:
        output_dir: Folder of the run.
    """
    steps = {}
    for folder in Path(output_dir).glob("checkpoint-*"):
        match = re.fullmatch(r"checkpoint-(\d+)", folder.name)
        if match and is_complete_checkpoint(folder):
            steps[int(match[1])] = str(folder)
    return steps[max(steps)] if steps else None


def remove_checkpoint(checkpoint: str | os.PathLike) -> None:
    """Remove a checkpoint folder, if it is there; one that is removed in part is not complete.

    Args:
        checkpoint: A folder `checkpoint-<step>` of `Trainer`.
    """
    (Path(checkpoint) / TRAINER_STATE_NAME).unlink(missing_ok=True)
    if Path(checkpoint).is_dir():
        shutil.rmtree(checkpoint)


def read_sampler_state(checkpoint: str | os.PathLike) -> dict[str, Any] | None:
    """Read what the trainer saved beside `trainer_state.json`; None if there is no such file, or half of it.

    Args:
        checkpoint: A folder `checkpoint-<step>` of `Trainer`.
    """
    return _read_json(Path(checkpoint) / SAMPLER_STATE_NAME)


def changed_config_fields(checkpoint: str | os.PathLike, config: SgmaConfig) -> dict[str, tuple[Any, Any]]:
    """Compare the configuration that a checkpoint was saved with and that of a model.

    Args:
        checkpoint: A folder `checkpoint-<step>` of `Trainer`.
        config: Of the model.

    Returns:
        The checkpoint's value and the model's of each field that differs, those of the encoder by names such as
        `backbone_config.depths`.
    """
    saved, given = _model_fields(type(config).from_pretrained(checkpoint)), _model_fields(config)
    return {
        name: (saved.get(name), given.get(name))
        for name in sorted(saved.keys() | given.keys())
        if saved.get(name) != given.get(name)
    }


def _model_fields(config: SgmaConfig) -> dict[str, Any]:
    """Fields by name, those of the encoder too, with values as JSON reads them back."""
    values = config.to_dict()
    encoder = values.pop("backbone_config")
    fields = {name: value for name, value in values.items() if name in _MODEL_FIELDS}
    fields |= {f"backbone_config.{name}": value for name, value in encoder.items() if name not in _SERVICE_FIELDS}
    return json.loads(json.dumps(fields))


def _read_json(path: Path) -> Any | None:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):  # the disk was full, or the process killed, while it was written
        return None


def _has(folder: Path, *names: str) -> bool:
    return all((folder / name).is_file() for name in names)


def _has_safetensors(folder: Path) -> bool:
    if _has(folder, "model.safetensors"):
        return True
    index = _read_json(folder / "model.safetensors.index.json")
    return index is not None and _has(folder, *set(index["weight_map"].values()))


def _has_shards(folder: Path) -> bool:
    """Whether torch's distributed checkpoint is whole: `.metadata` is written when all processes are done."""
    return _has(folder, ".metadata") and any(folder.glob("*.distcp"))


def _has_random_states(checkpoint: Path) -> bool:
    """Whether there is one of every process; where their number is not known, those that are there are the first."""
    state = read_sampler_state(checkpoint)
    count = max(1, len(list(checkpoint.glob("rng_state_*.pth")))) if state is None else state["num_processes"]
    if count == 1:
        return _has(checkpoint, "rng_state.pth") or _has(checkpoint, "rng_state_0.pth")
    return _has(checkpoint, *(f"rng_state_{index}.pth" for index in range(count)))
