"""DFC2023: from either layout to rows, with all three mask encodings, what is not public, and hold-outs of ours."""

import dataclasses
import json
import pickle
import shutil

import numpy as np
import pytest
import torch
from converted_rows import assert_streams_the_same, decoded, train_one_step
from dfc2023_fixtures import (
    BERLIN,
    BRASILIA,
    COPENHAGEN,
    DELHI,
    EMPTY,
    SIZE,
    SYDNEY,
    TRAIN_STEMS,
    coco_file,
    expected_buildings,
    pixels,
    write_documented,
    write_json,
    write_shipped,
)
from PIL import Image

from sgma_hf import SgmaImageProcessor
from sgma_hf.converters import dfc2023
from sgma_hf.converters.benchmarks.check import check_scene
from sgma_hf.converters.deliver import DELIVER
from sgma_hf.converters.dfc2023 import Dfc2023, Dfc2023Reader, random_split, sensor_and_city, to_decibels
from sgma_hf.converters.dfc2023_facts import CITY_COUNTS, TRACK_1, TRACK_2
from sgma_hf.converters.isprs_potsdam import DESCRIPTION as POTSDAM
from sgma_hf.converters.isprs_vaihingen import DESCRIPTION as VAIHINGEN
from sgma_hf.data.metadata import DatasetMetadata
from sgma_hf.model.image_transforms_sgma import valid_pixels


pytestmark = pytest.mark.long


def without_counts(description):
    uncounted = {"num_scenes": {}, "total": None}
    splits = {name: dataclasses.replace(item, **uncounted) for name, item in description.splits.items()}
    return dataclasses.replace(description, splits=splits)


@pytest.fixture
def any_number(monkeypatch):
    """No number of tiles is too small."""
    monkeypatch.setattr(Dfc2023Reader, "description", without_counts(TRACK_2))
    monkeypatch.setattr(dfc2023.facts, "TRACK_1", without_counts(TRACK_1))


@pytest.fixture
def shipped(tmp_path, any_number):
    return write_shipped(tmp_path / "shipped")


def run(source, *arguments):
    return dfc2023.main(["--source", str(source), "--num_proc", "1", *map(str, arguments)])


def test_labels_are_the_union_of_instances_in_all_encodings(shipped, tmp_path):
    assert run(shipped, "--output", tmp_path / "out") == 0
    rows = decoded(tmp_path / "out", "train")
    assert set(rows) == set(TRAIN_STEMS)
    for stem, (images, label) in rows.items():
        np.testing.assert_array_equal(label, expected_buildings(stem), err_msg=stem)
        stored = pixels(stem)
        np.testing.assert_array_equal(images["rgb"], stored["rgb"])
        np.testing.assert_array_equal(images["ndsm"], stored["ndsm"])
        assert images["ndsm"].dtype == images["sar"].dtype == np.float32
    assert rows[BERLIN][1].sum() == 40 + 100 + 28 + 10
    assert not rows[EMPTY][1].any()  # listed without an instance: all background


def test_sar_is_in_decibels_with_holes_where_there_is_no_logarithm(shipped, tmp_path):
    run(shipped, "--output", tmp_path / "out")
    rows = decoded(tmp_path / "out", "train")
    for stem, (images, _) in rows.items():
        linear = pixels(stem)["sar"].astype(np.float64)
        measured = linear > 0
        assert measured.sum() == SIZE**2 - (stem == BERLIN)
        np.testing.assert_allclose(images["sar"][measured], 10 * np.log10(linear[measured]), atol=1e-5, rtol=0)
        assert np.isnan(images["sar"][~measured]).all()
    metadata = DatasetMetadata.load(tmp_path / "out")
    assert metadata.units == [None, "m", "dB"]
    assert not valid_pixels(rows[BERLIN][0]["rgb"], metadata.nodata[0])[:3].any()  # black: the mosaic ends
    assert valid_pixels(rows[DELHI][0]["rgb"], metadata.nodata[0]).all()


def test_decibels_by_hand():
    power = np.array([[1.0, 0.1, 100.0], [0.0, np.nan, -1e-6]], dtype=np.float32)
    expected = np.array([[0, -10, 20], [np.nan] * 3], dtype=np.float32)
    np.testing.assert_allclose(to_decibels(power), expected, atol=1e-5)
    np.testing.assert_allclose(to_decibels(np.float32([[0.5, 1.0]]), nodata=0.5), [[np.nan, 0]])
    with pytest.raises(ValueError, match="--sar db"):
        to_decibels(np.float32([[-8.0, -12.5, 0.3]]))


def test_sar_in_decibels_already_is_refused_and_then_taken_as_it_is(shipped, tmp_path, capsys):
    path = shipped / "track2" / "train" / "sar" / f"{DELHI}.tif"
    Image.fromarray(to_decibels(pixels(DELHI)["sar"]) - 30).save(path)
    assert run(shipped, "--check", "--split", "random") == 1
    assert f"{path}: holds mostly negative values" in capsys.readouterr().out
    assert run(shipped, "--output", tmp_path / "out", "--sar", "db") == 0
    rows = decoded(tmp_path / "out", "train")
    np.testing.assert_array_equal(rows[DELHI][0]["sar"], to_decibels(pixels(DELHI)["sar"]) - 30)


def test_validation_and_test_have_null_labels_and_heights_and_say_so(shipped, tmp_path, capsys):
    assert run(shipped, "--output", tmp_path / "out", "--split", "official") == 0
    assert "test, column label: null in 1 of 1 rows: the contest did not publish it" in capsys.readouterr().out
    validation, test = decoded(tmp_path / "out", "validation"), decoded(tmp_path / "out", "test")
    assert list(validation) == ["P_0000", "P_0003"] and list(test) == ["P_0420"]
    for images, label in [*validation.values(), *test.values()]:
        assert label is None and images["ndsm"] is None
        assert images["rgb"] is not None and images["sar"] is not None
    card = (tmp_path / "out" / "README.md").read_text()
    assert "`label` and `ndsm` are null in those rows" in card
    assert "The authors would like to thank the IEEE GRSS" in card


def test_layout_of_the_readme_gives_the_same_rows(tmp_path, any_number):
    source = write_documented(tmp_path / "documented")
    run(source, "--output", tmp_path / "out", "--split", "official")
    run(write_shipped(tmp_path / "shipped"), "--output", tmp_path / "other", "--split", "official")
    rows, other = decoded(tmp_path / "out", "train"), decoded(tmp_path / "other", "train")
    assert list(rows) == list(other)
    for stem, (images, label) in rows.items():
        np.testing.assert_array_equal(label, other[stem][1])
        np.testing.assert_array_equal(images["ndsm"], other[stem][0]["ndsm"])
    images, label = decoded(tmp_path / "out", "validation")["P0011"]  # there heights and labels are drawn, too
    assert label.sum() == 40 and images["ndsm"] is not None
    images, label = decoded(tmp_path / "out", "test")["P0021"]  # its file lists images without annotations
    assert label is None and images["ndsm"] is None


@pytest.mark.parametrize("deeper", ["track2", "track2/track2"])
def test_a_track_alone_and_a_doubled_folder(tmp_path, any_number, deeper):
    base = write_shipped(tmp_path / "shipped")
    target = tmp_path / "moved" / deeper
    target.parent.mkdir(parents=True)
    (base / "track2").rename(target)
    assert run(tmp_path / "moved", "--output", tmp_path / "out", "--split", "cities") == 0
    assert len(decoded(tmp_path / "out", "train")) == 3


def test_a_roof_that_fills_a_window_stays_above_ground(shipped, tmp_path):
    run(shipped, "--output", tmp_path / "out", "--split", "cities")
    metadata = DatasetMetadata.load(tmp_path / "out")
    processor = SgmaImageProcessor(metadata.modalities, metadata.modality_channels)
    roof, ground = (
        processor([{"rgb": None, "ndsm": np.full((8, 8), height, np.float32), "sar": None}])["pixel_values"]
        for height in (20.0, 0.0)
    )
    difference = (roof - ground)[0, 3]
    torch.testing.assert_close(difference, torch.full((8, 8), 20 / processor.image_std[1][0]))


def test_height_folder_may_be_called_ndsm(shipped, tmp_path):
    (shipped / "track2" / "train" / "dsm").rename(shipped / "track2" / "train" / "nDSM")
    assert run(shipped, "--output", tmp_path / "out", "--split", "cities") == 0
    assert all(images["ndsm"] is not None for images, _ in decoded(tmp_path / "out", "train").values())


def test_cities_are_held_out_whole(shipped, tmp_path):
    run(shipped, "--output", tmp_path / "out", "--split", "cities")
    assert set(decoded(tmp_path / "out", "train")) == {BERLIN, DELHI, BRASILIA}
    assert set(decoded(tmp_path / "out", "validation")) == {EMPTY, SYDNEY}
    assert set(decoded(tmp_path / "out", "test")) == {COPENHAGEN}
    assert "sgma_hf's own, neither the contest's nor any paper's" in (tmp_path / "out" / "README.md").read_text()
    run(shipped, "--output", tmp_path / "mm", "--split", "mm_sam")
    assert len(decoded(tmp_path / "mm", "train")) == 5 and list(decoded(tmp_path / "mm", "test")) == [COPENHAGEN]


def test_published_counts():
    assert sum(CITY_COUNTS.values()) == TRACK_2.splits["official"].num_scenes["train"] == 1773
    assert TRACK_2.splits["cities"].num_scenes == {"train": 1264, "test": 324, "validation": 185}
    assert TRACK_2.splits["mm_sam"].num_scenes == {"train": 1773 - 216, "test": 216}
    assert sum(TRACK_1.splits["mm_sam"].num_scenes.values()) == TRACK_1.splits["official"].num_scenes["train"] == 3720


def test_random_split_depends_on_seed_and_name_alone():
    names = [f"SV_Berlin_52.{number:04d}_13.5090" for number in range(2000)]
    splits = [random_split(name, 0) for name in names]
    assert [random_split(name, 0) for name in names[::-1]] == splits[::-1]
    assert splits != [random_split(name, 1) for name in names]
    shares = [splits.count(split) / 2000 for split in ("train", "validation", "test")]
    np.testing.assert_allclose(shares, [0.7, 0.1, 0.2], atol=0.03)  # three standard deviations
    # pinned: a split of ours must never move
    assert [random_split(stem, 0) for stem in (BERLIN, DELHI, BRASILIA)] == ["validation", "train", "train"]
    assert random_split(COPENHAGEN, 3) == "test"


def test_random_split_covers_the_training_tiles_once(shipped):
    reader = Dfc2023Reader(dataclasses.replace(Dfc2023Reader().options, split="random", choices={"split_seed": 3}))
    scenes = reader.find(shipped).scenes
    assert sorted(scene.name for scene in scenes) == sorted(TRAIN_STEMS)
    assert {scene.name: scene.split for scene in scenes} == {stem: random_split(stem, 3) for stem in TRAIN_STEMS}


@pytest.mark.parametrize(
    ("stem", "place"),
    [
        ("SV_NewYork_40.7387_-73.9989", ("SV", "NewYork")),
        ("GF2_Brasilia_-15.8652_-47.9337", ("GF2", "Brasilia")),
        ("P_0420", None),
    ],
)
def test_sensor_and_city_of_a_name(stem, place):
    assert sensor_and_city(stem) == place


def test_track_1_has_roof_types_and_no_heights(shipped, tmp_path):
    assert run(shipped, "--output", tmp_path / "out", "--track", "1", "--split", "official") == 0
    metadata = DatasetMetadata.load(tmp_path / "out")
    assert metadata.modalities == ["rgb", "sar"] and len(metadata.class_names) == 13
    rows = decoded(tmp_path / "out", "train")
    assert len(rows) == 3
    label = rows[BERLIN][1]
    assert [metadata.class_names[value] for value in np.unique(label)] == [
        "background",
        "flat_roof",
        "pyramid_roof",
        "other",
    ]
    assert (label == 9).sum() == 100  # the run lengths of category 9
    assert list(decoded(tmp_path / "out", "test")) == ["P_0420"]


def test_corrected_annotations_of_track_1_come_first(shipped, tmp_path):
    stems = (BERLIN, EMPTY, "SV_Suzhou_31.2990_120.5853")
    corrected = coco_file(stems, roofs=True)
    corrected["annotations"] = corrected["annotations"][:1]
    write_json(shipped / "roof_fine_train_corrected.json", corrected)
    run(shipped, "--output", tmp_path / "out", "--track", "1", "--split", "mm_sam")
    assert np.unique(decoded(tmp_path / "out", "train")[BERLIN][1]).tolist() == [0, 1]


def test_folder_without_a_track_in_its_name_is_told_by_its_annotations(tmp_path, any_number):
    base = write_shipped(tmp_path / "shipped")
    (base / "track1").rename(tmp_path / "dfc23")
    assert run(tmp_path / "dfc23", "--output", tmp_path / "out", "--track", "1", "--split", "mm_sam") == 0
    assert len(decoded(tmp_path / "out", "train")) == 2
    assert run(tmp_path / "dfc23", "--check", "--split", "cities") == 1


def test_check_tells_counts_by_city_and_what_is_published(tmp_path, capsys):
    assert run(write_shipped(tmp_path), "--check") == 1
    report = capsys.readouterr().out
    assert "split train: 6 of 1773 published scenes are there" in report
    assert "split test: 1 of 605 published scenes are there. Get track2_test_data.zip" in report
    assert "Berlin 1 of 566" in report
    assert "8 instances; 1 tiles without one, which are all background (published: 125153 and 3)" in report


@pytest.mark.parametrize(
    ("track", "split", "missing"),
    [
        (2, "random", "all splits: 6 of 1773 published scenes are there. Get track2.zip"),
        (2, "cities", "split test: 1 of 324 published scenes are there"),
        (2, "mm_sam", "split train: 5 of 1557 published scenes are there"),
        (1, "random", "all splits: 3 of 3720 published scenes are there. Get track1.zip"),
        (1, "cities", "all splits: 3 of 3720 published scenes are there"),
        (1, "mm_sam", "split test: 1 of 751 published scenes are there"),
    ],
)
def test_a_part_is_never_complete_whatever_the_split(tmp_path, capsys, track, split, missing):
    source = write_shipped(tmp_path)
    assert run(source, "--check", "--split", split, "--track", track) == 1
    report = capsys.readouterr().out
    assert missing in report and "not complete, see above" in report
    if split == "random":
        total = missing.split()[4]
        assert f"{total:>11}" in next(line for line in report.splitlines() if line.startswith("all "))
    assert run(source, "--output", tmp_path / "out", "--split", split, "--track", track) == 2
    assert missing in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_damaged_files_are_named_and_the_rest_is_checked(shipped, tmp_path, capsys):
    train = shipped / "track2" / "train"
    truncated = train / "rgb" / f"{DELHI}.tif"
    truncated.write_bytes(truncated.read_bytes()[:-3000])
    resized = train / "sar" / f"{EMPTY}.tif"
    Image.fromarray(np.ones((SIZE, SIZE - 1), dtype=np.float32)).save(resized)
    grey = train / "rgb" / f"{SYDNEY}.tif"
    Image.fromarray(np.ones((SIZE, SIZE), dtype=np.uint8)).save(grey)
    (train / "dsm" / f"{BRASILIA}.tif").unlink()
    content = coco_file(TRAIN_STEMS)
    content["annotations"][1]["segmentation"]["counts"][0] += 1
    path = shipped / "track2" / "buildings_only_train.json"
    write_json(path, content)
    assert run(shipped, "--check", "--split", "cities") == 1
    report = capsys.readouterr().out
    assert "Missing (1)" in report and "Damaged (4)" in report
    assert f"train/dsm/{BRASILIA}.tif: is not there" in report
    assert f"{truncated}: " in report
    assert f"{resized}: has 63 x 64 pixels, its scene 64 x 64" in report
    assert f"{grey}: holds bands of 1 x uint8, expected 3 x uint8" in report
    assert f"{path}: {BERLIN}: Annotation 1: Run lengths add up to 4097 pixels" in report
    assert run(shipped, "--output", tmp_path / "out", "--split", "cities", "--allow_missing") == 2
    assert not (tmp_path / "out").exists()
    assert run(shipped, "--output", tmp_path / "out", "--split", "cities", "--allow_missing", "--skip_damaged") == 0
    rows = decoded(tmp_path / "out", "train")
    assert list(rows) == [BRASILIA] and rows[BRASILIA][0]["ndsm"] is None


def test_a_tile_that_the_split_cannot_place_is_damage(shipped, tmp_path, capsys):
    for column in ("rgb", "sar", "dsm"):
        folder = shipped / "track2" / "train" / column
        shutil.copy(folder / f"{DELHI}.tif", folder / "P_0420.tif")
    assert run(shipped, "--output", tmp_path / "out", "--split", "cities") == 2
    assert "P_0420: has no city in its name" in capsys.readouterr().err
    assert run(shipped, "--output", tmp_path / "out", "--split", "cities", "--skip_damaged") == 0
    assert "skipped because of damage: train/P_0420" in capsys.readouterr().out
    assert set(decoded(tmp_path / "out", "train")) == {BERLIN, DELHI, BRASILIA}
    assert json.loads((tmp_path / "out" / "conversion.json").read_text())["skipped"] == ["train/P_0420"]
    options = {"data_dir": str(shipped), "cache_dir": str(tmp_path / "cache"), "split": "cities"}
    with pytest.raises(ValueError, match=r"P_0420: has no city in its name(.|\n)*exclude=\['P_0420'\]"):
        Dfc2023(**options).as_streaming_dataset(split="train")
    rows = Dfc2023(**options, exclude=["P_0420"]).as_streaming_dataset(split="train")
    assert {row["id"] for row in rows} == {BERLIN, DELHI, BRASILIA}


def test_reader_and_scenes_reach_other_processes(shipped):
    reader = Dfc2023Reader()
    scene = next(scene for scene in reader.find(shipped).scenes if scene.name == BERLIN)
    check_scene(reader, scene)
    copy, there = pickle.loads(pickle.dumps((reader, scene)))
    check = check_scene(copy, there)
    assert check.problems == [] and check.class_pixels == [SIZE**2 - 178, 178]


def test_annotations_that_do_not_parse_stop_the_conversion(shipped, tmp_path, capsys):
    path = shipped / "track2" / "buildings_only_train.json"
    path.write_text(path.read_text()[:-100])
    assert run(shipped, "--check", "--split", "cities") == 1
    report = capsys.readouterr().out
    assert f"{path}: does not parse as JSON" in report and "train         " in report
    assert run(shipped, "--output", tmp_path / "out", "--split", "cities", "--skip_damaged") == 2
    assert "the training tiles have no labels" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_tiles_and_annotations_that_do_not_match(shipped, capsys):
    stranger = "SV_Rio_-22.9000_-43.2000"
    content = coco_file([*TRAIN_STEMS[1:], stranger])
    write_json(shipped / "track2" / "buildings_only_train.json", content)
    assert run(shipped, "--check", "--split", "random") == 1
    report = capsys.readouterr().out
    assert f"{BERLIN}: is not among the images of" in report
    assert f"1 of its images have no file, such as {stranger}.tif" in report


def test_nothing_there(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "track2.zip").write_bytes(b"")
    assert run(tmp_path / "empty", "--check") == 1
    assert "It is still packed; unpack it: unzip" in capsys.readouterr().out


def test_declared_nodata_becomes_a_hole(shipped, tmp_path):
    rasterio = pytest.importorskip("rasterio")
    for column, folder, nodata in (("ndsm", "dsm", -9999), ("sar", "sar", 7.5)):
        path = shipped / "track2" / "train" / folder / f"{BRASILIA}.tif"
        values = pixels(BRASILIA)[column]
        values[:4] = nodata
        profile = {"width": SIZE, "height": SIZE, "count": 1, "dtype": "float32", "driver": "GTiff"}
        place = rasterio.Affine(0.5, 0, 500000, 0, -0.5, 5800000)
        with rasterio.open(path, "w", nodata=nodata, crs="EPSG:32633", transform=place, **profile) as target:
            target.write(values, 1)
    run(shipped, "--output", tmp_path / "out", "--split", "cities")
    images, _ = decoded(tmp_path / "out", "train")[BRASILIA]
    for column in ("ndsm", "sar"):
        assert np.isnan(images[column][:4]).all() and np.isfinite(images[column][4:]).all()


def test_modalities_end_inside_training_tiles(shipped, tmp_path):
    run(shipped, "--output", tmp_path / "out", "--split", "cities", "--coverage", "ndsm=1", "--missing", "sar=1")
    for images, _ in decoded(tmp_path / "out", "train").values():
        assert images["sar"] is None
        assert 0 < np.isnan(images["ndsm"]).mean() < 1
    for images, _ in decoded(tmp_path / "out", "test").values():
        assert np.isfinite(images["ndsm"]).all() and images["sar"] is not None


def test_rows_stream_and_train(shipped, tmp_path):
    run(shipped, "--output", tmp_path / "out", "--split", "official", "--tile_size", "32", "--missing", "ndsm=0.5")
    for split in ("train", "test"):
        assert_streams_the_same(tmp_path / "out", split)
    assert 0 < train_one_step(tmp_path / "out", tmp_path / "model") < np.inf


def test_builder_gives_the_converted_rows(shipped, tmp_path):
    builder = Dfc2023(data_dir=str(shipped), cache_dir=str(tmp_path / "cache"), split="cities", track=2)
    builder.download_and_prepare()
    rows = builder.as_dataset(split="train")
    assert rows["id"][:] == sorted([BERLIN, DELHI, BRASILIA])
    labels = {row["id"]: np.array(row["label"]) for row in rows}
    np.testing.assert_array_equal(labels[BERLIN], expected_buildings(BERLIN))
    stream = builder.as_streaming_dataset(split="test")
    assert [row["id"] for row in stream] == [COPENHAGEN]


def test_conversion_is_recorded(shipped, tmp_path):
    run(shipped, "--output", tmp_path / "out", "--split", "official")
    record = json.loads((tmp_path / "out" / "conversion.json").read_text())
    assert record["unlabelled"] == ["test/P_0420", "validation/P_0000", "validation/P_0003"]
    assert record["options"]["choices"] == {"track": 2, "sar": "linear", "split_seed": 0}


def test_every_public_division_has_a_count_to_check_against():
    for description in (TRACK_1, TRACK_2, DELIVER, POTSDAM, VAIHINGEN):
        for name, protocol in description.splits.items():
            assert protocol.num_scenes or protocol.total, f"{description.name}, {name}"
