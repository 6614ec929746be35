"""`<class>/<image>` or `<split>/<class>/<image>`; or, where asked for, one folder of images."""

from __future__ import annotations

from bigtransfer.data.sources.listing import SPLIT_NAMES, ListedImage, Read, Source
from bigtransfer.errors import DatasetError
from bigtransfer.storage.tree import Contents, Tree

UNNAMED = "(unnamed)"
"""The class of the images of a flat folder."""


def list_folders(tree: Tree, contents: Contents) -> Source:
    """List class folders, with or without split folders above them.

    Raises:
        DatasetError: If there are no class folders, or images beside them.
    """
    where = f"dataset folder {tree.address!r}"
    top = sorted({p.split("/")[0] for p in contents.folders})
    loose = [f.path for f in contents.files if "/" not in f.path]
    if loose:
        raise DatasetError(
            f"{where} holds {len(loose)} files beside its class folders, e.g. {loose[0]!r}; put "
            "every image into the folder of its class"
        )
    if not top:
        raise DatasetError(f"{where} has no class folders; it needs one each")
    # A class may be called so too (CIFAR-100 has trains): then images lie in it, not classes.
    of_images = {f.path.split("/")[0] for f in contents.files if f.path.count("/") == 1}
    named = [name for name in top if name.lower() in SPLIT_NAMES]
    given = named if named == top else [name for name in named if name not in of_images]
    if given and len(given) < len(top):
        other = [name for name in top if name not in given]
        raise DatasetError(
            f"{where} mixes split folders ({', '.join(given)}) with others "
            f"({', '.join(other[:3])}); use either <split>/<class>/ or <class>/"
        )
    depth = 1 if given else 0
    labels = {p.split("/")[depth] for p in contents.folders if p.count("/") >= depth}
    images = []
    for file in contents.files:
        parts = file.path.split("/")
        if len(parts) <= depth + 1:
            raise DatasetError(
                f"split folder {parts[0]!r} of {tree.address!r} holds files beside its class "
                f"folders, e.g. {parts[-1]!r}; put every image into the folder of its class"
            )
        split = SPLIT_NAMES[parts[0].lower()] if given else None
        images.append(
            ListedImage(file.path, (parts[depth],), split, file.bytes, file.path, fault=file.fault)
        )
    return Source(
        tree.address,
        "folders",
        images,
        sorted(labels),
        bool(given),
        False,
        contents.ignored,
        reader(tree),
    )


def list_flat(tree: Tree, contents: Contents) -> Source:
    """List every file of a folder as images of one unnamed class."""
    images = [
        ListedImage(f.path, (UNNAMED,), None, f.bytes, f.path, fault=f.fault)
        for f in contents.files
    ]
    return Source(
        tree.address, "flat", images, [UNNAMED], False, False, contents.ignored, reader(tree)
    )


def reader(tree: Tree) -> Read:
    """Return how images that are files, or parts of uncompressed files, are read."""

    def read(file: str, offset: int, length: int) -> bytes:
        return tree.read(file) if offset < 0 else tree.read(file, offset, length)

    return read
