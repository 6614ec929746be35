"""`bigtransfer sync`: send to MLflow what it did not take while the stages ran."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from bigtransfer.errors import InfrastructureError
from bigtransfer.extras import require
from bigtransfer.progress import counted
from bigtransfer.track.address import quiet_environment, tracking_uri

_TRACK = Path(".work") / "track"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line: there is nothing to choose."""


def run(arguments: argparse.Namespace) -> None:
    """Send every journal of the project that is not in MLflow yet.

    Raises:
        ConfigError: If MLflow is not installed here.
        InfrastructureError: If MLflow does not take one; names it.
    """
    from bigtransfer.track.journal import is_being_written, unsent

    project = Path.cwd()
    waiting = [
        journal
        for folder in sorted((project / _TRACK).glob("*/"))
        for journal in unsent(folder)
        if journal.stat().st_size and not is_being_written(journal)
    ]
    if not waiting:
        print("MLflow has all that was logged")
        return
    require("mlflow", "sync")
    refused = [journal for journal in waiting if not _sent(project, journal)]
    print(
        f"{len(waiting) - len(refused)} of {counted(len(waiting), 'journal')} sent to "
        f"{tracking_uri(project)}"
    )
    if refused:
        log = refused[0].with_suffix(".log")
        raise InfrastructureError(
            f"{', '.join(path.stem for path in refused)} not taken; the reason is in {str(log)!r}. "
            "Mend MLFLOW_TRACKING_URI or the server, and run this again"
        )


def _sent(project: Path, journal: Path) -> bool:
    print(f"sending {journal.stem} …", flush=True)
    with journal.with_suffix(".log").open("wb") as log:
        code = subprocess.run(
            [sys.executable, "-m", "bigtransfer.track.shipper", str(project), str(journal)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=project,
            env=quiet_environment(),
            check=False,
        ).returncode
    return code == 0
