"""`dvc exp run` in a copy of the project, from an environment that is not activated."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from fixtures.project import environment
from fixtures.workflow import call, mlflow_client

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.xdist_group("e2e-what-reruns"),
    pytest.mark.long,
]


@pytest.fixture
def with_environment(own_copy: Path) -> Path:
    """A finished project with its environment in it."""
    (own_copy / ".venv").symlink_to(sys.prefix, target_is_directory=True)
    return own_copy


def not_activated(project: Path, *line: str) -> subprocess.CompletedProcess[str]:
    """Run DVC by its path, as somebody does who has activated nothing."""
    env = {**environment(PYTHONPATH=""), "PATH": "/usr/bin:/bin"}
    return subprocess.run(
        [str(project / ".venv" / "bin" / "dvc"), *line], cwd=project, env=env, capture_output=True,
        text=True, check=False,
    )  # fmt: skip


def evaluations(project: Path) -> int:
    client = mlflow_client(project)
    experiment = client.get_experiment_by_name("bigtransfer").experiment_id
    runs = client.search_runs([experiment])
    return sum(run.info.run_name == "evaluate@digits" for run in runs)


def test_an_experiment_in_a_copy_finds_environment_and_mlflow(with_environment: Path) -> None:
    project = with_environment
    before = evaluations(project)
    change = ["-S", "evaluate.batch_size=128", "evaluate@digits"]
    result = not_activated(project, "exp", "run", "--temp", "--name", "temp", *change)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "Traceback" not in result.stderr

    # The queue's own worker calls `dvc` by name, which an activated environment has.
    queued = call(project, "dvc", "exp", "run", "--queue", "--name", "queued", "-S",
                  "evaluate.batch_size=64", "evaluate@digits")  # fmt: skip
    assert queued.returncode == 0, queued.stderr
    started = call(project, "dvc", "queue", "start")
    assert started.returncode == 0, started.stderr
    deadline = time.monotonic() + 200
    while "Success" not in (status := call(project, "dvc", "queue", "status").stdout):
        assert "Failed" not in status and time.monotonic() < deadline, status
        time.sleep(1)

    caught_up = call(project, "bigtransfer.command", "sync")
    assert caught_up.returncode == 0, caught_up.stderr
    assert evaluations(project) == before + 2
    assert not list(project.glob(".dvc/tmp/exps/*/mlflow.db"))
