"""What training supervises beside the prediction of all modalities and of one: subsets, and CSF's scores."""

import itertools
import math

import pytest
import torch
from tiny_models import spread_weights, tiny_model

from sgma_hf.model.losses_sgma import sample_subset


def batch(size=64):
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(5, (2, size, size), generator=generator)
    labels[0, :20] = 255
    return torch.randn(2, 6, size, size, generator=generator), labels


def chances_of_subsets(probabilities):
    """Of every subset, exactly: its size is drawn uniformly, then its members in any order."""
    present = [index for index, chance in enumerate(probabilities) if chance]
    sizes = range(2, len(present)) if len(present) > 2 else [min(1, len(present))]
    found = {}
    for size in sizes:
        for order in itertools.permutations(present, size):
            chance, rest = 1 / len(sizes), 1.0
            for index in order:
                chance, rest = chance * probabilities[index] / rest, rest - probabilities[index]
            found[frozenset(order)] = found.get(frozenset(order), 0) + chance
    return found


@pytest.mark.parametrize(
    "probabilities", [[0.5, 0.3, 0.2], [0.1, 0.2, 0.3, 0.4], [0.5, 0.0, 0.25, 0.25], [0.7, 0.3], [0.0, 1.0]]
)
def test_a_subset_is_drawn_by_the_probabilities_without_replacement(probabilities):
    count = 20_000
    noise = torch.rand(count, generator=torch.Generator().manual_seed(0))
    drawn = sample_subset(torch.tensor([probabilities]).expand(count, -1), noise)
    expected = chances_of_subsets(probabilities)
    observed = dict.fromkeys(expected, 0)
    for row in drawn.tolist():
        observed[frozenset(index for index, there in enumerate(row) if there)] += 1
    assert sum(expected.values()) == pytest.approx(1)
    for subset, chance in expected.items():  # five standard deviations of a share
        assert observed[subset] / count == pytest.approx(chance, abs=5 * math.sqrt(chance / count) + 1e-9)


def test_nothing_is_drawn_of_nothing_and_a_draw_can_be_repeated():
    probabilities = torch.tensor([[0.0, 0.0, 0.0], [0.2, 0.3, 0.5]])
    noise = torch.tensor([0.4, 0.4])
    assert sample_subset(probabilities, noise).sum(1).tolist() == [0, 2]
    assert torch.equal(sample_subset(probabilities, noise), sample_subset(probabilities, noise))


@pytest.mark.parametrize("fusion", ["sgf", "projector_mean"])
def test_the_subset_prediction_is_the_forward_of_that_subset(fusion):
    pixel_values, labels = batch()
    model = spread_weights(tiny_model(fusion=fusion, subset_loss_weight=0.5)).train()
    noise = torch.tensor([0.1, 0.8])
    output = model(pixel_values, labels=labels, sampling_noise=noise)
    subset = sample_subset(output.sampling_probabilities, noise)
    assert subset.sum(1).tolist() == [2, 2]
    expected = model.eval()(pixel_values, subset, labels=labels).loss_dict["loss_sgf"]
    torch.testing.assert_close(output.loss_dict["loss_subset"], expected, rtol=1e-4, atol=1e-5)
    terms = output.loss_dict
    weighted = 2 * terms["loss_sgf"] + terms["loss_mas"] + 0.5 * terms["loss_subset"]
    torch.testing.assert_close(output.loss.detach(), weighted)


def test_of_two_modalities_there_is_no_subset_and_a_mean_has_no_filter():
    two = tiny_model(modalities=["rgb", "dsm"], modality_channels=[3, 1], subset_loss_weight=1.0)
    assert two.config.loss_terms == ["sgf", "mas"]
    mean = tiny_model(fusion="mean", filter_loss_weight=1.0, mas_loss_weight=0.0)
    assert mean.config.loss_terms == ["sgf"]


@pytest.mark.parametrize("size", [64, 50])
@pytest.mark.parametrize("per_pixel", [False, True])
def test_the_filter_is_supervised_by_the_labels_at_the_centres_of_cells(per_pixel, size):
    pixel_values, labels = batch(size)
    mask = torch.tensor([[True, True, True], [True, False, True]])
    if per_pixel:
        mask = mask[..., None, None].repeat(1, 1, size, size)
        mask[0, 0, :, :33] = False
    model = spread_weights(tiny_model(filter_loss_weight=0.3, mas_loss_weight=0.0)).double().train()
    output = model(pixel_values.double(), mask, labels=labels)
    encoding = model.encode(pixel_values.double(), mask)
    covered = labels if not per_pixel else torch.where(mask.any(1), labels, 255)
    total = 0.0
    for row in range(2):
        losses = []
        for level, stride in enumerate((4, 8, 16, 32)):
            stage, maps = model.sgma.fusion_stages[level], encoding.stages[level]
            height, width = maps.size
            for modality in range(3):
                index = int(encoding.position[row, modality])
                if index < 0:
                    continue
                scores = stage.semantic_filter(maps.tokens[index]).view(height, width, 5).log_softmax(-1)
                for top, left in itertools.product(range(height), range(width)):
                    y, x = top * stride + stride // 2, left * stride + stride // 2
                    seen = not per_pixel or bool(
                        mask[
                            row, modality, top * stride : (top + 1) * stride, left * stride : (left + 1) * stride
                        ].any()
                    )
                    if y < size and x < size and covered[row, y, x] != 255 and seen:
                        losses.append(-scores[top, left, covered[row, y, x]])
        total = total + torch.stack(losses).mean() * int((covered[row] != 255).sum())
    expected = total / int((covered != 255).sum())
    torch.testing.assert_close(output.loss_dict["loss_filter"].double(), expected.detach(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        output.loss.detach().double(),
        2 * output.loss_dict["loss_sgf"].double() + 0.3 * expected.detach(),
        rtol=1e-5,
        atol=1e-6,
    )


def test_rows_without_two_modalities_have_no_filter_loss():
    pixel_values, labels = batch()
    mask = torch.tensor([[True, False, False], [False, True, False]])
    model = tiny_model(filter_loss_weight=1.0, subset_loss_weight=1.0).train()
    output = model(pixel_values, mask, labels=labels)
    assert output.loss_dict["loss_filter"] == 0
    torch.testing.assert_close(output.loss_dict["loss_subset"], output.loss_dict["loss_sgf"])
    output.loss.backward()
