"""Models on a stand-in for the Hub: pushed, and loaded on machines with and without this package."""

import re

import pytest
from hub_stand_in import CODE, READ_TOKEN, WRITE_TOKEN, running_hub


pytestmark = pytest.mark.long


# Every client compares with what the pushing one computed.
COMPARE = """
import numpy as np
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForSemanticSegmentation, pipeline

def logits(model):
    given = load_file(INPUTS)
    with torch.no_grad():
        return model(given["pixel_values"].to(model.dtype), given["modality_mask"]).logits

def weights(model):
    return torch.cat([tensor.flatten().view(torch.uint8) for _, tensor in sorted(model.state_dict().items())])

def facts(model, name):
    return {name: logits(model).contiguous(), name + " weights": weights(model)}

def check(model, name):
    expected = load_file(INPUTS)
    assert not model.training and torch.equal(weights(model), expected[name + " weights"]), name
    # Not to the last bit: kernels depend on where in memory the weights of a copy lie.
    torch.testing.assert_close(logits(model), expected[name], msg=lambda text: f"{name}: {text}")
"""
PUSH = """
from tiny_models import spread_weights, tiny_model
from sgma_hf import SgmaImageProcessor

def push(repo_id, seed, dtype=torch.float32, **kwargs):
    model = spread_weights(tiny_model(), seed).to(dtype)
    config = model.config
    model.push_to_hub(repo_id, **kwargs)
    processor = SgmaImageProcessor(config.modalities, config.modality_channels, image_mean=[0.1, 7.0, -12.0])
    processor.push_to_hub(repo_id, private=kwargs.get("private"), revision=kwargs.get("revision"))
    return model

generator = torch.Generator().manual_seed(0)
inputs = {
    "pixel_values": torch.randn(2, 6, 50, 70, generator=generator),
    "modality_mask": torch.tensor([[True, False, True], [True, True, True]]),
}
save_file(inputs, INPUTS)
outputs = facts(push("org/model", 0), "first")
outputs |= facts(push("org/model", 1), "second")
outputs |= facts(push("org/model", 2, revision="trial"), "branch")
outputs |= facts(push("org/half", 3, torch.bfloat16), "bfloat16")
outputs |= facts(push("org/private", 4, private=True), "private")
push("org/sharded", 5)
outputs |= facts(push("org/sharded", 6, max_shard_size="20KB"), "sharded")
push("org/whole", 7, max_shard_size="20KB")
outputs |= facts(push("org/whole", 8), "whole again")
save_file(inputs | outputs, INPUTS)
"""
LOAD = """
trust = {"trust_remote_code": True} if TRUST else {}
check(AutoModel.from_pretrained("org/model", **trust), "second")
model, report = AutoModelForSemanticSegmentation.from_pretrained("org/model", output_loading_info=True, **trust)
check(model, "second")
assert not any(report.values()), report
assert type(model).__name__ == "SgmaForSemanticSegmentation"
assert ("transformers_modules" in type(model).__module__) == TRUST, type(model).__module__
check(AutoModel.from_pretrained("org/model", revision=FIRST, **trust), "first")
check(AutoModel.from_pretrained("org/model", revision="trial", **trust), "branch")
check(AutoModel.from_pretrained("org/half", dtype="auto", **trust), "bfloat16")
check(AutoModel.from_pretrained("org/half", dtype=torch.bfloat16, **trust), "bfloat16")
check(AutoModel.from_pretrained("org/sharded", **trust), "sharded")
check(AutoModel.from_pretrained("org/whole", **trust), "whole again")
config = AutoConfig.from_pretrained("org/model", **trust)
assert (config.model_type, config.modalities, config.num_labels) == ("sgma", ["rgb", "dsm", "sar"], 5)
processor = AutoImageProcessor.from_pretrained("org/model", **trust)
assert type(pipeline(model="org/model", device="cpu", **trust)).__name__ == "SgmaPipeline"
segment = pipeline("image-segmentation", model="org/model", device="cpu", **trust)
check(segment.model, "second")
assert segment({"rgb": np.full((32, 32, 3), 9, np.uint8), "dsm": None})["labels"].shape == (32, 32)
assert processor.modalities == ["rgb", "dsm", "sar"] and processor.image_mean == [[0.1] * 3, [7.0], [-12.0] * 2]
"""


@pytest.fixture(scope="module")
def pushed(tmp_path_factory):
    """The hub after all pushes, and a function that runs code with `COMPARE`, `FIRST` and the recorded logits."""
    folder = tmp_path_factory.mktemp("clients")
    with running_hub() as hub:
        preamble = f"INPUTS = {str(folder / 'tensors.safetensors')!r}\n" + COMPARE
        run = hub.run(preamble + PUSH, folder / "pusher")
        first = next(oid for oid, tree in hub.model("org/model").commits.items() if "preprocessor_config.json" in tree)

        def client(code, name, *, package=True, **kwargs):
            start = ("import sgma_hf\n" if package else "") + f"TRUST = {not package}\nFIRST = {first!r}\n"
            return hub.run(preamble + start + code, folder / name, package=package, **kwargs)

        client.pushed_output = run.stdout + run.stderr
        yield hub, client


def test_a_push_leaves_a_complete_repository_in_one_commit_each(pushed):
    hub, client = pushed
    first, *_ = hub.model("org/model").history()
    parts = ("dates", "image_processing", "image_transforms", "normalization", "pictures", "post_processing", "rows")
    of_the_processor = {f"{name}_sgma.py" for name in parts}
    assert set(first) == CODE - of_the_processor | {
        "README.md",
        "config.json",
        "model.safetensors",
    }
    assert set(hub.model("org/model").files()) == CODE | {
        "README.md",
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    }
    assert hub.model("org/model").commits[hub.model("org/model").branches["main"]]["model.safetensors"].is_lfs
    assert hub.model("org/private").private and not hub.model("org/model").private
    card = hub.model("org/model").files()["README.md"].decode()
    assert "has not been evaluated" in card and not re.search(r"\d\.\d", card.replace("2603.02505", ""))
    assert WRITE_TOKEN not in client.pushed_output
    everything = [
        content
        for repository in hub.repositories.values()
        for tree in repository.history()
        for content in tree.values()
    ]
    assert not any(WRITE_TOKEN.encode() in content for content in everything)


def test_old_shards_and_old_whole_weights_do_not_stay_beside_newer_ones(pushed):
    hub, _ = pushed
    weights = {name for name in hub.model("org/sharded").files() if "safetensors" in name}
    assert "model.safetensors" not in weights and "model.safetensors.index.json" in weights and len(weights) > 3
    assert {name for name in hub.model("org/whole").files() if "safetensors" in name} == {"model.safetensors"}


def test_a_client_with_the_package_loads_every_way_then_offline(pushed):
    hub, client = pushed
    more = """
    model, report = AutoModel.from_pretrained(
        "org/model", num_labels=3, ignore_mismatched_sizes=True, output_loading_info=True
    )
    assert logits(model).shape[1] == 3 and logits(model).isfinite().all()
    kept = AutoModel.from_pretrained("org/model").state_dict()
    changed = {name for name, tensor in model.state_dict().items() if kept[name].shape != tensor.shape}
    assert changed == {
        "decode_head.classifier.weight",
        "decode_head.classifier.bias",
        *(f"sgma.fusion_stages.{stage}.semantic_filter.classifier.weight" for stage in range(4)),
    }
    assert all(torch.equal(kept[name], tensor) for name, tensor in model.state_dict().items() if name not in changed)
    check(AutoModel.from_pretrained("org/private"), "private")
    """
    run = client(LOAD + _dedent(more), "with_package")
    assert WRITE_TOKEN not in run.stdout + run.stderr
    before = len(hub.requests)
    client(LOAD, "with_package", HF_HUB_OFFLINE="1")
    assert len(hub.requests) == before


def test_a_client_without_the_package_loads_offline_too_fine_tunes_and_pushes_again(pushed):
    hub, client = pushed
    tune = """
    model = AutoModel.from_pretrained("org/model", trust_remote_code=True)
    processor = AutoImageProcessor.from_pretrained("org/model", trust_remote_code=True)
    model.add_modality("thermal", channels=1, processor=processor)
    pixel_values = torch.randn(2, 7, 64, 64)
    model.train()
    model(pixel_values, labels=torch.ones(2, 64, 64, dtype=torch.long)).loss.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter -= 0.01 * parameter.grad
    model.push_to_hub("org/tuned")
    processor.push_to_hub("org/tuned")
    model.save_pretrained("saved", push_to_hub=True, repo_id="org/saved", private=True, max_shard_size="20KB")
    again = AutoModel.from_pretrained("org/tuned", trust_remote_code=True)
    assert again.config.modalities == ["rgb", "dsm", "sar", "thermal"]
    assert torch.equal(weights(again), weights(model))
    with torch.no_grad():  # not to the last bit, see check
        torch.testing.assert_close(again(pixel_values).logits, model.eval()(pixel_values).logits)
    """
    client(LOAD + _dedent(tune), "without", package=False)
    before = len(hub.requests)
    client(LOAD, "without", package=False, HF_HUB_OFFLINE="1")
    assert len(hub.requests) == before
    assert set(hub.model("org/tuned").files()) >= CODE | {"preprocessor_config.json", "README.md"}
    assert hub.model("org/saved").private and "model.safetensors.index.json" in hub.model("org/saved").files()


def test_code_of_a_repository_never_runs_unasked_and_private_ones_stay_closed(pushed, tmp_path):
    hub, client = pushed
    marker = tmp_path / "ran"
    evil = f"open({str(marker)!r}, 'w').write('ran')\n".encode()
    files = hub.model("org/model").files()
    hub.put("org/evil", {name: evil + content if name.endswith(".py") else content for name, content in files.items()})
    refused = """
    for loader in (AutoConfig, AutoImageProcessor, AutoModel, AutoModelForSemanticSegmentation):
        try:
            loader.from_pretrained("org/evil")
        except ValueError as error:
            assert "trust_remote_code" in str(error), error
        else:
            raise SystemExit(f"{loader} ran unasked")
    """
    client(_dedent(refused), "stranger", package=False)
    assert not marker.exists()
    # With the package, its own classes are used even where the flag is given.
    closed = """
    model = AutoModel.from_pretrained("org/evil", trust_remote_code=True)
    assert type(model).__module__ == "sgma_hf.model.modeling_sgma"
    assert type(AutoImageProcessor.from_pretrained("org/evil")).__module__ == "sgma_hf.model.image_processing_sgma"
    try:
        AutoModel.from_pretrained("org/private")
    except OSError as error:
        assert "private" in str(error), error
    else:
        raise SystemExit("a private repository was read without a token")
    """
    client(_dedent(closed), "other", token=None)
    assert not marker.exists()
    assert READ_TOKEN not in "".join(hub.requests)


def _dedent(code):
    return re.sub(r"^    ", "", code, flags=re.MULTILINE)
