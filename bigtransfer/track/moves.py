"""How the aliases of a model move: what is about to be done is noted, then done, then recorded.

Whoever comes after a killed process finishes what the note says.
"""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from bigtransfer.errors import TrackingError, did_you_mean
from bigtransfer.track.copies import Copies
from bigtransfer.track.gates import Gate
from bigtransfer.track.records import (
    CANDIDATE,
    CHALLENGER,
    CHAMPION,
    PREVIOUS,
    Kind,
    Record,
    append,
    last_record,
    now,
    shortened,
)
from bigtransfer.track.versions import (
    AUDIT,
    CHECKPOINT,
    MODEL,
    REPORT,
    WITHDRAWN_TAG,
    all_models,
    digest_tag,
)

MADE_TAG = "bigtransfer.champion"
"""Of a model: the version that this program made champion last."""
MOVING_TAG = "bigtransfer.moving"
"""Of a model: the record of what is being done."""


def find(client: Any, name: str, wanted: str) -> Any:
    """Return a version by its number or one of its aliases.

    Raises:
        TrackingError: If there is none.
    """
    from mlflow.exceptions import MlflowException

    aliases = model_of(client, name).aliases
    try:
        if wanted.isdigit():
            return client.get_model_version(name, wanted)
        return client.get_model_version(name, str(aliases[wanted]))
    except (MlflowException, KeyError) as error:
        has = ", ".join(f"{alias} (v{number})" for alias, number in sorted(aliases.items()))
        raise TrackingError(
            f"{name!r} has no version or alias {wanted!r}; its aliases are {has or 'none'}"
        ) from error


def model_of(client: Any, name: str) -> Any:
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


def champion_of(model: Any) -> str | None:
    """Return the version that is champion of a registered model; None: none is."""
    return str(model.aliases[CHAMPION]) if CHAMPION in model.aliases else None


def move(
    copies: Copies,
    client: Any,
    version: Any,
    champion: str | None,
    kind: Kind,
    by: str,
    because: str,
    gates: list[Gate],
) -> None:
    """Move the aliases, and write the record; the caller is the only writer."""
    model = model_of(client, version.name)
    to = str(version.version)
    record = next_record(model, version, to, champion, kind, by, because, gates)
    copies.check(record)
    client.set_registered_model_tag(version.name, MOVING_TAG, record.text())
    carry_out(copies, client, model, record)


def next_record(
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


def carry_out(copies: Copies, client: Any, model: Any, record: Record) -> None:
    """Do what a record says; each step may have been done before."""
    name = model.name
    if record.kind == "withdraw":
        _carry_out_withdrawal(client, model, record)
        copies.add(record)
        append(client, model, record)
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
    copies.add(record)
    append(client, model, record)
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
    for alias, number in model_of(client, name).aliases.items():
        if str(number) == withdrawn:
            client.delete_registered_model_alias(name, alias)


def finish(copies: Copies, client: Any, name: str) -> None:
    """Finish what a killed process had begun; forget it where a person has decided since.

    Raises:
        TrackingError: If what is noted of it is no record.
    """
    model = model_of(client, name)
    text = (model.tags or {}).get(MOVING_TAG)
    if text is None:
        return
    try:
        record = Record.model_validate_json(text)
    except ValidationError as error:
        raise TrackingError(
            f"the tag {MOVING_TAG} of {name!r} cannot be read: somebody wrote it by hand; look at "
            "`bigtransfer audit-registry`, then delete the tag in MLflow"
        ) from error
    if (champion_of(model) or "") in (record.to, record.replaced or ""):
        carry_out(copies, client, model, record)
        return
    if copies.has(record):  # its number is taken, and it was so until the person decided
        copies.add(record)
        append(client, model, record)
    client.delete_registered_model_tag(name, MOVING_TAG)
