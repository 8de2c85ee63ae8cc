"""What a training run was: `training_record.json` beside the weights, from which the model card is written.

It is JSON, and stands in for Trainer's pickled `training_args.bin`. It holds no access token, and of an absolute path
the last part only.
"""

import json
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path
from typing import Any

import torch
from transformers.utils import cached_file

from ..data.class_maps import ClassMap
from ..data.rows import SPLIT_ALIASES
from ..data.whole_files import read_dataclass, write_json


RECORD_FILE = "training_record.json"
# What decides the result; the rest of the arguments says where and how often to write.
RECORDED_ARGUMENTS = (
    "learning_rate weight_decay adam_beta1 adam_beta2 adam_epsilon max_grad_norm optim lr_scheduler_type "
    "lr_scheduler_kwargs warmup_steps warmup_start_factor num_train_epochs max_steps per_device_train_batch_size "
    "gradient_accumulation_steps seed data_seed bf16 fp16 load_best_model_at_end metric_for_best_model crop_size "
    "random_flip random_quarter_turns random_scale modality_dropout noise_std gain_range augment class_balanced_crops "
    "date_dropout date_keep max_dates date_jitter robustness_sampling sampling_hardness sampling_max_ratio "
    "freeze_encoder encoder_learning_rate layer_decay lora_rank ema_decay"
).split()
_TOKEN = re.compile(r"hf_[A-Za-z0-9]{8,}")
_TOKEN_FLAGS = ("--hub_token", "--hub-token", "--token", "--push_to_hub_token")
_REDACTED = "<token>"
_NO_COMMANDS = ("ipykernel", "colab", "pytest", "py.test")  # these run code that somebody typed elsewhere


@dataclass
class DataDescription:
    """Where the rows of a run came from, as far as the rows themselves do not say."""

    dataset: str | None = None  # id on the Hub, or a folder, of which only the name is recorded
    train_split: str | None = None
    evaluation_split: str | None = None
    evaluation_note: str | None = None  # `DatasetMetadata.note_on` it
    units: dict[str, str | None] = field(default_factory=dict)  # of the values, by modality
    classes: list[dict[str, Any]] | None = None  # as `DatasetMetadata.classes`


@dataclass
class TrainingRecord:
    """Facts of one run; None is what nobody recorded."""

    dataset: str | None = None
    dataset_is_on_hub: bool = False
    train_split: str | None = None
    train_rows: int | None = None
    units: dict[str, str | None] = field(default_factory=dict)
    classes: list[dict[str, Any]] | None = None  # which values of label files they are, `DatasetMetadata.classes`
    finetuned_from: str | None = None  # checkpoint that training went on from
    backbone: str | None = None  # checkpoint that the encoder of a new model started from
    has_pyramid: bool = False  # whether a feature pyramid, which no checkpoint of an encoder has, stands behind it
    command: str | None = None  # as `command_line` gives it
    arguments: dict[str, Any] = field(default_factory=dict)  # those of `RECORDED_ARGUMENTS`
    num_processes: int | None = None
    steps: int | None = None  # of the optimiser, until these weights
    epochs: float | None = None
    train_seconds: float | None = None  # wall-clock time of a finished run
    versions: dict[str, str] = field(default_factory=dict)
    commit: str | None = None  # of the package's repository
    hardware: str | None = None
    # Results of `evaluate_modality_combinations` of these very weights, with `dataset`, `split` and their SHA-256.
    evaluation: dict[str, Any] | None = None
    # What chose this checkpoint among those of the run: `score`, `dataset` and `split`; None is the run's last step.
    selection: dict[str, Any] | None = None

    def chosen_by(self, dataset: str, split: str) -> str | None:
        """The score by which the rows of a split chose these weights; None if they did not."""
        if self.selection is None or self.selection["dataset"] != dataset_name(dataset)[0]:
            return None
        chose, split = (SPLIT_ALIASES.get(name, name) for name in (self.selection["split"], split))
        return self.selection["score"] if chose == split else None

    def save(self, directory: str | os.PathLike) -> None:
        """Write `training_record.json`, whole or not at all."""
        write_json(Path(directory) / RECORD_FILE, asdict(self))

    @classmethod
    def load(cls, directory: str | os.PathLike) -> "TrainingRecord | None":
        """Read the record of a checkpoint; None if it has none, a ValueError if it is not what `save` writes."""
        path = Path(directory) / RECORD_FILE
        return read_dataclass(cls, path, "record of a training run") if path.is_file() else None


def recorded_classes(model: str, names: Sequence[str]) -> ClassMap | None:
    """Which label values were the classes `names` of a checkpoint, folder or id; None if it has no record of that."""
    try:
        record = TrainingRecord.load(Path(cached_file(model, RECORD_FILE)).parent)
    except OSError:  # a checkpoint need not have one
        return None
    return None if record is None or record.classes is None else ClassMap.of_record(record.classes, names)


def redact_tokens(arguments: Sequence[str]) -> list[str]:
    """Replace access tokens among command-line arguments."""
    result: list[str] = []
    for argument in arguments:
        flag, separator, _ = argument.partition("=")
        if result and result[-1] in _TOKEN_FLAGS:
            argument = _REDACTED
        elif flag in _TOKEN_FLAGS and separator:
            argument = f"{flag}={_REDACTED}"
        result.append(_TOKEN.sub(_REDACTED, argument))
    return result


def _without_folders(argument: str) -> str:
    """Of an absolute path, alone or as the value of a flag, the last part: the others name a person or a machine."""
    flag, separator, value = argument.rpartition("=")
    if os.path.isabs(argument) or not separator:
        flag, separator, value = "", "", argument
    value = os.path.expanduser(value) if value.startswith("~") else value
    return flag + separator + (os.path.basename(os.path.normpath(value)) if os.path.isabs(value) else value)


def command_line(arguments: Sequence[str] | None = None) -> str | None:
    """The command of this process, or of `arguments`; None if it was no command (a notebook, `python -c`, a test).

    It has no tokens, and of absolute paths the last part.
    """
    program, *rest = sys.argv if arguments is None else arguments
    is_module = os.path.basename(program) == "__main__.py"  # python -m
    name = os.path.basename(os.path.dirname(program) if is_module else program)
    if arguments is None and (name in ("", "-c", "-m") or name.startswith(_NO_COMMANDS)):
        return None
    words = [name]
    if name.endswith(".py"):
        path = os.path.relpath(program) if os.path.isfile(program) else name
        words = ["python", name if path.startswith("..") else path]
    return shlex.join([*words, *map(_without_folders, redact_tokens(rest))])


def package_versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide a result."""
    versions = {"python": platform.python_version()}
    for name in ("sgma-hf", "torch", "transformers", "datasets", "accelerate"):
        with suppress(PackageNotFoundError):  # run from a checkout that is not installed
            versions[name] = version(name)
    return versions


def package_commit() -> str | None:
    """Commit of the package: of its checkout, with "-dirty" if that has changes, or that it was installed from."""
    package = Path(__file__).resolve().parents[1]
    try:
        # Only if git knows this very file: an environment may lie inside somebody else's repository.
        _git(package, "ls-files", "--error-unmatch", "__init__.py")
        commit = _git(package, "rev-parse", "HEAD")
        return f"{commit}-dirty" if _git(package, "status", "--porcelain", "--untracked-files=no", ".") else commit
    except (OSError, subprocess.SubprocessError):
        pass
    try:
        content = distribution("sgma-hf").read_text("direct_url.json")
    except PackageNotFoundError:
        return None
    return json.loads(content or "{}").get("vcs_info", {}).get("commit_id")


def _git(folder: Path, *arguments: str) -> str:
    run = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=10, check=True)
    return run.stdout.strip()


def hardware_name(device: torch.device) -> str:
    """The GPU, or the processor, that a run is on."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    except OSError:
        name = platform.processor()
    return f"CPU ({name or platform.machine()})"


def dataset_name(dataset: str | None) -> tuple[str | None, bool]:
    """Name of a data set for others, and whether it is an id on the Hub: of a local folder only the last part."""
    if dataset is None:
        return None, False
    if os.path.exists(dataset) or not re.fullmatch(r"[\w.-]+/[\w.-]+", dataset) or dataset.startswith("."):
        return os.path.basename(os.path.abspath(dataset)), False
    return dataset, True
