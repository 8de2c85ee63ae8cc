"""Turns anybody's folders of rasters into a dataset.

    python dataset_scripts/rasters.py --source weedmap --out data/weedmap --modalities nir red green --nodata nir=0
    python dataset_scripts/rasters.py --source trees --out data/trees --modalities rgb hsi chm --val-fraction 0.2 \
        --group-distance 60
    python dataset_scripts/rasters.py --source plots --out data/plots --modalities rgb=rgbn:1,2,3 nir=rgbn:4

See `source_layout` for the folders it understands, `raster_io.read_on_extent` for what happens to rasters of other
resolution or extent, `class_maps` for `--classes`. A scene is held in memory whole.
"""

import argparse
import os
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm
from transformers.utils import logging

from ..data.codec import whole_numbers
from ..data.metadata import DatasetMetadata
from ..model.configuration_sgma import check_modalities
from ..publishing.push import add_push_arguments, push_as_asked
from ..rasters.alpha import check_alpha
from ..rasters.bands import ALL_BANDS, BandSelection, share_files
from ..rasters.files import Georeference, RasterInfo, read_info, read_on_extent, read_raster
from .folders.class_maps import ClassMap, count_values, describe_unmapped
from .folders.layout import SceneFiles, find_scenes
from .folders.modality_plan import ModalityPlan, NodataOption, plan_modality
from .folders.spatial_groups import choose_validation, group_scenes
from .folders.tiling import Tiling, cut
from .writing.card import command_for_card
from .writing.parquet import ParquetDatasetWriter, check_output


logger = logging.get_logger(__name__)


@dataclass
class ConversionOptions:
    """What `convert_rasters` does beside reading; the command line has a flag for each.

    Args:
        label: Folder or stem of the labels; None if there are none.
        folders: Folder or stem of a modality, where it is not its name.
        bands: Bands of a modality's files, where not all are meant or alpha has to be confirmed.
        absent: Number of bands of each modality that no scene has, whose column is null throughout.
        nodata: Per modality, values that stand for nothing.
        units: Per modality, the unit of its values, for the record.
        classes: The `--classes` file; None takes label ids as they are.
        ignore_unmapped: Whether label values without a class are ignored instead of refused.
        tile: Side of a tile in pixels of the label; None keeps scenes whole.
        stride: Pixels from tile to tile of training scenes, `tile` by default; see `Tiling`.
        val_fraction: Share of the training rows to set aside as `validation`; None sets none aside.
        group_distance: Scenes closer than so many metres stay on one side.
        group_regex: Scenes whose names give the same match stay on one side.
        seed: Decides what is set aside.
        split_names: Other names for split folders, `{"valid": "test"}`.
        overwrite: Whether to replace an earlier dataset.
    """

    label: str | None = "label"
    folders: Mapping[str, str] = field(default_factory=dict)
    bands: Mapping[str, BandSelection] = field(default_factory=dict)
    absent: Mapping[str, int] = field(default_factory=dict)
    nodata: Mapping[str, NodataOption] = field(default_factory=dict)
    units: Mapping[str, str] = field(default_factory=dict)
    classes: Path | None = None
    ignore_unmapped: bool = False
    tile: int | None = None
    stride: int | None = None
    val_fraction: float | None = None
    group_distance: float | None = None
    group_regex: str | None = None
    seed: int = 0
    split_names: Mapping[str, str] = field(default_factory=dict)
    overwrite: bool = False


@dataclass
class _Scene:
    """A scene with the headers of its files and its reference grid."""

    files: SceneFiles
    infos: dict[str, RasterInfo | None]
    label: RasterInfo | None
    grid: Georeference | None
    size: tuple[int, int]


def convert_rasters(
    source: str | os.PathLike,
    out: str | os.PathLike,
    modalities: Sequence[str],
    *,
    options: ConversionOptions | None = None,
    command: str = "",
) -> str:
    """Convert a folder of rasters into a dataset folder that `datasets.load_dataset(out)` reads.

    The reference grid of a scene is that of its label, or, without one, of its modality with most pixels.

    Args:
        source: Folder of the rasters.
        out: Folder to make.
        modalities: Names of the modalities, in the order of the columns.
        options: Everything else.
        command: The command line, for the card.

    Returns:
        A summary for the terminal.

    Raises:
        ValueError: If an option, a name or a file is not usable; nothing is left behind in `out`.
        OSError: If a folder cannot be read or written.
        ImportError: If the files take rasterio and it is not installed.
    """
    source, out, options = Path(source), Path(out), options or ConversionOptions()
    _check_options(source, out, modalities, options)
    folders = {name: options.folders.get(name, name) for name in modalities}
    found = find_scenes(source, folders, options.label, split_names=options.split_names, absent=options.absent.keys())
    chosen = share_files([(folders[name], options.bands.get(name, ALL_BANDS)) for name in modalities])
    bands = dict(zip(modalities, chosen, strict=True))
    scenes = [_read_headers(files, bands) for files in tqdm(found, desc="headers", unit="scene")]
    plans = [_plan(name, scenes, options) for name in modalities]
    class_map = _class_map(scenes, options)
    _set_validation_aside(scenes, options)
    metadata = DatasetMetadata(
        modalities=list(modalities),
        modality_channels=[plan.channels for plan in plans],
        modality_dtypes=[plan.dtype for plan in plans],
        nodata=[list(plan.nodata) for plan in plans],
        units=[options.units.get(name) for name in modalities],
        class_names=class_map.names if class_map else [],
        palette=class_map.palette if class_map else [],
    )
    writer = ParquetDatasetWriter(
        out,
        metadata,
        title=f"{source.absolute().name}: {', '.join(modalities)}",
        description=f"Converted from a folder of rasters, {len(scenes)} scenes. Mind their licence when you share it.",
        command=command,
        overwrite=options.overwrite,
    )
    empty = 0
    with writer:
        for scene in tqdm(scenes, desc="converting", unit="scene"):
            empty += _write_scene(writer, scene, plans, class_map, options)
    notes = [f"{empty} tiles without data in any modality were left out."] if empty else []
    return "\n".join([writer.summary(), *notes])


def _check_options(source: Path, out: Path, modalities: Sequence[str], options: ConversionOptions) -> None:
    """Refuse what can be refused before any file is read."""
    check_modalities(list(modalities), [options.absent.get(name, 1) for name in modalities])
    named = {
        "--absent": options.absent,
        "--nodata": options.nodata,
        "--units": options.units,
        "`bands`": options.bands,
    }
    for flag, entries in named.items():
        unknown = sorted(set(entries) - set(modalities))
        if unknown:
            raise ValueError(f"{flag} names {unknown}; the modalities are {list(modalities)}.")
    if (options.group_distance is not None or options.group_regex is not None) and options.val_fraction is None:
        raise ValueError("Groups are for setting validation scenes aside: give --val-fraction too.")
    if options.classes is not None and options.label is None:
        raise ValueError("--classes needs labels; leave out --label none.")
    Tiling(options.tile, options.stride)
    if options.overwrite and source.absolute().resolve().is_relative_to(out.absolute().resolve()):
        raise ValueError(f"--overwrite would remove the source: {source} is in --out {out}.")
    check_output(out, overwrite=options.overwrite)


def _read_headers(files: SceneFiles, bands: Mapping[str, BandSelection]) -> _Scene:
    infos: dict[str, RasterInfo | None] = {}
    for name, path in files.rasters.items():
        infos[name] = None if path is None else read_info(path, bands=bands[name])
        if path is not None:
            check_alpha(path, bands[name])
    label = None if files.label is None else read_info(files.label)
    present = [info for info in infos.values() if info is not None]
    reference = label or max(present, key=lambda info: info.size[0] * info.size[1])
    return _Scene(files, infos, label, reference.georeference, reference.size)


def _plan(name: str, scenes: Sequence[_Scene], options: ConversionOptions) -> ModalityPlan:
    option = options.nodata.get(name, NodataOption())
    if name in options.absent:  # float32 holds whatever may be added later
        return ModalityPlan(name, options.absent[name], "float32", option.values, fill=None, option=option)
    files = [(scene.infos[name], scene.grid, scene.size) for scene in scenes if scene.infos[name] is not None]
    return plan_modality(name, files, option)


def _class_map(scenes: Sequence[_Scene], options: ConversionOptions) -> ClassMap | None:
    """Read every label once to learn what values there are: K must be known, and errors listed, before writing."""
    labelled = [scene.label for scene in scenes if scene.label is not None]
    if not labelled:
        return None
    class_map = None
    if options.classes is not None:
        class_map = ClassMap.load(options.classes, ignore_unmapped=options.ignore_unmapped)
    by_colour = class_map is not None and class_map.by_colour
    nodata = {int(info.nodata) for info in labelled if info.nodata is not None}
    found: Counter = Counter()
    first: Path | None = None
    for info in tqdm(labelled, desc="labels", unit="scene"):
        values, valid = _read_label(info, by_colour=by_colour)
        counts = count_values(values, valid, by_colour=by_colour, path=info.path)
        if class_map is not None and first is None and class_map.unmapped(counts, nodata=nodata):
            first = info.path
        found.update(counts)
    if class_map is None:
        return ClassMap.identity(found, nodata=nodata)
    unmapped = class_map.unmapped(found, nodata=nodata)
    if unmapped and not class_map.ignore_unmapped:
        raise ValueError(describe_unmapped(unmapped, first))
    return class_map


def _read_label(info: RasterInfo, *, by_colour: bool) -> tuple[np.ndarray, np.ndarray]:
    """Values, integer (H, W, C), and where the file's mask leaves them standing."""
    # Declared nodata is judged by the class map, which may have a class for it.
    raster = read_raster(info.path, use_declared_nodata=False, palette_as_indices=not by_colour)
    return whole_numbers(raster.values, info.path), raster.valid


def _set_validation_aside(scenes: Sequence[_Scene], options: ConversionOptions) -> None:
    """Move whole groups of training scenes to the split `validation`."""
    if options.val_fraction is None:
        return
    if any(scene.files.split == "validation" for scene in scenes):
        raise ValueError(
            "The source has a validation split already, so --val-fraction is ambiguous. Leave it out, or call that "
            "split something else: --split-as valid=test."
        )
    training = [scene for scene in scenes if scene.files.split == "train"]
    groups = group_scenes(
        [scene.files.name for scene in training],
        [(scene.grid, scene.size) for scene in training],
        distance=options.group_distance,
        regex=options.group_regex,
    )
    tiling = Tiling(options.tile, options.stride)
    sizes = [len(tiling.windows(scene.size, scene.files.split)) for scene in training]
    chosen = choose_validation(groups, sizes, options.val_fraction, options.seed)
    for scene, is_validation in zip(training, chosen, strict=True):
        if is_validation:
            scene.files.split = "validation"


def _write_scene(
    writer: ParquetDatasetWriter,
    scene: _Scene,
    plans: Sequence[ModalityPlan],
    class_map: ClassMap | None,
    options: ConversionOptions,
) -> int:
    """Write the rows of a scene; returns how many tiles were left out because no modality has data there."""
    rasters = {}
    for plan in plans:
        info = scene.infos[plan.name]
        if info is not None:
            option = plan.option
            rasters[plan.name] = read_on_extent(
                info, scene.grid, scene.size, nodata=option.values, use_declared_nodata=option.use_declared
            )
    label = None
    if scene.label is not None and class_map is not None:
        label = class_map.apply(*_read_label(scene.label, by_colour=class_map.by_colour))
    empty, split, tiling = 0, scene.files.split, Tiling(options.tile, options.stride)
    for window in tiling.windows(scene.size, split):
        top, left, height, width = window
        images = {
            plan.name: plan.store(cut(rasters[plan.name], scene.size, window), scene.files.rasters[plan.name])
            if plan.name in rasters
            else None
            for plan in plans
        }
        if all(array is None for array in images.values()):
            empty += 1
            continue
        row_id = scene.files.name if options.tile is None else f"{scene.files.name}_y{top:05d}_x{left:05d}"
        tile_label = None
        if label is not None:
            tile_label = tiling.label(label[top : top + height, left : left + width], window, split)
        writer.write(split, row_id, images, tile_label)
    return empty


def _pairs(entries: Sequence[str], flag: str) -> dict[str, str]:
    """`NAME=VALUE` arguments as a dict."""
    pairs = dict(entry.partition("=")[::2] for entry in entries)
    if any(not value for value in pairs.values()) or len(pairs) != len(entries):
        raise ValueError(f"{flag} {' '.join(entries)}: expected NAME=VALUE, each name once.")
    return pairs


def _modalities(entries: Sequence[str]) -> dict[str, tuple[str, BandSelection]]:
    """Folder and bands by name, of `rgb`, `nir=rgbn:4`, `rgb:1,2,3,alpha`."""
    modalities = {}
    for entry in entries:
        text, bands = BandSelection.parse(entry)
        name, _, folder = text.partition("=")
        if name in modalities:
            raise ValueError(f"--modalities {' '.join(entries)} repeats {name!r}; give each name once.")
        modalities[name] = (folder or name, bands)
    return modalities


def _nodata_options(entries: Sequence[str]) -> dict[str, NodataOption]:
    """`nir=0`, `dsm=-9999,-32768`, `rgb=none` (whatever the files declare)."""
    options = {}
    for name, text in _pairs(entries, "--nodata").items():
        if text == "none":
            options[name] = NodataOption(use_declared=False)
            continue
        try:
            values = tuple(float(part) for part in text.split(","))
        except ValueError as error:
            raise ValueError(f"--nodata {name}={text}: expected numbers, separated by commas, or `none`.") from error
        options[name] = NodataOption(tuple(value for value in values if np.isfinite(value)))  # NaN always counts
    return options


def _absent(entries: Sequence[str]) -> dict[str, int]:
    """Bands by name, of `dsm=1`."""
    try:
        return {name: int(count) for name, count in _pairs(entries, "--absent").items()}
    except ValueError as error:
        raise ValueError(f"--absent {' '.join(entries)}: expected NAME=BANDS, a whole number, as in dsm=1.") from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="rasters",
        description="Turn a folder of rasters into a dataset: a folder per modality (nir/x.png, label/x.png, or "
        "nir/x_nir.png, label/x_label.png) or per scene (x/nir.tif, x/label.tif), with or without split folders "
        "(train, valid, ...). Absent files become null.",
    )
    add = parser.add_argument
    add("--source", type=Path, required=True, help="folder of the rasters")
    add("--out", type=Path, required=True, help="folder to make; load_dataset(folder) reads it")
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
        nargs="+",
        default=[],
        action="extend",
        metavar="NAME=BANDS",
        help="modality that no scene has, null in every row, and how many bands a model takes of it: dsm=1",
    )
    add("--label", default="label", help="folder or file stem of the labels, or none (default: label)")
    add("--nodata", nargs="+", default=[], action="extend", metavar="NAME=VALUE", help="value of no data: nir=0")
    add("--units", nargs="+", default=[], action="extend", metavar="NAME=UNIT", help="for the record: dsm=m sar=dB")
    add("--classes", type=Path, help='json: ["soil", "crop"] or [{"name": "crop", "value": 7 or "color": [r, g, b]}]')
    add("--ignore-unmapped", action="store_true", help="ignore label values that --classes does not have")
    add("--tile", type=int, help="cut scenes into tiles of so many label pixels")
    add("--stride", type=int, help="pixels from tile to tile of training scenes (default: --tile)")
    add("--val-fraction", type=float, help="share of the training rows to set aside as validation, by whole scenes")
    add("--group-distance", type=float, metavar="METRES", help="scenes closer than this stay on one side")
    add("--group-regex", help="scenes whose names give the same match (its first group) stay on one side")
    add("--seed", type=int, default=0, help="decides which scenes are set aside (default: 0)")
    add("--split-as", nargs="+", default=[], action="extend", metavar="FOLDER=SPLIT", help="e.g. valid=test")
    add("--overwrite", action="store_true", help="replace an earlier dataset in --out")
    add_push_arguments(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Command line of the raster converter; see the module's docstring.

    Args:
        argv: Arguments without the program's name; None takes those of the process.

    Returns:
        0, or 1 after one line that says what was wrong.
    """
    argv = sys.argv[1:] if argv is None else argv
    arguments = _parser().parse_args(argv)
    try:
        modalities = _modalities(arguments.modalities)
        options = ConversionOptions(
            label=None if arguments.label == "none" else arguments.label,
            folders={name: folder for name, (folder, _) in modalities.items()},
            bands={name: bands for name, (_, bands) in modalities.items()},
            absent=_absent(arguments.absent),
            nodata=_nodata_options(arguments.nodata),
            units=_pairs(arguments.units, "--units"),
            classes=arguments.classes,
            ignore_unmapped=arguments.ignore_unmapped,
            tile=arguments.tile,
            stride=arguments.stride,
            val_fraction=arguments.val_fraction,
            group_distance=arguments.group_distance,
            group_regex=arguments.group_regex,
            seed=arguments.seed,
            split_names=_pairs(arguments.split_as, "--split-as"),
            overwrite=arguments.overwrite,
        )
        summary = convert_rasters(
            arguments.source,
            arguments.out,
            list(modalities),
            options=options,
            command=command_for_card("dataset_scripts/rasters.py", argv, ("--source", "--out", "--classes")),
        )
    except (ValueError, OSError, ImportError) as error:
        sys.stderr.write(f"rasters: {error}\n")
        return 1
    sys.stdout.write(f"{summary}\n")
    return push_as_asked(arguments, "rasters")
