"""What a missing modality means, exactly: not computed, not seen, and without a trace of what stood there."""

import pytest
import torch
from tiny_models import EVERY_BACKBONE, RESNET, spread_weights, tiny_model
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


MODALITY_SLICES = (slice(0, 3), slice(3, 4), slice(4, 6))  # rgb, dsm, sar


def batch(batch_size=3, size=(64, 64), seed=0):
    generator = torch.Generator().manual_seed(seed)
    pixel_values = torch.randn(batch_size, 6, *size, generator=generator)
    return pixel_values, torch.randint(5, (batch_size, *size), generator=generator)


def pixel_mask(size=(64, 64)):
    """Three rows: the height ends in the middle and SAR has a hole; no SAR; RGB alone, in a corner."""
    mask = torch.ones(3, 3, *size, dtype=torch.bool)
    mask[0, 1, :, size[1] // 2 :] = False
    mask[0, 2, 5:9, 3:30] = False
    mask[1, 2] = False
    mask[2, 1:] = False
    mask[2, 0, size[0] // 3 :] = False
    return mask


ROW_MASK = torch.tensor([[True, True, False], [False, True, False], [True, True, True]])
MASKS = {"rows": ROW_MASK, "pixels": pixel_mask(), "odd size": pixel_mask((50, 70))}


def fill_missing(pixel_values, mask, value):
    """Put `value` under the mask; for "garbage", numbers of any size."""
    covered = mask if mask.ndim == 4 else mask[:, :, None, None].expand(-1, -1, *pixel_values.shape[2:])
    filled = pixel_values.clone()
    for index, channels in enumerate(MODALITY_SLICES):
        gone = ~covered[:, index : index + 1].expand_as(filled[:, channels])
        content = torch.full_like(filled, float("nan")) if value == "nan" else torch.randn_like(filled) * 1e30
        filled[:, channels] = torch.where(gone, content[:, channels], filled[:, channels])
    return filled


def gradients(model):
    return {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}


def assert_bitwise_equal(first, second):
    assert torch.equal(first.logits, second.logits)
    assert torch.equal(first.coverage, second.coverage)
    for maps, others in zip(first.robustness or (), second.robustness or (), strict=True):
        assert torch.equal(maps, others)


@pytest.mark.parametrize("value", ["nan", "garbage"])
@pytest.mark.parametrize("backbone", ["pvt_v2", "resnet"])
@pytest.mark.parametrize("fusion", ["sgf", "projector_mean", "mean"])
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_what_stands_under_the_mask_changes_nothing(mask, fusion, backbone, value):
    model = tiny_model(fusion=fusion, **({"backbone_config": RESNET} if backbone == "resnet" else {})).train()
    size = tuple(mask.shape[2:]) or (64, 64)
    pixel_values, labels = batch(size=size)
    results = []
    for content in (pixel_values, fill_missing(pixel_values, mask, value)):
        model.zero_grad()
        output = model(content, mask, labels=labels, sampling_noise=torch.tensor([0.1, 0.5, 0.9]))
        output.loss.backward()
        results.append((output, gradients(model)))
    (first, first_gradients), (second, second_gradients) = results
    assert_bitwise_equal(first, second)
    assert torch.equal(first.loss, second.loss) and torch.isfinite(first.loss)
    assert torch.equal(first.sampling_probabilities, second.sampling_probabilities)
    for name, gradient in first_gradients.items():
        assert (gradient is None) == (second_gradients[name] is None), name
        assert gradient is None or torch.equal(gradient, second_gradients[name]), name


@pytest.mark.parametrize("size", [(64, 64), (50, 70)])
def test_an_all_true_mask_is_no_mask(size):
    model, (pixel_values, _) = tiny_model(), batch(size=size)
    without = model(pixel_values)
    assert_bitwise_equal(without, model(pixel_values, torch.ones(3, 3, dtype=torch.bool)))
    assert_bitwise_equal(without, model(pixel_values, torch.ones(3, 3, *size, dtype=torch.bool)))


@pytest.mark.parametrize("size", [(64, 64), (50, 70)])
def test_a_pair_that_covers_nothing_is_an_absent_pair(size):
    model, (pixel_values, _) = tiny_model(), batch(size=size)
    by_pixel = ROW_MASK[:, :, None, None].expand(-1, -1, *size)
    assert_bitwise_equal(model(pixel_values, ROW_MASK), model(pixel_values, by_pixel))


def count_encoded_pairs(model, *inputs):
    counts = []
    hook = model.sgma.backbone.register_forward_pre_hook(lambda module, args: counts.append(args[0].shape[0]))
    model(*inputs)
    hook.remove()
    return counts


def test_absent_modalities_are_not_encoded():
    model, (pixel_values, _) = tiny_model(), batch()
    assert count_encoded_pairs(model, pixel_values) == [9]
    assert count_encoded_pairs(model, pixel_values, ROW_MASK) == [6]
    assert count_encoded_pairs(model, pixel_values, pixel_mask()) == [3 + 2 + 1]
    assert count_encoded_pairs(model, pixel_values, torch.zeros(3, 3, 64, 64, dtype=torch.bool)) == []


# Not swinv2, which computes its position biases once for a batch.
@pytest.mark.parametrize("name", sorted(EVERY_BACKBONE.keys() - {"swinv2"}))
def test_a_third_absent_costs_two_thirds_of_the_encoders_operations(name):
    model, (pixel_values, labels) = tiny_model(backbone_config=EVERY_BACKBONE[name]).train(), batch()
    holed = torch.ones(3, 3, 64, 64, dtype=torch.bool)
    holed[:, :, :9, :9] = False  # what is there in part costs as much as what is whole

    def operations(mask):
        # the counter does not know the CPU's fused attention, so the plain products are counted
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            model(pixel_values, mask, labels=labels, sampling_noise=torch.full((3,), 0.5)).loss.backward()
        return sum(counter.get_flop_counts()["SgmaForSemanticSegmentation.sgma.backbone"].values())

    absent = ~torch.eye(3, dtype=torch.bool)
    whole = operations(None)
    assert whole > 0 and operations(holed) == whole
    assert 3 * operations(absent) == 3 * operations(holed & absent[..., None, None]) == 2 * whole


def test_absent_modalities_are_not_projected_and_get_no_gradient():
    model, (pixel_values, labels) = tiny_model().train(), batch()
    mask = torch.tensor([[True, False, True]] * 3)
    model(pixel_values, mask, labels=labels).loss.backward()
    for stage in model.sgma.fusion_stages:
        assert all(p.grad is None for p in stage.projectors[1].parameters())
        assert all(p.grad is not None for p in stage.projectors[2].parameters())


def test_one_modality_alone_needs_neither_attention_nor_prototypes():
    model, (pixel_values, labels) = tiny_model(), batch()
    mask = torch.tensor([[True, False, False], [False, True, False], [False, False, True]])
    output = model(pixel_values, mask, labels=labels, output_prototypes=True)
    assert output.prototypes is None
    output.loss.backward()
    stage = model.sgma.fusion_stages[0]
    unused = [*stage.spatial_perceptron.parameters(), *stage.semantic_filter.parameters()]
    unused += [stage.robustness_perceptron.query.weight, stage.robustness_perceptron.key.weight]
    assert all(p.grad is None for p in unused)
    assert stage.robustness_perceptron.value.weight.grad is not None


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_a_row_does_not_depend_on_its_neighbours(mask):
    # float64, since a convolution of one image may sum in another order than one of three
    model = spread_weights(tiny_model().double())
    pixel_values = batch(size=tuple(mask.shape[2:]) or (64, 64))[0].double()
    with torch.no_grad():
        together = model(pixel_values, mask)
        for row in range(3):
            alone = model(pixel_values[row : row + 1], mask[row : row + 1])
            torch.testing.assert_close(alone.logits[0], together.logits[row], rtol=1e-9, atol=1e-9)
            for maps, others in zip(alone.robustness, together.robustness, strict=True):
                torch.testing.assert_close(maps[0], others[row], rtol=1e-9, atol=1e-9, check_dtype=False)
            others = torch.roll(pixel_values, 1, 0)
            others[row] = pixel_values[row]
            changed = model(others, mask)
            torch.testing.assert_close(changed.logits[row], together.logits[row], rtol=1e-9, atol=1e-9)


def test_a_row_without_anything_never_shows_another_row():
    model, (pixel_values, _) = tiny_model(), batch()
    mask = torch.ones(3, 3, 64, 64, dtype=torch.bool)
    mask[1] = False
    pixel_values[0, :, :4, :4] = float("nan")  # the user's own mistake, in another row
    output = model(pixel_values, mask, output_prototypes=True)
    assert torch.isnan(output.logits[0]).any()
    assert torch.isfinite(output.logits[2]).all()
    for vectors in output.prototypes:
        assert (vectors[1] == 0).all() and torch.isfinite(vectors[2]).all()


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_robustness_is_shared_among_what_is_there(mask):
    size = tuple(mask.shape[2:]) or (64, 64)
    model = spread_weights(tiny_model())
    output = model(batch(size=size)[0], mask)
    covered = (mask if mask.ndim == 4 else mask[:, :, None, None].expand(-1, -1, *size)).float()
    for stride, maps in zip((4, 8, 16, 32), output.robustness, strict=True):
        cells = torch.nn.functional.max_pool2d(covered, stride, ceil_mode=True) > 0
        assert maps.dtype == torch.float32 and maps.min() >= 0 and maps.max() <= 1 + 1e-6
        assert (maps[~cells] == 0).all()
        torch.testing.assert_close(maps.sum(1), cells.any(1).float())
        single = cells & (cells.sum(1, keepdim=True) == 1)
        torch.testing.assert_close(maps[single], torch.ones_like(maps[single]))
        if stride == 4:
            assert maps[:, :2][cells[:, :2]].std() > 0.01  # it is not just 1 / number of modalities


def test_a_cell_half_covered_counts_half():
    # with queries of zero all scores are equal, and what decides is the covered fraction
    model = tiny_model()
    for stage in model.sgma.fusion_stages:
        torch.nn.init.zeros_(stage.robustness_perceptron.query.weight)
    mask = torch.ones(1, 3, 32, 32, dtype=torch.bool)
    mask[0, 0, :, 2:4] = False
    mask[0, 1, 1:4, :] = False
    robustness = model(batch(1, (32, 32))[0], mask).robustness
    # the cell (0, 0) of 4 x 4 pixels: fractions 1/2, 1/4 and 1
    torch.testing.assert_close(robustness[0][0, :, 0, 0], torch.tensor([2 / 7, 1 / 7, 4 / 7]))
    torch.testing.assert_close(robustness[0][0, :, 0, 1], torch.tensor([4 / 9, 1 / 9, 4 / 9]))
    # the whole image: 15/16, 29/32 and 1
    fractions = torch.tensor([30 / 32, 29 / 32, 1])
    torch.testing.assert_close(robustness[3][0, :, 0, 0], fractions / fractions.sum())


def test_coverage_shrinks_without_a_jump():
    model, (pixel_values, _) = tiny_model().double(), batch(1, (32, 32))
    pixel_values = pixel_values.double()
    pixel_values[:, :3] = model.config.gap_value  # what is masked looks like its fill: only the fraction changes
    mask = torch.ones(1, 3, 32, 32, dtype=torch.bool)
    whole = model(pixel_values, mask).robustness[3][0, :, 0, 0]
    mask[0, 0, 0, 0] = False
    nearly = model(pixel_values, mask).robustness[3][0, :, 0, 0]
    assert 0 < (whole - nearly).abs().max() < 1e-3


def test_pixels_that_nothing_covers_are_nodata():
    model, (pixel_values, labels) = tiny_model(), batch()
    mask = pixel_mask()
    output = model(pixel_values, mask, labels=labels)
    assert torch.equal(output.coverage, mask.any(1))
    assert torch.isfinite(output.logits).all() and torch.isfinite(output.loss)
    assert not output.coverage[2, 40, 5]
    for stride, maps in zip((4, 8, 16, 32), output.robustness, strict=True):
        assert (maps[2, :, -(-22 // stride) :] == 0).all()  # row 2 ends after the pixel row 21


def test_labels_where_nothing_covers_do_not_count():
    model, (pixel_values, labels) = tiny_model().train(), batch()
    mask, noise = pixel_mask(), torch.tensor([0.1, 0.5, 0.9])
    loss = model(pixel_values, mask, labels=labels, sampling_noise=noise).loss
    labels[2, 40:] = (labels[2, 40:] + 1) % 5
    assert torch.equal(model(pixel_values, mask, labels=labels, sampling_noise=noise).loss, loss)


def test_the_sampling_loss_counts_only_what_the_drawn_modality_covers():
    model, (pixel_values, labels) = tiny_model().train(), batch(1)
    mask = torch.ones(1, 3, 64, 64, dtype=torch.bool)
    mask[0, 0, :, 32:] = False
    drawn_first = {"sampling_noise": torch.zeros(1)}
    output = model(pixel_values, mask, labels=labels, **drawn_first)
    assert output.sampled_modality.tolist() == [0]
    labels[0, :, 32:] = (labels[0, :, 32:] + 1) % 5
    changed = model(pixel_values, mask, labels=labels, **drawn_first)
    assert torch.equal(changed.loss_dict["loss_mas"], output.loss_dict["loss_mas"])
    assert changed.loss_dict["loss_sgf"] != output.loss_dict["loss_sgf"]
    labels[0, :, 32:] = 255  # both terms are divided by the labelled pixels of the fused one: now half as many
    halved = model(pixel_values, mask, labels=labels, **drawn_first)
    torch.testing.assert_close(halved.loss_dict["loss_mas"], 2 * output.loss_dict["loss_mas"])


def test_a_row_without_any_modality_is_an_error_in_a_mask_of_pairs():
    model, (pixel_values, _) = tiny_model(), batch()
    mask = torch.tensor([[True, True, True], [False, False, False], [True, False, False]])
    with pytest.raises(ValueError, match=r"no modality at all in row\(s\) \[1\]"):
        model(pixel_values, mask)


@pytest.mark.parametrize("size", [(64, 64), (50, 70)])
def test_a_row_without_any_modality_is_nodata_in_a_mask_of_pixels(size):
    model, (pixel_values, labels) = tiny_model().train(), batch(size=size)
    mask = torch.ones(3, 3, *size, dtype=torch.bool)
    mask[1] = False
    noise = torch.tensor([0.1, 0.5, 0.9])
    output = model(pixel_values, mask, labels=labels, sampling_noise=noise)
    assert not output.coverage[1].any() and output.coverage[[0, 2]].all()
    assert all((maps[1] == 0).all() for maps in output.robustness)
    assert (output.sampling_probabilities[1] == 0).all()
    others = model(pixel_values[[0, 2]], labels=labels[[0, 2]], sampling_noise=noise[[0, 2]])
    torch.testing.assert_close(output.logits[[0, 2]], others.logits)
    torch.testing.assert_close(output.loss, others.loss)  # the empty row takes no part in the loss either


@pytest.mark.parametrize("fusion", ["sgf", "mean"])
@pytest.mark.parametrize("training", [True, False])
def test_a_batch_of_nothing_is_nodata(fusion, training):
    model, (pixel_values, labels) = tiny_model(fusion=fusion).train(training), batch(size=(50, 70))
    mask = torch.zeros(3, 3, 50, 70, dtype=torch.bool)
    output = model(pixel_values * float("nan"), mask, labels=labels)
    assert output.logits.shape == (3, 5, 13, 18)
    assert torch.isfinite(output.logits).all() and not output.coverage.any()
    assert output.loss.item() == 0
    output.loss.backward()


@pytest.mark.parametrize("num_modalities", [1, 2, 5])
def test_any_number_of_modalities(num_modalities):
    names = ["rgb", "dsm", "sar", "s2", "hyper"][:num_modalities]
    channels = [3, 1, 2, 12, 369][:num_modalities]
    model = tiny_model(modalities=names, modality_channels=channels).train()
    pixel_values = torch.randn(2, sum(channels), 40, 40)
    mask = torch.ones(2, num_modalities, dtype=torch.bool)
    mask[0, 1:] = False
    output = model(pixel_values, mask, labels=torch.zeros(2, 40, 40, dtype=torch.long))
    output.loss.backward()
    assert output.robustness[0].shape == (2, num_modalities, 10, 10)
    assert torch.equal(output.robustness[0][0, 0], torch.ones(10, 10))
