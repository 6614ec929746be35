"""`bigtransfer cluster`, and the note of a submission that finds what a run left behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bigtransfer.command.__main__ import main
from bigtransfer.kubeflow.job import objects_of
from fixtures.cluster_api import ClusterApi
from fixtures.kfp_api import Api, submit
from fixtures.launches import launch_of

NAME = "pretrain-0123456789abcdef"


def lay(cluster: ClusterApi, run: str = "run-1", **status: Any) -> dict[str, Any]:
    job = objects_of(launch_of(nodes=2, queue=None))[0]
    job["metadata"]["labels"]["bigtransfer/run"] = run
    job["metadata"]["creationTimestamp"] = "2026-11-27T10:00:00Z"
    return cluster.put("jobs", {**job, "status": status})


def call(*words: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["cluster", *words])
    return int(ended.value.code or 0)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_what_runs_is_listed_and_stopped_by_run_or_name(
    cluster: ClusterApi, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("list") == 0
    assert capsys.readouterr().out == "nothing was launched in namespace 'runs' (stand-in)\n"
    for which in ("run-1", NAME):
        lay(cluster)
        assert call("list") == 0
        line = capsys.readouterr().out
        assert line.startswith(f"Job {NAME}: running, pretrain of run run-1, 2 pods, made ")
        assert call("stop", which) == 0
        assert capsys.readouterr().out.startswith(f"stopped Job {NAME}: running")
        assert ("jobs", NAME) not in cluster.things


def test_what_is_not_there_cannot_be_stopped(
    cluster: ClusterApi, capsys: pytest.CaptureFixture[str]
) -> None:
    lay(cluster)
    assert call("stop", "run-2") == 2
    said = capsys.readouterr().err
    assert "nothing of 'run-2' runs in namespace 'runs'; did you mean 'run-1'?" in said
    assert call("stop") == 2
    cluster.answers["GET", "jobs"] = [(403, "jobs is forbidden")]
    assert call("list") == 2
    assert "does not let this service account do that (403" in capsys.readouterr().err


@pytest.mark.parametrize(("state", "noted"), [("SUCCEEDED", True), ("RUNNING", False)])
def test_a_submission_names_what_an_ended_run_left(
    state: str, noted: bool, cluster: ClusterApi, api: Api, own: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    lay(cluster)
    api.states = [{"run_id": "run-1", "state": state}]
    assert submit(own, "--endpoint", api.url, "--namespace", "runs") == 0
    said = capsys.readouterr().err
    assert (f"bigtransfer cluster stop {NAME}" in said) == noted
