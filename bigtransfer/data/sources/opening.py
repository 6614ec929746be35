"""Open a dataset wherever it lies, telling its layout by what is there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path, PurePosixPath

from bigtransfer.data.sources.archives import (
    holds,
    is_tar,
    list_tar_folders,
    list_tars,
    packed_suffix,
    refuse_packed,
)
from bigtransfer.data.sources.cifar import CIFAR_FILES, is_cifar, list_cifar
from bigtransfer.data.sources.folders import list_flat, list_folders
from bigtransfer.data.sources.listing import Listing, Source
from bigtransfer.data.sources.table import is_table, list_table
from bigtransfer.data.sources.tars import (
    is_picture,
    list_class_tars,
    list_ilsvrc2012,
    list_webdataset,
)
from bigtransfer.errors import DatasetError
from bigtransfer.storage.tree import Contents, Tree
from bigtransfer.storage.trees import open_tree

_PEEKED_ARCHIVES = 4
_LIST = {
    "flat": list_flat, "cifar": list_cifar, "ilsvrc2012": list_ilsvrc2012,
    "class_tars": list_class_tars, "webdataset": list_webdataset,
}  # fmt: skip


def open_source(path: Path, layout: str = "auto", *, flat_allowed: bool = False) -> Source:
    """List a dataset.

    Args:
        path: A folder, the index of a remote address, or one file: a table or an archive.
        layout: One of `config.LAYOUTS`; `auto` tells it by the names of the files.
        flat_allowed: Whether `auto` takes a folder of files alone for one unnamed class.

    Raises:
        DatasetError: If it is missing, or cannot be read as that layout.
        StorageError: If it cannot be listed.
    """
    if not path.exists():
        raise DatasetError(f"dataset {str(path)!r} does not exist; correct the path")
    only = None
    if path.is_file():
        path, only = path.parent, path.name
    tree = open_tree(path)
    contents = tree.contents()
    if only is not None and not is_table(only):
        contents = Contents([f for f in contents.files if f.path == only], [], 0)
    if not contents.files and not contents.folders:
        raise DatasetError(_nothing(tree, contents))
    try:
        source = _listed(tree, contents, layout, only, flat_allowed=flat_allowed)
    except OSError as error:
        raise DatasetError(
            f"{tree.address!r}: a file that lists the images cannot be read ({error}); mend it"
        ) from error
    loops = [f"the link {path!r} leads back to a folder above it; it is not followed"
             for path in contents.loops]  # fmt: skip
    images = source.images if isinstance(source.images, Listing) else Listing(source.images)
    return replace(source, images=images, notes=(*loops, *source.notes))


def _listed(
    tree: Tree, contents: Contents, layout: str, only: str | None, *, flat_allowed: bool
) -> Source:
    told = layout != "auto"
    if not told:
        layout = _layout_of(tree, contents, only)
        if layout == "folders" and flat_allowed and not contents.folders:
            layout = "flat"
    elif contents.files and all(packed_suffix(f.path) for f in contents.files):
        if layout in ("folders", "flat", "class_tars", "webdataset"):
            refuse_packed(tree, contents.files)
    if layout == "table":
        return list_table(tree, contents, only or _the_table(tree, contents))
    if layout == "webdataset" and not told:
        return list_tars(tree, contents)
    if layout == "folders":
        if contents.files and all(is_tar(f.path) for f in contents.files):
            return list_tar_folders(tree, contents, told=told)
        return list_folders(tree, contents, told=told)
    return _LIST[layout](tree, contents)


def _layout_of(tree: Tree, contents: Contents, only: str | None) -> str:
    if only and is_table(only):
        return "table"

    def names() -> Iterator[str]:  # of millions of files a list of them would be large
        return (PurePosixPath(f.path).name for f in contents.files)

    first = islice(names(), 1000)
    if is_cifar(CIFAR_FILES.intersection(names())) and not any(
        name.endswith((".jpg", ".png")) for name in first
    ):
        return "cifar"
    if any(name.startswith("ILSVRC2012_img_") for name in names()):
        return "ilsvrc2012"
    packed = [f for f in contents.files if packed_suffix(f.path)]
    if packed and len(packed) == len(contents.files):
        compressed = [f for f in packed if f.path.endswith((".tar.gz", ".tgz"))]
        if any(holds(tree, f, CIFAR_FILES) for f in compressed[:_PEEKED_ARCHIVES]):
            return "cifar"
        refuse_packed(tree, packed)
    if contents.files and all(map(is_tar, names())):
        classes = [PurePosixPath(name).stem for name in names()]
        plain = all(c[:1] == "n" and c[1:].isdigit() and len(c) == 9 for c in classes)
        return "class_tars" if plain else "webdataset"
    tables = _tables(contents)
    if len(tables) == 1:
        return "table"
    _refuse_beside(tree, contents, tables)
    return "folders"


def _refuse_beside(tree: Tree, contents: Contents, tables: list[str]) -> None:
    """Refuse what lists or holds images beside what does so too, or one folder further down."""
    top = [f.path for f in contents.files if "/" not in f.path]
    if len(tables) > 1:
        raise DatasetError(
            f"{tree.address!r} holds {len(tables)} tables ({', '.join(tables[:3])}); give the path "
            "of the one that lists the images, or join them into one with a column 'split'"
        )
    if below := [f.path for f in contents.files if is_table(f.path) and f.path.count("/") == 1]:
        tops = {folder.partition("/")[0] for folder in contents.folders}
        if len(tops) == 1 and not top:
            raise DatasetError(
                f"{tree.address!r} holds the one folder {min(tops)!r} with a table in it; give "
                f"'{tree.address.rstrip('/')}/{below[0]}'"
            )
    packed = [name for name in top if packed_suffix(name) or is_tar(name)]
    if packed and not any(is_picture(name.rpartition(".")[2]) for name in top):
        other = next((f.path for f in contents.files if f.path not in packed), None)
        if other is None:
            refuse_packed(tree, [f for f in contents.files if packed_suffix(f.path)])
        raise DatasetError(
            f"{tree.address!r} holds the archive {packed[0]!r} beside other files, e.g. {other!r}; "
            "give the archive itself, or move what is not to be used away"
        )


def _nothing(tree: Tree, contents: Contents) -> str:
    hidden = f" but hidden or system files ({contents.ignored:,})" if contents.ignored else ""
    back = f" but links that lead back to it ({contents.loops[0]!r})" if contents.loops else ""
    return f"{tree.address!r} holds nothing{hidden or back}; put images into it, or give another"


def _tables(contents: Contents) -> list[str]:
    return [f.path for f in contents.files if "/" not in f.path and is_table(f.path)]


def _the_table(tree: Tree, contents: Contents) -> str:
    tables = _tables(contents)
    if len(tables) != 1:
        raise DatasetError(
            f"{tree.address!r} holds {len(tables)} tables beside its folders; give the path of the "
            "one that lists the images"
        )
    return tables[0]
