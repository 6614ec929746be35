"""`bigtransfer watch`: promote what a person marks as `candidate` in the MLflow UI."""

from __future__ import annotations

import argparse
import os
import sys
import threading
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from bigtransfer.command.promote import register_params
from bigtransfer.errors import ConfigError
from bigtransfer.track.doorbell import SECRET, doorbell

if TYPE_CHECKING:
    from bigtransfer.track.watching import Watcher


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.description = (
        "Look at the registry every register.poll_seconds: a version with the alias candidate is "
        "judged by the gates and, if it passes, becomes champion; a champion that was moved by "
        "hand is reported or moved back (register.by_hand). `make ui` runs this beside MLflow."
    )
    parser.add_argument("--once", action="store_true", help="look once, and end")
    parser.add_argument(
        "--listen",
        metavar="HOST:PORT",
        help="look at once when MLflow's webhook rings there, too; its secret stands in "
        f"{SECRET}, and nothing else of a delivery is read",
    )


def run(arguments: argparse.Namespace) -> None:
    """Watch until Ctrl-C.

    Raises:
        BigTransferError: If MLflow refuses; a server that is away is asked again, unless --once.
    """
    from bigtransfer.extras import require
    from bigtransfer.track.watching import Watcher

    require("mlflow", "watch")
    project = Path.cwd()
    params = register_params(project)
    watcher = Watcher(project, params.gates, params.by_hand, _say, params.records_at)
    with ExitStack() as stack:
        rung = threading.Event()
        if arguments.listen is not None:
            host, port = _listens_at(arguments.listen)
            rung, port = stack.enter_context(doorbell(host, port, _secret()))
            _say(f"a webhook may ring at http://{host}:{port}/")
        stack.enter_context(suppress(KeyboardInterrupt))
        away = ""
        while True:
            rung.clear()  # before the look: what rings meanwhile is looked at
            away = _look(watcher, away, once=arguments.once)
            if arguments.once:
                return
            rung.wait(params.poll_seconds)


def _look(watcher: Watcher, away: str, *, once: bool) -> str:
    """Look once; return what a server that is away was said to be, which is said once."""
    from bigtransfer.errors import InfrastructureError

    try:
        watcher.look()
    except InfrastructureError as error:
        if once:
            raise
        if str(error) != away:
            print(f"bigtransfer watch: {error}", file=sys.stderr, flush=True)
        return str(error)
    return ""


def _listens_at(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or not (port.isascii() and port.isdigit()):
        raise ConfigError(f"--listen {text!r} is no address; write e.g. --listen 127.0.0.1:8001")
    return host, int(port)


def _secret() -> str:
    secret = os.environ.get(SECRET, "")
    if not secret:
        raise ConfigError(
            f"--listen wants the secret of the webhook in {SECRET}: without it anybody who "
            "reaches the port could ring"
        )
    return secret


def _say(line: str) -> None:
    print(line, flush=True)
