"""Which weights learn, and how fast."""

import pytest
import torch
from tiny_runs import flags, refusal, tiny_run
from tiny_trainers import TINY_BACKBONE, make_config, make_trainer, state_of
from transformers import CONFIG_MAPPING, AutoBackbone

from sgma_hf import SgmaForSemanticSegmentation
from sgma_hf.commands.train import main
from sgma_hf.publishing.record import TrainingRecord
from sgma_hf.training.fine_tuning.learning_rates import block_depths


pytestmark = pytest.mark.long

ENCODER = "sgma.backbone."
RESNET = {"model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8, 8, 16, 16], "depths": [2, 1, 1, 1]}
DINOV2 = {"model_type": "dinov2", "hidden_size": 16, "num_hidden_layers": 5, "num_attention_heads": 1}


def changed_names(before, after):
    return {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}


FROZEN = {"pvt_v2": TINY_BACKBONE | {"drop_path_rate": 0.5}, "resnet": RESNET, "dinov2": DINOV2}


@pytest.mark.parametrize("backbone", FROZEN.values(), ids=FROZEN)
def test_a_frozen_encoder_keeps_its_weights_and_statistics_and_all_else_learns(tmp_path, backbone):
    torch.manual_seed(0)
    model = SgmaForSemanticSegmentation(make_config(backbone_config=backbone, freeze_batch_norm=False))
    trainer = make_trainer(tmp_path, model=model, freeze_encoder=True, max_steps=2)
    before = state_of(trainer)
    trainer.train()
    after = state_of(trainer)
    learned = changed_names(before, after)
    assert not any(name.startswith(ENCODER) for name in learned)
    rooms = ["sgma.stems.", "sgma.fusion_stages.", "decode_head."]
    rooms += ["sgma.pyramid."] if backbone is DINOV2 else []
    assert all(any(name.startswith(room) for name in learned) for room in rooms)
    encoder = model.train().sgma.backbone
    assert all(parameter.grad is None for parameter in encoder.parameters())
    assert not any(module.training for module in encoder.modules())
    trainer.save_model()
    trainer.create_model_card()
    assert TrainingRecord.load(tmp_path).arguments["freeze_encoder"] is True
    assert "The encoder was frozen in training." in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize("given", [{"freeze_encoder": "true"}, {"lora_rank": 8}])
def test_random_weights_are_not_frozen(tmp_path, capsys, given):
    line = refusal(main, flags(tiny_run("rows", tmp_path), **given), capsys)
    assert f"`--{next(iter(given))}` would keep an encoder of random weights" in line


GROUPS = {
    "rgb+nir": TINY_BACKBONE,
    "dsm": RESNET | {"layer_type": "bottleneck", "hidden_sizes": [8, 8, 8, 16], "depths": [1, 1, 1, 1]},
}


def test_all_encoders_of_groups_are_frozen_and_all_else_learns(tmp_path):
    model = SgmaForSemanticSegmentation(make_config(backbone_config=GROUPS))
    trainer = make_trainer(tmp_path, model=model, freeze_encoder=True, max_steps=2)
    before = state_of(trainer)
    trainer.train()
    learned = changed_names(before, state_of(trainer))
    assert any(name.startswith("sgma.widening_1.") for name in learned)
    assert not any(name.startswith("sgma.backbone") for name in learned)
    assert not any(module.training for encoder in model.train().sgma.backbones for module in encoder.modules())


def test_learning_rates_fall_with_the_depth_of_each_encoder(tmp_path):
    model = SgmaForSemanticSegmentation(make_config(backbone_config=GROUPS))
    rates = optimizer_settings(make_trainer(tmp_path, model=model, encoder_learning_rate=1e-4, layer_decay=0.5))
    for prefix, encoder in zip((ENCODER, "sgma.backbone_1."), model.sgma.backbones, strict=True):
        depths = block_depths(encoder)
        assert max(depths.values()) == 4
        for name, depth in depths.items():
            if prefix + name in rates:
                assert rates[prefix + name][0] == pytest.approx(1e-4 * 0.5 ** (5 - depth)), name
    assert {rate for name, (rate, _) in rates.items() if not name.startswith("sgma.backbone")} == {1e-3}


def test_adapters_train_every_encoder_of_groups(tmp_path):
    pytest.importorskip("peft")
    model = SgmaForSemanticSegmentation(make_config(backbone_config=GROUPS))
    trainer = make_trainer(tmp_path, model=model, lora_rank=2, max_steps=2)
    before = state_of(trainer)
    trainer.train()
    learned = changed_names(before, state_of(trainer))
    for prefix, encoder in zip((ENCODER, "sgma.backbone_1."), model.sgma.backbones, strict=True):
        inside = {name for name in learned if name.startswith(prefix)}
        adapted = {
            name for name, part in encoder.named_modules() if isinstance(part, torch.nn.Linear | torch.nn.Conv2d)
        }
        assert inside and all(name.removeprefix(prefix).rpartition(".")[0] in adapted for name in inside)
    assert any(name.startswith("sgma.widening_1.") for name in learned)


def optimizer_settings(trainer):
    """Learning rate and weight decay of every parameter, by name."""
    names = {parameter: name for name, parameter in trainer.model.named_parameters()}
    groups = trainer.create_optimizer().param_groups
    return {names[part]: (group["lr"], group["weight_decay"]) for group in groups for part in group["params"]}


@pytest.mark.parametrize(("given", "encoder_rate"), [(None, 1e-3), (1e-4, 1e-4)])
def test_learning_rates_fall_with_the_depth_of_the_encoder_and_weight_decay_is_trainers(tmp_path, given, encoder_rate):
    model = SgmaForSemanticSegmentation(make_config(backbone_config=TINY_BACKBONE | {"depths": [1, 2, 1, 1]}))
    plain = optimizer_settings(make_trainer(tmp_path, model=model))
    assert {rate for rate, _ in plain.values()} == {1e-3} and {decay for _, decay in plain.values()} == {0, 1e-2}
    trainer = make_trainer(tmp_path, model=model, encoder_learning_rate=given, layer_decay=0.5)
    ours = optimizer_settings(trainer)
    assert {name: decay for name, (_, decay) in ours.items()} == {name: decay for name, (_, decay) in plain.items()}
    layers = ENCODER + "encoder.layers."
    of_depth = {"0.patch": 0, "0.blocks": 1, "0.layer_norm": 1, "1.patch": 1, "1.blocks.0": 2, "1.blocks.1": 3}
    of_depth |= {
        "1.layer_norm": 3,
        "2.patch": 3,
        "2.blocks": 4,
        "2.layer": 4,
        "3.patch": 4,
        "3.blocks": 5,
        "3.layer": 5,
    }
    for name, (rate, _) in ours.items():
        depths = [depth for start, depth in of_depth.items() if name.startswith(layers + start)]
        expected = encoder_rate * 0.5 ** (6 - depths[0]) if name.startswith(ENCODER) else 1e-3
        assert rate == pytest.approx(expected), name
    assert trainer.optimizer.param_groups[0]["lr"] == 1e-3  # the one that is logged


def test_an_encoder_at_rate_0_stands_still_and_all_else_learns(tmp_path):
    trainer = make_trainer(tmp_path, encoder_learning_rate=0.0, max_steps=2)
    before = state_of(trainer)
    trainer.train()
    learned = changed_names(before, state_of(trainer))
    assert learned and not any(name.startswith(ENCODER) for name in learned)


BLOCKS = {
    "pvt_v2": (TINY_BACKBONE | {"depths": [1, 2, 3, 1]}, 7),
    "resnet": (RESNET | {"layer_type": "bottleneck"}, 5),
    "swin": ({"model_type": "swin", "embed_dim": 8, "depths": [1, 2, 1, 1], "num_heads": [1, 1, 1, 1]}, 5),
    "dinov2": (DINOV2, 5),
}


@pytest.mark.parametrize(("values", "count"), BLOCKS.values(), ids=BLOCKS)
def test_the_blocks_of_an_encoder_are_told(values, count):
    values = dict(values)
    encoder = AutoBackbone.from_config(CONFIG_MAPPING[values.pop("model_type")](**values))
    depths = list(block_depths(encoder).values())
    assert depths[0] == 0 and depths == sorted(depths) and set(depths) == set(range(count + 1))


def test_an_encoder_without_blocks_has_no_depth():
    encoder = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU())
    with pytest.raises(ValueError, match=r"blocks of a Sequential cannot be told.*Leave `layer_decay` out"):
        block_depths(encoder)


def test_a_run_with_rates_of_their_own_is_resumed_exactly_and_with_the_same_only(tmp_path):
    options = {"encoder_learning_rate": 1e-4, "layer_decay": 0.75, "max_steps": 4, "save_steps": 2}
    whole = make_trainer(tmp_path, save_strategy="steps", **options)
    whole.train()
    checkpoint = str(tmp_path / "checkpoint-2")
    resumed = make_trainer(tmp_path, **options)
    resumed.train(resume_from_checkpoint=checkpoint)
    torch.testing.assert_close(state_of(resumed), state_of(whole), rtol=0, atol=0)
    with pytest.raises(ValueError, match=r"`layer_decay` was 0.75, is 1.0. Its optimiser does not fit"):
        make_trainer(tmp_path, **options | {"layer_decay": 1.0}).train(resume_from_checkpoint=checkpoint)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"layer_decay": 0}, "`layer_decay` is 0.0; expected a factor above 0"),
        ({"layer_decay": 1.5}, "`layer_decay` is 1.5"),
        ({"layer_decay": "nan"}, "`layer_decay` is nan"),
        ({"encoder_learning_rate": -1}, "`encoder_learning_rate` is -1.0; expected a number of at least 0"),
        ({"ema_decay": 1}, "`ema_decay` is 1.0; expected a share of at least 0, below 1"),
        ({"ema_decay": "nan"}, "`ema_decay` is nan"),
        ({"lora_rank": -8}, "`lora_rank` is -8; expected a number of at least 0"),
        ({"freeze_encoder": "true", "lora_rank": 8}, "leaves nothing in the encoder that learns"),
        ({"freeze_encoder": "true", "layer_decay": 0.75}, "leaves nothing in the encoder that learns"),
        ({"freeze_encoder": "true", "encoder_learning_rate": 1e-5}, "leave it or them out"),
    ],
)
def test_values_out_of_range_and_contradictions_end_in_one_line(tmp_path, capsys, given, said):
    assert said in refusal(main, flags(tiny_run("rows", tmp_path), **given), capsys)
