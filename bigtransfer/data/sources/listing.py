"""What every kind of source is turned into: a list of images, and a way to read each."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, repeat
from typing import Any, overload

import pyarrow as pa

from bigtransfer.errors import DatasetError, did_you_mean

SPLITS = ("train", "val", "test")
SPLIT_NAMES = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val",
    "dev": "val", "test": "test", "testing": "test",
}  # fmt: skip
WHOLE = -1
"""Offset and length of an image that is a file of its own."""


@dataclass(frozen=True, slots=True)
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


_COLUMNS = pa.schema(
    [
        ("path", pa.string()),
        ("labels", pa.list_(pa.string())),
        ("split", pa.string()),
        ("bytes", pa.int64()),
        ("file", pa.string()),
        ("offset", pa.int64()),
        ("length", pa.int64()),
        ("fault", pa.string()),
    ]
)
_UNSAID = {"split": None, "file": None, "offset": WHOLE, "length": WHOLE, "fault": None}
"""What a column holds that some rows leave out altogether; no file: the path."""
_ROWS = 1024


class Listing(Sequence[ListedImage]):
    """Images as columns: some 70 bytes each, where an object of its own takes six times that."""

    def __init__(self, images: Iterable[ListedImage] = ()) -> None:
        """Take the images one after the other; an iterator's are never all there at once."""
        rows = iter(images)
        self._batches = [_as_batch([first, *islice(rows, _ROWS - 1)]) for first in rows]
        self._count = sum(len(batch) for batch in self._batches)

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, place: int) -> ListedImage: ...

    @overload
    def __getitem__(self, place: slice) -> list[ListedImage]: ...

    def __getitem__(self, place: int | slice) -> ListedImage | list[ListedImage]:
        if isinstance(place, slice):
            start, stop, step = place.indices(len(self))
            return list(self.between(start, stop)) if step == 1 else list(self)[place]
        if not -len(self) <= place < len(self):
            raise IndexError(place)
        batch, row = divmod(place % len(self), _ROWS)
        return next(_images_of(self._batches[batch].slice(row, 1)))

    def __iter__(self) -> Iterator[ListedImage]:
        return self.between(0, len(self))

    def between(self, start: int, stop: int) -> Iterator[ListedImage]:
        """Yield the images from one row up to another."""
        for number in range(start // _ROWS, -(-stop // _ROWS) if stop > start else 0):
            first = number * _ROWS
            low, high = max(0, start - first), min(_ROWS, stop - first)
            yield from _images_of(self._batches[number].slice(low, high - low))

    def sha256(self) -> str:
        """Return the digest of all that is listed."""
        digest = hashlib.sha256()
        for image in self:
            digest.update(repr((image.path, image.labels, image.split, image.bytes, image.file,
                                image.offset, image.length, image.fault)).encode())  # fmt: skip
        return digest.hexdigest()


def _as_batch(images: Sequence[ListedImage]) -> Any:
    columns: dict[str, list[Any]] = {
        name: [getattr(image, name) for image in images] for name in _COLUMNS.names
    }
    columns["file"] = [None if i.file == i.path else i.file for i in images]
    said = [
        field
        for field in _COLUMNS
        if field.name not in _UNSAID or set(columns[field.name]) != {_UNSAID[field.name]}
    ]
    return pa.record_batch([columns[field.name] for field in said], schema=pa.schema(said))


def _images_of(batch: Any) -> Iterator[ListedImage]:
    columns = (
        batch[name].to_pylist() if name in batch.schema.names else repeat(_UNSAID[name], len(batch))
        for name in _COLUMNS.names
    )
    for path, labels, split, size, file, offset, length, fault in zip(*columns, strict=True):
        yield ListedImage(path, tuple(labels), split, size, file or path, offset, length, fault)


Read = Callable[[str, int, int], bytes]
"""`read(file, offset, length)` returns the encoded image."""


@dataclass(frozen=True)
class Source:
    """A dataset where it lies."""

    address: str
    layout: str
    images: Sequence[ListedImage]
    """In a fixed order; `open_source` gives a `Listing`."""
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
