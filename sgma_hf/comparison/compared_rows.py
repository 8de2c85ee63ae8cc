"""The rows that all arms of a comparison share: decoded once, held in memory, identified by their content."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..data.command_line import check_folder_or_id
from ..data.incomplete_rows import RowWithholder
from ..data.metadata import METADATA_FILE, DatasetMetadata
from ..data.rows import decode_row, load_rows, with_label_column
from ..model.dates_sgma import observations


def load_metadata(folder: str) -> DatasetMetadata:
    """Read what the columns of a folder that a converter wrote mean; it has to be there, and to name its classes."""
    check_folder_or_id(folder, "--dataset")  # names the nearest folder
    if not Path(folder).is_dir():
        raise FileNotFoundError(
            f"There is no folder {folder!r}; a comparison reads the local folder that a converter wrote."
        )
    metadata = DatasetMetadata.load(folder)
    if metadata is None or not metadata.class_names:
        raise ValueError(
            f"{folder!r} has no {METADATA_FILE} with class names, so its modalities and classes are not known; write "
            "it by a converter, `sgma-hf convert-rasters` for instance."
        )
    return metadata


def content_fingerprint(folder: str) -> str:
    """16 digits of a SHA-256 of a folder's rows, and of what its columns mean; its card does not count."""
    root = Path(folder)
    files = sorted(root.rglob("*.parquet"))
    if not files:
        raise ValueError(f"{folder!r} holds no Parquet file; expected the folder that a converter wrote.")
    digest = hashlib.sha256()
    for path in [*files, root / METADATA_FILE]:
        digest.update(f"{path.relative_to(root).as_posix()}\0{path.stat().st_size}\0".encode())
        with path.open("rb") as file:
            while block := file.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()[:16]


def decoded_rows(
    folder: str,
    split: str,
    metadata: DatasetMetadata,
    *,
    max_gigabytes: float,
    missing: Mapping[str, float] | None = None,
    label_column: str | None = None,
) -> list[dict[str, Any]]:
    """Decode the labelled rows of a split into memory, `max_gigabytes` of 10^9 bytes at most.

    `missing` is the share of the rows that lose each modality on purpose. Which rows is a function of their ids alone:
    the same for all arms and seeds. The last modality of a row stays. Rows hold arrays; those without a label or
    without any modality are left out. `label_column` is another column to take the label from.
    """
    withholder = RowWithholder(metadata, missing or {}, {}, seed=0)
    rows, size = [], 0
    for row in with_label_column(load_rows(folder, split), label_column or "label", metadata.modalities):
        images, label = decode_row(row, metadata.modalities)
        images, _ = withholder.apply(row["id"], images)
        if label is None or not any(observations(images, name) for name in metadata.modalities):
            continue
        rows.append({"id": row["id"], **images, "label": label})
        size += num_bytes(rows[-1:])
        if size > max_gigabytes * 1e9:
            raise ValueError(
                f"The rows of split {split!r} of {folder!r} take more than {max_gigabytes:g} GB of memory when "
                "decoded. Allow more by `max_gigabytes`, once for each of the runs at the same time, or convert to "
                "fewer or smaller tiles."
            )
    if not rows:
        raise ValueError(f"No row of split {split!r} of {folder!r} has a label and a modality; choose another split.")
    return rows


def num_bytes(rows: list[dict[str, Any]]) -> int:
    """Bytes of the arrays in decoded rows."""
    arrays = (array for row in rows for name in row for array in observations(row, name))
    return sum(array.nbytes for array in arrays if isinstance(array, np.ndarray))
