from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bigtransfer import config
from bigtransfer.errors import ConfigError
from fixtures.project import PROJECT


@pytest.fixture
def raw() -> dict[str, Any]:
    return config.read_yaml(PROJECT / "params.yaml")


def faults(raw: dict[str, Any]) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        config.resolve(raw, "params.yaml")
    return str(caught.value).splitlines()


def test_shipped_params_are_valid(raw: dict[str, Any]) -> None:
    params = config.resolve(raw, "params.yaml")
    assert params.tasks["digits"].total_steps == raw["finetune"]["total_steps"]


def test_entry_overrides_the_shared_rules(raw: dict[str, Any]) -> None:
    raw["datasets"]["photos"] = {"path": "x", "min_classes": 7}
    photos = config.resolve(raw, "params.yaml").datasets["photos"]
    assert (photos.min_classes, photos.shard_bytes) == (7, raw["data"]["shard_bytes"])


def test_params_from_before_finetune_could_resume_are_taken(raw: dict[str, Any]) -> None:
    del raw["finetune"]["resume"]
    assert config.resolve(raw, "params.yaml").tasks["digits"].resume == "same_code"


def test_params_from_before_finetune_had_a_mirror_are_taken(raw: dict[str, Any]) -> None:
    del raw["finetune"]["checkpoint_mirror"], raw["finetune"]["stop_seconds"]
    digits = config.resolve(raw, "params.yaml").tasks["digits"]
    assert (digits.checkpoint_mirror, digits.stop_seconds) == (None, 12)


def test_no_time_to_stop_and_a_mirror_are_taken(raw: dict[str, Any]) -> None:
    for section in ("pretrain", "finetune"):
        raw[section] |= {"stop_seconds": 0, "checkpoint_mirror": "s3://photos/state"}
    params = config.resolve(raw, "params.yaml")
    assert params.pretrain.stop_seconds == params.tasks["digits"].stop_seconds == 0


@pytest.mark.parametrize("address", ["s3://", "s3:///state", "gs://photos", "photos/state", ""])
def test_a_mirror_that_is_no_place_in_a_bucket_is_refused(
    raw: dict[str, Any], address: str
) -> None:
    raw["finetune"]["checkpoint_mirror"] = raw["pretrain"]["checkpoint_mirror"] = address
    for place in ("pretrain", "finetune"):
        line = f"'{place}.checkpoint_mirror': must be s3://<bucket>/<prefix> or null, got "
        assert any(line in fault for fault in faults(raw)), faults(raw)


def test_unknown_key_suggests_the_right_one_and_hides_the_missing_one(raw: dict[str, Any]) -> None:
    raw["finetune"]["total_step"] = raw["finetune"].pop("total_steps")
    assert faults(raw) == [
        "params.yaml: unknown key 'total_step' in section 'finetune'; did you mean 'total_steps'?"
    ]


def test_all_faults_come_in_one_report(raw: dict[str, Any]) -> None:
    raw["pretrian"] = raw.pop("pretrain")
    raw["finetune"]["seeds"] = [0, 0]
    raw["data"]["min_classes"] = "two"
    raw["datasets"]["upstream"]["pth"] = "x"
    raw["tasks"]["digits"]["dataset"] = "digit"
    lines = faults(raw)
    for part in (
        "unknown section 'pretrian'; did you mean 'pretrain'?",
        "section 'pretrain' is missing",
        "'finetune': seeds holds a value twice",
        "'data.min_classes' is 'two', but it should be a valid integer",
        "unknown key 'pth' in section 'datasets.upstream'",
        "'tasks.digits.dataset' is 'digit', which 'datasets' does not name; did you mean 'digits'?",
    ):
        assert any(part in line for line in lines), (part, lines)


@pytest.mark.parametrize(
    ("section", "key", "value", "message"),
    [
        ("pretrain", "seed", True, "is True, but it should be a valid integer"),
        ("pretrain", "batch_size", 20.5, "is 20.5, but it should be a valid integer"),
        ("pretrain", "base_lr", -1, "should be greater than 0"),
        ("pretrain", "base_lr", float("nan"), "is nan"),
        ("pretrain", "base_lr", "0.1", "is '0.1', but it should be a valid number"),
        ("pretrain", "crop", 99, "crop 99 must not exceed precrop 18"),
        ("pretrain", "decay_epochs", [2, 1], "decay_epochs must increase"),
        ("pretrain", "decay_epochs", [99], "decay_epochs must stay below epochs"),
        ("pretrain", "root", "tiny", "should be 'imagenet' or 'small'"),
        ("finetune", "examples_per_class", [0], "should be greater than 0"),
        ("finetune", "examples_per_class", ["ful"], "should be a whole number, or full"),
        ("finetune", "examples_per_class", [2.5], "should be a whole number, or full"),
        ("finetune", "examples_per_class", [True], "should be a whole number, or full"),
        ("finetune", "examples_per_class", [], "at least 1 item"),
        ("finetune", "preset", "papper", "should be 'paper', 'repository' or 'quick'"),
        ("data", "splits", {"val": 0.6, "test": 0.6}, "val + test must stay below 1"),
    ],
)  # fmt: skip
def test_bad_value_is_named(
    raw: dict[str, Any], section: str, key: str, value: Any, message: str
) -> None:
    raw[section][key] = value
    (line,) = faults(raw)
    assert line.startswith(f"params.yaml: '{section}")
    assert message in line


def test_whole_float_is_an_integer(raw: dict[str, Any]) -> None:
    raw["pretrain"]["batch_size"] = 32.0
    assert config.resolve(raw, "p").pretrain.batch_size == 32


def test_yaml_1_2_number_without_dot(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text("a: 3e-3\n")
    assert config.read_yaml(tmp_path / "p.yaml") == {"a": 0.003}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\na: 2\n", "p.yaml, line 2, column 1: not valid YAML: found duplicate key"),
        ("a:\n\tb: 1\n", "p.yaml, line 2, column 1: not valid YAML"),
        ("", "must hold sections with keys, got None"),
        ("- 1\n", "must hold sections with keys, got [1]"),
        ("a: !!python/object:os.system 1\n", "not valid YAML"),
    ],
)
def test_unreadable_yaml_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "p.yaml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        config.read_yaml(tmp_path / "p.yaml")
    assert message in str(caught.value)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file; run from the project's root"):
        config.load(tmp_path / "params.yaml")


def test_overlay_holds_only_what_differs(tmp_path: Path) -> None:
    (tmp_path / "over.yaml").write_text("pretrain: {epochs: 9}\n")
    params = config.load(PROJECT / "params.yaml", tmp_path / "over.yaml")
    assert (params.pretrain.epochs, params.pretrain.root) == (9, "small")


@pytest.mark.parametrize("section", ["pretrain", "datasets.digits", "tasks.alphabets", "register"])
def test_json_route_gives_the_same_object(section: str) -> None:
    typed = config.load(PROJECT / "params.yaml").section(section)
    assert config.from_json(typed.model_dump_json(), type(typed)) == typed


def test_json_route_takes_numbers_as_kfp_sends_them() -> None:
    typed = config.load(PROJECT / "params.yaml").pretrain
    values = {**json.loads(typed.model_dump_json()), "batch_size": 32.0}
    assert config.from_json(json.dumps(values), config.PretrainParams) == typed


def test_unknown_section_is_named() -> None:
    params = config.load(PROJECT / "params.yaml")
    with pytest.raises(ConfigError, match="no section 'pretrian'; did you mean 'pretrain'"):
        params.section("pretrian")
    with pytest.raises(ConfigError, match="no entry 'digit'; did you mean 'digits'"):
        params.section("tasks.digit")


def test_remote_sources_are_named_in_one_place_and_mirrored_alike(raw: dict[str, Any]) -> None:
    raw["datasets"]["pets"] = {"path": "artifacts/sources/pets", "source": "s3://b/pets"}
    assert faults(raw) == [
        "params.yaml: 'datasets.pets' has a source; add 'pets' to 'remote', so it is fetched"
    ]
    raw["remote"] = ["pets"]
    assert config.resolve(raw, "params.yaml").remote == ("pets",)
    raw["datasets"]["pets"]["mirror"] = True
    assert faults(raw) == [
        "params.yaml: 'datasets.pets.mirror': set 'mirror' under 'data', for all sources alike"
    ]
    raw["datasets"]["pets"] = {"path": "s3://b/pets"}
    assert any("DVC depends on local paths only" in line for line in faults(raw))


def test_null_in_an_overlay_takes_an_entry_away(tmp_path: Path) -> None:
    overlay = tmp_path / "over.yaml"
    overlay.write_text("datasets: {alphabets: null}\ntasks: {alphabets: null}\n")
    params = config.load(PROJECT / "params.yaml", overlay)
    assert list(params.tasks) == ["digits"]
    assert "alphabets" not in params.datasets
    back = config.load(PROJECT / "params.yaml", overlay, {"tasks": {"digits": {"seeds": [7]}}})
    assert back.tasks["digits"].seeds == (7,)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"placement": {"pretrain": "gpus"}}, "placement.pretrain is 'gpus', which 'pools' does"),
        (
            {"placement": {"pretrian": "gpu"}},
            "placement names 'pretrian', which is no component on",
        ),
        ({"timeout_hours": {"train": 3}}, "timeout_hours names 'train', which is no component"),
        ({"env": {"MY_TOKEN": "x"}}, "MY_TOKEN looks like a secret"),
        ({"tracking_uri": "http://me:word@host"}, "tracking_uri looks like a secret"),
        ({"endpoint": "host"}, "'cluster.endpoint' is 'host'"),
        ({"pools": {"gpu": {"count": 0}}}, "accelerator and count belong together"),
        ({"pools": {"cpu": {"memory": "8 GB"}}}, "'cluster.pools.cpu.memory' is '8 GB'"),
    ],
)
def test_a_wrong_cluster_is_one_line(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config.load(PROJECT / "params.yaml", None, {"cluster": change})
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
