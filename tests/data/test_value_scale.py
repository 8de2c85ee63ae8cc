"""A raster in another unit or bit depth is told from a good one, as a whole; a dark or an empty part is not."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sgma_hf import SgmaImageProcessor
from sgma_hf.data.value_scale import ValueScale, rows_on_another_scale


DATA = os.environ.get("SGMA_TEST_DATA")


def texture(seed=0, side=64, mean=120, std=40):
    return np.random.default_rng(seed).normal(mean, std, (side, side)).clip(1, 255)


def heights(seed=0, side=64, ground=200.0):
    return np.random.default_rng(seed).gamma(1.0, 6.0, (side, side)).astype(np.float32) + ground


def others(processor, **images):
    scale = ValueScale(processor)
    scale.update(images)
    return scale.others()


@pytest.fixture
def fitted():
    rows = [{"a": texture(seed).round().astype(np.uint8), "dsm": heights(seed)} for seed in range(4)]
    return SgmaImageProcessor.fit(rows, ["a", "dsm"], [1, 1], nodata=[[], [-9999.0]], reference_level="minimum")


def test_fit_notes_where_the_values_lie():
    image = np.stack([texture(1), 3 * texture(2)], axis=-1)
    image[:8] = np.nan
    processor = SgmaImageProcessor.fit([{"a": image}], ["a"], [2], rescale_factor=0.5, reference_level="minimum")
    above = (image[8:] - image[8:].min()).reshape(-1, 2)
    expected = 0.5 * np.quantile(above.astype(np.float32).astype(np.float64), [0.01, 0.999], axis=0).T
    np.testing.assert_allclose(processor.value_range[0], expected, rtol=1e-9)
    flipped = SgmaImageProcessor.fit([{"a": image}], ["a"], [2], rescale_factor=-0.5)
    assert all(low < high < 0 for low, high in flipped.value_range[0])


def test_many_rasters_are_thinned_out_evenly():
    images = [np.full((512, 512), value, dtype=np.float32) + np.linspace(0, 0.5, 512) for value in range(1100)]
    (ends,) = SgmaImageProcessor.fit(({"a": image} for image in images), ["a"], [1], rescale_factor=1.0).value_range
    np.testing.assert_allclose(ends, [[0.01 * 1100, 0.999 * 1100]], atol=0.6)


@pytest.mark.parametrize("factor", [257, 16, 4, 1 / 255, 1e-4])
def test_another_bit_depth_is_told_and_another_image_is_not(factor):
    processor = SgmaImageProcessor.fit([{"a": texture(seed)} for seed in range(4)], ["a"], [1])
    for mean, std in ((120, 40), (60, 20), (200, 30), (120, 3)):
        assert not others(processor, a=texture(9, mean=mean, std=std))
    text = others(processor, a=texture(9) * factor)["a"]
    low, high = np.quantile(texture(9) * factor, [0.01, 0.99])  # of the one window
    assert f"it holds mean {(texture(9) * factor).mean():.4g}, most from {low:.4g} to {high:.4g}; the model" in text
    processor.value_range = [None]  # a checkpoint that knows nothing but mean and standard deviation
    assert others(processor, a=texture(9) * factor) and not others(processor, a=texture(9))


def test_feet_are_told_from_metres_wherever_they_begin(fitted):
    assert not others(fitted, dsm=heights(9, ground=-30.0))
    text = others(fitted, dsm=heights(9) * 3.28084)["dsm"]
    assert "(above the reference level)" in text
    assert not others(fitted, dsm=np.full((64, 64), 12.0))  # flat ground is no error


def test_decibels_and_amplitudes_are_told_apart():
    decibels = np.random.default_rng(0).normal(-14, 4, (64, 64, 2))
    linear = 10 ** (decibels / 10)
    for known, other in ((decibels, linear), (linear, decibels)):
        processor = SgmaImageProcessor.fit([{"s1": known}], ["s1"], [2], nodata=[[]])
        assert not others(processor, s1=known[:20]) and others(processor, s1=other)


def test_what_holds_no_data_counts_for_nothing(fitted):
    raster = heights(9)
    raster[:40] = -9999
    raster[40:50] = np.nan
    assert not others(fitted, dsm=raster)
    mask = np.zeros((64, 64, 1), dtype=bool)
    mask[:60] = True
    raster = heights(9)[..., None]
    raster[:60] = 1e6
    assert not others(fitted, dsm=np.ma.MaskedArray(raster, mask=mask))
    assert not others(fitted, dsm=np.full((8, 8), np.nan), a=None)


def test_levels_that_are_known_are_subtracted(fitted):
    raster, level = heights(9), np.linspace(0, 500, 64)[:, None] * np.ones(64)
    scale = ValueScale(fitted)
    scale.update({"dsm": (raster + level)[..., None]}, {"dsm": level + 200.0})
    assert not scale.others()
    assert others(fitted, dsm=raster + level)


def test_a_bare_field_is_within_heights_that_begin_at_0():
    forest = np.random.default_rng(0).gamma(2, 6.0, (64, 64)) * (np.random.default_rng(1).random((64, 64)) < 0.8)
    processor = SgmaImageProcessor.fit([{"chm": forest}], ["chm"], [1])
    assert not others(processor, chm=np.zeros((64, 64)))
    processor.value_range = [None]
    assert not others(processor, chm=np.zeros((64, 64)))


def test_rows_are_judged_together(fitted):
    rows = [{"id": str(seed), "a": None, "dsm": heights(seed), "label": None} for seed in range(20)]
    rows[3]["dsm"] = heights(3) + 3 * np.arange(64, dtype=np.float32)  # one hill
    assert rows_on_another_scale(fitted, rows, None) is None
    feet = [row | {"dsm": row["dsm"] * np.float32(3.28084)} for row in rows]
    text = rows_on_another_scale(fitted, feet, 32)
    assert text.startswith("The data set's 'dsm': it holds mean ") and "\n" not in text
    assert text.endswith("go on with `--allow_other_scale`.")


def test_a_range_that_is_none_is_refused():
    for value in ([[[2.0, 1.0]]], [[[0.0, 1.0], [0.0, 1.0]]], [[[0.0, float("nan")]]], [[0.0, 1.0]]):
        with pytest.raises(ValueError, match=r"`value_range` of modality 'a' is .*; expected 1 of"):
            SgmaImageProcessor(["a"], [1], value_range=value)


@pytest.mark.skipif(not DATA, reason="SGMA_TEST_DATA does not name a folder of real rasters")
def test_real_rasters_are_told_from_themselves_in_another_unit():
    """Fields and floods that were not trained on, tile by tile; two places, one with the offset of Sentinel-2."""
    for name in ("weedmap/{}/nir", "weedmap/{}/red", "ombria/{}/s1_after", "ombria/{}/s2_after"):
        splits = [sorted((Path(DATA) / name.format(split)).iterdir())[::6] for split in ("train", "valid")]
        trained, held_out = ([np.asarray(Image.open(path)) for path in paths] for paths in splits)
        channels = 1 if trained[0].ndim == 2 else trained[0].shape[2]
        processor = SgmaImageProcessor.fit([{"a": tile} for tile in trained], ["a"], [channels], nodata=[[0]])
        for tile in held_out:
            assert not others(processor, a=tile), name
            assert others(processor, a=tile.astype(np.uint16) * 257) and others(processor, a=tile / 255), name
    rasterio = pytest.importorskip("rasterio")
    places = []
    for path in sorted((Path(DATA) / "sentinel").glob("*/s2.tif")):
        with rasterio.open(path) as file:
            places.append(np.moveaxis(file.read(), 0, -1))
    for one, other in (places, places[::-1]):
        assert others(SgmaImageProcessor.fit([{"s2": one}], ["s2"], [12]), s2=other)
    places[0] = places[0] - 1000
    for one, other in (places, places[::-1]):
        assert not others(SgmaImageProcessor.fit([{"s2": one}], ["s2"], [12]), s2=other)
