from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from bigtransfer.errors import DatasetError, InfrastructureError
from bigtransfer.train.interrupts import Interrupts, watched
from bigtransfer.train.workers import Work, in_workers
from fixtures.project import PROJECT

ITEMS = 5
SECONDS = 20.0


def squares(number: int) -> Work:
    def work(item: int, interrupts: Interrupts, tell: Callable[[int], None]) -> Any:
        tell(item)
        return os.getpid(), item * item

    return work


def failing(number: int, error: type[Exception]) -> Work:
    def work(item: int, interrupts: Interrupts, tell: Callable[[int], None]) -> Any:
        if item == 1:
            raise error("sample 'a.png' is no image")
        return patient(number, None)(item, interrupts, tell)

    return work


def vanishing(number: int) -> Work:
    def work(item: int, interrupts: Interrupts, tell: Callable[[int], None]) -> Any:
        os.kill(os.getpid(), signal.SIGKILL)

    return work


def patient(number: int, folder: Path | None) -> Work:
    """Count steps until it is told to stop, then save."""

    def work(item: int, interrupts: Interrupts, tell: Callable[[int], None]) -> Any:
        for step in range(10_000):
            time.sleep(0.01)
            tell(step)
            if folder is not None:
                (folder / f"{item}.running").touch()
            if interrupts.wanted:
                if folder is not None:
                    (folder / f"{item}.saved").write_text(str(os.getpid()), "utf-8")
                interrupts.end(step)

    return work


def run(make: Callable[[int], Work], count: int) -> tuple[dict[int, Any], dict[int, int]]:
    told: dict[int, int] = {}
    with watched(SECONDS) as interrupts:
        results = dict(in_workers(make, range(ITEMS), count, interrupts, told.__setitem__))
    return results, told


@pytest.mark.parametrize("count", [1, 2, 9])
def test_every_item_is_done_once(count: int) -> None:
    results, told = run(squares, count)
    assert {item: square for item, (_, square) in results.items()} == {
        item: item**2 for item in range(ITEMS)
    }
    assert told == {item: item for item in range(ITEMS)}
    pids = {pid for pid, _ in results.values()}
    assert (os.getpid() in pids) == (count == 1)
    assert len(pids) <= count
    assert multiprocessing.active_children() == []


def test_what_a_worker_raises_is_raised_here_and_the_others_end() -> None:
    with pytest.raises(DatasetError, match=r"^sample 'a.png' is no image$"):
        run(partial(failing, error=DatasetError), 2)
    assert multiprocessing.active_children() == []


def test_a_bug_in_a_worker_keeps_its_traceback() -> None:
    with pytest.raises(RuntimeError, match=r"(?s)Traceback .*in work.*ZeroDivisionError"):
        run(partial(failing, error=ZeroDivisionError), 2)


def test_a_worker_that_is_killed_says_so() -> None:
    with pytest.raises(InfrastructureError, match=r"ended with code -9 .*run the same again"):
        run(vanishing, 2)


def test_sigterm_lets_all_workers_save(tmp_path: Path) -> None:
    def stop() -> None:
        while len(list(tmp_path.glob("*.running"))) < 2:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop, daemon=True).start()
    with pytest.raises(InfrastructureError, match=r"stopped by SIGTERM at step [\d,]+, with a"):
        run(partial(patient, folder=tmp_path), 2)
    assert len(list(tmp_path.glob("*.saved"))) == 2
    assert multiprocessing.active_children() == []


def test_workers_save_and_end_when_the_process_above_is_killed(tmp_path: Path) -> None:
    code = (
        "import sys; from functools import partial; from pathlib import Path\n"
        "from unit.train import test_workers as t\n"
        "if __name__ == '__main__':\n"
        "    t.run(partial(t.patient, folder=Path(sys.argv[1])), 2)\n"
    )
    (tmp_path / "main.py").write_text(code, "utf-8")
    environment = {**os.environ, "PYTHONPATH": f"{PROJECT}:{PROJECT / 'tests'}"}
    parent = subprocess.Popen(
        [sys.executable, str(tmp_path / "main.py"), str(tmp_path)], env=environment
    )
    while len(list(tmp_path.glob("*.running"))) < 2:
        assert parent.poll() is None
        time.sleep(0.05)
    parent.kill()
    parent.wait()
    for item in (0, 1):
        note = tmp_path / f"{item}.saved"
        while not (note.is_file() and note.read_text("utf-8")):
            time.sleep(0.05)
