"""Windows that overlap, and test-time turns, against loops of their own; and that nothing changes without either."""

import itertools

import numpy as np
import pytest
import torch
from comparison_fixtures import BACKBONE
from torch import nn

from sgma_hf.data.windows import cover
from sgma_hf.evaluation.combinations import evaluate_modality_combinations, modality_combinations
from sgma_hf.evaluation.metrics import confusion_matrix
from sgma_hf.model.configuration_sgma import SgmaConfig
from sgma_hf.model.image_processing_sgma import SgmaImageProcessor
from sgma_hf.model.modeling_sgma import SgmaForSemanticSegmentation
from sgma_hf.prediction.turns import TURNS, average_over_turns


NAMES = ["rgb", "dsm"]


@pytest.fixture(scope="module")
def pair():
    torch.manual_seed(0)
    config = SgmaConfig(
        modalities=NAMES,
        modality_channels=[3, 1],
        num_labels=3,
        backbone_config=BACKBONE,
        decoder_hidden_size=16,
        num_attention_heads=2,
    )
    processor = SgmaImageProcessor(
        modalities=NAMES,
        modality_channels=[3, 1],
        rescale_factor=[1.0, 1.0],
        image_mean=[[0.0] * 3, [0.0]],
        image_std=[[1.0] * 3, [1.0]],
        nodata=[[], []],
        reference_level=["none", "minimum"],  # of a window: what a pixel is depends on the window it is seen in
    )
    return SgmaForSemanticSegmentation(config).double().eval(), processor


def _row(name, *, seed, size, without=(), gap=False):
    generator = np.random.default_rng(seed)
    row = {
        "id": name,
        "rgb": generator.normal(size=(*size, 3)).astype(np.float32),
        "dsm": generator.normal(size=size).astype(np.float32),
        "label": generator.integers(0, 3, size).astype(np.uint8),
    }
    row["label"][:2] = 255
    if gap:
        row["rgb"][:, 24:] = row["dsm"][:, 40:] = np.nan  # the last windows of a row hold nothing
    return row | dict.fromkeys(without)


def _rows():
    return [
        _row("large", seed=0, size=(56, 72)),
        _row("ends inside", seed=1, size=(40, 104), gap=True),
        _row("smaller than a window", seed=2, size=(24, 20)),
        _row("without", seed=3, size=(40, 40), without=["dsm"]),
    ]


def _weights(size):
    ramps = [[min(i + 0.5, length - i - 0.5) / (length / 2) for i in range(length)] for length in size]
    return torch.tensor(np.outer(*ramps))


def _naive(pair, row, names, *, missing, window_size, stride, positions):
    """Confusion matrix of a row, window by window and position by position, each by a full pass."""
    model, processor = pair
    subset = torch.tensor([name in names for name in NAMES])
    size = row["label"].shape
    sums, weights = torch.zeros(3, *size, dtype=torch.float64), torch.zeros(size, dtype=torch.float64)
    seen = torch.zeros(size, dtype=torch.bool)
    for window in cover(size, window_size, stride):
        images = {name: row[name] for name in NAMES}
        inputs = processor(images=[images], segmentation_maps=[row["label"]], windows=[window], return_tensors="pt")
        values, mask = inputs["pixel_values"].double(), inputs["modality_mask"]
        mask = mask if mask.ndim == 4 else mask[..., None, None].expand(-1, -1, *values.shape[-2:])
        if not mask.any():
            continue
        kept = mask & subset[:, None, None]
        seen[window.slices] |= kept[0].any(0)
        total = 0
        for mirrored, quarters in positions:
            turn = {"k": quarters, "dims": (-2, -1)}
            turned = [torch.rot90(maps.flip(-1) if mirrored else maps, **turn) for maps in (values, kept)]
            if missing == "absent":
                logits = model(pixel_values=turned[0], modality_mask=turned[1]).logits
            else:
                channels = turned[1].repeat_interleave(torch.tensor([3, 1]), dim=1)
                logits = model(pixel_values=torch.where(channels, turned[0], 0)).logits
            shape = turned[0].shape[-2:]
            logits = nn.functional.interpolate(logits, scale_factor=4, mode="bilinear", align_corners=False)
            logits = torch.rot90(logits[..., : shape[0], : shape[1]], -quarters, (-2, -1))
            total = total + (logits.flip(-1) if mirrored else logits)
        weight = _weights((window.height, window.width))
        sums[:, *window.slices] += weight * total[0] / len(positions)
        weights[window.slices] += weight
    predicted = (sums / weights.clamp_min(1e-30)).argmax(0)
    if all(row[name] is None for name in names):
        return np.zeros((3, 3), dtype=np.int64)
    labels = torch.where(seen, torch.from_numpy(row["label"]).long(), 255)
    return confusion_matrix(predicted, labels, 3)


@pytest.mark.parametrize(
    ("missing", "stride", "tta"),
    [
        ("absent", 16, None),
        ("zero", 24, None),
        ("absent", 24, "flips"),
        ("absent", None, "d4"),
        ("zero", None, "flips"),
    ],
)
@torch.no_grad()
def test_overlap_and_turns_equal_a_loop_of_their_own(pair, missing, stride, tta):
    options = {"missing": missing, "window_size": 32, "stride": stride, "tta": tta}
    # Without overlap each pixel is counted in the first window that has it; sides of 32 have no second one.
    rows = (
        _rows() if stride is not None else [_row("two", seed=0, size=(32, 64)), _row("small", seed=1, size=(20, 24))]
    )
    results = evaluate_modality_combinations(*pair, rows, batch_size=3, return_tiles=True, **options)
    positions = [(False, 0)] if tta is None else TURNS[tta]
    for names in modality_combinations(NAMES):
        for row, found in zip(rows, results["tiles"]["confusion"]["+".join(names)], strict=True):
            windows = {"window_size": 32, "stride": stride, "positions": positions}
            expected = _naive(pair, row, names, missing=missing, **windows)
            assert np.reshape(found, (3, 3)).tolist() == expected.tolist(), (row["id"], names)
    if stride is not None:
        assert results["windows"] == results["rows"] == len(rows)
        assert results["combinations"]["dsm"]["rows_left_out"] == 1
    assert (results["stride"], results["tta"]) == (stride, tta)


def test_one_window_per_row_is_the_plain_evaluation(pair):
    rows = [_row(str(seed), seed=seed, size=(32, 32)) for seed in range(3)]
    plain, blended = (
        evaluate_modality_combinations(*pair, rows, window_size=32, stride=stride) for stride in (None, 32)
    )
    assert blended["combinations"] == plain["combinations"]


def test_a_row_without_any_data_is_left_out(pair):
    empty = _row("empty", seed=0, size=(40, 40))
    empty["rgb"][:], empty["dsm"][:] = np.nan, np.nan
    unlabelled = _row("unlabelled", seed=1, size=(40, 40), without=["label"])
    rows = [empty, unlabelled, _row("full", seed=2, size=(40, 40))]
    results = evaluate_modality_combinations(*pair, rows, window_size=32, stride=16)
    assert (results["rows_without_modality"], results["rows_without_label"]) == (1, 1)
    assert results["combinations"]["rgb+dsm"]["pixels"] == 38 * 40


@pytest.mark.parametrize("tta", ["flips", "d4"])
def test_positions_are_those_of_their_group(tta):
    maps = torch.arange(6.0).view(1, 2, 3)
    seen = []

    def predict(turn):
        seen.append(turn(maps))
        return seen[-1]

    torch.testing.assert_close(average_over_turns(predict, tta), maps, rtol=0, atol=0)
    assert len(seen) == len(TURNS[tta]) == {"flips": 4, "d4": 8}[tta]
    assert not any(
        one.shape == other.shape and torch.equal(one, other) for one, other in itertools.combinations(seen, 2)
    )
    assert all(position.shape == (1, 2, 3) for position in seen[:: 1 if tta == "flips" else 2])


def test_bad_options_are_told_in_one_line(pair):
    rows = [_row("a", seed=0, size=(32, 32))]
    for options, message in (
        ({"tta": "flip"}, "`tta` is 'flip', which is none of flips, d4; did you mean flips?"),
        ({"stride": 16}, "`stride` is 16, from window to window, but rows are taken whole; give a size."),
        ({"stride": 33, "window_size": 32}, "Windows of 32 pixels every 33"),
    ):
        with pytest.raises(ValueError, match=r"\A[^\n]*\Z") as error:
            evaluate_modality_combinations(*pair, rows, **options)
        assert message in str(error.value)
