"""The page as a Hugging Face Space: a folder that is ready to be pushed."""

import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import yaml
from packaging.requirements import Requirement

from ..data.whole_files import write_text


_MODEL_FILES = ("*.json", "*.safetensors", "*.py", "*.md")  # what loads a checkpoint, and its card
_LARGE_FILES = ("safetensors", "parquet", "arrow", "tif", "tiff", "png", "jpg", "npy")
_APP = '''"""A page to try a model on. `python app.py` serves it on any machine, too."""

import os
import sys

from sgma_hf.commands.app import main


if __name__ == "__main__":
    os.chdir(os.path.dirname(os.path.abspath(__file__)))
    sys.exit(main({arguments}))
'''
_CARD = """Switch modalities of a scene off, cut gaps into them, and see what the model makes of the rest, how sure it
is and what it relies on. Click a pixel to ask why it got its class. Files of your own can be looked at as well.

Written by `sgma-hf app --space`. To push it: `hf upload OWNER/NAME . --repo-type space`.
"""


def write_space(
    folder: Path, title: str, model: str, arguments: Sequence[str], *, scenes: tuple[str, str] | None
) -> list[Path]:
    """Write `app.py`, `requirements.txt`, `README.md` and all that they need.

    Args:
        folder: A new or empty folder.
        title: Of the Space.
        model: A folder, which is copied, or an id on the Hub.
        arguments: More of those of `sgma-hf app`, for `app.py`.
        scenes: Flag and value of `sgma-hf app` that name scenes. A folder is copied, an id of a data set is not.

    Returns:
        The files and folders that it holds.

    Raises:
        ValueError: If there is something in the folder, or the scenes are a file that names others.
        ImportError: If gradio is missing, or this package is not installed.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"`--space {folder}` is there and not empty; name a new folder.")
    if scenes is not None and Path(scenes[1]).is_file():
        raise ValueError(f"`{' '.join(scenes)}` names files elsewhere, which a Space does not have; give a folder.")
    try:
        needed, gradio = _requirements(), version("gradio")
    except PackageNotFoundError as error:
        raise ImportError(f"A Space needs {error.name} installed: pip install 'sgma-hf[app]'.") from error
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as staging:
        space = Path(staging) / "space"
        words, origin = _copy(space, model, scenes)
        matter = {
            "title": title,
            "emoji": "🛰️",
            "colorFrom": "green",
            "colorTo": "blue",
            "sdk": "gradio",
            "sdk_version": gradio,
            "python_version": f"{sys.version_info.major}.{sys.version_info.minor}",
            "app_file": "app.py",
            "fullWidth": True,
            **origin,
            "tags": ["remote-sensing", "image-segmentation", "missing-modalities"],
        }
        front = yaml.safe_dump(matter, sort_keys=False, allow_unicode=True)
        write_text(space / "README.md", f"---\n{front}---\n\n# {title}\n\n{_CARD}")
        write_text(space / "app.py", _APP.format(arguments=json.dumps([*words, *arguments], ensure_ascii=False)))
        write_text(space / "requirements.txt", "".join(f"{line}\n" for line in needed))
        large = (f"*.{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in _LARGE_FILES)
        write_text(space / ".gitattributes", "".join(large))
        space.rename(folder)
    return sorted(folder.iterdir())


def _copy(space: Path, model: str, scenes: tuple[str, str] | None) -> tuple[list[str], dict[str, list[str]]]:
    """Copy the package and what is here; returns the arguments that name it there, and the ids that were named."""
    package = Path(__file__).parents[1]
    shutil.copytree(package, space / package.name, ignore=shutil.ignore_patterns("__pycache__"))
    words, origin = ["--model", model], {"models": [model]}
    if Path(model).is_dir():
        words, origin = ["--model", "model"], {}
        (space / "model").mkdir()
        for path in (path for pattern in _MODEL_FILES for path in Path(model).glob(pattern)):
            shutil.copy(path, space / "model")
    if scenes is not None and Path(scenes[1]).is_dir():
        shutil.copytree(scenes[1], space / "scenes")
        words += [scenes[0], "scenes"]
    elif scenes is not None:
        words += scenes
        origin["datasets"] = [scenes[1]]
    return words, origin


def _requirements() -> list[str]:
    """What the package needs for the page and for rasters, but gradio, which a Space has."""
    found = []
    for line in map(Requirement, requires("sgma-hf") or ()):
        is_needed = line.marker is None or any(line.marker.evaluate({"extra": extra}) for extra in ("", "app", "geo"))
        if is_needed and line.name != "gradio":
            found.append(f"{line.name}{line.specifier}")
    return found
