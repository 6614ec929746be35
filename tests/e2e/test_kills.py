"""Kills at random moments: one of each kind here, many more of them by `make test-long`."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from fixtures.project import PROJECT, environment

pytestmark = pytest.mark.e2e
_TIMES = int(os.environ.get("BIGTRANSFER_TEST_TIMES", "1"))
_KILLS = {"one process": (2, []), "two processes": (4, ["--processes", "2"]), "S3": (2, ["--s3"])}
if _TIMES == 1:
    del _KILLS["one process"]  # S3 is the same with a bucket beside the disk


@pytest.mark.parametrize(("kills", "more"), _KILLS.values(), ids=_KILLS)
def test_killed_at_random_moments_it_ends_with_the_same_bits(kills: int, more: list[str]) -> None:
    script = str(PROJECT / "benchmarks" / "kill_test.py")
    result = subprocess.run(
        [sys.executable, script, "--kills", str(kills * _TIMES), *more],
        env=environment(), capture_output=True, text=True, check=False, timeout=500 * _TIMES,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    assert "finished with the same weights, momentum and journal; 0 hung" in result.stdout
    if _TIMES == 1:
        for kind in ("rank 0", "rank 1", "all ranks", "torchrun") if "--processes" in more else ():
            assert f"\n{kind} " in result.stdout, "one of each kind"
