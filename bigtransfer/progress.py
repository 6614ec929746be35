"""What a person sees while waiting: a bar with ETA on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Protocol, TextIO, TypeVar

_Item = TypeVar("_Item")
TERMINAL = "BIGTRANSFER_TERMINAL"
"""Environment variable that names the terminal, where what is printed goes into a file."""
_SECONDS_BEFORE_SHOWN = 2.0
_SECONDS_BETWEEN_LINES = 10.0

_WINDOW_SECONDS = 60.0
"""The time left is reckoned with the rate of so long: what else the machine does changes."""


class Advance(Protocol):
    """Says how far the work is."""

    def __call__(self, done: int, note: str, *, leap: int = 0) -> None:
        """Show it.

        Args:
            done: Units that are finished in all.
            note: Shown behind the bar.
            leap: Of those, units since the last call that an earlier run did, in no time of now.
        """


def duration(seconds: float) -> str:
    """Return a length of time for people: `40 s`, `12 min`, `3.5 h`, `4.2 days`."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    hours = seconds / 3600
    return f"{hours:,.1f} h" if hours < 72 else f"{hours / 24:,.1f} days"


def counted(number: int, noun: str, plural: str = "") -> str:
    """Return a number with its noun: `1 network`, `2 networks`, `1,000 classes`.

    Args:
        number: How many.
        noun: Of one.
        plural: Of many, where it is not the noun with an s (`es` after an s).
    """
    ending = "es" if noun.endswith("s") else "s"
    return f"{number:,} {noun if number == 1 else plural or noun + ending}"


@contextmanager
def progress(label: str, total: int, *, unit: str, start: int = 0) -> Iterator[Advance]:
    """Show the progress of `total` units under `label`; nothing is shown before two seconds.

    Args:
        label: What is being done, in two or three words.
        total: Units in all.
        unit: Name of one unit, e.g. `step` or `image`; a symbol such as `MB` gets no plural.
        start: Units that were already done when this began (a resumed run).
    """
    with ExitStack() as stack:
        terminal = _terminal(stack)
        if terminal is None:
            yield _lines(label, total, unit, start)
        else:
            yield stack.enter_context(_bar(label, total, unit, start, terminal))


def tracked(items: Iterable[_Item], label: str, total: int, *, unit: str) -> Iterator[_Item]:
    """Yield the items while showing how many are done."""
    with progress(label, total, unit=unit) as advance:
        for done, item in enumerate(items, start=1):
            yield item
            advance(done, "")


def _terminal(stack: ExitStack) -> TextIO | None:
    if sys.stderr.isatty():
        return sys.stderr
    with suppress(OSError):
        if name := os.environ.get(TERMINAL):
            return stack.enter_context(Path(name).open("w", encoding="utf-8"))
    return None


@contextmanager
def _bar(label: str, total: int, unit: str, start: int, file: TextIO) -> Iterator[Advance]:
    from tqdm import tqdm

    with tqdm(
        total=total,
        initial=start,
        desc=label,
        unit=f" {unit}",
        delay=_SECONDS_BEFORE_SHOWN,
        leave=False,
        file=file,
        dynamic_ncols=True,
    ) as bar:

        def advance(done: int, note: str, *, leap: int = 0) -> None:
            if note:
                bar.set_postfix_str(note, refresh=False)
            if leap:
                bar.initial, bar.n = bar.initial + leap, bar.n + leap
                bar.last_print_n += leap
            bar.update(done - bar.n)

        yield advance


def _lines(label: str, total: int, unit: str, start: int) -> Advance:
    began = time.monotonic()
    units = unit if unit.isupper() else f"{unit}s"
    shown = began - _SECONDS_BETWEEN_LINES + _SECONDS_BEFORE_SHOWN
    rate_of = _Rate(began, start)

    def advance(done: int, note: str, *, leap: int = 0) -> None:
        nonlocal shown
        now = time.monotonic()
        rate = rate_of(now, done, leap)
        if now - shown < _SECONDS_BETWEEN_LINES or done >= total:
            return
        shown = now
        left = f"{duration((total - done) / rate)} left" if rate else "time left not known"
        tail = f", {note}" if note else ""
        print(
            f"{label}: {done:,} of {total:,} {units}, {rate:.1f}/s, {left}{tail}",
            file=sys.stderr,
            flush=True,
        )

    return advance


class _Rate:
    """Units per second over the last minute."""

    def __init__(self, began: float, start: int) -> None:
        self._seen = deque([(began, start)])
        self._leapt = 0

    def __call__(self, now: float, done: int, leap: int) -> float:
        """Take what is done by now, and return the rate."""
        self._leapt += leap
        own = done - self._leapt
        if now - self._seen[-1][0] >= _WINDOW_SECONDS / 60:
            self._seen.append((now, own))
        while len(self._seen) > 2 and now - self._seen[1][0] >= _WINDOW_SECONDS:
            self._seen.popleft()
        since, before = self._seen[0]
        return (own - before) / (now - since) if now > since else 0.0
