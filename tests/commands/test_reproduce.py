"""A recipe from end to end on a made archive, gone on with, and what is refused."""

import json
import re

import numpy as np
import pytest
from deliver_fixtures import write_deliver
from dfc2023_fixtures import write_shipped
from isprs_fixtures import write_potsdam, write_vaihingen
from tiny_runs import BACKBONE, refusal

from sgma_hf import SgmaImageProcessor
from sgma_hf.commands import main as run
from sgma_hf.commands.recipes import Recipe
from sgma_hf.commands.reproduce import main
from sgma_hf.data.metadata import DatasetMetadata
from sgma_hf.publishing.record import TrainingRecord


pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reproduce")
    (folder / "backbone.json").write_text(json.dumps(BACKBONE))
    return write_potsdam(folder / "Potsdam")


@pytest.fixture
def argv(source, tmp_path):
    changes = {
        "convert.tile_size": 40,
        "train.backbone_config": source.parent / "backbone.json",
        "train.decoder_hidden_size": 16,
        "train.crop_size": 32,
        "train.max_steps": 4,
        "train.bf16": "false",
        "train.use_cpu": "true",
        "train.save_strategy": "steps",
        "train.save_steps": 2,
        "train.dataloader_num_workers": 0,
        "evaluate.num_workers": 0,
        "evaluate.device": "cpu",
    }
    words = [f"{name}={value}" for name, value in changes.items()]
    return ["potsdam", "--source", str(source), "--output", str(tmp_path / "out"), "--set", *words]


def test_an_experiment_from_archives_to_the_row_of_the_paper(argv, tmp_path, capsys):
    assert main(argv) == 0
    said, out = capsys.readouterr().out, tmp_path / "out"
    assert re.findall(r"^(\w+): sgma-hf ", said, flags=re.MULTILINE) == ["convert", "train", "evaluate"]
    results = json.loads((out / "results.json").read_text())
    table = (out / "comparison.md").read_text()
    assert table in said
    rows = dict(re.findall(r"^\| ([\w+-]+) \| ([\d.–]+ \| [\d.–]+) \|$", table, flags=re.MULTILINE))
    score = {name: f"{100 * scores['miou']:.2f}" for name, scores in results["combinations"].items()}
    assert rows["rgb"] == f"83.51 | {score['rgb']}" and rows["nir+ndsm"] == f"82.56 | {score['nir+ndsm']}"
    assert rows["Average"] == f"79.55 | {100 * results['average_miou']:.2f}" and len(rows) == 9
    assert re.search(r"The choices made here: known \d+, unknown \d+, ours \d+, changed 12 \(", table)
    assert "Unlike the recipe: convert.tile_size=40, " in table and "So these figures are none of it." in table
    assert re.search(r"The training took [\d.e-]+ h, measured, on CPU", table)
    # the data set, the model and its card are those of the recipe
    metadata, record = DatasetMetadata.load(out / "data"), TrainingRecord.load(out / "model")
    assert len(metadata.class_names) == 5 and "ndsm" in metadata.modalities
    assert record.evaluation["combinations"] == results["combinations"] and record.steps == 4
    assert record.arguments["learning_rate"] == 6e-5 and record.arguments["robustness_sampling"] is False
    card = (out / "model" / "README.md").read_text()
    assert "isprs-potsdam" in card and f"{score['rgb']} |" in card and "of the same town and flight" in card
    # nothing is done twice
    weights = (out / "model" / "model.safetensors").read_bytes()
    assert main(argv) == 0
    again = capsys.readouterr().out
    assert all(f"{name}: done already" in again for name in ("convert", "train", "evaluate")) and table in again
    # what was not finished goes on
    (out / "model" / "training_record.json").unlink()
    assert main(argv) == 0
    assert "--resume_from_checkpoint true" in capsys.readouterr().out
    assert (out / "model" / "model.safetensors").read_bytes() == weights
    # other values in the same place are refused
    line = refusal(main, [*argv, "train.seed=1"], capsys)
    assert f"--output {out} holds a reproduction by other values" in line


def test_labels_to_score_on_are_asked_for_before_the_training(source, argv, tmp_path, capsys):
    withheld = write_potsdam(tmp_path / "Potsdam", labels="participants")
    words = [str(withheld) if word == str(source) else word for word in argv]
    line = refusal(main, words, capsys)
    assert "No row of split 'test' in" in line and not (tmp_path / "out" / "model").exists()


def test_a_pretrained_encoder_brings_its_statistics(source, argv, tmp_path, capsys):
    from transformers import PvtV2Config, PvtV2ForImageClassification

    values = {key: value for key, value in BACKBONE.items() if key != "model_type"}
    PvtV2ForImageClassification(PvtV2Config(**values)).save_pretrained(tmp_path / "encoder")
    words = [word for word in argv if not word.startswith("train.backbone_config=")]
    assert main([*words, f"train.backbone={tmp_path / 'encoder'}"]) == 0
    processor = SgmaImageProcessor.from_pretrained(tmp_path / "out" / "model")
    np.testing.assert_allclose(processor.image_mean[0], [0.485, 0.456, 0.406])
    assert "rgb normalised by ImageNet's mean and deviation, nir, ndsm by the training rows" in capsys.readouterr().out


def toy(folder, *changes):
    """`--set` with what makes a run tiny."""
    (folder / "backbone.json").write_text(json.dumps(BACKBONE))
    train = {"backbone_config": folder / "backbone.json", "decoder_hidden_size": 16, "crop_size": 24, "max_steps": 1}
    train |= {"bf16": "false", "use_cpu": "true", "dataloader_num_workers": 0, "per_device_train_batch_size": 1}
    words = [f"train.{name}={value}" for name, value in train.items()]
    return ["--set", *words, "evaluate.num_workers=0", "evaluate.device=cpu", *changes]


@pytest.mark.parametrize(
    ("name", "write", "changes", "said"),
    [
        ("vaihingen", write_vaihingen, ["convert.labels=both", "evaluate.label_column=scoring_label"], "| dsm | – |"),
        ("dfc2023", write_shipped, ["convert.allow_missing=true"], "| rgb+ndsm+sar | 92.29 |"),
        ("deliver", write_deliver, ["convert.allow_missing=true"], "| Average | 55.49 |"),
    ],
)
def test_every_recipe_runs_on_a_made_archive(name, write, changes, said, tmp_path, capsys):
    (tmp_path / "source").mkdir()
    source = write(tmp_path / "source") or tmp_path / "source"
    assert main([name, "--source", str(source), "--output", str(tmp_path / "out"), *toy(tmp_path, *changes)]) == 0
    output = capsys.readouterr().out
    assert said in output
    assert ("The paper reports no figures of this data set." in output) == (name == "vaihingen")
    values = Recipe.read(str(tmp_path / "out" / "recipe.yaml")).values("train")
    assert SgmaImageProcessor.from_pretrained(tmp_path / "out" / "model").modalities == values["modalities"]


HERE = ["potsdam", "--source", ".", "--set", "train.bf16=false"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["potsdm", "--source", "."], "There is no recipe potsdm; did you mean potsdam_paper?"),
        (["potsdam"], "give the folder of the data set by --source"),
        ([*HERE, "train.crop_size=0"], "expected a number of at least 1. --set train.NAME=VALUE takes another value"),
        ([*HERE, "train.max_stepz=2"], "there is no flag --max_stepz; did you mean --max_steps?"),
        ([*HERE, "evaluate.spilt=test"], "there is no flag --spilt; did you mean --split?"),
        ([*HERE, "evaluate.missing=nothing"], "'nothing' is none of"),
        (["potsdam", "--source", "nowhere", "--set", "train.bf16=false"], "--source nowhere is not a folder."),
        (HERE, "no file named as"),
    ],
)
def test_what_cannot_be_reproduced_is_refused_in_a_line(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert message in refusal(main, words, capsys)
    assert not list(tmp_path.iterdir())


def test_a_recipe_of_a_data_set_that_is_not_there_is_refused(tmp_path, capsys):
    (tmp_path / "mine.yaml").write_text("base: potsdam\nconverter: isprs-postdam\n")
    line = refusal(main, [str(tmp_path / "mine.yaml"), "--source", "."], capsys)
    assert "converts by `isprs-postdam`, which is no command; did you mean isprs-potsdam?" in line


def test_show_prints_what_is_known_and_the_commands(capsys):
    assert run(["reproduce", "dfc2023", "--show"]) == 0
    said = capsys.readouterr().out
    assert Recipe.read("dfc2023").choices_table() in said
    assert (
        "sgma-hf dfc2023 --source DIR --output runs/dfc2023_paper/data --track=2 --split=cities --sar=linear" in said
    )
    assert "Computed for one NVIDIA H200: 1.2 h, 18 GB." in said
