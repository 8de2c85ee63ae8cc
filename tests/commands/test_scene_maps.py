"""`sgma-hf predict --scenes`: what it says, its status, and how it refuses."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from file_server import serve
from PIL import Image
from raster_scenes import write_tiff
from tiny_dataset import write_dataset
from tiny_models import spread_weights, tiny_model

from sgma_hf.commands.predict import main
from sgma_hf.model.image_processing_sgma import SgmaImageProcessor


pytest.importorskip("rasterio")

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    model = spread_weights(tiny_model()).eval()
    model.save_pretrained(folder)
    SgmaImageProcessor(model.config.modalities, model.config.modality_channels).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def scenes(tmp_path):
    """Colours and heights of a and b, colours of c alone."""
    generator = np.random.default_rng(0)
    for name, modalities in {"a": ("rgb", "dsm"), "b": ("rgb", "dsm"), "c": ("rgb",)}.items():
        (tmp_path / "scenes" / name).mkdir(parents=True)
        for modality in modalities:
            values = generator.uniform(100, 120, (1, 40, 48)).astype(np.float32)
            if modality == "rgb":
                values = generator.integers(1, 255, (3, 40, 48)).astype(np.uint8)
            write_tiff(tmp_path / "scenes" / name / f"{modality}.tif", values)
    return tmp_path / "scenes"


def predict(checkpoint, source, output, *more):
    return main(["--model", checkpoint, "--scenes", str(source), "--output", str(output), *more, "--device", "cpu"])


def table(folder):
    with open(folder / "summary.csv", newline="") as file:
        return {row["scene"]: row for row in csv.DictReader(file)}


def test_maps_the_table_and_a_scene_that_fails(checkpoint, scenes, tmp_path, capsys):
    (scenes / "d").mkdir()
    (scenes / "d" / "rgb.tif").write_bytes(b"no raster")
    output = tmp_path / "maps"
    assert predict(checkpoint, scenes, output, "--extras", "agreement") == 1
    said = capsys.readouterr()
    assert "3 of 4 scenes have a map" in said.out and "least certain: " in said.out and "ha" in said.out
    assert "d: Cannot read" in said.err and "failed: d; the table says why" in said.err
    names = ["a.tif", "a_agreement.tif", "b.tif", "b_agreement.tif", "c.tif"]
    assert [path.name for path in sorted(output.glob("*.tif"))] == names
    rows = table(output)
    assert [row["missing"] for row in rows.values()] == ["sar", "sar", "dsm sar", "dsm sar"]
    assert float(rows["a"]["reliance_rgb"]) + float(rows["a"]["reliance_dsm"]) == pytest.approx(1, abs=1e-6)
    assert rows["a"]["agreement_rgb"] and not rows["c"]["agreement_rgb"] and not rows["d"]["map"]
    (scenes / "d" / "rgb.tif").unlink()
    assert predict(checkpoint, scenes, output, "--extras", "agreement", "--resume") == 0
    assert "3 of 3 scenes have a map" in capsys.readouterr().out
    known = json.loads((output / ".scenes" / "command.json").read_text())
    assert known["checkpoint"] == checkpoint and known["command"].startswith("sgma-hf predict --model ")
    assert known["command"].endswith(" --extras agreement --resume --device cpu")


def test_shards_share_the_scenes_and_the_last_one_knows_all(checkpoint, scenes, tmp_path, capsys):
    output = tmp_path / "maps"
    assert predict(checkpoint, scenes, output, "--shard", "2/2") == 0
    assert "1 of 3 scenes have a map, 2 not yet" in capsys.readouterr().out
    assert [path.name for path in output.glob("*.tif")] == ["b.tif"]
    assert predict(checkpoint, scenes, output, "--shard", "1/2") == 0
    assert list(table(output)) == ["a", "b", "c"]


@pytest.mark.long
def test_processes_of_a_launch_end_together_also_where_a_scene_fails(checkpoint, scenes, tmp_path):
    (scenes / "0").mkdir()
    (scenes / "0" / "rgb.tif").write_bytes(b"no raster")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    arguments = ["--model", checkpoint, "--scenes", str(scenes), "--output", str(tmp_path / "maps"), "--device", "cpu"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    script = [str(ROOT / "scripts" / "predict.py"), *arguments]
    run = subprocess.run([*launcher, *script], capture_output=True, text=True, env=environment, check=False)
    assert run.returncode == 1
    assert run.stdout.count("3 of 4 scenes have a map") == 1  # one process speaks
    assert list(table(tmp_path / "maps")) == ["0", "a", "b", "c"]


def test_a_catalogue_on_a_server_with_a_dead_link(checkpoint, scenes, tmp_path, capsys):
    with serve(scenes) as address:
        items = [
            {
                "type": "Feature",
                "id": name,
                "properties": {},
                "assets": {"visual": {"href": f"http://{address}/{href}"}},
            }
            for name, href in {"x": "a/rgb.tif", "y": "gone.tif"}.items()
        ]
        (tmp_path / "items.json").write_text(json.dumps({"type": "FeatureCollection", "features": items}))
        output = tmp_path / "maps"
        assert predict(checkpoint, tmp_path / "items.json", output, "--assets", "rgb=visual") == 1
    assert "y: Cannot read" in capsys.readouterr().err
    rows = table(output)
    assert not rows["x"]["error"] and "gone.tif" in rows["y"]["error"]


def test_rows_of_a_data_set_become_pictures(checkpoint, tmp_path, capsys):
    write_dataset(tmp_path / "data")
    assert predict(checkpoint, tmp_path / "data", tmp_path / "maps", "--format", "png", "--allow_other_scale") == 0
    assert np.asarray(Image.open(tmp_path / "maps" / "a.png")).shape == (2, 3)
    assert not table(tmp_path / "maps")["a"]["area_ha"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--rgb", "x.tif"], "--scenes says where the rasters are; leave out --rgb"),
        (["--shard", "4/3"], "`--shard 4/3`: expected I/N with I from 1 to N"),
        (["--assets", "rgb"], "`--assets rgb`: expected NAME=KEY"),
        (["--assets", "red=rgb"], "`assets` names ['red']; the modalities are ['rgb', 'dsm', 'sar']"),
        (["--like", "scenes/a/rgb.tif"], "with --scenes it is a modality, one of rgb, dsm, sar"),
        (["--output", "map.tif"], "with --scenes it is the folder of the maps"),
    ],
)
def test_refusals(checkpoint, scenes, tmp_path, capsys, more, message):
    output = tmp_path / "maps"
    try:
        status = predict(checkpoint, scenes, output, *more)
    except SystemExit as stopped:
        status = stopped.code
    assert status == 2
    said = capsys.readouterr().err
    assert message in said and said.startswith("sgma-hf predict: ") and not output.exists()


def test_a_folder_that_cannot_be_written_and_a_model_that_cannot_be_loaded(checkpoint, scenes, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert predict(checkpoint, scenes, tmp_path / "file" / "maps") == 2
    assert "Cannot write the output" in capsys.readouterr().err
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for path in Path(checkpoint).iterdir():
        content = path.read_bytes()
        (damaged / path.name).write_bytes(content[:1000] if path.suffix == ".safetensors" else content)
    assert predict(str(damaged), scenes, tmp_path / "maps") == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("sgma-hf predict: ")]
    assert len(said) == 1 and f"--model {damaged} cannot be loaded: " in said[0]


def test_maps_take_a_folder_of_their_own(checkpoint, scenes, capsys):
    before = sorted(scenes.rglob("*"))
    assert predict(checkpoint, scenes, f"{scenes}/../{scenes.name}") == 2
    assert "is the folder of the scenes; the maps take one of their own" in capsys.readouterr().err
    assert sorted(scenes.rglob("*")) == before


def test_what_masks_hide_is_missing_in_one_scene_and_in_many(checkpoint, scenes, tmp_path, caplog):
    """The maps are those of heights that are NaN there; c has no heights, and d no mask."""
    rasterio, holed = pytest.importorskip("rasterio"), tmp_path / "holed"
    shutil.copytree(scenes / "a", scenes / "d")
    shutil.copytree(scenes, holed)
    for name in "ab":
        clouds = np.random.default_rng(3).integers(0, 4, (1, 20, 24), dtype=np.uint8)
        write_tiff(scenes / name / "scl.tif", clouds, pixel=2.0)
        with rasterio.open(holed / name / "dsm.tif", "r+") as file:
            file.write(np.where(np.kron(clouds, np.ones((1, 2, 2))) > 1, np.nan, file.read()).astype(np.float32))
    flags = ["--mask", "dsm=scl", "--mask_values", "2,3"]
    assert predict(checkpoint, scenes, tmp_path / "maps", *flags) == 0
    assert "d has no mask for dsm: nothing of it is hidden" in caplog.text
    assert predict(checkpoint, holed, tmp_path / "expected") == 0
    one = ["--model", checkpoint, "--output", str(tmp_path / "one.tif"), "--device", "cpu", *flags]
    one[one.index("dsm=scl")] = f"dsm={scenes / 'a' / 'scl.tif'}"
    assert not main([*one, "--rgb", str(scenes / "a" / "rgb.tif"), "--dsm", str(scenes / "a" / "dsm.tif")])
    maps = {path.name: path for path in (tmp_path / "maps").glob("*.tif")} | {"one.tif": tmp_path / "one.tif"}
    assert sorted(maps) == ["a.tif", "b.tif", "c.tif", "d.tif", "one.tif"]
    for name, path in maps.items():
        with rasterio.open(path) as found, rasterio.open(tmp_path / "expected" / name.replace("one", "a")) as expected:
            assert np.array_equal(found.read(), expected.read()), name
    other = [*flags[:-1], "1"]
    assert predict(checkpoint, scenes, tmp_path / "maps", *other, "--resume") == 0
    with rasterio.open(tmp_path / "maps" / "a.tif") as found, rasterio.open(tmp_path / "expected" / "a.tif") as before:
        assert not np.array_equal(found.read(), before.read())  # other values are another map
