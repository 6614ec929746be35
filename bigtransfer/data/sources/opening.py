"""Open a dataset wherever it lies, telling its layout by what is there."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from bigtransfer.data.sources.cifar import is_cifar, list_cifar
from bigtransfer.data.sources.folders import list_flat, list_folders
from bigtransfer.data.sources.listing import Source
from bigtransfer.data.sources.table import SUFFIXES, list_table
from bigtransfer.data.sources.tars import list_class_tars, list_ilsvrc2012, list_webdataset
from bigtransfer.errors import DatasetError
from bigtransfer.storage.tree import Contents, Tree
from bigtransfer.storage.trees import open_tree

_LIST = {
    "folders": list_folders, "flat": list_flat, "cifar": list_cifar,
    "ilsvrc2012": list_ilsvrc2012, "class_tars": list_class_tars, "webdataset": list_webdataset,
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
        raise DatasetError(
            f"dataset {str(path)!r} does not exist; correct its 'path' in params.yaml"
        )
    only = None
    if path.is_file():
        path, only = path.parent, path.name
    tree = open_tree(path)
    contents = tree.contents()
    if only is not None and not only.endswith(SUFFIXES):
        contents = Contents([f for f in contents.files if f.path == only], [], 0)
    if layout == "auto":
        layout = _layout_of(tree, contents, only)
        if layout == "folders" and flat_allowed and not contents.folders:
            layout = "flat"
    try:
        if layout == "table":
            return list_table(tree, contents, only or _the_table(tree, contents))
        return _LIST[layout](tree, contents)
    except OSError as error:
        raise DatasetError(
            f"{tree.address!r}: a file that lists the images cannot be read ({error}); mend it"
        ) from error


def _layout_of(tree: Tree, contents: Contents, only: str | None) -> str:
    if only and only.endswith(SUFFIXES):
        return "table"
    names = [PurePosixPath(f.path).name for f in contents.files]
    if is_cifar(set(names)) and not any(n.endswith((".jpg", ".png")) for n in names[:1000]):
        return "cifar"
    if any(name.startswith("ILSVRC2012_img_") for name in names):
        return "ilsvrc2012"
    if names and all(name.endswith((".tar.gz", ".tgz")) for name in names):
        return "cifar"
    if names and all(name.endswith(".tar") for name in names):
        classes = [n.removesuffix(".tar") for n in names]
        plain = all(c[:1] == "n" and c[1:].isdigit() and len(c) == 9 for c in classes)
        return "class_tars" if plain else "webdataset"
    if sum("/" not in f.path and f.path.endswith(SUFFIXES) for f in contents.files) == 1:
        return "table"
    return "folders"


def _the_table(tree: Tree, contents: Contents) -> str:
    tables = [f.path for f in contents.files if "/" not in f.path and f.path.endswith(SUFFIXES)]
    if len(tables) != 1:
        raise DatasetError(
            f"{tree.address!r} holds {len(tables)} tables beside its folders; give the path of the "
            "one that lists the images"
        )
    return tables[0]
