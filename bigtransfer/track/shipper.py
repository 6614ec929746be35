"""Replay a journal into MLflow as it grows: `python -m bigtransfer.track.shipper PROJECT JOURNAL`.

One parent run stands for one run of the workflow; the first stage that executes creates it, the
stage `summarize` closes it. Stages are nested below. If the stage's process dies without a word,
its run becomes KILLED.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bigtransfer.track.address import tracking_uri
from bigtransfer.track.journal import LAST_STAGE, wait_for
from bigtransfer.track.origin import Origin
from bigtransfer.track.runs import KEY_TAG, log_dataset, open_experiment, parent_run

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
    parent = parent_run(project, Origin(**start["origin"]), start["commit"])
    experiment = open_experiment(project)
    run_id = _create_run(experiment, start, parent)
    with mlflow.start_run(run_id=run_id, log_system_metrics=True):
        end = _replay(entries, run_id)
    mlflow.MlflowClient().set_terminated(run_id, end["status"], end["time"])
    _close_parent(journal, start["stage"], parent, end)


def _create_run(experiment: str, start: dict[str, Any], parent: str) -> str:
    import mlflow

    tags = {
        _STAGE_TAG: start["stage"],
        KEY_TAG: start["origin"]["key"],
        "mlflow.parentRunId": parent,
        "mlflow.source.git.commit": start["commit"],
        "mlflow.source.name": " ".join(start["command"]),
    }
    run = mlflow.MlflowClient().create_run(
        experiment, start_time=start["time"], tags=tags, run_name=start["stage"]
    )
    return str(run.info.run_id)


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


def _replay(entries: Iterator[dict[str, Any]], run_id: str) -> dict[str, Any]:
    """Tell MLflow every entry; return the last one, which says how the stage ended."""
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
            log_dataset(run_id, entry["name"], entry["digest"], entry["path"], entry["profile"])
        elif entry["kind"] == "file" and Path(entry["path"]).is_file():
            mlflow.log_artifact(entry["path"])
        elif entry["kind"] == "end":
            return entry
    raise AssertionError("a journal ends with an entry `end`")


def _close_parent(journal: Path, stage: str, parent: str, end: dict[str, Any]) -> None:
    """End the parent run after a failure or after the last stage; forget what was shipped."""
    import mlflow

    folder = journal.parent
    by_hand = folder.name.startswith("by-hand")
    finished = end["status"] == "FINISHED"
    if finished and stage != LAST_STAGE and not by_hand:
        return
    if finished and stage == LAST_STAGE:
        wait_for(folder, but=journal)
    mlflow.MlflowClient().set_terminated(parent, end["status"], end["time"])
    if finished and not list(folder.glob("*.failed")):
        for old in folder.iterdir():
            if not old.name.startswith(journal.stem):
                old.unlink(missing_ok=True)


if __name__ == "__main__":
    ship(Path(sys.argv[1]), Path(sys.argv[2]))
