"""The MLflow server as manifests/mlflow starts it: its own command line and environment, for real."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from fixtures.project import PROJECT, environment
from fixtures.servers import reserved_port, s3_environment, wait_for_port

pytestmark = pytest.mark.xdist_group("login")
PASSWORD = "an-administrators-word"


class Deployed:
    """What runs in the pod, with a Secret's values."""

    def __init__(self, folder: Path, port: int, secret: dict[str, str]) -> None:
        self.folder, self.port, self.secret = folder, port, secret
        text = (PROJECT / "manifests" / "mlflow" / "server.yaml").read_text()
        (deployment,) = [d for d in yaml.safe_load_all(text) if d["kind"] == "Deployment"]
        (self.box,) = deployment["spec"]["template"]["spec"]["containers"]
        auth = (PROJECT / "manifests" / "mlflow" / "auth.ini").read_text()
        lines = [
            f"database_uri = {secret['store']}" if line.startswith("database_uri") else line
            for line in auth.splitlines()
        ]
        (folder / "auth.ini").write_text("\n".join(lines))
        self.process: subprocess.Popen[bytes] | None = None

    def environment(self) -> dict[str, str]:
        found = {}
        for one in self.box["env"]:
            if "value" in one:
                found[one["name"]] = one["value"]
            else:
                reference = one["valueFrom"]["secretKeyRef"]
                assert reference["name"] == "mlflow"
                assert reference["key"] in self.secret or reference.get("optional"), reference
                if reference["key"] in self.secret:
                    found[one["name"]] = self.secret[reference["key"]]
        found["MLFLOW_AUTH_CONFIG_PATH"] = str(self.folder / "auth.ini")
        return found

    def start(self) -> None:
        line = [sys.executable, "-m", *self.box["command"]]
        at = line.index("--port")
        assert line[at + 1] == "5000"
        line[at + 1] = str(self.port)
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                line, cwd=self.folder, env=environment(**self.environment()), stdout=log,
                stderr=log, start_new_session=True,
            )  # fmt: skip
        wait_for_port(self.port, self.process)

    def stop(self) -> None:
        assert self.process is not None
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def ask(self, path: str, user: str | None = None, host: str | None = None) -> int:
        """Return the status of an answer."""
        headers = {} if host is None else {"Host": host}
        if user is not None:
            headers["Authorization"] = f"Basic {b64encode(user.encode()).decode()}"
        asked = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", headers=headers)
        try:
            with urllib.request.urlopen(asked, timeout=60) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            with error:
                return error.code


@pytest.fixture(scope="module")
def deployed(
    postgres: str, s3_server: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Deployed]:
    given = s3_environment(s3_server)
    secret = {
        "store": postgres, "artifacts": "s3://mlflow-artifacts/mlflow", "session-key": "s" * 32,
        "admin-password": PASSWORD, "aws-access-key-id": given["AWS_ACCESS_KEY_ID"],
        "aws-secret-access-key": given["AWS_SECRET_ACCESS_KEY"],
        "aws-endpoint-url": given["AWS_ENDPOINT_URL"],
    }  # fmt: skip
    with reserved_port() as port:
        made = Deployed(tmp_path_factory.mktemp("deployed"), port, secret)
        made.start()
        yield made
        made.stop()


def test_a_registered_model_survives_a_restart_and_strangers_get_nothing(
    deployed: Deployed, s3: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import mlflow

    s3.create_bucket(Bucket="mlflow-artifacts")
    runs = "/api/2.0/mlflow/experiments/get-by-name?experiment_name=Default"
    admin = f"admin:{PASSWORD}"
    assert deployed.ask("/health") == 200, "probes log in as nobody"
    assert deployed.ask(runs) == 401
    assert deployed.ask(runs, user="admin:wrong") == 401
    assert deployed.ask(runs, user=admin) == 200
    assert deployed.ask(runs, user=admin, host="mlflow.bigtransfer:5000") == 200
    assert deployed.ask(runs, user=admin, host="evil.example") == 403

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{deployed.port}")
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
    client = mlflow.MlflowClient()
    run = client.create_run("0")
    (tmp_path / "weights").write_bytes(b"weights" * 1000)
    client.log_artifact(run.info.run_id, str(tmp_path / "weights"), "model")
    client.create_registered_model("deployed")
    source = f"{run.info.artifact_uri}/model"
    client.create_model_version("deployed", source, run.info.run_id)
    client.set_registered_model_alias("deployed", "challenger", "1")
    keys = [o["Key"] for o in s3.list_objects_v2(Bucket="mlflow-artifacts")["Contents"]]
    assert any(key.endswith("/model/weights") for key in keys), keys

    deployed.stop()
    deployed.start()
    assert deployed.ask(runs, user=admin) == 200
    found = client.get_model_version_by_alias("deployed", "challenger")
    assert found.version == "1"
    local = client.download_artifacts(run.info.run_id, "model/weights", str(tmp_path))
    assert Path(local).read_bytes() == b"weights" * 1000
    assert not list(deployed.folder.glob("*.db")), "nothing stays in the pod"
