"""What Kubeflow Pipelines' API says about a run, in its two dialects, as one value.

With ML Metadata (2.16, 2.17) a run has `run_details.task_details`: Argo's nodes, of which an
"executor" is an attempt of the task above it. Without it, `tasks`: each with its pods. Any field
may be missing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

OVER = ("SUCCEEDED", "FAILED", "CANCELED", "SKIPPED")
_EXECUTOR = re.compile(r"executor(\(\d+\))?$")
_ATTEMPT = re.compile(r"executor$|.*\(\d+\)$")
_DRIVER = re.compile(r"(.*)-driver$")
_GROUPS = ("ROOT", "DAG", "LOOP", "CONDITION", "CONDITION_BRANCH", "EXIT_HANDLER")
"""Types of a task that has no pod of its own."""
_LOGS = "executor-logs"

Entry = Mapping[str, Any]


@dataclass(frozen=True)
class Task:
    """A task of a run, as it stands now."""

    key: str
    """Its id."""
    name: str
    """As the pipeline shows it, e.g. `evaluate@digits`."""
    state: str
    spec_name: str = ""
    """As the compiled pipeline spells it, e.g. `evaluate-2`."""
    message: str = ""
    lifecycle: str = ""
    """What the engine says about its pod."""
    pods: tuple[str, ...] = ()
    """Of its attempts, the first one first."""
    attempts: int = 0
    logs: str = ""
    """Address of the log of its last attempt, where the backend keeps it."""
    begun: bool = False
    """Whether a pod of its own has started."""
    group: bool = False
    """Whether it only holds other tasks."""


@dataclass(frozen=True)
class RunState:
    """A run, as it stands now."""

    state: str
    tasks: tuple[Task, ...] = ()
    message: str = ""
    terminated: bool = False
    """Whether somebody ended it."""

    @property
    def over(self) -> bool:
        """Whether it has ended."""
        return self.state in OVER

    def shown(self) -> list[Task]:
        """Return the tasks that do something themselves."""
        return [task for task in self.tasks if not task.group]


def parse(raw: Entry) -> RunState:
    """Read a run in either dialect; a field that is missing or odd is passed over."""
    new = _entries(raw.get("tasks"))
    old = _entries(_dict(raw.get("run_details")).get("task_details"))
    names = dict(_display_names(raw.get("pipeline_spec")))
    tasks = tuple(_of_tasks(new, names) if new else _of_nodes(old, names))
    state = _state(raw)
    states = {task.state for task in tasks if not task.group}
    terminated = (
        state == "CANCELED"
        or (state == "FAILED" and "CANCELING" in _history(raw))
        or (state == "FAILED" and "CANCELED" in states and "FAILED" not in states)
    )
    return RunState(state, tasks, _error(raw), terminated)


def _of_tasks(entries: list[Entry], names: Mapping[str, str]) -> Iterator[Task]:
    for entry in sorted(entries, key=lambda entry: str(entry.get("create_time") or "")):
        spec_name = _text(entry.get("name"))
        shown = _text(entry.get("display_name")) or names.get(spec_name, spec_name)
        index = _dict(entry.get("type_attributes")).get("iteration_index")
        pods = tuple(
            _text(pod.get("name"))
            for pod in _entries(entry.get("pods"))
            if _text(pod.get("type")) != "DRIVER" and pod.get("name")
        )
        history = _history(entry)
        yield Task(
            key=_text(entry.get("task_id")) or spec_name or shown,
            name=(shown or "?") + (f"[{index}]" if index is not None else ""),
            state=_state(entry) or "PENDING",
            spec_name=spec_name,
            message=_text(_dict(entry.get("status_metadata")).get("message")) or _error(entry),
            lifecycle=_text(entry.get("lifecycle_message")),
            pods=tuple(dict.fromkeys(pods)),
            attempts=max(len(set(pods)), _begins(history)),
            logs=next(_logs(entry), ""),
            begun=bool(pods) or _text(entry.get("type")) == "IMPORTER",
            group=_text(entry.get("type")) in _GROUPS,
        )


def _logs(entry: Entry) -> Iterator[str]:
    outputs = entry.get("outputs")
    for group in _entries(_dict(outputs).get("artifacts")):
        if _text(group.get("artifact_key")) == _LOGS:
            found = [_text(one.get("uri")) for one in _entries(group.get("artifacts"))]
            yield from reversed([uri for uri in found if uri])


def _of_nodes(entries: list[Entry], names: Mapping[str, str]) -> Iterator[Task]:
    by_key: dict[str, Entry] = {}
    for entry in entries:
        for key in (_text(entry.get("task_id")), _text(entry.get("pod_name"))):
            if key:
                by_key[key] = entry
    present = {_node_name(entry) for entry in entries}
    for entry in sorted(entries, key=lambda entry: str(entry.get("start_time") or "")):
        name = _node_name(entry)
        if not name or not _state(entry) or _ATTEMPT.match(name):
            continue
        if driver := _DRIVER.match(name):
            if driver[1] not in present and driver[1] != "root":
                yield _of_driver(entry, driver[1], names)
            continue
        yield _of_node(entry, by_key, names)


def _of_driver(entry: Entry, name: str, names: Mapping[str, str]) -> Task:
    """Return the task that a driver is about to begin: its own node comes after."""
    state = _state(entry)
    return Task(
        key=name,
        name=names.get(name, name),
        state="FAILED" if state == "FAILED" else "PENDING",
        spec_name=name,
        message=_error(entry),
    )


def _of_node(entry: Entry, by_key: Mapping[str, Entry], names: Mapping[str, str]) -> Task:
    name, state = _node_name(entry), _state(entry)
    below = _children(entry, by_key)
    attempts = list(_attempts(entry, by_key))
    ran = [one for one in attempts if _state(one) not in ("SKIPPED", "")]
    if state == "SUCCEEDED" and attempts and not ran:
        state = "CACHED"
    return Task(
        key=_text(entry.get("task_id")) or name,
        name=names.get(name, name),
        state=state,
        spec_name=name,
        message=next(filter(None, map(_error, [*reversed(attempts), entry])), ""),
        pods=tuple(_text(one.get("pod_name") or one.get("task_id")) for one in ran),
        attempts=max(len(ran), _begins(_history(entry))),
        begun=any(_state(one) != "PENDING" for one in ran) if below else state != "PENDING",
        group=name == "root" or any(not _ATTEMPT.match(_node_name(one)) for one in below),
    )


def _node_name(entry: Entry) -> str:
    return _text(entry.get("display_name"))


def _children(entry: Entry, by_key: Mapping[str, Entry]) -> list[Entry]:
    found = []
    for child in _entries(entry.get("child_tasks")):
        keys = (_text(child.get("task_id")), _text(child.get("pod_name")))
        found += [by_key[key] for key in keys if key in by_key][:1]
    return found


def _attempts(entry: Entry, by_key: Mapping[str, Entry]) -> Iterator[Entry]:
    """Yield the pods of a task's attempts. Below the last one hang the tasks that follow it."""
    ahead, seen = [entry], 0
    while ahead and seen <= len(by_key):
        one, seen = ahead.pop(0), seen + 1
        inner = [child for child in _children(one, by_key) if _ATTEMPT.match(_node_name(child))]
        if not inner and _EXECUTOR.match(_node_name(one)):
            yield one
        ahead = inner + ahead


def _display_names(spec: Any) -> Iterator[tuple[str, str]]:
    """Yield the spelling of each task in the compiled pipeline and the name it was given."""
    spec = _dict(_dict(spec).get("pipeline_spec")) or _dict(spec)
    found: dict[str, set[str]] = {}
    dags = [spec.get("root"), *_dict(spec.get("components")).values()]
    for dag in dags:
        for key, task in _dict(_dict(_dict(dag).get("dag")).get("tasks")).items():
            name = _text(_dict(_dict(task).get("taskInfo")).get("name"))
            found.setdefault(str(key), set()).add(name)
    for key, given in found.items():
        if len(given) == 1 and (name := given.pop()):
            yield key, name


def _begins(history: Iterable[str]) -> int:
    return sum(state == "RUNNING" for state in history)


def _history(entry: Entry) -> list[str]:
    return [_state(status) for status in _entries(entry.get("state_history"))]


def _error(entry: Entry) -> str:
    """Return the message of an error, or of the last one in its history."""
    said = [entry, *reversed(_entries(entry.get("state_history")))]
    return next(filter(None, (_text(_dict(one.get("error")).get("message")) for one in said)), "")


def _state(entry: Entry) -> str:
    state = _text(entry.get("state")).upper()
    return "" if state in ("NONE", "RUNTIME_STATE_UNSPECIFIED") else state


def _text(value: Any) -> str:
    return "" if value is None else " ".join(str(value).split())


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _entries(value: Any) -> list[Entry]:
    return [entry for entry in value if isinstance(entry, dict)] if isinstance(value, list) else []
