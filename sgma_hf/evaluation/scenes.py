"""Scores of a map, or of a model on every combination of its modalities, on a labelled scene of any size and grid."""

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from transformers.utils import logging

from ..data.codec import whole_numbers
from ..model.fusion_sgma import FUSIONS
from ..model.limits_sgma import IGNORE_INDEX
from ..prediction.maps import predict_raster
from ..rasters.bands import BandSelection
from ..rasters.files import read_info
from ..rasters.scene import RasterInput, RasterScene
from .combinations import modality_combinations, summarize_combinations
from .metrics import ScoredClasses, check_class_ids, confusion_matrix, segmentation_scores


logger = logging.get_logger(__name__)

ROWS_AT_ONCE = 512


def score_map(
    map_path: str | os.PathLike,
    label: str | os.PathLike,
    num_labels: int,
    *,
    robustness: str | os.PathLike | None = None,
    scored_classes: ScoredClasses = "union",
) -> dict[str, Any]:
    """Compare a map with a raster of labels, which is picked by nearest neighbour where its grid is another one.

    Both hold class ids from 0 to `num_labels` - 1, 255 for none, in whole numbers of any dtype; a palette's indices
    are ids, and of several bands one is named, as in `label.tif:1`. Labels that are 255, nodata or not there do not
    count, and neither do pixels where the map is nodata; of those it is said how many of the labelled ones they are.

    Returns the scores of `segmentation_scores`, with `uncovered_share`, None if nothing is labelled. With the map's
    raster of `robustness`, a band per modality, `robustness_per_class` is there as well: mean share of reliance on
    each band over the pixels that are labelled as the class, lists (num_labels, bands); None for classes that do not
    occur.
    """
    channels = {"map": 1, "truth": 1}
    rasters: dict[str, Any] = {"map": _band_of_ids(map_path), "truth": _band_of_ids(label)}
    if robustness is not None:
        channels["shares"] = read_info(robustness).channels
        rasters["shares"] = RasterInput(Path(robustness))
    nodata = {"map": [IGNORE_INDEX], "truth": [IGNORE_INDEX]}
    confusion, labelled = np.zeros((num_labels, num_labels), dtype=np.int64), 0
    sums, pixels = np.zeros((num_labels, channels.get("shares", 0))), np.zeros(num_labels, dtype=np.int64)
    with RasterScene(rasters, channels=channels, nodata=nodata, resampling="nearest") as scene:
        height, width = scene.grid.size
        for top in range(0, height, ROWS_AT_ONCE):
            images = scene.read(top, 0, min(ROWS_AT_ONCE, height - top), width)
            if "truth" not in images:
                continue
            truth, is_labelled = _class_ids(images["truth"], num_labels, label)
            labelled += int(is_labelled.sum())
            if "map" not in images:
                continue
            predicted, is_mapped = _class_ids(images["map"], num_labels, map_path)
            counted = is_labelled & is_mapped
            confusion += confusion_matrix(predicted[counted], truth[counted], num_labels)
            if "shares" in images:
                counted &= ~images["shares"].mask.any(axis=2)
                ids = truth[counted]
                pixels += np.bincount(ids, minlength=num_labels)
                for band, shares in enumerate(np.moveaxis(images["shares"].data, -1, 0)):
                    sums[:, band] += np.bincount(ids, weights=shares[counted], minlength=num_labels)
    scores = segmentation_scores(confusion, scored_classes=scored_classes)
    scores["uncovered_share"] = 1 - scores["pixels"] / labelled if labelled else None
    if robustness is not None:
        means = sums / np.maximum(pixels, 1)[:, None]
        scores["robustness_per_class"] = [row.tolist() if n else None for row, n in zip(means, pixels, strict=True)]
    return scores


def _band_of_ids(text: str | os.PathLike) -> RasterInput:
    """The band that was chosen behind a colon, or the only one; a palette's indices instead of its colours."""
    source = RasterInput.parse(text)
    if source.path.suffix.lower() == ".npy":  # `RasterScene` refuses other shapes
        return source
    count = read_info(source.path, bands=source.bands, palette_as_indices=True).channels
    if count != 1:  # the first band of a label in colours would pass for class ids
        raise ValueError(
            f"{text} has {count} bands; expected one of class ids. Choose it, as in {source.path}:1, if one holds "
            "them. Labels in colours are turned into ids by `sgma-hf convert-rasters --classes`: evaluate on the "
            "result by `--dataset`."
        )
    return source if source.bands.values else replace(source, bands=BandSelection((1,)))


def _class_ids(image: np.ma.MaskedArray, num_labels: int, path: str | os.PathLike) -> tuple[np.ndarray, np.ndarray]:
    """Class ids, integer (height, width), and where there are any; ids of other classes and fractions are refused."""
    ids = whole_numbers(image.filled(IGNORE_INDEX)[..., 0], path)
    check_class_ids(ids, num_labels, f"{path}")
    return ids, ~image.mask[..., 0]


def evaluate_scene(
    model: Any,
    processor: Any,
    rasters: Mapping[str, Any],
    label: str | os.PathLike,
    *,
    combinations: Sequence[Sequence[str]] | None = None,
    scored_classes: ScoredClasses = "union",
    **options: Any,
) -> dict[str, Any]:
    """Score a model on a labelled scene, on every combination of the modalities that the scene has.

    Each combination is predicted by `predict_raster`, as a user would who has no more, and its map is scored. The grid
    is that of the label.

    Args:
        model: An SGMA model with a segmentation head, in eval mode.
        processor: Its image processor.
        rasters: Files by modality, as for `predict_raster`.
        label: Raster of class ids as for `score_map`, 255 for none; its nodata value does not count either.
        combinations: Names to evaluate together; None takes every non-empty combination of what is there.
        scored_classes: Which classes count in the means, see `segmentation_scores`.
        options: Passed on to `predict_raster`: `tile_size`, `stride`, `batch_size`, `resampling`.

    Returns:
        A dictionary as that of `evaluate_modality_combinations`, the scene being its one row, and
        `robustness_per_class`, class -> modality -> mean share of reliance in the prediction from all modalities;
        None if the model has no robustness or there is one modality only.

    Raises:
        ValueError: If a raster or the label cannot be used.
    """
    _band_of_ids(label)  # refused before anything is computed
    config = model.config
    given = [name for name in config.modalities if rasters.get(name) is not None]
    combinations = modality_combinations(given) if combinations is None else combinations
    results: dict[str, dict[str, Any]] = {}
    robustness = None
    with tempfile.TemporaryDirectory(prefix="sgma_hf_") as folder:
        for names in combinations:
            complete = set(names) == set(given) and len(given) > 1 and FUSIONS[config.fusion].has_robustness
            files = predict_raster(
                model,
                processor,
                {name: rasters[name] for name in names},
                Path(folder) / "map.tif",
                like=label,
                extras=["robustness"] if complete else [],
                **options,
            ).files
            shares = files.get("robustness")
            scores = score_map(
                files["labels"], label, config.num_labels, robustness=shares, scored_classes=scored_classes
            )
            found = scores.pop("robustness_per_class", None)
            if found is not None:
                rows = zip(config.class_names, found, strict=True)
                robustness = {name: row and dict(zip(given, row, strict=True)) for name, row in rows}
            results["+".join(names)] = scores | {"rows": 1, "rows_left_out": 0, "rows_complete": 1}
            logger.info(f"{'+'.join(names)}: mIoU {scores['miou']}")
    return {
        "modalities": list(config.modalities),
        "class_names": config.class_names,
        "missing": "absent",
        "window_size": None,
        "rows": 1,
        "windows": 1,
        "rows_without_label": 0,
        "rows_without_modality": 0,
        "rows_per_modality": {name: int(name in given) for name in config.modalities},
        "scored_classes": scored_classes,
        **summarize_combinations(results),
        "robustness_per_class": robustness,
    }
