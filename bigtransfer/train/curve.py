"""The metrics journal of one training: a line per noted step, appended and never rewritten.

A point is (key, step, value) and stands there once: what a resumed run computes again is equal, and
passed over. Only what the run itself determines belongs here (losses, accuracies, rates), no clock.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from bigtransfer.errors import StorageError
from bigtransfer.storage import explained

Row = dict[str, Any]


class Curve:
    """The journal at a path; opened, cleaned of a torn last line, and appended to."""

    def __init__(self, path: Path) -> None:
        """Open the journal, made where absent.

        Raises:
            StorageError: If it cannot be read or written, or is no journal.
        """
        self.path = path
        self.rows: list[Row] = []
        """All rows: `step` and the metrics noted for it."""
        self._noted: dict[int, Row] = {}
        with explained(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("a+b")
        self._read()

    def add(self, step: int, values: dict[str, float]) -> dict[str, float]:
        """Append what is not there yet, and return that.

        Args:
            step: Finished steps.
            values: Metric -> value.
        """
        known = self._noted.get(step, {})
        fresh = {key: value for key, value in values.items() if key not in known}
        if fresh:
            line = json.dumps({"step": step, **fresh}) + "\n"
            with explained(self.path):
                self._file.write(line.encode())
                self._file.flush()
            self._note({"step": step, **fresh})
        return fresh

    def has(self, step: int, key: str) -> bool:
        """Say whether a metric is noted for a step."""
        return key in self._noted.get(step, {})

    def value(self, step: int, key: str) -> float | None:
        """Return what is noted of a metric at a step."""
        found: float | None = self._noted.get(step, {}).get(key)
        return found

    def row(self, step: int) -> Row:
        """Return all that is noted for a step."""
        return self._noted[step]

    def fsync(self) -> int:
        """Flush to the disk; return the bytes that are there."""
        with explained(self.path):
            os.fsync(self._file.fileno())
        return self._file.tell()

    def take_from(self, other: Path) -> None:
        """Take over a checkpoint's copy, where ours is shorter: it began on another machine."""
        if other.stat().st_size <= self.path.stat().st_size:
            return
        with explained(self.path):
            self._file.close()
            shutil.copyfile(other, self.path)
            self._file = self.path.open("a+b")
        self.rows, self._noted = [], {}
        self._read()

    def close(self) -> None:
        """Close the file."""
        with suppress(OSError):  # what could not be written was said when it was to be
            self._file.close()

    def _read(self) -> None:
        self._file.seek(0)
        data = self._file.read()
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) < len(data):  # killed while it wrote the last line
            self._file.truncate(len(whole))
        self._file.seek(0, os.SEEK_END)
        for number, line in enumerate(whole.splitlines(), start=1):
            try:
                row = json.loads(line)
                self._note({"step": int(row["step"]), **row})
            except (ValueError, KeyError, TypeError) as error:
                self.close()
                raise StorageError(
                    f"{str(self.path)!r}, line {number}, is no row of a metrics journal; remove "
                    "the folder it lies in to begin the training anew"
                ) from error

    def _note(self, row: Row) -> None:
        known = self._noted.get(row["step"])
        if known is None:
            self._noted[row["step"]] = row
            self.rows.append(row)
        else:
            known.update(row)


def thinned(rows: Sequence[Row], points: int = 100) -> list[Row]:
    """Return a curve of fewer points: means over as many stretches of equal length.

    A stretch stands at its last step; what is noted now and then, a score, stands at its own.

    Args:
        rows: `step`, ascending, and the metrics noted for it.
        points: At most, for what is noted at every step.
    """
    if not rows:
        return []
    length = -(-int(rows[-1]["step"]) // points)
    always = {key for key in rows[0] if key != "step"}
    stretches: dict[int, list[Row]] = {}
    found: dict[int, Row] = {}
    for row in rows:
        stretches.setdefault((row["step"] - 1) // length, []).append(row)
        if scores := {key: value for key, value in row.items() if key not in {*always, "step"}}:
            found[row["step"]] = {"step": row["step"], **scores}
    for some in stretches.values():
        step = some[-1]["step"]
        means = {
            key: sum(row[key] for row in some if key in row) / sum(key in row for row in some)
            for key in sorted(always)
            if any(key in row for row in some)
        }
        found[step] = {**found.get(step, {"step": step}), **means}
    return [found[step] for step in sorted(found)]
