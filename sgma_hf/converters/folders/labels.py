"""Reads the labels of a folder once before they are converted: what values there are, and which class each becomes."""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from ...data.class_maps import ClassMap, classes_flag, label_codes, suggest_classes
from ...data.codec import whole_numbers
from ...data.windows import Window, blocks
from ...model.limits_sgma import IGNORE_INDEX
from ...publishing.tables import markdown_table
from ...rasters.files import read_raster
from ...rasters.raster import RasterInfo


_IGNORED = "ignored"
_MAX_LISTED = 12
_MAX_LINES = 64  # of the table
_PIXELS_AT_ONCE = 2**24


class UnclearLabels(ValueError):
    """Labels that take `--classes`; `classes` is what it could be."""

    def __init__(self, message: str, classes: str) -> None:
        super().__init__(f"{message} {classes_flag(classes)}")
        self.classes = classes


@dataclass(frozen=True)
class LabelFile:
    """What a label file holds."""

    path: Path
    nodata: int | None  # as its header declares it
    pixels: Counter  # by value, or by colour as in `ClassMap.sources`
    hidden: int  # pixels without a value: masked, transparent, NaN


@dataclass(frozen=True)
class LabelSurvey:
    """The values of all label files, and what becomes of them."""

    files: list[LabelFile]
    class_map: ClassMap
    note: str  # what looks like a mistake, and the flag that mends it; empty if nothing does
    suggested: str = ""  # JSON for `--classes` that makes the same classes without those that no pixel has

    def rows(self) -> list[dict[str, Any]]:
        """By label value, what it becomes, its pixels and their share; last the pixels without a value, None."""
        found: Counter = Counter()
        for file in self.files:
            for value, count in file.pixels.items():
                found[value, self._outcome(value, file.nodata)] += count
        lines = [(self.class_map.show(value), outcome, count) for (value, outcome), count in sorted(found.items())]
        hidden = sum(file.hidden for file in self.files)
        if hidden:
            lines.append((None, f"{_IGNORED}: masked, not a number, or in no polygon", hidden))
        total = sum(found.values()) + hidden
        return [
            {"value": value, "becomes": outcome, "pixels": count, "share": count / total}
            for value, outcome, count in lines
        ]

    def table(self) -> str:
        """The rows as a table; then the share that is ignored."""
        rows = self.rows()
        total = sum(row["pixels"] for row in rows)
        ignored = sum(row["pixels"] for row in rows if row["becomes"].startswith(_IGNORED))
        lines = [[*row.values()] for row in rows[:_MAX_LINES]]
        lines = [["none" if value is None else value, *others, f"{share:.2%}"] for value, *others, share in lines]
        if len(rows) > _MAX_LINES:
            lines.append([f"and {len(rows) - _MAX_LINES} more", "", "", ""])
        table = markdown_table(["label value", "becomes", "pixels", "share"], lines, text_columns=2)
        return f"{table}\nignored: {ignored} of {total} label pixels, {ignored / max(1, total):.2%}"

    def _outcome(self, value: int, nodata: int | None) -> str:
        """What a value becomes in a file that declares `nodata`."""
        index = self.class_map.id_of(value, nodata)
        if index != IGNORE_INDEX:
            return f"{index} {self.class_map.names[index]}"
        reason = "nodata" if value == nodata else self.class_map.ignored_names.get(value, "")
        if not reason and not self.class_map.is_known(value, nodata):
            reason = "no class"
        return f"{_IGNORED}: {reason}" if reason else _IGNORED


def survey_labels(
    labels: Sequence[RasterInfo], classes: str | os.PathLike | None, *, ignore_unmapped: bool = False
) -> LabelSurvey:
    """Count the values of label files and decide what they become.

    Without `classes` (what `ClassMap.load` takes) values are class ids as they are. Then 255, and in each file what it
    declares as nodata, is ignored; but 255 beside 0 alone in all files, a mask, is class 1.

    Raises:
        ValueError: If a file cannot be read or is no label, or a value has no class and is not to be ignored.
    """
    class_map = None if classes is None else ClassMap.load(classes)
    by_colour = all(info.channels == 3 for info in labels) if class_map is None else class_map.by_colour
    with tqdm(labels, desc="labels", unit="scene", leave=False) as watched:  # closed before an error is said
        files = [count_label(info, by_colour=by_colour) for info in watched]
    if class_map is None:
        return take_ids(files, by_colour=by_colour)
    if not ignore_unmapped:
        _refuse_unmapped(files, class_map)
    return LabelSurvey(files, class_map, _note_on_given(files, class_map))


def read_label(info: RasterInfo, *, by_colour: bool, window: Window | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Codes of `ClassMap`, integer (height, width), of a label file, and where it holds any; nodata counts as a value.

    Raises ValueError that names the file if it holds fractions, or bands where numbers are expected and the reverse.
    """
    # Nodata that is no label value, before scale and offset for instance, is the reader's to find.
    options = {"use_declared_nodata": not by_colour and info.nodata_label is None}
    raster = read_raster(info.path, palette_as_indices=not by_colour, window=window, **options)
    channels = raster.values.shape[2]
    if by_colour and channels != 3:
        raise ValueError(f"{info.path} has {channels} band(s), but the classes are given by colour. Give `value`.")
    if not by_colour and channels != 1:
        raise ValueError(
            f"{info.path} has {channels} bands where one of class ids is expected. If they are colours, give these "
            "with --classes; else write one band."
        )
    values = raster.values
    if values.dtype.kind == "f":
        values = np.where(raster.valid[..., None], values, IGNORE_INDEX)
    return label_codes(whole_numbers(values, info.path)), raster.valid


def count_label(info: RasterInfo, *, by_colour: bool) -> LabelFile:
    """Count the values of a label file, strip by strip where it is large."""
    pixels, hidden = Counter(), 0
    for window in blocks(info.size, max(1, _PIXELS_AT_ONCE // info.size[1])):
        codes, valid = read_label(info, by_colour=by_colour, window=window)
        present, counts = np.unique(codes[valid], return_counts=True)
        pixels.update(dict(zip(present.tolist(), counts.tolist(), strict=True)))
        hidden += int((~valid).sum())
    return LabelFile(info.path, _nodata(info, by_colour), pixels, hidden)


def map_label(info: RasterInfo, class_map: ClassMap) -> np.ndarray:
    """Class ids of a label file, uint8 (height, width), 255 ignored."""
    codes, valid = read_label(info, by_colour=class_map.by_colour)
    return class_map.apply(codes, valid, _nodata(info, class_map.by_colour))


def _nodata(info: RasterInfo, by_colour: bool) -> int | None:
    """The declared value as a label has it; of colours there is none."""
    return None if by_colour else info.nodata_label


def take_ids(files: list[LabelFile], *, by_colour: bool) -> LabelSurvey:
    """Take values as class ids, as `survey_labels` without classes; `UnclearLabels` where they cannot be."""
    total = sum((file.pixels for file in files), Counter())
    if by_colour:
        found = suggest_classes(total, by_colour=True)
        raise UnclearLabels(
            f"The label files are colour-coded, with {len(total)} colours, {files[0].path} first. Give each a class:",
            found,
        )
    declared = {file.nodata for file in files if file.nodata in file.pixels}
    ids = sorted({value for file in files for value in file.pixels if value not in (file.nodata, IGNORE_INDEX)})
    every = suggest_classes(total, keep=list(total))
    is_mask = IGNORE_INDEX in total and IGNORE_INDEX not in declared and set(ids) <= {0}
    if is_mask and ids and not declared:
        note = (
            "255 stands beside 0 alone, as in a mask: it is class_1, and not ignored. To name the two: "
            f"{classes_flag(every)}"
        )
        class_map = ClassMap(["class_0", "class_1"], {0: 0, IGNORE_INDEX: 1}, [None, None])
        return LabelSurvey(files, class_map, note, every)
    if not ids or is_mask:
        said = f"The label files hold {_listed(sorted(total))}; 255 and what they declare as nodata, "
        said += f"{_listed(sorted(declared))}, are ignored. To make them classes:"
        raise UnclearLabels(said, every)
    every = suggest_classes(total)
    if ids[0] < 0 or ids[-1] > IGNORE_INDEX:
        known = set(range(IGNORE_INDEX + 1))
        first = next(file.path for file in files if file.pixels.keys() - known - {file.nodata})
        said = f"The label files hold {_listed(ids)} ({len(ids)} values); class ids are 0..{IGNORE_INDEX - 1}; others "
        said += f"are first in {first}."
        raise UnclearLabels(f"{said} Map them with", every)
    said = _note_on_nodata(files, ids)
    unused = sorted(set(range(ids[-1])) - set(ids))
    if set(unused) - declared:
        names = _ranges(sorted(set(unused) - declared))
        said.append(f"{names} {'has' if names.count('class') == 1 else 'have'} no pixel in any label file.")
    if 0 in ids and 0 not in declared:
        said.append("0 is a class; where it means that nobody labelled, ignore it.")
    said.append(f'To name the classes, or ignore one by `"ignore": true` in place of a name: {classes_flag(every)}')
    names = [f"class_{index}" for index in range(ids[-1] + 1)]
    class_map = ClassMap(names, {index: index for index in ids}, [None] * len(names), is_given=False)
    return LabelSurvey(files, class_map, " ".join(said), suggest_classes(ids) if unused else "")


def _note_on_nodata(files: Sequence[LabelFile], ids: Sequence[int]) -> list[str]:
    """Which ids are nodata by the header of some files, or of all."""
    said = []
    for value in sorted({file.nodata for file in files} & set(range(IGNORE_INDEX))):
        ignoring = [file for file in files if file.nodata == value]
        if value in ids:
            said.append(
                f"{value} is nodata in {len(ignoring)} of {len(files)} label files ({ignoring[0].path}): ignored "
                f"there, and class_{value} in the others."
            )
        elif any(value in file.pixels for file in ignoring):
            said.append(
                f"{value} is nodata in all label files that hold it: ignored, unless --classes names it, as below."
            )
    return said


def _note_on_given(files: Sequence[LabelFile], class_map: ClassMap) -> str:
    said = []
    total = sum((file.pixels for file in files), Counter())
    for value in sorted(total.keys() & {file.nodata for file in files}):
        index = class_map.id_of(value, None)
        if index != IGNORE_INDEX:
            count = sum(file.nodata == value for file in files)
            name = class_map.names[index]
            said.append(f"{value} is nodata in {count} of {len(files)} label files, and {name} by --classes.")
    there = {class_map.id_of(value, None) for value in total}
    unused = [name for index, name in enumerate(class_map.names) if index not in there]
    if unused:
        said.append(f"Classes that have no pixel in any label file: {', '.join(unused)}.")
    return " ".join(said)


def _refuse_unmapped(files: Sequence[LabelFile], class_map: ClassMap) -> None:
    """Refuse values without a class."""
    unknown = [(file, value) for file in files for value in file.pixels if not class_map.is_known(value, file.nodata)]
    if unknown:
        counts, first = Counter(), unknown[0][0].path
        for file, value in unknown:
            counts[value] += file.pixels[value]
        shown = [f"{class_map.show(value)} ({count} pixels)" for value, count in counts.most_common()]
        raise ValueError(
            f"Label values without a class: {', '.join(first_few(shown, _MAX_LISTED))}; first in {first}. Add them "
            'to --classes (with "ignore": true if they mean nothing), or pass --ignore_unmapped.'
        )


def first_few(texts: Sequence[str], most: int) -> list[str]:
    """The first of some texts, and how many more there are."""
    return [*texts[:most], *([f"and {len(texts) - most} more"] if len(texts) > most else [])]


def _listed(values: Sequence[int]) -> str:
    return f"{list(values[:_MAX_LISTED])}{' ...' * (len(values) > _MAX_LISTED)}"


def _ranges(ids: Sequence[int]) -> str:
    """`class_0, class_6 to class_8` of sorted ids."""
    starts = [index for index in ids if index - 1 not in ids]
    ends = [index for index in ids if index + 1 not in ids]
    pairs = zip(starts, ends, strict=True)
    return ", ".join(f"class_{a}" if a == b else f"class_{a} to class_{b}" for a, b in pairs)
