"""Charts of methods beside each other: what stands in them, and that it can be read."""

import numpy as np
import pytest
from figure_checks import assert_legible, written

from sgma_hf.evaluation.combinations import modality_combinations
from sgma_hf.visualization.boards import plot_predictions
from sgma_hf.visualization.comparison_charts import (
    _alike,
    plot_confusion,
    plot_mean_ranks,
    plot_planes,
    plot_scores,
)


MANY = [f"my_package.my_module:AN_ARM_WHOSE_NAME_IS_LONG_{number}" for number in range(17)]


def test_scores_are_written_in_percent_and_what_is_not_known_is_a_dash():
    figure = plot_scores({"one": {"a": 0.5, "a+b": 0.75}, "two": {"a": 0.254, "a+b": None}}, title="mIoU in %")
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert texts == ["50.0", "75.0", "25.4", "–"]
    assert_legible(figure)
    assert_legible(plot_scores({arm: {f"before+after+{i}": 0.1 * i for i in range(10)} for arm in MANY}, title="x"))
    with pytest.raises(ValueError, match="no figure"):
        plot_scores({"one": {"a": None}})


def test_confusion_is_shown_as_shares_of_each_true_class():
    counts = np.array([[6, 2, 0], [0, 0, 0], [5, 0, 5]])
    figure = plot_confusion({"one": {"all": counts, "a alone": counts}, "two": {"all": counts}}, ["x", "y", "z"])
    (texts, *_) = [[text.get_text() for text in axes.texts] for axes in figure.axes]
    assert texts == ["0.75", "0.25", "0.00", "–", "–", "–", "0.50", "0.00", "0.50"]
    names = ["low_vegetation", "impervious", "building", "tree", "car"]
    full = np.eye(5, dtype=int) + 1
    figure = plot_confusion({arm: {"all modalities": full, "rgb alone": full} for arm in MANY[:3]}, names, title="x")
    assert_legible(figure)


def test_runs_of_ranks_within_the_critical_difference():
    assert _alike([1.0, 1.5, 2.2, 4.0], 1.0) == [(0, 1), (1, 2)]
    assert _alike([1.0, 1.5, 2.0, 4.0], 1.0) == [(0, 2)]
    assert _alike([1.0, 3.0], 1.0) == []
    assert _alike([1.0, 2.0, 3.0], 5.0) == [(0, 2)]


def test_ranks_are_drawn_from_the_best_on():
    figure = plot_mean_ranks({"bad": 2.9, "good": 1.1, "middle": 2.0}, 0.95, title="Ranks")
    texts = written(figure)
    assert {"good  1.10", "middle  2.00", "2.90  bad", "critical difference 0.95", "Ranks"} <= set(texts)
    thick = [line for line in figure.axes[0].lines if line.get_linewidth() == 3]
    assert len(thick) == 2  # good and middle, middle and bad
    assert_legible(figure)
    assert_legible(plot_mean_ranks({arm: 1 + 0.9 * n for n, arm in enumerate(MANY)}, 1.9, title="Mean ranks"))


def test_points_have_the_colours_of_their_classes():
    points, classes = np.array([[0.0, 1.0], [2.0, 3.0]]), np.array([1, 0])
    palette = [[255, 0, 0], [0, 0, 255]]
    planes = {"one": (points, classes, points[:1], classes[:1]), "two": (points, classes, None, None)}
    figure = plot_planes(planes, ["x", "y"], palette, title="Features")
    first, marks = figure.axes[0].collections
    np.testing.assert_array_equal(first.get_offsets(), points)
    np.testing.assert_array_equal(first.get_facecolors(), [[0, 0, 1, 1], [1, 0, 0, 1]])
    np.testing.assert_array_equal(marks.get_offsets(), points[:1])
    assert len(figure.axes[1].collections) == 1
    assert {"one", "two", "x", "y", "prototype", "Features"} <= set(written(figure))
    assert_legible(figure)


def test_predictions_of_methods_stand_below_the_sample():
    label = np.array([[0, 1], [1, 255]], dtype=np.uint8)
    ids = {"one": {"a": label, "a+b": 1 - (label > 0)}, "two": {"a": np.zeros_like(label), "a+b": label}}
    images = {"a": np.zeros((2, 2), np.uint8), "b": None}
    figure = plot_predictions(images, label, ids, class_names=["bare", "crop"], title="Row 1")
    assert [axes.get_title() for axes in figure.axes] == ["a", "b", "labels", "a", "a+b", "a", "a+b"]
    captions = [axes.get_xlabel() for axes in figure.axes[3:]]
    assert captions == ["100.0% of pixels right", "0.0% of pixels right", "33.3% of pixels right", captions[0]]
    assert {"one", "two", "bare", "crop", "Row 1"} <= set(written(figure))
    assert_legible(figure)
    names = modality_combinations(["s1_before", "s1_after", "s2_before", "s2_after"])
    wide = plot_predictions(images, label, {arm: {"+".join(name): label for name in names} for arm in MANY[:2]})
    clouded, clear = np.array([[0, 0], [0, 7]], np.uint8), np.array([[0, 9], [9, 9]], np.uint8)
    series = {"a": [clouded, clear], "a_dates": ["2019-03-02", None], "b": []}
    shown = plot_predictions(series, label, ids, nodata={"a": [0]})
    assert [axes.get_title() for axes in shown.axes[:3]] == ["a", "b", "labels"]
    assert (
        shown.axes[0].get_xlabel()
        == plot_predictions({"a": clear}, label, ids, nodata={"a": [0]}).axes[0].get_xlabel()
    )
    assert "s1_before+s1_after+\ns2_before+s2_after" in [axes.get_title() for axes in wide.axes]
    assert_legible(wide)
