"""What counts as missing is one rule: for the processor, for statistics of a data set, and in pictures."""

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import tiny_model

from sgma_hf.converters.writing.statistics import SplitStatistics
from sgma_hf.data.incomplete_rows import free_fill_value
from sgma_hf.data.metadata import DatasetMetadata
from sgma_hf.model.image_processing_sgma import SgmaImageProcessor
from sgma_hf.model.image_transforms_sgma import valid_pixels
from sgma_hf.visualization.boards import plot_modality_board, plot_sample


LOWEST = np.finfo(np.float32).min  # -3.4028235e38, which many tools write as nodata without declaring it


def seen_by_processor(values, nodata):
    processor = SgmaImageProcessor(["x"], [1 if values.ndim == 2 else values.shape[2]], nodata=[list(nodata)])
    mask = processor(images=[{"x": values}])["modality_mask"]
    return mask[0, 0].numpy() if mask.ndim == 4 else np.full(values.shape[:2], bool(mask[0, 0]))


def counted(values, nodata):
    channels = 1 if values.ndim == 2 else values.shape[2]
    statistics = SplitStatistics(DatasetMetadata(["x"], [channels], ["float32"], nodata=[list(nodata)]))
    statistics.update({"x": values}, None)
    return values.shape[0] * values.shape[1] * (1 - statistics.as_dict("train")["modalities"][0]["nodata_share"])


def drawn(values, nodata):
    (axes,) = plot_sample({"x": values}, nodata={"x": nodata}).axes
    return np.asarray(axes.images[0].get_array())[..., 3] == 255


@pytest.mark.parametrize(
    ("values", "nodata", "expected"),
    [
        (np.array([[1.0, LOWEST], [np.nan, np.inf]], dtype=np.float32), [], [[True, False], [False, False]]),
        (np.array([[1.0, -3.4e38], [3.4e38, 3.39e38]]), [], [[True, False], [False, True]]),
        (np.array([[1.0, 3.4e38]], dtype=np.float32), [], [[True, False]]),
        (np.array([[1.0, -9999], [LOWEST, 0]], dtype=np.float32), [-9999, -1e300], [[True, False], [False, True]]),
        (np.array([[0, 1], [2, 3]], dtype=np.uint8), [0.5, -9999, 256, 3], [[True, True], [True, False]]),
        (np.array([[[0, 0], [0, 7]]], dtype=np.uint16), [0], [[False, True]]),
        (np.array([[[0, 1], [LOWEST, 7]]], dtype=np.float32), [0], [[False, False]]),
        (np.array([[[0, 255], [255, 255]]], dtype=np.int16), [0, 255], [[False, False]]),
        (np.array([[[0, 254], [-9999, 254], [0, 0]]], dtype=np.int16), [0, -9999], [[True, False, False]]),
        (np.array([[False, True]]), [0], [[False, True]]),
    ],
)
def test_processor_statistics_and_pictures_agree_on_what_is_missing(values, nodata, expected):
    assert valid_pixels(values, nodata).tolist() == expected
    assert seen_by_processor(values, nodata).tolist() == expected
    assert drawn(values, nodata).tolist() == expected
    assert counted(values, nodata) == pytest.approx(np.sum(expected))


def test_missing_values_are_no_numbers_of_an_integer_raster():
    values = np.array([[0, 1]], dtype=np.uint8)
    assert valid_pixels(values, [float("nan"), float("inf"), 1]).tolist() == [[True, False]]
    assert free_fill_value(values, 1).tolist() == [[0, 2]]
    assert free_fill_value(values, [1, 2]).tolist() == [[0, 0]]
    assert free_fill_value(values, 1, valid=values == 0) is values


def test_masked_pixels_are_missing_and_bands_may_come_first():
    values = np.ma.MaskedArray(np.ones((2, 1, 3)), mask=np.array([[[1, 0, 0]], [[0, 0, 1]]], dtype=bool))
    assert valid_pixels(values, [], channel_axis=0).tolist() == [[False, True, False]]
    assert valid_pixels(np.moveaxis(values, 0, -1), []).tolist() == [[False, True, False]]
    assert valid_pixels(np.zeros((0, 3), dtype=np.float32), [0]).shape == (0, 3)


def test_boards_show_what_the_processor_read():
    model = tiny_model()
    processor = SgmaImageProcessor(model.config.modalities, model.config.modality_channels)
    picture = np.full((32, 32, 4), 200, dtype=np.uint8)
    picture[:, 20:, 3] = 0  # transparent
    sar = torch.randn(2, 32, 32, generator=torch.Generator().manual_seed(0))  # bands first
    figure = plot_modality_board(model, processor, {"rgb": Image.fromarray(picture), "dsm": None, "sar": sar})
    panels = {axes.get_title(): np.asarray(axes.images[0].get_array()) for axes in figure.axes[:3] if axes.images}
    assert panels["rgb"].shape == panels["sar"].shape == (32, 32, 4)
    covered = processor(images=[{"rgb": Image.fromarray(picture), "sar": sar}])["modality_mask"][0, 0].numpy()
    np.testing.assert_array_equal(panels["rgb"][..., 3] == 255, covered)
    assert not covered[:, 20:].any() and covered[:, :20].all()


def test_missing_in_one_band_is_missing_but_a_dark_band_is_not():
    colour = np.array([[[0, 0, 0], [0, 5, 0], [255, 255, 255]]], dtype=np.uint8)
    np.testing.assert_array_equal(valid_pixels(colour, [0]), [[False, True, True]])
    np.testing.assert_array_equal(valid_pixels(colour, [0, 255]), [[False, True, False]])
    height = np.array([[1.0, np.nan, -9999.0, np.inf]], dtype=np.float32)
    np.testing.assert_array_equal(valid_pixels(height, []), [[True, False, True, False]])
    np.testing.assert_array_equal(valid_pixels(height, [-9999.0]), [[True, False, False, False]])
