"""What cannot run on a cluster is refused before it is submitted, with the way on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bigtransfer import config
from bigtransfer.errors import ConfigError
from bigtransfer.kubeflow.forecast import forecast
from bigtransfer.kubeflow.preflight import (
    components_of,
    notes,
    refuse_impossible,
    refuse_package,
    refuse_too_long,
    said_beforehand,
)
from fixtures.project import PROJECT

ALL = {"fetch", "validate", "shard", "audit", "pretrain", "finetune", "evaluate", "register"}
TASKS = sorted(ALL)
GOOD = {"image": "registry.example/me/bt", "tracking_uri": "http://ml:5000"}


def params(name: str = "bit_s", **changes: Any) -> config.Params:
    overlay = PROJECT / "pipelines" / f"{name}.yaml"
    own: dict[str, Any] = {"cluster": {}}
    for key, value in changes.items():
        path = key.split("__")
        inner = own
        for part in path[:-1]:
            inner = inner.setdefault(part, {})
        inner[path[-1]] = value
    own["cluster"] = {**GOOD, **own["cluster"]}
    base = overlay if overlay.is_file() else Path(PROJECT / "pipelines" / "transfer.yaml")
    return config.load(PROJECT / "params.yaml", base, own)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cluster__image": "bigtransfer"}, "names no registry"),
        ({"cluster__image": "me/bigtransfer"}, "names no registry"),
        ({"cluster__tracking_uri": None}, "cluster.tracking_uri is null"),
        ({"cluster__placement": {"pretrain": "tpu"}}, "pretrain.device is 'cuda', but cluster."),
        ({"cluster__placement": {"pretrain": "cpu"}}, "a pool without accelerators"),
        ({"pretrain__device": "tpu"}, "a pool of nvidia.com/gpu; change one of the two"),
        ({"cluster__placement": {"finetune": "tpu"}}, "a pool of TPUs, which finetune does not"),
        ({"cluster__placement": {"finetune": "cpu"}}, "finetune.device is 'cuda'"),
        ({"cluster__pools": {"gpu": {"spot": True}}, "cluster__launcher": "task",
          "pretrain__checkpoint_mirror": None}, "pretrain.checkpoint_mirror=s3://"),
        ({"cluster__launcher": "task", "cluster__nodes": {"pretrain": 8}}, "a task has one pod"),
        ({"cluster__launcher": "job", "pretrain__checkpoint_mirror": None},
         "what they write would be lost with them"),
        ({"cluster__nodes": {"pretrain": 2}, "data__shards_at": None},
         "see no shards of dataset 'upstream'; give data.shards_at=s3://"),
        ({"cluster__nodes": {"pretrain": 3}}, "does not divide by 3 processes (3 nodes of 1)"),
        ({"cluster__nodes": {"pretrain": 2}, "cluster__placement": {"pretrain": "tpu"},
          "pretrain__device": "tpu"}, "pretrain on TPUs runs on one host"),
        ({"cluster__pools": {"cpu": {"spot": True}}}, "tasks that wait for pods of their own"),
        ({"cluster__pools": {"gpu": {"spot": True}}}, "finetune.checkpoint_mirror=s3://"),
        ({"pretrain__examples": 3 * 10**8},
         "too many for audit in 8Gi: it takes about 450 GB"),
        ({"pretrain__examples": 3 * 10**8}, "too many for validate in 8Gi: it takes about 105 GB"),
        ({"cluster__nodes": {"shard": 4}, "cluster__launcher": "task"}, "a task has one pod"),
        ({"cluster__parts": {"validate": 4}, "data__shards_at": None,
          "pretrain__examples": 10**6},
         "validate of dataset 'upstream' is done in parts, which meet in a bucket"),
        ({"datasets": {"pets": {"examples": 10**9}}}, "dataset 'pets' has 1,000,000,000 images"),
    ],
)  # fmt: skip
def test_what_cannot_run_is_refused(changes: dict[str, Any], message: str) -> None:
    refuse_impossible(params(), ALL)
    with pytest.raises(ConfigError) as refused:
        refuse_impossible(params(**changes), ALL)
    assert message in str(refused.value)


def test_only_what_is_in_the_pipeline_is_looked_at() -> None:
    spot = params(cluster__pools={"gpu": {"spot": True}}, cluster__tracking_uri=None)
    refuse_impossible(spot, {"validate", "shard", "evaluate"})


@pytest.mark.parametrize("image", ["localhost/bt", "docker.io/library/bigtransfer", "reg:5000/bt"])
def test_names_with_a_registry_pass(image: str) -> None:
    refuse_impossible(params(cluster__image=image), ALL)


def test_a_training_of_a_year_is_refused_with_its_rate() -> None:
    refuse_too_long(params(), ALL)
    with pytest.raises(ConfigError) as refused:
        refuse_too_long(params("bit_l"), ALL)
    said = str(refused.value)
    assert "40% of 989 TFLOP/s, an H100, as none is named in the pool's selector" in said
    assert "--yes" in said
    refuse_too_long(params("bit_l"), ALL - {"pretrain"})
    refuse_too_long(params("bit_l", cluster__longest_days=1000.0), ALL)


def test_a_datasets_own_size_counts_where_the_recipe_names_none() -> None:
    unknown = params(pretrain__examples=None)
    refuse_too_long(unknown, ALL)
    assert any("how long pretrain takes is not known" in note for note in notes(unknown, ALL))
    known = params(pretrain__examples=None, datasets={"upstream": {"examples": 300_000_000}})
    with pytest.raises(ConfigError, match="300,000,000 images"):
        refuse_too_long(known, ALL)


def test_eight_nodes_of_eight_are_sane_and_forecast_as_64() -> None:
    large = {"gpu": {"count": 8, "price_per_hour": 80.0, "cpu": "96", "memory": "1000Gi"}}
    cluster = {"cluster__pools": large, "cluster__nodes": {"pretrain": 8}}
    given = params("bit_l", **cluster, data__examples=1000)
    refuse_impossible(given, ALL - {"validate"})
    refuse_too_long(given, ALL)
    one, eight = (forecast(params("bit_l", **own), 10**6) for own in (
        {"cluster__pools": large}, cluster))  # fmt: skip
    assert one.seconds == pytest.approx(8 * eight.seconds)
    assert one.cost == pytest.approx(eight.cost or 0)
    said = list(said_beforehand(given, TASKS, None))
    (line,) = [line for line in said if line.startswith("launch ")]
    assert line.startswith("launch   pretrain: a Job of 8 pods, beside this run")
    assert "go to s3://bigtransfer/checkpoints (pretrain.checkpoint_mirror)" in line


def test_a_component_of_one_pod_is_refused_others() -> None:
    with pytest.raises(ConfigError, match="nodes names 'evaluate', which runs on one pod"):
        params(cluster__nodes={"evaluate": 2})


def test_the_pools_own_rate_and_price_are_used() -> None:
    gpu = {"tflops": 100.0, "count": 4, "price_per_hour": 8.0}
    made = forecast(params(cluster__pools={"gpu": gpu}), 1_281_167)
    assert "the pool's 100 TFLOP/s on each of 4" in str(made)
    assert made.cost == pytest.approx(8 * made.seconds / 3600)
    named = params(cluster__pools={"gpu": {"selector": {"gpu": "nvidia-l4"}}})
    assert "121 TFLOP/s, L4, on each of 1" in str(forecast(named, 1000))
    on_cpu = params(cluster__placement={"pretrain": "cpu"}, pretrain__device="cpu")
    assert "40 GFLOP/s on each of 2 cores" in str(forecast(on_cpu, 1000))


def test_what_a_run_takes_is_said() -> None:
    limited = params(cluster__timeout_hours={"pretrain": 100.0})
    said = list(said_beforehand(limited, [*TASKS, "finetune"], None))
    assert "pool     gpu: 4 pods of 8 CPU, 64Gi, 1 nvidia.com/gpu" in said
    assert any(line.startswith("pretrain about 3.7 days") for line in said)
    assert any("3 attempts at most, each with all its work" in line for line in said)
    assert "limit    pretrain: 100 h an attempt (cluster.timeout_hours)" in said


@pytest.mark.parametrize(
    ("root", "env", "told"),
    [
        (None, {}, False),
        (None, {"AWS_ENDPOINT_URL": "http://minio:9000"}, True),
        ("minio://b/r", {"AWS_ENDPOINT_URL": "http://minio:9000"}, True),
        ("s3://b/r", {}, True),
        ("gs://b/r", {"AWS_ENDPOINT_URL": "http://minio:9000"}, False),
    ],
)
def test_how_long_a_refusal_may_last_is_said_where_it_is_true(
    root: str | None, env: dict[str, str], told: bool
) -> None:
    keys = {"AWS_ACCESS_KEY_ID": {"secret": "s3", "key": "id"}}
    said = list(said_beforehand(params(cluster__env=env, cluster__secrets=keys), TASKS, root))
    assert any("about 5 minutes" in line for line in said) == told
    without = list(said_beforehand(params(cluster__env=env), TASKS, root))
    assert any("each with all its work" in line for line in without)


def test_mlflow_may_be_named_by_a_secret() -> None:
    secret = {"MLFLOW_TRACKING_URI": {"secret": "ml", "key": "uri"}}
    refuse_impossible(params(cluster__tracking_uri=None, cluster__secrets=secret), ALL)


@pytest.mark.parametrize("name", ["KFP_RUN_ID", "BIGTRANSFER_STAGE"])
def test_names_that_the_pipeline_sets_are_its_own(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} is set by the pipeline itself"):
        params(cluster__env={name: "x"})


def test_a_pool_of_no_cores_is_no_crash() -> None:
    none = params(cluster__placement={"pretrain": "cpu"}, cluster__pools={"cpu": {"cpu": "0"}})
    assert forecast(none, 1000).seconds > 0


def test_a_package_is_looked_at_as_far_as_it_says() -> None:
    text = (PROJECT / "pipelines" / "bit_s.kfp.yaml").read_text()
    with pytest.raises(ConfigError, match="names no registry"):
        refuse_package(text, {})
    for other in ("hello", "data: {seed: 0}", "- 1", "", "a: [", "\x00"):
        with pytest.raises(ConfigError, match="no compiled pipeline|no YAML"):
            refuse_package(other, {})
    own = "root: {}\ndeploymentSpec: {executors: {a: {container: {image: busybox}}}}"
    refuse_package(own, {})
    assert components_of(own) == []
    assert sorted(set(components_of(text))) == sorted(ALL)
    transfer = (PROJECT / "pipelines" / "transfer.kfp.yaml").read_text()
    with pytest.raises(ConfigError, match="'artifacts/pretrain/checkpoint', a path of this mach"):
        refuse_package(transfer, {})
    with pytest.raises(ConfigError) as refused:
        refuse_package(transfer, {"pretrained": "s3://b/w.npz"})
    assert "a path of this machine" not in str(refused.value)


def test_advice_names_what_was_given() -> None:
    changes = {"cluster__parts": {"validate": 4}, "cluster__launcher": "task"}
    with pytest.raises(ConfigError) as refused:
        refuse_impossible(params(**changes), ALL)
    said = str(refused.value)
    assert "cluster.parts.validate is 4" in said
    assert said.endswith("give cluster.launcher=job, or cluster.parts.validate=1")
    refuse_impossible(params(**{**changes, "cluster__parts": {"validate": 1}}), ALL)


def test_parts_are_of_the_datasets_that_the_pipeline_needs() -> None:
    given = params(cluster__nodes={"validate": 4}, pretrain__examples=10**6, data__shards_at=None)
    with pytest.raises(ConfigError, match="validate of dataset 'upstream' is done in parts"):
        refuse_impossible(given, ALL)
    refuse_impossible(given, ALL - {"pretrain"})
    assert not any("launch " in line for line in said_beforehand(given, ["validate"], None))
    (note,) = [one for one in notes(given, ALL - {"pretrain"}) if "cluster.nodes.validate" in one]
    assert "is known to have 100,000 images or more" in note
