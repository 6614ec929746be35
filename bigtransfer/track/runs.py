"""The runs in MLflow: one parent for a run of the whole workflow, its stages nested below."""

from __future__ import annotations

import fcntl
import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from bigtransfer.errors import TrackingError
from bigtransfer.storage.home import home_of
from bigtransfer.track.address import (
    artifact_location,
    experiment_name,
    tracking_uri,
    without_secrets,
)
from bigtransfer.track.origin import Origin, is_alive
from bigtransfer.track.pods import ENGINE, agreed_parent, is_of_kfp, run_above
from bigtransfer.track.study_runs import run_of_cell
from bigtransfer.track.tags import JOURNAL_TAG, KEY_TAG, ORIGIN_TAG, TRAINING_TAG

_RUNS_LOOKED_AT = 50
# Makes the UI open on training runs; without it, it guesses that we trace language models.
_KIND = {"mlflow.experimentKind": "custom_model_development"}


def open_client(project: Path) -> Any:
    """Return a client of the project's MLflow, which is also the one of `mlflow.*` from then on.

    A client's first act is to make the local database where it is absent, and two at once crash
    (seen with MLflow 3: 12 of 16); so one at a time.

    Raises:
        TrackingError: If no server is named and there is no database engine, as in the images.
    """
    import mlflow

    uri = tracking_uri(project)
    if uri.startswith("sqlite:") and find_spec("sqlalchemy") is None:
        raise TrackingError(
            "no MLflow server is named, and there is no database engine here; set "
            "MLFLOW_TRACKING_URI (on a cluster: cluster.tracking_uri in params.yaml)"
        )
    mlflow.set_tracking_uri(uri)
    with _only_one(project):
        return mlflow.MlflowClient()


def open_experiment(project: Path, client: Any) -> str:
    """Return the id of our experiment, made where absent.

    Raises:
        TrackingError: If somebody deleted it.
    """
    name = experiment_name()
    with _only_one(project):
        found = client.get_experiment_by_name(name)
        if found is None and (made := _made(client, name, artifact_location(project))):
            return made
        experiment = found or client.get_experiment_by_name(name)
    if experiment is None or experiment.lifecycle_stage == "deleted":
        number = "ID" if experiment is None else experiment.experiment_id
        raise TrackingError(
            f"experiment {name!r} is deleted in MLflow at {without_secrets(tracking_uri(project))}"
            f"; restore it (`mlflow experiments restore --experiment-id {number}`), or name "
            "another one in MLFLOW_EXPERIMENT_NAME"
        )
    return str(experiment.experiment_id)


def _made(client: Any, name: str, location: str | None) -> str | None:
    """Make an experiment and return its id; None where there is one of that name by now."""
    from mlflow.exceptions import MlflowException

    try:
        return str(client.create_experiment(name, location, _KIND))
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
        return None  # another pod was quicker, or it is deleted


def parent_run(project: Path, client: Any, experiment: str, origin: Origin, commit: str) -> str:
    """Return the run that this stage is shown below; the first who asks creates it.

    It stands for this run of the workflow; of a cell of a study, for the cell. Whoever creates one
    also ends those that an earlier workflow left open when it died.

    Args:
        project: The project's root.
        client: From `open_client`.
        experiment: Id of our experiment.
        origin: The process that runs the workflow.
        commit: Git commit of the working tree.
    """
    with _only_one(project):
        parent = _parent_run(client, experiment, origin, commit)
    # Not while the lock is held: the task above needs it for its own run.
    return run_above(client, experiment, origin, parent)


def _parent_run(client: Any, experiment: str, origin: Origin, commit: str) -> str:
    if origin.engine == ENGINE:
        return agreed_parent(client, experiment, origin, commit)
    if origin.cell:
        return run_of_cell(client, experiment, origin, commit)
    mine = f"tags.`{ORIGIN_TAG}` != '' and tags.`{KEY_TAG}` = '{origin.key}'"
    if found := client.search_runs([experiment], mine):
        return str(found[0].info.run_id)
    began = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(origin.started))
    run = client.create_run(
        experiment,
        start_time=int(origin.started * 1000),
        tags={
            KEY_TAG: origin.key,
            ORIGIN_TAG: json.dumps(asdict(origin)),
            "mlflow.source.git.commit": commit,
        },
        run_name=f"{origin.engine} {began}",
    )
    _close_dead_runs(client, experiment, origin.key)
    return str(run.info.run_id)


def run_of_journal(client: Any, experiment: str, journal: str) -> str | None:
    """Return the run that a journal has been sent to, if any."""
    found = client.search_runs([experiment], f"tags.`{JOURNAL_TAG}` = '{journal}'", max_results=1)
    return str(found[0].info.run_id) if found else None


def earlier_training(client: Any, experiment: str, key: str, own: str) -> str | None:
    """Return the newest unfinished run of the same training; `own` is marked to be one of it."""
    same = f"tags.`{TRAINING_TAG}` = '{key}'"
    found = client.search_runs([experiment], same, max_results=_RUNS_LOOKED_AT)
    client.set_tag(own, TRAINING_TAG, key)
    for run in found:
        if run.info.run_id != own and run.info.status != "FINISHED":
            return str(run.info.run_id)
    return None


def known_points(client: Any, run: str) -> dict[str, set[int]]:
    """Return metric -> steps that a run has, its system metrics aside."""
    keys = [key for key in client.get_run(run).data.metrics if not key.startswith("system/")]
    return {key: {p.step for p in client.get_metric_history(run, key)} for key in keys}


def log_dataset(
    client: Any, run_id: str, name: str, digest: str, path: str, profile: Mapping[str, object]
) -> None:
    """Note a dataset as an input of a run, by digest.

    Args:
        client: From `open_client`.
        run_id: Of the run.
        name: Of the dataset.
        digest: SHA-256; MLflow keeps 36 characters of it.
        path: Where it lies.
        profile: Counts to show.
    """
    from mlflow.entities import Dataset, DatasetInput, InputTag

    dataset = Dataset(
        name=name,
        digest=digest[:36],
        source_type="local",
        source=json.dumps({"uri": path}),
        profile=json.dumps(profile),
    )
    tag = InputTag("mlflow.data.context", "input")
    client.log_inputs(run_id, [DatasetInput(dataset, [tag])])


@contextmanager
def _only_one(project: Path) -> Iterator[None]:
    path = home_of(project) / ".work" / "track" / "lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _close_dead_runs(client: Any, experiment: str, own_key: str) -> None:
    still_open = f"attributes.status = 'RUNNING' and tags.`{ORIGIN_TAG}` != ''"
    for parent in client.search_runs([experiment], still_open):
        if is_of_kfp(parent):
            continue  # its stages end it: nobody here can see whether its pods live
        origin = json.loads(parent.data.tags[ORIGIN_TAG])
        if origin["key"] == own_key or is_alive(origin["pid"], origin["started"]):
            continue
        below = client.search_runs([experiment], f"tags.`{KEY_TAG}` = '{origin['key']}'")
        stages = [run for run in below if run.info.run_id != parent.info.run_id]
        if any(run.info.status == "RUNNING" for run in stages):
            continue  # its own shipper is still at work
        bad = any(run.info.status != "FINISHED" for run in stages)
        client.set_terminated(parent.info.run_id, "KILLED" if bad else "FINISHED")
