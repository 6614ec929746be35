"""What does not depend on a change is not made again, and what is interrupted loses nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fixtures.images import write_colours
from fixtures.project import environment
from fixtures.workflow import call, edit_params, ran, run_workflow

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("e2e-what-reruns")]
NETWORKS = Path("artifacts/finetune/digits")
OFTEN = "checkpoint_seconds: 300       # the state of a running cell"
NEW = {f"{stage}@mine" for stage in ("validate", "shard", "audit", "finetune", "evaluate",
                                     "register")}  # fmt: skip


def add_dataset(project: Path) -> None:
    write_colours(project / "data" / "mine")
    edit_params(project, "  digits: {path", "  mine: {path: data/mine}\n  digits: {path")
    edit_params(
        project, "  digits: {dataset: digits}",
        "  digits: {dataset: digits}\n  mine: {dataset: mine, examples_per_class: [1],"
        " seeds: [0], total_steps: 3, batch_size: 4}",
    )  # fmt: skip


def networks(project: Path) -> dict[str, bytes]:
    found = sorted((project / NETWORKS).rglob("weights.safetensors"))
    return {path.parent.name: path.read_bytes() for path in found}


@pytest.mark.long
def test_a_new_dataset_runs_its_own_stages_alone(own_copy: Path) -> None:
    add_dataset(own_copy)
    status = call(own_copy, "dvc", "status", "--json")
    assert set(json.loads(status.stdout)) == {*NEW, "summarize"}
    dry = call(own_copy, "dvc", "repro", "--dry")
    assert ran(dry.stdout) == {"validate@mine"}, dry.stderr  # the next ones need what it makes
    result = run_workflow(own_copy)
    assert result.returncode == 0, result.stdout + result.stderr
    assert ran(result.stdout) == {*NEW, "summarize"}
    assert (own_copy / "artifacts" / "audit" / "mine" / "index.html").is_file()


def test_networks_that_nothing_changed_are_taken_over(own_copy: Path) -> None:
    before = networks(own_copy)
    assert before
    edit_params(own_copy, OFTEN, OFTEN.replace("300", "200"))
    result = run_workflow(own_copy, "finetune@digits")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "finetune@digits" in ran(result.stdout)
    assert "fine-tune digits:" not in result.stderr  # no step was trained
    assert networks(own_copy) == before


def test_an_interrupted_rerun_leaves_the_old_model_and_goes_on(own_copy: Path) -> None:
    before = networks(own_copy)
    edit_params(own_copy, "total_steps: 80", "total_steps: 20000")
    edit_params(own_copy, OFTEN, OFTEN.replace("300", "1"))
    process = subprocess.Popen(
        [sys.executable, "-m", "dvc", "repro", "--single-item", "finetune@digits"], cwd=own_copy,
        env=environment(PYTHONPATH=""), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + 100
    work = own_copy / ".work" / "finetune"
    while not list(work.glob("*/*.state/*")) and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert networks(own_copy) == before
    image = next((own_copy / "data" / "digits" / "3").iterdir())
    cell = str(NETWORKS / next(iter(before)))
    answer = call(own_copy, "bigtransfer.command", "predict", cell, str(image))
    assert answer.returncode == 0, answer.stderr
