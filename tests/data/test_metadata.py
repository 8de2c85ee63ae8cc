"""What a data set says of itself."""

import json

import pytest
from tiny_dataset import make_metadata

from sgma_hf.data.metadata import DatasetMetadata


def test_features_follow_channels_and_dtypes():
    features = DatasetMetadata(["rgb", "nir", "s2"], [3, 1, 12], ["uint8", "uint16", "int16"]).features()
    assert list(features) == ["id", "rgb", "nir", "s2", "label"]
    kinds = {name: type(feature).__name__ for name, feature in features.items()}
    assert kinds == {"id": "Value", "rgb": "Image", "nir": "Image", "s2": "Value", "label": "Image"}
    assert features["s2"].dtype == "binary"


def test_features_refuse_what_cannot_be_stored():
    with pytest.raises(ValueError, match="'dsm' has dtype 'float64'"):
        DatasetMetadata(["dsm"], [1], ["float64"]).features()
    with pytest.raises(ValueError, match="expected one entry for each"):
        DatasetMetadata(["dsm", "nir"], [1, 1], ["float32"]).features()
    with pytest.raises(ValueError, match="reserved"):
        DatasetMetadata(["label"], [1], ["uint8"]).features()


def test_metadata_round_trip_and_absence(tmp_path):
    metadata = make_metadata()
    assert metadata.units == [None, None, None] and metadata.resolution is None
    metadata.resolution = 0.35
    metadata.save(tmp_path)
    assert DatasetMetadata.load(tmp_path) == metadata
    content = json.loads((tmp_path / "sgma_dataset.json").read_text())
    (tmp_path / "sgma_dataset.json").write_text(json.dumps({**content, "of_a_later_version": 1}))
    assert DatasetMetadata.load(tmp_path) == metadata
    (tmp_path / "sgma_dataset.json").write_text('{"modalities": ["rgb"]')
    with pytest.raises(ValueError, match="is no metadata"):
        DatasetMetadata.load(tmp_path)
    (tmp_path / "sgma_dataset.json").unlink()
    assert DatasetMetadata.load(tmp_path) is None


def test_metadata_lists_must_be_parallel():
    with pytest.raises(ValueError, match="nodata"):
        DatasetMetadata(["rgb", "dsm"], [3, 1], ["uint8", "float32"], nodata=[[0.0]])
    with pytest.raises(ValueError, match="1 colours for 2 classes"):
        DatasetMetadata(["rgb"], [3], ["uint8"], class_names=["a", "b"], palette=[[0, 0, 0]])
