"""What all runs of a comparison have in common; without torch, so that the command's help is there at once."""

import math
from dataclasses import dataclass, field
from typing import Any

from ..data.rows import SPLIT_ALIASES
from ..model.limits_sgma import DICE_LOSS_WEIGHT, MODALITY_ADAPTER_SIZE


# A small PVT-v2, from random weights: it learns in minutes on a CPU.
SMALL_PVT_V2 = {"model_type": "pvt_v2", "hidden_sizes": [32, 64, 160, 256], "depths": [1, 1, 1, 1]}


def setting(default: Any, text: str, **options: Any) -> Any:
    """A field with what the command's flag of its name says in `--help`."""
    return field(default=default, metadata={"help": text, **options})


@dataclass(frozen=True)
class RunSettings:
    """What all runs of a comparison have in common; runs of equal settings may stand in one table.

    What each setting is, its `help` says. `missing` is the share of training rows that lose each modality,
    `backbone_config` the encoder's configuration with its `model_type`.
    """

    train_split: str = setting("train", "Split to train on.")
    report_split: str = setting("test", "Split to report on; nothing may be chosen by it.")
    choosing_split: str | None = setting(None, "Split to evaluate on too, for choices between recipes.")
    missing: dict[str, float] = field(default_factory=dict)
    max_steps: int = setting(500, "Training steps; the last one's weights are evaluated.")
    batch_size: int = setting(8, "Crops per step, and windows per forward pass of the evaluation.")
    crop_size: int = setting(128, "Side of crops and evaluated windows in pixels.")
    learning_rate: float = setting(1e-3, "Highest learning rate of AdamW.")
    decoder_hidden_size: int = setting(128, "Width of the decode head.")
    dice_loss_weight: float = setting(DICE_LOSS_WEIGHT, "Weight of the Dice loss, of all arms.")
    modality_adapter_size: int = setting(
        MODALITY_ADAPTER_SIZE, "Hidden channels of each modality's adapter before the encoder, of all arms."
    )
    backbone_config: dict[str, Any] = field(default_factory=lambda: dict(SMALL_PVT_V2))
    backbone: str | None = setting(
        None,
        "Folder, or id on the Hub, of a pretrained encoder, which all arms start from; arms over all bands together "
        "repeat its stem for every modality.",
    )
    bf16: bool = setting(False, "Train in bfloat16; evaluation is in float32.")
    score_classes: list[str] | None = field(
        default=None,
        metadata={"help": "Classes that the means run over; default: those labelled or predicted anywhere."},
    )
    label_column: str | None = setting(
        None, "Column of the labels to score by, for instance scoring_label; default: label, which trains."
    )
    curve_points: int = setting(
        0,
        "Times that --choosing_split is evaluated while training, for the curves of learning; it takes time that is "
        "counted as training.",
    )
    corruptions: bool = setting(False, "Evaluate damaged inputs too.")
    reliance: bool = setting(False, "Compare robustness maps with the errors of single modalities too.")
    calibration: bool = setting(
        False,
        "Say how often confidences are right too; with --choosing_split a temperature is fitted there, and kept with "
        "the model.",
    )
    dates: list[str] | None = field(
        default=None,
        metadata={"help": "Score series from shares of their dates too: all, half, quarter, or numbers up to 1."},
    )
    device: str = setting(
        "cpu",
        "Where the models run; only on the CPU do two runs of one seed give one result for certain.",
        choices=["cpu", "cuda"],
    )
    threads: int = setting(1, "Threads of torch in each run; sums depend on them in the last bits.")

    def __post_init__(self):
        for name in ("max_steps", "batch_size", "crop_size", "decoder_hidden_size", "threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` is {getattr(self, name)}; expected at least 1.")
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"`learning_rate` is {self.learning_rate}; expected a finite number above 0.")
        report, *others = (SPLIT_ALIASES.get(s, s) for s in (self.report_split, self.train_split, self.choosing_split))
        if report in others:
            raise ValueError(
                f"`report_split` is {self.report_split!r}, which is trained on or chooses; report on another split."
            )
        if self.curve_points < 0 or (self.curve_points and self.choosing_split is None):
            raise ValueError(
                f"`curve_points` is {self.curve_points}; expected at least 0, and with more a `choosing_split`."
            )
        if self.device not in ("cpu", "cuda"):
            raise ValueError(f"`device` is {self.device!r}; expected 'cpu' or 'cuda'.")
