"""`sgma-hf compare` with models that are kept, pretrained encoders, and arms and fusions of somebody's module."""

import json
import sys

import numpy as np
import pytest
from comparison_fixtures import TINY, write_scenes
from PIL import Image
from workspace import write_encoder

from sgma_hf.commands import compare, evaluate, predict, push_to_hub, train
from sgma_hf.comparison import runs
from sgma_hf.comparison.card.experiments import group_runs
from sgma_hf.comparison.identity import encoder_identity
from sgma_hf.comparison.run_records import read_rows
from sgma_hf.data.rows import decode_row, load_rows
from sgma_hf.data.whole_files import write_json
from sgma_hf.model.fusion_sgma import FUSIONS


pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return write_scenes(tmp_path_factory.mktemp("scenes") / "demo")


def run(scenes, output, *flags, without=()):
    given = {name: json.dumps(value) if isinstance(value, dict) else str(value) for name, value in TINY.items()}
    words = [word for name, value in given.items() if name not in without for word in (f"--{name}", value)]
    return compare.main(["--dataset", scenes, "--output", str(output), *words, *flags])


@pytest.mark.parametrize("arm", ["sgma", "early", "upernet"])
def test_kept_models_are_evaluated_and_give_maps_and_further_figures(scenes, tmp_path, monkeypatch, capsys, arm):
    output, models = tmp_path / "results.jsonl", tmp_path / "models"
    keeping = ["--arms", arm, "--seeds", "0", "--keep_models", str(models)]
    assert run(scenes, output, *keeping) == 0
    ((row,), (folder,)) = read_rows(output), models.iterdir()

    results = tmp_path / "results.json"
    words = ["--model", str(folder), "--dataset", scenes, "--split", "test", "--output", str(results)]
    assert evaluate.main([*words, "--device", "cpu", "--batch_size", "2"]) in (0, None)
    assert json.loads(results.read_text())["combinations"] == row["results"]["test"]["combinations"]

    image = tmp_path / "rgb.png"
    images, _ = decode_row(load_rows(scenes, "test")[0], ["rgb"])
    Image.fromarray(images["rgb"]).save(image)
    given = ["--model", str(folder), "--rgb", str(image), "--out", str(tmp_path / "map.png"), "--device", "cpu"]
    capsys.readouterr()
    assert predict.main(given) in (0, None)
    assert ("no robustness maps: this checkpoint is of another network" in capsys.readouterr().out) == (arm != "sgma")
    assert (tmp_path / "map.png").is_file()

    def refuse(*_):
        raise AssertionError("trained again")

    monkeypatch.setattr(runs, "_train", refuse)
    assert run(scenes, output, *keeping, "--corruptions") == 0
    earlier, complete = read_rows(output)
    assert earlier == row and "corruptions" in complete
    for name in ("results", "losses", "model_config", "arm_definition"):
        assert complete[name] == row[name]
    assert complete["seconds"]["train"] == row["seconds"]["train"]
    assert run(scenes, output, *keeping, "--corruptions") == 0  # nothing to do
    assert len(read_rows(output)) == 2
    assert run(scenes, output, *keeping, "--learning_rate", "0.002") == 1  # another training
    if arm == "early":
        rows = ["--dataset", scenes, "--output_dir", str(tmp_path / "more")]
        for command, flags in ((train, rows), (push_to_hub, ["--repo_id", "somebody/model"])):
            capsys.readouterr()
            assert command.main(["--model", str(folder), *flags]) == 2
            assert "is a checkpoint of 'sgma_arm'; expected one of SGMA" in capsys.readouterr().err
    (folder / "run.json").unlink()  # as if the process had been killed while it saved
    assert run(scenes, tmp_path / "other.jsonl", *keeping) == 1


def test_a_temperature_is_fitted_kept_and_used(scenes, tmp_path, capsys):
    output, models = tmp_path / "results.jsonl", tmp_path / "models"
    arms = ["--arms", "sgma", "early", "--seeds", "0", "--keep_models", str(models)]
    assert run(scenes, output, *arms, "--calibration") == 0
    assert run(scenes, output, *arms, "--calibration") == 0 and len(read_rows(output)) == 2
    for row in read_rows(output):
        (folder,) = models.glob(f"{row['arm']}-*")
        kept = json.loads((folder / "config.json").read_text())["temperature"]
        assert row["calibration"]["temperatures"] == [1.0, kept] and "temperature" not in row["model_config"]

    def evaluate_on(split, *flags):
        results = tmp_path / "found.json"
        words = ["--model", str(folder), "--dataset", scenes, "--split", split, "--output", str(results)]
        assert evaluate.main([*words, "--device", "cpu", "--batch_size", "2", *flags]) in (0, None)
        return json.loads(results.read_text())

    capsys.readouterr()
    found = evaluate_on("test", "--calibration", "measure")
    assert found["calibration"]["combinations"] == row["calibration"]["combinations"]
    assert found["combinations"] == row["results"]["test"]["combinations"]
    assert f"| expected calibration error in % | temperature 1 | temperature {kept:g} |" in capsys.readouterr().out
    write_json(folder / "config.json", json.loads((folder / "config.json").read_text()) | {"temperature": 3.0})
    assert evaluate_on("validation", "--calibration", "fit")["calibration"]["temperatures"][-1] == pytest.approx(kept)
    assert json.loads((folder / "config.json").read_text())["temperature"] == pytest.approx(kept)
    assert evaluate_on("test")["combinations"] == row["results"]["test"]["combinations"]
    with pytest.raises(SystemExit, match="2"):
        evaluate.main("--model some/one --dataset x --split test --output y.json --calibration fit".split())
    assert "is no folder" in capsys.readouterr().err


def test_epochs_are_passes_over_the_usable_training_rows(scenes, tmp_path):
    output = tmp_path / "results.jsonl"
    arms = ["--arms", "mean", "--seeds", "0"]
    assert run(scenes, output, *arms, "--epochs", "2", without=["max_steps"]) == 0
    (row,) = read_rows(output)
    assert row["dataset"]["rows"]["train"]["count"] == 7
    assert row["settings"]["max_steps"] == 8  # two passes of 4 batches, of 2 rows and in the end of 1
    assert run(scenes, output, *arms, "--max_steps", "8", without=["max_steps"]) == 0
    assert len(read_rows(output)) == 1  # the same run


def test_bfloat16_is_another_training_evaluated_in_float32(scenes, tmp_path):
    output, models = tmp_path / "results.jsonl", tmp_path / "models"
    arms = ["--arms", "sgma", "upernet", "--seeds", "0"]
    assert run(scenes, output, *arms, "--bf16", "--keep_models", str(models)) == 0
    assert run(scenes, output, *arms) == 0
    half, _, whole, _ = read_rows(output)
    assert (half["settings"]["bf16"], whole["settings"]["bf16"]) == (True, False)
    assert half["losses"] != whole["losses"]
    assert half["losses"]["loss"] == pytest.approx(whole["losses"]["loss"], rel=0.05)
    (folder,) = models.glob("sgma-*")
    words = ["--model", str(folder), "--dataset", scenes, "--split", "test", "--output", str(tmp_path / "r.json")]
    assert evaluate.main([*words, "--device", "cpu", "--batch_size", "2"]) in (0, None)
    found = json.loads((tmp_path / "r.json").read_text())
    assert found["combinations"] == half["results"]["test"]["combinations"]


def test_arms_start_from_a_pretrained_encoder(scenes, tmp_path, capsys):
    write_encoder(tmp_path)
    output, encoder = tmp_path / "results.jsonl", str(tmp_path / "encoders" / "resnet")
    flags = ["--arms", "sgma", "early", "upernet", "--seeds", "0", "--backbone", encoder]
    assert run(scenes, output, *flags, without=["backbone_config"]) == 0
    rows = read_rows(output)
    assert [row["arm"] for row in rows] == ["sgma", "early", "upernet"]
    settings = rows[0]["settings"]
    assert settings["backbone"]["name"] == "resnet" and len(settings["backbone"]["fingerprint"]) == 16
    assert settings["backbone_config"]["model_type"] == "resnet" and "id2label" not in settings["backbone_config"]
    assert settings["learning_rate"] == 6e-5
    assert str(tmp_path) not in json.dumps(rows)
    capsys.readouterr()
    assert run(scenes, output, *flags, without=["backbone_config"]) == 0
    assert "3 runs, 3 of them already" in capsys.readouterr().out
    weights = next((tmp_path / "encoders" / "resnet").glob("*.safetensors"))
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    encoder_identity.cache_clear()  # another process
    assert encoder_identity(encoder)["fingerprint"] != settings["backbone"]["fingerprint"]
    assert run(scenes, output, "--arms", "segformer", "--backbone", encoder, without=["backbone_config"]) == 2
    error = capsys.readouterr().err
    assert "Segformer has no method `load_pretrained" in error and error.count("\n") == 1


MODULE = """
import torch
from sgma_hf import SgmaFusion, register_fusion
from sgma_hf.comparison.arms import Arm


class Pixels(torch.nn.Module):
    def __init__(self, config):
        super().__init__()
        self.layer = torch.nn.Conv2d(sum(config.modality_channels), config.num_labels, 3, padding=1)

    def forward(self, pixel_values, modality_mask, labels=None):
        logits = self.layer(pixel_values)
        if labels is None:
            return {"logits": logits}
        return {"logits": logits, "loss": torch.nn.functional.cross_entropy(logits, labels, ignore_index=255)}


PIXELS = Arm("pixels", "one convolution of all bands", build=lambda config: Pixels(config))
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """`mine.py` in the working folder."""
    (tmp_path / "mine.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    sys.modules.pop("mine", None)


@pytest.mark.parametrize("num_proc", ["1", "2"])
def test_an_arm_of_ones_own_stands_beside_ours(module, scenes, tmp_path, num_proc):
    output = tmp_path / "results.jsonl"
    flags = ["--arms", "mine:PIXELS", "mean", "--seeds", "0", "--keep_models", str(tmp_path / "models")]
    assert run(scenes, output, *flags, "--num_proc", num_proc, "--reliance") == 0
    row = next(row for row in read_rows(output) if row["arm"] == "mine:PIXELS")
    assert row["description"] == "one convolution of all bands"
    assert row["parameters"] == 5 * (5 * 9) + 5
    scores = row["results"]["test"]
    assert len(scores["combinations"]) == 7 and scores["average_miou"] is not None
    assert np.sum(scores["tiles"]["confusion"]["rgb+dsm+nir"]) == 64 * 64
    (folder,) = (tmp_path / "models").glob("mine.PIXELS-0-*")
    assert (folder / "run.json").is_file()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--arms", "mine:PIXEL"], "did you mean PIXELS? it has PIXELS"),
        (["--arms", "yours:PIXELS"], "the module 'yours' cannot be imported: ModuleNotFoundError"),
        (["--epochs", "3"], "`--epochs` and `--max_steps` exclude each other"),
        (["--backbone", "OpenGVLab/pvt_v2_b2"], "`--backbone` and `--backbone_config` exclude each other"),
    ],
)
def test_what_cannot_be_is_one_line(module, scenes, tmp_path, flags, message, capsys):
    assert run(scenes, tmp_path / "results.jsonl", *flags) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("sgma-hf compare: ") and error.count("\n") == 1
    assert not (tmp_path / "results.jsonl").exists()


def test_a_network_that_fails_is_one_line_before_anything_is_written(module, scenes, tmp_path, capsys):
    (tmp_path / "mine.py").write_text(MODULE.replace("config.num_labels", "config.num_labels + 1"))
    assert run(scenes, tmp_path / "results.jsonl", "--arms", "mean", "mine:PIXELS") == 2
    error = capsys.readouterr().err
    assert "The arm mine:PIXELS: it fails in its first step" in error and "5 classes" in error
    assert error.count("\n") == 1 and not (tmp_path / "results.jsonl").exists()


FUSION = """
from sgma_hf import SgmaFusion, register_fusion
{imports}

@register_fusion("largest")
class Largest(SgmaFusion):
    def combine(self, tokens, bias, modalities):
        return tokens.amax(0), None
"""
FUSION_ARM = """
from sgma_hf.comparison.arms import Arm
import largest

LARGEST = Arm("largest", "largest feature", {"fusion": "largest", "mas_loss_weight": 0.0})
"""


@pytest.fixture
def fusion(tmp_path, monkeypatch):
    """Writes `largest.py` and `fused.py` into the working folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def write(imports=""):
        (tmp_path / "largest.py").write_text(FUSION.format(imports=imports))
        (tmp_path / "fused.py").write_text(FUSION_ARM)

    yield write
    FUSIONS.pop("largest", None)
    for name in ("largest", "fused"):
        sys.modules.pop(name, None)


def test_a_fusion_of_ones_own_is_an_arm_and_is_kept(fusion, scenes, tmp_path, monkeypatch):
    fusion()
    output = tmp_path / "results.jsonl"
    flags = ["--arms", "fused:LARGEST", "--seeds", "0", "--keep_models", str(tmp_path / "models")]
    assert run(scenes, output, *flags) == 0
    (row,) = read_rows(output)
    assert row["model_config"]["fusion"] == "largest" and row["description"] == "largest feature"
    monkeypatch.setattr(runs, "_train", None)  # nothing is trained again
    assert run(scenes, output, *flags, "--reliance") == 0
    assert read_rows(output)[1]["results"] == row["results"]


def test_a_fusion_that_could_not_be_kept_is_told_before_any_training(fusion, scenes, tmp_path, capsys):
    fusion("import sgma_hf.comparison")
    flags = ["--arms", "fused:LARGEST", "--keep_models", str(tmp_path / "models")]
    assert run(scenes, tmp_path / "results.jsonl", *flags) == 2
    error = capsys.readouterr().err
    assert "The arm fused:LARGEST: it cannot be built" in error and error.count("\n") == 1
    assert not (tmp_path / "results.jsonl").exists()


def test_runs_that_share_a_gpu_are_told_when_it_is_too_small(scenes, tmp_path, monkeypatch, capsys):
    def fail(runs, args):
        for planned in runs:
            yield planned, compare.Failure("OutOfMemoryError", "CUDA out of memory.", "trace")

    monkeypatch.setattr(compare, "_execute", fail)
    assert run(scenes, tmp_path / "results.jsonl", "--arms", "mean", "--seeds", "0", "--num_proc", "3") == 1
    assert "the GPU is shared by 3 runs; give a smaller `--num_proc`" in capsys.readouterr().err


def test_lines_of_the_first_format_are_read_and_their_runs_not_done_again(scenes, tmp_path, capsys):
    output, former = tmp_path / "results.jsonl", tmp_path / "former.jsonl"
    assert run(scenes, output, "--arms", "sgma", "--seeds", "0") == 0
    (row,) = read_rows(output)
    row["format_version"] = 1
    for name in ("bf16", "backbone"):
        del row["settings"][name]
    for scores in row["results"].values():
        del scores["tiles"]
    del row["model_config"]["modality_adapter_size"]  # as if it had come later, with this default
    former.write_text(json.dumps(row) + "\n")
    assert run(scenes, former, "--arms", "sgma", "--seeds", "0") == 0
    assert "1 runs, 1 of them already" in capsys.readouterr().out
    assert len(group_runs([*read_rows(former), *read_rows(output)])) == 1


def test_a_folder_without_an_encoder_is_one_line(scenes, tmp_path, capsys):
    for name in ("nowhere", "empty"):
        (tmp_path / "empty").mkdir(exist_ok=True)
        flags = ["--arms", "mean", "--backbone", str(tmp_path / name)]
        assert run(scenes, tmp_path / "results.jsonl", *flags, without=["backbone_config"]) == 2
        error = capsys.readouterr().err
        assert name in error and error.count("\n") == 1
