"""Sliding windows: exact where the model looks at single pixels, and bounded in memory."""

from types import SimpleNamespace

import pytest
import torch
from tiny_models import spread_weights, tiny_model

from sgma_hf.model.cells_sgma import upsample_to_pixels
from sgma_hf.prediction.sliding_window import (
    TileBlender,
    default_stride,
    sliding_window_logits,
    tile_weights,
)


class Pointwise:
    """Scores that depend on the pixel alone, at full resolution; counts its calls."""

    def __init__(self):
        self.sizes = []

    def __call__(self, pixel_values, modality_mask=None):
        self.sizes.append(tuple(pixel_values.shape))
        red, green = pixel_values[:, 0], pixel_values[:, 1]
        return SimpleNamespace(logits=torch.stack([red + green, red * green, red - 2], dim=1))


def image(height, width, rows=1):
    return torch.randn(rows, 2, height, width, generator=torch.Generator().manual_seed(0))


def test_default_stride_keeps_the_cells_of_neighbouring_tiles_in_line():
    assert default_stride(512) == 384 and 384 % 32 == 0
    assert default_stride(100) == 64
    assert default_stride(16) == 12  # too small to be picky
    assert default_stride(512, 0.5) == 256


def test_weights_fall_towards_the_edge_but_not_to_zero():
    torch.testing.assert_close(
        tile_weights(2, 4), torch.tensor([[0.125, 0.375, 0.375, 0.125], [0.125, 0.375, 0.375, 0.125]])
    )


@pytest.mark.parametrize("size", [(64, 64), (65, 97), (40, 130), (20, 33), (1, 1), (7, 100)])
@pytest.mark.parametrize("stride", [32, 24, 17])
def test_tiles_of_a_pointwise_model_make_the_whole_image(size, stride):
    """Up to the rounding of a weighted mean of equal numbers."""
    model, pixel_values = Pointwise(), image(*size)
    tiled = sliding_window_logits(model, pixel_values, tile_size=32, stride=stride)
    assert max(max(shape[2:]) for shape in model.sizes) <= 32
    torch.testing.assert_close(tiled, model(pixel_values).logits, atol=2e-6, rtol=2e-6)


def test_rows_and_batches_do_not_mix():
    pixel_values = image(40, 70, rows=3)
    together = sliding_window_logits(Pointwise(), pixel_values, tile_size=32, stride=20, batch_size=5)
    for row in range(3):
        alone = sliding_window_logits(Pointwise(), pixel_values[row : row + 1], tile_size=32, stride=20)
        torch.testing.assert_close(together[row], alone[0])


def test_windows_that_nothing_covers_are_skipped():
    model, pixel_values = Pointwise(), image(32, 96)
    mask = torch.zeros(1, 2, 32, 96, dtype=torch.bool)
    mask[0, 1, :, :10] = True
    logits = sliding_window_logits(model, pixel_values, mask, tile_size=32, stride=32)
    assert model.sizes == [(1, 2, 32, 32)]  # one of three
    torch.testing.assert_close(logits[..., :32], Pointwise()(pixel_values[..., :32]).logits)
    assert (logits[..., 32:] == 0).all()
    with pytest.raises(ValueError, match="covers nothing in any window"):
        sliding_window_logits(model, pixel_values, torch.zeros_like(mask), tile_size=32)


def test_sgma_on_an_image_of_one_tile_is_the_model_itself(tiny_config):
    model = spread_weights(tiny_model()).eval()
    pixel_values = torch.randn(2, 6, 50, 61, generator=torch.Generator().manual_seed(1))
    mask = torch.tensor([[True, False, True], [True, True, False]])
    with torch.no_grad():
        whole = upsample_to_pixels(model(pixel_values, mask).logits, 4, (50, 61))
        torch.testing.assert_close(sliding_window_logits(model, pixel_values, mask, tile_size=64), whole)
        smaller = sliding_window_logits(model, pixel_values, mask, tile_size=32, batch_size=3)
    assert smaller.shape == whole.shape and smaller.isfinite().all()


def test_blender_holds_one_tile_of_rows_and_gives_the_mean():
    blender = TileBlender(1, (4, 4), 6)
    for left, value in ((0, 1.0), (2, 3.0)):
        blender.add(torch.full((1, 4, 4), value), 0, left)
    # Weights along a row: 1/4 3/4 3/4 1/4 of the first, the same two pixels further right of the second.
    expected = torch.tensor([1, 1, (0.75 * 1 + 0.25 * 3), (0.25 * 1 + 0.75 * 3), 3, 3])
    torch.testing.assert_close(blender.finish(2), expected.expand(1, 2, 6))
    blender.advance(2)
    blender.add(torch.full((1, 4, 4), 5.0), 2, 0)
    rest = blender.finish(6)
    # Row 2: weight 3/4 of the upper tile against 1/4 of the lower one; rows 4 and 5 belong to the lower one alone.
    torch.testing.assert_close(rest[0, 0, 0], torch.tensor(0.75 * 1 + 0.25 * 5))
    assert (rest[0, 2:, :4] == 5).all() and (rest[0, 2:, 4:] == 0).all()


def test_blender_that_begins_in_the_middle_continues_as_if_it_had_begun_above():
    maps = torch.randn(3, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    tops = (0, 3, 6)
    from_above, from_the_middle = TileBlender(2, (8, 8), 8), TileBlender(2, (8, 8), 8, top=6)
    for top, tile in zip(tops, maps, strict=True):
        from_above.finish(top)
        from_above.advance(top)
        from_above.add(tile, top, 0)
        from_the_middle.add(tile, top, 0)  # the first tile reaches to row 8, so it is a part of the strip, too
    # The same sums of the same products, value by value.
    assert torch.equal(from_above.finish(14), from_the_middle.finish(14))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tile_size": 0}, "`tile_size` is 0"),
        ({"tile_size": 32, "stride": 33}, "Windows of 32 pixels every 33: expected"),
        ({"tile_size": 32, "stride": 0}, "Windows of 32 pixels every 0: expected"),
        ({"tile_size": 32, "batch_size": 0}, "`batch_size` is 0"),
    ],
)
def test_numbers_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        sliding_window_logits(Pointwise(), image(8, 8), **options)
    with pytest.raises(ValueError, match="`overlap` is 1"):
        default_stride(32, 1)
