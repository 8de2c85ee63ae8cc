"""Weights beside those that are trained: adapters that are merged in the end, and an average over the steps."""

import copy
import os
import re
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import PreTrainedModel
from transformers.utils import is_peft_available

from ...publishing.record import dataset_name
from ..arguments import SgmaTrainingArguments


ADAPTER_FOLDER = "adapter"
TRAINED_WEIGHTS_NAME = "trained_weights.pt"
_ENCODER = re.compile(r"(?:.*\.)?sgma\.backbone(?:_\d+)?")


class TunedWeights:
    """A model in training by LoRA, with an average of its weights, or both; what it amounts to is plain SGMA.

    LoRA (arXiv:2106.09685) is PEFT's, of rank `args.lora_rank` and scale 1, at every linear projection and 1x1
    convolution of the encoder, whose own weights stay; what is around the encoder learns as ever. The average is
    torch's, over optimiser steps, after each of which it keeps `args.ema_decay` of itself; its buffers are the
    model's.
    """

    def __init__(self, model: PreTrainedModel, args: SgmaTrainingArguments):
        self.has_adapters = args.lora_rank > 0
        self._trained = add_adapters(model, args.lora_rank) if self.has_adapters else model
        self._average = None
        if args.ema_decay:
            self._average = AveragedModel(self._trained, multi_avg_fn=get_ema_multi_avg_fn(args.ema_decay))

    def update_average(self) -> None:
        """Take a step of the optimiser into the average, if there is one."""
        if self._average is not None:
            self._average.update_parameters(self._trained)

    @property
    def _best(self) -> nn.Module:
        return self._trained if self._average is None else self._average.module

    def plain_model(self) -> PreTrainedModel:
        """What is evaluated and saved: the averaged weights, with the adapters merged into them."""
        return copy.deepcopy(self._best).merge_and_unload() if self.has_adapters else self._best

    def settle(self) -> None:
        """Make the trained model that plain one."""
        if self._average is not None:
            self._trained.load_state_dict(self._average.module.state_dict())
        if self.has_adapters:
            self._trained.merge_and_unload()

    def save_adapter(self, folder: str | os.PathLike) -> None:
        """Write the adapters, as PEFT reads them, to a folder in the given one."""
        if self.has_adapters:
            from peft import get_peft_model_state_dict

            # Not PEFT's own saving: it names folders of this machine, and adds a card without a fact in it.
            folder = Path(folder) / ADAPTER_FOLDER
            settings = self._best.peft_config["default"]
            settings.base_model_name_or_path = dataset_name(settings.base_model_name_or_path or None)[0]
            settings.save_pretrained(folder)
            save_file(get_peft_model_state_dict(self._best), folder / "adapter_model.safetensors")

    def save(self, checkpoint: str | os.PathLike) -> None:
        """Write to a checkpoint what training goes on from: adapters are merged and averages taken in its weights."""
        average = None if self._average is None else self._average.state_dict()
        torch.save([self._trained.state_dict(), average], Path(checkpoint) / TRAINED_WEIGHTS_NAME)

    def load(self, checkpoint: str | os.PathLike) -> None:
        """Go on from what `save` wrote."""
        weights, average = torch.load(Path(checkpoint) / TRAINED_WEIGHTS_NAME, map_location="cpu", weights_only=True)
        self._trained.load_state_dict(weights)
        if self._average is not None:
            self._average.load_state_dict(average)


def copy_adapter(checkpoint: str | os.PathLike, folder: str | os.PathLike) -> None:
    """Copy the adapters of a checkpoint, if it has any."""
    source = Path(checkpoint) / ADAPTER_FOLDER
    if source.is_dir():
        shutil.copytree(source, Path(folder) / ADAPTER_FOLDER, dirs_exist_ok=True)


def encoders(model: nn.Module) -> dict[str, nn.Module]:
    """The encoders by the names of their modules, whatever wraps the model: one, or one for each group."""
    return {name: module for name, module in model.named_modules() if _ENCODER.fullmatch(name)}


def add_adapters(model: PreTrainedModel, rank: int) -> nn.Module:
    """Put adapters into the model itself and return PEFT's view of it, whose encoder learns by them alone."""
    from peft import LoraConfig, get_peft_model

    targets = adapted_modules(model)
    inside = {parameter for encoder in encoders(model).values() for parameter in encoder.parameters()}
    learns = [parameter for parameter in model.parameters() if parameter.requires_grad and parameter not in inside]
    adapted = get_peft_model(model, LoraConfig(r=rank, lora_alpha=rank, target_modules=targets))
    for parameter in learns:
        parameter.requires_grad_(True)
    return adapted


def adapted_modules(model: PreTrainedModel) -> list[str]:
    """Names of the linear projections and 1x1 convolutions of the encoders.

    Raises:
        ValueError: If one has none, or PEFT is not installed.
    """
    if not is_peft_available():
        raise ValueError("`lora_rank` needs PEFT, which is not installed: `pip install 'sgma-hf[peft]'`.")
    names = []
    for prefix, encoder in encoders(model).items():
        found = [
            f"{prefix}.{name}"
            for name, module in encoder.named_modules()
            if isinstance(module, nn.Linear)
            or (isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) and module.groups == 1)
        ]
        if not found:
            raise ValueError(
                f"A {type(encoder).__name__} has no linear projection or 1x1 convolution that `lora_rank` could "
                "adapt. Leave it out."
            )
        names += found
    return names
