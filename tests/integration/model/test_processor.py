from __future__ import annotations

import os
import subprocess
import sys

import pytest

# 64 blocks of 1 MiB, taken and freed again and again, as a training step does.
STEPS = """
import ctypes, resource, torch
from bigtransfer.model.processor import use_cpu
{before}
def step():
    blocks = [torch.ones(1 << 18) for _ in range(64)]
step(); step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5): step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before, torch.get_num_threads())
"""


def faults(before: str, **environment: str) -> tuple[int, int]:
    # The thresholds hold for a whole process; so each case has its own.
    tuning = ("MALLOC_", "GLIBC_TUNABLES")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(tuning)}
    done = subprocess.run(
        [sys.executable, "-c", STEPS.format(before=before)],
        env=kept | environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    number, threads = done.stdout.split()
    return int(number), int(threads)


@pytest.mark.skipif(sys.platform != "linux", reason="needs glibc")
def test_freed_memory_is_kept_unless_the_user_has_tuned_malloc() -> None:
    kept, threads = faults("use_cpu(1)")
    assert threads == 1
    tuned, _ = faults("use_cpu(1)", MALLOC_TRIM_THRESHOLD_="131072")
    pages = 5 * 64 * (1 << 20) // os.sysconf("SC_PAGE_SIZE")
    assert kept < pages / 20
    assert tuned > pages / 2
