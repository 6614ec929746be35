"""What every kind of source is turned into: a list of images, and a way to read each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from bigtransfer.errors import DatasetError, did_you_mean

SPLITS = ("train", "val", "test")
SPLIT_NAMES = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val",
    "dev": "val", "test": "test", "testing": "test",
}  # fmt: skip
WHOLE = -1
"""Offset and length of an image that is a file of its own."""


@dataclass(frozen=True)
class ListedImage:
    """One image, as listed: nothing was decoded yet."""

    path: str
    """Its name within the dataset, unique, with forward slashes."""
    labels: tuple[str, ...]
    """Class names: one, or several where the source is multi-label."""
    split: str | None
    """`train`, `val` or `test` where the source brings its own splits, else None."""
    bytes: int
    file: str
    """The file that holds it, relative to the source."""
    offset: int = WHOLE
    """Of its first byte in an uncompressed archive; of a record where the format has records."""
    length: int = WHOLE
    fault: str | None = None
    """Why it cannot be used, where that shows in the listing already."""


Read = Callable[[str, int, int], bytes]
"""`read(file, offset, length)` returns the encoded image."""


@dataclass(frozen=True)
class Source:
    """A dataset where it lies."""

    address: str
    layout: str
    images: list[ListedImage]
    """In a fixed order."""
    labels: list[str]
    """All class names in order, those without images too."""
    has_splits: bool
    multi_label: bool
    ignored: int
    """Files passed over: hidden ones and what operating systems leave behind."""
    read: Read
    notes: tuple[str, ...] = ()
    """What the user should know of how it was read, a line each."""
    benchmark: str = ""
    """The task of a benchmark that `data prepare` made it as: its splits are used as they are."""


def split_of(text: str, where: str) -> str:
    """Return the split that a word names.

    Raises:
        DatasetError: If it names none; `where` says where it stands.
    """
    found = SPLIT_NAMES.get(text.strip().lower())
    if found is None:
        raise DatasetError(
            f"{where}: unknown split {text!r}{did_you_mean(text, SPLIT_NAMES)}; use train, val or "
            "test"
        )
    return found
