"""`modality_agreement`: the overlap of two predictions, of one modality and of all the others."""

import numpy as np
import pytest
import torch
from tiny_models import spread_weights, tiny_model

from sgma_hf import SgmaImageProcessor, evaluate_agreement, modality_agreement


@pytest.fixture(scope="module")
def model():
    return spread_weights(tiny_model()).double().eval()


def images(batch_size=2, height=40, width=50):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(batch_size, 6, height, width, generator=generator, dtype=torch.float64)


def overlap(model, values, masks):
    """The plain form: two forward passes, and the sum over the classes of the root of the product."""
    with torch.no_grad():
        first, second = (model(values, mask).logits.softmax(1) for mask in masks)
    return (first * second).sqrt().sum(1)


def test_it_is_the_overlap_of_two_forward_passes(model):
    values = images()
    found = modality_agreement(model, model.encode(values))
    assert found.shape == (2, 3, 10, 13) and found.dtype == torch.float32
    for index in range(3):
        alone = torch.zeros(2, 3, dtype=torch.bool)
        alone[:, index] = True
        expected = overlap(model, values, (alone, ~alone))
        torch.testing.assert_close(found[:, index].double(), expected, atol=1e-5, rtol=1e-5)
    assert 0 <= found.min() < found.max() <= 1


def test_what_cannot_be_compared_is_nan(model):
    mask = torch.tensor([[True, True, False], [False, True, False]])
    found = modality_agreement(model, model.encode(images(), mask))
    known = ~found.isnan().flatten(2)
    assert known.all(2).tolist() == known.any(2).tolist() == [[True, True, False], [False, False, False]]
    # two modalities are each other's others
    torch.testing.assert_close(found[0, 0], found[0, 1])


def test_gaps_inside_an_image_count_by_the_cell(model):
    mask = torch.ones(1, 3, 40, 50, dtype=torch.bool)
    mask[0, 0, :, 17:] = False  # ends inside the fifth column of cells
    mask[0, 1:, :, :8] = False  # the others begin with the third
    found = modality_agreement(model, model.encode(images(1), mask))[0]
    assert (~found[0].isnan()).any(0).tolist() == [False] * 2 + [True] * 3 + [False] * 8
    assert (~found[1].isnan()).any(0).tolist() == [False] * 2 + [True] * 11


def test_only_what_was_asked_for(model):
    encoding = model.encode(images())
    found = modality_agreement(model, encoding, [2])
    assert found[:, :2].isnan().all()
    torch.testing.assert_close(found[:, 2], modality_agreement(model, encoding)[:, 2])


def test_among_some_it_is_as_if_the_others_were_not_there(model):
    pair = torch.tensor([[True, False, True]]).expand(2, -1)
    found = modality_agreement(model, model.encode(images()).only(pair.unsqueeze(1)))
    expected = modality_agreement(model, model.encode(images(), pair))
    torch.testing.assert_close(found, expected, equal_nan=True, atol=1e-4, rtol=1e-4)
    assert found[:, 1].isnan().all() and not found[:, [0, 2]].isnan().any()


@pytest.fixture
def processor():
    return SgmaImageProcessor(["rgb", "dsm", "sar"], [3, 1, 2], nodata=[[], [], [0]], reference_level="none")


def test_the_yardstick_is_the_mean_over_cells_and_the_spread_of_windows(processor):
    """Windows of 32 pixels with 64 cells; the second row has no height, and its radar ends after 8 pixels."""
    model = spread_weights(tiny_model())
    generator = np.random.default_rng(0)
    rows = []
    for index, width in enumerate((64, 32)):
        rgb, dsm, sar = (generator.integers(1, 255, (32, width, bands)).astype(np.uint8) for bands in (3, 1, 2))
        rows.append({"id": str(index), "rgb": rgb, "dsm": dsm, "sar": sar, "label": np.zeros((32, width), np.uint8)})
    rows[1]["dsm"] = None
    rows[1]["sar"][:, 8:] = 0
    found = evaluate_agreement(model, processor, [*rows, rows[0] | {"label": None}], window_size=32, batch_size=2)
    maps = []
    for row, place in ((rows[0], (0, 0, 32, 32)), (rows[0], (0, 32, 32, 32)), (rows[1], None)):
        inputs = processor([{name: row[name] for name in processor.modalities}], windows=[place])
        maps.append(modality_agreement(model, model.encode(inputs["pixel_values"], inputs["modality_mask"]))[0])
    assert {name: found[name]["windows"] for name in found} == {"rgb": 3, "dsm": 2, "sar": 3}
    assert [int((~maps[2][index].isnan()).sum()) for index in range(3)] == [16, 0, 16]  # two columns of eight cells
    known = torch.cat([one[0].flatten() for one in maps]).double()
    assert found["rgb"]["mean"] == pytest.approx(float(known.nansum() / (64 + 64 + 16)))
    means = sorted(float(one[0].nanmean()) for one in maps)
    assert found["rgb"]["percentile_5"] == pytest.approx(means[0] + 0.1 * (means[1] - means[0]))
    assert found["dsm"]["mean"] == pytest.approx(float((maps[0][1].mean() + maps[1][1].mean()) / 2))


def test_a_yardstick_needs_two_modalities_and_a_row(processor):
    single = tiny_model(modalities=["rgb"], modality_channels=[3])
    row = {"id": "a", "rgb": np.ones((8, 8, 3), np.uint8), "label": np.zeros((8, 8), np.uint8)}
    with pytest.raises(ValueError, match=r"has only \['rgb'\]"):
        evaluate_agreement(single, SgmaImageProcessor(["rgb"], [3]), [row])
    model = tiny_model()
    empty = {"id": "a", **dict.fromkeys(model.config.modalities), "label": row["label"]}
    with pytest.raises(ValueError, match="None of the 1 rows can be evaluated: 0 have no label, 1 have none of"):
        evaluate_agreement(model, processor, [empty])
