"""Writes docs/api.md from the docstrings of what `sgma_hf` exports.

Example:
    python docs/make_api.py
"""

import inspect
import re
import sys
from pathlib import Path
from typing import Any

import sgma_hf


PAGE = Path(__file__).with_name("api.md")
GROUPS = {
    "Model": "SgmaConfig SgmaForSemanticSegmentation SgmaModel SgmaPreTrainedModel SgmaSemanticSegmenterOutput "
    "SgmaModelOutput",
    "Fusion": "SemanticGuidedFusion modality_aware_sampling SgmaFusion register_fusion",
    "Processor and pipeline": "SgmaImageProcessor SgmaPipeline",
    "Rows": "load_rows decode_row encode_raster",
    "Training": "SgmaTrainer SgmaTrainingArguments SgmaDataCollator",
    "Evaluation": "evaluate_modality_combinations modality_combinations evaluate_protocols evaluate_agreement "
    "evaluate_scene map_change segmentation_scores confusion_matrix SgmaMeanIou",
    "Prediction": "predict_raster sliding_window_logits modality_agreement explain_pixel",
    "Pictures": "plot_modality_board colorize",
}
SECTION = re.compile(r"(Args|Attributes|Returns|Raises|Yields|Example|Examples|Note):")
ITEM = re.compile(r"(\*{0,2}[\w.]+)( \([^)]*\))?:(?: (.*))?$")


def markdown(docstring: str | None) -> str:
    """A docstring in Google style as Markdown: sections in bold, and their items as a list."""
    lines, section, in_code = [], "", False
    for line in inspect.cleandoc(docstring or "").splitlines():
        heading, item = SECTION.fullmatch(line), ITEM.match(line[4:])
        if line.strip().startswith("```"):
            in_code = not in_code
            lines.append(line.strip())
        elif in_code:
            lines.append(line)
        elif heading:
            section = heading[1]
            lines += [f"**{section}**", ""]
        elif section in ("Args", "Attributes", "Raises") and re.match(r" {4}\S", line) and item:
            lines.append(f"- `{item[1]}`{item[2] or ''}: {item[3] or ''}".rstrip())
        elif section and line.startswith("    "):
            is_list = section in ("Args", "Attributes", "Raises")
            lines.append(f"  {line.strip()}" if is_list else line if section.startswith("Example") else line[4:])
        else:
            lines.append(line)
    return "\n".join(lines)


def signature(name: str, thing: Any) -> str:
    """How it is called, without the package's own long type names."""
    try:
        parameters = list(inspect.signature(thing).parameters.values())
    except ValueError:
        return name
    if hasattr(thing, "__dataclass_fields__"):  # not the fields that every configuration of transformers has
        parameters = [parameter for parameter in parameters if parameter.name in thing.__annotations__]
    shown = [str(parameter.replace(annotation=inspect.Parameter.empty)) for parameter in parameters]
    first = next((i for i, parameter in enumerate(parameters) if parameter.kind is parameter.KEYWORD_ONLY), None)
    if first and not any(parameter.kind is parameter.VAR_POSITIONAL for parameter in parameters):
        shown.insert(first, "*")
    one_line = f"{name}({', '.join(shown)})"
    return one_line if len(one_line) <= 110 else "\n".join([f"{name}(", *(f"    {part}," for part in shown), ")"])


def entry(name: str) -> str:
    """One object: heading, signature, docstring, and a line for each public method of a class of ours."""
    thing = getattr(sgma_hf, name)
    shown = name if inspect.isclass(thing) and "__init__" not in vars(thing) else signature(name, thing)
    parts = [f"### {name}", "", f"```python\n{shown}\n```", "", markdown(thing.__doc__)]
    if inspect.isclass(thing):
        methods = [
            f"- `{method}`: {inspect.getdoc(value).splitlines()[0]}"
            for method, value in vars(thing).items()
            if not method.startswith("_") and (inspect.isfunction(value) or isinstance(value, classmethod))
            and inspect.getdoc(value)
        ]  # fmt: skip
        parts += ["", "**Methods**", "", *methods] if methods else []
    return "\n".join(parts)


def page() -> str:
    """The whole page."""
    grouped = " ".join(GROUPS.values()).split()
    left_out = sorted(set(sgma_hf.__all__) - set(grouped))
    if left_out:
        sys.exit(f"docs/make_api.py: {left_out} are exported and in no group; add them to GROUPS.")
    parts = ["# API", "", "What `sgma_hf` exports, from its docstrings. Written by `make docs`.", ""]
    for title, names in GROUPS.items():
        parts += [f"## {title}", ""]
        for name in names.split():
            parts += [entry(name), ""]
    return "\n".join(line.rstrip() for line in "\n".join(parts).splitlines()) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
