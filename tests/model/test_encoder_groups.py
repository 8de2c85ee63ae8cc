"""Several encoders, each for a group of modalities: what they are built from, which of them run, and what travels."""

import itertools
import json
import re

import pytest
import torch
from tiny_models import (
    CONVNEXT,
    PLAIN_BACKBONES,
    PVT_V2,
    RESNET,
    assert_same_model,
    spread_weights,
    tiny_config,
    tiny_model,
)
from torch.export import Dim
from transformers import PvtV2Config, PvtV2ForImageClassification

from sgma_hf import SgmaConfig, SgmaForSemanticSegmentation, SgmaImageProcessor
from sgma_hf.model.backbones_sgma import read_backbone_config


SIZE = (50, 70)
NARROW = {**PVT_V2, "hidden_sizes": [8, 8, 16, 16]}
GROUPS = {
    "two": {"rgb+dsm": PVT_V2, "sar": PVT_V2},
    "interleaved": {"rgb+sar": PVT_V2, "dsm": RESNET},
    "three": {"rgb": PVT_V2, "dsm": NARROW, "sar": PLAIN_BACKBONES["dinov2"]},
}
SUBSETS = [subset for subset in itertools.product([True, False], repeat=3) if any(subset)]


def batch():
    generator = torch.Generator().manual_seed(0)
    mask = torch.ones(2, 3, *SIZE, dtype=torch.bool)
    mask[0, 1], mask[1, 0, :20], mask[1, 2, :, 50:] = False, False, False
    return torch.randn(2, 6, *SIZE, generator=generator), mask, torch.randint(5, (2, *SIZE), generator=generator)


def names(model):
    """The modalities of every encoder, by the name of its backbone."""
    found = [name for name, _ in model.sgma.named_children() if name.startswith("backbone")]
    return dict(zip(found, model.config.encoder_groups, strict=True))


def test_one_encoder_is_shared_by_default_and_named_as_ever():
    model = tiny_model()
    assert names(model) == {"backbone": ["rgb", "dsm", "sar"]}
    assert model.config.to_dict() == tiny_model(encoder_groups=[["rgb", "sar", "dsm"]]).config.to_dict()
    assert model.config.to_dict()["backbone_config"]["model_type"] == "pvt_v2"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"shared_encoder": False}, [["rgb"], ["dsm"], ["sar"]]),
        ({"encoder_groups": [["sar"], ["dsm", "rgb"]]}, [["rgb", "dsm"], ["sar"]]),
        ({"encoder_groups": ["sar+rgb", "dsm"]}, [["rgb", "sar"], ["dsm"]]),
        ({"backbone_config": {"sar": RESNET, "dsm+rgb": PVT_V2}}, [["rgb", "dsm"], ["sar"]]),
        ({"shared_encoder": True, "encoder_groups": None}, [["rgb", "dsm", "sar"]]),
    ],
)
def test_groups_are_ordered_as_the_modalities(given, expected):
    config = tiny_config(**given)
    assert config.encoder_groups == expected
    again = SgmaConfig(**json.loads(config.to_json_string()))
    assert again.to_dict() == config.to_dict() and again.encoder_groups == expected


def test_the_default_encoder_is_that_of_every_group():
    config = SgmaConfig(shared_encoder=False)
    sizes = [tuple(part.hidden_sizes) for part in config.encoder_configs.values()]
    assert sizes == [(64, 128, 320, 512)] * 3
    assert len({id(part) for part in config.encoder_configs.values()}) == 3


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            {"encoder_groups": [["rgb"], ["dsm"]]},
            r"groups \['rgb', 'dsm'\] .* each of the modalities \['rgb', 'dsm', 'sar'\]",
        ),
        ({"encoder_groups": [["rgb", "dsm"], ["dsm", "sar"]]}, "in one of them"),
        ({"backbone_config": {"rgb+nir": PVT_V2}}, "in one of them"),
        ({"backbone_config": {"rgb": PVT_V2, "dsm+sar": {"model_type": "bert"}}}, "BertConfig"),
        ({"backbone_config": GROUPS["two"], "shared_encoder": False}, "one `backbone_config` for all"),
        ({"encoder_groups": "each"}, "is 'each'; expected lists of modalities"),
        ({"backbone_config": {"rgb": PVT_V2, "dsm+sar": {**CONVNEXT, "patch_size": 2}}}, "strides 2, 2, 4, 8, 16"),
    ],
)
def test_what_are_no_groups_is_refused_in_one_line(given, said):
    with pytest.raises(ValueError, match=said) as caught:
        tiny_model(**given)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("encoders", GROUPS.values(), ids=GROUPS)
def test_groups_learn_and_come_back_from_a_folder(encoders, tmp_path):
    model = tiny_model(backbone_config=encoders, freeze_batch_norm=False).train()
    pixel_values, mask, labels = batch()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(3):
        loss = model(pixel_values, mask, labels=labels, sampling_noise=torch.tensor([0.2, 0.7])).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert all(any(part.grad is not None for part in backbone.parameters()) for backbone in model.sgma.backbones)
    model.eval().save_pretrained(tmp_path)
    loaded = SgmaForSemanticSegmentation.from_pretrained(tmp_path)
    assert_same_model(loaded, model, pixel_values, mask)
    assert loaded.config.encoder_groups == model.config.encoder_groups


@pytest.mark.parametrize("groups", [[["rgb", "dsm"], ["sar"]], [["rgb", "sar"], ["dsm"]], [["rgb"], ["dsm"], ["sar"]]])
def test_encoders_of_equal_weights_are_one_shared_encoder(groups):
    shared = spread_weights(tiny_model().double())
    weights = shared.state_dict()
    # as many bands as the shared one takes: a dict would take those of a group's only modality
    model = tiny_model(encoder_groups=groups, backbone_config=tiny_config().backbone_config).double()
    model.load_state_dict({name: weights[re.sub(r"backbone_\d", "backbone", name)] for name in model.state_dict()})
    pixel_values, mask, _ = batch()
    with torch.no_grad():
        encodings = [each.encode(pixel_values.double(), mask) for each in (shared, model)]
        for subset in SUBSETS:
            expected, output = (
                each.fuse_and_decode(encoding, torch.tensor(subset))
                for each, encoding in zip((shared, model), encodings, strict=True)
            )
            torch.testing.assert_close(output.logits, expected.logits)


@pytest.mark.parametrize("subset", SUBSETS)
def test_an_encoder_without_a_modality_does_not_run(subset):
    model = tiny_model(backbone_config=GROUPS["interleaved"])
    rows = []
    for backbone in model.sgma.backbones:
        backbone.register_forward_hook(lambda module, args, _: rows.append((module, args[0].shape[0])))
    model(batch()[0], torch.tensor([subset, subset]))
    rgb, dsm, sar = subset
    counts = [2 * (rgb + sar), 2 * dsm]
    assert rows == [(module, n) for module, n in zip(model.sgma.backbones, counts, strict=True) if n]


def test_what_is_absent_gives_an_encoder_no_gradient():
    model = tiny_model(backbone_config=GROUPS["two"]).train()
    pixel_values, _, labels = batch()
    model(pixel_values, torch.tensor([[True, True, False]] * 2), labels=labels).loss.backward()
    first, second = model.sgma.backbones
    assert all(part.grad is not None for part in first.parameters())
    assert all(part.grad is None for part in second.parameters())
    assert all(part.grad is None for part in model.sgma.stems[2].parameters())


def test_encoders_of_other_widths_are_brought_to_the_widest():
    model = tiny_model(backbone_config={"rgb+sar": NARROW, "dsm": {**PVT_V2, "hidden_sizes": [8, 16, 8, 24]}})
    assert model.sgma.channels == [8, 16, 16, 24]
    assert [[layer.in_channels for layer in part.widening] for part in [model.sgma] if part.widening] == [
        [8, 8, 16, 16]
    ]
    assert [layer.in_channels for layer in model.sgma.widening_1] == [8, 16, 8, 24]
    assert model(batch()[0]).logits.shape == (2, 5, 13, 18)
    assert tiny_model(backbone_config=GROUPS["two"]).sgma.widening_1 is None


def test_an_encoder_of_one_modality_takes_its_bands_as_they_are():
    encoders = {"rgb+dsm": PVT_V2, "sar": PVT_V2}
    model = tiny_model(backbone_config=encoders, modality_adapter_size=0)
    assert model.sgma.encoder_channels() == [3, 3, 2]
    assert model.sgma.stems[2](torch.ones(1, 2, 8, 8)).shape == (1, 2, 8, 8)
    assert not list(model.sgma.stems[2].parameters())
    own = tiny_model(backbone_config={**encoders, "sar": {**PVT_V2, "num_channels": 3}}, modality_adapter_size=0)
    assert [tuple(part.shape) for part in own.sgma.stems[2].parameters()] == [(3, 2, 1, 1)]


def test_precision_and_attention_reach_all_encoders(tmp_path):
    tiny_model(backbone_config=GROUPS["three"]).save_pretrained(tmp_path)
    model = SgmaForSemanticSegmentation.from_pretrained(tmp_path, dtype=torch.bfloat16, attn_implementation="eager")
    assert {part.dtype for part in model.parameters()} == {torch.bfloat16}
    for backbone in model.sgma.backbones:
        assert backbone.config._attn_implementation == "eager" and backbone.dtype == torch.bfloat16


def test_what_may_not_be_split_is_known_of_all_encoders(tmp_path):
    model = spread_weights(tiny_model(backbone_config=GROUPS["interleaved"]))
    assert model._no_split_modules >= {part for each in model.sgma.backbones for part in each._no_split_modules}
    assert any("ResNet" in name for name in model._no_split_modules)
    model.save_pretrained(tmp_path)
    size = sum(parameter.nbytes for parameter in model.parameters())
    loaded = SgmaForSemanticSegmentation.from_pretrained(
        tmp_path, device_map="auto", max_memory={"cpu": int(0.5 * size)}, offload_folder=tmp_path / "offload"
    )
    assert "disk" in loaded.hf_device_map.values()
    pixel_values, mask, _ = batch()
    with torch.no_grad():
        torch.testing.assert_close(
            loaded(pixel_values, mask).logits, model(pixel_values, mask).logits, rtol=1e-4, atol=1e-5
        )


def test_gradient_checkpointing_reaches_the_encoders_that_have_it():
    model = tiny_model(backbone_config=GROUPS["interleaved"]).train()
    pixel_values, mask, labels = batch()
    inputs = {"labels": labels, "sampling_noise": torch.tensor([0.2, 0.7])}
    model(pixel_values, mask, **inputs).loss.backward()
    expected = [part.grad.clone() for part in model.sgma.parameters()]
    model.zero_grad()
    model.gradient_checkpointing_enable()
    calls = []
    norm = next(part for part in model.sgma.backbone.modules() if isinstance(part, torch.nn.LayerNorm))
    norm.register_forward_hook(lambda *_: calls.append(1))
    model(pixel_values, mask, **inputs).loss.backward()
    assert len(calls) > 1
    for part, gradient in zip(model.sgma.parameters(), expected, strict=True):
        torch.testing.assert_close(part.grad, gradient)
    both = tiny_model(backbone_config={"rgb+dsm": RESNET, "sar": CONVNEXT})
    with pytest.raises(ValueError, match="does not support"):
        both.gradient_checkpointing_enable()


def test_frozen_encoders_and_batch_normalisation_stay_as_in_evaluation():
    model = tiny_model(backbone_config={"rgb+dsm": PVT_V2, "sar": RESNET})
    model.sgma.backbone.requires_grad_(False)
    model.train()
    assert not any(part.training for part in model.sgma.backbone.modules())
    norms = [part for part in model.sgma.backbone_1.modules() if isinstance(part, torch.nn.BatchNorm2d)]
    assert norms and not any(part.training for part in norms) and model.sgma.backbone_1.training


def test_an_added_modality_shares_the_encoder_of_the_one_it_is_like(tmp_path):
    model = spread_weights(tiny_model(backbone_config=GROUPS["two"]))
    pixel_values, mask, _ = batch()
    with torch.no_grad():
        expected = model(pixel_values, mask).logits
        with pytest.raises(ValueError, match=r"has the encoders \['rgb\+dsm', 'sar'\]; name by `like`"):
            model.add_modality("thermal", channels=2)
        model.add_modality("thermal", channels=2, like="sar")
        assert names(model) == {"backbone": ["rgb", "dsm"], "backbone_1": ["sar", "thermal"]}
        wider = torch.cat([pixel_values, torch.full((2, 2, *SIZE), torch.nan)], 1)
        assert torch.equal(model(wider, torch.cat([mask, torch.zeros_like(mask[:, :1])], 1)).logits, expected)
    model.save_pretrained(tmp_path)
    assert_same_model(SgmaForSemanticSegmentation.from_pretrained(tmp_path), model, torch.nan_to_num(wider))


@pytest.mark.parametrize(
    ("name", "left"),
    [
        ("rgb", {"backbone": ["dsm"], "backbone_1": ["sar"]}),
        ("dsm", {"backbone": ["rgb", "sar"]}),
        ("sar", {"backbone": ["rgb"], "backbone_1": ["dsm"]}),
    ],
)
def test_a_dropped_modality_takes_its_own_encoder_along(name, left, tmp_path):
    model = spread_weights(tiny_model(backbone_config={"rgb+sar": PVT_V2, "dsm": PVT_V2}))
    index = model.config.modalities.index(name)
    keep = torch.arange(3) != index
    bands = torch.tensor([0, 0, 0, 1, 2, 2]) != index
    pixel_values, mask, _ = batch()
    with torch.no_grad():
        expected = model(pixel_values, mask & keep[:, None, None]).logits
        model.drop_modality(name)
        assert names(model) == left
        torch.testing.assert_close(model(pixel_values[:, bands], mask[:, keep]).logits, expected)
    model.save_pretrained(tmp_path)
    loaded = SgmaForSemanticSegmentation.from_pretrained(tmp_path)
    assert list(loaded.state_dict()) == list(model.state_dict())
    assert_same_model(loaded, model, pixel_values[:, bands], mask[:, keep])


def test_the_widest_encoder_cannot_be_dropped():
    model = tiny_model(backbone_config={"rgb+sar": NARROW, "dsm": PVT_V2})
    with pytest.raises(ValueError, match=r"'dsm' is the only modality of the widest encoder, whose \[8, 16, 16, 24\]"):
        model.drop_modality("dsm")
    assert names(model) == {"backbone": ["rgb", "sar"], "backbone_1": ["dsm"]}


def test_every_encoder_starts_from_its_own_checkpoint(tmp_path):
    torch.manual_seed(7)
    folders, sources = {}, {}
    for group, values in {"sar+rgb": {}, "dsm": {"depths": [2, 1, 1, 1]}}.items():
        config = PvtV2Config(**{key: value for key, value in (PVT_V2 | values).items() if key != "model_type"})
        sources[group] = PvtV2ForImageClassification(config)
        folders[group] = tmp_path / group
        sources[group].save_pretrained(folders[group])
    config = tiny_config(backbone_config={name: read_backbone_config(str(path)) for name, path in folders.items()})
    model = SgmaForSemanticSegmentation.from_backbone_pretrained(folders, config)
    assert model.pretrained_backbone == {"rgb+sar": str(folders["sar+rgb"]), "dsm": str(folders["dsm"])}
    for backbone, source in zip(model.sgma.backbones, sources.values(), strict=True):
        weights = source.pvt_v2.state_dict()
        assert all(torch.equal(weights[name], value) for name, value in backbone.state_dict().items())

    torch.manual_seed(0)
    fresh = SgmaForSemanticSegmentation(config)
    torch.manual_seed(0)
    one = SgmaForSemanticSegmentation.from_backbone_pretrained({"dsm": folders["dsm"]}, config)
    assert all(map(torch.equal, one.sgma.backbone.parameters(), fresh.sgma.backbone.parameters()))
    assert all(map(torch.equal, one.sgma.backbone_1.parameters(), model.sgma.backbone_1.parameters()))
    with pytest.raises(ValueError, match=r"no encoder for 'rgb'; the model has those of \['rgb\+sar', 'dsm'\]"):
        SgmaForSemanticSegmentation.from_backbone_pretrained({"rgb": folders["dsm"]}, config)
    with pytest.raises(ValueError, match=r"lacks \d+ weights of the PvtV2Backbone"):
        SgmaForSemanticSegmentation.from_backbone_pretrained(folders["sar+rgb"], config)


@pytest.mark.long
@torch.no_grad()
def test_groups_export_as_one_graph():
    model = spread_weights(tiny_model(backbone_config=GROUPS["interleaved"]).double())
    inputs = {"pixel_values": torch.randn(2, 6, 64, 96).double(), "modality_mask": torch.ones(2, 3, dtype=torch.bool)}
    shapes = {name: {0: Dim("batch", min=1, max=64)} for name in inputs}
    program = torch.export.export(model, (), inputs, dynamic_shapes=shapes).module()
    for subset in SUBSETS:
        mask = torch.tensor([subset] * 3)
        pixel_values = torch.randn(3, 6, 64, 96).double()
        output = program(pixel_values=pixel_values, modality_mask=mask)
        torch.testing.assert_close(output.logits, model(pixel_values, mask).logits, rtol=1e-9, atol=1e-9)


@pytest.mark.long
def test_the_code_travels_with_the_checkpoint(tmp_path):
    from test_remote_code import run_without_package

    model = tiny_model(backbone_config=GROUPS["three"])
    model.save_pretrained(tmp_path / "model")
    SgmaImageProcessor(["rgb", "dsm", "sar"], [3, 1, 2]).save_pretrained(tmp_path / "model")
    pixel_values, mask, _ = batch()
    torch.save([pixel_values, mask, model(pixel_values, mask).logits.detach()], tmp_path / "batch.pt")
    code = """
from transformers import AutoModel
model = AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True).eval()
pixel_values, mask, logits = torch.load(sys.argv[2], weights_only=True)
torch.testing.assert_close(model(pixel_values, mask).logits, logits, rtol=1e-4, atol=1e-5)
assert model.config.encoder_groups == [["rgb"], ["dsm"], ["sar"]]
print("the same")
"""
    run = run_without_package(code, tmp_path, tmp_path / "model", tmp_path / "batch.pt")
    assert run.stdout.strip() == "the same", run.stderr[-2000:]
