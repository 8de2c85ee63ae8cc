"""Scores from some of the dates: against single rows that have no others, and against counts worked by hand."""

import json

import numpy as np
import pytest
import torch
from series_rows import series_metadata
from tiny_models import spread_weights, tiny_model

from sgma_hf.evaluation.combinations import evaluate_modality_combinations
from sgma_hf.evaluation.metrics import confusion_matrix, segmentation_scores
from sgma_hf.evaluation.over_time.dates import NUM_DRAWS, DateCases, date_grid
from sgma_hf.evaluation.prepared_rows import PreparedRow
from sgma_hf.model.dates_sgma import to_days
from sgma_hf.model.image_processing_sgma import SgmaImageProcessor
from sgma_hf.publishing.results import results_to_markdown


NAMES, CHANNELS = ("s2", "vv", "dsm"), (4, 1, 1)
PERIODS = [365.25, 182.6]


@pytest.fixture(params=[PERIODS, None], ids=["knows dates", "knows none"])
def model(request):
    options = {"modalities": list(NAMES), "modality_channels": list(CHANNELS), "num_labels": 3}
    return spread_weights(tiny_model(date_periods=request.param, **options)).eval()


@pytest.fixture
def processor():
    metadata = series_metadata()
    return SgmaImageProcessor(
        modalities=NAMES, modality_channels=CHANNELS, nodata=metadata.nodata, reference_level=["none"] * 3
    )


def _row(name, s2, vv, *, size=(32, 32), seed=0, dsm=True):
    """A row of so many dates of each sensor, a week and nine days apart."""
    rng = np.random.default_rng(seed)
    row = {"id": name, "label": rng.integers(0, 3, size).astype(np.uint8)}
    row["label"][:2] = 255
    row["s2"] = [rng.normal(0, 1, (*size, 4)).astype(np.float32) for _ in range(s2)] or None
    row["vv"] = [rng.normal(0, 1, size).astype(np.float32) for _ in range(vv)] or None
    row["dsm"] = rng.normal(0, 1, size).astype(np.float32) if dsm else None
    start = np.datetime64("2019-03-01")
    row["s2_dates"] = [str(start + 7 * index) for index in range(s2)] or None
    row["vv_dates"] = [str(start + 9 * index) for index in range(vv)] or None
    return row


@pytest.fixture
def rows():
    rows = [_row("a", 7, 4), _row("b", 2, 0, seed=1, dsm=False), _row("c", 5, 9, seed=2), _row("d", 0, 6, seed=3)]
    rows[2]["s2"][3][:, 10:] = 0  # clouds over a part, all of it at the next date
    rows[2]["s2"][4][:] = 0
    return rows


def _without(row, kept):
    """The row as if the dates that are not `kept`, by modality, had never been."""
    row = dict(row)
    for name, indices in kept.items():
        if isinstance(row[name], list):
            row[f"{name}_dates"] = [row[f"{name}_dates"][index] for index in indices] or None
            row[name] = [row[name][index] for index in indices] or None
    return row


def _confusion(model, processor, row, names):
    """One row that has what it has, one forward pass, or None if it has nothing of the names."""
    dates = {f"{name}_dates": row.get(f"{name}_dates") for name in names if row.get(f"{name}_dates")}
    images = {name: row[name] if name in names else None for name in NAMES} | dates
    if all(images[name] is None for name in NAMES):
        return None
    inputs = processor(images=[images], segmentation_maps=[row["label"]], return_tensors="pt")
    if model.config.date_periods is None:
        inputs.pop("dates", None)
    if not inputs["modality_mask"].any():
        return None
    with torch.no_grad():
        labels = inputs.pop("labels")[0]
        outputs = model(**inputs)
    (predicted,) = processor.post_process_semantic_segmentation(outputs, target_sizes=[labels.shape])
    return confusion_matrix(predicted, labels.masked_fill(predicted == 255, 255), 3)


def _total(model, processor, rows, names):
    found = [_confusion(model, processor, row, names) for row in rows]
    return sum(one for one in found if one is not None), sum(one is not None for one in found)


def _kept(rows, condition):
    """Rows that have what a function keeps of the dates of a day."""
    return [
        _without(row, {n: [i for i, d in enumerate(row[f"{n}_dates"] or ()) if condition(d)] for n in ("s2", "vv")})
        for row in rows
    ]


@pytest.mark.parametrize("batch_size", [1, 3])
def test_conditions_score_as_rows_that_never_had_the_dates(model, processor, rows, batch_size):
    grid = date_grid(["all"], before=["2019-03-20", "2019-03-09"], gaps=[("2019-03-08", "2019-03-28")])
    results = evaluate_modality_combinations(model, processor, rows, dates=grid, batch_size=batch_size)
    found = results["dates"]["conditions"]
    plain = evaluate_modality_combinations(model, processor, rows, batch_size=batch_size)
    assert list(found) == ["all", "before 2019-03-09", "before 2019-03-20", "without 2019-03-08 to 2019-03-28"]
    assert found["all"]["combinations"] == plain["combinations"] == results["combinations"]
    expected = {
        "before 2019-03-09": _kept(rows, lambda day: day < "2019-03-09"),
        "before 2019-03-20": _kept(rows, lambda day: day < "2019-03-20"),
        "without 2019-03-08 to 2019-03-28": _kept(rows, lambda day: not "2019-03-08" <= day < "2019-03-28"),
    }
    for name, kept in expected.items():
        for combination, scores in found[name]["combinations"].items():
            confusion, count = _total(model, processor, kept, combination.split("+"))
            difference = np.abs(np.array(scores["confusion"]) - confusion).sum()
            assert difference <= 4, (name, combination)  # pixels between two classes, as sums run in another order
            assert (scores["rows"], scores["rows_left_out"]) == (count, len(rows) - count)
            assert confusion.sum() == scores["pixels"]
    assert results["dates"]["average_miou"] == plain["average_miou"]


def test_shares_are_drawn_alike_for_every_model_and_smaller_ones_lie_in_larger(rows):
    grid = date_grid(["quarter", "half", "all", "0.1"], seed=3)
    cases = DateCases(grid, rows, NAMES)
    assert len(cases) == 1 + 3 * NUM_DRAWS and cases.conditions[0].name == "all"
    place = torch.tensor([[2, 0, 0], [0, 0, 0]])
    batch = PreparedRow(torch.zeros(2, 9, 6, 4, 4), torch.ones(2, 9, 3, dtype=bool), torch.zeros(2, 4, 4), place)
    kept = cases.kept(batch).numpy()  # (cases, 2, T, M)
    by_name = {cases.conditions[c].name: [] for c, _ in cases.cases}
    for mask, (c, _) in zip(kept, cases.cases, strict=True):
        by_name[cases.conditions[c].name].append(mask)
    for half, quarter, tenth in zip(by_name["half"], by_name["quarter"], by_name["0.1"], strict=True):
        assert (half >= quarter).all() and (quarter >= tenth).all()
        np.testing.assert_array_equal(half[0, :5, 0].sum(), 2)  # of 5, of 9
        np.testing.assert_array_equal(half[0, :9, 1].sum(), 4)
        np.testing.assert_array_equal(quarter[:, :, :2].sum(1), [[1, 2], [2, 1]])  # of (5, 9) and of (7, 4)
        np.testing.assert_array_equal(tenth[:, :, :].sum(1), [[1, 1, 1], [1, 1, 1]])  # one at least
    assert len({mask.tobytes() for mask in by_name["half"]}) == NUM_DRAWS
    alone = DateCases(grid, rows[2:3], NAMES)
    one = PreparedRow(*(getattr(batch, name)[:1] for name in ("pixel_values", "modality_mask", "labels", "place")))
    one.place = torch.zeros(1, 3, dtype=torch.long)
    np.testing.assert_array_equal(alone.kept(one)[:, 0], kept[:, 0])  # by its id, whatever other rows there are
    other = DateCases(date_grid(["half"], seed=4), rows, NAMES).kept(batch).numpy()
    assert (other[1:] != np.stack(by_name["half"])).any()


def test_draws_of_a_share_count_together(model, processor, rows):
    grid = date_grid(["half"], seed=1)
    results = evaluate_modality_combinations(model, processor, rows, dates=grid, combinations=[["s2", "vv"]])
    cases, total = DateCases(grid, rows, NAMES), 0
    for draw in range(NUM_DRAWS):
        kept = []
        for index, row in enumerate(rows):
            slots = max(len(row[name] or ()) for name in ("s2", "vv"))
            ranks = cases._ranks(index, slots)[draw]
            number = {name: max(1, round(len(row[name] or ()) / 2)) for name in ("s2", "vv")}
            columns = {name: ranks[: len(row[name] or ()), m] for m, name in enumerate(number)}
            of_row = {name: np.flatnonzero(columns[name] < number[name]).tolist() for name in number}
            kept.append(_without(row, of_row))
        total = total + _total(model, processor, kept, ["s2", "vv"])[0]
    scores = results["dates"]["conditions"]["half"]["combinations"]["s2+vv"]
    assert np.abs(np.array(scores["confusion"]) - total).sum() <= 4
    assert scores["rows"] == NUM_DRAWS * len(rows) and scores["rows_left_out"] == 0
    assert scores["miou"] == pytest.approx(segmentation_scores(np.array(scores["confusion"]))["miou"])


def test_average_and_last_1_run_over_combinations_and_shares(model, processor, rows):
    grid = date_grid(["all", "half"], before=["2019-03-20"])
    found = evaluate_modality_combinations(model, processor, rows, dates=grid)
    dates = found["dates"]
    shares = [dates["conditions"][name]["combinations"] for name in ("all", "half")]
    figures = [scores["miou"] for combinations in shares for scores in combinations.values()]
    assert dates["average_miou"] == pytest.approx(np.mean(figures)) and dates["last1_miou"] == min(figures)
    assert json.loads(json.dumps(found)) == found
    text = results_to_markdown(found)
    assert "| mIoU in % from a share of the dates | all | half |" in text
    assert "| mIoU in % from dates before a day | before 2019-03-20 |" in text
    assert f"Last-1 {100 * dates['last1_miou']:.2f} ({dates['last1_combination']})" in text
    assert "Rows of which nothing is left" not in text  # of all modalities something is: the height has no day


def test_a_row_of_which_nothing_is_left_is_said(model, processor):
    rows = [_row("a", 3, 2, dsm=False), _row("b", 3, 2, dsm=False, seed=1)]
    rows[1]["s2_dates"] = rows[1]["vv_dates"] = [f"2019-05-0{index}" for index in range(1, 4)]
    rows[1]["vv_dates"] = rows[1]["vv_dates"][:2]
    results = evaluate_modality_combinations(model, processor, rows, dates=date_grid(before=["2019-04-01"]))
    scores = results["dates"]["conditions"]["before 2019-04-01"]["combinations"]["s2+vv"]
    assert (scores["rows"], scores["rows_left_out"]) == (1, 1)
    assert "Rows of which nothing is left, so not scored: before 2019-04-01 1." in results_to_markdown(results)


def test_images_without_a_known_date_stay(processor):
    rows = [_row("a", 3, 2)]
    rows[0]["s2_dates"] = [None, "2019-03-01", "2019-06-01"]
    cases = DateCases(date_grid(before=["2019-04-01"]), rows, NAMES)
    inputs = processor(images=[{name: rows[0][name] for name in rows[0] if name not in ("id", "label")}])
    place = torch.zeros(1, 3, dtype=torch.long)
    dates, mask = torch.as_tensor(inputs["dates"]), torch.as_tensor(inputs["modality_mask"])
    batch = PreparedRow(torch.as_tensor(inputs["pixel_values"]), mask, torch.zeros(1, 32, 32), place, dates)
    np.testing.assert_array_equal(cases.kept(batch)[1, 0, :, 0], [True, True, False])
    assert cases.kept(batch)[1, 0, 0, 2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"shares": ["third"]}, "Share of dates 'third' is none of"),
        ({"shares": ["1.5"]}, "'1.5' is none of"),
        ({"before": ["May"]}, "'May' is no date"),
        ({"before": [None]}, "None is no date"),
        ({"gaps": [("2019-05-01", "2019-05-01")]}, "The gap from 2019-05-01 to 2019-05-01 has no day"),
    ],
)
def test_conditions_that_mean_nothing_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        date_grid(**arguments)


def test_rows_that_have_no_dates_to_leave_out_are_refused(model, processor, rows):
    single = [_row("a", 1, 1)]
    with pytest.raises(ValueError, match="no row has more than one of any of"):
        evaluate_modality_combinations(model, processor, single, dates=date_grid(["half"]))
    undated = [row | {"s2_dates": None, "vv_dates": None} for row in rows]
    with pytest.raises(ValueError, match="No row has a date, so that none is before a day"):
        evaluate_modality_combinations(model, processor, undated, dates=date_grid(before=["2019-05-01"]))
    with pytest.raises(ValueError, match="leave out the stride"):
        evaluate_modality_combinations(model, processor, rows, dates=date_grid(["half"]), window_size=32, stride=16)


def test_everything_is_fused_from_one_encoding(model, processor, rows, monkeypatch):
    calls, encode = [], type(model).encode

    def counted(self, *args, **kwargs):
        calls.append(1)
        return encode(self, *args, **kwargs)

    monkeypatch.setattr(type(model), "encode", counted)
    grid = date_grid(["all", "half", "quarter"], before=["2019-03-20"], gaps=[("2019-03-08", "2019-03-28")])
    evaluate_modality_combinations(model, processor, rows, dates=grid, batch_size=1)
    assert len(calls) == len(rows)


def test_days_are_those_of_the_data_set():
    assert date_grid(before=["2019-03-20", "2019-03-09T12:00"]).conditions[0].before == to_days("2019-03-09") + 0.5
