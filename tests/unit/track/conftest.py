"""A real MLflow database, made once and copied, so that each test starts from an empty one."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from bigtransfer.track.runs import open_client, open_experiment


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tracking")
    patch = pytest.MonkeyPatch()
    patch.delenv("MLFLOW_TRACKING_URI", raising=False)
    open_experiment(folder, open_client(folder))
    patch.undo()
    return folder / "mlflow.db"


@pytest.fixture
def project(tmp_path: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project's root with an empty database."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    monkeypatch.delenv("KFP_RUN_ID", raising=False)
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    return tmp_path


@pytest.fixture
def client(project: Path) -> Any:
    import mlflow

    return mlflow.MlflowClient(f"sqlite:///{project / 'mlflow.db'}")
