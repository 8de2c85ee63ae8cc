"""What `--model` and `--device` name, checked before anything slow is done."""

from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from transformers import AutoConfig, AutoImageProcessor


def load_processor(model: str) -> Any:
    """The image processor of an SGMA checkpoint.

    Args:
        model: A folder, or an id on the Hub.

    Raises:
        ValueError: If it is neither, or a checkpoint of another model.
    """
    try:
        config = AutoConfig.from_pretrained(model)
        if config.model_type == "sgma":
            return AutoImageProcessor.from_pretrained(model)
    except OSError as error:
        raise ValueError(f"`--model {model}` cannot be loaded: {_why_not(model, error)}") from error
    raise ValueError(f"`--model {model}` is a checkpoint of {config.model_type!r}; expected one of SGMA.")


def _why_not(model: str, error: OSError) -> str:
    if Path(model).is_dir():
        return str(error)
    try:
        validate_repo_id(model)
    except HFValidationError:
        return "there is no such folder."
    return f"there is no such folder, and from the Hub: {str(error).splitlines()[0]}"


def choose_device(name: str | None, *, local_rank: int = 0) -> str:
    """The device that `--device` names, checked; None takes the process's GPU where there is one, else the CPU.

    Raises:
        ValueError: If it is no device of torch, or one that is not there.
    """
    if name is None:
        return f"cuda:{local_rank}" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:  # an assertion says that torch was built without CUDA
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"`--device {name}` cannot be used: {reason.rstrip('.')}. Leave it out, or give cpu."
        ) from error
    return name
