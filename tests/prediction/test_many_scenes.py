"""Maps of many scenes: the same as one by one, each once, whoever dies; and the table of all."""

import csv
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
from raster_scenes import HeightClasses, height_classes, height_processor, predict_height_classes, write_tiff

from sgma_hf.converters.writing.parquet import ParquetDatasetWriter
from sgma_hf.data.metadata import DatasetMetadata
from sgma_hf.prediction.maps import MapMaker
from sgma_hf.prediction.scenes.claims import Claims
from sgma_hf.prediction.scenes.many import SceneLedger, predict_scenes
from sgma_hf.prediction.scenes.summary import least_certain, write_summary
from sgma_hf.rasters.listings.listed import ListedScene
from sgma_hf.rasters.listings.sources import list_scenes


rasterio = pytest.importorskip("rasterio")

METADATA = DatasetMetadata(["dsm", "rgb"], [1, 3], ["float32", "uint8"], nodata=[[-9999.0], []])
ROOT = Path(__file__).resolve().parents[2]
SIZE = 40


def heights_of(seed, size=SIZE):
    return np.random.default_rng(seed).uniform(0, 20, (1, size, size)).astype(np.float32)


def write_scenes(folder, count, size=SIZE):
    for number in range(count):
        (folder / f"s{number}").mkdir(parents=True)
        write_tiff(folder / f"s{number}" / "dsm.tif", heights_of(number, size))
    return folder


def listed(folder):
    return list_scenes(folder, ["dsm", "rgb"])


def predict(folder, output, *, scenes=None, tile_size=32, **options):
    maker = MapMaker(HeightClasses(), height_processor(), tile_size=tile_size)
    return list(predict_scenes(maker, listed(folder) if scenes is None else scenes, output, **options))


def maps_in(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*.tif"))}


def test_maps_are_those_of_the_scenes_one_by_one(tmp_path):
    folder = write_scenes(tmp_path / "scenes", 3)
    records = predict(folder, tmp_path / "maps", extras=["confidence"])
    assert [(record.scene, record.error) for record in records] == [("s0", None), ("s1", None), ("s2", None)]
    for number in range(3):
        rasters = {"dsm": str(folder / f"s{number}" / "dsm.tif")}
        predict_height_classes(rasters, tmp_path / "alone" / f"s{number}.tif", extras=["confidence"])
        with rasterio.open(tmp_path / "maps" / f"s{number}.tif") as file:
            np.testing.assert_array_equal(file.read(1), height_classes(heights_of(number)[0]))
    assert maps_in(tmp_path / "maps") == maps_in(tmp_path / "alone")


def test_files_that_one_thread_opens_another_closes_whatever_gdal_s_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GDAL_CACHEMAX", "64")
    records = predict(write_scenes(tmp_path / "scenes", 2), tmp_path / "maps")
    assert [record.error for record in records] == [None, None]


def test_maps_of_rows_are_those_of_their_rasters_and_the_same_each_time(tmp_path):
    heights = heights_of(3)[0]
    with ParquetDatasetWriter(tmp_path / "data", METADATA, title="Heights") as writer:
        writer.write("train", "a", {"dsm": heights, "rgb": None}, None)
    for name in ("one", "two"):
        (record,) = predict(tmp_path / "data", tmp_path / name)
        assert record.error is None and record.class_areas is None
    with rasterio.open(tmp_path / "one" / "a.tif") as file:
        np.testing.assert_array_equal(file.read(1), height_classes(heights))
    assert maps_in(tmp_path / "one") == maps_in(tmp_path / "two")


def test_the_grid_is_that_of_a_modality_where_a_scene_has_it(tmp_path):
    folder = write_scenes(tmp_path / "scenes", 2)
    colours = np.full((3, 2 * SIZE, 2 * SIZE), 100, np.uint8)
    write_tiff(folder / "s1" / "rgb.tif", colours, pixel=0.5)
    records = predict(folder, tmp_path / "maps", like="rgb")
    assert {record.scene: record.size for record in records} == {"s0": [SIZE, SIZE], "s1": [2 * SIZE, 2 * SIZE]}


def test_a_scene_that_fails_is_named_and_tried_again_and_what_is_done_is_not(tmp_path):
    folder = write_scenes(tmp_path / "scenes", 3)
    good = (folder / "s1" / "dsm.tif").read_bytes()
    (folder / "s1" / "dsm.tif").write_bytes(good[:200])
    records = predict(folder, tmp_path / "maps")
    assert [record.scene for record in records if record.error] == ["s1"]
    assert "s1/dsm.tif" in next(record.error for record in records if record.error)
    assert sorted(maps_in(tmp_path / "maps")) == ["s0.tif", "s2.tif"]
    with pytest.raises(ValueError, match=r"maps of an earlier run\. Go on with it by `resume`"):
        predict(folder, tmp_path / "maps")
    assert [record.scene for record in predict(folder, tmp_path / "maps", resume=True)] == ["s1"]
    (folder / "s1" / "dsm.tif").write_bytes(good)
    write_tiff(folder / "s2" / "dsm.tif", heights_of(7))  # another raster is another map
    records = predict(folder, tmp_path / "maps", resume=True)
    assert [(record.scene, record.error) for record in records] == [("s1", None), ("s2", None)]
    with rasterio.open(tmp_path / "maps" / "s2.tif") as file:
        np.testing.assert_array_equal(file.read(1), height_classes(heights_of(7)[0]))
    with pytest.raises(ValueError, match=r"another run, which differs from this one in \['options'\]"):
        predict(folder, tmp_path / "maps", resume=True, tile_size=16)


def test_the_table_adds_up(tmp_path):
    folder = write_scenes(tmp_path / "scenes", 2)
    heights = heights_of(1)
    heights[:, :10] = -9999
    write_tiff(folder / "s1" / "dsm.tif", heights, nodata=-9999)
    (folder / "s2").mkdir()
    (folder / "s2" / "dsm.tif").write_bytes(b"no raster")
    predict(folder, tmp_path / "maps")
    ledger = SceneLedger(tmp_path / "maps", ".tif")
    classes = ["low", "middle", "high"]
    rows, files = write_summary(ledger, ["s0", "s1", "s2"], classes, ["dsm", "rgb"])
    assert [path.name for path in files] == ["summary.csv", "summary.parquet", "least_certain.csv"]
    ids = height_classes(heights[0, 10:])
    for index, name in enumerate(classes):
        assert rows[1][f"share_{name}"] == np.mean(ids == index)
        # A pixel of UTM is a square metre, to the square of its scale of 0.9996 in the middle of the zone and of 1.001
        # at its edge.
        assert rows[1][f"area_ha_{name}"] == pytest.approx(np.sum(ids == index) / 10_000, rel=3e-3)
    assert rows[1]["share_unmapped"] == 0.25
    assert rows[1]["area_ha"] == pytest.approx(sum(rows[1][f"area_ha_{name}"] for name in classes))
    predict_height_classes({"dsm": str(folder / "s1" / "dsm.tif")}, tmp_path / "one.tif", extras=["confidence"])
    with rasterio.open(tmp_path / "one_confidence.tif") as file:
        assert rows[1]["confidence"] == pytest.approx(np.nanmean(file.read(1)), abs=1e-6)
    assert rows[1]["missing"] == "rgb" and rows[2]["map"] is None and "s2/dsm.tif" in rows[2]["error"]
    with open(tmp_path / "maps" / "summary.csv", newline="") as file:
        read = list(csv.DictReader(file))
    assert [row["scene"] for row in read] == ["s0", "s1", "s2"] and float(read[1]["share_low"]) == rows[1]["share_low"]
    assert pyarrow.parquet.read_table(tmp_path / "maps" / "summary.parquet").to_pylist() == rows
    least = [row["scene"] for row in least_certain(rows)]
    assert least == sorted(["s0", "s1"], key=lambda name: rows[int(name[1])]["confidence"])


def _predict_slowly(folder, output, calls, seconds):
    """A process that says which scenes it reads; each takes a while."""
    original = ListedScene.opened

    def opened(scene, first=None):
        with open(calls, "a") as file:
            file.write(f"{scene.name}\n")
        time.sleep(seconds)
        return original(scene, first)

    ListedScene.opened = opened
    predict(Path(folder), Path(output), joins=True)


def _start(folder, output, calls, seconds):
    arguments = (str(folder), str(output), str(calls), seconds)
    process = multiprocessing.get_context("spawn").Process(target=_predict_slowly, args=arguments)
    process.start()
    return process


def test_two_processes_make_every_scene_once(tmp_path):
    folder = write_scenes(tmp_path / "scenes", 8)
    processes = [_start(folder, tmp_path / "maps", tmp_path / f"calls{number}", 0.05) for number in range(2)]
    for process in processes:
        process.join()
        assert process.exitcode == 0
    calls = [(tmp_path / f"calls{number}") for number in range(2)]
    made = [name for path in calls if path.exists() for name in path.read_text().split()]
    assert sorted(made) == [f"s{number}" for number in range(8)]
    assert sorted(maps_in(tmp_path / "maps")) == [f"s{number}.tif" for number in range(8)]
    assert list((tmp_path / "maps" / ".scenes" / "claims").iterdir()) == []


def test_killed_at_three_moments_and_resumed_the_maps_are_the_same(tmp_path):
    """The strips of a map, several of each, and the claims of the dead stay behind; the next process goes on."""
    folder = write_scenes(tmp_path / "scenes", 4, size=150)
    predict(folder, tmp_path / "whole")
    output = tmp_path / "maps"

    def wait_for(is_reached):
        while not is_reached():
            assert process.is_alive()
            time.sleep(0.005)

    moments = [
        lambda: list(output.glob(".s0.tif.partial/*.labels")),  # in the middle of a map
        lambda: (output / "s1.tif").exists(),
        lambda: list(output.glob(".scenes/claims/s3.*")),  # at the last scene
    ]
    for is_reached in moments:
        process = _start(folder, output, tmp_path / "calls", 0.1)
        wait_for(is_reached)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    predict(folder, output, joins=True)
    assert maps_in(output) == maps_in(tmp_path / "whole")
    assert list(output.rglob("*.partial")) == list((output / ".scenes" / "claims").iterdir()) == []


def test_the_claim_of_a_dead_process_is_taken_over_by_one_process(tmp_path):
    with Claims(tmp_path) as first, Claims(tmp_path) as second:
        assert first.take("a/b") and not second.take("a/b")
        first.release("a/b")
        assert second.take("a/b") and not first.take("a/b")
    claim = {"machine": "elsewhere", "process": 1, "started": 0.0}
    path = tmp_path / "c.0"
    path.write_text(json.dumps(claim))
    with Claims(tmp_path) as claims, Claims(tmp_path) as other:
        assert not claims.take("c")  # its machine may live
        long_ago = time.time() - 3600
        os.utime(path, (long_ago, long_ago))
        assert claims.take("c") and not other.take("c")
        claims.release("c")
        assert list(tmp_path.glob("c.*")) == []


def test_scenes_that_another_process_has_are_waited_for(tmp_path):
    """One that claims a scene and dies at once, as seen by one that comes later: the scene is made all the same."""
    folder = write_scenes(tmp_path / "scenes", 2)
    program = (
        "import os, sys; sys.path.insert(0, sys.argv[1]); from pathlib import Path;"
        "from sgma_hf.prediction.scenes.claims import Claims;"
        "claims = Claims(Path(sys.argv[2])).__enter__(); claims.take('s0'); os._exit(9)"
    )
    claims = tmp_path / "maps" / ".scenes" / "claims"
    assert subprocess.run([sys.executable, "-c", program, str(ROOT), str(claims)], check=False).returncode == 9
    assert [path.name for path in claims.iterdir()] == ["s0.0"]
    assert sorted(record.scene for record in predict(folder, tmp_path / "maps", joins=True)) == ["s0", "s1"]


def test_a_folder_that_cannot_be_written_is_said(tmp_path, monkeypatch):
    folder = write_scenes(tmp_path / "scenes", 1)
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"file"):
        predict(folder, tmp_path / "file" / "maps")
    shutil.rmtree(folder)
