"""The real images, run by Docker: what is in them, and the transfer pipeline through them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from bigtransfer.artifacts.audit import Audit
from bigtransfer.kubeflow.image_tag import source_tag
from bigtransfer.storage import new_folder
from fixtures.models import upstream_meta
from fixtures.project import PROJECT, environment
from fixtures.servers import MlflowServer

BUILT = bool(os.environ.get("BIGTRANSFER_IMAGES"))
pytestmark = pytest.mark.skipif(
    not BUILT, reason="needs the container images; `.ci/containers` builds and tests them"
)
TARGETS = {
    "data": 710,  # DVC and what reads its S3 are a hundred of it
    "demo": 815,
    "fetch": 330,
    "launch": 300,
    "registry": 250,
    "serve": 1480,
    "train-cpu": 1305,
}
"""Image -> megabytes that it may have."""
ABSENT = {
    "data": ("torch", "mlflow.pyfunc.scoring", "kfp", "matplotlib"),
    "fetch": ("torch", "numpy", "pandas", "kfp"),
    "launch": ("torch", "numpy", "pandas", "kfp", "dvc"),
    "registry": ("torch", "numpy", "pandas", "kfp", "dvc"),
    "train-cpu": ("kfp", "dvc", "great_expectations", "scipy"),
}
ARTIFACTS = Path("artifacts") / "kfp"
SHORT = ("tasks.digits.seeds=[0]", "tasks.digits.total_steps=4")
STUDY = {
    "name": "two",
    "about": "Two cells, one of which diverges.",
    "params": {"pretrain": {"epochs": 0.1, "decay_epochs": [0.05], "warmup_steps": 0,
                            "max_loss_factor": 2.0}},
    "axes": {"base_lr": [0.1, 1e9]},
    "downstream": {"tasks": ["digits"], "seeds": [0], "examples_per_class": [1],
                   "preset": "quick"},
    "plot": {"x": "base_lr"},
}  # fmt: skip
GOLDEN = PROJECT / "tests" / "golden" / "artifacts" / "0.1.0"


def image(target: str) -> str:
    return f"bigtransfer-{target}:{source_tag(PROJECT)}"


def docker(*words: str) -> str:
    done = subprocess.run(["docker", *words], capture_output=True, text=True, check=True)
    return done.stdout


@pytest.mark.parametrize("target", TARGETS)
def test_image_is_small_labelled_and_runs_as_nobody(target: str) -> None:
    (facts,) = json.loads(docker("image", "inspect", image(target)))
    assert facts["Size"] <= TARGETS[target] * 1e6
    assert facts["Config"]["User"] == "65532:65532"
    labels = facts["Config"]["Labels"]
    assert len(labels["org.opencontainers.image.revision"]) == 40
    assert len(labels["bigtransfer.lock"]) == 64
    sbom = json.loads(docker("run", "--rm", image(target), "cat", "/app/sbom.cdx.json"))
    names = {part["name"].lower() for part in sbom["components"]}
    assert {"mlflow-skinny", "pydantic"} <= names


@pytest.mark.parametrize("target", ABSENT)
def test_image_holds_nothing_it_does_not_need(target: str) -> None:
    code = (
        "import importlib.util as u, os, sys\n"
        "def there(name):\n"
        "    try: return u.find_spec(name) is not None\n"
        "    except ModuleNotFoundError: return False\n"
        "print(os.getuid(), [n for n in sys.argv[1:] if there(n)])"
    )
    said = docker("run", "--rm", "--read-only", "--tmpfs", "/tmp", image(target),
                  "python", "-c", code, *ABSENT[target])  # fmt: skip
    assert said.split(maxsplit=1) == ["65532", "[]\n"]


def test_a_component_answers_in_its_image() -> None:
    said = docker("run", "--rm", "--network", "none", "--read-only", "--tmpfs", "/tmp",
                  image("data"), "python", "-m", "components.validate", "--help")  # fmt: skip
    assert "--executor-input JSON" in said


def test_dvc_repositories_are_read_without_git_and_from_s3(
    dvc_repository: Path, tmp_path: Path
) -> None:
    """Both by `fetch`, which lists one, and by what reads its images where they are."""
    alone = ["run", "--rm", "--network", "none", "--read-only", "--tmpfs", "/tmp"]
    for name in ("fetch", "data"):
        docker(*alone, image(name), "python", "-c", "import dvc_s3, s3fs")
    address = f"dvc://{dvc_repository}@v1/data/photos"
    entry = f"photos: {{path: artifacts/sources/photos, source: '{address}'}}"
    text = (
        (PROJECT / "params.yaml")
        .read_text("utf-8")
        .replace("  digits: {", f"  {entry}\n  digits: {{", 1)
    )
    (tmp_path / "params.yaml").write_text(text.replace("remote: []", "remote: [photos]"), "utf-8")
    # Git's library reads a repository of its own user's alone, and the mount has ours.
    out = tmp_path / "out"
    out.mkdir()
    mounts = ["--volume", f"{tmp_path}:{tmp_path}:ro", "--volume", f"{out}:{out}"]
    user = ["--user", f"{os.getuid()}:{os.getgid()}", *mounts]
    section = ["--params", f"{tmp_path}/params.yaml", "--section", "datasets.photos"]
    said = docker(*alone, *user, image("fetch"), "python", "-m", "components.fetch", *section,
                  "--index", f"{out}/index")  # fmt: skip
    assert said.startswith("photos: 6 files, ")
    said = docker(*alone, *user, image("data"), "python", "-m", "components.validate", *section,
                  "--dataset", f"{out}/index", "--part", "1/2", "--parts", "/tmp/parts",
                  "--manifest", "/tmp/no", "--validation", "/tmp/no")  # fmt: skip
    assert said.startswith("photos: part 1/2 looked at, 3 images")


@pytest.mark.parametrize("target", TARGETS)
def test_nobody_has_a_name(target: str) -> None:
    code = "import getpass; print(getpass.getuser())"
    assert docker("run", "--rm", image(target), "python", "-c", code) == "bigtransfer\n"


def test_the_log_of_a_task_begins_with_its_own_words(
    mlflow_server: MlflowServer, tmp_path_factory: pytest.TempPathFactory
) -> None:
    audit = tmp_path_factory.mktemp("audited") / "audit"
    with new_folder(audit) as folder:
        Audit(success=True, datasets={}, compared=(), leaks=()).write(folder)
    for place in (audit, *audit.parents[:2]):
        place.chmod(0o755)  # the images' user is not ours

    def register(checkpoints: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["docker", "run", "--rm", "--network", "host", "--read-only", "--tmpfs", "/tmp",
             "--volume", f"{GOLDEN}:/golden:ro", "--volume", f"{audit}:/audit:ro",
             "--env", f"MLFLOW_TRACKING_URI={mlflow_server.address}",
             image("registry"), "python", "-m", "components.register",
             "--params-json", '{"name_prefix": "quiet-", "first": "challenger"}',
             "--checkpoints", checkpoints, "--model", "/golden/model",
             "--report", "/golden/report", "--audit", "/audit",
             "--registration", "/tmp/registration.json"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip

    done = register("/golden/finetuned")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("quiet-colours version 1 (new): challenger")
    wrong = register("/golden/nowhere")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr.startswith("register: --checkpoints '/golden/nowhere' does not exist; ")
    assert wrong.stderr.count("\n") == 1


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout whose sources give the tag of the images, and upstream weights."""
    project = tmp_path_factory.mktemp("checkout") / "project"
    project.parent.chmod(0o755)
    for name in ("bigtransfer", "components", "pipelines"):
        shutil.copytree(
            PROJECT / name, project / name, ignore=shutil.ignore_patterns("__pycache__")
        )
    for name in ("pyproject.toml", "requirements.lock", "params.yaml"):
        shutil.copy(PROJECT / name, project)
    for parent in project.parents:
        if parent.name.startswith("pytest-"):
            parent.chmod(0o755)  # the images' user is not ours
    from bigtransfer.model import create_model, write_checkpoint

    meta = upstream_meta("R14x0.25", ["a", "b"], crop=16)
    model = create_model("R14x0.25", 2, "small", seed=0)
    write_checkpoint(project / "artifacts" / "pretrain" / "checkpoint", model, meta)
    return project


def submit(
    project: Path, *values: str, file: str = "pipelines/transfer.py"
) -> subprocess.CompletedProcess[str]:
    import sys

    return subprocess.run(
        [sys.executable, "-m", "bigtransfer.command.kfp", "run", "submit", file, "--local",
         *values],
        cwd=project, env={**environment(), "PYTHONPATH": str(project)}, capture_output=True,
        text=True, check=False,
    )  # fmt: skip


def test_the_transfer_pipeline_ends_in_a_registered_model(checkout: Path) -> None:
    done = submit(checkout, *SHORT)
    assert done.returncode == 0, done.stdout + done.stderr
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{checkout / 'mlflow.db'}")
    version = client.get_model_version_by_alias("bigtransfer-digits", "challenger")
    assert version.tags["task"] == "digits"
    assert version.tags["gate.upstream"].startswith("fail: nobody pinned the weights")
    assert version.tags["gate.digests"].startswith("pass: ")
    (run,) = (checkout / ARTIFACTS).glob("transfer-*")
    evaluated = run / "evaluate"
    assert (evaluated / "page").read_text("utf-8").startswith("<!doctype html>")
    said = json.loads((evaluated / "executor_output.json").read_text())["artifacts"]
    assert said["metrics"]["artifacts"][0]["metadata"]["registered_test_top1"] > 0
    matrix = said["confusion"]["artifacts"][0]["metadata"]["confusionMatrix"]
    assert len(matrix["rows"]) == len(matrix["annotationSpecs"]) == 10
    owners = {path.stat().st_uid for path in evaluated.rglob("*") if path.is_file()}
    assert 0 not in owners


def test_a_failing_component_fails_the_run(checkout: Path) -> None:
    done = submit(checkout, *SHORT, "datasets.digits.min_classes=11")
    assert done.returncode == 2
    assert done.stdout.count("refused by the data gate") == 1, "nothing is tried again here"
    assert "dataset 'digits'" in done.stdout
    assert "Inner task failed" in done.stderr and "validate" in done.stderr


def test_a_study_keeps_what_its_cells_found_and_fails_for_the_one_that_did(checkout: Path) -> None:
    (checkout / "study.json").write_text(json.dumps(STUDY))
    (checkout / "two.py").write_text(
        "from pathlib import Path\n"
        "from pipelines.study import build_study\n"
        "two = build_study('two', file=Path(__file__).with_name('study.json'))\n"
    )
    done = submit(checkout, file="two.py")
    assert done.returncode == 2, done.stdout + done.stderr
    said = "study_check: two: 1 of 2 cells failed, the others stand in the table"
    assert said in done.stdout, done.stdout + done.stderr
    (run,) = (checkout / ARTIFACTS).glob("two-*")
    page = (run / "study-table" / "page").read_text("utf-8")
    assert page.startswith("<!doctype html>") and "failed: pretrain: the loss became" in page
    table = (run / "study-table" / "tables" / "table.md").read_text("utf-8")
    assert "| 0.1 | " in table and "1 of 1" in table and "0 of 1" in table
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{checkout / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("bigtransfer-kfp").experiment_id
    runs = {run.info.run_id: run for run in client.search_runs([experiment])}
    finetuned = [run for run in runs.values() if run.info.run_name == "finetune@digits"]
    above = [runs[run.data.tags["mlflow.parentRunId"]] for run in finetuned]
    (cell,) = [run for run in above if run.info.run_name.startswith("study_cell@two-")]
    assert cell.data.params["base_lr"] == "0.1" and "digits_test_top1_median" in cell.data.metrics


def test_a_missing_image_is_one_line(checkout: Path) -> None:
    done = submit(checkout, *SHORT, "cluster.image=nowhere")
    assert done.returncode == 2
    assert "kfp run submit: image nowhere-data:" in done.stderr
    assert "`make images` builds it" in done.stderr


def test_the_exit_code_of_a_container_is_never_lost() -> None:
    import docker as sdk

    from bigtransfer.kubeflow.docker_runner import _run_to_the_end

    client, line = sdk.from_env(), ["python", "-c", "import sys; sys.exit(7)"]
    codes = [_run_to_the_end(client, image("registry"), line, {}) for _ in range(5)]
    assert codes == [7] * 5
