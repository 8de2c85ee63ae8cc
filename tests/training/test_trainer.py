import json
import resource
import shutil
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from tiny_trainers import (
    CHANNELS,
    MODALITIES,
    TINY_BACKBONE,
    make_config,
    make_rows,
    make_rows_of_five_sizes,
    make_trainer,
    state_of,
)

from sgma_hf import (
    SgmaConfig,
    SgmaDataCollator,
    SgmaForSemanticSegmentation,
    SgmaImageProcessor,
    SgmaTrainer,
    SgmaTrainingArguments,
)


pytestmark = pytest.mark.long


def test_training_lowers_the_loss_and_logs_its_terms_per_modality(tmp_path):
    trainer = make_trainer(tmp_path, num_train_epochs=12, modality_dropout=[0.3], learning_rate=3e-3)
    trainer.train()
    history = [entry for entry in trainer.state.log_history if "loss_sgf" in entry]
    first, last = history[0], history[-1]
    assert last["loss_sgf"] < first["loss_sgf"]
    for name in ("loss_mas", "robustness/rgb", "sampling_probability/dsm"):
        assert 0 < first[name], name
    weighted = 2 * first["loss_sgf"] + first["loss_mas"]
    assert first["loss"] == pytest.approx(weighted, abs=1e-3)


def test_bfloat16_trains_float32_weights_to_about_the_same_loss(tmp_path):
    losses = []
    for bf16 in (False, True):
        trainer = make_trainer(tmp_path / str(bf16), num_train_epochs=4, bf16=bf16)
        trainer.train()
        assert {parameter.dtype for parameter in trainer.model.parameters()} == {torch.float32}
        losses.append([entry["loss"] for entry in trainer.state.log_history if "loss_sgf" in entry])
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)  # 8 bits: 0.4 % for each number


def test_logged_probabilities_sum_to_one_where_nothing_is_missing(tmp_path):
    rows = [row for row in make_rows() if all(row[name] is not None for name in MODALITIES) and row["id"] != "row1"]
    trainer = make_trainer(tmp_path, rows=rows, modality_dropout=[0.0])
    trainer.train()
    entry = next(entry for entry in trainer.state.log_history if "loss_sgf" in entry)
    for kind in ("robustness", "sampling_probability"):
        assert sum(entry[f"{kind}/{name}"] for name in MODALITIES) == pytest.approx(1, abs=1e-5)


def test_resuming_at_an_epochs_end_gives_the_uninterrupted_weights_bit_for_bit(tmp_path):
    uninterrupted = make_trainer(tmp_path / "a", save_strategy="epoch", eval_strategy="epoch")
    uninterrupted.train()
    resumed = make_trainer(tmp_path / "b", save_strategy="epoch", eval_strategy="epoch")
    shutil.copytree(tmp_path / "a" / "checkpoint-3", tmp_path / "b" / "checkpoint-3")
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == uninterrupted.state.global_step == 6
    expected = state_of(uninterrupted)
    for name, tensor in state_of(resumed).items():
        assert torch.equal(tensor, expected[name]), name


def test_resuming_in_mid_epoch_gives_the_uninterrupted_weights_bit_for_bit(tmp_path):
    uninterrupted = make_trainer(tmp_path / "a", save_strategy="steps", save_steps=2)
    uninterrupted.train()
    resumed = make_trainer(tmp_path / "b", save_strategy="steps", save_steps=2)
    shutil.copytree(tmp_path / "a" / "checkpoint-4", tmp_path / "b" / "checkpoint-4")
    resumed.train(resume_from_checkpoint=True)
    expected = state_of(uninterrupted)
    for name, tensor in state_of(resumed).items():
        assert torch.equal(tensor, expected[name]), name


def test_accumulating_gradients_equals_a_large_batch(tmp_path):
    rows = make_rows(8)
    rows[0]["label"][:, :20] = 255  # batches with different numbers of valid pixels
    rows[3]["nir"] = rows[3]["nir"][:16, :16]
    large = make_trainer(tmp_path / "a", rows=rows, per_device_train_batch_size=4, num_train_epochs=1)
    accumulated = make_trainer(
        tmp_path / "b", rows=rows, per_device_train_batch_size=1, gradient_accumulation_steps=4, num_train_epochs=1
    )
    for trainer in (large, accumulated):
        trainer.model.config.classifier_dropout_prob = trainer.model.decode_head.dropout.p = 0.0
        trainer.train()
    losses = [[entry["loss"] for entry in t.state.log_history if "loss_sgf" in entry] for t in (large, accumulated)]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)
    expected = state_of(large)
    for name, tensor in state_of(accumulated).items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-4, atol=1e-5, msg=name)


def test_accumulating_gradients_equals_a_large_batch_of_unequal_rows(tmp_path):
    results = []
    for batch_size, accumulation in ((4, 1), (2, 2), (1, 4)):
        changes = {"per_device_train_batch_size": batch_size, "gradient_accumulation_steps": accumulation}
        trainer = make_trainer(tmp_path / str(batch_size), rows=make_rows_of_five_sizes(), noise_std=[0.1], **changes)
        trainer.model.config.classifier_dropout_prob = trainer.model.decode_head.dropout.p = 0.0
        trainer.train()
        names = ("loss", "loss_sgf", "loss_mas")
        losses = [[entry[name] for name in names] for entry in trainer.state.log_history if "loss_sgf" in entry]
        results.append((torch.tensor(losses), state_of(trainer)))
    (expected_losses, expected), *others = results
    assert len(expected_losses) == 4
    for losses, state in others:
        torch.testing.assert_close(losses, expected_losses, rtol=1e-5, atol=1e-5)
        for name, tensor in state.items():
            torch.testing.assert_close(tensor, expected[name], rtol=1e-5, atol=1e-5, msg=name)


def test_rows_with_the_fragile_modality_come_more_often_after_the_first_epoch(tmp_path):
    rows = make_rows(9)
    trainer = make_trainer(tmp_path, rows=rows, modality_dropout=[0.3])
    trainer.train()
    first, second = [entry for entry in trainer.state.log_history if "row_weight/max" in entry]
    assert first["row_weight/min"] == first["row_weight/max"] == 1
    assert first["fragility/rgb"] == 1 and first["modality_dropout/rgb"] == pytest.approx(0.3)
    assert second["row_weight/min"] < 1 < second["row_weight/max"] <= 4
    assert sum(second[f"fragility/{name}"] for name in MODALITIES) == pytest.approx(3)
    for name in MODALITIES:
        assert second[f"modality_dropout/{name}"] == pytest.approx(0.3 ** second[f"fragility/{name}"])


def test_a_training_row_without_any_modality_is_named(tmp_path):
    rows = make_rows()
    rows[4] |= dict.fromkeys(MODALITIES)
    with pytest.raises(ValueError, match=r"1 of 6 training rows have none .*'row4'"):
        make_trainer(tmp_path, rows=rows)


def test_the_size_trained_on_is_kept_with_and_without_crops(tmp_path):
    trainer = make_trainer(tmp_path / "crops", max_steps=1)
    trainer.train()
    assert trainer.model.config.tile_size == trainer.processing_class.reference_window == 24
    finetuned = make_trainer(tmp_path / "whole", model=trainer.model, crop_size=None, max_steps=1)
    finetuned.evaluate()
    assert finetuned.model.config.tile_size == 24  # nothing was trained at another size yet
    assert finetuned.processing_class.reference_window is None
    finetuned.train()
    assert finetuned.model.config.tile_size == finetuned.processing_class.reference_window == 32
    with pytest.raises(ValueError, match="needs a `train_dataset`"):
        SgmaTrainer(trainer.model, trainer.args, processing_class=trainer.processing_class).train()


def test_the_augmentation_of_a_given_collator_counts(tmp_path):
    rows = [row for row in make_rows() if all(row[name] is not None for name in MODALITIES) and row["id"] != "row1"]
    collator = SgmaDataCollator(
        SgmaImageProcessor(MODALITIES, CHANNELS), crop_size=16, random_flip=False, modality_dropout=[0.0, 0.0, 0.0]
    )
    trainer = make_trainer(tmp_path, rows=rows, data_collator=collator, modality_dropout=[0.9])
    recorded = trainer.training_record().arguments
    assert (recorded["crop_size"], recorded["random_flip"], recorded["modality_dropout"]) == (16, False, [0, 0, 0])
    trainer.train()
    assert trainer.model.config.tile_size == 16
    assert trainer.sampler.dropout == (0, 0, 0)
    second = [entry for entry in trainer.state.log_history if "row_weight/max" in entry][1]
    assert second["row_weight/min"] < second["row_weight/max"]  # losses of single rows were seen


def test_a_collator_of_another_class_or_processor_is_refused(tmp_path):
    turned = SgmaDataCollator(SgmaImageProcessor(MODALITIES[::-1], CHANNELS[::-1]))
    with pytest.raises(ValueError, match=r"has other \['modalities', .*\] than `processing_class`, which is"):
        make_trainer(tmp_path, data_collator=turned)
    with pytest.raises(TypeError, match="`data_collator` is a function; expected an SgmaDataCollator"):
        make_trainer(tmp_path, data_collator=lambda rows: {})


def test_row_sampling_is_off_by_one_argument(tmp_path):
    trainer = make_trainer(tmp_path, robustness_sampling=False)
    trainer.train()
    assert trainer.sampler.weights is None and trainer.sampler.dropout is None
    assert not [entry for entry in trainer.state.log_history if "row_weight/max" in entry]


def test_loader_workers_see_the_same_rows(tmp_path):
    alone = make_trainer(tmp_path / "a")
    alone.train()
    with_workers = make_trainer(tmp_path / "b", dataloader_num_workers=1)
    with_workers.train()
    expected = state_of(alone)
    for name, tensor in state_of(with_workers).items():  # other copies in memory, whose last bits may differ
        torch.testing.assert_close(tensor, expected[name], rtol=1e-4, atol=1e-5, msg=name)


def test_evaluation_reports_every_combination_and_chooses_the_best_checkpoint(tmp_path):
    trainer = make_trainer(
        tmp_path,
        eval_strategy="epoch",
        save_strategy="epoch",
        load_best_model_at_end=True,
    )
    trainer.train()
    metrics = [entry for entry in trainer.state.log_history if "eval_average_miou" in entry]
    assert len(metrics) == 2
    assert {name for name in metrics[0] if name.startswith("eval_miou/")} == {
        f"eval_miou/{name}" for name in ("rgb", "dsm", "nir", "rgb+dsm", "rgb+nir", "dsm+nir", "rgb+dsm+nir")
    }
    assert metrics[0]["eval_last1_miou"] <= metrics[0]["eval_average_miou"] <= metrics[0]["eval_top1_miou"]
    assert trainer.state.best_metric == max(entry["eval_average_miou"] for entry in metrics)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("loss", ""),
        ("miou/dsm+rgb", "miou/dsm+nir"),
        ("eval_miou", "miou/rgb"),
        ("iou/dsm/LABEL_7", "iou/dsm/LABEL_2"),
    ],
)
def test_a_metric_that_no_evaluation_gives_is_refused_before_training(tmp_path, name, hint):
    options = {"eval_strategy": "epoch", "save_strategy": "epoch", "load_best_model_at_end": True}
    with pytest.raises(ValueError) as caught:
        make_trainer(tmp_path, metric_for_best_model=name, **options)
    assert str(caught.value) == (
        f"`metric_for_best_model` is {name!r}{hint and f'; did you mean {hint}?'}; expected a score such as "
        "average_miou, last1_miou, top1_miou, miou/rgb+dsm+nir, iou/rgb/LABEL_0, average_f1/LABEL_0."
    )
    assert make_trainer(tmp_path, metric_for_best_model=name).evaluate()["eval_miou/rgb+dsm"] is not None


@pytest.mark.parametrize("name", ["eval_miou/rgb+dsm", "last1_miou", "iou/dsm/LABEL_1", "average_f1/LABEL_2"])
def test_the_best_checkpoint_can_be_chosen_by_any_score(tmp_path, name):
    options = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1, "max_steps": 1}
    trainer = make_trainer(tmp_path, load_best_model_at_end=True, metric_for_best_model=name, **options)
    trainer.train()
    [scores] = [entry for entry in trainer.state.log_history if "eval_average_miou" in entry]
    assert trainer.state.best_metric == scores[f"eval_{name.removeprefix('eval_')}"]


def test_with_several_evaluation_sets_the_metric_names_one(tmp_path):
    trainer = make_trainer(tmp_path)
    arguments = {"output_dir": str(tmp_path), "use_cpu": True, "eval_strategy": "epoch"}
    options = {
        "processing_class": trainer.processing_class,
        "eval_dataset": {"north": make_rows(), "south": make_rows()},
    }
    with pytest.raises(
        ValueError, match=r"'average_miou'; did you mean .* expected a score such as north_average_miou,"
    ):
        SgmaTrainer(trainer.model, SgmaTrainingArguments(**arguments), **options)
    args = SgmaTrainingArguments(**arguments, metric_for_best_model="south_average_miou")
    assert SgmaTrainer(trainer.model, args, **options).eval_dataset.keys() == {"north", "south"}


def test_of_several_evaluation_sets_the_one_that_chose_says_so(tmp_path):
    sets = {"south": make_rows(2), "south_coast": make_rows(3)}
    options = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1, "max_steps": 1}
    chosen = {"load_best_model_at_end": True, "metric_for_best_model": "eval_south_coast_miou/rgb"}
    first = make_trainer(tmp_path)
    args = SgmaTrainingArguments(str(tmp_path), use_cpu=True, per_device_train_batch_size=2, **options, **chosen)
    processor = first.processing_class
    trainer = SgmaTrainer(first.model, args, processing_class=processor, train_dataset=make_rows(), eval_dataset=sets)
    trainer.train()
    found = {name: trainer.score(rows)["chosen_by"] for name, rows in sets.items()}
    assert found == {"south": None, "south_coast": "eval_south_coast_miou/rgb"}


def test_schedule_ramps_from_a_tenth_and_decays_by_the_papers_power(tmp_path):
    trainer = make_trainer(tmp_path, learning_rate=1.0, warmup_steps=2)
    trainer.create_optimizer()
    scheduler = trainer.create_scheduler(num_training_steps=10)
    rates = []
    for _ in range(11):
        rates.append(trainer.optimizer.param_groups[0]["lr"])
        trainer.optimizer.step()
        scheduler.step()
    expected = [0.1, 0.55] + [(1 - step / 8) ** 0.9 for step in range(9)]
    np.testing.assert_allclose(rates, expected, rtol=1e-12)


def test_schedule_ends_at_the_rate_asked_for(tmp_path):
    options = {"lr_scheduler_kwargs": {"power": 2.0, "lr_end": 0.2}}
    trainer = make_trainer(tmp_path, learning_rate=1.0, warmup_steps=1, **options)
    trainer.create_optimizer()
    trainer.create_scheduler(num_training_steps=5)
    rates = []
    for _ in range(7):
        rates.append(trainer.optimizer.param_groups[0]["lr"])
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
    # 0.2 + 0.8 * (1, 9/16, 1/4, 1/16, 0) after one step of warm-up
    np.testing.assert_allclose(rates, [0.1, 1.0, 0.65, 0.4, 0.25, 0.2, 0.2], rtol=1e-12)


def test_a_schedule_that_waits_for_a_plateau_goes_by_the_score(tmp_path):
    options = {"lr_scheduler_type": "reduce_lr_on_plateau", "lr_scheduler_kwargs": {"patience": 0}}
    trainer = make_trainer(tmp_path, learning_rate=1.0, eval_strategy="epoch", **options)
    trainer.create_optimizer()
    scheduler = trainer.create_scheduler(num_training_steps=10)
    rates = []
    for score in (0.2, 0.3, 0.3, 0.4):
        scheduler.step(score)
        rates.append(trainer.optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([1.0, 1.0, 0.1, 0.1])  # a tenth once the score rises no more


def test_the_papers_optimiser_is_the_default(tmp_path):
    args = SgmaTrainingArguments(str(tmp_path), use_cpu=True)
    assert (args.learning_rate, args.weight_decay, args.adam_epsilon) == (6e-5, 1e-2, 1e-8)
    assert (args.num_train_epochs, args.lr_scheduler_kwargs) == (200, {"power": 0.9})
    assert SgmaTrainingArguments(str(tmp_path), use_cpu=True, lr_scheduler_type="cosine").lr_scheduler_kwargs is None


def test_a_checkpoint_cut_off_while_saving_is_passed_over_or_refused(tmp_path):
    trainer = make_trainer(tmp_path, save_strategy="epoch")
    trainer.train()
    (tmp_path / "checkpoint-6" / "trainer_state.json").write_text('{"global_st')
    again = make_trainer(tmp_path, save_strategy="no")
    again.train(resume_from_checkpoint=True)  # from checkpoint-3
    expected = state_of(trainer)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in state_of(again).items())
    with pytest.raises(ValueError, match=r"not a complete checkpoint.*checkpoint-3"):
        make_trainer(tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    with pytest.raises(ValueError, match="no complete checkpoint"):
        make_trainer(tmp_path / "empty").train(resume_from_checkpoint=True)


def test_a_checkpoint_of_steps_of_other_sizes_is_refused(tmp_path):
    make_trainer(tmp_path, save_strategy="steps", save_steps=2, max_steps=2).train()
    accumulated = make_trainer(tmp_path, per_device_train_batch_size=1, gradient_accumulation_steps=2)
    accumulated.train(resume_from_checkpoint=True)  # two rows per step, as before
    with pytest.raises(ValueError, match="was trained with 2 rows per step by 1 processes; this run has 4: 1 process"):
        make_trainer(tmp_path, per_device_train_batch_size=4).train(resume_from_checkpoint=True)


def test_a_checkpoint_knows_the_batch_that_was_found_to_fit(tmp_path, monkeypatch):
    compute_loss, batches = SgmaTrainer.compute_loss, []

    def compute_loss_of_one(trainer, model, inputs, **kwargs):
        batches.append(len(inputs["labels"]))
        if batches[-1] > 1:
            raise RuntimeError("CUDA out of memory.")
        return compute_loss(trainer, model, inputs, **kwargs)

    monkeypatch.setattr(SgmaTrainer, "compute_loss", compute_loss_of_one)
    options = {"auto_find_batch_size": True, "save_strategy": "steps", "save_steps": 2}
    make_trainer(tmp_path, max_steps=2, **options).train()
    make_trainer(tmp_path, max_steps=3, **options).train(resume_from_checkpoint=True)
    assert batches == [2, 1, 1, 1]
    make_trainer(tmp_path, max_steps=3, per_device_train_batch_size=1).train(resume_from_checkpoint=True)
    with pytest.raises(ValueError, match="was trained with 1 rows per step by 1 processes; this run has 2: 1 process"):
        make_trainer(tmp_path, max_steps=3).train(resume_from_checkpoint=True)


def test_a_checkpoint_of_another_model_is_refused_by_what_differs(tmp_path):
    make_trainer(tmp_path, save_strategy="steps", save_steps=2, max_steps=2).train()
    wider = TINY_BACKBONE | {"hidden_sizes": [8, 8, 16, 32]}
    config = make_config(backbone_config=wider, dice_loss_weight=0.5)
    other = make_trainer(tmp_path, model=SgmaForSemanticSegmentation(config), crop_size=16)
    with pytest.raises(ValueError, match="start anew") as caught:
        other.train(resume_from_checkpoint=True)
    assert (
        "another model than this run: `backbone_config.hidden_sizes` is [8, 8, 16, 16] there, [8, 8, 16, 32] here; "
        "`dice_loss_weight` is 1.0 there, 0.5 here; `tile_size` is 24 there, 16 here."
    ) in str(caught.value)


def test_resuming_a_run_that_has_ended_trains_no_further(tmp_path):
    options = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4, "lr_scheduler_type": "constant"}
    ended = make_trainer(tmp_path, **options)  # in mid-epoch
    ended.train()
    record = (tmp_path / "learning_dynamics.json").read_bytes()
    resumed = make_trainer(tmp_path, **options)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 4
    expected = state_of(ended)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in state_of(resumed).items())
    assert (tmp_path / "learning_dynamics.json").read_bytes() == record


def test_weights_of_all_rows_are_written_once_per_epoch(tmp_path):
    trainer = make_trainer(tmp_path, num_train_epochs=3)
    trainer.train()
    lines = [json.loads(line) for line in (tmp_path / "row_weights.jsonl").open()]
    assert [line["epoch"] for line in lines] == [0, 1, 2]
    assert lines[0]["weights"] == [1.0] * 6
    np.testing.assert_allclose(lines[2]["weights"], trainer.sampler.weights, rtol=1e-5)
    logged = [entry for entry in trainer.state.log_history if "row_weight/max" in entry]
    assert max(lines[1]["weights"]) == pytest.approx(logged[1]["row_weight/max"], rel=1e-5)


def test_disk_full_while_saving_leaves_the_previous_checkpoint_loadable(tmp_path):
    make_trainer(tmp_path).model.save_pretrained(tmp_path / "model")
    before = (tmp_path / "model" / "model.safetensors").read_bytes()
    code = f"""
        import resource, signal
        from sgma_hf import SgmaForSemanticSegmentation
        model = SgmaForSemanticSegmentation.from_pretrained({str(tmp_path / "model")!r})
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, ({len(before) // 2}, resource.RLIM_INFINITY))
        model.decode_head.classifier.weight.data.zero_()
        try:
            model.save_pretrained({str(tmp_path / "model")!r})
        except Exception as error:
            print("failed", type(error).__name__)
    """
    result = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=120)
    assert "failed" in result.stdout, result.stderr
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == before
    assert SgmaForSemanticSegmentation.from_pretrained(tmp_path / "model").config.num_labels == 3
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[1] == resource.RLIM_INFINITY  # only the child was limited


def test_processor_and_model_have_to_agree(tmp_path):
    trainer = make_trainer(tmp_path)
    with pytest.raises(ValueError, match="have to be the same, in one order"):
        SgmaTrainer(
            trainer.model,
            trainer.args,
            processing_class=SgmaImageProcessor(["dsm", "rgb", "nir"], [1, 3, 1]),
            train_dataset=make_rows(),
        )
    trainer.model.config.semantic_loss_ignore_index = -100
    with pytest.raises(ValueError, match=r"`semantic_loss_ignore_index` is -100; .* Set it to 255"):
        make_trainer(tmp_path, model=trainer.model)


def test_training_on_several_gpus_in_one_process_is_refused_with_both_remedies(tmp_path):
    trainer = make_trainer(tmp_path)
    trainer.args._n_gpu = 2  # what transformers counts where two GPUs are visible
    with pytest.raises(ValueError, match=r"sees 2 GPUs.*`accelerate launch`.*CUDA_VISIBLE_DEVICES=0"):
        trainer.train()
    assert trainer.evaluate()["eval_average_miou"] is not None


def test_rows_are_needed_and_have_to_be_countable(tmp_path):
    with pytest.raises(ValueError, match="`train_dataset` has no rows"):
        make_trainer(tmp_path, rows=[])
    trainer = make_trainer(tmp_path)
    with pytest.raises(TypeError, match="without a length"):
        SgmaTrainer(
            trainer.model, trainer.args, processing_class=trainer.processing_class, train_dataset=iter(make_rows())
        )


def test_checkpoints_hold_everything_that_loading_needs(tmp_path):
    trainer = make_trainer(tmp_path, save_strategy="epoch")
    trainer.train()
    names = {path.name for path in (tmp_path / "checkpoint-6").iterdir()}
    assert {"config.json", "model.safetensors", "preprocessor_config.json", "modeling_sgma.py"} <= names
    auto_map = json.loads((tmp_path / "checkpoint-6" / "config.json").read_text())["auto_map"]
    assert auto_map["AutoModel"] == "modeling_sgma.SgmaForSemanticSegmentation"


def test_class_weights_multiply_the_loss_of_their_pixels():
    torch.manual_seed(0)
    config = {"num_labels": 3, "backbone_config": TINY_BACKBONE, "decoder_hidden_size": 16, "dice_loss_weight": 0}
    plain = SgmaForSemanticSegmentation(SgmaConfig(**config)).eval()
    weighted = SgmaForSemanticSegmentation(SgmaConfig(**config, class_weights=[1.0, 3.0, 0.0])).eval()
    weighted.load_state_dict(plain.state_dict())
    pixel_values, labels = torch.randn(1, 5, 32, 32), torch.randint(3, (1, 32, 32))
    single = [plain(pixel_values, labels=torch.where(labels == k, labels, 255)).loss.item() for k in range(3)]
    counts = [(labels == k).sum().item() for k in range(3)]
    expected = (counts[0] * single[0] + 3 * counts[1] * single[1]) / sum(counts)
    assert weighted(pixel_values, labels=labels).loss.item() == pytest.approx(expected, rel=1e-5)
    with pytest.raises(ValueError, match="expected 3 finite numbers"):
        SgmaConfig(**config, class_weights=[1.0, 2.0])


def test_what_would_not_be_called_is_refused(tmp_path):
    trainer = make_trainer(tmp_path)
    given = {"processing_class": trainer.processing_class, "train_dataset": make_rows(2)}
    with pytest.raises(TypeError, match=r"does not call \['compute_metrics'\].*`evaluate` in a subclass"):
        SgmaTrainer(trainer.model, trainer.args, **given, compute_metrics=lambda prediction: {})
    with pytest.raises(NotImplementedError, match=r"For scores call `evaluate\(dataset\)`"):
        trainer.predict(make_rows(2))
