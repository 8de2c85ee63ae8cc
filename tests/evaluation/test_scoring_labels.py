"""Labels to train on and to score by from one conversion, and GeoSeg's scores, against counts of their own."""

import json

import numpy as np
import pytest
import torch
from comparison_fixtures import BACKBONE
from converted_rows import train_one_step
from isprs_fixtures import POTSDAM_TEST, seams, tile_bands, tile_ids, write_potsdam

from sgma_hf.commands.compare import main as compare
from sgma_hf.commands.evaluate import main
from sgma_hf.converters.isprs import CLASS_NAMES
from sgma_hf.converters.isprs_potsdam import main as convert
from sgma_hf.data.rows import load_rows, with_label_column
from sgma_hf.model.configuration_sgma import SgmaConfig
from sgma_hf.model.image_processing_sgma import SgmaImageProcessor
from sgma_hf.model.modeling_sgma import SgmaForSemanticSegmentation
from sgma_hf.publishing.results import results_to_markdown


pytest.importorskip("rasterio")
pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Rows of GeoSeg's split with both labels, six classes and whole scenes; and a model of two of the modalities."""
    folder = tmp_path_factory.mktemp("made")
    source = write_potsdam(folder / "source", labels="all")
    flags = ["--split", "geoseg", "--labels", "both", "--classes", "6", "--tile_size", "none", "--num_proc", "1"]
    assert convert(["--source", str(source), "--output", str(folder / "rows"), *flags]) == 0
    torch.manual_seed(0)
    config = SgmaConfig(
        modalities=["rgb", "nir"],
        modality_channels=[3, 1],
        id2label=dict(enumerate(CLASS_NAMES)),
        label2id={name: index for index, name in enumerate(CLASS_NAMES)},
        backbone_config=BACKBONE,
        decoder_hidden_size=16,
        num_attention_heads=2,
    )
    model = SgmaForSemanticSegmentation(config).eval()
    processor = SgmaImageProcessor(
        modalities=["rgb", "nir"],
        modality_channels=[3, 1],
        rescale_factor=[1.0, 1.0],
        image_mean=[[127.0] * 3, [127.0]],
        image_std=[[64.0] * 3, [64.0]],
    )
    model.save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    return folder, model, processor


def _predicted(model, processor, tile):
    bands = tile_bands(tile, 4)
    inputs = processor(images=[{"rgb": bands[..., :3], "nir": bands[..., 3]}], return_tensors="pt")
    with torch.no_grad():
        outputs = model(**inputs)
    return processor.post_process_semantic_segmentation(outputs)[0].numpy()


def _counts(model, processor, *, eroded):
    """Truth in rows, counted from the archive's own labels."""
    counts = np.zeros((6, 6))
    for tile in POTSDAM_TEST:
        truth, predicted = tile_ids(tile), _predicted(model, processor, tile)
        kept = ~seams(truth) if eroded else np.ones_like(truth, dtype=bool)
        for true, found in zip(truth[kept].tolist(), predicted[kept].tolist(), strict=True):
            counts[true, found] += 1
    return counts


def _evaluate(folder, *flags):
    output = folder / "results.json"
    paths = ["--model", str(folder / "model"), "--dataset", str(folder / "rows"), "--output", str(output)]
    assert main([*paths, "--split", "test", "--device", "cpu", "--allow_other_scale", *flags]) == 0
    return json.loads(output.read_text())


def test_six_classes_trained_and_the_mean_over_five(made):
    folder, model, processor = made
    results = _evaluate(folder, "--label_column", "scoring_label", "--score_classes", *CLASS_NAMES[:5])
    scores = results["combinations"]["rgb+nir"]
    counts = _counts(model, processor, eroded=True)
    # a copy's logits differ in the last bits, so the class of a pixel may differ where two are as likely
    assert np.abs(np.array(scores["confusion"]) - counts).sum() <= 4
    counts = np.array(scores["confusion"], dtype=float)
    # The formulas of GeoSeg's tools/metric.py and vaihingen_test.py: all pixels count, the last class is in no mean.
    hits, predicted, true = np.diag(counts), counts.sum(0), counts.sum(1)
    with np.errstate(invalid="ignore"):
        iou = hits / (predicted + true - hits)
        precision, recall = hits / predicted, hits / true
        f1 = 2 * precision * recall / (precision + recall)
    f1[(predicted + true > 0) & np.isnan(f1)] = 0  # there it would be no number, where a class is never right
    assert scores["miou"] == pytest.approx(np.nanmean(iou[:-1]))
    assert scores["f1"] == pytest.approx(np.nanmean(f1[:-1]))
    assert scores["accuracy"] == pytest.approx(hits.sum() / counts.sum())
    assert true[-1] > 0, "clutter is labelled, and no part of the means"
    assert "The labels are those of the column `scoring_label`." in results_to_markdown(results)
    assert (results["label_column"], results["scored_classes"]) == ("scoring_label", list(CLASS_NAMES[:5]))


def test_the_labels_of_the_training_score_more_pixels(made):
    folder, model, processor = made
    full = _evaluate(folder)["combinations"]["rgb+nir"]
    assert np.abs(np.array(full["confusion"]) - _counts(model, processor, eroded=False)).sum() <= 4
    assert full["pixels"] == sum(tile_ids(tile).size for tile in POTSDAM_TEST)


def test_a_column_that_is_not_there_is_one_line(made, capsys):
    folder, *_ = made
    rows = load_rows(folder / "rows", "test")
    with pytest.raises(ValueError, match="no column 'scoring_lable' of labels; did you mean scoring_label"):
        with_label_column(rows, "scoring_lable")
    assert "scoring_label" not in with_label_column(rows, "scoring_label").column_names
    assert with_label_column(rows, "label") is rows
    paths = ["--model", str(folder / "model"), "--dataset", str(folder / "rows"), "--output", str(folder / "no.json")]
    capsys.readouterr()
    assert main([*paths, "--split", "test", "--label_column", "eroded"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "no column 'eroded'" in error and not (folder / "no.json").exists()


@pytest.mark.parametrize("column", ["id", "nir"])
def test_ids_and_modalities_are_no_labels_to_score_by(made, capsys, column):
    folder, *_ = made
    rows = ["--dataset", str(folder / "rows"), "--label_column", column, "--output", str(folder / "no.jsonl")]
    expected = f"no column '{column}' of labels. Columns that may be labels: "
    assert main(["--model", str(folder / "model"), "--split", "test", *rows]) == 2
    assert expected in capsys.readouterr().err
    assert compare([*rows, "--arms", "mean", "--max_steps", "1"]) == 2
    error = capsys.readouterr().err
    assert expected in error and "Traceback" not in error and not (folder / "no.jsonl").exists()


def test_rows_with_labels_to_score_by_are_trained_on(made, tmp_path):
    folder, _, processor = made
    row = load_rows(folder / "rows", "train")[0]
    inputs = processor(images=[{name: row[name] for name in ("rgb", "nir")}], return_tensors="pt")
    whole = processor(images=[{k: v for k, v in row.items() if k != "ndsm"}], return_tensors="pt")
    assert torch.equal(inputs["pixel_values"], whole["pixel_values"])
    assert row["label"] != row["scoring_label"]
    assert np.isfinite(train_one_step(folder / "rows", tmp_path))
