"""SmallNORB: binary matrices, a file each of pixels and of what was set when they were taken."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any

from bigtransfer.data.vtab.material import Entry, Material
from bigtransfer.data.vtab.opened import Opened, Part, Wanted, save_png
from bigtransfer.errors import DatasetError

if TYPE_CHECKING:
    from numpy.typing import NDArray

_TYPES = {0x1E3D4C55: "u1", 0x1E3D4C54: "<i4"}
"""Magic number of a file -> what it holds (the authors' page describes the format)."""
_ELEVATION, _AZIMUTH = 1, 2
"""Columns of the info files: instance, elevation, azimuth, lighting."""
_NAMES = {"train": "smallnorb-5x46789x9x18x6x2x96x96-training",
          "test": "smallnorb-5x01235x9x18x6x2x96x96-testing"}  # fmt: skip


def open_azimuth(material: Material) -> Opened:
    """Open SmallNORB with the azimuth as the label: 0, 2, …, 34 in the files, 18 classes."""
    return _open(material, _AZIMUTH, 2)


def open_elevation(material: Material) -> Opened:
    """Open SmallNORB with the elevation as the label: 9 classes."""
    return _open(material, _ELEVATION, 1)


def _open(material: Material, column: int, step: int) -> Opened:
    pixels: dict[str, Entry] = {}
    parts = {}
    for part, name in _NAMES.items():
        pixels[part] = _file(material, f"{name}-dat.mat")
        info = _file(material, f"{name}-info.mat")
        with _matrix(material, info) as (rows, shape):
            table = [rows.take() for _ in range(shape[0])]
        with _matrix(material, pixels[part]) as (_, shape):
            if len(shape) != 4 or shape[1] != 2 or shape[0] != len(table):
                raise DatasetError(
                    f"{pixels[part].name!r} has the shape {shape}, {info.name!r} {len(table):,} "
                    "rows: they do not belong together; fetch both again"
                )
        labels = [str(int(row[column]) // step) for row in table]
        parts[part] = Part([str(i) for i in range(len(labels))], labels)

    def write(wanted: Wanted) -> None:
        for part, keys in wanted.items():
            at = {int(key): to for key, to in keys.items()}
            with _matrix(material, pixels[part]) as (rows, shape):
                for number in range(shape[0]):
                    pair = rows.take()
                    if number in at:
                        save_png(pair[0], at[number])  # of two cameras the first

    return Opened(parts, write, ".png")


def _file(material: Material, name: str) -> Entry:
    return material.one(rf"{name}(?:\.gz)?", f"{name}.gz (of SmallNORB)")


class _Rows:
    """The rows of a matrix, one after the other."""

    def __init__(self, file: IO[bytes], shape: tuple[int, ...], dtype: Any) -> None:
        self._file, self._shape, self._dtype = file, shape, dtype

    def take(self) -> NDArray[Any]:
        import numpy as np

        count = int(np.prod(self._shape))
        data = self._file.read(count * self._dtype.itemsize)
        return np.frombuffer(data, self._dtype, count).reshape(self._shape)


@contextmanager
def _matrix(material: Material, entry: Entry) -> Iterator[tuple[_Rows, tuple[int, ...]]]:
    """Open a matrix at its first row."""
    import numpy as np

    try:
        for _, raw in material.each({"": entry}):
            file: Any = raw  # what GzipFile needs of it is `read` alone
            if entry.name.endswith(".gz"):
                file = gzip.GzipFile(fileobj=file)
            magic, dimensions = np.frombuffer(file.read(8), "<i4", 2).tolist()
            if magic not in _TYPES:
                raise ValueError(f"it begins with {magic:#x}, which is no matrix of NORB's")
            stored = np.frombuffer(file.read(4 * max(3, dimensions)), "<i4").tolist()
            shape = tuple(stored[:dimensions])
            yield _Rows(file, shape[1:], np.dtype(_TYPES[magic])), shape
    except (ValueError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DatasetError(
            f"{str(material.folder / entry.name)!r} cannot be read ({error}); fetch it again"
        ) from error
