from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from bigtransfer import storage
from bigtransfer.errors import InfrastructureError, LockError, StorageError


def fill(folder: Path) -> None:
    with storage.new_folder(folder) as partial:
        (partial / "sub").mkdir()
        (partial / "sub" / "a.txt").write_text("alpha")
        (partial / "b.bin").write_bytes(b"\0" * 5000)


def test_folder_appears_whole_and_verifies(tmp_path: Path) -> None:
    fill(tmp_path / "out")
    digest = storage.verify_folder(tmp_path / "out")
    assert digest == storage.digest_of(tmp_path / "out")
    listed = json.loads((tmp_path / "out" / "MANIFEST.json").read_text())["files"]
    assert sorted(listed) == ["b.bin", "sub/a.txt"]


def test_failed_block_leaves_the_old_folder_and_nothing_else(tmp_path: Path) -> None:
    fill(tmp_path / "out")
    before = storage.digest_of(tmp_path / "out")
    with pytest.raises(RuntimeError), storage.new_folder(tmp_path / "out") as partial:
        (partial / "half").write_text("x")
        raise RuntimeError
    assert storage.verify_folder(tmp_path / "out") == before
    assert os.listdir(tmp_path) == ["out"]


def test_leftover_of_a_killed_writer_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".out.partial-1").mkdir()
    fill(tmp_path / "out")
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "b.bin").write_bytes(b"\0" * 4999 + b"\1"), "b.bin' is damaged: sha256"),
        (
            lambda f: (f / "b.bin").write_bytes(b"\0" * 4999),
            "4,999 bytes, MANIFEST.json says 5,000",
        ),
        (lambda f: (f / "b.bin").unlink(), "b.bin' is missing though MANIFEST.json lists it"),
        (lambda f: (f / "MANIFEST.json").unlink(), "has no MANIFEST.json, so it is not complete"),
        (lambda f: (f / "MANIFEST.json").write_text("{"), "MANIFEST.json' is damaged"),
    ],
)
def test_damage_is_named(tmp_path: Path, damage: object, message: str) -> None:
    fill(tmp_path / "out")
    damage(tmp_path / "out")  # type: ignore[operator]  # parametrized lambdas
    with pytest.raises(StorageError) as caught:
        storage.verify_folder(tmp_path / "out")
    assert message in str(caught.value)


def test_file_in_the_way_of_a_folder_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match="cannot write .*file/out"):
        storage.write_text(tmp_path / "file" / "out.json", "x")


def test_full_disk_says_so_and_keeps_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.write_text(tmp_path / "a.json", "old")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InfrastructureError, match="the disk is full while writing"):
        storage.write_text(tmp_path / "a.json", "new")
    assert (tmp_path / "a.json").read_text() == "old"
    assert os.listdir(tmp_path) == ["a.json"]


def test_second_holder_of_a_lock_is_told_the_first_ones_pid(tmp_path: Path) -> None:
    with (
        storage.lock(tmp_path / "x.lock", "the output of pretrain"),
        pytest.raises(LockError) as caught,
        storage.lock(tmp_path / "x.lock", "the output of pretrain"),
    ):
        pass
    assert caught.value.exit_code == 4
    assert f"is being written by pid {os.getpid()} (since 20" in str(caught.value)
    assert f"`kill {os.getpid()}`" in str(caught.value)
    with storage.lock(tmp_path / "x.lock", "again"):
        pass


def test_digest_of_an_unsealed_folder_sees_names_and_bytes(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1")
    first = storage.digest_of(tmp_path)
    (tmp_path / "a").rename(tmp_path / "b")
    assert storage.digest_of(tmp_path) != first


def test_csv_leaves_absent_values_empty() -> None:
    assert storage.as_csv([{"a": 1}, {"a": 2, "b": 3}]) == "a,b\n1,\n2,3\n"
