"""Robustness maps against the errors of single modalities: by hand, and against numpy with all pixels in memory."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from three_modalities import MODALITIES, noise_row, processor_of, spread_model

from sgma_hf.evaluation.prepared_rows import PreparedRow
from sgma_hf.evaluation.stage_cells import NUM_BINS
from sgma_hf.evaluation.trust.deletion import _draws
from sgma_hf.evaluation.trust.reliance import (
    mean_over_stages,
    pixels_per_cell,
    reliance_error_agreement,
    weighted_correlation,
)
from sgma_hf.model.cells_sgma import upsample_to_pixels


@pytest.fixture(scope="module")
def processor():
    return processor_of(MODALITIES)


@pytest.fixture(scope="module")
def rows():
    hole = noise_row("dsm ends inside", seed=3)
    hole["dsm"][:, 30:] = -9999
    return [
        noise_row("a", seed=0),
        noise_row("no dsm", seed=1, dsm=None),
        hole,
        noise_row("another size", seed=4, size=(32, 40)),
        noise_row("dsm alone, not to be compared with anything", seed=5, rgb=None, nir=None),
        noise_row("no label", seed=6, label=None),
    ]


class _TwoHalves(torch.nn.Module):
    """A stub: modality a is right in the left half of 32 x 64 pixels, b in the right half; classes 0 and 1."""

    def __init__(self, labels, shares_of_a):
        super().__init__()
        self.labels, self.shares_of_a = torch.as_tensor(labels.astype(np.int64)), shares_of_a
        self.config = SimpleNamespace(
            modalities=["a", "b"],
            modality_channels=[1, 1],
            num_labels=2,
            class_names=["zero", "one"],
            semantic_loss_ignore_index=255,
            date_periods=None,
        )
        self.device, self.dtype = torch.device("cpu"), torch.float32

    def encode(self, pixel_values, modality_mask):
        return len(pixel_values)

    def fuse_and_decode(self, encoding, subset_mask):
        cells = self.labels[::4, ::4].clone()
        if not subset_mask[0]:
            cells[:, :8] = 1 - cells[:, :8]
        elif not subset_mask[1]:
            cells[:, 8:] = 1 - cells[:, 8:]
        logits = torch.nn.functional.one_hot(cells, 2).permute(2, 0, 1).float()
        robustness = []
        for stride in (4, 8, 16, 32):
            of_a = torch.full((32 // stride, 64 // stride), self.shares_of_a[0])
            of_a[:, 32 // stride :] = self.shares_of_a[1]
            robustness.append(torch.stack([of_a, 1 - of_a]).expand(encoding, -1, -1, -1))
        return SimpleNamespace(logits=logits.expand(encoding, -1, -1, -1), robustness=tuple(robustness))


def _halves(shares_of_a):
    labels = np.zeros((32, 64), np.uint8)
    labels[16:] = 1
    row = {"id": "x", "a": np.ones((32, 64), np.float32), "b": np.ones((32, 64), np.float32), "label": labels}
    model = _TwoHalves(labels, shares_of_a)
    return reliance_error_agreement(model, processor_of({"a": 1, "b": 1}), [row, row], window_size=None)


def test_maps_that_know_where_each_modality_errs():
    found = _halves((0.75, 0.25))
    for stages in (found["stages"], found["contested_stages"]):
        for stage in ("4", "8", "16", "32", "mean"):
            figures = stages[stage]
            everything = [figures["overall"], *figures["modalities"].values(), *figures["classes"]]
            for entry in [*everything, *figures["classes_per_modality"]["b"]]:
                assert entry["correlation"] == pytest.approx(-1) and entry["auc"] == 1 and entry["error_rate"] == 0.5
            assert figures["overall"]["pixels"] == 2 * 2 * 32 * 64
            assert figures["classes_per_modality"]["a"][1]["pixels"] == 2 * 16 * 64
    choice = found["choice"]["overall"]
    assert choice["contested_pixels"] == 2 * 32 * 64
    assert choice["relied_on"] == dict.fromkeys(["4", "8", "16", "32", "mean"], 1.0)
    assert choice["chance"] == 0.5 and choice["always"] == {"a": 0.5, "b": 0.5} and choice["fused"] == 1


def test_maps_that_are_wrong_and_maps_that_say_nothing():
    found = _halves((0.25, 0.75))
    assert found["stages"]["8"]["overall"]["correlation"] == pytest.approx(1)
    assert found["stages"]["8"]["overall"]["auc"] == 0
    assert found["choice"]["classes"][0]["relied_on"]["mean"] == 0
    found = _halves((0.5, 0.5))
    assert found["stages"]["8"]["overall"]["correlation"] is None  # constant
    assert found["stages"]["8"]["overall"]["auc"] == 0.5
    assert found["choice"]["overall"]["relied_on"]["mean"] == 0.5  # tied: each counts half
    found = _halves((0.75, 0.75))  # a is always relied on, which is right in its half
    assert found["stages"]["8"]["modalities"]["a"]["correlation"] is None
    assert found["stages"]["8"]["overall"]["correlation"] == pytest.approx(0)
    assert found["choice"]["overall"]["relied_on"]["mean"] == 0.5


def test_weighted_correlation_worked_by_hand():
    x, y, weight = np.array([0.1, 0.5, 0.9]), np.array([1.0, 0.5, 0.25]), np.array([1, 2, 4])
    sums = (weight.sum(), *(weight @ terms for terms in (x, y, x * x, y * y, x * y)))
    repeated = np.repeat(x, weight), np.repeat(y, weight)
    assert weighted_correlation(*sums) == pytest.approx(np.corrcoef(*repeated)[0, 1])
    # (0, 0), (1, 1), (2, 0): no linear relation; (0, 1), (1, 0): a falling line
    assert weighted_correlation(3, 3, 1, 5, 1, 1) == pytest.approx(0)
    assert weighted_correlation(2, 1, 1, 1, 1, 0) == -1
    assert weighted_correlation(0, 0, 0, 0, 0, 0) is None
    assert weighted_correlation(2, 2, 1, 2, 1, 1) is None


def test_pixels_per_cell_worked_by_hand():
    labels = torch.zeros(2, 5, 6, dtype=torch.int64)
    labels[1, 4, 5] = 1
    right, counted = torch.ones(2, 5, 6, dtype=torch.bool), torch.ones(2, 5, 6, dtype=torch.bool)
    right[0, 0, :2] = False
    counted[0, 0, 0] = False
    labels[0, 0, 0] = 255
    counts = pixels_per_cell(right, counted, labels, 2)
    assert counts.shape == (2, 8, 8, 2, 2) and counts.sum() == 59
    assert counts[0, 0, 0].tolist() == [[14, 1], [0, 0]]
    assert counts[0, 1, 1].tolist() == [[2, 0], [0, 0]]
    assert counts[1, 1, 1].tolist() == [[1, 0], [1, 0]]


def test_mean_over_stages_gives_cells_the_values_of_the_coarser_ones():
    size = (36, 40)
    stages = [torch.zeros(1, 1, -(-size[0] // s), -(-size[1] // s)) for s in (4, 8, 16, 32)]
    stages[3][0, 0, 1, 1] = 1
    stages[0][0, 0, 0, 0] = 1
    mean = mean_over_stages(stages)
    assert mean.shape == (1, 1, 9, 10)
    assert mean[0, 0, 8].tolist() == [0] * 8 + [0.25] * 2 and mean[0, 0, 0].tolist() == [0.25] + [0] * 9


def _pixels(model, processor, rows):
    """Everything of every pixel, row by row, by full forward passes: five maps, right, counted, labels, fused."""
    found = []
    for row in rows:
        images = {name: row[name] for name in MODALITIES}
        if row["label"] is None:
            continue
        inputs = processor(images=[images], segmentation_maps=[row["label"]], return_tensors="pt")
        values, mask, labels = inputs["pixel_values"].double(), inputs["modality_mask"], inputs["labels"][0]
        size = tuple(labels.shape)
        mask = mask if mask.ndim == 4 else mask[..., None, None].expand(-1, -1, *size)
        right = torch.zeros(len(MODALITIES), *size, dtype=torch.bool)
        with torch.no_grad():
            outputs = model(pixel_values=values, modality_mask=mask)
            for index in range(len(MODALITIES)):
                alone = torch.zeros_like(mask)
                alone[:, index] = mask[:, index]
                logits = model(pixel_values=values, modality_mask=alone).logits
                right[index] = upsample_to_pixels(logits, 4, size)[0].argmax(0) == labels
        maps = [
            np.kron(stage[0].numpy(), np.ones((1, stride, stride)))[:, : size[0], : size[1]]
            for stage, stride in zip(outputs.robustness, (4, 8, 16, 32), strict=True)
        ]
        several = (mask[0].sum(0) > 1) & (labels != 255)
        fused = upsample_to_pixels(outputs.logits, 4, size)[0].argmax(0) == labels
        counted = (mask[0] & several).numpy()
        found.append(([*maps, np.mean(maps, axis=0)], right.numpy(), counted, labels.numpy(), fused.numpy()))
    return found


def _correlation(pixels, stride, level, modalities, label, *, contested):
    """Plain numpy over a list of all cells."""
    triples = []
    for maps, right, counted, labels, _ in pixels:
        chosen = counted & _contested(right, counted) if contested else counted
        for modality in modalities:
            for top in range(0, labels.shape[0], stride):
                for left in range(0, labels.shape[1], stride):
                    cell = (slice(top, top + stride), slice(left, left + stride))
                    of_cell = chosen[modality][cell] & ((labels[cell] == label) | (label is None))
                    if of_cell.any():
                        wrong = 1 - right[modality][cell][of_cell].mean()
                        triples.append((maps[level][modality][cell][0, 0], wrong, of_cell.sum()))
    x, y, weight = np.array(triples).T
    matrix = np.cov(x, y, aweights=weight)
    return matrix[0, 1] / np.sqrt(matrix[0, 0] * matrix[1, 1]), weight.sum()


def _contested(right, counted):
    return (right & counted).any(0) & (~right & counted).any(0)


def _auc(pixels, level, modality, label):
    values = {True: [], False: []}
    for maps, right, counted, labels, _ in pixels:
        chosen = counted[modality] & (labels == label)
        for state, found in values.items():
            shares = maps[level][modality][chosen & (right[modality] == state)]
            found.append(np.round(shares.astype(np.float64) * (NUM_BINS - 1)))
    wrong, right = np.concatenate(values[False])[:, None], np.concatenate(values[True])
    return (wrong < right).mean() + (wrong == right).mean() / 2


def test_streamed_figures_are_those_of_numpy_over_all_pixels(processor, rows):
    model = spread_model()
    found = reliance_error_agreement(model, processor, rows, window_size=None, batch_size=2)
    pixels = _pixels(model, processor, rows)
    for key, contested in (("stages", False), ("contested_stages", True)):
        for level, (stage, stride) in enumerate({"4": 4, "8": 8, "16": 16, "32": 32, "mean": 4}.items()):
            figures = found[key][stage]
            cases = {
                ((0, 1, 2), None): figures["overall"],
                ((1,), None): figures["modalities"]["dsm"],
                ((0, 1, 2), 2): figures["classes"][2],
                ((2,), 0): figures["classes_per_modality"]["nir"][0],
            }
            for (modalities, label), entry in cases.items():
                expected, count = _correlation(pixels, stride, level, modalities, label, contested=contested)
                assert entry["correlation"] == pytest.approx(expected, abs=1e-9)
                assert entry["pixels"] == count
    for level, stage in enumerate(("4", "8", "16", "32", "mean")):
        auc = found["stages"][stage]["classes_per_modality"]["dsm"][1]["auc"]
        assert auc == pytest.approx(_auc(pixels, level, 1, 1), abs=2e-3)  # a rounding tie may go to the next bin
    assert found["rows_without_label"] == 1 and found["rows"] == 6
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_choice_is_that_of_a_loop_over_contested_pixels(processor, rows):
    model = spread_model()
    found = reliance_error_agreement(model, processor, rows, window_size=None)["choice"]
    hits, chance, fused_hits, total = np.zeros(5), 0.0, 0, 0
    always = {name: [] for name in MODALITIES}
    for maps, right, counted, _, fused in _pixels(model, processor, rows):
        for y, x in np.argwhere(_contested(right, counted)):
            there = np.flatnonzero(counted[:, y, x])
            total += 1
            chance += right[there, y, x].mean()
            fused_hits += fused[y, x]
            for index, name in enumerate(MODALITIES):
                if index in there:
                    always[name].append(right[index, y, x])
            for level in range(5):
                shares = maps[level][there, y, x]
                hits[level] += right[there[shares == shares.max()], y, x].mean()
    overall = found["overall"]
    assert overall["contested_pixels"] == total == sum(entry["contested_pixels"] for entry in found["classes"])
    assert list(overall["relied_on"].values()) == pytest.approx(list(hits / total), abs=2 / total)
    assert overall["chance"] == pytest.approx(chance / total)
    assert overall["fused"] == pytest.approx(fused_hits / total)
    assert overall["always"] == pytest.approx({name: np.mean(values) for name, values in always.items()})
    sums = [sum(entry["chance"] * entry["contested_pixels"] for entry in found["classes"])]
    assert sums == [pytest.approx(chance)]


def test_bins_and_mean_reliance_are_those_of_a_loop_over_contested_pixels(processor, rows):
    model = spread_model()
    found = reliance_error_agreement(model, processor, rows, window_size=None)
    counts, shares = np.zeros((3, 3, 2, 20), dtype=int), [[] for _ in range(3)]
    for maps, right, counted, labels, _ in _pixels(model, processor, rows):
        for m, y, x in np.argwhere(counted & _contested(right, counted)):
            share = maps[-1][m, y, x]
            counts[m, labels[y, x], int(not right[m, y, x]), min(int(np.round(share * 2000)) // 100, 19)] += 1
            shares[m].append(share)
    bins = np.array(found["contested_bins"])
    assert bins.sum() == counts.sum() and np.abs(bins - counts).sum() <= 4  # a rounding tie may go to the next bin
    for values, figures in zip(shares, found["contested_stages"]["mean"]["modalities"].values(), strict=True):
        assert figures["reliance"] == pytest.approx(np.mean(values))


def test_deletion_is_that_of_a_loop_that_passes_all_but_one(processor, rows):
    """Each pixel from a full pass without the modality that it relies on most, or least."""
    model = spread_model()
    deletion = reliance_error_agreement(model, processor, rows, window_size=None, batch_size=3)["deletion"]
    assert deletion["ids"] == [row["id"] for row in rows]
    found = {name: np.reshape(tiles, (len(rows), 3, 3)) for name, tiles in deletion["confusion"].items()}
    assert list(found) == ["nothing", "least", "random", "most"]
    pixels = iter(_pixels(model, processor, rows))
    for number, row in enumerate(rows):
        expected = {name: np.zeros((3, 3), dtype=int) for name in found}
        if row["label"] is not None:
            maps, _, counted, labels, _ = next(pixels)
            inputs = processor(images=[{name: row[name] for name in MODALITIES}], return_tensors="pt")
            mask = inputs["modality_mask"]
            mask = mask if mask.ndim == 4 else mask[..., None, None].expand(-1, -1, *labels.shape)
            predicted = []
            for removed in (None, 0, 1, 2):
                kept = mask.clone()
                kept[:, [] if removed is None else removed] = False
                with torch.no_grad():
                    logits = model(pixel_values=inputs["pixel_values"].double(), modality_mask=kept).logits
                predicted.append(upsample_to_pixels(logits, 4, labels.shape)[0].argmax(0).numpy())
            for y, x in np.argwhere(counted.any(0)):
                there = np.flatnonzero(counted[:, y, x])
                shares = maps[-1][there, y, x]
                expected["nothing"][labels[y, x], predicted[0][y, x]] += 1
                expected["most"][labels[y, x], predicted[1 + there[shares.argmax()]][y, x]] += 1
                expected["least"][labels[y, x], predicted[1 + there[shares.argmin()]][y, x]] += 1
        for name in ("nothing", "most", "least"):
            assert np.abs(found[name][number] - expected[name]).sum() <= 4, (row["id"], name)  # ties of last bits
        assert found["random"][number].sum() == expected["nothing"].sum()
    several = found["random"].sum(0)
    assert (several != found["most"].sum(0)).any() and (several != found["least"].sum(0)).any()


def test_deletion_draws_every_modality_that_covers_alike():
    labels, place = torch.zeros(2, 64, 64, dtype=torch.int64), torch.tensor([[3, 0, 64], [7, 32, 0]])
    mask = torch.tensor([[True, True, True], [True, False, True]])
    batch = PreparedRow(torch.empty(2, 0, 64, 64), mask, labels, place)
    drawn = _draws(batch).masked_fill(~batch.covered, -1).argmax(1)
    for row, expected in zip(drawn, ([1 / 3] * 3, [0.5, 0, 0.5]), strict=True):
        shares = np.bincount(row.flatten(), minlength=3) / 4096
        assert shares == pytest.approx(expected, abs=0.03)  # 4 standard deviations
    alone = PreparedRow(torch.empty(1, 0, 64, 64), mask[1:], labels[1:], place[1:])
    assert (_draws(alone) == _draws(batch)[1:]).all()


def test_figures_do_not_depend_on_batch_size(processor, rows):
    model = spread_model()
    one = reliance_error_agreement(model, processor, rows, window_size=32, batch_size=1)
    other = reliance_error_agreement(model, processor, rows, window_size=32, batch_size=5)
    assert one["deletion"] == other["deletion"] and one["contested_bins"] == other["contested_bins"]
    other = reliance_error_agreement(model, processor, rows[::-1], window_size=32, batch_size=5)
    assert one["windows"] == other["windows"]
    for stage, figures in one["stages"].items():
        for name, entry in figures["modalities"].items():
            assert entry == pytest.approx(other["stages"][stage]["modalities"][name], abs=1e-6)
    assert one["choice"]["overall"]["contested_pixels"] == other["choice"]["overall"]["contested_pixels"]


@pytest.mark.parametrize(("fusion", "seed"), [("mean", 2), ("projector_mean", 3)])
def test_models_without_robustness_still_have_chance_and_their_own_prediction(processor, rows, fusion, seed):
    model = spread_model(seed, fusion=fusion).train()
    found = reliance_error_agreement(model, processor, rows, window_size=None)
    assert [found[key] for key in ("stages", "contested_stages", "contested_bins", "deletion")] == [None] * 4
    overall = found["choice"]["overall"]
    assert overall["relied_on"] == dict.fromkeys(["4", "8", "16", "32", "mean"])
    assert 0 < overall["chance"] < 1 and 0 < overall["fused"] < 1 and overall["contested_pixels"] > 0
    assert model.training


def test_rows_with_one_modality_alone_give_no_figures(processor, rows):
    found = reliance_error_agreement(spread_model(), processor, [rows[4]], window_size=None)
    nothing = dict.fromkeys(("correlation", "auc", "error_rate", "reliance"))
    assert found["stages"]["4"]["overall"] == nothing | {"pixels": 0}
    assert found["choice"]["overall"]["chance"] is None and found["choice"]["overall"]["contested_pixels"] == 0
    with pytest.raises(ValueError, match="None of the 1 rows can be evaluated: 1 have no label"):
        reliance_error_agreement(spread_model(), processor, [rows[5]], window_size=None)
    with pytest.raises(ValueError, match="`batch_size` is 0"):
        reliance_error_agreement(spread_model(), processor, rows, window_size=None, batch_size=0)
