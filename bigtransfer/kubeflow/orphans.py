"""What was launched in a namespace and for whom: a table, and its end by hand.

A Job belongs to no run, so that a lost waiter costs nothing; a run that was terminated leaves its
Job running, on nodes that cost money.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from bigtransfer.errors import ConfigError, did_you_mean
from bigtransfer.kubeflow.job import RUN_LABEL, STAGE_LABEL
from bigtransfer.kubeflow.objects import Objects
from bigtransfer.kubeflow.pod_words import part
from bigtransfer.kubeflow.waiter import ending_of
from bigtransfer.progress import counted, duration


@dataclass(frozen=True)
class Launched:
    """One Job, or TrainJob, of ours."""

    kind: str
    name: str
    run: str
    stage: str
    state: str
    """`running`, `waiting` (for its queue), `complete` or `failed`."""
    pods: int
    seconds: float
    """Since it was made."""

    @property
    def is_open(self) -> bool:
        """Say whether it holds, or wants, nodes."""
        return self.state in ("running", "waiting")

    def __str__(self) -> str:
        run = f"run {self.run}" if self.run else "no run"
        return (
            f"{self.kind} {self.name}: {self.state}, {self.stage} of {run}, "
            f"{counted(self.pods, 'pod')}, made {duration(self.seconds)} ago"
        )


def launched(objects: Objects) -> list[Launched]:
    """Return what was launched in a namespace.

    Raises:
        ConfigError: If it may not be listed.
        InfrastructureError: If the API does not answer.
    """
    found = []
    for kind in ("Job", "TrainJob"):
        for one in objects.list(kind, "app.kubernetes.io/managed-by=bigtransfer"):
            labels = part(part(one.get("metadata")).get("labels"))
            if STAGE_LABEL in labels:
                found.append(_of(kind, one, labels))
    return sorted(found, key=lambda one: one.name)


def _of(kind: str, one: Mapping[str, Any], labels: Mapping[str, Any]) -> Launched:
    meta, spec = part(one.get("metadata")), part(one.get("spec"))
    over = ending_of(one)[0]
    state = over.lower() or ("waiting" if spec.get("suspend") else "running")
    nodes = spec.get("parallelism") or part(spec.get("trainer")).get("numNodes") or 1
    try:
        made = datetime.fromisoformat(str(meta.get("creationTimestamp", "")))
        seconds = (datetime.now(UTC) - made).total_seconds()
    except (ValueError, TypeError):
        seconds = 0.0
    run, stage = str(labels.get(RUN_LABEL, "")), str(labels[STAGE_LABEL])
    return Launched(kind, str(meta.get("name")), run, stage, state, int(nodes), seconds)


def stop(objects: Objects, which: str) -> Iterator[Launched]:
    """Remove what was launched for a run, or of a name, and yield it.

    Args:
        objects: Of the namespace.
        which: A run's id, or the name of a Job.

    Raises:
        ConfigError: If there is none.
    """
    known = launched(objects) if which else []
    chosen = [one for one in known if which in (one.name, one.run)]
    if not chosen:
        names = [name for one in known for name in (one.name, one.run) if name]
        raise ConfigError(
            f"nothing of {which!r} runs in namespace {objects.namespace!r}"
            f"{did_you_mean(which, names)}; `bigtransfer cluster list` shows what does"
        )
    for one in chosen:
        objects.delete(one.kind, one.name)
        yield one


def orphans(objects: Objects, is_over: Callable[[str], bool]) -> list[Launched]:
    """Return what runs on for a run that is over.

    Args:
        objects: Of the namespace.
        is_over: Says it of a run's id.
    """
    return [one for one in launched(objects) if one.is_open and one.run and is_over(one.run)]
