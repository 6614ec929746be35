"""Run a pipeline on this machine's Docker by KFP's local runner, with MLflow beside it.

KFP (2.17.3 still) reports a failed container as a success: it lets Docker remove the container as
soon as it ends and takes "not found" for exit code 0 (kubeflow/pipelines issue 13332). The cure is
`_run_to_the_end`; a test fails when upstream has mended it, so that this can go.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bigtransfer.errors import BigTransferError, ConfigError, InfrastructureError
from bigtransfer.kubeflow.backend import refusal_of
from bigtransfer.track.address import experiment_name, tracking_uri

ROOT = Path("artifacts") / "kfp"
_ARTIFACTS = Path("mlruns") / "kfp"
_SERVER_SECONDS = 60.0
_INPUT = "--executor-input"


def run(project: Path, pipeline: Any, values: dict[str, Any], mounts: list[Path]) -> None:
    """Run a pipeline.

    Args:
        project: The checkout.
        pipeline: A loaded KFP pipeline.
        values: Its arguments.
        mounts: Paths of this machine that tasks read, besides what the pipeline makes.

    Raises:
        ConfigError: If an image is not here.
        InfrastructureError: If Docker or MLflow does not run.
        BigTransferError: If a task fails.
    """
    import docker
    from kfp import local
    from kfp.local import docker_task_handler

    client = _engine()
    _require_images(client, pipeline)
    for task in pipeline.pipeline_spec.root.dag.tasks.values():
        task.ClearField("retry_policy")  # no node is lost here: what fails would fail again
    root = (project / ROOT).resolve()
    before = os.umask(0)  # the images' user is not ours, and writes below here
    try:
        root.mkdir(parents=True, exist_ok=True)
        artifacts = (project / _ARTIFACTS).resolve()
        artifacts.mkdir(parents=True, exist_ok=True)
        for folder in (root, artifacts):
            folder.chmod(0o777)
        with _mlflow(project, artifacts) as address:
            environment = {
                "MLFLOW_TRACKING_URI": address,
                # Ours keeps its files where only we may write.
                "MLFLOW_EXPERIMENT_NAME": f"{experiment_name()}-kfp",
            }
            docker_task_handler.run_docker_container = _run_to_the_end
            local.init(
                runner=local.DockerRunner(
                    network_mode="host",
                    environment=environment,
                    **_user(),
                    mounts=[_mount(artifacts), *(_mount(path, read_only=True) for path in mounts)],
                ),
                pipeline_root=str(root),
            )
            try:
                pipeline(**values)
            except docker.errors.DockerException as error:
                raise InfrastructureError(
                    f"Docker failed: {' '.join(str(error).split())}; mend it and run again"
                ) from error
            except RuntimeError as error:
                raise BigTransferError(
                    f"{error}; what the task said stands above, its files lie below {root}"
                ) from error
    finally:
        os.umask(before)
    print(f"succeeded; its files lie below {root}")


def _engine() -> Any:
    import docker

    try:
        client = docker.from_env()
        client.ping()
    except docker.errors.DockerException as error:
        why = str(error).splitlines()[0]
        raise InfrastructureError(
            f"Docker does not run ({why}); start it, or use `dvc repro`, which needs none"
        ) from error
    return client


def _require_images(client: Any, pipeline: Any) -> None:
    here = {tag for image in client.images.list() for tag in image.tags}
    executors = pipeline.pipeline_spec.deployment_spec["executors"].values()
    wanted = {str(e["container"]["image"]) for e in executors if "container" in e}
    if missing := sorted(wanted - here):
        raise ConfigError(f"image {missing[0]} is not here; `make images` builds it")


def _mount(path: Path, *, read_only: bool = False) -> Any:
    from docker.types import Mount

    return Mount(target=str(path), source=str(path), type="bind", read_only=read_only)


def _user() -> dict[str, str]:
    """Run as whoever asks, so that the files are theirs; root lets the images' user do it."""
    return {} if os.getuid() == 0 else {"user": f"{os.getuid()}:{os.getgid()}"}


@contextmanager
def _mlflow(project: Path, artifacts: Path) -> Iterator[str]:
    """Give the address of an MLflow server for the tasks: the user's, or one for the project's."""
    uri = tracking_uri(project)
    if uri.startswith("http"):
        yield uri
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    log = project / ".work" / "mlflow-server.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    line = [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--backend-store-uri",
        uri,
        "--workers",
        "1",
        "--no-serve-artifacts",
        "--default-artifact-root",
        artifacts.as_uri(),
    ]
    with log.open("w") as out:
        # Its jobs score language models: eight more processes, and twice the time to start.
        env = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        server = subprocess.Popen(line, cwd=project, env=env, stdout=out, stderr=out)
    try:
        until = time.monotonic() + _SERVER_SECONDS
        while not _answers(f"{address}/health"):
            if server.poll() is not None or time.monotonic() > until:
                raise InfrastructureError(f"MLflow's server did not start; {log} says why")
            time.sleep(0.2)
        yield address
    finally:
        server.terminate()
        server.wait()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2):
            return True
    except OSError:
        return False


def _run_to_the_end(
    client: Any, image: str, command: list[str], volumes: dict[str, Any], **options: Any
) -> int:
    """Run a container and return its exit code, in place of kfp's function of another name."""
    container = client.containers.create(image=image, command=command, volumes=volumes, **options)
    try:
        container.start()
        for line in container.logs(stream=True, follow=True):
            print(line.decode(errors="replace"), end="", flush=True)
        code = int(container.wait()["StatusCode"])
    finally:
        container.remove(force=True)
    if code == 0 and (refusal := _refusal(command)):
        print(f"a cluster's backend would refuse this: {refusal}", flush=True)
        return 1
    return code


def _refusal(command: list[str]) -> str | None:
    """Return with what words a backend would refuse what a task handed in."""
    given = [text for flag, text in zip(command, command[1:], strict=False) if flag == _INPUT]
    if not given:
        return None
    output = Path(json.loads(given[0])["outputs"]["outputFile"])
    if not output.is_file():
        return None
    said = json.loads(output.read_text("utf-8")).get("artifacts", {})
    return refusal_of(
        (artifact.get("type", {}).get("schemaTitle", ""), artifact.get("metadata"))
        for own in said.values()
        for artifact in own["artifacts"]
    )
