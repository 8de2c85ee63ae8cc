import json

import numpy as np
import pytest
import torch
from tiny_models import spread_weights, tiny_model

from sgma_hf import SgmaImageProcessor
from sgma_hf.commands.benchmark import main
from sgma_hf.cost.timing import FUSIONS, VARIANTS


pytestmark = pytest.mark.long


TINY = ["--backbone_config", "pvt_v2_b0", "--size", "32", "--repeats", "1", "--decoder_hidden_size", "16"]


def test_benchmark_compares_every_variant_and_checks_the_combinations(tmp_path, capsys):
    arguments = [*TINY, "--num_modalities", "2", "--no_memory", "--output", str(tmp_path / "figures.json")]
    assert main(arguments) == 0
    figures = json.loads((tmp_path / "figures.json").read_text())
    printed = capsys.readouterr().out
    assert figures["subsets"]["combinations_agree_in_float64"] is True
    assert list(figures["time"]["training"]["seconds"]) == list(VARIANTS)
    assert list(figures["time"]["inference"]["seconds"]) == list(FUSIONS)
    for kind in ("training", "inference"):
        seconds, ratios = figures["time"][kind]["seconds"], figures["time"][kind]["to_backbone"]
        # one round: the median of its ratios is the ratio of its seconds
        assert ratios["SGMA"] == pytest.approx(seconds["SGMA"] / seconds["bare backbone"])
        assert all(f"| {name} | {1000 * value:.1f} |" in printed for name, value in seconds.items())
        ours = figures["time"][kind]["to_sgma"]["SGMA with adapters and Dice"]
        assert ours == pytest.approx(seconds["SGMA with adapters and Dice"] / seconds["SGMA"])
        assert f"{'training step' if kind == 'training' else kind} {ours:.3f}" in printed
    loading = figures["loading"]
    assert loading["loading_to_compute"] == pytest.approx(loading["batch_seconds"] / loading["step_seconds"])
    # b0, two modalities: 2 x (179 C + C^2) and 8 C^2 and K C, over C = 32, 64, 160, 256
    assert figures["parameters"]["added by SGF"] == 2 * (179 * 512 + 96256) + 8 * 96256 + 5 * 512
    assert figures["memory"] is None and "sweep" not in figures


def test_figures_name_the_device_that_they_were_measured_on(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sgma_hf.commands.benchmark.choose_device", lambda name: name)  # there need not be a GPU
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"a GPU at {device}")
    monkeypatch.setattr(
        "sgma_hf.commands.benchmark_sections.measure_sections",
        lambda args, case: [({"device of the models": case.device}, "")],
    )
    assert main(["--device", "cuda:1", "--output", str(tmp_path / "figures.json")]) == 0
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert (figures["machine"]["processor"], figures["device of the models"]) == ("a GPU at cuda:1", "cuda:1")
    assert capsys.readouterr().out.startswith("a GPU at cuda:1, torch ")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--device", "nosuch"], "`--device nosuch` cannot be used: "),
        (["--repeats", "0"], "`--repeats` is 0; expected at least 1."),
        (["--overlap_rasters", "rgb=a.tif"], "`--overlap_rasters` is the scene for an `--overlap_model`; name that"),
        (["--raster_throughput", "--bf16", "--gaps"], "`--raster_throughput` measures that alone, without `--bf16`, "),
        (
            ["--overlap_model", "m", "--raster_throughput"],
            "`--overlap_model` measures that alone, without `--raster_throughput`; leave one of the two out.",
        ),
        (["--overlap_model", "/nowhere/m"], "--overlap_model /nowhere/m: there is no such folder"),
    ],
)
def test_what_cannot_be_measured_is_one_line(flags, message, capsys):
    assert main(flags) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"sgma-hf benchmark: {message}") and said.count("\n") == 1


def test_sweep_varies_one_number_at_a_time(tmp_path, capsys):
    arguments = [*TINY, "--num_modalities", "2", "--no_memory", "--sweep", "--sweep_repeats", "1"]
    arguments += ["--sweep_modalities", "1", "--sweep_labels", "25", "--sweep_sizes", "64", "--sweep_dates", "3"]
    assert main([*arguments, "--output", str(tmp_path / "figures.json")]) == 0
    sweep = json.loads((tmp_path / "figures.json").read_text())["sweep"]
    points = [{"num_modalities": 1}, {"num_labels": 25}, {"size": 64}]
    # of two modalities three cannot be present
    others = [{"num_present": 1}, {"num_present": 2}, {"num_dates": 3}, *({"logits_stride": n} for n in (4, 2, 1))]
    assert [figures["point"] for figures in sweep] == points + others
    assert all(figures["inference"]["to_mean_fusion"]["mean fusion"] == 1 for figures in sweep)
    printed = capsys.readouterr().out
    assert all(f"\n| {name} {value} | " in printed for point in points for name, value in point.items())


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
    assert main([*arguments, "--overlap_rasters", f"rgb={tmp_path / 'rgb.npy'}"]) == 2
    assert "sgma-hf benchmark: The scene has 32 x 40 pixels; tiles of 32 need 32 x 64" in capsys.readouterr().err


def test_share_of_the_bare_throughput_is_reported(tmp_path, capsys):
    pytest.importorskip("rasterio")
    arguments = [*TINY, "--num_modalities", "2", "--batch_size", "2", "--raster_throughput", "--raster_tiles", "3"]
    assert main([*arguments, "--output", str(tmp_path / "figures.json")]) == 0
    figures = json.loads((tmp_path / "figures.json").read_text())["raster_throughput"]
    # tiles of 32 start every 24 pixels: 0, 24, 48, and the scene ends at 80
    assert (figures["tiles"], figures["megapixels"]) == (9, 0.0064)
    share = figures["model_seconds"] / figures["raster_seconds"]
    assert figures["throughput_share"] == pytest.approx(share) and 0 < share
    assert f"{share:.1%} of the bare model's" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["figures.json"]
