"""How fast each parameter learns: the encoder apart from all else, and its blocks by their depth."""

from collections.abc import Callable, Iterator

import torch
from torch import nn
from transformers import PreTrainedModel

from ..arguments import SgmaTrainingArguments
from .weights import adapted_modules, encoders


def prepare_encoder(model: PreTrainedModel, args: SgmaTrainingArguments) -> None:
    """Freeze the encoders if they shall not learn; a ValueError if one has no blocks to decay or nothing to adapt."""
    for encoder in encoders(model).values():
        if args.freeze_encoder:
            encoder.requires_grad_(False)
        if args.layer_decay < 1:
            block_depths(encoder)
    if args.lora_rank:
        adapted_modules(model)


def spread_rates(optimizer: torch.optim.Optimizer, model: nn.Module, args: SgmaTrainingArguments) -> None:
    """Split the groups of a new optimiser, whose weight decay stays, by the learning rates of their parameters.

    What is no part of the encoder comes first: its rate is the one that is logged.
    """
    rates = encoder_rates(model, args)
    groups, optimizer.param_groups = optimizer.param_groups, []
    parts: dict[tuple[bool, float, int], list[nn.Parameter]] = {}
    for index, group in enumerate(groups):
        for parameter in group["params"]:
            key = (parameter in rates, -rates.get(parameter, args.learning_rate), index)
            parts.setdefault(key, []).append(parameter)
    for (_, negative, index), parameters in sorted(parts.items(), key=lambda part: part[0]):
        optimizer.add_param_group(groups[index] | {"params": parameters, "lr": -negative})


def encoder_rates(model: nn.Module, args: SgmaTrainingArguments) -> dict[nn.Parameter, float]:
    """Learning rates of the encoders' parameters, as BEiT's (arXiv:2106.08254) where they fall with depth.

    The last block learns `layer_decay` times as fast as what follows the encoder would, each before it `layer_decay`
    times as fast as the next, and what comes before the first block is one more step away.
    """
    rate = args.learning_rate if args.encoder_learning_rate is None else args.encoder_learning_rate
    rates = {}
    for encoder in encoders(model).values():
        depths = dict.fromkeys(dict(encoder.named_parameters()), 0) if args.layer_decay == 1 else block_depths(encoder)
        end = max(depths.values()) + 1
        for name, parameter in encoder.named_parameters():
            rates[parameter] = rate * args.layer_decay ** (end - depths[name])
    return rates


def block_depths(encoder: nn.Module) -> dict[str, int]:
    """The block that each parameter is in or follows, by name, counted from 1; 0 is before the first.

    Blocks are the entries of lists of modules of one class or, where these are stages, of the lists inside them.

    Raises:
        ValueError: If there are no two of them.
    """
    blocks: list[str] = []
    for path, entries in _lists(encoder):
        for name, entry in entries.named_children():
            inner = [f"{path}.{name}.{part}.{index}" for part, parts in _lists(entry) for index in range(len(parts))]
            blocks += inner or [f"{path}.{name}"]
    if len(blocks) < 2:
        raise ValueError(
            f"The depth of the blocks of a {type(encoder).__name__} cannot be told: it has no list of blocks of one "
            "class. Leave `layer_decay` out."
        )
    depths, depth = {}, 0
    for name, _ in encoder.named_parameters():  # in the order of the modules
        if depth < len(blocks) and name.startswith(f"{blocks[depth]}."):
            depth += 1
        depths[name] = depth
    return depths


def polynomial_schedule(args: SgmaTrainingArguments, num_training_steps: int) -> Callable[[int], float]:
    """The share of its learning rate that every parameter learns at, by step; warm from `args.warmup_start_factor`."""
    warmup_steps = args.get_warmup_steps(num_training_steps)
    power = args.lr_scheduler_kwargs.get("power", 1.0)
    lr_end = args.lr_scheduler_kwargs.get("lr_end", 0.0)
    end = lr_end / args.learning_rate if lr_end else 0.0  # a learning rate of 0 has no share
    start = args.warmup_start_factor

    def factor(step: int) -> float:
        if step < warmup_steps:
            return start + (1 - start) * step / warmup_steps
        left = max(0.0, 1 - (step - warmup_steps) / max(1, num_training_steps - warmup_steps))
        return end + (1 - end) * left**power

    return factor


def _lists(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The outermost lists of modules of one class, with their paths."""
    for name, child in module.named_children():
        if isinstance(child, nn.ModuleList | nn.Sequential) and len({type(entry) for entry in child}) == 1:
            yield f"{prefix}{name}", child
        else:
            yield from _lists(child, f"{prefix}{name}.")
