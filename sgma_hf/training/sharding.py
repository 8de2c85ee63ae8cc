"""What training needs where Accelerate shards the parameters over the processes: FSDP version 2.

A sharded unit is gathered, and its gradients are reduced, by all processes at the same moment. So all of them have to
call the same units, and have gradients of the same parameters, whatever their rows hold: a modality that no row of a
process has, or a batch that is all padding, would leave the others waiting for ever. DDP finds out by itself.
"""

import copy
from typing import Any

import torch
from accelerate import Accelerator, DistributedType
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from .collator import empty_rows


def check_sharding(accelerator: Accelerator, *, tunes_weights: bool = False) -> None:
    """Raise a ValueError where Accelerate was started with DeepSpeed, or with FSDP version 1, its default.

    With version 2, too, where weights are tuned that have to be whole: adapters, and an average.
    """
    # The parameters of version 1 are there inside `forward` alone, and evaluation needs its two halves.
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        raise ValueError(
            "Accelerate was started with DeepSpeed; SgmaTrainer shards with FSDP version 2. Start it with "
            "scripts/accelerate_fsdp.yaml."
        )
    if accelerator.distributed_type != DistributedType.FSDP:
        return
    if tunes_weights:
        raise ValueError(
            "`lora_rank` and `ema_decay` need the whole model on each process, and FSDP shards it. Start without "
            "FSDP, or leave the two out."
        )
    version = accelerator.state.fsdp_plugin.fsdp_version
    if version != 2:
        raise ValueError(
            f"Accelerate was started with FSDP version {version}; SgmaTrainer shards with version 2. Set "
            "`fsdp_version: 2` in its `fsdp_config`, as scripts/accelerate_fsdp.yaml does."
        )


class UnusedParameters:
    """Gives all processes gradients of the same parameters, and takes away again what none of them used.

    To the optimiser 0 is another step than none. A parameter is used where its module is called. Made before the model
    is sharded.
    """

    def __init__(self, model: PreTrainedModel, accelerator: Accelerator):
        self.accelerator = accelerator
        self._used: dict[str, bool] = {}
        self._called: set[torch.nn.Module] = set()
        self._has_pair = True
        model.sgma.calls_all_encoders = True
        for module in model.modules():
            module.register_forward_pre_hook(lambda module, args: self._called.add(module))
        # Before FSDP's own hook, while the parameters of the outermost unit are there as plain tensors.
        model.register_forward_hook(self._reach_all)

    def _reach_all(self, model: torch.nn.Module, args, outputs):
        if model.training and outputs.loss is not None:
            outer, idle = [], model.sgma.idle_modules()
            for prefix, module in model.named_modules():
                for name, parameter in module.named_parameters(prefix, recurse=False):
                    # The head is called whatever a batch holds.
                    used = module in self._called and (self._has_pair or name.startswith("decode_head."))
                    used = used and module not in idle
                    self._used[name] = self._used.get(name, False) or used
                    # Inner units, which are sharded again by now, use all of theirs whenever they are called.
                    if parameter.requires_grad and not isinstance(parameter, DTensor):
                        outer.append(parameter.flatten()[0])
            outputs.loss = outputs.loss + 0 * torch.stack(outer).sum()
        self._called.clear()
        return outputs

    def add_pair(self, inputs: dict[str, Any], ignore_index: int) -> None:
        """Show a batch without any modality one, at pixels that do not count: the encoder is called, as on others."""
        self._has_pair = any(map(any, inputs["host_mask"]))
        if not self._has_pair:
            first, *others = inputs["host_mask"]
            inputs["host_mask"] = [[1.0, *first[1:]], *others]
            mask = inputs["modality_mask"] = inputs["modality_mask"].clone()
            mask[(0,) * (3 if mask.ndim in (3, 5) else 2)] = True  # the first date of the first modality
            inputs["labels"] = torch.full_like(inputs["labels"], ignore_index)

    def drop_gradients(self, model: torch.nn.Module) -> None:
        """Take away, between `backward` and the optimiser's step, the gradients that no process used; on all."""
        flags = torch.tensor(list(self._used.values()), dtype=torch.int64, device=self.accelerator.device)
        counts = self.accelerator.reduce(flags, "sum").tolist()
        unused = {name for name, count in zip(self._used, counts, strict=True) if count == 0}
        for name, parameter in model.named_parameters():
            if name in unused:
                parameter.grad = None
        self._used = {}


def as_many_batches(batches: list[dict[str, Any]], accelerator: Accelerator) -> list[dict[str, Any]]:
    """Where parameters are sharded, put batches of nothing before a process's own, until all have as many."""
    if accelerator.distributed_type != DistributedType.FSDP:
        return batches
    count = torch.tensor([len(batches)], device=accelerator.device)
    nothing = empty_rows(batches[0], torch.ones_like(batches[0]["row_index"], dtype=torch.bool))
    return [nothing] * (accelerator.gather(count).max().item() - len(batches)) + batches


def fill_optimizer_state(optimizer: torch.optim.Optimizer) -> None:
    """Give zeros to parameters that were never used so far: torch does not load a sharded state with gaps.

    They are what the optimiser itself would start with (Adam's step and moments, the momentum of SGD).
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    filled = next((parameter for parameter in parameters if optimizer.state.get(parameter)), None)
    if filled is None:
        return
    for parameter in parameters:
        if parameter.requires_grad and not optimizer.state.get(parameter):
            optimizer.state[parameter] = {
                key: torch.zeros_like(parameter if value.shape == filled.shape else value)
                for key, value in optimizer.state[filled].items()
                if isinstance(value, torch.Tensor)
            }


def whole_copy(model: PreTrainedModel, model_class: type[PreTrainedModel]) -> PreTrainedModel:
    """Gather a sharded model on every process: rows are dealt out unevenly, and no call then waits for the others.

    The copy is of the class before sharding, has the same weights, mode and device, and is not trained.
    """
    # Only here: not every build of torch has it.
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    weights = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        whole = model_class(copy.deepcopy(model.config))
    whole.load_state_dict(weights, assign=True)
    for name, buffer in model.named_buffers():  # those that are not saved
        module, _, attribute = name.rpartition(".")
        setattr(whole.get_submodule(module), attribute, buffer.detach().clone())
    whole.requires_grad_(False)
    return whole.train(model.training)
