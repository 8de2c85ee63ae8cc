"""What is missing in a file, against GDAL's masks, the same in `convert-rasters` and in `predict`, on any grid."""

import numpy as np
import pytest
from raster_scenes import UTM, write_tiff

from sgma_hf.model.image_transforms_sgma import valid_pixels
from sgma_hf.rasters.bands import BandGaps, BandSelection
from sgma_hf.rasters.extents import read_on_extent
from sgma_hf.rasters.files import read_info, read_raster
from sgma_hf.rasters.scene import RasterScene


rasterio = pytest.importorskip("rasterio")
Affine = rasterio.Affine
NORTH_WEST = (500000.0, 4800000.0)


def virtual(path, planes, nodata, types=None):
    """A VRT over one GeoTIFF per plane, which declares a nodata value for each band, exact in 64 bits."""
    types = types or [{"int64": "Int64", "uint64": "UInt64", "int16": "Int16"}.get(p.dtype.name) for p in planes]
    height, width = planes[0].shape
    bands = ""
    for number, (plane, value, kind) in enumerate(zip(planes, nodata, types, strict=True), start=1):
        write_tiff(path.parent / f"{path.stem}_{number}.tif", plane[None])
        declared = "" if value is None else f"<NoDataValue>{value}</NoDataValue>"
        bands += (
            f'<VRTRasterBand dataType="{kind}" band="{number}">{declared}<SimpleSource><SourceFilename '
            f'relativeToVRT="1">{path.stem}_{number}.tif</SourceFilename><SourceBand>1</SourceBand></SimpleSource>'
            "</VRTRasterBand>"
        )
    place = f"<GeoTransform>{NORTH_WEST[0]}, 1, 0, {NORTH_WEST[1]}, 0, -1</GeoTransform><SRS>EPSG:32631</SRS>"
    path.write_text(f'<VRTDataset rasterXSize="{width}" rasterYSize="{height}">{place}{bands}</VRTDataset>')
    return path


def test_each_band_has_its_own_nodata_of_the_bands_that_are_picked(tmp_path):
    first = np.array([[-9999, -32768, 1, 2]], np.int16)
    second = np.array([[5, 6, -9999, -32768]], np.int16)
    path = virtual(tmp_path / "sar.vrt", [first, second], [-9999, -32768])
    assert read_info(path).nodata == (-9999, -32768)
    assert read_raster(path).valid.tolist() == [[False, True, True, False]]
    swapped = read_info(path, bands=BandSelection((2, 1)))
    assert swapped.nodata == (-32768, -9999)
    assert read_raster(path, bands=BandSelection((2,))).valid.tolist() == [[True, True, True, False]]
    assert read_raster(path, use_declared_nodata=False).valid.all()


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "uint32", "int32"])
def test_zero_of_integers_counts_where_all_bands_are_zero(tmp_path, dtype):
    values = np.array([[[0, 0, 7, 7]], [[0, 7, 0, 7]]], dtype)
    assert read_raster(write_tiff(tmp_path / "x.tif", values, nodata=0)).valid.tolist() == [[False, True, True, True]]
    assert read_raster(tmp_path / "x.tif", bands=BandSelection((2,))).valid.tolist() == [[False, True, False, True]]


def test_zero_of_floats_counts_in_each_band(tmp_path):
    values = np.array([[[0, 0, 7, 7]], [[0, 7, 0, 7]]], np.float32)
    assert read_raster(write_tiff(tmp_path / "x.tif", values, nodata=0)).valid.tolist() == [
        [False, False, False, True]
    ]


@pytest.mark.parametrize(
    ("dtype", "number"),
    [("uint64", 2**64 - 1), ("uint64", 2**64 - 2), ("int64", -(2**63)), ("int64", 2**63 - 1), ("int64", 2**53 + 1)],
)
def test_nodata_of_64_bits_is_exact(tmp_path, dtype, number):
    beside = number - 1 if number > 0 else number + 1
    path = virtual(tmp_path / "x.vrt", [np.array([[number, 7, number]], dtype)], [number])
    info = read_info(path)
    assert (info.dtype, info.nodata, info.has_mask) == ("int32", (), True)
    raster = read_raster(path)
    assert raster.valid.tolist() == [[False, True, False]] and raster.values[0, 1] == 7
    with pytest.raises(ValueError, match="values beyond int32"):
        read_raster(virtual(tmp_path / "y.vrt", [np.array([[number, beside]], dtype)], [number]))
    given = read_raster(virtual(tmp_path / "z.vrt", [np.array([[number, 7]], dtype)], [None]), nodata=[number])
    assert given.valid.tolist() == [[False, True]]


def test_nodata_of_32_bits_at_the_end_of_the_type(tmp_path):
    values = np.array([[[2**32 - 1, 7, 0]]], np.uint32)
    path = write_tiff(tmp_path / "x.tif", values, nodata=2**32 - 1)
    assert read_raster(path).valid.tolist() == [[False, True, True]]
    path = write_tiff(tmp_path / "y.tif", values)
    assert read_raster(path, nodata=[2**32 - 1]).values[..., 0].tolist() == [[0, 7, 0]]


def test_masks_of_single_bands_count_and_one_beside_alpha(tmp_path):
    values = np.full((2, 4, 4), 7, np.uint8)
    path = write_tiff(tmp_path / "x.tif", values)
    mask = np.full((2, 4, 4), 255, np.uint8)
    mask[0, 0, 0] = mask[1, 1, 1] = 0
    write_tiff(tmp_path / "x.tif.msk", mask)
    with rasterio.open(tmp_path / "x.tif.msk", "r+") as file:
        file.update_tags(INTERNAL_MASK_FLAGS_1="0", INTERNAL_MASK_FLAGS_2="0")
    assert np.argwhere(~read_raster(path).valid).tolist() == [[0, 0], [1, 1]]
    alpha = np.full((2, 4, 4), 255, np.uint8)
    alpha[1, 3, 3] = 0
    inside = np.full((4, 4), 255, np.uint8)
    inside[2, 2] = 0
    path = write_tiff(tmp_path / "y.tif", alpha, ALPHA="YES", mask=inside)
    assert np.argwhere(~read_raster(path).valid).tolist() == [[2, 2], [3, 3]]


COLOURS = {0: (255, 255, 255, 255), 1: (0, 0, 0, 255), 2: (10, 200, 30, 255), 3: (90, 90, 90, 255)}


def palette(path, *, transparent=None, **options):
    """A palette file of four indices in stripes; index 0 is white."""
    index = (np.arange(32) // 8)[None].repeat(32, 0).astype(np.uint8)
    with rasterio.open(
        path,
        "w",
        height=32,
        width=32,
        count=1,
        dtype="uint8",
        crs="EPSG:32631",
        transform=Affine(1, 0, NORTH_WEST[0], 0, -1, NORTH_WEST[1]),
        **options,
    ) as file:
        file.write(index, 1)
        file.write_colormap(1, {i: (*c[:3], 0 if i == transparent else 255) for i, c in COLOURS.items()})
    return index


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("x.tif", {"nodata": 0}),
        ("x.png", {"driver": "PNG", "nodata": 0}),
        ("x.png", {"driver": "PNG", "transparent": 0}),  # a GeoTIFF's palette has no transparency
    ],
)
def test_palette_is_masked_by_index_on_any_grid(tmp_path, name, options):
    path = tmp_path / name
    index = palette(path, **options)
    rgb = np.array([COLOURS[i][:3] for i in range(4)])[index]
    info = read_info(path)
    assert (info.channels, info.nodata, info.has_mask) == (3, (), True)
    raster = read_raster(path)
    np.testing.assert_array_equal(raster.valid, index != 0)
    np.testing.assert_array_equal(raster.values[index != 0], rgb[index != 0])
    like = write_tiff(tmp_path / "grid.tif", np.zeros((1, 60, 60), np.uint8), pixel=0.5, origin=(500001.0, 4799999.0))
    with RasterScene({"rgb": str(path)}, channels={"rgb": 3}, like=like) as scene:
        image = scene.read(0, 0, 60, 60)["rgb"]
    seen = np.unique(image.data[~image.mask[..., 0]], axis=0).tolist()
    assert seen == [[0, 0, 0], [10, 200, 30], [90, 90, 90]]
    with rasterio.open(like) as grid:
        info_of_grid = read_info(like)
        trained = read_on_extent(info, info_of_grid.georeference, grid.shape)
    np.testing.assert_array_equal(np.unique(trained.values[trained.valid], axis=0), seen)


def test_palette_in_a_png_without_a_place_is_transparent_by_index(tmp_path):
    from PIL import Image

    index = np.array([[0, 1, 2, 1]], np.uint8)
    image = Image.fromarray(index, mode="P")
    image.putpalette([10, 20, 30, 10, 20, 30, 70, 80, 90])
    image.save(tmp_path / "p.png", transparency=0)
    assert read_raster(tmp_path / "p.png").valid.tolist() == [[False, True, True, True]]
    (tmp_path / "p.png.aux.xml").write_text("<PAMDataset></PAMDataset>")
    raster = read_raster(tmp_path / "p.png")
    assert raster.valid.tolist() == [[False, True, True, True]] and raster.values[0, 1].tolist() == [10, 20, 30]


def test_a_band_that_lacks_more_than_half_is_named_with_what_drops_it():
    gaps, lines = BandGaps(), np.zeros((3, 10, 10), bool)
    whole = np.ones((10, 10), bool)
    gaps.add(None, whole, 3)
    lines[1] = lines[2, :3] = True
    for _ in range(2):
        gaps.add(lines, ~lines.any(0), 3)
    gaps.add(np.ones((1, 10, 10), bool), ~whole, 3)  # nothing at all
    note = gaps.note("sar", BandSelection((4, 2, 7)), "--modalities sar:{bands}")
    assert note.endswith("that its other bands cover: 2 (67%); --modalities sar:4,7.")
    apart = BandGaps()
    half = np.arange(100).reshape(10, 10) < 60
    apart.add(np.stack([half, ~half]), ~whole, 2)
    assert "cover: 2 (100%); 1." in apart.note("sar", BandSelection(), "{bands}")
    single = BandGaps()
    single.add(np.ones((1, 10, 10), bool), ~whole, 1)
    assert single.note("dsm", BandSelection(), "") == BandGaps().note("dsm", BandSelection(), "") == ""
    assert gaps.note("sar", BandSelection(), "").count("\n") == 0


def test_maps_name_a_band_that_is_hardly_there(tmp_path, caplog):
    values = np.random.default_rng(0).uniform(-20, -5, (2, 16, 16)).astype(np.float32)
    values[1, :, 4:] = -9999
    path = write_tiff(tmp_path / "sar.tif", values, nodata=-9999)
    with RasterScene({"sar": path}, channels={"sar": 2}) as scene:
        assert (~scene.read(0, 0, 16, 16)["sar"].mask[..., 0]).sum() == 64
    assert f"2 (75%); `--sar {path}:1` leaves it out, for a checkpoint that takes as few." in caplog.text


@pytest.mark.parametrize("placed", [True, False])
def test_interpolation_does_not_make_holes_by_chance(tmp_path, placed):
    """A quarter of the way from -1 to 3 lies 0, which stands for nothing: the processor would see a hole."""
    values = np.array([[-1, 3] * 4] * 8, np.int16)
    place = {"crs": UTM} if placed else {"crs": None}
    path = write_tiff(tmp_path / "x.tif", values[None], **place)
    like = write_tiff(tmp_path / "grid.tif", np.zeros((1, 16, 16), np.uint8), pixel=0.5, **place)
    seen = []
    for nodata in ([], [0]):
        with RasterScene({"x": path}, channels={"x": 1}, like=like, nodata={"x": nodata}) as scene:
            seen.append(scene.read(0, 0, 16, 16)["x"])
    assert not seen[0].mask.any() and not seen[1].mask.any()
    assert (seen[0].data == 0).sum() > 16 and valid_pixels(seen[1].data, [0]).all()
    np.testing.assert_allclose(seen[1].data, seen[0].data, atol=1 if placed else 1e-30)
