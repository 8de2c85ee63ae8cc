"""The command line of the public data sets: check what is on disk, convert it, show it, push it.

    python dataset_scripts/isprs_potsdam.py --source /data/Potsdam --check
    python dataset_scripts/isprs_potsdam.py --source /data/Potsdam --output data/potsdam --num_proc 4
    python dataset_scripts/isprs_potsdam.py --source /data/Potsdam --output data/gaps --missing ndsm=0.3,nir=0.1

Files that are missing or damaged stop a conversion before it writes anything.
"""

import argparse
import io
import math
import os
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import fields
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image

from ...data.command_line import Parser, report_errors
from ...data.incomplete_rows import parse_shares
from ...model.dates_sgma import observations
from ...publishing.push import add_push_arguments, push_as_asked
from ..writing.card import command_for_card
from ..writing.parquet import check_output
from ..writing.preview import clearest
from .check import CheckReport, check_scenes, listed, survey_source
from .converter import conversion_fingerprint, convert_benchmark, describe_rate, find_conversion, load_checks
from .dataset import SPLITS, BenchmarkDataset, ConversionOptions, Scene
from .job_pool import default_processes
from .rows import RowMaker


_ROWS_LOOKED_AT = 36  # of a scene: about a quarter of a 6000-pixel tile
_ROWS_SHOWN = 3


def benchmark_parser(reader: type[BenchmarkDataset]) -> Parser:
    """The options of a data set's command: those of all, then its own."""
    description = reader.description
    names = [modality.name for modality in reader().modalities]
    parser = Parser(
        prog=f"sgma-hf {description.name.replace('_', '-')}",
        description=f"{description.title}: check what is on disk, convert it to a dataset with nullable columns "
        f"({', '.join(names)}, label).",
        epilog=f"Handed out at {description.homepage}",
    )
    add = parser.add_argument
    tile = description.default_tile
    add("--source", type=Path, required=True, metavar="DIR", help="folder of the unpacked archives")
    add("--output", type=Path, metavar="DIR", former=["--out"], help="folder to make; load_dataset(folder) reads it")
    add("--split", choices=list(description.splits), help=f"division (default: {next(iter(description.splits))})")
    for name, choice in description.choices.items():
        text = f"{choice.help} (default: {choice.default})"
        add(f"--{name}", type=type(choice.default), choices=choice.values, help=text)
    text = f"pixels, or none for whole scenes (default: {tile or 'none'})"
    add("--tile_size", dest="tile", type=_tile, default=tile, former=["--tile"], help=text)
    add("--stride", type=int, help="pixels from tile to tile of training scenes (default: --tile_size)")
    add("--exclude", nargs="+", default=[], action="extend", metavar="SCENE", help="scenes to leave out")
    add("--missing", default="", metavar="NAME=SHARE,...", help=f"make null in training rows: {names[-1]}=0.3")
    add("--coverage", default="", metavar="NAME=SHARE,...", help="let a modality end inside training rows")
    add("--missing_seed", type=int, default=0, help="decides which rows (default: 0)")
    parser.add_switch("--check", help="say what is found, missing or damaged; convert nothing")
    parser.add_switch("--skip_damaged", help="leave out scenes with a damaged file")
    parser.add_switch("--allow_missing", help="take null for files that are not there")
    add("--preview", type=Path, metavar="PNG", help="draw some rows with the official colours (extra `viz`)")
    add("--num_proc", type=int, default=default_processes(), help="processes (default: %(default)s)")
    parser.add_switch("--overwrite", help="replace an earlier dataset in --output")
    add_push_arguments(parser)
    return parser


def _tile(text: str) -> int | None:
    return None if text == "none" else int(text)


def _options(names: Iterable[str], arguments: argparse.Namespace) -> ConversionOptions:
    given = vars(arguments) | {
        "exclude": tuple(part for item in arguments.exclude for part in item.split(",") if part),
        "missing": parse_shares(arguments.missing, "--missing"),
        "coverage": parse_shares(arguments.coverage, "--coverage"),
        "choices": {name: value for name in names if (value := vars(arguments)[name]) is not None},
    }
    return ConversionOptions(**{option.name: given[option.name] for option in fields(ConversionOptions)})


def run_command(reader: type[BenchmarkDataset], argv: list[str] | None = None) -> int:
    """Run the command of a data set; see the module's docstring.

    Returns:
        0; 1 if a check found something missing or damaged; 2 after a message that says what was wrong; 130 after
        Ctrl-C.
    """
    argv = sys.argv[1:] if argv is None else argv
    parser = benchmark_parser(reader)
    arguments = parser.parse_args(argv)
    run = report_errors(parser.prog, on_stop="the same command goes on from here")(_run)
    return run(reader, arguments, argv)


def _run(reader: type[BenchmarkDataset], arguments: argparse.Namespace, argv: list[str]) -> int:
    dataset = reader(_options(reader.description.choices, arguments))
    if not (arguments.check or arguments.output or arguments.preview):
        raise ValueError("nothing to do: give --output DIR, --check or --preview PNG.")
    if (arguments.push or arguments.overwrite) and (arguments.check or not arguments.output):
        raise ValueError("--push and --overwrite need --output DIR, without --check.")
    RowMaker(dataset)  # refuses options that contradict the data set, before any file is read
    report = CheckReport(dataset, arguments.source, survey_source(dataset, arguments.source))
    if arguments.check:
        report.checks = check_scenes(dataset, report.survey.scenes, num_proc=arguments.num_proc)
        sys.stdout.write(f"{report.text()}\n")
    elif arguments.output:
        script = f"python dataset_scripts/{reader.description.name}.py"
        _convert(report, arguments, command_for_card(script, argv, ("--source", "--output", "--preview")))
    if arguments.preview and report.survey.scenes:
        _save_preview(dataset, report.sound_scenes(), arguments.preview)
        sys.stdout.write(f"{arguments.preview}\n")
    return 0 if report.is_sound or not arguments.check else 1


def _convert(report: CheckReport, arguments: argparse.Namespace, command: str) -> None:
    """Check, convert, push; if something is missing or damaged that the user did not let pass, nothing is written."""
    out = arguments.output
    inner, outer = os.path.realpath(arguments.source), os.path.realpath(out)
    if inner == outer or inner.startswith(outer + os.sep):  # it would replace the source, or become part of it
        raise ValueError(f"--output {out} is or holds --source {arguments.source}; choose another folder.")
    report.refuse_missing(arguments.allow_missing, "Null for what is not there: --allow_missing")
    fingerprint = conversion_fingerprint(report.dataset, report.survey.scenes)
    if find_conversion(out, fingerprint) and not arguments.overwrite:
        sys.stdout.write(f"{out} holds exactly this conversion already\n")
    else:
        check_output(out, overwrite=arguments.overwrite)
        checking = _check(report, out, fingerprint, arguments.num_proc)
        report.refuse_damaged(arguments.skip_damaged, "Leave their scenes out: --skip_damaged")
        summary = convert_benchmark(
            report,
            out,
            fingerprint=fingerprint,
            num_proc=arguments.num_proc,
            overwrite=arguments.overwrite,
            command=command,
        )
        skipped = report.damaged_scenes()
        skipping = f"skipped because of damage: {', '.join(skipped)}" if skipped else ""
        said = listed([problem for kind in ("missing", "damaged", "note") for problem in report.of_kind(kind)])
        sys.stdout.write("\n".join(filter(None, [summary, checking, skipping, said])) + "\n")
    if arguments.push:
        description, audience = report.dataset.description, "a PUBLIC" if arguments.public else "a private"
        sys.stdout.write(f"{description.title}: terms of use\n{description.terms}\n")
        sys.stdout.write(f"Uploading to {arguments.push} as {audience} dataset\n")
        sys.stdout.flush()
        push_as_asked(arguments)


def _check(report: CheckReport, out: Path, fingerprint: str, num_proc: int) -> str:
    """Fill in `report.checks`; returns how fast that went."""
    checks = load_checks(out, fingerprint)
    if checks is not None:
        report.checks = checks
        return "checked: by the run that was interrupted"
    start = time.monotonic()
    report.checks = check_scenes(report.dataset, report.survey.scenes, num_proc=num_proc)
    num_pixels = sum(math.prod(check.size) for check in report.checks if check.size is not None)
    return describe_rate("checked", num_pixels, time.monotonic() - start, num_proc)


def _save_preview(dataset: BenchmarkDataset, scenes: Sequence[Scene], path: Path) -> None:
    """Draw rows of some sound scenes under each other: modalities, labels and a legend; what is missing is hatched."""
    if not scenes:
        raise ValueError("There are no sound scenes to draw.")
    first_of = {scene.split: scene for scene in reversed(scenes)}
    firsts = [first_of[split] for split in SPLITS if split in first_of]
    chosen = [*firsts, *(scene for scene in scenes if scene not in firsts)][:_ROWS_SHOWN]
    boards = [_board(dataset, scene) for scene in chosen]
    picture = Image.new("RGB", (max(board.width for board in boards), sum(board.height for board in boards)), "white")
    for index, board in enumerate(boards):
        picture.paste(board, (0, sum(above.height for above in boards[:index])))
    picture.save(path)


def _board(dataset: BenchmarkDataset, scene: Scene) -> Image.Image:
    """The row with the most classes, one that was made incomplete before others."""
    from ...visualization.boards import plot_sample  # imports torch

    maker = RowMaker(dataset)
    metadata = maker.metadata
    row = max(
        islice(maker.rows(scene), _ROWS_LOOKED_AT),
        key=lambda row: (bool(row.taken), 0 if row.label is None else len(np.unique(row.label))),
    )
    nodata = dict(zip(metadata.modalities, metadata.nodata, strict=True))
    rasters = {name: observations(row.images, name) for name in metadata.modalities}
    figure = plot_sample(
        {name: clearest(found, nodata[name]) if len(found) else None for name, found in rasters.items()},
        label=row.label,
        nodata=nodata,
        units=dict(zip(metadata.modalities, metadata.units, strict=True)),
        class_names=metadata.class_names,
        palette=metadata.palette,
        title=f"{scene.split}: {row.row_id}{' (no label)' if row.label is None else ''}",
    )
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return Image.open(buffer).convert("RGB")
