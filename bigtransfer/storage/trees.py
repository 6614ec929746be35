"""Files below one address, listed and read alike: a local folder, `s3://…` or a DVC version.

A remote address is resolved once, by `write_index`: what lies there, how large, by which digest.
From then on the local index stands for it, and a file that is no longer what the index says is an
error, not a silent change.
"""

from __future__ import annotations

import csv
import io
import json
import os
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from bigtransfer.errors import ConfigError, StorageError, did_you_mean
from bigtransfer.storage.local import as_json, new_folder, sha256_json, verify_folder
from bigtransfer.storage.tree import Contents, Tree, TreeFile, all_of, is_litter, safe_name
from bigtransfer.storage.volumes import VolumeTree, is_packed

INDEX_NAME = "source.json"
FILES_NAME = "files.csv"
_MIRROR = "files"
_SCHEMES = ("s3", "dvc")
_THREADS = 16


@dataclass(frozen=True)
class LocalTree:
    """A folder on this machine, or one file of it."""

    root: Path

    @property
    def address(self) -> str:
        """Return the folder as the user wrote it."""
        return str(self.root)

    def contents(self) -> Contents:
        """List the folder; links to folders are followed, but for those that lead back."""
        files: list[TreeFile] = []
        folders: list[str] = []
        loops: list[Path] = []
        ignored = 0
        for place, below, names in walk(self.root, loops):
            ignored += sum(map(is_litter, below))
            below[:] = sorted(name for name in below if not is_litter(name))
            at = Path(place).relative_to(self.root).as_posix()
            here = "" if at == "." else f"{at}/"
            folders += [_text(f"{here}{name}") for name in below]
            for name in names:
                if is_litter(name):
                    ignored += 1
                else:
                    files.append(_listed(Path(place, name), here + name))
        back = sorted(
            _text(path.relative_to(self.root).as_posix())
            for path in loops
            if not is_litter(path.name)
        )
        files.sort(key=lambda f: f.path)
        return Contents(files, sorted(folders), ignored, tuple(back))

    def has(self, path: str) -> bool:
        """Say whether there is such a file."""
        return (self.root / path).is_file()

    def read(self, path: str, offset: int = 0, length: int | None = None) -> bytes:
        """Return bytes of a file."""
        with (self.root / path).open("rb") as file:
            file.seek(offset)
            data = file.read() if length is None else file.read(length)
        return all_of(data, length)


def walk(root: Path, loops: list[Path]) -> Iterator[tuple[str, list[str], list[str]]]:
    """Walk a folder as `os.walk` does, top down, through links too.

    Args:
        root: Where to begin.
        loops: Receives the links that lead back to a folder above themselves, told by device and
            inode; they are not followed.

    Raises:
        StorageError: If a folder cannot be listed.
    """
    start = root.resolve()
    above = {str(root): frozenset(_identity(place) for place in (start, *start.parents))}
    for place, below, names in os.walk(root, onerror=_refuse, followlinks=True):
        own = above.pop(place)
        for name in sorted(below):
            path = Path(place, name)
            identity = _identity(path)
            if identity is not None and identity in own:
                loops.append(path)
                below.remove(name)
            else:
                above[os.path.join(place, name)] = own | {identity}
        yield place, below, names


def _identity(folder: Path) -> tuple[int, int] | None:
    try:
        found = folder.stat()
    except OSError:  # listing it says so, better
        return None
    return (found.st_dev, found.st_ino) if found.st_ino else None  # some mounts know no inodes


def _refuse(error: OSError) -> None:
    raise StorageError(
        f"folder {error.filename!r} cannot be listed ({error.strerror}); give yourself the right "
        "to read it"
    )


def _listed(path: Path, name: str) -> TreeFile:
    text = _text(name)
    try:
        found = path.stat()
    except OSError as error:
        what = "a link that leads nowhere" if path.is_symlink() else str(error.strerror)
        return TreeFile(text, 0, fault=f"cannot be read: {what}")
    if not stat.S_ISREG(found.st_mode):
        return TreeFile(text, 0, fault="not an ordinary file (a device, a pipe or a socket)")
    fault = None if text == name else "its name is not UTF-8 text; rename it"
    return TreeFile(text, found.st_size, fault=fault)


def _text(name: str) -> str:
    return os.fsencode(name).decode("utf-8", "backslashreplace")


@dataclass(frozen=True)
class IndexedTree:
    """A remote address as it was resolved; bytes come from there, or from the mirror."""

    url: str
    bytes_of: Tree
    """The remote tree, or the index's own where everything is mirrored."""
    below: str
    """Put before a path to find its bytes."""
    known: dict[str, TreeFile] = field(repr=False)

    @property
    def address(self) -> str:
        """Return the resolved address."""
        return self.url

    def contents(self) -> Contents:
        """List what the index lists."""
        files = [f for f in self.known.values() if not any(map(is_litter, f.path.split("/")))]
        folders = {
            "/".join(parts[:n])
            for f in files
            for parts in [f.path.split("/")]
            for n in range(1, len(parts))
        }
        return Contents(files, sorted(folders), len(self.known) - len(files))

    def read(self, path: str, offset: int = 0, length: int | None = None) -> bytes:
        """Return bytes of a file."""
        return self.bytes_of.read(self.below + path, offset, length)


class TreeReader(io.RawIOBase):
    """A file of a tree as a seekable Python file; wrap it in `io.BufferedReader`."""

    def __init__(self, tree: Tree, path: str, size: int) -> None:
        self._tree, self._path, self._size, self._at = tree, path, size, 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move; nothing is read."""
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = start + offset
        return self._at

    def readinto(self, buffer: object) -> int:
        """Fill a buffer from the current place."""
        view = memoryview(buffer).cast("B")  # type: ignore[arg-type]  # io gives a buffer
        length = max(0, min(len(view), self._size - self._at))
        if length:
            view[:length] = self._tree.read(self._path, self._at, length)
            self._at += length
        return length


def open_tree(path: Path) -> Tree:
    """Open a local folder, one packed in volumes, or the index that `write_index` left in it.

    Raises:
        StorageError: If the index or the list of the volumes is damaged.
    """
    own = VolumeTree.at(path) if is_packed(path) else LocalTree(path)
    if not own.has(INDEX_NAME):
        return own
    verify_folder(path, StorageError)
    source = json.loads(own.read(INDEX_NAME))
    known = {
        row["path"]: TreeFile(row["path"], int(row["bytes"]), row["digest"])
        for row in csv.DictReader(io.StringIO(own.read(FILES_NAME).decode(), newline=""))
    }
    if source["mirrored"]:
        return IndexedTree(source["url"], own, f"{_MIRROR}/", known)
    return IndexedTree(source["url"], _remote(source["url"], known), "", known)


def write_index(url: str, folder: Path, *, mirror: bool) -> dict[str, object]:
    """Resolve a remote address and write what lies there as a local, sealed index.

    Args:
        url: `s3://<bucket>/<prefix>` or `dvc://<git repo>[@rev]/<path>`.
        folder: Written beside and renamed when complete.
        mirror: Whether to copy the bytes too.

    Returns:
        What `source.json` holds: the resolved address, counts and a digest over the listing.

    Raises:
        ConfigError: If the address cannot be understood.
        StorageError: If nothing is there, or it may not be read.
        InfrastructureError: If the storage does not answer.
    """
    remote = _remote(url, {})
    files = remote.contents().files
    if not files:
        raise StorageError(f"{url!r} holds no files; correct the bucket, prefix or path")
    rows = [{"path": f.path, "bytes": f.bytes, "digest": f.digest} for f in files]
    source: dict[str, object] = {
        "schema": 1,
        "url": remote.address,
        "asked": url,
        "files": len(files),
        "bytes": sum(f.bytes for f in files),
        "mirrored": mirror,
        "digest": sha256_json(rows),
    }
    with new_folder(folder) as partial:
        if mirror:
            _mirror(_remote(remote.address, {f.path: f for f in files}), files, partial / _MIRROR)
        with (partial / FILES_NAME).open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, ["path", "bytes", "digest"], lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        (partial / INDEX_NAME).write_text(as_json(source), "utf-8")
    return source


def _mirror(remote: Tree, files: list[TreeFile], folder: Path) -> None:
    def copy(file: TreeFile) -> None:
        if not safe_name(file.path):
            raise StorageError(f"{remote.address}: the name {file.path!r} leads out of the folder")
        target = folder / file.path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(remote.read(file.path))

    with ThreadPoolExecutor(_THREADS) as pool:
        for _ in pool.map(copy, files):
            pass


def _remote(url: str, known: dict[str, TreeFile]) -> Tree:
    scheme = url.partition("://")[0]
    if scheme == "s3":
        from bigtransfer.storage.s3 import S3Tree

        return S3Tree.at(url, known)
    if scheme == "dvc":
        from bigtransfer.storage.dvc_version import DvcTree

        return DvcTree.at(url)
    raise ConfigError(
        f"address {url!r}: unknown scheme {scheme!r}{did_you_mean(scheme, _SCHEMES)}; "
        "addresses begin with s3:// or dvc://"
    )
