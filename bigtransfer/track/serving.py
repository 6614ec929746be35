"""A model behind HTTP, by MLflow's own server; a registered one follows the alias it was asked for.

The next version is loaded beside the one that answers, and takes over between two requests.
"""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Awaitable, Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from bigtransfer.errors import BigTransferError, ConfigError, GateError
from bigtransfer.track.failures import explained
from bigtransfer.track.moves import find
from bigtransfer.track.records import CHAMPION
from bigtransfer.track.versions import (
    MODEL,
    kept_of,
    open_registry,
    refuse_withdrawn,
    split_address,
)

HEADER = b"x-bigtransfer-model"
"""Of every answer: which version gave it."""
Answer = Callable[[Any, Any, Any], Awaitable[None]]


class Server:
    """The application that a web server runs, and what it answers with at the moment."""

    def __init__(self, folder: Path, name: str) -> None:
        """Load a model folder.

        Args:
            folder: Of MLflow.
            name: That answers carry, e.g. `bigtransfer-digits/3`.
        """
        self._answer, self._name, self._withdrawn = _application(folder), name, ""

    @property
    def name(self) -> str:
        """Return what answers now."""
        return self._name

    def take(self, folder: Path, name: str) -> None:
        """Answer with another model from the next request on; it is loaded first."""
        answer = _application(folder)
        self._answer, self._name, self._withdrawn = answer, name, ""

    def withdraw(self, reason: str) -> None:
        """Answer no more, but with the reason (HTTP 503)."""
        self._withdrawn = reason

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer one request (ASGI)."""
        name = self._name.encode("latin-1", "replace")

        async def named(message: Any) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], (HEADER, name)]}
            await send(message)

        if self._withdrawn and scope["type"] == "http" and scope["path"] != "/version":
            body = json.dumps({"error_code": "WITHDRAWN", "message": self._withdrawn}).encode()
            headers = [(b"content-type", b"application/json")]
            await named({"type": "http.response.start", "status": 503, "headers": headers})
            await named({"type": "http.response.body", "body": body})
            return
        await self._answer(scope, receive, named)


def _application(folder: Path) -> Answer:
    import mlflow
    from mlflow.pyfunc.scoring_server import init

    found: Answer = init(mlflow.pyfunc.load_model(str(folder)))
    return found


class Follower:
    """Reads the registry again and again, and has the server take what the alias names by then."""

    def __init__(self, project: Path, address: str, say: Callable[[str], None]) -> None:
        """Load the version that the address names now.

        Args:
            project: The project's root.
            address: As `split_address` takes it; a name alone is its champion.
            say: Receives a line for whatever changes.

        Raises:
            TrackingError: If there is no such version, or its files are not as registered.
            GateError: If it was withdrawn.
        """
        self._project, self._say = project, say
        self._model, self._wanted = split_address(address, CHAMPION)
        self._files, self._said = ExitStack(), ""
        version, folder, self._files = self._read("")
        assert folder is not None
        self.server = Server(folder, f"{self._model}/{version}")
        self._version = version

    def _read(self, known: str) -> tuple[str, Path | None, ExitStack]:
        """Return the version that is wanted now, and where its files lie if it is a new one."""
        with explained(self._project, f"did not give {self._model!r}"):
            client = open_registry(self._project)
            version = find(client, self._model, self._wanted)
            number = str(version.version)
            refuse_withdrawn(version)
            if number == known:
                return number, None, ExitStack()
            with ExitStack() as stack:
                kept = stack.enter_context(kept_of(self._project, client, version, [MODEL]))
                if kept.damage is not None:
                    raise GateError(f"{self._model} version {number} is not served: {kept.damage}")
                if MODEL not in kept.folders:
                    raise GateError(
                        f"{self._model} version {number} is not served: no digest of its model is "
                        "noted; register it again with this version of the program"
                    )
                return number, kept.folders[MODEL], stack.pop_all()

    def look(self) -> None:
        """Read the registry once; what cannot be had leaves the answering version in place."""
        try:
            version, folder, files = self._read(self._version)
            if folder is not None:
                with files:
                    self.server.take(folder, f"{self._model}/{version}")
                    files, self._files = self._files, files.pop_all()
                files.close()
                self._say(f"{self._model} version {version} answers now")
                self._version = version
            self._said = ""
        except BigTransferError as error:
            self._refused(error)

    def _refused(self, error: BigTransferError) -> None:
        if str(error) == self._said:
            return
        self._said = str(error)
        with suppress(BigTransferError), explained(self._project, "did not answer"):
            client = open_registry(self._project)
            own = client.get_model_version(self._model, self._version)
            try:
                refuse_withdrawn(own)
            except GateError as withdrawn:
                self.server.withdraw(str(withdrawn))
                self._say(str(withdrawn))
                return
        self._say(f"{self.server.name} goes on answering: {error}")


def listen(server: Server, host: str, port: int, ready: Callable[[str], None]) -> None:
    """Answer until Ctrl-C.

    Args:
        server: To run.
        host: Address to listen at.
        port: The same; 0: any.
        ready: Receives the address when requests are taken.

    Raises:
        ConfigError: If it cannot be had.
    """
    import uvicorn

    held = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    with held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            held.bind((host, port))
        except (OSError, OverflowError) as error:
            raise ConfigError(
                f"cannot listen at {host}:{port}: {getattr(error, 'strerror', None) or error}; "
                "name another with --host and --port"
            ) from error
        held.listen()
        own = f"[{host}]" if ":" in host else host
        ready(f"http://{own}:{held.getsockname()[1]}")
        config = uvicorn.Config(server, log_level="warning", access_log=False, lifespan="off")
        with suppress(KeyboardInterrupt):
            uvicorn.Server(config).run(sockets=[held])


def follow(follower: Follower, seconds: float) -> None:
    """Look at the registry every so many seconds, beside the server, until the process ends."""

    def loop() -> None:
        while not ended.wait(seconds):
            follower.look()

    ended = threading.Event()
    threading.Thread(target=loop, name="follow", daemon=True).start()
