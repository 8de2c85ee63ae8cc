import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
from tiny_trainers import MODALITIES, make_rows, make_trainer

from sgma_hf import SgmaTrainer, SgmaTrainingArguments, evaluate_modality_combinations
from sgma_hf.publishing.record import TrainingRecord
from sgma_hf.training.arguments import MAX_EVALUATIONS
from sgma_hf.training.progress import SpreadEvaluations, scores_by_name


BY_DEFAULT = {"eval_strategy": None, "save_strategy": None}


def evaluated_epochs(epochs, last=None, saves_by_default=True):
    """The epochs at whose end is evaluated, of so many, the last of which may end early."""
    kept = []
    for epoch in range(1, epochs + 1):
        is_last = epoch == epochs
        control = SimpleNamespace(should_evaluate=True, should_save=True)
        place = {"epoch": last if is_last and last else float(epoch), "global_step": epoch, "max_steps": epochs}
        args = SimpleNamespace(saves_by_default=saves_by_default)
        SpreadEvaluations().on_epoch_end(args, SimpleNamespace(**place, num_train_epochs=epochs), control)
        assert control.should_save == (control.should_evaluate or not saves_by_default)
        kept += [epoch] * control.should_evaluate
    return kept


def test_a_run_is_evaluated_twenty_times_at_most_evenly_and_at_its_end():
    for epochs in (1, 3, 20):
        assert evaluated_epochs(epochs) == list(range(1, epochs + 1))
    assert evaluated_epochs(200) == list(range(10, 201, 10))
    for epochs in (21, 39, 57, 1001):
        kept = evaluated_epochs(epochs)
        assert len(kept) == MAX_EVALUATIONS and kept[-1] == epochs
        assert max(np.diff(kept)) - min(np.diff(kept)) <= 1
    assert evaluated_epochs(50, last=49.1)[-1] == 50
    assert len(evaluated_epochs(50, saves_by_default=False)) == MAX_EVALUATIONS


def test_names_of_scores_worked_by_hand():
    found = {
        "rgb": {"miou": 0.25, "f1": 0.4, "iou": [0.5, 0.0], "f1_per_class": [0.6, 0.2]},
        "dsm": {"miou": None, "f1": None, "iou": [None, None], "f1_per_class": [None, None]},
        "rgb+dsm": {"miou": 0.75, "f1": 0.8, "iou": [0.75, None], "f1_per_class": [0.8, None]},
    }
    for name, accuracy, kappa in (("rgb", 0.5, 0.1), ("dsm", None, None), ("rgb+dsm", 0.9, None)):
        found[name] |= {"accuracy": accuracy, "kappa": kappa}
    summary = {"average_miou": 0.5, "last1_miou": 0.25, "top1_miou": 0.75}
    assert scores_by_name(summary | {"class_names": ["soil", "low/veg"], "combinations": found}) == summary | {
        "miou/rgb": 0.25, "miou/rgb+dsm": 0.75, "f1/rgb": 0.4, "f1/rgb+dsm": 0.8,
        "accuracy/rgb": 0.5, "accuracy/rgb+dsm": 0.9, "kappa/rgb": 0.1,
        "average_iou/soil": 0.625, "average_iou/low/veg": 0.0,
        "average_f1/soil": pytest.approx(0.7), "average_f1/low/veg": 0.2,
        "iou/rgb/soil": 0.5, "iou/rgb/low/veg": 0.0, "iou/rgb+dsm/soil": 0.75,
        "f1/rgb/soil": 0.6, "f1/rgb/low/veg": 0.2, "f1/rgb+dsm/soil": 0.8,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("given", "settled"),
    [
        ({}, ("epoch", "epoch", True, 2)),
        ({"save_total_limit": 5}, ("epoch", "epoch", True, 5)),
        ({"eval_strategy": "no"}, ("no", "steps", False, None)),
        ({"eval_strategy": "epoch"}, ("epoch", "steps", False, None)),
        ({"eval_steps": 7}, ("steps", "steps", False, None)),
        ({"save_strategy": "no"}, ("epoch", "no", False, None)),
        ({"save_steps": 50}, ("epoch", "steps", False, None)),
        ({"load_best_model_at_end": False}, ("epoch", "epoch", False, 2)),
        ({"load_best_model_at_end": True}, ("epoch", "epoch", True, 2)),
        ({"save_strategy": "best"}, ("epoch", "best", False, None)),
        ({"lr_scheduler_type": "reduce_lr_on_plateau"}, ("epoch", "epoch", True, 2)),
    ],
)
def test_what_is_not_given_of_evaluating_and_saving_is_settled_for_the_best_checkpoint(tmp_path, given, settled):
    args = SgmaTrainingArguments(str(tmp_path), use_cpu=True, **given)
    args.evaluate_by_default()
    assert (args.eval_strategy, args.save_strategy, args.load_best_model_at_end, args.save_total_limit) == settled


def test_without_rows_to_evaluate_on_nothing_is_evaluated(tmp_path):
    trainer = make_trainer(tmp_path, max_steps=1, **BY_DEFAULT)
    options = {"processing_class": trainer.processing_class, "train_dataset": make_rows()}
    args = SgmaTrainingArguments(str(tmp_path / "b"), use_cpu=True)
    SgmaTrainer(trainer.model, args, **options)
    SgmaTrainer(trainer.model, args, **options, eval_dataset={"north": make_rows()})  # none of several chooses
    assert (args.eval_strategy, args.load_best_model_at_end) == ("no", False)


@pytest.mark.long
def test_a_run_prints_plain_lines_and_keeps_the_best_checkpoint(tmp_path, capsys):
    rows = make_rows(4)
    trainer = make_trainer(tmp_path, rows=rows, logging_steps=2, num_train_epochs=3, **BY_DEFAULT)
    capsys.readouterr()
    trainer.train()
    lines = capsys.readouterr().out.splitlines()
    history = trainer.state.log_history
    losses = [entry for entry in history if "loss" in entry]
    scores = [entry for entry in history if "eval_average_miou" in entry]
    expected = {
        entry["step"]: f"step {entry['step']}/6, epoch {entry['epoch']:g}: loss {entry['loss']:.4f}, "
        f"rate {entry['learning_rate']:.3g}, "
        for entry in losses
    }
    assert sorted(expected) == [1, 2, 4, 6] and [entry["step"] for entry in scores] == [2, 4, 6]
    for entry in losses:
        [line] = [line for line in lines if line.startswith(expected[entry["step"]])]
        assert re.fullmatch(r"[\d.e-]+ s/step", line.removeprefix(expected[entry["step"]]))
    for entry in scores:
        average, last, top = (100 * entry[f"eval_{name}_miou"] for name in ("average", "last1", "top1"))
        assert (
            f"step {entry['step']}/6, epoch {entry['epoch']:g}: Average {average:.2f}, Last-1 {last:.2f}, "
            f"Top-1 {top:.2f} (mIoU in %)"
        ) in lines
    assert len(lines) == len(losses) + len(scores)

    best = max(scores, key=lambda entry: entry["eval_average_miou"])
    assert trainer.step_of_weights() == best["step"]
    assert len(list(tmp_path.glob("checkpoint-*"))) <= 2
    results = trainer.score(trainer.eval_dataset)
    assert (results["average_miou"], results["chosen_by"]) == (best["eval_average_miou"], "average_miou")
    assert trainer.score(list(rows))["chosen_by"] is None
    record = trainer.training_record()
    assert record.selection == {"score": "average_miou", "dataset": None, "split": None}


def test_a_record_knows_which_rows_chose_its_checkpoint(tmp_path):
    chosen = {"score": "iou/rgb/tree", "dataset": "mine", "split": "validation"}
    TrainingRecord(selection=chosen).save(tmp_path)
    record = TrainingRecord.load(tmp_path)
    mine, other = tmp_path / "mine", tmp_path / "other"
    mine.mkdir()
    assert [record.chosen_by(str(mine), split) for split in ("validation", "valid")] == ["iou/rgb/tree"] * 2
    assert record.chosen_by(str(mine), "test") is None
    assert record.chosen_by(str(other), "validation") is None
    assert TrainingRecord().chosen_by(str(mine), "validation") is None


def test_a_score_that_no_row_to_evaluate_on_can_have_is_refused_before_training(tmp_path):
    rows = make_rows()
    for row in rows:
        row["dsm"] = None
        row["label"][row["label"] == 2] = 0
    unlabelled = [dict(row, dsm=row["nir"].astype(np.float32), label=None) for row in make_rows(2)]
    options = {"rows": rows + unlabelled, "eval_strategy": "epoch"}
    problems = {
        "miou/rgb+dsm": "no labelled row to evaluate on has dsm",
        "f1/dsm/LABEL_0": "no labelled row to evaluate on has dsm",
        "average_iou/LABEL_2": "no row to evaluate on has a pixel of class 'LABEL_2'",
        "iou/rgb/LABEL_2": "no row to evaluate on has a pixel of class 'LABEL_2'",
    }
    for name, problem in problems.items():
        with pytest.raises(ValueError) as caught:
            make_trainer(tmp_path, metric_for_best_model=name, **options)
        assert str(caught.value) == (
            f"`metric_for_best_model` is {name!r}, and {problem}: it is never defined. Choose another."
        )
    for name in ("average_miou", "miou/rgb+nir", "average_iou/LABEL_1"):
        make_trainer(tmp_path, metric_for_best_model=name, **options)
    with pytest.raises(ValueError, match="and no row to evaluate on has a label and a modality: it is never defined"):
        make_trainer(tmp_path, rows=unlabelled, eval_strategy="epoch")


def test_sets_without_a_row_or_a_length_are_named(tmp_path):
    trainer = make_trainer(tmp_path)
    options = {"processing_class": trainer.processing_class, "train_dataset": make_rows()}
    with pytest.raises(ValueError, match=r"^`eval_dataset\['south'\]` has no rows"):
        SgmaTrainer(trainer.model, trainer.args, **options, eval_dataset={"north": make_rows(), "south": []})
    with pytest.raises(ValueError, match=r"^`eval_dataset` has no rows"):
        SgmaTrainer(trainer.model, trainer.args, **options, eval_dataset={})


def test_batches_that_are_all_left_out_are_refused_before_training(tmp_path):
    with pytest.raises(ValueError, match=r"has 6 rows, and `dataloader_drop_last` .* 7: none is left"):
        make_trainer(tmp_path, dataloader_drop_last=True, per_device_train_batch_size=7)
    make_trainer(tmp_path, dataloader_drop_last=True, per_device_train_batch_size=6)


@pytest.mark.long
def test_scores_of_classes_are_those_of_the_evaluation_and_go_to_the_log(tmp_path, capsys):
    trainer = make_trainer(tmp_path)
    metrics = trainer.evaluate()
    average, last, top = (100 * metrics[f"eval_{name}_miou"] for name in ("average", "last1", "top1"))
    printed = f"Average {average:.2f}, Last-1 {last:.2f}, Top-1 {top:.2f} (mIoU in %)"
    assert capsys.readouterr().out.splitlines() == [printed]  # outside a training there is no step
    results = evaluate_modality_combinations(trainer.model, trainer.processing_class, trainer.eval_dataset)
    for names, found in results["combinations"].items():
        for index, label in enumerate(results["class_names"]):
            assert metrics.get(f"eval_iou/{names}/{label}") == found["iou"][index]
            assert metrics.get(f"eval_f1/{names}/{label}") == found["f1_per_class"][index]
    logged = trainer.state.log_history[-1]
    assert {name: logged[name] for name in metrics if "iou/" in name} == {
        name: score for name, score in metrics.items() if "iou/" in name
    }
    assert json.loads(json.dumps(logged)) and len(MODALITIES) == 3
