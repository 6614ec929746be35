"""Where MLflow is, and under which name our runs stand there."""

from __future__ import annotations

import os
from pathlib import Path

EXPERIMENT = "bigtransfer"


def tracking_uri(project: Path) -> str:
    """Return `MLFLOW_TRACKING_URI`, or the SQLite file in the project's root as an absolute URI.

    A relative one would grow a second database in every other working directory.
    """
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{_database(project)}"


def forgot_everything(project: Path) -> bool:
    """Say whether runs go to the project's own database and there is none (any more)."""
    return not os.environ.get("MLFLOW_TRACKING_URI") and not _database(project).exists()


def _database(project: Path) -> Path:
    return project.resolve() / "mlflow.db"


def experiment_name() -> str:
    """Return `MLFLOW_EXPERIMENT_NAME`, or `bigtransfer`."""
    return os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT


def artifact_location(project: Path) -> str | None:
    """Return the folder for MLflow's artifacts beside a local database; None: the server's own."""
    if os.environ.get("MLFLOW_TRACKING_URI"):
        return None
    return (project.resolve() / "mlruns").as_uri()


def quiet_environment() -> dict[str, str]:
    """Return the environment for a process that uses MLflow: no telemetry, no git warning."""
    return {
        **os.environ,
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
        "GIT_PYTHON_REFRESH": "quiet",
        # The shipper itself waits for a server that is away, and looks again soon.
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    }
