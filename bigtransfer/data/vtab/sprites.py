"""dSprites: one large array of pictures (`.npz`), read row by row; 3 GB need not fit in memory."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any

from bigtransfer.data.vtab.material import Material
from bigtransfer.data.vtab.opened import Opened, Part, Wanted, save_png
from bigtransfer.errors import DatasetError

if TYPE_CHECKING:
    from numpy.typing import NDArray

_NAME = "dsprites_ndarray_co1sh3sc6or40x32y32_64x64.npz"
_ORIENTATION, _POSITION_X = 3, 4
"""Columns of `latents_classes`: colour, shape, scale, orientation, x, y."""
_CLASSES = 16
"""Neighbouring values share a class: 40 orientations and 32 positions become 16 classes."""


def open_orientation(material: Material) -> Opened:
    """Open dSprites with the orientation as the label."""
    return _open(material, _ORIENTATION, 40)


def open_location(material: Material) -> Opened:
    """Open dSprites with the horizontal position as the label."""
    return _open(material, _POSITION_X, 32)


def _open(material: Material, column: int, values: int) -> Opened:
    import numpy as np

    found = material.one(r"dsprites_ndarray_[a-z0-9_]+\.npz", f"{_NAME} (of dSprites)")
    path = material.folder / found.name
    with _npy(path, "latents_classes.npy") as (file, shape, dtype):
        classes = np.frombuffer(file.read(), dtype).reshape(shape)
    with _npy(path, "imgs.npy") as (_, shape, _dtype):
        if classes.ndim != 2 or classes.shape[1] != 6 or len(classes) != shape[0]:
            raise DatasetError(
                f"{str(path)!r} holds images of shape {shape} and classes of shape "
                f"{classes.shape}; it is not the authors' file"
            )
    # In float32, as the benchmark divides: 2.5 orientations to a class.
    labels = np.floor_divide(classes[:, column].astype(np.float32), np.float32(values / _CLASSES))
    names = [str(i) for i in range(_CLASSES)]
    part = Part([str(i) for i in range(len(labels))], [names[int(label)] for label in labels])

    def write(wanted: Wanted) -> None:
        at = {int(key): to for key, to in wanted["train"].items()}
        with _npy(path, "imgs.npy") as (file, shape, dtype):
            for row in range(shape[0]):
                pixels = _row(file, shape, dtype)
                if row in at:
                    save_png(pixels * np.uint8(255), at[row])

    return Opened({"train": part}, write, ".png")


@contextmanager
def _npy(path: Any, member: str) -> Iterator[tuple[IO[bytes], tuple[int, ...], Any]]:
    """Open an array in a `.npz`: where its first row begins, its shape and its type."""
    import numpy as np

    try:
        with zipfile.ZipFile(path) as packed, packed.open(member) as file:
            version = np.lib.format.read_magic(file)
            read = {(1, 0): np.lib.format.read_array_header_1_0,
                    (2, 0): np.lib.format.read_array_header_2_0}[version]  # fmt: skip
            shape, fortran, dtype = read(file)
            if fortran or dtype.hasobject:
                raise ValueError(f"{member} is not stored row by row")
            yield file, shape, dtype
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError, ValueError) as error:
        raise DatasetError(f"{str(path)!r} cannot be read ({error}); fetch it again") from error


def _row(file: IO[bytes], shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
    import numpy as np

    count = int(np.prod(shape[1:]))
    data = file.read(count * dtype.itemsize)
    return np.frombuffer(data, dtype, count).reshape(shape[1:])
