import itertools

import pytest
import torch
from tiny_models import assert_same_model, spread_weights, tiny_model

from sgma_hf import SgmaForSemanticSegmentation, SgmaImageProcessor


SIZE = (50, 70)  # no multiple of 32, so that padding takes part
SUBSETS = [subset for subset in itertools.product([True, False], repeat=3) if any(subset)]


def make_pair(**changes):
    model = spread_weights(tiny_model(**changes)).eval()
    config = model.config
    return model, SgmaImageProcessor(config.modalities, config.modality_channels, num_labels=config.num_labels)


def make_inputs():
    """Two rows, with every mix of present modalities, and once with coverage that ends inside the image."""
    generator = torch.Generator().manual_seed(0)
    pixel_values = torch.randn(2, 6, *SIZE, generator=generator)
    masks = [torch.tensor(pair) for pair in itertools.product(SUBSETS, SUBSETS)]
    return pixel_values, [*masks, torch.rand(2, 3, *SIZE, generator=generator) > 0.3]


@torch.no_grad()
def predict(model, pixel_values, masks):
    return [model(pixel_values, mask) for mask in masks]


@pytest.mark.parametrize("fusion", ["sgf", "mean", "projector_mean"])
def test_an_added_modality_changes_nothing_where_it_is_absent(fusion):
    model, processor = make_pair(fusion=fusion)
    pixel_values, masks = make_inputs()
    before, weights = predict(model, pixel_values, masks), {k: v.clone() for k, v in model.state_dict().items()}
    model.add_modality("thermal", channels=4, processor=processor, image_mean=0.3)
    wider = torch.cat([pixel_values, torch.full((2, 4, *SIZE), float("nan"))], 1)
    after = predict(model, wider, [torch.cat([mask, torch.zeros_like(mask[:, :1])], 1) for mask in masks])
    for old, new in zip(before, after, strict=True):
        assert torch.equal(old.logits, new.logits)
        if fusion == "sgf":
            assert all(torch.equal(a, b[:, :3]) for a, b in zip(old.robustness, new.robustness, strict=True))
            assert all((maps[:, 3] == 0).all() for maps in new.robustness)
    assert all(torch.equal(weights[name], model.state_dict()[name]) for name in weights)
    with torch.no_grad():
        assert model(torch.nan_to_num(wider)).logits.isfinite().all()
    assert model.config.modalities == processor.modalities == ["rgb", "dsm", "sar", "thermal"]
    assert model.config.modality_channels == processor.modality_channels == [3, 1, 2, 4]
    assert processor.image_mean[3] == [0.3] * 4


@pytest.mark.parametrize("fusion", ["sgf", "mean", "projector_mean"])
@pytest.mark.parametrize("name", ["rgb", "dsm", "sar"])
def test_a_dropped_modality_leaves_predictions_without_it_as_they_were(fusion, name):
    model, processor = make_pair(fusion=fusion)
    index = model.config.modalities.index(name)
    channels = torch.tensor([0, 0, 0, 1, 2, 2]) != index
    rest = torch.arange(3) != index
    pixel_values, masks = make_inputs()
    masks = [mask for mask in masks if mask.ndim == 2 and not mask[:, index].any()]
    before = predict(model, pixel_values, masks)
    model.drop_modality(name, processor=processor)
    after = predict(model, pixel_values[:, channels], [mask[:, rest] for mask in masks])
    assert len(masks) == 9
    assert all(torch.equal(old.logits, new.logits) for old, new in zip(before, after, strict=True))
    assert (
        model.config.modalities == processor.modalities == [other for other in ["rgb", "dsm", "sar"] if other != name]
    )
    assert len(processor.image_std) == len(processor.nodata) == model.config.num_modalities == 2


def test_adding_and_dropping_survive_saving_and_give_gradients(tmp_path):
    model, processor = make_pair()
    model.train()
    model.add_modality("thermal", processor=processor, like="dsm")
    model.drop_modality("rgb", processor=processor)
    new = model.sgma.fusion_stages[0].projectors[2]
    assert new.training
    torch.testing.assert_close(new.pointwise.weight, model.sgma.fusion_stages[0].projectors[0].pointwise.weight)
    pixel_values = torch.randn(1, 4, 64, 64)
    model(pixel_values, labels=torch.ones(1, 64, 64, dtype=torch.long), sampling_noise=torch.zeros(1)).loss.backward()
    assert new.depthwise[0].weight.grad.abs().sum() > 0
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again = SgmaForSemanticSegmentation.from_pretrained(tmp_path)
    assert again.config.modalities == SgmaImageProcessor.from_pretrained(tmp_path).modalities
    assert again.config.modalities == ["dsm", "sar", "thermal"]
    assert_same_model(again, model.eval(), pixel_values)


def test_new_weights_have_the_models_dtype_and_the_headless_model_can_change_too():
    model, _ = make_pair()
    model.to(torch.bfloat16).add_modality("thermal", channels=2)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    model.sgma.drop_modality("sar")
    assert model.config.modalities == ["rgb", "dsm", "thermal"]


def test_what_cannot_be_is_refused_and_changes_nothing():
    model, processor = make_pair()
    keys = set(model.state_dict())
    other = SgmaImageProcessor(["rgb"], [3])
    attempts = [
        (lambda: model.add_modality("dsm", processor=processor), "repeats"),
        (lambda: model.add_modality("Thermal", processor=processor), "malformed"),
        (lambda: model.add_modality("../thermal", processor=processor), "malformed"),
        (lambda: model.add_modality("thermal", channels=10**9, processor=processor), "expected 1 to 4096"),
        (lambda: model.add_modality("thermal", like="lidar", processor=processor), "no modality 'lidar'"),
        (lambda: model.add_modality("thermal", processor=processor, image_std=0.0), "image_std"),
        (lambda: model.add_modality("thermal", processor=processor, brightness=1), "has no \\['brightness'\\]"),
        (lambda: model.add_modality("thermal", image_mean=0.3), "pass it as `processor`"),
        (lambda: model.add_modality("thermal", processor=other), "from the model's own folder"),
        (lambda: model.drop_modality("thermal", processor=processor), "no modality 'thermal'"),
        (lambda: other.drop_modality("rgb"), "only modality"),
    ]
    for attempt, message in attempts:
        with pytest.raises(ValueError, match=message):
            attempt()
    assert set(model.state_dict()) == keys
    assert model.config.modalities == processor.modalities == ["rgb", "dsm", "sar"]
