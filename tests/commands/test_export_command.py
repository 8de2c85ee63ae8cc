"""`sgma-hf export`: files that compute what the checkpoint computes."""

import json
import resource
import sys

import pytest
import torch
from tiny_models import spread_weights, tiny_model

from sgma_hf import SgmaImageProcessor
from sgma_hf.commands.export import main
from sgma_hf.model.cells_sgma import upsample_to_pixels
from sgma_hf.prediction.export import PixelOutputs


pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def model():
    return spread_weights(tiny_model()).eval()


@pytest.fixture(scope="module")
def checkpoint(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    model.save_pretrained(folder)
    SgmaImageProcessor(model.config.modalities, model.config.modality_channels).save_pretrained(folder)
    return str(folder)


def inputs_of(size, masks, seed=0):
    pixel_values = torch.randn(len(masks), 6, *size, generator=torch.Generator().manual_seed(seed))
    return {"pixel_values": pixel_values, "modality_mask": torch.tensor(masks)}


MASKS = [[True, False, True], [False, True, False], [True, True, True]]


@torch.no_grad()
def test_a_model_that_knows_dates_is_exported_for_single_images(tmp_path, capsys):
    model = spread_weights(tiny_model(date_periods=[365.25])).eval()
    model.save_pretrained(tmp_path / "model")
    processor = SgmaImageProcessor(model.config.modalities, model.config.modality_channels)
    processor.save_pretrained(tmp_path / "model")
    arguments = ["--model", str(tmp_path / "model"), "--output", str(tmp_path / "model.pt2"), "--size", "32"]
    assert main(arguments) == 0
    assert "the model knows dates, and the file takes single images" in capsys.readouterr().err
    inputs = inputs_of((32, 32), MASKS)
    expected = upsample_to_pixels(model(**inputs).logits, 4, (32, 32))
    torch.testing.assert_close(
        torch.export.load(tmp_path / "model.pt2").module()(**inputs), expected, atol=1e-4, rtol=1e-4
    )


@torch.no_grad()
def test_program_computes_the_logits_of_the_model(model, checkpoint, tmp_path, capsys):
    out = tmp_path / "new" / "model.pt2"
    assert main(["--model", checkpoint, "--output", str(out), "--size", "64"]) == 0
    printed = capsys.readouterr().out
    assert "largest difference to the model" in printed
    cases = ["model, all modalities", "model, without rgb", "file, all modalities", "file, without rgb"]
    assert [line.split(" ms  ")[1] for line in printed.splitlines() if " ms  " in line] == cases
    program = torch.export.load(out).module()
    inputs = inputs_of((64, 64), MASKS)
    expected = upsample_to_pixels(model(**inputs).logits, 4, (64, 64))
    torch.testing.assert_close(program(**inputs), expected, atol=1e-4, rtol=1e-4)
    inputs["pixel_values"][0, 3] = float("nan")  # the height that row 0 lacks
    torch.testing.assert_close(program(**inputs), expected, atol=1e-4, rtol=1e-4)
    described = json.loads((tmp_path / "new" / "model.json").read_text())
    assert described["modalities"] == ["rgb", "dsm", "sar"] and described["modality_mask"] == "per modality"
    assert described["class_names"][4] == "LABEL_4" and described["size"] == [64, 64]
    assert sorted(path.name for path in out.parent.iterdir()) == ["model.json", "model.pt2"]


def test_a_full_disk_is_said_in_one_line_and_leaves_nothing(checkpoint, tmp_path, capsys):
    """A limit on the size of files stands for the disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        assert main(["--model", checkpoint, "--output", str(tmp_path / "model.pt2"), "--size", "64"]) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert capsys.readouterr().err.endswith(f"sgma-hf export: [Errno 27] File too large: '{tmp_path / 'model.pt2'}'\n")
    assert list(tmp_path.iterdir()) == []


@torch.no_grad()
def test_program_takes_other_sizes_if_asked_to(model, checkpoint, tmp_path, capsys):
    out = tmp_path / "model.pt2"
    assert main(["--model", checkpoint, "--output", str(out), "--size", "64", "--dynamic_size"]) == 0
    program = torch.export.load(out).module()
    inputs = inputs_of((96, 160), MASKS)
    expected = upsample_to_pixels(model(**inputs).logits, 4, (96, 160))
    torch.testing.assert_close(program(**inputs), expected, atol=1e-4, rtol=1e-4)
    assert json.loads((tmp_path / "model.json").read_text())["size"] == "multiples of 32"
    assert main(["--model", checkpoint, "--output", str(out), "--size", "0"]) == 2
    assert "`--size` is 0; expected pixels, at least 1" in capsys.readouterr().err
    assert main(["--model", checkpoint, "--output", str(out), "--size", "72", "--dynamic_size"]) == 2
    assert "expects a multiple of 32, at least 64" in capsys.readouterr().err


@torch.no_grad()
def test_onnx_computes_the_logits_of_the_model(model, checkpoint, tmp_path):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    out = tmp_path / "model.onnx"
    assert main(["--model", checkpoint, "--output", str(out), "--size", "64"]) == 0
    session = onnxruntime.InferenceSession(out, providers=["CPUExecutionProvider"])
    inputs = inputs_of((64, 64), MASKS)
    (logits,) = session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})
    expected = PixelOutputs(model)(**inputs)
    torch.testing.assert_close(torch.from_numpy(logits), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("suffix", "option"), [("pt2", "--pixel_mask"), ("onnx", "--pixel_mask"), ("onnx", "--dynamic_size")]
)
@torch.no_grad()
def test_robustness_and_coverage_are_those_of_the_model(model, checkpoint, tmp_path, suffix, option):
    out = tmp_path / f"model.{suffix}"
    if suffix == "onnx":
        for name in ("onnx", "onnxscript", "onnxruntime"):
            pytest.importorskip(name)
    given = ["--model", checkpoint, "--output", str(out), "--size", "64"]
    assert main([*given, "--outputs", "coverage", "robustness", "logits", option]) == 0
    inputs = inputs_of((96, 64) if option == "--dynamic_size" else (64, 64), MASKS)
    if option == "--pixel_mask":
        mask = inputs["modality_mask"][..., None, None].repeat(1, 1, 64, 64)
        mask[0, :, :10] = False  # nothing covers these rows of the first image
        mask[2, 0, :, 21:] = False
        inputs["modality_mask"] = mask
    outputs = model(**inputs)
    processor = SgmaImageProcessor(model.config.modalities, model.config.modality_channels)
    shares = torch.stack(processor.post_process_robustness(outputs, modality_mask=inputs["modality_mask"]))
    expected = [upsample_to_pixels(outputs.logits, 4, outputs.coverage.shape[-2:]), shares, outputs.coverage]
    if suffix == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(out, providers=["CPUExecutionProvider"])
        assert [output.name for output in session.get_outputs()] == ["logits", "robustness", "coverage"]
        found = session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})
        found = [torch.from_numpy(values) for values in found]
    else:
        found = torch.export.load(out).module()(**inputs)
    torch.testing.assert_close(list(found), expected, atol=1e-4, rtol=1e-4)
    assert json.loads((tmp_path / "model.json").read_text())["outputs"] == ["logits", "robustness", "coverage"]


def test_robustness_of_a_fusion_without_any_is_refused(tmp_path, capsys):
    mean = tiny_model(fusion="mean")
    mean.save_pretrained(tmp_path / "mean")
    SgmaImageProcessor(mean.config.modalities, mean.config.modality_channels).save_pretrained(tmp_path / "mean")
    given = ["--model", str(tmp_path / "mean"), "--output", str(tmp_path / "new" / "model.pt2"), "--size", "64"]
    assert main([*given, "--outputs", "logits", "robustness"]) == 2
    assert "the checkpoint's fusion 'mean' has none; leave it out" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("output", "options", "message"),
    [
        ("model.txt", [], "ends in .pt2 or .onnx"),
        ("model.onnx", [], "ONNX needs onnx, which is not installed. Install the extra: pip install 'sgma-hf[onnx]'"),
    ],
)
def test_what_cannot_be_exported_is_said(checkpoint, tmp_path, capsys, monkeypatch, output, options, message):
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert main(["--model", checkpoint, "--output", str(tmp_path / output), *options]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_file_that_computes_something_else_is_not_written(checkpoint, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sgma_hf.prediction.export.TOLERANCE", -1.0)
    assert main(["--model", checkpoint, "--output", str(tmp_path / "model.pt2"), "--size", "32"]) == 2
    assert "It was not written" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
