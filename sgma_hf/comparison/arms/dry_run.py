"""A step and a prediction of an arm's model before any training, so that what cannot work is said at once."""

from collections.abc import Callable

import torch
from transformers import PreTrainedModel

from ...data.evaluation_mode import evaluating
from ...model.dates_sgma import dates_for


def dry_run(name: str, build: Callable[[], PreTrainedModel], crop_size: int, *, series: bool = False) -> None:
    """Build a model, train it on two rows of noise, one of them with one modality only, and predict them.

    With `series`, rows have two dates of each modality.

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
            shape = (2, 2) if series else (2,)
            inputs = {
                "pixel_values": torch.randn(*shape, sum(config.modality_channels), crop_size, crop_size),
                "modality_mask": torch.ones(*shape, config.num_modalities, dtype=torch.bool),
                **dates_for(config, torch.zeros(*shape, config.num_modalities) if series else None),
            }
            inputs["modality_mask"][1, ..., 1:] = False
            labels = torch.zeros(2, crop_size, crop_size, dtype=torch.int64)
            loss = model.train()(**inputs, labels=labels).loss
            loss.backward()
            if not loss.isfinite():
                raise ValueError(f"the loss is {loss.item()}")
            with evaluating(model):
                model.fuse_and_decode(model.encode(**inputs))
    except Exception as error:  # whatever somebody's code may raise
        reason = " ".join(str(error).split()).rstrip(".")
        raise ValueError(f"The arm {name}: {step}: {type(error).__name__}: {reason}.") from error
