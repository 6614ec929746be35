"""Several runs at once: processes beside this one, each with its own device.

They do what one process would do in turn, and what one of them raises is raised here.
"""

from __future__ import annotations

import multiprocessing
import signal
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from typing import Any

from bigtransfer.errors import BigTransferError, InfrastructureError, StoppedError
from bigtransfer.train.interrupts import Interrupts, watched

Work = Callable[[int, Interrupts, Callable[[int], None]], Any]
"""`work(item, interrupts, tell)`: do one item, tell its finished steps, return its result."""

_STEP, _DONE, _FAILED, _STOPPED = range(4)
_LOOK_SECONDS = 0.2


def in_workers(
    make: Callable[[int], Work],
    items: Sequence[int],
    count: int,
    interrupts: Interrupts,
    tell: Callable[[int, int], None],
) -> Iterator[tuple[int, Any]]:
    """Do all items and yield (item, result) as they are finished.

    Args:
        make: Returns what does the items, given the number of the worker; can be pickled.
        items: What there is to do.
        count: Workers; with one, this process does it all.
        interrupts: Of this process; passed on to the workers.
        tell: Receives (item, finished steps).

    Raises:
        InfrastructureError: If a worker vanishes, or after SIGTERM.
        KeyboardInterrupt: After Ctrl-C.
    """
    count = min(count, len(items))
    if count <= 1:
        work = make(0)
        for item in items:
            yield item, work(item, interrupts, lambda step: tell(item, step))  # noqa: B023  # called before the next turn
        return
    team = _Team(make, count, interrupts.stop_seconds)
    try:
        yield from team.do(deque(items), interrupts, tell)
    finally:
        team.end()


class _Member:
    def __init__(self, make: Callable[[int], Work], number: int, stop_seconds: float) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.item: int | None = None
        self.process = context.Process(
            target=_serve, args=(make, number, theirs, stop_seconds), name=f"worker-{number}"
        )
        self.process.start()
        theirs.close()

    def take(self, waiting: deque[int]) -> None:
        self.item = waiting.popleft() if waiting else None
        if self.item is not None:
            self.connection.send(self.item)


class _Team:
    def __init__(self, make: Callable[[int], Work], count: int, stop_seconds: float) -> None:
        self._stop_seconds = stop_seconds
        self._members = [_Member(make, number, stop_seconds) for number in range(count)]

    def do(
        self, waiting: deque[int], interrupts: Interrupts, tell: Callable[[int, int], None]
    ) -> Iterator[tuple[int, Any]]:
        for member in self._members:
            member.take(waiting)
        steps: dict[int, int] = {}
        while busy := {m.connection: m for m in self._members if m.item is not None}:
            if interrupts.wanted:
                self.end()
                interrupts.end(sum(steps.values()))
            for connection in wait(list(busy), timeout=_LOOK_SECONDS):
                assert isinstance(connection, Connection)
                member = busy[connection]
                item = member.item
                assert item is not None
                kind, value = self._received(member)
                if kind == _STEP:
                    steps[item] = value
                    tell(item, value)
                elif kind == _DONE:
                    yield item, value
                    member.take(waiting)
                elif kind == _FAILED:
                    raise value if isinstance(value, BigTransferError) else RuntimeError(value)
                elif not interrupts.wanted:
                    kept = "with a checkpoint" if interrupts.saves else "the last checkpoint counts"
                    raise StoppedError(
                        f"a worker process was stopped, {kept}; run the same again to go on"
                    )
                else:
                    member.item = None
        if interrupts.wanted:
            interrupts.end(sum(steps.values()))

    def _received(self, member: _Member) -> tuple[int, Any]:
        try:
            kind, value = member.connection.recv()
        except (EOFError, ConnectionError) as error:
            member.process.join()
            raise InfrastructureError(
                f"a worker process ended with code {member.process.exitcode} (-9: killed, often "
                "because memory ran out); run the same again to go on, with fewer 'workers'"
            ) from error
        return kind, value

    def end(self) -> None:
        """Stop whoever is at work, with a checkpoint, and wait for all."""
        for member in self._members:
            if member.item is not None and member.process.is_alive():
                member.process.terminate()
        for member in self._members:
            if member.item is None:
                member.connection.close()
        for member in self._members:
            # Whoever waits for room in its pipe would never end: read what it has to say.
            while member.item is not None and member.process.is_alive():
                with suppress(EOFError, OSError):
                    if member.connection.poll(_LOOK_SECONDS):
                        member.connection.recv()
            member.process.join(self._stop_seconds)
            member.process.kill()
            member.process.join()


def _serve(
    make: Callable[[int], Work], number: int, connection: Connection, stop_seconds: float
) -> None:
    def tell(step: int) -> None:
        with suppress(OSError):  # the parent is gone; `interrupts` knows
            connection.send((_STEP, step))

    with watched(stop_seconds, child=True) as interrupts:
        try:
            work = make(number)
            while True:
                try:
                    item = connection.recv()
                except (EOFError, ConnectionError):
                    return
                connection.send((_DONE, work(item, interrupts, tell)))
        except BaseException as error:  # noqa: BLE001  # whatever it is, the parent must hear of it
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            message: tuple[int, Any] = (_FAILED, error)
            if interrupts.wanted:
                message = (_STOPPED, None)
            elif not isinstance(error, BigTransferError):
                message = (_FAILED, "in a worker process:\n" + traceback.format_exc())
            with suppress(OSError):
                connection.send(message)
