"""The recipes of CONTRIBUTING.md run as printed."""

import ast
import importlib.util
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from comparison_fixtures import FLAGS, write_scenes
from document_blocks import SHORT_TRAINING, blocks, commands, run, section

from sgma_hf.commands import COMMANDS, compare, main, results_card
from sgma_hf.comparison.arms import ARMS
from sgma_hf.comparison.run_records import read_rows
from sgma_hf.data.metadata import DatasetMetadata
from sgma_hf.data.rows import decode_row, load_rows
from sgma_hf.model.fusion_sgma import FUSIONS


pytestmark = pytest.mark.long


TEXT = (Path(__file__).resolve().parents[1] / "CONTRIBUTING.md").read_text(encoding="utf-8")
RECIPES = [
    title for title in re.findall(r"^## (.*)$", TEXT, flags=re.MULTILINE) if blocks(section(TEXT, title), "python")
]


def load(title, name, folder, monkeypatch):
    """Import a recipe's block as the module `name`, from a file in `folder`."""
    ((_, block),) = blocks(section(TEXT, title), "python")
    path = folder / f"{name.rpartition('.')[2]}.py"
    path.write_text(block, encoding="utf-8")
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("title", RECIPES)
def test_a_recipe_runs_as_printed(title, tmp_path, monkeypatch):
    module = load(title, "sgma_hf.converters.recipe", tmp_path, monkeypatch)
    assert any(not name.startswith("__") for name in vars(module))


def write_fields(folder):
    """Three scenes of 24 x 32 pixels: b has no height, c has pixels that nobody labelled; labels by name."""
    rasterio = pytest.importorskip("rasterio")
    rng = np.random.default_rng(0)
    labels = {}
    for name in "abc":
        labels[name] = rng.integers(0 if name == "c" else 1, 3, (24, 32), dtype=np.uint8)
        rgb = rng.integers(0, 256, (3, 24, 32), dtype=np.uint8)
        bands = {"rgb": rgb, "dsm": np.full((1, 24, 32), 7.25, np.float32), "label": labels[name][None]}
        for kind, values in bands.items():
            if (name, kind) == ("b", "dsm"):
                continue
            profile = {"count": len(values), "height": 24, "width": 32, "dtype": values.dtype.name}
            transform = rasterio.Affine(0.1, 0, 600000, 0, -0.1, 4800000)
            path = folder / f"{name}_{kind}.tif"
            with rasterio.open(path, "w", driver="GTiff", crs="EPSG:32631", transform=transform, **profile) as file:
                file.write(values)
    return labels


def test_the_data_set_of_the_recipe_is_checked_converted_and_read(tmp_path, monkeypatch, capsys):
    title = "A data set of your own"
    (line,) = re.findall(r"`(\"\w+\": \(.*\)),`", section(TEXT, title))
    ((command, (module, summary)),) = ast.literal_eval(f"{{{line}}}").items()
    fields = load(title, module, tmp_path, monkeypatch)
    monkeypatch.setitem(COMMANDS, command, (module, summary))
    (tmp_path / "source").mkdir()
    labels = write_fields(tmp_path / "source")
    source, out = str(tmp_path / "source"), tmp_path / "rows"
    run(["sgma-hf", command, "--source", source, "--check", "--num_proc", "1"])
    assert "fields: complete and sound" in capsys.readouterr().out
    run(["sgma-hf", command, "--source", source, "--output", str(out), "--tile_size", "16", "--num_proc", "1"])

    train, validation = load_rows(out, "train"), load_rows(out, "validation")
    assert (len(train), len(validation)) == (8, 4)
    assert {row["id"][0] for row in train if row["dsm"] is None} == {"b"}
    images, label = decode_row(validation[0], ["rgb", "dsm"])
    assert images["rgb"].shape == (16, 16, 3) and (images["dsm"] == 7.25).all()
    np.testing.assert_array_equal(label, labels["c"][:16, :16] - np.uint8(1))
    assert {0, 1, 255} == set(np.unique(label))
    assert DatasetMetadata.load(out).nodata == [[], [-9999.0]]
    card, description = (out / "README.md").read_text(), fields.Fields.description
    for said in (description.terms, description.citation, *(statement for statement, _ in description.facts)):
        assert said in card

    (tmp_path / "source" / "c_rgb.tif").unlink()
    assert fields.main(["--source", source, "--output", str(tmp_path / "other")]) == 2
    assert "split validation: 0 of 1 published scenes are there. Get fields.zip" in capsys.readouterr().err


def test_the_reader_of_a_data_set_is_short():
    ((_, block),) = blocks(section(TEXT, "A data set of your own"), "python")
    assert sum(bool(line.strip()) for line in block.splitlines()) <= 30


def test_the_fusion_of_the_recipe_is_trained_saved_and_scored(tmp_path, monkeypatch, capsys):
    text = section(TEXT, "A fusion of your own")
    ((_, module),) = blocks(text, "python")
    (tmp_path / "strongest.py").write_text(module, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(FUSIONS, "strongest", raising=False)  # as the recipe's own test registered it
    write_scenes("rows")
    training, evaluation = commands(text)
    try:
        assert (
            main([*training[1:], *SHORT_TRAINING.split(), "--backbone_config", "pvt_v2_b0", "--crop_size", "32"]) == 0
        )
        assert Path("runs/strongest/strongest.py").is_file()
        assert main(evaluation[1:]) == 0 and '"rgb+dsm+nir"' in Path("runs/scores.json").read_text()
        ((_, example),) = blocks(text, "py")
        exec(compile(example, "example", "exec"), {})
        assert '"fusion": "strongest"' in Path("runs/strongest/config.json").read_text()
        assert main(["--import", "nothing", "train"]) == 2
        assert "\nsgma-hf: the module 'nothing' cannot be imported: " in capsys.readouterr().err
    finally:
        sys.modules.pop("strongest", None)
        FUSIONS.pop("strongest", None)


def test_the_arm_of_the_recipe_is_trained_and_stands_in_the_card(tmp_path, monkeypatch):
    title = "A comparison arm of your own"
    arm = load(title, "sgma_hf.comparison.recipe", tmp_path, monkeypatch).arm
    monkeypatch.setitem(ARMS, arm.name, arm)
    monkeypatch.chdir(tmp_path)
    write_scenes("rows")
    training, card = commands(section(TEXT, title))
    assert compare.main([*training[2:], *FLAGS, "--max_steps", "1", "--seeds", "0"]) == 0
    (line,) = (row for row in read_rows("runs/compare.jsonl") if row["arm"] == "sgma_half_branch")
    assert line["arm_definition"] == arm.definition() and line["model_config"]["mas_loss_weight"] == 0.5
    assert set(line["losses"]) == {"loss", "loss_sgf", "loss_mas"}
    assert results_card.main(card[2:]) == 0
    assert f"| `{arm.name}` | {arm.description} | " in Path("runs/results.md").read_text()
