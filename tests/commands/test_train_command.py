import json
import logging
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset
from tiny_models import DINOV2
from tiny_runs import BACKBONE, flags, refusal, tiny_run
from transformers import Dinov2Config, Dinov2Model, PvtV2Config, PvtV2ForImageClassification, Trainer, TrainerCallback

from sgma_hf import SgmaForSemanticSegmentation, SgmaImageProcessor
from sgma_hf.commands.evaluate import main as evaluate
from sgma_hf.commands.train import MAIN_ARGUMENTS, main
from sgma_hf.converters.demo_scenes import write_demo_scenes
from sgma_hf.converters.demo_series import write_demo_series
from sgma_hf.converters.writing.parquet import ParquetDatasetWriter
from sgma_hf.data.metadata import DatasetMetadata
from sgma_hf.data.rows import decode_row, load_rows
from sgma_hf.publishing.record import TrainingRecord
from sgma_hf.publishing.weights_digest import checkpoint_digest
from sgma_hf.training import hub_trainer
from sgma_hf.training.trainer import SgmaTrainer


pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("train_command") / "scenes"
    write_demo_scenes(folder, num_tiles=24, tile_size=32)
    return folder


@pytest.fixture
def arguments(scenes, tmp_path):
    return tiny_run(scenes, tmp_path)


def test_a_pretrained_encoder_is_named_in_the_record_and_on_the_card(arguments, tmp_path, capsys):
    values = {key: value for key, value in BACKBONE.items() if key != "model_type"}
    PvtV2ForImageClassification(PvtV2Config(**values)).save_pretrained(tmp_path / "pvt_of_leaves")
    del arguments["backbone_config"]
    assert main(flags(arguments, backbone=tmp_path / "pvt_of_leaves")) == 0
    assert TrainingRecord.load(tmp_path / "run").backbone == "pvt_of_leaves"
    card = (tmp_path / "run" / "README.md").read_text()
    assert "scenes, and before that what `pvt_of_leaves` had" in " ".join(card.split())
    line = (
        f"encoder: pretrained, {tmp_path / 'pvt_of_leaves'}; rgb normalised by ImageNet's mean and deviation, dsm, nir"
    )
    assert line in capsys.readouterr().out
    processor = SgmaImageProcessor.from_pretrained(tmp_path / "run")
    np.testing.assert_allclose(processor.image_mean[0], [0.485, 0.456, 0.406])
    assert processor.value_range[0][0][1] > 0.5 and len(processor.image_std[2]) == 1


def save_classifier(folder, **changes):
    values = {key: value for key, value in (BACKBONE | changes).items() if key != "model_type"}
    PvtV2ForImageClassification(PvtV2Config(**values)).save_pretrained(folder)
    return folder


def group_flags(arguments, **groups):
    """Flags with a list of values for each of `groups`."""
    del arguments["backbone_config"]
    return [*flags(arguments), *(text for name, values in groups.items() for text in (f"--{name}", *values))]


def test_groups_of_modalities_have_pretrained_encoders_of_their_own(arguments, tmp_path, capsys):
    leaves, heights = save_classifier(tmp_path / "leaves"), save_classifier(tmp_path / "heights", num_channels=1)
    encoders = [f"dsm={heights}", f"nir+rgb={leaves}"]
    assert main([*group_flags(arguments, backbone=encoders), "--freeze_encoder", "true"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert f"encoder: pretrained, {heights}; dsm normalised by the training rows" in lines
    assert f"encoder: pretrained, {leaves}; rgb normalised by ImageNet's mean and deviation, nir by the" in "\n".join(
        lines
    )
    model = SgmaForSemanticSegmentation.from_pretrained(tmp_path / "run")
    assert model.config.encoder_groups == [["rgb", "nir"], ["dsm"]] and model.sgma.encoder_channels() == [3, 1, 3]
    for backbone, folder in zip(model.sgma.backbones, (leaves, heights), strict=True):
        source = PvtV2ForImageClassification.from_pretrained(folder).pvt_v2.state_dict()
        assert all(torch.equal(source[name], value) for name, value in backbone.state_dict().items())
    assert TrainingRecord.load(tmp_path / "run").backbone == "heights (dsm), leaves (rgb+nir)"
    card = " ".join((tmp_path / "run" / "README.md").read_text().split())
    assert "started from the weights of `heights (dsm), leaves (rgb+nir)`" in card
    assert "These have encoders of their own: rgb+nir, dsm. The paper's is shared" in card


def test_an_encoder_of_a_group_may_start_from_random_weights(arguments, tmp_path, caplog):
    encoder, file = save_classifier(tmp_path / "pvt"), arguments["backbone_config"]
    given = group_flags(arguments, backbone=[f"rgb+nir={encoder}"], backbone_config=[f"dsm={file}"])
    with caplog.at_level(logging.WARNING, logger="sgma_hf.training.start"):
        assert main(given) == 0
    assert "The encoder of dsm starts from random weights" in caplog.text
    assert SgmaForSemanticSegmentation.from_pretrained(tmp_path / "run").sgma.encoder_channels() == [3, 1, 3]


def test_one_configuration_serves_all_groups(arguments, tmp_path, caplog):
    assert main([*flags(arguments), "--encoder_groups", "nir+rgb", "dsm"]) == 0
    assert "The encoder of rgb+nir, that of dsm starts from random weights" in caplog.text
    model = SgmaForSemanticSegmentation.from_pretrained(tmp_path / "run")
    assert model.config.encoder_groups == [["rgb", "nir"], ["dsm"]]
    resumed = flags(arguments, max_steps=4, save_strategy="steps", save_steps=2, overwrite="true")
    assert main([*resumed, "--encoder_groups", "nir+rgb", "dsm"]) == 0
    assert main([*resumed, "--encoder_groups", "nir+rgb", "dsm", "--resume_from_checkpoint", "true"]) == 0


@pytest.mark.parametrize(
    ("groups", "said"),
    [
        ({"encoder_groups": ["rgb", "dsm"]}, "each of the modalities ['rgb', 'dsm', 'nir'] in one of them"),
        ({"encoder_groups": ["rgb+nir", "height"]}, "each of the modalities ['rgb', 'dsm', 'nir'] in one of them"),
        ({"backbone_config": ["dsm=pvt_v2_b0"]}, "The groups ['dsm'] have encoders of their own"),
        (
            {"backbone": ["rgb+nir=."], "backbone_config": ["pvt_v2_b0"]},
            "`--backbone` brings its own configuration, so `--backbone_config pvt_v2_b0` would be left out; give one",
        ),
        ({"backbone_config": ["dsm=pvt_v2_b0", "pvt_v2_b0"]}, "or GROUP=VALUE for each group"),
        ({"backbone_config": ["dsm=pvt_v2_b9", "rgb+nir=pvt_v2_b0"]}, "`--backbone_config` is 'pvt_v2_b9'"),
        ({"backbone": ["dsm=nowhere", "rgb+nir=nowhere"]}, "--backbone nowhere: there is no such folder"),
        (
            {"backbone_config": ["dsm=pvt_v2_b0", "rgb+nir=pvt_v2_b0"], "encoder_groups": ["rgb+nir", "dsm"]},
            "one `backbone_config` for all",
        ),
    ],
)
def test_groups_that_are_none_end_in_one_line(arguments, capsys, groups, said):
    assert said in refusal(main, group_flags(arguments, **groups), capsys)


def test_a_frozen_encoder_of_random_weights_is_refused_in_a_group_too(arguments, tmp_path, capsys):
    encoder = save_classifier(tmp_path / "pvt")
    given = group_flags(arguments, backbone=[f"rgb+nir={encoder}"], backbone_config=["dsm=pvt_v2_b0"])
    assert "would keep an encoder of random weights" in refusal(main, [*given, "--freeze_encoder", "true"], capsys)


def test_a_loss_of_the_class_filter_needs_the_fusion_that_has_one(arguments, capsys):
    line = refusal(main, flags(arguments, filter_loss_weight=0.5, fusion="mean"), capsys)
    assert line.endswith("semantic-guided fusion, and `--fusion` is 'mean'; leave one of the two out.")


def test_statistics_of_an_encoder_need_one(arguments, capsys):
    line = refusal(main, flags(arguments, encoder_statistics="rgb"), capsys)
    assert (
        line == "sgma-hf train: `--encoder_statistics` are those of a `--backbone`; name one, or leave the flag out."
    )


def test_a_plain_vision_transformer_is_an_encoder_from_a_folder(arguments, tmp_path, caplog):
    values = {key: value for key, value in DINOV2.items() if key != "model_type"}
    Dinov2Model(Dinov2Config(**values)).save_pretrained(tmp_path / "dinov2")
    del arguments["backbone_config"]
    with caplog.at_level(logging.WARNING, logger="sgma_hf.training.start"):
        assert main(flags(arguments, backbone=tmp_path / "dinov2")) == 0
    model = SgmaForSemanticSegmentation.from_pretrained(tmp_path / "run")
    assert (model.config.backbone_config.out_indices, model.sgma.pyramid.patch_size) == ([1, 2, 3, 4], 14)
    assert "`dinov2`, and its feature pyramid from new ones" in (tmp_path / "run" / "README.md").read_text()
    assert "random weights" not in caplog.text


def test_training_says_that_its_encoder_knows_nothing(arguments, caplog):
    with caplog.at_level(logging.WARNING, logger="sgma_hf.training.start"):
        assert main(flags(arguments)) == 0
    (line,) = (record.message for record in caplog.records if "random weights" in record.message)
    assert "`--backbone OpenGVLab/pvt_v2_b2`" in line and "\n" not in line


def test_training_leaves_a_model_a_processor_and_the_scores_on_validation(arguments, tmp_path, capsys):
    assert main(flags(arguments)) == 0
    run = tmp_path / "run"
    model = SgmaForSemanticSegmentation.from_pretrained(run)
    processor = SgmaImageProcessor.from_pretrained(run)
    assert model.config.modalities == processor.modalities == ["rgb", "dsm", "nir"]
    assert list(model.config.id2label.values()) == ["impervious", "building", "low_vegetation", "tree", "car"]
    assert len(model.config.palette) == 5
    assert processor.nodata[1] == [-9999.0]
    assert (processor.resolution, processor.reference_window) == (0.35, model.config.tile_size)
    results = json.loads((run / "validation_results.json").read_text())
    assert results["weights_sha256"] == checkpoint_digest(run)
    assert (results["dataset"], results["split"], results["trained_on"]) == ("scenes", "validation", False)
    assert TrainingRecord.load(run).evaluation == results
    assert len(results["combinations"]) == 7
    assert "| rgb+dsm+nir |" in capsys.readouterr().out


def test_the_split_that_chose_the_checkpoint_is_named_by_training_card_and_evaluation(
    arguments, scenes, tmp_path, capsys
):
    del arguments["save_strategy"]
    run = tmp_path / "run"
    said = "These rows chose the checkpoint, by `average_miou`"
    assert main(flags(arguments)) == 0
    assert json.loads((run / "validation_results.json").read_text())["chosen_by"] == "average_miou"
    assert said in capsys.readouterr().out
    assert (
        said in (run / "README.md").read_text() and "Complete scenes of their own" in (run / "README.md").read_text()
    )
    for split, chose in (("val", "average_miou"), ("test", None)):
        values = {"model": run, "dataset": scenes, "split": split, "output": tmp_path / "results.json"}
        assert evaluate(flags(values)) == 0
        assert json.loads((tmp_path / "results.json").read_text())["chosen_by"] == chose
        output = capsys.readouterr().out
        assert (said in output) == (chose is not None)
        assert "How the rows were split off: Complete scenes of their own, painted by the rules of" in output


def test_a_yaml_file_stands_for_the_flags(arguments, tmp_path):
    values = arguments | {"modalities": "[nir, rgb]", "validation_split": "validation", "learning_rate": "1e-3"}
    (tmp_path / "train.yaml").write_text("\n".join(f"{name}: {value}" for name, value in values.items()))
    assert main([str(tmp_path / "train.yaml")]) == 0
    config = SgmaForSemanticSegmentation.from_pretrained(tmp_path / "run").config
    assert (config.modalities, config.modality_channels) == (["nir", "rgb"], [1, 3])
    assert TrainingRecord.load(tmp_path / "run").arguments["learning_rate"] == 0.001


def test_a_value_of_a_wrong_type_in_a_file_is_refused_before_the_rows_are_read(arguments, tmp_path, capsys):
    (tmp_path / "train.json").write_text(json.dumps(arguments | {"learning_rate": "fast"}))
    line = refusal(main, [str(tmp_path / "train.json")], capsys)
    assert line == "sgma-hf train: argument --learning_rate: invalid float value: 'fast'"
    assert not (tmp_path / "run").exists()


def test_a_mistyped_flag_and_a_data_set_that_is_not_there_are_named(arguments, tmp_path, capsys):
    line = refusal(main, flags(arguments, lerning_rate="1e-3"), capsys)
    assert line == "sgma-hf train: there is no flag --lerning_rate; did you mean --learning_rate?"
    line = refusal(main, flags(arguments, dataset=tmp_path / "scens"), capsys)
    assert line.startswith(f"sgma-hf train: data set {tmp_path / 'scens'}: there is no such folder")
    line = refusal(main, flags(arguments, backbone=tmp_path / "pvt"), capsys)
    assert line.startswith(f"sgma-hf train: --backbone {tmp_path / 'pvt'}: there is no such folder")


def test_help_shows_fifteen_flags_and_names_the_flag_that_shows_all(capsys):
    shown = []
    for flag in ("--help", "--help_all"):
        with pytest.raises(SystemExit, match="0"):
            main([flag])
        shown.append(set(re.findall(r"^  (--\w+)", capsys.readouterr().out, flags=re.MULTILINE)))
    assert shown[0] == {f"--{name}" for name in MAIN_ARGUMENTS} | {"--help_all"} and len(MAIN_ARGUMENTS) == 15
    assert len(shown[1]) > 100 and shown[0] < shown[1]


class Interrupt(TrainerCallback):
    """Ctrl-C after some steps."""

    def __init__(self, step):
        self.step = step

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("step", "told"),
    [
        (0, "stopped at step 0; no checkpoint was saved yet, so start it again"),
        (1, "stopped at step 1; the same command with `--resume_from_checkpoint true` goes on from {}/checkpoint-1"),
    ],
)
def test_ctrl_c_says_how_to_go_on(arguments, tmp_path, capsys, monkeypatch, step, told):
    train = SgmaTrainer.train

    def train_until_interrupted(trainer, **kwargs):
        trainer.add_callback(Interrupt(step))
        return train(trainer, **kwargs)

    monkeypatch.setattr(SgmaTrainer, "train", train_until_interrupted)
    assert main(flags(arguments, save_strategy="steps", save_steps=1)) == 130
    assert f"sgma-hf train: {told.format(tmp_path / 'run')}" in capsys.readouterr().err.splitlines()


def test_training_goes_on_from_a_checkpoint_with_its_processor(arguments, tmp_path):
    main(flags(arguments))
    before = SgmaForSemanticSegmentation.from_pretrained(tmp_path / "run").state_dict()
    for name in ("backbone_config", "decoder_hidden_size"):
        del arguments[name]
    again = arguments | {"model": str(tmp_path / "run"), "output_dir": str(tmp_path / "again"), "learning_rate": "0"}
    assert main(flags(again)) == 0
    after = SgmaForSemanticSegmentation.from_pretrained(tmp_path / "again").state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_a_checkpoint_goes_on_where_one_of_its_sensors_is_absent(arguments, scenes, tmp_path):
    main(flags(arguments))
    (tmp_path / "flat" / "data").mkdir(parents=True)
    for path in (scenes / "data").glob("*.parquet"):
        rows = Dataset.from_parquet(str(path)).remove_columns("dsm")
        rows.to_parquet(tmp_path / "flat" / "data" / path.name)
    for name in ("backbone_config", "decoder_hidden_size"):
        del arguments[name]
    again = {"model": tmp_path / "run", "output_dir": tmp_path / "again", "dataset": tmp_path / "flat"}
    assert main(flags(arguments, **again)) == 0
    before, after = (
        SgmaForSemanticSegmentation.from_pretrained(tmp_path / run).state_dict() for run in ("run", "again")
    )
    changed = {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}
    assert changed and before.keys() == after.keys()
    results = json.loads((tmp_path / "again" / "validation_results.json").read_text())
    assert results["unscored_combinations"] == ["dsm", "rgb+dsm", "dsm+nir", "rgb+dsm+nir"]
    assert results["average_miou"] is not None


def test_resuming_from_a_command_line(arguments, tmp_path):
    main(flags(arguments, save_strategy="steps", save_steps=1))
    (tmp_path / "run" / "checkpoint-2" / "optimizer.pt").unlink()  # as if killed while saving
    assert main(flags(arguments, save_strategy="no", resume_from_checkpoint="true")) == 0
    state = json.loads((tmp_path / "run" / "trainer_state.json").read_text())
    assert state["global_step"] == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_split": "nowhere"}, "no split 'nowhere'"),
        ({"modalities": "sar"}, r"no modalities \['sar'\]; it has \['rgb', 'dsm', 'nir'\]"),
        ({"backbone_config": "resnet999"}, "expected one of .*pvt_v2_b2"),
        ({"validation_split": "holdout"}, "no split 'holdout'.*--validation_split"),
        ({"model": "somewhere"}, "describe a new model"),
        ({"modality_dropout": "1.5"}, "modality_dropout"),
    ],
)
def test_what_cannot_be_trained_is_refused_with_a_remedy(arguments, capsys, changes, message):
    assert re.search(message, refusal(main, flags(arguments, **changes), capsys))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1, 2]", "backbone.json holds a list; expected fields by name."),
        ('{"model_type":', "backbone.json is no JSON: Expecting value"),
        ('{"model_type": "pvt_v2", "hidden_sizes": "wide"}', "Field 'hidden_sizes' with value 'wide' doesn't match"),
    ],
)
def test_a_file_of_an_encoder_that_is_none_ends_in_one_line(arguments, tmp_path, capsys, content, message):
    (tmp_path / "backbone.json").write_text(content)
    assert message in refusal(main, flags(arguments), capsys)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"accelerator_config": '{"foo": 1}'}, "unexpected keyword argument 'foo'"),
        ({"report_to": "dvclive"}, "requires dvclive to be installed"),
        ({"metric_for_best_model": "iou/rgb/treee"}, "did you mean iou/rgb/tree?"),
        ({"augment": "rgb=gian"}, "did you mean gain?"),
        ({"augment": "nir=speckle"}, "the data set says of 'nir' the unit None"),
        ({"random_scale": 0.5}, "with it the size that all crops are brought to"),
        ({"dataloader_drop_last": True, "per_device_train_batch_size": 64}, "none is left"),
    ],
)
def test_what_fails_before_the_first_step_ends_in_one_line(arguments, capsys, changes, message):
    assert message in refusal(main, flags(arguments, **changes), capsys)


def test_speckle_follows_the_unit_that_the_data_set_names(arguments, scenes, tmp_path):
    shutil.copytree(scenes, tmp_path / "in_db")
    metadata = json.loads((scenes / "sgma_dataset.json").read_text())
    (tmp_path / "in_db" / "sgma_dataset.json").write_text(json.dumps(metadata | {"units": [None, "m", "dB"]}))
    augmented = flags(arguments, dataset=tmp_path / "in_db", max_steps=1, eval_strategy="no", crop_size=24)
    assert main([*augmented, "--augment", "nir=speckle:2,shift", "rgb=gain"]) == 0
    recorded = TrainingRecord.load(tmp_path / "run").arguments["augment"]
    assert recorded == ["nir=speckle_db:2,shift", "rgb=gain"]


def test_a_modality_twice_and_a_damaged_argument_file_are_refused(arguments, tmp_path, capsys):
    line = refusal(main, [*flags(arguments), "--modalities", "rgb", "rgb"], capsys)
    assert line == "sgma-hf train: `--modalities` is ['rgb', 'rgb']; name each of them once."
    path = tmp_path / "train.yaml"
    path.write_text("crop_size: [1\nseed: }")
    assert refusal(main, [str(path)], capsys).startswith(f"sgma-hf train: {str(path)!r} cannot be read: while parsing")


def test_too_little_memory_ends_in_one_line_with_the_way_out(arguments, monkeypatch, capsys):
    def run_out(trainer, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nSee the documentation.")

    monkeypatch.setattr(SgmaTrainer, "train", run_out)
    line = refusal(main, flags(arguments), capsys)
    assert line.startswith(
        "sgma-hf train: CUDA out of memory. Tried to allocate 2.00 GiB. Choose a smaller `--crop_size`"
    )


@pytest.mark.parametrize(
    "choosing",
    [
        {"load_best_model_at_end": True, "save_strategy": "steps"},
        {"save_strategy": "best"},
        {"lr_scheduler_type": "reduce_lr_on_plateau"},
    ],
)
def test_nothing_is_chosen_on_the_test_split(arguments, capsys, choosing):
    argv = flags(arguments, validation_split="test", eval_strategy="steps", **choosing)
    assert "would choose on split 'test'" in refusal(main, argv, capsys)


@pytest.mark.parametrize("split", ["test", "train"])
def test_by_default_nothing_is_chosen_on_rows_to_report_on_or_trained_on(arguments, tmp_path, split):
    del arguments["save_strategy"]
    assert main(flags(arguments, validation_split=split, max_steps=1)) == 0
    record = TrainingRecord.load(tmp_path / "run")
    assert record.selection is None and record.evaluation["split"] == split


@pytest.mark.parametrize(
    ("splits", "named"),
    [
        ({"validation_split": "testing"}, "testing"),
        ({"validation_split": "training"}, "training"),
        ({"validation_split": "train", "train_split": "training"}, "train"),
        ({"train_split": "val"}, "validation"),
    ],
)
def test_a_checkpoint_is_not_chosen_on_rows_to_report_on_or_trained_on(arguments, capsys, splits, named):
    choosing = {"load_best_model_at_end": True, "eval_strategy": "steps", "save_strategy": "steps"}
    assert f"would choose on split '{named}'" in refusal(main, flags(arguments, **choosing, **splits), capsys)


@pytest.fixture
def unlabelled_validation(scenes, tmp_path):
    """The scenes with a validation split that nobody labelled, as contests publish theirs."""
    folder = tmp_path / "unlabelled"
    shutil.copytree(scenes, folder)
    for path in (folder / "data").glob("validation-*.parquet"):
        table = pq.read_table(path)
        place = table.schema.get_field_index("label")
        labels = pa.nulls(len(table), table.schema.field("label").type)
        pq.write_table(table.set_column(place, table.schema.field("label"), labels), path)
    return folder


def test_a_default_validation_split_without_labels_is_passed_over(arguments, unlabelled_validation, tmp_path, caplog):
    with caplog.at_level(logging.WARNING, logger="sgma_hf.training.start"):
        assert main(flags(arguments, dataset=unlabelled_validation)) == 0
    assert "rows of split 'validation'" in caplog.text and "the model is not evaluated" in caplog.text
    assert (tmp_path / "run" / "README.md").is_file()
    assert not (tmp_path / "run" / "validation_results.json").exists()


@pytest.mark.parametrize("asked_for", [{"eval_strategy": "epoch"}, {"validation_split": "validation"}])
def test_evaluation_that_no_label_allows_is_refused_before_training(
    arguments, unlabelled_validation, tmp_path, capsys, asked_for
):
    line = refusal(main, flags(arguments, dataset=unlabelled_validation, **asked_for), capsys)
    assert re.search(r"'validation' .* has a label.*`--validation_split`", line)
    assert not (tmp_path / "run").exists()


def test_heights_are_measured_above_the_lowest_point_of_crops(arguments, tmp_path):
    """A slope of 1 m per pixel of the label, 64 of them; the surface model has half as many cells."""
    metadata = DatasetMetadata(
        modalities=["rgb", "dsm"],
        modality_channels=[3, 1],
        modality_dtypes=["uint8", "float32"],
        class_names=["low", "high"],
    )
    rgb = np.tile((np.arange(64) ** 2 // 16).astype(np.uint8)[:, None], (64, 1, 3))
    dsm = np.tile(np.arange(100, 164, 2, dtype=np.float32), (32, 1))
    label = np.repeat([[0, 1]], 32, axis=1).astype(np.uint8).repeat(64, axis=0)
    with ParquetDatasetWriter(tmp_path / "hill", metadata, title="Hill") as writer:
        for index in range(2):
            writer.write("train", f"row{index}", {"rgb": rgb, "dsm": dsm}, label)
    means, stds = {}, {}
    for crop_size in (24, 64):
        run = tmp_path / f"run{crop_size}"
        assert main(flags(arguments, dataset=tmp_path / "hill", output_dir=run, max_steps=1, crop_size=crop_size)) == 0
        processor = SgmaImageProcessor.from_pretrained(run)
        means[crop_size], stds[crop_size] = processor.image_mean, processor.image_std
    # Crops at 0, 20 and 40 pixels, of 12 cells each: 0 to 22 m above their lowest point.
    assert means[24][1] == [pytest.approx(11.0)] and stds[24][1] == [pytest.approx(2 * np.sqrt(143 / 12))]
    assert means[64][1] == [pytest.approx(31.0)]
    assert processor.value_range[1] == [[0.0, 62.0]] and processor.reference_window == 64
    assert (means[24][0], stds[24][0]) == (means[64][0], stds[64][0])  # colours have no level: every pixel counts once
    assert means[24][0][0] == pytest.approx(rgb.mean() / 255)


def test_a_data_set_without_metadata_is_refused(arguments, scenes, tmp_path, capsys):
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "data").symlink_to(scenes / "data")
    assert re.search(r"no sgma_dataset.json.*convert-rasters", refusal(main, flags(arguments, dataset=bare), capsys))


def test_class_weights_come_from_the_training_pixels(arguments, scenes, tmp_path):
    assert main(flags(arguments, class_weighting="inverse_sqrt")) == 0
    weights = np.array(SgmaForSemanticSegmentation.from_pretrained(tmp_path / "run").config.class_weights)
    pixels = np.array(json.loads((scenes / "sgma_dataset.json").read_text())["statistics"]["class_pixels"])
    share = pixels / pixels.sum()
    seen = (weights * np.sqrt(share))[pixels > 0]
    np.testing.assert_allclose(seen, seen[0])
    assert np.isfinite(weights).all() and (weights * share).sum() == pytest.approx(
        1, rel=0.05
    )  # two classes have no pixel


def test_a_private_push_to_a_public_repository_is_refused_in_one_line(arguments, monkeypatch, capsys):
    def find(trainer, token=None, private=None):
        trainer.hub_model_id = "org/public"

    class PublicHub:
        def __init__(self, token=None):
            pass

        def repo_info(self, repo_id, repo_type):
            return SimpleNamespace(private=False)

    monkeypatch.setattr(Trainer, "init_hf_repo", find)
    monkeypatch.setattr(hub_trainer, "HfApi", PublicHub)
    argv = flags(arguments, push_to_hub=True, hub_model_id="org/public", hub_private_repo=True)
    assert refusal(main, argv, capsys) == (
        "sgma-hf train: The repository org/public is public, and a private one was asked for; nothing was uploaded. "
        "Leave `hub_private_repo` out to push to it all the same, or choose another `hub_model_id`."
    )


@pytest.mark.parametrize(("option", "value"), [("gain_range", 1.0), ("modality_dropout", 2.0)])
def test_options_of_rows_are_refused_before_all_rows_are_read(arguments, option, value, monkeypatch, capsys):
    monkeypatch.setattr("sgma_hf.training.start.fit_processor", None)
    assert f"`{option}` is " in refusal(main, flags(arguments, **{option: value}), capsys)


@pytest.mark.parametrize("option", [{"date_jitter": 5}, {"date_dropout": 0.2}, {"max_dates": 3}, {"date_keep": 0.5}])
def test_options_of_dates_are_refused_where_nothing_is_dated(arguments, option, capsys):
    said = refusal(main, flags(arguments, **option), capsys)
    assert f"--{next(iter(option))}: of the modalities" in said and "none is a series;" in said


def test_a_data_set_of_series_is_trained_on_and_scored_by_the_commands(tmp_path, caplog, capsys):
    """A new model knows the seasons, or none if that is asked for; dates that a split lacks are said."""
    write_demo_series(tmp_path / "series", num_rows=14, tile_size=16)
    metadata = DatasetMetadata.load(tmp_path / "series")
    arguments = tiny_run(tmp_path / "series", tmp_path, date_jitter=9.0, max_dates=3)
    assert main(flags(arguments)) == 0
    undated = flags(arguments, date_periods=0, output_dir=tmp_path / "undated")
    assert "`date_jitter` is 9.0, and the model has no `date_periods`" in refusal(main, undated, capsys)
    model = SgmaForSemanticSegmentation.from_pretrained(tmp_path / "run")
    assert list(model.config.date_periods) == [365.25, 182.6, 121.75, 91.3, 60.9]
    record = TrainingRecord.load(tmp_path / "run").arguments
    assert (record["date_keep"], record["max_dates"], record["date_jitter"]) == ([1.0, 0.5, 0.25], 3, 9.0)
    score = [
        "--model",
        str(tmp_path / "run"),
        "--dataset",
        str(tmp_path / "series"),
        "--split",
        "test",
        "--output",
        str(tmp_path / "scores.json"),
    ]
    assert evaluate(score) == 0
    assert "s2+s1" in capsys.readouterr().out
    assert "Damaging inputs is for rows of one date" in refusal(evaluate, [*score, "--protocol", "rmm"], capsys)

    with ParquetDatasetWriter(tmp_path / "undated", metadata, title="Undated") as writer:
        for split in ("train", "test"):
            for row in load_rows(tmp_path / "series", split):
                images, label = decode_row(row, metadata.modalities)
                images["s1_dates"] = None if split == "test" else images["s1_dates"]
                writer.write(split, row["id"], images, label)
    score[3] = str(tmp_path / "undated")
    assert evaluate(score) == 0
    assert "The rows have no dates of the series ['s1'] ('s1_dates')" in caplog.text

    folder = tmp_path / "set"
    folder.mkdir()
    assert main(flags(tiny_run(tmp_path / "series", folder), date_periods=0)) == 0
    assert SgmaForSemanticSegmentation.from_pretrained(folder / "run").config.date_periods is None
    assert "The rows have dates of ['s2', 's1'], and the model knows none" in caplog.text
