"""The image processor takes rows as data sets have them."""

import numpy as np
import pytest
import torch
from datasets import load_dataset
from PIL import Image
from tiny_dataset import make_rows, write_dataset

from sgma_hf import SgmaImageProcessor, load_rows


def test_a_whole_row_goes_in_as_a_data_set_has_it(tmp_path):
    """`id` and `label` are passed over; pictures, bytes and undecoded cells give what the arrays give."""
    write_dataset(tmp_path)
    rgb, dsm, sar = make_rows()[0][1].values()
    label = make_rows()[0][2]
    processor = SgmaImageProcessor(["rgb", "dsm", "sar"], [3, 1, 2], num_labels=2)
    decoded, undecoded = load_dataset(str(tmp_path), split="train"), load_rows(tmp_path, "train")
    assert isinstance(decoded[0]["rgb"], Image.Image) and isinstance(undecoded[0]["rgb"], dict)
    assert isinstance(decoded[0]["sar"], bytes)
    expected = processor({"rgb": rgb, "dsm": dsm, "sar": sar}, do_resize=False)
    assert not expected["modality_mask"][0, 1, 0, 1]  # nodata
    for rows in (decoded, undecoded):
        inputs = processor(rows[0], do_resize=False)
        assert inputs.keys() == {"pixel_values", "modality_mask"}
        assert all(torch.equal(inputs[name], expected[name]) for name in inputs)
        both = processor(list(rows), [row["label"] for row in rows], do_resize=False)
        assert torch.equal(both["labels"][0], torch.from_numpy(label).long()) and (both["labels"][1] == 255).all()
        assert not both["modality_mask"][1, [0, 2]].any()


def test_a_label_of_another_grid_does_not_move_the_prediction():
    row = {"id": "a", "a": np.ones((4, 4)), "label": np.zeros((8, 8), np.uint8)}
    assert SgmaImageProcessor(["a"])(row)["pixel_values"].shape == (1, 1, 4, 4)
    assert SgmaImageProcessor(["a"])(row, row["label"])["pixel_values"].shape == (1, 1, 8, 8)


def test_corrupt_bytes_are_refused():
    for cell in (b"no image", {"bytes": b"no image", "path": "a.png"}):
        with pytest.raises(ValueError, match=r"`images\[0\]\['a'\]`: the image cannot be read"):
            SgmaImageProcessor(["a"])({"a": cell})


def test_an_empty_cell_is_refused():
    with pytest.raises(TypeError, match=r"`images\[0\]\['a'\]`: got a NoneType; expected an array"):
        SgmaImageProcessor(["a"])({"a": {}})
