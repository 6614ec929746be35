"""`bigtransfer doctor --cluster`: what a cluster is set to, and what that means for our runs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from copy import deepcopy
from io import StringIO
from typing import Any

from bigtransfer.config import ClusterParams, Params
from bigtransfer.errors import ConfigError
from bigtransfer.kubeflow import kube
from bigtransfer.kubeflow.cluster_nodes import nodes
from bigtransfer.kubeflow.cluster_rights import rights
from bigtransfer.kubeflow.cluster_services import bucket, images, secrets, services
from bigtransfer.kubeflow.kube import Kube
from bigtransfer.kubeflow.look import Look

KUBEFLOW = "kubeflow"
"""Where KFP's own services are; with several users a run's namespace is another one."""
_CONTROLLER = "workflow-controller-configmap"
_LAUNCHER = "kfp-launcher"
_DEFAULTS = "workflowDefaults"
_PATCH = (
    f"kubectl -n {KUBEFLOW} patch configmap {_CONTROLLER} --patch-file "
    "manifests/kubeflow/workflow-controller-patch.yaml"
)
_LEVELS = ("privileged", "baseline", "restricted")
_ENFORCE = "pod-security.kubernetes.io/enforce"
_ROOT = "minio://mlpipeline/v2/artifacts"
"""KFP's own, where `kfp-launcher` names none."""
_SUFFIXES = {
    "m": 1e-3, "": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15,
    "Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40, "Pi": 2.0**50,
}  # fmt: skip
_MEANING = {
    "none": "no templateDefaults (as KFP 2.16): a failed task is retried, wrong input too; a pod "
    "that is deleted ends the run: submit with --wait --resubmit N",
    "on_error": "retryPolicy OnError with a limit (as KFP 2.17): a task that fails is not retried; "
    "a pod that is deleted is retried at every level of the graph, 27 attempts instead of 3",
    "right": 'limit "0", retryPolicy Always: cluster.retries means what it says',
}


def check(namespace: str | None, params: Params | None) -> None:
    """Look at the cluster of the kubeconfig, and say what is found.

    Args:
        namespace: Of the runs; None: what params.yaml says.
        params: Of the project, where there is one.

    Raises:
        ConfigError: If no kubeconfig is at hand; the commands to look by hand are printed.
    """
    cluster = params.cluster if params else None
    namespace = namespace or (cluster.namespace if cluster else KUBEFLOW)
    found, why = kube.at_hand()
    if found is None:
        print("\n".join(by_hand(namespace)))
        raise ConfigError(f"--cluster needs a kubeconfig ({why}); the commands above look by hand")
    print(f"ok  cluster    context {found.context!r}, namespace {namespace!r}")
    looks = [
        retries(found, namespace),
        *launcher(found, namespace, cluster),
        security(found, namespace),
        *quotas(found, namespace),
        *rights(found, namespace, params),
        *secrets(found, namespace, params),
        *images(found, namespace),
        *nodes(found, params),
        *services(found, params),
        *bucket(params),
    ]
    for look in looks:
        print(f"{'ok' if look.good else '-':<3} {look.name:<10} {look.text}")


def by_hand(namespace: str) -> list[str]:
    """Return the commands that show the same without us."""
    return [
        f"kubectl -n {KUBEFLOW} get configmap {_CONTROLLER} -o jsonpath='{{.data}}'",
        f"kubectl -n {namespace} get configmap {_LAUNCHER} -o jsonpath='{{.data}}'",
        f"kubectl get namespace {namespace} --show-labels",
        f"kubectl -n {namespace} describe resourcequota",
    ]


def retries_line(cluster: Kube, namespace: str = KUBEFLOW) -> str | None:
    """Return one line if retries in this cluster mean something else than cluster.retries says.

    None if they mean that, or if it cannot be told.
    """
    form, _ = _retry_form(cluster, namespace)
    if form not in ("none", "on_error"):
        return None
    return (
        f"the Argo controller (context {cluster.context}) has {_MEANING[form]}; see "
        "`bigtransfer doctor --cluster`"
    )


def retries(cluster: Kube, namespace: str) -> Look:
    """Say what a retry of a task means in this cluster."""
    form, shown = _retry_form(cluster, namespace)
    if form == "unread":
        return Look("retries", False, f"{shown}; by hand: {by_hand(namespace)[0]}")
    if form == "right":
        return Look("retries", True, _MEANING[form])
    meaning = _MEANING.get(form, f"{shown} is not known here, nor what retries then mean")
    cure = f"\n    to mend it: {_PATCH}\n    (this runs again every run that is in flight)"
    if lines := _merged(cluster, namespace):
        cure += (
            f"\n    It replaces all of workflowDefaults; with what yours holds besides:\n{lines}"
        )
    return Look("retries", False, meaning + cure)


def _merged(cluster: Kube, namespace: str) -> str:
    """Return the controller's own defaults with our retries, where they hold anything else."""
    defaults = _dict(_yaml((_config_map(cluster, namespace, _CONTROLLER) or {}).get(_DEFAULTS)))
    spec = _dict(defaults.get("spec"))
    template = _dict(spec.get("templateDefaults"))
    rest = [*(set(defaults) - {"spec"}), *(set(spec) - {"templateDefaults"}),
            *(set(template) - {"retryStrategy"})]  # fmt: skip
    if not rest:
        return ""
    right = {**template, "retryStrategy": {"limit": "0", "retryPolicy": "Always"}}
    merged = {**defaults, "spec": {**spec, "templateDefaults": right}}
    return "\n".join(f"      {line}" for line in _written(merged))


def _retry_form(cluster: Kube, namespace: str) -> tuple[str, str]:
    """Return which form of retries the controller has, and how it is written."""
    data = _config_map(cluster, namespace, _CONTROLLER)
    if data is None:
        return "unread", f"ConfigMap {_CONTROLLER} is not there, or may not be read"
    defaults = _yaml(data.get(_DEFAULTS))
    if defaults is None:  # before Argo 2.7 all lay in one key, and it still may
        defaults = _dict(_yaml(data.get("config"))).get(_DEFAULTS)
    if isinstance(defaults, str):
        return "other", f"workflowDefaults {defaults!r}"
    strategy = _dict(_dict(_dict(defaults).get("spec")).get("templateDefaults"))
    strategy = _dict(strategy.get("retryStrategy"))
    limit, policy = str(strategy.get("limit", "")), strategy.get("retryPolicy")
    if not strategy:
        return "none", ""
    if policy == "OnError" and limit != "0":
        return "on_error", ""
    if policy == "Always" and limit == "0":
        return "right", ""
    return "other", f"templateDefaults.retryStrategy {strategy}"


def launcher(cluster: Kube, namespace: str, params: ClusterParams | None) -> Iterator[Look]:
    """Say where results go, and whether a backend without ML Metadata takes them there.

    Everything else that params.yaml names, tasks of ours read with their own credentials.
    """
    data = _config_map(cluster, namespace, _LAUNCHER, elsewhere=False)
    if data is None:
        yield Look("results", False, f"ConfigMap {_LAUNCHER} is not there, or may not be read; by "
                   f"hand: {by_hand(namespace)[1]}")  # fmt: skip
        data = {}
    own = params.pipeline_root if params else None
    default = str(data.get("defaultPipelineRoot") or _ROOT)
    root = f"{own} (cluster.pipeline_root)" if own else default
    yield Look("results", True, f"go to {root}")
    s3 = _dict(_dict(_yaml(data.get("providers"))).get("s3"))
    if own is None:
        return
    if _within(own, default) or _overridden(own, s3):
        yield Look("root", True, "cluster.pipeline_root is accepted")
    else:
        yield Look("root", False, _refused(own, s3, params))


def _refused(root: str, s3: Mapping[str, Any], params: ClusterParams | None) -> str:
    lines = (
        f"{root} is outside of the default root, and without an override\n"
        f"    (a backend without ML Metadata refuses it; 2.16 and 2.17 do not look)"
        f"\n    to mend it, in ConfigMap {_LAUNCHER}, key providers:"
    )
    return f"{lines}\n{provider_lines([root], s3, params)}"


def provider_lines(
    outside: Iterable[str], s3: Mapping[str, Any], params: ClusterParams | None = None
) -> str:
    """Return the YAML to add for buckets, with the endpoint and the keys of the default.

    Overrides without a default are an error of the launcher's, so a missing one is written too.
    """
    default = _dict(s3.get("default"))
    missing = not default
    if missing:
        given = (params.env if params else {}).get("AWS_ENDPOINT_URL", "https://s3.amazonaws.com")
        scheme, _, endpoint = given.partition("://")
        region = (params.env if params else {}).get("AWS_REGION", "us-east-1")
        default = {"endpoint": endpoint, "region": region, "disableSSL": scheme == "http",
                   "credentials": {"fromEnv": True}}  # fmt: skip
    outside = list(outside)
    buckets = sorted({one.partition("://")[2].partition("/")[0] for one in outside})
    if all(one.startswith("gs://") for one in outside):
        own = {"keyPrefix": "", "credentials": {"fromEnv": True}}
        entries = [{"bucketName": one, **own} for one in buckets]
        return "\n".join(f"      {line}" for line in _written({"gs": {"Overrides": entries}}))
    overrides = [{"bucketName": one, "keyPrefix": "", **deepcopy(default)} for one in buckets]
    provider = {**({"default": default} if missing else {}), "Overrides": overrides}
    name = "minio" if all(one.startswith("minio://") for one in outside) else "s3"
    return "\n".join(f"      {line}" for line in _written({name: provider}))


def security(cluster: Kube, namespace: str) -> Look:
    """Say which pods a namespace admits."""
    found = cluster.get(f"/api/v1/namespaces/{namespace}")
    if found is None:
        text = f"namespace {namespace!r} is not there, or may not be read; by hand: "
        return Look("pods", False, text + by_hand(namespace)[2])
    level = str(_dict(_dict(found.get("metadata")).get("labels")).get(_ENFORCE, ""))
    if not level:
        return Look("pods", True, "the namespace enforces no Pod Security")
    known = level in _LEVELS
    admits = "which admits ours" if known else "a level that is not known here"
    return Look("pods", known, f"the namespace enforces Pod Security {level!r}, {admits}")


def quotas(cluster: Kube, namespace: str) -> Iterator[Look]:
    """Say what the quotas of a namespace leave."""
    for quota in cluster.items(f"/api/v1/namespaces/{namespace}/resourcequotas"):
        status = _dict(quota.get("status"))
        used = _dict(status.get("used"))
        parts = [
            (name, _amount(hard) - _amount(used.get(name, 0)), hard)
            for name, hard in _dict(status.get("hard")).items()
        ]
        text = ", ".join(f"{name} {_of(left, str(hard))} of {hard}" for name, left, hard in parts)
        name = _dict(quota.get("metadata")).get("name", "?")
        enough = all(left > 0 for _, left, _ in parts)
        yield Look("quota", enough, f"{name} leaves {text or 'everything'}")


def _amount(quantity: Any) -> float:
    """Return a Kubernetes quantity as a number; one that is not understood is none."""
    text = str(quantity)
    digits = text.rstrip("mkMGTPi")
    try:
        return float(digits) * _SUFFIXES.get(text[len(digits) :], 1.0)
    except ValueError:
        return 0.0


def _of(left: float, hard: str) -> str:
    suffix = hard[len(hard.rstrip("mkMGTPi")) :]
    suffix = "" if suffix == "m" else suffix
    return f"{left / _SUFFIXES.get(suffix, 1.0):.4g}{suffix}"


def _config_map(
    cluster: Kube, namespace: str, name: str, *, elsewhere: bool = True
) -> dict[str, Any] | None:
    """Return the data of a ConfigMap, of the namespace or of KFP's own."""
    for place in dict.fromkeys([namespace, KUBEFLOW] if elsewhere else [namespace]):
        found = cluster.get(f"/api/v1/namespaces/{place}/configmaps/{name}")
        if found is not None:
            return _dict(found.get("data"))
    return None


def _within(address: str, root: str) -> bool:
    root = root.partition("?")[0].rstrip("/")
    return address == root or address.startswith(f"{root}/")


def _overridden(address: str, s3: Mapping[str, Any]) -> bool:
    bucket, _, key = address.partition("://")[2].partition("/")
    entries = s3.get("Overrides") or s3.get("overrides") or []
    for entry in entries if isinstance(entries, list) else []:
        prefix = str(_dict(entry).get("keyPrefix") or "").strip("/")
        if _dict(entry).get("bucketName") == bucket and (
            not prefix or _within(key.strip("/"), prefix)
        ):
            return True
    return False


def _yaml(text: Any) -> Any:
    """Return what a text of YAML holds; the text itself if it is none."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    if not isinstance(text, str):
        return None
    try:
        return YAML(typ="safe", pure=True).load(text)
    except YAMLError:
        return text


def _written(value: Any) -> list[str]:
    from ruamel.yaml import YAML

    writer = YAML(typ="safe", pure=True)
    writer.default_flow_style = False
    writer.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    into = StringIO()
    writer.dump(value, into)
    return into.getvalue().splitlines()


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
