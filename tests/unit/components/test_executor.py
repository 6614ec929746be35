from __future__ import annotations

import json
from pathlib import Path

import pytest

from bigtransfer.errors import ConfigError
from bigtransfer.storage import digest_of, new_folder
from bigtransfer.storage.volumes import MOST_FILES
from components.executor import ExecutorInput, unpacked
from fixtures.executor import given, said


def test_outputs_carry_digests_figures_and_the_matrix(tmp_path: Path) -> None:
    with new_folder(tmp_path / "shards") as partial:
        summary = {"examples": 20, "dataset": "pets", "multi_label": False, "splits": {"train": 20}}
        (partial / "index.json").write_text(json.dumps(summary))
    figures = {"registered_test_top1": 0.5, "upstream": {"5_per_class": {"top1_median": 0.4}}}
    matrix = {"annotationSpecs": [{"displayName": "a"}], "rows": [{"row": [3]}]}
    (tmp_path / "metrics").write_text(json.dumps(figures))
    (tmp_path / "confusion").write_text(json.dumps(matrix))
    (tmp_path / "page").write_text("<!doctype html>")
    names = ("shards", "metrics", "confusion", "page")
    kinds = ("Dataset", "Metrics", "ClassificationMetrics", "HTML")
    text = given(tmp_path, **dict(zip(names, kinds, strict=True)))
    ExecutorInput(text).report({name: tmp_path / name for name in names}, {})
    found = said(tmp_path)
    assert found["shards"]["uri"] == str(tmp_path / "shards")
    assert found["shards"]["metadata"] == {
        "digest": digest_of(tmp_path / "shards"), "examples": 20, "dataset": "pets",
    }  # fmt: skip
    assert found["metrics"]["metadata"] == {
        "registered_test_top1": 0.5, "upstream.5_per_class.top1_median": 0.4,
    }  # fmt: skip
    assert found["confusion"]["metadata"] == {"confusionMatrix": matrix}
    assert found["page"]["metadata"]["digest"] == digest_of(tmp_path / "page")


def test_metrics_are_never_empty_and_hold_figures_alone(tmp_path: Path) -> None:
    (tmp_path / "metrics").write_text(json.dumps({"top1": float("nan"), "of": {}}))
    (tmp_path / "page").write_text("<!doctype html>")
    text = given(tmp_path, metrics="Metrics", page="HTML")
    paths = {name: tmp_path / name for name in ("metrics", "page")}
    ExecutorInput(text).report(paths, {"mlflow_run": "http://m/1"})
    assert said(tmp_path)["metrics"]["metadata"] == {"figures": 0.0}
    assert said(tmp_path)["page"]["metadata"]["mlflow_run"] == "http://m/1"


def test_many_files_travel_as_few(tmp_path: Path) -> None:
    for number in range(MOST_FILES + 1):
        path = tmp_path / "images" / f"class {number % 3}" / f"ü{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes([number]) * number)
    digest = digest_of(tmp_path / "images")
    text = given(tmp_path, images="Dataset")
    ExecutorInput(text).report({"images": tmp_path / "images"}, {})
    assert said(tmp_path)["images"]["metadata"]["digest"] == digest
    assert len(list((tmp_path / "images").iterdir())) == 4
    found = unpacked({"images": tmp_path / "images"}, (), tmp_path / "work")
    assert found["images"] != tmp_path / "images"
    assert digest_of(found["images"]) == digest
    assert unpacked({"images": tmp_path / "images"}, ("images",), tmp_path) == {
        "images": tmp_path / "images"
    }


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"outputs": {"artifacts": {}}}', "{{$}}"])
def test_nonsense_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="is not what Kubeflow Pipelines passes"):
        ExecutorInput(text)
