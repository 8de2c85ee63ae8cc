"""Finds which raster files of a folder belong together.

Three layouts, each with or without split folders (`train`, `valid`, `test`, ...) around it:

- a folder per modality: `nir/x.png`, `label/x.png` (also deeper: `nir/city/x.png` with `label/city/x.png`; and with
  the folder's name in that of every file: `nir/x_nir.png`, `label/x_label.png`, or in front, `nir/nir_x.png`);
- a folder per scene: `x/nir.tif`, `x/label.tif`;
- one folder: `x_nir.tif`, `x_label.tif`, or `nir_x.tif`, `label_x.tif`.

A series of dates is several files with a date in their names in the place of one (`nir/x_20190302.png`,
`x/nir_20190302.tif`, `x_nir_20190302.tif`), a folder of them (`nir/x/20190302.png`, `x/nir/20190302.tif`), or a folder
for each date (`nir/20190302/x.png`, `x/20190302/nir.tif`).
"""

import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from ...data.rows import SPLIT_ALIASES
from ...model.normalization_sgma import default_normalization
from ..dates import name_without_date
from ..opening import is_raster_file
from ..polygons import is_vector_file


LABEL_NAMES = ("label", "labels", "mask", "masks", "gt", "truth", "ground_truth", "annotation", "annotations")
MASK_OF = "mask of "  # a modality: in the place of its name, where masks are listed among the modalities


@dataclass
class SceneFiles:
    """The files of one place; None where there is none."""

    name: str  # unique in its split: the files' common stem, or the scene folder's name
    split: str  # `train`, `validation`, `test`
    rasters: dict[str, Path | None]  # by modality; of a series one of them
    label: Path | None
    series: dict[str, list[Path]] = field(default_factory=dict)  # all files of modalities of which there are dates

    def files_of(self, modality: str) -> list[Path]:
        """Its files: those of a series, one, or none."""
        path = self.rasters[modality]
        return self.series.get(modality, [] if path is None else [path])


def find_scenes(
    source: Path,
    folders: Mapping[str, str],
    label: str | None,
    *,
    split_names: Mapping[str, str] | None = None,
    absent: Collection[str] | None = (),
    series: bool | None = False,
) -> list[SceneFiles]:
    """Find the scenes of a folder, by split and name; those in no split folder are `train`.

    Args:
        source: The folder.
        folders: Modality name to the folder (or file stem) that holds it.
        label: Folder or stem of the labels, None if there are none.
        split_names: What a split folder is to be called, where not as usual: `{"valid": "test"}`.
        absent: Modalities that must have no file at all; all others must have one. None: any may have none.
        series: Whether files that differ by their date alone are one scene also where no file without a date, a label
            above all, says so. Else each of those is a scene. None: each is in any case.
    """
    scenes, problems = survey_scenes(source, folders, label, split_names=split_names, absent=absent, series=series)
    if problems:
        raise ValueError(problems[0])
    return scenes


def survey_scenes(
    source: Path,
    folders: Mapping[str, str],
    label: str | None,
    *,
    split_names: Mapping[str, str] | None = None,
    absent: Collection[str] | None = (),
    series: bool | None = False,
) -> tuple[list[SceneFiles], list[str]]:
    """The scenes of `find_scenes`, and why they cannot be what was meant; of files of one name the first counts."""
    roots = _split_roots(source, split_names)
    clashes: list[str] = []
    how = {"series": series, "clashes": clashes}
    scenes = [scene for root, split in roots for scene in _scenes_of_root(root, split, folders, label, **how)]
    scenes.sort(key=lambda scene: (scene.split, scene.name))
    return scenes, [*clashes, *_problems(source, roots[0][0], scenes, folders, label, absent)]


def _problems(
    source: Path,
    root: Path,
    scenes: Sequence[SceneFiles],
    folders: Mapping[str, str],
    label: str | None,
    absent: Collection[str] | None,
) -> Iterator[str]:
    """Why scenes cannot be what was meant; `root` is the first of the split folders."""
    found = {name for scene in scenes for name, path in scene.rasters.items() if path is not None}
    has_labels = any(scene.label is not None for scene in scenes)
    if not found and not has_labels:
        yield _nothing_found(source, root, _wanted(folders, label))
        return
    there = sorted(found & set(absent or ()))
    if there:
        yield f"--absent names {there}, but {source} holds such files. Leave it out of --absent."
    lacking = [name for name in folders if absent is not None and name not in found and name not in absent]
    names = [modality_entry(name, folders[name]) for name in lacking]
    if label and not has_labels:
        names.append(f"{label} (the label; --label none if there is none)")
    if names:
        hint = f" If no scene has it, say how many bands it would have: --absent {lacking[0]}=1." if lacking else ""
        hint = " If no scene has one, leave --mask out." if lacking and lacking[0].startswith(MASK_OF) else hint
        yield f"{source} holds no file for {', '.join(names)}. It holds {_contents(root)}.{hint}"
    for name in folders:
        if has_labels and name in found and not any(scene.label and scene.rasters[name] for scene in scenes):
            yield _never_labelled(source, scenes, name)
    counts = Counter((scene.split, scene.name) for scene in scenes)
    twice = [name for (_, name), count in counts.items() if count > 1]
    if twice:
        yield f"{source}: split folders that mean one split hold the same names: {twice[:5]}."


def modality_entry(name: str, folder: str) -> str:
    """A modality and its folder as `--modalities` takes them."""
    return name if name == folder else f"{name}={folder}"


def _wanted(folders: Mapping[str, str], label: str | None) -> list[str]:
    """Names of the folders, or of the files of a scene's folder."""
    return [*folders.values(), *([label] if label else [])]


def _split_roots(source: Path, split_names: Mapping[str, str] | None = None) -> list[tuple[Path, str]]:
    """Split folders of the source with their splits, or the source itself."""
    if not source.is_dir():
        raise FileNotFoundError(f"{source} is not a folder. Give the one that holds the rasters.")
    given = {name.lower(): split for name, split in (split_names or {}).items()}
    found = {path: path.name.lower() for path in _folders(source)}
    unknown = sorted(given.keys() - found.values())
    if unknown:
        raise ValueError(f"--split_as names {unknown}, but {source} holds {_contents(source)}.")
    splits = SPLIT_ALIASES | given
    return [(path, splits[name]) for path, name in found.items() if name in splits] or [(source, "train")]


def find_names(source: Path, label: str | None = None) -> tuple[list[str], str | None]:
    """The names that a folder's rasters go by, in lower case, and that of their labels, None if there are none.

    They are those of folders, of files in a folder per scene, or what files in one folder end or begin with: which of
    these, a name of labels decides (`label`, or one that is usual), else names that are usual for modalities, else the
    fewer names.
    """
    usual = (label.lower(),) if label else LABEL_NAMES
    root, _ = _split_roots(source)[0]
    named = _best_names(source, usual)
    is_usual = not named.isdisjoint(usual) or _num_usual(named) > 0
    here = {path.stem.lower() for path in filter(is_raster_file, source.iterdir())}
    above = Path(os.path.abspath(source)).parent
    beside = {path.name.lower() for path in _folders(above)} if here else set()
    for what, those in (("scene", here), ("modality", beside)):
        if not is_usual and (not those.isdisjoint(usual) or _num_usual(those)):
            raise ValueError(f"{source} holds the files of one {what}. Give the folder above it: {above}")
    if not named:
        raise ValueError(
            f"{source} holds no rasters whose folders or names say what they are. Give the folder that holds one "
            "folder per modality or per scene, or files such as a_rgb.tif."
        )
    if not is_usual:
        near = next((path for path in _folders(source)[:50] if not _best_names(path, usual).isdisjoint(usual)), None)
        if near is not None:
            raise ValueError(f"{source} holds folders of data sets, {near.name} for instance. Did you mean {near}?")
    if label and label.lower() not in named:
        raise ValueError(f"{source} holds no file for the label {label}. It holds {_contents(root)}.")
    chosen = next((name for name in usual if name in named), None)
    return sorted(named - {chosen}), chosen


def _best_names(source: Path, labels: Sequence[str]) -> set[str]:
    """The names of `find_names`, those of labels among them; empty if there are none."""
    folders, stems, ends, starts = set(), set(), set(), set()
    for root, _ in _split_roots(source):
        for path in filter(is_raster_file, root.iterdir()):
            parts = re.split("[_-]", _undated(path.stem).lower())
            ends, starts = ends | set(parts[1:][-1:]), starts | set(parts[:-1][:1])
        for folder in _folders(root):
            folders |= {folder.name.lower()} if any(map(is_raster_file, folder.rglob("*"))) else set()
            stems |= {_undated(path.stem).lower() for path in folder.iterdir() if is_raster_file(path)}
            for path in _folders(folder):
                stems |= {path.name.lower()} if any(map(_is_dated, path.iterdir())) else set()
                if name_without_date(path.name) == "":
                    stems |= {file.stem.lower() for file in path.iterdir() if is_raster_file(file)}
    found = [names for names in (folders, stems, ends, starts) if names]
    return min(found, key=lambda names: (names.isdisjoint(labels), -_num_usual(names), len(names)), default=set())


def _undated(stem: str) -> str:
    """A name without its date, if it has one and is more than that."""
    return name_without_date(stem) or stem


def _is_dated(path: Path) -> bool:
    return name_without_date(path.stem) is not None and is_raster_file(path)


def _num_usual(names: Iterable[str]) -> int:
    return sum(default_normalization(name) != default_normalization("") for name in names)


def _scenes_of_root(
    root: Path, split: str, folders: Mapping[str, str], label: str | None, *, series: bool | None, clashes: list[str]
) -> list[SceneFiles]:
    kinds = dict.fromkeys(_wanted(folders, label), is_raster_file) | ({label: _is_label_file} if label else {})
    homes = {name: _folder_of(root, name) for name in kinds}
    dated: dict[str, dict[str, list[Path]]] = {name: {} for name in kinds}
    if any(home is not None for home in homes.values()):
        found = {name: _files_below(home, kinds[name]) for name, home in homes.items()}
        files = _by_scene_names({name: _by_name(pairs, clashes) for name, pairs in found.items()})
    else:
        named = {
            name: [*_files_of(root, name, is_file), *_suffixed(root, name, kinds)] for name, is_file in kinds.items()
        }
        files = {name: _by_name(pairs, clashes) for name, pairs in named.items()}
        for name in dict.fromkeys(folders.values()):
            for scene, path in (*_dated_files_of(root, name), *_suffixed(root, name, kinds, dated=True)):
                dated[name].setdefault(scene, []).append(path)
    for name in folders.values() if series is not None else ():
        for scene, paths in _take_series(files, name, label, series=series).items():
            dated[name].setdefault(scene, []).extend(paths)
    return [
        SceneFiles(
            name=name,
            split=split,
            rasters={
                modality: files[folder].get(name) or next(iter(dated[folder].get(name, ())), None)
                for modality, folder in folders.items()
            },
            label=files[label].get(name) if label else None,
            series={
                modality: [*filter(None, [files[folder].get(name)]), *dated[folder][name]]
                for modality, folder in folders.items()
                if name in dated[folder]
            },
        )
        for name in sorted({name for found in (*files.values(), *dated.values()) for name in found})
    ]


def _take_series(
    files: dict[str, dict[str, Path]], key: str, label: str | None, *, series: bool
) -> dict[str, list[Path]]:
    """Take the files of a modality out that are dates of one scene: those by scene.

    They are, by the name without its date or by the folder, what a label is called (without labels, a file of another
    modality that has no date), while nothing is called as they are. With `series`, nothing else has to be.
    """
    found = files[key]
    others = [names for other, names in files.items() if other != key] if label is None else [files[label]]
    anchors = {name for names in others for name in names if label or name_without_date(Path(name).name) is None}
    own, by_name, by_folder = re.escape(Path(key).name), defaultdict(list), defaultdict(list)
    for name in (name for name in found if name not in anchors):
        path = PurePosixPath(name)
        folder, rest = path.parent.as_posix(), name_without_date(path.name)
        if rest is None and name_without_date(path.parent.name) == "":
            path, rest = path.parent, path.name
        elif folder != ".":
            by_folder[folder].append(name)
        if rest is not None:
            rest = re.sub(rf"^{own}[_-]|[_-]{own}$", "", rest, flags=re.IGNORECASE)
            by_name[(path.parent / rest).as_posix()].append(name)
    hits = [len(groups.keys() & anchors) for groups in (by_name, by_folder)]
    if not any(hits) and not series:
        return {}
    is_by_name = hits[0] > hits[1] if any(hits) else len(by_name) < sum(map(len, by_name.values())) or not by_folder
    groups = by_name if is_by_name else by_folder
    return {scene: [found.pop(name) for name in names] for scene, names in groups.items()}


def _folder_of(root: Path, name: str) -> Path | None:
    """The folder of a modality; one whose name differs in case counts if no other one does."""
    if (root / name).is_dir():
        return root / name
    alike = [path for path in _folders(root) if path.name.lower() == name.lower()]
    return alike[0] if len(alike) == 1 else None


def _is_label_file(path: Path) -> bool:
    """Whether a file may hold labels: a raster, or polygons."""
    return is_raster_file(path) or (is_vector_file(path) and path.is_file() and not path.name.startswith("."))


def _files_below(folder: Path | None, is_file: Callable[[Path], bool]) -> Iterator[tuple[str, Path]]:
    """Name and path of all files of a kind in a folder, if there is one."""
    for path in filter(is_file, sorted(folder.rglob("*")) if folder else ()):
        yield path.relative_to(folder).with_suffix("").as_posix(), path


def _files_of(root: Path, stem: str, is_file: Callable[[Path], bool]) -> Iterator[tuple[str, Path]]:
    """Scene and file of those files in scenes' folders that have a stem, or, where none has, one of another case."""
    for scene in _folders(root):
        alike = [path for path in sorted(scene.iterdir()) if path.stem.lower() == stem.lower()]
        alike = list(filter(is_file, alike))
        for path in [path for path in alike if path.stem == stem] or alike:
            yield scene.name, path


def _dated_files_of(root: Path, name: str) -> Iterator[tuple[str, Path]]:
    """Scene and file of the dates in scenes' folders: in a folder of a modality or a date, and `rgb_20190302.tif`."""
    for scene in _folders(root):
        for folder in (folder for folder in _folders(scene) if name_without_date(folder.name) == ""):
            for path in filter(is_raster_file, sorted(folder.iterdir())):
                if path.stem.lower() == name.lower():
                    yield scene.name, path
        for _, path in _files_below(_folder_of(scene, name), is_raster_file):
            yield scene.name, path
        for path in filter(is_raster_file, sorted(scene.iterdir())):
            if (name_without_date(path.stem) or "").lower() == name.lower():
                yield scene.name, path


def _suffixed(
    root: Path, name: str, kinds: Mapping[str, Callable[[Path], bool]], *, dated: bool = False
) -> Iterator[tuple[str, Path]]:
    """Scene and file of those files in one folder whose names end or begin as a modality's: `a_rgb.tif`, `rgb_a.tif`.

    Of several modalities, that with the longest name is meant. With `dated`, those that do so only without their date.
    """
    patterns = {key: re.compile(rf"(.+)[_-]{re.escape(key)}|{re.escape(key)}[_-](.+)", re.I) for key in kinds}
    for path in filter(kinds[name], sorted(root.iterdir())):
        stem = path.stem
        if dated:
            is_whole = any(pattern.fullmatch(stem) for pattern in patterns.values())
            stem = "" if is_whole else name_without_date(stem) or ""
        if name == max((key for key in kinds if patterns[key].fullmatch(stem)), key=len, default=None):
            yield "".join(patterns[name].fullmatch(stem).groups("")), path


def _by_name(named: Iterable[tuple[str, Path]], clashes: list[str]) -> dict[str, Path]:
    """Files by their names; of two of one name the first, and a sentence in `clashes`."""
    found: dict[str, Path] = {}
    for name, path in named:
        if name in found:
            clashes.append(f"{found[name]} and {path} differ only in their suffix or case; keep the one that counts.")
        else:
            found[name] = path
    return found


def _by_scene_names(files: Mapping[str, dict[str, Path]]) -> dict[str, dict[str, Path]]:
    """Take `x_nir` and `nir_x` in a folder `nir` for `x`, if all its files are named so and no other folder's are."""
    renamed = {}
    for folder, found in files.items():
        own = re.escape(Path(folder).name)
        pattern = re.compile(rf"(.*/)?(?:{own}[_-])?([^/]+?)(?:[_-]{own})?", re.IGNORECASE)
        scenes = {"".join(pattern.fullmatch(name).groups("")): path for name, path in found.items()}
        shared = {name for other, names in files.items() if other != folder for name in names}
        is_unfit = len(scenes) < len(found) or not found.keys().isdisjoint(scenes.keys() | shared)
        renamed[folder] = found if is_unfit else scenes
    return renamed


def _folders(path: Path) -> list[Path]:
    return sorted(child for child in path.iterdir() if child.is_dir() and not child.name.startswith("."))


def _never_labelled(source: Path, scenes: Sequence[SceneFiles], modality: str) -> str:
    """The error for a modality of which nothing could be learned."""
    raster = next(path for scene in scenes if (path := scene.rasters[modality]) is not None)
    label = next(scene.label for scene in scenes if scene.label is not None)
    return (
        f"{source}: no scene has both {modality!r} and a label; {raster.relative_to(source)} and "
        f"{label.relative_to(source)} are taken for different scenes. Give the files of one scene equal "
        "stems (all files of a folder may have its name in front or behind, as in rgb/x_rgb.tif), or a folder."
    )


def _contents(root: Path) -> str:
    """What there is, for an error: folder names, and the stems in them."""
    folders = _folders(root)
    stems = sorted({path.stem for folder in folders[:20] for path in folder.iterdir() if is_raster_file(path)})
    files = f", with files such as {stems[:8]}" if stems else ""
    names = [path.name for path in folders]
    return f"the folders {names[:12]}{' ...' if len(names) > 12 else ''}{files}" if names else "no folders"


def _nothing_found(source: Path, root: Path, wanted: list[str]) -> str:
    """The error for a wrong folder, with the right one if it is near."""
    near = [*_folders(source)[:50], source.parent, source.parent.parent]
    best = max(near, key=lambda path: _num_found(path, wanted))
    return (
        f"{source} holds neither folders {wanted} nor scene folders with files of these names "
        f"(GeoTIFF, PNG, or what else GDAL reads); it holds {_contents(root)}. "
        + (f"Did you mean {best}?" if _num_found(best, wanted) else "Give the folder that holds them.")
    )


def _num_found(path: Path, wanted: list[str]) -> int:
    """How many of the wanted names a folder has, in either layout."""
    roots = [root for root, _ in _split_roots(path)]
    scenes = [scene for root in roots for scene in _folders(root)[:50]]
    stems = {file.stem for scene in scenes for file in scene.iterdir() if is_raster_file(file)}
    return sum(name in stems or any((root / name).is_dir() for root in roots) for name in set(wanted))
