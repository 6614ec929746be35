"""The files of shards: in a folder, or fetched from a bucket through a bounded cache."""

from __future__ import annotations

import hashlib
import os
import threading
from contextlib import suppress
from pathlib import Path

from bigtransfer.data.packing import shard_name
from bigtransfer.errors import BigTransferError, DatasetError, InfrastructureError
from bigtransfer.storage import MANIFEST_NAME, FileFacts, new_file, sha256_file
from bigtransfer.storage.home import work_of
from bigtransfer.storage.s3 import S3Path, client, download

CACHE_BYTES = 50_000_000_000
"""What the cache of fetched shards may hold."""


class ShardFiles:
    """Shard files of a local folder; opened for each read, so that their number has no limit."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def read(self, shard: int, offset: int, length: int) -> bytes:
        """Return a part of a shard file."""
        return read_part(self.path(shard), offset, length)

    def path(self, shard: int) -> Path:
        """Return where a shard file lies on this machine."""
        return self._folder / shard_name(shard)

    def prefetch(self, shards: list[int]) -> None:
        """Do nothing: they are here."""


class FetchedShardFiles(ShardFiles):
    """Shard files of a bucket: each fetched whole, checked, kept in a bounded cache.

    The cache is a folder that readers, threads and processes share: files are named by their
    digest and appear complete, the least recently used go first, and a reader whose file was just
    removed by another fetches it again.
    """

    def __init__(
        self,
        place: S3Path,
        files: dict[str, FileFacts],
        cache: Path | None = None,
        most_bytes: int | None = None,
    ) -> None:
        super().__init__(cache or work_of(Path.cwd()) / "cache" / "shards")
        self._place, self._files, self._client = place, files, client()
        self._most_bytes = CACHE_BYTES if most_bytes is None else most_bytes
        self._checked: set[Path] = set()
        self._announced: list[int] = []
        self._folder.mkdir(parents=True, exist_ok=True)

    def read(self, shard: int, offset: int, length: int) -> bytes:
        """Return a part of a shard file, fetched where it is not in the cache."""
        for _ in range(_TRIES):
            try:
                return read_part(self.path(shard), offset, length)
            except FileNotFoundError:
                continue
        raise InfrastructureError(
            f"the cache {str(self._folder)!r} loses its files while they are read; is it too small "
            "for the processes that share it?"
        )

    def prefetch(self, shards: list[int]) -> None:
        """Fetch, in the background and in this order, what half of the cache can hold."""
        if shards == self._announced:
            return
        self._announced = shards
        room = self._most_bytes // 2
        wanted = []
        for shard in dict.fromkeys(shards):
            room -= self._files[shard_name(shard)]["bytes"]
            if room < 0:
                break
            if not self._place_of(shard).is_file():
                wanted.append(shard)

        def fetch() -> None:
            with suppress(BigTransferError):  # whoever needs the shard meets the same error
                for shard in wanted:
                    self.path(shard)

        if wanted:
            threading.Thread(target=fetch, daemon=True).start()

    def _place_of(self, shard: int) -> Path:
        return self._folder / f"{self._files[shard_name(shard)]['sha256']}.tar"

    def path(self, shard: int) -> Path:
        """Return where a shard file lies, fetched where it is not in the cache."""
        path = self._place_of(shard)
        with _lock_of(path):
            if not self._is_there(path, shard):
                self._fetch(path, shard)
                self._checked.add(path)
                _make_room(self._folder, self._most_bytes, path)
        return path

    def _is_there(self, path: Path, shard: int) -> bool:
        if not path.is_file():
            return False
        if path not in self._checked:
            if sha256_file(path) != self._files[shard_name(shard)]["sha256"]:
                return False
            self._checked.add(path)
        with suppress(FileNotFoundError):
            os.utime(path)  # used just now
        return True

    def _fetch(self, path: Path, shard: int) -> None:
        facts, where = self._files[shard_name(shard)], self._place / shard_name(shard)
        data: bytes | None = b""
        for _ in range(2):
            data = download(self._client, where)
            if data is None:
                raise DatasetError(f"{str(where)!r} is missing though {MANIFEST_NAME} lists it")
            if hashlib.sha256(data).hexdigest() == facts["sha256"]:
                with new_file(path) as partial:
                    partial.write_bytes(data)
                return
        raise DatasetError(
            f"{str(where)!r} is damaged: {len(data or b''):,} bytes whose sha256 is not what "
            f"{MANIFEST_NAME} says ({facts['bytes']:,} bytes, {facts['sha256'][:12]}…); write it "
            "again"
        )


_TRIES = 5
_locks: dict[Path, threading.Lock] = {}
_locks_lock = threading.Lock()


def _lock_of(path: Path) -> threading.Lock:
    with _locks_lock:
        return _locks.setdefault(path.absolute(), threading.Lock())


def _make_room(folder: Path, most_bytes: int, kept: Path) -> None:
    """Remove the least recently used files of a cache until the rest fits."""
    found = []
    for path in folder.glob("*.tar"):
        with suppress(FileNotFoundError):
            facts = path.stat()
            found.append((facts.st_mtime_ns, facts.st_size, path))
    total = sum(size for _, size, _ in found)
    for _, size, path in sorted(found):
        if total <= most_bytes:
            return
        if path != kept:
            path.unlink(missing_ok=True)
            total -= size


def read_part(path: Path, offset: int, length: int) -> bytes:
    """Return a part of a file; any thread may do so."""
    handle = os.open(path, os.O_RDONLY)
    try:
        return os.pread(handle, length, offset)
    finally:
        os.close(handle)
