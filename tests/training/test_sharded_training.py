"""FSDP with the configuration that is shipped: two processes on CPUs, which Accelerate by itself keeps it from."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from accelerate import DistributedType
from launched_training import largest_difference, options, run
from safetensors.torch import load_file
from tiny_trainers import make_trainer

from sgma_hf.training.checkpoints import checkpoint_layout, is_complete_checkpoint
from sgma_hf.training.sharding import check_sharding, fill_optimizer_state


pytestmark = pytest.mark.long


# The norm of sharded gradients is rounded otherwise, and Adam makes steps of the rounding errors that are the whole
# gradient of some parameters (the bias of an attention's keys): without clipping there is nothing to round.
OPTIONS = {"max_grad_norm": 0.0, "save_steps": 6}
UNEQUAL = {"unequal": True, "rows": 8}  # so a process often has rows of more sizes than the other
IDLE = [1, 2, 3]  # row 2 holds nodata alone, 1 and 3 no label that counts
GROUPS = {"encoder_groups": [["rgb", "nir"], ["dsm"]]}  # a process often has no height in its batch
CONFIGURATION = Path(__file__).parents[2] / "scripts" / "accelerate_fsdp.yaml"


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    """Uninterrupted and resumed runs, with the parameters saved in one file and in shards."""
    folder = tmp_path_factory.mktemp("sharded")
    full = OPTIONS | {"state_dict_type": "FULL_STATE_DICT"}
    shards = OPTIONS | {"state_dict_type": "SHARDED_STATE_DICT"}
    runs = [
        options(folder / "full", **full),
        options(folder / "full_resumed", resume=str(folder / "full" / "checkpoint-6"), **full),
        options(folder / "idle", idle=IDLE, eval_on_start=True, **full),
        options(folder / "unequal", **UNEQUAL, **full | {"per_device_train_batch_size": 3}),
        options(folder / "groups", **GROUPS, idle=IDLE, **full),
        options(folder / "shards", **shards),
        options(folder / "shards_resumed", resume=str(folder / "shards" / "checkpoint-6"), **shards),
    ]
    names = [Path(values["output_dir"]).name for values in runs]
    return folder, dict(zip(names, run(runs, 2, ["--config_file", str(CONFIGURATION)]), strict=True))


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The same on one process that shards nothing."""
    folder = tmp_path_factory.mktemp("alone")
    accumulated = OPTIONS | {"gradient_accumulation_steps": 2}
    runs = [options(folder / "run", **accumulated), options(folder / "idle", idle=IDLE, **accumulated)]
    runs.append(options(folder / "unequal", **UNEQUAL, **OPTIONS | {"per_device_train_batch_size": 6}))
    return run([*runs, options(folder / "groups", **GROUPS, idle=IDLE, **accumulated)])


def test_the_shipped_configuration_is_version_2():
    configuration = yaml.safe_load(CONFIGURATION.read_text())["fsdp_config"]
    assert configuration["fsdp_version"] == 2
    assert configuration["fsdp_transformer_layer_cls_to_wrap"] == "PvtV2BlockLayer"


def test_sharded_training_equals_that_of_one_process(sharded, alone):
    summary, parameters = sharded[1]["full"]
    assert summary["distributed_type"] == "DistributedType.FSDP"
    assert largest_difference(parameters, alone[0][1]) <= 1
    for entry, expected in zip(summary["log"], alone[0][0]["log"], strict=True):
        assert entry["loss_sgf"] == pytest.approx(expected["loss_sgf"], abs=1e-5)
    for name, figures in summary["dynamics"][-1]["modalities"].items():
        expected = alone[0][0]["dynamics"][-1]["modalities"][name]["gradient_norm"]
        assert figures["gradient_norm"] == pytest.approx(expected, rel=1e-3)


def test_a_process_without_any_modality_in_its_batch_waits_for_nobody(sharded, alone):
    summary, parameters = sharded[1]["idle"]
    assert summary["statistics"]["row_losses"][1] == alone[1][0]["statistics"]["row_losses"][1]
    assert largest_difference(parameters, alone[1][1]) <= 1


def test_a_process_without_a_modality_of_an_encoder_waits_for_nobody(sharded, alone):
    summary, parameters = sharded[1]["groups"]
    assert any(".backbone_1." in name for name in parameters)
    assert summary["statistics"]["row_losses"][1] == alone[3][0]["statistics"]["row_losses"][1]
    assert largest_difference(parameters, alone[3][1]) <= 1


def test_rows_of_unequal_sizes_are_dealt_out_without_a_trace(sharded, alone):
    summary, parameters = sharded[1]["unequal"]
    losses, alone_losses = ([entry["loss"] for entry in run["log"]] for run in (summary, alone[2][0]))
    assert losses == pytest.approx(alone_losses, rel=1e-5)
    assert largest_difference(parameters, alone[2][1]) <= 1


def test_evaluation_of_a_sharded_model_is_that_of_the_whole_one(sharded, alone):
    summary, _ = sharded[1]["full"]
    # the weights differ in their last bits, and with them a pixel here and there
    assert summary["metrics"] == pytest.approx(alone[0][0]["metrics"], abs=0.01)
    assert summary["counted"] == alone[0][0]["counted"]


@pytest.mark.parametrize("kind", ["full", "shards"])
def test_a_sharded_run_resumes_to_the_same_weights_bit_for_bit(sharded, kind):
    folder, runs = sharded
    checkpoint = folder / kind / "checkpoint-6"
    assert checkpoint_layout(checkpoint) == {"full": "fsdp_full", "shards": "fsdp_sharded"}[kind]
    assert is_complete_checkpoint(checkpoint)
    (summary, parameters), (resumed, resumed_parameters) = runs[kind], runs[f"{kind}_resumed"]
    assert resumed["dynamics"] == summary["dynamics"]
    for name, tensor in resumed_parameters.items():
        assert torch.equal(tensor, parameters[name]), name
        # another run, whose copies in memory may have other last bits
        torch.testing.assert_close(tensor, runs["full"][1][name], rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("kind", ["full", "shards"])
def test_what_is_saved_loads_without_shards(sharded, kind):
    folder, runs = sharded
    saved = load_file(folder / kind / "final" / "model.safetensors")
    assert saved.keys() == runs[kind][1].keys()
    for name, tensor in runs[kind][1].items():
        assert torch.equal(saved[name], tensor), name
    assert (folder / kind / "checkpoint-6" / "model.safetensors").is_file()


def test_a_sharded_checkpoint_is_refused_by_a_run_that_shards_nothing(sharded, tmp_path):
    trainer = make_trainer(tmp_path, per_device_train_batch_size=2)
    with pytest.raises(ValueError, match="was saved in the layout 'fsdp_full', this run resumes from 'plain' only"):
        trainer.train(resume_from_checkpoint=str(sharded[0] / "full" / "checkpoint-6"))


def test_weights_of_every_epoch_are_written_once(sharded):
    lines = [json.loads(line) for line in (sharded[0] / "full" / "row_weights.jsonl").open()]
    assert [line["epoch"] for line in lines] == [0, 1, 2]


def test_version_1_and_deepspeed_are_refused():
    def accelerator(kind, version=None):
        state = SimpleNamespace(fsdp_plugin=SimpleNamespace(fsdp_version=version))
        return SimpleNamespace(distributed_type=kind, state=state)

    with pytest.raises(ValueError, match="FSDP version 1; SgmaTrainer shards with version 2"):
        check_sharding(accelerator(DistributedType.FSDP, 1))
    with pytest.raises(ValueError, match="started with DeepSpeed; SgmaTrainer shards with FSDP version 2"):
        check_sharding(accelerator(DistributedType.DEEPSPEED))
    check_sharding(accelerator(DistributedType.FSDP, 2))
    with pytest.raises(ValueError, match="`lora_rank` and `ema_decay` need the whole model on each process"):
        check_sharding(accelerator(DistributedType.FSDP, 2), tunes_weights=True)
    check_sharding(accelerator(DistributedType.MULTI_GPU))  # DDP


def test_filled_optimizer_state_makes_the_steps_of_an_empty_one():
    steps = []
    for fill in (False, True):
        used, unused = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
        optimizer = torch.optim.AdamW([used, unused], lr=0.1)
        fill_optimizer_state(optimizer)  # nothing is known yet
        assert not optimizer.state
        used.grad = torch.tensor([0.5, 2.0])
        optimizer.step()
        if fill:
            fill_optimizer_state(optimizer)
            assert optimizer.state[unused]["exp_avg"].tolist() == [0, 0] and optimizer.state[unused]["step"] == 0
            assert optimizer.state[used]["step"] == 1
        optimizer.step()
        unused.grad = torch.tensor([3.0, -1.0])
        optimizer.step()
        steps.append((used.detach().clone(), unused.detach().clone()))
    assert all(torch.equal(*pair) for pair in zip(*steps, strict=True))
