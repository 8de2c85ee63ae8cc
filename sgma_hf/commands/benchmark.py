"""`sgma-hf benchmark`: what fusion, missing modalities and the sampling branch cost.

All variants of a comparison are timed in turn, so that whatever else the machine does hits them alike; what is printed
are medians and their ratios. Weights and images are random: nothing here depends on their values.
"""

import itertools
import json
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import HfArgumentParser
from transformers.utils import logging

from sgma_hf import SgmaConfig, SgmaForSemanticSegmentation
from sgma_hf.commands.train import PVT_V2_SIZES
from sgma_hf.metrics import confusion_matrix
from sgma_hf.modeling_sgma import upsample_to_pixels


@dataclass
class BenchmarkArguments:
    """Arguments of `sgma-hf benchmark`."""

    backbone_config: str = field(default="pvt_v2_b2", metadata={"choices": list(PVT_V2_SIZES), "help": "Encoder."})
    size: int = field(default=256, metadata={"help": "Side of the square images in pixels."})
    batch_size: int = field(default=1, metadata={"help": "Images per pass."})
    num_modalities: int = field(default=3, metadata={"help": "Modalities; the first has three bands, others one."})
    num_labels: int = field(default=5, metadata={"help": "Classes."})
    decoder_hidden_size: int = field(default=128, metadata={"help": "Width of the decode head."})
    repeats: int = field(default=15, metadata={"help": "Rounds; the median over them is reported."})
    threads: int = field(default=1, metadata={"help": "Threads of torch."})
    seed: int = field(default=0, metadata={"help": "Seed of weights and images."})
    output: str | None = field(default=None, metadata={"help": "JSON file to write the figures to."})


def main(argv: list[str] | None = None) -> int:
    """Measure and print.

    Args:
        argv: Arguments without the program's name; None takes those of the process.

    Returns:
        0; errors are raised.
    """
    parser = HfArgumentParser(BenchmarkArguments, prog="sgma-hf benchmark", description=__doc__)
    (args,) = parser.parse_args_into_dataclasses(argv)
    torch.set_num_threads(args.threads)
    seconds, parameters = _measure(args)
    figures = {
        "arguments": vars(args),
        "machine": {"processor": _processor(), "torch": torch.__version__, "threads": args.threads},
        "median_seconds": seconds,
        "parameters": parameters,
        "ratios": _ratios(seconds),
        "combinations_agree_in_float64": _combinations_agree(args),
    }
    print(_report(figures))
    if args.output is not None:
        Path(args.output).write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return 0


def _build(args: BenchmarkArguments, **changes) -> SgmaForSemanticSegmentation:
    torch.manual_seed(args.seed)
    config = SgmaConfig(
        modalities=[f"modality{index}" for index in range(args.num_modalities)],
        modality_channels=[3] + [1] * (args.num_modalities - 1),
        num_labels=args.num_labels,
        decoder_hidden_size=args.decoder_hidden_size,
        backbone_config={"model_type": "pvt_v2", **PVT_V2_SIZES[args.backbone_config]},
        **changes,
    )
    return SgmaForSemanticSegmentation(config).eval()


def _subsets(num_modalities: int, batch_size: int) -> list[torch.Tensor]:
    """Every non-empty combination as a mask, (batch_size, num_modalities)."""
    masks = [mask for mask in itertools.product([False, True], repeat=num_modalities) if any(mask)]
    return [torch.tensor(mask).expand(batch_size, -1) for mask in masks]


def _measure(args: BenchmarkArguments) -> tuple[dict[str, float], dict[str, int]]:
    """Median seconds of every variant, and parameters of the models."""
    sgf, mean = _build(args), _build(args, fusion="mean")
    sgf_without_mas, mean_without_mas = (
        _build(args, mas_loss_weight=0.0),
        _build(args, fusion="mean", mas_loss_weight=0),
    )
    pixel_values = torch.randn(args.batch_size, sum(sgf.config.modality_channels), args.size, args.size)
    labels = torch.randint(args.num_labels, (args.batch_size, args.size, args.size))
    stacked = pixel_values[:, :3].repeat(args.num_modalities, 1, 1, 1)
    subsets = _subsets(args.num_modalities, args.batch_size)
    first = torch.arange(args.num_modalities).expand(args.batch_size, -1) == 0

    def combinations_cached():
        encoding = sgf.encode(pixel_values)
        for subset in subsets:
            sgf.fuse_and_decode(encoding, subset)

    def combinations_naive():
        for subset in subsets:
            sgf(pixel_values, subset)

    inference = {
        "inference_sgf": lambda: sgf(pixel_values),
        "inference_mean": lambda: mean(pixel_values),
        "inference_backbone": lambda: sgf.sgma.backbone(stacked),
        "inference_one_modality": lambda: sgf(pixel_values, first),
        "combinations_cached": combinations_cached,
        "combinations_naive": combinations_naive,
    }
    with torch.no_grad():
        seconds = _medians(inference, args.repeats)

    def step(model):
        model.train()
        model(pixel_values, labels=labels).loss.backward()
        model.zero_grad()

    training = {
        "training_sgf_mas": lambda: step(sgf),
        "training_sgf": lambda: step(sgf_without_mas),
        "training_mean_mas": lambda: step(mean),
        "training_mean": lambda: step(mean_without_mas),
    }
    seconds |= _medians(training, max(1, args.repeats // 2))
    parameters = {"sgf": sgf.num_parameters(), "mean": mean.num_parameters()}
    parameters["added_by_sgf"] = parameters["sgf"] - parameters["mean"]
    return seconds, parameters


def _medians(variants: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    for variant in variants.values():
        variant()
    seconds = {name: [] for name in variants}
    for _ in logging.tqdm(range(repeats), desc="rounds", leave=False):
        for name, variant in variants.items():
            start = time.perf_counter()
            variant()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def _ratios(seconds: dict[str, float]) -> dict[str, float]:
    pairs = {
        "inference: SGF / mean fusion": ("inference_sgf", "inference_mean"),
        "inference: SGF / bare backbone": ("inference_sgf", "inference_backbone"),
        "inference: one modality present / all": ("inference_one_modality", "inference_sgf"),
        "all combinations: one encoding / naive loop": ("combinations_cached", "combinations_naive"),
        "training step: SGF + MAS / mean fusion": ("training_sgf_mas", "training_mean"),
        "training step: SGF / mean fusion": ("training_sgf", "training_mean"),
        "training step: SGF + MAS / SGF": ("training_sgf_mas", "training_sgf"),
        "training step: SGF + MAS / mean fusion + MAS": ("training_sgf_mas", "training_mean_mas"),
    }
    return {name: seconds[above] / seconds[below] for name, (above, below) in pairs.items()}


@torch.no_grad()
def _combinations_agree(args: BenchmarkArguments) -> bool:
    """Whether both ways to evaluate all combinations count the same pixels, in float64."""
    model = _build(args).double()
    shape = (1, sum(model.config.modality_channels), 64, 64)
    pixel_values = torch.randn(shape, dtype=torch.float64)
    labels = torch.randint(args.num_labels, (1, 64, 64))
    encoding = model.encode(pixel_values)
    for subset in _subsets(args.num_modalities, 1):
        logits = model.fuse_and_decode(encoding, subset).logits, model(pixel_values, subset).logits
        cached, naive = (upsample_to_pixels(maps, 4, (64, 64)).argmax(1).numpy() for maps in logits)
        counts = [confusion_matrix(classes, labels.numpy(), args.num_labels) for classes in (cached, naive)]
        if (counts[0] != counts[1]).any():
            return False
    return True


def _processor() -> str:
    """Name of the processor, where the system tells."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _report(figures: dict) -> str:
    lines = [f"{name:32s} {1000 * value:9.1f} ms" for name, value in figures["median_seconds"].items()]
    lines += ["", *(f"{name:48s} {value:6.3f}" for name, value in figures["ratios"].items()), ""]
    counts, machine = figures["parameters"], figures["machine"]
    lines += [
        f"parameters: {counts['sgf']:,} by SGF, {counts['mean']:,} by mean fusion, {counts['added_by_sgf']:,} more",
        f"combinations agree in float64: {figures['combinations_agree_in_float64']}",
        f"{machine['processor']}, torch {machine['torch']}, {machine['threads']} thread(s)",
    ]
    return "\n".join(lines)
