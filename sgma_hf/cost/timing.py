"""What SGMA costs in time, beside mean fusion with the same encoder and head and beside the bare encoder.

All variants of a comparison are run in turn, so that whatever else the machine does hits them alike. Seconds are
medians over the rounds; a ratio is the median of the ratios within the rounds, which a slow spell does not change.
Weights and images are random: nothing here depends on their values.
"""

import itertools
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.utils import logging

from ..model.cells_sgma import PAD_MULTIPLE, predicted_classes
from ..model.configuration_sgma import SgmaConfig
from ..model.inputs_sgma import host_mask_of
from ..model.limits_sgma import YEARLY_PERIODS
from ..model.modeling_sgma import SgmaForSemanticSegmentation
from ..training.collator import SgmaDataCollator


SGMA, MEAN_FUSION, BACKBONE = "SGMA", "mean fusion", "bare backbone"
PACKAGE_DEFAULT = "SGMA with adapters and Dice"
# The paper's form, of all variants but one.
_PAPER = {"modality_adapter_size": 0, "dice_loss_weight": 0.0}
# How the configuration of each variant differs from that; the bare backbone is that of mean fusion.
VARIANTS: dict[str, dict[str, Any]] = {
    SGMA: {},
    PACKAGE_DEFAULT: {name: getattr(SgmaConfig, name) for name in _PAPER},
    "SGMA without MAS": {"mas_loss_weight": 0.0},
    "mean fusion with MAS": {"fusion": "mean"},
    "projected mean": {"fusion": "projector_mean", "mas_loss_weight": 0.0},
    MEAN_FUSION: {"fusion": "mean", "mas_loss_weight": 0.0},
    BACKBONE: {"fusion": "mean", "mas_loss_weight": 0.0},
}
# Those that differ in more than the sampling branch, which only training has.
FUSIONS = (SGMA, PACKAGE_DEFAULT, "projected mean", MEAN_FUSION, BACKBONE)


@dataclass(frozen=True)
class BenchmarkCase:
    """A model's shape and what it is given."""

    backbone_config: dict[str, Any]  # as `SgmaConfig` takes it
    size: int = 256  # side of the square images in pixels
    batch_size: int = 1
    num_modalities: int = 3  # the first has three bands, the others one
    num_present: int | None = None  # how many of them, the first ones, each row has; None for all
    num_dates: int = 1  # images of each modality, each of a date
    num_labels: int = 5
    decoder_hidden_size: int = 128
    logits_stride: int = 4
    seed: int = 0  # of weights and images
    device: str = "cpu"
    bf16: bool = False  # autocast to bfloat16
    gaps: bool = False  # masks per pixel: the last modality present ends two thirds of the way across
    compiled: bool = False  # by torch.compile

    def build(self, variant: str = SGMA) -> SgmaForSemanticSegmentation:
        """Make a variant's model, in eval mode."""
        torch.manual_seed(self.seed)
        config = SgmaConfig(
            modalities=[f"modality{index}" for index in range(self.num_modalities)],
            modality_channels=[3] + [1] * (self.num_modalities - 1),
            num_labels=self.num_labels,
            date_periods=list(YEARLY_PERIODS) if self.num_dates > 1 else None,
            decoder_hidden_size=self.decoder_hidden_size,
            logits_stride=self.logits_stride,
            backbone_config=dict(self.backbone_config),
            **_PAPER | VARIANTS[variant],
        )
        return SgmaForSemanticSegmentation(config).eval().to(self.device)

    def batch(self) -> dict[str, Any]:
        """Make the inputs of the model, with labels, as a collator does."""
        generator = torch.Generator().manual_seed(self.seed)
        sides = (self.size, self.size)
        present = self.num_modalities if self.num_present is None else self.num_present
        mask = torch.arange(self.num_modalities).expand(self.batch_size, -1) < present
        if self.gaps:
            mask = mask[..., None, None].repeat(1, 1, *sides)
            mask[:, present - 1, :, 2 * self.size // 3 :] = False
        leading = [self.batch_size]
        if self.num_dates > 1:
            leading.append(self.num_dates)
            mask = mask.unsqueeze(1).repeat(1, self.num_dates, *[1] * (mask.ndim - 1))
        batch = {
            "pixel_values": torch.randn(*leading, self.num_modalities + 2, *sides, generator=generator),
            "modality_mask": mask,
            "labels": torch.randint(self.num_labels, (self.batch_size, *sides), generator=generator),
        }
        if self.num_dates > 1:
            batch["dates"] = 365 * torch.rand(*leading, self.num_modalities, generator=generator)
        return send_to_device(batch, self.device) | {"host_mask": host_mask_of(mask)}

    def autocast(self) -> torch.autocast:
        """The precision of a pass."""
        return torch.autocast(torch.device(self.device).type, torch.bfloat16, enabled=self.bf16)

    def passes(self, variant: str, *, training: bool) -> Callable[[], None]:
        """Make a function that does one training step, without the optimiser, or one inference of a variant."""
        model, batch = self.build(variant).train(training), self.batch()
        pairs = sum(share > 0 for row in batch["host_mask"] for share in row)
        beyond = -self.size % PAD_MULTIPLE  # to the sides that the model brings images to
        stacked = nn.functional.pad(batch["pixel_values"].flatten(0, -4)[:1, :3], (0, beyond, 0, beyond))
        stacked = stacked.repeat(pairs, 1, 1, 1)
        inputs = {name: values for name, values in batch.items() if training or name != "labels"}
        called = model.sgma.encoder_maps if variant == BACKBONE else model
        if self.compiled:
            called = torch.compile(called)

        def run() -> None:
            with self.autocast():
                if variant == BACKBONE:
                    loss = sum(stage.mean() for stage in called(stacked))
                else:
                    loss = called(**inputs).loss
            if training:
                loss.backward()
                model.zero_grad()

        return run if training else torch.no_grad()(run)


def compared(variants: Sequence[str]) -> dict[str, list[str]]:
    """The variants that differ in training, and in inference, which has no sampling branch."""
    return {"training": list(variants), "inference": [name for name in variants if name in FUSIONS]}


def measure_case(case: BenchmarkCase, variants: Sequence[str], *, repeats: int) -> dict[str, dict]:
    """Time the training step and the inference of some variants, SGMA, mean fusion and the bare backbone among them.

    Returns, for "training" and "inference", the `seconds` of every variant, and its ratios `to_sgma`, `to_mean_fusion`
    and `to_backbone`.
    """
    figures = {}
    for kind, names in compared(variants).items():
        rounds = time_in_turn({name: case.passes(name, training=kind == "training") for name in names}, repeats)
        figures[kind] = {"seconds": {name: statistics.median(seconds) for name, seconds in rounds.items()}}
        for ratio, reference in (("to_sgma", SGMA), ("to_mean_fusion", MEAN_FUSION), ("to_backbone", BACKBONE)):
            figures[kind][ratio] = {name: median_ratio(rounds[name], rounds[reference]) for name in names}
    return figures


class CountedOperators(TorchDispatchMode):
    """Counts the operators that are dispatched within it: each is a kernel, or a call that the host has to make."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        """Count one."""
        self.count += 1
        return function(*args, **(kwargs or {}))


def measure_host(case: BenchmarkCase, variants: Sequence[str]) -> dict[str, dict[str, dict[str, int | None]]]:
    """Count what a pass asks of the host, for "training" and "inference" and each variant.

    `operators` are those dispatched, forward and backward. `waits` are the times that the host waits for a GPU, None
    on a CPU. Both are of passes that are not compiled.
    """
    figures = {}
    for kind, names in compared(variants).items():
        figures[kind] = {"operators": {}, "waits": {}}
        for name in names:
            step = replace(case, compiled=False).passes(name, training=kind == "training")
            step()  # a first pass loads libraries
            with CountedOperators() as operators:
                step()
            figures[kind]["operators"][name] = operators.count
            figures[kind]["waits"][name] = _count_waits(step) if torch.device(case.device).type == "cuda" else None
    return figures


def _count_waits(step: Callable[[], None]) -> int:
    mode = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            step()
        finally:
            torch.cuda.set_sync_debug_mode(mode)
    return sum("synchronizing" in str(warning.message) for warning in said)


@torch.no_grad()
def measure_subsets(case: BenchmarkCase, *, repeats: int) -> dict[str, float | bool]:
    """Time the inference of all modalities, of one, and of every combination, from one encoding and by a plain loop.

    Returns `seconds` of each, `one_to_all` and `one_encoding_to_loop` as ratios, and `combinations_agree_in_float64`:
    whether both ways to evaluate all combinations predict the same.
    """
    model, pixel_values = case.build(), case.batch()["pixel_values"]
    subsets = [subset.to(case.device) for subset in _subsets(case)]

    def one_encoding() -> None:
        encoding = model.encode(pixel_values)
        for subset in subsets:
            model.fuse_and_decode(encoding, subset)

    def loop() -> None:
        for subset in subsets:
            model(pixel_values, subset)

    functions = {
        "all modalities": lambda: model(pixel_values),
        "one modality": lambda: model(pixel_values, subsets[0]),
        "all combinations, one encoding": one_encoding,
        "all combinations, plain loop": loop,
    }
    with case.autocast():
        rounds = time_in_turn(functions, repeats)
    every, one, cached, naive = rounds.values()
    return {
        "seconds": {name: statistics.median(seconds) for name, seconds in rounds.items()},
        "one_to_all": median_ratio(one, every),
        "one_encoding_to_loop": median_ratio(cached, naive),
        "combinations_agree_in_float64": _combinations_agree(case),
    }


def measure_loading(
    case: BenchmarkCase, rows: Sequence[dict[str, Any]], collator: SgmaDataCollator, *, repeats: int
) -> dict[str, float]:
    """Time one process that makes a batch of rows, decoding and augmentation included, and the step that it feeds.

    `rows` are one batch in memory, each with its `RowKey`; the model's bands and classes have to fit them. Returns
    `batch_seconds`, `step_seconds` and their ratio `loading_to_compute`.
    """
    model = case.build().train()
    batch = send_to_device(collator(rows), case.device)

    def step() -> None:
        with case.autocast():
            loss = model(**batch).loss
        loss.backward()
        model.zero_grad()

    loading, compute = time_in_turn({"loading": lambda: collator(rows), "step": step}, repeats).values()
    return {
        "batch_seconds": statistics.median(loading),
        "step_seconds": statistics.median(compute),
        "loading_to_compute": median_ratio(loading, compute),
    }


def time_in_turn(functions: dict[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Seconds of every function in every round, after one that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in logging.tqdm(range(repeats + 1), desc="rounds", leave=False):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds[name].append(time.perf_counter() - start)
    return {name: values[1:] for name, values in seconds.items()}


def median_ratio(above: Sequence[float], below: Sequence[float]) -> float:
    """Median of the ratios within the rounds."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def _subsets(case: BenchmarkCase) -> list[torch.Tensor]:
    """Every non-empty combination as a mask of the model, the first modality alone first, with all dates."""
    masks = [mask for mask in itertools.product([True, False], repeat=case.num_modalities) if any(mask)]
    leading = [case.batch_size, case.num_dates] if case.num_dates > 1 else [case.batch_size]
    return [torch.tensor(mask).expand(*leading, -1) for mask in sorted(masks, key=sum)]


def _combinations_agree(case: BenchmarkCase) -> bool:
    """Whether both ways to evaluate all combinations predict the same, in float64 and on small images."""
    small = replace(case, size=64, device="cpu")
    model, pixel_values = small.build().double(), small.batch()["pixel_values"].double()
    encoding = model.encode(pixel_values)
    for subset in _subsets(small):
        logits = model.fuse_and_decode(encoding, subset).logits, model(pixel_values, subset).logits
        cached, naive = (predicted_classes(maps, (64, 64)) for maps in logits)
        if not torch.equal(cached, naive):
            return False
    return True
