"""`sgma-hf train` after an earlier run: folders in use, resuming, other rows, and one more sensor."""

import logging

import numpy as np
import pytest
import torch
from tiny_models import tiny_config
from tiny_runs import flags, refusal, tiny_run

from sgma_hf import SgmaForSemanticSegmentation, SgmaImageProcessor
from sgma_hf.commands.evaluate import main as evaluate
from sgma_hf.commands.train import main
from sgma_hf.converters.writing.parquet import ParquetDatasetWriter
from sgma_hf.data.metadata import DatasetMetadata, check_meaning
from sgma_hf.publishing.record import TrainingRecord


pytestmark = pytest.mark.long


CLASSES = ["bare soil", "crop"]


def write_fields(folder, *, classes=CLASSES, thermal_nodata=(-9999.0,)):
    """Fields of 32 pixels with rgb and a thermal band in kelvin: 290 and 310, and -9999 in the first two columns."""
    metadata = DatasetMetadata(
        modalities=["rgb", "thermal"],
        modality_channels=[3, 1],
        modality_dtypes=["uint8", "float32"],
        nodata=[[], list(thermal_nodata)],
        class_names=list(classes),
        classes=[{"name": name, "values": [index + 10]} for index, name in enumerate(classes)],
    )
    generator = np.random.default_rng(0)
    with ParquetDatasetWriter(folder, metadata, title="Fields") as writer:
        for split in ("train", "train", "validation"):
            rgb = generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            thermal = np.full((32, 32), 290, dtype=np.float32)
            thermal[16:] = 310
            thermal[:, :2] = -9999
            label = np.repeat([[0, 1]], 16, axis=1).repeat(32, axis=0).astype(np.uint8)
            writer.write(split, f"{split}{generator.integers(1000)}", {"rgb": rgb, "thermal": thermal}, label)
    return folder


@pytest.fixture(scope="module")
def fields(tmp_path_factory):
    return write_fields(tmp_path_factory.mktemp("fields") / "data")


@pytest.fixture
def arguments(fields, tmp_path):
    return tiny_run(fields, tmp_path, save_strategy="steps", save_steps=1)


@pytest.fixture
def colour_model(tmp_path):
    """A model that knows rgb and the fields' classes, with a thermal sensor added as the README does."""
    torch.manual_seed(0)
    model = SgmaForSemanticSegmentation(
        tiny_config(modalities=["rgb"], modality_channels=[3], num_labels=2, id2label=dict(enumerate(CLASSES)))
    )
    processor = SgmaImageProcessor(["rgb"], [3], image_mean=[[0.5] * 3], image_std=[[0.25] * 3])
    model.add_modality("thermal", channels=1, processor=processor)
    for saved in (model, processor):
        saved.save_pretrained(tmp_path / "with_thermal")
    return tmp_path / "with_thermal"


def test_a_folder_in_use_is_kept_unless_it_may_be_replaced(arguments, tmp_path, capsys):
    run = tmp_path / "run"
    assert main(flags(arguments)) == 0
    weights = (run / "model.safetensors").read_bytes()
    line = refusal(main, flags(arguments, learning_rate="1e-2"), capsys)
    assert "holds an earlier run (checkpoint-1, checkpoint-2, model.safetensors)" in line
    assert (run / "model.safetensors").read_bytes() == weights and (run / "checkpoint-2").is_dir()
    assert main(flags(arguments, learning_rate="1e-2", max_steps=1, overwrite="true", save_strategy="no")) == 0
    assert (run / "model.safetensors").read_bytes() != weights
    assert not list(run.glob("checkpoint-*"))  # else the next resume would take them for this run's


def test_resuming_names_other_arguments_and_refuses_to_train_nothing(arguments, tmp_path, caplog, capsys):
    assert main(flags(arguments)) == 0
    line = refusal(main, flags(arguments, max_steps=1, resume_from_checkpoint="true"), capsys)
    assert "is of step 2, and this run ends at step 1: it would train nothing. Raise `max_steps`, or" in line
    epochs = {"max_steps": -1, "num_train_epochs": 0.01}
    line = refusal(main, flags(arguments, **epochs, resume_from_checkpoint="true"), capsys)
    assert "is of step 2, and this run ends at step 1" in line
    with caplog.at_level(logging.WARNING, logger="sgma_hf.training.checkpoints"):
        assert main(flags(arguments, resume_from_checkpoint=tmp_path / "run" / "checkpoint-1")) == 0
        assert "other arguments" not in caplog.text
        changed = {"max_steps": 3, "learning_rate": "1e-2", "warmup_start_factor": 0, "sampling_hardness": 1}
        assert main(flags(arguments, **changed, resume_from_checkpoint="true")) == 0
    assert "`learning_rate` was 6e-05, is 0.01; `warmup_start_factor` was 0.1, is 0.0;" in caplog.text
    assert "`max_steps` was 2, is 3; `sampling_hardness` was 0.5, is 1.0." in caplog.text
    record = TrainingRecord.load(tmp_path / "run")
    assert record.classes == [{"name": "bare soil", "values": [10]}, {"name": "crop", "values": [11]}]
    assert record.steps == 3 and record.arguments["learning_rate"] == 0.01


def test_one_more_sensor_gets_its_statistics_and_its_nodata(arguments, colour_model, tmp_path, caplog):
    for name in ("backbone_config", "decoder_hidden_size"):
        del arguments[name]
    with caplog.at_level(logging.WARNING, logger="sgma_hf"):
        assert main(flags(arguments, model=colour_model, fit_statistics="thermal")) == 0
    assert "declares [-9999.0] of modality 'thermal' to be no data" in caplog.text
    processor = SgmaImageProcessor.from_pretrained(tmp_path / "run")
    factor = processor.rescale_factor[1]
    assert processor.image_mean == [[0.5] * 3, [pytest.approx(300 * factor)]]
    assert processor.image_std == [[0.25] * 3, [pytest.approx(10 * factor)]]
    assert processor.nodata == [[], [-9999.0]]
    assert "another unit" not in caplog.text
    narrow = SgmaImageProcessor.from_pretrained(colour_model)
    narrow.image_std[1] = [0.05]
    narrow.save_pretrained(colour_model)
    with caplog.at_level(logging.WARNING, logger="sgma_hf.training.start"):
        assert main(flags(arguments, model=colour_model, output_dir=tmp_path / "unfitted")) == 0
    assert "The data set's 'thermal': it holds mean 300, " in caplog.text
    assert "or fit the statistics anew by `--fit_statistics`." in caplog.text
    cold = processor([{"rgb": None, "thermal": np.full((8, 8), 290, np.float32)}])["pixel_values"]
    torch.testing.assert_close(cold[0, 3], torch.full((8, 8), -1.0))


def test_statistics_are_fitted_of_the_models_modalities_only(arguments, colour_model, capsys):
    assert "goes with `--model`" in refusal(main, flags(arguments, fit_statistics="thermal"), capsys)
    for name in ("backbone_config", "decoder_hidden_size"):
        del arguments[name]
    line = refusal(main, flags(arguments, model=colour_model, fit_statistics="sar"), capsys)
    assert "has no modalities ['sar']; it has ['rgb', 'thermal']" in line


def test_classes_in_another_order_are_refused(arguments, colour_model, tmp_path, capsys):
    turned = write_fields(tmp_path / "turned", classes=["crop", "bare soil"])
    for name in ("backbone_config", "decoder_hidden_size"):
        del arguments[name]
    message = r"'crop' is 0 there and 1 here, 'bare soil' is 1 there and 0 here"
    assert message in refusal(main, flags(arguments, model=colour_model, dataset=turned), capsys)
    output = tmp_path / "results.json"
    paths = ["--model", str(colour_model), "--split", "validation", "--device", "cpu", "--output", str(output)]
    assert evaluate([*paths, "--dataset", str(turned)]) == 2 and message in capsys.readouterr().err
    assert not output.exists()
    assert evaluate([*paths, "--dataset", arguments["dataset"]]) == 0


def test_other_names_are_named_and_other_spellings_are_not(caplog):
    config = tiny_config(num_labels=2, id2label=dict(enumerate(CLASSES)))
    processor = SgmaImageProcessor(["rgb", "dsm", "sar"], [3, 1, 2], nodata=[[], [-9999], [0]])

    def compare(classes, **nodata):
        values = [nodata.get(name, []) for name in ("rgb", "dsm", "sar")]
        metadata = DatasetMetadata(
            ["rgb", "dsm", "sar"], [3, 1, 2], ["float32"] * 3, nodata=values, class_names=classes
        )
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="sgma_hf.data.metadata"):
            check_meaning(metadata, config, processor)
        return caplog.text

    assert compare(["Bare_Soil", "CROP"], dsm=[-9999.0]) == "" and compare([]) == ""
    assert "are called ['bare soil', 'wheat'], the model's ['bare soil', 'crop']" in compare(["bare soil", "wheat"])
    assert "are called ['bare soil']" in compare(["bare soil"])
    assert processor.nodata == [[], [-9999.0], [0.0]]
    assert "declares [-32768.0] of modality 'dsm'" in compare(CLASSES, dsm=[-9999.0, -32768.0])
    assert processor.nodata == [[], [-9999.0, -32768.0], [0.0]]
    check_meaning(None, config, processor)  # nothing is known of the data set


def test_another_resolution_is_said_from_half_as_much_again_on(caplog):
    config, processor = tiny_config(num_labels=2), SgmaImageProcessor(["rgb"], [3])

    def compare(there, known):
        processor.resolution = known
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="sgma_hf.data.metadata"):
            check_meaning(DatasetMetadata(["rgb"], [3], ["uint8"], resolution=there), config, processor)
        return caplog.text

    assert compare(0.2, 0.29) == compare(0.29, 0.2) == compare(None, 0.2) == compare(0.2, None) == ""
    assert "has 0.2 m per pixel, the model was trained on 0.5 m: things look 2.5 times as large" in compare(0.2, 0.5)
    assert "things look 2.5 times as small" in compare(0.5, 0.2)
