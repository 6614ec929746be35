"""The runs of studies in MLflow: one for a study, below it one for each cell, below that stages."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from bigtransfer.track.origin import Origin, is_alive
from bigtransfer.track.tags import (
    CELL_TAG,
    FINISHED_TAG,
    KEY_TAG,
    ORIGIN_TAG,
    PARENT_TAG,
    STAGE_TAG,
    STUDY_TAG,
    TRAINING_TAG,
)

_DIGEST = 13
"""Letters at the end of a cell's name, its hyphen with them."""


def run_of_cell(client: Any, experiment: str, origin: Origin, commit: str) -> str:
    """Return the run of the cell that a process of DVC runs, which is one however often it runs.

    Args:
        client: From `open_client`.
        experiment: Id of our experiment.
        origin: The process; its stages belong to the cell from now on.
        commit: Of Git.
    """
    run = _cell(client, experiment, origin.cell)
    if is_outdated(client, run, origin):
        return run
    client.set_tag(run, KEY_TAG, origin.key)
    client.set_tag(run, ORIGIN_TAG, json.dumps(asdict(origin)))
    client.set_tag(run, "mlflow.source.git.commit", commit)
    if may_end(client, run, origin) and is_alive(origin.pid, origin.started):
        client.update_run(run, status="RUNNING")
    return run


def is_outdated(client: Any, cell_run: str, origin: Origin) -> bool:
    """Say whether a later try of a cell has told of itself: a server may hear of them late."""
    known = client.get_run(cell_run).data.tags.get(ORIGIN_TAG)
    return known is not None and bool(json.loads(known)["started"] > origin.started)


def may_end(client: Any, cell_run: str, origin: Origin) -> bool:
    """Say whether what becomes of a try is what becomes of its cell: not after its result."""
    finished = float(client.get_run(cell_run).data.tags.get(FINISHED_TAG, "0"))
    return finished < origin.started and not is_outdated(client, cell_run, origin)


def replace_stage(client: Any, experiment: str, cell_run: str, stage: str, began: int) -> None:
    """Delete what an earlier try of a cell left of a stage, but for a training that goes on.

    Args:
        client: From `open_client`.
        experiment: Id of our experiment.
        cell_run: Of the cell.
        stage: Its name.
        began: When this try of it began, milliseconds since the epoch.
    """
    same = f"tags.`{PARENT_TAG}` = '{cell_run}' and tags.`{STAGE_TAG}` = '{stage}'"
    for run in client.search_runs([experiment], same):
        goes_on = TRAINING_TAG in run.data.tags and run.info.status != "FINISHED"
        if run.info.start_time < began and not goes_on:
            client.delete_run(run.info.run_id)


def note_cell(
    client: Any,
    experiment: str,
    cell: str,
    title: str,
    params: Mapping[str, object],
    figures: Mapping[str, float],
) -> None:
    """Say what a finished cell found; said again, it stands there once.

    Args:
        client: From `open_client`.
        experiment: Id of our experiment.
        cell: Its name.
        title: For people.
        params: What sets it apart.
        figures: Name -> value.
    """
    from mlflow.entities import Metric, Param

    run = _cell(client, experiment, cell)
    known = client.get_run(run)
    said = {key: str(value) for key, value in params.items() if key not in known.data.params}
    now = int(time.time() * 1000)
    fresh = {key: own for key, own in figures.items() if known.data.metrics.get(key) != own}
    client.log_batch(
        run,
        metrics=[Metric(key, value, now, 0) for key, value in fresh.items()],
        params=[Param(key, value) for key, value in said.items()],
    )
    client.set_tag(run, "mlflow.runName", title)
    client.set_tag(run, FINISHED_TAG, str(time.time()))
    client.set_terminated(run, "FINISHED")


def end_study(client: Any, experiment: str, study: str, status: str) -> None:
    """Close the run of a study."""
    client.set_terminated(_study(client, experiment, study), status)


def forget_study(client: Any, experiment: str, study: str) -> int:
    """Delete the runs of a study and all below them; return how many that were."""
    gone = 0
    for run in _tagged(client, experiment, STUDY_TAG, study):
        for cell in _tagged(client, experiment, PARENT_TAG, run):
            for below in _tagged(client, experiment, PARENT_TAG, cell):
                client.delete_run(below)
                gone += 1
            client.delete_run(cell)
            gone += 1
        client.delete_run(run)
        gone += 1
    return gone


def _cell(client: Any, experiment: str, cell: str) -> str:
    if found := _tagged(client, experiment, CELL_TAG, cell):
        return found[0]
    above = _study(client, experiment, cell[:-_DIGEST])
    run = client.create_run(experiment, tags={CELL_TAG: cell, PARENT_TAG: above}, run_name=cell)
    return str(run.info.run_id)


def _study(client: Any, experiment: str, study: str) -> str:
    if found := _tagged(client, experiment, STUDY_TAG, study):
        return found[0]
    run = client.create_run(experiment, tags={STUDY_TAG: study}, run_name=f"study {study}")
    return str(run.info.run_id)


def _tagged(client: Any, experiment: str, tag: str, value: str) -> list[str]:
    found = client.search_runs([experiment], f"tags.`{tag}` = '{value}'")
    return [str(run.info.run_id) for run in found]
