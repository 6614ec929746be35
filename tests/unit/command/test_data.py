from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from bigtransfer.api.transfer import DEFAULTS
from bigtransfer.config import read_yaml
from bigtransfer.data.packing import write_shards
from bigtransfer.data.shard_plan import Packing
from fixtures.commands import call
from fixtures.datasets import validated
from fixtures.images import write_image
from fixtures.project import PROJECT, SHARED


def test_defaults_have_the_keys_of_params() -> None:
    own, whole = read_yaml(DEFAULTS), read_yaml(PROJECT / "params.yaml")
    assert own.keys() == {"data", "finetune", "evaluate"}
    for section, values in own.items():
        assert values.keys() == whole[section].keys()


def test_good_folder_passes_and_every_file_has_a_verdict(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = photos.parent / "out.json"
    assert call("data", "check", photos, "--json", out, "--report", photos.parent / "page") == 0
    said = capsys.readouterr().out
    assert "30 usable of 30 images, 3 classes (folders)" in said
    assert re.search(r"class_2 +10 +0", said)
    assert f"the gate says yes; next: bigtransfer finetune {photos} --weights" in said
    found = json.loads(out.read_text())
    assert {f["verdict"] for f in found["files"]} == {"flag"}  # 12 pixels are few
    assert len(found["files"]) == 30
    assert (photos.parent / "page" / "index.html").is_file()


def test_bad_folder_is_exit_3_and_the_json_is_written_first(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "class_0" / "bad.png").write_text("<html>")
    shutil.copy(photos / "class_0" / "1.png", photos / "class_0" / "copy.png")
    out = photos.parent / "out.json"
    assert call("data", "check", photos, "--json", out) == 3
    said = capsys.readouterr()
    assert "class_0/bad.png: not an image (an HTML or XML page)" in said.out
    assert "copies: 1 pair with the same pixels" in said.out
    assert "every file is a usable image: 1 of 32 fail" in said.err
    files = {f["path"]: f for f in json.loads(out.read_text())["files"]}
    assert files["class_0/bad.png"] == {
        "path": "class_0/bad.png", "verdict": "reject",
        "reasons": ["not an image (an HTML or XML page)"],
    }  # fmt: skip
    assert "duplicate: same pixels as class_0/1.png" in files["class_0/copy.png"]["reasons"]
    assert call("data", "check", photos, "--quarantine", "0.05") == 0


def test_leak_across_splits_is_exit_3(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = photos.parent / "split"
    shutil.copytree(photos, root / "train")
    for label in range(3):
        write_image(root / "test" / f"class_{label}" / "new.png", 900 + label)
    shutil.copy(photos / "class_1" / "4.png", root / "test" / "class_1" / "seen.png")
    assert call("data", "check", root, "--json", photos.parent / "out.json") == 3
    said = capsys.readouterr()
    assert "test/class_1/seen.png: same pixels as 'train/class_1/4.png' in train" in said.out
    files = json.loads((photos.parent / "out.json").read_text())["files"]
    (leaking,) = [f for f in files if f["verdict"] == "reject"]
    assert leaking["reasons"][0] == "leak: same pixels as 'train/class_1/4.png' in train"


def test_missing_folder_and_empty_class(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("data", "check", photos / "nothing") == 2
    (photos / "class_9").mkdir()
    assert call("data", "check", photos) == 3
    assert "at least 1 image in every class: 1 of 4 fail: 'class_9' (0)" in capsys.readouterr().err


def test_flat_folder_is_one_unnamed_class(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for i in range(3):
        write_image(tmp_path / f"{i}.png", i)
    assert call("data", "check", tmp_path) == 0
    assert "3 usable of 3 images, 1 class (flat)" in capsys.readouterr().out


@pytest.mark.skipif(not (SHARED / "data/odd-images").is_dir(), reason="needs ../shared/data")
def test_odd_images_get_their_verdicts(tmp_path: Path) -> None:
    folder = SHARED / "data" / "odd-images"
    assert call("data", "check", folder, "--json", tmp_path / "out.json") == 3
    found = {f["path"]: f for f in json.loads((tmp_path / "out.json").read_text())["files"]}
    for listed in json.loads((folder / "manifest.json").read_text()):
        wanted = listed.get("expect", "").split(" ")[0].strip(";")
        verdict, reasons = found[listed["file"]]["verdict"], found[listed["file"]]["reasons"]
        if wanted == "accept":  # but several are copies of one photograph, turned, or transparent
            kinds = {reason.partition(":")[0].partition("_with")[0] for reason in reasons}
            said = {"duplicate", "near_duplicate", "orientation", "transparent"}
            assert kinds <= said, (listed["file"], reasons)
        elif wanted:
            assert verdict == wanted, (listed["file"], reasons)


def test_show_looks_into_shards(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    validated(photos)
    shards = photos.parent / "shards"
    write_shards(photos, photos.parent / "manifest.parquet", shards, Packing(4000, None, 0))
    assert call("data", "show", shards / "index.parquet", "--limit", "2", "--label", "class_1",
                "--extract", photos.parent / "some") == 0  # fmt: skip
    said = capsys.readouterr().out
    assert "30 images, 3 classes" in said and "10 samples" in said
    assert said.count("class_1  (class_1/") == 2
    extracted: Any = sorted((photos.parent / "some").iterdir())
    originals = {p.read_bytes() for p in (photos / "class_1").iterdir()}
    assert len(extracted) == 2 and {p.read_bytes() for p in extracted} <= originals
    assert call("data", "show", shards, "--label", "clas_1") == 2
    assert "no class 'clas_1' in these shards; did you mean 'class_1'" in capsys.readouterr().err


@pytest.mark.parametrize("target", ["photos", "photos/class_0", ".", "other"])
def test_nothing_of_the_users_is_written_over(
    photos: Path, target: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos.parent / "other").mkdir()
    (photos.parent / "other" / "precious").touch()
    before = sorted(photos.parent.rglob("*"))
    assert call("data", "check", photos, "--report", photos.parent / target) == 2
    assert call("data", "check", photos, "--json", photos.parent / target) == 2
    assert sorted(photos.parent.rglob("*")) == before
    assert "give" in capsys.readouterr().err


def checked(capsys: pytest.CaptureFixture[str], *words: Any) -> tuple[int, str]:
    code = call("data", "check", *words)
    out, err = capsys.readouterr()
    return code, out + err


def test_label_conflicts_stand_under_their_own_heading(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(photos / "class_0" / "0.png", photos / "class_1" / "twin.png")
    code, said = checked(capsys, photos)
    assert code == 0
    conflicts = said.partition("label conflicts: one image, two labels (2):")[2]
    assert "class_0/0.png: 'class_0' here, 'class_1' as class_1/twin.png" in conflicts
    assert "duplicate_with_other_label" not in said


def test_notes_and_hidden_files_are_said_before_the_classes(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos.parent / "box" / "animals").mkdir(parents=True)
    photos.rename(photos.parent / "box" / "animals" / "photos")
    (photos.parent / "box" / ".DS_Store").touch()
    code, said = checked(capsys, photos.parent / "box")
    assert code == 0
    head = said.partition("  class ")[0]
    assert "everything lies in the folder 'animals/photos'; what is in it is read" in head
    assert "passed over: 1 hidden or system files and folders" in head


@pytest.mark.parametrize(
    ("keep", "images", "last"),
    [
        (3, 10, "the gate says yes; next: bigtransfer finetune "),
        (1, 10, "before `finetune`: there must be 2 classes at least"),
        (3, 2, "before `finetune`: 3 classes ('class_0', 'class_1', 'class_2') have fewer than 3"),
    ],
)
def test_last_line_leads_on(
    photos: Path, keep: int, images: int, last: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for label in range(keep, 3):
        shutil.rmtree(photos / f"class_{label}")
    for path in photos.rglob("*.png"):
        if int(path.stem) >= images:
            path.unlink()
    code, said = checked(capsys, photos)
    assert code == 0
    assert last in said.rstrip().splitlines()[-1]
    assert "params.yaml" not in said


def test_splits_that_lack_are_said_in_the_last_line(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos.parent / "s").mkdir()
    photos.rename(photos.parent / "s" / "train")
    code, said = checked(capsys, photos.parent / "s", "--report", photos.parent / "page")
    assert code == 0
    assert said.rstrip().splitlines()[-1].endswith("there is no split 'test'")


def test_no_splits_are_claimed_that_were_not_made(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert checked(capsys, photos, "--report", photos.parent / "page")[0] == 0
    page = (photos.parent / "page" / "index.html").read_text("utf-8")
    assert "No splits were made." in page and "Splits were made here" not in page


def test_empty_folder_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, said = checked(capsys, tmp_path)
    assert code == 2 and said.count("\n") == 1 and "holds nothing" in said


def test_copies_alone_are_no_three_images(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for label in range(3):
        for i in range(1, 10):
            shutil.copy(photos / f"class_{label}/0.png", photos / f"class_{label}/{i}.png")
    code, said = checked(capsys, photos)
    assert code == 0
    assert "3 classes ('class_0', 'class_1', 'class_2') have fewer than 3 distinct images" in said
    assert said.rstrip().endswith("no class has 3 images that are no copies, one for each split")


def test_share_of_bad_files_is_given_as_their_number(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for i in range(2):
        (photos / "class_0" / f"bad{i}.png").write_text("<html>")
    code, said = checked(capsys, photos, "--quarantine", "0.01")
    assert code == 3
    assert "unusable (2):" in said and "at most 1 % unusable images: 1 of 1 fail: '2 of 32'" in said
