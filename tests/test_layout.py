"""How the repository is laid out: who may import whom, sizes and names of files."""

import ast
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest


ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "sgma_hf"
CODE_FOLDERS = ("sgma_hf", "scripts", "dataset_scripts", "tests")
MAX_FILE_LINES = 500
MAX_TEST_FILE_LINES = 650
MAX_FUNCTION_LINES = 80
MAX_SCRIPT_LINES = 150

# What travels to the Hub beside the weights; every machine that loads it has these and no more.
SHIPPED_THIRD_PARTY = {"torch", "numpy", "PIL", "transformers", "huggingface_hub"}
# Third-party module -> the only rooms of ours that may import it.
CONFINED = {
    "rasterio": {"rasters"},
    "pyogrio": {"rasters"},
    "shapely": {"rasters"},
    "matplotlib": {"visualization"},
    "gradio": {"app"},
    "torchvision": set(),
    "timm": set(),
}
# From the ground up: a room imports itself and rooms before it, never one behind it.
ROOMS = [
    "model",
    "data",
    "visualization",
    "rasters",
    "publishing",
    "prediction",
    "evaluation",
    "training",
    "comparison",
    "cost",
    "converters",
    "app",
    "commands",
]
# Room -> rooms before it that it has no business with all the same.
APART = {"cost": {"comparison"}, "converters": {"prediction", "evaluation", "training", "comparison", "cost"}}
FLAT_ROOMS = {"model", "commands"}  # one flat folder by need, and one file per command
MAX_FOLDER_FILES = 12


def _python_files(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def _module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {_module_name(path): path for path in _python_files("sgma_hf")}


def _room(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def _is_shipped(module: str) -> bool:
    return _room(module) == "model" and module != "sgma_hf.model"


def _imports(path: Path, *, top_level_only: bool = False) -> set[str]:
    """Absolute names of all modules that a file imports; `from x import y` gives x, and x.y where that is a module."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    package = _module_name(path).split(".")
    if path.name != "__init__.py":
        package = package[:-1]
    found = set()
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            found.add(source)
            found.update(f"{source}.{alias.name}" for alias in node.names if f"{source}.{alias.name}" in MODULES)
    return found


def _ours(path: Path) -> set[str]:
    return {name for name in _imports(path) if name in MODULES}


def test_shipped_files_import_flat_siblings_and_what_every_machine_has():
    shipped = {name: path for name, path in MODULES.items() if _is_shipped(name)}
    assert "sgma_hf.model.modeling_sgma" in shipped
    for name, path in shipped.items():
        assert path.parent == PACKAGE / "model", f"{name} is shipped to the Hub, which knows one flat folder"
        assert name.endswith("_sgma"), f"{name} lies beside other people's files on the Hub; call it {name}_sgma"
        # The Hub's tools find relative imports line by line with this pattern, in docstrings too.
        for line in re.findall(
            r"^[ \t]*(?:import|from)[ \t]+\..*$", path.read_text(encoding="utf-8"), flags=re.MULTILINE
        ):
            assert re.match(r"^from \.\w+_sgma import ", line), f"{name}: {line!r} does not travel to the Hub"
        for imported in _imports(path):
            root = imported.split(".")[0]
            if root == "sgma_hf":
                assert imported in shipped, f"{name} imports {imported}, which is not shipped"
            else:
                assert root in SHIPPED_THIRD_PARTY | sys.stdlib_module_names, f"{name} imports {imported}"


def test_processor_works_without_the_model():
    needed, waiting = set(), ["sgma_hf.model.image_processing_sgma"]
    while waiting:
        name = waiting.pop()
        needed.add(name)
        waiting.extend(_ours(MODULES[name]) - needed)
    assert "sgma_hf.model.modeling_sgma" not in needed


def test_imports_run_downwards():
    assert {_room(name) for name in MODULES} - {""} == set(ROOMS)
    for name, path in MODULES.items():
        if name == "sgma_hf":
            continue
        room = _room(name)
        for imported in _ours(path):
            if imported == "sgma_hf":
                assert room == "commands", f"{name} imports the package's own front door"
                continue
            other = _room(imported)
            assert ROOMS.index(other) <= ROOMS.index(room), f"{name} imports {imported}, a room above it"
            assert other not in APART.get(room, ()), f"{name} imports {imported}; {room} does without {other}"


def test_the_root_is_a_front_door_and_rooms_are_small():
    assert {path.name for path in PACKAGE.iterdir() if path.is_file()} == {"__init__.py", "py.typed"}
    for folder in {path.parent for path in MODULES.values()} - {PACKAGE / room for room in FLAT_ROOMS}:
        names = [path.name for path in folder.iterdir() if path.is_file() and path.name != "__init__.py"]
        assert len(names) <= MAX_FOLDER_FILES, f"{folder.relative_to(ROOT)} has {len(names)} files"


def test_imports_make_no_cycle():
    waiting = {name: _ours(path) - {name, "sgma_hf"} for name, path in MODULES.items()}
    # a submodule's own package is imported before it, whatever it holds
    waiting = {name: {other for other in needs if not name.startswith(other + ".")} for name, needs in waiting.items()}
    while waiting:
        free = {name for name, needs in waiting.items() if not needs & waiting.keys()}
        assert free, f"import cycle among {sorted(waiting)}"
        waiting = {name: needs for name, needs in waiting.items() if name not in free}


def test_optional_and_unwanted_packages_are_imported_in_one_place_only():
    for path in _python_files("sgma_hf", "scripts", "dataset_scripts"):
        roots = {name.split(".")[0] for name in _imports(path)}
        for package, allowed in CONFINED.items():
            own = _room(_module_name(path)) in allowed
            assert own or package not in roots, f"{path.relative_to(ROOT)} imports {package}"


def test_no_file_and_no_function_is_too_long():
    for path in _python_files(*CODE_FOLDERS):
        text = path.read_text(encoding="utf-8")
        limit = MAX_TEST_FILE_LINES if path.is_relative_to(ROOT / "tests") else MAX_FILE_LINES
        assert text.count("\n") <= limit, f"{path.relative_to(ROOT)} has {text.count(chr(10))} lines"
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                lines = node.end_lineno - node.lineno + 1
                assert lines <= MAX_FUNCTION_LINES, f"{path.relative_to(ROOT)}: {node.name} has {lines} lines"


def test_scripts_are_thin():
    for path in _python_files("scripts", "dataset_scripts"):
        assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_SCRIPT_LINES, path


def test_no_file_has_a_name_that_says_nothing():
    forbidden = {"utils", "util", "helpers", "helper", "common", "constants", "misc", "registry", "factory"}
    for path in _python_files(*CODE_FOLDERS):
        assert path.stem not in forbidden and not path.stem.startswith("base_"), path.relative_to(ROOT)


def test_package_prints_only_in_its_commands_and_leaves_nothing_undone():
    for name, path in MODULES.items():
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"\b(TODO|FIXME|XXX)\b", text), name
        if not name.startswith("sgma_hf.commands"):
            calls = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
            assert not any(isinstance(call.func, ast.Name) and call.func.id == "print" for call in calls), name


def test_wheel_holds_the_package_and_nothing_else(tmp_path):
    pytest.importorskip("build")
    tree = tmp_path / "tree"
    ignored = {".venv", "build", "dist", "__pycache__"}
    data = [
        PACKAGE / name for name in ("py.typed", "publishing/model_card_template.md", "prediction/report/page.html")
    ]
    data += [*(PACKAGE / "commands" / "recipes").glob("*.yaml"), *(PACKAGE / "app").glob("panels.*s")]
    for path in [*_python_files(*CODE_FOLDERS), *ROOT.glob("*.*"), ROOT / "LICENSE", *data]:
        relative = path.relative_to(ROOT)
        if path.is_file() and not ignored & set(relative.parts):
            (tree / relative).parent.mkdir(parents=True, exist_ok=True)
            (tree / relative).write_bytes(path.read_bytes())
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(tree)]
    run = subprocess.run(build, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    (wheel,) = tmp_path.glob("*.whl")
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    expected = {path.relative_to(ROOT).as_posix() for path in [*_python_files("sgma_hf"), *data]}
    assert names == expected


def test_console_command_lists_its_commands_and_refuses_others(capsys):
    from sgma_hf.commands import COMMANDS, main

    assert main(["--help"]) == 0
    listed = capsys.readouterr().out
    assert all(f"  {name} " in listed for name in COMMANDS)
    assert main(["fly"]) == 2
    assert capsys.readouterr().err == "sgma-hf: there is no command fly; `sgma-hf --help` lists them\n"
    assert main(["trian"]) == 2
    assert capsys.readouterr().err == "sgma-hf: there is no command trian; did you mean train?\n"
    assert main([]) == 2
    assert "no command given" in capsys.readouterr().err


def test_every_command_exists_and_scripts_only_call_it():
    from sgma_hf.commands import COMMANDS

    for name, (module, _) in COMMANDS.items():
        assert module in MODULES, f"{name}: {module} does not exist"
    for path in _python_files("scripts"):
        assert f"sgma_hf.commands.{path.stem}" in _imports(path)
        example = re.search(r"python (scripts/\w+\.py)", ast.get_docstring(ast.parse(path.read_text())))
        assert example and example[1] == f"scripts/{path.name}"


def test_cards_of_published_data_sets_import_where_they_always_did():
    from sgma_hf.dataset_schema import decode_row as former_decode_row
    from sgma_hf.dataset_schema import load_rows as former_load_rows

    from sgma_hf import decode_row, load_rows

    assert former_decode_row is decode_row and former_load_rows is load_rows
