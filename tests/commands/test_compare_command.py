"""`sgma-hf compare`: order, resumption, and files that a killed process leaves whole."""

import json
import multiprocessing
import re
import subprocess
import sys

import pytest
import torch
from comparison_fixtures import FLAGS, made_up_run, write_scenes
from killed_processes import killed, lingering

from sgma_hf.commands import compare
from sgma_hf.comparison import runs
from sgma_hf.comparison.run_records import FORMAT_VERSION, append_row, prepare_file, read_rows
from sgma_hf.comparison.settings import RunSettings


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return write_scenes(tmp_path_factory.mktemp("scenes") / "demo")


@pytest.fixture
def executed(monkeypatch):
    """Runs that were executed, in order; executing one costs nothing."""
    done = []

    def pretend(run, **options):
        done.append((run.arm.name, run.seed))
        combinations = {name: {"miou": miou} for name, miou in (("rgb", 0.75), ("dsm", None), ("rgb+dsm", 0.7))}
        scores = {"combinations": combinations, "average_miou": 0.5, "last1_miou": None, "top1_miou": 0.75}
        identity = run.identity(compare.content_fingerprint(run.dataset))
        row = identity | {"results": {run.settings.report_split: scores}, "seconds": {"train": 1.0}}
        row["results"] |= {run.settings.choosing_split: scores} if run.settings.choosing_split else {}
        row |= {"reliance": {}} if run.settings.reliance else {}
        return row | {"format_version": FORMAT_VERSION}

    monkeypatch.setattr("sgma_hf.comparison.runs.execute_run", pretend)
    return done


def run(scenes, output, *flags):
    return compare.main(["--dataset", scenes, "--output", str(output), *FLAGS, *flags])


def test_runs_go_seed_by_seed_and_those_recorded_are_skipped(scenes, executed, tmp_path, capsys):
    output = tmp_path / "runs" / "results.jsonl"
    assert run(scenes, output, "--arms", "sgma", "mean", "--seeds", "0", "1") == 0
    assert executed == [("sgma", 0), ("mean", 0), ("sgma", 1), ("mean", 1)]
    said = "Average / Last-1 / Top-1 50.0 / – / 75.0; the least that a sensor brings is -5.0, dsm to `rgb`; 1 s"
    assert said in capsys.readouterr().out
    executed.clear()
    assert run(scenes, output, "--arms", "mean", "early", "--seeds", "1", "2") == 0
    assert executed == [("early", 1), ("mean", 2), ("early", 2)]
    assert "4 runs, 1 of them already" in capsys.readouterr().out
    executed.clear()
    assert run(scenes, output, "--arms", "mean", "--seeds", "1", "--learning_rate", "0.002") == 0
    assert executed == [("mean", 1)]  # other settings, another run
    assert len(read_rows(output)) == 8


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--score_classes", "tree", "bilding"], "Class to score 'bilding' is none of the classes"),
        (["--label_column", "scoring_label"], "no column 'scoring_label' of labels"),
    ],
)
def test_scores_that_cannot_be_made_are_refused_in_one_line(scenes, executed, tmp_path, capsys, flags, message):
    assert run(scenes, tmp_path / "results.jsonl", *flags) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and not executed


def test_presets_share_their_runs(scenes, executed, tmp_path):
    output = tmp_path / "results.jsonl"
    assert run(scenes, output) == 0
    assert executed == [("mean", 0), ("projector_mean_single", 0), ("sgma", 0)]
    assert run(scenes, output, "--preset", "full") == 0
    assert len(executed) == len(set(executed)) == len(compare.select_arms(["all"])) * 3


def test_a_run_that_fails_does_not_stop_the_others(scenes, executed, tmp_path, monkeypatch, capsys):
    output = tmp_path / "results.jsonl"
    pretend = runs.execute_run

    def fail(run, **options):
        if run.arm.name == "mean":
            raise RuntimeError("out of memory")
        return pretend(run, **options)

    monkeypatch.setattr("sgma_hf.comparison.runs.execute_run", fail)
    assert run(scenes, output, "--arms", "mean", "sgma") == 1
    error = capsys.readouterr().err
    assert "mean, seed 0: RuntimeError: out of memory" in error and 'raise RuntimeError("out of memory")' in error
    assert [row["arm"] for row in read_rows(output)] == ["sgma"]
    monkeypatch.setattr("sgma_hf.comparison.runs.execute_run", pretend)
    assert run(scenes, output, "--arms", "mean", "sgma") == 0
    assert [row["arm"] for row in read_rows(output)] == ["sgma", "mean"]


def test_an_interruption_leaves_whole_lines_and_the_next_call_goes_on(scenes, executed, tmp_path, monkeypatch, capsys):
    output = tmp_path / "results.jsonl"
    pretend = runs.execute_run

    def interrupt(run, **options):
        if run.arm.name == "sgma":
            raise KeyboardInterrupt
        return pretend(run, **options)

    monkeypatch.setattr("sgma_hf.comparison.runs.execute_run", interrupt)
    assert run(scenes, output, "--arms", "mean", "sgma", "early") == 130
    assert "stopped; the same command goes on" in capsys.readouterr().err
    assert [json.loads(line)["arm"] for line in output.read_text().splitlines()] == ["mean"]
    monkeypatch.setattr("sgma_hf.comparison.runs.execute_run", pretend)
    executed.clear()
    assert run(scenes, output, "--arms", "mean", "sgma", "early") == 0
    assert executed == [("sgma", 0), ("early", 0)]


def test_a_line_that_was_cut_off_is_dropped_and_its_run_done_again(scenes, executed, tmp_path):
    output = tmp_path / "results.jsonl"
    assert run(scenes, output, "--arms", "mean", "sgma") == 0
    content = output.read_bytes()
    output.write_bytes(content[:-100])
    assert [row["arm"] for row in read_rows(output)] == ["mean"]
    executed.clear()
    assert run(scenes, output, "--arms", "mean", "sgma") == 0
    assert executed == [("sgma", 0)]
    assert output.read_bytes() == content


def test_figures_that_are_there_are_not_asked_for_again(scenes, executed, tmp_path):
    output = tmp_path / "results.jsonl"
    assert run(scenes, output, "--arms", "mean", "--reliance", "true") == 0
    executed.clear()
    assert run(scenes, output, "--arms", "mean") == 0  # less than is recorded
    assert executed == []
    assert run(scenes, output, "--arms", "mean", "--corruptions", "true") == 0
    assert run(scenes, output, "--arms", "mean", "--choosing_split", "train") == 0
    assert executed == [("mean", 0)] * 2


def test_lines_are_mended_only_at_the_end(tmp_path):
    path = tmp_path / "deep" / "results.jsonl"
    assert read_rows(path) == []
    prepare_file(path)
    row = made_up_run("mean", 0, 0.5)
    append_row(path, row)
    path.write_text(path.read_text().rstrip("\n"))  # whole, only its end is missing
    assert read_rows(path) == [row]
    append_row(path, row)
    assert read_rows(path) == [row, row]
    with pytest.raises(ValueError, match="JSON"):
        append_row(path, {"loss": float("nan")})
    path.write_text("{broken\n" + path.read_text())
    with pytest.raises(ValueError, match="line 1"):
        read_rows(path)


@pytest.mark.parametrize(
    "content",
    ["a card", "# Title\n\ntext", '{"loss": 1}', '{\n "loss": 1', '{"loss": 1}\n{"lo', "[1]\n{"],
)
def test_a_file_of_something_else_is_left_alone(scenes, executed, tmp_path, content, capsys):
    path = tmp_path / "other.txt"
    path.write_text(content)
    assert run(scenes, path) == 2
    assert re.search(r"other.txt, line \d: .*; expected a run", capsys.readouterr().err)
    with pytest.raises(ValueError, match=r"other.txt, line \d: .*; expected a run"):
        append_row(path, made_up_run("mean", 0, 0.5))
    assert path.read_text() == content and executed == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": "0"}, r"\['seed'\] are of another type"),
        ({"format_version": FORMAT_VERSION + 1}, f"`format_version` is {FORMAT_VERSION + 1}"),
        ({"results": {"validation": {}}}, r"\['validation'\] and not of its `report_split` 'test'"),
        ({"dataset": {"name": "fields"}}, "no fingerprint"),
    ],
)
def test_lines_that_are_no_run_are_named(tmp_path, changes, message):
    path = tmp_path / "results.jsonl"
    path.write_text("".join(json.dumps(made_up_run("a", 0, 0.5) | change) + "\n" for change in ({}, changes)))
    with pytest.raises(ValueError, match=f"line 2: .*{message}"):
        read_rows(path)


def test_output_that_cannot_be_written_is_refused_before_anything_runs(scenes, executed, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    for output in (tmp_path, tmp_path / "file" / "results.jsonl"):
        assert run(scenes, output) == 2
        assert str(tmp_path) in capsys.readouterr().err
    assert executed == []


@pytest.mark.parametrize(("gpus", "message"), [(0, "finds no GPU"), (2, "CUDA_VISIBLE_DEVICES")])
def test_gpus_that_a_run_would_not_be_on_are_refused(scenes, executed, tmp_path, monkeypatch, gpus, message, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert run(scenes, tmp_path / "results.jsonl", "--device", "cuda") == 2
    assert message in capsys.readouterr().err
    assert executed == []


@pytest.mark.long
def test_a_process_that_is_killed_is_tried_once_more(tmp_path, monkeypatch):
    monkeypatch.setattr(compare, "_attempt", killed)
    once, always = str(tmp_path / "once"), str(tmp_path / "always")
    assert list(compare._in_own_processes([once], 2, 1)) == [(once, "tries: 2")]
    ((_, failure),) = compare._in_own_processes([always], 2, 9)
    assert failure.kind == "ChildProcessError" and "killed" in failure.message
    assert (tmp_path / "always").read_text() == "xx"


@pytest.mark.long
def test_no_process_outlives_the_comparison(monkeypatch):
    monkeypatch.setattr(compare, "_attempt", lingering)
    outcomes = compare._in_own_processes([0, 600], 2, 1)
    assert next(outcomes) == (0, "0 s")
    assert len(multiprocessing.active_children()) == 1
    outcomes.close()
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--arms", "magic"], "There is no arm 'magic'"),
        (["--report_split", "night"], "no split 'night'"),
        (["--report_split", "validation"], "chooses"),
        (["--missing", "thermal=0.5"], "thermal"),
        (["--missing", "rgb"], "--missing rgb"),
        (["--num_proc", "0"], "--num_proc"),
        (["--jobs", "0"], "--num_proc"),  # as it was once called
        (["--crop-size", "0"], "`crop_size` is 0"),
        (["--dataset", "nowhere"], "--dataset nowhere: there is no such folder"),
        (["--backbone_config", "none.json"], "model_type"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_runs(scenes, executed, tmp_path, flags, message, capsys):
    assert run(scenes, tmp_path / "results.jsonl", *flags) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("sgma-hf compare: ") and error.count("\n") == 1
    assert executed == [] and not (tmp_path / "results.jsonl").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [(["--sedes", "1"], "no flag --sedes; did you mean --seeds?"), (["--preset", "quik"], "did you mean quick?")],
)
def test_mistyped_flags_and_choices_are_told(scenes, executed, tmp_path, flags, message, capsys):
    with pytest.raises(SystemExit) as stop:
        run(scenes, tmp_path / "results.jsonl", *flags)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and message in error and error.count("\n") == 1
    assert executed == []


@pytest.mark.long
def test_a_spawned_process_gives_the_figures_of_this_one(scenes, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # the command sets it for its children
    arms = ["--arms", "sgma", "--seeds", "3"]
    assert run(scenes, tmp_path / "here.jsonl", *arms) == 0
    assert run(scenes, tmp_path / "there.jsonl", *arms, "--num_proc", "2") == 0
    (here,), (there,) = (read_rows(tmp_path / f"{place}.jsonl") for place in ("here", "there"))
    assert here["results"] == there["results"]
    assert here["losses"] == there["losses"]


@pytest.mark.long
def test_a_spawned_process_imports_what_this_one_was_told_to(scenes, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_fusion.py").write_text(
        "from sgma_hf.model.fusion_sgma import SgmaMeanFusion, register_fusion\n"
        "@register_fusion('own_mean')\n"
        "class OwnFusion(SgmaMeanFusion):\n"
        "    pass\n"
    )
    (tmp_path / "own_arm.py").write_text(
        "from sgma_hf.comparison.arms import Arm\nARM = Arm('own', 'A mean.', config={'fusion': 'own_mean'})\n"
    )
    program = "import sys; from sgma_hf.commands import main; sys.exit(main())"
    flags = ["--arms", "own_arm:ARM", "--seeds", "0", "--num_proc", "2"]
    words = ["--dataset", str(scenes), "--output", "own.jsonl", *FLAGS, *flags]
    subprocess.run([sys.executable, "-c", program, "--import", "own_fusion", "compare", *words], check=True)
    (row,) = read_rows(tmp_path / "own.jsonl")
    assert row["results"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            "config={'mas_loss_weigth': 0.5}",
            "`config` has 'mas_loss_weigth', which is no field of SgmaConfig; did you",
        ),
        ("config={'decoder_hidden_size': 'wide'}", "Field 'decoder_hidden_size' expected int, got str"),
        ("training={'modality_dropuot': [0.3]}", "unexpected keyword argument 'modality_dropuot'"),
        ("training={'modality_dropout': [2.0]}", "`modality_dropout` is [2.0]; expected one number"),
    ],
)
def test_an_arm_of_ones_own_with_wrong_fields_is_told_before_any_training(
    scenes, executed, tmp_path, monkeypatch, capsys, fields, message
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "mistaken", raising=False)
    imported = "from sgma_hf.comparison.arms import Arm"
    (tmp_path / "mistaken.py").write_text(f"{imported}\nARM = Arm('x', 'x', {fields})\n")
    assert run(scenes, tmp_path / "results.jsonl", "--arms", "mean", "mistaken:ARM") == 2
    error = capsys.readouterr().err
    assert "The arm mistaken:ARM: " in error and message in error and error.count("\n") == 1
    assert not executed and not (tmp_path / "results.jsonl").exists()


def test_an_output_that_is_a_folder_is_told_in_one_line(scenes, executed, tmp_path, capsys):
    assert run(scenes, tmp_path, "--arms", "mean") == 2
    assert f"{tmp_path} is a folder; name the file of JSON lines" in capsys.readouterr().err


def test_an_arm_may_have_a_learning_rate_of_its_own():
    settings = RunSettings(learning_rate=1e-3)
    assert runs._training_arguments(settings, "unused", learning_rate=1e-4).learning_rate == 1e-4
