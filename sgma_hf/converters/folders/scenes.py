"""Scenes of a folder by the headers of their files, with what hides pixels, and with polygons burnt into labels."""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tqdm.auto import tqdm

from ...data.class_maps import ClassMap
from ...rasters.alpha import check_alpha
from ...rasters.bands import BandSelection
from ...rasters.dates import Dated, DateTable, date_of, match_dates
from ...rasters.files import read_info
from ...rasters.grids import Grid
from ...rasters.listings.folders import MASK_OF, SceneFiles
from ...rasters.polygons import NothingLabelled, PolygonLabels, is_vector_file, split_layer
from ...rasters.raster import Georeference, RasterInfo
from ...rasters.sources import PixelMask


@dataclass(frozen=True)
class Observation:
    """A file of a modality by its header, what hides pixels of it, and when it was taken if it is one of a series."""

    info: RasterInfo
    mask: PixelMask | None = None
    dated: Dated | None = None


@dataclass
class Scene:
    """A scene with the headers of its files and its reference grid."""

    files: SceneFiles
    observations: dict[str, list[Observation]]  # by modality: those of a series in their order, one, or none
    label: RasterInfo | None
    grid: Georeference | None
    size: tuple[int, int]


def mask_key(modality: str) -> str:
    """What a modality's mask is called where masks are listed among the modalities."""
    return MASK_OF + modality


def series_of(scenes: Sequence[SceneFiles], modalities: Iterable[str]) -> list[str]:
    """The modalities of which some scene has dates."""
    return [name for name in modalities if any(name in files.series for files in scenes)]


def read_headers(
    files: SceneFiles,
    bands: Mapping[str, BandSelection],
    masks: Mapping[str, tuple[str, tuple[float, ...]]],
    series: Collection[str] = (),
    table: DateTable | None = None,
) -> Scene:
    """The headers of a scene's files; `masks` are folder and values by modality, listed as rasters by `mask_key`.

    The files of modalities in `series` are sorted by their dates, and each is hidden by the mask of its own.
    """
    observations = {name: [_observe(path, bands[name]) for path in files.files_of(name)] for name in bands}
    for name in series:
        dated = [replace(seen, dated=date_of(seen.info.path, table)) for seen in observations[name]]
        observations[name] = sorted(dated, key=lambda seen: seen.dated.time)
    for name, (folder, values) in masks.items():
        times = [seen.dated and seen.dated.time for seen in observations[name]]
        matched = match_dates(times, files.files_of(mask_key(name)), table)
        files.rasters.pop(mask_key(name))
        chosen = BandSelection.parse(folder)[1]
        for index, (seen, paths) in enumerate(zip(observations[name], matched, strict=True)):
            if paths:
                mask, info = PixelMask([(path, chosen) for path in paths], values), replace(seen.info, has_mask=True)
                observations[name][index] = replace(seen, mask=mask, info=info)
    if files.label is None or is_vector_file(files.label):
        if not any(observations.values()):
            raise ValueError(
                f"{files.label} labels a scene that has no raster of any modality. Remove it, or add one."
            )
        return make_scene(files, observations, None)
    return make_scene(files, observations, read_info(files.label, palette_as_indices=True))


def _observe(path: Path, bands: BandSelection) -> Observation:
    info = read_info(path, bands=bands)
    check_alpha(path, bands)
    return Observation(info)


def make_scene(
    files: SceneFiles, observations: Mapping[str, Sequence[Observation]], label: RasterInfo | None
) -> Scene:
    """Put a scene together from the headers of its files, at least one, and choose its reference grid."""
    infos = [seen.info for several in observations.values() for seen in several]
    reference = label or max(infos, key=lambda info: info.size[0] * info.size[1])
    own = {name: list(several) for name, several in observations.items()}
    return Scene(files, own, label, reference.georeference, reference.size)


def placed_files(name: str, scenes: Sequence[Scene]) -> list[tuple[RasterInfo, Georeference | None, tuple[int, int]]]:
    """Headers of a modality's files with the place and size of their scenes' grids, as `plan_modality` takes them."""
    return [(seen.info, scene.grid, scene.size) for scene in scenes for seen in scene.observations[name]]


def describe_dates(scenes: Iterable[Sequence[Observation]]) -> str:
    """How many dates some scenes have of a modality, from when to when, and what says so."""
    scenes = [several for several in scenes if several]
    counts, dated = sorted(map(len, scenes)), [seen.dated for several in scenes for seen in several]
    many = f"{counts[0]}" if counts[0] == counts[-1] else f"{counts[0]} to {counts[-1]}"
    first, last = (pick(dated).time.date() for pick in (min, max))
    says = ", ".join(f"{source} ({count})" for source, count in Counter(one.source for one in dated).most_common())
    return f"{many} dates a scene, {first} to {last}, by {says}"


def shared_layer(source: Path, label: str | None) -> str | None:
    """The file of polygons, or layer of one, that labels all scenes; None if each has its own labels."""
    if label is None or not is_vector_file(label):
        return None
    return label if split_layer(label)[0].exists() else str(source / label)


def burn_labels(
    scenes: Sequence[Scene],
    shared: str | None,
    polygons: PolygonLabels,
    classes: ClassMap | None,
    folder: Path,
    *,
    ignore_unmapped: bool = False,
) -> None:
    """Burn labels that are polygons into rasters in `folder`, each on the grid of its scene's finest raster.

    `shared` is the layer of all scenes, if there is one; a scene that it does not reach has no label. Raises
    ValueError if no scene is reached, or a label cannot be used.
    """
    missed, burnt = None, 0
    for index, scene in enumerate(tqdm(scenes, desc="polygons", unit="scene", leave=False)):
        layer = shared or scene.files.label
        if scene.label is not None or layer is None:
            if scene.label is not None and classes is not None and classes.texts:
                raise ValueError(
                    f"{layer} is a raster, but --classes has texts for values, which polygons alone hold."
                )
            continue
        path, labels = folder / f"{index}.tif", replace(polygons, source=layer)
        try:
            labels.burn(Grid(scene.size, scene.grid), path, classes, ignore_unmapped=ignore_unmapped)
        except NothingLabelled as error:
            missed = error
            if shared is None:
                raise
        else:
            scene.label, burnt = read_info(path), burnt + 1
    if missed is not None and not burnt:
        raise missed
    if missed is None and not burnt and polygons != PolygonLabels():
        raise ValueError("No label is a file of polygons, so leave out the flags that are about them, --label_...")
