"""Adapters that are merged, and averages of the weights."""

import copy
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from test_fine_tuning import ENCODER, RESNET, changed_names
from tiny_runs import BACKBONE, flags, tiny_run
from tiny_trainers import make_config, make_rows, make_trainer, state_of
from transformers import PvtV2Config, PvtV2ForImageClassification, TrainerCallback
from transformers.utils import is_peft_available

from sgma_hf import SgmaForSemanticSegmentation
from sgma_hf.commands.train import main
from sgma_hf.converters.demo_scenes import write_demo_scenes
from sgma_hf.evaluation.combinations import evaluate_modality_combinations
from sgma_hf.publishing.weights_digest import checkpoint_digest
from sgma_hf.training.hub_trainer import link_published


pytestmark = pytest.mark.long

needs_peft = pytest.mark.skipif(not is_peft_available(), reason="PEFT is not installed")
TUNED = {"ema": {"ema_decay": 0.5}, "lora": {"lora_rank": 2}, "both": {"lora_rank": 2, "ema_decay": 0.5}}
EACH = [pytest.param(values, id=name, marks=needs_peft if name != "ema" else ()) for name, values in TUNED.items()]


class Weights(TrainerCallback):
    """The trained weights after each step of the optimiser."""

    def __init__(self):
        self.steps = []

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.steps.append({name: tensor.double().clone() for name, tensor in model.state_dict().items()})


def test_the_average_keeps_its_share_at_every_step_and_is_what_the_run_ends_with(tmp_path):
    trainer = make_trainer(tmp_path, ema_decay=0.75, max_steps=4)
    weights = Weights()
    trainer.add_callback(weights)
    trainer.train()
    first, *others = weights.steps
    expected = first
    for later in others:
        expected = {name: 0.75 * tensor + 0.25 * later[name] for name, tensor in expected.items()}
    actual = {name: tensor.double() for name, tensor in state_of(trainer).items()}
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-7)  # float32 against float64
    assert changed_names(weights.steps[-1], actual)


def test_counted_buffers_are_not_averaged(tmp_path):
    model = SgmaForSemanticSegmentation(make_config(backbone_config=RESNET, freeze_batch_norm=False))
    trainer = make_trainer(tmp_path, model=model, ema_decay=0.75, max_steps=4)
    weights = Weights()
    trainer.add_callback(weights)
    trainer.train()
    buffers = dict(model.named_buffers())
    for name in (name for name in weights.steps[-1] if "running" in name or "num_batches" in name):
        assert torch.equal(buffers[name].double(), weights.steps[-1][name])


@pytest.mark.parametrize("options", EACH)
def test_what_is_evaluated_is_saved_and_loads_as_plain_sgma(tmp_path, options):
    rows = make_rows()
    trainer = make_trainer(
        tmp_path,
        rows,
        max_steps=4,
        eval_strategy="steps",
        eval_steps=2,
        save_strategy="steps",
        save_steps=2,
        **options,
    )
    names = set(state_of(trainer))
    trainer.train()
    for folder in (tmp_path / "checkpoint-2", tmp_path / "checkpoint-4"):
        model, report = SgmaForSemanticSegmentation.from_pretrained(folder, output_loading_info=True)
        assert not any(report.values()) and set(load_file(folder / "model.safetensors")) == names
        scores = evaluate_modality_combinations(model, trainer.processing_class, rows, window_size=24)
        step = int(folder.name.rpartition("-")[2])
        logged = [log for log in trainer.state.log_history if log["step"] == step and "eval_average_miou" in log]
        assert logged[0]["eval_average_miou"] == pytest.approx(scores["average_miou"], abs=0.02)
    trainer.save_model()
    assert set(state_of(trainer)) == names
    assert trainer.score(rows)["weights_sha256"] == checkpoint_digest(tmp_path)


@pytest.mark.parametrize("options", EACH)
def test_the_best_checkpoint_is_what_such_a_run_ends_with(tmp_path, options):
    trainer = make_trainer(
        tmp_path,
        max_steps=4,
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        load_best_model_at_end=True,
        learning_rate=1e-2,
        **options,
    )
    trainer.train()
    best = load_file(f"{trainer.state.best_model_checkpoint}/model.safetensors")
    torch.testing.assert_close(state_of(trainer), best, rtol=0, atol=0)
    if "lora_rank" in options:
        place = "adapter/adapter_model.safetensors"
        kept = load_file(tmp_path / place)
        torch.testing.assert_close(kept, load_file(f"{trainer.state.best_model_checkpoint}/{place}"), rtol=0, atol=0)


@pytest.mark.parametrize("options", EACH)
def test_a_tuned_run_is_resumed_exactly_and_with_the_same_only(tmp_path, options):
    options = {**options, "save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    whole = make_trainer(tmp_path, **options)
    whole.train()
    resumed = make_trainer(tmp_path, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    torch.testing.assert_close(state_of(resumed), state_of(whole), rtol=0, atol=0)
    assert resumed.sampling_state.to_dict() == whole.sampling_state.to_dict()
    with pytest.raises(ValueError, match=r"`(lora_rank|ema_decay)` was .*; resume with those"):
        make_trainer(tmp_path, max_steps=4).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


@pytest.mark.parametrize("options", EACH)
def test_a_tuned_model_trains_again_from_where_it_is(tmp_path, options):
    trainer = make_trainer(tmp_path, max_steps=2, **options)
    trainer.train()
    before = state_of(trainer)
    trainer.train()
    assert changed_names(before, state_of(trainer)) and set(state_of(trainer)) == set(before)


@needs_peft
@pytest.mark.parametrize("backbone", [None, RESNET | {"layer_type": "bottleneck"}], ids=["pvt_v2", "resnet"])
def test_adapters_train_projections_of_the_encoder_alone_and_all_around_it(tmp_path, backbone):
    from peft import PeftModel

    torch.manual_seed(0)
    model = SgmaForSemanticSegmentation(make_config(**{} if backbone is None else {"backbone_config": backbone}))
    model.config._name_or_path = model.name_or_path = str(tmp_path / "start")
    start = copy.deepcopy(model)
    kinds = {f"{name}.weight": module for name, module in model.named_modules()}
    adapted = {
        name
        for name, module in kinds.items()
        if name.startswith(ENCODER)
        and (isinstance(module, torch.nn.Linear) or getattr(module, "kernel_size", None) == (1, 1))
    }
    trainer = make_trainer(tmp_path, model=model, lora_rank=2, max_steps=3, learning_rate=1e-2)
    before = state_of(trainer)
    trainer.train()
    after = state_of(trainer)
    learned = changed_names(before, after)
    in_encoder = {name for name in learned if name.startswith(ENCODER)}
    saved = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert {
        name.removeprefix("base_model.model.").replace("lora_A.", "") for name in saved if "lora_A" in name
    } == adapted
    assert (
        len(in_encoder) > len(adapted) / 2 and in_encoder <= adapted
    )  # where there is one key, queries do not matter
    assert any(name.startswith("sgma.stems.") for name in learned)
    assert {name for name in before if name.startswith("decode_head.")} - learned == set()
    for name in in_encoder:  # of rank 2, as independent arithmetic has it
        singular = np.linalg.svd((after[name] - before[name]).double().flatten(1).numpy(), compute_uv=False)
        assert singular[2:].max(initial=0) < 1e-5 < singular[0]
    settings = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (settings["r"], settings["lora_alpha"], settings["base_model_name_or_path"]) == (2, 2, "start")
    assert {path.name for path in (tmp_path / "adapter").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    merged = PeftModel.from_pretrained(start, tmp_path / "adapter").merge_and_unload()
    encoder = {name: after[name] for name in after if name.startswith(ENCODER)}
    torch.testing.assert_close({name: merged.state_dict()[name] for name in encoder}, encoder, rtol=1e-6, atol=1e-7)


def test_adapters_need_peft(tmp_path, monkeypatch):
    monkeypatch.setattr("sgma_hf.training.fine_tuning.weights.is_peft_available", lambda: False)
    with pytest.raises(ValueError, match=r"needs PEFT, which is not installed: `pip install 'sgma-hf\[peft\]'`"):
        make_trainer(tmp_path, lora_rank=2)


@needs_peft
def test_the_command_adapts_a_pretrained_encoder_says_so_and_leaves_no_adapter_of_a_run_that_it_replaces(tmp_path):
    write_demo_scenes(tmp_path / "scenes", num_tiles=24, tile_size=32)
    values = {key: value for key, value in BACKBONE.items() if key != "model_type"}
    PvtV2ForImageClassification(PvtV2Config(**values)).save_pretrained(tmp_path / "pvt")
    arguments = tiny_run(tmp_path / "scenes", tmp_path, backbone=tmp_path / "pvt")
    del arguments["backbone_config"]
    assert main(flags(arguments, lora_rank=4, ema_decay=0.5)) == 0
    run = tmp_path / "run"
    card = (run / "README.md").read_text()
    assert "trained by LoRA, which is merged" in card and "average over the steps of training" in card
    assert json.loads((run / "validation_results.json").read_text())["weights_sha256"] == checkpoint_digest(run)
    link_published(run, tmp_path / "pushed")
    assert (tmp_path / "pushed" / "adapter" / "adapter_config.json").is_file()
    assert main(flags(arguments, overwrite="true")) == 0
    assert not (run / "adapter").exists()
