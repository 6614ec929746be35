"""Any number of processes is the same training: DDP and FSDP2 over gloo against one process."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import PROJECT, environment
from torch import Tensor

WORKER = ["-m", "unit.train.distributed"]


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
    [(2, []), (3, []), (2, ["--micro-batch-size", "2"]), (2, ["--parallel", "fsdp"])],
)
def test_loss_weights_and_momentum_are_those_of_one_process(
    packed: Path, tmp_path: Path, processes: int, more: list[str]
) -> None:
    alone = loop(1, packed, tmp_path / "one")
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


def test_two_processes_write_one_set_of_outputs(packed: Path, tmp_path: Path) -> None:
    result = start(2, packed, tmp_path / "two")
    assert result.returncode == 0, result.stderr[-3000:]
    assert (tmp_path / "two" / "checkpoint" / "MANIFEST.json").is_file()
    assert result.stdout.count("pretrain:") <= 1
