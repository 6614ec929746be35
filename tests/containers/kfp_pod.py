"""A pod of Kubeflow Pipelines as Docker can imitate it: its folders, its user, its launcher.

In a pod Argo's emissary is process 1 and starts KFP's launcher, which starts ours. On SIGTERM the
emissary signals the launcher's process group once; the launcher has no handler, dies at once, and
with the emissary's end the container is gone: a process of ours lives a second at most.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path

EMISSARY = """
import os, signal, subprocess, sys, time
line = [sys.executable, "-c", *sys.argv[1:]]
launcher = subprocess.Popen(line, start_new_session=True)
def tell(*_):
    os.killpg(launcher.pid, signal.SIGTERM)
signal.signal(signal.SIGTERM, tell)
while launcher.poll() is None:
    time.sleep(0.5)
sys.exit(launcher.returncode if launcher.returncode >= 0 else 128 - launcher.returncode)
"""
LAUNCHER = """
import subprocess, sys
own = sys.argv[1] == "setsid"
sys.exit(1 if subprocess.run(sys.argv[2:], start_new_session=own).returncode else 0)
"""
ROOT = "s3://mlpipeline/v2/artifacts"
"""Mounted at /s3/…, as the launcher does."""


def executor_input(
    task: str, inputs: Mapping[str, Path], outputs: Mapping[str, str], run: str
) -> str:
    """Return what KFP passes: outputs below the run's folder, inputs by their address."""
    uri = f"{ROOT}/quickstart/{run}/{task}"
    listed = {
        name: {"artifacts": [{"name": name, "uri": f"{uri}/{name}", "metadata": {},
                              "type": {"schemaTitle": f"system.{kind}"}}]}
        for name, kind in outputs.items()
    }  # fmt: skip
    given = {
        name: {"artifacts": [{"name": name, "uri": f"s3:/{path}", "metadata": {}}]}
        for name, path in inputs.items()
    }
    file = local(f"{uri}/executor_output.json")
    return json.dumps(
        {"inputs": {"artifacts": given}, "outputs": {"artifacts": listed, "outputFile": file}}
    )


def local(uri: str) -> str:
    """Return where a pod sees an address."""
    return "/" + uri.replace("://", "/")


def run_task(
    image: str, disk: Path, line: list[str], *, name: str = "", launcher: str = "",
    environment: Mapping[str, str] | None = None, detach: bool = False,
) -> subprocess.CompletedProcess[str]:  # fmt: skip
    """Run a component's line in its image, as nobody, on a root that cannot be written.

    Args:
        image: Of the component.
        disk: Folder of this machine that stands for what the launcher brings and takes: /s3.
        line: The component's own.
        name: Of the container.
        launcher: `same` or `setsid`: the session of our process beneath a launcher; empty: none.
        environment: Of the container.
        detach: Whether to return at once.
    """
    wrapped = ["python", "-c", EMISSARY, LAUNCHER, launcher, *line] if launcher else line
    flags = ["--user", "65532:65532", "--read-only", "--tmpfs", "/tmp:mode=1777,exec",
             "--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--network", "host",
             "-v", f"{disk}:/s3"]  # fmt: skip
    for key, value in (environment or {}).items():
        flags += ["-e", f"{key}={value}"]
    flags += ["--name", name] if name else []
    flags += ["--detach"] if detach else ["--rm"]
    return subprocess.run(
        ["docker", "run", *flags, image, *wrapped], capture_output=True, text=True, check=False
    )


def files_in(folder: Path) -> int:
    return sum(1 for path in folder.rglob("*") if path.is_file())
