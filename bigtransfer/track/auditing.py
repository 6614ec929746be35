"""Whether a model's records are whole, and agree with what is there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bigtransfer.track.copies import Copies
from bigtransfer.track.failures import explained
from bigtransfer.track.moves import champion_of, model_of
from bigtransfer.track.records import CHAMPION, faults, last_record, records_of
from bigtransfer.track.versions import all_models, digest_tag, open_registry


def audited(
    project: Path, names: list[str], records_at: str | None = None
) -> dict[str, tuple[int, list[str]]]:
    """Return for each model how many records it has and what is wrong with them.

    Args:
        project: The project's root.
        names: Of the models; none: all that have records or a champion.
        records_at: Of the second copy of the records, `s3://…`; None: there is none.
    """
    with explained(project, "did not show its records"):
        client = open_registry(project)
        models = [model_of(client, name) for name in names] or [
            model
            for model in all_models(client)
            if CHAMPION in model.aliases
            or last_record(model.tags or {})[0]
            or any(copy.texts for copy in Copies.of(project, model.name, records_at).read())
        ]
        found = {}
        for model in models:
            copies = Copies.of(project, model.name, records_at).read()
            wrong = [*faults(model, copies), *_other_digests(client, model)]
            found[model.name] = last_record(model.tags or {})[0], wrong
        return found


def _other_digests(client: Any, model: Any) -> list[str]:
    """Return where digests at the champion are not those that its record holds."""
    champion = champion_of(model)
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
