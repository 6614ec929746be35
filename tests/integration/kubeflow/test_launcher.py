"""The launcher and its waiter, with the real client, against a cluster that plays its part."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from bigtransfer.errors import BigTransferError, ConfigError, GateError, InfrastructureError
from bigtransfer.kubeflow import kube
from bigtransfer.kubeflow.job import DIGEST, RUN_LABEL, Launch
from bigtransfer.kubeflow.launcher import clear, launch
from bigtransfer.kubeflow.objects import Objects
from bigtransfer.kubeflow.waiter import FailedError, Patience, StoppedByHandError
from fixtures.cluster_api import ClusterApi
from fixtures.launches import launch_of

IsDone = Callable[[str], bool]
QUICK = Patience(look=0.5, rest=0.0, say_again=60, not_scheduled=0.2, hopeless=0.6, api_away=0.5)
NAME = "pretrain-0123456789abcdef"


class Waiting:
    """A launch that goes on in a thread, and what it says."""

    def __init__(
        self, what: Launch, patience: Patience = QUICK, is_done: IsDone = lambda _: False
    ) -> None:
        self.said: list[str] = []
        self.error: BaseException | None = None
        found, why = kube.at_hand()
        assert found is not None, why
        objects = Objects(found, kube.namespace_here(), pause_seconds=0.02)

        def run() -> None:
            try:
                uid = launch(objects, what, self.said.append, patience, is_done)
                clear(objects, what, uid, self.said.append)
            except BaseException as error:
                self.error = error

        self.thread = threading.Thread(target=run, daemon=True)
        self.thread.start()

    def end(self, error: type[BaseException] | None = None) -> str:
        """Wait for its end, and return the words of its error."""
        self.thread.join(20)
        assert not self.thread.is_alive(), self.said
        if error is None:
            assert self.error is None, self.error
            return ""
        assert type(self.error) is error, (self.error, self.said)
        return str(self.error)

    def until(self, words: str) -> None:
        """Wait until something is said."""
        deadline = time.monotonic() + 20
        while not any(words in one for one in self.said):
            assert time.monotonic() < deadline, (words, self.said, self.error)
            time.sleep(0.01)


Start = Callable[..., Waiting]


def is_sent(_: str) -> bool:
    """Say that the results are in the bucket: of two waiters one clears the Job first."""
    return True


@pytest.fixture
def start(cluster: ClusterApi) -> Iterator[Start]:
    def begin(
        patience: Patience = QUICK, is_done: IsDone = lambda _: False, **changes: Any
    ) -> Waiting:
        return Waiting(launch_of(nodes=2, **changes), patience, is_done)

    yield begin


def test_a_training_from_its_pods_to_its_end(
    cluster: ClusterApi, start: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    waiting = start()
    job = cluster.wait_for("jobs", NAME)
    assert job["metadata"]["labels"][RUN_LABEL] == "run-1"
    service = cluster.wait_for("services", NAME)
    assert service["metadata"]["ownerReferences"][0]["uid"] == job["metadata"]["uid"]
    for index in (0, 1):
        cluster.pod(job, index, phase="Pending")
    for index in (0, 1):
        cluster.pod(job, index, phase="Running")
    cluster.logs[f"{NAME}-0-0"] = "step 1\nstep 2"
    cluster.ended(job, 0, 0), cluster.ended(job, 1, 0)
    cluster.finish(job)
    waiting.end()
    assert capsys.readouterr().out.splitlines() == ["step 1", "step 2"], "each line once"
    assert waiting.said[-1] == f"Job {NAME} and its pods are removed"
    assert not cluster.things, "what belonged to it went with it"
    assert cluster.verbs("jobs") == ["POST", "DELETE"]


def test_a_lost_pod_is_named_and_the_new_log_is_followed(
    cluster: ClusterApi, start: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    waiting = start()
    job = cluster.wait_for("jobs")
    cluster.logs[f"{NAME}-0-0"] = "step 1\nstep 2"
    cluster.pod(job, 0, phase="Running"), cluster.pod(job, 1, phase="Running")
    taken = {"reason": "EvictionByEvictionAPI", "message": "Eviction API: evicting"}
    cluster.ended(job, 1, 143, condition=taken)
    cluster.ended(job, 0, 75)
    waiting.until("pod 0 on node-0 ended: it was asked to end, or the others did not come (75)")
    cluster.logs[f"{NAME}-0-1"] = "step-2 came from s3://b/m\nstep 3"
    cluster.pod(job, 0, 1, phase="Running"), cluster.pod(job, 1, 1, phase="Running")
    time.sleep(0.3)
    cluster.ended(job, 0, 0, 1), cluster.ended(job, 1, 0, 1)
    cluster.finish(job)
    waiting.end()
    assert (
        "pod 1 on node-1 ended: the cluster took it (EvictionByEvictionAPI: Eviction API: evicting)"
        in waiting.said
    )
    assert len([one for one in waiting.said if "ended" in one]) == 2, "each end once"
    assert "step 3" in capsys.readouterr().out


@pytest.mark.parametrize(("code", "error"), [(2, ConfigError), (3, GateError), (1, FailedError)])
def test_the_components_own_line_and_code_are_handed_on(
    code: int, error: type[BigTransferError], cluster: ClusterApi, start: Start
) -> None:
    waiting = start()
    job = cluster.wait_for("jobs")
    pod = cluster.ended(job, 1, code)
    cluster.logs[pod] = f"step 1\npretrain: batch_size 1 is too small [exit {code}]\nnode 1: end"
    cluster.ended(job, 0, 75)
    message = f"Container main for pod runs/{pod} failed with exit code {code} matching FailJob"
    cluster.fail(job, "PodFailurePolicy", message if code in (2, 3) else "")
    assert waiting.end(error) == "batch_size 1 is too small"
    assert cluster.verbs("jobs") == ["POST"], "what failed stays, to be looked at"


def test_memory_time_and_bugs_have_words_of_their_own(cluster: ClusterApi, start: Start) -> None:
    waiting = start()
    job = cluster.wait_for("jobs")
    cluster.ended(job, 1, 137, reason="OOMKilled")
    cluster.fail(job, "BackoffLimitExceeded", "Job has reached the specified backoff limit")
    assert "ran out of memory" in waiting.end(ConfigError)
    cluster.things.clear()

    waiting = start()
    job = cluster.wait_for("jobs")
    cluster.fail(job, "DeadlineExceeded", "Job was active longer than specified deadline")
    assert "cluster.timeout_hours.pretrain" in waiting.end(ConfigError)
    cluster.things.clear()

    waiting = start()
    job = cluster.wait_for("jobs")
    cluster.ended(job, 0, 1)
    cluster.fail(job, "BackoffLimitExceeded")
    said = waiting.end(FailedError)
    assert "failed (BackoffLimitExceeded): Error (exit code 1)" in said and "kubectl logs" in said


def test_the_same_work_is_adopted_other_pods_are_refused(cluster: ClusterApi, start: Start) -> None:
    first = start(is_done=is_sent)
    job = cluster.wait_for("jobs")
    cluster.wait_for("services")
    second = Waiting(replace(launch_of(nodes=2), run="run-2"), is_done=is_sent)
    second.until("it is adopted")
    assert cluster.things["jobs", NAME]["metadata"]["labels"][RUN_LABEL] == "run-2"
    other = Waiting(launch_of(nodes=4))
    said = other.end(ConfigError)
    assert f"Job {NAME} does the same work already, but on other pods" in said
    assert f"bigtransfer cluster stop {NAME}" in said
    cluster.finish(job)
    first.end(), second.end()


def test_a_job_that_failed_before_is_begun_again(cluster: ClusterApi, start: Start) -> None:
    first = start()
    job = cluster.wait_for("jobs")
    cluster.wait_for("services")
    cluster.ended(job, 0, 1)
    cluster.fail(job, "BackoffLimitExceeded")
    first.end(FailedError)
    again = start()
    again.until("of an earlier attempt failed")
    again.until("was made for run run-1")
    fresh = cluster.wait_for("jobs")
    assert fresh["metadata"]["uid"] != job["metadata"]["uid"]
    deadline = time.monotonic() + 10
    while True:
        service = cluster.wait_for("services")
        if service["metadata"]["ownerReferences"][0]["uid"] == fresh["metadata"]["uid"]:
            break
        assert time.monotonic() < deadline
    cluster.finish(fresh)
    again.end()


def test_a_waiter_that_comes_anew_finds_a_complete_job(cluster: ClusterApi, start: Start) -> None:
    first = start()
    job = cluster.wait_for("jobs")
    cluster.answers["GET", "jobs"] = [(503, "away")] * 1000
    assert "Kubernetes answers 503" in first.end(InfrastructureError)
    cluster.answers.clear()
    cluster.finish(job)
    start().end()


def test_a_watch_that_forgot_and_an_api_that_is_away_for_a_while(
    cluster: ClusterApi, start: Start
) -> None:
    cluster.forget_watches = True
    cluster.answers["POST", "jobs"] = [(503, "etcd is away"), (500, "again")]
    waiting = start()
    job = cluster.wait_for("jobs")
    cluster.answers["GET", "jobs"] = [(500, "x"), (429, "slow down"), (503, "x")]
    cluster.finish(job)
    waiting.end()


def test_an_answer_that_was_lost_is_no_second_job(cluster: ClusterApi, start: Start) -> None:
    first = start(is_done=is_sent)
    job = cluster.wait_for("jobs")
    cluster.wait_for("services")
    again = start(
        is_done=is_sent
    )  # the reply to the first POST never came; the second is answered by 409
    again.until("it is adopted")
    cluster.finish(job)
    first.end(), again.end()
    assert job["metadata"]["annotations"][DIGEST]


@pytest.mark.parametrize(
    ("code", "message", "words"),
    [
        (403, 'User "x" cannot create resource "jobs"', "give it the Role of manifests/runs"),
        (422, 'spec.template.spec.containers[0].name: Invalid value: "M"', "refuses a Job"),
        (404, "the server could not find the requested resource", "this cluster knows no Job"),
    ],
)
def test_refusals_of_the_api_are_one_line(
    code: int, message: str, words: str, cluster: ClusterApi, start: Start
) -> None:
    cluster.answers["POST", "jobs"] = [(code, message)] * 10
    said = start().end(ConfigError)
    assert words in said and message.split(":")[0] in said and "\n" not in said
    assert len(cluster.verbs("jobs")) == 1, "asked once"


def test_a_quota_is_waited_for(cluster: ClusterApi, start: Start) -> None:
    cluster.answers["POST", "jobs"] = [(403, "exceeded quota: compute, requested: count/jobs=1")]
    waiting = start()
    job = cluster.wait_for("jobs")
    cluster.events = [
        {"reason": "FailedCreate", "message": 'pods "x" is forbidden: exceeded quota'}
    ]
    waiting.until('a pod waits: FailedCreate: pods "x" is forbidden: exceeded quota')
    cluster.finish(job)
    waiting.end()


def unscheduled(message: str) -> dict[str, Any]:
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable",
                 "message": message}  # fmt: skip
    return {"phase": "Pending", "conditions": [condition]}


def pulling(reason: str) -> dict[str, Any]:
    state = {"waiting": {"reason": reason, "message": "not found"}}
    box = {"name": "main", "image": "registry.example/x", "state": state}
    return {"phase": "Pending", "containerStatuses": [box]}


def test_a_pod_that_no_node_takes_is_said_and_waited_for(cluster: ClusterApi, start: Start) -> None:
    waiting = start()
    job = cluster.wait_for("jobs")
    cluster.pod(job, 1, **unscheduled("0/9 nodes are available: 9 Insufficient nvidia.com/gpu."))
    waiting.until("pod 1 on node-1 waits: Unschedulable: 0/9 nodes are available")
    time.sleep(1)
    cluster.finish(job)
    waiting.end()
    assert len([one for one in waiting.said if "Unschedulable" in one]) == 1, "not at every look"


def test_an_image_that_nobody_can_pull_ends_it(cluster: ClusterApi, start: Start) -> None:
    waiting = start()
    job = cluster.wait_for("jobs")
    cluster.pod(job, 0, **pulling("ImagePullBackOff"))
    said = waiting.end(ConfigError)
    assert "cannot start: ImagePullBackOff of registry.example/x: not found" in said
    assert ("jobs", NAME) not in cluster.things, "it would wait for ever"


def test_a_job_that_somebody_stopped_is_not_begun_again(cluster: ClusterApi, start: Start) -> None:
    waiting = start()
    cluster.wait_for("jobs")
    waiting.until("was made")
    cluster.wait_for("services")
    with cluster.lock:
        cluster._delete("jobs", NAME, cluster.things["jobs", NAME])
    assert "somebody stopped it" in waiting.end(StoppedByHandError)
    assert StoppedByHandError.exit_code == 2, "no retry undoes it"


def test_a_job_that_is_being_removed_is_waited_for_and_made_anew(
    cluster: ClusterApi, start: Start
) -> None:
    first = start()
    job = cluster.wait_for("jobs")
    cluster.wait_for("services")
    first.until("was made")
    with cluster.lock:  # a foreground deletion: it stays until its pods have ended
        going = {**cluster.things["jobs", NAME]}
        going["metadata"] = {**going["metadata"], "deletionTimestamp": "2026-11-27T10:00:00Z"}
        cluster.put("jobs", going)
    again = Waiting(launch_of(nodes=4))
    again.until("is being removed; it is removed and begun again")
    first.end(StoppedByHandError)
    fresh = cluster.wait_for("jobs")
    deadline = time.monotonic() + 10
    while (fresh := cluster.wait_for("jobs"))["metadata"]["uid"] == job["metadata"]["uid"]:
        assert time.monotonic() < deadline
    assert fresh["spec"]["completions"] == 4
    cluster.finish(fresh)
    again.end()


def test_a_complete_job_on_other_pods_is_not_in_the_way(cluster: ClusterApi, start: Start) -> None:
    from bigtransfer.kubeflow.job import objects_of

    job = objects_of(launch_of(nodes=2))[0]
    cluster.put("jobs", job)
    cluster.finish(job)
    again = Waiting(launch_of(nodes=4))
    again.until("is complete on other pods")
    again.until("was made")
    cluster.finish(cluster.wait_for("jobs"))
    again.end()


def test_a_job_that_another_waiter_cleared_is_done_where_its_results_are(
    cluster: ClusterApi,
) -> None:
    waiting = Waiting(launch_of(nodes=2), is_done=lambda _: True)
    cluster.wait_for("services")
    with cluster.lock:
        cluster._delete("jobs", NAME, cluster.things["jobs", NAME])
    waiting.end()


def test_names_that_are_refused_take_the_job_along(cluster: ClusterApi, start: Start) -> None:
    cluster.answers["POST", "services"] = [(403, "services is forbidden")] * 10
    assert "does not let this service account" in start().end(ConfigError)
    assert ("jobs", NAME) not in cluster.things, "its pods would look for each other for ever"


def test_a_pod_that_does_not_go_away_is_named_with_its_cure(
    cluster: ClusterApi, start: Start
) -> None:
    waiting = start()
    job = cluster.wait_for("jobs")
    name = cluster.pod(job, 1, phase="Running")
    pod = cluster.things["pods", name]
    gone = {**pod, "metadata": {**pod["metadata"], "deletionTimestamp": "2026-11-20T10:00:00Z"}}
    cluster.put("pods", gone)
    cluster.touch(job)
    waiting.until(f"kubectl delete pod {name} --force")
    cluster.finish(job)
    waiting.end()


def test_an_outage_of_the_registry_ends_no_training_that_has_begun(
    cluster: ClusterApi, start: Start
) -> None:
    waiting = start()
    job = cluster.wait_for("jobs")
    cluster.pod(job, 0, phase="Running")
    waiting.until("was made")
    time.sleep(0.7)
    cluster.pod(job, 1, 1, **pulling("ImagePullBackOff"))
    waiting.until("pod 1 on node-1 waits: ImagePullBackOff")
    time.sleep(1.5)
    assert ("jobs", NAME) in cluster.things
    cluster.finish(job)
    waiting.end()


def test_a_train_job_is_followed_alike_and_begun_again_after_a_loss(
    cluster: ClusterApi, start: Start
) -> None:
    waiting = start(launcher="trainjob", losses=1)
    job = cluster.wait_for("trainjobs", NAME)
    cluster.ended(job, 0, 75), cluster.ended(job, 1, 143, condition={"reason": "Preemption"})
    cluster.fail(job, "JobsFailed", "jobset failed")
    waiting.until("0 more losses are allowed")
    deadline = time.monotonic() + 10
    while (again := cluster.wait_for("trainjobs"))["metadata"]["uid"] == job["metadata"]["uid"]:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    cluster.finish(again)
    waiting.end()
    assert not [one for one in cluster.asked if one[0] == "POST" and "services" in one[1]]


def test_parts_are_counted_and_the_first_ones_log_is_read_once(
    cluster: ClusterApi, capsys: pytest.CaptureFixture[str]
) -> None:
    waiting = Waiting(launch_of(nodes=2, parts=3, component="shard", queue=None))
    job = cluster.wait_for("jobs", NAME)
    assert (job["spec"]["completions"], job["spec"]["parallelism"]) == (3, 2)
    assert cluster.verbs("services") == [], "its pods know nothing of each other"
    cluster.logs[f"{NAME}-0-0"] = "part 1/3 written"
    for index in (0, 1):
        cluster.pod(job, index, phase="Running")
    cluster.ended(job, 0, 0)
    cluster.ended(job, 1, 1)
    cluster.touch(job, succeeded=1)
    waiting.until("part 2 (pod 1) on node-1 ended: Error (exit code 1)")
    waiting.until("1 of 3 parts are done")
    time.sleep(0.3)  # in which the log of a pod that is over would be opened again and again
    assert sum(path.endswith("-0-0/log") for _, path in cluster.asked) <= 2
    cluster.finish(job)
    waiting.end()
    assert capsys.readouterr().out == "part 1/3 written\n"


def test_what_another_submission_began_since_stays(cluster: ClusterApi) -> None:
    """Between a Job's end and its removal somebody may have removed and begun it again."""
    what = launch_of(nodes=2)
    found, why = kube.at_hand()
    assert found is not None, why
    objects = Objects(found, kube.namespace_here(), pause_seconds=0.02)
    waiting = Waiting(what)
    old = cluster.wait_for("jobs", NAME)["metadata"]["uid"]
    objects.delete("Job", NAME)
    waiting.end(StoppedByHandError)
    Waiting(what)
    new = cluster.wait_for("jobs", NAME)["metadata"]["uid"]
    said: list[str] = []
    clear(objects, what, old, said.append)
    clear(objects, what, "", said.append)
    assert cluster.things["jobs", NAME]["metadata"]["uid"] == new != old
    assert said == []
    cluster.finish(cluster.things["jobs", NAME])
