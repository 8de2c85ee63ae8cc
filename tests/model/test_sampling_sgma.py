import pytest
import torch
from tiny_models import spread_weights, tiny_model

from sgma_hf.model.losses_sgma import modality_sampling_probabilities, sample_modality


ALL = torch.tensor([[True, True, True]])


def constant_maps(values, sizes=((4, 4), (2, 2), (1, 1), (1, 1))):
    return tuple(torch.tensor(values)[None, :, None, None].expand(1, -1, *size) for size in sizes)


def test_the_fragile_modality_gets_the_larger_probability():
    # inverses of 1/2, 1/3 and 1/6 are 2, 3 and 6
    probabilities = modality_sampling_probabilities(constant_maps([1 / 2, 1 / 3, 1 / 6]), None, ALL)
    torch.testing.assert_close(probabilities, torch.tensor([[2 / 11, 3 / 11, 6 / 11]]))


def test_the_exponent_flattens_or_sharpens_the_draw_among_those_present():
    # shares of the two that are there: 1/4 and 3/4
    present = torch.tensor([[True, False, True]])
    maps = constant_maps([0.75, 0.0, 0.25])
    for exponent, expected in ((0.0, [0.5, 0.0, 0.5]), (1.0, [0.25, 0.0, 0.75]), (2.0, [0.1, 0.0, 0.9])):
        probabilities = modality_sampling_probabilities(maps, None, present, exponent)
        torch.testing.assert_close(probabilities, torch.tensor([expected]))
    nothing = modality_sampling_probabilities(maps, None, torch.zeros_like(present), 0.0)
    assert nothing.tolist() == [[0, 0, 0]]


def test_the_model_draws_by_its_exponent():
    images = torch.randn(3, 6, 32, 32, generator=torch.Generator().manual_seed(0))
    labels = torch.zeros(3, 32, 32, dtype=torch.long)
    found = {}
    for exponent in (0, 1, 2):
        model = spread_weights(tiny_model(mas_exponent=exponent)).train()
        found[exponent] = model(images, labels=labels).sampling_probabilities
    torch.testing.assert_close(found[0], torch.full((3, 3), 1 / 3))
    assert (found[1] - 1 / 3).abs().max() > 0.01
    torch.testing.assert_close(found[2], found[1] ** 2 / (found[1] ** 2).sum(1, keepdim=True))


def test_shares_are_averaged_over_positions_and_then_over_stages():
    first = torch.tensor([[0.5, 0.2], [0.5, 0.8]]).view(1, 2, 1, 2)  # two positions: shares 1/2 and 4/5 of modality 0
    second = torch.tensor([0.25, 0.75]).view(1, 2, 1, 1)  # share of modality 0: 4 / (4 + 4/3) = 3/4
    probabilities = modality_sampling_probabilities((first, second), None, torch.tensor([[True, True]]))
    torch.testing.assert_close(probabilities, torch.tensor([[(0.65 + 0.75) / 2, (0.35 + 0.25) / 2]]))


def test_an_absent_modality_has_probability_zero():
    present = torch.tensor([[True, False, True]])
    probabilities = modality_sampling_probabilities(constant_maps([0.75, 0.0, 0.25]), None, present)
    torch.testing.assert_close(probabilities, torch.tensor([[0.25, 0.0, 0.75]]))


def test_a_modality_alone_is_certain_and_nothing_has_nothing():
    present = torch.tensor([[False, True, False]])
    probabilities = modality_sampling_probabilities(constant_maps([0.0, 1.0, 0.0]), None, present)
    assert probabilities.tolist() == [[0, 1, 0]]
    nothing = modality_sampling_probabilities(constant_maps([0.0, 0.0, 0.0]), None, torch.zeros_like(present))
    assert nothing.tolist() == [[0, 0, 0]]


def test_only_positions_where_modalities_meet_count():
    # two modalities over four cells: both cover the first two, one alone the third, neither the last
    fractions = torch.tensor([[1.0, 0.5, 1.0, 0.0], [1.0, 1.0, 0.0, 0.0]]).view(1, 2, 1, 4)
    maps = torch.tensor([[0.5, 0.2, 1.0, 0.0], [0.5, 0.8, 0.0, 0.0]]).view(1, 2, 1, 4)
    probabilities = modality_sampling_probabilities((maps,), [fractions], torch.tensor([[True, True]]))
    torch.testing.assert_close(probabilities, torch.tensor([[0.65, 0.35]]))


def test_a_modality_that_meets_no_other_gets_an_even_share():
    # modalities 0 and 1 share the first cell at 1/4 : 3/4; modality 2 has the second for itself
    fractions = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]).view(1, 3, 1, 2)
    maps = torch.tensor([[0.25, 0.0], [0.75, 0.0], [0.0, 1.0]]).view(1, 3, 1, 2)
    probabilities = modality_sampling_probabilities((maps,), [fractions], ALL)
    torch.testing.assert_close(probabilities, torch.tensor([[0.75, 0.25, 1 / 3]]) / (4 / 3))


def test_a_robustness_of_zero_is_clamped():
    probabilities = modality_sampling_probabilities(constant_maps([1.0, 0.0, 0.0]), None, ALL)
    assert torch.isfinite(probabilities).all()
    torch.testing.assert_close(probabilities, torch.tensor([[0.0, 0.5, 0.5]]), atol=1e-5, rtol=0)


def test_without_robustness_all_present_modalities_are_equal():
    present = torch.tensor([[True, True, False], [True, True, True]])
    expected = torch.tensor([[0.5, 0.5, 0], [1 / 3, 1 / 3, 1 / 3]])
    torch.testing.assert_close(modality_sampling_probabilities(None, None, present), expected)


@pytest.mark.parametrize(
    ("noise", "drawn"), [(0.0, 1), (0.24, 1), (0.26, 2), (0.49, 2), (0.51, 4), (0.999, 4), (0.99999999, 4)]
)
def test_noise_decides_and_never_for_what_has_no_probability(noise, drawn):
    probabilities = torch.tensor([[0.0, 0.25, 0.25, 0.0, 0.5, 0.0]])
    assert sample_modality(probabilities, torch.tensor([noise])).item() == drawn


def test_draws_follow_the_probabilities():
    generator = torch.Generator().manual_seed(0)
    probabilities = torch.tensor([0.1, 0.0, 0.6, 0.3]).expand(20_000, -1)
    counts = sample_modality(probabilities, torch.rand(20_000, generator=generator)).bincount(minlength=4)
    expected = torch.tensor([2000.0, 0, 12000, 6000])
    assert counts[1] == 0
    # chi-square with two degrees of freedom: above 13.8 once in a thousand seeds
    assert ((counts - expected)[[0, 2, 3]] ** 2 / expected[[0, 2, 3]]).sum() < 13.8


def training_batch():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 6, 64, 64, generator=generator), torch.randint(5, (2, 64, 64), generator=generator)


def test_the_draw_is_a_function_of_the_noise_given():
    pixel_values, labels = training_batch()
    model = spread_weights(tiny_model()).train()
    mask = torch.tensor([[True, True, True], [True, False, True]])
    low = model(pixel_values, mask, labels=labels, sampling_noise=torch.tensor([0.0, 0.0]))
    high = model(pixel_values, mask, labels=labels, sampling_noise=torch.tensor([0.999, 0.999]))
    assert low.sampled_modality.tolist() == [0, 0] and high.sampled_modality.tolist() == [2, 2]
    assert torch.equal(low.sampling_probabilities, high.sampling_probabilities)
    assert low.loss_dict["loss_mas"] != high.loss_dict["loss_mas"]
    again = model(pixel_values, mask, labels=labels, sampling_noise=torch.tensor([0.0, 0.0]))
    assert torch.equal(again.loss, low.loss)


def test_without_noise_the_global_generator_decides():
    pixel_values, labels = training_batch()
    model = tiny_model().train()
    losses = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        losses.append(model(pixel_values, labels=labels).sampled_modality.tolist())
    assert losses[0] == losses[1]


def test_no_gradient_flows_through_the_draw():
    pixel_values, labels = training_batch()
    model = spread_weights(tiny_model(sgf_loss_weight=0.0)).train()
    output = model(pixel_values, labels=labels, sampling_noise=torch.tensor([0.3, 0.6]))
    assert not output.sampling_probabilities.requires_grad
    output.loss.backward()
    for stage in model.sgma.fusion_stages:
        # all that decides the probabilities and nothing else: the sampled modality passes by them
        deciding = [*stage.semantic_filter.parameters(), *stage.spatial_perceptron.parameters()]
        deciding += [stage.robustness_perceptron.query.weight, stage.robustness_perceptron.key.weight]
        assert all(p.grad is None or (p.grad == 0).all() for p in deciding)
        assert stage.robustness_perceptron.value.weight.grad.abs().sum() > 0


def test_a_row_with_one_modality_is_drawn_with_certainty_and_its_losses_agree():
    pixel_values, labels = training_batch()
    mask = torch.tensor([[False, True, False], [False, True, False]])
    output = tiny_model().train()(pixel_values, mask, labels=labels)
    assert output.sampled_modality.tolist() == [1, 1]
    assert output.sampling_probabilities.tolist() == [[0, 1, 0], [0, 1, 0]]
    torch.testing.assert_close(output.loss_dict["loss_mas"], output.loss_dict["loss_sgf"])


def test_the_sampled_prediction_is_the_forward_of_that_modality_alone():
    pixel_values, labels = training_batch()
    model = spread_weights(tiny_model()).train()
    output = model(pixel_values, labels=labels, sampling_noise=torch.tensor([0.0, 0.999]))
    alone = torch.tensor([[True, False, False], [False, False, True]])
    expected = model.eval()(pixel_values, alone, labels=labels).loss_dict["loss_sgf"]
    torch.testing.assert_close(output.loss_dict["loss_mas"], expected)
