"""`fetch` against a real HTTP server on the loopback, which misbehaves when told to."""

from __future__ import annotations

import base64
import hashlib
import socket
import subprocess
import threading
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from bigtransfer.errors import (
    CheckpointError,
    ConfigError,
    InfrastructureError,
    LockError,
    StorageError,
)
from bigtransfer.storage import download, lock
from bigtransfer.storage.download import fetch

CONTENT = bytes(range(256)) * 20_000  # 5 MB: several chunks
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Bucket(ThreadingHTTPServer):
    """Serves CONTENT as /weights.npz with ETag, MD5 and ranges, as a public bucket does."""

    content = CONTENT
    etag: str | None = '"v1"'
    cuts: list[int]
    """Bytes after which the next answers break off."""
    failures: list[int]
    """Status codes of the next answers."""
    md5: str | None = None
    """Told instead of the right one."""
    asked: list[str | None]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/weights.npz"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Bucket

    def do_GET(self) -> None:
        bucket, wanted = self.server, self.headers["Range"]
        bucket.asked.append(wanted)
        if self.path != "/weights.npz" or bucket.failures:
            self.send_error(bucket.failures.pop(0) if bucket.failures else 404)
            return
        start = 0
        if wanted and self.headers["If-Range"] == bucket.etag:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
        self.send_response(206 if start else 200)
        body = bucket.content[start:]
        self.send_header("Content-Length", str(len(body)))
        if bucket.etag:
            self.send_header("ETag", bucket.etag)
        digest = hashlib.md5(bucket.content, usedforsecurity=False).digest()
        told = bucket.md5 or base64.b64encode(digest).decode()
        self.send_header("x-goog-hash", "crc32c=AAAAAA==")
        self.send_header("x-goog-hash", f"md5={told}")
        self.end_headers()
        self.wfile.write(body[: bucket.cuts.pop(0)] if bucket.cuts else body)
        self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    monkeypatch.setattr(download, "_FIRST_PAUSE", 0.001)
    with Bucket(("127.0.0.1", 0), Handler) as server:
        server.cuts, server.failures, server.asked = [], [], []
        thread = threading.Thread(target=partial(server.serve_forever, 0.01), daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def left(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if not p.name.endswith(".lock"))


def test_file_and_its_record(bucket: Bucket, tmp_path: Path) -> None:
    found = fetch(bucket.url, tmp_path / "w.npz")
    assert (tmp_path / "w.npz").read_bytes() == CONTENT
    assert (found.sha256, found.num_bytes, found.was_there) == (SHA256, len(CONTENT), False)
    assert left(tmp_path) == ["w.npz", "w.npz.sha256"]
    checked = subprocess.run(
        ["sha256sum", "-c", "w.npz.sha256"], cwd=tmp_path, capture_output=True, check=False
    )
    assert checked.returncode == 0


def test_second_call_asks_nothing(bucket: Bucket, tmp_path: Path) -> None:
    fetch(bucket.url, tmp_path / "w.npz")
    assert fetch(bucket.url, tmp_path / "w.npz").was_there
    assert len(bucket.asked) == 1


def test_broken_connection_goes_on_where_it_broke(bucket: Bucket, tmp_path: Path) -> None:
    bucket.cuts = [1_000_000, 2_000_000]
    fetch(bucket.url, tmp_path / "w.npz")
    assert (tmp_path / "w.npz").read_bytes() == CONTENT
    assert bucket.asked == [None, "bytes=1000000-", "bytes=3000000-"]


def test_next_call_goes_on_where_the_last_one_gave_up(bucket: Bucket, tmp_path: Path) -> None:
    bucket.cuts = [1_500_000, 0, 0, 0, 0, 0]
    with pytest.raises(InfrastructureError, match=r"1,500,000 bytes are kept; run again to go on"):
        fetch(bucket.url, tmp_path / "w.npz")
    assert not (tmp_path / "w.npz").exists()
    bucket.cuts.clear()
    fetch(bucket.url, tmp_path / "w.npz")
    assert bucket.asked[-1] == "bytes=1500000-"
    assert (tmp_path / "w.npz").read_bytes() == CONTENT


def test_file_that_changed_meanwhile_is_begun_anew(bucket: Bucket, tmp_path: Path) -> None:
    bucket.cuts = [1_500_000, 0, 0, 0, 0, 0]
    with pytest.raises(InfrastructureError):
        fetch(bucket.url, tmp_path / "w.npz")
    bucket.cuts.clear()
    bucket.content, bucket.etag = CONTENT[::-1], '"v2"'
    fetch(bucket.url, tmp_path / "w.npz")
    assert (tmp_path / "w.npz").read_bytes() == CONTENT[::-1]


def test_server_without_marks_is_asked_from_the_start(bucket: Bucket, tmp_path: Path) -> None:
    bucket.etag, bucket.cuts = None, [1_000_000]
    fetch(bucket.url, tmp_path / "w.npz")
    assert bucket.asked == [None, None]
    assert (tmp_path / "w.npz").read_bytes() == CONTENT


def test_passing_failure_is_tried_again(bucket: Bucket, tmp_path: Path) -> None:
    bucket.failures = [503, 500]
    fetch(bucket.url, tmp_path / "w.npz")
    assert len(bucket.asked) == 3


def test_lasting_failure_is_infrastructure(bucket: Bucket, tmp_path: Path) -> None:
    bucket.failures = [503] * download._TRIES
    with pytest.raises(InfrastructureError, match=r"fails: 503 Service Unavailable"):
        fetch(bucket.url, tmp_path / "w.npz")
    assert left(tmp_path) == []


def test_absent_file_is_named_at_once(bucket: Bucket, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"other.npz' cannot be fetched: the server says 404"):
        fetch(bucket.url.replace("weights", "other"), tmp_path / "w.npz")
    assert len(bucket.asked) == 1


def test_damage_on_the_way_is_found(bucket: Bucket, tmp_path: Path) -> None:
    bucket.md5 = base64.b64encode(b"\0" * 16).decode()
    with pytest.raises(StorageError, match=r"arrived damaged: md5 .* the server says 0000"):
        fetch(bucket.url, tmp_path / "w.npz")
    assert left(tmp_path) == []


def test_other_file_than_wanted(bucket: Bucket, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=f"sha256 {SHA256}, wanted {'0' * 64}"):
        fetch(bucket.url, tmp_path / "w.npz", sha256="0" * 64)
    assert left(tmp_path) == []
    with pytest.raises(ConfigError, match="give 64 hex digits"):
        fetch(bucket.url, tmp_path / "w.npz", sha256="abc")


def test_file_that_fails_the_check_is_not_put_in_place(bucket: Bucket, tmp_path: Path) -> None:
    def refuse(path: Path) -> None:
        assert path.read_bytes() == CONTENT
        raise CheckpointError("a web page")

    with pytest.raises(CheckpointError, match="a web page"):
        fetch(bucket.url, tmp_path / "w.npz", check=refuse)
    assert left(tmp_path) == []


def test_file_of_somebody_else_is_not_overwritten(bucket: Bucket, tmp_path: Path) -> None:
    (tmp_path / "w.npz").write_bytes(b"mine")
    with pytest.raises(StorageError, match="is there already, without a record"):
        fetch(bucket.url, tmp_path / "w.npz")
    with pytest.raises(StorageError, match="not the file that was asked for"):
        fetch(bucket.url, tmp_path / "w.npz", sha256=SHA256)
    (tmp_path / "w.npz").write_bytes(CONTENT)
    assert fetch(bucket.url, tmp_path / "w.npz", sha256=SHA256).was_there
    (tmp_path / "w.npz").write_bytes(b"changed")
    with pytest.raises(StorageError, match="not the file that was recorded"):
        fetch(bucket.url, tmp_path / "w.npz")
    assert bucket.asked == []


def test_no_network_is_one_line_with_a_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_names(*args: object, **kwargs: object) -> None:
        raise socket.gaierror(-3, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", no_names)
    with pytest.raises(InfrastructureError, match=r"cannot reach bucket\.invalid .*--source"):
        fetch("https://bucket.invalid/w.npz", tmp_path / "w.npz")
    assert left(tmp_path) == []


def test_nobody_listens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "_FIRST_PAUSE", 0.001)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    with pytest.raises(InfrastructureError, match="refused"):
        fetch(f"http://127.0.0.1:{port}/w.npz", tmp_path / "w.npz")


def test_folder_as_mirror(tmp_path: Path) -> None:
    (tmp_path / "from.npz").write_bytes(CONTENT)
    fetch((tmp_path / "from.npz").as_uri(), tmp_path / "to" / "w.npz")
    assert (tmp_path / "to" / "w.npz").read_bytes() == CONTENT
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        fetch((tmp_path / "no.npz").as_uri(), tmp_path / "to" / "x.npz")


def test_two_at_once(bucket: Bucket, tmp_path: Path) -> None:
    with (
        lock(tmp_path / ".w.npz.lock", "it"),
        pytest.raises(LockError, match="is being written by pid"),
    ):
        fetch(bucket.url, tmp_path / "w.npz")


def test_full_disk_is_seen_before(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    with pytest.raises(InfrastructureError, match="1,000 bytes free, 5,120,000 more are needed"):
        fetch(bucket.url, tmp_path / "w.npz")
