from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from bigtransfer.kubeflow.job import DIGEST, digest_of, objects_of
from fixtures.launches import POOL, launch_of
from fixtures.planted_mistakes import PLANTED
from fixtures.schemas import faults_of

TPU = {**POOL, "accelerator": "google.com/tpu", "count": 4, "shm": None,
       "selector": {"cloud.google.com/gke-tpu-accelerator": "tpu-v6e-slice",
                    "cloud.google.com/gke-tpu-topology": "2x2"}}  # fmt: skip
WITH_CLASS = {**POOL, "scratch_class": "fast"}
PLAIN = {**POOL, "accelerator": None, "count": 0, "shm": None, "selector": {}, "tolerations": [],
         "scratch": None, "spot": False}  # fmt: skip


def job_of(**changes: Any) -> dict[str, Any]:
    return objects_of(launch_of(**changes))[0]


@pytest.mark.parametrize("launcher", ["job", "trainjob"])
@pytest.mark.parametrize("pool", [POOL, TPU, WITH_CLASS, PLAIN], ids=["gpu", "tpu", "class", "cpu"])
def test_all_objects_would_be_admitted(launcher: str, pool: Any) -> None:
    for changes in ({}, {"queue": None, "priority_class": None, "hours": None, "run_as": None,
                         "account": None, "pull_secrets": [], "secrets": {}}):  # fmt: skip
        for thing in objects_of(launch_of(launcher=launcher, pool=pool, **changes)):
            assert faults_of(thing) == []


@pytest.mark.parametrize("name", PLANTED)
def test_planted_mistakes_are_found(name: str) -> None:
    job = copy.deepcopy(job_of())
    plant, word = PLANTED[name]
    plant(job)
    assert any(word in fault for fault in faults_of(job)), faults_of(job)


@pytest.mark.parametrize("field", ["runtimePatch", "suspended"])
def test_an_unknown_field_of_a_train_job_is_found(field: str) -> None:
    job = job_of(launcher="trainjob")
    job["spec"][field] = True
    assert faults_of(job) == [f"TrainJob.spec.{field} is no field"]


def test_every_node_knows_the_others_and_none_knows_a_secret() -> None:
    job, service = objects_of(launch_of())
    pod = job["spec"]["template"]["spec"]
    (main,) = pod["containers"]
    assert service["spec"]["publishNotReadyAddresses"] and service["spec"]["clusterIP"] == "None"
    assert pod["subdomain"] == service["metadata"]["name"] == job["metadata"]["name"]
    host = main["args"][main["args"].index("--host") + 1]
    assert host.format(3) == "pretrain-0123456789abcdef-3.pretrain-0123456789abcdef"
    known = {one["name"]: one for one in main["env"]}
    assert known["AWS_ACCESS_KEY_ID"] == {
        "name": "AWS_ACCESS_KEY_ID",
        "valueFrom": {"secretKeyRef": {"name": "s3", "key": "access"}},
    }
    assert known["KFP_RUN_ID"]["value"] == "run-1" and "BIGTRANSFER_JOB" in known
    assert pod["automountServiceAccountToken"] is False


def test_losses_of_the_cluster_cost_nothing_and_refusals_end_it() -> None:
    spec = job_of()["spec"]
    assert (spec["backoffLimitPerIndex"], spec["maxFailedIndexes"]) == (20, 0)
    labels = spec["template"]["metadata"]["labels"]
    assert labels["sidecar.istio.io/inject"] == "false", "a proxy would outlive the training"
    rules = [(r["action"], r.get("onExitCodes", {}).get("values")) for r in
             spec["podFailurePolicy"]["rules"]]  # fmt: skip
    assert rules == [("FailJob", [2, 3, 4]), ("Ignore", None), ("Ignore", [75])]
    assert spec["podReplacementPolicy"] == "Failed"
    assert spec["activeDeadlineSeconds"] == 336 * 3600
    assert spec["suspend"] is True
    assert job_of(queue=None)["spec"].get("suspend") is None


def test_a_tpu_slice_is_asked_for_by_selector_topology_and_limit() -> None:
    pod = job_of(pool=TPU)["spec"]["template"]["spec"]
    assert pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == "2x2"
    assert pod["containers"][0]["resources"]["limits"]["google.com/tpu"] == "4"


def test_the_digest_is_of_how_it_runs_not_of_who_asked() -> None:
    one = digest_of(launch_of())
    assert digest_of(launch_of(told={"BIGTRANSFER_KFP_RUN": "bit-l 2"})) == one
    assert digest_of(launch_of(nodes=4)) != one
    assert objects_of(launch_of())[0]["metadata"]["annotations"] == {DIGEST: one}


def test_a_train_job_says_the_same_of_its_pods() -> None:
    (job,) = objects_of(launch_of(launcher="trainjob"))
    trainer = job["spec"]["trainer"]
    plain = job_of()["spec"]["template"]["spec"]
    assert trainer["numNodes"] == 8
    assert trainer["resourcesPerNode"] == plain["containers"][0]["resources"]
    assert trainer["env"] == plain["containers"][0]["env"]
    (patch,) = job["spec"]["runtimePatches"]
    (replicated,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    pod = replicated["template"]["spec"]["template"]["spec"]
    for key in ("nodeSelector", "tolerations", "volumes", "securityContext",
                "terminationGracePeriodSeconds", "serviceAccountName"):  # fmt: skip
        assert pod[key] == plain[key], key
    assert pod["containers"][0]["securityContext"]["readOnlyRootFilesystem"]
    json.dumps(job)
