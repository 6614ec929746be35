"""The short form of `benchmarks/kill_test.py`; the long form is for a quiet hour."""

from __future__ import annotations

import subprocess
import sys

import pytest

from fixtures.project import PROJECT, environment

pytestmark = pytest.mark.e2e


@pytest.mark.parametrize(
    "more",
    [["--kills", "5"], ["--kills", "3", "--processes", "2"], ["--kills", "2", "--s3"]],
    ids=["one process", "two processes", "S3"],
)
def test_killed_at_random_moments_it_ends_with_the_same_bits(more: list[str]) -> None:
    result = subprocess.run(
        [sys.executable, str(PROJECT / "benchmarks" / "kill_test.py"), *more],
        env=environment(), capture_output=True, text=True, check=False, timeout=500,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    assert "finished with the same weights, momentum and journal; 0 hung" in result.stdout
