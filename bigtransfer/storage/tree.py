"""Files below one address, wherever it is: what every kind of storage answers to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

_LITTER = {"thumbs.db", "desktop.ini", "__macosx"}


@dataclass(frozen=True, slots=True)
class TreeFile:
    """One file, as listed: nothing was opened yet."""

    path: str
    """Relative to the address, with forward slashes; valid text even if the name on disk is not."""
    bytes: int
    digest: str = ""
    """ETag or MD5 where the storage keeps one."""
    fault: str | None = None
    """Why it cannot be read, where that shows in the listing already."""


@dataclass(frozen=True)
class Contents:
    """What lies below an address."""

    files: list[TreeFile]
    """By path."""
    folders: list[str]
    """By path; storage without folders has those of its files."""
    ignored: int = 0
    """Files passed over: hidden ones and what operating systems leave behind; where storage has
    folders, a hidden folder counts as one."""
    loops: tuple[str, ...] = ()
    """Links that lead back to a folder above themselves; they are not followed."""

    def let_go(self) -> Iterator[TreeFile]:
        """Yield the files and forget each: of millions, they take more memory than what is kept."""
        self.files.reverse()
        while self.files:
            yield self.files.pop()


class Tree(Protocol):
    """Files below one address."""

    @property
    def address(self) -> str:
        """As it was resolved."""
        ...

    def contents(self) -> Contents:
        """List everything, in a fixed order."""
        ...

    def read(self, path: str, offset: int = 0, length: int | None = None) -> bytes:
        """Return bytes of a file.

        Raises:
            OSError: If the file cannot be read or is shorter than asked for.
            StorageError: If it is no longer what was listed, or may not be read.
            InfrastructureError: If the storage does not answer.
        """
        ...


def is_litter(name: str) -> bool:
    """Say whether a name is hidden or one of those that operating systems leave behind."""
    return name.startswith(".") or name.lower() in _LITTER


def safe_name(path: str) -> bool:
    """Say whether a relative path stays below the folder it is joined to."""
    return bool(path) and not path.startswith("/") and ".." not in path.split("/")


def all_of(data: bytes, length: int | None) -> bytes:
    """Return the bytes if they are as many as were asked for.

    Raises:
        OSError: If they are not.
    """
    if length is not None and len(data) != length:
        raise OSError(f"only {len(data):,} of {length:,} bytes are there")
    return data
