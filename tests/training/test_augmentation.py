from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_trainers import make_trainer, state_of

from sgma_hf import SgmaDataCollator, SgmaImageProcessor
from sgma_hf.training import collator
from sgma_hf.training.augmentation import Augmentation, balanced_window, for_units, shifted
from sgma_hf.training.row_sampling import ROW_KEY, RowKey


PROCESSOR = SgmaImageProcessor(
    ["rgb", "sar"],
    [3, 2],
    rescale_factor=[1 / 255, 0.5],
    image_mean=[[0.4, 0.5, 0.6], [-10.0, -15.0]],
    image_std=[[0.2, 0.25, 0.3], [5.0, 6.0]],
    nodata=[[], [-9999.0]],
    num_labels=3,
)


def changed(text, raw, seed=0, mask=None):
    """Augment rasters in their own units, (channels, height, width) by name; back in those units, in float64."""
    factors = np.repeat(PROCESSOR.rescale_factor, [3, 2])[:, None, None]
    mean, std = (np.concatenate(field)[:, None, None] for field in (PROCESSOR.image_mean, PROCESSOR.image_std))
    values = ((np.concatenate([raw["rgb"], raw["sar"]]) * factors - mean) / std).astype(np.float32)
    mask = np.ones(2, dtype=bool) if mask is None else mask
    Augmentation([text], PROCESSOR).change(values[None], mask[None], seed)
    after = (values.astype(np.float64) * std + mean) / factors
    return {"rgb": after[:3], "sar": after[3:]}


def constant(side, sar=4.0):
    return {"rgb": np.full((3, side, side), 80.0), "sar": np.full((2, side, side), sar)}


@pytest.mark.parametrize("looks", [1, 4])
@pytest.mark.parametrize("kind", ["power", "amplitude", "db"])
def test_speckle_has_mean_one_and_variance_one_over_looks_in_linear_power(kind, looks):
    level = -12.0 if kind == "db" else 3.0
    after = changed(f"sar=speckle_{kind}:{looks}", constant(400, sar=level))
    assert np.allclose(after["rgb"], 80, atol=1e-3)
    ratio = {
        "power": after["sar"] / level,
        "amplitude": (after["sar"] / level) ** 2,
        "db": 10 ** ((after["sar"] - level) / 10),
    }[kind]
    count = ratio.size  # 320,000: five standard errors, of the variance by the fourth moment of gamma, 6 / L**3 + ...
    assert abs(ratio.mean() - 1) < 5 / np.sqrt(looks * count)
    assert abs(ratio.var() - 1 / looks) < 5 * np.sqrt((6 / looks**3 + 2 / looks**2) / count)
    assert abs(np.corrcoef(ratio[0].ravel(), ratio[1].ravel())[0, 1]) < 5 / np.sqrt(count / 2)


def test_gain_is_one_factor_per_band_even_around_one():
    raw = {"rgb": np.arange(48, dtype=np.float64).reshape(3, 4, 4) + 1, "sar": np.full((2, 4, 4), -20.0)}
    factors = []
    for seed in range(300):
        ratio = changed("rgb=gain:0.3", raw, seed)["rgb"] / raw["rgb"]
        np.testing.assert_allclose(ratio, np.broadcast_to(ratio[:, :1, :1], ratio.shape), rtol=1e-4)
        factors.append(ratio[:, 0, 0])
    factors = np.array(factors)
    assert 0.7 <= factors.min() < 0.72 and 1.28 < factors.max() <= 1.3
    assert abs(factors.mean() - 1) < 5 * 0.3 / np.sqrt(3 * 900)
    in_power = [10 ** ((changed("sar=gain_db:0.3", raw, seed)["sar"][:, 0, 0] + 20) / 10) for seed in range(300)]
    assert 0.69 < np.min(in_power) < 0.72 and 1.28 < np.max(in_power) < 1.31


def test_gamma_keeps_dark_and_full_scale_and_bends_what_lies_between():
    ramp = np.broadcast_to(np.linspace(0, 255, 16).reshape(4, 4), (3, 4, 4))
    exponents = []
    for seed in range(200):
        after = changed("rgb=gamma:0.5", {"rgb": ramp, "sar": np.zeros((2, 4, 4))}, seed)["rgb"]
        assert abs(after[:, 0, 0]).max() < 1e-3 and abs(after[:, 3, 3] - 255).max() < 1e-3
        exponent = np.log(after[0, 2, 2] / 255) / np.log(ramp[0, 2, 2] / 255)
        np.testing.assert_allclose(after, 255 * (ramp / 255) ** exponent, atol=0.01)
        exponents.append(exponent)
    assert 1 / 1.5 - 1e-3 < min(exponents) < 0.7 and 1.45 < max(exponents) < 1.5 + 1e-3


@pytest.mark.parametrize(("down", "right"), [(0, 0), (2, 0), (0, -3), (-1, 2), (7, 0), (0, -9)])
@pytest.mark.parametrize("channels", [None, 3])
def test_a_shift_rolls_and_leaves_a_rim_that_is_missing(down, right, channels):
    generator = np.random.default_rng(0)
    raster = generator.integers(0, 255, (6, 7) if channels is None else (6, 7, channels)).astype(np.uint8)
    gaps = np.zeros(raster.shape, dtype=bool)
    gaps[1, 2] = True
    moved = shifted(np.ma.masked_array(raster, gaps), down, right)
    assert moved.dtype == np.uint8
    for row in range(6):
        for column in range(7):
            source = (row - down, column - right)
            inside = 0 <= source[0] < 6 and 0 <= source[1] < 7
            there = inside and source != (1, 2)
            assert (~moved.mask[row, column]).all() == there and moved.mask[row, column].any() == (not there)
            if there:
                assert np.array_equal(moved.data[row, column], raster[source])


def make_row(index, size=12, epoch=0):
    generator = np.random.default_rng(index)
    label = np.zeros((size, size), dtype=np.uint8)
    label[3, 4:7] = 1
    label[0, :2] = 255
    row = {
        "id": f"row{index}",
        "rgb": generator.integers(1, 255, (size, size, 3)).astype(np.uint8),
        "sar": generator.normal(-12, 3, (size, size, 2)).astype(np.float32),
        "label": label,
    }
    row["sar"][5, 5] = -9999.0
    return row | {ROW_KEY: RowKey(epoch, index)}


EVERYTHING = ["rgb=gain,gamma:0.3,shift:1", "sar=speckle_db,gain_db,shift:3"]


def test_choices_are_a_function_of_seed_epoch_and_row_whatever_the_batch():
    options = {"crop_size": 8, "random_scale": 0.3, "augment": EVERYTHING, "class_balanced_crops": True}
    collate = SgmaDataCollator(PROCESSOR, **options, seed=2)
    rows = [make_row(index) for index in range(4)]
    batch, again, alone = collate(rows), collate(rows), collate([rows[2]])
    for key in ("pixel_values", "labels"):
        assert torch.equal(batch[key], again[key]) and torch.equal(batch[key][2:3], alone[key])
    later = collate([row | {ROW_KEY: row[ROW_KEY]._replace(epoch=1)} for row in rows])
    assert not torch.equal(batch["pixel_values"], later["pixel_values"])


def test_what_is_missing_stays_missing_and_enters_nothing():
    plain = SgmaDataCollator(PROCESSOR, seed=2)([make_row(0)])
    for number in (-9999.0, np.nan):
        row = make_row(0)
        row["sar"][5, 5] = number
        batch = SgmaDataCollator(PROCESSOR, augment=["sar=speckle_db:1,gain_db", "rgb=gain"], seed=2)([row])
        assert torch.equal(batch["modality_mask"], plain["modality_mask"])
        gaps = ~batch["modality_mask"][0, 1]
        assert gaps.sum() == 1 and (batch["pixel_values"][0, 3:, gaps] == 0).all()
        assert batch["pixel_values"].isfinite().all()
    row = make_row(0) | {"sar": None}
    batch = SgmaDataCollator(PROCESSOR, augment=EVERYTHING, seed=2)([row])
    assert not batch["modality_mask"][:, 1].any() and (batch["pixel_values"][:, 3:] == 0).all()


def test_a_shift_moves_a_modality_against_the_label_and_the_other():
    options = {"random_flip": False, "random_quarter_turns": False, "seed": 5}
    plain = SgmaDataCollator(PROCESSOR, **options)([make_row(index) for index in range(30)])
    batch = SgmaDataCollator(PROCESSOR, augment=["rgb=shift:1"], **options)([make_row(index) for index in range(30)])
    assert torch.equal(batch["labels"], plain["labels"])
    assert torch.equal(batch["pixel_values"][:, 3:], plain["pixel_values"][:, 3:])
    seen = set()
    for index in range(30):
        mask = batch["modality_mask"][index, 0]
        fits = [
            (down, right)
            for down in (-1, 0, 1)
            for right in (-1, 0, 1)
            if torch.equal(
                batch["pixel_values"][index, :3, mask],
                plain["pixel_values"][index, :3].roll((down, right), (1, 2))[:, mask],
            )
        ]
        assert len(fits) == 1
        assert mask.sum() == (12 - abs(fits[0][0])) * (12 - abs(fits[0][1]))
        seen |= set(fits)
    assert len(seen) == 9  # each of nine is missed by 30 draws in one case of 35


def test_off_by_default_and_switching_it_on_leaves_the_other_choices():
    rows = [make_row(index) for index in range(4)]
    plain = SgmaDataCollator(PROCESSOR, crop_size=8, modality_dropout=0.5, seed=1)(rows)
    batch = SgmaDataCollator(PROCESSOR, crop_size=8, modality_dropout=0.5, augment=["rgb=gain"], seed=1)(rows)
    for key in ("labels", "modality_mask", "sampling_noise"):
        assert torch.equal(plain[key], batch[key])
    assert torch.equal(plain["pixel_values"][:, 3:], batch["pixel_values"][:, 3:])


def test_balanced_crops_show_each_class_as_often_and_lie_inside():
    """A class of one pixel in 400, beside one that covers all else."""
    label = np.zeros((20, 20), dtype=np.uint8)
    label[2, 17] = 1
    label[10] = 255
    generator = np.random.default_rng(0)
    shows, corners, tops = [], [], []
    for _ in range(4000):
        top, left, height, width = balanced_window(label, (5, 8), generator.random(2), generator.random(2), 3)
        assert (height, width) == (5, 8) and 0 <= top <= 15 and 0 <= left <= 12
        window = label[top : top + 5, left : left + 8]
        shows.append((window == 1).any())
        if shows[-1]:
            corners.append((2 - top, 17 - left))
            tops.append(top)
    # half of the crops are drawn for it, and some of the others cover it; evenly drawn ones do so in 3 * 3 of 16 * 13
    assert 0.5 < np.mean(shows) < 0.56
    assert {top for top, _ in corners} == {0, 1, 2} and {left for _, left in corners} == {5, 6, 7}
    empty = np.full((20, 20), 255, dtype=np.uint8)
    assert balanced_window(empty, (5, 8), np.array([0.99, 0.0]), np.zeros(2), 3) == (15, 0, 5, 8)


def test_balanced_crops_raise_the_share_of_a_rare_class_in_a_batch():
    rows = [make_row(index, size=64) for index in range(400)]
    shares = []
    for balanced in (False, True):
        labels = SgmaDataCollator(PROCESSOR, crop_size=8, class_balanced_crops=balanced)(rows)["labels"]
        shares.append((labels == 1).flatten(1).any(1).float().mean().item())
    # evenly: (row in 0..3 of 57) x (column in 0..6 of 57) of the windows
    assert shares[0] < 0.03 and 0.5 < shares[1] < 0.58


def zoomed(rows, zoom, monkeypatch, **options):
    """A batch of which every row is zoomed by the same factor, 1.5 ** 1 or 1.5 ** -1 for instance."""
    base = max(zoom, 1 / zoom)
    plain = collator.draw_row
    power = 1.0 if zoom > 1 else -1.0
    monkeypatch.setattr(collator, "draw_row", lambda *key: replace(plain(*key), scale=power))
    fixed = {"random_flip": False, "random_quarter_turns": False, "random_scale": base - 1, "seed": 3}
    batch = SgmaDataCollator(PROCESSOR, **fixed | options)(rows)
    windows = [SgmaDataCollator(PROCESSOR, **fixed | options)._draw(row).window for row in rows]
    return batch, windows


@pytest.mark.parametrize("zoom", [2.0, 0.5])
def test_zooming_is_bilinear_inwards_and_an_average_outwards(monkeypatch, zoom):
    rows = [make_row(index, size=48) for index in range(3)]
    for row in rows:
        row["sar"][5, 5] = -12.0  # no gap
    batch, windows = zoomed(rows, zoom, monkeypatch, crop_size=16)
    assert batch["pixel_values"].shape == (3, 5, 16, 16)
    side = int(16 / zoom)
    for index, (row, (top, left, height, width)) in enumerate(zip(rows, windows, strict=True)):
        assert (height, width) == (side, side)
        whole = PROCESSOR([{name: row[name] for name in ("rgb", "sar")}])["pixel_values"]
        if zoom > 1:
            expected = torch.nn.functional.interpolate(whole, scale_factor=2, mode="bilinear", align_corners=False)
            expected = expected[0, :, 2 * top : 2 * top + 16, 2 * left : 2 * left + 16]
            label = np.kron(row["label"], np.ones((2, 2)))[2 * top : 2 * top + 16, 2 * left : 2 * left + 16]
        else:
            expected = torch.nn.functional.avg_pool2d(whole[..., top : top + 32, left : left + 32], 2)[0]
            label = row["label"][top + 1 : top + 32 : 2, left + 1 : left + 32 : 2]  # the pixel behind the centre
        torch.testing.assert_close(batch["pixel_values"][index], expected, rtol=1e-4, atol=1e-5)
        assert np.array_equal(batch["labels"][index].numpy(), label)


def test_gaps_do_not_blend_when_zoomed(monkeypatch):
    row = make_row(0, size=16)
    row["sar"][:] = -12.0
    row["sar"][4:8, 4:8] = -9999.0
    batch, _ = zoomed([row], 2.0, monkeypatch, crop_size=32)  # of which 8 x 8 were missing
    mask, values = batch["modality_mask"][0, 1], batch["pixel_values"][0, 3]
    assert (~mask).sum() == 8 * 8
    np.testing.assert_allclose(values[mask], values[mask][0], rtol=1e-5)


def test_all_crops_have_one_size_whatever_the_zoom_and_small_rows_are_zoomed_whole():
    options = {"crop_size": 20, "random_scale": 0.7}
    batch = SgmaDataCollator(PROCESSOR, with_row_index=True, **options)([make_row(i, size=64) for i in range(40)])
    assert batch["pixel_values"].shape == (40, 5, 20, 20)
    drawn = [SgmaDataCollator(PROCESSOR, **options)._draw(make_row(index, size=15)) for index in range(200)]
    assert {row.size for row in drawn if row.window[2:] == (15, 15)} >= {(9, 9), (15, 15), (20, 20)}
    cut = [SgmaDataCollator(PROCESSOR, **options)._draw(make_row(index, size=64)).window[2] for index in range(300)]
    assert min(cut) == round(20 / 1.7) and max(cut) == 34
    logarithms = np.log(20 / np.array(cut))  # even in [-log 1.7, log 1.7]
    assert abs(logarithms.mean()) < 5 * np.log(1.7) / np.sqrt(3 * 300)
    with pytest.raises(ValueError, match=r"`random_scale` is 0.5, and `crop_size` None; expected"):
        SgmaDataCollator(PROCESSOR, random_scale=0.5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rbg=gain", "`augment` has 'rbg=gain'; did you mean rgb?; expected MODALITY=KIND"),
        ("rgb", "expected MODALITY=KIND,KIND:STRENGTH with one of"),
        ("rgb=gian", "has 'gian' for 'rgb'; did you mean gain?; expected one of"),
        ("rgb=gain:1.5", "expected a strength of more than 0 and less than 1."),
        ("rgb=gain:-1", "more than 0"),
        ("rgb=gamma:inf", "more than 0."),
        ("rgb=gamma:much", "more than 0."),
        ("sar=shift:1.5", "more than 0, in whole pixels."),
        ("sar=speckle", "did you mean speckle_"),
    ],
)
def test_what_cannot_be_drawn_is_refused(text, message):
    with pytest.raises(ValueError) as caught:
        SgmaDataCollator(PROCESSOR, augment=[text])
    assert message in str(caught.value)


def test_gamma_is_refused_where_values_have_no_full_scale():
    with pytest.raises(ValueError, match="'gamma' for 'dsm', whose `rescale_factor` is 1"):
        Augmentation(["dsm=gamma"], SgmaImageProcessor(["dsm"], [1]))


def test_the_unit_of_the_data_set_decides_how_speckle_and_gain_enter():
    units = {"s1": "dB", "ers": "amplitude", "rgb": None}
    asked_for = ["s1=shift,speckle:2,gain", "ers=speckle,gain:0.2", "rgb=gain"]
    assert for_units(asked_for, units) == [
        "s1=shift,speckle_db:2,gain_db",
        "ers=speckle_amplitude,gain:0.2",
        "rgb=gain",
    ]
    assert for_units(["rgb=speckle_power"], units) == ["rgb=speckle_power"]
    with pytest.raises(ValueError, match=r"of 'rgb' the unit None, .* Name it: speckle_db, speckle_amplitude"):
        for_units(["rgb=speckle"], units)


@pytest.mark.long
def test_resuming_in_mid_epoch_draws_the_same_augmentation(tmp_path):
    options = {"augment": ["rgb=gain,gamma,shift", "dsm=shift:1"], "class_balanced_crops": True, "random_scale": 0.3}
    saving = {"save_strategy": "steps", "save_steps": 2}
    uninterrupted = make_trainer(tmp_path, **saving, **options)
    uninterrupted.train()
    expected = state_of(uninterrupted)
    resumed = make_trainer(tmp_path, **saving, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert all(torch.equal(tensor, expected[name]) for name, tensor in state_of(resumed).items())
    assert resumed.training_record().arguments["augment"] == options["augment"]
