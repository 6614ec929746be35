"""A dataset in a bucket, or at a DVC version, goes through DVC's stages like a local one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bigtransfer.data.shards import open_shards
from fixtures.images import write_image
from fixtures.project import copy_project, dvc, git
from fixtures.workflow import call, edit_params, ran, run_workflow

pytestmark = pytest.mark.e2e
RULES = "min_examples_per_class: 2, splits: {val: 0.2, test: 0.2}"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return copy_project(tmp_path / "project")


def add_remote(project: Path, source: str) -> None:
    edit_params(project, "remote: []", "remote: [pets]")
    entry = f'  pets: {{path: artifacts/sources/pets, source: "{source}", {RULES}}}\n'
    edit_params(project, "  digits: {path", entry + "  digits: {path")


@pytest.mark.long
def test_bucket_of_photos(project: Path, photos: Path, s3: Any) -> None:
    for path in sorted(photos.rglob("*.png")):
        key = f"pets/{path.relative_to(photos).as_posix()}"
        s3.put_object(Bucket="photos", Key=key, Body=path.read_bytes())
    add_remote(project, "s3://photos/pets")
    first = run_workflow(project, "shard@pets")
    assert first.returncode == 0, first.stdout + first.stderr
    assert ran(first.stdout) == {"fetch@pets", "validate@pets", "shard@pets"}
    assert "pets: 30 files" in first.stdout
    shards = open_shards(project / "artifacts" / "datasets" / "pets" / "shards")
    assert (shards.summary.examples, shards.classes[0]) == (30, "class_0")
    assert not ran(run_workflow(project, "shard@pets").stdout)

    s3.put_object(Bucket="photos", Key="pets/class_0/0.png", Body=b"changed")
    edit_params(project, RULES, RULES.replace("0.2}", "0.3}"))
    changed = run_workflow(project, "shard@pets")
    assert changed.returncode == 2
    assert "class_0/0.png: the object changed since it was listed" in changed.stderr


@pytest.mark.long
def test_folder_at_a_dvc_version(project: Path, photos: Path, tmp_path: Path) -> None:
    work, bare = tmp_path / "pets", tmp_path / "pets.git"
    photos.rename(tmp_path / "raw")
    git(tmp_path, "init", "--quiet", "--bare", "--initial-branch=main", str(bare))
    git(tmp_path, "init", "--quiet", "--initial-branch=main", str(work))
    dvc(work, "init", "--quiet")
    dvc(work, "remote", "add", "--default", "here", str(tmp_path / "remote"))
    (tmp_path / "raw").rename(work / "photos")
    dvc(work, "add", "photos")
    dvc(work, "push")
    git(work, "add", "--all")
    git(work, "commit", "--quiet", "--message=photos")
    git(work, "push", "--quiet", str(bare), "main")
    add_remote(project, f"dvc://{bare}@main/photos")
    result = run_workflow(project, "shard@pets")
    assert result.returncode == 0, result.stdout + result.stderr
    source = json.loads((project / "artifacts/sources/pets/source.json").read_text())
    assert git(bare, "rev-parse", "main").strip() in source["url"]
    shards = open_shards(project / "artifacts" / "datasets" / "pets" / "shards")
    assert shards.summary.examples == 30


@pytest.mark.long
def test_parts_and_join_by_the_component(project: Path, photos: Path) -> None:
    line = ["--params", "params.yaml", "--section", "datasets.photos", "--dataset", str(photos)]
    entry = f"  photos: {{path: {photos}, shard_bytes: 3000, {RULES}}}\n"
    edit_params(project, "  digits: {path", entry + "  digits: {path")
    checked = call(project, "components.validate", *line, "--manifest", "out/manifest.parquet",
                   "--validation", "out/page")  # fmt: skip
    assert checked.returncode == 0, checked.stderr
    look = [
        "components.validate",
        *line,
        "--manifest",
        "out/again.parquet",
        "--validation",
        "out/2",
    ]
    refused = call(project, *look, "--join", "2")
    assert refused.returncode == 2
    assert "there are no parts in 'out/again.parts/photos'" in refused.stderr
    for part in ("2/2", "1/2"):
        assert call(project, *look, "--part", part).returncode == 0
    assert call(project, *look, "--part", "1/2", "--join", "2").returncode == 2
    assert not (project / "out/again.parquet").exists()
    assert call(project, *look, "--join", "2").returncode == 0
    made = (project / "out/manifest.parquet").read_bytes()
    assert (project / "out/again.parquet").read_bytes() == made
    shard = ["components.shard", *line, "--manifest", "out/manifest.parquet"]
    early = call(project, *shard, "--shards", "out/parts", "--join", "2")
    assert early.returncode == 2
    assert "part 1 of 2 of 'out/parts' is missing" in early.stderr
    for part in ("2/2", "1/2"):
        assert call(project, *shard, "--shards", "out/parts", "--part", part).returncode == 0
    joined = call(project, *shard, "--shards", "out/parts", "--join", "2")
    assert joined.returncode == 0, joined.stderr
    assert call(project, *shard, "--shards", "out/whole").returncode == 0
    whole = open_shards(project / "out" / "whole")
    assert open_shards(project / "out" / "parts").digest == whole.digest
    assert "part '3/2': write N/M" in call(project, *shard, "--shards", "x", "--part", "3/2").stderr


@pytest.mark.long
def test_tested_image_that_upstream_saw_stops_the_workflow(project: Path, tmp_path: Path) -> None:
    for label in ("a", "b"):
        for split in ("train", "val", "test"):
            for i in range(3):
                seed = 1000 + 100 * len(split) + 10 * ord(label) + ord(split[0]) + i
                write_image(project / f"data/mine/{split}/{label}/{i}.png", seed)
                write_image(project / f"data/base/train/{label}/{split}{i}.png", seed + 5000)
                write_image(project / f"data/base/val/{label}/{split}{i}.png", seed + 9000)
    seen = project / "data/base/train/a/test0.png"
    (project / "data/mine/test/b/1.png").write_bytes(seen.read_bytes())
    mine = "  mine: {path: data/mine, required_splits: [train, val, test]}\n"
    base = "  base: {path: data/base, required_splits: [train, val]}\n"
    text = (project / "params.yaml").read_text()
    text = text.replace("  digits: {path", mine + base + "  digits: {path", 1)
    text = text.replace("  dataset: upstream", "  dataset: base")
    text = text.replace("  digits: {dataset: digits}", "  mine: {dataset: mine}")
    text = text.replace("  alphabets: {dataset: alphabets}\n", "")
    (project / "params.yaml").write_text(text)
    result = run_workflow(project, "audit")
    assert result.returncode == 3, result.stdout + result.stderr
    assert "mine test: 'test/b/1.png': same pixels as 'train/a/test0.png'" in result.stderr
