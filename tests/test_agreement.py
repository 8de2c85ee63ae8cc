"""`modality_agreement`: the overlap of two predictions, of one modality and of all the others."""

import pytest
import torch
from tiny_models import spread_weights, tiny_model

from sgma_hf import modality_agreement


@pytest.fixture(scope="module")
def model():
    return spread_weights(tiny_model()).double().eval()


def images(batch_size=2, height=40, width=50):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(batch_size, 6, height, width, generator=generator, dtype=torch.float64)


def overlap(model, values, masks):
    """The plain form: two forward passes, and the sum over the classes of the root of the product."""
    with torch.no_grad():
        first, second = (model(values, mask).logits.softmax(1) for mask in masks)
    return (first * second).sqrt().sum(1)


def test_it_is_the_overlap_of_two_forward_passes(model):
    values = images()
    found = modality_agreement(model, model.encode(values))
    assert found.shape == (2, 3, 10, 13) and found.dtype == torch.float32
    for index in range(3):
        alone = torch.zeros(2, 3, dtype=torch.bool)
        alone[:, index] = True
        expected = overlap(model, values, (alone, ~alone))
        torch.testing.assert_close(found[:, index].double(), expected, atol=1e-5, rtol=1e-5)
    assert 0 <= found.min() < found.max() <= 1


def test_what_cannot_be_compared_is_nan(model):
    mask = torch.tensor([[True, True, False], [False, True, False]])
    found = modality_agreement(model, model.encode(images(), mask))
    known = ~found.isnan().flatten(2)
    assert known.all(2).tolist() == known.any(2).tolist() == [[True, True, False], [False, False, False]]
    # two modalities are each other's others
    torch.testing.assert_close(found[0, 0], found[0, 1])


def test_gaps_inside_an_image_count_by_the_cell(model):
    mask = torch.ones(1, 3, 40, 50, dtype=torch.bool)
    mask[0, 0, :, 17:] = False  # ends inside the fifth column of cells
    mask[0, 1:, :, :8] = False  # the others begin with the third
    found = modality_agreement(model, model.encode(images(1), mask))[0]
    assert (~found[0].isnan()).any(0).tolist() == [False] * 2 + [True] * 3 + [False] * 8
    assert (~found[1].isnan()).any(0).tolist() == [False] * 2 + [True] * 11


def test_only_what_was_asked_for(model):
    encoding = model.encode(images())
    found = modality_agreement(model, encoding, [2])
    assert found[:, :2].isnan().all()
    torch.testing.assert_close(found[:, 2], modality_agreement(model, encoding)[:, 2])
