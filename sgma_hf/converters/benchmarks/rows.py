"""Cuts the scenes of a data set into rows, a strip of tiles in memory at a time."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from ...data.incomplete_rows import RowWithholder, free_fill_value
from ...data.metadata import DatasetMetadata
from ..folders.tiling import Tiling
from .dataset import LABEL, BenchmarkDataset, Scene


@dataclass
class BenchmarkRow:
    """A row before it is encoded.

    Args:
        row_id: Begins with the scene's name.
        images: Raster by modality, None where missing.
        label: uint8 class ids, None where nobody labelled.
        taken: What was withheld on purpose.
        num_pixels: Of the reference grid.
    """

    row_id: str
    images: dict[str, np.ndarray | None]
    label: np.ndarray | None
    taken: list[str]
    num_pixels: int


class RowMaker:
    """Makes the rows of scenes.

    Args:
        dataset: Reader of the data set, with its options.

    Raises:
        ValueError: If the options name modalities that there are not, or a tile size that cannot be.
    """

    def __init__(self, dataset: BenchmarkDataset) -> None:
        options = dataset.options
        self.dataset = dataset
        self.metadata: DatasetMetadata = dataset.metadata()
        self.withholder = RowWithholder(self.metadata, options.missing, options.coverage, seed=options.missing_seed)
        self.tiling = Tiling(options.tile, options.stride)

    def num_bytes(self, size: tuple[int, int], split: str) -> int:
        """About the bytes of the rows of a scene of `size` (height, width), before compression."""
        pixels = sum(window[2] * window[3] for window in self.tiling.windows(size, split))
        return pixels * (1 + sum(item.channels * np.dtype(item.dtype).itemsize for item in self.dataset.modalities))

    def rows(self, scene: Scene) -> Iterator[BenchmarkRow]:
        """Read a scene and yield its rows, from top left to bottom right.

        Raises:
            ValueError: If a file is damaged; it is named.
        """
        dataset = self.dataset
        size = dataset.scene_size(scene)
        columns = [*self.metadata.modalities, LABEL]
        is_whole = dataset.options.tile is None
        try:
            tiles_of_scene = self.tiling.windows(size, scene.split)
            for (top, height), windows in groupby(tiles_of_scene, key=lambda window: (window[0], window[2])):
                strips = {column: dataset.read(scene, column, (top, 0, height, size[1])) for column in columns}
                for window in windows:
                    _, left, _, width = window
                    row_id = scene.name if is_whole else f"{scene.name}_y{top:05d}_x{left:05d}"
                    tiles = {
                        # A whole scene may hold a modality of another resolution.
                        name: strip if strip is None or is_whole else strip[:, left : left + width]
                        for name, strip in strips.items()
                    }
                    label = tiles.pop(LABEL)
                    if label is not None:
                        label = self.tiling.label(label, window, scene.split)
                    if any(tile is not None for tile in tiles.values()):
                        yield self._row(scene.split, row_id, tiles, label, num_pixels=height * width)
        finally:
            dataset.readers.close()

    def _row(
        self,
        split: str,
        row_id: str,
        images: dict[str, np.ndarray | None],
        label: np.ndarray | None,
        *,
        num_pixels: int,
    ) -> BenchmarkRow:
        # Integers that may end inside a tile have 0 for "no data", which they must not hold otherwise.
        images = images | {name: free_fill_value(images[name], 0) for name in self.dataset.filled}
        taken: list[str] = []
        if split == "train":  # what is judged stays complete
            images, taken = self.withholder.apply(row_id, images)
        return BenchmarkRow(row_id, images, label, taken, num_pixels)
