import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch


SCRIPT = Path(__file__).parent / "distributed_training.py"


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def run(output_dir, num_processes=1, expect_killed=False, **options):
    """Run the script, and return its summary and parameters."""
    output_dir.mkdir(parents=True, exist_ok=True)
    command = [sys.executable]
    if num_processes > 1:
        # `accelerate launch --cpu --num_processes 2` would silently start one process
        command += ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", str(num_processes)]
        command += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
        command += ["--main_process_port", str(free_port())]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    result = subprocess.run(
        [*command, str(SCRIPT), str(output_dir), json.dumps(options)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    if expect_killed:
        assert result.returncode != 0
        return None
    assert result.returncode == 0, result.stderr[-3000:]
    summary = json.loads((output_dir / "summary.json").read_text())
    assert summary["world_size"] == num_processes
    return summary, torch.load(output_dir / "parameters.pt", weights_only=True)


OPTIONS = {"per_device_train_batch_size": 1, "num_train_epochs": 3, "save_strategy": "steps", "save_steps": 2}


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """Three epochs of four steps; one row per process and step, so that a process often lacks a modality."""
    return run(tmp_path_factory.mktemp("two"), 2, **OPTIONS)


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
    return run(tmp_path_factory.mktemp("one"), gradient_accumulation_steps=2, **OPTIONS)


def test_two_processes_equal_one_with_twice_the_accumulation(two_processes, one_process):
    (summary, parameters), (alone, expected) = two_processes, one_process
    assert len(summary["log"]) == len(alone["log"]) == 12
    for name, tensor in parameters.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-4, atol=1e-5, msg=name)
    for entry, alone_entry in zip(summary["log"], alone["log"], strict=True):
        for name in ("loss_sgf", "loss_mas"):
            assert entry[name] == pytest.approx(alone_entry[name], abs=1e-4)


def test_statistics_are_those_of_all_processes(two_processes, one_process):
    # after the last checkpoint, at the end of the epoch, the first process holds the sums of both
    for name, expected in one_process[0]["statistics"].items():
        torch.testing.assert_close(
            torch.tensor(two_processes[0]["statistics"][name]), torch.tensor(expected), rtol=1e-3, atol=1e-3, msg=name
        )
    assert sum(one_process[0]["statistics"]["row_losses"][1]) == 7  # every row counted once


def test_learning_dynamics_are_those_of_all_processes(two_processes, one_process):
    epochs, alone = two_processes[0]["dynamics"], one_process[0]["dynamics"]
    assert [entry["step"] for entry in epochs] == [4, 8, 12]
    for entry, expected in zip(epochs, alone, strict=True):
        for name, figures in entry["modalities"].items():
            for key in ("robustness", "single_loss", "gradient_norm"):
                alone_value = expected["modalities"][name][key]
                if alone_value is None:  # not drawn alone in this epoch
                    assert figures[key] is None, (name, key)
                else:
                    assert figures[key] == pytest.approx(alone_value, rel=1e-2), (name, key)
    assert epochs[2]["prototype_drift"] == pytest.approx(alone[2]["prototype_drift"], abs=1e-2)


def test_evaluation_is_shared_out_and_counts_every_row_once(two_processes, one_process):
    for name, value in one_process[0]["metrics"].items():
        # the weights differ by 1e-5, so a few pixels may fall to another class
        assert two_processes[0]["metrics"][name] == pytest.approx(value, abs=2e-3), name


def test_killed_in_mid_epoch_and_resumed_two_processes_end_where_the_uninterrupted_end(two_processes, tmp_path):
    uninterrupted, expected = two_processes
    run(tmp_path, 2, expect_killed=True, kill_at_step=7, **OPTIONS)
    saved = sorted(int(path.name.split("-")[1]) for path in tmp_path.glob("checkpoint-*"))
    assert saved == [2, 4, 6]  # the kill costs the step since the last one
    summary, parameters = run(tmp_path, 2, resume=True, **OPTIONS)
    assert summary["dynamics"] == uninterrupted["dynamics"]
    for name, tensor in parameters.items():
        assert torch.equal(tensor, expected[name]), name
