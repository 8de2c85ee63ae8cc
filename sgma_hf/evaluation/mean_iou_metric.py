"""Mean IoU as a metric of the package `evaluate`.

By itself, so that nothing else imports `evaluate`: a script of that name beside a user's own would be taken for it.
"""

from collections.abc import Sequence
from typing import Any

import datasets
import evaluate
import numpy as np

from .metrics import ScoredClasses, confusion_matrix, segmentation_scores


class SgmaMeanIou(evaluate.Metric):
    """Mean IoU as an `evaluate` metric that is imported: `evaluate.load("mean_iou")` would need the network.

    It stores every pixel in an Arrow file, as all of `evaluate` does: right for some small maps; for a whole dataset
    add up `confusion_matrix` instead.

    Example:
        >>> metric = SgmaMeanIou()
        >>> metric.compute(predictions=[[[0, 1]]], references=[[[0, 255]]], num_labels=2)["miou"]
        1.0
    """

    def _info(self) -> evaluate.MetricInfo:
        label_map = datasets.List(datasets.List(datasets.Value("int64")))  # (height, width), of any size
        return evaluate.MetricInfo(
            description="Mean intersection over union of label maps, classes that occur nowhere left out.",
            citation="",
            inputs_description="predictions, references: label maps; num_labels; ignore_index (255); "
            "scored_classes and class_names as in `segmentation_scores`.",
            features=datasets.Features({"predictions": label_map, "references": label_map}),
        )

    def _compute(
        self,
        *,
        predictions: list,
        references: list,
        num_labels: int,
        ignore_index: int = 255,
        scored_classes: ScoredClasses = "union",
        class_names: Sequence[str] = (),
    ) -> dict[str, Any]:
        confusion = np.zeros((num_labels, num_labels), dtype=np.int64)
        for prediction, reference in zip(predictions, references, strict=True):
            confusion += confusion_matrix(
                np.array(prediction), np.array(reference), num_labels, ignore_index=ignore_index
            )
        return segmentation_scores(confusion, scored_classes=scored_classes, class_names=class_names)
