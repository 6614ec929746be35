"""Kills at random moments; all of it by `make test-long` (test_resume.py kills in `make test`)."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from fixtures.project import PROJECT, environment

pytestmark = pytest.mark.e2e
_TIMES = int(os.environ.get("BIGTRANSFER_TEST_TIMES", "1"))
_KILLS = [
    # S3 is the same with a bucket beside the disk.
    pytest.param(2, [], id="one process", marks=pytest.mark.long),
    pytest.param(4, ["--processes", "2"], id="two processes", marks=pytest.mark.long),
    pytest.param(2, ["--s3"], id="S3", marks=pytest.mark.long),
]


@pytest.mark.parametrize(("kills", "more"), _KILLS)
def test_killed_at_random_moments_it_ends_with_the_same_bits(kills: int, more: list[str]) -> None:
    script = str(PROJECT / "benchmarks" / "kill_test.py")
    result = subprocess.run(
        [sys.executable, script, "--kills", str(kills * _TIMES), *more],
        env=environment(), capture_output=True, text=True, check=False, timeout=500 * _TIMES,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    assert "finished with the same weights, momentum and journal; 0 hung" in result.stdout
    if "--processes" in more:
        kinds = ("rank 0", "rank 1", "all ranks", "torchrun")
        found = [kind for kind in kinds if f"\n{kind} " in result.stdout]
        assert len(found) == min(kills * _TIMES, len(kinds)), "one of each kind, as far as they go"
