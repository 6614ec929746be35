"""Files of a folder and of the archives in it, found by the end of their names.

What is unpacked goes before what is packed. Names inside an archive are only compared, never
written to: files are made under names of ours, so a member cannot leave the folder.
"""

from __future__ import annotations

import bz2
import fnmatch
import gzip
import io
import lzma
import re
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from bigtransfer.artifacts.prepared import Prepared
from bigtransfer.errors import DatasetError
from bigtransfer.progress import counted
from bigtransfer.storage.tree import is_litter, safe_name
from bigtransfer.storage.trees import walk

_DAMAGE = (
    tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error, lzma.LZMAError, OSError,
    NotImplementedError, RuntimeError, ValueError,
)  # fmt: skip
"""What the standard library raises for archives that are cut short or altered, or locked."""
_COMPRESSED: dict[bytes, Callable[[Any], Any]] = {
    b"\x1f\x8b": lambda file: gzip.GzipFile(fileobj=file),
    b"BZh": bz2.BZ2File,
    b"\xfd7zXZ\x00": lzma.LZMAFile,
}
"""First bytes -> what reads the rest."""
_TAR = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class Entry:
    """A file, or a member of an archive."""

    name: str
    """Relative to the folder or within the archive, with forward slashes."""
    archive: Path | None
    """None: a file of its own."""


class Reading:
    """A file that is read once, and says its name where it cannot be."""

    def __init__(self, file: IO[bytes], path: Path) -> None:
        """Read from a file, or from a member of the archive at `path`."""
        self._file, self._path = file, path

    def read(self, size: int = -1) -> bytes:
        """Return so many bytes, or fewer at the end; all that are left by default.

        Raises:
            DatasetError: If they cannot be read.
        """
        with told(self._path):
            return self._file.read(size)


class Material:
    """The folder that a user keeps a set in."""

    def __init__(self, folder: Path, archives: Sequence[str], *, copy: bool = False) -> None:
        """List the folder; archives are listed when something is not there unpacked.

        Args:
            folder: That holds the set, in archives or unpacked, however deep.
            archives: Patterns of the names of the authors' archives; others are not opened.
            copy: Whether files are copied instead of linked to.

        Raises:
            DatasetError: If there is no such folder.
        """
        if not folder.is_dir():
            what = "is a file; give the folder that it lies in" if folder.exists() else "is missing"
            raise DatasetError(f"--from {str(folder)!r} {what}")
        self.folder, self._patterns, self._copy = folder, archives, copy
        self._files = sorted(_files(folder))
        self._listed: dict[Path, list[str]] = {}

    @property
    def archives(self) -> list[Path]:
        """Return the authors' archives that are there."""
        return [
            self.folder / name
            for name in self._files
            if any(fnmatch.fnmatch(name.rpartition("/")[2], p) for p in self._patterns)
        ]

    def find(self, pattern: str) -> dict[str, Entry]:
        """Return the files whose names end like this: matched part of the name -> entry.

        Args:
            pattern: A regular expression for the end of the name, after a slash or whole.

        Raises:
            DatasetError: If an archive is damaged, or two files have the same end.
        """
        end = re.compile(rf"(?:^|.*/)({pattern})")
        if found := self._matches(end, self._files, None):
            return found
        for archive in self.archives:
            if archive not in self._listed:
                self._listed[archive] = [name for name, _ in members(archive, self._patterns)]
            if found := self._matches(end, self._listed[archive], archive):
                return found
        return {}

    def _matches(
        self, end: re.Pattern[str], names: Sequence[str], archive: Path | None
    ) -> dict[str, Entry]:
        found: dict[str, Entry] = {}
        for name in names:
            if match := end.fullmatch(name):
                key = match[1]
                if key in found:
                    raise DatasetError(
                        f"{self._place(archive)} holds {key!r} twice, as {found[key].name!r} and "
                        f"{name!r}; move one away"
                    )
                found[key] = Entry(name, archive)
        return found

    def one(self, pattern: str, wanted: str) -> Entry:
        """Return the only file of that name.

        Args:
            pattern: As for `find`.
            wanted: What it is called and where it comes from, for the message.

        Raises:
            DatasetError: If it is missing, or there are several.
        """
        found = self.find(pattern)
        if len(found) > 1:
            raise DatasetError(
                f"--from {str(self.folder)!r} holds {' and '.join(map(repr, [*found][:2]))}; leave "
                "one there"
            )
        if not found:
            raise self.lacks(wanted)
        return next(iter(found.values()))

    def lacks(self, wanted: str) -> DatasetError:
        """Return the error that a file is not there."""
        seen = ", ".join(path.name for path in self.archives)
        beside = f" (looked into {seen}, too)" if seen else ""
        return DatasetError(
            f"--from {str(self.folder)!r} holds no {wanted}{beside}; put it there, or give the "
            "folder that it lies in"
        )

    def read(self, entry: Entry) -> bytes:
        """Return the bytes of a file or a member.

        Raises:
            DatasetError: If it cannot be read, or the archive is damaged.
        """
        return self.read_all({"": entry})[""]

    def read_all(self, entries: Mapping[str, Entry]) -> dict[str, bytes]:
        """Return the bytes of many, under their names; an archive is read once."""
        found = {}
        for name, file in self.each(entries):
            found[name] = file.read()
        return found

    def each(self, entries: Mapping[str, Entry]) -> Iterator[tuple[str, Reading]]:
        """Yield each name and its file, to be read from the beginning; an archive is read once.

        Raises:
            DatasetError: If one cannot be opened or read, or an archive is damaged.
        """
        packed: dict[Path, dict[str, str]] = {}
        for key, entry in entries.items():
            if entry.archive is not None:
                packed.setdefault(entry.archive, {})[entry.name] = key
                continue
            with told(self.folder / entry.name):
                file = (self.folder / entry.name).open("rb")
            with file:
                yield key, Reading(file, self.folder / entry.name)
        for archive, wanted in packed.items():
            for name, opened in members(archive, self._patterns):
                if (found := wanted.pop(name, None)) is not None:
                    with opened() as inner:
                        yield found, Reading(inner, archive)
            if wanted:
                raise DatasetError(
                    f"archive {str(archive)!r} lacks {counted(len(wanted), 'file')} that it "
                    f"listed, e.g. {min(wanted)!r}; run again"
                )

    def place(self, entries: Mapping[Entry, Path]) -> None:
        """Put files where they are wanted: links to files, copies of members of archives.

        Args:
            entries: File -> where to.

        Raises:
            DatasetError: If an archive is damaged or lacks one of them.
        """
        packed = {entry.name: entry for entry in entries if entry.archive is not None}
        for entry, to in entries.items():
            if entry.archive is None and self._copy:
                shutil.copyfile(self.folder / entry.name, to)
            elif entry.archive is None:
                to.symlink_to((self.folder / entry.name).resolve())
        for name, inner in self.each(packed):
            with entries[packed[name]].open("wb") as file:
                while chunk := inner.read(_CHUNK_BYTES):
                    file.write(chunk)

    def _place(self, archive: Path | None) -> str:
        return f"archive {str(archive)!r}" if archive else f"--from {str(self.folder)!r}"


def members(
    archive: Path, inner: Sequence[str] = ()
) -> Iterator[tuple[str, Callable[[], IO[bytes]]]]:
    """Yield the files in a tar or zip, in its order: name, and what opens it before the next.

    Args:
        archive: To read once, from its beginning to its end.
        inner: Patterns of the names of archives in it, whose files are yielded in their place.

    Raises:
        DatasetError: If it is damaged, or a name leads out of the folder it would be unpacked to.
    """
    with told(archive):
        if archive.name.lower().endswith(".zip"):
            with zipfile.ZipFile(archive) as packed:
                for info in packed.infolist():
                    if info.is_dir():
                        continue
                    name = _safe(info.filename, archive)
                    if _is_one_of(name, inner) and name.lower().endswith(_TAR):
                        with packed.open(info) as file:
                            yield from _of_tar(file, archive)
                    elif not is_litter(name.rpartition("/")[2]):
                        yield name, lambda info=info: packed.open(info)  # type: ignore[misc]
            return
        with archive.open("rb") as raw:
            yield from _of_tar(raw, archive)


def _of_tar(raw: IO[bytes], archive: Path) -> Iterator[tuple[str, Callable[[], IO[bytes]]]]:
    # Decompressed here: what tarfile reads as a stream it does not hold against its sum.
    plain = _decompressed(raw)
    with tarfile.open(fileobj=plain, mode="r|") as packed:
        for member in packed:
            name = _safe(member.name, archive)
            if not member.isreg() or is_litter(name.rpartition("/")[2]):
                continue
            file = packed.extractfile(member)
            assert file is not None
            yield name, lambda file=file: file  # type: ignore[misc]
    while plain.read(_CHUNK_BYTES):
        pass  # to its end, where the sum stands


def _decompressed(raw: IO[bytes]) -> IO[bytes]:
    """Return what is packed in a file, by its first bytes: authors name plain tars `.tar.gz`."""
    file = io.BufferedReader(raw)  # type: ignore[type-var]
    head = file.peek(6)
    for magic, opener in _COMPRESSED.items():
        if head.startswith(magic):
            plain: IO[bytes] = opener(file)
            return plain
    return file


def _safe(name: str, archive: Path) -> str:
    plain = name.replace("\\", "/").removeprefix("./")
    if plain and not safe_name(plain):
        raise DatasetError(
            f"archive {str(archive)!r} holds {name!r}, which leads out of the folder that it is "
            "unpacked to: it is not the authors' own; fetch it again"
        )
    return plain


@contextmanager
def told(path: Path) -> Iterator[None]:
    """Turn what is raised for a file that cannot be read into a DatasetError that names it."""
    try:
        yield
    except _DAMAGE as error:
        raise DatasetError(f"{str(path)!r} cannot be read ({error}); fetch it again") from error


def _is_one_of(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatch(name.rpartition("/")[2], pattern) for pattern in patterns)


def _files(folder: Path) -> Iterator[str]:
    """Yield the files of a folder, but for hidden ones and for what was prepared in it before."""
    for place, below, names in walk(folder, []):
        if Prepared.FILE in names:
            below.clear()
            continue
        below[:] = [name for name in below if not is_litter(name)]
        at = Path(place).relative_to(folder).as_posix()
        yield from (name if at == "." else f"{at}/{name}" for name in names if not is_litter(name))
