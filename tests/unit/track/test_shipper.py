from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import PROJECT, environment

from bigtransfer.track.journal import Journal, wait_for
from bigtransfer.track.origin import Origin, find_origin, is_alive
from bigtransfer.track.runs import open_experiment, parent_run
from bigtransfer.track.shipper import ship


def runs(client: Any) -> dict[str, Any]:
    experiment = client.get_experiment_by_name("bigtransfer")
    return {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}


def test_all_that_a_stage_told_stands_in_mlflow(project: Path, client: Any) -> None:
    note = project / "note.txt"
    note.write_text("kept")
    journal = Journal(project, "pretrain")
    journal.params({"base_lr": 0.1, "decay_epochs": [1, 2]})
    for step in (10, 20):
        journal.metrics(step, {"loss": 1.0 / step})
    journal.tags({"colour": "red"})
    journal.dataset("upstream", "ab" * 32, "data/upstream", {"images": 7})
    journal.file(note)
    journal.close("FINISHED")
    ship(project, journal.path)

    run = runs(client)["pretrain"]
    assert run.info.status == "FINISHED"
    assert run.data.params == {"base_lr": "0.1", "decay_epochs": "[1, 2]"}
    curve = client.get_metric_history(run.info.run_id, "loss")
    assert [(point.step, point.value) for point in curve] == [(10, 0.1), (20, 0.05)]
    assert run.data.tags["colour"] == "red"
    (dataset,) = run.inputs.dataset_inputs
    assert (dataset.dataset.name, dataset.dataset.digest) == ("upstream", "ab" * 18)
    assert [f.path for f in client.list_artifacts(run.info.run_id)] == ["note.txt"]
    parent = client.get_run(run.data.tags["mlflow.parentRunId"])
    assert parent.info.run_name.startswith("by hand ")
    assert parent.info.status == "FINISHED"
    assert journal.path.with_suffix(".done").exists()


def test_stages_of_one_workflow_share_a_parent_that_summarize_closes(
    project: Path, client: Any
) -> None:
    me = find_origin()
    origin = {**vars(me), "engine": "dvc", "key": "dvc-1-1"}
    for stage in ("shard@digits", "summarize"):
        path = project / ".work" / "track" / "dvc-1-1" / f"{stage}.jsonl"
        write_journal(path, stage, origin, status="FINISHED")
        ship(project, path)
        found = runs(client)
        (parent,) = [r for name, r in found.items() if name.startswith("dvc ")]
        assert found[stage].data.tags["mlflow.parentRunId"] == parent.info.run_id
        closed = "FINISHED" if stage == "summarize" else "RUNNING"
        assert parent.info.status == closed
    assert len(found) == 3


def write_journal(path: Path, stage: str, origin: dict[str, Any], status: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    start = {"kind": "start", "time": 1, "stage": stage, "pid": os.getpid(), "commit": "c0ffee",
             "started": psutil.Process().create_time(),
             "origin": origin, "command": ["x"]}  # fmt: skip
    end = {"kind": "end", "time": 2, "status": status}
    path.write_text(json.dumps(start) + "\n" + json.dumps(end) + "\n")


def test_a_failed_stage_fails_the_parent(project: Path, client: Any) -> None:
    origin = {**vars(find_origin()), "engine": "dvc", "key": "dvc-2-2"}
    path = project / ".work" / "track" / "dvc-2-2" / "shard.jsonl"
    write_journal(path, "shard", origin, status="FAILED")
    ship(project, path)
    assert {run.info.status for run in runs(client).values()} == {"FAILED"}


def test_a_stage_that_died_without_a_word_is_killed_in_mlflow(project: Path, client: Any) -> None:
    script = (
        "import os, pathlib, signal\n"
        "from bigtransfer.track.journal import Journal\n"
        "journal = Journal(pathlib.Path('.'), 'pretrain')\n"
        "journal.metrics(10, {'loss': 2.5})\n"
        "print(journal.path.resolve(), flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], cwd=project, capture_output=True, text=True, check=False
    )
    assert result.returncode == -9
    ship(project, Path(result.stdout.strip()))
    run = runs(client)["pretrain"]
    assert run.info.status == "KILLED"
    assert run.data.metrics["loss"] == 2.5


def test_a_new_workflow_ends_what_a_dead_one_left_open(project: Path, client: Any) -> None:
    with subprocess.Popen(["true"]) as gone:
        gone.wait()
    dead = Origin("dvc", f"dvc-{gone.pid}-0", gone.pid, 0.0)
    assert not is_alive(dead.pid, dead.started)
    experiment = open_experiment(project, client)
    left = parent_run(project, client, experiment, dead, "c0ffee")
    me = find_origin()
    new = parent_run(project, client, experiment, me, "c0ffee")
    assert parent_run(project, client, experiment, me, "c0ffee") == new != left
    assert client.get_run(left).info.status == "FINISHED"
    assert client.get_run(new).info.status == "RUNNING"


def test_several_who_come_first_make_one_database(tmp_path: Path) -> None:
    script = (
        "import pathlib\n"
        "from bigtransfer.track.runs import open_client, open_experiment\n"
        "here = pathlib.Path('.')\n"
        "print(open_experiment(here, open_client(here)))\n"
    )
    line = [sys.executable, "-c", script]
    env = environment()
    firsts = [
        subprocess.Popen(line, cwd=tmp_path, env=env, stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    said = {first.communicate()[0].strip() for first in firsts}
    assert [first.returncode for first in firsts] == [0, 0, 0]
    assert len(said) == 1


def test_what_mlflow_does_not_take_is_kept_and_said(project: Path, capsys: Any) -> None:
    (project / "mlflow.db").write_text("not a database, " * 100)
    journal = Journal(project, "shard@digits")
    journal.ship()
    journal.close("FINISHED")
    message = capsys.readouterr().err
    assert message.startswith("warning: MLflow did not take all that was logged")
    assert "shard-digits" in message
    assert journal.path.exists()
    assert "DatabaseError" in journal.path.with_suffix(".log").read_text()


def test_waiting_ends_at_once_where_nothing_is_open(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").touch()
    (tmp_path / "a.done").touch()
    wait_for(tmp_path)


class Server:
    """A real MLflow server on loopback that can be killed and started again."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.folder, self.address = folder, f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        line = ["mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port), "--workers",
                "1", "--backend-store-uri", f"sqlite:///{self.folder / 'mlflow.db'}"]  # fmt: skip
        self.process = subprocess.Popen(
            [sys.executable, "-m", *line], cwd=self.folder, env=environment(),
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        for _ in range(600):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.1)
        raise AssertionError("the server did not start")

    def kill(self) -> None:
        assert self.process is not None
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture
def server(project: Path) -> Iterator[Server]:
    made = Server(project)
    made.start()
    yield made
    made.kill()


def told(journal: Path) -> list[tuple[str, int, float]]:
    entries = [json.loads(line) for line in journal.read_text().splitlines()]
    return sorted(
        (key, entry["step"], value)
        for entry in entries
        if entry["kind"] == "metrics"
        for key, value in entry["values"].items()
    )


def kept(client: Any, run: Any) -> list[tuple[str, int, float]]:
    return sorted(
        (key, point.step, point.value)
        for key in run.data.metrics
        if not key.startswith("system/")
        for point in client.get_metric_history(run.info.run_id, key)
    )


def write(project: Path, server: Server, points: int, key: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "unit.track.outage", str(points), key], cwd=project,
        env=environment(PYTHONPATH=f"{PROJECT}:{PROJECT / 'tests'}",
                        MLFLOW_TRACKING_URI=server.address),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_server_killed_and_restarted_in_the_middle_has_every_point_once(
    project: Path, client: Any, server: Server
) -> None:
    writer = write(project, server, 120, "f00d")
    assert writer.stdout is not None
    journal = Path(writer.stdout.readline().strip())
    wait_until(lambda: "pretrain" in runs(client) and kept(client, runs(client)["pretrain"]))
    server.kill()
    time.sleep(2)
    server.start()
    out, err = writer.communicate(timeout=120)
    assert writer.returncode == 0, err
    assert float(out) < 0.1, "nobody waits for the server"
    run = runs(client)["pretrain"]
    assert kept(client, run) == told(journal)
    assert len(told(journal)) == 240
    assert run.info.status == "FINISHED"


def test_what_a_dead_server_missed_is_sent_by_sync(
    project: Path, client: Any, server: Server, run_line: Any
) -> None:
    server.kill()
    folder = project / ".work" / "track" / "by-hand-1"
    folder.mkdir(parents=True)
    writer = write(project, server, 5, "f00d")
    assert writer.stdout is not None
    journal = Path(writer.stdout.readline().strip())
    writer.kill()
    writer.communicate()
    line = ("bigtransfer.command", "sync")
    address = {"MLFLOW_TRACKING_URI": server.address}
    server.start()
    result = run_line(*line, cwd=project, **address)
    assert result.returncode == 0, result.stderr
    assert "1 of 1 journals sent" in result.stdout
    assert kept(client, runs(client)["pretrain"]) == told(journal)
    assert run_line(*line, cwd=project, **address).stdout == "MLflow has all that was logged\n"


def test_training_that_goes_on_goes_on_in_the_same_run(project: Path, client: Any) -> None:
    points = [(step, {"loss": 1.0 / step}) for step in range(1, 7)]
    for number, (told_then, status) in enumerate(
        (([0, 1, 2, 3], "KILLED"), (range(6), "FINISHED"))
    ):
        journal = Journal(project, "pretrain")
        journal.params({"base_lr": 0.1})
        journal.training("f00d")
        for at in told_then:
            journal.metrics(*points[at])
        journal.tags({f"start_{number}": "yes"})
        journal.close(status)
        ship(project, journal.path)
    run = runs(client)["pretrain"]
    assert [run.info.run_name for run in client.search_runs([run.info.experiment_id])].count(
        "pretrain"
    ) == 1
    assert kept(client, run) == [("loss", step, 1.0 / step) for step in range(1, 7)]
    assert run.info.status == "FINISHED"
    assert {"start_0", "start_1"} <= run.data.tags.keys()


def test_a_finished_training_is_not_gone_on_with(project: Path, client: Any) -> None:
    for _ in range(2):
        journal = Journal(project, "pretrain")
        journal.training("f00d")
        journal.close("FINISHED")
        ship(project, journal.path)
    experiment = client.get_experiment_by_name("bigtransfer").experiment_id
    names = [run.info.run_name for run in client.search_runs([experiment])]
    assert names.count("pretrain") == 2


def wait_until(condition: Any) -> None:
    for _ in range(600):
        if condition():
            return
        time.sleep(0.1)
    raise AssertionError("it did not come to pass")
