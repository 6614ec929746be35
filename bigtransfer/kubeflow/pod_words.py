"""Why a pod waits, or how it ended, in one line each; from what Kubernetes says of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

_INDEX = "batch.kubernetes.io/job-completion-index"
_STARTING = ("PodInitializing", "ContainerCreating")
_KINDS = ("initContainerStatuses", "containerStatuses")
OUT_OF_MEMORY = "OOMKilled"


@dataclass(frozen=True)
class End:
    """How a pod of a Job ended."""

    code: int | None
    """Of its container; None where the pod is gone without one."""
    text: str
    disrupted: bool
    """Whether the cluster took it, for nothing that it did."""


def index_of(pod: Mapping[str, Any]) -> int | None:
    """Return which node of a Job a pod is."""
    meta = part(pod.get("metadata"))
    text = part(meta.get("labels")).get(_INDEX, part(meta.get("annotations")).get(_INDEX, ""))
    return int(text) if str(text).isdecimal() else None


def waiting(pod: Mapping[str, Any]) -> Iterator[str]:
    """Yield why a pod's containers wait, and why no node takes it."""
    status = part(pod.get("status"))
    for kind in _KINDS:
        for container in status.get(kind) or []:
            state = part(part(container.get("state")).get("waiting"))
            reason = str(state.get("reason") or "")
            if reason and reason not in _STARTING:
                image = f" of {container.get('image')}" if "Image" in reason else ""
                yield f"{reason}{image}: {words('', state.get('message'))}".rstrip(": ")
            ended = part(part(container.get("state")).get("terminated"))
            if ended.get("reason") == OUT_OF_MEMORY:
                yield f"{OUT_OF_MEMORY} (exit code {ended.get('exitCode')})"
    for condition in status.get("conditions") or []:
        if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
            yield words(condition.get("reason"), condition.get("message"))


def ended(pod: Mapping[str, Any]) -> End | None:
    """Return how a pod ended, if it did."""
    status = part(pod.get("status"))
    disruption = next(
        (c for c in status.get("conditions") or []
         if c.get("type") == "DisruptionTarget" and c.get("status") == "True"), None,
    )  # fmt: skip
    codes = [
        part(part(one.get("state")).get("terminated"))
        for one in status.get("containerStatuses") or []
    ]
    code = next((one.get("exitCode") for one in codes if one), None)
    reason = next((str(one.get("reason") or "") for one in codes if one), "")
    if disruption is not None:
        return End(code, words(disruption.get("reason"), disruption.get("message")), True)
    if status.get("phase") == "Succeeded":
        return End(0, "", False)
    if status.get("phase") != "Failed":
        return None
    if status.get("reason"):  # evicted by its kubelet: the node's memory or disk
        return End(code, words(status.get("reason"), status.get("message")), False)
    return End(code, f"{reason or 'Error'} (exit code {code})", False)


def words(reason: Any, message: Any) -> str:
    """Return reason and message as one line."""
    return ": ".join(line(one) for one in (reason, message) if one)


def line(what: Any) -> str:
    """Return a text as one line."""
    return " ".join(str(what).split())


def part(value: Any) -> dict[str, Any]:
    """Return a part of an object, or an empty one where it is absent."""
    return value if isinstance(value, dict) else {}
