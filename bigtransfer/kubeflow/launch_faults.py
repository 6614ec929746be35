"""What keeps components from running on pods of their own, and where the tasks wait for them."""

from __future__ import annotations

from collections.abc import Iterator

from bigtransfer.config import GPU, IN_PARTS, LAUNCHED, TPU, Params, PoolParams
from bigtransfer.kubeflow.cluster_nodes import topology_fault

WAITER = "register"
"""Component as which a task is placed that waits for pods of its own."""


def parted(params: Params, component: str) -> dict[str, int]:
    """Return dataset -> in how many parts a component does it, of those that are used."""
    used = {params.pretrain.dataset, *(task.dataset for task in params.tasks.values())}
    found = {name: params.parts_of(component, name) for name in params.datasets if name in used}
    return {name: parts for name, parts in found.items() if parts > 1}


def launch_faults(params: Params, components: set[str]) -> Iterator[str]:
    """Yield what keeps a component from running on pods of its own."""
    cluster, recipe = params.cluster, params.pretrain
    for component in (*LAUNCHED, *IN_PARTS):
        nodes = max(cluster.nodes_of(component), cluster.parts_of(component))
        if component in components and cluster.launcher == "task" and nodes > 1:
            yield (
                f"cluster.nodes.{component} is {nodes}, and cluster.launcher is task: a task has "
                f"one pod; give cluster.launcher=job, or cluster.nodes.{component}=1"
            )
    for component in IN_PARTS:
        for name in parted(params, component) if component in components else ():
            if params.datasets[name].shards_at is None:
                yield (
                    f"{component} of dataset {name!r} is done in parts, which meet in a bucket; "
                    f"give data.shards_at=s3://…, or cluster.nodes.{component}=1"
                )
    waits_on = cluster.pool_of(WAITER)
    if params.launches and (waits_on.spot or waits_on.accelerator is not None):
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


def _kind(pool: PoolParams) -> str:
    return "nodes that may vanish" if pool.spot else f"nodes of {pool.accelerator}"
