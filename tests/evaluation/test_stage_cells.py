"""Cells of the stages and histograms, worked by hand."""

import numpy as np
import torch

from sgma_hf.evaluation.stage_cells import NUM_BINS, cell_shares, histogram, histogram_auc


def test_cell_shares_count_only_pixels_inside_the_image():
    mask = torch.zeros(6, 40, dtype=torch.bool)
    mask[:, :5] = True
    shares = cell_shares(mask)
    assert [tuple(share.shape) for share in shares] == [(2, 10), (1, 5), (1, 3), (1, 2)]
    torch.testing.assert_close(shares[0][:, :2], torch.tensor([[1.0, 0.25], [1.0, 0.25]]))
    torch.testing.assert_close(shares[3], torch.tensor([[5 / 32, 0.0]]))


def test_auc_of_histograms_worked_by_hand():
    assert histogram_auc(np.array([2, 0]), np.array([0, 3])) == 1
    assert histogram_auc(np.array([0, 3]), np.array([2, 0])) == 0
    # pairs: 1 below 2, 1 tied 1, 3 tied 2 of (1 + 3) x 3
    assert histogram_auc(np.array([1, 3]), np.array([1, 2])) == (2 + 0.5 * (1 * 1 + 3 * 2)) / 12
    assert histogram_auc(np.array([0, 0]), np.array([1, 2])) is None
    counts = histogram(torch.tensor([-1.0, 0.0, 1e-9, -1e-9, 1.0, 5.0]), -1, 1)
    assert counts.sum() == 6 and counts[0] == 1 and counts[NUM_BINS // 2] == 3 and counts[-1] == 2
