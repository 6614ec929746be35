"""Where MLflow is, and under which name our runs stand there."""

from __future__ import annotations

import os
import re
from pathlib import Path

from bigtransfer.storage.home import home_of

EXPERIMENT = "bigtransfer"


def tracking_uri(project: Path) -> str:
    """Return `MLFLOW_TRACKING_URI`, or the SQLite file in the project's root as an absolute URI.

    A relative one would grow a second database in every other working directory.
    """
    return _named(project) or _own(project)


def forgot_everything(project: Path) -> bool:
    """Say whether runs go to the project's own database and there is none (any more)."""
    return not _named(project) and not _database(project).exists()


def _own(project: Path) -> str:
    return f"sqlite:///{_database(project)}"


def _named(project: Path) -> str:
    """Return the server that the user named, empty if none; MLflow itself puts our own there."""
    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    return "" if uri == _own(project) else uri


def _database(project: Path) -> Path:
    return home_of(project) / "mlflow.db"


def without_secrets(address: str) -> str:
    """Return an address for people: without `user:password@`, without a slash at its end."""
    return re.sub(r"//[^/@]*@", "//", address).rstrip("/")


def page_of_run(project: Path, experiment: str, run: str) -> str | None:
    """Return the address of a run's page; None where no server is named."""
    uri = without_secrets(tracking_uri(project))
    if not uri.startswith(("http://", "https://")):
        return None
    return f"{uri}/#/experiments/{experiment}/runs/{run}"


def experiment_name() -> str:
    """Return `MLFLOW_EXPERIMENT_NAME`, or `bigtransfer`."""
    return os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT


def artifact_location(project: Path) -> str | None:
    """Return the folder for MLflow's artifacts beside a local database; None: the server's own."""
    if _named(project):
        return None
    return (home_of(project) / "mlruns").as_uri()


def has_login() -> bool:
    """Say whether this process logs in to its MLflow server."""
    return bool(os.environ.get("MLFLOW_TRACKING_USERNAME"))


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
