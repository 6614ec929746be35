"""The script for the day when a GPU is at hand, in small on the CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from fixtures.project import PROJECT

OBLIGATORY = {"kernels", "network", "train-r50x1", "pretraining", "kill"}


def session(out: Path, minutes: float) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(PROJECT / "benchmarks" / "gpu_session.py"), "--device", "cpu",
         "--minutes", str(minutes), "--out", str(out)],
        env={**os.environ, "MLFLOW_TRACKING_URI": ""}, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_a_session_does_every_part_in_order_and_goes_on_where_time_ended(tmp_path: Path) -> None:
    began = session(tmp_path, 0.05)
    assert began.returncode == 1, began.stdout
    assert "OPEN kill: no time was left" in began.stdout
    ended = session(tmp_path, 4)
    assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-2000:]
    parts = json.loads((tmp_path / "session.json").read_text())["parts"]
    assert set(parts) >= OBLIGATORY
    assert all(part["done"] for name, part in parts.items() if name in OBLIGATORY), parts
    assert parts["kill"]["bits equal"], "on a CPU"
    assert parts["kill"]["resumed at"] or not parts["kill"]["killed"]
    table = (tmp_path / "session.md").read_text()
    assert "| ours |" in table
    assert "**kill**" in table
    again = session(tmp_path, 4)
    assert again.returncode == 0
    assert "at most" not in again.stdout, "what is done is not done again"
