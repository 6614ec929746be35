from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from bigtransfer.track.journal import Journal, wait_for
from bigtransfer.track.origin import Origin, find_origin, is_alive
from bigtransfer.track.runs import parent_run
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
    left = parent_run(project, dead, "c0ffee")
    me = find_origin()
    new = parent_run(project, me, "c0ffee")
    assert parent_run(project, me, "c0ffee") == new != left
    assert client.get_run(left).info.status == "FINISHED"
    assert client.get_run(new).info.status == "RUNNING"


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
