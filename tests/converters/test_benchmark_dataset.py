import dataclasses
import json
import os
import runpy
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
from isprs_fixtures import tile_bands, write_potsdam, write_vaihingen
from tiny_models import tiny_model

from sgma_hf import SgmaImageProcessor, SgmaTrainer, SgmaTrainingArguments
from sgma_hf.converters.benchmarks.check import CheckReport, SceneCheck, check_scenes
from sgma_hf.converters.benchmarks.converter import (
    conversion_fingerprint,
    convert_benchmark,
    describe_rate,
    plan_shards,
    work_folder,
)
from sgma_hf.converters.benchmarks.dataset import ConversionOptions, Problem
from sgma_hf.converters.benchmarks.job_pool import run_jobs
from sgma_hf.converters.benchmarks.source_walk import unpacking_hint, walk_files
from sgma_hf.converters.isprs_potsdam import Potsdam, main
from sgma_hf.converters.isprs_vaihingen import main as vaihingen
from sgma_hf.converters.writing.card import command_for_card
from sgma_hf.converters.writing.statistics import SplitStatistics
from sgma_hf.data.incomplete_rows import RowWithholder, free_fill_value, parse_shares
from sgma_hf.data.metadata import DatasetMetadata
from sgma_hf.data.rows import decode_row, load_rows
from sgma_hf.publishing import push as publishing


pytest.importorskip("rasterio")

ROOT = Path(__file__).resolve().parents[2]
MODALITIES = ["rgb", "nir", "dsm"]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_potsdam(tmp_path_factory.mktemp("source") / "Potsdam")


def run(source, out, *flags):
    return main(["--source", str(source), "--output", str(out), "--height", "dsm", "--tile_size", "16", *flags])


def contents(folder):
    """Bytes of all files but the card, which holds the command."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "README.md"]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def absent(rows, name):
    return [row["id"] for row in rows if row[name] is None]


# incomplete rows


def metadata(**changes):
    values = {
        "modalities": ["rgb", "nir", "dsm"],
        "modality_channels": [3, 1, 1],
        "modality_dtypes": ["uint8", "uint8", "float32"],
        "nodata": [[0.0], [], []],
    }
    return DatasetMetadata(**values | changes)


def images():
    return {
        "rgb": np.full((8, 8, 3), 7, dtype=np.uint8),
        "nir": np.full((8, 8), 9, dtype=np.uint8),
        "dsm": np.full((8, 8), 30.5, dtype=np.float32),
    }


def test_shares_are_read_or_refused():
    assert parse_shares("dsm=0.3,nir=0.1", "--missing") == {"dsm": 0.3, "nir": 0.1}
    assert parse_shares("", "--missing") == {}
    for text in ("dsm", "dsm=1.5", "dsm=x", "dsm=0.1,dsm=0.2", "=0.3"):
        with pytest.raises(ValueError, match="expected NAME=SHARE"):
            parse_shares(text, "--missing")
    with pytest.raises(ValueError, match=r"--coverage names \['sar'\]"):
        RowWithholder(metadata(), {}, {"sar": 0.5}, seed=0)


def test_draws_depend_on_seed_row_and_modality_alone():
    def missing(shares, seed):
        withholder = RowWithholder(metadata(), shares, {}, seed=seed)
        taken = {f"row{index}": withholder.apply(f"row{index}", images())[1] for index in range(400)}
        return {name: {row for row, names in taken.items() if name in names} for name in MODALITIES}

    both, alone = missing({"dsm": 0.3, "nir": 0.1}, 0), missing({"dsm": 0.3}, 0)
    assert both["dsm"] == alone["dsm"] and not alone["nir"]
    assert missing({"dsm": 0.3}, 1)["dsm"] != alone["dsm"]
    # 400 draws with p = 0.3: within four standard deviations of 9.2 rows
    assert abs(len(both["dsm"]) - 120) <= 37 and abs(len(both["nir"]) - 40) <= 24


def test_a_row_keeps_a_modality_that_covers_all_of_it():
    withholder = RowWithholder(metadata(), {"rgb": 1, "nir": 1}, {"dsm": 1, "rgb": 1}, seed=0)
    kept = set()
    for index in range(60):
        result, taken = withholder.apply(f"row{index}", images())
        whole = [name for name in MODALITIES if result[name] is not None and f"{name} (part)" not in taken]
        assert len(whole) == 1 and np.array_equal(result[whole[0]], images()[whole[0]])
        kept.update(whole)
    assert kept == set(MODALITIES)


def test_what_ends_inside_a_tile_is_nodata_beyond_a_line():
    withholder = RowWithholder(metadata(), {}, {"dsm": 1, "rgb": 1}, seed=3)
    result, taken = withholder.apply("row", images())
    assert taken == ["rgb (part)", "dsm (part)"]
    gone = np.isnan(result["dsm"])
    assert 0 < gone.sum() < 64 and (result["dsm"][~gone] == 30.5).all()
    black = (result["rgb"] == 0).all(axis=-1)
    assert 0 < black.sum() < 64 and (result["rgb"][~black] == 7).all()
    # each side of a line is convex: no row of pixels has it twice
    assert max(np.abs(np.diff(line.astype(int))).sum() for line in gone) <= 1
    np.testing.assert_array_equal(result["nir"], images()["nir"])


def test_value_for_no_data_is_freed_without_touching_the_rest():
    array = np.array([[[0, 0, 0], [0, 5, 0]]], dtype=np.uint8)
    np.testing.assert_array_equal(free_fill_value(array, 0), [[[1, 1, 1], [0, 5, 0]]])
    assert free_fill_value(np.array([[3]], dtype=np.uint8), 0).item() == 3
    assert free_fill_value(np.array([[255]], dtype=np.uint8), 255).item() == 254
    assert free_fill_value(None, 0) is None


def test_incomplete_training_set_is_reproducible_and_tests_stay_complete(source, tmp_path):
    flags = ["--missing", "dsm=0.3,nir=0.1", "--missing_seed", "4", "--coverage", "rgb=0.2,dsm=0.2"]
    assert run(source, tmp_path / "a", *flags, "--num_proc", "1") == 0
    assert run(source, tmp_path / "b", *flags, "--num_proc", "2") == 0
    first, second = contents(tmp_path / "a"), contents(tmp_path / "b")
    assert first == second
    rows, test = load_rows(tmp_path / "a", "train"), load_rows(tmp_path / "a", "test")
    record = json.loads((tmp_path / "a" / "conversion.json").read_text())
    assert sorted(absent(rows, "dsm")) == sorted(row for row, taken in record["withheld"].items() if "dsm" in taken)
    assert record["options"]["missing"] == {"dsm": 0.3, "nir": 0.1} and record["options"]["missing_seed"] == 4
    share = len(absent(rows, "dsm")) / len(rows)
    assert 0.2 < share < 0.4
    card = (tmp_path / "a" / "README.md").read_text()
    assert f"| `dsm` | 30% | {len(absent(rows, 'dsm'))} ({share:.1%}) | 20% |" in card and "Seed 4." in card
    assert "nothing was taken from rows of the other splits" in card
    assert "In `rgb` the value 0" in card and "are stored as 1 in all bands, in every split" in card
    ends = [row for row in rows if "dsm (part)" in record["withheld"].get(row["id"], [])]
    assert ends and all(0 < np.isnan(decode_row(row, ["dsm"])[0]["dsm"]).mean() < 1 for row in ends)
    for row in test:
        arrays, _ = decode_row(row, MODALITIES)
        # of tile 3_13 the last column of heights was never there
        rest = arrays["dsm"][:, :-1] if row["id"].startswith("3_13") else arrays["dsm"]
        assert not np.isnan(rest).any()
        assert (arrays["rgb"] > 0).any(axis=-1).all()
    declared = DatasetMetadata.load(tmp_path / "a")
    assert declared.nodata == [[0.0], [], [-9999.0]]
    missing = {
        name: part["missing_share"] for name, part in zip(MODALITIES, declared.statistics["modalities"], strict=True)
    }
    assert missing["dsm"] == share and missing["rgb"] == 0


# statistics and shards


def test_statistics_of_shards_merge_to_those_of_all_rows():
    rng = np.random.default_rng(0)
    rows = []
    for index in range(9):
        values = images() | {"dsm": rng.normal(30, 5, (8, 8)).astype(np.float32)}
        if index % 4 == 1:
            values["nir"] = None
        rows.append((values, rng.integers(0, 2, (8, 8), dtype=np.uint8) if index % 3 else None))
    described = metadata(class_names=["a", "b"])
    whole, merged = SplitStatistics(described), SplitStatistics(described)
    for first in range(0, 9, 2):
        part = SplitStatistics(described)
        for row in rows[first : first + 2]:
            part.update(*row)
            whole.update(*row)
        merged.merge_state(json.loads(json.dumps(part.state())))
    merged.merge_state(SplitStatistics(described).state())
    expected, found = whole.as_dict("train"), merged.as_dict("train")
    for one, other in zip(expected["modalities"], found["modalities"], strict=True):
        for key in one:
            np.testing.assert_allclose(other[key], one[key], rtol=1e-12, err_msg=key)
    assert expected["class_pixels"] == found["class_pixels"] and merged.unlabelled_rows == 3


def test_metadata_holds_the_statistics_of_the_training_rows(source, tmp_path):
    assert run(source, tmp_path / "out", "--tile_size", "40", "--split", "ssrs", "--num_proc", "1") == 0
    statistics = DatasetMetadata.load(tmp_path / "out").statistics
    rows = load_rows(tmp_path / "out", "train")
    values = np.concatenate([decode_row(row, ["dsm"])[0]["dsm"].ravel() for row in rows]).astype(np.float64)
    assert statistics["num_rows"] == len(rows) == 18
    np.testing.assert_allclose(statistics["modalities"][2]["mean"], [values.mean()], rtol=1e-9)
    np.testing.assert_allclose(statistics["modalities"][2]["std"], [values.std()], rtol=1e-9)
    assert sum(statistics["class_pixels"]) + statistics["ignored_pixels"] == 18 * 40 * 40


def test_shards_do_not_depend_on_processes_and_hold_whole_scenes(source):
    dataset = Potsdam(ConversionOptions(tile=16))
    scenes = dataset.find(source).scenes
    sizes = {scene.key: (40, 40) for scene in scenes}
    # 9 tiles of 16 x 16, 6 bytes each pixel
    shards = plan_shards(dataset, scenes, sizes, max_bytes=3 * 9 * 256 * 6)
    assert [len(group) for group in shards.values()] == [3] * 8 + [3] * 4 + [2]
    names = list(shards)
    assert names[0] == "train-00000-of-00008.parquet" and names[-1] == "test-00004-of-00005.parquet"
    assert [len(group) for group in plan_shards(dataset, scenes, sizes, max_bytes=1).values()] == [1] * 38


# interruptions


KILLED = """
    import os, signal, sys
    from pathlib import Path
    from sgma_hf.converters.benchmarks import converter as benchmark_converter
    from sgma_hf.converters.benchmarks.check import CheckReport, SceneCheck, check_scenes
    from sgma_hf.converters.benchmarks.dataset import ConversionOptions
    from sgma_hf.converters.benchmarks.rows import RowMaker
    from sgma_hf.converters.isprs_potsdam import Potsdam

    source, out, moment = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    kill = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    rows = RowMaker.rows
    seen = []

    def rows_until_killed(self, scene):
        seen.append(scene.name)
        for index, row in enumerate(rows(self, scene)):
            if len(seen) == 4 and index == 5:
                kill()
            yield row

    if moment == "rows":
        RowMaker.rows = rows_until_killed
    else:
        benchmark_converter.publish_folder = kill
    dataset = Potsdam(ConversionOptions(tile=16, choices={"height": "dsm"}))
    survey = dataset.find(source)
    report = CheckReport(dataset, source, survey, check_scenes(dataset, survey.scenes))
    fingerprint = benchmark_converter.conversion_fingerprint(dataset, survey.scenes)
    benchmark_converter.convert_benchmark(report, out, fingerprint=fingerprint, max_shard_bytes=1, command="same")
"""


def convert(source, out, **options):
    dataset = Potsdam(ConversionOptions(tile=16, choices={"height": "dsm"}))
    survey = dataset.find(source)
    fingerprint = conversion_fingerprint(dataset, survey.scenes)
    report = CheckReport(dataset, source, survey, check_scenes(dataset, survey.scenes))
    return convert_benchmark(report, out, fingerprint=fingerprint, max_shard_bytes=1, command="same", **options)


@pytest.mark.long
@pytest.mark.parametrize(("moment", "num_done"), [("rows", 3), ("publishing", 38)])
def test_killed_conversion_leaves_nothing_that_loads_and_goes_on(source, tmp_path, moment, num_done):
    out = tmp_path / "out"
    killed = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(KILLED), str(source), str(out), moment],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not out.exists()
    work = tmp_path / ".out.partial"
    done = sorted(work.glob("*-of-*.record"))
    assert len(done) == num_done
    if moment == "rows":
        for folder in (work, work / "dataset"):
            with pytest.raises(FileNotFoundError):
                datasets.load_dataset(str(folder))
    before = {path.name: path.stat().st_ino for path in work.rglob("[!.]*.parquet")}
    assert len(before) == num_done
    convert(source, out)
    after = {path.name: path.stat().st_ino for path in out.rglob("*.parquet")}
    assert all(after[name] == inode for name, inode in before.items())  # not written again
    convert(source, tmp_path / "fresh")
    assert contents(out) == contents(tmp_path / "fresh")
    assert (out / "README.md").read_bytes() == (tmp_path / "fresh" / "README.md").read_bytes()
    assert not work.exists()


def test_interrupted_conversion_of_other_options_begins_anew(source, tmp_path, monkeypatch):
    from sgma_hf.converters.benchmarks import converter as benchmark_converter

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(benchmark_converter, "publish_folder", stop)
        assert run(source, tmp_path / "out", "--num_proc", "1") == 130
    assert (tmp_path / ".out.partial").is_dir() and not (tmp_path / "out").exists()
    assert run(source, tmp_path / "out", "--num_proc", "1", "--missing", "dsm=0.5") == 0
    assert absent(load_rows(tmp_path / "out", "train"), "dsm")
    assert not (tmp_path / ".out.partial").exists()


def test_the_same_command_again_changes_nothing_and_another_is_refused(source, tmp_path, capsys):
    out = tmp_path / "out"
    assert run(source, out, "--num_proc", "1") == 0
    before = contents(out)
    stamp = (out / "README.md").stat().st_mtime_ns
    assert run(source, out, "--num_proc", "1") == 0
    assert "holds exactly this conversion already" in capsys.readouterr().out
    assert (out / "README.md").stat().st_mtime_ns == stamp
    assert run(source, out, "--num_proc", "1", "--classes", "6") == 2
    assert "already holds a dataset" in capsys.readouterr().err and contents(out) == before
    assert run(source, out, "--num_proc", "1", "--classes", "6", "--overwrite") == 0
    assert DatasetMetadata.load(out).class_names[-1] == "clutter"
    assert main(["--source", str(source), "--output", str(source), "--num_proc", "1"]) == 2
    assert "is or holds --source" in capsys.readouterr().err


def test_one_process_at_a_time_writes_to_a_folder(source, tmp_path):
    with work_folder(tmp_path / "out", "fingerprint", []):
        with pytest.raises(BlockingIOError, match="Another process is converting"):
            work_folder(tmp_path / "out", "fingerprint", []).__enter__()


def _square(number):
    if number == 3:
        raise ValueError("three")
    return number * number


def test_jobs_run_in_processes_and_errors_come_back():
    assert dict(run_jobs(_square, [(1,), (2,), (4,)], 2)) == {0: 1, 1: 4, 2: 16}
    with pytest.raises(ValueError, match="three"):
        list(run_jobs(_square, [(1,), (3,), (5,)], 2))
    with pytest.raises(ValueError, match="--num_proc"):
        list(run_jobs(_square, [(1,)], 0))


# what is made of it


def test_converted_rows_train_a_model(source, tmp_path):
    out = tmp_path / "out"
    assert (
        run(source, out, "--num_proc", "1", "--missing", "dsm=0.4", "--coverage", "rgb=0.3", "--tile_size", "32") == 0
    )
    described = DatasetMetadata.load(out)
    rows = load_rows(out, "train").select(range(8))
    assert absent(rows, "dsm")
    decoded = [decode_row(row, MODALITIES)[0] for row in rows]
    processor = SgmaImageProcessor.fit(decoded, MODALITIES, [3, 1, 1], nodata=described.nodata)
    batch = processor(decoded, return_tensors="pt")
    assert batch["modality_mask"].shape == (8, 3, 32, 32)  # some end inside
    model = tiny_model(modalities=MODALITIES, modality_channels=[3, 1, 1], num_labels=5).train()
    before = {name: tensor.clone() for name, tensor in model.named_parameters()}
    arguments = SgmaTrainingArguments(
        str(tmp_path / "run"), max_steps=1, per_device_train_batch_size=4, crop_size=32, use_cpu=True,
        disable_tqdm=True, save_strategy="no", report_to=[], learning_rate=1e-2,
    )  # fmt: skip
    trainer = SgmaTrainer(model, arguments, processing_class=processor, train_dataset=rows)
    assert np.isfinite(trainer.train().training_loss)
    changed = [name for name, tensor in model.named_parameters() if not torch.equal(tensor, before[name])]
    assert len(changed) > len(before) / 2


def test_card_says_what_load_dataset_and_people_need(source, tmp_path):
    from huggingface_hub import DatasetCard

    out = tmp_path / "out"
    assert run(source, out, "--num_proc", "1", "--exclude", "7_10,2_10") == 0
    card = DatasetCard.load(out / "README.md")
    head = card.data.to_dict()
    assert head["license"] == "other" and head["configs"][0]["data_files"][1]["split"] == "test"
    names = [feature["name"] for feature in head["dataset_info"]["features"]]
    assert names == ["id", "rgb", "nir", "dsm", "label"]
    said = card.text
    for expected in (
        "| 1 | building | #0000ff |",
        "| `dsm` | 1 | float32 | m | -9999, NaN |",
        "| train | 22 | 24 | 0 |",
        "- `train`: Split `official` of ISPRS 2D Semantic Labeling: Potsdam: the benchmark's 24 tiles",
        "of the same town and flight, some of them side by side",
        "Left out by request: 7_10, 2_10",
        "do not redistribute",
        "10.5194/isprsannals-I-3-293-2012",
        "torchgeo/torchgeo issue 1727",
        "python dataset_scripts/isprs_potsdam.py --source Potsdam --output out --height dsm",
        "--exclude 7_10,2_10",
    ):
        assert expected in said, expected
    assert str(tmp_path) not in said and str(source) not in said
    assert datasets.get_dataset_config_names(str(out)) == ["default"]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("--source /data/ann/Potsdam/ --output ../out --tile 16", "--source Potsdam --output out --tile 16"),
        ("--out=/data/a --sou=/data/b", "--out=a --sou=b"),  # argparse takes abbreviations
        ("--sou /data/b --push org/name", "--sou b --push org/name"),
        ("--source / --out --out", "--source / --out --out"),
    ],
)
def test_command_of_a_card_has_no_folders_of_its_author(given, told):
    assert command_for_card("python x.py", given.split(), ("--source", "--output")) == f"python x.py {told}"


def test_rate_is_in_pixels_of_the_scenes():
    assert describe_rate("checked", 72_000_000, 1.5, 2) == "checked: 72.0 MPixel in 1.5 s, 48.0 MPixel/s, 2 processes"
    assert describe_rate("converted", 0, 0.0, 1) == "converted: 0.0 MPixel in 0.0 s, 0.0 MPixel/s, 1 process"


def test_preview_shows_rows_without_converting(source, tmp_path):
    from PIL import Image

    pytest.importorskip("matplotlib")
    path = tmp_path / "preview.png"
    assert main(["--source", str(source), "--preview", str(path), "--tile_size", "16", "--missing", "nir=0.9"]) == 0
    with Image.open(path) as image:
        colors = {color for _, color in image.convert("RGB").getcolors(maxcolors=10**6)}
    assert {(0, 0, 255), (0, 255, 255), (0, 255, 0), (255, 255, 0)} <= colors  # the official ones
    assert [item.name for item in tmp_path.iterdir()] == ["preview.png"]


def test_push_tells_the_terms_before_it_makes_a_private_repository(source, tmp_path, monkeypatch, capsys):
    calls = []

    class Api:
        def create_repo(self, repo_id, **options):
            assert "do not redistribute" in capsys.readouterr().out  # said already
            calls.append(("create", repo_id, options["private"], options["repo_type"]))
            return f"https://hub/{repo_id}"

        def repo_info(self, repo_id, *, repo_type):
            return SimpleNamespace(private=True)

        def upload_folder(self, *, repo_id, folder_path, **options):
            assert "conversion.json" in options["allow_patterns"]  # which the card names
            calls.append(("upload", repo_id, Path(folder_path).name, options["repo_type"]))

    monkeypatch.setattr(publishing, "HfApi", Api)
    monkeypatch.setattr(publishing.DatasetCard, "validate", lambda self, repo_type: None)
    out = tmp_path / "out"
    assert run(source, out, "--num_proc", "1", "--push", "org/potsdam") == 0
    assert calls == [("create", "org/potsdam", True, "dataset"), ("upload", "org/potsdam", "out", "dataset")]
    assert run(source, out, "--num_proc", "1", "--push", "org/potsdam", "--public") == 0  # not converted again
    assert calls[2] == ("create", "org/potsdam", False, "dataset")
    assert "as a PUBLIC dataset" in capsys.readouterr().out or len(calls) == 4


# the command line and the folder


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ([], "nothing to do"),
        (["--check", "--push", "org/x"], "--push and --overwrite need --output"),
        (["--check", "--missing", "sar=0.5"], "--missing names ['sar']"),
        (["--check", "--tile_size", "16", "--stride", "20"], "16 pixels every 20"),
        (["--check", "--coverage", "rgb"], "expected NAME=SHARE"),
    ],
)
def test_options_that_contradict_are_refused_before_any_file_is_read(tmp_path, capsys, flags, said):
    assert main(["--source", str(tmp_path / "nowhere"), *flags]) == 2
    assert said in capsys.readouterr().err


def test_former_flags_go_on_working_and_are_not_shown(source, tmp_path, capsys):
    former = f"--out {tmp_path / 'a'} --tile 16 --num-proc 1 --missing-seed 3 --missing dsm=0.5 --height dsm"
    today = f"--output {tmp_path / 'b'} --tile_size 16 --num_proc 1 --missing_seed 3 --missing dsm=0.5 --height dsm"
    for flags in (former, today):
        assert main(["--source", str(source), *flags.split()]) == 0
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(["--help"])
    shown = capsys.readouterr().out
    assert "--output DIR" in shown and "--tile_size" in shown and "--missing_seed" in shown
    assert "--out " not in shown and "--tile " not in shown and "--missing-seed" not in shown


def test_unknown_options_of_a_data_set_are_refused():
    with pytest.raises(ValueError, match="has no split 'best'"):
        Potsdam(ConversionOptions(split="best"))
    with pytest.raises(ValueError, match="height is 'sea'"):
        Potsdam(ConversionOptions(choices={"height": "sea"}))
    with pytest.raises(ValueError, match=r"has no option \['depth'\]"):
        Potsdam(ConversionOptions(choices={"depth": "hha"}))


def test_scene_checks_survive_their_record():
    check = SceneCheck(
        [4, 5], [Problem("damaged", "x.tif", "is cut", "get it", "train/2_10")], [0, 1, 2, 3, 4], 3, True
    )
    assert SceneCheck.from_dict(json.loads(json.dumps(dataclasses.asdict(check)))) == check


def test_folders_are_walked_once_through_links_and_hidden_ones_left_alone(tmp_path):
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "deep" / "er" / "a.tif").touch()
    (tmp_path / "b.tif").touch()
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "c.tif").touch()
    (tmp_path / "x.zip").touch()
    (tmp_path / "deep" / "loop").symlink_to(tmp_path)
    found = walk_files(tmp_path)
    assert [path.name for path in found.files] == ["b.tif", "a.tif"]
    assert [path.name for path in found.archives] == ["x.zip"]
    assert f"unzip '{tmp_path / 'x.zip'}'" in unpacking_hint(found.archives, ["X.zip"])
    assert unpacking_hint(found.archives, ["y.zip"]) == ""


def test_both_sets_in_one_folder_are_told_apart(tmp_path):
    write_potsdam(tmp_path / "Potsdam", tiles=["2_10"])
    write_vaihingen(tmp_path / "Vaihingen", areas=[1])
    out = tmp_path / "out"
    flags = ["--source", str(tmp_path), "--allow_missing", "--num_proc", "1", "--output"]
    assert vaihingen([*flags, str(out)]) == 0
    assert load_rows(out, "train")["id"] == ["area1_y00000_x00000"]
    assert (
        main(["--source", str(tmp_path), "--output", str(tmp_path / "two"), "--allow_missing", "--num_proc", "1"]) == 0
    )
    images, _ = decode_row(load_rows(tmp_path / "two", "train")[0], ["rgb", "nir"])
    np.testing.assert_array_equal(images["nir"], tile_bands("2_10", 4)[..., 3])


@pytest.mark.parametrize(
    ("name", "builder"), [("isprs_potsdam", "IsprsPotsdam"), ("isprs_vaihingen", "IsprsVaihingen")]
)
def test_scripts_are_commands_and_export_the_builder(capsys, name, builder):
    script = runpy.run_path(str(ROOT / "dataset_scripts" / f"{name}.py"))
    assert issubclass(script[builder], datasets.GeneratorBasedBuilder)
    with pytest.raises(SystemExit) as finished:
        script["main"](["--help"])
    assert finished.value.code == 0
    said = capsys.readouterr().out
    for flag in ("--check", "--missing", "--coverage", "--push", "--height", "--labels", "--classes", "--num_proc"):
        assert flag in said
