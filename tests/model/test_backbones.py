"""Encoders other than the default, pretrained ones, and what depends on the encoder."""

import json

import pytest
import torch
from tiny_models import CONVNEXT, PVT_V2, RESNET, SWIN, assert_same_model, tiny_config, tiny_model
from transformers import (
    ConvNextConfig,
    ConvNextForImageClassification,
    PvtV2Config,
    PvtV2ForImageClassification,
    ResNetConfig,
    ResNetForImageClassification,
    SwinConfig,
    SwinForImageClassification,
)

from sgma_hf import SgmaForSemanticSegmentation


BACKBONES = {"pvt_v2": PVT_V2, "resnet": RESNET, "swin": SWIN, "convnext": CONVNEXT}
CLASSIFIERS = {
    "pvt_v2": (PvtV2Config, PvtV2ForImageClassification),
    "resnet": (ResNetConfig, ResNetForImageClassification),
    "swin": (SwinConfig, SwinForImageClassification),
    "convnext": (ConvNextConfig, ConvNextForImageClassification),
}


def batch(size=(64, 64)):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 6, *size, generator=generator), torch.randint(5, (2, *size), generator=generator)


@pytest.mark.parametrize("size", [(64, 64), (40, 72), (20, 20)])
@pytest.mark.parametrize("name", BACKBONES)
def test_any_four_stage_backbone_learns_from_one_batch(name, size):
    model = tiny_model(backbone_config=BACKBONES[name]).train()
    pixel_values, labels = batch(size)
    mask = torch.tensor([[True, True, True], [True, False, True]])
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    losses = []
    for _ in range(4):
        output = model(pixel_values, mask, labels=labels, sampling_noise=torch.tensor([0.2, 0.7]))
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        losses.append(output.loss.item())
    assert output.logits.shape == (2, 5, -(-size[0] // 4), -(-size[1] // 4))
    assert losses[-1] < losses[0]


def test_a_backbone_of_one_input_channel_takes_one_band_as_it_is():
    model = tiny_model(backbone_config={**PVT_V2, "num_channels": 1}, modality_adapter_size=0)
    assert [sum(p.numel() for p in stem.parameters()) for stem in model.sgma.stems] == [3, 0, 2]
    assert model(batch()[0]).logits.shape == (2, 5, 16, 16)


@pytest.mark.parametrize("switched", [False, True])
def test_batch_norm_is_frozen_from_the_first_step_on(switched):
    torch.manual_seed(0)
    model = SgmaForSemanticSegmentation(tiny_config(backbone_config=RESNET))
    if switched:
        model.eval().train()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    assert before and model.training and model.decode_head.training
    pixel_values, labels = batch()
    model(pixel_values, labels=labels).loss.backward()
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())
    scales = [p for name, p in model.sgma.backbone.named_parameters() if "normalization" in name]
    assert scales and all(p.grad is not None for p in scales)  # its scales and shifts are learnt


def test_batch_norm_can_be_left_to_learn():
    model = tiny_model(backbone_config=RESNET, freeze_batch_norm=False).train()
    before = {name: buffer.clone() for name, buffer in model.named_buffers() if "running_mean" in name}
    pixel_values, labels = batch()
    model(pixel_values, labels=labels)
    buffers = dict(model.named_buffers())
    assert all(not torch.equal(buffers[name], value) for name, value in before.items())


@pytest.mark.parametrize("name", ["pvt_v2", "swin"])
def test_gradient_checkpointing_gives_the_same_gradients(name):
    pixel_values, labels = batch()
    inputs = {"labels": labels, "sampling_noise": torch.tensor([0.2, 0.7])}
    model = tiny_model(backbone_config=BACKBONES[name]).train()
    model(pixel_values, **inputs).loss.backward()
    expected = {parameter: p.grad for parameter, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()  # sets None, so that `expected` keeps its tensors
    model.gradient_checkpointing_enable()  # a name that transformers had before 5.23, too
    calls = []
    layer = next(m for m in model.sgma.backbone.modules() if hasattr(m, "gradient_checkpointing"))
    assert layer.gradient_checkpointing
    inner = next(m for m in layer.modules() if isinstance(m, torch.nn.LayerNorm))
    inner.register_forward_hook(lambda *_: calls.append(1))
    model(pixel_values, **inputs).loss.backward()
    assert len(calls) > 1  # run again on the way back
    for parameter, p in model.named_parameters():
        assert (p.grad is None) == (parameter not in expected), parameter
        if p.grad is not None:
            torch.testing.assert_close(p.grad, expected[parameter], msg=parameter)


@pytest.mark.parametrize("name", ["resnet", "convnext"])
def test_gradient_checkpointing_is_refused_where_the_backbone_has_none(name):
    model = tiny_model(backbone_config=BACKBONES[name])
    with pytest.raises(ValueError, match="SgmaForSemanticSegmentation does not support"):
        model.gradient_checkpointing_enable()  # a name that transformers had before 5.23, too


def backbone_values(name):
    return {key: value for key, value in BACKBONES[name].items() if key != "model_type"}


def save_classifier(name, folder, **changes):
    config_class, model_class = CLASSIFIERS[name]
    torch.manual_seed(7)
    classifier = model_class(config_class(**{**backbone_values(name), "num_labels": 10, **changes}))
    classifier.save_pretrained(folder)
    return classifier


@pytest.mark.parametrize("name", BACKBONES)
def test_pretrained_weights_of_a_classifier_are_taken_exactly(name, tmp_path):
    classifier = save_classifier(name, tmp_path).state_dict()
    torch.manual_seed(0)
    config = tiny_config(backbone_config=BACKBONES[name])
    model = SgmaForSemanticSegmentation.from_backbone_pretrained(str(tmp_path), config)
    taken = 0
    for key, tensor in model.sgma.backbone.state_dict().items():
        source = [other for other in classifier if other == key or other.endswith(f".{key}")]
        if "hidden_states_norms" in key:  # they belong to the backbone's outputs, and no classifier has them
            assert not source
            continue
        assert len(source) == 1, key
        assert torch.equal(tensor, classifier[source[0]]), key
        taken += 1
    assert taken > 20
    assert model.pretrained_backbone == str(tmp_path)
    assert SgmaForSemanticSegmentation(config).pretrained_backbone is None
    assert torch.isfinite(model.eval()(batch()[0]).logits).all()


def test_a_checkpoint_of_another_size_is_refused(tmp_path):
    save_classifier("pvt_v2", tmp_path, hidden_sizes=[16, 16, 16, 24])
    with pytest.raises(ValueError, match=r"do not fit `config\.backbone_config`"):
        SgmaForSemanticSegmentation.from_backbone_pretrained(str(tmp_path), tiny_config())


def test_a_checkpoint_of_fewer_blocks_is_refused(tmp_path):
    save_classifier("pvt_v2", tmp_path)
    config = tiny_config(backbone_config={**PVT_V2, "depths": [1, 2, 1, 1]})
    with pytest.raises(ValueError, match=r"lacks \d+ weights of the PvtV2Backbone"):
        SgmaForSemanticSegmentation.from_backbone_pretrained(str(tmp_path), config)


def test_a_checkpoint_of_another_architecture_is_refused(tmp_path):
    save_classifier("resnet", tmp_path)
    with pytest.raises(ValueError, match=r"lacks \d+ weights of the PvtV2Backbone"):
        SgmaForSemanticSegmentation.from_backbone_pretrained(str(tmp_path), tiny_config())


def test_a_checkpoint_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(OSError, match="nowhere"):
        SgmaForSemanticSegmentation.from_backbone_pretrained(str(tmp_path / "nowhere"), tiny_config())


def test_the_saved_configuration_says_everything_about_the_backbone(tmp_path):
    model = tiny_model(backbone_config=SWIN)
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["backbone_config"]["model_type"] == "swin"
    loaded = SgmaForSemanticSegmentation.from_pretrained(tmp_path)
    pixel_values = batch()[0]
    assert_same_model(loaded, model, pixel_values)
