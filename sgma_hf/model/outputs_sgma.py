"""What the models return."""

from dataclasses import dataclass

import torch
from transformers.utils import ModelOutput


@dataclass
class SgmaModelOutput(ModelOutput):
    """Output of [`SgmaModel`].

    Attributes:
        feature_maps: The fused maps of the four stages, float, each of shape (batch_size, channels, height, width) at
            stride 4, 8, 16 and 32 of the input padded to multiples of 32.
        robustness: Robustness maps of the four stages, float32 in [0, 1], each of shape
            (batch_size, num_modalities, ceil(height / stride), ceil(width / stride)). They sum to 1 over the present
            modalities where anything covers the cell, and are 0 for what is absent. None if the fusion has none, as
            means have none.
        coverage: True where at least one modality covers the pixel, bool, shape (batch_size, height, width).
        prototypes: Class prototypes of the four stages, shape (batch_size, num_labels, channels), on request.
            Rows with one modality do not need them; a batch of such rows only has None.
        hidden_states: `feature_maps`, on request.
        date_robustness: `robustness` of every date, whose sum over the dates it is, on request: (batch_size, T,
            num_modalities, ceil(height / stride), ceil(width / stride)).
    """

    feature_maps: tuple[torch.Tensor, ...] | None = None
    robustness: tuple[torch.Tensor, ...] | None = None
    coverage: torch.Tensor | None = None
    prototypes: tuple[torch.Tensor, ...] | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    date_robustness: tuple[torch.Tensor, ...] | None = None


@dataclass
class SgmaSemanticSegmenterOutput(ModelOutput):
    """Output of [`SgmaForSemanticSegmentation`].

    Attributes:
        loss: The terms of `loss_dict`, each times its weight in the configuration, float32, only if `labels` are
            given. 0 where a batch has no valid label pixel.
        logits: Class scores of shape (batch_size, num_labels, ceil(height / 4), ceil(width / 4)). Cell (i, j) covers
            the pixels 4i to 4i + 3 and 4j to 4j + 3: see [`upsample_to_pixels`]. A `config.logits_stride` of 2 or 1
            stands in place of 4.
        robustness: See [`SgmaModelOutput`].
        coverage: See [`SgmaModelOutput`].
        loss_dict: The unweighted terms, `loss_sgf` and, in training mode, those of `loss_mas`, `loss_subset` and
            `loss_filter` that have a weight; float32 scalars without gradient.
        sampling_probabilities: Modality-aware sampling's probability of each modality, float32, shape
            (batch_size, num_modalities); in training only.
        sampled_modality: Index of the modality that was drawn for each row, int64, shape (batch_size,).
        row_losses: Mean cross-entropy of each row's fused prediction over its valid pixels, float32 without gradient,
            shape (batch_size,), NaN for a row without any; only if `labels` are given. With `config.class_weights`,
            the weighted sum over the number of valid pixels; plus the row's Dice loss, with `config.dice_loss_weight`.
        sampled_row_losses: The same of the prediction from the drawn modality alone; in training only.
        sampled_logits: Logits from the drawn modality alone, without gradient, of the shape of `logits`; in training
            only.
        prototypes: See [`SgmaModelOutput`].
        hidden_states: The fused feature maps, on request.
        date_robustness: See [`SgmaModelOutput`].
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    robustness: tuple[torch.Tensor, ...] | None = None
    coverage: torch.Tensor | None = None
    loss_dict: dict[str, torch.Tensor] | None = None
    sampling_probabilities: torch.Tensor | None = None
    sampled_modality: torch.Tensor | None = None
    row_losses: torch.Tensor | None = None
    sampled_row_losses: torch.Tensor | None = None
    sampled_logits: torch.Tensor | None = None
    prototypes: tuple[torch.Tensor, ...] | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    date_robustness: tuple[torch.Tensor, ...] | None = None
