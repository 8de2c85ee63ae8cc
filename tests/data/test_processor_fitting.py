"""Statistics of a pretrained encoder in place of the rows' own."""

import json

import numpy as np
import pytest

from sgma_hf import SgmaImageProcessor
from sgma_hf.data.processor_fitting import colour_modalities, normalize_as_encoder


MODALITIES, CHANNELS, DTYPES = ["rgb", "irrg", "dsm", "wide"], [3, 3, 1, 3], ["uint8", "uint8", "float32", "uint16"]
MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])  # ImageNet's, of values in [0, 1]


def fitted(**changes):
    options = {"image_mean": [[0.1, 0.2, 0.3]] * 2 + [[5.0], [0.4]], "image_std": [[0.5] * 3] * 2 + [[2.0], [0.1]]}
    return SgmaImageProcessor(MODALITIES, CHANNELS, **options | changes)


def normalised(processor, name, values):
    """What the model sees of one pixel of a modality."""
    place = sum(CHANNELS[: MODALITIES.index(name)])
    pixel = np.array(values, dtype=np.uint8).reshape(1, 1, 3)
    return processor({name: pixel}, return_tensors="np")["pixel_values"][0, place : place + 3, 0, 0]


def test_colour_is_three_bands_of_eight_bits():
    assert colour_modalities(MODALITIES, CHANNELS, DTYPES, None) == ["rgb", "irrg"]
    assert colour_modalities(MODALITIES, CHANNELS, DTYPES, ["irrg"]) == ["irrg"]
    assert colour_modalities(MODALITIES, CHANNELS, DTYPES, ["none"]) == []
    assert colour_modalities(["dsm"], [3], ["uint8"], None) == []  # measured from the lowest point of a window
    with pytest.raises(ValueError, match=r"\['dsm', 'rbg'\] .* \['rgb', 'irrg'\] can take them"):
        colour_modalities(MODALITIES, CHANNELS, DTYPES, ["rgb", "dsm", "rbg"])


def test_imagenet_stands_in_where_the_encoder_says_nothing(tmp_path):
    processor = fitted(rescale_factor=[1 / 255, 1.0, 1.0, 1.0])
    line = normalize_as_encoder(processor, str(tmp_path), ["rgb", "irrg"])
    assert line == (
        f"encoder: pretrained, {tmp_path}; rgb, irrg normalised by ImageNet's mean and deviation, "
        "dsm, wide by the training rows"
    )
    pixel = np.array([0, 100, 255])
    for name in ("rgb", "irrg"):  # whatever their factor is
        np.testing.assert_allclose(normalised(processor, name, pixel), (pixel / 255 - MEAN) / STD, rtol=1e-5)
    assert processor.image_mean[2:] == [[5.0], [0.4] * 3]


@pytest.mark.parametrize(
    ("file", "content", "expected"),
    [
        ("preprocessor_config.json", {"image_mean": [0.5] * 3, "image_std": [0.25] * 3},
         lambda x: (x / 255 - 0.5) / 0.25),
        ("preprocessor_config.json", {"image_mean": 0.5, "image_std": 0.5, "rescale_factor": 1 / 127.5},
         lambda x: (x / 127.5 - 0.5) / 0.5),
        ("preprocessor_config.json", {"image_mean": 0.5, "image_std": 0.5, "do_normalize": None},
         lambda x: (x / 255 - 0.5) / 0.5),
        ("preprocessor_config.json", {"image_mean": [128.0] * 3, "image_std": [64.0] * 3, "do_rescale": False},
         lambda x: (x - 128) / 64),
        ("preprocessor_config.json", {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "do_normalize": False},
         lambda x: x / 255),
        ("config.json", {"pretrained_cfg": {"mean": [0.1] * 3, "std": [0.2] * 3}}, lambda x: (x / 255 - 0.1) / 0.2),
    ],
)  # fmt: skip
def test_what_the_encoder_says_is_taken(tmp_path, file, content, expected):
    (tmp_path / file).write_text(json.dumps(content))
    processor = fitted()
    line = normalize_as_encoder(processor, str(tmp_path), ["rgb"])
    assert f"rgb normalised by its {file}, irrg, dsm, wide by the training rows" in line
    pixel = np.array([0, 100, 255])
    np.testing.assert_allclose(normalised(processor, "rgb", pixel), expected(pixel), rtol=1e-5, atol=1e-6)
    assert processor.image_mean[1] == [0.1, 0.2, 0.3]


def test_none_leaves_the_rows_statistics(tmp_path):
    processor = fitted()
    line = normalize_as_encoder(processor, str(tmp_path), [])
    assert line.endswith("; rgb, irrg, dsm, wide normalised by the training rows")
    assert processor.image_mean == fitted().image_mean
