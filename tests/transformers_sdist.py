"""transformers' own common tests, taken from the source distribution of the installed version.

They are part of the sdist on PyPI and of no wheel. `python tests/transformers_sdist.py` downloads it once and keeps
the three modules that we run in a cache outside the repository; tests only ever read that cache. Where another copy
of the `tests` folder of the same version is at hand, `SGMA_TRANSFORMERS_TESTS` names it and nothing is downloaded.
"""

import importlib
import importlib.machinery
import importlib.util
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from types import ModuleType

import transformers


FILES = ("test_modeling_common.py", "test_configuration_common.py", "test_image_processing_common.py")
PACKAGE = "transformers_common_tests"
# What those files import and the sdist lacks -> the names that they take from it.
ABSENT_MODULES = {
    "exporters.test_export": {"ExportTesterMixin": type("ExportTesterMixin", (), {})},
    "generation.test_utils": {"GenerationTesterMixin": type("GenerationTesterMixin", (), {})},
    # transformers' own table has more; it is read for configurations without sub-configurations only, unlike ours.
    "utils.test_configuration_utils": {"config_common_kwargs": {"return_dict": False, "output_hidden_states": True}},
}


def tests_folder() -> Path:
    """Folder that holds the common tests, or would if they had been fetched."""
    named = os.environ.get("SGMA_TRANSFORMERS_TESTS")
    if named:
        return Path(named)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "sgma_hf" / f"transformers-{transformers.__version__}-tests"


def missing_reason() -> str | None:
    """Why the common tests cannot run here, or None if they can."""
    folder = tests_folder()
    absent = [name for name in FILES if not (folder / name).is_file()]
    if absent:
        return f"{folder} lacks {absent[0]}; with network, `python tests/transformers_sdist.py` fetches it"
    if importlib.util.find_spec("parameterized") is None:
        return "transformers' common tests need the package `parameterized`, part of the extra `dev`"
    return None


def fetch() -> Path:
    """Download the sdist of the installed transformers and keep the common tests; nothing to do if they are there.

    Raises:
        subprocess.CalledProcessError: If pip cannot get it.
    """
    folder = tests_folder()
    if all((folder / name).is_file() for name in FILES):
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    version = transformers.__version__
    with tempfile.TemporaryDirectory() as download:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        command += ["--no-binary", "transformers", "--dest", download, f"transformers=={version}"]
        subprocess.run(command, check=True)
        (archive,) = Path(download).glob("*.tar.gz")
        with tarfile.open(archive) as members:
            for name in FILES:
                source = members.extractfile(f"transformers-{version}/tests/{name}")
                partial = folder / f".{name}.{os.getpid()}"
                partial.write_bytes(source.read())
                os.replace(partial, folder / name)  # a killed download leaves no half of a file
    return folder


def load_common_tests(name: str) -> ModuleType:
    """Import one of the common tests, with stand-ins for the modules that the sdist lacks.

    Args:
        name: Name of the module, `test_modeling_common` for instance.
    """
    _add_package(PACKAGE, [str(tests_folder())])
    for dotted, names in ABSENT_MODULES.items():
        _add_package(f"{PACKAGE}.{dotted.split('.')[0]}", [])
        module = ModuleType(f"{PACKAGE}.{dotted}")
        vars(module).update(names)
        sys.modules[module.__name__] = module
    # Reads a file of the Hub; only tests of processors that load pictures from there call it.
    hub_objects = ModuleType("fetch_hub_objects_for_ci")
    hub_objects.url_to_local_path = str
    sys.modules.setdefault(hub_objects.__name__, hub_objects)
    # test_configuration_common imports "transformers" a second time from the folder above it, which the sdist does not
    # have: what it wants is the module that is loaded already.
    import_utils = sys.modules["transformers.utils"]
    original = import_utils.direct_transformers_import
    import_utils.direct_transformers_import = lambda path, file="__init__.py": transformers
    path = list(sys.path)
    try:
        return importlib.import_module(f"{PACKAGE}.{name}")
    finally:
        import_utils.direct_transformers_import = original
        sys.path[:] = path  # test_image_processing_common appends a folder that is not there


def _add_package(name: str, search_locations: list[str]) -> None:
    if name not in sys.modules:
        spec = importlib.machinery.ModuleSpec(name, None, is_package=True)
        spec.submodule_search_locations = search_locations
        sys.modules[name] = importlib.util.module_from_spec(spec)


if __name__ == "__main__":
    print(f"transformers {transformers.__version__}: common tests in {fetch()}")
