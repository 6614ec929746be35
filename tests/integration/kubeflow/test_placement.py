"""What a compiled task asks of a cluster: who it is, where it may write, when it is retried."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from kfp import compiler

from bigtransfer.kubeflow.submission import Submission, submitting
from fixtures.project import PROJECT

pytestmark = pytest.mark.xdist_group("one-dag")


def compiled(folder: Path, **cluster: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the spec of the smallest pipeline, and by task what only Kubernetes knows."""
    from pipelines.dag import build

    with submitting(Submission(changes={"cluster": cluster})):
        pipeline = build("transfer", PROJECT / "pipelines" / "transfer.yaml", pretrained="s3://b/w")
    compiler.Compiler().compile(pipeline, str(folder / "package.yaml"))
    documents = yaml.load_all((folder / "package.yaml").read_text(), yaml.CSafeLoader)
    spec, platform = documents
    boxes = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    return spec, {key.removeprefix("exec-"): box for key, box in boxes.items()}


def test_every_task_is_nobody_and_knows_its_run(tmp_path: Path) -> None:
    spec, boxes = compiled(tmp_path)
    assert len(boxes) == len(spec["deploymentSpec"]["executors"]) == 8
    for box in boxes.values():
        assert box["securityContext"] == {
            "runAsGroup": "65532", "runAsNonRoot": True, "runAsUser": "65532",
        }  # fmt: skip
        (known,) = box["fieldPathAsEnv"]
        assert known == {"name": "KFP_RUN_ID", "fieldPath": "metadata.labels['pipeline/runid']"}
    _, boxes = compiled(tmp_path, run_as=None)
    assert {str(box["securityContext"]) for box in boxes.values()} == {"{'runAsNonRoot': True}"}
    for executor in spec["deploymentSpec"]["executors"].values():
        names = {pair["name"]: pair["value"] for pair in executor["container"]["env"]}
        component = executor["container"]["command"][-1].removeprefix("components.")
        assert names["BIGTRANSFER_STAGE"].partition("@")[0] == component


def test_pauses_do_not_grow_and_are_never_out_of_time(tmp_path: Path) -> None:
    spec, _ = compiled(tmp_path, retries=3)
    for task in spec["root"]["dag"]["tasks"].values():
        policy = task["retryPolicy"]
        assert policy["backoffMaxDuration"] == "7776000s"
        assert (policy["backoffFactor"], policy["backoffDuration"]) == (1.0, "60s")
        assert policy["maxRetryCount"] == 3


def test_room_for_checkpoints_and_secrets_to_pull_images(tmp_path: Path) -> None:
    pools = {"cpu": {"scratch": "50Gi"}}
    _, boxes = compiled(tmp_path, pools=pools, pull_secrets=["registry"])
    for box in boxes.values():
        (room,) = box["emptyDirMounts"]
        assert (room["mountPath"], room["sizeLimit"]) == ("/tmp", "50Gi")
        assert box["imagePullSecret"][0]["secretName"] == "registry"
    _, boxes = compiled(tmp_path, pools={"cpu": {"scratch": "50Gi", "scratch_class": "fast"}})
    (room,) = boxes["finetune"]["genericEphemeralVolume"]
    assert (room["mountPath"], room["size"]) == ("/tmp", "50Gi")
    assert room["storageClassName"] == "fast"


def test_checkpoints_follow_from_what_a_lost_pod_may_cost(tmp_path: Path) -> None:
    import json

    def task(**pool: Any) -> Any:
        spec, _ = compiled(tmp_path, pools={"cpu": pool})
        given = spec["root"]["inputDefinitions"]["parameters"]["task_digits"]["defaultValue"]
        return json.loads(given)

    assert (task()["checkpoint_seconds"], task()["stop_seconds"]) == (300, 0)
    assert task(lost_minutes_allowed=0.5)["checkpoint_seconds"] == 30
    assert task(lost_minutes_allowed=60.0)["checkpoint_seconds"] == 300
    assert task(notice_seconds=2)["stop_seconds"] == 0
    assert task(notice_seconds=8)["stop_seconds"] == 8
    assert task(notice_seconds=100)["stop_seconds"] == 12
