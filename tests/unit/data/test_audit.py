from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bigtransfer.artifacts.audit import Audit
from bigtransfer.data.audit import audit
from bigtransfer.data.fingerprint import Fingerprints, looks_of, nearest_pair
from bigtransfer.data.validation import validate
from bigtransfer.errors import ConfigError, GateError
from bigtransfer.storage import sha256_file
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


def test_the_page_says_what_was_compared_and_shows_the_closest_pair(manifests: Path) -> None:
    compared = run(manifests).compared[0]
    assert compared.comparable == (compared.downstream_images, compared.upstream_images)
    closest = compared.closest
    assert closest is not None and closest.counts
    assert closest.bits > 0 and -1 <= closest.correlation < 0.9
    assert closest.pairs == compared.downstream_images * compared.upstream_images
    assert closest.downstream_path in paths_of(manifests, "task", closest.downstream_split)
    assert closest.upstream_path in paths_of(manifests, "upstream", "train")
    page = (manifests.parent / "audit" / "index.html").read_text("utf-8")
    for part in (
        "“task” against “upstream”", f"{compared.upstream_images} training images",
        f"{closest.bits} of 64 bits differ", closest.downstream_path, closest.upstream_path,
        "all images are large enough", sha256_file(manifests / "task" / "manifest.parquet"),
    ):  # fmt: skip
        assert part in page
    assert page.count("data:image/png") == 2


def test_of_small_images_the_closest_pair_is_shown_and_does_not_count(manifests: Path) -> None:
    for name in ("task", "upstream"):
        revalidate(manifests.parent, name, near_duplicate_side=200)
    compared = run(manifests).compared[0]
    assert compared.comparable == (0, 0)
    assert compared.closest is not None and not compared.closest.counts
    page = (manifests.parent / "audit" / "index.html").read_text("utf-8")
    assert "does not count here: no image of “task” is large enough" in page
    assert "so look for yourself" in page


def test_an_audit_of_before_is_read(tmp_path: Path) -> None:
    old = {"success": True, "datasets": {"a": "0"}, "leaks": [], "compared": [
        {"upstream": "u", "downstream": "a", "upstream_images": 2, "downstream_images": 1,
         "leaks": 0, "by_looks": True}]}  # fmt: skip
    (tmp_path / "audit.json").write_text(json.dumps(old))
    assert Audit.read(tmp_path).compared[0].closest is None


def prints(count: int, seed: int) -> Fingerprints:
    looks = [looks_of(np.asarray(scene(seed + i, (40, 40)))) for i in range(count)]
    return Fingerprints(
        np.array([own.phash for own in looks]),
        np.array([own.phash_mirrored for own in looks]),
        np.stack([np.frombuffer(own.thumb, np.uint8) for own in looks]),
    )


def test_the_nearest_pair_is_that_of_the_fewest_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = prints(9, 0), prints(14, 100)
    apart = {
        (i, j, mirrored): (int(hashes[i]) ^ int(theirs.phash[j])).__and__((1 << 64) - 1).bit_count()
        for mirrored, hashes in ((False, ours.phash), (True, ours.mirrored))
        for i in range(9)
        for j in range(14)
    }
    monkeypatch.setattr("bigtransfer.data.fingerprint._ROWS", 4)
    monkeypatch.setattr("bigtransfer.data.fingerprint._COLUMNS", 5)
    found = nearest_pair(ours, theirs)
    assert found is not None and found.pairs == 9 * 14
    assert found.bits == min(apart.values())
    assert apart[found.query, found.reference, found.mirrored] == found.bits
    some = nearest_pair(ours, theirs, most_pairs=30)
    assert some is not None and some.pairs <= 30 and some.bits >= found.bits
    assert nearest_pair(ours, theirs.take(np.array([], int))) is None


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
