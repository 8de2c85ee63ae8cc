import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from evaluation_results import EVALUATION
from hub_stand_in import ROOT, WRITE_TOKEN
from huggingface_hub import ModelCard
from tiny_models import tiny_model

from sgma_hf import SgmaImageProcessor
from sgma_hf.publishing.model_card import MARKER, build_model_card, usage_snippet
from sgma_hf.publishing.record import (
    RECORD_FILE,
    TrainingRecord,
    command_line,
    dataset_name,
    package_commit,
    redact_tokens,
)


@pytest.fixture
def pair():
    model = tiny_model(
        modalities=["rgb", "dsm"], modality_channels=[3, 1], id2label={0: "bare", 1: "a|b"}, num_labels=2
    )
    processor = SgmaImageProcessor(
        ["rgb", "dsm"], [3, 1], image_mean=[[0.4, 0.5, 0.6], 7.5], image_std=[0.2, 2.5], nodata=[[0], [-9999]]
    )
    return model, processor


def section(card, title):
    return card.partition(f"## {title}\n")[2].partition("\n## ")[0]


def test_the_card_names_modalities_units_normalisation_classes_and_training(pair):
    model, processor = pair
    record = TrainingRecord(
        dataset="org/fields",
        dataset_is_on_hub=True,
        train_split="train",
        train_rows=40,
        units={"dsm": "m"},
        command="sgma-hf train --dataset org/fields",
        arguments={"learning_rate": 6e-05},
        steps=500,
        versions={"torch": "2.13.0"},
        commit="abc123",
        hardware="NVIDIA H200",
    )
    card = build_model_card(model.config, processor, record, repo_id="org/sgma-fields")
    text = str(card)
    takes = section(text, "What it takes")
    assert "| `rgb` | 3 | not recorded | none | 0.003922 | 0.4, 0.5, 0.6 | 0.2 | 0 |" in takes
    assert "| `dsm` | 1 | m | minimum | 1 | 7.5 | 2.5 | -9999 |" in takes
    assert "| 0 | bare |\n| 1 | a\\|b |" in section(text, "What it returns")
    training = section(text, "Training")
    for fact in ("sgma-hf train --dataset org/fields", "| steps | 500 |", "| rows | 40 |", "torch 2.13.0"):
        assert fact in training
    for fact in ("| commit | abc123 |", "| hardware | NVIDIA H200 |", "| `learning_rate` | 6e-05 |"):
        assert fact in training
    assert card.data.datasets == ["org/fields"] and card.data.pipeline_tag == "image-segmentation"
    assert card.data.tags[:2] == ["sgma", "remote-sensing"] and "CO2" not in text
    assert "SegFormer" in section(text, "Differences from the paper") and "add_modality" in text
    assert "NVIDIA" not in section(text, "Limits") and "org/fields only" in section(text, "Limits")


def test_the_card_names_the_resolution_where_it_is_known(pair):
    model, processor = pair
    assert "on the ground" not in str(build_model_card(model.config, processor))
    processor.resolution = 0.35
    takes = section(str(build_model_card(model.config, processor)), "What it takes")
    assert "(nodata, NaN). In training a pixel was 0.35 m on the ground.\n" in takes


def differences(record=None, **changes):
    config = tiny_model(modalities=["rgb", "dsm"], modality_channels=[3, 1], **changes).config
    card = str(build_model_card(config, SgmaImageProcessor(["rgb", "dsm"], [3, 1]), record))
    return " ".join(section(card, "Differences from the paper").split())


def test_differences_from_the_paper_are_those_of_these_weights():
    ours = differences(TrainingRecord(steps=1, arguments={"robustness_sampling": True}))
    assert "with 16 hidden channels, is added to what enters the shared encoder" in ours
    assert "- A Dice loss of weight 1.0 is added" in ours
    assert "rows with fragile modalities and hard rows came more often" in ours
    assert "in the paper 2 and 1" not in ours and "weighted" not in ours and "baseline" not in ours
    papers = differences(
        TrainingRecord(steps=1, arguments={"robustness_sampling": False}), modality_adapter_size=0, dice_loss_weight=0
    )
    for words in ("adapter", "Dice", "fragile"):
        assert words not in papers
    assert "- Class prototypes are averages" in papers and "- Modality-aware sampling draws one" in papers
    changed = differences(mas_loss_weight=0, class_weights=[1.0] * 5)
    assert "weigh 2.0 and 0; in the paper 2 and 1." in changed and "The classes are weighted" in changed
    assert "Modality-aware sampling draws" not in changed
    baseline = differences(fusion="mean")
    assert "The fusion is `mean`, a baseline" in baseline and "prototypes" not in baseline


@pytest.mark.parametrize(
    ("facts", "line"),
    [
        ({}, "It has seen data that is not recorded here;"),
        ({"dataset": "fields"}, "It has seen the data set fields only;"),
        (
            {"dataset": "fields", "finetuned_from": "org/sgma"},
            "the data set fields, and before that what `org/sgma` had;",
        ),
        ({"dataset": "fields", "backbone": "org/pvt"}, "the data set fields, and before that what `org/pvt` had;"),
    ],
)
def test_limits_name_all_that_formed_the_weights(pair, facts, line):
    card = str(build_model_card(*_of(pair), TrainingRecord(**facts)))
    assert line in " ".join(section(card, "Limits").split())
    assert ("The encoder started from the weights of `org/pvt`." in card) == ("backbone" in facts)
    assert ("Fine-tuned from `org/sgma`." in card) == ("finetuned_from" in facts)


def test_the_card_says_that_a_pyramid_is_new(pair):
    card = str(build_model_card(*_of(pair), TrainingRecord(backbone="org/dinov2", has_pyramid=True)))
    assert "started from the weights of `org/dinov2`, and its feature pyramid from new ones." in card
    assert "The encoder is a plain vision transformer, and a feature pyramid brings" in card


def test_without_an_evaluation_there_is_no_score_anywhere(pair):
    text = str(build_model_card(*_of(pair), TrainingRecord(steps=1), repo_id="org/name"))
    assert "These weights have not been evaluated: this card states no scores." in text
    head, results = text.partition("\n---\n")[0], section(text, "Results")
    assert "model-index" not in head and "mean_iou" not in head
    assert not re.search(r"\d", results)
    bare = str(build_model_card(*_of(pair)))
    assert "How these weights were trained is not recorded." in bare


def test_scores_go_into_the_table_and_the_model_index(pair):
    card = build_model_card(*_of(pair), TrainingRecord(evaluation=EVALUATION), repo_id="org/name")
    results = section(str(card), "Results")
    assert "split `test` of org/fields (12 rows)" in results
    assert "| dsm | 25.00 |" in results and "Average 50.00, Top-1 75.00 (rgb+dsm), Last-1 25.00 (dsm)" in results
    read_back = ModelCard(str(card)).data.eval_results
    assert {entry.metric_name: entry.metric_value for entry in read_back} == {
        "mIoU, Average over all combinations": 0.5,
        "mIoU, Top-1 (rgb+dsm)": 0.75,
        "mIoU, Last-1 (dsm)": 0.25,
        "mIoU, rgb": 0.5,
        "mIoU, dsm": 0.25,
        "mIoU, rgb+dsm": 0.75,
    }
    assert {(entry.dataset_type, entry.dataset_split, entry.metric_type) for entry in read_back} == {
        ("org/fields", "test", "mean_iou")
    }
    unscored = json.loads(json.dumps(EVALUATION))
    unscored["combinations"]["dsm"] |= {"miou": None, "f1": None, "accuracy": None, "iou": [None, None]}
    names = [
        entry.metric_name
        for entry in build_model_card(*_of(pair), TrainingRecord(evaluation=unscored)).data.eval_results
    ]
    assert "mIoU, dsm" not in names


@pytest.mark.long
@pytest.mark.parametrize("periods", [None, [365.25, 91.3]])
def test_the_cards_example_runs_as_printed(pair, tmp_path, periods):
    model, processor = pair
    model = type(model)(type(model.config).from_dict(model.config.to_dict() | {"date_periods": periods}))
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    text = str(build_model_card(model.config, processor))
    (snippet,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert ('_dates": ["2024-04-02", "2024-06-11"],' in snippet) == (periods is not None)
    assert ("waves of the periods 365.25, 91.3." in text) == (periods is not None)
    run = subprocess.run(
        [sys.executable, "-c", snippet], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip().endswith("torch.Size([256, 256])")
    assert "far from" not in run.stderr


def test_the_example_is_valid_for_any_set_of_modalities():
    one = SgmaImageProcessor(["sar"], [2])
    assert "None" not in usage_snippet(one, ".")
    hidden = SgmaImageProcessor(["nir", "rgb"], [1, 3], image_mean=[0.0, 0.5], nodata=[[0], []], rescale_factor=1.0)
    assert '"nir": np.full((256, 256), 0.225)' in usage_snippet(hidden, ".")  # 0 would be nodata


def test_tokens_never_enter_a_command():
    typed = ["--hub_token", WRITE_TOKEN, "--hub-token=secret", "--output_dir", "runs/a b", f"x={WRITE_TOKEN}"]
    assert redact_tokens(typed) == [
        "--hub_token",
        "<token>",
        "--hub-token=<token>",
        "--output_dir",
        "runs/a b",
        "x=<token>",
    ]
    assert command_line(["sgma-hf", "train", *typed[:2]]) == "sgma-hf train --hub_token '<token>'"
    assert command_line(["/opt/env/bin/sgma-hf", "train"]) == "sgma-hf train"
    assert command_line([str(ROOT / "scripts" / "none.py"), "--x"]) == "python none.py --x"
    typed = ["--dataset", "/data/ada/fields", "--output_dir=/data/x/run/", "--backbone", "org/pvt", "a=b", "runs/mine"]
    assert command_line(["sgma-hf", "train", *typed]) == (
        "sgma-hf train --dataset fields --output_dir=run --backbone org/pvt a=b runs/mine"
    )
    assert command_line(["sgma-hf", "train", "~/fields", "/data/a=1"]) == "sgma-hf train fields a=1"
    assert command_line() is None  # pytest is not the command of a run


def test_a_folders_path_stays_at_home(tmp_path):
    (tmp_path / "fields").mkdir()
    assert dataset_name(str(tmp_path / "fields")) == ("fields", False)
    assert dataset_name("org/fields") == ("org/fields", True)
    assert dataset_name("../secret/fields") == ("fields", False)
    assert dataset_name(None) == (None, False)


def test_the_record_is_json_and_a_damaged_one_is_named(tmp_path):
    record = TrainingRecord(dataset="fields", steps=3, evaluation=EVALUATION, arguments={"learning_rate": 0.1})
    record.save(tmp_path)
    assert TrainingRecord.load(tmp_path) == record
    assert TrainingRecord.load(tmp_path / "nowhere") is None
    (tmp_path / RECORD_FILE).write_text("{")
    with pytest.raises(ValueError, match="no record of a training run"):
        TrainingRecord.load(tmp_path)


def test_the_commit_is_that_of_this_checkout():
    commit = package_commit()
    if not (ROOT / ".git").exists():
        pytest.skip("no git checkout")
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert commit.removesuffix("-dirty") == head.stdout.strip()


def test_a_readme_that_a_person_wrote_stays(tmp_path, monkeypatch):
    from tiny_trainers import make_trainer

    trainer = make_trainer(tmp_path)
    trainer.create_model_card()
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert MARKER in text and 'from_pretrained("."' in text
    (tmp_path / "README.md").write_text("# Mine\n", encoding="utf-8")
    trainer.create_model_card()
    assert (tmp_path / "README.md").read_text(encoding="utf-8") == "# Mine\n"


def test_scores_of_other_weights_are_left_out(tmp_path):
    from tiny_trainers import make_trainer

    trainer = make_trainer(tmp_path, max_steps=1)
    trainer.evaluate()
    assert trainer.training_record().evaluation["average_miou"] is not None
    trainer.train()
    assert trainer.training_record().evaluation is None
    trainer.evaluate()
    assert trainer.training_record().evaluation["rows"] > 0
    assert trainer.training_record().steps == 1


def test_the_template_is_where_people_look_for_it():
    linked = ROOT / "model_cards" / "template.md"
    assert linked.resolve() == Path(ROOT / "sgma_hf" / "publishing" / "model_card_template.md").resolve()


def _of(pair):
    model, processor = pair
    return model.config, processor


def test_cards_do_not_depend_on_the_devices_dtype(pair):
    model, processor = pair
    assert str(build_model_card(model.to(torch.bfloat16).config, processor)) == str(build_model_card(*_of(pair)))
