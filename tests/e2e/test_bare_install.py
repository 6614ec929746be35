"""The wheel in a bare environment: what the base installation does, and what each extra adds."""

from __future__ import annotations

import shutil
import subprocess
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from bigtransfer.extras import EXTRAS
from bigtransfer.model import create_model, save_npz
from fixtures.images import write_colours
from fixtures.installation import Installation, closure, install
from fixtures.project import PROJECT

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("e2e-bare")]
NAMES = ("mlflow", "dvc", "kfp", "onnx", "s3", "all")
SHORT = ("--set", "total_steps=20", "--set", "batch_size=16", "--set", "base_lr=0.05",
         "--set", "precrop=18", "--set", "crop=16", "--set", "threads=1")  # fmt: skip
QUIET = {"AWS_EC2_METADATA_DISABLED": "true", "AWS_SHARED_CREDENTIALS_FILE": "/dev/null"}
MODEL = "runs/photos/model"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installation:
    return install(tmp_path_factory.mktemp("bare"), NAMES)


@pytest.fixture(scope="module")
def work(installed: Installation, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images, weights and the run that `finetune` made of them."""
    folder = tmp_path_factory.mktemp("work")
    write_colours(folder / "photos")
    save_npz(create_model("R14x0.25", 5, "small", seed=1), folder / "up" / "BiT-M-R50x1.npz")
    shutil.copy(PROJECT / "params.yaml", folder)
    shutil.copy(PROJECT / "pipelines" / "bit_s.yaml", folder)
    (folder / "sweep.yaml").write_text("tasks:\n  photos: {path: photos}\n")
    journal = folder / ".work" / "track" / "by-hand-1" / "1-pretrain.jsonl"
    journal.parent.mkdir(parents=True)
    journal.write_text('{"pid": 999999999, "started": 0}\n')
    weights = folder / "up" / "BiT-M-R50x1.npz"
    done = installed("finetune", "photos", "--weights", weights, "--seeds", "2", *SHORT, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "test top-1 100.0 %" in done.stdout
    return folder


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("--version", metadata.version("bigtransfer")),
        ("check-params", "params.yaml: all sections and paths are fine"),
        ("doctor", "pip install 'bigtransfer[mlflow]'"),
        ("data check photos --report checked", "the gate says yes"),
        ("data show runs/photos/shards", "red"),
        ("weights fetch BiT-M-R50x1 --source up --to got", "fetched"),
        ("weights convert up/BiT-M-R50x1.npz upstream", "R14x0.25"),
        (f"predict {MODEL} photos/red", "photos/red/0.png: red"),
        (f"evaluate {MODEL} photos", "top-1 100.0 %"),
        (f"export {MODEL} model.pt2 --format torch --images photos", "60/60 top-1 equal"),
        ("compare runs/photos/report runs/photos/report", "these images show no difference"),
        ("plan --probe-seconds 0 --overlay bit_s.yaml", "1,281,167 training images"),
        ("sync --help", "usage: bigtransfer sync"),
    ],
)
def test_the_base_installation_does(
    line: str, said: str, installed: Installation, work: Path
) -> None:
    done = installed(*line.split(), cwd=work)
    assert done.returncode == 0, done.stderr
    assert said in done.stdout


@pytest.mark.long
def test_the_base_installation_sweeps(installed: Installation, work: Path) -> None:
    least = ("--set", "seeds=[0]", "--set", "total_steps=3")
    line = ("sweep", "sweep.yaml", "--weights", "up/BiT-M-R50x1.npz", *SHORT[2:], *least)
    done = installed(*line, cwd=work)
    assert done.returncode == 0, done.stderr
    assert "runs/sweep/table.tex" in done.stdout


@pytest.mark.parametrize(
    ("line", "extra"),
    [
        ("run", "dvc"),
        ("sync", "mlflow"),
        ("ui", "mlflow"),
        (f"export {MODEL} model.onnx", "onnx"),
        ("predict models:/photos@champion photos", "mlflow"),
        ("data show s3://bucket/shards", "s3"),
        ("kfp run submit pipelines/bit_l.py --local", "kfp"),
    ],
)
def test_a_missing_extra_is_named_on_one_line(
    line: str, extra: str, installed: Installation, work: Path
) -> None:
    done = installed(*line.split(), cwd=work)
    assert done.returncode == 2, done.stdout
    (said,) = done.stderr.splitlines()
    assert f"not installed; `pip install 'bigtransfer[{extra}]'`" in said


def modules(installed: Installation, layer: str = "") -> set[str]:
    """Return the optional packages that can be imported there."""
    found = f"[name for name in {list(EXTRAS)} if find_spec(name)]"
    code = f"from importlib.util import find_spec; print(*{found})"
    return set(installed.python(code, layer).split())


def test_the_base_installation_has_nothing_of_the_extras(installed: Installation) -> None:
    assert modules(installed) == set()


@pytest.mark.parametrize("extra", NAMES)
def test_an_extra_brings_its_packages(extra: str, installed: Installation) -> None:
    named = {name for name, of in EXTRAS.items() if of == extra or extra == "all" and of != "tpu"}
    assert named <= modules(installed, extra)


@pytest.mark.parametrize(
    ("layer", "line", "code", "said"),
    [
        ("onnx", f"export {MODEL} model.onnx --images photos", 0, "60/60 top-1 equal"),
        ("mlflow", "predict models:/photos@champion photos", 2, "MLflow"),
        ("s3", "data show s3://bucket/shards", 2, "credentials"),
        ("dvc", "run", 2, "pip install 'bigtransfer[mlflow]'"),
        ("kfp", "kfp --version", 0, f"kfp {metadata.version('kfp')}"),
        ("kfp", "kfp run submit nowhere.py", 2, "'nowhere.py' does not exist"),
    ],
)
def test_a_command_works_with_its_extra(
    layer: str, line: str, code: int, said: str, installed: Installation, work: Path
) -> None:
    done = installed(*line.split(), layer=layer, cwd=work, **QUIET)
    assert done.returncode == code, done.stderr
    assert said in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_names_of_before_bring_what_they_brought(installed: Installation) -> None:
    wanted = installed.requires
    for before, now in {"registry": "mlflow", "pipelines": "kfp", "train": "s3"}.items():
        assert closure(wanted, before) == closure(wanted, now) > closure(wanted, "")
    assert {"boto3", "scikit-learn"} <= closure(wanted, "data")


def newer_python(version: str) -> str | None:
    own = Path.home().glob(f".pyenv/versions/{version}.*/bin/python")
    for path in (shutil.which(f"python{version}"), *map(str, own)):
        if path and not subprocess.run([path, "-V"], capture_output=True, check=False).returncode:
            return path
    return None


@pytest.mark.parametrize("version", ["3.12", "3.13"])
def test_sources_compile_with_a_newer_python(version: str) -> None:
    python = newer_python(version)
    if python is None:
        pytest.skip(f"no Python {version} is here")
    code = (
        "import pathlib, sys\n"
        "assert '%d.%d' % sys.version_info[:2] == sys.argv[1]\n"
        "for room in ('bigtransfer', 'components', 'pipelines', 'benchmarks', 'tests'):\n"
        "    for file in pathlib.Path(room).rglob('*.py'):\n"
        "        compile(file.read_bytes(), str(file), 'exec')\n"
    )
    done = subprocess.run(
        [python, "-W", "error", "-c", code, version], cwd=PROJECT, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("version", ["3.11.7", "3.12.1", "3.13.0"])
def test_the_lock_pins_each_package_once_for_every_python(
    version: str, installed: Installation
) -> None:
    pins: dict[str, list[str]] = {}
    for line in (PROJECT / "requirements.lock").read_text().splitlines():
        pin = Requirement(line)
        own = {"python_full_version": version, "python_version": version.rpartition(".")[0]}
        pins.setdefault(pin.name, [])
        if pin.marker is None or pin.marker.evaluate({**own, "platform_machine": "x86_64"}):
            pins[pin.name].append(line)
    assert all(len(lines) <= 1 for lines in pins.values())
    base = [canonicalize_name(asked.name) for asked in installed.requires if not asked.marker]
    assert all(pins[name] for name in base)
