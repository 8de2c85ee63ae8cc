"""Pictures as viewers show them: pages, orientation, transparent colours, bits, any size; by PIL and by GDAL."""

import io
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset, Features, Value
from datasets import Image as ImageColumn
from PIL import Image
from raster_scenes import predict_height_classes, write_tiff

from sgma_hf import SgmaImageProcessor, decode_row
from sgma_hf.data.codec import decode_raster
from sgma_hf.rasters.extents import read_on_extent
from sgma_hf.rasters.files import read_info, read_raster, uses_pillow
from sgma_hf.rasters.scene import RasterScene


PLACE = "<PAMDataset><GeoTransform>0, 1, 0, 0, 0, -1</GeoTransform></PAMDataset>"


def colours(height=5, width=8, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def exif(turn):
    data = Image.Exif()
    data[274] = turn
    return data


def ways(path, channels):
    """(values, valid) as convert, predict, the processor on a path, and a row read them."""
    raster = read_raster(path)
    yield raster.values, raster.valid
    info = read_info(path)
    raster = read_on_extent(info, info.georeference, info.size)
    yield raster.values, raster.valid
    with RasterScene({"x": path}, channels={"x": channels}) as scene:
        image = scene.read(0, 0, *scene.grid.size)["x"]
        yield image.data, ~image.mask[..., 0]
        top, left, height, width = 1, 2, scene.grid.size[0] - 1, scene.grid.size[1] - 3
        part = scene.read(top, left, height, width)["x"]
        np.testing.assert_array_equal(part, image[top : top + height, left : left + width])


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("name", ["x.png", "x.tif", "sidecar.png"])
def test_orientation_is_that_of_datasets_everywhere(tmp_path, turn, name):
    pytest.importorskip("rasterio")
    path, values = tmp_path / name, colours()
    options = {"tiffinfo": {274: turn}} if name == "x.tif" else {"exif": exif(turn)}
    Image.fromarray(values).save(path, **options)
    if name == "sidecar.png":
        Path(f"{path}.aux.xml").write_text("<PAMDataset><PAMRasterBand band='1'/></PAMDataset>")
    features = Features({"id": Value("string"), "x": ImageColumn(), "label": ImageColumn()})
    cell = {"bytes": path.read_bytes(), "path": None}
    rows = Dataset.from_dict({"id": ["a"], "x": [cell], "label": [cell]}, features=features)
    shown = np.asarray(rows[0]["x"])
    assert shown.shape == ((5, 8, 3) if turn < 5 else (8, 5, 3))
    for found, valid in ways(path, 3):
        np.testing.assert_array_equal(found, shown)
        assert valid.all()
    row = {"id": "a", "x": cell, "label": None}
    np.testing.assert_array_equal(decode_row(row, ["x"])[0]["x"], shown)
    processor = SgmaImageProcessor(modalities=["x"], modality_channels=[3])
    expected = processor({"x": shown})["pixel_values"]
    for image in (str(path), Image.open(path), rows[0]["x"]):
        assert (processor({"x": image})["pixel_values"] == expected).all()


def test_picture_with_a_place_is_not_turned(tmp_path):
    pytest.importorskip("rasterio")
    values = colours()
    Image.fromarray(values).save(tmp_path / "x.png", exif=exif(6))
    (tmp_path / "x.pgw").write_text("1\n0\n0\n-1\n0.5\n-0.5\n")
    for found, _ in ways(tmp_path / "x.png", 3):
        np.testing.assert_array_equal(found, values)


def test_sixteen_bits_and_labels_are_turned_too(tmp_path):
    grey = np.arange(6, dtype=np.uint16).reshape(2, 3) * 9000
    Image.fromarray(grey).save(tmp_path / "grey.png", exif=exif(8))
    np.testing.assert_array_equal(read_raster(tmp_path / "grey.png").values[..., 0], np.rot90(grey))
    assert read_info(tmp_path / "grey.png").size == (3, 2)
    label = (grey // 9000).astype(np.uint8)
    Image.fromarray(label).save(tmp_path / "label.png", exif=exif(3))
    np.testing.assert_array_equal(decode_raster(tmp_path / "label.png", is_label=True), label[::-1, ::-1])


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_pages_are_bands(tmp_path, dtype):
    pytest.importorskip("rasterio")
    bands = np.random.default_rng(1).integers(0, 250, (4, 6, 7)).astype(dtype)
    pages = [Image.fromarray(band) for band in bands]
    pages[0].save(tmp_path / "x.tif", save_all=True, append_images=pages[1:])
    expected = np.moveaxis(bands, 0, -1)
    for found, valid in ways(tmp_path / "x.tif", 4):
        assert found.dtype == dtype and valid.all()
        np.testing.assert_array_equal(found, expected)
    features = Features({"x": ImageColumn()})
    row = Dataset.from_dict({"x": [{"bytes": (tmp_path / "x.tif").read_bytes(), "path": None}]}, features=features)[0]
    for cell in (str(tmp_path / "x.tif"), (tmp_path / "x.tif").read_bytes(), Image.open(tmp_path / "x.tif"), row["x"]):
        np.testing.assert_array_equal(decode_raster(cell), expected)
    with RasterScene({"x": f"{tmp_path}/x.tif:4,2"}, channels={"x": 2}) as scene:
        np.testing.assert_array_equal(scene.read(0, 0, 6, 7)["x"], expected[..., [3, 1]])
    with Image.open(tmp_path / "x.tif") as image:  # one that somebody turned to is meant alone
        image.seek(2)
        np.testing.assert_array_equal(decode_raster(image), bands[2])


def test_pages_are_turned(tmp_path):
    pytest.importorskip("rasterio")
    bands = np.arange(80, dtype=np.uint8).reshape(2, 5, 8)
    pages = [Image.fromarray(band) for band in bands]
    pages[0].save(tmp_path / "x.tif", save_all=True, append_images=pages[1:], tiffinfo={274: 6})
    with Image.open(tmp_path / "x.tif") as image:
        image.seek(1)
        assert image.size == (5, 8)
    expected = np.rot90(np.moveaxis(bands, 0, -1), -1)
    np.testing.assert_array_equal(decode_raster(tmp_path / "x.tif"), expected)
    for found, _ in ways(tmp_path / "x.tif", 2):
        np.testing.assert_array_equal(found, expected)


def test_pages_with_a_place_and_nodata_keep_both(tmp_path):
    rasterio = pytest.importorskip("rasterio")
    for page, name in enumerate(("a", "b")):
        values = np.full((1, 4, 5), page + 7, dtype=np.int16)
        values[0, page, page] = -9
        write_tiff(tmp_path / f"{name}.tif", values, nodata=-9)
        with rasterio.open(tmp_path / f"{name}.tif") as source, rasterio.Env():
            options = {"APPEND_SUBDATASET": "YES"} if page else {}
            rasterio.shutil.copy(source, tmp_path / "x.tif", driver="GTiff", **options)
    info = read_info(tmp_path / "x.tif")
    assert (info.channels, info.dtype, info.nodata, info.size) == (2, "int16", (-9, -9), (4, 5))
    assert info.georeference == read_info(tmp_path / "a.tif").georeference
    assert read_raster(tmp_path / "x.tif").values[3, 3].tolist() == [7, 8]


def test_pages_that_are_no_bands_are_refused_with_their_names(tmp_path):
    pytest.importorskip("rasterio")
    pages = [Image.fromarray(np.full(size, 3, dtype=np.uint8)) for size in ((4, 4), (2, 2))]
    pages[0].save(tmp_path / "x.tif", save_all=True, append_images=pages[1:])
    with pytest.raises(ValueError, match=r"x\.tif has 2 pages, of 4 x 4 pixels of uint8 and of 2 x 2.*GTIFF_DIR:1:"):
        read_info(tmp_path / "x.tif")
    with pytest.raises(ValueError, match=r"x\.tif.*it has 2 pages of \(4, 4\) uint8, \(2, 2\) uint8"):
        decode_raster(tmp_path / "x.tif")


def test_overviews_and_masks_are_no_pages(tmp_path):
    rasterio = pytest.importorskip("rasterio")
    values, mask = np.arange(64 * 64, dtype=np.uint16).reshape(1, 64, 64), np.ones((64, 64), dtype=bool)
    mask[:8] = False
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
        write_tiff(tmp_path / "x.tif", values, mask=mask)
    with rasterio.open(tmp_path / "x.tif", "r+") as target:
        target.build_overviews([2, 4])
    raster = read_raster(tmp_path / "x.tif")
    np.testing.assert_array_equal(raster.values[..., 0], values[0])
    np.testing.assert_array_equal(raster.valid, mask)
    np.testing.assert_array_equal(decode_raster(tmp_path / "x.tif"), values[0])


@pytest.mark.parametrize("transparency", [2, bytes([255, 0, 128, 0])])
@pytest.mark.parametrize("sidecar", [None, "<PAMDataset/>", PLACE])
def test_transparent_colours_of_a_palette_hold_no_data(tmp_path, transparency, sidecar):
    pytest.importorskip("rasterio")
    indices = (np.arange(24).reshape(4, 6) % 4).astype(np.uint8)
    table = colours(1, 4)[0]
    image = Image.fromarray(indices, "P")
    image.putpalette(table.ravel().tolist())
    image.save(tmp_path / "x.png", transparency=transparency)
    if sidecar:
        (tmp_path / "x.png.aux.xml").write_text(sidecar)
    seen = ~np.isin(indices, [2] if transparency == 2 else [1, 3])
    assert read_info(tmp_path / "x.png").has_mask
    for found, valid in ways(tmp_path / "x.png", 3):
        np.testing.assert_array_equal(valid, seen)
        np.testing.assert_array_equal(found[valid], table[indices][seen])
    assert read_raster(tmp_path / "x.png", palette_as_indices=True).values[..., 0].tolist() == indices.tolist()


@pytest.mark.parametrize("sidecar", [None, PLACE])
def test_transparent_colour_counts_in_all_bands_together(tmp_path, sidecar):
    pytest.importorskip("rasterio")
    values = np.zeros((3, 4, 3), dtype=np.uint8)
    values[0, 0], values[0, 1], values[1] = (9, 8, 7), (9, 8, 200), 9
    Image.fromarray(values).save(tmp_path / "x.png", transparency=(9, 8, 7))
    if sidecar:
        (tmp_path / "x.png.aux.xml").write_text(sidecar)
    expected = np.ones((3, 4), dtype=bool)
    expected[0, 0] = False
    for found, valid in ways(tmp_path / "x.png", 3):
        np.testing.assert_array_equal(found[valid], values[expected])
        np.testing.assert_array_equal(valid, expected)


def test_transparent_colours_of_a_palette_hold_no_data_on_another_grid(tmp_path):
    rasterio = pytest.importorskip("rasterio")
    indices = np.zeros((8, 8), dtype=np.uint8)
    indices[:, 4:] = 1
    image = Image.fromarray(indices, "P")
    image.putpalette([9, 8, 7, 60, 50, 40])
    image.save(tmp_path / "x.png", transparency=1)
    (tmp_path / "x.pgw").write_text("1\n0\n0\n-1\n500000.5\n4799999.5\n")
    place = rasterio.Affine(0.5, 0, 500000, 0, -0.5, 4800000)
    grid = write_tiff(tmp_path / "grid.tif", np.zeros((1, 16, 16), dtype=np.uint8), transform=place, crs=None)
    with RasterScene({"x": tmp_path / "x.png"}, channels={"x": 3}, like=grid) as scene:
        found = scene.read(0, 0, 16, 16)["x"]
    np.testing.assert_array_equal(found.mask[..., 0], np.kron(indices, np.ones((2, 2), dtype=np.uint8)) == 1)
    assert found.compressed().reshape(-1, 3).tolist() == [[9, 8, 7]] * 128


@pytest.mark.parametrize("white_is_zero", [False, True])
def test_bits_are_zero_and_one(tmp_path, white_is_zero):
    rasterio = pytest.importorskip("rasterio")
    bits = np.eye(8, dtype=np.uint8)
    profile = {"photometric": "MINISWHITE"} if white_is_zero else {}
    path = write_tiff(tmp_path / "x.tif", bits[None] ^ white_is_zero, nbits=1, **profile)
    assert rasterio.open(path).colorinterp[0].name == "palette"
    for found, valid in ways(path, 1):
        np.testing.assert_array_equal(found[..., 0], bits)
        assert valid.all()
    np.testing.assert_array_equal(read_raster(path, palette_as_indices=True).values[..., 0], bits)
    np.testing.assert_array_equal(decode_raster(path), bits)
    Image.fromarray(bits > 0).save(tmp_path / "x.png")
    np.testing.assert_array_equal(read_raster(tmp_path / "x.png").values[..., 0], bits)


def test_two_colours_of_a_palette_stay_colours(tmp_path):
    rasterio = pytest.importorskip("rasterio")
    path = write_tiff(tmp_path / "x.tif", np.eye(8, dtype=np.uint8)[None], nbits=1, photometric="PALETTE")
    with rasterio.open(path, "r+") as target:
        target.write_colormap(1, {0: (10, 20, 30), 1: (200, 100, 50)})
    assert read_raster(path).values[0, :2].tolist() == [[200, 100, 50], [10, 20, 30]]


def test_sixteen_bit_colour_is_read_by_gdal(tmp_path):
    rasterio = pytest.importorskip("rasterio")
    values = np.random.default_rng(2).integers(0, 65536, (3, 4, 5), dtype=np.uint16)
    write_tiff(tmp_path / "x.png", values, driver="PNG", crs=None)
    Path(f"{tmp_path}/x.png.aux.xml").unlink(missing_ok=True)
    assert rasterio.open(tmp_path / "x.png").count == 3
    for found, _ in ways(tmp_path / "x.png", 3):
        np.testing.assert_array_equal(found, np.moveaxis(values, 0, -1))


def test_pictures_of_any_size_are_read(tmp_path, monkeypatch):
    values = colours(20, 30)
    Image.fromarray(values).save(tmp_path / "x.png")
    Image.fromarray(values[..., 0].astype(np.float32)).save(tmp_path / "x.tif")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(Image.DecompressionBombError):
        Image.open(tmp_path / "x.png")
    assert read_info(tmp_path / "x.png").size == (20, 30)
    for found, _ in ways(tmp_path / "x.png", 3):
        np.testing.assert_array_equal(found, values)
    np.testing.assert_array_equal(decode_raster(io.BytesIO((tmp_path / "x.png").read_bytes()).getvalue()), values)
    np.testing.assert_array_equal(decode_raster(tmp_path / "x.tif"), values[..., 0])
    assert Image.MAX_IMAGE_PIXELS == 100


def test_large_pictures_of_an_earlier_map_are_replaced(tmp_path, monkeypatch):
    pytest.importorskip("rasterio")
    dsm = write_tiff(tmp_path / "dsm.tif", np.full((1, 40, 60), 5, dtype=np.float32))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # a word of the legend is drawn as a picture of some hundreds
    for _ in range(2):
        predict_height_classes({"dsm": dsm}, tmp_path / "map.png")
    assert read_info(tmp_path / "map_color.png").size == (40, 60)


def test_large_pictures_are_read_by_windows(tmp_path, monkeypatch):
    pytest.importorskip("rasterio")
    monkeypatch.setattr("sgma_hf.rasters.files._MOST_PIXELS", 10)
    for turn in (1, 6):
        values = colours()
        Image.fromarray(values).save(tmp_path / "x.png", exif=exif(turn))
        assert not uses_pillow(tmp_path / "x.png")
        for found, _ in ways(tmp_path / "x.png", 3):
            np.testing.assert_array_equal(found, values if turn == 1 else np.rot90(values, -1))
