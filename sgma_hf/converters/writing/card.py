"""The README.md of a dataset folder: YAML that `load_dataset` and the Hub read, then what a person needs."""

import json
import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ...data.metadata import DatasetMetadata
from ...publishing.tables import markdown_table
from .statistics import SplitStatistics


_SIZES = ((1000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))


def command_for_card(program: str, argv: Sequence[str], flags: Sequence[str]) -> str:
    """The command line of a program for a card, which others read: of a path it tells the last component alone.

    `flags` are those whose value is a path, or JSON in its place, which stays. argparse took `argv`, so that an
    abbreviated flag is not ambiguous.
    """
    words: list[str] = []
    is_path = False
    for word in argv:
        flag, equals, value = word.partition("=")
        named = not is_path and len(flag) > 2 and any(known.startswith(flag) for known in flags)
        if is_path or (named and equals):
            path = word if is_path else value
            name = path if path.lstrip().startswith(("[", "{")) else Path(os.path.abspath(path)).name or path
            word = f"{flag}=" * named + name
        words.append(word)
        is_path = named and not equals
    return shlex.join([*program.split(), *words])


def build_card(
    metadata: DatasetMetadata,
    statistics: Mapping[str, SplitStatistics],
    *,
    title: str,
    description: str,
    command: str,
    fingerprint: str,
    license: str | None = None,
    sections: Sequence[str] = (),
) -> str:
    """Card of a dataset, Markdown with a YAML head.

    `load_dataset` caches a local folder that has `configs` under the folder's name and this YAML alone (datasets 5.2),
    not the files' time or content: without the rows' `fingerprint` in it, another dataset of that name, or a new
    version of this one, would be answered with the old rows. `license` is the Hub's identifier, or `other`. Further
    `sections` stand before the example.
    """
    num_rows = sum(item.num_rows for item in statistics.values())
    size = next((name for limit, name in _SIZES if num_rows < limit), "n>1M")
    files = [{"split": split, "path": f"data/{split}-*.parquet"} for split in statistics]
    head = {
        "pretty_name": title,
        **({"license": license} if license else {}),
        "task_categories": ["image-segmentation"],
        "tags": ["sgma", "remote-sensing", "multimodal"],
        "size_categories": [size],
        "dataset_info": {
            "config_name": "default",
            "features": [{"name": name, **_kind(feature)} for name, feature in metadata.features().items()],
        },
        "configs": [{"config_name": "default", "description": f"content {fingerprint}", "data_files": files}],
    }
    rows = [(split, item.num_rows, item.unlabelled_rows) for split, item in statistics.items()]
    parts = [
        f"---\n{yaml.safe_dump(head, sort_keys=False, allow_unicode=True, width=1000)}---",
        f"# {title}",
        description,
        _modality_table(metadata, statistics),
        _class_table(metadata, statistics),
        "## Rows\n\nA missing modality, and a label that nobody drew, is null. "
        "Bands that no image format holds exactly are the bytes of a `.npy` file, (height, width, channels)."
        + " A series is a list of images, with their dates, UTC, in `<column>_dates`."
        * bool(metadata.series),
        markdown_table(["split", "rows", "without label"], rows),
        "\n".join(f"- `{split}`: {note}" for split, note in metadata.split_notes.items() if split in statistics),
        *sections,
        "```python\nfrom sgma_hf import decode_row, load_rows\n\n"
        f'rows = load_rows(".", "{next(iter(statistics))}")  # this folder, or the id on the Hub\n'
        f"images, label = decode_row(rows[0], {json.dumps(metadata.modalities)})  # arrays, or None\n```",
        f"Made by\n\n```\n{command}\n```" if command else "",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _kind(feature: Any) -> dict[str, str]:
    """A column's type as the card's head names it."""
    from datasets import Image, List

    if isinstance(feature, List):
        return {"list": _kind(feature.feature)["dtype"]}
    return {"dtype": "image" if isinstance(feature, Image) else feature.dtype}


def _modality_table(metadata: DatasetMetadata, statistics: Mapping[str, SplitStatistics]) -> str:
    lines = []
    for index, name in enumerate(metadata.modalities):
        dtype = metadata.modality_dtypes[index]
        nodata = [f"{value:g}" for value in metadata.nodata[index]] + ["NaN"] * (dtype == "float32")
        missing = [f"{item.modalities[name].missing_rows / item.num_rows:.0%}" for item in statistics.values()]
        if metadata.series:
            missing = [*(item.modalities[name].dates or "-" for item in statistics.values()), *missing]
        unit = metadata.units[index] or "-"
        lines.append([f"`{name}`", metadata.modality_channels[index], dtype, unit, ", ".join(nodata) or "-", *missing])
    head = ["column", "channels", "dtype", "unit", "nodata"]
    head += [f"a row of {split}" for split in statistics if metadata.series]
    columns = len(head)
    head += [f"missing in {split}" for split in statistics]
    return f"## Modalities\n\n{markdown_table(head, lines, text_columns=columns)}"


def _class_table(metadata: DatasetMetadata, statistics: Mapping[str, SplitStatistics]) -> str:
    if not metadata.class_names:
        return "## Classes\n\nNo labels."
    shares = [item.class_shares() for item in statistics.values()]
    lines = []
    for index, name in enumerate(metadata.class_names):
        colour = "#" + bytes(metadata.palette[index]).hex() if metadata.palette else "-"
        lines.append([index, name, colour, *(f"{share[index]:.2%}" for share in shares)])
    table = markdown_table(["id", "name", "colour", *statistics], lines, text_columns=3)
    ignored = ", ".join(f"{item.ignored_share():.2%} in {split}" for split, item in statistics.items())
    return f"## Classes\n\nShare of the labelled pixels. 255 is ignored: {ignored}.\n\n{table}"
