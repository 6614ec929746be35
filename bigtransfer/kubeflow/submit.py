"""From a pipeline file to a run: on a cluster by Kubeflow's client, or here in Docker.

Imports kfp only when it is called, for it takes seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
import urllib.error
import urllib.request
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bigtransfer import config
from bigtransfer.config import ClusterParams, looks_secret
from bigtransfer.errors import (
    BigTransferError,
    ConfigError,
    InfrastructureError,
    StorageError,
)
from bigtransfer.kubeflow.image_tag import CONTENT
from bigtransfer.kubeflow.pipeline_file import PipelineFile, pairs_of
from bigtransfer.kubeflow.resubmit import Run, check_words, name_of, watched

_ENDPOINTS = ("KFP_ENDPOINT", "KF_PIPELINES_ENDPOINT")
_SECONDS = 20.0


def cluster_of(project: Path) -> ClusterParams | None:
    """Return the section `cluster` of a project's params.yaml, where there is one."""
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
        ConfigError: If the file or a value is wrong, or the server refuses.
        InfrastructureError: If the server does not answer; with `--wait`, if tasks were lost.
        GateError: With `--wait`, if a gate said no.
        BigTransferError: With `--wait`, if the run fails otherwise.
    """
    check_words(arguments.resubmit, arguments.wait)
    package = arguments.file
    name = package.stem
    values: dict[str, Any] = dict(pairs_of(arguments.values))
    if package.suffix != ".py" and (arguments.params or any("." in key for key in values)):
        raise ConfigError(
            "a package is compiled already: --params and values of params.yaml (KEY with a "
            "dot) go with a pipeline file (.py)"
        )
    _refuse_secrets(values)
    several_users = _require_api(endpoint, arguments.existing_token)  # before seconds of compiling
    with tempfile.TemporaryDirectory() as scratch:
        if package.suffix == ".py":
            loaded = PipelineFile(project, arguments)
            with loaded.building():
                name, package, values = loaded.compiled(Path(scratch) / "pipeline.yaml")
            _refuse_local_places(loaded, values)
        notes = list(_notes(package))
        _refuse_secrets(values)
        with _explained(endpoint):
            client = _client(endpoint, cluster, arguments)
        run_name = arguments.run_name or f"{name} {time.strftime('%Y-%m-%d %H:%M:%S')}"
        namespace = _namespace(cluster, arguments)
        started: list[str] = []

        def start(previous: str | None) -> Run:
            with _explained(endpoint):
                run = client.create_run_from_pipeline_package(
                    str(package),
                    arguments=values,
                    run_name=name_of(run_name, len(started) + 1),
                    experiment_name=arguments.experiment_name or name,
                    namespace=namespace if several_users else None,
                )
            for note in () if started else notes:
                print(f"note: {note}", file=sys.stderr, flush=True)
            started.append(str(run.run_id))
            print(f"run      {run.run_id}")
            print(f"look     {endpoint}/#/runs/details/{run.run_id}", flush=True)
            return Run(client, endpoint, started[-1], namespace)

        if arguments.wait:
            return watched(start, arguments.resubmit or 0)
        return start(None).run_id


def _notes(package: Path) -> Iterator[str]:
    """Say what a run will lack that its params could give."""
    text = package.read_text("utf-8")
    if "components.register" in text and "MLFLOW_TRACKING_URI" not in text:
        yield (
            "cluster.tracking_uri is null, so no task reaches MLflow and `register` will fail; "
            "give cluster.tracking_uri=http://…"
        )
    if "components.pretrain" in text and '"checkpoint_mirror":null' in text:
        yield (
            "pretrain.checkpoint_mirror is null, so a training whose node is lost begins anew; "
            "give pretrain.checkpoint_mirror=s3://…"
        )


def _refuse_local_places(loaded: PipelineFile, values: Mapping[str, Any]) -> None:
    for key, place in loaded.places(values).items():
        if place.startswith("mlflow-artifacts:"):
            raise ConfigError(
                f"{key} lies at {place!r}: MLflow hands its files out itself, which KFP cannot "
                "read; give the address of the checkpoint in a bucket"
            )
        if "://" not in place or place.startswith("file://"):
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


def _require_api(endpoint: str, token: str | None) -> bool:
    """Ask the server whether it speaks KFP's API v2.

    Returns:
        Whether it is one for several users, where a run belongs to a namespace.

    Raises:
        ConfigError: If it does not, or refuses us.
        InfrastructureError: If it does not answer.
    """
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    request = urllib.request.Request(f"{endpoint}/apis/v2beta1/healthz", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=_SECONDS) as answer:
            health = json.loads(answer.read())
            return bool(health.get("multi_user", health.get("multiUser", False)))
    except urllib.error.HTTPError as error:
        raise _refusal(endpoint, error.code, str(error.reason)) from error
    except ValueError as error:
        raise ConfigError(
            f"{endpoint} answers, but not as Kubeflow Pipelines (a login page?); give the address "
            "of the API, and --existing-token where it asks for one"
        ) from error
    except OSError as error:
        why = getattr(error, "reason", error)
        raise InfrastructureError(
            f"Kubeflow Pipelines at {endpoint} does not answer ({why}); start it or its port-"
            "forward, then submit again"
        ) from error


def _refusal(endpoint: str, status: int, reason: str) -> BigTransferError:
    if status in (401, 403):
        return ConfigError(
            f"{endpoint} refuses us ({status} {reason}); give a token with --existing-token"
        )
    if status == 404:
        return ConfigError(
            f"{endpoint} has no API v2beta1 (404): it is another address, or Kubeflow Pipelines "
            "older than 2.0; correct --endpoint, or upgrade"
        )
    if status >= 500:
        return InfrastructureError(f"{endpoint} answers {status} {reason}; submit again later")
    return ConfigError(f"{endpoint} answers {status} {reason}")


@contextmanager
def _explained(endpoint: str) -> Iterator[None]:
    from kfp_server_api import ApiException
    from urllib3.exceptions import HTTPError

    try:
        yield
    except ApiException as error:
        try:
            reason = json.loads(error.body)["message"]
        except (TypeError, ValueError, KeyError):
            reason = str(error.reason)
        raise _refusal(endpoint, int(error.status or 500), " ".join(reason.split())) from error
    except HTTPError as error:
        raise InfrastructureError(
            f"Kubeflow Pipelines at {endpoint} does not answer ({error}); submit again later"
        ) from error


def _client(endpoint: str, cluster: ClusterParams | None, arguments: argparse.Namespace) -> Any:
    from kfp import client

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # says that it needs API v2, as we did
        return client.Client(
            host=endpoint,
            namespace=_namespace(cluster, arguments),
            existing_token=arguments.existing_token,
        )


def _namespace(cluster: ClusterParams | None, arguments: argparse.Namespace) -> str:
    return str(arguments.namespace or (cluster.namespace if cluster else "kubeflow"))


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
    with loaded.building():
        values = loaded.arguments()
        places = loaded.places(values)
        places = {key: place.removeprefix("file://") for key, place in places.items()}
        for key, place in places.items():
            if "://" in place:
                continue
            path = (project / place).resolve()
            if not path.exists():
                raise StorageError(
                    f"{key} is {place!r}, which does not exist; run `make run` first, or give "
                    f"{key}=PATH"
                )
            values[key] = str(path)
        mounts = [Path(values[key]) for key, place in places.items() if "://" not in place]
        docker_runner.run(project, loaded.pipeline, values, mounts)
