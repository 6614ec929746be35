"""A run's JSON in both dialects, as the API's own code writes it."""

from __future__ import annotations

from typing import Any

import pytest

from bigtransfer.kubeflow.run_state import parse


def node(name: str, state: str, *children: str, key: str = "", **more: Any) -> dict[str, Any]:
    return {"task_id": key or name, "display_name": name, "state": state,
            "child_tasks": [{"pod_name": child} for child in children], **more}  # fmt: skip


def nodes(*details: dict[str, Any], state: str = "RUNNING") -> dict[str, Any]:
    tasks = {"evaluate-2": {"taskInfo": {"name": "evaluate@digits"}}}
    spec = {"pipeline_spec": {"root": {"dag": {"tasks": tasks}}}, "platform_spec": {}}
    return {"state": state, "pipeline_spec": spec, "run_details": {"task_details": list(details)}}


def test_argos_nodes_are_tasks_their_attempts_and_drivers() -> None:
    run = parse(nodes(
        node("quickstart-x", "RUNNING", "root-driver"),
        node("root-driver", "SUCCEEDED", "root"),
        node("root", "RUNNING", "evaluate-2-driver"),
        node("evaluate-2-driver", "SUCCEEDED", "e"),
        node("evaluate-2", "SUCCEEDED", "x", key="e"),
        node("executor", "SUCCEEDED", "x0", "x1", key="x"),
        node("executor(0)", "FAILED", key="x0", error={"message": "Error (exit code 1)"}),
        node("executor(1)", "SUCCEEDED", "register-driver", key="x1"),
        node("register-driver", "PENDING"),
    ))  # fmt: skip
    assert [(task.name, task.state, task.attempts, task.pods) for task in run.shown()] == [
        ("evaluate@digits", "SUCCEEDED", 2, ("x0", "x1")),
        ("register", "PENDING", 0, ()),
    ]


def test_a_task_whose_executor_was_skipped_is_cached() -> None:
    run = parse(nodes(node("evaluate-2", "SUCCEEDED", "x"), node("executor", "SKIPPED", key="x")))
    assert [(task.state, task.attempts) for task in run.shown()] == [("CACHED", 0)]


def test_retries_at_every_level_are_attempts_of_one_task() -> None:
    run = parse(nodes(
        node("evaluate-2", "RUNNING", "e0", "e1"),
        node("evaluate-2(0)", "FAILED", "x", key="e0"),
        node("executor", "FAILED", "x0", key="x"),
        node("executor(0)", "FAILED", key="x0"),
        node("evaluate-2(1)", "RUNNING", "y", key="e1"),
        node("executor", "RUNNING", "y0", key="y"),
        node("executor(0)", "RUNNING", key="y0"),
    ))  # fmt: skip
    assert [(task.name, task.pods) for task in run.shown()] == [("evaluate@digits", ("x0", "y0"))]


def test_a_pod_that_waits_has_not_begun() -> None:
    run = parse(nodes(node("evaluate-2", "RUNNING", "x"), node("executor", "PENDING", key="x")))
    assert [(task.begun, task.pods) for task in run.shown()] == [(False, ("x",))]


def test_a_second_attempt_that_waits_has_not_begun_either() -> None:
    run = parse(nodes(
        node("evaluate-2", "RUNNING", "x"), node("executor", "RUNNING", "x0", "x1", key="x"),
        node("executor(0)", "FAILED", key="x0"), node("executor(1)", "PENDING", key="x1"),
    ))  # fmt: skip
    assert [(task.begun, task.attempts) for task in run.shown()] == [(False, 2)]


def test_tasks_of_a_backend_without_ml_metadata() -> None:
    executor = {"name": "p-1", "uid": "1", "type": "EXECUTOR"}
    logs = [{"uri": "s3://b/one"}, {"uri": "s3://b/two"}]
    outputs = {"artifacts": [{"artifact_key": "executor-logs", "artifacts": logs}]}
    raw = {
        "state": "FAILED",
        "state_history": [{"state": "RUNNING"}, {"state": "FAILED", "error": {"message": "why"}}],
        "tasks": [
            {"name": "root", "task_id": "r", "type": "ROOT", "state": "FAILED"},
            {"name": "evaluate", "display_name": "evaluate@digits", "task_id": "e",
             "type": "RUNTIME", "state": "FAILED", "outputs": outputs,
             "pods": [{"name": "d", "type": "DRIVER"}, executor, {**executor, "name": "p-2"}],
             "status_metadata": {"message": "exit\nstatus 1"}},
            {"name": "loop", "task_id": "l", "type": "LOOP", "state": "RUNNING"},
            {"name": "cell", "task_id": "c", "type": "RUNTIME", "state": "CACHED",
             "type_attributes": {"iteration_index": "3"}},
            {"name": "late", "task_id": "z", "type": "RUNTIME",
             "lifecycle_message": "ImagePullBackOff"},
        ],
    }  # fmt: skip
    run = parse(raw)
    assert (run.over, run.message, run.terminated) == (True, "why", False)
    evaluate, cell, late = run.shown()
    assert (evaluate.name, evaluate.pods, evaluate.attempts) == (
        "evaluate@digits", ("p-1", "p-2"), 2,
    )  # fmt: skip
    assert (evaluate.message, evaluate.logs) == ("exit status 1", "s3://b/two")
    assert (cell.name, cell.state) == ("cell[3]", "CACHED")
    assert (late.state, late.begun, late.lifecycle) == ("PENDING", False, "ImagePullBackOff")


@pytest.mark.parametrize(
    ("raw", "terminated"),
    [
        ({"state": "CANCELED"}, True),
        ({"state": "FAILED", "state_history": [{"state": "CANCELING"}]}, True),
        ({"state": "FAILED", "state_history": [{"state": "RUNNING"}]}, False),
        ({"state": "SUCCEEDED", "state_history": [{"state": "CANCELING"}]}, False),
        (nodes(node("a", "CANCELED"), state="FAILED"), True),
        (nodes(node("a", "CANCELED"), node("b", "FAILED"), state="FAILED"), False),
    ],
)
def test_whether_somebody_ended_it(raw: dict[str, Any], terminated: bool) -> None:
    assert parse(raw).terminated is terminated
