"""Writes a dataset of procedural scenes in which no sensor suffices alone: colour, height and near infrared.

    sgma-hf demo-scenes --output data/demo --tiles 240 --tile_size 128

The scenes hold the conflicts that fusion is about (see `scene_painting.paint_scene`). The training split is incomplete
on purpose: some rows lack a modality, and some flights end inside the scene. Validation and test rows are complete.
"""

import argparse
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from ..data.command_line import Parser, report_errors
from ..data.metadata import DatasetMetadata
from ..publishing.push import add_push_arguments, push_as_asked
from .scene_painting import PIXEL_SIZE, PaintedScene, paint_scene
from .writing.parquet import ParquetDatasetWriter


MODALITIES = ("rgb", "dsm", "nir")
CLASS_NAMES = ("impervious", "building", "low_vegetation", "tree", "car")
# Told apart under the common colour blindnesses (after Okabe and Ito, 2008).
PALETTE = ((187, 187, 187), (213, 94, 0), (240, 228, 66), (0, 158, 115), (0, 114, 178))
SPLITS = ("train", "validation", "test")
DSM_NODATA = -9999.0
IMAGE_NODATA = 0
NODATA = {"rgb": IMAGE_NODATA, "dsm": DSM_NODATA, "nir": IMAGE_NODATA}
TILES_PER_SIDE = 2  # of a scene: small ones, so that the splits see many suns, slopes and lawns


def demo_metadata() -> DatasetMetadata:
    """What the columns of the demo scenes mean."""
    return DatasetMetadata(
        modalities=list(MODALITIES),
        modality_channels=[3, 1, 1],
        modality_dtypes=["uint8", "float32", "uint8"],
        nodata=[[float(NODATA[name])] for name in MODALITIES],
        units=[None, "m", None],
        class_names=list(CLASS_NAMES),
        palette=[list(colour) for colour in PALETTE],
        resolution=PIXEL_SIZE,
        split_notes={
            "train": "Painted scenes; some rows and places lack a modality on purpose.",
            **dict.fromkeys(SPLITS[1:], "Complete scenes of their own, painted by the rules of the training scenes."),
        },
    )


def split_sizes(num_tiles: int, what: str = "tiles") -> dict[str, int]:
    """Rows per split, 70 : 15 : 15, at least one each."""
    if num_tiles < len(SPLITS):
        raise ValueError(f"{num_tiles} {what} cannot fill the splits {list(SPLITS)}. Ask for 3 or more (--{what}).")
    held_out = max(1, round(0.15 * num_tiles))
    return {"train": num_tiles - 2 * held_out, "validation": held_out, "test": held_out}


def demo_rows(
    *, num_tiles: int, tile_size: int = 128, seed: int = 0, missing: float = 0.2, coverage: float = 0.25
) -> Iterator[tuple[str, str, dict[str, np.ndarray | None], np.ndarray]]:
    """Generate the rows of the demo scenes, in order, as `ParquetDatasetWriter.write` takes them.

    A scene gives up to four tiles, all to one split. The same arguments give the same rows, and a larger `num_tiles`
    goes on with further scenes.

    Args:
        num_tiles: Rows in all.
        tile_size: Side of a tile in pixels of 0.35 m.
        seed: Decides everything.
        missing: Share of training rows that lack one or two of the three modalities.
        coverage: Per training scene and modality, the chance that the modality's flight ends inside the scene.
    """
    if tile_size < 32:
        raise ValueError(f"`tile_size` is {tile_size} pixels; a street needs 32 or more.")
    if seed < 0:
        raise ValueError(f"`seed` is {seed}; it must not be negative.")
    for name, share in (("missing", missing), ("coverage", coverage)):
        if not 0 <= share <= 1:
            raise ValueError(f"`{name}` is {share}; expected a share between 0 and 1.")
    for split_index, (split, count) in enumerate(split_sizes(num_tiles).items()):
        incomplete = split == "train"
        for index in range(count):
            scene_index, tile = divmod(index, TILES_PER_SIDE**2)
            if tile == 0:
                rng = np.random.default_rng([seed, split_index, scene_index])
                scene = paint_scene(rng, TILES_PER_SIDE * tile_size)
                rasters = _fly(rng, scene, coverage if incomplete else 0.0)
            top, left = (tile_size * part for part in divmod(tile, TILES_PER_SIDE))
            window = (slice(top, top + tile_size), slice(left, left + tile_size))
            tiles = {name: array[window] for name, array in rasters.items()}
            images = {name: array if (array != NODATA[name]).any() else None for name, array in tiles.items()}
            if incomplete:
                _drop_modalities(np.random.default_rng([seed, split_index, scene_index, tile]), images, missing)
            yield split, f"{split}_{scene_index:03d}_{tile}", images, scene.label[window]


def _fly(rng: np.random.Generator, scene: PaintedScene, coverage: float) -> dict[str, np.ndarray]:
    """Rasters of a scene; beyond a slanting line some hold nodata, as at the edge of a flight."""
    rasters = {"rgb": scene.rgb, "dsm": scene.dsm, "nir": scene.nir}
    size = scene.label.shape[0]
    y, x = np.mgrid[0:size, 0:size] / size - 0.5
    whole = MODALITIES[rng.integers(len(MODALITIES))]  # so that no place is left without any
    for name in MODALITIES:
        angle, reach, ends = rng.uniform(0, 2 * np.pi), rng.uniform(-0.15, 0.35), rng.random() < coverage
        if ends and name != whole:
            beyond = x * np.cos(angle) + y * np.sin(angle) > reach
            rasters[name] = rasters[name].copy()
            rasters[name][beyond] = NODATA[name]
    return rasters


def _drop_modalities(rng: np.random.Generator, images: dict[str, np.ndarray | None], missing: float) -> None:
    """Remove one or two modalities of some rows, never the last one, nor the last that covers the whole tile."""
    if rng.random() >= missing:
        return
    order = rng.permutation(len(MODALITIES))[: rng.integers(1, 3)]
    for name in (MODALITIES[index] for index in order):
        others = [array for other, array in images.items() if other != name and array is not None]
        if any(not (array == DSM_NODATA).any() and array.min(axis=(0, 1)).max() > IMAGE_NODATA for array in others):
            images[name] = None


def write_demo_scenes(
    out: str | os.PathLike,
    *,
    num_tiles: int = 240,
    tile_size: int = 128,
    seed: int = 0,
    missing: float = 0.2,
    coverage: float = 0.25,
    overwrite: bool = False,
) -> str:
    """Write the demo scenes as a dataset folder, see `demo_rows`; returns a summary for the terminal."""
    rows = demo_rows(num_tiles=num_tiles, tile_size=tile_size, seed=seed, missing=missing, coverage=coverage)
    writer = ParquetDatasetWriter(
        out,
        demo_metadata(),
        title="Procedural scenes: RGB, height and near infrared",
        description=(
            f"Suburbs painted by a program, {PIXEL_SIZE} m per pixel, tiles of {tile_size} x {tile_size} pixels: made "
            "for trying and testing multimodal segmentation, no evidence about the real world. Some training rows "
            "lack a modality, some modalities end inside the tile (nodata); validation and test are complete."
        ),
        command=(
            f"sgma-hf demo-scenes --output {Path(out).name} --tiles {num_tiles} --tile_size {tile_size} "
            f"--seed {seed} --missing {missing:g} --coverage {coverage:g}"
        ),
        overwrite=overwrite,
    )
    with writer:
        for row in tqdm(rows, total=num_tiles, desc="painting", unit="tile"):
            writer.write(*row)
    return writer.summary()


@report_errors("sgma-hf demo-scenes", on_stop="nothing was written; the same command starts anew")
def main(argv: list[str] | None = None) -> int:
    """Command line of the demo scenes; see the module's docstring."""
    parser = Parser(
        prog="sgma-hf demo-scenes",
        description="Write a dataset of procedural scenes: RGB, height and near infrared.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--output", type=Path, required=True, former=["--out"], help="folder to make; load_dataset(folder) reads it")
    add("--tiles", dest="num_tiles", type=int, default=240, help="rows in all, 70 : 15 : 15 %% per split")
    add("--tile_size", type=int, default=128, former=["--size"], help="side of a tile in pixels of 0.35 m")
    add("--seed", type=int, default=0, help="the same seed gives the same rows")
    add("--missing", type=float, default=0.2, help="share of training rows that lack a modality")
    add("--coverage", type=float, default=0.25, help="chance that a modality ends inside a training scene")
    parser.add_switch("--overwrite", help="replace an earlier dataset in --output")
    add_push_arguments(parser)
    arguments = parser.parse_args(argv)
    options = {name: value for name, value in vars(arguments).items() if name not in ("output", "push", "public")}
    sys.stdout.write(f"{write_demo_scenes(arguments.output, **options)}\n")
    push_as_asked(arguments)
    return 0
