from __future__ import annotations

import gzip
import shlex
import tarfile
from collections import Counter
from pathlib import Path

import pytest

from bigtransfer.data.sources.listing import Source
from bigtransfer.data.sources.opening import open_source
from bigtransfer.errors import DatasetError
from fixtures.datasets import pack, validated
from unit.data.test_sources import picture, write_tar


def shard(path: Path, seed: int = 0, prefix: str = "") -> Path:
    """Write a WebDataset archive of two samples."""
    members: dict[str, bytes] = {}
    for i in range(2):
        members[f"{prefix}{seed + i}.png"] = picture(seed + i)
        members[f"{prefix}{seed + i}.cls"] = str(i).encode()
    return write_tar(path, members)


def folders(path: Path, *names: str, seed: int = 0) -> Path:
    """Write an archive of folders with two images each."""
    members = {
        f"{name}/{i}.png": picture(seed + 10 * k + i)
        for k, name in enumerate(names)
        for i in range(2)
    }
    return write_tar(path, members)


def held(source: Source) -> dict[tuple[str | None, str], int]:
    return dict(Counter((image.split, image.labels[0]) for image in source.images))


def refusal(path: Path) -> str:
    with pytest.raises(DatasetError) as caught:
        open_source(path)
    return str(caught.value)


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [
        ("imagenet1k-train-0000", "imagenet1k-validation-00", "imagenet1k-test-0"),
        ("pets_train_000", "pets_val_000", "pets_test_000"),
        ("train-0", "val-0", "test-0"),
        ("0001.training", "0001.dev", "0001.testing"),
        ("train/0", "valid/1", "a/test/b/2"),
        ("PetsTrain2017", "PetsVal2017", "PetsTest2017"),
    ],
)
def test_splits_of_shards_are_told_by_every_word_of_their_names(
    tmp_path: Path, train: str, val: str, test: str
) -> None:
    for seed, name in enumerate((train, val, test)):
        shard(tmp_path / f"{name}.tar", 10 * seed)
    source = open_source(tmp_path)
    assert source.has_splits
    split_of = {image.file: image.split for image in source.images}
    assert split_of == {f"{train}.tar": "train", f"{val}.tar": "val", f"{test}.tar": "test"}


@pytest.mark.parametrize("name", ["train_val-0", "trainval-0", "train/val-0", "test-dev-000"])
def test_name_of_two_splits_is_asked_about(tmp_path: Path, name: str) -> None:
    shard(tmp_path / f"{name}.tar")
    message = refusal(tmp_path)
    assert "its name speaks of 2 splits" in message and "rename it" in message


def test_some_shards_without_a_split_are_refused(tmp_path: Path) -> None:
    shard(tmp_path / "pets_train_0.tar")
    shard(tmp_path / "pets_0.tar", 10)
    assert "'pets_0.tar'" in refusal(tmp_path) and "names no split" in refusal(tmp_path)


def test_class_archive_named_like_a_split_is_said(tmp_path: Path) -> None:
    for label in ("bullet-train", "car"):
        write_tar(tmp_path / f"{label}.tar", {"0.png": picture(len(label))})
    source = open_source(tmp_path, "class_tars")
    assert source.labels == ["bullet-train", "car"]
    assert source.notes == ("the archive 'bullet-train' is read as a class, not as a split",)


def test_names_with_dots_follow_the_rule_of_webdataset(tmp_path: Path) -> None:
    dotted = {}
    for i in range(2):
        dotted |= {f"0.{i}.png": picture(i), f"0.{i}.cls": b"1"}
    message = refusal(write_tar(tmp_path / "d.tar", dotted))
    assert "sample '0' has no label (.cls, .txt or .json), but e.g. '0.0.cls'" in message
    assert "a key ends at the first dot of a name" in message
    good = {"a.left.png": picture(0), "a.cls": b"1"}
    assert len(open_source(write_tar(tmp_path / "good.tar", good)).images) == 1


def test_two_images_of_a_sample_are_named(tmp_path: Path) -> None:
    members = {"a.png": picture(0), "a.seg.png": picture(1), "a.cls": b"1"}
    assert "has 2 images (png, seg.png)" in refusal(write_tar(tmp_path / "d.tar", members))


def test_hidden_folders_in_an_archive_are_passed_over(tmp_path: Path) -> None:
    members = {"a.png": picture(0), "a.cls": b"1", ".old/b.png": picture(1),
               "__MACOSX/c.png": picture(2)}  # fmt: skip
    assert len(open_source(write_tar(tmp_path / "d.tar", members)).images) == 1


def test_class_folders_in_a_tar_are_read_in_place(tmp_path: Path) -> None:
    path = folders(tmp_path / "photos.tar", "photos/cat", "photos/dog")
    for place in (path, tmp_path):
        source = open_source(place)
        assert held(source) == {(None, "cat"): 2, (None, "dog"): 2}
        assert source.notes == ("everything lies in the folder 'photos'; what is in it is read",)
        image = source.images[0]
        assert image.path == "photos/cat/0.png"
        assert source.read(image.file, image.offset, image.length) == picture(0)


def test_tar_of_folders_as_tar_itself_makes_it(tmp_path: Path) -> None:
    for i in range(4):
        target = tmp_path / "photos" / "ab"[i % 2] / f"{i}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(picture(i))
    with tarfile.open(tmp_path / "all.tar", "w") as tar:
        tar.add(tmp_path / "photos", "./photos")
    assert held(open_source(tmp_path / "all.tar")) == {(None, "a"): 2, (None, "b"): 2}


@pytest.mark.parametrize("text", ["README.txt", "a/notes.txt"])
def test_a_text_in_a_tar_of_folders_makes_no_webdataset_of_it(tmp_path: Path, text: str) -> None:
    members = {"a/x.png": picture(0), "b/y.png": picture(1), text: b"by me"}
    path = write_tar(tmp_path / "photos.tar", members)
    if text.startswith("README"):
        assert "holds 1 file beside its class folders, e.g. 'README.txt'" in refusal(path)
    else:
        assert open_source(path).labels == ["a", "b"]


def test_dotted_names_in_folders_of_a_webdataset_are_refused_as_such(tmp_path: Path) -> None:
    members = {"d/0.0.png": picture(0), "d/0.0.cls": b"1"}
    assert "a key ends at the first dot" in refusal(write_tar(tmp_path / "d.tar", members))


def test_splits_in_and_of_tars_of_folders(tmp_path: Path) -> None:
    inside = [f"{split}/{label}" for split in ("train", "test") for label in "ab"]
    expected = {(split, label): 2 for split in ("train", "test") for label in "ab"}
    assert held(open_source(folders(tmp_path / "one" / "pets.tar", *inside))) == expected
    folders(tmp_path / "two" / "pets_train.tar", "a", "b")
    folders(tmp_path / "two" / "pets_test.tar", "a", "b", seed=50)
    source = open_source(tmp_path / "two")
    assert held(source) == expected
    assert len({image.path for image in source.images}) == 8
    folders(tmp_path / "odd" / "train.tar", *inside)
    assert "its name speaks of train, but 'test/a/0.png' in it of test" in refusal(tmp_path / "odd")


def test_tar_of_folders_is_packed_like_any_other(tmp_path: Path) -> None:
    members = {f"{c}/{i}.png": picture(10 * k + i) for k, c in enumerate("ab") for i in range(6)}
    path = write_tar(tmp_path / "photos.tar", members)
    assert validated(path).splits == {"train": 8, "val": 2, "test": 2}
    assert pack(path, tmp_path / "shards").examples == 12


def test_images_without_labels_in_a_tar_say_what_may_be_meant(tmp_path: Path) -> None:
    message = refusal(write_tar(tmp_path / "cat.tar", {"0.png": picture(0)}))
    assert "has no label" in message and "layout: class_tars" in message


@pytest.mark.parametrize(
    ("suffix", "words"),
    [
        (".zip", ["unzip", "-q", "{stem}.zip", "-d", "{stem}"]),
        (".tar.gz", ["gunzip", "{stem}.tar.gz"]),
        (".TGZ", ["gunzip", "{stem}.TGZ"]),
        (".tar.xz", ["unxz", "{stem}.tar.xz"]),
    ],
)
@pytest.mark.parametrize("whole", [True, False])
def test_compressed_archives_give_the_command_that_unpacks_them(
    tmp_path: Path, suffix: str, words: list[str], whole: bool
) -> None:
    stem = tmp_path / "my photos"
    path = Path(f"{stem}{suffix}")
    plain = folders(tmp_path / "plain", "cat", "dog")
    path.write_bytes(gzip.compress(plain.read_bytes()))
    plain.unlink()
    message = refusal(path if whole else tmp_path)
    assert "\n" not in message and "cannot be read in place; unpack it, then give '" in message
    then, command = message.partition("then give '")[2].split("': ", 1)
    assert shlex.split(command) == [word.format(stem=stem) for word in words]
    assert then == (str(stem) if suffix == ".zip" else f"{stem}.tar")


def test_plain_and_compressed_archives_together(tmp_path: Path) -> None:
    folders(tmp_path / "a.tar", "x", "y")
    (tmp_path / "b.tar.gz").write_bytes(gzip.compress(b""))
    assert f"gunzip {tmp_path}/b.tar.gz" in refusal(tmp_path)


@pytest.mark.parametrize("layout", ["folders", "flat", "webdataset", "class_tars"])
def test_compressed_archives_are_refused_so_under_any_layout(tmp_path: Path, layout: str) -> None:
    (tmp_path / "b.zip").write_bytes(b"PK")
    with pytest.raises(DatasetError, match="unzip -q"):
        open_source(tmp_path, layout)


def test_one_name_in_two_spellings_in_a_tar_is_refused(tmp_path: Path) -> None:
    members = {"a/0.png": picture(0), "b/0.png": picture(1), "./a/0.png": picture(2)}
    assert "holds a name twice" in refusal(write_tar(tmp_path / "d.tar", members))


def test_several_compressed_archives_are_named_in_one_line(tmp_path: Path) -> None:
    for name in "abcde":
        (tmp_path / f"{name}.zip").write_bytes(b"PK")
    message = refusal(tmp_path)
    assert "'a.zip' and 4 more" in message
    assert message.count("unzip -q") == 3 and "\n" not in message
