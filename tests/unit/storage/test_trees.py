"""Trees of files on this disk, and how addresses are read."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bigtransfer.storage.dvc_version import split_address
from bigtransfer.storage.tree import safe_name
from bigtransfer.storage.trees import LocalTree


def test_local_files_folders_and_what_is_passed_over(tmp_path: Path) -> None:
    for name in ("a/1.png", "a/.hidden", "b/Thumbs.db", "b/c/2.png"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    os.symlink(tmp_path, tmp_path / "a" / "loop")
    found = LocalTree(tmp_path).contents()
    assert [f.path for f in found.files] == ["a/1.png", "b/c/2.png"]
    assert found.folders == ["a", "b", "b/c"]
    assert found.loops == ("a/loop",)
    assert found.ignored == 2
    assert LocalTree(tmp_path).read("b/c/2.png", 2, 3) == b"c/2"
    with pytest.raises(OSError, match="only 9 of 20 bytes"):
        LocalTree(tmp_path).read("b/c/2.png", 0, 20)


@pytest.mark.parametrize(
    ("url", "parts"),
    [
        ("dvc:///home/me/photos.git@v1/data/x", ("/home/me/photos.git", "v1", "data/x")),
        ("dvc://https://host/me/photos@main/data", ("https://host/me/photos", "main", "data")),
        ("dvc://git@host:me/photos@v1/data", ("git@host:me/photos", "v1", "data")),
        ("dvc://https://host/me/photos.git/data/x", ("https://host/me/photos.git", None, "data/x")),
        ("dvc://git@host:me/photos.git/data", ("git@host:me/photos.git", None, "data")),
    ],
)
def test_addresses_of_dvc_versions(url: str, parts: tuple[str, str | None, str]) -> None:
    assert split_address(url) == parts


def test_safe_names() -> None:
    assert [safe_name(n) for n in ("a/b", "..a", "", "/a", "a/../b")] == [
        True, True, False, False, False,
    ]  # fmt: skip


def test_hidden_folders_are_counted(tmp_path: Path) -> None:
    for name in ("a/1.png", ".cache/x", "a/.old/y", "__MACOSX/a/._1.png"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    found = LocalTree(tmp_path).contents()
    assert ([f.path for f in found.files], found.ignored) == (["a/1.png"], 3)
