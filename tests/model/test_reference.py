"""The fast model agrees with a plain float64 reference, whatever is missing."""

import pytest
import torch
from reference_sgma import reference_forward
from tiny_models import PVT_V2, RESNET, spread_weights, tiny_model


pytestmark = pytest.mark.long


# Sums of float64 in another order; a wrong formula is off by 1e-3 or more.
TOLERANCE = {"rtol": 1e-10, "atol": 1e-10}
NAMES = ["rgb", "dsm", "sar", "nir", "thermal"]
CHANNELS = [3, 1, 2, 1, 5]


def build(num_modalities, num_labels, **changes):
    changes = {
        "modalities": NAMES[:num_modalities],
        "modality_channels": CHANNELS[:num_modalities],
        "num_labels": num_labels,
        **changes,
    }
    return spread_weights(tiny_model(**changes).double(), seed=num_modalities)


def random_mask(kind, batch_size, modalities, size, generator):
    """Row masks with one modality at least, or pixel masks: rectangles, whole and empty pairs, and an empty row."""
    if kind == "none":
        return None
    present = torch.rand(batch_size, modalities, generator=generator) < 0.6
    present[torch.arange(batch_size), torch.randint(modalities, (batch_size,), generator=generator)] = True
    if kind == "rows":
        return present
    mask = torch.zeros(batch_size, modalities, *size, dtype=torch.bool)
    for row in range(batch_size):
        for m in range(modalities):
            top, left, bottom, right = torch.rand(4, generator=generator).tolist()
            rows = slice(int(top * size[0] / 2), 1 + int((1 + bottom) * size[0] / 2))
            columns = slice(int(left * size[1] / 2), 1 + int((1 + right) * size[1] / 2))
            mask[row, m, rows, columns] = present[row, m]
    mask[0, int(present[0].int().argmax())] = True
    mask[-1] &= torch.rand(modalities, *size, generator=generator) < 0.5  # holes of single pixels
    return mask


def random_batch(model, batch_size, size, generator):
    channels = sum(model.config.modality_channels)
    pixel_values = torch.randn(batch_size, channels, *size, generator=generator, dtype=torch.float64)
    labels = torch.randint(model.config.num_labels, (batch_size, *size), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < 0.2] = 255
    return pixel_values, labels


def assert_same_inference(model, pixel_values, modality_mask):
    output = model(pixel_values, modality_mask, output_prototypes=True)
    expected = reference_forward(model, pixel_values, modality_mask)
    torch.testing.assert_close(output.logits, expected.logits, **TOLERANCE)
    assert torch.equal(output.coverage, expected.coverage)
    if model.config.fusion != "sgf":
        assert output.robustness is None
        return
    for maps, right in zip(output.robustness, expected.robustness, strict=True):
        torch.testing.assert_close(maps, right, **TOLERANCE, check_dtype=False)
    if output.prototypes is not None:  # nobody needs them where each row has one modality
        for vectors, right in zip(output.prototypes, expected.prototypes, strict=True):
            torch.testing.assert_close(vectors, right, **TOLERANCE)


@pytest.mark.parametrize("kind", ["none", "rows", "pixels"])
@pytest.mark.parametrize(
    ("num_modalities", "num_labels", "size"),
    [(1, 2, (33, 65)), (2, 3, (64, 32)), (3, 5, (40, 72)), (4, 11, (20, 20)), (5, 25, (64, 64))],
)
def test_inference_agrees_with_the_reference(num_modalities, num_labels, size, kind):
    generator = torch.Generator().manual_seed(num_labels)
    model = build(num_modalities, num_labels)
    with torch.no_grad():
        for _ in range(2):
            pixel_values, _ = random_batch(model, 3, size, generator)
            mask = random_mask(kind, 3, num_modalities, size, generator)
            assert_same_inference(model, pixel_values, mask)


@pytest.mark.parametrize("heads", [1, 4])
def test_any_number_of_heads_agrees_with_the_reference(heads):
    generator = torch.Generator().manual_seed(0)
    model = build(3, 5, num_attention_heads=heads)
    pixel_values, _ = random_batch(model, 2, (32, 64), generator)
    with torch.no_grad():
        assert_same_inference(model, pixel_values, random_mask("pixels", 2, 3, (32, 64), generator))


@pytest.mark.parametrize("kind", ["none", "rows", "pixels"])
@pytest.mark.parametrize("fusion", ["mean", "pointwise_mean", "projector_mean"])
def test_the_baselines_agree_with_the_reference(fusion, kind):
    generator = torch.Generator().manual_seed(1)
    model = build(3, 5, fusion=fusion)
    pixel_values, _ = random_batch(model, 3, (40, 72), generator)
    with torch.no_grad():
        assert_same_inference(model, pixel_values, random_mask(kind, 3, 3, (40, 72), generator))


def test_a_backbone_with_batch_norm_agrees_with_the_reference():
    generator = torch.Generator().manual_seed(2)
    model = build(3, 5, backbone_config=RESNET)
    pixel_values, _ = random_batch(model, 3, (32, 64), generator)
    with torch.no_grad():
        assert_same_inference(model, pixel_values, random_mask("rows", 3, 3, (32, 64), generator))


@pytest.mark.parametrize("kind", ["none", "rows", "pixels"])
def test_several_encoders_agree_with_the_reference(kind):
    generator = torch.Generator().manual_seed(4)
    # neither groups nor what they name are in the order of the modalities
    model = build(4, 5, backbone_config={"nir+dsm": RESNET, "sar": {**PVT_V2, "num_channels": 2}, "rgb": PVT_V2})
    pixel_values, _ = random_batch(model, 3, (40, 72), generator)
    with torch.no_grad():
        for _ in range(3):
            assert_same_inference(model, pixel_values, random_mask(kind, 3, 4, (40, 72), generator))


def test_a_row_that_nothing_covers_agrees_with_the_reference():
    generator = torch.Generator().manual_seed(3)
    model = build(3, 5)
    pixel_values, _ = random_batch(model, 3, (40, 40), generator)
    mask = torch.ones(3, 3, 40, 40, dtype=torch.bool)
    mask[1] = False
    with torch.no_grad():
        assert_same_inference(model, pixel_values, mask)
        assert_same_inference(model, pixel_values[:, :, :32, :32], mask[:, :, :32, :32])


def assert_same_training_step(model, pixel_values, modality_mask, labels, noise):
    parameters = dict(model.named_parameters())
    expected = reference_forward(model, pixel_values, modality_mask, labels, noise)
    right = torch.autograd.grad(expected.loss, list(parameters.values()), allow_unused=True)
    output = model(pixel_values, modality_mask, labels=labels, sampling_noise=noise)
    gradients = torch.autograd.grad(output.loss, list(parameters.values()), allow_unused=True)
    torch.testing.assert_close(output.loss, expected.loss, **TOLERANCE)
    torch.testing.assert_close(output.loss_dict["loss_sgf"], expected.loss_sgf.detach(), **TOLERANCE)
    if expected.loss_mas is not None:
        assert output.sampled_modality.tolist() == expected.sampled
        torch.testing.assert_close(output.loss_dict["loss_mas"], expected.loss_mas.detach(), **TOLERANCE)
        # float32 by intent: the draw does not depend on the precision that the model runs in
        torch.testing.assert_close(output.sampling_probabilities.double(), expected.probabilities, rtol=0, atol=1e-6)
    for name, gradient, correct in zip(parameters, gradients, right, strict=True):
        gradient, correct = (torch.zeros(()) if g is None else g for g in (gradient, correct))
        scale = max(1.0, float(correct.abs().max()))
        difference = float((gradient - correct).abs().max())
        assert difference <= 1e-10 * scale, f"{name}: gradients differ by {difference}"


@pytest.mark.parametrize("kind", ["none", "rows", "pixels"])
@pytest.mark.parametrize(
    ("num_modalities", "num_labels", "size"), [(1, 2, (33, 65)), (3, 5, (40, 72)), (3, 4, (64, 32)), (5, 25, (32, 32))]
)
def test_losses_draws_and_gradients_agree_with_the_reference(num_modalities, num_labels, size, kind):
    generator = torch.Generator().manual_seed(num_labels)
    model = build(num_modalities, num_labels).train()
    pixel_values, labels = random_batch(model, 3, size, generator)
    mask = random_mask(kind, 3, num_modalities, size, generator)
    noise = torch.rand(3, generator=generator)
    assert_same_training_step(model, pixel_values, mask, labels, noise)


@pytest.mark.parametrize("fusion", ["mean", "pointwise_mean", "projector_mean"])
def test_the_baselines_losses_and_gradients_agree_with_the_reference(fusion):
    generator = torch.Generator().manual_seed(4)
    model = build(3, 5, fusion=fusion).train()
    pixel_values, labels = random_batch(model, 3, (40, 72), generator)
    mask = random_mask("pixels", 3, 3, (40, 72), generator)
    assert_same_training_step(model, pixel_values, mask, labels, torch.rand(3, generator=generator))


@pytest.mark.parametrize("size", [(32, 64), (40, 40)])
def test_a_training_row_that_nothing_covers_agrees_with_the_reference(size):
    generator = torch.Generator().manual_seed(5)
    model = build(3, 5).train()
    pixel_values, labels = random_batch(model, 3, size, generator)
    mask = torch.ones(3, 3, *size, dtype=torch.bool)
    mask[1] = False
    assert_same_training_step(model, pixel_values, mask, labels, torch.tensor([0.1, 0.5, 0.9]))
