"""A model of series learns courses through time: figures of the made-up fields, which docs/series.md has."""

import numpy as np
import pytest
import torch

from sgma_hf import (
    SgmaConfig,
    SgmaForSemanticSegmentation,
    SgmaImageProcessor,
    SgmaTrainer,
    SgmaTrainingArguments,
    evaluate_modality_combinations,
)
from sgma_hf.converters.demo_series import demo_series_metadata, demo_series_rows
from sgma_hf.model.dates_sgma import to_days
from sgma_hf.model.limits_sgma import YEARLY_PERIODS


pytestmark = pytest.mark.long

METADATA = demo_series_metadata()
NAMES = METADATA.modalities
ENCODER = {
    "model_type": "pvt_v2",
    "hidden_sizes": [16, 32, 48, 64],
    "depths": [1, 1, 1, 1],
    "num_attention_heads": [1, 1, 2, 2],
    "mlp_ratios": [2, 2, 2, 2],
    "drop_path_rate": 0.0,
}


def one_date(row, choose):
    """The row with the date of each sensor that `choose` gives of its images and days."""
    chosen = dict(row)
    for name in NAMES:
        days = [to_days(day) for day in row[f"{name}_dates"]]
        index = choose(row[name], days)
        chosen |= {name: [row[name][index]], f"{name}_dates": [days[index]]}
    return chosen


def clearest(images, days):
    return int(np.argmax([(image != 0).any(2).mean() for image in images]))


def nearest_to(day_of_year):
    """Days of any year: those of 2000-01-01 are 0, and a year has 365.25."""
    return lambda images, days: int(np.argmin([abs(day % 365.25 - day_of_year) for day in days]))


def train(folder, rows, periods, steps):
    torch.manual_seed(0)
    config = SgmaConfig(
        modalities=NAMES,
        modality_channels=METADATA.modality_channels,
        num_labels=len(METADATA.class_names),
        backbone_config=ENCODER,
        decoder_hidden_size=32,
        date_periods=periods,
    )
    arguments = SgmaTrainingArguments(
        str(folder),
        max_steps=steps,
        per_device_train_batch_size=8,
        learning_rate=4e-3,
        modality_dropout=[0.25],
        robustness_sampling=False,
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
        report_to=[],
    )
    processor = SgmaImageProcessor.fit(rows, NAMES, METADATA.modality_channels, nodata=METADATA.nodata)
    model = SgmaForSemanticSegmentation(config)
    SgmaTrainer(model, arguments, processing_class=processor, train_dataset=rows).train()
    return model, processor


def score(trained, rows):
    """Mean IoU from both sensors, in percent."""
    results = evaluate_modality_combinations(*trained, rows, batch_size=16)
    return 100 * results["combinations"]["s2+s1"]["miou"]


def test_a_course_is_learned_that_no_single_date_shows(tmp_path):
    """In 95 seconds of one CPU core: 70 from all dates, 22 from one, 28 with dates shuffled."""
    rows = {}
    for split, row_id, images, label in demo_series_rows(num_rows=600):
        rows.setdefault(split, []).append({"id": row_id, **images, "label": label})
    trained, test = train(tmp_path / "series", rows["train"], list(YEARLY_PERIODS), 500), rows["test"]
    rng = np.random.default_rng(0)
    shuffled = [row | {f"{name}_dates": rng.permutation(row[f"{name}_dates"]) for name in NAMES} for row in test]
    unknown = [row | {f"{name}_dates": None for name in NAMES} for row in test]
    figures = {"all": score(trained, test), "shuffled": score(trained, shuffled), "unknown": score(trained, unknown)}
    figures["clearest"] = score(trained, [one_date(row, clearest) for row in test])
    for day in range(60, 330, 45):
        figures[f"day {day}"] = score(trained, [one_date(row, nearest_to(day)) for row in test])
    single = {split: [one_date(row, clearest) for row in rows[split]] for split in ("train", "test")}
    static = train(
        tmp_path / "static", [row | {f"{name}_dates": None for name in NAMES} for row in single["train"]], None, 400
    )
    figures["static"] = score(static, single["test"])
    assert figures["all"] > 60, figures
    single_dates = [value for name, value in figures.items() if name not in ("all", "shuffled", "unknown")]
    assert len(single_dates) == 8 and max(single_dates) < 25, figures
    assert max(figures["shuffled"], figures["unknown"]) < figures["all"] - 20, figures
