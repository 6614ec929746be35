from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import psutil
import pytest

from bigtransfer.track.journal import GONE, Journal, wait_for
from bigtransfer.track.origin import Origin, find_origin, is_alive
from bigtransfer.track.runs import open_experiment, parent_run
from bigtransfer.track.shipper import ship
from fixtures.project import environment
from fixtures.tracking import kept, runs


def test_all_that_a_stage_told_stands_in_mlflow(tracked: Path, client: Any) -> None:
    note = tracked / "note.txt"
    note.write_text("kept")
    journal = Journal(tracked, "pretrain")
    journal.params({"base_lr": 0.1, "decay_epochs": [1, 2]})
    for step in (10, 20):
        journal.metrics(step, {"loss": 1.0 / step})
    journal.tags({"colour": "red"})
    journal.dataset("upstream", "ab" * 32, "data/upstream", {"images": 7})
    journal.file(note)
    journal.close("FINISHED")
    ship(tracked, journal.path)

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


def test_a_file_that_dvc_takes_away_for_a_moment_is_kept(tracked: Path, client: Any) -> None:
    here, gone = tracked / "metrics.json", tracked / "gone.json"
    for path in (here, gone):
        path.write_text("{}")
    journal = Journal(tracked, "evaluate@digits")
    for path in (here, gone):
        journal.file(path)
        path.unlink()
    journal.close("FINISHED")
    back = threading.Timer(0.2, here.write_text, ["{}"])
    back.start()
    ship(tracked, journal.path)
    run = runs(client)["evaluate@digits"]
    assert run.info.status == "FINISHED"
    found = [file.path for file in client.list_artifacts(run.info.run_id)]
    assert found == ["metrics.json"]
    (line,) = (journal.path.parent / GONE).read_text().splitlines()
    assert line == f"{str(gone)!r} in the run of 'evaluate@digits'"


def test_a_file_that_mlflow_never_got_is_said_at_the_end(
    tracked: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    gone = tracked / "gone.json"
    gone.write_text("{}")
    journal = Journal(tracked, "evaluate@digits")
    journal.ship()
    gone.unlink()
    journal.file(gone)
    journal.close("FINISHED")
    said = capfd.readouterr().err
    assert f"warning: MLflow has no copy of {str(gone)!r}" in said
    assert not (journal.path.parent / GONE).exists()


def test_stages_of_one_workflow_share_a_parent_that_summarize_closes(
    tracked: Path, client: Any
) -> None:
    me = find_origin()
    origin = {**vars(me), "engine": "dvc", "key": "dvc-1-1"}
    for stage in ("shard@digits", "summarize"):
        path = tracked / ".work" / "track" / "dvc-1-1" / f"{stage}.jsonl"
        write_journal(path, stage, origin, status="FINISHED")
        ship(tracked, path)
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


def test_a_failed_stage_fails_the_parent(tracked: Path, client: Any) -> None:
    origin = {**vars(find_origin()), "engine": "dvc", "key": "dvc-2-2"}
    path = tracked / ".work" / "track" / "dvc-2-2" / "shard.jsonl"
    write_journal(path, "shard", origin, status="FAILED")
    ship(tracked, path)
    assert {run.info.status for run in runs(client).values()} == {"FAILED"}


def test_a_stage_that_died_without_a_word_is_killed_in_mlflow(tracked: Path, client: Any) -> None:
    script = (
        "import os, pathlib, signal\n"
        "from bigtransfer.track.journal import Journal\n"
        "journal = Journal(pathlib.Path('.'), 'pretrain')\n"
        "journal.metrics(10, {'loss': 2.5})\n"
        "print(journal.path.resolve(), flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], cwd=tracked, capture_output=True, text=True, check=False
    )
    assert result.returncode == -9
    ship(tracked, Path(result.stdout.strip()))
    run = runs(client)["pretrain"]
    assert run.info.status == "KILLED"
    assert run.data.metrics["loss"] == 2.5


def test_a_new_workflow_ends_what_a_dead_one_left_open(tracked: Path, client: Any) -> None:
    with subprocess.Popen(["true"]) as gone:
        gone.wait()
    dead = Origin("dvc", f"dvc-{gone.pid}-0", gone.pid, 0.0)
    assert not is_alive(dead.pid, dead.started)
    experiment = open_experiment(tracked, client)
    left = parent_run(tracked, client, experiment, dead, "c0ffee")
    me = find_origin()
    new = parent_run(tracked, client, experiment, me, "c0ffee")
    assert parent_run(tracked, client, experiment, me, "c0ffee") == new != left
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


def test_what_mlflow_does_not_take_is_kept_and_said(tracked: Path, capsys: Any) -> None:
    (tracked / "mlflow.db").write_text("not a database, " * 100)
    journal = Journal(tracked, "shard@digits")
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


def test_training_that_goes_on_goes_on_in_the_same_run(tracked: Path, client: Any) -> None:
    points = [(step, {"loss": 1.0 / step}) for step in range(1, 7)]
    for number, (told_then, status) in enumerate(
        (([0, 1, 2, 3], "KILLED"), (range(6), "FINISHED"))
    ):
        journal = Journal(tracked, "pretrain")
        journal.params({"base_lr": 0.1})
        journal.training("f00d")
        for at in told_then:
            journal.metrics(*points[at])
        journal.tags({f"start_{number}": "yes"})
        journal.close(status)
        ship(tracked, journal.path)
    run = runs(client)["pretrain"]
    assert [run.info.run_name for run in client.search_runs([run.info.experiment_id])].count(
        "pretrain"
    ) == 1
    assert kept(client, run) == [("loss", step, 1.0 / step) for step in range(1, 7)]
    assert run.info.status == "FINISHED"
    assert {"start_0", "start_1"} <= run.data.tags.keys()


def test_a_finished_training_is_not_gone_on_with(tracked: Path, client: Any) -> None:
    for _ in range(2):
        journal = Journal(tracked, "pretrain")
        journal.training("f00d")
        journal.close("FINISHED")
        ship(tracked, journal.path)
    experiment = client.get_experiment_by_name("bigtransfer").experiment_id
    names = [run.info.run_name for run in client.search_runs([experiment])]
    assert names.count("pretrain") == 2


def test_the_run_of_the_whole_workflow_shows_the_headline(tracked: Path, client: Any) -> None:
    page = tracked / "index.html"
    page.write_text("<p>")
    journal = Journal(tracked, "summarize")
    params = {f"pretrain.p{number}": number for number in range(130)}
    journal.headline(
        metrics={"digits/test_top1_median": 0.9}, params=params, note="| a |", files=[page]
    )
    entries = journal.path.read_text().splitlines(keepends=True)
    journal.path.write_text("".join([*entries, entries[-1]]))  # sent again, it is the same
    journal.close("FINISHED")
    ship(tracked, journal.path)
    run = runs(client)["summarize"]
    parent = client.get_run(run.data.tags["mlflow.parentRunId"])
    assert parent.data.metrics == {"digits/test_top1_median": 0.9}
    assert len(client.get_metric_history(parent.info.run_id, "digits/test_top1_median")) == 1
    assert len(parent.data.params) == 130 and parent.data.params["pretrain.p7"] == "7"
    assert parent.data.tags["mlflow.note.content"] == "| a |"
    assert [file.path for file in client.list_artifacts(parent.info.run_id)] == ["index.html"]
    assert not run.data.metrics
