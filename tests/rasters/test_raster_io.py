"""Reading raster files: values and gaps exactly, and onto the extent of a reference grid."""

import sys

import numpy as np
import pytest
from PIL import Image
from raster_scenes import UTM, write_tiff

from sgma_hf.rasters.bands import BandSelection
from sgma_hf.rasters.extents import read_on_extent
from sgma_hf.rasters.files import read_info, read_raster
from sgma_hf.rasters.raster import Georeference, Raster, lonlat_bounds
from sgma_hf.rasters.scene import RasterScene


def grid_of(size, *, origin=(500000.0, 4800000.0), pixel=1.0):
    rasterio = pytest.importorskip("rasterio")
    transform = rasterio.Affine(pixel, 0.0, origin[0], 0.0, -pixel, origin[1])
    return Georeference(transform, rasterio.crs.CRS.from_string(UTM).to_wkt()), size


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "int32", "float32"])
def test_geotiff_values_are_exact(tmp_path, dtype):
    values = np.array([[[1, 2, 3], [100, 101, 120]], [[7, 8, 9], [0, 5, 127]]], dtype=dtype)
    raster = read_raster(write_tiff(tmp_path / "x.tif", values))
    assert raster.values.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(raster.values, np.moveaxis(values, 0, -1))
    assert raster.valid.all()
    assert raster.georeference.bounds(raster.size) == (500000.0, 4799998.0, 500003.0, 4800000.0)


def test_header_says_what_reading_gives(tmp_path):
    path = write_tiff(tmp_path / "x.tif", np.zeros((2, 3, 4), dtype=np.int16), nodata=-32768)
    info = read_info(path)
    assert (info.size, info.channels, info.dtype, info.nodata, info.has_mask) == (
        (3, 4),
        2,
        "int16",
        (-32768, -32768),
        False,
    )


def test_dtypes_the_format_lacks_become_ones_that_hold_them(tmp_path):
    double = read_raster(write_tiff(tmp_path / "a.tif", np.array([[[1.5, -1.7976931348623157e308]]])))
    assert double.values.dtype == np.float32
    np.testing.assert_array_equal(double.valid, [[True, False]])
    signed = read_raster(write_tiff(tmp_path / "b.tif", np.array([[[-128, 127]]], dtype=np.int8)))
    np.testing.assert_array_equal(signed.values[..., 0], np.array([[-128, 127]], dtype=np.int16))
    big = write_tiff(tmp_path / "c.tif", np.array([[[2**32 - 1]]], dtype=np.uint32))
    with pytest.raises(ValueError, match=r"c\.tif holds uint32 values beyond int32"):
        read_raster(big)


def test_declared_and_given_nodata(tmp_path):
    path = write_tiff(tmp_path / "x.tif", np.array([[[-9999.0, 0.0, 5.0, np.nan]]], dtype=np.float32), nodata=-9999)
    np.testing.assert_array_equal(read_raster(path).valid, [[False, True, True, False]])
    np.testing.assert_array_equal(read_raster(path, nodata=[0]).valid, [[False, False, True, False]])
    np.testing.assert_array_equal(read_raster(path, use_declared_nodata=False).valid, [[True, True, True, False]])


def test_scale_and_offset_of_a_header_are_applied(tmp_path):
    rasterio = pytest.importorskip("rasterio")
    stored = np.array([[[-1, 2, 30]], [[-1, -1, 7]]], dtype=np.int16)
    path = write_tiff(tmp_path / "x.tif", stored, nodata=-1)
    with rasterio.open(path, "r+") as file:
        file.scales, file.offsets = (0.5, 1.0), (10.0, 0.0)
    info = read_info(path)
    assert (info.dtype, info.nodata, info.has_mask) == ("float32", (), True)
    raster = read_raster(path)
    assert raster.values.dtype == np.float32
    np.testing.assert_array_equal(raster.valid, [[False, False, True]])  # nodata is a stored number, of any band
    np.testing.assert_array_equal(raster.values[0, 2:], [[25, 7]])
    np.testing.assert_array_equal(read_raster(path, nodata=[9.5]).valid, raster.valid)
    plain = read_raster(path, bands=BandSelection((2,)))
    assert plain.values.dtype == np.int16 and plain.valid.tolist() == [[False, False, True]]
    larger = read_on_extent(info, *grid_of((2, 6), pixel=0.5))
    np.testing.assert_array_equal(larger.values[0, 2:], [[25, 7]])


def test_nodata_of_float32_is_compared_as_float32(tmp_path):
    lowest = np.float32(-3.4028235e38)
    path = write_tiff(tmp_path / "x.tif", np.array([[[lowest, 1.0]]], dtype=np.float32), nodata=-3.4028234663852886e38)
    np.testing.assert_array_equal(read_raster(path).valid, [[False, True]])


def test_internal_mask_and_alpha_become_gaps(tmp_path):
    values = np.full((3, 1, 3), 7, dtype=np.uint8)
    mask = np.array([[255, 0, 255]], dtype=np.uint8)
    masked = read_raster(write_tiff(tmp_path / "m.tif", values, mask=mask))
    np.testing.assert_array_equal(masked.valid, [[True, False, True]])
    with_alpha = np.concatenate([values, mask[None]])
    path = write_tiff(tmp_path / "a.tif", with_alpha, alpha=True)
    assert (read_info(path).channels, read_info(path).has_mask) == (3, True)
    raster = read_raster(path)
    np.testing.assert_array_equal(raster.valid, [[True, False, True]])
    assert raster.values.shape == (1, 3, 3)


def test_png_and_jpeg_need_no_rasterio(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "rasterio", None)
    grey = np.array([[0, 300], [65535, 7]], dtype=np.uint16)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    np.testing.assert_array_equal(read_raster(tmp_path / "grey.png").values[..., 0], grey)
    assert read_info(tmp_path / "grey.png").dtype == "uint16"
    rgba = np.array([[[1, 2, 3, 255], [4, 5, 6, 0]]], dtype=np.uint8)
    Image.fromarray(rgba).save(tmp_path / "rgba.png")
    raster = read_raster(tmp_path / "rgba.png")
    np.testing.assert_array_equal(raster.values, rgba[..., :3])
    np.testing.assert_array_equal(raster.valid, [[True, False]])
    info = read_info(tmp_path / "rgba.png")
    assert (info.channels, info.has_mask, info.georeference) == (3, True, None)
    Image.fromarray(np.full((8, 8, 3), 128, dtype=np.uint8)).save(tmp_path / "x.jpg")
    assert read_raster(tmp_path / "x.jpg").values.shape == (8, 8, 3)
    with pytest.raises(ImportError, match=r"x\.tif needs rasterio.*sgma-hf\[geo\]"):
        read_info(tmp_path / "x.tif")


def test_bands_of_different_types_are_read_as_one_that_holds_both(tmp_path):
    rasterio = pytest.importorskip("rasterio")
    paths = [
        write_tiff(tmp_path / "a.tif", np.array([[[200, 7]]], dtype=np.uint8)),
        write_tiff(tmp_path / "b.tif", np.array([[[0.5, -1]]], dtype=np.float32)),
    ]
    bands = "".join(
        f'<VRTRasterBand dataType="{kind}" band="{band}"><SimpleSource><SourceFilename>{path}</SourceFilename>'
        "<SourceBand>1</SourceBand></SimpleSource></VRTRasterBand>"
        for band, (kind, path) in enumerate(zip(("Byte", "Float32"), paths, strict=True), start=1)
    )
    (tmp_path / "x.vrt").write_text(f'<VRTDataset rasterXSize="2" rasterYSize="1">{bands}</VRTDataset>')
    raster = read_raster(tmp_path / "x.vrt")
    assert raster.values.dtype == np.float32 and rasterio.open(tmp_path / "x.vrt").dtypes == ("uint8", "float32")
    assert raster.values.tolist() == [[[200, 0.5], [7, -1]]]


def test_palette_file_is_colours_or_indices(tmp_path):
    image = Image.fromarray(np.array([[0, 1]], dtype=np.uint8))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.save(tmp_path / "p.png")
    np.testing.assert_array_equal(read_raster(tmp_path / "p.png").values, [[[10, 20, 30], [40, 50, 60]]])
    assert read_info(tmp_path / "p.png").channels == 3
    np.testing.assert_array_equal(read_raster(tmp_path / "p.png", palette_as_indices=True).values[..., 0], [[0, 1]])


@pytest.mark.parametrize("name", ["x.png", "x.tif"])
def test_damaged_files_are_named(tmp_path, name):
    path = tmp_path / name
    if name == "x.png":
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8)).save(path)
    else:
        write_tiff(path, np.random.default_rng(0).integers(0, 255, (1, 64, 64), dtype=np.uint8), compress="deflate")
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ValueError, match=f"Cannot read .*{name}"):
        read_raster(path)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=f"Cannot read .*{name}"):
        read_info(path)


def test_a_folder_in_place_of_a_file_is_told_from_a_damaged_file(tmp_path):
    with pytest.raises(ValueError, match=r"It is a folder: give the files in it, as in '.*scene one/\*\.tif'\.$"):
        (tmp_path / "scene one").mkdir()
        read_raster(tmp_path / "scene one")


def test_crop_pads_with_no_data():
    raster = Raster(np.arange(6, dtype=np.uint8).reshape(2, 3, 1), np.ones((2, 3), dtype=bool))
    inner = raster.crop(0, 1, 2, 2)
    np.testing.assert_array_equal(inner.values[..., 0], [[1, 2], [4, 5]])
    outer = raster.crop(-1, 2, 3, 2)
    np.testing.assert_array_equal(outer.values[..., 0], [[0, 0], [2, 0], [5, 0]])
    np.testing.assert_array_equal(outer.valid, [[False, False], [True, False], [True, False]])


def test_same_extent_keeps_its_own_resolution(tmp_path):
    values = np.arange(369 * 4, dtype=np.int16).reshape(369, 2, 2)
    path = write_tiff(tmp_path / "hsi.tif", values, pixel=10.0)
    raster = read_on_extent(read_info(path), *grid_of((200, 200), pixel=0.1))
    np.testing.assert_array_equal(raster.values, np.moveaxis(values, 0, -1))


def test_aligned_larger_raster_is_cropped_without_change(tmp_path):
    values = np.arange(36, dtype=np.uint16).reshape(1, 6, 6)
    path = write_tiff(tmp_path / "x.tif", values)
    raster = read_on_extent(read_info(path), *grid_of((2, 3), origin=(500002.0, 4799999.0)))
    np.testing.assert_array_equal(raster.values[..., 0], [[8, 9, 10], [14, 15, 16]])
    assert raster.valid.all() and raster.georeference.bounds((2, 3))[0] == 500002.0


def test_where_a_raster_does_not_reach_there_is_no_data(tmp_path):
    path = write_tiff(tmp_path / "x.tif", np.array([[[1, 2], [3, 4]]], dtype=np.uint8))
    raster = read_on_extent(read_info(path), *grid_of((2, 3), origin=(500001.0, 4800001.0)))
    np.testing.assert_array_equal(raster.valid, [[False, False, False], [True, False, False]])
    assert raster.values[1, 0, 0] == 2


def test_rasters_elsewhere_are_refused_with_both_extents(tmp_path):
    for pixel in (1.0, 0.7):
        path = write_tiff(tmp_path / "x.tif", np.ones((1, 2, 2), dtype=np.uint8), pixel=pixel)
        with pytest.raises(ValueError, match=r"does not overlap.*500000, .*the reference \(600000"):
            read_on_extent(read_info(path), *grid_of((2, 2), origin=(600000.0, 4800000.0)))


def test_crs_from_which_no_way_leads_to_the_other_is_said_in_one_sentence(tmp_path):
    local = 'LOCAL_CS["RGF93 v1 / Lambert-93",UNIT["metre",1,AUTHORITY["EPSG","9001"]]]'
    path = write_tiff(tmp_path / "label.tif", np.zeros((1, 4, 4), dtype=np.uint8), crs=local)
    info, (place, size) = read_info(path), grid_of((4, 4))
    with pytest.raises(
        ValueError, match=r'label.tif is in the CRS LOCAL_CS\["RGF93 v1 / Lambert-93"\], from which no way'
    ):
        read_on_extent(info, place, size)
    other = write_tiff(tmp_path / "rgb.tif", np.zeros((1, 4, 4), dtype=np.uint8))
    with pytest.raises(ValueError, match=r"label\.tif is in the CRS LOCAL_CS"):
        RasterScene({"rgb": other, "label": path}, channels={"rgb": 1, "label": 1})
    with pytest.raises(ValueError, match="from which no way leads"):
        lonlat_bounds(info.georeference, info.size)


def test_unaligned_raster_is_interpolated_on_a_plane(tmp_path):
    """A plane z = 2 x + 3 y survives bilinear interpolation exactly, whatever the offset."""
    x, y = np.meshgrid(np.arange(12) + 0.5, np.arange(12) + 0.5)
    path = write_tiff(tmp_path / "x.tif", (2 * x + 3 * y)[None].astype(np.float32))
    raster = read_on_extent(read_info(path), *grid_of((6, 6), origin=(500003.3, 4799996.6)))
    column, row = np.meshgrid(np.arange(6) + 0.5 + 3.3, np.arange(6) + 0.5 + 3.4)
    assert raster.valid.all()
    np.testing.assert_allclose(
        raster.values[..., 0], 2 * column + 3 * row, atol=1e-3
    )  # GDAL's approximate transformer


def test_interpolation_does_not_blend_nodata(tmp_path):
    values = np.full((1, 8, 8), 10.0, dtype=np.float32)
    values[0, :, 5:] = -9999
    path = write_tiff(tmp_path / "x.tif", values, nodata=-9999)
    raster = read_on_extent(read_info(path), *grid_of((6, 6), origin=(500001.4, 4799998.6)))
    np.testing.assert_allclose(raster.values[raster.valid], 10.0, atol=1e-4)
    assert raster.valid[:, :3].all() and not raster.valid[:, 4:].any()


def test_other_crs_is_brought_to_the_reference(tmp_path):
    rasterio = pytest.importorskip("rasterio")
    grid, size = grid_of((20, 20), pixel=10.0)
    west, south, east, north = lonlat_bounds(grid, size)
    assert 2.9 < west < 3.1 and 43.3 < north < 43.4
    step = 1e-4
    shape = (int((north - south) / step) + 20, int((east - west) / step) + 20)
    latitude = north + 10 * step - (np.arange(shape[0]) + 0.5) * step
    values = np.repeat(latitude[:, None] - 43, shape[1], axis=1)[None].astype(np.float32)
    path = write_tiff(
        tmp_path / "x.tif", values, crs="EPSG:4326", origin=(west - 10 * step, north + 10 * step), pixel=step
    )
    raster = read_on_extent(read_info(path), grid, size)
    assert raster.valid.all()
    # Cells of about 1e-4 degrees, 8 x 11 m: not finer than the reference, about as coarse as the file.
    assert raster.size == (18, 20)
    assert rasterio.crs.CRS.from_wkt(raster.georeference.crs) == rasterio.crs.CRS.from_string(UTM)
    expected = np.linspace(north, south, 2 * raster.size[0] + 1)[1::2] - 43
    np.testing.assert_allclose(
        raster.values[:, 10, 0], expected, atol=2e-5
    )  # 2 m: parallels are bent, extents straight


def test_without_georeferencing_extents_are_the_same(tmp_path):
    values = np.arange(6, dtype=np.uint8).reshape(2, 3)
    Image.fromarray(values).save(tmp_path / "x.png")
    info = read_info(tmp_path / "x.png")
    np.testing.assert_array_equal(read_on_extent(info, None, (20, 30)).values[..., 0], values)
    with pytest.raises(ValueError, match=r"x\.png has 3 x 2 pixels, its reference 40 x 20.*proportions"):
        read_on_extent(info, None, (20, 40))
