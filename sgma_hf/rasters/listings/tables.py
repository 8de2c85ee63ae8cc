"""Scenes of a table: a row per scene, and a column per modality that names files."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet

from ..bands import BandSelection
from ..opening import as_source
from .listed import ListedScene, file_name, named


_SCENE_COLUMNS = ("scene", "id", "name")


def scenes_of_table(
    path: Path, keys: Mapping[str, tuple[str, BandSelection]], scene_by: str | None
) -> list[ListedScene]:
    """The scenes of a `.csv` or `.parquet`; `keys` are column and bands by modality. An empty cell is a gap.

    Files of one cell that make a mosaic are a list in a Parquet file, and have `;` between them in text. A scene that
    stands in two rows has a problem.
    """
    columns, rows = _read(path)
    if not rows:
        raise ValueError(f"{path} holds no row below the names of its columns.")
    modalities = {name: key for name, (key, _) in keys.items() if key in columns}
    if not modalities:
        raise ValueError(
            f"{path} has the columns {columns}, and none of {[key for key, _ in keys.values()]}. Say which is which "
            "modality: `--assets NAME=COLUMN`."
        )
    known = [scene_by] if scene_by else [name for name in _SCENE_COLUMNS if name in columns]
    if not known or known[0] not in columns:
        raise ValueError(
            f"{path} has the columns {columns}, and none named {known[0] if known else 'scene, id or name'} to tell "
            "the scenes apart. Name one: `--scene_by COLUMN`."
        )
    scenes: dict[str, ListedScene] = {}
    for number, row in enumerate(rows, start=1):
        text = str(row[known[0]] or "")
        name = file_name(text or f"row {number}")
        rasters = {}
        for modality, key in modalities.items():
            files = _files(row[key], path, number, key)
            if files:
                rasters[modality] = [named(resolved(file, path.parent), keys[modality][1]) for file in files]
        problem = None
        if not text:
            problem = f"Row {number} of {path} has no name in {known[0]!r}."
        elif name in scenes:
            problem = f"{path} has the scene {text!r} in several rows. Keep one of them, or name them differently."
        elif not rasters:
            problem = f"Row {number} of {path}, {text!r}, names no raster in {list(modalities.values())}."
        scenes[name] = ListedScene(name, rasters, problem)
    return list(scenes.values())


def resolved(name: str, folder: Path) -> str:
    """The name of a raster that stands in a file of `folder`."""
    source = as_source(name.removeprefix("file://"))
    return source if isinstance(source, str) else str(folder / source)


def _read(path: Path) -> tuple[list[str], Sequence[Mapping[str, Any]]]:
    """Names of the columns, and the rows."""
    try:
        if path.suffix.lower() == ".parquet":
            table = pyarrow.parquet.read_table(path)
            return table.column_names, table.to_pylist()
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, restval="")
            return list(reader.fieldnames or ()), list(reader)
    except (pyarrow.ArrowInvalid, csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no table: {error}") from error


def _files(cell: Any, path: Path, number: int, column: str) -> list[str]:
    files = cell if isinstance(cell, list) else (cell or "").split(";") if isinstance(cell, str | None) else [cell]
    if not all(isinstance(file, str) for file in files):
        raise ValueError(
            f"Row {number} of {path} holds {type(cell).__name__} in {column!r}; expected names of files. Of a data "
            "set that holds its rasters, give the folder."
        )
    return [file.strip() for file in files if file.strip()]
