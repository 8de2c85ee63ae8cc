"""Scores belong to weights: the digest that says to which, and what `push-to-hub` makes of it."""

import hashlib
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from evaluation_results import EVALUATION
from tiny_models import tiny_model

from sgma_hf import SgmaImageProcessor
from sgma_hf.commands import push_to_hub
from sgma_hf.publishing.record import TrainingRecord
from sgma_hf.publishing.weights_digest import DIGEST_KEY, checkpoint_digest, weights_digest


def save(folder, seed):
    model = tiny_model(seed)
    model.save_pretrained(folder)
    SgmaImageProcessor(model.config.modalities, model.config.modality_channels).save_pretrained(folder)
    return model


@pytest.fixture
def push(monkeypatch):
    """Run the command and return its exit code with the card that it would have uploaded."""
    cards = []

    def take(folder, repo_id, **options):
        cards.append((Path(folder) / "README.md").read_text(encoding="utf-8"))
        return SimpleNamespace(commit_url="there")

    monkeypatch.setattr("sgma_hf.model.saving_sgma.push_folder", take)

    def run(folder, *arguments):
        code = push_to_hub.main(["--model", str(folder), "--repo_id", "org/name", *map(str, arguments)])
        return code, cards.pop() if cards else None

    return run


def test_digest_of_two_small_tensors_worked_by_hand():
    weights = {"b": torch.tensor([[1, 2]], dtype=torch.uint8), "a": torch.tensor(True)}
    lines = [
        f"a torch.bool () {hashlib.sha256(bytes([1])).hexdigest()}\n",
        f"b torch.uint8 (1, 2) {hashlib.sha256(bytes([1, 2])).hexdigest()}\n",
    ]
    assert weights_digest(weights.items()) == hashlib.sha256("".join(lines).encode()).hexdigest()
    assert weights_digest(reversed(weights.items())) == weights_digest(weights.items())
    for other in (weights | {"a": torch.tensor(False)}, {"b": weights["b"]}, weights | {"b": weights["b"].T}):
        assert weights_digest(other.items()) != weights_digest(weights.items())


def test_digest_is_that_of_the_model_in_memory_however_it_is_stored(tmp_path):
    model = tiny_model().to(torch.bfloat16)
    model.save_pretrained(tmp_path / "whole")
    model.save_pretrained(tmp_path / "split", max_shard_size="20KB")
    assert len(list((tmp_path / "split").glob("*.safetensors"))) > 2
    digest = weights_digest(model.state_dict().items())
    assert checkpoint_digest(tmp_path / "whole") == checkpoint_digest(tmp_path / "split") == digest
    assert checkpoint_digest(tmp_path / "whole") != weights_digest(model.float().state_dict().items())


def test_scores_are_pushed_with_the_weights_that_they_are_of_and_no_others(tmp_path, push, capsys):
    model, results = save(tmp_path / "mine", seed=0), tmp_path / "results.json"
    evaluation = {"model": "elsewhere/mine", DIGEST_KEY: weights_digest(model.state_dict().items()), **EVALUATION}
    results.write_text(json.dumps(evaluation))
    shutil.copytree(tmp_path / "mine", tmp_path / "copy")
    for folder in ("mine", "copy"):
        code, card = push(tmp_path / folder, "--evaluation", results)
        assert code == 0 and "Average 50.00" in card and "model-index" in card
    save(tmp_path / "mine", seed=1)  # trained again, into the same folder
    assert push(tmp_path / "mine", "--evaluation", results) == (2, None)
    results.write_text(json.dumps(evaluation | {"label": "truth.tif"}))  # of one scene
    assert push(tmp_path / "copy", "--evaluation", results) == (2, None)
    said = capsys.readouterr().err
    assert "has scores of other weights than those" in said and "has the scores of one scene" in said
    del evaluation[DIGEST_KEY]
    results.write_text(json.dumps(evaluation))
    assert push(tmp_path / "copy", "--evaluation", results) == (2, None)
    assert "has scores without the `weights_sha256` of those" in capsys.readouterr().err
    results.write_bytes(b"\xc8 no text")
    assert push(tmp_path / "copy", "--evaluation", results) == (2, None)
    assert "results.json holds no scores of combinations" in capsys.readouterr().err


def test_scores_of_training_stay_with_its_weights(tmp_path, push, capsys):
    model = save(tmp_path / "run", seed=0)
    digest = weights_digest(model.state_dict().items())
    TrainingRecord(steps=3, evaluation=EVALUATION | {DIGEST_KEY: digest}).save(tmp_path / "run")
    assert "Average 50.00" in push(tmp_path / "run")[1]
    assert "left out" not in capsys.readouterr().err
    save(tmp_path / "run", seed=1)
    code, card = push(tmp_path / "run")
    assert code == 0 and "this card states no scores" in card and "model-index" not in card
    assert "are of other weights, or do not say of which, and are left out" in capsys.readouterr().err


def test_adapters_are_pushed_beside_the_weights_that_they_are_merged_in(tmp_path, monkeypatch):
    save(tmp_path, seed=0)
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    pushed = []

    def take(folder, repo_id, **options):
        pushed.extend(path.relative_to(folder).as_posix() for path in Path(folder).rglob("*"))
        return SimpleNamespace(commit_url="there")

    monkeypatch.setattr("sgma_hf.model.saving_sgma.push_folder", take)
    assert push_to_hub.main(["--model", str(tmp_path), "--repo_id", "org/name"]) == 0
    assert {"adapter/adapter_config.json", "model.safetensors", "README.md"} <= set(pushed)


def test_a_folder_without_weights_has_no_digest(tmp_path):
    save(tmp_path, 0)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="holds no weights"):
        checkpoint_digest(tmp_path)
