"""What an added sensor brings, against plain loops over seeds, tiles and pairs."""

import math

import numpy as np
import pytest
from comparison_fixtures import made_up_run, made_up_tiles
from evaluation_results import EVALUATION

from sgma_hf.comparison.card.report import make_card
from sgma_hf.comparison.card.statistics import holm, resampled_weights, t_quantile
from sgma_hf.evaluation.combinations import modality_combinations
from sgma_hf.evaluation.metrics import segmentation_scores
from sgma_hf.publishing.results import pairs_of, result_remarks, worst_pair


def tables(rows):
    (found,) = make_card(rows).tables.values()
    return {table.name: {line[0]: line[1:] for line in table.lines} for table in found}


def test_pairs_are_all_ways_to_add_one():
    names = ["+".join(names) for names in modality_combinations(["a", "b", "c", "d"])]
    pairs = pairs_of(names)
    assert len(pairs) == len(set(pairs)) == 28  # 4 modalities, each to the 7 combinations of the others
    for without, added, together in pairs:
        assert set(together.split("+")) - set(without.split("+")) == {added} and together in names
    assert pairs_of(["a", "b"]) == [] and [str(pair) for pair in pairs_of(["a", "a+b"])] == ["b to `a`"]


def test_worst_pair_of_an_evaluation():
    scored = {"a": 0.53, "b": 0.4, "c": None, "a+b": 0.42, "a+c": 0.45, "a+b+c": 0.41}
    points, pair = worst_pair({name: {"miou": miou} for name, miou in scored.items()})
    assert points == pytest.approx(-0.11) and pair == ("a", "b", "a+b")
    assert worst_pair({"a": {"miou": 0.5}}) is None
    # rgb 0.5, dsm 0.25, both 0.75
    assert "The least that an added sensor brings is +25.00, dsm to `rgb`." in result_remarks(EVALUATION)


def plain_resamples(rows, pair, num_resamples):
    found = []
    for weights in resampled_weights(12, num_resamples):
        differences = []
        for row in rows:
            tiles = row["results"]["test"]["tiles"]["confusion"]
            drawn = [tile for tile in range(12) for _ in range(int(weights[tile]))]
            sums = [sum(np.reshape(tiles[name][tile], (2, 2)) for tile in drawn) for name in pair]
            differences.append(segmentation_scores(sums[1])["miou"] - segmentation_scores(sums[0])["miou"])
        found.append(np.mean(differences))
    return np.array(found)


def test_intervals_and_marks_are_those_of_plain_loops(monkeypatch):
    monkeypatch.setattr("sgma_hf.comparison.card.experiments.resampled_weights", lambda n: resampled_weights(n, 200))
    rows = [made_up_tiles("sgma", seed, 0.85) for seed in (0, 1, 2)]
    for row in rows[:2]:  # two seeds in which b costs a lot: the worst pair of the mean
        tiles = row["results"]["test"]["tiles"]["confusion"]
        tiles["a+b"] = [[n - 60, m + 60, *rest] for n, m, *rest in tiles["b"]]
        scores = row["results"]["test"]["combinations"]
        scores["a+b"] |= segmentation_scores(np.sum(tiles["a+b"], axis=0).reshape(2, 2))
        miou = [one["miou"] for one in scores.values()]
        summed = {"average_miou": np.mean(miou), "last1_miou": min(miou), "top1_miou": max(miou)}
        row["results"]["test"] |= summed
    found, p_values = tables(rows), []
    for without, name in (("a", "b to `a`"), ("b", "a to `b`")):
        brings, over_seeds, over_tiles = found["added_pairs"][f"{name}, `sgma`"]
        miou = [{key: one["miou"] for key, one in row["results"]["test"]["combinations"].items()} for row in rows]
        differences = [one["a+b"] - one[without] for one in miou]
        half = t_quantile(0.95, 2) * np.std(differences, ddof=1) / math.sqrt(3)
        assert brings.value == pytest.approx(np.mean(differences))
        assert (over_seeds.low, over_seeds.high) == pytest.approx((brings.value - half, brings.value + half))
        resampled = plain_resamples(rows, (without, "a+b"), 200)
        assert (over_tiles.low, over_tiles.high) == pytest.approx(tuple(np.quantile(resampled, (0.025, 0.975))))
        p_values.append(min(1.0, 2 * (min((resampled <= 0).sum(), (resampled >= 0).sum()) + 1) / 201))
    marked = ["t" in found["added_pairs"][f"{name}, `sgma`"][0].text for name in ("b to `a`", "a to `b`")]
    assert marked == [p < 0.05 for p in holm(p_values)] and True in marked
    split, worst, brings, _, _, mean, cost, cost_much = found["added"]["`sgma`"]
    assert (split, worst) == ("`test`", "b to `a`") and brings.value < -0.005
    both = [found["added_pairs"][f"{name}, `sgma`"][0].value for name in ("b to `a`", "a to `b`")]
    assert mean.value == pytest.approx(np.mean(both)) and brings.value == min(both)
    count = sum(value < 0 for value in both)
    assert cost.text == cost_much.text == f"{count} of 2 ({50 * count} %)"


def test_splits_to_choose_by_have_their_line_and_lines_without_tiles_no_interval_over_them():
    rows = [made_up_run("sgma", seed, 0.6, top=0.597) for seed in (0, 1)]
    for row in rows:
        row["results"]["validation"] = made_up_run("sgma", 0, 0.5)["results"]["test"]
        row["dataset"]["rows"]["validation"] = {"count": 3, "per_modality": [3, 3]}
    (table,) = [one for one in make_card(rows).tables[""] if one.name == "added"]
    reported, chosen = [list(map(str, line)) for line in table.lines]
    # a 0.3, b 0.6, both 0.597: a costs 0.3 points, which is less than 0.5
    assert reported[:4] == ["`sgma`", "`test`", "a to `b`", "-0.3 s"] and reported[5:] == [
        "–", "+14.7", "1 of 2 (50 %)", "0 of 2 (0 %)",
    ]  # fmt: skip
    assert chosen[:4] == ["`sgma`", "`validation`", "a to `b`", "+20.0 s"]  # 0.7 - 0.5


def test_combinations_without_a_score_have_a_dash():
    run = made_up_run("sgma", 0, 0.6)
    for scores in (run["results"]["test"]["combinations"][name] for name in ("b", "a+b")):
        scores["miou"] = None
    assert "added" not in tables([run])
    run["results"]["test"]["combinations"]["a+b"]["miou"] = 0.5
    found = tables([run])
    assert [str(cell) for cell in found["added_pairs"]["a to `b`, `sgma`"]] == ["–", "–", "–"]
    assert found["added"]["`sgma`"][1] == "b to `a`" and found["added"]["`sgma`"][6].text == "0 of 1 (0 %)"
