"""The one writer of the aliases `champion` and `previous`.

A version is judged first, for as long as that takes; then, holding the model alone, the champion is
read again, and where it is another one by now, all is judged anew: MLflow can set an alias, but not
on the condition that nobody did meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bigtransfer.config import GateRules
from bigtransfer.errors import GateError, LockError, TrackingError
from bigtransfer.track.copies import Copies
from bigtransfer.track.failures import explained
from bigtransfer.track.gates import Gate, judge, refusal
from bigtransfer.track.lease import only_writer
from bigtransfer.track.moves import MOVING_TAG, champion_of, find, finish, model_of, move
from bigtransfer.track.records import CHAMPION, PREVIOUS, Kind, records_of
from bigtransfer.track.requests import Request, ask
from bigtransfer.track.verdict import note
from bigtransfer.track.versions import contender_of, open_registry, refuse_withdrawn

_TIMES_JUDGED = 5


@dataclass(frozen=True)
class Promotion:
    """What became of a version."""

    name: str
    version: str
    replaced: str | None
    gates: list[Gate]
    reason: str


def promote(
    project: Path,
    name: str,
    wanted: str,
    rules: GateRules,
    *,
    by: str,
    because: str,
    waives_comparison: bool = False,
    records_at: str | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Promotion:
    """Make a version champion if it passes the gates.

    Args:
        project: The project's root.
        name: Of the registered model.
        wanted: Its version, or an alias of it.
        rules: The gates.
        by: Who wants it, and how that is known.
        because: Why.
        waives_comparison: Whether a comparison with the champion that it does not pass is waived.
        records_at: Of the second copy of the records, `s3://…`; None: there is none.
        say: Receives a line for each gate.

    Raises:
        GateError: If it does not pass; no alias has moved.
        TrackingError: If there is no such model or version.
        InfrastructureError: If the server lets only the loop do that, and no loop is there.
    """
    from mlflow.exceptions import MlflowException

    with explained(project, f"did not promote {name!r}"):
        client = open_registry(project)
        version = find(client, name, wanted)
        try:
            found = advance(
                project, client, version, rules, kind="promote", by=by, because=because,
                waives_comparison=waives_comparison, records_at=records_at,
            )  # fmt: skip
        except MlflowException as error:
            if not is_reserved(error):
                raise
            champion = champion_of(model_of(client, name))
            ask(client, version, Request(by=by, because=because), say)
            gates = [Gate("watch", "pass", "judged by bigtransfer watch")]
            found = Promotion(name, str(version.version), champion, gates, because)
    for gate in found.gates:
        say(f"  {gate.name:<12} {gate.verdict:<14} {gate.reason}")
    if (closed := refusal(found.gates)) is not None:
        raise GateError(
            f"{name} version {version.version} is not promoted: {closed}; aliases are as they were"
        )
    return found


def is_reserved(error: Any) -> bool:
    """Say whether a server refused what only the loop may do (`authorization.py`)."""
    return bool(error.error_code == "PERMISSION_DENIED")


def rollback(
    project: Path, name: str, *, by: str, because: str, records_at: str | None = None
) -> Promotion:
    """Make the version champion again that was it before.

    Raises:
        GateError: If that one's files are not as they were.
        TrackingError: If there is no model, or none was champion before.
    """
    with explained(project, f"did not roll {name!r} back"):
        client, copies = open_registry(project), Copies.of(project, name, records_at)
        with only_writer(project, client, name):
            finish(copies, client, name)
            aliases = model_of(client, name).aliases
            if PREVIOUS not in aliases:
                raise TrackingError(
                    f"{name!r} has no alias {PREVIOUS!r}: nothing was champion before; set one in "
                    f"the MLflow UI, or promote another version"
                )
            version = client.get_model_version(name, str(aliases[PREVIOUS]))
            refuse_withdrawn(version)
            contender = contender_of(project, client, version, GateRules(), compares=False)
            if contender.damage is not None:
                raise GateError(
                    f"{name} version {version.version} does not come back: {contender.damage}"
                )
            champion = str(aliases[CHAMPION]) if CHAMPION in aliases else None
            gates = [Gate("digests", "pass", "its files are those that were registered")]
            move(copies, client, version, champion, "rollback", by, because, gates)
    return Promotion(name, str(version.version), champion, gates, because)


def restore(project: Path, client: Any, name: str, records_at: str | None) -> str | None:
    """Make the version champion again that the last record names, if it is not.

    Returns:
        The version; None: somebody was faster.

    Raises:
        GateError: If its files are not as they were.
    """
    copies = Copies.of(project, name, records_at)
    with only_writer(project, client, name):
        finish(copies, client, name)
        model = model_of(client, name)
        last = [record.to for record in records_of(model.tags or {})][-1]
        champion = champion_of(model)
        if (champion or "") == last:
            return None
        if not last:  # the champion was withdrawn, and nothing took its place
            client.delete_registered_model_alias(name, CHAMPION)
            return last
        version = client.get_model_version(name, last)
        damage = contender_of(project, client, version, GateRules(), compares=False).damage
        if damage is not None:
            raise GateError(f"{name} version {last} does not come back: {damage}")
        why = f"version {champion or 'none'} was made champion by hand"
        gates = [Gate("digests", "pass", "its files are those that were registered")]
        move(copies, client, version, None, "restore", "bigtransfer watch", why, gates)
    return last


def advance(
    project: Path,
    client: Any,
    version: Any,
    rules: GateRules,
    *,
    kind: Kind,
    by: str,
    because: str,
    waives_comparison: bool = False,
    records_at: str | None = None,
) -> Promotion:
    """Judge a version and, if it passes, make it champion; what was judged is noted at it.

    Raises:
        LockError: If the champion changes all the time, or another holds the model.
    """
    name = str(version.name)
    copies, contender = Copies.of(project, name, records_at), None
    for _ in range(_TIMES_JUDGED):
        model = model_of(client, name)
        if MOVING_TAG in (model.tags or {}):  # a process was killed on the way, or is about to end
            with only_writer(project, client, name):
                finish(copies, client, name)
            model = model_of(client, name)
        champion = champion_of(model)
        if champion == str(version.version):
            return Promotion(name, champion, champion, [], "it is the champion already")
        other = None
        if contender is None or champion is not None:
            compares = champion is not None
            contender = contender_of(project, client, version, rules, compares=compares)
        if champion is not None:
            its = client.get_model_version(name, champion)
            other = contender_of(project, client, its, rules)
        gates = judge(rules, contender, other, waives_comparison=waives_comparison)
        note(client, version, gates)
        if refusal(gates) is not None:
            return Promotion(name, str(version.version), champion, gates, because)
        with only_writer(project, client, name):
            finish(copies, client, name)
            if champion_of(model_of(client, name)) == champion:
                move(copies, client, version, champion, kind, by, because, gates)
                return Promotion(name, str(version.version), champion, gates, because)
    raise LockError(
        f"the champion of {name!r} was moved {_TIMES_JUDGED} times meanwhile; try again"
    )
