"""A component as Kubeflow Pipelines starts it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bigtransfer import config
from bigtransfer.storage import digest_of
from fixtures.executor import given, said
from fixtures.project import PROJECT


def test_a_component_reports_what_it_wrote(
    photos: Path, run_line: Callable[..., Any], tmp_path: Path
) -> None:
    section = config.load(PROJECT / "params.yaml").datasets["digits"].model_dump()
    section |= {"name": "photos", "path": "photos"}
    section["min_examples_per_class"] = 3
    out = tmp_path / "out"
    text = given(tmp_path, manifest="Dataset", validation="Dataset")
    done = run_line(
        "components.validate", "--params-json", json.dumps(section), "--dataset", str(photos),
        "--manifest", str(out / "manifest"), "--validation", str(out / "validation"),
        "--executor-input", text,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert said(tmp_path)["manifest"]["metadata"]["digest"] == digest_of(out / "manifest")
