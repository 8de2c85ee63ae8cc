"""Tells what of a benchmark is on disk: found, missing, damaged; counts against the published ones."""

from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from .dataset import SPLITS, BenchmarkDataset, Problem, Scene, SceneCheck, Survey
from .job_pool import run_jobs
from .rows import RowMaker
from .source_walk import better_source


_MAX_LISTED = 30


@dataclass
class CheckReport:
    """What a check found.

    Args:
        dataset: The reader.
        source: The folder.
        survey: What names told.
        checks: What reading told, one per scene of the survey; empty if the rasters were not read.
    """

    dataset: BenchmarkDataset
    source: Path
    survey: Survey
    checks: list[SceneCheck] = field(default_factory=list)

    @property
    def problems(self) -> list[Problem]:
        """All problems, those of the survey first."""
        return [*self.survey.problems, *(problem for check in self.checks for problem in check.problems)]

    def of_kind(self, kind: str) -> list[Problem]:
        """Problems of one kind."""
        return [problem for problem in self.problems if problem.kind == kind]

    @property
    def is_sound(self) -> bool:
        """Whether there are scenes and nothing is missing or damaged."""
        return bool(self.survey.scenes) and not self.of_kind("missing") and not self.of_kind("damaged")

    def sound_scenes(self) -> list[Scene]:
        """Scenes without damage."""
        broken = {problem.scene for problem in self.of_kind("damaged")}
        return [scene for scene in self.survey.scenes if (scene.split, scene.name) not in broken]

    def text(self) -> str:
        """The report for the terminal."""
        description = self.dataset.description
        protocol = description.splits[self.dataset.split]
        lines = [
            f"{description.title} in {self.source}",
            f"split {self.dataset.split!r}: {protocol.description} ({protocol.source})",
            "",
            *self._split_table(),
            *self._class_table(),
        ]
        for kind, heading in (("missing", "Missing"), ("damaged", "Damaged"), ("note", "To know")):
            found = self.of_kind(kind)
            if found:
                lines += ["", f"{heading} ({len(found)}):", *(f"  - {problem}" for problem in found)]
        verdict = "complete and sound" if self.is_sound else "not complete, see above"
        return "\n".join([*lines, "", f"{description.name}: {verdict}"])

    def _split_table(self) -> list[str]:
        published = self.dataset.description.splits[self.dataset.split].num_scenes
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
            read = f"{labelled[split]:>10}{rows[split]:>9}" if self.checks else f"{'?':>10}{'?':>9}"
            lines.append(f"{split:<12}{found[split]:>8}{published.get(split, '-'):>11}{read}")
        return lines

    def _class_table(self) -> list[str]:
        if not any(check.has_label for check in self.checks):
            return []
        splits = [split for split in SPLITS if any(scene.split == split for scene in self.survey.scenes)]
        pixels = {split: np.zeros(len(self.dataset.class_names), dtype=np.int64) for split in splits}
        ignored = dict.fromkeys(splits, 0)
        for scene, check in zip(self.survey.scenes, self.checks, strict=True):
            pixels[scene.split] += check.class_pixels
            ignored[scene.split] += check.ignored_pixels
        published = self.dataset.description.class_shares[: len(self.dataset.class_names)]
        lost = sum(self.dataset.description.class_shares[len(self.dataset.class_names) :])
        width = max(map(len, self.dataset.class_names)) + 2
        lines = ["", f"{'share of labelled pixels':<{width}}  {''.join(f'{split:>12}' for split in [*splits, 'all'])}"]
        lines[-1] += "   published" if published else ""
        counts = [*pixels.values(), sum(pixels.values())]
        for index, name in enumerate(self.dataset.class_names):
            shares = "".join(f"{count[index] / max(1, count.sum()):>12.2%}" for count in counts)
            known = f"{published[index] / (1 - lost):>12.1%}" if published else ""
            lines.append(f"{name:<{max(width, 24)}}  {shares}{known}")
        totals = [*ignored.values(), sum(ignored.values())]
        shares = [part / max(1, part + count.sum()) for part, count in zip(totals, counts, strict=True)]
        lines.append(f"{'ignored, of all pixels':<{max(width, 24)}}  {''.join(f'{share:>12.2%}' for share in shares)}")
        if published:
            lines.append(f"(published: all labels together, {self.dataset.description.class_shares_source})")
        return lines


def survey_source(dataset: BenchmarkDataset, source: Path) -> Survey:
    """Find the scenes, leave out the excluded ones, and say if the folder seems the wrong one.

    Raises:
        FileNotFoundError: If `source` is no folder.
        ValueError: If an excluded scene is not one of the data set's.
    """
    if not source.is_dir():
        raise FileNotFoundError(f"--source {source} is not a folder.")
    survey = dataset.find(source)
    names = {scene.name for scene in survey.scenes}
    excluded = set(dataset.options.exclude)
    if survey.scenes and excluded - names:
        listed = sorted(names)
        raise ValueError(
            f"--exclude names {sorted(excluded - names)}; the scenes are {listed[:_MAX_LISTED]}"
            f"{' ...' if len(listed) > _MAX_LISTED else ''}."
        )
    scenes = [scene for scene in survey.scenes if scene.name not in excluded]
    problems = [problem for problem in survey.problems if problem.scene is None or problem.scene[1] not in excluded]
    if any(problem.kind == "missing" for problem in problems):
        better = better_source(
            source,
            lambda contents: sum(dataset.file_pattern.fullmatch(path.name) is not None for path in contents.files),
        )
        if better is not None:
            reason = "more of the data set lies above it"
            problems.insert(0, Problem("note", f"--source {source}", reason, f"Did you mean --source {better}?"))
    return replace(survey, scenes=scenes, problems=problems)


def check_scenes(dataset: BenchmarkDataset, scenes: list[Scene], *, num_proc: int = 1) -> list[SceneCheck]:
    """Read scenes through.

    Args:
        dataset: The reader.
        scenes: What to read.
        num_proc: Processes.

    Returns:
        One check per scene, in order.
    """
    results: list[SceneCheck | None] = [None] * len(scenes)
    jobs = [(dataset, scene) for scene in scenes]
    with tqdm(total=len(scenes), desc="checking", unit="scene") as progress:
        for index, result in run_jobs(_check_scene, jobs, num_proc):
            results[index] = result
            progress.update()
    return [result for result in results if result is not None]


def _check_scene(dataset: BenchmarkDataset, scene: Scene) -> SceneCheck:
    return dataset.check_scene(scene)
