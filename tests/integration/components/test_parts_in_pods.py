"""A dataset in a bucket, validated and packed in parts by pods of a Job: a process each here."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bigtransfer.config import load
from bigtransfer.data.packing import write_shards
from bigtransfer.data.shard_plan import packing_of
from bigtransfer.data.validation import validate
from bigtransfer.storage import digest_of
from bigtransfer.storage.pointer import pointed_to
from bigtransfer.storage.trees import write_index
from fixtures.cluster_api import ClusterApi
from fixtures.images import write_image
from fixtures.launches import pods_of
from fixtures.project import PROJECT, environment
from fixtures.servers import s3_environment

Done = subprocess.CompletedProcess[str]
PARTS = 2
JOINED = ["--manifest", "joined.parquet", "--validation", "joined-report"]
POOL = {"cpu": "1", "memory": "2Gi", "accelerator": None, "count": 0, "selector": {},
        "tolerations": [], "shm": None, "spot": True}  # fmt: skip


class Tasks:
    """The tasks of one dataset of a pipeline."""

    def __init__(self, folder: Path, cluster: ClusterApi, server: str) -> None:
        self.folder, self.cluster = folder, cluster
        self.environment = {
            **environment(), **s3_environment(server), "KFP_RUN_ID": "run-7",
            "KUBECONFIG": str(folder / "kubeconfig"), "PYTHONPATH": str(PROJECT),
            "BIGTRANSFER_STAGE": "of-a-test",
        }  # fmt: skip
        section = load(PROJECT / "params.yaml").datasets["digits"]
        given = {"name": "photos", "path": "artifacts/sources/photos", "source": "s3://photos/all",
                 "shards_at": "s3://photos/shards", "small_side_pixels": 4}  # fmt: skip
        self.section = section.model_copy(update=given)
        self.logs: dict[int, list[str]] = {}

    def run(self, component: str, *words: str, launch: str = "") -> Done:
        line = [sys.executable, "-m", f"components.{component}"]
        if launch:
            line = [sys.executable, "-m", "components.launch", "--pods", launch, "--", "python",
                    "-m", f"components.{component}"]  # fmt: skip
        line += ["--params-json", self.section.model_dump_json(), *words]
        return subprocess.run(
            line, cwd=self.folder, env=self.environment, capture_output=True, text=True, check=False
        )

    def in_parts(
        self,
        component: str,
        *words: str,
        lose: int | None = None,
        spoil: Callable[[dict[str, Any]], None] = lambda job: None,
    ) -> Done:
        """Run the task that launches a component's pods and waits; run them as a Job would."""
        pods = pods_of(
            component=component, nodes=1, parts=PARTS, pool=POOL, queue=None, priority_class=None,
            env={"BIGTRANSFER_STAGE": f"{component}-parts@photos"}, secrets={},
        )  # fmt: skip
        player = threading.Thread(target=self._play, args=(component, lose, spoil), daemon=True)
        player.start()
        done = self.run(component, *words, launch=pods.model_dump_json())
        player.join(60)
        assert not player.is_alive()
        return done

    def _play(
        self, component: str, lose: int | None, spoil: Callable[[dict[str, Any]], None]
    ) -> None:
        job = self.cluster.wait_for("jobs")
        assert job["spec"]["completions"] == PARTS and job["spec"]["parallelism"] == 1
        assert not [key for kind, key in self.cluster.things if kind == "services"]
        spoil(job)
        for index in range(PARTS):
            codes = [9, 0] if index == lose else [0]
            for attempt, killed in enumerate(codes):
                self.cluster.pod(job, index, attempt, phase="Running")
                code = self._pod(job, index, kill=bool(killed))
                self.cluster.ended(job, index, code, attempt)
                if code in (1, 2):
                    self.cluster.logs[f"{job['metadata']['name']}-{index}-0"] = self.logs[index][-1]
                    return self.cluster.fail(job, "PodFailurePolicy", f"exit code {code}")
            self.cluster.touch(job, succeeded=index + 1)
        self.cluster.finish(job)

    def _pod(self, job: dict[str, Any], index: int, *, kill: bool) -> int:
        place = self.folder / "pods" / job["metadata"]["name"] / f"{index}-{kill}"
        place.mkdir(parents=True)
        (box,) = job["spec"]["template"]["spec"]["containers"]
        own = [re.sub(r"^/tmp/(?=in|out)", f"{place}/", word) for word in box["args"]]
        known = {one["name"]: one["value"] for one in box["env"] if "value" in one}
        process = subprocess.Popen(
            [sys.executable, *box["command"][1:], *own], cwd=place, stderr=subprocess.PIPE,
            env={**self.environment, **known, "JOB_COMPLETION_INDEX": str(index)}, text=True,
            stdout=subprocess.PIPE,
        )  # fmt: skip
        if kill:
            process.kill()
        out, err = process.communicate(timeout=120)
        self.logs.setdefault(index, []).append(out + err)
        return 137 if kill else process.returncode


@pytest.fixture
def tasks(
    tmp_path: Path, cluster: ClusterApi, s3: Any, s3_server: str, empty_database: Path
) -> Tasks:
    """Tasks whose dataset is not there yet."""
    (tmp_path / "index").mkdir()
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    return Tasks(tmp_path, cluster, s3_server)


@pytest.fixture
def listed(tasks: Tasks, s3: Any) -> Tasks:
    """Tasks whose dataset lies in the bucket, with the index that `fetch` makes of it."""
    for number in range(12):
        path = tasks.folder / "one.png"
        write_image(path, 50 * number)
        key = f"all/class_{number % 3}/{number}.png"
        s3.put_object(Bucket="photos", Key=key, Body=path.read_bytes())
    (tasks.folder / "index").rmdir()
    write_index("s3://photos/all", tasks.folder / "index", mirror=False)
    return tasks


def test_what_pods_did_in_parts_is_what_one_task_does(listed: Tasks, s3: Any) -> None:
    tasks = listed
    data = ["--dataset", "index"]
    index, whole = tasks.folder / "index", tasks.folder / "whole.parquet"
    validate(index, "photos", tasks.section, manifest_path=whole, report=tasks.folder / "report")

    file = tasks.folder / "executor_output.json"
    told = json.dumps({"inputs": {}, "outputs": {"outputFile": str(file)}})
    unused = ["--manifest", "unused", "--validation", "unused", "--executor-input", told]
    done = tasks.in_parts("validate", *data, *unused)
    assert done.returncode == 0, (done.stderr, tasks.logs)
    assert json.loads(file.read_text()) == {"artifacts": {}}
    assert "2 parts, 1 pod at once in 'runs'" in done.stderr
    assert "1 of 2 parts are done" in done.stderr
    assert "part 2/2 looked at, 6 images" in tasks.logs[1][0], tasks.logs
    pods = tasks.folder / "pods"
    assert not [*pods.rglob("*.jsonl")], "the join is the run in MLflow, a part is none"
    join = ["--join", str(PARTS), "--parts", "s3://photos/shards/parts"]
    done = tasks.run("validate", *data, *JOINED, *join)
    assert done.returncode == 0, done.stderr
    assert (tasks.folder / "joined.parquet").read_bytes() == whole.read_bytes()

    data += ["--manifest", "joined.parquet"]
    done = tasks.in_parts("shard", *data, "--shards", "unused", lose=1)
    assert done.returncode == 0, (done.stderr, tasks.logs)
    assert "part 2 (pod 1) on node-1 ended: Error (exit code 137)" in done.stderr
    done = tasks.run("shard", *data, "--shards", "shards", "--join", str(PARTS))
    assert done.returncode == 0, done.stderr
    write_shards(index, whole, tasks.folder / "at-once", packing_of(tasks.section))
    assert (pointed_to(tasks.folder / "shards") or "")[1] == digest_of(tasks.folder / "at-once")

    names = [one["Key"] for one in s3.list_objects_v2(Bucket="photos")["Contents"]]
    assert sum("/done-" in name for name in names if "/launched/" in name) == 2
    verbs = tasks.cluster.verbs("jobs")
    assert verbs == ["POST", "DELETE", "POST", "DELETE"]


def test_what_a_part_is_refused_ends_the_task_with_its_words(listed: Tasks) -> None:
    """And the next attempt, which Kubeflow makes whatever was wrong, asks for no pod."""
    tasks = listed
    tasks.section = tasks.section.model_copy(update={"exclude": ("no/such.png",)})
    told = json.dumps({"inputs": {}, "outputs": {"outputFile": str(tasks.folder / "output")}})
    words = ["--dataset", "index", "--manifest", "unused", "--validation", "unused",
             "--executor-input", told]  # fmt: skip
    done = tasks.in_parts("validate", *words)
    assert done.returncode == 2
    assert "no/such.png" in done.stderr.splitlines()[-1], done.stderr
    assert "Traceback" not in done.stderr and "warning" not in done.stderr
    asked = tasks.cluster.verbs("jobs")
    pods = pods_of(component="validate", parts=PARTS, nodes=1).model_dump_json()
    again = tasks.run("validate", *words, launch=pods)
    assert again.returncode == 2
    assert "an earlier attempt of this run was refused" in again.stderr
    assert again.stderr.splitlines()[-1] == done.stderr.splitlines()[-1]
    assert tasks.cluster.verbs("jobs") == asked


def test_a_job_that_failed_is_not_begun_again_by_its_run(tasks: Tasks) -> None:
    """It had its attempts; Kubeflow's would each be as many again."""
    (tasks.folder / "index" / "source.json").write_text("{}")
    told = json.dumps({"inputs": {}, "outputs": {"outputFile": str(tasks.folder / "output")}})
    words = ["--dataset", "index", "--manifest", "unused", "--validation", "unused",
             "--executor-input", told]  # fmt: skip

    def crash(job: dict[str, Any]) -> None:
        (box,) = job["spec"]["template"]["spec"]["containers"]
        box["args"] = ["--parts", "2", "--", "-c", "raise SystemExit(1)"]

    done = tasks.in_parts("validate", *words, spoil=crash)
    assert done.returncode == 1, done.stderr
    asked = tasks.cluster.verbs("jobs")
    pods = pods_of(component="validate", parts=PARTS, nodes=1).model_dump_json()
    again = tasks.run("validate", *words, launch=pods)
    assert again.returncode == 1
    assert "an earlier attempt of this run was refused" in again.stderr
    assert tasks.cluster.verbs("jobs") == asked


def test_parts_have_nowhere_to_meet_without_a_bucket(tasks: Tasks) -> None:
    tasks.section = tasks.section.model_copy(update={"shards_at": None})
    pods = pods_of(component="validate", parts=2, nodes=2).model_dump_json()
    words = ["--dataset", "index", "--manifest", "unused", "--validation", "unused"]
    done = tasks.run("validate", *words, launch=pods)
    assert done.returncode == 2
    assert "datasets.photos.shards_at is null; give data.shards_at=s3://" in done.stderr
    assert not tasks.cluster.things


def test_the_name_of_the_job_is_of_the_data_the_rules_and_the_parts(
    tasks: Tasks, tmp_path: Path
) -> None:
    from components.launch import parts_of
    from components.validate import COMPONENT

    def name(path: Path = tasks.folder / "index", pods: Any = None, **changes: Any) -> str:
        section = tasks.section.model_copy(update=changes)
        own = pods or pods_of(component="validate", parts=4)
        return parts_of(own, COMPONENT, section, {"dataset": path}, "s3://b/x/").name

    (tmp_path / "other").mkdir()
    write_image(tmp_path / "other" / "a" / "1.png", 1)
    assert name() == name(pods=pods_of(component="validate", parts=4, nodes=2))
    others = {name(tmp_path / "other"), name(max_side_pixels=9),
              name(pods=pods_of(component="validate", parts=5)),
              name(pods=pods_of(component="validate", parts=4, image="x.y/z:1"))}  # fmt: skip
    assert len({name(), *others}) == 5


def test_a_part_that_is_asked_to_end_says_that_another_pod_does_it(tasks: Tasks) -> None:
    code = "import time; print('begun', flush=True); time.sleep(60)"
    script = tasks.folder / "slow.py"
    script.write_text(code)
    process = subprocess.Popen(
        [sys.executable, "-m", "bigtransfer.kubeflow.one_part", "--parts", "2", "--", str(script)],
        cwd=tasks.folder, env={**tasks.environment, "JOB_COMPLETION_INDEX": "1"}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None and process.stdout.readline() == "begun\n"
    process.terminate()
    _, said = process.communicate(timeout=30)
    assert process.returncode == 75
    assert said.endswith("of-a-test, part 2: was asked to end; another pod does this part\n")


def test_what_may_work_the_next_time_is_tried_again_and_then_said(
    tasks: Tasks, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from bigtransfer.kubeflow import one_part
    from bigtransfer.kubeflow.reasons import refusal_in

    codes: list[int] = []
    monkeypatch.chdir(tasks.folder)
    monkeypatch.setattr("bigtransfer.retry.time.sleep", lambda seconds: None)
    monkeypatch.setattr("bigtransfer.kubeflow.process_one.signal.signal", lambda *_: None)
    monkeypatch.setattr("bigtransfer.kubeflow.process_one.os._exit", codes.append)
    for name, text in {"JOB_COMPLETION_INDEX": "0", "BIGTRANSFER_STAGE": "shard-parts@x"}.items():
        monkeypatch.setenv(name, text)
    script = tasks.folder / "away.py"
    script.write_text(
        "import json, pathlib, sys\n"
        "where = pathlib.Path('.work/last-failure.json'); where.parent.mkdir(exist_ok=True)\n"
        "where.write_text(json.dumps({'message': 'the bucket is away [exit 75]'}))\n"
        "sys.exit(75)\n"
    )
    monkeypatch.setattr("sys.argv", ["one_part", "--parts", "2", "--", str(script)])
    one_part.main()
    said = capsys.readouterr().err
    assert codes == [1], "75 is not counted, and would have no end"
    assert "shard-parts@x, part 1: the bucket is away; attempt 5 of 5 in " in said
    found = refusal_in(f"I0101 main.go:57] {said.splitlines()[-1]}")
    assert found is not None and (found.exit_code, found.stage) == (1, "shard-parts@x")
    assert found.message == "the bucket is away, at each attempt"


def test_a_part_takes_no_other_data_than_its_job_is_of(tasks: Tasks, s3: Any) -> None:
    s3.put_object(Bucket="photos", Key="in/manifest", Body=b"other")
    bring = f"{tasks.folder / 'brought'}={'0' * 64}=s3://photos/in/manifest"
    line = [sys.executable, "-m", "bigtransfer.kubeflow.one_part", "--parts", "1", "--bring", bring]
    done = subprocess.run(
        [*line, "--", "never.py"], cwd=tasks.folder, capture_output=True, text=True, check=False,
        env={**tasks.environment, "JOB_COMPLETION_INDEX": "0"},
    )  # fmt: skip
    assert done.returncode == 2
    assert "was asked for" in done.stderr and done.stderr.endswith("[exit 2]\n")
