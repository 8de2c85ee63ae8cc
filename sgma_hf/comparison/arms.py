"""The arms of a comparison: what differs between two trainings, everything else being equal."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ..data.command_line import did_you_mean


# What every arm is trained with unless it says otherwise. At 0.5 all combinations of the modalities are about equally
# frequent, which is best for arms that have no single-modality branch. The package's own defaults have an arm of their
# own, `sgma_recipe`, and those that a baseline could share have theirs.
COMMON_TRAINING = {"modality_dropout": [0.5], "robustness_sampling": False}


@dataclass(frozen=True)
class Arm:
    """One way to build and train a model."""

    name: str
    description: str  # one line, for the reader of a table
    # Fields of `SgmaConfig` that differ from the package's defaults.
    config: dict[str, Any] = field(default_factory=dict)
    # Fields of `SgmaTrainingArguments` that differ from `COMMON_TRAINING` and the settings of a run.
    training: dict[str, Any] = field(default_factory=dict)
    early_fusion: bool = False  # whether the model is `EarlyFusionForSemanticSegmentation`

    def definition(self) -> dict[str, Any]:
        """What decides the result of a run of this arm: all but name and description."""
        return {key: value for key, value in asdict(self).items() if key not in ("name", "description")}


_NO_DROPOUT = {"modality_dropout": [0.0]}
_LESS_DROPOUT = {"modality_dropout": [0.3]}
_WITHOUT_BRANCH = {"mas_loss_weight": 0.0}
_MEAN = {"fusion": "mean", **_WITHOUT_BRANCH}
_PROJECTOR_MEAN_SINGLE = {"fusion": "projector_mean", "mas_loss_weight": 1.0}
_ROW_SAMPLING = {"robustness_sampling": True}

_ALL = (
    Arm("mean_no_dropout", "mean of the encoder's features, trained with all modalities only", _MEAN, _NO_DROPOUT),
    Arm("mean", "mean of the encoder's features; without adapters, nothing tells it which modality it sees", _MEAN),
    Arm(
        "early",
        "all bands concatenated before the encoder, zeros for what is missing; a full pass for every combination",
        _MEAN,
        early_fusion=True,
    ),
    Arm("early_less_dropout", "early fusion with modality dropout 0.3", _MEAN, _LESS_DROPOUT, early_fusion=True),
    Arm(
        "pointwise_mean",
        "mean of a 1x1 convolution of the encoder's features, one for each modality and stage",
        {"fusion": "pointwise_mean", **_WITHOUT_BRANCH},
    ),
    Arm(
        "projector_mean",
        "mean of the modality-specific projectors' output",
        {"fusion": "projector_mean", **_WITHOUT_BRANCH},
    ),
    Arm(
        "projector_mean_single",
        "mean of the projectors' output, and a branch that is trained on one modality, drawn uniformly",
        _PROJECTOR_MEAN_SINGLE,
    ),
    Arm(
        "projector_mean_single_less_dropout",
        "`projector_mean_single` with modality dropout 0.3",
        _PROJECTOR_MEAN_SINGLE,
        _LESS_DROPOUT,
    ),
    Arm("sgf", "semantic-guided fusion without the sampling branch", _WITHOUT_BRANCH),
    Arm("sgf_less_dropout", "`sgf` with modality dropout 0.3", _WITHOUT_BRANCH, _LESS_DROPOUT),
    Arm(
        "mean_mas",
        "modality-aware sampling with mean fusion, which has no robustness: a uniform draw",
        {"fusion": "mean", "mas_loss_weight": 1.0},
    ),
    Arm("sgma", "semantic-guided fusion and modality-aware sampling"),
    Arm(
        "sgma_uniform_draw",
        "`sgma` whose single modality is drawn uniformly, not by robustness",
        {"mas_exponent": 0.0},
    ),
    Arm("sgma_no_dropout", "`sgma`, trained with all modalities only", training=_NO_DROPOUT),
    Arm("sgma_less_dropout", "`sgma` with modality dropout 0.3", training=_LESS_DROPOUT),
    Arm(
        "sgma_row_sampling",
        "`sgma`; rows sampled, and modalities dropped, by robustness and loss",
        training=_ROW_SAMPLING,
    ),
    Arm(
        "sgma_recipe",
        "`sgma` with modality dropout 0.3 and row sampling, as `sgma-hf train` does by default",
        training={**_ROW_SAMPLING, **_LESS_DROPOUT},
    ),
)
ARMS = {arm.name: arm for arm in _ALL}


def select_arms(names: Sequence[str]) -> list[Arm]:
    """Look arms up by name, in the order of the names, each once; `["all"]` takes every arm."""
    if list(names) == ["all"]:
        return list(ARMS.values())
    if not names or len(set(names)) < len(names):
        raise ValueError(f"The arms are {list(names)}; expected some of {', '.join(ARMS)}, each once, or all.")
    for name in names:
        if name not in ARMS:
            raise ValueError(
                f"There is no arm {name!r}{did_you_mean(name, ARMS) or '.'} The arms are {', '.join(ARMS)}."
            )
    return [ARMS[name] for name in names]
