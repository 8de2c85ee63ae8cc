"""Confusion matrices of integers, and the scores that are divided from them once, at the end.

Which classes count in a mean is a choice, and it moves the figures. Here:

- IoU and F1 of class k are undefined where its union (true or predicted pixels) is empty: None, left out of the mean.
  They are never scored 0 for that, and never 1.
- A class that has no true pixel but is predicted somewhere has IoU and F1 0, which counts in the mean
  (`scored_classes="union"`, the usual definition). `scored_classes="truth"` leaves such a class out as well, so that
  the mean runs over the same classes whatever a model predicts.
- Classes that are named, `scored_classes=["building", "tree"]`, are those of the means. All pixels count as before: a
  pixel of another class that is taken for a building is an error of building.
- Accuracy is the share of all counted pixels that are right (overall accuracy), kappa what of it chance would not
  give. Neither depends on which classes count in the means.
- User's accuracy of a class is the share of the pixels predicted as it that are it (precision), producer's accuracy
  the share of its true pixels that were predicted as it (recall); None where there is no such pixel.
"""

import operator
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch

from ..data.command_line import did_you_mean


ScoredClasses = Literal["union", "truth"] | Sequence[str]


def confusion_matrix(
    predictions: np.ndarray | torch.Tensor,
    labels: np.ndarray | torch.Tensor,
    num_labels: int,
    *,
    ignore_index: int = 255,
) -> np.ndarray:
    """Count the pixels of each pair of true and predicted class.

    Args:
        predictions: Predicted class ids, integer, any shape. What stands at ignored pixels does not matter.
        labels: True class ids, integer, the shape of `predictions`, in [0, num_labels) or `ignore_index`.
        num_labels: Number of classes K.
        ignore_index: Label of the pixels that are not counted.

    Returns:
        Counts in pixels, int64, shape (num_labels, num_labels); rows are the truth, columns the prediction.

    Raises:
        TypeError: If either input is not of an integer type.
        ValueError: If the shapes differ, or a counted pixel's label or prediction is outside [0, num_labels).

    Example:
        >>> confusion_matrix(np.array([0, 1, 1]), np.array([0, 0, 255]), 2).tolist()
        [[1, 1], [0, 0]]
    """
    predictions, labels = _as_integers(predictions, "predictions"), _as_integers(labels, "labels")
    if predictions.shape != labels.shape:
        raise ValueError(
            f"`predictions` has shape {tuple(predictions.shape)} and `labels` {tuple(labels.shape)}; they must be "
            "equal. Resize the predictions to the labels' size."
        )
    counted = labels != ignore_index
    predictions, labels = predictions[counted], labels[counted]
    check_class_ids(labels, num_labels, "labels", ignore_index=ignore_index)
    check_class_ids(predictions, num_labels, "predictions", ignore_index=None)
    return count_pixels(predictions, labels, num_labels, torch.tensor(True)).numpy()


def count_pixels(
    predictions: torch.Tensor, labels: torch.Tensor, num_labels: int, counted: torch.Tensor
) -> torch.Tensor:
    """Count as `confusion_matrix` does where `counted` is True, on the tensors' own device and without its checks."""
    return count_cells(labels * num_labels + predictions, num_labels**2, counted).view(num_labels, num_labels)


def count_by_row(
    predictions: torch.Tensor, labels: torch.Tensor, num_labels: int, counted: torch.Tensor
) -> torch.Tensor:
    """Count as `count_pixels` does, each row of a batch (batch_size, height, width) apart: (batch_size, K, K)."""
    batch_size = labels.shape[0]
    rows = torch.arange(batch_size, device=labels.device)[:, None, None]
    cells = (rows * num_labels + labels) * num_labels + predictions
    return count_cells(cells, batch_size * num_labels**2, counted).view(batch_size, num_labels, num_labels)


def count_cells(cells: torch.Tensor, num_cells: int, counted: torch.Tensor) -> torch.Tensor:
    """How often each of `num_cells` comes where `counted` is True, int64; no device is waited for."""
    # What doesn't count goes to a cell of its own, which spares gathers of unknown size. `bincount` asks for extremes.
    cells = torch.where(counted, cells, num_cells).flatten()
    return cells.new_zeros(num_cells + 1).scatter_add_(0, cells, torch.ones_like(cells))[:-1]


def check_class_ids(
    values: np.ndarray | torch.Tensor, num_labels: int, name: str, *, ignore_index: int | None = 255
) -> None:
    """Raise a ValueError that names the first class id outside [0, num_labels), other than `ignore_index`."""
    wrong = (values < 0) | (values >= num_labels)
    if ignore_index is not None:
        wrong &= values != ignore_index
    if bool(wrong.any()):
        otherwise = "" if ignore_index is None else f", or {ignore_index} where there is no label"
        raise ValueError(
            f"`{name}` holds {int(values[wrong][0])}; expected class ids from 0 to {num_labels - 1} "
            f"({num_labels} classes){otherwise}. Remap the ids, or use a model of more classes."
        )


def check_scored_classes(scored_classes: ScoredClasses, class_names: Sequence[str]) -> None:
    """Raise a ValueError unless it is one of the two policies, or different names of classes."""
    if isinstance(scored_classes, str):
        if scored_classes not in ("union", "truth"):
            raise ValueError(
                f"`scored_classes` is {scored_classes!r}; expected 'union', 'truth', or names of classes in a list."
            )
        return
    for name in scored_classes:
        if name not in class_names:
            hint = did_you_mean(str(name), class_names) or "."
            raise ValueError(f"Class to score {name!r} is none of the classes {list(class_names)}{hint}")
    if not scored_classes or len(set(scored_classes)) < len(scored_classes):
        raise ValueError(f"Classes to score are {list(scored_classes)}; expected some, each once.")


def segmentation_scores(
    confusion: np.ndarray, *, scored_classes: ScoredClasses = "union", class_names: Sequence[str] = ()
) -> dict[str, Any]:
    """Divide a confusion matrix into the usual scores, fractions in [0, 1] (kappa in [-1, 1]) and in float64.

    Args:
        confusion: Counts in pixels, integer, shape (num_labels, num_labels); rows are the truth.
        scored_classes: `union` leaves out of the means the classes that occur neither in the truth nor in the
            prediction; `truth` leaves out all that do not occur in the truth; names take the means over those of
            these classes that occur in either.
        class_names: Names of the classes, where `scored_classes` is names.

    Returns:
        `miou` and `f1`, means over the scored classes; `iou` and `f1_per_class`, lists of one value per class;
        `accuracy`, the share of pixels that are right; `kappa`, Cohen's; `users_accuracy` and `producers_accuracy`,
        lists of one value per class; `pixels`, their number. None stands for what is undefined: a class that is left
        out by policy and, where no pixel was counted, all scores.

    Raises:
        ValueError: If `confusion` is not square, or `scored_classes` is unknown.
    """
    confusion = np.asarray(confusion)
    if confusion.ndim != 2 or confusion.shape[0] != confusion.shape[1]:
        raise ValueError(f"`confusion` has shape {confusion.shape}; expected (num_labels, num_labels).")
    check_scored_classes(scored_classes, class_names)
    hits = np.diag(confusion)
    true, predicted = confusion.sum(axis=1), confusion.sum(axis=0)
    union = true + predicted - hits
    scored = (true if scored_classes == "truth" else union) > 0
    iou, f1 = _shares(hits, union, scored), _shares(2 * hits, true + predicted, scored)
    chosen = range(len(hits))
    if not isinstance(scored_classes, str):
        chosen = [list(class_names).index(name) for name in scored_classes]
    pixels = int(confusion.sum())
    return {
        "miou": mean_of_defined([iou[index] for index in chosen]),
        "iou": iou,
        "f1": mean_of_defined([f1[index] for index in chosen]),
        "f1_per_class": f1,
        "accuracy": float(hits.sum() / pixels) if pixels else None,
        "kappa": _kappa(int(hits.sum()), sum(map(operator.mul, true.tolist(), predicted.tolist())), pixels),
        "users_accuracy": _shares(hits, predicted, predicted > 0),
        "producers_accuracy": _shares(hits, true, true > 0),
        "pixels": pixels,
    }


def _shares(parts: np.ndarray, wholes: np.ndarray, defined: np.ndarray) -> list[float | None]:
    return [float(p / w) if d else None for p, w, d in zip(parts, wholes, defined, strict=True)]


def _kappa(hits: int, by_chance: int, pixels: int) -> float | None:
    """Cohen's kappa, (accuracy - chance) / (1 - chance), in whole numbers; None where chance is always right."""
    rest = pixels**2 - by_chance
    return (pixels * hits - by_chance) / rest if rest else None


def mean_of_defined(values: list[float | None]) -> float | None:
    """Average the values that are not None; None where there is none."""
    defined = [value for value in values if value is not None]
    return float(np.mean(defined, dtype=np.float64)) if defined else None


def _as_integers(values: np.ndarray | torch.Tensor, name: str) -> torch.Tensor:
    values = values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)
    if values.dtype.kind not in "iu":
        raise TypeError(
            f"`{name}` is of type {values.dtype}; expected integer class ids. Take the argmax, or cast it."
        )
    return torch.from_numpy(values.astype(np.int64))  # uint8 would overflow in the product of ids


def summarize_combinations(combinations: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Average, Top-1 and Last-1 over the combinations that have a score, beside the `combinations` themselves."""
    scored = {name: scores["miou"] for name, scores in combinations.items() if scores["miou"] is not None}
    best, worst = (max(scored, key=scored.get), min(scored, key=scored.get)) if scored else (None, None)
    return {
        "combinations": dict(combinations),
        "average_miou": mean_of_defined(list(scored.values())),
        "top1_miou": scored.get(best),
        "top1_combination": best,
        "last1_miou": scored.get(worst),
        "last1_combination": worst,
        "unscored_combinations": [name for name in combinations if name not in scored],
    }
