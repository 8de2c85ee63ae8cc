"""What `sgma-hf predict --scenes` takes and says: maps of many scenes, with one table at the end."""

import argparse
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import sgma_hf
from sgma_hf.commands.checkpoint_arguments import date_table, load_model
from sgma_hf.data.command_line import Parser


ASSETS = "what a modality is called there, where not by its name: a folder, file stem, column or asset"
NAMED = 10  # failed or uncertain scenes that are named on the screen; the table has all


def add_scene_arguments(parser: Parser) -> None:
    """Add `--scenes` and what belongs to it."""
    add = parser.add_argument_group("many scenes, see docs/maps.md").add_argument
    scenes = "folder as `convert-rasters` reads it, or of a data set; table .csv, .parquet; STAC ItemCollection .json"
    add("--scenes", metavar="SOURCE", help=scenes)
    add("--assets", nargs="+", action="extend", default=[], metavar="NAME=KEY[:BANDS]", help=ASSETS)
    scene_by = "column of a table that names the scenes; property by which items of one date are one scene"
    add("--scene_by", metavar="NAME", help=scene_by)
    add("--shard", metavar="I/N", help="make the maps of one of N parts of the scenes, I from 1 to N")
    add("--format", choices=("tif", "png"), help="of the maps; default: tif")


def predict_folder(args: argparse.Namespace, modalities: Sequence[str]) -> int:
    """Make the maps, say what failed, and write the table; 1 if a scene has failed."""
    from transformers import AutoConfig, AutoImageProcessor
    from transformers.utils import logging

    from sgma_hf.prediction.maps import MapMaker, check_options
    from sgma_hf.prediction.scenes.many import SceneLedger, predict_scenes
    from sgma_hf.prediction.scenes.summary import write_summary
    from sgma_hf.rasters.listings.sources import list_scenes
    from sgma_hf.rasters.scene import mask_options
    from sgma_hf.visualization.palette import recolor

    output, suffix, is_first = Path(args.output), f".{args.format or 'tif'}", os.environ.get("RANK", "0") == "0"
    if output.suffix.lower() in (".tif", ".tiff", ".png") or output.is_file():
        raise ValueError(f"`--output {output}`: with --scenes it is the folder of the maps.")
    if output.exists() and os.path.exists(args.scenes) and output.samefile(args.scenes):
        raise ValueError(f"`--output {output}` is the folder of the scenes; the maps take one of their own.")
    if args.like is not None and args.like not in modalities:
        raise ValueError(f"`--like {args.like}`: with --scenes it is a modality, one of {', '.join(modalities)}.")
    config, processor = AutoConfig.from_pretrained(args.model), AutoImageProcessor.from_pretrained(args.model)
    how = {"assets": parse_assets(args.assets), "scene_by": args.scene_by, "masks": mask_options(args, modalities)}
    how |= {"dated": config.date_periods is not None, "table": date_table(args.date_table, config)}
    found = list_scenes(args.scenes, modalities, **how)
    if how["table"] is not None:
        how["table"].check_used(args.date_table)
    scenes = found[_shard(args.shard)]
    joins = args.shard is not None or int(os.environ.get("WORLD_SIZE", "1")) > 1
    ledger = SceneLedger(output, suffix)
    ledger.check_free(resume=args.resume, joins=joins)
    if args.classes is not None:
        config.palette = recolor(config.class_names, config.palette, args.classes)
    options = map_options(args)
    check_options(config, processor, **options)
    model = load_model(args.model, dtype=args.dtype, device=args.device)
    model.config.palette = config.palette
    maker = MapMaker(model, processor, **options)
    how = {"extras": args.extras or (), "like": args.like, "suffix": suffix, "resume": args.resume}
    with logging.tqdm(total=len(scenes), unit="scene", desc="predict", disable=not is_first) as bar:
        for record in predict_scenes(maker, scenes, output, joins=joins, **how):
            bar.update()
            if record.error is not None:
                bar.write(f"{record.scene}: {record.error}", file=sys.stderr)
    everything = [scene.name for scene in found]
    ledger.note_command(args.command, args.model, sgma_hf.__version__)
    rows, files = write_summary(ledger, everything, model.config.class_names, modalities)
    own = {scene.name for scene in scenes}
    failed = [row["scene"] for row in rows if row["error"] is not None and row["scene"] in own]
    if is_first:
        _report(rows, len(found), model.config.class_names, files)
        if failed:
            print(f"failed: {_some(failed)}; the table says why. `--resume` tries them again", file=sys.stderr)
    return 1 if failed else 0


def map_options(args: argparse.Namespace) -> dict[str, Any]:
    """The flags that are arguments of `MapMaker`."""
    names = ("tile_size", "stride", "tta", "batch_size", "resolution", "resampling", "min_confidence", "sieve")
    return {name: getattr(args, name) for name in (*names, "allow_other_scale")}


def parse_assets(entries: Sequence[str]) -> dict[str, str]:
    """What `--assets` says, by name."""
    pairs = dict(entry.partition("=")[::2] for entry in entries)
    if not all(pairs.values()) or len(pairs) < len(entries):
        raise ValueError(f"`--assets {' '.join(entries)}`: expected NAME=KEY, each modality once, as in rgb=visual.")
    return pairs


def _shard(text: str | None) -> slice:
    """`3/20` -> every 20th, from the third on."""
    if text is None:
        return slice(None)
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise ValueError(f"`--shard {text}`: expected I/N with I from 1 to N, as in 3/20.")
    return slice(int(match[1]) - 1, None, int(match[2]))


def _report(rows: Sequence[dict[str, Any]], count: int, classes: Sequence[str], files: Sequence[Path]) -> None:
    """Say what the maps show together, and which are least certain."""
    from sgma_hf.prediction.scenes.summary import least_certain

    done = [row for row in rows if row["error"] is None]
    elsewhere = f", {count - len(rows)} not yet" if len(rows) < count else ""
    print(f"{len(done)} of {count} scenes have a map{elsewhere}")
    areas = {name: sum(row[f"area_ha_{name}"] or 0 for row in done) for name in classes}
    total = sum(areas.values())
    for name, area in sorted(areas.items(), key=lambda pair: -pair[1]):
        if area:
            print(f"  {area:12,.2f} ha  {area / total:6.1%}  {name}")
    uncertain = [f"{row['scene']} ({row['confidence']:.2f})" for row in least_certain(done)]
    if uncertain:
        print(f"least certain: {_some(uncertain)}")
    for path in files:
        print(path)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:NAMED]) + (f", and {len(names) - NAMED} more" if len(names) > NAMED else "")
