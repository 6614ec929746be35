"""`bigtransfer serve`: a model behind HTTP; a registered one follows its alias."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from tempfile import TemporaryDirectory

from bigtransfer.command.promote import register_params

_HOST, _PORT = "127.0.0.1", 5001


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    from bigtransfer.api.models import MODEL_HELP

    parser.description = (
        "Answer pictures over HTTP as MLflow's servers do: POST /invocations with a column `image` "
        "of files in base64. Of models:/NAME@ALIAS the version that has the alias answers; when it "
        "moves, the next one is loaded beside and takes over, without a request lost."
    )
    parser.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    parser.add_argument(
        "--host", default=_HOST, metavar="ADDRESS", help="to listen at (default: %(default)s)"
    )
    parser.add_argument(
        "--port", type=int, default=_PORT, metavar="N", help="to listen at (default: %(default)s)"
    )


def run(arguments: argparse.Namespace) -> None:
    """Serve until Ctrl-C.

    Raises:
        BigTransferError: If the model cannot be had, or the port is not free.
    """
    from bigtransfer.extras import require

    for module in ("mlflow", "fastapi", "uvicorn"):
        require(module, "a server")
    from bigtransfer.track.address import quiet_environment
    from bigtransfer.track.serving import Follower, Server, follow, listen

    os.environ.update(quiet_environment())
    with TemporaryDirectory() as place:
        if arguments.model.startswith("models:/"):
            project = Path.cwd()
            follower = Follower(project, arguments.model, _say)
            server = follower.server
            follow(follower, register_params(project).poll_seconds)
        else:
            from bigtransfer.api.models import checkpoint_at
            from bigtransfer.api.served.folder import write_served

            folder = Path(place) / "model"
            write_served(folder, checkpoint_at(arguments.model, within_run=True), card="")
            server = Server(folder, Path(arguments.model).resolve().name)
        listen(
            server, arguments.host, arguments.port,
            lambda address: _say(f"{server.name} answers at {address}/invocations; Ctrl-C ends it"),
        )  # fmt: skip


def _say(line: str) -> None:
    print(line, flush=True)
