import json
import os

from sgma_hf.checkpoints import is_complete_checkpoint, last_complete_checkpoint


FILES = ("config.json", "model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json")


def make_checkpoint(run, step, files=FILES):
    folder = run / f"checkpoint-{step}"
    folder.mkdir()
    for name in files:
        (folder / name).write_text(json.dumps({"global_step": step}))
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
