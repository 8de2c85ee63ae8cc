"""DELIVER: from a folder laid out as published to rows, a check, a stream and a training step."""

import dataclasses
import shutil

import numpy as np
import pytest
from converted_rows import assert_streams_the_same, decoded, train_one_step
from deliver_fixtures import FRAME, GREY_LIDAR, SCENES, SIXTEEN_BIT, SIZE, file_of, pixels, stored_ids, write_deliver
from PIL import Image

from sgma_hf.converters import deliver
from sgma_hf.converters.deliver import (
    CLASSES,
    CONDITION_COUNTS,
    DELIVER,
    NORMAL_AND_CORNER,
    Deliver,
    DeliverReader,
    corner_case,
    nearest_indices,
    raw_depth,
    three_channels,
    train_ids,
)
from sgma_hf.data.metadata import DatasetMetadata
from sgma_hf.data.rows import load_rows


MOTION, LOW_RESOLUTION = SCENES[1], SCENES[3]


@pytest.fixture
def source(tmp_path):
    return write_deliver(tmp_path)


@pytest.fixture
def as_published(monkeypatch):
    """The tiny set is the whole one."""
    numbers = {"train": 3, "validation": 2, "test": 2}
    protocol = dataclasses.replace(DELIVER.splits["official"], num_scenes=numbers)
    monkeypatch.setattr(DeliverReader, "description", dataclasses.replace(DELIVER, splits={"official": protocol}))


def run(source, *arguments):
    return deliver.main(["--source", str(source), "--num_proc", "1", *map(str, arguments)])


def row_id(scene):
    return "/".join([*scene, FRAME])


def test_every_folder_becomes_its_column(source, tmp_path, as_published):
    assert run(source, "--output", tmp_path / "out") == 0
    splits = {"train": SCENES[:3], "validation": SCENES[3:5], "test": SCENES[5:]}
    for split, scenes in splits.items():
        rows = decoded(tmp_path / "out", split)
        assert list(rows) == sorted(map(row_id, scenes))  # the same frame number in every scene
        for scene in scenes:
            images, label = rows[row_id(scene)]
            stored = pixels(scene)
            np.testing.assert_array_equal(images["rgb"], stored["img"][..., :3])
            np.testing.assert_array_equal(images["depth"], stored["hha"])
            lidar = np.stack([stored["lidar"]] * 3, -1) if scene == GREY_LIDAR else stored["lidar"]
            np.testing.assert_array_equal(images["lidar"], lidar)
            ids = stored_ids(scene).astype(int)
            np.testing.assert_array_equal(label, np.where((ids == 0) | (ids == 255), 255, ids - 1))
            assert label[0, :6].tolist() == [255, 0, 24, 255, 1, 6]


def test_events_of_half_the_size_are_repeated(source, tmp_path, as_published):
    run(source, "--output", tmp_path / "out")
    images, _ = decoded(tmp_path / "out", "validation")[row_id(LOW_RESOLUTION)]
    small = pixels(LOW_RESOLUTION)["event"]
    assert small.shape == (SIZE // 2, SIZE // 2, 3)
    np.testing.assert_array_equal(images["event"], small.repeat(2, axis=0).repeat(2, axis=1))
    images, _ = decoded(tmp_path / "out", "train")[row_id(MOTION)]
    np.testing.assert_array_equal(images["event"], pixels(MOTION)["event"])


def test_events_are_resized_alike_in_tiles(source, tmp_path, as_published):
    run(source, "--output", tmp_path / "whole")
    run(source, "--output", tmp_path / "tiles", "--tile_size", 12)
    whole, _ = decoded(tmp_path / "whole", "validation")[row_id(LOW_RESOLUTION)]
    tiles = decoded(tmp_path / "tiles", "validation")
    assert len(tiles) == 2 * 9
    images, label = tiles[f"{row_id(LOW_RESOLUTION)}_y00020_x00012"]
    np.testing.assert_array_equal(images["event"], whole["event"][20:32, 12:24])
    assert label.shape == (12, 12)


def test_depth_as_stored_keeps_8_and_16_bits(source, tmp_path, as_published):
    assert run(source, "--output", tmp_path / "out", "--depth", "depth") == 0
    metadata = DatasetMetadata.load(tmp_path / "out")
    assert metadata.modality_dtypes[1] == "uint16" and metadata.nodata[1] == [0.0]
    rows = decoded(tmp_path / "out", "train")
    for scene in SCENES[:3]:
        depth = rows[row_id(scene)][0]["depth"]
        assert depth.dtype == np.uint16
        np.testing.assert_array_equal(depth, pixels(scene)["depth"])
    assert rows[row_id(SIXTEEN_BIT)][0]["depth"].max() > 255


def test_official_classes_and_colours():
    metadata = DeliverReader().metadata()
    assert len(metadata.class_names) == 25
    assert metadata.class_names[0] == "Building" and metadata.palette[0] == [70, 70, 70]
    assert metadata.class_names[24] == "Truck" and metadata.palette[24] == [0, 0, 70]
    assert metadata.palette[list(CLASSES).index("Road")] == [128, 64, 128]


def test_published_counts_add_up():
    for split, total in DELIVER.splits["official"].num_scenes.items():
        assert sum(CONDITION_COUNTS[split]) == sum(NORMAL_AND_CORNER[split]) == total
    assert sum(DELIVER.splits["official"].num_scenes.values()) == 7885


def test_semantic_values():
    stored = np.array([[[0, 9, 9, 9], [1, 9, 9, 9], [25, 0, 0, 0], [255, 1, 1, 1]]], dtype=np.uint8)
    np.testing.assert_array_equal(train_ids(stored), [[255, 0, 24, 255]])
    with pytest.raises(ValueError, match=r"holds the ids \[26, 254\]"):
        train_ids(np.array([[[26], [254], [3]]], dtype=np.uint8))


def test_channels():
    grey = np.array([[[5], [6]]], dtype=np.uint8)
    np.testing.assert_array_equal(three_channels(grey), [[[5, 5, 5], [6, 6, 6]]])
    np.testing.assert_array_equal(three_channels(np.uint8([[[1, 2, 3, 255]]])), [[[1, 2, 3]]])
    with pytest.raises(ValueError, match="2 channels"):
        three_channels(np.zeros((2, 2, 2), dtype=np.uint8))
    np.testing.assert_array_equal(raw_depth(np.int32([[[70], [65535]]])), [[70, 65535]])
    np.testing.assert_array_equal(raw_depth(np.uint8([[[7, 7, 7, 255]]])), [[7]])
    with pytest.raises(ValueError, match="channels that differ"):
        raw_depth(np.uint8([[[7, 7, 8]]]))
    with pytest.raises(ValueError, match="16 bits"):
        raw_depth(np.int32([[[65536]]]))


def test_nearest_pixel_lies_at_the_centre():
    assert nearest_indices(0, 6, size=6, own_size=3).tolist() == [0, 0, 1, 1, 2, 2]
    assert nearest_indices(2, 3, size=5, own_size=2).tolist() == [1, 1, 1]  # 2.5 x 2 / 5 = 1.0, 1.4, 1.8
    assert nearest_indices(0, 1042, size=1042, own_size=512).max() == 511


@pytest.mark.parametrize(
    ("scene", "case"),
    [
        ("MAP_3_point9_motionblur", "motionblur"),
        ("MAP_4_point12_eventlowres", "eventlowres"),
        ("MAP_10_point102", None),
    ],
)
def test_corner_case_is_part_of_the_scenes_name(scene, case):
    assert corner_case(scene) == case


def test_check_counts_by_condition_and_kind(source, capsys, as_published):
    assert run(source, "--check") == 0
    report = capsys.readouterr().out
    assert "cloud 1 of 794, fog 0 of 795, night 1 of 797, rain 0 of 799, sun 1 of 798" in report
    assert "normal 1 of 2585, corner cases 2 of 1398" in report
    assert "complete and sound" in report


def test_check_says_how_many_are_missing(source, capsys):
    assert run(source, "--check") == 1
    report = capsys.readouterr().out
    assert "split train: 3 of 3983 published scenes are there" in report
    assert "split test: 2 of 1897" in report


def test_absent_files_and_folders_are_named(source, tmp_path, capsys, as_published):
    file_of(source / "DELIVER", "event", MOTION).unlink()
    shutil.rmtree(source / "DELIVER" / "hha")
    assert run(source, "--check") == 1
    report = capsys.readouterr().out
    assert f"event/{row_id(MOTION)}_event_front.png: is not there" in report
    assert "folder hha/: has no images of this kind at all. Pass --depth depth" in report
    assert run(source, "--output", tmp_path / "out") == 2 and not (tmp_path / "out").exists()
    assert run(source, "--output", tmp_path / "out", "--allow_missing") == 0
    rows = decoded(tmp_path / "out", "train")
    assert all(images["depth"] is None for images, _ in rows.values())
    assert [name for name, (images, _) in rows.items() if images["event"] is None] == [row_id(MOTION)]


def test_damaged_files_are_named_and_the_rest_is_checked(source, tmp_path, capsys, as_published):
    base = source / "DELIVER"
    truncated = file_of(base, "lidar", SCENES[0])
    truncated.write_bytes(truncated.read_bytes()[:-40])
    unknown = file_of(base, "semantic", SCENES[5])
    Image.fromarray(np.full((SIZE, SIZE, 4), 77, dtype=np.uint8)).save(unknown)
    resized = file_of(base, "hha", SCENES[4])
    Image.fromarray(np.zeros((SIZE, SIZE - 2, 3), dtype=np.uint8)).save(resized)
    assert run(source, "--check") == 1
    report = capsys.readouterr().out
    assert "Damaged (3)" in report
    assert f"{truncated}: is damaged" in report
    assert f"{unknown}: holds the ids [77]" in report
    assert f"{resized}: has 30 x 32 pixels, its scene 32 x 32" in report
    assert run(source, "--output", tmp_path / "out") == 2 and not (tmp_path / "out").exists()
    assert run(source, "--output", tmp_path / "out", "--skip_damaged") == 0
    assert row_id(SCENES[0]) not in decoded(tmp_path / "out", "train")
    assert len(decoded(tmp_path / "out", "test")) == 1


def test_a_folder_too_low_is_told(source, monkeypatch, capsys, as_published):
    monkeypatch.chdir(source / "DELIVER" / "img")
    assert run(".", "--check") == 1
    report = capsys.readouterr().out
    assert f"Did you mean --source {source / 'DELIVER'}?" in report and "folder semantic/" in report


def test_nothing_there(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "DELIVER.zip").write_bytes(b"")
    assert run(tmp_path / "empty", "--check") == 1
    assert "It is still packed; unpack it: unzip" in capsys.readouterr().out


def test_modalities_can_be_taken_from_training_rows(source, tmp_path, as_published):
    assert run(source, "--output", tmp_path / "out", "--missing", "lidar=1,event=1") == 0
    rows = decoded(tmp_path / "out", "train")
    assert all(images["lidar"] is None and images["event"] is None for images, _ in rows.values())
    for split in ("validation", "test"):
        rows = decoded(tmp_path / "out", split)
        assert all(image is not None for images, _ in rows.values() for image in images.values())


def test_rows_stream_and_train(source, tmp_path, as_published):
    run(source, "--output", tmp_path / "out")
    assert_streams_the_same(tmp_path / "out", "train")
    assert 0 < train_one_step(tmp_path / "out", tmp_path / "model") < np.inf


def test_builder_gives_the_converted_rows(source, tmp_path, as_published):
    builder = Deliver(data_dir=str(source / "DELIVER"), cache_dir=str(tmp_path / "cache"), depth="depth")
    builder.download_and_prepare()
    rows = builder.as_dataset(split="test")
    assert rows["id"][:] == [row_id(scene) for scene in SCENES[5:]]
    np.testing.assert_array_equal(np.array(rows[0]["depth"]), pixels(SCENES[5])["depth"])
    streamed = next(iter(builder.as_streaming_dataset(split="validation")))
    assert streamed["id"] == row_id(LOW_RESOLUTION)
    assert np.array(streamed["event"]).shape == (SIZE, SIZE, 3)


def test_frames_of_a_scene_are_one_sequence(source, tmp_path, as_published):
    run(source, "--output", tmp_path / "out", "--tile_size", 16)
    rows = load_rows(tmp_path / "out", "train")
    first = "/".join(SCENES[0])
    found = [f"{first}_y00000_x00000", f"{first}_y00000_x00016", f"{first}_y00016_x00000", f"{first}_y00016_x00016"]
    assert rows["sequence"][:4] == found and len(rows) == 4 * 3
    assert set(rows["label_date"]) == {None}
