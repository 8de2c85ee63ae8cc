"""The arms of a comparison: what differs between two trainings, everything else being equal."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any


# What every arm is trained with unless it says otherwise. At 0.5 all combinations of the modalities are about equally
# frequent, which is best for arms that have no single-modality branch. The package's own defaults have an arm of their
# own, `sgma_recipe`, and those that a baseline could share have theirs.
COMMON_TRAINING = {"modality_dropout": [0.5], "robustness_sampling": False}


@dataclass(frozen=True)
class Arm:
    """One way to build and train a model.

    Attributes:
        name: How commands and tables call it.
        description: One line, for the reader of a table.
        config: Fields of `SgmaConfig` that differ from the package's defaults.
        training: Fields of `SgmaTrainingArguments` that differ from `COMMON_TRAINING` and the settings of a run.
        early_fusion: Whether the model is `EarlyFusionForSemanticSegmentation`.
    """

    name: str
    description: str
    config: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    early_fusion: bool = False

    def definition(self) -> dict[str, Any]:
        """What decides the result of a run of this arm: all but name and description."""
        return {key: value for key, value in asdict(self).items() if key not in ("name", "description")}


_NO_DROPOUT = {"modality_dropout": [0.0]}
_LESS_DROPOUT = {"modality_dropout": [0.3]}

ARMS = {
    arm.name: arm
    for arm in (
        Arm(
            "mean_no_dropout",
            "mean of the encoder's features, trained with all modalities only",
            config={"fusion": "mean", "mas_loss_weight": 0.0},
            training=_NO_DROPOUT,
        ),
        Arm(
            "mean",
            "mean of the encoder's features; without adapters, nothing tells the encoder which modality it sees",
            config={"fusion": "mean", "mas_loss_weight": 0.0},
        ),
        Arm(
            "early",
            "all bands concatenated before the encoder, zeros for what is missing; a full pass for every combination",
            config={"fusion": "mean", "mas_loss_weight": 0.0},
            early_fusion=True,
        ),
        Arm(
            "early_less_dropout",
            "early fusion with modality dropout 0.3",
            config={"fusion": "mean", "mas_loss_weight": 0.0},
            training=_LESS_DROPOUT,
            early_fusion=True,
        ),
        Arm(
            "pointwise_mean",
            "mean of a 1x1 convolution of the encoder's features, one for each modality and stage",
            config={"fusion": "pointwise_mean", "mas_loss_weight": 0.0},
        ),
        Arm(
            "projector_mean",
            "mean of the modality-specific projectors' output",
            config={"fusion": "projector_mean", "mas_loss_weight": 0.0},
        ),
        Arm(
            "projector_mean_single",
            "mean of the projectors' output, and a branch that is trained on one modality, drawn uniformly",
            config={"fusion": "projector_mean", "mas_loss_weight": 1.0},
        ),
        Arm(
            "projector_mean_single_less_dropout",
            "`projector_mean_single` with modality dropout 0.3",
            config={"fusion": "projector_mean", "mas_loss_weight": 1.0},
            training=_LESS_DROPOUT,
        ),
        Arm("sgf", "semantic-guided fusion without the sampling branch", config={"mas_loss_weight": 0.0}),
        Arm(
            "sgf_less_dropout",
            "`sgf` with modality dropout 0.3",
            config={"mas_loss_weight": 0.0},
            training=_LESS_DROPOUT,
        ),
        Arm(
            "mean_mas",
            "modality-aware sampling with mean fusion, which has no robustness: a uniform draw",
            config={"fusion": "mean", "mas_loss_weight": 1.0},
        ),
        Arm("sgma", "semantic-guided fusion and modality-aware sampling"),
        Arm(
            "sgma_uniform_draw",
            "`sgma` whose single modality is drawn uniformly, not by robustness",
            config={"mas_exponent": 0.0},
        ),
        Arm("sgma_no_dropout", "`sgma`, trained with all modalities only", training=_NO_DROPOUT),
        Arm("sgma_less_dropout", "`sgma` with modality dropout 0.3", training=_LESS_DROPOUT),
        Arm(
            "sgma_row_sampling",
            "`sgma`; rows sampled, and modalities dropped, by robustness and loss",
            training={"robustness_sampling": True},
        ),
        Arm(
            "sgma_recipe",
            "`sgma` with modality dropout 0.3 and row sampling, as `sgma-hf train` does by default",
            training={"robustness_sampling": True, **_LESS_DROPOUT},
        ),
    )
}


def select_arms(names: Sequence[str]) -> list[Arm]:
    """Look arms up by name.

    Args:
        names: Names of arms, each once; `["all"]` takes every arm that is not the same as one before it.

    Returns:
        The arms, in the order of the names.

    Raises:
        ValueError: If a name is unknown or repeated, or there is none.
    """
    if list(names) == ["all"]:
        definitions = [arm.definition() for arm in ARMS.values()]
        return [arm for index, arm in enumerate(ARMS.values()) if definitions[index] not in definitions[:index]]
    unknown = sorted(set(names) - set(ARMS))
    if unknown or not names:
        raise ValueError(f"Unknown arms {unknown}; expected some of {list(ARMS)}, or 'all' alone.")
    if len(set(names)) < len(names):
        raise ValueError(f"`arms` repeats a name: {list(names)}; name each arm once.")
    return [ARMS[name] for name in names]
