"""A picture of a few rows of a data set, with the official colours."""

import io
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image

from .dataset import SPLITS, BenchmarkDataset, Scene
from .rows import BenchmarkRow, RowMaker


_ROWS_LOOKED_AT = 36  # of a scene: about a quarter of a 6000-pixel tile
_ROWS_SHOWN = 3


def save_preview(dataset: BenchmarkDataset, scenes: Sequence[Scene], path: Path) -> None:
    """Draw rows of some sound scenes under each other: modalities, labels and a legend; what is missing is hatched.

    Raises:
        ValueError: If there are no scenes.
        ImportError: If matplotlib is missing (extra `viz`).
    """
    if not scenes:
        raise ValueError("There are no sound scenes to draw.")
    first_of = {scene.split: scene for scene in reversed(scenes)}
    firsts = [first_of[split] for split in SPLITS if split in first_of]
    chosen = [*firsts, *(scene for scene in scenes if scene not in firsts)][:_ROWS_SHOWN]
    boards = [_board(dataset, scene) for scene in chosen]
    picture = Image.new("RGB", (max(board.width for board in boards), sum(board.height for board in boards)), "white")
    top = 0
    for board in boards:
        picture.paste(board, (0, top))
        top += board.height
    picture.save(path)


def _board(dataset: BenchmarkDataset, scene: Scene) -> Image.Image:
    from ...visualization.boards import plot_sample  # imports torch

    maker = RowMaker(dataset)
    metadata = maker.metadata
    row = max(islice(maker.rows(scene), _ROWS_LOOKED_AT), key=_interest)
    figure = plot_sample(
        row.images,
        label=row.label,
        nodata=dict(zip(metadata.modalities, metadata.nodata, strict=True)),
        units=dict(zip(metadata.modalities, metadata.units, strict=True)),
        class_names=metadata.class_names,
        palette=metadata.palette,
        title=f"{scene.split}: {row.row_id}{' (no label)' if row.label is None else ''}",
    )
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return Image.open(buffer).convert("RGB")


def _interest(row: BenchmarkRow) -> tuple[bool, int]:
    """Rows that were made incomplete first, then those with many classes."""
    return bool(row.taken), 0 if row.label is None else len(np.unique(row.label))
