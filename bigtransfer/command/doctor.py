"""`bigtransfer doctor`: is everything here that the project's commands need, and is it ours?"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bigtransfer.errors import ConfigError

_OURS = "bigtransfer.command.kfp"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    name: str
    good: bool
    text: str
    needed: bool = True
    """Whether something of the project fails without it; else it is optional."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.add_argument(
        "--repair", action="store_true", help="write the command `kfp` anew where it is not ours"
    )
    parser.add_argument(
        "--cluster",
        action="store_true",
        help="look at the cluster of the kubeconfig instead: what a retry means there, where "
        "results go, which pods are admitted",
    )
    parser.add_argument(
        "--namespace",
        metavar="NS",
        help="of the runs, with --cluster (default: params.yaml: cluster.namespace)",
    )


def run(arguments: argparse.Namespace) -> None:
    """Look, and say what is found.

    Raises:
        ConfigError: If something needed is missing or somebody else's.
    """
    if arguments.cluster:
        _look_at_cluster(arguments.namespace)
        return
    if arguments.namespace:
        raise ConfigError("--namespace is of a cluster; give --cluster with it")
    if arguments.repair and not kfp_script().good:
        _reinstall()
    findings = [kfp_script(), *_others()]
    for found in findings:
        mark = "ok" if found.good else "-" if not found.needed else "NO"
        print(f"{mark:<3} {found.name:<10} {found.text}")
    if bad := [found.name for found in findings if found.needed and not found.good]:
        raise ConfigError(f"{', '.join(bad)}: see above")


def _look_at_cluster(namespace: str | None) -> None:
    from bigtransfer import config
    from bigtransfer.kubeflow import cluster_check

    path = Path("params.yaml")
    cluster_check.check(namespace, config.load(path) if path.is_file() else None)


def kfp_script() -> Finding:
    """Say whose the command `kfp` is: two distributions bring one, and the last installed wins."""
    path = Path(sys.executable).parent / "kfp"
    if not path.is_file():
        return Finding("kfp", False, f"{path} is not there; {_cure()}")
    if _OURS in path.read_text("utf-8", errors="replace"):
        on_path = shutil.which("kfp")
        other = "" if on_path in (None, str(path)) else f" (on the PATH is {on_path})"
        return Finding("kfp", True, f"{path} takes pipeline files{other}")
    return Finding(
        "kfp",
        False,
        f"{path} is Kubeflow's own, which takes no pipeline files; {_cure()}, or "
        f"use `python -m {_OURS}`",
    )


def _cure() -> str:
    return "`bigtransfer doctor --repair` writes it anew"


def _reinstall() -> None:
    project = Path(__file__).parents[2]
    line = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--disable-pip-version-check",
        "--no-build-isolation",
    ]
    if (project / "pyproject.toml").is_file():
        line += ["--editable", str(project)]
    else:
        line += ["--force-reinstall", "bigtransfer"]
    if subprocess.run(line, check=False).returncode:
        raise ConfigError("the project could not be installed again; pip's words stand above")


def _others() -> Iterator[Finding]:
    here = sys.version.split()[0]
    yield Finding("python", sys.version_info >= (3, 11), f"{here} (3.11 or newer is needed)")
    yield Finding("git", shutil.which("git") is not None, "for commits in MLflow and for DVC")
    import torch

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    names = ", ".join({torch.cuda.get_device_name(i) for i in range(gpus)})
    what = f"{gpus} × {names}" if gpus else "none; everything runs on the CPU"
    yield Finding("gpu", gpus > 0, f"{what} (torch {torch.__version__})", needed=False)
    engine = next((name for name in ("docker", "podman") if shutil.which(name)), None)
    running = (
        engine is not None
        and not subprocess.run([engine, "version"], capture_output=True, check=False).returncode
    )
    said = f"{engine} runs" if running else f"{engine} does not run" if engine else "not installed"
    yield Finding(
        "containers", running, f"{said}: for `make images`, `kfp run submit --local`", needed=False
    )
