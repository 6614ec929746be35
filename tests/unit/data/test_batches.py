"""Batches: which images, in which order, cropped and mirrored how; the same for any division."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bigtransfer.data.batches import (
    Squares,
    TrainBatches,
    balanced_positions,
    evaluation_batches,
    few_shot_rows,
)
from bigtransfer.data.shards import Shards
from bigtransfer.errors import DatasetError
from fixtures.datasets import batches


def test_batch_is_a_pure_function_of_the_step(shards: Shards) -> None:
    forward = [batches(shards).batch(step) for step in range(9)]
    fresh = batches(shards)
    for step in reversed(range(9)):
        again = fresh.batch(step)
        assert np.array_equal(again.images, forward[step].images)
        assert np.array_equal(again.rows, forward[step].rows)


@pytest.mark.parametrize("batch_size", [1, 5, 18, 40])
def test_every_epoch_holds_every_image_once(shards: Shards, batch_size: int) -> None:
    source = batches(shards, batch_size)
    train = shards.rows("train")
    seen = np.concatenate([source.batch(step).rows for step in range(90 // batch_size + 1)])
    for epoch in range(3):
        part = seen[epoch * len(train) : (epoch + 1) * len(train)]
        assert sorted(part) == sorted(train)
    assert not np.array_equal(seen[: len(train)], seen[len(train) : 2 * len(train)])


def test_augmentation_does_not_depend_on_the_batch_split(shards: Shards) -> None:
    small, large = batches(shards, 3), batches(shards, 9)
    together = large.batch(1)
    apart = [small.batch(step) for step in (3, 4, 5)]
    assert np.array_equal(together.images, np.concatenate([b.images for b in apart]))
    assert np.array_equal(together.labels, np.concatenate([b.labels for b in apart]))


def test_crops_and_flips_vary_and_are_parts_of_the_image(shards: Shards) -> None:
    squares = Squares(shards, shards.rows("train")[:1], 12)
    source = TrainBatches(squares, batch_size=64, crop=9, flip=True, seed=0)
    whole = squares.get(np.array([0]))[0]
    cuts = {
        (flipped, top, left): (whole[top : top + 9, left : left + 9][:, ::flipped]).tobytes()
        for flipped in (1, -1) for top in range(4) for left in range(4)
    }  # fmt: skip
    found = {image.tobytes() for image in source.batch(0).images}
    assert found <= set(cuts.values())
    assert len(found) > 16


def test_evaluation_sees_every_image_once_last_partial_batch_too(shards: Shards) -> None:
    squares = Squares(shards, shards.rows("test"), 12)
    parts = list(evaluation_batches(squares, 4))
    assert [len(b.labels) for b in parts] == [4, 2]
    assert np.array_equal(np.concatenate([b.rows for b in parts]), shards.rows("test"))


def test_squares_from_disk_equal_those_in_memory(
    shards: Shards, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = Squares(shards, shards.rows("train"), 10)
    monkeypatch.setattr("bigtransfer.data.batches.RAM_BYTES", 0)
    read = Squares(shards, shards.rows("train"), 10)
    positions = np.array([3, 0, 3])
    assert np.array_equal(kept.get(positions), read.get(positions))


def test_few_shot_subsets_are_balanced_seeded_and_nested() -> None:
    labels = np.random.default_rng(0).integers(0, 4, 200)
    two, five = few_shot_rows(labels, 2, seed=1), few_shot_rows(labels, 5, seed=1)
    assert np.bincount(labels[five]).tolist() == [5] * 4
    assert set(two) <= set(five)
    assert set(five) != set(few_shot_rows(labels, 5, seed=2))
    with pytest.raises(ValueError, match="class 0 has"):
        few_shot_rows(labels, 100, seed=0)


@pytest.mark.parametrize("how", ["square", "inception"])
@pytest.mark.parametrize("world_size", [2, 4, 8])
def test_ranks_and_threads_give_the_same_pixels_before_and_after_a_resume(
    shards: Shards, how: Any, world_size: int
) -> None:
    def source(threads: int, **rank: int) -> TrainBatches:
        squares = Squares(shards, shards.rows("train"), 12, threads=threads)
        return TrainBatches(squares, batch_size=8, crop=9, flip=True, seed=1, how=how, **rank)

    whole = list(source(1).ahead(0, 7))
    for start in range(7):
        ranks = [
            list(source(rank % 3 + 1, rank=rank, world_size=world_size).ahead(start, 7))
            for rank in range(world_size)
        ]
        for step, batch in enumerate(whole[start:]):
            parts = [batches[step] for batches in ranks]
            assert np.array_equal(batch.images, np.concatenate([p.images for p in parts]))
            assert np.array_equal(batch.rows, np.concatenate([p.rows for p in parts]))
            assert np.array_equal(batch.labels, np.concatenate([p.labels for p in parts]))


def test_batches_made_ahead_are_those_asked_for_and_waiting_is_measured(shards: Shards) -> None:
    source = batches(shards)
    for step, batch in enumerate(source.ahead(3, 9), start=3):
        assert np.array_equal(batch.images, batches(shards).batch(step).images)
    assert source.waited_seconds > 0


def test_loader_that_is_left_early_ends(shards: Shards) -> None:
    for _ in batches(shards).ahead(0, 1000):
        break


def test_fault_in_a_thread_reaches_the_caller(
    shards: Shards, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = batches(shards)

    def fails(step: int) -> None:
        raise DatasetError("a sample is gone")

    monkeypatch.setattr(source, "batch", fails)
    with pytest.raises(DatasetError, match="a sample is gone"):
        next(source.ahead(0, 3))


def test_balanced_positions_hold_every_class_equally_often() -> None:
    labels = np.r_[np.zeros(40, np.int64), np.ones(4, np.int64), np.full(7, 3)]
    found = balanced_positions(labels, 0)
    assert np.unique(labels[found], return_counts=True)[1].tolist() == [40, 40, 40]
    times = np.bincount(found, minlength=len(labels))
    assert (times[:40] == 1).all()
    assert (times[40:44] == 10).all()
    assert set(times[44:]) == {5, 6}
    assert (found == balanced_positions(labels, 0)).all()
    assert (found != balanced_positions(labels, 1)).any()
