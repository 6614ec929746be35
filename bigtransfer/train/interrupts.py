"""SIGTERM and Ctrl-C during training: finish the step, save, end in time."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from bigtransfer.errors import InfrastructureError

_TRY_AGAIN = InfrastructureError.exit_code


class Interrupts:
    """What was asked of this process from outside."""

    def __init__(self, stop_seconds: float) -> None:
        self.signal: signal.Signals | None = None
        self._stop_seconds = stop_seconds
        self._timer: threading.Timer | None = None
        # Under `torchrun` a worker whose parent is gone must not train on: it would hold the lock.
        self._parent = os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else None

    @property
    def orphaned(self) -> bool:
        """Say whether the `torchrun` above is gone."""
        return self._parent is not None and os.getppid() != self._parent

    @property
    def wanted(self) -> bool:
        """Say whether the run should save and end now."""
        return self.signal is not None or self.orphaned

    def end(self, step: int) -> None:
        """End the run after a step whose checkpoint is written.

        Raises:
            KeyboardInterrupt: After Ctrl-C.
            InfrastructureError: After SIGTERM, or if `torchrun` is gone.
        """
        if self.signal == signal.SIGINT:
            raise KeyboardInterrupt
        why = self.signal.name if self.signal else "the end of another process"
        raise InfrastructureError(
            f"stopped by {why} at step {step:,}, with a checkpoint; run the same again to go on"
        )

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        """Take note; a second Ctrl-C ends at once."""
        if self.signal == signal.SIGINT and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = signal.Signals(number)
        self._timer = threading.Timer(self._stop_seconds, self._give_up)
        self._timer.daemon = True
        self._timer.start()

    def close(self) -> None:
        """Call the timer off: the end is near."""
        if self._timer is not None:
            self._timer.cancel()

    def _give_up(self) -> None:
        assert self.signal is not None
        print(
            f"no end within {self._stop_seconds:g} s of {self.signal.name}; the last checkpoint "
            "counts, run the same again to go on",
            file=sys.stderr,
            flush=True,
        )
        os._exit(130 if self.signal == signal.SIGINT else _TRY_AGAIN)


@contextmanager
def watched(stop_seconds: float) -> Iterator[Interrupts]:
    """Watch for SIGTERM and Ctrl-C within the block.

    Args:
        stop_seconds: The process ends so long after the signal, if the block does not.
    """
    interrupts = Interrupts(stop_seconds)
    if threading.current_thread() is not threading.main_thread():
        yield interrupts  # signals reach the main thread alone
        return
    before = {n: signal.signal(n, interrupts.on_signal) for n in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield interrupts
    finally:
        interrupts.close()
        for number, handler in before.items():
            signal.signal(number, handler)
