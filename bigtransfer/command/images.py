"""`bigtransfer images`: build the container images that a submission names."""

from __future__ import annotations

import argparse
import hashlib
import shutil
import subprocess
import time
from pathlib import Path

import bigtransfer
from bigtransfer.command.image_tag import CONTENT, source_tag
from bigtransfer.errors import BigTransferError, ConfigError, InfrastructureError

TARGETS = ("data", "demo", "fetch", "registry", "train-cpu", "train-gpu", "train-tpu")
_BY_DEFAULT = ("data", "demo", "fetch", "registry", "train-cpu")
_ENGINES = ("docker", "podman")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.description = (
        "Run in a checkout. Images are called <cluster.image>-<target>:<tag>; the tag is made of "
        "the files in them, the same that `kfp run submit` names. Push them with the engine."
    )
    parser.add_argument(
        "--target", action="append", choices=TARGETS, metavar="TARGET",
        help=f"one of {', '.join(TARGETS)}; may be repeated (default: {' '.join(_BY_DEFAULT)})",
    )  # fmt: skip
    parser.add_argument("--base", metavar="IMAGE", help="base image (default: the Dockerfile's)")
    parser.add_argument(
        "--train-base", metavar="IMAGE",
        help="base of the train images: one that holds PyTorch, e.g. with CUDA (default: --base)",
    )  # fmt: skip
    parser.add_argument(
        "--network", metavar="NAME", help="network of the build, e.g. host (default: the engine's)"
    )
    parser.add_argument(
        "--engine", choices=_ENGINES, help="default: docker, or podman where there is no docker"
    )


def run(arguments: argparse.Namespace) -> None:
    """Build what was asked for.

    Raises:
        ConfigError: If this is no checkout, or there is no engine.
        InfrastructureError: If the engine does not run.
        BigTransferError: If a build fails; the engine's own words stand above.
    """
    project = Path.cwd()
    _require_checkout(project)
    from bigtransfer import config

    cluster = config.load(project / "params.yaml").cluster
    engine = arguments.engine or next((name for name in _ENGINES if shutil.which(name)), None)
    if engine is None:
        raise ConfigError("neither docker nor podman is here; install one of them")
    answer = subprocess.run([engine, "version"], capture_output=True, text=True, check=False)
    if answer.returncode:
        why = (answer.stderr.strip().splitlines() or ["no answer"])[-1]
        raise InfrastructureError(f"{engine} does not run: {why}; start it and try again")
    tag = source_tag(project)
    for target in dict.fromkeys(arguments.target or _BY_DEFAULT):
        name = f"{cluster.image}-{target}:{tag}"
        began = time.monotonic()
        version = f"{cluster.image}-{target}:{bigtransfer.__version__}"  # of compiled packages
        line = [engine, "build", "--file", "components/Dockerfile", "--target", target,
                "--tag", name, "--tag", version, *_labels(project, target)]  # fmt: skip
        if arguments.network:
            line += ["--network", arguments.network]
        for key, value in (("BASE", arguments.base), ("TRAIN_BASE", arguments.train_base)):
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
    lock = hashlib.sha256((project / "requirements.lock").read_bytes()).hexdigest()
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=project, capture_output=True, text=True, check=False
    ).stdout.strip()
    labels = {
        "org.opencontainers.image.title": f"bigtransfer {target}",
        "org.opencontainers.image.revision": commit or "unknown",
        "bigtransfer.lock": lock,
    }
    return [text for key, value in labels.items() for text in ("--label", f"{key}={value}")]


def _megabytes(engine: str, name: str) -> float:
    said = subprocess.run(
        [engine, "image", "inspect", "--format", "{{.Size}}", name],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    return int(said) / 1e6
