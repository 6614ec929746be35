"""Build the container images that a submission names."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from bigtransfer.errors import BigTransferError, ConfigError, InfrastructureError
from bigtransfer.kubeflow.image_tag import CONTENT, source_tag
from bigtransfer.version import __version__

TARGETS = (
    "data",
    "demo",
    "fetch",
    "registry",
    "launch",
    "serve",
    "mlflow",
    "train-cpu",
    "train-gpu",
    "train-tpu",
)
BY_DEFAULT = ("data", "demo", "fetch", "registry", "launch", "train-cpu")
ENGINES = ("docker", "podman")


def build(
    project: Path,
    targets: Sequence[str],
    *,
    engine: str | None,
    base: str | None,
    train_base: str | None,
    network: str | None,
) -> None:
    """Build images of a checkout.

    Args:
        project: The checkout.
        targets: Of components/Dockerfile; empty: those of `BY_DEFAULT`.
        engine: `docker` or `podman`; None: what is here.
        base: Image that all are built upon; None: the Dockerfile's.
        train_base: Image for the train targets, one that holds PyTorch; None: `base`.
        network: Of the build; None: the engine's.

    Raises:
        ConfigError: If this is no checkout, or there is no engine.
        InfrastructureError: If the engine does not run.
        BigTransferError: If a build fails; the engine's own words stand above.
    """
    _require_checkout(project)
    from bigtransfer import config

    cluster = config.load(project / "params.yaml").cluster
    engine = engine or next((name for name in ENGINES if shutil.which(name)), None)
    if engine is None:
        raise ConfigError("neither docker nor podman is here; install one of them")
    answer = subprocess.run([engine, "version"], capture_output=True, text=True, check=False)
    if answer.returncode:
        why = (answer.stderr.strip().splitlines() or ["no answer"])[-1]
        raise InfrastructureError(f"{engine} does not run: {why}; start it and try again")
    tag = source_tag(project)
    for target in dict.fromkeys(targets or BY_DEFAULT):
        name = f"{cluster.image}-{target}:{tag}"
        began = time.monotonic()
        version = f"{cluster.image}-{target}:{__version__}"  # of compiled packages
        line = [
            engine,
            "build",
            "--file",
            "components/Dockerfile",
            "--target",
            target,
            "--tag",
            name,
            "--tag",
            version,
            *_labels(project, target),
        ]
        if network:
            line += ["--network", network]
        for key, value in (("BASE", base), ("TRAIN_BASE", train_base)):
            if value:
                line += ["--build-arg", f"{key}={value}"]
        if subprocess.run([*line, "."], check=False).returncode:
            raise BigTransferError(
                f"image {name} could not be built; what {engine} said stands above"
            )
        size = _megabytes(engine, name)
        print(f"{name}: {size:,.0f} MB, {time.monotonic() - began:.0f} s", flush=True)


def _require_checkout(project: Path) -> None:
    for name in (*CONTENT, "params.yaml"):
        if not (project / name).exists():
            raise ConfigError(
                f"{str(project)!r} is no checkout: {name} is not there; change to one"
            )


def _labels(project: Path, target: str) -> list[str]:
    own = project / "components" / f"{target}.lock"
    lock = own if own.is_file() else project / "requirements.lock"
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=project, capture_output=True, text=True, check=False
    ).stdout.strip()
    labels = {
        "org.opencontainers.image.title": f"bigtransfer {target}",
        "org.opencontainers.image.revision": commit or "unknown",
        "bigtransfer.lock": hashlib.sha256(lock.read_bytes()).hexdigest(),
    }
    return [text for key, value in labels.items() for text in ("--label", f"{key}={value}")]


def _megabytes(engine: str, name: str) -> float:
    said = subprocess.run(
        [engine, "image", "inspect", "--format", "{{.Size}}", name],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return int(said) / 1e6
