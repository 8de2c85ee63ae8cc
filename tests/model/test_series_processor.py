"""Rows with many dates through the processor: each date as it is alone, one reference level, padded and dated."""

import numpy as np
import pytest
import torch

from sgma_hf import SgmaImageProcessor
from sgma_hf.model.dates_sgma import to_days


def make_processor(**options) -> SgmaImageProcessor:
    return SgmaImageProcessor(["s2", "s1", "dsm"], [2, 1, 1], nodata=[[], [-99.0], [-9999.0]], **options)


def make_series(seed=0, size=(8, 6), dates=3):
    rng = np.random.default_rng(seed)
    s2 = [rng.uniform(0, 9000, (*size, 2)).astype(np.float32) for _ in range(dates)]
    s2[1][:2, :3, 1] = np.nan
    s1 = [rng.uniform(-20, 0, (size[0] // 2, size[1] // 2)).astype(np.float32) for _ in range(2)]
    s1[0][0, 0] = -99
    dsm = rng.uniform(100, 130, size).astype(np.float32)
    return {"s2": s2, "s1": s1, "dsm": dsm}


def test_every_date_is_what_it_is_alone():
    """Bit for bit, also resampled, cut out and with gaps: dates have nothing to do with each other but the level."""
    processor, row = make_processor(), make_series()
    window = (1, 1, 6, 5)
    for options in ({}, {"windows": [window]}, {"do_resize": True, "size": 16}):
        batch = processor([row], **options)
        assert batch["pixel_values"].shape[:3] == (1, 3, 4) and batch["modality_mask"].shape[:3] == (1, 3, 3)
        for date in range(3):
            alone = {name: row[name][date] if date < len(row[name]) else None for name in ("s2", "s1")}
            single = processor([alone | {"dsm": row["dsm"]}], **options)
            height, width = single["pixel_values"].shape[-2:]
            if single["modality_mask"].ndim == 2:
                single["modality_mask"] = single["modality_mask"][..., None, None].expand(-1, -1, height, width)
            torch.testing.assert_close(
                batch["pixel_values"][:, date, :3], single["pixel_values"][:, :3], rtol=0, atol=0
            )
            assert torch.equal(batch["modality_mask"][:, date, :2], single["modality_mask"][:, :2])
        torch.testing.assert_close(batch["pixel_values"][:, 0, 3], single["pixel_values"][:, 3], rtol=0, atol=0)
        assert not batch["pixel_values"][:, 1:, 3].any() and not batch["modality_mask"][:, 1:, 2].any()


def test_one_date_is_the_static_row_with_an_axis_more():
    processor, row = make_processor(), {"s2": np.ones((4, 4, 2)), "s1": None, "dsm": np.arange(16.0).reshape(4, 4)}
    static = processor([row])
    series = processor([row | {"s2": [row["s2"]]}])
    assert static["pixel_values"].ndim == 4 and "dates" not in static
    for name in static:
        assert torch.equal(series[name][:, 0], static[name]) and series[name].shape[1] == 1
    assert series["dates"].shape == (1, 1, 3) and series["dates"].isnan().all()


def test_dates_stand_where_their_images_do():
    processor, row = make_processor(), make_series()
    row |= {"s2_dates": ["2019-03-02", None, "2019-03-02T12:00Z"], "s1_dates": [np.datetime64("2001-01-01"), 5.5]}
    dates = processor([row])["dates"]
    nan = np.nan
    expected = torch.tensor([[[7000, 366, nan], [nan, 5.5, nan], [7000.5, nan, nan]]])
    assert dates.dtype == torch.float32
    torch.testing.assert_close(dates, expected, rtol=0, atol=0, equal_nan=True)
    row |= {"dsm_dates": "2000-01-11"}
    assert processor([row])["dates"][0, :, 2].tolist()[0] == 10
    assert processor([row], return_tensors="np")["dates"].dtype == np.float32


def test_rows_of_other_lengths_are_padded_and_static_ones_have_one_date():
    """Row 0 has 3 and 2 dates, row 1 none and one and is smaller, row 2 is static."""
    processor = make_processor()
    rows = [make_series(), {"s1": make_series(1, (4, 4))["s1"][1:]}, {"s2": np.ones((8, 6, 2))}]
    batch = processor(rows)
    assert batch["pixel_values"].shape == (3, 3, 4, 8, 6) and batch["modality_mask"].shape == (3, 3, 3, 8, 6)
    there = batch["modality_mask"].flatten(3).any(3)
    assert there[0].sum(0).tolist() == [3, 2, 1]
    assert there[1].tolist() == [[False, True, False]] + [[False] * 3] * 2
    assert there[2].tolist() == [[True, False, False]] + [[False] * 3] * 2
    assert not batch["pixel_values"][~batch["modality_mask"].repeat_interleave(torch.tensor([2, 1, 1]), 2)].any()
    alone = processor(rows[:1])
    assert torch.equal(batch["pixel_values"][:1], alone["pixel_values"])


def test_a_mask_is_per_image_where_that_says_all():
    processor = make_processor()
    rows = [{"s2": np.ones((2, 4, 4, 2)), "dsm": np.zeros((4, 4))}, {"s1": [np.ones((4, 4))] * 3}]
    assert processor(rows)["modality_mask"].tolist() == [
        [[True, False, True], [True, False, False], [False, False, False]],
        [[False, True, False]] * 3,
    ]


def test_an_image_of_nodata_alone_is_a_missing_date():
    processor = make_processor()
    row = {"s1": [np.full((4, 4), -99.0), np.ones((4, 4))], "s1_dates": [1, 2]}
    batch = processor([row])
    assert batch["modality_mask"].tolist() == [[[False, False, False], [False, True, False]]]
    assert batch["dates"][0, :, 1].tolist() == [1, 2]


@pytest.mark.parametrize("kind", ["minimum", "robust_minimum", "median"])
def test_the_reference_level_is_that_of_all_dates(kind):
    rng = np.random.default_rng(0)
    dsm = [rng.uniform(100 + 10 * date, 150, (6, 6)) for date in range(4)]
    dsm[2][:3] = -9999
    processor = SgmaImageProcessor(["dsm"], [1], reference_level=kind, image_mean=[[0]], image_std=[[1]])
    values = processor([{"dsm": dsm}], windows=[(0, 0, 4, 6)])["pixel_values"][0, :, 0]
    pool = np.concatenate([image[:4][image[:4] > 0] for image in dsm])
    level = {"minimum": pool.min(), "median": np.median(pool)}.get(kind, np.percentile(pool, 2, method="lower"))
    for date, image in enumerate(dsm):
        expected = np.where(image[:4] > 0, image[:4] - level, 0)
        np.testing.assert_allclose(values[date], expected, atol=1e-5)
    given = processor([{"dsm": dsm}], windows=[(0, 0, 4, 6)], levels=[{"dsm": float(level)}])["pixel_values"][0, :, 0]
    assert torch.equal(given, values)


def test_statistics_are_over_all_dates():
    rng = np.random.default_rng(0)
    rows = [
        {
            "id": "a",
            "s2": [rng.normal(5, 2, (4, 4, 2)), rng.normal(9, 1, (2, 2, 2))],
            "dsm": [rng.normal(90, 9, (4, 4))] * 2,
        },
        {"id": "b", "s2": None, "dsm": [rng.normal(50, 9, (4, 4)), rng.normal(70, 9, (4, 4))]},
    ]
    rows[0]["s2"][0][0, 0] = np.nan
    processor = SgmaImageProcessor.fit(rows, ["s2", "dsm"], [2, 1], rescale_factor=1.0)
    s2 = np.concatenate([image[~np.isnan(image).any(2)] for image in rows[0]["s2"]])
    dsm = np.concatenate([np.stack(row["dsm"]) - np.min(row["dsm"]) for row in rows])
    np.testing.assert_allclose(processor.image_mean[0], s2.mean(0), rtol=1e-12)
    np.testing.assert_allclose(processor.image_std[0], s2.std(0), rtol=1e-12)
    np.testing.assert_allclose(processor.image_mean[1], dsm.mean(), rtol=1e-12)
    np.testing.assert_allclose(processor.image_std[1], dsm.std(), rtol=1e-12)


def test_four_hundred_dates_of_the_past_and_the_future_are_taken():
    stack = torch.arange(400.0)[:, None, None, None].expand(400, 2, 2, 2)
    dates = np.arange("1900-01-01", "2300-01-01", dtype="datetime64[Y]")
    batch = make_processor()([{"s2": stack, "s2_dates": dates}])
    assert batch["pixel_values"].shape == (1, 400, 4, 2, 2) and batch["modality_mask"][0, :, 0].all()
    assert batch["dates"][0, [0, -1], 0].tolist() == [to_days("1900-01-01"), to_days("2299-01-01")]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"s2": None, "s2_dates": ["2019-01-01"], "dsm": np.ones((2, 2))},
            "'s2_dates' has 1 dates for 0 rasters in 's2'",
        ),
        ({"s2": [np.ones((2, 2, 2))] * 2, "s2_dates": ["2019-01-01"]}, "1 dates for 2 rasters"),
        ({"s2": [np.ones((2, 2, 2))], "s2_dates": ["in May"]}, "'s2_dates': 'in May' is no date; expected ISO text"),
        ({"s2": [np.ones((2, 2, 2)), None]}, r"'s2' has no raster at positions \[1\]"),
        ({"s2": [], "s1": []}, r"has no modality: none of \['s2', 's1', 'dsm'\] is there"),
        ({"s2": [np.ones((4, 4, 2)), np.ones((4, 4, 3))]}, r"\['s2'\]`: got shape \(4, 4, 3\)"),
        ({"s2": [np.ones((2, 2, 2)), np.ones((8, 2, 2))]}, "which does not fit the"),
        ({"s2": [np.ones((2, 2, 2))], "s3_dates": []}, "has modality 's3_dates'; this processor knows"),
    ],
)
def test_rows_that_make_no_sense_are_refused_with_their_place(row, message):
    with pytest.raises(ValueError, match=rf"`images\[1\].*{message}") as info:
        make_processor()([{"dsm": np.ones((2, 2))}, row])
    assert "\n" not in str(info.value)
