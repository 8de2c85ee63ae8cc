"""What a data set means: its columns, `sgma_dataset.json`, and whether a checkpoint means the same."""

import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers.utils import logging

from ..model.limits_sgma import DATES_SUFFIX, check_modalities
from .codec import SUPPORTED_DTYPES, uses_image_column
from .rows import SPLIT_ALIASES
from .whole_files import read_dataclass, write_json


if TYPE_CHECKING:
    from datasets import Features
    from transformers import BaseImageProcessor, PreTrainedConfig

logger = logging.get_logger(__name__)

METADATA_FILE = "sgma_dataset.json"
FORMAT_VERSION = 1
LARGEST_STEP = 1.5  # from the resolution that was trained on to another one, before that is said


@dataclass
class DatasetMetadata:
    """What the pixels of a dataset mean: `sgma_dataset.json` in its root. All lists run in the order of `modalities`.

    Args:
        modalities: Names of the modality columns.
        modality_channels: Bands of each.
        modality_dtypes: Stored dtype of each, one of `SUPPORTED_DTYPES`.
        nodata: Values that stand for "no data here", per modality (NaN always does and is not listed).
        series: Whether each modality is a list of rasters, with their dates in a column `<name>_dates`; None: none is.
        units: Unit of the values per modality (`"m"`, `"dB"`, `"reflectance x 10000"`), None where unknown.
        class_names: Names of the label ids 0, 1, ...; 255 is "ignore" and has no name.
        palette: [red, green, blue] in 0..255 per class.
        classes: The label values, or colours, that the classes were made of, as `--classes` takes them; empty where
            they are the ids of the label files, None where nobody recorded it.
        statistics: None, or of the training split: `split`, `num_rows`, `modalities` (a list of dicts with
            `mean`, `std`, `minimum`, `maximum` per channel in stored units over valid pixels, `nodata_share` of the
            pixels of present rows, `missing_share` of the rows), `class_pixels` per class, `ignored_pixels`.
        resolution: Metres on the ground that a pixel of the label is; None where that is unknown or not the same.
        preview: Whether the rows have a column `preview`, a small picture of all modalities for viewers.
        scoring_label: Whether the rows have a column `scoring_label`: labels to score by where `label` is to train on.
        sequences: Whether the rows have columns `sequence`, the name of the video or place that a row is of, and
            `label_date`, the day that its label holds for; both are nullable.
        split_notes: By split, in a sentence or two, how it was made and how it lies to the rows that are trained on:
            other fields, other tiles of one flight, a random part of the training fields.
    """

    modalities: list[str]
    modality_channels: list[int]
    modality_dtypes: list[str]
    nodata: list[list[float]] = field(default_factory=list)
    series: list[bool] | None = None
    units: list[str | None] = field(default_factory=list)
    class_names: list[str] = field(default_factory=list)
    palette: list[list[int]] = field(default_factory=list)
    classes: list[dict[str, Any]] | None = None
    statistics: dict[str, Any] | None = None
    resolution: float | None = None
    preview: bool = False
    scoring_label: bool = False
    sequences: bool = False
    split_notes: dict[str, str] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        if self.format_version != FORMAT_VERSION:
            raise ValueError(
                f"it has format version {self.format_version}, this code reads {FORMAT_VERSION}; update sgma_hf"
            )
        check_modalities(list(self.modalities), list(self.modality_channels))
        self.nodata = self.nodata or [[] for _ in self.modalities]
        self.units = self.units or [None] * len(self.modalities)
        lists = ["modality_channels", "modality_dtypes", "nodata", "units", *(["series"] if self.series else [])]
        for name in lists:
            if len(getattr(self, name)) != len(self.modalities):
                raise ValueError(
                    f"`{name}` is {getattr(self, name)}: expected one entry for each of {self.modalities}."
                )
        self.series = list(self.series) if self.series and any(self.series) else None
        for name, dtype in zip(self.modalities, self.modality_dtypes, strict=True):
            if dtype not in SUPPORTED_DTYPES:
                raise ValueError(
                    f"Modality {name!r} has dtype {dtype!r}; convert it to one of {list(SUPPORTED_DTYPES)}."
                )
        if self.palette and len(self.palette) != len(self.class_names):
            raise ValueError(f"`palette` has {len(self.palette)} colours for {len(self.class_names)} classes.")

    def is_series(self, name: str) -> bool:
        """Whether a modality has many dates in a row."""
        return self.series is not None and self.series[self.modalities.index(name)]

    def features(self) -> "Features":
        """Columns: `id`, the modalities in order, `label`, and those of `ROW_COLUMNS` that there are.

        That of a series is a list of what the cell of one raster holds, and its dates come after it.
        """
        from datasets import Features, Image, List, Value

        columns: dict[str, Any] = {"id": Value("string")}
        for name, channels, dtype in zip(self.modalities, self.modality_channels, self.modality_dtypes, strict=True):
            columns[name] = Image() if uses_image_column(channels, dtype) else Value("binary")
            if self.is_series(name):
                columns[name] = List(columns[name])
                columns[name + DATES_SUFFIX] = List(Value("timestamp[ms]"))
        time = {"sequence": Value("string"), "label_date": Value("timestamp[ms]")} if self.sequences else {}
        further = {name: Image() for name in ("scoring_label", "preview") if getattr(self, name)}
        return Features({**columns, "label": Image(), **time, **further})

    def note_on(self, split: str) -> str | None:
        """How a split was made, by any of its names; None where nobody said."""
        return self.split_notes.get(split, self.split_notes.get(SPLIT_ALIASES.get(split, split)))

    def save(self, directory: str | os.PathLike) -> Path:
        """Write `sgma_dataset.json` into `directory`, whole or not at all."""
        path = Path(directory) / METADATA_FILE
        write_json(path, {name: value for name, value in asdict(self).items() if name != "series" or value})
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
            from huggingface_hub import hf_hub_download
            from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

            try:
                path = Path(hf_hub_download(str(directory_or_id), METADATA_FILE, repo_type="dataset"))
            except LocalEntryNotFoundError:
                logger.warning(f"{METADATA_FILE} of {directory_or_id} is not cached and the Hub cannot be reached.")
                return None
            except EntryNotFoundError:
                return None
        return read_dataclass(cls, path, "metadata of a dataset") if path.is_file() else None


def check_meaning(
    metadata: DatasetMetadata | None, config: "PreTrainedConfig", processor: "BaseImageProcessor"
) -> None:
    """Compare a data set with a model that is to be evaluated on it or trained further.

    The processor takes over the data set's nodata values, with a warning: in these rows they are no measurements,
    whatever they were in those that the model knows. Another resolution is said. Raises ValueError if a class of the
    data set is one of the model's under another id. Without metadata nothing is compared.
    """
    if metadata is None:
        return
    other = other_resolution(metadata.resolution, processor.resolution)
    if other is not None:
        logger.warning(f"The data set {other}.")
    check_class_names(metadata.class_names, config.class_names)
    for name, values in zip(metadata.modalities, metadata.nodata, strict=True):
        if name not in processor.modalities:
            continue
        index = processor.modalities.index(name)
        new = [value for value in values if value not in processor.nodata[index]]
        if new:
            logger.warning(
                f"The data set declares {new} of modality {name!r} to be no data, which the checkpoint's processor "
                f"does not know (its `nodata` of {name!r} is {processor.nodata[index]}): they count as no data."
            )
            processor.nodata[index] = [*processor.nodata[index], *new]


def other_resolution(found: float | None, trained: float | None) -> str | None:
    """What to say of metres per pixel, None if unknown, that are more than 1.5 times apart from those trained on."""
    if found is None or trained is None or max(found / trained, trained / found) <= LARGEST_STEP:
        return None
    how = f"{trained / found:.2g} times as large" if found < trained else f"{found / trained:.2g} times as small"
    return f"has {found:.3g} m per pixel, the model was trained on {trained:.3g} m: things look {how} as it knows them"


def check_class_names(there: list[str], known: list[str], what: str = "The data set's classes") -> None:
    """Raise ValueError if a class that is named there is one of the model's under another id; warn of other names."""
    ids = {_plain(name): index for index, name in enumerate(known)}
    moved = [(index, name) for index, name in enumerate(there) if ids.get(_plain(name), index) != index]
    if moved:
        listed = ", ".join(f"{name!r} is {index} there and {ids[_plain(name)]} here" for index, name in moved)
        raise ValueError(
            f"{what} are {there}, the model's {known}: {listed}. Give them in the model's order by `--classes`, to "
            "`sgma-hf convert-rasters` where a data set is to be made."
        )
    if there and list(map(_plain, there)) != list(map(_plain, known)):
        logger.warning(
            f"{what} are called {there}, the model's {known}: label ids are taken as the model's classes. Make sure "
            "that they mean the same."
        )


def _plain(name: str) -> str:
    """A class's name however it is written: "Low vegetation" is "low_vegetation"."""
    return name.casefold().replace("_", " ").replace("-", " ").strip()
