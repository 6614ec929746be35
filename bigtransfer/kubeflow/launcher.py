"""Run a component on pods of its own and wait for it: create or adopt, follow, say, clean up.

The Job's name is the fingerprint of the work, so the same work is never done twice at once: who
comes second adopts what is there. Nothing of Kubeflow Pipelines owns it; a waiter that is lost
leaves it running, and the next one finds it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from bigtransfer.errors import ConfigError, InfrastructureError
from bigtransfer.kubeflow.job import (
    DIGEST,
    RUN_LABEL,
    Launch,
    digest_of,
    kind_of,
    objects_of,
)
from bigtransfer.kubeflow.objects import Objects
from bigtransfer.kubeflow.pod_words import part
from bigtransfer.kubeflow.waiter import Patience, Say, Waiter, ending_of, is_going
from bigtransfer.progress import counted


def launch(
    objects: Objects,
    what: Launch,
    say: Say,
    patience: Patience | None = None,
    is_done: Callable[[str], bool] = lambda uid: False,
) -> str:
    """Run a component on pods of its own, and return when its results are in the bucket.

    What ran stays until `clear`: whoever is lost in between finds it complete.

    Args:
        objects: Of the namespace.
        what: Runs.
        say: Prints a line.
        patience: How long to wait for what; None: as for real.
        is_done: Says whether the results are in the bucket, where the Job of a uid is gone.

    Returns:
        The uid of the Job.

    Raises:
        ConfigError: If it is refused, or is there already with other pods.
        GateError: If a gate said no.
        InfrastructureError: If the cluster does not answer, or it was stopped from outside.
        FailedError: If it failed by a fault of its own.
    """
    losses = what.pods.losses if what.pods.launcher == "trainjob" else 0
    while True:
        uid = _begin(objects, what, say)
        try:
            Waiter(objects, what, say, patience or Patience(), partial(is_done, uid)).wait()
            return uid
        except InfrastructureError as error:
            if losses == 0:
                raise
            losses -= 1
            say(f"{error}; it begins again, {losses} more losses are allowed")


def clear(objects: Objects, what: Launch, uid: str, say: Say) -> None:
    """Remove what ran, with its pods; not what another submission began under its name since."""
    kind = kind_of(what.pods)
    if not uid:  # done before: what is left of that is over
        left = objects.read(kind, what.name) or {}
        if not ending_of(left)[0]:
            return
        uid = str(part(left.get("metadata")).get("uid", ""))
    if objects.delete(kind, what.name, uid):
        say(f"{kind} {what.name} and its pods are removed")


def _begin(objects: Objects, what: Launch, say: Say) -> str:
    """Create it, or adopt what is there; return its uid.

    Raises:
        ConfigError: If other pods than these do the same work.
    """
    kind = kind_of(what.pods)
    first, *others = objects_of(what)
    known: dict[str, Any] | None = None
    made = objects.create(first)
    if made is None:
        known = objects.read(kind, what.name)
        if known is not None and (why := _in_the_way(known, what)):
            say(f"{kind} {what.name} of an earlier attempt {why}; it is removed and begun again")
            _remove(objects, kind, what.name, what.pods.grace_seconds)
            known = None
        if known is None:
            made = objects.create(first)
    if made is not None:
        run = f" for run {what.run}" if what.run else ""
        parts = f"{what.pods.parts} parts, " if what.pods.parts else ""
        once = " at once" if what.pods.parts else ""
        pods = f"{parts}{counted(what.pods.nodes, 'pod')}{once}"
        say(f"{kind} {what.name} was made{run}: {pods} in {objects.namespace!r}")
    else:
        made = known or objects.read(kind, what.name) or {}
        _adopt(objects, what, made, say)
    owner = part(made.get("metadata"))
    for one in others:
        # Blocking the owner's end would need a right to its finalizers, where that is enforced.
        one["metadata"]["ownerReferences"] = [
            {"apiVersion": first["apiVersion"], "kind": kind, "name": what.name,
             "uid": owner.get("uid", ""), "controller": False, "blockOwnerDeletion": False}
        ]  # fmt: skip
        try:
            if objects.create(one) is None:
                _take_over(objects, one, str(owner.get("uid", "")))
        except ConfigError:
            objects.delete(kind, what.name)  # its pods would look for each other for ever
            raise
    return str(owner.get("uid", ""))


def _take_over(objects: Objects, one: dict[str, Any], uid: str) -> None:
    """Make anew what an earlier Job of the name left, and will take with it."""
    kind, name = str(one["kind"]), str(one["metadata"]["name"])
    there = part((objects.read(kind, name) or {}).get("metadata"))
    owners = {str(owner.get("uid")) for owner in there.get("ownerReferences") or []}
    if uid not in owners:
        _remove(objects, kind, name)
        objects.create(one)


def _in_the_way(known: Mapping[str, Any], what: Launch) -> str:
    """Return why what is there is not what is wanted, but over; nothing if it runs, or is it."""
    if is_going(known):
        return "is being removed"
    state = ending_of(known)[0]
    if state == "Failed":
        return "failed"
    found = part(part(known.get("metadata")).get("annotations")).get(DIGEST)
    return "is complete on other pods" if state and found != digest_of(what) else ""


def _remove(objects: Objects, kind: str, name: str, grace_seconds: float = 0.0) -> None:
    """Remove an object and wait until it is gone with what belongs to it.

    Raises:
        InfrastructureError: If it stays.
    """
    objects.delete(kind, name)
    deadline = time.monotonic() + grace_seconds + 120 * objects.pause_seconds
    while time.monotonic() < deadline:
        if objects.read(kind, name) is None:
            return
        time.sleep(objects.pause_seconds)
    raise InfrastructureError(f"{kind} {name} is being removed for too long; look at its pods")


def _adopt(objects: Objects, what: Launch, known: Mapping[str, Any], say: Say) -> None:
    meta = part(known.get("metadata"))
    kind, found = kind_of(what.pods), part(meta.get("annotations")).get(DIGEST)
    if found != digest_of(what):
        raise ConfigError(
            f"{kind} {what.name} does the same work already, but on other pods, with another image "
            f"or other secrets (spec {found}, asked for {digest_of(what)}); wait for it, submit "
            f"the same as it was, or stop it: bigtransfer cluster stop {what.name}"
        )
    run = part(meta.get("labels")).get(RUN_LABEL)
    of_run = f" of run {run}" if run and run != what.run else ""
    if what.run and run != what.run:
        objects.label(kind, what.name, {RUN_LABEL: what.run})
    say(f"{kind} {what.name}{of_run} does this work already; it is adopted")
