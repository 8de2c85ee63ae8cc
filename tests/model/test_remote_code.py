"""Checkpoints load where the package is not installed, by the code that travels with them."""

import json

import pytest
import torch
from absent_package import run_without_package
from tiny_models import tiny_model
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForSemanticSegmentation

from sgma_hf import SgmaForSemanticSegmentation, SgmaImageProcessor


pytestmark = pytest.mark.long


# Logits of order 1 in float32: weights mapped from a file lie at another alignment, and kernels sum in another order.
TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A saved model with its processor, one batch and the logits that it gives."""
    folder = tmp_path_factory.mktemp("checkpoint")
    model = tiny_model()
    model.save_pretrained(folder)
    SgmaImageProcessor(modalities=["rgb", "dsm", "sar"], modality_channels=[3, 1, 2]).save_pretrained(folder)
    generator = torch.Generator().manual_seed(0)
    inputs = {
        "pixel_values": torch.randn(2, 6, 50, 70, generator=generator),
        "modality_mask": torch.tensor([[True, False, True], [True, True, True]]),
    }
    torch.save({**inputs, "logits": model(**inputs).logits.detach()}, folder / "batch.pt")
    return folder


def test_the_code_is_saved_with_the_weights(checkpoint):
    files = {path.name for path in checkpoint.iterdir()}
    assert {"config.json", "model.safetensors", "preprocessor_config.json"} < files
    assert {"configuration_sgma.py", "modeling_sgma.py", "image_processing_sgma.py"} < files
    auto_map = json.loads((checkpoint / "config.json").read_text())["auto_map"]
    assert auto_map == {
        "AutoConfig": "configuration_sgma.SgmaConfig",
        "AutoModel": "modeling_sgma.SgmaForSemanticSegmentation",
        "AutoModelForSemanticSegmentation": "modeling_sgma.SgmaForSemanticSegmentation",
    }


def test_with_the_package_every_auto_class_gives_its_classes_unasked(checkpoint):
    batch = torch.load(checkpoint / "batch.pt", weights_only=True)
    for auto_class in (AutoModel, AutoModelForSemanticSegmentation):
        model = auto_class.from_pretrained(checkpoint)
        assert type(model) is SgmaForSemanticSegmentation
        output = model(batch["pixel_values"], batch["modality_mask"])
        torch.testing.assert_close(output.logits, batch["logits"], **TOLERANCE)
    assert AutoConfig.from_pretrained(checkpoint).modalities == ["rgb", "dsm", "sar"]
    assert type(AutoImageProcessor.from_pretrained(checkpoint)) is SgmaImageProcessor


def test_without_the_package_weights_and_logits_are_the_same_also_when_saved_again(checkpoint, tmp_path):
    code = """
from safetensors.torch import load_file
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForSemanticSegmentation

source, again = sys.argv[1:]
batch = torch.load(f"{source}/batch.pt", weights_only=True)
weights = load_file(f"{source}/model.safetensors")
for folder in (source, again):
    config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
    assert config.modalities == ["rgb", "dsm", "sar"], config.modalities
    processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=True)
    for auto_class in (AutoModel, AutoModelForSemanticSegmentation):
        model = auto_class.from_pretrained(folder, trust_remote_code=True)
        assert type(model).__name__ == "SgmaForSemanticSegmentation"
        assert type(model).__module__.startswith("transformers_modules"), type(model).__module__
        assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
        output = model(batch["pixel_values"], batch["modality_mask"])
        torch.testing.assert_close(output.logits, batch["logits"], rtol=1e-4, atol=1e-5)
    model.save_pretrained(again)
    processor.save_pretrained(again)
assert "sgma_hf" not in sys.modules
print("all equal")
"""
    again = tmp_path / "again"
    result = run_without_package(code, tmp_path, checkpoint, again)
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.strip() == "all equal"
    # and back to where the package is
    batch = torch.load(checkpoint / "batch.pt", weights_only=True)
    model = AutoModel.from_pretrained(again)
    assert type(model) is SgmaForSemanticSegmentation
    output = model(batch["pixel_values"], batch["modality_mask"])
    torch.testing.assert_close(output.logits, batch["logits"], **TOLERANCE)


def test_without_trust_nothing_is_run_and_the_error_says_so(checkpoint, tmp_path):
    code = """
import transformers

for name in ("AutoConfig", "AutoModel", "AutoModelForSemanticSegmentation", "AutoImageProcessor"):
    try:
        getattr(transformers, name).from_pretrained(sys.argv[1])
    except ValueError as error:
        assert "trust_remote_code=True" in str(error), error
    else:
        raise SystemExit(f"{name} loaded code that nobody trusted")
"""
    result = run_without_package(code, tmp_path, checkpoint)
    assert result.returncode == 0, result.stderr[-3000:]
    assert not list((tmp_path / "modules").rglob("*_sgma.py"))


def test_a_headless_checkpoint_does_not_become_a_segmenter(tmp_path):
    tiny_model().sgma.save_pretrained(tmp_path / "headless")
    for auto_class in (AutoModel, AutoModelForSemanticSegmentation):
        with pytest.raises(ValueError, match="without a decode head"):
            auto_class.from_pretrained(tmp_path / "headless")
    code = """
from transformers import AutoModel
model = AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True)
assert type(model).__name__ == "SgmaModel"
assert "logits" not in model(torch.zeros(1, 6, 32, 32)).keys()
"""
    result = run_without_package(code, tmp_path, tmp_path / "headless")
    assert result.returncode == 0, result.stderr[-3000:]
