"""What the README prints runs, as printed."""

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from hub_stand_in import running_hub
from tiny_models import tiny_model

from sgma_hf import SgmaImageProcessor
from sgma_hf.commands import COMMANDS, demo
from sgma_hf.commands import main as run_command
from sgma_hf.converters.writing.parquet import ParquetDatasetWriter
from sgma_hf.data.metadata import DatasetMetadata


ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SMALL_BACKBONE = {"hidden_sizes": [8, 8, 16, 16], "num_attention_heads": [1, 1, 2, 2], "mlp_ratios": [2, 2, 2, 2]}


def blocks(language, text=README):
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


def section_text(section):
    return README.split(f"## {section}\n")[1].split("\n## ")[0]


def commands(section=None):
    """The commands of a section, or of all of them."""
    text = README if section is None else section_text(section)
    lines = [line for block in blocks("bash", text) for line in block.splitlines()]
    return [shlex.split(line, comments=True) for line in lines if line.strip()]


def test_first_example_runs_as_printed_on_what_the_demo_leaves(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo, "BACKBONE", demo.BACKBONE | SMALL_BACKBONE)
    small = {"crop_size": 32, "decoder_hidden_size": 16, "use_cpu": True, "disable_tqdm": True}
    monkeypatch.setattr(demo, "TRAINING", demo.TRAINING | small)
    assert demo.main(["--output_dir", "demo_output", "--max_steps", "1", "--tiles", "7"]) == 0
    capsys.readouterr()
    example = blocks("python")[0]
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
    generator = np.random.default_rng(0)
    for index, name in enumerate("abcde"):
        label = np.kron(generator.integers(0, 3, (4, 4)), np.ones((16, 16))).astype(np.uint8)
        height = (label * 4.0 + 100).astype(np.float32)
        height[:8] = -9999
        bands = {"rgb": np.stack([label * 60 + 20] * 3), "dsm": height[None], "nir": label[None] * 80 + 5}
        for modality, values in {**bands, "label": label[None]}.items():
            if (modality, name) == ("dsm", "b"):
                continue  # a file that is missing
            path = Path("scenes") / modality / f"{name}.tif"
            path.parent.mkdir(parents=True, exist_ok=True)
            transform = rasterio.Affine(0.5, 0, 600000 + 1000 * index, 0, -0.5, 4800000)
            profile = {
                "count": len(values),
                "height": 64,
                "width": 64,
                "dtype": values.dtype.name,
                "crs": "EPSG:32631",
            }
            with rasterio.open(path, "w", driver="GTiff", transform=transform, **profile) as file:
                file.write(values)
    own = [line[1:] for line in commands("Your own rasters")]
    assert [line[0] for line in own] == ["convert-rasters", "train", "evaluate", "predict"]
    short = ["--max_steps", "1", "--per_device_train_batch_size", "2", "--use_cpu", "--report_to", "none"]
    for line in own:
        assert run_command(line + (short if line[0] == "train" else [])) == 0
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


def test_hub_section_runs_as_printed_between_two_machines(tmp_path):
    here, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
    own = {"rgb": 3, "dsm": 1, "nir": 1}
    write_rows(here / "data" / "mine", channels=own)
    write_rows(elsewhere / "data" / "thermal", channels=own | {"thermal": 1})
    model = tiny_model(modalities=list(own), modality_channels=list(own.values()), num_labels=2)
    model.save_pretrained(here / "runs" / "mine")
    SgmaImageProcessor(list(own), list(own.values()), num_labels=2).save_pretrained(here / "runs" / "mine")
    evaluate = next(line for line in commands("Your own rasters") if line[1] == "evaluate")
    push, train = commands("On the Hub")
    assert (push[:2], train[:2]) == (["sgma-hf", "push-to-hub"], ["sgma-hf", "train"])
    (example,) = blocks("python", section_text("On the Hub"))
    train += "--max_steps 1 --per_device_train_batch_size 2 --use_cpu --report_to none --disable_tqdm true".split()
    start = "from sgma_hf.commands import main\n"
    with running_hub() as hub:
        hub.run(f"{start}assert main({evaluate[1:]}) == main({push[1:]}) == 0", here)
        hub.run(f"{example}\n{start}assert main({train[1:]}) == 0", elsewhere)
    pushed, tuned = hub.model("org/sgma-mine"), hub.model("org/sgma-thermal")
    assert pushed.private and tuned.private
    assert b"model-index" in pushed.files()["README.md"]
    assert json.loads(pushed.files()["config.json"])["modalities"] == ["rgb", "dsm", "nir"]
    for name in ("config.json", "preprocessor_config.json"):
        assert json.loads(tuned.files()[name])["modalities"] == ["rgb", "dsm", "nir", "thermal"]


def test_make_targets_and_files_that_are_named_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for line in (line for line in commands() if line[0] == "make"):
        assert re.search(rf"^{line[1]}:", makefile, flags=re.MULTILINE), line
        for assignment in line[2:]:
            assert re.search(rf"^{assignment.split('=')[0]} \?=", makefile, flags=re.MULTILINE), line
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("https://") or (ROOT / target).exists(), target
    table = README.split("## Map of the repository")[1].split("##")[0]
    for name in re.findall(r"`([a-z_/]+(?:\.py|/))`", table):
        assert (ROOT / name).exists() or (ROOT / "sgma_hf" / name).exists(), name


def test_the_run_that_is_resumed_is_the_one_that_was_started():
    (started,) = (line for line in commands("Your own rasters") if line[1] == "train")
    assert [*started, "--resume_from_checkpoint", "true"] in commands("Longer runs and more processes")


def test_every_command_and_script_that_is_printed_exists():
    for line in commands():
        if line[0] == "sgma-hf":
            assert line[1] in COMMANDS, line
        elif line[0] != "make":
            script = next(word for word in line if word.endswith(".py"))
            assert (ROOT / script).is_file(), line


def test_figures_of_the_paper_are_apart_and_add_up():
    measured, reported = README.split("**Measured here**")[1].split("**Reported in the paper**")
    assert "SGMA |" not in measured
    rows = re.findall(r"^\| (\w+) \| ([\d. |]+) \|$", reported, flags=re.MULTILINE)
    assert [name for name, _ in rows] == ["MuSS", "M3L", "IMLT", "MAGIC", "SGMA"]
    for name, cells in rows:
        *combinations, average, last = (float(cell) for cell in cells.split("|"))
        assert len(combinations) == 7
        assert min(combinations) == last, name
        assert abs(np.mean(combinations) - average) < 0.02, name  # published means are rounded
