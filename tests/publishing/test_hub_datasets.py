"""Datasets on a stand-in for the Hub: pushed as converters write them, read whole and streaming."""

import hashlib
import json
import shutil
import urllib.error
import urllib.request

import numpy as np
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, Features, Image, Value
from hub_stand_in import WRITE_TOKEN, running_hub

from sgma_hf.converters.writing.parquet import ParquetDatasetWriter
from sgma_hf.data.metadata import DatasetMetadata
from sgma_hf.data.rows import load_rows
from sgma_hf.publishing.push import push_dataset


pytestmark = pytest.mark.long


METADATA = DatasetMetadata(
    modalities=["rgb", "dsm", "sar"],
    modality_channels=[3, 1, 2],
    modality_dtypes=["uint8", "float32", "float32"],
    nodata=[[], [-9999.0], []],
    units=[None, "m", "dB"],
    class_names=["bare", "crop"],
    palette=[[0, 0, 0], [0, 255, 0]],
)


def make_row(index):
    generator = np.random.default_rng(index)
    images = {
        "rgb": generator.integers(0, 255, (16, 16, 3)).astype(np.uint8),
        "dsm": None if index % 2 else generator.normal(size=(16, 16)).astype(np.float32),
        "sar": generator.normal(size=(16, 16, 2)).astype(np.float32) if index % 3 else None,
    }
    label = None if index == 3 else generator.integers(0, 2, (16, 16)).astype(np.uint8)
    return images, label


def write_dataset(folder, count=4, *, max_shard_bytes=4000):
    with ParquetDatasetWriter(folder, METADATA, title="Fields", max_shard_bytes=max_shard_bytes) as writer:
        for split in ("train", "validation"):
            for index in range(count):
                writer.write(split, f"row{index}", *make_row(index))
    return folder


def digest(array):
    return None if array is None else hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


PUSH = """
from sgma_hf.commands import main
from sgma_hf.publishing.push import push_dataset

print(push_dataset(MANY, "org/fields"))
print(push_dataset(FEW, "org/fields", private=False))
push_dataset(FEW, "org/public", private=False)
try:
    push_dataset(".", "org/nothing")
except ValueError as error:
    print(error)
for folder, repo_id in ((FEW, "org/public"), (BAD_CARD, "org/bad-card"), (NO_YAML, "org/no-yaml")):
    try:
        push_dataset(folder, repo_id)
    except ValueError as error:
        print(f"{repo_id} refused: {error}")
print("exit", main(["demo-scenes", "--output", "demo", "--tiles", "3", "--tile_size", "32", "--push", "org/public"]))
demo = ["demo-scenes", "--output", "demo", "--tiles", "3", "--tile_size", "32", "--overwrite", "--push", "org/demo"]
print("exit", main(demo), main(demo))
"""
LOAD = """
import hashlib, json
import numpy as np
from datasets import get_dataset_config_names, load_dataset
from sgma_hf.data.metadata import DatasetMetadata
from sgma_hf.data.rows import decode_row, load_rows

def digest(array):
    return None if array is None else hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()

def digests(row):
    images, label = decode_row(row, ["rgb", "dsm", "sar"])
    return [digest(array) for array in (*images.values(), label)]

metadata = DatasetMetadata.load("org/fields")
rows = load_rows("org/fields", "train")
plain = load_dataset("org/fields", "default", split="train")
streamed = list(load_dataset("org/fields", "default", split="train", streaming=True))
print("RESULTS" + json.dumps({
    "units": metadata.units,
    "statistics": metadata.statistics["num_rows"],
    "configs": get_dataset_config_names("org/fields"),
    "rows": [digests(row) for row in rows],
    "nulls": [[name for name in ("rgb", "dsm", "sar", "label") if row[name] is None] for row in plain],
    "streamed nulls": [[name for name in ("rgb", "dsm", "sar", "label") if row[name] is None] for row in streamed],
    "streamed": [digests(row) for row in streamed],
}))
demo = load_dataset("org/demo", "default", split="test", streaming=True)
assert next(iter(demo))["rgb"].size == (32, 32)
for repo_id in ("org/elsewhere", "org/newer"):
    try:
        print(repo_id, DatasetMetadata.load(repo_id), load_rows(repo_id, "train"))
    except ValueError as error:
        print(repo_id, "refused:", error)
"""


@pytest.fixture(scope="module")
def pushed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("datasets")
    many = write_dataset(folder / "many", count=6)
    few = write_dataset(folder / "few", count=4, max_shard_bytes=400_000)
    for name, head in (("bad_card", "model-index: [{}]"), ("no_yaml", "license: [")):
        shutil.copytree(few, folder / name)
        (folder / name / "README.md").write_text(f"---\n{head}\n---\n# Fields\n")
    (few / ".notes").write_text(WRITE_TOKEN)
    (few / "secrets.txt").write_text(WRITE_TOKEN)
    with running_hub() as hub:
        hub.fail("org/fields/preupload", 500, skip=1)
        hub.disturb("PUT /lfs/", drop_after=300)
        hub.fail("org/demo/commit", 403)
        folders = {"MANY": many, "FEW": few, "BAD_CARD": folder / "bad_card", "NO_YAML": folder / "no_yaml"}
        start = "".join(f"{name} = {str(path)!r}\n" for name, path in folders.items())
        run = hub.run(start + PUSH, folder / "pusher")
        yield hub, run, folder


def test_a_push_brings_parquet_metadata_and_card_and_nothing_else(pushed):
    hub, run, _ = pushed
    repository = hub.dataset("org/fields")
    assert repository.private and not hub.dataset("org/public").private
    assert set(repository.files()) == {
        "README.md",
        "sgma_dataset.json",
        "data/train-00000-of-00001.parquet",
        "data/validation-00000-of-00001.parquet",
    }
    first = repository.history()[0]
    assert sum(name.startswith("data/train") for name in first) > 1  # the old shards were deleted by the second push
    assert f"{hub.endpoint}/datasets/org/fields" in run.stdout and "it is no dataset of a converter" in run.stdout
    assert WRITE_TOKEN not in run.stdout + run.stderr
    assert not any(WRITE_TOKEN.encode() in content for content in repository.files().values())
    assert hub.counted("POST /api/validate-yaml") >= 3


def test_a_private_push_never_reaches_a_public_dataset(pushed):
    hub, run, _ = pushed
    assert "org/public refused: The repository org/public is public, and a private one was asked for" in run.stdout
    assert "sgma-hf demo-scenes: The repository org/public is public" in run.stderr
    repository = hub.dataset("org/public")
    assert len(repository.history()) == 1 and not repository.private


def test_a_card_that_is_not_valid_leaves_no_repository_behind(pushed):
    hub, run, _ = pushed
    for name in ("bad-card", "no-yaml"):
        assert f"org/{name} refused: The head of " in run.stdout
        assert ("datasets", f"org/{name}") not in hub.repositories


def test_converters_push_or_say_in_one_line_why_not(pushed):
    hub, run, _ = pushed
    assert "exit 2\n" in run.stdout and "exit 2 0" in run.stdout and hub.dataset("org/demo").private
    assert "sgma-hf demo-scenes: The push to org/demo failed: the access token may not write there" in run.stderr
    assert "Traceback" not in run.stderr
    assert len(hub.dataset("org/demo").history()) == 1


def test_rows_and_nulls_come_back_bit_for_bit_whole_and_streaming(pushed):
    hub, _, folder = pushed
    row = {"id": "a", "rgb": {"bytes": None, "path": "/etc/hostname"}, "dsm": None, "sar": None, "label": None}
    features = Features(
        {"id": Value("string"), "rgb": Image(), "dsm": Image(), "sar": Value("binary"), "label": Image()}
    )
    Dataset.from_list([row], features=features.copy()).cast_column("rgb", Image(decode=False)).to_parquet(
        folder / "x.parquet"
    )
    assert pq.read_table(folder / "x.parquet").column("rgb").to_pylist()[0]["bytes"] is None
    hub.put("org/elsewhere", {"data/train-0.parquet": (folder / "x.parquet").read_bytes()}, kind="datasets")
    newer = json.loads((folder / "few" / "sgma_dataset.json").read_text()) | {"format_version": 2}
    hub.put("org/newer", {"sgma_dataset.json": json.dumps(newer).encode()}, kind="datasets")
    run = hub.run(LOAD, folder / "reader")
    results = json.loads(run.stdout.partition("RESULTS")[2].partition("\n")[0])
    expected = [make_row(index) for index in range(4)]
    arrays = [[digest(array) for array in (*images.values(), label)] for images, label in expected]
    assert results["rows"] == results["streamed"] == arrays
    nulls = [["sar"], ["dsm"], [], ["dsm", "sar", "label"]]
    assert results["nulls"] == results["streamed nulls"] == nulls
    assert (results["units"], results["statistics"], results["configs"]) == ([None, "m", "dB"], 4, ["default"])
    assert "org/elsewhere refused: Column 'rgb'" in run.stdout and "/etc/hostname" in run.stdout
    assert "format version 2" in run.stdout
    assert WRITE_TOKEN not in run.stdout + run.stderr


def test_a_folder_that_is_no_dataset_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"has no sgma_dataset\.json"):
        push_dataset(tmp_path, "org/nothing")


def test_a_local_dataset_cannot_name_files_elsewhere_either(tmp_path, monkeypatch):
    write_dataset(tmp_path / "fields")
    assert len(load_rows(tmp_path / "fields", "train")) == 4
    row = {"id": "a", "rgb": {"bytes": None, "path": "/etc/hostname"}}
    (tmp_path / "stranger").mkdir()
    features = Features({"id": Value("string"), "rgb": Image(decode=False)})
    Dataset.from_list([row], features=features).to_parquet(tmp_path / "stranger" / "train.parquet")
    with pytest.raises(ValueError, match="names the file '/etc/hostname'"):
        load_rows(tmp_path / "stranger", "train")


@pytest.mark.parametrize(
    ("method", "path"), [("PUT", "/api/models/org/x/settings"), ("POST", "/api/models/org/x/tree/main")]
)
def test_the_stand_in_reports_at_its_end_what_it_was_asked_and_does_not_know(method, path):
    with pytest.raises(AssertionError, match=f"does not know .'{method} {path}'"), running_hub() as hub:
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(urllib.request.Request(hub.endpoint + path, method=method), timeout=30)
