"""Configuration of SGMA (arXiv:2603.02505)."""

import re

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING


# A modality name is also a column of the data set, a command-line flag and a part of output file names.
RESERVED_MODALITY_NAMES = frozenset(
    "bands batch_size classes config coverage dataset device dtype help id image images index label labels like mask "
    "missing modalities modality modality_mask model nodata num_workers out output pixel_values processor resume "
    "robustness seed source split stride tile".split()
)
MAX_MODALITIES = 64
MAX_CHANNELS = 4096  # per modality; hyperspectral sensors have a few hundred bands
MAX_LABELS = 255  # label maps are uint8, and 255 says "ignore"
STAGE_STRIDES = (4, 8, 16, 32)

# PVT-v2-b2, the paper's main backbone: `PvtV2Config()` itself is b0-sized.
PVT_V2_B2 = {
    "model_type": "pvt_v2",
    "hidden_sizes": [64, 128, 320, 512],
    "depths": [3, 4, 6, 3],
    "num_attention_heads": [1, 2, 5, 8],
    "mlp_ratios": [8, 8, 4, 4],
    "out_features": ["stage1", "stage2", "stage3", "stage4"],
}


def check_modalities(modalities, modality_channels):
    """Check that two parallel lists describe the modalities of a model.

    Args:
        modalities: Names, each matching `[a-z][a-z0-9_]*`, unique and not reserved.
        modality_channels: Number of bands of each modality, in the same order.

    Raises:
        ValueError: If there is no modality, the lengths differ, a name is malformed, reserved or repeated, or a
            channel count is not between 1 and 4096.
    """
    if not 1 <= len(modalities) <= MAX_MODALITIES:
        raise ValueError(f"`modalities` has {len(modalities)} entries; expected 1 to {MAX_MODALITIES} names.")
    if len(modalities) != len(modality_channels):
        raise ValueError(
            f"`modalities` has {len(modalities)} entries and `modality_channels` has {len(modality_channels)}; "
            "they are parallel lists, so give one channel count per modality."
        )
    for name in modalities:
        if not isinstance(name, str) or not re.fullmatch(r"[a-z][a-z0-9_]*", name):
            raise ValueError(
                f"Modality name {name!r} is malformed; use lower-case letters, digits and underscores, letter first."
            )
        if name in RESERVED_MODALITY_NAMES:
            raise ValueError(f"Modality name {name!r} is reserved for a column or a flag; choose another name.")
    repeated = sorted({name for name in modalities if list(modalities).count(name) > 1})
    if repeated:
        raise ValueError(f"`modalities` repeats {repeated}; every modality needs a name of its own.")
    for name, channels in zip(modalities, modality_channels, strict=True):
        if isinstance(channels, bool) or not isinstance(channels, int) or not 1 <= channels <= MAX_CHANNELS:
            raise ValueError(f"Modality {name!r} has {channels!r} channels; expected 1 to {MAX_CHANNELS}.")


@strict
class SgmaConfig(PreTrainedConfig):
    r"""Configuration of [`SgmaModel`] and [`SgmaForSemanticSegmentation`].

    The defaults build the paper's main model: PVT-v2-b2, shared by RGB, height and near infrared.

    Args:
        modalities (`list[str]`, *optional*, defaults to `["rgb", "dsm", "nir"]`):
            Names of the modalities. Their order is the order of the channels in `pixel_values`; it is a list, with
            `modality_channels` parallel to it, because JSON files of configurations are written with sorted keys.
        modality_channels (`list[int]`, *optional*, defaults to `[3, 1, 1]`):
            Number of bands of each modality. A modality with the backbone's own channel count goes in as it is, one
            band is repeated, any other count is brought there by a 1x1 convolution of its own.
        backbone_config (`dict` or `PreTrainedConfig`, *optional*):
            Configuration of the encoder, shared by all modalities: any `transformers` backbone whose four stages have
            strides 4, 8, 16 and 32 (PVT-v2, ResNet, Swin, ConvNeXt, ...). Defaults to PVT-v2-b2.
        fusion (`str`, *optional*, defaults to `"sgf"`):
            `"sgf"`: semantic-guided fusion, as in the paper. `"mean"`: the mean of the encoder's features over the
            modalities present. `"projector_mean"`: the mean of the modality-specific projectors' output. The latter
            two are baselines.
        num_attention_heads (`int`, *optional*, defaults to 4):
            Heads of the two perceptrons at every stage; the paper does not state a number. It has to divide the
            channels of all four stages.
        decoder_hidden_size (`int`, *optional*, defaults to 256):
            Width of the decode head. The paper does not name its head.
        classifier_dropout_prob (`float`, *optional*, defaults to 0.1):
            Dropout before the classifier.
        sgf_loss_weight (`float`, *optional*, defaults to 2.0):
            Weight of the loss of the fused prediction (paper: 2).
        mas_loss_weight (`float`, *optional*, defaults to 1.0):
            Weight of the loss of the modality-aware sampling branch (paper: 1). 0 leaves the branch out.
        freeze_batch_norm (`bool`, *optional*, defaults to `True`):
            Keep the statistics of the backbone's batch normalisation fixed while training. They would otherwise
            depend on which modalities happen to be packed together. No effect on backbones without it.
        initializer_range (`float`, *optional*, defaults to 0.02):
            Standard deviation of the initial classifier weights.
        semantic_loss_ignore_index (`int`, *optional*, defaults to 255):
            Label value that is left out of the loss.

    Example:
    ```python
    >>> from sgma_hf import SgmaConfig, SgmaForSemanticSegmentation

    >>> config = SgmaConfig(modalities=["rgb", "dsm", "sar"], modality_channels=[3, 1, 2], num_labels=2)
    >>> model = SgmaForSemanticSegmentation(config)
    ```
    """

    model_type = "sgma"
    sub_configs = {"backbone_config": AutoConfig}  # noqa: RUF012 - as transformers declares it
    keys_to_ignore_at_inference = [  # noqa: RUF012
        "robustness",
        "coverage",
        "prototypes",
        "loss_dict",
        "sampling_probabilities",
        "sampled_modality",
        "hidden_states",
    ]

    modalities: list[str] | tuple[str, ...] = ("rgb", "dsm", "nir")
    modality_channels: list[int] | tuple[int, ...] = (3, 1, 1)
    backbone_config: dict | PreTrainedConfig | None = None
    fusion: str = "sgf"
    num_attention_heads: int = 4
    decoder_hidden_size: int = 256
    classifier_dropout_prob: float | int = 0.1
    sgf_loss_weight: float | int = 2.0
    mas_loss_weight: float | int = 1.0
    freeze_batch_norm: bool = True
    initializer_range: float = 0.02
    semantic_loss_ignore_index: int = 255

    def __post_init__(self, **kwargs):
        self.modalities = list(self.modalities)
        self.modality_channels = list(self.modality_channels)
        check_modalities(self.modalities, self.modality_channels)
        self.backbone_config = _backbone_config(self.backbone_config)
        super().__post_init__(**kwargs)
        self._check_values()

    def _check_values(self):
        if self.fusion not in ("sgf", "mean", "projector_mean"):
            raise ValueError(f"`fusion` is {self.fusion!r}; expected 'sgf', 'mean' or 'projector_mean'.")
        if not 2 <= self.num_labels <= MAX_LABELS:
            raise ValueError(
                f"`num_labels` is {self.num_labels}; expected 2 to {MAX_LABELS} classes. "
                "For one class against the rest use 2, with the rest as class 0."
            )
        for name, upper in (("num_attention_heads", 64), ("decoder_hidden_size", 8192)):
            if not 1 <= getattr(self, name) <= upper:
                raise ValueError(f"`{name}` is {getattr(self, name)}; expected 1 to {upper}.")
        for name in ("sgf_loss_weight", "mas_loss_weight"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"`{name}` is {getattr(self, name)}; expected a finite number of at least 0.")
        if not 0 <= self.classifier_dropout_prob < 1:
            raise ValueError(f"`classifier_dropout_prob` is {self.classifier_dropout_prob}; expected [0, 1).")
        if 0 <= self.semantic_loss_ignore_index < self.num_labels:
            raise ValueError(
                f"`semantic_loss_ignore_index` is {self.semantic_loss_ignore_index}, which is also one of the "
                f"{self.num_labels} classes; use a value that no class has, such as 255."
            )

    @property
    def num_modalities(self) -> int:
        """Number of modalities, M."""
        return len(self.modalities)


def _backbone_config(backbone_config):
    """Build the backbone's configuration with all four of its stages as outputs."""
    if backbone_config is None:
        backbone_config = PVT_V2_B2
    if isinstance(backbone_config, dict):
        values = dict(backbone_config)
        model_type = values.pop("model_type", None)
        if model_type not in CONFIG_MAPPING:
            raise ValueError(
                f"`backbone_config` has the model type {model_type!r}, which transformers does not know; "
                "set `model_type` to a backbone such as 'pvt_v2', 'resnet', 'swin' or 'convnext'."
            )
        backbone_config = CONFIG_MAPPING[model_type](**values)
    stages = [name for name in getattr(backbone_config, "stage_names", None) or [] if name != "stem"]
    if len(stages) != len(STAGE_STRIDES):
        raise ValueError(
            f"`backbone_config` ({type(backbone_config).__name__}) has {len(stages)} stages; SGMA needs a backbone of "
            "exactly four, with strides 4, 8, 16 and 32."
        )
    if list(backbone_config.out_features) != stages:
        backbone_config.out_features = stages
    return backbone_config


__all__ = ["SgmaConfig"]
