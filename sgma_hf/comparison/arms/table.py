"""The arms of the package, without torch, so that the command's help is there at once."""

from typing import TYPE_CHECKING

from .arm import Arm


if TYPE_CHECKING:
    from torch import nn

    from ...model.configuration_sgma import SgmaConfig


def early_fusion(config: "SgmaConfig") -> "nn.Module":
    """Build the package's own model with all bands as one modality."""
    from .networks import EarlyFusion

    return EarlyFusion(config)


def segformer(config: "SgmaConfig") -> "nn.Module":
    """Build transformers' SegFormer over all bands."""
    from .networks import Segformer

    return Segformer(config)


def upernet(config: "SgmaConfig") -> "nn.Module":
    """Build transformers' UperNet over all bands."""
    from .networks import UperNet

    return UperNet(config)


def ltae(config: "SgmaConfig") -> "nn.Module":
    """Build L-TAE of each sensor over its dates, then semantic-guided fusion."""
    from .series_networks import Ltae

    return Ltae(config)


def monthly_mean(config: "SgmaConfig") -> "nn.Module":
    """Build semantic-guided fusion of monthly composites."""
    from .series_networks import MonthlyMean

    return MonthlyMean(config, date_periods=config.date_periods)


_NO_DROPOUT = {"modality_dropout": [0.0]}
_LESS_DROPOUT = {"modality_dropout": [0.3]}
_WITHOUT_BRANCH = {"mas_loss_weight": 0.0}
_MEAN = {"fusion": "mean", **_WITHOUT_BRANCH}
_MEAN_SINGLE = {"fusion": "mean", "mas_loss_weight": 1.0}
_PROJECTOR_MEAN_SINGLE = {"fusion": "projector_mean", "mas_loss_weight": 1.0}
_SUBSETS = {"subset_loss_weight": 1.0}
_FILTER = {"filter_loss_weight": 0.5}
_ROW_SAMPLING = {"robustness_sampling": True}

_ALL = (
    Arm("mean_no_dropout", "mean of the encoder's features, trained with all modalities only", _MEAN, _NO_DROPOUT),
    Arm("mean", "mean of the encoder's features; without adapters, nothing tells it which modality it sees", _MEAN),
    Arm(
        "early",
        "all bands concatenated before the encoder, zeros for what is missing; a full pass for every combination",
        build=early_fusion,
    ),
    Arm("early_less_dropout", "early fusion with modality dropout 0.3", training=_LESS_DROPOUT, build=early_fusion),
    Arm(
        "segformer",
        "transformers' SegFormer over all bands, zeros for what is missing; its encoder is the MiT of a PVT-v2's "
        "widths and depths, else the one of the nearest size, from random weights",
        build=segformer,
    ),
    Arm(
        "upernet",
        "transformers' UperNet over all bands, zeros for what is missing; the encoder of all arms",
        build=upernet,
    ),
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
    Arm(
        "projector_mean_subsets",
        "`projector_mean_single` of all modalities, with some of them together, drawn uniformly, supervised as well",
        {**_PROJECTOR_MEAN_SINGLE, **_SUBSETS},
        _NO_DROPOUT,
    ),
    Arm("sgf", "semantic-guided fusion without the sampling branch", _WITHOUT_BRANCH),
    Arm("sgf_less_dropout", "`sgf` with modality dropout 0.3", _WITHOUT_BRANCH, _LESS_DROPOUT),
    Arm(
        "mean_mas",
        "modality-aware sampling with mean fusion, which has no robustness: a uniform draw",
        _MEAN_SINGLE,
    ),
    Arm("mean_mas_less_dropout", "`mean_mas` with modality dropout 0.3", _MEAN_SINGLE, _LESS_DROPOUT),
    Arm("sgma", "semantic-guided fusion and modality-aware sampling"),
    Arm(
        "sgma_uniform_draw",
        "`sgma` whose single modality is drawn uniformly, not by robustness",
        {"mas_exponent": 0.0},
    ),
    Arm(
        "ltae",
        "attention of L-TAE over the dates of each sensor, as in U-TAE, then `sgf`; a full pass for every combination",
        build=ltae,
    ),
    Arm(
        "monthly_mean",
        "`sgf` of monthly composites: of each sensor and pixel the mean of a month; a full pass for every combination",
        build=monthly_mean,
    ),
    Arm("sgma_no_dropout", "`sgma`, trained with all modalities only", training=_NO_DROPOUT),
    Arm("sgma_less_dropout", "`sgma` with modality dropout 0.3", training=_LESS_DROPOUT),
    Arm(
        "sgma_row_sampling",
        "`sgma`; rows sampled, and modalities dropped, by robustness and loss",
        training=_ROW_SAMPLING,
    ),
    Arm(
        "sgma_subsets",
        "`sgma` of all modalities, with some of them together, drawn by robustness, supervised as well; rows sampled",
        _SUBSETS,
        {**_ROW_SAMPLING, **_NO_DROPOUT},
    ),
    Arm(
        "sgma_subsets_filter",
        "`sgma_subsets` whose class filter is supervised, too",
        {**_SUBSETS, **_FILTER},
        {**_ROW_SAMPLING, **_NO_DROPOUT},
    ),
    Arm(
        "sgma_filter",
        "`sgma_row_sampling` with modality dropout 0.3 and a supervised class filter",
        _FILTER,
        {**_ROW_SAMPLING, **_LESS_DROPOUT},
    ),
    Arm(
        "sgma_own_encoders",
        "`sgma` with an encoder for each modality, that takes its bands as they are",
        {"shared_encoder": False},
    ),
    Arm(
        "sgma_recipe",
        "`sgma` with modality dropout 0.3 and row sampling, as `sgma-hf train` does by default",
        training={**_ROW_SAMPLING, **_LESS_DROPOUT},
    ),
)
ARMS = {arm.name: arm for arm in _ALL}
