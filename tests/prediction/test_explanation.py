"""`explain_pixel`: what it says is what the model does."""

import json

import numpy as np
import pytest
import torch
from tiny_models import spread_weights, tiny_model

from sgma_hf import SgmaImageProcessor
from sgma_hf.model.cells_sgma import upsample_to_pixels
from sgma_hf.prediction.explanation import explain_pixel


@pytest.fixture(scope="module")
def model():
    return spread_weights(tiny_model()).eval()


@pytest.fixture(scope="module")
def processor(model):
    return SgmaImageProcessor(model.config.modalities, model.config.modality_channels)


@pytest.fixture
def images():
    generator = np.random.default_rng(0)
    dsm = generator.uniform(0, 20, (50, 60)).astype(np.float32)
    dsm[:, :32] = np.nan
    rgb = generator.integers(0, 255, (50, 60, 3)).astype(np.uint8)
    return {"rgb": rgb, "dsm": dsm, "sar": None}


def scores_at(model, processor, images, x, y):
    with torch.no_grad():
        outputs = model(**processor(images))
    return upsample_to_pixels(outputs.logits, 4, (50, 60))[0, :, y, x].softmax(0), outputs


def test_scores_are_those_of_the_model_with_and_without_each_modality(model, processor, images):
    explained = explain_pixel(model, processor, images, 45, 11)
    assert (explained["x"], explained["y"], explained["modalities"]) == (45, 11, ["rgb", "dsm"])
    scores, _ = scores_at(model, processor, images, 45, 11)
    torch.testing.assert_close(torch.tensor(list(explained["scores"].values())), scores, atol=1e-5, rtol=1e-5)
    assert explained["class"] == f"LABEL_{int(scores.argmax())}"
    for name in ("rgb", "dsm"):
        alone, _ = scores_at(model, processor, {**images, name: None}, 45, 11)
        found = torch.tensor(list(explained["without"][name]["scores"].values()))
        torch.testing.assert_close(found, alone, atol=1e-4, rtol=1e-4)
    assert list(explained["without"]) == ["rgb", "dsm"]
    json.dumps(explained)


def test_stages_show_the_robustness_of_the_cell(model, processor, images):
    explained = explain_pixel(model, processor, images, 45, 11)
    _, outputs = scores_at(model, processor, images, 45, 11)
    assert [stage["stride"] for stage in explained["stages"]] == [4, 8, 16, 32]
    for stage, maps in zip(explained["stages"], outputs.robustness, strict=True):
        cell = maps[0, :, 11 // stage["stride"], 45 // stage["stride"]]
        torch.testing.assert_close(torch.tensor(list(stage["robustness"].values())), cell, atol=1e-5, rtol=1e-5)
        assert sum(stage["robustness"].values()) == pytest.approx(1, abs=1e-5)
        assert stage["robustness"]["sar"] == 0


def test_prototypes_are_sorted_and_only_of_what_covers_the_cell(model, processor, images):
    explained = explain_pixel(model, processor, images, 45, 11, num_prototypes=5)
    for stage in explained["stages"]:
        assert list(stage["nearest_prototypes"]) == ["rgb", "dsm"]
        for nearest in stage["nearest_prototypes"].values():
            similarities = [entry["similarity"] for entry in nearest]
            assert similarities == sorted(similarities, reverse=True) and len(similarities) == 5
            assert all(-1.0001 <= value <= 1.0001 for value in similarities)
    left = explain_pixel(model, processor, images, 3, 11)  # no height there
    assert left["modalities"] == ["rgb"] and left["without"] == {"rgb": None}
    assert all(list(stage["nearest_prototypes"]) == ["rgb"] for stage in left["stages"])


def test_one_modality_has_no_prototypes_and_mean_fusion_no_robustness(model, processor, images):
    alone = explain_pixel(model, processor, {"rgb": images["rgb"]}, 0, 0)
    assert all(stage["nearest_prototypes"] is None for stage in alone["stages"])
    assert all(stage["robustness"]["rgb"] == 1 for stage in alone["stages"])
    mean = explain_pixel(tiny_model(fusion="mean"), processor, images, 45, 11)
    assert all(stage["robustness"] is None for stage in mean["stages"])


def test_pixels_that_are_not_there_are_refused(model, processor, images):
    with pytest.raises(ValueError, match=r"\(x=60, y=0\) lies outside the image of 60 x 50"):
        explain_pixel(model, processor, images, 60, 0)
    with pytest.raises(ValueError, match=r"No modality covers pixel \(x=3, y=11\)"):
        explain_pixel(model, processor, {"dsm": images["dsm"]}, 3, 11)
