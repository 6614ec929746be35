"""Do again what the world outside may answer the next time."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable
from typing import TypeVar

_T = TypeVar("_T")


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
