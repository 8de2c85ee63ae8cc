import json
import shutil
import signal

import pytest
import torch
from launched_training import TWO_ON_CPU, largest_difference, options, run, start


pytestmark = pytest.mark.long


UNEQUAL = {"unequal": True, "rows": 8}
GROUPS = {"encoder_groups": [["rgb", "nir"], ["dsm"]]}  # a process often has no height in its batch
IDLE = [1, 2, 3, 4]  # rows 2 and 4 hold nodata alone, 1 and 3 no label that counts


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """Three epochs of four steps; one row per process and step, so that a process often lacks a modality."""
    folder = tmp_path_factory.mktemp("two")
    runs = [
        options(folder / "run"),
        options(folder / "idle", idle=IDLE),
        options(folder / "unequal", per_device_train_batch_size=3, **UNEQUAL),
        options(folder / "stream", stream=True, max_steps=5),
        options(folder / "groups", **GROUPS),
    ]
    return folder, run(runs, 2, TWO_ON_CPU)


@pytest.fixture(scope="module")
def one_process(two_processes, tmp_path_factory):
    """The same by one process; the last goes on from a checkpoint of two."""
    folder = tmp_path_factory.mktemp("one")
    shutil.copytree(two_processes[0] / "run" / "checkpoint-6", folder / "resumed" / "checkpoint-6")
    accumulated = {"gradient_accumulation_steps": 2}
    return run(
        [
            options(folder / "run", **accumulated),
            options(folder / "idle", idle=IDLE, **accumulated),
            options(folder / "resumed", resume=True, **accumulated),
            options(folder / "unequal", per_device_train_batch_size=6, **UNEQUAL),
            options(folder / "stream", stream=True, max_steps=5, **accumulated),
            options(folder / "groups", **GROUPS, **accumulated),
        ]
    )


def test_two_processes_equal_one_with_twice_the_accumulation(two_processes, one_process):
    (summary, parameters), (alone, expected) = two_processes[1][0], one_process[0]
    assert len(summary["log"]) == len(alone["log"]) == 12
    assert largest_difference(parameters, expected) <= 1
    for entry, alone_entry in zip(summary["log"], alone["log"], strict=True):
        for name in ("loss_sgf", "loss_mas"):
            assert entry[name] == pytest.approx(alone_entry[name], abs=1e-5)


def test_two_processes_equal_one_where_each_group_has_its_encoder(two_processes, one_process):
    (summary, parameters), (alone, expected) = two_processes[1][4], one_process[5]
    assert any(".backbone_1." in name for name in parameters) and len(summary["log"]) == len(alone["log"]) == 12
    assert largest_difference(parameters, expected) <= 1


def test_a_process_that_has_nothing_to_learn_from_waits_for_nobody(two_processes, one_process):
    (summary, parameters), (alone, expected) = two_processes[1][1], one_process[1]
    losses = summary["statistics"]["row_losses"]
    assert losses[1] == alone["statistics"]["row_losses"][1]
    assert [losses[1][index] for index in IDLE] == [0] * 4 and sum(losses[1]) > 0
    assert largest_difference(parameters, expected) <= 1


def test_rows_of_unequal_sizes_are_dealt_out_without_a_trace(two_processes, one_process):
    (summary, parameters), (alone, expected) = two_processes[1][2], one_process[3]
    assert len(summary["log"]) == 6
    for name in ("loss", "loss_sgf", "loss_mas"):
        losses, alone_losses = ([entry[name] for entry in run["log"]] for run in (summary, alone))
        assert losses == pytest.approx(alone_losses, rel=1e-5)
    assert largest_difference(parameters, expected) <= 1


def test_statistics_are_those_of_all_processes(two_processes, one_process):
    # after the last checkpoint, at the end of the epoch, the first process holds the sums of both
    statistics = two_processes[1][0][0]["statistics"]
    for name, expected in one_process[0][0]["statistics"].items():
        torch.testing.assert_close(
            torch.tensor(statistics[name]), torch.tensor(expected), rtol=1e-4, atol=1e-4, msg=name
        )
    assert sum(one_process[0][0]["statistics"]["row_losses"][1]) == 7  # every row counted once


def test_learning_dynamics_are_those_of_all_processes(two_processes, one_process):
    epochs, alone = two_processes[1][0][0]["dynamics"], one_process[0][0]["dynamics"]
    assert [entry["step"] for entry in epochs] == [4, 8, 12]
    for entry, expected in zip(epochs, alone, strict=True):
        for name, figures in entry["modalities"].items():
            for key in ("robustness", "single_loss", "gradient_norm"):
                alone_value = expected["modalities"][name][key]
                if alone_value is None:  # not drawn alone in this epoch
                    assert figures[key] is None, (name, key)
                else:
                    assert figures[key] == pytest.approx(alone_value, rel=1e-3), (name, key)
    assert epochs[2]["prototype_drift"] == pytest.approx(alone[2]["prototype_drift"], abs=1e-3)


def test_evaluation_is_shared_out_and_counts_every_row_and_pixel_once(two_processes, one_process):
    counted, alone = two_processes[1][0][0]["counted"], one_process[0][0]["counted"]
    assert counted == alone  # quotients of pixels; spread weights leave no tie that a last bit could decide
    assert counted["rows"] == 7
    everything = counted["combinations"]["rgb+dsm+nir"]
    assert everything["pixels"] == 7 * 32 * 32 and everything["uncovered_share"] == 0


def test_resuming_with_fewer_processes_goes_on_with_the_same_rows(two_processes, one_process):
    (summary, parameters), (resumed, resumed_parameters) = two_processes[1][0], one_process[2]
    assert resumed["statistics"]["row_losses"][1] == summary["statistics"]["row_losses"][1]
    assert largest_difference(resumed_parameters, parameters) <= 1
    weights = [json.loads(line) for line in (two_processes[0] / "run" / "row_weights.jsonl").open()]
    assert [entry["epoch"] for entry in weights] == [0, 1, 2]


def test_killed_in_mid_epoch_and_resumed_two_processes_end_where_the_uninterrupted_end(two_processes, tmp_path):
    uninterrupted, expected = two_processes[1][0]
    assert {result.returncode for result in start([options(tmp_path, kill_at_step=7)], 2)} == {-signal.SIGKILL}
    saved = sorted(int(path.name.split("-")[1]) for path in tmp_path.glob("checkpoint-*"))
    assert saved == [2, 4, 6]  # the kill costs the step since the last one
    [(summary, parameters)] = run([options(tmp_path, resume=True)], 2)
    assert summary["dynamics"] == uninterrupted["dynamics"]
    for name, tensor in parameters.items():
        assert torch.equal(tensor, expected[name]), name
    weights = [path / "row_weights.jsonl" for path in (two_processes[0] / "run", tmp_path)]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_streamed_rows_are_dealt_out_as_one_process_would_take_them(two_processes, one_process):
    (summary, parameters), (alone, expected) = two_processes[1][3], one_process[4]
    assert [entry["loss"] for entry in summary["log"]] == pytest.approx([entry["loss"] for entry in alone["log"]])
    assert len(summary["log"]) == 5 and largest_difference(parameters, expected) <= 1
