from sgma_hf.data_collator import EPOCH_KEY, INDEX_KEY
from sgma_hf.modality_sampling import EpochRows, EpochSampler


def test_every_row_comes_once_per_epoch_and_carries_the_epoch():
    sampler = EpochSampler(10, seed=0)
    sampler.set_epoch(4)
    keys = list(sampler)
    assert len(sampler) == 10
    assert sorted(index for _, index in keys) == list(range(10))
    assert {epoch for epoch, _ in keys} == {4}


def test_order_depends_on_seed_and_epoch_alone():
    first, second, other_seed = EpochSampler(50, seed=1), EpochSampler(50, seed=1), EpochSampler(50, seed=2)
    assert list(first) == list(second) == list(first)
    assert list(first) != list(other_seed)
    second.set_epoch(1)
    assert [index for _, index in first] != [index for _, index in second]


def test_rows_know_their_epoch_and_index():
    rows = EpochRows([{"id": "a"}, {"id": "b"}])
    assert len(rows) == 2
    assert rows[3, 1] == {"id": "b", EPOCH_KEY: 3, INDEX_KEY: 1}
