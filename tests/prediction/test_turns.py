"""Maps over test-time turns: a pointwise model's map stays, a network's is the mean over the positions."""

import itertools

import numpy as np
import pytest
import torch
from raster_scenes import HeightClasses, height_classes, height_processor, write_tiff
from tiny_models import spread_weights, tiny_model

from sgma_hf import SgmaImageProcessor
from sgma_hf.model.cells_sgma import upsample_to_pixels
from sgma_hf.prediction.maps import predict_raster


rasterio = pytest.importorskip("rasterio")


def _heights(height, width):
    return np.random.default_rng(0).uniform(0, 20, (1, height, width)).astype(np.float32)


def _read(path):
    with rasterio.open(path) as file:
        return file.read()


@pytest.mark.parametrize("tta", ["flips", "d4"])
@pytest.mark.parametrize("size", [(70, 101), (33, 20)])
def test_map_of_a_pointwise_model_stays_as_it_is(tmp_path, tta, size):
    heights = _heights(*size)
    heights[:, 8:20, 4:15] = -9999
    dsm = write_tiff(tmp_path / "dsm.tif", heights, nodata=-9999)
    predict_raster(
        HeightClasses(), height_processor(), {"dsm": dsm}, tmp_path / "map.tif", tile_size=32, stride=20, tta=tta
    )
    expected = height_classes(heights[0])
    expected[8:20, 4:15] = 255
    np.testing.assert_array_equal(_read(tmp_path / "map.tif")[0], expected)


def test_probabilities_are_those_of_the_mean_logits(tmp_path):
    model = spread_weights(tiny_model(modalities=["rgb", "dsm"], modality_channels=[3, 1])).eval()
    processor = SgmaImageProcessor(["rgb", "dsm"], [3, 1])
    rgb = np.random.default_rng(3).integers(1, 255, (3, 40, 52)).astype(np.uint8)
    files = {"rgb": write_tiff(tmp_path / "rgb.tif", rgb)}
    options = {"tile_size": 64, "extras": ["probabilities", "robustness"]}
    predict_raster(model, processor, files, tmp_path / "map.tif", tta="d4", **options)
    values = processor(images=[{"rgb": rgb.transpose(1, 2, 0), "dsm": None}], return_tensors="pt")["pixel_values"]
    mask, total = torch.tensor([[True, False]]), 0
    for mirrored, quarters in itertools.product([False, True], range(4)):
        turned = np.rot90(values.numpy()[..., ::-1] if mirrored else values.numpy(), quarters, (2, 3)).copy()
        with torch.no_grad():
            logits = model(pixel_values=torch.from_numpy(turned), modality_mask=mask).logits
        logits = upsample_to_pixels(logits, 4, turned.shape[-2:]).numpy()
        logits = np.rot90(logits, -quarters, (2, 3))
        total = total + (logits[..., ::-1] if mirrored else logits)
    expected = torch.from_numpy(total[0] / 8).softmax(0).numpy()
    np.testing.assert_allclose(_read(tmp_path / "map_probabilities.tif"), expected, atol=1e-4)
    assert (_read(tmp_path / "map_robustness.tif")[0] == 1).all()


def test_an_unknown_position_is_refused(tmp_path):
    dsm = write_tiff(tmp_path / "dsm.tif", _heights(32, 32))
    with pytest.raises(ValueError, match="`tta` is 'd8', which is none of flips, d4"):
        predict_raster(HeightClasses(), height_processor(), {"dsm": dsm}, tmp_path / "map.tif", tta="d8")
    assert [path.name for path in tmp_path.iterdir()] == ["dsm.tif"]
