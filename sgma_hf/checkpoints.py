"""Finding a training checkpoint that was written to its end."""

import json
import os
import re
from pathlib import Path


# `trainer_state.json` is what Trainer writes last.
REQUIRED_FILES = ("config.json", "optimizer.pt", "scheduler.pt", "trainer_state.json")


def is_complete_checkpoint(checkpoint: str | os.PathLike) -> bool:
    """Tell whether a checkpoint folder was written to its end, so that training can resume from it.

    Args:
        checkpoint: A folder `checkpoint-<step>` of `Trainer`.
    """
    checkpoint = Path(checkpoint)
    if not all((checkpoint / name).is_file() for name in REQUIRED_FILES):
        return False
    try:
        json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    except ValueError:  # the disk was full, or the process killed, while it was written
        return False
    return any(checkpoint.glob("model*.safetensors")) and any(checkpoint.glob("rng_state*.pth"))


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
