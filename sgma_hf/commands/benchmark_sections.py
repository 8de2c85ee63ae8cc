"""What `sgma-hf benchmark` measures and prints, section by section."""

import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation
from transformers.utils import logging

from sgma_hf import SgmaDataCollator, SgmaImageProcessor
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
    measure_host,
    measure_loading,
    measure_subsets,
)
from sgma_hf.data.codec import encode_raster
from sgma_hf.data.command_line import check_folder_or_id
from sgma_hf.publishing.tables import markdown_table
from sgma_hf.training.row_sampling import ROW_KEY, RowKey


def measure_sections(args: Any, case: BenchmarkCase) -> Iterator[tuple[dict, str]]:
    """Measure what was asked for, section by section: the figures of each, and the text to print."""
    if args.overlap_model is not None:
        yield _overlaps(args)
    elif args.raster_throughput:
        yield _throughput(args, case)
    else:
        timed = measure_case(case, list(VARIANTS), repeats=args.repeats)
        memory = measure_memory(case, list(VARIANTS)) if args.memory else None
        yield {"time": timed, "memory": memory}, _variants_report(timed, memory)
        if args.compiled:
            return
        host = measure_host(case, list(VARIANTS))
        yield {"host": host}, _host_report(host)
        subsets = measure_subsets(case, repeats=args.repeats)
        yield {"subsets": subsets}, _subsets_report(subsets)
        yield _loading(case, args.repeats)
        yield _parameters(case)
        if args.sweep:
            sweep = list(_sweep(args, case))
            yield {"sweep": sweep}, _sweep_table(sweep)


def _overlaps(args: Any) -> tuple[dict, str]:
    check_folder_or_id(args.overlap_model, "--overlap_model")
    model = AutoModelForSemanticSegmentation.from_pretrained(args.overlap_model).eval().to(args.device)
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


def _throughput(args: Any, case: BenchmarkCase) -> tuple[dict, str]:
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
    counts = {"num_modalities": len(metadata.modalities), "num_labels": len(metadata.class_names), "num_dates": 1}
    case = replace(case, **counts)
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


def _sweep(args: Any, case: BenchmarkCase) -> Iterator[dict]:
    """Figures of the case with one number at a time changed."""
    values = {
        "num_modalities": args.sweep_modalities,
        "num_labels": args.sweep_labels,
        "size": args.sweep_sizes,
        "num_present": [count for count in args.sweep_present if count <= args.num_modalities],
        "num_dates": args.sweep_dates,
        "logits_stride": [4, 2, 1],
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


def _host_report(host: dict) -> str:
    head, lines = ["what the host does", "training", "inference", "waits in training", "waits in inference"], []
    for name in host["training"]["operators"]:
        counts = (host[kind][what].get(name) for what in ("operators", "waits") for kind in host)
        lines.append([name, *("" if count is None else count for count in counts)])
    return markdown_table([head[0], *(f"operators, {kind}" for kind in head[1:3]), *head[3:]], lines)


def _ratios(figures: dict, name: str) -> list[str]:
    return [f"{figures[ratio][name]:.3f}" for ratio in ("to_mean_fusion", "to_backbone")]


def _sweep_table(sweep: list[dict]) -> str:
    """SGMA's milliseconds, and in turn its ratios to mean fusion and the bare backbone, and the projected mean's."""
    kinds = ("training", "inference")
    columns = ("ms", "to mean fusion", "to bare backbone", "projected mean to mean fusion")
    lines = []
    for figures in sweep:
        ((factor, value),) = figures["point"].items()
        cells = []
        for kind in kinds:
            milliseconds = f"{1000 * figures[kind]['seconds']['SGMA']:.0f}"
            projected = f"{figures[kind]['to_mean_fusion']['projected mean']:.3f}"
            cells += [milliseconds, *_ratios(figures[kind], "SGMA"), projected]
        lines.append([f"{factor} {value}", *cells])
    return markdown_table(["SGMA with", *(f"{kind}: {name}" for kind in kinds for name in columns)], lines)
