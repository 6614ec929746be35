"""What rings, and what does not."""

from __future__ import annotations

import base64
import hashlib
import hmac
import http.client
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from bigtransfer.errors import ConfigError
from bigtransfer.track.doorbell import doorbell
from fixtures.project import PROJECT, environment
from fixtures.registered import NAME, propose
from fixtures.servers import MlflowServer, reserved_port

SECRET, BODY = "a secret", b'{"entity": "model_version_alias"}'


def signed(
    body: bytes = BODY, *, secret: str = SECRET, at: float | None = None, over: bytes = BODY
) -> dict[str, str]:
    """Return the headers of a delivery as MLflow signs it."""
    stamp = str(int(time.time() if at is None else at))
    mac = hmac.new(secret.encode(), f"one.{stamp}.".encode() + over, hashlib.sha256).digest()
    return {
        "X-MLflow-Delivery-Id": "one", "X-MLflow-Timestamp": stamp,
        "X-MLflow-Signature": f"v1,{base64.b64encode(mac).decode()}",
    }  # fmt: skip


def post(port: int, headers: dict[str, str], body: bytes = BODY) -> int:
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=10)) as asked:
        asked.request("POST", "/", body, headers)
        return asked.getresponse().status


def test_a_genuine_delivery_rings_and_one_that_comes_twice_too() -> None:
    with doorbell("127.0.0.1", 0, SECRET) as (rung, port):
        for _ in range(2):
            assert post(port, signed()) == 204
            assert rung.is_set()
            rung.clear()


def test_names_of_headers_may_be_written_small_as_proxies_do() -> None:
    small = {name.lower(): value for name, value in signed().items()}
    with doorbell("127.0.0.1", 0, SECRET) as (rung, port):
        assert post(port, small) == 204
        assert rung.is_set()


def test_a_broken_request_writes_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    with doorbell("127.0.0.1", 0, SECRET) as (rung, port):
        assert post(port, {**signed(), "X-MLflow-Timestamp": "1" * 5000}) == 401
        with socket.create_connection(("127.0.0.1", port)) as broken:
            broken.sendall(b"POST / HTTP/1.1\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n")
            assert b" 413 " in broken.recv(100)
        assert not rung.is_set()
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "headers",
    [{}, signed(secret="another"), signed(over=b"other"), signed(at=time.time() - 3600),
     signed(at=time.time() + 3600), {**signed(), "X-MLflow-Delivery-Id": "two"},
     {**signed(), "X-MLflow-Signature": "v1,no base64"},
     {**signed(), "X-MLflow-Signature": signed()["X-MLflow-Signature"].replace("v1", "v2")},
     {**signed(), "X-MLflow-Timestamp": "soon"}],
    ids=["bare", "forged", "changed", "late", "early", "renamed", "no base64", "v2", "no time"],
)  # fmt: skip
def test_what_is_forged_or_late_does_not_ring(headers: dict[str, str]) -> None:
    with doorbell("127.0.0.1", 0, SECRET) as (rung, port):
        assert post(port, headers) == 401
        assert not rung.is_set()


def test_too_much_and_too_slow_is_not_waited_for() -> None:
    with doorbell("127.0.0.1", 0, SECRET) as (rung, port):
        with socket.create_connection(("127.0.0.1", port)) as much:  # the body is never read
            much.sendall(b"POST / HTTP/1.1\r\nContent-Length: 2097152\r\n\r\n")
            assert b" 413 " in much.recv(100)
        with socket.create_connection(("127.0.0.1", port)):  # says nothing
            assert post(port, signed()) == 204
        assert rung.is_set()


def test_an_address_that_cannot_be_had_is_one_line() -> None:
    with (
        doorbell("127.0.0.1", 0, SECRET) as (_, port),
        pytest.raises(ConfigError, match="cannot listen at 127"),
        doorbell("127.0.0.1", port, SECRET),
    ):
        pass


@pytest.fixture
def server(tmp_path: Path, empty_database: Path) -> Iterator[MlflowServer]:
    """A server of MLflow whose webhooks may go to this machine, as manifests/mlflow says."""
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    allowed = {
        "MLFLOW_WEBHOOK_ALLOWED_SCHEMES": "http,https", "MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS": "true",
    }  # fmt: skip
    with reserved_port() as port:
        own = MlflowServer(tmp_path, port, variables=allowed)
        own.start()
        yield own
        own.kill()


def test_an_alias_that_is_set_in_mlflow_rings_and_is_judged_at_once(
    server: MlflowServer, tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient
    from mlflow.entities.webhook import WebhookAction, WebhookEntity, WebhookEvent

    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.address)
    text = (PROJECT / "params.yaml").read_text()
    assert text.count("poll_seconds: 5.0 ") == 1
    (tmp_path / "params.yaml").write_text(
        text.replace("poll_seconds: 5.0 ", "poll_seconds: 600.0 ")
    )
    for digest, share in (("d1", 0.8), ("d2", 0.83)):
        propose(tmp_path, model_folder, digest, share)
    line = [sys.executable, "-m", "bigtransfer.command", "watch", "--listen", "127.0.0.1:0"]
    own = environment(BIGTRANSFER_WEBHOOK_SECRET=SECRET, MLFLOW_TRACKING_URI=server.address)
    with subprocess.Popen(line, cwd=tmp_path, env=own, stdout=subprocess.PIPE, text=True) as loop:
        try:
            assert loop.stdout is not None
            url = loop.stdout.readline().split()[-1]
            client = MlflowClient(server.address)
            event = WebhookEvent(WebhookEntity.MODEL_VERSION_ALIAS, WebhookAction.CREATED)
            client.create_webhook(name="bigtransfer", url=url, events=[event], secret=SECRET)
            time.sleep(1)  # the loop has looked by now, and would look again in ten minutes
            client.set_registered_model_alias(NAME, "candidate", "2")
            assert loop.stdout.readline().startswith(f"{NAME} version 2 is champion")
        finally:
            loop.kill()


@pytest.mark.parametrize(
    ("words", "secret", "said"),
    [(["--listen", "8001"], SECRET, "is no address; write e.g. --listen 127.0.0.1:8001"),
     (["--listen", "127.0.0.1:0"], "", "wants the secret of the webhook in BIGTRANSFER_WEBHOOK")],
)  # fmt: skip
def test_what_cannot_be_listened_at_is_one_line(
    words: list[str], secret: str, said: str, tmp_path: Path
) -> None:
    line = [sys.executable, "-m", "bigtransfer.command", "watch", *words]
    own = environment(BIGTRANSFER_WEBHOOK_SECRET=secret)
    done = subprocess.run(line, cwd=tmp_path, env=own, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert said in done.stderr
