"""`kfp run submit --wait`: a line for every change of a task, and at the end why it failed."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from bigtransfer.errors import BigTransferError, InfrastructureError
from bigtransfer.kubeflow import kube
from bigtransfer.kubeflow.kube import Kube
from bigtransfer.kubeflow.reasons import Ending, Sources, ending_of
from bigtransfer.kubeflow.refusals import Refusal
from bigtransfer.kubeflow.run_api import RunApi, names_of
from bigtransfer.kubeflow.run_state import RunState, Task

LOOK_SECONDS = 1.0
MOST_FAILURES = 120
"""Looks that may fail one after another: a port-forward comes back, a server restarts."""
STUCK_SECONDS = 120.0
"""After so long without a change a task that has no pod at work is named."""
_WAITING = ("PENDING", "RUNNING")


def _no_refusals() -> Mapping[str, Refusal]:
    """Know of nothing that stages left behind."""
    return {}


def watch(
    api: RunApi,
    *,
    refusals: Callable[[], Mapping[str, Refusal]] = _no_refusals,
    cluster: Kube | None = None,
) -> Ending:
    """Print a line whenever a task changes, until the run ends.

    Args:
        api: The run.
        refusals: Gives what stages left where the run's results lie, by stage.
        cluster: Kubernetes, where it is at hand.

    Returns:
        How it ended, and of the tasks that failed, why.

    Raises:
        ConfigError: If we are not let in any more; the run goes on.
        InfrastructureError: If the API stays away; the run goes on.
    """
    watcher = _Watcher(api, cluster)
    run = watcher.look()
    while not run.over:
        time.sleep(LOOK_SECONDS)
        run = watcher.look()
    troubles = watcher.troubles() if run.state != "SUCCEEDED" and not run.terminated else []
    sources = Sources(
        logs=(api.log, api.kept_log, _stored_log, watcher.pod_log),
        refusals=refusals,
        engine=lambda task: kube.of_task(troubles, task.pods, task.spec_name),
    )
    ending = ending_of(run, sources)
    watcher.close(ending)
    return ending


@dataclass
class _Watcher:
    """What was shown so far."""

    api: RunApi
    cluster: Kube | None
    began: float = field(default_factory=time.monotonic)
    shown: dict[str, Task] = field(default_factory=dict)
    since: dict[str, float] = field(default_factory=dict)
    """When a task changed last."""
    named: set[tuple[str, str, int]] = field(default_factory=set)
    """Tasks that were named as stuck, each state of them once."""
    failures: int = 0

    def look(self) -> RunState:
        """Ask until the API answers; show what changed."""
        while True:
            try:
                run = self.api.state()
                break
            except InfrastructureError as error:
                self._away(error)
                time.sleep(LOOK_SECONDS)
        if self.failures:
            self.failures = 0
            self.say("the API is back")
        for task in run.shown():
            self._changed(task)
        if not run.over:
            self._stuck(run)
        return run

    def say(self, text: str) -> None:
        """Print a line with the seconds since the start."""
        print(f"{time.monotonic() - self.began:7.0f} s  {text}", flush=True)

    def troubles(self) -> list[kube.Trouble]:
        """Ask Kubernetes, where it is at hand, what ails the pods of the run."""
        if self.cluster is None:
            return []
        return self.cluster.troubles(self.api.namespace, self.api.run_id)

    def pod_log(self, task: Task) -> str:
        """Return the log of a task's last pod from Kubernetes, where it is at hand."""
        if self.cluster is None or not task.pods:
            return ""
        logs = (self.cluster.log(self.api.namespace, pod) for pod in names_of(task.pods[-1]))
        return next(filter(None, logs), "")

    def close(self, ending: Ending) -> None:
        """Say how it ended: each failed task with its reason."""
        if ending.succeeded:
            print(f"succeeded after {time.monotonic() - self.began:.0f} s", flush=True)
        for failure in ending.failures:
            code = "" if failure.exit_code is None else f" [exit {failure.exit_code}]"
            print(f"failed   {failure.stage}: {failure.reason}{code}", flush=True)

    def _away(self, error: InfrastructureError) -> None:
        self.failures += 1
        if self.failures == 1:
            self.say(f"the API is away ({error}); asking on")
        if self.failures > MOST_FAILURES:
            raise InfrastructureError(
                f"{error}; the run goes on, look at {self.api.link}"
            ) from error

    def _changed(self, task: Task) -> None:
        before = self.shown.get(task.key)
        if before == task:
            return
        self.shown[task.key] = task
        self.since[task.key] = time.monotonic()
        attempts = before.attempts if before else 0
        if before and before.state == task.state and task.attempts <= max(attempts, 1):
            return
        attempt = f" (attempt {task.attempts})" if task.attempts > 1 else ""
        self.say(f"{task.name:<32} {task.state}{attempt}")

    def _stuck(self, run: RunState) -> None:
        if not run.shown():  # not even the pod that begins the first task came to work
            run = RunState(run.state, (Task(key="", name="no task yet", state="PENDING"),))
            self.since.setdefault("", self.began)
        now = time.monotonic()
        waiting = [
            task
            for task in run.shown()
            if task.state in _WAITING
            and not task.begun
            and now - self.since.get(task.key, now) >= STUCK_SECONDS
            and (task.key, task.state, task.attempts) not in self.named
        ]
        troubles = self.troubles() if waiting else []
        for task in waiting:
            self.named.add((task.key, task.state, task.attempts))
            found = kube.of_task(troubles, task.pods, task.spec_name) or task.lifecycle
            if not found and not task.key and troubles:
                found = troubles[-1].text
            self.say(self._why_stuck(task, found, now))

    def _why_stuck(self, task: Task, found: str, now: float) -> str:
        ask = f"kubectl -n {self.api.namespace}"
        command = (
            f"{ask} describe pod {task.pods[-1]}"
            if task.pods and "-system-" in task.pods[-1]  # else it is the name of Argo's node
            else f"{ask} get pods -l pipeline/runid={self.api.run_id}; {ask} get events"
        )
        waits = f"{task.name:<32} {task.state}, no pod of it runs for"
        waits += f" {now - self.since[task.key]:.0f} s"
        if found:
            place = f" (context {self.cluster.context})" if self.cluster else ""
            return f"{waits}: {found}{place}; see: {command}"
        return f"{waits}; see why: {command}"


def _stored_log(task: Task) -> str:
    """Return the end of the log in the bucket itself, where S3 answers from here."""
    if not task.logs.startswith("s3://"):
        return ""
    with suppress(BigTransferError, ImportError):
        from bigtransfer.storage import s3

        return s3.end_of(task.logs.partition("?")[0]).decode("utf-8", errors="replace")
    return ""
