"""What README and the page on the Hub print runs, as printed."""

import json
from pathlib import Path

import numpy as np
import pytest
from document_blocks import SHORT_TRAINING, blocks, commands, run, section
from hub_stand_in import running_hub
from tiny_models import tiny_model
from workspace import write_scenes

from sgma_hf import SgmaImageProcessor
from sgma_hf.commands import demo
from sgma_hf.converters.writing.parquet import ParquetDatasetWriter
from sgma_hf.data.metadata import DatasetMetadata


pytestmark = pytest.mark.long


ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
HUB = (ROOT / "docs" / "hub.md").read_text(encoding="utf-8")
SMALL_BACKBONE = {"hidden_sizes": [8, 8, 16, 16], "num_attention_heads": [1, 1, 2, 2], "mlp_ratios": [2, 2, 2, 2]}


def test_first_example_runs_as_printed_on_what_the_demo_leaves(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo, "BACKBONE", demo.BACKBONE | SMALL_BACKBONE)
    small = {"crop_size": 32, "decoder_hidden_size": 16, "use_cpu": True, "disable_tqdm": True}
    monkeypatch.setattr(demo, "TRAINING", demo.TRAINING | small)
    assert demo.main(["--output_dir", "demo_output", "--max_steps", "1", "--tiles", "7"]) == 0
    capsys.readouterr()
    (_, example) = blocks(README, "python")[0]
    assert len(example.splitlines()) <= 15
    scope = {}
    exec(compile(example, "README.md", "exec"), scope)
    assert scope["label_map"].shape == (128, 128)
    assert scope["label_map"].max() < 5  # nothing of it is uncovered
    reliance = scope["reliance"].numpy()
    np.testing.assert_allclose(reliance.sum(0), 1, atol=1e-5)
    assert (reliance[1] == 0).all()
    printed = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in printed] == ["rgb", "dsm", "nir"]
    assert printed[1] == "dsm: relied on for 0%"
    assert sum(float(line.split()[-1].rstrip("%")) for line in printed) == pytest.approx(100, abs=1.5)


def test_commands_for_your_own_rasters_run_as_printed(tmp_path, monkeypatch, capsys):
    rasterio = pytest.importorskip("rasterio")
    monkeypatch.chdir(tmp_path)
    write_scenes(tmp_path)
    own = commands(section(README, "Your own rasters"))
    assert [words[1] for words in own] == ["inspect", "convert-rasters", "train", "evaluate", "predict"]
    for words in own:
        run(words)
    assert "| rgb+dsm+nir |" in capsys.readouterr().out
    assert Path("runs/mine/results.json").is_file()
    assert Path("maps/a_robustness.tif").is_file()
    with rasterio.open("maps/a.tif") as result, rasterio.open("scenes/rgb/a.tif") as reference:
        assert (result.crs, result.transform, result.shape) == (reference.crs, reference.transform, reference.shape)
        assert result.read(1).max() < 3


def write_rows(folder, *, channels):
    generator = np.random.default_rng(0)
    modalities = list(channels)
    metadata = DatasetMetadata(
        modalities=modalities,
        modality_channels=list(channels.values()),
        modality_dtypes=["uint8"] * len(modalities),
        nodata=[[] for _ in modalities],
        units=[None] * len(modalities),
        class_names=["bare", "crop"],
        palette=[[0, 0, 0], [0, 255, 0]],
    )
    with ParquetDatasetWriter(folder, metadata, title="Fields") as writer:
        for split in ("train", "validation"):
            for index in range(2):
                label = np.kron(generator.integers(0, 2, (4, 4)), np.ones((8, 8))).astype(np.uint8)
                images = {name: np.stack([label * 90 + 5] * count, -1) for name, count in channels.items()}
                writer.write(split, f"{split}{index}", images, label)


def test_the_hub_page_runs_as_printed_between_two_machines(tmp_path):
    here, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
    own = {"rgb": 3, "dsm": 1, "nir": 1}
    write_rows(here / "data" / "mine", channels=own)
    write_rows(elsewhere / "data" / "thermal", channels=own | {"thermal": 1})
    model = tiny_model(modalities=list(own), modality_channels=list(own.values()), num_labels=2)
    model.save_pretrained(here / "runs" / "mine")
    SgmaImageProcessor(list(own), list(own.values()), num_labels=2).save_pretrained(here / "runs" / "mine")
    evaluate = next(line for line in commands(section(README, "Your own rasters")) if line[1] == "evaluate")
    push, train, *_ = commands(HUB)
    assert push == commands(section(README, "On the Hub"))[0]
    assert (push[:2], train[:2]) == (["sgma-hf", "push-to-hub"], ["sgma-hf", "train"])
    example, *later = [code for _, code in blocks(HUB, "python")]
    assert len(later) == 2  # the processor and the pipeline
    train += SHORT_TRAINING.split()
    start = "from sgma_hf.commands import main\n"
    with running_hub() as hub:
        hub.run(f"{start}assert main({evaluate[1:]}) == main({push[1:]}) == 0", here)
        hub.run("\n".join([example, f"{start}assert main({train[1:]}) == 0", *later]), elsewhere)
    pushed, tuned = hub.model("org/sgma-mine"), hub.model("org/sgma-thermal")
    assert pushed.private and tuned.private
    assert b"model-index" in pushed.files()["README.md"]
    assert json.loads(pushed.files()["config.json"])["modalities"] == ["rgb", "dsm", "nir"]
    for name in ("config.json", "preprocessor_config.json"):
        assert json.loads(tuned.files()[name])["modalities"] == ["rgb", "dsm", "nir", "thermal"]
