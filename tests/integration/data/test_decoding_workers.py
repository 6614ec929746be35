"""Processes that decode: the same pixels, the same errors, and an end whatever happens."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from bigtransfer.data import decoding_workers as module
from bigtransfer.data.batches import Squares, TrainBatches, evaluation_batches
from bigtransfer.data.decoding_workers import DecodingWorkers, decoding_workers
from bigtransfer.data.shards import Shards
from bigtransfer.errors import DatasetError, InfrastructureError
from fixtures.project import PROJECT

pytestmark = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="needs Linux")


@pytest.fixture(scope="module")
def workers() -> Iterator[DecodingWorkers]:
    own = DecodingWorkers(2)
    yield own
    own.close()


def train(shards: Shards, how: str, workers: DecodingWorkers | None) -> TrainBatches:
    squares = Squares(shards, shards.rows("train"), 12, keep=False, workers=workers)
    return TrainBatches(squares, batch_size=30, crop=9, flip=True, seed=3, how=how)  # type: ignore[arg-type]


@pytest.mark.parametrize("how", ["square", "inception"])
def test_batches_are_those_of_threads(how: str, shards: Shards, workers: DecodingWorkers) -> None:
    own, expected = train(shards, how, workers), train(shards, how, None)
    for step, batch in enumerate(own.ahead(0, 5)):
        other = expected.batch(step)
        for one, another in zip(batch, other, strict=True):
            assert np.array_equal(one, another)


def test_many_threads_and_sizes_share_them(shards: Shards, workers: DecodingWorkers) -> None:
    rows = shards.rows("train")
    sides = [5, 40, 7, 64, 12]

    def whole(side: int, some: DecodingWorkers | None) -> list[bytes]:
        squares = Squares(shards, rows, side, keep=False, workers=some)
        return [batch.images.tobytes() for batch in evaluation_batches(squares, 20)]

    with ThreadPoolExecutor(len(sides)) as pool:
        found = list(pool.map(lambda side: whole(side, workers), sides))
    assert found == [whole(side, None) for side in sides]
    kept = Squares(shards, rows, 12, workers=workers).kept
    assert kept is not None
    assert kept.tobytes() == b"".join(whole(12, None))


def test_an_image_that_does_not_decode_is_named(damaged: Shards, workers: DecodingWorkers) -> None:
    squares = Squares(damaged, damaged.rows("train"), 12, keep=False, workers=workers)
    with pytest.raises(DatasetError, match="sample '.*' .*; run `validate` and `shard` again"):
        squares.get(np.arange(len(squares)))


@pytest.fixture
def damaged(shards: Shards, monkeypatch: pytest.MonkeyPatch) -> Shards:
    from bigtransfer.data.shards import ShardReader

    part_of, read = ShardReader.part_of, ShardReader.read
    monkeypatch.setattr(
        ShardReader,
        "part_of",
        lambda own, row: (*part_of(own, row)[:2], 40 if row == 5 else part_of(own, row)[2]),
    )
    monkeypatch.setattr(
        ShardReader, "read", lambda own, row: read(own, row)[: 40 if row == 5 else None]
    )
    return shards


def test_a_process_that_was_killed_is_told_of(shards: Shards) -> None:
    own = DecodingWorkers(1)
    squares = Squares(shards, shards.rows("train"), 12, keep=False, workers=own)
    squares.get(np.arange(2))
    (worker,) = own._workers
    worker._process.kill()
    with pytest.raises(InfrastructureError, match="a process that decodes images has ended"):
        squares.get(np.arange(2))
    own.close()


def test_ctrl_c_in_a_terminal_does_not_reach_them(workers: DecodingWorkers) -> None:
    for worker in workers._workers:
        assert os.getsid(worker._process.pid) == worker._process.pid


def test_they_end_with_the_process_that_was_killed(tmp_path: Path) -> None:
    program = (
        "import sys, time; from bigtransfer.data.decoding_workers import DecodingWorkers;"
        "own = DecodingWorkers(2); print(*[w._process.pid for w in own._workers], flush=True);"
        "time.sleep(60)"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", program], cwd=PROJECT, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    pids = [int(pid) for pid in parent.stdout.readline().split()]
    parent.kill()
    parent.communicate()
    end = time.monotonic() + 60
    while any(is_running(pid) for pid in pids):
        assert time.monotonic() < end
        time.sleep(0.05)
    assert len(pids) == 2


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def test_there_are_as_many_as_help(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_opened", {})
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(24)))
    monkeypatch.setattr(module, "_Worker", lambda: None)
    monkeypatch.setattr("atexit.register", lambda function: None)
    assert decoding_workers(for_gpu=False) is None
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    found = decoding_workers(for_gpu=True)
    assert found is not None
    assert found.count == 6
    assert decoding_workers(for_gpu=True) is found, "one set for a process"
    monkeypatch.setattr(module, "_opened", {})
    monkeypatch.delenv("LOCAL_WORLD_SIZE")
    most = decoding_workers(for_gpu=True)
    assert most is not None
    assert most.count == 16
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "12")
    monkeypatch.setattr(module, "_opened", {})
    assert decoding_workers(for_gpu=True) is None, "two threads do as much"
