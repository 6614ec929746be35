"""The runs in MLflow of one KFP run, whose pods share nothing but the server.

There is no lock between pods, so the parent is agreed on. It is RUNNING while a stage is; whenever
none is, it shows what the stages so far have come to, and after the last one that is the outcome.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from bigtransfer.track.address import without_secrets
from bigtransfer.track.origin import Origin
from bigtransfer.track.tags import KEY_TAG, ORIGIN_TAG, PARENT_TAG, PART_TAG, STAGE_TAG

ENGINE = "kfp"
RETRY_TAG = "kfp.retry_index"
_AGREED_TAG = "bigtransfer.agreed"
_MAKER_TAG = "bigtransfer.maker"
# Whoever searched before another's run was there has created its own by then: between its search
# and its run lies one request. Should that take longer, the tag above keeps what was agreed on.
_SECONDS_TO_AGREE = 2.0
_LOOKS_FOR_THE_TASK = 15
_WORST_FIRST = ("FAILED", "KILLED")


def agreed_parent(client: Any, experiment: str, origin: Origin, commit: str) -> str:
    """Return the one run that stands for a KFP run, whoever asks at the same time.

    Who finds none creates one. Then all wait until every such run can be seen, and choose the same;
    who made another one deletes it.

    Args:
        client: From `open_client`.
        experiment: Id of our experiment.
        origin: The KFP run.
        commit: Git commit of the working tree.
    """
    mine = f"tags.`{ORIGIN_TAG}` != '' and tags.`{KEY_TAG}` = '{origin.key}'"
    found = client.search_runs([experiment], mine)
    if known := _agreed(found):
        return known
    maker = f"{socket.gethostname()}-{origin.pid}-{origin.started}"
    if not found:
        _create(client, experiment, origin, commit, maker)
    time.sleep(_SECONDS_TO_AGREE)
    found = client.search_runs([experiment], mine)
    chosen = _agreed(found) or min(str(run.info.run_id) for run in found)
    _set_tag_at_once(client, chosen, _AGREED_TAG, "yes")
    for run in found:
        if run.info.run_id != chosen and run.data.tags.get(_MAKER_TAG) == maker:
            client.delete_run(run.info.run_id)
    return chosen


def _set_tag_at_once(client: Any, run: str, key: str, value: str) -> None:
    """Set a tag that others set to the same value in the same moment.

    MLflow looks for the tag and then inserts it, so all but one of them may be refused.
    """
    from mlflow.exceptions import MlflowException

    try:
        client.set_tag(run, key, value)
    except MlflowException:
        if client.get_run(run).data.tags.get(key) != value:
            raise


def run_above(client: Any, experiment: str, origin: Origin, parent: str) -> str:
    """Return the run that a stage is shown below: that of its KFP run, or of the task that runs it.

    That task has begun before; MLflow may hear of it a little later than of the stage.
    """
    if not origin.above:
        return parent
    own = f"tags.`{PARENT_TAG}` = '{parent}' and tags.`{STAGE_TAG}` = '{origin.above}'"
    for _ in range(_LOOKS_FOR_THE_TASK):
        if found := client.search_runs([experiment], own, max_results=1):
            return str(found[0].info.run_id)
        time.sleep(_SECONDS_TO_AGREE)
    return parent


def earlier_attempt(client: Any, experiment: str, parent: str, stage: str, part: str) -> str | None:
    """Return the newest unfinished run of the same stage of the same KFP run.

    KFP starts another attempt only when the one before has ended, whatever MLflow has heard of it.

    Args:
        client: From `open_client`.
        experiment: Id of our experiment.
        parent: That it is shown below.
        stage: As in KFP.
        part: Of the stage's output; empty: all of it.
    """
    same = f"tags.`{PARENT_TAG}` = '{parent}' and tags.`{STAGE_TAG}` = '{stage}'"
    for run in client.search_runs([experiment], same):
        if run.info.status != "FINISHED" and run.data.tags.get(PART_TAG, "") == part:
            return str(run.info.run_id)
    return None


def begin_parent(client: Any, parent: str) -> None:
    """Show that a stage is at work."""
    if client.get_run(parent).info.status != "RUNNING":
        client.set_terminated(parent, "RUNNING")


def end_parent(client: Any, experiment: str, parent: str) -> None:
    """Show what the stages have come to, unless one is still at work.

    A stage says that it has ended before it asks this, so the last of several sees all the others.
    """
    if is_gone(client, experiment, parent) or _has(client, experiment, parent, "RUNNING"):
        return
    bad = (status for status in _WORST_FIRST if _has(client, experiment, parent, status))
    client.set_terminated(parent, next(bad, "FINISHED"))


def is_gone(client: Any, experiment: str, run: str) -> bool:
    """Say whether somebody deleted a run."""
    return not client.search_runs([experiment], f"attributes.run_id = '{run}'")


def end_former_parent(client: Any, experiment: str, parent: str) -> None:
    """Do the same for the parent that a training was taken from, if it stands for a KFP run."""
    for run in client.search_runs([experiment], f"attributes.run_id = '{parent}'"):
        if is_of_kfp(run):
            end_parent(client, experiment, parent)


def is_of_kfp(run: Any) -> bool:
    """Say whether a run stands for a KFP run: the pid in its origin is that of a pod."""
    return bool(json.loads(run.data.tags.get(ORIGIN_TAG, "{}")).get("engine") == ENGINE)


def part_of(command: Iterable[str]) -> str:
    """Return which part of an output a command line asks for: `3/8` of `--part 3/8`, or nothing."""
    words = " ".join(command).replace("--part=", "--part ").split()
    return words[words.index("--part") + 1] if "--part" in words[:-1] else ""


def _create(client: Any, experiment: str, origin: Origin, commit: str, maker: str) -> None:
    run_id = origin.key.removeprefix(f"{ENGINE}-")
    tags = {
        KEY_TAG: origin.key,
        ORIGIN_TAG: json.dumps(asdict(origin)),
        _MAKER_TAG: maker,
        "mlflow.source.git.commit": commit,
        "kfp.run_id": run_id,
    }
    if origin.url:
        link = f"{without_secrets(origin.url)}/#/runs/details/{run_id}"
        tags |= {"kfp.run": link, "mlflow.note.content": f"[Run in Kubeflow Pipelines]({link})"}
    if origin.resubmission_of:
        tags["kfp.resubmission_of"] = origin.resubmission_of
    client.create_run(
        experiment,
        start_time=int(origin.started * 1000),
        tags=tags,
        run_name=origin.title or f"{ENGINE} {run_id[:8]}",
    )


def _agreed(found: list[Any]) -> str | None:
    return min((str(r.info.run_id) for r in found if _AGREED_TAG in r.data.tags), default=None)


def _has(client: Any, experiment: str, parent: str, status: str) -> bool:
    below = f"tags.`{PARENT_TAG}` = '{parent}' and attributes.status = '{status}'"
    return bool(client.search_runs([experiment], below, max_results=1))
