"""Open, list, lock and atomically replace paths: what every room does to the disk, done once.

An output is a file or a folder. A folder is complete when its `MANIFEST.json`, written last,
is there and agrees with the SHA-256 of every file beside it; nobody reads one unchecked.
"""

from __future__ import annotations

import csv
import errno
import fcntl
import hashlib
import io
import json
import os
import shutil
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypedDict

from bigtransfer.errors import BigTransferError, InfrastructureError, LockError, StorageError

MANIFEST_NAME = "MANIFEST.json"
MANIFEST_SCHEMA = 1
VOLUMES_NAME = "bigtransfer-volumes.json"
"""File of a folder that holds another one, packed (`storage.volumes`)."""


class FileFacts(TypedDict):
    """What MANIFEST.json says of a file."""

    bytes: int
    sha256: str


_CHUNK_BYTES = 1 << 20


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes as 64 hex digits.

    Raises:
        StorageError: If we may not read it.
    """
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
    except PermissionError as error:
        raise StorageError(
            f"{str(path)!r} may not be read by user {os.getuid()}; give it the right to, e.g. "
            "`chmod -R a+rX` on its folder"
        ) from error
    return digest.hexdigest()


def sha256_json(value: Any) -> str:
    """Return the SHA-256 of a value's canonical JSON (sorted keys, no spaces), 64 hex digits."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def read_json(path: Path) -> Any:
    """Return the value in a JSON file.

    Raises:
        StorageError: If the file is missing, unreadable or not JSON; names the path.
    """
    try:
        return json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise StorageError(f"{str(path)!r} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise StorageError(f"{str(path)!r} is not JSON ({error}); make it anew") from error


def as_json(value: Any) -> str:
    """Return the JSON text our files hold: two-space indent, one trailing newline."""
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def as_csv(rows: Sequence[Mapping[str, object]]) -> str:
    """Return rows as CSV text; the columns of the last row, None or absent is an empty cell."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[-1]), restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Give a temporary path to write a file to; on success it is flushed and becomes `path`.

    Raises:
        StorageError: If the folder cannot be written to.
        InfrastructureError: If the disk is full.
    """
    path = path.absolute()
    partial = _beside(path)
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield partial
            with partial.open("rb") as file:
                os.fsync(file.fileno())
            _refuse_foreign_folder(path)
            if path.is_dir():
                shutil.rmtree(path)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file atomically; raises as `new_file` does."""
    with new_file(path) as partial:
        partial.write_text(text, "utf-8")


@contextmanager
def new_folder(path: Path, *, sealed: bool = True) -> Iterator[Path]:
    """Give a fresh folder to fill; on success it gets its MANIFEST.json and becomes `path`.

    With `sealed=False` it gets none: for folders that must look like a user's own.
    Whatever was at `path` is replaced only then. If the block raises, `path` is untouched and
    nothing is left behind; a killed process leaves a folder named `.<name>.partial-<pid>`, which
    the next writer removes.

    Raises:
        StorageError: If the folder cannot be written to.
        InfrastructureError: If the disk is full.
    """
    path = path.absolute()
    partial = _beside(path)
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        for stale in path.parent.glob(f".{path.name}.partial-*"):
            shutil.rmtree(stale, ignore_errors=True)
        partial.mkdir()
        try:
            yield partial
            if sealed:
                seal(partial)
            _replace_folder(partial, path)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def seal(folder: Path, known: Mapping[str, str] | None = None) -> None:
    """Flush every file of a folder and write its MANIFEST.json last: the commit marker.

    Args:
        folder: To seal.
        known: File name -> SHA-256, of those that were read back already.
    """
    digests = known or {}
    files = {}
    for file in _files(folder):
        with file.open("rb") as handle:
            os.fsync(handle.fileno())
        name = file.relative_to(folder).as_posix()
        sha256 = digests.get(name) or sha256_file(file)
        files[name] = FileFacts(bytes=file.stat().st_size, sha256=sha256)
    write_text(folder / MANIFEST_NAME, as_json({"schema": MANIFEST_SCHEMA, "files": files}))
    _fsync_folder(folder)


def verify_folder(folder: Path, error: type[BigTransferError] = StorageError) -> str:
    """Check every file of a sealed folder against its MANIFEST.json.

    Returns:
        The SHA-256 of the manifest, which therefore stands for the whole folder.

    Raises:
        BigTransferError: Of the given kind, naming the file and what differs.
    """
    manifest_path = folder / MANIFEST_NAME
    if not manifest_path.is_file():
        why = f"has no {MANIFEST_NAME}" if folder.is_dir() else "does not exist"
        raise error(f"{str(folder)!r} {why}, so it is not complete; make it anew")
    try:
        listed = json.loads(manifest_path.read_text("utf-8"))["files"]
    except (ValueError, KeyError, TypeError, UnicodeDecodeError) as fault:
        raise error(f"{str(manifest_path)!r} is damaged ({fault}); make it anew") from fault
    for name, facts in listed.items():
        file = folder / name
        if not file.is_file():
            raise error(f"{str(file)!r} is missing though {MANIFEST_NAME} lists it; make it anew")
        size = file.stat().st_size
        if size != facts["bytes"]:
            raise error(
                f"{str(file)!r} has {size:,} bytes, {MANIFEST_NAME} says {facts['bytes']:,}; "
                "make it anew"
            )
        if (actual := sha256_file(file)) != facts["sha256"]:
            raise error(
                f"{str(file)!r} is damaged: sha256 {actual[:12]}…, {MANIFEST_NAME} says "
                f"{facts['sha256'][:12]}…; make it anew"
            )
    return sha256_file(manifest_path)


def digest_of(path: Path) -> str:
    """Return one SHA-256 for a file, a sealed folder (its manifest's) or any other folder.

    An unsealed folder is hashed over the sorted (name, bytes, sha256) of its files; a packed one
    has the digest of what is packed in it.
    """
    if path.is_file():
        return sha256_file(path)
    if (path / VOLUMES_NAME).is_file() and (path / MANIFEST_NAME).is_file():
        return str(read_json(path / VOLUMES_NAME)["digest"])
    if (path / MANIFEST_NAME).is_file():
        return sha256_file(path / MANIFEST_NAME)
    rows = [
        (file.relative_to(path).as_posix(), file.stat().st_size, sha256_file(file))
        for file in _files(path)
    ]
    return sha256_json(rows)


@contextmanager
def lock(path: Path, subject: str) -> Iterator[None]:
    """Hold an exclusive lock file for the length of the block; it dies with the process.

    Args:
        path: The lock file; made where absent, kept afterwards.
        subject: What is locked, for the message of whoever comes second.

    Raises:
        LockError: If another process holds it; names its pid and start time.
    """
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+", encoding="utf-8")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            holder = file.read().strip() or "an unknown process"
            raise LockError(
                f"{subject} is being written by {holder}; wait for it, or end it with "
                f"`kill {holder.split()[1] if holder.startswith('pid ') else 'PID'}`"
            ) from error
        file.truncate(0)
        file.write(f"pid {os.getpid()} (since {time.strftime('%Y-%m-%d %H:%M:%S')})\n")
        file.flush()
        yield


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn the operating system's errors while writing `path` into ours.

    Raises:
        StorageError: If the folder cannot be written to.
        InfrastructureError: If the disk is full.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise InfrastructureError(
                f"the disk is full while writing {str(path)!r} ({free_bytes(path):,} bytes free); "
                "free some space and run again"
            ) from error
        raise StorageError(
            f"cannot write {str(path)!r}: {error.strerror or error}; "
            "check that the path exists and that you may write there"
        ) from error


def free_bytes(path: Path) -> int:
    """Return the free bytes of the disk that a path lies on, or will lie on."""
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.partial-{os.getpid()}-{threading.get_ident()}")


def _refuse_foreign_folder(path: Path) -> None:
    """Refuse to put a file in the place of a folder that is not one of our outputs."""
    if path.is_dir() and not (path / MANIFEST_NAME).is_file() and any(path.iterdir()):
        raise StorageError(
            f"{str(path)!r} is a folder with files in it, and a file is to be written there; give "
            "another name"
        )


def _files(folder: Path) -> list[Path]:
    found = (p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST_NAME)
    return sorted(found, key=lambda p: p.relative_to(folder).as_posix())


def _replace_folder(new: Path, path: Path) -> None:
    old = path.with_name(f".{path.name}.partial-old-{os.getpid()}")
    if path.is_dir() and not path.is_symlink():
        path.replace(old)
    elif path.exists() or path.is_symlink():
        path.unlink()
    new.replace(path)
    _fsync_folder(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def _fsync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
