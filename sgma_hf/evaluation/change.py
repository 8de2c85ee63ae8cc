"""What changed from one map to another of the same place, and what may explain it beside the ground: `map_change`."""

import contextlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..data.codec import whole_numbers
from ..data.windows import blocks
from ..model.limits_sgma import IGNORE_INDEX
from ..prediction.map_files import extras_beside, plan_outputs, publish, read_classes
from ..prediction.strips import Layer, StripStore, StripWriter
from ..rasters.bands import BandSelection
from ..rasters.grids import pixel_area
from ..rasters.maps.areas import HECTARE
from ..rasters.opening import open_dataset
from ..rasters.raster import bounded_cache
from ..rasters.scene import RasterInput, RasterScene
from .metrics import check_class_ids


RELIED_ON = 0.1  # share of the fusion from which on a modality was relied on
UNKNOWN = "(unknown)"

_ROWS_AT_ONCE = 64  # of which the middle pixel stands for the area of all
_REASONS = {"nothing known": (120, 120, 120), "low confidence": (230, 159, 0), "a sensor": (86, 180, 233)}
_REASONS |= {"low confidence and a sensor": (204, 121, 167)}


@dataclass(frozen=True)
class _Map:
    """One of the two maps: its classes, and what lies beside it."""

    path: Path | str
    names: list[str]
    palette: list[tuple[int, ...]]
    confidence: Path | None
    robustness: Path | None
    modalities: tuple[str, ...]  # bands of `robustness`, the modalities that it was made from

    @classmethod
    def open(cls, path: str | os.PathLike) -> "_Map":
        source = RasterInput.parse(path).path
        names, palette = read_classes(source)
        beside = extras_beside(source)
        modalities: tuple[str, ...] = ()
        if "robustness" in beside:
            with open_dataset(beside["robustness"]) as file:
                modalities = file.descriptions
        return cls(source, names, palette, beside.get("confidence"), beside.get("robustness"), modalities)

    def ids(self, image: np.ma.MaskedArray | None, order: Sequence[str], size: tuple[int, int]) -> np.ndarray:
        """Class ids of a window as places in `order`, one more than the last where there is none: (height, width)."""
        if image is None:
            return np.full(size, len(order))
        ids = whole_numbers(image.filled(IGNORE_INDEX)[..., 0], self.path)
        check_class_ids(ids, len(order), f"{self.path}")
        table = np.full(IGNORE_INDEX + 1, len(order))
        # Names that are in both lists at one place stay there, also where two classes have one name.
        same = self.names == list(order)
        table[: len(order)] = range(len(order)) if same else [order.index(name) for name in self.names]
        return table[ids]


def map_change(
    old: str | os.PathLike,
    new: str | os.PathLike,
    *,
    output: str | os.PathLike | None = None,
    min_confidence: float = 0.6,
) -> dict[str, Any]:
    """Count the areas that went from class to class between two maps, on the grid of the old one.

    The new map is picked by nearest neighbour where its grid is another one. Pixels that are 255, nodata or not there
    in one of the maps are counted apart. Areas are on the ellipsoid, as `pixel_area` has it, that of the middle for
    every 64 rows, which are read at a time.

    Where `confidence` or `robustness` of the same run lies beside a map, it is said of how much of the area either map
    had a probability below `min_confidence`, and of each modality where one map relied on it, by a tenth of the fusion
    or more, and the other took nothing of it, as it does where the modality has no data: "lost" where the new one took
    nothing, "gained" where the old one did.

    Args:
        old: GeoTIFF as `predict_raster` writes it, which names its classes.
        new: The same of another time, of the same classes; of another order they are matched by name.
        output: GeoTIFF to write the map of changes to, see `change_codes`; beside it `<output>_reason`, of changed
            pixels what may explain them, where something is known of that.
        min_confidence: Probability, 0 to 1.

    Returns:
        `old`, `new`, `classes`, `min_confidence`, `share_of` ("area", or "pixels" where nobody knows areas), `known`:
        which extras both maps have; `transitions`, a row for each pair of classes, unknown ones last, with `from`,
        `to`, `pixels`, `area_ha`, `share` of what both maps know, and of the row's area, as far as known, the shares
        `uncertain`, `lost_<modality>`, `gained_<modality>`, and `unexplained`, none of these; `changed` and
        `unchanged`, the same in total.

    Raises:
        ValueError: If a file is no map, the classes differ, the two do not overlap, or `output` cannot be written.
    """
    if not 0 <= min_confidence <= 1:
        raise ValueError(f"`min_confidence` is {min_confidence:g}; expected a probability from 0 to 1.")
    maps = {"old": _Map.open(old), "new": _Map.open(new)}
    names = maps["old"].names
    if sorted(names) != sorted(maps["new"].names):
        alone = sorted(set(names) ^ set(maps["new"].names))
        raise ValueError(
            f"{new} has the classes {maps['new'].names}, {old} has {names}; {alone or 'repeated names'} is not in "
            "both. Give maps of the same classes."
        )
    reasons, writer = _Reasons(maps, min_confidence), None
    with bounded_cache(), contextlib.ExitStack() as opened:
        scene = opened.enter_context(_open_scene(maps))
        if output is not None:
            layers = _layers(names, maps["old"].palette, with_reasons=bool(reasons.known))
            plan = plan_outputs(output, layers, scene.paths, [])
            made_of = {"old": str(old), "new": str(new), "min_confidence": min_confidence}
            store = StripStore(plan.label_map, scene.grid.size[1], layers, made_of)
            opened.callback(store.remove)
            store.prepare(resume=False)
            writer = StripWriter(store, 0)
        counts, areas = _count(scene, maps, reasons, writer)
        if output is not None:
            publish(store, plan, scene.grid)
    found = {"old": str(old), "new": str(new), "classes": names, "min_confidence": min_confidence}
    return found | {"known": reasons.known} | _tables(names, counts, areas)


def change_codes(num_labels: int) -> np.ndarray:
    """Values of a map of changes, uint8 (num_labels + 1, num_labels + 1): rows are the old class, columns the new one.

    A pixel that did not change has the id of its class. Changes follow, old class by old class, up to 15 classes; of
    more, which have more changes than a byte has values, it is `num_labels` and the id of the new class. The last row
    and column are what is unknown in one of the maps, 255.

    Example:
        >>> change_codes(2).tolist()
        [[0, 2, 255], [3, 1, 255], [255, 255, 255]]
    """
    if 2 * num_labels > IGNORE_INDEX:
        raise ValueError(f"A map of changes takes up to {IGNORE_INDEX // 2} classes; these are {num_labels}.")
    codes = np.full((num_labels + 1, num_labels + 1), IGNORE_INDEX, dtype=np.uint8)
    known, ids = codes[:num_labels, :num_labels], np.arange(num_labels)
    known[:] = num_labels + ids
    if num_labels**2 <= IGNORE_INDEX:
        known[~np.eye(num_labels, dtype=bool)] = np.arange(num_labels, num_labels**2)
    np.fill_diagonal(known, ids)
    return codes


def _layers(names: Sequence[str], palette: Sequence[Sequence[int]], *, with_reasons: bool) -> list[Layer]:
    """What stayed in pale colours of its class, what changed in the colours of what it became."""
    codes = change_codes(len(names))
    values: dict[int, tuple[str, tuple[int, ...]]] = {}
    for (old, new), code in np.ndenumerate(codes[:-1, :-1]):
        came_from = names[old] if len(names) ** 2 <= IGNORE_INDEX else "other"
        pale = tuple((part + 3 * 255) // 4 for part in palette[old])
        values[int(code)] = (names[old], pale) if old == new else (f"{came_from} to {names[new]}", tuple(palette[new]))
    texts = {f"CHANGE_{code}": values[code][0] for code in sorted(values)}
    colors = tuple(values[code][1] for code in sorted(values))
    layers = [Layer("labels", ("change",), "uint8", colors, texts)]
    if with_reasons:
        tags = {f"REASON_{index}": text for index, text in enumerate(_REASONS)}
        layers.append(Layer("reason", ("what may explain a change",), "uint8", tuple(_REASONS.values()), tags))
    return layers


def _open_scene(maps: Mapping[str, _Map]) -> RasterScene:
    """Both maps and what lies beside them, on the grid of the first one."""
    rasters: dict[str, RasterInput] = {}
    channels: dict[str, int] = {}
    for time, item in maps.items():
        rasters[time] = RasterInput(item.path, BandSelection((1,)))
    for time, item in maps.items():
        if item.confidence is not None:
            rasters[f"{time}_confidence"] = RasterInput(item.confidence, BandSelection((1,)))
        if item.robustness is not None:
            rasters[f"{time}_robustness"] = RasterInput(item.robustness)
    for name, source in rasters.items():
        channels[name] = 1 if source.bands.values else len(maps[name[:3]].modalities)
    nodata = {time: [IGNORE_INDEX] for time in maps}
    return RasterScene(rasters, channels=channels, nodata=nodata, resampling="nearest")


class _Reasons:
    """What may explain a change beside the ground, pixel by pixel, as far as it is known of the maps."""

    def __init__(self, maps: Mapping[str, _Map], min_confidence: float):
        self._maps, self._min_confidence = maps, min_confidence
        self.known = ["confidence"] if any(item.confidence is not None for item in maps.values()) else []
        if all(item.robustness is not None for item in maps.values()):
            self.known.append("robustness")

    def find(self, images: Mapping[str, np.ma.MaskedArray], size: tuple[int, int]) -> dict[str, np.ndarray]:
        """Where each reason holds, bool (height, width): "uncertain", "lost_<modality>", "gained_<modality>"."""
        found: dict[str, np.ndarray] = {}
        if "confidence" in self.known:
            parts = [images[name] for name in ("old_confidence", "new_confidence") if name in images]
            is_low = [(part < self._min_confidence).filled(False)[..., 0] for part in parts]
            found["uncertain"] = np.any([np.zeros(size, dtype=bool), *is_low], axis=0)
        if "robustness" in self.known:
            modalities = dict.fromkeys((*self._maps["old"].modalities, *self._maps["new"].modalities))
            for name in modalities:
                old, new = (self._share(time, name, images, size) for time in ("old", "new"))
                found[f"lost_{name}"] = (old >= RELIED_ON) & (new == 0)
                found[f"gained_{name}"] = (new >= RELIED_ON) & (old == 0)
        return found

    def _share(self, time: str, modality: str, images: Mapping[str, np.ma.MaskedArray], size: tuple) -> np.ndarray:
        """Share of the fusion that a modality had in a map, 0 where it has no data: (height, width)."""
        image, names = images.get(f"{time}_robustness"), self._maps[time].modalities
        if image is None or modality not in names:
            return np.zeros(size)
        return image[..., names.index(modality)].filled(0)


def _count(
    scene: RasterScene, maps: Mapping[str, _Map], reasons: _Reasons, writer: StripWriter | None
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Pixels, and square metres or NaN, of each pair of classes, (K + 1, K + 1), the last for unknown; by reason."""
    names = maps["old"].names
    side, codes = len(names) + 1, None if writer is None else change_codes(len(names))
    counts: dict[str, Any] = {}
    areas: dict[str, Any] = {}
    for strip in blocks(scene.grid.size, _ROWS_AT_ONCE):
        images, size = scene.read(*strip), strip[2:]
        old, new = (item.ids(images.get(time), names, size) for time, item in maps.items())
        found = reasons.find(images, size)
        if found:
            found["unexplained"] = ~np.any([*found.values()], axis=0)
        pairs, area = old * side + new, pixel_area(scene.grid.part(strip))
        for name, where in {"pixels": np.ones(size, dtype=bool), **found}.items():
            part = np.bincount(pairs[where], minlength=side**2).reshape(side, side)
            counts[name] = counts.get(name, 0) + part
            areas[name] = areas.get(name, 0) + part * (np.nan if area is None else area)
        if writer is not None:
            is_changed = (old != new) & (old < side - 1) & (new < side - 1)
            sensors = [where for name, where in found.items() if name.startswith(("lost_", "gained_"))]
            reason = 1 * found.get("uncertain", np.zeros(size, dtype=bool)) + 2 * np.any([0 * old, *sensors], axis=0)
            writer.append(
                {"labels": codes[old, new][None], "reason": np.where(is_changed, reason, IGNORE_INDEX)[None]}
            )
    if writer is not None:
        writer.commit({})
    return counts, areas


def _tables(names: Sequence[str], counts: Mapping[str, np.ndarray], areas: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The rows of `map_change` of each pair of classes, and of what changed and what did not."""
    has_areas = bool(np.isfinite(areas["pixels"]).all())
    weights = areas if has_areas else counts
    side = len(names) + 1
    is_known = np.zeros((side, side), dtype=bool)
    is_known[:-1, :-1] = True
    total = weights["pixels"][is_known].sum()

    def row(where: np.ndarray) -> dict[str, Any]:
        weight, known = weights["pixels"][where].sum(), bool((where & is_known).any())
        line = {
            "pixels": int(counts["pixels"][where].sum()),
            "area_ha": float(weight / HECTARE) if has_areas else None,
            "share": float(weight / total) if known and total else None,
        }
        shares = {name: part[where].sum() for name, part in weights.items() if name != "pixels"}
        return line | {name: float(part / weight) if known and weight else None for name, part in shares.items()}

    transitions = []
    for old, new in sorted(np.ndindex(side, side), key=lambda pair: side - 1 in pair):
        where = np.zeros((side, side), dtype=bool)
        where[old, new] = True
        texts = [*names, UNKNOWN]
        transitions.append({"from": texts[old], "to": texts[new], **row(where)})
    is_same = np.eye(side, dtype=bool)
    return {
        "share_of": "area" if has_areas else "pixels",
        "changed": row(is_known & ~is_same),
        "unchanged": row(is_known & is_same),
        "transitions": transitions,
    }
