"""The level of a place is that of a window of the training size around it, and no tile decides; other scales stop."""

import logging

import numpy as np
import pytest
from raster_scenes import HeightClasses, height_classes, predict_height_classes, write_tiff

from sgma_hf import SgmaImageProcessor
from sgma_hf.data.windows import Window
from sgma_hf.prediction.maps import predict_raster
from sgma_hf.prediction.scene_levels import SceneLevels
from sgma_hf.rasters.scene import RasterScene


rasterio = pytest.importorskip("rasterio")


def hills(height=90, width=130, seed=0):
    """A slope with bumps and pits, in metres above the sea, float32 (height, width)."""
    random = np.random.default_rng(seed)
    slope = 300 + 0.4 * np.arange(height)[:, None] - 0.2 * np.arange(width)
    return (slope + random.gamma(0.5, 6, (height, width))).astype(np.float32)


def surface_processor(kind="minimum", **fields):
    scales = {"image_mean": [[12.0], [0.5] * 3], "image_std": [[8.0], [0.25] * 3]}
    levels = [kind, "none"]
    return SgmaImageProcessor(
        ["dsm", "rgb"], [1, 3], **scales, nodata=[[-9999.0], []], reference_level=levels, **fields
    )


def read_map(path):
    with rasterio.open(path) as file:
        return file.read(1)


def predict_surface(dsm, out, tile_size, **options):
    predict_raster(HeightClasses(), surface_processor(**options), {"dsm": dsm}, out, tile_size=tile_size)
    return read_map(out)


MEASURES = {
    "minimum": np.min,
    "robust_minimum": lambda values: np.percentile(values, 2, method="lower"),
    "median": np.median,
}


def level_at(heights, y, x, side, measure):
    """Level of a pixel by the definition: of the four windows of 2 x 2 cells around it, linear in between."""
    total, support, spans = 0.0, 0.0, []
    for place, whole in ((y + 0.5, heights.shape[0]), (x + 0.5, heights.shape[1])):
        count = max(2, round(2 * whole / side))
        edges = [int(whole * index / count) for index in range(count + 1)]
        index = max(i for i, edge in enumerate(edges) if edge <= place)
        share = (place - edges[index]) / (edges[index + 1] - edges[index])
        spans.append([])
        for corner, weight in ((index, 1 - share), (index + 1, share)):
            corner = min(max(corner, 1), count - 1)  # windows lie in the scene
            spans[-1].append((edges[corner - 1], edges[corner + 1], weight))
    for top, bottom, row_weight in spans[0]:
        for left, right, column_weight in spans[1]:
            window = heights[top:bottom, left:right].astype(np.float64)
            if not np.isnan(window).all():
                total += row_weight * column_weight * measure(window[~np.isnan(window)])
                support += row_weight * column_weight
    return total / support


@pytest.mark.parametrize("kind", list(MEASURES))
def test_levels_are_those_of_windows_of_the_training_size(tmp_path, kind):
    heights = hills()
    heights[20:75, 30:100] = np.nan
    heights[5, 5] = np.nan
    dsm = write_tiff(tmp_path / "dsm.tif", heights[None])
    with RasterScene({"dsm": dsm}, channels={"dsm": 1, "rgb": 3}) as scene:
        levels = SceneLevels(scene, surface_processor(kind), 24)
        found = levels.read(Window(0, 0, 90, 130))["dsm"]
        part = levels.read(Window(61, 17, 20, 113))["dsm"]
        assert SceneLevels(scene, surface_processor("none"), 24).read(Window(0, 0, 9, 9)) == {}
    np.testing.assert_array_equal(part, found[61:81, 17:])
    for y, x in [(0, 0), (5, 7), (12, 12), (89, 129), (19, 64), (76, 101), (44, 29), (45, 115), (89, 0)]:
        np.testing.assert_allclose(found[y, x], level_at(heights, y, x, 24, MEASURES[kind]), rtol=1e-12)
    assert found[50, 65] == 0  # nothing is near


def test_a_scene_smaller_than_the_window_has_one_level(tmp_path):
    heights = hills(20, 30)
    dsm = write_tiff(tmp_path / "dsm.tif", heights[None])
    with RasterScene({"dsm": dsm}, channels={"dsm": 1, "rgb": 3}) as scene:
        found = SceneLevels(scene, surface_processor(), 64).read(Window(0, 0, 20, 30))["dsm"]
    np.testing.assert_allclose(found, heights.min(), rtol=1e-12)


def test_the_map_of_a_pointwise_model_is_that_of_its_levels_whatever_the_tile(tmp_path):
    heights = hills()
    dsm = write_tiff(tmp_path / "dsm.tif", heights[None])
    maps = [predict_surface(dsm, tmp_path / f"{side}.tif", side, reference_window=32) for side in (16, 32, 57, 256)]
    places = [[level_at(heights, y, x, 32, np.min) for x in range(130)] for y in range(90)]
    normalized = (heights - np.array(places) - 12) / 8
    expected = np.where(normalized < -0.5, 0, np.where(normalized > 0.5, 2, 1))
    for found in maps:
        np.testing.assert_array_equal(found, expected)
    assert len(np.unique(expected)) == 3


def test_a_checkpoint_without_the_size_keeps_the_levels_of_its_tiles(tmp_path):
    heights = hills()
    dsm = write_tiff(tmp_path / "dsm.tif", heights[None])
    found = predict_surface(dsm, tmp_path / "map.tif", 256)
    normalized = (heights - heights.min() - 12) / 8
    np.testing.assert_array_equal(found, np.where(normalized < -0.5, 0, np.where(normalized > 0.5, 2, 1)))
    assert (found != predict_surface(dsm, tmp_path / "map.tif", 32)).mean() > 0.05


def test_a_raster_of_another_scale_is_refused_before_anything_is_done(tmp_path):
    heights = np.random.default_rng(0).uniform(0, 20, (1, 300, 200)).astype(np.float32)
    (tmp_path / "out").mkdir()
    rgb = write_tiff(tmp_path / "rgb.tif", np.full((3, 300, 200), 90, dtype=np.uint16) * 257)
    dsm = write_tiff(tmp_path / "dsm.tif", heights)
    with pytest.raises(ValueError) as error:
        predict_height_classes({"dsm": dsm, "rgb": rgb}, tmp_path / "out" / "map.tif")
    message = str(error.value)
    assert message.startswith(f"{rgb} (rgb): it holds in band 1 mean 2.313e+04, most from 2.313e+04 to 2.313e+04; ")
    assert "trained on mean 127.5, standard deviation 63.75" in message and "--allow_other_scale" in message
    assert "\n" not in message and list((tmp_path / "out").iterdir()) == []
    predict_height_classes({"dsm": dsm, "rgb": rgb}, tmp_path / "out" / "map.tif", allow_other_scale=True)
    alone = predict_height_classes({"dsm": dsm, "rgb": None}, tmp_path / "out" / "alone.tif")
    assert read_map(alone.files["labels"]).shape == (300, 200)


def test_a_few_unusual_tiles_and_holes_of_a_good_raster_say_nothing(tmp_path):
    heights = np.random.default_rng(0).uniform(0, 20, (1, 640, 640)).astype(np.float32)
    heights[:, :64, :192] *= 1000
    heights[:, 128:, :64] = -9999
    dsm = write_tiff(tmp_path / "dsm.tif", heights, nodata=-9999)
    predict_height_classes({"dsm": dsm}, tmp_path / "map.tif", tile_size=256)
    empty = write_tiff(tmp_path / "empty.tif", np.full_like(heights, -9999), nodata=-9999)
    predict_height_classes({"dsm": empty}, tmp_path / "map.tif", tile_size=256)
    assert (read_map(tmp_path / "map.tif") == 255).all()


def test_windows_are_as_large_on_the_ground_as_in_training(tmp_path, caplog):
    """Trained at 1 m with windows of 32 pixels: at 0.5 m they are 64 pixels, and the map's grid is said to differ."""
    heights = hills()
    dsm = write_tiff(tmp_path / "dsm.tif", heights[None], pixel=0.5)
    with caplog.at_level(logging.WARNING, logger="sgma_hf.prediction.scene_levels"):
        found = predict_surface(dsm, tmp_path / "map.tif", 32, reference_window=32, resolution=1.0)
    places = [[level_at(heights, y, x, 64, np.min) for x in range(130)] for y in range(90)]
    normalized = (heights - np.array(places) - 12) / 8
    np.testing.assert_array_equal(found, np.where(normalized < -0.5, 0, np.where(normalized > 0.5, 2, 1)))
    assert "has 0.5 m per pixel, the model was trained on 1 m: things look 2 times as large" in caplog.text
    assert "`--resolution 1` reads it at that" in caplog.text
    caplog.clear()
    predict_surface(dsm, tmp_path / "map.tif", 32, reference_window=32, resolution=0.7)
    assert not caplog.records


def test_a_scene_is_read_at_another_resolution(tmp_path):
    blocks = np.arange(1, 21, 2.0).reshape(2, 5)
    heights = np.kron(blocks, np.ones((20, 20))).astype(np.float32)
    dsm = write_tiff(tmp_path / "dsm.tif", heights[None], pixel=0.5)
    predict_height_classes({"dsm": dsm}, tmp_path / "map.tif", resolution=2.0)
    with rasterio.open(tmp_path / "map.tif") as file, rasterio.open(dsm) as source:
        assert (file.shape, file.res, file.bounds) == ((10, 25), (2.0, 2.0), source.bounds)
        found = file.read(1).reshape(2, 5, 5, 5).transpose(0, 2, 1, 3)
    inner = found[..., 1:-1, 1:-1]  # between the blocks the heights are blended
    np.testing.assert_array_equal(inner, height_classes(blocks)[..., None, None] * np.ones((3, 3)))
    np.save(tmp_path / "dsm.npy", heights)
    with pytest.raises(ValueError, match="no CRS that knows metres"):
        predict_height_classes({"dsm": tmp_path / "dsm.npy"}, tmp_path / "map.tif", resolution=2.0)
    with pytest.raises(ValueError, match="`resolution` is -1; expected metres"):
        predict_height_classes({"dsm": dsm}, tmp_path / "map.tif", resolution=-1)
