"""Upstream training in two pods, and a dataset in parts, as a Job makes them: containers with their
names, user and root.

The Job is the launcher's own, accepted by the stand-in of a cluster; a kubelet of some lines runs
its pods by Docker, and makes both anew where one is lost, as the Job's controller does.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bigtransfer import config
from bigtransfer.kubeflow.image_tag import source_tag
from bigtransfer.storage.pointer import POINTER, pointed_to
from fixtures.cluster_api import ClusterApi
from fixtures.launches import pods_of
from fixtures.project import PROJECT, environment
from fixtures.servers import moto, s3_environment

pytestmark = pytest.mark.skipif(
    not os.environ.get("BIGTRANSFER_IMAGES"),
    reason="needs the container images; `.ci/containers` builds and tests them",
)
NETWORK = "bigtransfer-launched"
IMAGE = f"bigtransfer-train-cpu:{source_tag(PROJECT)}"
STEPS = 100
POOL = {"cpu": "1", "memory": "2Gi", "accelerator": None, "count": 0, "selector": {},
        "tolerations": [], "shm": None, "spot": False}  # fmt: skip


def docker(*words: str, check: bool = True) -> str:
    done = subprocess.run(["docker", *words], capture_output=True, text=True, check=check)
    return done.stdout.strip()


@pytest.fixture(scope="module")
def gateway() -> Iterator[str]:
    """The address of this machine on a network of its own, with names."""
    docker("network", "create", NETWORK)
    (facts,) = json.loads(docker("network", "inspect", NETWORK))
    yield facts["IPAM"]["Config"][0]["Gateway"]
    docker("network", "rm", NETWORK, check=False)


@pytest.fixture(scope="module")
def bucket(gateway: str) -> Iterator[dict[str, str]]:
    """S3 that this machine and the containers reach alike, with packed digits in it."""
    with moto("0.0.0.0") as here:
        port = here.rpartition(":")[2]
        given = s3_environment(f"http://{gateway}:{port}")
        import boto3

        client = boto3.client(
            "s3", endpoint_url=given["AWS_ENDPOINT_URL"], region_name="us-east-1",
            aws_access_key_id="x", aws_secret_access_key="x",
        )  # fmt: skip
        client.create_bucket(Bucket="launched")
        yield given


@pytest.fixture(scope="module")
def shards(bucket: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pointer to shards of digits that `shard` packed into the bucket."""
    folder = tmp_path_factory.mktemp("launched")
    params = config.load(PROJECT / "params.yaml")
    digits = params.datasets["digits"].model_copy(update={"shards_at": "s3://launched/shards"})
    lines = [
        ["materialize", params.materialize.model_dump_json(), "--upstream", "u", "--digits", "d",
         "--alphabets", "a"],
        ["validate", digits.model_dump_json(), "--dataset", "d", "--manifest", "m.parquet",
         "--validation", "v"],
        ["shard", digits.model_dump_json(), "--dataset", "d", "--manifest", "m.parquet",
         "--shards", "shards"],
    ]  # fmt: skip
    for name, section, *flags in lines:
        subprocess.run(
            [sys.executable, "-m", f"components.{name}", "--params-json", section, *flags],
            cwd=folder, env={**environment(), **bucket, "PYTHONPATH": str(PROJECT)}, check=True,
        )  # fmt: skip
    assert (folder / "shards" / POINTER).is_file()
    return folder / "shards"


class Kubelet:
    """Runs the pods of a Job by Docker, and tells the cluster how they are."""

    def __init__(self, cluster: ClusterApi, bucket: dict[str, str]) -> None:
        self.cluster, self.bucket = cluster, bucket
        self.attempt = 0
        self.codes: dict[int, list[int]] = {}
        """Of the pods of each index, in order."""
        self.seconds: list[float] = []
        """Until a pod was lost, and from then to the end."""
        self.logs: list[str] = []

    def run(self, lose: int | None = None) -> None:
        """Run a Job to its end; `lose` is a pod that is killed once, after a checkpoint."""
        job = self.cluster.wait_for("jobs")
        began = time.monotonic()
        names = {index: self._start(job, index) for index in range(job["spec"]["completions"])}
        if lose is not None:
            self._lose(job, names[lose])
            self._end(job, lose, names.pop(lose))
            self.seconds.append(time.monotonic() - began)
            began = time.monotonic()
            self.attempt = 1
            names[lose] = self._start(job, lose)
        for index, name in sorted(names.items()):
            self._end(job, index, name)
        self.seconds.append(time.monotonic() - began)
        if all(codes[-1] == 0 for codes in self.codes.values()):
            return self.cluster.finish(job)
        self.cluster.fail(job, "PodFailurePolicy", "")

    def _end(self, job: dict[str, Any], index: int, name: str) -> None:
        """Wait until a pod has ended, and tell the cluster how."""
        code = int(docker("wait", name))
        self.codes.setdefault(index, []).append(code)
        log = subprocess.run(["docker", "logs", name], capture_output=True, text=True)
        self.logs.append(log.stdout + log.stderr)
        self.cluster.logs[name] = self.logs[-1]
        self.cluster.ended(job, index, code, self.attempt if code == 137 else 0)
        docker("rm", "--force", name)

    def _start(self, job: dict[str, Any], index: int) -> str:
        """Run a pod as the kubelet would: its name, environment, user, root, mounts."""
        name = job["metadata"]["name"]
        spec = job["spec"]["template"]["spec"]
        (box,) = spec["containers"]
        user, own = spec["securityContext"]["runAsUser"], box["securityContext"]
        assert own["readOnlyRootFilesystem"] and own["capabilities"] == {"drop": ["ALL"]}
        flags = ["--detach", "--name", f"{name}-{index}-{self.attempt}", "--network", NETWORK,
                 "--hostname", f"{name}-{index}", "--network-alias", f"{name}-{index}.{name}",
                 "--user", f"{user}:{user}", "--read-only", "--cap-drop", "ALL",
                 "--security-opt", "no-new-privileges", "--stop-timeout",
                 str(spec["terminationGracePeriodSeconds"]),
                 "-e", f"JOB_COMPLETION_INDEX={index}"]  # fmt: skip
        for mount in box["volumeMounts"]:
            flags += ["--tmpfs", f"{mount['mountPath']}:mode=1777,exec"]
        known = {one["name"]: one["value"] for one in box["env"] if "value" in one}
        for key, value in {**known, **self.bucket}.items():
            flags += ["-e", f"{key}={value}"]
        (python, *command), args = box["command"], box["args"]
        docker("run", *flags, "--entrypoint", python, box["image"], *command, *args)
        self.cluster.pod(job, index, self.attempt, phase="Running")
        return f"{name}-{index}-{self.attempt}"

    def _lose(self, job: dict[str, Any], name: str) -> None:
        """Kill a pod once a checkpoint of the training is in the bucket."""
        import boto3

        s3 = boto3.client("s3", endpoint_url=self.bucket["AWS_ENDPOINT_URL"],
                          region_name="us-east-1", aws_access_key_id="x",
                          aws_secret_access_key="x")  # fmt: skip
        deadline = time.monotonic() + 120
        while not any(
            one["Key"].endswith("MANIFEST.json")
            for one in s3.list_objects_v2(Bucket="launched", Prefix="lost/").get("Contents", [])
            if "/launched/" not in one["Key"]
        ):
            assert time.monotonic() < deadline, docker("logs", name, check=False)
            time.sleep(0.05)
        docker("kill", "--signal", "KILL", name)


def pretrained(
    folder: Path,
    mirror: str,
    shards: Path,
    bucket: dict[str, str],
    lose: int | None,
    **changed: Any,
) -> tuple[Kubelet, subprocess.CompletedProcess[str]]:
    """Run the task `pretrain` of a pipeline; its pods are containers."""
    cluster = ClusterApi()
    folder.mkdir()
    params = config.load(PROJECT / "params.yaml").pretrain
    _, digest = pointed_to(shards) or ("", "")
    assert digest
    changes = {
        "dataset": "digits", "threads": 1, "epochs": STEPS * 32 / 539, "warmup_steps": 5,
        "decay_epochs": (3.0,), "evaluation_steps": 100_000, "checkpoint_steps": 20,
        "checkpoint_seconds": None, "checkpoint_mirror": f"s3://launched/{mirror}",
        "probe": params.probe.model_copy(update={"dataset": "digits", "examples_per_class": ()}),
        **changed,
    }  # fmt: skip
    section = params.model_copy(update=changes).model_dump_json()
    pods = pods_of(
        nodes=2, processes=1, pool=POOL, image=IMAGE, queue=None, env={}, secrets={}, losses=2
    )
    line = [sys.executable, "-m", "components.launch", "--pods", pods.model_dump_json(), "--",
            "python", "-m", "components.pretrain", "--params-json", section, "--shards",
            str(shards), "--probe", str(shards), "--checkpoint", str(folder / "checkpoint"),
            "--metrics", str(folder / "metrics"), "--history", str(folder / "history")]  # fmt: skip
    kubelet = Kubelet(cluster, bucket)
    thread = threading.Thread(target=kubelet.run, args=(lose,), daemon=True)
    thread.start()
    given = {**environment(), **bucket, "PYTHONPATH": str(PROJECT), "KFP_RUN_ID": "run-9",
             "KUBECONFIG": str(cluster.kubeconfig(folder / "kubeconfig"))}  # fmt: skip
    done = subprocess.run(
        line, cwd=folder, env=given, capture_output=True, text=True, timeout=400, check=False
    )
    thread.join(60)
    cluster.close()
    return kubelet, done


def weights(folder: Path) -> str:
    return hashlib.sha256((folder / "checkpoint" / "weights.safetensors").read_bytes()).hexdigest()


def test_a_lost_pod_costs_the_steps_since_its_checkpoint_and_no_bit(
    shards: Path, bucket: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, done = pretrained(tmp_path / "whole", "whole", shards, bucket, None)
    assert done.returncode == 0, done.stderr + "\n".join(whole.logs)
    assert whole.codes == {0: [0], 1: [0]}
    assert json.loads((tmp_path / "whole" / "metrics").read_text())["steps"] == STEPS

    lost, done = pretrained(tmp_path / "lost", "lost", shards, bucket, 1)
    assert done.returncode == 0, done.stderr + "\n".join(lost.logs)
    assert lost.codes == {0: [0], 1: [137, 0]}, "the survivor's pod stays"
    survivor = next(log for log in lost.logs if "node 0: " in log)
    assert "node 0: another node is lost" in survivor
    assert re.search(r"resuming at step \d+", survivor), survivor
    assert "pod 1 on node-1 ended: " in done.stderr
    assert weights(tmp_path / "lost") == weights(tmp_path / "whole")
    first, (before, after) = whole.seconds[0], lost.seconds
    with capsys.disabled():  # for the log of the container stage
        print(
            f"\n{STEPS} steps in two containers: {first:.1f} s; one killed after its first "
            f"checkpoint: {before:.1f} s until then, {after:.1f} s for the rest; weights equal"
        )


@pytest.mark.long
def test_what_is_refused_in_a_pod_ends_the_task_with_its_words(
    shards: Path, bucket: dict[str, str], tmp_path: Path
) -> None:
    folder = tmp_path / "refused"
    kubelet, done = pretrained(folder, "refused", shards, bucket, None, batch_size=1)
    assert 2 in [codes[0] for codes in kubelet.codes.values()], kubelet.logs
    assert done.returncode == 2
    assert "batch_size 1 is too small for 2 processes" in done.stderr


def test_parts_of_a_dataset_are_those_of_one_process(
    bucket: dict[str, str], tmp_path: Path
) -> None:
    """The image `data` holds all that a part needs; its root cannot be written."""
    given = {**environment(), **bucket, "PYTHONPATH": str(PROJECT), "KFP_RUN_ID": "run-9"}
    for number in range(6):
        folder = tmp_path / "photos" / f"class_{number % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (40, 40, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    subprocess.run(
        [sys.executable, "-c", SEND, str(tmp_path / "photos")], env=given, cwd=tmp_path, check=True
    )
    section = config.load(PROJECT / "params.yaml").datasets["digits"].model_copy(
        update={"name": "photos", "path": "artifacts/sources/photos",
                "source": "s3://launched/photos", "shards_at": "s3://launched/shards"}
    )  # fmt: skip
    pods = pods_of(
        component="validate", nodes=2, parts=2, processes=1, pool=POOL, queue=None, env={},
        secrets={}, image=f"bigtransfer-data:{source_tag(PROJECT)}",
    )  # fmt: skip
    cluster = ClusterApi()
    given["KUBECONFIG"] = str(cluster.kubeconfig(tmp_path / "kubeconfig"))
    kubelet = Kubelet(cluster, bucket)
    thread = threading.Thread(target=kubelet.run, daemon=True)
    thread.start()
    words = ["--params-json", section.model_dump_json(), "--dataset", "index"]
    outputs = ["--manifest", "manifest", "--validation", "report"]
    component = ["-m", "components.validate", *words]
    launch = ["-m", "components.launch", "--pods", pods.model_dump_json(), "--", "python"]
    lines = [
        [*launch, *component, "--manifest", "no", "--validation", "no"],
        [*component, *outputs, "--join", "2", "--parts", "s3://launched/shards/parts"],
    ]
    for line in lines:
        done = subprocess.run(
            [sys.executable, *line], env=given, cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr + "\n".join(kubelet.logs)
    thread.join(60)
    cluster.close()
    assert kubelet.codes == {0: [0], 1: [0]}
    assert "photos: 6 images of 2 classes pass" in done.stdout


SEND = """
import sys
from pathlib import Path
from bigtransfer.storage.s3 import client
from bigtransfer.storage.trees import write_index
for path in Path(sys.argv[1]).rglob("*.png"):
    key = "photos/" + path.relative_to(sys.argv[1]).as_posix()
    client().put_object(Bucket="launched", Key=key, Body=path.read_bytes())
write_index("s3://launched/photos", Path("index"), mirror=False)
"""
