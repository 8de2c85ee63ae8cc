"""What can go wrong between here and the Hub, and what a stranger's repository may try."""

import json
import logging
import os
import pickle

import pytest
import torch
from hub_stand_in import WRITE_TOKEN, running_hub
from safetensors.torch import save_file
from tiny_models import PVT_V2, tiny_config, tiny_model
from tiny_trainers import make_trainer

from sgma_hf import SgmaConfig, SgmaForSemanticSegmentation, SgmaImageProcessor


pytestmark = pytest.mark.long


PUSH = """
import sys
from tiny_models import tiny_model
from sgma_hf import SgmaImageProcessor
from sgma_hf.commands import main
from sgma_hf.publishing.push import PUSH_ERRORS, explain_push_error

def push(repo_id, seed):
    try:
        tiny_model(seed).push_to_hub(repo_id)
        print(f"{repo_id}: there")
    except PUSH_ERRORS as error:
        print(f"{repo_id}: {explain_push_error(error, repo_id)}")

for seed, repo_id in enumerate(CASES):
    push(repo_id, seed)
for seed, repo_id in enumerate(CASES):
    push(repo_id, seed)
model = tiny_model()
model.save_pretrained("local")
SgmaImageProcessor(model.config.modalities, model.config.modality_channels).save_pretrained("local")
for repo_id in ("org/refused", "org/command"):
    print("exit", main(["push-to-hub", "--model", "local", "--repo_id", repo_id]), flush=True)
print("exit", main(["push-to-hub", "--model", "nowhere", "--repo_id", "org/command"]))
print("exit", main(["push-to-hub", "--model", "local", "--repo_id", "org/public"]))
try:
    model.push_to_hub("org/public", private=True)
except ValueError as error:
    print("refused:", error)
from tiny_trainers import make_trainer
try:
    make_trainer("run", push_to_hub=True, hub_model_id="org/public", hub_private_repo=True)
except ValueError as error:
    print("refused:", error)
trainer = make_trainer("run", push_to_hub=True, hub_model_id="org/public", hub_strategy="end", max_steps=1)
try:
    trainer.push_to_hub(private=True)
except ValueError as error:
    print("refused:", error)
print(model.push_to_hub("org/public").commit_message)
"""
CASES = ["org/drop", "org/401", "org/403", "org/409", "org/429", "org/500", "org/commit500", "org/commitdrop"]


@pytest.fixture(scope="module")
def pushes(tmp_path_factory):
    with running_hub() as hub:
        hub.disturb("PUT /lfs/", drop_after=1000)  # of the first push, in the middle of the weights
        hub.fail("org/401/preupload", 401)
        hub.fail("org/403.git/info/lfs", 403)
        hub.fail("org/409/commit", 409)
        hub.fail("org/429/preupload", 429, Retry_After="0")
        hub.fail("org/500/preupload", 500)
        hub.fail("org/commit500/commit", 500)
        hub.disturb("org/commitdrop/commit", drop_after=100)
        hub.fail("org/refused/preupload", 403)
        hub.create("models", "org/public", private=False)
        run = hub.run(f"CASES = {CASES}\n" + PUSH, tmp_path_factory.mktemp("pusher"))
        yield hub, run


def test_a_failed_push_is_retried_or_explained_in_one_line(pushes):
    _, run = pushes
    first = dict(line.split(": ", 1) for line in run.stdout.splitlines()[: len(CASES)])
    assert [first[name] for name in ("org/drop", "org/429", "org/500")] == ["there"] * 3  # the library tried again
    assert "may not write there" in first["org/403"] and "(HTTP 403)" in first["org/403"]
    assert "log in by `hf auth login`" in first["org/401"]
    assert "at the same time (HTTP 409)" in first["org/409"]
    assert "the Hub answered HTTP 500" in first["org/commit500"]
    assert "disconnected" in first["org/commitdrop"]
    assert all("push again to complete it." in line for line in first.values() if line != "there")
    assert WRITE_TOKEN not in run.stdout + run.stderr


def test_a_second_push_completes_what_the_first_left_undone(pushes):
    hub, run = pushes
    second = run.stdout.splitlines()[len(CASES) : 2 * len(CASES)]
    assert second == [f"{name}: there" for name in CASES]
    for name in CASES:
        assert len(hub.model(name).history()) == 1  # whole or not at all, and nothing twice
        assert {"model.safetensors", "config.json", "modeling_sgma.py"} <= set(hub.model(name).files())
    # one upload per model, one more for the dropped one; 401 and 403 had not come to uploading
    assert hub.counted(r"PUT /lfs/\w+$") == len(CASES) + 1


def test_the_command_pushes_or_says_in_one_line_why_not(pushes):
    hub, run = pushes
    assert [line for line in run.stdout.splitlines() if line.startswith("exit")] == [
        "exit 1",
        "exit 0",
        "exit 2",
        "exit 2",
    ]
    assert "sgma-hf push-to-hub: The push to org/refused failed: the access token may not write there" in run.stderr
    assert "--model nowhere is no folder of a checkpoint" in run.stderr
    assert "Traceback" not in run.stderr
    repository = hub.model("org/command")
    assert repository.private
    assert {"preprocessor_config.json", "README.md", "training_record.json"} <= set(repository.files())
    assert b'from_pretrained("org/command"' in repository.files()["README.md"]


def test_a_private_push_never_reaches_a_public_repository(pushes):
    hub, run = pushes
    refusal = "The repository org/public is public, and a private one was asked for; nothing was uploaded."
    assert f"sgma-hf push-to-hub: {refusal}" in run.stderr
    assert [line.startswith(f"refused: {refusal}") for line in run.stdout.splitlines()].count(True) == 3
    assert hub.model("org/public").messages == ["initial commit", "Upload model"]  # that which asked for nothing


TRAIN = """
import os
from tiny_trainers import make_trainer

trainer = make_trainer(
    "run", push_to_hub=True, hub_model_id="org/run", hub_always_push=True, save_strategy="steps", save_steps=1,
    max_steps=3,
)
trainer.train()
trainer._finish_current_push()
assert {"checkpoint-1", "checkpoint-2", "checkpoint-3"} <= set(os.listdir("run"))
try:
    trainer.push_to_hub()
except OSError as error:
    print("final push failed", type(error).__name__)
trainer.push_to_hub()
trainer = make_trainer("run", max_steps=4)
trainer.train(resume_from_checkpoint=True)
assert trainer.state.global_step == 4
"""
COMMAND = """
import json
from tiny_models import PVT_V2
from sgma_hf.commands import main

with open("tiny.json", "w") as file:
    json.dump(PVT_V2, file)
assert main(["demo-scenes", "--out", "demo", "--tiles", "3", "--size", "32"]) == 0
options = {
    "--dataset": "demo", "--output_dir": "out", "--backbone_config": "tiny.json", "--decoder_hidden_size": "16",
    "--max_steps": "1", "--per_device_train_batch_size": "1", "--use_cpu": "true", "--push_to_hub": "true",
    "--hub_model_id": "org/out", "--hub_strategy": "end", "--hub_private_repo": "true", "--disable_tqdm": "true",
}
train = ["train", *(part for option in options.items() for part in option), "--hub_token"]
codes = [main([*train, token]) for token in ("hf_thisTokenIsNotKnown", TOKEN)]
print("exit", *codes, main([*train, TOKEN, "--overwrite", "true"]), flush=True)
"""


def test_a_failed_push_neither_stops_the_training_nor_harms_checkpoints(tmp_path):
    with running_hub() as hub:
        hub.fail("org/run/commit", 500)  # the push of step 1
        hub.disturb("org/run/commit", drop_after=50)  # of step 2
        hub.fail("org/run/commit", 403, skip=1)  # that of step 3 passes, the final one not at once
        hub.fail("org/out/commit", 403)
        run = hub.run(f"TOKEN = {WRITE_TOKEN!r}\n{TRAIN}{COMMAND}", tmp_path / "trains")
        assert run.stderr.count("Training goes on.") == 2, run.stderr[-3000:]
        assert "final push failed HfHubHTTPError" in run.stdout
        assert hub.model("org/run").messages[1:] == ["Training in progress, step 3", "End of training"]
        assert "modeling_sgma.py" in hub.model("org/run").history()[0]
        assert not list((tmp_path / "trains").rglob("_push-*"))
        # the command: a wrong token stops it before the training, a failed push after it, both in one line
        assert "exit 1 1 0" in run.stdout
        assert run.stderr.count("sgma-hf train: The push to org/out failed") == 2 and "Traceback" not in run.stderr
        assert "sgma-hf push-to-hub --model out --repo_id org/out" in run.stderr
        assert hub.model("org/out").private and len(hub.model("org/out").history()) == 1
        card = hub.model("org/out").files()["README.md"].decode()
        assert "--hub_token '<token>'" in card and "| data set | demo |" in card and "| split | train |" in card
        assert "split `validation` of demo (1 rows)" in card and "| `dsm` | 1 | m |" in card
        for path in (path for path in tmp_path.rglob("*") if path.is_file()):
            assert WRITE_TOKEN.encode() not in path.read_bytes(), path


LOAD = """
import torch
from transformers import AutoModel
import sgma_hf

def attempt(repo_id, **kwargs):
    try:
        model = AutoModel.from_pretrained(repo_id, **kwargs)
        return float(sum(parameter.double().sum() for parameter in model.parameters()))
    except (OSError, ValueError) as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())}"

results = {
    "whole": attempt("org/whole"),
    "cut once": attempt("org/cut_once"),
    "cut": attempt("org/cut"),
    "pickle": attempt("org/pickle"),
    "escape": attempt("org/escape"),
    "weights elsewhere": attempt("org/elsewhere"),
    "newer": attempt("org/newer"),
    "absent": attempt("org/absent"),
    "outside": attempt("org/../../etc"),
}
import json
print("RESULTS" + json.dumps(results))
"""


class Payload:
    """What a pickle from a stranger may hold."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self.marker,)


def checkpoint_files(folder, seed=0, **config_changes):
    tiny_model(seed).save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | config_changes))
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_damaged_and_hostile_repositories_are_refused_with_a_message(tmp_path):
    marker = tmp_path / "ran"
    with running_hub() as hub:
        for seed, name in enumerate(("whole", "cut_once", "cut")):
            hub.put(f"org/{name}", checkpoint_files(tmp_path / name, seed))
        weights = {name: hub.model(f"org/{name}").commits for name in ("cut_once", "cut")}
        oid = {name: list(commits.values())[-1]["model.safetensors"].oid for name, commits in weights.items()}
        hub.disturb(f"GET /cdn/{oid['cut_once']}", truncate_to=5000)
        hub.disturb(f"GET /cdn/{oid['cut']}", truncate_to=5000, times=1000)
        files = checkpoint_files(tmp_path / "pickle")
        del files["model.safetensors"]
        hub.put("org/pickle", files | {"pytorch_model.bin": pickle.dumps(Payload(marker))})
        index = {"metadata": {}, "weight_map": {"sgma.x": "../../../../../secret.safetensors"}}
        hub.put("org/escape", files | {"model.safetensors.index.json": json.dumps(index).encode()})
        config = checkpoint_files(tmp_path / "elsewhere", transformers_weights="../../secret.safetensors")[
            "config.json"
        ]
        hub.put("org/elsewhere", files | {"config.json": config})
        hub.put("org/newer", checkpoint_files(tmp_path / "newer", format_version=3))
        run = hub.run(LOAD, tmp_path / "client")
    results = json.loads(run.stdout.partition("RESULTS")[2])
    assert isinstance(results["whole"], float) and isinstance(results["cut once"], float), results
    assert isinstance(results["cut"], str)
    assert "does not appear to have a file named model.safetensors" in results["pickle"]
    for name in ("escape", "weights elsewhere", "outside", "absent"):
        assert isinstance(results[name], str), (name, results[name])
    assert "format version 3" in results["newer"]
    assert not marker.exists()
    downloaded = [path for path in tmp_path.rglob("*secret*")]
    assert downloaded == []


def test_a_local_index_cannot_name_files_elsewhere(tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path / "model", max_shard_size="20KB")
    save_file({"x": torch.zeros(1)}, tmp_path / "secret.safetensors")
    path = tmp_path / "model" / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    name = next(iter(index["weight_map"]))
    for target in ("../secret.safetensors", str(tmp_path / "secret.safetensors"), 5):
        path.write_text(json.dumps(index | {"weight_map": index["weight_map"] | {name: target}}))
        with pytest.raises(ValueError, match=r"Do not trust|no index of a sharded"):
            SgmaForSemanticSegmentation.from_pretrained(tmp_path / "model")
    path.write_text("[")
    with pytest.raises(ValueError, match="no index of a sharded checkpoint"):
        SgmaForSemanticSegmentation.from_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match="safetensors only"):
        SgmaForSemanticSegmentation.from_pretrained(tmp_path / "model", use_safetensors=False)


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_resuming_never_unpickles_what_a_stranger_wrote(tmp_path, name):
    make_trainer(tmp_path / "run", save_strategy="steps", save_steps=1, max_steps=1).train()
    path = tmp_path / "run" / "checkpoint-1" / name
    marker = tmp_path / "ran"
    torch.save({"state": Payload(marker)}, path)
    with pytest.raises(pickle.UnpicklingError, match="weights_only"):
        make_trainer(tmp_path / "run", max_steps=2).train(resume_from_checkpoint=True)
    assert not marker.exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"modality_channels": [3, 10**9, 2]},
        {"modality_channels": [3, -1, 2]},
        {"modality_channels": [3, "1", 2]},
        {"modalities": ["rgb", "../../dsm", "sar"]},
        {"modalities": ["rgb", "dsm"]},
        {"num_labels": 10**9},
        {"num_labels": "5"},
        {"tile_size": 10**12},
        {"tile_size": -512},
        {"id2label": {"0": "a", "-1": "b"}},
        {"decoder_hidden_size": 10**9},
        {"num_attention_heads": 0},
        {"initializer_range": float("nan")},
        {"dtype": "save"},
        {"palette": [[0, 0, 300]]},
        {"format_version": 99},
        {"backbone_config": PVT_V2 | {"hidden_sizes": "large"}},
        {"backbone_config": {"model_type": "no such thing"}},
        {"backbone_config": {"model_type": "bert"}},
    ],
)
def test_a_hostile_configuration_is_refused_before_anything_is_built(changes):
    with pytest.raises(
        Exception, match=r"expected|doesn't match any type|malformed|parallel|does not know|written by|needs|set `"
    ):
        tiny_config(**changes)


def test_unknown_fields_are_named_and_do_no_harm(tmp_path, caplog):
    config = tiny_config()
    config.save_pretrained(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(content | {"gating": "soft"}))
    logger = logging.getLogger("transformers")
    propagates, logger.propagate = logger.propagate, True
    ours = logging.getLogger("sgma_hf.model.configuration_sgma")
    ours_propagates, ours.propagate = ours.propagate, True
    try:
        with caplog.at_level(logging.WARNING):
            loaded = SgmaConfig.from_pretrained(tmp_path)
            assert "does not know the fields ['gating']" in caplog.text
            caplog.clear()
            SgmaConfig.from_pretrained(tmp_path, output_hidden_states=True).save_pretrained(tmp_path)
    finally:
        logger.propagate, ours.propagate = propagates, ours_propagates
    assert loaded.modalities == config.modalities
    processor = SgmaImageProcessor()
    processor.save_pretrained(tmp_path)
    content = json.loads((tmp_path / "preprocessor_config.json").read_text())
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(content | {"gamma": 2}))
    with pytest.raises(ValueError, match="newer version"):
        SgmaImageProcessor.from_pretrained(tmp_path)
