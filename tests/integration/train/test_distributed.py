"""Any number of processes is the same training: DDP and FSDP2 over gloo against one process."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fixtures.distributed import TRAINING, Ended, by_torchrun, forked
from fixtures.project import TESTS, environment
from fixtures.servers import reserved_port, wait_for_port
from fixtures.training import STEPS

pytestmark = pytest.mark.xdist_group("distributed")

_alone: dict[str, Any] = {}
Start = Callable[..., Ended]


def loop(start: Start, processes: int, shards: Path, output: Path, *more: str) -> dict[str, Any]:
    ended = start(processes, shards, output, "--float64", *more)
    assert ended.good, ended.stderr[-3000:]
    found: dict[str, Any] = torch.load(output / "state.pt", weights_only=True)
    return found


def distance(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


@pytest.mark.parametrize(
    ("start", "processes", "more"),
    [
        (by_torchrun, 2, []),
        (forked, 3, ["--micro-batch-size", "2"]),
        pytest.param(
            forked, 3, ["--micro-batch-size", "1", "--parallel", "fsdp"], marks=pytest.mark.long
        ),
    ],
)
def test_loss_weights_and_momentum_are_those_of_one_process(
    packed: Path, tmp_path: Path, start: Start, processes: int, more: list[str]
) -> None:
    if not _alone:  # the same data in every test of this file
        _alone.update(loop(forked, 1, packed, tmp_path / "one"))
    alone = _alone
    many = loop(start, processes, packed, tmp_path / "many", *more)
    pairs = zip(alone["losses"], many["losses"], strict=True)
    assert max(abs(a - b) for a, b in pairs) < 1e-9
    assert distance(alone["weights"], many["weights"]) < 1e-9
    assert distance(alone["momentum"], many["momentum"]) < 1e-9


@pytest.fixture
def port() -> Iterator[int]:
    with reserved_port() as free:
        yield free


def losses(folder: Path) -> dict[int, float]:
    with (folder / "h.csv").open() as file:
        return {int(row["step"]): float(row["loss"]) for row in csv.DictReader(file)}


@pytest.mark.long
def test_a_run_goes_on_with_other_numbers_of_processes(packed: Path, tmp_path: Path) -> None:
    alone = forked(1, packed, tmp_path / "alone")
    assert alone.good, alone.stderr[-3000:]
    there = tmp_path / "changing"
    stopped = by_torchrun(2, packed, there, "--stop-at", "6")
    assert not stopped.good
    assert "stopped by" in stopped.stderr
    again = forked(1, packed, there, "--stop-at", "12")
    assert again.codes == (75,), again.stderr[-3000:]
    assert "resuming at step" in again.stdout
    split = forked(3, packed, there, "--parallel", "fsdp", "--stop-at", "18")
    assert split.codes == (75, 75, 75), split.stderr[-3000:]
    assert "stopped by" in split.stderr
    last = forked(2, packed, there)
    assert last.good, last.stderr[-3000:]
    expected, found = losses(tmp_path / "alone"), losses(there)
    assert found.keys() == expected.keys()
    assert found[1] == pytest.approx(expected[1], abs=1e-6)
    # Sums in another order: rounding grows from here on, so later losses are not compared.
    assert found[6] == pytest.approx(expected[6], rel=1e-4)


@pytest.mark.long
def test_a_lost_node_costs_the_steps_since_the_last_checkpoint(
    packed: Path, tmp_path: Path, port: int
) -> None:
    there = tmp_path / "elastic"
    there.mkdir()
    line = [
        sys.executable, "-m", "torch.distributed.run", "--nnodes", "1:2", "--nproc-per-node", "1",
        "--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}", "--rdzv-id", "test",
        "--rdzv-conf", "last_call_timeout=3,keep_alive_interval=5", "--max-restarts", "5",
        "-m", TRAINING, "--shards", str(packed), "--output", str(there), "--slow", "0.3",
    ]  # fmt: skip
    nodes = []
    for name in ("stays", "dies"):
        with (there / name).open("wb") as log:
            nodes.append(
                subprocess.Popen(
                    line, cwd=there, stdout=log, stderr=log, start_new_session=True,
                    env=environment(PYTHONPATH=TESTS,
                                    OMP_NUM_THREADS="1"),
                )
            )  # fmt: skip
        if name == "stays":
            wait_for_port(port, nodes[0])  # it is the one that holds the meeting point
    stays, dies = nodes
    try:
        deadline = time.monotonic() + 100
        while not list(there.glob("work/*/step-*/MANIFEST.json")):
            assert time.monotonic() < deadline and stays.poll() is None, (
                there / "stays"
            ).read_text()
            time.sleep(0.05)
        os.killpg(dies.pid, signal.SIGKILL)
        assert stays.wait(100) == 0, (there / "stays").read_text()[-3000:]
    finally:
        for node in nodes:
            with suppress(ProcessLookupError):
                os.killpg(node.pid, signal.SIGKILL)
            node.wait()
    said = (there / "stays").read_text() + (there / "dies").read_text()
    assert "resuming at step" in (there / "stays").read_text(), said[-3000:]
    worlds = {json.loads(p.read_text())["world_size"] for p in there.glob("seen-*.json")}
    assert worlds == {1, 2}, "it began with two and ended with one"
    assert set(losses(there)) == {1, 6, 12, 18, 20, STEPS}


def test_two_processes_write_one_set_of_outputs(packed: Path, tmp_path: Path) -> None:
    result = by_torchrun(2, packed, tmp_path / "two")
    assert result.good, result.stderr[-3000:]
    assert (tmp_path / "two" / "checkpoint" / "MANIFEST.json").is_file()
    assert result.stdout.count("pretrain:") <= 1
