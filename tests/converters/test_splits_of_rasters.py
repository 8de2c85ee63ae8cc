"""How scenes of a folder are divided into splits, and what the data set records of it."""

import numpy as np
import pytest
from PIL import Image
from raster_scenes import write_tiff

from sgma_hf.converters.folders.spatial_groups import choose_validation, group_scenes, least_gap
from sgma_hf.converters.raster_folders import main
from sgma_hf.data.metadata import DatasetMetadata
from sgma_hf.rasters.raster import Georeference


def run(source, out, *arguments) -> int:
    return main(["--source", str(source), "--output", str(out), "--modalities", "nir", *map(str, arguments)])


def test_groups_by_distance_and_name():
    rasterio = pytest.importorskip("rasterio")
    utm = rasterio.crs.CRS.from_epsg(32631).to_wkt()
    # 20 m plots with gaps of 30 m and 100 m: with 60 m, the first two belong together.
    places = [
        (Georeference(rasterio.Affine(1.0, 0, 500000.0 + x, 0, -1.0, 4.8e6), utm), (20, 20)) for x in (0, 50, 170)
    ]
    names = ["A_1", "A_2", "B_1"]
    assert group_scenes(names, places, distance=60) == [0, 0, 1]
    assert group_scenes(names, places, distance=29) == [0, 1, 2]
    assert group_scenes(names, places, distance=101) == [0, 0, 0]
    assert group_scenes(names, places, regex=r"_(\d)") == [0, 1, 0]
    assert group_scenes(names, places, regex=r"_(\d)", distance=60) == [0, 0, 0]
    assert group_scenes(names, places) == [0, 1, 2]
    assert least_gap(places[:1], places[1:]) == 30 and least_gap(places[2:], places[:2]) == 100
    assert least_gap(places[:1], [(None, (2, 2))]) is None and least_gap(places[:1], []) is None
    with pytest.raises(ValueError, match="does not match"):
        group_scenes(names, places, regex="^A")
    with pytest.raises(ValueError, match="georeferenced"):
        group_scenes(["x"], [(None, (2, 2))], distance=1)
    # The same ground in degrees: the gaps come out within a percent.
    degrees = rasterio.crs.CRS.from_epsg(4326).to_wkt()
    step = 1 / (111320 * np.cos(np.deg2rad(43.35)))
    spots = [
        (Georeference(rasterio.Affine(step, 0, 3.0 + x * step, 0, -9e-6, 43.35), degrees), (20, 20))
        for x in (0, 50, 170)
    ]
    assert group_scenes(names, spots, distance=30.5) == [0, 0, 1]
    assert group_scenes(names, spots, distance=29.5) == [0, 1, 2]


def test_validation_takes_whole_groups_near_the_fraction():
    groups, sizes = [0, 0, 1, 2, 3, 4], [1] * 6
    for seed in range(5):
        chosen = choose_validation(groups, sizes, 1 / 3, seed)
        assert chosen == choose_validation(groups, sizes, 1 / 3, seed)
        assert chosen[0] == chosen[1] and sum(chosen) == 2
    assert sum(choose_validation([0, 1], [1, 99], 0.01, 0)) == 1
    with pytest.raises(ValueError, match="one group"):
        choose_validation([0, 0], [1, 1], 0.5, 0)
    with pytest.raises(ValueError, match="between 0 and 1"):
        choose_validation([0, 1], [1, 1], 1.0, 0)


def test_each_split_says_how_it_was_made(tmp_path, capsys):
    plain = tmp_path / "fields"
    for name in ("train/{}/a.png", "train/{}/b.png", "train/{}/c.png", "valid/{}/d.png"):
        for kind in ("nir", "label"):
            (plain / name.format(kind)).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.zeros((4, 6), dtype=np.uint8)).save(plain / name.format(kind))
    arguments = ("--val_fraction", 0.34, "--split_as", "valid=test")
    assert run(plain, tmp_path / "out", *arguments, "--split_notes", "test=a random part of the training fields") == 0
    notes = DatasetMetadata.load(tmp_path / "out").split_notes
    assert notes == {
        "train": "Scenes of the source.",
        "validation": "1 of 3 scenes, drawn whole with seed 0 to come near 34% of the rows. How far from the training "
        "scenes it lies is not known.",
        "test": "a random part of the training fields.",
    }
    card = (tmp_path / "out" / "README.md").read_text()
    assert all(f"- `{split}`: {note}" in card for split, note in notes.items())
    assert run(plain, tmp_path / "plain") == 0
    assert DatasetMetadata.load(tmp_path / "plain").note_on("valid").startswith("The source's folder `valid`; how it")
    assert run(plain, tmp_path / "wrong", "--split_notes", "tset=x") == 2
    assert "--split_notes names ['tset']" in capsys.readouterr().err


def test_how_far_a_split_lies_from_the_training_is_measured(tmp_path):
    places = {"train/a": 0, "train/b": 10, "valid/c": 20, "test/d": 500}
    for name, x in places.items():
        for kind in ("nir", "label"):
            path = tmp_path / "fields" / name.replace("/", f"/{kind}/")
            path.parent.mkdir(parents=True, exist_ok=True)
            write_tiff(f"{path}.tif", np.zeros((1, 10, 10), dtype=np.uint8), origin=(500000.0 + x, 4.8e6))
    assert run(tmp_path / "fields", tmp_path / "out") == 0
    metadata = DatasetMetadata.load(tmp_path / "out")
    assert metadata.note_on("validation").endswith("Its nearest scene lies 0 m from those of the training.")
    assert metadata.note_on("test").endswith("Its nearest scene lies 480 m from those of the training.")


def test_scenes_set_aside_that_touch_others_are_said_with_what_keeps_them_together(tmp_path, caplog):
    for index, name in enumerate("abcd"):  # b touches a, d touches c
        for kind in ("nir", "label"):
            path = tmp_path / "fields" / kind / f"{name}.tif"
            path.parent.mkdir(parents=True, exist_ok=True)
            origin = (500000.0 + 10 * index + 1000 * (index // 2), 4.8e6)
            write_tiff(path, np.zeros((1, 10, 10), dtype=np.uint8), origin=origin)
    said = "`--group_distance 1` keeps those that touch together"
    assert run(tmp_path / "fields", tmp_path / "split", "--val_fraction", 0.25) == 0
    assert said in caplog.text
    caplog.clear()
    assert run(tmp_path / "fields", tmp_path / "apart", "--val_fraction", 0.25, "--group_distance", 1) == 0
    assert said not in caplog.text
