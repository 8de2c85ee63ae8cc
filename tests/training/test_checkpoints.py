import json
import os

import pytest

from sgma_hf.training.checkpoints import (
    checkpoint_layout,
    is_complete_checkpoint,
    last_complete_checkpoint,
    remove_checkpoint,
)


SAVED = ("config.json", "modality_sampler.json", "scheduler.pt")
FILES = (*SAVED, "model.safetensors", "optimizer.pt", "rng_state.pth", "trainer_state.json")


def make_checkpoint(run, step, files=FILES):
    folder = run / f"checkpoint-{step}"
    folder.mkdir()
    for name in files:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps({"global_step": step, "num_processes": 1}))
    return folder


def test_the_newest_complete_checkpoint_is_found_by_its_step(tmp_path):
    make_checkpoint(tmp_path, 9)
    last = make_checkpoint(tmp_path, 10)
    make_checkpoint(tmp_path, 11, files=FILES[:-1])  # killed before the state was written
    (tmp_path / "checkpoint-best").mkdir()
    assert last_complete_checkpoint(tmp_path) == str(last)


def test_a_state_that_was_cut_off_is_not_complete(tmp_path):
    folder = make_checkpoint(tmp_path, 1)
    assert is_complete_checkpoint(folder)
    os.truncate(folder / "trainer_state.json", 5)
    assert not is_complete_checkpoint(folder)


def test_weights_and_random_state_are_needed(tmp_path):
    for step, missing in enumerate(("model.safetensors", "rng_state.pth", "optimizer.pt")):
        folder = make_checkpoint(tmp_path, step, files=[name for name in FILES if name != missing])
        assert not is_complete_checkpoint(folder), missing
    assert last_complete_checkpoint(tmp_path) is None


ALWAYS = (*SAVED, "rng_state_0.pth", "rng_state_1.pth", "trainer_state.json")
MODEL, OPTIMIZER = "pytorch_model_fsdp_0", "optimizer_0"
LAYOUTS = {
    "plain": (*ALWAYS, "model.safetensors", "optimizer.pt"),
    "fsdp_full": (*ALWAYS, "pytorch_model_fsdp.bin", "optimizer.bin"),
    "fsdp_sharded": (
        *ALWAYS,
        *(f"{folder}/{name}" for folder in (MODEL, OPTIMIZER) for name in (".metadata", "__0_0.distcp")),
    ),
}


def make_layout(run, layout, step=3, missing=None):
    folder = make_checkpoint(run, step, files=[name for name in LAYOUTS[layout] if name != missing])
    if missing != "modality_sampler.json":
        (folder / "modality_sampler.json").write_text(json.dumps({"num_processes": 2}))
    return folder


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_part_of_every_layout_is_needed(tmp_path, layout):
    folder = make_layout(tmp_path, layout)
    assert checkpoint_layout(folder) == layout
    assert is_complete_checkpoint(folder)
    for step, missing in enumerate(LAYOUTS[layout], start=10):
        assert not is_complete_checkpoint(make_layout(tmp_path, layout, step, missing)), missing
    assert last_complete_checkpoint(tmp_path) == str(folder)


def test_a_random_state_for_each_process_is_needed(tmp_path):
    folder = make_layout(tmp_path, "plain")
    (folder / "rng_state_2.pth").write_text("")  # an earlier attempt had three processes
    assert is_complete_checkpoint(folder)
    (folder / "modality_sampler.json").write_text(json.dumps({"num_processes": 4}))
    assert not is_complete_checkpoint(folder)
    (folder / "modality_sampler.json").write_text('{"num_proc')  # killed while it was written
    assert not is_complete_checkpoint(folder)


def test_weights_in_shards_are_whole_if_all_that_the_index_names_are_there(tmp_path):
    folder = make_checkpoint(tmp_path, 1, files=[name for name in FILES if name != "model.safetensors"])
    index = {"weight_map": {"a": "model-1-of-2.safetensors", "b": "model-2-of-2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model-1-of-2.safetensors").write_text("")
    assert not is_complete_checkpoint(folder)
    (folder / "model-2-of-2.safetensors").write_text("")
    assert is_complete_checkpoint(folder)


def test_removing_a_checkpoint_that_is_not_there_is_no_error(tmp_path):
    folder = make_checkpoint(tmp_path, 1)
    remove_checkpoint(folder)
    remove_checkpoint(folder)
    assert not folder.exists()
