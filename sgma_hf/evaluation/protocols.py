"""The robustness protocols of arXiv:2503.18445 by their names; docs/evaluation.md has their formulas and sources.

N modalities have 2^N - 1 combinations: those of which no modality, one, ... N - 1 are damaged. A protocol scores all:

- EMM, entirely missing: what is damaged is missing. These are the scores of `evaluate_modality_combinations`.
- RMM, randomly missing: of what is damaged, every single value is 0 with probability r; 0.25, 0.5 and 0.75.
- NM, noise: in all modalities single values become the lowest or highest of the image, then Gaussian noise is added.

The first two are summed up by the mean over the combinations, and by the expectation if each modality is damaged with
probability p, independently of the others, and never all.

Everything happens after normalisation, and to what a window covers. Every draw is a function of seed, row id, window,
protocol and modality: combinations and the shares r have theirs in common. The pixels of RMM and NM are those that
count for the undamaged prediction from all modalities. With `missing="absent"` a modality misses pixels, in all of its
channels, as no model of ours misses a single value; with `missing="zero"` it is as the source has it.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from transformers import BaseImageProcessor, PreTrainedModel

from ..data.command_line import did_you_mean
from ..data.evaluation_mode import evaluating
from ..data.rows import row_ids
from ..model.cells_sgma import predicted_classes
from .combinations import Missing, evaluate_modality_combinations
from .corruptions import draw
from .metrics import ScoredClasses, count_pixels, mean_of_defined, segmentation_scores
from .prepared_rows import PreparedBatches, PreparedRow, PreparedRows, refuse_series


PROTOCOLS = ("emm", "rmm", "nm")
ABSENCE_PROBABILITIES = (0.2, 0.1, 0.05)
MISSING_SHARES = (0.25, 0.5, 0.75)
# Share of the values that become extremes, and standard deviation of the Gaussian noise.
NOISE_LEVELS = {"low": (0.05, 0.1), "mid": (0.1, 0.2), "high": (0.2, 0.5)}
WITHOUT_GAUSSIAN = "event"  # the source adds it to RGB, depth and lidar, and not to the event camera


def evaluate_protocols(
    model: PreTrainedModel,
    processor: BaseImageProcessor,
    dataset: Sequence[Mapping[str, Any]],
    protocols: Sequence[str] = PROTOCOLS,
    *,
    seed: int = 0,
    missing: Missing = "absent",
    scored_classes: ScoredClasses = "union",
    **reading: Any,
) -> dict[str, Any]:
    """Score a model under the protocols EMM, RMM and NM of arXiv:2503.18445, see the top of this module.

    Args:
        model: An SGMA model with a segmentation head.
        processor: Its image processor.
        dataset: Rows of the one schema.
        protocols: Those wanted, among "emm", "rmm" and "nm".
        seed: What is drawn depends on it.
        missing: What the model sees of what is missing, as for `evaluate_modality_combinations`: "zero" is what the
            source does, "absent" what the model is made for.
        scored_classes: Which classes count in the means, see `segmentation_scores`.
        reading: `window_size`, `batch_size`, `num_workers` and `progress_bar` of `evaluate_modality_combinations`.

    Returns:
        What `evaluate_modality_combinations` returns, and `protocols`: `seed`; `emm`; `rmm`, by r ("0.25");
        `nm`, by level ("low", "mid", "high") the scores of `segmentation_scores`. `emm` and each r hold
        `average_miou` and `expected_miou`, by p ("0.2"), None where a combination has no score; each r holds
        `combinations`, by the names of those left undamaged joined by "+", too.

    Raises:
        ValueError: If a protocol is unknown, or as `evaluate_modality_combinations` does.
    """
    check_protocols(protocols)
    if set(protocols) - {"emm"}:
        refuse_series(dataset, model.config.modalities, "Damaging inputs")
    options = {"missing": missing, "scored_classes": scored_classes}
    results = evaluate_modality_combinations(model, processor, dataset, **options, **reading)
    clean, modalities = results["combinations"], results["modalities"]
    found: dict[str, Any] = {"seed": seed}
    if "emm" in protocols:
        found["emm"] = _summary(clean, modalities)
    cases = {("rmm", str(share), name): share for share in MISSING_SHARES for name in list(clean)[:-1]}
    cases |= {("nm", level, ""): figures for level, figures in NOISE_LEVELS.items()}
    cases = {case: figures for case, figures in cases.items() if case[0] in protocols}
    counts = _count_damaged(model, processor, dataset, cases, seed=seed, missing=missing, **reading)
    naming = {"scored_classes": scored_classes, "class_names": model.config.class_names}
    scores = {case: segmentation_scores(matrix.numpy(), **naming) for case, matrix in counts.items()}
    if "rmm" in protocols:
        found["rmm"] = {}
        for share in map(str, MISSING_SHARES):
            damaged = {name: scores.get(("rmm", share, name), clean[name]) for name in clean}
            # A modality that no row has cannot be left undamaged.
            damaged = {name: damaged[name] if clean[name]["miou"] is not None else clean[name] for name in clean}
            found["rmm"][share] = {"combinations": damaged, **_summary(damaged, modalities)}
    if "nm" in protocols:
        found["nm"] = {level: scores["nm", level, ""] for level in NOISE_LEVELS}
    return results | {"protocols": found}


def check_protocols(protocols: Sequence[str]) -> None:
    """Raise a ValueError that names the first protocol that is none, and the nearest that is one."""
    for name in protocols:
        if name not in PROTOCOLS:
            raise ValueError(f"Protocol {name!r} is none of {', '.join(PROTOCOLS)}{did_you_mean(name, PROTOCOLS)}")


def expected_scores(scores: Mapping[str, float | None], modalities: Sequence[str]) -> dict[str, float | None]:
    """The expectation of a score by the probability with which a modality is damaged, "0.2", "0.1" and "0.05"."""
    return {f"{p:g}": bernoulli_expectation(scores, modalities, p) for p in ABSENCE_PROBABILITIES}


def bernoulli_expectation(
    scores: Mapping[str, float | None], modalities: Sequence[str], absence: float
) -> float | None:
    """Expected score where every modality is absent with one probability, independently of the others.

    A combination of k of the M modalities has the probability (1 - p)^k p^(M - k); the case that nothing is there is
    left out, and the others are divided by 1 - p^M. None if one of the 2^M - 1 combinations has no score.
    """
    if None in scores.values():
        return None
    present = {name: name.count("+") + 1 for name in scores}
    total = sum(scores[name] * (1 - absence) ** k * absence ** (len(modalities) - k) for name, k in present.items())
    return total / (1 - absence ** len(modalities))


def _summary(combinations: Mapping[str, Mapping[str, Any]], modalities: Sequence[str]) -> dict[str, Any]:
    miou = {name: scores["miou"] for name, scores in combinations.items()}
    return {"average_miou": mean_of_defined(list(miou.values())), "expected_miou": expected_scores(miou, modalities)}


def _count_damaged(
    model: PreTrainedModel,
    processor: BaseImageProcessor,
    dataset: Sequence[Mapping[str, Any]],
    cases: Mapping[tuple[str, str, str], Any],
    *,
    seed: int,
    missing: Missing,
    window_size: int | None = None,
    batch_size: int = 8,
    num_workers: int = 0,
    progress_bar: bool = False,
) -> dict[tuple[str, str, str], torch.Tensor]:
    """The confusion matrix of each case: (protocol, level, names left undamaged) -> its figures."""
    if not cases:
        return {}
    config = model.config
    prepared = PreparedRows(dataset, processor, config, window_size)
    progress = "protocols" if progress_bar else None
    batches = PreparedBatches(prepared, batch_size, num_workers=num_workers, progress=progress)
    damage = _Damage(config, row_ids(dataset), seed, missing)
    counts = {case: torch.zeros(config.num_labels, config.num_labels, dtype=torch.int64) for case in cases}
    with evaluating(model):
        for batch in batches:
            counted = (batch.labels != config.semantic_loss_ignore_index) & batch.covered.any(1)
            for case, damaged in damage.of_batch(batch, cases):
                damaged = damaged.on_device_of(model)
                mask = damaged.modality_mask if missing == "absent" else None
                outputs = model(pixel_values=damaged.pixel_values, modality_mask=mask)
                predicted = predicted_classes(outputs.logits, batch.labels.shape[-2:]).cpu()
                counts[case] += count_pixels(predicted, batch.labels, config.num_labels, counted)
    return counts


class _Damage:
    """Damages batches, window by window and modality by modality."""

    def __init__(self, config: Any, ids: Sequence[str], seed: int, missing: Missing):
        self.names, self.channels = list(config.modalities), list(config.modality_channels)
        self.ids, self.seed, self.missing = ids, seed, missing

    def of_batch(
        self, batch: PreparedRow, cases: Mapping[tuple[str, str, str], Any]
    ) -> Iterator[tuple[tuple[str, str, str], PreparedRow]]:
        """Yield each case with the batch as the model is to see it, its mask (B, M, H, W)."""
        for protocol, level in dict.fromkeys(case[:2] for case in cases):
            of_level = {case: figures for case, figures in cases.items() if case[:2] == (protocol, level)}
            figures = next(iter(of_level.values()))
            values, masks = zip(*self._damaged(batch, protocol, figures), strict=True)
            values, masks = torch.stack(values), torch.stack(masks)
            for case in of_level:
                intact = torch.tensor([name in case[2].split("+") for name in self.names])
                channels = intact.repeat_interleave(torch.tensor(self.channels))
                seen = torch.where(intact[:, None, None], batch.covered, masks)  # (B, M, H, W)
                mixed = torch.where(channels[:, None, None], batch.pixel_values, values)
                # What is not covered is 0, whatever was drawn there.
                mixed = torch.where(seen.repeat_interleave(torch.tensor(self.channels), dim=1), mixed, 0)
                yield case, replace(batch, pixel_values=mixed, modality_mask=seen)

    def _damaged(self, batch: PreparedRow, protocol: str, figures: Any) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield the windows with all modalities damaged: values (C, H, W) and mask (M, H, W)."""
        for values, covered, (row, top, left) in zip(
            batch.pixel_values, batch.covered, batch.place.tolist(), strict=True
        ):
            parts, masks = [], []
            for name, part, mask in zip(self.names, values.split(self.channels), covered, strict=True):
                generator = draw(self.seed, str(self.ids[row]), f"{top},{left}", protocol, name)
                if protocol == "nm":
                    deviation = 0.0 if name == WITHOUT_GAUSSIAN else figures[1]
                    part = add_noise(part, mask, figures[0], deviation, generator)
                elif self.missing == "zero":
                    part = part.masked_fill(torch.rand(part.shape, generator=generator) < figures, 0)
                else:
                    mask = mask & (torch.rand(mask.shape, generator=generator) >= figures)
                parts.append(part)
                masks.append(mask)
            yield torch.cat(parts), torch.stack(masks)


def add_noise(
    values: torch.Tensor, covered: torch.Tensor, density: float, deviation: float, generator: torch.Generator
) -> torch.Tensor:
    """Salt and pepper in single values of a modality (C, H, W), then Gaussian noise in all of them.

    Of n values ceil(n * density / 2) places are drawn, with replacement, that become the highest covered one, then as
    many that become the lowest. `deviation` is that of the Gaussian noise.
    """
    if not covered.any():
        return values
    noisy, seen = values.clone(), values[:, covered]
    number = math.ceil(density * values.numel() / 2)
    for extreme in (seen.max(), seen.min()):
        noisy.view(-1)[torch.randint(values.numel(), (number,), generator=generator)] = extreme
    return noisy + deviation * torch.randn(values.shape, generator=generator)
