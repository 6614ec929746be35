from __future__ import annotations

from pathlib import Path

import pytest

from bigtransfer.track.address import page_of_run, without_secrets
from bigtransfer.track.pods import part_of


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("http://mlflow:5000", "http://mlflow:5000"),
        ("https://user:word@mlflow.example/base/", "https://mlflow.example/base"),
        ("http://mlflow/a@b", "http://mlflow/a@b"),
    ],
)
def test_an_address_for_people_holds_no_password(address: str, shown: str) -> None:
    assert without_secrets(address) == shown


def test_only_a_server_has_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000/")
    assert page_of_run(tmp_path, "1", "ab") == "http://mlflow:5000/#/experiments/1/runs/ab"
    for other in ("", "sqlite:////tmp/mlflow.db", "file:///tmp/mlruns", "databricks"):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", other)
        assert page_of_run(tmp_path, "1", "ab") is None


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("x --part 3/8 --shards y", "3/8"),
        ("x --part=3/8", "3/8"),
        ("x --join 8", ""),
        ("x --part", ""),
    ],
)
def test_a_part_is_told_by_the_command_line(line: str, part: str) -> None:
    assert part_of(line.split()) == part
