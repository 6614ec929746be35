from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from bigtransfer.command.dvc_lock import make_way
from bigtransfer.errors import LockError


def write_lock(project: Path, pid: int) -> Path:
    path = project / ".dvc" / "tmp" / "rwlock"
    path.parent.mkdir(parents=True)
    info = {"pid": pid, "cmd": "dvc repro"}
    path.write_text(json.dumps({"write": {"/x": info}, "read": {"/y": [info]}}))
    return path


def test_nothing_to_do_without_a_lock(tmp_path: Path) -> None:
    make_way(tmp_path)


def test_marks_of_a_dead_process_are_removed_even_if_nobody_collected_it(tmp_path: Path) -> None:
    process = subprocess.Popen(["true"])
    path = write_lock(tmp_path, process.pid)
    while psutil.Process(process.pid).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)
    make_way(tmp_path)
    process.wait()
    assert not path.exists()


def test_a_file_cut_by_a_kill_is_removed(tmp_path: Path) -> None:
    path = write_lock(tmp_path, 1)
    path.write_text(path.read_text()[:20])
    make_way(tmp_path)
    assert not path.exists()


def test_a_dvc_at_work_is_named(tmp_path: Path) -> None:
    line = [sys.executable, "-c", "input()", "dvc", "repro"]
    with subprocess.Popen(line, stdin=subprocess.PIPE) as process:
        while "dvc" not in psutil.Process(process.pid).cmdline():
            time.sleep(0.01)  # not yet the program it is to become
        path = write_lock(tmp_path, process.pid)
        with pytest.raises(LockError, match=rf"pid {process.pid} \(dvc repro\).*`kill "):
            make_way(tmp_path)
        assert path.exists()
        assert process.stdin is not None
        process.stdin.close()
