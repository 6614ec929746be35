"""Registered models: one version per checkpoint; aliases `challenger` (newest) and `champion`.

A version gets its alias once, when it is new; from then on aliases are moved by people.

What is registered is a folder that `model_folder` wrote, where torch is; here it is uploaded and
gets its version. Nothing of it is loaded.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from bigtransfer.artifacts.registration import Registration
from bigtransfer.errors import (
    BigTransferError,
    InfrastructureError,
    TrackingError,
    did_you_mean,
)
from bigtransfer.extras import require
from bigtransfer.storage import new_folder
from bigtransfer.track.address import forgot_everything, home_of, tracking_uri
from bigtransfer.track.origin import find_origin
from bigtransfer.track.runs import log_dataset, open_client, open_experiment, parent_run

CHALLENGER, CHAMPION, PREVIOUS = "challenger", "champion", "previous"
_CHECKPOINT = "checkpoint"
_STORE = "mlruns"
"""Folder of the artifacts beside a database of the project's own."""
_STORES = ("boto3", "botocore", "requests", "s3transfer", "urllib3", "azure", "google")
"""Packages whose errors come out of an upload to an artifact store."""
_DIGEST_TAG = "bigtransfer.checkpoint_digest"
_TEST_TAG = "bigtransfer.test_digest"
_SCORE_TAG = "bigtransfer.test_score"
_ALIASES_TAG, _PENDING, _SET = "bigtransfer.aliases", "pending", "set"
"""Of a version: whether `register` has yet to give it its alias, which it does once."""
_PROMOTION_TAG = "bigtransfer.promotion"
_CHAMPION_TAG = "bigtransfer.champion"
"""Of a model: the version that `register` made champion last."""


def register(
    project: Path,
    name: str,
    model: Path,
    *,
    checkpoint: Path,
    tags: dict[str, str],
    metrics: dict[str, float],
    score: float,
    dataset: dict[str, str],
    description: str,
    digest: str,
    test_digest: str,
    promote: str,
) -> Registration:
    """Register a network and set its alias; of one that is registered already nothing is moved.

    Aliases are a person's, too: a version gets one when it is new, and a champion that a person has
    set, or taken away, is not replaced.

    Args:
        project: The project's root, beside which the local database lies.
        name: Of the registered model.
        model: Folder of the MLflow model.
        checkpoint: Folder kept as an artifact beside the model, to fine-tune from.
        tags: Facts for the model version.
        metrics: For the run that holds the model.
        score: On the test split, by which versions are compared; higher is better.
        dataset: `name` and `digest` of the task's shards.
        description: One line for whoever decides about the version.
        digest: Of the checkpoint; a version with this digest is not registered twice.
        test_digest: Of the test split that `score` was measured on; only versions measured on
            the same one are compared.
        promote: `if_better` or `never`.

    Raises:
        TrackingError: If MLflow refuses; says what and where.
    """
    all_tags = {
        **tags,
        _DIGEST_TAG: digest,
        _TEST_TAG: test_digest,
        _SCORE_TAG: repr(score),
    }
    with _explained(project, f"refused to register {name!r}"):
        client = open_client(project)
        version = _find(client, name, digest)
        new = version is None
        if version is None:
            experiment = open_experiment(project, client)
            commit = tags.get("git_commit", "")
            parent = parent_run(project, client, experiment, find_origin(), commit)
            place = {"experiment_id": experiment, "parent_run_id": parent}
            tags_of_new = {**all_tags, _ALIASES_TAG: _PENDING}
            version = _log(client, place, name, model, checkpoint, tags_of_new, metrics, dataset)
        # A process killed on the way left a version without an alias, or without any tag.
        unfinished = new or not version.tags or version.tags.get(_ALIASES_TAG) == _PENDING
        _describe(client, version, all_tags, description)
        if unfinished:
            alias, reason = _set_alias(client, name, version, test_digest, score, promote)
            client.set_model_version_tag(name, version.version, _ALIASES_TAG, _SET)
        else:
            alias, reason = _alias_of(client, name, version), "known; its aliases are left alone"
    return Registration(
        name=name,
        version=str(version.version),
        alias=alias,
        run_id=str(version.run_id),
        new=new,
        reason=reason,
    )


@contextmanager
def _explained(project: Path, what: str) -> Iterator[None]:
    """Turn the errors of MLflow and of its artifact store into ours.

    Raises:
        TrackingError: If it is the user's to mend.
        InfrastructureError: If a server did not answer.
    """
    from mlflow.exceptions import MlflowException

    where = f"MLflow at {tracking_uri(project)!r}"
    try:
        yield
    except MlflowException as error:
        text = " ".join(str(error.message).split())
        if tracking_uri(project).startswith("http") and error.error_code == "INTERNAL_ERROR":
            raise InfrastructureError(
                f"{where} does not answer: {text}; try again later"
            ) from error
        raise TrackingError(
            f"{where} {what}: {text}; check MLFLOW_TRACKING_URI, or move mlflow.db away to start "
            "anew"
        ) from error
    except BigTransferError:
        raise
    except Exception as error:
        if type(error).__module__.split(".")[0] not in _STORES and not isinstance(error, OSError):
            raise
        raise TrackingError(
            f"{where} {what}: its artifact store does not take our files ({type(error).__name__}: "
            f"{' '.join(str(error).split())}); see to its address and to our right to write there"
        ) from error


def fetch_checkpoint(project: Path, address: str) -> Path:
    """Return the checkpoint folder of a registered model, fetched where it is not here yet.

    Args:
        project: The project's root.
        address: `models:/<name>@<alias>` or `models:/<name>/<version>`.

    Raises:
        ConfigError: If MLflow is not installed.
        TrackingError: If there is no such model, or its files cannot be had.
    """
    require("mlflow", repr(address))
    with _of_registered(project, address) as (client, found):
        target = project / ".work" / "models" / str(found.run_id)
        if not target.is_dir():
            os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
            root = str(client.get_run(found.run_id).info.artifact_uri)
            here = _here_now(project, root)
            with new_folder(target, sealed=False) as partial:
                if here is None:
                    client.download_artifacts(found.run_id, _CHECKPOINT, str(partial))
                else:
                    shutil.copytree(here / _CHECKPOINT, partial / _CHECKPOINT)
    return target / _CHECKPOINT


def _here_now(project: Path, uri: str) -> Path | None:
    """Return where files of the project's own MLflow lie now, if the folder was moved since.

    MLflow notes absolute paths. None: they are where it says.

    Raises:
        TrackingError: If they are neither there nor here.
    """
    if urlsplit(uri).scheme not in ("", "file"):
        return None
    noted = Path(url2pathname(urlsplit(uri).path))
    if noted.exists():
        return None
    if _STORE in noted.parts:
        last = len(noted.parts) - noted.parts[::-1].index(_STORE)
        here = home_of(project).joinpath(_STORE, *noted.parts[last:])
        if here.exists():
            return here
    raise TrackingError(
        f"its files lay at {str(noted)!r}, and are not there any more; if the project was moved, "
        f"move its folder {_STORE!r} along with mlflow.db, else register it anew (`make run`)"
    )


def checkpoint_uri(project: Path, address: str) -> str:
    """Return where the checkpoint folder of a registered model lies, as MLflow says it.

    Args:
        project: The project's root.
        address: As above.

    Raises:
        TrackingError: If there is no such model.
    """
    with _of_registered(project, address) as (client, found):
        root = str(client.get_run(found.run_id).info.artifact_uri)
        here = _here_now(project, root)
    return f"{root if here is None else here.as_uri()}/{_CHECKPOINT}"


@contextmanager
def _of_registered(project: Path, address: str) -> Iterator[tuple[Any, Any]]:
    name, alias, version = _parsed(address)
    if forgot_everything(project):
        raise TrackingError(
            f"{address!r} is registered in a project's MLflow, and {str(project)!r} has none; call "
            "this in the project's own folder (where mlflow.db is), or set MLFLOW_TRACKING_URI"
        )
    from mlflow.exceptions import MlflowException

    try:
        client = open_client(project)
        found = (
            client.get_model_version_by_alias(name, alias)
            if alias
            else client.get_model_version(name, version)
        )
        yield client, found
    except (MlflowException, OSError) as error:
        known: list[str] = []
        with suppress(MlflowException):  # a server that is away cannot say what it has either
            known = [model.name for model in open_client(project).search_registered_models()]
        raise TrackingError(
            f"{address!r} cannot be had from MLflow at {tracking_uri(project)!r}: {error}"
            f"{'' if name in known else did_you_mean(name, known)}; registered are "
            f"{', '.join(known) or 'no models'}"
        ) from error


def _parsed(address: str) -> tuple[str, str, str]:
    found = re.fullmatch(r"models:/([^/@]+)(?:@([\w.-]+)|/(\d+))", address)
    if found is None:
        raise TrackingError(
            f"{address!r} names no registered model; write models:/<name>@champion or "
            "models:/<name>/<version>"
        )
    return found[1], found[2] or "", found[3] or ""


def _find(client: Any, name: str, digest: str) -> Any:
    for version in client.search_model_versions(f"name = '{name}'"):
        # A process killed right after it registered left a bare version; its run knows.
        tags = version.tags or client.get_run(version.run_id).data.tags
        if tags.get(_DIGEST_TAG) == digest:
            return version
    return None


def _describe(client: Any, version: Any, tags: dict[str, str], description: str) -> None:
    """Add what the version lacks; what stands there already, or a person wrote, stays."""
    for key, value in tags.items():
        if key not in version.tags:
            client.set_model_version_tag(version.name, version.version, key, value)
    if not version.description:
        client.update_model_version(version.name, version.version, description)


def _log(
    client: Any,
    place: dict[str, str],
    name: str,
    model: Path,
    checkpoint: Path,
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
        mlflow.log_artifacts(str(checkpoint), _CHECKPOINT)
        logged = client.create_logged_model(place["experiment_id"], "model", own)
        client.log_model_artifacts(logged.model_id, str(model))
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
    if noted := (model.tags or {}).get(_CHAMPION_TAG):
        return str(noted)
    # Before 2026-11-27 versions alone said so, and each that was promoted was the newest.
    versions = client.search_model_versions(f"name = '{model.name}'")
    promoted = [int(v.version) for v in versions if _PROMOTION_TAG in (v.tags or {})]
    return str(max(promoted)) if promoted else None


def _set_alias(
    client: Any, name: str, version: Any, test_digest: str, score: float, promote: str
) -> tuple[str, str]:
    """Set the aliases; return the version's alias and the reason in words."""
    model = client.get_registered_model(name)
    aliases = model.aliases
    champion = str(aliases[CHAMPION]) if CHAMPION in aliases else None
    if champion == str(version.version):
        client.set_registered_model_tag(name, _CHAMPION_TAG, champion)
        return CHAMPION, "it is the champion already"
    client.set_registered_model_alias(name, CHALLENGER, version.version)
    if promote == "never":
        return CHALLENGER, "promote is 'never'; set the alias in the MLflow UI"
    made = _made_champion(client, model)
    if champion is None and made is not None:
        return CHALLENGER, "a person took the alias champion away; set it in the MLflow UI"
    if champion is not None:
        if made != champion:
            return CHALLENGER, f"a person made v{champion} champion; decide in the MLflow UI"
        other = client.get_model_version(name, champion)
        if _SCORE_TAG not in other.tags:
            return CHALLENGER, f"champion v{champion} has no score; decide in the MLflow UI"
        if other.tags.get(_TEST_TAG) != test_digest:
            return CHALLENGER, (
                f"champion v{champion} was measured on another test split; decide in the MLflow UI"
            )
        theirs = float(other.tags[_SCORE_TAG])
        if score <= theirs:
            return CHALLENGER, f"{score:.3f} is not above champion v{champion}'s {theirs:.3f}"
        client.set_registered_model_alias(name, PREVIOUS, champion)
        reason = f"{score:.3f} beats champion v{champion}'s {theirs:.3f} on the same test split"
    else:
        reason = "there was no champion"
    record = {"from": champion, "to": version.version, "reason": reason, "by": "register"}
    client.set_model_version_tag(name, version.version, _PROMOTION_TAG, json.dumps(record))
    client.set_registered_model_alias(name, CHAMPION, version.version)
    client.set_registered_model_tag(name, _CHAMPION_TAG, str(version.version))
    client.delete_registered_model_alias(name, CHALLENGER)
    return CHAMPION, reason
