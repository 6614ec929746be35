"""What process 1 of a launched pod needs, whatever it runs: its number, its child, its end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import NoReturn

from bigtransfer.errors import ConfigError
from bigtransfer.kubeflow.torchrun import LOST

_RANKS = ("JOB_COMPLETION_INDEX", "PET_NODE_RANK")
"""Where an Indexed Job and Kubeflow Trainer say which node this is."""
KILLED = 137
SIGNALS = 128
"""Exit code of a process that a signal ended: this and its number."""


def number_of(pods: int) -> int:
    """Return which of so many pods of a Job this is; where nothing says so, end."""
    text = next(filter(None, map(os.environ.get, _RANKS)), "")
    if not text.isdecimal() or int(text) >= pods:
        names = " or ".join(_RANKS)
        print(f"{names} must say which of {pods} pods this is, not {text!r}", file=sys.stderr)
        sys.exit(ConfigError.exit_code)
    return int(text)


class Child:
    """The process that does the work; it is told to end when the pod is."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self.asked_to_end = False
        signal.signal(signal.SIGTERM, self._end)

    def run(self, line: Sequence[str], environment: Mapping[str, str] | None = None) -> int:
        """Run a line to its end; return its code, of signal n 128 + n, as the shell says it."""
        self._process = subprocess.Popen(line, env=environment)
        if self.asked_to_end:  # just before
            self._process.terminate()
        code = self._process.wait()
        self._process = None
        return code if code >= 0 else SIGNALS - code

    def _end(self, *_: object) -> None:
        """Hand SIGTERM on; where nothing runs, end: for process 1 the kernel has no default."""
        self.asked_to_end = True
        if self._process is None:
            os._exit(LOST)
        self._process.send_signal(signal.SIGTERM)


def leave(code: int, say: Callable[[str], None]) -> NoReturn:
    """End process 1 at once: threads that serve would hold it."""
    if code == KILLED:
        say("a process was killed (SIGKILL): out of memory, most likely")
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
