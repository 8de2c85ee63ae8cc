"""Maps from rasters: on one grid, tile by tile, exact for a pointwise model, whole or not at all."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from raster_scenes import CLASSES, PALETTE, HeightClasses, height_classes, height_processor, write_tiff
from tiny_models import spread_weights, tiny_model

from sgma_hf import SgmaImageProcessor, modality_agreement
from sgma_hf.commands.predict import main
from sgma_hf.model.cells_sgma import upsample_to_pixels
from sgma_hf.prediction.maps import predict_raster
from sgma_hf.rasters.scene import RasterScene


rasterio = pytest.importorskip("rasterio")
ROOT = Path(__file__).resolve().parents[2]


def heights_of(height, width, seed=0):
    return np.random.default_rng(seed).uniform(0, 20, (1, height, width)).astype(np.float32)


def predict(rasters, out, model=None, **options):
    model = model or HeightClasses()
    return predict_raster(model, height_processor(), rasters, out, **({"tile_size": 32} | options))


def read_map(path):
    with rasterio.open(path) as file:
        return file.read(1)


def assert_same_classes(found, expected):
    """Of two runs of a network, whose scores may differ in their last bits: where two are equal, either may win."""
    assert (found == expected).mean() > 0.999


def names_in(folder):
    return sorted(path.name for path in Path(folder).iterdir())


@pytest.mark.parametrize("size", [(32, 32), (70, 101), (33, 20), (1, 1), (5, 90)])
def test_map_of_a_pointwise_model_is_exact(tmp_path, size):
    heights = heights_of(*size)
    dsm = write_tiff(tmp_path / "dsm.tif", heights)
    result = predict({"dsm": dsm, "rgb": None}, tmp_path / "map.tif", stride=20)
    np.testing.assert_array_equal(read_map(tmp_path / "map.tif"), height_classes(heights[0]))
    assert result.size == size
    assert result.class_pixels[:3].tolist() == np.bincount(height_classes(heights[0]).ravel(), minlength=3).tolist()
    assert names_in(tmp_path) == ["dsm.tif", "map.qml", "map.sld", "map.tif", "map.tif.aux.xml"]


def test_geotiff_says_where_what_and_in_which_colour(tmp_path):
    heights = heights_of(600, 700)
    heights[:, 100:150, 200:300] = -9999
    transform = rasterio.Affine(0.3, 0, 500000.1234567, 0, -0.3, 4800000.7654321)
    dsm = write_tiff(tmp_path / "dsm.tif", heights, transform=transform, nodata=-9999)
    predict({"dsm": dsm}, tmp_path / "map.tif", tile_size=256)
    with rasterio.open(tmp_path / "map.tif") as file, rasterio.open(dsm) as source:
        assert (file.crs, file.transform) == (source.crs, transform)
        assert (file.dtypes, file.count, file.nodata) == (("uint8",), 1, 255)
        assert file.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert file.block_shapes == [(512, 512)] and file.overviews(1) == [2]
        colors = file.colormap(1)
        assert [list(colors[index]) for index in range(3)] == [[*color, 255] for color in PALETTE]
        assert colors[255] == (0, 0, 0, 0)
        assert [file.tags(1)[f"CLASS_{index}"] for index in range(3)] == CLASSES
        labels = file.read(1)
    expected = height_classes(heights[0])
    expected[100:150, 200:300] = 255
    np.testing.assert_array_equal(labels, expected)


def test_every_kind_of_gap_becomes_missing_data(tmp_path):
    """Nodata of the file, of the processor, NaN, an internal mask, alpha and what lies outside."""
    dsm = np.full((1, 6, 8), 10.0, dtype=np.float32)
    dsm[0, 0, :4] = [-1.0, -32768, np.nan, np.inf]
    first = write_tiff(tmp_path / "dsm.tif", dsm, nodata=-1)
    rgb = np.full((3, 6, 4), 90, dtype=np.uint8)
    rgb[0, 0, 0] = 0  # a dark band is no gap
    mask = np.full((6, 4), 255, dtype=np.uint8)
    mask[1, 1] = 0
    masked = write_tiff(tmp_path / "masked.tif", rgb, mask=mask)
    with_alpha = write_tiff(tmp_path / "alpha.tif", np.concatenate([rgb, mask[None]]), alpha=True)
    for second in (masked, with_alpha):
        options = {"channels": {"dsm": 1, "rgb": 3}, "nodata": {"dsm": [-32768]}}
        with RasterScene({"dsm": first, "rgb": second}, **options) as scene:
            images = scene.read(0, 0, 6, 8)
        gaps = images["dsm"].mask[..., 0]
        assert gaps[0].tolist() == [True] * 4 + [False] * 4 and not gaps[1:].any()
        gaps = images["rgb"].mask[..., 0]
        assert gaps[:, 4:].all() and gaps[1, 1] and gaps[:, :4].sum() == 1


def test_scale_and_offset_are_applied_on_any_grid_and_nodata_is_one_of_the_stored_numbers(tmp_path):
    rgb = write_tiff(tmp_path / "rgb.tif", np.full((3, 8, 8), 9, dtype=np.uint8))
    stored = np.full((1, 8, 8), 40, dtype=np.int16)
    stored[0, 0, 0], stored[0, 7, 7] = -1, 10  # nothing, and what the processor calls nothing once it is scaled
    options = {"channels": {"dsm": 1, "rgb": 3}, "nodata": {"dsm": [5.0, -1.0]}}
    for name, origin in (("aligned", (500000.0, 4800000.0)), ("warped", (500000.25, 4799999.75))):
        path = write_tiff(tmp_path / f"{name}.tif", stored, nodata=-1, origin=origin)
        with rasterio.open(path, "r+") as file:
            file.scales, file.offsets = (0.5,), (0.0,)
        with RasterScene({"rgb": rgb, "dsm": path}, **options) as scene:
            image = scene.read(0, 0, 8, 8)["dsm"][..., 0]
        assert image.dtype == np.float32 and (image.compressed() == 20).all(), name
        assert image.mask[0, 0] and image.mask[7, 7] and image.count() > 45, name


def test_rasters_on_other_grids_lie_where_they_belong(tmp_path):
    """Heights on planes survive bilinear interpolation: another resolution, offset, CRS and a turned raster."""

    def plane(x, y):
        return ((x - 500000) * 0.1 + (4800000 - y) * 0.05).astype(np.float32)

    rgb = write_tiff(tmp_path / "rgb.tif", np.full((3, 40, 60), 9, dtype=np.uint8))
    column, row = np.meshgrid(np.arange(60) + 0.5, np.arange(40) + 0.5)
    expected = plane(500000 + column, 4800000 - row)
    affine = rasterio.Affine
    grids = {
        "coarse": (affine(2.5, 0, 499990.0, 0, -2.5, 4800011.0), (40, 60)),
        "fine": (affine(0.4, 0, 499998.7, 0, -0.4, 4800003.1), (130, 170)),
        "turned": (affine.translation(499950, 4800010) @ affine.rotation(20) @ affine.scale(1.5, -1.5), (110, 120)),
        "upside_down": (affine(1, 0, 499990.0, 0, 1, 4799950.0), (60, 80)),
    }
    for name, (transform, size) in grids.items():
        own_column, own_row = np.meshgrid(np.arange(size[1]) + 0.5, np.arange(size[0]) + 0.5)
        a, b, c, d, e, f = tuple(transform)[:6]
        x, y = c + a * own_column + b * own_row, f + d * own_column + e * own_row
        dsm = write_tiff(tmp_path / f"{name}.tif", plane(x, y)[None], transform=transform)
        with RasterScene({"rgb": rgb, "dsm": dsm}, channels={"dsm": 1, "rgb": 3}) as scene:
            image = scene.read(0, 0, 40, 60)["dsm"][..., 0]
        assert image.count() > 0.9 * image.size, name
        np.testing.assert_allclose(image.compressed(), expected[~image.mask], atol=0.02, err_msg=name)


def test_raster_in_degrees_is_brought_to_metres(tmp_path):
    from rasterio.warp import transform as reproject_points

    rgb = write_tiff(tmp_path / "rgb.tif", np.full((3, 50, 50), 9, dtype=np.uint8), pixel=10.0)
    step, west, north = 1e-4, 2.995, 43.36
    longitude = west + (np.arange(150) + 0.5) * step
    dsm = np.repeat(((longitude - 3) * 1e4)[None, None], 120, axis=1).astype(np.float32)
    path = write_tiff(
        tmp_path / "dsm.tif", dsm, crs="EPSG:4326", transform=rasterio.Affine(step, 0, west, 0, -step, north)
    )
    with RasterScene({"rgb": rgb, "dsm": path}, channels={"dsm": 1, "rgb": 3}) as scene:
        image = scene.read(0, 0, 50, 50)["dsm"][..., 0]
    x = (500005 + 10 * np.arange(50)).tolist()
    expected, _ = reproject_points("EPSG:32631", "EPSG:4326", x, [4800000 - 255.0] * 50)
    covered = ~image.mask[25]
    assert covered.sum() > 45
    # In units of 1e-4 degrees, a pixel of the file. GDAL widens its kernel where pixels get larger, in whole steps.
    np.testing.assert_allclose(image[25][covered], (np.array(expected)[covered] - 3) * 1e4, atol=0.1)


def test_undeclared_nodata_never_blends_into_its_neighbours(tmp_path):
    """Two values that the file does not declare, one of which GDAL cannot be told."""
    rgb = write_tiff(tmp_path / "rgb.tif", np.full((3, 40, 40), 9, dtype=np.uint8))
    dsm = np.full((1, 24, 24), 10, dtype=np.int16)
    dsm[0, 5, 5], dsm[0, 15, 15] = -9999, -32768
    path = write_tiff(tmp_path / "dsm.tif", dsm, pixel=2.0, origin=(499999.3, 4800000.6))
    options = {"channels": {"dsm": 1, "rgb": 3}, "nodata": {"dsm": [-9999, -32768]}}
    with RasterScene({"rgb": rgb, "dsm": path}, **options) as scene:
        image = scene.read(0, 0, 40, 40)["dsm"][..., 0]
        parts = [scene.read(top, left, 8, 8)["dsm"][..., 0] for top in range(0, 40, 8) for left in range(0, 40, 8)]
    assert (image.compressed() == 10).all()
    assert image.mask[10, 10] and image.mask[30, 30] and image.mask.sum() < 120
    assert all((part.compressed() == 10).all() for part in parts)  # windows know what lies beyond them


def test_resampling_is_chosen_per_modality(tmp_path):
    rgb = write_tiff(tmp_path / "rgb.tif", np.full((3, 8, 8), 9, dtype=np.uint8))
    dsm = write_tiff(tmp_path / "dsm.tif", np.array([[[0, 10], [20, 30]]], dtype=np.float32), pixel=4.0)
    channels = {"dsm": 1, "rgb": 3}
    with RasterScene({"rgb": rgb, "dsm": dsm}, channels=channels, resampling={"dsm": "nearest"}) as scene:
        nearest = scene.read(0, 0, 8, 8)["dsm"][..., 0]
    np.testing.assert_array_equal(nearest, np.kron([[0, 10], [20, 30]], np.ones((4, 4))))
    with RasterScene({"rgb": rgb, "dsm": dsm}, channels=channels) as scene:
        smooth = scene.read(0, 0, 8, 8)["dsm"][..., 0]
    np.testing.assert_allclose(smooth[0, 2:6], [1.25, 3.75, 6.25, 8.75])


def test_mosaic_first_file_wins_and_its_grid_is_extended(tmp_path):
    first = write_tiff(tmp_path / "a.tif", np.full((1, 4, 4), 5, dtype=np.float32))
    second = write_tiff(tmp_path / "b.tif", np.full((1, 4, 4), 15, np.float32), origin=(500002.0, 4800002.0))
    result = predict({"dsm": [first, second]}, tmp_path / "map.tif")
    labels = read_map(tmp_path / "map.tif")
    assert result.size == (6, 6)
    expected = np.full((6, 6), 255)
    expected[:4, 2:] = 2
    expected[2:, :4] = 0
    np.testing.assert_array_equal(labels, expected)
    with rasterio.open(tmp_path / "map.tif") as file:
        assert (file.transform.c, file.transform.f) == (500000.0, 4800002.0)
    predict({"dsm": [second, first]}, tmp_path / "map.tif")
    assert (read_map(tmp_path / "map.tif")[:4, 2:] == 2).all()
    predict({"dsm": [first, second]}, tmp_path / "map.tif", like=first)
    np.testing.assert_array_equal(read_map(tmp_path / "map.tif"), np.full((4, 4), 0))


def test_a_box_maps_the_pixels_that_it_touches(tmp_path):
    heights = np.random.default_rng(3).uniform(0, 20, (1, 60, 80)).astype(np.float32)
    dsm = write_tiff(tmp_path / "dsm.tif", heights, pixel=0.5)
    whole = predict({"dsm": dsm}, tmp_path / "map.tif")
    # Columns 20 to 50 and rows 10 to 40, and a little of the ones beside them.
    bbox = (500009.9, 4799979.9, 500025.1, 4799995.1)
    part = predict({"dsm": dsm}, tmp_path / "part.tif", bbox=bbox)
    assert (whole.size, part.size) == ((60, 80), (32, 32))
    np.testing.assert_array_equal(read_map(tmp_path / "part.tif"), read_map(tmp_path / "map.tif")[9:41, 19:51])
    with rasterio.open(tmp_path / "part.tif") as file:
        assert tuple(file.bounds) == (500009.5, 4799979.5, 500025.5, 4799995.5)
    # Edges on those of pixels add none; what lies beside the rasters is left out.
    assert predict({"dsm": dsm}, tmp_path / "part.tif", bbox=(500010, 4799980, 500025, 4799995)).size == (30, 30)
    assert predict({"dsm": dsm}, tmp_path / "part.tif", bbox=(0, 4799999, 500001, 4900000)).size == (2, 2)


def test_bands_are_chosen_and_ordered(tmp_path):
    values = np.stack([np.full((4, 4), band, dtype=np.uint8) for band in (10, 20, 30, 40)])
    path = write_tiff(tmp_path / "x.tif", values, alpha=True)  # the fourth band is near infrared, tagged as alpha
    with RasterScene({"rgb": f"{path}:4,1,2", "dsm": f"{path}:3"}, channels={"dsm": 1, "rgb": 3}) as scene:
        images = scene.read(0, 0, 4, 4)
    assert images["rgb"][0, 0].tolist() == [40, 10, 20]
    assert images["dsm"][0, 0].tolist() == [30]


def test_windows_that_nothing_covers_are_skipped(tmp_path):
    heights = np.full((1, 96, 96), -9999, dtype=np.float32)
    heights[0, 70, 80] = 20
    model = HeightClasses()
    predict({"dsm": write_tiff(tmp_path / "dsm.tif", heights)}, tmp_path / "map.tif", model, stride=32)
    assert model.tiles == 1  # of nine
    labels = read_map(tmp_path / "map.tif")
    assert labels[70, 80] == 2 and (labels != 255).sum() == 1
    heights[0, 70, 80] = -9999
    model = HeightClasses()
    result = predict({"dsm": write_tiff(tmp_path / "dsm.tif", heights)}, tmp_path / "map.tif", model)
    assert model.tiles == 0 and result.class_pixels[255] == 96 * 96
    assert (read_map(tmp_path / "map.tif") == 255).all()


def small_scene(folder, *, width, gap=16):
    """An SGMA model of colour and height, its processor, rasters whose height has a gap, and their files."""
    model = spread_weights(tiny_model(modalities=["rgb", "dsm"], modality_channels=[3, 1])).eval()
    processor = SgmaImageProcessor(["rgb", "dsm"], [3, 1])
    generator = np.random.default_rng(3)
    rgb = generator.integers(1, 255, (3, 40, width)).astype(np.uint8)
    dsm = generator.uniform(0, 20, (1, 40, width)).astype(np.float32)
    dsm[0, :, :gap] = -9999
    files = {"dsm": write_tiff(folder / "d.tif", dsm), "rgb": write_tiff(folder / "r.tif", rgb)}
    return model, processor, (rgb, dsm), files


def test_extras_of_sgma(tmp_path):
    """One tile, so that the model itself says what has to be there."""
    model, processor, (rgb, dsm), files = small_scene(tmp_path, width=48)
    extras = ["confidence", "probabilities", "robustness", "decision"]
    result = predict_raster(model, processor, files, tmp_path / "map.tif", tile_size=64, extras=extras)
    assert list(result.files) == ["labels", *extras]
    with torch.no_grad():
        outputs = model(**processor({"rgb": rgb, "dsm": dsm}))
    scores = upsample_to_pixels(outputs.logits, 4, (40, 48))[0].softmax(0).numpy()
    shares = processor.post_process_robustness(outputs)[0].numpy()
    read = {name: rasterio.open(path).read() for name, path in result.files.items()}
    assert_same_classes(read["labels"][0], scores.argmax(0))
    np.testing.assert_allclose(read["probabilities"], scores, atol=1e-5)
    np.testing.assert_allclose(read["confidence"][0], scores.max(0), atol=1e-5)
    np.testing.assert_allclose(read["confidence"][1], -(scores * np.log(scores)).sum(0) / np.log(5), atol=1e-5)
    np.testing.assert_allclose(read["robustness"], shares, atol=1e-5)
    np.testing.assert_allclose(read["robustness"].sum(0), 1, atol=1e-5)
    assert_same_classes(read["decision"][0], read["robustness"].argmax(0))
    with rasterio.open(result.files["robustness"]) as file:
        assert file.descriptions == ("rgb", "dsm") and np.isnan(file.nodata)
    with rasterio.open(result.files["decision"]) as file:
        assert (file.tags(1)["MODALITY_0"], file.tags(1)["MODALITY_1"], file.nodata) == ("rgb", "dsm", 255)
    with pytest.raises(ValueError, match="needs robustness, but this checkpoint fuses by 'mean'"):
        predict({"dsm": files["dsm"]}, tmp_path / "map.tif", extras=["robustness"])


def test_agreement_is_that_of_the_model_and_only_where_two_modalities_are(tmp_path, capsys):
    model, processor, (rgb, dsm), files = small_scene(tmp_path, width=50)
    result = predict_raster(model, processor, files, tmp_path / "map.tif", tile_size=64, extras=["agreement"])
    with torch.no_grad():
        encoding = model.encode(**processor({"rgb": rgb, "dsm": dsm}))
    expected = modality_agreement(model, encoding)[0].repeat_interleave(4, 1).repeat_interleave(4, 2)[..., :50]
    with rasterio.open(result.files["agreement"]) as file:
        found = file.read()
        assert file.descriptions == ("rgb", "dsm") and np.isnan(file.nodata)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.isnan(found[:, :, :16]).all() and not np.isnan(found[:, :, 16:]).any()
    assert result.agreement == {name: pytest.approx(np.nanmean(found[i])) for i, name in enumerate(("rgb", "dsm"))}
    # the labels are the same with and without it, also where tiles are blended
    plain = predict_raster(model, processor, files, tmp_path / "plain.tif", tile_size=32)
    blended = predict_raster(model, processor, files, tmp_path / "blended.tif", tile_size=32, extras=["agreement"])
    assert_same_classes(read_map(plain.files["labels"]), read_map(blended.files["labels"]))
    assert plain.agreement == {}
    with rasterio.open(blended.files["agreement"]) as file:
        found = file.read()
    assert np.isnan(found[:, :, :16]).all() and (found[:, :, 16:] <= 1).all() and (found[:, :, 16:] > 0).all()
    with pytest.raises(ValueError, match=r"compares modalities with each other, but only \['dsm'\] is given"):
        predict_raster(model, processor, {"dsm": files["dsm"]}, tmp_path / "map.tif", extras=["agreement"])
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    files = {name: str(path) for name, path in files.items()}
    command = ["--model", str(tmp_path / "model"), "--rgb", files["rgb"], "--dsm", files["dsm"], "--device", "cpu"]
    assert main([*command, "--tile_size", "64", "--output", str(tmp_path / "map.tif"), "--extras", "agreement"]) == 0
    means = ", ".join(f"{name} {mean:.2f}" for name, mean in result.agreement.items())
    assert f"mean agreement of each modality alone with the others: {means}\n" in capsys.readouterr().out


def test_agreement_that_one_of_two_tiles_knows_is_not_thinned_out_by_the_other(tmp_path):
    model, processor, (rgb, dsm), files = small_scene(tmp_path, width=50, gap=21)
    result = predict_raster(model, processor, files, tmp_path / "map.tif", tile_size=32, extras=["agreement"])
    # Tiles begin at the columns 0 and 18. Of the cells that hold column 18, that of the first tile ends before the gap
    # does, and that of the second reaches beyond it.
    with torch.no_grad():
        encoding = model.encode(**processor({"rgb": rgb[:, :32, 18:], "dsm": dsm[:, :32, 18:]}))
    expected = modality_agreement(model, encoding)[0, :, :2, 0].repeat_interleave(4, 1)
    with rasterio.open(result.files["agreement"]) as file:
        found = file.read()
    assert np.isnan(found[:, :8, :18]).all()
    np.testing.assert_allclose(found[:, :8, 18], expected, atol=1e-5)


def test_nothing_is_relied_on_where_it_has_no_data(tmp_path):
    model, processor, _, files = small_scene(tmp_path, width=90, gap=37)
    extras = ["robustness", "decision"]
    result = predict_raster(model, processor, files, tmp_path / "map.tif", tile_size=64, extras=extras)
    with rasterio.open(result.files["robustness"]) as file:
        shares = dict(zip(file.descriptions, file.read(), strict=True))
    assert not shares["dsm"][:, :37].any() and (shares["dsm"][:, 37:] > 0).all()
    np.testing.assert_allclose(shares["rgb"] + shares["dsm"], 1, atol=1e-6)
    with rasterio.open(result.files["decision"]) as file:
        assert file.tags(1)["MODALITY_0"] == "rgb" and not file.read(1)[:, :37].any()


def test_where_nothing_covers_the_extras_hold_nothing(tmp_path):
    heights = heights_of(20, 20)
    heights[0, :5] = np.nan
    dsm = write_tiff(tmp_path / "dsm.tif", heights)
    result = predict({"dsm": dsm}, tmp_path / "map.tif", extras=["confidence"])
    confidence = rasterio.open(result.files["confidence"]).read()
    assert np.isnan(confidence[:, :5]).all() and not np.isnan(confidence[:, 5:]).any()


class DiesAfter(HeightClasses):
    """Fails at a certain tile."""

    def __init__(self, tiles):
        super().__init__()
        self.allowed = tiles

    def forward(self, pixel_values, modality_mask):
        if self.tiles >= self.allowed:
            raise RuntimeError("power failure")
        return super().forward(pixel_values, modality_mask)


def test_run_that_dies_leaves_nothing_under_the_final_name_and_resumes_at_the_next_strip(tmp_path):
    heights = heights_of(100, 40)
    dsm = write_tiff(tmp_path / "dsm.tif", heights)
    out = tmp_path / "out" / "map.tif"
    options = {"stride": 16, "batch_size": 1, "extras": ["confidence"]}
    whole = HeightClasses()
    predict({"dsm": dsm}, out, whole, **options)
    expected = {path.name: path.read_bytes() for path in out.parent.iterdir()}
    for path in list(out.parent.iterdir()):
        path.unlink()
    with pytest.raises(RuntimeError, match="power failure"):
        predict({"dsm": dsm}, out, DiesAfter(7), **options)
    assert names_in(out.parent) == [".map.tif.partial"]
    rest = HeightClasses()
    predict({"dsm": dsm}, out, rest, resume=True, **options)
    # Six rows of two tiles; three rows were done, and one more is needed for the overlap.
    assert (whole.tiles, rest.tiles) == (12, 8)
    assert {path.name: path.read_bytes() for path in out.parent.iterdir()} == expected
    np.testing.assert_array_equal(read_map(out), height_classes(heights[0]))


def test_extras_stay_beside_the_map_they_belong_to_and_no_other(tmp_path):
    dsm = write_tiff(tmp_path / "dsm.tif", heights_of(40, 40))
    out = tmp_path / "map.tif"
    first = predict({"dsm": dsm}, out, extras=["confidence"])
    second = predict({"dsm": dsm}, out, extras=["probabilities"], batch_size=1)
    assert (first.removed, second.removed) == ([], [])
    maps = ["map.tif", "map_confidence.tif", "map_probabilities.tif"]
    beside = ["map.qml", "map.sld", "map.tif.aux.xml"]
    styles = ["map_confidence.qml", "map_confidence.sld", "map_probabilities.qml", "map_probabilities.sld"]
    assert names_in(tmp_path) == sorted(["dsm.tif", *maps, *beside, *styles])
    # Another map: its own extra is replaced, the other one would pass for one of its own.
    third = predict({"dsm": dsm}, out, extras=["probabilities"], tile_size=16)
    assert third.removed == [tmp_path / "map_confidence.tif"]
    assert names_in(tmp_path) == sorted(["dsm.tif", "map.tif", "map_probabilities.tif", *beside, *styles[2:]])


def test_files_of_others_beside_the_map_are_not_touched(tmp_path):
    dsm = write_tiff(tmp_path / "dsm.tif", heights_of(40, 40))
    theirs = tmp_path / "map_confidence.tif"
    write_tiff(theirs, heights_of(8, 8))
    before = theirs.read_bytes()
    assert predict({"dsm": dsm}, tmp_path / "map.tif").removed == []
    model = HeightClasses()
    with pytest.raises(ValueError, match=r"map_confidence\.tif, beside map\.tif, would replace a file that"):
        predict({"dsm": dsm}, tmp_path / "map.tif", model, extras=["confidence"])
    assert model.tiles == 0 and theirs.read_bytes() == before
    # A map of its own, by a name that an extra would have.
    theirs.unlink()
    predict({"dsm": dsm}, theirs, tile_size=16)
    assert predict({"dsm": dsm}, tmp_path / "map.tif").removed == [] and theirs.exists()


def test_only_the_same_run_is_resumed(tmp_path):
    dsm = write_tiff(tmp_path / "dsm.tif", heights_of(100, 40))
    out = tmp_path / "map.tif"
    with pytest.raises(RuntimeError):
        predict({"dsm": dsm}, out, DiesAfter(7), batch_size=1)
    with pytest.raises(ValueError, match=r"differs from this one in \['options'\]"):
        predict({"dsm": dsm}, out, batch_size=1, stride=8, resume=True)
    other = HeightClasses()
    other.weight.data *= 2
    with pytest.raises(ValueError, match=r"differs from this one in \['model'\]"):
        predict({"dsm": dsm}, out, other, resume=True)
    predict({"dsm": dsm}, out, other)  # starts anew
    assert names_in(tmp_path) == ["dsm.tif", "map.qml", "map.sld", "map.tif", "map.tif.aux.xml"]
    predict({"dsm": dsm}, out, other, resume=True)  # there is nothing to go on from


PEAK_OF_A_RUN = """
import sys
from pathlib import Path
import torch
from raster_scenes import HeightClasses, height_processor
from sgma_hf.prediction.maps import predict_raster
torch.set_num_threads(1)
predict_raster(HeightClasses(), height_processor(), {"dsm": sys.argv[1]}, sys.argv[2], tile_size=128)
peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
print(int(peak.split()[1]) / 1024)
"""


@pytest.mark.long
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells the peak of a process's own")
def test_memory_does_not_grow_with_the_height(tmp_path):
    """Peak of the whole process in MiB, GDAL's memory included: a quarter of 8,192 x 1,024 against all of it.

    GDAL's cache of blocks is kept at 2 MB, so that it is full in both. The peak is that since the process has its own
    memory: what `getrusage` says begins with the size of the process that started it.
    """
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GDAL_CACHEMAX": str(2 * 2**20)}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "fixtures")])
    files = {
        height: write_tiff(
            tmp_path / f"{height}.tif", np.ones((1, height, 1024), dtype=np.float32), compress="deflate"
        )
        for height in (2048, 8192)
    }

    def peak(height):
        command = [sys.executable, "-c", PEAK_OF_A_RUN, files[height], str(tmp_path / "map.tif")]
        run = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        assert run.returncode == 0, run.stderr
        return float(run.stdout.split()[-1])

    # The 6,144 rows between take 24 MiB for each float per pixel that is kept: 72 for the logits, 24 for the raster.
    # On a busy machine batches wait to be written, a few at most; what they take is not there in every run.
    limit, peaks = peak(2048) + 18, []
    while len(peaks) < 4 and min(peaks, default=limit) >= limit:
        peaks.append(peak(8192))
    assert min(peaks) < limit, (peaks, limit)


@pytest.mark.long
def test_two_processes_write_the_same_files(tmp_path):
    model = spread_weights(tiny_model(modalities=["rgb", "dsm"], modality_channels=[3, 1])).eval()
    model.save_pretrained(tmp_path / "model")
    SgmaImageProcessor(["rgb", "dsm"], [3, 1]).save_pretrained(tmp_path / "model")
    rgb = np.random.default_rng(5).integers(1, 255, (3, 150, 70)).astype(np.uint8)
    rgb_file = write_tiff(tmp_path / "rgb.tif", rgb)
    arguments = ["--model", str(tmp_path / "model"), "--rgb", rgb_file, "--tile_size", "32", "--stride", "24"]
    arguments += ["--extras", "confidence", "--device", "cpu"]
    assert main([*arguments, "--output", str(tmp_path / "one" / "map.tif")]) == 0
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    script = [str(ROOT / "scripts" / "predict.py"), *arguments, "--output", str(tmp_path / "two" / "map.tif")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(ROOT)}
    run = subprocess.run([*launcher, *script], capture_output=True, text=True, env=environment, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("150 x 70 pixels from rgb") == 1  # one process speaks
    names = ["map.qml", "map.sld", "map.tif", "map.tif.aux.xml"]
    names += [f"map_confidence.{suffix}" for suffix in ("qml", "sld", "tif")]
    assert names_in(tmp_path / "one") == names_in(tmp_path / "two") == names
    assert_same_classes(*(read_map(tmp_path / name / "map.tif") for name in ("one", "two")))
    # Another number of threads may add up in another order.
    one, two = (rasterio.open(tmp_path / name / "map_confidence.tif") for name in ("one", "two"))
    np.testing.assert_allclose(one.read(), two.read(), atol=1e-5)
    assert one.tags() == two.tags()  # of the same run


@pytest.mark.skipif("SGMA_TEST_DATA" not in os.environ, reason="SGMA_TEST_DATA does not name real rasters")
def test_real_aerial_tiles_as_they_are(tmp_path):
    """A mosaic of heights with colour in one tile of six: gaps where they belong, the map everywhere."""
    folder = Path(os.environ["SGMA_TEST_DATA"]) / "aerial"
    heights = sorted(folder.glob("montpellier_*/dsm.tif"))
    colour = folder / "montpellier_77055_627760" / "rgb.tif"
    model = spread_weights(tiny_model(modalities=["rgb", "dsm"], modality_channels=[3, 1])).eval()
    processor = SgmaImageProcessor(["rgb", "dsm"], [3, 1])
    result = predict_raster(
        model,
        processor,
        {"dsm": heights, "rgb": colour},
        tmp_path / "map.tif",
        tile_size=128,
        extras=["robustness"],
    )
    assert result.size == (400, 600) and result.class_pixels[255] == 0
    with rasterio.open(result.files["robustness"]) as file, rasterio.open(colour) as source:
        shares = file.read()
        has_colour = np.zeros((400, 600), dtype=bool)
        has_colour[:200, 200:400] = (source.read() != 0).any(0)
        assert (source.transform.c - file.transform.c, source.transform.f - file.transform.f) == (50, 0)
        assert file.crs == source.crs
    assert (shares[0][~has_colour] < 0.75).all()  # cells of 32 pixels reach a little beyond the gap's edge
    far = ~has_colour
    far[:240, 160:440] = False
    assert (shares[0][far] == 0).all() and (shares[1][far] == 1).all()
    assert shares[0][40:160, 240:360].mean() > 0.1


@pytest.mark.skipif("SGMA_TEST_DATA" not in os.environ, reason="SGMA_TEST_DATA does not name real rasters")
@pytest.mark.parametrize("tile", ["433D_629L_3_1", "637U_59R_1_3"])
@pytest.mark.parametrize("missing", [None, "s2", "s1", "dem"])
def test_real_sentinel_tiles_as_they_are(tmp_path, tile, missing):
    """Twelve bands, radar and a DEM in signed integers; one left out, on a grid that reaches beyond them."""
    modalities, channels = ["s2", "s1", "dem"], [12, 2, 1]
    scales = {"image_mean": [[1000.0] * 12, [-12.0] * 2, [100.0]], "image_std": [[500.0] * 12, [5.0] * 2, [50.0]]}
    model = spread_weights(tiny_model(modalities=modalities, modality_channels=channels)).eval()
    processor = SgmaImageProcessor(modalities, channels, rescale_factor=[1.0] * 3, reference_level="none", **scales)
    folder = Path(os.environ["SGMA_TEST_DATA"]) / "sentinel" / tile
    given = [name for name in modalities if name != missing]
    rasters = {name: folder / f"{name}.tif" for name in given}
    larger = _grown(rasters[given[0]], tmp_path / "grid.tif", 32)
    options = {"tile_size": 96, "stride": 64, "extras": ["probabilities", "decision"], "like": larger}
    files = predict_raster(model, processor, rasters, tmp_path / "map.tif", **options).files
    with rasterio.open(files["labels"]) as file, rasterio.open(rasters[given[0]]) as source:
        assert (file.crs, file.shape, file.nodata) == (source.crs, (288, 288), 255)
        assert file.transform == source.transform @ rasterio.Affine.translation(-32, -32)
        labels = file.read(1)
    inside = np.zeros((288, 288), dtype=bool)
    inside[32:256, 32:256] = True
    np.testing.assert_array_equal(labels == 255, ~inside)
    assert len(np.unique(labels[inside])) > 1
    with rasterio.open(files["decision"]) as file:
        assert set(np.unique(file.read(1)[inside])) <= set(range(len(given)))
    # Where a tile begins or ends it weighs 1/64: 0.5 pixels from its edge, the other one 31.5. Of the gap between the
    # scores of the two, so much adds to the step that one tile of the whole has there; without the blend, all of it.
    whole = predict_raster(model, processor, rasters, tmp_path / "whole.tif", **(options | {"tile_size": 288})).files
    maps = []
    for path in (files["probabilities"], whole["probabilities"]):
        with rasterio.open(path) as file:
            maps.append(file.read()[:, 32:256, 32:256])
    assert np.isfinite(maps).all()
    borders = [start - 32 - 1 for start in (64, 96, 128, 160, 192, 224)]
    for axis in (1, 2):
        tiled, untiled = (np.abs(np.diff(values, axis=axis)).mean(axis=(0, 3 - axis))[borders] for values in maps)
        assert (tiled - untiled).max() < 1 / 32, (axis, tiled, untiled)


def _grown(path, target, margin):
    """An empty raster on the grid of another, larger by `margin` pixels on every side."""
    with rasterio.open(path) as source:
        transform = source.transform @ rasterio.Affine.translation(-margin, -margin)
        empty = np.zeros((1, source.height + 2 * margin, source.width + 2 * margin), dtype=np.uint8)
        return write_tiff(target, empty, transform=transform, crs=source.crs)
