"""`bigtransfer doctor --cluster` names what is planted in a cluster, with what mends it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bigtransfer.command.__main__ import main
from bigtransfer.kubeflow.cluster_rights import NEEDED, TRAIN_JOB
from fixtures.kube_api import KubeApi
from fixtures.project import PROJECT
from fixtures.servers import s3_environment

GKE = PROJECT / "manifests" / "overlays" / "gke" / "params.yaml"
H100 = {"cloud.google.com/gke-accelerator": "nvidia-h100-80gb", "cloud.google.com/gke-spot": "true"}
L4 = {"cloud.google.com/gke-accelerator": "nvidia-l4"}
GPU_TAINT = {"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}
NAMESPACE = "/api/v1/namespaces/kubeflow"
KFP = f"{NAMESPACE}/services/ml-pipeline:8888/proxy/apis/v2beta1/healthz"
MLFLOW = "/api/v1/namespaces/bigtransfer/services/mlflow:5000/proxy"


Plant = Callable[[KubeApi], object]


def node(name: str, labels: dict[str, str], gpus: int = 0, **spec: Any) -> dict[str, Any]:
    return {
        "metadata": {"name": name, "labels": labels}, "spec": spec,
        "status": {"allocatable": {"nvidia.com/gpu": str(gpus)},
                   "conditions": [{"type": "Ready", "status": "True"}]},
    }  # fmt: skip


@pytest.fixture
def sound(kube: KubeApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> KubeApi:
    """A cluster for which manifests/overlays/gke/params.yaml is right, and its project."""
    from ruamel.yaml import YAML

    from bigtransfer.config import laid_over, read_yaml

    monkeypatch.chdir(tmp_path)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    params = read_yaml(PROJECT / "params.yaml")
    for own in (PROJECT / "pipelines" / "bit_l.yaml", GKE):
        params = laid_over(params, read_yaml(own))
    with (tmp_path / "params.yaml").open("w") as file:
        YAML(typ="safe", pure=True).dump(params, file)
    kube.put("configmaps", {"metadata": {"name": "workflow-controller-configmap"}, "data": {
        "workflowDefaults": "spec: {templateDefaults: {retryStrategy: {limit: '0', retryPolicy: "
                            "Always}}}"}})  # fmt: skip
    kube.put("configmaps", {"metadata": {"name": "kfp-launcher"}, "data": {}})
    kube.objects["/api/v1/namespaces/kubeflow"] = {"metadata": {"labels": {}}}
    for name in ("bigtransfer-runs", "bigtransfer-training"):
        kube.put("serviceaccounts", {"metadata": {"name": name}})
    kube.put(
        "secrets", {"metadata": {"name": "bigtransfer-s3"}, "data": {"access": "", "secret": ""}}
    )
    kube.put("secrets", {"metadata": {"name": "bigtransfer-mlflow"},
                         "data": {"username": "", "password": ""}})  # fmt: skip
    kube.granted = {(r.verb, r.resource + (f"/{r.part}" if r.part else "")) for r in NEEDED}
    taints = [GPU_TAINT, {"key": "cloud.google.com/gke-spot", "value": "true",
                          "effect": "NoSchedule"}]  # fmt: skip
    kube.objects["/api/v1/nodes"] = [
        node("h-1", H100, 8, taints=taints), node("l-1", L4, 1, taints=[GPU_TAINT]),
        node("c-1", {}),
    ]  # fmt: skip
    kube.objects[
        "/api/v1/namespaces/kubeflow/services/ml-pipeline:8888/proxy/apis/v2beta1/healthz"
    ] = {"tag_name": "2.17.0"}
    kube.objects[f"{MLFLOW}/version"] = "3.17.2"
    return kube


def doctor(capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as ended:
        main(["doctor", "--cluster"])
    assert not ended.value.code
    return capsys.readouterr().out


def faults(out: str) -> list[str]:
    return [line for line in out.splitlines() if line.startswith("- ")]


def test_a_sound_cluster_has_no_fault(sound: KubeApi, capsys: pytest.CaptureFixture[str]) -> None:
    out = doctor(capsys)
    assert faults(out) == [], out
    assert "bigtransfer-runs may do what a run needs, and no more" in out
    assert "pool:h100  1 nodes, 1 ready" in out
    assert "Kubeflow Pipelines 2.17.0" in out and "MLflow 3.17.2" in out


def _change(**found: Any) -> Plant:
    def plant(kube: KubeApi) -> None:
        for path, value in found.items():
            kube.objects[path] = value

    return plant


def _grant(*more: tuple[str, str], less: tuple[str, str] | None = None) -> Plant:
    def plant(kube: KubeApi) -> None:
        kube.granted = ((kube.granted or set()) | set(more)) - {less}  # type: ignore[arg-type]

    return plant


def _without(path: str) -> Plant:
    return lambda kube: kube.objects.pop(path)


def _nodes(*nodes: dict[str, Any]) -> Plant:
    return _change(**{"/api/v1/nodes": list(nodes)})


OTHER_GPU = {"cloud.google.com/gke-accelerator": "nvidia-a100-80gb",
             "cloud.google.com/gke-spot": "true"}  # fmt: skip
PULLING = {"metadata": {"name": "p"}, "status": {"containerStatuses": [{
    "image": "x.y/bt:1", "state": {"waiting": {"reason": "ImagePullBackOff",
                                               "message": "denied"}}}]}}  # fmt: skip
PLANTED: dict[str, tuple[Plant, str, str]] = {
    "a right that is missing": (
        _grant(less=("create", "jobs")), "bigtransfer-runs may not create jobs",
        "kubectl apply -k manifests/runs",
    ),
    "a right too many": (
        _grant(("list", "secrets"), ("create", "pods/exec")),
        "bigtransfer-runs may also list secrets, create pods/exec, which no run needs",
        "kubectl auth can-i list secrets --as system:serviceaccount:kubeflow:bigtransfer-runs",
    ),
    "an account that is missing": (
        _without(f"{NAMESPACE}/serviceaccounts/bigtransfer-training"),
        "service account 'bigtransfer-training' (cluster.training_account) is not in namespace",
        "kubectl apply -k manifests/runs",
    ),
    "a secret": (
        _without(f"{NAMESPACE}/secrets/bigtransfer-s3"),
        "'bigtransfer-s3' is not in namespace 'kubeflow'", "create secret generic bigtransfer-s3",
    ),
    "a key of a secret": (
        _change(**{f"{NAMESPACE}/secrets/bigtransfer-mlflow": {"data": {"username": ""}}}),
        "'bigtransfer-mlflow' has no key 'password'", "patch secret bigtransfer-mlflow",
    ),
    "an image": (
        _change(**{f"{NAMESPACE}/pods": [PULLING]}), "ImagePullBackOff of x.y/bt:1: denied",
        "cluster.pull_secrets",
    ),
    "a label": (
        _nodes(node("h-1", OTHER_GPU, 8), node("l-1", L4, 1)),
        "is there as nvidia-a100-80gb, nvidia-l4", "kubectl get nodes -l cloud.google.com/gke-",
    ),
    "fewer GPUs": (
        _nodes(node("h-1", H100, 4), node("l-1", L4, 1)),
        "a pod takes 8 nvidia.com/gpu, and a node has 4 at most", "cluster.pools.h100.count",
    ),
    "a taint": (
        _nodes(node("h-1", H100, 8, taints=[{"key": "team", "value": "a", "effect": "NoSchedule"}]),
               node("l-1", L4, 1)),
        "its nodes have the taint team=a:NoSchedule",
        "cluster.pools.h100.tolerations: [{key: team, operator: Exists",
    ),
    "an old KFP": (
        _change(**{KFP:
                   {"tag_name": "2.0.5"}}),
        "Kubeflow Pipelines 2.0.5, older than 2.3", "upgrade it",
    ),
    "no KFP": (
        _without(KFP),
        "its API does not answer", "kubectl -n kubeflow get pods -l app=ml-pipeline",
    ),
    "no MLflow": (
        _without(f"{MLFLOW}/version"), "http://mlflow.bigtransfer:5000 does not answer",
        "kubectl -n bigtransfer get pods,endpoints",
    ),
    "MLflow without a login": (
        _change(**{f"{MLFLOW}/api/2.0/mlflow/registered-models/search": {"registered_models": []}}),
        "MLflow asks nobody who they are", "kubectl apply -k manifests/mlflow",
    ),
    "a quota that is used up": (
        lambda kube: kube.put("resourcequotas", {"metadata": {"name": "q"}, "status": {
            "hard": {"requests.nvidia.com/gpu": "8"}, "used": {"requests.nvidia.com/gpu": "8"}}}),
        "q leaves requests.nvidia.com/gpu 0 of 8", "",
    ),
    "Argo's retries": (
        _without(f"{NAMESPACE}/configmaps/workflow-controller-configmap"),
        "ConfigMap workflow-controller-configmap is not there", "kubectl -n kubeflow get configmap",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PLANTED)
def test_what_is_planted_is_named_with_its_cure(
    name: str, sound: KubeApi, capsys: pytest.CaptureFixture[str]
) -> None:
    plant, words, cure = PLANTED[name]
    plant(sound)
    out = doctor(capsys)
    assert words in out and cure in out, out
    assert faults(out)


def test_who_may_not_ask_is_given_the_command(
    sound: KubeApi, capsys: pytest.CaptureFixture[str]
) -> None:
    sound.granted = None
    assert "kubectl auth can-i --list -n kubeflow --as system:serv" in doctor(capsys)


def test_a_train_job_needs_its_own_rights(
    sound: KubeApi, capsys: pytest.CaptureFixture[str]
) -> None:
    path = Path("params.yaml")
    path.write_text(path.read_text().replace("launcher: auto", "launcher: trainjob"))
    assert "bigtransfer-runs may not create trainjobs" in doctor(capsys)
    assert sound.granted is not None
    sound.granted |= {(r.verb, r.resource) for r in TRAIN_JOB}
    assert faults(doctor(capsys)) == []


@pytest.mark.parametrize(("known", "words"), [(True, "abort and delete work"), (False, "no such")])
def test_the_bucket_is_tried_and_left_as_it_was(
    known: bool, words: str, sound: KubeApi, s3: Any, s3_server: str,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    for name, value in s3_environment(s3_server).items():
        monkeypatch.setenv(name, value)
    if known:
        s3.create_bucket(Bucket="bigtransfer")
    out = doctor(capsys)
    lines = [line for line in out.splitlines() if " bucket " in line]
    assert len(lines) == 2 and all(words in line for line in lines), out
    if known:
        assert "Contents" not in s3.list_objects_v2(Bucket="bigtransfer")
        assert "Uploads" not in s3.list_multipart_uploads(Bucket="bigtransfer")
    assert os.environ["AWS_ENDPOINT_URL"] == s3_server
