"""From a pipeline file to a run: on a cluster by Kubeflow's client, or here in Docker.

Imports kfp only when it is called, for it takes seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bigtransfer import config
from bigtransfer.config import ClusterParams, Params, looks_secret
from bigtransfer.errors import BigTransferError, ConfigError, StorageError
from bigtransfer.kubeflow import cluster_check, kube, preflight
from bigtransfer.kubeflow.image_tag import CONTENT
from bigtransfer.kubeflow.login import Session, connect, explained
from bigtransfer.kubeflow.objects import Objects
from bigtransfer.kubeflow.orphans import orphans
from bigtransfer.kubeflow.pipeline_file import PipelineFile, pairs_of
from bigtransfer.kubeflow.refusals import Refusals
from bigtransfer.kubeflow.resubmit import Run, check_words, name_of, watched
from bigtransfer.kubeflow.run_api import RunApi
from bigtransfer.kubeflow.run_state import OVER

_ROOT = r"(s3|gs|minio)://[^/\s]+(/\S*)?"
_ACCOUNT = r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?"
_ENDPOINTS = ("KFP_ENDPOINT", "KF_PIPELINES_ENDPOINT")


@dataclass(frozen=True)
class _Package:
    """What is uploaded."""

    name: str
    file: Path
    values: Mapping[str, Any]


def cluster_of(project: Path, arguments: argparse.Namespace) -> ClusterParams | None:
    """Return the section `cluster` of a project, where there is one, as a submission changes it.

    Raises:
        ConfigError: If params.yaml, an overlay or a value is wrong.
    """
    if arguments.file.suffix == ".py" and (params := PipelineFile(project, arguments).params()):
        return params.cluster
    path = project / "params.yaml"
    return config.load(path).cluster if path.is_file() else None


def endpoint_of(given: str | None, cluster: ClusterParams | None) -> str | None:
    """Return where the API is, by what was said explicitly; never by a kubeconfig."""
    named = given or next(filter(None, map(os.environ.get, _ENDPOINTS)), None)
    found = named or (cluster.endpoint if cluster else None)
    if found is not None and "://" not in found:
        found = f"http://{found}"
    return found.rstrip("/") if found else None


def submit(
    project: Path, endpoint: str, cluster: ClusterParams | None, arguments: argparse.Namespace
) -> str:
    """Compile, upload and start; print the run's link and, where asked, its tasks.

    Returns:
        The run's id.

    Raises:
        ConfigError: If the file or a value is wrong, what it asks for cannot run, or the server
            refuses.
        InfrastructureError: If the server does not answer; with `--wait`, if tasks were lost.
        GateError: With `--wait`, if a gate said no.
        BigTransferError: With `--wait`, if the run fails otherwise.
    """
    check_words(arguments.resubmit, arguments.wait)
    _check_flags(arguments)
    is_source = arguments.file.suffix == ".py"
    typed = pairs_of(arguments.values)
    if not is_source and (arguments.params or any("." in key for key in typed)):
        raise ConfigError(
            "a package is compiled already: --params and values of params.yaml (KEY with a "
            "dot) go with a pipeline file (.py)"
        )
    _refuse_secrets(typed)
    loaded = PipelineFile(project, arguments) if is_source else None
    params = loaded.params() if loaded else None
    cluster = params.cluster if params else cluster
    session = connect(endpoint, cluster, arguments)  # before seconds of compiling
    with tempfile.TemporaryDirectory() as scratch:
        stem = loaded.name if loaded else arguments.file.stem
        run_name = arguments.run_name or f"{stem} {time.strftime('%Y-%m-%d %H:%M:%S')}"
        started: list[str] = []

        def start(previous: str | None) -> Run:
            name = name_of(run_name, len(started) + 1)
            told = _told(name, endpoint, previous)
            if loaded is not None:
                package = _compiled(loaded, Path(scratch) / "pipeline.yaml", told, params)
            else:
                package = _Package(stem, arguments.file, typed)
                preflight.refuse_package(_text(package.file), typed)
            _refuse_secrets(package.values)
            if not started:
                _say_beforehand(package, params, arguments)
                _say_orphans(session, endpoint)
            run_id = _start(session, package, name, cluster, arguments)
            started.append(run_id)
            print(f"run      {run_id}")
            print(f"look     {endpoint}/#/runs/details/{run_id}")
            if params is not None and params.cluster.tracking_uri:
                print(f"mlflow   {params.cluster.tracking_uri} (run {name!r})")
            sys.stdout.flush()
            root = arguments.pipeline_root or (cluster.pipeline_root if cluster else None)
            left = Refusals.of_run(root or "", package.name, run_id)
            return Run(session.client, endpoint, run_id, session.namespace, left.all)

        if arguments.wait:
            return watched(start, arguments.resubmit or 0)
        return start(None).run_id


def _check_flags(arguments: argparse.Namespace) -> None:
    """Refuse flags that the cluster would take and nobody could run with.

    Raises:
        ConfigError: Names the flag and what it should be.
    """
    root, account = arguments.pipeline_root, arguments.service_account
    if root is not None and not re.fullmatch(_ROOT, root):
        raise ConfigError(f"--pipeline-root {root!r}: write s3://bucket/prefix (gs://, minio://)")
    if account is not None and not re.fullmatch(_ACCOUNT, account):
        raise ConfigError(f"--service-account {account!r}: small letters, digits and '-' alone")


def _told(name: str, endpoint: str, previous: str | None) -> dict[str, str]:
    """Return the environment by which tasks know their run; everybody who sees it reads it."""
    told = {"BIGTRANSFER_KFP_RUN": name, "BIGTRANSFER_KFP_URL": endpoint}
    return told if previous is None else {**told, "BIGTRANSFER_KFP_RESUBMITTED": previous}


def _compiled(
    loaded: PipelineFile, file: Path, told: Mapping[str, str], params: Params | None
) -> _Package:
    with loaded.building(told):
        name, package, values = loaded.compiled(file)
    _refuse_local_places(loaded, values)
    components = set(preflight.components_of(_text(file)))
    if params is not None and components:
        preflight.refuse_impossible(params, components)
        if not loaded.is_agreed:
            preflight.refuse_too_long(params, components)
    return _Package(name, package, values)


def _text(package: Path) -> str:
    try:
        return package.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{str(package)!r} cannot be read as text ({error})") from error


def _say_beforehand(
    package: _Package, params: Params | None, arguments: argparse.Namespace
) -> None:
    tasks_of = preflight.components_of(_text(package.file))
    if params is None or not tasks_of:
        for note in preflight.notes_on_root(arguments.pipeline_root, None):
            print(f"note: {note}", file=sys.stderr, flush=True)
        return
    root = arguments.pipeline_root or params.cluster.pipeline_root
    for line in preflight.said_beforehand(params, tasks_of, root):
        print(line)
    said = [*preflight.notes(params, set(tasks_of))]
    said += preflight.notes_on_root(root, params.cluster)
    found, _ = kube.at_hand()
    namespace = arguments.namespace or params.cluster.namespace
    if found is not None and (meant := cluster_check.retries_line(found, namespace)):
        said.append(meant)
    for note in said:
        print(f"note: {note}", file=sys.stderr)
    if found is not None:
        for look in cluster_check.quotas(found, namespace):
            print(f"quota    {look.text} (context {found.context})")
    sys.stdout.flush()


def _say_orphans(session: Session, endpoint: str) -> None:
    """Name what still runs for runs that are over, where a kubeconfig is at hand."""
    found, _ = kube.at_hand()
    if found is None:
        return

    def is_over(run: str) -> bool:
        with suppress(BigTransferError):
            return RunApi(session.client, endpoint, run, session.namespace).state().state in OVER
        return False

    with suppress(BigTransferError):  # a courtesy: who may not list Jobs submits all the same
        for one in orphans(Objects(found, session.namespace, pause_seconds=0), is_over):
            print(
                f"note: {one}; that run is over, and nobody waits for it (a submission of the same "
                f"training adopts it): bigtransfer cluster stop {one.name}",
                file=sys.stderr,
                flush=True,
            )


def _start(
    session: Session,
    package: _Package,
    run_name: str,
    cluster: ClusterParams | None,
    arguments: argparse.Namespace,
) -> str:
    root = arguments.pipeline_root or (cluster.pipeline_root if cluster else None)
    account = arguments.service_account or (cluster.service_account if cluster else None)
    with explained(session.endpoint):
        run = session.client.create_run_from_pipeline_package(
            str(package.file),
            arguments=dict(package.values),
            run_name=run_name,
            experiment_name=arguments.experiment_name or package.name,
            namespace=session.namespace if session.several_users else None,
            pipeline_root=root,
            enable_caching=False if arguments.no_cache else None,
            service_account=account,
        )
    return str(run.run_id)


def _refuse_local_places(loaded: PipelineFile, values: Mapping[str, Any]) -> None:
    for key, place in loaded.places(values).items():
        if preflight.is_local(place):
            what = key.removeprefix("uri_")
            cure = (
                f"datasets.{what}.path={config.SOURCES}/{what} "
                f"datasets.{what}.source=s3://… and remote=[…] in an overlay"
                if key.startswith("uri_")
                else "pretrained=s3://…"
            )
            raise ConfigError(
                f"{key} is {place!r}, a path of this machine, which no node of a cluster sees; "
                f"give {cure}, or run it here: --local"
            )


def _refuse_secrets(values: Mapping[str, Any]) -> None:
    for key, value in values.items():
        if not key.startswith("cluster.secrets") and looks_secret(
            key, value if isinstance(value, str) else json.dumps(value)
        ):
            raise ConfigError(
                f"parameter {key!r} looks like a secret, and everybody who sees the run reads it; "
                "put it into a Kubernetes secret and name that under cluster.secrets"
            )


def run_here(project: Path, arguments: argparse.Namespace) -> None:
    """Run a pipeline in this machine's Docker, with the images that a cluster would use.

    Raises:
        ConfigError: If the file or a value is wrong, or an image is not here.
        InfrastructureError: If Docker does not run.
        BigTransferError: If a task fails; what it said stands above.
    """
    from bigtransfer.kubeflow import docker_runner

    for name in (*CONTENT, "params.yaml"):
        if not (project / name).exists():
            raise ConfigError(f"--local runs in a checkout; {name} is not here")
    loaded = PipelineFile(project, arguments)
    with loaded.building({}):
        values = loaded.arguments()
        places = loaded.places(values)
        places = {key: place.removeprefix("file://") for key, place in places.items()}
        mounts: list[Path] = []
        for key, place in places.items():
            if not preflight.is_local(place):
                continue
            path = (project / place).resolve()
            if not path.exists():
                raise StorageError(
                    f"{key} is {place!r}, which does not exist; run `make run` first, or give "
                    f"{key}=PATH"
                )
            values[key] = loaded.at(key, path)
            mounts.append(path)
        docker_runner.run(project, loaded.pipeline, values, mounts)
