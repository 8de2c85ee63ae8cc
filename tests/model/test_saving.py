import pytest

from sgma_hf.model.saving_sgma import replace_when_complete


def test_an_earlier_checkpoint_stays_if_writing_fails(tmp_path):
    (tmp_path / "model.safetensors").write_text("old")
    with pytest.raises(OSError, match="disk full"), replace_when_complete(tmp_path) as staging:
        (staging / "model.safetensors").write_text("half")
        raise OSError("disk full")
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
    assert (tmp_path / "model.safetensors").read_text() == "old"


def test_shards_of_an_earlier_checkpoint_go_and_other_files_stay(tmp_path):
    for name in ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "notes.txt"):
        (tmp_path / name).write_text("old")
    (tmp_path / "model.safetensors.index.json").write_text("old")
    with replace_when_complete(tmp_path) as staging:
        (staging / "model.safetensors").write_text("new")
        (staging / "config.json").write_text("new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors", "notes.txt"]


def test_what_is_not_weights_leaves_the_weights_alone(tmp_path):
    (tmp_path / "model.safetensors").write_text("old")
    with replace_when_complete(tmp_path) as staging:
        (staging / "preprocessor_config.json").write_text("new")
    assert (tmp_path / "model.safetensors").read_text() == "old"
