"""Corrupted modalities: what each corruption does, what is counted, and what it must not depend on."""

import json

import numpy as np
import pytest
import torch
from tiny_models import spread_weights, tiny_model

from sgma_hf import modality_agreement
from sgma_hf.comparison.arms.full_pass import FullPassConfig, FullPassForSemanticSegmentation
from sgma_hf.evaluation.combinations import evaluate_modality_combinations
from sgma_hf.evaluation.corruption_scores import ALL_MODALITIES, evaluate_corruptions
from sgma_hf.evaluation.corruptions import CORRUPTIONS, Corruption, corrupt, draw, random_rectangle
from sgma_hf.model.image_processing_sgma import SgmaImageProcessor


MODALITIES = {"rgb": 3, "dsm": 1}


def _model(**changes):
    settings = {"modalities": list(MODALITIES), "modality_channels": list(MODALITIES.values()), "num_labels": 3}
    return spread_weights(tiny_model(**{**settings, **changes}), seed=2).double()  # predicts several classes


@pytest.fixture(scope="module")
def model():
    return _model()


@pytest.fixture(scope="module")
def processor():
    return SgmaImageProcessor(
        modalities=list(MODALITIES),
        modality_channels=list(MODALITIES.values()),
        rescale_factor=1.0,
        image_mean=[0.0, 0.0],
        image_std=[1.0, 1.0],
        nodata=[[], [-9999.0]],
        reference_level="none",
    )


def _row(name, *, seed, size=(64, 64), **changes):
    generator = np.random.default_rng(seed)
    row = {
        "id": name,
        "rgb": generator.normal(size=(*size, 3)).astype(np.float32),
        "dsm": generator.normal(size=size).astype(np.float32),
        "label": generator.integers(0, 3, size).astype(np.uint8),
    }
    row["label"][:3] = 255
    return row | changes


@pytest.fixture(scope="module")
def rows():
    return [_row(f"row {seed}", seed=seed) for seed in range(3)]


def _assert_equal_figures(one, other):
    """Integers, names and None exactly, floats up to the order of sums in float64."""
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            _assert_equal_figures(one[key], other[key])
    elif isinstance(one, list):
        assert len(one) == len(other)
        for first, second in zip(one, other, strict=True):
            _assert_equal_figures(first, second)
    elif isinstance(one, float):
        assert one == pytest.approx(other, rel=1e-6)
    else:
        assert one == other


@pytest.mark.parametrize("size", [(64, 64), (33, 100), (7, 5)])
@pytest.mark.parametrize("share", [0.25, 0.5, 0.75, 1.0])
def test_missing_rectangle_covers_its_share_up_to_half_a_line_of_pixels(size, share):
    places = set()
    for seed in range(20):
        region = random_rectangle(size, share, draw(seed))
        rows, columns = region.any(1).sum().item(), region.any(0).sum().item()
        assert region.sum() == rows * columns, "not a rectangle"
        assert abs(region.sum().item() - share * size[0] * size[1]) <= max(size) / 2 + 1
        places.add(region.nonzero()[0].tolist()[0] * 1000 + region.nonzero()[0].tolist()[1])
    assert share == 1 or len(places) > 1


def test_what_each_corruption_does_to_values_and_mask():
    values = torch.arange(2 * 8 * 8, dtype=torch.float32).view(2, 8, 8) + 100
    mask = torch.ones(8, 8, dtype=torch.bool)

    found, there, region = corrupt(values, mask, Corruption("missing_region", 0.5), draw(0))
    assert torch.equal(there, ~region) and torch.equal(found, torch.where(region, 0, values))

    found, there, region = corrupt(values, mask, Corruption("noise", 0.5), draw(0))
    assert there.all() and region is None
    twice, _, _ = corrupt(values, mask, Corruption("noise", 1.0), draw(0))
    torch.testing.assert_close(twice - values, 2 * (found - values), atol=1e-4, rtol=0)  # one draw for all levels

    found, there, _ = corrupt(values, mask, Corruption("salt_and_pepper", 0.5), draw(0))
    changed = found != values
    assert torch.equal(changed[0], changed[1]) and 0 < changed[0].sum() < 64 and there.all()
    assert set(found[changed].tolist()) == {-3.0, 3.0}

    found, there, region = corrupt(values, mask, Corruption("noise_region", 2.0), draw(0))
    assert torch.equal((found != values).any(0), region) and region.sum() == 32 and there.all()

    other = values + 7, mask.logical_not()
    found, there, region = corrupt(values, mask, Corruption("swapped", 1), draw(0), other=other)
    assert torch.equal(found, values + 7) and not there.any() and region is None
    assert torch.equal(values, torch.arange(128.0).view(2, 8, 8) + 100), "the input was written to"


def test_misregistration_shifts_without_a_mirror_in_all_four_directions():
    values, mask = torch.arange(1.0, 17).view(1, 4, 4), torch.ones(4, 4, dtype=torch.bool)
    found = {
        tuple(corrupt(values, mask, Corruption("misregistration", 3), draw(seed))[0].flatten().int().tolist())
        for seed in range(40)
    }
    down = (0,) * 12 + (1, 2, 3, 4)
    up = (13, 14, 15, 16) + (0,) * 12
    right = (0, 0, 0, 1, 0, 0, 0, 5, 0, 0, 0, 9, 0, 0, 0, 13)
    left = (4, 0, 0, 0, 8, 0, 0, 0, 12, 0, 0, 0, 16, 0, 0, 0)
    assert found == {down, up, right, left}
    shifted, there, _ = corrupt(values, mask, Corruption("misregistration", 3), draw(0))
    assert torch.equal(there, shifted[0] > 0)
    _, there, _ = corrupt(values, mask, Corruption("misregistration", 9), draw(0))
    assert not there.any()


def test_draws_depend_on_every_name_and_on_nothing_else():
    def first(*parts):
        return torch.rand((), generator=draw(*parts)).item()

    torch.manual_seed(5)
    numbers = [first(0, "a", "noise"), first(0, "a", "noise_region"), first(0, "b", "noise"), first(1, "a", "noise")]
    assert len(set(numbers)) == 4
    torch.manual_seed(6)
    assert first(0, "a", "noise") == numbers[0]


def test_clean_figures_are_those_of_the_evaluation(model, processor, rows):
    found = evaluate_corruptions(
        model, processor, rows, window_size=40, batch_size=5, corruptions=[Corruption("noise", 1.0, jointly=True)]
    )
    expected = evaluate_modality_combinations(model, processor, rows, window_size=40)["combinations"]
    for name, figure in found["clean"].items():
        assert figure == expected["rgb+dsm"][name]
    assert found["without"]["rgb"]["iou"] == expected["dsm"]["iou"]
    assert found["without"]["dsm"]["iou"] == expected["rgb"]["iou"]
    for target, entry in found["corruptions"]["noise_1"].items():
        assert entry["clean"] == found["clean"]
        assert entry["corrupted"] != entry["clean"]
        assert entry["without"] == (None if target == ALL_MODALITIES else found["without"][target])
    assert found["windows"] == 12  # 64 is two windows of 40, three rows


def test_figures_do_not_depend_on_batch_size_or_order(model, processor, rows):
    corruptions = [entry for entry in CORRUPTIONS if entry.level in (0.5, 2.0, 0.1, 4, 1) and entry.kind != "noise"]
    one = evaluate_corruptions(model, processor, rows, window_size=32, batch_size=3, corruptions=corruptions)
    other = evaluate_corruptions(model, processor, rows[::-1], window_size=32, batch_size=8, corruptions=corruptions)
    assert len(one["corruptions"]) == len(corruptions) == 6
    _assert_equal_figures(one, other)
    assert json.loads(json.dumps(one, allow_nan=False)) == one
    seeded = evaluate_corruptions(model, processor, rows, window_size=32, seed=1, corruptions=corruptions)
    assert seeded["corruptions"] != one["corruptions"] and seeded["clean"] == one["clean"]


def test_figures_of_a_missing_region_against_a_plain_loop(model, processor, rows):
    corruption = Corruption("missing_region", 0.5)
    found = evaluate_corruptions(model, processor, rows, window_size=None, corruptions=[corruption])
    entry = found["corruptions"]["missing_region_0.5"]["dsm"]
    hits = pixels = hits_inside = 0
    clean_cells, corrupted_cells = [], []
    for row in rows:
        inputs = processor(
            images=[{name: row[name] for name in MODALITIES}], segmentation_maps=[row["label"]], return_tensors="pt"
        )
        values = inputs["pixel_values"].double()
        region = random_rectangle((64, 64), 0.5, draw(0, f"{row['id']}\x1f0", "missing_region", "dsm"))
        mask = torch.ones(1, 2, 64, 64, dtype=torch.bool)
        mask[0, 1] = ~region
        with torch.no_grad():
            clean, corrupted = model(pixel_values=values), model(pixel_values=values, modality_mask=mask)
        (predicted,) = processor.post_process_semantic_segmentation(corrupted)
        labels = inputs["labels"][0]
        right = (predicted == labels) & (labels != 255)
        hits, pixels = hits + right.sum().item(), pixels + (labels != 255).sum().item()
        hits_inside += (right & region).sum().item()
        clean_cells.append(clean.robustness[0][0, 1])
        corrupted_cells.append(corrupted.robustness[0][0, 1])
    assert entry["corrupted"]["accuracy"] == hits / pixels and entry["corrupted"]["pixels"] == pixels
    inside = entry["inside"]["corrupted"]
    assert inside["accuracy"] * inside["pixels"] == pytest.approx(hits_inside)
    robustness = entry["robustness"]
    assert robustness["clean"]["stages"][0] == pytest.approx(torch.stack(clean_cells).mean().item())
    assert robustness["corrupted"]["stages"][0] == pytest.approx(torch.stack(corrupted_cells).mean().item())
    # the mask takes the region out, and cells that lie in it for more than half follow
    assert robustness["drop_auc"]["stages"][0] > 0.8 and robustness["detection_auc"]["stages"][0] > 0.8
    assert robustness["inside_corrupted"]["stages"][0] < robustness["inside_clean"]["stages"][0] / 2
    assert robustness["cells"] == [3 * 256, 3 * 64, 3 * 16, 3 * 4]
    assert robustness["clean"]["mean"] == pytest.approx(np.mean(robustness["clean"]["stages"]))
    agreement = entry["agreement"]  # in cells that the mask left, 16 x 16 of 3 rows when clean
    assert 0 < agreement["cells"] < 3 * 256 and 0 < agreement["clean"] <= 1


def test_agreement_is_of_the_corrupted_modality_with_clean_others(model, processor, rows):
    found = evaluate_corruptions(model, processor, rows[:1], window_size=None, corruptions=[Corruption("noise", 2.0)])
    inputs = processor(images=[{name: rows[0][name] for name in MODALITIES}], return_tensors="pt")
    values = inputs["pixel_values"].double()
    clean = modality_agreement(model.eval(), model.encode(values))[0]
    for index, name in enumerate(MODALITIES):
        entry = found["corruptions"]["noise_2"][name]["agreement"]
        assert entry["cells"] == 256 and entry["clean"] == pytest.approx(clean[index].mean().item(), abs=1e-6)
        assert entry["corrupted"] != pytest.approx(entry["clean"], abs=1e-4) and "drop_auc" not in entry
        drop = round(2000 * entry["clean"]) - round(2000 * entry["corrupted"])  # values of one bin are ties
        assert entry["window_auc"] == (1.0 if drop > 0 else 0.5 if drop == 0 else 0.0)  # of one window
    assert found["corruptions"]["noise_2"].get(ALL_MODALITIES) is None


def test_swapping_takes_the_modality_from_another_row(model, processor):
    first, second = _row("a", seed=0), _row("b", seed=1)
    swapped = [first | {"dsm": second["dsm"]}, second | {"dsm": first["dsm"]}]  # two rows: one derangement
    corruptions = [Corruption("swapped", 1)]
    found = evaluate_corruptions(model, processor, [first, second], window_size=32, corruptions=corruptions)
    expected = evaluate_modality_combinations(model, processor, swapped, window_size=32)
    entry = found["corruptions"]["swapped_1"]["dsm"]
    assert entry["corrupted"]["iou"] == expected["combinations"]["rgb+dsm"]["iou"]
    assert entry["windows"] == 8 and entry["robustness"]["cells"] == [512, 128, 32, 8]
    # one swapped with itself says nothing about swapping
    alone = evaluate_corruptions(
        model, processor, [first, _row("c", seed=2, size=(32, 64))], window_size=32, corruptions=corruptions
    )
    entry = alone["corruptions"]["swapped_1"]["dsm"]
    assert entry["windows"] == 0 and entry["corrupted"]["miou"] is None and entry["better_than_without"] is None
    assert entry["robustness"]["detection_auc"] == {"stages": [None] * 4, "mean": None}


def test_better_than_without_is_the_comparison_of_the_two_means(model, processor, rows):
    found = evaluate_corruptions(model, processor, rows, window_size=None, corruptions=[Corruption("noise", 0.5)])
    for entry in found["corruptions"]["noise_0.5"].values():
        assert entry["better_than_without"] is (entry["corrupted"]["miou"] > entry["without"]["miou"])


@pytest.mark.parametrize("fusion", ["mean", "projector_mean", "early"])
def test_models_without_robustness_get_none_for_it(processor, rows, fusion):
    if fusion == "early":
        config = FullPassConfig(**_model(fusion="mean", mas_loss_weight=0.0).config.to_diff_dict() | {"arm": "early"})
        model = FullPassForSemanticSegmentation(config).double().train()
    else:
        model = _model(fusion=fusion).train()
    found = evaluate_corruptions(
        model, processor, rows[:1], window_size=None, corruptions=[Corruption("noise_region", 2.0)]
    )
    for entry in found["corruptions"]["noise_region_2"].values():
        assert entry["robustness"] is None and entry["corrupted"]["miou"] is not None
        assert entry["inside"]["corrupted"]["pixels"] < entry["corrupted"]["pixels"]
    assert model.training


def test_incomplete_rows_and_windows_are_left_out_and_gaps_are_not_scored(model, processor, rows):
    hole = _row("hole", seed=5)
    hole["dsm"][:, 32:] = -9999  # two of its four windows have no height
    half = _row("half", seed=6)
    half["dsm"][:, 16:] = -9999
    incomplete = [_row("no dsm", seed=7, dsm=None), _row("no label", seed=8, label=None), hole, half]
    found = evaluate_corruptions(
        model, processor, [*incomplete, rows[0]], window_size=32, corruptions=[Corruption("noise", 1.0)]
    )
    assert found["rows_incomplete"] == 1 and found["rows_without_label"] == 1
    assert found["windows_incomplete"] == 4 and found["windows"] == 8
    labelled = (rows[0]["label"] != 255).sum() + sum((row["label"][:, :32] != 255).sum() for row in (hole, half))
    covered = labelled - (half["label"][:, 16:32] != 255).sum()
    entries = found["corruptions"]["noise_1"]
    assert found["clean"]["pixels"] == entries["dsm"]["corrupted"]["pixels"] == labelled
    # without colours nothing is predicted where the height ends, so none of the three counts there
    assert [entries["rgb"][name]["pixels"] for name in ("clean", "without", "corrupted")] == [covered] * 3
    # robustness only where there are two to choose from: 6 windows in full, 2 in their left half
    assert entries["dsm"]["robustness"]["cells"][0] == 6 * 64 + 2 * 32


def test_wrong_options_are_refused(model, processor, rows):
    with pytest.raises(ValueError, match=r"Corruption 'fog' is unknown; expected one of \['missing_region'"):
        Corruption("fog", 1.0)
    with pytest.raises(ValueError, match=r"has level 1\.5; expected above 0, shares at most 1"):
        Corruption("missing_region", 1.5)
    with pytest.raises(ValueError, match="'swapped' is not defined for all modalities at once"):
        Corruption("swapped", 1, jointly=True)
    with pytest.raises(ValueError, match="`batch_size` is 0"):
        evaluate_corruptions(model, processor, rows, window_size=None, batch_size=0)
    with pytest.raises(ValueError, match="`dataset` has no rows"):
        evaluate_corruptions(model, processor, [], window_size=None)
    with pytest.raises(ValueError, match="None of the 1 rows can be corrupted: 0 have no label, 1 lack a modality"):
        evaluate_corruptions(model, processor, [_row("a", seed=0, rgb=None)], window_size=None)
