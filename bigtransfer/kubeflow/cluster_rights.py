"""What the service accounts of a cluster may do: all that a run needs, and nothing beyond it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from bigtransfer.config import Params
from bigtransfer.kubeflow.kube import Kube
from bigtransfer.kubeflow.look import Look

_REVIEWS = "/apis/authorization.k8s.io/v1/subjectaccessreviews"
_ALL = ("create", "get", "list", "watch", "patch", "delete")
_ROLE = "kubectl apply -k manifests/runs"


@dataclass(frozen=True)
class Right:
    """A verb on a kind of object, perhaps a part of it."""

    verb: str
    group: str
    resource: str
    part: str = ""

    def __str__(self) -> str:
        return f"{self.verb} {self.resource}" + (f"/{self.part}" if self.part else "")


NEEDED = (
    *(Right(verb, "batch", "jobs") for verb in _ALL),
    *(Right(verb, "", "services") for verb in ("create", "get", "delete")),
    Right("get", "", "pods"),
    Right("list", "", "pods"),
    Right("get", "", "pods", "log"),
    Right("list", "", "events"),
)
"""What `components.launch` does."""
TRAIN_JOB = tuple(Right(verb, "trainer.kubeflow.org", "trainjobs") for verb in _ALL)
DANGEROUS = (
    Right("list", "", "secrets"),
    Right("create", "", "secrets"),
    Right("create", "", "pods"),
    Right("create", "", "pods", "exec"),
    Right("create", "rbac.authorization.k8s.io", "rolebindings"),
    Right("create", "", "serviceaccounts", "token"),
    Right("delete", "", "persistentvolumeclaims"),
    Right("impersonate", "", "users"),
)
"""With which a task, or whoever breaks into one, could become somebody else."""


def rights(cluster: Kube, namespace: str, params: Params | None) -> Iterator[Look]:
    """Say whether the accounts of tasks and of launched pods may do what they must and no more."""
    own = params.cluster if params else None
    if own is None or params is None:
        return
    if own.service_account is not None:
        needed = NEEDED if params.launches(upstream=True) else ()
        if params.launcher_of("pretrain") == "trainjob":
            needed = (*needed, *TRAIN_JOB)
        yield from _of(cluster, namespace, own.service_account, needed, "cluster.service_account")
    elif params.launches(upstream=True):
        yield Look(
            "rights",
            False,
            "cluster.service_account is null: KFP's own account may do far more than a run needs"
            f"\n    to mend it: {_ROLE}, then cluster.service_account: bigtransfer-runs",
        )
    if own.training_account is not None:
        yield from _of(cluster, namespace, own.training_account, (), "cluster.training_account")


def _of(
    cluster: Kube, namespace: str, account: str, needed: tuple[Right, ...], key: str
) -> Iterator[Look]:
    if cluster.get(f"/api/v1/namespaces/{namespace}/serviceaccounts/{account}") is None:
        yield Look(
            "rights",
            False,
            f"service account {account!r} ({key}) is not in namespace {namespace!r}, or may not be "
            f"read\n    to mend it: {_ROLE}",
        )
        return
    lacking = [right for right in needed if _may(cluster, namespace, account, right) is False]
    too_many = [right for right in DANGEROUS if _may(cluster, namespace, account, right)]
    if lacking:
        text = f"{account} may not {', '.join(map(str, lacking))}\n    to mend it: {_ROLE}"
        yield Look("rights", False, text)
    if too_many:
        one = too_many[0]
        ask = f"kubectl auth can-i {one.verb} {one.resource}"
        ask += f" --subresource {one.part}" if one.part else ""
        yield Look(
            "rights",
            False,
            f"{account} may also {', '.join(map(str, too_many))}, which no run needs\n    to see "
            f"by which binding: kubectl -n {namespace} get rolebindings -o wide | grep {account}; "
            f"{ask} --as system:serviceaccount:{namespace}:{account}",
        )
    known = _may(cluster, namespace, account, DANGEROUS[0])
    if known is None:
        yield Look(
            "rights",
            False,
            f"what {account} may do cannot be asked with this login\n    by hand: kubectl auth "
            f"can-i --list -n {namespace} --as system:serviceaccount:{namespace}:{account}",
        )
    elif not lacking and not too_many:
        yield Look("rights", True, f"{account} may do what a run needs, and no more")


def _may(cluster: Kube, namespace: str, account: str, right: Right) -> bool | None:
    """Return whether an account has a right; None if that may not be asked."""
    attributes = {
        "namespace": namespace, "verb": right.verb, "group": right.group,
        "resource": right.resource, "subresource": right.part,
    }  # fmt: skip
    found = cluster.post(
        _REVIEWS,
        {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SubjectAccessReview",
            "spec": {
                "user": f"system:serviceaccount:{namespace}:{account}",
                "groups": ["system:serviceaccounts", f"system:serviceaccounts:{namespace}"],
                "resourceAttributes": {key: value for key, value in attributes.items() if value},
            },
        },
    )
    status = (found or {}).get("status")
    return bool(status.get("allowed")) if isinstance(status, dict) else None
