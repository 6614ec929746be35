"""Shared by all tests: small datasets on disk, and copies of the project to run for real."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest_plugins = ["remote"]  # fixtures: a real S3 server, a DVC project in a bare repository
PROJECT = Path(__file__).parents[1]
SHARED = PROJECT.parent / "shared"
SCRIPTS = Path(sys.executable).parent


def write_image(path: Path, seed: int, side: int = 12) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A class folder: 3 classes of 10 different images."""
    for label in range(3):
        for i in range(10):
            write_image(tmp_path / "photos" / f"class_{label}" / f"{i}.png", 100 * label + i)
    return tmp_path / "photos"


@pytest.fixture
def run_line(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a command line as a user does, in tmp_path, away from the user's own MLflow."""

    def run(*line: str, cwd: Path = tmp_path, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", *line],
            cwd=cwd,
            env=environment(**env),
            capture_output=True,
            text=True,
            check=False,
        )

    return run


def environment(**more: str) -> dict[str, str]:
    """Return the environment of a user who works in this virtual environment."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_")}
    path = os.pathsep.join([str(SCRIPTS), os.environ["PATH"]])
    return {
        **kept,
        "PATH": path,
        "PYTHONPATH": str(PROJECT),
        "MLFLOW_DISABLE_TELEMETRY": "true",
        **more,
    }


def copy_project(target: Path) -> Path:
    """Copy what Git would clone (working tree, tracked and untracked) and make it a repository."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=PROJECT, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    for name in filter(None, listed.split("\0")):
        if (PROJECT / name).is_file() and name != "dvc.lock":
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(PROJECT / name, target / name)
    git = ["git", "-c", "user.name=test", "-c", "user.email=test@example.org"]
    subprocess.run([*git, "init", "--quiet", "--initial-branch=main"], cwd=target, check=True)
    subprocess.run([*git, "add", "--all"], cwd=target, check=True)
    subprocess.run([*git, "commit", "--quiet", "--message=start"], cwd=target, check=True)
    return target
