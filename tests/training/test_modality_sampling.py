import json

import numpy as np
import pytest

from sgma_hf.training.row_sampling import (
    ROW_KEY,
    EpochRows,
    EpochStatistics,
    ModalityAwareSampler,
    RowKey,
    RowWeightsFile,
    SamplingState,
    draw_counts,
    modality_fragility,
    row_weights,
)


NAN = float("nan")


def test_every_row_comes_once_per_epoch_without_weights():
    sampler = ModalityAwareSampler(10, seed=0)
    sampler.set_epoch(4)
    keys = list(sampler)
    assert len(sampler) == 10
    assert sorted(key.index for key in keys) == list(range(10))
    assert {(key.epoch, key.repeat, key.dropout) for key in keys} == {(4, 0, None)}


def test_order_depends_on_seed_epoch_and_weights_alone():
    first, second, other_seed = (ModalityAwareSampler(50, seed=seed) for seed in (1, 1, 2))
    assert list(first) == list(second) == list(first)
    assert list(first) != list(other_seed)
    second.set_epoch(1)
    assert [key.index for key in first] != [key.index for key in second]


def test_rows_know_by_what_key_they_were_asked_for():
    rows = EpochRows([{"id": "a"}, {"id": "b"}])
    assert len(rows) == 2
    assert rows[RowKey(3, 1)] == {"id": "b", ROW_KEY: RowKey(3, 1)}


def test_fragility_by_hand():
    # f = (1/0.8, 1/0.2) / 6.25 = (0.2, 0.8); d = (1, 3) / 4; phi = 2 / 2 * (f + d)
    statistics = EpochStatistics(robustness=[0.8, 0.2], single_loss=[1.0, 3.0])
    np.testing.assert_allclose(modality_fragility(statistics, 2), [0.45, 1.55])
    np.testing.assert_allclose(modality_fragility(EpochStatistics(robustness=[0.8, 0.2]), 2), [0.7, 1.3])
    np.testing.assert_allclose(modality_fragility(EpochStatistics(), 3), [1, 1, 1])
    np.testing.assert_allclose(modality_fragility(EpochStatistics(robustness=[0.5, NAN]), 2), [1, 1])


def test_rows_with_fragile_modalities_and_hard_rows_weigh_more():
    present = np.array([[True, True], [True, False], [False, True]])
    fragile = EpochStatistics(robustness=[0.8, 0.2], single_loss=[1.0, 3.0])
    np.testing.assert_allclose(row_weights(fragile, present, max_ratio=16.0), [1, 0.45, 1.55])
    hard = EpochStatistics(row_losses=[1.0, 4.0, 1.0])  # mean 2: (1/2, 2, 1/2) ** 0.5
    expected = np.array([2**-0.5, 2**0.5, 2**-0.5])
    np.testing.assert_allclose(row_weights(hard, present), expected / expected.mean())
    np.testing.assert_allclose(row_weights(hard, present, hardness=0), [1, 1, 1])


def test_no_row_starves():
    losses = EpochStatistics(row_losses=[1e-6, 1.0, 1e6, NAN])
    weights = row_weights(losses, np.ones((4, 2), dtype=bool), hardness=2.0, max_ratio=4.0)
    assert weights.max() / weights.min() <= 4 + 1e-12
    assert weights.mean() == pytest.approx(1)


def test_weights_are_uniform_when_there_is_nothing_to_learn():
    present = np.ones((5, 3), dtype=bool)
    np.testing.assert_allclose(row_weights(EpochStatistics(), present), 1)
    equal = EpochStatistics([1 / 3] * 3, [0.7] * 3, [0.4] * 5)
    np.testing.assert_allclose(row_weights(equal, present), 1)


def test_drawn_counts_fit_the_expected_ones():
    weights = np.array([0.5, 0.5, 1.0, 1.0, 2.0, 1.0, 1.5, 0.5])
    expected = weights * len(weights) / weights.sum()
    generator = np.random.default_rng(0)
    epochs = 2000
    draws = np.stack([draw_counts(weights, generator) for _ in range(epochs)])
    assert (draws.sum(1) == len(weights)).all()
    assert (np.abs(draws - expected) < 1).all()
    chi_square = ((draws.sum(0) - epochs * expected) ** 2 / (epochs * expected)).sum()
    assert chi_square < 14.07  # the 95 % quantile at 7 degrees of freedom


def test_repeats_of_a_row_are_numbered():
    sampler = ModalityAwareSampler(4, seed=0)
    sampler.weights, sampler.dropout = np.array([3.0, 0.5, 0.25, 0.25]), (0.1, 0.2)
    keys = list(sampler)
    assert len(keys) == 4
    assert sorted(key.repeat for key in keys if key.index == 0) == list(range(3))
    assert {key.dropout for key in keys} == {(0.1, 0.2)}


def test_padding_fills_up_the_last_batch_and_is_marked():
    sampler = ModalityAwareSampler(7, seed=0, multiple=4)
    keys = list(sampler)
    assert len(sampler) == len(keys) == 8
    assert [key.padding for key in keys] == [False] * 7 + [True]
    assert sorted(key.index for key in keys[:7]) == list(range(7))


def test_what_is_not_known_of_one_modality_leaves_the_others_their_share():
    statistics = EpochStatistics(robustness=[0.8, 0.2, NAN])
    # shares 0.2 and 0.8 of two thirds, and one third; the loss is not known: one third each
    np.testing.assert_allclose(modality_fragility(statistics, 3), [0.7, 1.3, 1.0])


def test_what_an_epoch_did_not_see_keeps_its_earlier_value():
    earlier = EpochStatistics([0.6, 0.4], None, [1.0, 2.0])
    newer = {"robustness": [NAN, 0.3], "single_loss": [0.5, 0.6], "row_losses": [NAN, 1.0]}
    assert earlier.updated_by(newer) == EpochStatistics([0.6, 0.3], [0.5, 0.6], [1.0, 1.0])


def test_the_state_survives_json_exactly():
    state = SamplingState(3, EpochStatistics([0.1, 0.2 + 1e-17], None, [NAN, 1 / 3]))
    again = SamplingState.from_dict(json.loads(json.dumps(state.to_dict(), allow_nan=False)))
    assert (again.epoch, again.frozen.robustness, again.frozen.single_loss) == (3, [0.1, 0.2 + 1e-17], None)
    np.testing.assert_array_equal(np.array(again.frozen.row_losses, dtype=float), [NAN, 1 / 3])


def test_row_weights_of_a_resumed_run_stand_there_once(tmp_path):
    path = tmp_path / "run" / "row_weights.jsonl"
    first = RowWeightsFile(path.parent, 0)
    for epoch in range(3):
        first.write(epoch, np.array([1.0, 2 / 3, 4 / 3 + epoch]))
    with path.open("a") as file:
        file.write('{"epoch":3,"wei')  # killed while it was written
    resumed = RowWeightsFile(path.parent, 2)  # the last checkpoint was in epoch 2
    resumed.write(2, np.array([1.0, 0.123456789, 2.0]))
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines == [
        {"epoch": 0, "weights": [1.0, 0.666667, 1.33333]},
        {"epoch": 1, "weights": [1.0, 0.666667, 2.33333]},
        {"epoch": 2, "weights": [1.0, 0.123457, 2.0]},
    ]
    path.write_text('{"epoch":0,"weights":[1.0]}\nno JSON\n')
    RowWeightsFile(path.parent, 9)  # a damaged line stops no run
    assert path.read_text() == '{"epoch":0,"weights":[1.0]}\n'
    RowWeightsFile(path.parent, 0)  # another run in the same folder
    assert path.read_text() == ""
