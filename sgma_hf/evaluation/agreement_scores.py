"""How well modalities agree on rows known to be good: the yardstick for the agreement maps of other scenes."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from transformers import BaseImageProcessor
from transformers.utils import logging

from ..model.modeling_sgma import SgmaForSemanticSegmentation
from ..prediction.agreement import modality_agreement
from .combinations import PreparedRows, batches_by_size, check_evaluated, without_skipped


@torch.no_grad()
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
    check_evaluated(model.config, processor, dataset)
    if len(model.config.modalities) < 2:
        raise ValueError(
            f"Agreement compares modalities with each other, but the model has only {model.config.modalities}; "
            "leave it out."
        )
    skipped = {"rows": 0, "windows": 0, "label": 0, "modality": 0}
    rows = PreparedRows(dataset, processor, model.config, window_size)
    # its own generator, because a loader would draw from the global one
    loader = torch.utils.data.DataLoader(rows, batch_size=None, num_workers=num_workers, generator=torch.Generator())
    prepared = logging.tqdm(loader, total=len(rows), unit="row", desc="agreement", disable=not progress_bar)
    sums, cells = [], []
    was_training = model.training
    model.eval()
    try:
        for batch in batches_by_size(without_skipped(prepared, skipped), batch_size):
            pixel_values = batch.pixel_values.to(model.device, model.dtype)
            encoding = model.encode(pixel_values, batch.modality_mask.to(model.device))
            agreement = modality_agreement(model, encoding).flatten(2)  # (B, M, h * w)
            sums.append(agreement.nansum(2, dtype=torch.float64).cpu().numpy())
            cells.append((~agreement.isnan()).sum(2).cpu().numpy())
    finally:
        model.train(was_training)
    if not sums:
        raise ValueError(
            f"None of the {skipped['rows']} rows can be evaluated: {skipped['label']} have no label, "
            f"{skipped['modality']} have none of the modalities {model.config.modalities}."
        )
    return _summarize(model.config.modalities, np.concatenate(sums), np.concatenate(cells))


def _summarize(modalities: Sequence[str], sums: np.ndarray, cells: np.ndarray) -> dict[str, dict[str, Any]]:
    """From the sum over the known cells of each window, and their number, both (windows, num_modalities)."""
    summary = {}
    for m, name in enumerate(modalities):
        known = cells[:, m] > 0
        means = sums[known, m] / cells[known, m]
        summary[name] = {
            "mean": float(sums[known, m].sum() / cells[known, m].sum()) if known.any() else None,
            "percentile_5": float(np.percentile(means, 5)) if known.any() else None,
            "windows": int(known.sum()),
        }
    return summary
