import itertools
import logging

import pytest
import torch
from datasets import Dataset, Features, Image, Value
from tiny_trainers import CHANNELS, MODALITIES, Stream, make_rows, make_trainer, state_of

from sgma_hf import SgmaDataCollator, SgmaImageProcessor, SgmaTrainer
from sgma_hf.training.row_sampling import ROW_KEY, RowKey, StreamedRows


def keys_of(loader, count):
    return [(row[ROW_KEY], row["id"]) for row in itertools.islice(loader, count)]


def test_streamed_rows_come_again_and_again_under_keys_of_their_own():
    rows = make_rows(4)
    drawn = keys_of(StreamedRows(Stream(rows)), 10)
    assert [key for key, _ in drawn] == [RowKey(epoch, index) for epoch in range(3) for index in range(4)][:10]
    orders = [[name for _, name in drawn[start : start + 4]] for start in (0, 4)]
    assert sorted(orders[0]) == sorted(orders[1]) and orders[0] != orders[1]
    assert list(StreamedRows(Stream([]))) == []


def test_loader_workers_number_their_rows_apart():
    features = Features({"id": Value("string"), "rgb": Image(), "dsm": Image(), "nir": Image(), "label": Image()})
    rows = Dataset.from_list(make_rows(6), features=features)
    stream = StreamedRows(rows.to_iterable_dataset(num_shards=2))
    loader = torch.utils.data.DataLoader(stream, batch_size=None, num_workers=2)
    drawn = keys_of(loader, 12)
    assert len({key for key, _ in drawn}) == 12
    assert sorted(key.index for key, _ in drawn if key.epoch == 0) == list(range(6))


@pytest.mark.long
def test_a_streamed_run_trains_with_the_collators_own_draws_and_says_what_it_gives_up(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, logger="sgma_hf.training.start"):
        trainer = make_trainer(tmp_path, stream=True, max_steps=4, eval_strategy=None, save_strategy=None)
    [warning] = [record.getMessage() for record in caplog.records if "streamed" in record.getMessage()]
    assert "`robustness_sampling` of rows needs their number and is off" in warning and "\n" not in warning
    first = next(iter(trainer.get_train_dataloader()))
    rows = [row | {ROW_KEY: RowKey(0, index)} for index, row in enumerate(itertools.islice(Stream(make_rows()), 2))]
    processor = SgmaImageProcessor(MODALITIES, CHANNELS)
    expected = SgmaDataCollator(processor, crop_size=24, modality_dropout=[0.3], seed=5)(rows)
    assert torch.equal(first["pixel_values"], expected["pixel_values"])
    assert torch.equal(first["labels"], expected["labels"])
    trainer.train()
    history = trainer.state.log_history
    assert [entry["step"] for entry in history if "loss" in entry] == [1, 2, 3, 4]
    assert any("loss_mas" in entry for entry in history)
    assert [entry["step"] for entry in history if "eval_average_miou" in entry] == [1, 2, 3, 4]
    assert trainer.state.best_model_checkpoint is not None and trainer.args.load_best_model_at_end
    assert trainer.training_record().train_rows is None
    assert not trainer.args.robustness_sampling and trainer.model.config.tile_size == 24


@pytest.mark.long
def test_a_streamed_run_resumes_exactly(tmp_path):
    options = {"max_steps": 5, "save_strategy": "steps", "save_steps": 2, "crop_size": None}
    uninterrupted = make_trainer(tmp_path, stream=True, **options)
    uninterrupted.train()
    assert uninterrupted.model.config.tile_size == 32
    expected = state_of(uninterrupted)
    resumed = make_trainer(tmp_path, stream=True, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert all(torch.equal(tensor, expected[name]) for name, tensor in state_of(resumed).items())


def test_a_streamed_run_needs_its_number_of_steps(tmp_path):
    with pytest.raises(ValueError, match=r"`train_dataset` is streamed, .* set `max_steps`"):
        make_trainer(tmp_path, stream=True)


def test_rows_to_evaluate_on_are_not_streamed(tmp_path):
    trainer = make_trainer(tmp_path)
    with pytest.raises(TypeError, match=r"^`eval_dataset` is a Stream without a length; .* without streaming"):
        SgmaTrainer(
            trainer.model, trainer.args, processing_class=trainer.processing_class, eval_dataset=Stream(make_rows())
        )
