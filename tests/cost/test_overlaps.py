"""How much neighbouring tiles disagree."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny_models import spread_weights, tiny_model

from sgma_hf.cost.overlaps import measure_overlaps
from sgma_hf.model.cells_sgma import upsample_to_pixels


def test_neighbouring_tiles_of_a_pointwise_model_agree():
    def model(pixel_values, modality_mask=None):
        coverage = torch.ones(pixel_values.shape[0], *pixel_values.shape[2:], dtype=torch.bool)
        return SimpleNamespace(logits=pixel_values, coverage=coverage)

    image = torch.randn(1, 2, 32, 64, generator=torch.Generator().manual_seed(0))
    figures = measure_overlaps(model, image, tile_size=32, overlaps=(0.25, 0.5))
    assert [figure["overlap"] for figure in figures] == [0.25, 0.5]
    # The softmax of a score may differ in the last bit with its place in the tile.
    gaps = [value for figure in figures for name, value in figure.items() if name != "overlap"]
    assert gaps == pytest.approx([0] * len(gaps), abs=1e-6)
    with pytest.raises(ValueError, match="at least 32 x 64"):
        measure_overlaps(model, image[..., :60], tile_size=32)


def test_neighbouring_tiles_of_sgma_differ_in_what_is_reported():
    model = spread_weights(tiny_model()).eval()
    pixel_values = torch.randn(1, 6, 64, 128, generator=torch.Generator().manual_seed(2))
    (figures,) = measure_overlaps(model, pixel_values, tile_size=64, overlaps=(0.5,))
    with torch.no_grad():
        left, right = (
            upsample_to_pixels(model(pixel_values[..., start : start + 64]).logits, 4, (64, 64)) for start in (0, 32)
        )
    left, right = left[..., 32:], right[..., :32]
    np.testing.assert_allclose(
        figures["label_disagreement"], (left.argmax(1) != right.argmax(1)).float().mean(), atol=1e-6
    )
    gap = (left.softmax(1) - right.softmax(1)).abs().amax(1).mean()
    np.testing.assert_allclose(figures["probability_gap"], gap, atol=1e-6)
    assert 0 < figures["probability_gap"] <= 1
