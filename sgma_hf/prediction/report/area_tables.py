"""The tables of areas beside a map: hectares of each class, of all of it and inside polygons."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...data.whole_files import write_json, write_text
from ...publishing.tables import rows_as_csv
from ...rasters.maps.areas import ClassCounts, count_zones


def write_areas(label_map: Path, names: Sequence[str], counts: ClassCounts) -> list[Path]:
    """Write `<map>_areas.csv` and `.json`, a row per class as `ClassCounts.rows` has it; returns the files."""
    return _write(label_map, "areas", counts.rows(names))


def write_zone_areas(
    label_map: Path, names: Sequence[str], zones: str | os.PathLike, attribute: str | None = None
) -> list[Path]:
    """Write `<map>_zones.csv` and `.json`, a row per class in each zone, see `count_zones`; returns the files."""
    found = count_zones(label_map, zones, attribute)
    return _write(label_map, "zones", [{"zone": zone, **row} for zone, counts in found for row in counts.rows(names)])


def _write(label_map: Path, what: str, rows: list[dict[str, Any]]) -> list[Path]:
    table, records = (label_map.with_name(f"{label_map.stem}_{what}{suffix}") for suffix in (".csv", ".json"))
    write_text(table, rows_as_csv(list(rows[0]), rows))
    write_json(records, rows)
    return [table, records]
