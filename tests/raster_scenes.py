"""GeoTIFFs to predict from, and a stand-in model whose map is known pixel by pixel."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny_models import tiny_config

from sgma_hf import SgmaImageProcessor


UTM = "EPSG:32631"
CLASSES = ["low", "middle", "high"]
PALETTE = [[0, 0, 200], [120, 120, 120], [200, 40, 40]]


def write_tiff(path, values, *, origin=(500000.0, 4800000.0), pixel=1.0, transform=None, crs=UTM, **profile):
    """GeoTIFF of (C, H, W) values, north up unless `transform` says otherwise."""
    rasterio = pytest.importorskip("rasterio")
    mask, alpha = profile.pop("mask", None), profile.pop("alpha", False)
    if transform is None and crs is not None:
        transform = rasterio.Affine(pixel, 0, origin[0], 0, -pixel, origin[1])
    if transform is not None:
        profile["transform"] = transform
    count, height, width = values.shape
    options = {"driver": "GTiff", "count": count, "height": height, "width": width, "dtype": values.dtype.name}
    with rasterio.open(path, "w", **(options | {"crs": crs} | profile)) as target:
        target.write(values)
        if alpha:
            target.colorinterp = [*target.colorinterp[:-1], rasterio.enums.ColorInterp.alpha]
        if mask is not None:
            target.write_mask(mask)
    return str(path)


class HeightClasses(torch.nn.Module):
    """Class 0, 1 or 2 for a normalised height below -0.5, between, or above 0.5; no height is class 1.

    Modalities "dsm" and "rgb"; the scores depend on the pixel alone.
    """

    def __init__(self):
        super().__init__()
        names = dict(enumerate(CLASSES))
        self.config = tiny_config(
            modalities=["dsm", "rgb"], modality_channels=[1, 3], num_labels=3, id2label=names, fusion="mean"
        )
        self.config.palette = PALETTE
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.tiles = 0

    @property
    def device(self):
        return self.weight.device

    @property
    def dtype(self):
        return self.weight.dtype

    def forward(self, pixel_values, modality_mask):
        self.tiles += len(pixel_values)
        if modality_mask.ndim == 2:
            modality_mask = modality_mask[..., None, None].expand(-1, -1, *pixel_values.shape[2:])
        height = torch.where(modality_mask[:, 0], pixel_values[:, 0], 0) * self.weight
        logits = torch.stack([-height, 0.5 + 0 * height, height], dim=1)
        return SimpleNamespace(logits=logits, coverage=modality_mask.any(1), robustness=None)


def height_processor():
    """Heights in metres, mean 10 and standard deviation 4 m, so that the classes part at 8 and 12 m."""
    return SgmaImageProcessor(
        ["dsm", "rgb"],
        [1, 3],
        image_mean=[[10.0], [0.5] * 3],
        image_std=[[4.0], [0.25] * 3],
        nodata=[[-9999.0, -32768.0], []],
        reference_level="none",
    )


def height_classes(heights):
    """What `HeightClasses` says of heights in metres."""
    return np.where(heights < 8, 0, np.where(heights > 12, 2, 1)).astype(np.uint8)
