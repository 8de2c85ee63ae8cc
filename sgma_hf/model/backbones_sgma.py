"""The encoder: which of its maps are taken, how they come to strides 4, 8, 16 and 32, and its pretrained weights."""

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoBackbone, AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.utils import is_timm_available

from .cells_sgma import STAGE_STRIDES
from .pyramid_sgma import SgmaPyramid


# Whole patches of 4 to 32 pixels, 12, 14 and 28 among them, stand above one another in the first side; the two differ,
# because some encoders take squares only.
DRY_RUN_SIZE = (672, 96)
# Norms of the output stages and pyramids belong to the backbone's class only: a classifier's checkpoint lacks them.
_NEW_WEIGHTS = ("hidden_states_norms", "fpn")
_EXPECTED = (
    f"SGMA takes four with strides {', '.join(map(str, STAGE_STRIDES))}, or four with one stride, as plain vision "
    "transformers have. Name others by `out_indices`, or take another encoder."
)


def load_encoder(backbone_config: PreTrainedConfig) -> tuple[PreTrainedModel, SgmaPyramid | None, list[int]]:
    """Build an encoder with new weights, after a dry run of it, and a pyramid if it is a plain vision transformer.

    Where `backbone_config` names its last stage alone, as it does by default, the outputs are chosen and written into
    it: of each stride from 4 to 32 the last map, or the maps at four depths if all have one stride.

    Returns:
        The backbone, its pyramid or None, and the channels of the four maps that the two give together.

    Raises:
        ValueError: If the encoder cannot be built, fails, or has no four maps with strides that grow from 4 to 32.
        ImportError: If timm is not installed and `backbone_config` is for it.
    """
    if backbone_config.model_type == "timm_backbone" and not is_timm_available():
        raise ImportError(f"{_name(backbone_config)} needs timm, which is not there; pip install 'sgma-hf[timm]'.")
    if len(backbone_config.out_indices) == 1:
        shapes = _choose_outputs(backbone_config)
    else:
        shapes = _dry_run(backbone_config)
    channels, strides, pyramid = [shape[1] for shape in shapes], _strides(shapes), None
    expected = STAGE_STRIDES
    if len(set(strides)) == 1 and strides[0] <= STAGE_STRIDES[-1]:
        pyramid = SgmaPyramid(channels, int(strides[0]))
        channels, expected = pyramid.channels, [pyramid.stride] * 4
        if pyramid.patch_size != pyramid.stride:
            shapes = _dry_run(backbone_config, pyramid.resized(DRY_RUN_SIZE))
    if [shape[2:] for shape in shapes] != [tuple(side // stride for side in DRY_RUN_SIZE) for stride in expected]:
        raise ValueError(f"{_name(backbone_config)} gives maps with strides {_shown(strides)}; {_EXPECTED}")
    return AutoBackbone.from_config(backbone_config), pyramid, channels


def read_backbone_config(name_or_path: str, **kwargs) -> PreTrainedConfig:
    """Read the encoder's configuration beside pretrained weights, timm's own too, from a Hub id or a folder.

    Args:
        name_or_path: As [`SgmaForSemanticSegmentation.from_backbone_pretrained`] takes it.
        kwargs: Passed on to `AutoConfig.from_pretrained`.

    Raises:
        ValueError: If there is none that can be read.
        ImportError: If it is timm's, and timm is not installed.
    """
    try:
        config = AutoConfig.from_pretrained(name_or_path, **kwargs)
    except (ValueError, OSError, ImportError) as error:
        reason = " ".join(str(error).split())
        kind = ImportError if isinstance(error, ImportError) else ValueError
        raise kind(f"The configuration of the encoder {name_or_path!r} cannot be read: {reason}") from error
    if config.model_type == "timm_wrapper":  # what transformers makes of timm's
        return CONFIG_MAPPING["timm_backbone"](backbone=config.architecture)
    return config


def _timm_architecture(name_or_path: str, **kwargs) -> str | None:
    """Name of the encoder whose weights timm itself wrote there; None if transformers wrote them."""
    return getattr(AutoConfig.from_pretrained(name_or_path, **kwargs), "architecture", None)


def load_pretrained(backbone: PreTrainedModel, backbone_config: PreTrainedConfig, name_or_path: str, **kwargs) -> None:
    """Give an encoder pretrained weights; see [`SgmaForSemanticSegmentation.from_backbone_pretrained`].

    Raises:
        ValueError: If weights of the encoder are missing in the checkpoint or have other shapes.
    """
    backbone_class = type(backbone)
    try:
        if backbone_config.model_type == "timm_backbone" and (found := _timm_architecture(name_or_path, **kwargs)):
            if found != backbone_config.backbone.partition(".")[0]:
                raise RuntimeError(f"it holds timm's {found}")
            timm_config = copy.deepcopy(backbone_config)
            timm_config.backbone = f"{'local-dir' if Path(name_or_path).is_dir() else 'hf-hub'}:{name_or_path}"
            backbone.load_state_dict(backbone_class(timm_config, pretrained=True, **kwargs).state_dict())
            return
        # timm's class takes names of timm only; `PreTrainedModel`'s method reads what it saved.
        pretrained, report = PreTrainedModel.from_pretrained.__func__(
            backbone_class, name_or_path, config=backbone_config, output_loading_info=True, **kwargs
        )
    except RuntimeError as error:  # what torch and transformers raise on weights of other shapes
        raise ValueError(
            f"The weights of {name_or_path!r} do not fit `config.backbone_config` "
            f"({type(backbone_config).__name__}); build the configuration from the same checkpoint."
        ) from error
    missing = sorted(key for key in report["missing_keys"] if not any(part in key for part in _NEW_WEIGHTS))
    if missing:
        raise ValueError(
            f"{name_or_path!r} lacks {len(missing)} weights of the {backbone_class.__name__} that "
            f"`config.backbone_config` describes, {missing[0]!r} for one. Use a checkpoint of that architecture."
        )
    backbone.load_state_dict(pretrained.state_dict())


def _name(backbone_config: PreTrainedConfig) -> str:
    named = getattr(backbone_config, "backbone", None)  # timm's
    return f"`backbone_config` ({type(backbone_config).__name__}{f' of {named!r}' if named else ''})"


def _strides(shapes: Sequence[tuple[int, ...]]) -> list[float]:
    """Pixels from one row of a map to the next."""
    return [DRY_RUN_SIZE[0] / shape[2] for shape in shapes]


def _shown(strides: Sequence[float]) -> str:
    return ", ".join(f"{stride:g}" for stride in strides)


def _choose_outputs(backbone_config: PreTrainedConfig) -> list[tuple[int, ...]]:
    """Write four outputs into the configuration, and return their shapes in the dry run."""
    full = copy.deepcopy(backbone_config)
    names = getattr(full, "stage_names", None) or _build_on_meta(full).stage_names  # timm alone knows its encoders'
    stages = [index for index, name in enumerate(names) if name != "stem"]
    for indices in (stages, list(range(len(names)))):  # the stem is of use to few, and others refuse to give it
        full.out_indices = indices
        shapes = _dry_run(full)
        strides = _strides(shapes)
        if len(set(strides)) == 1:
            chosen = [-(-len(indices) * depth // 4) - 1 for depth in (1, 2, 3, 4)]
            break
        last = {stride: position for position, stride in enumerate(strides)}
        if all(stride in last for stride in STAGE_STRIDES):
            chosen = [last[stride] for stride in STAGE_STRIDES]
            break
    else:
        raise ValueError(f"{_name(backbone_config)} has maps with strides {_shown(strides)}; {_EXPECTED}")
    backbone_config.out_indices = [indices[position] for position in chosen]
    return [shapes[position] for position in chosen]


def _build_on_meta(backbone_config: PreTrainedConfig) -> PreTrainedModel:
    with torch.device("meta"):
        return _say_what_fails(backbone_config, lambda: AutoBackbone.from_config(backbone_config).eval())


@torch.no_grad()
def _dry_run(backbone_config: PreTrainedConfig, size: Sequence[int] = DRY_RUN_SIZE) -> list[tuple[int, ...]]:
    """Shapes of the outputs for zeros, without memory or arithmetic: on torch's meta device, as models are loaded."""
    backbone_config = copy.deepcopy(backbone_config)  # timm's writes its stages into it
    backbone = _build_on_meta(backbone_config)
    zeros = torch.zeros(1, input_channels(backbone_config), *size, device="meta")
    with torch.device("meta"):
        maps = _say_what_fails(backbone_config, lambda: backbone(zeros).feature_maps)
    if any(one.ndim != 4 for one in maps):
        raise ValueError(
            f"{_name(backbone_config)} gives outputs of shape {[tuple(one.shape) for one in maps]}; expected maps "
            "(batch_size, channels, height, width). Set `reshape_hidden_states=True` if it has that."
        )
    height, width = size
    for one in maps:
        _, second, third, fourth = one.shape
        if second * width == third * height and third * width != fourth * height:
            raise ValueError(
                f"{_name(backbone_config)} gives maps of shape {tuple(one.shape)} with the channels last; expected "
                "(batch_size, channels, height, width). Take another encoder."
            )
    return [tuple(one.shape) for one in maps]


def _say_what_fails(backbone_config: PreTrainedConfig, call: Callable[[], Any]) -> Any:
    try:
        return call()
    except Exception as error:  # whatever the code of an encoder may raise
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{_name(backbone_config)} cannot be the encoder, which has to take images of any size; on "
            f"{DRY_RUN_SIZE[0]} x {DRY_RUN_SIZE[1]} pixels: {type(error).__name__}: {reason}"
        ) from error


def input_channels(backbone_config: PreTrainedConfig) -> int:
    """Number of bands that an encoder takes: 3 where its configuration does not say."""
    return getattr(backbone_config, "num_channels", 3)
