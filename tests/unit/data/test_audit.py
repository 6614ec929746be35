from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from bigtransfer.artifacts.audit import Audit
from bigtransfer.data.audit import audit
from bigtransfer.data.validation import validate
from bigtransfer.errors import ConfigError, GateError
from fixtures.datasets import rules
from fixtures.images import scene, write_image


@pytest.fixture
def manifests(tmp_path: Path) -> Path:
    """Two validated datasets, `upstream` and `task`, of 3 classes; scenes of 96 pixels."""
    for name, base in (("upstream", 0), ("task", 1000)):
        for label in range(3):
            for i in range(6):
                path = tmp_path / name / f"class_{label}" / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                scene(base + 10 * label + i, (96, 96)).save(path)
        revalidate(tmp_path, name)
    return tmp_path / "datasets"


def revalidate(folder: Path, name: str, **changes: Any) -> None:
    validate(
        folder / name, name, rules(**changes),
        manifest_path=folder / "datasets" / name / "manifest.parquet",
        report=folder / "datasets" / name / "validation",
    )  # fmt: skip


def run(manifests: Path, **changes: Any) -> Audit:
    settings: dict[str, Any] = {
        "upstream": "upstream", "downstream": ("task",), "on_leak": "error", **changes,
    }  # fmt: skip
    return audit([manifests], manifests.parent / "audit", **settings)


def paths_of(manifests: Path, name: str, split: str) -> list[str]:
    from bigtransfer.data.manifest import read_manifest

    rows = read_manifest(manifests / name / "manifest.parquet")[0].to_pylist()
    return [row["path"] for row in rows if row["split"] == split]


def test_different_images_pass(manifests: Path) -> None:
    result = run(manifests)
    assert result.success
    assert result.compared[0].upstream_images == len(paths_of(manifests, "upstream", "train"))
    assert Audit.read(manifests.parent / "audit") == result


@pytest.mark.parametrize(
    ("change", "how"),
    [
        (lambda image: image, "same pixels as"),
        (lambda image: image.resize((128, 128)), "looks the same as"),
        (lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), "mirror image of"),
    ],
)
def test_test_image_seen_upstream_is_a_leak(manifests: Path, change: Any, how: str) -> None:
    seen = paths_of(manifests, "upstream", "train")[0]
    tested = paths_of(manifests, "task", "test")[0]
    change(Image.open(manifests.parent / "upstream" / seen)).save(
        manifests.parent / "task" / tested
    )
    revalidate(manifests.parent, "task", seed=0)
    where = {split: paths_of(manifests, "task", split) for split in ("train", "val", "test")}
    for seed in range(1, 30):  # the image's own pixels decide its split
        if tested in where["test"] + where["val"]:
            break
        revalidate(manifests.parent, "task", seed=seed)
        where = {split: paths_of(manifests, "task", split) for split in ("val", "test")}
    with pytest.raises(GateError) as caught:
        run(manifests)
    assert caught.value.exit_code == 3
    assert f"{tested!r}: {how} {seen!r}" in str(caught.value)
    page = (manifests.parent / "audit" / "index.html").read_text()
    assert f'- "{seen}"' in page.replace("&#34;", '"')
    assert not json.loads((manifests.parent / "audit" / "audit.json").read_text())["success"]
    assert not run(manifests, on_leak="report").success
    revalidate(manifests.parent, "upstream", exclude=(seen,))
    assert run(manifests).success


def test_training_images_of_the_task_may_be_known_upstream(manifests: Path) -> None:
    shutil.rmtree(manifests.parent / "task")
    shutil.copytree(manifests.parent / "upstream", manifests.parent / "task")
    revalidate(
        manifests.parent, "task", splits={"val": 0.0, "test": 0.0}, required_splits=("train",)
    )
    assert run(manifests).success


def test_dataset_without_manifest_is_named(manifests: Path) -> None:
    with pytest.raises(ConfigError, match="dataset 'other' has no manifest below"):
        run(manifests, downstream=("task", "other"))


def test_a_task_on_the_upstream_data_is_not_compared_with_itself(manifests: Path) -> None:
    assert run(manifests, downstream=("upstream",)).compared == ()


def test_manifest_files_are_taken_as_well_as_their_folder(manifests: Path) -> None:
    files = sorted(manifests.glob("*/manifest.parquet"))
    result = audit(
        files, manifests.parent / "a", upstream="upstream", downstream=["task"], on_leak="error"
    )
    assert result == run(manifests)
    write_image(manifests / "x.png", 0)


def test_given_weights_are_not_compared_and_the_page_says_so(manifests: Path) -> None:
    result = run(manifests, upstream=None)
    assert (result.success, result.compared, list(result.datasets)) == (True, (), ["task"])
    page = (manifests.parent / "audit" / "index.html").read_text("utf-8")
    assert "not known" in page and "Not compared: the weights come from elsewhere" in page
