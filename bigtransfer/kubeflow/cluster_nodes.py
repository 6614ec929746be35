"""Whether the nodes of a cluster are those that `cluster.pools` speaks of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod
from typing import Any

from bigtransfer.config import TPU, ClusterParams, Params, PoolParams
from bigtransfer.kubeflow.kube import Kube
from bigtransfer.kubeflow.look import Look
from bigtransfer.kubeflow.pod_words import part

TOPOLOGY = "cloud.google.com/gke-tpu-topology"
_BLOCKING = ("NoSchedule", "NoExecute")


def nodes(cluster: Kube, params: Params | None) -> Iterator[Look]:
    """Say of each pool in use whether nodes have its labels, accelerators and taints."""
    if params is None:
        return
    found = cluster.items("/api/v1/nodes")
    if not found:
        yield Look(
            "nodes", False, "nodes cannot be listed\n    by hand: kubectl get nodes --show-labels"
        )
        return
    for name in dict.fromkeys(params.cluster.placement.values()):
        yield _pool(name, params.cluster.pools[name], params.cluster, found)


def _pool(name: str, pool: PoolParams, cluster: ClusterParams, found: list[dict[str, Any]]) -> Look:
    what = f"pool:{name}"
    if fault := topology_fault(pool, cluster.nodes_of("pretrain")):
        return Look(what, False, f"{fault}\n    to mend it: cluster.pools.{name} in params.yaml")
    fitting = [
        node for node in found
        if pool.selector.items() <= part(part(node.get("metadata")).get("labels")).items()
    ]  # fmt: skip
    if not fitting:
        wanted = ",".join(f"{key}={value}" for key, value in pool.selector.items())
        close = _closest(pool.selector, found)
        return Look(
            what,
            False,
            f"no node has {wanted} (an autoscaler may make some){close}\n    to see them: kubectl "
            f"get nodes -l {wanted}",
        )
    if pool.accelerator is not None:
        have = [
            int(part(part(node.get("status")).get("allocatable")).get(pool.accelerator, 0))
            for node in fitting
        ]
        if max(have) < pool.count:
            return Look(
                what,
                False,
                f"a pod takes {pool.count} {pool.accelerator}, and a node has {max(have)} at most"
                f"\n    to mend it: cluster.pools.{name}.count, or the device plugin: kubectl "
                "describe node | grep -A8 Allocatable",
            )
    refused = [taint for taint in _taints(fitting) if not _tolerated(taint, pool)]
    if refused:
        taint = refused[0]
        return Look(
            what,
            False,
            f"its nodes have the taint {taint['key']}={taint.get('value', '')}:{taint['effect']}, "
            f"which the pool does not tolerate\n    to mend it: cluster.pools.{name}.tolerations: "
            f"[{{key: {taint['key']}, operator: Exists, value: null, effect: {taint['effect']}}}]",
        )
    ready = sum(_is_ready(node) for node in fitting)
    return Look(what, ready > 0, f"{len(fitting)} nodes, {ready} ready")


def topology_fault(pool: PoolParams, hosts: int) -> str | None:
    """Return what is wrong with the topology of a TPU slice, if one is named."""
    topology = pool.selector.get(TOPOLOGY)
    if pool.accelerator != TPU or topology is None:
        return None
    sides = topology.split("x")
    if not all(side.isdigit() and int(side) for side in sides):
        return f"topology {topology!r} is none, e.g. 2x4"
    chips = prod(map(int, sides))
    if chips != pool.count * hosts:
        return f"topology {topology} has {chips} chips, the pods take {hosts} x {pool.count}"
    return None


def _closest(selector: Mapping[str, str], found: list[dict[str, Any]]) -> str:
    """Say what nodes have under the first label that none of them has as it is asked for."""
    for key, value in selector.items():
        known = {part(part(node.get("metadata")).get("labels")).get(key) for node in found}
        if value not in known and (others := sorted(str(one) for one in known if one)):
            return f"; {key} is there as {', '.join(others)}"
    return ""


def _taints(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the taints that all of the nodes have and that keep pods away."""
    each = [
        [t for t in part(node.get("spec")).get("taints") or [] if t.get("effect") in _BLOCKING]
        for node in found
    ]
    return [taint for taint in each[0] if all(taint in others for others in each)]


def _tolerated(taint: Mapping[str, Any], pool: PoolParams) -> bool:
    return any(
        one.key == taint["key"]
        and one.effect == taint["effect"]
        and (one.operator == "Exists" or one.value == taint.get("value"))
        for one in pool.tolerations
    )


def _is_ready(node: Mapping[str, Any]) -> bool:
    conditions = part(node.get("status")).get("conditions") or []
    return any(one.get("type") == "Ready" and one.get("status") == "True" for one in conditions)
