"""What the card says of robustness maps: tables and figures of made-up lines, against plain loops."""

import numpy as np
import pytest
from comparison_fixtures import made_up_run
from figure_checks import assert_legible, written

from sgma_hf.comparison.card.experiments import group_runs
from sgma_hf.comparison.card.figures import figures_of
from sgma_hf.comparison.card.report import make_card
from sgma_hf.comparison.card.statistics import resampled_weights
from sgma_hf.evaluation.metrics import segmentation_scores


REMOVED = {"nothing": 0.9, "least": 0.8, "random": 0.7, "most": 0.75}  # share right; the most costs less than any


def made_up_reliance(seed, *, relied_on=0.66, num_tiles=12):
    """Figures of a map that is right about the second class and misleads about the first."""
    rng = np.random.default_rng(seed)
    figures = {"correlation": -0.25, "auc": 0.75}
    by_class = [
        {"a": figures | {"reliance": 0.7}, "b": figures | {"reliance": 0.3}},
        {"a": figures | {"reliance": 0.4}, "b": figures | {"reliance": 0.6}},
    ]
    stage = {
        "modalities": {name: figures for name in "ab"},
        "classes": [figures | {"auc": 0.4}, figures],
        "classes_per_modality": {name: [one[name] for one in by_class] for name in "ab"},
    }
    choice = {"chance": 0.5, "fused": 0.7, "contested_pixels": 100}
    classes = [
        choice | {"relied_on": {"mean": 0.3 + 0.01 * seed}, "always": {"a": 0.35, "b": 0.8}},
        choice | {"relied_on": {"mean": relied_on}, "always": {"a": 0.5, "b": 0.6}},
    ]
    confusion = {}
    for name, share in REMOVED.items():
        hits = [rng.binomial((400, 200), share).tolist() for _ in range(num_tiles)]
        confusion[name] = [[one, 400 - one, 200 - two, two] for one, two in hits]
    bins = np.zeros((2, 2, 2, 20), dtype=int)
    bins[0, 0, :, 3], bins[0, 0, :, 12], bins[0, 0, 0, 19] = (10, 30), (90, 30), 1000 * (seed == 0)
    return {
        "stages": {"mean": stage},
        "contested_stages": {"mean": stage},
        "contested_bins": bins.tolist(),
        "choice": {"overall": classes[1], "classes": classes},
        "deletion": {"ids": [f"tile_{tile}" for tile in range(num_tiles)], "confusion": confusion},
    }


def made_up_lines(**changes):
    return [made_up_run("sgma", seed, 0.6, reliance=made_up_reliance(seed, **changes)) for seed in (0, 1)]


def tables(rows):
    (found,) = make_card(rows).tables.values()
    return {table.name: table for table in found}


def test_classes_about_which_the_map_misleads_have_figures_below_zero():
    first, second = (list(map(str, line)) for line in tables(made_up_lines())["choice_by_class"].lines)
    # relied on 30 and 31 %, chance 50, b always 80; differences -20 and -19: t = 39, p = 0.016, times 2
    assert first == ["`sgma`", "bare", "a", "b", "30.5 ± 0.7", "-19.5 s", "-49.5 s", "0.40 ± 0.00"]
    assert second == ["`sgma`", "crop", "b", "b", "66.0 ± 0.0", "+16.0 s", "+6.0 s", "0.75 ± 0.00"]
    rows = made_up_lines()
    del rows[0]["reliance"]["contested_stages"]["mean"]["classes_per_modality"]["a"][0]["reliance"]
    rows[0]["reliance"]["choice"]["classes"][0]["always"]["b"] = None
    first, _ = (list(map(str, line)) for line in tables(rows)["choice_by_class"].lines)
    assert first[2:4] == ["b", "a"] and first[6] == "-4.5"


def test_deletion_is_scored_from_its_counts_with_intervals_over_tiles():
    rows = made_up_lines()
    (line,) = tables(rows)["deletion"].lines
    for name, cell in zip(REMOVED, line[1:5], strict=True):
        miou = [
            segmentation_scores(np.sum(row["reliance"]["deletion"]["confusion"][name], axis=0).reshape(2, 2))["miou"]
            for row in rows
        ]
        assert cell.value == pytest.approx(np.mean(miou)) and cell.deviation == pytest.approx(np.std(miou, ddof=1))
    least_random, random_most, least_nothing = line[5:]
    assert least_random.value == pytest.approx(line[2].value - line[3].value) and "t" in least_random.text
    assert random_most.value < 0 and "t" in random_most.text  # the map misleads
    assert least_nothing.value == pytest.approx(line[2].value - line[1].value)
    wide = made_up_lines(num_tiles=2)
    (line,) = tables(wide)["deletion"].lines
    drawn = []
    for weights in resampled_weights(2):
        scores = []
        for row in wide:
            found = row["reliance"]["deletion"]["confusion"]
            sums = {name: (weights[:, None] * found[name]).sum(0).reshape(2, 2) for name in ("random", "most")}
            miou = {}
            for name, matrix in sums.items():
                union = matrix.sum(0) + matrix.sum(1) - np.diag(matrix)
                miou[name] = (np.diag(matrix) / union).mean()
            scores.append(miou["random"] - miou["most"])
        drawn.append(np.mean(scores))
    p_value = 2 * (min((np.array(drawn) <= 0).sum(), (np.array(drawn) >= 0).sum()) + 1) / (len(drawn) + 1)
    assert ("t" in line[6].text) == (p_value < 0.05)


def test_figures_show_pixels_by_their_reliance():
    (experiment,) = group_runs([*made_up_lines(), made_up_run("mean", 0, 0.5, reliance={"stages": None})])
    figures = figures_of(experiment)
    assert {"reliance", "deletion"} < set(figures)
    assert_legible(figures["reliance"])
    bare, crop = figures["reliance"].axes[:2]
    (line, *_) = bare.lines
    # both seeds: of 80 pixels in the fourth bin 20 are right, of 240 in the thirteenth 180, and 1000 in the last
    assert line.get_xdata() == pytest.approx([0.175, 0.625, 0.975])
    assert line.get_ydata() == pytest.approx([0.25, 0.75, 1.0])
    assert all(len(one.get_xdata()) == 0 for one in crop.lines)
    assert [axes.get_title() for axes in (bare, crop)] == ["bare", "crop"]
    assert "most relied on" in written(figures["deletion"])


def test_lines_of_earlier_versions_have_what_they_hold():
    rows = made_up_lines()
    for row in rows:
        for name in ("deletion", "contested_bins"):
            del row["reliance"][name]
    assert {"reliance", "choice", "choice_by_class"} < set(tables(rows)) and "deletion" not in tables(rows)
    (experiment,) = group_runs(rows)
    assert "reliance" not in figures_of(experiment)
