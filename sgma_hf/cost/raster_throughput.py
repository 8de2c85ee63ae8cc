"""How much of the bare model's speed is left when it predicts from files: the whole of `predict_raster` against it."""

import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..model.image_processing_sgma import SgmaImageProcessor
from ..prediction.maps import predict_raster
from ..prediction.sliding_window import default_stride
from ..rasters.raster import require_rasterio
from .timing import median_ratio, time_in_turn


@torch.no_grad()
def measure_raster_throughput(
    model: Any,
    *,
    tile_size: int,
    tiles_per_side: int = 4,
    batch_size: int = 4,
    repeats: int = 3,
    seed: int = 0,
) -> dict[str, float]:
    """Time `predict_raster` on synthetic GeoTIFFs, and the model alone on the very same batches, held in memory.

    Both are timed in turn, so that whatever else the machine does hits them alike. `predict_raster` reads compressed
    files, normalises, blends overlapping tiles and writes a Cloud Optimized GeoTIFF besides. The scene is square, with
    a uint8 raster for each modality.

    Returns `raster_seconds` and `model_seconds`, medians over the rounds; `throughput_share`, the median of
    `model_seconds / raster_seconds`: the share of the bare model's throughput that is left; `megapixels` of the scene,
    `megapixels_per_second` of the whole, and `tiles`.
    """
    if min(tile_size, tiles_per_side, batch_size, repeats) < 1:
        raise ValueError(
            f"`tile_size`, `tiles_per_side`, `batch_size` and `repeats` are {tile_size}, {tiles_per_side}, "
            f"{batch_size} and {repeats}; expected at least 1 of each."
        )
    side = tile_size + (tiles_per_side - 1) * default_stride(tile_size)
    names, channels = model.config.modalities, model.config.modality_channels
    processor = SgmaImageProcessor(names, channels)
    batches: list[dict[str, torch.Tensor]] = []
    with tempfile.TemporaryDirectory(prefix="sgma_hf_") as folder:
        rasters = _write_rasters(Path(folder), dict(zip(names, channels, strict=True)), side, seed)

        def predict() -> None:
            options = {"tile_size": tile_size, "batch_size": batch_size, "allow_other_scale": True}
            predict_raster(model, processor, rasters, Path(folder) / "map.tif", **options)

        def run_model() -> None:
            for batch in batches:
                model(**batch)

        hook = model.register_forward_pre_hook(lambda module, args, inputs: batches.append(inputs), with_kwargs=True)
        predict()
        hook.remove()
        raster, alone = time_in_turn({"raster": predict, "model": run_model}, repeats).values()
    raster_seconds = statistics.median(raster)
    return {
        "raster_seconds": raster_seconds,
        "model_seconds": statistics.median(alone),
        "throughput_share": median_ratio(alone, raster),
        "megapixels": side**2 / 1e6,
        "megapixels_per_second": side**2 / 1e6 / raster_seconds,
        "tiles": sum(len(batch["pixel_values"]) for batch in batches),
    }


def _write_rasters(folder: Path, channels: dict[str, int], side: int, seed: int) -> dict[str, Path]:
    """A compressed GeoTIFF per modality, blocks of one value with noise, so that neither extreme is measured."""
    rasterio = require_rasterio(folder)
    generator = np.random.default_rng(seed)
    place = {"crs": "EPSG:32631", "transform": rasterio.Affine(0.2, 0, 500000, 0, -0.2, 4800000)}
    options = {"driver": "GTiff", "dtype": "uint8", "compress": "deflate", "tiled": True} | place
    rasters = {}
    for name, count in channels.items():
        coarse = generator.integers(20, 230, (count, -(-side // 32), -(-side // 32)))
        values = np.kron(coarse, np.ones((1, 32, 32), dtype=np.int64))[:, :side, :side]
        values = (values + generator.integers(0, 8, values.shape)).astype(np.uint8)
        rasters[name] = folder / f"{name}.tif"
        with rasterio.open(rasters[name], "w", count=count, height=side, width=side, **options) as target:
            target.write(values)
    return rasters
