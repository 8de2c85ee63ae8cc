"""Rows with many dates in training: which dates are kept, what moves together, and which rows share a step."""

import numpy as np
import pytest
import torch
from tiny_trainers import TINY_BACKBONE

from sgma_hf import (
    SgmaConfig,
    SgmaDataCollator,
    SgmaForSemanticSegmentation,
    SgmaImageProcessor,
    SgmaTrainer,
    SgmaTrainingArguments,
    evaluate_modality_combinations,
)
from sgma_hf.data.codec import encode_raster
from sgma_hf.model.inputs_sgma import host_mask_of
from sgma_hf.training.collator import draw_row
from sgma_hf.training.row_sampling import ROW_KEY, ModalityAwareSampler, RowKey, alike_together
from sgma_hf.training.sharding import UnusedParameters


PERIODS = [365.25, 91.3]


@pytest.fixture
def processor():
    """Leaves values as they are: mean 0, standard deviation 1."""
    plain = {"rescale_factor": 1.0, "image_mean": [0.0, 0.0], "image_std": [1.0, 1.0], "reference_level": "none"}
    return SgmaImageProcessor(["s2", "dsm"], [2, 1], nodata=[[-1.0], [-1.0]], **plain)


def make_row(index, dates=8, size=8, epoch=0, **columns):
    """Date t of the series holds 1000 t + ramp, so that it is seen which are kept, cut and turned how."""
    ramp = np.arange(size * size, dtype=np.float32).reshape(size, size)
    row = {
        "id": f"row{index}",
        "s2": [np.stack([ramp + 1000 * date] * 2, -1) for date in range(dates)],
        "s2_dates": [7000.0 + 10 * date for date in range(dates)],
        "dsm": ramp,
        "label": (ramp % 200).astype(np.uint8),
    }
    return row | columns | {ROW_KEY: RowKey(epoch, index)}


def kept(batch, row=0):
    """Which dates of `make_row` a batch has, in order."""
    there = (
        batch["modality_mask"][row].flatten(2).any(2)
        if batch["modality_mask"].ndim == 5
        else batch["modality_mask"][row]
    )
    return (batch["pixel_values"][row, there[:, 0], 0].amin((1, 2)) // 1000).int().tolist()


def test_all_dates_and_the_label_are_cropped_and_turned_together(processor):
    batch = SgmaDataCollator(processor, crop_size=5, seed=3, date_keep=[1.0])([make_row(index) for index in range(4)])
    assert batch["pixel_values"].shape == (4, 8, 3, 5, 5) and batch["dates"].shape == (4, 8, 2)
    labels = batch["labels"].float()
    for date in range(8):
        for channel in range(2):
            assert torch.equal(batch["pixel_values"][:, date, channel], labels + 1000 * date)
    assert torch.equal(batch["pixel_values"][:, 0, 2], labels)
    assert len({tuple(row.flatten().tolist()) for row in labels}) == 4
    assert torch.equal(batch["dates"][:, :, 0], 7000 + 10 * torch.arange(8.0).expand(4, 8))


def test_a_mask_is_turned_with_its_date(processor):
    row = make_row(5)
    row["s2"][3][:2, :, 0] = -1
    batch = SgmaDataCollator(processor, date_keep=[1.0], seed=1)([row])
    hidden = batch["labels"][0] < 16
    expected = torch.ones(8, 8, 8, dtype=torch.bool)
    expected[3] = ~hidden
    assert torch.equal(batch["modality_mask"][0, :, 0], expected) and not batch["pixel_values"][0, 3, 0][hidden].any()


def test_a_share_of_the_dates_is_drawn_for_each_row_and_their_order_stays(processor):
    collator = SgmaDataCollator(processor, date_keep=[1.0, 0.5, 0.25], seed=0)
    found = [kept(collator([make_row(index)])) for index in range(60)]
    assert all(dates == sorted(set(dates)) for dates in found)
    counts = np.bincount([len(dates) for dates in found], minlength=9)
    assert counts[[8, 4, 2]].sum() == 60 and counts[[8, 4, 2]].min() > 10
    assert {date for dates in found if len(dates) == 2 for date in dates} == set(range(8))
    assert [kept(collator([make_row(index)])) for index in range(60)] == found
    assert [kept(collator([make_row(index, epoch=1)])) for index in range(60)] != found


def test_dates_are_dropped_one_by_one_but_never_the_last(processor):
    collator = SgmaDataCollator(processor, date_keep=[1.0], date_dropout=0.9, seed=0)
    counts = np.array([len(kept(collator([make_row(index)]))) for index in range(100)])
    assert counts.min() == 1 and counts.mean() == pytest.approx(8 * 0.1 + 0.9**8, abs=0.25)
    fewer = SgmaDataCollator(processor, date_keep=[1.0], max_dates=3, seed=0)
    found = [kept(fewer([make_row(index)])) for index in range(40)]
    assert {len(dates) for dates in found} == {3} and {date for dates in found for date in dates} == set(range(8))
    assert len(kept(fewer([make_row(0, dates=2)]))) == 2


def test_a_series_beside_a_longer_one_has_the_noise_that_it_has_alone(processor):
    options = {"noise_std": [0.1, 0.2], "gain_range": 0.2, "augment": ["s2=gain"], "date_keep": [1.0]}
    collator = SgmaDataCollator(processor, **options, seed=0)
    short, long = make_row(0, dates=2), make_row(1, dates=5)
    alone, together = collator([short]), collator([short, long])
    assert together["pixel_values"].shape[1] == 5
    assert torch.equal(together["pixel_values"][0, :2], alone["pixel_values"][0])
    assert not together["modality_mask"][0, 2:].any()


def test_the_calendar_of_a_row_is_shifted_as_one(processor):
    collator = SgmaDataCollator(processor, date_jitter=30.0, date_keep=[1.0], seed=0)
    row = make_row(0, dsm=[np.zeros((8, 8))] * 2, dsm_dates=[7000.0, None])
    shifts = []
    for index in range(50):
        dates = collator([row | {ROW_KEY: RowKey(0, index)}])["dates"][0]
        shift = dates[:, 0] - 7000 - 10 * torch.arange(8.0)
        torch.testing.assert_close(shift, shift[:1].expand(8), rtol=0, atol=1e-2)
        assert abs(dates[0, 1] - 7000 - shift[0]) < 1e-2 and dates[1:, 1].isnan().all()
        single = row | {"dsm": np.zeros((8, 8)), "dsm_dates": "2019-03-02", ROW_KEY: RowKey(0, index)}
        assert collator([single])["dates"][0, 0, 1] == dates[0, 1]
        shifts.append(float(shift[0]))
    assert -30 <= min(shifts) < -20 and 20 < max(shifts) <= 30


def test_only_the_dates_that_are_kept_are_decoded(processor):
    row = make_row(0)
    cells = [encode_raster(image) for image in row["s2"]]
    collator = SgmaDataCollator(processor, date_keep=[0.25], seed=0)
    left = kept(collator([row]))
    broken = [cell if date in left else b"broken" for date, cell in enumerate(cells)]
    assert kept(collator([row | {"s2": broken}])) == left
    with pytest.raises(ValueError, match="Row 'row0', column 's2': Cannot decode"):
        SgmaDataCollator(processor, date_keep=[1.0])([row | {"s2": broken}])


def test_draws_of_static_rows_are_those_of_ever(processor):
    """The numbers of a row before there were dates; new draws came last."""
    draw = draw_row(1, RowKey(2, 3), 2)
    generator = np.random.default_rng([1, 2, 3, 0])
    np.testing.assert_array_equal(draw.crop, generator.random(2))
    np.testing.assert_array_equal(draw.flips, generator.random(2) < 0.5)
    generator.integers(4), generator.random(2), generator.random(), generator.random(dtype=np.float32)
    generator.uniform(-1, 1, 2), generator.integers(2**63), generator.random(2), generator.integers(2**63)
    assert draw.scale == generator.uniform(-1, 1)
    options = {"noise_std": 0.1, "gain_range": 0.2, "modality_dropout": 0.5, "augment": ["s2=gain", "dsm=shift"]}
    row = make_row(0, s2=make_row(0)["s2"][1])
    row.pop("s2_dates")
    plain = SgmaDataCollator(processor, **options)([row])
    dated = SgmaDataCollator(processor, **options, date_dropout=0.5, max_dates=1, date_jitter=9.0)([row])
    assert plain.keys() == dated.keys() == {"pixel_values", "modality_mask", "labels", "sampling_noise"}
    assert all(torch.equal(plain[name], dated[name]) for name in plain)
    one = SgmaDataCollator(processor, **options)([row | {"s2": [row["s2"]]}])
    assert all(torch.equal(one[name][:, 0], plain[name]) for name in ("pixel_values", "modality_mask"))


def test_a_whole_series_is_dropped_and_what_is_there_stays(processor):
    collator = SgmaDataCollator(processor, modality_dropout=0.5, date_keep=[1.0], seed=0)
    seen = set()
    for index in range(40):
        there = collator([make_row(index)])["modality_mask"][0]
        assert there[:, 0].all() or not there[:, 0].any()
        seen.add((bool(there[0, 0]), bool(there[0, 1])))
    assert seen == {(True, True), (True, False), (False, True)}


def test_a_series_is_shifted_as_one_and_gains_are_of_each_date(processor):
    row = make_row(0, dates=3, size=16)
    still = {"random_flip": False, "random_quarter_turns": False, "date_keep": [1.0], "seed": 2}
    moved = SgmaDataCollator(processor, augment=["s2=shift:3"], **still)([row])
    there = moved["modality_mask"][0, :, 0]
    assert torch.equal(there[0], there[1]) and torch.equal(there[0], there[2]) and 0 < (~there[0]).sum() < 16 * 6
    assert torch.equal(
        (moved["pixel_values"][0, 1] - moved["pixel_values"][0, 0])[0][there[0]],
        torch.full((int(there[0].sum()),), 1000.0),
    )
    gained = SgmaDataCollator(processor, augment=["s2=gain:0.2"], **still)([row])["pixel_values"][0, :, 0]
    plain = SgmaDataCollator(processor, **still)([row])["pixel_values"][0, :, 0]
    ratios = (gained / plain)[:, 1:].flatten(1)
    torch.testing.assert_close(ratios, ratios[:, :1].expand_as(ratios), rtol=1e-5, atol=0)
    assert len({round(float(ratio), 4) for ratio in ratios[:, 0]}) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"date_dropout": 1.0}, "`date_dropout` is 1.0; expected a probability of at least 0, below 1"),
        ({"date_keep": []}, r"`date_keep` is \[\]; expected shares above 0, at most 1"),
        ({"date_keep": [0.0, 1.0]}, "`date_keep` is"),
        ({"max_dates": 0}, "`max_dates` is 0; expected at least 1"),
        ({"date_jitter": -1.0}, "`date_jitter` is -1.0; expected days, at least 0"),
    ],
)
def test_options_out_of_range_are_refused(processor, options, message):
    with pytest.raises(ValueError, match=message):
        SgmaDataCollator(processor, **options)


def test_rows_of_about_one_length_share_a_step_and_every_row_comes_once():
    lengths = np.random.default_rng(0).integers(1, 60, 1003).tolist()
    plain = list(ModalityAwareSampler(1003, 0))
    sampler = ModalityAwareSampler(1003, 0, lengths=lambda key: lengths[key.index], step_rows=8)
    keys = list(sampler)
    assert sorted(keys) == sorted(plain) and keys != plain and list(sampler) == keys

    def padded(keys):
        steps = [[lengths[key.index] for key in keys[start : start + 8]] for start in range(0, len(keys), 8)]
        return sum(len(step) * max(step) - sum(step) for step in steps) / sum(lengths)

    assert padded(keys) < 0.1 < 0.5 < padded(plain)
    assert [key.index for key in alike_together([RowKey(0, 0)] * 3, [3, 1, 2], 8, np.random.default_rng(0))] == [0] * 3
    sampler.set_epoch(1)
    assert [key.index for key in sampler] != [key.index for key in keys]


def test_the_length_that_rows_are_grouped_by_is_that_of_their_batch(processor):
    collator = SgmaDataCollator(processor, date_dropout=0.3, max_dates=5, seed=4)
    for index in range(20):
        row = make_row(index)
        assert collator.longest_series(row[ROW_KEY], [8, 1]) == len(kept(collator([row])))


def series_rows(count=8, size=32, seed=0):
    """Rows whose label says which of two dates was brighter; series of 2 to 5 dates, one row without any."""
    generator = np.random.default_rng(seed)
    rows = []
    for index in range(count):
        label = np.kron(generator.integers(0, 2, (2, 2)), np.ones((size // 2, size // 2))).astype(np.uint8)
        dates = 2 + index % 4
        s2 = [generator.normal(label * date, 1.0, (size, size)).astype(np.float32)[..., None] for date in range(dates)]
        s2[0][: size // 4] = np.nan
        row = {"id": f"row{index}", "s2": s2, "s2_dates": [6940.0 + 30 * date for date in range(dates)]}
        rows.append(row | {"dsm": label.astype(np.float32), "label": label})
    rows[-1] |= {"s2": None, "s2_dates": None}
    return rows


def make_trainer(folder, rows, periods=None, **changes):
    torch.manual_seed(0)
    names = ["s2", "dsm"]
    config = SgmaConfig(
        modalities=names,
        modality_channels=[1, 1],
        num_labels=2,
        backbone_config=TINY_BACKBONE,
        decoder_hidden_size=16,
        date_periods=periods,
    )
    arguments = {"max_steps": 2, "per_device_train_batch_size": 3, "learning_rate": 1e-3, "save_strategy": "no"}
    arguments |= {"use_cpu": True, "disable_tqdm": True, "report_to": []} | changes
    return SgmaTrainer(
        SgmaForSemanticSegmentation(config),
        SgmaTrainingArguments(str(folder), **arguments),
        processing_class=SgmaImageProcessor.fit(rows, names, [1, 1]),
        train_dataset=rows,
        eval_dataset=rows,
    )


@pytest.mark.parametrize("periods", [PERIODS, None])
def test_series_are_trained_on_and_evaluated(tmp_path, periods):
    """With dates and, as a set, without; the weights of the dates learn."""
    trainer = make_trainer(tmp_path, series_rows(), periods, eval_strategy="no")
    before = {name: value.clone() for name, value in trainer.model.named_parameters()}
    assert np.isfinite(trainer.train().training_loss)
    moved = [name for name, value in trainer.model.named_parameters() if not torch.equal(value, before[name])]
    assert any("date" in name for name in moved) == (periods is not None)
    scores = trainer.evaluate()
    assert {"eval_miou/s2", "eval_miou/dsm", "eval_miou/s2+dsm"} <= set(scores)
    separation = trainer.dynamics.evaluations[-1]
    assert "s2" in str(separation)


def test_what_is_predicted_of_a_row_does_not_depend_on_its_batch(tmp_path):
    rows = series_rows()
    trainer = make_trainer(tmp_path, rows, PERIODS)
    results = [
        evaluate_modality_combinations(trainer.model, trainer.processing_class, rows, batch_size=size)
        for size in (1, 4)
    ]
    assert results[0]["combinations"] == results[1]["combinations"]
    assert results[0]["rows_per_modality"] == {"s2": 7, "dsm": 8}


@pytest.mark.parametrize(
    "options", [{"window_size": 16}, {"window_size": 16, "stride": 8}, {"tta": "d4"}, {"missing": "zero"}]
)
def test_series_are_evaluated_in_every_way(tmp_path, options):
    rows = series_rows(4)
    trainer = make_trainer(tmp_path, rows, PERIODS)
    results = evaluate_modality_combinations(trainer.model, trainer.processing_class, rows, **options)
    assert results["combinations"]["s2+dsm"]["pixels"] == 4 * 32 * 32


@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 8, 8), (2, 4, 3), (2, 4, 3, 8, 8)])
def test_a_batch_of_nothing_is_shown_one_image_that_the_host_knows_of(shape):
    """Where parameters are sharded, the encoder is called on every process: of a series, too, by one date."""
    mask = torch.zeros(shape, dtype=torch.bool)
    inputs = {"modality_mask": mask, "host_mask": host_mask_of(mask), "labels": torch.zeros(2, 8, 8)}
    UnusedParameters.__new__(UnusedParameters).add_pair(inputs, 255)
    assert inputs["host_mask"] == host_mask_of(inputs["modality_mask"]) and sum(map(sum, inputs["host_mask"])) == 1
    assert not mask.any() and (inputs["labels"] == 255).all()


def test_rows_that_make_no_sense_are_named(processor, tmp_path):
    collator = SgmaDataCollator(processor)
    for columns, message in (
        ({"s2_dates": [1.0]}, "Row 'row0': 's2_dates' has 1 dates for 8 rasters"),
        ({"s2_dates": ["some day"] * 8}, "Row 'row0': 's2_dates': 'some day' is no date"),
        ({"s2": None}, "Row 'row0': 's2_dates' has 8 dates for 0 rasters"),
        ({"s2": [], "s2_dates": [], "dsm": None}, r"Row 'row0' has none of the modalities \['s2', 'dsm'\]"),
    ):
        with pytest.raises(ValueError, match=message):
            collator([make_row(0, **columns)])
    rows = series_rows()
    rows[2] |= {"s2": [], "s2_dates": None, "dsm": None}
    with pytest.raises(ValueError, match=r"1 of 8 training rows have none of the modalities .*'row2'"):
        make_trainer(tmp_path, rows)


def test_a_resumed_run_draws_the_same_dates_in_the_same_order(tmp_path):
    options = {"max_steps": 5, "save_strategy": "steps", "save_steps": 2, "eval_strategy": "no", "date_jitter": 20.0}
    whole = make_trainer(tmp_path, series_rows(), PERIODS, **options)
    whole.train()
    resumed = make_trainer(tmp_path, series_rows(), PERIODS, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    expected = whole.model.state_dict()
    assert all(torch.equal(values, expected[name]) for name, values in resumed.model.state_dict().items())
