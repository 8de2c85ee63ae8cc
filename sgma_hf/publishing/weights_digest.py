"""Which weights a score is of: a SHA-256 that a copy of a checkpoint keeps, and any other weights do not have."""

import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from transformers.utils import cached_file


DIGEST_KEY = "weights_sha256"  # in the files of results


def weights_digest(weights: Iterable[tuple[str, torch.Tensor]]) -> str:
    """SHA-256 of names, dtypes, shapes and values of `model.state_dict().items()`, whatever their order."""
    lines = []
    for name, tensor in weights:
        content = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
        lines.append(f"{name} {tensor.dtype} {tuple(tensor.shape)} {hashlib.sha256(content).hexdigest()}\n")
    return hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()


def checkpoint_digest(name_or_path: str | os.PathLike) -> str:
    """`weights_digest` of a checkpoint in safetensors files: moved, or split into others, it stays the same.

    An OSError says that there is no such checkpoint, or no weights in it.
    """
    return weights_digest(_stored_weights(Path(cached_file(str(name_or_path), "config.json")).parent))


def _stored_weights(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """One tensor after the other: only one of them is in memory."""
    paths = sorted(folder.glob("model*.safetensors"))
    if not paths:
        raise FileNotFoundError(f"{folder} holds no weights, model.safetensors or parts of it; save the model there.")
    for path in paths:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():
                yield name, file.get_tensor(name)
