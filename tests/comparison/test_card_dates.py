"""Arms with some of the dates of series: what a line and the card hold, and what is refused before training."""

from dataclasses import replace

import numpy as np
import pytest
from comparison_fixtures import FLAGS, TINY, made_up_run, write_scenes
from series_rows import series_metadata, series_rows

from sgma_hf.commands import compare
from sgma_hf.comparison.arms import ARMS
from sgma_hf.comparison.card.report import make_card
from sgma_hf.comparison.identity import is_recorded
from sgma_hf.comparison.runs import Run, RunSettings, execute_run
from sgma_hf.converters.writing.parquet import ParquetDatasetWriter
from sgma_hf.model.limits_sgma import YEARLY_PERIODS


def _scores(average, half):
    conditions = {name: {"average_miou": score} for name, score in (("all", 0.6), ("half", half))}
    return {"average_miou": average, "last1_miou": half - 0.1, "conditions": conditions}


def test_the_card_has_a_table_of_shares_where_runs_have_them():
    rows = [made_up_run("sgma", seed, 0.6, dates=_scores(0.5 + 0.1 * seed, 0.4)) for seed in (0, 1)]
    rows += [made_up_run("mean", 0, 0.5, dates=_scores(0.45, 0.3)), made_up_run("early", 0, 0.5)]
    (table,) = [one for one in make_card(rows).tables[""] if one.name == "dates"]
    assert table.header == ["arm", "Average", "Last-1", "all", "half"]
    lines = [list(map(str, line)) for line in table.lines]
    assert lines[0] == ["`mean`", "45.0", "20.0", "60.0", "30.0"] and lines[1][0] == "`sgma`"
    assert lines[1][1].startswith("55.0 ± 7.1") and len(lines) == 2
    assert "dates" not in [one.name for one in make_card(rows[-1:]).tables[""]]


@pytest.fixture
def series(tmp_path):
    with ParquetDatasetWriter(tmp_path / "data", series_metadata(), title="Series") as writer:
        for split, seed in (("train", 0), ("validation", 1), ("test", 2)):
            for row in series_rows(4, size=32, seed=seed):
                writer.write(split, *row)
    return str(tmp_path / "data")


def test_all_arms_are_scored_on_the_same_dates(series):
    settings = RunSettings(**TINY, dates=["all", "half"])
    rows = [execute_run(run) for run in (Run(ARMS[name], 0, series, settings) for name in ("sgma", "mean"))]
    for row in rows:
        assert row["model_config"]["date_periods"] == list(YEARLY_PERIODS)
        conditions = row["dates"]["conditions"]
        assert list(conditions) == ["all", "half"] and row["dates"]["seed"] == 0
        test = row["results"]["test"]["combinations"]
        assert conditions["all"]["combinations"]["s2"]["confusion"] == test["s2"]["confusion"]
        cells = [scores["miou"] for one in conditions.values() for scores in one["combinations"].values()]
        assert row["dates"]["average_miou"] == pytest.approx(np.mean(cells))
        for dates, recorded in ((["all", "half"], True), (None, True), (["all", "quarter"], False), (["all"], False)):
            wanted = Run(ARMS[row["arm"]], 0, series, replace(settings, dates=dates))
            assert is_recorded(wanted.identity(row["dataset"]["fingerprint"]), [row]) == recorded
    pixels = [[s["pixels"] for s in row["dates"]["conditions"]["half"]["combinations"].values()] for row in rows]
    assert pixels[0] == pixels[1]
    assert "With some of the dates" in make_card(rows).markdown()


@pytest.mark.parametrize(
    ("dates", "message"),
    [("third", "Share of dates 'third' is none of"), ("half", "no modality of the data set is a series")],
)
def test_shares_that_mean_nothing_are_refused_before_training(series, tmp_path, capsys, dates, message):
    folder = write_scenes(tmp_path / "demo") if dates == "half" else series
    output = tmp_path / "runs" / "results.jsonl"
    assert compare.main(["--dataset", folder, "--output", str(output), *FLAGS, "--dates", dates]) == 2
    assert message in capsys.readouterr().err and not output.exists()
