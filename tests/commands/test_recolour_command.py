"""`sgma-hf recolour`: other colours of classes, in checkpoints and maps."""

import json

import numpy as np
import pytest
from raster_scenes import write_tiff
from tiny_models import tiny_model

from sgma_hf.commands import main
from sgma_hf.visualization.palette import class_palette


COLOURS = '[{"name": "water", "color": "#010203"}]'


def test_a_checkpoint_keeps_all_but_its_colours(tmp_path, capsys):
    names = ["road", "water", "tree"]
    tiny_model(num_labels=3, id2label=dict(enumerate(names))).save_pretrained(tmp_path / "model")
    file = tmp_path / "model" / "config.json"
    before, other = json.loads(file.read_text()), {path: path.stat().st_mtime_ns for path in file.parent.iterdir()}
    assert main(["recolour", str(file.parent), "--classes", COLOURS]) == 0
    assert capsys.readouterr().out == f"{file}\n"
    road, _, tree = class_palette(names)
    assert json.loads(file.read_text()) == before | {"palette": [road, [1, 2, 3], tree]}
    assert {path for path in file.parent.iterdir() if path.stat().st_mtime_ns != other[path]} == {file}


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("nowhere", "nowhere: there is no such file or folder."),
        ("empty", "has no config.json; give the folder of a checkpoint."),
        ("dsm.tif", "is no map that `sgma-hf predict` wrote."),
        ("notes.txt", "is no map that `sgma-hf predict` wrote."),
    ],
)
def test_what_has_no_colours_is_named(target, reason, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("notes")
    write_tiff(tmp_path / "dsm.tif", np.ones((1, 4, 4), np.float32))
    assert main(["recolour", target, "--classes", COLOURS]) == 2
    said = capsys.readouterr().err
    assert said.startswith("sgma-hf recolour: ") and said.endswith(f"{reason}\n") and said.count("\n") == 1


def test_nothing_is_changed_where_one_of_several_cannot_be(tmp_path, capsys):
    tiny_model(num_labels=2, id2label={0: "road", 1: "water"}).save_pretrained(tmp_path / "model")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "model").iterdir()}
    assert main(["recolour", str(tmp_path / "model"), str(tmp_path / "nowhere.tif"), "--classes", COLOURS]) == 2
    assert capsys.readouterr().out == ""
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "model").iterdir()} == before
