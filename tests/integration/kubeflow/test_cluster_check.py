"""`bigtransfer doctor --cluster`, by the real Kubernetes client against a stand-in of the API."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from bigtransfer.command.__main__ import main
from bigtransfer.kubeflow import kube as kubernetes
from bigtransfer.kubeflow.cluster_check import retries_line
from fixtures.kube_api import CONTEXT, KubeApi
from fixtures.project import PROJECT

ON_ERROR = {
    "workflowDefaults": """
spec:
  templateDefaults:
    retryStrategy: {limit: 2, retryPolicy: OnError}
"""
}
RIGHT = """
spec:
  templateDefaults:
    retryStrategy: {limit: "0", retryPolicy: Always}
"""
PATCH = "--patch-file manifests/kubeflow/workflow-controller-patch.yaml"


def doctor(*words: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["doctor", "--cluster", *words])
    return int(str(ended.value.code or 0))


def controller(kube: KubeApi, data: dict[str, str], namespace: str = "kubeflow") -> None:
    name = "workflow-controller-configmap"
    kube.put("configmaps", {"metadata": {"name": name}, "data": data}, namespace=namespace)


def launcher(kube: KubeApi, data: dict[str, str], namespace: str = "kubeflow") -> None:
    kube.put("configmaps", {"metadata": {"name": "kfp-launcher"}, "data": data},
             namespace=namespace)  # fmt: skip


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is no project."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.usefixtures("nowhere")
@pytest.mark.parametrize(
    ("data", "mark", "text"),
    [
        ({}, "-", "no templateDefaults (as KFP 2.16): a failed task is retried, wrong input too"),
        ({"workflowDefaults": "spec: {podGC: {}}"}, "-", "submit with --wait --resubmit N"),
        (ON_ERROR, "-", "27 attempts instead of 3"),
        ({"workflowDefaults": RIGHT}, "ok", "cluster.retries means what it says"),
        ({"config": "workflowDefaults:" + RIGHT.replace("\n", "\n  ")}, "ok", "Always"),
        (
            {"workflowDefaults": RIGHT.replace("Always", "OnFailure")},
            "-",
            "OnFailure'} is not known",
        ),
        ({"workflowDefaults": "spec: {"}, "-", "workflowDefaults 'spec: {' is not known here"),
    ],
    ids=["empty", "other", "on_error", "right", "config", "unknown", "no yaml"],
)
def test_what_a_retry_means_is_said(
    data: dict[str, str], mark: str, text: str, kube: KubeApi, capsys: pytest.CaptureFixture[str]
) -> None:
    controller(kube, data)
    assert doctor() == 0
    out = capsys.readouterr().out
    (line,) = [line for line in out.splitlines() if " retries " in line]
    assert line.startswith(f"{mark} ")
    assert text in line
    assert (PATCH in out) == (mark == "-")
    assert ("runs again every run that is in flight" in out) == (mark == "-")
    assert f"context '{CONTEXT}', namespace 'kubeflow'" in out


def test_submit_is_given_one_line_where_retries_mean_something_else(kube: KubeApi) -> None:
    found, _ = kubernetes.at_hand()
    assert found is not None
    assert retries_line(found) is None  # nothing can be read
    controller(kube, ON_ERROR)
    line = retries_line(found)
    assert line is not None
    assert "27 attempts" in line
    assert len(line.splitlines()) == 1
    kube.objects.clear()
    controller(kube, {"workflowDefaults": RIGHT})
    assert retries_line(found) is None


@pytest.mark.usefixtures("nowhere")
def test_a_cluster_of_several_users_has_its_controller_elsewhere(
    kube: KubeApi, capsys: pytest.CaptureFixture[str]
) -> None:
    controller(kube, {"workflowDefaults": RIGHT})
    launcher(kube, {"defaultPipelineRoot": "s3://team/a"}, "team-a")
    assert doctor("--namespace", "team-a") == 0
    out = capsys.readouterr().out
    assert "cluster.retries means what it says" in out
    assert "results    go to s3://team/a" in out


PROVIDERS = """
s3:
  default:
    endpoint: minio:9000
    disableSSL: true
    credentials: {fromEnv: false, secretRef: {secretName: s3, accessKeyKey: a, secretKeyKey: b}}
"""


def project(folder: Path, *changes: tuple[str, str]) -> None:
    text = (PROJECT / "params.yaml").read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    (folder / "params.yaml").write_text(text)


def test_a_root_of_ones_own_gets_the_lines_that_let_it_in(
    nowhere: Path, kube: KubeApi, capsys: pytest.CaptureFixture[str]
) -> None:
    project(nowhere, ("pipeline_root: null", "pipeline_root: s3://own/a"),
            ("shards_at: null", "shards_at: s3://elsewhere/shards"))  # fmt: skip
    launcher(kube, {"defaultPipelineRoot": "s3://runs/v2", "providers": PROVIDERS})
    assert doctor() == 0
    out = capsys.readouterr().out
    assert "s3://own/a is outside of the default root, and without an override\n" in out
    assert "elsewhere" not in "".join(line for line in out.splitlines() if "root" in line)
    added = YAML(typ="safe", pure=True).load(
        out.split("key providers:\n")[1].split("\n-   pods")[0]
    )
    (override,) = added["s3"]["Overrides"]
    assert override["bucketName"] == "own"
    assert override["endpoint"] == "minio:9000"
    assert override["credentials"]["secretRef"]["secretName"] == "s3"
    assert "default" not in added["s3"]
    kube.objects.clear()
    kube.objects["/version"] = {"gitVersion": "v1"}
    accepted = PROVIDERS + "  Overrides: [{bucketName: own, keyPrefix: a}]\n"
    launcher(kube, {"defaultPipelineRoot": "s3://runs/v2", "providers": accepted})
    assert doctor() == 0
    assert "root       cluster.pipeline_root is accepted" in capsys.readouterr().out


@pytest.mark.usefixtures("nowhere")
@pytest.mark.parametrize(("level", "mark"), [("restricted", "ok"), ("baseline", "ok"), ("", "ok")])
def test_what_the_namespace_admits_and_what_its_quotas_leave(
    level: str, mark: str, kube: KubeApi, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = {"pod-security.kubernetes.io/enforce": level} if level else {}
    kube.objects["/api/v1/namespaces/kubeflow"] = {"metadata": {"labels": labels}}
    status = {
        "hard": {"requests.cpu": "8", "requests.memory": "16Gi", "pods": "4"},
        "used": {"requests.cpu": "500m", "requests.memory": "512Mi", "pods": "4"},
    }
    kube.put("resourcequotas", {"metadata": {"name": "team"}, "status": status})
    assert doctor() == 0
    out = capsys.readouterr().out
    (line,) = [line for line in out.splitlines() if " pods " in line and "namespace" in line]
    assert line.startswith(f"{mark} ")
    assert (repr(level) if level else "enforces no Pod Security") in line
    left = "requests.cpu 7.5 of 8, requests.memory 15.5Gi of 16Gi, pods 0 of 4"
    assert f"-   quota      team leaves {left}" in out


@pytest.mark.usefixtures("nowhere")
@pytest.mark.parametrize("how", ["none", "broken", "away", "refused"])
def test_without_a_cluster_at_hand_the_commands_are_printed(
    how: str, kube: KubeApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    text = {"none": "no kubeconfig", "broken": "kubeconfig", "away": "does not answer",
            "refused": "403"}[how]  # fmt: skip
    if how == "none":
        monkeypatch.setenv("KUBECONFIG", str(tmp_path / "absent"))
    elif how == "broken":
        (tmp_path / "kubeconfig").write_text("{: : x")
    elif how == "refused":
        kube.forbidden.add("/version")
    else:
        kube.close()
    assert doctor() == 2
    said = capsys.readouterr()
    assert "kubectl -n kubeflow get configmap workflow-controller-configmap" in said.out
    assert "--cluster needs a kubeconfig (" in said.err
    assert text in said.err
    assert len(said.err.splitlines()) == 1


@pytest.mark.usefixtures("nowhere")
def test_what_may_not_be_read_is_said_with_the_command(
    kube: KubeApi, capsys: pytest.CaptureFixture[str]
) -> None:
    assert doctor() == 0
    out = capsys.readouterr().out
    assert "ConfigMap workflow-controller-configmap is not there, or may not be read" in out
    assert "ConfigMap kfp-launcher is not there, or may not be read" in out
    assert "namespace 'kubeflow' is not there, or may not be read" in out


def test_a_namespace_without_a_cluster_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["doctor", "--namespace", "x"])
    assert ended.value.code == 2
    assert "give --cluster with it" in capsys.readouterr().err


@pytest.mark.usefixtures("nowhere")
def test_our_own_patch_is_what_is_right(kube: KubeApi, capsys: pytest.CaptureFixture[str]) -> None:
    text = (PROJECT / "manifests" / "kubeflow" / "workflow-controller-patch.yaml").read_text()
    controller(kube, YAML(typ="safe", pure=True).load(text)["data"])
    assert doctor() == 0
    assert "cluster.retries means what it says" in capsys.readouterr().out


def test_a_login_that_waits_for_somebody_is_not_waited_for(
    kube: KubeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path(os.environ["KUBECONFIG"])
    known = YAML(typ="safe", pure=True).load(path.read_text())
    asking = {"apiVersion": "client.authentication.k8s.io/v1", "command": "sleep", "args": ["3"],
              "interactiveMode": "Never"}  # fmt: skip
    known["users"][0]["user"] = {"exec": asking}
    with path.open("w") as file:
        YAML(typ="safe", pure=True).dump(known, file)
    monkeypatch.setattr(kubernetes, "_OPEN_SECONDS", 0.5)
    found, why = kubernetes.at_hand()
    assert found is None
    assert why == "the login of the kubeconfig took more than 0.5 s"


@pytest.mark.usefixtures("nowhere")
def test_what_the_controller_holds_besides_is_kept_in_what_is_printed(
    kube: KubeApi, capsys: pytest.CaptureFixture[str]
) -> None:
    defaults = {
        "spec": {
            "ttlStrategy": {"secondsAfterCompletion": 60},
            "templateDefaults": {"timeout": "1h", "retryStrategy": {"limit": 2}},
        }
    }
    controller(kube, {"workflowDefaults": json.dumps(defaults)})
    assert doctor() == 0
    out = capsys.readouterr().out
    printed = out.split("with what yours holds besides:\n")[1].split("\nok  ")[0]
    merged = YAML(typ="safe", pure=True).load(printed.split("\n-   ")[0])
    assert merged["spec"]["ttlStrategy"] == {"secondsAfterCompletion": 60}
    assert merged["spec"]["templateDefaults"] == {
        "timeout": "1h", "retryStrategy": {"limit": "0", "retryPolicy": "Always"},
    }  # fmt: skip
