"""What is kept of a registered model version, and where it lies."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from bigtransfer.artifacts.audit import Audit
from bigtransfer.artifacts.cells import Origin
from bigtransfer.artifacts.evidence import Evidence
from bigtransfer.artifacts.measured import Measured
from bigtransfer.config import GateRules
from bigtransfer.errors import (
    BigTransferError,
    ConfigError,
    GateError,
    StorageError,
    TrackingError,
    did_you_mean,
)
from bigtransfer.extras import require
from bigtransfer.storage import digest_of, new_folder, verify_folder
from bigtransfer.storage.home import home_of
from bigtransfer.track.address import forgot_everything, tracking_uri
from bigtransfer.track.gates import Contender
from bigtransfer.track.records import CHALLENGER
from bigtransfer.track.runs import open_client

if TYPE_CHECKING:
    from bigtransfer.artifacts.answers import Answers

CHECKPOINT, MODEL, REPORT, AUDIT = "checkpoint", "model", "report", "audit"
"""Folders that are kept of a version."""
MEASURED = "measured"
"""Folder that is kept of a version that was run in turn with the champion."""
WITHDRAWN_TAG = "bigtransfer.withdrawn"
"""Of a version that must not be used any more: who says so, and why."""
MANIFESTS_TAG = "bigtransfer.manifests"
"""Of a version: JSON, dataset -> SHA-256 of its manifest; of task and upstream network alike."""
LONGEST_DESCRIPTION = 5000
"""Characters that a column of PostgreSQL and MySQL takes; sqlite takes more, and hides that."""
ORIGIN_TAG = "bigtransfer.upstream"
NO_PROGRESS = "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"
_STORE = "mlruns"
"""Folder of the artifacts beside a database of the project's own."""


def fetch_checkpoint(project: Path, address: str) -> Path:
    """Return the checkpoint folder of a registered model, fetched where it is not here yet.

    Args:
        project: The project's root.
        address: `models:/<name>@<alias>` or `models:/<name>/<version>`.

    Raises:
        ConfigError: If MLflow is not installed.
        TrackingError: If there is no such model, or its files cannot be had.
        GateError: If it was withdrawn.
    """
    require("mlflow", repr(address))
    os.environ[NO_PROGRESS] = "false"
    with _of_registered(project, address) as (client, found):
        refuse_withdrawn(found)
        target = project / ".work" / "models" / str(found.run_id)
        if not target.is_dir():
            root = str(client.get_run(found.run_id).info.artifact_uri)
            here = _here_now(project, root)
            with new_folder(target, sealed=False) as partial:
                if here is None:
                    client.download_artifacts(found.run_id, CHECKPOINT, str(partial))
                else:
                    shutil.copytree(here / CHECKPOINT, partial / CHECKPOINT)
    return target / CHECKPOINT


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
        GateError: If it was withdrawn.
    """
    with _of_registered(project, address) as (client, found):
        refuse_withdrawn(found)
        root = str(client.get_run(found.run_id).info.artifact_uri)
        here = _here_now(project, root)
    return f"{root if here is None else here.as_uri()}/{CHECKPOINT}"


def refuse_withdrawn(version: Any) -> None:
    """Refuse a version that somebody withdrew.

    Args:
        version: Of MLflow.

    Raises:
        GateError: Says why it must not be used.
    """
    if reason := (version.tags or {}).get(WITHDRAWN_TAG):
        raise GateError(
            f"{version.name} version {version.version} was withdrawn and must not be used: {reason}"
        )


@contextmanager
def _of_registered(project: Path, address: str) -> Iterator[tuple[Any, Any]]:
    name, alias, version = _parsed(address)
    client = open_registry(project)
    from mlflow.exceptions import MlflowException

    try:
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


def _parsed(address: str) -> tuple[str, str, str]:
    found = re.fullmatch(r"models:/([^/@]+)(?:@([\w.-]+)|/(\d+))", address)
    if found is None:
        raise TrackingError(
            f"{address!r} names no registered model; write models:/<name>@champion or "
            "models:/<name>/<version>"
        )
    return found[1], found[2] or "", found[3] or ""


def open_registry(project: Path) -> Any:
    """Return a client of the MLflow that a project's models are registered in.

    Raises:
        TrackingError: If the project has none yet; none is made.
    """
    if forgot_everything(project):
        raise TrackingError(
            f"models are registered in a project's MLflow, and {str(project)!r} has none; call "
            "this in the project's own folder (where mlflow.db is), or set MLFLOW_TRACKING_URI"
        )
    return open_client(project)


def all_models(client: Any) -> Iterator[Any]:
    """Yield all registered models, page by page."""
    token = None
    while True:
        page = client.search_registered_models(max_results=500, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def versions_of(client: Any, name: str) -> list[Any]:
    """Return all versions of a registered model, page by page."""
    # MLflow's filters know no escape: a name that holds both quotes cannot be asked for.
    quote = next((own for own in "'\"" if own not in name), None)
    asked = f"name = {quote}{name}{quote}" if quote else None
    found: list[Any] = []
    token = None
    while True:
        page = client.search_model_versions(asked, max_results=1000, page_token=token)
        found += [version for version in page if version.name == name]
        token = page.token
        if not token:
            return found


@dataclass(frozen=True)
class Kept:
    """The folders of a version, as they lie now."""

    folders: dict[str, Path]
    """Name -> folder."""
    damage: str | None
    """What is not as it was registered; None: nothing."""


@contextmanager
def kept_of(project: Path, client: Any, version: Any, names: Iterable[str]) -> Iterator[Kept]:
    """Give the folders of a version, each verified; what is not here is fetched for so long.

    Args:
        project: The project's root.
        client: Of MLflow.
        version: Of MLflow.
        names: Of the folders.
    """
    with ExitStack() as stack:
        folders: dict[str, Path] = {}
        damage = None
        for name in names:
            noted = (version.tags or {}).get(digest_tag(name))
            if noted is None:
                continue  # it was registered before such was kept
            try:
                folders[name] = _folder_of(project, client, version, name, stack)
                verify_folder(folders[name])
                if digest_of(folders[name]) != noted:
                    damage = damage or f"its {name} is another than the one that was registered"
            except (TrackingError, StorageError) as error:
                damage = damage or f"its {name} is not as it was registered: {error}"
        yield Kept(folders, damage)


def digest_tag(name: str) -> str:
    """Return the tag that holds the digest of a folder of a version."""
    return f"bigtransfer.{name}_digest"


def _folder_of(project: Path, client: Any, version: Any, name: str, stack: ExitStack) -> Path:
    """Return a folder of a version where it lies, or a copy.

    Raises:
        TrackingError: If it is gone.
    """
    from mlflow.exceptions import MlflowException

    gone = TrackingError(f"MLflow has no {name!r} of it any more")
    try:
        if name == MODEL:
            logged = str(version.source).removeprefix("models:/")
            root = str(client.get_logged_model(logged).artifact_location)
        else:
            root = f"{client.get_run(version.run_id).info.artifact_uri}/{name}"
    except MlflowException as error:
        raise gone from error
    if urlsplit(root).scheme in ("", "file"):
        here = _here_now(project, root) or Path(url2pathname(urlsplit(root).path))
        if not here.is_dir():
            raise gone
        return here
    os.environ[NO_PROGRESS] = "false"
    import mlflow

    place = Path(stack.enter_context(TemporaryDirectory()))
    try:
        return Path(mlflow.artifacts.download_artifacts(artifact_uri=root, dst_path=str(place)))
    except MlflowException as error:
        raise gone from error


def contender_of(
    project: Path, client: Any, version: Any, rules: GateRules, *, compares: bool = True
) -> Contender:
    """Return what the gates want to know of a version; all its files are read.

    Args:
        project: The project's root.
        client: Of MLflow.
        version: Of MLflow.
        rules: The gates.
        compares: Whether its answers are wanted, which takes numpy and pyarrow.
    """
    names = (CHECKPOINT, MODEL, REPORT, AUDIT)
    with kept_of(project, client, version, names) as kept:
        evidence, answers, leaks, damage = None, None, None, kept.damage
        try:
            report = kept.folders.get(REPORT)
            if report is not None and (report / Evidence.FILE).is_file():
                evidence = Evidence.read(report)
                if compares and evidence.held_out:
                    from bigtransfer.artifacts.answers import Answers

                    answers = Answers.read(report)
            if audit := kept.folders.get(AUDIT):
                leaks = len(Audit.read(audit).leaks)
        except BigTransferError as error:
            damage = damage or str(error)
    tags = version.tags or {}
    return Contender(
        version=str(version.version),
        evidence=evidence,
        answers=answers,
        leaks=leaks,
        upstream=_pinned_by(tags, rules),
        damage=damage,
        unnoted=tuple(name for name in names if digest_tag(name) not in tags),
        withdrawn=tags.get(WITHDRAWN_TAG),
        checkpoint=tags.get(digest_tag(CHECKPOINT), ""),
        measured=_measured_of(project, client, version) if compares else None,
    )


def _measured_of(project: Path, client: Any, version: Any) -> tuple[Measured, Answers] | None:
    """Return at what a champion was measured for a version; None: it was not, or that is lost."""
    from bigtransfer.artifacts.answers import Answers

    with kept_of(project, client, version, [MEASURED]) as kept:
        folder = kept.folders.get(MEASURED)
        if folder is None or kept.damage is not None:
            return None
        try:
            return Measured.read(folder), Answers.read(folder)
        except StorageError:
            return None


def _pinned_by(tags: Mapping[str, str], rules: GateRules) -> str | None:
    """Return what the weights that a version began with are pinned by, for people."""
    if tags.get("init") == "scratch":
        return "it was trained from scratch"
    if ORIGIN_TAG not in tags:
        return None
    origin = Origin.model_validate_json(tags[ORIGIN_TAG])
    if origin.dataset:
        return f"pretrained here on {origin.dataset}, {tags.get('upstream_digest', '')[:12]}…"
    if origin.sha256 in rules.pinned:
        return f"{origin.file}, sha256 {origin.sha256[:12]}… as pinned"
    if (digest := tags.get("upstream_digest", "")) in rules.pinned:
        return f"a checkpoint of digest {digest[:12]}… as pinned"
    return ""
