"""Intervals and tests of the results card, against closed forms, published tables and plain loops."""

import math

import numpy as np
import pytest
from comparison_fixtures import made_up_tiles

from sgma_hf.comparison.card import statistics
from sgma_hf.comparison.card.experiments import SCORES, group_runs
from sgma_hf.comparison.card.statistics import (
    Spread,
    critical_difference,
    holm,
    mean_ranks,
    paired_difference,
    resampled_weights,
    spread,
    studentized_range_quantile,
    t_quantile,
    t_within,
    tile_interval,
    weighted_scores,
)
from sgma_hf.evaluation.combinations import summarize_combinations
from sgma_hf.evaluation.metrics import segmentation_scores


def test_spread_and_paired_interval_by_hand():
    assert spread([2.0, 4.0, 9.0]) == (5.0, pytest.approx(13**0.5), 3)  # squares 9 + 1 + 16, divided by 2
    assert spread([2.0]) == (2.0, None, 1) and spread([2.0]).interval is None and spread([2.0]).p_value == 1
    assert spread([]) is None and spread([1.0, None]) is None
    # differences 10, 9, 11: deviation 1; 4.3027 / sqrt(3) = 2.4841
    found = paired_difference({0: 60.0, 1: 62.0, 2: 64.0, 9: 1.0}, {2: 53.0, 1: 53.0, 0: 50.0, 7: 2.0})
    assert found == (10.0, 1.0, 3)
    assert found.interval == pytest.approx((7.5159, 12.4841), abs=1e-4)
    t = 10 * 3**0.5  # two degrees of freedom have a closed form
    assert found.p_value == pytest.approx(1 - t / math.sqrt(2 + t * t))
    assert paired_difference({0: 1.0}, {0: 3.0}) == Spread(-2.0, None, 1)
    assert paired_difference({0: 1.0}, {1: 3.0}) is None
    assert spread([0.0, 0.0]).p_value == 1 and spread([1.0, 1.0]).p_value == 0


# 97.5 % quantiles as printed in tables, for 1, 2, ... degrees of freedom
PRINTED = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
    2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
    2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip


def test_student_t_is_that_of_tables_and_closed_forms():
    assert [round(t_quantile(0.95, freedom), 3) for freedom in range(1, 31)] == list(PRINTED)
    for t in (0.1, 1.0, 4.0):
        assert t_within(t, 1) == pytest.approx(2 / math.pi * math.atan(t))
        assert t_within(t, 2) == pytest.approx(t / math.sqrt(2 + t * t))
        assert t_within(t, 3) == pytest.approx(2 / math.pi * (math.atan(t / 3**0.5) + t * 3**0.5 / (t * t + 3)))


def test_critical_difference_is_that_of_the_table_of_demsar():
    # table 5a for two to ten methods, which is cut after the third digit in places
    printed = (1.960, 2.343, 2.569, 2.728, 2.850, 2.949, 3.031, 3.102, 3.164)
    found = [studentized_range_quantile(0.95, count) / 2**0.5 for count in range(2, 11)]
    np.testing.assert_allclose(found, printed, atol=1e-3)
    # his example: four methods on 14 data sets
    assert critical_difference(4, 14) == pytest.approx(2.569 * math.sqrt(4 * 5 / (6 * 14)), abs=1e-3)


def test_ranks_of_equals_are_shared():
    # 1, 2.5, 2.5, 4 and 4, 1, 2, 3
    assert mean_ranks(np.array([[9, 5, 5, 1], [1, 4, 3, 2]])).tolist() == [2.5, 1.75, 2.25, 3.5]


def test_holm_by_hand():
    # 0.005 * 4, 0.01 * 3, 0.03 * 2, and 0.04 takes over what came before it
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0] and holm([]) == []


def test_weighted_scores_equal_a_plain_loop_over_drawn_tiles():
    rng = np.random.default_rng(3)
    confusion = rng.integers(0, 50, (9, 4, 3, 3))
    confusion[::2, :, 2] = 0  # a class that half of the tiles have not,
    confusion[::2, :, :, 2] = 0
    confusion[:, 3] = 0  # and a combination that nothing was counted of
    weights = resampled_weights(9, 40)
    assert weights.shape == (40, 9) and (weights.sum(1) == 9).all()
    assert (weights == resampled_weights(9, 40)).all() and (weights != resampled_weights(9, 40, seed=1)).any()
    found = weighted_scores(confusion, np.concatenate([weights, np.eye(9)]))
    draws = [
        *([tile for tile in range(9) for _ in range(int(row[tile]))] for row in weights),
        *([n] for n in range(9)),
    ]
    for drawn, scores in zip(draws, found, strict=True):
        by_combination = {str(c): segmentation_scores(sum(confusion[tile, c] for tile in drawn)) for c in range(4)}
        summary = summarize_combinations(by_combination)
        assert scores.tolist() == pytest.approx([summary[key] for key in SCORES.values()], abs=1e-12)
    assert np.isnan(weighted_scores(np.zeros((2, 1, 2, 2), dtype=int), np.ones((1, 2)))).all()


def test_interval_over_tiles_is_that_of_a_plain_loop_over_both_arms(monkeypatch):
    monkeypatch.setattr("sgma_hf.comparison.card.experiments.resampled_weights", lambda n: resampled_weights(n, 300))
    rows = [made_up_tiles(arm, seed, right) for arm, right in (("sgma", 0.9), ("mean", 0.8)) for seed in (0, 1)]
    rows += [made_up_tiles("sgma", 2, 0.9)]  # without a partner
    (experiment,) = group_runs(rows)
    differences = []
    for weights in resampled_weights(12, 300):
        drawn = [tile for tile in range(12) for _ in range(int(weights[tile]))]
        average = {}
        for row in rows[:4]:
            matrices = row["results"]["test"]["tiles"]["confusion"].values()
            sums = [np.sum([tiles[tile] for tile in drawn], axis=0).reshape(2, 2) for tiles in matrices]
            average[row["arm"], row["seed"]] = np.mean([segmentation_scores(one)["miou"] for one in sums])
        differences.append(np.mean([average["sgma", seed] - average["mean", seed] for seed in (0, 1)]))
    found = tile_interval(experiment.resampled("sgma", "mean")[:, 0])
    low, high = np.quantile(differences, (0.025, 0.975))
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-12) and 0 < low < high
    assert found.p_value == 2 / 301  # no resample is below 0
    assert tile_interval(np.array([-1.0, 1.0])).p_value == 1
    assert experiment.resampled("sgma").shape == (300, 3)


def test_lines_without_tiles_have_no_interval_over_them():
    old = made_up_tiles("mean", 0, 0.8)
    del old["results"]["test"]["tiles"]
    (experiment,) = group_runs([old, made_up_tiles("sgma", 0, 0.9)])
    assert experiment.resampled("mean") is None and experiment.resampled("sgma", "mean") is None
    assert experiment.resampled("sgma").shape == (statistics.NUM_RESAMPLES, 3)
