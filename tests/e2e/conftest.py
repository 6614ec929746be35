"""The default workflow, run once for all tests of this folder, in a copy of the project."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from conftest import copy_project, environment


@dataclass(frozen=True)
class Finished:
    """A project after its first run, and what was to be seen then."""

    project: Path
    output: str
    rows: list[dict[str, Any]]
    champions: dict[str, str]


def call(project: Path, *line: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run `python -m <line>` in the project, as its user would."""
    return subprocess.run(
        [sys.executable, "-m", *line], cwd=project, env=environment(PYTHONPATH="", **env),
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def run_workflow(project: Path, *targets: str) -> subprocess.CompletedProcess[str]:
    return call(project, "bigtransfer.command", "run", *targets)


def ran(output: str) -> set[str]:
    """Return the stages that DVC says it executed."""
    return set(re.findall(r"^Running stage '([^']+)'", output, re.M))


def mlflow_client(project: Path) -> Any:
    import mlflow

    return mlflow.MlflowClient(f"sqlite:///{project / 'mlflow.db'}")


def edit_params(project: Path, old: str, new: str) -> None:
    path = project / "params.yaml"
    text = path.read_text()
    assert text.count(old) == 1, old
    path.write_text(text.replace(old, new))


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    project = copy_project(tmp_path_factory.mktemp("default") / "project")
    result = run_workflow(project)
    assert result.returncode == 0, result.stdout + result.stderr
    client = mlflow_client(project)
    champions = {
        model.name: str(model.aliases["champion"]) for model in client.search_registered_models()
    }
    rows = json.loads((project / "artifacts/report/metrics.json").read_text())["rows"]
    git = ["git", "-c", "user.name=test", "-c", "user.email=test@example.org"]
    subprocess.run([*git, "add", "dvc.lock"], cwd=project, check=True)
    subprocess.run([*git, "commit", "--quiet", "--message=first run"], cwd=project, check=True)
    return Finished(project, result.stdout, rows, champions)


@pytest.fixture
def own_copy(finished: Finished, tmp_path: Path) -> Path:
    """A copy of the finished project that a test may change."""
    target = tmp_path / "project"
    shutil.copytree(finished.project, target, symlinks=True)
    return target
