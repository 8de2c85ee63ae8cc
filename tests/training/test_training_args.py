import pytest
import torch
from transformers import TrainingArguments

from sgma_hf import SgmaTrainingArguments


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("remove_unused_columns", True, "expected False, because the collator reads the columns"),
        ("label_smoothing_factor", 0.3, "expected 0.0, because the loss is the model's own"),
        ("neftune_noise_alpha", 5.0, "expected None, because images have no embeddings"),
        ("train_sampling_strategy", "sequential", "expected 'random', because `ModalityAwareSampler` draws"),
        ("train_sampling_strategy", "group_by_length", "expected 'random'"),
        ("average_tokens_across_devices", False, "expected True, because the loss is divided by"),
        ("label_names", ["label"], "expected None"),
        ("prediction_loss_only", True, "expected False, because evaluation gives scores"),
        ("include_for_metrics", ["inputs"], r"expected \[\]"),
        ("batch_eval_metrics", True, "expected False"),
        ("eval_accumulation_steps", 1, "expected None, because evaluation counts pixels"),
        ("eval_do_concat_batches", False, "expected True"),
        ("eval_use_gather_object", True, "expected False"),
        ("bf16_full_eval", True, "expected False, because evaluation is in the precision of the weights"),
    ],
)
def test_what_the_trainer_would_not_follow_is_refused(tmp_path, name, value, reason):
    TrainingArguments(str(tmp_path), use_cpu=True, **{name: value})
    with pytest.raises(ValueError, match=rf"^`{name}` is .*; {reason}"):
        SgmaTrainingArguments(str(tmp_path), use_cpu=True, **{name: value})


def test_float16_is_refused_on_a_cpu_which_would_not_follow(tmp_path):
    with pytest.raises(ValueError, match="`fp16` is True, but a CPU trains in float32 or bfloat16"):
        SgmaTrainingArguments(str(tmp_path), use_cpu=True, fp16=True)
    assert SgmaTrainingArguments(str(tmp_path), use_cpu=True, bf16=True).bf16
    if not torch.accelerator.is_available():
        with pytest.raises(ValueError, match="`bf16` is asked for, as recipes do, but torch sees no GPU"):
            SgmaTrainingArguments(str(tmp_path), bf16=True)


def test_the_start_of_the_warm_up_is_refused_with_a_schedule_that_does_not_follow_it(tmp_path):
    options = {"output_dir": str(tmp_path), "use_cpu": True, "warmup_start_factor": 0.5}
    assert SgmaTrainingArguments(**options).warmup_start_factor == 0.5
    with pytest.raises(ValueError, match="of the polynomial schedule, and `lr_scheduler_type` is 'cosine'; leave one"):
        SgmaTrainingArguments(**options, lr_scheduler_type="cosine")


def test_the_polynomial_schedule_takes_its_power_and_its_end_as_numbers(tmp_path):
    options = {"output_dir": str(tmp_path), "use_cpu": True, "learning_rate": 1e-3}
    args = SgmaTrainingArguments(**options, lr_scheduler_kwargs='{"power": 2, "lr_end": "1e-5"}')
    assert args.lr_scheduler_kwargs == {"power": 2.0, "lr_end": 1e-5}
    args = SgmaTrainingArguments(**options, lr_scheduler_type="cosine", lr_scheduler_kwargs={"num_cycles": 1})
    assert args.lr_scheduler_kwargs == {"num_cycles": 1}


@pytest.mark.parametrize(
    "given",
    [
        {"pwoer": 0.9},
        {"power": 0.9, "last_epoch": 3},
        {"power": "steep"},
        {"lr_end": 2e-3},
        {"lr_end": -1.0},
        "power=2",
    ],
)
def test_what_the_polynomial_schedule_does_not_know_is_refused(tmp_path, given):
    with pytest.raises(ValueError, match=r"^`lr_scheduler_kwargs` is .*its `power`, and `lr_end`, .*, 0.001"):
        SgmaTrainingArguments(str(tmp_path), use_cpu=True, learning_rate=1e-3, lr_scheduler_kwargs=given)


def test_what_another_schedule_does_not_know_is_refused(tmp_path):
    options = {"output_dir": str(tmp_path), "use_cpu": True}
    message = r"has \['cycles'\]; the schedule 'cosine' takes \['num_cycles', 'last_epoch'\]"
    with pytest.raises(ValueError, match=message):
        SgmaTrainingArguments(**options, lr_scheduler_type="cosine", lr_scheduler_kwargs={"cycles": 1})


@pytest.mark.parametrize(
    ("name", "value", "lowest"),
    [
        ("crop_size", 0, 1),
        ("per_device_train_batch_size", 0, 1),
        ("per_device_eval_batch_size", -1, 1),
        ("gradient_accumulation_steps", 0, 1),
        ("save_total_limit", 0, 1),
        ("learning_rate", float("nan"), 0),
        ("learning_rate", float("inf"), 0),
        ("max_grad_norm", -1.0, 0),
        ("eval_steps", -1, 0),
        ("seed", -1, 0),
    ],
)
def test_numbers_out_of_range_are_refused_before_the_rows_are_read(tmp_path, name, value, lowest):
    with pytest.raises(ValueError, match=f"^`{name}` is {value}.*; expected a number of at least {lowest}"):
        SgmaTrainingArguments(str(tmp_path), use_cpu=True, **{name: value})
    SgmaTrainingArguments(str(tmp_path), use_cpu=True, **{name: lowest})


def test_a_run_of_no_step_is_refused(tmp_path):
    for nothing in ({"num_train_epochs": 0}, {"max_steps": 0}):
        with pytest.raises(ValueError, match=r"`max_steps` is .* and `num_train_epochs` .*; nothing is trained"):
            SgmaTrainingArguments(str(tmp_path), use_cpu=True, **nothing)
    SgmaTrainingArguments(str(tmp_path), use_cpu=True, num_train_epochs=0, max_steps=1)


@pytest.mark.parametrize("schedule", ["reduce_lr_on_plateau", "greedy"])
def test_schedules_that_follow_the_score_know_its_direction(tmp_path, schedule):
    options = {"output_dir": str(tmp_path), "use_cpu": True, "eval_strategy": "epoch", "lr_scheduler_type": schedule}
    assert SgmaTrainingArguments(**options).lr_scheduler_kwargs == {"mode": "max"}
    assert SgmaTrainingArguments(**options, greater_is_better=False).lr_scheduler_kwargs == {"mode": "min"}
    given = {"patience": 3, "mode": "min"}
    assert SgmaTrainingArguments(**options, lr_scheduler_kwargs=given).lr_scheduler_kwargs == given


@pytest.mark.parametrize("has_gpu", [True, False])
def test_batches_go_to_a_gpu_without_waiting_where_memory_is_pinned(tmp_path, monkeypatch, has_gpu):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: has_gpu)
    options = {"output_dir": str(tmp_path), "use_cpu": True}
    if not has_gpu:  # there Trainer would warn at every start
        assert not SgmaTrainingArguments(**options).accelerator_config.non_blocking
        return
    assert SgmaTrainingArguments(**options).accelerator_config.non_blocking
    assert not SgmaTrainingArguments(**options, dataloader_pin_memory=False).accelerator_config.non_blocking
    given = SgmaTrainingArguments(**options, accelerator_config={"split_batches": True}).accelerator_config
    assert given.split_batches and not given.non_blocking
