"""The one row format of all datasets: an id, one nullable column per modality, a nullable label.

A row is `{"id": str, <modality>: value | None, ..., "label": value | None}`; None means that the sensor did not see
this place (or that nobody labelled it). Rasters survive Parquet exactly, in their own dtype:

- one band of any supported dtype, and three bands of uint8, are `datasets.Image()` columns holding PNG (uint8, uint16)
  or TIFF (int16, int32, float32; NaN and inf included), which viewers can show;
- everything else (two-band SAR, 12-band Sentinel-2, hyperspectral, float RGB) is a `Value("binary")` column with the
  bytes of a `.npy` file, (height, width, channels). `Array3D` columns are not used: a null one reads back as NaN
  instead of None under a torch format, and `Image()` would squeeze three bands of uint16 to 8 bit.
"""

import io
import json
import os
import struct
import tempfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
from datasets import Dataset, Features, Image, Value, get_dataset_split_names, load_dataset
from datasets.config import HF_CACHE_HOME, HF_DATASETS_CACHE
from huggingface_hub import hf_hub_download
from huggingface_hub.constants import HF_HUB_CACHE
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from PIL import Image as PILImage
from PIL import TiffImagePlugin, UnidentifiedImageError
from transformers.utils import logging

from ..model.configuration_sgma import IGNORE_INDEX, check_modalities
from ..model.image_transforms_sgma import shown_mode


logger = logging.get_logger(__name__)

METADATA_FILE = "sgma_dataset.json"
FORMAT_VERSION = 1
SUPPORTED_DTYPES = ("uint8", "uint16", "int16", "int32", "float32")
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

_PNG_LEVEL = 4  # as small as the default 6 on aerial images, in half the time
_NPY_MAGIC = b"\x93NUMPY"
_PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
_SAMPLE_FORMAT_TAG = 339
_BITS_PER_SAMPLE_TAG = 258
# What Pillow and numpy raise for damaged bytes; MemoryError and programming errors are let through.
_DECODE_ERRORS = (
    ValueError,
    OSError,
    EOFError,
    SyntaxError,
    struct.error,
    zlib.error,
    UnidentifiedImageError,
    PILImage.DecompressionBombError,
)


def uses_image_column(channels: int, dtype: str) -> bool:
    """Whether a modality of so many channels and this dtype is an `Image()` column (else: `.npy` bytes)."""
    return channels == 1 or (channels == 3 and dtype == "uint8")


def sgma_features(
    modalities: Sequence[str], modality_channels: Sequence[int], modality_dtypes: Sequence[str]
) -> Features:
    """Columns of a dataset with these modalities: `id`, the modalities in order, `label`.

    Args:
        modalities: Names, in the order of the columns.
        modality_channels: Bands of each.
        modality_dtypes: One of `SUPPORTED_DTYPES` for each.

    Raises:
        ValueError: If the lists differ in length, a name is not usable, or a dtype is not supported.
    """
    check_modalities(list(modalities), list(modality_channels))
    if len(modality_dtypes) != len(modalities):
        raise ValueError(
            f"`modality_dtypes` has {len(modality_dtypes)} entries for the modalities {list(modalities)}. "
            "Give one dtype per modality."
        )
    columns: dict[str, Any] = {"id": Value("string")}
    for name, channels, dtype in zip(modalities, modality_channels, modality_dtypes, strict=True):
        if dtype not in SUPPORTED_DTYPES:
            raise ValueError(f"Modality {name!r} has dtype {dtype!r}; convert it to one of {list(SUPPORTED_DTYPES)}.")
        columns[name] = Image() if uses_image_column(channels, dtype) else Value("binary")
    columns["label"] = Image()
    return Features(columns)


def encode_raster(array: np.ndarray | None, *, channels: int | None = None, dtype: str | None = None) -> Any:
    """Turn an array into what its column stores; `decode_raster` gives the same numbers and dtype back.

    Args:
        array: (height, width) or (height, width, channels), one of `SUPPORTED_DTYPES`; None stays None.
        channels: If given, the number of channels the column was declared with.
        dtype: If given, the dtype the column was declared with.

    Returns:
        None, `{"bytes": ..., "path": None}` for an `Image()` column, or bytes for a binary column.

    Raises:
        ValueError: If the array's shape or dtype is not supported or is not what was declared.
    """
    if array is None:
        return None
    array = np.asarray(array)
    if array.ndim not in (2, 3) or 0 in array.shape:
        raise ValueError(f"A raster is (height, width) or (height, width, channels) and not empty; got {array.shape}.")
    found = 1 if array.ndim == 2 else array.shape[2]
    if channels is not None and found != channels:
        raise ValueError(f"The raster has {found} channels, its column {channels}. Shape given: {array.shape}.")
    name = array.dtype.name
    if name not in SUPPORTED_DTYPES or (dtype is not None and name != dtype):
        expected = dtype if dtype is not None else f"one of {list(SUPPORTED_DTYPES)}"
        raise ValueError(f"The raster has dtype {name}, expected {expected}. Convert it with `.astype(...)`.")
    if not uses_image_column(found, name):
        buffer = io.BytesIO()
        np.save(buffer, np.ascontiguousarray(array), allow_pickle=False)
        return buffer.getvalue()
    return {"bytes": _encode_image(array[..., 0] if array.ndim == 3 and found == 1 else array), "path": None}


def _encode_image(array: np.ndarray) -> bytes:
    """Lossless PNG or TIFF of (H, W) of any supported dtype or (H, W, 3) uint8."""
    buffer = io.BytesIO()
    if array.dtype == np.uint8:
        PILImage.fromarray(np.ascontiguousarray(array)).save(buffer, "PNG", compress_level=_PNG_LEVEL)
        return buffer.getvalue()
    little = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    size = (array.shape[1], array.shape[0])
    mode = {"uint16": "I;16", "int16": "I;16", "int32": "I", "float32": "F"}[array.dtype.name]
    image = PILImage.frombytes(mode, size, little.tobytes())
    if array.dtype == np.uint16:
        image.save(buffer, "PNG", compress_level=_PNG_LEVEL)
        return buffer.getvalue()
    # Pillow has no signed 16-bit mode to write, but the same bits with SampleFormat 2 are a proper int16 TIFF.
    tags = {_SAMPLE_FORMAT_TAG: 2} if array.dtype == np.int16 else {}
    image.save(buffer, "TIFF", compression="tiff_adobe_deflate", tiffinfo=tags)
    return buffer.getvalue()


def decode_raster(value: Any, *, is_label: bool = False) -> np.ndarray | None:
    """Read whatever a cell of a dataset may hold into an array, without losing bits.

    Args:
        value: None, an array, a PIL image, `{"bytes": ..., "path": ...}` as an undecoded `Image()` cell, the bytes of
            an image or `.npy` file, or a path to one.
        is_label: A palette image is a label's indices, but a modality's colours. Transparent colours mean nothing in a
            label and become an alpha band, the last one, in a modality.

    Returns:
        (height, width) or (height, width, channels) in the stored dtype; None for None.

    Raises:
        ValueError: If it cannot be decoded, or only by squeezing more than 8 bits per band into 8.
        TypeError: If it is none of the above.
    """
    if isinstance(value, Mapping):
        value = value["bytes"] if value.get("bytes") is not None else value.get("path")
    if value is None or isinstance(value, np.ndarray):
        return value
    if not isinstance(value, (PILImage.Image, bytes, bytearray, memoryview, str, os.PathLike)):
        raise TypeError(
            f"Cannot read a raster from {type(value).__name__}. Give None, an array, a PIL image, bytes, a path, or "
            "a dict with `bytes` or `path`."
        )
    try:
        if isinstance(value, PILImage.Image):
            return _image_to_array(value, is_label=is_label)
        content = Path(value).read_bytes() if isinstance(value, (str, os.PathLike)) else bytes(value)
        if content.startswith(_NPY_MAGIC):
            array = np.load(io.BytesIO(content), allow_pickle=False)
        else:
            _refuse_deep_colour_png(content)
            with PILImage.open(io.BytesIO(content)) as image:
                array = _image_to_array(image, is_label=is_label)
    except _DECODE_ERRORS as error:
        source = f" {str(value)!r}" if isinstance(value, (str, os.PathLike)) else ""
        raise ValueError(f"Cannot decode the raster{source}: {error}") from error
    if array.ndim not in (2, 3):
        raise ValueError(f"A raster is (height, width) or (height, width, channels); the stored one is {array.shape}.")
    return array


def _refuse_deep_colour_png(content: bytes) -> None:
    """Pillow opens 16-bit colour PNG as 8 bit without a word; bytes 24 and 25 are depth and colour type."""
    if content.startswith(_PNG_MAGIC) and len(content) > 25 and content[24] == 16 and content[25] in (2, 4, 6):
        raise ValueError(
            "this PNG has 16 bits per colour band, which Pillow would squeeze to 8. Convert it with "
            "dataset_scripts/rasters.py (extra `geo`), or store the array as .npy."
        )


def _image_to_array(image: PILImage.Image, *, is_label: bool) -> np.ndarray:
    """Array of a PIL image in the dtype of its file."""
    bits: tuple[int, ...] = ()
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        bits = tuple(image.tag_v2.get(_BITS_PER_SAMPLE_TAG, ()))
        if len(bits) > 1 and max(bits) > 8:
            raise ValueError(
                f"this TIFF has {max(bits)} bits per band in {len(bits)} bands, which Pillow would squeeze to 8. "
                "Convert it with dataset_scripts/rasters.py (extra `geo`), or store the array as .npy."
            )
    image.load()
    mode = image.mode
    if mode == "1":
        return np.asarray(image).astype(np.uint8)
    shown = shown_mode(image)
    if shown != mode and not (is_label and mode in ("P", "PA", "L", "RGB")):
        image = image.convert(shown)
    array = np.array(image)
    if mode == "I" and bits == (16,):
        return array.astype(np.int16)
    return array.astype(array.dtype.newbyteorder("="), copy=False)


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
            "Convert colour-coded labels with dataset_scripts/rasters.py --classes."
        )
    return images, label


def _decode_cell(value: Any, row_id: Any, column: str, *, is_label: bool) -> np.ndarray | None:
    try:
        return decode_raster(value, is_label=is_label)
    except (ValueError, TypeError) as error:
        raise type(error)(f"Row {row_id!r}, column {column!r}: {error}") from error


def valid_pixels(array: np.ndarray, nodata: Sequence[float]) -> np.ndarray:
    """Which pixels of a stored raster hold data.

    A pixel is missing where any of its channels is NaN or infinite, or where all of its channels equal one of the
    nodata values (a dark pixel with one channel at 0 is not a hole in an image whose nodata is 0).

    Args:
        array: (height, width) or (height, width, channels).
        nodata: Values that stand for nothing; may be empty.

    Returns:
        bool (height, width), True where there is data.
    """
    planes = array[..., None] if array.ndim == 2 else array
    if planes.dtype.kind == "f":
        valid = np.isfinite(planes).all(axis=-1)
    else:
        valid = np.ones(planes.shape[:2], dtype=bool)
    for number in nodata:
        valid &= ~(planes == number).all(axis=-1)
    return valid


def whole_numbers(values: np.ndarray, path: str | os.PathLike) -> np.ndarray:
    """Label values of any real dtype as integers, NaN and infinity as 255.

    Args:
        values: Labels as a file holds them; tools that burn polygons write whole numbers as floating point.
        path: Their file, for the error.

    Raises:
        ValueError: If a value has a fraction.
    """
    if values.dtype.kind in "iu":
        return values
    filled = np.where(np.isfinite(values), values, IGNORE_INDEX)
    fractions = filled[filled != np.rint(filled)]
    if fractions.size:
        raise ValueError(
            f"{path} is no label: it holds fractions such as {fractions[0]:g}. Expected class ids or colours."
        )
    return filled.astype(np.int64)


@dataclass
class DatasetMetadata:
    """What the pixels of a dataset mean: `sgma_dataset.json` in its root. All lists run in the order of `modalities`.

    Args:
        modalities: Names of the modality columns.
        modality_channels: Bands of each.
        modality_dtypes: Stored dtype of each, one of `SUPPORTED_DTYPES`.
        nodata: Values that stand for "no data here", per modality (NaN always does and is not listed).
        units: Unit of the values per modality (`"m"`, `"dB"`, `"reflectance x 10000"`), None where unknown.
        class_names: Names of the label ids 0, 1, ...; 255 is "ignore" and has no name.
        palette: [red, green, blue] in 0..255 per class.
        statistics: None, or of the training split: `split`, `num_rows`, `modalities` (a list of dicts with
            `mean`, `std`, `minimum`, `maximum` per channel in stored units over valid pixels, `nodata_share` of the
            pixels of present rows, `missing_share` of the rows), `class_pixels` per class, `ignored_pixels`.
    """

    modalities: list[str]
    modality_channels: list[int]
    modality_dtypes: list[str]
    nodata: list[list[float]] = field(default_factory=list)
    units: list[str | None] = field(default_factory=list)
    class_names: list[str] = field(default_factory=list)
    palette: list[list[int]] = field(default_factory=list)
    statistics: dict[str, Any] | None = None
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        check_modalities(list(self.modalities), list(self.modality_channels))
        self.nodata = self.nodata or [[] for _ in self.modalities]
        self.units = self.units or [None] * len(self.modalities)
        for name in ("modality_channels", "modality_dtypes", "nodata", "units"):
            if len(getattr(self, name)) != len(self.modalities):
                raise ValueError(
                    f"`{name}` is {getattr(self, name)}: expected one entry for each of {self.modalities}."
                )
        if self.palette and len(self.palette) != len(self.class_names):
            raise ValueError(f"`palette` has {len(self.palette)} colours for {len(self.class_names)} classes.")

    def features(self) -> Features:
        """Columns of the dataset."""
        return sgma_features(self.modalities, self.modality_channels, self.modality_dtypes)

    def save(self, directory: str | os.PathLike) -> Path:
        """Write `sgma_dataset.json` into `directory`, by a rename so that no half file can be read."""
        path = Path(directory) / METADATA_FILE
        text = json.dumps(asdict(self), indent=2, allow_nan=False) + "\n"
        with tempfile.NamedTemporaryFile("w", dir=directory, prefix=".", delete=False, encoding="utf-8") as file:
            file.write(text)
        os.chmod(file.name, 0o644)
        os.replace(file.name, path)
        return path

    @classmethod
    def load(cls, directory_or_id: str | os.PathLike) -> "DatasetMetadata | None":
        """Read the metadata of a local folder or of a dataset on the Hub; None where there is none.

        Raises:
            ValueError: If the file is not what `save` writes.
        """
        if Path(directory_or_id).is_dir():
            path = Path(directory_or_id) / METADATA_FILE
        else:
            try:
                path = Path(hf_hub_download(str(directory_or_id), METADATA_FILE, repo_type="dataset"))
            except LocalEntryNotFoundError:
                logger.warning(f"{METADATA_FILE} of {directory_or_id} is not cached and the Hub cannot be reached.")
                return None
            except EntryNotFoundError:
                return None
        if not path.is_file():
            return None
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            version = content.get("format_version", FORMAT_VERSION)
            if version != FORMAT_VERSION:
                raise ValueError(f"it has format version {version}, this code reads {FORMAT_VERSION}; update sgma_hf")
            known = {item.name for item in fields(cls)}
            return cls(**{key: entry for key, entry in content.items() if key in known})
        except (ValueError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is not the metadata of a dataset: {error}") from error


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
    """Leave out the rows whose label is None, without decoding any.

    Args:
        rows: Rows as `load_rows` returns them.
    """
    batches = rows.select_columns(["label"]).with_format("arrow").iter(batch_size=256)
    is_null = [null for batch in batches for null in batch["label"].is_null().to_pylist()]
    return rows.select([index for index, null in enumerate(is_null) if not null]) if any(is_null) else rows


def with_modality_columns(rows: Dataset, modalities: Sequence[str]) -> Dataset:
    """Add a column of nulls for each modality that a data set has no column of: no row of it has that sensor.

    A misspelt column must not look like a missing sensor. So it is refused where some other column holds rasters, and
    what is added is named in a warning.

    Args:
        rows: Rows as `load_rows` returns them.
        modalities: Names that a model knows.

    Returns:
        The rows with a column of each modality.

    Raises:
        ValueError: If a column is missing while another one holds rasters of an unknown name, or all are missing.
    """
    missing = [name for name in modalities if name not in rows.column_names]
    if not missing:
        return rows
    known = ("id", "label", *modalities)
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


def present_modalities(rows: Sequence[Mapping[str, Any]], modalities: Sequence[str]) -> np.ndarray:
    """Tell which modalities each row has, without decoding any.

    Args:
        rows: Rows as `load_rows` returns them, or a sequence of mappings of that form.
        modalities: Names, in the order of the columns of the result.

    Returns:
        Bool, (num_rows, num_modalities).
    """
    if not isinstance(rows, Dataset):
        return np.array([[row.get(name) is not None for name in modalities] for row in rows], dtype=bool)
    batches = rows.select_columns(list(modalities)).with_format("arrow").iter(batch_size=256)
    parts = [[batch[name].is_valid().to_numpy() for name in modalities] for batch in batches]
    return np.concatenate([np.stack(part, axis=1) for part in parts])
