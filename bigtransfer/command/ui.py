"""`bigtransfer ui`: MLflow in the browser, at the page that lists the project's runs."""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import webbrowser
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn
from urllib.error import HTTPError, URLError
from urllib.parse import quote
from urllib.request import urlopen

from bigtransfer.errors import ConfigError, InfrastructureError
from bigtransfer.extras import require
from bigtransfer.progress import duration
from bigtransfer.storage.local import explained
from bigtransfer.track.address import (
    experiment_name,
    forgot_everything,
    quiet_environment,
    tracking_uri,
    without_secrets,
)

_LOG = Path(".work") / "log" / "ui.log"
_PORT = 5000
_PORTS_TRIED = 20
_SECONDS_TO_START = 180.0
_SECONDS_TO_END = 10.0
_HOST = "127.0.0.1"
_ERROR = re.compile(r"[\w.]+(Error|Exception): ")
"""The line of a traceback that says what it was; SQLAlchemy writes more below."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.description = (
        "Start MLflow on the project's database, print and open the page that lists the runs; a "
        "version that gets the alias candidate there becomes champion if it passes its gates. "
        "Where MLFLOW_TRACKING_URI names a server, its page is opened. Ctrl-C ends it."
    )
    parser.add_argument(
        "--port",
        type=int,
        default=_PORT,
        metavar="N",
        help="where it listens; a busy one is passed over (default: %(default)s)",
    )
    parser.add_argument("--no-open", action="store_true", help="print the address alone")


def run(arguments: argparse.Namespace) -> None:
    """Serve until Ctrl-C.

    Raises:
        ConfigError: If MLflow is not installed, there is nothing to show, or no port is free.
        InfrastructureError: If the server does not start.
    """
    project = Path.cwd()
    server = tracking_uri(project)
    if server.startswith(("http://", "https://")):
        _show(_page(without_secrets(server), server), arguments.no_open)
        return
    require("mlflow", "MLflow's pages")
    require("flask", "MLflow's pages")
    if forgot_everything(project):
        raise ConfigError(
            f"there are no runs in {str(project)!r} yet (no mlflow.db); `make run` makes some"
        )
    port = _free_port(arguments.port)
    signal.signal(signal.SIGTERM, _interrupt)
    began = time.monotonic()
    process, watcher = _start(server, port), None
    try:
        _wait(process, port)
        print(f"MLflow took {duration(time.monotonic() - began)} to start; Ctrl-C ends it")
        watcher = _watch()
        own = f"http://{_HOST}:{port}"
        _show(_page(f"http://localhost:{port}", own), arguments.no_open)
        code = process.wait()
        raise InfrastructureError(f"MLflow ended with exit code {code}; {_reason()}")
    except KeyboardInterrupt:
        print()
    finally:
        for own_process in filter(None, (watcher, process)):
            _end(own_process)


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


def _free_port(first: int) -> int:
    """Return the first port from there on that nobody has; say which are passed over.

    Raises:
        ConfigError: If it is no port, or none is free.
    """
    if not 1 <= first < 65536:
        raise ConfigError(f"--port {first}: a port is a number from 1 to 65535")
    for port in range(first, min(first + _PORTS_TRIED, 65536)):
        with socket.socket() as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                tried.bind((_HOST, port))
                tried.listen()
            except OSError:
                continue
        if port != first:
            print(f"port {first} is busy; taking {port}", file=sys.stderr)
        return port
    raise ConfigError(f"no port from {first} to {port} is free; name another with --port")


def _start(database: str, port: int) -> subprocess.Popen[bytes]:
    with explained(_LOG):
        _LOG.parent.mkdir(parents=True, exist_ok=True)
        log = _LOG.open("wb")
    with log:
        return subprocess.Popen(
            [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", database, "--host",
             _HOST, "--port", str(port), "--workers", "1"],
            # Of its jobs nothing here makes use; without them it starts in half the time.
            env={**quiet_environment(), "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip


def _watch() -> subprocess.Popen[bytes]:
    """Begin to promote what gets the alias `candidate` in the pages; what it says is printed."""
    return subprocess.Popen(
        [sys.executable, "-m", "bigtransfer.command", "watch"],
        env=quiet_environment(), stdin=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip


def _wait(process: subprocess.Popen[bytes], port: int) -> None:
    """Wait until the server answers.

    Raises:
        InfrastructureError: If it ends, or takes too long.
    """
    deadline = time.monotonic() + _SECONDS_TO_START
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise InfrastructureError(f"MLflow did not start; {_reason()}")
        with suppress(OSError), urlopen(f"http://{_HOST}:{port}/health", timeout=5) as answer:
            if answer.status == 200:
                return
        time.sleep(0.1)
    raise InfrastructureError(
        f"MLflow does not answer after {duration(_SECONDS_TO_START)}; {_reason()}"
    )


def _reason() -> str:
    lines = [line.strip() for line in _LOG.read_text("utf-8", errors="replace").split("\n")]
    named = [line for line in lines if _ERROR.match(line)]
    last = next((line for line in reversed(named or lines) if line), "nothing")
    return f"it said last: {last!r} ({_LOG})"


def _page(shown: str, server: str) -> str:
    """Return the address of the page that lists the runs.

    The plain address leads to an empty page for language models.

    Args:
        shown: Address of the server, for people.
        server: The same, for this process.
    """
    name = quote(experiment_name(), safe="")
    url = f"{server.rstrip('/')}/api/2.0/mlflow/experiments/get-by-name?experiment_name={name}"
    with suppress(HTTPError, URLError, OSError, ValueError, KeyError):
        with urlopen(url, timeout=30) as answer:
            found: Any = json.load(answer)
        number = found["experiment"]["experiment_id"]
        return f"{shown}/#/experiments/{number}/runs?workflowType=machine_learning"
    return f"{shown}/#/experiments"


def _show(page: str, no_open: bool) -> None:
    print(page, flush=True)
    if not no_open and _has_display():
        with suppress(webbrowser.Error):
            webbrowser.open(page)


def _has_display() -> bool:
    if sys.platform in ("darwin", "win32"):
        return True
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the server and what it started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(_SECONDS_TO_END)
            return
