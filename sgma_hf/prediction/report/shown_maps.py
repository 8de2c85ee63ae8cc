"""What there is to show of the maps in a folder: small pictures, classes and their colours, figures."""

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
from PIL import Image

from ...data.windows import Window, blocks
from ...model.limits_sgma import IGNORE_INDEX
from ...rasters.files import read_info
from ...rasters.grids import Grid
from ...rasters.maps.areas import count_classes
from ...rasters.opening import open_dataset
from ...visualization.palette import SHARE_RAMP
from ..map_files import LAYER_TAG, PNG_SUFFIXES, RUN_TAG, TIFF_SUFFIXES, read_classes
from ..periods import MONTH
from ..scenes.many import COMMAND_FILE, FOLDER, RUN_FILE, SceneLedger, SceneRecord
from ..scenes.summary import scene_row


MAP_SIDE, EXTRA_SIDE = 256, 128  # of pictures, in pixels at most
STEPS = 10  # in which shares are shown, which keeps pictures small
SHARE_COLORS = np.stack(
    [np.interp(np.linspace(0, 4, STEPS + 1), range(5), part) for part in zip(*SHARE_RAMP, strict=True)], 1
).astype(int)
_ROWS = 512  # read at once

Color = Sequence[int]  # red, green, blue in 0..255


@dataclass(frozen=True)
class ShownMap:
    """A scene: its row of the summary, and what its map shows. A scene that failed has no classes and no pictures."""

    row: Mapping[str, Any]
    classes: Mapping[str, Color] = field(default_factory=dict)  # colour of each, in the order of the ids
    pictures: Mapping[str, bytes] = field(default_factory=dict)  # title -> PNG, the map itself first
    decision: Mapping[str, Color] = field(default_factory=dict)  # colour of each modality in that picture


@dataclass(frozen=True)
class MapFolder:
    """All scenes of a folder, and what is known of how their maps were made."""

    maps: list[ShownMap]
    made: Mapping[str, str]


def read_maps(folder: Path) -> MapFolder:
    """Read what `sgma-hf predict` left in a folder: maps with a summary, or maps alone.

    Raises:
        ValueError: If it holds no such map, or its summary is none.
        FileNotFoundError: If there is no such folder.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {folder}; give one that `sgma-hf predict` wrote maps to.")
    rows = {row["map"] or row["scene"]: row for row in _summary(folder / "summary.parquet")}
    runs: dict[tuple[Path, str], list[tuple[str, Path]]] = {}
    for path, layer, run in _layers(folder):
        runs.setdefault((path.parent, run), []).append((layer, path))
    shown = []
    for files in runs.values():
        for path in (path for layer, path in files if layer == "labels"):
            beside = {layer: other for layer, other in files if other.stem == f"{path.stem}_{layer}"}
            extras = {layer: other for layer, other in beside.items() if other.suffix == path.suffix}
            shown.append(_shown(folder, path, extras, rows.pop(path.relative_to(folder).as_posix(), None)))
    if not shown and not rows:
        raise ValueError(f"{folder} holds no map that `sgma-hf predict` wrote. Give the folder of its maps.")
    shown += [ShownMap({**row, "error": row["error"] or f"{row['map']} is not there"}) for row in rows.values()]
    return MapFolder(sorted(shown, key=lambda one: str(one.row["scene"])), _made(folder / FOLDER))


def _summary(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    rows = pyarrow.parquet.read_table(path).to_pylist()
    if rows and not {"scene", "map", "error", "confidence", "missing"} <= rows[0].keys():
        raise ValueError(f"{path} is no summary of `sgma-hf predict --scenes`. Without it, the maps alone are shown.")
    return rows


def _layers(folder: Path) -> Iterator[tuple[Path, str, str]]:
    """Files that `predict` wrote, with what they hold and their run; none of hidden folders, where runs work."""
    for path in sorted(folder.rglob("*")):
        is_hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if path.suffix.lower() in TIFF_SUFFIXES + PNG_SUFFIXES and not is_hidden and path.is_file():
            with open_dataset(path) as file:
                tags = file.tags()
            if LAYER_TAG in tags:
                yield path, tags[LAYER_TAG], tags[RUN_TAG]


def _made(folder: Path) -> dict[str, str]:
    """The command and the checkpoint, where a run has kept them."""
    made: dict[str, str] = {}
    for name in (COMMAND_FILE, RUN_FILE):
        if (folder / name).is_file():
            made |= json.loads((folder / name).read_text(encoding="utf-8"))
    names = {"command": "command", "checkpoint": "checkpoint", "version": "sgma_hf", "model": "SHA-256 of the weights"}
    return {title: made[name] for name, title in names.items() if name in made}


def _shown(folder: Path, path: Path, extras: Mapping[str, Path], row: Mapping[str, Any] | None) -> ShownMap:
    with open_dataset(path) as file:
        names, colors = read_classes(path)
        if row is None:
            row = _row(folder, path, file, extras, names)
        pictures = {"classes": class_picture(_small(file, MAP_SIDE)[0], colors)}
    more, decision = _extra_pictures(extras)
    return ShownMap(row, dict(zip(names, colors, strict=True)), pictures | more, decision)


def _extra_pictures(extras: Mapping[str, Path]) -> tuple[dict[str, bytes], dict[str, Color]]:
    """Small pictures of what lies beside a map, and the colours of the modalities in that of the decision."""
    pictures: dict[str, bytes] = {}
    decision: dict[str, Color] = {}
    for kind in ("confidence", "decision", "robustness", "agreement", MONTH):
        for name in (name for name in extras if name.startswith(kind)):
            with open_dataset(extras[name]) as file:
                values = _small(file, EXTRA_SIDE)
                if kind == "decision":
                    names = (file.tags(1).get(f"MODALITY_{index}") for index in range(IGNORE_INDEX))
                    decision = {name: file.colormap(1)[index][:3] for index, name in enumerate(filter(None, names))}
                    pictures["relied on most"] = class_picture(values[0], list(decision.values()))
                else:
                    shown = zip(_titles(name, file), values, strict=False)
                    pictures |= {title: share_picture(band) for title, band in shown}
    return pictures, decision


def _titles(layer: str, file: Any) -> list[str]:
    """What the bands of an extra that are shown are called."""
    if layer == "confidence":
        return ["confidence"]
    if layer == MONTH:
        return [f"reliance on {month}" for month in file.descriptions]
    kind, _, modality = layer.partition("_")  # of a PNG, which has one band
    words = {"robustness": "reliance on", "agreement": "agreement of"}[kind]
    return [f"{words} {name}" for name in ([modality] if modality else file.descriptions)]


def _row(folder: Path, path: Path, file: Any, extras: Mapping[str, Path], classes: Sequence[str]) -> dict[str, Any]:
    """The row of a map that is in no summary, as far as its files tell."""
    info = read_info(path, palette_as_indices=True)
    parts = ((rows[:2], _read(file, rows)[0]) for rows in blocks(file.shape, _ROWS))
    counts = count_classes(parts, Grid(info.size, info.georeference))
    means = {name: _means(extras[name]) for name in ("confidence", "robustness", "agreement") if name in extras}
    reliance, agreement = means.get("robustness", {}), means.get("agreement", {})
    kept = [*range(len(classes)), IGNORE_INDEX]
    record = SceneRecord(
        scene=path.relative_to(folder).with_suffix("").as_posix(),
        version=[],
        size=list(file.shape),
        modalities=list(reliance or agreement),
        class_pixels=counts.pixels[kept].tolist(),
        class_areas=None if counts.areas is None else counts.areas[kept].tolist(),
        confidence=next(iter(means.get("confidence", {}).values()), None),
        reliance=reliance,
        agreement=agreement,
    )
    return scene_row(SceneLedger(folder, path.suffix), record, classes, record.modalities) | {"missing": None}


def _read(file: Any, rows: Window) -> np.ndarray:
    return file.read(window=((rows.top, rows.top + rows.height), (0, file.width)))


def _means(path: Path) -> dict[str, float | None]:
    """The mean of each band of an extra over its pixels with data."""
    with open_dataset(path) as file:
        sums, counts = np.zeros(file.count), np.zeros(file.count, np.int64)
        for rows in blocks(file.shape, _ROWS):
            values = _read(file, rows)
            sums += np.nansum(values, (1, 2), dtype=np.float64)
            counts += (~np.isnan(values)).sum((1, 2))
        pairs = zip(sums.tolist(), counts.tolist(), strict=True)
        means = [total / count if count else None for total, count in pairs]
        return dict(zip(file.descriptions, means, strict=True))


def _small(file: Any, side: int) -> np.ndarray:
    """The bands, (bands, height, width), of which neither side is larger than `side`."""
    scale = min(1.0, side / max(file.shape))
    height, width = (max(1, round(scale * length)) for length in file.shape)
    return file.read(out_shape=(file.count, height, width))


def share_picture(values: np.ndarray) -> bytes:
    """Shares in colours from dark to light; NaN is transparent."""
    shares = values / 255 if values.dtype == np.uint8 else values
    steps = np.where(np.isnan(shares), IGNORE_INDEX, np.rint(np.nan_to_num(shares) * STEPS))
    return class_picture(steps.astype(np.uint8), SHARE_COLORS)


def class_picture(ids: np.ndarray, colors: Sequence[Color]) -> bytes:
    """A PNG of values in their colours; 255 is transparent."""
    image = Image.fromarray(np.where(ids < len(colors), ids, len(colors)).astype(np.uint8), "P")
    image.putpalette(bytes(int(part) for color in [*colors, (0, 0, 0)] for part in color))
    file = io.BytesIO()
    image.save(file, "PNG", transparency=len(colors))
    return file.getvalue()
