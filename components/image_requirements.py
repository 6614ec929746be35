"""Install what an image holds, and write down what that is; runs inside `docker build` alone.

python3 image_requirements.py install data
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

_HERE = Path(__file__).parent
_VENV = Path("/opt/venv")
_SBOM = Path("sbom.cdx.json")
_UNUSED = ("tests", "test")
"""Folders of installed packages that only their makers need."""
_KEPT = ("torch", "numpy")  # whose `testing` imports them


def main() -> None:
    """Do what the command line says."""
    action, target = sys.argv[1:]
    if action == "install":
        _install(target)
    else:  # within the environment that was made
        _write_sbom(target)


def _install(target: str) -> None:
    project = tomllib.loads((_HERE / "pyproject.toml").read_text("utf-8"))
    wanted = project["tool"]["bigtransfer"]["images"][target]
    lock = _HERE / "requirements.lock"
    python = _VENV / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(_VENV)], check=True)
    held = subprocess.run(
        [python, "-m", "pip", "list", "--format=json"], check=True, capture_output=True
    ).stdout
    there = {entry["name"].lower() for entry in json.loads(held)}
    missing = [name for name in wanted if name.lower() not in there]
    options = ["--quiet", "--no-cache-dir", "--disable-pip-version-check"]
    subprocess.run(
        [python, "-m", "pip", "install", *options, "--constraint", str(lock), *missing], check=True
    )
    subprocess.run([python, __file__, "sbom", target], check=True)
    site = next((_VENV / "lib").glob("python3*/site-packages"))
    for name in _UNUSED:
        for folder in sorted(site.glob(f"*/**/{name}")):
            if folder.is_dir() and folder.relative_to(site).parts[0] not in _KEPT:
                subprocess.run(["rm", "-rf", str(folder)], check=True)
    subprocess.run([python, "-m", "pip", "uninstall", "--quiet", "--yes", "pip"], check=True)


def _write_sbom(target: str) -> None:
    """Write what is installed, as CycloneDX JSON (ECMA-424)."""
    parts = sorted(
        {(d.metadata["Name"], d.version, d.metadata.get("License-Expression") or "")
         for d in metadata.distributions()}
    )  # fmt: skip
    lock = hashlib.sha256((_HERE / "requirements.lock").read_bytes()).hexdigest()
    sbom = {
        "bomFormat": "CycloneDX", "specVersion": "1.5", "version": 1,
        "metadata": {
            "component": {"type": "container", "name": f"bigtransfer-{target}"},
            "properties": [{"name": "requirements.lock sha256", "value": lock}],
        },
        "components": [
            {"type": "library", "name": name, "version": version,
             "purl": f"pkg:pypi/{name.lower()}@{version}"}
            | ({"licenses": [{"expression": licence}]} if licence else {})
            for name, version, licence in parts
        ],
    }  # fmt: skip
    _SBOM.write_text(json.dumps(sbom, indent=1), "utf-8")


if __name__ == "__main__":
    main()
