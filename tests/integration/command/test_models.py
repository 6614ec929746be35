"""`export` with the real exporter; `predict` into a pipe that closes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fixtures.commands import call
from fixtures.models import seven_photos
from fixtures.project import PROJECT


def test_export_says_what_it_compared(
    tuned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    out = tmp_path / "model.pt2"
    assert call("export", tuned, out, "--format", "torch") == 0
    assert "64/64 top-1 equal, max |Δp| = " in capsys.readouterr().out
    assert out.stat().st_size > 100_000


def test_a_reader_that_leaves_is_no_bug(tuned: Path, tmp_path: Path) -> None:
    folder = seven_photos(tmp_path / "photos")
    line = [sys.executable, "-m", "bigtransfer.command", "predict", str(tuned)]
    with subprocess.Popen(
        [*line, *[str(folder)] * 40], cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"},
    ) as running:  # fmt: skip
        assert running.stdout is not None and running.stderr is not None
        running.stdout.readline()
        running.stdout.close()
        said = running.stderr.read()
    assert running.returncode == 141
    assert "Traceback" not in said
