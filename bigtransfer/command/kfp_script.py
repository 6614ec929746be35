"""The script `kfp` of this environment: where it is, whose it is, and its repair."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from bigtransfer.errors import ConfigError
from bigtransfer.version import __version__

_ONLY_OURS = "KEY=VALUE"
"""Stands in the help of our `kfp run submit`, and not in upstream's."""


def path() -> Path | None:
    """Return where the installed distribution kfp has its script, there or not; None: nowhere."""
    try:
        files = metadata.files("kfp") or []
    except metadata.PackageNotFoundError:
        return None
    found = (f for f in files if f.name in ("kfp", "kfp.exe") and f.parent.name != "kfp")
    return next((Path(os.path.normpath(str(f.locate()))) for f in found), None)


def fault() -> str | None:
    """Return what is wrong with the script, by asking it; None: it takes pipeline files."""
    script = path()
    if script is None or not script.is_file():
        return f"{script or 'the script `kfp`'} is not there"
    try:
        line = [str(script), "run", "submit", "--help"]
        said = subprocess.run(line, capture_output=True, text=True, check=False)
    except OSError as error:
        return f"{script} does not start: {error.strerror}"
    if _ONLY_OURS in said.stdout:
        return None
    return f"{script} takes no pipeline files: it is Kubeflow's own, without the project's hook"


def repair() -> None:
    """Install what is missing: the project's hook, and the script itself where it is not there.

    Raises:
        ConfigError: If nothing that installs is here, or it fails.
    """
    script = path()
    if script is not None and not script.is_file():
        _install("--force-reinstall", f"kfp=={metadata.version('kfp')}")
    _install(*_project())


def other_on_path() -> str | None:
    """Return another `kfp` that stands before this environment's on the PATH."""
    on_path, script = shutil.which("kfp"), path()
    if on_path is None or script is None or Path(on_path).resolve() == script.resolve():
        return None
    return on_path


def _project() -> list[str]:
    folder = Path(__file__).parents[2]
    if (folder / "pyproject.toml").is_file():
        offline = importlib.util.find_spec("hatchling") is not None
        return [*(["--no-build-isolation"] if offline else []), "--editable", str(folder)]
    origin = metadata.distribution("bigtransfer").read_text("direct_url.json")
    named = f"bigtransfer=={__version__}"
    return ["--force-reinstall", json.loads(origin)["url"] if origin else named]


def _install(*words: str) -> None:
    if importlib.util.find_spec("pip") is not None:
        line = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check"]
    elif uv := shutil.which("uv"):
        line = [uv, "pip", "install", "--python", sys.executable]
    else:
        raise ConfigError("neither pip nor uv is here; install the project as you did before")
    if subprocess.run([*line, "--quiet", "--no-deps", *words], check=False).returncode:
        raise ConfigError(f"{words[-1]} could not be installed again; the words stand above")
