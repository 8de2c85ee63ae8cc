"""The code of a fusion of one's own: it travels with the checkpoint, or saving is refused."""

import ast
import importlib
import importlib.metadata
import os
import sys
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig
from transformers.dynamic_module_utils import get_class_from_dynamic_module

from .configuration_sgma import is_remote_code
from .fusion_sgma import AUTO_MAP_KEY, FUSIONS, SgmaFusion, find_fusion
from .fusion_stages_sgma import SemanticGuidedFusion


_MODEL_FOLDER = __name__.rpartition(".")[0]  # "sgma_hf.model", or where transformers keeps code of a checkpoint
_PACKAGE = _MODEL_FOLDER.partition(".")[0]
_HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")


def check_fusion(model: Any) -> None:
    """Raise ValueError unless a checkpoint of the model, of its configuration and code, would be loaded as it is."""
    expected = find_fusion(model.config)
    lists = [module for module in model.modules() if isinstance(module, SemanticGuidedFusion)]
    for stage in (stage for stages in lists for stage in stages):
        if not isinstance(stage, expected) or type(stage).__name__.removeprefix("FSDP") != expected.__name__:
            raise ValueError(
                f"`fusion_stages` holds a {type(stage).__name__}, and `fusion` of the configuration, "
                f"{model.config.fusion!r}, is {expected.__name__}: the checkpoint would be loaded as that. Give the "
                "class a name by `register_fusion`, and build the model from a configuration with that name."
            )
    if not _is_ours(expected):
        _portable_code(expected, model.config.fusion)


def save_fusion_code(config: PreTrainedConfig, folder: Path) -> None:
    """Write the module of a fusion of one's own beside the weights, and name it in the configuration there.

    What the configuration names as the model's class is in that module too, which registers the fusion.
    """
    fusion = find_fusion(config)
    if _is_ours(fusion):
        return
    code = _portable_code(fusion, config.fusion)
    name = fusion.__module__.rpartition(".")[2]
    if (folder / f"{name}.py").exists():
        raise ValueError(f"{name}.py, where {fusion.__name__} is, has the name of a file of the model; rename it.")
    (folder / f"{name}.py").write_text(code, encoding="utf-8")
    of_model = {
        key: f"{name}.{reference.rpartition('.')[2]}" for key, reference in config.auto_map.items() if "Model" in key
    }
    config.auto_map = {**config.auto_map, **of_model, AUTO_MAP_KEY: f"{name}.{fusion.__name__}"}
    config.save_pretrained(folder)


def load_fusion_code(name_or_path: str | os.PathLike, **options: Any) -> None:
    """Register the fusion whose code a checkpoint brings; for those who trust the checkpoint.

    One of that name that was imported stays, and one of another checkpoint does not.
    """
    hub = {key: value for key, value in options.items() if key in _HUB_OPTIONS}
    values, _ = PreTrainedConfig.get_config_dict(name_or_path, **hub)
    reference = (values.get("auto_map") or {}).get(AUTO_MAP_KEY)
    known = FUSIONS.get(values.get("fusion"))
    if reference is not None and (known is None or is_remote_code(known.__module__)):
        hub.pop("subfolder", None)
        FUSIONS[values["fusion"]] = get_class_from_dynamic_module(reference, name_or_path, **hub)


def _is_ours(fusion: type[SgmaFusion]) -> bool:
    return fusion.__module__ == SgmaFusion.__module__


def _portable_code(fusion: type[SgmaFusion], name: str) -> str:
    """Its module's text, with imports that hold where the model's files lie flat beside it; ValueError without one."""
    file = getattr(sys.modules.get(fusion.__module__), "__file__", None)
    cannot = f"Fusion {name!r} cannot travel with the checkpoint, and nothing is saved: "
    if fusion.__module__ == "__main__" or "." in fusion.__qualname__ or not file or not os.path.isfile(file):
        raise ValueError(
            f"{cannot}{fusion.__qualname__} is of {fusion.__module__}. Put the class into a file of its own, such as "
            "my_fusion.py, and import that."
        )
    text = Path(file).read_text(encoding="utf-8")
    lines = text.splitlines()
    known = {*sys.stdlib_module_names, *importlib.metadata.packages_distributions()}
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            imported, level = [alias.name for alias in node.names], 0
        elif isinstance(node, ast.ImportFrom):
            imported, level = [node.module or ""], node.level
        else:
            continue
        for module in imported:
            root = module.partition(".")[0]
            if level == 0 and root == _PACKAGE and isinstance(node, ast.ImportFrom):
                indent = " " * node.col_offset
                lines[node.lineno - 1] = "\n".join(indent + line for line in _relative_imports(node, cannot))
                lines[node.lineno : node.end_lineno] = [None] * (node.end_lineno - node.lineno)
            elif root == _PACKAGE or (level == 0 and root not in known) or (level and not _lies_beside(module)):
                raise ValueError(
                    f"{cannot}{file}, line {node.lineno}, imports {'.' * level}{module}. It can import installed "
                    "packages, and names `from sgma_hf.model.x_sgma`; put what else it needs into the file."
                )
    text = "\n".join(line for line in lines if line is not None).rstrip()
    register = (
        "from .fusion_sgma import register_fusion  # noqa: E402\n"
        "from .modeling_sgma import SgmaForSemanticSegmentation, SgmaModel  # noqa: E402, F401\n\n\n"
        f'register_fusion("{name}")({fusion.__name__})'
    )
    return f"{text}\n" if text.endswith(register) else f"{text}\n\n\n{register}\n"


def _lies_beside(module: str) -> bool:
    return module.endswith("_sgma") and "." not in module


def _relative_imports(node: ast.ImportFrom, cannot: str) -> list[str]:
    """The same import from the files that travel; those that the front door gives are looked up where they are."""
    lines = []
    for alias in node.names:
        home = node.module
        if not home.startswith(f"{_MODEL_FOLDER}."):
            home = getattr(getattr(importlib.import_module(home), alias.name, None), "__module__", "")
        home = home.removeprefix(f"{_MODEL_FOLDER}.")
        if not _lies_beside(home):
            raise ValueError(
                f"{cannot}its file imports {alias.name} from {node.module}, which does not travel. Of this package "
                "import what is in `sgma_hf.model`."
            )
        lines.append(f"from .{home} import {alias.name}" + (f" as {alias.asname}" if alias.asname else ""))
    return lines
