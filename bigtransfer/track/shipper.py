"""Replay a journal into MLflow as it grows: `python -m bigtransfer.track.shipper PROJECT JOURNAL`.

One parent run stands for one run of the workflow; the first stage that executes creates it, the
stage `summarize` closes it. Stages are nested below. If the stage's process dies without a word, its
run becomes KILLED.
"""

from __future__ import annotations

import fcntl
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bigtransfer.track.address import artifact_location, experiment_name, tracking_uri
from bigtransfer.track.journal import LAST_STAGE, wait_for
from bigtransfer.track.origin import is_alive

KEY_TAG = "bigtransfer.run_key"
_ORIGIN_TAG = "bigtransfer.origin"
_STAGE_TAG = "bigtransfer.stage"
_SECONDS_BETWEEN_LOOKS = 0.2
_SECONDS_BETWEEN_SAMPLES = 2
_PARAM_CHARACTERS = 500


def ship(project: Path, journal: Path) -> None:
    """Follow a journal to its end and tell MLflow all of it.

    Leaves `<journal>.done` behind, or `<journal>.failed` if MLflow refused.
    """
    finished = False
    try:
        _ship(project, journal)
        finished = True
    finally:
        journal.with_suffix(".done" if finished else ".failed").touch()


def _ship(project: Path, journal: Path) -> None:
    import mlflow

    mlflow.set_tracking_uri(tracking_uri(project))
    mlflow.set_system_metrics_sampling_interval(_SECONDS_BETWEEN_SAMPLES)
    mlflow.set_system_metrics_samples_before_logging(1)
    entries = _follow(journal)
    start = next(entries)
    with _only_one(project):
        experiment = open_experiment(project)
        parent = _parent_run(experiment, start)
        _close_dead_runs(experiment, start["origin"]["key"])
    run = mlflow.start_run(
        experiment_id=experiment,
        run_name=start["stage"],
        parent_run_id=parent,
        tags={
            _STAGE_TAG: start["stage"],
            KEY_TAG: start["origin"]["key"],
            "mlflow.source.git.commit": start["commit"],
            "mlflow.source.name": " ".join(start["command"]),
        },
        log_system_metrics=True,
    )
    status = _replay(entries, run.info.run_id)
    mlflow.end_run(status)
    _close_parent(journal, start["stage"], parent, status)


def open_experiment(project: Path) -> str:
    """Return the id of our experiment, made (with the database) where absent."""
    import mlflow

    client = mlflow.MlflowClient(tracking_uri(project))
    experiment = client.get_experiment_by_name(experiment_name())
    if experiment is None:
        created: str = client.create_experiment(experiment_name(), artifact_location(project))
        return created
    found: str = experiment.experiment_id
    return found


@contextmanager
def _only_one(project: Path) -> Iterator[None]:
    # Several first-time writers at once crash MLflow while it makes its database.
    path = project / ".work" / "track" / "lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _follow(journal: Path) -> Iterator[dict[str, Any]]:
    """Yield the journal's entries as they come; ends after `end` or when the writer is dead."""
    pid: int | None = None
    with journal.open(encoding="utf-8") as file:
        rest = ""
        while True:
            alive = pid is None or _exists(pid)
            rest += file.read()
            *lines, rest = rest.split("\n")
            for line in lines:
                entry = json.loads(line)
                pid = entry.get("pid", pid)
                yield entry
                if entry["kind"] == "end":
                    return
            if not alive:
                yield {"kind": "end", "status": "KILLED", "time": int(time.time() * 1000)}
                return
            time.sleep(_SECONDS_BETWEEN_LOOKS)


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return not _is_zombie(pid)


def _is_zombie(pid: int) -> bool:
    import psutil

    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return True


def _replay(entries: Iterator[dict[str, Any]], run_id: str) -> str:
    import mlflow
    from mlflow.entities import Metric

    client = mlflow.MlflowClient()
    for entry in entries:
        if entry["kind"] == "params":
            mlflow.log_params({k: str(v)[:_PARAM_CHARACTERS] for k, v in entry["values"].items()})
        elif entry["kind"] == "metrics":
            points = [
                Metric(name, value, entry["time"], entry["step"])
                for name, value in entry["values"].items()
            ]
            client.log_batch(run_id, metrics=points)
        elif entry["kind"] == "tags":
            mlflow.set_tags(entry["values"])
        elif entry["kind"] == "dataset":
            _log_dataset(client, run_id, entry)
        elif entry["kind"] == "file" and Path(entry["path"]).is_file():
            mlflow.log_artifact(entry["path"])
        elif entry["kind"] == "end":
            return str(entry["status"])
    return "FAILED"


def _log_dataset(client: Any, run_id: str, entry: dict[str, Any]) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    dataset = Dataset(
        name=entry["name"],
        digest=entry["digest"][:36],
        source_type="local",
        source=json.dumps({"uri": entry["path"]}),
        profile=json.dumps(entry["profile"]),
    )
    tag = InputTag("mlflow.data.context", "input")
    client.log_inputs(run_id, [DatasetInput(dataset, [tag])])


def _runs(experiment: str, filter_string: str) -> list[Any]:
    import mlflow

    return list(mlflow.MlflowClient().search_runs([experiment], filter_string))


def _parent_run(experiment: str, start: dict[str, Any]) -> str:
    import mlflow

    origin = start["origin"]
    key = origin["key"]
    found = _runs(experiment, f"tags.`{_ORIGIN_TAG}` != '' and tags.`{KEY_TAG}` = '{key}'")
    if found:
        return str(found[0].info.run_id)
    name = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(origin["started"]))
    tags = {
        KEY_TAG: key,
        _ORIGIN_TAG: json.dumps(origin),
        "mlflow.source.git.commit": start["commit"],
        "mlflow.runName": f"{origin['engine']} {name}",
    }
    run = mlflow.MlflowClient().create_run(experiment, tags=tags)
    return str(run.info.run_id)


def _close_dead_runs(experiment: str, own_key: str) -> None:
    """End what an earlier workflow left open because its process is gone."""
    import mlflow

    client = mlflow.MlflowClient()
    for parent in _runs(
        experiment, f"attributes.status = 'RUNNING' and tags.`{_ORIGIN_TAG}` != ''"
    ):
        origin = json.loads(parent.data.tags[_ORIGIN_TAG])
        if origin["key"] == own_key or is_alive(origin["pid"], origin["started"]):
            continue
        stages = [
            run for run in _runs(experiment, f"tags.`{KEY_TAG}` = '{origin['key']}'")
            if run.info.run_id != parent.info.run_id
        ]  # fmt: skip
        if any(run.info.status == "RUNNING" for run in stages):
            continue  # its own shipper is still at work
        bad = any(run.info.status != "FINISHED" for run in stages)
        client.set_terminated(parent.info.run_id, "KILLED" if bad else "FINISHED")


def _close_parent(journal: Path, stage: str, parent: str, status: str) -> None:
    import mlflow

    by_hand = journal.parent.name.startswith("by-hand")
    if status == "FINISHED" and stage == LAST_STAGE:
        wait_for(journal.parent, but=journal)
    elif status == "FINISHED" and not by_hand:
        return
    mlflow.MlflowClient().set_terminated(parent, status)


if __name__ == "__main__":
    ship(Path(sys.argv[1]), Path(sys.argv[2]))
