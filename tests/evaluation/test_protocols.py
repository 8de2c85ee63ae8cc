"""EMM, RMM and NM against a loop of its own: one window, one combination, one value at a time."""

import itertools
import json
import math

import numpy as np
import pytest
import torch
from comparison_fixtures import BACKBONE

from sgma_hf.evaluation.corruptions import draw
from sgma_hf.evaluation.protocols import add_noise, bernoulli_expectation, check_protocols, evaluate_protocols
from sgma_hf.model.configuration_sgma import SgmaConfig
from sgma_hf.model.image_processing_sgma import SgmaImageProcessor
from sgma_hf.model.modeling_sgma import SgmaForSemanticSegmentation
from sgma_hf.publishing.results import results_to_markdown


CHANNELS = {"rgb": 3, "dsm": 1, "event": 2}
DENSITIES = {"low": (0.05, 0.1), "mid": (0.1, 0.2), "high": (0.2, 0.5)}


def _pair(names):
    torch.manual_seed(0)
    channels = [CHANNELS[name] for name in names]
    config = SgmaConfig(
        modalities=list(names),
        modality_channels=channels,
        num_labels=3,
        backbone_config=BACKBONE,
        decoder_hidden_size=16,
        num_attention_heads=2,
    )
    processor = SgmaImageProcessor(
        modalities=list(names),
        modality_channels=channels,
        rescale_factor=[1.0] * len(names),
        image_mean=[[0.0] * count for count in channels],
        image_std=[[1.0] * count for count in channels],
        nodata=[[]] * len(names),
        reference_level=["none"] * len(names),
    )
    # in double precision no two classes are as likely, so that batches of other sizes give the same classes
    return SgmaForSemanticSegmentation(config).double().eval(), processor


def _row(name, names, *, seed, size=(32, 40), without=(), gap=None):
    generator = np.random.default_rng(seed)
    row = {"id": name, "label": generator.integers(0, 3, size).astype(np.uint8)}
    row["label"][:2] = 255
    for modality in names:
        row[modality] = generator.normal(size=(*size, CHANNELS[modality])).astype(np.float32)
    if gap is not None:
        row[gap][:, 30:] = np.nan
    return row | dict.fromkeys(without)


def _rows(names):
    return [
        _row("complete", names, seed=0),
        _row("ends inside", names, seed=1, gap="dsm"),
        _row("without", names, seed=2, without=["dsm"]),
    ]


def _naive_miou(model, row_inputs, damage, missing):
    """Mean IoU over the rows, whose inputs `damage(name, values, covered, key)` changes, modality by modality."""
    counts = np.zeros((3, 3), dtype=np.int64)
    for key, values, covered, labels in row_inputs:
        parts, masks = [], []
        channels = [CHANNELS[name] for name in model.config.modalities]
        for name, part, mask in zip(model.config.modalities, values.split(channels), covered, strict=True):
            part, mask = damage(name, part.clone(), mask.clone(), key)
            part[:, ~mask] = 0
            parts.append(part)
            masks.append(mask)
        inputs = {"pixel_values": torch.cat(parts)[None].double()}
        if missing == "absent":
            inputs["modality_mask"] = torch.stack(masks)[None]
        with torch.no_grad():
            logits = model(**inputs).logits
        logits = torch.nn.functional.interpolate(logits, scale_factor=4, mode="bilinear", align_corners=False)
        predicted = logits[0, :, : labels.shape[0], : labels.shape[1]].argmax(0)
        for y, x in itertools.product(*map(range, labels.shape)):
            if labels[y, x] != 255 and covered[:, y, x].any():
                counts[labels[y, x], predicted[y, x]] += 1
    ious = []
    for k in range(3):
        union = counts[k].sum() + counts[:, k].sum() - counts[k, k]
        if union:
            ious.append(counts[k, k] / union)
    return sum(ious) / len(ious)


def _inputs(processor, rows, names):
    """Id, values, covered pixels and labels of each row."""
    for row in rows:
        images = {name: row[name] for name in names}
        inputs = processor(images=[images], segmentation_maps=[row["label"]], return_tensors="pt")
        mask = inputs["modality_mask"][0]
        mask = mask if mask.ndim == 3 else mask[:, None, None].expand(-1, *row["label"].shape)
        yield row["id"], inputs["pixel_values"][0], mask, inputs["labels"][0]


def _remove(share, intact, missing, seed):
    def damage(name, values, covered, key):
        if name in intact:
            return values, covered
        generator = draw(seed, key, "0,0", "rmm", name)
        numbers = torch.rand(values.shape if missing == "zero" else covered.shape, generator=generator)
        for place in itertools.product(*map(range, numbers.shape)):
            if numbers[place] < share:
                (values if missing == "zero" else covered)[place] = 0
        return values, covered

    return damage


def _add_noise(level, seed):
    density, deviation = DENSITIES[level]

    def damage(name, values, covered, key):
        if not covered.any():
            return values, covered
        generator = draw(seed, key, "0,0", "nm", name)
        highest, lowest = values[:, covered].max().item(), values[:, covered].min().item()
        flat = values.flatten()
        for extreme in (highest, lowest):
            for place in torch.randint(flat.numel(), (math.ceil(density * flat.numel() / 2),), generator=generator):
                flat[place] = extreme
        noise = torch.randn(values.shape, generator=generator)
        return flat.view(values.shape) + (0 if name == "event" else deviation) * noise, covered

    return damage


def _expected(miou, names, absence):
    """By the outcomes of independent draws, one per modality, given that not all are damaged."""
    total = weight = 0.0
    for damaged in itertools.product([False, True], repeat=len(names)):
        if all(damaged):
            continue
        probability = math.prod(absence if is_damaged else 1 - absence for is_damaged in damaged)
        intact = "+".join(name for name, is_damaged in zip(names, damaged, strict=True) if not is_damaged)
        total, weight = total + probability * miou[intact], weight + probability
    return total / weight


@pytest.mark.parametrize("missing", ["absent", "zero"])
@pytest.mark.parametrize("names", [("rgb", "dsm", "event"), ("rgb", "dsm")])
def test_protocols_equal_a_loop_of_their_own(names, missing):
    model, processor = _pair(names)
    rows = _rows(names)
    found = evaluate_protocols(model, processor, rows, seed=7, missing=missing, batch_size=2)
    inputs = list(_inputs(processor, rows, names))
    subsets = ["+".join(part) for size in range(1, len(names) + 1) for part in itertools.combinations(names, size)]
    assert list(found["combinations"]) == subsets

    emm = {name: scores["miou"] for name, scores in found["combinations"].items()}
    assert found["protocols"]["emm"]["average_miou"] == pytest.approx(sum(emm.values()) / len(emm), abs=1e-12)
    for p, value in found["protocols"]["emm"]["expected_miou"].items():
        assert value == pytest.approx(_expected(emm, names, float(p)), abs=1e-12)
    assert list(found["protocols"]["rmm"]) == ["0.25", "0.5", "0.75"]
    for share, figures in found["protocols"]["rmm"].items():
        miou = {
            name: _naive_miou(model, inputs, _remove(float(share), name.split("+"), missing, 7), missing)
            for name in subsets
        }
        assert {name: scores["miou"] for name, scores in figures["combinations"].items()} == pytest.approx(miou)
        assert figures["average_miou"] == pytest.approx(sum(miou.values()) / len(miou), abs=1e-12)
        for p in (0.2, 0.1, 0.05):
            assert figures["expected_miou"][f"{p:g}"] == pytest.approx(_expected(miou, names, p), abs=1e-12)
    for level, scores in found["protocols"]["nm"].items():
        assert scores["miou"] == pytest.approx(_naive_miou(model, inputs, _add_noise(level, 7), missing), abs=1e-12)
    assert list(found["protocols"]["nm"]) == ["low", "mid", "high"]


def test_draws_depend_on_seed_and_row_and_not_on_batches():
    names = ("rgb", "dsm")
    model, processor = _pair(names)
    rows = _rows(names)
    first = evaluate_protocols(model, processor, rows, ["rmm", "nm"], seed=1, batch_size=1)["protocols"]
    assert "emm" not in first
    again = evaluate_protocols(model, processor, rows[::-1], ["rmm", "nm"], seed=1, batch_size=3)["protocols"]
    assert json.loads(json.dumps(again)) == first
    other = evaluate_protocols(model, processor, rows, ["nm"], seed=2)["protocols"]
    assert other["nm"] != first["nm"] and "rmm" not in other


def test_shares_and_deviations_are_those_that_were_asked_for():
    values = torch.linspace(0, 1, 3 * 100 * 100).view(3, 100, 100)
    covered = torch.ones(100, 100, dtype=torch.bool)
    noisy = add_noise(values, covered, 0.2, 0.0, torch.Generator().manual_seed(0))
    changed = noisy != values
    # places are drawn with replacement, and pepper falls on some salt
    assert (noisy[changed] == 1).double().mean() == pytest.approx(0.475, abs=0.02)
    assert changed.double().mean() == pytest.approx(1 - math.exp(-0.2), abs=0.01)
    assert changed.any(0).double().mean() == pytest.approx(1 - math.exp(-0.6), abs=0.01)  # values, not pixels
    noise = add_noise(values, covered, 0.0, 0.5, torch.Generator().manual_seed(0)) - values
    assert noise.std().item() == pytest.approx(0.5, abs=0.01)


def test_extremes_are_those_of_what_is_covered():
    values = torch.zeros(1, 8, 8)
    values[0, :4] = torch.linspace(2, 3, 32).view(4, 8)
    covered = torch.zeros(8, 8, dtype=torch.bool)
    covered[:4] = True
    noisy = add_noise(values, covered, 1.0, 0.0, torch.Generator().manual_seed(0))
    assert set(noisy[noisy != values].tolist()) == {2.0, 3.0}


def test_bernoulli_expectation_is_that_of_the_combinations():
    scores = {"a": 0.5, "b": 0.2, "a+b": 0.8}
    # p = 1/2: all three alike. p = 1/5: 0.16, 0.16 and 0.64 of 0.96
    assert bernoulli_expectation(scores, ["a", "b"], 0.5) == pytest.approx(0.5)
    assert bernoulli_expectation(scores, ["a", "b"], 0.2) == pytest.approx((0.16 * 0.5 + 0.16 * 0.2 + 0.512) / 0.96)
    assert bernoulli_expectation(scores, ["a", "b"], 0.0) == pytest.approx(0.8)
    assert bernoulli_expectation(scores | {"b": None}, ["a", "b"], 0.2) is None


def test_a_modality_that_no_row_has_has_no_expectation():
    names = ("rgb", "dsm")
    model, processor = _pair(names)
    rows = [_row("a", names, seed=0, without=["dsm"])]
    found = evaluate_protocols(model, processor, rows, ["emm", "rmm"])
    for figures in (found["protocols"]["emm"], *found["protocols"]["rmm"].values()):
        assert set(figures["expected_miou"].values()) == {None} and figures["average_miou"] is not None
    assert found["protocols"]["rmm"]["0.5"]["combinations"]["dsm"]["miou"] is None


def test_the_table_has_a_line_for_each_protocol_and_level():
    names = ("rgb", "dsm")
    model, processor = _pair(names)
    results = evaluate_protocols(model, processor, _rows(names))
    lines = results_to_markdown(results).splitlines()
    first = lines.index("| mIoU under | mean | expected, p = 0.2 | expected, p = 0.1 | expected, p = 0.05 |")
    starts = [line.split(" | ")[0] for line in lines[first + 2 : first + 9]]
    assert starts == ["| EMM", *(f"| RMM, r = {r}" for r in (0.25, 0.5, 0.75)), "| NM, low", "| NM, mid", "| NM, high"]
    high = results["protocols"]["nm"]["high"]["miou"]
    assert lines[first + 8] == f"| NM, high | {100 * high:.2f} | – | – | – |"
    assert results_to_markdown(json.loads(json.dumps(results))) == results_to_markdown(results)


def test_series_and_no_rows_are_refused_before_anything_is_scored(monkeypatch):
    model, processor = _pair(("rgb", "dsm"))
    monkeypatch.setattr(model, "encode", None)
    series = {"id": "a", "label": np.zeros((8, 8), np.uint8), "rgb": [np.ones((8, 8, 3))] * 2, "dsm": None}
    with pytest.raises(ValueError, match=r"Damaging inputs is for rows of one date; a row here has up to 2 of 'rgb'"):
        evaluate_protocols(model, processor, [series], ["emm", "rmm"])
    with pytest.raises(ValueError, match=r"`dataset` has no rows"):
        evaluate_protocols(model, processor, [], ["nm"])


def test_a_protocol_with_a_typo_is_one_line(capsys):
    from sgma_hf.commands.evaluate import main

    with pytest.raises(ValueError, match="Protocol 'enm' is none of emm, rmm, nm; did you mean"):
        check_protocols(["emm", "enm"])
    with pytest.raises(SystemExit) as stopped:
        main("--model a --dataset b --split test --output c.json --protocol emm rrm".split())
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and error.count("\n") == 1
    assert "'rrm' is none of emm, rmm, nm; did you mean rmm?" in error
