"""One arm of a comparison: what differs between two trainings, everything else being equal."""

import hashlib
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from torch import nn

    from ...model.configuration_sgma import SgmaConfig

# What every arm is trained with unless it says otherwise. At 0.5 all combinations of the modalities are about equally
# frequent, which is best for arms that have no single-modality branch. The package's own defaults have an arm of their
# own, `sgma_recipe`, and those that a baseline could share have theirs.
COMMON_TRAINING = {"modality_dropout": [0.5], "robustness_sampling": False}


@dataclass(frozen=True)
class Arm:
    """One way to build and train a model.

    Args:
        name: What `--arms` and the tables call it; an arm of your own goes by `package.module:ARM` instead.
        description: One line, for the reader of a table.
        config: Fields of `SgmaConfig` that differ from the package's defaults.
        training: Fields of `SgmaTrainingArguments` that differ from `COMMON_TRAINING` and the settings of a run, for
            instance `learning_rate`.
        build: Makes the network from the run's `SgmaConfig` (`modalities`, `modality_channels`, `num_labels`,
            `backbone_config`, `decoder_hidden_size` and so on), with weights from torch's global random state. None
            is SGMA as `config` has it. The network is an `nn.Module` that is called as
            `network(pixel_values=..., modality_mask=..., labels=...)`, once for every combination of the modalities:

            - `pixel_values`: normalised rasters, the modalities one after the other, float32,
              (batch_size, sum(config.modality_channels), height, width), sides multiples of 32. What is missing is 0;
              where nothing at all is there, padding for one, all bands are `config.gap_value`.
            - `modality_mask`: True where a modality is there, bool, (batch_size, num_modalities, height, width).
            - `labels`: int64, (batch_size, height, width), 255 is ignored; None unless the network is trained.

            It returns a dict, or a `ModelOutput`, with `logits`, (batch_size, num_labels, height, width) or
            (batch_size, num_labels, height / 4, width / 4). In training it may hold `loss`, a mean over the labelled
            pixels, which is trained on; without one the loss is that of all arms. For `--backbone` it has a method
            `load_pretrained(name_or_path)`. Where its attribute `takes_series` is True, it is called with series too:
            `pixel_values` and `modality_mask` with an axis of dates after that of rows, and `dates`,
            (batch_size, T, num_modalities), NaN where unknown, or None.
    """

    name: str
    description: str
    config: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    build: "Callable[[SgmaConfig], nn.Module] | None" = None

    @property
    def is_ours(self) -> bool:
        """Whether it is an arm of the package, not `package.module:ARM`."""
        return ":" not in self.name

    def definition(self) -> dict[str, Any]:
        """What decides the result of a run of this arm: all but name and description."""
        found = {"config": self.config, "training": self.training}
        if not self.is_ours:
            source = Path(sys.modules[self.name.partition(":")[0]].__file__)
            found["source_sha256"] = hashlib.sha256(source.read_bytes()).hexdigest()
        elif self.build is not None:
            found["build"] = self.build.__qualname__
        return found
