"""SIGTERM and Ctrl-C during training: finish the step, save, end in time; or end at once.

`stop_seconds: 0` is for places that leave no time, as KFP does: its launcher dies first and takes
us along. A last checkpoint would be half of one there.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from bigtransfer.errors import InfrastructureError, StoppedError

_OURS = (signal.SIGTERM, signal.SIGINT)
_TRY_AGAIN = InfrastructureError.exit_code


class Interrupts:
    """What was asked of this process from outside."""

    def __init__(self, stop_seconds: float, *, child: bool = False) -> None:
        self.signal: signal.Signals | None = None
        self.stop_seconds = stop_seconds
        self._timer: threading.Timer | None = None
        # A worker whose parent is gone must not train on: nobody would wait for it.
        self._parent = os.getppid() if child or "TORCHELASTIC_RUN_ID" in os.environ else None

    @property
    def saves(self) -> bool:
        """Say whether there is time for a last checkpoint on the way out."""
        return self.stop_seconds > 0

    @property
    def orphaned(self) -> bool:
        """Say whether the process above, `torchrun` or ours, is gone."""
        return self._parent is not None and os.getppid() != self._parent

    @property
    def wanted(self) -> bool:
        """Say whether the run should save and end now."""
        return self.signal is not None or self.orphaned

    def end(self, step: int) -> None:
        """End the run after a step; its checkpoint is written where there is time for one.

        Raises:
            KeyboardInterrupt: After Ctrl-C.
            StoppedError: After SIGTERM, or if the process above is gone.
        """
        if self.signal == signal.SIGINT:
            raise KeyboardInterrupt
        why = self.signal.name if self.signal else "the end of another process"
        if not self.saves:
            raise StoppedError(_at_once(f"{why} at step {step:,}"))
        raise StoppedError(
            f"stopped by {why} at step {step:,}, with a checkpoint; run the same again to go on"
        )

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        """Take note; a second Ctrl-C ends at once."""
        if self.signal == signal.SIGINT and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = self.signal or signal.Signals(number)

    def count_down(self, pipe: int) -> None:
        """Read from a pipe which signals arrive, and start the clock at the first of ours.

        The handler above runs only when the main thread comes back from PyTorch; this does not
        wait for that. Without any time, the process ends here. Ends when the pipe is closed.
        """
        while received := os.read(pipe, 1):
            if received[0] in _OURS and self._timer is None:
                arrived = signal.Signals(received[0])
                if not self.saves:
                    _leave(_at_once(arrived.name), arrived)
                self._timer = threading.Timer(self.stop_seconds, self._give_up, [arrived])
                self._timer.daemon = True
                self._timer.start()
        os.close(pipe)

    def close(self) -> None:
        """Call the clock off: the end is near."""
        if self._timer is not None:
            self._timer.cancel()

    def _give_up(self, arrived: signal.Signals) -> None:
        _leave(
            f"no end within {self.stop_seconds:g} s of {arrived.name}; the last checkpoint "
            "counts, run the same again to go on",
            arrived,
        )


def _at_once(why: str) -> str:
    return (
        f"stopped by {why}, at once (stop_seconds: 0); the last checkpoint counts, run the same "
        "again to go on"
    )


def _leave(line: str, arrived: signal.Signals) -> NoReturn:
    print(line, file=sys.stderr, flush=True)
    os._exit(130 if arrived == signal.SIGINT else _TRY_AGAIN)


@contextmanager
def watched(stop_seconds: float, *, child: bool = False) -> Iterator[Interrupts]:
    """Watch for SIGTERM and Ctrl-C within the block.

    Args:
        stop_seconds: The process ends so long after the signal, if the block does not; 0: at the
            signal.
        child: Whether this process is to end, too, when the one above is gone.
    """
    interrupts = Interrupts(stop_seconds, child=child)
    if threading.current_thread() is not threading.main_thread():
        yield interrupts  # signals reach the main thread alone
        return
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    threading.Thread(target=interrupts.count_down, args=(reading,), daemon=True).start()
    before = {number: signal.signal(number, interrupts.on_signal) for number in _OURS}
    woken = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    try:
        yield interrupts
    finally:
        signal.set_wakeup_fd(woken)
        os.close(writing)
        interrupts.close()
        for number, handler in before.items():
            signal.signal(number, handler)
