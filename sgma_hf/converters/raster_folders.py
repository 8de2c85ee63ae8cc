"""Turns anybody's folders of rasters into a dataset.

    sgma-hf convert-rasters --source weedmap --output data/weedmap --modalities nir red green --nodata nir=0
    sgma-hf convert-rasters --source trees --output data/trees --modalities rgb hsi chm --val_fraction 0.2 \
        --group_distance 60
    sgma-hf convert-rasters --source plots --output data/plots --modalities rgb=rgbn:1,2,3 nir=rgbn:4

See `rasters.listings.folders` for the folders it understands, `read_on_extent` for what happens to rasters of other
resolution or extent, `folders.labels` for labels and `--classes`. A scene is held in memory whole.
"""

import contextlib
import math
import os
import sys
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm
from transformers.utils import logging

from ..data.class_maps import ClassMap
from ..data.command_line import Parser, report_errors
from ..data.metadata import DatasetMetadata
from ..model.dates_sgma import observations
from ..model.limits_sgma import DATES_SUFFIX, check_modalities
from ..publishing.push import add_push_arguments, push_as_asked
from ..rasters.bands import BandGaps, BandSelection, share_files
from ..rasters.dates import DateTable
from ..rasters.extents import read_on_extent
from ..rasters.grids import Grid, shared_sampling
from ..rasters.listings.folders import find_scenes, modality_entry
from ..rasters.polygons import PolygonLabels, add_polygon_arguments, polygon_options
from ..rasters.raster import Raster
from ..rasters.scene import add_mask_arguments, mask_options
from ..visualization.palette import class_palette
from .folders.labels import map_label, survey_labels
from .folders.modality_plan import ModalityPlan, NodataOption, plan_modality
from .folders.scenes import (
    Scene,
    burn_labels,
    describe_dates,
    mask_key,
    placed_files,
    read_headers,
    series_of,
    shared_layer,
)
from .folders.sequences import sequence_of
from .folders.spatial_groups import check_fraction, choose_validation, group_scenes, least_gap
from .folders.tiling import Tiling, cut
from .writing.card import command_for_card
from .writing.parquet import ParquetDatasetWriter, check_output


logger = logging.get_logger(__name__)


@dataclass
class ConversionOptions:
    """What `convert_rasters` does beside reading; the command line has a flag for each."""

    label: str | None = "label"  # folder or stem of the labels, or one file of polygons; None if there are none
    polygons: PolygonLabels = field(default_factory=PolygonLabels)  # how polygons become labels, whatever their source
    absent: Mapping[str, int] = field(default_factory=dict)  # bands of modalities that no scene has: null throughout
    nodata: Mapping[str, NodataOption] = field(default_factory=dict)  # per modality, values that stand for nothing
    # Per modality the folder or stem of masks, of which classes hide it.
    masks: Mapping[str, tuple[str, tuple[float, ...]]] = field(default_factory=dict)
    units: Mapping[str, str] = field(default_factory=dict)  # per modality, for the record
    classes: str | os.PathLike | None = None  # as `ClassMap.load` takes it; None takes label ids as they are
    ignore_unmapped: bool = False  # whether label values without a class are ignored instead of refused
    tile: int | None = None  # side of a tile in pixels of the label; None keeps scenes whole
    stride: int | None = None  # pixels from tile to tile of training scenes, `tile` by default; see `Tiling`
    val_fraction: float | None = None  # share of the training rows to set aside as `validation`; None sets none aside
    group_distance: float | None = None  # scenes closer than so many metres stay on one side
    group_regex: str | None = None  # scenes whose names give the same match stay on one side
    sequence_regex: str | None = None  # scenes whose names give the same match are one sequence, see `sequence_of`
    series: bool = False  # whether files that differ by date alone are one scene, whatever else there is
    date_table: str | os.PathLike | None = None  # a table of dates, see `DateTable`
    seed: int = 0  # decides what is set aside
    split_names: Mapping[str, str] = field(default_factory=dict)  # other names for split folders: {"valid": "test"}
    split_notes: Mapping[str, str] = field(default_factory=dict)  # by split, how it was made, where the user knows
    preview: bool = False  # whether rows get a small picture of all modalities, for viewers
    overwrite: bool = False  # whether to replace an earlier dataset


def convert_rasters(
    source: str | os.PathLike,
    out: str | os.PathLike,
    modalities: Sequence[str],
    *,
    options: ConversionOptions | None = None,
    command: str = "",
) -> str:
    """Convert a folder of rasters into a dataset folder that `datasets.load_dataset(out)` reads.

    The reference grid of a scene is that of its label, or, without one, of its modality with most pixels. `modalities`
    are `NAME[=FOLDER][:BANDS]` in the order of the columns: the folder or stem of the files, where it is not the name,
    and their bands, where not all are meant or alpha has to be confirmed: `rgb=x:1,2,3,alpha`. `command` is for the
    card. Returns a summary for the terminal; an error leaves nothing in `out`.
    """
    source, out, options = Path(source), Path(out), options or ConversionOptions()
    folders, bands = _parse_modalities(modalities)
    _check_options(source, out, list(folders), options)
    layer = shared_layer(source, options.label)
    label = options.label if layer is None else None
    masks = {mask_key(name): BandSelection.parse(folder)[0] for name, (folder, _) in options.masks.items()}
    how = {"split_names": options.split_names, "absent": options.absent.keys(), "series": options.series}
    found = find_scenes(source, folders | masks, label, **how)
    found = [files for files in found if files.label is not None or any(map(files.rasters.get, folders))]
    series = series_of(found, folders)
    table = None if options.date_table is None else DateTable.read(options.date_table)
    if table is not None and not series:
        raise ValueError(f"--date_table {options.date_table}: no modality of {source} has several dates in a scene.")
    watched = tqdm(found, desc="headers", unit="scene", leave=False)
    scenes = [read_headers(files, bands, options.masks, series, table) for files in watched]
    if table is not None:
        table.check_used(options.date_table)
    with tempfile.TemporaryDirectory(prefix="sgma_hf_") as folder:
        classes = None if options.classes is None else ClassMap.load(options.classes)
        burn_labels(scenes, layer, options.polygons, classes, Path(folder), ignore_unmapped=options.ignore_unmapped)
        return _convert(source, out, folders, bands, scenes, series, options, command)


def _convert(
    source: Path,
    out: Path,
    folders: Mapping[str, str],
    bands: Mapping[str, BandSelection],
    scenes: Sequence[Scene],
    series: Collection[str],
    options: ConversionOptions,
    command: str,
) -> str:
    """Write the rows of scenes whose headers are read; the summary of `convert_rasters`."""
    plans = [_plan(name, scenes, options) for name in folders]
    labels = [scene.label for scene in scenes if scene.label is not None]
    # Read before anything is written: how many classes there are must be known, and errors said.
    survey = survey_labels(labels, options.classes, ignore_unmapped=options.ignore_unmapped) if labels else None
    class_map = None if survey is None else survey.class_map
    _set_validation_aside(scenes, options)
    writer = ParquetDatasetWriter(
        out,
        _metadata(source, plans, scenes, series, class_map, options),
        title=f"{Path(os.path.abspath(source)).name}: {', '.join(folders)}",
        description=f"Converted from a folder of rasters, {len(scenes)} scenes. Mind their licence when you share it.",
        command=command,
        overwrite=options.overwrite,
    )
    sequences = [None] * len(scenes) if options.sequence_regex is None else sequence_of(scenes, options.sequence_regex)
    rows, empty, gaps = 0, 0, {name: BandGaps() for name in folders}
    tiling = Tiling(options.tile, options.stride)
    with writer:
        for scene, named in zip(tqdm(scenes, desc="converting", unit="scene"), sequences, strict=True):
            for row_id, images, label in _rows(scene, plans, class_map, tiling, gaps, writer.out.parent):
                if not any(observations(images, name) for name in folders):
                    empty += 1
                    continue
                time = {}
                if named is not None:
                    place = row_id.removeprefix(scene.files.name)
                    time = {"sequence": named[0] + place, "label_date": named[1]}
                writer.write(scene.files.split, row_id, images, label, **time)
                rows += 1
        notes = _notes_on_bands(folders, bands, gaps)
        if not rows:
            raise ValueError(" ".join([f"No pixel of {source} holds data in any modality.", *filter(None, notes)]))
    left_out = f"{empty} tiles without data in any modality were left out." if empty else ""
    on_labels = [] if survey is None else [survey.table(), survey.note]
    said = [writer.summary(), left_out, *notes, *_notes_on_dates(scenes, series, options.masks), *on_labels]
    return "\n".join(filter(None, said))


def _metadata(
    source: Path,
    plans: Sequence[ModalityPlan],
    scenes: Sequence[Scene],
    series: Collection[str],
    class_map: ClassMap | None,
    options: ConversionOptions,
) -> DatasetMetadata:
    """What the columns mean."""
    names = [plan.name for plan in plans]
    return DatasetMetadata(
        modalities=names,
        modality_channels=[plan.channels for plan in plans],
        modality_dtypes=[plan.dtype for plan in plans],
        nodata=[list(plan.nodata) for plan in plans],
        series=[name in series for name in names],
        units=[options.units.get(name) for name in names],
        resolution=shared_sampling([Grid(scene.size, scene.grid) for scene in scenes]),
        preview=options.preview,
        sequences=options.sequence_regex is not None,
        split_notes=_split_notes(source, scenes, options),
        **({} if class_map is None else _described(class_map)),
    )


def _notes_on_dates(scenes: Sequence[Scene], series: Collection[str], masks: Collection[str]) -> Iterator[str]:
    """A line for each modality whose files lack masks, and for each series, about its dates."""
    for name in masks:
        lacking = sum(seen.mask is None for scene in scenes for seen in scene.observations[name])
        if lacking:
            what = "dates" if name in series else "scenes"
            yield f"{lacking} {what} have no mask for {name}: nothing of it is hidden there."
    for name in series:
        yield f"{name}: {describe_dates(scene.observations[name] for scene in scenes)}"


def _notes_on_bands(
    folders: Mapping[str, str], bands: Mapping[str, BandSelection], gaps: Mapping[str, BandGaps]
) -> list[str]:
    """A line for each modality about bands that are hardly there, empty where all are."""
    return [
        gaps[name].note(name, bands[name], f"`--modalities {modality_entry(name, folder)}:{{bands}}` leaves it out")
        for name, folder in folders.items()
    ]


def _described(class_map: ClassMap) -> dict[str, Any]:
    """What the metadata says of classes."""
    return {
        "class_names": class_map.names,
        "palette": class_palette(class_map.names, class_map.palette),
        "classes": class_map.entries() if class_map.is_given else [],
    }


def _parse_modalities(entries: Sequence[str]) -> tuple[dict[str, str], dict[str, BandSelection]]:
    """Folder by name, and bands by name, of `rgb`, `nir=rgbn:4`, `rgb:1,2,3,alpha`."""
    folders: dict[str, str] = {}
    chosen = []
    for text, bands in map(BandSelection.parse, entries):
        name, _, folder = text.partition("=")
        if name in folders:
            raise ValueError(f"--modalities {' '.join(entries)} repeats {name!r}; give each name once.")
        folders[name] = folder or name
        chosen.append((folders[name], bands))
    return folders, dict(zip(folders, share_files(chosen), strict=True))


def _check_options(source: Path, out: Path, modalities: list[str], options: ConversionOptions) -> None:
    """Refuse what can be refused before any file is read."""
    check_modalities(modalities, [options.absent.get(name, 1) for name in modalities])
    for flag, entries in (("--absent", options.absent), ("--nodata", options.nodata), ("--units", options.units)):
        unknown = sorted(entries.keys() - modalities)
        if unknown:
            raise ValueError(
                f"{flag} names {unknown}; the modalities are {modalities}. --modalities names all of them."
            )
    if (options.group_distance is not None or options.group_regex is not None) and options.val_fraction is None:
        raise ValueError("Groups are for setting validation scenes aside: give --val_fraction too.")
    if options.val_fraction is not None:
        check_fraction(options.val_fraction)
    if options.classes is not None and options.label is None:
        raise ValueError("--classes needs labels; leave out --label none.")
    Tiling(options.tile, options.stride)
    if options.overwrite and source.absolute().resolve().is_relative_to(out.absolute().resolve()):
        raise ValueError(f"--overwrite would remove the source: {source} is in --output {out}.")
    check_output(out, overwrite=options.overwrite)


def _plan(name: str, scenes: Sequence[Scene], options: ConversionOptions) -> ModalityPlan:
    option = options.nodata.get(name, NodataOption())
    if name in options.absent:  # float32 holds whatever may be added later
        return ModalityPlan(name, options.absent[name], "float32", option.values, fill=None, option=option)
    return plan_modality(name, placed_files(name, scenes), option)


def _set_validation_aside(scenes: Sequence[Scene], options: ConversionOptions) -> None:
    """Move whole groups of training scenes to the split `validation`."""
    if options.val_fraction is None:
        return
    if any(scene.files.split == "validation" for scene in scenes):
        raise ValueError(
            "The source has a validation split already, so --val_fraction is ambiguous. Leave it out, or call that "
            "split something else: --split_as valid=test."
        )
    training = [scene for scene in scenes if scene.files.split == "train"]
    names, places = [scene.files.name for scene in training], [(scene.grid, scene.size) for scene in training]
    groups = group_scenes(names, places, distance=options.group_distance, regex=options.group_regex)
    tiling = Tiling(options.tile, options.stride)
    sizes = [len(tiling.windows(scene.size, "train")) for scene in training]
    chosen = choose_validation(groups, sizes, options.val_fraction, options.seed)
    for scene, is_validation in zip(training, chosen, strict=True):
        if is_validation:
            scene.files.split = "validation"
    sides = ([place for place, one in zip(places, chosen, strict=True) if one == side] for side in (True, False))
    if options.group_distance is None and options.group_regex is None and least_gap(*sides) == 0:
        logger.warning(
            "Scenes set aside for validation touch scenes to train on, so that scores flatter: `--group_distance 1` "
            "keeps those that touch together."
        )


def _split_notes(source: Path, scenes: Sequence[Scene], options: ConversionOptions) -> dict[str, str]:
    """How each split was made, and how far from the training scenes it lies."""
    footprints: dict[str, list] = {}
    for scene in scenes:
        footprints.setdefault(scene.files.split, []).append((scene.grid, scene.size))
    unknown = sorted(options.split_notes.keys() - footprints)
    if unknown:
        raise ValueError(f"--split_notes names {unknown}; the splits are {sorted(footprints)}.")
    notes = {}
    for split, places in footprints.items():
        if split in options.split_notes:
            made = options.split_notes[split].rstrip(".") + "."
        elif split == "train":
            made = "Scenes of the source."
        elif split == "validation" and options.val_fraction is not None:
            distance, regex = options.group_distance, options.group_regex
            apart = "" if distance is None else f", {distance:g} m or more from the others"
            apart += "" if regex is None else f", those that {regex!r} matches alike on one side"
            drawn = f"{len(places)} of {len(places) + len(footprints['train'])} scenes, drawn whole with seed"
            made = f"{drawn} {options.seed} to come near {options.val_fraction:.0%} of the rows{apart}."
        else:
            files = next(scene.files for scene in scenes if scene.files.split == split)
            path = next(path for path in (files.label, *files.rasters.values()) if path is not None)
            made = f"The source's folder `{path.relative_to(source).parts[0]}`; how it was chosen is not known."
        gap = None if split == "train" else least_gap(places, footprints.get("train", []))
        if gap is not None:
            away = f"{gap:.3g} m" if gap < 1000 else f"{gap / 1000:,.0f} km"
            made += f" Its nearest scene lies {away} from those of the training."
        elif split != "train" and split not in options.split_notes:
            made += " How far from the training scenes it lies is not known."
        notes[split] = made
    return notes


def _rows(
    scene: Scene,
    plans: Sequence[ModalityPlan],
    class_map: ClassMap | None,
    tiling: Tiling,
    gaps: Mapping[str, BandGaps],
    spill: Path,
) -> Iterator[tuple[str, dict[str, Any], np.ndarray | None]]:
    """Id, rasters as a writer takes them and label of each tile of a scene.

    A raster without data in the tile is None, a date without it is left out. `gaps` are told what bands lack, and in
    `spill` are the dates that memory does not hold.
    """
    label = None if scene.label is None else map_label(scene.label, class_map)
    with contextlib.ExitStack() as kept:
        rasters = {plan.name: _read(scene, plan, gaps[plan.name], spill, kept) for plan in plans}
        for window in tiling.windows(scene.size, scene.files.split):
            images: dict[str, Any] = {}
            for plan in plans:
                seen = zip(scene.observations[plan.name], rasters[plan.name], strict=True)
                stored = [(o.dated, plan.store(cut(raster, scene.size, window), o.info.path)) for o, raster in seen]
                stored = [(dated, array) for dated, array in stored if array is not None]
                images[plan.name] = [array for _, array in stored] or None
                if stored and stored[0][0] is None:
                    images[plan.name] = stored[0][1]
                elif stored:
                    images[plan.name + DATES_SUFFIX] = [dated.time for dated, _ in stored]
            place = "" if tiling.tile is None else f"_y{window.top:05d}_x{window.left:05d}"
            part = None if label is None else tiling.label(label[window.slices], window, scene.files.split)
            yield scene.files.name + place, images, part


def _read(scene: Scene, plan: ModalityPlan, gaps: BandGaps, spill: Path, kept: contextlib.ExitStack) -> list[Raster]:
    """The rasters of a modality on the extent of a scene; of several dates, all but one at a time are in files."""
    rasters, several = [], scene.observations[plan.name]
    if len(several) > 1:
        folder = Path(kept.enter_context(tempfile.TemporaryDirectory(prefix=".dates-", dir=spill)))
    for index, seen in enumerate(several):
        missing = {"nodata": plan.option.values, "use_declared_nodata": plan.option.use_declared, "gaps": gaps}
        raster = read_on_extent(seen.info, scene.grid, scene.size, mask=seen.mask, **missing)
        if len(several) > 1:
            arrays = []
            for what, array in (("values", raster.values), ("valid", raster.valid)):
                path = folder / f"{index}_{what}.npy"
                np.save(path, array)
                arrays.append(np.load(path, mmap_mode="r"))
            raster = Raster(*arrays)
        rasters.append(raster)
    return rasters


def _pairs(
    entries: Sequence[str], flag: str, convert: Callable[[str], Any] = str, expected: str = "NAME=VALUE"
) -> dict[str, Any]:
    """`NAME=VALUE` arguments as a dict."""
    pairs = {}
    try:
        for name, _, text in (entry.partition("=") for entry in entries):
            if not text or name in pairs:
                raise ValueError
            pairs[name] = convert(text)
    except ValueError as error:
        raise ValueError(f"{flag} {' '.join(entries)}: expected {expected}, each name once.") from error
    return pairs


def _nodata(text: str) -> NodataOption:
    """`0`, `-9999,-32768`, or `none` (whatever the files declare)."""
    if text == "none":
        return NodataOption(use_declared=False)
    # NaN always counts. 64-bit integers are not all floats.
    values = [int(part) if part.strip().lstrip("+-").isdecimal() else float(part) for part in text.split(",")]
    return NodataOption(tuple(value for value in values if math.isfinite(value)))


def _parser() -> Parser:
    parser = Parser(
        prog="sgma-hf convert-rasters",
        description="Turn a folder of rasters into a dataset: a folder per modality (nir/x.png, label/x.png, or "
        "nir/x_nir.png, label/x_label.png) or per scene (x/nir.tif, x/label.tif), with or without split folders "
        "(train, valid, ...). Absent files become null.",
    )
    add = parser.add_argument
    several = {"nargs": "+", "action": "extend", "default": []}
    add("--source", type=Path, required=True, help="folder of the rasters")
    add("--output", type=Path, required=True, former=["--out"], help="folder to make; load_dataset(folder) reads it")
    add(
        "--modalities",
        nargs="+",
        action="extend",
        required=True,
        metavar="NAME[=FOLDER][:BANDS]",
        help="columns, in this order; bands are counted from 1: rgb=rgbn:1,2,3 nir=rgbn:4, or rgb:1,2,3,alpha where "
        "transparency is gradual",
    )
    add(
        "--absent",
        **several,
        metavar="NAME=BANDS",
        help="modality that no scene has, null in every row, and how many bands a model takes of it: dsm=1",
    )
    label = "folder or file stem of the labels, a file of polygons for all scenes, or none (default: label)"
    add("--label", default="label", help=label)
    add("--nodata", **several, metavar="NAME=VALUE", help="value of no data: nir=0")
    add("--units", **several, metavar="NAME=UNIT", help="for the record: dsm=m sar=dB")
    classes = (
        """a JSON file, or JSON: '["soil", "crop"]', or '[{"name": "crop", "value": 7, "color": "#00aa00"}, """
        """{"value": 9, "ignore": true}]'; or a dataset's folder, for the classes that it has"""
    )
    add("--classes", metavar="FILE_OR_JSON", help=classes)
    parser.add_switch("--ignore_unmapped", help="ignore label values that --classes does not have")
    parser.add_switch("--preview", help="add a column with a small picture of all modalities, for viewers")
    add("--tile_size", dest="tile", type=int, former=["--tile"], help="cut scenes into tiles of so many label pixels")
    add("--stride", type=int, help="pixels from tile to tile of training scenes (default: --tile_size)")
    add("--val_fraction", type=float, help="share of the training rows to set aside as validation, by whole scenes")
    add("--group_distance", type=float, metavar="METRES", help="scenes closer than this stay on one side")
    add("--group_regex", help="scenes whose names give the same match (its first group) stay on one side")
    sequence = "scenes whose names give the same match (its first group) are one place or video, for evaluations"
    add("--sequence_regex", metavar="REGEX", help=sequence)
    dated = "a scene whose files differ by their date alone is one, also where no label or other file says so"
    parser.add_switch("--series", help=dated)
    taken = "when files were taken, columns file and date; default: by name, tag or STAC"
    add("--date_table", metavar="CSV", help=taken)
    add("--seed", type=int, default=0, help="decides which scenes are set aside (default: 0)")
    add("--split_as", dest="split_names", **several, metavar="FOLDER=SPLIT", help="e.g. valid=test")
    how = 'how a split was made, for cards and evaluations: test="a random part of the training fields"'
    add("--split_notes", **several, metavar="SPLIT=TEXT", help=how)
    parser.add_switch("--overwrite", help="replace an earlier dataset in --output")
    add_polygon_arguments(parser)
    add_mask_arguments(parser, "folder or file stem")
    add_push_arguments(parser)
    return parser


@report_errors("sgma-hf convert-rasters", on_stop="nothing was written; the same command starts anew")
def main(argv: list[str] | None = None) -> int:
    """Command line of the raster converter; see the module's docstring."""
    argv = sys.argv[1:] if argv is None else argv
    arguments = _parser().parse_args(argv)
    given = vars(arguments) | {
        "label": None if arguments.label == "none" else arguments.label,
        "polygons": polygon_options(arguments),
        "masks": mask_options(arguments, list(_parse_modalities(arguments.modalities)[0])),
        "absent": _pairs(arguments.absent, "--absent", int, "NAME=BANDS, a whole number, as in dsm=1"),
        "nodata": _pairs(arguments.nodata, "--nodata", _nodata, "NAME=VALUE, numbers and commas between, or `none`"),
        "units": _pairs(arguments.units, "--units"),
        "split_names": _pairs(arguments.split_names, "--split_as"),
        "split_notes": _pairs(arguments.split_notes, "--split_notes"),
    }
    options = ConversionOptions(**{option.name: given[option.name] for option in fields(ConversionOptions)})
    paths = ("--source", "--output", "--classes", "--label", "--label_extent", "--date_table")
    command = command_for_card("sgma-hf convert-rasters", argv, paths)
    summary = convert_rasters(
        arguments.source, arguments.output, arguments.modalities, options=options, command=command
    )
    sys.stdout.write(f"{summary}\n")
    push_as_asked(arguments)
    return 0
