"""A scene of a listing, and what names its rasters."""

import contextlib
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from ...data.rows import decode_row
from ...model.dates_sgma import observations
from ...model.limits_sgma import DATES_SUFFIX
from ..bands import ALL_BANDS, BandSelection
from ..dates import DateTable
from ..scene import dated, masked


@dataclass(frozen=True)
class ListedScene:
    """A scene, and what names its rasters."""

    name: str  # unique in its listing; a path below the folder of the maps, without a suffix
    rasters: Mapping[str, Sequence[str]] = field(default_factory=dict)  # by modality, see `RasterInput.parse`
    problem: str | None = None  # why it cannot be read
    masks: Mapping[str, tuple[Sequence[str], Sequence[float]]] = field(default_factory=dict)  # see `scene.masked`
    row: tuple[Dataset, int, Mapping[str, str]] | None = None  # of a data set: rows, index and column by modality
    is_dated: bool = False  # whether files of a modality are its dates, see `scene.dated`, and no mosaic
    table: DateTable | None = None  # of dates

    @property
    def modalities(self) -> list[str]:
        """Those that have a raster."""
        return list(self.rasters if self.row is None else self.row[2])

    @contextlib.contextmanager
    def opened(self, first: str | None = None) -> Iterator[dict[str, Sequence[Any]]]:
        """Its rasters as `RasterScene` takes them, those of a row for so long; ValueError if there is a problem.

        `first` is the modality that comes first, if it is there: that gives a map its grid.
        """
        if self.problem is not None:
            raise ValueError(self.problem)
        if self.row is None:
            entries: dict[str, Sequence[Any]] = {}
            for name in sorted(self.rasters, key=lambda name: name != first):
                files, hiding = self.rasters[name], self.masks.get(name, ((), ()))
                entries |= dated(name, files, *hiding, self.table) if self.is_dated else {name: masked(files, *hiding)}
            yield entries
            return
        rows, index, columns = self.row
        images, label = decode_row(rows[index], [column for column in columns.values() if column != "label"])
        images |= {"label": label} if "label" in columns.values() else {}
        with tempfile.TemporaryDirectory(prefix="sgma_hf_") as folder:
            entries = {}
            for name in sorted(columns, key=lambda name: name != first):
                column = columns[name]
                entries[name] = [
                    f"{folder}/{column}_{index}.npy" for index in range(len(observations(images, column)))
                ]
                for path, image in zip(entries[name], observations(images, column), strict=True):
                    np.save(path, image)
                if column + DATES_SUFFIX in images:
                    entries[name + DATES_SUFFIX] = images[column + DATES_SUFFIX]
            yield entries

    def version(self) -> list[Any]:
        """What is another one, as JSON has it, when the scene is another one: names, sizes, times of change."""
        if self.row is not None:
            rows, index, columns = self.row
            return [rows._fingerprint, index, dict(columns)]
        files = [[name, list(values)] for name, (_, values) in self.masks.items()]
        named_files = [*self.rasters.items(), *((name, masks) for name, (masks, _) in self.masks.items())]
        for name, raster in ((name, raster) for name, rasters in named_files for raster in rasters):
            path = Path(raster if Path(raster).exists() else BandSelection.parse(raster)[0])
            stat = path.stat() if path.exists() else None
            files.append([name, raster, stat and stat.st_size, stat and stat.st_mtime_ns])
        return files if self.table is None else [*files, self.table.version]


def named(raster: str | os.PathLike, bands: BandSelection) -> str:
    """A raster with the bands that are meant of it."""
    return str(raster) if bands == ALL_BANDS else f"{raster}:{bands}"


def file_name(text: str) -> str:
    """The name of a scene where that can be one of a file below a folder, else what is nearest to it."""
    parts = re.sub(r'[<>:"\\|?*\x00-\x1f]', "_", text).split("/")
    return "/".join(part.lstrip(".") or "_" for part in parts if part) or "_"
