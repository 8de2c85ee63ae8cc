"""`sgma-hf benchmark`: what fusion, missing modalities and the sampling branch cost in time and memory.

Times the training step and the inference of SGMA beside mean fusion with the same encoder and head and beside the bare
encoder, all in the paper's form, and of SGMA with the adapters and the Dice loss that the package adds by default.
Measures their peaks of memory, the loading of data, and the evaluation of all combinations of modalities.
With `--sweep`, again for other numbers of modalities and classes, sizes, and shares of modalities present.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation
from transformers.utils import logging

from sgma_hf import SgmaDataCollator, SgmaImageProcessor
from sgma_hf.commands.arguments import DataclassParser
from sgma_hf.converters.demo_scenes import demo_metadata, demo_rows
from sgma_hf.cost.memory import measure_memory
from sgma_hf.cost.overlaps import measure_scene_overlaps
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
from sgma_hf.data.command_line import report_errors
from sgma_hf.data.whole_files import write_json
from sgma_hf.publishing.record import hardware_name
from sgma_hf.publishing.tables import markdown_table
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


@report_errors("sgma-hf benchmark", on_stop="--output holds what was measured so far")
def main(argv: list[str] | None = None) -> int:
    """Measure and print.

    Args:
        argv: Arguments without the program's name; None takes those of the process.

    Returns:
        0, or 2 after one line that says what was wrong.
    """
    (args,) = DataclassParser(BenchmarkArguments, prog="sgma-hf benchmark", description=__doc__).parse(argv)
    torch.set_num_threads(args.threads)
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
    print(f"{machine['processor']}, torch {machine['torch']}, {machine['threads']} thread(s)\n", flush=True)
    figures = {"arguments": vars(args), "machine": machine}
    for measured, text in _sections(args, case):
        figures |= measured
        print(f"{text}\n", flush=True)
        if args.output is not None:
            write_json(args.output, figures)
    return 0


def _sections(args: BenchmarkArguments, case: BenchmarkCase) -> Iterator[tuple[dict, str]]:
    """Measure what was asked for, section by section: the figures, and the text to print."""
    if args.overlap_model is not None:
        yield _overlaps(args)
    elif args.raster_throughput:
        yield _throughput(args, case)
    else:
        timed = measure_case(case, list(VARIANTS), repeats=args.repeats)
        memory = measure_memory(case, list(VARIANTS)) if args.memory else None
        yield {"time": timed, "memory": memory}, _variants_report(timed, memory)
        subsets = measure_subsets(case, repeats=args.repeats)
        yield {"subsets": subsets}, _subsets_report(subsets)
        yield _loading(case, args.repeats)
        yield _parameters(case)
        if args.sweep:
            sweep = list(_sweep(args, case))
            yield {"sweep": sweep}, _sweep_table(sweep)


def _overlaps(args: BenchmarkArguments) -> tuple[dict, str]:
    model = AutoModelForSemanticSegmentation.from_pretrained(args.overlap_model).eval()
    processor = AutoImageProcessor.from_pretrained(args.overlap_model)
    rasters = dict(text.partition("=")[::2] for text in args.overlap_rasters or [])
    overlaps = measure_scene_overlaps(model, processor, rasters)
    lines = [
        [
            f"{figure['overlap']:.1%}",
            *(f"{figure[f'{part}label_disagreement']:.2%}" for part in ("", "middle_")),
            *(f"{figure[f'{part}probability_gap']:.4f}" for part in ("", "middle_")),
        ]
        for figure in overlaps
    ]
    head = ["overlap", "labels that differ", "in the middle", "gap of probability", "in the middle"]
    table = markdown_table(head, lines, text_columns=0)
    return {"overlaps": overlaps}, f"{table}\n\nmeans over {overlaps[0]['places']} pairs of neighbouring tiles"


def _throughput(args: BenchmarkArguments, case: BenchmarkCase) -> tuple[dict, str]:
    figures = measure_raster_throughput(
        case.build(),
        tile_size=args.size,
        tiles_per_side=args.raster_tiles,
        batch_size=args.batch_size,
        repeats=args.repeats,
        seed=args.seed,
    )
    whole, model = 1000 * figures["raster_seconds"], 1000 * figures["model_seconds"]
    return {"raster_throughput": figures}, (
        f"- whole prediction {whole:.1f} ms, {figures['megapixels_per_second']:.3f} MPixel/s\n"
        f"- bare model {model:.1f} ms, on the same {figures['tiles']} tiles in memory\n"
        f"- throughput: {figures['throughput_share']:.1%} of the bare model's"
    )


def _loading(case: BenchmarkCase, repeats: int) -> tuple[dict, str]:
    """Loading against compute, on a batch of demo scenes, as large as the images and encoded as in a data set."""
    metadata = demo_metadata()
    case = replace(case, num_modalities=len(metadata.modalities), num_labels=len(metadata.class_names))
    scenes = demo_rows(num_tiles=2 * case.batch_size + 2, tile_size=case.size, seed=case.seed, missing=0, coverage=0)
    rows = []
    for index, (_, row_id, images, label) in enumerate(itertools.islice(scenes, case.batch_size)):
        rasters = {name: encode_raster(raster) for name, raster in images.items()}
        rows.append({"id": row_id, **rasters, "label": encode_raster(label), ROW_KEY: RowKey(0, index, 0)})
    processor = SgmaImageProcessor(metadata.modalities, metadata.modality_channels, nodata=metadata.nodata)
    loading = measure_loading(case, rows, SgmaDataCollator(processor), repeats=repeats)
    return {"loading": loading}, (
        f"- loading a batch {1000 * loading['batch_seconds']:.1f} ms, to the training step that it feeds: "
        f"{loading['loading_to_compute']:.3f}"
    )


def _parameters(case: BenchmarkCase) -> tuple[dict, str]:
    parameters = {variant: case.build(variant).num_parameters() for variant in ("SGMA", "mean fusion")}
    parameters["added by SGF"] = parameters["SGMA"] - parameters["mean fusion"]
    return {"parameters": parameters}, "- parameters: " + ", ".join(f"{name} {n:,}" for name, n in parameters.items())


def _sweep(args: BenchmarkArguments, case: BenchmarkCase) -> Iterator[dict]:
    """Figures of the case with one number at a time changed."""
    values = {
        "num_modalities": args.sweep_modalities,
        "num_labels": args.sweep_labels,
        "size": args.sweep_sizes,
        "num_present": [count for count in args.sweep_present if count <= args.num_modalities],
    }
    points = [{name: value} for name, numbers in values.items() for value in numbers]
    variants = [name for name in FUSIONS if name != PACKAGE_DEFAULT]
    for point in logging.tqdm(points, desc="sweep"):
        yield {"point": point} | measure_case(replace(case, **point), variants, repeats=args.sweep_repeats)


def _subsets_report(subsets: dict) -> str:
    return "\n".join(
        [
            *(f"- {name}: {1000 * seconds:.1f} ms" for name, seconds in subsets["seconds"].items()),
            f"- one modality present, to all: {subsets['one_to_all']:.3f}",
            f"- all combinations from one encoding, to a plain loop: {subsets['one_encoding_to_loop']:.3f}",
            f"- both ways agree in float64: {subsets['combinations_agree_in_float64']}",
        ]
    )


def _variants_report(timed: dict, memory: dict | None) -> str:
    tables = []
    for kind, title in (("training", "training step"), ("inference", "inference")):
        head = [title, "ms", "to mean fusion", "to bare backbone", "peak MiB", "to mean fusion", "to bare backbone"]
        lines = []
        for name, seconds in timed[kind]["seconds"].items():
            peaks = ["", "", ""]
            if memory is not None:
                peaks = [f"{memory[kind]['bytes'][name] / 2**20:.0f}", *_ratios(memory[kind], name)]
            lines.append([name, f"{1000 * seconds:.1f}", *_ratios(timed[kind], name), *peaks])
        tables.append(markdown_table(head, lines))
    training, inference = (timed[kind]["to_sgma"][PACKAGE_DEFAULT] for kind in ("training", "inference"))
    last = f"- {PACKAGE_DEFAULT}, to SGMA: training step {training:.3f}, inference {inference:.3f}"
    return "\n\n".join([*tables, last])


def _ratios(figures: dict, name: str) -> list[str]:
    return [f"{figures[ratio][name]:.3f}" for ratio in ("to_mean_fusion", "to_backbone")]


def _sweep_table(sweep: list[dict]) -> str:
    """SGMA's milliseconds, and in turn its ratios to mean fusion and the bare backbone, and the projected mean's."""
    kinds, columns = (
        ("training", "inference"),
        ("ms", "to mean fusion", "to bare backbone", "projected mean to mean fusion"),
    )
    lines = []
    for figures in sweep:
        ((factor, value),) = figures["point"].items()
        cells = []
        for kind in kinds:
            projected = figures[kind]["to_mean_fusion"]["projected mean"]
            cells += [
                f"{1000 * figures[kind]['seconds']['SGMA']:.0f}",
                *_ratios(figures[kind], "SGMA"),
                f"{projected:.3f}",
            ]
        lines.append([f"{factor} {value}", *cells])
    return markdown_table(["SGMA with", *(f"{kind}: {name}" for kind in kinds for name in columns)], lines)
