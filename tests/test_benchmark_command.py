import json

import numpy as np
import pytest
from tiny_models import spread_weights, tiny_model

from sgma_hf import SgmaImageProcessor
from sgma_hf.commands.benchmark import main


def test_benchmark_reports_every_ratio_and_checks_the_combinations(tmp_path, capsys):
    arguments = ["--backbone_config", "pvt_v2_b0", "--size", "32", "--repeats", "1", "--decoder_hidden_size", "16"]
    assert main([*arguments, "--num_modalities", "2", "--output", str(tmp_path / "figures.json")]) == 0
    figures = json.loads((tmp_path / "figures.json").read_text())
    printed = capsys.readouterr().out
    assert figures["combinations_agree_in_float64"] is True
    assert len(figures["ratios"]) == 8 and all(ratio > 0 for ratio in figures["ratios"].values())
    assert all(name in printed for name in figures["ratios"])
    # b0, two modalities: 2 x (179 C + C^2) and 8 C^2 and K C, over C = 32, 64, 160, 256
    assert figures["parameters"]["added_by_sgf"] == 2 * (179 * 512 + 96256) + 8 * 96256 + 5 * 512


def test_disagreement_of_neighbouring_tiles_is_reported(tmp_path, capsys):
    model = spread_weights(tiny_model(modalities=["rgb", "dsm"], modality_channels=[3, 1], tile_size=32))
    model.save_pretrained(tmp_path / "model")
    SgmaImageProcessor(["rgb", "dsm"], [3, 1]).save_pretrained(tmp_path / "model")
    np.save(tmp_path / "rgb.npy", np.random.default_rng(0).integers(0, 255, (32, 100, 3)).astype(np.uint8))
    arguments = ["--overlap_model", str(tmp_path / "model"), "--output", str(tmp_path / "figures.json")]
    assert main([*arguments, "--overlap_rasters", f"rgb={tmp_path / 'rgb.npy'}"]) == 0
    figures = json.loads((tmp_path / "figures.json").read_text())["overlaps"]
    assert [figure["overlap"] for figure in figures] == [0.125, 0.25, 0.5]
    assert all(figure["places"] == 2 and 0 < figure["probability_gap"] <= 1 for figure in figures)
    assert "means over 2 pairs" in capsys.readouterr().out
    np.save(tmp_path / "rgb.npy", np.zeros((32, 40, 3), dtype=np.uint8))
    with pytest.raises(ValueError, match="tiles of 32 need 32 x 64"):
        main([*arguments, "--overlap_rasters", f"rgb={tmp_path / 'rgb.npy'}"])


def test_share_of_the_bare_throughput_is_reported(tmp_path, capsys):
    pytest.importorskip("rasterio")
    arguments = ["--backbone_config", "pvt_v2_b0", "--size", "32", "--repeats", "1", "--decoder_hidden_size", "16"]
    arguments += ["--num_modalities", "2", "--batch_size", "2", "--raster_throughput", "--raster_tiles", "3"]
    assert main([*arguments, "--output", str(tmp_path / "figures.json")]) == 0
    figures = json.loads((tmp_path / "figures.json").read_text())["raster_throughput"]
    # tiles of 32 start every 24 pixels: 0, 24, 48, and the scene ends at 80
    assert (figures["tiles"], figures["megapixels"]) == (9, 0.0064)
    share = figures["model_seconds"] / figures["raster_seconds"]
    assert figures["throughput_share"] == pytest.approx(share) and 0 < share
    assert f"{share:.1%} of the bare model's" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["figures.json"]
