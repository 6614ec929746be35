"""Do again what the world outside may answer the next time."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterable
from itertools import count, islice
from typing import TypeVar

from bigtransfer.errors import InfrastructureError, StoppedError

_T = TypeVar("_T")
_TRIES = 5
_PAUSE_SECONDS = 15.0


def retry(
    action: Callable[[], _T],
    *,
    may_help: Callable[[Exception], bool],
    pauses: Iterable[float],
    tell: Callable[[Exception, float], None] = lambda error, seconds: None,
) -> _T:
    """Return what an action returns, calling it again after each failure that may pass.

    Args:
        action: May be called several times.
        may_help: Says of an error whether another attempt can end otherwise.
        pauses: Seconds before each further attempt, at most; when they end, the error is raised.
        tell: Receives the error and the seconds, before each pause.

    Raises:
        Exception: The last one of `action`.
    """
    waits = iter(pauses)
    while True:
        try:
            return action()
        except Exception as error:
            longest = next(waits, None) if may_help(error) else None
            if longest is None:
                raise
            # Jitter: many tasks that lost one server must not come back at once. No result
            # depends on it.
            seconds = random.uniform(longest / 2, longest)
            tell(error, seconds)
            time.sleep(seconds)


def doubling(first: float, *, longest: float) -> Iterable[float]:
    """Yield pauses without end, each twice the one before, up to the longest; seconds."""
    pause = first
    while True:
        yield min(pause, longest)
        pause *= 2


def run_again(run: Callable[[], _T], say: Callable[[str], None]) -> _T:
    """Call `run` again when something outside failed that may work the next time.

    Kubeflow's own retry cannot tell exit codes apart, and would repeat a wrong value as well; that
    of a Job would not end.

    Raises:
        InfrastructureError: If it fails five times, or was stopped from outside.
        BigTransferError: At once, if it is no such failure.
    """
    attempts = count(2)
    return retry(
        run,
        may_help=lambda error: (
            isinstance(error, InfrastructureError) and not isinstance(error, StoppedError)
        ),
        pauses=islice(doubling(_PAUSE_SECONDS, longest=math.inf), _TRIES - 1),
        tell=lambda error, seconds: say(
            f"{error}; attempt {next(attempts)} of {_TRIES} in {seconds:.0f} s"
        ),
    )
