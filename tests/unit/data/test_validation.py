from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from bigtransfer.data.folder import list_folder
from conftest import SHARED, write_image
from PIL import Image

from bigtransfer.data.inspection import Limits, inspect_image
from bigtransfer.data.manifest import read_manifest
from bigtransfer.data.validation import validate
from bigtransfer.errors import DatasetError, GateError
from bigtransfer.storage import sha256_file

LIMITS = Limits(min_side=8, max_side=4000, max_pixels=1_000_000, max_bytes=1_000_000)


def run(root: Path, **changes: Any) -> dict[str, Any]:
    wanted: dict[str, Any] = {
        "limits": LIMITS, "val": 0.2, "test": 0.2, "seed": 0, "min_classes": 2,
        "required_splits": ("train", "val", "test"), "min_examples_per_class": 3, "params": {},
        **changes,
    }  # fmt: skip
    out = root.parent
    return validate(
        root, "photos", manifest_path=out / "manifest.parquet", report=out / "validation", **wanted
    )


def refusal(root: Path, **changes: Any) -> str:
    with pytest.raises(GateError) as caught:
        run(root, **changes)
    assert caught.value.exit_code == 3
    assert not (root.parent / "manifest.parquet").exists()
    assert not json.loads((root.parent / "validation" / "validation.json").read_text())["success"]
    return str(caught.value)


def test_good_folder_passes_with_splits_per_class(photos: Path) -> None:
    counts = run(photos)
    assert counts["splits"] == {"train": 18, "val": 6, "test": 6}
    rows, metadata = read_manifest(photos.parent / "manifest.parquet")
    assert len(rows) == 30
    assert metadata["dataset"] == "photos"
    verdict = photos.parent / "validation" / "validation.json"
    assert metadata["validation_sha256"] == sha256_file(verdict)
    assert {r["split"] for r in rows if r["label"] == "class_1"} == {"train", "val", "test"}
    assert "class_1" in (photos.parent / "validation" / "index.html").read_text()


def test_same_folder_gives_the_same_bytes(photos: Path) -> None:
    run(photos)
    first = (photos.parent / "manifest.parquet").read_bytes()
    run(photos)
    assert (photos.parent / "manifest.parquet").read_bytes() == first


def test_truncated_image_is_named_and_refused(photos: Path) -> None:
    whole = (photos / "class_1" / "3.png").read_bytes()
    (photos / "class_1" / "3.png").write_bytes(whole[: len(whole) // 2])
    message = refusal(photos)
    assert "every file is a usable image: 1 of 30 fail: 'class_1/3.png' (does not decode" in message


def test_files_that_are_no_images_say_what_they_are(photos: Path) -> None:
    (photos / "class_0" / "page.jpg").write_text("<!DOCTYPE html><p>404")
    (photos / "class_0" / "lfs.png").write_text("version https://git-lfs.github.com/spec/v1\n")
    (photos / "class_0" / "empty.png").touch()
    message = refusal(photos)
    for part in ("page.jpg' (not an image (an HTML or XML page))", "a Git-LFS pointer; run",
                 "empty.png' (file is empty)"):  # fmt: skip
        assert part in message


def test_one_class_only_is_refused(photos: Path) -> None:
    for label in (1, 2):
        (photos / f"class_{label}").rename(photos.parent / f"away_{label}")
    assert "at least 2 classes: 1 of 1 fail: 'classes' (1)" in refusal(photos)


def test_class_folder_without_images_is_named(photos: Path) -> None:
    (photos / "class_9").mkdir()
    assert "at least 3 images in every class: 1 of 4 fail: 'class_9' (0)" in refusal(photos)


def test_copies_stay_in_one_split_and_are_flagged(photos: Path) -> None:
    for i in range(20):
        (photos / "class_0" / f"copy{i}.png").write_bytes((photos / "class_0/0.png").read_bytes())
    counts = run(photos)
    assert counts["flags"] == {"duplicate": 20}
    rows, _ = read_manifest(photos.parent / "manifest.parquet")
    assert len({r["split"] for r in rows if "copy" in r["path"]}) == 1


def test_copy_across_given_splits_is_a_leak(photos: Path) -> None:
    for split in ("train", "val", "test"):
        for label in (0, 1):
            for i in range(3):
                write_image(photos.parent / f"s/{split}/c{label}/{i}.png", hash_of(split, label, i))
    twin = photos.parent / "s" / "train" / "c0" / "0.png"
    (photos.parent / "s/test/c0/0.png").write_bytes(twin.read_bytes())
    message = refusal(photos.parent / "s")
    assert "'test/c0/0.png' (same pixels as 'train/c0/0.png' in train)" in message


def hash_of(split: str, label: int, i: int) -> int:
    return len(split) * 100 + ord(split[1]) + 10 * label + i


def test_lone_split_is_accepted_with_a_flag(photos: Path) -> None:
    (photos.parent / "lone").mkdir()
    photos.rename(photos.parent / "lone" / "val")
    lone = photos.parent / "lone"
    counts = run(lone, required_splits=("val",))
    assert counts["splits"] == {"val": 30}
    report = json.loads((lone.parent / "validation" / "validation.json").read_text())
    assert report["notes"][0].startswith("only the split 'val' is there")
    assert "'train' (0)" in refusal(lone, required_splits=("train", "val"))


def test_missing_folder_is_the_users_to_mend(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="does not exist; correct its 'path' in params.yaml"):
        run(tmp_path / "nothing")


def test_images_beside_class_folders_are_named(photos: Path) -> None:
    write_image(photos / "loose.png", 1)
    with pytest.raises(DatasetError, match="1 files beside its class folders, e.g. 'loose.png'"):
        list_folder(photos)


def test_split_folders_beside_others_are_refused(photos: Path) -> None:
    (photos / "train").mkdir()
    with pytest.raises(DatasetError, match=r"mixes split folders \(train\) with others"):
        list_folder(photos)


def test_system_files_are_counted_not_used(photos: Path) -> None:
    (photos / ".DS_Store").touch()
    (photos / "class_0" / "Thumbs.db").touch()
    counts = run(photos)
    assert (counts["images"], counts["ignored_files"]) == (30, 2)


def test_loop_of_links_ends(photos: Path) -> None:
    os.symlink(photos, photos / "class_0" / "loop")
    assert len(list_folder(photos).images) == 30


def test_bomb_is_refused_from_its_header(tmp_path: Path) -> None:
    Image.new("1", (3000, 3000)).save(tmp_path / "bomb.png")
    facts = inspect_image(tmp_path / "bomb.png", LIMITS)
    assert facts.fault == "3000x3000 pixels exceed max_image_pixels 1,000,000"
    assert facts.pixel_sha256 == ""


def test_limits_name_themselves(tmp_path: Path) -> None:
    write_image(tmp_path / "small.png", 0, side=4)
    fault = inspect_image(tmp_path / "small.png", LIMITS).fault
    assert fault == "4x4 pixels: a side is below min_side_pixels 8"


def test_pixels_count_not_metadata(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png", 0)
    Image.open(tmp_path / "a.png").save(tmp_path / "b.bmp")
    a, b = (inspect_image(tmp_path / n, LIMITS) for n in ("a.png", "b.bmp"))
    assert a.sha256 != b.sha256
    assert a.pixel_sha256 == b.pixel_sha256


@pytest.mark.skipif(not (SHARED / "data/odd-images").is_dir(), reason="needs ../shared/data")
def test_no_odd_image_escapes_as_an_exception() -> None:
    folder = SHARED / "data" / "odd-images"
    expected = json.loads((folder / "manifest.json").read_text())
    assert expected
    limits = Limits(min_side=1, max_side=20_000, max_pixels=50_000_000, max_bytes=10**8)
    for path in sorted(folder.iterdir()):
        if path.is_file():
            facts = inspect_image(path, limits)
            assert facts.fault is None or facts.fault.strip()
