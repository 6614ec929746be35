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
_UNUSED = (
    "*/**/tests", "*/**/test", "pyarrow/include", "pyarrow/*flight*", "pyarrow/*substrait*",
)  # fmt: skip
"""Of installed packages: what only their makers need, and two protocols of Arrow's."""
_KEPT = ("torch",)


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
    subprocess.run([python, "-m", "ensurepip"], check=True, stdout=subprocess.DEVNULL)
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
    for pattern in _UNUSED:
        for found in sorted(site.glob(pattern)):
            if found.relative_to(site).parts[0] not in _KEPT:
                subprocess.run(["rm", "-rf", str(found)], check=True)
    tools = ["pip"] if "torch" in {*wanted, *there} else ["pip", "setuptools"]
    subprocess.run([python, "-m", "pip", "uninstall", "--quiet", "--yes", *tools], check=True)


def _write_sbom(target: str) -> None:
    """Write what is installed, as CycloneDX JSON (ECMA-424)."""
    parts = sorted(
        {(d.metadata["Name"], d.version, str(d.metadata.json.get("license_expression") or ""))
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
