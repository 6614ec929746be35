"""The one writer of the aliases `champion` and `previous`.

A version is judged first, for as long as that takes; then, holding the model alone, the champion is
read again, and where it is another one by now, all is judged anew: MLflow can set an alias, but not
on the condition that nobody did meanwhile. What is about to be done is noted in a tag before, so
that whoever comes after a killed process finishes it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bigtransfer.config import GateRules
from bigtransfer.errors import ConfigError, GateError, LockError, TrackingError, did_you_mean
from bigtransfer.track.failures import explained
from bigtransfer.track.gates import Gate, judge, refusal
from bigtransfer.track.lease import only_writer
from bigtransfer.track.records import (
    CANDIDATE,
    CHALLENGER,
    CHAMPION,
    PREVIOUS,
    Kind,
    Record,
    append,
    faults,
    fitting,
    last_record,
    now,
    records_of,
    shortened,
)
from bigtransfer.track.requests import Request, ask
from bigtransfer.track.versions import (
    AUDIT,
    CHECKPOINT,
    LONGEST_DESCRIPTION,
    MODEL,
    REPORT,
    WITHDRAWN_TAG,
    all_models,
    contender_of,
    digest_tag,
    open_registry,
    refuse_withdrawn,
)

MADE_TAG = "bigtransfer.champion"
"""Of a model: the version that this program made champion last."""
MOVING_TAG = "bigtransfer.moving"
"""Of a model: the record of what is being done."""
GATE_TAG = "gate."
"""Of a version, before the name of a gate: what it says."""
_TIMES_JUDGED = 5
_GATES_BEGIN = "#### Gates\n"
_GATES_END = "\n`bigtransfer explain` says more.\n"
_LONGEST_CELL = 300


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
                waives_comparison=waives_comparison,
            )  # fmt: skip
        except MlflowException as error:
            if not is_reserved(error):
                raise
            champion = _champion_of(_model(client, name))
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


def split_address(address: str, alias: str = CHALLENGER) -> tuple[str, str]:
    """Return name and version or alias of `MODEL`, `MODEL@ALIAS`, `MODEL/VERSION`, `models:/…`.

    Args:
        address: One of these.
        alias: Of `MODEL` alone.

    Raises:
        ConfigError: If it names no model.
    """
    found = re.fullmatch(r"(?:models:/)?([^/@]+)(?:@([\w.-]+)|/(\d+))?", address)
    if found is None:
        raise ConfigError(
            f"{address!r} names no registered model; write MODEL, MODEL@challenger or MODEL/3"
        )
    return found[1], found[2] or found[3] or alias


def audited(project: Path, names: list[str]) -> dict[str, tuple[int, list[str]]]:
    """Return for each model how many records it has and what is wrong with them.

    Args:
        project: The project's root.
        names: Of the models; none: all that have records or a champion.
    """
    with explained(project, "did not show its records"):
        client = open_registry(project)
        models = [_model(client, name) for name in names] or [
            model
            for model in all_models(client)
            if CHAMPION in model.aliases or last_record(model.tags or {})[0]
        ]
        return {
            model.name: (
                last_record(model.tags or {})[0],
                [*faults(project, model), *_other_digests(client, model)],
            )
            for model in models
        }


def _other_digests(client: Any, model: Any) -> list[str]:
    """Return where digests at the champion are not those that its record holds."""
    champion = _champion_of(model)
    records = [record for record in records_of(model.tags or {}) if record.kind != "withdraw"]
    own = [record for record in records if record.to == champion]
    if champion is None or not own:
        return []
    tags = client.get_model_version(model.name, champion).tags or {}
    return [
        f"the digest of the {folder} of v{champion} is not that of record {own[-1].number}"
        for folder, digest in own[-1].digests.items()
        if tags.get(digest_tag(folder)) != digest
    ]


def rollback(project: Path, name: str, *, by: str, because: str) -> Promotion:
    """Make the version champion again that was it before.

    Raises:
        GateError: If that one's files are not as they were.
        TrackingError: If there is no model, or none was champion before.
    """
    with explained(project, f"did not roll {name!r} back"):
        client = open_registry(project)
        with only_writer(project, client, name):
            _finish(project, client, name)
            aliases = _model(client, name).aliases
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
            _move(project, client, version, champion, "rollback", by, because, gates)
    return Promotion(name, str(version.version), champion, gates, because)


def withdraw(project: Path, name: str, wanted: str, *, by: str, because: str) -> Promotion:
    """Mark a version that must not be used any more; every alias leaves it.

    If it is the champion, `previous` becomes it; where there is none, nothing is champion.

    Args:
        project: The project's root.
        name: Of the registered model.
        wanted: Its version, or an alias of it.
        by: Who says so, and how that is known.
        because: Why; it is read by whoever asks for the version.

    Returns:
        `version` is the champion from now on, empty if there is none; `replaced` the withdrawn one.

    Raises:
        TrackingError: If there is no such version.
    """
    with explained(project, f"did not withdraw {name!r}"):
        client = open_registry(project)
        with only_writer(project, client, name):
            _finish(project, client, name)
            version = find(client, name, wanted)
            number, model = str(version.version), _model(client, name)
            records = [record.to for record in records_of(model.tags or {})]
            # A champion that was set by hand is not explained by this.
            champion = records[-1] if records else _champion_of(model) or ""
            if number in (champion, _champion_of(model)):
                champion = _heir(project, client, model, number)
            tags = version.tags or {}
            if not tags.get(WITHDRAWN_TAG) or number in _numbers(model):
                record = _record(model, version, champion, number, "withdraw", by, because, [])
                client.set_registered_model_tag(name, MOVING_TAG, record.text())
                _carry_out(project, client, model, record)
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


def restore(project: Path, client: Any, name: str) -> str | None:
    """Make the version champion again that the last record names, if it is not.

    Returns:
        The version; None: somebody was faster.

    Raises:
        GateError: If its files are not as they were.
    """
    with only_writer(project, client, name):
        _finish(project, client, name)
        model = _model(client, name)
        last = [record.to for record in records_of(model.tags or {})][-1]
        champion = _champion_of(model)
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
        _move(project, client, version, None, "restore", "bigtransfer watch", why, gates)
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
) -> Promotion:
    """Judge a version and, if it passes, make it champion; what was judged is noted at it.

    Raises:
        LockError: If the champion changes all the time, or another holds the model.
    """
    name = str(version.name)
    contender = None
    for _ in range(_TIMES_JUDGED):
        model = _model(client, name)
        if MOVING_TAG in (model.tags or {}):  # a process was killed on the way, or is about to end
            with only_writer(project, client, name):
                _finish(project, client, name)
            model = _model(client, name)
        champion = _champion_of(model)
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
            _finish(project, client, name)
            if _champion_of(_model(client, name)) == champion:
                _move(project, client, version, champion, kind, by, because, gates)
                return Promotion(name, str(version.version), champion, gates, because)
    raise LockError(
        f"the champion of {name!r} was moved {_TIMES_JUDGED} times meanwhile; try again"
    )


def find(client: Any, name: str, wanted: str) -> Any:
    """Return a version by its number or one of its aliases.

    Raises:
        TrackingError: If there is none.
    """
    from mlflow.exceptions import MlflowException

    aliases = _model(client, name).aliases
    try:
        if wanted.isdigit():
            return client.get_model_version(name, wanted)
        return client.get_model_version(name, str(aliases[wanted]))
    except (MlflowException, KeyError) as error:
        has = ", ".join(f"{alias} (v{number})" for alias, number in sorted(aliases.items()))
        raise TrackingError(
            f"{name!r} has no version or alias {wanted!r}; its aliases are {has or 'none'}"
        ) from error


def note(client: Any, version: Any, gates: list[Gate]) -> None:
    """Write what the gates say as tags of a version, where people look at it."""
    for gate in gates:
        text = f"{gate.verdict}: {shortened(gate.reason)}"
        client.set_model_version_tag(version.name, version.version, GATE_TAG + gate.name, text)
    closed = refusal(gates)
    verdict = "passed" if closed is None else f"refused: {shortened(closed)}"
    client.set_model_version_tag(version.name, version.version, "gates", verdict)
    text = described(str(version.description or ""), gates)
    client.update_model_version(version.name, version.version, text)


def gates_of(tags: Mapping[str, str]) -> dict[str, str]:
    """Return what a version's gates said when it was judged last: gate -> `verdict: reason`.

    Args:
        tags: Of the version.
    """
    return {
        tag.removeprefix(GATE_TAG): text
        for tag, text in sorted(tags.items())
        if tag.startswith(GATE_TAG)
    }


def described(description: str, gates: list[Gate]) -> str:
    """Return a version's description with what its gates say, in place of what they said before.

    Args:
        description: As it is; what a person wrote in it stays.
        gates: To show.
    """
    own, _, after = description.partition(_GATES_BEGIN)
    rest = after.partition(_GATES_END)[2]
    rows = [f"| {gate.name} | {gate.verdict} | {_in_cell(gate.reason)} |" for gate in gates]
    table = "\n".join(["", "| gate | says | because |", "|---|---|---|", *rows, ""])
    ours = f"{_GATES_BEGIN}{table}{_GATES_END}"
    room = LONGEST_DESCRIPTION - len(ours) - len(rest) - 2
    return f"{fitting(own.rstrip(), max(room, 0))}\n\n{ours}{rest}"[:LONGEST_DESCRIPTION]


def _in_cell(reason: str) -> str:
    return fitting(" ".join(reason.split()).replace("|", "\\|"), _LONGEST_CELL)


def _model(client: Any, name: str) -> Any:
    """Return a registered model.

    Raises:
        TrackingError: If there is none; names those that there are.
    """
    from mlflow.exceptions import MlflowException

    try:
        return client.get_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        known = sorted(model.name for model in all_models(client))
        raise TrackingError(
            f"there is no registered model {name!r}{did_you_mean(name, known)}; registered are "
            f"{', '.join(known) or 'none'}"
        ) from error


def _champion_of(model: Any) -> str | None:
    return str(model.aliases[CHAMPION]) if CHAMPION in model.aliases else None


def _move(
    project: Path,
    client: Any,
    version: Any,
    champion: str | None,
    kind: Kind,
    by: str,
    because: str,
    gates: list[Gate],
) -> None:
    """Move the aliases, and write the record; the caller is the only writer."""
    model = _model(client, version.name)
    to = str(version.version)
    record = _record(model, version, to, champion, kind, by, because, gates)
    client.set_registered_model_tag(version.name, MOVING_TAG, record.text())
    _carry_out(project, client, model, record)


def _record(
    model: Any,
    version: Any,
    to: str,
    replaced: str | None,
    kind: Kind,
    by: str,
    because: str,
    gates: list[Gate],
) -> Record:
    """Return the record that follows a model's last one."""
    number, before = last_record(model.tags or {})
    tags = version.tags or {}
    return Record(
        number=number + 1,
        at=now(),
        kind=kind,
        to=to,
        replaced=replaced,
        by=by,
        because=shortened(because),
        gates={gate.name: f"{gate.verdict}: {shortened(gate.reason)}" for gate in gates},
        digests={
            folder: tags[digest_tag(folder)]
            for folder in (CHECKPOINT, MODEL, REPORT, AUDIT)
            if digest_tag(folder) in tags
        },
        before=before,
    )


def _carry_out(project: Path, client: Any, model: Any, record: Record) -> None:
    """Do what a record says; each step may have been done before."""
    name = model.name
    if record.kind == "withdraw":
        _carry_out_withdrawal(client, model, record)
        append(project, client, model, record)
        if record.to:
            client.set_registered_model_tag(name, MADE_TAG, record.to)
        client.delete_registered_model_tag(name, MOVING_TAG)
        return
    client.set_registered_model_alias(name, CHAMPION, record.to)
    if record.replaced is not None:
        client.set_registered_model_alias(name, PREVIOUS, record.replaced)
    elif str(model.aliases.get(PREVIOUS)) == record.to:
        client.delete_registered_model_alias(name, PREVIOUS)
    for alias in (CHALLENGER, CANDIDATE):
        if str(model.aliases.get(alias)) == record.to:
            client.delete_registered_model_alias(name, alias)
    append(project, client, model, record)
    client.set_registered_model_tag(name, MADE_TAG, record.to)
    client.delete_registered_model_tag(name, MOVING_TAG)


def _carry_out_withdrawal(client: Any, model: Any, record: Record) -> None:
    name, withdrawn = model.name, str(record.replaced)
    said = f"{record.because} ({record.by}, {record.at})"
    client.set_model_version_tag(name, withdrawn, WITHDRAWN_TAG, said)  # first: nobody takes it now
    if record.to and str(model.aliases.get(CHAMPION)) != record.to:
        client.set_registered_model_alias(name, CHAMPION, record.to)
    if str(model.aliases.get(PREVIOUS)) == record.to:
        client.delete_registered_model_alias(name, PREVIOUS)
    for alias, number in _model(client, name).aliases.items():
        if str(number) == withdrawn:
            client.delete_registered_model_alias(name, alias)


def _finish(project: Path, client: Any, name: str) -> None:
    """Finish what a killed process had begun; forget it where a person has decided since."""
    model = _model(client, name)
    text = (model.tags or {}).get(MOVING_TAG)
    if text is None:
        return
    record = Record.model_validate_json(text)
    if (_champion_of(model) or "") in (record.to, record.replaced or ""):
        _carry_out(project, client, model, record)
    else:
        client.delete_registered_model_tag(name, MOVING_TAG)
