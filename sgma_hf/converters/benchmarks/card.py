"""The card of a converted benchmark: what the data set is, what was made of it, and on which terms."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from ...model.limits_sgma import IGNORE_INDEX
from ...publishing.tables import markdown_table
from ..writing.statistics import SplitStatistics
from .check import CheckReport
from .dataset import LABEL, SPLITS, BenchmarkDataset


def card_content(
    report: CheckReport, statistics: Mapping[str, SplitStatistics], withheld: Mapping[str, Sequence[str]]
) -> dict[str, Any]:
    """What `build_card` takes of a converted data set; `withheld` is what was taken from which row on purpose."""
    dataset, description = report.dataset, report.dataset.description
    sections = [
        _splits(report),
        _incomplete(dataset, statistics, withheld),
        _facts(dataset),
        f"## Terms of use\n\n{description.terms}\n\nSource: {description.homepage}",
        f"## Acknowledgement\n\n{description.acknowledgement}" if description.acknowledgement else "",
        f"## Citation\n\n```bibtex\n{description.citation.strip()}\n```" if description.citation else "",
    ]
    return {
        "title": description.title,
        "description": description.summary,
        "license": description.license,
        "sections": sections,
    }


def _splits(report: CheckReport) -> str:
    dataset, options, scenes = report.dataset, report.dataset.options, report.sound_scenes()
    protocol = dataset.description.splits[dataset.split]
    found = Counter(scene.split for scene in scenes)
    unlabelled = Counter(scene.split for scene in scenes if scene.files.get(LABEL) is None)
    size = "Scenes are whole."
    if options.tile is not None:
        every = f" (every {options.stride} in `train`)" if options.stride else ""
        size = (
            f"Tiles of {options.tile} x {options.tile} pixels{every}; the last of a row and of a column is moved back "
            "inside and overlaps its neighbour, and a scene that is smaller gives a smaller tile. Outside `train`, "
            f"labels of an overlap are {IGNORE_INDEX} in the second tile: every pixel counts once."
        )
    lines = [
        [split, found[split], protocol.num_scenes.get(split, "-"), unlabelled[split]]
        for split in SPLITS
        if split in found or split in protocol.num_scenes
    ]
    parts = [
        "## Splits",
        f"Source of the split `{dataset.split}`: {protocol.source}. {size}",
        markdown_table(["split", "scenes", "published", "without a label"], lines),
    ]
    if options.exclude:
        parts.append(f"Left out by request: {', '.join(options.exclude)}.")
    if report.damaged_scenes():
        parts.append(f"Left out because a file is damaged: {', '.join(report.damaged_scenes())}.")
    return "\n\n".join(parts)


def _incomplete(
    dataset: BenchmarkDataset, statistics: Mapping[str, SplitStatistics], withheld: Mapping[str, Sequence[str]]
) -> str:
    options = dataset.options
    if not options.missing and not options.coverage:
        return ""
    num_rows = statistics["train"].num_rows if "train" in statistics else 0
    counts = Counter(item for taken in withheld.values() for item in taken)

    def cells(asked: Mapping[str, float], name: str, kind: str) -> list[str]:
        return [f"{asked.get(name, 0):.0%}", f"{counts[kind]} ({counts[kind] / max(1, num_rows):.1%})"]

    lines = [
        [f"`{name}`", *cells(options.missing, name, name), *cells(options.coverage, name, f"{name} (part)")]
        for name in (modality.name for modality in dataset.modalities)
        if name in options.missing or name in options.coverage
    ]
    parts = [
        "## Incomplete on purpose",
        "Training rows were made incomplete, each choice a function of the seed and the row's id; nothing was taken "
        "from rows of the other splits. A row keeps one modality as it was. `conversion.json` lists what was taken "
        f"from which row. Seed {options.missing_seed}.",
        markdown_table(["modality", "whole: asked", "whole: rows", "part: asked", "part: rows"], lines),
    ]
    if dataset.filled:
        names = ", ".join(f"`{name}`" for name in dataset.filled)
        parts.append(
            f'In {names} the value 0 in all bands means "no data", and only where a modality was made to end inside a '
            "training row. So that it means nothing else, source pixels that are 0 in all bands are stored as 1 in "
            "all bands, in every split; all other values are those of the source."
        )
    return "\n\n".join(parts)


def _facts(dataset: BenchmarkDataset) -> str:
    modalities = [f"- `{item.name}`: {item.description}" for item in dataset.modalities if item.description]
    notes = [f"- {note}" for note in dataset.card_notes()]
    facts = [f"- {statement} ({source})" for statement, source in dataset.description.facts]
    return "\n".join(["## About the data", "", *modalities, *notes, *facts])
