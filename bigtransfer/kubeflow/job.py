"""The objects of a launched component: an Indexed Job and its headless Service, or a TrainJob.

Pure: from what `components.launch` is told to what Kubernetes is sent. Process 1 of each pod is
`bigtransfer.kubeflow.node`, or `bigtransfer.kubeflow.one_part` where the work is done in parts, by
pods that know nothing of each other. Pods are admitted under the Pod Security Standard
`restricted`, with a root that cannot be written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bigtransfer.config import LaunchParams
from bigtransfer.kubeflow.torchrun import LOST, REFUSED
from bigtransfer.storage import sha256_json

RUN_LABEL = "bigtransfer/run"
STAGE_LABEL = "bigtransfer/stage"
DIGEST = "bigtransfer/spec-digest"
PORT = 29500
"""Of the rendezvous; nodes ask for each other at the next one."""
_QUEUE = "kueue.x-k8s.io/queue-name"
_NO_MESH = "sidecar.istio.io/inject"
_TTL_SECONDS = 7 * 24 * 3600
_OUT = "/tmp/out"
_IN = "/tmp/in"
_DISK = "20Gi"
"""Of a node's disk, for logs and /tmp, where the pool does not say."""
_USER = 65532


@dataclass(frozen=True)
class Launch:
    """What runs, and how it is found again."""

    name: str
    """Of the Job, from the fingerprint of the training: the same work has the same name."""
    pods: LaunchParams
    line: Sequence[str]
    """Of the component after `python`, with addresses for inputs and `out()` for outputs."""
    results: str
    """Where node 0 sends what was written, `s3://…`; of parts, where each leaves its own."""
    run: str
    """Of Kubeflow Pipelines; empty where there is none."""
    brings: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    """Path within a pod -> digest and address of the file or folder that is brought there first."""


def brought(flag: str) -> str:
    """Return where a component's input is brought to within a pod."""
    return f"{_IN}/{flag}"


def out(flag: str) -> str:
    """Return where a component's output lies within a pod."""
    return f"{_OUT}/{flag}"


def kind_of(pods: LaunchParams) -> str:
    """Return what is created: `Job` or `TrainJob`."""
    return "TrainJob" if pods.launcher == "trainjob" else "Job"


def selector_of(pods: LaunchParams, name: str) -> str:
    """Return the labels of its pods."""
    key = "jobset.sigs.k8s.io/jobset-name" if pods.launcher == "trainjob" else _JOB_NAME
    return f"{key}={name}"


_JOB_NAME = "batch.kubernetes.io/job-name"


def objects_of(launch: Launch) -> list[dict[str, Any]]:
    """Return what is created, in order; what belongs to the first comes after it."""
    made = _train_job(launch) if launch.pods.launcher == "trainjob" else _job(launch)
    made["metadata"]["annotations"] = {DIGEST: digest_of(launch)}
    alone = launch.pods.launcher == "trainjob" or launch.pods.parts is not None
    return [made] if alone else [made, _service(launch)]


def digest_of(launch: Launch) -> str:
    """Return a digest of how it runs, without what belongs to one submission alone."""
    pods = launch.pods.identity()
    return sha256_json({"pods": pods, "line": list(launch.line), "results": launch.results})[:16]


def _labels(launch: Launch) -> dict[str, str]:
    labels = {
        "app.kubernetes.io/managed-by": "bigtransfer",
        "app.kubernetes.io/component": launch.pods.component,
        STAGE_LABEL: launch.pods.component,
    }
    if launch.run:
        labels[RUN_LABEL] = launch.run
    if launch.pods.queue is not None:
        labels[_QUEUE] = launch.pods.queue
    return labels


def _service(launch: Launch) -> dict[str, Any]:
    """Return the names of the pods, NAME-0.NAME and so on; before they are ready, too."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": launch.name, "labels": _own(_labels(launch))},
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": {_JOB_NAME: launch.name},
            "ports": [{"name": "rendezvous", "port": PORT}, {"name": "nodes", "port": PORT + 1}],
        },
    }


def _job(launch: Launch) -> dict[str, Any]:
    pods = launch.pods
    labels = _labels(launch)
    spec: dict[str, Any] = {
        "completionMode": "Indexed",
        "completions": pods.parts or pods.nodes,
        "parallelism": pods.nodes,
        # For each node alone: the pause before a pod is made anew doubles with each one that ended,
        # counted or not, and never shrinks.
        "backoffLimitPerIndex": pods.losses,
        "maxFailedIndexes": 0,
        "podReplacementPolicy": "Failed",
        "ttlSecondsAfterFinished": _TTL_SECONDS,
        "podFailurePolicy": {"rules": _RULES},
        "template": {"metadata": {"labels": _own(labels)}, "spec": _pod(launch)},
    }
    if pods.hours is not None:
        spec["activeDeadlineSeconds"] = round(3600 * pods.hours)
    if pods.queue is not None:
        spec["suspend"] = True  # until Kueue admits all pods at once
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": launch.name, "labels": labels},
        "spec": spec,
    }


_RULES = [
    {"action": "FailJob",
     "onExitCodes": {"containerName": "main", "operator": "In", "values": [*REFUSED]}},
    {"action": "Ignore",
     "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
    {"action": "Ignore",
     "onExitCodes": {"containerName": "main", "operator": "In", "values": [LOST]}},
]  # fmt: skip


def _own(labels: Mapping[str, str]) -> dict[str, str]:
    """Return the labels of what belongs to a Job: without the queue, which is the Job's.

    A mesh that puts a proxy into every pod, as Kubeflow's profiles have it, would keep the pod
    running after its end, and stand between the nodes.
    """
    return {**{key: value for key, value in labels.items() if key != _QUEUE}, _NO_MESH: "false"}


def _pod(launch: Launch) -> dict[str, Any]:
    pods = launch.pods
    spec: dict[str, Any] = {
        **_shared(pods),
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "containers": [_container(launch)],
    }
    if pods.parts is None:
        spec["subdomain"] = launch.name
    if pods.priority_class is not None:
        spec["priorityClassName"] = pods.priority_class
    return spec


def _shared(pods: LaunchParams) -> dict[str, Any]:
    """Return what both kinds say of a pod."""
    pool = pods.pool
    spec: dict[str, Any] = {
        "terminationGracePeriodSeconds": pods.grace_seconds,
        "securityContext": _pod_security(pods),
        "volumes": _volumes(pods),
    }
    if pool.selector:
        spec["nodeSelector"] = dict(pool.selector)
    if pool.tolerations:
        spec["tolerations"] = [one.model_dump(exclude_none=True) for one in pool.tolerations]
    if pods.pull_secrets:
        spec["imagePullSecrets"] = [{"name": name} for name in pods.pull_secrets]
    if pods.account is not None:
        spec["serviceAccountName"] = pods.account
    return spec


def _pod_security(pods: LaunchParams) -> dict[str, Any]:
    said: dict[str, Any] = {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    if pods.run_as is not None:
        said |= {
            "runAsUser": pods.run_as,
            "runAsGroup": pods.run_as,
            "fsGroup": pods.run_as,
            "fsGroupChangePolicy": "OnRootMismatch",
        }
    return said


_CONTAINER_SECURITY = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "runAsNonRoot": True,
    "capabilities": {"drop": ["ALL"]},
    "seccompProfile": {"type": "RuntimeDefault"},
}


def _container(launch: Launch) -> dict[str, Any]:
    pods = launch.pods
    if pods.parts is not None:
        module, arguments = "one_part", part_arguments(launch, pods.parts)
    else:
        module = "node"
        arguments = node_arguments(launch, f"{launch.name}-{{}}.{launch.name}")
    return {
        "name": "main",
        "image": pods.image,
        "command": ["python", "-m", f"bigtransfer.kubeflow.{module}"],
        "args": arguments,
        "env": _environment(launch),
        "resources": _resources(pods),
        "securityContext": _CONTAINER_SECURITY,
        "volumeMounts": _mounts(pods),
    }


def node_arguments(launch: Launch, host: str) -> list[str]:
    """Return the arguments of each node's process 1.

    Args:
        launch: What runs.
        host: Name of a node, with {} for its number.
    """
    pods = launch.pods
    return [
        "--nodes", str(pods.nodes), "--processes", str(pods.processes), "--host", host,
        "--results", launch.results, "--out", _OUT, "--grace", str(pods.grace_seconds),
        "--", *launch.line,
    ]  # fmt: skip


def part_arguments(launch: Launch, parts: int) -> list[str]:
    """Return the arguments of process 1 of a pod that does one of so many parts."""
    brings = [f"{path}={sha256}={address}" for path, (sha256, address) in launch.brings.items()]
    return ["--parts", str(parts), *(w for one in brings for w in ("--bring", one)), "--",
            *launch.line]  # fmt: skip


def _environment(launch: Launch) -> list[dict[str, Any]]:
    pods = launch.pods
    plain = {**pods.env, **pods.told, "BIGTRANSFER_JOB": launch.name}
    if launch.run:
        plain["KFP_RUN_ID"] = launch.run
    made: list[dict[str, Any]] = [{"name": key, "value": value} for key, value in plain.items()]
    for variable, place in pods.secrets.items():
        source = {"secretKeyRef": {"name": place.secret, "key": place.key}}
        made.append({"name": variable, "valueFrom": source})
    return made


def _resources(pods: LaunchParams) -> dict[str, Any]:
    pool = pods.pool
    disk = {"ephemeral-storage": _disk(pods)}
    requests: dict[str, str] = {"cpu": pool.cpu, "memory": pool.memory, **disk}
    limits: dict[str, str] = {"memory": pool.memory, **disk}
    if pool.accelerator is not None:
        requests[pool.accelerator] = limits[pool.accelerator] = str(pool.count)
    return {"requests": requests, "limits": limits}


def _disk(pods: LaunchParams) -> str:
    """Return the room on the node's own disk; a volume of a storage class is besides."""
    pool = pods.pool
    return pool.scratch if pool.scratch is not None and pool.scratch_class is None else _DISK


def _volumes(pods: LaunchParams) -> list[dict[str, Any]]:
    pool = pods.pool
    if pool.scratch_class is not None:
        claim = {
            "accessModes": ["ReadWriteOnce"],
            "storageClassName": pool.scratch_class,
            "resources": {"requests": {"storage": pool.scratch}},
        }
        room: dict[str, Any] = {"ephemeral": {"volumeClaimTemplate": {"spec": claim}}}
    else:
        room = {"emptyDir": {"sizeLimit": _disk(pods)}}
    made = [{"name": "scratch", **room}]
    if pool.shm is not None:
        made.append({"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": pool.shm}})
    return made


def _mounts(pods: LaunchParams) -> list[dict[str, Any]]:
    made = [{"name": "scratch", "mountPath": "/tmp"}]
    if pods.pool.shm is not None:
        made.append({"name": "shm", "mountPath": "/dev/shm"})
    return made


def _train_job(launch: Launch) -> dict[str, Any]:
    """Return the same for Kubeflow Trainer (v2.2 and later), whose runtime says the rest.

    Its JobSet makes the Service; node number and names come as PET_NODE_RANK and PET_MASTER_ADDR.
    What the API cannot say stands in the runtime: the priority class, who may be lost.
    """
    pods = launch.pods
    container = {
        "name": "node",
        "securityContext": _CONTAINER_SECURITY,
        "volumeMounts": _mounts(pods),
    }
    template = {
        "metadata": {"labels": _own(_labels(launch))},
        "spec": {**_shared(pods), "containers": [container]},
    }
    job = {"name": "node", "template": {"spec": {"template": template}}}
    patch = {
        "manager": "bigtransfer.io/launcher",
        "trainingRuntimeSpec": {"template": {"spec": {"replicatedJobs": [job]}}},
    }
    spec: dict[str, Any] = {
        "runtimeRef": {
            "apiGroup": "trainer.kubeflow.org",
            "kind": "ClusterTrainingRuntime",
            "name": pods.runtime,
        },
        "trainer": {
            "image": pods.image,
            "numNodes": pods.nodes,
            "command": ["python", "-m", "bigtransfer.kubeflow.node"],
            "args": node_arguments(launch, f"{launch.name}-node-0-{{}}.{launch.name}"),
            "env": _environment(launch),
            "resourcesPerNode": _resources(pods),
        },
        "runtimePatches": [patch],
    }
    if pods.hours is not None:
        spec["activeDeadlineSeconds"] = round(3600 * pods.hours)
    if pods.queue is not None:
        spec["suspend"] = True
    return {
        "apiVersion": "trainer.kubeflow.org/v1alpha1",
        "kind": "TrainJob",
        "metadata": {"name": launch.name, "labels": _labels(launch)},
        "spec": spec,
    }
