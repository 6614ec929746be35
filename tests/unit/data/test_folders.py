from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest

from bigtransfer.data.sources.listing import Source
from bigtransfer.data.sources.opening import open_source
from bigtransfer.errors import DatasetError
from fixtures.images import write_image


def put(root: Path, *folders: str, count: int = 2) -> Path:
    """Write some images into each folder, no two alike."""
    for folder in folders:
        for i in range(count):
            seed = sum(path.is_file() for path in root.rglob("*")) if root.exists() else 0
            write_image(root / folder / f"{i}.png", seed)
    return root


def held(source: Source) -> dict[tuple[str | None, str], int]:
    return dict(Counter((image.split, image.labels[0]) for image in source.images))


def refusal(root: Path, layout: str = "auto") -> str:
    with pytest.raises(DatasetError) as caught:
        open_source(root, layout)
    return str(caught.value)


def test_linked_class_folder_is_followed(tmp_path: Path) -> None:
    put(tmp_path / "real", "cat", "dog")
    (tmp_path / "photos").mkdir()
    for name in ("cat", "dog"):
        (tmp_path / "photos" / name).symlink_to(tmp_path / "real" / name)
    source = open_source(tmp_path / "photos")
    assert held(source) == {(None, "cat"): 2, (None, "dog"): 2}
    assert source.notes == ()


def test_linked_folder_in_a_class_and_linked_split_are_followed(tmp_path: Path) -> None:
    put(tmp_path / "more", "cat", "dog", count=3)
    root = put(tmp_path / "photos", "train/cat", "train/dog", "test/cat", "test/dog")
    (root / "val").symlink_to(tmp_path / "more")
    (root / "train/cat/old").symlink_to(tmp_path / "more" / "dog")
    found = held(open_source(root))
    assert found["val", "cat"] == found["val", "dog"] == 3
    assert found["train", "cat"] == 5


@pytest.mark.parametrize("to", [".", "..", "../..", "../../.."])
def test_link_that_leads_back_is_named_and_ends(tmp_path: Path, to: str) -> None:
    root = put(tmp_path / "photos", "a", "b")
    os.symlink(to, root / "a" / "back")
    source = open_source(root)
    assert held(source) == {(None, "a"): 2, (None, "b"): 2}
    assert source.notes == (
        "the link 'a/back' leads back to a folder above it; it is not followed",
    )


def test_two_folders_that_link_to_each_other_end(tmp_path: Path) -> None:
    root = put(tmp_path / "photos", "a", "b")
    os.symlink("../b", root / "a" / "to_b")
    os.symlink("../a", root / "b" / "to_a")
    source = open_source(root)
    assert held(source) == {(None, "a"): 4, (None, "b"): 4}
    assert "'a/to_b/to_a'" in source.notes[0] and "'b/to_a/to_b'" in source.notes[1]


def test_broken_link_to_a_folder_is_named(tmp_path: Path) -> None:
    root = put(tmp_path / "photos", "a", "b")
    os.symlink("gone", root / "val")
    assert "'val' cannot be read: a link that leads nowhere: mend or remove it" in refusal(root)
    (root / "val").rename(root / "a" / "val")
    (broken,) = [image for image in open_source(root).images if image.fault]
    assert (broken.path, broken.fault) == ("a/val", "cannot be read: a link that leads nowhere")


@pytest.mark.parametrize(
    "names",
    [
        ("train_images", "test_images"),
        ("Training set", "Test set"),
        ("trainImages", "valImages", "testImages"),
        ("train", "test_images"),
        ("01-train", "02-val"),
        ("trainset", "testset"),
    ],
)
def test_folders_named_by_splits_are_splits(tmp_path: Path, names: tuple[str, ...]) -> None:
    root = put(tmp_path / "photos", *(f"{name}/{label}" for name in names for label in "ab"))
    source = open_source(root)
    assert source.has_splits and source.labels == ["a", "b"]
    assert {split for split, _ in held(source)} <= {"train", "val", "test"}
    assert len({split for split, _ in held(source)}) == len(names)
    assert source.notes[0].startswith("folders are read as splits by their names: ")
    assert open_source(root, source.layout).read is not None  # packing opens it so


@pytest.mark.parametrize(
    "folders",
    [
        ("train_images/a", "train_images/b", "test_images/a"),  # other classes in each
        ("train_images", "test_images"),  # no classes at all
        ("train_images/a", "train_images/b", "extra/a", "extra/b"),
        ("train_images/a", "test_images/a"),  # one class
        ("trainval_images/a", "trainval_images/b", "test_images/a", "test_images/b"),
        ("train_images/a", "train_images/b", "c"),
        ("train engine", "test tube"),
    ],
)
def test_folders_that_may_be_splits_or_classes_are_asked_about(
    tmp_path: Path, folders: tuple[str, ...]
) -> None:
    message = refusal(put(tmp_path / "photos", *folders))
    assert "can be read in two ways" in message
    for part in ("may be splits, by their names, or classes", "rename the folders to train, val",
                 "layout: folders"):  # fmt: skip
        assert part in message
    told = open_source(tmp_path / "photos", "folders")
    assert set(told.labels) == {folder.partition("/")[0] for folder in folders}


@pytest.mark.parametrize("name", ["test tube", "bullet train", "train", "trains", "Dev"])
def test_class_named_like_a_split_stays_a_class_among_others(tmp_path: Path, name: str) -> None:
    source = open_source(put(tmp_path / "photos", "beaker", "flask", name))
    assert set(source.labels) == {"beaker", "flask", name}
    assert not source.has_splits
    said = [f"read as classes, not as splits, although so named: {name!r}"]
    assert list(source.notes) == (said if name != "trains" else [])


def test_wrapper_folders_are_looked_through(tmp_path: Path) -> None:
    root = put(tmp_path / "photos", "zip/animals/cat", "zip/animals/dog")
    write_image(root / "__MACOSX/zip/animals/cat/._0.png", 9)
    source = open_source(root)
    assert held(source) == {(None, "cat"): 2, (None, "dog"): 2}
    assert source.notes == ("everything lies in the folder 'zip/animals'; what is in it is read",)
    assert source.images[0].path == "zip/animals/cat/0.png"
    again = open_source(root, source.layout)
    assert [i.file for i in again.images] == [i.file for i in source.images]


def test_splits_in_a_wrapper_folder_are_found(tmp_path: Path) -> None:
    root = put(tmp_path / "p", *(f"animals/{s}/{c}" for s in ("train", "test") for c in "ab"))
    assert held(open_source(root)) == {
        ("train", "a"): 2, ("train", "b"): 2, ("test", "a"): 2, ("test", "b"): 2,
    }  # fmt: skip


def test_wrapper_with_a_stray_file_is_asked_about(tmp_path: Path) -> None:
    root = put(tmp_path / "photos", "animals/cat", "animals/dog")
    (root / "animals/README.txt").write_text("by me")
    message = refusal(root)
    assert "the upper ones (animals) or the lower ones (cat, dog)" in message


def test_lone_class_and_lone_split_are_no_wrappers(tmp_path: Path) -> None:
    assert open_source(put(tmp_path / "one", "cat")).labels == ["cat"]
    assert open_source(put(tmp_path / "deep", "cat/images")).labels == ["cat"]
    source = open_source(put(tmp_path / "split", "train/a", "train/b"))
    assert source.labels == ["a", "b"] and source.has_splits


@pytest.mark.parametrize(
    "folders",
    [
        ("fruit/apple", "fruit/pear", "vegetable/leek"),
        ("day/cat", "day/dog", "night/cat", "night/dog"),
        ("train/animals/cat", "train/animals/dog", "test/animals/cat", "test/animals/dog"),
        ("fruit/apple", "fruit/pear", "stone"),
        ("images/cat", "images/dog", "masks"),
        ("train/fruit/apple", "train/stone/flint", "test/fruit/apple", "test/stone/flint"),
    ],
)
def test_two_levels_of_class_folders_are_asked_about(
    tmp_path: Path, folders: tuple[str, ...]
) -> None:
    message = refusal(put(tmp_path / "photos", *folders))
    assert "has two levels of folders: the classes may be the upper ones (" in message
    assert "layout: folders" in message and "move them side by side" in message
    told = open_source(tmp_path / "photos", "folders")
    assert "they count as images of the upper folder's class" in told.notes[-1]


def test_one_more_folder_of_the_same_name_in_every_class_is_no_level(tmp_path: Path) -> None:
    source = open_source(
        put(tmp_path / "tiny", "train/n1/images", "train/n2/images", "val/n1/images")
    )
    assert source.labels == ["n1", "n2"] and source.notes == ()


def test_folders_beside_images_of_a_class_are_said(tmp_path: Path) -> None:
    source = open_source(put(tmp_path / "photos", "cat", "cat/old", "dog"))
    assert held(source) == {(None, "cat"): 4, (None, "dog"): 2}
    assert source.notes[0].startswith(
        "2 files lie in folders below class folders, e.g. in 'cat/old'"
    )


def test_unlabelled_test_images_are_told_from_misplaced_ones(tmp_path: Path) -> None:
    root = put(tmp_path / "photos", "train/a", "train/b", "test")
    message = refusal(root)
    assert "split folder 'test'" in message and "without labels nothing can be measured" in message


def test_an_empty_folder_is_said_to_be_empty(tmp_path: Path) -> None:
    for allowed in (False, True):
        with pytest.raises(DatasetError, match="holds nothing; put images into it"):
            open_source(tmp_path, flat_allowed=allowed)
    (tmp_path / ".DS_Store").touch()
    assert "holds nothing but hidden or system files (1)" in refusal(tmp_path)


def test_archives_and_tables_beside_folders_say_what_to_give(tmp_path: Path) -> None:
    root = put(tmp_path / "photos", "a", "b")
    (root / "photos.zip").write_bytes(b"PK")
    assert "holds the archive 'photos.zip' beside other files" in refusal(root)
    (root / "photos.zip").unlink()
    for name in ("train.csv", "test.csv"):
        (root / name).write_text("path,label\n")
    assert "holds 2 tables (test.csv, train.csv); give the path of the one" in refusal(root)
    boxed = put(tmp_path / "boxed", "set/images")
    (boxed / "set" / "list.csv").write_text("path,label\nimages/0.png,a\n")
    assert f"give '{boxed}/set/list.csv'" in refusal(boxed)
    assert len(open_source(boxed / "set/list.csv").images) == 1


def test_class_order_is_natural(tmp_path: Path) -> None:
    root = put(tmp_path / "photos", *(str(n) for n in range(12)), count=1)
    assert open_source(root).labels == [str(n) for n in range(12)]
