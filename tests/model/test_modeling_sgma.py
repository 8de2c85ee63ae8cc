import itertools

import pytest
import torch
from tiny_models import assert_same_model, spread_weights, tiny_config, tiny_model

from sgma_hf import SgmaConfig, SgmaForSemanticSegmentation, SgmaModel
from sgma_hf.model.layers_sgma import class_prototypes


COMBINATIONS = [list(mask) for mask in itertools.product([True, False], repeat=3) if any(mask)]


def batch(batch_size=2, size=(64, 64), channels=6, seed=0, num_labels=5):
    generator = torch.Generator().manual_seed(seed)
    pixel_values = torch.randn(batch_size, channels, *size, generator=generator)
    return pixel_values, torch.randint(num_labels, (batch_size, *size), generator=generator)


# --- what it is made of ---


def test_the_published_blocks_have_the_published_number_of_parameters():
    with torch.device("meta"):
        model = SgmaForSemanticSegmentation(SgmaConfig(num_labels=5))
    counts = {name: sum(p.numel() for p in module.parameters()) for name, module in model.sgma.named_children()}
    assert counts["fusion_stages"] == 4_790_272
    # by block, at C = 64, 128, 320, 512: 179 C + C^2 per modality, 4 C^2 per perceptron, K C for the filter
    blocks = {"projectors": 0, "spatial_perceptron": 0, "robustness_perceptron": 0, "semantic_filter": 0}
    for name, parameter in model.sgma.fusion_stages.named_parameters():
        blocks[name.split(".")[1]] += parameter.numel()
    assert blocks == {
        "projectors": 3 * (179 * 1024 + 385_024),
        "spatial_perceptron": 4 * 385_024,
        "robustness_perceptron": 4 * 385_024,
        "semantic_filter": 5 * 1024,
    }
    # what is ours: the adapters of 3, 1 and 1 bands, 16 (C + 1) + 3 (16 + 1) each; the head
    assert counts["stems"] == 115 + 83 + 83
    head = sum(parameter.numel() for parameter in model.decode_head.parameters())
    assert head == (1024 * 256 + 4 * 256) + 2 * 256 + (256 * 5 + 5)
    assert sum(p.numel() for p in model.parameters()) == counts["backbone"] + counts["stems"] + 4_790_272 + head


@pytest.mark.parametrize(
    ("fusion", "kept"),
    [
        ("mean", set()),
        ("projector_mean", {"projectors"}),
        ("sgf", {"projectors", "semantic_filter", "spatial_perceptron", "robustness_perceptron"}),
    ],
)
def test_the_baselines_leave_blocks_out(fusion, kept):
    names = {name.split(".")[1] for name, _ in tiny_model(fusion=fusion).sgma.fusion_stages.named_parameters()}
    assert names == kept


def test_only_bands_that_the_encoder_cannot_take_get_a_stem():
    modalities = {"modalities": ["rgb", "dsm", "s2", "hyper"], "modality_channels": [3, 1, 12, 369]}
    model = tiny_model(**modalities, modality_adapter_size=0)
    shapes = [tuple(parameter.shape) for parameter in model.sgma.stems.parameters()]
    assert shapes == [(3, 12, 1, 1), (3, 369, 1, 1)]
    adapters = tiny_model(**modalities, modality_adapter_size=4).sgma.stems[2].adapter.parameters()
    assert [tuple(parameter.shape) for parameter in adapters] == [(4, 12, 1, 1), (4,), (3, 4, 1, 1), (3,)]


def test_adapters_change_nothing_until_they_have_learnt():
    pixel_values, labels = batch(size=(32, 32))
    pixel_values = pixel_values.double()
    model = tiny_model(modality_adapter_size=4).double()
    plain = tiny_model(modality_adapter_size=0).double()
    report = plain.load_state_dict(model.state_dict(), strict=False)
    assert not report.missing_keys and all(".adapter." in name for name in report.unexpected_keys)
    torch.testing.assert_close(model(pixel_values).logits, plain(pixel_values).logits, rtol=0, atol=1e-10)
    model(pixel_values, labels=labels).loss.backward()
    for stem in model.sgma.stems:
        assert stem.adapter.output.weight.grad.abs().sum() > 0  # so the hidden units learn from the second step on
        assert 0.1 < stem.adapter.hidden.bias.abs().mean() < 1.5


def test_heads_that_do_not_divide_the_channels_are_refused():
    with pytest.raises(ValueError, match="`num_attention_heads` is 3, which does not divide the 8 channels"):
        tiny_model(num_attention_heads=3)


# --- what comes out ---


@pytest.mark.parametrize("mask", COMBINATIONS)
def test_shapes_for_every_combination_of_modalities(mask):
    pixel_values, labels = batch(size=(40, 72))
    output = tiny_model()(pixel_values, torch.tensor([mask] * 2), labels=labels, output_hidden_states=True)
    assert output.logits.shape == (2, 5, 10, 18)
    robustness = [(2, 3, 10, 18), (2, 3, 5, 9), (2, 3, 3, 5), (2, 3, 2, 3)]
    assert [tuple(maps.shape) for maps in output.robustness] == robustness
    assert output.coverage.shape == (2, 40, 72) and output.coverage.dtype == torch.bool
    fused = [(2, 8, 16, 24), (2, 16, 8, 12), (2, 16, 4, 6), (2, 24, 2, 3)]
    assert [tuple(maps.shape) for maps in output.hidden_states] == fused
    assert output.loss.ndim == 0 and torch.isfinite(output.loss)


@pytest.mark.parametrize("size", [(1, 1), (20, 20), (33, 65), (101, 67), (32, 64)])
def test_any_size_goes_through(size):
    model = tiny_model()
    pixel_values, labels = batch(size=size)
    output = model(pixel_values, torch.tensor([[True, False, True], [True, True, True]]), labels=labels)
    assert output.logits.shape == (2, 5, -(-size[0] // 4), -(-size[1] // 4))
    assert output.coverage.all() and output.coverage.shape[1:] == size
    assert torch.isfinite(output.logits).all() and torch.isfinite(output.loss)
    for stride, maps in zip((4, 8, 16, 32), output.robustness, strict=True):
        assert maps.shape == (2, 3, -(-size[0] // stride), -(-size[1] // stride))
        torch.testing.assert_close(maps.sum(1), torch.ones_like(maps[:, 0]))
    output.loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_the_first_outputs_are_loss_and_logits():
    pixel_values, labels = batch()
    model = tiny_model()
    output = model(pixel_values, labels=labels)
    assert output[0] is output.loss and output[1] is output.logits
    assert model(pixel_values)[0].shape == (2, 5, 16, 16)
    as_tuple = model(pixel_values, labels=labels, return_dict=False)
    assert isinstance(as_tuple, tuple) and torch.equal(as_tuple[1], output.logits)
    output = model.train()(pixel_values, labels=labels, sampling_noise=torch.tensor([0.1, 0.9]))
    assert output[0] is output.loss and output[1] is output.logits


def test_prototypes_and_hidden_states_come_on_request_only():
    model, (pixel_values, _) = tiny_model(), batch()
    output = model(pixel_values)
    assert output.prototypes is None and output.hidden_states is None
    output = model(pixel_values, output_prototypes=True, output_hidden_states=True)
    assert [tuple(vectors.shape) for vectors in output.prototypes] == [(2, 5, 8), (2, 5, 16), (2, 5, 16), (2, 5, 24)]
    headless = model.sgma(pixel_values)
    for maps, hidden in zip(headless.feature_maps, output.hidden_states, strict=True):
        assert torch.equal(maps, hidden)


def test_a_prototype_is_an_average_weighted_by_the_softmax_of_the_class_score():
    tokens = torch.tensor([[[[1.0], [2.0]]], [[[4.0], [8.0]]]])  # two modalities, one row, two positions, one channel
    logits = torch.tensor([1.0, 1.0, 2.0, 4.0]).log().view(2, 1, 2, 1)
    assert class_prototypes(logits, tokens, None).item() == pytest.approx((1 + 2 + 2 * 4 + 4 * 8) / 8)
    half = torch.tensor([1.0, 1.0, 1.0, 0.5]).log().view(2, 1, 2)  # the last position is covered by half
    assert class_prototypes(logits, tokens, half).item() == pytest.approx((1 + 2 + 2 * 4 + 2 * 8) / 6)


def test_a_prototype_does_not_depend_on_the_size_of_the_image():
    tokens, logits = torch.randn(2, 1, 6, 4), torch.randn(2, 1, 6, 3)
    doubled = class_prototypes(logits.repeat(1, 1, 2, 1), tokens.repeat(1, 1, 2, 1), None)
    torch.testing.assert_close(doubled, class_prototypes(logits, tokens, None))


# --- the loss ---


def test_the_loss_in_training_is_two_to_one():
    pixel_values, labels = batch()
    model = tiny_model().train()
    output = model(pixel_values, labels=labels, sampling_noise=torch.tensor([0.2, 0.7]))
    assert set(output.loss_dict) == {"loss_sgf", "loss_mas"}
    expected = 2 * output.loss_dict["loss_sgf"] + output.loss_dict["loss_mas"]
    torch.testing.assert_close(output.loss.detach(), expected)
    assert not any(term.requires_grad for term in output.loss_dict.values())
    assert set(model.eval()(pixel_values, labels=labels).loss_dict) == {"loss_sgf"}


def test_the_paper_s_loss_is_the_mean_over_valid_pixels():
    pixel_values, labels = batch(size=(32, 32))
    labels[0] = 255
    model = tiny_model(dice_loss_weight=0)
    output = model(pixel_values, labels=labels)
    alone = model(pixel_values[1:], labels=labels[1:])
    torch.testing.assert_close(output.loss, alone.loss)
    full_size = torch.nn.functional.interpolate(alone.logits, scale_factor=4, mode="bilinear", align_corners=False)
    torch.testing.assert_close(output.loss, 2 * torch.nn.functional.cross_entropy(full_size, labels[1:]))


@pytest.mark.parametrize("training", [True, False])
def test_a_batch_without_a_valid_label_costs_nothing(training):
    model = tiny_model().train(training)
    pixel_values, labels = batch()
    output = model(pixel_values, labels=torch.full_like(labels, 255))
    assert output.loss.item() == 0
    output.loss.backward()
    assert all((p.grad == 0).all() for p in model.parameters() if p.grad is not None)


def test_labels_of_any_integer_type_are_the_same_labels():
    model, (pixel_values, labels) = tiny_model(), batch()
    losses = [model(pixel_values, labels=labels.to(dtype)).loss for dtype in (torch.uint8, torch.int32, torch.int64)]
    assert losses[0] == losses[1] == losses[2]


def test_without_its_weight_the_sampling_branch_is_not_computed():
    pixel_values, labels = batch()
    output = tiny_model(mas_loss_weight=0).train()(pixel_values, labels=labels)
    assert set(output.loss_dict) == {"loss_sgf"} and output.sampled_modality is None
    torch.testing.assert_close(output.loss.detach(), 2 * output.loss_dict["loss_sgf"])


@pytest.mark.parametrize("fusion", ["mean", "projector_mean"])
def test_baselines_train_and_draw_uniformly(fusion):
    pixel_values, labels = batch()
    model = tiny_model(fusion=fusion).train()
    mask = torch.tensor([[True, True, True], [True, False, True]])
    output = model(pixel_values, mask, labels=labels, sampling_noise=torch.tensor([0.34, 0.49]))
    assert output.robustness is None
    expected = torch.tensor([[1 / 3, 1 / 3, 1 / 3], [0.5, 0, 0.5]])
    torch.testing.assert_close(output.sampling_probabilities, expected)
    assert output.sampled_modality.tolist() == [1, 0]
    output.loss.backward()
    assert all(p.grad is not None for p in model.parameters())


def test_every_parameter_learns_from_a_complete_batch():
    model = spread_weights(tiny_model()).train()  # adapters start at 0, behind which nothing learns in the first step
    pixel_values, labels = batch()
    model(pixel_values, labels=labels).loss.backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


@pytest.mark.parametrize("num_labels", [2, 25, 255])
def test_any_number_of_classes_trains(num_labels):
    model = tiny_model(num_labels=num_labels).train()
    pixel_values, labels = batch(num_labels=num_labels)
    output = model(pixel_values, labels=labels)
    output.loss.backward()
    assert output.logits.shape[1] == num_labels and torch.isfinite(output.loss)


# --- input that does not fit ---


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"pixel_values": torch.zeros(2, 5, 64, 64)}, ValueError, r"\(2, 5, 64, 64\).*6.*'rgb': 3, 'dsm': 1"),
        ({"pixel_values": torch.zeros(6, 64, 64)}, ValueError, r"shape \(6, 64, 64\)"),
        ({"pixel_values": torch.zeros(2, 6, 64, 64, dtype=torch.uint8)}, TypeError, "normalised floats"),
        ({"modality_mask": torch.ones(2, 2, dtype=torch.bool)}, ValueError, r"shape \(2, 2\); expected \(2, 3\)"),
        ({"modality_mask": torch.ones(2, 3, 32, 32, dtype=torch.bool)}, ValueError, r"\(2, 3, 64, 64\)"),
        ({"modality_mask": torch.ones(2, 3)}, TypeError, "float32; expected bool"),
        ({"modality_mask": torch.ones(2, 3, dtype=torch.long)}, TypeError, "int64; expected bool"),
        ({"labels": torch.zeros(2, 16, 16, dtype=torch.long)}, ValueError, r"\(2, 16, 16\); expected \(2, 64, 64\)"),
        ({"labels": torch.zeros(2, 64, 64)}, TypeError, "float32; expected integers"),
        ({"labels": torch.full((2, 64, 64), 5)}, ValueError, r"holds \[5\]; expected classes 0 to 4, or 255"),
        ({"labels": torch.full((2, 64, 64), -1)}, ValueError, r"holds \[-1\]"),
    ],
)
def test_input_that_does_not_fit_is_refused_with_the_reason(change, error, message):
    with pytest.raises(error, match=message):
        tiny_model()(**{"pixel_values": batch()[0], **change})


# --- precision ---


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.05), (torch.float16, 0.01)])
def test_autocast_computes_softmax_draw_and_loss_in_float32(dtype, tolerance):
    pixel_values, labels = batch()
    mask = torch.ones(2, 3, 64, 64, dtype=torch.bool)
    mask[0, 1, :, 20:] = False
    mask[1, 2] = False
    model = tiny_model().train()
    noise = torch.tensor([0.3, 0.8])
    exact = model(pixel_values, mask, labels=labels, sampling_noise=noise)
    with torch.autocast("cpu", dtype=dtype):
        output = model(pixel_values, mask, labels=labels, sampling_noise=noise)
    assert output.logits.dtype == dtype
    float32 = [output.loss, output.sampling_probabilities, *output.robustness, *output.loss_dict.values()]
    assert {tensor.dtype for tensor in float32} == {torch.float32}
    assert output.sampled_modality.tolist() == exact.sampled_modality.tolist()
    torch.testing.assert_close(output.loss, exact.loss, rtol=tolerance, atol=0)
    torch.testing.assert_close(output.logits.float(), exact.logits, rtol=0, atol=10 * tolerance)
    for maps, right in zip(output.robustness, exact.robustness, strict=True):
        torch.testing.assert_close(maps, right, rtol=0, atol=tolerance)
    if dtype == torch.bfloat16:  # float16 gradients need a scaler, which is the trainer's
        output.loss.backward()
        assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_prototypes_of_large_images_survive_float16():
    # 200,000 positions: a weight of 5e-6 is below what float16 holds with full precision
    generator = torch.Generator().manual_seed(0)
    tokens = torch.rand(1, 1, 200_000, 2, generator=generator)
    logits = torch.randn(1, 1, 200_000, 3, generator=generator)
    exact = class_prototypes(logits.double(), tokens.double(), None)
    half = class_prototypes(logits.half(), tokens.half(), None)
    torch.testing.assert_close(half.double(), exact, rtol=5e-3, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_model_of_another_precision_runs(dtype):
    pixel_values, labels = batch(size=(40, 40))
    mask = torch.tensor([[True, True, False], [True, False, False]])
    output = tiny_model().to(dtype).train()(pixel_values.to(dtype), mask, labels=labels)
    assert output.logits.dtype == dtype
    assert output.loss.dtype == torch.promote_types(dtype, torch.float32)
    output.loss.backward()


# --- encode once, fuse often ---


@pytest.mark.parametrize("fusion", ["sgf", "projector_mean", "mean"])
@pytest.mark.parametrize("size", [(64, 64), (40, 72)])
def test_a_subset_of_an_encoding_equals_the_masked_forward(fusion, size):
    model = spread_weights(tiny_model(fusion=fusion).double())
    pixel_values = batch(size=size)[0].double()
    with torch.no_grad():
        encoding = model.encode(pixel_values)
        for mask in COMBINATIONS:
            subset = torch.tensor(mask)
            output = model.fuse_and_decode(encoding, subset)
            expected = model(pixel_values, subset.expand(2, 3))
            torch.testing.assert_close(output.logits, expected.logits)
            assert torch.equal(output.coverage, expected.coverage)
            for maps, right in zip(output.robustness or (), expected.robustness or (), strict=True):
                torch.testing.assert_close(maps, right)


def test_a_subset_of_an_incomplete_encoding_equals_the_masked_forward():
    model = spread_weights(tiny_model().double())
    pixel_values = batch(batch_size=3)[0].double()
    mask = torch.ones(3, 3, 64, 64, dtype=torch.bool)
    mask[0, 0, :40] = False
    mask[1, 2] = False
    mask[2, 1:] = False
    with torch.no_grad():
        encoding = model.encode(pixel_values, mask)
        for subset in map(torch.tensor, COMBINATIONS):
            expected = model(pixel_values, mask & subset[None, :, None, None])
            output = model.fuse_and_decode(encoding, subset)
            torch.testing.assert_close(output.logits, expected.logits)
            assert torch.equal(output.coverage, expected.coverage)
            by_row = model.fuse_and_decode(encoding, subset.expand(3, 3))
            assert torch.equal(by_row.logits, output.logits)


# --- saving and loading ---


def test_a_reloaded_model_is_the_same(tmp_path):
    model, (pixel_values, _) = tiny_model(), batch()
    model.save_pretrained(tmp_path)
    loaded, report = SgmaForSemanticSegmentation.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert not loaded.training
    assert_same_model(loaded, model, pixel_values)


def test_another_class_count_starts_from_finite_new_weights(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        SgmaForSemanticSegmentation.from_pretrained(tmp_path, num_labels=3)
    loaded, report = SgmaForSemanticSegmentation.from_pretrained(
        tmp_path, num_labels=3, ignore_mismatched_sizes=True, output_loading_info=True
    )
    renewed = {entry[0] for entry in report["mismatched_keys"]}
    filters = {f"sgma.fusion_stages.{level}.semantic_filter.classifier.weight" for level in range(4)}
    assert renewed == filters | {"decode_head.classifier.weight", "decode_head.classifier.bias"}
    for name, parameter in loaded.named_parameters():
        assert torch.isfinite(parameter).all() and parameter.abs().max() < 10, name
        starts_at_zero = name == "decode_head.classifier.bias" or ".adapter.output." in name
        assert starts_at_zero or parameter.std() > 0 or parameter.ndim == 1, name
    output = loaded(batch()[0])
    assert output.logits.shape[1] == 3 and torch.isfinite(output.logits).all()


def test_a_headless_checkpoint_is_not_given_a_random_head(tmp_path):
    model = tiny_model()
    model.sgma.save_pretrained(tmp_path)
    pixel_values = batch()[0]
    headless = SgmaModel.from_pretrained(tmp_path)
    assert_same_model(headless, model.sgma, pixel_values)
    with pytest.raises(ValueError, match="without a decode head"):
        SgmaForSemanticSegmentation.from_pretrained(tmp_path)


def test_the_headless_model_takes_its_part_of_a_whole_checkpoint(tmp_path):
    model, pixel_values = tiny_model(), batch()[0]
    model.save_pretrained(tmp_path)
    headless = SgmaModel.from_pretrained(tmp_path)
    assert_same_model(headless, model.sgma, pixel_values)


def test_two_models_of_one_seed_are_equal_and_start_near_chance():
    first, second = tiny_model(seed=3), tiny_model(seed=3)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    pixel_values, labels = batch()
    model = SgmaForSemanticSegmentation(tiny_config(dice_loss_weight=0))
    loss = model(pixel_values, labels=labels).loss_dict["loss_sgf"]
    assert loss.item() == pytest.approx(1.609, abs=0.4)  # log 5, and what initial scores of about 1 add


def test_a_new_model_fuses_to_the_mean_of_its_projectors_weighted_by_robustness():
    model = tiny_model(num_attention_heads=1)  # the maps are the mean over the heads
    encoding = model.encode(batch()[0])
    fused = model.sgma.fuse(encoding)
    for stage, maps, robustness in zip(encoding.stages, fused.feature_maps, fused.robustness, strict=True):
        tokens = stage.tokens.unflatten(0, (model.config.num_modalities, -1)).unflatten(2, stage.size)  # M, B, h, w, C
        weights = robustness.transpose(0, 1).unsqueeze(-1)
        torch.testing.assert_close(maps.permute(0, 2, 3, 1), (weights * tokens).sum(0))
    alone = model.sgma.fuse_single(encoding, torch.zeros(robustness.shape[0], dtype=torch.int64))
    expected = encoding.stages[0].tokens[: robustness.shape[0]].transpose(1, 2)
    torch.testing.assert_close(alone[0].flatten(2), expected)
