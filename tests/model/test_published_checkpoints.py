"""What a released version saved loads, and predicts what it did: `fixtures/checkpoint_0_1_0` is of commit 5ea6b22.

`expected.safetensors` holds its inputs and the outputs that the code of that commit gave.
"""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation

import sgma_hf


CHECKPOINT = Path(__file__).parents[1] / "fixtures" / "checkpoint_0_1_0"


@pytest.fixture(scope="module")
def expected():
    return load_file(CHECKPOINT / "expected.safetensors")


@pytest.fixture(scope="module")
def model():
    return AutoModelForSemanticSegmentation.from_pretrained(CHECKPOINT).eval()


def test_every_weight_has_a_place_and_every_place_a_weight():
    model, report = AutoModelForSemanticSegmentation.from_pretrained(CHECKPOINT, output_loading_info=True)
    assert type(model) is sgma_hf.SgmaForSemanticSegmentation
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    assert model.config.id2label == {0: "ground", 1: "tree", 2: "roof", 3: "road", 4: "water"}
    assert model.config.palette[2] == [200, 60, 40] and model.config.tile_size == 64


# float32 on another processor rounds and sums in another order; the logits are of order 1
@pytest.mark.parametrize(("mask", "logits"), [("row_mask", "row_logits"), ("pixel_mask", "pixel_logits")])
def test_logits_are_those_of_the_commit_that_saved_it(model, expected, mask, logits):
    with torch.no_grad():
        output = model(expected["pixel_values"].float(), expected[mask])
    torch.testing.assert_close(output.logits, expected[logits], rtol=1e-4, atol=1e-4)


def test_the_processor_prepares_the_same_inputs(model, expected):
    processor = AutoImageProcessor.from_pretrained(CHECKPOINT)
    inputs = processor({"rgb": expected["rgb"].numpy(), "dsm": expected["dsm"].numpy(), "sar": None})
    torch.testing.assert_close(inputs["pixel_values"], expected["prepared_pixel_values"], rtol=1e-6, atol=1e-6)
    assert torch.equal(inputs["modality_mask"], expected["prepared_mask"])
    with torch.no_grad():
        logits = model(**inputs).logits
    torch.testing.assert_close(logits, expected["prepared_logits"], rtol=1e-4, atol=1e-4)
