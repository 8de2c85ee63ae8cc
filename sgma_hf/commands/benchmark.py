"""`sgma-hf benchmark`: what fusion, missing modalities and the sampling branch cost in time and memory.

Times the training step and the inference of SGMA beside mean fusion with the same encoder and head and beside the bare
encoder, all in the paper's form, and of SGMA with the adapters and the Dice loss that the package adds by default.
Measures their peaks of memory, the loading of data, and the evaluation of all combinations of modalities.
With `--sweep`, again for other numbers of modalities and classes, sizes, and shares of modalities present.
"""

import itertools
import json
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation, HfArgumentParser
from transformers.utils import logging

from sgma_hf import SgmaDataCollator, SgmaImageProcessor
from sgma_hf.converters.demo_scenes import demo_metadata, demo_rows
from sgma_hf.cost.memory import measure_memory
from sgma_hf.cost.raster_throughput import measure_raster_throughput
from sgma_hf.cost.timing import (
    FUSIONS,
    PACKAGE_DEFAULT,
    VARIANTS,
    BenchmarkCase,
    measure_case,
    measure_loading,
    measure_subsets,
)
from sgma_hf.data.codec import encode_raster
from sgma_hf.prediction.sliding_window import measure_overlaps
from sgma_hf.publishing.record import hardware_name
from sgma_hf.rasters.scene import RasterScene
from sgma_hf.training.arguments import PVT_V2_SIZES
from sgma_hf.training.row_sampling import ROW_KEY, RowKey


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
    memory: bool = field(default=True, metadata={"help": "Measure peaks of memory, each in a process of its own."})
    sweep: bool = field(
        default=False, metadata={"help": "Also vary one number at a time, over the lists below; takes many minutes."}
    )
    sweep_modalities: list[int] = field(
        default_factory=lambda: [1, 2, 3, 4, 5], metadata={"help": "Numbers of modalities of the sweep."}
    )
    sweep_labels: list[int] = field(
        default_factory=lambda: [2, 5, 10, 25], metadata={"help": "Numbers of classes of the sweep."}
    )
    sweep_sizes: list[int] = field(
        default_factory=lambda: [128, 256, 384, 512], metadata={"help": "Sides of the images of the sweep, in pixels."}
    )
    sweep_present: list[int] = field(
        default_factory=lambda: [1, 2, 3],
        metadata={"help": "How many of the modalities are present, in the sweep; more than there are is left out."},
    )
    sweep_repeats: int = field(default=5, metadata={"help": "Rounds for each point of the sweep."})
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
    device: str = field(default="cpu", metadata={"help": "Where the models run: cpu, cuda, ..."})


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
    processor = hardware_name(torch.device(args.device))
    machine = {"processor": processor, "torch": torch.__version__, "threads": args.threads}
    case = BenchmarkCase(
        {"model_type": "pvt_v2", **PVT_V2_SIZES[args.backbone_config]},
        size=args.size,
        batch_size=args.batch_size,
        num_modalities=args.num_modalities,
        num_labels=args.num_labels,
        decoder_hidden_size=args.decoder_hidden_size,
        seed=args.seed,
        device=args.device,
    )
    if args.raster_throughput:
        throughput = measure_raster_throughput(
            case.build(),
            tile_size=args.size,
            tiles_per_side=args.raster_tiles,
            batch_size=args.batch_size,
            repeats=args.repeats,
            seed=args.seed,
        )
        print(_throughput_report(throughput))
        return _write({"arguments": vars(args), "machine": machine, "raster_throughput": throughput}, args.output)
    print(f"{machine['processor']}, torch {machine['torch']}, {machine['threads']} thread(s)\n", flush=True)
    figures = {"arguments": vars(args), "machine": machine}
    for measured, lines in _sections(args, case):
        figures |= measured
        print("\n".join([*lines, ""]), flush=True)
        _write(figures, args.output)
    return 0


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


def _sections(args: BenchmarkArguments, case: BenchmarkCase) -> Iterator[tuple[dict, list[str]]]:
    """Measure a case and the sweep around it, section by section: the figures, and the lines to print."""
    timed = measure_case(case, list(VARIANTS), repeats=args.repeats)
    memory = measure_memory(case, list(VARIANTS)) if args.memory else None
    lines = _variants_table("training step", timed["training"], (memory or {}).get("training"))
    lines += ["", *_variants_table("inference", timed["inference"], (memory or {}).get("inference"))]
    training, inference = (timed[kind]["to_sgma"][PACKAGE_DEFAULT] for kind in ("training", "inference"))
    lines += ["", f"- {PACKAGE_DEFAULT}, to SGMA: training step {training:.3f}, inference {inference:.3f}"]
    yield {"time": timed, "memory": memory}, lines
    subsets = measure_subsets(case, repeats=args.repeats)
    yield {"subsets": subsets}, _subsets_lines(subsets)
    loading = _measure_loading(case, args.repeats)
    line = (
        f"- loading a batch {1000 * loading['batch_seconds']:.1f} ms, to the training step that it feeds: "
        f"{loading['loading_to_compute']:.3f}"
    )
    yield {"loading": loading}, [line]
    parameters = {variant: case.build(variant).num_parameters() for variant in ("SGMA", "mean fusion")}
    parameters["added by SGF"] = parameters["SGMA"] - parameters["mean fusion"]
    yield {"parameters": parameters}, ["- parameters: " + ", ".join(f"{name} {n:,}" for name, n in parameters.items())]
    if not args.sweep:
        return
    present = [count for count in args.sweep_present if count <= args.num_modalities]
    points = [
        *({"num_modalities": count} for count in args.sweep_modalities),
        *({"num_labels": count} for count in args.sweep_labels),
        *({"size": side} for side in args.sweep_sizes),
        *({"num_present": count} for count in present),
    ]
    swept = [name for name in FUSIONS if name != PACKAGE_DEFAULT]
    sweep = []
    for point in logging.tqdm(points, desc="sweep"):
        sweep.append({"point": point} | measure_case(replace(case, **point), swept, repeats=args.sweep_repeats))
    yield {"sweep": sweep}, _sweep_table(sweep)


def _measure_loading(case: BenchmarkCase, repeats: int) -> dict[str, float]:
    """Loading against compute, on a batch of demo scenes, as large as the images and encoded as in a data set."""
    metadata = demo_metadata()
    case = replace(case, num_modalities=len(metadata.modalities), num_labels=len(metadata.class_names))
    scenes = demo_rows(num_tiles=2 * case.batch_size + 2, tile_size=case.size, seed=case.seed, missing=0, coverage=0)
    rows = []
    for index, (_, row_id, images, label) in enumerate(itertools.islice(scenes, case.batch_size)):
        rasters = {name: encode_raster(raster) for name, raster in images.items()}
        rows.append({"id": row_id, **rasters, "label": encode_raster(label), ROW_KEY: RowKey(0, index, 0)})
    processor = SgmaImageProcessor(metadata.modalities, metadata.modality_channels, nodata=metadata.nodata)
    return measure_loading(case, rows, SgmaDataCollator(processor), repeats=repeats)


def _subsets_lines(subsets: dict) -> list[str]:
    return [
        *(f"- {name}: {1000 * seconds:.1f} ms" for name, seconds in subsets["seconds"].items()),
        f"- one modality present, to all: {subsets['one_to_all']:.3f}",
        f"- all combinations from one encoding, to a plain loop: {subsets['one_encoding_to_loop']:.3f}; they agree in "
        f"float64: {subsets['combinations_agree_in_float64']}",
    ]


def _variants_table(title: str, time: dict, memory: dict | None) -> list[str]:
    lines = [
        f"| {title} | ms | to mean fusion | to bare backbone | peak MiB | to mean fusion | to bare backbone |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, seconds in time["seconds"].items():
        cells = [f"{1000 * seconds:.1f}", f"{time['to_mean_fusion'][name]:.3f}", f"{time['to_backbone'][name]:.3f}"]
        if memory is None:
            cells += ["", "", ""]
        else:
            mebibytes = memory["bytes"][name] / 2**20
            cells += [
                f"{mebibytes:.0f}",
                f"{memory['to_mean_fusion'][name]:.3f}",
                f"{memory['to_backbone'][name]:.3f}",
            ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def _sweep_table(sweep: list[dict]) -> list[str]:
    """SGMA's milliseconds, and in turn its ratios to mean fusion and the bare backbone, and the projected mean's."""
    columns = ("ms", "to mean fusion", "to bare backbone", "projected mean to mean fusion")
    lines = [
        "| SGMA with | "
        + " | ".join(f"{kind}: {name}" for kind in ("training", "inference") for name in columns)
        + " |",
        "|---|" + 8 * "---:|",
    ]
    for figures in sweep:
        cells = []
        for kind in ("training", "inference"):
            time = figures[kind]
            cells.append(f"{1000 * time['seconds']['SGMA']:.0f}")
            ratios = (
                time["to_mean_fusion"]["SGMA"],
                time["to_backbone"]["SGMA"],
                time["to_mean_fusion"]["projected mean"],
            )
            cells += [f"{ratio:.3f}" for ratio in ratios]
        ((factor, value),) = figures["point"].items()
        lines.append(f"| {factor} {value} | {' | '.join(cells)} |")
    return lines
