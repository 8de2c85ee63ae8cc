import datasets
import numpy as np
import pytest
from isprs_fixtures import (
    COLORS,
    VAIHINGEN_TEST,
    VAIHINGEN_TRAIN,
    area_size,
    save,
    seams,
    tile_bands,
    tile_heights,
    tile_ids,
    truncate,
    write_vaihingen,
)

from sgma_hf.converters.benchmarks.check import survey_source
from sgma_hf.converters.benchmarks.dataset import ConversionOptions
from sgma_hf.converters.isprs_vaihingen import DESCRIPTION, SPLIT_TILES, IsprsVaihingen, Vaihingen, main
from sgma_hf.data.rows import decode_row, load_rows
from sgma_hf.data.windows import Window


pytest.importorskip("rasterio")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_vaihingen(tmp_path_factory.mktemp("source") / "Vaihingen")


def scenes_of(dataset, source):
    return {scene.name: scene for scene in dataset.find(source).scenes}


def test_named_splits_have_the_published_areas():
    assert [int(area) for area in SPLIT_TILES["official"]["train"]] == VAIHINGEN_TRAIN
    assert [int(area) for area in SPLIT_TILES["official"]["test"]] == VAIHINGEN_TEST
    assert set(SPLIT_TILES["ssrs"]["train"]) == set("1 3 23 26 7 11 13 28 17 32 34 37".split())
    for name, splits in SPLIT_TILES.items():
        assert {split: len(tiles) for split, tiles in splits.items()} == DESCRIPTION.splits[name].num_scenes


def test_areas_of_all_sizes_survive_the_conversion(source, tmp_path):
    out = tmp_path / "vaihingen"
    flags = ["--tile_size", "none", "--classes", "6", "--num_proc", "1"]
    assert main(["--source", str(source), "--output", str(out), *flags]) == 0
    for split, areas in (("train", VAIHINGEN_TRAIN), ("test", VAIHINGEN_TEST)):
        rows = load_rows(out, split)
        assert rows["id"] == [f"area{area}" for area in areas]
        for row, area in zip(rows, areas, strict=True):
            images, label = decode_row(row, ["irrg", "dsm"])
            name, size = f"area{area}", area_size(area)
            np.testing.assert_array_equal(images["irrg"], tile_bands(name, 3, size))
            assert images["dsm"].tobytes() == tile_heights(name, size).tobytes()
            np.testing.assert_array_equal(label, tile_ids(name, size))
    streamed = next(iter(datasets.load_dataset(str(out), split="test", streaming=True)))
    np.testing.assert_array_equal(np.array(streamed["irrg"]), tile_bands("area2", 3, area_size(2)))


def test_areas_smaller_than_a_tile_give_smaller_rows(source, tmp_path):
    assert (
        main(["--source", str(source), "--output", str(tmp_path / "out"), "--tile_size", "40", "--num_proc", "1"]) == 0
    )
    label = decode_row(load_rows(tmp_path / "out", "train")[0], [])[1]
    assert area_size(1) == (40, 48) and label.shape == (40, 40)
    by_area = [row for row in load_rows(tmp_path / "out", "test") if row["id"].startswith("area10_")]
    assert area_size(10) == (36, 56)
    assert [row["id"] for row in by_area] == ["area10_y00000_x00000", "area10_y00000_x00016"]
    assert decode_row(by_area[0], [])[1].shape == (36, 40)


def test_images_and_labels_of_the_same_name_are_told_apart(source):
    for scene in Vaihingen().find(source).scenes:
        assert scene.files["irrg"].parent.name == "top"
        assert scene.files["label"].parent.name != "top" and scene.files["label"].name == scene.files["irrg"].name


def test_eroded_labels_leave_the_unused_area_alone(source):
    dataset = Vaihingen(ConversionOptions(choices={"labels": "eroded", "classes": 6}))
    scenes = scenes_of(dataset, source)
    assert len(scenes) == 33 and "area9" not in scenes
    for area in (1, 2):
        name, size = f"area{area}", area_size(area)
        expected = np.where(seams(tile_ids(name, size)), 255, tile_ids(name, size))
        np.testing.assert_array_equal(dataset.read(scenes[name], "label", Window(0, 0, *size)), expected)
    dataset.readers.close()


@pytest.mark.parametrize("labels", ["full", "eroded"])
def test_test_areas_without_labels_are_no_fault(tmp_path, labels):
    root = write_vaihingen(tmp_path, complete=False)
    survey = survey_source(Vaihingen(ConversionOptions(choices={"labels": labels})), root)
    assert len(survey.scenes) == 33
    assert [problem.kind for problem in survey.problems] == ["note"]
    assert f"{labels} labels of 17 test tiles" in survey.problems[0].what
    assert "COMPLETE.zip" in survey.problems[0].remedy


def test_height_of_area_11_beside_the_archive_is_preferred(tmp_path):
    root = write_vaihingen(tmp_path, areas=[11, 13])
    truncate(root / "ISPRS_semantic_labeling_Vaihingen" / "dsm" / "dsm_09cm_matching_area11.tif")
    assert scenes_of(Vaihingen(), root)["area11"].files["dsm"].parent.name == "dsm"
    save(root / "dsm_09cm_matching_area11.tif", tile_heights("good", area_size(11)))
    dataset = Vaihingen()
    scenes = scenes_of(dataset, root)
    assert scenes["area11"].files["dsm"].parent == root
    np.testing.assert_array_equal(
        dataset.read(scenes["area11"], "dsm", Window(0, 0, *area_size(11))), tile_heights("good", area_size(11))
    )
    assert scenes["area13"].files["dsm"].parent.name == "dsm"
    dataset.readers.close()


def test_flat_layout_with_labels_at_the_root_is_found(tmp_path):
    name, size = "area1", area_size(1)
    save(tmp_path / "top" / "top_mosaic_09cm_area1.tif", tile_bands(name, 3, size))
    save(tmp_path / "top_mosaic_09cm_area1.tif", COLORS[tile_ids(name, size)])
    files = scenes_of(Vaihingen(), tmp_path)["area1"].files
    assert files == {
        "irrg": tmp_path / "top" / "top_mosaic_09cm_area1.tif",
        "dsm": None,
        "label": tmp_path / "top_mosaic_09cm_area1.tif",
    }


def test_both_labels_come_from_one_conversion(source):
    found = {
        labels: scenes_of(Vaihingen(ConversionOptions(choices={"labels": labels})), source)["area11"].files
        for labels in ("full", "eroded", "both")
    }
    assert found["both"]["label"] == found["full"]["label"] != found["eroded"]["label"]
    assert found["both"]["scoring_label"] == found["eroded"]["label"] is not None
    assert "scoring_label" not in found["full"]
    dataset = Vaihingen(ConversionOptions(choices={"labels": "both", "classes": 6}))
    scene, size = scenes_of(dataset, source)["area11"], area_size(11)
    labels = [dataset.read(scene, column, Window(0, 0, *size)) for column in ("label", "scoring_label")]
    dataset.readers.close()
    expected = tile_ids("area11", size)
    np.testing.assert_array_equal(labels[0], expected)
    np.testing.assert_array_equal(labels[1], np.where(seams(expected), 255, expected))
    assert dataset.metadata().scoring_label and not Vaihingen().metadata().scoring_label


def test_check_names_what_is_absent_and_what_is_broken(tmp_path, capsys):
    root = write_vaihingen(tmp_path, areas=[1, 2, 3])
    truncate(root / "ISPRS_semantic_labeling_Vaihingen" / "top" / "top_mosaic_09cm_area3.tif")
    (root / "ISPRS_semantic_labeling_Vaihingen.zip").write_bytes(b"PK")
    assert main(["--source", str(root), "--check", "--num_proc", "1"]) == 1
    said = capsys.readouterr().out
    assert "irrg of 30 tiles (area5, area7," in said and "unzip '" in said
    assert "top_mosaic_09cm_area3.tif" in said and "Damaged (1)" in said
    assert "train              2         16         2        2" in said
    assert main(["--source", str(tmp_path / "nothing"), "--check"]) == 2
    assert "is not a folder" in capsys.readouterr().err


def test_builder_streams(source, tmp_path):
    builder = IsprsVaihingen(data_dir=str(source), cache_dir=str(tmp_path), tile=16, split="ssrs")
    row = next(iter(builder.as_streaming_dataset(split="test")))
    assert row["id"] == "area5_y00000_x00000"
    np.testing.assert_array_equal(np.array(row["irrg"]), tile_bands("area5", 3, area_size(5))[:16, :16])
