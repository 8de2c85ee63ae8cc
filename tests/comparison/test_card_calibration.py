"""What the card says of confidences: a table and a figure of made-up counts."""

import numpy as np
import pytest
from comparison_fixtures import made_up_run
from figure_checks import assert_legible

from sgma_hf.comparison.card.experiments import group_runs
from sgma_hf.comparison.card.figures import figures_of
from sgma_hf.comparison.card.report import make_card


def made_up_counts(pixels, right, confidence):
    """Counts of three bins; confidence is a mean in each."""
    counts = {name: [0] * 15 for name in ("pixels", "right", "confidence")}
    for place, *of_bin in zip((6, 10, 14), pixels, right, confidence, strict=True):
        counts["pixels"][place], counts["right"][place] = of_bin[:2]
        counts["confidence"][place] = round(of_bin[0] * of_bin[2] * 1e6)
    return {"ece": None} | counts  # computed from the counts


def made_up_calibration(seed):
    plain = made_up_counts((100, 100, 800), (30, 60, 720 - 8 * seed), (0.45, 0.7, 1.0))
    scaled = made_up_counts((200, 200, 600), (90, 140, 594), (0.45, 0.7, 0.99))
    nothing = made_up_counts((0, 0, 0), (0, 0, 0), (0, 0, 0))
    combinations = {"a": [plain, scaled], "b": [nothing, nothing], "a+b": [plain, scaled]}
    return {"temperatures": [1.0, 1.2 + 0.2 * seed], "combinations": combinations}


def test_errors_are_computed_from_the_counts():
    rows = [made_up_run("sgma", seed, 0.6, calibration=made_up_calibration(seed)) for seed in (0, 1)]
    plain_only = made_up_calibration(0)
    plain_only["temperatures"] = [1.0]
    plain_only["combinations"] = {name: parts[:1] for name, parts in plain_only["combinations"].items()}
    rows += [made_up_run("mean", 0, 0.5, calibration=plain_only), made_up_run("early", 0, 0.5)]
    (table,) = [one for one in make_card(rows).tables[""] if one.name == "calibration"]
    lines = [list(map(str, line)) for line in table.lines]
    # (|30 - 45| + |60 - 70| + |720 - 800|) / 1000, and 88 in the second seed
    assert lines == [
        ["`mean`", "as trained", "1", "10.5", "–", "10.5"],
        ["`sgma`", "as trained", "1", "10.9 ± 0.6", "–", "10.9 ± 0.6"],
        ["`sgma`", "with the temperature", "1.30 ± 0.14", "0.0 ± 0.0", "–", "0.0 ± 0.0"],
    ]
    (experiment,) = group_runs(rows)
    figure = figures_of(experiment)["calibration"]
    assert_legible(figure)
    panels = {(axes.get_ylabel(), axes.get_title()) for axes in figure.axes}
    assert panels == {("mean", "as trained"), ("sgma", "as trained"), ("", "with the temperature")}
    (axes,) = [axes for axes in figure.axes if axes.get_ylabel() == "sgma"]
    _, line, *_ = axes.lines  # after the diagonal
    assert line.get_xdata() == pytest.approx([0.45, 0.7, 1.0])
    assert line.get_ydata() == pytest.approx([0.3, 0.6, np.mean([720, 712]) / 800])
    assert "calibration" not in figures_of(group_runs(rows[-1:])[0])
