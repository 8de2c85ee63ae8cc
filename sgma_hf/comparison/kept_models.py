"""Models that runs leave behind, so that figures can be added later, and maps made, without training again."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSemanticSegmentation, PreTrainedModel

from ..data.whole_files import write_json
from ..model.image_processing_sgma import SgmaImageProcessor
from .arms import full_pass  # noqa: F401  (transformers learns of its models by this import)
from .identity import SCORING_SETTINGS, run_key


RUN_FILE = "run.json"  # the last of its folder to be written


def model_folder(directory: str, identity: Mapping[str, Any]) -> Path:
    """Where the model of a run is kept: arm and seed, and 8 digits of what else decides the training."""
    settings = {name: value for name, value in identity["settings"].items() if name not in SCORING_SETTINGS}
    key = json.dumps(run_key({**identity, "settings": settings}), sort_keys=True)
    arm = identity["arm"].replace(":", ".")
    return Path(directory, f"{arm}-{identity['seed']}-{hashlib.sha256(key.encode()).hexdigest()[:8]}")


def keep_model(folder: Path, model: PreTrainedModel, processor: SgmaImageProcessor, facts: Mapping[str, Any]) -> None:
    """Save a model, its processor and what else is known of its training, as `evaluate` and `predict` read it."""
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    write_json(folder / RUN_FILE, dict(facts))


def load_kept(folder: Path, device: str) -> tuple[PreTrainedModel, SgmaImageProcessor, dict[str, Any]] | None:
    """The model, its processor and the facts that `keep_model` wrote; None if it was not, or not to the end."""
    if not (folder / RUN_FILE).is_file():
        return None
    facts = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))
    model = AutoModelForSemanticSegmentation.from_pretrained(folder, dtype=torch.float32)
    return model.to(device).eval(), SgmaImageProcessor.from_pretrained(folder), facts
