"""Whether what a run talks to is there: images and secrets, KFP's API, MLflow, the bucket."""

from __future__ import annotations

import os
from collections.abc import Iterator
from urllib.parse import urlsplit

from bigtransfer.config import Params
from bigtransfer.errors import BigTransferError
from bigtransfer.kubeflow.kube import Kube
from bigtransfer.kubeflow.look import Look
from bigtransfer.kubeflow.pod_words import part, waiting

_OLDEST_KFP = (2, 3)
_OLDEST_MLFLOW = (3, 10)
_API = "/api/v1/namespaces/kubeflow/services/ml-pipeline:8888/proxy/apis/v2beta1/healthz"


def secrets(cluster: Kube, namespace: str, params: Params | None) -> Iterator[Look]:
    """Say whether the secrets that params.yaml names are there; their contents are not read."""
    if params is None:
        return
    own = params.cluster
    names = [*own.pull_secrets, *(place.secret for place in own.secrets.values())]
    for name in dict.fromkeys(names):
        found = cluster.get(f"/api/v1/namespaces/{namespace}/secrets/{name}")
        if found is None:
            kind = "docker-registry" if name in own.pull_secrets else "generic"
            yield Look(
                "secret",
                False,
                f"{name!r} is not in namespace {namespace!r}, or may not be read\n    to mend it: "
                f"kubectl -n {namespace} create secret {kind} {name} …",
            )
            continue
        keys = {place.key for place in own.secrets.values() if place.secret == name}
        if missing := sorted(keys - set(part(found.get("data")))):
            yield Look(
                "secret",
                False,
                f"{name!r} has no key {', '.join(map(repr, missing))}\n    to mend it: kubectl -n "
                f"{namespace} patch secret {name} …, or cluster.secrets in params.yaml",
            )
        else:
            yield Look("secret", True, f"{name!r} is there")


def images(cluster: Kube, namespace: str) -> Iterator[Look]:
    """Say which images nodes do not get, by the pods that wait for them now."""
    waits = [
        words
        for pod in cluster.items(f"/api/v1/namespaces/{namespace}/pods")
        for words in waiting(pod)
        if "Image" in words
    ]
    for words in dict.fromkeys(waits):
        yield Look(
            "images",
            False,
            f"{words}\n    to mend it: push it, or cluster.image and cluster.pull_secrets in "
            "params.yaml",
        )
    if not waits:
        yield Look("images", True, "no pod waits for one")


def services(cluster: Kube, params: Params | None) -> Iterator[Look]:
    """Say which KFP and which MLflow answer within the cluster, through the API's own proxy."""
    health = cluster.get(_API)
    if health is None:
        yield Look(
            "kfp",
            False,
            "its API does not answer as service ml-pipeline in namespace kubeflow\n    by hand: "
            "kubectl -n kubeflow get pods -l app=ml-pipeline",
        )
    else:
        tag = str(health.get("tag_name") or health.get("tagName") or "")
        known = _version(tag)
        old = known is not None and known < _OLDEST_KFP
        text = f"Kubeflow Pipelines {tag or 'of an untold version'}"
        yield Look("kfp", not old, text + (", older than 2.3: upgrade it" if old else ""))
    uri = params.cluster.tracking_uri if params else None
    if uri is None:
        return
    split = urlsplit(uri)
    name, _, rest = (split.hostname or "").partition(".")
    space = rest.partition(".")[0] or (params.cluster.namespace if params else "")
    if "." in rest.removesuffix(".svc.cluster.local").removesuffix(".svc"):
        yield Look("mlflow", True, f"{uri} is outside of the cluster, and not looked at")
        return
    port = split.port or 80
    base = f"/api/v1/namespaces/{space}/services/{name}:{port}/proxy"
    version = cluster.text(f"{base}/version")
    if not version:
        yield Look(
            "mlflow",
            False,
            f"{uri} does not answer (or a NetworkPolicy keeps the API server away)\n    by hand: "
            f"kubectl -n {space} get pods,endpoints -l "
            "app.kubernetes.io/name=mlflow",
        )
        return
    known = _version(version)
    old = bool(known and known < _OLDEST_MLFLOW)
    yield Look("mlflow", not old, f"MLflow {version}{', older than 3.10: upgrade it' * old}")
    status = cluster.status(f"{base}/api/2.0/mlflow/registered-models/search")
    login = params is not None and any("PASSWORD" in one for one in params.cluster.secrets)
    if status == 200:
        yield Look(
            "login",
            False,
            "MLflow asks nobody who they are: anybody in the cluster moves a champion\n    to mend "
            "it: kubectl apply -k manifests/mlflow",
        )
    elif status != 401:
        yield Look("login", True, "whether MLflow asks for a login cannot be told from here")
    elif not login:
        yield Look(
            "login",
            False,
            "MLflow asks for a login, and cluster.secrets gives tasks none\n    to mend it: "
            "cluster.secrets: MLFLOW_TRACKING_USERNAME, MLFLOW_TRACKING_PASSWORD",
        )
    else:
        yield Look("login", True, "MLflow asks for one, and tasks have one")


def bucket(params: Params | None) -> Iterator[Look]:
    """Try the place of shards and of checkpoints with this machine's own credentials."""
    if params is None:
        return
    places = [params.pretrain.checkpoint_mirror, params.datasets[params.pretrain.dataset].shards_at]
    for address in dict.fromkeys(filter(None, places)):
        if not os.environ.get("AWS_ACCESS_KEY_ID") and not os.environ.get("AWS_PROFILE"):
            yield Look(
                "bucket",
                True,
                f"{address} is not tried: this machine has no credentials (AWS_ACCESS_KEY_ID, …)",
            )
            continue
        from bigtransfer.storage.probe import probe

        try:
            found = probe(address)
        except BigTransferError as error:
            yield Look("bucket", False, f"{address}: {error}")
        else:
            yield Look("bucket", True, f"{address}: {found}")


def _version(text: str) -> tuple[int, int] | None:
    numbers = text.strip().lstrip("v").split(".")
    if len(numbers) < 2 or not (numbers[0].isdigit() and numbers[1].isdigit()):
        return None
    return int(numbers[0]), int(numbers[1])
