"""Class folders in archives: a plain tar is read in place; for others, the command that unpacks."""

from __future__ import annotations

import io
import shlex
import tarfile
import zlib
from collections.abc import Iterator
from itertools import chain
from pathlib import PurePosixPath

from bigtransfer.data.sources.folders import arrange, reader
from bigtransfer.data.sources.listing import ListedImage, Listing, Source
from bigtransfer.data.sources.names import in_order
from bigtransfer.data.sources.tars import (
    LABEL_SUFFIXES,
    Member,
    is_hidden,
    is_picture,
    list_webdataset,
    members,
    same_splits,
    split_of_archive,
)
from bigtransfer.errors import DatasetError
from bigtransfer.storage.tree import Contents, Tree, TreeFile
from bigtransfer.storage.trees import TreeReader

_COMMANDS = {
    ".zip": "unzip -q {file} -d {folder}",
    ".tar.gz": "gunzip {file}",
    ".tgz": "gunzip {file}",
    ".tar.bz2": "bunzip2 {file}",
    ".tbz2": "bunzip2 {file}",
    ".tar.xz": "unxz {file}",
    ".txz": "unxz {file}",
    ".tar.zst": "unzstd --rm {file}",
    ".7z": "7z x -o{folder} {file}",
    ".rar": "unrar x {file} {folder}/",
}
"""Suffix -> what unpacks it; a compressed tar becomes a plain one, which is read in place."""
_PEEKED = 64
_SHOWN = 3


def is_tar(name: str) -> bool:
    """Say whether a file name is one of a plain tar."""
    return name.lower().endswith(".tar")


def packed_suffix(name: str) -> str | None:
    """Return the suffix of an archive that cannot be read in place, or None."""
    return next((suffix for suffix in _COMMANDS if name.lower().endswith(suffix)), None)


def refuse_packed(tree: Tree, files: list[TreeFile]) -> None:
    """Refuse archives that cannot be read in place.

    Raises:
        DatasetError: Gives the commands that unpack them, and what to give then.
    """
    lines, then = [], ""
    for file in files:
        path = f"{tree.address.rstrip('/')}/{file.path}"
        suffix = packed_suffix(path)
        assert suffix is not None
        folder = path[: -len(suffix)]
        known = _COMMANDS[suffix]
        lines.append(known.format(file=shlex.quote(path), folder=shlex.quote(folder)))
        then = then or (folder if "{folder}" in known else f"{folder}.tar")
    name = repr(files[0].path) + (f" and {len(files) - 1} more" if len(files) > 1 else "")
    are, its = ("is", "it") if len(files) == 1 else ("are", "them")
    give = f", then give {then!r}" if len(files) == 1 else ""
    remote = "fetch and unpack" if "://" in tree.address else "unpack"
    more = " ; …" if len(lines) > _SHOWN else ""
    raise DatasetError(
        f"{name} of {tree.address!r} {are} compressed and cannot be read in place; {remote} "
        f"{its}{give}: {' ; '.join(lines[:_SHOWN])}{more}"
    )


def holds(tree: Tree, file: TreeFile, wanted: set[str]) -> bool:
    """Say whether one of the first files in a compressed tar has one of these names.

    A damaged archive counts as one that has: reading all of it says what is wrong.
    """
    try:
        with (
            io.BufferedReader(TreeReader(tree, file.path, file.bytes)) as raw,
            tarfile.open(fileobj=raw, mode="r|*") as tar,
        ):
            for count, member in enumerate(tar):
                if PurePosixPath(member.name).name in wanted:
                    return True
                if count >= _PEEKED:
                    return False
    except (tarfile.TarError, EOFError, OSError, zlib.error):
        return True
    return False


def list_tars(tree: Tree, contents: Contents) -> Source:
    """List tars of WebDataset samples or, where no member is a label, of class folders."""
    if not contents.files:
        return list_webdataset(tree, contents)
    first = contents.files[0]
    walked = {first.path: members(tree, first.path, first.bytes)}
    names = [m.name for m in walked[first.path] if not is_hidden(m.name)]
    pictures = [name for name in names if is_picture(name.rpartition(".")[2])]
    in_folders = all("/" in name.removeprefix("./") for name in pictures)
    if pictures and in_folders and not _labelled(names, pictures):
        return list_tar_folders(tree, contents, walked)
    return list_webdataset(tree, contents, walked)


def _labelled(names: list[str], pictures: list[str]) -> bool:
    """Say whether a label stands beside a picture of its name, to the first dot or to the last."""
    stems = {stem for name in pictures for stem in _stems(name)}
    labels = (name for name in names if name.lower().rpartition(".")[2] in LABEL_SUFFIXES)
    return any(stem in stems for name in labels for stem in _stems(name))


def _stems(name: str) -> tuple[str, str]:
    folder, _, base = name.rpartition("/")
    return f"{folder}/{base.partition('.')[0]}", f"{folder}/{base.rpartition('.')[0]}"


def list_tar_folders(
    tree: Tree,
    contents: Contents,
    walked: dict[str, list[Member]] | None = None,
    *,
    told: bool = False,
) -> Source:
    """List class folders inside plain tars; splits by folders inside or by the archives' names.

    Raises:
        DatasetError: If an archive is damaged, or its folders cannot be told.
    """
    labels: set[str] = set()
    notes: list[str] = []
    ignored = contents.ignored

    def images_of(file: TreeFile) -> Iterator[ListedImage]:
        nonlocal ignored, labels, notes
        where = f"archive {file.path!r} of {tree.address!r}"
        found = (walked or {}).get(file.path) or members(tree, file.path, file.bytes)
        shown = [member for member in found if not is_hidden(member.name)]
        at = {member.name.removeprefix("./"): member for member in shown}
        if len(at) < len(shown):
            raise DatasetError(f"{where} holds a name twice, once with './'; make it anew")
        ignored += len(found) - len(shown)
        arranged = arrange(where, _as_contents(at), told=told)
        labels |= set(arranged.labels)
        notes += [note if len(contents.files) == 1 else f"{note} ({file.path})"
                  for note in arranged.notes]  # fmt: skip
        own = split_of_archive(tree, file.path)
        above = "" if len(contents.files) == 1 else f"{file.path[:-4]}/"
        for inner, label, split in arranged.images:
            if own and split and own != split:
                raise DatasetError(
                    f"{where}: its name speaks of {own}, but {inner.path!r} in it of {split}; "
                    "rename the archive so that it names no split"
                )
            member = at[inner.path]
            yield ListedImage(
                above + inner.path,
                (label,),
                split or own,
                member.length,
                file.path,
                member.offset,
                member.length,
            )

    images = Listing(chain.from_iterable(map(images_of, contents.files)))
    has_splits = same_splits(tree, images)
    return Source(
        tree.address, "folders", images, in_order(labels), has_splits, False, ignored,
        reader(tree), tuple(notes),
    )  # fmt: skip


def _as_contents(at: dict[str, Member]) -> Contents:
    files = [TreeFile(name, member.length) for name, member in at.items()]
    folders = {
        "/".join(parts[:n])
        for name in at
        for parts in [name.split("/")]
        for n in range(1, len(parts))
    }
    return Contents(sorted(files, key=lambda f: f.path), sorted(folders))
