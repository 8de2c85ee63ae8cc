"""Cells and pixels, worked by hand."""

import pytest
import torch

from sgma_hf.model.cells_sgma import (
    covered_fractions,
    crop_padding,
    pixel_logits,
    predicted_classes,
    repeat_to_pixels,
    touched_cells,
    upsample_to_pixels,
)


def test_upsampling_keeps_cells_over_their_pixels():
    pixels = upsample_to_pixels(torch.arange(3.0).view(1, 1, 1, 3), 4, (4, 10))
    assert pixels.shape == (1, 1, 4, 10)  # of the twelve columns the last two are beyond the image
    assert pixels[0, 0, 0].tolist() == [0, 0, 0.125, 0.375, 0.625, 0.875, 1.125, 1.375, 1.625, 1.875]


@pytest.mark.parametrize("size", [(32, 64), (33, 61), (5, 1)])
def test_cells_cover_the_image_and_no_more(size):
    maps = torch.rand(1, 2, 16, 16)
    for stride in (4, 8):
        cells = crop_padding(maps, stride, size)
        assert cells.shape[-2:] == (-(-size[0] // stride), -(-size[1] // stride))
        pixels = repeat_to_pixels(cells, stride, size)
        assert pixels.shape[-2:] == size
        rows, columns = (torch.arange(side) // stride for side in size)
        assert torch.equal(pixels, maps[..., rows[:, None], columns])


def test_fractions_and_touched_cells_of_a_mask():
    mask = torch.zeros(1, 1, 32, 32, dtype=torch.bool)
    mask[0, 0, :2, :4] = True
    finest, *_, coarsest = covered_fractions(mask.float())
    assert finest.shape == (1, 1, 8, 8) and coarsest.shape == (1, 1, 1, 1)
    assert finest[0, 0, 0, 0] == 0.5 and finest.sum() == 0.5 and coarsest.item() == 8 / 1024
    assert torch.equal(touched_cells(mask, 4), finest > 0)


def test_classes_are_compared_in_single_precision_at_least():
    logits = torch.tensor([[[[1.0]], [[1.001]]]])
    assert logits.to(torch.bfloat16)[0, 0, 0, 0] == logits.to(torch.bfloat16)[0, 1, 0, 0]
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        assert pixel_logits(logits.to(dtype), (3, 4)).dtype == torch.float32
    assert pixel_logits(logits.double(), (3, 4)).dtype == torch.float64
    assert torch.equal(predicted_classes(logits, (3, 4)), torch.ones(1, 3, 4, dtype=torch.int64))
    full = torch.rand(1, 2, 8, 8)
    assert torch.equal(pixel_logits(full, (8, 8)), full)  # of full resolution already
