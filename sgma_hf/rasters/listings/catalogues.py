"""Scenes of a STAC ItemCollection: an asset per modality, https://github.com/radiantearth/stac-spec."""

import json
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from ..bands import BandSelection
from ..dates import DateTable, read_date
from .listed import ListedScene, file_name, named
from .tables import resolved


def scenes_of_catalogue(
    path: Path, keys: Mapping[str, tuple[str, BandSelection]], scene_by: str | None, dated: bool
) -> list[ListedScene]:
    """The scenes of a `.json`; `keys` are asset and bands by modality.

    An item is a scene, or, with `scene_by`, all items of one date that have one value of that property are. Where two
    items have one modality of a scene, that has a problem. If they are `dated`, they are its dates, and a scene is of
    all of them.
    """
    items = _read(path)
    scenes: dict[str, dict[str, list[tuple[str, str]]]] = {}  # by scene and modality: items, and hrefs
    problems: dict[str, str] = {}
    times: dict[str, datetime] = {}
    for item in items:
        item_id, properties = str(item.get("id")), item.get("properties") or {}
        text = str(properties.get("datetime") or properties.get("start_datetime") or "")
        date, name = text[:10], item_id
        if scene_by is not None:
            if properties.get(scene_by) is None:
                raise ValueError(
                    f"The item {item_id} of {path} has no property {scene_by!r}; it has {sorted(properties)}."
                )
            name = "_".join(filter(None, [str(properties[scene_by]), "" if dated else date]))
        rasters = scenes.setdefault(file_name(name), {})
        for modality, (key, bands) in keys.items():
            href = ((item.get("assets") or {}).get(key) or {}).get("href")
            if href and dated and text:
                times[resolved(href, path.parent)] = read_date(text, f"The datetime of {item_id} in {path}")
            if href and modality in rasters and not dated:
                problems[file_name(name)] = (
                    f"The items {rasters[modality][0][0]} and {item_id} of {path}, of {date or 'no date'}, are one "
                    f"scene {name!r}, and both have {key!r} ({modality}). Keep one of them, or tell them apart by "
                    "another property: `--scene_by`."
                )
            elif href:
                rasters.setdefault(modality, []).append((item_id, named(resolved(href, path.parent), bands)))
    if not any(scenes.values()):
        there = sorted({key for item in items for key in item.get("assets") or {}})
        raise ValueError(
            f"{path} has the assets {there}, and none of {[key for key, _ in keys.values()]}. Say which is which "
            "modality: `--assets NAME=ASSET`."
        )
    for name, rasters in scenes.items():
        if not rasters:
            problems[name] = f"{name!r} of {path} has no asset {[key for key, _ in keys.values()]}."
    return [
        ListedScene(
            name,
            {modality: [href for _, href in found] for modality, found in rasters.items()},
            problems.get(name),
            table=DateTable(times) if times else None,
        )
        for name, rasters in scenes.items()
    ]


def _read(path: Path) -> list[dict[str, Any]]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}") from error
    items = content.get("features", [content]) if isinstance(content, dict) else content
    if not isinstance(items, list) or not all(
        isinstance(item, dict) and item.get("type") == "Feature" for item in items
    ):
        raise ValueError(
            f"{path} is no STAC ItemCollection: expected `features`, a list of items. `pystac-client search --save` "
            "writes one."
        )
    if not items:
        raise ValueError(f"{path} holds no item.")
    return items
