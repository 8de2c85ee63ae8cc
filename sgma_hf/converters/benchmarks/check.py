"""Tells what of a data set is on disk: found, missing, damaged; counts against the published ones."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from ...data.windows import blocks
from ...model.limits_sgma import IGNORE_INDEX
from .dataset import LABEL, SPLITS, BenchmarkDataset, Problem, Scene, SplitProtocol, Survey
from .job_pool import run_jobs
from .rows import RowMaker
from .source_walk import better_source


_MAX_LISTED = 30
_STRIP_PIXELS = 2**21  # read at once: 25 MB of float32 in three bands


@dataclass
class SceneCheck:
    """What reading a scene through has shown."""

    size: Sequence[int] | None  # (height, width); None if not even that is known, and then there is a problem
    problems: list[Problem]
    class_pixels: list[int]  # per class, all 0 without a label
    ignored_pixels: int = 0  # of the label, those of 255
    has_label: bool = False

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "SceneCheck":
        """What `dataclasses.asdict` made, by way of JSON."""
        return cls(**{**content, "problems": [Problem(**problem) for problem in content["problems"]]})


def check_scene(dataset: BenchmarkDataset, scene: Scene) -> SceneCheck:
    """Read a scene through, strip by strip; what cannot be read is a problem, and the rest is still checked."""
    result = SceneCheck(None, [], [0] * len(dataset.class_names))
    unsized = None
    try:
        result.size = dataset.scene_size(scene)
    except (ValueError, OSError) as error:
        unsized = Problem("damaged", scene.name, str(error), dataset.remedy(scene, None), scene.key)
    for column in (*(modality.name for modality in dataset.modalities), *dataset.label_columns):
        try:
            _check_column(dataset, scene, column, result)
        except (ValueError, OSError) as error:
            path = scene.files.get(column)
            what = str(path) if isinstance(path, Path) else f"{scene.name}, {column}"
            reason = str(error).removeprefix(f"{what}: ")
            result.problems.append(Problem("damaged", what, reason, dataset.remedy(scene, column), scene.key))
    if unsized is not None and not result.problems:
        result.problems.append(unsized)
    dataset.readers.close()
    return result


def _check_column(dataset: BenchmarkDataset, scene: Scene, column: str, result: SceneCheck) -> None:
    if result.size is None:  # the reference file is broken; the others can still be opened
        if isinstance(scene.files.get(column), Path):
            dataset.readers.open(scene.files[column]).read_through()
        return
    counts = np.zeros(IGNORE_INDEX + 1, dtype=np.int64)
    for strip in blocks(result.size, max(1, _STRIP_PIXELS // result.size[1])):
        values = dataset.read(scene, column, strip)
        if values is None:
            return
        if column == LABEL:
            counts += np.bincount(values.ravel(), minlength=IGNORE_INDEX + 1)
    if column == LABEL:
        result.has_label = True
        result.class_pixels = counts[: len(dataset.class_names)].tolist()
        result.ignored_pixels = int(counts[IGNORE_INDEX])


def check_scenes(dataset: BenchmarkDataset, scenes: Sequence[Scene], *, num_proc: int = 1) -> list[SceneCheck]:
    """Read scenes through in `num_proc` processes; gives one check per scene, in order."""
    jobs = [(dataset, scene) for scene in scenes]
    done = tqdm(run_jobs(check_scene, jobs, num_proc), total=len(jobs), desc="checking", unit="scene")
    return [check for _, check in sorted(done)]


@dataclass
class CheckReport:
    """What a check found."""

    dataset: BenchmarkDataset
    source: Path
    survey: Survey  # what names told
    checks: list[SceneCheck] = field(default_factory=list)  # per scene what reading told; empty if none was read

    def of_kind(self, kind: str) -> list[Problem]:
        """Problems of one kind, those of the survey first."""
        problems = [*self.survey.problems, *(problem for check in self.checks for problem in check.problems)]
        return [problem for problem in problems if problem.kind == kind]

    @property
    def is_sound(self) -> bool:
        """Whether there are scenes and nothing is missing or damaged."""
        return bool(self.survey.scenes) and not self.of_kind("missing") and not self.of_kind("damaged")

    def damaged_scenes(self) -> list[str]:
        """Keys of the scenes with damage."""
        damaged = {problem.scene for problem in self.of_kind("damaged")}
        return [scene.key for scene in self.survey.scenes if scene.key in damaged]

    def sound_scenes(self) -> list[Scene]:
        """Scenes without damage."""
        damaged = set(self.damaged_scenes())
        return [scene for scene in self.survey.scenes if scene.key not in damaged]

    def refuse_missing(self, allowed: bool, hint: str) -> None:
        """Raise ValueError without scenes, or if files are missing and not `allowed`, which takes what `hint` says."""
        if not self.survey.scenes:
            raise ValueError("; ".join(map(str, self.survey.problems)))
        if self.of_kind("missing") and not allowed:
            what = f"{self.dataset.description.name} in {self.source} is not complete, nothing was written"
            raise ValueError(f"{what}\n{listed(self.survey.problems)}\n{hint}")

    def refuse_damaged(self, skipped: bool, hint: str) -> None:
        """Raise ValueError if something is damaged and not to be `skipped`, which takes what `hint` says."""
        damaged = self.of_kind("damaged")
        if damaged and not skipped:
            what = f"{len(damaged)} files are damaged, nothing was written"
            raise ValueError(f"{what}\n{listed(damaged)}\n{hint}".rstrip())

    def text(self) -> str:
        """The report for the terminal."""
        description = self.dataset.description
        protocol = description.splits[self.dataset.split]
        lines = [
            f"{description.title} in {self.source}",
            f"split {self.dataset.split!r}: {protocol.description} ({protocol.source})",
            "",
            *self._split_table(protocol),
            *self._class_table(),
        ]
        for kind, heading in (("missing", "Missing"), ("damaged", "Damaged"), ("note", "To know")):
            found = self.of_kind(kind)
            if found:
                lines += ["", f"{heading} ({len(found)}):", listed(found)]
        verdict = "complete and sound" if self.is_sound else "not complete, see above"
        return "\n".join([*lines, "", f"{description.name}: {verdict}"])

    def _split_table(self, protocol: SplitProtocol) -> list[str]:
        published = protocol.num_scenes
        tiling = RowMaker(self.dataset).tiling
        found = Counter(scene.split for scene in self.survey.scenes)
        labelled: Counter[str] = Counter()
        rows: Counter[str] = Counter()
        for scene, check in zip(self.survey.scenes, self.checks, strict=False):
            labelled[scene.split] += check.has_label
            rows[scene.split] += len(tiling.windows(check.size, scene.split)) if check.size else 0
        excluded = f" (excluded: {', '.join(self.dataset.options.exclude)})" if self.dataset.options.exclude else ""
        lines = [f"{'split':<12}{'scenes':>8}{'published':>11}{'labelled':>10}{'rows':>9}{excluded}"]
        for split in (split for split in SPLITS if split in found or split in published):
            known = published.get(split, "-")
            lines.append(f"{split:<12}{found[split]:>8}{known:>11}{labelled[split]:>10}{rows[split]:>9}")
        if protocol.total is not None:
            sums = (sum(counts.values()) for counts in (labelled, rows))
            lines.append("{:<12}{:>8}{:>11}{:>10}{:>9}".format("all", found.total(), protocol.total, *sums))
        return lines

    def _class_table(self) -> list[str]:
        """Shares of the labelled pixels by split and in all, beside the published ones."""
        if not any(check.has_label for check in self.checks):
            return []
        description, names = self.dataset.description, self.dataset.class_names
        checked = list(zip(self.survey.scenes, self.checks, strict=True))
        columns = {split: [item for scene, item in checked if scene.split == split] for split in SPLITS}
        columns = {split: items for split, items in columns.items() if items} | {"all": self.checks}
        pixels = {name: np.array([item.class_pixels for item in items]).sum(axis=0) for name, items in columns.items()}
        ignored = {name: sum(item.ignored_pixels for item in items) for name, items in columns.items()}
        lost = sum(description.class_shares[len(names) :])
        width = max(24, *(len(name) + 2 for name in names))
        lines = ["", f"{'share of labelled pixels':<{width}}  {''.join(f'{name:>12}' for name in columns)}"]
        for index, name in enumerate(names):
            shares = "".join(f"{count[index] / max(1, count.sum()):>12.2%}" for count in pixels.values())
            lines.append(f"{name:<{width}}  {shares}")
        shares = (ignored[name] / max(1, ignored[name] + count.sum()) for name, count in pixels.items())
        lines.append(f"{'ignored, of all pixels':<{width}}  {''.join(f'{share:>12.2%}' for share in shares)}")
        if description.class_shares:
            known = [f"{share / (1 - lost):>12.1%}" for share in description.class_shares[: len(names)]]
            lines = [line + end for line, end in zip(lines, ["", "   published", *known, ""], strict=True)]
            lines.append(f"(published: all labels together, {description.class_shares_source})")
        return lines


def listed(problems: Sequence[Problem]) -> str:
    """Problems, a line each."""
    return "\n".join(f"  - {problem}" for problem in problems)


def survey_source(dataset: BenchmarkDataset, source: Path) -> Survey:
    """Find the scenes, leave out the excluded ones, and say if the folder seems the wrong one."""
    if not source.is_dir():
        raise FileNotFoundError(f"--source {source} is not a folder.")
    survey = dataset.find(source)
    names = sorted({scene.name for scene in survey.scenes})
    unknown = sorted(set(dataset.options.exclude) - set(names))
    if names and unknown:
        more = " ..." if len(names) > _MAX_LISTED else ""
        raise ValueError(f"--exclude names {unknown}; the scenes are {names[:_MAX_LISTED]}{more}.")
    excluded = {scene.key for scene in survey.scenes if scene.name in dataset.options.exclude}
    scenes = [scene for scene in survey.scenes if scene.key not in excluded]
    problems = [problem for problem in survey.problems if problem.scene not in excluded]
    if any(problem.kind == "missing" for problem in problems):
        better = better_source(source, dataset.file_pattern)
        if better is not None:
            reason = "more of the data set lies above it"
            problems.insert(0, Problem("note", f"--source {source}", reason, f"Did you mean --source {better}?"))
    return replace(survey, scenes=scenes, problems=problems)
