"""Reading a journal while its stage writes it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bigtransfer.track.origin import is_alive

SECONDS_BETWEEN_LOOKS = 0.2
Entry = dict[str, Any]
"""One line of a journal."""


class Follower:
    """Reads a journal as it grows; ends after `end`, or when the writer is dead."""

    def __init__(self, journal: Path) -> None:
        """Open a journal."""
        self._file = journal.open(encoding="utf-8")
        self._rest = ""
        self._start: Entry | None = None
        self._ended: float | None = None

    def __iter__(self) -> Iterator[list[Entry]]:
        while True:
            entries = self._read()
            if entries:
                yield entries
                if entries[-1]["kind"] == "end":
                    return
            else:
                time.sleep(SECONDS_BETWEEN_LOOKS)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def seconds_since_end(self) -> float:
        """Return how long ago the writer was found dead; 0 while it lives."""
        if self._ended is None and not self._writer_lives():
            self._ended = time.monotonic()
        return 0.0 if self._ended is None else time.monotonic() - self._ended

    def _writer_lives(self) -> bool:
        return self._start is None or is_alive(self._start["pid"], self._start["started"])

    def _read(self) -> list[Entry]:
        alive = self._writer_lives()
        self._rest += self._file.read()
        *lines, self._rest = self._rest.split("\n")
        entries = [json.loads(line) for line in lines]
        if self._start is None and entries:
            self._start = entries[0]
        for number, entry in enumerate(entries):
            if entry["kind"] == "end":
                self._ended = self._ended or time.monotonic()
                return entries[: number + 1]
        if not entries and not alive:
            self._ended = self._ended or time.monotonic()
            return [{"kind": "end", "status": "KILLED", "time": int(time.time() * 1000)}]
        return entries
