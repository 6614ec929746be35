"""`python -m components.launch`: a task's line on pods of its own, with S3 and a cluster's API."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from bigtransfer.config import load
from bigtransfer.storage import as_json, digest_of, new_folder
from bigtransfer.storage.pointer import POINTER
from fixtures.cluster_api import ClusterApi
from fixtures.launches import pods_of
from fixtures.project import PROJECT, environment
from fixtures.servers import s3_environment

MIRROR = "s3://photos/mirror"


class Task:
    """The task `pretrain` of a pipeline, which waits."""

    def __init__(self, folder: Path, cluster: ClusterApi, server: str) -> None:
        self.folder, self.cluster = folder, cluster
        self.shards = folder / "shards"
        with new_folder(self.shards) as partial:
            facts = {"address": "s3://photos/shards/upstream/abc", "digest": "d" * 64}
            (partial / POINTER).write_text(as_json(facts))
        self.environment = {
            **environment(), **s3_environment(server), "BIGTRANSFER_STAGE": "pretrain",
            "KUBECONFIG": str(folder / "kubeconfig"), "KFP_RUN_ID": "run-7",
            "PYTHONPATH": str(PROJECT),
        }  # fmt: skip

    def line(self, *changed: str, **params: Any) -> list[str]:
        given = {"checkpoint_mirror": MIRROR, "dataset": "upstream", **params}
        section = load(PROJECT / "params.yaml").pretrain.model_copy(update=given)
        outputs = {"checkpoint": "Model", "metrics": "Metrics", "history": "Dataset"}
        uri = "s3://kfp/run-7/pretrain"
        said = {
            name: {"artifacts": [{"name": name, "uri": f"{uri}/{name}", "metadata": {},
                                  "type": {"schemaTitle": f"system.{kind}"}}]}
            for name, kind in outputs.items()
        }  # fmt: skip
        file = str(self.folder / "executor_output.json")
        whole = {"inputs": {}, "outputs": {"artifacts": said, "outputFile": file}}
        pods = pods_of(nodes=2, queue=None).model_dump_json()
        line = [sys.executable, "-m", "components.launch", "--pods", pods, "--", "python", "-m",
                "components.pretrain", "--params-json", section.model_dump_json(),
                "--shards", str(self.shards), "--probe", str(self.shards)]  # fmt: skip
        for name in outputs:
            line += [f"--{name}", str(self.folder / "out" / name)]
        return [*line, "--executor-input", json.dumps(whole), *changed]

    def run(self, line: list[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            line, cwd=self.folder, env=self.environment, capture_output=True, text=True, check=False
        )


@pytest.fixture
def task(tmp_path: Path, cluster: ClusterApi, s3: Any, s3_server: str) -> Task:
    return Task(tmp_path, cluster, s3_server)


def play_pods(cluster: ClusterApi, s3: Any) -> None:
    """Do what the pods of the next Job would: write, send, end."""
    job = cluster.wait_for("jobs")
    args = job["spec"]["template"]["spec"]["containers"][0]["args"]
    place = args[args.index("--results") + 1].removeprefix("s3://photos/")
    import hashlib

    files = {"checkpoint/model": b"weights", "checkpoint/MANIFEST.json": b"{}",
             "metrics": b'{"val_top1": 0.5}', "history": b"step\n1\n"}  # fmt: skip
    listed = {name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
              for name, data in files.items()}  # fmt: skip
    for name, data in files.items():
        s3.put_object(Bucket="photos", Key=f"{place}/{name}", Body=data)
    manifest = as_json({"schema": 1, "files": listed}).encode()
    s3.put_object(Bucket="photos", Key=f"{place}/MANIFEST.json", Body=manifest)
    cluster.finish(job)


def test_what_the_pods_wrote_is_what_the_task_hands_on(
    task: Task, cluster: ClusterApi, s3: Any
) -> None:
    seen: list[Any] = []
    player = threading.Thread(
        target=lambda: (seen.append(cluster.wait_for("jobs")), play_pods(cluster, s3)), daemon=True
    )
    player.start()
    done = task.run(task.line())
    player.join(20)
    assert done.returncode == 0, done.stderr
    out = task.folder / "out"
    assert (out / "checkpoint" / "model").read_bytes() == b"weights"
    assert (out / "history").read_text() == "step\n1\n"
    (job,) = seen
    name = job["metadata"]["name"]
    assert f"pretrain: Job {name} was made for run run-7: 2 pods in 'runs'" in done.stderr
    args = job["spec"]["template"]["spec"]["containers"][0]["args"]
    line = args[args.index("--") + 1 :]
    assert line[:2] == ["-m", "components.pretrain"]
    assert line[line.index("--shards") + 1] == "s3://photos/shards/upstream/abc"
    assert line[line.index("--checkpoint") + 1] == "/tmp/out/checkpoint"
    assert "--executor-input" not in line
    said = json.loads((task.folder / "executor_output.json").read_text())["artifacts"]
    metadata = said["checkpoint"]["artifacts"][0]["metadata"]
    assert metadata["address"].startswith(f"{MIRROR}/launched/{name}/")
    assert metadata["digest"] == digest_of(out / "checkpoint")
    assert said["metrics"]["artifacts"][0]["metadata"]["val_top1"] == 0.5


def test_the_name_is_of_the_work_not_of_how_it_is_done(task: Task) -> None:
    from components.launch import launch_of
    from components.pretrain import COMPONENT

    base = load(PROJECT / "params.yaml").pretrain
    paths = {flag: task.shards for flag in COMPONENT.reads}

    def name(pods: Any = None, **changes: Any) -> str:
        params = base.model_copy(update=changes)
        return launch_of(pods or pods_of(), COMPONENT, params, paths, MIRROR).name

    assert name() == name(precision="bfloat16", checkpoint_seconds=5) == name(pods_of(nodes=2))
    assert len({name(), name(seed=1), name(epochs=9.0), name(pods_of(image="x.y/z:1"))}) == 4
    assert name(resume="any_code") == name(pods_of(image="x.y/z:1"), resume="any_code")


@pytest.mark.parametrize(
    ("params", "shards", "words"),
    [
        ({"checkpoint_mirror": None}, None, "pretrain.checkpoint_mirror is null"),
        ({}, "plain", "are shards themselves, which no other pod sees; give data.shards_at"),
    ],
)
def test_what_pods_could_not_do_is_refused(
    params: dict[str, Any], shards: str | None, words: str, task: Task
) -> None:
    if shards:
        task.shards = task.folder / shards
        task.shards.mkdir()
    done = task.run(task.line(**params))
    assert done.returncode == 2
    assert words in done.stderr and done.stderr.rstrip().endswith("[exit 2]")
    assert "Traceback" not in done.stderr
    assert not task.cluster.things


def test_a_bad_line_is_one_line(task: Task) -> None:
    line = task.line()
    at = line.index("--")
    for wrong, words in (
        (line[:at], "-- python -m components.<name> … is missing"),
        ([*line[:4], '{"launcher": "job"}', *line[at:]], "--pods"),
        ([*line[: at + 3], "components.shard", *line[at + 4 :]], "--pods are for pretrain"),
    ):
        done = task.run(wrong)
        assert done.returncode == 2, done.stderr
        assert words in done.stderr and "Traceback" not in done.stderr
