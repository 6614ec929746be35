"""`bigtransfer ui` with a real MLflow: at which page it arrives, and how it ends."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from urllib.request import urlopen

import mlflow
import pytest

from bigtransfer.command import ui
from fixtures.commands import heard
from fixtures.project import environment
from fixtures.servers import reserved_port

PAGE = re.compile(r"(http://localhost:(\d+))/#/experiments/(\d+)/runs\?workflowType=machine_learn")


@pytest.fixture
def project(empty_database: Path, tmp_path: Path) -> Path:
    """A project with a database that has our experiment, beside MLflow's own."""
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    return tmp_path


def test_it_arrives_at_the_page_of_the_runs_past_a_busy_port(project: Path) -> None:
    known = mlflow.MlflowClient(f"sqlite:///{project / 'mlflow.db'}")
    experiment = known.get_experiment_by_name("bigtransfer").experiment_id
    with reserved_port() as busy, socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", busy))
        other.listen()
        process = subprocess.Popen(
            [sys.executable, "-m", "bigtransfer.command", "ui", "--no-open", "--port", str(busy)],
            cwd=project, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, start_new_session=True,
        )  # fmt: skip
        assert process.stdout is not None
        took, page = process.stdout.readline(), process.stdout.readline()
        assert took.startswith("MLflow took "), process.communicate()
        found = PAGE.match(page)
        assert found is not None and found[3] == experiment
        assert int(found[2]) > busy
        with urlopen(f"{found[1]}/") as answer:  # it answers by then
            assert b"<html" in answer.read()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0
    assert err == f"port {busy} is busy; taking {found[2]}\n"
    assert "Traceback" not in out + err
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", int(found[2]))) != 0, "the server ended too"


FAILS = """
import atexit, sys
atexit.register(print, "(Background on this error at: there)", file=sys.stderr)
raise ValueError("the database is newer than MLflow")
"""


def test_a_server_that_does_not_start_gives_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mlflow.db").touch()
    (tmp_path / "mlflow.py").write_text(FAILS)
    monkeypatch.chdir(tmp_path)  # where `python -m` looks first
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    with reserved_port() as port:
        code, _, err = heard(capsys, "ui", "--no-open", "--port", str(port))
    assert code == 75 and err.count("\n") == 1
    assert (
        "MLflow did not start; it said last: 'ValueError: the database is newer than MLflow' "
        "(.work/log/ui.log)"
    ) in err


class _Known(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'{"experiment": {"experiment_id": "7"}}')

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    """A server that knows one experiment."""
    with HTTPServer(("127.0.0.1", 0), _Known) as made:
        threading.Thread(target=made.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{made.server_port}"
        made.shutdown()


def test_a_server_that_is_named_is_opened_and_none_is_started(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    opened: list[str] = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setattr(ui.webbrowser, "open", opened.append)
    page = f"{server}/#/experiments/7/runs?workflowType=machine_learning"
    assert heard(capsys, "ui") == (0, page + "\n", "")
    assert opened == [page]
    assert heard(capsys, "ui", "--no-open")[0] == 0
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    assert heard(capsys, "ui")[0] == 0
    assert len(opened) == 1 or sys.platform == "darwin"
    assert not (tmp_path / ".work").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "yet (no mlflow.db); `make run` makes some"),
        (("--port", "0"), "there are no runs"),
    ],
)
def test_without_a_database_it_says_what_to_do(
    words: tuple[str, ...], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    code, out, err = heard(capsys, "ui", *words)
    assert (code, out) == (2, "") and err.count("\n") == 1
    assert said in err
    assert os.listdir(tmp_path) == []
