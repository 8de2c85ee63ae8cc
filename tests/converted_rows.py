"""What the tests of the benchmark converters do with a converted folder."""

import torch
from datasets import load_dataset
from tiny_models import tiny_config

from sgma_hf import SgmaForSemanticSegmentation, SgmaImageProcessor, SgmaTrainer, SgmaTrainingArguments
from sgma_hf.dataset_schema import DatasetMetadata, decode_row, labelled_rows, load_rows


def decoded(out, split):
    """Rows by id: (images, label)."""
    names = DatasetMetadata.load(out).modalities
    return {row["id"]: decode_row(row, names) for row in load_rows(out, split)}


def null_columns(rows):
    """Columns that are None, by row id."""
    return {row["id"]: {name for name, value in row.items() if value is None} for row in rows}


def assert_streams_the_same(out, split):
    """Rows of `load_dataset` and of its stream have the same nulls and the same bytes in `label`."""
    columns = load_dataset(str(out), split=split)
    stream = load_dataset(str(out), split=split, streaming=True)
    assert columns.features == stream.features == DatasetMetadata.load(out).features()
    assert null_columns(columns) == null_columns(stream)


def train_one_step(out, output_dir):
    """Take one step on labelled training rows, through processor, collator and trainer; returns the loss."""
    metadata = DatasetMetadata.load(out)
    rows = labelled_rows(load_rows(out, "train"))
    arrays = (decode_row(row, metadata.modalities)[0] for row in rows)
    processor = SgmaImageProcessor.fit(
        arrays, metadata.modalities, metadata.modality_channels, nodata=metadata.nodata, rescale_factor=1.0
    )
    torch.manual_seed(0)
    config = tiny_config(
        modalities=metadata.modalities,
        modality_channels=metadata.modality_channels,
        num_labels=len(metadata.class_names),
    )
    arguments = SgmaTrainingArguments(
        str(output_dir),
        max_steps=1,
        per_device_train_batch_size=2,
        crop_size=32,
        use_cpu=True,
        disable_tqdm=True,
        save_strategy="no",
        report_to=[],
    )
    trainer = SgmaTrainer(
        SgmaForSemanticSegmentation(config), arguments, processing_class=processor, train_dataset=rows
    )
    before = {name: value.clone() for name, value in trainer.model.named_parameters()}
    loss = trainer.train().training_loss
    assert any(not torch.equal(value, before[name]) for name, value in trainer.model.named_parameters())
    return loss
