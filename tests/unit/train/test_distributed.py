"""Any number of processes is the same training: DDP and FSDP2 over gloo against one process."""

from __future__ import annotations

import csv
import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fixtures.project import PROJECT, environment
from fixtures.training import STEPS

_alone: dict[str, Any] = {}
WORKER = ["-m", "fixtures.processes.training"]


def start(
    processes: int, shards: Path, output: Path, *more: str
) -> subprocess.CompletedProcess[str]:
    output.mkdir(exist_ok=True)
    launch = [] if processes == 1 else [
        "-m", "torch.distributed.run", "--nproc-per-node", str(processes)
    ]  # fmt: skip
    return subprocess.run(
        [sys.executable, *launch, *WORKER, "--shards", str(shards), "--output", str(output),
         *more],
        cwd=output, capture_output=True, text=True, check=False, timeout=200,
        env=environment(PYTHONPATH=f"{PROJECT}:{PROJECT / 'tests'}", OMP_NUM_THREADS="1"),
    )  # fmt: skip


def loop(processes: int, shards: Path, output: Path, *more: str) -> dict[str, Any]:
    result = start(processes, shards, output, "--float64", *more)
    assert result.returncode == 0, result.stderr[-3000:]
    found: dict[str, Any] = torch.load(output / "state.pt", weights_only=True)
    return found


def distance(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


@pytest.mark.parametrize(
    ("processes", "more"),
    [
        (2, []),
        (3, ["--micro-batch-size", "2"]),
        (3, ["--micro-batch-size", "1", "--parallel", "fsdp"]),
    ],
)
def test_loss_weights_and_momentum_are_those_of_one_process(
    packed: Path, tmp_path: Path, processes: int, more: list[str]
) -> None:
    if not _alone:  # the same data in every test of this file
        _alone.update(loop(1, packed, tmp_path / "one"))
    alone = _alone
    many = loop(processes, packed, tmp_path / "many", *more)
    pairs = zip(alone["losses"], many["losses"], strict=True)
    assert max(abs(a - b) for a, b in pairs) < 1e-9
    assert distance(alone["weights"], many["weights"]) < 1e-9
    assert distance(alone["momentum"], many["momentum"]) < 1e-9


def losses(folder: Path) -> dict[int, float]:
    with (folder / "h.csv").open() as file:
        return {int(row["step"]): float(row["loss"]) for row in csv.DictReader(file)}


def test_a_run_goes_on_with_other_numbers_of_processes(packed: Path, tmp_path: Path) -> None:
    alone = start(1, packed, tmp_path / "alone")
    assert alone.returncode == 0, alone.stderr[-3000:]
    there = tmp_path / "changing"
    stopped = start(2, packed, there, "--stop-at", "6")
    assert stopped.returncode != 0
    assert "stopped by" in stopped.stderr
    again = start(1, packed, there, "--stop-at", "12")
    assert again.returncode == 75, again.stderr[-3000:]
    assert "resuming at step" in again.stdout
    split = start(3, packed, there, "--parallel", "fsdp", "--stop-at", "18")
    assert "stopped by" in split.stderr, split.stderr[-3000:]
    last = start(2, packed, there)
    assert last.returncode == 0, last.stderr[-3000:]
    expected, found = losses(tmp_path / "alone"), losses(there)
    assert found.keys() == expected.keys()
    assert found[1] == pytest.approx(expected[1], abs=1e-6)
    # Sums in another order: rounding grows from here on, so later losses are not compared.
    assert found[6] == pytest.approx(expected[6], rel=1e-4)


def test_a_lost_node_costs_the_steps_since_the_last_checkpoint(
    packed: Path, tmp_path: Path
) -> None:
    there = tmp_path / "elastic"
    there.mkdir()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    line = [
        sys.executable, "-m", "torch.distributed.run", "--nnodes", "1:2", "--nproc-per-node", "1",
        "--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}", "--rdzv-id", "test",
        "--rdzv-conf", "last_call_timeout=3,keep_alive_interval=1", "--max-restarts", "5",
        *WORKER, "--shards", str(packed), "--output", str(there), "--slow", "0.3",
    ]  # fmt: skip
    nodes = []
    for name in ("stays", "dies"):
        with (there / name).open("wb") as log:
            nodes.append(
                subprocess.Popen(
                    line, cwd=there, stdout=log, stderr=log, start_new_session=True,
                    env=environment(PYTHONPATH=f"{PROJECT}:{PROJECT / 'tests'}",
                                    OMP_NUM_THREADS="1"),
                )
            )  # fmt: skip
        time.sleep(1)  # the first one holds the meeting point
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
    result = start(2, packed, tmp_path / "two")
    assert result.returncode == 0, result.stderr[-3000:]
    assert (tmp_path / "two" / "checkpoint" / "MANIFEST.json").is_file()
    assert result.stdout.count("pretrain:") <= 1
