"""Whose the command `kfp` is after every way of installing: ours, whoever wrote the script last."""

from __future__ import annotations

import base64
import hashlib
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

from fixtures.installation import call
from fixtures.project import PROJECT

KFP = f"kfp=={metadata.version('kfp')}"


def new_venv(folder: Path) -> Path:
    """Return the folder of scripts of a bare environment."""
    call(sys.executable, "-m", "venv", folder)
    return folder / "bin"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of what is installed that asks for less: an index has torch for GPUs, gigabytes."""
    folder = tmp_path / "checkout"
    shutil.copytree(PROJECT / "bigtransfer", folder / "bigtransfer")
    for name in ("README.md", "LICENSE"):
        shutil.copy(PROJECT / name, folder)
    text = (PROJECT / "pyproject.toml").read_text()
    lighter = re.sub(
        r'"(torch|great-expectations|scipy|pandas|matplotlib)[^"]*",\s*', "", text, count=5
    )
    assert lighter.index("dependencies = [") < len(lighter) < len(text) - 50
    (folder / "pyproject.toml").write_text(lighter)
    return folder


def kfp_of(scripts: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return call(scripts / "kfp", *words, check=False)


def assert_ours(scripts: Path, *, again: bool = False) -> None:
    assert "bigtransfer" not in (scripts / "kfp").read_text(), "the script is Kubeflow's"
    wrong = kfp_of(scripts, "run", "submit", "nowhere.py")
    assert wrong.returncode == 2
    assert wrong.stderr == (
        "kfp run submit: 'nowhere.py' does not exist; e.g. pipelines/bit_l.py\n"
    )
    if again:
        return
    assert "KEY=VALUE" in kfp_of(scripts, "run", "submit", "--help").stdout
    assert kfp_of(scripts, "--version").stdout.startswith("kfp 2.")
    assert kfp_of(scripts, "dsl", "--help").stdout.startswith("Usage: kfp dsl")


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The installed kfp as a wheel: an index may be out of reach."""
    folder = tmp_path_factory.mktemp("wheels")
    kfp = metadata.distribution("kfp")
    kept = [f for f in kfp.files or [] if ".." not in f.parts and f.suffix != ".pyc"]
    names = [f for f in kept if f.name not in ("INSTALLER", "REQUESTED", "RECORD")]
    record = next(str(f) for f in kept if f.name == "RECORD")
    lines = [f"{record},,"]
    with zipfile.ZipFile(folder / f"kfp-{kfp.version}-py3-none-any.whl", "w") as wheel:
        for name in names:
            content = Path(str(name.locate())).read_bytes()
            digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=")
            lines.append(f"{name},sha256={digest.decode()},{len(content)}")
            wheel.writestr(str(name), content)
        wheel.writestr(record, "\n".join(lines))
    return folder


def test_kfp_is_ours_in_a_checkout_though_kubeflow_wrote_the_script_last(
    wheels: Path, tmp_path: Path
) -> None:
    scripts = new_venv(tmp_path / "venv")
    # What the project and kfp need is borrowed; no file of that folder's own is obeyed.
    (site,) = (tmp_path / "venv").glob("lib/python3*/site-packages")
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip = [scripts / "python", "-m", "pip", "install", "--quiet", "--no-deps"]
    call(*pip, "--no-build-isolation", "--editable", PROJECT)
    newest = [*pip, "--no-index", "--find-links", wheels, "--force-reinstall", "--ignore-installed"]
    call(*newest, KFP)
    assert_ours(scripts)
    call(*newest, KFP)  # as an upgrade does
    assert_ours(scripts, again=True)
    doctor = [scripts / "bigtransfer", "doctor"]
    (site / "bigtransfer_kfp.pth").unlink()
    assert "kfp takes no pipeline files: it is Kubeflow's" in call(*doctor, check=False).stdout
    assert "kfp takes pipeline files" in call(*doctor, "--repair", check=False).stdout
    assert_ours(scripts, again=True)
    left = call(scripts / "python", "-X", "importtime", "-c", "pass")
    assert "bigtransfer" not in left.stderr, "other interpreters pay nothing"
    call(*pip[:3], "uninstall", "--quiet", "--yes", "bigtransfer")
    assert (scripts / "kfp").is_file()
    assert not list(site.glob("*bigtransfer*"))


@pytest.fixture(scope="module")
def _index(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("probe")
    probe = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--retries", "0",
             "--timeout", "10", "--dest", str(folder), "trove-classifiers"]  # fmt: skip
    if call(*probe, check=False).returncode:
        pytest.skip("needs a package index, and none can be reached")


@pytest.mark.long
@pytest.mark.usefixtures("_index")
def test_kfp_is_ours_after_one_pip_install(checkout: Path, tmp_path: Path) -> None:
    scripts = new_venv(tmp_path / "venv")
    pip = [scripts / "python", "-m", "pip", "install", "--quiet"]
    call(*pip, f"{checkout}[pipelines]")
    assert_ours(scripts)
    bigtransfer = call(scripts / "bigtransfer", "kfp", "run", "submit", "nowhere.py", check=False)
    assert bigtransfer.returncode == 2 and bigtransfer.stderr.count("\n") == 1
    assert "takes pipeline files" in call(scripts / "bigtransfer", "doctor", check=False).stdout
    call(*pip, "--force-reinstall", "--no-deps", KFP)
    assert_ours(scripts, again=True)


@pytest.mark.long
@pytest.mark.usefixtures("_index")
def test_kfp_is_ours_after_one_uv_install(checkout: Path, tmp_path: Path) -> None:
    tools = new_venv(tmp_path / "tools")
    got = call(tools / "python", "-m", "pip", "install", "--quiet", "uv", check=False)
    if got.returncode:
        pytest.skip("uv cannot be had here")
    uv, venv = tools / "uv", tmp_path / "venv"
    call(uv, "venv", "--quiet", "--python", sys.executable, venv)
    probe = call(uv, "pip", "install", "--python", venv / "bin/python", "six", check=False)
    if probe.returncode:
        pytest.skip("uv reaches no package index here")
    call(uv, "pip", "install", "--python", venv / "bin/python", f"{checkout}[kfp]")
    assert_ours(venv / "bin")
