"""`sgma-hf app`: what it refuses in one line, and the Space that it writes."""

import ast
import json
import sys
from importlib.metadata import PackageNotFoundError

import pytest
import yaml
from app_scenes import app_model, app_processor, write_app_scenes

from sgma_hf.app import space
from sgma_hf.commands.app import main


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    app_model().save_pretrained(folder)
    app_processor().save_pretrained(folder)
    return folder


@pytest.fixture
def installed(monkeypatch):
    """As if the package and gradio were installed with what they need."""
    lines = [
        "numpy<3,>=2.0",
        "rasterio<2,>=1.4.4; extra == 'geo'",
        "gradio<7,>=6.31; extra == 'app'",
        "timm; extra == 'timm'",
    ]
    monkeypatch.setattr(space, "requires", lambda name: lines)
    monkeypatch.setattr(space, "version", {"gradio": "6.31.0"}.__getitem__)


def refusal(capsys, *words):
    assert main(list(map(str, words))) == 2
    said = capsys.readouterr()
    lines = [line for line in said.err.splitlines() if line.startswith("sgma-hf app: ")]
    assert len(lines) == 1 and "Traceback" not in said.err
    return lines[0].removeprefix("sgma-hf app: ")


def test_what_cannot_be_shown_is_one_line(checkpoint, tmp_path, capsys, monkeypatch):
    assert "there is no such folder" in refusal(capsys, "--model", tmp_path / "none")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "segformer"}))
    assert "is a checkpoint of 'segformer'; expected one of SGMA" in refusal(capsys, "--model", tmp_path)
    assert refusal(capsys, "--model", checkpoint, "--port", "99999") == "`--port` is 99999; expected 1 to 65535."
    assert "give both, or neither" in refusal(
        capsys, "--model", checkpoint, "--dataset", "rows", "--assets", "label=gt"
    )
    assert "`--window` is 8" in refusal(capsys, "--model", checkpoint, "--window", "8")
    assert "--dataset" in refusal(capsys, "--model", checkpoint, "--dataset", tmp_path / "none")
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "sgma_hf.app.page", raising=False)
    said = refusal(capsys, "--model", checkpoint)
    assert said == "The page needs gradio, which is not installed: pip install 'sgma-hf[app]'."


def test_a_model_that_is_damaged_is_one_line(checkpoint, tmp_path, capsys):
    pytest.importorskip("gradio")
    for path in checkpoint.iterdir():
        content = path.read_bytes()
        (tmp_path / path.name).write_bytes(content[:100] if path.suffix == ".safetensors" else content)
    assert "cannot be loaded" in refusal(capsys, "--model", tmp_path, "--device", "cpu")


def test_a_space_holds_all_that_it_needs(checkpoint, tmp_path, installed, capsys):
    write_app_scenes(tmp_path / "scenes")
    folder = tmp_path / "space"
    title, scenes = "My: fields \N{SEEDLING}", str(tmp_path / "scenes")
    flags = ["--model", str(checkpoint), "--scenes", scenes, "--space", str(folder), "--title", title]
    assert main(flags) == 0
    assert str(folder / "app.py") in capsys.readouterr().out
    front, text = (folder / "README.md").read_text(encoding="utf-8").removeprefix("---\n").split("\n---\n")
    matter = yaml.safe_load(front)
    assert (matter["sdk"], matter["sdk_version"], matter["app_file"]) == ("gradio", "6.31.0", "app.py")
    assert {matter["colorFrom"], matter["colorTo"]} <= {*"red yellow green blue indigo purple pink gray".split()}
    assert matter["title"] == title and "models" not in matter and "--repo-type space" in text
    assert (folder / "requirements.txt").read_text().splitlines() == ["numpy<3,>=2.0", "rasterio<2,>=1.4.4"]
    source = (folder / "app.py").read_text(encoding="utf-8")
    compile(source, "app.py", "exec")
    words = ast.literal_eval(source[source.index("[") : source.index("]") + 1])
    assert words[:6] == ["--model", "model", "--scenes", "scenes", "--title", title]
    for name in ("config.json", "preprocessor_config.json", "model.safetensors"):
        assert (folder / "model" / name).read_bytes() == (checkpoint / name).read_bytes()
    assert (folder / "scenes" / "a" / "rgb.tif").is_file()
    assert (folder / "sgma_hf" / "app" / "panels.js").is_file() and not list(folder.rglob("__pycache__"))
    assert "*.safetensors filter=lfs" in (folder / ".gitattributes").read_text()
    said = refusal(capsys, "--model", checkpoint, "--space", folder)
    assert said == f"`--space {folder}` is there and not empty; name a new folder."


def test_a_space_names_what_is_on_the_hub(tmp_path, installed):
    words, origin = space._copy(tmp_path / "space", "org/model", ("--dataset", "org/rows"))
    assert words == ["--model", "org/model", "--dataset", "org/rows"]
    assert origin == {"models": ["org/model"], "datasets": ["org/rows"]}


def test_a_space_that_cannot_be_written_leaves_nothing(checkpoint, tmp_path, capsys, monkeypatch):
    def absent(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(space, "requires", lambda name: [])
    monkeypatch.setattr(space, "version", absent)
    said = refusal(capsys, "--model", checkpoint, "--space", tmp_path / "space")
    assert said == "A Space needs gradio installed: pip install 'sgma-hf[app]'."
    (tmp_path / "scenes.csv").write_text("scene,rgb\n")
    monkeypatch.setattr(space, "version", {"gradio": "6.31.0"}.__getitem__)
    said = refusal(capsys, "--model", checkpoint, "--scenes", tmp_path / "scenes.csv", "--space", tmp_path / "space")
    assert "names files elsewhere" in said
    assert not (tmp_path / "space").exists()
