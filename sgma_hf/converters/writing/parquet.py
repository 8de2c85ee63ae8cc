"""Writes a dataset in the row format: Parquet shards, metadata and a card, whole or not at all."""

import contextlib
import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ...data.codec import encode_raster
from ...data.metadata import METADATA_FILE, DatasetMetadata
from ...data.whole_files import check_writable, write_text
from ...model.dates_sgma import from_days, is_series, observations, read_dates, to_days
from ...model.limits_sgma import DATES_SUFFIX, IGNORE_INDEX
from .card import build_card
from .preview import encode_preview
from .statistics import SplitStatistics


MAX_SHARD_BYTES = 400 * 2**20
# Row groups are what streaming readers hold at once; a hundred 256-pixel rows are a few MB.
_ROW_GROUP_ROWS = 100
_SERIES_GROUP_ROWS = 8  # rows of many dates are tens of MB
_ROW_GROUP_BYTES = 32 * 2**20
# What PIL, and so `datasets` and the Hub's viewer, open: a quarter of a GiB of colours, twice.
_MOST_PIXELS = 2 * (2**30 // 4 // 3)
_MOST_BYTES = 2**31 - 2**16  # in a cell of Arrow's; the rest is for the header of a .npy file


class ShardWriter:
    """One Parquet file of encoded rows, in row groups of at most about `max_group_bytes` encoded bytes."""

    def __init__(self, path: Path, schema: pa.Schema, max_group_bytes: int = _ROW_GROUP_BYTES) -> None:
        self.path = path
        self.schema = schema
        self.max_group_bytes = max_group_bytes
        self.num_bytes = 0
        has_series = any(pa.types.is_list(field.type) for field in schema)
        self.max_group_rows = _SERIES_GROUP_ROWS if has_series else _ROW_GROUP_ROWS
        self._rows: list[dict[str, Any]] = []
        self._group_bytes = 0
        self.file = pq.ParquetWriter(path, schema, compression="zstd")

    def write(self, row: dict[str, Any]) -> None:
        """Add one row of `encode_row`."""
        self._rows.append(row)
        self._group_bytes += sum(map(len, _contents(row)))
        if len(self._rows) >= self.max_group_rows or self._group_bytes >= self.max_group_bytes:
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            self.file.write_table(pa.Table.from_pylist(self._rows, schema=self.schema))
            self.num_bytes += self._group_bytes
            self._rows, self._group_bytes = [], 0

    def close(self) -> None:
        """Write what is left and end the file."""
        self._flush()
        self.file.close()


class ParquetDatasetWriter:
    """Context manager that writes a dataset folder which `datasets.load_dataset(folder)` reads.

    Everything is written into a hidden folder beside the target, which is renamed at the end: an error, Ctrl-C or a
    kill leaves no folder under the target's name (or the previous one, with `overwrite`).

    Args:
        out: The folder to make. It may exist if it is empty.
        metadata: What the columns mean; its `statistics` are filled in here, from the split `train`.
        title: Heading of the card.
        description: What the card says first, Markdown.
        command: The command that made the dataset, for the card.
        overwrite: Whether to replace an earlier dataset; any other folder is left alone.
        max_shard_bytes: Start another Parquet file after so many encoded bytes.

    Example:
        >>> with ParquetDatasetWriter(Path("data"), metadata, title="Fields") as writer:
        ...     writer.write("train", "field_0", {"nir": nir, "red": None}, label)
    """

    def __init__(
        self,
        out: str | os.PathLike,
        metadata: DatasetMetadata,
        *,
        title: str,
        description: str = "",
        command: str = "",
        overwrite: bool = False,
        max_shard_bytes: int = MAX_SHARD_BYTES,
    ) -> None:
        self.out = Path(out).absolute()
        self.metadata = metadata
        self._card = {"title": title, "description": description, "command": command}
        self.max_shard_bytes = max_shard_bytes
        self.statistics: dict[str, SplitStatistics] = {}
        self._schema = metadata.features().arrow_schema
        self._shards: dict[str, list[ShardWriter]] = {}
        self._ids: set[tuple[str, str]] = set()
        self._digest = hashlib.sha256()
        self._temporary = self.out.with_name(f".{self.out.name}.partial-{os.getpid()}")
        check_output(self.out, overwrite=overwrite)

    def __enter__(self) -> "ParquetDatasetWriter":
        self.out.parent.mkdir(parents=True, exist_ok=True)
        (self._temporary / "data").mkdir(parents=True)
        return self

    def write(
        self, split: str, row_id: str, images: Mapping[str, Any], label: np.ndarray | None, **further: Any
    ) -> None:
        """Add one row.

        Args:
            split: `train`, `validation`, `test`, or another word.
            row_id: Unique in its split.
            images: One entry per modality, (height, width) or (height, width, channels) in the declared dtype; None
                where missing. A series is a list of them, with a list of dates, as `to_days` takes them, or nothing
                under `<name>_dates`.
            label: uint8 (height, width) of class ids, 255 ignored; None where nobody labelled.
            further: What `encode_row` takes by name.

        Raises:
            ValueError: If the row is not what the metadata says, or its id is taken.
        """
        if (split, row_id) in self._ids:
            raise ValueError(f"Row id {row_id!r} occurs twice in split {split!r}. Give every row its own.")
        row = encode_row(self.metadata, row_id, images, label, **further)
        self._ids.add((split, row_id))
        self._digest.update(split.encode())
        digest_row(self._digest, row)
        shards = self._shards.setdefault(split, [])
        if not shards or shards[-1].num_bytes >= self.max_shard_bytes:
            if shards:
                shards[-1].close()
            path = self._temporary / "data" / f"{split}-{len(shards):05d}.partial"
            shards.append(ShardWriter(path, self._schema, min(_ROW_GROUP_BYTES, self.max_shard_bytes)))
        shards[-1].write(row)
        self.statistics.setdefault(split, SplitStatistics(self.metadata)).update(images, label)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            for shard in (shards[-1] for shards in self._shards.values() if shards):
                with contextlib.suppress(OSError):  # of a full disk, which has been said
                    shard.file.close()
            shutil.rmtree(self._temporary, ignore_errors=True)

    def _finish(self) -> None:
        if not self._shards:
            raise ValueError("There are no rows to write.")
        for split, shards in self._shards.items():
            shards[-1].close()
            for index, shard in enumerate(shards):  # their number, which names carry, is known only now
                shard.path.rename(shard.path.with_name(f"{split}-{index:05d}-of-{len(shards):05d}.parquet"))
        self.statistics = dict(sorted(self.statistics.items(), key=lambda item: item[0] != "train"))  # which is first
        card = self._card | {"fingerprint": self._digest.hexdigest()[:32]}
        self.metadata = publish_folder(self._temporary, self.out, self.metadata, self.statistics, card)

    def summary(self) -> str:
        """A few lines for the terminal: rows, missing shares and class shares per split."""
        return summarize(self.out, self.metadata, self.statistics)


def encode_row(
    metadata: DatasetMetadata,
    row_id: str,
    images: Mapping[str, Any],
    label: np.ndarray | None,
    *,
    scoring_label: np.ndarray | None = None,
    sequence: str | None = None,
    label_date: Any = None,
) -> dict[str, Any]:
    """Turn arrays into a row of the dataset; a ValueError names the row and the column that are not as declared.

    `sequence` names the video or place that the row is a part of, `label_date` is as `to_days` takes it.
    """
    days = {name + DATES_SUFFIX for name in metadata.modalities if metadata.is_series(name)}
    if set(images) - days != set(metadata.modalities):
        raise ValueError(f"Row {row_id!r} has {sorted(images)}; expected these (or None): {metadata.modalities}.")
    for name, array in (("label", label), ("scoring_label", scoring_label)):
        if array is not None:
            _check_label(array, row_id, len(metadata.class_names))
            _check_size(array, row_id, name)
    row: dict[str, Any] = {"id": row_id}
    declared = zip(metadata.modalities, metadata.modality_channels, metadata.modality_dtypes, strict=True)
    for name, channels, dtype in declared:
        for array in observations(images, name):
            _check_size(array, row_id, name)
        try:
            row |= _encode_modality(images, name, channels, dtype, series=metadata.is_series(name))
        except (ValueError, TypeError) as error:
            raise type(error)(f"Row {row_id!r}, column {name!r}: {error}") from error
    row["label"] = encode_raster(label)
    if metadata.scoring_label:
        row["scoring_label"] = encode_raster(scoring_label)
    row |= _encode_time(metadata, row_id, sequence, label_date)
    return row | {"preview": encode_preview(metadata, images)} if metadata.preview else row


def _encode_time(metadata: DatasetMetadata, row_id: str, sequence: str | None, label_date: Any) -> dict[str, Any]:
    """The cells that say of which sequence a row is, and when, where the data set has them."""
    if metadata.sequences:
        try:
            return {"sequence": sequence, "label_date": from_days(to_days(label_date))}
        except (ValueError, TypeError) as error:
            raise type(error)(f"Row {row_id!r}, column 'label_date': {error}") from error
    if sequence is not None or label_date is not None:
        raise ValueError(
            f"Row {row_id!r} is of sequence {sequence!r}, label date {label_date!r}, but there are no such columns; "
            "set `sequences` of the metadata."
        )
    return {}


def _encode_modality(
    images: Mapping[str, Any], name: str, channels: int, dtype: str, *, series: bool
) -> dict[str, Any]:
    """The cells of one modality; both of a series are null if it has no date, and its dates if all are unknown."""
    if is_series(images[name]) and not series:
        raise ValueError("a list of rasters in a column that is no series; set `series` of the metadata.")
    days = read_dates(images, name)
    cells = [encode_raster(array, channels=channels, dtype=dtype) for array in observations(images, name)]
    if not series:
        return {name: cells[0] if cells else None}
    known = not np.isnan(days).all()
    return {name: cells or None, name + DATES_SUFFIX: [from_days(day) for day in days] if cells and known else None}


def _check_size(array: np.ndarray | None, row_id: str, column: str) -> None:
    """Refuse what readers do not open."""
    if array is not None and (array.shape[0] * array.shape[1] > _MOST_PIXELS or array.nbytes > _MOST_BYTES):
        raise ValueError(
            f"Row {row_id!r}, column {column!r}: {array.shape[1]} x {array.shape[0]} pixels of {array.nbytes} bytes "
            f"are too many: `datasets` opens {_MOST_PIXELS} pixels and {_MOST_BYTES} bytes in one cell. Cut the "
            "scenes by --tile_size."
        )


def _check_label(label: np.ndarray, row_id: str, num_classes: int) -> None:
    if label.dtype != np.uint8 or label.ndim != 2:
        raise ValueError(
            f"Row {row_id!r}: a label is uint8 of shape (height, width); got {label.dtype} {label.shape}."
        )
    beyond = np.unique(label[(label >= num_classes) & (label != IGNORE_INDEX)])
    if beyond.size:
        raise ValueError(
            f"Row {row_id!r}: label ids {beyond.tolist()} are neither below {num_classes}, the number of classes, "
            f"nor {IGNORE_INDEX} (ignored)."
        )


def _contents(row: Mapping[str, Any]) -> Iterator[bytes]:
    """The bytes of each cell of an encoded row, and of each entry of a series."""
    for value in row.values():
        for cell in value if isinstance(value, list) else [value]:
            content = cell["bytes"] if isinstance(cell, dict) else cell
            content = content.isoformat() if isinstance(content, datetime) else content
            yield content.encode() if isinstance(content, str) else content or b""


def digest_row(digest: Any, row: Mapping[str, Any]) -> None:
    """Add an encoded row to a `hashlib` digest."""
    for content in _contents(row):
        digest.update(content)


def publish_folder(
    temporary: Path,
    out: Path,
    metadata: DatasetMetadata,
    statistics: Mapping[str, SplitStatistics],
    card: Mapping[str, Any],
) -> DatasetMetadata:
    """Write metadata and card (arguments of `build_card`) beside the shards and give the folder its final name.

    An earlier one is removed last. Returns the metadata with the statistics of the training rows.
    """
    training = statistics.get("train")
    notes = {split: note for split, note in metadata.split_notes.items() if split in statistics}
    metadata = replace(metadata, statistics=training.as_dict("train") if training else None, split_notes=notes)
    metadata.save(temporary)
    write_text(temporary / "README.md", build_card(metadata, statistics, **card))
    replaced = out.with_name(f".{out.name}.replaced-{os.getpid()}")
    if out.exists():
        out.rename(replaced)
    temporary.rename(out)
    shutil.rmtree(replaced, ignore_errors=True)
    return metadata


def summarize(out: Path, metadata: DatasetMetadata, statistics: Mapping[str, SplitStatistics]) -> str:
    """A few lines for the terminal: rows, missing shares, class shares and what is ignored per split."""
    sizes = ", ".join(f"{split} {item.num_rows}" for split, item in statistics.items())
    lines = [f"{out}: {sizes} rows"]
    for split, item in statistics.items():
        missing = [f"{name} {modality.missing_rows / item.num_rows:.0%}" for name, modality in item.modalities.items()]
        missing.append(f"label {item.unlabelled_rows / item.num_rows:.0%}")
        lines.append(f"{split}: rows without {', '.join(missing)}")
        dates = [f"{name} {found.dates}" for name, found in item.modalities.items() if found.dates is not None]
        lines += [f"  a row has {'; '.join(dates)}"] * bool(dates)
        if metadata.class_names:
            shares = zip(metadata.class_names, item.class_shares(), strict=True)
            classes = ", ".join(f"{name} {share:.1%}" for name, share in shares)
            lines.append(f"  classes: {classes}; ignored: {item.ignored_share():.1%} of all label pixels")
    return "\n".join(lines)


def check_output(out: Path, *, overwrite: bool) -> None:
    """Refuse a target that is in the way or cannot be made, before any work is done."""
    check_writable(out)
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not (out / METADATA_FILE).is_file():
        raise FileExistsError(f"--output {out} exists and is no dataset of ours, so it is left alone. Choose another.")
    if not overwrite:
        raise FileExistsError(f"--output {out} already holds a dataset. Choose another folder, or pass --overwrite.")
