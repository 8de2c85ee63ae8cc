"""Scenes of a folder by the headers of their files, with what hides pixels, and with polygons burnt into labels."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from tqdm.auto import tqdm

from ...data.class_maps import ClassMap
from ...rasters.alpha import check_alpha
from ...rasters.bands import BandSelection
from ...rasters.files import read_info
from ...rasters.grids import Grid
from ...rasters.listings.folders import SceneFiles
from ...rasters.polygons import NothingLabelled, PolygonLabels, is_vector_file, split_layer
from ...rasters.raster import Georeference, RasterInfo
from ...rasters.sources import PixelMask


@dataclass
class Scene:
    """A scene with the headers of its files and its reference grid."""

    files: SceneFiles
    infos: dict[str, RasterInfo | None]
    label: RasterInfo | None
    grid: Georeference | None
    size: tuple[int, int]
    masks: dict[str, PixelMask] = field(default_factory=dict)  # by modality, what hides pixels of it


def mask_key(modality: str) -> str:
    """What a modality's mask is called where masks are listed among the modalities."""
    return f"mask of {modality}"


def read_headers(
    files: SceneFiles, bands: Mapping[str, BandSelection], masks: Mapping[str, tuple[str, tuple[float, ...]]]
) -> Scene:
    """The headers of a scene's files; `masks` are folder and values by modality, listed as rasters by `mask_key`."""
    scene = _read_rasters(files, bands)
    for name, (folder, values) in masks.items():
        path, info = files.rasters.pop(mask_key(name)), scene.infos[name]
        if path is not None and info is not None:
            scene.masks[name] = PixelMask([(path, BandSelection.parse(folder)[1])], values)
            scene.infos[name] = replace(info, has_mask=True)
    return scene


def _read_rasters(files: SceneFiles, bands: Mapping[str, BandSelection]) -> Scene:
    infos: dict[str, RasterInfo | None] = {}
    for name in bands:
        path = files.rasters[name]
        infos[name] = None if path is None else read_info(path, bands=bands[name])
        if path is not None:
            check_alpha(path, bands[name])
    if files.label is None or is_vector_file(files.label):
        if not any(infos.values()):
            raise ValueError(
                f"{files.label} labels a scene that has no raster of any modality. Remove it, or add one."
            )
        return make_scene(files, infos, None)
    return make_scene(files, infos, read_info(files.label, palette_as_indices=True))


def make_scene(files: SceneFiles, infos: Mapping[str, RasterInfo | None], label: RasterInfo | None) -> Scene:
    """Put a scene together from the headers of its files, at least one, and choose its reference grid."""
    reference = label or max(filter(None, infos.values()), key=lambda info: info.size[0] * info.size[1])
    return Scene(files, dict(infos), label, reference.georeference, reference.size)


def placed_files(name: str, scenes: Sequence[Scene]) -> list[tuple[RasterInfo, Georeference | None, tuple[int, int]]]:
    """Headers of a modality's files with the place and size of their scenes' grids, as `plan_modality` takes them."""
    return [(info, scene.grid, scene.size) for scene in scenes if (info := scene.infos[name]) is not None]


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
