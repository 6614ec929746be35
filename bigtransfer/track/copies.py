"""Copies of a model's records, outside of MLflow: whoever forges records must reach them, too."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from pydantic import ValidationError

from bigtransfer.errors import StorageError, TrackingError
from bigtransfer.storage.home import home_of
from bigtransfer.storage.s3 import S3Path, client, create, download, names_below
from bigtransfer.track.records import Copy, Record

_PROBE = "write-once"
"""Empty object by which it is tried whether the storage writes, and never twice."""


@dataclass(frozen=True)
class Copies:
    """Where copies of one model's records are kept."""

    file: Path
    """A line per record."""
    bucket: S3Path | None
    """An object per record, written once and never again; None: there is no such copy."""

    @classmethod
    def of(cls, project: Path, name: str, records_at: str | None) -> Copies:
        """Return those of a model.

        Args:
            project: The project's root.
            name: Of the registered model.
            records_at: `s3://bucket/prefix` of the second copy (`register.records_at`).
        """
        own = hashlib.sha256(name.encode()).hexdigest()[:16]
        place = S3Path.parse(records_at) / quote(name, safe="") if records_at else None
        return cls(home_of(project) / ".work" / "registry" / f"{own}.jsonl", place)

    def add(self, record: Record) -> None:
        """Add a record; one that is there is not added again.

        Raises:
            TrackingError: If another record of its number is in the bucket.
            StorageError: If the bucket may not be written.
            InfrastructureError: If it does not answer.
        """
        line = record.text() + "\n"
        self.file.parent.mkdir(parents=True, exist_ok=True)
        if not self.file.is_file() or line not in self.file.read_text("utf-8"):
            with self.file.open("a", encoding="utf-8") as file:
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
        if self.bucket is None:
            return
        place, data = self._object(record), record.text().encode()
        if not create(client(), data, place) and download(client(), place) != data:
            raise _taken(record, place)

    def check(self, record: Record) -> None:
        """Say before anything moves whether a record could be added; raises as `add` does."""
        if self.bucket is None:
            return
        # The second attempt must be refused: else the storage would write over what is there.
        probe = self.bucket / _PROBE
        create(client(), b"", probe)
        if create(client(), b"", probe):
            raise StorageError(
                f"{self.bucket}: the storage writes over what is there (it ignores If-None-Match), "
                "so register.records_at cannot keep records there"
            )
        place = self._object(record)
        there = download(client(), place)
        if there is not None and there != record.text().encode():
            raise _taken(record, place)

    def has(self, record: Record) -> bool:
        """Say whether a record is in a copy; raises as `add` does."""
        return any(record.text() == copy.texts.get(record.number) for copy in self.read())

    def read(self) -> Iterator[Copy]:
        """Yield the copies that there are; raises as `add` does."""
        if self.file.is_file():
            lines = enumerate(self.file.read_text("utf-8").splitlines(), start=1)
            named = [(f"line {number}", line) for number, line in lines]
            yield _copy(self.file.name, named, has_all=False)
        if self.bucket is not None:
            found = [
                (name, (download(client(), self.bucket / name) or b"").decode("utf-8", "replace"))
                for name in names_below(client(), self.bucket)
                if name != _PROBE
            ]
            yield _copy(str(self.bucket), found, has_all=True)

    def _object(self, record: Record) -> S3Path:
        assert self.bucket is not None
        return self.bucket / _name_of(record.number)


def _taken(record: Record, place: S3Path) -> TrackingError:
    return TrackingError(
        f"there is another record {record.number} at {place} already: somebody wrote there, or "
        "two registries share register.records_at; `bigtransfer audit-registry` says more"
    )


def _copy(name: str, texts: list[tuple[str, str]], *, has_all: bool) -> Copy:
    """Return a copy of what lies at some places: object or line -> text.

    What is no record, stands under another number, or is a second record of one number is foreign:
    it must not stand for the record that is there.
    """
    known: dict[int, str] = {}
    foreign = []
    for place, text in texts:
        try:
            number = Record.model_validate_json(text).number
        except ValidationError:
            foreign.append(place)
            continue
        right = not has_all or place == _name_of(number)
        if right and known.setdefault(number, text) == text:
            continue
        foreign.append(place)
    return Copy(name, known, has_all=has_all, foreign=tuple(foreign))


def _name_of(number: int) -> str:
    return f"{number:06d}.json"
