"""Killed runs go on to bit-identical weights; the same seed gives the same weights."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from fixtures.project import environment
from fixtures.workflow import call, edit_params, run_workflow

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("e2e-resume")]
WEIGHTS = Path("artifacts/pretrain/checkpoint/weights.safetensors")
_SECONDS = 120


@pytest.fixture
def short(own_copy: Path) -> Path:
    """A project with an upstream training of 79 steps that saves its state every 10."""
    edit_params(own_copy, "epochs: 4.5", "epochs: 0.35")
    edit_params(own_copy, "decay_epochs: [1.5, 3.0, 4.0]", "decay_epochs: [0.25]")
    edit_params(own_copy, "checkpoint_steps: 100", "checkpoint_steps: 10")
    return own_copy


def pretrain_by_hand(project: Path, to: str) -> bytes:
    result = call(
        project, "components.pretrain", "--params", "params.yaml",
        "--shards", "artifacts/datasets/upstream/shards",
        "--probe", "artifacts/datasets/upstream/shards", "--checkpoint", f"{to}/checkpoint",
        "--metrics", f"{to}/metrics.json", "--history", f"{to}/history.csv",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "resuming" not in result.stdout
    return (project / to / "checkpoint" / WEIGHTS.name).read_bytes()


def test_killed_training_goes_on_to_the_same_weights(short: Path) -> None:
    expected = pretrain_by_hand(short, "uninterrupted")
    assert pretrain_by_hand(short, "again") == expected

    workflow = start(short)
    trainer = wait(lambda: find_trainer(short), workflow)
    wait(lambda: list((short / ".work/pretrain").glob("*/step-*")), workflow)
    os.kill(trainer.pid, signal.SIGSTOP)
    while_it_works = run_workflow(short, "pretrain")
    assert while_it_works.returncode == 4
    assert "another run works in this project: pid " in while_it_works.stderr
    # DVC and the command above it die; the trainer is an orphan.
    ours = {process.pid for process in descendants(workflow)} | {workflow.pid}
    above = [process for process in trainer.parents() if process.pid in ours]
    assert len(above) >= 2
    for process in above:
        process.kill()
    workflow.wait(_SECONDS)

    second = run_workflow(short, "pretrain")
    assert second.returncode == 4, second.stderr
    assert f"pid {trainer.pid} " in second.stderr
    assert f"kill {trainer.pid}`" in second.stderr
    trainer.kill()
    wait(lambda: not psutil.pid_exists(trainer.pid) or is_zombie(trainer))

    third = run_workflow(short, "pretrain")
    assert third.returncode == 0, third.stderr
    assert "resuming at step" in third.stdout
    assert (short / WEIGHTS).read_bytes() == expected
    assert not list((short / ".work/pretrain").glob("*/step-*"))


def start(project: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "bigtransfer.command", "run", "pretrain"], cwd=project,
        env=environment(PYTHONPATH=""), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip


def descendants(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def find_trainer(project: Path) -> psutil.Process | None:
    for process in psutil.process_iter():
        try:
            line = process.cmdline()
            if line[1:3] == ["-m", "components.pretrain"] and Path(process.cwd()) == project:
                return process
        except psutil.Error:
            continue
    return None


def is_zombie(process: psutil.Process) -> bool:
    try:
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return True


def wait(condition: Callable[[], Any], process: subprocess.Popen[bytes] | None = None) -> Any:
    deadline = time.monotonic() + _SECONDS
    while time.monotonic() < deadline:
        if process is not None and process.poll() is not None:
            raise AssertionError(f"it ended too early, exit code {process.returncode}")
        if found := condition():
            return found
        time.sleep(0.02)
    raise AssertionError("it did not come to pass")
