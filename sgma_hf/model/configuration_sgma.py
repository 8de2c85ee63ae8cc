"""Configuration of SGMA (arXiv:2603.02505)."""

import copy
import dataclasses
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.backbone_utils import BackboneConfigMixin
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.utils import logging

from .limits_sgma import (
    DICE_LOSS_WEIGHT,
    IGNORE_INDEX,
    MAX_DATE_PERIODS,
    MAX_IMAGE_SIDE,
    MODALITY_ADAPTER_SIZE,
    check_modalities,
    check_num_labels,
)


logger = logging.get_logger(__name__)


FORMAT_VERSION = 2
# What gaps and padding hold where they enter the encoder, by the format version. A gap of the mean, 0, makes vectors
# of zeros in an encoder whose biases are still 0, and layer normalisation multiplies their gradient by 1000, layer by
# layer. Another constant is a flat surface, as images have them; a small one hardly shows where single pixels lack.
GAP_VALUES = {1: 0.0, 2: 0.25}
# What transformers itself writes into a configuration, or passes on while loading, beside the declared fields.
SERVICE_FIELDS = frozenset(
    "attn_implementation auto_map custom_pipelines experts_implementation model_type name_or_path num_labels "
    "output_attentions per_layer_config torch_dtype transformers_version use_cache".split()
)
PIPELINE_TASK = "image-segmentation"  # as the Hub's snippet has it
DTYPES = ("float16", "bfloat16", "float32", "float64", "auto")

# PVT-v2-b2, the paper's main backbone: `PvtV2Config()` itself is b0-sized.
PVT_V2_B2 = {
    "model_type": "pvt_v2",
    "hidden_sizes": [64, 128, 320, 512],
    "depths": [3, 4, 6, 3],
    "num_attention_heads": [1, 2, 5, 8],
    "mlp_ratios": [8, 8, 4, 4],
    "out_features": ["stage1", "stage2", "stage3", "stage4"],
}


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
            band is repeated, any other count is brought there by a 1x1 convolution of its own; to all of them
            `modality_adapter_size` adds.
        backbone_config (`dict` or `PreTrainedConfig`, *optional*):
            Configuration of the encoder, shared by all modalities: any backbone of `transformers`, timm's by
            `timm_backbone` among them, or of your own, that takes images of any size. Four of its maps are used: of
            each stride from 4 to 32 the last, or, if all have one stride as those of plain vision transformers
            (DINOv2, DINOv3, ViTDet), those at four depths, which a feature pyramid brings to these strides. Its
            `out_features` or `out_indices` choose others. Defaults to PVT-v2-b2. For several encoders it is a dict of
            such configurations by the modalities that each is for, joined by "+":
            `{"rgb+nir": {"model_type": "pvt_v2", ...}, "sar": {...}}`. The paper shares one. An encoder of one
            modality takes its bands as they are if `num_channels` is their number, which it is if a dict leaves it
            out.
        encoder_groups (`list[list[str]]`, *optional*):
            Modalities that share an encoder, such as `[["rgb", "nir"], ["sar"]]`, where `backbone_config` is one, for
            encoders of equal configuration and weights of their own. Stored as `backbone_config` alone.
        shared_encoder (`bool`, *optional*, defaults to `True`):
            False is an encoder for each modality: short for `encoder_groups` of one modality each.
        modality_adapter_size (`int`, *optional*, defaults to 16):
            Hidden channels of a perceptron of every pixel's bands, one for each modality, whose output is added to
            what enters the shared encoder. It starts at 0 and lets the encoder tell the modalities apart. The paper
            has none: 0.
        fusion (`str`, *optional*, defaults to `"sgf"`):
            `"sgf"`: semantic-guided fusion, as in the paper. `"mean"`: the mean of the encoder's features over the
            modalities present. `"pointwise_mean"`: the mean of a 1x1 convolution of theirs, one per modality and
            stage. `"projector_mean"`: the mean of the modality-specific projectors' output. All but the first are
            baselines. Another name is that of a fusion of your own, see [`register_fusion`].
        num_attention_heads (`int`, *optional*, defaults to 4):
            Heads of the two perceptrons at every stage; the paper does not state a number. It has to divide the
            channels of all four stages.
        date_periods (`list[float]`, *optional*):
            For series: periods of the waves by which the model knows the dates of images, in the unit of `dates`, such
            as `[365.25, 182.6, 121.75, 91.3, 60.9]` in days for a year and its parts. None: it knows no dates, as in
            the paper, and several images of a modality are a set.
        decoder_hidden_size (`int`, *optional*, defaults to 256):
            Width of the decode head. The paper does not name its head.
        logits_stride (`int`, *optional*, defaults to 4):
            Pixels a side of the cells of the logits: 4 as in the paper, 2, or 1 for every pixel, where what is to be
            seen is a few pixels wide. Loss and maps are of pixels in each case; see docs/encoders.md for the cost.
        classifier_dropout_prob (`float`, *optional*, defaults to 0.0):
            Dropout before the classifier. It draws from the global random state, so that training depends on more
            than seed, epoch and row.
        sgf_loss_weight (`float`, *optional*, defaults to 2.0):
            Weight of the loss of the fused prediction (paper: 2).
        mas_loss_weight (`float`, *optional*, defaults to 1.0):
            Weight of the loss of the modality-aware sampling branch (paper: 1). 0 leaves the branch out.
        subset_loss_weight (`float`, *optional*, defaults to 0.0):
            Weight of the loss of a prediction from some of a row's modalities together, which modality-aware sampling
            draws, too, and which are fused from the one encoding: see [`sample_subset`]. The paper has none. Of two
            modalities there is nothing between one and all, so it has no effect.
        filter_loss_weight (`float`, *optional*, defaults to 0.0):
            Weight of a cross-entropy of CSF's class scores at every stage, from each modality alone, with `fusion` of
            `"sgf"`: see [`filter_losses`]. The paper has none.
        mas_exponent (`float`, *optional*, defaults to 1.0):
            Power of the probabilities by which modality-aware sampling draws: 1 as in the paper, 0 uniformly over the
            modalities present, above 1 the fragile ones more often still.
        dice_loss_weight (`float`, *optional*, defaults to 1.0):
            Weight of a soft Dice loss that is added to the cross-entropy of both predictions, against imbalance of
            the classes. The paper has none: 0 is its loss.
        freeze_batch_norm (`bool`, *optional*, defaults to `True`):
            Keep the statistics of the backbone's batch normalisation fixed while training. They would otherwise
            depend on which modalities happen to be packed together. No effect on backbones without it.
        initializer_range (`float`, *optional*, defaults to 0.02):
            Standard deviation of the initial weights of backbone layers that have no initialisation of their own.
            Everything of ours keeps the variance of its input instead.
        semantic_loss_ignore_index (`int`, *optional*, defaults to 255):
            Label value that is left out of the loss. [`SgmaImageProcessor`], and with it training and evaluation by
            this package, writes 255; another value is for labels of your own.
        class_weights (`list[float]`, *optional*):
            Weight of each class in the loss, for classes that are rare. The paper has none.
        tile_size (`int`, *optional*):
            Side in pixels of the images that the model was trained on, written by `SgmaTrainer` when it trains: its
            `crop_size`, or without one the largest side of its rows. Evaluation and prediction cut larger images into
            windows of this size. The model itself takes any size.
        palette (`list[list[int]]`, *optional*):
            [red, green, blue] in 0..255 of each class, for pictures; one for every class, or None.
        temperature (`float`, *optional*, defaults to 1.0):
            What logits are divided by while the model does not train, so that its confidences are right as often as
            they say; no class depends on it. `sgma-hf evaluate --calibration fit` writes it, training makes it 1.
        format_version (`int`, *optional*, defaults to 2):
            Version of this configuration's meaning; one that this code does not know is refused. Checkpoints of
            version 1 go on to predict as they did: their gaps enter the encoder as 0 and not as `gap_value`.

    Example:
    ```python
    >>> from sgma_hf import SgmaConfig, SgmaForSemanticSegmentation

    >>> config = SgmaConfig(modalities=["rgb", "dsm", "sar"], modality_channels=[3, 1, 2], num_labels=2)
    >>> model = SgmaForSemanticSegmentation(config)
    ```
    """

    model_type = "sgma"
    keys_to_ignore_at_inference = [  # noqa: RUF012
        "robustness",
        "coverage",
        "prototypes",
        "loss_dict",
        "sampling_probabilities",
        "sampled_modality",
        "row_losses",
        "sampled_row_losses",
        "sampled_logits",
        "hidden_states",
        "date_robustness",
    ]

    modalities: list[str] | tuple[str, ...] = ("rgb", "dsm", "nir")
    modality_channels: list[int] | tuple[int, ...] = (3, 1, 1)
    backbone_config: dict | PreTrainedConfig | None = None
    modality_adapter_size: int = MODALITY_ADAPTER_SIZE
    fusion: str = "sgf"
    num_attention_heads: int = 4
    date_periods: list[float | int] | tuple[float | int, ...] | None = None
    decoder_hidden_size: int = 256
    logits_stride: int = 4
    classifier_dropout_prob: float | int = 0.0
    sgf_loss_weight: float | int = 2.0
    mas_loss_weight: float | int = 1.0
    subset_loss_weight: float | int = 0.0
    filter_loss_weight: float | int = 0.0
    mas_exponent: float | int = 1.0
    dice_loss_weight: float | int = DICE_LOSS_WEIGHT
    freeze_batch_norm: bool = True
    initializer_range: float = 0.02
    semantic_loss_ignore_index: int = IGNORE_INDEX
    class_weights: list[float | int] | tuple[float | int, ...] | None = None
    tile_size: int | None = None
    palette: list[list[int]] | tuple[tuple[int, ...], ...] | None = None
    temperature: float | int = 1.0
    format_version: int = FORMAT_VERSION

    def __post_init__(self, **kwargs):
        if self.format_version not in GAP_VALUES:
            raise ValueError(
                f"The configuration has format version {self.format_version}, this code reads {list(GAP_VALUES)}: it "
                "was written by another version of sgma_hf. Update the package, or load with trust_remote_code=True."
            )
        kwargs["custom_pipelines"] = custom_pipelines()
        if kwargs.pop("fusion_residual", False):
            raise ValueError("`fusion_residual` is true, which is gone: train anew without it, or use sgma_hf 0.1.0.")
        unknown = self.unknown_fields(kwargs)
        if unknown:
            logger.warning(
                f"SgmaConfig does not know the fields {unknown}; they are kept and have no effect. Correct their "
                "names, or update the package if a newer version wrote them."
            )
        _check_labels(self.id2label, kwargs.get("num_labels"))
        if isinstance(self.dtype, str) and self.dtype not in DTYPES:
            raise ValueError(f"`dtype` is {self.dtype!r}; expected one of {list(DTYPES)}.")
        self.modalities = list(self.modalities)
        self.modality_channels = list(self.modality_channels)
        check_modalities(self.modalities, self.modality_channels)
        groups = kwargs.pop("encoder_groups", None)
        if not kwargs.pop("shared_encoder", True) and groups is None:
            groups = self.modalities
        channels = dict(zip(self.modalities, self.modality_channels, strict=True))
        self.backbone_config = _backbone_configs(self.backbone_config, channels, groups)
        super().__post_init__(**kwargs)
        if not self.label2id:  # transformers derives only one of the two when the other is given
            self.label2id = {name: index for index, name in self.id2label.items()}
        self._check_values()

    @classmethod
    def unknown_fields(cls, names):
        """Names that are no fields of a configuration, sorted."""
        known = {item.name for item in dataclasses.fields(cls)} | {"encoder_groups", "shared_encoder"}
        return sorted(name for name in names if name not in known | SERVICE_FIELDS and not name.startswith("_"))

    def _check_values(self):
        check_num_labels(self.num_labels)
        sizes = (("num_attention_heads", 1, 64), ("decoder_hidden_size", 1, 8192), ("modality_adapter_size", 0, 1024))
        for name, lower, upper in sizes:
            if not lower <= getattr(self, name) <= upper:
                raise ValueError(f"`{name}` is {getattr(self, name)}; expected {lower} to {upper}.")
        if self.logits_stride not in (1, 2, 4):
            raise ValueError(f"`logits_stride` is {self.logits_stride}; expected 4, 2 or 1 pixels.")
        weights = [f"{name}_loss_weight" for name in ("sgf", "mas", "subset", "filter", "dice")]
        for name in (*weights, "mas_exponent", "initializer_range"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"`{name}` is {getattr(self, name)}; expected a finite number of at least 0.")
        periods = self.date_periods
        if periods is not None and not (
            1 <= len(periods) <= MAX_DATE_PERIODS and all(0 < period < float("inf") for period in periods)
        ):
            raise ValueError(
                f"`date_periods` is {periods}; expected 1 to {MAX_DATE_PERIODS} finite numbers above 0, or None."
            )
        if self.class_weights is not None and (
            len(self.class_weights) != self.num_labels or not all(0 <= w < float("inf") for w in self.class_weights)
        ):
            raise ValueError(
                f"`class_weights` is {self.class_weights}; expected {self.num_labels} finite numbers of at least 0."
            )
        if self.tile_size is not None and not 1 <= self.tile_size <= MAX_IMAGE_SIDE:
            raise ValueError(f"`tile_size` is {self.tile_size}; expected 1 to {MAX_IMAGE_SIDE} pixels, or None.")
        if not 0 < self.temperature < float("inf"):
            raise ValueError(f"`temperature` is {self.temperature}; expected a finite number above 0.")
        if not 0 <= self.classifier_dropout_prob < 1:
            raise ValueError(f"`classifier_dropout_prob` is {self.classifier_dropout_prob}; expected [0, 1).")
        if self.palette and len(self.palette) != self.num_labels:
            raise ValueError(
                f"`palette` has {len(self.palette)} colours for {self.num_labels} classes; expected one each, or None."
            )
        for color in self.palette or []:
            if len(color) != 3 or not all(0 <= part <= 255 for part in color):
                raise ValueError(f"`palette` has {color}; expected [red, green, blue], each 0 to 255.")
        if 0 <= self.semantic_loss_ignore_index < self.num_labels:
            raise ValueError(
                f"`semantic_loss_ignore_index` is {self.semantic_loss_ignore_index}, which is also one of the "
                f"{self.num_labels} classes; use a value that no class has, such as 255."
            )

    @classmethod
    def from_dict(cls, config_dict, **kwargs):
        """Build a configuration as transformers does, and check what `kwargs` change in it, too.

        Colours and weights of classes are left out, with a warning, if `kwargs` ask for another number of classes, as
        in `from_pretrained(folder, num_labels=7, ignore_mismatched_sizes=True)`: they are those of the old classes.
        """
        names = kwargs.get("id2label")
        num_labels = kwargs.get("num_labels") if names is None else len(names)
        config_dict = dict(config_dict)
        for name in ("palette", "class_weights"):
            if num_labels is not None and len(config_dict.get(name) or ()) not in (0, num_labels):
                config_dict[name] = None
                if name not in kwargs:
                    logger.warning(f"`{name}` of the configuration is not for {num_labels} classes and is left out.")
        result = super().from_dict(config_dict, **kwargs)
        config = result[0] if isinstance(result, tuple) else result  # `return_unused_kwargs`
        config._check_values()
        return result

    @property
    def encoder_configs(self) -> dict[str, PreTrainedConfig]:
        """Configuration of every encoder, by its modalities joined by "+", in the order of their first."""
        if isinstance(self.backbone_config, dict):
            return self.backbone_config
        return {"+".join(self.modalities): self.backbone_config}

    @property
    def encoder_groups(self) -> list[list[str]]:
        """Names of the modalities of every encoder."""
        return [group.split("+") for group in self.encoder_configs]

    def encoder_name(self, group: str) -> str:
        """Name in `encoder_configs` of the encoder of these modalities, joined by "+" in any order.

        Raises:
            ValueError: If no encoder is for these and no others.
        """
        wanted = sorted(group.split("+"))
        for name in self.encoder_configs:
            if sorted(name.split("+")) == wanted:
                return name
        raise ValueError(f"There is no encoder for {group!r}; the model has those of {list(self.encoder_configs)}.")

    def set_encoders(self, encoder_configs: dict[str, PreTrainedConfig]) -> None:
        """Change which modalities each encoder is for; one encoder is that of all."""
        grouped = len(encoder_configs) > 1
        self.backbone_config = encoder_configs if grouped else next(iter(encoder_configs.values()))

    @property
    def sub_configs(self) -> dict[str, type]:
        """Names under which transformers asks for the encoders' configurations, to set precision and attention."""
        if not isinstance(self.backbone_config, dict):
            return {"backbone_config": AutoConfig}
        return {f"backbone_config.{group}": AutoConfig for group in self.backbone_config}

    def __getattr__(self, name: str) -> Any:
        field, _, group = name.partition(".")
        if field == "backbone_config" and group:
            return self.backbone_config[group]
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}.")

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON has them; see `PreTrainedConfig.to_dict`."""
        values = super().to_dict()
        if isinstance(self.backbone_config, dict):
            values["backbone_config"] = {name: part.to_dict() for name, part in self.backbone_config.items()}
            for part in values["backbone_config"].values():
                del part["transformers_version"]
        return values

    @property
    def num_modalities(self) -> int:
        """Number of modalities, M."""
        return len(self.modalities)

    @property
    def loss_terms(self) -> list[str]:
        """Which terms the training loss has, by the names of their weights; the first is `"sgf"`."""
        possible = {"mas": True, "subset": self.num_modalities > 2, "filter": self.fusion == "sgf"}
        return ["sgf", *(name for name, is_so in possible.items() if is_so and getattr(self, f"{name}_loss_weight"))]

    @property
    def gap_value(self) -> float:
        """What the model writes where nothing covers, in units of normalised values."""
        return GAP_VALUES[self.format_version]

    @property
    def class_names(self) -> list[str]:
        """Names of the classes, in order of their ids."""
        return [str(self.id2label[index]) for index in range(self.num_labels)]


def is_remote_code(module_name: str) -> bool:
    """Whether a module was loaded from a checkpoint by `trust_remote_code`, not from the installed package."""
    return module_name.partition(".")[0] == "transformers_modules"


class RegisteredPipelines(dict):
    """Names the task to `pipeline` where this package is installed, and leaves the class to what it registered.

    In a plain dict `pipeline` finds code of the checkpoint, and asks for trust in it.
    """

    def __contains__(self, task: object) -> bool:
        return False


def custom_pipelines() -> dict:
    """What a configuration says of the pipeline: one task, so that none needs to be given, and where its code is."""
    entry = {"impl": "pipeline_sgma.SgmaPipeline", "pt": ["AutoModelForSemanticSegmentation"]}
    kind = dict if is_remote_code(__name__) else RegisteredPipelines
    return kind({PIPELINE_TASK: {**entry, "type": "multimodal", "default": None}})


def _check_labels(id2label, num_labels):
    """Check what `PreTrainedConfig` turns into one entry per class, before it does."""
    if num_labels is not None:
        check_num_labels(num_labels)
    if id2label is not None and (
        not isinstance(id2label, dict) or {str(key) for key in id2label} != set(map(str, range(len(id2label))))
    ):
        raise ValueError(
            f"`id2label` is {str(id2label)[:200]}; expected a name for each of the class ids 0, 1, 2, ..., no gaps."
        )


def order_groups(values, modalities):
    """Order values by groups of modalities, names joined by "+", as the modalities are; a ValueError if one lacks."""
    named = {tuple(group.split("+")): value for group, value in values.items()}
    if sorted(name for group in named for name in group) != sorted(modalities):
        raise ValueError(
            f"The groups {list(values)} have encoders of their own; expected each of the modalities {modalities} in "
            'one of them, joined by "+" as in "rgb+nir".'
        )
    groups = {tuple(sorted(group, key=modalities.index)): value for group, value in named.items()}
    return {"+".join(group): groups[group] for group in sorted(groups, key=lambda group: modalities.index(group[0]))}


def _backbone_configs(given, channels, groups):
    """Build the configuration of the encoder, or those of several groups by name; `channels` are the bands."""
    kinds = dict | PreTrainedConfig
    by_group = isinstance(given, dict) and given and all(isinstance(value, kinds) for value in given.values())
    if groups is not None:
        if by_group or not isinstance(groups, list | tuple):
            raise ValueError(
                f"`encoder_groups` is {groups!r}; expected lists of modalities, and one `backbone_config` for all."
            )
        names = [group if isinstance(group, str) else "+".join(map(str, group)) for group in groups]
        given = {name: copy.deepcopy(PVT_V2_B2 if given is None else given) for name in names}
    elif not by_group:
        return _backbone_config(given)
    given = order_groups(given, list(channels))
    if len(given) == 1:
        return _backbone_config(*given.values())
    for name, value in given.items():
        if name in channels and isinstance(value, dict):
            given[name] = {"num_channels": channels[name], **value}
    return {name: _backbone_config(value) for name, value in given.items()}


def _backbone_config(backbone_config):
    """Build the backbone's configuration, and check how many outputs it names."""
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
    name = type(backbone_config).__name__
    if not isinstance(backbone_config, BackboneConfigMixin):
        raise ValueError(
            f"`backbone_config` ({name}) is not that of a backbone, which gives feature maps; set `model_type` to one "
            "such as 'pvt_v2', 'resnet', 'swin', 'convnext', 'dinov2' or 'timm_backbone'."
        )
    for field, value in vars(backbone_config).items():
        if isinstance(value, tuple):  # JSON has lists, and some backbones add them to lists
            setattr(backbone_config, field, list(value))
    outputs = list(backbone_config.out_indices)
    last = len(getattr(backbone_config, "stage_names", None) or []) - 1
    if len(outputs) != 4 and outputs not in ([-1], [last]):  # the last alone is what stands there if nobody chose
        raise ValueError(
            f"`backbone_config` ({name}) has {len(outputs)} outputs, `out_indices` {outputs}; SGMA takes four, with "
            "strides that grow from 4 to 32. Name those, or leave `out_indices` and `out_features` out."
        )
    return backbone_config


__all__ = ["SgmaConfig"]
