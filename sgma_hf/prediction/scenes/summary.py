"""The table of many maps: what each holds, what it relied on and how sure it is; `write_summary`."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from ...data.whole_files import replace_file, write_text
from ...publishing.tables import rows_as_csv
from ...rasters.maps.areas import HECTARE
from .many import SceneLedger, SceneRecord


LEAST_CERTAIN, FEWEST = 0.1, 10  # share of the scenes that are proposed for labelling, and at least so many
_TEXTS, _NUMBERS = ("scene", "map", "modalities", "missing", "error"), ("height", "width")


def write_summary(
    ledger: SceneLedger, names: Sequence[str], classes: Sequence[str], modalities: Sequence[str]
) -> tuple[list[dict[str, Any]], list[Path]]:
    """Write `summary.csv`, `summary.parquet` and `least_certain.csv` beside the maps, of the scenes that were tried.

    A row has the scene, its map, seconds, size, what was there and what was missing, hectares of what is mapped and of
    each class, their shares of it, mean confidence, mean reliance on each modality, their agreement if that was asked
    for, or the error. Of several processes each writes what is known when it ends; the last one knows all. Returns the
    rows and the files.
    """
    files = [ledger.output / name for name in ("summary.csv", "summary.parquet", "least_certain.csv")]
    written = None
    while (records := _records(ledger, names)) != written:  # again, if another process has ended meanwhile
        rows = [scene_row(ledger, record, classes, modalities) for record in records]
        header = list(scene_row(ledger, SceneRecord("", []), classes, modalities))
        write_text(files[0], rows_as_csv(header, rows))
        with replace_file(files[1]) as path:
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, schema=_schema(header)), path)
        write_text(files[2], rows_as_csv(["scene", "map", "confidence"], least_certain(rows)))
        written = records
    return rows, files


def least_certain(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The tenth of the maps, ten at least, whose mean confidence is lowest, the lowest first."""
    known = sorted((row for row in rows if row["confidence"] is not None), key=lambda row: row["confidence"])
    return known[: max(FEWEST, math.ceil(LEAST_CERTAIN * len(known)))]


def _records(ledger: SceneLedger, names: Sequence[str]) -> list[SceneRecord]:
    return [record for name in names if (record := ledger.record(name)) is not None]


def scene_row(
    ledger: SceneLedger, record: SceneRecord, classes: Sequence[str], modalities: Sequence[str]
) -> dict[str, Any]:
    """The row of a scene in the table, see `write_summary`."""
    pixels, areas = record.class_pixels[:-1], (record.class_areas or ())[:-1]
    mapped, hectares = sum(pixels), [area / HECTARE for area in areas]
    row: dict[str, Any] = {
        "scene": record.scene,
        "map": None if record.error else ledger.map_of(record.scene).relative_to(ledger.output).as_posix(),
        "seconds": record.seconds,
        "height": record.size[0] if record.size else None,
        "width": record.size[1] if record.size else None,
        "modalities": " ".join(record.modalities),
        "missing": " ".join(name for name in modalities if name not in record.modalities),
        "confidence": record.confidence,
        "area_ha": sum(hectares) if hectares else None,
    }
    for index, name in enumerate(classes):
        row[f"area_ha_{name}"] = hectares[index] if hectares else None
        row[f"share_{name}"] = pixels[index] / mapped if mapped else None
    row["share_unmapped"] = record.class_pixels[-1] / sum(record.class_pixels) if record.class_pixels else None
    row |= {f"reliance_{name}": record.reliance.get(name) for name in modalities}
    row |= {f"agreement_{name}": record.agreement.get(name) for name in modalities}
    return row | {"error": record.error}


def _schema(header: Sequence[str]) -> pyarrow.Schema:
    kinds = {**dict.fromkeys(_TEXTS, pyarrow.string()), **dict.fromkeys(_NUMBERS, pyarrow.int64())}
    return pyarrow.schema([(name, kinds.get(name, pyarrow.float64())) for name in header])
