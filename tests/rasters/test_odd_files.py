"""Odd but valid files: layouts and codecs of GeoTIFF, texts of its nodata tag, and a CRS written in two ways."""

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin
from raster_scenes import UTM, predict_height_classes, write_tiff

from sgma_hf.converters.raster_folders import convert_rasters
from sgma_hf.data.rows import load_rows
from sgma_hf.rasters.files import read_raster
from sgma_hf.rasters.scene import RasterScene


rasterio = pytest.importorskip("rasterio")

SIDE = 48
LAYOUTS = {
    "CMYK, which GDAL shows as RGBA": ("uint8", 4, {"photometric": "CMYK"}),
    "JPEG with a mask": ("uint8", 3, {"compress": "jpeg", "photometric": "ycbcr", "tiled": True, "mask": True}),
    "white is zero": ("uint8", 1, {"photometric": "MINISWHITE"}),
    "LERC": ("float32", 1, {"compress": "lerc_zstd", "nodata": -9999}),
    "LZMA": ("int16", 2, {"compress": "lzma", "nodata": -9999}),
    "predictor of floats": ("float32", 2, {"compress": "deflate", "predictor": 3, "nodata": float("nan")}),
    "12 bits": ("uint16", 1, {"nbits": 12, "nodata": 4095}),
    "4 bits": ("uint8", 1, {"nbits": 4, "nodata": 15}),
    "floats of 16 bits": ("float32", 1, {"nbits": 16}),
    "BigTIFF": ("int32", 2, {"BIGTIFF": "YES", "nodata": -(2**31)}),
    "a mask beside the file": ("uint16", 3, {"mask": True}),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts_of_geotiff_are_read_as_gdal_reads_them(tmp_path, name):
    dtype, count, profile = LAYOUTS[name]
    profile = dict(profile)
    highest = 2 ** profile["nbits"] - 1 if dtype.startswith("uint") and "nbits" in profile else 100
    values = np.random.default_rng(0).uniform(1, highest, (count, SIDE, SIDE)).astype(dtype)
    nodata = profile.get("nodata")
    if nodata is not None:
        values[0, 5:9, 7:20] = nodata
    if profile.pop("mask", None):
        profile["mask"] = np.kron([[0, 255], [255, 255]], np.ones((SIDE // 2, SIDE // 2))).astype(np.uint8)
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK="JPEG" in name):
        path = write_tiff(tmp_path / "x.tif", values, **{"photometric": "minisblack", **profile})
    with rasterio.open(path) as file:
        bands = [band for band in file.indexes if file.colorinterp[band - 1].name != "alpha"]
        right, valid = file.read(bands), (file.read_masks(bands) > 0).all(0)
    raster = read_raster(path)
    np.testing.assert_array_equal(raster.valid, valid)
    assert not valid.all() or "mask" not in profile
    np.testing.assert_array_equal(raster.values[valid], np.moveaxis(right, 0, -1)[valid])
    with RasterScene({"x": path}, channels={"x": len(bands)}) as scene:
        image = scene.read(0, 0, SIDE, SIDE)["x"]
    np.testing.assert_array_equal(image.mask.any(-1), ~valid)
    np.testing.assert_array_equal(image.data[valid], raster.values[valid])


def test_blocks_that_were_never_written_hold_no_data(tmp_path):
    place = {"crs": UTM, "transform": rasterio.Affine(1, 0, 500000, 0, -1, 4800000), "nodata": -9999}
    blocks = {"tiled": True, "blockxsize": 16, "blockysize": 16, "sparse_ok": True}
    kind = {"driver": "GTiff", "width": SIDE, "height": SIDE, "count": 1, "dtype": "float32"}
    with rasterio.open(tmp_path / "x.tif", "w", **kind, **place, **blocks) as file:
        file.write(np.full((1, 16, 16), 5, np.float32), window=rasterio.windows.Window(16, 0, 16, 16))
    raster = read_raster(tmp_path / "x.tif")
    assert raster.valid.sum() == 256 and raster.valid[:16, 16:32].all()


@pytest.mark.parametrize(
    ("text", "missing"),
    [
        ("-9999", [-9999]),
        ("-9999.00000", [-9999]),
        (" -9999", [-9999]),
        ("nan", []),
        ("-1.#QNAN", []),
        ("none", []),
        ("1e400", []),
        ("-3.402823466e+38", []),  # rounded; that number is none in any case
    ],
)
def test_nodata_tag_of_any_text(tmp_path, text, missing):
    values = np.array([[np.finfo(np.float32).min, -9999, 1, np.nan, 2]], dtype=np.float32)
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[42113] = text
    Image.fromarray(values).save(tmp_path / "x.tif", tiffinfo=tags)
    expected = [[False, not missing, True, False, True]]
    assert read_raster(tmp_path / "x.tif").valid.tolist() == expected


def esri(crs):
    return rasterio.crs.CRS.from_string(crs).to_wkt(version="WKT1_ESRI")


@pytest.mark.parametrize(
    ("crs", "other", "origin", "pixel"),
    [
        ("EPSG:25832", "EPSG:25832+5783", (5e5, 5e6), 1),  # with heights
        ("EPSG:4326", "OGC:CRS84", (9, 48), 1e-4),  # latitude first, and longitude first
        ("EPSG:25832", esri("EPSG:25832"), (5e5, 5e6), 1),
        ("EPSG:31467", "EPSG:31467", (3.5e6 + 0.123, 5.4e6 - 0.877), 0.01),  # northing first, large and fine
    ],
)
def test_one_grid_whose_crs_is_written_in_two_ways_is_one_grid(tmp_path, crs, other, origin, pixel):
    values = np.random.default_rng(0).uniform(0, 255, (1, SIDE, SIDE)).astype(np.float32)
    x = write_tiff(tmp_path / "x.tif", values, crs=other, origin=origin, pixel=pixel)
    inner = (origin[0] + 5 * pixel, origin[1] - 7 * pixel)
    like = write_tiff(tmp_path / "like.tif", np.zeros((1, 30, 30), np.uint8), crs=crs, origin=inner, pixel=pixel)
    with RasterScene({"x": x}, channels={"x": 1}, like=like) as scene:
        image = scene.read(0, 0, 30, 30)["x"]
    np.testing.assert_allclose(image.filled(np.nan)[..., 0], values[0, 7:37, 5:35], atol=1e-3)


@pytest.mark.parametrize("name", ["Grüne Wiese 1", "a, b", "t:1,2", "50% [x] #3 & 'q'"])
def test_names_are_taken_as_they_are(tmp_path, name):
    folders = [tmp_path / "scenes" / kind for kind in ("dsm 1", "label")]
    for folder in folders:
        folder.mkdir(parents=True)
        write_tiff(folder / f"{name}.tif", np.full((1, 8, 8), 1, np.uint8))
    convert_rasters(tmp_path / "scenes", tmp_path / "rows", ["dsm=dsm 1"])
    assert load_rows(tmp_path / "rows", "train")["id"][:] == [name]
    for text in (str(folders[0] / f"{name}.tif"), f"{folders[0] / name}.tif:1"):
        predict_height_classes({"dsm": text}, tmp_path / f"{name}_map.tif")
        assert (tmp_path / f"{name}_map.tif").exists()
