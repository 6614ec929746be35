"""Where files are written to: a local folder, or a prefix in a bucket, behind one interface."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from bigtransfer.storage import MANIFEST_NAME, FileFacts, explained, new_file, sha256_file
from bigtransfer.storage.s3 import (
    S3Path,
    S3Tree,
    client,
    delete,
    described,
    download,
    download_file,
    exists_with,
    upload,
    upload_bytes,
)

Place = Path | S3Path


def place_at(text: str) -> Place:
    """Return a folder, or the prefix that an `s3://` address names.

    Raises:
        ConfigError: If it is another address.
    """
    return S3Path.parse(text) if "://" in text else Path(text)


def target_at(place: Place) -> Target:
    """Open a place for writing."""
    return Bucket(place) if isinstance(place, S3Path) else Folder(place)


class Target(Protocol):
    """Where shards, and mirrored checkpoints, are written to."""

    @property
    def address(self) -> str:
        """As people write it."""
        ...

    @property
    def scratch(self) -> Path | None:
        """Folder for unfinished files from which `put` is a rename; None: any."""
        ...

    def put(self, name: str, file: Path) -> None:
        """Bring a finished local file there; a folder moves it, a bucket takes a copy."""
        ...

    def put_bytes(self, name: str, data: bytes) -> None:
        """Write a small file."""
        ...

    def get(self, name: str) -> bytes | None:
        """Return a file, or None where there is none."""
        ...

    def as_file(self, name: str, scratch: Path) -> Path | None:
        """Return a file to read: that there, or a copy in a local folder; None: there is none."""
        ...

    def has(self, name: str, facts: FileFacts) -> bool:
        """Say whether a file with the `sha256` of `facts` is there."""
        ...

    def names(self) -> list[str]:
        """Return the names of all files there, in order."""
        ...

    def remove(self, name: str) -> None:
        """Remove a file; nothing happens where there is none."""
        ...

    def unseal(self) -> None:
        """Remove the manifest: what is there is no dataset until it is joined again."""
        ...


class Folder:
    """A local folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        with explained(folder):
            folder.mkdir(parents=True, exist_ok=True)

    @property
    def address(self) -> str:
        """Return the folder."""
        return str(self._folder)

    @property
    def scratch(self) -> Path | None:
        """Return the folder itself."""
        return self._folder

    def put(self, name: str, file: Path) -> None:
        """Move a finished local file there."""
        with new_file(self._folder / name) as partial:
            file.replace(partial)

    def put_bytes(self, name: str, data: bytes) -> None:
        """Write a small file."""
        with new_file(self._folder / name) as partial:
            partial.write_bytes(data)

    def get(self, name: str) -> bytes | None:
        """Return a file, or None where there is none."""
        path = self._folder / name
        return path.read_bytes() if path.is_file() else None

    def as_file(self, name: str, scratch: Path) -> Path | None:
        """Return the file itself, or None where there is none."""
        path = self._folder / name
        return path if path.is_file() else None

    def has(self, name: str, facts: FileFacts) -> bool:
        """Say whether a file with the `sha256` of `facts` is there."""
        path = self._folder / name
        return path.is_file() and sha256_file(path) == facts["sha256"]

    def names(self) -> list[str]:
        """Return the names of all files there, in order."""
        found = (path for path in self._folder.rglob("*") if path.is_file())
        return sorted(path.relative_to(self._folder).as_posix() for path in found)

    def remove(self, name: str) -> None:
        """Remove a file."""
        (self._folder / name).unlink(missing_ok=True)

    def unseal(self) -> None:
        """Remove the manifest."""
        self.remove(MANIFEST_NAME)


class Bucket:
    """Objects below a prefix."""

    def __init__(self, place: S3Path) -> None:
        self._place, self._client = place, client()

    @property
    def address(self) -> str:
        """Return the prefix."""
        return str(self._place)

    @property
    def scratch(self) -> Path | None:
        """Return None."""
        return None

    def put(self, name: str, file: Path) -> None:
        """Move a finished local file there."""
        upload(self._client, file, self._place / name)

    def put_bytes(self, name: str, data: bytes) -> None:
        """Write a small file."""
        upload_bytes(self._client, data, self._place / name)

    def get(self, name: str) -> bytes | None:
        """Return a file, or None where there is none."""
        return download(self._client, self._place / name)

    def as_file(self, name: str, scratch: Path) -> Path | None:
        """Return a copy of the object, or None where there is none."""
        if described(self._client, self._place / name) is None:
            return None
        path = scratch / Path(name).name
        download_file(self._client, self._place / name, path)
        return path

    def has(self, name: str, facts: FileFacts) -> bool:
        """Say whether a file with the `sha256` of `facts` is there."""
        return exists_with(self._client, self._place / name, facts["sha256"])

    def names(self) -> list[str]:
        """Return the names of all objects there, in order."""
        return [file.path for file in S3Tree(self._place, {}, self._client).contents().files]

    def remove(self, name: str) -> None:
        """Remove an object."""
        delete(self._client, self._place / name)

    def unseal(self) -> None:
        """Remove the manifest."""
        self.remove(MANIFEST_NAME)
