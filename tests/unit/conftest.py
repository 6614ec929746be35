"""A unit test starts no process and opens no port: what does so lies in `tests/integration`."""

from __future__ import annotations

import multiprocessing.process
import sys
from collections.abc import Iterator
from typing import Any

import pytest

_FORBIDDEN = ("subprocess.Popen", "os.fork", "os.posix_spawn", "os.system", "socket.bind")
_at_work = False


def _refuse(event: str, arguments: tuple[Any, ...]) -> None:
    if _at_work and event in _FORBIDDEN:
        raise AssertionError(f"a unit test must not do this ({event}): move it to integration")


sys.addaudithook(_refuse)


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    global _at_work
    start = multiprocessing.process.BaseProcess.start

    def refuse(self: multiprocessing.process.BaseProcess) -> None:
        _refuse("subprocess.Popen", ())
        start(self)

    monkeypatch.setattr(multiprocessing.process.BaseProcess, "start", refuse)
    _at_work = True
    yield
    _at_work = False
