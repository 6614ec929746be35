"""From a registered model version back to what made it, and whether all of that is still so."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bigtransfer.artifacts.audit import Audit
from bigtransfer.artifacts.cells import Origin
from bigtransfer.artifacts.evidence import Evidence
from bigtransfer.artifacts.report import TaskReport
from bigtransfer.artifacts.validation import ManifestFacts
from bigtransfer.errors import BigTransferError
from bigtransfer.track.address import forgot_everything
from bigtransfer.track.failures import explained
from bigtransfer.track.moves import find
from bigtransfer.track.pods import ENGINE
from bigtransfer.track.records import CHAMPION, Record, records_of
from bigtransfer.track.tags import ORIGIN_TAG as RUN_TAG
from bigtransfer.track.tags import PARENT_TAG
from bigtransfer.track.verdict import gates_of
from bigtransfer.track.versions import (
    AUDIT,
    CHECKPOINT,
    MODEL,
    ORIGIN_TAG,
    REPORT,
    WITHDRAWN_TAG,
    digest_tag,
    kept_of,
    open_registry,
    split_address,
)

FOLDERS = (CHECKPOINT, MODEL, REPORT, AUDIT)
_NOT_NOTED = "not noted"


@dataclass(frozen=True)
class Explanation:
    """What is known of a version."""

    facts: dict[str, dict[str, str]]
    """Subject -> what -> value, for people."""
    unnoted: tuple[str, ...]
    """Folders whose digest is not noted, so that nobody can say whether they changed."""
    damage: str | None
    """What of its files is not as it was registered; None: nothing, or nobody looked."""


def explain(project: Path, address: str, *, verify: bool) -> Explanation:
    """Return what made a version, as MLflow and the folders kept with it say.

    Args:
        project: The project's root.
        address: As `split_address` takes it; a name alone is its champion.
        verify: Whether all its files are read again.

    Raises:
        TrackingError: If there is no such version.
    """
    name, wanted = split_address(address, CHAMPION)
    with explained(project, f"could not explain {address!r}"):
        client = open_registry(project)
        version = find(client, name, wanted)
        model = client.get_registered_model(name)
        tags = version.tags or {}
        run = client.get_run(version.run_id)
        parent = _parent(client, run)
        with kept_of(project, client, version, FOLDERS if verify else (REPORT, AUDIT)) as kept:
            data, recipe = _data(tags, kept.folders), _recipe(kept.folders.get(REPORT))
            damage = (_changed_since(model, version, tags) or kept.damage) if verify else None
    return Explanation(
        {
            "model": _model(client, version, model, tags),
            "data": data,
            "trained with": recipe,
            "upstream": _upstream(tags),
            "made by": _maker(tags, run, parent),
            "gates": gates_of(tags),
            "promotions": _promotions(model, str(version.version)),
            "digests": {folder: tags.get(digest_tag(folder), _NOT_NOTED) for folder in FOLDERS},
        },
        tuple(folder for folder in FOLDERS if digest_tag(folder) not in tags),
        damage,
    )


def _parent(client: Any, run: Any) -> Any:
    """Return the run of the whole workflow; None: there is none, or it was deleted for good."""
    from mlflow.exceptions import MlflowException

    own = run.data.tags.get(PARENT_TAG)
    try:
        return client.get_run(own) if own else None
    except MlflowException:
        return None


def _address(client: Any, version: Any) -> str:
    """Return where the model folder lies: what KServe is given as storageUri."""
    from mlflow.exceptions import MlflowException

    try:
        logged = client.get_logged_model(str(version.source).removeprefix("models:/"))
    except MlflowException:
        return str(version.source)  # older code registered it as a part of its run
    return str(logged.artifact_location)


def _model(client: Any, version: Any, model: Any, tags: dict[str, str]) -> dict[str, str]:
    number = str(version.version)
    own = sorted(alias for alias, other in model.aliases.items() if str(other) == number)
    since = datetime.fromtimestamp(version.creation_timestamp / 1000, UTC)
    return {
        "name": f"{version.name} version {number}",
        "aliases": ", ".join(own) or "none",
        **({"withdrawn": tags[WITHDRAWN_TAG]} if tags.get(WITHDRAWN_TAG) else {}),
        "registered": since.isoformat(timespec="seconds"),
        "what it is": str(version.description or _NOT_NOTED).splitlines()[0],
        "files": _address(client, version),
        "architecture": tags.get("architecture", _NOT_NOTED),
        "trained from": tags.get("init", _NOT_NOTED),
        "examples per class": tags.get("examples_per_class", _NOT_NOTED),
        "seed": tags.get("seed", _NOT_NOTED),
    }


def _data(tags: dict[str, str], folders: dict[str, Path]) -> dict[str, str]:
    found = {
        "dataset": tags.get("dataset", _NOT_NOTED),
        "shards": tags.get("shards_digest", _NOT_NOTED),
    }
    try:
        if report := folders.get(REPORT):
            evidence = Evidence.read(report)
            found["validation split"] = evidence.validation_digest
            found["validation images"] = f"{evidence.validation_images:,}"
            found["classes"] = f"{len(evidence.classes):,}"
        if audit := folders.get(AUDIT):
            known = Audit.read(audit)
            for dataset, digest in known.datasets.items():
                found[f"manifest of {dataset}"] = digest
                if facts := known.facts.get(dataset):
                    found |= {f"{what} of {dataset}": said for what, said in _source(facts).items()}
    except BigTransferError as error:
        found["not readable"] = str(error)
    return found


def _recipe(report: Path | None) -> dict[str, str]:
    """Return what the BiT-HyperRule said, and what it was told, for the fine-tuning."""
    if report is None or not (report / TaskReport.FILE).is_file():
        return {}
    try:
        found = TaskReport.read(report).hyperrule
    except BigTransferError as error:
        return {"not readable": str(error)}
    return {what: str(value) for what, value in found.items() if value is not None}


def _source(facts: ManifestFacts) -> dict[str, str]:
    found = {"source": f"{facts.address} ({facts.layout})"}
    if facts.revision:
        found["DVC revision"] = facts.revision
    found["images"] = _images(facts)
    found["splits"] = (
        "as the data bring them"
        if facts.split_seed is None
        else f"made with seed {facts.split_seed}"
    )
    if facts.left_out:
        named = "; ".join(f"{one.path}: {one.reason}" for one in facts.left_out)
        more = facts.left_out_in_all - len(facts.left_out)
        found["left out"] = f"{named}{f'; and {more:,} more' if more > 0 else ''}"
    return found


def _images(facts: ManifestFacts) -> str:
    counts = facts.counts
    splits = ", ".join(f"{split} {images:,}" for split, images in counts.splits.items())
    return (
        f"{counts.images:,} of {counts.classes:,} classes ({splits}); {counts.rejected:,} of "
        f"{counts.listed:,} rejected, {counts.ignored_files:,} files ignored"
    )


def _upstream(tags: dict[str, str]) -> dict[str, str]:
    found = {"digest": tags.get("upstream_digest", _NOT_NOTED)}
    if ORIGIN_TAG in tags:
        origin = Origin.model_validate_json(tags[ORIGIN_TAG])
        found |= {"pretrained here on": origin.dataset} if origin.dataset else {}
        found |= {"file": origin.file, "sha256 of the file": origin.sha256} if origin.file else {}
    return found


def _kfp_run(origin: Mapping[str, str]) -> str:
    own = origin["key"].removeprefix(f"{ENGINE}-")
    at = f" at {origin['url']}" if origin.get("url") else ""
    return f"{origin.get('title') or 'run'} {own}{at}"


def _maker(tags: dict[str, str], run: Any, parent: Any) -> dict[str, str]:
    commit = tags.get("git_commit") or _NOT_NOTED
    within = run.data.tags.get(PARENT_TAG, "")
    kfp = json.loads(parent.data.tags.get(RUN_TAG, "{}")) if parent is not None else {}
    changed = commit.endswith("+changes")
    return {
        "commit": commit.removesuffix("+changes"),
        "working tree": "differed from the commit" if changed else "as in the commit",
        "lock file": tags.get("lock_digest", _NOT_NOTED),
        "run": str(run.info.run_id),
        "within run": within or "none",
        **({"KFP run": _kfp_run(kfp)} if kfp.get("engine") == ENGINE else {}),
        **({"image": tags["image"]} if tags.get("image") else {}),
        "by": str(run.info.user_id or _NOT_NOTED),
    }


def _changed_since(model: Any, version: Any, tags: Mapping[str, str]) -> str | None:
    """Return which digest at a version is not that of its records; None: none.

    Whoever writes other files to the artifact store can write their digest to the version; the
    records hold the one of the promotion.
    """
    for record in records_of(model.tags or {}):
        about = record.replaced if record.kind == "withdraw" else record.to
        if about != str(version.version):
            continue
        for folder, digest in record.digests.items():
            if tags.get(digest_tag(folder)) != digest:
                return f"the digest of its {folder} is not that of record {record.number}"
    return None


def _changed(record: Record) -> str:
    if record.kind == "withdraw":
        champion = f"v{record.to} is champion" if record.to else "nothing is champion"
        return f"v{record.replaced}; {champion}"
    return f"v{record.replaced} -> v{record.to}" if record.replaced else f"v{record.to}"


def _promotions(model: Any, version: str) -> dict[str, str]:
    return {
        f"record {record.number}": f"{record.at} {record.kind}: "
        f"{_changed(record)}, by {record.by}"
        + (f", because {record.because}" if record.because else "")
        for record in records_of(model.tags or {})
        if version in (record.to, record.replaced)
    }


def all_versions(project: Path) -> list[Any]:
    """Return every registered version; none where the project has no registry yet.

    Raises:
        TrackingError: If MLflow refuses.
    """
    if forgot_everything(project):
        return []
    with explained(project, "did not list its models"):
        client = open_registry(project)
        found: list[Any] = []
        token = None
        while True:
            page = client.search_model_versions(max_results=1000, page_token=token)
            found += page
            token = page.token
            if not token:
                return found
