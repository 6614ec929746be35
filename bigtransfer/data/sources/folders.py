"""`<class>/<image>` or `<split>/<class>/<image>`; or, where asked for, one folder of images."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

from bigtransfer.data.sources.listing import SPLIT_NAMES, ListedImage, Listing, Read, Source
from bigtransfer.data.sources.names import in_order, splits_in
from bigtransfer.errors import DatasetError
from bigtransfer.storage.tree import Contents, Tree, TreeFile

UNNAMED = "(unnamed)"
"""The class of the images of a flat folder."""
_SHOWN = 3


@dataclass(frozen=True)
class Arranged:
    """Files in folders, read as images of classes."""

    images: Iterator[tuple[TreeFile, str, str | None]]
    """File, class and, where the folders bring splits, split; a file beside classes raises."""
    labels: list[str]
    """In order, those without images too."""
    has_splits: bool
    notes: tuple[str, ...]


def list_folders(tree: Tree, contents: Contents, *, told: bool = False) -> Source:
    """List class folders, with or without split folders above them.

    Args:
        tree: Where they lie.
        contents: Of it; its files are let go of.
        told: Whether the layout was asked for by name: then a doubtful folder is a class.

    Raises:
        DatasetError: If there are no class folders, images beside them, or two ways to read them.
    """
    found = arrange(f"dataset folder {tree.address!r}", contents, told=told)
    images = Listing(
        ListedImage(file.path, (label,), split, file.bytes, file.path, fault=file.fault)
        for file, label, split in found.images
    )
    return Source(
        tree.address,
        "folders",
        images,
        found.labels,
        found.has_splits,
        False,
        contents.ignored,
        reader(tree),
        found.notes,
    )


def arrange(where: str, contents: Contents, *, told: bool) -> Arranged:
    """Tell which folders are splits and which are classes.

    Args:
        where: What it is, for messages.
        contents: Files and folders; the images let go of its files.
        told: Whether a doubtful folder is a class, by the user's word.

    Raises:
        DatasetError: If it cannot be told.
    """
    depth, notes = _wrapper_depth(contents)
    level = _Level.at(contents, depth)
    if level.loose:
        raise DatasetError(f"{where} {_beside(level.loose)}")
    if not level.names:
        raise DatasetError(f"{where} has no class folders; it needs one each")
    splits, more = _splits_of(where, level, told=told)
    notes += more
    depth += bool(splits)
    notes += _levels(where, contents, depth, told=told)

    def images() -> Iterator[tuple[TreeFile, str, str | None]]:
        for file in contents.let_go():
            parts = file.path.split("/")
            if len(parts) <= depth + 1:
                raise DatasetError(_in_a_split(where, parts[depth - 1], level, file))
            yield file, parts[depth], splits[parts[depth - 1]] if splits else None

    labels = {p.split("/")[depth] for p in contents.folders if p.count("/") >= depth}
    return Arranged(images(), in_order(labels), bool(splits), tuple(notes))


@dataclass
class _Level:
    """What lies at one depth."""

    names: list[str]
    """Folders."""
    loose: list[TreeFile]
    """Files beside them."""
    direct: Counter[str] = field(default_factory=Counter)
    """Folder -> files in it itself."""
    below: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    """Folder -> its folders."""
    deeper: Counter[str] = field(default_factory=Counter)
    """Folder -> files in folders below it."""

    @classmethod
    def at(cls, contents: Contents, depth: int) -> _Level:
        """Look at the folders with so many folders above them; equal names are one."""
        level = cls([], [])
        for folder in contents.folders:
            if len(parts := folder.split("/")[depth:]) > 1:
                level.below[parts[0]].add(parts[1])
        for file in contents.files:
            parts = file.path.split("/")[depth:]
            if len(parts) == 1:
                level.loose.append(file)
            elif parts:
                (level.direct if len(parts) == 2 else level.deeper)[parts[0]] += 1
        tops = {p.split("/")[depth] for p in contents.folders if p.count("/") >= depth}
        level.names = sorted(tops)
        return level


def _wrapper_depth(contents: Contents) -> tuple[int, list[str]]:
    """Return how many folders lie around all the others, as zip archives like to have one."""
    depth, around = 0, []
    while True:
        level = _Level.at(contents, depth)
        if len(level.names) != 1 or level.loose:
            break
        (name,) = level.names
        if splits_in(name) or level.direct[name] or not level.below[name]:
            break
        around.append(name)
        depth += 1
    one = len(level.names) == 1 and not level.loose
    if not depth or (one and not splits_in(level.names[0])):
        return 0, []
    return depth, [f"everything lies in the folder {'/'.join(around)!r}; what is in it is read"]


def _splits_of(where: str, level: _Level, *, told: bool) -> tuple[dict[str, str], list[str]]:
    """Return folder -> split where the folders are splits, or nothing; and what to say of it."""
    top = level.names
    # A class may be called so too (CIFAR-100 has trains): then images lie in it, not classes.
    named = [name for name in top if name.lower() in SPLIT_NAMES]
    given = named if named == top else [name for name in named if not level.direct[name]]
    if given and len(given) == len(top):
        return {name: SPLIT_NAMES[name.lower()] for name in top}, []
    words = {name: found for name in top if (found := splits_in(name))}
    if _are_splits(level, words) and (given or not told):
        splits = {name: found[0] for name, found in words.items()}
        pairs = ", ".join(f"{name!r} as {split}" for name, split in splits.items())
        return splits, [f"folders are read as splits by their names: {pairs}"]
    if given:
        other = [name for name in top if name not in given]
        raise DatasetError(
            f"{where} mixes split folders ({', '.join(given)}) with others "
            f"({', '.join(other[:3])}); use either <split>/<class>/ or <class>/"
        )
    if not words:
        return {}, []
    if told or _are_classes(level, words):
        return {}, [f"read as classes, not as splits, although so named: {_names(words)}"]
    raise DatasetError(
        f"{where} can be read in two ways: {_names(words)} may be splits, by their names, or "
        "classes. If they are splits, rename the folders to train, val and test, with the same "
        "class folders in each; if they are classes, say `layout: folders` (`data check` takes "
        "--layout folders, finetune --set data.layout=folders) or rename them"
    )


def _are_splits(level: _Level, words: dict[str, list[str]]) -> bool:
    below = [level.below[name] for name in level.names]
    return (
        len(words) == len(level.names)
        and all(len(found) == 1 for found in words.values())
        and not any(level.direct[name] for name in level.names)
        and len(below[0]) > 1
        and all(names == below[0] for names in below)
    )


def _are_classes(level: _Level, words: dict[str, list[str]]) -> bool:
    """Say whether folders with a split's word in their names are plainly classes among others."""
    others = len(level.names) - len(words)
    spoken = {split for found in words.values() for split in found}
    return (
        all(level.direct[name] or not level.deeper[name] for name in words)
        and others > 0
        and (len(words) == 1 or len(spoken) == 1 or others > len(words))
    )


def _levels(where: str, contents: Contents, depth: int, *, told: bool) -> list[str]:
    """Ask about two levels of class folders; say it where a class has folders beside images."""
    level = _Level.at(contents, depth)
    used = [name for name in level.names if level.direct[name] or level.deeper[name]]
    nested = [name for name in used if level.deeper[name]]
    lower = in_order(sub for name in used for sub in level.below[name])
    if not nested or (len(lower) == 1 and not any(level.direct[name] for name in used)):
        return []  # not a second level, or `<class>/images/…`
    parted = [name for name in nested if not level.direct[name] and len(level.below[name]) > 1]
    doubtful = parted or len(used) == 1 or not any(level.direct[name] for name in used)
    if told or not doubtful:
        count = sum(level.deeper[name] for name in used)
        which = f"{nested[0]}/{in_order(level.below[nested[0]])[0]}"
        return [
            f"{count:,} files lie in folders below class folders, e.g. in {which!r}; they count "
            "as images of the upper folder's class"
        ]
    raise DatasetError(
        f"{where} has two levels of folders: the classes may be the upper ones ({_some(used)}) or "
        f"the lower ones ({_some(lower)}). If the upper ones, say `layout: folders` (`data check` "
        "takes --layout folders, finetune --set data.layout=folders); if the lower ones, move them "
        "side by side, or list the images in a table"
    )


def _in_a_split(where: str, name: str, level: _Level, file: TreeFile) -> str:
    """Return what is wrong with a split folder that holds files itself."""
    if level.deeper[name] or file.fault:
        return f"split folder {name!r} of {where} {_beside([file])}"
    return (
        f"split folder {name!r} of {where} holds files beside its class folders, of which it has "
        f"none, e.g. {file.path!r}: without labels nothing can be measured on them; sort them into "
        "class folders, or move the folder away"
    )


def _beside(loose: Sequence[TreeFile]) -> str:
    first = next((file for file in loose if file.fault), loose[0])
    name = first.path.rpartition("/")[2]
    many = "1 file" if len(loose) == 1 else f"{len(loose):,} files"
    cure = "put every image into the folder of its class, and move what is no image away"
    if first.fault:
        return f"holds {many} beside its class folders; {name!r} {first.fault}: mend or remove it"
    return f"holds {many} beside its class folders, e.g. {name!r}; {cure}"


def _names(names: Collection[str]) -> str:
    quoted = [repr(name) for name in names]
    more = f" and {len(quoted) - _SHOWN} more" if len(quoted) > _SHOWN else ""
    return ", ".join(quoted[:_SHOWN]) + more


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")


def list_flat(tree: Tree, contents: Contents) -> Source:
    """List every file of a folder as images of one unnamed class; it lets go of its contents."""
    images = Listing(
        ListedImage(f.path, (UNNAMED,), None, f.bytes, f.path, fault=f.fault)
        for f in contents.let_go()
    )
    return Source(
        tree.address, "flat", images, [UNNAMED], False, False, contents.ignored, reader(tree)
    )


def reader(tree: Tree) -> Read:
    """Return how images that are files, or parts of uncompressed files, are read."""

    def read(file: str, offset: int, length: int) -> bytes:
        return tree.read(file) if offset < 0 else tree.read(file, offset, length)

    return read
