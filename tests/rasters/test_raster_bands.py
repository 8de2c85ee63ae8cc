"""Which bands of a file are values and which is alpha, where GeoTIFF's own tags say the wrong thing."""

import numpy as np
import pytest
from PIL import Image
from raster_scenes import write_tiff

from sgma_hf import SgmaImageProcessor
from sgma_hf.data.codec import decode_raster
from sgma_hf.rasters.alpha import check_alpha
from sgma_hf.rasters.bands import ALL_BANDS, BandSelection, share_files
from sgma_hf.rasters.files import read_info, read_raster
from sgma_hf.rasters.scene import RasterScene


CHANNELS = {"rgb": 3, "nir": 1}


def four_bands(fourth):
    """Red 10, green 20, blue 30 and a fourth band, as rasterio writes them: tagged as alpha."""
    fourth = np.asarray(fourth, dtype=np.uint8)
    return np.stack([np.full_like(fourth, 10), np.full_like(fourth, 20), np.full_like(fourth, 30), fourth])


def test_bands_behind_a_colon():
    assert BandSelection.parse("a.tif:4,1,2") == ("a.tif", BandSelection((4, 1, 2)))
    assert BandSelection.parse("C:/a.tif:1,2,3,alpha") == ("C:/a.tif", BandSelection((1, 2, 3), alpha=True))
    assert BandSelection.parse("a.tif:alpha") == ("a.tif:alpha", ALL_BANDS)
    rgb, nir, other = BandSelection((1, 2, 3)), BandSelection((4,)), BandSelection((4,))
    shared = share_files([("a", rgb), ("a", nir), ("b", other), ("a", ALL_BANDS)])
    assert [sorted(bands.measured) for bands in shared] == [[1, 2, 3, 4], [1, 2, 3, 4], [4], []]
    assert shared[0].alpha_band([4]) is None and shared[3].alpha_band([4]) == 4


@pytest.mark.parametrize("kind", ["bilinear", "nearest"])
def test_chosen_near_infrared_on_another_grid_ends_where_its_file_ends(tmp_path, kind):
    """A file of 4 m in a map of 8 m: a quarter of the map, and nothing blended in from beyond it."""
    rgb = write_tiff(tmp_path / "rgb.tif", np.full((3, 8, 8), 90, dtype=np.uint8))
    nir = write_tiff(tmp_path / "rgbn.tif", four_bands([[50, 50], [50, 50]]), pixel=2.0)
    with RasterScene({"rgb": rgb, "nir": f"{nir}:4"}, channels=CHANNELS, resampling=kind) as scene:
        image = scene.read(0, 0, 8, 8)["nir"][..., 0]
    there = np.zeros((8, 8), dtype=bool)
    there[:4, :4] = True
    np.testing.assert_array_equal(~image.mask, there)
    np.testing.assert_array_equal(image.compressed(), 50)


@pytest.mark.parametrize("pixel", [1.0, 2.0])
def test_band_that_another_modality_takes_masks_nothing(tmp_path, pixel):
    """Near infrared is 0 over water; red, green and blue are there."""
    dsm = write_tiff(tmp_path / "grid.tif", np.zeros((1, 4, 4), dtype=np.float32))
    four = write_tiff(tmp_path / "four.tif", four_bands(np.kron([[0, 80], [0, 80]], np.ones((2, 2)))), pixel=pixel)
    rasters = {"rgb": f"{four}:1,2,3", "nir": f"{four}:4"}
    with RasterScene(rasters, channels=CHANNELS, like=dsm) as scene:
        images = scene.read(0, 0, 4, 4)
    assert images["rgb"].count() == 48 and images["nir"].count() == 16
    assert images["rgb"][0, 0].tolist() == [10, 20, 30] and images["nir"][0, 0, 0] == 0


def test_band_tagged_as_alpha_that_may_be_a_measurement_is_refused(tmp_path):
    four = write_tiff(tmp_path / "four.tif", four_bands([[0, 255], [87, 255]]))
    for rgb in (four, f"{four}:1,2,3"):
        message = r"Band 4 of .*four\.tif is tagged as alpha but holds 87.*`:1,2,3,4`.*`:1,2,3,alpha` as transparency"
        with pytest.raises(ValueError, match=message):
            RasterScene({"rgb": rgb}, channels=CHANNELS)
    with RasterScene({"rgb": f"{four}:1,2,3,alpha"}, channels=CHANNELS) as scene:
        gaps = scene.read(0, 0, 2, 2)["rgb"].mask[..., 0]
    np.testing.assert_array_equal(gaps, [[True, False], [False, False]])
    with pytest.raises(ValueError, match=r"no band tagged as alpha beside those chosen; 1,2,4,alpha was asked for"):
        RasterScene({"rgb": f"{four}:1,2,4,alpha"}, channels=CHANNELS)


@pytest.mark.parametrize(("dtype", "opaque"), [("uint8", 255), ("uint16", 65535), ("float32", 1)])
def test_alpha_that_is_transparent_or_opaque_is_alpha(tmp_path, dtype, opaque):
    values = np.full((2, 300, 2), 7, dtype=dtype)
    values[1] = opaque
    values[1, 299, 0] = 0
    path = write_tiff(tmp_path / "x.tif", values, ALPHA="YES")
    check_alpha(path)
    assert (read_info(path).channels, read_info(path).has_mask) == (1, True)
    assert (~read_raster(path).valid).sum() == 1
    values[1, 299, 0] = 2
    path = write_tiff(tmp_path / "y.tif", values, ALPHA="YES")
    with pytest.raises(ValueError, match=r"Band 2 of .*y\.tif .* holds 2: .*`:1,alpha`"):
        check_alpha(path)
    check_alpha(path, BandSelection((1, 2)))


def test_alpha_of_a_file_without_a_place_is_a_band_too(tmp_path):
    """Files of another size than the map's, read whole."""
    rgb = write_tiff(tmp_path / "rgb.tif", np.full((3, 4, 4), 90, dtype=np.uint8), crs=None)
    tiff = write_tiff(tmp_path / "four.tif", four_bands([[40, 0], [40, 0]]), crs=None)
    Image.fromarray(np.moveaxis(four_bands([[40, 0], [40, 0]]), 0, -1)).save(tmp_path / "four.png")
    for path in (tiff, tmp_path / "four.png"):
        with RasterScene({"rgb": rgb, "nir": f"{path}:4"}, channels=CHANNELS) as scene:
            image = scene.read(0, 0, 4, 4)["nir"]
        assert image.count() == 16 and image[0, :, 0].tolist() == [40, 30, 10, 0]
        with pytest.raises(ValueError, match=r"Band 4 of .*four.* holds 40"):
            RasterScene({"rgb": path}, channels=CHANNELS)
        with pytest.raises(ValueError, match=r"^\S+four\.\w+ has the bands 1 to 4; bands \[5\] were asked for"):
            RasterScene({"nir": f"{path}:5"}, channels=CHANNELS)


@pytest.mark.parametrize("axis", [0, 2])
def test_bands_of_an_array_file_are_chosen_too(tmp_path, axis):
    values = np.arange(6 * 5 * 4, dtype=np.float32).reshape(6, 5, 4)
    np.save(tmp_path / "x.npy", np.moveaxis(values, 2, axis))
    rasters = {"rgb": f"{tmp_path}/x.npy:3,2,1", "nir": f"{tmp_path}/x.npy:4"}
    with RasterScene(rasters, channels=CHANNELS) as scene:
        images = scene.read(0, 0, 6, 5)
    np.testing.assert_array_equal(images["rgb"].data, values[..., 2::-1])
    np.testing.assert_array_equal(images["nir"].data, values[..., 3:])
    with pytest.raises(ValueError, match=r"x\.npy has the bands 1 to 4; bands \[5\] were asked for"):
        RasterScene({"nir": f"{tmp_path}/x.npy:5"}, channels=CHANNELS)


@pytest.mark.parametrize("name", ["p.png", "p.tif"])
def test_chosen_band_of_a_palette_file_is_its_indices(tmp_path, name):
    rasterio = pytest.importorskip("rasterio")
    image = Image.fromarray(np.array([[0, 2]], dtype=np.uint8))
    image.putpalette([10, 20, 30, 0, 0, 0, 40, 50, 60])
    image.save(tmp_path / "p.png")
    if name == "p.tif":
        rasterio.shutil.copy(tmp_path / "p.png", tmp_path / name, driver="GTiff")
    with RasterScene({"rgb": tmp_path / name}, channels=CHANNELS) as scene:
        assert scene.read(0, 0, 1, 2)["rgb"].tolist() == [[[10, 20, 30], [40, 50, 60]]]
    with RasterScene({"nir": f"{tmp_path / name}:1"}, channels=CHANNELS) as scene:
        assert scene.read(0, 0, 1, 2)["nir"].tolist() == [[[0], [2]]]


def test_palette_file_on_another_grid_is_colours(tmp_path):
    rasterio = pytest.importorskip("rasterio")
    grid = write_tiff(tmp_path / "grid.tif", np.zeros((1, 2, 4), dtype=np.float32))
    path = write_tiff(tmp_path / "p.tif", np.array([[[0, 2]]], dtype=np.uint8), pixel=2.0, photometric="PALETTE")
    with rasterio.open(path, "r+") as file:
        file.write_colormap(1, {0: (10, 20, 30), 2: (40, 50, 60)})
    with RasterScene({"rgb": path}, channels=CHANNELS, like=grid) as scene:
        image = scene.read(0, 0, 2, 4)["rgb"]
    assert image[1].tolist() == [[10, 20, 30]] * 2 + [[40, 50, 60]] * 2


def test_processor_and_rasters_see_the_same_picture(tmp_path):
    """Colours of a palette, transparent colours, alpha: one meaning, whoever opens the file."""
    processor = SgmaImageProcessor(["rgb"], [3], rescale_factor=[1.0], image_mean=[[0.0] * 3], image_std=[[1.0] * 3])
    palette = Image.fromarray(np.array([[0, 1, 2]], dtype=np.uint8))
    palette.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    colours = Image.fromarray(np.array([[[10, 20, 30], [40, 50, 60], [70, 80, 90]]], dtype=np.uint8))
    alpha = colours.copy()
    alpha.putalpha(Image.fromarray(np.array([[255, 0, 255]], dtype=np.uint8)))
    cases = [(palette, {}, 3), (palette, {"transparency": 1}, 2), (colours, {"transparency": (40, 50, 60)}, 2)]
    for image, options, count in [*cases, (alpha, {}, 2)]:
        image.save(tmp_path / "a.png", **options)
        with RasterScene({"rgb": tmp_path / "a.png"}, channels=CHANNELS) as scene:
            read = scene.read(0, 0, 1, 3)["rgb"]
        batch = processor({"rgb": tmp_path / "a.png"})
        mask = batch["modality_mask"][0, 0].expand(1, 3).numpy()
        assert mask.sum() == count and mask.tolist() == (~read.mask[..., 0]).tolist()
        np.testing.assert_array_equal(batch["pixel_values"][0].permute(1, 2, 0).numpy()[mask], read.data[mask])
        stored = decode_raster(tmp_path / "a.png")
        np.testing.assert_array_equal(stored[..., :3][mask], read.data[mask])
        assert stored.shape[2] == (3 if count == 3 else 4)


def test_labels_are_what_is_stored(tmp_path):
    """Neither a palette nor a transparent colour changes the ids."""
    for mode in ("L", "P"):
        label = Image.fromarray(np.array([[0, 1]], dtype=np.uint8))
        if mode == "P":
            label.putpalette([10, 20, 30, 40, 50, 60])
        label.save(tmp_path / "label.png", transparency=1)
        np.testing.assert_array_equal(decode_raster(tmp_path / "label.png", is_label=True), [[0, 1]])
