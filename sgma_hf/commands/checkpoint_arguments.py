"""What the flags that commands share name, checked before anything slow is imported or done."""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sgma_hf.data.command_line import Parser, check_folder_or_id


def check_checkpoint(model: str, *, of_arms: bool = True) -> list[str]:
    """Check that this is a checkpoint of SGMA; returns its modalities.

    Args:
        model: A folder, or an id on the Hub.
        of_arms: Whether it may be of another network, which `compare` kept.

    Raises:
        ValueError: If it is a checkpoint of another model.
        OSError: If it is no checkpoint.
    """
    check_folder_or_id(model, "--model")
    path = Path(model, "config.json") if Path(model).exists() else _from_hub(model)
    if not path.is_file():
        raise FileNotFoundError(f"--model {model} has no config.json; give the folder of a checkpoint.")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"--model {model}: {path} is damaged: {error}. Fetch or save it again.") from error
    if config.get("model_type") == "sgma_arm" and of_arms:  # kept by `compare`; this import registers it
        import sgma_hf.comparison.arms.full_pass  # noqa: F401
    elif config.get("model_type") != "sgma":
        raise ValueError(f"--model {model} is a checkpoint of {config.get('model_type')!r}; expected one of SGMA.")
    return config["modalities"]


def _from_hub(model: str) -> Path:
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(model, "config.json"))
    except OSError as error:  # all of the Hub's errors are some, and of many lines
        reason = str(error).strip().splitlines()[0]
        raise OSError(f"--model {model}: there is no such folder, and from the Hub: {reason}") from error


def choose_device(name: str | None, *, local_rank: int = 0) -> str:
    """The device that `--device` names, checked; None takes the process's GPU where there is one, else the CPU.

    Raises:
        ValueError: If it is no device of torch, or one that is not there.
    """
    import torch

    if name is None:
        return f"cuda:{local_rank}" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:  # an assertion says that torch was built without CUDA
        reason = str(error).splitlines()[0].rstrip(".")
        raise ValueError(f"`--device {name}` cannot be used: {reason}. Leave it out, or give cpu.") from error
    return name


def load_model(name: str, *, dtype: str, device: str) -> Any:
    """The model of a checkpoint, on a device and ready to predict; ValueError if its files are damaged."""
    from safetensors import SafetensorError
    from transformers import AutoModelForSemanticSegmentation

    try:
        model = AutoModelForSemanticSegmentation.from_pretrained(name, dtype=dtype)
    except (SafetensorError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"--model {name} cannot be loaded: {reason}. Fetch or save it again.") from error
    return model.to(device).eval()


def add_device(parser: Parser) -> None:
    """Add `--device`, which `choose_device` reads, and `--bf16` and `--fp16`, which `choose_dtype` reads."""
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ...; CUDA where there is some")
    parser.add_switch("--bf16", help="compute in bfloat16, instead of float32")
    parser.add_switch("--fp16", help="compute in float16, instead of float32")


def choose_dtype(parser: Parser, args: argparse.Namespace) -> str:
    """Name of the dtype that the weights are loaded in."""
    if args.bf16 and args.fp16:
        parser.error("`--bf16` and `--fp16` exclude each other; give one of them")
    return "bfloat16" if args.bf16 else "float16" if args.fp16 else "float32"


def add_turns(parser: Parser) -> None:
    """Add `--tta`: in which positions tiles are predicted."""
    text = "average over positions of each tile: flips (four, mirrored), d4 (eight, turned by quarters as well)"
    parser.add_argument("--tta", choices=["flips", "d4"], help=text)


class _PolicyOrNames(argparse.Action):
    """`union` or `truth` alone is a policy; everything else are names of classes."""

    def __call__(self, parser, namespace, values, option_string=None):
        setattr(namespace, self.dest, values[0] if values in (["union"], ["truth"]) else values)


def add_score_classes(parser: Parser) -> None:
    """Add `--score_classes`: a policy, or names of classes, for the means of the scores."""
    text = (
        "classes that the means run over: their names, or union (those labelled or predicted anywhere; default), or "
        "truth (those labelled)"
    )
    parser.add_argument(
        "--score_classes",
        nargs="+",
        action=_PolicyOrNames,
        default="union",
        metavar="CLASS",
        help=text,
        former=("--scored_classes",),
    )


def add_date_table(parser: Parser) -> None:
    """Add `--date_table`."""
    dates = "when files were taken, a table with the columns file and date; default: by name, tags or STAC item"
    parser.add_argument("--date_table", metavar="CSV", help=dates)


def date_table(path: str | None, config: Any) -> Any:
    """The table of dates, None if none is given; ValueError if the model knows no dates."""
    from sgma_hf.rasters.dates import DateTable

    if path is not None and config.date_periods is None:
        raise ValueError(f"`--date_table {path}`: this checkpoint knows no dates (`date_periods`). Leave it out.")
    return None if path is None else DateTable.read(path)


def rasters_of(args: argparse.Namespace, given: Mapping[str, Sequence[str]], config: Any) -> dict[str, Any]:
    """What `predict_raster` takes of the files given: of a model that knows dates, each of its date, else mosaics."""
    from sgma_hf.rasters.scene import dated, expand, mask_options, masked

    table, masks, sources = date_table(args.date_table, config), mask_options(args, list(given)), dict[str, Any]()
    for name, paths in given.items():
        file, values = masks.get(name, ("", ()))
        files, hiding = expand(paths), expand([file]) if file else []
        if config.date_periods is None:
            sources[name] = masked(files, hiding, values)
        else:
            sources |= dated(name, files, hiding, values, table)
    if table is not None:
        table.check_used(args.date_table)
    return sources
