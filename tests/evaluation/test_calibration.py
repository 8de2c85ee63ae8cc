"""Calibration of confidences and the fitted temperature, against float64 numpy over all pixels."""

import json

import numpy as np
import pytest
import torch
from three_modalities import MODALITIES, noise_row, processor_of, spread_model

from sgma_hf.commands import evaluate
from sgma_hf.evaluation.trust import calibration
from sgma_hf.evaluation.trust.calibration import (
    add_confidences,
    evaluate_calibration,
    expected_error,
    fit_temperature,
    likeliest_temperature,
    save_temperature,
)
from sgma_hf.model.cells_sgma import upsample_to_pixels
from sgma_hf.model.modeling_sgma import SgmaForSemanticSegmentation


@pytest.fixture(scope="module")
def rows():
    """Rows of which a model that sees all is right about three in four pixels."""
    hole = noise_row("dsm ends inside", seed=3)
    hole["dsm"][:, 30:] = -9999
    found = [noise_row("a", seed=0), hole, noise_row("no dsm", seed=1, dsm=None)]
    rng = np.random.default_rng(0)
    for row in found:
        images = {name: row[name] for name in MODALITIES}
        inputs = processor_of(MODALITIES)(images=[images], return_tensors="pt")
        values, mask = inputs["pixel_values"].double(), inputs["modality_mask"]
        with torch.no_grad():
            logits = upsample_to_pixels(spread_model()(pixel_values=values, modality_mask=mask).logits, 4, (44, 68))
        known = rng.random((44, 68)) < 0.6
        row["label"][known] = logits[0].argmax(0).numpy()[known]
    return [*found, noise_row("no label", seed=6, label=None)]


def softmax(logits):
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def numpy_ece(logits, labels):
    probabilities = softmax(logits)
    confidence, right = probabilities.max(1), probabilities.argmax(1) == labels
    error = 0.0
    for number in range(15):
        inside = (confidence > number / 15) & (confidence <= (number + 1) / 15)
        if inside.any():
            error += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    return error


def numpy_nll(logits, labels, temperature):
    return -np.log(softmax(logits / temperature)[np.arange(len(labels)), labels]).mean()


def all_pixels(model, rows, names):
    """Logits and labels of every pixel that a combination covers, by full forward passes."""
    processor, found = processor_of(MODALITIES), []
    for row in rows:
        if row["label"] is None or all(row[name] is None for name in names):
            continue
        images = {name: row[name] for name in MODALITIES}
        inputs = processor(images=[images], segmentation_maps=[row["label"]], return_tensors="pt")
        labels, mask = inputs["labels"][0], inputs["modality_mask"]
        mask = mask if mask.ndim == 4 else mask[..., None, None].expand(-1, -1, *labels.shape)
        mask = mask & torch.tensor([name in names for name in MODALITIES])[:, None, None]
        with torch.no_grad():
            logits = model(pixel_values=inputs["pixel_values"].double(), modality_mask=mask).logits
        logits = upsample_to_pixels(logits, 4, labels.shape)[0].movedim(0, -1)
        counted = mask[0].any(0) & (labels != 255)
        found.append((logits[counted].numpy(), labels[counted].numpy()))
    return [np.concatenate(parts) for parts in zip(*found, strict=True)]


def test_errors_of_all_combinations_are_those_of_numpy(rows):
    model = spread_model()
    found = evaluate_calibration(model, processor_of(MODALITIES), rows, window_size=None, batch_size=2)
    assert found["temperatures"] == [1.0] and len(found["combinations"]) == 7
    for names, (figures,) in found["combinations"].items():
        logits, labels = all_pixels(model, rows, names.split("+"))
        assert figures["ece"] == pytest.approx(numpy_ece(logits, labels), abs=1e-6)
        assert sum(figures["pixels"]) == len(labels) and sum(figures["right"]) == (logits.argmax(1) == labels).sum()
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    windows = evaluate_calibration(model, processor_of(MODALITIES), rows, window_size=32, batch_size=3)
    assert windows["combinations"]["rgb"][0]["pixels"] != figures["pixels"]


def test_temperature_makes_the_labels_of_all_combinations_likeliest(rows):
    model, processor = spread_model(), processor_of(MODALITIES)
    fitted = fit_temperature(model, processor, rows, window_size=None)
    parts = [all_pixels(model, rows, names) for names in (["rgb"], ["dsm"], ["nir"], ["rgb", "dsm"], ["rgb", "nir"])]
    parts += [all_pixels(model, rows, names) for names in (["dsm", "nir"], list(MODALITIES))]
    logits, labels = (np.concatenate(one) for one in zip(*parts, strict=True))
    assert len(labels) < calibration.MAX_FITTED_PIXELS  # none is left out
    best = numpy_nll(logits, labels, fitted)
    for factor in (0.9, 0.999, 1.001, 1.1):
        assert best < numpy_nll(logits, labels, fitted * factor)
    assert best < numpy_nll(logits, labels, 1)

    model.config.temperature = fitted  # as the model is asked from now on
    assert fit_temperature(model, processor, rows, window_size=None) == pytest.approx(fitted, abs=2e-4)
    found = evaluate_calibration(model, processor, rows, window_size=None)
    assert found["temperatures"] == [1.0, fitted]
    plain, scaled = found["combinations"]["rgb+dsm+nir"]
    logits, labels = parts[-1]
    assert plain["ece"] == pytest.approx(numpy_ece(logits, labels), abs=1e-6)
    assert scaled["ece"] == pytest.approx(numpy_ece(logits / fitted, labels), abs=1e-6)


def test_temperature_is_fitted_to_a_drawn_part_of_many_pixels(rows, monkeypatch):
    model, processor = spread_model(), processor_of(MODALITIES)
    whole = fit_temperature(model, processor, rows, window_size=None)
    monkeypatch.setattr(calibration, "MAX_FITTED_PIXELS", 4000)
    seen = []
    monkeypatch.setattr(calibration, "likeliest_temperature", lambda *a: seen.append(a) or likeliest_temperature(*a))
    drawn = fit_temperature(model, processor, rows, window_size=None)
    assert len(seen[0][1]) == 4000 and drawn != whole and drawn == pytest.approx(whole, rel=0.3)


def test_rows_without_a_labelled_pixel_have_no_temperature():
    row = noise_row("nothing is labelled", seed=0)
    row["label"][:] = 255
    with pytest.raises(ValueError, match="No pixel of these rows is labelled and covered"):
        fit_temperature(spread_model(), processor_of(MODALITIES), [row], window_size=None)


def test_likeliest_temperature_worked_by_hand():
    # two classes, logits (s, 0), right in three of four: sigmoid(s / T) = 3 / 4, so T = s / ln 3
    logits, labels = torch.tensor([[5.0, 0.0]] * 4, dtype=torch.float64), torch.tensor([0, 0, 0, 1])
    assert likeliest_temperature(logits, labels) == pytest.approx(5 / np.log(3), rel=1e-9)
    assert likeliest_temperature(logits[:2], labels[:2]) == pytest.approx(0.05)  # always right: as sure as may be
    assert likeliest_temperature(logits, torch.ones(4, dtype=torch.int64)) == pytest.approx(20)


def test_bins_hold_their_upper_edge():
    counts = torch.zeros(3, 16, dtype=torch.int64)
    # confidences 0.6 = 9 / 15, 0.7 and 1
    logits = torch.tensor([[0.6, 0.3, 1.0, 0.9], [0.4, 0.7, 1e-30, 0.1]], dtype=torch.float64).log()[None, :, None]
    counted = torch.tensor([[[True, True, True, False]]])
    add_confidences(counts, logits, torch.zeros(1, 1, 4, dtype=torch.int64), counted)
    counts = counts[:, :15]
    assert counts[0].nonzero().flatten().tolist() == [8, 10, 14]
    assert counts[1].tolist() == [0] * 8 + [1, 0, 0, 0, 0, 0, 1] and counts[2].sum() == 2_300_000
    # |1 - 0.6|, |0 - 0.7|, |1 - 1|
    assert expected_error(*counts.tolist()) == pytest.approx(1.1 / 3)
    assert expected_error([0] * 15, [0] * 15, [0] * 15) is None


def test_combinations_with_a_modality_that_no_row_has_have_no_error(rows):
    found = evaluate_calibration(spread_model(), processor_of(MODALITIES), rows[2:3], window_size=None)["combinations"]
    assert [names for names, (figures,) in found.items() if figures["ece"] is None] == [
        names for names in found if "dsm" in names
    ]


def test_a_saved_temperature_scales_what_the_model_says_and_no_class(tmp_path):
    model = spread_model().float().eval()
    inputs = {"pixel_values": torch.randn(2, 5, 64, 64, generator=torch.Generator().manual_seed(0))}
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        plain = model(**inputs).logits
    save_temperature(tmp_path, 1.75)
    loaded = SgmaForSemanticSegmentation.from_pretrained(tmp_path)
    assert loaded.config.temperature == 1.75 and not loaded.training
    with torch.no_grad():
        scaled = loaded(**inputs).logits
    torch.testing.assert_close(scaled * 1.75, plain)
    loaded.train()
    labels = torch.zeros(2, 64, 64, dtype=torch.int64)
    trained = loaded(**inputs, labels=labels)
    torch.testing.assert_close(trained.logits, plain, atol=1e-4, rtol=1e-4)  # its loss is that of the weights alone
    for wrong in (0, -1.0, float("inf")):
        with pytest.raises(ValueError, match="`temperature` is"):
            type(loaded.config)(temperature=wrong)


def test_a_checkpoint_that_cannot_be_written_is_said_before_the_work(tmp_path, monkeypatch, capsys):
    def check_writable(path):
        raise OSError(f"Cannot write the output {path}: Read-only file system, {tmp_path}.")

    monkeypatch.setattr(evaluate, "check_writable", check_writable)
    monkeypatch.setattr(evaluate, "_score_rows", None)
    spread_model().save_pretrained(tmp_path)
    words = ["--model", str(tmp_path), "--dataset", str(tmp_path), "--split", "test", "--output", "found.json"]
    assert evaluate.main([*words, "--calibration", "fit"]) == 2
    assert f"Cannot write the output {tmp_path / 'config.json'}: Read-only" in capsys.readouterr().err
