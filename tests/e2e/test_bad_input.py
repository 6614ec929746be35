"""What a user gets wrong: one clear line, the right exit code, nothing half-written."""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bigtransfer.data.manifest import read_manifest
from fixtures.images import write_image
from fixtures.project import PROJECT, SHARED
from fixtures.workflow import call

pytestmark = pytest.mark.e2e
Change = Callable[[Path], None]


@pytest.fixture
def project(photos: Path, tmp_path: Path) -> Path:
    """The params with one entry more, and the folder it names."""
    text = (PROJECT / "params.yaml").read_text()
    entry = "  photos: {path: photos, min_examples_per_class: 5}\n"
    (tmp_path / "params.yaml").write_text(
        text.replace("  digits: {path", entry + "  digits: {path")
    )
    (tmp_path / "components").symlink_to(PROJECT / "components")
    (tmp_path / "bigtransfer").symlink_to(PROJECT / "bigtransfer")
    return tmp_path


def validate(project: Path) -> Any:
    return call(
        project, "components.validate", "--params", "params.yaml", "--section", "datasets.photos",
        "--dataset", "photos", "--manifest", "out/manifest.parquet", "--validation", "out/page",
    )  # fmt: skip


def remove_all(photos: Path) -> None:
    shutil.rmtree(photos)


def empty_class(photos: Path) -> None:
    (photos / "class_3").mkdir()


def truncated(photos: Path) -> None:
    path = photos / "class_1" / "4.png"
    path.write_bytes(path.read_bytes()[:100])


def one_class(photos: Path) -> None:
    shutil.rmtree(photos / "class_1")
    shutil.rmtree(photos / "class_2")


def loose_images(photos: Path) -> None:
    remove_all(photos)
    for i in range(3):
        write_image(photos / f"{i}.png", i)


def test_good_photos_pass_both_stages(project: Path) -> None:
    assert validate(project).returncode == 0
    result = call(
        project, "components.shard", "--params", "params.yaml", "--section", "datasets.photos",
        "--dataset", "photos", "--manifest", "out/manifest.parquet", "--shards", "out/shards",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert sorted(os.listdir(project / "out")) == ["manifest.parquet", "page", "shards"]


@pytest.mark.parametrize(
    ("change", "code", "message"),
    [
        (remove_all, 2, "--dataset 'photos' does not exist"),
        pytest.param(loose_images, 2, "photos", marks=pytest.mark.long),
        pytest.param(empty_class, 3, "class_3", marks=pytest.mark.long),
        (truncated, 3, "class_1/4.png"),
        (one_class, 3, "2"),
    ],
)
def test_bad_folder(project: Path, change: Change, code: int, message: str) -> None:
    change(project / "photos")
    result = validate(project)
    assert result.returncode == code
    assert result.stderr.startswith("validate@photos: ")
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    left = sorted(os.listdir(project / "out")) if (project / "out").exists() else []
    assert left == (["page"] if code == 3 else [])
    failure = json.loads((project / ".work/last-failure.json").read_text())
    assert (failure["stage"], failure["exit_code"]) == ("validate@photos", code)


def test_unwritable_output(project: Path) -> None:
    (project / "out").write_text("a file where the folder should be")
    result = validate(project)
    assert result.returncode == 2
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("validate@photos: cannot write ")
    assert "check that the path exists and that you may write there" in line
    assert (project / "out").read_text() == "a file where the folder should be"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("min_examples_per_clas: 5", "did you mean 'min_examples_per_class'?"),
        ("min_examples_per_class: 5.5", "'datasets.photos.min_examples_per_class' is 5.5"),
        ("min_examples_per_class: [5", "not valid YAML"),
    ],
)
def test_mistyped_param(project: Path, text: str, message: str) -> None:
    path = project / "params.yaml"
    path.write_text(path.read_text().replace("min_examples_per_class: 5}", text + "}"))
    result = validate(project)
    assert result.returncode == 2
    (line,) = result.stderr.strip().splitlines()
    assert message in line
    assert not (project / "out").exists()


def test_a_folder_of_one_photo_per_class_by_one_entry(project: Path) -> None:
    archive = SHARED / "data" / "imagenet-sample" / "imagenet-sample-a.zip"
    if not archive.is_file():
        pytest.skip("the sample of photographs is not on this machine")
    shutil.rmtree(project / "photos")
    with zipfile.ZipFile(archive) as file:
        file.extractall(project / "photos")
    path = project / "params.yaml"
    path.write_text(
        path.read_text().replace(
            "{path: photos, min_examples_per_class: 5}",
            "{path: photos, min_examples_per_class: 1, required_splits: [val]}",
        )
    )
    result = validate(project)
    assert result.returncode == 0, result.stderr
    assert "200 images of 200 classes pass (val 200)" in result.stdout
    verdict = json.loads((project / "out/page/validation.json").read_text())
    assert any("val" in note for note in verdict["notes"])
    result = call(
        project, "components.shard", "--params", "params.yaml", "--section", "datasets.photos",
        "--dataset", "photos", "--manifest", "out/manifest.parquet", "--shards", "out/shards",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert len(read_manifest(project / "out/manifest.parquet")[0]) == 200
