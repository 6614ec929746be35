"""Who made which version champion, and why: a chain in which each record holds the one before.

The records are tags of the registered model, so they outlive every run; the digest and the number
of the last one stand in a tag of their own; copies are kept elsewhere (`copies.py`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import ValidationError

from bigtransfer.artifacts.base import Part

CHAMPION, CHALLENGER, PREVIOUS = "champion", "challenger", "previous"
CANDIDATE = "candidate"
"""Aliases."""
_RECORD, _HEAD = "bigtransfer.record.", "bigtransfer.records"
_NOTHING = "0" * 64
_LONGEST_REASON = 400


Kind = Literal["first", "promote", "rollback", "restore", "withdraw"]


class Record(Part):
    """One change of the alias `champion`."""

    number: int
    at: str
    """UTC, ISO 8601."""
    kind: Kind
    to: str
    """Version that is champion from here on; empty: none."""
    replaced: str | None
    """Version that was champion before; of `withdraw`, the one that was withdrawn."""
    by: str
    """A name, and how it is known; `not known`."""
    because: str
    gates: dict[str, str]
    """Gate -> verdict and reason."""
    digests: dict[str, str]
    """Folder of the version -> its digest."""
    before: str
    """SHA-256 of the record before; zeros of the first."""

    def text(self) -> str:
        """Return it as it is stored and hashed."""
        return json.dumps(self.model_dump(), sort_keys=True, separators=(",", ":"))

    def digest(self) -> str:
        """Return its SHA-256."""
        return hashlib.sha256(self.text().encode()).hexdigest()


def shortened(reason: str) -> str:
    """Return a reason as a record keeps it."""
    return fitting(reason, _LONGEST_REASON)


def fitting(text: str, most: int) -> str:
    """Return a text, cut to so many characters."""
    return text if len(text) <= most else text[: max(most - 1, 0)] + "…"


def now() -> str:
    """Return the time for a record."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def last_record(tags: Mapping[str, str]) -> tuple[int, str]:
    """Return number and digest of a model's last record, as its tags say; 0 and zeros: none."""
    if _HEAD not in tags:
        return 0, _NOTHING
    number, digest = tags[_HEAD].split(":")
    return int(number), digest


def records_of(tags: Mapping[str, str]) -> Iterator[Record]:
    """Yield a model's records that can be read, in their order."""
    for name in sorted(tag for tag in tags if tag.startswith(_RECORD)):
        try:
            yield Record.model_validate_json(tags[name])
        except ValidationError:
            continue


def append(client: Any, model: Any, record: Record) -> None:
    """Add a record to the chain in a model's tags; one that is there is written again.

    Args:
        client: Of MLflow.
        model: The registered model, of MLflow, as it was when the record was made.
        record: With the number and the digest that follow from `last_record`.
    """
    client.set_registered_model_tag(model.name, f"{_RECORD}{record.number:06d}", record.text())
    client.set_registered_model_tag(model.name, _HEAD, f"{record.number}:{record.digest()}")


@dataclass(frozen=True)
class Copy:
    """Records of a model that are kept elsewhere, as they are there."""

    name: str
    texts: Mapping[int, str]
    """Number -> text."""
    has_all: bool
    """Whether no record may be missing after its first one. A copy on one of several machines has
    those alone that were written there."""
    foreign: tuple[str, ...] = ()
    """What lies there beside the records, by its name."""


def faults(model: Any, copies: Iterable[Copy]) -> list[str]:
    """Return what is wrong with a model's records, the first one first; empty: nothing.

    Whoever can write the tags and all copies can forge them.

    Args:
        model: Of MLflow.
        copies: Of the records.
    """
    tags = model.tags or {}
    stored = {tag: text for tag, text in tags.items() if tag.startswith(_RECORD)}
    count, head = last_record(tags)
    copied = list(copies)
    last = max([count, len(stored), *(max(own.texts, default=0) for own in copied)])
    found, before = [], _NOTHING
    for number in range(1, last + 1):
        text = stored.pop(f"{_RECORD}{number:06d}", None)
        if text is None:
            found.append(f"record {number} is missing")
            before = ""
            continue
        own = hashlib.sha256(text.encode()).hexdigest()
        try:
            record = Record.model_validate_json(text)
            if before and record.before != before:
                found.append(f"record {number} does not follow the one before: one was changed")
        except ValidationError:
            found.append(f"record {number} cannot be read")
        for copy in copied:
            if copy.texts.get(number, text) != text:
                found.append(f"record {number} is not the one of the copy {copy.name}")
        if number == count and own != head:
            found.append(f"record {number} is not the last one that was written")
        before = own
    if stored:
        found.append(f"there are records of no known number: {', '.join(sorted(stored))}")
    for copy in copied:
        found += _faults_of(copy, count)
    if CHAMPION in model.aliases:
        champion = [record.to for record in records_of(tags)][-1:]
        if champion != [str(model.aliases[CHAMPION])]:
            found.append(f"no record explains champion v{model.aliases[CHAMPION]}")
    return found


def _faults_of(copy: Copy, count: int) -> list[str]:
    """Return what is wrong with a copy of so many records, beside records that differ."""
    if copy.has_all and count and not copy.texts and not copy.foreign:
        return [f"the copy {copy.name} holds no record: it is new, or was emptied"]
    found = [f"{name} of the copy {copy.name} is no record of that number" for name in copy.foreign]
    if copy.has_all:
        numbers = range(min(copy.texts, default=1), count + 1)
        missing = [number for number in numbers if number not in copy.texts]
        found += [f"record {number} is missing in the copy {copy.name}" for number in missing]
    if (last := max(copy.texts, default=0)) > count:
        found.append(f"the copy {copy.name} goes on to record {last}, the model to {count}")
    return found
