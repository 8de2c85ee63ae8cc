"""What the encoders of a new model start from: one for all modalities, or `GROUP=VALUE` for each group of them."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...model.backbones_sgma import read_backbone_config
from .. import PVT_V2_SIZES
from ..arguments import RunArguments


_BY_GROUP = re.compile(r"([a-z][a-z0-9_]*(?:\+[a-z][a-z0-9_]*)*)=(.+)")


def pretrained_encoders(arguments: RunArguments) -> str | dict[str, str] | None:
    """The pretrained encoders: a folder or an id for all, or one for each group of modalities that is named."""
    return _values(arguments.backbone, "--backbone")


def all_are_pretrained(arguments: RunArguments) -> bool:
    """Whether no encoder starts from random weights: those that `--backbone` leaves out `--backbone_config` names."""
    pretrained, configs = pretrained_encoders(arguments), _values(arguments.backbone_config, "--backbone_config")
    return pretrained is not None and not (isinstance(pretrained, dict) and isinstance(configs, dict))


def encoders_from_new_weights(arguments: RunArguments, groups: Sequence[str]) -> list[str]:
    """Those of all groups of modalities whose encoder starts from random weights."""
    pretrained = pretrained_encoders(arguments)
    if not isinstance(pretrained, dict):
        return [] if pretrained else list(groups)
    named = {frozenset(group.split("+")) for group in pretrained}
    return [group for group in groups if frozenset(group.split("+")) not in named]


def encoder_fields(arguments: RunArguments) -> dict[str, Any]:
    """Fields of `SgmaConfig` that describe the encoders: those of the pretrained ones, presets, JSON, or files."""
    pretrained, configs = pretrained_encoders(arguments), _values(arguments.backbone_config, "--backbone_config")
    if pretrained is not None and isinstance(configs, str):
        raise ValueError(
            f"`--backbone` brings its own configuration, so `--backbone_config {configs}` would be left out; give one "
            "of the two, or `--backbone_config GROUP=VALUE` for groups that `--backbone` does not name."
        )
    by_group: dict[str, Any] = {}
    if isinstance(configs, dict):
        by_group |= {group: encoder_from_text(value) for group, value in configs.items()}
    if isinstance(pretrained, dict):
        twice = sorted(by_group.keys() & pretrained.keys())
        if twice:
            raise ValueError(f"`--backbone` and `--backbone_config` both have an encoder of {twice}; leave one out.")
        by_group |= {group: read_backbone_config(path) for group, path in pretrained.items()}
    if by_group:
        one = by_group
    elif pretrained is not None:
        one = read_backbone_config(pretrained)
    else:
        one = encoder_from_text(configs or "pvt_v2_b2")
    return {"backbone_config": one, "encoder_groups": arguments.encoder_groups}


def _values(given: Sequence[str] | None, flag: str) -> str | dict[str, str] | None:
    """One value for all modalities, or values by groups of them; a ValueError about a mixture."""
    if given is None:
        return None
    found = [None if _is_json(text) or Path(text).exists() else _BY_GROUP.fullmatch(text) for text in given]
    if all(found):
        return {match[1]: match[2] for match in found}
    if len(given) == 1:
        return given[0]
    raise ValueError(
        f"`{flag}` is {' '.join(given)}; expected one value for all modalities, or GROUP=VALUE for each group of "
        "them, as in rgb+nir=VALUE sar=VALUE."
    )


def encoder_from_text(value: str) -> dict[str, Any]:
    """Configuration of an encoder: that of a preset, JSON with a "model_type", or a file of it.

    Raises:
        ValueError: If it is none of these.
    """
    if value in PVT_V2_SIZES:
        return {"model_type": "pvt_v2", **PVT_V2_SIZES[value]}
    is_text = _is_json(value)
    if not is_text and not Path(value).is_file():
        raise ValueError(
            f"`--backbone_config` is {value!r}; expected one of {list(PVT_V2_SIZES)}, or JSON with a "
            '"model_type" and its fields, or a file of it.'
        )
    try:
        backbone = json.loads(value if is_text else Path(value).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"`--backbone_config` {value} is no JSON: {error}") from error
    if not isinstance(backbone, dict):
        raise ValueError(f"`--backbone_config` {value} holds a {type(backbone).__name__}; expected fields by name.")
    if "model_type" not in backbone:
        raise ValueError(f'`--backbone_config` {value} has no "model_type", as in {{"model_type": "pvt_v2"}}.')
    return backbone


def _is_json(text: str) -> bool:
    return text.lstrip().startswith("{")
