"""`sgma-hf demo`, in miniature: what it leaves behind, and that the parts agree with each other."""

import json

import numpy as np
import pytest
from PIL import Image
from transformers import AutoModel

from sgma_hf.commands import demo
from sgma_hf.data.codec import decode_raster
from sgma_hf.data.rows import load_rows


pytestmark = pytest.mark.long


COMBINATIONS = ["rgb", "dsm", "nir", "rgb+dsm", "rgb+nir", "dsm+nir", "rgb+dsm+nir"]


@pytest.fixture
def small_training(monkeypatch):
    backbone = {"hidden_sizes": [8, 8, 16, 16], "num_attention_heads": [1, 1, 2, 2], "mlp_ratios": [2, 2, 2, 2]}
    training = {"crop_size": 32, "per_device_train_batch_size": 2, "decoder_hidden_size": 16}
    monkeypatch.setattr(demo, "BACKBONE", demo.BACKBONE | backbone)
    monkeypatch.setattr(demo, "TRAINING", demo.TRAINING | training | {"use_cpu": True, "disable_tqdm": True})


def test_demo_trains_evaluates_reloads_predicts_and_draws(small_training, tmp_path, capsys):
    out = tmp_path / "demo_output"
    assert demo.main(["--output_dir", str(out), "--max_steps", "2", "--tiles", "27", "--seed", "3"]) == 0
    printed = capsys.readouterr().out

    results = json.loads((out / "results.json").read_text())
    assert list(results["combinations"]) == COMBINATIONS
    pixels = {scores["pixels"] for scores in results["combinations"].values()}
    assert pixels == {4 * 128 * 128}  # 15 % of 27 tiles
    scores = [results["combinations"][name]["miou"] for name in COMBINATIONS]
    assert results["average_miou"] == pytest.approx(np.mean(scores))
    assert {key: results["demo"][key] for key in ("max_steps", "tiles", "seed")} == {
        "max_steps": 2,
        "tiles": 27,
        "seed": 3,
    }
    assert set(results["demo"]["seconds"]) == {"demo-scenes", "train", "evaluate", "predict", "all"}

    for name in COMBINATIONS:
        assert f"| {name} | {100 * results['combinations'][name]['miou']:.2f} |" in printed
    assert f"Picture: {out / 'demo.png'}" in printed
    for command in ("demo-scenes", "train", "evaluate", "predict"):
        assert f"\n$ sgma-hf {command} " in printed
    assert "256 x 256 pixels from rgb, nir; missing: dsm" in printed

    with Image.open(out / "demo.png") as picture:
        assert picture.width > 1000 and len(picture.convert("RGB").getcolors(maxcolors=2**24)) > 1000
    rows = load_rows(str(out / "dataset"), "test")
    with Image.open(out / "scene" / "nir.png") as scene:
        third = decode_raster(rows[2]["nir"])  # of the four tiles: bottom left
        np.testing.assert_array_equal(np.asarray(scene)[128:, :128], third)

    model = AutoModel.from_pretrained(out / "model")
    assert model.config.id2label[4] == "car"
    ids = np.asarray(Image.open(out / "map.png"))
    assert ids.shape == (256, 256) and ids.max() < 5
    color = np.asarray(Image.open(out / "map_color.png"))
    np.testing.assert_array_equal(color[..., :3], np.array(model.config.palette)[ids])
    robustness = ["map_robustness_nir.png", "map_robustness_rgb.png"]
    maps = ["map.png", "map_color.png", "map_legend.png", *robustness]
    assert results["demo"]["prediction_with_a_modality_missing"] == maps


def test_demo_stops_where_a_step_fails(small_training, tmp_path, capsys):
    assert demo.main(["--output_dir", str(tmp_path / "out"), "--tiles", "2"]) == 2
    error = capsys.readouterr().err
    assert "2 tiles cannot fill the splits" in error
    assert "`sgma-hf demo-scenes` failed with status 2" in error
    assert not (tmp_path / "out" / "demo.png").exists()


def test_few_tiles_show_one_tile_instead_of_a_scene(small_training, tmp_path, capsys):
    out = tmp_path / "out"
    assert demo.main(["--output_dir", str(out), "--max_steps", "1", "--tiles", "7"]) == 0
    assert "128 x 128 pixels from rgb, nir" in capsys.readouterr().out
    assert (out / "demo.png").exists()
