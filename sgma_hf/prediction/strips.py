"""The finished strips of a map while it is computed: what a run that died goes on from."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..data.whole_files import write_json


ROWS_AT_ONCE = 64  # when strips are put together
_SUMS = "sums"


@dataclass(frozen=True)
class Layer:
    """One raster that is computed: the labels, or something beside them."""

    name: str  # "labels", or one of `EXTRAS`
    bands: tuple[str, ...]  # what each band is
    dtype: str = "float32"  # where NaN is nodata; or "uint8", where 255 is, or "int32", where 0 is
    palette: tuple[tuple[int, ...], ...] = ()  # [red, green, blue] in 0..255 per value of a "uint8" layer
    tags: Mapping[str, str] = field(default_factory=dict)  # names of the values, or what else a reader has to know


class StripStore:
    """The finished strips of a run, in a hidden folder beside its output: what `resume` goes on from.

    A strip is a few hundred rows of the map, in raw files, and what was added up over its pixels; that of the labels
    is named last, so where it is, the strip is whole. A map of one strip has nothing to go on from: `in_memory`, it is
    held there, and the folder is for what is made of it.

    `fingerprint`, which JSON can hold, has to be the same for pixels of two runs to fit together. `run` names what the
    map is made of: model, rasters and options, but not the layers. Extras of two runs of one name belong to the same
    map.
    """

    def __init__(
        self,
        label_map: Path,
        width: int,
        layers: Sequence[Layer],
        fingerprint: Mapping[str, Any],
        *,
        in_memory: bool = False,
    ):
        self.folder = label_map.with_name(f".{label_map.name}.partial")
        self.width = width
        self.layers = list(layers)
        self.held: dict[str, list[np.ndarray]] | None = {} if in_memory else None
        self._sums: dict[str, Any] = {}
        self.tags: dict[str, str] = {}  # of every file, beside what it holds
        self.labels: np.ndarray | None = None  # the whole label map where it is another one than the strips hold
        self._fingerprint = json.loads(json.dumps({**fingerprint, "outputs": [layer.name for layer in layers]}))
        self.run = hashlib.sha256(json.dumps(fingerprint, sort_keys=True).encode()).hexdigest()

    def prepare(self, *, resume: bool, or_anew: bool = False) -> None:
        """Make the folder; empty, unless an earlier run is resumed.

        If that was another run it is a ValueError, or the folder is emptied where `or_anew`.
        """
        record = self.folder / "run.json"
        if resume and self.held is None and record.is_file():
            earlier = json.loads(record.read_text(encoding="utf-8"))
            differing = [key for key, value in self._fingerprint.items() if earlier.get(key) != value]
            if not differing:
                return
            if not or_anew:
                raise ValueError(
                    f"The run that left {self.folder} differs from this one in {differing}, so its strips do not "
                    "fit. Repeat the command as it was, or start anew without `resume`."
                )
        self.remove()
        self.folder.mkdir(parents=True)
        if self.held is None:
            try:
                write_json(record, self._fingerprint)
            except OSError:
                self.remove()
                raise

    def path(self, strip: int, layer: str) -> Path:
        """Raw file of one layer of a strip."""
        return self.folder / f"{strip:06d}.{layer}"

    def has(self, strip: int) -> bool:
        """Whether a strip is finished."""
        return self.path(strip, self.layers[0].name).is_file()

    def _finished(self) -> list[Path]:
        return sorted(self.folder.glob(f"*.{self.layers[0].name}"))

    def is_empty(self) -> bool:
        """Whether there is nothing to go on from."""
        return not self._finished()

    def rows(self, layer: Layer) -> Iterator[tuple[int, np.ndarray]]:
        """All finished strips in order, some rows at a time: first row and values, (bands, rows, width)."""
        top = 0
        for values in self._parts(layer):
            yield top, values
            top += values.shape[1]

    def _parts(self, layer: Layer) -> Iterator[np.ndarray]:
        if layer is self.layers[0] and self.labels is not None:
            yield self.labels[None]
            return
        if self.held is not None:
            yield from self.held[layer.name]
            return
        row = len(layer.bands) * self.width * np.dtype(layer.dtype).itemsize
        for labels in self._finished():
            with open(self.path(int(labels.stem), layer.name), "rb") as file:
                while raw := file.read(ROWS_AT_ONCE * row):
                    values = np.frombuffer(raw, layer.dtype).reshape(-1, len(layer.bands), self.width)
                    yield values.transpose(1, 0, 2)

    def sums(self) -> dict[str, np.ndarray]:
        """What was added up over the pixels of all strips, see `StripWriter.commit`."""
        if self.held is not None:
            return self._sums
        parts = [json.loads(self.path(int(labels.stem), _SUMS).read_text()) for labels in self._finished()]
        return {name: np.sum([part[name] for part in parts], axis=0) for name in parts[0]}

    def remove(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)


class StripWriter:
    """Writes one strip, a few rows at a time; `commit` makes it count."""

    def __init__(self, store: StripStore, strip: int):
        self._store, self._strip = store, strip
        self._files: dict[str, BinaryIO] = {}

    def append(self, rows: Mapping[str, np.ndarray]) -> None:
        """Append rows of every layer, each (bands, rows, width)."""
        for layer in self._store.layers:
            values = rows[layer.name].astype(layer.dtype, copy=False)
            if self._store.held is not None:
                self._store.held.setdefault(layer.name, []).append(values)
                continue
            if layer.name not in self._files:
                path = self._store.path(self._strip, layer.name)
                self._files[layer.name] = open(f"{path}.writing", "wb")
            self._files[layer.name].write(np.ascontiguousarray(values.transpose(1, 0, 2)))

    def commit(self, sums: Mapping[str, np.ndarray]) -> None:
        """Close and name the files, labels last; `sums` are arrays that add up over strips."""
        if self._store.held is not None:
            self._store._sums = dict(sums)
            return
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())
            file.close()
        write_json(self._store.path(self._strip, _SUMS), {name: values.tolist() for name, values in sums.items()})
        for layer in reversed(self._store.layers):
            path = self._store.path(self._strip, layer.name)
            os.replace(f"{path}.writing", path)
