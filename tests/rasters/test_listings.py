"""Which scenes a folder, a table, a data set and a catalogue list, and what is said where they cannot be meant."""

import csv
import json
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from raster_scenes import write_tiff
from tiny_dataset import write_dataset

from sgma_hf.rasters.listings.sources import list_scenes


def touch(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")
    return path


def rasters_of(scenes):
    return {scene.name: dict(scene.rasters) for scene in scenes}


def problems_of(scenes):
    return {scene.name: scene.problem for scene in scenes if scene.problem}


def write_csv(path, rows):
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows(rows)
    return path


def item(name, assets, **properties):
    hrefs = {key: {"href": href} for key, href in assets.items()}
    return {"type": "Feature", "id": name, "properties": properties, "assets": hrefs}


def write_items(path, *items):
    path.write_text(json.dumps({"type": "FeatureCollection", "features": items}))
    return path


@pytest.mark.parametrize("layout", ["{modality}/{scene}.tif", "{scene}/{modality}.tif", "{scene}_{modality}.tif"])
def test_every_layout_of_a_folder_and_what_is_missing(tmp_path, layout):
    for scene, modality in (("a", "rgb"), ("a", "dsm"), ("b", "rgb"), ("a", "label")):
        touch(tmp_path / layout.format(scene=scene, modality=modality))
    path = {scene: str(tmp_path / layout.format(scene=scene, modality="rgb")) for scene in "ab"}
    dsm = str(tmp_path / layout.format(scene="a", modality="dsm"))
    # No scene has `sar`: it is missing in all of them, and no mistake.
    found = list_scenes(tmp_path, ["rgb", "dsm", "sar"])
    assert rasters_of(found) == {"a": {"rgb": [path["a"]], "dsm": [dsm]}, "b": {"rgb": [path["b"]]}}


def test_splits_are_folders_of_the_maps_and_assets_name_folders_with_bands(tmp_path):
    for split in ("train", "valid"):
        touch(tmp_path / split / "rgbn" / "a.tif")
    found = list_scenes(tmp_path, ["rgb", "nir"], assets={"rgb": "rgbn:1,2,3", "nir": "rgbn:4"})
    assert [scene.name for scene in found] == ["train/a", "validation/a"]
    path = tmp_path / "valid" / "rgbn" / "a.tif"
    assert found[1].rasters == {"rgb": [f"{path}:1,2,3"], "nir": [f"{path}:4"]}


def test_a_table_names_files_beside_it_and_elsewhere(tmp_path):
    rows = [
        ["place", "image", "nir", "note"],
        ["a", "x.tif;y.tif", "", "mosaic"],
        ["b/c", "https://host/b.tif", "/vsizip/z.zip/n.tif", ""],
    ]
    table = write_csv(tmp_path / "scenes.csv", rows)
    found = list_scenes(table, ["rgb", "nir"], assets={"rgb": "image:1,2,3"}, scene_by="place")
    assert rasters_of(found) == {
        "a": {"rgb": [f"{tmp_path}/x.tif:1,2,3", f"{tmp_path}/y.tif:1,2,3"]},
        "b/c": {"rgb": ["https://host/b.tif:1,2,3"], "nir": ["/vsizip/z.zip/n.tif"]},
    }
    columns = {"id": ["a"], "rgb": [["x.tif", "y.tif"]], "nir": pyarrow.array([None], pyarrow.string())}
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "scenes.parquet")
    found = list_scenes(tmp_path / "scenes.parquet", ["rgb", "nir"])
    assert rasters_of(found) == {"a": {"rgb": [f"{tmp_path}/x.tif", f"{tmp_path}/y.tif"]}}


def test_what_is_wrong_with_one_row_is_that_scene_s_problem(tmp_path):
    rows = [["id", "rgb"], ["a", "x.tif"], ["a", "y.tif"], ["b", ""], ["", "z.tif"], ["../c", "z.tif"]]
    found = list_scenes(write_csv(tmp_path / "scenes.csv", rows), ["rgb", "nir"])
    problems = problems_of(found)
    assert "the scene 'a' in several rows" in problems["a"]
    assert "names no raster in ['rgb']" in problems["b"]
    assert "Row 4 of" in problems["row 4"]
    assert [scene.name for scene in found] == ["_/c", "a", "b", "row 4"]  # no map leaves the folder
    with pytest.raises(ValueError, match="the scene 'a'"), found[1].opened():
        pass


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([["id", "image"], ["a", "x.tif"]], r"the columns \['id', 'image'\], and none of \['rgb', 'nir'\].*--assets"),
        ([["rgb"], ["x.tif"]], r"none named scene, id or name.*--scene_by"),
        ([["id", "rgb"]], "holds no row below the names of its columns"),
    ],
)
def test_a_table_without_what_is_asked_for(tmp_path, rows, message):
    with pytest.raises(ValueError, match=message):
        list_scenes(write_csv(tmp_path / "scenes.csv", rows), ["rgb", "nir"])


def test_items_of_a_catalogue_are_scenes_or_those_of_one_place_and_date(tmp_path):
    optical = item("S2_1", {"B08": "./n.tif", "visual": "s3://b/v.tif"}, grid="31U", datetime="2024-05-01T10:00:00Z")
    radar = item("S1_1", {"vv": "https://host/vv.tif"}, grid="31U", datetime="2024-05-01T17:00:00Z")
    later = item("S2_2", {"B08": "file:///d/n.tif"}, grid="31U", datetime="2024-05-11T10:00:00Z")
    path = write_items(tmp_path / "items.json", optical, radar, later)
    assets = {"rgb": "visual", "nir": "B08", "sar": "vv"}
    single = rasters_of(list_scenes(path, ["rgb", "nir", "sar"], assets=assets))
    assert single == {
        "S1_1": {"sar": ["https://host/vv.tif"]},
        "S2_1": {"rgb": ["s3://b/v.tif"], "nir": [f"{tmp_path}/n.tif"]},
        "S2_2": {"nir": ["/d/n.tif"]},
    }
    merged = rasters_of(list_scenes(path, ["rgb", "nir", "sar"], assets=assets, scene_by="grid"))
    assert merged == {"31U_2024-05-01": single["S2_1"] | single["S1_1"], "31U_2024-05-11": single["S2_2"]}


def test_two_items_of_one_date_are_a_problem_of_their_scene_alone(tmp_path):
    first = item("A", {"B08": "a.tif"}, grid="31U", datetime="2024-05-01T10:00:00Z")
    second = item("B", {"B08": "b.tif"}, grid="31U", datetime="2024-05-01T10:00:05Z")
    other = item("C", {"B08": "c.tif"}, grid="32U", datetime="2024-05-01T10:00:05Z")
    path = write_items(tmp_path / "items.json", first, second, other)
    found = list_scenes(path, ["nir"], assets={"nir": "B08"}, scene_by="grid")
    assert list(problems_of(found)) == ["31U_2024-05-01"]
    assert "The items A and B of" in found[0].problem and "of 2024-05-01, are one scene" in found[0].problem


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is no JSON"),
        ('{"type": "Catalog", "links": []}', "is no STAC ItemCollection"),
        ('{"type": "FeatureCollection", "features": []}', "holds no item"),
        (
            json.dumps({"features": [item("a", {"B8": "x.tif"})]}),
            r"the assets \['B8'\], and none of \['nir'\].*--assets",
        ),
    ],
)
def test_a_catalogue_that_is_none(tmp_path, content, message):
    (tmp_path / "items.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        list_scenes(tmp_path / "items.json", ["nir"])


def test_a_source_that_is_nothing_of_all_that(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"There is no .*x\.csv"):
        list_scenes(tmp_path / "x.csv", ["rgb"])
    with pytest.raises(ValueError, match="neither a folder of scenes nor a table"):
        list_scenes(touch(tmp_path / "x.txt"), ["rgb"])
    with pytest.raises(ValueError, match=r"holds neither folders \['rgb'\]"):
        list_scenes(tmp_path, ["rgb"])
    with pytest.raises(ValueError, match=r"`assets` names \['red'\]"):
        list_scenes(tmp_path, ["rgb"], assets={"red": "x"})
    with pytest.raises(ValueError, match=r"`scene_by` 'grid' is a column of a table.* is a folder"):
        list_scenes(tmp_path, ["rgb"], scene_by="grid")


def test_a_name_that_no_scene_has_is_said(tmp_path, caplog):
    for name in ("rgb", "nir"):
        touch(tmp_path / name / "a.tif")
    assert list(list_scenes(tmp_path, ["rgb", "nir"], assets={"nir": "B8"})[0].rasters) == ["rgb"]
    assert f"No scene of {tmp_path} has 'B8' for nir: it is missing in all of them." in caplog.text


def test_rows_of_a_data_set_are_files_while_they_are_read(tmp_path):
    write_dataset(tmp_path / "data")
    found = {scene.name: scene for scene in list_scenes(tmp_path / "data", ["rgb", "dsm"])}
    again = list_scenes(tmp_path / "data", ["rgb", "dsm"])
    assert [scene.version() for scene in again] == [scene.version() for scene in found.values()]
    with found["a"].opened("dsm") as rasters:
        assert list(rasters) == ["dsm", "rgb"]
    for scene in found.values():
        with scene.opened() as rasters:
            assert list(rasters) == scene.modalities
            shapes = {name: np.load(path).shape for name, (path,) in rasters.items()}
        assert shapes == {name: {"rgb": (2, 3, 3), "dsm": (2, 3)}[name] for name in scene.modalities}
        assert not any(Path(path).exists() for (path,) in rasters.values())


def test_another_file_of_the_same_name_is_another_version(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        write_tiff(tmp_path / name / "rgb.tif", np.ones((3, 4, 4), np.uint8))
    before = [scene.version() for scene in list_scenes(tmp_path, ["rgb"])]
    assert json.loads(json.dumps(before)) == before
    write_tiff(tmp_path / "b" / "rgb.tif", np.ones((3, 5, 4), np.uint8))
    after = [scene.version() for scene in list_scenes(tmp_path, ["rgb"])]
    assert before[0] == after[0] and before[1] != after[1]
