"""Why a task of a run failed, and what that means: mend it, submit again, or a gate said no.

Kubeflow Pipelines passes no exit code on: each arrives as 1. Our components end with a line that
holds theirs, `<stage>: <message> [exit <code>]`; where that cannot be found, the engine's own words
are read.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache

from bigtransfer.config import PLACED
from bigtransfer.errors import BigTransferError, GateError, InfrastructureError
from bigtransfer.kubeflow.refusals import Refusal
from bigtransfer.kubeflow.run_state import RunState, Task

_REST = (
    r"(?:@[\w.,/-]+)?)(?:, (?:process|part) \d+)?: (?P<message>\S.*?) \[exit (?P<code>\d{1,3})\]"
)
_COMPONENT = re.compile(rf"\b(?P<stage>(?:{'|'.join(PLACED)})(?:-parts)?{_REST}")
"""Anywhere in a line: the launcher puts words before and behind."""
_OTHER = re.compile(rf"^(?P<stage>[A-Za-z][\w.-]*{_REST}")
"""Of a component that is not ours, at the start of a line."""
_LOST = re.compile(
    r"pod (was )?deleted|evicted|eviction|node (was |is )?(lost|gone|deleted|unreachable)"
    r"|node (was |is )?shut ?down|nodelost|node .{0,80}not ?ready|preempt|low on resource"
    r"|(exit code|exit status|exited with|error code) (137|143)\b|signal: (killed|terminated)"
    r"|code = unavailable|context deadline exceeded",
    re.IGNORECASE,
)
_MEMORY = re.compile(r"oomkilled|out of memory", re.IGNORECASE)
_DEADLINE = re.compile(
    r"exceeded its deadline|active deadline|longer than (the )?specified deadline", re.IGNORECASE
)
_EMPTY = re.compile(
    r"^((error|failed)?:? ?\(?(exit (code|status)|error code) 1\)?|no more retries left"
    r"|child .{0,120} failed|.{0,40}main: exit status 1|error|failed)\W*$",
    re.IGNORECASE,
)
"""What the engine says of every failure alike."""
_UNTOLD = "it did not say why"
_GATE, _TRY_AGAIN = 3, 75


@dataclass(frozen=True)
class Failure:
    """A task that failed."""

    stage: str
    reason: str
    exit_code: int | None = None
    """Of our component; None where it could not be told."""
    lost: bool = False
    """Whether the task had no fault: the same again may succeed."""


@dataclass(frozen=True)
class Ending:
    """How a run ended."""

    succeeded: bool
    terminated: bool = False
    failures: tuple[Failure, ...] = ()
    message: str = ""
    """What was said of the run itself."""

    @property
    def lost(self) -> bool:
        """Whether it failed by nothing but losses."""
        lost = bool(self.failures) and all(failure.lost for failure in self.failures)
        return lost and not self.succeeded and not self.terminated


@dataclass(frozen=True)
class Sources:
    """Where else to look for why a task failed; each answers nothing rather than failing."""

    logs: Iterable[Callable[[Task], str]] = ()
    """Text of the log of a task's last attempt, the surest source first."""
    refusals: Callable[[], Mapping[str, Refusal]] = field(default=dict)
    """Stage -> what it left where the run's results lie."""
    engine: Callable[[Task], str] = field(default=lambda _: "")
    """What Argo says of the task."""


def refusal_in(text: str) -> Refusal | None:
    """Return what our component said last in a text, if it did."""
    lines = text.splitlines()
    told = [match for line in lines for match in _COMPONENT.finditer(line)]
    told = told or [match for line in lines for match in _OTHER.finditer(line)]
    if not told:
        return None
    found = told[-1]
    return Refusal(found["stage"], int(found["code"]), " ".join(found["message"].split()))


def ending_of(run: RunState, sources: Sources) -> Ending:
    """Say how a run that is over ended, and why."""
    if run.state == "SUCCEEDED":
        return Ending(succeeded=True)
    if run.terminated:
        return Ending(succeeded=False, terminated=True)
    sources = replace(sources, refusals=cache(sources.refusals))
    holders = [task.message for task in run.tasks if task.group and task.state == "FAILED"]
    general = next(filter(None, [run.message, *holders]), "")
    failures = [_failure(task, sources) for task in run.shown() if task.state == "FAILED"]
    if not failures:  # a pod that is killed cannot say so: its task stays as it was last heard of
        open_ones = [task for task in run.shown() if task.state in ("RUNNING", "PENDING")]
        suspects = [task for task in open_ones if task.begun] or open_ones
        failures = [_silent(task, sources, general) for task in suspects]
    if not failures:
        failures = [_of_refusal(refusal) for refusal in sources.refusals().values()]
    return Ending(False, failures=tuple(failures), message=general)


def _failure(task: Task, sources: Sources, general: str = "") -> Failure:
    if refusal := _told(task, sources):
        return _of_refusal(refusal, task.name)
    return _by_words(task, [task.message, sources.engine(task), task.lifecycle, general])


def _silent(task: Task, sources: Sources, general: str) -> Failure:
    found = _failure(task, sources, general)
    untold = found.exit_code is None and not found.lost and _says_nothing(found.reason)
    if not task.begun or not untold:
        return found
    return Failure(task.name, "its pod ended without a word", lost=True)


def _told(task: Task, sources: Sources) -> Refusal | None:
    if refusal := refusal_in(task.message):
        return refusal
    for log in sources.logs:
        if refusal := refusal_in(log(task)):
            return refusal
    return sources.refusals().get(task.name)


def _of_refusal(refusal: Refusal, name: str = "") -> Failure:
    lost = refusal.exit_code == _TRY_AGAIN
    return Failure(name or refusal.stage, refusal.message, refusal.exit_code, lost)


def _by_words(task: Task, said: Iterable[str]) -> Failure:
    """Judge by what the engine says: the first words that are not said of every failure."""
    words = [text for text in said if text]
    if match := _first(_MEMORY, words):
        component = re.split(r"[@\[]", task.name)[0]
        cure = f"cluster.placement.{component} names its pool, cluster.pools.<pool>.memory its size"
        return Failure(task.name, f"out of memory ({match}); give it more: {cure}")
    if match := _first(_DEADLINE, words):
        return Failure(task.name, f"{match}; give it longer: cluster.timeout_hours")
    if match := _first(_LOST, words):
        return Failure(task.name, match, lost=True)
    telling = [text for text in words if not _says_nothing(text)]
    return Failure(task.name, (telling or words or [_UNTOLD])[0])


def _first(pattern: re.Pattern[str], words: Iterable[str]) -> str | None:
    return next((text for text in words if pattern.search(text)), None)


def _says_nothing(text: str) -> bool:
    return text == _UNTOLD or bool(_EMPTY.match(text))


def raise_for(ending: Ending, link: str, submissions: int = 1) -> None:
    """Raise what fits an ending, with one line for people; nothing if it succeeded.

    Args:
        ending: How the last run ended.
        link: Where people look at it.
        submissions: How often the same was submitted.

    Raises:
        GateError: If gates said no, and nothing else failed.
        InfrastructureError: If tasks were lost, and nothing else failed.
        BigTransferError: If it is yours to mend, or cannot be told.
    """
    if ending.succeeded:
        return
    if ending.terminated:
        raise BigTransferError(f"somebody terminated the run; submit it again: {link}")
    if not ending.failures:
        what = f": {ending.message}" if ending.message else ", and names no task"
        kind = InfrastructureError if _LOST.search(what) else BigTransferError
        raise kind(f"the run failed{what}; look at {link}")
    # What is to be mended first: losses alone would pass by themselves.
    failures = sorted(ending.failures, key=lambda failure: failure.lost)
    first, *others = failures
    names = ", ".join(failure.stage for failure in failures)
    more = f" (first of {len(ending.failures)})" if others else ""
    line = f"the run failed in {names}: {first.reason.rstrip('.;')}{more}; look at {link}"
    if ending.lost:
        cure = "submit it again, or give --resubmit N"
        if submissions > 1:
            cure = f"it was submitted {submissions} times; mend the cluster, then submit it again"
        raise InfrastructureError(f"{line}; {cure}")
    if all(failure.exit_code == _GATE for failure in ending.failures):
        raise GateError(line)
    raise BigTransferError(line)
