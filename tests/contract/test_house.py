"""Layers, public names, versions, texts: what a tool can hold, a tool holds."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import BaseModel

import bigtransfer
from bigtransfer import config
from bigtransfer.config import read_yaml
from fixtures.project import PROJECT, environment


def test_imports_point_down() -> None:
    result = subprocess.run(
        [str(Path(sys.executable).parent / "lint-imports")], cwd=PROJECT, env=environment(),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout


@pytest.mark.xdist_group("guard")
def test_groups_of_tests_are_kept_together(request: pytest.FixtureRequest) -> None:
    """Fails where pytest and pytest-xdist do not fit: then groups are lost without a word."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        assert request.node.nodeid.endswith("@guard")


def test_changelog_and_package_agree_on_the_version() -> None:
    versions = re.findall(r"^## \[([\d.]+)\]", (PROJECT / "CHANGELOG.md").read_text(), re.M)
    assert versions[0] == bigtransfer.__version__


def test_lock_pins_everything_and_no_build_of_one_machine() -> None:
    lines = (PROJECT / "requirements.lock").read_text().splitlines()
    assert all(re.match(r"^[A-Za-z0-9._-]+==[^ ]+( ; .+)?$", line) for line in lines)
    names = [line.split("==")[0] for line in lines]
    assert "torch" in names
    assert not [n for n in names if n.startswith(("nvidia-", "cuda-", "triton"))]
    assert not [line for line in lines if "+" in line.split(";")[0]]


def test_lock_pins_what_the_project_asks_for() -> None:
    import tomllib

    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    assert all("==" in text for text in extras.pop("tpu")), "pinned there, not in the lock"
    asked = [*project["dependencies"], *sum(extras.values(), [])]
    names = {package(text) for text in asked} - {"bigtransfer"}  # an extra may be of others
    locked = {
        line.split("==")[0] for line in (PROJECT / "requirements.lock").read_text().splitlines()
    }
    assert names <= locked


def test_every_package_says_how_it_is_installed() -> None:
    import tomllib

    from bigtransfer.extras import BASE, EXTRAS

    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    assert {name.replace(".", "-") for name in BASE.values()} == {
        package(text) for text in project["dependencies"]
    }
    assert set(EXTRAS.values()) == {"mlflow", "dvc", "kfp", "onnx", "s3", "tpu"}
    for extra in set(EXTRAS.values()):
        own = {package(text) for text in project["optional-dependencies"][extra]}
        own = {{"scikit-learn": "sklearn"}.get(name, name.replace("-", "_")) for name in own}
        assert own <= {*EXTRAS, "kfp_kubernetes"}, extra


def package(requirement: str) -> str:
    return re.split(r"[<>=\[; ]", requirement)[0].replace(".", "-")


def test_lock_ends_with_what_builds_the_project() -> None:
    import tomllib
    from importlib import metadata

    asked = tomllib.loads((PROJECT / "pyproject.toml").read_text())["build-system"]["requires"]
    lines = (PROJECT / "requirements.lock").read_text().splitlines()
    names = [line.split("==")[0] for line in lines]
    (backend,) = [re.split(r"[<>=]", text)[0] for text in asked]
    assert backend in names[-2:]
    needed = [text for text in metadata.requires(backend) or [] if ";" not in text]
    assert {re.split(r"[<>=]", text)[0] for text in needed} <= set(names)


def test_no_committed_line_names_a_machine_or_a_registry() -> None:
    listed = subprocess.run(
        ["git", "ls-files"], cwd=PROJECT, capture_output=True, text=True, check=True
    ).stdout.split()
    pattern = re.compile("/(work|root)" + r"/|py" + "pi\\.|registry\\.npm")
    for name in listed:
        path = PROJECT / name
        if path.suffix in (".py", ".md", ".yaml", ".toml", ".lock") and path.is_file():
            assert not pattern.search(path.read_text()), name


def test_every_param_is_read_by_somebody() -> None:
    sources = "\n".join(
        p.read_text()
        for room in ("bigtransfer", "components")
        for p in (PROJECT / room).rglob("*.py")
        if "config" not in p.parts
    )
    models: list[type[BaseModel]] = [
        config.DatasetParams, config.MaterializeParams, config.PretrainParams,
        config.TaskParams, config.EvaluateParams, config.RegisterParams,
    ]  # fmt: skip
    for model in models:
        for field in model.model_fields:
            assert re.search(rf"\b{field}\b", sources), f"{model.__name__}.{field}"


def test_every_param_is_explained() -> None:
    text = (PROJECT / "params.yaml").read_text()
    assert text.startswith("# ")
    for key in read_yaml(PROJECT / "params.yaml"):
        assert re.search(rf"^{key}:", text, re.M)


@pytest.mark.parametrize("name", ["base", "runs", "mlflow", "serving"])
def test_kustomization_lists_what_is_there(name: str) -> None:
    folder = PROJECT / "manifests" / name
    listed = read_yaml(folder / "kustomization.yaml")["resources"]
    assert sorted([*listed, "kustomization.yaml"]) == sorted(p.name for p in folder.glob("*.yaml"))


def test_the_runtime_of_kserve_is_the_image_that_serves() -> None:
    folder = PROJECT / "manifests" / "serving"
    runtime = read_yaml(folder / "serving-runtime.yaml")
    (container,) = runtime["spec"]["containers"]
    (own,) = read_yaml(folder / "kustomization.yaml")["images"]
    assert container["image"] == own["name"] == "bigtransfer-serve"
    dockerfile = (PROJECT / "components" / "Dockerfile").read_text()
    assert f"MLSERVER_HTTP_PORT={container['ports'][0]['containerPort']} " in dockerfile
    service = read_yaml(folder / "inference-service.yaml")["spec"]["predictor"]["model"]
    assert service["runtime"] == runtime["metadata"]["name"]
    assert service["modelFormat"]["name"] == runtime["spec"]["supportedModelFormats"][0]["name"]
    assert container["securityContext"]["readOnlyRootFilesystem"]


def test_the_namespace_is_restricted() -> None:
    folder = PROJECT / "manifests"
    labels = read_yaml(folder / "base" / "namespace.yaml")["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"


def test_public_names_of_the_library() -> None:
    import bigtransfer.model as model

    assert model.__all__ == [
        "ResNetV2", "create_model", "load_checkpoint", "load_npz", "save_npz", "write_checkpoint",
    ]  # fmt: skip
    assert all(hasattr(model, name) for name in model.__all__)
