"""A folder as a few tar files: the same bytes, the same digest, read where they lie."""

from __future__ import annotations

import os
import shutil
import tarfile
from pathlib import Path

import pytest

from bigtransfer.errors import StorageError
from bigtransfer.storage import digest_of, new_folder, verify_folder, volumes
from bigtransfer.storage.local import VOLUMES_NAME
from bigtransfer.storage.trees import LocalTree, open_tree
from bigtransfer.storage.volumes import is_packed, pack, unpack

NAMES = ("a/1.png", "a/ü €.png", "b/" + "long" * 40 + ".png", "b/empty.png", ".hidden/x", "c.txt",
         "b/carriage\rreturn.png", "b/new\nline.png", 'b/quote".png')  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with names that are hard on tar, an empty file and an empty folder."""
    path = tmp_path / "folder"
    for number, name in enumerate(NAMES):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(b"" if "empty" in name else os.urandom(700 * number + 1))
    (path / "class without images").mkdir()
    return path


@pytest.fixture
def several(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a volume be full after two files or so."""
    monkeypatch.setattr(volumes, "_VOLUME_BYTES", 1500)


@pytest.mark.usefixtures("several")
def test_read_where_it_lies_as_the_folder_itself(folder: Path, tmp_path: Path) -> None:
    before = shutil.copytree(folder, tmp_path / "before")
    digest = digest_of(folder)
    pack(folder)
    assert is_packed(folder) and digest_of(folder) == digest
    assert len(list(folder.glob("volume-*.tar"))) > 1
    here, there = open_tree(folder), LocalTree(before)
    assert here.contents() == there.contents()
    for file in there.contents().files:
        assert here.read(file.path) == there.read(file.path)
        middle = file.bytes // 2
        assert here.read(file.path, middle, file.bytes - middle) == there.read(file.path, middle)
    with pytest.raises(OSError, match="only"):
        here.read("a/1.png", 0, 2)


@pytest.mark.usefixtures("several")
def test_unpacked_is_what_was_packed(folder: Path, tmp_path: Path) -> None:
    before = {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    pack(folder)
    again = unpack(folder, tmp_path / "again")
    assert {p.relative_to(again): p.read_bytes() for p in again.rglob("*") if p.is_file()} == before
    assert (again / "class without images").is_dir()
    assert unpack(folder, tmp_path / "again") == again


def test_the_same_folder_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    other = shutil.copytree(folder, tmp_path / "other")
    for path in other.rglob("*"):
        os.utime(path, (1, 1))
    pack(folder)
    pack(other)
    assert verify_folder(folder) == verify_folder(other)


def test_a_sealed_folder_stays_sealed(tmp_path: Path) -> None:
    with new_folder(tmp_path / "sealed") as partial:
        (partial / "weights").write_bytes(b"w" * 100)
    digest = verify_folder(tmp_path / "sealed")
    pack(tmp_path / "sealed")
    assert digest_of(tmp_path / "sealed") == digest
    assert verify_folder(unpack(tmp_path / "sealed", tmp_path / "again")) == digest


def test_a_damaged_volume_is_refused(folder: Path, tmp_path: Path) -> None:
    pack(folder)
    (volume,) = folder.glob("volume-*.tar")
    data = bytearray(volume.read_bytes())
    data[-3000] ^= 1
    volume.write_bytes(data)
    with pytest.raises(StorageError, match="is damaged"):
        unpack(folder, tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_a_link_to_a_folder_is_refused(folder: Path) -> None:
    (folder / "link").symlink_to(folder / "a")
    with pytest.raises(StorageError, match="is a link to a folder"):
        pack(folder)
    assert (folder / "a" / "1.png").is_file()


def test_volumes_are_plain_tars(folder: Path) -> None:
    wanted = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    pack(folder)
    with tarfile.open(folder / "volume-00.tar") as tar:
        assert tar.getnames() == wanted


def test_never_too_many_volumes() -> None:
    sizes = {str(n): 1000 for n in range(10_000)}
    shared = list(volumes._shared_out(sizes, sum(sizes.values()) // volumes._MOST_VOLUMES))
    assert len(shared) <= volumes._MOST_VOLUMES + 1


@pytest.mark.parametrize("text", ['{"Volumes": []}', "[1]", "no JSON"])
def test_a_file_of_that_name_in_somebodys_own_folder_means_nothing(folder: Path, text: str) -> None:
    (folder / VOLUMES_NAME).write_text(text)
    assert not is_packed(folder)
    assert "c.txt" in [file.path for file in open_tree(folder).contents().files]
    assert len(digest_of(folder)) == 64


def test_a_name_that_is_no_text_is_refused(folder: Path) -> None:
    (Path(os.fsdecode(bytes(folder / "a") + b"/\xff.png"))).write_bytes(b"x")
    with pytest.raises(StorageError, match="is no UTF-8 text; rename it"):
        pack(folder)
    assert (folder / "c.txt").is_file()
