"""`kfp run submit --wait`, by the real clients against stand-ins of KFP's API and Kubernetes'."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from bigtransfer.kubeflow import watch
from fixtures.kfp_api import DIALECTS, RESET, Api, Fake, run_of, submit
from fixtures.kube_api import CONTEXT, KubeApi

POD = "wf-system-container-impl-17"

pytestmark = [pytest.mark.usefixtures("here"), pytest.mark.xdist_group("kfp")]


def tasks_of(out: str) -> list[str]:
    """Return what was said of tasks, without the seconds."""
    found = re.findall(r"^ +\d+ s  (.*)$", out, re.MULTILINE)
    return [" ".join(line.split()) for line in found]


@pytest.mark.parametrize("dialect", DIALECTS)
def test_every_change_of_a_task_is_a_line(
    dialect: str, api: Api, own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cached = Fake("shard@digits", "CACHED")
    api.states = [
        run_of(dialect, "PENDING"),
        run_of(dialect, "RUNNING", cached, Fake("evaluate@digits", "RUNNING", ("p-1",))),
        run_of(dialect, "RUNNING", cached, Fake("evaluate@digits", "RUNNING", ("p-1",))),
        run_of(dialect, "RUNNING", cached, Fake("evaluate@digits", "RUNNING", ("p-1", "p-2"))),
        run_of(dialect, "SUCCEEDED", cached, Fake("evaluate@digits", "SUCCEEDED", ("p-1", "p-2"))),
    ]
    assert submit(own, "--endpoint", api.url, "--wait") == 0
    out = capsys.readouterr().out
    assert tasks_of(out) == [
        "shard@digits CACHED",
        "evaluate@digits RUNNING",
        "evaluate@digits RUNNING (attempt 2)",
        "evaluate@digits SUCCEEDED (attempt 2)",
    ]
    assert "succeeded after" in out


def test_running_again_is_an_attempt_too(
    api: Api, own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    again = Fake("validate@digits", "RUNNING", ("p",), history=("RUNNING", "FAILED", "RUNNING"))
    api.states = [run_of("tasks", "RUNNING", again), run_of("tasks", "SUCCEEDED", again)]
    assert submit(own, "--endpoint", api.url, "--wait") == 0
    assert "validate@digits RUNNING (attempt 2)" in tasks_of(capsys.readouterr().out)


LINE = "validate@digits: no image in s3://photos/all; correct the address [exit {}]"


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize(("said", "code"), [(1, 2), (2, 2), (3, 3), (4, 2), (75, 75), (130, 2)])
def test_our_own_last_line_is_the_reason_and_its_code_the_exit_code(
    dialect: str, said: int, code: int, api: Api, own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    api.states = [
        run_of(dialect, "FAILED", Fake("validate@digits", "FAILED", (POD,), "Error (exit code 1)"))
    ]
    api.logs[POD] = f"drawing\nother: things [exit 9]\n{LINE.format(said)}\nlauncher: exit status 1"
    assert submit(own, "--endpoint", api.url, "--wait") == code
    printed = capsys.readouterr()
    assert f"failed   {LINE.format(said)}" in printed.out
    assert (
        "the run failed in validate@digits: no image in s3://photos/all; correct the address; look "
        f"at {api.url}/#/runs/details/r0" in printed.err
    )
    assert len(printed.err.splitlines()) == 1


def test_the_message_of_the_task_is_asked_first(
    api: Api, own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = f"failed to execute component: exit status 1: {LINE.format(3)} (more)"
    api.states = [run_of("tasks", "FAILED", Fake("validate@digits", "FAILED", (POD,), message))]
    assert submit(own, "--endpoint", api.url, "--wait") == 3
    assert "[exit 3]" in capsys.readouterr().out
    assert not [path for path, _ in api.seen if path.endswith("/log")]


def test_an_archived_log_is_found_by_the_name_of_its_node(api: Api, own: Path) -> None:
    api.states = [run_of("tasks", "FAILED", Fake("validate@digits", "FAILED", (POD,)))]
    api.logs["wf-17"] = LINE.format(3)
    assert submit(own, "--endpoint", api.url, "--wait") == 3


def test_a_long_log_is_read_at_its_end(api: Api, own: Path) -> None:
    api.states = [run_of("tasks", "FAILED", Fake("validate@digits", "FAILED", (POD,)))]
    api.logs[POD] = "uploading a file\n" * 200_000 + LINE.format(3)
    assert submit(own, "--endpoint", api.url, "--wait") == 3


def test_the_log_that_is_kept_as_an_artifact_is_read(api: Api, own: Path) -> None:
    failed = Fake("validate@digits", "FAILED", (POD,), logs="minio://mlpipeline/v2/x/executor-logs")
    api.states = [run_of("tasks", "FAILED", failed)]
    api.kept["mlpipeline/v2/x/executor-logs"] = LINE.format(3)
    assert submit(own, "--endpoint", api.url, "--wait") == 3


def test_the_log_in_the_bucket_is_read_where_s3_answers(api: Api, own: Path, s3: Any) -> None:
    s3.put_object(Bucket="photos", Key="run/executor-logs", Body=LINE.format(3).encode())
    failed = Fake("validate@digits", "FAILED", (POD,), logs="s3://photos/run/executor-logs")
    api.states = [run_of("tasks", "FAILED", failed)]
    assert submit(own, "--endpoint", api.url, "--wait") == 3


def test_the_log_of_the_pod_is_read_where_a_kubeconfig_is_at_hand(
    api: Api, own: Path, kube: KubeApi
) -> None:
    kube.objects[f"/api/v1/namespaces/kubeflow/pods/{POD}/log"] = LINE.format(3)
    api.states = [run_of("tasks", "FAILED", Fake("validate@digits", "FAILED", (POD,)))]
    assert submit(own, "--endpoint", api.url, "--wait") == 3


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize(
    ("message", "code", "text"),
    [
        ("Error: pod deleted", 75, "Error: pod deleted; look at"),
        ("Failed: exit code 143", 75, "Failed: exit code 143; look at"),
        ("main: Error (exit code 137)", 75, "exit code 137"),
        ("The node was low on resource: memory. Evicted", 75, "low on resource"),
        (
            "OOMKilled (exit code 1)",
            2,
            "out of memory (OOMKilled (exit code 1)); give it more: clus",
        ),
        ("OOMKilled (exit code 137)", 2, "cluster.placement.finetune names its pool"),
        ("Error (exit code 1)", 2, "Error (exit code 1); look at"),
        ("", 2, "the run failed in finetune@digits: "),
    ],
)
def test_without_our_line_the_engines_words_are_the_reason(
    dialect: str, message: str, code: int, text: str, api: Api, own: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    api.states = [run_of(dialect, "FAILED", Fake("finetune@digits", "FAILED", (POD,), message))]
    assert submit(own, "--endpoint", api.url, "--wait") == code
    said = capsys.readouterr().err
    assert text in said
    assert f"{api.url}/#/runs/details/r0" in said


def test_a_pod_that_died_before_it_could_say_so_is_lost(
    api: Api, own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    api.states = [run_of("tasks", "FAILED", Fake("pretrain", "RUNNING", (POD,)))]
    assert submit(own, "--endpoint", api.url, "--wait") == 75
    assert "failed in pretrain: its pod ended without a word" in capsys.readouterr().err


def test_mixed_failures_are_yours_to_mend(
    api: Api, own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lost = Fake("pretrain", "FAILED", ("p-1",), "Error: pod deleted")
    gate = Fake("audit@digits", "FAILED", ("p-2",), "audit@digits: 3 images leak [exit 3]")
    api.states = [run_of("tasks", "FAILED", lost, gate)]
    assert submit(own, "--endpoint", api.url, "--wait") == 2
    said = capsys.readouterr().err
    assert "failed in audit@digits, pretrain: 3 images leak (first of 2); look at" in said


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize(
    ("state", "task", "history"),
    [
        ("CANCELED", "RUNNING", ()),
        ("FAILED", "FAILED", ("RUNNING", "CANCELING", "FAILED")),
        ("FAILED", "CANCELED", ()),
    ],
)
def test_a_run_that_somebody_terminated_says_so(
    dialect: str, state: str, task: str, history: tuple[str, ...], api: Api, own: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    api.states = [run_of(dialect, state, Fake("pretrain", task, (POD,)), history=history)]
    assert submit(own, "--endpoint", api.url, "--wait", "--resubmit", "2") == 2
    assert "somebody terminated the run" in capsys.readouterr().err
    assert len(api.runs) == 1


@pytest.mark.parametrize("gone", [{"http": 502}, {"http": 404}, RESET], ids=["502", "404", "reset"])
def test_the_api_may_be_away_for_a_while(
    gone: dict[str, Any], api: Api, own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    running = run_of("tasks", "RUNNING", Fake("pretrain", "RUNNING", (POD,)))
    api.states = [running, *[gone] * 6, running, run_of("tasks", "SUCCEEDED")]
    assert submit(own, "--endpoint", api.url, "--wait") == 0
    said = tasks_of(capsys.readouterr().out)
    assert [line[:16] for line in said] == [
        "pretrain RUNNING",
        "the API is away ",
        "the API is back",
    ]


def test_the_api_that_stays_away_leaves_the_run_alone(
    api: Api, own: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(watch, "MOST_FAILURES", 3)
    api.states = [run_of("tasks", "RUNNING"), {"http": 502, "message": "bad gateway"}]
    assert submit(own, "--endpoint", api.url, "--wait", "--resubmit", "2") == 75
    assert "answers 502 bad gateway; the run goes on, look at http" in capsys.readouterr().err
    assert len(api.runs) == 1
    api.states = [run_of("tasks", "RUNNING"), {"http": 404, "message": "run r1 not found"}]
    assert submit(own, "--endpoint", api.url, "--wait") == 75
    assert "answers 404 run r1 not found; it does not know the run any more" in (
        capsys.readouterr().err
    )


def test_an_api_that_does_not_take_the_question_is_asked_plainly(
    api: Api, own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    api.states = [{"http": 400}, run_of("nodes", "SUCCEEDED", Fake("pretrain", "SUCCEEDED"))]
    assert submit(own, "--endpoint", api.url, "--wait") == 0
    assert "pretrain SUCCEEDED" in tasks_of(capsys.readouterr().out)


@pytest.mark.parametrize("status", [401, 403, 302])
def test_who_is_logged_out_in_the_middle_is_told_so(
    status: int, api: Api, own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    api.states = [run_of("tasks", "RUNNING"), {"http": status}]
    assert submit(own, "--endpoint", api.url, "--wait", "--resubmit", "2") == 2
    said = capsys.readouterr().err
    assert "does not let us in any more" in said
    assert "log in again. The run goes on: http" in said
    assert len(said.splitlines()) == 1
    assert len(api.runs) == 1


def test_the_token_goes_with_every_question(api: Api, own: Path) -> None:
    api.token = "abc"
    api.states = [run_of("tasks", "FAILED", Fake("validate@digits", "FAILED", (POD,)))]
    api.logs[POD] = LINE.format(3)
    assert submit(own, "--endpoint", api.url, "--existing-token", "abc", "--wait") == 3


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_task_without_a_pod_is_named_once_with_the_command_that_shows_why(
    dialect: str, api: Api, own: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(watch, "STUCK_SECONDS", 0.05)
    monkeypatch.setattr(watch, "LOOK_SECONDS", 0.03)
    stuck = run_of(dialect, "RUNNING", Fake("finetune@digits", "PENDING"))
    api.states = [*[stuck] * 12, run_of(dialect, "SUCCEEDED")]
    assert submit(own, "--endpoint", api.url, "--wait") == 0
    said = [line for line in tasks_of(capsys.readouterr().out) if "no pod of it runs" in line]
    (line,) = said
    assert (
        "finetune@digits PENDING, no pod of it runs for 0 s; see why: kubectl -n kubeflow" in line
    )
    assert "get pods -l pipeline/runid=r0" in line


def pod(name: str, node: str, **status: Any) -> dict[str, Any]:
    return {
        "metadata": {
            "name": name, "labels": {"pipeline/runid": "r0"},
            "annotations": {"workflows.argoproj.io/node-name": node},
        },
        "status": {"phase": "Pending", **status},
    }  # fmt: skip


WAITS = {
    "containerStatuses": [
        {"image": "me/bt-train:1", "state": {"waiting": {"reason": "ImagePullBackOff"}}}
    ]
}
NOWHERE = {
    "conditions": [
        {"type": "PodScheduled", "status": "False", "reason": "Unschedulable",
         "message": "0/3 nodes are available: 3 Insufficient nvidia.com/gpu."}
    ]
}  # fmt: skip


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (WAITS, f"ImagePullBackOff of me/bt-train:1 (context {CONTEXT}); see: kubectl"),
        (NOWHERE, "Unschedulable: 0/3 nodes are available: 3 Insufficient nvidia.com/gpu."),
        ({}, "FailedMount: secret s3 not found"),
    ],
    ids=["image", "node", "event"],
)
def test_where_a_kubeconfig_is_at_hand_the_reason_itself_is_said(
    status: dict[str, Any], text: str, api: Api, own: Path, kube: KubeApi,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(watch, "STUCK_SECONDS", 0.0)
    kube.put("pods", pod("other", "wf.root.shard-digits.executor(0)", **WAITS))
    kube.put("pods", pod("p-9", "wf.root.finetune-digits.executor(0)", **status))
    kube.put("events", {"metadata": {"name": "e"}, "involvedObject": {"name": "p-9"},
                        "type": "Warning", "reason": "FailedMount",
                        "message": "secret s3\nnot found"})  # fmt: skip
    stuck = run_of("tasks", "RUNNING", Fake("finetune@digits", "RUNNING"))
    api.states = [stuck, stuck, run_of("tasks", "SUCCEEDED")]
    assert submit(own, "--endpoint", api.url, "--wait") == 0
    assert text in " ".join(tasks_of(capsys.readouterr().out))


def test_what_pod_security_forbids_stands_in_the_workflow_alone(
    api: Api, own: Path, kube: KubeApi, capsys: pytest.CaptureFixture[str]
) -> None:
    words = 'pods "wf-17" is forbidden: violates PodSecurity "restricted:latest": runAsNonRoot'
    node = {"type": "Pod", "name": "wf.root.validate-digits.executor(2)", "message": words}
    kube.put("workflows", {
        "metadata": {"name": "wf", "labels": {"pipeline/runid": "r0"}},
        "status": {"nodes": {"a": node, "b": {"type": "DAG", "message": "child failed"}}},
    })  # fmt: skip
    failed = Fake("validate@digits", "RUNNING")
    api.states = [run_of("tasks", "FAILED", failed, message="No more retries left")]
    assert submit(own, "--endpoint", api.url, "--wait", "--resubmit", "1") == 2
    assert f"the run failed in validate@digits: {words}; look at" in capsys.readouterr().err
    assert len(api.runs) == 1


def test_a_cluster_that_refuses_or_is_away_costs_nothing(
    api: Api, own: Path, kube: KubeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "STUCK_SECONDS", 0.0)
    for kind in ("pods", "events"):
        kube.forbidden.add(f"/api/v1/namespaces/kubeflow/{kind}")
    stuck = run_of("tasks", "RUNNING", Fake("finetune@digits", "RUNNING"))
    api.states = [stuck, run_of("tasks", "SUCCEEDED")]
    assert submit(own, "--endpoint", api.url, "--wait") == 0
    api.states = [stuck, run_of("tasks", "SUCCEEDED")]
    kube.close()
    assert submit(own, "--endpoint", api.url, "--wait") == 0


@pytest.mark.parametrize(
    "odd",
    [
        {"state": "FAILED", "tasks": [{}, None, 3, {"pods": "x", "state": 7}]},
        {"state": "FAILED", "tasks": {"a": 1}, "run_details": []},
        {"state": "FAILED", "run_details": {"task_details": [{"child_tasks": None}, "x"]}},
        {"state": "FAILED", "pipeline_spec": [], "state_history": "x", "error": "words"},
    ],
)
def test_an_answer_of_an_odd_shape_is_no_traceback(
    odd: dict[str, Any], api: Api, own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    api.states = [odd]
    assert submit(own, "--endpoint", api.url, "--wait") == 2
    assert "the run failed" in capsys.readouterr().err
