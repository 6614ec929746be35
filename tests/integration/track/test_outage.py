"""A real MLflow server that is killed: no point is lost, none is doubled, nobody waits for it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fixtures.project import TESTS, environment
from fixtures.servers import MlflowServer
from fixtures.tracking import kept, runs

pytestmark = pytest.mark.xdist_group("outage")


@pytest.fixture
def client(mlflow_server: MlflowServer) -> Any:
    """MLflow's own client of the server's database, whether the server runs or not."""
    import mlflow

    return mlflow.MlflowClient(f"sqlite:///{mlflow_server.folder / 'mlflow.db'}")


def told(journal: Path) -> list[tuple[str, int, float]]:
    entries = [json.loads(line) for line in journal.read_text().splitlines()]
    return sorted(
        (key, entry["step"], value)
        for entry in entries
        if entry["kind"] == "metrics"
        for key, value in entry["values"].items()
    )


def address(server: MlflowServer, experiment: str) -> dict[str, str]:
    return {"MLFLOW_TRACKING_URI": server.address, "MLFLOW_EXPERIMENT_NAME": experiment}


def write(
    project: Path, server: MlflowServer, points: int, experiment: str
) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "fixtures.processes.writer", str(points), "f00d"], cwd=project,
        env=environment(PYTHONPATH=TESTS, **address(server, experiment)),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def wait_until(condition: Callable[[], Any]) -> None:
    for _ in range(600):
        if condition():
            return
        time.sleep(0.1)
    raise AssertionError("it did not come to pass")


def lines(journal: Path) -> int:
    return journal.read_bytes().count(b"\n")


def test_server_killed_and_restarted_in_the_middle_has_every_point_once(
    tmp_path: Path, client: Any, mlflow_server: MlflowServer
) -> None:
    writer = write(tmp_path, mlflow_server, 120, "restarted")
    assert writer.stdout is not None
    journal = Path(writer.stdout.readline().strip())

    def arrived() -> list[Any]:
        found = runs(client, "restarted")
        return kept(client, found["pretrain"]) if "pretrain" in found else []

    wait_until(arrived)
    mlflow_server.kill()
    written, before = lines(journal), len(arrived())
    wait_until(lambda: lines(journal) >= written + 20)  # nobody waits for the server
    assert len(arrived()) == before
    mlflow_server.start()
    _, err = writer.communicate(timeout=120)
    assert writer.returncode == 0, err
    run = runs(client, "restarted")["pretrain"]
    assert kept(client, run) == told(journal)
    assert len(told(journal)) == 240
    assert run.info.status == "FINISHED"


def test_what_a_dead_server_missed_is_sent_by_sync(
    tmp_path: Path, client: Any, mlflow_server: MlflowServer, run_line: Any
) -> None:
    mlflow_server.kill()
    (tmp_path / ".work" / "track" / "by-hand-1").mkdir(parents=True)
    writer = write(tmp_path, mlflow_server, 5, "missed")
    assert writer.stdout is not None
    journal = Path(writer.stdout.readline().strip())
    writer.kill()
    writer.communicate()
    line = ("bigtransfer.command", "sync")
    there = address(mlflow_server, "missed")
    mlflow_server.start()
    result = run_line(*line, **there)
    assert result.returncode == 0, result.stderr
    assert "1 of 1 journal sent" in result.stdout
    assert kept(client, runs(client, "missed")["pretrain"]) == told(journal)
    assert run_line(*line, **there).stdout == "MLflow has all that was logged\n"
