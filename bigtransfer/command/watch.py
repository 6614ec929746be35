"""`bigtransfer watch`: promote what a person marks as `candidate` in the MLflow UI."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from bigtransfer.command.promote import register_params


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.description = (
        "Look at the registry every register.poll_seconds: a version with the alias candidate is "
        "judged by the gates and, if it passes, becomes champion; a champion that was moved by "
        "hand is reported or moved back (register.by_hand). `make ui` runs this beside MLflow."
    )
    parser.add_argument("--once", action="store_true", help="look once, and end")


def run(arguments: argparse.Namespace) -> None:
    """Watch until Ctrl-C.

    Raises:
        BigTransferError: If MLflow refuses; a server that is away is asked again, unless --once.
    """
    from bigtransfer.errors import InfrastructureError
    from bigtransfer.extras import require
    from bigtransfer.track.watching import Watcher

    require("mlflow", "watch")
    project = Path.cwd()
    params = register_params(project)
    watcher = Watcher(project, params.gates, params.by_hand, _say, params.records_at)
    away = ""
    try:
        while True:
            try:
                watcher.look()
                away = ""
            except InfrastructureError as error:
                if arguments.once:
                    raise
                if str(error) != away:
                    print(f"bigtransfer watch: {error}", file=sys.stderr, flush=True)
                away = str(error)
            if arguments.once:
                return
            time.sleep(params.poll_seconds)
    except KeyboardInterrupt:
        return


def _say(line: str) -> None:
    print(line, flush=True)
