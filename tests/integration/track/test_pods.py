"""Pods share nothing but MLflow's server, and all of one KFP run stand there under one parent."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from bigtransfer.errors import StorageError, TrackingError
from bigtransfer.storage import new_folder, verify_folder
from bigtransfer.track.artifacts import download
from bigtransfer.track.journal import Journal
from bigtransfer.track.origin import find_origin
from bigtransfer.track.runs import open_experiment, parent_run
from bigtransfer.track.shipper import ship
from fixtures.project import TESTS, environment
from fixtures.servers import MlflowServer
from fixtures.tracking import kept, runs

pytestmark = pytest.mark.xdist_group("pods")
RUN = "0f1e2d3c-aaaa-bbbb-cccc-000000000001"


@pytest.fixture
def in_kfp(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setenv("KFP_RUN_ID", RUN)
    monkeypatch.setenv("KFP_RETRY_INDEX", "0")
    return monkeypatch


def server_client(server: MlflowServer) -> Any:
    import mlflow

    return mlflow.MlflowClient(f"sqlite:///{server.folder / 'mlflow.db'}")


def pod(folder: Path, server: MlflowServer, *line: str, **env: str) -> subprocess.Popen[str]:
    """Start a task in a folder of its own, as a pod has it."""
    folder.mkdir()
    return subprocess.Popen(
        [sys.executable, "-m", "fixtures.processes.pod", *line], cwd=folder,
        env=environment(PYTHONPATH=TESTS, MLFLOW_TRACKING_URI=server.address, KFP_RUN_ID=RUN)
        | env,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def below(client: Any, parent: Any) -> list[Any]:
    found = client.search_runs([parent.info.experiment_id])
    return [r for r in found if r.data.tags.get("mlflow.parentRunId") == parent.info.run_id]


def parents(client: Any, experiment: str = "bigtransfer") -> list[Any]:
    found = client.search_runs([client.get_experiment_by_name(experiment).experiment_id])
    return [run for run in found if "kfp.run_id" in run.data.tags]


def test_five_pods_at_once_make_one_experiment_and_one_parent(
    tmp_path: Path, mlflow_server: MlflowServer
) -> None:
    env = {
        "MLFLOW_EXPERIMENT_NAME": "five",
        "BIGTRANSFER_KFP_RUN": "quickstart 2026-11-26 17:00:00",
        "BIGTRANSFER_KFP_URL": "http://user:word@kfp.example/",
        "BIGTRANSFER_KFP_RESUBMITTED": "0f1e2d3c-aaaa-bbbb-cccc-000000000000",
        "KFP_RETRY_INDEX": "0",
    }
    stages = [f"shard@{number}" for number in range(5)]
    pods = [pod(tmp_path / s, mlflow_server, s, "3", "FINISHED", **env) for s in stages]
    said = {stage: p.communicate(timeout=120) for stage, p in zip(stages, pods, strict=True)}
    assert {err for _, err in said.values()} == {""}
    client = server_client(mlflow_server)
    (parent,) = parents(client, "five")
    assert parent.info.run_name == "quickstart 2026-11-26 17:00:00"
    assert parent.info.status == "FINISHED"
    link = f"http://kfp.example/#/runs/details/{RUN}"
    tags = parent.data.tags
    assert (tags["kfp.run_id"], tags["kfp.run"]) == (RUN, link)
    assert f"]({link})" in tags["mlflow.note.content"]
    assert tags["kfp.resubmission_of"] == env["BIGTRANSFER_KFP_RESUBMITTED"]
    found = {run.info.run_name: run for run in below(client, parent)}
    assert found.keys() == set(stages)
    for stage, run in found.items():
        assert kept(client, run) == [("loss", step, 1.0 / step) for step in (1, 2, 3)]
        assert run.data.tags["kfp.retry_index"] == "0"
        page = f"/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}"
        assert said[stage][0] == f"{mlflow_server.address}{page}\n"


def test_all_who_ask_in_the_same_moment_agree(
    tmp_path: Path, mlflow_server: MlflowServer, in_kfp: pytest.MonkeyPatch
) -> None:
    """Each has its own folder, so no lock of a file helps; and none may be told a deleted one."""
    from mlflow import MlflowClient

    in_kfp.setenv("MLFLOW_TRACKING_URI", mlflow_server.address)
    in_kfp.setenv("MLFLOW_EXPERIMENT_NAME", "moment")
    together = threading.Barrier(8)
    own = find_origin()

    def ask(number: int) -> tuple[str, str]:
        client, project = MlflowClient(mlflow_server.address), tmp_path / str(number)
        origin = type(own)(**{**vars(own), "pid": number})
        together.wait()
        experiment = open_experiment(project, client)
        together.wait()
        return experiment, parent_run(project, client, experiment, origin, "c0ffee")

    with ThreadPoolExecutor(8) as pool:
        told = set(pool.map(ask, range(8)))
    assert len(told) == 1
    (parent,) = parents(server_client(mlflow_server), "moment")
    assert told == {(parent.info.experiment_id, parent.info.run_id)}
    assert parent.info.run_name == "kfp 0f1e2d3c"
    assert not {"kfp.run", "mlflow.note.content", "kfp.resubmission_of"} & parent.data.tags.keys()


def test_the_next_attempt_of_a_lost_pod_goes_on_in_its_run(
    tmp_path: Path, mlflow_server: MlflowServer
) -> None:
    client = server_client(mlflow_server)
    place = (mlflow_server, "finetune@digits")
    env = {"MLFLOW_EXPERIMENT_NAME": "lost"}
    first = pod(tmp_path / "0", *place, "4", "KILLED", KFP_RETRY_INDEX="0", **env)
    while (
        not (runs(client, "lost").get("finetune@digits"))
        or len(kept(client, runs(client, "lost")["finetune@digits"])) < 4
    ):
        assert first.poll() is None
        time.sleep(0.2)
    in_it = psutil.Process(first.pid)
    for process in (*in_it.children(recursive=True), in_it):
        process.kill()  # the shipper is in the same pod
    first.communicate()
    (parent,) = parents(client, "lost")
    assert {run.info.status for run in (parent, *below(client, parent))} == {"RUNNING"}
    second = pod(tmp_path / "1", *place, "6", "FINISHED", KFP_RETRY_INDEX="1", **env)
    assert second.communicate(timeout=120)[1] == ""
    (parent,) = parents(client, "lost")
    (run,) = below(client, parent)
    assert kept(client, run) == [("loss", step, 1.0 / step) for step in range(1, 7)]
    assert run.data.tags["kfp.retry_index"] == "1"
    assert (run.info.status, parent.info.status) == ("FINISHED", "FINISHED")


def told(project: Path, stage: str, status: str) -> Path:
    journal = Journal(project, stage)
    journal.close(status)
    ship(project, journal.path)
    return journal.path


def test_the_parent_shows_what_the_stages_have_come_to(
    tracked: Path, client: Any, in_kfp: pytest.MonkeyPatch
) -> None:
    for stage, status, shown in (
        ("shard@digits", "FINISHED", "FINISHED"),
        ("finetune@digits", "FAILED", "FAILED"),
        ("pretrain", "FINISHED", "FAILED"),
        ("finetune@digits", "KILLED", "KILLED"),
        ("finetune@digits", "FINISHED", "FINISHED"),
    ):
        told(tracked, stage, status)
        (parent,) = parents(client)
        assert parent.info.status == shown
    names = [run.info.run_name for run in below(client, parent)]
    assert sorted(names) == ["finetune@digits", "pretrain", "shard@digits"]
    told(tracked, "pretrain", "FINISHED")
    assert len(below(client, parent)) == 4, "one that is finished is not gone on with"


def test_parts_that_run_at_once_are_runs_of_their_own(
    tracked: Path, client: Any, in_kfp: pytest.MonkeyPatch
) -> None:
    for part in ("1/2", "2/2", "1/2"):
        in_kfp.setattr(sys, "argv", ["components.shard", "--part", part])
        told(tracked, "shard@digits", "KILLED")
    (parent,) = parents(client)
    assert len(below(client, parent)) == 2


def test_a_parent_is_not_ended_by_others_while_a_stage_is_at_work(
    tracked: Path, client: Any, in_kfp: pytest.MonkeyPatch
) -> None:
    working = Journal(tracked, "pretrain")
    shipping = threading.Thread(target=ship, args=(tracked, working.path))
    shipping.start()
    while "pretrain" not in runs(client):
        time.sleep(0.1)
    told(tracked, "shard@digits", "FAILED")
    (parent,) = parents(client)
    assert parent.info.status == "RUNNING"
    in_kfp.delenv("KFP_RUN_ID")
    in_kfp.delenv("KFP_RETRY_INDEX")
    told(tracked, "validate@digits", "FINISHED")  # by hand, it ends what the dead left open
    (parent,) = parents(client)
    assert parent.info.status == "RUNNING"
    working.close("FINISHED")
    shipping.join()
    (parent,) = parents(client)
    assert parent.info.status == "FAILED"


def test_a_stage_whose_parent_is_deleted_meanwhile_gets_another(
    tracked: Path, client: Any, in_kfp: pytest.MonkeyPatch
) -> None:
    working = Journal(tracked, "pretrain")
    shipping = threading.Thread(target=ship, args=(tracked, working.path))
    shipping.start()
    while "pretrain" not in runs(client):
        time.sleep(0.1)
    (gone,) = parents(client)
    client.delete_run(gone.info.run_id)
    working.close("FINISHED")
    shipping.join()
    (parent,) = parents(client)
    assert parent.info.run_id != gone.info.run_id
    assert [run.info.run_name for run in below(client, parent)] == ["pretrain"]
    assert working.path.with_suffix(".done").exists()


def test_a_training_taken_from_another_kfp_run_leaves_its_parent_ended(
    tracked: Path, client: Any, in_kfp: pytest.MonkeyPatch
) -> None:
    first = Journal(tracked, "pretrain")
    first.training("f00d")
    first.metrics(1, {"loss": 1.0})
    first.close("KILLED")
    ship(tracked, first.path)
    (lost,) = parents(client)
    (run,) = below(client, lost)
    for left in (run, lost):
        client.set_terminated(left.info.run_id, "RUNNING")  # as a lost pod leaves it
    in_kfp.setenv("KFP_RUN_ID", "another")
    second = Journal(tracked, "pretrain")
    second.training("f00d")
    second.metrics(2, {"loss": 0.5})
    second.close("FINISHED")
    ship(tracked, second.path)
    assert client.get_run(lost.info.run_id).info.status == "FINISHED"
    (parent,) = (p for p in parents(client) if p.info.run_id != lost.info.run_id)
    (run,) = below(client, parent)
    assert kept(client, run) == [("loss", 1, 1.0), ("loss", 2, 0.5)]


@pytest.mark.parametrize("env", [{"KFP_RUN_ID": ""}, {"KFP_RUN_ID": " "}, {"KFP_RETRY_INDEX": "0"}])
def test_a_task_that_cannot_tell_its_run_says_so_and_goes_on(
    tracked: Path, client: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any, env: dict[str, str]
) -> None:
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    journal = Journal(tracked, "pretrain")
    said = capsys.readouterr().err
    journal.close("FINISHED")
    ship(tracked, journal.path)
    assert said.startswith("pretrain: KFP_RUN_ID is empty, the pod lacks the label pipeline/runid")
    assert said.count("\n") == 1
    run = runs(client)["pretrain"]
    parent = client.get_run(run.data.tags["mlflow.parentRunId"])
    assert parent.info.run_name.startswith("by hand ")


def test_nothing_is_said_where_there_is_no_kfp(tracked: Path, capsys: Any) -> None:
    journal = Journal(tracked, "pretrain")
    journal.close("FINISHED")
    assert capsys.readouterr().err == ""
    ship(tracked, journal.path)
    assert journal.run_url is None, "a database has no pages"


def test_an_experiment_that_was_deleted_is_a_line_with_the_way_on(
    tracked: Path, client: Any, in_kfp: pytest.MonkeyPatch, capsys: Any
) -> None:
    number = client.get_experiment_by_name("bigtransfer").experiment_id
    client.delete_experiment(number)
    with pytest.raises(TrackingError, match=r"^experiment 'bigtransfer' is deleted in MLflow at "):
        open_experiment(tracked, client)
    journal = Journal(tracked, "shard@digits")
    journal.ship()
    journal.close("FINISHED")
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"(`mlflow experiments restore --experiment-id {number}`)" in said
    assert "MLFLOW_EXPERIMENT_NAME" in said
    assert "Traceback" not in journal.path.with_suffix(".log").read_text()
    assert journal.run_url is None


def test_weights_that_the_server_hands_out_itself_are_brought_whole(
    tmp_path: Path, mlflow_server: MlflowServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    with new_folder(tmp_path / "checkpoint") as folder:
        (folder / "weights.safetensors").write_bytes(b"w" * 100)
        (folder / "meta.json").write_text("{}")
    known = verify_folder(tmp_path / "checkpoint")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server.address)
    client = mlflow.MlflowClient(mlflow_server.address)
    experiment = client.create_experiment("handed out")
    run = client.create_run(experiment)
    client.log_artifacts(run.info.run_id, str(tmp_path / "checkpoint"), "checkpoint")
    address = f"{run.info.artifact_uri}/checkpoint"
    assert address.startswith("mlflow-artifacts:")
    for number, place in enumerate((address, f"runs:/{run.info.run_id}/checkpoint")):
        assert download(tmp_path, place, tmp_path / str(number), known) == known
        assert verify_folder(tmp_path / str(number)) == known
    with pytest.raises(StorageError, match="was asked for"):
        download(tmp_path, address, tmp_path / "other", "a" * 64)
    with pytest.raises(TrackingError, match="cannot be had from MLflow"):
        download(tmp_path, f"{address}/nothing", tmp_path / "none", None)
    assert not (tmp_path / "none").exists()
