"""A step and a prediction of an arm's model before any training, so that what cannot work is said at once."""

from collections.abc import Callable

import torch
from transformers import PreTrainedModel

from ...data.evaluation_mode import evaluating


def dry_run(name: str, build: Callable[[], PreTrainedModel], crop_size: int) -> None:
    """Build a model, train it on two rows of noise, one of them with one modality only, and predict them.

    The global random state is left as it was.

    Raises:
        ValueError: If anything fails, in one line that names the arm.
    """
    step = "it cannot be built"
    try:
        with torch.random.fork_rng(devices=[]):
            model = build()
            step = f"it fails in its first step, on 2 rows of {crop_size} x {crop_size} pixels"
            config = model.config
            pixel_values = torch.randn(2, sum(config.modality_channels), crop_size, crop_size)
            modality_mask = torch.ones(2, config.num_modalities, dtype=torch.bool)
            modality_mask[1, 1:] = False
            labels = torch.zeros(2, crop_size, crop_size, dtype=torch.int64)
            loss = model.train()(pixel_values=pixel_values, modality_mask=modality_mask, labels=labels).loss
            loss.backward()
            if not loss.isfinite():
                raise ValueError(f"the loss is {loss.item()}")
            with evaluating(model):
                model.fuse_and_decode(model.encode(pixel_values, modality_mask))
    except Exception as error:  # whatever somebody's code may raise
        reason = " ".join(str(error).split()).rstrip(".")
        raise ValueError(f"The arm {name}: {step}: {type(error).__name__}: {reason}.") from error
