"""What is run to measure cost: the variants, the modalities that are present, peaks of memory."""

import pytest
import torch
from tiny_models import PVT_V2
from torch.utils.flop_counter import FlopCounterMode

from sgma_hf.cost.memory import CLEAR_REFS, measure_memory
from sgma_hf.cost.timing import (
    VARIANTS,
    BenchmarkCase,
    measure_host,
    measure_loading,
    measure_subsets,
    median_ratio,
    time_in_turn,
)
from sgma_hf.training.arguments import PVT_V2_SIZES


def test_one_variant_is_the_packages_own_and_the_others_the_papers():
    for name in VARIANTS:
        config = BenchmarkCase(PVT_V2, size=32).build(name).config
        ours = (16, 1.0) if name == "SGMA with adapters and Dice" else (0, 0.0)
        assert (config.modality_adapter_size, config.dice_loss_weight) == ours


def test_only_the_modalities_that_are_present_are_run(monkeypatch):
    case = BenchmarkCase(PVT_V2, size=32, batch_size=2, num_present=1)
    batch = case.batch()
    assert batch["pixel_values"].shape == (2, 5, 32, 32)
    assert batch["modality_mask"].tolist() == [[True, False, False]] * 2
    shapes = []
    for name in ("SGMA", "bare backbone"):
        model = case.build(name)
        model.sgma.backbone.register_forward_pre_hook(lambda module, inputs: shapes.append(inputs[0].shape))
        monkeypatch.setattr(BenchmarkCase, "build", lambda case, variant, model=model: model)
        case.passes(name, training=False)()
        monkeypatch.undo()
    assert shapes == [(2, 3, 32, 32), (2, 3, 32, 32)]


def test_the_bare_encoder_sees_as_many_pixels_as_the_models_do():
    counted = []
    for size in (40, 64):
        step = BenchmarkCase(PVT_V2, size=size).passes("bare backbone", training=False)
        with FlopCounterMode(display=False) as counter:
            step()
        counted.append(counter.get_total_flops())
    assert counted[0] == counted[1] > 0


def test_all_that_is_timed_is_in_the_precision_that_is_asked_for(monkeypatch):
    case = BenchmarkCase(PVT_V2, size=32, num_modalities=2, bf16=True)
    model, found = case.build(), []
    model.decode_head.register_forward_hook(lambda module, inputs, output: found.append(output.dtype))
    monkeypatch.setattr("sgma_hf.cost.timing._combinations_agree", lambda case: True)
    monkeypatch.setattr(BenchmarkCase, "build", lambda case: model)
    measure_subsets(case, repeats=1)
    batch = case.batch()
    measure_loading(case, [], lambda rows: batch, repeats=1)
    assert len(found) > 10 and set(found) == {torch.bfloat16}


def test_gaps_and_bfloat16_reach_the_model(monkeypatch):
    case = BenchmarkCase(PVT_V2, size=33, batch_size=2, gaps=True, bf16=True)
    batch = case.batch()
    assert batch["modality_mask"].sum((0, 2)).tolist() == [[66] * 33] * 2 + [[66] * 22 + [0] * 11]
    assert batch["host_mask"] == [[1.0, 1.0, 0.5]] * 2
    model, outputs = case.build(), []
    model.register_forward_hook(lambda module, inputs, output: outputs.append(output.logits.dtype))
    monkeypatch.setattr(BenchmarkCase, "build", lambda case, variant: model)
    case.passes("SGMA", training=False)()
    assert outputs == [torch.bfloat16]


def test_operators_of_both_passes_are_counted_and_the_bare_encoder_has_the_fewest():
    host = measure_host(BenchmarkCase(PVT_V2, size=32), ["SGMA", "mean fusion", "bare backbone"])
    for kind in ("training", "inference"):
        sgma, mean, backbone = host[kind]["operators"].values()
        assert sgma > mean > backbone > 0
        assert set(host[kind]["waits"].values()) == {None}  # nothing waits for a CPU
    assert host["training"]["operators"]["bare backbone"] > 2 * host["inference"]["operators"]["bare backbone"]


@pytest.mark.long
@pytest.mark.skipif(not CLEAR_REFS.exists(), reason="peaks can be set back on Linux only")
def test_memory_of_a_training_step_holds_the_gradients():
    case = BenchmarkCase({"model_type": "pvt_v2", **PVT_V2_SIZES["pvt_v2_b0"]}, size=64, num_modalities=2)
    figures = measure_memory(case, ["mean fusion", "bare backbone"])
    peaks = figures["training"]["bytes"]
    gradients = 4 * case.build("mean fusion").num_parameters()
    assert peaks["mean fusion"] > gradients > figures["inference"]["bytes"]["mean fusion"] > 0
    ratio = peaks["mean fusion"] / peaks["bare backbone"]
    assert figures["training"]["to_backbone"] == {"mean fusion": pytest.approx(ratio), "bare backbone": 1}


def test_functions_take_turns_after_a_round_that_is_not_counted():
    calls = []
    seconds = time_in_turn({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, repeats=2)
    assert calls == ["a", "b"] * 3
    assert {name: len(rounds) for name, rounds in seconds.items()} == {"a": 2, "b": 2}


def test_a_slow_spell_does_not_change_a_ratio():
    assert median_ratio([2.0, 20.0, 2.2], [1.0, 10.0, 1.0]) == 2.0
