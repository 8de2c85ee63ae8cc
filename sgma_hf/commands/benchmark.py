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
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation, HfArgumentParser
from transformers.utils import logging

from sgma_hf import SgmaConfig, SgmaForSemanticSegmentation
from sgma_hf.commands.train import PVT_V2_SIZES
from sgma_hf.inference import measure_overlaps
from sgma_hf.metrics import confusion_matrix
from sgma_hf.modeling_sgma import upsample_to_pixels
from sgma_hf.raster_sources import RasterScene
from sgma_hf.raster_throughput import measure_raster_throughput


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
    overlap_model: str | None = field(
        default=None,
        metadata={"help": "Checkpoint: measure how much neighbouring tiles of a scene disagree, and nothing else."},
    )
    overlap_rasters: list[str] | None = field(
        default=None, metadata={"help": "The scene, MODALITY=FILE for each; two tiles wide, one high, or larger."}
    )
    raster_throughput: bool = field(
        default=False,
        metadata={
            "help": "Measure how fast GeoTIFFs become a map, by tiles of --size, against the bare model on the same "
            "tiles in memory, and nothing else. Takes the extra geo."
        },
    )
    raster_tiles: int = field(default=4, metadata={"help": "Tiles along each side of the scene of that."})
    device: str = field(default="cpu", metadata={"help": "Where the model of that runs: cpu, cuda, ..."})


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
    if args.overlap_model is not None:
        figures = {"arguments": vars(args), "overlaps": _measure_overlaps(args)}
        print(_overlap_report(figures["overlaps"]))
        return _write(figures, args.output)
    machine = {"processor": _processor(), "torch": torch.__version__, "threads": args.threads}
    if args.raster_throughput:
        throughput = measure_raster_throughput(
            _build(args).to(args.device),
            tile_size=args.size,
            tiles_per_side=args.raster_tiles,
            batch_size=args.batch_size,
            repeats=args.repeats,
            seed=args.seed,
        )
        print(_throughput_report(throughput))
        return _write({"arguments": vars(args), "machine": machine, "raster_throughput": throughput}, args.output)
    seconds, parameters = _measure(args)
    figures = {
        "arguments": vars(args),
        "machine": machine,
        "median_seconds": seconds,
        "parameters": parameters,
        "ratios": _ratios(seconds),
        "combinations_agree_in_float64": _combinations_agree(args),
    }
    print(_report(figures))
    return _write(figures, args.output)


def _write(figures: dict, output: str | None) -> int:
    if output is not None:
        Path(output).write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return 0


def _measure_overlaps(args: BenchmarkArguments) -> list[dict[str, float]]:
    """Disagreement of neighbouring tiles by overlap, the mean over all places of a scene that are two tiles wide."""
    model = AutoModelForSemanticSegmentation.from_pretrained(args.overlap_model).eval()
    processor = AutoImageProcessor.from_pretrained(args.overlap_model)
    rasters = dict(text.partition("=")[::2] for text in args.overlap_rasters or [])
    channels = dict(zip(processor.modalities, processor.modality_channels, strict=True))
    nodata = dict(zip(processor.modalities, processor.nodata, strict=True))
    tile = model.config.tile_size or min(processor.size.values())
    measured = []
    with RasterScene(rasters, channels=channels, nodata=nodata) as scene:
        height, width = scene.grid.size
        if height < tile or width < 2 * tile:
            raise ValueError(f"The scene has {height} x {width} pixels; tiles of {tile} need {tile} x {2 * tile}.")
        tops, lefts = range(0, height - tile + 1, tile), range(0, width - 2 * tile + 1, tile)
        for top, left in logging.tqdm(list(itertools.product(tops, lefts)), desc="overlaps"):
            images = scene.read(top, left, tile, 2 * tile)
            if len(images) < len(rasters) or any(image.mask.any() for image in images.values()):
                continue  # gaps have edges of their own
            inputs = processor(images=[images], do_resize=False, input_data_format="channels_last")
            measured.append(measure_overlaps(model, inputs["pixel_values"], inputs["modality_mask"], tile_size=tile))
    if not measured:
        raise ValueError("The scene has gaps wherever two tiles would lie; choose another one.")
    return [
        {"places": len(measured)} | {name: statistics.fmean(figure[name] for figure in figures) for name in figures[0]}
        for figures in zip(*measured, strict=True)
    ]


def _overlap_report(overlaps: list[dict[str, float]]) -> str:
    lines = ["overlap  labels that differ (middle)  gap of probability (middle)"]
    for figure in overlaps:
        labels = f"{figure['label_disagreement']:18.2%} ({figure['middle_label_disagreement']:6.2%})"
        gap = f"{figure['probability_gap']:18.4f} ({figure['middle_probability_gap']:.4f})"
        lines.append(f"{figure['overlap']:7.1%}  {labels}  {gap}")
    return "\n".join([*lines, f"means over {overlaps[0]['places']} pairs of neighbouring tiles"])


def _throughput_report(figures: dict[str, float]) -> str:
    whole, model = 1000 * figures["raster_seconds"], 1000 * figures["model_seconds"]
    return "\n".join(
        [
            f"whole prediction {whole:9.1f} ms  {figures['megapixels_per_second']:.3f} MPixel/s",
            f"bare model       {model:9.1f} ms  on the same {figures['tiles']} tiles in memory",
            f"throughput: {figures['throughput_share']:.1%} of the bare model's",
        ]
    )


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
