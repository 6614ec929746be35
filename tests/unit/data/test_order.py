from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bigtransfer.data.order import Order, sizes_by_shard


def sizes(shards: int, samples: int) -> np.ndarray:
    edges = np.arange(shards + 1) * samples // shards
    return np.diff(edges)


@given(samples=st.integers(1, 200), batch=st.integers(1, 64), seed=st.integers(0, 2**32))
@settings(max_examples=50, deadline=None)
def test_one_lane_sees_every_sample_once_an_epoch_and_drops_none(
    samples: int, batch: int, seed: int
) -> None:
    order = Order(np.array([samples]), batch, seed)
    seen = np.concatenate([order.batch(step)[1] for step in range(3 * samples // batch + 1)])
    for epoch in range(3):
        part = seen[epoch * samples : (epoch + 1) * samples]
        assert len(np.unique(part)) == len(part)


@pytest.mark.parametrize(("shards", "samples", "batch"), [(64, 6400, 64), (128, 9999, 256)])
def test_many_lanes_see_every_sample_at_most_once_and_few_are_dropped(
    shards: int, samples: int, batch: int
) -> None:
    order = Order(sizes(shards, samples), batch, seed=1)
    assert order.lanes == 64
    per_epoch = order.samples_per_lane * 64
    assert samples - per_epoch <= shards
    by_epoch: dict[int, list[int]] = {0: [], 1: []}
    for step in range(per_epoch // batch * 2):
        for epoch, sample in zip(*order.batch(step), strict=True):
            by_epoch[int(epoch)].append(int(sample))
    for seen in by_epoch.values():
        assert len(seen) == len(set(seen))
        assert len(seen) >= per_epoch - batch
    assert by_epoch[0] != by_epoch[1]


@pytest.mark.parametrize("shards", [1, 64])
@pytest.mark.parametrize("world_size", [2, 4, 8])
def test_ranks_share_the_very_same_global_batches(shards: int, world_size: int) -> None:
    order = Order(sizes(shards, 1000), 64, seed=5)
    for step in range(40):
        whole = order.batch(step)
        fresh = Order(sizes(shards, 1000), 64, seed=5)  # nothing is carried from step to step
        parts = [fresh.batch(step, rank, world_size) for rank in range(world_size)]
        for which in (0, 1):
            assert np.array_equal(whole[which], np.concatenate([part[which] for part in parts]))


def test_a_rank_reads_only_the_shards_of_its_lanes_each_once_an_epoch() -> None:
    order = Order(sizes(128, 12800), 128, seed=0)
    shard_of = np.repeat(np.arange(128), 100)
    steps = order.samples_per_lane * 64 // 128
    read = [set(), set()]
    for step in range(steps):
        for rank in (0, 1):
            samples = order.batch(step, rank, 2)[1]
            used = set(shard_of[samples].tolist())
            assert used <= set(order.soon(step, rank, 2)), "what comes was announced"
            read[rank] |= used
    assert not read[0] & read[1]
    assert len(read[0] | read[1]) == 128


def test_ranks_share_any_batch_and_more_of_them_than_images_are_refused() -> None:
    order = Order(np.array([100]), 64, 0)
    shares = [order.batch(1, rank, 3)[1] for rank in range(3)]
    assert sorted(map(len, shares)) == [21, 21, 22]
    assert np.array_equal(np.concatenate(shares), order.batch(1)[1])
    with pytest.raises(ValueError, match="a batch of 64 is too small for 65 ranks"):
        order.batch(0, 0, 65)


def test_order_depends_on_the_seed_and_on_nothing_else() -> None:
    first, same, other = (Order(sizes(64, 6400), 64, seed) for seed in (1, 1, 2))
    assert np.array_equal(first.batch(50)[1], same.batch(50)[1])
    assert not np.array_equal(first.batch(50)[1], other.batch(50)[1])


def test_memory_does_not_grow_with_the_number_of_samples_seen() -> None:
    order = Order(sizes(1024, 1_000_000), 4096, seed=0)
    order.batch(0)
    tracemalloc.start()
    for step in range(0, 500, 5):  # two epochs
        order.batch(step)
    early = tracemalloc.get_traced_memory()[0]
    for step in range(500, 3000, 5):
        order.batch(step)
    late = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert late < early + 2_000_000


def test_three_hundred_million_samples_are_planned_lane_by_lane() -> None:
    order = Order(sizes(64 * 5120, 300_000_000), 4096, seed=0)
    tracemalloc.start()
    epochs, samples = order.batch(70_000, rank=3, world_size=64)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(np.unique(samples)) == 64
    assert peak < 60_000_000  # the permutation of the shards, not of the samples


def test_sizes_by_shard() -> None:
    assert sizes_by_shard(np.array([2, 2, 5, 5, 5])).tolist() == [2, 3]
    assert sizes_by_shard(np.array([2, 1, 2])).tolist() == [3]


def test_looking_ahead_from_another_thread_disturbs_nothing() -> None:
    from concurrent.futures import ThreadPoolExecutor

    order, alone = (Order(sizes(64, 192), 64, seed=0) for _ in range(2))
    with ThreadPoolExecutor(2) as pool:
        looking = pool.submit(lambda: [order.soon(step) for step in range(3000)])
        for step in range(3000):
            assert np.array_equal(order.batch(step)[1], alone.batch(step)[1])
        looking.result()
