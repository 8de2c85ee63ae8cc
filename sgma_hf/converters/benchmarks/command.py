"""The command line of the benchmarks: check what is on disk, convert it, show it, push it.

    python dataset_scripts/isprs_potsdam.py --source /data/Potsdam --check
    python dataset_scripts/isprs_potsdam.py --source /data/Potsdam --out data/potsdam --num-proc 4
    python dataset_scripts/isprs_potsdam.py --source /data/Potsdam --out data/gaps --missing ndsm=0.3,nir=0.1

Files that are missing or damaged stop a conversion before it writes anything.
"""

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any

from huggingface_hub.errors import HfHubHTTPError

from ...data.incomplete_rows import parse_shares
from ...publishing.push import push_dataset as push_folder
from ..writing.card import command_for_card
from ..writing.parquet import check_output
from .check import CheckReport, check_scenes, survey_source
from .converter import (
    conversion_fingerprint,
    convert_benchmark,
    describe_rate,
    find_conversion,
    load_checks,
)
from .dataset import BenchmarkDataset, ConversionOptions
from .job_pool import default_processes
from .preview import save_preview
from .rows import RowMaker


def benchmark_parser(reader: type[BenchmarkDataset]) -> argparse.ArgumentParser:
    """The options of a data set's command: those of all, then its own."""
    description = reader.description
    names = [modality.name for modality in reader().modalities]
    parser = argparse.ArgumentParser(
        prog=description.name,
        description=f"{description.title}: check what is on disk, convert it to a dataset with nullable columns "
        f"({', '.join(names)}, label).",
        epilog=f"Handed out at {description.homepage}",
    )
    add = parser.add_argument
    add("--source", type=Path, required=True, metavar="DIR", help="folder of the unpacked archives")
    add("--out", type=Path, metavar="DIR", help="folder to make; load_dataset(folder) reads it")
    add("--split", choices=list(description.splits), help=f"division (default: {next(iter(description.splits))})")
    for name, choice in description.choices.items():
        kind = type(choice.default)
        flag = f"--{name.replace('_', '-')}"
        add(
            flag,
            dest=f"choice_{name}",
            type=kind,
            choices=choice.values,
            help=f"{choice.help} (default: {choice.default})",
        )
    default = description.default_tile or "none"
    add("--tile", type=_tile, default=description.default_tile, help=f"pixels, or none for whole scenes ({default})")
    add("--stride", type=int, help="pixels from tile to tile of training scenes (default: --tile)")
    add("--exclude", nargs="+", default=[], action="extend", metavar="SCENE", help="scenes to leave out")
    add("--missing", default="", metavar="NAME=SHARE,...", help=f"make null in training rows: {names[-1]}=0.3")
    add("--coverage", default="", metavar="NAME=SHARE,...", help="let a modality end inside training rows")
    add("--missing-seed", type=int, default=0, help="decides which rows (default: 0)")
    add("--check", action="store_true", help="say what is found, missing or damaged; convert nothing")
    add("--skip-damaged", action="store_true", help="leave out scenes with a damaged file")
    add("--allow-missing", action="store_true", help="take null for files that are not there")
    add("--preview", type=Path, metavar="PNG", help="draw some rows with the official colours (extra `viz`)")
    add("--num-proc", type=int, default=default_processes(), help="processes (default: %(default)s)")
    add("--overwrite", action="store_true", help="replace an earlier dataset in --out")
    add("--push", metavar="ORG/NAME", help="upload --out to the Hub, as a private dataset")
    add("--public", action="store_true", help="with --push: public; mind the terms of use")
    return parser


def _tile(text: str) -> int | None:
    return None if text == "none" else int(text)


def _options(reader: type[BenchmarkDataset], arguments: argparse.Namespace) -> ConversionOptions:
    given = {name: vars(arguments)[f"choice_{name}"] for name in reader.description.choices}
    return ConversionOptions(
        split=arguments.split,
        tile=arguments.tile,
        stride=arguments.stride,
        exclude=tuple(part for item in arguments.exclude for part in item.split(",") if part),
        missing=parse_shares(arguments.missing, "--missing"),
        coverage=parse_shares(arguments.coverage, "--coverage"),
        missing_seed=arguments.missing_seed,
        choices={name: value for name, value in given.items() if value is not None},
    )


def run_command(reader: type[BenchmarkDataset], argv: list[str] | None = None) -> int:
    """Run the command of a data set; see the module's docstring.

    Args:
        reader: The data set.
        argv: Arguments without the program's name; None takes those of the process.

    Returns:
        0; 1 if a check found something missing or damaged, or after a message that says what was wrong; 130 after
        Ctrl-C.
    """
    argv = sys.argv[1:] if argv is None else argv
    name = reader.description.name
    arguments = benchmark_parser(reader).parse_args(argv)
    try:
        dataset = reader(_options(reader, arguments))
        command = command_for_card(f"dataset_scripts/{name}.py", argv, ("--source", "--out", "--preview"))
        return _run(dataset, arguments, command=command)
    except (ValueError, OSError, ImportError, HfHubHTTPError) as error:
        sys.stderr.write(f"{name}: {error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write(f"{name}: stopped; the same command goes on from here\n")
        return 130


def _run(dataset: BenchmarkDataset, arguments: argparse.Namespace, *, command: str) -> int:
    if not (arguments.check or arguments.out or arguments.preview):
        raise ValueError("nothing to do: give --out DIR, --check or --preview PNG.")
    if (arguments.push or arguments.overwrite) and (arguments.check or not arguments.out):
        raise ValueError("--push and --overwrite need --out DIR, without --check.")
    RowMaker(dataset)  # refuses options that contradict the data set, before any file is read
    report = CheckReport(dataset, arguments.source, survey_source(dataset, arguments.source))
    if arguments.check:
        report.checks = check_scenes(dataset, report.survey.scenes, num_proc=arguments.num_proc)
        sys.stdout.write(f"{report.text()}\n")
    elif arguments.out:
        _convert(report, arguments, command=command)
    if arguments.preview and report.survey.scenes:
        save_preview(dataset, report.sound_scenes(), arguments.preview)
        sys.stdout.write(f"{arguments.preview}\n")
    return 0 if report.is_sound or not arguments.check else 1


def _convert(report: CheckReport, arguments: argparse.Namespace, *, command: str) -> None:
    """Check, convert, push.

    Raises:
        ValueError: If something is missing or damaged and the user did not let it pass; nothing is written then.
    """
    dataset, out = report.dataset, arguments.out
    _check_paths(arguments.source, out)
    missing = report.of_kind("missing")
    if not report.survey.scenes or (missing and not arguments.allow_missing):
        hint = "\nNull for what is not there: --allow-missing" if report.survey.scenes else ""
        raise ValueError(f"the data set is not complete, nothing was written\n{_listed(report.survey.problems)}{hint}")
    fingerprint = conversion_fingerprint(dataset, report.survey.scenes)
    if find_conversion(out, fingerprint) and not arguments.overwrite:
        sys.stdout.write(f"{out} holds exactly this conversion already\n")
    else:
        check_output(out, overwrite=arguments.overwrite)
        check_rate = _check(report, out, fingerprint=fingerprint, num_proc=arguments.num_proc)
        summary = _write(report, arguments, fingerprint=fingerprint, command=command, check_rate=check_rate)
        sys.stdout.write(summary)
    if arguments.push:
        push_dataset(dataset, out, arguments.push, private=not arguments.public)


def _check(report: CheckReport, out: Path, *, fingerprint: str, num_proc: int) -> str:
    """Fill in `report.checks`; returns how fast that went."""
    scenes = report.survey.scenes
    checks = load_checks(out, fingerprint, len(scenes))
    if checks is not None:
        report.checks = checks
        return "checked: by the run that was interrupted"
    start = time.monotonic()
    report.checks = check_scenes(report.dataset, scenes, num_proc=num_proc)
    seconds = time.monotonic() - start
    num_pixels = sum(check.size[0] * check.size[1] for check in report.checks if check.size is not None)
    return describe_rate("checked", num_pixels, seconds, num_proc)


def _write(
    report: CheckReport, arguments: argparse.Namespace, *, fingerprint: str, command: str, check_rate: str
) -> str:
    damaged = report.of_kind("damaged")
    if damaged and not arguments.skip_damaged:
        raise ValueError(
            f"{len(damaged)} files are damaged, nothing was written\n{_listed(damaged)}\n"
            "Leave their scenes out: --skip-damaged"
        )
    summary = convert_benchmark(
        report.dataset,
        report.survey,
        report.checks,
        arguments.out,
        fingerprint=fingerprint,
        num_proc=arguments.num_proc,
        overwrite=arguments.overwrite,
        command=command,
    )
    sound = report.sound_scenes()
    skipped = [f"{scene.split}/{scene.name}" for scene in report.survey.scenes if scene not in sound]
    said = report.of_kind("missing") + damaged + report.of_kind("note")
    parts = [summary, check_rate]
    if skipped:
        parts.append(f"skipped because of damage: {', '.join(skipped)}")
    if said:
        parts.append(_listed(said))
    return "\n".join(parts) + "\n"


def _listed(problems: list[Any]) -> str:
    return "\n".join(f"  - {problem}" for problem in problems)


def _check_paths(source: Path, out: Path) -> None:
    """Refuse an --out that would replace the source, or become part of it."""
    inner, outer = os.path.realpath(source), os.path.realpath(out)
    if inner == outer or inner.startswith(outer + os.sep):
        raise ValueError(f"--out {out} is or holds --source {source}; choose another folder.")


def push_dataset(dataset: BenchmarkDataset, out: Path, repo_id: str, *, private: bool = True) -> str:
    """Upload a converted data set to the Hub, after saying on which terms it may be used.

    Args:
        dataset: The reader.
        out: The converted folder.
        repo_id: `org/name`.
        private: Whether a repository that is made now is private; one that is public already is refused.

    Returns:
        Address of the repository.
    """
    description = dataset.description
    audience = "as a private dataset" if private else "as a PUBLIC dataset"
    sys.stdout.write(f"{description.title}: terms of use\n{description.terms}\nUploading to {repo_id} {audience}\n")
    sys.stdout.flush()
    url = push_folder(out, repo_id, private, commit_message=f"Upload {description.title}")
    sys.stdout.write(f"{url}\n")
    return url
