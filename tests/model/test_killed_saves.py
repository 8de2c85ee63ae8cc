"""A SIGKILL while a checkpoint is written costs the steps since the last one, and nothing else."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from launched_training import environment_of


pytestmark = pytest.mark.long


SCRIPT = Path(__file__).parents[1] / "fixtures" / "killed_saves.py"
# In the order that they are written; rotation removes an older checkpoint when the new one is whole.
ALONE = ["model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth"]
ALONE += ["modality_sampler.json", "trainer_state.json", "rotation", "again"]
TWO = ["optimizer.pt", "rng_state_0.pth", "rng_state_1.pth", "modality_sampler.json", "trainer_state.json"]


def killed(folder, names, num_processes):
    command = [sys.executable, str(SCRIPT), str(folder), json.dumps(names), str(num_processes)]
    result = subprocess.run(command, env=environment_of(), capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]
    return folder, json.loads((folder / "report.json").read_text())


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
    return killed(tmp_path_factory.mktemp("one"), ALONE, 1)


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    return killed(tmp_path_factory.mktemp("two"), TWO, 2)


def check_ends_like_the_uninterrupted(folder, name):
    expected = torch.load(folder / "whole" / "parameters.pt", weights_only=True)
    resumed = torch.load(folder / name / "parameters.pt", weights_only=True)
    for key, tensor in resumed.items():
        assert torch.equal(tensor, expected[key]), key
    for record in ("learning_dynamics.json", "row_weights.jsonl"):
        assert (folder / name / record).read_bytes() == (folder / "whole" / record).read_bytes()


@pytest.mark.parametrize("name", ALONE)
def test_killed_while_writing(one_process, name):
    folder, report = one_process
    assert report[name] == {
        "codes": [-signal.SIGKILL],
        "last": "checkpoint-4" if name == "rotation" else "checkpoint-2",
        "resumed": [0],
    }
    check_ends_like_the_uninterrupted(folder, name)


@pytest.mark.parametrize("name", TWO)
def test_one_of_two_processes_killed_while_writing(two_processes, name):
    folder, report = two_processes
    assert report[name]["codes"][name == "rng_state_1.pth"] == -signal.SIGKILL
    assert 0 not in report[name]["codes"]  # the other one cannot go on
    assert report[name]["last"] == "checkpoint-2"
    assert report[name]["resumed"] == [0, 0]
    check_ends_like_the_uninterrupted(folder, name)
