from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from bigtransfer.artifacts.decoding import DecodeSettings
from bigtransfer.data.checking import asked_of
from bigtransfer.data.inspection import ImageFacts, Limits, inspect_image
from bigtransfer.data.manifest import read_manifest
from bigtransfer.data.sources.opening import open_source
from bigtransfer.errors import ConfigError, DatasetError, GateError
from bigtransfer.storage import sha256_file
from fixtures.datasets import rules, validated
from fixtures.images import write_image
from fixtures.project import SHARED


def manifest_rows(root: Path) -> list[dict[str, Any]]:
    return list(read_manifest(root.parent / "manifest.parquet")[0].to_pylist())


LIMITS = asked_of(rules()).limits


def inspect(path: Path, limits: Limits = LIMITS) -> ImageFacts:
    return inspect_image(path.name, path.stat().st_size, path.read_bytes, limits, DecodeSettings())


def refusal(root: Path, **changes: Any) -> str:
    with pytest.raises(GateError) as caught:
        validated(root, **changes)
    assert caught.value.exit_code == 3
    assert not (root.parent / "manifest.parquet").exists()
    assert not json.loads((root.parent / "validation" / "validation.json").read_text())["success"]
    return str(caught.value)


def test_good_folder_passes_with_splits_per_class(photos: Path) -> None:
    counts = validated(photos)
    assert counts.splits == {"train": 18, "val": 6, "test": 6}
    metadata = read_manifest(photos.parent / "manifest.parquet")[1]
    rows = manifest_rows(photos)
    assert len(rows) == 30
    assert metadata.dataset == "photos"
    verdict = photos.parent / "validation" / "validation.json"
    assert metadata.validation_sha256 == sha256_file(verdict)
    assert {r["split"] for r in rows if r["labels"] == ["class_1"]} == {"train", "val", "test"}
    assert "class_1" in (photos.parent / "validation" / "index.html").read_text()


def test_same_folder_gives_the_same_bytes(photos: Path) -> None:
    validated(photos)
    first = (photos.parent / "manifest.parquet").read_bytes()
    validated(photos)
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
    for part in ("page.jpg' (not an image (an HTML or XML page))", "a Git LFS pointer; run",
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
    counts = validated(photos)
    assert counts.flags == {"duplicate": 20}
    rows = manifest_rows(photos)
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
    counts = validated(lone, required_splits=("val",))
    assert counts.splits == {"val": 30}
    report = json.loads((lone.parent / "validation" / "validation.json").read_text())
    assert report["notes"][0].startswith("only the split 'val' is there")
    assert "'train' (0)" in refusal(lone, required_splits=("train", "val"))


def test_missing_folder_is_the_users_to_mend(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="does not exist; correct the path"):
        validated(tmp_path / "nothing")


def test_images_beside_class_folders_are_named(photos: Path) -> None:
    write_image(photos / "loose.png", 1)
    with pytest.raises(DatasetError, match="1 file beside its class folders, e.g. 'loose.png'"):
        open_source(photos)


def test_split_folders_beside_others_are_refused(photos: Path) -> None:
    (photos / "train").mkdir()
    with pytest.raises(DatasetError, match=r"mixes split folders \(train\) with others"):
        open_source(photos)


def test_a_class_may_be_called_like_a_split(photos: Path) -> None:
    (photos / "class_0").rename(photos / "train")
    source = open_source(photos)
    assert source.labels == ["class_1", "class_2", "train"]
    assert not source.has_splits


def test_system_files_are_counted_not_used(photos: Path) -> None:
    (photos / ".DS_Store").touch()
    (photos / "class_0" / "Thumbs.db").touch()
    counts = validated(photos)
    assert (counts.images, counts.ignored_files) == (30, 2)


def test_loop_of_links_ends(photos: Path) -> None:
    os.symlink(photos, photos / "class_0" / "loop")
    assert len(open_source(photos).images) == 30


def test_bomb_is_refused_from_its_header(tmp_path: Path) -> None:
    Image.new("1", (3000, 3000)).save(tmp_path / "bomb.png")
    facts = inspect(tmp_path / "bomb.png")
    assert facts.fault == "3000x3000 pixels exceed max_image_pixels 1,000,000"
    assert facts.pixel_sha256 == ""


def test_limits_name_themselves(tmp_path: Path) -> None:
    write_image(tmp_path / "small.png", 0, side=4)
    fault = inspect(tmp_path / "small.png").fault
    assert fault == "4x4 pixels: a side is below min_side_pixels 8"


def test_pixels_count_not_metadata(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png", 0)
    Image.open(tmp_path / "a.png").save(tmp_path / "b.bmp")
    a, b = (inspect(tmp_path / n) for n in ("a.png", "b.bmp"))
    assert a.sha256 != b.sha256
    assert a.pixel_sha256 == b.pixel_sha256


def verdict(facts: ImageFacts) -> str:
    odd = [f for f in facts.flags if not f.startswith(("orientation:", "transparent:"))]
    return "reject" if facts.fault else "flag" if odd else "accept"


@pytest.mark.skipif(not (SHARED / "data/odd-images").is_dir(), reason="needs ../shared/data")
def test_odd_images_get_the_verdict_of_their_manifest() -> None:
    folder = SHARED / "data" / "odd-images"
    limits = Limits(
        min_side=8, max_side=20_000, max_pixels=50_000_000, max_bytes=10**8, small_side=64
    )
    compared = 0
    for listed in json.loads((folder / "manifest.json").read_text()):
        facts = inspect(folder / listed["file"], limits)
        assert facts.fault is None or facts.fault.strip()
        wanted = listed.get("expect", "")
        if wanted and "near-duplicate" not in wanted:  # copies are told by comparison: test_copies
            assert verdict(facts) == wanted.split()[0].strip(";"), (listed["file"], facts)
            compared += 1
    assert compared > 20


def test_oddities_are_flagged_and_used(tmp_path: Path) -> None:
    Image.new("RGB", (100, 100), (7, 7, 7)).save(tmp_path / "plain.png")
    assert inspect(tmp_path / "plain.png").flags == ["blank: nothing to see"]
    write_image(tmp_path / "wide.png", 0)
    Image.open(tmp_path / "wide.png").resize((900, 30)).save(tmp_path / "wide.png")
    assert inspect(tmp_path / "wide.png").flags == ["extreme_aspect: 900x30 pixels"]
    small = replace(LIMITS, small_side=64)
    write_image(tmp_path / "small.png", 1)
    assert inspect(tmp_path / "small.png", small).flags == ["small: 12x12 pixels"]
    (tmp_path / "other.jpg").write_bytes((tmp_path / "small.png").read_bytes())
    assert inspect(tmp_path / "other.jpg").flags == ["other_format: named .jpg, is PNG"]


def test_unreadable_files_are_named(photos: Path) -> None:
    os.symlink("nowhere", photos / "class_0" / "link.png")
    os.mkfifo(photos / "class_0" / "pipe.png")
    with open(os.fsencode(photos / "class_0") + b"/\xff.png", "wb") as file:
        file.write((photos / "class_0" / "0.png").read_bytes())
    message = refusal(photos)
    assert "link.png' (cannot be read: a link that leads nowhere)" in message
    assert "pipe.png' (not an ordinary file" in message
    assert "its name is not UTF-8 text; rename it" in message


def test_quarantine_leaves_out_within_its_budget_and_deletes_nothing(photos: Path) -> None:
    (photos / "class_0" / "bad.png").write_text("nothing")
    counts = validated(photos, on_bad="quarantine", bad_budget=0.1)
    assert (counts.images, counts.rejected) == (30, 1)
    assert "class_0/bad.png" not in {r["path"] for r in manifest_rows(photos)}
    listed = (photos.parent / "validation" / "quarantine.csv").read_text().splitlines()
    assert listed == ["path,reason", "class_0/bad.png,not an image (7 bytes of something else)"]
    assert (photos / "class_0" / "bad.png").exists()
    assert "at most 1 % unusable images" in refusal(photos, on_bad="quarantine", bad_budget=0.01)


def test_excluded_images_are_left_out_and_must_exist(photos: Path) -> None:
    validated(photos, exclude=("class_0/0.png",))
    assert len(manifest_rows(photos)) == 29
    with pytest.raises(DatasetError, match=r"'exclude' names 'class_0/99.png'"):
        validated(photos, exclude=("class_0/99.png",))


def test_other_class_names_than_asked_for_are_refused(photos: Path) -> None:
    validated(photos, classes=("class_0", "class_1", "class_2"))
    message = refusal(photos, classes=("class_0", "class_1", "klass_2"))
    assert "'klass_2' (is in params.yaml, not in the data)" in message
    assert "'class_2' (is in the data, not in params.yaml)" in message


def test_own_rules_are_great_expectations_over_the_manifest(photos: Path) -> None:
    wide = {"expect": "column_values_to_be_between", "column": "width", "min_value": 13}
    message = refusal(photos, expectations=(wide,))
    assert "width: column values to be between min_value 13: 30 of 30 fail" in message
    validated(photos, expectations=({**wide, "min_value": 12},))
    with pytest.raises(ConfigError, match="knows no 'column_values_to_be_betwen'; did you mean"):
        validated(photos, expectations=({**wide, "expect": "column_values_to_be_betwen"},))
    with pytest.raises(ConfigError, match="has no column 'widht'; did you mean 'width'"):
        validated(photos, expectations=({**wide, "column": "widht"},))


def test_large_manifests_are_judged_by_summaries(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bigtransfer.data.expectations.SUMMARY_ABOVE_ROWS", 20)
    monkeypatch.setattr("bigtransfer.data.expectations.SUMMARY_ROWS", 10)
    least = {"expect": "column_values_to_be_between", "column": "width_min", "min_value": 13}
    message = refusal(photos, expectations=(least,))
    assert "3 of 3 fail: 'rows 0 to 9' (12)" in message


def test_page_shows_what_was_refused_copies_and_classes(photos: Path) -> None:
    write_image(photos / "class_0" / "big.png", 5, side=80)
    Image.open(photos / "class_0" / "big.png").save(photos / "class_0" / "twin.bmp")
    (photos / "class_1" / "bad.png").write_text("nothing")
    refusal(photos)
    page = (photos.parent / "validation" / "index.html").read_text()
    for part in ("Unusable images (1)", "class_1/bad.png", "same pixels as", "class_0/twin.bmp"):
        assert part in page
    assert page.count("data:image/") > 4


def test_odd_exif_orientation_counts_as_none(photos: Path) -> None:
    picture = Image.open(photos / "class_0" / "0.png")
    exif = picture.getexif()
    exif[0x0112] = 65535
    picture.save(photos / "class_0" / "odd.jpg", exif=exif)
    validated(photos)
    assert {row["orientation"] for row in manifest_rows(photos)} == {1}


def test_unusable_images_take_no_place_in_a_split(photos: Path) -> None:
    validated(photos)
    before = {r["path"]: r["split"] for r in manifest_rows(photos)}
    for i in range(8):
        (photos / "class_0" / f"bad{i}.png").write_text("nothing")
    validated(photos, on_bad="quarantine", bad_budget=0.5)
    assert {r["path"]: r["split"] for r in manifest_rows(photos)} == before


def test_own_rule_that_cannot_be_checked_is_the_users_to_mend(photos: Path) -> None:
    rule = {"expect": "column_values_to_match_regex", "column": "path", "regex": "("}
    with pytest.raises(ConfigError, match="cannot be checked"):
        validated(photos, expectations=(rule,))


def test_same_verdict_from_every_thread(tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    Image.new("1", (9500, 10000)).save(tmp_path / "large.png")  # above Pillow's own warning
    limits = replace(LIMITS, max_side=20_000)
    with ThreadPoolExecutor(8) as pool:
        found = pool.map(lambda _: inspect(tmp_path / "large.png", limits).fault, range(64))
    assert set(found) == {"9500x10000 pixels exceed max_image_pixels 1,000,000"}


def split_photos(folder: Path, **counts: int) -> Path:
    for split, count in counts.items():
        for label in ("a", "b"):
            for i in range(count):
                seed = len(list(folder.rglob("*.png")))
                write_image(folder / "photos" / split / label / f"{i}.png", seed)
    return folder / "photos"


def test_validation_images_come_from_train_where_the_source_has_none(tmp_path: Path) -> None:
    photos = split_photos(tmp_path, train=10, test=4)
    assert validated(photos).splits == {"train": 16, "val": 4, "test": 8}
    taken = {row["path"] for row in manifest_rows(photos) if row["split"] == "val"}
    assert {Path(path).parts[:2] for path in taken} == {("train", "a"), ("train", "b")}
    page = (tmp_path / "validation" / "index.html").read_text("utf-8")
    assert "its own splits but val, which is taken from train" in page


def test_nothing_is_taken_from_train_unless_asked(tmp_path: Path) -> None:
    photos = split_photos(tmp_path, train=10, test=4)
    assert validated(photos, required_splits=("train", "test")).splits == {
        "train": 20,
        "test": 8,
    }
    assert "val" in refusal(photos, splits={"val": 0.0, "test": 0.2})


def test_a_missing_test_split_is_refused(tmp_path: Path) -> None:
    assert "test" in refusal(split_photos(tmp_path, train=10, val=4))


def in_splits(folder: Path, **classes: str) -> Path:
    """Write `train="a b", test="a"`: four images of each class in each split."""
    for split, names in classes.items():
        for label in names.split(" "):
            for i in range(4):
                seed = len(list(folder.rglob("*.png")))
                write_image(folder / "photos" / split / label / f"{i}.png", seed)
    return folder / "photos"


def test_class_of_test_without_training_images_is_refused(tmp_path: Path) -> None:
    photos = in_splits(tmp_path, train="a b", val="a", test="a b bird")
    message = refusal(photos)
    assert "every class of val and test has training images: 1 of 3 fail: 'bird' " in message
    assert "'bird' (4 in test, none in train)" in message
    shutil.rmtree(photos / "train")
    validated(photos, required_splits=("test",))


def test_training_images_that_are_all_unusable_are_none(tmp_path: Path) -> None:
    photos = in_splits(tmp_path, train="a b c", test="a b c")
    for path in (photos / "train" / "c").iterdir():
        path.write_text("nothing")
    message = refusal(photos, on_bad="quarantine", bad_budget=0.5, splits={"val": 0, "test": 0})
    assert "'c' (4 in test, none in train)" in message


@pytest.mark.parametrize(
    ("first", "second"),
    [("café", "cafe\u0301"), ("Cat", "cat"), ("cat", "cat "), ("hot dog", "hot  dog")],
)
def test_class_names_that_look_alike_are_named_together(
    photos: Path, first: str, second: str
) -> None:
    (photos / "class_0").rename(photos / first)
    (photos / "class_1").rename(photos / second)
    message = refusal(photos)
    assert "class names differ in more than case, blanks or Unicode's spelling: 1 of 3" in message
    assert f"looks like {second!r}" in message or f"looks like {first!r}" in message
    assert "list all class names under `classes:` in params.yaml" in message
    validated(photos, classes=(first, second, "class_2"))


def test_names_that_cannot_be_told_apart_are_spelled_out(photos: Path) -> None:
    (photos / "class_0").rename(photos / "café")
    (photos / "class_1").rename(photos / "cafe\u0301")
    assert r"spelled 'cafe\u0301' and 'caf\xe9'" in refusal(photos)


def test_names_listed_in_part_are_still_refused(photos: Path) -> None:
    for number, name in enumerate(("a", "A")):
        (photos / f"class_{number}").rename(photos / name)
    assert "looks like" in refusal(photos, classes=("a", "class_2"))
    validated(photos, classes=("a", "A", "class_2"))


def test_labels_of_a_table_that_look_alike_are_refused(photos: Path) -> None:
    rows = [
        f"class_{c}/{i}.png,{'Cat' if i % 3 == 0 and c == 0 else ('cat', 'dog', 'cow')[c]}"
        for c in range(3)
        for i in range(10)
    ]
    (photos / "list.csv").write_text("path,label\n" + "\n".join(rows) + "\n")
    assert "'Cat' (looks like 'cat'" in refusal(photos)


def few(folder: Path, classes: int, images: int) -> Path:
    for label in range(classes):
        for i in range(images):
            write_image(folder / "photos" / f"k{label}" / f"{i}.png", 100 * label + i)
    return folder / "photos"


@pytest.mark.parametrize(
    ("images", "splits"),
    [
        (3, {"train": 6, "val": 6, "test": 6}),
        (4, {"train": 12, "val": 6, "test": 6}),
        (5, {"train": 18, "val": 6, "test": 6}),
    ],
)
def test_few_images_of_a_class_are_enough(
    tmp_path: Path, images: int, splits: dict[str, int]
) -> None:
    shares = {"val": 0.1, "test": 0.3}
    assert validated(few(tmp_path, 6, images), splits=shares).splits == splits


def test_classes_too_small_to_be_measured_are_named(tmp_path: Path) -> None:
    photos = few(tmp_path, 3, 5)
    for i in (2, 3, 4):
        shutil.copy(photos / f"k0/{i % 2}.png", photos / f"k0/{i}.png")
    validated(photos)
    notes = json.loads((tmp_path / "validation" / "validation.json").read_text())["notes"]
    assert notes[0].startswith("class 'k0' has fewer than 3 distinct images, copies counted once")


def test_combinations_of_labels_keep_their_splits_unless_one_stays_empty(tmp_path: Path) -> None:
    photos = few(tmp_path, 1, 40)
    names = ["a|b"] * 3 + ["a"] * 37
    rows = [f"k0/{i}.png,{name}" for i, name in enumerate(names)]
    (photos / "list.csv").write_text("path,labels\n" + "\n".join(rows) + "\n")
    validated(photos, splits={"val": 0.1, "test": 0.1}, min_classes=1)
    both = {row["split"] for row in manifest_rows(photos) if row["labels"] == ["a", "b"]}
    assert both == {"train"}
    (photos / "list.csv").write_text("path,labels\n" + "\n".join(rows[:6]) + "\n")
    counts = validated(photos, splits={"val": 0.1, "test": 0.1}, min_classes=1)
    assert counts.splits == {"train": 2, "val": 2, "test": 2}


def test_one_photo_with_two_labels_is_a_conflict_of_both(photos: Path) -> None:
    shutil.copy(photos / "class_0" / "0.png", photos / "class_1" / "twin.png")
    counts = validated(photos)
    assert counts.flags == {"duplicate_with_other_label": 1, "label_conflict": 2}
    flags = {row["path"]: row["flags"] for row in manifest_rows(photos)}
    assert flags["class_0/0.png"] == [
        "label_conflict: 'class_0' here, 'class_1' as class_1/twin.png, which has the same pixels"
    ]
    assert flags["class_1/twin.png"][0] == (
        "label_conflict: 'class_1' here, 'class_0' as class_0/0.png, which has the same pixels"
    )
