"""Weights brought from wherever they are: whole, checked, or one line."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from bigtransfer.artifacts.weights import require_weights
from bigtransfer.errors import BigTransferError, ConfigError, StorageError
from bigtransfer.storage import new_folder, sha256_file, verify_folder
from bigtransfer.storage.copying import copy_here


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None: ...


@pytest.fixture
def there(tmp_path: Path) -> Path:
    """A published file, and a checkpoint folder."""
    place = tmp_path / "there"
    with new_folder(place / "checkpoint") as folder:
        (folder / "weights.safetensors").write_bytes(b"w" * 5000)
        (folder / "meta.json").write_text("{}")
    (place / "BiT.npz").write_bytes(b"npz" * 1000)
    return place


@pytest.fixture
def bucket(there: Path, s3: Any) -> str:
    for path in there.rglob("*"):
        if path.is_file():
            s3.upload_file(str(path), "photos", f"bit/{path.relative_to(there).as_posix()}")
    s3.put_object(Bucket="photos", Key="bit/BiT.npz.bak", Body=b"another")
    return "s3://photos/bit"


@pytest.fixture
def web(there: Path) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(there)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_file_from_anywhere_lies_alone_in_the_folder(
    there: Path, bucket: str, web: str, tmp_path: Path
) -> None:
    known = sha256_file(there / "BiT.npz")
    places = (f"{bucket}/BiT.npz", f"{web}/BiT.npz", str(there / "BiT.npz"),
              (there / "BiT.npz").as_uri())  # fmt: skip
    for number, address in enumerate(places):
        folder = tmp_path / str(number)
        assert copy_here(address, folder, known) == known
        assert [path.name for path in folder.iterdir()] == ["BiT.npz"]


def test_a_folder_is_checked_file_by_file(
    there: Path, bucket: str, s3: Any, tmp_path: Path
) -> None:
    known = verify_folder(there / "checkpoint")
    for number, address in enumerate((f"{bucket}/checkpoint", str(there / "checkpoint"))):
        assert copy_here(address, tmp_path / str(number), known) == known
        assert verify_folder(tmp_path / str(number)) == known
    s3.put_object(Bucket="photos", Key="bit/checkpoint/weights.safetensors", Body=b"w" * 4999)
    with pytest.raises(StorageError, match=r"has 4,999 bytes"):
        copy_here(f"{bucket}/checkpoint", tmp_path / "damaged")
    assert not (tmp_path / "damaged").exists()


def test_what_is_not_there_or_another_is_one_line(
    there: Path, bucket: str, web: str, tmp_path: Path
) -> None:
    wrong: list[tuple[str, str | None, type[BigTransferError], str]] = [
        (f"{bucket}/BiT", None, StorageError, "holds nothing; correct the bucket"),
        ("s3://nowhere/BiT", None, StorageError, "no such bucket"),
        (f"{web}/none.npz", None, ConfigError, "404"),
        (str(there / "none"), None, StorageError, "does not exist"),
        ("ftp://b/w", None, ConfigError, "unknown scheme 'ftp'"),
        (f"{bucket}/BiT.npz", "a" * 64, StorageError, "was asked for"),
        (str(there / "checkpoint"), "a" * 64, StorageError, "was asked for"),
    ]
    for address, sha256, kind, message in wrong:
        with pytest.raises(kind, match=message):
            copy_here(address, tmp_path / "out", sha256)
        assert not (tmp_path / "out").exists()


def test_what_cannot_be_weights_is_refused_before_it_is_handed_on(tmp_path: Path) -> None:
    def folder(name: str, **files: bytes) -> Path:
        (tmp_path / name).mkdir()
        for file, data in files.items():
            (tmp_path / name / file).write_bytes(data)
        return tmp_path / name

    with pytest.raises(StorageError, match="a login page, or another file"):
        require_weights(folder("page", weights=b"<!doctype html>"), "https://w/BiT.npz")
    with pytest.raises(StorageError, match="holds 2 files and no MANIFEST.json"):
        require_weights(folder("two", a=b"PK\x03\x04", b=b"PK\x03\x04"), "s3://b/w")
    found = folder("zip", download=b"PK\x03\x04 and more")
    require_weights(found, "https://w/download?id=3")
    assert [path.name for path in found.iterdir()] == ["weights.npz"]
