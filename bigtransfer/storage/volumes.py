"""A folder as a few plain tar files, for whoever moves folders file by file.

Kubeflow's launcher sends and fetches every file of an artifact by itself, one after the other. A
folder of many files therefore travels as volumes: tar files of a fixed order, times and owners,
beside a list of where in them each file lies. It has the digest of the folder that it holds.
"""

from __future__ import annotations

import csv
import fcntl
import io
import os
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from bigtransfer.errors import StorageError
from bigtransfer.storage.local import (
    MANIFEST_NAME,
    VOLUMES_NAME,
    as_json,
    digest_of,
    explained,
    new_folder,
    read_json,
    verify_folder,
)
from bigtransfer.storage.tree import Contents, TreeFile, all_of, is_litter, safe_name

MOST_FILES = 64
"""Of a folder that is not packed."""
_MOST_VOLUMES = 56
_VOLUME_BYTES = 256 << 20
_MEMBERS_NAME = "members.csv"
_FORMAT: Literal[2] = tarfile.PAX_FORMAT
_FOLDER = ""
"""In place of the volume, of a folder without files of its own."""


@dataclass(frozen=True)
class _Member:
    """Where a file lies."""

    path: str
    bytes: int
    volume: str
    offset: int


def is_packed(folder: Path) -> bool:
    """Say whether a folder holds another one as volumes."""
    names = (VOLUMES_NAME, _MEMBERS_NAME, MANIFEST_NAME)
    return all((folder / name).is_file() for name in names)


def pack(folder: Path) -> None:
    """Replace a folder by its volumes; at no moment there is neither.

    Raises:
        StorageError: If a file cannot be read, or the place not be written.
        InfrastructureError: If the disk is full.
    """
    names, empty = _listed(folder)
    sizes = {name: (folder / name).stat().st_size for name in names}
    digest, total = digest_of(folder), sum(sizes.values())
    with new_folder(folder) as partial:
        members = list(_write(folder, sizes, partial, max(_VOLUME_BYTES, total // _MOST_VOLUMES)))
        members += [_Member(name, 0, _FOLDER, 0) for name in empty]
        with (partial / _MEMBERS_NAME).open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, quoting=csv.QUOTE_ALL, lineterminator="\n")
            writer.writerow(("path", "bytes", "volume", "offset"))
            writer.writerows((m.path, m.bytes, m.volume, m.offset) for m in members)
        facts = {"schema": 1, "digest": digest, "files": len(names), "bytes": total}
        (partial / VOLUMES_NAME).write_text(as_json(facts), "utf-8")


def unpack(folder: Path, target: Path) -> Path:
    """Bring back the folder that volumes hold; what is there already is taken.

    Several processes may ask for the same one: the first does it, the others wait.

    Args:
        folder: With volumes.
        target: Where it is put.

    Returns:
        `target`.

    Raises:
        StorageError: If a volume is damaged.
        InfrastructureError: If the disk is full.
    """
    with explained(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        waiting = target.with_name(f"{target.name}.lock").open("w")
    with waiting:
        fcntl.flock(waiting, fcntl.LOCK_EX)
        if target.is_dir():
            return target
        verify_folder(folder)
        members = _members(folder)
        with new_folder(target, sealed=False) as partial:
            for volume in sorted({m.volume for m in members} - {_FOLDER}):
                with tarfile.open(folder / volume) as tar:
                    tar.extractall(partial, filter="data")
            for member in members:
                if member.volume == _FOLDER:
                    (partial / member.path).mkdir(parents=True, exist_ok=True)
    return target


@dataclass(frozen=True)
class VolumeTree:
    """The files of a packed folder, read where they lie in its volumes."""

    folder: Path
    _known: dict[str, _Member] = field(repr=False)

    @classmethod
    def at(cls, folder: Path) -> VolumeTree:
        """Open a packed folder.

        Raises:
            StorageError: If its list is damaged.
        """
        return cls(folder, {member.path: member for member in _members(folder)})

    @property
    def address(self) -> str:
        """Return the folder."""
        return str(self.folder)

    def contents(self) -> Contents:
        """List the folder, as a folder itself is listed."""
        shown = [m for m in self._known.values() if not any(map(is_litter, m.path.split("/")))]
        files = [TreeFile(m.path, m.bytes) for m in shown if m.volume != _FOLDER]
        folders = {m.path for m in shown if m.volume == _FOLDER}
        for member in shown:
            parts = member.path.split("/")
            folders |= {"/".join(parts[:n]) for n in range(1, len(parts))}
        hidden = len(self._known) - len(shown)
        return Contents(sorted(files, key=lambda f: f.path), sorted(folders), hidden)

    def has(self, path: str) -> bool:
        """Say whether there is such a file."""
        return path in self._known

    def read(self, path: str, offset: int = 0, length: int | None = None) -> bytes:
        """Return bytes of a file."""
        member = self._known[path]
        rest = max(0, member.bytes - offset)
        wanted = rest if length is None else min(length, rest)
        with (self.folder / member.volume).open("rb") as file:
            file.seek(member.offset + offset)
            data = all_of(file.read(wanted), wanted)
        return all_of(data, length)


def _listed(folder: Path) -> tuple[list[str], list[str]]:
    """Return the files of a folder in order, and the folders in it that hold nothing."""
    files, empty = [], []
    for place, below, names in os.walk(folder):
        at = Path(place).relative_to(folder)
        if link := next((name for name in below if Path(place, name).is_symlink()), None):
            raise StorageError(
                f"{str(Path(place, link))!r} is a link to a folder; put the folder itself there"
            )
        files += [(at / name).as_posix() for name in names]
        if not below and not names and place != str(folder):
            empty.append(at.as_posix())
    for name in (*files, *empty):
        if not name.isprintable() and name.encode("utf-8", "ignore").decode() != name:
            raise StorageError(
                f"{os.fsencode(name)!r} below {str(folder)!r} is no UTF-8 text; rename it"
            )
    return sorted(files), sorted(empty)


def _write(
    folder: Path, sizes: dict[str, int], target: Path, volume_bytes: int
) -> Iterator[_Member]:
    for number, names in enumerate(_shared_out(sizes, volume_bytes)):
        volume = f"volume-{number:02d}.tar"
        with tarfile.open(target / volume, "w", format=_FORMAT) as tar:
            for name in names:
                info = tarfile.TarInfo(name)  # time 0, no owner, mode 644: the same every time
                info.size = sizes[name]
                header = len(info.tobuf(_FORMAT, tar.encoding or "utf-8", tar.errors or "strict"))
                yield _Member(name, info.size, volume, tar.offset + header)
                with (folder / name).open("rb") as file:
                    tar.addfile(info, file)


def _shared_out(sizes: dict[str, int], volume_bytes: int) -> Iterator[Sequence[str]]:
    """Share the files out in order; every volume but the last is full."""
    names: list[str] = []
    filled = 0
    for name, size in sizes.items():
        names.append(name)
        filled += size
        if filled >= volume_bytes:
            yield names
            names, filled = [], 0
    if names:
        yield names


def _members(folder: Path) -> list[_Member]:
    facts = read_json(folder / VOLUMES_NAME)
    if facts.get("schema") != 1:
        raise StorageError(
            f"{str(folder)!r} was packed by a newer version (schema {facts.get('schema')!r}); use "
            "that version"
        )
    try:
        text = (folder / _MEMBERS_NAME).read_bytes().decode()  # line breaks stand in names, too
        members = [
            _Member(row["path"], int(row["bytes"]), row["volume"], int(row["offset"]))
            for row in csv.DictReader(io.StringIO(text, newline=""))
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StorageError(
            f"{str(folder / _MEMBERS_NAME)!r} is damaged ({error}); make it anew"
        ) from error
    for member in members:
        if not safe_name(member.path):
            raise StorageError(f"{str(folder)!r}: the name {member.path!r} leads out of the folder")
    return members
