"""Writes a dataset of made-up fields whose crops differ in their course through the year, and in nothing else.

    sgma-hf demo-series --output data/series --rows 480

Eight crops, two sensors with irregular dates of their own: four bands of reflectance with clouds, and two of
backscatter. On any one date several crops look alike: what tells them apart is when they are green. So a model without
dates cannot learn the data set, and one that has them can.
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
from .demo_scenes import split_sizes
from .scene_painting import smooth_noise
from .writing.parquet import ParquetDatasetWriter


CLASS_NAMES = ("bare", "evergreen", "meadow", "cereal", "rapeseed", "maize", "early_crop", "double_season")
PALETTE = (
    (187, 187, 187), (0, 114, 178), (0, 158, 115), (230, 159, 0),
    (240, 228, 66), (213, 94, 0), (204, 121, 167), (86, 180, 233),
)  # fmt: skip
PIXEL_SIZE = 10.0  # metres
PARCEL_PIXELS = 144  # of the area of a parcel, about
# Days of the year of the greatest growth and its spread, for crops that are sown and harvested.
_PEAKS = {"early_crop": [(105, 28)], "rapeseed": [(150, 28)], "cereal": [(195, 28)], "maize": [(245, 28)]}
_PEAKS["double_season"] = [(105, 25), (245, 25)]
_FLOWERING, _FLOWERING_DAYS = 135, 20
_CUTS, _REGROWTH = (135, 185, 235), 20.0
# Reflectance of green, red, near and short-wave infrared.
_SOIL, _LEAVES, _FLOWERS = (0.10, 0.14, 0.22, 0.28), (0.07, 0.04, 0.46, 0.16), (0.22, 0.20, 0.40, 0.18)
_BARE_BACKSCATTER, _GROWTH_BACKSCATTER = (-13.0, -20.0), (2.5, 5.0)  # dB, VV and VH


def demo_series_metadata() -> DatasetMetadata:
    """What the columns of the made-up fields mean."""
    return DatasetMetadata(
        modalities=["s2", "s1"],
        modality_channels=[4, 2],
        modality_dtypes=["uint16", "float32"],
        nodata=[[0.0], []],
        series=[True, True],
        units=["reflectance x 10000", "dB"],
        class_names=list(CLASS_NAMES),
        palette=[list(colour) for colour in PALETTE],
        resolution=PIXEL_SIZE,
        split_notes=dict.fromkeys(("train", "validation", "test"), "Fields of their own, made by one set of rules."),
    )


def growth(crop: str, days: np.ndarray) -> np.ndarray:
    """How green a crop is on days of the year, in [0, 1], of the shape of `days`."""
    if crop in ("bare", "evergreen"):
        return np.full(days.shape, 0.05 if crop == "bare" else 0.75)
    if crop == "meadow":
        since = np.min([np.where(days >= cut, days - cut, np.inf) for cut in _CUTS], axis=0)
        return 0.8 - 0.6 * np.exp(-since / _REGROWTH)
    bumps = [np.exp(-0.5 * ((days - peak) / spread) ** 2) for peak, spread in _PEAKS[crop]]
    return 0.05 + 0.9 * np.max(bumps, axis=0)


def demo_series_rows(
    *, num_rows: int, tile_size: int = 32, seed: int = 0
) -> Iterator[tuple[str, str, dict[str, list], np.ndarray]]:
    """The rows in order, as `ParquetDatasetWriter.write` takes them; the same arguments give the same rows.

    Args:
        num_rows: Rows in all, 70 : 15 : 15 % for training, validation and test.
        tile_size: Side of a row in pixels of 10 m.
        seed: Decides everything.
    """
    if tile_size < 16:
        raise ValueError(f"`tile_size` is {tile_size} pixels; fields need 16 or more.")
    if seed < 0:
        raise ValueError(f"`seed` is {seed}; it must not be negative.")
    places = [
        (split, [seed, split_index, index])
        for split_index, (split, count) in enumerate(split_sizes(num_rows, "rows").items())
        for index in range(count)
    ]
    return (
        (split, f"{split}_{key[-1]:04d}", *_paint_fields(np.random.default_rng(key), tile_size))
        for split, key in places
    )


def _paint_fields(rng: np.random.Generator, size: int) -> tuple[dict[str, list], np.ndarray]:
    """Images and dates of both sensors, and the label."""
    parcels = _parcels(rng, size)
    count = parcels.max() + 1
    crops = rng.integers(0, len(CLASS_NAMES), count)
    # Seasons come early or late, in the whole place and in single fields; no field is as lush as another.
    shifts = rng.normal(0, 4) + rng.normal(0, 6, count)
    vigour, soil = rng.uniform(0.7, 1.0, count), rng.uniform(0.8, 1.2, count)
    year = np.datetime64(f"{rng.integers(2016, 2022)}-01-01")
    images: dict[str, list] = {}
    for name, paint in (("s2", _reflectance), ("s1", _backscatter)):
        days = np.sort(rng.choice(np.arange(20, 346), rng.integers(5, 11), replace=False))
        green = np.zeros((len(days), count))
        flowers = np.zeros((len(days), count), dtype=bool)
        for parcel, crop in enumerate(CLASS_NAMES[crop] for crop in crops):
            local = days - shifts[parcel]
            green[:, parcel] = vigour[parcel] * growth(crop, local)
            flowers[:, parcel] = (crop == "rapeseed") & (np.abs(local - _FLOWERING) <= _FLOWERING_DAYS / 2)
        images[name] = [paint(rng, parcels, g, f, soil) for g, f in zip(green, flowers, strict=True)]
        images[f"{name}_dates"] = list(year + days)
    return images, crops.astype(np.uint8)[parcels]


def _parcels(rng: np.random.Generator, size: int) -> np.ndarray:
    """Number of the nearest of some random points, for every pixel."""
    points = rng.uniform(0, size, (max(2, size * size // PARCEL_PIXELS), 2))
    rows, columns = np.mgrid[0:size, 0:size]
    return ((rows - points[:, :1, None]) ** 2 + (columns - points[:, 1:, None]) ** 2).argmin(0)


def _reflectance(
    rng: np.random.Generator, parcels: np.ndarray, green: np.ndarray, flowers: np.ndarray, soil: np.ndarray
) -> np.ndarray:
    """One date of four bands, uint16 (size, size, 4), 0 under clouds: a third clear, a quarter nearly covered."""
    cover = np.where(flowers[:, None], _FLOWERS, _LEAVES)
    fields = (1 - green)[:, None] * soil[:, None] * _SOIL + green[:, None] * cover
    values = fields[parcels] + rng.uniform(0, 0.03) + rng.normal(0, 0.015, (*parcels.shape, 4))
    share = rng.choice([0.0, 0.35, 0.8], p=[0.35, 0.4, 0.25])
    clouds = smooth_noise(rng, len(parcels), len(parcels) / 3)
    values[clouds < np.quantile(clouds, share)] = 0
    return np.clip(np.rint(values * 1e4), 0, 65535).astype(np.uint16)


def _backscatter(
    rng: np.random.Generator, parcels: np.ndarray, green: np.ndarray, flowers: np.ndarray, soil: np.ndarray
) -> np.ndarray:
    """One date of two bands in dB, float32 (size, size, 2), with speckle."""
    fields = np.asarray(_BARE_BACKSCATTER) + green[:, None] * _GROWTH_BACKSCATTER
    return (fields[parcels] + rng.normal(0, 3, (*parcels.shape, 2))).astype(np.float32)


def write_demo_series(
    out: str | os.PathLike, *, num_rows: int = 480, tile_size: int = 32, seed: int = 0, overwrite: bool = False
) -> str:
    """Write the made-up fields as a dataset folder, see `demo_series_rows`; returns a summary for the terminal."""
    writer = ParquetDatasetWriter(
        out,
        demo_series_metadata(),
        title="Made-up fields: series of two sensors",
        description=(
            f"Fields made by a program, {PIXEL_SIZE:g} m per pixel, {tile_size} x {tile_size} pixels, with 5 to 10 "
            "dates of each of two sensors, and clouds: for trying and testing segmentation of series, no evidence "
            "about the real world. The crops differ in when they are green, and look alike on single dates."
        ),
        command=(
            f"sgma-hf demo-series --output {Path(out).name} --rows {num_rows} --tile_size {tile_size} --seed {seed}"
        ),
        overwrite=overwrite,
    )
    with writer:
        rows = demo_series_rows(num_rows=num_rows, tile_size=tile_size, seed=seed)
        for row in tqdm(rows, total=num_rows, desc="growing", unit="row"):
            writer.write(*row)
    return writer.summary()


@report_errors("sgma-hf demo-series", on_stop="nothing was written; the same command starts anew")
def main(argv: list[str] | None = None) -> int:
    """Command line of the made-up fields; see the module's docstring."""
    parser = Parser(
        prog="sgma-hf demo-series",
        description="Write a dataset of made-up fields with series of two sensors.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--output", type=Path, required=True, help="folder to make; load_dataset(folder) reads it")
    add("--rows", dest="num_rows", type=int, default=480, help="rows in all, 70 : 15 : 15 %% per split")
    add("--tile_size", type=int, default=32, help="side of a row in pixels of 10 m")
    add("--seed", type=int, default=0, help="the same seed gives the same rows")
    parser.add_switch("--overwrite", help="replace an earlier dataset in --output")
    add_push_arguments(parser)
    arguments = parser.parse_args(argv)
    options = {name: value for name, value in vars(arguments).items() if name not in ("output", "push", "public")}
    sys.stdout.write(f"{write_demo_series(arguments.output, **options)}\n")
    push_as_asked(arguments)
    return 0
