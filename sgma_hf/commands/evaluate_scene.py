"""`sgma-hf evaluate --label`: score a checkpoint, or a map that is there, on one labelled scene.

    sgma-hf evaluate --model DIR_OR_ID --label truth.tif --rgb rgb.tif --dsm dsm.tif --output scores.json
    sgma-hf evaluate --map map.tif --label truth.tif

The checkpoint is scored on every non-empty combination of the rasters that are given, on the label's grid. With
`--plot matrix.png`, which modality it, or the run that made the map, relies on for which class is drawn as well (extra
`viz`).

Label values count as they did in training, where the checkpoint recorded that; `--classes` says otherwise.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sgma_hf.commands.checkpoint_arguments import (
    add_date_table,
    add_device,
    add_score_classes,
    add_turns,
    check_checkpoint,
    choose_device,
    choose_dtype,
    load_model,
    rasters_of,
)
from sgma_hf.data.command_line import Parser
from sgma_hf.data.whole_files import check_replaceable, check_writable, write_json
from sgma_hf.publishing.results import map_scores_to_markdown, results_to_markdown
from sgma_hf.publishing.tables import markdown_table


if TYPE_CHECKING:
    from sgma_hf.data.class_maps import ClassMap
    from sgma_hf.rasters.polygons import PolygonLabels
    from sgma_hf.rasters.scene import RasterInput


_GIVEN = "The classes of `--classes`"
_OF_MODEL = ("tile_size", "resolution", "stride", "tta", "batch_size", "allow_other_scale", "device", "bf16", "fp16")
_OF_MODEL += ("date_table", "mask", "mask_values")


def _parser(modalities: Sequence[str]) -> Parser:
    from sgma_hf.rasters.polygons import add_polygon_arguments
    from sgma_hf.rasters.scene import add_mask_arguments

    parser = Parser(
        prog="sgma-hf evaluate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    label = "raster of class ids, one band, or of what --classes names; 255 and nodata: none; or a file of polygons"
    add("--label", required=True, metavar="FILE[:BAND|:LAYER]", help=label)
    classes = "which label values are which class, as `sgma-hf convert-rasters --classes` takes it"
    add("--classes", metavar="FILE_OR_JSON", help=classes)
    scored = parser.add_mutually_exclusive_group(required=True)
    scored.add_argument("--model", metavar="DIR_OR_ID", help="checkpoint to score")
    scored.add_argument("--map", metavar="FILE", help="map to score, as `sgma-hf predict` writes them")
    add_score_classes(parser)
    add("--output", metavar="FILE", help="JSON file to write the results to")
    add("--plot", metavar="FILE", help="picture of the reliance on each modality by class: .png, .pdf or .svg")
    tile_size = "side of the tiles; default: that of training"
    add("--tile_size", type=int, metavar="PIXELS", help=tile_size, former=("--tile",))
    add("--resolution", type=float, metavar="METRES", help="pixels on the ground to predict at; default: the label's")
    add("--stride", type=int, metavar="PIXELS", help="from tile to tile")
    add_turns(parser)
    add("--batch_size", type=int, help="tiles per forward pass; default: 4, on a CPU 1")
    parser.add_switch("--allow_other_scale", help="score although a raster is far from what was trained on")
    add_device(parser)
    add_date_table(parser)
    add_polygon_arguments(parser)
    add_mask_arguments(parser, "file")
    group = parser.add_argument_group("modalities of the checkpoint, one or more")
    for name in modalities:
        group.add_argument(f"--{name}", nargs="+", action="extend", metavar="FILE", default=argparse.SUPPRESS)
    return parser


def main(argv: list[str]) -> None:
    """Evaluate, write the JSON file if one is named, and print the scores."""
    from transformers import AutoConfig

    from sgma_hf.data.class_maps import ClassMap

    first = Parser(add_help=False, allow_abbrev=False)
    first.add_argument("--model")
    model_name = first.parse_known_args(argv)[0].model
    modalities = [] if model_name is None else check_checkpoint(model_name)
    parser = _parser(modalities)
    flags = ", ".join(f"--{name}" for name in modalities)
    parser.known_flags = f" (the modalities of {model_name} are {flags})" if modalities else ""
    args = parser.parse_args(argv)
    args.dtype = choose_dtype(parser, args)
    of_model = [name for name in _OF_MODEL if getattr(args, name)]
    if args.map is not None and of_model:
        parser.error(f"--{of_model[0]} is of a model that is run, and --map is scored as it is; leave it out")
    given = {name: paths for name, paths in vars(args).items() if name in modalities}
    rasters = rasters_of(args, given, AutoConfig.from_pretrained(args.model)) if given else {}
    _check_outputs(args, [source for name in given for source in rasters[name]])
    if args.plot is not None:
        check_plot(parser, args.plot)
    classes = None if args.classes is None else ClassMap.load(args.classes)
    if args.map is not None:
        results = _score_map(args, classes)
        text = map_scores_to_markdown(results)
    else:
        if not rasters:
            parser.error(f"no raster given; give at least one of {flags}")
        results = _score_model(args, rasters, classes)
        text = results_to_markdown(results)
    text += f"Pixels without a label, left out: {results['unlabelled_share']:.2%}.\n{_robustness_table(results)}"
    if args.output is not None:
        write_json(args.output, results)
    print(text)
    if args.plot is not None:  # last: the scores are there, whatever becomes of the picture
        if not any((results["robustness_per_class"] or {}).values()):
            raise ValueError(
                "`--plot` has nothing to draw: reliance takes a checkpoint that fuses by 'sgf', two modalities or "
                "more, and labelled pixels; of a map, what `predict --extras robustness` leaves beside it."
            )
        from sgma_hf.visualization.charts import plot_robustness_matrix

        Path(args.plot).parent.mkdir(parents=True, exist_ok=True)
        plot_robustness_matrix(results["robustness_per_class"], title="Reliance by class").savefig(args.plot, dpi=200)


def check_plot(parser: Parser, path: str) -> None:
    """End the process with one line if `--plot` is no kind of picture that can be drawn."""
    if Path(path).suffix.lower() not in (".png", ".pdf", ".svg"):
        parser.error(f"`--plot {path}`: expected a file that ends in .png, .pdf or .svg")


def _check_outputs(args: argparse.Namespace, sources: "Sequence[RasterInput]") -> None:
    """Refuse what could not be written, or would replace a raster, before anything is computed."""
    from sgma_hf.rasters.polygons import is_vector_file, split_layer
    from sgma_hf.rasters.scene import RasterInput

    inputs = [split_layer(args.label)[0]] if is_vector_file(args.label) else RasterInput.parse(args.label).files
    inputs += RasterInput.parse(args.map).files if args.map is not None else []
    inputs += [file for source in sources for file in source.files]
    for output in filter(None, (args.output, args.plot)):
        check_replaceable(output, inputs)
        check_writable(output)


def _score_model(args: argparse.Namespace, rasters: Mapping[str, Any], classes: "ClassMap | None") -> dict[str, Any]:
    from transformers import AutoImageProcessor

    from sgma_hf.data.metadata import check_class_names
    from sgma_hf.evaluation.scenes import evaluate_scene
    from sgma_hf.publishing.weights_digest import DIGEST_KEY, checkpoint_digest

    processor = AutoImageProcessor.from_pretrained(args.model)
    model = load_model(args.model, dtype=args.dtype, device=choose_device(args.device))
    names = ("tile_size", "stride", "tta", "batch_size", "resolution", "allow_other_scale")
    options = {name: getattr(args, name) for name in names}
    if classes is None:
        classes = _recorded_classes(args.model, model.config.class_names, args.label)
    else:
        check_class_names(classes.names, model.config.class_names, _GIVEN)
    source = {"model": args.model, DIGEST_KEY: checkpoint_digest(args.model), "label": args.label, "tta": args.tta}
    options |= {"classes": classes, "scored_classes": args.score_classes}
    return source | evaluate_scene(model, processor, rasters, _label(args), **options)


def _label(args: argparse.Namespace) -> "str | PolygonLabels":
    """The raster of labels, or the polygons and how they become one."""
    from sgma_hf.rasters.polygons import PolygonLabels, is_vector_file, polygon_options

    options = polygon_options(args)
    if is_vector_file(args.label):
        return replace(options, source=args.label)
    if options != PolygonLabels():
        raise ValueError(f"`--label {args.label}` is no file of polygons, so leave out the flags --label_... .")
    return args.label


def _recorded_classes(model: str, names: list[str], label: str) -> "ClassMap | None":
    """Which label values were which class in training; None if the checkpoint has no record of it."""
    from sgma_hf.publishing.record import recorded_classes
    from sgma_hf.rasters.polygons import is_vector_file

    classes = recorded_classes(model, names)
    # Texts say nothing of a raster's numbers, nor colours of polygons.
    unfit = classes is None or (classes.by_colour if is_vector_file(label) else classes.texts)
    return None if unfit else classes


def _score_map(args: argparse.Namespace, classes: "ClassMap | None") -> dict[str, Any]:
    """Scores of a map whose tags name its classes."""
    from sgma_hf.data.metadata import check_class_names
    from sgma_hf.evaluation.scenes import score_map
    from sgma_hf.prediction.map_files import extras_beside, read_classes
    from sgma_hf.rasters.opening import open_dataset
    from sgma_hf.rasters.scene import RasterInput

    path = RasterInput.parse(args.map).path
    names, _ = read_classes(path)
    shares = extras_beside(path).get("robustness")
    if classes is not None:
        check_class_names(classes.names, names, _GIVEN)
    scored = {"scored_classes": args.score_classes, "class_names": names}
    scores = score_map(args.map, _label(args), len(names), robustness=shares, classes=classes, **scored)
    found = scores.pop("robustness_per_class", None)
    if shares is not None:
        with open_dataset(shares) as file:
            modalities = file.descriptions
        rows = zip(names, found, strict=True)
        found = {name: row and dict(zip(modalities, row, strict=True)) for name, row in rows}
    return {"map": args.map, "label": args.label} | scored | scores | {"robustness_per_class": found}


def _robustness_table(results: Mapping[str, Any]) -> str:
    """Which modality is trusted for which class, in percent."""
    found = {name: row for name, row in (results["robustness_per_class"] or {}).items() if row}
    if not found:
        return ""
    names = list(next(iter(found.values())))
    lines = [[label, *(f"{100 * row[name]:.1f}" for name in names)] for label, row in found.items()]
    return f"\n{markdown_table(['reliance on', *names], lines)}\n"
