"""Where tasks run: pools, accelerators, retries, time limits, environment (kfp-kubernetes)."""

from __future__ import annotations

from typing import Any

from kfp import kubernetes

from bigtransfer.config import ClusterParams, PoolParams
from pipelines.containers import KINDS

_TRAINERS = {"nvidia.com/gpu": "train-gpu", "google.com/tpu": "train-tpu", None: "train-cpu"}
_SPOT_RETRIES = 20
_LONGEST_SECONDS = 90 * 24 * 3600


def image_of(component: str, cluster: ClusterParams, tag: str) -> str:
    """Return the image of a component, by what its pool's nodes have."""
    target = KINDS[component].target
    if target == "train":
        target = _TRAINERS.get(_pool(component, cluster).accelerator, "train-gpu")
    return f"{cluster.image}-{target}:{tag}"


def place(task: Any, component: str, cluster: ClusterParams) -> None:
    """Say on what nodes a task runs, what it takes of one, and what becomes of a lost one."""
    pool = _pool(component, cluster)
    task.set_cpu_request(pool.cpu).set_memory_request(pool.memory).set_memory_limit(pool.memory)
    if pool.accelerator is not None:
        task.set_accelerator_type(pool.accelerator).set_accelerator_limit(pool.count)
    for key, value in pool.selector.items():
        kubernetes.add_node_selector(task, key, value)
    for taint in pool.tolerations:
        kubernetes.add_toleration(task, taint.key, taint.operator, taint.value or "", taint.effect)
    if pool.shm is not None:
        kubernetes.empty_dir_mount(task, "shm", "/dev/shm", medium="Memory", size_limit=pool.shm)
    hours = cluster.timeout_hours.get(component)
    if hours is not None:
        kubernetes.set_timeout(task, round(3600 * hours))
    task.set_retry(
        _SPOT_RETRIES if pool.spot else cluster.retries, backoff_duration="60s", backoff_factor=2.0
    )
    environment = dict(cluster.env)
    if cluster.tracking_uri is not None:
        environment["MLFLOW_TRACKING_URI"] = cluster.tracking_uri
    for key, value in environment.items():
        task.set_env_variable(key, value)
    for variable, place_of in cluster.secrets.items():
        kubernetes.use_secret_as_env(task, place_of.secret, {place_of.key: variable})


def let_long_tasks_be_retried(pipeline: Any) -> None:
    """Lift the hour after whose end, counted from the first start, Argo tries no task again.

    kfp caps `backoff_max_duration` at an hour (kubeflow/pipelines PR 13452); the backend does not.
    """
    for task in pipeline.pipeline_spec.root.dag.tasks.values():
        if task.HasField("retry_policy"):
            task.retry_policy.backoff_max_duration.seconds = _LONGEST_SECONDS


def processes_of(component: str, cluster: ClusterParams) -> int:
    """Return how many processes a task is: one per GPU for upstream training, else one."""
    pool = _pool(component, cluster)
    return pool.count if component == "pretrain" and pool.accelerator == "nvidia.com/gpu" else 1


def _pool(component: str, cluster: ClusterParams) -> PoolParams:
    return cluster.pools[cluster.placement[component]]
