"""The README.md of a dataset folder: YAML that `load_dataset` and the Hub read, then what a person needs."""

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from datasets import Image

from ...data.metadata import DatasetMetadata
from .statistics import SplitStatistics


_SIZES = ((1000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))


def command_for_card(program: str, argv: Sequence[str], flags: Sequence[str]) -> str:
    """The command line for a card, which others read: of a path it tells the last component alone.

    Args:
        program: What comes after `python`.
        argv: Arguments that argparse took, so that an abbreviated flag is not ambiguous.
        flags: Flags whose value is a path.
    """
    words, is_path = [], False
    for word in argv:
        flag, equals, value = word.partition("=")
        named = len(flag) > 2 and any(known.startswith(flag) for known in flags)
        if is_path:
            word = _last_component(word)
        elif named and equals:
            word = f"{flag}={_last_component(value)}"
        is_path = named and not equals and not is_path
        words.append(word)
    return shlex.join(["python", program, *words])


def _last_component(path: str) -> str:
    return Path(path).absolute().name or path


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
    """Card of a dataset.

    Args:
        metadata: What the columns mean.
        statistics: What each split holds, in the order of the card.
        title: Heading.
        description: First paragraph, Markdown.
        command: The command that made the dataset; left out if empty.
        fingerprint: Of the rows. `load_dataset` caches a local folder that has `configs` under the folder's name and
            this YAML alone (datasets 5.2), not the files' time or content: without it, another dataset of that name,
            or a new version of this one, would be answered with the old rows.
        license: Identifier for the head, `other` where there is none of the Hub's; left out if None.
        sections: Further Markdown, before the example.

    Returns:
        Markdown with a YAML head.
    """
    num_rows = sum(item.num_rows for item in statistics.values())
    size = next((name for limit, name in _SIZES if num_rows < limit), "n>1M")
    parts = [
        _yaml_head(metadata, title, list(statistics), size=size, fingerprint=fingerprint, license=license),
        f"# {title}",
        description,
        _modality_table(metadata, statistics),
        _class_table(metadata, statistics),
        "## Rows\n\nA missing modality, and a label that nobody drew, is null. "
        "Bands that no image format holds exactly are the bytes of a `.npy` file, (height, width, channels).\n\n"
        "| split | rows | without label |\n|---|---|---|\n"
        + "\n".join(f"| {split} | {item.num_rows} | {item.unlabelled_rows} |" for split, item in statistics.items()),
        *sections,
        "```python\nfrom sgma_hf import decode_row, load_rows\n\n"
        f'rows = load_rows(".", "{next(iter(statistics))}")  # this folder, or the id on the Hub\n'
        f"images, label = decode_row(rows[0], {json.dumps(metadata.modalities)})  # arrays, or None\n```",
        f"Made by\n\n```\n{command}\n```" if command else "",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _yaml_head(
    metadata: DatasetMetadata, title: str, splits: list[str], *, size: str, fingerprint: str, license: str | None
) -> str:
    files = "\n".join(f"  - split: {split}\n    path: data/{split}-*.parquet" for split in splits)
    columns = {name: "image" if isinstance(kind, Image) else kind.dtype for name, kind in metadata.features().items()}
    features = "\n".join(f"  - name: {name}\n    dtype: {dtype}" for name, dtype in columns.items())
    return (
        f"---\npretty_name: {json.dumps(title)}\n{f'license: {license}' + chr(10) if license else ''}"
        f"task_categories:\n- image-segmentation\ntags:\n- sgma\n"
        f"- remote-sensing\n- multimodal\nsize_categories:\n- {size}\n"
        f"dataset_info:\n  config_name: default\n  features:\n{features}\n"
        f"configs:\n- config_name: default\n  description: content {fingerprint}\n  data_files:\n{files}\n---"
    )


def _modality_table(metadata: DatasetMetadata, statistics: Mapping[str, SplitStatistics]) -> str:
    head = ["column", "channels", "dtype", "unit", "nodata", *(f"missing in {split}" for split in statistics)]
    lines = ["## Modalities", "", f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for index, name in enumerate(metadata.modalities):
        missing = [f"{item.modalities[name].missing_rows / item.num_rows:.0%}" for item in statistics.values()]
        nodata = ", ".join(f"{value:g}" for value in metadata.nodata[index]) or "-"
        cells = [
            f"`{name}`",
            str(metadata.modality_channels[index]),
            metadata.modality_dtypes[index],
            metadata.units[index] or "-",
            nodata + (", NaN" if metadata.modality_dtypes[index] == "float32" else ""),
            *missing,
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _class_table(metadata: DatasetMetadata, statistics: Mapping[str, SplitStatistics]) -> str:
    if not metadata.class_names:
        return "## Classes\n\nNo labels."
    lines = [
        "## Classes",
        "",
        "Share of the labelled pixels; 255 is ignored.",
        "",
        "| id | name | colour | " + " | ".join(statistics) + " |",
        "|---" * (3 + len(statistics)) + "|",
    ]
    shares = [item.class_shares() for item in statistics.values()]
    for index, name in enumerate(metadata.class_names):
        colour = "#" + "".join(f"{part:02x}" for part in metadata.palette[index]) if metadata.palette else "-"
        cells = [str(index), name, colour, *(f"{share[index]:.2%}" for share in shares)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
