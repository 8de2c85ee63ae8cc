"""The procedural scenes: reproducible, and holding the conflicts they promise."""

import numpy as np
import pytest

from sgma_hf.converters.demo_scenes import demo_metadata, demo_rows, main, split_sizes
from sgma_hf.converters.scene_painting import (
    BUILDING,
    CAR,
    IMPERVIOUS,
    LOW_VEGETATION,
    PIXEL_SIZE,
    TREE,
    _shadows,
    paint_scene,
)
from sgma_hf.data.metadata import DatasetMetadata
from sgma_hf.data.rows import decode_row, load_rows
from sgma_hf.model.image_transforms_sgma import valid_pixels


@pytest.fixture(scope="module")
def scenes():
    return [paint_scene(np.random.default_rng([7, index]), 256) for index in range(6)]


def above_ground(scene):
    """Height over a plane fitted to street and lawn."""
    size = scene.label.shape[0]
    y, x = np.mgrid[0:size, 0:size] / size
    flat = np.isin(scene.label, (IMPERVIOUS, CAR))
    design = np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], axis=-1)
    plane, *_ = np.linalg.lstsq(design[flat], scene.dsm[flat], rcond=None)
    return scene.dsm - design @ plane


def means(scenes, values_of, label):
    """Mean of a quantity over one class, scene by scene."""
    return np.array([values_of(scene)[scene.label == label].mean() for scene in scenes])


def test_dtypes_and_ranges(scenes):
    for scene in scenes:
        assert scene.rgb.shape == (256, 256, 3) and scene.rgb.dtype == np.uint8
        assert scene.dsm.dtype == np.float32 and scene.nir.dtype == np.uint8 and scene.label.dtype == np.uint8
        assert scene.rgb.min() >= 1 and scene.nir.min() >= 1  # 0 is nodata
        assert np.isfinite(scene.dsm).all()
        assert set(np.unique(scene.label)) == {IMPERVIOUS, BUILDING, LOW_VEGETATION, TREE, CAR}
        shares = np.bincount(scene.label.ravel()) / scene.label.size
        assert shares.min() > 0.005 and shares.max() < 0.75


def test_height_tells_roofs_from_streets_and_lawn_is_flat(scenes):
    roofs = means(scenes, above_ground, BUILDING)
    lawns = means(scenes, above_ground, LOW_VEGETATION)
    trees = means(scenes, above_ground, TREE)
    assert (roofs > 2.5).all() and (trees > 2.5).all() and (np.abs(lawns) < 1.0).all()


def test_near_infrared_tells_plants_from_stone_and_nothing_else(scenes):
    def nir(scene):
        return scene.nir.astype(float)

    street, roof, lawn, tree = (means(scenes, nir, label) for label in (IMPERVIOUS, BUILDING, LOW_VEGETATION, TREE))
    assert (np.minimum(lawn, tree) > 1.4 * np.maximum(street, roof)).all()
    assert (np.abs(street / roof - 1) < 0.25).all() and (np.abs(lawn / tree - 1) < 0.3).all()


def test_many_roofs_have_the_colour_of_the_street(scenes):
    for scene in scenes:
        streets = scene.rgb[scene.label == IMPERVIOUS].astype(float)
        grey, spread = np.median(streets, axis=0), streets.std(axis=0)
        like_street = (np.abs(scene.rgb.astype(float) - grey) < 1.5 * spread).all(axis=-1)
        assert like_street[scene.label == BUILDING].mean() > 0.25


def test_cars_are_in_the_colour_image_only(scenes):
    for scene in scenes:
        cars, streets = scene.label == CAR, scene.label == IMPERVIOUS
        height = above_ground(scene)
        assert abs(height[cars].mean() - height[streets].mean()) < 0.5
        assert abs(scene.nir[cars].mean() / scene.nir[streets].mean() - 1) < 0.2
        assert scene.rgb[cars].astype(float).std() > 1.4 * scene.rgb[streets].astype(float).std()


def test_ground_and_light_vary_between_scenes(scenes):
    ground = np.array([np.median(scene.dsm) for scene in scenes])
    light = np.array([scene.rgb[scene.label == IMPERVIOUS].mean() for scene in scenes])
    assert np.ptp(ground) > 100 and np.ptp(light) > 10


def test_shadows_match_a_plain_ray_march():
    height = np.zeros((12, 12), dtype=np.float32)
    height[5, 5] = 4.0
    elevation = np.deg2rad(45.0)
    shaded = _shadows(height, np.array([0.0, -1.0]), elevation)  # the sun stands in the north: rows above
    expected = np.zeros((12, 12), dtype=bool)
    for row in range(6, 12):
        expected[row, 5] = 4.0 - (row - 5) * PIXEL_SIZE * np.tan(elevation) > 0
    assert expected[:, 5].sum() == 6
    np.testing.assert_array_equal(shaded, expected)


def test_the_same_seed_gives_the_same_rows_and_more_tiles_go_on():
    first = list(demo_rows(num_tiles=7, tile_size=32, seed=3))
    again = list(demo_rows(num_tiles=7, tile_size=32, seed=3))
    longer = list(demo_rows(num_tiles=14, tile_size=32, seed=3))
    other = list(demo_rows(num_tiles=7, tile_size=32, seed=4))
    for row, same in zip(first, again, strict=True):
        assert row[:2] == same[:2]
        np.testing.assert_array_equal(row[3], same[3])
        for name in row[2]:
            np.testing.assert_array_equal(row[2][name], same[2][name])
    np.testing.assert_array_equal(first[0][3], longer[0][3])
    assert (first[0][3] != other[0][3]).any()
    assert len({row[1] for row in longer}) == 14


def test_splits_share_no_scene_and_only_training_is_incomplete():
    rows = list(demo_rows(num_tiles=40, tile_size=32, missing=0.5, coverage=0.9))
    assert [sum(row[0] == split for row in rows) for split in ("train", "validation", "test")] == [28, 6, 6]
    nodata = dict(zip(("rgb", "dsm", "nir"), demo_metadata().nodata, strict=True))
    lacking = cut = 0
    for split, _, images, label in rows:
        covered = [valid_pixels(array, nodata[name]) for name, array in images.items() if array is not None]
        whole = all(mask.all() for mask in covered) and len(covered) == 3
        assert whole or split == "train"
        assert np.any(covered, axis=0).all()  # every place is seen by something
        assert label.shape == (32, 32)
        lacking += len(covered) < 3
        cut += any(not mask.all() for mask in covered)
    assert lacking >= 5 and cut >= 3


def test_complete_on_request():
    rows = demo_rows(num_tiles=12, tile_size=32, missing=0, coverage=0)
    assert all(array is not None for row in rows for array in row[2].values())


def test_bad_numbers_are_refused():
    with pytest.raises(ValueError, match="2 tiles cannot fill"):
        split_sizes(2)
    for name, value in {"tile_size": 16, "missing": 1.5, "coverage": -1, "seed": -1}.items():
        with pytest.raises(ValueError, match=name):
            next(demo_rows(num_tiles=6, **{name: value}))


def test_command_writes_a_dataset(tmp_path, capsys):
    out = tmp_path / "demo"
    assert main(["--output", str(out), "--tiles", "8", "--tile_size", "32", "--seed", "1"]) == 0
    assert "train 6, validation 1, test 1 rows" in capsys.readouterr().out
    metadata = DatasetMetadata.load(out)
    assert metadata.modalities == ["rgb", "dsm", "nir"] and metadata.units == [None, "m", None]
    assert sum(metadata.statistics["class_pixels"]) == 6 * 32 * 32
    expected = list(demo_rows(num_tiles=8, tile_size=32, seed=1))
    rows = load_rows(out, "train")
    for row, (_, row_id, images, label) in zip(rows, expected[:6], strict=True):
        decoded, decoded_label = decode_row(row, metadata.modalities)
        assert row["id"] == row_id
        np.testing.assert_array_equal(decoded_label, label)
        for name in metadata.modalities:
            np.testing.assert_array_equal(decoded[name], images[name])
    assert main(["--out", str(out), "--tiles", "8", "--size", "32"]) == 2
    assert "--overwrite" in capsys.readouterr().err
