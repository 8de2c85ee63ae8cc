"""The files of a map, Cloud Optimized GeoTIFF or PNG: what is in them, their names, and all of them or none."""

import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ..data.whole_files import check_replaceable, write_text
from ..model.fusion_sgma import find_fusion
from ..model.limits_sgma import IGNORE_INDEX
from ..rasters.files import open_picture, read_info
from ..rasters.grids import Grid
from ..rasters.opening import open_dataset
from ..rasters.raster import require_rasterio
from ..visualization.palette import class_palette, colorize, default_palette, recolor
from . import EXTRAS
from .periods import DAY, MONTH, months_of
from .side_files import draw_legend, is_drawn_by_hand, side_files, side_texts
from .strips import Layer, StripStore


PNG_SUFFIXES, TIFF_SUFFIXES = (".png",), (".tif", ".tiff")
COG_BLOCK = 512
# In every file: what it holds, a key of `OutputPlan.files`, and of which run, see `StripStore.run`.
LAYER_TAG, RUN_TAG = "SGMA_HF_LAYER", "SGMA_HF_RUN"
_LABELS = "labels"
NODATA = {"uint8": IGNORE_INDEX, "float32": float("nan"), "int32": 0}


def lacks_robustness(config: Any) -> str | None:
    """Why a model says nothing of its reliance on modalities; None if it does."""
    if config.model_type == "sgma":
        return None if find_fusion(config).has_robustness else f"this checkpoint fuses by {config.fusion!r}"
    return f"this checkpoint is of another network, {config.arm!r} of `sgma-hf compare`"


def plan_layers(
    config: Any,
    modalities: Sequence[str],
    extras: Sequence[str],
    dates: Mapping[str, Sequence[float]] | None = None,
) -> list[Layer]:
    """The rasters of a run, labels first; ValueError if one of `extras` cannot be had from this model and modalities.

    `modalities` are those that have a raster, in the model's order; `dates` are the days of those that are series.
    """
    unknown = [name for name in extras if name not in EXTRAS]
    if unknown:
        raise ValueError(f"There is no output {unknown[0]!r}; expected some of {list(EXTRAS)}.")
    by_date = [name for name in extras if name in (MONTH, DAY)]
    if by_date and config.date_periods is None:
        raise ValueError(f"Output {by_date[0]!r} is by dates, and this checkpoint knows none (`date_periods`).")
    needs_robustness = [name for name in extras if name in ("robustness", "decision", MONTH, DAY)]
    if needs_robustness and (reason := lacks_robustness(config)):
        raise ValueError(
            f"Output {needs_robustness[0]!r} needs robustness, but {reason}, which has none. Leave it out, or use a "
            "checkpoint with `fusion='sgf'`."
        )
    if "agreement" in extras and len(modalities) < 2:
        raise ValueError(
            f"Output 'agreement' compares modalities with each other, but only {list(modalities)} is given; give "
            "another one, or leave it out."
        )
    names, palette = config.class_names, config.palette or class_palette(config.class_names)
    entropy = "of the class probabilities, divided by its largest value, log(number of classes)"
    reliance = "share of reliance on each modality, mean of the model's four stages"
    overlap = "overlap of the class probabilities from the modality alone with those from the others"
    layers = [
        Layer("confidence", ("probability of the class", "entropy"), tags={"ENTROPY": entropy}),
        Layer("probabilities", tuple(names)),
        Layer("robustness", tuple(modalities), tags={"ROBUSTNESS": reliance}),
        _indices("decision", "modality relied on most", default_palette(len(modalities)), "MODALITY", modalities),
        Layer("agreement", tuple(modalities), tags={"AGREEMENT": overlap}),
        Layer(MONTH, tuple(months_of(dates or {})), tags={"RELIANCE": "share of reliance on what was seen then"}),
        Layer(DAY, ("day of greatest reliance",), "int32", tags={"DAY": "year, month and day, 20190302; 0 is none"}),
    ]
    wanted = [layer for layer in layers if layer.name in extras]
    return [_indices(_LABELS, "class", palette, "CLASS", names), *wanted]


def _indices(name: str, band: str, palette: Sequence[Sequence[int]], tag: str, names: Sequence[str]) -> Layer:
    """A layer of numbers that stand for something."""
    colors = tuple(tuple(int(part) for part in color) for color in palette)
    return Layer(name, (band,), "uint8", colors, {f"{tag}_{index}": text for index, text in enumerate(names)})


@dataclass(frozen=True)
class OutputPlan:
    """Which files a run writes."""

    # What it holds -> file. Of a GeoTIFF its layers; of a PNG "labels", the map itself, "color", "legend" and
    # "robustness_<modality>". What `side_files` names lies beside them.
    files: dict[str, Path]
    other_extras: dict[str, Path]  # the same, of what runs with other options write beside the map

    @property
    def label_map(self) -> Path:
        """The file that was asked for."""
        return self.files[_LABELS]


def plan_outputs(
    out: str | os.PathLike, layers: Sequence[Layer], inputs: Sequence[Path], modalities: Sequence[str]
) -> OutputPlan:
    """Name the output files, beside the label map `out`, before any work is done. `modalities` are all of the model.

    Raises ValueError if the name has another suffix than those known, a PNG is asked to hold what it can't, or a file
    would replace one of `inputs`, a folder, or, beside the map itself, something that `publish` did not write.
    """
    out = Path(out)
    if out.suffix.lower() not in PNG_SUFFIXES + TIFF_SUFFIXES:
        raise ValueError(f"The output is {str(out)!r}; expected a name that ends in .png, .tif or .tiff.")
    names = [layer.name for layer in layers[1:]]
    if out.suffix.lower() in TIFF_SUFFIXES:
        require_rasterio(out)
        every, suffix = EXTRAS, out.suffix
    else:
        unfit = [name for name in names if name != "robustness"]
        if unfit:
            raise ValueError(f"A PNG holds no {unfit[0]!r}; name the output .tif.")
        names = ["color", "legend", *(f"robustness_{band}" for layer in layers[1:] for band in layer.bands)]
        every, suffix = [f"robustness_{name}" for name in modalities], ".png"
    files = {_LABELS: out} | {name: out.with_name(f"{out.stem}_{name}{suffix}") for name in names}
    others = {name: out.with_name(f"{out.stem}_{name}{suffix}") for name in every if name not in names}
    for name, path in files.items():
        check_replaceable(path, inputs)
        if name != _LABELS and path.exists() and _run_of(path, name) is None:
            raise ValueError(
                f"The output {path}, beside {out.name}, would replace a file that `sgma-hf predict` did not write. "
                "Move it away, or choose another name for the map."
            )
    taken = {path.resolve() for path in inputs}
    return OutputPlan(files, {name: path for name, path in others.items() if path.resolve() not in taken})


def _run_of(path: Path, name: str) -> str | None:
    """The run that wrote this file, see `StripStore.run`; None if it is none that `publish` wrote to hold `name`."""
    try:
        if path.suffix.lower() in PNG_SUFFIXES:
            with open_picture(path) as image:
                tags = image.info
        else:
            with open_dataset(path) as file:
                tags = file.tags()
    except ValueError:
        return None
    return tags.get(RUN_TAG) if tags.get(LAYER_TAG) == name else None


def read_classes(path: str | Path) -> tuple[list[str], list[tuple[int, ...]]]:
    """Names of a map's classes, and red, green and blue in 0..255 of each; ValueError if it does not name them."""
    with open_dataset(path) as file:
        tags = file.tags(1)
        colors = file.colormap(1) if file.colorinterp[0].name == "palette" else {}
        if file.driver == "PNG":
            tags, colors = _read_picture(Path(path), file.read(1))
    names = [tags[f"CLASS_{index}"] for index in range(256) if f"CLASS_{index}" in tags]
    if not names:
        raise ValueError(f"{path} does not name its classes (tags CLASS_0, CLASS_1, ...); a map of `predict` does.")
    defaults = enumerate(class_palette(names))
    return names, [tuple(colors.get(index, color)[:3]) for index, color in defaults]


def _read_picture(path: Path, label_map: np.ndarray) -> tuple[dict[str, str], dict[int, tuple[int, ...]]]:
    """Texts of a map that is a PNG, and the colours of the classes that are seen in the picture beside it."""
    with open_picture(path) as image:
        tags = dict(image.info)
    painted = path.with_name(f"{path.stem}_color.png")
    if not painted.is_file() or _run_of(painted, "color") != tags.get(RUN_TAG):
        return tags, {}
    with open_picture(painted) as image:
        pixels = np.asarray(image).reshape(label_map.size, -1)
    values, first = np.unique(label_map, return_index=True)
    return tags, dict(zip(values.tolist(), map(tuple, pixels[first, :3].tolist()), strict=True))


def plan_colors(path: Path, classes: str | os.PathLike) -> tuple[str, Layer]:
    """The run that wrote a map, and its labels in other colours; raises what `recolor_map` does."""
    run = _run_of(path, _LABELS)
    if run is None:
        raise ValueError(f"{path} is no map that `sgma-hf predict` wrote.")
    names, colors = read_classes(path)
    return run, _indices(_LABELS, "class", recolor(names, colors, classes), "CLASS", names)


def recolor_map(path: Path, classes: str | os.PathLike) -> list[Path]:
    """Give a map, and what lies beside it to show it, other colours; returns its files.

    Args:
        path: Of a map that `publish` wrote.
        classes: Colours by class, see `ClassMap.load`.

    Raises:
        ValueError: If it is no such map, or `classes` has no colours or knows another class.
    """
    run, labels = plan_colors(path, classes)
    info = read_info(path, palette_as_indices=True)
    with open_dataset(path) as file:
        label_map = file.read(1)
    beside = path.with_name(f"{path.name}.colours")  # a run that died may have left its strips under the map's name
    store = StripStore(beside, info.size[1], [labels], {}, in_memory=True)
    store.labels, store.run = label_map, run
    plan = plan_outputs(path, [labels], [], [])
    try:
        store.prepare(resume=False)
        publish(store, plan, Grid(info.size, info.georeference))
    finally:
        store.remove()
    return list(plan.files.values())


def extras_beside(path: str | Path) -> dict[str, Path]:
    """The rasters beside a map that belong to the same run, by their names in `EXTRAS`."""
    path = Path(path)
    run = _run_of(path, _LABELS)
    beside = {name: path.with_name(f"{path.stem}_{name}{path.suffix}") for name in EXTRAS}
    return {name: file for name, file in beside.items() if run and file.is_file() and _run_of(file, name) == run}


def publish(store: StripStore, plan: OutputPlan, grid: Grid) -> list[Path]:
    """Make the files of a run from its strips, and give them their names when all of them are written and checked.

    If something cannot be written, nothing has its final name. Extras of another map of that name, which would pass
    for those of the new one, are removed at the end, and returned. Files that this function did not write are never
    touched.
    """
    staged = {name: store.folder / path.name for name, path in plan.files.items()}
    if plan.label_map.suffix.lower() in TIFF_SUFFIXES:
        for layer in store.layers:
            _write_cog(store, layer, staged[layer.name], grid)
    else:
        _write_pictures(store, staged)
    layers = {layer.name: layer for layer in store.layers}
    # The label map last: where it is, the others are.
    for name in sorted(staged, key=lambda name: name == _LABELS):
        _put_beside(side_texts(layers.get(name), staged[name], grid) if name != "legend" else {}, plan.files[name])
        os.replace(staged[name], plan.files[name])
    there = {name: path for name, path in plan.other_extras.items() if path.is_file()}
    stale = [path for name, path in there.items() if _run_of(path, name) not in (None, store.run)]
    for path in stale:
        _put_beside({}, path)
        path.unlink()
    return stale


def _put_beside(texts: Mapping[Path, str], path: Path) -> None:
    """Write what lies beside a file, and remove what an earlier one has there, but for a style that somebody drew."""
    written = {staged.suffix: text for staged, text in texts.items()}
    for side in side_files(path):
        if is_drawn_by_hand(side):
            continue
        if side.suffix in written:
            write_text(side, written[side.suffix])
        else:
            side.unlink(missing_ok=True)


def _write_pictures(store: StripStore, staged: Mapping[str, Path]) -> None:
    def save(name: str, picture: Image.Image) -> None:
        tags = PngInfo()
        own = labels.tags if name == _LABELS else {}
        for tag, text in {LAYER_TAG: name, RUN_TAG: store.run, **store.tags, **own}.items():
            tags.add_text(tag, text)
        picture.save(staged[name], "PNG", pnginfo=tags)

    labels = store.layers[0]
    label_map = np.concatenate([values[0] for _, values in store.rows(labels)])
    save(_LABELS, Image.fromarray(label_map))
    alpha = np.where(label_map == IGNORE_INDEX, 0, 255).astype(np.uint8)
    save("color", Image.fromarray(np.dstack([colorize(label_map, labels.palette), alpha])))
    shown = [index for index in np.unique(label_map).tolist() if index != IGNORE_INDEX]
    names = list(labels.tags.values())
    save("legend", draw_legend([names[index] for index in shown], [labels.palette[index] for index in shown]))
    for layer in store.layers[1:]:
        for band, name in enumerate(layer.bands):
            shares = np.concatenate([values[band] for _, values in store.rows(layer)])
            grey = np.rint(255 * np.clip(np.nan_to_num(shares), 0, 1)).astype(np.uint8)
            save(f"robustness_{name}", Image.fromarray(grey))


def _write_cog(store: StripStore, layer: Layer, path: Path, grid: Grid) -> None:
    """Write one layer as Cloud Optimized GeoTIFF, by way of a plain one, from which GDAL makes the overviews."""
    rasterio = require_rasterio(path)
    nodata = NODATA[layer.dtype]
    options: dict[str, Any] = {"nodata": nodata, "compress": "deflate", "zlevel": 1, "bigtiff": "if_safer"}
    if grid.georeference is not None:
        options |= {"transform": grid.georeference.affine, "crs": grid.georeference.crs}
    shape = {"height": grid.size[0], "width": grid.size[1], "count": len(layer.bands), "dtype": layer.dtype}
    # In memory where the strips are.
    plain = str(path.with_name(f"{path.name}.plain.tif"))
    plain = plain if store.held is None else f"/vsimem/{plain}"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
            with rasterio.open(plain, "w", driver="GTiff", interleave="band", **shape, **options) as file:
                if layer.palette:
                    colors = {index: (*color, 255) for index, color in enumerate(layer.palette)}
                    file.write_colormap(1, colors | {IGNORE_INDEX: (0, 0, 0, 0)})
                for band, name in enumerate(layer.bands, start=1):
                    file.set_band_description(band, name)
                file.update_tags(**{LAYER_TAG: layer.name, RUN_TAG: store.run, **store.tags})
                file.update_tags(1, **layer.tags)
                for top, values in store.rows(layer):
                    file.write(values, window=rasterio.windows.Window(0, top, grid.size[1], values.shape[1]))
            rasterio.shutil.copy(
                plain,
                path,
                driver="COG",
                compress="DEFLATE",
                predictor="NO" if layer.dtype == "uint8" else "YES",
                blocksize=COG_BLOCK,
                # A mean of class ids is no class.
                overview_resampling="AVERAGE" if layer.dtype == "float32" else "NEAREST",
                bigtiff="IF_SAFER",
                statistics="YES",
                num_threads="ALL_CPUS" if store.held is None else "1",  # threads cost more than a small map
            )
            _check_written(rasterio, plain, path)
            rasterio.shutil.delete(plain)
    except rasterio.errors.RasterioError as error:
        raise OSError(f"Cannot write {path.name}: {error.__cause__ or error}. Is the disk full?") from error


def _check_written(rasterio: Any, plain: str, path: Path) -> None:
    """Read all of a file again: GDAL does not report everything that goes wrong when it closes one."""
    with rasterio.open(plain) as expected, rasterio.open(path) as file:
        for band in range(1, file.count + 1):
            if expected.checksum(band) != file.checksum(band):
                raise OSError(f"{path.name} was not written completely. Is the disk full?")
