"""Which weights learn, and how fast."""

import pytest
import torch
from tiny_runs import flags, refusal, tiny_run
from tiny_trainers import TINY_BACKBONE, make_config, make_trainer, state_of

from sgma_hf import SgmaForSemanticSegmentation
from sgma_hf.commands.train import main
from sgma_hf.publishing.record import TrainingRecord


pytestmark = pytest.mark.long

ENCODER = "sgma.backbone."
RESNET = {"model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8, 8, 16, 16], "depths": [2, 1, 1, 1]}


def changed_names(before, after):
    return {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}


@pytest.mark.parametrize("backbone", [TINY_BACKBONE | {"drop_path_rate": 0.5}, RESNET], ids=["pvt_v2", "resnet"])
def test_a_frozen_encoder_keeps_its_weights_and_statistics_and_all_else_learns(tmp_path, backbone):
    torch.manual_seed(0)
    model = SgmaForSemanticSegmentation(make_config(backbone_config=backbone, freeze_batch_norm=False))
    trainer = make_trainer(tmp_path, model=model, freeze_encoder=True, max_steps=2)
    before = state_of(trainer)
    trainer.train()
    after = state_of(trainer)
    learned = changed_names(before, after)
    assert not any(name.startswith(ENCODER) for name in learned)
    rooms = ("sgma.stems.", "sgma.fusion_stages.", "decode_head.")
    assert all(any(name.startswith(room) for name in learned) for room in rooms)
    encoder = model.train().sgma.backbone
    assert all(parameter.grad is None for parameter in encoder.parameters())
    assert not any(module.training for module in encoder.modules())
    trainer.save_model()
    trainer.create_model_card()
    assert TrainingRecord.load(tmp_path).arguments["freeze_encoder"] is True
    assert "The encoder was frozen in training." in (tmp_path / "README.md").read_text()


def test_random_weights_are_not_frozen(tmp_path, capsys):
    line = refusal(main, flags(tiny_run("rows", tmp_path), freeze_encoder="true"), capsys)
    assert "encoder of random weights. Name a pretrained one by `--backbone`" in line
