"""Cuts the scenes of a data set into rows, a strip of tiles in memory at a time."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np

from ...data.incomplete_rows import RowWithholder, free_fill_value
from ...data.metadata import DatasetMetadata
from ...data.windows import Window
from ...model.limits_sgma import DATES_SUFFIX
from ..folders.tiling import Tiling
from ..writing.parquet import encode_row
from .dataset import LABEL, SCORING_LABEL, BenchmarkDataset, Scene


@dataclass
class BenchmarkRow:
    """A row before it is encoded."""

    row_id: str  # begins with the scene's name
    images: dict[str, Any]  # by modality, None where missing; those of a series in a list, with their dates
    label: np.ndarray | None  # uint8 class ids, None where nobody labelled
    scoring_label: np.ndarray | None  # the same of the labels to score by, None where there are none
    taken: list[str]  # what was withheld on purpose
    sequence: str | None = None  # which video or place it is a part of

    def encoded(self, metadata: DatasetMetadata) -> dict[str, Any]:
        """The row as it is written."""
        further = {"scoring_label": self.scoring_label, "sequence": self.sequence}
        return encode_row(metadata, self.row_id, self.images, self.label, **further)


class RowMaker:
    """Makes the rows of scenes; refuses options that name modalities that there are not, or an impossible tile."""

    def __init__(self, dataset: BenchmarkDataset) -> None:
        options = dataset.options
        self.dataset = dataset
        self.metadata: DatasetMetadata = dataset.metadata()
        self.withholder = RowWithholder(self.metadata, options.missing, options.coverage, seed=options.missing_seed)
        self.tiling = Tiling(options.tile, options.stride)

    def num_bytes(self, scene: Scene, size: tuple[int, int]) -> int:
        """About the bytes of the rows of a scene of `size` (height, width), before compression."""
        pixels = sum(window.height * window.width for window in self.tiling.windows(size, scene.split))
        bands = (
            item.channels * np.dtype(item.dtype).itemsize * len(scene.dates.get(item.name, [None]))
            for item in self.dataset.modalities
        )
        return pixels * (1 + sum(bands))

    def rows(self, scene: Scene) -> Iterator[BenchmarkRow]:
        """Read a scene and yield its rows, from top left to bottom right; ValueError names a file that is damaged."""
        dataset, is_whole = self.dataset, self.tiling.tile is None
        try:
            height, width = dataset.scene_size(scene)
            for top, windows in groupby(self.tiling.windows((height, width), scene.split), lambda window: window.top):
                strip = Window(top, 0, min(height - top, self.tiling.tile or height), width)
                columns = (*self.metadata.modalities, *dataset.label_columns)
                strips = {name: dataset.read(scene, name, strip) for name in columns}
                for window in windows:
                    row_id = scene.name if is_whole else f"{scene.name}_y{top:05d}_x{window.left:05d}"
                    # A whole scene may hold a modality of another resolution.
                    columns = slice(None) if is_whole else window.slices[1]
                    images = {name: _each(_part, values, columns) for name, values in strips.items()}
                    labels = (images.pop(name, None) for name in (LABEL, SCORING_LABEL))
                    labels = [
                        None if label is None else self.tiling.label(label, window, scene.split) for label in labels
                    ]
                    if all(image is None for image in images.values()):
                        continue
                    # Integers that may end inside a tile have 0 for "no data", which they must not hold otherwise.
                    images |= {name: _each(free_fill_value, images[name], 0) for name in dataset.filled}
                    images |= {f"{name}{DATES_SUFFIX}": days for name, days in scene.dates.items() if images[name]}
                    taken = []
                    if scene.split == "train":  # what is judged stays complete
                        images, taken = self.withholder.apply(row_id, images)
                    sequence = scene.sequence and f"{scene.sequence}{row_id.removeprefix(scene.name)}"
                    yield BenchmarkRow(row_id, images, *labels, taken, sequence)
        finally:
            dataset.readers.close()


def _each(change: Callable[..., Any], values: Any, *arguments: Any) -> Any:
    """Change one raster, or each of a series; None stays."""
    if isinstance(values, list):
        return [change(value, *arguments) for value in values]
    return None if values is None else change(values, *arguments)


def _part(raster: np.ndarray, columns: slice) -> np.ndarray:
    return raster[:, columns]
