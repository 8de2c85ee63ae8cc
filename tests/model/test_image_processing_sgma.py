"""Tests of the image processor: what goes in by name comes out normalised, masked and on one grid."""

import json
import logging
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from sgma_hf.model.image_processing_sgma import SgmaImageProcessor
from sgma_hf.model.image_transforms_sgma import interpolation_weights, same_extent


NAN = float("nan")


def plain(modalities=("a",), channels=(1,), **kwargs):
    """A processor that leaves numbers as they are."""
    fields = {
        "rescale_factor": 1.0,
        "image_mean": [0.0] * len(modalities),
        "image_std": [1.0] * len(modalities),
        "nodata": [[] for _ in modalities],
        "reference_level": "none",
    }
    return SgmaImageProcessor(list(modalities), list(channels), **(fields | kwargs))


def values_of(processor, raster, **kwargs):
    return processor({"a": raster}, **kwargs)["pixel_values"][0, 0]


# --- what comes out -------------------------------------------------------------------------------------------------


def test_values_masks_and_labels_of_a_hand_worked_batch():
    processor = SgmaImageProcessor(
        ["rgb", "dsm"],
        [3, 1],
        rescale_factor=[0.5, 1.0],
        image_mean=[[1.0, 2.0, 3.0], [10.0]],
        image_std=[[1.0, 2.0, 4.0], [5.0]],
        reference_level="none",
    )
    rgb = np.array([[[2, 4, 6], [4, 8, 14]]], dtype=np.uint8)  # (1, 2, 3)
    batch = processor(
        [{"rgb": rgb, "dsm": None}, {"dsm": np.array([[20.0, 5.0]], np.float32)}],
        [np.array([[0, 1]], np.uint8), None],
    )
    assert batch["pixel_values"].dtype == torch.float32
    assert batch["pixel_values"].tolist() == [
        [[[0.0, 1.0]], [[0.0, 1.0]], [[0.0, 1.0]], [[0.0, 0.0]]],
        [[[0.0, 0.0]], [[0.0, 0.0]], [[0.0, 0.0]], [[2.0, -1.0]]],
    ]
    assert batch["modality_mask"].dtype == torch.bool
    assert batch["modality_mask"].tolist() == [[True, False], [False, True]]
    assert batch["labels"].dtype == torch.int64
    assert batch["labels"].tolist() == [[[0, 1]], [[255, 255]]]


def test_smaller_rows_are_padded_with_false_and_ignore():
    batch = plain()(
        [{"a": np.ones((2, 3), np.float32)}, {"a": np.full((1, 2), 7, np.int16)}],
        [np.zeros((2, 3), np.uint8), np.ones((1, 2), np.uint8)],
    )
    assert batch["pixel_values"][1, 0].tolist() == [[7, 7, 0], [0, 0, 0]]
    assert batch["modality_mask"][1, 0].tolist() == [[True, True, False], [False, False, False]]
    assert batch["modality_mask"][0].all()
    assert batch["labels"][1].tolist() == [[1, 1, 255], [255, 255, 255]]


@pytest.mark.parametrize(
    "dtype", ["uint8", "uint16", ">u2", "int16", "int32", "int64", "float16", "float32", "float64", "bool"]
)
@pytest.mark.parametrize("layout", ["(H, W)", "(1, H, W)", "(H, W, 1)"])
def test_dtypes_and_layouts_give_the_same_numbers(dtype, layout):
    array = np.array([[0, 1, 1], [1, 0, 0]]).astype(dtype)
    array = {"(H, W)": array, "(1, H, W)": array[None], "(H, W, 1)": array[..., None]}[layout]
    assert values_of(plain(), array).tolist() == [[0, 1, 1], [1, 0, 0]]


def test_large_values_of_wide_dtypes_survive():
    assert values_of(plain(), np.array([[65535, 3]], np.uint16)).tolist() == [[65535, 3]]
    assert values_of(plain(), np.array([[-32767, 3]], np.int16)).tolist() == [[-32767, 3]]


def test_channel_axis_is_found_by_the_channel_count():
    processor = plain(["a"], [2])
    array = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    first = processor({"a": array})["pixel_values"][0]
    last = processor({"a": array.transpose(1, 2, 0)})["pixel_values"][0]
    assert first.tolist() == array.tolist() == last.tolist()
    assert processor({"a": torch.from_numpy(array)})["pixel_values"][0].tolist() == array.tolist()


def test_ambiguous_shape_is_channels_last_for_arrays_and_first_for_tensors():
    processor = plain(["a"], [2])
    array = np.arange(12, dtype=np.float32).reshape(2, 3, 2)
    assert processor({"a": array})["pixel_values"][0].tolist() == array.transpose(2, 0, 1).tolist()
    assert processor({"a": torch.from_numpy(array)})["pixel_values"][0].tolist() == array.tolist()
    chosen = processor({"a": array}, input_data_format="channels_first")
    assert chosen["pixel_values"][0].tolist() == array.tolist()


def test_pil_images_paths_and_npy_files(tmp_path):
    processor = plain(["rgb", "dsm"], [3, 1])
    rgb = np.arange(18, dtype=np.uint8).reshape(2, 3, 3)
    dsm = np.array([[1.5, 500.25, -3.0], [0.0, 1.0, 2.0]], np.float32)
    Image.fromarray(rgb).save(tmp_path / "rgb.png")
    Image.fromarray(dsm).save(tmp_path / "dsm.tif")
    np.save(tmp_path / "dsm.npy", dsm)
    expected = [*rgb.transpose(2, 0, 1).tolist(), dsm.tolist()]
    for sample in (
        {"rgb": Image.fromarray(rgb), "dsm": Image.fromarray(dsm)},
        {"rgb": tmp_path / "rgb.png", "dsm": str(tmp_path / "dsm.tif")},
        {"rgb": rgb.tolist(), "dsm": tmp_path / "dsm.npy"},
    ):
        assert processor(sample)["pixel_values"][0].tolist() == expected


def test_defaults_are_those_of_the_table():
    processor = SgmaImageProcessor(["rgb", "dsm_2019", "sar", "thermal"], [3, 1, 2, 1])
    assert processor.image_mean == [[0.485, 0.456, 0.406], [5.0], [-15.0, -15.0], [0.45]]
    assert processor.rescale_factor == [1 / 255, 1.0, 1.0, 1 / 255]
    assert processor.reference_level == ["none", "minimum", "none", "none"]
    assert processor.nodata == [[], [-9999.0, -32768.0], [-9999.0], []]
    assert SgmaImageProcessor().modalities == ["rgb", "dsm", "nir"]
    assert SgmaImageProcessor(["rgb"], [4]).image_mean[0] == pytest.approx([0.449] * 4)


def test_numpy_output():
    batch = plain()({"a": np.ones((2, 2))}, return_tensors="np")
    assert isinstance(batch["pixel_values"], np.ndarray)
    assert batch["pixel_values"].tolist() == [[[[1, 1], [1, 1]]]]


# --- what is missing ------------------------------------------------------------------------------------------------


def test_nan_inf_and_nodata_become_mask():
    raster = np.array([[1.0, NAN, np.inf], [-np.inf, -9999.0, 2.0], [-3.4028235e38, 1e300, 3.0]])
    batch = plain(nodata=[[-9999.0]])({"a": raster})
    assert batch["pixel_values"][0, 0].tolist() == [[1, 0, 0], [0, 0, 2], [0, 0, 3]]
    assert batch["modality_mask"][0, 0].tolist() == [[True, False, False], [False, False, True], [False, False, True]]


def test_missing_values_are_the_mean_after_normalisation():
    processor = SgmaImageProcessor(["nir"], [1], image_mean=[0.5], image_std=[0.1], nodata=[[0]])
    batch = processor({"nir": np.array([[0, 255]], np.uint8)})
    assert batch["pixel_values"][0, 0].tolist() == [[0.0, pytest.approx(5.0)]]
    assert batch["modality_mask"].tolist() == [[[[False, True]]]]


def test_nodata_has_to_hold_in_one_band_but_zero_of_integers_in_all():
    raster = np.array([[[0, 0, 5, 0]], [[0, 9, 0, 0]]], np.float32)  # (2, 1, 4)
    raster[1, 0, 3] = NAN
    batch = plain(["a"], [2], nodata=[[0, 7]])({"a": np.nan_to_num(raster, nan=7).astype(np.uint8)})
    assert batch["modality_mask"][0, 0].tolist() == [[False, True, True, False]]
    batch = plain(["a"], [2], nodata=[[8]])({"a": raster})
    assert batch["pixel_values"][0, :, 0].tolist() == [[0, 0, 5, 0], [0, 9, 0, 0]]


def test_nodata_that_the_dtype_cannot_hold_is_no_match():
    batch = plain(nodata=[[-9999.0, 0.5, 256.0]])({"a": np.array([[0, 241]], np.uint8)})  # 241 = -9999 modulo 256
    assert batch["modality_mask"].tolist() == [[True]]


def test_masked_arrays_and_alpha():
    masked = np.ma.masked_equal(np.array([[3, 7], [7, 1]], np.int16), 7)
    assert plain()({"a": masked})["modality_mask"].tolist() == [[[[True, False], [False, True]]]]
    rgba = np.full((1, 2, 4), 9, np.uint8)
    rgba[0, 1, 3] = 0
    processor = plain(["rgb"], [3])
    assert processor({"rgb": Image.fromarray(rgba)})["modality_mask"].tolist() == [[[[True, False]]]]
    assert plain(["b"], [4])({"b": Image.fromarray(rgba)})["modality_mask"].tolist() == [[True]]


def test_all_nan_modality_is_a_missing_one():
    processor = plain(["a", "b"], [1, 1])
    broken = processor({"a": np.full((2, 2), NAN), "b": np.ones((2, 2))})
    absent = processor({"a": None, "b": np.ones((2, 2))})
    assert broken["modality_mask"].tolist() == absent["modality_mask"].tolist() == [[False, True]]
    assert torch.equal(broken["pixel_values"], absent["pixel_values"])


def test_row_of_nothing_but_nodata_is_false_per_pixel():
    batch = plain(["a", "b"], [1, 1])({"a": np.full((2, 2), NAN), "b": None})
    assert batch["modality_mask"].shape == (1, 2, 2, 2)
    assert not batch["modality_mask"].any() and not batch["pixel_values"].any()


def test_row_without_a_modality_is_named():
    with pytest.raises(ValueError, match=r"`images\[1\]` has no modality"):
        plain()([{"a": np.ones((2, 2))}, {"a": None}])


# --- reference level ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", ["minimum", "robust_minimum", "median"])
@pytest.mark.parametrize("dtype", ["float32", "float64", "int32"])
@pytest.mark.parametrize("shape", [(8, 10), (16, 20), (4, 5), (5, 7)])
def test_height_above_sea_level_does_not_matter(level, dtype, shape):
    relief = np.random.default_rng(0).integers(0, 90, (8, 10)).astype(dtype)
    if dtype != "int32":
        relief *= 0.25  # exact at 500 m in float32 too
    processor = SgmaImageProcessor(["dsm"], [1], reference_level=level)
    label = np.zeros(shape, np.uint8) if shape != (5, 7) else np.zeros((8, 10), np.uint8)
    windows = [(2, 3, 5, 7)] if shape == (5, 7) else None
    low, high = (processor([{"dsm": relief + base}], [label], windows=windows)["pixel_values"] for base in (40, 500))
    assert low.abs().max() > 0
    assert torch.equal(low, high)


def test_levels_by_hand():
    raster = np.array([[10.0, 12.0, NAN, 20.0]])
    assert values_of(plain(reference_level="minimum"), raster).tolist() == [[0, 2, 0, 10]]
    assert values_of(plain(reference_level="median"), raster).tolist() == [[-2, 0, 0, 8]]
    pit = np.full((10, 10), 5.0)
    pit[3, 3] = -400.0
    assert values_of(plain(reference_level="robust_minimum"), pit)[0, 0] == 0.0
    assert values_of(plain(reference_level="minimum"), pit)[0, 0] == 405.0


def test_level_is_that_of_the_window_and_of_covered_pixels():
    raster = np.array([[0.0, 7.0, 9.0, -9999.0]])
    processor = plain(reference_level="minimum", nodata=[[-9999.0]])
    assert values_of(processor, raster, windows=[(0, 1, 1, 3)]).tolist() == [[0, 2, 0]]


# --- grids ----------------------------------------------------------------------------------------------------------


def reference_resampling(raster, size):
    """Plain float64 loops: hat function when enlarging, overlap of areas when shrinking; mask-normalised."""
    top, left, height, width = 0, 0, *raster.shape
    values, covered = np.zeros(size), np.zeros(size, bool)

    def weight(target, cell, start, length, count, num_source):
        step = length / count
        if step > 1:
            low, high = start + target * step, start + (target + 1) * step
            return max(0.0, min(high, cell + 1) - max(low, cell)) / step
        centre = min(max(start + (target + 0.5) * step - 0.5, 0), num_source - 1)
        return max(0.0, 1 - abs(centre - cell))

    def share(target, cell, start, length, count, num_source):
        if length > count:
            return weight(target, cell, start, length, count, num_source)
        return float(int(start + (target + 0.5) * length / count) == cell)

    for y in range(size[0]):
        for x in range(size[1]):
            total = support = footprint = 0.0
            for i in range(raster.shape[0]):
                for j in range(raster.shape[1]):
                    across, along = (
                        (y, i, top, height, size[0], raster.shape[0]),
                        (x, j, left, width, size[1], raster.shape[1]),
                    )
                    if not np.isnan(raster[i, j]):
                        support += weight(*across) * weight(*along)
                        total += weight(*across) * weight(*along) * raster[i, j]
                        footprint += share(*across) * share(*along)
            if footprint >= 0.5 - 1e-5:
                values[y, x], covered[y, x] = total / support, True
    return values, covered


@pytest.mark.parametrize("size", [(12, 18), (13, 19), (6, 9), (3, 4), (2, 3), (6, 18), (7, 10)])
@pytest.mark.parametrize("holes", [False, True])
def test_resampling_equals_the_plain_reference(size, holes):
    rng = np.random.default_rng(1)
    raster = rng.normal(size=(6, 9))
    if holes:
        raster[rng.random(raster.shape) < 0.3] = NAN
    processor = plain(do_resize=True, size={"height": size[0], "width": size[1]})
    batch = processor({"a": raster})
    values, covered = reference_resampling(raster, size)
    mask = batch["modality_mask"]
    assert (mask[0, 0] if mask.ndim == 4 else mask[0, 0].expand(size)).numpy().tolist() == covered.tolist()
    np.testing.assert_allclose(batch["pixel_values"][0, 0], values, atol=1e-6)


def test_interpolation_agrees_with_torch():
    raster = torch.randn(1, 1, 5, 7, dtype=torch.float64)
    enlarged = F.interpolate(raster, size=(15, 28), mode="bilinear", align_corners=False)
    rows, columns = interpolation_weights(5, 0, 5, 15).values, interpolation_weights(7, 0, 7, 28).values
    np.testing.assert_allclose(rows @ raster[0, 0].numpy() @ columns.T, enlarged[0, 0], atol=1e-6)
    pooled = F.interpolate(enlarged, size=(5, 7), mode="area")
    rows, columns = interpolation_weights(15, 0, 15, 5).values, interpolation_weights(28, 0, 28, 7).values
    np.testing.assert_allclose(rows @ enlarged[0, 0].numpy() @ columns.T, pooled[0, 0], atol=1e-6)


def test_window_equals_the_crop_of_the_whole():
    rng = np.random.default_rng(2)
    coarse, label = rng.normal(size=(8, 10)).astype(np.float32), rng.integers(0, 5, (24, 30)).astype(np.uint8)
    coarse[3, 4] = NAN
    fine = rng.normal(size=(24, 30)).astype(np.float32)
    processor = plain(["a", "b"], [1, 1])
    sample, window = {"a": coarse, "b": fine}, (5, 7, 11, 13)
    whole, part = processor([sample], [label]), processor([sample], [label], windows=[window])
    crop = np.s_[..., 5:16, 7:20]
    torch.testing.assert_close(part["pixel_values"], whole["pixel_values"][crop], atol=1e-6, rtol=1e-6)
    assert torch.equal(part["modality_mask"], whole["modality_mask"][crop])
    assert not part["modality_mask"].all()
    assert torch.equal(part["labels"], whole["labels"][crop])


def test_nodata_never_blends_into_neighbours():
    raster = np.full((4, 4), 3.0, np.float32)
    raster[1:3, 1:3] = -9999.0
    for size in (8, 12, 16, 3, 2):
        batch = plain(nodata=[[-9999.0]])([{"a": raster}], do_resize=True, size=size)
        mask = batch["modality_mask"]
        seen = batch["pixel_values"][0, 0][mask[0, 0]] if mask.ndim == 4 else batch["pixel_values"][0, 0]
        assert seen.numel() > 0
        np.testing.assert_allclose(seen, 3.0, rtol=1e-6)


def test_hole_keeps_its_size_when_enlarged():
    raster = np.ones((5, 5), np.float32)
    raster[2, 2] = NAN
    mask = plain()([{"a": raster}], [np.zeros((20, 20), np.uint8)])["modality_mask"][0, 0]
    assert not mask[8:12, 8:12].any()
    assert mask[:8].all() and mask[12:].all() and mask[:, :8].all() and mask[:, 12:].all()


def test_label_defines_the_grid_else_the_largest_modality():
    processor = plain(["a", "b"], [1, 1])
    sample = {"a": np.ones((4, 6)), "b": np.ones((2, 3))}
    assert processor(sample)["pixel_values"].shape == (1, 2, 4, 6)
    assert processor(sample, np.zeros((2, 3), np.uint8))["pixel_values"].shape == (1, 2, 2, 3)
    assert processor(sample, np.zeros((8, 12), np.uint8))["labels"].shape == (1, 8, 12)


def test_each_row_may_have_a_size_of_its_own():
    images, labels = [{"a": np.ones((6, 6))}] * 2, [np.zeros((6, 6), dtype=np.uint8)] * 2
    batch = plain()(images, labels, do_resize=True, size=[(3, 4), 6])
    for index, (height, width) in enumerate([(3, 4), (6, 6)]):
        inside = np.zeros((6, 6), dtype=bool)
        inside[:height, :width] = True
        assert np.array_equal(batch["labels"][index] != 255, inside)
    with pytest.raises(ValueError, match="`size` has 1 entries and `images` has 2; give one per row"):
        plain()(images, labels, do_resize=True, size=[(3, 4)])


def test_labels_are_resized_by_nearest_neighbour_only():
    label = np.array([[0, 4], [7, 255]], np.uint8)
    batch = plain()([{"a": np.ones((2, 2))}], [label], do_resize=True, size=(4, 6))
    assert batch["labels"].tolist() == [[[0, 0, 0, 4, 4, 4]] * 2 + [[7, 7, 7, 255, 255, 255]] * 2]
    label = np.arange(6, dtype=np.uint8).reshape(1, 6)
    batch = plain()([{"a": np.ones((1, 6))}], [label], do_resize=True, size={"height": 1, "width": 2})
    assert batch["labels"].tolist() == [[[1, 4]]]


@pytest.mark.parametrize(
    ("a", "b", "fits"),
    [
        ((200, 200), (20, 20), True),
        ((205, 200), (21, 20), True),  # 20.5 cells, rounded up
        ((740, 700), (148, 140), True),
        ((200, 201), (200, 200), True),
        ((360, 480), (480, 360), False),
        ((100, 100), (50, 54), False),
        ((100, 100), (100, 103), False),
    ],
)
def test_same_extent(a, b, fits):
    assert same_extent(a, b) is fits
    assert same_extent(b, a) is fits


# --- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("images", "maps", "message"),
    [
        ([{"c": np.ones((2, 2))}], None, r"modality 'c'; this processor knows \['a', 'b'\]"),
        ([{"a": np.ones((2, 2, 3))}], None, r"`images\[0\]\['a'\]`: got shape \(2, 2, 3\)"),
        ([{"b": np.ones((2, 2))}], None, r"expected \(2, height, width\)"),
        ([{"a": np.ones((0, 2))}], None, "no pixel"),
        ([{"a": np.ones((4, 4)), "b": np.ones((4, 8, 2))}], None, "4 x 4 pixels, which does not fit the 4 x 8"),
        ([{"a": np.ones((4, 4))}], [np.ones((4, 8), int)], "4 x 4 pixels, which does not fit the 4 x 8 of the label"),
        ([{"a": np.ones((2, 2))}], [np.ones((2, 2))], "dtype float64; expected class ids"),
        (
            [{"a": np.ones((2, 2))}],
            [np.full((2, 2), 5)],
            r"`segmentation_maps\[0\]`: has the ids \[5\]; expected 0 to 4",
        ),
        ([{"a": np.ones((2, 2))}], [np.full((2, 2), -1)], r"ids \[-1\]"),
        ([{"a": np.ones((2, 2))}], [np.full((2, 2), 256)], r"ids \[256\]"),
        ([{"a": np.ones((2, 2))}], [np.ones((2, 2, 3), int)], "Colour-coded"),
        ([{"a": np.ones((2, 2))}], [], "0 entries and `images` has 1"),
        ([], None, "empty"),
    ],
)
def test_bad_input_is_refused(images, maps, message):
    with pytest.raises(ValueError, match=message):
        plain(["a", "b"], [1, 2], num_labels=5)(images, maps)


@pytest.mark.parametrize("images", ["scene.tif", [np.ones((2, 2))], [{"a": np.array(["x"])}], [{"a": 3.0}]])
def test_wrong_types_are_refused(images):
    with pytest.raises(TypeError, match="expected"):
        plain()(images)


@pytest.mark.parametrize("window", [(0, 0, 3, 2), (-1, 0, 1, 1), (0, 0, 0, 1), (0, 1, 1)])
def test_windows_outside_the_row_are_refused(window):
    with pytest.raises(ValueError, match=r"`windows\[0\]`"):
        plain()([{"a": np.ones((2, 2))}], windows=[window])


def test_corrupt_and_absent_files_are_named(tmp_path):
    Image.fromarray(np.zeros((64, 64), np.uint8)).save(tmp_path / "whole.png")
    content = (tmp_path / "whole.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(content[: len(content) // 2])
    (tmp_path / "text.png").write_text("no image")
    for name in ("cut.png", "text.png", "absent.png"):
        with pytest.raises(ValueError, match=rf"`images\[1\]\['a'\]`: the image '.*{name}' cannot be read"):
            plain()([{"a": np.ones((2, 2))}, {"a": tmp_path / name}])


def test_sixteen_bit_colour_file_is_refused_as_pil_would_squeeze_it(tmp_path):
    rasterio = pytest.importorskip("rasterio")
    for name, interleave in (("a.tif", "pixel"), ("b.tif", "band")):
        profile = {"driver": "GTiff", "height": 4, "width": 4, "count": 3, "dtype": "uint16", "interleave": interleave}
        with rasterio.open(tmp_path / name, "w", photometric="RGB", **profile) as file:
            file.write(np.full((3, 4, 4), 4000, np.uint16))
        with pytest.raises(ValueError, match="more than 8 bits"):
            plain(["rgb"], [3])({"rgb": tmp_path / name})
        with Image.open(tmp_path / name) as opened, pytest.raises(ValueError, match="more than 8 bits"):
            plain(["rgb"], [3])({"rgb": opened})


def test_masked_label_is_ignored_there():
    label = np.ma.masked_equal(np.array([[1, 9]], np.int8), 9)
    assert plain(num_labels=3)({"a": np.ones((1, 2))}, label)["labels"].tolist() == [[[1, 255]]]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"image_std": [[0.0]]}, "`image_std`"),
        ({"image_mean": [[1.0, 2.0]]}, "expected 1 finite"),
        ({"image_mean": [1.0, 2.0]}, "2 entries for the 1 modalities"),
        ({"reference_level": "maximum"}, "'maximum'; expected one of"),
        ({"rescale_factor": [NAN]}, "`rescale_factor` of modality 'a' is nan; expected 1 finite"),
        ({"size": {"shortest_edge": 5}}, "`size`"),
        ({"size": {"height": 65_537, "width": 8}}, "both 1 to 65536 pixels"),
        ({"size": 10**9}, "both 1 to 65536 pixels"),
        ({"num_labels": 256}, "`num_labels` is 256; expected 2 to 255 classes"),
        ({"num_labels": 1}, "`num_labels` is 1; expected 2 to 255 classes"),
        ({"num_labels": "5"}, "`num_labels` is '5'; expected 2 to 255 classes"),
        ({"image_means": [1.0]}, r"no fields \['image_means'\]"),
    ],
)
def test_bad_fields_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        SgmaImageProcessor(["a"], [1], **fields)


# --- statistics -----------------------------------------------------------------------------------------------------


def test_fit_equals_the_statistics_of_all_pixels_at_once():
    rng = np.random.default_rng(3)
    rows, pools = [], {"dsm": [], "sar": []}
    for index in range(5):
        dsm = (rng.normal(size=(7, 9)) * 3 + 400 * index).astype(np.float32)
        dsm[0, :index] = -9999.0
        sar = rng.normal(size=(4, 6, 2)) + 1e4  # a large offset: the two-pass result has to survive it
        sar[1, 2, 0] = NAN
        rows.append({"id": f"r{index}", "dsm": dsm, "sar": sar if index else None, "label": None})
        valid = dsm[dsm != -9999.0].astype(np.float64)
        pools["dsm"].append(valid - valid.min())
        if index:
            pools["sar"].append(sar[~np.isnan(sar).any(-1)])
    processor = SgmaImageProcessor.fit(
        iter(rows), ["dsm", "sar"], [1, 2], rescale_factor=[1.0, 0.5], nodata=[[-9999.0], []], num_labels=4
    )
    dsm, sar = np.concatenate(pools["dsm"]), np.concatenate(pools["sar"]) * 0.5
    assert processor.reference_level == ["minimum", "none"] and processor.num_labels == 4
    np.testing.assert_allclose(processor.image_mean[0], dsm.mean(), rtol=1e-12)
    np.testing.assert_allclose(processor.image_std[0], dsm.std(), rtol=1e-12)
    np.testing.assert_allclose(processor.image_mean[1], sar.mean(0), rtol=1e-12)
    np.testing.assert_allclose(processor.image_std[1], sar.std(0), rtol=1e-9)


def test_fit_on_columns_without_values(caplog):
    with caplog.at_level(logging.WARNING, logger="sgma_hf.model.normalization_sgma"):
        processor = SgmaImageProcessor.fit([{"a": np.ones((2, 2)), "b": None}], ["a", "b"], [1, 1], rescale_factor=1.0)
    assert processor.image_mean == [[1.0], [0.45]] and processor.image_std == [[1.0], [0.225]]
    assert "'b'; its default" in caplog.text and "never vary" in caplog.text
    with pytest.raises(ValueError, match="empty"):
        SgmaImageProcessor.fit([], ["a"], [1])
    with pytest.raises(ValueError, match=r"columns \['c'\]; there are \['a'\]"):
        SgmaImageProcessor.fit([{"a": np.ones((2, 2))}], ["c"], [1])
    with pytest.raises(ValueError, match="row 'x', modality 'a'"):
        SgmaImageProcessor.fit([{"id": "x", "a": np.ones((2, 2, 2))}], ["a"], [1])


def test_levels_that_are_given_are_not_measured():
    processor = plain(reference_level="minimum")
    raster = np.array([[5.0, 9.0], [7.0, 6.0]])
    field = np.array([[1.0, 2.0], [3.0, 4.0]])
    whole = processor({"a": raster}, levels={"a": field})["pixel_values"]
    assert whole.tolist() == [[[[4.0, 7.0], [4.0, 2.0]]]]
    rows = processor([{"a": raster}] * 3, levels=[{"a": field}, {"a": 4.0}, None], windows=[(0, 1, 2, 1)] * 3)
    assert rows["pixel_values"][:, 0, :, 0].tolist() == [[7.0, 2.0], [5.0, 2.0], [3.0, 0.0]]
    with pytest.raises(ValueError, match="`levels` has 1 entries and `images` has 2"):
        processor([{"a": raster}] * 2, levels=[None])


# --- saving ---------------------------------------------------------------------------------------------------------


def test_save_and_load(tmp_path):
    processor = SgmaImageProcessor(
        ["rgb", "dsm"], [3, 1], nodata=[[0], [-9999, NAN]], reference_level=["none", "median"], num_labels=6
    )
    processor.save_pretrained(tmp_path)
    loaded = SgmaImageProcessor.from_pretrained(tmp_path)
    assert loaded.to_dict() == processor.to_dict()
    assert loaded.modalities == ["rgb", "dsm"] and loaded.nodata == [[0.0], [-9999.0]] and loaded.num_labels == 6
    assert not [key for key in json.loads(processor.to_json_string()) if key.startswith("_")]
    resized = SgmaImageProcessor.from_pretrained(tmp_path, do_resize=True, size=32)
    assert resized({"dsm": np.eye(8)})["pixel_values"].shape == (1, 4, 32, 32)


@pytest.mark.long
def test_saved_code_works_without_the_package(tmp_path, monkeypatch):
    monkeypatch.setattr(SgmaImageProcessor, "_auto_class", "AutoImageProcessor")  # what register_for_auto_class does
    SgmaImageProcessor(["a"], [1]).save_pretrained(tmp_path / "saved")
    code = (
        "import sys, numpy as np\n"
        "sys.path = [p for p in sys.path if p]\n"
        "sys.modules['sgma_hf'] = None\n"  # makes any import of the package fail
        "from transformers import AutoImageProcessor\n"
        f"processor = AutoImageProcessor.from_pretrained({str(tmp_path / 'saved')!r}, trust_remote_code=True)\n"
        "assert 'torchvision' not in sys.modules\n"
        "print(processor({'a': np.ones((3, 5))})['pixel_values'].shape)\n"
        f"processor.save_pretrained({str(tmp_path / 'again')!r})\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={"PATH": "", "HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"},
    )
    assert result.stdout.strip() == "torch.Size([1, 1, 3, 5])"
    for name in ("image_processing_sgma.py", "image_transforms_sgma.py", "configuration_sgma.py"):
        assert (tmp_path / "again" / name).exists()


# --- post-processing ------------------------------------------------------------------------------------------------


def outputs_for(size, num_labels=3, num_modalities=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    cells = [tuple(-(-side // stride) for side in size) for stride in (4, 8, 16, 32)]
    return SimpleNamespace(
        logits=torch.randn(2, num_labels, *cells[0], generator=generator),
        robustness=tuple(torch.rand(2, num_modalities, *cell, generator=generator).softmax(1) for cell in cells),
        coverage=torch.ones(2, *size, dtype=torch.bool),
    )


def test_maps_are_upsampled_by_exactly_four_then_cropped():
    outputs = outputs_for((10, 13))
    expected = F.interpolate(outputs.logits, size=(12, 16), mode="bilinear", align_corners=False)[..., :10, :13]
    maps = SgmaImageProcessor().post_process_semantic_segmentation(outputs)
    assert [m.dtype for m in maps] == [torch.int64] * 2
    assert torch.equal(torch.stack(maps), expected.argmax(1))
    resized = SgmaImageProcessor().post_process_semantic_segmentation(outputs, [(20, 26), (5, 6)])
    assert [tuple(m.shape) for m in resized] == [(20, 26), (5, 6)]
    again = F.interpolate(expected[:1], size=(20, 26), mode="bilinear", align_corners=False)
    assert torch.equal(resized[0], again[0].argmax(0))
    assert [
        m.shape for m in SgmaImageProcessor().post_process_semantic_segmentation(outputs, torch.tensor([[4, 5]] * 2))
    ]


def test_uncovered_pixels_are_ignored_and_padding_is_cut_off():
    outputs = outputs_for((8, 8))
    outputs.coverage[0, :, 4:] = False
    processor = SgmaImageProcessor()
    first, second = processor.post_process_semantic_segmentation(outputs)
    assert (first[:, 4:] == 255).all() and (first[:, :4] < 3).all() and (second < 3).all()
    cut = processor.post_process_semantic_segmentation(outputs, [(8, 8), (8, 8)], input_sizes=[(8, 4), (8, 8)])
    assert (cut[0] < 3).all()
    assert torch.equal(cut[1], second)


def test_robustness_sums_to_one_where_covered():
    outputs = outputs_for((10, 13))
    outputs.coverage[1, :, 8:] = False
    for stage, maps in enumerate(outputs.robustness):
        maps[1, :, :, -(-8 // (4 * 2**stage)) :] = 0  # what the model gives for cells that nothing covers
    for stage in (None, 0, 3):
        maps = SgmaImageProcessor().post_process_robustness(outputs, stage=stage)
        assert maps[0].shape == (2, 10, 13)
        torch.testing.assert_close(maps[0].sum(0), torch.ones(10, 13))
        torch.testing.assert_close(maps[1].sum(0)[:, :8], torch.ones(10, 8))
        assert not maps[1][:, :, 8:].any()
    exact = F.interpolate(outputs.robustness[3][:1], scale_factor=32, mode="bilinear", align_corners=False)
    whole = SgmaImageProcessor().post_process_robustness(outputs, stage=3)[0]
    torch.testing.assert_close(whole, exact[0, :, :10, :13])
    assert SgmaImageProcessor().post_process_robustness(outputs, [(5, 5), (3, 3)])[1].shape == (2, 3, 3)


def test_nothing_is_relied_on_where_it_is_not():
    """Modality 0 covers the columns up to 5, modality 1 those from 2; the coarsest cell holds all 40 of them."""
    outputs = outputs_for((8, 40))
    mask = torch.ones(2, 2, 8, 40, dtype=torch.bool)
    mask[0, 0, :, 6:], mask[0, 1, :, :2] = False, False
    for stage, maps in enumerate(outputs.robustness):  # what the model gives for cells that one alone covers
        first = -(-6 // (4 * 2**stage))
        maps[0, 0, :, first:], maps[0, 1, :, first:] = 0, 1
    shares, other = SgmaImageProcessor().post_process_robustness(outputs, modality_mask=mask)
    assert torch.equal(shares > 0, mask[0])
    torch.testing.assert_close(shares.sum(0), torch.ones(8, 40))
    assert ((other > 0) & (other < 1)).all()
    # Without the mask the finest cells tell, which are 4 pixels wide.
    (cells, _) = SgmaImageProcessor().post_process_robustness(outputs)
    assert (cells[0, :, :8] > 0).all() and not cells[0, :, 8:].any() and (cells[1] > 0).all()
    torch.testing.assert_close(cells.sum(0), torch.ones(8, 40))
    half = SgmaImageProcessor().post_process_robustness(outputs, [(4, 20)] * 2, modality_mask=mask)[0]
    assert torch.equal(half > 0, mask[0, :, ::2, ::2])


def test_post_processing_refusals():
    outputs = outputs_for((8, 8))
    with pytest.raises(ValueError, match="`target_sizes`"):
        SgmaImageProcessor().post_process_semantic_segmentation(outputs, [(8, 8)])
    with pytest.raises(ValueError, match="`stage` is 4"):
        SgmaImageProcessor().post_process_robustness(outputs, stage=4)
    outputs.robustness = None
    with pytest.raises(ValueError, match="mean fusion"):
        SgmaImageProcessor().post_process_robustness(outputs)
