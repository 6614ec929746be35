"""Follow a launched Job to its end: what its pods say, why they wait or ended, what that means."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from bigtransfer.errors import (
    BigTransferError,
    ConfigError,
    GateError,
    InfrastructureError,
    LockError,
)
from bigtransfer.kubeflow.job import Launch, kind_of, selector_of
from bigtransfer.kubeflow.objects import Objects
from bigtransfer.kubeflow.pod_words import End, ended, index_of, line, part, waiting
from bigtransfer.kubeflow.reasons import refusal_in
from bigtransfer.kubeflow.torchrun import LOST
from bigtransfer.progress import duration

Say = Callable[[str], None]
_BY_CODE = {2: ConfigError, 3: GateError, 4: LockError, 75: InfrastructureError}
_TERMINATED = 143
_SAID_OF_PARTS = 20
"""Lines in all that say how many parts are done."""
_STUCK_SECONDS = 60.0
"""After the end of its grace, from which on a pod that is being removed is worth a word."""
_EXIT_CODE = re.compile(r"exit code (\d{1,3})")
_NEVER_HEALS = (
    "ErrImagePull", "ImagePullBackOff", "InvalidImageName", "CreateContainerConfigError",
    "CreateContainerError", "violates PodSecurity",
)  # fmt: skip


class FailedError(BigTransferError):
    """A component failed by a fault of its own, as often as its Job allows."""

    exit_code = 1
    is_final = True


class StoppedByHandError(ConfigError):
    """Somebody removed the Job: it is not begun again by itself."""


@dataclass(frozen=True)
class Patience:
    """How long a waiter waits for what; seconds."""

    look: float = 30.0
    """Between two looks at pods, if nothing changes."""
    rest: float = 1.0
    """Between two looks, if much changes."""
    say_again: float = 1800.0
    """Until the same words are said of a pod again."""
    not_scheduled: float = 300.0
    """Until a pod that no node takes is worth a word."""
    hopeless: float = 600.0
    """Until an image that cannot be pulled, or a pod that is refused, ends it all."""
    api_away: float = 3600.0
    """That the API may be away."""


def is_going(thing: Mapping[str, Any]) -> bool:
    """Say whether somebody removed an object that is still there, while its pods end."""
    return bool(part(thing.get("metadata")).get("deletionTimestamp"))


def ending_of(job: Mapping[str, Any]) -> tuple[str, str, str]:
    """Return how it ended, the reason, the message; empty while it runs."""
    for one in part(job.get("status")).get("conditions") or []:
        if one.get("type") in ("Complete", "Failed") and one.get("status") == "True":
            return str(one["type"]), str(one.get("reason") or ""), line(one.get("message") or "")
    return "", "", ""


@dataclass
class Waiter:
    """Follows one Job to its end."""

    objects: Objects
    what: Launch
    say: Say
    patience: Patience
    is_done: Callable[[], bool] = lambda: False
    """Says whether the results are in the bucket."""
    _said: dict[tuple[str, str], float] = field(default_factory=dict)
    """Words of a pod -> when they were said."""
    _since: dict[tuple[str, str], float] = field(default_factory=dict)
    """What a pod waits for -> since when."""
    _ends: dict[str, End] = field(default_factory=dict)
    """Pod (its uid) -> how it ended."""
    _hopeless: str = ""
    _began: bool = False
    """Whether a pod has ever run: from then on nothing is given up for an outage."""
    _done: int = 0
    """Parts that were done when it was last said."""

    def wait(self) -> None:
        """Return when it is complete."""
        kind, name = kind_of(self.what.pods), self.what.name
        log = _Log(self.objects, selector_of(self.what.pods, name))
        log.start()
        away_since: float | None = None
        try:
            while True:
                try:
                    job = self.objects.read(kind, name)
                    pods = self._pods()
                    away_since = None
                except InfrastructureError as error:
                    away_since = away_since or time.monotonic()
                    if time.monotonic() - away_since > self.patience.api_away:
                        raise
                    self._tell(name, f"{error}; the {kind} goes on by itself")
                    continue
                if job is None and self.is_done():
                    return  # another waiter was first
                if job is None:
                    raise StoppedByHandError(
                        f"{kind} {name} is gone: somebody stopped it; submit again"
                        + (" to go on from its last checkpoint" if self._parts == 1 else "")
                    )
                self._look(job, pods)
                state, reason, message = ending_of(job)
                if state == "Complete":
                    log.end(self.patience.look)
                    return
                if state == "Failed" and is_going(job):
                    time.sleep(self.patience.rest)
                    continue
                if state == "Failed":
                    log.end(self.patience.look)
                    self._raise(reason, message, pods)
                if self._hopeless:
                    self.objects.delete(kind, name)
                    raise ConfigError(f"{self._hopeless}; mend it and submit again")
                version = str(part(job.get("metadata")).get("resourceVersion", ""))
                for _ in self.objects.changes(kind, name, version, self.patience.look):
                    break
                time.sleep(self.patience.rest)
        finally:
            log.stop()

    @property
    def _parts(self) -> int:
        """In how many parts pods do the work that know nothing of each other; 1: all together."""
        return self.what.pods.parts or 1

    def _pods(self) -> list[dict[str, Any]]:
        return self.objects.list("Pod", selector_of(self.what.pods, self.what.name))

    def _look(self, job: Mapping[str, Any], pods: list[dict[str, Any]]) -> None:
        """Say what is new: pods that ended, pods that wait, pods that cannot be made."""
        for pod in pods:
            self._look_at(pod)
        spec, status = part(job.get("spec")), part(job.get("status"))
        active = status.get("active")
        if spec.get("suspend"):
            self._tell("queue", "waits for its queue to admit it")
        done = int(status.get("succeeded") or 0)
        if self._parts > 1 and (done - self._done) * _SAID_OF_PARTS >= self._parts:
            self._done = done
            self.say(f"{done} of {self._parts} parts are done")
        wanted = min(self.what.pods.nodes, self._parts - done) if self._parts > 1 else None
        if active != (wanted or self.what.pods.nodes) and not ending_of(job)[0]:
            self._events()

    def _look_at(self, pod: Mapping[str, Any]) -> None:
        meta = part(pod.get("metadata"))
        name, uid = str(meta.get("name", "")), str(meta.get("uid", ""))
        node = str(part(pod.get("spec")).get("nodeName") or "")
        index = index_of(pod)
        which = f"part {index + 1} (pod {index})" if self._parts > 1 and index is not None else ""
        place = (which or f"pod {index}") + (f" on {node}" if node else "")
        self._began = self._began or part(pod.get("status")).get("phase") not in (None, "Pending")
        if is_going(pod) and _seconds_since(str(meta["deletionTimestamp"])) > _STUCK_SECONDS:
            self._tell(
                name,
                f"{place} does not go away, so no other takes its place (its node does not "
                f"answer?): kubectl delete pod {name} --force --grace-period 0",
                about="stuck",
            )
        over = ended(pod)
        if over is not None:
            if uid not in self._ends:
                self._ends[uid] = over
                if over.code != 0:
                    self.say(f"{place} ended: {_why(over)}")
            return
        words = next(waiting(pod), "")
        self._wait_for(name, place, words)

    def _wait_for(self, name: str, place: str, words: str) -> None:
        """Note what a pod waits for; say it when it is worth a word, end where nothing heals it."""
        now = time.monotonic()
        bad = any(one in words for one in _NEVER_HEALS)
        kind = "start" if bad else words.partition(":")[0]
        for key in [key for key in self._since if key[0] == name and key[1] != kind]:
            del self._since[key]
        if not words:
            return
        lasted = now - self._since.setdefault((name, kind), now)
        if not bad and lasted < self.patience.not_scheduled:
            return
        times = f" for {duration(lasted)}" if lasted >= 60 else ""
        self._tell(name, f"{place} waits{times}: {words}", about=kind)
        if bad and lasted > self.patience.hopeless and not self._began:
            self._hopeless = f"{place} cannot start{times}: {words}"

    def _events(self) -> None:
        """Say why pods cannot be made: a quota, Pod Security."""
        fields = f"involvedObject.name={self.what.name},type=Warning"
        for event in self.objects.list("Event", fields=fields):
            words = f"{event.get('reason')}: {line(event.get('message') or '')}"
            if "FailedCreate" in words or "exceeded quota" in words:
                self._wait_for("events", "a pod", words)

    def _tell(self, who: str, text: str, about: str = "") -> None:
        now = time.monotonic()
        key = (who, about or text)
        if now - self._said.get(key, -1e9) > self.patience.say_again:
            self._said[key] = now
            self.say(text)

    def _code(self, message: str) -> int:
        """Return the code of the failure that ended a Job; not of those that it took along."""
        if found := _EXIT_CODE.search(message):
            return int(found[1])
        ends = [end for end in self._ends.values() if end.code and not end.disrupted]
        own = [end.code for end in ends if end.code not in (None, LOST, _TERMINATED)]
        refused = [code for code in own if code in _BY_CODE]
        return next((code for code in (*refused, *own[::-1]) if code), LOST)

    def _raise(self, reason: str, message: str, pods: list[dict[str, Any]]) -> None:
        """Raise what fits a failed Job: what the component said last, where that can be read."""
        kind, name = kind_of(self.what.pods), self.what.name
        if reason == "DeadlineExceeded":
            component = self.what.pods.component
            raise ConfigError(
                f"{kind} {name} took longer than cluster.timeout_hours.{component}; give it longer"
            )
        code = self._code(message)
        failed = [pod for pod in pods if (e := ended(pod)) is not None and e.code == code]
        said = next(
            (r for pod in failed if (r := refusal_in(self.objects.tail(_name(pod)))) is not None),
            None,
        )
        if said is not None and said.exit_code == code:
            raise _BY_CODE.get(code, FailedError)(said.message)
        memory = next((e.text for e in self._ends.values() if _is_memory(e)), None)
        if memory is not None and code not in _BY_CODE:
            raise ConfigError(
                f"{kind} {name}: a pod ran out of memory ({memory}); give its pool more: "
                "cluster.pools.<pool>.memory"
                # Each part lists the whole dataset: more of them would hardly take less.
                + (", or a smaller pretrain.micro_batch_size" if self._parts == 1 else "")
            )
        last = next((_why(e) for e in reversed([*self._ends.values()]) if e.code), message)
        raise _BY_CODE.get(code, FailedError)(
            f"{kind} {name} failed ({reason or 'Failed'}): {last}; its pods are there for a week: "
            f"kubectl logs -n {self.objects.namespace} -l {selector_of(self.what.pods, name)}"
        )


def _seconds_since(moment: str) -> float:
    try:
        return (datetime.now(UTC) - datetime.fromisoformat(moment)).total_seconds()
    except ValueError:
        return 0.0


def _why(over: End) -> str:
    if over.disrupted:
        return f"the cluster took it ({over.text})"
    if over.code == LOST:
        return "it was asked to end, or the others did not come (75); another takes its place"
    if _is_memory(over):
        return f"{over.text}: out of memory"
    return over.text


def _is_memory(over: End) -> bool:
    return "OOMKilled" in over.text or over.code == 137


def _name(pod: Mapping[str, Any]) -> str:
    return str(part(pod.get("metadata")).get("name", ""))


class _Log(threading.Thread):
    """Prints the log of node 0 as it comes, whichever pod that is just now."""

    def __init__(self, objects: Objects, selector: str) -> None:
        super().__init__(daemon=True)
        self._objects, self._selector = objects, selector
        self._over, self._read_all = threading.Event(), threading.Event()

    def run(self) -> None:
        """Follow until told to stop."""
        seen: dict[str, str] = {}
        while not self._over.is_set():
            pod = self._newest()
            if pod is not None:
                name, uid, is_over = pod
                for when, words in self._objects.log(name, seen.get(uid, "")):
                    seen[uid] = when
                    print(words, flush=True)
                    if self._over.is_set():
                        return
            if self._read_all.is_set() or (pod is not None and is_over):
                return
            self._read_all.wait(self._objects.pause_seconds)

    def end(self, seconds: float) -> None:
        """Wait until what is there has been printed."""
        self._read_all.set()
        self.join(seconds)

    def stop(self) -> None:
        """Print nothing more."""
        self._over.set()
        self._read_all.set()

    def _newest(self) -> tuple[str, str, bool] | None:
        """Return name and uid of node 0's pod, and whether no other will come after it."""
        try:
            pods = self._objects.list("Pod", self._selector)
        except BigTransferError:
            return None
        firsts = [pod for pod in pods if index_of(pod) == 0 and _began(pod)]
        newest = max(firsts, key=_when, default=None)
        if newest is None:
            return None
        meta = part(newest.get("metadata"))
        is_over = part(newest.get("status")).get("phase") == "Succeeded"
        return str(meta["name"]), str(meta.get("uid", "")), is_over


def _when(pod: Mapping[str, Any]) -> str:
    return str(part(pod.get("metadata")).get("creationTimestamp", ""))


def _began(pod: Mapping[str, Any]) -> bool:
    return part(pod.get("status")).get("phase") in ("Running", "Succeeded", "Failed")
