"""A stand-in of Kubeflow Pipelines' API v2, for the real client."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

V2 = "/apis/v2beta1"


class Api:
    """What was sent, and what is answered."""

    def __init__(self) -> None:
        self.experiments: list[dict[str, Any]] = []
        self.runs: list[dict[str, Any]] = []
        self.states: list[dict[str, Any]] = [{"state": "SUCCEEDED"}]
        """Answers to whoever asks for a run, one after another; the last one stays."""
        self.status = 200
        self.token: str | None = None
        self.prefix = V2
        self.several_users = False
        self.page = False
        """Whether a login page is answered."""
        api = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                api.answer(self, None)

            def do_POST(self) -> None:
                length = int(self.headers["Content-Length"])
                api.answer(self, json.loads(self.rfile.read(length)))

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def answer(self, request: BaseHTTPRequestHandler, body: Any) -> None:
        path = request.path.partition("?")[0]
        if self.page:
            self._send(request, 200, "<html>log in</html>")
        elif self.token and request.headers.get("Authorization") != f"Bearer {self.token}":
            self._send(request, 401, {"message": "no token"})
        elif not path.startswith(self.prefix + "/"):
            self._send(request, 404, {"message": "not found"})
        elif self.status != 200 and not path.endswith("healthz"):
            self._send(request, self.status, {"message": "the pipeline spec is\ninvalid"})
        else:
            known = self._known(path.removeprefix(self.prefix), body)
            self._send(request, 500 if known.get("state") == "ERROR" else 200, known)

    def _known(self, path: str, body: Any) -> dict[str, Any]:
        if path == "/healthz":
            return {"multi_user": self.several_users}
        if path == "/experiments" and body is None:
            return {"experiments": self.experiments}
        if path == "/experiments":
            self.experiments.append({**body, "experiment_id": f"e{len(self.experiments)}"})
            return self.experiments[-1]
        if path == "/runs" and body is not None:
            self.runs.append({**body, "run_id": f"r{len(self.runs)}"})
            return {key: self.runs[-1][key] for key in ("run_id", "display_name")}
        if path.startswith("/runs/"):
            state = self.states.pop(0) if len(self.states) > 1 else self.states[0]
            return {"run_id": path.removeprefix("/runs/"), **state}
        raise AssertionError(f"the client asked for {path}")

    def _send(self, request: BaseHTTPRequestHandler, status: int, body: Any) -> None:
        data = (body if isinstance(body, str) else json.dumps(body)).encode()
        request.send_response(status)
        request.send_header("Content-Type", "application/json")
        request.send_header("Content-Length", str(len(data)))
        request.end_headers()
        request.wfile.write(data)
