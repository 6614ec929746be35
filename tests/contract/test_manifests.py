"""Every overlay renders and would be admitted; so would the pods of our packages."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import yaml

from bigtransfer import config
from bigtransfer.kubeflow.preflight import refuse_impossible, refuse_too_long
from fixtures.project import PROJECT
from fixtures.schemas import faults_of

MANIFESTS = PROJECT / "manifests"
OVERLAYS = sorted(path.parent.name for path in MANIFESTS.glob("overlays/*/kustomization.yaml"))
RENDERED = [f"overlays/{name}" for name in OVERLAYS] + ["base", "runs", "mlflow", "serving"]
PACKAGES = sorted(path.name for path in PROJECT.glob("pipelines/*.kfp.yaml"))
PIPELINES = {"gke": "bit_l", "eks": "bit_l", "kind": "quickstart"}
ALL = {"fetch", "validate", "shard", "audit", "pretrain", "finetune", "evaluate", "register"}


def rendered(folder: str) -> list[dict[str, Any]]:
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("kubectl is not here: manifests are not rendered")
    done = subprocess.run(
        [kubectl, "kustomize", str(MANIFESTS / folder)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return [one for one in yaml.safe_load_all(done.stdout) if one]


def named(things: list[dict[str, Any]], kind: str, name: str) -> dict[str, Any]:
    (found,) = [t for t in things if (t["kind"], t["metadata"]["name"]) == (kind, name)]
    return found


@pytest.mark.parametrize("folder", RENDERED)
def test_what_is_rendered_would_be_admitted(folder: str) -> None:
    things = rendered(folder)
    faults = {
        f"{one['kind']} {one['metadata']['name']}": found
        for one in things
        if (found := faults_of(one))
    }
    assert faults == {}
    keys = [(t["kind"], t["metadata"].get("namespace"), t["metadata"]["name"]) for t in things]
    assert len(set(keys)) == len(keys)
    images = set(re.findall(r"image: '?([\w./:-]+)", yaml.safe_dump(things)))
    assert all("/" in image and ":" in image for image in images), images


@pytest.mark.parametrize("name", OVERLAYS)
def test_what_an_overlay_names_is_in_it(name: str) -> None:
    things = rendered(f"overlays/{name}")
    accounts = {
        (one["metadata"]["namespace"], one["metadata"]["name"])
        for one in things
        if one["kind"] == "ServiceAccount"
    }
    for one in things:
        own = one["metadata"].get("namespace")
        if one["kind"] == "Deployment":
            pod = one["spec"]["template"]["spec"]
            assert (own, pod["serviceAccountName"]) in accounts
            assert pod["automountServiceAccountToken"] is False
            labels = one["spec"]["template"]["metadata"]["labels"]
            policies = [
                p for p in things
                if p["kind"] == "NetworkPolicy" and p["metadata"]["namespace"] == own
                and p["spec"]["podSelector"].get("matchLabels")
                and p["spec"]["podSelector"]["matchLabels"].items() <= labels.items()
            ]  # fmt: skip
            assert policies, f"nothing lets {one['metadata']['name']} out"
        if one["kind"] == "RoleBinding":
            roles = {t["metadata"]["name"] for t in things if t["kind"] == "Role"}
            assert one["roleRef"]["name"] in roles
            assert all((own, who["name"]) in accounts for who in one["subjects"])
        assert one["kind"] != "PersistentVolumeClaim"
        assert one["kind"] not in ("ClusterRole", "ClusterRoleBinding"), "least privilege"
        assert "Secret" != one["kind"], "secrets are named, never in here"


def test_a_role_grants_no_more_than_the_launcher_does() -> None:
    role = named(rendered("runs"), "Role", "bigtransfer-launch")
    granted = {(kind, verb) for rule in role["rules"] for kind in rule["resources"]
               for verb in rule["verbs"]}  # fmt: skip
    assert not {verb for _, verb in granted} & {"*", "update", "deletecollection", "impersonate"}
    assert {kind for kind, verb in granted if verb in ("create", "patch", "delete")} == {
        "jobs", "trainjobs", "services", "workflowtaskresults",
    }  # fmt: skip
    for rule in role["rules"]:
        if set(rule["resources"]) & {"secrets", "configmaps"}:
            assert rule["resourceNames"], "one by name, never all"


@pytest.mark.parametrize("name", OVERLAYS)
def test_an_overlays_params_are_accepted_for_its_pipeline(name: str) -> None:
    own = config.read_yaml(MANIFESTS / "overlays" / name / "params.yaml")
    pipeline = PROJECT / "pipelines" / f"{PIPELINES[name]}.yaml"
    params = config.load(PROJECT / "params.yaml", pipeline if pipeline.is_file() else None, own)
    refuse_impossible(params, ALL)
    refuse_too_long(params, ALL)
    accounts = {
        one["metadata"]["name"]
        for one in rendered(f"overlays/{name}")
        if one["kind"] == "ServiceAccount" and one["metadata"]["namespace"] == "kubeflow"
    }
    assert {params.cluster.service_account, params.cluster.training_account} <= accounts
    queues = {o["metadata"]["name"] for o in rendered(f"overlays/{name}")
              if o["kind"] == "LocalQueue"}  # fmt: skip
    assert params.cluster.queue is None or params.cluster.queue in queues


def test_other_pods_may_name_the_server_and_nobody_else() -> None:
    server = named(rendered("mlflow"), "Deployment", "mlflow")
    (box,) = server["spec"]["template"]["spec"]["containers"]
    (given,) = [e["value"] for e in box["env"] if e["name"] == "MLFLOW_SERVER_ALLOWED_HOSTS"]
    allowed = given.split(",")
    for host in ("mlflow:5000", "mlflow.bigtransfer:5000", "mlflow.bigtransfer.svc:5000",
                 "mlflow.bigtransfer.svc.cluster.local:5000", "localhost:5000"):  # fmt: skip
        assert any(fnmatch(host, one) for one in allowed), host
    for host in ("mlflow.evil:5000", "evil.example", "mlflow.bigtransfer.evil.example:5000"):
        assert not any(fnmatch(host, one) for one in allowed), host


def pods_of(package: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield a pod for each task of a compiled package, as KFP's driver makes it of the package."""
    text = (PROJECT / "pipelines" / package).read_text()
    spec, *rest = yaml.load_all(text, yaml.CSafeLoader)
    platform = rest[0]["platforms"]["kubernetes"]["deploymentSpec"]["executors"] if rest else {}
    for label, executor in spec["deploymentSpec"]["executors"].items():
        if "container" in executor:
            yield label, _pod(label, executor["container"], platform.get(label, {}))


def _pod(label: str, container: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    resources = container.get("resources", {})
    limits = {"memory": resources["resourceMemoryLimit"]}
    requests = {
        "cpu": resources["resourceCpuRequest"],
        "memory": resources["resourceMemoryRequest"],
    }
    if accelerator := resources.get("accelerator"):
        limits[accelerator["resourceType"]] = accelerator["resourceCount"]
    user = own["securityContext"]
    mounts = own.get("emptyDirMounts", [])
    return {
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": label},
        "spec": {
            "restartPolicy": "Never",
            "nodeSelector": own.get("nodeSelector", {}).get("labels", {}),
            "tolerations": [
                {k: v for k, v in one.items() if v} for one in own.get("tolerations", [])
            ],
            "containers": [{
                "name": "main", "image": container["image"], "command": container["command"],
                "env": container.get("env", []),
                "resources": {"requests": requests, "limits": limits},
                "volumeMounts": [
                    {"name": m["volumeName"], "mountPath": m["mountPath"]} for m in mounts
                ],
                # What KFP 2.17 sets by itself; a read-only root is not among it.
                "securityContext": {
                    "runAsUser": int(user["runAsUser"]), "runAsNonRoot": user["runAsNonRoot"],
                    "allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]},
                    "seccompProfile": {"type": "RuntimeDefault"},
                },
            }],
            "volumes": [{"name": m["volumeName"], "emptyDir": {}} for m in mounts],
        },
    }  # fmt: skip


@pytest.mark.parametrize("package", PACKAGES)
def test_the_pods_of_a_package_would_be_admitted(package: str) -> None:
    pods = list(pods_of(package))
    assert pods
    for label, pod in pods:
        faults = [one for one in faults_of(pod) if "readOnlyRootFilesystem" not in one]
        assert faults == [], label


def test_no_manifest_is_named_that_is_not_there() -> None:
    pages = [*PROJECT.glob("docs/guide/*.md"), *PROJECT.glob("manifests/**/*.md"),
             *PROJECT.glob("bigtransfer/kubeflow/*.py")]  # fmt: skip
    for page in pages:
        for found in re.findall(r"manifests/[\w./-]*[\w]", page.read_text("utf-8")):
            assert Path(PROJECT / found).exists(), f"{page.name} names {found}"
