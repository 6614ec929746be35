"""Files at a DVC version: `dvc://<git repo>[@rev]/<path>`, through DVC's own file system."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bigtransfer.errors import ConfigError, InfrastructureError, StorageError
from bigtransfer.extras import require
from bigtransfer.storage.tree import Contents, TreeFile, all_of

_THREADS = 16
_DOT_GIT = re.compile(r"(?P<repository>.+?\.git)(@(?P<revision>[^/]+))?/(?P<path>.*)")


@dataclass(frozen=True)
class DvcTree:
    """The files that a revision of a DVC project has below a path."""

    repository: str
    revision: str
    """Commit, 40 hex digits."""
    path: str
    _files: Any = field(repr=False)
    _known: dict[str, TreeFile] = field(default_factory=dict, repr=False)

    @classmethod
    def at(cls, url: str) -> DvcTree:
        """Open an address at its revision; a branch or tag is resolved to the commit it names now.

        Raises:
            ConfigError: If the address cannot be understood, or DVC is not installed.
            StorageError: If repository, revision or path are not there.
            InfrastructureError: If the repository cannot be reached.
        """
        repository, revision, path = split_address(url)
        require("dvc", "a dvc:// address")
        from dvc.api import DVCFileSystem

        with _explained(url):
            files = DVCFileSystem(url=repository, rev=revision)
            commit = str(
                files.repo.get_rev() if revision is None else files.repo.scm.resolve_rev(revision)
            )
            if not files.exists(path or "/"):
                raise StorageError(
                    f"{url!r}: {path!r} is not in revision {commit[:12]}; correct the path"
                )
        return cls(repository, commit, path, files)

    @property
    def address(self) -> str:
        """Return the address with the commit in it."""
        return f"dvc://{self.repository}@{self.revision}/{self.path}"

    def contents(self) -> Contents:
        """List the files with their MD5."""
        with _explained(self.address):
            found = self._files.find(self.path or "/", detail=True)
        prefix = self.path.rstrip("/") + "/" if self.path else ""

        def listed(item: tuple[str, Any]) -> TreeFile:
            name, info = item
            md5 = (info.get("dvc_info") or {}).get("md5") or info.get("md5") or ""
            relative = name.lstrip("/").removeprefix(prefix)
            return TreeFile(relative, info["size"] or self._size(name), str(md5))

        with ThreadPoolExecutor(_THREADS) as pool:
            files = sorted(pool.map(listed, found.items()), key=lambda f: f.path)
        self._known.update({f.path: f for f in files})
        return Contents(files, [])

    def _size(self, name: str) -> int:
        """Ask the remote: DVC's own list of a folder holds no sizes."""
        with _explained(f"{self.address}/{name}"), self._files.open(name, "rb") as file:
            return int(file.seek(0, io.SEEK_END))

    def read(self, path: str, offset: int = 0, length: int | None = None) -> bytes:
        """Return bytes of a file; a whole file is checked against its MD5."""
        place = f"{self.path}/{path}" if self.path else path
        with _explained(f"{self.address}/{path}"), self._files.open(place, "rb") as file:
            file.seek(offset)
            data: bytes = file.read() if length is None else file.read(length)
        known = self._known.get(path)
        if known and known.digest and not offset and length is None:
            actual = hashlib.md5(data, usedforsecurity=False).hexdigest()
            if actual != known.digest:
                raise StorageError(
                    f"{self.address}/{path} is damaged: MD5 {actual}, DVC says {known.digest}; "
                    "push it to the remote again"
                )
        return all_of(data, length)


def split_address(url: str) -> tuple[str, str | None, str]:
    """Return repository, revision or None, and path of an address.

    The repository ends at `@<rev>/`, at `.git/`, or where a local Git project ends.

    Raises:
        ConfigError: If it cannot be told where the repository ends.
    """
    rest = url.removeprefix("dvc://")
    if found := _DOT_GIT.match(rest):
        return found["repository"], found["revision"], found["path"].strip("/")
    # An @ in front of the host (user@host, token@host) is not the one before a revision.
    host = re.match(r"(\w+://)?[^/@]*@[^/]*", rest)
    start = host.end() if host else 0
    before, at, after = rest[start:].partition("@")
    revision, slash, path = after.partition("/")
    if at and slash and revision:
        return rest[:start] + before, revision, path.strip("/")
    parts = rest.split("/")
    for end in range(len(parts), 0, -1):
        root = "/".join(parts[:end])
        if root and (Path(root) / ".git").exists():
            return root, None, "/".join(parts[end:]).strip("/")
    raise ConfigError(
        f"address {url!r}: where does the repository end? write dvc://<repository>@<rev>/<path>"
    )


@contextmanager
def _explained(url: str) -> Iterator[None]:
    """Turn DVC's and Git's errors into ours.

    Raises:
        StorageError: If it is the user's to mend.
        InfrastructureError: If something failed that may work the next time.
    """
    from dvc.exceptions import DvcException
    from pygit2 import GitError
    from scmrepo.exceptions import SCMError

    try:
        yield
    except (DvcException, GitError, SCMError, OSError) as error:
        raise _ours(url, error) from error


def _ours(url: str, error: Exception) -> StorageError | InfrastructureError:
    """Sort DVC's and Git's errors; both libraries raise kinds of their own for everything."""
    name, text = type(error).__name__, " ".join(str(error).split())
    if name in ("RevError", "UnknownRevisionError"):
        return StorageError(f"{url!r}: there is no such revision; correct the part after @")
    if name in ("CloneError", "SCMError", "GitRemoteError", "GitError"):
        return StorageError(
            f"{url!r}: the repository cannot be cloned ({text}); correct it, or get the right to"
        )
    if name in ("NotDvcRepoError",):
        return StorageError(f"{url!r}: the repository is no DVC project; correct it")
    if isinstance(error, FileNotFoundError):
        return StorageError(f"{url!r}: not in the DVC remote ({text}); `dvc push` it there")
    return InfrastructureError(f"{url!r}: DVC failed ({name}: {text}); try again later")
