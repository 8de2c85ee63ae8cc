"""Confusion matrices and scores, against values worked by hand."""

import numpy as np
import pytest
import torch

from sgma_hf.evaluation.mean_iou_metric import SgmaMeanIou
from sgma_hf.evaluation.metrics import confusion_matrix, count_pixels, segmentation_scores


# Rows and columns both sum to 5, 4, 4, so the unions are 5 + 5 - 4, 4 + 4 - 2 and 4 + 4 - 3.
LABELS = np.array([0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2], dtype=np.uint8)
PREDICTIONS = np.array([0, 0, 0, 0, 1, 0, 1, 1, 2, 1, 2, 2, 2], dtype=np.uint8)
CONFUSION = [[4, 1, 0], [1, 2, 1], [0, 1, 3]]


def test_hand_worked_confusion_matrix_has_the_truth_in_rows():
    confusion = confusion_matrix(PREDICTIONS, LABELS, 3)
    assert confusion.tolist() == CONFUSION
    assert confusion.dtype == np.int64
    only_confused = confusion_matrix(np.array([2]), np.array([0]), 3)
    assert only_confused.tolist() == [[0, 0, 1], [0, 0, 0], [0, 0, 0]]


def test_hand_worked_scores():
    scores = segmentation_scores(np.array(CONFUSION))
    assert scores["iou"] == pytest.approx([4 / 6, 2 / 6, 3 / 5], abs=1e-15)
    assert scores["miou"] == pytest.approx((4 / 6 + 2 / 6 + 3 / 5) / 3, abs=1e-15)
    assert scores["f1_per_class"] == pytest.approx([8 / 10, 4 / 8, 6 / 8], abs=1e-15)
    assert scores["f1"] == pytest.approx((0.8 + 0.5 + 0.75) / 3, abs=1e-15)
    assert scores["accuracy"] == pytest.approx(9 / 13, abs=1e-15)
    assert scores["users_accuracy"] == scores["producers_accuracy"] == pytest.approx([4 / 5, 2 / 4, 3 / 4], abs=1e-15)
    chance = (5 * 5 + 4 * 4 + 4 * 4) / 13**2
    assert scores["kappa"] == pytest.approx((9 / 13 - chance) / (1 - chance), abs=1e-15)
    assert scores["pixels"] == 13


@pytest.mark.filterwarnings("ignore")  # it warns of what is undefined
@pytest.mark.parametrize("seed", range(20))
def test_scores_are_those_of_scikit_learn(seed):
    metrics = pytest.importorskip("sklearn.metrics")
    generator = np.random.default_rng(seed)
    num_labels = int(generator.integers(2, 8))
    # few pixels and uneven classes, so that some occur on one side only, or nowhere
    shares = generator.dirichlet(np.full(num_labels, 0.3), size=2)
    truth, predicted = (generator.choice(num_labels, 40, p=share) for share in shares)
    scores = segmentation_scores(confusion_matrix(predicted, truth, num_labels))
    classes = {"labels": range(num_labels), "average": None, "zero_division": np.nan}

    def expected(values, defined):
        return [value if ok else None for value, ok in zip(values.tolist(), defined, strict=True)]

    is_true, is_predicted = (np.isin(range(num_labels), ids) for ids in (truth, predicted))
    either = is_true | is_predicted
    recall = expected(metrics.recall_score(truth, predicted, **classes), is_true)
    precision = expected(metrics.precision_score(truth, predicted, **classes), is_predicted)
    f1 = expected(metrics.f1_score(truth, predicted, **classes), either)
    iou = expected(metrics.jaccard_score(truth, predicted, **classes | {"zero_division": 0}), either)
    assert scores["producers_accuracy"] == pytest.approx(recall, abs=1e-12)
    assert scores["users_accuracy"] == pytest.approx(precision, abs=1e-12)
    assert scores["f1_per_class"] == pytest.approx(f1, abs=1e-12)
    assert scores["iou"] == pytest.approx(iou, abs=1e-12)
    assert scores["accuracy"] == pytest.approx(metrics.accuracy_score(truth, predicted), abs=1e-12)
    kappa = metrics.cohen_kappa_score(truth, predicted)
    assert scores["kappa"] == (None if np.isnan(kappa) else pytest.approx(kappa, abs=1e-12))
    only = np.flatnonzero(either).tolist()
    for name, score in (("f1", metrics.f1_score), ("miou", metrics.jaccard_score)):
        mean = score(truth, predicted, labels=only, average="macro", zero_division=0)
        assert scores[name] == pytest.approx(mean, abs=1e-12)


def test_means_over_chosen_classes_count_the_pixels_of_all():
    scores = segmentation_scores(np.array(CONFUSION), scored_classes=["c", "a"], class_names=["a", "b", "c"])
    everything = segmentation_scores(np.array(CONFUSION))
    assert scores["miou"] == pytest.approx((4 / 6 + 3 / 5) / 2, abs=1e-15)
    assert scores["f1"] == pytest.approx((0.8 + 0.75) / 2, abs=1e-15)
    assert {name for name in scores if scores[name] != everything[name]} == {"miou", "f1"}


def test_chosen_class_that_occurs_nowhere_is_left_out_of_the_mean():
    confusion = np.array([[3, 1, 0], [0, 0, 0], [0, 0, 0]])
    scores = segmentation_scores(confusion, scored_classes=["a", "c"], class_names=["a", "b", "c"])
    assert scores["miou"] == 0.75
    nothing = segmentation_scores(confusion, scored_classes=["c"], class_names=["a", "b", "c"])
    assert (nothing["miou"], nothing["f1"], nothing["accuracy"]) == (None, None, 0.75)


def test_ignored_pixels_do_not_count_whatever_is_predicted_there():
    confusion = confusion_matrix(np.array([0, 1, 200]), np.array([0, 255, 255]), 2)
    assert confusion.tolist() == [[1, 0], [0, 0]]


def test_another_ignore_index_hides_a_class():
    confusion = confusion_matrix(np.array([0, 1, 1]), np.array([0, 1, 0]), 2, ignore_index=0)
    assert confusion.tolist() == [[0, 0], [0, 1]]


def test_class_that_occurs_nowhere_is_left_out_of_the_mean():
    scores = segmentation_scores(confusion_matrix(np.array([0, 1, 1]), np.array([0, 0, 1]), 3))
    assert scores["iou"] == [0.5, 0.5, None]
    assert scores["miou"] == 0.5


def test_class_only_predicted_scores_zero_or_is_left_out_by_choice():
    confusion = confusion_matrix(np.array([0, 0, 0, 2]), np.array([0, 0, 0, 0]), 3)
    union = segmentation_scores(confusion)
    assert union["iou"] == [0.75, None, 0.0]
    assert union["miou"] == 0.375
    truth = segmentation_scores(confusion, scored_classes="truth")
    assert truth["iou"] == [0.75, None, None]
    assert truth["miou"] == 0.75
    assert union["accuracy"] == truth["accuracy"] == 0.75


def test_all_ignored_leaves_every_score_undefined():
    scores = segmentation_scores(confusion_matrix(np.zeros((2, 2), int), np.full((2, 2), 255), 2))
    assert scores == {
        "miou": None,
        "iou": [None, None],
        "f1": None,
        "f1_per_class": [None, None],
        "accuracy": None,
        "kappa": None,
        "users_accuracy": [None, None],
        "producers_accuracy": [None, None],
        "pixels": 0,
    }


def test_single_class():
    assert segmentation_scores(confusion_matrix(np.zeros(3, int), np.array([0, 0, 255]), 1))["miou"] == 1.0


@pytest.mark.parametrize("value", [3, 254, -1])
def test_label_outside_the_classes_is_an_error_that_names_it(value):
    with pytest.raises(ValueError, match=rf"`labels` holds {value}; expected class ids from 0 to 2"):
        confusion_matrix(np.array([0, 0]), np.array([0, value]), 3)


def test_prediction_outside_the_classes_is_an_error():
    with pytest.raises(ValueError, match="`predictions` holds 3"):
        confusion_matrix(np.array([3]), np.array([0]), 3)
    with pytest.raises(ValueError, match="`predictions` holds 255"):
        confusion_matrix(np.array([255]), np.array([0]), 3)


def test_float_labels_and_other_shapes_are_errors():
    with pytest.raises(TypeError, match="`labels` is of type float64"):
        confusion_matrix(np.array([0]), np.array([0.0]), 2)
    with pytest.raises(ValueError, match=r"shape \(1, 2\) and `labels` \(2, 1\)"):
        confusion_matrix(np.zeros((1, 2), int), np.zeros((2, 1), int), 2)


def test_many_classes_do_not_overflow_small_integer_types():
    confusion = confusion_matrix(np.array([254], np.uint8), np.array([253], np.uint8), 255)
    assert confusion.sum() == 1 and confusion[253, 254] == 1


def test_tensors_are_counted_alike_on_their_device():
    predictions, labels = torch.from_numpy(PREDICTIONS), torch.from_numpy(LABELS)
    assert confusion_matrix(predictions, labels, 3).tolist() == CONFUSION
    counted = torch.ones(13, dtype=torch.bool)
    assert count_pixels(predictions.long(), labels.long(), 3, counted).tolist() == CONFUSION
    counted[4] = False  # the one pixel of class 0 that was taken for class 1
    assert count_pixels(predictions.long(), labels.long(), 3, counted).tolist() == [[4, 0, 0], *CONFUSION[1:]]


def test_counts_add_up_over_images_of_different_sizes():
    generator = np.random.default_rng(0)
    pairs = [(generator.integers(0, 4, size), generator.integers(0, 4, size)) for size in [(3, 5), (7, 2)]]
    together = [np.concatenate([pair[i].ravel() for pair in pairs]) for i in range(2)]
    separate = sum(confusion_matrix(*pair, 4) for pair in pairs)
    np.testing.assert_array_equal(separate, confusion_matrix(*together, 4))


def test_evaluate_metric_works_offline(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    metric = SgmaMeanIou(cache_dir=str(tmp_path))
    metric.add_batch(predictions=[PREDICTIONS[None].tolist()], references=[LABELS[None].tolist()])
    metric.add_batch(predictions=[[[0], [1]]], references=[[[255], [1]]])  # a map of another size
    scores = metric.compute(num_labels=3, scored_classes=["b"], class_names=["a", "b", "c"])
    assert scores["pixels"] == 14
    assert scores["miou"] == scores["iou"][1]
    assert scores["iou"] == pytest.approx([4 / 6, 3 / 7, 3 / 5], abs=1e-15)


def test_scores_refuse_what_is_no_confusion_matrix():
    with pytest.raises(ValueError, match=r"shape \(2, 3\)"):
        segmentation_scores(np.zeros((2, 3), int))
    with pytest.raises(ValueError, match="'present'"):
        segmentation_scores(np.zeros((2, 2), int), scored_classes="present")
    for wrong, said in (
        (["tree", "bilding"], "did you mean building"),
        ([], "some, each once"),
        (["tree"] * 2, "once"),
    ):
        with pytest.raises(ValueError, match=said):
            segmentation_scores(np.zeros((2, 2), int), scored_classes=wrong, class_names=["building", "tree"])
