"""Registered models: one version per checkpoint, proposed as `challenger`; the first, champion.

A version gets its alias once, when it is new; from then on people move aliases, and `promotion`
does for them. What is registered is a folder that `model_folder` wrote, where torch is; here it is
uploaded and gets its version. Nothing of it is loaded.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from bigtransfer.artifacts.cells import Origin
from bigtransfer.artifacts.registration import Registration
from bigtransfer.config import GateRules
from bigtransfer.storage import digest_of
from bigtransfer.track.failures import explained
from bigtransfer.track.gates import refusal
from bigtransfer.track.moves import MADE_TAG
from bigtransfer.track.origin import find_origin
from bigtransfer.track.promotion import advance, is_reserved
from bigtransfer.track.records import CANDIDATE, CHALLENGER, CHAMPION, PREVIOUS, fitting, records_of
from bigtransfer.track.runs import log_dataset, open_client, open_experiment, parent_run
from bigtransfer.track.verdict import gates_of
from bigtransfer.track.versions import (
    AUDIT,
    CHECKPOINT,
    LONGEST_DESCRIPTION,
    MODEL,
    ORIGIN_TAG,
    REPORT,
    digest_tag,
    versions_of,
)

_SCORE_TAG = "bigtransfer.test_score"
_TEST_TAG = "bigtransfer.test_digest"
_ALIASES_TAG, _PENDING, _SET = "bigtransfer.aliases", "pending", "set"
"""Of a version: whether `register` has yet to give it its alias, which it does once."""
_PROMOTION_TAG = "bigtransfer.promotion"
"""Of versions that older code promoted."""


def register(
    project: Path,
    name: str,
    folders: dict[str, Path],
    *,
    origin: Origin | None,
    tags: dict[str, str],
    metrics: dict[str, float],
    score: float,
    dataset: dict[str, str],
    description: str,
    made_in: dict[str, str] | None = None,
    test_digest: str,
    first: Literal["champion", "challenger"],
    rules: GateRules,
    records_at: str | None = None,
) -> Registration:
    """Register a network as `challenger`; of one that is registered already nothing is moved.

    The first version of a model becomes champion if it passes the gates that need none.

    Args:
        project: The project's root.
        name: Of the registered model.
        folders: `model`, `checkpoint`, `report` and `audit`, sealed.
        origin: Of the weights that it began with; None: not known.
        tags: Facts for the model version.
        metrics: For the run that holds the model.
        score: On the test split; higher is better. Reported, never decided by.
        dataset: `name` and `digest` of the task's shards.
        made_in: Tags of the environment; a version that is known was made in another.
        description: One line for whoever decides about the version.
        test_digest: Of the test split that `score` was measured on.
        first: What the first version becomes.
        rules: Its gates.
        records_at: As of `promote`.

    Raises:
        TrackingError: If MLflow refuses; says what and where.
    """
    digests = {digest_tag(own): digest_of(folder) for own, folder in folders.items()}
    all_tags = {**tags, **digests, _TEST_TAG: test_digest, _SCORE_TAG: repr(score)}
    if origin is not None:
        all_tags[ORIGIN_TAG] = origin.model_dump_json()
    with explained(project, f"refused to register {name!r}"):
        client = open_client(project)
        version = _find(client, name, digests[digest_tag(CHECKPOINT)])
        new = version is None
        if version is None:
            experiment = open_experiment(project, client)
            commit = tags.get("git_commit", "")
            parent = parent_run(project, client, experiment, find_origin(), commit)
            place = {"experiment_id": experiment, "parent_run_id": parent}
            tags_of_new = {**all_tags, _ALIASES_TAG: _PENDING}
            version = _log(client, place, name, folders, tags_of_new, metrics, dataset)
        # A process killed on the way left a version without an alias, or without any tag.
        unfinished = new or not version.tags or version.tags.get(_ALIASES_TAG) == _PENDING
        if unfinished:
            _describe(client, version, {**all_tags, **(made_in or {})}, description)
            version = client.get_model_version(name, version.version)
            alias, reason = _propose(project, client, version, first, rules, records_at)
            client.set_model_version_tag(name, version.version, _ALIASES_TAG, _SET)
        else:
            # Folders that older code did not keep are not there: their digests say nothing.
            own = {key: value for key, value in all_tags.items() if key not in digests}
            _describe(client, version, own, description)
            alias, reason = _alias_of(client, name, version), "known; its aliases are left alone"
        now = client.get_model_version(name, version.version)
    return Registration(
        name=name,
        version=str(version.version),
        alias=alias,
        run_id=str(version.run_id),
        new=new,
        reason=reason,
        gates=gates_of(now.tags or {}),
    )


def _find(client: Any, name: str, digest: str) -> Any:
    for version in versions_of(client, name):
        # A process killed right after it registered left a bare version; its run knows.
        tags = version.tags or client.get_run(version.run_id).data.tags
        if tags.get(digest_tag(CHECKPOINT)) == digest:
            return version
    return None


def _describe(client: Any, version: Any, tags: dict[str, str], description: str) -> None:
    """Add what the version lacks; what stands there already, or a person wrote, stays."""
    for key, value in tags.items():
        if key not in version.tags:
            client.set_model_version_tag(version.name, version.version, key, value)
    if not version.description:
        text = fitting(description, LONGEST_DESCRIPTION)
        client.update_model_version(version.name, version.version, text)


def _log(
    client: Any,
    place: dict[str, str],
    name: str,
    folders: dict[str, Path],
    tags: dict[str, str],
    metrics: dict[str, float],
    dataset: dict[str, str],
) -> Any:
    import mlflow
    from mlflow.exceptions import MlflowException

    with mlflow.start_run(run_name=f"model {name}", tags=tags, **place) as run:
        own = run.info.run_id
        mlflow.log_metrics(metrics)
        log_dataset(client, own, dataset["name"], dataset["digest"], "", {})
        for folder in (CHECKPOINT, REPORT, AUDIT):
            if folder in folders:
                mlflow.log_artifacts(str(folders[folder]), folder)
        logged = client.create_logged_model(place["experiment_id"], "model", own)
        client.log_model_artifacts(logged.model_id, str(folders[MODEL]))
        client.finalize_logged_model(logged.model_id, "READY")
        with suppress(MlflowException):  # it is there already
            client.create_registered_model(name)
        return client.create_model_version(
            name, f"models:/{logged.model_id}", own, tags=tags, model_id=logged.model_id
        )


def _alias_of(client: Any, name: str, version: Any) -> str:
    """Return the alias that a version has, the highest of ours; empty: none."""
    aliases = client.get_registered_model(name).aliases
    own = [alias for alias, number in aliases.items() if str(number) == str(version.version)]
    return next((alias for alias in (CHAMPION, CHALLENGER, PREVIOUS) if alias in own), "")


def _made_champion(client: Any, model: Any) -> str | None:
    """Return the version that `register` made champion last; None: it never did."""
    tags = model.tags or {}
    if noted := tags.get(MADE_TAG) or next((r.to for r in records_of(tags)), None):
        return str(noted)
    # Before 2026-11-27 versions alone said so, and each that was promoted was the newest.
    versions = versions_of(client, model.name)
    promoted = [int(v.version) for v in versions if _PROMOTION_TAG in (v.tags or {})]
    return str(max(promoted)) if promoted else None


def _propose(
    project: Path,
    client: Any,
    version: Any,
    first: Literal["champion", "challenger"],
    rules: GateRules,
    records_at: str | None,
) -> tuple[str, str]:
    """Give a version its alias; return it and the reason in words."""
    from mlflow.exceptions import MlflowException

    name = str(version.name)
    model = client.get_registered_model(name)
    if str(model.aliases.get(CHAMPION)) == str(version.version):
        if _made_champion(client, model) != str(version.version):
            client.set_registered_model_tag(name, MADE_TAG, str(version.version))
        return CHAMPION, "it is the champion already"
    client.set_registered_model_alias(name, CHALLENGER, version.version)
    how = f"`bigtransfer promote {name}` makes it champion"
    if CHAMPION in model.aliases:
        return CHALLENGER, f"v{model.aliases[CHAMPION]} is champion; {how}"
    if _made_champion(client, model) is not None:
        return CHALLENGER, f"a person took the alias champion away; {how}"
    if first == CHALLENGER:
        return CHALLENGER, f"register.first is challenger; {how}"
    because = "the first version of this model"
    try:
        found = advance(
            project, client, version, rules,
            kind="first", by="register", because=because, records_at=records_at,
        )  # fmt: skip
    except MlflowException as error:
        if not is_reserved(error):
            raise
        client.set_registered_model_alias(name, CANDIDATE, version.version)
        return CHALLENGER, "bigtransfer watch alone moves champion here; the version is candidate"
    if (closed := refusal(found.gates)) is not None:
        return CHALLENGER, f"there is no champion, and it does not pass its gates: {closed}"
    return CHAMPION, "there was no champion"
