"""MultiSenGE: from a folder laid out as published to rows of series."""

import dataclasses

import numpy as np
import pytest
from converted_rows import assert_streams_the_same, decoded
from multisenge_fixtures import NOT_THERE, PATCHES, SIZE, values_of, write_multisenge, write_raster

from sgma_hf.converters.series import multisenge
from sgma_hf.converters.series.multisenge import CLASSES, MULTISENGE, MultisengeReader, stored_as
from sgma_hf.data.metadata import DatasetMetadata
from sgma_hf.model.dates_sgma import to_days


@pytest.fixture(autouse=True)
def as_published(monkeypatch):
    """The tiny set is the whole one."""
    protocol = dataclasses.replace(MULTISENGE.splits["tiles"], total=len(PATCHES))
    monkeypatch.setattr(MultisengeReader, "description", dataclasses.replace(MULTISENGE, splits={"tiles": protocol}))


@pytest.fixture
def source(tmp_path):
    return write_multisenge(tmp_path / "MultiSenGE")


def run(source, *arguments):
    return multisenge.main(["--source", str(source), "--num_proc", "1", *map(str, arguments)])


def test_dated_files_become_series_and_tiles_are_the_splits(source, tmp_path, capsys):
    assert run(source, "--output", tmp_path / "out") == 0
    said = capsys.readouterr().out
    assert f"of the images that it lists, 4 are not there, such as 31TFN_{NOT_THERE}_S2_4626_514.tif" in said
    splits = {
        "train": ["31TFN_4626_514"],
        "validation": ["31UFP_0_257", "31UGP_2313_4883"],
        "test": ["31UEQ_514_1028"],
    }
    for split, patches in splits.items():
        rows = decoded(tmp_path / "out", split)
        assert list(rows) == patches
        for patch in patches:
            images, label = rows[patch]
            for sensor, days in zip(("S2", "S1"), PATCHES[patch], strict=True):
                expected = [values_of(patch, sensor, day).transpose(1, 2, 0) for day in days]
                np.testing.assert_array_equal(np.stack(images[sensor.lower()]), np.stack(expected))
                dates = [to_days(f"{day[:4]}-{day[4:6]}-{day[6:]}") for day in days]
                assert images[f"{sensor.lower()}_dates"] == dates
            ids = values_of(patch, "GR")[0].astype(int)
            np.testing.assert_array_equal(label, np.where(ids == 0, 255, ids - 1))
            assert label[0, :3].tolist() == [255, 0, 13]
        assert_streams_the_same(tmp_path / "out", split)
    metadata = DatasetMetadata.load(tmp_path / "out")
    assert metadata.modality_dtypes == ["int16", "float32"] and metadata.series == [True, True]
    assert len(metadata.class_names) == 14 == len(CLASSES)


def test_sentinel_1_may_be_left_out_or_missing(source, tmp_path, capsys):
    for path in (source / "s1").iterdir():
        path.unlink()
    assert run(source, "--output", tmp_path / "out") == 2
    assert "patch 31TFN_4626_514: has no files for s1" in capsys.readouterr().err
    assert run(source, "--output", tmp_path / "out", "--sensors", "s2") == 0
    assert DatasetMetadata.load(tmp_path / "out").modalities == ["s2"]
    assert run(source, "--output", tmp_path / "null", "--allow_missing") == 0
    assert decoded(tmp_path / "null", "train")["31TFN_4626_514"][0]["s1"] is None


def test_another_type_is_stored_without_loss_or_refused(source, tmp_path, capsys):
    path = source / "s2" / "31TFN_20200731_S2_4626_514.tif"
    values = values_of("31TFN_4626_514", "S2", "20200731").astype(np.uint16)
    values[3, 5, 5] = 40000
    write_raster(path, values)
    assert run(source, "--check") == 1
    assert "31TFN_20200731_S2_4626_514.tif: holds uint16 values that int16 does not; pass --s2_dtype" in (
        capsys.readouterr().out
    )
    assert run(source, "--output", tmp_path / "out", "--s2_dtype", "float32") == 0
    images, _ = decoded(tmp_path / "out", "train")["31TFN_4626_514"]
    np.testing.assert_array_equal(images["s2"][0], values.transpose(1, 2, 0))
    with pytest.raises(ValueError, match="holds float32 values that int16 does not"):
        stored_as(np.float32([0.5]), "int16")


def test_damage_is_named_by_its_file(source, capsys):
    write_raster(source / "s1" / "31UFP_20200312_S1_0_257.tif", np.zeros((3, SIZE, SIZE), np.float32))
    (source / "s2" / "31UEQ_20200322_S2_514_1028.tif").write_bytes(b"II*\0")
    (source / "labels" / "31UFP_0_257.json").write_text("{")
    assert run(source, "--check") == 1
    said = capsys.readouterr().out
    assert "31UFP_20200312_S1_0_257.tif: has 3 bands, expected 2" in said
    assert "31UEQ_20200322_S2_514_1028.tif: cannot be opened" in said
    assert run(source / "labels", "--check") == 1
    assert "holds no <tile>_<YYYYMMDD>_S2_<x>_<y>.tif" in capsys.readouterr().out
