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
    "*/**/tests", "*/**/test", "pyarrow/include", "pyarrow/*flight*",
)  # fmt: skip
"""Of installed packages: what only their makers need, and a protocol of Arrow's."""
_KEPT = ("torch",)
_HEADERS = "torch/include"
"""For compilers, of which the image has none; a base image of PyTorch's own keeps them."""


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
    python = _VENV / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(_VENV)], check=True)
    # A base image may hold some of it already, PyTorch above all.
    probe = "import importlib.metadata as m; print(*[d.name for d in m.distributions()])"
    said = subprocess.run([python, "-c", probe], check=True, capture_output=True, text=True).stdout
    there = {name.lower() for name in said.split()}
    if missing := [name for name in wanted if name.lower() not in there]:
        _pip_install(python, missing, _lock_of(target))
        _strip(python, keep_setuptools="torch" in wanted or "torch" in there)
    if "torch" in missing:
        subprocess.run(["rm", "-rf", str(_site() / _HEADERS)], check=True)
    subprocess.run([python, __file__, "sbom", target], check=True)


def _lock_of(target: str) -> Path:
    """Return what pins a target: a lock of its own where there is one."""
    own = _HERE / f"{target}.lock"
    return own if own.is_file() else _HERE / "requirements.lock"


def _pip_install(python: Path, names: list[str], lock: Path) -> None:
    subprocess.run([python, "-m", "ensurepip"], check=True, stdout=subprocess.DEVNULL)
    subprocess.run(
        [
            python,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-cache-dir",
            "--disable-pip-version-check",
            "--constraint",
            str(lock),
            *names,
        ],
        check=True,
    )


def _strip(python: Path, *, keep_setuptools: bool) -> None:
    site = _site()
    for pattern in _UNUSED:
        for found in sorted(site.glob(pattern)):
            if found.relative_to(site).parts[0] not in _KEPT:
                subprocess.run(["rm", "-rf", str(found)], check=True)
    tools = ["pip"] if keep_setuptools else ["pip", "setuptools"]
    subprocess.run([python, "-m", "pip", "uninstall", "--quiet", "--yes", *tools], check=True)


def _site() -> Path:
    return next((_VENV / "lib").glob("python3*/site-packages"))


def _write_sbom(target: str) -> None:
    """Write what is installed, as CycloneDX JSON (ECMA-424)."""
    parts = sorted(
        {
            (d.metadata["Name"], d.version, str(d.metadata.json.get("license_expression") or ""))
            for d in metadata.distributions()
        }
    )
    lock = _lock_of(target)
    digest = hashlib.sha256(lock.read_bytes()).hexdigest()
    sbom = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {
            "component": {"type": "container", "name": f"bigtransfer-{target}"},
            "properties": [{"name": f"{lock.name} sha256", "value": digest}],
        },
        "components": [
            {
                "type": "library",
                "name": name,
                "version": version,
                "purl": f"pkg:pypi/{name.lower()}@{version}",
            }
            | ({"licenses": [{"expression": licence}]} if licence else {})
            for name, version, licence in parts
        ],
    }
    _SBOM.write_text(json.dumps(sbom, indent=1), "utf-8")


if __name__ == "__main__":
    main()
