"""Temporal consistency: against loops over the clips, and against figures worked by hand."""

from datetime import datetime

import numpy as np
import pytest
import torch
from tiny_models import spread_weights, tiny_model

from sgma_hf.converters.writing.parquet import ParquetDatasetWriter
from sgma_hf.data.metadata import DatasetMetadata
from sgma_hf.data.rows import load_rows
from sgma_hf.evaluation.combinations import evaluate_modality_combinations
from sgma_hf.evaluation.over_time.consistency import TemporalConsistency, rows_of_sequences
from sgma_hf.model.image_processing_sgma import SgmaImageProcessor
from sgma_hf.publishing.results import results_to_markdown


NAMES = ("rgb", "dsm", "sar")


@pytest.fixture
def model():
    return spread_weights(tiny_model()).eval()


@pytest.fixture
def processor():
    return SgmaImageProcessor(modalities=NAMES, modality_channels=[3, 1, 2], reference_level=["none"] * 3)


def _loop(truths, predictions, length):
    """Pixels whose label stays over each clip, and those whose prediction does, too; 255 never counts."""
    counts = []
    for start in range(len(truths) - length + 1):
        stays = both = 0
        for y, x in np.ndindex(truths[0].shape):
            label = {int(truth[y, x]) for truth in truths[start : start + length]}
            predicted = {int(prediction[y, x]) for prediction in predictions[start : start + length]}
            if len(label) == 1 and label != {255} and 255 not in predicted:
                stays += 1
                both += len(predicted) == 1
        counts.append((stays, both))
    return counts


def _mean_share(counts):
    shares = [both / stays for stays, both in counts if stays]
    return (float(np.mean(shares)) if shares else None), len(shares)


def _expected(sequences):
    """The scores of lists of (truth, prediction) by sequence."""
    found = {
        length: [count for frames in sequences for count in _loop(*zip(*frames, strict=True), length)]
        for length in (2, 8, 16)
    }
    stays, both = (sum(counts) for counts in zip(*found[2], strict=True))
    (mvc8, clips8), (mvc16, clips16) = _mean_share(found[8]), _mean_share(found[16])
    return {"flicker": 1 - both / stays, "mvc8": mvc8, "clips8": clips8, "mvc16": mvc16, "clips16": clips16}


def _video(generator, frames, *, size=(5, 6), keeps=0.97):
    """Labels and predictions that mostly stay, with some void and some uncovered pixels."""
    truth, predicted = generator.integers(0, 3, (2, *size))
    made = []
    for _ in range(frames):
        for values in (truth, predicted):
            changed = generator.random(size) > keeps
            values[changed] = generator.integers(0, 3, size)[changed]
        made.append((truth.copy(), predicted.copy()))
        for values in made[-1]:
            values[generator.random(size) < 0.01] = 255
    return made


@pytest.mark.parametrize("batch_size", [1, 4, 7])
def test_clips_are_those_of_a_loop_in_whatever_order_rows_come(batch_size):
    generator = np.random.default_rng(0)
    videos = [_video(generator, frames) for frames in (21, 9, 16, 3, 1)]
    frames = [frame for video in videos for frame in video]
    rows, start = [], 0
    for video in videos:
        rows.append(list(range(start, start + len(video))))
        start += len(video)
    consistency = TemporalConsistency(rows, len(frames), 1, torch.device("cpu"))
    order = generator.permutation(len(frames))
    for part in (order[i : i + batch_size] for i in range(0, len(order), batch_size)):
        truths, predictions = (np.stack([frames[i][k] for i in part]) for k in (0, 1))
        predictions = torch.from_numpy(np.where(truths == 255, 255, predictions)).to(torch.uint8)
        place = torch.tensor([[i, 0, 0] for i in part])
        consistency.add(predictions[None], torch.from_numpy(truths), torch.ones(len(part), 1, dtype=bool), place)
    (scores,) = consistency.scores(torch.tensor([True]))
    assert scores == pytest.approx(_expected(videos))
    assert (scores["clips8"], scores["clips16"]) == (14 + 2 + 9, 6 + 1)
    assert 0 < scores["mvc16"] < scores["mvc8"] < 1 - scores["flicker"] < 1


def test_figures_worked_by_hand():
    truths = np.zeros((9, 1, 4), np.int64)
    truths[4, 0, 3] = 1  # stays over no clip of 8
    predicted = np.zeros((9, 1, 4), np.uint8)
    predicted[8, 0, 0] = 2  # changes in the second clip; always wrong is always consistent
    predicted[:, 0, 1] = 2
    consistency = TemporalConsistency([list(range(9))], 9, 1, torch.device("cpu"))
    place = torch.tensor([[index, 0, 0] for index in range(9)])
    consistency.add(torch.from_numpy(predicted)[None], torch.from_numpy(truths), torch.ones(9, 1, dtype=bool), place)
    (scores,) = consistency.scores(torch.tensor([True]))
    flicker = 1 / (3 * 8 + 6)
    assert scores == {
        "flicker": pytest.approx(flicker),
        "mvc8": (1 + 2 / 3) / 2,
        "clips8": 2,
        "mvc16": None,
        "clips16": 0,
    }


def _rows(count, sequence, *, first=0, size=(32, 40)):
    """Frames of one place that hardly change, their dates in disorder."""
    generator = np.random.default_rng(first)
    still = {
        "rgb": generator.integers(0, 256, (*size, 3), np.uint8),
        "dsm": generator.normal(size=size).astype(np.float32),
        "sar": generator.normal(size=(*size, 2)).astype(np.float32),
    }
    label = np.repeat(generator.integers(0, 5, (size[0], 1), np.uint8), size[1], axis=1)
    rows = []
    for index in generator.permutation(count).tolist():
        change = generator.normal(size=size).astype(np.float32)
        noise = generator.integers(0, 2, (*size, 3), np.uint8) * generator.integers(0, 256, 3, np.uint8)
        moved = {"rgb": still["rgb"] ^ noise, "dsm": still["dsm"] + change, "sar": still["sar"] + change[..., None]}
        truth = np.roll(label, int(index > count // 2), axis=0)
        truth[generator.random(size) < 0.05] = 255
        date = datetime(2019, 3, 1 + index)
        rows.append(
            {"id": f"{sequence} {index}", "sequence": sequence, "label_date": date, **still, **moved, "label": truth}
        )
    return rows


def test_evaluation_follows_the_rows_of_a_sequence_as_separate_predictions_do(model, processor):
    rows = [*_rows(18, "a"), *_rows(9, "b", first=40), *_rows(2, None, first=60)]
    rows[3]["label"] = None  # passed over
    rows[5].update(rgb=None, dsm=None, sar=None)
    for row in rows[6:9]:
        row["dsm"] = None
    rows[10]["dsm"][:, 20:] = np.nan  # a mask per pixel, so another batch than its neighbours
    rows[20]["dsm"] = None
    options = {"window_size": 32, "batch_size": 4}  # two windows that share 24 columns
    combinations = [["rgb"], ["dsm"], ["rgb", "dsm", "sar"]]
    results = evaluate_modality_combinations(model, processor, rows, combinations=combinations, **options)
    for names in combinations:
        sequences = []
        for sequence in ("a", "b"):
            frames = []
            of_sequence = sorted(
                (row for row in rows if row["sequence"] == sequence), key=lambda row: row["label_date"]
            )
            for row in of_sequence:
                if row["label"] is not None and any(row[name] is not None for name in names):
                    frames.append((row["label"], _predict(model, processor, row, names)))
            sequences.append(frames)
        scores = results["combinations"]["+".join(names)]
        expected = _expected(sequences)
        assert {name: scores[name] for name in expected} == pytest.approx(expected)
        assert scores["clips8"] > 0 and 0 < scores["flicker"]
    table = results_to_markdown(results)
    assert "| kappa | mVC8 | mVC16 | flicker | IoU" in table
    assert f"Clips of rgb+dsm+sar: {scores['clips8']} and {scores['clips16']}." in table
    without = [{name: row[name] for name in row if name != "sequence"} for row in rows]
    plain = evaluate_modality_combinations(model, processor, without, combinations=combinations, **options)
    assert "mVC8" not in results_to_markdown(plain)
    single = [row | {"sequence": f"{row['sequence']} {index}"} for index, row in enumerate(rows)]
    found = evaluate_modality_combinations(model, processor, single, combinations=combinations, **options)
    assert found["combinations"]["rgb"]["clips8"] == 0 and "mVC8" not in results_to_markdown(found)
    assert plain["combinations"]["rgb"]["confusion"] == results["combinations"]["rgb"]["confusion"]


def _predict(model, processor, row, names):
    """Class ids of one row from windows of 32 columns, 255 where nothing of the combination covers."""
    predicted = np.full(row["label"].shape, 255)
    for left in (0, row["label"].shape[1] - 32):
        window = {
            name: None if row[name] is None or name not in names else row[name][:, left : left + 32] for name in NAMES
        }
        inputs = processor(images=[window], return_tensors="pt")
        with torch.no_grad():
            outputs = model(**inputs)
        (part,) = processor.post_process_semantic_segmentation(outputs, target_sizes=[(32, 32)])
        kept = slice(0, None) if left == 0 else slice(32 - left, None)  # what the first has is counted there
        predicted[:, left : left + 32][:, kept] = part[:, kept]
    return predicted


def test_a_combination_that_no_row_has_is_not_scored(model, processor):
    rows = _rows(9, "a")
    for row in rows:
        row["dsm"] = None
    results = evaluate_modality_combinations(model, processor, rows)["combinations"]
    assert results["rgb+dsm"] | {"mvc8": None, "flicker": None, "clips8": 0} == results["rgb+dsm"]
    assert results["rgb"]["clips8"] == 2


def test_rows_are_ordered_by_the_date_of_their_label():
    def row(sequence, date, label=0):
        return {"sequence": sequence, "label_date": date, "label": label}

    rows = [
        row("b", "2019-03-02"),
        row("a", None),
        row(None, None),
        row("b", "2019-03-01T10:00+02:00"),
        row("a", None),
    ]
    rows += [row("b", "2019-03-01T09:00"), row("a", None, None), row("b", datetime(2019, 3, 2))]
    assert rows_of_sequences(rows) == [[3, 5, 0, 7], [1, 4]]
    assert rows_of_sequences([row(None, None)]) == []
    rows[1] = row("a", "2019-03-01")
    with pytest.raises(ValueError, match="Of the 2 labelled rows of sequence 'a', 1 have a `label_date`"):
        rows_of_sequences(rows)


def test_rows_of_a_data_set_keep_their_sequence_and_date(tmp_path, model, processor):
    names = {"class_names": list("abcde"), "sequences": True}
    metadata = DatasetMetadata(list(NAMES), [3, 1, 2], ["uint8", "float32", "float32"], **names)
    rows = [*_rows(9, "field"), _rows(1, None)[0] | {"label_date": "2020-05-01T10:00+02:00"}]
    with ParquetDatasetWriter(tmp_path / "data", metadata, title="Flights") as writer:
        for index, row in enumerate(rows):
            images = {name: row[name] for name in NAMES}
            time = {"sequence": row["sequence"], "label_date": row["label_date"]}
            writer.write("test", str(index), images, row["label"], **time)
    loaded = load_rows(tmp_path / "data", "test")
    assert loaded.column_names == ["id", *NAMES, "label", "sequence", "label_date"]
    assert loaded["sequence"] == [row["sequence"] for row in rows]
    assert loaded["label_date"] == [*(row["label_date"] for row in rows[:-1]), datetime(2020, 5, 1, 8)]
    assert DatasetMetadata.load(tmp_path / "data").sequences
    of_files, of_arrays = (evaluate_modality_combinations(model, processor, given) for given in (loaded, rows))
    assert of_files["combinations"] == of_arrays["combinations"]
    assert of_files["combinations"]["dsm"]["clips8"] == 2


def test_a_sequence_without_columns_for_it_is_refused(tmp_path):
    row = _rows(1, "a")[0]
    metadata = DatasetMetadata(list(NAMES), [3, 1, 2], ["uint8", "float32", "float32"], class_names=list("abcde"))
    images = {name: row[name] for name in NAMES}
    with pytest.raises(ValueError, match="Row '0' is of sequence 'a', label date None, but there are no such columns"):
        with ParquetDatasetWriter(tmp_path / "data", metadata, title="Flights") as writer:
            writer.write("test", "0", images, row["label"], sequence="a")
    metadata.sequences = True
    with pytest.raises(ValueError, match="Row '0', column 'label_date': 'May' is no date"):
        with ParquetDatasetWriter(tmp_path / "data", metadata, title="Flights") as writer:
            writer.write("test", "0", images, row["label"], sequence="a", label_date="May")
