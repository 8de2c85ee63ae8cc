"""Masks of clouds and the like: a masked file is read as one that holds no data where the mask hides it."""

from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from PIL import Image
from raster_scenes import write_tiff

from sgma_hf.converters.raster_folders import main as convert
from sgma_hf.data.rows import decode_row, load_rows
from sgma_hf.rasters.bands import ALL_BANDS
from sgma_hf.rasters.extents import read_on_extent
from sgma_hf.rasters.files import read_info, read_raster
from sgma_hf.rasters.raster import Georeference
from sgma_hf.rasters.scene import RasterScene, masked
from sgma_hf.rasters.sources import PixelMask


CLOUDS = (3, 8)


def write_pair(folder: Path, name: str = "a", *, size: int = 40, origin=(500000.0, 4800000.0)) -> tuple[str, str, str]:
    """A raster of 10 m, its mask of 20 m, and the raster with NaN where that has a cloud."""
    generator = np.random.default_rng(len(name) + size)
    values = generator.normal(size=(2, size, size)).astype(np.float32)
    classes = generator.choice([0, 3, 4, 5, 8], (1, size // 2, size // 2)).astype(np.uint8)
    holed = np.where(np.isin(np.kron(classes, np.ones((1, 2, 2), np.uint8)), CLOUDS), np.nan, values)
    for sub in ("s2", "scl", "holed"):
        (folder / sub).mkdir(parents=True, exist_ok=True)
    return (
        write_tiff(folder / "s2" / f"{name}.tif", values, origin=origin, pixel=10.0),
        write_tiff(folder / "scl" / f"{name}.tif", classes, origin=origin, pixel=20.0, nodata=0),
        write_tiff(folder / "holed" / f"{name}.tif", holed.astype(np.float32), origin=origin, pixel=10.0),
    )


def assert_same(found, expected) -> None:
    assert found.keys() == expected.keys()
    for name, image in found.items():
        assert np.array_equal(image.mask, expected[name].mask)
        assert np.array_equal(image.filled(0), expected[name].filled(0))


@pytest.mark.parametrize("resolution", [None, 7, 20, 33])
@pytest.mark.parametrize("resampling", ["bilinear", "nearest", "cubic"])
def test_a_masked_file_is_read_as_one_that_has_no_data_there_on_every_grid(tmp_path, resolution, resampling):
    raster, mask, holed = write_pair(tmp_path)
    read = []
    for rasters in (masked(raster, mask, CLOUDS), [holed]):
        options = {"channels": {"s2": 2}, "resolution": resolution, "resampling": resampling}
        with RasterScene({"s2": rasters}, **options) as scene:
            read.append(scene.read(0, 0, *scene.grid.size))
            read.append(scene.read(3, 5, 11, 13))
    assert_same(read[0], read[2])
    assert_same(read[1], read[3])
    assert read[0]["s2"].mask.any() and not read[0]["s2"].mask.all()


def test_a_turned_extent_and_a_mosaic_read_it_alike(tmp_path):
    raster, mask, holed = write_pair(tmp_path)
    info = read_info(raster)
    turned = Affine.translation(500120, 4799700) @ Affine.rotation(20) @ Affine.scale(8, -8)
    place = Georeference(turned, info.georeference.crs)
    found = read_on_extent(info, place, (30, 30), mask=PixelMask([(Path(mask), ALL_BANDS)], CLOUDS))
    expected = read_on_extent(read_info(holed), place, (30, 30))
    assert np.array_equal(found.valid, expected.valid) and found.valid.any()
    assert np.array_equal(found.values[found.valid], expected.values[expected.valid])
    beside = write_pair(tmp_path, "bb", origin=(500400.0, 4800000.0))
    read = []
    for rasters in (masked([raster, beside[0]], [mask, beside[1]], CLOUDS), [holed, beside[2]]):
        with RasterScene({"s2": rasters}, channels={"s2": 2}) as scene:
            assert scene.grid.size == (40, 80)
            read.append(scene.read(0, 0, 40, 80))
    assert_same(*read)


def test_pictures_and_arrays_without_a_place_are_masked_too(tmp_path):
    values = np.arange(1, 37, dtype=np.uint8).reshape(6, 6)
    classes = np.array([[0, 8, 4], [3, 4, 4], [4, 4, 9]], np.uint8)
    Image.fromarray(values).save(tmp_path / "x.png")
    np.save(tmp_path / "x.npy", values)
    Image.fromarray(classes).save(tmp_path / "mask.png")
    hidden = np.isin(np.kron(classes, np.ones((2, 2), np.uint8)), CLOUDS)
    for name in ("x.png", "x.npy"):
        with RasterScene({"s2": masked(tmp_path / name, tmp_path / "mask.png", CLOUDS)}, channels={"s2": 1}) as scene:
            assert np.array_equal(scene.read(0, 0, 6, 6)["s2"].mask[..., 0], hidden)
    mask = PixelMask([(tmp_path / "mask.png", ALL_BANDS)], CLOUDS)
    assert np.array_equal(read_raster(tmp_path / "x.png", mask=mask).valid, ~hidden)


def test_nodata_of_a_mask_hides_where_it_is_named_and_a_mask_that_ends_hides_nothing_beyond(tmp_path):
    raster, mask, _ = write_pair(tmp_path)
    with rasterio.open(mask) as file:
        zero = np.kron(file.read(1) == 0, np.ones((2, 2), bool))
    small = write_tiff(tmp_path / "small.tif", np.full((1, 5, 5), 8, np.uint8), pixel=20.0)
    for hiding, value, expected in ((mask, 0, zero), (small, 8, np.pad(np.ones((10, 10), bool), ((0, 30), (0, 30))))):
        with RasterScene({"s2": masked(raster, hiding, [value])}, channels={"s2": 2}) as scene:
            assert np.array_equal(scene.read(0, 0, 40, 40)["s2"].mask[..., 0], expected)


def test_masks_that_cannot_be_used_are_refused(tmp_path):
    raster, *_ = write_pair(tmp_path)
    colours = write_tiff(tmp_path / "rgb.tif", np.zeros((3, 20, 20), np.uint8), pixel=20.0)
    with pytest.raises(ValueError, match=r"The mask .*rgb.tif has 3 bands; expected one. Choose it, as in .*:1"):
        masked(raster, colours, CLOUDS)
    assert masked(raster, f"{colours}:2", CLOUDS)[0].mask.values == CLOUDS
    Image.fromarray(np.zeros((40, 40), np.uint8)).save(tmp_path / "mask.png")
    away = write_tiff(tmp_path / "away.tif", np.zeros((1, 20, 20), np.uint8), origin=(600000.0, 4800000.0))
    for name, expected in (("mask.png", "has no georeferencing but"), (away, r"away.tif does not overlap")):
        with pytest.raises(ValueError, match=expected):
            RasterScene({"s2": masked(raster, tmp_path / name, CLOUDS)}, channels={"s2": 2})
    with pytest.raises(ValueError, match=r"none\.tif' does not exist"):
        masked(raster, tmp_path / "none.tif", CLOUDS)


def rows(folder: Path, output: str, *flags: str) -> dict[str, np.ndarray]:
    words = ["--source", folder, "--output", folder / output, "--label", "none", *flags]
    assert convert(list(map(str, words))) == 0
    found = load_rows(str(folder / output), "train")
    return {row["id"]: decode_row(row, ["s2"])[0]["s2"] for row in found}


def test_conversion_takes_what_is_masked_for_missing(tmp_path, capsys):
    write_pair(tmp_path, "a"), write_pair(tmp_path, "bb")
    expected = rows(tmp_path, "out_holed", "--modalities", "s2=holed")
    flags = ["--modalities", "s2", "--mask", "s2=scl", "--mask_values", "3,8"]
    found = rows(tmp_path, "out_masked", *flags)
    assert found.keys() == expected.keys() and len(found) == 2
    for name, values in found.items():
        assert np.array_equal(values, expected[name], equal_nan=True) and np.isnan(values).any()
    (tmp_path / "scl" / "bb.tif").unlink()
    capsys.readouterr()
    found = rows(tmp_path, "out_some", *flags)
    assert "1 scenes have no mask for s2: nothing of it is hidden there." in capsys.readouterr().out
    assert np.isnan(found["a"]).any() and not np.isnan(found["bb"]).any()


def test_integers_without_a_value_for_nothing_get_one(tmp_path):
    (tmp_path / "s2").mkdir(), (tmp_path / "scl").mkdir()
    write_tiff(tmp_path / "s2" / "a.tif", np.arange(16, dtype=np.uint8).reshape(1, 4, 4))
    write_tiff(tmp_path / "scl" / "a.tif", np.array([[[3, 0], [0, 8]]], np.uint8), pixel=2.0)
    (found,) = rows(tmp_path, "out", "--modalities", "s2", "--mask", "scl", "--mask_values", "3,8").values()
    hidden = np.kron(np.array([[1, 0], [0, 1]]), np.ones((2, 2))) > 0
    assert np.array_equal(np.squeeze(found), np.where(hidden, np.nan, np.arange(16).reshape(4, 4)), equal_nan=True)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--mask", "scl"], "--mask and --mask_values go together"),
        (["--mask_values", "3"], "--mask and --mask_values go together"),
        (["--mask", "s1=scl", "--mask_values", "3"], "s1=scl: no modality that is read is called 's1'. They are s2."),
        (["--mask", "scl", "--mask_values", "3,x"], "--mask_values 3,x: expected numbers, as in 3,8,9,10"),
        (["--mask", "clouds", "--mask_values", "3"], "holds no file for mask of s2=clouds"),
        (["--mask", "clouds", "--mask_values", "3"], " If no scene has one, leave --mask out.\n"),
    ],
)
def test_flags_that_do_not_fit_are_refused(tmp_path, capsys, flags, expected):
    write_pair(tmp_path)
    words = ["--source", tmp_path, "--output", tmp_path / "out", "--label", "none", "--modalities", "s2", *flags]
    assert convert(list(map(str, words))) == 2
    assert expected in capsys.readouterr().err
