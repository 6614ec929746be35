"""`bigtransfer doctor`: is everything here that the project's commands need, and is it ours?"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bigtransfer import extras
from bigtransfer.command import kfp
from bigtransfer.command import kfp_script as script
from bigtransfer.errors import ConfigError

_FOR = {
    "mlflow": "runs, curves, models:/…",
    "dvc": "`bigtransfer run`, dvc:// sources",
    "onnx": "`bigtransfer export`",
    "s3": "s3:// sources",
}
_OPTIONAL = {
    extra: [module for module, of in extras.EXTRAS.items() if of == extra] for extra in _FOR
}


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
        "--repair",
        action="store_true",
        help="install anew where the command `kfp` takes no pipeline files",
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
    if arguments.repair and kfp.is_installed() and script.fault():
        script.repair()
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
    """Say whether the script `kfp`, which Kubeflow's distribution brings, takes pipeline files."""
    if not kfp.is_installed():
        text = f"not installed; {extras.install('kfp')} for clusters"
        return Finding("kfp", False, text, needed=False)
    if fault := script.fault():
        cure = "`bigtransfer doctor --repair` mends it, and `bigtransfer kfp …` is always ours"
        return Finding("kfp", False, f"{fault}; {cure}")
    other = script.other_on_path()
    note = f" (on the PATH is {other})" if other else ""
    return Finding("kfp", True, f"{script.path()} takes pipeline files{note}")


def _others() -> Iterator[Finding]:
    here = sys.version.split()[0]
    yield Finding("python", sys.version_info >= (3, 11), f"{here} (3.11 or newer is needed)")
    yield Finding("git", shutil.which("git") is not None, "for commits in MLflow and for DVC")
    yield _gpu()
    yield from _extras()
    engine = next((name for name in ("docker", "podman") if shutil.which(name)), None)
    running = (
        engine is not None
        and not subprocess.run([engine, "version"], capture_output=True, check=False).returncode
    )
    said = f"{engine} runs" if running else f"{engine} does not run" if engine else "not installed"
    yield Finding(
        "containers", running, f"{said}: for `make images`, `kfp run submit --local`", needed=False
    )


def _extras() -> Iterator[Finding]:
    """Say which optional parts are here; `kfp` has a line of its own."""
    for extra, needs in _OPTIONAL.items():
        lacking = [module for module in needs if not extras.is_installed(module)]
        text = f"no {', '.join(lacking)}; {extras.install(needs[0])}" if lacking else "installed"
        yield Finding(extra, not lacking, f"{text} ({_FOR[extra]})", needed=False)


def _gpu() -> Finding:
    if not extras.is_installed("torch"):
        text = "torch is not installed; `pip install bigtransfer` brings it"
        return Finding("gpu", False, text, needed=False)
    import torch

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    names = ", ".join({torch.cuda.get_device_name(i) for i in range(gpus)})
    what = f"{gpus} × {names}" if gpus else "none; everything runs on the CPU"
    return Finding("gpu", gpus > 0, f"{what} (torch {torch.__version__})", needed=False)
