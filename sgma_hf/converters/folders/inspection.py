"""Looks at a folder of rasters before a conversion: what it holds, what does not pair, and the command that fits."""

import os
import re
import shlex
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from ...data.class_maps import ClassMap, classes_flag
from ...data.windows import Window, blocks
from ...model.limits_sgma import RESERVED_MODALITY_NAMES
from ...model.normalization_sgma import HEIGHT_NODATA, default_normalization
from ...publishing.tables import markdown_table
from ...rasters.alpha import DoubtfulAlpha, check_alpha
from ...rasters.bands import ALL_BANDS, BandGaps, BandSelection
from ...rasters.dates import date_of
from ...rasters.extents import check_extent
from ...rasters.files import read_info, read_raster, uses_pillow
from ...rasters.grids import Grid, ground_sampling
from ...rasters.listings.folders import SceneFiles, find_names, modality_entry, survey_scenes
from ...rasters.polygons import is_vector_file
from ...rasters.raster import RasterInfo, parse_crs
from .labels import LabelSurvey, UnclearLabels, count_label, first_few, take_ids
from .layers import LayerSurvey, survey_layer
from .modality_plan import NodataOption, plan_modality
from .scenes import Observation, Scene, describe_dates, make_scene, placed_files, series_of, shared_layer
from .spatial_groups import group_scenes


# What writers put where there is nothing, and do not always declare.
_UNDECLARED = (0, *map(int, HEIGHT_NODATA), -32767, -99999, -999, 32767, 65535)
_MANY = 0.001  # share of the pixels from which on 0, or the largest number, looks like a gap
_LARGE_SIDE, _TILE, _DATED_TILE = 1024, 512, 128  # pixels: scenes of which side are to be cut, into what
_VALUES_AT_ONCE = 2**23
_PIXELS_PER_FILE = 2**25  # more are sampled by windows spread evenly, as are the files beyond
_PIXELS_PER_MODALITY = 2**29
_LISTED, _MOST_PROBLEMS = 5, 20


@dataclass
class Column:
    """The files of a modality, or those of the labels."""

    name: str
    folder: str  # or the stem of its files
    entry: str  # of `--modalities`
    files: int
    sizes: dict[str, int]  # files by "width x height", as the next ones
    pixels: dict[str, int]  # ground sampling
    crs: dict[str, int]
    bands: dict[str, int]  # "3 x uint8"
    nodata: dict[str, int]  # as declared
    dates: str = ""  # of a series: how many, and from when to when
    stored: str = ""  # type and nodata in the data set
    gap_share: float | None = None  # of the pixels, by what the files declare
    minimum: list[float] = field(default_factory=list)  # by band, without `undeclared`
    maximum: list[float] = field(default_factory=list)
    is_sampled: bool = False  # whether not all pixels were read
    undeclared: dict[int, float] = field(default_factory=dict)  # share of the pixels of values that look like nodata


@dataclass
class FolderReport:
    """What `inspect_folder` found."""

    source: str
    splits: dict[str, int]  # scenes by split
    modalities: list[Column]
    label: Column | None
    label_values: list[dict[str, Any]]
    label_table: str
    polygons: dict[str, dict[str, int]]  # of the layer that labels all scenes: by attribute, features by value
    pairing: list[str]  # what scenes lack, a sentence each
    problems: list[str]  # files that cannot be used, and what a conversion refuses
    remarks: list[str]  # what looks like a mistake
    command: str

    def as_dict(self) -> dict[str, Any]:
        """Everything but the text of the table, as JSON has it."""
        return {name: value for name, value in asdict(self).items() if name != "label_table"}

    def text(self) -> str:
        """The report for a terminal."""
        splits = ", ".join(f"{split} {count}" for split, count in self.splits.items())
        columns = [*self.modalities, *([self.label] if self.label else [])]
        parts = [f"{self.source}: {sum(self.splits.values())} scenes ({splits})", _table(columns)]
        parts.append("\n".join(f"{column.name}: {column.dates}" for column in columns if column.dates))
        parts += ["\n".join(self.pairing), self.label_table, "\n".join(self.remarks)]
        if self.problems:
            parts.append("\n- ".join(["Not usable as it is:", *first_few(self.problems, _MOST_PROBLEMS)]))
        return "\n\n".join(part for part in [*parts, self.command] if part)


def inspect_folder(source: Path, *, label: str | None = None, attribute: str | None = None) -> FolderReport:
    """Look at a folder as `convert_rasters` would read it, and go on past files that cannot be read.

    Headers and labels are read whole, values of large modalities by windows spread evenly. `label` is the folder or
    stem of the labels, or a file of polygons whose `attribute` says the class; None takes a usual name, or the one
    file of polygons that there is. Raises ValueError or OSError if the folder holds no rasters in a layout that is
    understood.
    """
    layer = shared_layer(source, label)
    names, label = find_names(source, None if layer else label)
    if layer is None and label is None:
        found = [path for path in source.rglob("*") if is_vector_file(path)]
        layer = str(found[0]) if len(found) == 1 else None
    polygons = None if layer is None else survey_layer(layer, attribute)
    label = None if layer else label
    notes = _Notes()
    files, notes.problems = survey_scenes(source, {name: name for name in names}, label)
    headers = {name: _read_headers(name, files, notes) for name in names}
    series = series_of(files, names)
    folders = _modality_names({name: _all(seen) for name, seen in headers.items() if seen})
    seen = {name: headers[folder] for name, folder in folders.items()}
    labelled = [(index, scene.label) for index, scene in enumerate(files) if scene.label is not None]
    labels = notes.read_infos("label", labelled, palette_as_indices=True)
    scenes = _make_scenes(files, seen, labels, notes)
    columns, usable = [], []
    for name, folder in folders.items():
        column = _describe(name, folder, _all(seen[name]))
        columns.append(column)
        if folder in series:
            column.dates = describe_dates(scene.observations[name] for scene in scenes)
        plan = notes.attempt(plan_modality, name, placed_files(name, scenes), NodataOption())
        if plan is None:
            continue
        column.stored = ", ".join([plan.dtype, *(f"nodata {value:g}" for value in plan.nodata)])
        _measure(column, _all(seen[name]), notes)
        if not labels or not seen[name].keys().isdisjoint(labels):
            usable.append(column)
    survey = _survey(list(labels.values()), notes)
    notes.remarks += [] if labels else _remarks_on_polygons(source, polygons)
    if not usable:
        notes.remarks.append("No modality can be converted, so there is no command.")
    elif len(usable) < len(columns):
        left = ", ".join(column.name for column in columns if column not in usable)
        notes.remarks.append(f"The command below leaves out what cannot be converted: {left}.")
    return FolderReport(
        source=str(source),
        splits=dict(Counter(scene.files.split for scene in scenes)),
        modalities=columns,
        label=_describe("label", label, list(labels.values())) if labels else None,
        label_values=[] if survey is None else survey.rows(),
        label_table=polygons.table() if polygons else survey.table() if survey else "",
        polygons={} if polygons is None else _as_json(polygons.content.values),
        pairing=_pairing(scenes, lambda scene: _is_labelled(scene, polygons, notes)),
        problems=notes.problems,
        remarks=notes.remarks,
        command=_command(source, usable, polygons or label, survey, scenes, notes) if usable else "",
    )


class _Notes:
    """What is to be said beside the figures: `FolderReport.problems` and `remarks`."""

    def __init__(self) -> None:
        self.problems: list[str] = []
        self.remarks: list[str] = []

    def attempt(self, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """What a function returns, or None and a problem more where it refuses."""
        try:
            return function(*args, **options)
        except (ValueError, OSError) as error:
            self.problems += [str(error)] * (str(error) not in self.problems)
            return None

    def read_infos(self, name: str, paths: Sequence[tuple[int, Path]], **options: Any) -> dict[int, RasterInfo]:
        """The headers of files that can be read, by the number of the scene."""
        watched = tqdm(paths, desc=f"{name}: headers", unit="file", leave=False, disable=not paths)
        infos = {index: self.attempt(read_info, path, **options) for index, path in watched}
        return {index: info for index, info in infos.items() if info is not None}


def _read_headers(name: str, scenes: Sequence[SceneFiles], notes: _Notes) -> dict[int, list[Observation]]:
    """A modality's files by scene, with all bands as values where alpha is in doubt, and with dates of a series."""
    paths = [(index, path) for index, scene in enumerate(scenes) for path in scene.files_of(name)]
    infos = notes.read_infos(name, list(enumerate(path for _, path in paths)))
    for number, info in list(infos.items()):
        try:
            check_alpha(info.path)
        except DoubtfulAlpha as error:
            bands = BandSelection(tuple(range(1, info.channels + 2)))
            notes.remarks.append(f"{error} The command below takes it as values.")
            infos = notes.read_infos(name, list(enumerate(path for _, path in paths)), bands=bands)
            break
        except ValueError as error:
            notes.problems.append(str(error))
            del infos[number]
    found: dict[int, list[Observation]] = defaultdict(list)
    is_series = bool(series_of(scenes, [name]))
    for number, info in infos.items():
        dated = notes.attempt(date_of, info.path) if is_series else None
        if dated is not None or not is_series:
            found[paths[number][0]].append(Observation(info, dated=dated))
    return dict(found)


def _all(seen: Mapping[int, Sequence[Observation]]) -> list[RasterInfo]:
    """The headers of a modality's files of all scenes."""
    return [one.info for several in seen.values() for one in several]


def _make_scenes(
    files: Sequence[SceneFiles],
    seen: Mapping[str, Mapping[int, Sequence[Observation]]],
    labels: Mapping[int, RasterInfo],
    notes: _Notes,
) -> list[Scene]:
    """The scenes of which a file can be read; what does not lie on a scene's reference grid is a problem."""
    scenes = []
    for index, scene_files in enumerate(files):
        found = {name: by_scene.get(index, []) for name, by_scene in seen.items()}
        if index in labels or any(found.values()):
            scene = make_scene(scene_files, found, labels.get(index))
            for one in (one for several in found.values() for one in several):
                notes.attempt(check_extent, one.info, scene.grid, scene.size)
            scenes.append(scene)
    return scenes


def _modality_names(found: Mapping[str, Sequence[RasterInfo]]) -> dict[str, str]:
    """Folder by the name that a modality may have."""
    folders: dict[str, str] = {}
    for folder, infos in found.items():
        name = re.sub("[^a-z0-9]+", "_", folder.lower()).strip("_")
        if name in RESERVED_MODALITY_NAMES and infos[0].channels == 3:
            name = "rgb"
        if not re.match("[a-z]", name) or name in RESERVED_MODALITY_NAMES:
            name = f"m_{name}".rstrip("_")
        while name in folders:
            name += "_2"
        folders[name] = folder
    return folders


def _describe(name: str, folder: str, infos: Sequence[RasterInfo]) -> Column:
    """What the headers of some files say."""
    places = list(map(_place, infos))
    entry = modality_entry(name, folder)
    return Column(
        name,
        folder,
        entry if infos[0].bands is ALL_BANDS else f"{entry}:{infos[0].bands}",
        len(infos),
        sizes=dict(Counter(f"{info.size[1]} x {info.size[0]}" for info in infos)),
        pixels=dict(Counter(pixel for pixel, _ in places)),
        crs=dict(Counter(crs for _, crs in places)),
        bands=dict(Counter(f"{info.channels} x {info.dtype}" for info in infos)),
        nodata=dict(Counter(map(_declared, infos))),
    )


def _declared(info: RasterInfo) -> str:
    numbers = sorted({f"{number:g}" for number in info.nodata if number is not None})
    return ", ".join([*numbers, *(["mask"] if info.has_mask else [])]) or "-"


def _place(info: RasterInfo) -> tuple[str, str]:
    """Ground sampling and CRS for a person."""
    place = info.georeference
    if place is None:
        return "-", "no place"
    name = "no CRS"
    if place.crs is not None:
        code = parse_crs(place.crs).to_epsg()
        name = place.crs.split('"')[1] if code is None else f"EPSG:{code}"
    metres = ground_sampling(info)
    if metres is None:
        return "unknown", name
    height, width = metres
    sides = f"{width:.4g}" if abs(width - height) < 1e-3 * width else f"{width:.4g} x {height:.4g}"
    return f"{sides} m", name


def _measure(column: Column, infos: Sequence[RasterInfo], notes: _Notes) -> None:
    """Fill in what the values of a modality's files say."""
    num_pixels = sum(info.size[0] * info.size[1] for info in infos)
    step = -(-num_pixels // _PIXELS_PER_MODALITY)
    low, high = np.full(infos[0].channels, np.inf), np.full(infos[0].channels, -np.inf)
    seen, missing, suspects, gaps = 0, 0, Counter(), BandGaps()
    for info in tqdm(infos[::step], desc=f"{column.name}: values", unit="file", leave=False):
        for window in _windows(info):
            raster = notes.attempt(read_raster, info.path, bands=info.bands, window=window, gaps=gaps)
            if raster is None:
                break
            values = raster.values[raster.valid]  # (N, C)
            seen, missing = seen + raster.valid.size, missing + raster.valid.size - len(values)
            found = _suspects(values)
            suspects.update(found)
            values = values[~np.isin(values, [value for value in found if value]).any(axis=1)]
            if len(values):
                low, high = np.minimum(low, values.min(axis=0)), np.maximum(high, values.max(axis=0))
    column.is_sampled = seen < num_pixels
    if seen:
        column.gap_share = missing / seen
        shares = {value: count / seen for value, count in suspects.items()}
        column.undeclared = {value: share for value, share in shares.items() if _is_gap(column, value, share)}
    if np.isfinite(low).all():
        column.minimum, column.maximum = low.tolist(), high.tolist()
    advice = f"`--modalities {modality_entry(column.name, column.folder)}:{{bands}}` leaves it out"
    notes.remarks += filter(None, [gaps.note(column.name, infos[0].bands, advice), *_remarks_on(column)])


def _suspects(values: np.ndarray) -> dict[int, int]:
    """Pixels (of an array (N, C)) by value that may mean nothing: 0 in all bands, another one in any."""
    if not values.size:
        return {}
    ends = {float(values.min()), float(values.max())}
    hits = {value: values == value for value in _UNDECLARED if value in ends}
    return {value: int((hit.any(axis=1) if value else hit.all(axis=1)).sum()) for value, hit in hits.items()}


def _windows(info: RasterInfo) -> list[Window]:
    """Windows of a file to look at, spread evenly, first and last among them."""
    if uses_pillow(info.path):  # read whole in any case
        return [Window(0, 0, *info.size)]
    side = max(16, int((_VALUES_AT_ONCE / info.channels) ** 0.5))
    windows = list(blocks(info.size, side, side))
    count = min(len(windows), max(2, _PIXELS_PER_FILE // side**2))
    return [windows[index] for index in np.linspace(0, len(windows) - 1, count).round().astype(int)]


def _remarks_on(column: Column) -> list[str]:
    said = [
        f"{column.name}: {share:.2%} of the pixels are {value} in {'a' if value else 'every'} band, which no file "
        "declares; the command below takes them as gaps. Leave its --nodata out if they are measurements."
        for value, share in column.undeclared.items()
    ]
    if len(column.bands) > 1:
        said.append(f"{column.name}: files of different bands or types: {_counted(column.bands)}.")
    return said


def _is_gap(column: Column, value: int, share: float) -> bool:
    """Whether a value that no file declares looks like nodata; few large ones are merely bright.

    0 does in pictures of whole numbers, not in heights.
    """
    if value < 0 or share < _MANY:
        return value < 0
    is_height = default_normalization(column.name).nodata == HEIGHT_NODATA
    return value > 0 or not (is_height or any("float" in kind for kind in column.bands))


def _survey(infos: Sequence[RasterInfo], notes: _Notes) -> LabelSurvey | None:
    """What becomes of the labels; None if there are none that can be used."""
    by_colour = bool(infos) and all(info.channels == 3 for info in infos)
    watched = tqdm(infos, desc="labels", unit="file", leave=False, disable=not infos)
    files = [file for info in watched if (file := notes.attempt(count_label, info, by_colour=by_colour)) is not None]
    if not files:
        return None
    try:
        survey = take_ids(files, by_colour=by_colour)
    except UnclearLabels as error:
        if error.classes == "FILE":
            notes.problems.append(str(error))
            return None
        survey = LabelSurvey(files, ClassMap.load(error.classes), str(error), error.classes)
    notes.remarks.append(survey.note)
    return survey


def _remarks_on_polygons(source: Path, polygons: LayerSurvey | None) -> list[str]:
    """What is taken of a layer, or what files there are that may be labels, but are no rasters."""
    if polygons is not None:
        return [polygons.remark()]
    found = sorted(path for path in source.rglob("*") if is_vector_file(path))
    return [f"{path} may hold labels, as polygons: `--label` names such a file." for path in found[:1]]


def _is_labelled(scene: Scene, polygons: LayerSurvey | None, notes: _Notes) -> bool:
    """Whether a scene has a label of its own, or that of a layer for all."""
    if polygons is None:
        return scene.label is not None
    return bool(notes.attempt(polygons.content.reaches, Grid(scene.size, scene.grid)))


def _as_json(values: Mapping[str, Counter]) -> dict[str, dict[str, int]]:
    return {name: {str(value): count for value, count in counts.items()} for name, counts in values.items()}


def _pairing(scenes: Sequence[Scene], is_labelled: Callable[[Scene], bool]) -> list[str]:
    """Which scenes lack what."""
    lacking: dict[str, list[str]] = defaultdict(list)
    for scene in scenes:
        for name, several in scene.observations.items():
            lacking[f"without {name}"] += [scene.files.name] * (not several)
        lacking["without a label"] += [scene.files.name] * (not is_labelled(scene))
        lacking["labels that no modality goes with"] += [scene.files.name] * (not any(scene.observations.values()))
    return [
        f"{what}: {len(names)} of {len(scenes)} scenes ({', '.join(first_few(names, _LISTED))})"
        for what, names in lacking.items()
        if names
    ]


def _command(
    source: Path,
    columns: Sequence[Column],
    label: LayerSurvey | str | None,
    survey: LabelSurvey | None,
    scenes: Sequence[Scene],
    notes: _Notes,
) -> str:
    """The `convert-rasters` that fits, for a shell."""
    output = f"data/{Path(os.path.abspath(source)).name}"  # of `scenes/..` too
    words = ["sgma-hf", "convert-rasters", "--source", str(source), "--output", output, "--modalities"]
    words += [column.entry for column in columns]
    classes = [classes_flag(survey.suggested)] if survey and survey.suggested else []
    if isinstance(label, LayerSurvey):
        flags, classes = label.flags()
        words += flags
    elif label != "label":
        words += ["--label", label or "none"]
    gaps = [f"{column.name}={','.join(map(str, column.undeclared))}" for column in columns if column.undeclared]
    words += ["--nodata", *gaps] if gaps else []
    if max(max(scene.size) for scene in scenes) > _LARGE_SIDE:
        words += ["--tile_size", str(_DATED_TILE if any(column.dates for column in columns) else _TILE)]
    words += _validation_flags(scenes, notes)
    return " ".join([shlex.join(words), *classes])


def _validation_flags(scenes: Sequence[Scene], notes: _Notes) -> list[str]:
    """How to set scenes aside, where nobody has; those that touch stay together."""
    training = [scene for scene in scenes if scene.files.split == "train"]
    if len(training) < 2 or any(scene.files.split == "validation" for scene in scenes):
        return []
    names, places = [scene.files.name for scene in training], [(scene.grid, scene.size) for scene in training]
    try:
        groups = group_scenes(names, places, distance=1)
    except ValueError:  # without a place on Earth there is no telling
        return ["--val_fraction", "0.2"]
    if len(set(groups)) == 1:
        notes.remarks.append("All scenes touch each other, so the command below sets none aside for validation.")
        return []
    return ["--val_fraction", "0.2", *(["--group_distance", "1"] if len(set(groups)) < len(training) else [])]


def _table(columns: Sequence[Column]) -> str:
    header = ["modality", "files", "width x height", "ground sampling", "CRS", "bands", "nodata", "gaps", "range"]
    header.append("stored as")
    lines = []
    for column in columns:
        counters = (column.sizes, column.pixels, column.crs, column.bands, column.nodata)
        about = "about " if column.is_sampled else ""
        gaps = "-" if column.gap_share is None else f"{about}{column.gap_share:.2%}"
        span = f"{about}{min(column.minimum):g} to {max(column.maximum):g}" if column.minimum else "-"
        lines.append([column.name, column.files, *map(_counted, counters), gaps, span, column.stored or "-"])
    return markdown_table(header, lines, text_columns=len(header))


def _counted(files: Mapping[str, int]) -> str:
    """The commonest entries, with their files where there are several."""
    if len(files) == 1:
        return next(iter(files))
    return ", ".join(first_few([f"{text} ({count})" for text, count in Counter(files).most_common()], 3))
