"""The dates of a modality on one grid: what a window holds, clouds of each date, and what lists them."""

import json

import numpy as np
import pytest
from raster_scenes import write_tiff
from series_rows import write_series

from sgma_hf.model.dates_sgma import to_days
from sgma_hf.rasters.dates import DateTable
from sgma_hf.rasters.listings.sources import list_scenes
from sgma_hf.rasters.scene import RasterScene, dated, expand


DAYS = ["20190302", "20190401", "20190511"]
CHANNELS = {"s2": 2, "dsm": 1}


def days(names=DAYS):
    return [to_days(f"{name[:4]}-{name[4:6]}-{name[6:]}") for name in names]


def image(number, size=(40, 60)):
    values = np.arange(2 * size[0] * size[1], dtype=np.int16).reshape(2, *size) + 100 * number + 1
    return values


@pytest.fixture
def folder(tmp_path):
    """Three dates of 60 x 40 pixels, the last of them shifted by 20 pixels to the east, and their clouds."""
    for number, day in enumerate(DAYS):
        origin = (500000.0 + 20 * (number == 2), 4800000.0)
        (tmp_path / "s2").mkdir(exist_ok=True)
        write_tiff(tmp_path / "s2" / f"{day}.tif", image(number), origin=origin)
        clouds = np.zeros((1, 40, 60), np.uint8)
        clouds[0, : 10 * number] = 9
        (tmp_path / "scl").mkdir(exist_ok=True)
        write_tiff(tmp_path / "scl" / f"scl_{day}.tif", clouds, origin=origin)
    write_tiff(tmp_path / "dsm.tif", np.full((1, 40, 60), 5, np.float32))
    return tmp_path


def expected(number, top, left, height, width):
    """Values and mask of a window of a grid of 80 x 40 pixels."""
    values, missing = np.zeros((40, 80, 2), np.int16), np.ones((40, 80), bool)
    start = 20 * (number == 2)
    values[:, start : start + 60] = np.moveaxis(image(number), 0, -1)
    missing[10 * number :, start : start + 60] = False
    part = (slice(top, top + height), slice(left, left + width))
    return values[part], missing[part]


@pytest.mark.parametrize("window", [(0, 0, 40, 80), (0, 0, 8, 16), (12, 4, 8, 12), (4, 64, 10, 16), (24, 64, 10, 16)])
def test_a_window_has_the_dates_that_hold_data_there(folder, window):
    files = [str(folder / "s2" / "*.tif")]
    masks = expand([str(folder / "scl" / "*.tif")])
    rasters = {**dated("s2", expand(files), masks, [3, 9]), **dated("dsm", [str(folder / "dsm.tif")], [], [])}
    with RasterScene(rasters, channels=CHANNELS) as scene:
        assert scene.dates == {"s2": days()} and scene.grid.size == (40, 80)
        assert scene.modalities == ["s2", "dsm"] and len(scene.paths) == 7
        images = scene.read(*window)
    parts = [expected(number, *window) for number in range(3)]
    there = [number for number, (_, missing) in enumerate(parts) if not missing.all()]
    assert images.get("s2_dates", []) == [days()[number] for number in there]
    for number, found in zip(there, images.get("s2", []), strict=True):
        values, missing = parts[number]
        np.testing.assert_array_equal(found.mask, np.broadcast_to(missing[..., None], values.shape))
        np.testing.assert_array_equal(found.data[~missing], values[~missing])
    assert ("dsm" in images) == (window[1] < 60)


def test_two_tiles_of_one_date_are_hidden_each_by_its_own_mask(tmp_path):
    for number, name in enumerate(("T31UFR", "T31UGR")):
        origin = (500000.0 + 60 * number, 4800000.0)
        write_tiff(tmp_path / f"{name}_20190302T105021.tif", image(number), origin=origin)
        clouds = np.zeros((1, 40, 60), np.uint8)
        clouds[0, :, 10 + 20 * number] = 9
        write_tiff(tmp_path / f"{name}_20190302T105021_scl.tif", clouds, origin=origin)
    files, masks = (expand([str(tmp_path / pattern)]) for pattern in ("*21.tif", "*scl.tif"))
    with RasterScene(dated("s2", files, masks, [9]), channels=CHANNELS) as scene:
        images = scene.read(0, 0, 40, 120)
    hidden = [np.flatnonzero(array.mask[0, :, 0]).tolist() for array in images["s2"]]
    assert hidden == [[10, *range(60, 120)], [*range(60), 90]]
    assert images["s2_dates"] == [to_days("2019-03-02T10:50:21")] * 2


def test_dates_without_a_mask_are_named(folder, caplog):
    files = expand([str(folder / "s2" / "*.tif")])
    dated("s2", files, [], [])
    dated("s2", files, expand([str(folder / "scl" / "*.tif")]), [9])
    assert not caplog.records
    dated("s2", files, [str(folder / "scl" / f"scl_{day}.tif") for day in DAYS[:2]], [9])
    assert f"1 of 3 dates of s2 have no mask, such as {files[2]}: nothing of them is hidden." in caplog.text


def test_files_without_dates_are_a_mosaic_as_before(folder):
    files = sorted(str(path) for path in (folder / "s2").iterdir())
    with RasterScene({"s2": files}, channels=CHANNELS) as scene:
        assert scene.dates == {} and scene.read(0, 0, 40, 80)["s2"].shape == (40, 80, 2)
    with RasterScene({"s2": files, "s2_dates": [None, "2019-03-02", 7000]}, channels=CHANNELS) as scene:
        np.testing.assert_array_equal(scene.dates["s2"], [np.nan, to_days("2019-03-02"), 7000])
    with pytest.raises(ValueError, match="has 1 dates for 3 rasters"):
        RasterScene({"s2": files, "s2_dates": [7000]}, channels=CHANNELS)


def test_one_file_may_have_no_date_but_none_of_several(folder, tmp_path):
    (folder / "s2" / f"{DAYS[0]}.tif").rename(folder / "s2" / "first.tif")
    assert list(dated("s2", [str(folder / "s2" / "first.tif")], [], [])) == ["s2"]
    files = expand([str(folder / "s2" / "*.tif")])
    with pytest.raises(ValueError, match=r"Nobody says when .*first\.tif was taken"):
        dated("s2", files, [], [])
    table = tmp_path / "dates.csv"
    table.write_text("file,date\nfirst.tif,2020-01-01\n")
    rasters = dated("s2", files, [], [], DateTable.read(table))
    assert [source.path.name for source in rasters["s2"]] == ["20190401.tif", "20190511.tif", "first.tif"]
    with pytest.raises(ValueError, match="No raster is named as"):
        expand([str(folder / "s2" / "*.png")])
    assert expand([str(folder / "s2" / "f*.tif:2")]) == [f"{folder / 's2' / 'first.tif'}:2"]


def test_scenes_of_a_folder_have_their_dates_where_the_model_knows_them(tmp_path):
    for name in ("a", "b"):
        for number, day in enumerate(DAYS):
            (tmp_path / "scenes" / "s2").mkdir(parents=True, exist_ok=True)
            write_tiff(tmp_path / "scenes" / "s2" / f"{name}_{day}.tif", image(number))
    assert len(list_scenes(tmp_path / "scenes", ["s2"])) == 6
    (tmp_path / "scenes" / "dsm").mkdir()
    write_tiff(tmp_path / "scenes" / "dsm" / "a.tif", np.full((1, 40, 60), 5, np.float32))
    assert len(list_scenes(tmp_path / "scenes", ["s2", "dsm"])) == 7  # as ever for a model without dates
    found = list_scenes(tmp_path / "scenes", ["s2", "dsm"], dated=True)
    assert [(scene.name, scene.modalities) for scene in found] == [("a", ["s2", "dsm"]), ("b", ["s2"])]
    scenes = list_scenes(tmp_path / "scenes", ["s2"], dated=True)
    assert [scene.name for scene in scenes] == ["a", "b"]
    with scenes[1].opened() as rasters, RasterScene(rasters, channels=CHANNELS) as scene:
        assert scene.dates == {"s2": days()}
    # A folder per scene leaves no doubt; a model without dates cannot take it.
    (tmp_path / "scenes" / "s2").rename(tmp_path / "a")
    (tmp_path / "one" / "a").mkdir(parents=True)
    (tmp_path / "a").rename(tmp_path / "one" / "a" / "s2")
    (scene,) = list_scenes(tmp_path / "one", ["s2"])
    with pytest.raises(ValueError, match=r"has 6 files of s2.*the model knows no dates"), scene.opened():
        pass


def test_rows_of_series_are_scenes(tmp_path):
    write_series(tmp_path / "data")
    scenes = list_scenes(tmp_path / "data", ["s2", "vv", "dsm"])
    assert [scene.modalities for scene in scenes] == [["s2", "dsm"], ["s2", "vv", "dsm"], ["vv", "dsm"]]
    with scenes[1].opened() as rasters, RasterScene(rasters, channels={"s2": 4, "vv": 1, "dsm": 1}) as scene:
        images = scene.read(0, 0, 4, 4)
        assert [np.shape(images[name]) for name in ("s2", "dsm")] == [(3, 4, 4, 4), (4, 4, 1)]
        assert images["s2_dates"] == [to_days(f"2019-0{month}-11T10:30:31.5") for month in (1, 2, 3)]


def test_more_dates_than_a_process_may_have_files_open(tmp_path):
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limits[1] != resource.RLIM_INFINITY and limits[1] < 1500:
        pytest.skip("this system lets no process have so many files open")
    files = [write_tiff(tmp_path / f"{day}.tif", image(day, size=(4, 6))) for day in range(300)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, limits[1]))
    try:
        with RasterScene({"s2": files, "s2_dates": list(range(300))}, channels=CHANNELS) as scene:
            images = scene.read(0, 0, 4, 6)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert images["s2_dates"] == list(range(300))
    np.testing.assert_array_equal(np.stack(images["s2"])[:, 0, 0, 0], 100 * np.arange(300) + 1)


def test_items_of_a_catalogue_and_files_of_a_cell_are_dates(folder):
    """A catalogue says when its files were taken, whatever their names say."""
    items = []
    for number, day in enumerate(DAYS):
        properties = {"datetime": f"2020-0{number + 1}-05T10:00:00Z", "grid:code": "MGRS-31UFR"}
        assets = {"reflectance": {"href": f"s2/{day}.tif"}}
        items.append({"type": "Feature", "id": day, "properties": properties, "assets": assets})
    path = folder / "items.json"
    path.write_text(json.dumps({"type": "FeatureCollection", "features": items}))
    how = {"assets": {"s2": "reflectance"}, "scene_by": "grid:code"}
    assert len(list_scenes(path, ["s2"], **how)) == 3  # for a model without dates a scene each
    (scene,) = list_scenes(path, ["s2"], dated=True, **how)
    assert scene.name == "MGRS-31UFR"
    with scene.opened() as rasters, RasterScene(rasters, channels=CHANNELS) as opened:
        assert opened.dates == {"s2": [to_days(f"2020-0{month}-05T10:00") for month in (1, 2, 3)]}
    table = folder / "scenes.csv"
    table.write_text("scene,s2\na," + ";".join(f"s2/{day}.tif" for day in DAYS) + "\n")
    (scene,) = list_scenes(table, ["s2"], dated=True)
    with scene.opened() as rasters, RasterScene(rasters, channels=CHANNELS) as opened:
        assert opened.dates == {"s2": days()}
