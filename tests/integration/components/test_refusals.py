"""A task that is refused leaves word for its next attempt; one that is lost does not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from bigtransfer.kubeflow.refusals import Refusal, Refusals, fingerprint
from fixtures.project import PROJECT, environment
from fixtures.servers import s3_environment

ROOT = "s3://photos/v2/artifacts"
RUN = "0a1b2c"


def attempt(
    folder: Path, weights: Path, sha256: str | None, run: str = RUN, **more: str
) -> subprocess.CompletedProcess[str]:
    """Run `fetch_weights` as a pod does, on an empty disk of its own."""
    uri = f"{ROOT}/transfer/{run}/fetch-weights/weights"
    output = {"name": "weights", "uri": uri, "type": {"schemaTitle": "system.Model"}}
    executor = {
        "inputs": {},
        "outputs": {
            "artifacts": {"weights": {"artifacts": [output]}}, "outputFile": str(folder / "said"),
        },
    }  # fmt: skip
    folder.mkdir()
    params = json.dumps({"address": str(weights), "sha256": sha256})
    line = [sys.executable, "-m", "components.fetch_weights", "--params-json", params, "--weights",
            str(folder / "weights"), "--executor-input", json.dumps(executor)]  # fmt: skip
    own = {"KFP_RUN_ID": run, "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"}
    return subprocess.run(
        line, cwd=folder, capture_output=True, text=True, check=False,
        env=environment(BIGTRANSFER_STAGE="fetch_weights", **own, **more),
    )  # fmt: skip


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "BiT.npz"
    path.write_bytes(b"PK\x03\x04" + b"w" * 1000)
    return path


def test_a_refusal_is_known_to_the_next_attempt(
    s3: Any, s3_server: str, weights: Path, tmp_path: Path
) -> None:
    reach, wrong = s3_environment(s3_server), "a" * 64
    first = attempt(tmp_path / "1", weights, wrong, **reach)
    assert first.returncode == 2
    told = first.stderr.splitlines()[-1]
    assert told.startswith("fetch_weights: ") and told.endswith(" [exit 2]")

    began = time.monotonic()
    second = attempt(tmp_path / "2", weights, wrong, **reach)
    assert second.returncode == 2
    assert time.monotonic() - began < 10
    assert second.stderr.splitlines()[-1] == told
    assert "an earlier attempt of this run was refused" in second.stderr

    (found,) = Refusals.of_run(ROOT, "transfer", RUN).all().values()
    assert f"{found.stage}: {found.message} [exit {found.exit_code}]" == told


def test_without_rights_there_it_is_said_and_all_goes_on(
    s3_server: str, weights: Path, tmp_path: Path
) -> None:
    away = {**s3_environment(s3_server), "AWS_ENDPOINT_URL": "http://127.0.0.1:9"}
    done = attempt(tmp_path / "1", weights, "a" * 64, **away)
    assert done.returncode == 2
    *_, before, last = done.stderr.splitlines()
    assert "warning: the next attempt will not know that this is refused" in before
    assert last.endswith("[exit 2]")


def test_other_params_inputs_or_stages_and_another_run_look_for_themselves(
    s3: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"dataset": {"uri": "s3://b/1", "metadata": {"digest": "a"}}}
    other = {"dataset": {"uri": "s3://b/2", "metadata": {"digest": "a"}}}
    keys = {
        fingerprint(stage, params, inputs, PROJECT)
        for stage in ("audit@a", "audit@b") for params in ("{}", "{1}") for inputs in (given, other)
    }  # fmt: skip
    assert len(keys) == 8
    assert fingerprint("audit@a", "{}", given, PROJECT) in keys
    monkeypatch.setenv("KFP_RUN_ID", RUN)
    uri = f"{ROOT}/q/{RUN}/t/o"
    assert Refusals.of_task([uri], None).leave("key", Refusal("t", 2, "wrong")) is None
    monkeypatch.setenv("KFP_RUN_ID", "another")
    assert Refusals.of_task([uri.replace(RUN, "another")], None).find("key") is None


@pytest.mark.parametrize("code", [1, 4, 75, 130])
def test_only_what_stays_wrong_is_left(code: int, s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KFP_RUN_ID", RUN)
    refusals = Refusals.of_task([f"{ROOT}/q/{RUN}/t/o"], None)
    assert refusals.leave("key", Refusal("t", code, "lost")) is None
    assert refusals.find("key") is None


def test_the_mirror_serves_where_the_root_is_no_s3(
    s3: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KFP_RUN_ID", RUN)
    refusals = Refusals.of_task([f"gs://own/q/{RUN}/t/o"], "s3://photos/mirror")
    said = Refusal("t", 2, "wrong")
    assert refusals.leave("key", said) is None
    assert refusals.find("key") == said
    assert [o["Key"] for o in s3.list_objects_v2(Bucket="photos")["Contents"]] == [
        f"mirror/refusals/{RUN}/key.json"
    ]


def test_elsewhere_there_are_none(s3: Any) -> None:
    assert "KFP_RUN_ID" not in os.environ
    assert Refusals.of_task([f"{ROOT}/q/{RUN}/t/o"], "s3://photos/mirror").places == ()
