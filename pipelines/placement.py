"""Where tasks run: pools, accelerators, retries, time limits, environment (kfp-kubernetes)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeVar

from kfp import kubernetes
from kfp.dsl.structures import ResourceSpec

from bigtransfer.config import (
    GPU,
    TPU,
    ClusterParams,
    LaunchParams,
    Params,
    PoolParams,
    PretrainParams,
    TaskParams,
)
from bigtransfer.kubeflow.launch_faults import WAITER
from pipelines.containers import KINDS

_Trains = TypeVar("_Trains", PretrainParams, TaskParams)
_TRAINERS = {GPU: "train-gpu", TPU: "train-tpu", None: "train-cpu"}
_PAUSE = "60s"
_LONGEST_SECONDS = 90 * 24 * 3600
_RUN_ID = "metadata.labels['pipeline/runid']"
_WAITER_ATTEMPTS = 21
"""Of a task that waits for weeks and costs nothing: its node is drained now and then."""
_WAITER = ResourceSpec(cpu_request="250m", memory_request="1Gi", memory_limit="1Gi")
_UPLOAD_SECONDS = 60
"""For a last checkpoint on its way to the bucket, beside `stop_seconds`."""
_END_SECONDS = 10
"""From the end of the workers to that of the pod."""
_SECONDS_TO_SAVE = 5
"""A notice shorter than this is not used: half a checkpoint helps nobody."""


def image_of(component: str, cluster: ClusterParams, tag: str) -> str:
    """Return the image of a component, by what its pool's nodes have."""
    target = KINDS[component].target
    if target == "train":
        target = _TRAINERS.get(cluster.pool_of(component).accelerator, "train-gpu")
    return f"{cluster.image}-{target}:{tag}"


def launcher_image(cluster: ClusterParams, tag: str) -> str:
    """Return the image of a task that launches and waits."""
    return f"{cluster.image}-launch:{tag}"


def launch_of(component: str, stage: str, params: Params, tag: str) -> LaunchParams | None:
    """Return the pods on which a component runs beside its task; None: it runs in the task's own.

    Args:
        component: What runs.
        stage: Its name among all.
        params: Of the pipeline.
        tag: Of the images.
    """
    launcher = params.launcher_of(component)
    if launcher is None:
        return None
    grace = round(params.pretrain.stop_seconds) + _UPLOAD_SECONDS + _END_SECONDS
    return _pods(component, stage, params.cluster, tag, launcher, grace)


def parts_of(
    component: str, stage: str, cluster: ClusterParams, tag: str, parts: int
) -> LaunchParams:
    """Return the pods that do a component's work in so many parts; the rest as `launch_of`.

    Always those of a Job, outside of the queue: no pod waits for another, so they need neither
    Trainer's services nor to start together, and the queue is of the accelerators.
    """
    made = _pods(component, stage, cluster, tag, "job", _END_SECONDS)
    return made.model_copy(update={"parts": parts, "queue": None, "priority_class": None})


def _pods(
    component: str, stage: str, cluster: ClusterParams, tag: str,
    launcher: Literal["job", "trainjob"], grace_seconds: int,
) -> LaunchParams:  # fmt: skip
    image = image_of(component, cluster, tag)
    return LaunchParams(
        launcher=launcher,
        component=component,
        image=image,
        nodes=cluster.nodes_of(component),
        processes=processes_of(component, cluster),
        pool=cluster.pool_of(component),
        env=_environment(stage, image, cluster),
        # Not what the submission adds: in the line of a task it would be part of its cache's key.
        told={},
        secrets=cluster.secrets,
        pull_secrets=cluster.pull_secrets,
        run_as=cluster.run_as,
        account=cluster.training_account,
        priority_class=cluster.priority_class,
        queue=cluster.queue,
        runtime=cluster.training_runtime,
        losses=cluster.attempts_of(component) - 1,
        hours=cluster.timeout_hours.get(component),
        grace_seconds=grace_seconds,
    )


def place(
    task: Any,
    component: str,
    stage: str,
    cluster: ClusterParams,
    told: Mapping[str, str],
    *,
    waits: bool = False,
) -> None:
    """Say on what nodes a task runs, what it takes of one, and what becomes of a lost one.

    Args:
        task: Of a pipeline.
        component: What it runs.
        stage: Its name among all.
        cluster: Section of params.yaml.
        told: Environment that the submission adds.
        waits: Whether it only waits for pods that it launched.
    """
    pool = cluster.pool_of(WAITER if waits else component)
    # Not by `set_cpu_request` and its like: each walks the whole call stack and its source files,
    # for an error message that is not needed here (20 ms a call, 13 s for the 134 tasks of vtab).
    container = task.container_spec
    container.resources = (
        _WAITER
        if waits
        else ResourceSpec(
            cpu_request=pool.cpu,
            memory_request=pool.memory,
            memory_limit=pool.memory,
            accelerator_type=pool.accelerator,
            accelerator_count=None if pool.accelerator is None else str(pool.count),
        )
    )
    for key, value in pool.selector.items():
        kubernetes.add_node_selector(task, key, value)
    for taint in pool.tolerations:
        kubernetes.add_toleration(task, taint.key, taint.operator, taint.value or "", taint.effect)
    _mount(task, pool)
    # A namespace under the restricted standard wants it said that nobody is root.
    kubernetes.set_security_context(
        task, run_as_user=cluster.run_as, run_as_group=cluster.run_as, run_as_non_root=True
    )
    if cluster.pull_secrets:
        kubernetes.set_image_pull_secrets(task, list(cluster.pull_secrets))
    hours = cluster.timeout_hours.get(component)
    if hours is not None and not waits:
        kubernetes.set_timeout(task, round(3600 * hours))
    attempts = cluster.attempts_of(component)
    if waits:
        attempts = max(attempts, _WAITER_ATTEMPTS)
    # The pause never grows: with factor 2 the twelfth would be 34 hours.
    task.set_retry(attempts - 1, backoff_duration=_PAUSE, backoff_factor=1.0)
    container.env = {**_environment(stage, container.image, cluster), **told}
    kubernetes.use_field_path_as_env(task, env_name="KFP_RUN_ID", field_path=_RUN_ID)
    for variable, place_of in cluster.secrets.items():
        kubernetes.use_secret_as_env(task, place_of.secret, {place_of.key: variable})


def _environment(stage: str, image: str, cluster: ClusterParams) -> dict[str, str]:
    """Return what every pod of a component sees, whoever submitted it."""
    # The image is named by what it holds, or by a digest; a version that is registered notes it.
    environment = {**cluster.env, "BIGTRANSFER_STAGE": stage, "BIGTRANSFER_IMAGE": image}
    if cluster.tracking_uri is not None:
        environment["MLFLOW_TRACKING_URI"] = cluster.tracking_uri
    return environment


def _mount(task: Any, pool: PoolParams) -> None:
    if pool.shm is not None:
        kubernetes.empty_dir_mount(task, "shm", "/dev/shm", medium="Memory", size_limit=pool.shm)
    if pool.scratch is None:
        return
    if pool.scratch_class is None:
        kubernetes.empty_dir_mount(task, "scratch", "/tmp", size_limit=pool.scratch)
    else:
        kubernetes.add_ephemeral_volume(
            task,
            volume_name="scratch",
            mount_path="/tmp",
            access_modes=["ReadWriteOnce"],
            size=pool.scratch,
            storage_class_name=pool.scratch_class,
        )


def paced(params: _Trains, pool: PoolParams, *, launched: bool = False) -> _Trains:
    """Return a section with the checkpoints that its pool needs.

    A lost pod costs the work since the last one; and where there is no time between the signal and
    the end, nothing is begun on the way out. A launched pod has all of its grace.
    """
    allowed = max(1, round(60 * pool.lost_minutes_allowed))
    seconds = min(params.checkpoint_seconds or allowed, allowed)
    if launched and pool.notice_seconds == 0:
        stop = params.stop_seconds + _UPLOAD_SECONDS
        return params.model_copy(update={"checkpoint_seconds": seconds, "stop_seconds": stop})
    notice = pool.notice_seconds if pool.notice_seconds >= _SECONDS_TO_SAVE else 0
    changes = {"checkpoint_seconds": seconds, "stop_seconds": min(params.stop_seconds, notice)}
    return params.model_copy(update=changes)


def let_long_tasks_be_retried(pipeline: Any) -> None:
    """Lift the hour after whose end, counted from the first start, Argo tries no task again.

    kfp fills in an hour of `backoff_max_duration` where none is given, and takes no more (its PR
    13452); the backend takes what is asked for.
    """
    for task in pipeline.pipeline_spec.root.dag.tasks.values():
        if task.HasField("retry_policy"):
            task.retry_policy.backoff_max_duration.seconds = _LONGEST_SECONDS


def processes_of(component: str, cluster: ClusterParams) -> int:
    """Return how many processes upstream training is: one per GPU; all else is one."""
    pool = cluster.pool_of(component)
    trains = component in ("pretrain", "study_cell")
    return pool.count if trains and pool.accelerator == GPU else 1
