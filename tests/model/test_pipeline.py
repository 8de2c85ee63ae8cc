"""`pipeline("image-segmentation")`: dicts in, arrays out, with and without the package."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Value
from datasets import Image as ImageColumn
from PIL import Image
from tiny_models import spread_weights, tiny_model
from transformers import (
    ImageSegmentationPipeline,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    SegformerImageProcessor,
    pipeline,
)

import sgma_hf
from sgma_hf import SgmaImageProcessor
from sgma_hf.model.cells_sgma import upsample_to_pixels


pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def model():
    return spread_weights(tiny_model()).eval()


@pytest.fixture(scope="module")
def processor(model):
    return SgmaImageProcessor(model.config.modalities, model.config.modality_channels)


@pytest.fixture(scope="module")
def checkpoint(model, processor, tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


def samples():
    generator = np.random.default_rng(0)
    rgb = generator.integers(0, 255, (40, 50, 3)).astype(np.uint8)
    dsm = generator.uniform(100, 120, (60, 48)).astype(np.float32)
    dsm[:10] = np.nan
    return [{"rgb": rgb, "dsm": None}, {"dsm": dsm}]


def assert_same_classes(labels, expected):
    """Up to pixels where two classes tie: scores of another batch or copy of the weights differ in their last bits."""
    assert labels.shape == expected.shape and (labels != expected).mean() < 1e-3


def test_dict_and_list_of_dicts(model, processor, checkpoint):
    segment = pipeline("image-segmentation", model=checkpoint)
    assert type(segment) is sgma_hf.SgmaPipeline
    first, second = samples()
    result = segment(first)
    with torch.no_grad():
        outputs = model(**processor(first))
    scores = upsample_to_pixels(outputs.logits, 4, (40, 50))[0].softmax(0).numpy()
    assert result["labels"].dtype == np.uint8
    assert_same_classes(result["labels"], scores.argmax(0))
    np.testing.assert_allclose(result["scores"], scores.max(0), atol=1e-6)
    assert (result["robustness"]["rgb"] == 1).all() and (result["robustness"]["dsm"] == 0).all()
    assert result["class_names"] == [f"LABEL_{index}" for index in range(5)]
    both = segment([first, second])
    assert_same_classes(both[0]["labels"], result["labels"])
    assert (both[1]["labels"][:10] == 255).all() and (both[1]["scores"][:10] == 0).all()
    assert (both[1]["labels"][10:] < 5).all()


def test_series_go_in_with_their_dates_and_share_a_batch_with_single_images():
    model = spread_weights(tiny_model(date_periods=[365.25, 91.3])).eval()
    processor = SgmaImageProcessor(model.config.modalities, model.config.modality_channels)
    segment = pipeline("image-segmentation", model=model, image_processor=processor)
    static, (height, width) = samples()[0], (40, 50)
    dsm = [np.full((height, width), level, np.float32) for level in (3.0, 9.0)]
    dsm[1][:10] = np.nan
    series = static | {"dsm": dsm, "dsm_dates": ["2019-03-02", "2019-07-01"]}
    with torch.no_grad():
        inputs = processor(series)
        outputs = model(**inputs)
    expected = upsample_to_pixels(outputs.logits, 4, (height, width))[0].softmax(0).numpy()
    results = segment([static, series, series | {"dsm_dates": ["2019-07-01", "2019-03-02"]}], batch_size=3)
    np.testing.assert_allclose(results[1]["scores"], expected.max(0), atol=1e-5)
    assert_same_classes(results[1]["labels"], expected.argmax(0))
    assert np.abs(results[2]["scores"] - results[1]["scores"]).max() > 1e-4  # dates count
    shares = results[1]["robustness"]
    assert (shares["dsm"] > 0).all()  # one date of two has no gap
    np.testing.assert_allclose(shares["rgb"] + shares["dsm"], 1, atol=1e-5)
    static_model = spread_weights(tiny_model()).eval()
    segment = pipeline("image-segmentation", model=static_model, image_processor=processor)
    with pytest.raises(ValueError, match=r"`dates` are given to a model without `date_periods`.*leave them out"):
        segment(series)


def test_model_in_memory_and_model_without_robustness(processor):
    mean = tiny_model(fusion="mean")
    segment = pipeline("image-segmentation", model=mean, image_processor=processor)
    assert segment(samples()[0])["robustness"] == {}


@pytest.mark.parametrize(
    "given", [{}, {"task": "image-segmentation"}, {"task": "multimodal-segmentation"}, {"trust_remote_code": True}]
)
def test_no_task_and_no_trust_is_asked_for_where_the_package_is(checkpoint, monkeypatch, given):
    questions = []
    monkeypatch.setattr("builtins.input", lambda question="": questions.append(question) or "n")
    assert type(pipeline(model=checkpoint, **given)) is sgma_hf.SgmaPipeline
    assert questions == []


def test_other_models_keep_the_pipeline_of_transformers():
    config = SegformerConfig(hidden_sizes=[8] * 4, depths=[1] * 4, decoder_hidden_size=8, num_labels=2)
    segment = pipeline(
        "image-segmentation", model=SegformerForSemanticSegmentation(config), image_processor=SegformerImageProcessor()
    )
    assert type(segment) is ImageSegmentationPipeline
    assert {found["label"] for found in segment(Image.new("RGB", (64, 64)))} <= {"LABEL_0", "LABEL_1"}


def test_a_picture_alone_is_rgb_or_the_only_modality(checkpoint, tmp_path):
    rgb = samples()[0]["rgb"]
    Image.fromarray(rgb).save(tmp_path / "rgb.png")
    segment = pipeline(model=checkpoint)
    expected = segment({"rgb": rgb})
    for result in segment([rgb, Image.fromarray(rgb), str(tmp_path / "rgb.png"), tmp_path / "rgb.png"]):
        assert np.array_equal(result["labels"], expected["labels"])
        assert np.array_equal(result["scores"], expected["scores"])
    height = tiny_model(modalities=["dsm"], modality_channels=[1])
    segment = pipeline("image-segmentation", model=height, image_processor=SgmaImageProcessor(["dsm"], [1]))
    assert list(segment(samples()[1]["dsm"])["robustness"]) == ["dsm"]


def test_rows_of_a_data_set_go_in_as_they_are(checkpoint):
    rgb = samples()[0]["rgb"]
    label = np.zeros((20, 25), np.uint8)  # coarser than the picture: not looked at
    columns = {"id": ["a"], "rgb": [Image.fromarray(rgb)], "label": [Image.fromarray(label)]}
    features = Features(id=Value("string"), rgb=ImageColumn(), label=ImageColumn())
    segment = pipeline("image-segmentation", model=checkpoint)
    (result,) = segment(row for row in Dataset.from_dict(columns, features=features))
    assert_same_classes(result["labels"], segment(rgb)["labels"])


def test_batches_give_what_single_samples_give(checkpoint):
    """More samples than stages, whole and partly covered ones, two sizes: each gets its own maps."""
    generator = np.random.default_rng(1)
    given = []
    for index in range(7):
        size = (40, 50) if index != 4 else (36, 64)
        rgb = generator.integers(0, 255, (*size, 3)).astype(np.uint8)
        sar = generator.uniform(-30, 0, (*size, 2)).astype(np.float32)
        if index in (1, 2):
            sar[: 10 * index] = np.nan
        given.append({"rgb": rgb, "dsm": None, "sar": sar})
    segment = pipeline("image-segmentation", model=checkpoint)
    single = segment(given)
    assert not np.allclose(single[0]["robustness"]["sar"], single[3]["robustness"]["sar"], atol=1e-2)
    for batch_size in (2, 3, 7):
        for batched, alone in zip(segment(given, batch_size=batch_size), single, strict=True):
            assert_same_classes(batched["labels"], alone["labels"])
            np.testing.assert_allclose(batched["scores"], alone["scores"], atol=1e-5)
            assert list(batched["robustness"]) == ["rgb", "dsm", "sar"]
            for name, shares in alone["robustness"].items():
                np.testing.assert_allclose(batched["robustness"][name], shares, atol=1e-5)


def test_batch_of_a_model_without_robustness(processor):
    segment = pipeline("image-segmentation", model=tiny_model(fusion="mean"), image_processor=processor)
    results = segment(samples() * 2, batch_size=4)
    assert [result["robustness"] for result in results] == [{}] * 4
    assert_same_classes(results[2]["labels"], segment(samples()[0])["labels"])


def test_what_is_no_sample_is_refused(checkpoint):
    segment = pipeline("image-segmentation", model=checkpoint)
    with pytest.raises(ValueError, match=r"the image 'nothing.png' cannot be read"):
        segment("nothing.png")
    with pytest.raises(TypeError, match="got a int; expected an array, a PIL image, a path or None"):
        segment(7)
    unnamed = pipeline(
        "image-segmentation",
        model=tiny_model(modalities=["dsm", "sar"], modality_channels=[1, 2]),
        image_processor=SgmaImageProcessor(["dsm", "sar"], [1, 2]),
    )
    with pytest.raises(TypeError, match=r"which may be any of \['dsm', 'sar'\]; expected a dict from modality name"):
        unnamed("rgb.png")
    with pytest.raises(ValueError, match="this processor knows"):
        segment({"thermal": np.zeros((8, 8))})
    with pytest.raises(ValueError, match=r"knows no parameters \['threshold'\]"):
        segment(samples()[0], threshold=0.5)


def test_saved_configuration_names_the_pipeline_and_its_code(checkpoint):
    with open(os.path.join(checkpoint, "config.json"), encoding="utf-8") as file:
        saved = json.load(file)
    (entry,) = saved["custom_pipelines"].items()  # with several, `pipeline` would want to know which
    assert entry[0] == "image-segmentation" and entry[1]["impl"] == "pipeline_sgma.SgmaPipeline"
    assert os.path.isfile(os.path.join(checkpoint, "pipeline_sgma.py"))


def test_process_without_the_package(model, checkpoint, tmp_path):
    """The code that travels with the checkpoint does it, and travels on when the model is saved there."""
    sample = samples()[0]
    np.save(tmp_path / "rgb.npy", sample["rgb"])
    program = (
        "import sys, numpy; from transformers import pipeline\n"
        "segment = pipeline('image-segmentation', model=sys.argv[1], trust_remote_code=True)\n"
        "assert type(pipeline(model=sys.argv[1], trust_remote_code=True)) is type(segment)\n"
        "assert not any(name.split('.')[0] == 'sgma_hf' for name in sys.modules)\n"
        "result = segment([{'rgb': numpy.load(sys.argv[2]), 'dsm': None}])[0]\n"
        "numpy.save(sys.argv[3], result['labels'])\n"
        "if len(sys.argv) > 4: segment.save_pretrained(sys.argv[4])\n"
    )
    environment = os.environ | {"HF_MODULES_CACHE": str(tmp_path / "modules"), "PYTHONSAFEPATH": "1"}
    environment["PYTHONPATH"] = ""
    again = str(tmp_path / "again")
    expected = pipeline("image-segmentation", model=checkpoint)(sample)["labels"]
    for index, arguments in enumerate(([checkpoint, "rgb.npy", "0.npy", again], [again, "rgb.npy", "1.npy"])):
        run = subprocess.run(
            [sys.executable, "-c", program, *arguments],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=environment,
            check=False,
        )
        if "sgma_hf' for name" in run.stderr:
            pytest.skip("the package is installed in the environment of the tests")
        assert run.returncode == 0, run.stderr
        assert_same_classes(np.load(tmp_path / f"{index}.npy"), expected)
