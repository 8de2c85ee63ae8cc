"""`explain_pixel`: what it says is what the model does."""

import json

import numpy as np
import pytest
import torch
from tiny_models import spread_weights, tiny_model

from sgma_hf import SgmaImageProcessor
from sgma_hf.model.cells_sgma import upsample_to_pixels
from sgma_hf.prediction.explanation import explain_encoding, explain_pixel, explanation_in_words


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


def test_an_encoding_is_explained_as_if_it_had_some_modalities_alone(model, processor, images):
    images["sar"] = np.ones((50, 60, 2), np.float32)
    with torch.no_grad():
        encoding = model.encode(**processor(images))
    found = explain_encoding(model, encoding.only(torch.tensor([[[True, True, False]]])), 45, 11)
    expected = explain_pixel(model, processor, {**images, "sar": None}, 45, 11)
    assert (found["modalities"], found["class"]) == (expected["modalities"], expected["class"])
    assert found["scores"] == pytest.approx(expected["scores"], abs=1e-4)
    for name in ("rgb", "dsm"):
        assert found["without"][name]["scores"] == pytest.approx(expected["without"][name]["scores"], abs=1e-4)
    for stage, other in zip(found["stages"], expected["stages"], strict=True):
        assert stage["robustness"] == pytest.approx(other["robustness"], abs=1e-4)
        for name, nearest in other["nearest_prototypes"].items():
            pairs = [(entry["class"], pytest.approx(entry["similarity"], abs=1e-3)) for entry in nearest]
            assert [(entry["class"], entry["similarity"]) for entry in stage["nearest_prototypes"][name]] == pairs
    with pytest.raises(ValueError, match=r"No modality covers pixel \(x=3, y=11\)"):
        explain_encoding(model, encoding.only(torch.tensor([[[False, True, False]]])), 3, 11)


def test_an_explanation_in_words():
    def scores(tree):
        return {"class": "tree" if tree > 0.5 else "road", "scores": {"road": 1 - tree, "tree": tree, "car": 0.0}}

    found = {"x": 7, "y": 3, "modalities": ["rgb", "dsm"], **scores(0.75)}
    stage = {
        "robustness": {"rgb": 0.25, "dsm": 0.75, "sar": 0.0},
        "nearest_prototypes": {"rgb": [{"class": "road"}], "dsm": [{"class": "tree"}]},
    }
    coarse = {**stage, "robustness": {"rgb": 0.35, "dsm": 0.65, "sar": 0.0}}
    two = {**found, "without": {"rgb": scores(0.9), "dsm": scores(0.2)}, "stages": [stage, coarse]}
    assert explanation_in_words(two) == [
        "Pixel x 7, y 3 is tree (75%), before road (25%).",
        "It relies 70% on dsm, 30% on rgb.",
        "Without rgb it would still be tree (90%).",
        "Without dsm it would be road (80%): dsm decides.",
        "It looks most like road in rgb, tree in dsm.",
    ]
    without_robustness = [{"robustness": None, "nearest_prototypes": None}]
    assert len(explanation_in_words({**two, "stages": without_robustness})) == 3
    alone = {**found, "modalities": ["dsm"], "without": {"dsm": None}, "stages": [stage]}
    assert explanation_in_words(alone)[1:] == ["Nothing but dsm covers it."]


def test_pixels_that_are_not_there_are_refused(model, processor, images):
    with pytest.raises(ValueError, match=r"\(x=60, y=0\) lies outside the image of 60 x 50"):
        explain_pixel(model, processor, images, 60, 0)
    with pytest.raises(ValueError, match=r"No modality covers pixel \(x=3, y=11\)"):
        explain_pixel(model, processor, {"dsm": images["dsm"]}, 3, 11)


def test_a_date_is_named_to_the_minute_and_by_its_day(processor):
    model = tiny_model(date_periods=[365.25]).eval()
    sar = np.zeros((32, 32, 2), np.float32)
    dates = ["2019-03-02T10:50", "2024-07-15T23:59:50"]  # a float32 of days has steps of 42 and 84 seconds there
    found = explain_pixel(model, processor, {"sar": [sar, sar], "sar_dates": dates}, 3, 3)
    assert [entry["date"] for entry in found["dates"]["sar"]] == ["2019-03-02T10:50", "2024-07-15T23:59"]


@pytest.mark.parametrize("periods", [None, [365.25, 91.3]])
def test_of_a_series_each_date_is_named_with_its_reliance(processor, periods):
    """By fusing every date alone of another encoding, and from what the model says of its stages."""
    model = spread_weights(tiny_model(date_periods=periods)).eval()
    generator = np.random.default_rng(1)
    dates = ["2019-05-11T10:50:21Z", "2019-03-02", None, "2019-04-01"]
    sar = [generator.uniform(-20, 0, (50, 60, 2)).astype(np.float32) for _ in dates]
    sar[3][:, 40:] = np.nan  # it does not cover the pixel
    dsm = generator.uniform(0, 20, (50, 60)).astype(np.float32)
    images = {"sar": sar, "sar_dates": dates, "dsm": dsm}
    explained = explain_pixel(model, processor, images, 45, 11)
    seen = explained["dates"]["sar"]
    assert [entry["date"] for entry in seen] == ["2019-03-02T00:00", "2019-05-11T10:50", None]
    assert [entry["date"] for entry in explained["dates"]["dsm"]] == [None]
    inputs = processor([images], do_resize=False)
    known = inputs["dates"] if periods else None
    with torch.no_grad():
        outputs = model(inputs["pixel_values"], inputs["modality_mask"], dates=known, output_date_robustness=True)
    cells = zip(outputs.date_robustness, (4, 8, 16, 32), strict=True)
    shares = torch.stack([maps[0, :, :, 11 // stride, 45 // stride] for maps, stride in cells]).mean(0)
    expected = [shares[1, 2], shares[0, 2], shares[2, 2]]
    torch.testing.assert_close(torch.tensor([entry["reliance"] for entry in seen]), torch.stack(expected))
    # What is nearest is that of the date that is relied on most: alone, it has the same features.
    best = max((1, 0, 2), key=lambda slot: outputs.date_robustness[0][0, slot, 2, 2, 11].item())
    alone = {"sar": [sar[best]], "sar_dates": [dates[best]], "dsm": dsm}
    encoding = model.encode(
        **{k: v for k, v in processor([alone], do_resize=False).items() if periods or k != "dates"}
    )
    stage = encoding.stages[0]
    feature = stage.tokens[int(encoding.position[0, 2]), 2 * stage.size[1] + 11]
    with torch.no_grad():
        prototypes = model.fuse_and_decode(
            model.encode(inputs["pixel_values"], inputs["modality_mask"], dates=known), output_prototypes=True
        ).prototypes[0][0]
    similarity = torch.nn.functional.cosine_similarity(feature.unsqueeze(0), prototypes)
    nearest = explained["stages"][0]["nearest_prototypes"]["sar"][0]
    assert nearest["similarity"] == pytest.approx(similarity.max().item(), abs=1e-4)
    words = explanation_in_words(explained)
    share, date = max((entry["reliance"], entry["date"]) for entry in seen[:2])
    assert f"Of 3 dates of sar it relies most on {date[:10]} ({share:.0%})." in words
    json.dumps(explained)
