"""What keeps components from running on pods of their own, and where the tasks wait for them."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from bigtransfer.config import GPU, IN_PARTS, LAUNCHED, TPU, ClusterParams, Params, PoolParams
from bigtransfer.kubeflow.cluster_nodes import topology_fault

WAITER = "register"
"""Component as which a task is placed that waits for pods of its own."""


def parted(params: Params, component: str, components: Collection[str]) -> dict[str, int]:
    """Return dataset -> in how many parts a component does it, of those that a pipeline needs.

    Args:
        params: Of the pipeline.
        component: That may do its work in parts.
        components: That are in the pipeline.
    """
    if component not in components or component not in IN_PARTS:
        return {}
    names = params.datasets_of(upstream="pretrain" in components)
    found = {name: params.parts_of(component, name) for name in names}
    return {name: parts for name, parts in found.items() if parts > 1}


def launch_faults(params: Params, components: set[str]) -> Iterator[str]:
    """Yield what keeps a component from running on pods of its own."""
    cluster, recipe = params.cluster, params.pretrain
    for component in (*LAUNCHED, *IN_PARTS):
        key = "parts" if component in cluster.parts else "nodes"
        count = max(cluster.nodes_of(component), cluster.parts_of(component))
        alone = " and ".join(_alone(cluster, component))
        if component in components and cluster.launcher == "task" and count > 1:
            yield (
                f"cluster.{key}.{component} is {count}, and cluster.launcher is task: a task has "
                f"one pod; give cluster.launcher=job, or {alone}"
            )
        for name in parted(params, component, components):
            if params.datasets[name].shards_at is None:
                yield (
                    f"{component} of dataset {name!r} is done in parts, which meet in a bucket; "
                    f"give data.shards_at=s3://…, or {alone}"
                )
    waits_on = cluster.pool_of(WAITER)
    launches = params.launches(upstream="pretrain" in components)
    if launches and (waits_on.spot or waits_on.accelerator is not None):
        yield (
            "tasks that wait for pods of their own are placed as register is, on "
            f"{_kind(waits_on)}; give cluster.placement.register a pool of CPUs that stay"
        )
    if "pretrain" not in components or params.launcher_of("pretrain") is None:
        return
    nodes, pool = cluster.nodes_of("pretrain"), cluster.pool_of("pretrain")
    for name in dict.fromkeys((recipe.dataset, recipe.probe.dataset)):
        if params.datasets[name].shards_at is None:
            yield (
                f"pretrain runs on pods of its own, which see no shards of dataset {name!r}; give "
                "data.shards_at=s3://…, or cluster.launcher=task"
            )
    if recipe.checkpoint_mirror is None:
        yield (
            "pretrain runs on pods of its own, and what they write would be lost with them; give "
            "pretrain.checkpoint_mirror=s3://…, or cluster.launcher=task"
        )
    if pool.accelerator == TPU and nodes > 1:
        yield (
            "pretrain on TPUs runs on one host: give a slice of one host (cluster.pools.<pool>: "
            "count, cloud.google.com/gke-tpu-topology) and cluster.nodes.pretrain=1"
        )
    if fault := topology_fault(pool, nodes):
        yield f"{fault}: correct cluster.pools.{cluster.placement['pretrain']}"
    processes = nodes * (pool.count if pool.accelerator == GPU else 1)
    if recipe.batch_size % processes:
        yield (
            f"pretrain.batch_size {recipe.batch_size} does not divide by {processes} processes "
            f"({nodes} nodes of {processes // nodes}); give another cluster.nodes.pretrain"
        )


def _alone(cluster: ClusterParams, component: str) -> Iterator[str]:
    """Yield what lets one pod do all."""
    for key, given in (("nodes", cluster.nodes), ("parts", cluster.parts)):
        if component in given:
            yield f"cluster.{key}.{component}=1"


def _kind(pool: PoolParams) -> str:
    return "nodes that may vanish" if pool.spot else f"nodes of {pool.accelerator}"
