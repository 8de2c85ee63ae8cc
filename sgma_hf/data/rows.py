"""The one row format of all datasets: an id, one nullable column per modality, a nullable label.

A row is `{"id": str, <modality>: value | None, ..., "label": value | None}`; None means that the sensor did not see
this place (or that nobody labelled it). `codec` says how a value holds a raster.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
from datasets import Dataset, Image, Value, get_dataset_split_names, load_dataset
from datasets.config import HF_CACHE_HOME, HF_DATASETS_CACHE
from huggingface_hub.constants import HF_HUB_CACHE
from transformers.utils import logging

from .codec import decode_raster
from .command_line import check_folder_or_id, did_you_mean


logger = logging.get_logger(__name__)

SPLIT_ALIASES = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}


def load_rows(directory_or_id: str | os.PathLike, split: str) -> Dataset:
    """Load one split with undecoded image columns, so that decoding (`decode_row`) can name a broken row.

    Args:
        directory_or_id: Folder written by a converter, or a dataset on the Hub.
        split: A split's name; `valid`, `val` and the like find `validation`.

    Returns:
        The rows; nulls are None.

    Raises:
        FileNotFoundError: If there is no such folder or dataset.
        ValueError: If there is no such split (the message lists those there are), it is empty, or a cell names a file
            outside the dataset.
    """
    source = str(directory_or_id)
    check_folder_or_id(source, "data set")
    names = get_dataset_split_names(source)
    chosen = split if split in names else SPLIT_ALIASES.get(split, split)
    if chosen not in names:
        raise ValueError(f"Dataset {source!r} has no split {split!r}. Splits: {names}.")
    rows = load_dataset(source, split=chosen)
    if len(rows) == 0:
        raise ValueError(f"Split {chosen!r} of dataset {source!r} has no rows.")
    for name, feature in rows.features.items():
        if isinstance(feature, Image):
            rows = rows.cast_column(name, Image(mode=feature.mode, decode=False))
            _refuse_foreign_files(rows, name, source)
    return rows


def _refuse_foreign_files(rows: Dataset, column: str, source: str) -> None:
    """Refuse cells that name a file instead of holding it, unless it belongs to the dataset.

    A Parquet file of a stranger could name any file of this machine.
    """
    allowed = [Path(folder).resolve() for folder in (source, HF_CACHE_HOME, HF_DATASETS_CACHE, HF_HUB_CACHE)]
    for batch in rows.select_columns([column]).with_format("arrow").iter(batch_size=1000):
        cells = batch[column].combine_chunks()
        only_path = pc.and_(pc.is_null(pc.struct_field(cells, "bytes")), pc.is_valid(pc.struct_field(cells, "path")))
        for path in pc.struct_field(cells, "path").filter(only_path).to_pylist():
            if not any(Path(path).resolve().is_relative_to(folder) for folder in allowed):
                raise ValueError(
                    f"Column {column!r} of dataset {source!r} names the file {path!r}, which is no part of it. Rows "
                    "have to hold their rasters: write the dataset again, or do not trust it."
                )


def labelled_rows(rows: Dataset) -> Dataset:
    """Leave out the rows of `load_rows` whose label is None, without decoding any."""
    labelled = present_modalities(rows, ["label"])[:, 0]
    return rows if labelled.all() else rows.select(np.flatnonzero(labelled))


def with_label_column(rows: Dataset, name: str) -> Dataset:
    """Take another column as the label: class ids of the same classes, as `scoring_label`."""
    if name == "label":
        return rows
    if name not in rows.column_names:
        hint = did_you_mean(name, rows.column_names)
        raise ValueError(f"The rows have no column {name!r} of labels{hint}. Their columns are {rows.column_names}.")
    others = [column for column in rows.column_names if column not in ("label", name)]
    return rows.select_columns([*others, name]).rename_column(name, "label")


def with_modality_columns(rows: Dataset, modalities: Sequence[str]) -> Dataset:
    """Add a column of nulls for each modality that a data set has no column of: no row of it has that sensor.

    A misspelt column must not look like a missing sensor. So it is refused where some other column holds rasters, and
    what is added is named in a warning.
    """
    missing = [name for name in modalities if name not in rows.column_names]
    if not missing:
        return rows
    known = ("id", "label", "scoring_label", "preview", *modalities)
    others = [name for name, feature in rows.features.items() if name not in known and _holds_rasters(feature)]
    if others or len(missing) == len(modalities):
        raise ValueError(
            f"The data set has no columns {missing} of the modalities {list(modalities)}, and has {others}. Name the "
            "columns as the modalities; one that is none of them has to be left out of the data set before the "
            "modalities without a column can count as missing."
        )
    logger.warning_once(
        f"The data set has no columns {missing}: they count as missing in every row. Its columns are "
        f"{rows.column_names}; if one of them is meant, rename it."
    )
    for name in missing:
        rows = rows.add_column(name, [None] * len(rows))
    return rows


def _holds_rasters(feature: Any) -> bool:
    """Whether a column may hold rasters: images, bytes or nested values, but no plain text and no numbers."""
    return not isinstance(feature, Value) or feature.dtype in ("binary", "large_binary")


def row_ids(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The id of each row, its number as text where it has none."""
    if isinstance(rows, Dataset) and "id" in rows.column_names:
        return list(rows["id"])
    return [row.get("id", str(index)) for index, row in enumerate(rows)]


def present_modalities(rows: Sequence[Mapping[str, Any]], modalities: Sequence[str]) -> np.ndarray:
    """Which modalities, or other columns, each row has, bool (num_rows, num_modalities), without decoding any.

    Rows are those of `load_rows`, or a sequence of mappings of that form.
    """
    if not isinstance(rows, Dataset):
        return np.array([[row.get(name) is not None for name in modalities] for row in rows], dtype=bool)
    batches = rows.select_columns(list(modalities)).with_format("arrow").iter(batch_size=256)
    parts = [[batch[name].is_valid().to_numpy() for name in modalities] for batch in batches]
    return np.concatenate([np.stack(part, axis=1) for part in parts])


def decode_row(
    row: Mapping[str, Any], modalities: Sequence[str]
) -> tuple[dict[str, np.ndarray | None], np.ndarray | None]:
    """Decode the modalities and the label of one row.

    Args:
        row: A row of `load_rows`, or any mapping of the same form.
        modalities: Names to decode, in this order.

    Returns:
        The rasters by name, (height, width) or (height, width, channels), None where missing; and the label
        (height, width), None where there is none.

    Raises:
        ValueError: If the row lacks a column, or a cell cannot be decoded; it names the row and the column.
    """
    row_id = row.get("id", "<no id>")
    absent = [name for name in modalities if name not in row]
    if absent:
        raise ValueError(
            f"Row {row_id!r} has no column for {absent}; its columns are {list(row)}. A modality missing in a row "
            "is None, not left out: rename the columns, change the modalities, or see `with_modality_columns`."
        )
    images = {name: _decode_cell(row[name], row_id, name, is_label=False) for name in modalities}
    label = _decode_cell(row.get("label"), row_id, "label", is_label=True)
    if label is not None and label.ndim == 3 and label.shape[2] == 1:
        label = label[..., 0]
    if label is not None and label.ndim != 2:
        raise ValueError(
            f"Row {row_id!r}, column 'label': expected class ids of shape (height, width), got {label.shape}. "
            "Convert colour-coded labels with `sgma-hf convert-rasters --classes`."
        )
    return images, label


def _decode_cell(value: Any, row_id: Any, column: str, *, is_label: bool) -> np.ndarray | None:
    try:
        return decode_raster(value, is_label=is_label)
    except (ValueError, TypeError) as error:
        raise type(error)(f"Row {row_id!r}, column {column!r}: {error}") from error
