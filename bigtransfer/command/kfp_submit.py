"""From a pipeline file to a run: on a cluster by Kubeflow's client, or here in Docker.

The only module of the library that imports kfp, and only when it is called.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import sys
import tempfile
import time
import traceback
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from bigtransfer import config
from bigtransfer.command.image_tag import CONTENT, source_tag
from bigtransfer.config import ClusterParams, looks_secret
from bigtransfer.errors import (
    BigTransferError,
    ConfigError,
    InfrastructureError,
    StorageError,
    did_you_mean,
)

_ENDPOINTS = ("KFP_ENDPOINT", "KF_PIPELINES_ENDPOINT")
_SECONDS = 20.0
_LOOK_SECONDS = 1.0
_MOST_FAILURES = 120
"""Looks that may fail one after another: a port-forward comes back, a server restarts."""
_OVER = ("SUCCEEDED", "FAILED", "CANCELED", "SKIPPED")


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
        InfrastructureError: If the server does not answer.
        BigTransferError: With `--wait`, if the run fails.
    """
    with tempfile.TemporaryDirectory() as scratch:
        package = arguments.file
        name = package.stem
        values = _pairs(arguments.values)
        if package.suffix != ".py" and (arguments.params or any("." in key for key in values)):
            raise ConfigError(
                "a package is compiled already: --params and values of params.yaml (KEY with a "
                "dot) go with a pipeline file (.py)"
            )
        if package.suffix == ".py":
            loaded = _Loaded(project, arguments)
            with loaded.building():
                name, package, values = loaded.compiled(Path(scratch) / "pipeline.yaml")
            _refuse_local_places(loaded, values)
        notes = list(_notes(package))
        _refuse_secrets({**_pairs(arguments.values), **values})
        several_users = _require_api(endpoint, arguments.existing_token)
        with _explained(endpoint):
            client = _client(endpoint, cluster, arguments)
            run = client.create_run_from_pipeline_package(
                str(package), arguments=values, run_name=arguments.run_name
                or f"{name} {time.strftime('%Y-%m-%d %H:%M:%S')}",
                experiment_name=arguments.experiment_name or name,
                namespace=_namespace(cluster, arguments) if several_users else None,
            )  # fmt: skip
    for note in notes:
        print(f"note: {note}", file=sys.stderr, flush=True)
    print(f"run      {run.run_id}")
    print(f"look     {endpoint}/#/runs/details/{run.run_id}", flush=True)
    if arguments.wait:
        _wait(client, endpoint, str(run.run_id))
    return str(run.run_id)


class _Loaded:
    """A pipeline file, loaded with what a submission changes."""

    def __init__(self, project: Path, arguments: argparse.Namespace) -> None:
        self._project, self._arguments = project, arguments
        pairs = _pairs(arguments.values)
        self._values = {key: text for key, text in pairs.items() if "." not in key}
        overlay = config.read_yaml(arguments.params) if arguments.params else {}
        self.changes = config.laid_over(overlay, _nested(pairs), whole=False)
        self.pipeline: Any = None

    @contextmanager
    def building(self) -> Iterator[None]:
        """Load the file; within the block its pipelines are built for this submission.

        Raises:
            ConfigError: If there is no pipeline in it, more than one, or an error.
        """
        for place in (self._project, self._arguments.file.resolve().parents[1]):
            if str(place) not in sys.path:
                sys.path.insert(0, str(place))
        with ExitStack() as held:
            if (self._project / "pipelines" / "dag.py").is_file():
                dag = importlib.import_module("pipelines.dag")
                held.enter_context(
                    dag.submitting(
                        dag.Submission(
                            source_tag(self._project), self.changes, self._arguments.fresh
                        )
                    )
                )
            elif self.changes:
                raise ConfigError(
                    "values of params.yaml (--params, or KEY with a dot) are for a checkout of "
                    "bigtransfer; this is none"
                )
            self.pipeline = _only_pipeline(_module(self._arguments.file), self._arguments)
            yield

    def compiled(self, package: Path) -> tuple[str, Path, dict[str, Any]]:
        """Compile; return the pipeline's name, the package, and the arguments of the run."""
        from kfp import compiler

        compiler.Compiler().compile(self.pipeline, str(package))
        return str(self.pipeline.name), package, self.arguments()

    def arguments(self) -> dict[str, Any]:
        """Return the arguments that were typed, and DVC versions resolved to their commits.

        Raises:
            ConfigError: If the pipeline has no such parameter, or the value is of another type.
        """
        inputs = self.pipeline.pipeline_spec.root.input_definitions.parameters
        found: dict[str, Any] = {}
        for key, text in self._values.items():
            if key not in inputs:
                raise ConfigError(
                    f"pipeline {self.pipeline.name!r} has no parameter {key!r}"
                    f"{did_you_mean(key, inputs)}; it has {', '.join(sorted(inputs))}"
                )
            found[key] = _typed(key, text, inputs[key].parameter_type)
        place = self.places(found).get("pretrained", "")
        if place.startswith("models:/"):
            from bigtransfer.track.registry import checkpoint_uri

            found["pretrained"] = checkpoint_uri(self._project, place)
        for key in inputs:
            given = found.get(key, inputs[key].default_value.string_value)
            if isinstance(given, str) and '"source":"dvc://' in given:
                found[key] = _pinned(given)
        return found

    def places(self, values: Mapping[str, Any]) -> dict[str, str]:
        """Return the addresses that tasks would read: parameter -> address."""
        inputs = self.pipeline.pipeline_spec.root.input_definitions.parameters
        return {
            key: values.get(key, inputs[key].default_value.string_value)
            for key in inputs
            if key.startswith("uri_") or key == "pretrained"
        }


def _pairs(texts: list[str]) -> dict[str, str]:
    return {key: value for key, _, value in (text.partition("=") for text in texts)}


def _nested(pairs: Mapping[str, str]) -> dict[str, Any]:
    """Return `{"a.b": "3"}` as `{"a": {"b": 3}}`, the keys without a dot left out."""
    result: dict[str, Any] = {}
    for key, text in pairs.items():
        *path, last = key.split(".")
        if not path:
            continue
        inner = result
        for part in path:
            inner = inner.setdefault(part, {})
            if not isinstance(inner, dict):
                raise ConfigError(f"{key!r}: {part!r} is given a value of its own as well")
        try:
            inner[last] = json.loads(text)
        except ValueError:
            inner[last] = text
    return result


def _module(path: Path) -> Any:
    """Load a file by its path, and name the line of an error in it."""
    spec = importlib.util.spec_from_file_location(f"_submitted_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BigTransferError:
        raise
    except SyntaxError as error:
        raise ConfigError(f"{error.filename}, line {error.lineno}: {error.msg}") from error
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        here = [frame for frame in frames if frame.filename == str(path)] or frames[-1:]
        raise ConfigError(
            f"{path}, line {here[-1].lineno}: {type(error).__name__}: {error}"
        ) from error
    return module


def _only_pipeline(module: Any, arguments: argparse.Namespace) -> Any:
    from kfp.dsl.graph_component import GraphComponent

    unique = {id(v): v for v in vars(module).values() if isinstance(v, GraphComponent)}
    found = {str(value.name): value for value in unique.values()}
    if not found:
        raise ConfigError(
            f"{str(arguments.file)!r} holds no pipeline; make one with @kfp.dsl.pipeline, or with "
            "pipelines.dag.build"
        )
    if arguments.pipeline is not None:
        if arguments.pipeline not in found:
            raise ConfigError(
                f"{str(arguments.file)!r} holds no pipeline {arguments.pipeline!r}"
                f"{did_you_mean(arguments.pipeline, found)}; it holds {', '.join(found)}"
            )
        return found[arguments.pipeline]
    if len(found) > 1:
        raise ConfigError(
            f"{str(arguments.file)!r} holds {len(found)} pipelines: {', '.join(found)}; say which "
            "one with --pipeline NAME"
        )
    return next(iter(found.values()))


def _typed(key: str, text: str, kind: int) -> Any:
    """Return a value of a parameter's type, as the pipeline spec numbers them."""
    from kfp.pipeline_spec import pipeline_spec_pb2 as spec

    names = spec.ParameterType.ParameterTypeEnum
    if kind == names.STRING:
        return text
    wanted: dict[int, tuple[str, tuple[type, ...]]] = {
        names.NUMBER_INTEGER: ("a whole number", (int,)),
        names.NUMBER_DOUBLE: ("a number", (int, float)),
        names.BOOLEAN: ("true or false", (bool,)),
        names.LIST: ("a JSON list", (list,)),
        names.STRUCT: ("a JSON object", (dict,)),
    }
    what, types = wanted[kind]
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
        raise ConfigError(f"parameter {key!r} is {text!r}, but it should be {what}")
    return value


def _pinned(section: str) -> str:
    """Return a dataset's section with its DVC revision as the commit it names now."""
    from bigtransfer.storage.dvc_version import DvcTree

    values = json.loads(section)
    values["source"] = DvcTree.at(values["source"]).address
    print(f"{values['name']}: {values['source']}", flush=True)
    return json.dumps(values, separators=(",", ":"))


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


def _refuse_local_places(loaded: _Loaded, values: Mapping[str, Any]) -> None:
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

    return client.Client(
        host=endpoint, namespace=_namespace(cluster, arguments),
        existing_token=arguments.existing_token,
    )  # fmt: skip


def _namespace(cluster: ClusterParams | None, arguments: argparse.Namespace) -> str:
    return str(arguments.namespace or (cluster.namespace if cluster else "kubeflow"))


def _wait(client: Any, endpoint: str, run_id: str) -> None:
    """Print a line whenever a task's state changes, until the run ends.

    Raises:
        BigTransferError: If it did not succeed.
    """
    shown: dict[str, tuple[str, str]] = {}
    began, failures = time.monotonic(), 0
    while True:
        try:
            with _explained(endpoint):
                run = client.get_run(run_id)
            failures = 0
        except InfrastructureError as error:
            failures += 1
            if failures > _MOST_FAILURES:
                raise InfrastructureError(
                    f"{error}; the run goes on, look at {endpoint}/#/runs/details/{run_id}"
                ) from error
            time.sleep(_LOOK_SECONDS)
            continue
        details = getattr(run.run_details, "task_details", None) or []
        for task in sorted(details, key=lambda task: str(task.start_time or "")):
            name, state = str(task.display_name), str(task.state)
            key = str(task.task_id or name)
            if name == "executor" or name.endswith("-driver") or state == "None":
                continue  # what Argo makes of a task; the task itself is listed besides
            if shown.get(key) != (name, state):
                shown[key] = (name, state)
                print(f"{time.monotonic() - began:7.0f} s  {name:<32} {state}", flush=True)
        if str(run.state) in _OVER:
            break
        time.sleep(_LOOK_SECONDS)
    failed = [name for name, state in shown.values() if state == "FAILED"]
    if str(run.state) != "SUCCEEDED":
        what = f" in {', '.join(failed)}" if failed else ""
        raise BigTransferError(
            f"the run {str(run.state).lower()}{what}; its log is at "
            f"{endpoint}/#/runs/details/{run_id}"
        )
    print(f"succeeded after {time.monotonic() - began:.0f} s")


def run_here(project: Path, arguments: argparse.Namespace) -> None:
    """Run a pipeline in this machine's Docker, with the images that a cluster would use.

    Raises:
        ConfigError: If the file or a value is wrong, or an image is not here.
        InfrastructureError: If Docker does not run.
        BigTransferError: If a task fails; what it said stands above.
    """
    from bigtransfer.command import docker_runner

    for name in (*CONTENT, "params.yaml"):
        if not (project / name).exists():
            raise ConfigError(f"--local runs in a checkout; {name} is not here")
    loaded = _Loaded(project, arguments)
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
