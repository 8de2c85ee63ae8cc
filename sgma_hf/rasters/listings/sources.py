"""Scenes and their rasters from a folder, a table, a data set or a STAC catalogue: `list_scenes`."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from datasets import get_dataset_split_names
from transformers.utils import logging

from ...data.metadata import METADATA_FILE
from ...data.rows import SPLIT_ALIASES, load_rows, present_modalities
from ..bands import ALL_BANDS, BandSelection
from ..dates import DateTable
from .catalogues import scenes_of_catalogue
from .folders import MASK_OF, SceneFiles, find_scenes
from .listed import ListedScene, file_name, named
from .tables import scenes_of_table


logger = logging.get_logger(__name__)


def list_scenes(
    source: str | os.PathLike,
    modalities: Sequence[str],
    *,
    assets: Mapping[str, str] | None = None,
    scene_by: str | None = None,
    masks: Mapping[str, tuple[str, Sequence[float]]] | None = None,
    dated: bool = False,
    table: DateTable | None = None,
) -> list[ListedScene]:
    """List the scenes of a source, sorted by name, each with the rasters that it has.

    Args:
        source: A folder in one of the layouts of `folders`; the folder of a data set; a table, `.csv` or `.parquet`,
            of a row per scene and a column per modality that names files; or a STAC ItemCollection, `.json` or
            `.geojson`. Names of files are relative to that of the table or catalogue, unless GDAL alone knows them.
        modalities: What is looked for. A scene has any of them.
        assets: What a modality is called there, where not by its name, and its bands: `{"rgb": "visual",
            "nir": "B08", "red": "rgbn:1"}`. It names a folder, stem or suffix of files, a column or an asset.
        scene_by: Column of a table that names the scenes; None takes `scene`, `id` or `name`. Of a catalogue a
            property: items of one value and date are one scene, with `dated` all of one value; None takes their ids.
        masks: By modality what its masks are called there, as in `assets`, and which of their classes hide it. Where a
            scene has no mask, nothing is hidden.
        dated: Whether several files of a modality are its dates, for a model that knows them, and no mosaic.
        table: When files were taken; None: see `date_of`.

    Raises:
        ValueError: If the source holds nothing of the modalities.
        OSError: If it cannot be read.
    """
    path = Path(source)
    unknown = [name for name in assets or {} if name not in modalities]
    if unknown:
        raise ValueError(f"`assets` names {unknown}; the modalities are {list(modalities)}.")
    keys = {name: BandSelection.parse((assets or {}).get(name, name)) for name in modalities}
    keys |= {MASK_OF + name: BandSelection.parse(key) for name, (key, _) in (masks or {}).items()}
    found = _list(path, keys, scene_by, dated)
    for name, key in (assets or {}).items():
        if not any(name in scene.modalities for scene in found):
            logger.warning(f"No scene of {path} has {key!r} for {name}: it is missing in all of them.")
    found = [replace(scene, is_dated=dated, table=table or scene.table) for scene in found]
    return [_with_masks(scene, masks) for scene in found] if masks else found


def list_rows(dataset: str, columns: Sequence[str]) -> list[ListedScene]:
    """List the rows of a data set, a folder or an id on the Hub, each with those of the columns that it has."""
    return _scenes_of_rows(dataset, {name: (name, ALL_BANDS) for name in columns})


def _with_masks(scene: ListedScene, masks: Mapping[str, tuple[str, Sequence[float]]]) -> ListedScene:
    """A scene whose masks were listed as rasters."""
    rasters = {name: files for name, files in scene.rasters.items() if not name.startswith(MASK_OF)}
    hiding = {
        name: (scene.rasters[MASK_OF + name], values)
        for name, (_, values) in masks.items()
        if MASK_OF + name in scene.rasters
    }
    unmasked = [name for name in masks if name in rasters and name not in hiding]
    if unmasked:
        logger.warning(f"{scene.name} has no mask for {', '.join(unmasked)}: nothing of it is hidden.")
    problem = scene.problem if rasters or scene.problem else f"{scene.name} has no raster beside its mask."
    return replace(scene, rasters=rasters, masks=hiding, problem=problem)


def _list(
    path: Path, keys: Mapping[str, tuple[str, BandSelection]], scene_by: str | None, dated: bool
) -> list[ListedScene]:
    """The scenes of a source with all that `keys` name."""
    if path.is_dir():
        if scene_by is not None:
            raise ValueError(
                f"`scene_by` {scene_by!r} is a column of a table or a property of a catalogue; {path} is a folder. "
                "Leave it out: the names of files or rows say of which scene they are."
            )
        is_data_set = (path / METADATA_FILE).is_file() or any(path.glob("*.parquet")) or any(path.glob("*/*.parquet"))
        if is_data_set and any(name.startswith(MASK_OF) for name in keys):
            raise ValueError(f"{path} is a data set: it holds no masks, and what they hid is missing already.")
        return _scenes_of_rows(str(path), keys) if is_data_set else _scenes_of_folder(path, keys, dated)
    suffix = path.suffix.lower()
    if suffix not in (".csv", ".parquet", ".json", ".geojson"):
        raise ValueError(
            f"{path} is neither a folder of scenes nor a table (.csv, .parquet) nor a STAC ItemCollection (.json)."
        )
    if not path.is_file():
        raise FileNotFoundError(f"There is no {path}.")
    if suffix in (".csv", ".parquet"):
        found = scenes_of_table(path, keys, scene_by)
    else:
        found = scenes_of_catalogue(path, keys, scene_by, dated)
    return sorted(found, key=lambda scene: scene.name)


def _scenes_of_folder(folder: Path, keys: Mapping[str, tuple[str, BandSelection]], dated: bool) -> list[ListedScene]:
    folders = {name: key for name, (key, _) in keys.items()}
    found = find_scenes(folder, folders, None, absent=None, series=dated or None)
    several = len({scene.split for scene in found}) > 1
    return [
        ListedScene(
            f"{scene.split}/{scene.name}" if several else scene.name,
            {name: [named(path, keys[name][1]) for path in files] for name in keys if (files := scene.files_of(name))},
            problem=None if dated or not scene.series else _undated(scene),
        )
        for scene in found
    ]


def _undated(scene: SceneFiles) -> str:
    name, paths = next(iter(scene.series.items()))
    return (
        f"{scene.name} has {len(paths)} files of {name}, such as {paths[0].name} and {paths[-1].name}, and the model "
        "knows no dates. Train one on rows with dates, or keep one file."
    )


def _scenes_of_rows(folder: str, keys: Mapping[str, tuple[str, BandSelection]]) -> list[ListedScene]:
    chosen = [name for name, (_, bands) in keys.items() if bands != ALL_BANDS]
    if chosen:
        raise ValueError(f"`assets` chooses bands of {chosen}, and columns of a data set have those of a model.")
    scenes = []
    splits = get_dataset_split_names(folder)
    for split in splits:
        rows = load_rows(folder, split)
        columns = {name: key for name, (key, _) in keys.items() if key in rows.column_names}
        if not columns:
            wanted = [key for key, _ in keys.values()]
            raise ValueError(f"{folder} has the columns {rows.column_names}, and none of {wanted}; see `assets`.")
        there = present_modalities(rows, list(columns.values()))
        for index, (row_id, has) in enumerate(zip(rows["id"], there, strict=True)):
            own = {name: key for (name, key), present in zip(columns.items(), has, strict=True) if present}
            name = f"{SPLIT_ALIASES.get(split, split)}/{row_id}" if len(splits) > 1 else row_id
            problem = None if own else f"Row {row_id!r} of {folder} holds none of {list(columns)}."
            scenes.append(ListedScene(file_name(name), problem=problem, row=(rows, index, own)))
    return scenes
