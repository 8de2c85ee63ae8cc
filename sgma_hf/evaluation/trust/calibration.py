"""Whether confidences are right as often as they say, and the temperature that makes them so.

A pixel's confidence is the largest of softmax(logits / temperature). With the pixels in 15 bins of equal width by
their confidence, (m / 15, (m + 1) / 15], the expected calibration error is the mean of |share right - mean confidence|
over the bins, weighted by their pixels (Guo et al. 2017, https://proceedings.mlr.press/v70/guo17a.html). The
temperature is the one that makes the labels likeliest, those of all combinations of the modalities together: least
mean of -log softmax(logits / temperature) at the label. It changes no class. Counts are integers.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import compress
from pathlib import Path
from typing import Any

import torch
from transformers import BaseImageProcessor, PreTrainedModel

from ...data.evaluation_mode import evaluating
from ...data.whole_files import write_json
from ...model.cells_sgma import pixel_logits
from ...model.inputs_sgma import present_pairs
from ..combinations import modality_combinations
from ..prepared_rows import PreparedBatches, PreparedRows
from ..stage_cells import ratio


CALIBRATION_BINS = 15
CONFIDENCE_UNIT = 10**6
MAX_FITTED_PIXELS = 2**18  # drawn from all
_RANGE = (0.05, 20.0)  # of temperatures


def fit_temperature(
    model: PreTrainedModel,
    processor: BaseImageProcessor,
    rows: Sequence[Mapping[str, Any]],
    *,
    window_size: int | None,
    batch_size: int = 8,
    num_workers: int = 0,
    progress_bar: bool = False,
) -> float:
    """Find the temperature of a model's confidences on labelled rows that it was not trained on.

    Of the pixels of all combinations of the modalities 2^18 at most are drawn. The model stays as it is: set its
    `config.temperature`, or save it by `save_temperature`.

    Returns:
        A number from 0.05 to 20; above 1 where confidences are too high.

    Raises:
        ValueError: If no pixel is labelled and covered.
    """
    generator = torch.Generator().manual_seed(0)
    kept = (torch.empty(0), torch.empty(0, model.config.num_labels), torch.empty(0, dtype=torch.int64))
    pixels = _Pixels(model, processor, rows, window_size, batch_size, num_workers, progress_bar)
    for _, logits, labels, counted in pixels:
        draws = torch.rand(labels.shape, generator=generator)
        chosen = draws < (kept[0].max() if len(kept[0]) == MAX_FITTED_PIXELS else 1)
        chosen &= counted.cpu()
        here = chosen.to(labels.device)
        new = (draws[chosen], logits.movedim(1, -1)[here].cpu(), labels[here].cpu())
        kept = tuple(torch.cat(pair) for pair in zip(kept, new, strict=True))
        smallest = kept[0].topk(min(len(kept[0]), MAX_FITTED_PIXELS), largest=False).indices
        kept = tuple(part[smallest] for part in kept)
    _, logits, labels = kept
    if not len(labels):
        raise ValueError(
            "No pixel of these rows is labelled and covered, so that there is nothing to fit a temperature to. Give "
            "rows with labels."
        )
    return round(likeliest_temperature(logits.double(), labels), 4)


def likeliest_temperature(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """The temperature of least mean -log softmax(logits / T) at the label, for float64 (n, K) and int64 (n,)."""
    of_labels = logits.gather(1, labels[:, None]).mean()
    low, high = map(math.log, _RANGE)
    for _ in range(40):  # convex in 1 / T, whose derivative is E[logit] - logit of the label
        middle = (low + high) / 2
        expected = ((logits / math.exp(middle)).softmax(1) * logits).sum(1).mean()
        low, high = (middle, high) if expected > of_labels else (low, middle)
    return math.exp((low + high) / 2)


def save_temperature(folder: str | Path, temperature: float) -> None:
    """Write a temperature into the configuration of a checkpoint's folder, whole or not at all."""
    path = Path(folder, "config.json")
    write_json(path, json.loads(path.read_text(encoding="utf-8")) | {"temperature": temperature})


def evaluate_calibration(
    model: PreTrainedModel,
    processor: BaseImageProcessor,
    rows: Sequence[Mapping[str, Any]],
    *,
    window_size: int | None,
    batch_size: int = 8,
    num_workers: int = 0,
    progress_bar: bool = False,
) -> dict[str, Any]:
    """Count how often confidences are right, for every combination of the modalities, as trained and as it is now.

    Returns:
        A dictionary that JSON can hold: `temperatures`, 1 and, if it is another, that of the model's configuration;
        `combinations`: names joined by "+" -> for each temperature `ece` in [0, 1], None without pixels, and by bin
        `pixels`, those of them that are `right`, and the sum of their `confidence` in millionths.
    """
    temperatures = list(dict.fromkeys((1.0, float(model.config.temperature))))
    pixels = _Pixels(model, processor, rows, window_size, batch_size, num_workers, progress_bar)
    shape = (len(pixels.combinations), len(temperatures), 3, CALIBRATION_BINS + 1)  # the last bin is not counted
    counts = torch.zeros(shape, dtype=torch.int64, device=model.device)
    for index, logits, labels, counted in pixels:
        for place, temperature in enumerate(temperatures):
            add_confidences(counts[index, place], logits / temperature, labels, counted)
    for index, combination in enumerate(pixels.combinations):
        if not pixels.seen.issuperset(combination):  # figures would be those of a smaller one
            counts[index] = 0
    names = ("pixels", "right", "confidence")
    found = {
        "+".join(combination): [
            {"ece": expected_error(*part)} | dict(zip(names, part, strict=True)) for part in of_combination
        ]
        for combination, of_combination in zip(pixels.combinations, counts[..., :-1].tolist(), strict=True)
    }
    return {"temperatures": temperatures, "combinations": found}


def add_confidences(counts: torch.Tensor, logits: torch.Tensor, labels: torch.Tensor, counted: torch.Tensor) -> None:
    """Add a batch to the number of pixels, those right and their confidence, by bin, (3, 16).

    Logits are (B, K, H, W), labels and whether a pixel is counted (B, H, W); what is not goes to the last bin.
    """
    probability, predicted = logits.softmax(1).max(1)
    probability = probability.double()
    bins = (probability * CALIBRATION_BINS).ceil().long().clamp(1, CALIBRATION_BINS) - 1
    bins = torch.where(counted, bins, CALIBRATION_BINS).flatten()
    for place, values in enumerate((counted, predicted == labels, (probability * CONFIDENCE_UNIT).round())):
        counts[place].index_add_(0, bins, values.long().flatten())


def expected_error(pixels: Sequence[int], right: Sequence[int], confidence: Sequence[int]) -> float | None:
    """Expected calibration error of the counts by bin; None without pixels."""
    gaps = (abs(hits - sure / CONFIDENCE_UNIT) for hits, sure in zip(right, confidence, strict=True))
    return ratio(sum(gaps), sum(pixels))


class _Pixels:
    """Yields of each batch, for each combination by index, logits as trained, labels and whether pixels are counted.

    They are (B, K, H, W), (B, H, W) and (B, H, W).
    """

    def __init__(self, model, processor, rows, window_size, batch_size, num_workers, progress_bar):
        self.model, self.combinations = model, modality_combinations(model.config.modalities)
        self.seen: set[str] = set()  # modalities that a row had, so far
        prepared = PreparedRows(rows, processor, model.config, window_size)
        progress = "calibration" if progress_bar else None
        self._batches = PreparedBatches(prepared, batch_size, num_workers=num_workers, progress=progress)

    def __iter__(self) -> Iterator[tuple[int, torch.Tensor, torch.Tensor, torch.Tensor]]:
        config = self.model.config
        subsets = [torch.tensor([name in names for name in config.modalities]) for names in self.combinations]
        with evaluating(self.model):
            for batch in self._batches:
                there = present_pairs(batch.present).any(0).tolist()
                self.seen |= set(compress(config.modalities, there))
                batch = batch.on_device_of(self.model)
                encoding = self.model.encode(**batch.inputs(config))
                labelled = batch.labels != config.semantic_loss_ignore_index
                for index, subset in enumerate(subset.to(batch.labels.device) for subset in subsets):
                    counted = labelled & (batch.covered & subset[:, None, None]).any(1)
                    logits = self.model.fuse_and_decode(encoding, subset).logits * config.temperature
                    yield index, pixel_logits(logits, batch.labels.shape[-2:]), batch.labels, counted
        self._batches.finish()
