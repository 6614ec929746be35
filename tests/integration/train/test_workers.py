from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pytest

from bigtransfer.errors import DatasetError, InfrastructureError
from fixtures.processes.workers import ITEMS, failing, patient, run, squares, vanishing
from fixtures.project import TESTS, environment


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
        "from fixtures.processes import workers as t\n"
        "if __name__ == '__main__':\n"
        "    t.run(partial(t.patient, folder=Path(sys.argv[1])), 2)\n"
    )
    (tmp_path / "main.py").write_text(code, "utf-8")
    parent = subprocess.Popen(
        [sys.executable, str(tmp_path / "main.py"), str(tmp_path)],
        env=environment(PYTHONPATH=TESTS),
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
