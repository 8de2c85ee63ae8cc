"""Confusion matrices of integers, and the scores that are divided from them once, at the end.

Which classes count in a mean is a choice, and it moves the figures. Here:

- IoU and F1 of class k are undefined where its union (true or predicted pixels) is empty: None, left out of the mean.
  They are never scored 0 for that, and never 1.
- A class that has no true pixel but is predicted somewhere has IoU and F1 0, which counts in the mean
  (`scored_classes="union"`, the usual definition). `scored_classes="truth"` leaves such a class out as well, so that
  the mean runs over the same classes whatever a model predicts.
- Accuracy is the share of all counted pixels that are right.
"""

from typing import Any, Literal

import numpy as np
import torch


ScoredClasses = Literal["union", "truth"]


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


def check_scored_classes(scored_classes: str) -> None:
    """Raise a ValueError unless it is one of the two policies."""
    if scored_classes not in ("union", "truth"):
        raise ValueError(f"`scored_classes` is {scored_classes!r}; expected 'union' or 'truth'.")


def segmentation_scores(confusion: np.ndarray, *, scored_classes: ScoredClasses = "union") -> dict[str, Any]:
    """Divide a confusion matrix into the usual scores, all of them fractions in [0, 1] and in float64.

    Args:
        confusion: Counts in pixels, integer, shape (num_labels, num_labels); rows are the truth.
        scored_classes: `union` leaves out of the means the classes that occur neither in the truth nor in the
            prediction; `truth` leaves out all that do not occur in the truth.

    Returns:
        `miou` and `f1`, means over the scored classes; `iou` and `f1_per_class`, lists of one value per class;
        `accuracy`, the share of pixels that are right; `pixels`, their number. None stands for what is undefined: a
        class that is left out and, where no pixel was counted, all scores.

    Raises:
        ValueError: If `confusion` is not square, or `scored_classes` is unknown.
    """
    confusion = np.asarray(confusion)
    if confusion.ndim != 2 or confusion.shape[0] != confusion.shape[1]:
        raise ValueError(f"`confusion` has shape {confusion.shape}; expected (num_labels, num_labels).")
    check_scored_classes(scored_classes)
    hits = np.diag(confusion)
    true, predicted = confusion.sum(axis=1), confusion.sum(axis=0)
    union = true + predicted - hits
    scored = (union if scored_classes == "union" else true) > 0
    iou = [float(h / u) if s else None for h, u, s in zip(hits, union, scored, strict=True)]
    f1 = [float(2 * h / t) if s else None for h, t, s in zip(hits, true + predicted, scored, strict=True)]
    pixels = int(confusion.sum())
    return {
        "miou": mean_of_defined(iou),
        "iou": iou,
        "f1": mean_of_defined(f1),
        "f1_per_class": f1,
        "accuracy": float(hits.sum() / pixels) if pixels else None,
        "pixels": pixels,
    }


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
