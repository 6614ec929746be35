"""`bigtransfer images`: build the container images that a submission names."""

from __future__ import annotations

import argparse
from pathlib import Path

from bigtransfer.kubeflow.images import BY_DEFAULT, ENGINES, TARGETS, build


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.description = (
        "Run in a checkout. Images are called <cluster.image>-<target>:<tag>; the tag is made of "
        "the files in them, the same that `kfp run submit` names. Push them with the engine."
    )
    parser.add_argument(
        "--target",
        action="append",
        choices=TARGETS,
        metavar="TARGET",
        help=f"one of {', '.join(TARGETS)}; may be repeated (default: {' '.join(BY_DEFAULT)})",
    )
    parser.add_argument("--base", metavar="IMAGE", help="base image (default: the Dockerfile's)")
    parser.add_argument(
        "--train-base",
        metavar="IMAGE",
        help="base of the train images: one that holds PyTorch, e.g. with CUDA (default: --base)",
    )
    parser.add_argument(
        "--network", metavar="NAME", help="network of the build, e.g. host (default: the engine's)"
    )
    parser.add_argument(
        "--engine", choices=ENGINES, help="default: docker, or podman where there is no docker"
    )


def run(arguments: argparse.Namespace) -> None:
    """Build what was asked for."""
    build(
        Path.cwd(),
        arguments.target or (),
        engine=arguments.engine,
        base=arguments.base,
        train_base=arguments.train_base,
        network=arguments.network,
    )
