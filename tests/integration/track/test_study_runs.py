"""The runs of a study: one for each cell, however often it was tried, in whatever order told."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bigtransfer.track.origin import Origin
from bigtransfer.track.pods import earlier_attempt
from bigtransfer.track.runs import open_client, open_experiment, parent_run
from bigtransfer.track.study_runs import (
    end_study,
    forget_study,
    is_outdated,
    may_end,
    note_cell,
    replace_stage,
)
from bigtransfer.track.tags import PARENT_TAG, STAGE_TAG, STUDY_TAG, TRAINING_TAG

CELL = "norms-0123456789ab"


def attempt(started: float, *, cell: str = CELL) -> Origin:
    return Origin("dvc", f"dvc-{started:.0f}", os.getpid(), started, cell=cell)


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    client = open_client(tmp_path)
    yield tmp_path, client, open_experiment(tmp_path, client)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def test_a_cell_is_one_run_below_its_study_and_says_what_it_found(told: Any) -> None:
    project, client, experiment = told
    first = parent_run(project, client, experiment, attempt(100.0), "c")
    assert parent_run(project, client, experiment, attempt(200.0), "c") == first
    other = parent_run(project, client, experiment, attempt(300.0, cell="norms-ba9876543210"), "c")
    assert other != first
    for _ in range(2):
        note_cell(client, experiment, CELL, "norm bn", {"norm": "bn"}, {"digits 5 per class": 0.5})
    run = client.get_run(first)
    assert run.info.status == "FINISHED" and run.data.params == {"norm": "bn"}
    assert run.info.run_name == "norm bn" and run.data.metrics == {"digits 5 per class": 0.5}
    (study,) = client.search_runs([experiment], f"tags.`{STUDY_TAG}` = 'norms'")
    assert run.data.tags[PARENT_TAG] == study.info.run_id
    end_study(client, experiment, "norms", "FINISHED")
    assert forget_study(client, experiment, "norms") == 3
    assert not client.search_runs([experiment])


def test_on_a_cluster_the_stages_of_a_cell_are_below_its_task(told: Any) -> None:
    project, client, experiment = told
    task = Origin("kfp", "kfp-run", os.getpid(), 100.0)
    run = parent_run(project, client, experiment, task, "c")
    cells = {}
    for name in ("study_cell@one-a", "study_cell@one-b"):
        tags = {PARENT_TAG: run, STAGE_TAG: name}
        cells[name] = client.create_run(experiment, tags=tags).info.run_id
        stage = replace(task, started=200.0, above=name)
        assert parent_run(project, client, experiment, stage, "c") == cells[name]
    first, second = cells.values()
    trained = client.create_run(experiment, tags={PARENT_TAG: first, STAGE_TAG: "pretrain"})
    earlier = earlier_attempt(client, experiment, first, "pretrain", "")
    assert earlier == trained.info.run_id
    assert earlier_attempt(client, experiment, second, "pretrain", "") is None, "another cell's"


def test_a_try_that_is_told_late_ends_nothing(told: Any) -> None:
    project, client, experiment = told
    older, newer = attempt(100.0), attempt(200.0)
    run = parent_run(project, client, experiment, newer, "c")
    assert may_end(client, run, newer)
    assert parent_run(project, client, experiment, older, "c") == run
    assert is_outdated(client, run, older) and not is_outdated(client, run, newer)
    assert not may_end(client, run, older)
    note_cell(client, experiment, CELL, "norm bn", {}, {})
    assert not may_end(client, run, newer), "its result is noted"
    parent_run(project, client, experiment, newer, "c")
    assert client.get_run(run).info.status == "FINISHED"


def test_a_stage_that_ran_again_takes_the_place_of_the_one_before(told: Any) -> None:
    project, client, experiment = told
    cell = parent_run(project, client, experiment, attempt(100.0), "c")

    def stage(name: str, start: int, status: str, **tags: str) -> str:
        own = {PARENT_TAG: cell, STAGE_TAG: name, **tags}
        run = client.create_run(experiment, start_time=start, tags=own).info.run_id
        client.set_terminated(run, status)
        return str(run)

    stage("finetune@digits", 10, "KILLED")
    later = stage("finetune@digits", 30, "FINISHED")
    goes_on = stage("pretrain", 10, "KILLED", **{TRAINING_TAG: "k"})
    replace_stage(client, experiment, cell, "finetune@digits", 20)
    replace_stage(client, experiment, cell, "pretrain", 20)
    found = client.search_runs([experiment], f"tags.`{PARENT_TAG}` = '{cell}'")
    assert {run.info.run_id for run in found} == {later, goes_on}
