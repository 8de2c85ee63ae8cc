"""Which encoders there can be: the choice of their maps, the pyramid of plain ones, and what is refused."""

import copy

import pytest
import torch
from tiny_models import (
    BEIT,
    CONVNEXT,
    EVERY_BACKBONE,
    PLAIN_BACKBONES,
    PP_LCNET,
    RESNET,
    assert_same_model,
    tiny_config,
    tiny_model,
)
from transformers import (
    ConvNextBackbone,
    ConvNextConfig,
    Dinov2Model,
    Dinov2WithRegistersModel,
    DINOv3ViTModel,
    HieraConfig,
    ResNetConfig,
    SegformerConfig,
    SwinConfig,
    VitDetModel,
)
from transformers.modeling_outputs import BackboneOutput
from transformers.utils import is_timm_available

from sgma_hf import SgmaForSemanticSegmentation
from sgma_hf.model.backbones_sgma import read_backbone_config
from sgma_hf.model.pyramid_sgma import SgmaPyramid


SIZE = (101, 67)
TIMM = {
    name: {"model_type": "timm_backbone", "backbone": name}
    for name in ("resnet18", "convnext_atto", "tf_efficientnet_lite0", "vit_small_patch16_dinov3")
}
needs_timm = pytest.mark.skipif(not is_timm_available(), reason="timm is not installed")
ENCODERS = [
    *(pytest.param(values, id=name) for name, values in EVERY_BACKBONE.items()),
    pytest.param(PP_LCNET, id="pp_lcnet"),
    *(pytest.param(values, id=f"timm-{name}", marks=[needs_timm, pytest.mark.long]) for name, values in TIMM.items()),
]


def batch():
    generator = torch.Generator().manual_seed(0)
    mask = torch.ones(2, 3, *SIZE, dtype=torch.bool)
    mask[0, 1], mask[1, 0, :40], mask[1, 2, :, 50:] = False, False, False
    return torch.randn(2, 6, *SIZE, generator=generator), mask, torch.randint(5, (2, *SIZE), generator=generator)


@pytest.mark.parametrize("backbone", ENCODERS)
def test_an_encoder_learns_and_comes_back_from_a_folder(backbone, tmp_path):
    # statistics of batch normalisation that never were learnt leave next to nothing of the image
    model = tiny_model(backbone_config=copy.deepcopy(backbone), freeze_batch_norm=False).train()
    pixel_values, mask, labels = batch()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(3):
        output = model(pixel_values, mask, labels=labels, sampling_noise=torch.tensor([0.2, 0.7]))
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        losses.append(output.loss.item())
    assert output.logits.shape == (2, 5, 26, 17) and losses[-1] < losses[0]
    model.eval().save_pretrained(tmp_path)
    loaded = SgmaForSemanticSegmentation.from_pretrained(tmp_path)
    assert_same_model(loaded, model, pixel_values, mask)
    assert loaded.config.backbone_config.out_indices == model.config.backbone_config.out_indices


@pytest.mark.parametrize("backbone", ENCODERS)
def test_what_is_missing_changes_nothing(backbone):
    model = tiny_model(backbone_config=copy.deepcopy(backbone))
    pixel_values, mask, _ = batch()
    covered = mask.repeat_interleave(torch.tensor([3, 1, 2]), dim=1)
    with torch.no_grad():
        expected = model(pixel_values, mask)
        for junk in (1e30, float("nan"), float("-inf")):
            other = model(torch.where(covered, pixel_values, junk), mask)
            assert torch.equal(other.logits, expected.logits)
            assert all(map(torch.equal, other.robustness, expected.robustness))
    assert torch.isfinite(expected.logits).all()


@pytest.mark.parametrize(
    ("backbone", "expected"),
    [
        (EVERY_BACKBONE["pvt_v2"], [0, 1, 2, 3]),
        (RESNET, [1, 2, 3, 4]),
        (EVERY_BACKBONE["focalnet"], [0, 1, 2, 4]),  # its last two stages have one stride, its stem the first
        (PP_LCNET, [2, 3, 4, 5]),
        (PLAIN_BACKBONES["dinov2"], [1, 2, 3, 4]),
        ({**PLAIN_BACKBONES["dinov3_vit"], "num_hidden_layers": 10}, [3, 5, 8, 10]),
        ({**CONVNEXT, "out_features": ["stem", "stage2", "stage3", "stage4"]}, [0, 2, 3, 4]),
        ({**PLAIN_BACKBONES["dinov2"], "num_hidden_layers": 6, "out_indices": [1, 2, 3, 4]}, [1, 2, 3, 4]),
        ({**BEIT, "num_hidden_layers": 12, "out_indices": [3, 6, 9, 12]}, [3, 6, 9, 12]),
    ],
)
def test_four_maps_are_chosen_unless_somebody_did(backbone, expected):
    model = tiny_model(backbone_config=backbone)
    assert model.config.backbone_config.out_indices == expected == model.sgma.backbone.out_indices
    assert model(torch.zeros(1, 6, *SIZE)).logits.shape == (1, 5, 26, 17)


def test_only_plain_encoders_have_a_pyramid():
    with_pyramid = {name for name, values in EVERY_BACKBONE.items() if tiny_model(backbone_config=values).sgma.pyramid}
    assert with_pyramid == set(PLAIN_BACKBONES)


@pytest.mark.parametrize("patch_size", [4, 8, 12, 14, 16, 28, 32])
def test_the_pyramid_has_four_strides_whatever_the_patches(patch_size):
    pyramid = SgmaPyramid([16] * 4, patch_size)
    height, width = pyramid.resize(torch.zeros(1, 3, 64, 96)).shape[-2:]
    assert height % patch_size == width % patch_size == 0
    maps = pyramid((torch.zeros(1, 16, height // patch_size, width // patch_size),) * 4)
    assert [one.shape[2:] for one in maps] == [(64 // stride, 96 // stride) for stride in (4, 8, 16, 32)]
    assert [one.shape[1] for one in maps] == pyramid.channels


def test_a_pyramid_keeps_the_scale_of_its_input():
    model = tiny_model(backbone_config={**PLAIN_BACKBONES["vitdet"], "hidden_size": 64})
    deepest = model.sgma.pyramid.levels[0][0](torch.randn(1, 64, 16, 16, generator=torch.Generator().manual_seed(0)))
    assert 0.8 < deepest.std() < 1.2


def test_an_encoder_of_many_bands_takes_them_as_they_are():
    backbone = {**PLAIN_BACKBONES["dinov2"], "num_channels": 6}
    model = tiny_model(
        modalities=["ms", "dsm"], modality_channels=[6, 1], backbone_config=backbone, modality_adapter_size=0
    )
    assert [list(stem.parameters()) for stem in model.sgma.stems] == [[], []]
    assert model.sgma.backbone.embeddings.patch_embeddings.projection.in_channels == 6
    assert model(torch.zeros(1, 7, 64, 64)).logits.shape == (1, 5, 16, 16)


@pytest.mark.parametrize(
    ("backbone", "message"),
    [
        (HieraConfig(), r"\(HieraConfig\) cannot be the encoder, which has to take images of any size"),
        (
            SwinConfig(depths=[1, 1, 1], num_heads=[1, 2, 4], embed_dim=8),
            "has maps with strides 4, 4, 8, 16; SGMA takes",
        ),
        (
            ConvNextConfig(**{**CONVNEXT, "patch_size": 2}),
            "has maps with strides 2, 2, 4, 8, 16; SGMA takes",
        ),
        (
            ResNetConfig(**{**RESNET, "out_features": ["stem", "stage1", "stage2", "stage3"]}),
            "strides 4, 4, 8, 16; SGMA",
        ),
        (SegformerConfig(), r"\(SegformerConfig\) is not that of a backbone"),
        ({**PLAIN_BACKBONES["dinov2"], "reshape_hidden_states": False}, "Set `reshape_hidden_states=True`"),
    ],
)
def test_what_cannot_be_an_encoder_is_refused_in_one_line(backbone, message):
    with pytest.raises(ValueError, match=message) as caught:
        tiny_model(backbone_config=backbone)
    assert "\n" not in str(caught.value)


def test_maps_with_the_channels_last_are_refused_as_such(monkeypatch):
    forward = ConvNextBackbone.forward

    def channels_last(self, *args, **kwargs):
        maps = forward(self, *args, **kwargs).feature_maps
        return BackboneOutput(feature_maps=tuple(one.permute(0, 2, 3, 1) for one in maps))

    monkeypatch.setattr(ConvNextBackbone, "forward", channels_last)
    with pytest.raises(
        ValueError, match=r"\(ConvNextConfig\) gives maps of shape \(1, 168, 24, 8\) with the channels"
    ):
        tiny_model(backbone_config=CONVNEXT)


def test_timm_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setattr("sgma_hf.model.backbones_sgma.is_timm_available", lambda: False)
    with pytest.raises(ImportError, match=r"of 'resnet18'\) needs timm, .*pip install 'sgma-hf\[timm\]'"):
        tiny_model(backbone_config=TIMM["resnet18"])


@pytest.mark.parametrize("name", ["nowhere", "timm"])
def test_an_encoder_that_cannot_be_read_is_refused_in_one_line(name, tmp_path):
    if name == "timm":
        (tmp_path / "timm").mkdir()
        (tmp_path / "timm" / "config.json").write_text('{"architecture": "no_such_encoder", "num_classes": 3}')
    with pytest.raises((ImportError, ValueError)) as caught:
        SgmaForSemanticSegmentation(tiny_config(backbone_config=read_backbone_config(str(tmp_path / name))))
    assert "\n" not in str(caught.value) and name in str(caught.value)


PLAIN_MODELS = [Dinov2Model, Dinov2WithRegistersModel, DINOv3ViTModel, VitDetModel]


@pytest.mark.parametrize(("name", "model_class"), [*zip(PLAIN_BACKBONES, PLAIN_MODELS, strict=False)])
def test_pretrained_weights_of_a_plain_encoder_are_taken_exactly(name, model_class, tmp_path):
    values = {key: value for key, value in PLAIN_BACKBONES[name].items() if key != "model_type"}
    torch.manual_seed(7)
    source = model_class(model_class.config_class(**values))
    source.save_pretrained(tmp_path)
    config = tiny_config(backbone_config=read_backbone_config(str(tmp_path)))
    model = SgmaForSemanticSegmentation.from_backbone_pretrained(str(tmp_path), config)
    weights = source.state_dict()
    encoder = model.sgma.backbone.state_dict()
    assert len(encoder) > 20 and all(torch.equal(weights[key], encoder[key]) for key in encoder)


@needs_timm
@pytest.mark.long
@pytest.mark.parametrize("name", TIMM)
def test_weights_that_timm_wrote_are_taken_exactly(name, tmp_path):
    import timm
    from timm.models import save_for_hf

    torch.manual_seed(7)
    source = timm.create_model(name)
    save_for_hf(source, tmp_path / "timm")
    config = tiny_config(backbone_config=read_backbone_config(str(tmp_path / "timm")))
    model = SgmaForSemanticSegmentation.from_backbone_pretrained(str(tmp_path / "timm"), config)
    weights = {key.replace(".", "_"): value for key, value in source.state_dict().items()}
    encoder = model.sgma.backbone.state_dict()
    for key, value in encoder.items():  # `features_only` writes "stages_0" for "stages.0"
        bare = key.removeprefix("_backbone.").replace(".", "_")
        assert torch.equal(weights[bare if bare in weights else bare.removeprefix("model_")], value), key

    model.sgma.backbone.save_pretrained(tmp_path / "transformers")
    again = tiny_config(backbone_config=read_backbone_config(str(tmp_path / "transformers")))
    loaded = SgmaForSemanticSegmentation.from_backbone_pretrained(str(tmp_path / "transformers"), again)
    assert all(torch.equal(value, encoder[key]) for key, value in loaded.sgma.backbone.state_dict().items())

    other = {"model_type": "timm_backbone", "backbone": "resnet34"}
    with pytest.raises(ValueError, match=r"do not fit `config\.backbone_config`"):
        SgmaForSemanticSegmentation.from_backbone_pretrained(
            str(tmp_path / "timm"), tiny_config(backbone_config=other)
        )


def test_a_dry_run_draws_no_random_numbers_and_leaves_the_configuration_alone():
    config = tiny_config(backbone_config=PLAIN_BACKBONES["dinov2"])
    SgmaForSemanticSegmentation(config)
    before = config.to_dict()
    torch.manual_seed(0)
    first = SgmaForSemanticSegmentation(config)
    assert config.to_dict() == before
    torch.manual_seed(0)
    second = SgmaForSemanticSegmentation(tiny_config(backbone_config=PLAIN_BACKBONES["dinov2"]))
    assert all(map(torch.equal, first.parameters(), second.parameters()))
