"""A real S3 server process on loopback, and a DVC project with a remote, for the storage tests."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import environment


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """Start moto's server as its own process; give its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    code = f"from moto.server import main; main(['-H', '127.0.0.1', '-p', '{port}'])"
    process = subprocess.Popen(
        [sys.executable, "-c", code], env=environment(), stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        for _ in range(300):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def s3(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A client of an empty server, with the bucket `photos`."""
    from bigtransfer.storage.s3 import client

    for name, value in s3_environment(s3_server).items():
        monkeypatch.setenv(name, value)
    made = client()
    for bucket in made.list_buckets()["Buckets"]:
        for found in made.list_objects_v2(Bucket=bucket["Name"]).get("Contents", []):
            made.delete_object(Bucket=bucket["Name"], Key=found["Key"])
        made.delete_bucket(Bucket=bucket["Name"])
    made.create_bucket(Bucket="photos")
    return made


def s3_environment(address: str) -> dict[str, str]:
    return {
        "AWS_ENDPOINT_URL": address, "AWS_ACCESS_KEY_ID": "user", "AWS_SECRET_ACCESS_KEY": "word",
        "AWS_REGION": "us-east-1", "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }  # fmt: skip


def git(folder: Path, *line: str) -> str:
    name = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
    return subprocess.run(
        ["git", *name, *line], cwd=folder, check=True, capture_output=True, text=True
    ).stdout


def dvc(folder: Path, *line: str) -> None:
    subprocess.run(
        [sys.executable, "-m", "dvc", *line], cwd=folder, check=True, capture_output=True,
        env={**environment(), "DVC_NO_ANALYTICS": "true"},
    )  # fmt: skip


@pytest.fixture
def dvc_repository(tmp_path: Path) -> Path:
    """A bare Git repository of a DVC project with `data/photos` at tag v1, pushed to a remote."""
    work, bare, remote = tmp_path / "work", tmp_path / "photos.git", tmp_path / "remote"
    work.mkdir()
    remote.mkdir()
    git(tmp_path, "init", "--quiet", "--bare", "--initial-branch=main", str(bare))
    git(tmp_path, "init", "--quiet", "--initial-branch=main", str(work))
    dvc(work, "init", "--quiet")
    dvc(work, "config", "core.analytics", "false")
    dvc(work, "remote", "add", "--default", "here", str(remote))
    for label in ("cat", "dog"):
        for i in range(3):
            path = work / "data" / "photos" / label / f"{i}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{label} {i}")
    dvc(work, "add", "data/photos")
    dvc(work, "push")
    git(work, "add", "--all")
    git(work, "commit", "--quiet", "--message=photos")
    git(work, "tag", "v1")
    git(work, "push", "--quiet", str(bare), "main", "v1")
    os.environ.setdefault("GIT_TERMINAL_PROMPT", "0")
    return bare
