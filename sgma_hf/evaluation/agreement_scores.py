"""How well modalities agree on rows known to be good: the yardstick for the agreement maps of other scenes."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from transformers import BaseImageProcessor

from ..data.evaluation_mode import evaluating
from ..model.modeling_sgma import SgmaForSemanticSegmentation
from ..prediction.agreement import modality_agreement
from .prepared_rows import PreparedBatches, PreparedRows


def evaluate_agreement(
    model: SgmaForSemanticSegmentation,
    processor: BaseImageProcessor,
    dataset: Sequence[Mapping[str, Any]],
    *,
    window_size: int | None = None,
    batch_size: int = 8,
    num_workers: int = 0,
    progress_bar: bool = False,
) -> dict[str, dict[str, Any]]:
    """Summarise `modality_agreement` over the labelled rows of a data set.

    Agreement is judged by means over areas, so its spread is that of the windows' means: an area of a new scene that
    agrees less than 95 of 100 windows here is worth a look. Agreement depends on the modalities that are there, so
    rows should have the same as the new scene.

    Args:
        model: An SGMA model with a segmentation head and at least two modalities; its mode is restored.
        processor: Its image processor.
        dataset: Rows of the one schema (`load_rows`), with a length.
        window_size: Side in pixels of the windows that larger rows are cut into; give the size trained on.
        batch_size: Windows per forward pass, at most.
        num_workers: Processes that read and prepare rows; 0 does it in this one.
        progress_bar: Show a progress bar over the rows.

    Returns:
        A dictionary that JSON can hold, by modality: `mean` over all cells that it and another one cover, in [0, 1];
        `percentile_5` of the windows' means; `windows` that had such cells. Both figures are None without any.

    Raises:
        ValueError: If the model has a single modality, no row can be evaluated, one cannot be read (it is named), or
            the processor is another model's.
        TypeError: If the dataset has no length.
    """
    if len(model.config.modalities) < 2:
        raise ValueError(
            f"Agreement compares modalities with each other, but the model has only {model.config.modalities}; "
            "leave it out."
        )
    batches = PreparedBatches(
        PreparedRows(dataset, processor, model.config, window_size),
        batch_size,
        num_workers=num_workers,
        progress="agreement" if progress_bar else None,
    )
    sums, cells = [], []
    with evaluating(model):
        for batch in batches:
            batch = batch.on_device_of(model)
            encoding = model.encode(**batch.inputs(model.config))
            agreement = modality_agreement(model, encoding).flatten(2)  # (B, M, h * w)
            sums.append(agreement.nansum(2, dtype=torch.float64).cpu().numpy())
            cells.append((~agreement.isnan()).sum(2).cpu().numpy())
    batches.finish()
    sums, cells = np.concatenate(sums), np.concatenate(cells)  # (windows, M)
    summary = {}
    for m, name in enumerate(model.config.modalities):
        known = cells[:, m] > 0
        summary[name] = {
            "mean": float(sums[known, m].sum() / cells[known, m].sum()) if known.any() else None,
            "percentile_5": float(np.percentile(sums[known, m] / cells[known, m], 5)) if known.any() else None,
            "windows": int(known.sum()),
        }
    return summary
