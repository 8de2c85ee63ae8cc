"""`sgma-hf predict`: predict a map from the rasters at hand, whatever their size, grid and gaps.

    sgma-hf predict --model DIR_OR_ID --rgb rgb.tif --nir nir.tif --output map.tif
    sgma-hf predict --model DIR_OR_ID --scenes scenes/ --output maps/

The checkpoint's modalities are the flags; any of them may be left out, but not all. `scene_maps` has the words for
many scenes.
"""

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sgma_hf.commands.checkpoint_arguments import (
    add_date_table,
    add_device,
    add_turns,
    check_checkpoint,
    choose_device,
    choose_dtype,
    load_model,
    rasters_of,
)
from sgma_hf.commands.scene_maps import add_scene_arguments, map_options, predict_folder
from sgma_hf.data.command_line import Parser, report_errors
from sgma_hf.data.whole_files import check_replaceable, check_writable
from sgma_hf.prediction import EXTRAS


DESCRIPTION = """\
Predict a map from the rasters at hand. Every modality of the checkpoint is a flag, --rgb for instance; leave out those
that are missing. Files are GeoTIFF and what else GDAL reads, PNG, JPEG or .npy; what is no file has GDAL's name, such
as /vsizip/a.zip/b.tif, https://host/a.tif, s3://bucket/a.tif or NETCDF:a.nc:b. Several files make a mosaic, in which
the first one counts where they overlap; bands are chosen by number, as in `--rgb a.tif:4,1,2`, and what is chosen is
no alpha whatever its tag says. A band that is tagged as alpha but neither 0 nor opaque everywhere has to be chosen, or
confirmed: `a.tif:1,2,3,alpha`. Georeferenced rasters are brought to one grid as they are read, others are taken to
show the same extent. Scale and offset of a header are applied. Nodata, alpha, masks, NaN and what lies outside a
raster are missing data there. Tiles are predicted one after the other and blended, so that memory does not depend on
the height of the map.
"""
OUTPUTS = """\
output files, for --output DIR/map.tif or DIR/map.png:
  DIR/map.tif                          class ids, uint8; 255 where no modality covers, and below --min_confidence.
                                       Cloud Optimized GeoTIFF with colour table and class names, on the grid's CRS and
                                       transform
  DIR/map.tif.aux.xml, DIR/map.qml, DIR/map.sld
                                       names and colours of the classes where GDAL, QGIS and others look for them
  DIR/map_confidence.tif               --extras confidence: probability of the class, and entropy from 0 to 1
  DIR/map_probabilities.tif            --extras probabilities: a band per class
  DIR/map_robustness.tif               --extras robustness: a band per modality, from 0 to 1: how much it was relied
                                       on, the mean over the model's four stages; 0 where it has no data
  DIR/map_decision.tif                 --extras decision: the modality that was relied on most
  DIR/map_agreement.tif                --extras agreement: a band per modality, from 0 to 1: how well the prediction
                                       from it alone agrees with that from the others; low where it is noisy, out of
                                       register or of another place. Fragile modalities agree less by nature: compare
                                       with a scene that is known to be good. Two alone agree equally with each other
  DIR/map_reliance_month.tif           --reliance_by month: a band per month, how much was relied on what was seen
                                       then; the last one is what has no date
  DIR/map_reliance_day.tif             --reliance_by day: the day that was relied on most, as 20190302; 0 is none
  DIR/map_areas.csv, DIR/map_areas.json   --areas: pixels, hectares on the ellipsoid and share of each class
  DIR/map_zones.csv, DIR/map_zones.json   --zones: the same in each polygon
  FILE.gpkg, .geojson or .fgb          --polygons FILE: a polygon per patch of a class, with its area
  DIR/map.png                          class ids, 8 bit
  DIR/map_color.png                    PNG only: the same in colours, transparent where no modality covers
  DIR/map_legend.png                   PNG only: the colours and their classes
  DIR/map.pgw, DIR/map_color.pgw       PNG only: world files, where the rasters have a place; CRS in .aux.xml
  DIR/map_robustness_<modality>.png    PNG only: 0 to 255 for shares of 0 to 1
Files of these names are replaced when all are written, and not touched if anything fails; other than the map itself,
only if `predict` wrote them, else it refuses. A style that somebody else drew stays. Extras of an earlier run stay if
they belong to the same map (model, rasters, options); those of another one are removed, and named. A run that dies
leaves its strips in DIR/.map.tif.partial, from which the same command goes on with --resume.

with --scenes SOURCE --output DIR the maps are DIR/SCENE.tif, and beside them:
  DIR/summary.csv, DIR/summary.parquet a row per scene: what was missing, hectares and share of each class, mean
                                       confidence, mean reliance on each modality, or why there is no map
  DIR/least_certain.csv                the scenes to label next: those of the lowest mean confidence
  DIR/.scenes                          what is known of each scene, from which --resume goes on
The exit status is 1 where a scene has failed; the others have their maps.

several processes share the strips, with --scenes the scenes, and the map is the same:
  accelerate launch --multi_gpu --num_processes N scripts/predict.py ...                a GPU each
  ACCELERATE_USE_CPU=true torchrun --nproc_per_node N scripts/predict.py --device cpu ...   on the CPU
"""


def _parser(modalities: Sequence[str] | None) -> Parser:
    """The parser for a checkpoint's modalities; None for a general help, before there is a checkpoint."""
    from sgma_hf.rasters.scene import add_mask_arguments

    parser = Parser(
        prog="sgma-hf predict",
        description=DESCRIPTION,
        epilog=OUTPUTS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--model", required=True, metavar="DIR_OR_ID", help="checkpoint: a folder, or an id on the Hub")
    output = "label map to write: .png, .tif or .tiff; with --scenes the folder of the maps"
    add("--output", required=True, metavar="FILE", help=output, former=("--out",))
    like = "raster whose grid the map gets, default: the first file on the command line; with --scenes a modality"
    add("--like", metavar="FILE", help=like)
    add(
        "--resolution",
        type=float,
        metavar="METRES",
        help="side of the map's pixels on the ground; default: the grid's",
    )
    bbox = "map this part alone, for a corner first: its coordinates in the CRS of the map"
    add("--bbox", nargs=4, type=float, metavar=("WEST", "SOUTH", "EAST", "NORTH"), help=bbox)
    extras = "more files to write; PNG: robustness, which is the default there"
    add("--extras", nargs="+", action="extend", choices=EXTRAS, help=extras)
    by_date = "of a model that knows dates: reliance on each month, and the day of greatest reliance"
    add("--reliance_by", nargs="+", action="extend", default=[], choices=("month", "day"), help=by_date)
    add_date_table(parser)
    tile_size = "side of the tiles; default: that of the training crops"
    add("--tile_size", type=int, metavar="PIXELS", help=tile_size, former=("--tile",))
    add("--stride", type=int, metavar="PIXELS", help="from tile to tile; default: about three quarters of the tile")
    add_turns(parser)
    add("--batch_size", type=int, help="tiles per forward pass; default: 4, on a CPU 1")
    resampling = "how other grids are interpolated: bilinear (default), nearest, cubic, average, ...; or MODALITY=NAME"
    add("--resampling", nargs="+", action="extend", metavar="NAME", help=resampling)
    unknown = "probability of the class below which a pixel is unknown, 255; default: 0"
    add("--min_confidence", type=float, default=0.0, metavar="SHARE", help=unknown)
    sieve = "patches of one class below so many square metres become part of the largest one beside them"
    add("--sieve", type=float, default=0.0, metavar="M2", help=sieve)
    parser.add_switch("--allow_other_scale", help="predict although a raster is far from what was trained on")
    areas = "write hectares of each class to <map>_areas.csv and .json; with --scenes the summary has them"
    parser.add_switch("--areas", help=areas)
    zones = "polygons: hectares of each class in each of them, to <map>_zones.csv and .json"
    add("--zones", metavar="FILE", help=zones)
    add("--zone_by", metavar="NAME", help="attribute of --zones that says the zone; default: each polygon is one")
    polygons = "write the patches of each class as polygons: .gpkg, .geojson or .fgb"
    add("--polygons", metavar="FILE", help=polygons)
    add("--min_area", type=float, default=0.0, metavar="M2", help="of --polygons, leave out those below; default: 0")
    colors = 'other colours: a file of classes, or JSON as in [{"name": "road", "color": "#808080"}]'
    add("--classes", metavar="FILE_OR_JSON", help=colors)
    resume = "go on with the strips of a run that died; with --scenes make the maps that are not there"
    parser.add_switch("--resume", help=resume)
    add_device(parser)
    add_scene_arguments(parser)
    add_mask_arguments(parser, "file, or with --scenes what finds it as --assets does,")
    group = parser.add_argument_group("modalities, one or more")
    # Suppressed defaults leave the namespace with what was given, in the order of the command line.
    given = {"nargs": "+", "action": "extend", "metavar": "FILE", "default": argparse.SUPPRESS}
    for name in modalities or ():
        group.add_argument(f"--{name}", **given, help=f"raster of modality {name}")
    if modalities is None:
        group.add_argument("--<modality>", **given, help="give --model with --help to see those of a checkpoint")
    return parser


@report_errors("sgma-hf predict", on_stop="the same command with --resume goes on from here", also=(TypeError,))
def main(argv: list[str] | None = None) -> int | None:
    """Predict, write the files and say what they are."""
    argv = sys.argv[1:] if argv is None else argv
    first = Parser(add_help=False, allow_abbrev=False)
    first.add_argument("--model")
    model = first.parse_known_args(argv)[0].model
    if model is None:
        _parser(None).parse_known_args(argv)  # prints the help, or that --model is missing, which says the flags
    modalities = check_checkpoint(model)
    flags = ", ".join(f"--{name}" for name in modalities)
    parser = _parser(modalities)
    parser.known_flags = f" (the modalities of {model} are {flags})"
    args = parser.parse_args(argv)
    rasters = {name: paths for name, paths in vars(args).items() if name in modalities}
    if args.scenes and rasters:
        parser.error(f"--scenes says where the rasters are; leave out --{next(iter(rasters))}")
    if not args.scenes and not rasters:
        parser.error(f"no raster given; give at least one of {flags}, or a folder of many by --scenes")
    one_map = {"zones": args.zones, "areas": args.areas, "polygons": args.polygons, "bbox": args.bbox}
    if args.scenes and any(one_map.values()):
        parser.error(f"--{next(filter(one_map.get, one_map))} is of one map, and --scenes makes many")
    many_maps = {"assets": args.assets, "scene_by": args.scene_by, "shard": args.shard, "format": args.format}
    if not args.scenes and any(many_maps.values()):
        parser.error(f"--{next(filter(many_maps.get, many_maps))} is of many maps, and --scenes is not given")
    if args.min_area and args.polygons is None:
        parser.error("--min_area is of --polygons, which are not asked for")
    if args.zone_by is not None and args.zones is None:
        parser.error("--zone_by is an attribute of --zones, which is not given")
    args.dtype, args.resampling = choose_dtype(parser, args), _resampling(args.resampling or ["bilinear"])
    args.device = choose_device(args.device, local_rank=int(os.environ.get("LOCAL_RANK", "0")))
    args.command = shlex.join(["sgma-hf", "predict", *argv])
    if args.reliance_by:
        args.extras = [*(args.extras or ()), *(f"reliance_{period}" for period in args.reliance_by)]
    return predict_folder(args, modalities) if args.scenes else _predict(args, rasters)


def _predict(args: argparse.Namespace, rasters: dict[str, list[str]]) -> None:
    from transformers import AutoConfig, AutoImageProcessor

    from sgma_hf.prediction.map_files import PNG_SUFFIXES, lacks_robustness, plan_layers, plan_outputs
    from sgma_hf.prediction.maps import check_options, predict_raster
    from sgma_hf.visualization.palette import recolor

    config, processor = AutoConfig.from_pretrained(args.model), AutoImageProcessor.from_pretrained(args.model)
    if args.classes is not None:
        config.palette = recolor(config.class_names, config.palette, args.classes)
    options = map_options(args)
    check_options(config, processor, **options)
    extras = args.extras
    if extras is None:
        is_picture = args.output.lower().endswith(PNG_SUFFIXES)
        extras = ["robustness"] if is_picture and not lacks_robustness(config) else []
    sources = rasters_of(args, rasters, config)
    _check_vectors(args)
    # What cannot be written is said before gigabytes of weights are loaded.
    inputs = [file for name in rasters for source in sources[name] for file in source.files]
    layers = plan_layers(config, list(rasters), extras)
    check_writable(plan_outputs(args.output, layers, inputs, processor.modalities).label_map)
    model = load_model(args.model, dtype=args.dtype, device=args.device)
    model.config.palette = config.palette
    how = {"like": args.like, "bbox": args.bbox, "extras": extras, "resume": args.resume, "progress_bar": True}
    prediction = predict_raster(model, processor, sources, args.output, **how, **options)
    if os.environ.get("RANK", "0") == "0":
        _report(prediction, config, is_sifted=args.min_confidence > 0)
        for path in _write_tables(args, prediction, config.class_names):
            print(path)


def _check_vectors(args: argparse.Namespace) -> None:
    """Refuse layers that cannot be read or written, before anything is computed."""
    from sgma_hf.prediction.map_files import TIFF_SUFFIXES
    from sgma_hf.rasters.maps.shapes import check_polygons
    from sgma_hf.rasters.polygons import check_layer

    if (args.zones or args.polygons) and not args.output.lower().endswith(TIFF_SUFFIXES):
        raise ValueError(f"`--zones` and `--polygons` need a map that has a place: name {args.output} .tif.")
    if args.zones is not None:
        check_layer(args.zones, args.zone_by)
    if args.polygons is not None:
        check_polygons(args.polygons, args.min_area)
        check_replaceable(args.polygons, [] if args.zones is None else [Path(args.zones)])
        check_writable(args.polygons)


def _write_tables(args: argparse.Namespace, prediction: Any, names: list[str]) -> list[Path]:
    """Write what is asked for beside the map."""
    from sgma_hf.prediction.report.area_tables import write_areas, write_zone_areas
    from sgma_hf.rasters.maps.areas import ClassCounts
    from sgma_hf.rasters.maps.shapes import write_polygons

    label_map, written = prediction.files["labels"], []
    if args.areas:
        written += write_areas(label_map, names, ClassCounts(prediction.class_pixels, prediction.class_areas))
    if args.zones is not None:
        written += write_zone_areas(label_map, names, args.zones, args.zone_by)
    if args.polygons is not None:
        write_polygons(label_map, args.polygons, names, min_area=args.min_area)
        written.append(Path(args.polygons))
    return written


def _resampling(texts: list[str]) -> str | dict[str, str]:
    """Read `bilinear`, or `dsm=cubic rgb=average`."""
    if len(texts) == 1 and "=" not in texts[0]:
        return texts[0]
    if not all("=" in text for text in texts):
        raise ValueError(f"`--resampling` is {' '.join(texts)!r}; expected one name, or MODALITY=NAME for each.")
    return dict(text.split("=", 1) for text in texts)


def _report(prediction: Any, config: Any, *, is_sifted: bool) -> None:
    """Say what the map is made of, what it shows, and what is in each file."""
    from sgma_hf.prediction.map_files import lacks_robustness

    height, width = prediction.size
    missing = [name for name in config.modalities if name not in prediction.modalities]
    print(
        f"{height} x {width} pixels from {', '.join(prediction.modalities)}; missing: {', '.join(missing) or 'none'}"
    )
    for name, dates in prediction.dates.items():
        known = sorted(date[:10] for date in dates if date is not None)
        print(f"{name}: {len(dates)} dates" + (f", {known[0]} to {known[-1]}" if known else ", all unknown"))
    counts, names = prediction.class_pixels.tolist(), config.class_names
    for count, name in sorted(zip(counts, names, strict=False), key=lambda pair: -pair[0]):
        if count:
            print(f"  {count / sum(counts):6.1%}  {name}")
    if counts[255]:
        unknown = "unknown, or covered by no modality" if is_sifted else "covered by no modality"
        print(f"  {counts[255] / sum(counts):6.1%}  {unknown} (255)")
    if prediction.agreement:
        shown = (f"{name} {'-' if mean is None else f'{mean:.2f}'}" for name, mean in prediction.agreement.items())
        print(f"mean agreement of each modality alone with the others: {', '.join(shown)}")
    meanings = {
        "labels": "class ids, 255 = no data",
        "color": "the same in colours",
        "legend": "the colours and their classes",
        "confidence": "bands: probability of the class; entropy, 0..1",
        "probabilities": f"bands: {', '.join(names)}",
        "robustness": "bands: reliance on each modality, 0..1",
        "decision": "the modality relied on most, named in the tags; 255 = no data",
        "agreement": "bands: agreement of each modality alone with the others, 0..1",
        "reliance_month": "bands: reliance on what was seen in each month, 0..1",
        "reliance_day": "the day relied on most, as 20190302; 0 = none",
    }
    space = max(len(str(path)) for path in prediction.files.values())
    for name, path in prediction.files.items():
        meaning = meanings.get(name) or f"reliance on {name.removeprefix('robustness_')}, 0..255 = 0..1"
        print(f"{path!s:<{space}}  {meaning}")
    for path in prediction.removed:
        print(f"{path!s:<{space}}  removed: it belonged to an earlier map")
    if reason := lacks_robustness(config):
        print(f"no robustness maps: {reason}")
