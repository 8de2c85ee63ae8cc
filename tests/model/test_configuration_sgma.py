import json
from importlib import import_module
from inspect import signature
from pkgutil import iter_modules

import pytest
from tiny_models import CONVNEXT, PVT_V2, tiny_config
from transformers import AutoConfig, PvtV2Config

from sgma_hf import SgmaConfig, commands
from sgma_hf.model.limits_sgma import RESERVED_MODALITY_NAMES


def test_the_defaults_are_the_papers_main_model():
    config = SgmaConfig()
    assert config.modalities == ["rgb", "dsm", "nir"]
    assert config.modality_channels == [3, 1, 1]
    assert config.num_modalities == 3
    assert isinstance(config.backbone_config, PvtV2Config)
    assert list(config.backbone_config.hidden_sizes) == [64, 128, 320, 512]
    assert list(config.backbone_config.depths) == [3, 4, 6, 3]
    assert (config.sgf_loss_weight, config.mas_loss_weight) == (2.0, 1.0)


def test_saving_keeps_the_order_of_the_modalities(tmp_path):
    config = tiny_config(modalities=["sar", "rgb", "dsm"], modality_channels=[2, 3, 1], fusion="projector_mean")
    config.save_pretrained(tmp_path)
    loaded = SgmaConfig.from_pretrained(tmp_path)
    assert loaded.modalities == ["sar", "rgb", "dsm"]
    assert loaded.modality_channels == [2, 3, 1]
    assert loaded.to_dict() == config.to_dict()
    assert isinstance(AutoConfig.from_pretrained(tmp_path), SgmaConfig)


def test_two_configurations_do_not_share_their_lists():
    SgmaConfig().modalities.append("sar")
    assert SgmaConfig().modalities == ["rgb", "dsm", "nir"]


def test_class_names_come_back_with_integer_keys(tmp_path):
    names = {0: "street", 1: "building", 2: "tree"}
    config = tiny_config(num_labels=3, id2label=names, label2id={name: index for index, name in names.items()})
    config.save_pretrained(tmp_path)
    loaded = SgmaConfig.from_pretrained(tmp_path)
    assert loaded.id2label == names
    assert loaded.class_names == [names[index] for index in range(3)]
    assert loaded.label2id == {"street": 0, "building": 1, "tree": 2}
    assert loaded.num_labels == 3


def test_class_names_alone_give_the_class_count():
    assert SgmaConfig(id2label={0: "a", 1: "b", 2: "c"}).num_labels == 3


def test_a_backbone_may_be_a_dictionary_or_a_configuration():
    from_dictionary = tiny_config(backbone_config=dict(PVT_V2))
    values = {name: value for name, value in PVT_V2.items() if name != "model_type"}
    from_configuration = tiny_config(backbone_config=PvtV2Config(**values))
    assert from_dictionary.to_dict() == from_configuration.to_dict()


def test_the_outputs_that_somebody_chose_are_kept():
    config = tiny_config(backbone_config={**CONVNEXT, "out_features": ["stem", "stage2", "stage3", "stage4"]})
    assert config.backbone_config.out_indices == [0, 2, 3, 4]


def test_the_callers_dictionary_is_left_alone():
    backbone = dict(PVT_V2)
    tiny_config(backbone_config=backbone)
    assert backbone == PVT_V2


def test_many_bands_and_one_modality_are_fine():
    assert tiny_config(modalities=["hyperspectral"], modality_channels=[369]).modality_channels == [369]


def test_flags_of_commands_that_make_a_flag_per_modality_are_reserved():
    modules = [import_module(f"sgma_hf.commands.{item.name}") for item in iter_modules(commands.__path__)]
    parsers = {
        module.__name__.rpartition(".")[2]: module._parser([])
        for module in modules
        if hasattr(module, "_parser") and "modalities" in signature(module._parser).parameters
    }
    assert {"predict", "evaluate_scene"} <= set(parsers)
    for command, parser in parsers.items():
        flags = {flag[2:] for action in parser._actions for flag in action.option_strings if flag.startswith("--")}
        assert "batch_size" in flags and flags <= RESERVED_MODALITY_NAMES, command


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"modalities": [], "modality_channels": []}, "has 0 entries"),
        ({"modalities": ["rgb", "rgb", "sar"]}, r"repeats \['rgb'\]"),
        ({"modalities": ["rgb", "dsm"]}, "parallel lists"),
        ({"modalities": ["RGB", "dsm", "sar"]}, "'RGB' is malformed"),
        ({"modalities": ["rgb", "2d", "sar"]}, "'2d' is malformed"),
        ({"modalities": ["rgb", "d sm", "sar"]}, "'d sm' is malformed"),
        ({"modalities": ["rgb", "", "sar"]}, "'' is malformed"),
        ({"modalities": ["rgb", "dsm\n", "sar"]}, "is malformed"),
        ({"modalities": ["rgb", "label", "sar"]}, "'label' is reserved"),
        ({"modalities": ["id", "dsm", "sar"]}, "'id' is reserved"),
        ({"modalities": ["rgb", "dsm", "model"]}, "'model' is reserved"),
        ({"modalities": ["rgb", "out", "sar"]}, "'out' is reserved"),
        ({"modality_channels": [3, 0, 2]}, "'dsm' has 0 channels"),
        ({"modality_channels": [3, -1, 2]}, "'dsm' has -1 channels"),
        ({"modality_channels": [3, 10**9, 2]}, "'dsm' has 1000000000 channels"),
        ({"num_labels": 1}, "`num_labels` is 1"),
        ({"num_labels": 256}, "`num_labels` is 256"),
        ({"tile_size": 0}, "`tile_size` is 0; expected 1 to 65536 pixels"),
        ({"tile_size": 65_537}, "`tile_size` is 65537; expected 1 to 65536 pixels"),
        ({"num_attention_heads": 0}, "`num_attention_heads` is 0"),
        ({"decoder_hidden_size": -5}, "`decoder_hidden_size` is -5"),
        ({"decoder_hidden_size": 10**9}, "`decoder_hidden_size` is 1000000000"),
        ({"mas_loss_weight": -1.0}, "`mas_loss_weight` is -1.0"),
        ({"sgf_loss_weight": float("nan")}, "`sgf_loss_weight` is nan"),
        ({"mas_exponent": -1}, "`mas_exponent` is -1; expected a finite number of at least 0"),
        ({"classifier_dropout_prob": 1.0}, "`classifier_dropout_prob` is 1.0"),
        ({"palette": [[1, 2, 3]]}, "`palette` has 1 colours for 5 classes"),
        ({"palette": [[1, 2, 3]] * 3, "num_labels": 2, "id2label": {0: "a", 1: "b"}}, "3 colours for 2 classes"),
        ({"palette": [[1, 2, 256]] * 5}, r"`palette` has \[1, 2, 256\]"),
        ({"semantic_loss_ignore_index": 4}, "also one of the 5 classes"),
        ({"backbone_config": {"model_type": "resnet50"}}, "'resnet50', which transformers does not know"),
        ({"backbone_config": {"hidden_sizes": [8]}}, "model type None"),
        ({"backbone_config": {"model_type": "bert"}}, "BertConfig. is not that of a backbone"),
        ({"backbone_config": {**CONVNEXT, "out_features": ["stage1", "stage2", "stage3"]}}, "has 3 outputs"),
        ({"backbone_config": {**CONVNEXT, "out_indices": [2]}}, "has 1 outputs"),
        ({"backbone_config": {**CONVNEXT, "out_indices": [0, 1, 2, 3, 4]}}, "has 5 outputs"),
    ],
)
def test_what_cannot_be_built_is_refused_with_the_reason(changes, message):
    with pytest.raises(ValueError, match=message):
        tiny_config(**changes)


@pytest.mark.parametrize(
    "changes", [{"modalities": "rgb"}, {"modality_channels": ["3", "1", "2"]}, {"decoder_hidden_size": "256"}]
)
def test_wrong_types_are_refused_by_name(changes):
    (name,) = changes
    with pytest.raises(Exception, match=name):
        tiny_config(**changes)


def test_colours_and_weights_of_other_classes_do_not_outlive_them(tmp_path):
    """`from_pretrained` with other classes, as for fine-tuning on another data set."""
    palette = [[index, 0, 0] for index in range(5)]
    tiny_config(palette=palette, class_weights=[1.0] * 5).save_pretrained(tmp_path)
    assert SgmaConfig.from_pretrained(tmp_path).palette == palette
    assert SgmaConfig.from_pretrained(tmp_path, num_labels=5).palette == palette
    for changes in ({"num_labels": 3}, {"id2label": {0: "soil", 1: "crop", 2: "weed"}}):
        config = SgmaConfig.from_pretrained(tmp_path, **changes)
        assert (config.num_labels, config.palette, config.class_weights) == (3, None, None)
    config = SgmaConfig.from_pretrained(tmp_path, num_labels=3, palette=palette[:3])
    assert config.palette == palette[:3]
    with pytest.raises(ValueError, match="5 colours for 3 classes"):
        SgmaConfig.from_pretrained(tmp_path, num_labels=3, palette=palette)
    with pytest.raises(ValueError, match="3 colours for 5 classes"):
        SgmaConfig.from_pretrained(tmp_path, palette=palette[:3])


def test_the_residual_path_of_an_old_configuration_is_refused_and_its_absence_passes(caplog):
    tiny_config(gating="soft")
    assert "does not know the fields ['gating']" in caplog.text
    caplog.clear()
    assert "fusion_residual" not in tiny_config(fusion_residual=False).to_dict()
    assert caplog.text == ""
    with pytest.raises(ValueError, match="train anew without it"):
        tiny_config(fusion_residual=True)


def test_a_hand_edited_file_is_checked_too(tmp_path):
    tiny_config().save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    values["modality_channels"] = [3, 1]
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match="parallel lists"):
        SgmaConfig.from_pretrained(tmp_path)
