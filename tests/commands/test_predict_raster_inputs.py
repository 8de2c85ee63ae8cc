"""What users do hand in: every one of these gets one clear message, or the right map, and never half a file."""

import errno
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from raster_scenes import UTM, height_classes, predict_height_classes, write_tiff

from sgma_hf.rasters.bands import BandSelection
from sgma_hf.rasters.scene import RasterInput, RasterScene


rasterio = pytest.importorskip("rasterio")
ROOT = Path(__file__).resolve().parents[2]
CHANNELS = {"dsm": 1, "rgb": 3}


def ones(count=1, height=40, width=40, dtype=np.float32):
    return np.full((count, height, width), 10, dtype=dtype)


def refused(tmp_path, rasters, message, error=ValueError, **options):
    """The run stops with this message and leaves nothing behind."""
    before = sorted(tmp_path.iterdir())
    with pytest.raises(error, match=message):
        predict_height_classes(rasters, tmp_path / "map.tif", **options)
    assert sorted(tmp_path.iterdir()) == before


def test_raster_without_crs_beside_one_with(tmp_path):
    rgb = write_tiff(tmp_path / "rgb.tif", ones(3, dtype=np.uint8))
    transform = rasterio.Affine(1, 0, 500000, 0, -1, 4800000)
    dsm = write_tiff(tmp_path / "dsm.tif", ones(), crs=None, transform=transform)
    refused(tmp_path, {"rgb": rgb, "dsm": dsm}, r"dsm\.tif has no CRS but .*rgb\.tif has one.*gdal_edit")


def test_raster_without_any_place_beside_one_with(tmp_path):
    rgb = write_tiff(tmp_path / "rgb.tif", ones(3, dtype=np.uint8))
    dsm = write_tiff(tmp_path / "dsm.tif", ones(), crs=None)
    message = r"dsm\.tif has no georeferencing but .*rgb\.tif has: .*ground control points, by `gdalwarp`"
    refused(tmp_path, {"rgb": rgb, "dsm": dsm}, message)


def test_rasters_that_all_lack_a_crs_share_one(tmp_path):
    transform = rasterio.Affine(1, 0, 100, 0, -1, 200)
    heights = np.random.default_rng(0).uniform(0, 20, (1, 20, 20)).astype(np.float32)
    dsm = write_tiff(tmp_path / "dsm.tif", heights, crs=None, transform=transform)
    rgb = write_tiff(
        tmp_path / "rgb.tif", ones(3, 30, 30, np.uint8), crs=None, transform=rasterio.Affine(0.7, 0, 99, 0, -0.7, 201)
    )
    predict_height_classes({"dsm": dsm, "rgb": rgb}, tmp_path / "map.tif")
    with rasterio.open(tmp_path / "map.tif") as file:
        assert file.crs is None and file.transform == transform
        np.testing.assert_array_equal(file.read(1), height_classes(heights[0]))


def test_rasters_that_do_not_overlap_are_named_with_both_extents(tmp_path):
    rgb = write_tiff(tmp_path / "rgb.tif", ones(3, dtype=np.uint8))
    away = write_tiff(tmp_path / "dsm.tif", ones(), origin=(600000.0, 4800000.0))
    numbers = r"dsm\.tif does not overlap .*\(600000, 4799960, 600040, 4800000\).*\(500000, "
    refused(tmp_path, {"rgb": rgb, "dsm": away}, numbers)
    degrees = write_tiff(
        tmp_path / "deg.tif", ones(), crs="EPSG:4326", transform=rasterio.Affine(1e-4, 0, 20, 0, -1e-4, 40)
    )
    refused(tmp_path, {"rgb": rgb, "dsm": degrees}, r"deg\.tif does not overlap .*\(20, 39\.996, 20\.004, 40\)")


def test_file_of_a_mosaic_that_lies_elsewhere_is_left_out(tmp_path):
    rgb = write_tiff(tmp_path / "rgb.tif", ones(3, dtype=np.uint8))
    away = write_tiff(tmp_path / "a.tif", ones(), origin=(600000.0, 4800000.0))
    here = write_tiff(tmp_path / "b.tif", ones())
    with RasterScene({"rgb": rgb, "dsm": [away, here]}, channels=CHANNELS) as scene:
        assert scene.read(0, 0, 40, 40)["dsm"].count() == 1600


def test_files_that_cover_hardly_anything_of_what_they_span_are_no_mosaic(tmp_path):
    first = write_tiff(tmp_path / "a.tif", ones())
    near = write_tiff(tmp_path / "near.tif", ones(), origin=(500000.0 + 380, 4800000.0))  # 80 of 420 pixels: 19 %
    far = write_tiff(tmp_path / "far.tif", ones(), origin=(500000.0 + 40_000, 4800000.0 - 40_000))
    predict_height_classes({"dsm": [first, near]}, tmp_path / "map.tif")
    message = (
        r"2 files .*a\.tif, .*far\.tif cover 0\.0% of the 40040 x 40040 pixels .*`sgma-hf predict --scenes FOLDER`"
    )
    refused(tmp_path, {"dsm": [first, far]}, message)
    predict_height_classes({"dsm": [first, far]}, tmp_path / "map.tif", like=far)  # who names a grid means it


def test_rotated_geotransform_is_kept(tmp_path):
    transform = rasterio.Affine.translation(500000, 4800000) @ rasterio.Affine.rotation(15)
    transform = transform @ rasterio.Affine.scale(0.5, -0.5)
    heights = np.random.default_rng(1).uniform(0, 20, (1, 40, 50)).astype(np.float32)
    dsm = write_tiff(tmp_path / "dsm.tif", heights, transform=transform)
    rgb = write_tiff(tmp_path / "rgb.tif", ones(3, 80, 80, np.uint8), origin=(499990.0, 4800020.0))
    predict_height_classes({"dsm": dsm, "rgb": rgb}, tmp_path / "map.tif")
    with rasterio.open(tmp_path / "map.tif") as file:
        np.testing.assert_allclose(tuple(file.transform), tuple(transform), rtol=1e-12)
        np.testing.assert_array_equal(file.read(1), height_classes(heights[0]))


def test_pixels_without_an_area(tmp_path):
    transform = rasterio.Affine(1, 1, 500000, 1, 1, 4800000)
    dsm = write_tiff(tmp_path / "dsm.tif", ones(), transform=transform)
    refused(tmp_path, {"dsm": dsm}, r"dsm\.tif has the geotransform .* no area")


def test_metres_that_are_called_degrees(tmp_path):
    transform = rasterio.Affine(0.5, 0, 484700, 0, -0.5, 6632950)
    dsm = write_tiff(tmp_path / "dsm.tif", ones(), transform=transform, crs="EPSG:4326")
    message = r"dsm\.tif is in degrees by its CRS, but covers .*\(484700, 6632930, 484720, 6632950\).*gdal_edit"
    refused(tmp_path, {"dsm": dsm}, message)


def test_grid_of_the_earth_whose_pixels_are_centred_on_the_poles(tmp_path):
    heights = np.random.default_rng(0).uniform(0, 20, (1, 73, 144)).astype(np.float32)
    transform = rasterio.Affine(2.5, 0, -1.25, 0, -2.5, 91.25)
    dsm = write_tiff(tmp_path / "dsm.tif", heights, transform=transform, crs="EPSG:4326")
    predict_height_classes({"dsm": dsm}, tmp_path / "map.tif")
    with rasterio.open(tmp_path / "map.tif") as file:
        np.testing.assert_array_equal(file.read(1), height_classes(heights[0]))


def test_grids_that_are_much_too_fine_or_coarse_for_a_raster(tmp_path):
    dsm = write_tiff(tmp_path / "dsm.tif", ones())
    message = "`resolution` is 9e-05 metres per pixel, and the map's grid has 1; expected no more than 1000 times less"
    refused(tmp_path, {"dsm": dsm}, message, resolution=9e-5)
    message = r"dsm\.tif has pixels 5000 times finer than the grid that it is read for; expected 1000 times at most"
    refused(tmp_path, {"dsm": dsm}, message, resolution=5000)
    coarse = write_tiff(tmp_path / "like.tif", ones(1, 2, 2), transform=rasterio.Affine(5000, 0, 5e5, 0, -5000, 4.8e6))
    refused(tmp_path, {"dsm": dsm}, message, like=coarse)
    predict_height_classes({"dsm": dsm}, tmp_path / "map.tif", resolution=900)
    with rasterio.open(tmp_path / "map.tif") as file:
        assert file.read().tolist() == [[[255]]]  # less than half of the pixel is there


def test_one_pixel(tmp_path):
    dsm = write_tiff(tmp_path / "dsm.tif", np.full((1, 1, 1), 20, dtype=np.float32))
    predict_height_classes({"dsm": dsm}, tmp_path / "map.tif")
    with rasterio.open(tmp_path / "map.tif") as file:
        assert file.read().tolist() == [[[2]]]


def test_truncated_file_is_named_and_the_earlier_map_stays(tmp_path):
    values = np.random.default_rng(0).normal(size=(1, 200, 200)).astype(np.float32)
    dsm = Path(write_tiff(tmp_path / "dsm.tif", values, compress="deflate"))
    dsm.write_bytes(dsm.read_bytes()[:60000])
    (tmp_path / "map.tif").write_bytes(b"earlier")
    with pytest.raises(ValueError, match=r"Cannot read .*dsm\.tif"):
        predict_height_classes({"dsm": str(dsm)}, tmp_path / "map.tif")
    assert (tmp_path / "map.tif").read_bytes() == b"earlier"
    dsm.write_bytes(b"")
    refused(tmp_path, {"dsm": str(dsm)}, r"Cannot read .*dsm\.tif")


def test_band_that_does_not_exist(tmp_path):
    rgb = write_tiff(tmp_path / "rgb.tif", ones(4, dtype=np.uint8), photometric="MINISBLACK")
    refused(tmp_path, {"rgb": f"{rgb}:1,2,5"}, r"rgb\.tif has the bands 1 to 4; bands \[1, 2, 5\] were asked for")
    refused(tmp_path, {"rgb": f"{rgb}:0,1,2"}, r"bands \[0, 1, 2\] were asked for")
    refused(tmp_path, {"rgb": rgb}, r"rgb\.tif has 4 bands; modality 'rgb' of this checkpoint takes 3.*rgb\.tif:1,2,3")
    refused(tmp_path, {"rgb": f"{rgb}:1,2"}, r"rgb\.tif has 2 bands")


def test_colon_in_a_file_name_is_no_band_selection(tmp_path):
    path = tmp_path / "a:1"
    path.write_bytes(b"")
    assert RasterInput.parse(path) == RasterInput(path)
    assert RasterInput.parse(f"{path}:3,2") == RasterInput(path, BandSelection((3, 2)))


@pytest.mark.parametrize(
    ("rasters", "message"),
    [
        ({"sar": "x.tif"}, r"Unknown modalities \['sar'\]; the checkpoint knows \['dsm', 'rgb'\]"),
        ({"dsm": None}, r"There is no raster; give files for one or more of \['dsm', 'rgb'\]"),
        ({"dsm": []}, "'dsm' has an empty list"),
        ({"dsm": "nowhere.tif"}, "'nowhere.tif' does not exist"),
    ],
)
def test_modalities_and_files_that_are_not_there(tmp_path, rasters, message):
    refused(tmp_path, rasters, message)


def test_options_that_cannot_be_used(tmp_path):
    dsm = write_tiff(tmp_path / "dsm.tif", ones())
    refused(tmp_path, {"dsm": dsm}, "no output 'certainty'; expected some of", extras=["certainty"])
    refused(tmp_path, {"dsm": dsm}, "'magic' for 'dsm'; expected one of", resampling="magic")
    refused(tmp_path, {"dsm": dsm}, "`batch_size` is 0", batch_size=0)
    refused(tmp_path, {"dsm": dsm}, "`tile_size` is 0", tile_size=0)
    refused(tmp_path, {"dsm": dsm}, "`bbox` is 3, 1, 2, 4; expected west, south, east, north", bbox=(3, 1, 2, 4))
    refused(tmp_path, {"dsm": dsm}, "`bbox` is 1, 2, 3, 4, which lies beside the map: it covers", bbox=(1, 2, 3, 4))
    plain = write_tiff(tmp_path / "plain.tif", ones(), crs=None)
    refused(tmp_path, {"dsm": plain}, "no raster has a place", bbox=(1, 2, 3, 4))
    with pytest.raises(ValueError, match=r"ends in \.png, \.tif or \.tiff"):
        predict_height_classes({"dsm": dsm}, tmp_path / "map.jpg")
    with pytest.raises(ValueError, match="A PNG holds no 'confidence'"):
        predict_height_classes({"dsm": dsm}, tmp_path / "map.png", extras=["confidence"])
    with pytest.raises(ValueError, match="is also an input"):
        predict_height_classes({"dsm": dsm}, dsm)


def test_complex_values_are_refused(tmp_path):
    radar = write_tiff(tmp_path / "slc.tif", np.ones((1, 8, 8), dtype=np.complex64))
    refused(tmp_path, {"dsm": radar}, r"slc\.tif has values of type complex64.*Convert it to float32")


def test_raster_across_the_antimeridian(tmp_path):
    """Longitudes of 179.5 to 180.5, of -180 to 180, and in two files, on a grid in metres that crosses 180 degrees."""
    from rasterio.warp import transform

    (west,), (north,) = transform("EPSG:4326", "EPSG:3832", [179.5], [0.5])
    grid = rasterio.Affine(11131.9, 0, west, 0, -11131.9, north)
    rgb = write_tiff(tmp_path / "rgb.tif", ones(3, 8, 10, np.uint8), crs="EPSG:3832", transform=grid)
    step = 0.05

    def strip(name, first, last, offset=0.0):
        longitude = np.arange(round((last - first) / step)) * step + first + step / 2
        from_180 = (longitude % 360 - 180).astype(np.float32)  # -0.5 in the west to 0.5 in the east
        affine = rasterio.Affine(step, 0, first + offset, 0, -step, 1)
        return write_tiff(tmp_path / name, np.repeat(from_180[None, None], 40, 1), crs="EPSG:4326", transform=affine)

    expected = (np.arange(10) + 0.5) / 10 - 0.5
    whole_earth = strip("earth.tif", -180, 180)
    beyond = strip("beyond.tif", 178, 182)
    before = strip("before.tif", 178, 182, offset=-360.0)
    halves = [strip("west.tif", 178, 180), strip("east.tif", -180, -178)]
    for files in (whole_earth, beyond, before, halves):
        with RasterScene({"rgb": rgb, "dsm": files}, channels=CHANNELS) as scene:
            image = scene.read(0, 0, 8, 10)["dsm"][2, :, 0]
        assert image.count() == 10, files
        np.testing.assert_allclose(image, expected, atol=0.05)
    # and a grid in degrees
    for first in (179.5, -180.5):
        affine = rasterio.Affine(0.1, 0, first, 0, -0.1, 0.5)
        like = write_tiff(tmp_path / "like.tif", ones(1, 8, 10), crs="EPSG:4326", transform=affine)
        for files in (beyond, before, halves):
            with RasterScene({"dsm": files}, channels=CHANNELS, like=like) as scene:
                image = scene.read(0, 0, 8, 10)["dsm"][2, :, 0]
            assert image.count() == 10, (first, files)
            np.testing.assert_allclose(image, expected, atol=0.05)


def test_output_that_cannot_be_written_stops_before_the_work(tmp_path, monkeypatch):
    dsm = write_tiff(tmp_path / "dsm.tif", ones())
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "folder.tif").mkdir()

    def work(*args, **kwargs):
        raise AssertionError("the work began")

    monkeypatch.setattr(RasterScene, "read", work)
    with pytest.raises(OSError, match=r"Cannot write the output .*file/map\.tif"):
        predict_height_classes({"dsm": dsm}, tmp_path / "file" / "map.tif")
    with pytest.raises(ValueError, match=r"folder\.tif is a folder"):
        predict_height_classes({"dsm": dsm}, tmp_path / "folder.tif")


def test_full_disk_in_the_middle_keeps_what_is_done(tmp_path, monkeypatch):
    heights = np.random.default_rng(0).uniform(0, 20, (1, 100, 30)).astype(np.float32)
    dsm = write_tiff(tmp_path / "dsm.tif", heights)
    out = tmp_path / "out" / "map.tif"
    commits = []

    def commit(writer, sums):
        if len(commits) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        commits.append(writer)
        return original(writer, sums)

    from sgma_hf.prediction.strips import StripWriter

    original = StripWriter.commit
    with monkeypatch.context() as patched:
        patched.setattr(StripWriter, "commit", commit)
        with pytest.raises(OSError, match=r"No space left on device while writing .*map\.tif.*--resume"):
            predict_height_classes({"dsm": dsm}, out)
    assert not out.exists()
    predict_height_classes({"dsm": dsm}, out, resume=True)
    with rasterio.open(out) as file:
        np.testing.assert_array_equal(file.read(1), height_classes(heights[0]))
    assert sorted(path.name for path in out.parent.iterdir()) == ["map.qml", "map.sld", "map.tif", "map.tif.aux.xml"]


def test_full_disk_at_the_start_names_the_file_and_leaves_nothing(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    dsm = write_tiff(tmp_path / "dsm.tif", ones(1, 100, 30))
    monkeypatch.setattr("sgma_hf.data.whole_files.os.fsync", fail)
    refused(tmp_path, {"dsm": dsm}, r"No space left on device: '.*map\.tif\.partial/run\.json'", error=OSError)


def _limit_file_size():
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))


@pytest.mark.long
def test_disk_that_is_full_when_the_geotiff_is_made(tmp_path):
    """A limit on the size of files stands for the disk; GDAL meets it while it writes, and may say so or not."""
    heights = np.random.default_rng(0).uniform(0, 20, (1, 300, 300)).astype(np.float32)
    dsm = write_tiff(tmp_path / "dsm.tif", heights)
    program = (
        "import signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        f"sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'tests' / 'fixtures')!r}];"
        "from raster_scenes import predict_height_classes as predict;"
        f"predict({{'dsm': {dsm!r}}}, {str(tmp_path / 'out' / 'map.tif')!r}, stride=32)"
    )
    command = [sys.executable, "-c", program]
    run = subprocess.run(command, capture_output=True, text=True, check=False, preexec_fn=_limit_file_size)
    assert run.returncode != 0
    assert "OSError" in run.stderr.splitlines()[-1] or "rror" in run.stderr.splitlines()[-1], run.stderr
    assert not (tmp_path / "out" / "map.tif").exists()
    subprocess.run(
        [sys.executable, "-c", program.replace("stride=32", "stride=32, resume=True")], check=True, capture_output=True
    )
    with rasterio.open(tmp_path / "out" / "map.tif") as file:
        np.testing.assert_array_equal(file.read(1), height_classes(heights[0]))
        assert file.crs == rasterio.crs.CRS.from_string(UTM)
