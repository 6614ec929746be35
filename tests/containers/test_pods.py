"""Quickstart's images in pods as Kubeflow Pipelines makes them, and pods that are lost."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from bigtransfer import config
from bigtransfer.kubeflow.image_tag import source_tag
from bigtransfer.storage.volumes import MOST_FILES
from containers.kfp_pod import ROOT, executor_input, files_in, local, run_task
from fixtures.project import PROJECT
from fixtures.servers import s3_environment

pytestmark = pytest.mark.skipif(
    not os.environ.get("BIGTRANSFER_IMAGES"),
    reason="needs the container images; `.ci/containers` builds and tests them",
)
RUN = "5f2c"
PARAMS = config.load(PROJECT / "params.yaml")
CHECKPOINT_SECONDS = 2


def image(target: str) -> str:
    return f"bigtransfer-{target}:{source_tag(PROJECT)}"


class Pods:
    """Tasks of one run, each in a pod of its own; what they hand on lies on a disk."""

    def __init__(self, disk: Path) -> None:
        self.disk = disk
        disk.mkdir(mode=0o777)
        disk.chmod(0o777)

    def line(
        self, component: str, section: str, inputs: dict[str, str], outputs: dict[str, str]
    ) -> list[str]:
        """Return a component's line as a compiled package has it."""
        base = f"{ROOT}/quickstart/{RUN}"
        paths = {flag: local(f"{base}/{place}") for flag, place in inputs.items()}
        given = executor_input(component, {k: Path(v) for k, v in paths.items()}, outputs, RUN)
        line = ["python", "-m", f"components.{component}", "--params-json", section]
        for flag, path in paths.items():
            line += [f"--{flag}", path]
        for flag in outputs:
            line += [f"--{flag}", local(f"{base}/{component}/{flag}")]
        return [*line, "--executor-input", given]

    def place(self, name: str) -> Path:
        return self.disk / "mlpipeline" / "v2" / "artifacts" / "quickstart" / RUN / name

    def run(self, target: str, *of_line: Any) -> None:
        done = run_task(image(target), self.disk, self.line(*of_line))
        assert done.returncode == 0, done.stdout + done.stderr
        first = (done.stdout + done.stderr).splitlines()[0]
        assert "Warning" not in first and "uid" not in first, first


@pytest.fixture(scope="module")
def pods(tmp_path_factory: pytest.TempPathFactory) -> Pods:
    """Data drawn, validated and packed by pods."""
    base = tmp_path_factory.mktemp("pods")
    for parent in (base, *base.parents):
        if parent.name.startswith("pytest-"):
            parent.chmod(0o755)  # the images' user is not ours
    base.chmod(0o755)
    made = Pods(base / "disk")
    drawn = dict.fromkeys(("upstream", "digits", "alphabets"), "Dataset")
    made.run("demo", "materialize", PARAMS.materialize.model_dump_json(), {}, drawn)
    section = PARAMS.datasets["digits"].model_dump_json()
    data = {"dataset": "materialize/digits"}
    made.run("data", "validate", section, data, {"manifest": "Dataset", "validation": "Dataset"})
    both = {**data, "manifest": "validate/manifest"}
    made.run("data", "shard", section, both, {"shards": "Dataset"})
    return made


def test_no_artifact_has_many_files(pods: Pods) -> None:
    counted = {
        str(path.relative_to(pods.place("."))): files_in(path)
        for task in ("materialize", "validate", "shard")
        for path in pods.place(task).iterdir()
    }
    assert set(counted) >= {"materialize/upstream", "materialize/digits", "shard/shards"}
    assert max(counted.values()) <= MOST_FILES, counted
    said = json.loads((pods.place("materialize") / "executor_output.json").read_text())
    assert len(said["artifacts"]["digits"]["artifacts"][0]["metadata"]["digest"]) == 64


def pretrain(pods: Pods, mirror: str) -> list[str]:
    changes = {
        "dataset": "digits", "threads": 1, "epochs": 24, "warmup_steps": 5, "decay_epochs": (),
        "evaluation_steps": 100_000, "checkpoint_steps": None, "stop_seconds": 0,
        "checkpoint_seconds": CHECKPOINT_SECONDS, "checkpoint_mirror": mirror,
        "probe": PARAMS.pretrain.probe.model_copy(update={"examples_per_class": ()}),
    }  # fmt: skip
    section = PARAMS.pretrain.model_copy(update=changes).model_dump_json()
    shards = {"shards": "shard/shards", "probe": "shard/shards"}
    outputs = {"checkpoint": "Model", "metrics": "Metrics", "history": "Dataset"}
    return pods.line("pretrain", section, shards, outputs)


@pytest.fixture
def bucket(s3: Any, s3_server: str) -> Iterator[dict[str, str]]:
    """What leads a pod to S3."""
    yield {**s3_environment(s3_server), "KFP_RUN_ID": RUN, "BIGTRANSFER_STAGE": "pretrain"}


def all_keys(s3: Any) -> list[str]:
    return [o["Key"] for o in s3.list_objects_v2(Bucket="photos").get("Contents", [])]


def checkpoints(s3: Any) -> dict[str, datetime]:
    """Return the complete checkpoints in the bucket, and when each was."""
    listed = s3.list_objects_v2(Bucket="photos").get("Contents", [])
    return {o["Key"]: o["LastModified"] for o in listed if o["Key"].endswith("MANIFEST.json")}


def wait_for_two(s3: Any, name: str) -> None:
    deadline = time.monotonic() + 120
    while len(checkpoints(s3)) < 2:
        assert time.monotonic() < deadline, subprocess.getoutput(f"docker logs {name}")
        time.sleep(0.1)


@pytest.mark.parametrize("launcher", ["same", "setsid"])
def test_a_pod_whose_launcher_dies_at_once_costs_a_checkpoints_time(
    launcher: str, pods: Pods, s3: Any, bucket: dict[str, str]
) -> None:
    name, line = f"lost-{launcher}", pretrain(pods, "s3://photos/mirror")
    run_task(image("train-cpu"), pods.disk, line, name=name, launcher=launcher,
             environment=bucket, detach=True)  # fmt: skip
    wait_for_two(s3, name)
    time.sleep(1)
    began = time.monotonic()
    subprocess.run(["docker", "kill", "--signal", "TERM", name], check=True, capture_output=True)
    subprocess.run(["docker", "wait", name], check=True, capture_output=True)
    assert time.monotonic() - began < 3
    ended, newest = datetime.now(UTC), max(checkpoints(s3).values())
    subprocess.run(["docker", "rm", "--force", name], check=True, capture_output=True)
    # S3 tells whole seconds; one more for the upload.
    assert (ended - newest).total_seconds() <= CHECKPOINT_SECONDS + 2
    half = half_of(s3)
    s3.put_object(Bucket="photos", Key=f"{half}/meta.json", Body=b"{}")

    again = run_task(image("train-cpu"), pods.disk, line, launcher=launcher, environment=bucket)
    assert again.returncode == 0, again.stdout + again.stderr
    said = again.stdout + again.stderr
    assert re.search(r"step-\d+ came from s3://photos/mirror", said), said
    kept = checkpoints(s3)
    assert len(kept) == 1, "the launcher may still lose what is written: the last one stays"
    assert not [key for key in all_keys(s3) if key.startswith(half)], "half a checkpoint is gone"


def half_of(s3: Any) -> str:
    """Return the name of a checkpoint that a lost pod began to send."""
    newest = max(checkpoints(s3))
    folder = newest.rpartition("/")[0]
    return f"{folder.rpartition('/')[0]}/step-00999999"
