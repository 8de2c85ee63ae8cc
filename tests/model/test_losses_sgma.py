"""Losses of rows: cross-entropy and Dice against plain sums, and against numbers worked by hand."""

import math

import pytest
import torch
from tiny_models import tiny_model

from sgma_hf import SgmaConfig
from sgma_hf.model.cells_sgma import upsample_to_pixels
from sgma_hf.model.losses_sgma import row_losses


def losses(logits, labels, *, dice_loss_weight=0.0, **fields):
    config = SgmaConfig(num_labels=logits.shape[1], dice_loss_weight=dice_loss_weight, **fields)
    return row_losses(config, logits, labels)


def plain_row(scores, label, weights, dice_weight):
    """Loss sum and number of valid pixels of one row, pixel by pixel; scores (K, H, W), label (H, W)."""
    classes, height, width = scores.shape
    cross_entropy, count = 0.0, 0
    hit, predicted, pixels = [0.0] * classes, [0.0] * classes, [0] * classes
    for i in range(height):
        for j in range(width):
            target = int(label[i, j])
            if target == 255:
                continue
            exponentials = [math.exp(float(value)) for value in scores[:, i, j]]
            shares = [value / sum(exponentials) for value in exponentials]
            cross_entropy -= weights[target] * math.log(shares[target])
            count += 1
            pixels[target] += 1
            hit[target] += shares[target]
            predicted = [total + share for total, share in zip(predicted, shares, strict=True)]
    there = [k for k in range(classes) if pixels[k]]
    dice = [1 - (2 * hit[k] + 1) / (predicted[k] + pixels[k] + 1) for k in there]
    return cross_entropy + dice_weight * count * (sum(dice) / len(dice) if dice else 0.0), count


@pytest.mark.parametrize("dice_weight", [0.0, 0.7])
@pytest.mark.parametrize("class_weights", [None, [0.5, 2.0, 1.0]])
def test_rows_agree_with_plain_sums(class_weights, dice_weight):
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(3, 3, 3, 2, generator=generator, dtype=torch.float64)
    labels = torch.randint(3, (3, 10, 7), generator=generator)
    labels[0, :4] = 255
    labels[1] = 255  # nothing to learn there
    labels[2][labels[2] == 1] = 0  # a class that the row does not have
    sums, counts = losses(logits, labels, dice_loss_weight=dice_weight, class_weights=class_weights)
    pixels = upsample_to_pixels(logits, 4, (10, 7))
    expected = [
        plain_row(scores, label, class_weights or [1.0] * 3, dice_weight)
        for scores, label in zip(pixels, labels, strict=True)
    ]
    torch.testing.assert_close(sums, torch.tensor([total for total, _ in expected], dtype=torch.float64))
    assert counts.tolist() == [count for _, count in expected]
    assert sums[1] == 0


def test_a_dice_loss_by_hand():
    # 16 pixels of class 0, each with probability 3/4: I = 12, S = 12, n = 16, so 1 - 25 / 29 = 4 / 29.
    logits = torch.tensor([math.log(3.0), 0.0], dtype=torch.float64).view(1, 2, 1, 1)
    labels = torch.zeros(1, 4, 4, dtype=torch.int64)
    plain, _ = losses(logits, labels)
    with_dice, counts = losses(logits, labels, dice_loss_weight=1.0)
    assert counts.tolist() == [16]
    assert (with_dice - plain).item() == pytest.approx(16 * 4 / 29, abs=1e-12)


def test_rows_do_not_depend_on_each_other():
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(4, 5, 8, 8, generator=generator)
    labels = torch.randint(5, (4, 32, 32), generator=generator)
    together, _ = losses(logits, labels, dice_loss_weight=1.0)
    alone = [losses(logits[i : i + 1], labels[i : i + 1], dice_loss_weight=1.0)[0] for i in range(4)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-6, atol=0)


def test_the_model_adds_the_dice_loss_to_both_terms():
    generator = torch.Generator().manual_seed(2)
    model = tiny_model(dice_loss_weight=0.5).train()
    pixel_values = torch.randn(2, sum(model.config.modality_channels), 64, 64, generator=generator)
    labels = torch.randint(model.config.num_labels, (2, 64, 64), generator=generator)
    noise = torch.tensor([0.2, 0.9])
    with_dice = model(pixel_values, labels=labels, sampling_noise=noise)
    model.config.dice_loss_weight = 0.0
    plain = model(pixel_values, labels=labels, sampling_noise=noise)
    for name, logits in (("loss_sgf", plain.logits), ("loss_mas", plain.sampled_logits)):
        sums = [losses(logits, labels, dice_loss_weight=weight)[0].sum() for weight in (0.5, 0.0)]
        difference = (sums[0] - sums[1]) / labels.numel()
        torch.testing.assert_close(with_dice.loss_dict[name] - plain.loss_dict[name], difference, rtol=1e-4, atol=1e-6)
    expected = 2 * with_dice.loss_dict["loss_sgf"] + with_dice.loss_dict["loss_mas"]
    torch.testing.assert_close(with_dice.loss.detach(), expected)


def test_a_negative_weight_is_refused():
    with pytest.raises(ValueError, match=r"`dice_loss_weight` is -1; expected a finite number of at least 0"):
        SgmaConfig(num_labels=3, dice_loss_weight=-1)
