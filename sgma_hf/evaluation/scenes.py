"""Scores of a map, or of a model on every combination of its modalities, on a labelled scene of any size and grid."""

import contextlib
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from transformers.utils import logging

from ..data.class_maps import ClassMap, classes_flag, label_codes, suggest_classes
from ..data.codec import whole_numbers
from ..data.windows import blocks
from ..model.fusion_sgma import find_fusion
from ..model.limits_sgma import DATES_SUFFIX, IGNORE_INDEX
from ..prediction.maps import predict_raster
from ..rasters.files import read_info
from ..rasters.grids import Grid
from ..rasters.opening import is_npy
from ..rasters.polygons import PolygonLabels
from ..rasters.scene import RasterInput, RasterScene
from .combinations import chosen_combinations, summarize_combinations
from .metrics import ScoredClasses, check_class_ids, check_scored_classes, confusion_matrix, segmentation_scores


logger = logging.get_logger(__name__)

ROWS_AT_ONCE = 512


@dataclass(frozen=True)
class TruthRaster:
    """A raster of labels for `RasterScene` to read, and what its values mean; see `score_map`."""

    label: str | os.PathLike
    source: RasterInput
    nodata: int | None
    classes: ClassMap | None
    num_labels: int

    @classmethod
    def open(cls, label: str | os.PathLike, num_labels: int, classes: ClassMap | None = None) -> "TruthRaster":
        """Find its one band, or its three of colours; ValueError if there are others."""
        by_colour = classes is not None and classes.by_colour
        source, nodata = (RasterInput.parse(label), None) if by_colour else _band_of_ids(label)
        return cls(label, source, nodata, classes, num_labels)

    @property
    def channels(self) -> int:
        """Bands that are read."""
        return 3 if self.classes is not None and self.classes.by_colour else 1

    @property
    def is_undeclared(self) -> bool:
        """Whether there may be a class for what the file declares as nodata."""
        return self.classes is not None and (self.classes.by_colour or self.nodata is not None)

    def ids(self, image: np.ma.MaskedArray) -> tuple[np.ndarray, np.ndarray]:
        """Class ids of what was read, int (height, width), `num_labels` where it is 255; and where there is any."""
        codes = label_codes(whole_numbers(image.filled(IGNORE_INDEX), self.label))
        is_there, classes = ~image.mask[..., 0], self.classes
        if classes is not None:
            for value in np.unique(codes[is_there]).tolist():
                if not classes.is_known(value, self.nodata):
                    raise ValueError(
                        f"{self.label} holds {classes.show(value)}, which is none of the classes {classes.names}. Say "
                        'what it is by `--classes`, with "ignore": true if it means that there is no label.'
                    )
            codes = classes.apply(codes, is_there, self.nodata).astype(np.int64)
        try:
            check_class_ids(codes[is_there], self.num_labels, f"{self.label}")
        except ValueError as error:
            advice = classes_flag(suggest_classes(np.unique(codes[is_there]).tolist()))
            raise ValueError(f"{error} Or say which values are which class: {advice}") from error
        return np.where(codes == IGNORE_INDEX, self.num_labels, codes), is_there


def score_map(
    map_path: str | os.PathLike,
    label: str | os.PathLike | PolygonLabels,
    num_labels: int,
    *,
    robustness: str | os.PathLike | None = None,
    scored_classes: ScoredClasses = "union",
    classes: ClassMap | None = None,
    class_names: Sequence[str] = (),
) -> dict[str, Any]:
    """Compare a map with a raster of labels, which is picked by nearest neighbour where its grid is another one.

    Both hold class ids from 0 to `num_labels` - 1, 255 for none, in whole numbers of any dtype; a palette's indices
    are ids, and of several bands one is named, as in `label.tif:1`. Labels that are 255, nodata or not there do not
    count, and neither do pixels where the map is nodata; of those it is said how many of the labelled ones they are.
    `classes` says which values, or colours, of the label are which class, as it did in training. Without it, and with
    two classes, a label of 0 and 255 alone is a mask: 255 is class 1, with a warning. Of polygons, the attribute holds
    ids, names of classes, or what `classes` says.

    `class_names` are there where `scored_classes` is names. Returns the scores of `segmentation_scores`, with the
    matrix, `confusion`; `uncovered_share`, None if nothing is labelled, and
    `unlabelled_share`, of all pixels of the map. With the map's raster of `robustness`, a band per modality,
    `robustness_per_class` is there as well: mean share of reliance on each band over the pixels that are labelled as
    the class, lists (num_labels, bands); None for classes that do not occur.
    """
    if isinstance(label, PolygonLabels):
        info = read_info(_band_of_ids(map_path)[0].path)
        classes = classes or ClassMap.of_record(None, class_names or [str(index) for index in range(num_labels)])
        with _burnt(label, Grid(info.size, info.georeference), classes) as path:
            how = {"robustness": robustness, "scored_classes": scored_classes, "class_names": class_names}
            return score_map(map_path, path, num_labels, classes=classes, **how)
    true = TruthRaster.open(label, num_labels, classes)
    channels = {"map": 1, "truth": true.channels}
    rasters: dict[str, Any] = {"map": _band_of_ids(map_path)[0], "truth": true.source}
    if robustness is not None:
        channels["shares"] = read_info(robustness).channels
        rasters["shares"] = RasterInput(Path(robustness))
    # One row of labels more, the last: those that are 255.
    counts = {
        "confusion": np.zeros((num_labels + 1, num_labels), dtype=np.int64),
        "labelled": np.zeros(num_labels + 1, dtype=np.int64),
        "pixels": np.zeros(num_labels + 1, dtype=np.int64),
        "shares": np.zeros((num_labels + 1, channels.get("shares", 0))),
    }
    options: dict[str, Any] = {"channels": channels, "nodata": {"map": [IGNORE_INDEX]}, "resampling": "nearest"}
    with RasterScene(rasters, undeclared=["truth"] if true.is_undeclared else [], **options) as scene:
        height, width = scene.grid.size
        for strip in blocks(scene.grid.size, ROWS_AT_ONCE):
            images = scene.read(*strip)
            if "truth" not in images:
                continue
            truth, is_there = true.ids(images["truth"])
            counts["labelled"] += np.bincount(truth[is_there], minlength=num_labels + 1)
            if "map" in images:
                predicted, is_mapped = _class_ids(images["map"], num_labels, map_path)
                _count(counts, truth, predicted, is_there & is_mapped, images.get("shares"))
    if classes is None:
        _take_mask(counts, label)
    confusion, labelled = counts["confusion"][:num_labels], int(counts["labelled"][:num_labels].sum())
    scores = segmentation_scores(confusion, scored_classes=scored_classes, class_names=class_names)
    scores["confusion"] = confusion.tolist()
    scores["uncovered_share"] = 1 - scores["pixels"] / labelled if labelled else None
    scores["unlabelled_share"] = (height * width - labelled) / (height * width)
    if robustness is not None:
        means = counts["shares"] / np.maximum(counts["pixels"], 1)[:, None]
        rows = zip(means[:num_labels], counts["pixels"][:num_labels], strict=True)
        scores["robustness_per_class"] = [row.tolist() if n else None for row, n in rows]
    return scores


@contextlib.contextmanager
def _burnt(label: PolygonLabels, grid: Grid, classes: ClassMap) -> Iterator[Path]:
    """The raster of labels that polygons make on a grid."""
    with tempfile.TemporaryDirectory(prefix="sgma_hf_") as folder:
        path = Path(folder) / "label.tif"
        label.burn(grid, path, classes)
        yield path


def _grid_of(rasters: Mapping[str, Any], processor: Any) -> Grid:
    channels = dict(zip(processor.modalities, processor.modality_channels, strict=True))
    with RasterScene(rasters, channels=channels) as scene:
        return scene.grid


def _count(
    counts: dict[str, np.ndarray],
    truth: np.ndarray,
    predicted: np.ndarray,
    counted: np.ndarray,
    shares: np.ma.MaskedArray | None,
) -> None:
    """Add the pixels of a window, integers (height, width), where `counted`."""
    num_labels = counts["confusion"].shape[1]
    counts["confusion"] += confusion_matrix(predicted[counted], truth[counted], num_labels + 1)[:, :num_labels]
    if shares is not None:
        counted = counted & ~shares.mask.any(axis=2)
        ids = truth[counted]
        counts["pixels"] += np.bincount(ids, minlength=num_labels + 1)
        for band, values in enumerate(np.moveaxis(shares.data, -1, 0)):
            counts["shares"][:, band] += np.bincount(ids, weights=values[counted], minlength=num_labels + 1)


def _take_mask(counts: dict[str, np.ndarray], label: str | os.PathLike) -> None:
    """Count 255 as class 1 where there are two classes and the label holds nothing but 0 and 255."""
    labelled = counts["labelled"]
    if len(labelled) == 3 and labelled[0] and labelled[2] and not labelled[1]:
        logger.warning(
            f"{label} holds 0 and 255 alone, as a mask does: 255 counts as class 1. If it means that there is no "
            'label, name the classes: --classes \'["NAME OF 0", "NAME OF 1"]\'.'
        )
        for array in counts.values():
            array[1] = array[2]


def _band_of_ids(text: str | os.PathLike) -> tuple[RasterInput, int | None]:
    """The band that was chosen behind a colon, or the only one, and its nodata; of a palette the indices."""
    source = RasterInput.parse(text)
    if is_npy(source.path):  # `RasterScene` refuses other shapes
        return source, None
    info = read_info(source.path, bands=source.bands, palette_as_indices=True)
    if info.channels != 1:  # the first band of a label in colours would pass for class ids
        raise ValueError(
            f"{text} has {info.channels} bands; expected one of class ids. Choose it, as in {source.path}:1, if one "
            "holds them. Of a label in colours, say by `--classes` which colour is which class; `sgma-hf "
            "convert-rasters --classes` makes a data set of such labels."
        )
    return replace(source, bands=replace(source.bands, values=source.bands.values or (1,))), info.nodata_label


def _class_ids(image: np.ma.MaskedArray, num_labels: int, path: str | os.PathLike) -> tuple[np.ndarray, np.ndarray]:
    """Class ids, integer (height, width), and where there are any; ids of other classes and fractions are refused."""
    ids = whole_numbers(image.filled(IGNORE_INDEX)[..., 0], path)
    check_class_ids(ids, num_labels, f"{path}")
    return ids, ~image.mask[..., 0]


def evaluate_scene(
    model: Any,
    processor: Any,
    rasters: Mapping[str, Any],
    label: str | os.PathLike | PolygonLabels,
    *,
    combinations: Sequence[Sequence[str]] | None = None,
    scored_classes: ScoredClasses = "union",
    classes: ClassMap | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Score a model on a labelled scene, on every combination of the modalities that the scene has.

    Each combination is predicted by `predict_raster`, as a user would who has no more, and its map is scored. The grid
    is that of the label.

    Args:
        model: An SGMA model with a segmentation head, in eval mode.
        processor: Its image processor.
        rasters: Files by modality, and dates of series, as for `predict_raster`.
        label: Raster of class ids as for `score_map`, 255 for none; its nodata value does not count either. Or
            polygons; then the grid is that of the rasters.
        combinations: Names to evaluate together; None takes every non-empty combination of what is there.
        scored_classes: Which classes count in the means, see `segmentation_scores`.
        classes: Which values of the label are which class, see `score_map`; None takes them as ids.
        options: Passed on to `predict_raster`: `tile_size`, `stride`, `tta`, `batch_size`, `resolution`, `resampling`,
            `allow_other_scale`.

    Returns:
        A dictionary as that of `evaluate_modality_combinations`, the scene being its one row, and
        `robustness_per_class`, class -> modality -> mean share of reliance in the prediction from all modalities;
        None if the model has no robustness or there is one modality only; `unlabelled_share`, of the label's pixels.

    Raises:
        ValueError: If a raster or the label cannot be used, or a combination has a modality that is not there.
    """
    config = model.config
    given = [name for name in config.modalities if rasters.get(name) is not None]
    if not given:
        raise ValueError(f"The scene has none of the modalities {list(config.modalities)}; give at least one raster.")
    combinations = chosen_combinations(combinations, given)
    if isinstance(label, PolygonLabels):
        classes = classes or ClassMap.of_record(None, config.class_names)
        with _burnt(label, _grid_of(rasters, processor), classes) as path:
            how = {"combinations": combinations, "scored_classes": scored_classes, "classes": classes}
            return evaluate_scene(model, processor, rasters, path, **how, **options)
    if classes is None or not classes.by_colour:
        _band_of_ids(label)  # refused before anything is computed
    check_scored_classes(scored_classes, config.class_names)
    scored = {"scored_classes": scored_classes, "class_names": config.class_names}
    results: dict[str, dict[str, Any]] = {}
    robustness = None
    with tempfile.TemporaryDirectory(prefix="sgma_hf_") as folder:
        # All of them together first: what is refused of any raster is refused before anything is computed.
        for names in sorted(combinations, key=len, reverse=True):
            complete = set(names) == set(given) and len(given) > 1 and find_fusion(config).has_robustness
            how = {"like": label, "extras": ["robustness"] if complete else [], **options}
            entries = [*names, *(name + DATES_SUFFIX for name in names if name + DATES_SUFFIX in rasters)]
            some = {name: rasters[name] for name in entries}
            files = predict_raster(model, processor, some, Path(folder) / "map.tif", **how).files
            counting = {"robustness": files.get("robustness"), "classes": classes, **scored}
            scores = score_map(files["labels"], label, config.num_labels, **counting)
            found, unlabelled = scores.pop("robustness_per_class", None), scores.pop("unlabelled_share")
            if found is not None:
                rows = zip(config.class_names, found, strict=True)
                robustness = {name: row and dict(zip(given, row, strict=True)) for name, row in rows}
            results["+".join(names)] = scores | {"rows": 1, "rows_left_out": 0, "rows_complete": 1}
            logger.info(f"{'+'.join(names)}: mIoU {scores['miou']}")
    return {
        "modalities": list(config.modalities),
        **scored,
        **{"missing": "absent", "window_size": None},
        **{"rows": 1, "windows": 1, "rows_without_label": 0, "rows_without_modality": 0},
        "rows_per_modality": {name: int(name in given) for name in config.modalities},
        **summarize_combinations({"+".join(names): results["+".join(names)] for names in combinations}),
        "robustness_per_class": robustness,
        "unlabelled_share": unlabelled,
    }
