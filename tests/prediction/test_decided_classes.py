"""What is left unknown, and which specks are removed, in the map and in what it says of itself."""

import numpy as np
import pytest
from raster_scenes import predict_height_classes, write_tiff


rasterio = pytest.importorskip("rasterio")


def classes_of(path):
    with rasterio.open(path) as file:
        return file.read(1)


def test_below_a_confidence_pixels_are_unknown(tmp_path):
    heights = np.random.default_rng(0).uniform(0, 20, (1, 70, 50)).astype(np.float32)
    heights[0, :5] = -9999
    dsm = write_tiff(tmp_path / "dsm.tif", heights, nodata=-9999)
    predict_height_classes({"dsm": dsm}, tmp_path / "all.tif", extras=["confidence"])
    result = predict_height_classes({"dsm": dsm}, tmp_path / "sure.tif", min_confidence=0.6)
    every, confidence = classes_of(tmp_path / "all.tif"), classes_of(tmp_path / "all_confidence.tif")
    is_sure = np.nan_to_num(confidence) >= 0.6
    assert 0.2 < is_sure.mean() < 0.9
    np.testing.assert_array_equal(classes_of(tmp_path / "sure.tif"), np.where(is_sure, every, 255))
    assert result.class_pixels[255] == np.sum(~is_sure)
    assert result.confidence == pytest.approx(np.nanmean(confidence), abs=1e-6)  # of all that is covered


@pytest.mark.parametrize("size", [(40, 40), (100, 40)])  # a strip, and several
def test_specks_become_part_of_what_is_around_them(tmp_path, size):
    heights = np.full((1, *size), 10, dtype=np.float32)
    heights[0, 3:5, 3:6] = 20  # 6 pixels of 4 square metres
    heights[0, 20:26, 10:20] = 20
    heights[0, 22, 12] = 0  # inside
    heights[0, 36:38, 30:32] = 0  # at two sides of nothing, on two others of the same
    heights[0, 30:38, 32:] = heights[0, 38:40] = -9999
    dsm = write_tiff(tmp_path / "dsm.tif", heights, pixel=2.0, nodata=-9999)
    expected = np.where(heights[0] == -9999, 255, 1)
    expected[20:26, 10:20] = 2
    result = predict_height_classes({"dsm": dsm}, tmp_path / "map.tif", sieve=30)  # of at least 7 or 8 pixels
    np.testing.assert_array_equal(classes_of(tmp_path / "map.tif"), expected)
    np.testing.assert_array_equal(result.class_pixels, np.bincount(expected.ravel(), minlength=256))
    np.testing.assert_allclose(result.class_areas, 4 * result.class_pixels, rtol=3e-3)


def test_a_sieve_in_metres_takes_a_place_on_earth(tmp_path):
    dsm = write_tiff(tmp_path / "dsm.tif", np.full((1, 40, 40), 10, np.float32), crs=None)
    with pytest.raises(ValueError, match=r"`sieve` is 30 square metres, but the map's grid has no place"):
        predict_height_classes({"dsm": dsm}, tmp_path / "map.tif", sieve=30)
    assert [path.name for path in tmp_path.iterdir()] == ["dsm.tif"]
    for name, value in (("sieve", -1), ("sieve", float("nan")), ("min_confidence", 1), ("min_confidence", -0.1)):
        with pytest.raises(ValueError, match=f"`{name}` is"):
            predict_height_classes({"dsm": dsm}, tmp_path / "map.tif", **{name: value})
