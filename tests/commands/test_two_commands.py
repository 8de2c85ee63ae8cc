"""From the folder of the archives to a training step in two commands, as the README says it, for each benchmark."""

import json
import re

import pytest
from deliver_fixtures import write_deliver
from dfc2023_fixtures import write_shipped
from isprs_fixtures import write_potsdam, write_vaihingen
from tiny_models import PVT_V2

from sgma_hf import SgmaForSemanticSegmentation, SgmaImageProcessor
from sgma_hf.commands.train import main as train
from sgma_hf.converters import deliver, dfc2023, isprs_potsdam, isprs_vaihingen
from sgma_hf.data.metadata import DatasetMetadata


pytest.importorskip("rasterio")


pytestmark = pytest.mark.long

BENCHMARKS = {
    "isprs_potsdam": (isprs_potsdam.main, write_potsdam, [], ["rgb", "nir", "ndsm"]),
    "isprs_vaihingen": (isprs_vaihingen.main, write_vaihingen, [], ["irrg", "dsm"]),
    # the fixtures have fewer scenes than were published
    "dfc2023": (dfc2023.main, write_shipped, ["--split", "cities", "--allow_missing"], ["rgb", "ndsm", "sar"]),
    "deliver": (deliver.main, write_deliver, ["--allow_missing"], ["rgb", "depth", "event", "lidar"]),
}


@pytest.mark.parametrize("name", BENCHMARKS)
def test_from_the_folder_to_a_training_step(name, tmp_path, capsys):
    convert, write, flags, modalities = BENCHMARKS[name]
    source, out, run = write(tmp_path / "source"), tmp_path / name, tmp_path / "run"
    (tmp_path / "backbone.json").write_text(json.dumps(PVT_V2))
    assert convert(["--source", str(source), "--output", str(out), "--num_proc", "1", *flags]) == 0
    rate = r"\d+\.\d MPixel in \d+\.\d s, \d+\.\d MPixel/s, 1 process\n"
    assert re.search(rf"^converted: {rate}checked: {rate}", capsys.readouterr().out, re.MULTILINE)
    values = {
        "dataset": out,
        "output_dir": run,
        "backbone_config": tmp_path / "backbone.json",
        "decoder_hidden_size": 16,
        "max_steps": 1,
        "per_device_train_batch_size": 2,
        "crop_size": 32,
        "use_cpu": True,
        "disable_tqdm": True,
        "save_strategy": "no",
    }
    assert train([text for flag, value in values.items() for text in (f"--{flag}", str(value))]) == 0
    metadata = DatasetMetadata.load(out)
    config = SgmaForSemanticSegmentation.from_pretrained(run).config
    assert config.modalities == metadata.modalities == modalities
    assert list(config.id2label.values()) == metadata.class_names
    assert SgmaImageProcessor.from_pretrained(run).nodata == metadata.nodata
    state = json.loads((run / "trainer_state.json").read_text())
    losses = [entry["train_loss"] for entry in state["log_history"] if "train_loss" in entry]
    assert state["global_step"] == 1 and len(losses) == 1 and 0 < losses[0] < float("inf")
