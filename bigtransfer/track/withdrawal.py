"""Versions that must not be used any more: every alias leaves them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bigtransfer.config import GateRules
from bigtransfer.track.copies import Copies
from bigtransfer.track.failures import explained
from bigtransfer.track.lease import only_writer
from bigtransfer.track.moves import (
    MOVING_TAG,
    carry_out,
    champion_of,
    find,
    finish,
    model_of,
    next_record,
)
from bigtransfer.track.promotion import Promotion
from bigtransfer.track.records import PREVIOUS, records_of
from bigtransfer.track.versions import WITHDRAWN_TAG, contender_of, open_registry


def withdraw(
    project: Path,
    name: str,
    wanted: str,
    *,
    by: str,
    because: str,
    records_at: str | None = None,
) -> Promotion:
    """Mark a version that must not be used any more; every alias leaves it.

    If it is the champion, `previous` becomes it; where there is none, nothing is champion.

    Args:
        project: The project's root.
        name: Of the registered model.
        wanted: Its version, or an alias of it.
        by: Who says so, and how that is known.
        because: Why; it is read by whoever asks for the version.
        records_at: As of `promote`.

    Returns:
        `version` is the champion from now on, empty if there is none; `replaced` the withdrawn one.

    Raises:
        TrackingError: If there is no such version.
    """
    with explained(project, f"did not withdraw {name!r}"):
        client, copies = open_registry(project), Copies.of(project, name, records_at)
        with only_writer(project, client, name):
            finish(copies, client, name)
            version = find(client, name, wanted)
            number, model = str(version.version), model_of(client, name)
            records = [record.to for record in records_of(model.tags or {})]
            # A champion that was set by hand is not explained by this.
            champion = records[-1] if records else champion_of(model) or ""
            if number in (champion, champion_of(model)):
                champion = _heir(project, client, model, number)
            tags = version.tags or {}
            if not tags.get(WITHDRAWN_TAG) or number in _numbers(model):
                record = next_record(model, version, champion, number, "withdraw", by, because, [])
                copies.check(record)
                client.set_registered_model_tag(name, MOVING_TAG, record.text())
                carry_out(copies, client, model, record)
    return Promotion(name, champion, number, [], because)


def _numbers(model: Any) -> list[str]:
    return [str(number) for number in model.aliases.values()]


def _heir(project: Path, client: Any, model: Any, withdrawn: str) -> str:
    """Return the version that is champion when the champion is withdrawn; empty: none."""
    previous = str(model.aliases.get(PREVIOUS, ""))
    if previous in ("", withdrawn):
        return ""
    version = client.get_model_version(model.name, previous)
    found = contender_of(project, client, version, GateRules(), compares=False)
    return "" if found.damage or found.withdrawn else previous
