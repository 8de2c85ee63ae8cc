"""The one row format of all datasets: an id, one nullable column per modality, a nullable label.

A row is `{"id": str, <modality>: value | None, ..., "label": value | None}`; None means that the sensor did not see
this place (or that nobody labelled it). `codec` says how a value holds a raster. A series is a list of values, with
the days that they were taken on in `<modality>_dates`. Rows of one video, or of one place at several dates, have one
`sequence`, the name of it, and are in the order of their `label_date`, the day that the label holds for.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, Features, Image, List, Value, get_dataset_split_names, load_dataset
from datasets.config import HF_CACHE_HOME, HF_DATASETS_CACHE
from datasets.exceptions import DatasetBuildError
from huggingface_hub.constants import HF_HUB_CACHE
from transformers.utils import logging

from ..model.dates_sgma import is_series, observations, read_dates
from ..model.limits_sgma import DATES_SUFFIX, ROW_COLUMNS
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
        ValueError: If there is no such split (the message lists those there are), it is empty or damaged, or a cell
            names a file outside the dataset.
    """
    source = str(directory_or_id)
    check_folder_or_id(source, "data set")
    names = get_dataset_split_names(source)
    chosen = split if split in names else SPLIT_ALIASES.get(split, split)
    if chosen not in names:
        raise ValueError(f"Dataset {source!r} has no split {split!r}. Splits: {names}.")
    try:
        rows = load_dataset(source, split=chosen)
    except DatasetBuildError as error:
        reason = next(iter(str(error.__cause__ or error).splitlines()), "")
        raise ValueError(
            f"Dataset {source!r} cannot be read: {reason.rstrip('.')}. Where a file is damaged, fetch or convert it "
            "again."
        ) from error
    if len(rows) == 0:
        raise ValueError(f"Split {chosen!r} of dataset {source!r} has no rows.")
    pictures = [name for name, feature in rows.features.items() if isinstance(_cell(feature), Image)]
    rows = _undecoded(rows, pictures)
    for name in pictures:
        _refuse_foreign_files(rows, name, source)
    return rows


def _cell(feature: Any) -> Any:
    """What a column, or each entry of a column of series, holds."""
    return feature.feature if isinstance(feature, List) else feature


def _undecoded(rows: Dataset, pictures: Sequence[str]) -> Dataset:
    """Leave the files in columns of pictures as they are; `cast_column` would copy the whole data set for a list."""
    info = rows.info.copy()
    info.features = Features(rows.features)
    for name in pictures:
        cell = Image(mode=_cell(rows.features[name]).mode, decode=False)
        info.features[name] = List(cell) if isinstance(rows.features[name], List) else cell
    return Dataset(rows.data, info=info, split=rows.split)


def _refuse_foreign_files(rows: Dataset, column: str, source: str) -> None:
    """Refuse cells that name a file instead of holding it, unless it belongs to the dataset.

    A Parquet file of a stranger could name any file of this machine.
    """
    allowed = [Path(folder).resolve() for folder in (source, HF_CACHE_HOME, HF_DATASETS_CACHE, HF_HUB_CACHE)]
    for batch in rows.select_columns([column]).with_format("arrow").iter(batch_size=1000):
        cells = batch[column].combine_chunks()
        cells = pc.list_flatten(cells) if isinstance(rows.features[column], List) else cells
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


def with_label_column(rows: Dataset, name: str, modalities: Sequence[str] = ()) -> Dataset:
    """Take another column as the label: class ids of the same classes, as `scoring_label`; a modality is none."""
    if name == "label":
        return rows
    others = ("preview", *modalities)
    columns = [one for one, feature in rows.features.items() if one not in others and _holds_rasters(one, feature)]
    if name not in columns:
        hint = did_you_mean(name, columns)
        raise ValueError(f"The rows have no column {name!r} of labels{hint}. Columns that may be labels: {columns}.")
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
    known = (*ROW_COLUMNS, *modalities)
    others = [name for name, feature in rows.features.items() if name not in known and _holds_rasters(name, feature)]
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


def _holds_rasters(name: str, feature: Any) -> bool:
    """Whether a column may hold rasters: images, bytes or nested values, but no dates, no text and no numbers."""
    if name.endswith(DATES_SUFFIX):
        return False
    return not isinstance(feature, Value) or feature.dtype in ("binary", "large_binary")


def row_ids(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The id of each row, its number as text where it has none."""
    return [str(index) if name is None else name for index, name in enumerate(plain_column(rows, "id"))]


def plain_column(rows: Sequence[Mapping[str, Any]], name: str) -> list[Any]:
    """The values of a column that holds no rasters, None where rows have none."""
    if not isinstance(rows, Dataset):
        return [row.get(name) for row in rows]
    return list(rows[name]) if name in rows.column_names else [None] * len(rows)


def count_dates(rows: Sequence[Mapping[str, Any]], modalities: Sequence[str]) -> np.ndarray:
    """How many rasters of each modality, or other column, each row has, int (num_rows, num_modalities); none decoded.

    One that is no series is one. Rows are those of `load_rows`, or a sequence of mappings of that form.
    """
    if not isinstance(rows, Dataset):
        counts = [[len(observations(row, name)) for name in modalities] for row in rows]
        return np.array(counts, dtype=int).reshape(len(rows), len(modalities))
    batches = rows.select_columns(list(modalities)).with_format("arrow").iter(batch_size=256)
    return np.concatenate([np.stack([_counts(batch[name]) for name in modalities], axis=1) for batch in batches])


def warn_of_dates(rows: Sequence[Mapping[str, Any]], modalities: Sequence[str], *, knows_dates: bool) -> None:
    """Say once that a model knows dates that the rows lack, or that it knows none and they have some."""
    if isinstance(rows, Dataset):
        series = [name for name in modalities if isinstance(rows.features.get(name), List)]
        columns = [name for name in series if name + DATES_SUFFIX in rows.column_names]
        dated = [name for name in columns if count_dates(rows, [name + DATES_SUFFIX]).any()]
    else:  # of rows that are read one by one, nothing is said
        rows = rows if isinstance(rows, list | tuple) else []
        series = [name for name in modalities if any(is_series(row.get(name)) for row in rows)]
        dated = [name for name in series if any(row.get(name + DATES_SUFFIX) is not None for row in rows)]
    undated = [name for name in series if name not in dated]
    if knows_dates and undated:
        logger.warning_once(
            f"The rows have no dates of the series {undated} ({undated[0] + DATES_SUFFIX!r}), which the model would "
            "use: they count as unknown, and their order does not matter."
        )
    elif dated and not knows_dates:
        logger.warning_once(
            f"The rows have dates of {dated}, and the model knows none (its `date_periods` are None): the images of a "
            "series are taken as a set."
        )


def _counts(column: Any) -> np.ndarray:
    """Entries in each cell of a column of lists; whether there is one in those of another."""
    if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        return pc.fill_null(pc.list_value_length(column), 0).to_numpy().astype(int)
    return column.is_valid().to_numpy().astype(int)


def present_modalities(rows: Sequence[Mapping[str, Any]], modalities: Sequence[str]) -> np.ndarray:
    """Which modalities, or other columns, each row has, bool; as `count_dates` finds, which decodes none."""
    return count_dates(rows, modalities) > 0


def decode_row(row: Mapping[str, Any], modalities: Sequence[str]) -> tuple[dict[str, Any], np.ndarray | None]:
    """Decode the modalities and the label of one row.

    Args:
        row: A row of `load_rows`, or any mapping of the same form.
        modalities: Names to decode, in this order.

    Returns:
        The rasters by name, (height, width) or (height, width, channels), None where missing; and the label
        (height, width), None where there is none. A series is a list of rasters, or None if it has none, and its days
        since 2000-01-01, NaN where unknown, are under `<name>_dates`.

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
    images: dict[str, Any] = {}
    for name in modalities:
        images |= _decode_modality(row, name, row_id)
    label = _decode_cell(row.get("label"), row_id, "label", is_label=True)
    if label is not None and label.ndim == 3 and label.shape[2] == 1:
        label = label[..., 0]
    if label is not None and label.ndim != 2:
        raise ValueError(
            f"Row {row_id!r}, column 'label': expected class ids of shape (height, width), got {label.shape}. "
            "Convert colour-coded labels with `sgma-hf convert-rasters --classes`."
        )
    return images, label


def row_days(row: Mapping[str, Any], name: str) -> list[float]:
    """The days of a modality's rasters, as `read_dates` has them; an error names the row."""
    try:
        return read_dates(row, name)
    except (ValueError, TypeError) as error:
        raise type(error)(f"Row {row.get('id', '<no id>')!r}: {error}") from error


def _decode_modality(row: Mapping[str, Any], name: str, row_id: Any) -> dict[str, Any]:
    """The entries of a row that are of one modality, decoded."""
    dates = row_days(row, name)
    rasters = [_decode_cell(value, row_id, name, is_label=False) for value in observations(row, name)]
    if is_series(row[name]) or row.get(name + DATES_SUFFIX) is not None:
        return {name: rasters, name + DATES_SUFFIX: dates} if rasters else {name: None}
    return {name: rasters[0] if rasters else None}


def _decode_cell(value: Any, row_id: Any, column: str, *, is_label: bool) -> np.ndarray | None:
    try:
        return decode_raster(value, is_label=is_label)
    except (ValueError, TypeError) as error:
        raise type(error)(f"Row {row_id!r}, column {column!r}: {error}") from error
