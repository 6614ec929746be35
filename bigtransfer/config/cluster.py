"""The section `cluster` of params.yaml: where the tasks of a pipeline run, and on what."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, model_validator

from bigtransfer.config.base import NotNegative, Positive, Rate, Section
from bigtransfer.errors import did_you_mean

PLACED = (
    "materialize", "fetch", "fetch_weights", "validate", "shard", "audit", "pretrain", "finetune",
    "evaluate", "register", "predict", "study_cell", "study_table", "study_check",
)  # fmt: skip
"""Components that run on a cluster; each has a pool."""
_AS_OTHERS = {
    "fetch_weights": "fetch", "predict": "evaluate", "study_cell": "pretrain",
    "study_table": "register", "study_check": "register",
}  # fmt: skip
"""Components that a placement from before them need not name -> whose pool they get."""
LAUNCHED = ("pretrain",)
"""Components that may run on several pods, in a Job that the task waits for."""
FEWEST_IN_PARTS = 100_000
"""Images from which on a dataset is done in parts, where pods are given for it."""
IN_PARTS = ("validate", "shard")
"""Components whose work may be done in parts, each by a pod of a Job; a task joins them."""
_SPOT_RETRIES = 20
_RESERVED = ("KFP_RUN_ID", "KFP_RETRY_INDEX", "BIGTRANSFER_")
GPU, TPU = "nvidia.com/gpu", "google.com/tpu"
"""Accelerators, as Kubernetes calls them."""
Cores = Annotated[str, Field(pattern=r"^[0-9]*\.?[0-9]+m?$")]
Bytes = Annotated[str, Field(pattern=r"^[0-9]+([EPTGMK]i?)?$")]
"""As kfp takes them."""
Dns = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")]
Variable = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
_SECRET_NAME = re.compile(r"SECRET|PASSWORD|PASSWD|TOKEN|CREDENTIAL|ACCESS_KEY|API_KEY", re.I)
_SECRET_TEXT = re.compile(
    r"\bAKIA[0-9A-Z]{16}\b|://[^/\s:@]+:[^/\s@]+@|-----BEGIN [A-Z ]*PRIVATE KEY"
)


def parts_at(bucket: str) -> str:
    """Return where the parts of `validate` meet, given where shards lie."""
    return f"{bucket.rstrip('/')}/parts"


def looks_secret(name: str, value: str) -> bool:
    """Say whether a name or a text is likely a secret; everybody who sees a run reads both."""
    return bool(_SECRET_NAME.search(name) or _SECRET_TEXT.search(value))


class SecretKey(Section):
    """A key of a Kubernetes secret."""

    secret: Dns
    key: Annotated[str, Field(pattern=r"^[-._a-zA-Z0-9]+$")]


class Toleration(Section):
    """A taint that the tasks of a pool tolerate."""

    key: Annotated[str, Field(min_length=1)]
    operator: Literal["Equal", "Exists"]
    value: str | None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"]


class PoolParams(Section):
    """A kind of node, and how much of one a task takes."""

    cpu: Cores
    memory: Bytes
    accelerator: Annotated[str, Field(pattern=r"^[a-z0-9.-]+/[A-Za-z0-9._-]+$")] | None
    count: NotNegative
    selector: dict[str, str]
    tolerations: Annotated[tuple[Toleration, ...], Field(strict=False)]
    shm: Bytes | None
    spot: bool
    scratch: Bytes | None = None
    """Room at /tmp, where checkpoints and unpacked data lie; None: the node's disk, unlimited. This
    and all that follows may be absent: a params.yaml from before keeps working."""
    scratch_class: Dns | None = None
    """Storage class of that room; None: the node's own disk."""
    notice_seconds: NotNegative = 0
    """Between the signal to our process and its end. Kubeflow's launcher leaves none."""
    lost_minutes_allowed: Rate = 5.0
    """Work that a lost pod may cost."""
    tflops: Rate | None = None
    """What one accelerator, or the pool's CPU, sustains in training, 1e12 FLOP/s; None: by its
    name."""
    price_per_hour: Rate | None = None
    """Of one node, in whatever money."""

    @model_validator(mode="after")
    def _possible(self) -> PoolParams:
        if self.scratch_class is not None and self.scratch is None:
            raise ValueError("scratch_class without scratch; say how much room, e.g. scratch: 50Gi")
        if (self.accelerator is None) != (self.count == 0):
            raise ValueError(
                "accelerator and count belong together; null and 0 where there is none"
            )
        return self


class ClusterParams(Section):
    """Kubeflow Pipelines: endpoint, images, pools, secrets (section `cluster`)."""

    endpoint: Annotated[str, Field(pattern=r"^https?://\S+$")] | None
    namespace: Dns
    image: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._/:-]*$")]
    tracking_uri: str | None
    env: dict[Variable, str]
    secrets: dict[Variable, SecretKey]
    pools: dict[Dns, PoolParams]
    placement: dict[str, str]
    timeout_hours: dict[str, Rate]
    """Of one attempt of a component."""
    retries: NotNegative
    pipeline_root: Annotated[str, Field(pattern=r"^(s3|gs|minio)://[^/\s]+(/\S*)?$")] | None = None
    """Where KFP keeps artifacts; None: its own. This and what follows may be absent."""
    service_account: Dns | None = None
    """Of the pods; None: KFP's own."""
    pull_secrets: Annotated[tuple[Dns, ...], Field(strict=False)] = ()
    """Names of the secrets with which images are pulled."""
    run_as: NotNegative | None = 65532
    """User and group of the pods; None: what the namespace gives them (OpenShift's own range)."""
    longest_days: Rate = 30.0
    """A forecast above it is refused."""
    launcher: Literal["auto", "job", "trainjob", "task"] = "auto"
    """What upstream training runs in: an Indexed Job or a TrainJob of its own, for which the task
    waits, or the task's own pod; auto: a Job where shards and checkpoints lie in a bucket."""
    nodes: dict[str, Positive] = {}
    """Pods of a component at once, `pretrain: 8`; each takes what its pool says."""
    parts: dict[str, Positive] = {}
    """Parts in which `validate` and `shard` do a dataset of 100,000 images or more (`examples`),
    `validate: 100`; as many as pods where it is not said. A pod does one part, so a lost one costs
    no more."""
    queue: Dns | None = None
    """Of Kueue, which starts the pods of upstream training together."""
    priority_class: Dns | None = None
    """Of the pods of upstream training."""
    training_account: Dns | None = None
    """Service account of launched pods, without any right; None: the namespace's default."""
    training_runtime: Dns = "torch-distributed"
    """ClusterTrainingRuntime of a TrainJob."""

    def pool_of(self, component: str) -> PoolParams:
        """Return the pool that a component runs on."""
        return self.pools[self.placement.get(component) or self.placement[_AS_OTHERS[component]]]

    def nodes_of(self, component: str) -> int:
        """Return how many pods a component runs on."""
        return self.nodes.get(component, 1)

    def parts_of(self, component: str) -> int:
        """Return in how many parts a component's work is done; 1: it is not parted."""
        if component not in IN_PARTS:
            return 1
        return self.parts.get(component, self.nodes_of(component))

    def attempts_of(self, component: str) -> int:
        """Return how often a component is tried at most, where the cluster does as it is asked."""
        return 1 + (_SPOT_RETRIES if self.pool_of(component).spot else self.retries)

    @model_validator(mode="after")
    def _possible(self) -> ClusterParams:
        for component, pool in self.placement.items():
            if component not in PLACED:
                raise ValueError(
                    f"placement names {component!r}, which is no component on a cluster"
                    f"{did_you_mean(component, PLACED)}"
                )
            if pool not in self.pools:
                raise ValueError(
                    f"placement.{component} is {pool!r}, which 'pools' does not name"
                    f"{did_you_mean(pool, self.pools)}"
                )
        wanted = [name for name in PLACED if name not in _AS_OTHERS]
        if missing := [name for name in wanted if name not in self.placement]:
            raise ValueError(f"placement lacks {', '.join(missing)}")
        for key, named, possible in (
            ("nodes", self.nodes, (*LAUNCHED, *IN_PARTS)), ("parts", self.parts, IN_PARTS),
        ):  # fmt: skip
            for component in named:
                if component not in possible:
                    raise ValueError(
                        f"{key} names {component!r}, which runs on one pod; on several: "
                        f"{', '.join(possible)}"
                    )
        for component, parts in self.parts.items():
            if parts < self.nodes_of(component):
                raise ValueError(
                    f"parts.{component} is {parts}, fewer than nodes.{component}: "
                    f"{self.nodes_of(component)}; a pod does at least one part"
                )
        for component in self.timeout_hours:
            if component not in PLACED:
                raise ValueError(
                    f"timeout_hours names {component!r}, which is no component on a cluster"
                    f"{did_you_mean(component, PLACED)}"
                )
        for name in {**self.env, **self.secrets}:
            if name.startswith(_RESERVED):
                raise ValueError(f"{name} is set by the pipeline itself; leave it out")
        for name, value in {**self.env, "tracking_uri": self.tracking_uri or ""}.items():
            if looks_secret(name, value):
                raise ValueError(
                    f"{name} looks like a secret, and everybody who sees a run reads it; put it "
                    "into a Kubernetes secret and name that under cluster.secrets"
                )
        return self


class LaunchParams(Section):
    """The pods of a launched component: derived from `cluster:`, never typed."""

    launcher: Literal["job", "trainjob"]
    component: str
    image: str
    nodes: Positive
    processes: Positive
    """On each node, by `torchrun`."""
    pool: PoolParams
    env: dict[Variable, str]
    told: dict[Variable, str]
    """Environment of this submission alone."""
    secrets: dict[Variable, SecretKey]
    pull_secrets: Annotated[tuple[Dns, ...], Field(strict=False)]
    run_as: NotNegative | None
    account: Dns | None
    priority_class: Dns | None
    queue: Dns | None
    runtime: Dns
    losses: NotNegative
    """Failures of its own that each node may have."""
    hours: Rate | None
    """In all; None: no limit."""
    grace_seconds: Positive
    """Between the signal to a pod and its end."""
    parts: Positive | None = None
    """Parts of the work, a pod for each, `nodes` at once; None: all pods do one work together."""

    def identity(self) -> dict[str, object]:
        """Return what decides how pods run, without what belongs to one submission alone."""
        # A Job of before, in flight, has no `parts`, and must stay the same.
        left_out = {"told"} if self.parts is not None else {"told", "parts"}
        return self.model_dump(mode="json", exclude=left_out)
