"""List the images of a folder `<class>/<image>` or `<split>/<class>/<image>`."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from bigtransfer.errors import DatasetError

SPLITS = ("train", "val", "test")
_SPLIT_NAMES = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
_LITTER = {"thumbs.db", "desktop.ini", "__macosx"}


@dataclass(frozen=True)
class ListedImage:
    """One file of a dataset folder, as found: nothing was opened yet."""

    path: str
    """Relative to the dataset folder, with forward slashes."""
    label: str
    """Name of the class folder."""
    split: str | None
    """`train`, `val` or `test` where the folder brings its own splits, else None."""


@dataclass(frozen=True)
class Listing:
    """What a dataset folder holds."""

    images: list[ListedImage]
    labels: list[str]
    """All class folders in order, empty ones too."""
    has_splits: bool
    ignored: int
    """Files passed over: hidden ones and what operating systems leave behind."""


def list_folder(root: Path) -> Listing:
    """List a dataset folder in a fixed order (by name).

    Links to folders are not followed, so a loop of links ends.

    Raises:
        DatasetError: If the folder is missing, empty, or has images beside its class folders.
    """
    if not root.exists():
        raise DatasetError(
            f"dataset folder {str(root)!r} does not exist; correct its 'path' in params.yaml"
        )
    if not root.is_dir():
        raise DatasetError(f"{str(root)!r} is not a folder; give the folder of class folders")
    folders, loose, ignored = _children(root)
    if loose:
        raise DatasetError(
            f"dataset folder {str(root)!r} holds {len(loose)} files beside its class folders, "
            f"e.g. {loose[0]!r}; put every image into the folder of its class"
        )
    if not folders:
        raise DatasetError(f"dataset folder {str(root)!r} has no class folders; it needs one each")
    split_of = {name: _SPLIT_NAMES.get(name.lower()) for name in folders}
    has_splits = all(split_of.values())
    if not has_splits and any(split_of.values()):
        given = [name for name in folders if split_of[name]]
        other = [name for name in folders if not split_of[name]]
        raise DatasetError(
            f"dataset folder {str(root)!r} mixes split folders ({', '.join(given)}) with others "
            f"({', '.join(other[:3])}); use either <split>/<class>/ or <class>/"
        )
    return _walk(root, folders, split_of if has_splits else None, ignored)


def _walk(
    root: Path, folders: list[str], split_of: dict[str, str | None] | None, ignored: int
) -> Listing:
    images: list[ListedImage] = []
    labels: set[str] = set()
    places: list[tuple[Path, str, str | None]] = []
    if split_of is None:
        places = [(root / name, name, None) for name in folders]
    else:
        for name in folders:
            classes, loose, passed = _children(root / name)
            ignored += passed
            if loose:
                raise DatasetError(
                    f"split folder {str(root / name)!r} holds files beside its class folders, "
                    f"e.g. {loose[0]!r}; put every image into the folder of its class"
                )
            places += [(root / name / label, label, split_of[name]) for label in classes]
    for place, label, split in places:
        labels.add(label)
        for folder, below, files in os.walk(place):
            below[:] = sorted(name for name in below if not _is_litter(name))
            for name in sorted(files):
                if _is_litter(name):
                    ignored += 1
                    continue
                path = Path(folder, name).relative_to(root).as_posix()
                images.append(ListedImage(path, label, split))
    return Listing(images, sorted(labels), split_of is not None, ignored)


def _children(folder: Path) -> tuple[list[str], list[str], int]:
    names = sorted(os.listdir(folder))
    kept = [name for name in names if not _is_litter(name)]
    folders = [name for name in kept if (folder / name).is_dir()]
    return folders, [name for name in kept if name not in set(folders)], len(names) - len(kept)


def _is_litter(name: str) -> bool:
    return name.startswith(".") or name.lower() in _LITTER
