"""Trees of files in a bucket and at a DVC version: real servers, real repositories."""

from __future__ import annotations

import hashlib
import http.server
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bigtransfer.errors import ConfigError, InfrastructureError, StorageError
from bigtransfer.storage.s3 import S3Path, download, upload, upload_bytes
from bigtransfer.storage.trees import open_tree, write_index
from fixtures.project import git


@pytest.fixture
def filled(s3: Any) -> Any:
    for label in ("cat", "dog"):
        for i in range(3):
            key = f"v1/{label}/{i}.txt"
            s3.put_object(Bucket="photos", Key=key, Body=f"{label} {i}".encode())
    s3.put_object(Bucket="photos", Key="v1/empty/", Body=b"")
    return s3


def test_index_of_a_bucket_stands_for_it(filled: Any, tmp_path: Path) -> None:
    source = write_index("s3://photos/v1", tmp_path / "index", mirror=False)
    assert (source["files"], source["bytes"]) == (6, 30)
    tree = open_tree(tmp_path / "index")
    assert tree.address == "s3://photos/v1"
    assert [f.path for f in tree.contents().files][:2] == ["cat/0.txt", "cat/1.txt"]
    assert tree.contents().folders == ["cat", "dog"]
    assert tree.read("dog/2.txt") == b"dog 2"
    assert tree.read("dog/2.txt", 1, 2) == b"og"
    again = write_index("s3://photos/v1", tmp_path / "again", mirror=False)
    assert again["digest"] == source["digest"]


def test_object_that_changed_since_it_was_listed_is_an_error(filled: Any, tmp_path: Path) -> None:
    write_index("s3://photos/v1", tmp_path / "index", mirror=False)
    filled.put_object(Bucket="photos", Key="v1/cat/1.txt", Body=b"other")
    with pytest.raises(StorageError, match=r"cat/1.txt: the object changed since it was listed"):
        open_tree(tmp_path / "index").read("cat/1.txt")


def test_mirror_needs_the_bucket_no_more(filled: Any, tmp_path: Path) -> None:
    write_index("s3://photos/v1", tmp_path / "index", mirror=True)
    for i in range(3):
        filled.delete_object(Bucket="photos", Key=f"v1/cat/{i}.txt")
    assert open_tree(tmp_path / "index").read("cat/1.txt") == b"cat 1"


def test_damaged_index_is_refused(filled: Any, tmp_path: Path) -> None:
    write_index("s3://photos/v1", tmp_path / "index", mirror=False)
    with (tmp_path / "index" / "files.csv").open("a") as file:
        file.write("x,1,2\n")
    with pytest.raises(StorageError, match=r"files.csv' has"):
        open_tree(tmp_path / "index")


def test_what_is_wrong_with_an_address_is_said(s3: Any, tmp_path: Path) -> None:
    for url, kind, message in (
        ("s3://nowhere/v1", StorageError, "s3://nowhere/v1: there is no such bucket"),
        ("s3://photos/nothing", StorageError, "holds no files; correct the bucket, prefix or path"),
        ("s3:///v1", ConfigError, "names no bucket"),
        ("gs://photos", ConfigError, "unknown scheme 'gs'"),
    ):
        with pytest.raises(kind, match=message):
            write_index(url, tmp_path / "index", mirror=False)
    assert not (tmp_path / "index").exists()


def test_no_credentials(s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    with pytest.raises(StorageError, match="Unable to locate credentials; set AWS_ACCESS_KEY_ID"):
        write_index("s3://photos/v1", tmp_path / "index", mirror=False)


def test_nobody_answers(tmp_path: Path, s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setattr("bigtransfer.storage.s3._TRIES", 1)
    with pytest.raises(InfrastructureError, match="does not answer") as caught:
        write_index("s3://photos/v1", tmp_path / "index", mirror=False)
    assert caught.value.exit_code == 75


Answer = Callable[[http.server.BaseHTTPRequestHandler, int], None]


@pytest.fixture
def answering(monkeypatch: pytest.MonkeyPatch, s3: Any) -> Iterator[Callable[[Answer], None]]:
    """A storage that answers as a test wants: 503, 403, cut bodies."""
    servers = []

    def start(answer: Answer) -> None:
        count = [0]

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                count[0] += 1
                answer(self, count[0])

            def log_message(self, *_: Any) -> None:
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_address[1]}")

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def error(handler: Any, status: int, code: str) -> None:
    body = f"<Error><Code>{code}</Code><Message>no</Message></Error>".encode()
    handler.send_response(status)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


def whole(handler: Any, data: bytes, *, cut: bool = False) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(data)))
    handler.send_header("ETag", '"x"')
    handler.end_headers()
    handler.wfile.write(data[: len(data) // 2] if cut else data)
    if cut:
        handler.close_connection = True


@pytest.mark.parametrize(
    ("status", "code", "kind", "message"),
    [
        (403, "AccessDenied", StorageError, "access is denied"),
        (403, "InvalidAccessKeyId", StorageError, "the access key is unknown"),
        (301, "PermanentRedirect", StorageError, "the bucket is in another region"),
        (400, "AuthorizationHeaderMalformed", StorageError, "the bucket is in another region"),
        (400, "ExpiredToken", StorageError, "the credentials have expired"),
        (503, "SlowDown", InfrastructureError, "answered SlowDown and went on doing so"),
        (500, "InternalError", InfrastructureError, "answered InternalError"),
    ],
)
def test_refusals_of_the_storage_in_our_words(
    answering: Any, status: int, code: str, kind: type[Exception], message: str, monkeypatch: Any
) -> None:
    monkeypatch.setattr("bigtransfer.storage.s3._TRIES", 2)
    answering(lambda handler, _: error(handler, status, code))
    from bigtransfer.storage.s3 import client

    with pytest.raises(kind, match=message):
        download(client(), S3Path("photos", "x"))


def test_busy_storage_and_cut_bodies_are_tried_again(answering: Any) -> None:
    data = bytes(range(256)) * 1000

    def answer(handler: Any, count: int) -> None:
        if count == 1:
            error(handler, 503, "SlowDown")
        else:
            whole(handler, data, cut=count < 4)

    answering(answer)
    from bigtransfer.storage.s3 import client

    assert download(client(), S3Path("photos", "x")) == data


def test_body_that_is_always_cut_is_an_infrastructure_error(
    answering: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bigtransfer.storage.s3._TRIES", 2)
    answering(lambda handler, _: whole(handler, b"x" * 100_000, cut=True))
    from bigtransfer.storage.s3 import client

    with pytest.raises(InfrastructureError, match="does not answer"):
        download(client(), S3Path("photos", "x"))


def test_upload_in_parts_is_checked_and_not_repeated(
    s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bigtransfer.storage.s3._PART_BYTES", 5 << 20)
    (tmp_path / "big").write_bytes(os.urandom(12 << 20))
    place = S3Path("photos", "out/big")
    assert upload(s3, tmp_path / "big", place)
    data = download(s3, place)
    assert data is not None
    assert hashlib.sha256(data).digest() == hashlib.sha256((tmp_path / "big").read_bytes()).digest()
    assert "-" in s3.head_object(Bucket="photos", Key="out/big")["ETag"]  # several parts
    assert not upload(s3, tmp_path / "big", place)
    (tmp_path / "big").write_bytes(b"other")
    assert upload(s3, tmp_path / "big", place)
    upload_bytes(s3, b"small", place)
    assert download(s3, place) == b"small"
    assert download(s3, S3Path("photos", "none")) is None
    with pytest.raises(StorageError, match="there is no such bucket"):
        upload(s3, tmp_path / "big", S3Path("nowhere", "x"))


def test_dvc_version_is_resolved_to_its_commit(dvc_repository: Path, tmp_path: Path) -> None:
    url = f"dvc://{dvc_repository}@v1/data/photos"
    source = write_index(url, tmp_path / "index", mirror=False)
    commit = git(dvc_repository, "rev-parse", "v1").strip()
    assert source["url"] == f"dvc://{dvc_repository}@{commit}/data/photos"
    listed = (tmp_path / "index" / "files.csv").read_text().splitlines()
    md5 = hashlib.md5(b"cat 1").hexdigest()
    assert f"cat/1.txt,5,{md5}" in listed
    tree = open_tree(tmp_path / "index")
    assert tree.read("cat/1.txt") == b"cat 1"
    assert tree.read("cat/1.txt", 2, 3) == b"t 1"
    again = write_index(f"dvc://{dvc_repository}/data/photos", tmp_path / "again", mirror=True)
    assert again["digest"] == source["digest"]
    assert open_tree(tmp_path / "again").read("dog/0.txt") == b"dog 0"


def test_what_is_wrong_with_a_dvc_address_is_said(dvc_repository: Path, tmp_path: Path) -> None:
    for url, message in (
        (f"dvc://{dvc_repository}@v2/data/photos", "there is no such revision"),
        (f"dvc://{dvc_repository}@v1/data/videos", "'data/videos' is not in revision"),
        (f"dvc://{tmp_path}/none.git/data", "cannot be cloned"),
    ):
        with pytest.raises(StorageError, match=message):
            write_index(url, tmp_path / "index", mirror=False)
    with pytest.raises(ConfigError, match="where does the repository end"):
        write_index("dvc://nowhere/data", tmp_path / "index", mirror=False)


@pytest.mark.skipif(os.getuid() != 0, reason="root alone gives files away")
def test_a_repository_of_somebody_else_is_said(dvc_repository: Path, tmp_path: Path) -> None:
    os.chown(tmp_path / "work", 12345, 12345)
    os.chown(tmp_path / "work" / ".git", 12345, 12345)
    with pytest.raises(StorageError, match="cannot be cloned .*is not owned by current user"):
        write_index(f"dvc://{tmp_path}/work@v1/data/photos", tmp_path / "index", mirror=False)


def test_file_that_the_dvc_remote_lost_is_named(dvc_repository: Path, tmp_path: Path) -> None:
    write_index(f"dvc://{dvc_repository}@v1/data/photos", tmp_path / "index", mirror=False)
    shutil.rmtree(tmp_path / "remote")
    with pytest.raises((StorageError, InfrastructureError), match=r"cat/1.txt"):
        open_tree(tmp_path / "index").read("cat/1.txt")
