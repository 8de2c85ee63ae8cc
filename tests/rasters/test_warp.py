"""Rasters on other grids: bilinear as in the textbook, whatever the window, the same in training and in prediction."""

import numpy as np
import pytest
from raster_scenes import UTM, write_tiff

from sgma_hf.converters.folders.tiling import cut
from sgma_hf.data.windows import Window
from sgma_hf.rasters.extents import read_on_extent
from sgma_hf.rasters.files import read_info
from sgma_hf.rasters.raster import Georeference, Raster
from sgma_hf.rasters.scene import RasterScene


rasterio = pytest.importorskip("rasterio")
warp = pytest.importorskip("rasterio.warp")
Affine = rasterio.Affine
WEST, NORTH, SIDE = 700000.0, 5400000.0, 300
ZONE_32, ZONE_33 = "EPSG:25832", "EPSG:25833"


def noise():
    return np.random.default_rng(0).uniform(0, 255, (SIDE, SIDE))


def surface():
    """Hills of 40 pixels."""
    rows, columns = np.mgrid[:SIDE, :SIDE] / 40
    return 100 + 50 * np.sin(2 * np.pi * rows) * np.cos(2 * np.pi * columns)


def source_transform(crs):
    (x,), (y,) = warp.transform(ZONE_32, crs, [WEST + 100], [NORTH - 100])
    return Affine(1, 0, x - SIDE / 2, 0, -1, y + SIDE / 2)


def bilinear(values, transform, crs, grid, size):
    """The values at the centres of a grid in zone 32, in float64."""
    row, column = np.mgrid[: size[0], : size[1]] + 0.5
    x, y = grid @ (column, row)
    if crs != ZONE_32:
        x, y = (
            np.reshape(part, size) for part in warp.transform(ZONE_32, crs, x.ravel().tolist(), y.ravel().tolist())
        )
    column, row = ~transform @ (x, y)
    first = np.floor([row - 0.5, column - 0.5]).astype(int)
    assert first.min() >= 0 and first.max() < SIDE - 1
    (top, left), (down, right) = first, np.array([row - 0.5, column - 0.5]) - first
    above = values[top, left] * (1 - right) + values[top, left + 1] * right
    below = values[top + 1, left] * (1 - right) + values[top + 1, left + 1] * right
    return above * (1 - down) + below * down


GRIDS = {
    "shifted": (ZONE_32, Affine(1, 0, WEST + 0.3, 0, -1, NORTH + 0.6)),
    "turned": (
        ZONE_32,
        Affine.translation(WEST + 100, NORTH - 100)
        @ Affine.rotation(30)
        @ Affine.scale(1, -1)
        @ Affine.translation(-75, -70),
    ),
    "sheared": (
        ZONE_32,
        Affine.translation(WEST + 100, NORTH - 100) @ Affine(1, 0.3, 0, 0.2, -1, 0) @ Affine.translation(-75, -70),
    ),
    "finer": (ZONE_32, Affine(0.4, 0, WEST + 0.3, 0, -0.4, NORTH + 0.6)),
    "other zone": (ZONE_33, Affine(1, 0, WEST, 0, -1, NORTH)),
}


@pytest.mark.parametrize("values", [surface(), noise()], ids=["surface", "noise"])
@pytest.mark.parametrize("name", GRIDS)
def test_interpolation_is_bilinear_in_every_window_and_for_training_and_prediction(tmp_path, name, values):
    """Where GDAL is left to guess the width of its kernel, noise of a standard deviation of 49 loses up to 15."""
    crs, grid = GRIDS[name]
    transform, size = source_transform(crs), (140, 150)
    path = write_tiff(tmp_path / "x.tif", values[None], crs=crs, transform=transform)
    like = write_tiff(tmp_path / "grid.tif", np.zeros((1, *size), np.uint8), crs=ZONE_32, transform=grid)
    with RasterScene({"x": path}, channels={"x": 1}, like=like) as scene:
        whole = scene.read(0, 0, *size)["x"]
        window = scene.read(37, 61, 20, 30)["x"]
    assert not whole.mask.any()
    # A thousandth of a pixel, the tolerance of the place, is 0.26 where neighbours differ by 255, and once per axis.
    expected = bilinear(values, transform, crs, grid, size)
    np.testing.assert_allclose(whole.data[..., 0], expected, atol=0.5 if crs == ZONE_33 else 1e-3)
    np.testing.assert_array_equal(window, whole[37:57, 61:91])  # cut from the same block
    place = Georeference(grid, rasterio.crs.CRS.from_string(ZONE_32).to_wkt())
    trained = read_on_extent(read_info(path), place, size)
    if trained.size == size:  # not finer than the file
        np.testing.assert_array_equal(trained.values, whole.data)


def test_rows_hold_what_maps_are_made_from_where_pixels_are_equal_but_for_the_projection(tmp_path):
    """11 degrees from its middle a UTM zone makes pixels larger by a hundredth: still the grid of the label."""
    values = np.random.default_rng(0).integers(1, 250, (3, 300, 320)).astype(np.uint8)
    values[:, 100:120, 50:90] = 0
    path = write_tiff(tmp_path / "x.tif", values, crs="EPSG:2154", origin=(770500.0, 6277550.0), nodata=0)
    (x,), (y,) = warp.transform("EPSG:2154", ZONE_33, [770560.0], [6277450.0])
    like = write_tiff(tmp_path / "grid.tif", np.zeros((1, 150, 160), np.uint8), crs=ZONE_33, origin=(x, y))
    with RasterScene({"x": path}, channels={"x": 3}, like=like) as scene:
        image = scene.read(0, 0, 150, 160)["x"]
    reference = read_info(like)
    trained = read_on_extent(read_info(path), reference.georeference, reference.size)
    assert 0.9 < trained.valid.mean() < 0.99
    np.testing.assert_array_equal(trained.valid, ~image.mask[..., 0])
    np.testing.assert_array_equal(trained.values[trained.valid], image.data[trained.valid])


def test_values_do_not_depend_on_how_large_the_map_is(tmp_path):
    """The whole of a neighbouring zone against a strip of it, in another place of the map's blocks."""
    crs, grid = GRIDS["other zone"][0], Affine(1, 0, WEST, 0, -1, NORTH)
    path = write_tiff(tmp_path / "x.tif", noise()[None], crs=crs, transform=source_transform(crs))
    strips = []
    for left, width in ((0, 150), (100, 20)):
        transform = grid @ Affine.translation(left, 0)
        like = write_tiff(tmp_path / "grid.tif", np.zeros((1, 140, width), np.uint8), crs=ZONE_32, transform=transform)
        with RasterScene({"x": path}, channels={"x": 1}, like=like) as scene:
            strips.append(scene.read(0, 0, 140, width)["x"].data)
    np.testing.assert_allclose(strips[1], strips[0][:, 100:120], atol=0.5)  # places are within a thousandth of a pixel


@pytest.mark.parametrize("name", GRIDS)
def test_eight_bits_are_bilinear_but_for_the_rounding_to_whole_numbers(tmp_path, name):
    crs, grid = GRIDS[name]
    transform, size = source_transform(crs), (140, 150)
    values = np.rint(noise()).astype(np.uint8)
    path = write_tiff(tmp_path / "x.tif", values[None], crs=crs, transform=transform)
    like = write_tiff(tmp_path / "grid.tif", np.zeros((1, *size), np.uint8), crs=ZONE_32, transform=grid)
    with RasterScene({"x": path}, channels={"x": 1}, like=like) as scene:
        image = scene.read(0, 0, *size)["x"]
    assert image.dtype == np.uint8 and not image.mask.any()
    expected = bilinear(values.astype(float), transform, crs, grid, size)
    np.testing.assert_allclose(image.data[..., 0], expected, atol=0.5 + (0.3 if crs == ZONE_33 else 1e-3))


def test_a_value_is_the_same_in_every_window(tmp_path):
    """Windows of any size, across the edges of the blocks that are warped at once, with holes on them."""
    rng = np.random.default_rng(0)
    values = rng.integers(1, 250, (2, 700, 800)).astype(np.int16)
    values[:, rng.random((700, 800)) < 0.05] = -1
    path = write_tiff(tmp_path / "x.tif", values, nodata=-1, crs=ZONE_33)
    (x,), (y,) = warp.transform(ZONE_33, ZONE_32, [500010.0], [4799990.0])
    like = write_tiff(tmp_path / "grid.tif", np.zeros((1, 620, 640), np.uint8), crs=ZONE_32, origin=(x, y))
    with RasterScene({"x": path}, channels={"x": 2}, like=like) as scene:
        whole = scene.read(0, 0, 620, 640)["x"]
    assert 0.9 < 1 - whole.mask.mean() < 0.96
    for size in (1, 33, 256, 511, 600):
        with RasterScene({"x": path}, channels={"x": 2}, like=like) as scene:
            for _ in range(3):
                top, left = (int(rng.integers(0, side - size)) for side in (620, 640))
                image = scene.read(top, left, size, size).get("x")
                place = Window(top, left, size, size).slices
                if image is None:
                    assert whole.mask[place].all()
                    continue
                np.testing.assert_array_equal(image.mask, whole.mask[place])
                np.testing.assert_array_equal(image.filled(-1), whole[place].filled(-1))


@pytest.mark.parametrize("dtype", ["uint8", "int32", "float32"])
def test_coarser_grid_takes_the_mean_of_what_it_covers_and_gaps_are_left_out(tmp_path, dtype):
    """Pixels of 4 x 4 m on pixels of 1 m: a kernel of 8 x 8 pixels, in parts where the file is large."""
    values = np.full((1, 160, 160), 100, dtype=dtype)
    values[0, ::2, ::2] = 104
    values[0, 40:80, 40:80] = 7  # nothing
    path = write_tiff(tmp_path / "x.tif", values)
    like = write_tiff(tmp_path / "grid.tif", np.zeros((1, 40, 40), np.uint8), pixel=4.0)
    with RasterScene({"x": path}, channels={"x": 1}, like=like, nodata={"x": [7]}) as scene:
        image = scene.read(0, 0, 40, 40)["x"][..., 0]
    assert image.mask[10:20, 10:20].all() and image.count() == 1500
    np.testing.assert_allclose(image.compressed(), 101, atol=0.6)


@pytest.mark.parametrize("side", [64, 96, 144])
def test_finer_file_is_averaged_over_the_area_as_the_processor_does(tmp_path, side):
    """With a place on Earth by GDAL, without one by what the image processor does with rows of unequal resolution."""
    values = np.random.default_rng(side).uniform(0, 255, (2, side, side)).astype(np.float32)
    values[:, np.random.default_rng(0).random((side, side)) < 0.3] = np.nan
    values[1, 20:30, 20:40] = np.nan
    images = []
    for crs in (UTM, None):
        path = write_tiff(tmp_path / "x.tif", values, pixel=48 / side, crs=crs)
        like = write_tiff(tmp_path / "grid.tif", np.zeros((1, 48, 48), np.uint8), crs=crs)
        with RasterScene({"x": path}, channels={"x": 2}, like=like) as scene:
            images.append(scene.read(0, 0, 48, 48)["x"])
    np.testing.assert_array_equal(images[0].mask, images[1].mask)
    np.testing.assert_allclose(images[0].compressed(), images[1].compressed(), rtol=1e-5)


@pytest.mark.parametrize("crs", ["EPSG:32631", "EPSG:3413"])
def test_file_of_the_whole_earth_is_read_on_a_small_map_and_around_the_pole(tmp_path, crs):
    """Some places of it, a quarter of a turn away from the zone, are none in the CRS of the map."""
    latitude = 90 - (np.arange(360) + 0.5) * 0.5
    values = np.repeat(latitude[None, :, None], 720, axis=2).astype(np.float32)
    path = write_tiff(tmp_path / "earth.tif", values, crs="EPSG:4326", transform=Affine(0.5, 0, -180, 0, -0.5, 90))
    north = 5e6 if crs == "EPSG:32631" else 5e5
    grid = Affine(50000, 0, 200000 if crs == "EPSG:32631" else -5e5, 0, -50000, north)
    like = write_tiff(tmp_path / "grid.tif", np.zeros((1, 20, 20), np.uint8), crs=crs, transform=grid)
    with RasterScene({"x": path}, channels={"x": 1}, like=like) as scene:
        image = scene.read(0, 0, 20, 20)["x"][..., 0]
    row, column = np.mgrid[:20, :20] + 0.5
    x, y = grid @ (column, row)
    _, expected = warp.transform(crs, "EPSG:4326", x.ravel().tolist(), y.ravel().tolist())
    assert image.count() == 400
    # Half a pixel of the file: beyond the last row of pixels there is no slope left at the pole.
    np.testing.assert_allclose(image.filled(), np.reshape(expected, (20, 20)), atol=0.3)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "int32", "float32"])
def test_tiles_of_a_coarser_raster_are_those_of_the_map_up_to_the_rims_of_its_holes(tmp_path, dtype):
    """Training rows hold the part at the label's pixels, a map reads the file on them; one of its own is 5 x 5."""
    rng = np.random.default_rng(0)
    values = rng.integers(1, 250, (1, 12, 16)).astype(dtype)
    values[0][rng.random((12, 16)) < 0.2] = 0
    path = write_tiff(tmp_path / "coarse.tif", values, pixel=5.0, nodata=0)
    like = write_tiff(tmp_path / "label.tif", np.zeros((1, 60, 80), np.uint8))
    reference = read_info(like)
    whole = read_on_extent(read_info(path), reference.georeference, reference.size)
    assert whole.size == (12, 16)
    with RasterScene({"x": path}, channels={"x": 1}, like=like) as scene:
        for window in (Window(0, 0, 32, 32), Window(13, 21, 32, 32), Window(28, 48, 32, 32)):
            tile, image = cut(whole, reference.size, window), scene.read(*window)["x"]
            np.testing.assert_array_equal(tile.valid, ~image.mask[..., 0])
            assert tile.values.dtype == image.dtype == np.dtype(dtype)
            # GDAL has its weights in float32, so that halves may go the other way.
            step = 0 if dtype == "float32" else 1
            difference = np.abs(tile.values.astype(float) - image.data)[tile.valid]
            assert difference.max() <= step + 1e-3 and np.mean(difference > 1e-3) < 0.01


def test_halves_go_up_whatever_the_steps_of_the_grid_are():
    """On a grid of tenths 10.5 is computed as 10.499999999999998 and the like."""
    coarse = Raster(np.array([[[10], [20], [30]]], np.int16).repeat(3, 0), np.ones((3, 3), dtype=bool))
    tile = cut(coarse, (30, 30), Window(1, 5, 20, 20))
    assert (tile.values[..., 0] == np.arange(11, 31)).all()
