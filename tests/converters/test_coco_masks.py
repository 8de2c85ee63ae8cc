"""COCO masks: the run-length forms by hand-worked cases, polygons by pixel centres, annotation files."""

import json

import numpy as np
import pytest
from dfc2023_fixtures import compress, runs_of

from sgma_hf.converters.coco_masks import (
    CocoImage,
    decode_runs,
    decompress_counts,
    fill_polygon,
    read_annotations,
    segmentation_mask,
)


# 3 rows x 4 columns, not symmetric in any way: a row-major reading gives another picture.
FLAG = np.array([[0, 1, 1, 0], [0, 1, 0, 0], [0, 0, 0, 1]], dtype=bool)
SMALL = np.array([[0, 0, 0, 1, 0], [0, 1, 0, 0, 0], [0, 1, 1, 0, 0], [0, 0, 0, 0, 1]], dtype=bool)
FLAG_RUNS = [3, 2, 1, 1, 4, 1]  # down the columns: 000 | 110 | 100 | 001


def test_uncompressed_runs_go_down_the_columns():
    np.testing.assert_array_equal(decode_runs(FLAG_RUNS, (3, 4)), FLAG)
    assert not np.array_equal(decode_runs(FLAG_RUNS, (4, 3)).reshape(3, 4), FLAG)


def test_compressed_runs_by_hand():
    # 3, 2, 1 as they are; then 1 - 2 = -1 (31 -> chr(79)), 4 - 1 = 3, 1 - 1 = 0
    assert decompress_counts("321O30") == FLAG_RUNS
    np.testing.assert_array_equal(decode_runs("321O30", (3, 4)), FLAG)
    np.testing.assert_array_equal(decode_runs(b"321O30", (3, 4)), FLAG)


def test_compressed_numbers_of_several_characters():
    # 16 = 10000: its top bit would be a sign, so a zero follows: 16 + 32 + 48 = chr(96), then chr(48).
    assert decompress_counts("`0") == [16]
    # 3684 = 3 * 1024 + 19 * 32 + 4: 4 + 80 = 'T', 19 + 80 = 'c', 3 + 48 = '3'
    assert decompress_counts("Tc3") == [3684]
    # -17 = ...1 01111: 15 + 80 = '_', then 31 + 48 = 'O'; 20, 40, 20, 40 - 17
    assert decompress_counts("d0X1d0_O") == [20, 40, 20, 23]


def test_text_of_another_encoder_is_read():
    # As pycocotools 2.0.11 wrote these two masks.
    np.testing.assert_array_equal(decode_runs("523ON050", (4, 5)), SMALL)
    block = np.zeros((512, 512), dtype=bool)
    block[100:300, 7:400] = True
    np.testing.assert_array_equal(decode_runs("Tc3X6h9" + "0" * 783 + "llg1", (512, 512)), block)


@pytest.mark.parametrize("density", [0.0, 0.1, 0.5, 0.98, 1.0])
def test_round_trip_of_random_masks(density):
    generator = np.random.default_rng(7)
    for _ in range(20):
        mask = generator.random(generator.integers(1, 40, 2)) < density
        np.testing.assert_array_equal(decode_runs(runs_of(mask), mask.shape), mask)
        np.testing.assert_array_equal(decode_runs(compress(runs_of(mask)), mask.shape), mask)


def test_damaged_runs_are_refused():
    with pytest.raises(ValueError, match="add up to 12 pixels; the mask has 4 x 4"):
        decode_runs(FLAG_RUNS, (4, 4))
    with pytest.raises(ValueError, match="not negative"):
        decode_runs([13, -1], (3, 4))
    with pytest.raises(ValueError, match="character '!'"):
        decompress_counts("32!")
    with pytest.raises(ValueError, match="end inside a number"):
        decompress_counts("32`")


def test_a_polygon_holds_the_pixels_whose_centres_lie_inside():
    square = np.zeros((5, 6), dtype=bool)
    square[1:4, 2:5] = True
    np.testing.assert_array_equal(fill_polygon([2, 1, 5, 1, 5, 4, 2, 4], (5, 6)), square)
    np.testing.assert_array_equal(fill_polygon([1.6, 0.6, 5.4, 0.6, 5.4, 4.4, 1.6, 4.4], (5, 6)), square)
    triangle = fill_polygon([0, 0, 4, 0, 0, 4], (4, 4))
    # the hypotenuse runs through centres, which count as not yet inside on its right
    np.testing.assert_array_equal(triangle, [[1, 1, 1, 0], [1, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]])


def test_polygons_are_cut_off_at_the_border_and_may_be_concave():
    np.testing.assert_array_equal(fill_polygon([-9, -9, 1, -9, 1, 99, -9, 99], (2, 3)), [[1, 0, 0], [1, 0, 0]])
    assert not fill_polygon([10, 10, 20, 10, 20, 20], (5, 5)).any()
    u_shape = fill_polygon([0, 0, 1, 0, 1, 2, 2, 2, 2, 0, 3, 0, 3, 3, 0, 3], (3, 3))
    np.testing.assert_array_equal(u_shape, [[1, 0, 1], [1, 0, 1], [1, 1, 1]])


def test_several_polygons_are_united_and_slivers_set_nothing():
    mask = segmentation_mask([[0, 0, 2, 0, 2, 1, 0, 1], [1, 0, 3, 0, 3, 1, 1, 1], [0, 0, 3, 3]], (2, 4))
    np.testing.assert_array_equal(mask, [[1, 1, 1, 0], [0, 0, 0, 0]])
    assert not segmentation_mask([], (2, 4)).any()


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ([[0, 0, 1, 1, 2]], "finite numbers"),
        ([[0, 0, 1, float("nan"), 2, 2]], "finite numbers"),
        ([["a", 0]], "flat list of numbers"),
        ({"size": [4, 3], "counts": [12]}, r"The mask is \[4, 3\]"),
        ({"size": [3, 4]}, "has `counts`"),
        ("poly", "expected a list of polygons"),
    ],
)
def test_other_segmentations_are_refused(segmentation, message):
    with pytest.raises(ValueError, match=message):
        segmentation_mask(segmentation, (3, 4))


def test_label_is_the_union_of_instances_in_any_encoding():
    image = CocoImage(
        (3, 4),
        [
            (1, {"size": [3, 4], "counts": FLAG_RUNS}),
            (1, {"size": [3, 4], "counts": "321O30"}),
            (2, [[0, 1, 1, 1, 1, 3, 0, 3]]),
        ],
    )
    np.testing.assert_array_equal(image.label({1: 1, 2: 1}), [[0, 1, 1, 0], [1, 1, 0, 0], [1, 0, 0, 1]])
    np.testing.assert_array_equal(image.label({1: 1, 2: 7}), [[0, 1, 1, 0], [7, 1, 0, 0], [7, 0, 0, 1]])
    with pytest.raises(ValueError, match="has category 2"):
        image.label({1: 1})


def test_annotation_file_is_read_by_stem(tmp_path):
    path = tmp_path / "buildings.json"
    images = [
        {"file_name": "a_-1.5.tif", "height": 3, "width": 4, "id": 7},
        {"file_name": "b.tif", "height": 3, "width": 4, "id": 0},
    ]
    annotations = [{"id": 1, "image_id": 7, "category_id": 1, "segmentation": [[0, 0, 1, 0, 1, 1, 0, 1]]}]
    path.write_text(json.dumps({"images": images, "annotations": annotations}))
    found = read_annotations(path)
    assert list(found) == ["a_-1.5", "b"]
    assert found["a_-1.5"].label({1: 1}).sum() == 1
    assert found["b"].annotations == [] and not found["b"].label({1: 1}).any()
    path.write_text(json.dumps({"images": images}))
    assert read_annotations(path) is None


def test_broken_annotation_files_are_named(tmp_path):
    path = tmp_path / "buildings.json"
    path.write_text('{"images": [')
    with pytest.raises(ValueError, match=r"buildings\.json does not parse as JSON"):
        read_annotations(path)
    path.write_text('{"images": [], "annotations": [{"image_id": 3, "category_id": 1, "segmentation": []}]}')
    with pytest.raises(ValueError, match=r"buildings\.json is no COCO annotation file"):
        read_annotations(path)
    path.write_text("[1]")
    with pytest.raises(ValueError, match=r"buildings\.json is no COCO annotation file"):
        read_annotations(path)
